/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a content process keeps.
//!
//! Arguments that the kernel takes as `int` are compared as 32 bits, because the upper half of the register may hold
//! anything.
//!
//! Names and reasons are for people.

#![cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "a test makes the documentation from names and reasons"
    )
)]

/// What an argument of a system call may be. Arguments count from 0.
pub(crate) enum Argument {
    /// This number, as 32 bits.
    Is(u8, u32),
    /// No other bits than these, of 32.
    Only(u8, u32),
    /// No address.
    IsNull(u8),
    /// The id of the process itself, as 32 bits.
    IsOwnProcess(u8),
}

/// A system call.
pub(crate) struct Call {
    /// Its number on this architecture.
    pub(crate) number: libc::c_long,
    pub(crate) name: &'static str,
    /// What it is allowed for, if not for everything.
    pub(crate) only: &'static str,
    /// It is allowed if one of these lists holds whole; with none, it is always allowed.
    pub(crate) with: &'static [&'static [Argument]],
}

/// System calls that serve one purpose.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
    pub(crate) calls: &'static [Call],
}

/// Files that serve one purpose.
pub(crate) struct Files {
    pub(crate) why: &'static str,
    pub(crate) places: &'static [Place],
}

/// A file, or a folder with everything below it.
pub(crate) enum Place {
    Path(&'static str),
    /// Below the user's home folder.
    InHome(&'static str),
    /// Below `$XDG_DATA_HOME`.
    InUserData(&'static str),
    /// The program that runs.
    Program,
}

/// `call!(NUMBER)`, or `call!(NUMBER, ONLY, [ARGUMENT, ...], ...)` with the arguments that it may have.
macro_rules! call {
    ($number:ident) => {
        call!($number, "",)
    };
    ($number:ident, $only:literal, $([$($argument:expr),+]),*) => {
        Call {
            number: libc::$number,
            name: stringify!($number),
            only: $only,
            with: &[$(&[$($argument),+]),*],
        }
    };
}

use Argument::{Is, IsNull, IsOwnProcess, Only};
use Place::{InHome, InUserData, Path, Program};

/// Files that can be read. No file can be written, made or executed, and no folder be listed.
pub(crate) const READ: &[Files] = &[
    Files {
        why: "Fonts. The main process asks fontconfig which there are; the content process opens the files. The folders \
              are those of fontconfig's own configuration; fonts that other folders or links have are not used, and \
              another takes their place.",
        places: &[
            Path("/usr/share/fonts"),
            Path("/usr/local/share/fonts"),
            InHome(".fonts"),
            InUserData("fonts"),
        ],
    },
    Files {
        why: "Dates.",
        places: &[Path("/usr/share/zoneinfo"), Path("/etc/localtime")],
    },
    Files {
        why: "Its own memory: the bounds of the stack, the memory profiler.",
        places: &[
            Path("/proc/self/maps"),
            Path("/proc/self/smaps"),
            Path("/proc/self/smaps_rollup"),
            Path("/proc/self/statm"),
        ],
    },
    Files {
        why: "The allocator.",
        places: &[Path("/proc/sys/vm/overcommit_memory")],
    },
    Files {
        why: "The number of processors.",
        places: &[
            Path("/proc/self/cgroup"),
            Path("/proc/self/mountinfo"),
            Path("/sys/devices/system/cpu"),
            Path("/sys/fs/cgroup"),
        ],
    },
    Files {
        why: "The names of functions, when a panic is reported.",
        places: &[Program],
    },
];

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

/// Starting threads, with the flags of the C library, and waiting for each other.
const THREADS: Group = Group {
    name: "threads",
    why: "Workers, the threads of style and of the garbage collector. With the flags of the C library, so no \
          process and no namespace.",
    calls: &[
        call!(
            SYS_clone,
            "a thread",
            [Is(0, THREAD)],
            [Is(0, THREAD | libc::CLONE_DETACHED as u32)]
        ),
        call!(SYS_futex),
        call!(SYS_gettid),
        call!(SYS_membarrier),
        // A thread's name, and that of a piece of memory.
        call!(
            SYS_prctl,
            "a thread's name, a name of memory",
            [Is(0, libc::PR_SET_NAME as u32)],
            [Is(0, libc::PR_SET_VMA as u32)]
        ),
        call!(SYS_rseq),
        call!(SYS_sched_getaffinity),
        call!(SYS_sched_yield),
        call!(SYS_set_robust_list),
    ],
};

/// The allocators, the garbage collector, and the compilers of scripts and wasm, which make memory executable.
const MEMORY: Group = Group {
    name: "memory",
    why: "Allocators, and the compilers of scripts and wasm: memory may become executable.",
    calls: &[
        call!(SYS_brk),
        call!(
            SYS_madvise,
            "five kinds of advice",
            [Is(2, libc::MADV_DONTNEED as u32)],
            [Is(2, libc::MADV_FREE as u32)],
            [Is(2, libc::MADV_WILLNEED as u32)],
            [Is(2, libc::MADV_HUGEPAGE as u32)],
            [Is(2, libc::MADV_NOHUGEPAGE as u32)]
        ),
        call!(SYS_mmap),
        call!(SYS_mprotect),
        call!(SYS_mremap),
        call!(SYS_munmap),
    ],
};

/// How signals are handled. The background hang monitor, and faults in wasm, use them.
const SIGNALS: Group = Group {
    name: "signals",
    why: "Faults in wasm, the background hang monitor.",
    calls: &[
        call!(SYS_restart_syscall),
        call!(SYS_rt_sigaction),
        call!(SYS_rt_sigprocmask),
        call!(SYS_rt_sigreturn),
        call!(SYS_sigaltstack),
        call!(SYS_tgkill, "itself", [IsOwnProcess(0)]),
    ],
};

/// Clocks, waits, random numbers, and what the process has used so far.
const TIME_AND_CHANCE: Group = Group {
    name: "time and chance",
    why: "Clocks, waits, random numbers, how much memory there is.",
    calls: &[
        call!(SYS_clock_getres),
        call!(SYS_clock_gettime),
        call!(SYS_clock_nanosleep),
        call!(SYS_getrandom),
        call!(SYS_getrusage),
        call!(SYS_gettimeofday),
        call!(SYS_nanosleep),
        // Its own limits, to read.
        call!(
            SYS_prlimit64,
            "to read its own",
            [Is(0, 0), IsNull(2)],
            [IsOwnProcess(0), IsNull(2)]
        ),
        call!(SYS_sysinfo),
    ],
};

/// The end of a thread or of the process.
const END: Group = Group {
    name: "end",
    why: "By its own hand.",
    calls: &[
        call!(SYS_exit),
        call!(SYS_exit_group),
        call!(SYS_getpid),
        // Where two threads end the process at once, one of them waits here.
        #[cfg(target_arch = "x86_64")]
        call!(SYS_pause),
    ],
};

/// Channels, shared memory, and standard error for the log. `ipc-channel` makes pairs of sockets, of a type that cannot
/// send to an address.
const MESSAGES: Group = Group {
    name: "messages",
    why: "ipc-channel, shared memory, standard error for the log. Pairs of this type cannot be made to send \
          to an address.",
    calls: &[
        call!(SYS_close),
        call!(SYS_dup),
        call!(SYS_epoll_create1),
        call!(SYS_epoll_ctl),
        call!(SYS_epoll_pwait),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_epoll_wait),
        call!(
            SYS_fcntl,
            "flags, a copy, seals",
            [Is(1, libc::F_GETFD as u32)],
            [Is(1, libc::F_GETFL as u32)],
            [Is(1, libc::F_SETFD as u32)],
            [
                Is(1, libc::F_SETFL as u32),
                Only(2, (libc::O_NONBLOCK | libc::O_RDWR) as u32)
            ],
            [Is(1, libc::F_DUPFD_CLOEXEC as u32)],
            // Shared memory of a length that receivers can rely on.
            [Is(1, libc::F_ADD_SEALS as u32)],
            [Is(1, libc::F_GET_SEALS as u32)]
        ),
        call!(SYS_ftruncate),
        call!(
            SYS_getsockopt,
            "the size of its buffer, its kind",
            [
                Is(1, libc::SOL_SOCKET as u32),
                Is(2, libc::SO_SNDBUF as u32)
            ],
            [Is(1, libc::SOL_SOCKET as u32), Is(2, libc::SO_TYPE as u32)],
            [
                Is(1, libc::SOL_SOCKET as u32),
                Is(2, libc::SO_DOMAIN as u32)
            ]
        ),
        // Whether standard error is a terminal.
        call!(SYS_ioctl, "`TCGETS`", [Is(1, libc::TCGETS as u32)]),
        call!(
            SYS_memfd_create,
            "closed on exec",
            [Is(1, libc::MFD_CLOEXEC)],
            [Is(1, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)]
        ),
        #[cfg(target_arch = "x86_64")]
        call!(SYS_poll),
        call!(SYS_ppoll),
        call!(SYS_read),
        call!(SYS_recvfrom, "without an address", [IsNull(4)]),
        call!(SYS_recvmsg),
        call!(SYS_sendmsg),
        call!(SYS_sendto, "without an address", [IsNull(4)]),
        call!(
            SYS_socketpair,
            "local, of packets",
            [
                Is(0, libc::AF_UNIX as u32),
                Is(1, (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u32)
            ]
        ),
        call!(SYS_write),
        call!(SYS_writev),
    ],
};

/// Files. Landlock says which can be read. Tells of any path whether there is a file, its size and its times.
const FILES: Group = Group {
    name: "files",
    why: "Landlock says which can be opened. Tells of any path whether there is a file, its size and its times.",
    calls: &[
        call!(SYS_fstat),
        // For the report of a panic.
        call!(SYS_getcwd),
        call!(SYS_lseek),
        call!(SYS_newfstatat),
        // With an older Landlock, opening to read could still empty a file.
        call!(
            SYS_openat,
            "to read",
            [Only(2, (libc::O_CLOEXEC | libc::O_LARGEFILE) as u32)]
        ),
        call!(SYS_pread64),
        call!(SYS_statx),
    ],
};

/// What is allowed. All else fails with `EPERM` and does not end the process: libraries try what they can do without, and
/// no page should end for it; nor does an attacker gain anything by trying.
pub(crate) const GROUPS: &[Group] = &[
    THREADS,
    MEMORY,
    SIGNALS,
    TIME_AND_CHANCE,
    END,
    MESSAGES,
    FILES,
];

/// Fail with `ENOSYS`, which makes the C library turn to an older call, whose arguments can be checked.
pub(crate) const NOT_IMPLEMENTED: &[Call] = &[
    call!(SYS_clone3),
    call!(SYS_epoll_pwait2),
    call!(SYS_faccessat2),
];
