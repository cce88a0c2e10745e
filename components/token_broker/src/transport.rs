/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Channels of [`Frame`]s to peers that are not trusted.
//!
//! ipc-channel trusts its peers. A header makes the receiver allocate whatever it says, or wait for more without an
//! end; file descriptors that nobody asked for stay open, or end the process where they are no sockets; a sender
//! blocks when its peer does not read; a receiver, once in a set, cannot be taken out. A document that has been taken
//! over could stop the broker for everybody else, so the broker takes the sockets out of the channels and speaks
//! ipc-channel's own format on them, within bounds.
//!
//! A message is one packet: its length, the length of the payload (both in the size and order of a `usize`), and the
//! payload in postcard's encoding. ipc-channel sends messages in several packets that exceed the system's
//! `net.core.wmem_default`; frames are less than half as long as Linux has it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use token_traits::Frame;
use token_traits::wire::MAX_FRAME_LENGTH;

/// The two lengths before the payload.
const HEADER_LENGTH: usize = 2 * size_of::<usize>();

/// A frame's length in postcard's encoding, at most.
const MAX_LENGTH_PREFIX: usize = 3;

/// The longest packet.
pub const MAX_PACKET_LENGTH: usize = HEADER_LENGTH + MAX_LENGTH_PREFIX + MAX_FRAME_LENGTH;

/// Most bytes that wait for a peer that does not read.
pub const MAX_OUTGOING: usize = 4 * 1024 * 1024;

/// Takes the sockets out of channels, by sending them to itself.
pub struct Carrier {
    sender: IpcSender<Ends>,
    receiver: OwnedFd,
}

#[derive(Debug, Deserialize, Serialize)]
struct Ends {
    receiver: IpcReceiver<Frame>,
    sender: IpcSender<Frame>,
}

impl Carrier {
    /// Makes a socket in the directory for temporary files for a moment.
    pub fn new() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("socket");
        let server = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&server, &SocketAddrUnix::new(&path)?)?;
        rustix::net::listen(&server, 1)?;
        let path = path
            .into_os_string()
            .into_string()
            .map_err(|_| io::Error::other("the temporary directory's name is not UTF-8"))?;
        let sender = IpcSender::connect(path)?;
        let receiver = rustix::net::accept_with(&server, SocketFlags::CLOEXEC)?;
        Ok(Self { sender, receiver })
    }

    /// Takes the sockets out of two channels.
    pub fn unpack(
        &self,
        receiver: IpcReceiver<Frame>,
        sender: IpcSender<Frame>,
    ) -> io::Result<Wire> {
        self.sender
            .send(Ends { receiver, sender })
            .map_err(io::Error::other)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut data = [0; 64];
        rustix::net::recvmsg(
            &self.receiver,
            &mut [IoSliceMut::new(&mut data)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        let mut sockets = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => sockets.collect::<Vec<OwnedFd>>(),
            _ => Vec::new(),
        });
        // In the order of the fields.
        match (sockets.next(), sockets.next()) {
            (Some(receive), Some(send)) => Ok(Wire::new(receive, send)),
            _ => Err(io::Error::other("a channel without a socket")),
        }
    }
}

/// What [`Wire::receive`] found.
#[derive(Debug, Eq, PartialEq)]
pub enum Received {
    /// A frame, which may hold anything.
    Frame(Frame),
    /// Nothing yet.
    Nothing,
    /// The peer has gone.
    Closed,
    /// Something that is no frame. Nothing more is to be expected.
    Broken,
}

/// The peer has gone, or does not read.
#[derive(Debug, Eq, PartialEq)]
pub struct Gone;

/// Two sockets, one for each direction. Nothing blocks.
#[derive(Debug)]
pub struct Wire {
    receive: OwnedFd,
    send: OwnedFd,
    /// Payloads that the peer's socket had no room for.
    outgoing: VecDeque<Vec<u8>>,
    outgoing_length: usize,
}

impl Wire {
    fn new(receive: OwnedFd, send: OwnedFd) -> Self {
        Self {
            receive,
            send,
            outgoing: VecDeque::new(),
            outgoing_length: 0,
        }
    }

    /// The socket from which frames come.
    pub fn receiving_end(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }

    /// The socket into which frames go.
    pub fn sending_end(&self) -> BorrowedFd<'_> {
        self.send.as_fd()
    }

    /// Takes the next frame. `buffer` has room for [`MAX_PACKET_LENGTH`] bytes and is the same for all peers.
    pub fn receive(&self, buffer: &mut [u8]) -> Received {
        // Without room for file descriptors, the kernel does not let any in.
        let received = rustix::net::recvmsg(
            &self.receive,
            &mut [IoSliceMut::new(buffer)],
            &mut RecvAncillaryBuffer::default(),
            RecvFlags::DONTWAIT,
        );
        let message = match received {
            Ok(message) if message.bytes == 0 => return Received::Closed,
            Ok(message) => message,
            Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
            Err(_) => return Received::Closed,
        };
        if message
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Received::Broken;
        }
        let packet = buffer.get(..message.bytes).unwrap_or_default();
        parse(packet).map_or(Received::Broken, Received::Frame)
    }

    /// Sends a frame, or keeps it until the peer has read some of what it was sent before.
    pub fn send(&mut self, frame: &Frame) -> Result<(), Gone> {
        let payload = postcard::to_stdvec(frame).map_err(|_| Gone)?;
        self.outgoing_length += payload.len();
        if self.outgoing_length > MAX_OUTGOING {
            return Err(Gone);
        }
        self.outgoing.push_back(payload);
        self.flush()
    }

    /// Sends as much of what was kept as there is room for.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while let Some(payload) = self.outgoing.front() {
            let lengths = [HEADER_LENGTH + payload.len(), payload.len()];
            let [packet, total] = lengths.map(usize::to_ne_bytes);
            let sent = rustix::net::sendmsg(
                &self.send,
                &[
                    IoSlice::new(&packet),
                    IoSlice::new(&total),
                    IoSlice::new(payload),
                ],
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(_) => {
                    self.outgoing_length -= payload.len();
                    self.outgoing.pop_front();
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Whether something is kept for a peer that has not read what it was sent before.
    pub fn is_blocked(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

/// The frame in a packet.
fn parse(packet: &[u8]) -> Option<Frame> {
    let (length, rest) = packet.split_first_chunk()?;
    let (total, payload) = rest.split_first_chunk()?;
    let is_whole = usize::from_ne_bytes(*length) == packet.len()
        && usize::from_ne_bytes(*total) == payload.len();
    match postcard::take_from_bytes(payload) {
        Ok((frame, [])) if is_whole => Some(frame),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use ipc_channel::ipc;
    use proptest::prelude::*;
    use rustix::net::SendAncillaryMessage;

    use super::*;

    struct Peer {
        sender: IpcSender<Frame>,
        receiver: IpcReceiver<Frame>,
    }

    fn connect() -> (Wire, Peer) {
        let (sender, theirs) = ipc::channel().unwrap();
        let (ours, receiver) = ipc::channel().unwrap();
        let wire = Carrier::new().unwrap().unpack(theirs, ours).unwrap();
        (wire, Peer { sender, receiver })
    }

    /// A wire, and the socket of a peer that writes to it what it likes.
    fn connect_raw() -> (Wire, OwnedFd) {
        let (wire, peer) = connect();
        let (_, unused) = ipc::channel().unwrap();
        let raw = Carrier::new().unwrap().unpack(unused, peer.sender).unwrap();
        (wire, raw.send)
    }

    fn buffer() -> Vec<u8> {
        vec![0; MAX_PACKET_LENGTH]
    }

    fn packet(length: usize, total: usize, payload: &[u8]) -> Vec<u8> {
        [&length.to_ne_bytes()[..], &total.to_ne_bytes(), payload].concat()
    }

    #[test]
    fn frames_of_every_length_go_through_ipc_channel_both_ways() {
        let (mut wire, peer) = connect();
        let mut buffer = buffer();
        assert_eq!(wire.receive(&mut buffer), Received::Nothing);
        for length in [0, 1, 127, 128, 16_383, 16_384, 65_536, MAX_FRAME_LENGTH] {
            let frame = Frame::from_bytes(vec![0xa5; length]);
            peer.sender.send(frame.clone()).unwrap();
            assert_eq!(wire.receive(&mut buffer), Received::Frame(frame.clone()));
            wire.send(&frame).unwrap();
            assert_eq!(peer.receiver.recv().unwrap(), frame);
        }
        assert_eq!(wire.receive(&mut buffer), Received::Nothing);
        drop(peer);
        assert_eq!(wire.receive(&mut buffer), Received::Closed);
        assert_eq!(wire.send(&Frame::from_bytes(vec![])), Err(Gone));
    }

    #[test]
    fn what_was_sent_before_the_end_arrives() {
        let (wire, peer) = connect();
        let frame = Frame::from_bytes(vec![1, 2, 3]);
        peer.sender.send(frame.clone()).unwrap();
        drop(peer);
        assert_eq!(wire.receive(&mut buffer()), Received::Frame(frame));
        assert_eq!(wire.receive(&mut buffer()), Received::Closed);
    }

    #[test]
    fn packets_that_lie_are_broken() {
        let payload = postcard::to_stdvec(&Frame::from_bytes(vec![7; 5])).unwrap();
        let length = HEADER_LENGTH + payload.len();
        let with_rest = [&payload[..], &[0]].concat();
        for packet in [
            vec![0],
            vec![0; HEADER_LENGTH - 1],
            packet(length, usize::MAX, &payload),
            packet(length, payload.len() + 1, &payload),
            packet(usize::MAX, payload.len(), &payload),
            packet(length - 1, payload.len(), &payload),
            packet(HEADER_LENGTH, 0, &[]),
            packet(length + 1, payload.len() + 1, &with_rest),
            // A frame that claims more bytes than there are.
            packet(HEADER_LENGTH + 2, 2, &[0x7f, 0]),
            vec![0; MAX_PACKET_LENGTH + 1],
        ] {
            let (wire, peer) = connect_raw();
            rustix::net::send(&peer, &packet, SendFlags::empty()).unwrap();
            assert_eq!(wire.receive(&mut buffer()), Received::Broken, "{packet:?}");
        }
    }

    #[test]
    fn file_descriptors_are_not_let_in() {
        let (wire, peer) = connect_raw();
        let payload = postcard::to_stdvec(&Frame::from_bytes(vec![7; 5])).unwrap();
        let packet = packet(HEADER_LENGTH + payload.len(), payload.len(), &payload);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [writer.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        rustix::net::sendmsg(
            &peer,
            &[IoSlice::new(&packet)],
            &mut ancillary,
            SendFlags::empty(),
        )
        .unwrap();
        drop(writer);
        assert_eq!(wire.receive(&mut buffer()), Received::Broken);
        // The pipe ends because nobody holds its other end.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_peer_that_does_not_read_is_waited_for_within_bounds() {
        let (mut wire, peer) = connect();
        let frame = Frame::from_bytes(vec![7; 65_536]);
        let mut sent = 0;
        while !wire.is_blocked() {
            wire.send(&frame).unwrap();
            sent += 1;
        }
        // It reads again: nothing was lost.
        wire.send(&frame).unwrap();
        sent += 1;
        for _ in 0..sent {
            assert_eq!(peer.receiver.recv().unwrap(), frame);
            wire.flush().unwrap();
        }
        assert!(!wire.is_blocked());
        assert!(
            peer.receiver
                .try_recv_timeout(Duration::from_millis(1))
                .is_err()
        );
        // It never reads.
        let gone = (0..=MAX_OUTGOING / 65_536 + sent).any(|_| wire.send(&frame) == Err(Gone));
        assert!(gone);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(
            honest in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let packet = if honest {
                packet(HEADER_LENGTH + payload.len(), payload.len(), &payload)
            } else {
                payload
            };
            let _ = parse(&packet);
        }
    }
}
