/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the engine does in a content process: none of it is refused.
//!
//! Most of the calls are made so that the kernel has nothing to do. What counts is that it is asked: the sandbox answers
//! with `EPERM` or `ENOSYS`, which none of these calls gives otherwise.

use std::ffi::c_long;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io, ptr, thread};

use crate::calls::{ERRORS, HERE, NONE, Result, address, call, page, pair};

pub struct Use {
    /// The system call.
    pub number: c_long,
    pub name: &'static str,
    /// Which of the ways in which it is allowed.
    pub way: &'static str,
    pub run: fn() -> Result,
}

/// `a_use!(NUMBER, ARGUMENT...)` or `a_use!(NUMBER "WAY", ARGUMENT...)` is the call itself; with `=> RUN` at the end, it is
/// part of that.
macro_rules! a_use {
    ($number:ident $($way:literal)? => $run:expr) => {
        Use { number: libc::$number, name: stringify!($number), way: concat!($($way)?), run: $run }
    };
    ($number:ident $($way:literal)? $(, $argument:expr)*) => {
        a_use!($number $($way)? => || call(libc::$number, &[$($argument),*]))
    };
}

const ZEROES: [u64; 32] = [0; 32];

/// How many signals were handled.
static INTERRUPTED: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_signal: i32) {
    INTERRUPTED.fetch_add(1, Ordering::Relaxed);
}

fn handle_signals() {
    // SAFETY: the handler only counts.
    unsafe { libc::signal(libc::SIGUSR1, note as extern "C" fn(i32) as usize) };
}

fn interrupt(thread: u64) -> Result {
    let own = call(libc::SYS_getpid, &[])?;
    call(libc::SYS_tgkill, &[own, thread, libc::SIGUSR1 as u64])
}

/// Handles a signal to itself, and comes back from that.
fn signal() -> Result {
    handle_signals();
    interrupt(call(libc::SYS_gettid, &[])?)?;
    Ok(INTERRUPTED.load(Ordering::Relaxed).into())
}

#[cfg(target_arch = "x86_64")]
fn pause() -> Result {
    handle_signals();
    let waiting = call(libc::SYS_gettid, &[])?;
    thread::spawn(move || {
        while interrupt(waiting).is_ok() {
            thread::yield_now();
        }
    });
    call(libc::SYS_pause, &[])
}

/// Shared memory whose length can be fixed.
fn sealable() -> Result {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    call(
        libc::SYS_memfd_create,
        &[c"name".as_ptr() as u64, flags.into()],
    )
}

/// Starts a thread with these flags, which ends at once.
#[cfg(target_arch = "x86_64")]
fn clone(flags: i32) -> Result {
    let stack = page()? + 4096;
    let flags = flags
        | libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let result: i64;
    // SAFETY: the new thread uses no memory but its registers, and ends by itself.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov eax, {exit}",
            "xor edi, edi",
            "syscall",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone => result,
            inlateout("rdi") flags as u64 => _,
            in("rsi") stack,
            in("rdx") 0,
            in("r10") 0,
            in("r8") stack - 64,
            out("rcx") _,
            out("r11") _,
        );
    }
    u64::try_from(result).map_err(|_| -result as i32)
}

/// The status of a process that has ended by its own hand.
pub const ENDED: i32 = 7;

pub const USES: &[Use] = &[
    // Threads.
    a_use!(SYS_clone "as GNU's C library" => || {
        thread::spawn(|| {}).join().map_err(|_| 0)?;
        Ok(0)
    }),
    #[cfg(target_arch = "x86_64")]
    a_use!(SYS_clone "as musl" => || clone(libc::CLONE_DETACHED)),
    a_use!(SYS_futex, address(&ZEROES), libc::FUTEX_WAKE as u64, 1),
    a_use!(SYS_gettid),
    a_use!(SYS_membarrier),
    a_use!(SYS_prctl "name of a thread", libc::PR_SET_NAME as u64, c"name".as_ptr() as u64),
    a_use!(SYS_prctl "name of memory", libc::PR_SET_VMA as u64),
    a_use!(SYS_rseq),
    a_use!(SYS_sched_getaffinity),
    a_use!(SYS_sched_yield),
    a_use!(SYS_set_robust_list),
    // Memory.
    a_use!(SYS_brk),
    a_use!(SYS_madvise "not needed", page()?, 4096, libc::MADV_DONTNEED as u64),
    a_use!(SYS_madvise "free", page()?, 4096, libc::MADV_FREE as u64),
    a_use!(SYS_madvise "soon", page()?, 4096, libc::MADV_WILLNEED as u64),
    a_use!(SYS_madvise "huge pages", page()?, 4096, libc::MADV_HUGEPAGE as u64),
    a_use!(SYS_madvise "no huge pages", page()?, 4096, libc::MADV_NOHUGEPAGE as u64),
    a_use!(SYS_mmap => page),
    a_use!(SYS_mprotect "code", page()?, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64),
    a_use!(SYS_mremap, page()?, 4096, 8192, libc::MREMAP_MAYMOVE as u64),
    a_use!(SYS_munmap, page()?, 4096),
    // Signals.
    a_use!(SYS_restart_syscall),
    a_use!(SYS_rt_sigaction),
    a_use!(SYS_rt_sigprocmask),
    a_use!(SYS_rt_sigreturn => signal),
    a_use!(SYS_sigaltstack),
    a_use!(SYS_tgkill "itself" => signal),
    // Time and chance.
    a_use!(SYS_clock_getres),
    a_use!(SYS_clock_gettime, NONE),
    a_use!(
        SYS_clock_nanosleep,
        libc::CLOCK_MONOTONIC as u64,
        0,
        address(&ZEROES)
    ),
    a_use!(SYS_getrandom),
    a_use!(SYS_getrusage, 0, address(&[0_u64; 32])),
    a_use!(SYS_gettimeofday),
    a_use!(SYS_nanosleep, address(&ZEROES)),
    a_use!(SYS_prlimit64 "by 0", 0, libc::RLIMIT_STACK.into(), 0, address(&[0_u64; 2])),
    a_use!(
        SYS_prlimit64 "by its id", std::process::id().into(), libc::RLIMIT_STACK.into(), 0, address(&[0_u64; 2])
    ),
    a_use!(SYS_sysinfo, address(&[0_u64; 32])),
    // The end.
    a_use!(SYS_exit, ENDED as u64),
    a_use!(SYS_exit_group, ENDED as u64),
    a_use!(SYS_getpid),
    #[cfg(target_arch = "x86_64")]
    a_use!(SYS_pause => pause),
    // Messages.
    a_use!(SYS_close, NONE),
    a_use!(SYS_dup, NONE),
    a_use!(SYS_epoll_create1),
    a_use!(SYS_epoll_ctl, NONE),
    a_use!(SYS_epoll_pwait, NONE),
    #[cfg(target_arch = "x86_64")]
    a_use!(SYS_epoll_wait, NONE),
    a_use!(SYS_fcntl "flags of a descriptor", ERRORS, libc::F_GETFD as u64),
    a_use!(SYS_fcntl "flags", ERRORS, libc::F_GETFL as u64),
    a_use!(SYS_fcntl "close on exec", ERRORS, libc::F_SETFD as u64, libc::FD_CLOEXEC as u64),
    a_use!(
        SYS_fcntl "do not wait",
        pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?[0],
        libc::F_SETFL as u64,
        (libc::O_NONBLOCK | libc::O_RDWR) as u64
    ),
    a_use!(SYS_fcntl "a copy", ERRORS, libc::F_DUPFD_CLOEXEC as u64),
    a_use!(SYS_fcntl "seal", sealable()?, libc::F_ADD_SEALS as u64, libc::F_SEAL_SHRINK as u64),
    a_use!(SYS_fcntl "seals", sealable()?, libc::F_GET_SEALS as u64),
    a_use!(SYS_ftruncate, NONE),
    a_use!(
        SYS_getsockopt "size of the buffer",
        pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?[0],
        libc::SOL_SOCKET as u64,
        libc::SO_SNDBUF as u64,
        address(&[0_u64; 2]),
        address(&[8_u64])
    ),
    a_use!(
        SYS_getsockopt "type",
        pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?[0],
        libc::SOL_SOCKET as u64,
        libc::SO_TYPE as u64,
        address(&[0_u64; 2]),
        address(&[8_u64])
    ),
    a_use!(
        SYS_getsockopt "family",
        pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?[0],
        libc::SOL_SOCKET as u64,
        libc::SO_DOMAIN as u64,
        address(&[0_u64; 2]),
        address(&[8_u64])
    ),
    a_use!(SYS_ioctl "whether it is a terminal", ERRORS, libc::TCGETS, address(&[0_u64; 32])),
    a_use!(SYS_memfd_create "closed on exec", c"name".as_ptr() as u64, libc::MFD_CLOEXEC.into()),
    a_use!(SYS_memfd_create "with seals" => sealable),
    #[cfg(target_arch = "x86_64")]
    a_use!(SYS_poll),
    a_use!(SYS_ppoll, 0, 0, address(&ZEROES)),
    a_use!(SYS_read, NONE),
    a_use!(SYS_recvfrom "without an address", NONE),
    a_use!(SYS_recvmsg, NONE),
    a_use!(SYS_sendmsg, NONE),
    a_use!(SYS_sendto "without an address", NONE),
    a_use!(SYS_socketpair "of packets" => || Ok(pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?[0])),
    a_use!(SYS_write, NONE),
    a_use!(SYS_writev, NONE),
    // Files.
    a_use!(SYS_fstat, NONE),
    a_use!(SYS_getcwd),
    a_use!(SYS_lseek, NONE),
    a_use!(SYS_newfstatat, HERE),
    a_use!(SYS_openat "to read" => || {
        let opened = File::open("/proc/self/maps").map_err(|error| error.raw_os_error().unwrap_or_default());
        opened.map(|_| 0)
    }),
    a_use!(SYS_pread64, NONE),
    a_use!(SYS_statx, HERE),
];

/// Calls that the C library can do without, and is told so by `ENOSYS`.
pub const NOT_IMPLEMENTED: &[Use] = &[
    a_use!(SYS_clone3),
    a_use!(SYS_epoll_pwait2, NONE),
    a_use!(SYS_faccessat2, HERE),
];

/// Files that are read, one in each place. `data` is the folder of the user's data, below `folder`.
pub fn files(folder: &Path, data: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = [
        "/usr/share/fonts/below/a.ttf",
        "/usr/local/share/fonts/a.ttf",
        "/usr/share/zoneinfo/Europe/Zurich",
        "/etc/localtime",
        "/proc/self/maps",
        "/proc/self/smaps",
        "/proc/self/smaps_rollup",
        "/proc/self/statm",
        "/proc/self/cgroup",
        "/proc/self/mountinfo",
        "/proc/sys/vm/overcommit_memory",
        "/sys/devices/system/cpu/online",
        "/sys/fs/cgroup/below/cpu.max",
    ]
    .map(PathBuf::from)
    .into();
    files.push(folder.join("home/.fonts/a.ttf"));
    files.push(folder.join(data).join("fonts/a.ttf"));
    files.push(env::current_exe().expect("this program"));
    files
}

/// Makes the files in a view of the file system that is this process's own. A machine may not have them.
pub fn make_files(files: &[PathBuf]) -> io::Result<()> {
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: both take no address.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if user == 0 {
        // SAFETY: it takes no address.
        done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    } else {
        // SAFETY: it takes no address.
        done(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUSER) })?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    let none = ptr::null::<libc::c_void>();
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the string ends with a zero, and the other addresses are none.
    done(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, none) })?;
    for place in [
        c"/usr/share",
        c"/usr/local/share",
        c"/etc",
        c"/sys/fs/cgroup",
    ] {
        let kind = c"tmpfs".as_ptr();
        // SAFETY: the strings end with a zero, and the other address is none.
        done(unsafe { libc::mount(kind, place.as_ptr(), kind, 0, none) })?;
    }
    for file in files {
        if !file.exists() {
            fs::create_dir_all(file.parent().expect("a folder"))?;
            fs::write(file, "text")?;
        }
    }
    Ok(())
}
