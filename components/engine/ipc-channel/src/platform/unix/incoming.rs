/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Receiving from peers that are not trusted.
//!
//! A peer may be another process that somebody has taken over, and many processes may send through one channel. So what
//! arrives is checked before it is used, nothing is allocated because a peer announces it, and nobody waits for the rest of
//! a message that was begun: messages of other senders pass it.
//!
//! Who sends one message after another has the first in order, however long it is: [`OsIpcSender::send`] returns when all of
//! a message is in the queues, so what a later message finds unfinished can be finished, if it ever will be.
//!
//! A message that is not as it should be arrives as [`IpcMessage::malformed`], whose decoding fails. The channel stays open,
//! as it may be that of honest senders too. A message that its sender does not finish is dropped.
//!
//! [`OsIpcSender::send`]: super::OsIpcSender::send

use super::{
    new_msghdr, MsgControlLen, OsIpcReceiver, OsIpcSender, OsIpcSharedMemory, OsOpaqueIpcChannel,
    UnixError, MAX_FDS_IN_CMSG, RECVMSG_FLAGS, SYSTEM_SENDBUF_SIZE,
};
use crate::ipc::IpcMessage;
use libc::{c_int, c_uint, c_void, cmsghdr, iovec, socklen_t};
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

/// The length of the longest message, in bytes. Long data is in shared memory, so no message comes near it.
const MAX_MESSAGE_LENGTH: usize = 1 << 30;

/// How many messages of one channel may be unfinished at a time. Of more, the one that has not grown for the longest time is
/// dropped.
const MAX_UNFINISHED: usize = 32;

/// How many packets of one channel are read before it is another channel's turn.
pub(super) const PACKETS_PER_TURN: usize = 64;

/// Both numbers before the data of a message's first packet: the length of the packet, and of the data of all packets.
const HEADER_LENGTH: usize = 2 * mem::size_of::<usize>();

/// Whether a packet is read as it was sent, or not at all.
const PACKETS_ARE_WHOLE: bool = cfg!(target_os = "linux");

#[derive(Copy, Clone)]
pub(super) enum Wait {
    Forever,
    Never,
    Until(Instant),
}

/// What of one channel's messages has been read, and not handed out.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    finished: VecDeque<IpcMessage>,
    unfinished: Vec<Unfinished>,
    /// Where the rest of messages came from that are finished or dropped.
    ended: Vec<OsIpcReceiver>,
    /// Counts packets of unfinished messages.
    clock: u64,
}

/// A message of several packets. All but the first come through a channel of their own.
#[derive(Debug)]
struct Unfinished {
    message: IpcMessage,
    length: usize,
    rest: OsIpcReceiver,
    /// When it grew last.
    grew: u64,
}

enum Packet {
    Message(IpcMessage),
    First(Unfinished),
}

/// What became of a turn.
pub(super) enum Turn {
    /// There is nothing left to read at present.
    Exhausted,
    /// There may be more to read.
    More,
    Closed,
}

enum Growth {
    None,
    Some,
    Finished,
    Failed,
}

impl Incoming {
    /// The next message of the channel `fd`.
    pub(super) fn recv(&mut self, fd: RawFd, wait: Wait) -> Result<IpcMessage, UnixError> {
        let mut turns = PACKETS_PER_TURN;
        loop {
            if let Some(message) = self.finished.pop_front() {
                return Ok(message);
            }
            // Where there is but one thing to wait for, receiving is waiting.
            let flags = match wait {
                Wait::Forever if self.unfinished.is_empty() => 0,
                _ => libc::MSG_DONTWAIT,
            };
            let read = self.read(fd, flags);
            self.ended.clear();
            if !self.finished.is_empty() {
                continue;
            }
            match read {
                // Senders that do nothing but begin messages are not to keep a receiver that does not wait.
                Ok(()) => match wait {
                    Wait::Never if turns > 0 => turns -= 1,
                    Wait::Until(until) if Instant::now() < until => {},
                    Wait::Forever => {},
                    _ => return Err(UnixError::Errno(libc::EAGAIN)),
                },
                Err(error) if error.would_block() => self.wait(fd, wait)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what is there, but not more than is fair, without waiting.
    pub(super) fn take_turn(&mut self, fd: RawFd) -> Turn {
        for _ in 0..PACKETS_PER_TURN {
            match self.read(fd, libc::MSG_DONTWAIT) {
                Ok(()) => {},
                Err(error) if error.would_block() => return Turn::Exhausted,
                // One channel's end is not that of others that are waited for in the same place.
                Err(_) => return Turn::Closed,
            }
        }
        Turn::More
    }

    pub(super) fn finished(&mut self) -> impl Iterator<Item = IpcMessage> + '_ {
        self.finished.drain(..)
    }

    /// Sockets that have been among [`Self::sockets`], still open.
    pub(super) fn take_ended(&mut self) -> Vec<OsIpcReceiver> {
        mem::take(&mut self.ended)
    }

    /// The sockets that the rest of messages comes through.
    pub(super) fn sockets(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.unfinished.iter().map(|message| message.rest.fd.get())
    }

    fn wait(&self, fd: RawFd, wait: Wait) -> Result<(), UnixError> {
        let timeout = match wait {
            Wait::Never => return Err(UnixError::Errno(libc::EAGAIN)),
            Wait::Forever => -1,
            Wait::Until(until) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(UnixError::Errno(libc::EAGAIN));
                }
                // Rounded up, so that the last millisecond is not spent polling.
                (left + Duration::from_micros(999))
                    .as_millis()
                    .try_into()
                    .unwrap_or(-1)
            },
        };
        let mut sockets: Vec<_> = std::iter::once(fd)
            .chain(self.sockets())
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        match unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as _, timeout) } {
            -1 => match UnixError::last() {
                UnixError::Errno(libc::EINTR) => Ok(()),
                error => Err(error),
            },
            _ => Ok(()),
        }
    }

    /// Reads one packet from `fd`, and what there is of the messages that were unfinished before.
    fn read(&mut self, fd: RawFd, flags: c_int) -> Result<(), UnixError> {
        let packet = read_packet(fd, flags);
        let mut grown = false;
        if !self.unfinished.is_empty() {
            grown = self.read_unfinished();
        }
        match packet {
            Ok(Packet::Message(message)) => self.finished.push_back(message),
            Ok(Packet::First(first)) => {
                if self.unfinished.len() >= MAX_UNFINISHED {
                    self.drop_stalest();
                }
                self.clock += 1;
                self.unfinished.push(Unfinished {
                    grew: self.clock,
                    ..first
                });
            },
            Err(error) if error.would_block() && grown => {},
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether there was anything to read.
    fn read_unfinished(&mut self) -> bool {
        let mut grown = false;
        let mut others: usize = self
            .unfinished
            .iter()
            .map(|one| one.message.data.len())
            .sum();
        let mut index = 0;
        while let Some(message) = self.unfinished.get_mut(index) {
            others -= message.message.data.len();
            let growth = message.read_rest(MAX_MESSAGE_LENGTH.saturating_sub(others));
            others += message.message.data.len();
            match growth {
                Growth::None => index += 1,
                Growth::Some => {
                    grown = true;
                    self.clock += 1;
                    message.grew = self.clock;
                    index += 1;
                },
                Growth::Finished => {
                    grown = true;
                    let Unfinished { message, rest, .. } = self.unfinished.remove(index);
                    others -= message.data.len();
                    self.ended.push(rest);
                    self.finished.push_back(message);
                },
                Growth::Failed => {
                    grown = true;
                    let Unfinished { message, rest, .. } = self.unfinished.remove(index);
                    others -= message.data.len();
                    self.ended.push(rest);
                },
            }
        }
        grown
    }

    fn drop_stalest(&mut self) {
        let stalest = self.unfinished.iter().enumerate();
        if let Some((index, _)) = stalest.min_by_key(|(_, message)| message.grew) {
            self.ended.push(self.unfinished.remove(index).rest);
        }
    }
}

impl Unfinished {
    /// Reads what there is, but not more than is fair, nor what would make it longer than `max_length`.
    fn read_rest(&mut self, max_length: usize) -> Growth {
        let mut growth = Growth::None;
        for _ in 0..PACKETS_PER_TURN {
            let data = &mut self.message.data;
            let left = self.length - data.len();
            let packet = left.min(OsIpcSender::fragment_size(*SYSTEM_SENDBUF_SIZE));
            if data.len() + packet > max_length {
                return Growth::Failed;
            }
            // Grows with what arrives, not to what is announced.
            data.reserve(packet);
            let result = unsafe {
                libc::recv(
                    self.rest.fd.get(),
                    data.spare_capacity_mut().as_mut_ptr() as *mut c_void,
                    packet,
                    libc::MSG_DONTWAIT,
                )
            };
            match result {
                0 => return Growth::Failed,
                -1 => match UnixError::last() {
                    UnixError::Errno(libc::EINTR) => {},
                    error if error.would_block() => return growth,
                    _ => return Growth::Failed,
                },
                // SAFETY: `recv` has written that many bytes into the spare capacity, which holds `packet`.
                read => unsafe { data.set_len(data.len() + read as usize) },
            }
            if self.message.data.len() == self.length {
                return Growth::Finished;
            }
            growth = Growth::Some;
        }
        growth
    }
}

fn malformed() -> Packet {
    Packet::Message(IpcMessage::malformed())
}

/// Reads a packet that begins a message.
fn read_packet(fd: RawFd, mut flags: c_int) -> Result<Packet, UnixError> {
    let mut packet_length: usize = 0;
    let mut length: usize = 0;
    let room = OsIpcSender::get_max_fragment_size();
    let mut data: Vec<u8> = Vec::with_capacity(room);
    let mut descriptors = Vec::new();
    let mut whole = true;
    let mut read: usize = 0;

    loop {
        let mut buffers = [
            iovec {
                iov_base: &mut packet_length as *mut _ as *mut c_void,
                iov_len: mem::size_of_val(&packet_length),
            },
            iovec {
                iov_base: &mut length as *mut _ as *mut c_void,
                iov_len: mem::size_of_val(&length),
            },
            iovec {
                iov_base: data.as_mut_ptr() as *mut c_void,
                iov_len: room,
            },
        ];
        let mut control = Control::new();
        let (now_read, now_whole) = control.recv(fd, skip(&mut buffers, read), flags)?;
        control.take_descriptors(&mut descriptors);
        if now_read == 0 {
            // What has no end says that it is at its end by a packet of no bytes. So does a sender that is up to something.
            if read == 0 && !is_hung_up(fd) {
                return Ok(malformed());
            }
            return Err(UnixError::ChannelClosed);
        }
        read += now_read;
        whole &= now_whole;
        if PACKETS_ARE_WHOLE || !whole {
            break;
        }
        if read >= mem::size_of_val(&packet_length) && read >= packet_length {
            break;
        }
        // The rest of it is on its way.
        flags = 0;
    }

    if !whole || read < HEADER_LENGTH || read != packet_length {
        return Ok(malformed());
    }
    // SAFETY: the kernel has written that many bytes, as `whole` says that it had room for them.
    unsafe { data.set_len(read - HEADER_LENGTH) };
    if length < data.len() || length > MAX_MESSAGE_LENGTH {
        return Ok(malformed());
    }

    let is_first = length > data.len();
    let rest = match (is_first, descriptors.pop()) {
        (false, None) => None,
        (false, Some(last)) => {
            descriptors.push(last);
            None
        },
        (true, Some(last)) if is_channel(last.as_raw_fd()) => {
            Some(OsIpcReceiver::from_fd(last.into_raw_fd()))
        },
        (true, _) => return Ok(malformed()),
    };
    let (mut channels, mut regions) = (Vec::new(), Vec::new());
    for descriptor in descriptors {
        if is_socket(descriptor.as_raw_fd()) {
            if !is_channel(descriptor.as_raw_fd()) {
                return Ok(malformed());
            }
            channels.push(OsOpaqueIpcChannel::from_fd(descriptor.into_raw_fd()));
        } else {
            match OsIpcSharedMemory::from_peer(descriptor) {
                Ok(region) => regions.push(region),
                Err(_) => return Ok(malformed()),
            }
        }
    }
    let message = IpcMessage::new(data, channels, regions);
    Ok(match rest {
        None => Packet::Message(message),
        Some(rest) => Packet::First(Unfinished {
            message,
            length,
            rest,
            grew: 0,
        }),
    })
}

/// `buffers` without their first `count` bytes.
fn skip(buffers: &mut [iovec], mut count: usize) -> &mut [iovec] {
    let mut first = 0;
    while let Some(buffer) = buffers.get_mut(first) {
        let here = count.min(buffer.iov_len);
        // SAFETY: it stays in the buffer, or behind its last byte.
        buffer.iov_base = unsafe { (buffer.iov_base as *mut u8).add(here) } as *mut c_void;
        buffer.iov_len -= here;
        count -= here;
        if buffer.iov_len > 0 {
            break;
        }
        first += 1;
    }
    &mut buffers[first..]
}

/// How much room what comes with a packet needs, in words.
const CONTROL_WORDS: usize = {
    let length = MAX_FDS_IN_CMSG * mem::size_of::<c_int>() as c_uint;
    (unsafe { libc::CMSG_SPACE(length) } as usize).div_ceil(mem::size_of::<u64>())
};

/// Room for what comes with a packet.
struct Control {
    /// In words, for the alignment.
    buffer: [u64; CONTROL_WORDS],
    used: usize,
}

impl Control {
    fn new() -> Control {
        Control {
            buffer: [0; CONTROL_WORDS],
            used: 0,
        }
    }

    /// How much was read, and whether it was all of the packet.
    fn recv(
        &mut self,
        fd: RawFd,
        buffers: &mut [iovec],
        flags: c_int,
    ) -> Result<(usize, bool), UnixError> {
        let room = mem::size_of_val(&self.buffer[..]);
        loop {
            let mut header = new_msghdr(
                buffers,
                self.buffer.as_mut_ptr() as *mut cmsghdr,
                room as MsgControlLen,
            );
            // SAFETY: the header points to buffers that are alive, with their lengths.
            let result = unsafe { libc::recvmsg(fd, &mut header, RECVMSG_FLAGS | flags) };
            if result < 0 {
                match UnixError::last() {
                    UnixError::Errno(libc::EINTR) => continue,
                    error => return Err(error),
                }
            }
            self.used = (header.msg_controllen as usize).min(room);
            let whole = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) == 0;
            return Ok((result as usize, whole));
        }
    }

    /// Takes what descriptors there are, so that none is leaked.
    fn take_descriptors(&mut self, descriptors: &mut Vec<OwnedFd>) {
        // SAFETY: the kernel has written `used` bytes of control messages, which these macros walk through.
        unsafe {
            let mut header: libc::msghdr = mem::zeroed();
            header.msg_control = self.buffer.as_mut_ptr() as *mut c_void;
            header.msg_controllen = self.used as MsgControlLen;
            let mut message = libc::CMSG_FIRSTHDR(&header);
            while !message.is_null() {
                let rights = (*message).cmsg_level == libc::SOL_SOCKET
                    && (*message).cmsg_type == libc::SCM_RIGHTS;
                if rights {
                    let bytes =
                        ((*message).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                    let first = libc::CMSG_DATA(message) as *const RawFd;
                    for index in 0..bytes / mem::size_of::<RawFd>() {
                        descriptors
                            .push(OwnedFd::from_raw_fd(ptr::read_unaligned(first.add(index))));
                    }
                }
                message = libc::CMSG_NXTHDR(&header, message);
            }
        }
        self.used = 0;
    }
}

/// Whether no sender is left.
fn is_hung_up(fd: RawFd) -> bool {
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    let hung_up = libc::POLLHUP | libc::POLLRDHUP;
    #[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
    let hung_up = libc::POLLHUP;
    let mut socket = libc::pollfd {
        fd,
        events: hung_up,
        revents: 0,
    };
    match unsafe { libc::poll(&mut socket, 1, 0) } {
        1 => socket.revents & (hung_up | libc::POLLERR | libc::POLLNVAL) != 0,
        // In doubt, the end.
        result => result != 0,
    }
}

fn is_socket(fd: RawFd) -> bool {
    let mut status = mem::MaybeUninit::uninit();
    // SAFETY: `fstat` fills it where it succeeds.
    unsafe {
        libc::fstat(fd, status.as_mut_ptr()) == 0
            && status.assume_init().st_mode & libc::S_IFMT == libc::S_IFSOCK
    }
}

/// Whether it is a socket of the kind that channels are. Others lose packets, or split them, or cannot be waited for.
fn is_channel(fd: RawFd) -> bool {
    socket_option(fd, libc::SO_TYPE) == Some(libc::SOCK_SEQPACKET)
        && (cfg!(not(target_os = "linux")) || is_local(fd))
}

#[cfg(target_os = "linux")]
fn is_local(fd: RawFd) -> bool {
    socket_option(fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX)
}

#[cfg(not(target_os = "linux"))]
fn is_local(_: RawFd) -> bool {
    true
}

fn socket_option(fd: RawFd, option: c_int) -> Option<c_int> {
    let mut value: c_int = 0;
    let mut length = mem::size_of_val(&value) as socklen_t;
    // SAFETY: the value is as long as is said.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            &mut value as *mut _ as *mut c_void,
            &mut length,
        )
    };
    (result == 0).then_some(value)
}

/// Checks shared memory of a peer's, and returns its length: memory that can be read to its end for as long as it is
/// mapped, as its file cannot shrink, and that is there already, so that reading does not allocate what the peer announces.
pub(super) fn check_shared_memory(fd: RawFd) -> Result<usize, UnixError> {
    let mut status = mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `fstat` fills it where it succeeds.
    let status = unsafe {
        if libc::fstat(fd, status.as_mut_ptr()) != 0 {
            return Err(UnixError::last());
        }
        status.assume_init()
    };
    let invalid = || UnixError::IoError(io::ErrorKind::InvalidData.into());
    let length = usize::try_from(status.st_size).map_err(|_| invalid())?;
    if length == 0 || status.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(invalid());
    }
    #[cfg(target_os = "linux")]
    {
        // SAFETY: it takes no argument.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        if seals < 0 {
            return Err(UnixError::last());
        }
        // In units of 512 bytes.
        let allocated = usize::try_from(status.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        if seals & libc::F_SEAL_SHRINK == 0 || allocated < length {
            return Err(invalid());
        }
    }
    Ok(length)
}
