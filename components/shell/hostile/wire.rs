/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Packets on the sockets of channels, as no honest sender makes them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use embedder_traits::{JSValue, JavaScriptEvaluationId};
use ipc_channel::ipc::{self, IpcSender};
use paint_api::PaintMessage;
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use servo_base::generic_channel::{self, GenericCallback};
use servo_base::id::WebViewId;
use servo_constellation::NewScriptEventLoopProcessInfo;
use servo_constellation_traits::ScriptToConstellationMessage;

/// How many descriptors the kernel takes at once.
const MAX_DESCRIPTORS: usize = 253;

/// The channels that all content processes share, and the own ones to the main process.
static CHANNELS: OnceLock<Vec<OwnedFd>> = OnceLock::new();

/// Says that the process is about to end.
static LIFELINE: OnceLock<OwnedFd> = OnceLock::new();

/// To what paints.
static PAINT: Mutex<Option<GenericCallback<PaintMessage>>> = Mutex::new(None);

/// What has to stay open for a while.
static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Takes the channels to the main process.
pub fn prepare(info: &NewScriptEventLoopProcessInfo) {
    let state = &info.initial_script_state;
    let _ = CHANNELS.set(sockets((
        &state.script_to_constellation_sender,
        &state.script_to_embedder_sender,
        &state.namespace_request_sender,
        &state.resource_threads,
        &state.storage_threads,
        &state.system_font_service,
        &state.cross_process_paint_api,
        &info.bhm_to_constellation_sender,
    )));
    // The same on the wire.
    let (mirror_sender, mirror_receiver) = ipc::channel().expect("a channel");
    mirror_sender
        .send(state.cross_process_paint_api.clone())
        .expect("the own process");
    let paint: GenericCallback<PaintMessage> = mirror_receiver
        .to_opaque()
        .to()
        .recv()
        .expect("the same form");
    *PAINT.lock().unwrap_or_else(PoisonError::into_inner) = Some(paint);
    let lifeline = sockets(&info.lifeline_sender).pop();
    let _ = LIFELINE.set(lifeline.expect("a lifeline"));
}

fn hold(descriptor: OwnedFd) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.push(descriptor);
}

/// The sockets of the channels in a value, which come with it when it is sent.
pub fn sockets(value: impl Serialize) -> Vec<OwnedFd> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let server = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket");
    rustix::net::bind(&server, &SocketAddrUnix::new(&path).expect("a path")).expect("a name");
    rustix::net::listen(&server, 1).expect("a server");
    let sender: IpcSender<_> =
        IpcSender::connect(path.to_string_lossy().into_owned()).expect("the server");
    let connection = rustix::net::accept(&server).expect("a connection");
    sender.send(value).expect("the own process");

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &connection,
        &mut [IoSliceMut::new(&mut vec![0; 1 << 20])],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("the message");
    ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect()
}

/// Sends a packet, if there is room.
fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, flags).is_ok()
}

/// A message's first packet, with any lengths in its header.
fn packet(packet_length: usize, length: usize, data: &[u8]) -> Vec<u8> {
    [
        &packet_length.to_ne_bytes()[..],
        &length.to_ne_bytes()[..],
        data,
    ]
    .concat()
}

/// The begin of a message that is so long in all.
fn begin(length: usize, data: &[u8]) -> Vec<u8> {
    packet(16 + data.len(), length, data)
}

fn whole(data: &[u8]) -> Vec<u8> {
    begin(data.len(), data)
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("sockets")
}

/// What no type of message begins with.
const NOTHING: [u8; 16] = [0xFF; 16];

/// Plays an attack on one socket.
fn attack(socket: BorrowedFd<'_>, name: &str) {
    match name {
        "bytes" => {
            for length in [0, 1, 7, 8, 15, 16, 17, 100, 100_000] {
                send(socket, &vec![0xA5; length], &[]);
                send(socket, &vec![0; length], &[]);
            }
            for data in [&[][..], &NOTHING, &[0xFF; 1000]] {
                send(socket, &whole(data), &[]);
            }
        }
        "lengths" => {
            let (rest, _end) = pair(SocketType::SEQPACKET);
            for length in [usize::MAX, isize::MAX as usize, 1 << 40, (1 << 30) + 1] {
                send(socket, &begin(length, &NOTHING), &[rest.as_fd()]);
                send(socket, &begin(length, &NOTHING), &[]);
            }
            for length in [0, 1, 15, 17, usize::MAX] {
                send(socket, &packet(length, 16, &NOTHING), &[]);
                send(socket, &packet(32, length, &NOTHING), &[]);
            }
        }
        "unfinished" => {
            for _ in 0..40 {
                let (rest, end) = pair(SocketType::SEQPACKET);
                send(socket, &begin(1 << 30, &NOTHING), &[rest.as_fd()]);
                send(end.as_fd(), &[1], &[]);
                hold(end);
            }
        }
        "descriptors" => {
            let (packets, _end) = pair(SocketType::SEQPACKET);
            let (stream, _end) = pair(SocketType::STREAM);
            let (datagram, _end) = pair(SocketType::DGRAM);
            let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
            let (pipe, _end) = rustix::pipe::pipe().expect("a pipe");
            let zero = std::fs::File::open("/dev/zero").expect("a device");
            for descriptor in [
                packets.as_fd(),
                stream.as_fd(),
                datagram.as_fd(),
                listener.as_fd(),
                pipe.as_fd(),
                zero.as_fd(),
            ] {
                for count in [1, 64, 65, MAX_DESCRIPTORS] {
                    send(socket, &whole(&NOTHING), &vec![descriptor; count]);
                    send(socket, &begin(1 << 20, &NOTHING), &vec![descriptor; count]);
                }
            }
        }
        "memory" => {
            let memory =
                || rustix::fs::memfd_create("memory", MemfdFlags::ALLOW_SEALING).expect("memory");
            // It shrinks when it has been received.
            let shrinks = memory();
            rustix::io::write(&shrinks, &[1; 4096]).expect("memory");
            // Nobody has as much as it says.
            let sparse = memory();
            rustix::fs::ftruncate(&sparse, 1 << 45).expect("memory");
            let empty = memory();
            for descriptor in [&shrinks, &sparse, &empty] {
                send(socket, &whole(&NOTHING), &[descriptor.as_fd()]);
                send(socket, &whole(&[0]), &[descriptor.as_fd()]);
            }
            rustix::fs::ftruncate(&shrinks, 0).expect("memory");
        }
        "flood" => {
            for _ in 0..20_000 {
                // As much as is taken.
                let packet = whole(&NOTHING);
                if rustix::net::send(socket, &packet, SendFlags::NOSIGNAL).is_err() {
                    break;
                }
            }
        }
        _ => panic!("no such attack"),
    }
}

/// Plays an attack on every channel that this process was given.
pub fn attack_channels(name: &str) {
    let channels = CHANNELS.get().expect("prepared before");
    for channel in channels {
        attack(channel.as_fd(), name);
    }
    eprintln!("hostile: {} channels attacked", channels.len());
}

/// Plays an attack on a token port.
pub fn attack_port(requests: impl Serialize, name: &str) {
    for channel in sockets(requests) {
        attack(channel.as_fd(), name);
    }
}

/// A sender whose receiver's queue is full, and stays so.
pub fn full_sender<T>() -> IpcSender<T>
where
    T: for<'de> Deserialize<'de> + Serialize,
{
    let (sender, receiver) = ipc::channel::<T>().expect("a channel");
    for socket in sockets(&sender) {
        while send(socket.as_fd(), &whole(&[0xFF; 4096]), &[]) {}
        while send(socket.as_fd(), &whole(&[0xFF]), &[]) {}
    }
    for socket in sockets(receiver) {
        hold(socket);
    }
    sender
}

/// Announces a display list, and does not send it.
pub fn announce_display_list(webview_id: WebViewId) {
    let (info, display_list_info_receiver) = generic_channel::channel().expect("a channel");
    let (data, display_list_data_receiver) = generic_channel::channel().expect("a channel");
    // For as long as this process is there.
    std::mem::forget((info, data));
    let paint = PAINT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let sent = paint
        .expect("prepared before")
        .send(PaintMessage::SendDisplayList {
            webview_id,
            display_list_descriptor: Default::default(),
            display_list_info_receiver,
            display_list_data_receiver,
        });
    eprintln!("hostile: announced, {}", sent.is_ok());
}

/// Says that this process ends, again and again, and goes on.
pub fn speak_on_lifeline() {
    let lifeline = LIFELINE.get().expect("prepared before");
    for _ in 0..10 {
        send(lifeline.as_fd(), &whole(&[]), &[]);
    }
    send(lifeline.as_fd(), &[1], &[]);
}

/// A result of JavaScript, nested so deep that whoever decodes it needs more stack than there is.
pub fn send_nested(send: impl FnOnce(ScriptToConstellationMessage) + Send + 'static) {
    let nested = || {
        let mut value = JSValue::Null;
        for _ in 0..100_000 {
            value = JSValue::Array(vec![value]);
        }
        send(ScriptToConstellationMessage::FinishJavaScriptEvaluation(
            JavaScriptEvaluationId(1),
            Ok(value),
        ));
    };
    // To encode it takes as much.
    let big = thread::Builder::new().stack_size(1 << 30);
    let _ = big.spawn(nested).expect("a thread").join();
}
