/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The broker's state machine. It does no input or output: it is told what happened and says what to do.
//!
//! Commands to one card never overlap: each reader has a queue, and its worker has at most one request. Whatever was
//! opened through a connection ends with it; nothing is ever sent twice.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use secure_element::apdu::{CommandApdu, MAX_RESPONSE, ResponseApdu};
use secure_element::atr::Atr;
use secure_element::channel::{self, Aid, ChannelError, Opened, SelectResponse, Selected};
use secure_element::class_byte::ChannelNumber;
use secure_element::fci;
use token_traits::control::{BrokerConfig, Feature, WorkerId, WorkerKind};
use token_traits::port::{
    ChannelId, ChannelInfo, ChannelType, Command, MAX_REQUESTS_IN_FLIGHT, PortMessage, PortRequest,
    ReaderId, ReplyBody, RequestBody, RequestId, SessionId, SessionInfo,
};
use token_traits::{ErrorKind, Frame, Origin, PortId, PortIdentity, TokenError};
use token_workers::protocol::{
    self, Connected, MAX_READERS, ReaderStatus, WorkerError, WorkerMessage, WorkerRequest,
};

use crate::access::{self, Grants};
use crate::apdu;
use crate::reader::{Applet, GroupId, Job, Reader, ReaderKey, Running, Step, Task, Ticket};
use crate::supervision::{Slot, Wanted};

/// Most sessions that a port may have open.
pub const MAX_SESSIONS: usize = 32;
/// Most channels that a port may have open: more than a card has.
pub const MAX_CHANNELS: usize = 32;
/// Most bytes that a port's requests in flight may have together.
pub const MAX_PENDING_BYTES: usize = 1024 * 1024;
/// Most requests that may wait for one reader, from all ports together.
pub const MAX_QUEUE: usize = 1024;
/// The time limit of a request that names none, and of everything that is not a transmit.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time limit that a page can ask for: meanwhile nobody else can use the card.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(120);
/// The time limit for closing a channel and for letting go of a card, which nobody waits for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A worker that has not answered this long after the deadline of what it was asked is killed. It may wait for the card
/// until the deadline itself, and a command that ends just after it should not cost everybody their sessions.
const GRACE: Duration = Duration::from_millis(50);
/// How long `getReaders()` waits for the list of PC/SC readers before it answers without them.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(3);
/// A PC/SC reader's worker ends when nobody has used it for this long.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// Why a worker is killed.
const TOO_LATE: &str = "missed its deadline";
/// Why a request fails.
const READER_GONE: &str = "the reader is gone";
/// Why a worker is killed.
const UNEXPECTED: &str = "sent something unexpected";

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// The main process's configuration, once, first.
    Configure(BrokerConfig),
    /// A document got a port.
    OpenPort {
        /// Names it.
        port: PortId,
        /// Who it is.
        identity: PortIdentity,
    },
    /// A document should have got a port, but there is no room for its channels.
    RefusePort(PortId),
    /// The document has gone, or its end of the port has.
    ClosePort(PortId),
    /// A document sent something.
    PortFrame(PortId, Frame),
    /// The user allows a feature to an origin, or no longer allows it.
    SetGrant {
        /// Whom.
        origin: Origin,
        /// Under which top-level origin.
        top_level_origin: Origin,
        /// What.
        feature: Feature,
        /// Whether it is allowed from now on.
        allowed: bool,
    },
    /// The main process has started a worker.
    WorkerStarted(WorkerId),
    /// A worker has ended, could not be started, or cannot be reached any more.
    WorkerEnded(WorkerId),
    /// A worker sent something.
    WorkerFrame(WorkerId, Frame),
    /// The time named by [`Broker::next_deadline`] has come.
    Tick,
}

/// Something to do.
#[derive(Debug, Eq, PartialEq)]
pub enum Output {
    /// Send this to a document.
    ToPort(PortId, PortMessage),
    /// Close a port: the document broke the protocol, or the main process wanted it.
    ClosePort(PortId),
    /// Tell the main process that a port is open.
    PortOpened(PortId),
    /// Ask the main process to start a worker.
    StartWorker(WorkerId, WorkerKind),
    /// Ask the main process to kill a worker, and forget it.
    KillWorker(WorkerId),
    /// Close a worker's channel, at which it ends by itself.
    ReleaseWorker(WorkerId),
    /// Send this to a worker.
    ToWorker(WorkerId, WorkerRequest),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Broker {
    config: BrokerConfig,
    grants: Grants,
    ports: HashMap<PortId, Port>,
    readers: BTreeMap<ReaderKey, Reader>,
    workers: HashMap<WorkerId, Role>,
    monitor: Slot,
    /// Whether the monitor has sent a list.
    readers_are_known: bool,
    waiting_for_readers: Vec<(Ticket, Instant)>,
    groups: HashMap<GroupId, Group>,
    next_worker: u64,
    next_worker_request: u64,
    next_reader: u64,
    next_group: u64,
    outputs: Vec<Output>,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Monitor,
    Reader(ReaderKey),
}

/// Readers of which each has still to reach a barrier.
#[derive(Debug)]
struct Group {
    ticket: Ticket,
    remaining: usize,
}

#[derive(Debug)]
struct Port {
    identity: PortIdentity,
    /// Requests without an answer, with the lengths of their frames.
    in_flight: HashMap<RequestId, usize>,
    pending_bytes: usize,
    /// A [`ReaderId`] is an index into this.
    readers: Vec<ReaderKey>,
    /// The readers' elements of which the document knows, and whether it was told that they are present.
    elements: HashMap<ReaderKey, bool>,
    /// Whether it is told what becomes of elements.
    watches_elements: bool,
    sessions: HashMap<SessionId, ReaderKey>,
    channels: HashMap<ChannelId, OpenChannel>,
    next_session: u32,
    next_channel: u32,
}

#[derive(Clone, Copy, Debug)]
struct OpenChannel {
    reader: ReaderKey,
    session: SessionId,
    number: ChannelNumber,
    /// By what SELECT finds the next applet, where the channel was opened with a partial AID.
    partial: Option<(Aid, SelectResponse)>,
}

impl Port {
    /// The name that the document has for a reader.
    fn reader_id(&mut self, key: ReaderKey) -> ReaderId {
        let known = self.readers.iter().position(|known| *known == key);
        let index = known.unwrap_or_else(|| {
            self.readers.push(key);
            self.readers.len() - 1
        });
        ReaderId(index as u32)
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            config: BrokerConfig {
                pcsc: false,
                virtual_card: None,
            },
            grants: Grants::default(),
            ports: HashMap::new(),
            readers: BTreeMap::new(),
            workers: HashMap::new(),
            monitor: Slot::new(WorkerKind::PcscMonitor),
            readers_are_known: false,
            waiting_for_readers: Vec::new(),
            groups: HashMap::new(),
            next_worker: 1,
            next_worker_request: 1,
            next_reader: 1,
            next_group: 1,
            outputs: Vec::new(),
        }
    }
}

impl Broker {
    /// A broker that has not been configured.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what happened and says what to do, in that order. `now` never goes back.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Output> {
        match input {
            Input::Configure(config) => self.configure(config),
            Input::OpenPort { port, identity } => self.open_port(port, identity),
            // The main process waits for the answer, and the document finds the port closed.
            Input::RefusePort(port) => self.outputs.push(Output::PortOpened(port)),
            Input::ClosePort(port) => self.close_port(port, now),
            Input::PortFrame(port, frame) => self.port_frame(port, &frame, now),
            Input::SetGrant {
                origin,
                top_level_origin,
                feature,
                allowed,
            } => self.set_grant(origin, top_level_origin, feature, allowed, now),
            Input::WorkerStarted(worker) => self.worker_started(worker, now),
            Input::WorkerEnded(worker) => self.worker_ended(worker, not_connected(), now),
            Input::WorkerFrame(worker, frame) => self.worker_frame(worker, &frame, now),
            Input::Tick => self.tick(now),
        }
        std::mem::take(&mut self.outputs)
    }

    /// When to send the next [`Input::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let readers = self.readers.values().flat_map(|reader| {
            let asked = reader.queue.iter().filter_map(|job| match job {
                Job::Asked { deadline, .. } => Some(*deadline),
                Job::CloseChannel(_) | Job::Barrier(_) => None,
            });
            let running = reader.running.as_ref().map(|running| match running {
                Running {
                    is_given_up: true, ..
                } => running.deadline + GRACE,
                _ => running.deadline,
            });
            let start = reader.slot.deadline(!reader.queue.is_empty());
            let idle = reader.idle_since.map(|since| since + IDLE_LIMIT);
            asked.chain(running).chain(start).chain(idle)
        });
        let monitor_is_missed = self.monitor.worker().is_none() && self.monitor_is_wanted();
        let monitor = self.monitor.deadline(monitor_is_missed);
        let waiting = self.waiting_for_readers.iter().map(|(_, until)| *until);
        readers.chain(monitor).chain(waiting).min()
    }

    fn configure(&mut self, config: BrokerConfig) {
        if let Some(profile) = &config.virtual_card {
            self.add_reader(Reader::embedded(profile.clone()));
        }
        self.config = config;
    }

    fn tick(&mut self, now: Instant) {
        if self.monitor.start_is_overdue(now)
            && let Some(worker) = self.monitor.worker()
        {
            self.kill_worker(worker, TOO_LATE, now);
        }
        let (due, waiting) = std::mem::take(&mut self.waiting_for_readers)
            .into_iter()
            .partition(|(_, until)| *until <= now);
        self.waiting_for_readers = waiting;
        self.answer_waiting(due);
        self.want_monitor(now);

        let keys: Vec<ReaderKey> = self.readers.keys().copied().collect();
        for key in keys {
            self.expire_jobs(key, now);
            self.give_up_running(key, now);
            let Some(reader) = self.readers.get_mut(&key) else {
                continue;
            };
            let running_is_overdue = reader
                .running
                .as_ref()
                .is_some_and(|running| running.deadline + GRACE <= now);
            if (running_is_overdue || reader.slot.start_is_overdue(now))
                && let Some(worker) = reader.slot.worker()
            {
                self.kill_worker(worker, TOO_LATE, now);
            } else if reader
                .idle_since
                .is_some_and(|since| since + IDLE_LIMIT <= now)
            {
                reader.idle_since = None;
                if let Some(worker) = reader.slot.worker() {
                    reader.slot.released();
                    self.workers.remove(&worker);
                    self.outputs.push(Output::ReleaseWorker(worker));
                }
            }
            self.advance(key, now);
        }
    }

    // Ports.

    fn open_port(&mut self, port: PortId, identity: PortIdentity) {
        self.ports.insert(
            port,
            Port {
                identity,
                in_flight: HashMap::new(),
                pending_bytes: 0,
                readers: Vec::new(),
                elements: HashMap::new(),
                watches_elements: false,
                sessions: HashMap::new(),
                channels: HashMap::new(),
                next_session: 1,
                next_channel: 1,
            },
        );
        self.outputs.push(Output::PortOpened(port));
    }

    fn close_port(&mut self, id: PortId, now: Instant) {
        let Some(port) = self.ports.remove(&id) else {
            return;
        };
        self.outputs.push(Output::ClosePort(id));
        self.waiting_for_readers
            .retain(|(ticket, _)| ticket.port != id);
        for reader in self.readers.values_mut() {
            reader
                .queue
                .retain(|job| !matches!(job, Job::Asked { ticket, .. } if ticket.port == id));
        }
        for key in port.sessions.values() {
            if let Some(reader) = self.readers.get_mut(key) {
                reader.sessions -= 1;
            }
        }
        for channel in port.channels.values() {
            if let Some(reader) = self.readers.get_mut(&channel.reader) {
                reader.queue.push_back(Job::CloseChannel(channel.number));
            }
        }
        for key in self.readers.keys().copied().collect::<Vec<_>>() {
            self.advance(key, now);
        }
    }

    fn port_frame(&mut self, id: PortId, frame: &Frame, now: Instant) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        let request = match frame.decode::<PortRequest>() {
            Ok(request) => request,
            Err(error) => {
                log::warn!("port {}: {error}", id.0);
                return self.close_port(id, now);
            }
        };
        if port.in_flight.len() >= MAX_REQUESTS_IN_FLIGHT
            || port.in_flight.contains_key(&request.id)
        {
            log::warn!("port {}: too many requests, or two with one id", id.0);
            return self.close_port(id, now);
        }
        port.in_flight.insert(request.id, frame.encoded_length());
        port.pending_bytes += frame.encoded_length();
        let ticket = Ticket {
            port: id,
            request: request.id,
        };
        if port.pending_bytes > MAX_PENDING_BYTES {
            let message = "too much data is waiting to be sent";
            return self.refuse(ticket, ErrorKind::Io, message);
        }
        if let Err(error) = self.request(ticket, request.body, now) {
            self.reply(ticket, Err(error));
        }
    }

    /// Begins what a document asks for. An error is its answer.
    fn request(
        &mut self,
        ticket: Ticket,
        body: RequestBody,
        now: Instant,
    ) -> Result<(), TokenError> {
        match body {
            RequestBody::GetReaders => self.get_readers(ticket, now),
            RequestBody::OpenSession(reader) => self.ask_session(ticket, reader, now)?,
            RequestBody::OpenChannel {
                session,
                channel_type,
                aid,
                p2,
            } => self.ask_channel(ticket, session, channel_type, aid, p2, now)?,
            RequestBody::Transmit {
                channel,
                command,
                timeout_ms,
            } => self.ask_transmit(ticket, channel, command, timeout_ms, now)?,
            RequestBody::CloseChannel(channel) => {
                self.close_matching(ticket, now, |_, id, _| id == Some(channel));
            }
            RequestBody::CloseSession(session) => {
                self.close_matching(ticket, now, |id, _, _| id == session);
            }
            RequestBody::CloseSessions(reader) => {
                let key = self.reader_key(ticket.port, reader);
                self.close_matching(ticket, now, |_, _, of| Some(of) == key);
            }
            RequestBody::Shutdown => {
                if let Some(port) = self.ports.get_mut(&ticket.port) {
                    port.watches_elements = false;
                }
                self.close_matching(ticket, now, |_, _, _| true);
            }
            RequestBody::WatchElements => self.watch_elements(ticket, now),
            RequestBody::Reset(reader) => self.ask_reset(ticket, reader, now)?,
            RequestBody::SelectNext {
                channel,
                timeout_ms,
            } => self.ask_select_next(ticket, channel, timeout_ms, now)?,
        }
        Ok(())
    }

    fn reply(&mut self, ticket: Ticket, result: Result<ReplyBody, TokenError>) {
        let Some(port) = self.ports.get_mut(&ticket.port) else {
            return;
        };
        if let Some(length) = port.in_flight.remove(&ticket.request) {
            port.pending_bytes -= length;
            self.outputs.push(Output::ToPort(
                ticket.port,
                PortMessage::Reply {
                    request: ticket.request,
                    result,
                },
            ));
        }
    }

    fn refuse(&mut self, ticket: Ticket, kind: ErrorKind, message: impl Into<String>) {
        self.reply(ticket, Err(TokenError::new(kind, message)));
    }

    fn set_grant(
        &mut self,
        origin: Origin,
        top_level_origin: Origin,
        feature: Feature,
        allowed: bool,
        now: Instant,
    ) {
        let affected: Vec<PortId> = self
            .ports
            .iter()
            .filter(|(_, port)| {
                !allowed
                    && port.identity.origin == origin
                    && port.identity.top_level_origin == top_level_origin
            })
            .map(|(id, _)| *id)
            .collect();
        self.grants.set(origin, top_level_origin, feature, allowed);
        for port in affected {
            self.revoke(port, now);
        }
        // Whom it is allowed now finds elements that were there before.
        self.tell_elements();
        self.want_monitor(now);
    }

    /// Takes from a port everything that it has opened or asked for.
    fn revoke(&mut self, id: PortId, now: Instant) {
        let mut refused = Vec::new();
        for reader in self.readers.values_mut() {
            reader.queue.retain(|job| match job {
                Job::Asked { ticket, .. } if ticket.port == id => {
                    refused.push(*ticket);
                    false
                }
                _ => true,
            });
        }
        for ticket in refused {
            self.refuse(ticket, ErrorKind::Security, "the permission was withdrawn");
        }
        if let Some(port) = self.ports.get_mut(&id) {
            port.elements.clear();
        }
        for key in self.drop_matching(id, |_, _, _| true) {
            self.advance(key, now);
        }
    }

    // Readers.

    fn add_reader(&mut self, reader: Reader) {
        let key = ReaderKey(self.next_reader);
        self.next_reader += 1;
        self.readers.insert(key, reader);
    }

    fn get_readers(&mut self, ticket: Ticket, now: Instant) {
        let sees_readers = self
            .ports
            .get(&ticket.port)
            .is_some_and(|port| access::may_see_readers(&port.identity, &self.grants));
        if sees_readers && self.config.pcsc && !self.readers_are_known {
            self.waiting_for_readers
                .push((ticket, now + MONITOR_TIMEOUT));
            self.want_monitor(now);
        } else {
            self.answer_readers(ticket);
        }
    }

    fn answer_waiting(&mut self, waiting: Vec<(Ticket, Instant)>) {
        for (ticket, _) in waiting {
            self.answer_readers(ticket);
        }
    }

    fn answer_readers(&mut self, ticket: Ticket) {
        let Some(port) = self.ports.get_mut(&ticket.port) else {
            return;
        };
        let mut infos = Vec::new();
        if access::may_see_readers(&port.identity, &self.grants) {
            port.watches_elements = true;
            for (key, reader) in &self.readers {
                port.elements.insert(*key, reader.present);
                infos.push(reader.info(port.reader_id(*key)));
            }
        }
        self.reply(ticket, Ok(ReplyBody::Readers(infos)));
    }

    /// Tells a document about the elements that are there, and from now on about those that come and go.
    fn watch_elements(&mut self, ticket: Ticket, now: Instant) {
        if let Some(port) = self.ports.get_mut(&ticket.port) {
            port.watches_elements = true;
            port.elements.clear();
        }
        self.tell_elements();
        self.want_monitor(now);
        self.reply(ticket, Ok(ReplyBody::Done));
    }

    /// Tells each document that watches what has become of elements since it was last told.
    fn tell_elements(&mut self) {
        for (id, port) in &mut self.ports {
            if !port.watches_elements || !access::may_see_readers(&port.identity, &self.grants) {
                continue;
            }
            for (key, reader) in &self.readers {
                let told = port.elements.insert(*key, reader.present);
                if told.unwrap_or(false) != reader.present {
                    let info = reader.info(port.reader_id(*key));
                    self.outputs
                        .push(Output::ToPort(*id, PortMessage::Element(info)));
                }
            }
        }
    }

    /// Notes whether a card is in a reader. Without one, there is nothing left of what was open.
    fn set_present(&mut self, key: ReaderKey, present: bool, now: Instant) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        if reader.present == present {
            return;
        }
        reader.present = present;
        if !present {
            self.connection_lost(key, io_error(&WorkerError::CardRemoved.to_string()));
        }
        self.tell_elements();
        if !present {
            self.advance(key, now);
        }
    }

    fn reader_key(&self, port: PortId, reader: ReaderId) -> Option<ReaderKey> {
        let readers = &self.ports.get(&port)?.readers;
        readers.get(usize::try_from(reader.0).ok()?).copied()
    }

    /// Whether somebody waits to learn about PC/SC's readers.
    fn monitor_is_wanted(&self) -> bool {
        self.config.pcsc
            && (!self.waiting_for_readers.is_empty()
                || self.ports.values().any(|port| {
                    port.watches_elements && access::may_see_readers(&port.identity, &self.grants)
                }))
    }

    fn want_monitor(&mut self, now: Instant) {
        if !self.monitor_is_wanted() {
            return;
        }
        if let Wanted::Start(worker) = self.monitor.want(now, &mut self.next_worker) {
            self.workers.insert(worker, Role::Monitor);
            self.outputs
                .push(Output::StartWorker(worker, WorkerKind::PcscMonitor));
        }
    }

    /// Takes in what the monitor sees.
    fn readers_changed(&mut self, mut list: Vec<ReaderStatus>, now: Instant) {
        list.truncate(MAX_READERS);
        let gone: Vec<ReaderKey> = self
            .readers
            .iter()
            .filter(|(_, reader)| {
                reader
                    .pcsc_name()
                    .is_some_and(|name| list.iter().all(|status| status.name != name))
            })
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.remove_reader(key, now);
        }
        for status in list {
            let found = self
                .readers
                .iter_mut()
                .find(|(_, reader)| reader.pcsc_name() == Some(&status.name));
            match found {
                Some((key, reader)) => {
                    let key = *key;
                    let events = std::mem::replace(&mut reader.card_events, status.card_events);
                    // Another card may be in its place already.
                    if events != status.card_events {
                        self.set_present(key, false, now);
                    }
                    self.set_present(key, status.present, now);
                }
                None => self.add_reader(Reader::pcsc(status)),
            }
        }
        self.readers_are_known = true;
        self.tell_elements();
        let waiting = std::mem::take(&mut self.waiting_for_readers);
        self.answer_waiting(waiting);
    }

    fn remove_reader(&mut self, key: ReaderKey, now: Instant) {
        self.set_present(key, false, now);
        self.connection_lost(key, io_error(READER_GONE));
        let Some(reader) = self.readers.remove(&key) else {
            return;
        };
        if let Some(worker) = reader.slot.worker() {
            self.workers.remove(&worker);
            self.outputs.push(Output::KillWorker(worker));
        }
        for port in self.ports.values_mut() {
            port.elements.remove(&key);
        }
        if let Some(ticket) = reader.running.and_then(|running| running.step.ticket()) {
            self.reply(ticket, Err(io_error(READER_GONE)));
        }
        for job in reader.queue {
            match job {
                Job::Asked { ticket, .. } => self.reply(ticket, Err(io_error(READER_GONE))),
                Job::Barrier(group) => self.pass_barrier(group),
                Job::CloseChannel(_) => {}
            }
        }
    }

    // Sessions and channels.

    fn ask_session(
        &mut self,
        ticket: Ticket,
        reader: ReaderId,
        now: Instant,
    ) -> Result<(), TokenError> {
        let key = self.visible_reader(ticket.port, reader)?;
        self.enqueue(key, ticket, Task::OpenSession, DEFAULT_TIMEOUT, now)
    }

    /// The reader that a document names, if it may use it.
    fn visible_reader(&self, id: PortId, reader: ReaderId) -> Result<ReaderKey, TokenError> {
        if !access::may_see_readers(&self.port(id)?.identity, &self.grants) {
            return Err(TokenError::new(
                ErrorKind::Security,
                "this origin may not use the reader",
            ));
        }
        self.reader_key(id, reader)
            .filter(|key| self.readers.contains_key(key))
            .ok_or_else(|| io_error(READER_GONE))
    }

    fn ask_reset(
        &mut self,
        ticket: Ticket,
        reader: ReaderId,
        now: Instant,
    ) -> Result<(), TokenError> {
        let key = self.visible_reader(ticket.port, reader)?;
        self.check_reset(ticket.port, key)?;
        self.enqueue(key, ticket, Task::Reset, DEFAULT_TIMEOUT, now)
    }

    /// A reset takes the sessions of everybody, so nobody else may have one.
    fn check_reset(&self, id: PortId, key: ReaderKey) -> Result<(), TokenError> {
        let own = &self.port(id)?.identity;
        let is_shared = self.ports.values().any(|port| {
            !port.identity.is_same_party(own) && port.sessions.values().any(|of| *of == key)
        });
        if is_shared {
            return Err(TokenError::new(
                ErrorKind::Security,
                "another site uses the card, so it cannot be reset",
            ));
        }
        Ok(())
    }

    fn ask_select_next(
        &mut self,
        ticket: Ticket,
        channel: ChannelId,
        timeout_ms: Option<u32>,
        now: Instant,
    ) -> Result<(), TokenError> {
        let channel = self.open_channel(ticket.port, channel)?;
        let Some((aid, response)) = channel.partial else {
            return Err(TokenError::new(
                ErrorKind::InvalidState,
                "the channel was not opened with a partial AID",
            ));
        };
        let command = channel::select_next(&aid, response, channel.number)
            .map_err(|error| invalid_value(&error))?;
        let task = Task::SelectNext {
            command: command.encode(),
        };
        self.enqueue(channel.reader, ticket, task, time_limit(timeout_ms), now)
    }

    fn ask_channel(
        &mut self,
        ticket: Ticket,
        session: SessionId,
        channel_type: ChannelType,
        aid: Option<Vec<u8>>,
        p2: u8,
        now: Instant,
    ) -> Result<(), TokenError> {
        let port = self.port(ticket.port)?;
        let key = *port
            .sessions
            .get(&session)
            .ok_or_else(|| closed("session"))?;
        let reader = self.readers.get(&key).ok_or_else(|| closed("session"))?;
        let response = SelectResponse::from_p2(p2).map_err(|error| invalid_value(&error))?;
        let applet = match aid.as_deref() {
            None => Applet::Implicit,
            Some([]) => Applet::IssuerSecurityDomain,
            Some(aid) => Applet::Named(Aid::new(aid).map_err(|error| invalid_value(&error))?),
        };
        access::may_open(
            &port.identity,
            &self.grants,
            reader.element_type,
            aid.as_deref(),
        )?;
        let task = Task::OpenChannel {
            session,
            channel_type,
            applet,
            response,
        };
        self.enqueue(key, ticket, task, DEFAULT_TIMEOUT, now)
    }

    fn ask_transmit(
        &mut self,
        ticket: Ticket,
        channel: ChannelId,
        command: Command,
        timeout_ms: Option<u32>,
        now: Instant,
    ) -> Result<(), TokenError> {
        let channel = self.open_channel(ticket.port, channel)?;
        let command = apdu::prepare(command, channel.number)?;
        let task = Task::Transmit { command };
        self.enqueue(channel.reader, ticket, task, time_limit(timeout_ms), now)
    }

    fn open_channel(&self, port: PortId, channel: ChannelId) -> Result<OpenChannel, TokenError> {
        let channels = &self.port(port)?.channels;
        channels
            .get(&channel)
            .copied()
            .ok_or_else(|| closed("channel"))
    }

    fn port(&self, port: PortId) -> Result<&Port, TokenError> {
        self.ports.get(&port).ok_or_else(|| closed("port"))
    }

    fn enqueue(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        task: Task,
        timeout: Duration,
        now: Instant,
    ) -> Result<(), TokenError> {
        let reader = self
            .readers
            .get_mut(&key)
            .ok_or_else(|| io_error(READER_GONE))?;
        if reader.queue.len() >= MAX_QUEUE {
            return Err(io_error("too many requests wait for this reader"));
        }
        reader.queue.push_back(Job::Asked {
            ticket,
            deadline: now + timeout,
            task,
        });
        self.advance(key, now);
        Ok(())
    }

    /// Closes what `matches` says and answers when the cards have been told.
    fn close_matching(
        &mut self,
        ticket: Ticket,
        now: Instant,
        matches: impl Fn(SessionId, Option<ChannelId>, ReaderKey) -> bool,
    ) {
        let keys = self.drop_matching(ticket.port, matches);
        if keys.is_empty() {
            return self.reply(ticket, Ok(ReplyBody::Done));
        }
        let group = GroupId(self.next_group);
        self.next_group += 1;
        self.groups.insert(
            group,
            Group {
                ticket,
                remaining: keys.len(),
            },
        );
        for key in keys {
            if let Some(reader) = self.readers.get_mut(&key) {
                reader.queue.push_back(Job::Barrier(group));
            }
            self.advance(key, now);
        }
    }

    /// Takes sessions and channels from a port, lets the channels be closed after whatever waits before, and returns
    /// the readers concerned. `matches` is asked about each session without a channel, and about each channel.
    fn drop_matching(
        &mut self,
        id: PortId,
        matches: impl Fn(SessionId, Option<ChannelId>, ReaderKey) -> bool,
    ) -> Vec<ReaderKey> {
        let Some(port) = self.ports.get_mut(&id) else {
            return Vec::new();
        };
        let mut keys = Vec::new();
        port.channels.retain(|channel_id, channel| {
            let goes = matches(channel.session, Some(*channel_id), channel.reader);
            if goes && let Some(reader) = self.readers.get_mut(&channel.reader) {
                reader.queue.push_back(Job::CloseChannel(channel.number));
                keys.push(channel.reader);
            }
            !goes
        });
        port.sessions.retain(|session, key| {
            let goes = matches(*session, None, *key);
            if goes && let Some(reader) = self.readers.get_mut(key) {
                reader.sessions -= 1;
                keys.push(*key);
            }
            !goes
        });
        keys.sort();
        keys.dedup();
        keys
    }

    fn pass_barrier(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.remaining -= 1;
        if group.remaining == 0 {
            let ticket = group.ticket;
            self.groups.remove(&id);
            self.reply(ticket, Ok(ReplyBody::Done));
        }
    }

    // The queue of a reader.

    /// Does as much of a reader's queue as is possible now.
    fn advance(&mut self, key: ReaderKey, now: Instant) {
        loop {
            let Some(reader) = self.readers.get_mut(&key) else {
                return;
            };
            if reader.running.is_some() {
                return;
            }
            let ready = reader.slot.is_ready();
            match reader.queue.front() {
                Some(Job::Barrier(group)) => {
                    let group = *group;
                    reader.queue.pop_front();
                    self.pass_barrier(group);
                }
                // Without a connection nothing is open.
                Some(Job::CloseChannel(_)) if !reader.connected => {
                    reader.queue.pop_front();
                }
                Some(Job::CloseChannel(number)) if ready => {
                    let number = *number;
                    reader.queue.pop_front();
                    self.start_closing(key, number, now);
                }
                Some(Job::Asked { deadline, .. }) if *deadline <= now => {
                    self.expire_jobs(key, now);
                }
                Some(Job::Asked { .. }) if ready => {
                    if let Some(Job::Asked {
                        ticket,
                        deadline,
                        task,
                    }) = reader.queue.pop_front()
                    {
                        self.start_task(key, ticket, deadline, task, now);
                    }
                }
                Some(Job::Asked { .. } | Job::CloseChannel(_)) => {
                    let kind = reader.slot.kind().clone();
                    if let Wanted::Start(worker) = reader.slot.want(now, &mut self.next_worker) {
                        self.workers.insert(worker, Role::Reader(key));
                        self.outputs.push(Output::StartWorker(worker, kind));
                    }
                    return;
                }
                None => {
                    if reader.sessions == 0 && ready {
                        if reader.connected {
                            let body = protocol::RequestBody::Disconnect;
                            self.run(key, Step::Disconnect, body, now + CLOSE_TIMEOUT);
                        } else if reader.pcsc_name().is_some() && reader.idle_since.is_none() {
                            reader.idle_since = Some(now);
                        }
                    }
                    return;
                }
            }
        }
    }

    /// Answers what has waited for too long.
    fn expire_jobs(&mut self, key: ReaderKey, now: Instant) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let mut expired = Vec::new();
        reader.queue.retain(|job| match job {
            Job::Asked {
                ticket, deadline, ..
            } if *deadline <= now => {
                expired.push(*ticket);
                false
            }
            _ => true,
        });
        for ticket in expired {
            let message = "the time was over before the card was free";
            self.refuse(ticket, ErrorKind::Io, message);
        }
    }

    /// Answers whoever waits for what a worker has not done in time.
    fn give_up_running(&mut self, key: ReaderKey, now: Instant) {
        let reader = self.readers.get_mut(&key);
        let Some(running) = reader.and_then(|reader| reader.running.as_mut()) else {
            return;
        };
        if running.deadline <= now && !running.is_given_up {
            running.is_given_up = true;
            if let Some(ticket) = running.step.ticket() {
                self.refuse(ticket, ErrorKind::Io, "the card took too long");
            }
        }
    }

    fn start_task(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        deadline: Instant,
        task: Task,
        now: Instant,
    ) {
        let (Some(reader), Some(port)) = (self.readers.get_mut(&key), self.ports.get(&ticket.port))
        else {
            return;
        };
        match task {
            Task::OpenSession => {
                let reset = reader.needs_reset && reader.sessions == 0;
                let body = protocol::RequestBody::Connect { reset };
                self.run(key, Step::Connect { ticket, reset }, body, deadline);
            }
            Task::Transmit { command } => {
                let body = transmit(command, false, deadline, now);
                self.run(key, Step::Transmit(ticket), body, deadline);
            }
            Task::SelectNext { command } => {
                let body = transmit(command, true, deadline, now);
                self.run(key, Step::SelectNext(ticket), body, deadline);
            }
            // Another origin may have got a session meanwhile.
            Task::Reset => match self.check_reset(ticket.port, key) {
                Ok(()) => {
                    let body = protocol::RequestBody::Reset;
                    self.run(key, Step::Reset(ticket), body, deadline);
                }
                Err(error) => self.reply(ticket, Err(error)),
            },
            Task::OpenChannel { session, .. } if !port.sessions.contains_key(&session) => {
                self.reply(ticket, Err(closed("session")));
            }
            Task::OpenChannel { .. } if port.channels.len() >= MAX_CHANNELS => {
                let message = "this page has too many channels open";
                self.refuse(ticket, ErrorKind::NoChannel, message);
            }
            Task::OpenChannel {
                session,
                channel_type: ChannelType::Basic,
                applet,
                response,
            } => {
                let channel = ChannelNumber::BASIC;
                if reader.channels.insert(channel) {
                    self.select(
                        key, ticket, session, channel, applet, response, deadline, now,
                    );
                } else {
                    let message = "the basic channel is in use";
                    self.refuse(ticket, ErrorKind::NoChannel, message);
                }
            }
            Task::OpenChannel {
                session,
                channel_type: ChannelType::Supplementary,
                applet,
                response,
            } => {
                let step = Step::Open {
                    ticket,
                    session,
                    applet,
                    response,
                };
                let body = transmit(channel::open_command().encode(), false, deadline, now);
                self.run(key, step, body, deadline);
            }
        }
    }

    /// Goes on with a channel that the card has opened.
    #[expect(clippy::too_many_arguments, reason = "what a channel is made of")]
    fn select(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        session: SessionId,
        channel: ChannelNumber,
        applet: Applet,
        response: SelectResponse,
        deadline: Instant,
        now: Instant,
    ) {
        let command = match &applet {
            Applet::Implicit => {
                return self.channel_opened(key, ticket, session, channel, None, None);
            }
            Applet::IssuerSecurityDomain => channel::select(None, response, channel),
            Applet::Named(aid) => channel::select(Some(aid), response, channel),
        };
        match command {
            Ok(command) => {
                let step = Step::Select {
                    ticket,
                    session,
                    channel,
                    applet,
                    response,
                };
                let body = transmit(command.encode(), true, deadline, now);
                self.run(key, step, body, deadline);
            }
            Err(error) => {
                self.reply(ticket, Err(invalid_value(&error)));
                self.close_first(key, channel);
            }
        }
    }

    fn channel_opened(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        session: SessionId,
        number: ChannelNumber,
        partial: Option<(Aid, SelectResponse)>,
        open_response: Option<Vec<u8>>,
    ) {
        // The port or the session may have been closed meanwhile, or the page told that it took too long.
        let port = self.ports.get_mut(&ticket.port).filter(|port| {
            port.sessions.get(&session) == Some(&key)
                && port.in_flight.contains_key(&ticket.request)
        });
        let Some(port) = port else {
            self.reply(ticket, Err(closed("session")));
            return self.close_first(key, number);
        };
        let id = ChannelId(port.next_channel);
        port.next_channel += 1;
        port.channels.insert(
            id,
            OpenChannel {
                reader: key,
                session,
                number,
                partial,
            },
        );
        let info = ChannelInfo { id, open_response };
        self.reply(ticket, Ok(ReplyBody::Channel(info)));
    }

    /// Lets a channel be closed before anything else happens.
    fn close_first(&mut self, key: ReaderKey, number: ChannelNumber) {
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.queue.push_front(Job::CloseChannel(number));
        }
    }

    fn start_closing(&mut self, key: ReaderKey, number: ChannelNumber, now: Instant) {
        let (step, command) = if number.is_basic() {
            (Step::ResetBasic, channel::reset_command())
        } else {
            (Step::Close(number), channel::close_command(number))
        };
        self.run_closing(key, step, &command, now);
    }

    fn run_closing(&mut self, key: ReaderKey, step: Step, command: &CommandApdu, now: Instant) {
        let deadline = now + CLOSE_TIMEOUT;
        self.run(
            key,
            step,
            transmit(command.encode(), false, deadline, now),
            deadline,
        );
    }

    /// Gives the reader's worker a request.
    fn run(&mut self, key: ReaderKey, step: Step, body: protocol::RequestBody, deadline: Instant) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let Some(worker) = reader.slot.worker() else {
            return;
        };
        let id = self.next_worker_request;
        self.next_worker_request += 1;
        reader.idle_since = None;
        reader.running = Some(Running {
            id,
            deadline,
            is_given_up: false,
            step,
        });
        self.outputs
            .push(Output::ToWorker(worker, WorkerRequest { id, body }));
    }

    // Workers.

    fn worker_started(&mut self, worker: WorkerId, now: Instant) {
        match self.workers.get(&worker) {
            Some(Role::Monitor) => self.monitor.started(now),
            Some(&Role::Reader(key)) => {
                if let Some(reader) = self.readers.get_mut(&key) {
                    reader.slot.started(now);
                    self.advance(key, now);
                }
            }
            // It was given up meanwhile.
            None => self.outputs.push(Output::KillWorker(worker)),
        }
    }

    fn kill_worker(&mut self, worker: WorkerId, why: &str, now: Instant) {
        log::warn!("worker {}: {why}", worker.0);
        self.outputs.push(Output::KillWorker(worker));
        // Whether they came before the end or after it, those that wait find their channels closed.
        self.worker_ended(worker, closed("channel"), now);
    }

    /// `error` is for what waits for the worker.
    fn worker_ended(&mut self, worker: WorkerId, error: TokenError, now: Instant) {
        match self.workers.remove(&worker) {
            None => {}
            Some(Role::Monitor) => {
                self.monitor.ended(now);
                self.readers_are_known = false;
                self.want_monitor(now);
            }
            Some(Role::Reader(key)) => {
                let Some(reader) = self.readers.get_mut(&key) else {
                    return;
                };
                let was_ready = reader.slot.is_ready();
                reader.slot.ended(now);
                reader.idle_since = None;
                // Channels and verified PINs stay in the card. Nobody remembers them, so they have to go.
                reader.needs_reset |= reader.connected;
                let running = reader.running.take();
                if let Some(ticket) = running.and_then(|running| running.step.ticket()) {
                    let message = "communication with the card ended or took too long";
                    self.refuse(ticket, ErrorKind::Io, message);
                }
                self.connection_lost(key, error);
                if !was_ready {
                    self.fail_queue(key, "communication with the card cannot be started");
                }
                // The embedded card ended with its worker, and comes with the next one.
                if self
                    .readers
                    .get(&key)
                    .is_some_and(|reader| reader.pcsc_name().is_none())
                {
                    self.set_present(key, true, now);
                }
                self.advance(key, now);
            }
        }
    }

    /// Answers everything that pages wait for at a reader with an error.
    fn fail_queue(&mut self, key: ReaderKey, message: &str) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let mut failed = Vec::new();
        reader.queue.retain(|job| match job {
            Job::Asked { ticket, .. } => {
                failed.push(*ticket);
                false
            }
            _ => true,
        });
        for ticket in failed {
            self.refuse(ticket, ErrorKind::Io, message);
        }
    }

    /// Closes everything that was opened through a reader's connection, and fails what waited to use it. Requests for
    /// a new session stay.
    fn connection_lost(&mut self, key: ReaderKey, error: TokenError) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        reader.connected = false;
        reader.sessions = 0;
        reader.channels.clear();
        let mut failed = Vec::new();
        reader.queue.retain(|job| match job {
            Job::Asked {
                task: Task::OpenSession | Task::Reset,
                ..
            }
            | Job::Barrier(_) => true,
            Job::Asked { ticket, .. } => {
                failed.push(*ticket);
                false
            }
            Job::CloseChannel(_) => false,
        });
        for port in self.ports.values_mut() {
            port.channels.retain(|_, channel| channel.reader != key);
            port.sessions.retain(|_, reader| *reader != key);
        }
        for ticket in failed {
            self.reply(ticket, Err(error.clone()));
        }
    }

    fn worker_frame(&mut self, worker: WorkerId, frame: &Frame, now: Instant) {
        let Some(&role) = self.workers.get(&worker) else {
            return;
        };
        match (role, frame.decode()) {
            (Role::Monitor, Ok(WorkerMessage::Readers(list))) => self.readers_changed(list, now),
            (Role::Monitor, Ok(WorkerMessage::NoService)) => {
                self.readers_changed(Vec::new(), now);
            }
            (Role::Reader(key), Ok(WorkerMessage::CardPresent(present)))
                if self
                    .readers
                    .get(&key)
                    .is_some_and(|reader| reader.pcsc_name().is_none()) =>
            {
                self.set_present(key, present, now);
            }
            (Role::Reader(key), Ok(WorkerMessage::Reply { request, result })) => {
                let running = self
                    .readers
                    .get_mut(&key)
                    .and_then(|reader| reader.running.take_if(|running| running.id == request));
                match running {
                    Some(running) => self.step_ended(key, running, result, now),
                    None => self.kill_worker(worker, UNEXPECTED, now),
                }
            }
            _ => self.kill_worker(worker, UNEXPECTED, now),
        }
    }

    /// Goes on with what the worker has answered.
    fn step_ended(
        &mut self,
        key: ReaderKey,
        running: Running,
        result: Result<protocol::ReplyBody, WorkerError>,
        now: Instant,
    ) {
        let Running { step, deadline, .. } = running;
        match result {
            Ok(protocol::ReplyBody::Response(response)) => {
                self.response(key, step, deadline, response, now);
            }
            Ok(reply) => match (step, reply) {
                (Step::Connect { ticket, reset }, protocol::ReplyBody::Connected(connected)) => {
                    self.session_opened(key, ticket, reset, &connected);
                }
                (Step::Reset(ticket), protocol::ReplyBody::Connected(_)) => {
                    self.reader_was_reset(key, ticket);
                }
                (Step::Disconnect, protocol::ReplyBody::Done) => {
                    self.connection_lost(key, not_connected());
                }
                (step, _) => self.step_failed(key, step, WorkerError::Communication),
            },
            Err(error) => self.step_failed(key, step, error),
        }
        self.advance(key, now);
    }

    fn step_failed(&mut self, key: ReaderKey, step: Step, error: WorkerError) {
        if let Some(ticket) = step.ticket() {
            self.reply(ticket, Err(io_error(&error.to_string())));
        }
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        if error.keeps_connection() {
            match step {
                // The card may have opened a channel all the same.
                Step::Open { .. } => reader.needs_reset = true,
                Step::Select { channel, .. } => self.close_first(key, channel),
                Step::Close(channel) => {
                    reader.channels.remove(&channel);
                }
                Step::ResetBasic | Step::SelectDefault => {
                    reader.channels.remove(&ChannelNumber::BASIC);
                }
                _ => {}
            }
        } else {
            reader.needs_reset |= reader.connected
                && !matches!(error, WorkerError::CardReset | WorkerError::CardRemoved);
            self.connection_lost(key, io_error(&error.to_string()));
        }
    }

    fn reader_was_reset(&mut self, key: ReaderKey, ticket: Ticket) {
        self.connection_lost(key, closed("channel"));
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.connected = true;
            reader.needs_reset = false;
        }
        self.reply(ticket, Ok(ReplyBody::Done));
    }

    fn session_opened(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        reset: bool,
        connected: &Connected,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        if connected.fresh && reader.connected {
            self.connection_lost(key, io_error(&WorkerError::CardReset.to_string()));
        }
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let historical_bytes = Atr::parse(&connected.atr)
            .ok()
            .map(|atr| atr.historical_bytes().to_vec());
        reader.connected = true;
        reader.needs_reset &= !reset;
        // The port may have gone while the worker connected, the grant with it, or the time.
        let Some(port) = self
            .ports
            .get_mut(&ticket.port)
            .filter(|port| port.in_flight.contains_key(&ticket.request))
        else {
            return;
        };
        if !access::may_see_readers(&port.identity, &self.grants) {
            let message = "the permission was withdrawn";
            return self.refuse(ticket, ErrorKind::Security, message);
        }
        if port.sessions.len() >= MAX_SESSIONS {
            let message = "this page has too many sessions open";
            return self.refuse(ticket, ErrorKind::Io, message);
        }
        let id = SessionId(port.next_session);
        port.next_session += 1;
        port.sessions.insert(id, key);
        reader.sessions += 1;
        let info = SessionInfo {
            id,
            historical_bytes,
        };
        self.reply(ticket, Ok(ReplyBody::Session(info)));
    }

    fn response(
        &mut self,
        key: ReaderKey,
        step: Step,
        deadline: Instant,
        bytes: Vec<u8>,
        now: Instant,
    ) {
        if let Step::Transmit(ticket) = step
            && (2..=MAX_RESPONSE).contains(&bytes.len())
        {
            return self.reply(ticket, Ok(ReplyBody::Response(bytes)));
        }
        let Ok(response) = ResponseApdu::parse(&bytes) else {
            return self.step_failed(key, step, WorkerError::Communication);
        };
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        match step {
            Step::Open {
                ticket,
                session,
                applet,
                response: wanted,
            } => match channel::parse_opened(&response) {
                // A card that opens an open channel once more has lost track of what it serves to whom.
                Ok(Opened::Channel(channel)) if !reader.channels.insert(channel) => {
                    reader.needs_reset = true;
                    let message = "the card opened a channel that is open already";
                    self.refuse(ticket, ErrorKind::Io, message);
                }
                Ok(Opened::Channel(channel)) => {
                    self.select(key, ticket, session, channel, applet, wanted, deadline, now);
                }
                Ok(Opened::NoChannel) => {
                    let message = "the card has no free channel";
                    self.refuse(ticket, ErrorKind::NoChannel, message);
                }
                // Cards without logical channels have all kinds of reasons, many of them as long as nothing is
                // selected.
                Err(error @ ChannelError::Refused(_)) => {
                    self.refuse(ticket, ErrorKind::NoChannel, error.to_string());
                }
                // It says that it has opened something.
                Err(error) => {
                    reader.needs_reset = true;
                    self.refuse(ticket, ErrorKind::Io, error.to_string());
                }
            },
            Step::Select {
                ticket,
                session,
                channel,
                applet,
                response: wanted,
            } => {
                let (kind, message) = match channel::parse_selected(&response) {
                    Ok(Selected::Application) => {
                        let partial = partial_aid(applet, &response).map(|aid| (aid, wanted));
                        let open_response = Some(bytes);
                        return self.channel_opened(
                            key,
                            ticket,
                            session,
                            channel,
                            partial,
                            open_response,
                        );
                    }
                    Ok(Selected::NoApplication) => (
                        ErrorKind::NoApplication,
                        "the card has no such applet".to_owned(),
                    ),
                    Ok(Selected::NoChannel) => (
                        ErrorKind::NoChannel,
                        "the card has no free channel".to_owned(),
                    ),
                    Err(error) => (ErrorKind::NoApplication, error.to_string()),
                };
                self.refuse(ticket, kind, message);
                self.close_first(key, channel);
            }
            Step::SelectNext(ticket) => match channel::parse_selected(&response) {
                Ok(Selected::Application) => {
                    self.reply(ticket, Ok(ReplyBody::Response(bytes)));
                }
                Ok(Selected::NoApplication) => {
                    let message = "the card has no further applet of this AID";
                    self.refuse(ticket, ErrorKind::NoApplication, message);
                }
                Ok(Selected::NoChannel) | Err(_) => {
                    let message = "the card does not select the next applet";
                    self.refuse(ticket, ErrorKind::Unsupported, message);
                }
            },
            // The card cannot be told any better.
            Step::Close(channel) if response.status.is_error() => {
                reader.needs_reset = true;
                reader.channels.remove(&channel);
            }
            Step::Close(channel) => {
                reader.channels.remove(&channel);
            }
            Step::ResetBasic if response.status.is_error() => {
                let command = channel::select(None, SelectResponse::Fci, ChannelNumber::BASIC);
                match command {
                    Ok(command) => self.run_closing(key, Step::SelectDefault, &command, now),
                    Err(_) => {
                        reader.channels.remove(&ChannelNumber::BASIC);
                    }
                }
            }
            Step::ResetBasic | Step::SelectDefault => {
                reader.channels.remove(&ChannelNumber::BASIC);
            }
            Step::Connect { .. } | Step::Transmit(_) | Step::Reset(_) | Step::Disconnect => {
                self.step_failed(key, step, WorkerError::Communication);
            }
        }
    }
}

/// The AID with which a channel was opened, unless it is the complete name of what the card selected.
fn partial_aid(applet: Applet, response: &ResponseApdu) -> Option<Aid> {
    match applet {
        Applet::Named(aid) if aid.as_bytes().len() < Aid::MAX_LENGTH => {
            let name = fci::df_name(&response.data).ok().flatten();
            (name != Some(aid)).then_some(aid)
        }
        Applet::Named(_) | Applet::Implicit | Applet::IssuerSecurityDomain => None,
    }
}

/// How long a command may take for which the page gives so many milliseconds.
fn time_limit(timeout_ms: Option<u32>) -> Duration {
    timeout_ms.map_or(DEFAULT_TIMEOUT, |milliseconds| {
        Duration::from_millis(milliseconds.into()).min(MAX_TIMEOUT)
    })
}

fn transmit(
    command: Vec<u8>,
    select: bool,
    deadline: Instant,
    now: Instant,
) -> protocol::RequestBody {
    let timeout = deadline.saturating_duration_since(now).as_millis();
    protocol::RequestBody::Transmit {
        command,
        select,
        timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
    }
}

fn io_error(message: &str) -> TokenError {
    TokenError::new(ErrorKind::Io, message)
}

fn not_connected() -> TokenError {
    io_error(&WorkerError::NotConnected.to_string())
}

fn closed(what: &str) -> TokenError {
    TokenError::new(ErrorKind::Closed, format!("the {what} is closed"))
}

fn invalid_value(error: &dyn std::error::Error) -> TokenError {
    TokenError::new(ErrorKind::InvalidValue, error.to_string())
}

#[cfg(test)]
mod tests;
