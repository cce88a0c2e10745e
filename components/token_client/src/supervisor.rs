/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The one long-lived thread that starts all token processes.
//!
//! Each asks the kernel to be killed with the thread that started it, so no other thread may do it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use token_traits::control::{FromBroker, GOOD_LIFE, ToBroker, WorkerId, WorkerKind, restart_pause};
use token_traits::prompt::{GrantId, Overview, PromptAnswer, PromptHost, PromptId, PromptRequest};
use token_traits::transport::{self, Carrier, Packer, Received, ReceiverEnd};
use token_traits::wire::WIRE_VERSION;
use token_traits::{
    ErrorKind, Frame, OpenPortCallback, PermissionState, PortId, PortIdentity, TokenError,
    TokenPort,
};

use crate::activation::Activations;
use crate::bootstrap::Reported;
use crate::child::{Child, ChildId};
use crate::outbox::Outbox;
use crate::{ClientConfig, OverviewCallback, Permissions, Subject, lock};

/// Most workers at a time: the virtual card, the monitor, PC/SC's 16 readers, and some that are being replaced.
const MAX_WORKERS: usize = 32;

/// Most ports at a time. Every document can have one, and each takes two file descriptors of the broker.
pub(crate) const MAX_PORTS: usize = 512;

/// Most ports of one webview at a time, so that no page takes them all, and most of one event loop, so that no content
/// process does.
const MAX_PORTS_OF_ONE: usize = MAX_PORTS / 4;

/// How long the broker may take to open a port, or to read what it is sent.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How many brokers may end before they open a port.
const MAX_TRIES: u32 = 2;

/// Most messages of the broker's that wait to be dealt with. Then it has to wait.
const MAX_UNHANDLED: usize = 256;

/// Most workers to be started in [`STARTS_PERIOD`].
const MAX_STARTS: usize = 200;
const STARTS_PERIOD: Duration = Duration::from_secs(10);

/// If this thread is so late, the machine or all processes stood still, and nobody else is to blame for being late.
const STANDSTILL: Duration = Duration::from_secs(1);
/// What others get then.
const GRACE: Duration = Duration::from_secs(2);

/// How long the page of tokens waits for an overview.
const OVERVIEW_LIMIT: Duration = Duration::from_secs(10);

/// Most parts of an overview. The grants, the rules and the audit log that are shown fit.
const MAX_OVERVIEW_PARTS: usize = 128;

/// Most overviews that are waited for.
const MAX_OVERVIEWS: usize = 16;

/// Most grants to be revoked by a broker that does not run yet.
const MAX_REVOCATIONS: usize = 64;

/// Something that the supervisor has to deal with.
pub(crate) enum Event {
    OpenPort(PortId, PortIdentity, OpenPortCallback),
    ClosePort(PortId),
    PermissionSet(Subject, PermissionState),
    PromptAnswered(HostPromptId, PromptAnswer),
    Overview(OverviewCallback),
    Revoke(GrantId),
    Stop,
    BrokerReported(ChildId, Result<Reported, String>),
    BrokerSent(ChildId, FromBroker),
    /// The broker cannot be reached, or does not keep to the protocol.
    BrokerLost(ChildId, String),
    WorkerReported(WorkerId, ChildId, Result<Reported, String>),
    Ended(ChildId, io::Result<ExitStatus>),
}

/// The id by which the prompt host knows a prompt. The broker's ids begin anew with each broker; these do not, so that a late
/// answer reaches no other prompt than its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct HostPromptId(PromptId);

/// Starts the thread.
pub(crate) fn start(
    config: ClientConfig,
    prompts: Arc<dyn PromptHost>,
    permissions: Permissions,
    activations: Arc<Mutex<Activations>>,
) -> io::Result<Sender<Event>> {
    let (sender, receiver) = mpsc::channel();
    let mut supervisor = Supervisor {
        config,
        prompts,
        permissions,
        activations,
        events: sender.clone(),
        next_child: 0,
        broker: Broker::Stopped,
        workers: HashMap::new(),
        waiting: Vec::new(),
        opening: HashMap::new(),
        open: HashMap::new(),
        shown: HashMap::new(),
        next_prompt: 0,
        overviews: HashMap::new(),
        next_overview: 0,
        revocations: Vec::new(),
        ends: 0,
        not_before: None,
        starts: VecDeque::new(),
        grace: None,
        packer: None,
    };
    thread::Builder::new()
        .name("token supervisor".into())
        .spawn(move || supervisor.run(&receiver))?;
    Ok(sender)
}

struct Supervisor {
    config: ClientConfig,
    prompts: Arc<dyn PromptHost>,
    permissions: Permissions,
    activations: Arc<Mutex<Activations>>,
    events: Sender<Event>,
    next_child: u64,
    broker: Broker,
    workers: HashMap<WorkerId, Worker>,
    /// Ports that wait for the broker to start.
    waiting: Vec<Waiting>,
    /// Ports of which the broker has still to say that it serves them, with the document's ends.
    opening: HashMap<PortId, Opening>,
    /// Ports that the running broker serves.
    open: HashMap<PortId, Place>,
    /// The running broker's prompts that were handed to the prompt host and not answered yet, by the broker's ids.
    shown: HashMap<PromptId, ShownPrompt>,
    next_prompt: u64,
    /// The page of tokens waits for these.
    overviews: HashMap<u64, PendingOverview>,
    next_overview: u64,
    /// For the broker that is to be started.
    revocations: Vec<GrantId>,
    /// How often the broker has ended in a row.
    ends: u32,
    not_before: Option<Instant>,
    /// When workers were started, within the period that counts.
    starts: VecDeque<Instant>,
    /// After a standstill: nobody is late before that.
    grace: Option<Instant>,
    /// Made when it is first needed.
    packer: Option<Packer>,
}

/// Where a document is.
#[derive(Clone, Copy)]
struct Place {
    webview: u64,
    event_loop: u64,
}

impl Place {
    fn of(identity: &PortIdentity) -> Self {
        Self {
            webview: identity.webview,
            event_loop: identity.event_loop,
        }
    }
}

struct Opening {
    waiting: Waiting,
    ends: TokenPort,
    until: Instant,
}

struct Waiting {
    port: PortId,
    identity: PortIdentity,
    callback: OpenPortCallback,
    /// How many brokers have ended before they opened it.
    tries: u32,
}

struct ShownPrompt {
    host_id: HostPromptId,
    webview: u64,
}

struct PendingOverview {
    callback: OverviewCallback,
    until: Instant,
    /// Whether the running broker was asked.
    asked: bool,
    /// What has arrived of it, and in how many parts.
    overview: Overview,
    parts: usize,
}

enum Broker {
    Stopped,
    Starting(Child),
    Running {
        child: Child,
        since: Instant,
        outbox: Outbox,
        /// One for each message that is dealt with, or waits for it.
        unhandled: Receiver<()>,
        _inbox: ReceiverEnd,
    },
}

struct Worker {
    child: Child,
    kind: WorkerKind,
}

impl Supervisor {
    fn run(&mut self, events: &Receiver<Event>) {
        loop {
            let deadline = self.deadline();
            let event = match deadline {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    events.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                }
            };
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now > deadline + STANDSTILL) {
                self.grace = Some(now + GRACE);
            }
            match event {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Nothing of that takes long either.
            if now.elapsed() > STANDSTILL {
                self.grace = Some(Instant::now() + GRACE);
            }
            self.check_deadlines();
        }
        let unopened = self.opening.drain().map(|(_, opening)| opening.waiting);
        self.waiting.extend(unopened);
        self.fail_waiting("the browser is closing");
        self.withdraw_prompts();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::OpenPort(_, identity, callback) if !self.has_room(Place::of(&identity)) => {
                callback(Err(TokenError::new(
                    ErrorKind::Io,
                    "too many documents use tokens",
                )));
            }
            Event::OpenPort(port, identity, callback) => {
                self.waiting.push(Waiting {
                    port,
                    identity,
                    callback,
                    tries: 0,
                });
                self.serve_waiting();
            }
            Event::ClosePort(port) => self.close_port(port),
            Event::PermissionSet(subject, state) => {
                self.tell_broker(set_permission(subject, state));
            }
            Event::PromptAnswered(prompt, answer) => self.prompt_answered(prompt, answer),
            Event::Overview(callback) => self.request_overview(callback),
            Event::Revoke(grant) => {
                if self.revocations.len() < MAX_REVOCATIONS {
                    self.revocations.push(grant);
                }
                self.serve_waiting();
            }
            Event::Stop => {}
            Event::BrokerReported(child, hello) => self.broker_reported(child, hello),
            Event::BrokerSent(child, message) => {
                if let Broker::Running { unhandled, .. } = &self.broker
                    && self.is_running(child)
                {
                    // There is one: it was put there before the message.
                    let _ = unhandled.try_recv();
                    self.broker_sent(message);
                }
            }
            Event::BrokerLost(child, reason) => {
                if self.is_running(child) {
                    self.broker_ended(&reason);
                }
            }
            Event::WorkerReported(worker, child, hello) => {
                self.worker_reported(worker, child, hello);
            }
            Event::Ended(child, status) => self.ended(child, &describe(status)),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let broker = match &self.broker {
            Broker::Starting(child) => child.deadline(),
            Broker::Running { outbox, .. } => {
                outbox.waits_since().map(|since| since + ANSWER_LIMIT)
            }
            Broker::Stopped if self.has_waiting() => self.not_before,
            Broker::Stopped => None,
        };
        let overviews = self.overviews.values().map(|overview| overview.until);
        let ports = self.opening.values().map(|opening| opening.until);
        let workers = self
            .workers
            .values()
            .filter_map(|worker| worker.child.deadline());
        let all = broker.into_iter().chain(workers).chain(overviews);
        let first = all.chain(ports).min();
        first.map(|first| self.grace.map_or(first, |grace| first.max(grace)))
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        if self.grace.is_some_and(|grace| now < grace) {
            return self.serve_waiting();
        }
        self.grace = None;
        let overdue = |child: &Child| child.deadline().is_some_and(|deadline| deadline <= now);
        if let Broker::Running { outbox, .. } = &self.broker
            && let Some(since) = outbox.waits_since()
            && since + ANSWER_LIMIT <= now
        {
            self.broker_ended("it does not read what it is sent");
        }
        let unopened: Vec<Opening> = self
            .opening
            .extract_if(|_, opening| opening.until <= now)
            .map(|(_, opening)| opening)
            .collect();
        if !unopened.is_empty() {
            self.broker_ended("it does not open ports");
        }
        for Opening { waiting, .. } in unopened {
            let message = "the token broker does not answer";
            (waiting.callback)(Err(TokenError::new(ErrorKind::Io, message)));
        }
        if let Broker::Starting(child) = &self.broker
            && overdue(child)
        {
            self.broker_ended("it did not report in time");
        }
        let late: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| overdue(&worker.child))
            .map(|(id, _)| *id)
            .collect();
        for worker in late {
            self.worker_ended(worker, "it did not report in time");
        }
        // A callback that is dropped means that there is no answer.
        self.overviews.retain(|_, overview| overview.until > now);
        self.serve_waiting();
    }

    fn next_child(&mut self) -> ChildId {
        self.next_child += 1;
        ChildId(self.next_child)
    }

    /// Whether there is room for one more port, at that place.
    fn has_room(&self, place: Place) -> bool {
        let opening = self.opening.values().map(|opening| &opening.waiting);
        let unopened = self.waiting.iter().chain(opening);
        let all: Vec<Place> = unopened
            .map(|waiting| Place::of(&waiting.identity))
            .chain(self.open.values().copied())
            .collect();
        let count =
            |is_there: &dyn Fn(&Place) -> bool| all.iter().filter(|other| is_there(other)).count();
        all.len() < MAX_PORTS
            && count(&|other| other.webview == place.webview) < MAX_PORTS_OF_ONE
            && count(&|other| other.event_loop == place.event_loop) < MAX_PORTS_OF_ONE
    }

    /// What tells this thread that a process has ended.
    fn on_end(&self, child: ChildId) -> impl FnOnce(io::Result<ExitStatus>) + Send + 'static {
        let events = self.events.clone();
        move |status| {
            // Without a supervisor nobody needs to know.
            let _ = events.send(Event::Ended(child, status));
        }
    }

    // The broker.

    /// Whether there is something to do for a broker.
    fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
            || !self.revocations.is_empty()
            || self.overviews.values().any(|overview| !overview.asked)
    }

    /// Does what waits for a broker, or starts one for it.
    fn serve_waiting(&mut self) {
        if !self.has_waiting() {
            return;
        }
        match &self.broker {
            Broker::Starting(_) => {}
            Broker::Stopped if self.not_before.is_some_and(|time| Instant::now() < time) => {}
            Broker::Stopped => self.start_broker(),
            Broker::Running { .. } => {
                for waiting in std::mem::take(&mut self.waiting) {
                    self.open_port(waiting);
                }
                for grant in std::mem::take(&mut self.revocations) {
                    self.tell_broker(ToBroker::Revoke(grant));
                }
                self.ask_for_overviews();
            }
        }
    }

    fn open_port(&mut self, waiting: Waiting) {
        if !matches!(self.broker, Broker::Running { .. }) {
            return self.waiting.push(waiting);
        }
        let channels = ipc::channel().and_then(|requests| Ok((requests, ipc::channel()?)));
        let ((request_sender, requests), (messages, message_receiver)) = match channels {
            Ok(channels) => channels,
            Err(error) => {
                log::error!("cannot open a token port: {error}");
                return (waiting.callback)(Err(TokenError::new(
                    ErrorKind::Io,
                    "the system has no room for another port",
                )));
            }
        };
        let message = ToBroker::OpenPort {
            port: waiting.port,
            identity: waiting.identity.clone(),
            requests,
            messages,
        };
        let ends = TokenPort {
            requests: request_sender,
            messages: message_receiver,
        };
        let opening = Opening {
            ends,
            until: Instant::now() + ANSWER_LIMIT,
            waiting,
        };
        self.opening.insert(opening.waiting.port, opening);
        self.tell_broker(message);
    }

    fn close_port(&mut self, port: PortId) {
        let position = self.waiting.iter().position(|waiting| waiting.port == port);
        let unopened = match position {
            Some(position) => Some(self.waiting.swap_remove(position)),
            None => {
                let opening = self.opening.remove(&port);
                self.open.remove(&port);
                self.tell_broker(ToBroker::ClosePort(port));
                opening.map(|opening| opening.waiting)
            }
        };
        if let Some(Waiting { callback, .. }) = unopened {
            callback(Err(TokenError::new(
                ErrorKind::Closed,
                "the port was closed before it was open",
            )));
        }
    }

    fn start_broker(&mut self) {
        let id = self.next_child();
        let events = self.events.clone();
        let store = self.config.store.as_deref();
        let arguments = store.map(|store| [OsStr::new("--store"), store.as_os_str()]);
        let child = Child::start(
            id,
            &self.config.broker_binary,
            "broker",
            arguments.as_ref().map_or(&[], |arguments| &arguments[..]),
            &BTreeMap::new(),
            move |hello| {
                // Without a supervisor the process ends by itself.
                let _ = events.send(Event::BrokerReported(id, hello));
            },
            self.on_end(id),
        );
        match child {
            Ok(child) => self.broker = Broker::Starting(child),
            Err(error) => self.broker_ended(&format!(
                "cannot start {}: {error}",
                self.config.broker_binary.display()
            )),
        }
    }

    fn broker_reported(&mut self, id: ChildId, reported: Result<Reported, String>) {
        let mut child = match std::mem::replace(&mut self.broker, Broker::Stopped) {
            Broker::Starting(child) if child.id == id => child,
            // A process that was given up.
            other => return self.broker = other,
        };
        let connected = reported.and_then(|reported| {
            check_version(&reported)?;
            self.connect_broker(id, reported)
                .map_err(|error| error.to_string())
        });
        match connected {
            Ok((lifeline, outbox, unhandled, inbox)) => {
                child.started(lifeline);
                self.broker = Broker::Running {
                    child,
                    since: Instant::now(),
                    outbox,
                    unhandled,
                    _inbox: inbox,
                };
            }
            Err(reason) => {
                self.broker = Broker::Starting(child);
                return self.broker_ended(&reason);
            }
        }
        self.tell_broker(ToBroker::Configure(self.config.broker_config()));
        let permissions = lock(&self.permissions).clone();
        for (subject, state) in permissions {
            self.tell_broker(set_permission(subject, state));
        }
    }

    /// Starts the threads that send to the broker and receive from it.
    fn connect_broker(
        &mut self,
        id: ChildId,
        Reported {
            to_child,
            from_child,
            lifeline,
            ..
        }: Reported,
    ) -> io::Result<(OwnedFd, Outbox, Receiver<()>, ReceiverEnd)> {
        let (_, sender) = self.pack::<(), _>(&from_child, &to_child)?;
        let events = self.events.clone();
        let outbox = Outbox::start(sender, to_child, move |error| {
            // Without a supervisor nobody needs to know.
            let _ = events.send(Event::BrokerLost(id, error));
        })?;
        let (receiver, inbox) = transport::Receiver::new(from_child);
        let (slots, unhandled) = mpsc::sync_channel(MAX_UNHANDLED);
        let events = self.events.clone();
        thread::Builder::new()
            .name("token broker".into())
            .spawn(move || receive_from_broker(receiver, id, &slots, &events))?;
        Ok((lifeline, outbox, unhandled, inbox))
    }

    /// Makes the ends of channels that a token process's sockets belong to.
    fn pack<R, S>(
        &mut self,
        receive: &OwnedFd,
        send: &OwnedFd,
    ) -> io::Result<(IpcReceiver<R>, IpcSender<S>)>
    where
        R: for<'de> Deserialize<'de> + Serialize,
        S: for<'de> Deserialize<'de> + Serialize,
    {
        let packer = match &mut self.packer {
            Some(packer) => packer,
            none => none.insert(Packer::new(&Carrier::new()?)?),
        };
        packer.pack(receive.as_fd(), send.as_fd())
    }

    fn is_running(&self, id: ChildId) -> bool {
        matches!(&self.broker, Broker::Running { child, .. } if child.id == id)
    }

    /// Sends something to the broker if there is one.
    fn tell_broker(&mut self, message: ToBroker) {
        if let Broker::Running { outbox, .. } = &self.broker
            && outbox.send(message).is_err()
        {
            self.broker_ended("it does not read what it is sent");
        }
    }

    // Prompts.

    /// Shows a prompt of the broker's if the user has just done something there.
    fn show_prompt(&mut self, mut request: PromptRequest) {
        let (id, webview) = (request.id, request.webview);
        // It takes the place of one that the user sees already.
        let replaced = request.replaces.filter(|replaced| {
            let shown = self.shown.get(replaced);
            shown.is_some_and(|shown| shown.webview == webview)
        });
        let replaced = replaced.and_then(|replaced| self.shown.remove(&replaced));
        let is_allowed =
            replaced.is_some() || lock(&self.activations).consume(webview, Instant::now());
        if !is_allowed {
            let answer = PromptAnswer::NotAsked;
            return self.tell_broker(ToBroker::PromptAnswered { prompt: id, answer });
        }
        self.next_prompt += 1;
        let host_id = HostPromptId(PromptId(self.next_prompt));
        self.shown.insert(id, ShownPrompt { host_id, webview });
        request.id = host_id.0;
        request.replaces = replaced.map(|replaced| replaced.host_id.0);
        let events = self.events.clone();
        let callback = move |answer| {
            // Without a supervisor nobody needs to know.
            let _ = events.send(Event::PromptAnswered(host_id, answer));
        };
        self.prompts.show(request, Box::new(callback));
    }

    fn prompt_answered(&mut self, prompt: HostPromptId, answer: PromptAnswer) {
        let shown = self
            .shown
            .extract_if(|_, shown| shown.host_id == prompt)
            .next();
        // One that was replaced, or of a broker that has ended.
        let Some((prompt, ShownPrompt { webview, .. })) = shown else {
            return;
        };
        if !matches!(answer, PromptAnswer::Refused | PromptAnswer::NotAsked) {
            lock(&self.activations).note(webview, Instant::now());
        }
        self.tell_broker(ToBroker::PromptAnswered { prompt, answer });
    }

    fn withdraw_prompts(&mut self) {
        for (_, shown) in self.shown.drain() {
            self.prompts.withdraw(shown.host_id.0);
        }
    }

    // The page of tokens.

    fn request_overview(&mut self, callback: OverviewCallback) {
        if self.overviews.len() >= MAX_OVERVIEWS {
            return;
        }
        self.next_overview += 1;
        let overview = PendingOverview {
            callback,
            until: Instant::now() + OVERVIEW_LIMIT,
            asked: false,
            overview: Overview::default(),
            parts: 0,
        };
        self.overviews.insert(self.next_overview, overview);
        self.serve_waiting();
    }

    fn ask_for_overviews(&mut self) {
        let mut ids: Vec<u64> = Vec::new();
        for (id, overview) in &mut self.overviews {
            if !std::mem::replace(&mut overview.asked, true) {
                ids.push(*id);
            }
        }
        for id in ids {
            self.tell_broker(ToBroker::GetOverview { id });
        }
    }

    fn overview_arrived(&mut self, id: u64, part: Overview, is_last: bool) {
        // One that was given up, unless the broker has made it up.
        let Some(pending) = self.overviews.get_mut(&id).filter(|other| other.asked) else {
            return;
        };
        pending.parts += 1;
        if pending.parts > MAX_OVERVIEW_PARTS {
            return self.broker_ended("its overview has no end");
        }
        let overview = &mut pending.overview;
        overview.readers.extend(part.readers);
        overview.grants.extend(part.grants);
        overview.audit.extend(part.audit);
        overview.problem = part.problem.or(overview.problem.take());
        if is_last && let Some(pending) = self.overviews.remove(&id) {
            (pending.callback)(pending.overview);
        }
    }

    /// Makes an end of the broker and of everything that it needed. Its ports have closed with it.
    fn broker_ended(&mut self, reason: &str) {
        log::warn!("the token broker ended: {reason}");
        let started = match std::mem::replace(&mut self.broker, Broker::Stopped) {
            Broker::Running { since, .. } => {
                if since.elapsed() >= GOOD_LIFE {
                    self.ends = 0;
                }
                true
            }
            Broker::Starting(_) | Broker::Stopped => false,
        };
        self.workers.clear();
        self.open.clear();
        self.withdraw_prompts();
        self.overviews.retain(|_, overview| !overview.asked);
        // The next one serves the ports that this one did not come to.
        let unopened: Vec<Waiting> = self
            .opening
            .drain()
            .map(|(_, opening)| opening.waiting)
            .collect();
        for mut waiting in unopened {
            waiting.tries += 1;
            if waiting.tries < MAX_TRIES {
                self.waiting.push(waiting);
            } else {
                let message = "the token broker ends before it opens a port";
                (waiting.callback)(Err(TokenError::new(ErrorKind::Io, message)));
            }
        }
        self.ends = self.ends.saturating_add(1);
        self.not_before = Some(Instant::now() + restart_pause(self.ends));
        if !started {
            self.fail_waiting("the token broker cannot be started");
            self.overviews.clear();
            self.revocations.clear();
        }
    }

    fn fail_waiting(&mut self, message: &str) {
        for Waiting { callback, .. } in std::mem::take(&mut self.waiting) {
            callback(Err(TokenError::new(ErrorKind::Io, message)));
        }
    }

    // Workers.

    fn broker_sent(&mut self, message: FromBroker) {
        match message {
            FromBroker::StartWorker { worker, kind } => {
                if let Err(reason) = self.start_worker(worker, kind) {
                    log::warn!("worker {}: {reason}", worker.0);
                    self.tell_broker(ToBroker::WorkerEnded { worker, reason });
                }
            }
            FromBroker::KillWorker(worker) => {
                if let Some(worker) = self.workers.get(&worker) {
                    worker.child.kill();
                }
            }
            FromBroker::PortOpened(port) => {
                if let Some(Opening { waiting, ends, .. }) = self.opening.remove(&port) {
                    self.open.insert(port, Place::of(&waiting.identity));
                    (waiting.callback)(Ok(ends));
                }
            }
            FromBroker::PortClosed(port) => {
                self.open.remove(&port);
            }
            FromBroker::CheckActivation { prompt, webview } => {
                let is_active = lock(&self.activations).is_active(webview, Instant::now());
                self.tell_broker(ToBroker::Activation { prompt, is_active });
            }
            FromBroker::Prompt(request) => self.show_prompt(request),
            FromBroker::WithdrawPrompt(prompt) => {
                if let Some(shown) = self.shown.remove(&prompt) {
                    self.prompts.withdraw(shown.host_id.0);
                }
            }
            FromBroker::Overview { id, part, is_last } => {
                self.overview_arrived(id, part, is_last);
            }
        }
    }

    fn start_worker(&mut self, worker: WorkerId, kind: WorkerKind) -> Result<(), String> {
        let (program, configured) = match &kind {
            WorkerKind::VirtualCard { profile } => (
                "virtual-card",
                self.config.virtual_card.as_ref() == Some(profile),
            ),
            WorkerKind::PcscMonitor => ("pcsc-monitor", self.config.pcsc),
            WorkerKind::PcscReader { .. } => ("pcsc-reader", self.config.pcsc),
            WorkerKind::Module(module) => ("module-worker", self.config.modules.contains(module)),
            WorkerKind::Tpm { tcti } => ("tpm-worker", self.config.tpm.as_ref() == Some(tcti)),
        };
        if !configured {
            return Err("the configuration does not name it".into());
        }
        if self.workers.contains_key(&worker) {
            return Err("it runs already".into());
        }
        if self.workers.len() >= MAX_WORKERS {
            return Err("too many workers run".into());
        }
        let now = Instant::now();
        self.starts.retain(|start| *start + STARTS_PERIOD > now);
        if self.starts.len() >= MAX_STARTS {
            return Err("too many workers were started".into());
        }
        self.starts.push_back(now);
        let id = self.next_child();
        let events = self.events.clone();
        let environment = match &kind {
            WorkerKind::Module(module) => &module.environment,
            // The TPM's libraries write what they return to standard error as well.
            WorkerKind::Tpm { .. } => &[("TSS2_LOG".into(), "all+NONE".into())].into(),
            _ => &BTreeMap::new(),
        };
        let child = Child::start(
            id,
            &self.config.broker_binary,
            program,
            &[],
            environment,
            move |hello| {
                // Without a supervisor the process ends by itself.
                let _ = events.send(Event::WorkerReported(worker, id, hello));
            },
            self.on_end(id),
        )
        .map_err(|error| format!("it cannot be started: {error}"))?;
        self.workers.insert(worker, Worker { child, kind });
        Ok(())
    }

    fn worker_reported(
        &mut self,
        id: WorkerId,
        child: ChildId,
        reported: Result<Reported, String>,
    ) {
        let is_known = |worker: &Worker| worker.child.id == child;
        if !self.workers.get(&id).is_some_and(is_known) {
            return;
        }
        let started = reported.and_then(|reported| {
            check_version(&reported)?;
            let ends = self.pack(&reported.from_child, &reported.to_child);
            let (replies, requests) = ends.map_err(|error| error.to_string())?;
            let worker = self.workers.get_mut(&id).ok_or("it is not known")?;
            let kind = Frame::encode(&worker.kind).map_err(|error| error.to_string())?;
            // It has read nothing yet, so there is room.
            requests.send(kind).map_err(|error| error.to_string())?;
            worker.child.started(reported.lifeline);
            Ok((requests, replies))
        });
        match started {
            Ok((requests, replies)) => self.tell_broker(ToBroker::WorkerStarted {
                worker: id,
                requests,
                replies,
            }),
            Err(reason) => self.worker_ended(id, &reason),
        }
    }

    fn worker_ended(&mut self, worker: WorkerId, reason: &str) {
        // The process is killed if it still runs.
        self.workers.remove(&worker);
        self.tell_broker(ToBroker::WorkerEnded {
            worker,
            reason: reason.to_owned(),
        });
    }

    fn ended(&mut self, id: ChildId, reason: &str) {
        let is_broker = match &self.broker {
            Broker::Stopped => false,
            Broker::Starting(child) | Broker::Running { child, .. } => child.id == id,
        };
        if is_broker {
            return self.broker_ended(reason);
        }
        let worker = self
            .workers
            .iter()
            .find(|(_, worker)| worker.child.id == id)
            .map(|(worker, _)| *worker);
        if let Some(worker) = worker {
            self.worker_ended(worker, reason);
        }
    }
}

/// Takes what the broker sends, and waits while too much of it is not dealt with.
fn receive_from_broker(
    mut receiver: transport::Receiver,
    id: ChildId,
    slots: &SyncSender<()>,
    events: &Sender<Event>,
) {
    let lost = |reason: &str| {
        // Without a supervisor nobody needs to know.
        let _ = events.send(Event::BrokerLost(id, reason.to_owned()));
    };
    loop {
        let frame = match receiver.receive() {
            Received::Frame(frame) => frame,
            Received::Nothing => continue,
            Received::Broken => return lost("it sent something that is no message"),
            // Its end says why.
            Received::Closed => return,
        };
        match frame.decode() {
            Ok(message) => {
                // The supervisor has ended, or given this broker up.
                if slots.send(()).is_err() || events.send(Event::BrokerSent(id, message)).is_err() {
                    return;
                }
            }
            Err(error) => return lost(&error.to_string()),
        }
    }
}

fn check_version(reported: &Reported) -> Result<(), String> {
    match reported.version {
        WIRE_VERSION => Ok(()),
        version => Err(format!("it is of wire version {version}")),
    }
}

fn set_permission(
    (origin, top_level_origin, feature): Subject,
    state: PermissionState,
) -> ToBroker {
    ToBroker::SetPermission {
        origin,
        top_level_origin,
        feature,
        state,
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) if status.signal() == Some(Signal::SYS.as_raw()) => {
            "its sandbox forbids a system call that it made; the kernel's log names it".to_owned()
        }
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use ipc_channel::ipc::IpcReceiver;
    use tempfile::TempDir;
    use token_traits::Origin;
    use token_traits::control::ModuleConfig;
    use token_traits::prompt::{AnswerCallback, Question};

    use super::*;

    /// Whatever should happen happens by then.
    const PATIENCE: Duration = Duration::from_secs(20);
    const TAB: u64 = 7;
    const YES: PromptAnswer = PromptAnswer::Allowed { remember: false };

    /// A program that does nothing, in place of the broker's: the test plays the broker.
    fn idle_program() -> PathBuf {
        // Made once: a program that is being written cannot be started, and a fork in another thread keeps it open.
        static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
        let (_, path) = PROGRAM.get_or_init(|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("idle");
            std::fs::write(&path, "#!/bin/sh\nexec sleep 600\n").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
            (directory, path)
        });
        path.clone()
    }

    enum Shown {
        Prompt(PromptRequest, AnswerCallback),
        Withdrawn(PromptId),
    }

    struct Host(Mutex<Sender<Shown>>);

    impl PromptHost for Host {
        fn show(&self, request: PromptRequest, answer: AnswerCallback) {
            // The test has ended.
            let _ = lock(&self.0).send(Shown::Prompt(request, answer));
        }

        fn withdraw(&self, id: PromptId) {
            let _ = lock(&self.0).send(Shown::Withdrawn(id));
        }
    }

    /// The broker's ends of its channels.
    struct FakeBroker {
        child: ChildId,
        inbox: IpcReceiver<ToBroker>,
        outbox: IpcSender<Frame>,
        _lifeline: IpcReceiver<()>,
    }

    impl FakeBroker {
        fn next(&self) -> ToBroker {
            self.inbox.try_recv_timeout(PATIENCE).expect("a message")
        }

        fn send(&self, message: FromBroker) {
            self.outbox.send(Frame::encode(&message).unwrap()).unwrap();
        }

        fn ask(&self, id: u64, webview: u64) {
            self.ask_instead(id, None, webview);
        }

        fn ask_instead(&self, id: u64, replaces: Option<u64>, webview: u64) {
            let origin = Origin::new("https://bank.example").unwrap();
            self.send(FromBroker::Prompt(PromptRequest {
                id: PromptId(id),
                replaces: replaces.map(PromptId),
                webview,
                origin: origin.clone(),
                top_level_origin: origin,
                question: Question::ChooseReader {
                    readers: Vec::new(),
                },
            }));
        }

        /// The next message must be an answer to a prompt.
        fn answer(&self) -> (u64, PromptAnswer) {
            match self.next() {
                ToBroker::PromptAnswered { prompt, answer } => (prompt.0, answer),
                other => panic!("{other:?}"),
            }
        }

        fn is_active(&self, webview: u64) -> bool {
            self.send(FromBroker::CheckActivation {
                prompt: PromptId(99),
                webview,
            });
            match self.next() {
                ToBroker::Activation {
                    prompt: PromptId(99),
                    is_active,
                } => is_active,
                other => panic!("{other:?}"),
            }
        }
    }

    /// What a process with these channels reports.
    fn reported(
        to_child: IpcSender<ToBroker>,
        from_child: IpcReceiver<Frame>,
        lifeline: IpcSender<()>,
    ) -> Reported {
        let carrier = Carrier::new().unwrap();
        let own = |end: BorrowedFd<'_>| end.try_clone_to_owned().unwrap();
        let (_, unused) = ipc::channel().unwrap();
        let lifeline = carrier.unpack(unused, lifeline.to_opaque().to()).unwrap();
        let wire = carrier.unpack(from_child, to_child.to_opaque().to());
        let wire = wire.unwrap();
        Reported {
            version: WIRE_VERSION,
            to_child: own(wire.sending_end()),
            from_child: own(wire.receiving_end()),
            lifeline: own(lifeline.sending_end()),
        }
    }

    struct Rig {
        events: Sender<Event>,
        activations: Arc<Mutex<Activations>>,
        shown: Receiver<Shown>,
        brokers: u64,
    }

    impl Rig {
        fn new() -> Self {
            let (sender, shown) = mpsc::channel();
            let activations = Arc::<Mutex<Activations>>::default();
            let config = ClientConfig {
                broker_binary: idle_program(),
                pcsc: false,
                uicc_readers: vec!["SIM reader".into()],
                virtual_card: None,
                access: None,
                store: Some("/somewhere".into()),
                modules: vec![module()],
                tpm: Some(TPM.into()),
                piv_management_key: None,
            };
            let host = Arc::new(Host(Mutex::new(sender)));
            let permissions = Permissions::default();
            Self {
                events: start(config, host, permissions, activations.clone()).unwrap(),
                activations,
                shown,
                brokers: 0,
            }
        }

        /// A broker reports, after something has made the supervisor start one.
        fn broker(&mut self) -> FakeBroker {
            self.brokers += 1;
            let (to_child, inbox) = ipc::channel().unwrap();
            let (outbox, from_child) = ipc::channel().unwrap();
            let (lifeline, _lifeline) = ipc::channel().unwrap();
            let child = ChildId(self.brokers);
            self.send(Event::BrokerReported(
                child,
                Ok(reported(to_child, from_child, lifeline)),
            ));
            let broker = FakeBroker {
                child,
                inbox,
                outbox,
                _lifeline,
            };
            match broker.next() {
                ToBroker::Configure(config) => {
                    assert_eq!(config.uicc_readers, ["SIM reader"]);
                }
                other => panic!("{other:?}"),
            }
            broker
        }

        /// A broker that runs because somebody wanted an overview, which has come.
        fn running_broker(&mut self) -> FakeBroker {
            let overview = self.request_overview();
            let broker = self.broker();
            match broker.next() {
                ToBroker::GetOverview { id } => broker.send(FromBroker::Overview {
                    id,
                    part: Overview::default(),
                    is_last: true,
                }),
                other => panic!("{other:?}"),
            }
            assert_eq!(overview.recv_timeout(PATIENCE), Ok(Overview::default()));
            broker
        }

        fn send(&self, event: Event) {
            self.events.send(event).ok().unwrap();
        }

        fn request_overview(&self) -> Receiver<Overview> {
            let (sender, receiver) = mpsc::channel();
            self.send(Event::Overview(Box::new(move |overview| {
                let _ = sender.send(overview);
            })));
            receiver
        }

        fn click(&self, webview: u64) {
            lock(&self.activations).note(webview, Instant::now());
        }

        fn prompt(&self) -> (PromptRequest, AnswerCallback) {
            match self.shown.recv_timeout(PATIENCE) {
                Ok(Shown::Prompt(request, answer)) => {
                    assert_eq!(request.webview, TAB);
                    (request, answer)
                }
                Ok(Shown::Withdrawn(id)) => panic!("{id:?} was withdrawn"),
                Err(error) => panic!("{error}"),
            }
        }

        fn withdrawn(&self) -> PromptId {
            match self.shown.recv_timeout(PATIENCE) {
                Ok(Shown::Withdrawn(id)) => id,
                Ok(Shown::Prompt(..)) => panic!("a prompt was shown"),
                Err(error) => panic!("{error}"),
            }
        }

        fn end(&self, broker: &FakeBroker) {
            let error = io::Error::other("the test ended it");
            self.send(Event::Ended(broker.child, Err(error)));
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            let _ = self.events.send(Event::Stop);
        }
    }

    #[test]
    fn a_broker_that_says_more_than_is_dealt_with_has_to_wait() {
        let (sender, receiver) = ipc::channel::<Frame>().unwrap();
        let (unused, _) = ipc::channel().unwrap();
        let carrier = Carrier::new().unwrap();
        let wire = carrier.unpack(receiver, unused).unwrap();
        let socket = wire.receiving_end().try_clone_to_owned().unwrap();
        let (receiver, end) = transport::Receiver::new(socket);
        let (slots, unhandled) = mpsc::sync_channel(MAX_UNHANDLED);
        let (events, handled) = mpsc::channel();
        let thread =
            thread::spawn(move || receive_from_broker(receiver, ChildId(1), &slots, &events));
        thread::spawn(move || {
            let message = Frame::encode(&FromBroker::PortClosed(PortId(1))).unwrap();
            while sender.send(message.clone()).is_ok() {}
        });
        // Nobody deals with anything.
        thread::sleep(Duration::from_millis(300));
        let waiting = handled.try_iter().count();
        assert!(
            (MAX_UNHANDLED..=MAX_UNHANDLED + 1).contains(&waiting),
            "{waiting}"
        );
        unhandled.recv().unwrap();
        assert!(handled.recv_timeout(PATIENCE).is_ok());
        drop(unhandled);
        drop(end);
        thread.join().unwrap();
    }

    const TPM: &str = "device:/dev/tpmrm0";

    fn module() -> ModuleConfig {
        ModuleConfig {
            module: "/usr/lib/module.so".into(),
            label: "Card".into(),
            ..ModuleConfig::default()
        }
    }

    #[test]
    fn no_worker_is_started_that_the_configuration_does_not_name() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        let reason = |id: u64, kind: &WorkerKind| {
            let worker = WorkerId(id);
            broker.send(FromBroker::StartWorker {
                worker,
                kind: kind.clone(),
            });
            // It has no answer to somebody that is refused.
            broker.send(FromBroker::KillWorker(worker));
            match broker.next() {
                ToBroker::WorkerEnded {
                    worker: other,
                    reason,
                } if other == worker => reason,
                other => panic!("{other:?}"),
            }
        };
        let may_write = ModuleConfig {
            write: vec!["/".into()],
            ..module()
        };
        let refused = [
            WorkerKind::VirtualCard {
                profile: "default".into(),
            },
            WorkerKind::PcscMonitor,
            WorkerKind::PcscReader {
                reader: "SIM reader".into(),
            },
            WorkerKind::Module(may_write),
            WorkerKind::Tpm {
                tcti: "cmd:true".into(),
            },
        ];
        for (id, kind) in (0..).zip(&refused) {
            assert_eq!(
                reason(id, kind),
                "the configuration does not name it",
                "{kind:?}"
            );
        }
        let started = [
            WorkerKind::Module(module()),
            WorkerKind::Tpm { tcti: TPM.into() },
        ];
        for (id, kind) in (100..).zip(&started) {
            let reason = reason(id, kind);
            assert!(reason.contains("signal"), "{kind:?}: {reason}");
        }
    }

    #[test]
    fn a_prompt_needs_what_the_user_has_just_done() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB + 1);
        broker.ask(1, TAB);
        assert_eq!(broker.answer(), (1, PromptAnswer::NotAsked));
        rig.click(TAB);
        broker.ask(2, TAB);
        let (_, refuse) = rig.prompt();
        // The one that is shown has used it up.
        broker.ask(3, TAB);
        assert_eq!(broker.answer(), (3, PromptAnswer::NotAsked));
        refuse(PromptAnswer::Refused);
        assert_eq!(broker.answer(), (2, PromptAnswer::Refused));
        broker.ask(4, TAB);
        assert_eq!(broker.answer(), (4, PromptAnswer::NotAsked));
        assert!(rig.shown.try_recv().is_err());
    }

    #[test]
    fn allowing_counts_as_something_that_the_user_has_done() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (_, allow) = rig.prompt();
        assert!(!broker.is_active(TAB));
        allow(YES);
        assert_eq!(broker.answer(), (1, YES));
        assert!(broker.is_active(TAB) && !broker.is_active(TAB + 1));
        assert!(broker.is_active(TAB), "a question uses nothing up");
        broker.ask(2, TAB);
        let (_id, _answer) = rig.prompt();
    }

    #[test]
    fn a_prompt_changes_while_it_is_shown() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (first, first_answer) = rig.prompt();
        assert_eq!(first.replaces, None);
        broker.ask_instead(2, Some(1), TAB);
        let (second, second_answer) = rig.prompt();
        assert_eq!(second.replaces, Some(first.id));
        assert_ne!(second.id, first.id);
        // What this answers is not there any more.
        first_answer(YES);
        second_answer(PromptAnswer::Refused);
        assert_eq!(broker.answer(), (2, PromptAnswer::Refused));
        // Answered, it is not shown any more.
        broker.ask_instead(3, Some(2), TAB);
        assert_eq!(broker.answer(), (3, PromptAnswer::NotAsked));
        assert!(rig.shown.try_recv().is_err());
    }

    #[test]
    fn an_answer_that_is_under_way_is_none_to_what_replaces_its_prompt() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (_, answer) = rig.prompt();
        answer(YES);
        // The broker has not seen it yet.
        broker.ask_instead(2, Some(1), TAB);
        assert_eq!(broker.answer(), (1, YES));
        let (second, _answer) = rig.prompt();
        assert_eq!(second.replaces, None);
    }

    #[test]
    fn a_prompt_does_not_take_the_place_of_another_tab_s() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (_, answer) = rig.prompt();
        broker.ask_instead(2, Some(1), TAB + 1);
        assert_eq!(broker.answer(), (2, PromptAnswer::NotAsked));
        answer(YES);
        assert_eq!(broker.answer(), (1, YES));
        assert!(rig.shown.try_recv().is_err());
    }

    #[test]
    fn a_prompt_that_was_withdrawn_is_not_answered() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (shown, answer) = rig.prompt();
        broker.send(FromBroker::WithdrawPrompt(PromptId(1)));
        assert_eq!(rig.withdrawn(), shown.id);
        answer(YES);
        assert!(!broker.is_active(TAB), "nor has the user done anything");
    }

    #[test]
    fn answers_do_not_reach_the_prompts_of_the_next_broker() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (old, old_answer) = rig.prompt();
        rig.end(&broker);
        assert_eq!(rig.withdrawn(), old.id);

        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (new, new_answer) = rig.prompt();
        assert_ne!(old.id, new.id);
        old_answer(YES);
        assert!(!broker.is_active(TAB));
        new_answer(PromptAnswer::Refused);
        assert_eq!(broker.answer(), (1, PromptAnswer::Refused));
    }

    #[test]
    fn prompts_end_with_the_client() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        rig.click(TAB);
        broker.ask(1, TAB);
        let (shown, _answer) = rig.prompt();
        rig.send(Event::Stop);
        assert_eq!(rig.withdrawn(), shown.id);
    }

    #[test]
    fn grants_are_revoked_by_the_next_broker_before_it_is_asked_what_there_is() {
        let mut rig = Rig::new();
        rig.send(Event::Revoke(GrantId(5)));
        let overview = rig.request_overview();
        let broker = rig.broker();
        assert!(matches!(broker.next(), ToBroker::Revoke(GrantId(5))));
        assert!(matches!(broker.next(), ToBroker::GetOverview { .. }));
        // Who was asked and ends gives no answer.
        rig.end(&broker);
        assert_eq!(
            overview.recv_timeout(PATIENCE),
            Err(RecvTimeoutError::Disconnected)
        );
        let broker = rig.running_broker();
        rig.send(Event::Revoke(GrantId(6)));
        assert!(matches!(broker.next(), ToBroker::Revoke(GrantId(6))));
    }

    #[test]
    fn an_overview_that_does_not_come_is_given_up() {
        let mut rig = Rig::new();
        let broker = rig.running_broker();
        let begun = Instant::now();
        let overviews: Vec<_> = (0..MAX_OVERVIEWS + 1)
            .map(|_| rig.request_overview())
            .collect();
        let gone = |overview: &Receiver<Overview>| {
            overview.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Disconnected)
        };
        assert!(gone(&overviews[MAX_OVERVIEWS]), "it is one too many");
        assert!(begun.elapsed() < OVERVIEW_LIMIT);
        assert!(overviews.iter().all(gone));
        assert!(begun.elapsed() >= OVERVIEW_LIMIT);
        // What comes late is nobody's.
        match broker.next() {
            ToBroker::GetOverview { id } => broker.send(FromBroker::Overview {
                id,
                part: Overview::default(),
                is_last: true,
            }),
            other => panic!("{other:?}"),
        }
        assert!(rig.request_overview().try_recv().is_err());
    }
}
