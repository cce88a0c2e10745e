/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a content process that was taken over could try, and which of the rules stand in its way.

use std::path::{Path, PathBuf};

use crate::calls::{
    ERRORS, HERE, NONE, Result, address, c_path, call, local, loopback, open, page, pair, socket,
};

/// What comes of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The kernel refuses it with this error number.
    Error(i32),
    /// It succeeds.
    Done,
    /// The process has ended by its own hand.
    Ended,
    /// The process was ended.
    Killed,
    /// The kernel does it, or has something else against it than the sandbox.
    Reached,
}

impl Outcome {
    pub fn matches(self, seen: Self) -> bool {
        self == seen || (self == Self::Reached && matches!(seen, Self::Error(_) | Self::Done))
    }
}

use Outcome::{Done, Error, Killed, Reached};

/// Landlock's answer, as to files.
const REFUSED: Outcome = Error(libc::EACCES);
/// The filter's answer, and Landlock's as to other processes.
const FORBIDDEN: Outcome = Error(libc::EPERM);

/// What an attempt may use.
pub struct Place {
    /// Is there before the attempt, and belongs to it alone.
    pub folder: PathBuf,
    /// The port of a server on the loopback interface.
    pub tcp_port: u16,
    /// Another process of the same user, which this one may trace as far as the system is concerned.
    pub victim: i32,
}

impl Place {
    pub fn key(&self) -> PathBuf {
        self.folder.join("home/.ssh/id_ed25519")
    }

    /// Below a folder that may be read.
    pub fn font(&self) -> PathBuf {
        self.folder.join("home/.fonts/a.ttf")
    }

    pub fn program(&self) -> PathBuf {
        self.folder.join("program")
    }

    /// The socket of a service like pcscd.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("service")
    }

    /// The name of a server among the abstract sockets.
    pub fn abstract_name(&self) -> &[u8] {
        self.folder.as_os_str().as_encoded_bytes()
    }

    /// What is not there.
    pub fn nothing(&self) -> PathBuf {
        self.folder.join("new")
    }
}

/// Something that a process could try.
pub struct Attempt {
    pub name: &'static str,
    /// With all rules; with all but those of Landlock; with all but the filter of system calls; with neither.
    pub outcomes: [Outcome; 4],
    /// The first version of Landlock that has something against it.
    pub since: i32,
    pub run: fn(&Place) -> Result,
}

/// Landlock of that version stands in the way, the filter does not.
const fn landlocked(name: &'static str, since: i32, run: fn(&Place) -> Result) -> Attempt {
    Attempt {
        name,
        outcomes: [REFUSED, Done, REFUSED, Done],
        since,
        run,
    }
}

/// The filter stands in the way, Landlock does not. It would succeed.
const fn filtered(name: &'static str, run: fn(&Place) -> Result) -> Attempt {
    Attempt {
        name,
        outcomes: [FORBIDDEN, FORBIDDEN, Done, Done],
        since: 0,
        run,
    }
}

/// The same, and the system may have something else against it.
const fn unavailable(name: &'static str, run: fn(&Place) -> Result) -> Attempt {
    Attempt {
        outcomes: [FORBIDDEN, FORBIDDEN, Reached, Reached],
        ..filtered(name, run)
    }
}

/// Both stand in the way.
const fn both(
    name: &'static str,
    since: i32,
    refused: Outcome,
    run: fn(&Place) -> Result,
) -> Attempt {
    Attempt {
        outcomes: [FORBIDDEN, FORBIDDEN, refused, Done],
        since,
        ..filtered(name, run)
    }
}

pub const ATTEMPTS: &[Attempt] = &[
    // Files.
    landlocked("read `/etc/passwd`", 1, |_| read(Path::new("/etc/passwd"))),
    landlocked("read a key in `~/.ssh`", 1, |place| read(&place.key())),
    landlocked(
        "read another process's memory through `/proc`",
        1,
        |place| read(Path::new(&format!("/proc/{}/mem", place.victim))),
    ),
    landlocked("read `/etc/passwd` through `/proc/self`", 1, |_| {
        read(Path::new("/proc/self/root/etc/passwd"))
    }),
    landlocked("read the machine's connections through `/proc`", 1, |_| {
        read(Path::new("/proc/self/net/unix"))
    }),
    landlocked("read its own environment through `/proc`", 1, |_| {
        read(Path::new("/proc/self/environ"))
    }),
    landlocked("read a device", 1, |_| read(Path::new("/dev/null"))),
    landlocked("list a folder", 1, |place| read(&place.folder)),
    landlocked("list the fonts", 1, |place| {
        read(place.font().parent().unwrap_or(Path::new("/")))
    }),
    both("write to a file", 1, REFUSED, |place| {
        open(&place.key(), libc::O_WRONLY)
    }),
    both("write to a font", 1, REFUSED, |place| {
        open(&place.font(), libc::O_RDWR)
    }),
    both("empty a font by opening it", 3, REFUSED, |place| {
        open(&place.font(), libc::O_RDONLY | libc::O_TRUNC)
    }),
    both("make a file", 1, REFUSED, |place| {
        open(
            &place.nothing(),
            libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL,
        )
    }),
    both("make a file without a name", 1, REFUSED, |place| {
        open(&place.folder, libc::O_WRONLY | libc::O_TMPFILE)
    }),
    both("delete a file", 1, REFUSED, |place| {
        let path = c_path(&place.key());
        call(libc::SYS_unlinkat, &[HERE, path.as_ptr() as u64])
    }),
    both("rename a file", 1, REFUSED, |place| {
        let (from, to) = (c_path(&place.key()), c_path(&place.nothing()));
        let (from, to) = (from.as_ptr() as u64, to.as_ptr() as u64);
        call(libc::SYS_renameat2, &[HERE, from, HERE, to])
    }),
    both("give a file a second name", 1, REFUSED, |place| {
        let (from, to) = (c_path(&place.key()), c_path(&place.nothing()));
        let (from, to) = (from.as_ptr() as u64, to.as_ptr() as u64);
        call(libc::SYS_linkat, &[HERE, from, HERE, to])
    }),
    both("make a symbolic link", 1, REFUSED, |place| {
        let path = c_path(&place.nothing());
        call(
            libc::SYS_symlinkat,
            &[path.as_ptr() as u64, HERE, path.as_ptr() as u64],
        )
    }),
    both("make a folder", 1, REFUSED, |place| {
        let path = c_path(&place.nothing());
        call(libc::SYS_mkdirat, &[HERE, path.as_ptr() as u64, 0o700])
    }),
    both("make a named pipe", 1, REFUSED, |place| {
        let path = c_path(&place.nothing());
        call(
            libc::SYS_mknodat,
            &[HERE, path.as_ptr() as u64, (libc::S_IFIFO | 0o600).into()],
        )
    }),
    both("cut a file", 3, REFUSED, |place| {
        let path = c_path(&place.key());
        call(libc::SYS_truncate, &[path.as_ptr() as u64, 0])
    }),
    filtered("change the mode of a file", |place| {
        let path = c_path(&place.key());
        call(libc::SYS_fchmodat, &[HERE, path.as_ptr() as u64, 0o777])
    }),
    unavailable("give a file away", |place| {
        let path = c_path(&place.key());
        call(libc::SYS_fchownat, &[HERE, path.as_ptr() as u64, 1, 1])
    }),
    unavailable("open a file by its handle", |_| {
        call(libc::SYS_open_by_handle_at, &[HERE])
    }),
    unavailable("mount", |_| call(libc::SYS_mount, &[])),
    unavailable("change the root folder", |_| call(libc::SYS_chroot, &[])),
    filtered("watch a file", |_| call(libc::SYS_inotify_init1, &[])),
    // Programs and other processes.
    Attempt {
        outcomes: [FORBIDDEN, FORBIDDEN, REFUSED, Error(libc::ENOEXEC)],
        ..both("start a program", 1, REFUSED, |place| {
            let path = c_path(&place.program());
            call(libc::SYS_execve, &[path.as_ptr() as u64])
        })
    },
    Attempt {
        outcomes: [
            FORBIDDEN,
            FORBIDDEN,
            Error(libc::ENOEXEC),
            Error(libc::ENOEXEC),
        ],
        ..filtered("start a program from memory", |_| {
            let name = c"x".as_ptr() as u64;
            let file = call(libc::SYS_memfd_create, &[name, libc::MFD_CLOEXEC.into()])?;
            let text = b"no program";
            call(libc::SYS_write, &[file, address(text), text.len() as u64])?;
            let empty = c"".as_ptr() as u64;
            call(
                libc::SYS_execveat,
                &[file, empty, 0, 0, libc::AT_EMPTY_PATH as u64],
            )
        })
    },
    filtered("make a file in memory that a program inherits", |_| {
        call(libc::SYS_memfd_create, &[c"x".as_ptr() as u64, 0])
    }),
    filtered("start a process", |_| {
        let child = call(libc::SYS_clone, &[libc::SIGCHLD as u64])?;
        if child == 0 {
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(0) };
        }
        Ok(0)
    }),
    Attempt {
        outcomes: [
            Error(libc::ENOSYS),
            Error(libc::ENOSYS),
            Error(libc::EINVAL),
            Error(libc::EINVAL),
        ],
        ..filtered("start a process with `clone3`", |_| {
            call(libc::SYS_clone3, &[])
        })
    },
    unavailable("make a process in a user namespace", |_| {
        let flags = (libc::CLONE_NEWUSER | libc::SIGCHLD) as u64;
        if call(libc::SYS_clone, &[flags])? == 0 {
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(0) };
        }
        Ok(0)
    }),
    unavailable("make a user namespace", |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as u64])
    }),
    unavailable("enter a namespace", |_| call(libc::SYS_setns, &[NONE])),
    both("trace another process", 1, FORBIDDEN, |place| {
        call(
            libc::SYS_ptrace,
            &[libc::PTRACE_SEIZE as u64, place.victim as u64],
        )
    }),
    both("read another process's memory", 1, FORBIDDEN, |place| {
        // The victim is a copy of this process, so there is something at the same address.
        let byte = [0_u64; 1];
        let part = [address(&byte), 1];
        let victim = place.victim as u64;
        call(
            libc::SYS_process_vm_readv,
            &[victim, address(&part), 1, address(&part), 1],
        )
    }),
    both("write to another process's memory", 1, FORBIDDEN, |place| {
        let byte = [0_u64; 1];
        let part = [address(&byte), 1];
        let victim = place.victim as u64;
        call(
            libc::SYS_process_vm_writev,
            &[victim, address(&part), 1, address(&part), 1],
        )
    }),
    filtered("get hold of another process", |place| {
        call(libc::SYS_pidfd_open, &[place.victim as u64])
    }),
    both("signal another process", 6, FORBIDDEN, |place| {
        call(libc::SYS_kill, &[place.victim as u64])
    }),
    both(
        "signal a thread of another process",
        6,
        FORBIDDEN,
        |place| {
            call(
                libc::SYS_tgkill,
                &[place.victim as u64, place.victim as u64],
            )
        },
    ),
    filtered("read another process's limits", |place| {
        let limit = [0_u64; 2];
        let core = libc::RLIMIT_CORE.into();
        call(
            libc::SYS_prlimit64,
            &[place.victim as u64, core, 0, address(&limit)],
        )
    }),
    unavailable("change its own limits", |_| {
        let limit = [0_u64; 2];
        call(
            libc::SYS_prlimit64,
            &[0, libc::RLIMIT_CORE.into(), address(&limit)],
        )
    }),
    unavailable("change its own limits by its id", |_| {
        let limit = [0_u64; 2];
        let own = std::process::id().into();
        call(
            libc::SYS_prlimit64,
            &[own, libc::RLIMIT_CORE.into(), address(&limit)],
        )
    }),
    // Sockets.
    filtered("make a socket of the internet", |_| {
        socket(libc::AF_INET, libc::SOCK_DGRAM)
    }),
    filtered("make a local socket", |_| {
        socket(libc::AF_UNIX, libc::SOCK_STREAM)
    }),
    filtered("make a socket to the kernel (netlink)", |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW)
    }),
    both("connect to a server over TCP", 4, REFUSED, |place| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
        let name = loopback(place.tcp_port);
        call(
            libc::SYS_connect,
            &[socket, address(&name[..]), name.len() as u64],
        )
    }),
    both("listen for connections over TCP", 4, REFUSED, |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
        let name = loopback(0);
        call(
            libc::SYS_bind,
            &[socket, address(&name[..]), name.len() as u64],
        )
    }),
    // Landlock has nothing against it before Linux 7.1.
    filtered("connect to pcscd's socket, or D-Bus", |place| {
        let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
        let name = local(place.socket().as_os_str().as_encoded_bytes());
        call(
            libc::SYS_connect,
            &[socket, address(&name[..]), name.len() as u64],
        )
    }),
    both("connect to an abstract socket", 6, FORBIDDEN, |place| {
        let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
        let name = local(&[b"\0", place.abstract_name()].concat());
        call(
            libc::SYS_connect,
            &[socket, address(&name[..]), name.len() as u64],
        )
    }),
    both("make a socket with a name", 1, REFUSED, |place| {
        let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
        let name = local(place.nothing().as_os_str().as_encoded_bytes());
        call(
            libc::SYS_bind,
            &[socket, address(&name[..]), name.len() as u64],
        )
    }),
    filtered(
        "make a pair of datagram sockets, which send to any address",
        |_| Ok(pair(libc::AF_UNIX, libc::SOCK_DGRAM)?[0]),
    ),
    unavailable("make a pair of sockets of another family", |_| {
        Ok(pair(libc::AF_TIPC, libc::SOCK_SEQPACKET)?[0])
    }),
    unavailable("send to an address", |place| {
        let [_, end] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        let name = local(place.socket().as_os_str().as_encoded_bytes());
        let name = &name[..];
        call(
            libc::SYS_sendto,
            &[end, address(name), 1, 0, address(name), name.len() as u64],
        )
    }),
    filtered("ask for a sender's address", |_| {
        let [one, other] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        let buffer = [0_u8; 128];
        let length = [64_u32];
        let here = address(&buffer);
        call(libc::SYS_write, &[one, here, 1])?;
        call(
            libc::SYS_recvfrom,
            &[other, here, 1, 0, here + 64, address(&length)],
        )
    }),
    filtered("ask who is at the other end of a socket", |_| {
        get_option(libc::SOL_SOCKET, libc::SO_PEERCRED)
    }),
    unavailable("ask for an option of another level", |_| {
        // Each of the options has a number that means something else there.
        for option in [libc::SO_SNDBUF, libc::SO_TYPE, libc::SO_DOMAIN] {
            let result = get_option(libc::SOL_TCP, option);
            if result != Err(libc::EPERM) {
                return result;
            }
        }
        Err(libc::EPERM)
    }),
    // The process itself.
    filtered("become dumpable again", |_| {
        call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1])
    }),
    filtered("outlive the main process", |_| {
        call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64])
    }),
    filtered("give other advice about memory", |_| {
        call(
            libc::SYS_madvise,
            &[page()?, 4096, libc::MADV_DONTFORK as u64],
        )
    }),
    unavailable("set filters of its own", |_| call(libc::SYS_seccomp, &[1])),
    unavailable("type on the user's terminal (`TIOCSTI`)", |_| {
        call(libc::SYS_ioctl, &[ERRORS, libc::TIOCSTI])
    }),
    filtered("have signals sent by what is open", |_| {
        call(libc::SYS_fcntl, &[ERRORS, libc::F_SETOWN as u64])
    }),
    unavailable("have what is open send signals", |_| {
        let [end, _] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        call(
            libc::SYS_fcntl,
            &[end, libc::F_SETFL as u64, libc::O_ASYNC as u64],
        )
    }),
    filtered("become another user", |_| {
        call(libc::SYS_setresuid, &[NONE, NONE, NONE])
    }),
    filtered("choose its processors", |_| {
        let all = [u64::MAX; 16];
        call(libc::SYS_sched_setaffinity, &[0, 128, address(&all)])
    }),
    // The kernel.
    unavailable("load a BPF program", |_| call(libc::SYS_bpf, &[NONE])),
    unavailable("set up `io_uring`", |_| {
        call(libc::SYS_io_uring_setup, &[1])
    }),
    unavailable("handle page faults", |_| {
        call(libc::SYS_userfaultfd, &[NONE])
    }),
    unavailable("count what the processor does", |_| {
        call(libc::SYS_perf_event_open, &[])
    }),
    unavailable("use the kernel's keys", |_| call(libc::SYS_keyctl, &[NONE])),
    unavailable("load a module", |_| call(libc::SYS_finit_module, &[NONE])),
    unavailable("restart the machine", |_| call(libc::SYS_reboot, &[])),
    #[cfg(target_arch = "x86_64")]
    Attempt {
        outcomes: [Killed, Killed, Reached, Reached],
        ..filtered("make a system call as a 32-bit program does", |_| {
            // There, 20 is `getpid`.
            // SAFETY: it takes no address, and the kernel changes no register but that of the result.
            unsafe { std::arch::asm!("int 0x80", inlateout("eax") 20 => _) };
            Ok(0)
        })
    },
];

fn read(path: &Path) -> Result {
    open(path, libc::O_RDONLY)
}

fn get_option(level: i32, option: i32) -> Result {
    let [end, _] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
    let (buffer, length) = ([0_u8; 64], [64_u32]);
    let (level, option) = (level as u64, option as u64);
    call(
        libc::SYS_getsockopt,
        &[end, level, option, address(&buffer), address(&length)],
    )
}
