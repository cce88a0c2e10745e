/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Connects the state machine to documents, workers and the main process: one thread that waits for all of them, and
//! one that wakes it at the earliest deadline.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipc_channel::ipc::{
    self, IpcMessage, IpcReceiver, IpcReceiverSet, IpcSelectionResult, IpcSender,
};
use token_traits::control::{FromBroker, ToBroker, WorkerId};
use token_traits::{Frame, PortId};
use token_workers::process::{self, Channels};

use crate::broker::{Broker, Input, Output};
use crate::send_deadline;

/// Runs the broker until the main process closes its channel. `token` names the main process's one-shot server.
pub fn run(token: String) -> io::Result<()> {
    let channels = process::connect::<ToBroker, FromBroker>(token)?;
    send_deadline::block()?;
    let mut event_loop = EventLoop::new(channels)?;
    send_deadline::prepare()?;
    while event_loop.turn()? {}
    Ok(())
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Control,
    Timer,
    Port(PortId),
    Worker(WorkerId),
}

struct EventLoop {
    broker: Broker,
    receivers: IpcReceiverSet,
    /// By the ids of `receivers`. A source that has been closed is no longer here: what it still sends is dropped.
    sources: HashMap<u64, Source>,
    control: IpcSender<FromBroker>,
    ports: HashMap<PortId, Peer>,
    workers: HashMap<WorkerId, Peer>,
    alarm: Arc<Alarm>,
}

struct Peer {
    sender: IpcSender<Frame>,
    receiver: u64,
}

impl EventLoop {
    fn new(channels: Channels<ToBroker, FromBroker>) -> io::Result<Self> {
        let mut receivers = IpcReceiverSet::new()?;
        let (wake, timer) = ipc::channel()?;
        let sources = HashMap::from([
            (receivers.add(channels.requests)?, Source::Control),
            (receivers.add(timer)?, Source::Timer),
        ]);
        process::lock_down()?;
        // The control channel closes with the main process too, but a loop that is busy may take its time to see it.
        channels.lifeline.watch()?;
        let alarm = Arc::new(Alarm::default());
        start_timer(alarm.clone(), wake)?;
        Ok(Self {
            broker: Broker::new(),
            receivers,
            sources,
            control: channels.replies,
            ports: HashMap::new(),
            workers: HashMap::new(),
            alarm,
        })
    }

    /// Waits for something to happen and deals with it. Returns whether to go on.
    fn turn(&mut self) -> io::Result<bool> {
        for result in self.receivers.select()? {
            let input = match result {
                IpcSelectionResult::MessageReceived(id, message) => self.received(id, message)?,
                IpcSelectionResult::ChannelClosed(id) => match self.sources.remove(&id) {
                    Some(Source::Control | Source::Timer) => return Ok(false),
                    Some(Source::Port(port)) => Some(Input::ClosePort(port)),
                    Some(Source::Worker(worker)) => Some(Input::WorkerEnded(worker)),
                    None => None,
                },
            };
            if let Some(input) = input
                && !self.handle(input)
            {
                return Ok(false);
            }
        }
        if let Some(deadline) = self.broker.next_deadline() {
            self.alarm.set(deadline);
        }
        Ok(true)
    }

    /// What a message means to the state machine, after keeping the channels that come with it.
    fn received(&mut self, id: u64, message: IpcMessage) -> io::Result<Option<Input>> {
        Ok(match self.sources.get(&id) {
            None => None,
            Some(Source::Timer) => Some(Input::Tick),
            Some(&Source::Port(port)) => Some(match message.to() {
                Ok(frame) => Input::PortFrame(port, frame),
                Err(_) => Input::ClosePort(port),
            }),
            Some(&Source::Worker(worker)) => Some(match message.to() {
                Ok(frame) => Input::WorkerFrame(worker, frame),
                Err(_) => Input::WorkerEnded(worker),
            }),
            Some(Source::Control) => {
                Some(self.control_message(message.to().map_err(io::Error::other)?)?)
            }
        })
    }

    fn control_message(&mut self, message: ToBroker) -> io::Result<Input> {
        Ok(match message {
            ToBroker::Configure(config) => Input::Configure(config),
            ToBroker::OpenPort {
                port,
                identity,
                requests,
                messages,
            } => {
                let peer = self.add_peer(requests, messages, Source::Port(port))?;
                self.ports.insert(port, peer);
                Input::OpenPort { port, identity }
            }
            ToBroker::ClosePort(port) => Input::ClosePort(port),
            ToBroker::SetGrant {
                origin,
                top_level_origin,
                feature,
                allowed,
            } => Input::SetGrant {
                origin,
                top_level_origin,
                feature,
                allowed,
            },
            ToBroker::WorkerStarted {
                worker,
                requests,
                replies,
            } => {
                let peer = self.add_peer(replies, requests, Source::Worker(worker))?;
                self.workers.insert(worker, peer);
                Input::WorkerStarted(worker)
            }
            ToBroker::WorkerEnded { worker, reason } => {
                log::info!("worker {}: {reason}", worker.0);
                Input::WorkerEnded(worker)
            }
        })
    }

    fn add_peer(
        &mut self,
        receiver: IpcReceiver<Frame>,
        sender: IpcSender<Frame>,
        source: Source,
    ) -> io::Result<Peer> {
        let receiver = self.receivers.add(receiver)?;
        self.sources.insert(receiver, source);
        Ok(Peer { sender, receiver })
    }

    /// Tells the state machine, and does what it says. Returns whether to go on.
    fn handle(&mut self, input: Input) -> bool {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            if let Input::WorkerEnded(worker) = &input {
                self.drop_worker(*worker);
            }
            for output in self.broker.handle(input, Instant::now()) {
                match self.perform(output) {
                    Ok(None) => {}
                    Ok(Some(failure)) => inputs.push_back(failure),
                    Err(MainProcessGone) => return false,
                }
            }
        }
        true
    }

    /// Does one thing. Where that fails, returns what it means to the state machine.
    fn perform(&mut self, output: Output) -> Result<Option<Input>, MainProcessGone> {
        match output {
            Output::ToPort(port, message) => {
                let Some(peer) = self.ports.get(&port) else {
                    return Ok(None);
                };
                let sent = Frame::encode(&message).is_ok_and(|frame| {
                    send_deadline::with_deadline(|| peer.sender.send(frame))
                        .is_ok_and(|result| result.is_ok())
                });
                if !sent {
                    log::warn!("port {} does not take its messages", port.0);
                    return Ok(Some(Input::ClosePort(port)));
                }
            }
            Output::ClosePort(port) => {
                if let Some(peer) = self.ports.remove(&port) {
                    self.sources.remove(&peer.receiver);
                }
            }
            Output::ToWorker(worker, request) => {
                let sent = self.workers.get(&worker).is_some_and(|peer| {
                    Frame::encode(&request).is_ok_and(|frame| peer.sender.send(frame).is_ok())
                });
                if !sent {
                    return Ok(Some(Input::WorkerEnded(worker)));
                }
            }
            Output::StartWorker(worker, kind) => {
                self.tell_main_process(FromBroker::StartWorker { worker, kind })?;
            }
            Output::KillWorker(worker) => {
                self.drop_worker(worker);
                self.tell_main_process(FromBroker::KillWorker(worker))?;
            }
            Output::ReleaseWorker(worker) => self.drop_worker(worker),
        }
        Ok(None)
    }

    fn drop_worker(&mut self, worker: WorkerId) {
        if let Some(peer) = self.workers.remove(&worker) {
            self.sources.remove(&peer.receiver);
        }
    }

    fn tell_main_process(&self, message: FromBroker) -> Result<(), MainProcessGone> {
        self.control.send(message).map_err(|_| MainProcessGone)
    }
}

/// The main process has closed its channel, which ends the broker.
struct MainProcessGone;

/// When to wake the event loop.
///
/// An alarm that is no longer needed is left as it is: the loop finds nothing due then, which costs less than a wake-up
/// of the timer thread for each request and each reply.
#[derive(Default)]
struct Alarm {
    next: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Alarm {
    /// Makes sure that the loop is woken at `deadline` at the latest.
    fn set(&self, deadline: Instant) {
        let mut next = self.lock();
        if next.is_none_or(|time| deadline < time) {
            *next = Some(deadline);
            self.changed.notify_one();
        }
    }

    /// Blocks until the time has come.
    fn wait(&self) {
        let mut next = self.lock();
        loop {
            let now = Instant::now();
            next = match *next {
                None => self
                    .changed
                    .wait(next)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(time) if now < time => {
                    self.changed
                        .wait_timeout(next, time - now)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                Some(_) => {
                    *next = None;
                    return;
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start_timer(alarm: Arc<Alarm>, wake: IpcSender<()>) -> io::Result<()> {
    std::thread::Builder::new()
        .name("timer".into())
        .spawn(move || {
            loop {
                alarm.wait();
                if wake.send(()).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
