/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Sending to peers that may not read.
//!
//! A send blocks when the peer's buffer is full, and ipc-channel has no other way to send. A document that does not
//! read what it gets must not stop the broker for everybody else, so an interval timer interrupts the send. No other
//! thread is needed, and nothing is added where the peer reads.

use std::io;
use std::ptr;
use std::time::Duration;

/// How long a peer may leave its buffer full before it is given up.
const LIMIT: Duration = Duration::from_millis(100);

/// The timer goes on firing, in case that it first does so just before the send begins.
const AGAIN: Duration = Duration::from_millis(10);

/// Keeps `SIGALRM` away from this thread and those that it starts from now on.
pub(crate) fn block() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Lets `SIGALRM` interrupt system calls of this thread, which is to be the only one that does not [`block`] it.
pub(crate) fn prepare() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int) {}
    // SAFETY: `action` is fully initialised, and the handler does nothing at all. Without SA_RESTART, the system
    // call that the signal interrupts returns EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as libc::sighandler_t;
        libc::sigemptyset(&mut action.sa_mask);
        check(libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()))?;
    }
    mask(libc::SIG_UNBLOCK)
}

fn mask(how: libc::c_int) -> io::Result<()> {
    // SAFETY: `set` is initialised by sigemptyset.
    let error = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGALRM);
        libc::pthread_sigmask(how, &set, ptr::null_mut())
    };
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Calls `send`, and interrupts it where it blocks for longer than [`LIMIT`]: it then fails with `EINTR`.
pub(crate) fn with_deadline<T>(send: impl FnOnce() -> T) -> io::Result<T> {
    set_timer(LIMIT, AGAIN)?;
    let result = send();
    set_timer(Duration::ZERO, Duration::ZERO)?;
    Ok(result)
}

fn set_timer(first: Duration, again: Duration) -> io::Result<()> {
    let timeval = |duration: Duration| libc::timeval {
        tv_sec: duration.as_secs() as libc::time_t,
        tv_usec: duration.subsec_micros() as libc::suseconds_t,
    };
    let timer = libc::itimerval {
        it_value: timeval(first),
        it_interval: timeval(again),
    };
    // SAFETY: `timer` lives through the call, and nothing is to be written.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
