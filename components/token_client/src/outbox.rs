/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the main process has to say to the broker. A thread of its own sends it, because sending waits for a peer that does
//! not read, and the broker is not to keep anybody waiting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use ipc_channel::ipc::IpcSender;
use rustix::net::Shutdown;
use token_traits::control::ToBroker;

use crate::lock;

/// Most messages that wait: several for each port that there can be.
const MAX_UNSENT: usize = 4096;

/// Ends when it is dropped, with what it has not sent.
pub(crate) struct Outbox {
    queue: Sender<ToBroker>,
    /// When those came that wait, or are being sent.
    unsent: Arc<Mutex<VecDeque<Instant>>>,
    /// The same socket as the sender's.
    socket: OwnedFd,
}

/// Too many messages wait.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Full;

impl Outbox {
    /// Starts the thread, which calls `failed` if the broker cannot be reached any more.
    pub(crate) fn start(
        sender: IpcSender<ToBroker>,
        socket: OwnedFd,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, messages) = mpsc::channel();
        let unsent = Arc::<Mutex<VecDeque<Instant>>>::default();
        let sent = unsent.clone();
        thread::Builder::new()
            .name("to token broker".into())
            .spawn(move || {
                for message in messages {
                    if let Err(error) = sender.send(message) {
                        return failed(error.to_string());
                    }
                    lock(&sent).pop_front();
                }
            })?;
        Ok(Self {
            queue,
            unsent,
            socket,
        })
    }

    pub(crate) fn send(&self, message: ToBroker) -> Result<(), Full> {
        let mut unsent = lock(&self.unsent);
        if unsent.len() >= MAX_UNSENT {
            return Err(Full);
        }
        unsent.push_back(Instant::now());
        // A thread that has ended has said why.
        let _ = self.queue.send(message);
        Ok(())
    }

    /// Since when the broker has not read what it was sent, if it has not.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        lock(&self.unsent).front().copied()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // Wakes the thread, even where the other end is not the broker's alone any more. It cannot fail with a socket of
        // this kind.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use ipc_channel::ipc;
    use token_traits::PortId;
    use token_traits::transport::{Carrier, Packer};

    use super::*;

    fn message(number: u64) -> ToBroker {
        ToBroker::ClosePort(PortId(number))
    }

    fn outbox() -> (Outbox, ipc::IpcReceiver<ToBroker>, mpsc::Receiver<String>) {
        let (sender, receiver) = ipc::channel::<ToBroker>().unwrap();
        let carrier = Carrier::new().unwrap();
        let (_, unused) = ipc::channel().unwrap();
        let raw = sender.to_opaque().to();
        let wire = carrier.unpack(unused, raw).unwrap();
        let packer = Packer::new(&carrier).unwrap();
        let (_, sender) = packer
            .pack::<(), _>(wire.receiving_end(), wire.sending_end())
            .unwrap();
        let socket = wire.sending_end().as_fd().try_clone_to_owned().unwrap();
        let (failed, failures) = mpsc::channel();
        let failed = move |error| drop(failed.send(error));
        (
            Outbox::start(sender, socket, failed).unwrap(),
            receiver,
            failures,
        )
    }

    #[test]
    fn messages_arrive_in_order_and_nobody_waits_for_who_does_not_read() {
        let (outbox, receiver, failures) = outbox();
        assert_eq!(outbox.waits_since(), None);
        let begun = Instant::now();
        let mut sent = 0;
        while outbox.send(message(sent)) != Err(Full) {
            sent += 1;
        }
        assert!(sent >= MAX_UNSENT as u64);
        assert!(outbox.waits_since().unwrap() >= begun);
        for number in 0..sent {
            match receiver.recv().unwrap() {
                ToBroker::ClosePort(PortId(received)) => assert_eq!(received, number),
                other => panic!("{other:?}"),
            }
        }
        let until = Instant::now() + Duration::from_secs(20);
        while outbox.waits_since().is_some() {
            assert!(Instant::now() < until);
            thread::sleep(Duration::from_millis(1));
        }
        drop(receiver);
        outbox.send(message(0)).unwrap();
        assert!(failures.recv_timeout(Duration::from_secs(20)).is_ok());
    }

    #[test]
    fn the_thread_ends_with_it_even_in_the_middle_of_a_message() {
        let (outbox, _receiver, failures) = outbox();
        while outbox.send(message(0)).is_ok() {}
        drop(outbox);
        // Ended, it has dropped the callback, whether it has called it or not.
        let ended = failures.recv_timeout(Duration::from_secs(20));
        assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout));
    }
}
