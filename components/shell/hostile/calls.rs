/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! System calls that a content process has no business with.
//!
//! They are made in a signal handler, which interrupts a thread of the process as it is: a thread of our own would have to
//! be started before the sandbox, and would stand outside of it. So everything is set up before, and a handler makes
//! nothing but system calls.

use std::env;
use std::ffi::{CStr, CString, c_int, c_long};
use std::sync::OnceLock;

/// What the attempts are made on: `NAME=VALUE`, separated by `;`.
const VARIABLE: &str = "HOSTILE_CALLS";

struct Targets {
    /// Files and folders to open for reading.
    read: Vec<(CString, CString)>,
    /// The path of a file to make.
    write: CString,
    /// A socket's address.
    socket: libc::sockaddr_un,
    /// A process of the same user.
    victim: c_int,
    /// The main process.
    parent: c_int,
}

static TARGETS: OnceLock<Targets> = OnceLock::new();

/// Whether this is wanted: then it is made ready.
pub fn prepare() -> bool {
    let Ok(text) = env::var(VARIABLE) else {
        return false;
    };
    let c_string = |text: &str| CString::new(text).expect("no zero");
    let mut targets = Targets {
        read: Vec::new(),
        write: c_string(""),
        // SAFETY: zeroes are a valid value.
        socket: unsafe { std::mem::zeroed() },
        victim: 0,
        // SAFETY: it takes nothing.
        parent: unsafe { libc::getppid() },
    };
    for (name, value) in text.split(';').filter_map(|item| item.split_once('=')) {
        match name {
            "write" => targets.write = c_string(value),
            "socket" => {
                targets.socket.sun_family = libc::AF_UNIX as libc::sa_family_t;
                for (to, from) in targets.socket.sun_path.iter_mut().zip(value.bytes()) {
                    *to = from as libc::c_char;
                }
            }
            "victim" => targets.victim = value.parse().expect("a process id"),
            _ => targets.read.push((c_string(name), c_string(value))),
        }
    }
    targets.read.push((
        c_string("memory of the main process"),
        c_string(&format!("/proc/{}/mem", targets.parent)),
    ));
    assert!(TARGETS.set(targets).is_ok(), "prepared once");
    // SAFETY: the handler makes system calls only, and reads what was written before.
    unsafe { libc::signal(libc::SIGUSR1, attack as extern "C" fn(c_int) as usize) };
    true
}

/// `call!(NUMBER, ARGUMENT...)` is the result, or the error number below 0.
macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {{
        // SAFETY: pointers among the arguments are to values that outlive the call.
        match unsafe { libc::syscall(libc::$number $(, $argument)*) } {
            // SAFETY: the address is that of the thread's own.
            -1 => -c_long::from(unsafe { *libc::__errno_location() }),
            result => result,
        }
    }};
}

/// Writes `hostile call NAME: OUTCOME`, in one piece and without allocating.
fn report(name: &CStr, outcome: c_long) {
    let mut line = [0_u8; 200];
    let mut length = 0;
    let mut put = |bytes: &[u8]| {
        for byte in bytes {
            if let Some(slot) = line.get_mut(length) {
                *slot = *byte;
                length += 1;
            }
        }
    };
    put(b"\nhostile call ");
    put(name.to_bytes());
    put(b": ");
    if outcome >= 0 {
        put(b"done");
    } else {
        put(b"error ");
        let mut digits = [0_u8; 6];
        let (mut rest, mut first) = (-outcome, digits.len());
        while rest > 0 && first > 0 {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        put(&digits[first..]);
    }
    put(b".\n");
    call!(SYS_write, 2, line.as_ptr(), length);
}

/// Reports an attempt that gives a descriptor, and closes that.
fn descriptor(name: &CStr, outcome: c_long) {
    report(name, outcome);
    if outcome >= 0 {
        call!(SYS_close, outcome);
    }
}

extern "C" fn attack(_signal: c_int) {
    let Some(targets) = TARGETS.get() else {
        return;
    };
    const NONE: *const libc::c_void = std::ptr::null();
    let (victim, parent, own) = (targets.victim, targets.parent, call!(SYS_getpid));

    for (name, path) in &targets.read {
        descriptor(
            name,
            call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY),
        );
    }
    let mut status = [0_u64; 32];
    report(
        c"see whether a file is there",
        call!(
            SYS_newfstatat,
            libc::AT_FDCWD,
            targets.read[0].1.as_ptr(),
            status.as_mut_ptr(),
            0
        ),
    );
    let flags = libc::O_WRONLY | libc::O_CREAT;
    descriptor(
        c"write",
        call!(
            SYS_openat,
            libc::AT_FDCWD,
            targets.write.as_ptr(),
            flags,
            0o600
        ),
    );
    report(
        c"unlink",
        call!(SYS_unlinkat, libc::AT_FDCWD, targets.write.as_ptr(), 0),
    );
    report(
        c"mkdir",
        call!(SYS_mkdirat, libc::AT_FDCWD, targets.write.as_ptr(), 0o700),
    );
    report(
        c"rmdir",
        call!(
            SYS_unlinkat,
            libc::AT_FDCWD,
            targets.write.as_ptr(),
            libc::AT_REMOVEDIR
        ),
    );
    report(
        c"symlink",
        call!(
            SYS_symlinkat,
            c"target".as_ptr(),
            libc::AT_FDCWD,
            targets.write.as_ptr()
        ),
    );
    report(
        c"unlink the link",
        call!(SYS_unlinkat, libc::AT_FDCWD, targets.write.as_ptr(), 0),
    );
    report(
        c"chmod",
        call!(
            SYS_fchmodat,
            libc::AT_FDCWD,
            targets.read[0].1.as_ptr(),
            0o600
        ),
    );
    report(
        c"truncate",
        call!(SYS_truncate, targets.read[0].1.as_ptr(), 1),
    );

    for (name, family, kind) in [
        (c"socket TCP", libc::AF_INET, libc::SOCK_STREAM),
        (c"socket UDP", libc::AF_INET, libc::SOCK_DGRAM),
        (c"socket UDP 6", libc::AF_INET6, libc::SOCK_DGRAM),
        (c"socket local", libc::AF_UNIX, libc::SOCK_STREAM),
        (c"socket netlink", libc::AF_NETLINK, libc::SOCK_RAW),
    ] {
        descriptor(name, call!(SYS_socket, family, kind, 0));
    }
    let mut pair = [0 as c_int; 2];
    report(
        c"socketpair datagram",
        call!(
            SYS_socketpair,
            libc::AF_UNIX,
            libc::SOCK_DGRAM,
            0,
            pair.as_mut_ptr()
        ),
    );
    let local = call!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0);
    let size = size_of::<libc::sockaddr_un>();
    report(
        c"connect",
        call!(SYS_connect, local, &raw const targets.socket, size),
    );
    report(
        c"bind",
        call!(
            SYS_bind,
            local,
            &raw const targets.socket.sun_family,
            size_of::<libc::sa_family_t>()
        ),
    );
    report(c"listen", call!(SYS_listen, local, 1));

    report(c"kill", call!(SYS_kill, victim, 0));
    report(c"kill the main process", call!(SYS_kill, parent, 0));
    report(c"kill all of its own", call!(SYS_kill, own, 0));
    report(c"tgkill", call!(SYS_tgkill, victim, victim, 0));
    report(
        c"ptrace",
        call!(SYS_ptrace, libc::PTRACE_SEIZE, victim, 0, 0),
    );
    let mut byte = 0_u8;
    let here = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    report(
        c"process_vm_readv",
        call!(
            SYS_process_vm_readv,
            victim,
            &raw const here,
            1,
            &raw const here,
            1,
            0
        ),
    );
    report(
        c"process_vm_readv from the main process",
        call!(
            SYS_process_vm_readv,
            parent,
            &raw const here,
            1,
            &raw const here,
            1,
            0
        ),
    );
    report(
        c"process_vm_writev",
        call!(
            SYS_process_vm_writev,
            victim,
            &raw const here,
            1,
            &raw const here,
            1,
            0
        ),
    );
    descriptor(c"pidfd_open", call!(SYS_pidfd_open, victim, 0));
    report(
        c"prlimit",
        call!(SYS_prlimit64, victim, libc::RLIMIT_CORE, NONE, NONE),
    );

    // A child ends at once.
    let child = call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    if child == 0 {
        call!(SYS_exit_group, 0);
    }
    report(c"fork", child);
    report(c"clone3", call!(SYS_clone3, NONE, 0));
    // Of a program that is not there, so that it does not take our place.
    report(
        c"execve",
        call!(SYS_execve, c"/nonexistent".as_ptr(), NONE, NONE),
    );
    report(
        c"execveat",
        call!(SYS_execveat, -1, c"/nonexistent".as_ptr(), NONE, NONE, 0),
    );
    // Its text is no program's, so that it does not take our place.
    let memory = call!(SYS_memfd_create, c"program".as_ptr(), libc::MFD_CLOEXEC);
    call!(SYS_write, memory, c"text".as_ptr(), 4);
    report(
        c"execveat from memory",
        call!(
            SYS_execveat,
            memory,
            c"".as_ptr(),
            NONE,
            NONE,
            libc::AT_EMPTY_PATH
        ),
    );
    call!(SYS_close, memory);
    report(c"unshare", call!(SYS_unshare, 0));
    report(c"setns", call!(SYS_setns, -1, 0));
    report(
        c"mount",
        call!(
            SYS_mount,
            c"none".as_ptr(),
            c"/nonexistent".as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            NONE
        ),
    );
    report(c"chroot", call!(SYS_chroot, c"/nonexistent".as_ptr()));
    report(c"bpf", call!(SYS_bpf, -1, NONE, 0));
    report(c"io_uring_setup", call!(SYS_io_uring_setup, 0, NONE));
    descriptor(c"userfaultfd", call!(SYS_userfaultfd, 0));
    report(
        c"perf_event_open",
        call!(SYS_perf_event_open, NONE, 0, -1, -1, 0),
    );
    report(c"keyctl", call!(SYS_keyctl, -1));
    report(
        c"open_by_handle_at",
        call!(SYS_open_by_handle_at, -1, NONE, 0),
    );
    report(
        c"prctl dumpable",
        call!(SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
    );
    report(
        c"prctl pdeathsig",
        call!(SYS_prctl, libc::PR_SET_PDEATHSIG, 0, 0, 0, 0),
    );
    report(
        c"ioctl TIOCSTI",
        call!(SYS_ioctl, 2, libc::TIOCSTI, &raw const byte),
    );
    report(
        c"fcntl F_SETOWN",
        call!(SYS_fcntl, 2, libc::F_SETOWN, victim),
    );
    report(c"setrlimit", call!(SYS_setrlimit, libc::RLIMIT_CORE, NONE));
    report(
        c"sched_setaffinity",
        call!(SYS_sched_setaffinity, 0, 0, NONE),
    );
    // What the engine needs still works.
    report(c"getpid", own);
    report(c"end", 0);
}
