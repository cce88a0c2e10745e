/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a peer may send that is up to no good, and what comes of it.

use super::outgoing::send_with;
use super::{
    channel, OsIpcChannel, OsIpcReceiver, OsIpcReceiverSet, OsIpcSelectionResult, OsIpcSender,
};
use crate::ipc::{self, IpcMessage, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory};
use crate::router::RouterProxy;
use crate::{IpcError, TryRecvError};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any packet.
const LONG: usize = 1 << 20;

/// How long what is not held up may take.
const SOON: Duration = Duration::from_secs(5);

fn fd_of(sender: &OsIpcSender) -> RawFd {
    sender.fd.0
}

/// Sends a packet with what descriptors there are.
fn send_raw(fd: RawFd, packet: &[u8], descriptors: &[RawFd]) {
    let length = mem::size_of_val(descriptors);
    let mut control = vec![0u64; 256];
    let mut data = libc::iovec {
        iov_base: packet.as_ptr() as *mut libc::c_void,
        iov_len: packet.len(),
    };
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &mut data;
        header.msg_iovlen = 1;
        if length > 0 {
            header.msg_control = control.as_mut_ptr() as *mut libc::c_void;
            header.msg_controllen = libc::CMSG_SPACE(length as u32) as _;
            let rights = libc::CMSG_FIRSTHDR(&header);
            (*rights).cmsg_level = libc::SOL_SOCKET;
            (*rights).cmsg_type = libc::SCM_RIGHTS;
            (*rights).cmsg_len = libc::CMSG_LEN(length as u32) as _;
            ptr::copy_nonoverlapping(
                descriptors.as_ptr(),
                libc::CMSG_DATA(rights) as *mut RawFd,
                descriptors.len(),
            );
        }
        let sent = libc::sendmsg(fd, &header, 0);
        assert_eq!(sent, packet.len() as isize);
    }
}

fn packet(packet_length: usize, length: usize, data: &[u8]) -> Vec<u8> {
    [
        &packet_length.to_ne_bytes()[..],
        &length.to_ne_bytes()[..],
        data,
    ]
    .concat()
}

/// As it should be.
fn whole(data: &[u8]) -> Vec<u8> {
    packet(16 + data.len(), data.len(), data)
}

/// The begin of a message that goes on elsewhere.
fn begin(length: usize, data: &[u8]) -> Vec<u8> {
    packet(16 + data.len(), length, data)
}

/// A receiver, and a way to send it anything.
fn typed<T: Serialize + for<'de> Deserialize<'de>>() -> (OsIpcSender, IpcReceiver<T>) {
    let (server, name) = IpcOneShotServer::<u8>::new().unwrap();
    let sender = OsIpcSender::connect(name).unwrap();
    send_raw(fd_of(&sender), &whole(&[0]), &[]);
    let (receiver, _) = server.accept().unwrap();
    (sender, receiver.to_opaque().to())
}

fn assert_malformed<T: std::fmt::Debug>(result: Result<T, IpcError>) {
    assert!(
        matches!(result, Err(IpcError::SerializationError(_))),
        "{result:?}"
    );
}

/// That the packet is refused, however it is received, and what comes after it is not.
fn assert_refused(packet: &[u8], descriptors: &[RawFd]) {
    let (sender, receiver) = typed::<u8>();
    send_raw(fd_of(&sender), packet, descriptors);
    send_raw(fd_of(&sender), &whole(&[7]), &[]);
    assert_malformed(receiver.recv());
    assert_eq!(receiver.recv().unwrap(), 7);

    let (sender, receiver) = channel().unwrap();
    let mut set = OsIpcReceiverSet::new().unwrap();
    set.add(receiver).unwrap();
    send_raw(fd_of(&sender), packet, descriptors);
    send_raw(fd_of(&sender), &whole(&[7]), &[]);
    let mut messages = Vec::new();
    while messages.len() < 2 {
        messages.extend(
            set.select()
                .unwrap()
                .into_iter()
                .map(|result| result.unwrap().1),
        );
    }
    let decoded: Vec<_> = messages
        .into_iter()
        .map(|message| message.to::<u8>().ok())
        .collect();
    assert_eq!(decoded, [None, Some(7)]);
}

fn memory(length: usize, seals: i32) -> OwnedFd {
    unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let fd = OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), flags));
        assert_eq!(libc::ftruncate(fd.as_raw_fd(), length as i64), 0);
        if seals != 0 {
            assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        }
        fd
    }
}

fn fill(fd: &OwnedFd, length: usize) {
    let ones = vec![1u8; length];
    let written = unsafe { libc::pwrite(fd.as_raw_fd(), ones.as_ptr().cast(), length, 0) };
    assert_eq!(written, length as isize);
}

#[test]
fn lengths_that_are_not_so() {
    assert_refused(&packet(17, 0, &[7]), &[]);
    assert_refused(&packet(18, 1, &[7]), &[]);
    assert_refused(&packet(0, 1, &[7]), &[]);
    assert_refused(&packet(usize::MAX, 1, &[7]), &[]);
    for length in 0..16 {
        assert_refused(&vec![1; length], &[]);
    }
}

#[test]
fn a_length_that_nobody_has_the_memory_for() {
    let (_tx, rest) = channel().unwrap();
    for length in [usize::MAX, isize::MAX as usize, (1 << 30) + 1] {
        assert_refused(&begin(length, &[7]), &[rest.fd.get()]);
    }
    // Where it may be that long, it costs nothing before it is there.
    let (sender, receiver) = typed::<u8>();
    for _ in 0..100 {
        send_raw(fd_of(&sender), &begin(1 << 30, &[7]), &[rest.fd.get()]);
    }
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
    let unfinished = receiver.to_opaque();
    let rss = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = rss.split(' ').nth(5).unwrap().parse().unwrap();
    assert!(pages * 4096 < 4 << 30, "{pages} pages of data");
    drop(unfinished);
}

#[test]
fn no_channel_for_the_rest() {
    assert_refused(&begin(LONG, &[7]), &[]);
    let zero = File::open("/dev/zero").unwrap();
    assert_refused(&begin(LONG, &[7]), &[zero.as_raw_fd()]);
}

#[test]
fn descriptors_that_are_no_channels() {
    let (stream, _stream) = UnixStream::pair().unwrap();
    let (datagram, _datagram) = UnixDatagram::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for descriptor in [
        stream.as_raw_fd(),
        datagram.as_raw_fd(),
        listener.as_raw_fd(),
    ] {
        assert_refused(&whole(&[7]), &[descriptor]);
    }
}

#[test]
fn descriptors_that_are_no_memory() {
    let (pipe, _pipe) = std::io::pipe().unwrap();
    let file = File::open("/proc/self/exe").unwrap();
    let folder = File::open("/").unwrap();
    let zero = File::open("/dev/zero").unwrap();
    for descriptor in [
        pipe.as_raw_fd(),
        file.as_raw_fd(),
        folder.as_raw_fd(),
        zero.as_raw_fd(),
    ] {
        assert_refused(&whole(&[7]), &[descriptor]);
    }
}

#[test]
fn memory_that_can_shrink() {
    let memory = memory(4096, 0);
    fill(&memory, 4096);
    assert_refused(&whole(&[0]), &[memory.as_raw_fd()]);
}

#[test]
fn memory_that_is_not_there() {
    assert_refused(&whole(&[0]), &[memory(0, libc::F_SEAL_SHRINK).as_raw_fd()]);
    let sparse = memory(1 << 40, libc::F_SEAL_SHRINK);
    assert_refused(&whole(&[0]), &[sparse.as_raw_fd()]);
}

#[test]
fn memory_that_cannot_be_mapped() {
    let memory = memory(4096, libc::F_SEAL_SHRINK);
    fill(&memory, 4096);
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let read_only = File::open(path).unwrap();
    assert_refused(&whole(&[0]), &[read_only.as_raw_fd()]);
}

#[test]
fn memory_that_is_as_it_should_be() {
    let memory = memory(4096, libc::F_SEAL_SHRINK);
    fill(&memory, 4096);
    let (sender, receiver) = typed::<IpcSharedMemory>();
    send_raw(fd_of(&sender), &whole(&[0]), &[memory.as_raw_fd()]);
    let received = receiver.recv().unwrap();
    assert_eq!(unsafe { libc::ftruncate(memory.as_raw_fd(), 0) }, -1);
    assert_eq!(&received[..], &[1; 4096]);
}

#[test]
fn descriptors_by_the_hundred() {
    for count in [65, 253] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (sender, receiver) = typed::<u8>();
        send_raw(
            fd_of(&sender),
            &whole(&[7]),
            &vec![writer.as_raw_fd(); count],
        );
        drop(writer);
        assert_malformed(receiver.recv());
        // None of them is open any more.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn channels_that_nobody_asked_for() {
    let (other, rest) = channel().unwrap();
    let (sender, receiver) = typed::<u8>();
    send_raw(fd_of(&sender), &whole(&[7]), &[rest.fd.get()]);
    drop(rest);
    assert_eq!(receiver.recv().unwrap(), 7);
    // It has been closed.
    assert!(other.send(&[1], vec![], vec![]).is_err());
}

#[test]
fn channels_that_are_not_there() {
    let (channel, _other) = channel().unwrap();
    let (sender, receiver) = typed::<(IpcSender<u8>, IpcReceiver<u8>)>();
    let fd = fd_of(&channel);
    for (indices, descriptors) in [
        ([0, 1], &[][..]),
        ([0, 1], &[fd][..]),
        ([0, 0], &[fd, fd][..]),
        ([1, 1], &[fd, fd][..]),
        ([0, 100], &[fd, fd][..]),
    ] {
        send_raw(fd_of(&sender), &whole(&indices), descriptors);
        assert_malformed(receiver.recv());
    }
    send_raw(fd_of(&sender), &whole(&[0, 1]), &[fd, fd]);
    receiver.recv().unwrap();
}

/// `Box`es in `Box`es.
#[derive(Debug, Deserialize, Serialize)]
enum Nested {
    Deeper(Box<Nested>),
    End,
}

#[test]
fn nesting_without_an_end() {
    let (sender, receiver) = ipc::bytes_channel().unwrap();
    let deep = vec![0; 8 << 20];
    thread::spawn(move || sender.send(&deep).unwrap());
    let deep = receiver.recv().unwrap();
    assert!(IpcMessage::from_data(deep).to::<Nested>().is_err());
    let shallow = [vec![0; 100], vec![1]].concat();
    IpcMessage::from_data(shallow).to::<Nested>().unwrap();
}

/// What a set has received from whom, until there are `count` messages.
fn received(set: &mut OsIpcReceiverSet, count: usize) -> Vec<(u64, Vec<u8>)> {
    let until = Instant::now() + SOON;
    let mut received = Vec::new();
    while received.len() < count {
        assert!(Instant::now() < until, "{received:?}");
        let Ok(results) = set.try_select_timeout(Duration::from_millis(100)) else {
            continue;
        };
        for result in results {
            if let OsIpcSelectionResult::DataReceived(id, message) = result {
                received.push((id, message.data));
            }
        }
    }
    received
}

#[test]
fn the_rest_never_comes() {
    let (sender, receiver) = channel().unwrap();
    let (others_sender, others_receiver) = channel().unwrap();
    let (_rest_sender, rest) = channel().unwrap();
    let mut set = OsIpcReceiverSet::new().unwrap();
    let id = set.add(receiver).unwrap();
    let others_id = set.add(others_receiver).unwrap();
    send_raw(fd_of(&sender), &begin(LONG, &[7]), &[rest.fd.get()]);
    others_sender.send(&[1], vec![], vec![]).unwrap();
    assert_eq!(received(&mut set, 1), [(others_id, vec![1])]);
    // Nor are other senders of the same channel held up.
    sender.send(&[2], vec![], vec![]).unwrap();
    assert_eq!(received(&mut set, 1), [(id, vec![2])]);
}

#[test]
fn the_rest_never_comes_to_one_that_waits() {
    let (sender, receiver) = channel().unwrap();
    let (_rest_sender, rest) = channel().unwrap();
    send_raw(fd_of(&sender), &begin(LONG, &[7]), &[rest.fd.get()]);
    assert!(receiver.try_recv().is_err());
    let begun = Instant::now();
    assert!(receiver
        .try_recv_timeout(Duration::from_millis(50))
        .is_err());
    assert!(begun.elapsed() < SOON);
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        sender.send(&[2], vec![], vec![]).unwrap();
    });
    assert_eq!(receiver.recv().unwrap().data, [2]);
    late.join().unwrap();
}

#[test]
fn the_rest_comes_drop_by_drop() {
    let (sender, receiver) = channel().unwrap();
    let (rest_sender, rest) = channel().unwrap();
    let mut set = OsIpcReceiverSet::new().unwrap();
    set.add(receiver).unwrap();
    send_raw(fd_of(&sender), &begin(100, &[0]), &[rest.fd.get()]);
    drop(rest);
    let drops = thread::spawn(move || {
        for drop in 1..100 {
            assert!(matches!(
                unsafe { libc::send(fd_of(&rest_sender), [drop].as_ptr().cast(), 1, 0) },
                1
            ));
            thread::sleep(Duration::from_millis(1));
        }
    });
    let data: Vec<u8> = (0..100).collect();
    assert_eq!(received(&mut set, 1), [(0, data)]);
    drops.join().unwrap();
}

#[test]
fn the_rest_is_more_than_was_announced() {
    let (sender, receiver) = channel().unwrap();
    let (rest_sender, rest) = channel().unwrap();
    send_raw(fd_of(&sender), &begin(3, &[0]), &[rest.fd.get()]);
    send_raw(fd_of(&rest_sender), &[1; 100], &[]);
    assert_eq!(receiver.recv().unwrap().data, [0, 1, 1]);
}

#[test]
fn messages_that_are_begun_without_an_end() {
    let (sender, receiver) = channel().unwrap();
    let mut set = OsIpcReceiverSet::new().unwrap();
    let id = set.add(receiver).unwrap();
    for _ in 0..200 {
        let (_rest_sender, rest) = channel().unwrap();
        let rest_sender = _rest_sender.clone();
        mem::forget(rest_sender);
        send_raw(fd_of(&sender), &begin(LONG, &[7]), &[rest.fd.get()]);
        let _ = set.try_select();
    }
    let long = vec![3; LONG];
    let (clone, expected) = (sender.clone(), long.clone());
    let sending = thread::spawn(move || clone.send(&long, vec![], vec![]).unwrap());
    assert_eq!(received(&mut set, 1), [(id, expected)]);
    sending.join().unwrap();
}

#[test]
fn a_sender_that_dies_in_the_middle() {
    let (sender, receiver) = channel().unwrap();
    let mut set = OsIpcReceiverSet::new().unwrap();
    let id = set.add(receiver).unwrap();
    let (rest_sender, rest) = channel().unwrap();
    send_raw(fd_of(&sender), &begin(LONG, &[7]), &[rest.fd.get()]);
    drop(rest);
    assert!(set.try_select_timeout(Duration::from_millis(50)).is_err());
    drop(rest_sender);
    sender.send(&[2], vec![], vec![]).unwrap();
    assert_eq!(received(&mut set, 1), [(id, vec![2])]);
    drop(sender);
    assert!(matches!(
        set.select().unwrap()[..],
        [OsIpcSelectionResult::ChannelClosed(_)]
    ));
}

#[test]
fn long_and_short_messages_stay_in_order() {
    let sizes = [10, LONG, 20, 3 * LONG, LONG, 30, 0, LONG];
    let send = move |sender: OsIpcSender| {
        thread::spawn(move || {
            for _ in 0..5 {
                for size in sizes {
                    sender.send(&vec![1; size], vec![], vec![]).unwrap();
                }
            }
        })
    };
    let expected: Vec<_> = sizes.into_iter().cycle().take(40).collect();

    let (sender, receiver) = channel().unwrap();
    let sending = send(sender);
    let lengths: Vec<_> = (0..40)
        .map(|_| receiver.recv().unwrap().data.len())
        .collect();
    assert_eq!(lengths, expected);
    sending.join().unwrap();

    let (sender, receiver) = channel().unwrap();
    let mut set = OsIpcReceiverSet::new().unwrap();
    set.add(receiver).unwrap();
    let sending = send(sender);
    let lengths: Vec<_> = received(&mut set, 40)
        .into_iter()
        .map(|(_, data)| data.len())
        .collect();
    assert_eq!(lengths, expected);
    sending.join().unwrap();
}

#[test]
fn a_flood_does_not_hold_up_others() {
    let (sender, receiver) = channel().unwrap();
    let (others_sender, others_receiver) = channel().unwrap();
    let mut set = OsIpcReceiverSet::new().unwrap();
    set.add(receiver).unwrap();
    let others_id = set.add(others_receiver).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let flood = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) && sender.send(&[7; 100], vec![], vec![]).is_ok() {}
    });
    let begun = Instant::now();
    for round in 0..10 {
        others_sender.send(&[round], vec![], vec![]).unwrap();
        'received: loop {
            let results = set.select().unwrap();
            assert!(results.len() <= 2 * super::incoming::PACKETS_PER_TURN);
            for result in results {
                if result.unwrap().0 == others_id {
                    break 'received;
                }
            }
        }
    }
    assert!(begun.elapsed() < SOON);
    stop.store(true, Ordering::Relaxed);
    drop(set);
    flood.join().unwrap();
}

#[test]
fn a_receiver_that_does_not_receive() {
    let (sender, receiver) = channel().unwrap();
    let (others_sender, others_receiver) = channel().unwrap();
    let begun = Instant::now();
    let size = |index: usize| if index % 100 == 99 { LONG } else { index };
    for index in 0..1000 {
        let (channel, other) = channel().unwrap();
        other.consume();
        let data = vec![1; size(index)];
        let channels = vec![OsIpcChannel::Sender(channel)];
        send_with(&sender, &data, channels, vec![], false).unwrap();
    }
    send_with(&others_sender, &[1], vec![], vec![], false).unwrap();
    assert!(begun.elapsed() < SOON);
    assert_eq!(others_receiver.recv().unwrap().data, [1]);
    // It gets everything in order, when it wants to.
    for index in 0..1000 {
        let message = receiver.recv().unwrap();
        assert_eq!(message.data.len(), size(index));
        assert_eq!(message.os_ipc_channels.len(), 1);
    }
    assert!(matches!(receiver.try_recv(), Err(error) if !error.channel_is_closed()));
}

#[test]
fn a_receiver_that_never_receives() {
    let (sender, receiver) = channel().unwrap();
    let sent = (0..100_000)
        .take_while(|_| send_with(&sender, &[1], vec![], vec![], false).is_ok())
        .count();
    assert!((65_536..70_000).contains(&sent), "{sent}");
    drop(receiver);
    let until = Instant::now() + SOON;
    while send_with(&sender, &[1], vec![], vec![], false).is_err_and(|error| error.would_block()) {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_receiver_that_is_no_good() {
    let (_other, listener) = channel().unwrap();
    // Not connected, so it can only fail.
    let unconnected = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0) };
    let mut set = OsIpcReceiverSet::new().unwrap();
    set.add(listener).unwrap();
    set.add(OsIpcReceiver::from_fd(unconnected)).unwrap();
    assert!(matches!(
        set.select().unwrap()[..],
        [OsIpcSelectionResult::ChannelClosed(1)]
    ));
    assert!(set.add(OsIpcReceiver::from_fd(-1)).is_err());
}

#[test]
fn a_receiver_that_does_not_wait() {
    let (sender, receiver) = channel().unwrap();
    let flags = unsafe { libc::fcntl(receiver.fd.get(), libc::F_GETFL) };
    let set = unsafe { libc::fcntl(receiver.fd.get(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    assert_eq!(set, 0);
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        sender.send(&[2], vec![], vec![]).unwrap();
    });
    assert_eq!(receiver.recv().unwrap().data, [2]);
    late.join().unwrap();
}

#[test]
fn a_router_goes_on() {
    let router = RouterProxy::new();
    let (sender, receiver) = typed::<u8>();
    let routed = router.route_ipc_receiver_to_new_crossbeam_receiver(receiver);
    let (panics, receiver) = ipc::channel::<u8>().unwrap();
    router.add_typed_route(receiver, Box::new(|_| panic!("as it is meant to")));
    send_raw(fd_of(&sender), &[1, 2, 3], &[]);
    send_raw(fd_of(&sender), &whole(&[]), &[]);
    panics.send(1).unwrap();
    panics.send(2).unwrap();
    send_raw(fd_of(&sender), &whole(&[7]), &[]);
    assert_eq!(routed.recv_timeout(SOON).unwrap(), 7);
}

#[test]
fn bytes_that_are_no_message() {
    let (carrier_sender, carrier) = typed::<ipc::IpcBytesReceiver>();
    let (sender, bytes) = channel().unwrap();
    send_raw(fd_of(&carrier_sender), &whole(&[0]), &[bytes.fd.get()]);
    let receiver = carrier.recv().unwrap();
    send_raw(fd_of(&sender), &[1, 2, 3], &[]);
    assert_malformed(receiver.recv());
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
}

#[test]
fn a_stranger_connects_first() {
    let (mut server, name) = IpcOneShotServer::<u8>::new().unwrap();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let stranger = IpcSender::<u8>::connect(name.clone()).unwrap();
    stranger.send(1).unwrap();
    let begun = Instant::now();
    let accepted = server.accept_from(child.id(), Duration::from_millis(200));
    assert!(matches!(accepted, Err(TryRecvError::Empty)));
    assert!(begun.elapsed() < SOON);
    assert!(stranger.send(2).is_err());
    child.kill().unwrap();
    child.wait().unwrap();

    let expected = IpcSender::<u8>::connect(name).unwrap();
    expected.send(3).unwrap();
    let (_receiver, message) = server
        .accept_from(std::process::id(), Duration::from_secs(5))
        .unwrap();
    assert_eq!(message, 3);
}

#[test]
fn one_that_connects_and_says_nothing() {
    let (mut server, name) = IpcOneShotServer::<u8>::new().unwrap();
    let silent = IpcSender::<u8>::connect(name).unwrap();
    let begun = Instant::now();
    let accepted = server.accept_from(std::process::id(), Duration::from_millis(200));
    assert!(matches!(accepted, Err(TryRecvError::Empty)));
    assert!(begun.elapsed() < SOON);
    // It may still speak.
    silent.send(1).unwrap();
    assert_eq!(server.accept_from(std::process::id(), SOON).unwrap().1, 1);
}
