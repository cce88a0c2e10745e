/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Where a token process reports to the main process when it has been started.
//!
//! The name of the place is on the process's command line, where everybody can read it, and another program of the same user
//! could connect to it. So the kernel is asked who has connected, and whoever is not the process that was started is not
//! read from. What the process sends is taken within bounds, and ipc-channel does not see it before it is known to be right.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::Pid;
use tempfile::TempDir;
use token_traits::transport;

/// How many programs may wait to be looked at.
const BACKLOG: i32 = 16;

/// What follows the version in a [`token_traits::control::Hello`], as ipc-channel encodes it: which of the sockets that come
/// with it each end is.
const ENDS: [u8; 3] = [0, 1, 2];

/// Where one process is to report, once.
pub(crate) struct Server {
    socket: OwnedFd,
    name: String,
    _folder: TempDir,
}

/// A [`token_traits::control::Hello`], with the sockets of its channels.
#[derive(Debug)]
pub(crate) struct Reported {
    pub(crate) version: u8,
    /// To the process.
    pub(crate) to_child: OwnedFd,
    /// From the process.
    pub(crate) from_child: OwnedFd,
    /// The process ends when this is closed.
    pub(crate) lifeline: OwnedFd,
}

impl Server {
    pub(crate) fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("socket");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        let name = path.into_os_string().into_string();
        Ok(Self {
            socket,
            name: name.map_err(|_| io::Error::other("the temporary folder's name is not UTF-8"))?,
            _folder: folder,
        })
    }

    /// What the process has to connect to.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the process, but not longer than it lives, which `handle` (a pidfd) tells, and not beyond `until`.
    pub(crate) fn wait(
        self,
        process: Pid,
        handle: BorrowedFd<'_>,
        until: Instant,
    ) -> Result<Reported, String> {
        let connection = loop {
            wait_for(self.socket.as_fd(), handle, until)?;
            let accepted = rustix::net::accept_with(
                &self.socket,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            );
            let connection = match accepted {
                Ok(connection) => connection,
                // It has gone again.
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.to_string()),
            };
            match rustix::net::sockopt::socket_peercred(&connection) {
                Ok(peer) if peer.pid == process => break connection,
                Ok(peer) => log::warn!(
                    "process {} has connected in the place of a token process",
                    peer.pid.as_raw_nonzero()
                ),
                Err(error) => return Err(error.to_string()),
            }
        };
        wait_for(connection.as_fd(), handle, until)?;
        receive(&connection)
    }
}

/// Waits until there is something at a socket.
fn wait_for(socket: BorrowedFd<'_>, process: BorrowedFd<'_>, until: Instant) -> Result<(), String> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("it did not report in time".into());
        }
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut both = [
            PollFd::from_borrowed_fd(socket, PollFlags::IN),
            PollFd::from_borrowed_fd(process, PollFlags::IN),
        ];
        match poll(&mut both, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        let [at_socket, at_end] = both;
        // What it said before its end counts.
        if !at_socket.revents().is_empty() {
            return Ok(());
        }
        if !at_end.revents().is_empty() {
            return Err("it ended before it reported".into());
        }
    }
}

fn receive(connection: &OwnedFd) -> Result<Reported, String> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut packet = [0; 64];
    let message = rustix::net::recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )
    .map_err(|error| error.to_string())?;
    let sockets: Vec<OwnedFd> = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => sockets.collect(),
            _ => Vec::new(),
        })
        .collect();
    if message.bytes == 0 {
        return Err("it ended before it reported".into());
    }
    let malformed = || "it did not report as it should".to_owned();
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(malformed());
    }
    let packet = packet.get(..message.bytes).unwrap_or_default();
    let hello = transport::payload(packet).and_then(<[u8]>::split_first);
    let sockets = <[OwnedFd; 3]>::try_from(sockets);
    match (hello, sockets) {
        (Some((version, ends)), Ok(sockets))
            if ends == ENDS && sockets.iter().all(transport::is_socket) =>
        {
            let [to_child, from_child, lifeline] = sockets;
            Ok(Reported {
                version: *version,
                to_child,
                from_child,
                lifeline,
            })
        }
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ipc_channel::ipc::{self, IpcSender};
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    use token_traits::Frame;
    use token_traits::control::WorkerHello;
    use token_traits::transport::{Carrier, Packer};

    use super::*;

    fn wait(server: Server, process: Pid) -> Result<Reported, String> {
        let handle = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        server.wait(process, handle.as_fd(), until)
    }

    #[test]
    fn what_ipc_channel_sends_is_understood() {
        let server = Server::new().unwrap();
        let (to_child, requests) = ipc::channel::<Frame>().unwrap();
        let (replies, from_child) = ipc::channel::<Frame>().unwrap();
        let (lifeline, watched) = ipc::channel().unwrap();
        let hello = WorkerHello {
            version: 7,
            to_child,
            from_child,
            lifeline,
        };
        let connection = IpcSender::connect(server.name().to_owned()).unwrap();
        connection.send(hello).unwrap();
        let reported = wait(server, getpid()).unwrap();
        assert_eq!(reported.version, 7);

        let packer = Packer::new(&Carrier::new().unwrap()).unwrap();
        let ends = packer.pack(reported.from_child.as_fd(), reported.to_child.as_fd());
        let (from_child, to_child) = ends.unwrap();
        let frame = Frame::from_bytes(vec![1, 2, 3]);
        to_child.send(frame.clone()).unwrap();
        assert_eq!(requests.recv().unwrap(), frame);
        replies.send(frame.clone()).unwrap();
        let received: Frame = from_child.recv().unwrap();
        assert_eq!(received, frame);
        assert!(watched.try_recv_timeout(Duration::ZERO).is_err());
        drop(reported.lifeline);
        assert!(watched.recv().is_err());
    }

    #[test]
    fn nobody_else_is_listened_to() {
        let server = Server::new().unwrap();
        let (sender, _receiver) = ipc::channel::<()>().unwrap();
        // As seen by a server that waits for another process than this one.
        for _ in 0..3 {
            let connection = IpcSender::connect(server.name().to_owned()).unwrap();
            connection.send(sender.clone()).unwrap();
        }
        let init = Pid::from_raw(1).unwrap();
        assert_eq!(wait(server, init).unwrap_err(), "it did not report in time");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let (sender, _receiver) = ipc::channel::<()>().unwrap();
        let senders = |count| vec![sender.clone(); count];
        for (count, bytes) in [(0, 0), (2, 1), (3, 0), (3, 100), (4, 4), (60, 10)] {
            let server = Server::new().unwrap();
            let connection = IpcSender::connect(server.name().to_owned()).unwrap();
            connection
                .send((vec![0_u8; bytes], senders(count)))
                .unwrap();
            assert_eq!(
                wait(server, getpid()).unwrap_err(),
                "it did not report as it should",
                "{count}, {bytes}"
            );
        }
        // Three ends, but not three sockets.
        let server = Server::new().unwrap();
        let connection = IpcSender::connect(server.name().to_owned()).unwrap();
        let memory = ipc::IpcSharedMemory::from_byte(0, 1);
        connection
            .send((7_u8, sender.clone(), sender, memory))
            .unwrap();
        assert!(wait(server, getpid()).is_err());

        let server = Server::new().unwrap();
        let connection = IpcSender::<()>::connect(server.name().to_owned()).unwrap();
        drop(connection);
        assert_eq!(
            wait(server, getpid()).unwrap_err(),
            "it ended before it reported"
        );
    }
}
