/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Packets on the socket of a port or of a worker.

use std::thread_local;

use ipc_channel::ipc;
use rustix::io::Errno;
use rustix::net::SendFlags;
use token_traits::Frame;
use token_traits::transport::{Carrier, MAX_PACKET_LENGTH, Received, Wire};

const HEADER_LENGTH: usize = 2 * size_of::<usize>();

/// A wire, and one whose socket leads to it.
struct Pair {
    wire: Wire,
    peer: Wire,
    buffer: Vec<u8>,
}

thread_local! {
    /// Packets leave nothing behind, so one pair does for all of them.
    static PAIR: std::cell::RefCell<Pair> = connect().unwrap_or_else(|error| panic!("{error}")).into();
}

fn connect() -> std::io::Result<Pair> {
    let carrier = Carrier::new()?;
    let (sender, theirs) = ipc::channel()?;
    let (ours, _) = ipc::channel()?;
    let (_, unused) = ipc::channel()?;
    Ok(Pair {
        wire: carrier.unpack(theirs, ours)?,
        peer: carrier.unpack(unused, sender)?,
        buffer: vec![0; MAX_PACKET_LENGTH],
    })
}

/// A packet that a peer writes is taken for a frame if it is one, and otherwise is broken. It is forgotten afterwards. A
/// frame arrives as it was sent.
///
/// Input: how to write the header (1 byte: bit 1 a true length, bit 2 a true total), then the packet behind what this
/// writes.
pub fn run(bytes: &[u8]) {
    let Some((&options, rest)) = bytes.split_first() else {
        return;
    };
    PAIR.with_borrow_mut(|pair| {
        let packet = packet(options, rest);
        send(&pair.peer, &packet);
        let received = pair.wire.receive(&mut pair.buffer);
        assert_eq!(received, expected(&packet));
        assert_eq!(pair.wire.receive(&mut pair.buffer), Received::Nothing);

        let frame = Frame::from_bytes(rest.to_vec());
        assert_eq!(pair.peer.send(&frame), Ok(()));
        let received = pair.wire.receive(&mut pair.buffer);
        assert_eq!(received, Received::Frame(frame));
    });
}

fn packet(options: u8, rest: &[u8]) -> Vec<u8> {
    let has_length = options & 1 != 0;
    let has_total = options & 2 != 0;
    let header = (usize::from(has_length) + usize::from(has_total)) * size_of::<usize>();
    let mut packet = Vec::new();
    if has_length {
        packet.extend((header + rest.len()).to_ne_bytes());
    }
    if has_total {
        packet.extend(rest.len().to_ne_bytes());
    }
    packet.extend(rest);
    packet
}

/// What the packet is, read in another way.
fn expected(packet: &[u8]) -> Received {
    let number = |at: usize| {
        let bytes = packet.get(at..at + size_of::<usize>())?;
        Some(usize::from_ne_bytes(bytes.try_into().ok()?))
    };
    if number(0) != Some(packet.len())
        || number(size_of::<usize>()) != packet.len().checked_sub(HEADER_LENGTH)
    {
        return Received::Broken;
    }
    let payload = packet.get(HEADER_LENGTH..).unwrap_or_default();
    match postcard::take_from_bytes::<Frame>(payload) {
        Ok((frame, [])) => Received::Frame(frame),
        _ => Received::Broken,
    }
}

fn send(peer: &Wire, packet: &[u8]) {
    // A packet without a byte is how a socket says that it has closed.
    let packet = if packet.is_empty() { &[0] } else { packet };
    loop {
        match rustix::net::send(peer.sending_end(), packet, SendFlags::NOSIGNAL) {
            Ok(_) => return,
            Err(Errno::INTR) => {}
            Err(error) => panic!("cannot send a packet: {error}"),
        }
    }
}
