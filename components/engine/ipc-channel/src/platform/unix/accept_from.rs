/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! One-shot servers for one process, which has been started and is to connect.

use super::incoming::Wait;
use super::{make_socket_lingering, OsIpcOneShotServer, OsIpcReceiver, UnixError};
use crate::ipc::IpcMessage;
use libc::{c_int, c_void, socklen_t};
use std::mem;
use std::os::fd::RawFd;
use std::ptr;
use std::time::{Duration, Instant};

impl OsIpcOneShotServer {
    /// Like [`accept`](Self::accept), but only what the process `pid` sends, and only for so long. Where another process has
    /// connected, it is not listened to.
    ///
    /// When the time is over, it can be called again.
    ///
    /// The name of the server is not a secret, as it is usually on the command line of a process.
    pub fn accept_from(
        &mut self,
        pid: u32,
        timeout: Duration,
    ) -> Result<(OsIpcReceiver, IpcMessage), UnixError> {
        let until = Instant::now() + timeout;
        while self.connected.is_none() {
            wait_for(self.fd, until)?;
            // SAFETY: nobody asks for the address.
            let client = unsafe {
                libc::accept4(
                    self.fd,
                    ptr::null_mut(),
                    ptr::null_mut(),
                    libc::SOCK_CLOEXEC,
                )
            };
            if client < 0 {
                match UnixError::last() {
                    UnixError::Errno(libc::EINTR | libc::ECONNABORTED) => continue,
                    error => return Err(error),
                }
            }
            let receiver = OsIpcReceiver::from_fd(client);
            if peer(client)? != pid {
                continue;
            }
            make_socket_lingering(client)?;
            self.connected = Some(receiver);
        }
        match self.connected.take() {
            Some(receiver) => match receiver.recv_within(Wait::Until(until)) {
                Ok(message) => Ok((receiver, message)),
                Err(error) => {
                    if error.would_block() {
                        self.connected = Some(receiver);
                    }
                    Err(error)
                },
            },
            None => Err(UnixError::ChannelClosed),
        }
    }
}

/// The process that has connected.
fn peer(fd: RawFd) -> Result<u32, UnixError> {
    let mut peer = mem::MaybeUninit::<libc::ucred>::uninit();
    let mut length = mem::size_of_val(&peer) as socklen_t;
    // SAFETY: it is as long as is said, and filled where the call succeeds.
    let peer = unsafe {
        let result = libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            peer.as_mut_ptr() as *mut c_void,
            &mut length,
        );
        if result != 0 {
            return Err(UnixError::last());
        }
        peer.assume_init()
    };
    Ok(peer.pid as u32)
}

/// Waits until a socket can be read, or fails with `EAGAIN`.
fn wait_for(fd: RawFd, until: Instant) -> Result<(), UnixError> {
    let mut socket = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(UnixError::Errno(libc::EAGAIN));
        }
        let left = c_int::try_from(left.as_millis() + 1).unwrap_or(c_int::MAX);
        match unsafe { libc::poll(&mut socket, 1, left) } {
            0 => {},
            -1 => match UnixError::last() {
                UnixError::Errno(libc::EINTR) => {},
                error => return Err(error),
            },
            _ => return Ok(()),
        }
    }
}
