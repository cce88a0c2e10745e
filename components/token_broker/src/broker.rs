/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The broker's state machine. It does no input or output: it is told what happened and says what to do.
//!
//! Commands to one card never overlap: each reader has a queue, and its worker has at most one request. Whatever was
//! opened through a connection ends with it; nothing is ever sent twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use secure_element::access::{Access, AppId, RefreshTag, RuleSet};
use secure_element::apdu::{CommandApdu, Header, MAX_RESPONSE, ResponseApdu, StatusWord};
use secure_element::atr::Atr;
use secure_element::channel::{self, Aid, ChannelError, Opened, SelectResponse, Selected};
use secure_element::class_byte::ChannelNumber;
use secure_element::fci;
use token_traits::control::{BrokerConfig, WhenNoRules, WorkerId, WorkerKind};
use token_traits::port::{
    ChannelId, ChannelInfo, ChannelType, Command, ElementType, MAX_REQUESTS_IN_FLIGHT, PortMessage,
    PortRequest, ReaderId, ReplyBody, RequestBody, RequestId, SessionId, SessionInfo,
};
use token_traits::prompt::{AuditEntry, GrantId, Overview, PromptAnswer, PromptId, PromptRequest};
use token_traits::{
    ErrorKind, Feature, Frame, Origin, PermissionState, PortId, PortIdentity, TokenError,
};
use token_workers::key_protocol::{KeyMessage, KeyRequest};
use token_workers::protocol::{
    self, Connected, MAX_READERS, ReaderStatus, WorkerError, WorkerMessage, WorkerRequest,
};

mod audit;
mod cards;
mod consent;
mod elements;
mod keys;
mod origin;
mod queue;
mod requests;
mod rules;
mod tries;
mod workers;

pub(crate) use self::cards::CardKeys;
use self::cards::Cards;
use self::consent::Prompt;
use self::elements::may_see;
use crate::access::device_rules::DeviceRules;
use crate::access::grants::{Grants, Party};
use crate::access::{self, Consent, ElementPolicy};
use crate::apdu;
use crate::keys::{Keys, ProviderId};
use crate::reader::{
    Applet, EMBEDDED_CARD, ElementRules, GroupId, Job, Opening, Reader, ReaderKey, RulesStep,
    Running, Step, Task, Ticket, display_name,
};
use crate::store::{Remembered, Write};
use crate::supervision::{Slot, Wanted};

/// Most sessions that a port may have open.
pub const MAX_SESSIONS: usize = 32;
/// Most channels that a port may have open: more than a card has.
pub const MAX_CHANNELS: usize = 32;
/// Most bytes that a port's requests in flight may have together.
pub const MAX_PENDING_BYTES: usize = 1024 * 1024;
/// The same for all ports of an event loop.
const MAX_PENDING_BYTES_OF_EVENT_LOOP: usize = 8 * MAX_PENDING_BYTES;
/// The same for all ports.
const MAX_PENDING_BYTES_IN_ALL: usize = 128 * MAX_PENDING_BYTES;
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

/// Why a request fails.
const WITHDRAWN: &str = "the permission was withdrawn";
/// Why a worker is killed.
const TOO_LATE: &str = "missed its deadline";
/// Why a request fails.
const NO_CHANNEL: &str = "the card has no free channel";
/// Why a request fails.
const READER_GONE: &str = "the reader is gone";
/// Why a worker is killed.
const UNEXPECTED: &str = "sent something unexpected";
/// Why a worker is killed.
const FLOOD: &str = "says too much";
/// Most that a worker may say in a period without being asked.
const MAX_UNASKED: u32 = 100;
const UNASKED_PERIOD: Duration = Duration::from_secs(1);

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// The main process's configuration, once, first.
    Configure(BrokerConfig),
    /// What was remembered, and the time of day, before anything else but the configuration.
    Restore(Remembered, SystemTime),
    /// Something could not be remembered; a sentence for the user. `None` once everything is that must last.
    StoreProblem(Option<String>),
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
    /// Automation answers for the user.
    SetPermission {
        /// Whom.
        origin: Origin,
        /// Under which top-level origin.
        top_level_origin: Origin,
        /// What.
        feature: Feature,
        /// What holds from now on.
        state: PermissionState,
    },
    /// The answer to [`Output::CheckActivation`].
    Activation {
        /// As in the question.
        prompt: PromptId,
        /// Whether a prompt would be shown now.
        is_active: bool,
    },
    /// The answer to [`Output::Prompt`].
    PromptAnswered {
        /// Which.
        prompt: PromptId,
        /// What the user answered.
        answer: PromptAnswer,
    },
    /// The page of tokens wants to know everything.
    GetOverview(u64),
    /// The user ends a grant.
    Revoke(GrantId),
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
    /// Send this to a worker that keeps keys.
    ToKeyWorker(WorkerId, KeyRequest),
    /// Ask the main process whether the user has just done something in a webview.
    CheckActivation(PromptId, u64),
    /// Ask the user.
    Prompt(PromptRequest),
    /// Do not ask the user any more.
    WithdrawPrompt(PromptId),
    /// The answer to [`Input::GetOverview`].
    Overview(u64, Overview),
    /// Remember something.
    Store(Write),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Broker {
    config: BrokerConfig,
    grants: Grants,
    /// What the user is asked.
    prompts: BTreeMap<PromptId, Prompt>,
    next_prompt: u64,
    /// The newest entries of the audit log, the newest last.
    audit: VecDeque<AuditEntry>,
    /// What keeps grants from being remembered.
    problem: Option<String>,
    /// Two clocks at the same moment.
    started: Option<(Instant, SystemTime)>,
    /// As long as somebody looks at the page of tokens.
    overview_until: Option<Instant>,
    /// The device's own rules, as they are listed.
    listed_rules: DeviceRules,
    /// The device's own rules, for elements without, by the type of the element.
    device_rules: HashMap<ElementType, RuleSet>,
    ports: HashMap<PortId, Port>,
    readers: BTreeMap<ReaderKey, Reader>,
    keys: Keys,
    cards: Cards,
    workers: HashMap<WorkerId, Role>,
    /// What workers have said without being asked: since when, and how often.
    unasked: HashMap<WorkerId, (Instant, u32)>,
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
    /// Whom grants are for.
    party: Party,
    /// The origin, as access rules name it.
    app: AppId,
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
    /// Channels that the document has closed, as long as commands that it sent before wait.
    closing: HashMap<ChannelId, OpenChannel>,
    next_session: u32,
    next_channel: u32,
}

#[derive(Clone, Debug)]
struct OpenChannel {
    reader: ReaderKey,
    session: SessionId,
    number: ChannelNumber,
    /// What the page asked for.
    applet: Applet,
    /// By what SELECT finds the next applet, where the channel was opened with a partial AID.
    partial: Option<(Aid, SelectResponse)>,
    /// The applet that is selected, if the card names it.
    df_name: Option<Aid>,
    /// The applet has been told the document's origin.
    knows_origin: bool,
    /// Which commands may be sent to it.
    access: Access,
}

impl Port {
    /// A channel that is open, or was when the document sent what is to be done now.
    fn channel(&self, id: ChannelId) -> Option<&OpenChannel> {
        self.channels.get(&id).or_else(|| self.closing.get(&id))
    }

    fn channel_mut(&mut self, id: ChannelId) -> Option<&mut OpenChannel> {
        let open = self.channels.get_mut(&id);
        open.or_else(|| self.closing.get_mut(&id))
    }

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
            config: BrokerConfig::default(),
            grants: Grants::default(),
            prompts: BTreeMap::new(),
            next_prompt: 1,
            audit: VecDeque::new(),
            problem: None,
            started: None,
            overview_until: None,
            listed_rules: DeviceRules::default(),
            device_rules: HashMap::new(),
            ports: HashMap::new(),
            readers: BTreeMap::new(),
            keys: Keys::default(),
            cards: Cards::default(),
            workers: HashMap::new(),
            unasked: HashMap::new(),
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
            Input::RefusePort(port) => {
                let outputs = [Output::PortOpened(port), Output::ClosePort(port)];
                self.outputs.extend(outputs);
            }
            Input::ClosePort(port) => self.close_port(port, now),
            Input::PortFrame(port, frame) => self.port_frame(port, &frame, now),
            Input::SetPermission {
                origin,
                top_level_origin,
                feature,
                state,
            } => {
                let party = Party {
                    origin,
                    top_level_origin,
                };
                self.grants.set_permission(party, feature, state);
                self.grants_changed(now);
            }
            Input::Restore(remembered, time) => {
                self.started = Some((now, time));
                self.grants.restore(remembered.grants);
                self.audit = remembered.audit;
                self.keys.restore(
                    remembered.secret,
                    remembered.key_lists,
                    remembered.stored_keys,
                );
            }
            Input::StoreProblem(problem) => self.problem = problem,
            Input::Activation { prompt, is_active } => {
                let mut is_of_keys = false;
                self.with_keys(now, |keys| is_of_keys = keys.activation(prompt, is_active));
                if !is_of_keys {
                    self.activation(prompt, is_active, now);
                }
            }
            Input::PromptAnswered { prompt, answer } => {
                let copy = answer.clone();
                let mut is_of_keys = false;
                self.with_keys(now, |keys| is_of_keys = keys.prompt_answered(prompt, copy));
                if !is_of_keys {
                    self.prompt_answered(prompt, answer, now);
                }
            }
            Input::GetOverview(id) => self.overview(id, now),
            Input::Revoke(grant) => self.revoke(grant, now),
            Input::WorkerStarted(worker) => self.worker_started(worker, now),
            Input::WorkerEnded(worker) => self.worker_ended(worker, not_connected(), now),
            Input::WorkerFrame(worker, frame) => self.worker_frame(worker, &frame, now),
            Input::Tick => self.tick(now),
        }
        self.tell_cards(now);
        self.settle_prompts(now);
        std::mem::take(&mut self.outputs)
    }

    /// When to send the next [`Input::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let readers = self.readers.values().flat_map(|reader| {
            let asked = reader.queue.iter().filter_map(|job| match job {
                Job::Asked { deadline, .. } => Some(*deadline),
                Job::Keys(job) => Some(job.deadline),
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
        let prompts = self.prompts.values().map(|prompt| prompt.deadline);
        readers
            .chain(monitor)
            .chain(waiting)
            .chain(prompts)
            .chain(self.overview_until)
            .chain(self.keys.next_deadline())
            .chain(self.cards_deadline())
            .min()
    }

    fn configure(&mut self, config: BrokerConfig) {
        if let Some(profile) = &config.virtual_card {
            self.add_reader(Reader::embedded(profile.clone()));
        }
        let device_rules = config.access.as_ref().map(|access| &*access.device_rules);
        match DeviceRules::parse(device_rules.unwrap_or_default()) {
            Ok(rules) => {
                self.device_rules = ElementType::ALL
                    .map(|element_type| (element_type, rules.for_element(element_type)))
                    .into();
                self.listed_rules = rules;
            }
            // The main process has checked them. Without rules, less is allowed.
            Err(error) => log::error!("device rules: {error}"),
        }
        self.keys.configure(&config);
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
        for (ticket, _) in due {
            self.answer_or_ask(ticket, now);
        }
        self.list_waiting_cards(false, now);
        self.expire_prompts(now);
        self.with_keys(now, Keys::tick);
        self.overview_until = self.overview_until.filter(|until| *until > now);
        self.want_monitor(now);

        let keys: Vec<ReaderKey> = self.readers.keys().copied().collect();
        for key in keys {
            self.expire_jobs(key, now);
            self.expire_card_jobs(key, now);
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
                    self.unasked.remove(&worker);
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
                // An origin that has no identifier is in no rule.
                app: AppId::from_origin(identity.origin.as_str())
                    .unwrap_or(AppId::from_hashes(None, None)),
                party: Party::of(&identity),
                identity,
                in_flight: HashMap::new(),
                pending_bytes: 0,
                readers: Vec::new(),
                elements: HashMap::new(),
                watches_elements: false,
                sessions: HashMap::new(),
                channels: HashMap::new(),
                closing: HashMap::new(),
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
            reader.take_asked(|ticket, _, _| ticket.port == id);
        }
        for key in port.sessions.values() {
            if let Some(reader) = self.readers.get_mut(key) {
                reader.sessions -= 1;
            }
        }
        for channel in port.channels.values() {
            if let Some(reader) = self.readers.get_mut(&channel.reader) {
                let job = Job::CloseChannel(channel.number);
                reader.queue.push(port.identity.event_loop, job);
            }
        }
        for key in self.readers.keys().copied().collect::<Vec<_>>() {
            self.advance(key, now);
        }
        let is_last = self
            .ports
            .values()
            .all(|other| other.identity.private || other.party != port.party);
        if is_last {
            self.grants.party_gone(&port.party);
        }
        self.with_keys(now, |keys| keys.port_closed(id, &port.party, is_last));
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
        let event_loop = port.identity.event_loop;
        let is_too_much = port.pending_bytes > MAX_PENDING_BYTES
            || self.pending_bytes(|port| port.identity.event_loop == event_loop)
                > MAX_PENDING_BYTES_OF_EVENT_LOOP
            || self.pending_bytes(|_| true) > MAX_PENDING_BYTES_IN_ALL;
        if is_too_much {
            let message = "too much data is waiting to be sent";
            return self.refuse(ticket, ErrorKind::Io, message);
        }
        if let Err(error) = self.request(ticket, request.body, now) {
            self.reply(ticket, Err(error));
        }
    }

    /// How many bytes the requests in flight of some ports have together.
    fn pending_bytes(&self, is_of: impl Fn(&Port) -> bool) -> usize {
        let ports = self.ports.values().filter(|port| is_of(port));
        ports.map(|port| port.pending_bytes).sum()
    }

    /// Begins what a document asks for. An error is its answer.
    fn request(
        &mut self,
        ticket: Ticket,
        body: RequestBody,
        now: Instant,
    ) -> Result<(), TokenError> {
        if let RequestBody::QueryPermission(feature) = body {
            let state = self.permission(ticket.port, feature)?;
            self.reply(ticket, Ok(ReplyBody::Permission(state)));
            return Ok(());
        }
        if let RequestBody::Keys(request) = body {
            let identity = self.port(ticket.port)?.identity.clone();
            self.with_keys(now, |keys| keys.request(ticket, &identity, request));
            return Ok(());
        }
        access::check_policy(&self.port(ticket.port)?.identity, Feature::SecureElement)?;
        match body {
            RequestBody::QueryPermission(_) | RequestBody::Keys(_) => {}
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

    /// What `navigator.permissions` says about a feature.
    fn permission(&self, port: PortId, feature: Feature) -> Result<PermissionState, TokenError> {
        let port = self.port(port)?;
        if !port.identity.features.contains(feature)
            || Feature::from_permission_name(feature.name()).is_none()
        {
            return Ok(PermissionState::Denied);
        }
        if !access::is_eligible(&port.identity) {
            // A page must not learn that the user browses privately.
            return Ok(match port.identity.private {
                true => PermissionState::Prompt,
                false => PermissionState::Denied,
            });
        }
        let state = self.grants.permission(&port.party, feature);
        let has_one = match feature {
            Feature::SecureElement => self.grants.has_reader(&port.party),
            Feature::TokenKeys => self.grants.has_key_or_token(&port.party),
            _ => false,
        };
        Ok(match state {
            PermissionState::Prompt if has_one => PermissionState::Granted,
            state => state,
        })
    }

    /// Whom something is allowed now finds elements that were there before; who may no longer use something loses it.
    fn grants_changed(&mut self, now: Instant) {
        self.withdraw(now);
        self.tell_elements();
        self.want_monitor(now);
        self.with_keys(now, Keys::grants_changed);
    }

    /// Takes from each document what it has opened or asked for and may no longer use.
    fn withdraw(&mut self, now: Instant) {
        let mut refused = Vec::new();
        let mut dropped = Vec::new();
        for (id, port) in &mut self.ports {
            let lost: Vec<ReaderKey> = self
                .readers
                .iter()
                .filter(|(_, reader)| !may_see(&self.grants, port, reader))
                .map(|(key, _)| *key)
                .collect();
            for key in lost {
                port.elements.remove(&key);
                let Some(reader) = self.readers.get_mut(&key) else {
                    continue;
                };
                refused.extend(reader.take_asked(|ticket, _, _| ticket.port == *id));
                // What the card has already is not taken back, but its answer goes nowhere.
                let running = reader.running.as_ref();
                let ticket = running.and_then(|running| running.step.ticket());
                refused.extend(ticket.filter(|ticket| ticket.port == *id));
                dropped.push((*id, key));
            }
        }
        for ticket in refused {
            self.refuse(ticket, ErrorKind::Security, WITHDRAWN);
        }
        for (id, lost) in dropped {
            for key in self.drop_matching(id, |_, _, key| key == lost) {
                self.advance(key, now);
            }
        }
        self.withdraw_applets(now);
    }

    /// Closes channels to applications that their documents' origins may no longer use.
    fn withdraw_applets(&mut self, now: Instant) {
        let mut dropped = Vec::new();
        for (id, port) in &self.ports {
            for (channel_id, channel) in port.channels.iter().chain(&port.closing) {
                let Some(reader) = self.readers.get(&channel.reader) else {
                    continue;
                };
                let policy = self.policy(port, reader);
                let requested = channel.applet.requested();
                // Nothing but the user's consent changes while a channel is open.
                if matches!(policy, ElementPolicy::Device { .. })
                    && channel.access.allows_channel()
                    && policy
                        .after_select(requested, channel.df_name.as_ref(), &port.app)
                        .is_err()
                {
                    dropped.push((*id, *channel_id));
                }
            }
        }
        for (id, lost) in dropped {
            for key in self.forget_channel(id, lost) {
                self.advance(key, now);
            }
        }
    }

    /// The user ends a grant.
    fn revoke(&mut self, id: GrantId, now: Instant) {
        let Some(grant) = self.grants.remove(id) else {
            return;
        };
        self.note_revoked(&grant, now);
        self.outputs.push(Output::Store(Write::Revoke(id)));
        self.grants_changed(now);
    }
}

/// The AID with which a channel was opened, unless it is the complete name of what the card selected.
fn partial_aid(applet: Applet, df_name: Option<Aid>) -> Option<Aid> {
    match applet {
        Applet::Named(aid) if aid.as_bytes().len() < Aid::MAX_LENGTH => {
            (df_name != Some(aid)).then_some(aid)
        }
        Applet::Named(_) | Applet::Implicit | Applet::IssuerSecurityDomain => None,
    }
}

/// The DF name in an answer to SELECT. One that cannot be read is none.
fn df_name(response: &ResponseApdu) -> Option<Aid> {
    fci::df_name(&response.data).ok().flatten()
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
mod access_tests;
#[cfg(test)]
mod consent_tests;
#[cfg(test)]
mod keys_tests;
#[cfg(test)]
mod tests;
