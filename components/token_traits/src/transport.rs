/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Channels of [`Frame`]s to peers that are not trusted.
//!
//! ipc-channel trusts its peers. A header makes the receiver allocate whatever it says, or wait for more without an
//! end; file descriptors that nobody asked for stay open, or end the process where they are no sockets; a sender
//! blocks when its peer does not read; a receiver, once in a set, cannot be taken out. A document that has been taken
//! over could stop the broker for everybody else, and a broker the main process. So both take the sockets out of the
//! channels and speak ipc-channel's own format on them, within bounds.
//!
//! A message is one packet: its length, the length of the payload (both in the size and order of a `usize`), and the
//! payload in postcard's encoding. ipc-channel sends messages in several packets that exceed the system's
//! `net.core.wmem_default`; frames are less than half as long as Linux has it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ipc_channel::ipc::{self, IpcReceiver, IpcSender, OpaqueIpcReceiver, OpaqueIpcSender};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags,
    SocketType,
};
use serde::{Deserialize, Serialize};

use crate::wire::{Frame, MAX_FRAME_LENGTH};

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
    receiver: OpaqueIpcReceiver,
    sender: OpaqueIpcSender,
}

/// Makes channels of sockets: what [`Carrier`] does, the other way round.
pub struct Packer {
    sender: OwnedFd,
    receiver: IpcReceiver<Ends>,
}

/// How ipc-channel encodes [`Ends`]: which of the sockets that come with the message each is.
const ENDS: [u8; 2] = [0, 1];

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
        // Another program of the same user could have been first.
        if rustix::net::sockopt::socket_peercred(&receiver)?.pid != rustix::process::getpid() {
            return Err(io::Error::other("somebody else has connected"));
        }
        Ok(Self { sender, receiver })
    }

    /// Takes the sockets out of two channels.
    pub fn unpack(
        &self,
        receiver: IpcReceiver<Frame>,
        sender: IpcSender<Frame>,
    ) -> io::Result<Wire> {
        let (receive, send) = self.take(receiver.to_opaque(), sender.to_opaque())?;
        Ok(Wire::new(receive, send))
    }

    fn take(
        &self,
        receiver: OpaqueIpcReceiver,
        sender: OpaqueIpcSender,
    ) -> io::Result<(OwnedFd, OwnedFd)> {
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
            (Some(receive), Some(send)) => Ok((receive, send)),
            _ => Err(io::Error::other("a channel without a socket")),
        }
    }
}

impl Packer {
    /// Makes a channel to this process itself.
    pub fn new(carrier: &Carrier) -> io::Result<Self> {
        let (sender, receiver) = ipc::channel()?;
        let (_, unused) = ipc::channel::<()>()?;
        let (_, sender) = carrier.take(unused.to_opaque(), sender.to_opaque())?;
        Ok(Self { sender, receiver })
    }

    /// Makes ends of channels of two sockets. What travels on them is of the types that the caller says.
    pub fn pack<R, S>(
        &self,
        receive: BorrowedFd<'_>,
        send: BorrowedFd<'_>,
    ) -> io::Result<(IpcReceiver<R>, IpcSender<S>)>
    where
        R: for<'de> Deserialize<'de> + Serialize,
        S: for<'de> Deserialize<'de> + Serialize,
    {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let sockets = [receive, send];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::Error::other("no room for two sockets"));
        }
        send_packet(&self.sender, &ENDS, &mut ancillary)?;
        let Ends { receiver, sender } = self
            .receiver
            .try_recv()
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok((receiver.to(), sender.to()))
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
        receive(self.receive.as_fd(), buffer, RecvFlags::DONTWAIT)
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
            match send_packet(&self.send, payload, &mut SendAncillaryBuffer::default()) {
                Ok(()) => {
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

    /// How many bytes are kept for a peer that has not read what it was sent before.
    pub fn outgoing_length(&self) -> usize {
        self.outgoing_length
    }

    /// Whether something is kept for a peer that has not read what it was sent before.
    pub fn is_blocked(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

/// A socket from which frames come, for a thread that does nothing else.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<OwnedFd>,
    buffer: Vec<u8>,
}

/// Ends what a [`Receiver`] receives, when it is dropped.
#[derive(Debug)]
pub struct ReceiverEnd(Arc<OwnedFd>);

impl Receiver {
    /// Takes the socket of a channel's receiving end.
    pub fn new(socket: OwnedFd) -> (Self, ReceiverEnd) {
        let socket = Arc::new(socket);
        let receiver = Self {
            socket: socket.clone(),
            buffer: vec![0; MAX_PACKET_LENGTH],
        };
        (receiver, ReceiverEnd(socket))
    }

    /// Waits for the next frame. [`Received::Nothing`] only says that a signal came.
    pub fn receive(&mut self) -> Received {
        receive(self.socket.as_fd(), &mut self.buffer, RecvFlags::empty())
    }
}

impl Drop for ReceiverEnd {
    fn drop(&mut self) {
        // It cannot fail with a socket of this kind; somebody else may still have the other end.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: RecvFlags) -> Received {
    // Without room for file descriptors, the kernel does not let any in.
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut RecvAncillaryBuffer::default(),
        flags,
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

/// Sends a payload in one packet, or nothing. Nothing blocks.
fn send_packet(
    socket: &OwnedFd,
    payload: &[u8],
    ancillary: &mut SendAncillaryBuffer<'_, '_, '_>,
) -> Result<(), Errno> {
    let lengths = [HEADER_LENGTH + payload.len(), payload.len()];
    let [packet, total] = lengths.map(usize::to_ne_bytes);
    let parts = [
        IoSlice::new(&packet),
        IoSlice::new(&total),
        IoSlice::new(payload),
    ];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &parts, ancillary, flags).map(drop)
}

/// Whether a file descriptor is a socket.
pub fn is_socket(descriptor: impl AsFd) -> bool {
    rustix::net::sockopt::socket_type(descriptor).is_ok()
}

/// The payload of a packet, if it is a whole message.
pub fn payload(packet: &[u8]) -> Option<&[u8]> {
    let (length, rest) = packet.split_first_chunk()?;
    let (total, payload) = rest.split_first_chunk()?;
    let is_whole = usize::from_ne_bytes(*length) == packet.len()
        && usize::from_ne_bytes(*total) == payload.len();
    is_whole.then_some(payload)
}

/// The frame in a packet.
fn parse(packet: &[u8]) -> Option<Frame> {
    match postcard::take_from_bytes(payload(packet)?) {
        Ok((frame, [])) => Some(frame),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use proptest::prelude::*;

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
    fn channels_are_taken_apart_and_put_together() {
        let carrier = Carrier::new().unwrap();
        let packer = Packer::new(&carrier).unwrap();
        let (sender, theirs) = ipc::channel().unwrap();
        let (ours, receiver) = ipc::channel().unwrap();
        let wire = carrier.unpack(theirs, ours).unwrap();
        let (theirs, ours) = packer
            .pack::<Frame, Frame>(wire.receiving_end(), wire.sending_end())
            .unwrap();
        drop(wire);
        let frame = Frame::from_bytes(vec![7; 70_000]);
        sender.send(frame.clone()).unwrap();
        assert_eq!(theirs.recv().unwrap(), frame);
        ours.send(frame.clone()).unwrap();
        assert_eq!(receiver.recv().unwrap(), frame);
        drop((theirs, ours));
        assert!(receiver.recv().is_err());
        assert!(sender.send(frame).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_socket(&file));
    }

    #[test]
    fn a_thread_that_receives_can_be_ended() {
        let carrier = Carrier::new().unwrap();
        let (sender, theirs) = ipc::channel::<Frame>().unwrap();
        let (ours, _unused) = ipc::channel().unwrap();
        let wire = carrier.unpack(theirs, ours).unwrap();
        let (mut receiver, end) = Receiver::new(wire.receive);
        let frame = Frame::from_bytes(vec![1]);
        sender.send(frame.clone()).unwrap();
        assert_eq!(receiver.receive(), Received::Frame(frame));
        let thread = std::thread::spawn(move || receiver.receive());
        drop(end);
        assert_eq!(thread.join().unwrap(), Received::Closed);
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
