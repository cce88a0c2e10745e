/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Connects the state machine to documents, workers and the main process: one thread that waits for all of them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use token_traits::control::{FromBroker, ToBroker, WorkerId};
use token_traits::transport::{Carrier, Gone, MAX_OUTGOING, MAX_PACKET_LENGTH, Received, Wire};
use token_traits::{Frame, PortId};
use token_workers::process::{self, Connection};
use token_workers::sandbox::{self, Kind, SandboxError};

use crate::broker::{Broker, Input, Output};
use crate::keys::InstallationSecret;
use crate::overview;
use crate::store::{self, Remembered, Store, Writer};

/// How many frames of one peer are taken before others have their turn.
const FRAMES_PER_TURN: usize = 16;

/// How many frames of the documents of one event loop are taken before others have their turn.
const FRAMES_OF_EVENT_LOOP_PER_TURN: usize = 32;

/// How many peers are looked at in one turn.
const EVENTS_PER_TURN: usize = 64;

/// How many bytes may wait for the documents of one event loop that do not read, and for all that do not.
const MAX_OUTGOING_OF_EVENT_LOOP: usize = 4 * MAX_OUTGOING;
const MAX_OUTGOING_IN_ALL: usize = 32 * MAX_OUTGOING;

/// File descriptors that are kept for something else than peers: the main process's channel, the store, what is on its way.
const OTHER_DESCRIPTORS: u64 = 64;
/// Each peer has two.
const DESCRIPTORS_OF_PEER: u64 = 2;
/// Places that documents leave to workers. The main process starts no more.
const PLACES_OF_WORKERS: u64 = 32;
/// How many peers the main process may hand over that have not been dealt with. More have to wait.
const MAX_PEERS_ON_THEIR_WAY: usize = 16;

/// The main process has something to say. Peers count up from 1.
const CONTROL: u64 = 0;

/// Runs the broker until the main process closes its channel. `token` names the main process's one-shot server, `store` the
/// folder in which the broker keeps what outlives it, which is there already. Without one, nothing does.
pub fn run(token: String, store: Option<PathBuf>) -> io::Result<()> {
    // In its sandbox the broker does not ask for the current folder.
    let store = store.map(std::path::absolute).transpose()?;
    let mut event_loop = EventLoop::new(process::connect(token)?, store)?;
    while event_loop.turn()? {}
    Ok(())
}

/// Whose end of a wire it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Source {
    Port(PortId),
    Worker(WorkerId),
}

struct Peer {
    source: Source,
    wire: Wire,
    /// Where the document is.
    event_loop: Option<u64>,
    /// Whether the loop waits for room in the wire.
    is_waited_for: bool,
}

struct EventLoop {
    broker: Broker,
    epoll: OwnedFd,
    carrier: Carrier,
    /// What the main process says, and to whom the broker answers.
    control: Receiver<ToBroker>,
    /// One for each peer on its way.
    on_their_way: Receiver<()>,
    wake: Arc<OwnedFd>,
    main_process: IpcSender<Frame>,
    /// The folder of what was remembered.
    store: Option<PathBuf>,
    /// Whether it is still to be read.
    is_restored: bool,
    /// Writes what is to be remembered, if that is possible.
    writer: Option<Writer>,
    /// What keeps the writer from it, or that nothing does any more.
    problems: Receiver<Option<String>>,
    on_problem: Sender<Option<String>>,
    /// Ids are never used twice, so an event for a peer that was closed in the same turn finds nobody.
    peers: HashMap<u64, Peer>,
    ids: HashMap<Source, u64>,
    next_id: u64,
    max_peers: u64,
    /// How many frames of which event loops have been taken in this turn.
    taken: HashMap<u64, usize>,
    buffer: Vec<u8>,
}

/// The main process has closed its channel, which ends the broker.
struct MainProcessGone;

impl EventLoop {
    fn new(connection: Connection<ToBroker, Frame>, store: Option<PathBuf>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        epoll::add(&epoll, &wake, EventData::new_u64(CONTROL), EventFlags::IN)?;
        let carrier = Carrier::new()?;
        let kind = Kind::Broker {
            store: store.as_deref(),
        };
        let max_peers = max_peers(kind);
        sandbox::lock_down(kind).map_err(sandbox_error)?;
        // A broker that cannot be locked down does not report.
        let channels = connection.report()?;
        // The control channel closes with the main process too, but whatever the loop does, it ends with this.
        channels.lifeline.watch()?;
        let (sender, control) = mpsc::channel();
        let (places, on_their_way) = mpsc::sync_channel(MAX_PEERS_ON_THEIR_WAY);
        start_control_thread(channels.requests, sender, places, wake.clone())?;
        let (on_problem, problems) = mpsc::channel();
        Ok(Self {
            broker: Broker::new(),
            epoll,
            carrier,
            control,
            on_their_way,
            wake,
            main_process: channels.replies,
            store,
            is_restored: false,
            writer: None,
            problems,
            on_problem,
            peers: HashMap::new(),
            ids: HashMap::new(),
            next_id: 1,
            max_peers,
            taken: HashMap::new(),
            buffer: vec![0; MAX_PACKET_LENGTH],
        })
    }

    /// Waits for something to happen and deals with it. Returns whether to go on.
    fn turn(&mut self) -> io::Result<bool> {
        let deadline = self.broker.next_deadline();
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let waited = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            deadline.map(timeout).as_ref(),
        );
        match waited {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.taken.clear();
        for event in events {
            let id = event.data.u64();
            let result = if id == CONTROL {
                self.control_messages()?
            } else {
                self.peer_event(id, event.flags)
            };
            if result.is_err() {
                return Ok(false);
            }
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now())
            && self.handle(Input::Tick).is_err()
        {
            return Ok(false);
        }
        Ok(true)
    }

    fn control_messages(&mut self) -> io::Result<Result<(), MainProcessGone>> {
        // The count says nothing that the channel does not.
        match rustix::io::read(&self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        let problems: Vec<Option<String>> = self.problems.try_iter().collect();
        for problem in problems {
            if self.handle(Input::StoreProblem(problem)).is_err() {
                return Ok(Err(MainProcessGone));
            }
        }
        loop {
            let input = match self.control.try_recv() {
                Ok(message) => self.control_message(message),
                Err(TryRecvError::Empty) => return Ok(Ok(())),
                Err(TryRecvError::Disconnected) => return Ok(Err(MainProcessGone)),
            };
            let is_configuration = matches!(input, Input::Configure(_));
            let mut handled = self.handle(input);
            if is_configuration && handled.is_ok() && !self.is_restored {
                handled = self.restore();
                // The thread that writes was the last one.
                sandbox::no_more_threads().map_err(sandbox_error)?;
            }
            if handled.is_err() {
                return Ok(Err(MainProcessGone));
            }
        }
    }

    /// Reads what was remembered, before anybody can ask for anything. Without it, the user is asked again.
    fn restore(&mut self) -> Result<(), MainProcessGone> {
        self.is_restored = true;
        let (on_problem, wake) = (self.on_problem.clone(), self.wake.clone());
        let opened = match self.store.as_deref().map(Store::open) {
            Some(Ok((store, remembered))) => {
                let writer = Writer::start(store, move |problem| {
                    // Without a loop nobody shows it.
                    let _ = on_problem.send(problem);
                    let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
                });
                match writer {
                    Ok(writer) => {
                        self.writer = Some(writer);
                        Ok(remembered)
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
            Some(Err(error)) => Err(store::not_remembered(&error)),
            None => Ok(nothing()),
        };
        let remembered = match opened {
            Ok(remembered) => remembered,
            Err(problem) => {
                log::error!("{problem}");
                self.handle(Input::StoreProblem(Some(problem)))?;
                nothing()
            }
        };
        self.handle(Input::Restore(remembered, SystemTime::now()))
    }

    /// What a message means to the state machine, after keeping the channels that come with it.
    fn control_message(&mut self, message: ToBroker) -> Input {
        if brings_peer(&message) {
            // There is one: it was put there before the message.
            let _ = self.on_their_way.try_recv();
        }
        match message {
            ToBroker::Configure(config) => Input::Configure(config),
            ToBroker::OpenPort {
                port,
                identity,
                requests,
                messages,
            } => {
                let event_loop = Some(identity.event_loop);
                match self.add_peer(Source::Port(port), event_loop, requests, messages) {
                    Ok(()) => Input::OpenPort { port, identity },
                    // Its document finds it closed.
                    Err(error) => {
                        log::error!("port {}: {error}", port.0);
                        Input::RefusePort(port)
                    }
                }
            }
            ToBroker::ClosePort(port) => Input::ClosePort(port),
            ToBroker::SetPermission {
                origin,
                top_level_origin,
                feature,
                state,
            } => Input::SetPermission {
                origin,
                top_level_origin,
                feature,
                state,
            },
            ToBroker::Activation { prompt, is_active } => Input::Activation { prompt, is_active },
            ToBroker::PromptAnswered { prompt, answer } => Input::PromptAnswered { prompt, answer },
            ToBroker::GetOverview { id } => Input::GetOverview(id),
            ToBroker::Revoke(grant) => Input::Revoke(grant),
            ToBroker::WorkerStarted {
                worker,
                requests,
                replies,
            } => {
                match self.add_peer(Source::Worker(worker), None, replies, requests) {
                    Ok(()) => Input::WorkerStarted(worker),
                    // It ends when it finds its channel closed.
                    Err(error) => {
                        log::error!("worker {}: {error}", worker.0);
                        Input::WorkerEnded(worker)
                    }
                }
            }
            ToBroker::WorkerEnded { worker, reason } => {
                log::info!("worker {}: {reason}", worker.0);
                Input::WorkerEnded(worker)
            }
        }
    }

    fn add_peer(
        &mut self,
        source: Source,
        event_loop: Option<u64>,
        receiver: IpcReceiver<Frame>,
        sender: IpcSender<Frame>,
    ) -> io::Result<()> {
        let kept = match source {
            Source::Port(_) => PLACES_OF_WORKERS,
            Source::Worker(_) => 0,
        };
        if self.peers.len() as u64 + kept >= self.max_peers {
            return Err(io::Error::other("no file descriptors are left for it"));
        }
        let wire = self.carrier.unpack(receiver, sender)?;
        let id = self.next_id;
        self.next_id += 1;
        epoll::add(
            &self.epoll,
            wire.receiving_end(),
            EventData::new_u64(id),
            EventFlags::IN,
        )?;
        self.ids.insert(source, id);
        self.peers.insert(
            id,
            Peer {
                source,
                wire,
                event_loop,
                is_waited_for: false,
            },
        );
        Ok(())
    }

    fn drop_peer(&mut self, source: Source) {
        // Closing the sockets also takes them out of epoll.
        if let Some(id) = self.ids.remove(&source) {
            self.peers.remove(&id);
        }
    }

    fn peer_event(&mut self, id: u64, flags: EventFlags) -> Result<(), MainProcessGone> {
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.flush(id)?;
        }
        for _ in 0..FRAMES_PER_TURN {
            let Some(peer) = self.peers.get(&id) else {
                break;
            };
            let source = peer.source;
            if let Some(event_loop) = peer.event_loop {
                let taken = self.taken.entry(event_loop).or_default();
                // What is left is there in the next turn.
                if *taken >= FRAMES_OF_EVENT_LOOP_PER_TURN {
                    break;
                }
                *taken += 1;
            }
            let input = match (source, peer.wire.receive(&mut self.buffer)) {
                (_, Received::Nothing) => break,
                (Source::Port(port), Received::Frame(frame)) => Input::PortFrame(port, frame),
                (Source::Worker(worker), Received::Frame(frame)) => {
                    Input::WorkerFrame(worker, frame)
                }
                (_, Received::Broken | Received::Closed) => lost(source),
            };
            self.handle(input)?;
        }
        Ok(())
    }

    /// Tells the state machine, and does what it says.
    fn handle(&mut self, input: Input) -> Result<(), MainProcessGone> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            if let Input::WorkerEnded(worker) = &input {
                self.drop_peer(Source::Worker(*worker));
            }
            for output in self.broker.handle(input, Instant::now()) {
                inputs.extend(self.perform(output)?);
            }
        }
        Ok(())
    }

    /// Does one thing. Where that fails, returns what it means to the state machine.
    fn perform(&mut self, output: Output) -> Result<Option<Input>, MainProcessGone> {
        match output {
            Output::ToPort(port, message) => {
                return Ok(self.send(Source::Port(port), Frame::encode(&message).ok()));
            }
            Output::ToWorker(worker, request) => {
                return Ok(self.send(Source::Worker(worker), Frame::encode(&request).ok()));
            }
            Output::ToKeyWorker(worker, request) => {
                return Ok(self.send(Source::Worker(worker), Frame::encode(&request).ok()));
            }
            Output::PortOpened(port) => self.tell_main_process(FromBroker::PortOpened(port))?,
            Output::ClosePort(port) => {
                self.drop_peer(Source::Port(port));
                self.tell_main_process(FromBroker::PortClosed(port))?;
            }
            Output::StartWorker(worker, kind) => {
                self.tell_main_process(FromBroker::StartWorker { worker, kind })?;
            }
            Output::KillWorker(worker) => {
                self.drop_peer(Source::Worker(worker));
                self.tell_main_process(FromBroker::KillWorker(worker))?;
            }
            Output::ReleaseWorker(worker) => self.drop_peer(Source::Worker(worker)),
            Output::CheckActivation(prompt, webview) => {
                self.tell_main_process(FromBroker::CheckActivation { prompt, webview })?;
            }
            Output::Prompt(request) => self.tell_main_process(FromBroker::Prompt(request))?,
            Output::WithdrawPrompt(prompt) => {
                self.tell_main_process(FromBroker::WithdrawPrompt(prompt))?;
            }
            Output::Overview(id, overview) => {
                let mut parts = overview::parts(overview);
                while let Some(part) = parts.pop_front() {
                    let is_last = parts.is_empty();
                    self.tell_main_process(FromBroker::Overview { id, part, is_last })?;
                }
            }
            Output::Store(write) => {
                if let Some(writer) = &self.writer {
                    writer.write(write);
                }
            }
        }
        Ok(None)
    }

    fn send(&mut self, source: Source, frame: Option<Frame>) -> Option<Input> {
        let id = *self.ids.get(&source)?;
        let peer = self.peers.get_mut(&id)?;
        let sent = frame.ok_or(Gone).and_then(|frame| peer.wire.send(&frame));
        if sent.is_err() || self.waits_for_too_much(id) || self.wait_for_room(id).is_err() {
            log::warn!("{source:?} does not take its messages");
            return Some(lost(source));
        }
        None
    }

    /// Whether a document does not read, and so much waits for it and for others like it that it is not to wait any longer.
    fn waits_for_too_much(&self, id: u64) -> bool {
        let Some(peer) = self.peers.get(&id).filter(|peer| peer.wire.is_blocked()) else {
            return false;
        };
        let outgoing = |is_of: &dyn Fn(&Peer) -> bool| -> usize {
            let peers = self.peers.values().filter(|peer| is_of(peer));
            peers.map(|peer| peer.wire.outgoing_length()).sum()
        };
        let of_loop = outgoing(&|other| other.event_loop == peer.event_loop);
        of_loop > MAX_OUTGOING_OF_EVENT_LOOP || outgoing(&|_| true) > MAX_OUTGOING_IN_ALL
    }

    fn flush(&mut self, id: u64) -> Result<(), MainProcessGone> {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        let source = peer.source;
        if peer.wire.flush().is_err() || self.wait_for_room(id).is_err() {
            self.handle(lost(source))?;
        }
        Ok(())
    }

    /// Waits for room in a peer's wire where there is none, and no longer where there is.
    fn wait_for_room(&mut self, id: u64) -> io::Result<()> {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        let is_blocked = peer.wire.is_blocked();
        if is_blocked != peer.is_waited_for {
            let end = peer.wire.sending_end();
            if is_blocked {
                epoll::add(&self.epoll, end, EventData::new_u64(id), EventFlags::OUT)?;
            } else {
                epoll::delete(&self.epoll, end)?;
            }
            peer.is_waited_for = is_blocked;
        }
        Ok(())
    }

    fn tell_main_process(&self, message: FromBroker) -> Result<(), MainProcessGone> {
        match Frame::encode(&message) {
            Ok(frame) => self.main_process.send(frame).map_err(|_| MainProcessGone),
            // Nothing that is sent is nearly so long.
            Err(error) => {
                log::error!("a message to the main process: {error}");
                Ok(())
            }
        }
    }
}

/// Says at once what is wrong: as soon as the connection closes, the main process kills this one.
fn sandbox_error(error: SandboxError) -> io::Error {
    log::error!("sandbox: {error}");
    io::Error::other("the broker is not locked down")
}

/// What there is where nothing is remembered.
fn nothing() -> Remembered {
    Remembered {
        secret: InstallationSecret::random(),
        ..Remembered::default()
    }
}

/// What the loss of a peer means to the state machine.
fn lost(source: Source) -> Input {
    match source {
        Source::Port(port) => Input::ClosePort(port),
        Source::Worker(worker) => Input::WorkerEnded(worker),
    }
}

/// How long to wait: not less than until `deadline`, in the milliseconds that every kernel knows.
fn timeout(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    let left = Duration::from_millis(u64::try_from(milliseconds).unwrap_or(u64::MAX));
    Timespec {
        // Deadlines are minutes away at most.
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

fn brings_peer(message: &ToBroker) -> bool {
    matches!(
        message,
        ToBroker::OpenPort { .. } | ToBroker::WorkerStarted { .. }
    )
}

/// How many peers a broker has descriptors for, in its sandbox.
fn max_peers(kind: Kind<'_>) -> u64 {
    let limits = sandbox::table::limits(kind).into_iter();
    let of_sandbox = limits.filter(|(resource, _)| *resource == Resource::Nofile);
    let of_process = getrlimit(Resource::Nofile).maximum;
    let all = of_sandbox.map(|(_, limit)| limit).chain(of_process);
    let limit = all.min().unwrap_or_default();
    limit.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS_OF_PEER
}

/// The main process's messages carry channels, which only ipc-channel can unpack. They are rare, so a thread of its own
/// may wait for them and wake the loop. It must not find a message's descriptors missing, so it takes no more of them than
/// there is room for.
fn start_control_thread(
    messages: IpcReceiver<ToBroker>,
    sender: Sender<ToBroker>,
    places: SyncSender<()>,
    wake: Arc<OwnedFd>,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let wake_up = || rustix::io::write(&wake, &1_u64.to_ne_bytes());
            while let Ok(message) = messages.recv() {
                if brings_peer(&message) && places.send(()).is_err() {
                    return;
                }
                if sender.send(message).is_err() || wake_up().is_err() {
                    return;
                }
            }
            // The loop finds that this end of its channel has gone.
            drop(sender);
            let _ = wake_up();
        })?;
    Ok(())
}
