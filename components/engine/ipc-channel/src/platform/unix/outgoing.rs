/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Sending, to receivers that are not trusted to receive.
//!
//! Sending waits where the queue of the channel is full. In a process that serves many others, that would let one of them
//! hold up all the others, by not receiving. Such a process can [choose](never_wait_for_receivers) not to wait: then messages
//! to a receiver that is behind are kept here, in order, until it has received what was sent before, or gone. There is a
//! bound to what is kept; beyond it, sending fails.

use super::{
    channel, new_msghdr, MsgControlLen, OsIpcChannel, OsIpcReceiver, OsIpcSender,
    OsIpcSharedMemory, UnixError, MAX_FDS_IN_CMSG, SYSTEM_SENDBUF_SIZE,
};
use libc::{c_int, c_uint, c_void, cmsghdr, iovec};
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// How many messages are kept for one receiver.
const MAX_MESSAGES: usize = 1 << 16;

/// How much is kept for one receiver, in bytes.
const MAX_BYTES: usize = 256 << 20;

static NEVER_WAIT: AtomicBool = AtomicBool::new(false);

/// From now on, no thread of this process waits for receivers.
pub fn never_wait_for_receivers() {
    NEVER_WAIT.store(true, Ordering::Relaxed);
}

pub(super) fn send(
    sender: &OsIpcSender,
    data: &[u8],
    channels: Vec<OsIpcChannel>,
    regions: Vec<OsIpcSharedMemory>,
) -> Result<(), UnixError> {
    let waits = !NEVER_WAIT.load(Ordering::Relaxed);
    send_with(sender, data, channels, regions, waits)
}

/// Sends a message, and if it `waits`, waits until the receiver has room for all of it.
pub(super) fn send_with(
    sender: &OsIpcSender,
    data: &[u8],
    channels: Vec<OsIpcChannel>,
    regions: Vec<OsIpcSharedMemory>,
    waits: bool,
) -> Result<(), UnixError> {
    let mut message = Outgoing {
        data: Cow::Borrowed(data),
        channels,
        regions,
        sent: 0,
        rest: None,
        packet_size: *SYSTEM_SENDBUF_SIZE,
    };
    if !waits {
        return send_or_keep(sender, message);
    }
    while !message.send_packet(sender, 0)? {}
    Ok(())
}

/// A message that is being sent.
struct Outgoing<'a> {
    data: Cow<'a, [u8]>,
    channels: Vec<OsIpcChannel>,
    regions: Vec<OsIpcSharedMemory>,
    /// How many bytes of the data have been sent.
    sent: usize,
    /// The channel for all but the first packet, so that those of several messages do not get mixed up. The receiving end
    /// goes with the first packet.
    rest: Option<(OsIpcSender, Option<OsIpcReceiver>)>,
    /// The size of a packet, with what the system needs, in bytes.
    packet_size: usize,
}

impl Outgoing<'_> {
    /// Sends the next packet, and returns whether that was the last.
    fn send_packet(&mut self, sender: &OsIpcSender, flags: c_int) -> Result<bool, UnixError> {
        let length = self.data.len();
        let (end, result) = if self.sent == 0 {
            let end = length.min(OsIpcSender::first_fragment_size(self.packet_size));
            if end < length && self.rest.is_none() {
                let (rest, receiver) = channel()?;
                self.rest = Some((rest, Some(receiver)));
            }
            let rest = match &self.rest {
                Some((_, receiver)) if end < length => receiver.as_ref(),
                _ => None,
            };
            let descriptors: Vec<RawFd> = self
                .channels
                .iter()
                .map(|channel| channel.fd())
                .chain(self.regions.iter().map(|region| region.store.fd()))
                .chain(rest.map(|receiver| receiver.fd.get()))
                .collect();
            let result = send_first(
                sender.fd.0,
                &descriptors,
                &self.data[..end],
                length,
                flags | libc::MSG_EOR,
            );
            (end, result)
        } else {
            let Some((rest, _)) = &self.rest else {
                return Ok(true);
            };
            let size = OsIpcSender::fragment_size(self.packet_size);
            let end = length.min(self.sent + size);
            let data = &self.data[self.sent..end];
            // SAFETY: the data is as long as is said.
            let result =
                unsafe { libc::send(rest.fd.0, data.as_ptr() as *const c_void, data.len(), flags) };
            (end, check(result))
        };
        match result {
            Ok(()) => {},
            Err(UnixError::Errno(libc::EINTR)) => return Ok(false),
            // The system had no memory for so large a packet.
            Err(UnixError::Errno(libc::ENOBUFS)) if self.downsize(end - self.sent) => {
                return Ok(false);
            },
            Err(error) => return Err(error),
        }
        if self.sent == 0 {
            // They are with the receiver now.
            self.channels.clear();
            self.regions.clear();
            if let Some((_, receiver)) = &mut self.rest {
                *receiver = None;
            }
        }
        self.sent = end;
        Ok(end == length)
    }

    /// Reduces the size of packets, if they are not so small already that it cannot be the reason.
    fn downsize(&mut self, failed: usize) -> bool {
        if failed <= 2000 {
            return false;
        }
        self.packet_size /= 2;
        // Certainly less than before.
        if self.packet_size >= failed {
            self.packet_size = failed / 2;
        }
        true
    }

    /// What has to have room for it to go on.
    fn waits_for(&self, sender: &OsIpcSender) -> RawFd {
        match &self.rest {
            Some((rest, _)) if self.sent > 0 => rest.fd.0,
            _ => sender.fd.0,
        }
    }
}

fn check(result: isize) -> Result<(), UnixError> {
    match result >= 0 {
        true => Ok(()),
        false => Err(UnixError::last()),
    }
}

/// Sends a message's first packet, which begins with its own length and the message's.
fn send_first(
    fd: RawFd,
    descriptors: &[RawFd],
    data: &[u8],
    length: usize,
    flags: c_int,
) -> Result<(), UnixError> {
    if descriptors.len() > MAX_FDS_IN_CMSG as usize {
        return Err(UnixError::Errno(libc::E2BIG));
    }
    let packet_length = 2 * mem::size_of::<usize>() + data.len();
    let mut buffers = [
        iovec {
            iov_base: &packet_length as *const _ as *mut c_void,
            iov_len: mem::size_of_val(&packet_length),
        },
        iovec {
            iov_base: &length as *const _ as *mut c_void,
            iov_len: mem::size_of_val(&length),
        },
        iovec {
            iov_base: data.as_ptr() as *mut c_void,
            iov_len: data.len(),
        },
    ];
    // SAFETY: the control message is written into a buffer, in words for the alignment, that has room for it.
    unsafe {
        let rights = mem::size_of_val(descriptors) as c_uint;
        let room = match rights {
            0 => 0,
            rights => libc::CMSG_SPACE(rights) as usize,
        };
        let mut control = vec![0u64; room.div_ceil(mem::size_of::<u64>())];
        let header = new_msghdr(
            &mut buffers,
            match rights {
                0 => ptr::null_mut(),
                _ => control.as_mut_ptr() as *mut cmsghdr,
            },
            room as MsgControlLen,
        );
        let first = libc::CMSG_FIRSTHDR(&header);
        if !first.is_null() {
            (*first).cmsg_len = libc::CMSG_LEN(rights) as MsgControlLen;
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            ptr::copy_nonoverlapping(
                descriptors.as_ptr(),
                libc::CMSG_DATA(first) as *mut RawFd,
                descriptors.len(),
            );
        }
        check(libc::sendmsg(fd, &header, flags))
    }
}

/// Messages for receivers that are behind.
struct Kept {
    queues: Mutex<HashMap<RawFd, Queue>>,
    /// Written to when there is something new in the queues.
    wake: UnixStream,
}

struct Queue {
    sender: OsIpcSender,
    messages: VecDeque<Outgoing<'static>>,
    bytes: usize,
}

static KEPT: OnceLock<Kept> = OnceLock::new();

fn kept() -> Result<&'static Kept, UnixError> {
    if let Some(kept) = KEPT.get() {
        return Ok(kept);
    }
    let (wake, woken) = UnixStream::pair().map_err(UnixError::IoError)?;
    for end in [&wake, &woken] {
        end.set_nonblocking(true).map_err(UnixError::IoError)?;
    }
    let mut mine = false;
    let kept = KEPT.get_or_init(|| {
        mine = true;
        Kept {
            queues: Mutex::default(),
            wake,
        }
    });
    if mine {
        thread::Builder::new()
            .name("ipc-kept-messages".to_owned())
            .spawn(move || kept.send_all(woken))
            .map_err(UnixError::IoError)?;
    }
    Ok(kept)
}

fn send_or_keep(sender: &OsIpcSender, mut message: Outgoing) -> Result<(), UnixError> {
    let kept = kept()?;
    let mut queues = kept.lock();
    let entry = queues.entry(sender.fd.0);
    if let Entry::Vacant(_) = entry {
        loop {
            match message.send_packet(sender, libc::MSG_DONTWAIT) {
                Ok(true) => return Ok(()),
                Ok(false) => {},
                Err(error) if error.would_block() => break,
                Err(error) => return Err(error),
            }
        }
    }
    let queue = entry.or_insert_with(|| Queue {
        sender: sender.clone(),
        messages: VecDeque::new(),
        bytes: 0,
    });
    let bytes = queue.bytes + message.data.len();
    if queue.messages.len() >= MAX_MESSAGES || (bytes > MAX_BYTES && !queue.messages.is_empty()) {
        return Err(UnixError::Errno(libc::EAGAIN));
    }
    queue.bytes = bytes;
    queue.messages.push_back(Outgoing {
        data: Cow::Owned(message.data.into_owned()),
        ..message
    });
    drop(queues);
    // Where there is no room, it will wake up anyway.
    let _ = (&kept.wake).write(&[0]);
    Ok(())
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, HashMap<RawFd, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is kept, as receivers catch up. Does not return.
    fn send_all(&self, mut woken: UnixStream) {
        let watch = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        loop {
            let mut watched = vec![watch(woken.as_raw_fd(), libc::POLLIN)];
            watched.extend(self.lock().values().filter_map(|queue| {
                let message = queue.messages.front()?;
                Some(watch(message.waits_for(&queue.sender), libc::POLLOUT))
            }));
            // SAFETY: there are as many as is said. That this thread alone removes from the queues keeps them open.
            let result = unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as _, -1) };
            if result < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                // Too many at once, or too little memory.
                thread::sleep(std::time::Duration::from_millis(10));
            }
            while matches!(woken.read(&mut [0; 64]), Ok(64)) {}
            self.lock().retain(|_, queue| queue.send());
        }
    }
}

impl Queue {
    /// Sends what there is room for, and returns whether there is more.
    fn send(&mut self) -> bool {
        while let Some(message) = self.messages.front_mut() {
            match message.send_packet(&self.sender, libc::MSG_DONTWAIT) {
                Ok(false) => {},
                Ok(true) => {
                    self.bytes -= message.data.len();
                    self.messages.pop_front();
                },
                Err(error) if error.would_block() => return true,
                // It has been refused in the middle, which says nothing of others.
                Err(_) if message.sent > 0 => {
                    self.bytes -= message.data.len();
                    self.messages.pop_front();
                },
                // The receiver has gone.
                Err(_) => return false,
            }
        }
        false
    }
}
