/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The rows of the table of system calls, once more, and from both sides: what each process needs, and what is just beyond
//! an argument that is checked. Nothing here is taken from the table.
//!
//! Most of the calls are made so that the kernel has nothing to do. What counts is that it is asked: the sandbox ends the
//! process, or answers with an error that the call does not give otherwise.

use std::ffi::c_long;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::KINDS;
use crate::attempts::{
    AT_CWD, MODULE, Outcome, PCSC_MODULE, SOFTWARE_TPM, STDOUT, call, call_5, call_6, map, pair,
    result, socket,
};
use Outcome::{Done, Error, Killed, Reached};

/// A system call, made in some way.
pub struct Row {
    pub name: &'static str,
    pub number: c_long,
    /// The processes that make it. For the others, any way is one that is not in the table.
    pub kinds: &'static [&'static str],
    /// What comes of it before the last thread runs, or the module is loaded.
    pub before: Outcome,
    /// And after that.
    pub after: fn(&str) -> Outcome,
    pub run: fn() -> Result<(), i32>,
}

const BROKERS: &[&str] = &["broker", "broker without a store"];
const WITH_STORE: &[&str] = &["broker", MODULE, PCSC_MODULE];
const MONITOR: &[&str] = &["pcsc-monitor"];
const MODULES: &[&str] = &[MODULE, PCSC_MODULE];
const WITHOUT_PCSC: &[&str] = &[MODULE];
const WITH_PCSC: &[&str] = &[PCSC_MODULE];
const SWTPM: &[&str] = &[SOFTWARE_TPM];
/// All that are given no error in place of a socket.
const WITHOUT_MODULE: &[&str] = &[
    "broker",
    "broker without a store",
    "pcsc-reader",
    "pcsc-monitor",
    "virtual-card",
    "tpm-worker",
    SOFTWARE_TPM,
];

/// `row!(KINDS, before, after, NUMBER, ARGUMENT...)` is the call itself; with `=> RUN` at the end, it is part of that.
macro_rules! row {
    ($kinds:expr, $before:expr, $after:expr, $number:ident => $run:expr) => {
        Row {
            name: stringify!($number),
            number: libc::$number,
            kinds: $kinds,
            before: $before,
            after: $after,
            run: $run,
        }
    };
    ($kinds:expr, $before:expr, $after:expr, $number:ident $(, $argument:expr)*) => {
        row!($kinds, $before, $after, $number => || call_all(libc::$number, &[$($argument),*]))
    };
}

/// What a process may do at any time.
macro_rules! allowed {
    ($kinds:expr, $($rest:tt)*) => { row!($kinds, Reached, |_| Reached, $($rest)*) };
}

/// What fails with an error.
macro_rules! failing {
    ($kinds:expr, $error:ident, $($rest:tt)*) => {
        row!($kinds, Error(libc::$error), |_| Error(libc::$error), $($rest)*)
    };
}

/// What no process may do that has a row for the system call.
macro_rules! beyond {
    ($kinds:expr, $($rest:tt)*) => { row!($kinds, Killed, |_| Killed, $($rest)*) };
}

/// Only before the last thread runs, or the module is loaded.
macro_rules! at_the_start {
    ($kinds:expr, $($rest:tt)*) => { row!($kinds, Reached, |_| Killed, $($rest)*) };
}

const ALL: &[&str] = &KINDS;
const NONE: u64 = u64::MAX;
/// Bits that the kernel does not look at where it takes an `int`.
const UPPER: u64 = 0xab << 40;

static ZEROES: [u64; 16] = [0; 16];

fn call_all(number: c_long, arguments: &[u64]) -> Result<(), i32> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    call_6(number, all)
}

fn zeroes() -> u64 {
    ZEROES.as_ptr() as u64
}

/// A page of memory that can be read and written.
fn page() -> Result<u64, i32> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    map(rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 4096)
}

fn with_page(number: c_long, rest: [u64; 3]) -> Result<(), i32> {
    let [a, b, c] = rest;
    call(number, [page()?, a, b, c])
}

fn executable_page() -> Result<(), i32> {
    let rights = libc::PROT_READ | libc::PROT_EXEC;
    map(rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 4096).map(drop)
}

fn option_of_pair(level: i32, name: i32) -> Result<(), i32> {
    let [end, _] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
    let (mut value, mut length) = ([0_u32; 4], 16_u32);
    let value = value.as_mut_ptr() as u64;
    let length = ptr::from_mut(&mut length) as u64;
    let (level, name) = (level as u64 | UPPER, name as u64 | UPPER);
    call_5(libc::SYS_getsockopt, [end, level, name, value, length])
}

/// How many signals were handled.
static INTERRUPTED: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_signal: i32) {
    INTERRUPTED.fetch_add(1, Ordering::Relaxed);
}

/// Has signals come from time to time, so that a process that waits for one goes on. Before the lock-down.
pub fn prepare(number: c_long) {
    let often = libc::timeval {
        tv_sec: 0,
        tv_usec: 20_000,
    };
    let timer = libc::itimerval {
        it_interval: often,
        it_value: often,
    };
    // SAFETY: the handler only counts, and the pointers are to values that outlive the calls.
    unsafe {
        libc::signal(libc::SIGUSR1, note as extern "C" fn(i32) as usize);
        #[cfg(target_arch = "x86_64")]
        if number == libc::SYS_pause {
            libc::signal(libc::SIGALRM, note as extern "C" fn(i32) as usize);
            libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (number, timer);
}

/// Handles a signal to itself, and comes back from that.
fn signal() -> Result<(), i32> {
    let own = result(libc::SYS_getpid, [0; 4])?;
    let thread = result(libc::SYS_gettid, [0; 4])?;
    let signal = libc::SIGUSR1 as u64;
    call(libc::SYS_tgkill, [own | UPPER, thread, signal, 0])?;
    match INTERRUPTED.load(Ordering::Relaxed) {
        0 => Err(libc::ETIME),
        _ => Ok(()),
    }
}

/// The flags with which a thread is started, by themselves. Without a stack and with an address of its variables that
/// cannot be, nothing starts.
#[cfg(target_arch = "x86_64")]
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

#[cfg(target_arch = "x86_64")]
fn clone(flags: i32) -> Result<(), i32> {
    let ids = zeroes();
    match call_5(libc::SYS_clone, [flags as u64, 0, ids, ids, NONE]) {
        // The kernel's answer to such an address.
        Err(libc::EPERM) => Ok(()),
        other => other,
    }
}

fn after_clone(kind: &str) -> Outcome {
    if MODULES.contains(&kind) {
        Done
    } else {
        Killed
    }
}

fn thread() -> Result<(), i32> {
    let thread = std::thread::Builder::new().spawn(|| {});
    let thread = thread.map_err(|error| error.raw_os_error().unwrap_or_default())?;
    thread.join().map_err(|_| libc::ETIME)
}

/// Connects to a port of this machine at which nobody listens, if it may.
pub fn connect(port: u16) -> Result<(), i32> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
    let mut name = Vec::from((libc::AF_INET as u16).to_ne_bytes());
    name.extend(port.to_be_bytes());
    name.extend([127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let length = name.len() as u64;
    call(libc::SYS_connect, [socket, name.as_ptr() as u64, length, 0])
}

pub const ROWS: &[Row] = &[
    // start
    row!(ALL, Done, after_clone, SYS_clone => thread),
    #[cfg(target_arch = "x86_64")]
    row!(ALL, Done, after_clone, SYS_clone => || clone(THREAD)),
    #[cfg(target_arch = "x86_64")]
    row!(ALL, Done, after_clone, SYS_clone => || clone(THREAD | libc::CLONE_DETACHED)),
    #[cfg(target_arch = "x86_64")]
    beyond!(ALL, SYS_clone => || clone(THREAD | libc::CLONE_NEWUSER)),
    #[cfg(target_arch = "x86_64")]
    beyond!(ALL, SYS_clone => || clone(THREAD & !libc::CLONE_FILES)),
    at_the_start!(
        ALL,
        SYS_seccomp,
        u64::from(libc::SECCOMP_SET_MODE_FILTER) | UPPER,
        libc::SECCOMP_FILTER_FLAG_TSYNC | UPPER
    ),
    beyond!(ALL, SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER.into()),
    beyond!(
        ALL,
        SYS_seccomp,
        libc::SECCOMP_SET_MODE_FILTER.into(),
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    ),
    beyond!(
        ALL,
        SYS_seccomp,
        libc::SECCOMP_GET_ACTION_AVAIL.into(),
        libc::SECCOMP_FILTER_FLAG_TSYNC
    ),
    // memory
    allowed!(ALL, SYS_brk),
    allowed!(ALL, SYS_mmap => || page().map(drop)),
    allowed!(ALL, SYS_mprotect => || with_page(libc::SYS_mprotect, [4096, libc::PROT_READ as u64, 0])),
    allowed!(ALL, SYS_mremap => || with_page(libc::SYS_mremap, [4096, 8192, libc::MREMAP_MAYMOVE as u64])),
    allowed!(ALL, SYS_munmap => || with_page(libc::SYS_munmap, [4096, 0, 0])),
    allowed!(ALL, SYS_madvise => || with_page(libc::SYS_madvise, [4096, libc::MADV_DONTNEED as u64 | UPPER, 0])),
    allowed!(ALL, SYS_madvise => || with_page(libc::SYS_madvise, [4096, libc::MADV_FREE as u64, 0])),
    beyond!(ALL, SYS_madvise => || with_page(libc::SYS_madvise, [4096, libc::MADV_WILLNEED as u64, 0])),
    beyond!(WITHOUT_MODULE, SYS_mmap => executable_page),
    beyond!(WITHOUT_MODULE, SYS_mprotect, 0, 0, libc::PROT_EXEC as u64),
    // threads
    allowed!(ALL, SYS_futex, zeroes(), libc::FUTEX_WAKE as u64, 1),
    allowed!(ALL, SYS_gettid),
    allowed!(
        ALL,
        SYS_prctl,
        libc::PR_SET_NAME as u64 | UPPER,
        c"name".as_ptr() as u64
    ),
    allowed!(ALL, SYS_prctl, libc::PR_SET_NO_NEW_PRIVS as u64, 1),
    beyond!(ALL, SYS_prctl, libc::PR_GET_NAME as u64, zeroes()),
    beyond!(ALL, SYS_prctl, libc::PR_SET_SECCOMP as u64, 1),
    allowed!(ALL, SYS_rseq),
    allowed!(ALL, SYS_sched_getaffinity),
    allowed!(ALL, SYS_sched_yield),
    allowed!(ALL, SYS_set_robust_list),
    // signals
    allowed!(ALL, SYS_restart_syscall),
    allowed!(ALL, SYS_rt_sigaction),
    allowed!(ALL, SYS_rt_sigprocmask),
    allowed!(ALL, SYS_rt_sigreturn => signal),
    allowed!(ALL, SYS_sigaltstack),
    // time and chance
    allowed!(ALL, SYS_clock_gettime, NONE),
    allowed!(
        ALL,
        SYS_clock_nanosleep,
        libc::CLOCK_MONOTONIC as u64,
        0,
        zeroes()
    ),
    allowed!(ALL, SYS_getrandom),
    allowed!(ALL, SYS_gettimeofday),
    // end
    allowed!(ALL, SYS_exit),
    allowed!(ALL, SYS_exit_group),
    allowed!(ALL, SYS_getpid),
    #[cfg(target_arch = "x86_64")]
    allowed!(ALL, SYS_pause),
    allowed!(ALL, SYS_tgkill => signal),
    beyond!(ALL, SYS_tgkill, 1, 1, 0),
    // messages
    allowed!(ALL, SYS_close, NONE),
    allowed!(ALL, SYS_fcntl, STDOUT, libc::F_GETFD as u64 | UPPER),
    allowed!(ALL, SYS_fcntl, STDOUT, libc::F_GETFL as u64),
    allowed!(
        ALL,
        SYS_fcntl,
        STDOUT,
        libc::F_SETFD as u64,
        libc::FD_CLOEXEC as u64
    ),
    allowed!(
        ALL,
        SYS_fcntl,
        NONE,
        libc::F_SETFL as u64,
        libc::O_NONBLOCK as u64
    ),
    allowed!(
        ALL,
        SYS_fcntl,
        NONE,
        libc::F_SETFL as u64,
        libc::O_RDWR as u64 | UPPER
    ),
    beyond!(
        ALL,
        SYS_fcntl,
        NONE,
        libc::F_SETFL as u64,
        libc::O_APPEND as u64
    ),
    beyond!(ALL, SYS_fcntl, STDOUT, libc::F_DUPFD_CLOEXEC as u64),
    beyond!(
        ALL,
        SYS_fcntl,
        NONE,
        libc::F_SETOWN as u64,
        libc::O_RDWR as u64
    ),
    allowed!(ALL, SYS_getsockopt => || option_of_pair(libc::SOL_SOCKET, libc::SO_SNDBUF)),
    beyond!(ALL, SYS_getsockopt => || option_of_pair(libc::SOL_SOCKET, libc::SO_PEERSEC)),
    beyond!(ALL, SYS_getsockopt => || option_of_pair(libc::IPPROTO_TCP, libc::SO_SNDBUF)),
    #[cfg(target_arch = "x86_64")]
    allowed!(ALL, SYS_poll),
    #[cfg(not(target_arch = "x86_64"))]
    allowed!(ALL, SYS_ppoll, 0, 0, zeroes()),
    allowed!(ALL, SYS_read, NONE),
    allowed!(ALL, SYS_recvfrom, NONE),
    // An address whose lower half is zero.
    beyond!(ALL, SYS_recvfrom, NONE, 0, 0, 0, 1 << 32),
    allowed!(ALL, SYS_recvmsg, NONE),
    allowed!(ALL, SYS_sendmsg, NONE),
    allowed!(ALL, SYS_sendto, NONE),
    beyond!(ALL, SYS_sendto, NONE, 0, 0, 0, 1 << 32),
    allowed!(ALL, SYS_socketpair => || pair(libc::AF_UNIX, libc::SOCK_SEQPACKET).map(drop)),
    beyond!(ALL, SYS_socketpair => || pair(libc::AF_UNIX, libc::SOCK_STREAM).map(drop)),
    beyond!(ALL, SYS_socketpair => || pair(libc::AF_INET, libc::SOCK_SEQPACKET).map(drop)),
    allowed!(ALL, SYS_write, NONE),
    // peers
    allowed!(BROKERS, SYS_epoll_ctl, NONE),
    allowed!(BROKERS, SYS_epoll_pwait, NONE),
    allowed!(BROKERS, SYS_fstat, NONE),
    allowed!(BROKERS, SYS_newfstatat, AT_CWD),
    // store
    #[cfg(target_arch = "x86_64")]
    allowed!(WITH_STORE, SYS_access),
    #[cfg(not(target_arch = "x86_64"))]
    allowed!(WITH_STORE, SYS_faccessat, AT_CWD),
    allowed!(WITH_STORE, SYS_fcntl, NONE, libc::F_GETLK as u64),
    allowed!(WITH_STORE, SYS_fcntl, NONE, libc::F_SETLK as u64),
    allowed!(WITH_STORE, SYS_fchmod, NONE, 0o600 | UPPER),
    beyond!(WITH_STORE, SYS_fchmod, NONE, 0o700),
    allowed!(WITH_STORE, SYS_fsync, NONE),
    allowed!(WITH_STORE, SYS_ftruncate, NONE),
    allowed!(WITH_STORE, SYS_geteuid),
    allowed!(WITH_STORE, SYS_lseek, NONE),
    allowed!(WITH_STORE, SYS_openat, AT_CWD),
    allowed!(WITH_STORE, SYS_pread64, NONE),
    allowed!(WITH_STORE, SYS_pwrite64, NONE),
    #[cfg(target_arch = "x86_64")]
    allowed!(WITH_STORE, SYS_readlink),
    #[cfg(not(target_arch = "x86_64"))]
    allowed!(WITH_STORE, SYS_readlinkat, AT_CWD),
    #[cfg(target_arch = "x86_64")]
    allowed!(WITH_STORE, SYS_unlink),
    #[cfg(not(target_arch = "x86_64"))]
    allowed!(WITH_STORE, SYS_unlinkat, AT_CWD),
    // service
    allowed!(MONITOR, SYS_newfstatat, AT_CWD),
    // module
    allowed!(MODULES, SYS_clock_getres),
    allowed!(MODULES, SYS_dup, NONE),
    allowed!(MODULES, SYS_eventfd2),
    allowed!(MODULES, SYS_faccessat, AT_CWD),
    allowed!(MODULES, SYS_fdatasync, NONE),
    allowed!(MODULES, SYS_fcntl, NONE, libc::F_SETLKW as u64),
    beyond!(WITHOUT_MODULE, SYS_fcntl, NONE, libc::F_SETLKW as u64),
    allowed!(MODULES, SYS_fstat, NONE),
    allowed!(MODULES, SYS_fstatfs, NONE),
    allowed!(MODULES, SYS_getcwd),
    allowed!(MODULES, SYS_getdents64, NONE),
    allowed!(MODULES, SYS_getegid),
    allowed!(MODULES, SYS_getgid),
    allowed!(MODULES, SYS_getppid),
    allowed!(MODULES, SYS_getuid),
    #[cfg(target_arch = "x86_64")]
    allowed!(MODULES, SYS_lstat),
    allowed!(MODULES, SYS_newfstatat, AT_CWD),
    #[cfg(target_arch = "x86_64")]
    allowed!(MODULES, SYS_mkdir),
    allowed!(MODULES, SYS_mkdirat, AT_CWD),
    #[cfg(target_arch = "x86_64")]
    allowed!(MODULES, SYS_open),
    allowed!(MODULES, SYS_readlinkat, AT_CWD),
    #[cfg(target_arch = "x86_64")]
    allowed!(MODULES, SYS_rename),
    allowed!(MODULES, SYS_renameat, AT_CWD, 0, AT_CWD),
    allowed!(MODULES, SYS_renameat2, AT_CWD, 0, AT_CWD),
    #[cfg(target_arch = "x86_64")]
    allowed!(MODULES, SYS_rmdir),
    #[cfg(target_arch = "x86_64")]
    allowed!(MODULES, SYS_stat),
    allowed!(MODULES, SYS_statfs),
    allowed!(MODULES, SYS_statx, AT_CWD),
    allowed!(MODULES, SYS_sysinfo),
    allowed!(MODULES, SYS_umask, 0o77),
    allowed!(MODULES, SYS_uname),
    allowed!(MODULES, SYS_unlinkat, AT_CWD),
    allowed!(MODULES, SYS_writev, NONE),
    // swtpm
    allowed!(SWTPM, SYS_socket => || socket(libc::AF_INET, libc::SOCK_STREAM).map(drop)),
    allowed!(
        SWTPM,
        SYS_socket,
        libc::AF_INET as u64 | UPPER,
        libc::SOCK_STREAM as u64 | UPPER
    ),
    beyond!(SWTPM, SYS_socket => || socket(libc::AF_INET, libc::SOCK_DGRAM).map(drop)),
    beyond!(SWTPM, SYS_socket => || socket(libc::AF_INET6, libc::SOCK_STREAM).map(drop)),
    beyond!(SWTPM, SYS_socket => || socket(libc::AF_UNIX, libc::SOCK_STREAM).map(drop)),
    beyond!(SWTPM, SYS_socket => || socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK).map(drop)),
    row!(SWTPM, Error(libc::ECONNREFUSED), |_| Error(libc::ECONNREFUSED), SYS_connect => || connect(1)),
    // loading
    at_the_start!(MODULES, SYS_mmap => executable_page),
    at_the_start!(MODULES, SYS_mprotect, 0, 0, libc::PROT_EXEC as u64),
    at_the_start!(
        MODULES,
        SYS_mprotect,
        0,
        0,
        (libc::PROT_READ | libc::PROT_EXEC) as u64
    ),
    // What fails.
    failing!(ALL, ENOSYS, SYS_clone3),
    failing!(ALL, ENOSYS, SYS_epoll_pwait2, NONE),
    failing!(ALL, ENOSYS, SYS_faccessat2, AT_CWD),
    failing!(ALL, EPERM, SYS_fchown, NONE),
    failing!(MODULES, EPERM, SYS_ioctl, NONE),
    failing!(MODULES, ENOTSOCK, SYS_getpeername, NONE),
    failing!(MODULES, ENOSYS, SYS_sched_getattr),
    failing!(MODULES, ENOSYS, SYS_sched_setattr),
    failing!(
        MODULES,
        EACCES,
        SYS_socket,
        libc::AF_INET as u64,
        (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64
    ),
    failing!(
        MODULES,
        EACCES,
        SYS_socket,
        libc::AF_UNIX as u64,
        (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64
    ),
    failing!(WITHOUT_PCSC, EACCES, SYS_socket => || socket(libc::AF_UNIX, libc::SOCK_STREAM).map(drop)),
    // What is pretended.
    row!(WITH_PCSC, Done, |_| Done, SYS_socket => || match socket(libc::AF_UNIX, libc::SOCK_STREAM)? {
        0 => Ok(()),
        _ => Err(libc::EINVAL),
    }),
    row!(WITH_PCSC, Done, |_| Done, SYS_connect, NONE),
];

/// Whether a process of this kind makes this system call at any time, in some way, when its last thread runs or its module
/// is loaded.
pub fn is_made(kind: &str, number: c_long) -> bool {
    ROWS.iter()
        .filter(|row| row.number == number && row.kinds.contains(&kind))
        .any(|row| (row.after)(kind) != Killed)
}
