/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The broker's state machine between documents, workers and a main process of which only the last is trusted.
//!
//! The input is a script: see [`Operation`]. It plays the documents, which may send anything, the workers, which may
//! answer anything at any time, and the main process, which keeps to its part: it never uses a port's id twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Result, Unstructured};
use secure_element::apdu::{CommandApdu, Header};
use secure_element::class_byte::check_caller_command;
use token_broker::broker::{Broker, DEFAULT_TIMEOUT, Input, MAX_TIMEOUT, Output};
use token_traits::control::{AccessConfig, BrokerConfig, WhenNoRules, WorkerId, WorkerKind};
use token_traits::port::{
    ChannelId, ChannelType, Command, MAX_REQUESTS_IN_FLIGHT, PortMessage, PortRequest, ReaderId,
    ReaderInfo, ReplyBody, RequestBody, RequestId, SessionId,
};
use token_traits::prompt::{GrantId, Overview, PromptAnswer, PromptId, PromptRequest, Question};
use token_traits::{
    Connection, Feature, FeatureSet, Frame, Origin, PermissionState, PortId, PortIdentity,
};
use token_workers::protocol::{
    self, Connected, MAX_READERS, Protocol, ReaderStatus, WorkerError, WorkerMessage, WorkerRequest,
};

/// Documents at a time.
const SLOTS: u8 = 4;
/// Scripts are cut off here.
const MAX_OPERATIONS: usize = 400;
/// Rounds of [`Operation::Settle`].
const SETTLE_ROUNDS: usize = 64;
/// Deadlines that may follow each other before everything has come to its end. Each request has one, and so have the
/// worker that is started for it, and what has to be closed afterwards.
const MAX_TICKS: usize = 20 * MAX_REQUESTS_IN_FLIGHT * SLOTS as usize;
/// What a broker without ports may keep, as the length of its debug output: grants, readers and the audit log.
const MAX_REST: usize = 256 * 1024;

/// What may take as long as the user does has several time limits, one after the other, each from the moment at which the
/// one before was noticed. There must be one, however.
const WITH_A_USER: Duration = Duration::from_secs(24 * 60 * 60);

/// A chip card's answer to reset: T=0, no historical bytes.
const ATR: [u8; 2] = [0x3B, 0x00];

/// The steps of a script, each one byte and then its arguments. The arguments of one byte count modulo what there is.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Operation {
    /// Slot: the document in it goes, and another one comes, with the identity of the slot.
    OpenPort,
    /// Slot.
    ClosePort,
    /// Slot, id (0: that of the last request once more), body (see [`Request`]).
    Request,
    /// Slot, length, that many bytes: they are a frame.
    PortFrame,
    /// Slot, allowed (1 byte): for the origins of the slot's identity.
    SetGrant,
    /// Index among the workers that are to be started.
    WorkerStarted,
    /// Index among the workers that are to be started or run.
    WorkerEnded,
    /// Index among the workers that run, answer (see [`Answer`]).
    Answer,
    /// Index among the workers that run, length, that many bytes: they are a frame.
    WorkerFrame,
    /// Number of readers; for each: name, present, card events (1 byte each). From the monitor, if it runs.
    Readers,
    /// Index among the workers that run, what (1 byte: no service, card there, card gone).
    Report,
    /// Milliseconds (2 bytes), and then a tick.
    Wait,
    /// Up to the next deadline, and then a tick.
    Deadline,
    /// Workers start, and answer as honest ones do, until there is nothing more to be done. Users have done something, but
    /// do not answer.
    Settle,
    /// Whether the user has just done something (1 byte), for the first prompt that waits for that.
    Activation,
    /// Index among the prompts that are shown, answer (1 byte: refused, not asked, allowed, reader), index of the reader,
    /// whether it is to be remembered.
    AnswerPrompt,
    /// The page of tokens asks for everything.
    Overview,
    /// Number of the grant.
    Revoke,
}

const OPERATIONS: [Operation; 18] = [
    Operation::OpenPort,
    Operation::ClosePort,
    Operation::Request,
    Operation::PortFrame,
    Operation::SetGrant,
    Operation::WorkerStarted,
    Operation::WorkerEnded,
    Operation::Answer,
    Operation::WorkerFrame,
    Operation::Readers,
    Operation::Report,
    Operation::Wait,
    Operation::Deadline,
    Operation::Settle,
    Operation::Activation,
    Operation::AnswerPrompt,
    Operation::Overview,
    Operation::Revoke,
];

/// What a document asks for. Ids of readers, sessions and channels are one byte.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Request {
    /// Without arguments.
    GetReaders,
    /// Without arguments.
    WatchElements,
    /// Without arguments.
    Shutdown,
    /// Reader.
    OpenSession,
    /// Reader.
    CloseSessions,
    /// Reader.
    Reset,
    /// Session, type (0: basic), P2, length of the AID (more than 17: none), AID.
    OpenChannel,
    /// Session.
    CloseSession,
    /// Channel, timeout, length, the command.
    TransmitRaw,
    /// Channel, timeout, length (2 bytes): so many zeros behind the header of an extended command.
    TransmitLong,
    /// Channel, timeout, header (4 bytes), whether there is Le, Le (2 bytes), extended, length, data.
    TransmitFields,
    /// Channel, timeout.
    SelectNext,
    /// Channel.
    CloseChannel,
}

const REQUESTS: [Request; 13] = [
    Request::GetReaders,
    Request::WatchElements,
    Request::Shutdown,
    Request::OpenSession,
    Request::CloseSessions,
    Request::Reset,
    Request::OpenChannel,
    Request::CloseSession,
    Request::TransmitRaw,
    Request::TransmitLong,
    Request::TransmitFields,
    Request::SelectNext,
    Request::CloseChannel,
];

/// What a worker answers.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Answer {
    /// What an honest worker with an ordinary card does.
    Honest,
    /// Fresh (1 byte), length, ATR.
    Connected,
    /// Length, response.
    Response,
    /// Length (2 bytes, counted twice): so many zeros.
    LongResponse,
    /// Without arguments.
    Done,
    /// Index of the error.
    Error,
    /// Like the first, but to another request.
    Mistaken,
}

const ANSWERS: [Answer; 7] = [
    Answer::Honest,
    Answer::Connected,
    Answer::Response,
    Answer::LongResponse,
    Answer::Done,
    Answer::Error,
    Answer::Mistaken,
];

const ERRORS: [WorkerError; 13] = [
    WorkerError::NoReader,
    WorkerError::NoCard,
    WorkerError::CardRemoved,
    WorkerError::CardReset,
    WorkerError::Unresponsive,
    WorkerError::Busy,
    WorkerError::Protocol,
    WorkerError::NotConnected,
    WorkerError::Communication,
    WorkerError::ResponseTooLong,
    WorkerError::Command,
    WorkerError::Timeout,
    WorkerError::NoService,
];

/// Runs a script: which readers there are (1 byte: bit 1 PC/SC, bit 2 the embedded card, bit 3 access rules are enforced),
/// then [`Operation`]s.
///
/// - Each request is answered at most once, and only by a port that is open and asked.
/// - Only an origin with a grant learns of readers, sessions, channels and elements.
/// - The user is asked only for documents that are open and may ask, and about a reader only after having done something.
/// - What is revoked is no longer listed.
/// - An element that has gone comes back before it goes again.
/// - There is always a deadline before a request's time is over.
/// - A worker has one request at most, and gets none before it has started or after it has gone.
/// - A command that a caller may not send is refused at once.
/// - Everything comes to its end although no worker answers any more, and nothing is left of ports that have closed.
pub fn run(bytes: &[u8]) {
    let mut script = Unstructured::new(bytes);
    let Ok(options) = u8::arbitrary(&mut script) else {
        return;
    };
    let mut rig = Rig::new(options);
    for _ in 0..MAX_OPERATIONS {
        if script.is_empty() || rig.step(&mut script).is_err() {
            break;
        }
    }
    rig.come_to_an_end();
}

struct Port {
    id: PortId,
    /// With the time at which there has to be an answer, where there is one.
    unanswered: BTreeMap<u64, Option<Instant>>,
    last_request: u64,
    /// The readers that it believes to be without an element.
    empty: BTreeSet<u32>,
}

struct Worker {
    kind: WorkerKind,
    request: Option<WorkerRequest>,
    connected: bool,
}

struct Rig {
    broker: Broker,
    now: Instant,
    slots: [Option<Port>; SLOTS as usize],
    grants: [bool; SLOTS as usize],
    /// Whether the user has ever chosen a reader for the slot's origins.
    chosen: [bool; SLOTS as usize],
    /// Prompts that wait for the user to have done something, with their webviews.
    waiting: Vec<(PromptId, u64)>,
    /// Prompts for which the user has.
    active: BTreeSet<PromptId>,
    /// Prompts that are shown.
    prompts: BTreeMap<PromptId, PromptRequest>,
    overview: Option<Overview>,
    to_start: Vec<(WorkerId, WorkerKind)>,
    running: BTreeMap<u64, Worker>,
    ended: BTreeSet<u64>,
    next_port: u64,
    next_card_channel: u8,
}

fn origin(text: &str) -> Origin {
    Origin::new(text).unwrap_or_else(|| panic!("{text} is an origin"))
}

/// The first two are the same, the third is framed by the first, and to the fourth the user was connected in spite of
/// a bad certificate.
fn identity(slot: u8) -> PortIdentity {
    const BANK: &str = "https://bank.example";
    const SHOP: &str = "https://shop.example";
    let (own, top_level, connection) = match slot {
        0 | 1 => (BANK, BANK, Connection::TrustedHttps),
        2 => (SHOP, BANK, Connection::TrustedHttps),
        _ => (SHOP, SHOP, Connection::HttpsWithException),
    };
    PortIdentity {
        origin: origin(own),
        top_level_origin: origin(top_level),
        webview: slot.into(),
        event_loop: slot.into(),
        private: false,
        connection,
        features: FeatureSet::ALL,
    }
}

fn index(script: &mut Unstructured<'_>, count: usize) -> Result<Option<usize>> {
    let number = usize::from(u8::arbitrary(script)?);
    Ok(number.checked_rem(count))
}

fn choice<T: Copy>(script: &mut Unstructured<'_>, of: &[T]) -> Result<T> {
    let index = index(script, of.len())?.ok_or(arbitrary::Error::EmptyChoose)?;
    of.get(index).copied().ok_or(arbitrary::Error::EmptyChoose)
}

fn counted(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = u8::arbitrary(script)?;
    Ok(script.bytes(length.into())?.to_vec())
}

fn frame<T: serde::Serialize>(message: &T) -> Frame {
    // What is too long for a frame is never sent.
    Frame::encode(message).unwrap_or_else(|_| Frame::from_bytes(Vec::new()))
}

impl Rig {
    fn new(options: u8) -> Self {
        let mut rig = Self {
            broker: Broker::new(),
            now: Instant::now(),
            slots: [const { None }; SLOTS as usize],
            grants: [false; SLOTS as usize],
            chosen: [false; SLOTS as usize],
            waiting: Vec::new(),
            active: BTreeSet::new(),
            prompts: BTreeMap::new(),
            overview: None,
            to_start: Vec::new(),
            running: BTreeMap::new(),
            ended: BTreeSet::new(),
            next_port: 1,
            next_card_channel: 1,
        };
        rig.input(Input::Configure(BrokerConfig {
            pcsc: options & 1 != 0,
            virtual_card: (options & 2 != 0).then(|| "default".into()),
            access: (options & 4 != 0).then(|| AccessConfig {
                device_rules: String::new(),
                when_no_rules: Some(WhenNoRules::Ask),
            }),
            ..BrokerConfig::default()
        }));
        rig.set_grant(0, true);
        rig
    }

    fn step(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        match choice(script, &OPERATIONS)? {
            Operation::OpenPort => {
                let slot = self.slot(script)?;
                self.close_port(slot);
                self.open_port(slot);
            }
            Operation::ClosePort => {
                let slot = self.slot(script)?;
                self.close_port(slot);
            }
            Operation::Request => {
                let slot = self.slot(script)?;
                let is_new = u8::arbitrary(script)? != 0;
                let body = request(script)?;
                self.request(slot, is_new, body);
            }
            Operation::PortFrame => {
                let slot = self.slot(script)?;
                let frame = Frame::from_bytes(counted(script)?);
                self.port_frame(slot, frame);
            }
            Operation::SetGrant => {
                let slot = self.slot(script)?;
                let allowed = bool::arbitrary(script)?;
                self.set_grant(slot, allowed);
            }
            Operation::WorkerStarted => {
                if let Some(index) = index(script, self.to_start.len())? {
                    self.start_worker(index);
                }
            }
            Operation::WorkerEnded => {
                let ids = self.to_start.iter().map(|(id, _)| id.0);
                let ids: Vec<u64> = ids.chain(self.running.keys().copied()).collect();
                if let Some(id) = index(script, ids.len())?.and_then(|index| ids.get(index)) {
                    self.forget_worker(WorkerId(*id));
                    self.input(Input::WorkerEnded(WorkerId(*id)));
                }
            }
            Operation::Answer => {
                let worker = self.worker(script)?;
                let answer = choice(script, &ANSWERS)?;
                self.answer(worker, answer, script)?;
            }
            Operation::WorkerFrame => {
                let worker = self.worker(script)?;
                let frame = Frame::from_bytes(counted(script)?);
                if let Some(worker) = worker {
                    self.input(Input::WorkerFrame(worker, frame));
                }
            }
            Operation::Readers => {
                let count = usize::from(u8::arbitrary(script)?) % (MAX_READERS + 2);
                let mut readers = Vec::new();
                for _ in 0..count {
                    let [name, present, card_events] = <[u8; 3]>::arbitrary(script)?;
                    readers.push(ReaderStatus {
                        name: format!("Reader {name}"),
                        present: present & 1 != 0,
                        card_events: card_events.into(),
                    });
                }
                self.monitor_says(readers);
            }
            Operation::Report => {
                let worker = self.worker(script)?;
                let message = match u8::arbitrary(script)? % 3 {
                    0 => WorkerMessage::NoService,
                    1 => WorkerMessage::CardPresent(true),
                    _ => WorkerMessage::CardPresent(false),
                };
                if let Some(worker) = worker {
                    self.input(Input::WorkerFrame(worker, frame(&message)));
                }
            }
            Operation::Wait => {
                self.now += Duration::from_millis(u16::arbitrary(script)?.into());
                self.input(Input::Tick);
            }
            Operation::Deadline => {
                self.tick();
            }
            Operation::Settle => self.settle(),
            Operation::Activation => {
                let is_active = bool::arbitrary(script)?;
                self.activation(is_active);
            }
            Operation::AnswerPrompt => {
                let index = index(script, self.prompts.len())?;
                let [kind, reader, remember] = <[u8; 3]>::arbitrary(script)?;
                let remember = remember & 1 != 0;
                let answer = match kind % 4 {
                    0 => PromptAnswer::Refused,
                    1 => PromptAnswer::NotAsked,
                    2 => PromptAnswer::Allowed { remember },
                    _ => PromptAnswer::Chosen {
                        index: reader.into(),
                        remember,
                    },
                };
                if let Some(id) = index.and_then(|index| self.prompts.keys().nth(index).copied()) {
                    self.answer_prompt(id, answer);
                }
            }
            Operation::Overview => {
                self.overview();
            }
            Operation::Revoke => {
                let id = GrantId(u8::arbitrary(script)?.into());
                self.input(Input::Revoke(id));
                let overview = self.overview();
                assert!(
                    overview.grants.iter().all(|grant| grant.id != Some(id)),
                    "a grant that was revoked is listed"
                );
            }
        }
        Ok(())
    }

    fn slot(&self, script: &mut Unstructured<'_>) -> Result<u8> {
        Ok(u8::arbitrary(script)? % SLOTS)
    }

    fn worker(&self, script: &mut Unstructured<'_>) -> Result<Option<WorkerId>> {
        let index = index(script, self.running.len())?;
        Ok(index.and_then(|index| self.running.keys().nth(index).copied().map(WorkerId)))
    }

    // The user.

    fn activation(&mut self, is_active: bool) {
        if self.waiting.is_empty() {
            return;
        }
        let (prompt, _) = self.waiting.remove(0);
        if is_active {
            self.active.insert(prompt);
        }
        self.input(Input::Activation { prompt, is_active });
    }

    fn answer_prompt(&mut self, prompt: PromptId, answer: PromptAnswer) {
        let Some(request) = self.prompts.remove(&prompt) else {
            return;
        };
        if let (Question::ChooseReader { readers }, PromptAnswer::Chosen { index, .. }) =
            (&request.question, &answer)
            && usize::try_from(*index).is_ok_and(|index| index < readers.len())
        {
            for slot in 0..SLOTS {
                let identity = identity(slot);
                if identity.origin == request.origin
                    && identity.top_level_origin == request.top_level_origin
                {
                    self.chosen[usize::from(slot)] = true;
                }
            }
        }
        self.input(Input::PromptAnswered { prompt, answer });
    }

    fn overview(&mut self) -> Overview {
        self.input(Input::GetOverview(7));
        self.overview
            .take()
            .unwrap_or_else(|| panic!("there is no overview"))
    }

    fn prompt(&mut self, request: PromptRequest) {
        let asks = self.slots.iter().enumerate().any(|(slot, port)| {
            let identity = identity(u8::try_from(slot).unwrap_or_default());
            port.is_some()
                && identity.origin == request.origin
                && identity.top_level_origin == request.top_level_origin
                && identity.webview == request.webview
                && identity.connection == Connection::TrustedHttps
        });
        assert!(asks, "the user is asked for nobody");
        if let Some(replaced) = request.replaces {
            let replaced = self.prompts.remove(&replaced);
            assert!(replaced.is_some(), "a prompt that is not shown is replaced");
        } else if matches!(request.question, Question::ChooseReader { .. }) {
            assert!(self.active.contains(&request.id), "the user did nothing");
        }
        let before = self.prompts.insert(request.id, request);
        assert!(before.is_none(), "two prompts have one id");
    }

    // The main process.

    fn open_port(&mut self, slot: u8) {
        let port = PortId(self.next_port);
        self.next_port += 1;
        self.slots[usize::from(slot)] = Some(Port {
            id: port,
            unanswered: BTreeMap::new(),
            last_request: 0,
            empty: BTreeSet::new(),
        });
        let identity = identity(slot);
        self.input(Input::OpenPort { port, identity });
    }

    fn close_port(&mut self, slot: u8) {
        if let Some(port) = &self.slots[usize::from(slot)] {
            let id = port.id;
            self.input(Input::ClosePort(id));
            assert!(self.slots[usize::from(slot)].is_none(), "it stays open");
        }
    }

    fn set_grant(&mut self, slot: u8, allowed: bool) {
        let PortIdentity {
            origin,
            top_level_origin,
            ..
        } = identity(slot);
        for other in 0..SLOTS {
            let identity = identity(other);
            if identity.origin == origin && identity.top_level_origin == top_level_origin {
                self.grants[usize::from(other)] = allowed;
            }
        }
        self.input(Input::SetPermission {
            origin,
            top_level_origin,
            feature: Feature::SecureElement,
            state: if allowed {
                PermissionState::Granted
            } else {
                PermissionState::Prompt
            },
        });
    }

    fn start_worker(&mut self, index: usize) {
        let (id, kind) = self.to_start.remove(index);
        let worker = Worker {
            kind,
            request: None,
            connected: false,
        };
        self.running.insert(id.0, worker);
        self.input(Input::WorkerStarted(id));
    }

    fn forget_worker(&mut self, worker: WorkerId) {
        self.running.remove(&worker.0);
        self.to_start.retain(|(id, _)| *id != worker);
        self.ended.insert(worker.0);
    }

    // The documents.

    fn request(&mut self, slot: u8, is_new: bool, body: RequestBody) {
        let Some(port) = &mut self.slots[usize::from(slot)] else {
            return;
        };
        if is_new {
            port.last_request += 1;
        }
        let id = RequestId(port.last_request);
        let (port, is_forbidden) = (port.id, is_forbidden(&body));
        self.port_frame(slot, frame(&PortRequest { id, body }));
        let left = self.slots[usize::from(slot)].as_ref();
        assert!(
            !is_forbidden
                || left.is_none_or(|left| left.id != port || !left.unanswered.contains_key(&id.0)),
            "a forbidden command waits"
        );
    }

    fn port_frame(&mut self, slot: u8, frame: Frame) {
        let Some(port) = &mut self.slots[usize::from(slot)] else {
            return;
        };
        let id = port.id;
        let mut must_close = false;
        match frame.decode::<PortRequest>() {
            // An id that has no answer yet is no new request.
            Ok(request) => {
                let due = time_limit(&request.body).map(|limit| self.now + limit);
                must_close |= port.unanswered.insert(request.id.0, due).is_some();
            }
            Err(_) => must_close = true,
        }
        must_close |= port.unanswered.len() > MAX_REQUESTS_IN_FLIGHT;
        self.input(Input::PortFrame(id, frame));
        let is_open = self.slots[usize::from(slot)].is_some();
        assert_eq!(is_open, !must_close, "whether the port stays open");
    }

    fn may_see_readers(&self, slot: usize) -> bool {
        let connection = u8::try_from(slot).map(|slot| identity(slot).connection);
        (self.grants[slot] || self.chosen[slot]) && connection == Ok(Connection::TrustedHttps)
    }

    // The workers.

    fn monitor_says(&mut self, readers: Vec<ReaderStatus>) {
        let monitor = self
            .running
            .iter()
            .find(|(_, worker)| worker.kind == WorkerKind::PcscMonitor);
        if let Some((id, _)) = monitor {
            let frame = frame(&WorkerMessage::Readers(readers));
            self.input(Input::WorkerFrame(WorkerId(*id), frame));
        }
    }

    fn answer(
        &mut self,
        worker: Option<WorkerId>,
        answer: Answer,
        script: &mut Unstructured<'_>,
    ) -> Result<()> {
        let result = match answer {
            Answer::Honest | Answer::Mistaken => None,
            Answer::Connected => Some(Ok(protocol::ReplyBody::Connected(Connected {
                fresh: bool::arbitrary(script)?,
                atr: counted(script)?,
                protocol: Protocol::T1,
            }))),
            Answer::Response => Some(Ok(protocol::ReplyBody::Response(counted(script)?))),
            Answer::LongResponse => {
                let length = 2 * usize::from(u16::arbitrary(script)?);
                Some(Ok(protocol::ReplyBody::Response(vec![0; length])))
            }
            Answer::Done => Some(Ok(protocol::ReplyBody::Done)),
            Answer::Error => Some(Err(choice(script, &ERRORS)?)),
        };
        let Some(id) = worker else {
            return Ok(());
        };
        let Some(request) = self.running.get_mut(&id.0).and_then(|it| it.request.take()) else {
            return Ok(());
        };
        let result = result.unwrap_or_else(|| Ok(self.honest_answer(id, &request)));
        let message = WorkerMessage::Reply {
            request: match answer {
                Answer::Mistaken => request.id.wrapping_add(1),
                _ => request.id,
            },
            result,
        };
        let frame = frame(&message);
        let is_wrong = matches!(answer, Answer::Mistaken) || frame.encoded_length() == 0;
        self.input(Input::WorkerFrame(id, frame));
        assert!(
            !is_wrong || !self.running.contains_key(&id.0),
            "a worker that is out of step goes on"
        );
        Ok(())
    }

    /// What an ordinary card does, whose channels are without number.
    fn honest_answer(&mut self, id: WorkerId, request: &WorkerRequest) -> protocol::ReplyBody {
        let Some(worker) = self.running.get_mut(&id.0) else {
            return protocol::ReplyBody::Done;
        };
        match &request.body {
            protocol::RequestBody::Connect { .. } | protocol::RequestBody::Reset => {
                let is_plain = matches!(
                    request.body,
                    protocol::RequestBody::Connect { reset: false }
                );
                let fresh = !(is_plain && worker.connected);
                worker.connected = true;
                protocol::ReplyBody::Connected(Connected {
                    atr: ATR.to_vec(),
                    protocol: Protocol::T0,
                    fresh,
                })
            }
            protocol::RequestBody::Transmit { command, .. } => {
                let response = match *command.as_slice() {
                    [0x00, 0x70, 0x00, 0x00, 0x01] => {
                        let channel = self.next_card_channel;
                        self.next_card_channel = channel % 19 + 1;
                        vec![channel, 0x90, 0x00]
                    }
                    _ => vec![0x90, 0x00],
                };
                protocol::ReplyBody::Response(response)
            }
            protocol::RequestBody::Disconnect => {
                worker.connected = false;
                protocol::ReplyBody::Done
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS {
            let busy = self
                .running
                .iter()
                .find(|(_, worker)| worker.request.is_some())
                .map(|(id, _)| WorkerId(*id));
            if !self.waiting.is_empty() {
                self.activation(true);
            } else if !self.to_start.is_empty() {
                self.start_worker(0);
            } else if busy.is_some() {
                let nothing = &mut Unstructured::new(&[]);
                if self.answer(busy, Answer::Honest, nothing).is_err() {
                    return;
                }
            } else {
                return;
            }
        }
    }

    // Time.

    /// Lets time pass up to the next deadline, if there is one.
    fn tick(&mut self) -> bool {
        let Some(deadline) = self.broker.next_deadline() else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.input(Input::Tick);
        true
    }

    /// From here on no worker answers.
    fn come_to_an_end(&mut self) {
        let mut ticks = 0..MAX_TICKS;
        while self
            .slots
            .iter()
            .flatten()
            .any(|port| !port.unanswered.is_empty())
        {
            assert!(self.tick(), "a request waits without a deadline");
            assert!(ticks.next().is_some(), "a request is never answered");
        }
        for slot in 0..SLOTS {
            self.close_port(slot);
        }
        self.monitor_says(Vec::new());
        while self.tick() {
            assert!(ticks.next().is_some(), "it never comes to rest");
        }
        let rest = format!("{:?}", self.broker).len();
        assert!(rest <= MAX_REST, "{rest} bytes are left");
    }

    // The broker.

    fn input(&mut self, input: Input) {
        for output in self.broker.handle(input, self.now) {
            self.output(output);
        }
        let ports = self.slots.iter().flatten();
        if let Some(due) = ports
            .flat_map(|port| port.unanswered.values().flatten())
            .min()
        {
            let next = self.broker.next_deadline();
            assert!(
                next.is_some_and(|next| next <= *due),
                "a request is to be answered too late"
            );
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::ToPort(port, message) => self.message(port, message),
            Output::ClosePort(port) => {
                let slot = self.slot_of(port);
                self.slots[slot] = None;
            }
            Output::PortOpened(port) => {
                self.slot_of(port);
            }
            Output::CheckActivation(prompt, webview) => self.waiting.push((prompt, webview)),
            Output::Prompt(request) => self.prompt(request),
            Output::WithdrawPrompt(prompt) => {
                let shown = self.prompts.remove(&prompt);
                assert!(shown.is_some(), "a prompt that is not shown is withdrawn");
            }
            Output::Overview(id, overview) => {
                assert_eq!(id, 7, "the answer to another question");
                self.overview = Some(overview);
            }
            Output::Store(_) => {}
            Output::ToKeyWorker(..) => panic!("there are no tokens with keys"),
            Output::StartWorker(worker, kind) => {
                let is_new = !self.ended.contains(&worker.0)
                    && !self.running.contains_key(&worker.0)
                    && self.to_start.iter().all(|(id, _)| *id != worker);
                assert!(is_new, "a worker's id is used twice");
                self.to_start.push((worker, kind));
                // One for each reader, the embedded card and the monitor.
                let workers = self.to_start.len() + self.running.len();
                assert!(workers <= MAX_READERS + 2, "too many workers");
            }
            Output::KillWorker(worker) => self.forget_worker(worker),
            Output::ReleaseWorker(worker) => {
                assert!(self.running.contains_key(&worker.0), "it does not run");
                self.forget_worker(worker);
            }
            Output::ToWorker(worker, request) => {
                if let protocol::RequestBody::Transmit { command, .. } = &request.body {
                    assert!(CommandApdu::parse(command).is_ok(), "it sends no command");
                }
                let Some(worker) = self.running.get_mut(&worker.0) else {
                    panic!("a request to a worker that does not run");
                };
                let earlier = worker.request.replace(request);
                assert_eq!(earlier, None, "a worker has two requests");
            }
        }
    }

    fn slot_of(&self, port: PortId) -> usize {
        self.slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|open| open.id == port))
            .unwrap_or_else(|| panic!("something for a port that is not open"))
    }

    /// A document is told of a reader; whether that is news to it.
    fn learn(&mut self, slot: usize, reader: &ReaderInfo) -> bool {
        self.slots[slot].as_mut().is_some_and(|port| {
            if reader.present {
                port.empty.remove(&reader.id.0)
            } else {
                port.empty.insert(reader.id.0)
            }
        })
    }

    fn message(&mut self, port: PortId, message: PortMessage) {
        let slot = self.slot_of(port);
        let may_see_readers = self.may_see_readers(slot);
        let is_disclosure = match message {
            PortMessage::Reply { request, result } => {
                let asked = self.slots[slot]
                    .as_mut()
                    .is_some_and(|port| port.unanswered.remove(&request.0).is_some());
                assert!(asked, "an answer to what was not asked, or a second one");
                match result {
                    Ok(ReplyBody::Readers(readers)) => {
                        for reader in &readers {
                            self.learn(slot, reader);
                        }
                        !readers.is_empty()
                    }
                    Ok(ReplyBody::Session(_) | ReplyBody::Channel(_)) => true,
                    Ok(
                        ReplyBody::Response(_)
                        | ReplyBody::Permission(_)
                        | ReplyBody::Keys(_)
                        | ReplyBody::Done,
                    )
                    | Err(_) => false,
                }
            }
            PortMessage::Element(reader) => {
                let is_new = self.learn(slot, &reader);
                assert!(is_new || reader.present, "an element goes twice");
                true
            }
            PortMessage::Token(_) => true,
        };
        assert!(
            may_see_readers || !is_disclosure,
            "an origin without a grant learns of readers"
        );
    }
}

fn request(script: &mut Unstructured<'_>) -> Result<RequestBody> {
    let id = |script: &mut Unstructured<'_>| u8::arbitrary(script).map(u32::from);
    Ok(match choice(script, &REQUESTS)? {
        Request::GetReaders => RequestBody::GetReaders,
        Request::WatchElements => RequestBody::WatchElements,
        Request::Shutdown => RequestBody::Shutdown,
        Request::OpenSession => RequestBody::OpenSession(ReaderId(id(script)?)),
        Request::CloseSessions => RequestBody::CloseSessions(ReaderId(id(script)?)),
        Request::Reset => RequestBody::Reset(ReaderId(id(script)?)),
        Request::OpenChannel => RequestBody::OpenChannel {
            session: SessionId(id(script)?),
            channel_type: match u8::arbitrary(script)? {
                0 => ChannelType::Basic,
                _ => ChannelType::Supplementary,
            },
            p2: u8::arbitrary(script)?,
            aid: match u8::arbitrary(script)? {
                length @ 0..=17 => Some(script.bytes(length.into())?.to_vec()),
                _ => None,
            },
        },
        Request::CloseSession => RequestBody::CloseSession(SessionId(id(script)?)),
        Request::TransmitRaw => RequestBody::Transmit {
            channel: ChannelId(id(script)?),
            timeout_ms: timeout(script)?,
            command: Command::Raw(counted(script)?),
        },
        Request::TransmitLong => RequestBody::Transmit {
            channel: ChannelId(id(script)?),
            timeout_ms: timeout(script)?,
            command: Command::Raw(long_command(u16::arbitrary(script)?)),
        },
        Request::TransmitFields => RequestBody::Transmit {
            channel: ChannelId(id(script)?),
            timeout_ms: timeout(script)?,
            command: Command::Fields {
                header: <[u8; 4]>::arbitrary(script)?,
                le: match (bool::arbitrary(script)?, u16::arbitrary(script)?) {
                    (true, le) => Some(le),
                    (false, _) => None,
                },
                extended: bool::arbitrary(script)?,
                data: Some(counted(script)?),
            },
        },
        Request::SelectNext => RequestBody::SelectNext {
            channel: ChannelId(id(script)?),
            timeout_ms: timeout(script)?,
        },
        Request::CloseChannel => RequestBody::CloseChannel(ChannelId(id(script)?)),
    })
}

/// 0: none; else that many tenths of a second.
fn timeout(script: &mut Unstructured<'_>) -> Result<Option<u32>> {
    let tenths = u8::arbitrary(script)?;
    Ok((tenths > 0).then(|| u32::from(tenths) * 100))
}

/// How long the broker may take. What closes something waits for whatever is under way.
fn time_limit(body: &RequestBody) -> Option<Duration> {
    match body {
        RequestBody::Transmit { timeout_ms, .. } | RequestBody::SelectNext { timeout_ms, .. } => {
            let limit = timeout_ms.map(|timeout| Duration::from_millis(timeout.into()));
            Some(limit.unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT))
        }
        RequestBody::QueryPermission(_)
        | RequestBody::WatchElements
        | RequestBody::OpenSession(_)
        | RequestBody::Reset(_) => Some(DEFAULT_TIMEOUT),
        RequestBody::GetReaders | RequestBody::OpenChannel { .. } | RequestBody::Keys(_) => {
            Some(WITH_A_USER)
        }
        RequestBody::Shutdown
        | RequestBody::CloseSessions(_)
        | RequestBody::CloseSession(_)
        | RequestBody::CloseChannel(_) => None,
    }
}

fn long_command(length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    let header = [0x00, 0x10, 0x00, 0x00, 0x00, high, low];
    [&header[..], &vec![0; length.into()]].concat()
}

fn is_forbidden(body: &RequestBody) -> bool {
    let header = match body {
        RequestBody::Transmit {
            command: Command::Raw(bytes),
            ..
        } => match CommandApdu::parse(bytes) {
            Ok(command) => command.header(),
            Err(_) => return true,
        },
        RequestBody::Transmit {
            command:
                Command::Fields {
                    header: [cla, ins, p1, p2],
                    ..
                },
            ..
        } => Header::new(*cla, *ins, *p1, *p2),
        _ => return false,
    };
    check_caller_command(header).is_err()
}
