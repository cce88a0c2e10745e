/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The one long-lived thread that starts all token processes.
//!
//! Each asks the kernel to be killed with the thread that started it, so no other thread may do it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Instant;

use ipc_channel::ipc::{self, IpcSender};
use token_traits::control::{
    BrokerHello, FromBroker, GOOD_LIFE, ToBroker, WorkerHello, WorkerId, WorkerKind, restart_pause,
};
use token_traits::wire::WIRE_VERSION;
use token_traits::{
    ErrorKind, Frame, OpenPortCallback, PermissionState, PortId, PortIdentity, TokenError,
    TokenPort,
};

use crate::child::{Child, ChildId};
use crate::{ClientConfig, Permissions, Subject, lock};

/// Most workers at a time: the virtual card, the monitor, PC/SC's 16 readers, and some that are being replaced.
const MAX_WORKERS: usize = 32;

/// Most ports at a time. Every document can have one, and each takes two file descriptors of the broker.
pub(crate) const MAX_PORTS: usize = 512;

/// Something that the supervisor has to deal with.
pub(crate) enum Event {
    OpenPort(PortId, PortIdentity, OpenPortCallback),
    ClosePort(PortId),
    PermissionSet(Subject, PermissionState),
    Stop,
    BrokerReported(ChildId, Result<BrokerHello, String>),
    BrokerSent(ChildId, FromBroker),
    WorkerReported(WorkerId, ChildId, Result<WorkerHello, String>),
    Ended(ChildId, io::Result<ExitStatus>),
}

/// Starts the thread.
pub(crate) fn start(config: ClientConfig, permissions: Permissions) -> io::Result<Sender<Event>> {
    let (sender, receiver) = mpsc::channel();
    let mut supervisor = Supervisor {
        config,
        permissions,
        events: sender.clone(),
        next_child: 0,
        broker: Broker::Stopped,
        workers: HashMap::new(),
        waiting: Vec::new(),
        opening: HashMap::new(),
        open: HashSet::new(),
        ends: 0,
        not_before: None,
    };
    thread::Builder::new()
        .name("token supervisor".into())
        .spawn(move || supervisor.run(&receiver))?;
    Ok(sender)
}

struct Supervisor {
    config: ClientConfig,
    permissions: Permissions,
    events: Sender<Event>,
    next_child: u64,
    broker: Broker,
    workers: HashMap<WorkerId, Worker>,
    /// Ports that wait for the broker to start.
    waiting: Vec<Waiting>,
    /// Ports of which the broker has still to say that it serves them, with the document's ends.
    opening: HashMap<PortId, (Waiting, TokenPort)>,
    /// Ports that the running broker serves.
    open: HashSet<PortId>,
    /// How often the broker has ended in a row.
    ends: u32,
    not_before: Option<Instant>,
}

struct Waiting {
    port: PortId,
    identity: PortIdentity,
    callback: OpenPortCallback,
}

enum Broker {
    Stopped,
    Starting(Child),
    Running {
        child: Child,
        since: Instant,
        sender: IpcSender<ToBroker>,
    },
}

struct Worker {
    child: Child,
    kind: WorkerKind,
}

impl Supervisor {
    fn run(&mut self, events: &Receiver<Event>) {
        loop {
            let event = match self.deadline() {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    events.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                }
            };
            match event {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.check_deadlines();
        }
        let unopened = self.opening.drain().map(|(_, (waiting, _))| waiting);
        self.waiting.extend(unopened);
        self.fail_waiting("the browser is closing");
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::OpenPort(_, _, callback) if self.ports() >= MAX_PORTS => {
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
                });
                self.open_waiting();
            }
            Event::ClosePort(port) => self.close_port(port),
            Event::PermissionSet(subject, state) => {
                self.tell_broker(set_permission(subject, state));
            }
            Event::Stop => {}
            Event::BrokerReported(child, hello) => self.broker_reported(child, hello),
            Event::BrokerSent(child, message) => {
                if self.is_running(child) {
                    self.broker_sent(message);
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
            Broker::Stopped if !self.waiting.is_empty() => self.not_before,
            Broker::Stopped | Broker::Running { .. } => None,
        };
        let workers = self
            .workers
            .values()
            .filter_map(|worker| worker.child.deadline());
        broker.into_iter().chain(workers).min()
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        let overdue = |child: &Child| child.deadline().is_some_and(|deadline| deadline <= now);
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
        self.open_waiting();
    }

    fn next_child(&mut self) -> ChildId {
        self.next_child += 1;
        ChildId(self.next_child)
    }

    fn ports(&self) -> usize {
        self.waiting.len() + self.opening.len() + self.open.len()
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

    /// Opens the ports that wait, or starts a broker for them.
    fn open_waiting(&mut self) {
        if self.waiting.is_empty() {
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
            }
        }
    }

    fn open_port(&mut self, waiting: Waiting) {
        let Broker::Running { sender, .. } = &self.broker else {
            return self.waiting.push(waiting);
        };
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
        let sent = sender.send(ToBroker::OpenPort {
            port: waiting.port,
            identity: waiting.identity.clone(),
            requests,
            messages,
        });
        let port = TokenPort {
            requests: request_sender,
            messages: message_receiver,
        };
        self.opening.insert(waiting.port, (waiting, port));
        if let Err(error) = sent {
            self.broker_ended(&error.to_string());
        }
    }

    fn close_port(&mut self, port: PortId) {
        let position = self.waiting.iter().position(|waiting| waiting.port == port);
        let unopened = match position {
            Some(position) => Some(self.waiting.swap_remove(position)),
            None => {
                let opening = self.opening.remove(&port);
                self.open.remove(&port);
                self.tell_broker(ToBroker::ClosePort(port));
                opening.map(|(waiting, _)| waiting)
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
        let child = Child::start(
            id,
            &self.config.broker_binary,
            "broker",
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

    fn broker_reported(&mut self, id: ChildId, hello: Result<BrokerHello, String>) {
        let mut child = match std::mem::replace(&mut self.broker, Broker::Stopped) {
            Broker::Starting(child) if child.id == id => child,
            // A process that was given up.
            other => return self.broker = other,
        };
        let hello = match hello {
            Ok(hello) if hello.version == WIRE_VERSION => hello,
            Ok(hello) => {
                self.broker = Broker::Starting(child);
                return self.broker_ended(&format!("it is of wire version {}", hello.version));
            }
            Err(error) => {
                self.broker = Broker::Starting(child);
                return self.broker_ended(&error);
            }
        };
        child.started(hello.lifeline);
        let events = self.events.clone();
        let from_broker = hello.from_child;
        let reader = thread::Builder::new()
            .name("token broker".into())
            .spawn(move || {
                while let Ok(message) = from_broker.recv() {
                    if events.send(Event::BrokerSent(id, message)).is_err() {
                        break;
                    }
                }
            });
        self.broker = Broker::Running {
            child,
            since: Instant::now(),
            sender: hello.to_child,
        };
        if let Err(error) = reader {
            return self.broker_ended(&error.to_string());
        }
        self.tell_broker(ToBroker::Configure(self.config.broker_config()));
        let permissions = lock(&self.permissions).clone();
        for (subject, state) in permissions {
            self.tell_broker(set_permission(subject, state));
        }
    }

    fn is_running(&self, id: ChildId) -> bool {
        matches!(&self.broker, Broker::Running { child, .. } if child.id == id)
    }

    /// Sends something to the broker if there is one.
    fn tell_broker(&mut self, message: ToBroker) {
        if let Broker::Running { sender, .. } = &self.broker
            && let Err(error) = sender.send(message)
        {
            self.broker_ended(&error.to_string());
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
        // The next one serves the ports that this one did not come to.
        let unopened = self.opening.drain().map(|(_, (waiting, _))| waiting);
        self.waiting.extend(unopened);
        self.ends = self.ends.saturating_add(1);
        self.not_before = Some(Instant::now() + restart_pause(self.ends));
        if !started {
            self.fail_waiting("the token broker cannot be started");
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
                if let Some((Waiting { port, callback, .. }, ends)) = self.opening.remove(&port) {
                    self.open.insert(port);
                    callback(Ok(ends));
                }
            }
            FromBroker::PortClosed(port) => {
                self.open.remove(&port);
            }
            FromBroker::Prompt(_)
            | FromBroker::WithdrawPrompt(_)
            | FromBroker::CheckActivation { .. }
            | FromBroker::Overview { .. } => {}
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
        let id = self.next_child();
        let events = self.events.clone();
        let child = Child::start(
            id,
            &self.config.broker_binary,
            program,
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
        hello: Result<WorkerHello, String>,
    ) {
        let Some(worker) = self
            .workers
            .get_mut(&id)
            .filter(|worker| worker.child.id == child)
        else {
            return;
        };
        let started = hello.and_then(|hello| {
            if hello.version != WIRE_VERSION {
                return Err(format!("it is of wire version {}", hello.version));
            }
            let kind = Frame::encode(&worker.kind).map_err(|error| error.to_string())?;
            hello
                .to_child
                .send(kind)
                .map_err(|error| error.to_string())?;
            worker.child.started(hello.lifeline);
            Ok((hello.to_child, hello.from_child))
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
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
