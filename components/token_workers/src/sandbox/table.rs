/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The table of what each kind of token process keeps.
//!
//! A row is a system call, with the arguments that it may have where it is not harmless with all of them. Rows come in
//! groups, which say what they are for.
//!
//! Arguments that the kernel takes as `int` are compared as 32 bits, because the upper half of the register may hold
//! anything.

use std::path::PathBuf;

use landlock::{AccessFs, BitFlags};
use rustix::process::Resource;
use token_traits::control::ModuleConfig;

use super::Kind;

/// What an argument of a system call may be. Arguments count from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Argument {
    /// This number, as 32 bits.
    Is(u8, u32),
    /// No other bits than these, of 32.
    Only(u8, u32),
    /// Without any of these bits, of 32.
    Without(u8, u32),
    /// With this bit, of 32.
    Has(u8, u32),
    /// No address.
    IsNull(u8),
    /// The id of the process itself, as 32 bits.
    IsOwnProcess(u8),
}

/// A system call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Call {
    /// Its number on this architecture.
    pub number: libc::c_long,
    /// The name of the constant for the number.
    pub name: &'static str,
    /// It is allowed if one of these lists holds whole; with none, it is always allowed.
    pub with: &'static [&'static [Argument]],
    /// The same in words.
    pub only: &'static str,
}

/// System calls that serve one purpose.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What the documentation calls them.
    pub name: &'static str,
    /// What they are for, and what more they can do.
    pub why: &'static str,
    /// The calls.
    pub calls: &'static [Call],
}

/// What a process may do with the files in a place.
#[derive(Clone, Debug)]
pub struct Files {
    /// A file or a folder with everything in it.
    pub place: PathBuf,
    /// What it may do there.
    pub rights: BitFlags<AccessFs>,
}

/// `call!(NUMBER)`, or `call!(NUMBER, "only so": [ARGUMENT, ...], ...)` with the arguments that it may have.
macro_rules! call {
    ($number:ident) => {
        call!($number, "":)
    };
    ($number:ident, $only:literal: $([$($argument:expr),+]),*) => {
        Call {
            number: libc::$number,
            name: stringify!($number),
            with: &[$(&[$($argument),+]),*],
            only: $only,
        }
    };
}

use Argument::{Has, Is, IsNull, IsOwnProcess, Only, Without};

const MEMORY: Group = Group {
    name: "memory",
    why: "The allocator, stacks of threads. Nothing becomes executable that was not when the \
          process was locked down.",
    calls: &[
        call!(SYS_brk),
        call!(SYS_mmap, "not executable": [Without(2, libc::PROT_EXEC as u32)]),
        call!(SYS_mprotect, "not executable": [Without(2, libc::PROT_EXEC as u32)]),
        call!(SYS_mremap),
        call!(SYS_munmap),
        call!(SYS_madvise, "that memory is free": [Is(2, libc::MADV_DONTNEED as u32)], [Is(2, libc::MADV_FREE as u32)]),
    ],
};

/// The flags with which the C libraries start a thread: GNU's, and musl's, which has one more that means nothing any more.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u32;

/// Until the last thread of the process has been started. [`super::no_more_threads`] takes them away.
pub const START: Group = Group {
    name: "start",
    why: "Starting the threads that the process has, with the flags of the C library, and the filter that forbids both \
          as soon as they run, before anything is read from a page, a card or another token process.",
    calls: &[
        call!(SYS_clone, "a thread": [Is(0, THREAD)], [Is(0, THREAD | libc::CLONE_DETACHED as u32)]),
        call!(SYS_seccomp, "a further filter": [
            Is(0, libc::SECCOMP_SET_MODE_FILTER),
            Is(1, libc::SECCOMP_FILTER_FLAG_TSYNC as u32)
        ]),
    ],
};

/// The first steps of a thread may come after the filter that forbids to start any more.
const THREADS: Group = Group {
    name: "threads",
    why: "The first steps of a thread, and locks between threads.",
    calls: &[
        call!(SYS_futex),
        call!(SYS_gettid),
        call!(SYS_prctl, "a thread's name; no new privileges":
            [Is(0, libc::PR_SET_NAME as u32)],
            [Is(0, libc::PR_SET_NO_NEW_PRIVS as u32)]),
        call!(SYS_rseq),
        call!(SYS_sched_getaffinity),
        call!(SYS_sched_yield),
        call!(SYS_set_robust_list),
    ],
};

const SIGNALS: Group = Group {
    name: "signals",
    why: "How signals are handled, and the ends of system calls that a signal has interrupted.",
    calls: &[
        call!(SYS_restart_syscall),
        call!(SYS_rt_sigaction),
        call!(SYS_rt_sigprocmask),
        call!(SYS_rt_sigreturn),
        call!(SYS_sigaltstack),
    ],
};

const TIME_AND_CHANCE: Group = Group {
    name: "time and chance",
    why: "Clocks, waits, random numbers.",
    calls: &[
        call!(SYS_clock_gettime),
        call!(SYS_clock_nanosleep),
        call!(SYS_getrandom),
        call!(SYS_gettimeofday),
    ],
};

const END: Group = Group {
    name: "end",
    why: "The end of a thread or of the process, by its own hand, as with `abort()`.",
    calls: &[
        call!(SYS_exit),
        call!(SYS_exit_group),
        call!(SYS_getpid),
        // Where two threads end the process at once, one of them waits here.
        #[cfg(target_arch = "x86_64")]
        call!(SYS_pause),
        call!(SYS_tgkill, "itself": [IsOwnProcess(0)]),
    ],
};

const MESSAGES: Group = Group {
    name: "messages",
    why: "Channels that are open, standard error for the log. ipc-channel sends a long message \
          through a socket pair of its own; pairs of this type cannot be made to send to an \
          address.",
    calls: &[
        call!(SYS_close),
        call!(SYS_fcntl, "its flags":
            [Is(1, libc::F_GETFD as u32)],
            [Is(1, libc::F_GETFL as u32)],
            [Is(1, libc::F_SETFD as u32)],
            [Is(1, libc::F_SETFL as u32), Only(2, (libc::O_NONBLOCK | libc::O_RDWR) as u32)]),
        call!(SYS_getsockopt, "the size of its buffer": [Is(1, libc::SOL_SOCKET as u32), Is(2, libc::SO_SNDBUF as u32)]),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_poll),
        #[cfg(not(target_arch = "x86_64"))]
        call!(SYS_ppoll),
        call!(SYS_read),
        call!(SYS_recvfrom, "without an address": [IsNull(4)]),
        call!(SYS_recvmsg),
        call!(SYS_sendmsg),
        call!(SYS_sendto, "without an address": [IsNull(4)]),
        call!(SYS_socketpair, "local, of packets": [
            Is(0, libc::AF_UNIX as u32),
            Is(1, (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u32)
        ]),
        call!(SYS_write),
    ],
};

const PEERS: Group = Group {
    name: "peers",
    why: "Waiting for all channels at once, and the check that what the main process sends along \
          is a socket. Tells whether a file exists, and its size and times, for any path.",
    calls: &[
        call!(SYS_epoll_ctl),
        call!(SYS_epoll_pwait),
        call!(SYS_fstat),
        call!(SYS_newfstatat),
    ],
};

const STORE: Group = Group {
    name: "store",
    why: "SQLite. Landlock says with which files. Tells whether a file exists, and its size and \
          times, for any path.",
    calls: &[
        #[cfg(target_arch = "x86_64")]
        call!(SYS_access),
        #[cfg(not(target_arch = "x86_64"))]
        call!(SYS_faccessat),
        call!(SYS_fcntl, "locks of a file": [Is(1, libc::F_GETLK as u32)], [Is(1, libc::F_SETLK as u32)]),
        call!(SYS_fchmod, "to 0600": [Is(1, 0o600)]),
        call!(SYS_fsync),
        call!(SYS_ftruncate),
        call!(SYS_geteuid),
        call!(SYS_lseek),
        call!(SYS_openat),
        call!(SYS_pread64),
        call!(SYS_pwrite64),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_readlink),
        #[cfg(not(target_arch = "x86_64"))]
        call!(SYS_readlinkat),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_unlink),
        #[cfg(not(target_arch = "x86_64"))]
        call!(SYS_unlinkat),
    ],
};

const SERVICE: Group = Group {
    name: "service",
    why: "libpcsclite looks whether the service's socket is there before it lists the readers. \
          Tells the same of any path.",
    calls: &[call!(SYS_newfstatat)],
};

/// Only the worker of a PKCS#11 module has these.
const MODULE: Group = Group {
    name: "module",
    why: "The module's own files, and what libraries ask about the process and the machine. Landlock says which files. \
          Tells whether a file exists, and its size and times, for any path. Modules start threads at any time.",
    calls: &[
        call!(SYS_clock_getres),
        call!(SYS_dup),
        call!(SYS_eventfd2),
        call!(SYS_faccessat),
        call!(SYS_fdatasync),
        call!(SYS_fcntl, "locks of a file": [Is(1, libc::F_SETLKW as u32)]),
        call!(SYS_fstat),
        call!(SYS_fstatfs),
        call!(SYS_getcwd),
        call!(SYS_getdents64),
        call!(SYS_getegid),
        call!(SYS_getgid),
        call!(SYS_getppid),
        call!(SYS_getuid),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_lstat),
        call!(SYS_newfstatat),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_mkdir),
        call!(SYS_mkdirat),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_open),
        call!(SYS_readlinkat),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_rename),
        call!(SYS_renameat),
        call!(SYS_renameat2),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_rmdir),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_stat),
        call!(SYS_statfs),
        call!(SYS_statx),
        call!(SYS_sysinfo),
        call!(SYS_umask),
        call!(SYS_uname),
        call!(SYS_unlinkat),
        call!(SYS_writev),
    ],
};

/// For a TPM in software only, which is for tests and virtual machines.
const SOFTWARE_TPM: Group = Group {
    name: "swtpm",
    why: "The TPM's library connects to swtpm anew for each command. Landlock says to which port, since its version 4.",
    calls: &[
        call!(SYS_socket, "for TCP": [
            Is(0, libc::AF_INET as u32),
            Only(1, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u32)
        ]),
        call!(SYS_connect),
    ],
};

/// Until the module is loaded and initialized. [`super::no_more_code`] takes them away, and `seccomp`.
const LOADING: Group = Group {
    name: "loading",
    why: "Loading the module and the libraries that it needs, until it is initialized.",
    calls: &[call!(SYS_mmap), call!(SYS_mprotect)],
};

/// What the worker of a module gives up when that is loaded and initialized.
pub const LOADED: &[Call] = &[
    call!(SYS_mmap, "executable": [Has(2, libc::PROT_EXEC as u32)]),
    call!(SYS_mprotect, "executable": [Has(2, libc::PROT_EXEC as u32)]),
    call!(SYS_seccomp),
];

/// The same calls, whatever their arguments.
pub fn all_of(calls: &[Call]) -> Vec<Call> {
    let all = |call: &Call| Call { with: &[], ..*call };
    calls.iter().map(all).collect()
}

/// What a kind of process gives up when its last thread runs, or its module is loaded.
pub fn given_up(kind: Kind<'_>) -> Vec<Call> {
    match kind {
        Kind::Module(_) => LOADED.to_vec(),
        _ => all_of(START.calls),
    }
}

/// System calls that fail with an error in a kind of process.
pub fn failing(kind: Kind<'_>) -> Vec<(Call, i32)> {
    match kind {
        Kind::Module(ModuleConfig { pcsc: true, .. }) => {
            [FAILING, FAILING_OF_MODULES, PRETENDED].concat()
        }
        Kind::Module(_) => [FAILING, FAILING_OF_MODULES].concat(),
        _ => FAILING.to_vec(),
    }
}

/// The same in the worker of a module: what libraries try, for the system's log and for terminals, and can do without.
pub const FAILING_OF_MODULES: &[(Call, i32)] = &[
    (call!(SYS_ioctl), libc::EPERM),
    (call!(SYS_getpeername), libc::ENOTSOCK),
    (call!(SYS_sched_getattr), libc::ENOSYS),
    (call!(SYS_sched_setattr), libc::ENOSYS),
    (call!(SYS_socket), libc::EACCES),
];

/// System calls that do nothing and return 0 in the worker of a module that may talk to PC/SC. 0 is the descriptor of its one
/// connection to pcscd, which was made before: libpcsclite takes it for a new one. No module connects to anything.
pub const PRETENDED: &[(Call, i32)] = &[
    (
        call!(SYS_socket, "as libpcsclite makes it": [
            Is(0, libc::AF_UNIX as u32),
            Is(1, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u32)
        ]),
        0,
    ),
    (call!(SYS_connect), 0),
];

/// System calls that fail with an error, because whoever makes them goes on without.
pub const FAILING: &[(Call, i32)] = &[
    // Its flags are in memory, where no filter can look at them. The C library turns to `clone`.
    (call!(SYS_clone3), libc::ENOSYS),
    (call!(SYS_epoll_pwait2), libc::ENOSYS),
    (call!(SYS_faccessat2), libc::ENOSYS),
    // As root, SQLite gives its journal the owner of the database, which it has already.
    (call!(SYS_fchown), libc::EPERM),
];

/// What every process keeps.
const COMMON: [Group; 7] = [
    START,
    MEMORY,
    THREADS,
    SIGNALS,
    TIME_AND_CHANCE,
    END,
    MESSAGES,
];

/// The system calls that a kind of process keeps.
pub fn groups(kind: Kind<'_>) -> Vec<Group> {
    let own: &[Group] = match kind {
        Kind::Broker { store: Some(_) } => &[PEERS, STORE],
        Kind::Broker { store: None } => &[PEERS],
        Kind::PcscReader => &[],
        Kind::PcscMonitor => &[SERVICE],
        Kind::VirtualCard | Kind::Tpm { port: None } => &[],
        Kind::Tpm { port: Some(_) } => &[SOFTWARE_TPM],
        Kind::Module(_) => &[STORE, MODULE, LOADING],
    };
    [&COMMON, own].concat()
}

/// The files that a kind of process may open.
pub fn files(kind: Kind<'_>) -> Vec<Files> {
    match kind {
        Kind::Broker { store: Some(store) } => vec![
            Files {
                place: store.to_owned(),
                rights: AccessFs::ReadFile
                    | AccessFs::WriteFile
                    | AccessFs::ReadDir
                    | AccessFs::MakeReg
                    | AccessFs::RemoveFile
                    | AccessFs::Truncate,
            },
            // SQLite's source of random numbers.
            Files {
                place: "/dev/urandom".into(),
                rights: AccessFs::ReadFile.into(),
            },
        ],
        Kind::Module(module) => files_of_module(module),
        Kind::Broker { store: None }
        | Kind::PcscReader
        | Kind::PcscMonitor
        | Kind::VirtualCard
        | Kind::Tpm { .. } => Vec::new(),
    }
}

/// The TCP port to which a kind of process may connect, where Landlock governs that.
pub fn port(kind: Kind<'_>) -> Option<u16> {
    match kind {
        Kind::Tpm { port } => port,
        _ => None,
    }
}

/// Where programs and their libraries are. Nothing there is the user's.
pub const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
];

/// What libcrypto and others read by themselves.
const SETTINGS: [&str; 2] = ["/dev/urandom", "/etc/ssl/openssl.cnf"];

fn files_of_module(module: &ModuleConfig) -> Vec<Files> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::ReadDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Truncate;
    let to_read = LIBRARIES.iter().chain(&SETTINGS).copied();
    let to_read = to_read
        .chain([module.module.as_str()])
        .chain(module.read.iter().map(String::as_str));
    let to_write = module.write.iter().map(String::as_str);
    let files = |place: &str, rights: BitFlags<AccessFs>| {
        let place = PathBuf::from(place);
        // A file has no others, and Landlock takes no others.
        let is_file = place.exists() && !place.is_dir();
        let of_file = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
        let rights = if is_file { rights & of_file } else { rights };
        Files { place, rights }
    };
    to_read
        .map(|place| files(place, read))
        .chain(to_write.map(|place| files(place, write)))
        .collect()
}

const MIB: u64 = 1024 * 1024;

/// How much of the machine a kind of process may take, at most. Where less is allowed to it anyway, that stays.
pub fn limits(kind: Kind<'_>) -> Vec<(Resource, u64)> {
    let mut limits = vec![(Resource::Core, 0)];
    match kind {
        Kind::Broker { store } => {
            limits.extend([
                // Two for each of 512 ports and 32 workers, and room for those that are being replaced: ipc-channel ends
                // the thread that finds a message's descriptors missing.
                (Resource::Nofile, 2048),
                (Resource::As, 1024 * MIB),
            ]);
            if store.is_some() {
                // Several times what the grants and the audit log can come to.
                limits.push((Resource::Fsize, 64 * MIB));
            }
        }
        Kind::Module(_) => limits.extend([
            (Resource::Nofile, 256),
            (Resource::As, 2048 * MIB),
            (Resource::Fsize, 64 * MIB),
        ]),
        Kind::PcscReader | Kind::PcscMonitor | Kind::VirtualCard | Kind::Tpm { .. } => {
            limits.extend([(Resource::Nofile, 64), (Resource::As, 512 * MIB)]);
        }
    }
    limits
}
