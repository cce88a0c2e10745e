/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::collections::HashSet;

use proptest::prelude::*;
use token_traits::Connection;
use token_traits::control::AccessConfig;
use token_traits::port::{ElementType, ReaderInfo};
use virtual_card::applets::echo;
use virtual_card::{Card, VirtualCard};

use super::*;

type Reply = Result<ReplyBody, TokenError>;

/// A broker, and around it a main process, workers, cards and pages, all of which do something only when told to.
pub(super) struct Rig {
    broker: Broker,
    now: Instant,
    next_request: u64,
    to_start: Vec<(WorkerId, WorkerKind)>,
    workers: HashMap<WorkerId, FakeWorker>,
    /// The cards outlive the workers that talk to them.
    cards: HashMap<WorkerKind, FakeCard>,
    replies: HashMap<(PortId, RequestId), Reply>,
    /// What ports were told of elements without asking.
    elements: Vec<(PortId, ReaderId, bool)>,
    closed_ports: HashSet<PortId>,
    killed: Vec<WorkerId>,
    released: Vec<WorkerId>,
    /// Whether the user has just done something.
    pub(super) is_active: bool,
    pub(super) activations: Vec<(PromptId, u64)>,
    /// What the user sees.
    pub(super) prompts: BTreeMap<PromptId, PromptRequest>,
    pub(super) overviews: Vec<(u64, Overview)>,
    pub(super) stored: Vec<Write>,
}

struct FakeWorker {
    kind: WorkerKind,
    connected: bool,
    /// What it has not answered yet.
    request: Option<WorkerRequest>,
}

pub(super) struct FakeCard {
    pub(super) card: VirtualCard,
    resets: usize,
    /// Class and instruction bytes of what was carried out.
    commands: Vec<[u8; 2]>,
}

impl FakeCard {
    pub(super) fn resets(&self) -> usize {
        self.resets
    }

    /// How many supplementary channels are open: the card opens what is left of its 19, and closes it again.
    pub(super) fn open_channels(&mut self) -> usize {
        let mut opened = Vec::new();
        while let [number, 0x90, 0x00] = self.card.transmit(&[0x00, 0x70, 0x00, 0x00, 0x01])[..] {
            opened.push(ChannelNumber::new(number).unwrap());
        }
        for channel in &opened {
            self.card
                .transmit(&channel::close_command(*channel).encode());
        }
        19 - opened.len()
    }
}

const EMBEDDED: &str = "default";
pub(super) const ORIGIN: &str = "https://bank.example";

pub(super) fn embedded() -> WorkerKind {
    WorkerKind::VirtualCard {
        profile: EMBEDDED.into(),
    }
}

pub(super) fn identity(origin: &str) -> PortIdentity {
    let origin = Origin::new(origin).unwrap();
    PortIdentity {
        origin: origin.clone(),
        top_level_origin: origin,
        webview: 1,
        event_loop: 1,
        private: false,
        connection: Connection::TrustedHttps,
        features: token_traits::FeatureSet::ALL,
    }
}

pub(super) fn status(name: &str, present: bool) -> ReaderStatus {
    ReaderStatus {
        name: name.into(),
        present,
        card_events: 0,
    }
}

impl Rig {
    /// With the embedded card, and a grant for [`ORIGIN`].
    pub(super) fn new() -> Self {
        Self::with_pcsc(false)
    }

    pub(super) fn with_pcsc(pcsc: bool) -> Self {
        Self::configured(pcsc, None)
    }

    /// With access rules and this card as the embedded one.
    pub(super) fn with_card(access: Option<AccessConfig>, card: VirtualCard) -> Self {
        let mut rig = Self::configured(false, access);
        rig.insert_card(embedded(), card);
        rig
    }

    /// With PC/SC, access rules, this card as the embedded one, and nobody who may see it.
    pub(super) fn without_grants(access: AccessConfig, card: VirtualCard) -> Self {
        let mut rig = Self::configured(true, Some(access));
        rig.insert_card(embedded(), card);
        rig.grant(ORIGIN, false);
        rig
    }

    pub(super) fn insert_card(&mut self, reader: WorkerKind, card: VirtualCard) {
        let card = FakeCard {
            card,
            resets: 0,
            commands: vec![],
        };
        self.cards.insert(reader, card);
    }

    pub(super) fn card_of(&mut self, reader: &WorkerKind) -> &mut FakeCard {
        self.cards.get_mut(reader).unwrap()
    }

    /// Whether no card has a worker.
    pub(super) fn workers_are_idle(&self) -> bool {
        self.to_start.is_empty()
            && self
                .workers
                .values()
                .all(|worker| worker.kind == WorkerKind::PcscMonitor)
    }

    /// How many commands a card was sent.
    pub(super) fn commands(&self, reader: &WorkerKind) -> usize {
        self.cards.get(reader).map_or(0, |card| card.commands.len())
    }

    /// A number for a port that no other has.
    pub(super) fn next_port(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request + 1000
    }

    /// With PC/SC, where the cards of some readers are UICCs.
    pub(super) fn with_uicc_readers(access: AccessConfig, uicc_readers: &[&str]) -> Self {
        let mut rig = Self::configured(true, Some(access));
        let names = uicc_readers.iter().map(|name| (*name).to_owned());
        rig.broker.config.uicc_readers = names.collect();
        rig
    }

    fn configured(pcsc: bool, access: Option<AccessConfig>) -> Self {
        let mut rig = Self {
            broker: Broker::new(),
            now: Instant::now(),
            next_request: 1,
            to_start: vec![],
            workers: HashMap::new(),
            cards: HashMap::new(),
            replies: HashMap::new(),
            elements: vec![],
            closed_ports: HashSet::new(),
            killed: vec![],
            released: vec![],
            is_active: false,
            activations: vec![],
            prompts: BTreeMap::new(),
            overviews: vec![],
            stored: vec![],
        };
        rig.input(Input::Configure(BrokerConfig {
            pcsc,
            virtual_card: Some(EMBEDDED.into()),
            access,
            ..BrokerConfig::default()
        }));
        rig.grant(ORIGIN, true);
        rig
    }

    pub(super) fn grant(&mut self, origin: &str, allowed: bool) {
        let origin = Origin::new(origin).unwrap();
        self.input(Input::SetPermission {
            origin: origin.clone(),
            top_level_origin: origin,
            feature: Feature::SecureElement,
            state: if allowed {
                PermissionState::Granted
            } else {
                PermissionState::Prompt
            },
        });
    }

    pub(super) fn open_port(&mut self, port: u64, origin: &str) -> PortId {
        self.open_port_as(port, identity(origin))
    }

    pub(super) fn open_port_as(&mut self, port: u64, identity: PortIdentity) -> PortId {
        let port = PortId(port);
        self.input(Input::OpenPort { port, identity });
        port
    }

    pub(super) fn input(&mut self, input: Input) {
        for output in self.broker.handle(input, self.now) {
            match output {
                Output::ToPort(port, PortMessage::Reply { request, result }) => {
                    let earlier = self.replies.insert((port, request), result);
                    assert_eq!(earlier, None, "two replies");
                    assert!(
                        !self.closed_ports.contains(&port),
                        "a reply to a closed port"
                    );
                }
                Output::ToPort(port, PortMessage::Element(info)) => {
                    assert!(!self.closed_ports.contains(&port));
                    self.elements.push((port, info.id, info.present));
                }
                Output::ToPort(_, PortMessage::Token(_)) => panic!("there are no tokens with keys"),
                Output::PortOpened(port) => assert!(!self.closed_ports.contains(&port)),
                Output::ClosePort(port) => {
                    self.closed_ports.insert(port);
                }
                Output::StartWorker(worker, kind) => self.to_start.push((worker, kind)),
                Output::KillWorker(worker) => {
                    self.workers.remove(&worker);
                    self.to_start.retain(|(id, _)| *id != worker);
                    self.killed.push(worker);
                }
                Output::ReleaseWorker(worker) => {
                    self.workers.remove(&worker).expect("a worker that runs");
                    self.released.push(worker);
                }
                Output::CheckActivation(prompt, webview) => {
                    self.activations.push((prompt, webview))
                }
                Output::Prompt(request) => {
                    if let Some(replaced) = request.replaces {
                        let replaced = self.prompts.remove(&replaced);
                        replaced.expect("a prompt that is shown");
                    }
                    let before = self.prompts.insert(request.id, request);
                    assert_eq!(before, None, "two prompts of one id");
                }
                Output::WithdrawPrompt(prompt) => {
                    self.prompts
                        .remove(&prompt)
                        .expect("a prompt that is shown");
                }
                Output::ToKeyWorker(..) => panic!("there are no tokens with keys"),
                Output::Overview(id, overview) => self.overviews.push((id, overview)),
                Output::Store(write) => self.stored.push(write),
                Output::ToWorker(worker, request) => {
                    let worker = self.workers.get_mut(&worker).expect("a worker that runs");
                    assert_eq!(worker.request, None, "commands overlap");
                    worker.request = Some(request);
                }
            }
        }
    }

    /// Starts the worker that was asked for first.
    pub(super) fn start_worker(&mut self) -> Option<WorkerId> {
        if self.to_start.is_empty() {
            return None;
        }
        let (id, kind) = self.to_start.remove(0);
        self.cards.entry(kind.clone()).or_insert_with(|| FakeCard {
            card: VirtualCard::from_profile(EMBEDDED).unwrap(),
            resets: 0,
            commands: vec![],
        });
        self.workers.insert(
            id,
            FakeWorker {
                kind,
                connected: false,
                request: None,
            },
        );
        self.input(Input::WorkerStarted(id));
        Some(id)
    }

    pub(super) fn worker(&self, kind: &WorkerKind) -> Option<WorkerId> {
        let found = self.workers.iter().find(|(_, worker)| worker.kind == *kind);
        found.map(|(id, _)| *id)
    }

    pub(super) fn card(&mut self) -> &mut FakeCard {
        self.cards.get_mut(&embedded()).unwrap()
    }

    /// Lets a worker answer what it was asked.
    pub(super) fn answer(&mut self, id: WorkerId) -> bool {
        let worker = self.workers.get_mut(&id).unwrap();
        let Some(WorkerRequest { id: request, body }) = worker.request.take() else {
            return false;
        };
        let card = self.cards.get_mut(&worker.kind).unwrap();
        let result = match body {
            protocol::RequestBody::Connect { reset } => {
                let fresh = reset || !worker.connected;
                if reset {
                    card.card.reset();
                    card.resets += 1;
                }
                worker.connected = true;
                Ok(protocol::ReplyBody::Connected(Connected {
                    atr: card.card.atr().to_vec(),
                    protocol: protocol::Protocol::T1,
                    fresh,
                }))
            }
            protocol::RequestBody::Transmit { command, .. } => {
                assert!(worker.connected);
                card.commands.push([command[0], command[1]]);
                let response = card.card.transmit(&command);
                Ok(protocol::ReplyBody::Response(response))
            }
            protocol::RequestBody::Disconnect => {
                worker.connected = false;
                Ok(protocol::ReplyBody::Done)
            }
            protocol::RequestBody::Reset => {
                card.card.reset();
                card.resets += 1;
                worker.connected = true;
                Ok(protocol::ReplyBody::Connected(Connected {
                    atr: card.card.atr().to_vec(),
                    protocol: protocol::Protocol::T1,
                    fresh: true,
                }))
            }
        };
        self.worker_says(id, request, result);
        true
    }

    pub(super) fn worker_says(
        &mut self,
        worker: WorkerId,
        request: u64,
        result: Result<protocol::ReplyBody, WorkerError>,
    ) {
        let message = WorkerMessage::Reply { request, result };
        self.input(Input::WorkerFrame(worker, Frame::encode(&message).unwrap()));
    }

    /// Lets a worker fail what it was asked.
    pub(super) fn fail(&mut self, id: WorkerId, error: WorkerError) {
        let worker = self.workers.get_mut(&id).unwrap();
        let request = worker.request.take().unwrap().id;
        worker.connected &= error.keeps_connection();
        self.worker_says(id, request, Err(error));
    }

    pub(super) fn kill(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        self.input(Input::WorkerEnded(worker));
    }

    /// Lets everybody do what is to be done.
    pub(super) fn settle(&mut self) {
        loop {
            let mut busy = self.start_worker().is_some();
            for (prompt, _) in std::mem::take(&mut self.activations) {
                let is_active = self.is_active;
                self.input(Input::Activation { prompt, is_active });
                busy = true;
            }
            let mut ids: Vec<WorkerId> = self.workers.keys().copied().collect();
            ids.sort_by_key(|id| id.0);
            for id in ids {
                if self.workers.contains_key(&id) {
                    busy |= self.answer(id);
                }
            }
            if !busy {
                return;
            }
        }
    }

    /// Lets so much time pass.
    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Tick);
    }

    /// Lets time pass up to the broker's next deadline.
    pub(super) fn tick(&mut self) {
        self.now = self
            .broker
            .next_deadline()
            .expect("a deadline")
            .max(self.now);
        self.input(Input::Tick);
    }

    pub(super) fn send(&mut self, port: PortId, body: RequestBody) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let frame = Frame::encode(&PortRequest { id, body }).unwrap();
        self.input(Input::PortFrame(port, frame));
        id
    }

    /// Sends, settles, and takes the answer.
    pub(super) fn ask(&mut self, port: PortId, body: RequestBody) -> Reply {
        let request = self.send(port, body);
        self.settle();
        self.take(port, request).expect("an answer")
    }

    pub(super) fn take(&mut self, port: PortId, request: RequestId) -> Option<Reply> {
        self.replies.remove(&(port, request))
    }

    pub(super) fn kind(&mut self, port: PortId, request: RequestId) -> Option<ErrorKind> {
        self.take(port, request)
            .map(|reply| reply.expect_err("an error").kind)
    }

    pub(super) fn readers(&mut self, port: PortId) -> Vec<ReaderInfo> {
        match self.ask(port, RequestBody::GetReaders) {
            Ok(ReplyBody::Readers(readers)) => readers,
            other => panic!("{other:?}"),
        }
    }

    /// A port that knows the reader "Slot", and the monitor.
    pub(super) fn slot(&mut self, present: bool) -> (PortId, ReaderId, WorkerId) {
        let port = self.open_port(self.next_request + 1000, ORIGIN);
        self.send(port, RequestBody::GetReaders);
        let monitor = self.start_worker().unwrap();
        self.monitor_says(monitor, vec![status("Slot", present)]);
        (port, self.readers(port)[1].id, monitor)
    }

    pub(super) fn monitor_says(&mut self, monitor: WorkerId, readers: Vec<ReaderStatus>) {
        let message = WorkerMessage::Readers(readers);
        self.input(Input::WorkerFrame(
            monitor,
            Frame::encode(&message).unwrap(),
        ));
    }

    /// What ports were told of elements since the last time.
    pub(super) fn told(&mut self) -> Vec<(PortId, ReaderId, bool)> {
        std::mem::take(&mut self.elements)
    }

    pub(super) fn open_session(&mut self, port: PortId) -> SessionId {
        let reader = self.readers(port)[0].id;
        match self.ask(port, RequestBody::OpenSession(reader)) {
            Ok(ReplyBody::Session(session)) => session.id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn open_channel(&mut self, port: PortId, session: SessionId) -> ChannelId {
        match self.ask(port, open(session, &echo::AID)) {
            Ok(ReplyBody::Channel(channel)) => channel.id,
            other => panic!("{other:?}"),
        }
    }

    /// A port with a session and a channel to the echo applet.
    pub(super) fn echo(&mut self) -> (PortId, SessionId, ChannelId) {
        let port = self.open_port(self.next_request + 1000, ORIGIN);
        let session = self.open_session(port);
        let channel = self.open_channel(port, session);
        (port, session, channel)
    }
}

pub(super) fn open(session: SessionId, aid: &[u8]) -> RequestBody {
    RequestBody::OpenChannel {
        session,
        channel_type: ChannelType::Supplementary,
        aid: Some(aid.to_vec()),
        p2: 0,
    }
}

pub(super) fn open_basic(session: SessionId, aid: Option<&[u8]>) -> RequestBody {
    RequestBody::OpenChannel {
        session,
        channel_type: ChannelType::Basic,
        aid: aid.map(<[u8]>::to_vec),
        p2: 0,
    }
}

fn echo(channel: ChannelId, data: &[u8]) -> RequestBody {
    RequestBody::Transmit {
        channel,
        command: Command::Fields {
            header: [0x00, echo::INS_ECHO, 0, 0],
            data: Some(data.to_vec()),
            le: Some(0),
            extended: false,
        },
        timeout_ms: None,
    }
}

pub(super) fn error(reply: Reply) -> ErrorKind {
    reply.expect_err("an error").kind
}

#[test]
fn an_origin_without_a_grant_sees_nothing_and_starts_nothing() {
    let mut rig = Rig::with_pcsc(true);
    let port = rig.open_port(1, "https://other.example");
    assert_eq!(rig.readers(port), []);
    assert!(rig.workers.is_empty());
    // Not even by guessing what a granted origin would be told.
    let open = RequestBody::OpenSession(ReaderId(0));
    assert_eq!(error(rig.ask(port, open)), ErrorKind::Security);
    assert!(rig.workers.is_empty());
}

#[test]
fn a_page_opens_a_channel_and_gets_an_answer() {
    let mut rig = Rig::new();
    let port = rig.open_port(1, ORIGIN);
    let readers = rig.readers(port);
    assert_eq!(readers.len(), 1);
    assert_eq!(readers[0].name, "Embedded virtual card");
    assert_eq!(readers[0].element_type, ElementType::Embedded);
    assert!(readers[0].present && !readers[0].removable);

    let Ok(ReplyBody::Session(session)) = rig.ask(port, RequestBody::OpenSession(readers[0].id))
    else {
        panic!("no session");
    };
    let historical_bytes = session.historical_bytes.unwrap();
    assert!(historical_bytes.ends_with(b"SERVO"));

    let Ok(ReplyBody::Channel(channel)) = rig.ask(port, open(session.id, &echo::AID)) else {
        panic!("no channel");
    };
    assert!(channel.open_response.unwrap().ends_with(&[0x90, 0x00]));
    let reply = rig.ask(port, echo(channel.id, b"hello"));
    assert_eq!(reply, Ok(ReplyBody::Response(b"hello\x90\x00".to_vec())));

    assert_eq!(
        rig.ask(port, RequestBody::CloseChannel(channel.id)),
        Ok(ReplyBody::Done)
    );
    assert_eq!(rig.card().open_channels(), 0);
    assert_eq!(
        error(rig.ask(port, echo(channel.id, b""))),
        ErrorKind::Closed
    );
    assert_eq!(
        rig.ask(port, RequestBody::CloseChannel(channel.id)),
        Ok(ReplyBody::Done)
    );
    assert_eq!(
        rig.ask(port, RequestBody::CloseSession(session.id)),
        Ok(ReplyBody::Done)
    );
    assert_eq!(
        error(rig.ask(port, open(session.id, &echo::AID))),
        ErrorKind::Closed
    );
    // With the last session the card is let go.
    assert!(rig.workers.values().all(|worker| !worker.connected));
}

#[test]
fn parameters_are_checked() {
    let mut rig = Rig::new();
    let (port, session, channel) = rig.echo();
    for (aid, p2) in [
        (vec![1; 17], 0),
        (vec![1; 5], 1),
        (vec![1; 5], 2),
        (vec![1; 5], 0xff),
    ] {
        let body = RequestBody::OpenChannel {
            session,
            channel_type: ChannelType::Supplementary,
            aid: Some(aid),
            p2,
        };
        assert_eq!(error(rig.ask(port, body)), ErrorKind::InvalidValue);
    }
    for command in [
        vec![],
        vec![0, 0x70, 0, 0, 1],
        vec![0x80, 0xa4, 4, 0],
        vec![0, 1, 2, 3, 9, 9],
    ] {
        let body = RequestBody::Transmit {
            channel,
            command: Command::Raw(command),
            timeout_ms: None,
        };
        assert_eq!(error(rig.ask(port, body)), ErrorKind::InvalidValue);
    }
}

#[test]
fn a_channel_whose_select_fails_is_closed_again() {
    let mut rig = Rig::new();
    let (port, session, _) = rig.echo();
    for _ in 0..25 {
        let reply = rig.ask(port, open(session, b"\xF0NOBODY"));
        assert_eq!(error(reply), ErrorKind::NoApplication);
    }
    assert_eq!(rig.card().open_channels(), 1);
    let reply = rig.ask(port, open_basic(session, Some(b"\xF0NOBODY")));
    assert_eq!(error(reply), ErrorKind::NoApplication);
    let basic = rig.ask(port, open_basic(session, Some(&[])));
    assert!(basic.is_ok(), "{basic:?}");
}

#[test]
fn a_card_without_a_free_channel_says_so() {
    let mut rig = Rig::new();
    let (port, session, _) = rig.echo();
    for _ in 1..19 {
        rig.open_channel(port, session);
    }
    let reply = rig.ask(port, open(session, &echo::AID));
    assert_eq!(error(reply), ErrorKind::NoChannel);
}

#[test]
fn the_basic_channel_belongs_to_one_at_a_time() {
    let mut rig = Rig::new();
    let first = rig.open_port(1, ORIGIN);
    let second = rig.open_port(2, ORIGIN);
    let first_session = rig.open_session(first);
    let second_session = rig.open_session(second);
    let Ok(ReplyBody::Channel(channel)) = rig.ask(first, open_basic(first_session, None)) else {
        panic!("no channel");
    };
    assert_eq!(channel.open_response, None);
    assert_eq!(rig.card().commands, [] as [[u8; 2]; 0]);
    let reply = rig.ask(second, open_basic(second_session, Some(&echo::AID)));
    assert_eq!(error(reply), ErrorKind::NoChannel);

    rig.input(Input::ClosePort(first));
    rig.settle();
    // MANAGE CHANNEL reset; the card knows it, so no SELECT follows.
    assert_eq!(rig.card().commands, [[0x00, 0x70]]);
    let reply = rig.ask(second, open_basic(second_session, Some(&echo::AID)));
    assert!(reply.is_ok(), "{reply:?}");
}

#[test]
fn closing_waits_for_what_was_sent_before() {
    let mut rig = Rig::new();
    let (port, session, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let first = rig.send(port, echo(channel, b"1"));
    let second = rig.send(port, echo(channel, b"2"));
    let close = rig.send(port, RequestBody::CloseSession(session));
    let late = rig.send(port, echo(channel, b"3"));
    // What comes after the close is refused at once; nothing else has an answer.
    assert_eq!(rig.kind(port, late), Some(ErrorKind::Closed));
    assert!(rig.replies.is_empty());
    rig.answer(worker);
    assert!(rig.take(port, first).unwrap().is_ok());
    rig.answer(worker);
    assert!(rig.take(port, second).unwrap().is_ok());
    assert_eq!(rig.take(port, close), None);
    rig.answer(worker);
    assert_eq!(rig.take(port, close), Some(Ok(ReplyBody::Done)));
    assert_eq!(rig.card().open_channels(), 0);
}

#[test]
fn the_death_of_a_worker_fails_what_waits_and_closes_what_was_open() {
    let mut rig = Rig::new();
    let (port, session, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let running = rig.send(port, echo(channel, b"1"));
    let queued = rig.send(port, echo(channel, b"2"));
    let opening = rig.send(port, open(session, &echo::AID));
    let close = rig.send(port, RequestBody::CloseChannel(channel));
    rig.kill(worker);
    for request in [running, queued, opening] {
        assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
    }
    assert_eq!(rig.take(port, close), Some(Ok(ReplyBody::Done)));
    assert_eq!(error(rig.ask(port, echo(channel, b""))), ErrorKind::Closed);
    assert_eq!(
        error(rig.ask(port, open(session, &echo::AID))),
        ErrorKind::Closed
    );
    assert!(rig.workers.is_empty(), "nothing starts before it is needed");

    // The next use works at once, on a card that has forgotten what was open.
    let session = rig.open_session(port);
    assert_eq!(rig.card().resets, 1);
    assert_eq!(rig.card().open_channels(), 0);
    let channel = rig.open_channel(port, session);
    assert!(rig.ask(port, echo(channel, b"3")).is_ok());
}

#[test]
fn a_worker_that_cannot_be_started_fails_what_waits_for_it() {
    let mut rig = Rig::new();
    let port = rig.open_port(1, ORIGIN);
    let reader = rig.readers(port)[0].id;
    let first = rig.send(port, RequestBody::OpenSession(reader));
    let (worker, _) = rig.to_start.remove(0);
    rig.input(Input::WorkerEnded(worker));
    assert_eq!(rig.kind(port, first), Some(ErrorKind::Io));
    // The first restart is immediate, the second waits.
    let second = rig.send(port, RequestBody::OpenSession(reader));
    let (worker, _) = rig.to_start.remove(0);
    rig.input(Input::WorkerEnded(worker));
    assert_eq!(rig.kind(port, second), Some(ErrorKind::Io));
    let third = rig.send(port, RequestBody::OpenSession(reader));
    assert!(rig.to_start.is_empty());
    let before = rig.now;
    rig.tick();
    assert_eq!(rig.now - before, Duration::from_millis(250));
    rig.settle();
    assert!(rig.take(port, third).unwrap().is_ok());
}

#[test]
fn a_worker_that_misses_its_deadline_is_killed() {
    let mut rig = Rig::new();
    let (port, _, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let RequestBody::Transmit {
        channel, command, ..
    } = echo(channel, b"1")
    else {
        unreachable!();
    };
    let request = rig.send(
        port,
        RequestBody::Transmit {
            channel,
            command,
            timeout_ms: Some(70),
        },
    );
    let before = rig.now;
    rig.tick();
    assert_eq!(rig.now - before, Duration::from_millis(70));
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
    assert_eq!(rig.killed, []);
    rig.tick();
    assert_eq!(rig.now - before, Duration::from_millis(70) + GRACE);
    assert_eq!(rig.killed, [worker]);
    assert_eq!(error(rig.ask(port, echo(channel, b""))), ErrorKind::Closed);
    // What the killed worker still says counts for nothing.
    rig.worker_says(worker, 1, Ok(protocol::ReplyBody::Done));
    rig.input(Input::WorkerEnded(worker));
    let session = rig.open_session(port);
    rig.open_channel(port, session);
}

#[test]
fn a_worker_that_is_just_too_late_lives_and_what_it_opened_is_closed() {
    let mut rig = Rig::new();
    let (port, session, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let late = rig.send(port, open(session, &echo::AID));
    // Up to the end of SELECT's time.
    rig.answer(worker);
    rig.tick();
    assert_eq!(rig.kind(port, late), Some(ErrorKind::Io));
    rig.settle();
    assert_eq!(rig.killed, []);
    assert_eq!(rig.card().open_channels(), 1);
    let late = rig.send(port, RequestBody::OpenSession(ReaderId(0)));
    rig.tick();
    assert_eq!(rig.kind(port, late), Some(ErrorKind::Io));
    rig.settle();
    assert_eq!(rig.broker.ports[&port].sessions.len(), 1);
    assert!(rig.ask(port, echo(channel, b"")).is_ok());
}

#[test]
fn a_request_that_waited_too_long_is_never_sent() {
    let mut rig = Rig::new();
    let (port, _, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let slow = rig.send(port, echo(channel, b"slow"));
    let RequestBody::Transmit {
        channel, command, ..
    } = echo(channel, b"hasty")
    else {
        unreachable!();
    };
    let hasty = rig.send(
        port,
        RequestBody::Transmit {
            channel,
            command,
            timeout_ms: Some(10),
        },
    );
    rig.tick();
    assert_eq!(rig.kind(port, hasty), Some(ErrorKind::Io));
    assert!(rig.killed.is_empty());
    let commands = rig.card().commands.len();
    rig.answer(worker);
    assert!(rig.take(port, slow).unwrap().is_ok());
    assert_eq!(rig.card().commands.len(), commands + 1);
    assert_eq!(rig.workers[&worker].request, None);
}

#[test]
fn a_port_that_closes_leaves_nothing_behind() {
    let mut rig = Rig::new();
    let (port, session, channel) = rig.echo();
    let (other, _, other_channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    rig.send(port, open(session, &echo::AID));
    rig.send(port, echo(channel, b"never"));
    // The port closes while the card opens a channel for it.
    rig.input(Input::ClosePort(port));
    assert!(rig.closed_ports.contains(&port));
    assert!(rig.workers[&worker].request.is_some());
    rig.settle();
    assert!(rig.replies.is_empty());
    assert_eq!(rig.card().open_channels(), 1);
    assert!(
        !rig.card()
            .commands
            .iter()
            .any(|[_, ins]| *ins == echo::INS_ECHO)
    );
    assert!(rig.ask(other, echo(other_channel, b"1")).is_ok());
    rig.input(Input::ClosePort(other));
    rig.settle();
    assert_eq!(rig.card().open_channels(), 0);
    assert!(!rig.workers[&worker].connected);
}

#[test]
fn a_port_that_breaks_the_protocol_is_closed() {
    let malformed = [
        Frame::from_bytes(vec![]),
        Frame::from_bytes(vec![99, 1]),
        Frame::encode(&"nonsense").unwrap(),
    ];
    for frame in malformed {
        let mut rig = Rig::new();
        let (port, ..) = rig.echo();
        rig.input(Input::PortFrame(port, frame));
        assert!(rig.closed_ports.contains(&port));
        rig.settle();
        assert_eq!(rig.card().open_channels(), 0);
    }
}

#[test]
fn a_port_has_quotas() {
    let mut rig = Rig::new();
    let (port, _, channel) = rig.echo();
    for _ in 0..MAX_REQUESTS_IN_FLIGHT {
        rig.send(port, echo(channel, b""));
    }
    assert!(!rig.closed_ports.contains(&port));
    rig.send(port, echo(channel, b""));
    assert!(rig.closed_ports.contains(&port));

    let (port, _, channel) = rig.echo();
    let command = Command::Raw([&[0, 0x10, 0, 0, 0, 0xff, 0xff][..], &[7; 0xffff]].concat());
    let big = RequestBody::Transmit {
        channel,
        command,
        timeout_ms: None,
    };
    let requests: Vec<RequestId> = (0..20).map(|_| rig.send(port, big.clone())).collect();
    let refused = requests
        .iter()
        .filter(|request| rig.replies.contains_key(&(port, **request)))
        .count();
    assert_eq!(refused, 20 - MAX_PENDING_BYTES / (64 * 1024 + 20));
    rig.settle();
    for request in requests {
        assert!(rig.take(port, request).is_some());
    }

    let (port, session, _) = rig.echo();
    let frame = Frame::encode(&PortRequest {
        id: RequestId(1),
        body: open(session, &echo::AID),
    })
    .unwrap();
    rig.input(Input::PortFrame(port, frame.clone()));
    assert!(!rig.closed_ports.contains(&port));
    rig.input(Input::PortFrame(port, frame));
    assert!(rig.closed_ports.contains(&port), "two requests with one id");
}

#[test]
fn sessions_are_limited() {
    let mut rig = Rig::new();
    let port = rig.open_port(1, ORIGIN);
    for _ in 0..MAX_SESSIONS {
        rig.open_session(port);
    }
    let one_more = rig.ask(port, RequestBody::OpenSession(ReaderId(0)));
    assert_eq!(error(one_more), ErrorKind::Io);
}

#[test]
fn a_reset_by_somebody_else_closes_everything_for_everybody() {
    let mut rig = Rig::new();
    let (first, _, first_channel) = rig.echo();
    let (second, second_session, _) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let request = rig.send(first, echo(first_channel, b""));
    rig.fail(worker, WorkerError::CardReset);
    assert_eq!(rig.kind(first, request), Some(ErrorKind::Io));
    assert_eq!(
        error(rig.ask(first, echo(first_channel, b""))),
        ErrorKind::Closed
    );
    assert_eq!(
        error(rig.ask(second, open(second_session, &echo::AID))),
        ErrorKind::Closed
    );
    let session = rig.open_session(second);
    rig.open_channel(second, session);
    assert_eq!(rig.card().resets, 0, "somebody else has just done it");
}

#[test]
fn a_reset_that_shows_at_the_next_session_closes_the_others() {
    let mut rig = Rig::new();
    let (first, _, first_channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    rig.workers.get_mut(&worker).unwrap().connected = false;
    let second = rig.open_port(2, ORIGIN);
    rig.open_session(second);
    assert_eq!(
        error(rig.ask(first, echo(first_channel, b""))),
        ErrorKind::Closed
    );
}

#[test]
fn a_withdrawn_grant_takes_everything_back() {
    let mut rig = Rig::new();
    rig.grant("https://other.example", true);
    let (port, session, channel) = rig.echo();
    let other = rig.open_port(2, "https://other.example");
    let other_session = rig.open_session(other);
    let running = rig.send(port, echo(channel, b"1"));
    let queued = rig.send(port, echo(channel, b"2"));
    rig.grant(ORIGIN, false);
    assert_eq!(rig.kind(port, queued), Some(ErrorKind::Security));
    rig.settle();
    // The card answers it, but that goes nowhere.
    assert_eq!(rig.kind(port, running), Some(ErrorKind::Security));
    assert_eq!(rig.readers(port), []);
    assert_eq!(error(rig.ask(port, echo(channel, b""))), ErrorKind::Closed);
    assert_eq!(
        error(rig.ask(port, open(session, &echo::AID))),
        ErrorKind::Closed
    );
    assert_eq!(rig.card().open_channels(), 0);
    rig.open_channel(other, other_session);
}

#[test]
fn a_card_that_opens_an_open_channel_is_not_trusted_with_it() {
    let mut rig = Rig::new();
    let (port, session, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let request = rig.send(port, open(session, &echo::AID));
    let id = rig
        .workers
        .get_mut(&worker)
        .unwrap()
        .request
        .take()
        .unwrap()
        .id;
    rig.worker_says(
        worker,
        id,
        Ok(protocol::ReplyBody::Response(vec![1, 0x90, 0])),
    );
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
    assert!(
        rig.ask(port, echo(channel, b"")).is_ok(),
        "the first one stays"
    );
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed() {
    let mut rig = Rig::new();
    let (port, _, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let request = rig.send(port, echo(channel, b""));
    rig.input(Input::WorkerFrame(worker, Frame::from_bytes(vec![1, 2, 3])));
    assert_eq!(rig.killed, [worker]);
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
}

#[test]
fn readers_wait_for_the_monitor_but_not_for_ever() {
    let mut rig = Rig::with_pcsc(true);
    let port = rig.open_port(1, ORIGIN);
    let request = rig.send(port, RequestBody::GetReaders);
    let monitor = rig.start_worker().unwrap();
    assert_eq!(rig.take(port, request), None);
    let list = |readers| Frame::encode(&WorkerMessage::Readers(readers)).unwrap();
    let readers = vec![status("Slot 0", true), status("Slot\n1", false)];
    rig.input(Input::WorkerFrame(monitor, list(readers)));
    let Some(Ok(ReplyBody::Readers(readers))) = rig.take(port, request) else {
        panic!("no readers");
    };
    let seen: Vec<(&str, bool, bool)> = readers
        .iter()
        .map(|reader| (reader.name.as_str(), reader.removable, reader.present))
        .collect();
    assert_eq!(
        seen,
        [
            ("Embedded virtual card", false, true),
            ("Slot 0", true, true),
            ("Slot1", true, false),
        ]
    );

    // A reader keeps its id while it is plugged in, and a new one gets a new id.
    rig.input(Input::WorkerFrame(
        monitor,
        list(vec![status("Slot\n1", true)]),
    ));
    assert_eq!(rig.readers(port)[1].id, readers[2].id);
    let gone = rig.ask(port, RequestBody::OpenSession(readers[1].id));
    assert_eq!(error(gone), ErrorKind::Io);
    let again = vec![status("Slot 0", true), status("Slot\n1", true)];
    rig.input(Input::WorkerFrame(monitor, list(again)));
    assert!(readers.iter().all(|old| old.id != rig.readers(port)[2].id));

    // Without a monitor the others are still there.
    rig.kill(monitor);
    let request = rig.send(port, RequestBody::GetReaders);
    let before = rig.now;
    while rig.now - before < MONITOR_TIMEOUT {
        rig.tick();
        if let Some(worker) = rig.start_worker() {
            rig.kill(worker);
        }
    }
    assert!(rig.take(port, request).unwrap().is_ok());
}

#[test]
fn a_card_that_is_taken_out_closes_what_was_open_and_a_reader_takes_its_worker_along() {
    let mut rig = Rig::with_pcsc(true);
    let port = rig.open_port(1, ORIGIN);
    rig.send(port, RequestBody::GetReaders);
    let monitor = rig.start_worker().unwrap();
    let list = |readers| Frame::encode(&WorkerMessage::Readers(readers)).unwrap();
    rig.input(Input::WorkerFrame(
        monitor,
        list(vec![status("Slot", true)]),
    ));
    let reader = rig.readers(port)[1].id;
    for present in [true, false] {
        let Ok(ReplyBody::Session(session)) = rig.ask(port, RequestBody::OpenSession(reader))
        else {
            panic!("no session");
        };
        let channel = rig.open_channel(port, session.id);
        let request = rig.send(port, echo(channel, b""));
        let kind = WorkerKind::PcscReader {
            reader: "Slot".into(),
        };
        let worker = rig.worker(&kind).unwrap();
        if present {
            rig.input(Input::WorkerFrame(
                monitor,
                list(vec![status("Slot", false)]),
            ));
            assert_eq!(error(rig.ask(port, echo(channel, b""))), ErrorKind::Closed);
            rig.input(Input::WorkerFrame(
                monitor,
                list(vec![status("Slot", true)]),
            ));
            assert!(rig.take(port, request).is_some(), "the worker has answered");
        } else {
            let no_service = Frame::encode(&WorkerMessage::NoService).unwrap();
            rig.input(Input::WorkerFrame(monitor, no_service));
            assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
            assert_eq!(rig.killed, [worker]);
            assert_eq!(rig.readers(port).len(), 1);
        }
    }
}

#[test]
fn an_idle_pcsc_worker_is_released() {
    let mut rig = Rig::with_pcsc(true);
    let port = rig.open_port(1, ORIGIN);
    rig.send(port, RequestBody::GetReaders);
    let monitor = rig.start_worker().unwrap();
    let list = Frame::encode(&WorkerMessage::Readers(vec![status("Slot", true)])).unwrap();
    rig.input(Input::WorkerFrame(monitor, list));
    let reader = rig.readers(port)[1].id;
    assert!(rig.ask(port, RequestBody::OpenSession(reader)).is_ok());
    assert!(rig.ask(port, RequestBody::CloseSessions(reader)).is_ok());
    assert!(rig.released.is_empty());
    let before = rig.now;
    rig.tick();
    assert_eq!(rig.now - before, IDLE_LIMIT);
    assert_eq!(rig.released.len(), 1);
    // That was no failure: there is no pause before the next one.
    assert!(rig.ask(port, RequestBody::OpenSession(reader)).is_ok());
}

#[test]
fn listeners_learn_of_elements_that_are_there_and_of_those_that_come_and_go() {
    let mut rig = Rig::with_pcsc(true);
    let port = rig.open_port(1, ORIGIN);
    let other = rig.open_port(2, "https://other.example");
    let request = rig.send(port, RequestBody::WatchElements);
    assert_eq!(rig.take(port, request), Some(Ok(ReplyBody::Done)));
    rig.send(other, RequestBody::WatchElements);
    // Watching starts the monitor, and whoever may not see a reader is not told.
    let [(port_told, embedded, true)] = rig.told()[..] else {
        panic!("not the embedded card");
    };
    assert_eq!(port_told, port);
    let monitor = rig.start_worker().unwrap();
    let slot = |present, card_events| {
        vec![ReaderStatus {
            card_events,
            ..status("Slot", present)
        }]
    };
    rig.monitor_says(monitor, slot(false, 4));
    assert_eq!(rig.told(), []);
    rig.monitor_says(monitor, slot(true, 5));
    let [(_, reader, true)] = rig.told()[..] else {
        panic!("no card came");
    };
    assert!(reader != embedded);
    rig.monitor_says(monitor, slot(true, 5));
    assert_eq!(rig.told(), [], "nothing has changed");

    // Another card in its place.
    rig.monitor_says(monitor, slot(true, 7));
    assert_eq!(rig.told(), [(port, reader, false), (port, reader, true)]);
    rig.monitor_says(monitor, vec![]);
    assert_eq!(rig.told(), [(port, reader, false)]);

    // A listener that is attached later is told of what is there; so is an origin that is allowed later.
    let late = rig.open_port(3, ORIGIN);
    rig.send(late, RequestBody::WatchElements);
    assert_eq!(rig.told(), [(late, ReaderId(0), true)]);
    rig.grant("https://other.example", true);
    assert_eq!(rig.told(), [(other, ReaderId(0), true)]);
    rig.grant("https://other.example", false);
    rig.send(port, RequestBody::Shutdown);
    rig.monitor_says(monitor, slot(true, 8));
    let [(told, _, true)] = rig.told()[..] else {
        panic!("one listener is left");
    };
    assert_eq!(told, late);
}

#[test]
fn what_was_open_is_closed_before_the_removal_is_told() {
    let mut rig = Rig::with_pcsc(true);
    let (port, reader, monitor) = rig.slot(true);
    let Ok(ReplyBody::Session(session)) = rig.ask(port, RequestBody::OpenSession(reader)) else {
        panic!("no session");
    };
    let channel = rig.open_channel(port, session.id);
    assert_eq!(rig.told(), [], "the list has told already");
    rig.monitor_says(monitor, vec![status("Slot", false)]);
    assert_eq!(rig.told(), [(port, reader, false)]);
    assert_eq!(error(rig.ask(port, echo(channel, b""))), ErrorKind::Closed);
    let open = open(session.id, &echo::AID);
    assert_eq!(error(rig.ask(port, open)), ErrorKind::Closed);
}

#[test]
fn a_monitor_that_ends_is_replaced_while_somebody_watches() {
    let mut rig = Rig::with_pcsc(true);
    let (port, reader, monitor) = rig.slot(true);
    rig.told();
    // The service has ended: the readers go with it.
    let no_service = Frame::encode(&WorkerMessage::NoService).unwrap();
    rig.input(Input::WorkerFrame(monitor, no_service));
    assert_eq!(rig.told(), [(port, reader, false)]);
    rig.kill(monitor);
    let mut monitor = None;
    for _ in 0..3 {
        monitor = rig.start_worker();
        if monitor.is_some() {
            break;
        }
        rig.tick();
    }
    rig.monitor_says(monitor.expect("a new monitor"), vec![status("Slot", true)]);
    let [(told, again, true)] = rig.told()[..] else {
        panic!("no reader");
    };
    assert!(told == port && again != reader);
    // Nobody is left who watches.
    rig.input(Input::ClosePort(port));
    rig.kill(monitor.unwrap());
    assert_eq!(rig.start_worker(), None);
}

#[test]
fn the_embedded_card_can_go_and_come_back() {
    let mut rig = Rig::new();
    let (port, _, channel) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    let present = |present| Frame::encode(&WorkerMessage::CardPresent(present)).unwrap();
    rig.input(Input::WorkerFrame(worker, present(false)));
    assert_eq!(rig.told(), [(port, ReaderId(0), false)]);
    assert_eq!(error(rig.ask(port, echo(channel, b""))), ErrorKind::Closed);
    assert!(!rig.readers(port)[0].present);
    rig.input(Input::WorkerFrame(worker, present(true)));
    assert_eq!(rig.told(), [(port, ReaderId(0), true)]);
    // It ends with its worker, and the next one has another.
    rig.input(Input::WorkerFrame(worker, present(false)));
    rig.kill(worker);
    assert_eq!(
        rig.told(),
        [(port, ReaderId(0), false), (port, ReaderId(0), true)]
    );
}

#[test]
fn only_the_monitor_says_whether_a_pcsc_reader_has_a_card() {
    let mut rig = Rig::with_pcsc(true);
    let (port, reader, _) = rig.slot(true);
    assert!(rig.ask(port, RequestBody::OpenSession(reader)).is_ok());
    let kind = WorkerKind::PcscReader {
        reader: "Slot".into(),
    };
    let worker = rig.worker(&kind).unwrap();
    let lie = Frame::encode(&WorkerMessage::CardPresent(false)).unwrap();
    rig.input(Input::WorkerFrame(worker, lie));
    assert_eq!(rig.killed, [worker]);
    assert_eq!(rig.told(), []);
}

#[test]
fn the_next_applet_of_a_partial_aid_is_selected() {
    let mut rig = Rig::new();
    let (port, session, whole) = rig.echo();
    let next = |channel| RequestBody::SelectNext {
        channel,
        timeout_ms: None,
    };
    assert_eq!(
        error(rig.ask(port, next(whole))),
        ErrorKind::InvalidState,
        "a complete AID has no next"
    );
    for aid in [None, Some(&[][..])] {
        let Ok(ReplyBody::Channel(channel)) = rig.ask(port, open_basic(session, aid)) else {
            panic!("no channel");
        };
        assert_eq!(
            error(rig.ask(port, next(channel.id))),
            ErrorKind::InvalidState
        );
        assert!(rig.ask(port, RequestBody::CloseChannel(channel.id)).is_ok());
    }

    let Ok(ReplyBody::Channel(channel)) = rig.ask(port, open(session, &echo::AID[..6])) else {
        panic!("no channel");
    };
    let mut names = vec![channel.open_response.unwrap()];
    let end = loop {
        match rig.ask(port, next(channel.id)) {
            Ok(ReplyBody::Response(response)) => names.push(response),
            other => break other,
        }
        assert!(names.len() < 20);
    };
    assert_eq!(error(end), ErrorKind::NoApplication);
    let mut different: Vec<_> = names
        .iter()
        .map(|name| fci::df_name(&name[..name.len() - 2]).unwrap().unwrap())
        .map(|name| name.as_bytes().to_vec())
        .collect();
    assert!(different.len() >= 3, "{different:?}");
    different.sort();
    different.dedup();
    assert_eq!(different.len(), names.len());
    // The last one is still selected.
    assert!(rig.ask(port, echo(channel.id, b"here")).is_ok());

    let worker = rig.worker(&embedded()).unwrap();
    for (status, kind) in [
        (0x6A82, ErrorKind::NoApplication),
        (0x6999, ErrorKind::NoApplication),
        (0x6A86, ErrorKind::Unsupported),
        (0x6881, ErrorKind::Unsupported),
    ] {
        let request = rig.send(port, next(channel.id));
        let asked = rig.workers.get_mut(&worker).unwrap().request.take();
        let response = u16::to_be_bytes(status).to_vec();
        rig.worker_says(
            worker,
            asked.unwrap().id,
            Ok(protocol::ReplyBody::Response(response)),
        );
        assert_eq!(rig.kind(port, request), Some(kind));
    }
}

#[test]
fn a_reset_closes_what_its_origin_has_open_and_leaves_others_alone() {
    let mut rig = Rig::new();
    rig.grant("https://other.example", true);
    let (port, session, channel) = rig.echo();
    let other = rig.open_port(1, "https://other.example");
    let theirs = rig.open_session(other);
    let reset = || RequestBody::Reset(ReaderId(0));
    assert_eq!(error(rig.ask(port, reset())), ErrorKind::Security);
    assert_eq!(rig.card().resets, 0);
    // Neither can one who comes in between lose anything.
    rig.ask(other, RequestBody::CloseSession(theirs)).unwrap();
    let opens = rig.send(other, RequestBody::OpenSession(ReaderId(0)));
    let resets = rig.send(port, reset());
    rig.settle();
    assert!(rig.take(other, opens).unwrap().is_ok());
    assert_eq!(rig.kind(port, resets), Some(ErrorKind::Security));
    rig.input(Input::ClosePort(other));
    rig.settle();

    let before = rig.send(port, echo(channel, b"before"));
    let resets = rig.send(port, reset());
    let behind = rig.send(port, echo(channel, b"behind"));
    rig.settle();
    assert!(rig.take(port, before).unwrap().is_ok());
    assert_eq!(rig.take(port, resets), Some(Ok(ReplyBody::Done)));
    assert_eq!(rig.kind(port, behind), Some(ErrorKind::Closed));
    assert_eq!(rig.card().resets, 1);
    assert_eq!(rig.told(), []);
    assert_eq!(
        error(rig.ask(port, open(session, &echo::AID))),
        ErrorKind::Closed
    );
    assert_eq!(rig.card().open_channels(), 0);
    // With nothing open, the card is let go again.
    assert!(rig.workers.values().all(|worker| !worker.connected));
    assert_eq!(rig.ask(port, reset()), Ok(ReplyBody::Done));
    let nobody = rig.open_port(2, "https://nobody.example");
    assert_eq!(error(rig.ask(nobody, reset())), ErrorKind::Security);
}

#[test]
fn a_card_that_may_have_channels_that_nobody_knows_is_reset_when_nobody_uses_it() {
    let mut rig = Rig::new();
    let (port, session, _) = rig.echo();
    let worker = rig.worker(&embedded()).unwrap();
    // The card opens a channel and tells another number, or none.
    for lie in [&[0xFF, 0x90, 0x00][..], &[0x90, 0x00], &[1, 0x90, 0x00]] {
        let request = rig.send(port, open(session, &echo::AID));
        let asked = rig.workers.get_mut(&worker).unwrap().request.take();
        rig.card().card.transmit(&channel::open_command().encode());
        let response = Ok(protocol::ReplyBody::Response(lie.to_vec()));
        rig.worker_says(worker, asked.unwrap().id, response);
        assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
    }
    assert_eq!(rig.card().open_channels(), 4);
    // Not while somebody has a session.
    let second = rig.open_session(port);
    assert_eq!(rig.card().resets, 0);
    for session in [session, second] {
        rig.ask(port, RequestBody::CloseSession(session)).unwrap();
    }
    rig.open_session(port);
    assert_eq!((rig.card().resets, rig.card().open_channels()), (1, 0));
}

/// Something that a test of interleavings does. The numbers choose among what there is.
#[derive(Clone, Debug)]
enum Action {
    OpenPort(bool),
    ClosePort(usize),
    OpenSession(usize),
    OpenChannel(usize, usize, bool, bool),
    Transmit(usize, usize, Option<u32>),
    CloseChannel(usize, usize),
    CloseSession(usize, usize),
    SelectNext(usize, usize),
    Reset(usize),
    Watch(usize),
    CardPresent(bool),
    Shutdown(usize),
    Grant(bool),
    StartWorker,
    Answer(usize),
    Fail(usize, bool),
    Kill(usize),
    Tick,
    Garbage(usize, Vec<u8>),
}

fn action() -> impl Strategy<Value = Action> {
    let n = 0..4_usize;
    prop_oneof![
        1 => any::<bool>().prop_map(Action::OpenPort),
        1 => n.clone().prop_map(Action::ClosePort),
        4 => n.clone().prop_map(Action::OpenSession),
        6 => (n.clone(), n.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(port, session, basic, known)| Action::OpenChannel(port, session, basic, known)),
        6 => (n.clone(), n.clone(), proptest::option::of(0..100_u32))
            .prop_map(|(port, channel, timeout)| Action::Transmit(port, channel, timeout)),
        3 => (n.clone(), n.clone()).prop_map(|(port, channel)| Action::CloseChannel(port, channel)),
        2 => (n.clone(), n.clone()).prop_map(|(port, session)| Action::CloseSession(port, session)),
        2 => (n.clone(), n.clone()).prop_map(|(port, channel)| Action::SelectNext(port, channel)),
        1 => n.clone().prop_map(Action::Reset),
        1 => n.clone().prop_map(Action::Watch),
        1 => any::<bool>().prop_map(Action::CardPresent),
        1 => n.clone().prop_map(Action::Shutdown),
        1 => any::<bool>().prop_map(Action::Grant),
        6 => Just(Action::StartWorker),
        20 => n.clone().prop_map(Action::Answer),
        1 => (n.clone(), any::<bool>()).prop_map(|(worker, reset)| Action::Fail(worker, reset)),
        1 => n.clone().prop_map(Action::Kill),
        1 => Just(Action::Tick),
        1 => (n, proptest::collection::vec(any::<u8>(), 0..8))
            .prop_map(|(port, bytes)| Action::Garbage(port, bytes)),
    ]
}

fn choose<T>(items: &[T], number: usize) -> Option<&T> {
    items.get(number % items.len().max(1))
}

proptest! {
    /// Whatever happens in whatever order: commands never overlap, every request gets at most one answer, and exactly
    /// one unless its port closes (the rig checks), and in the end nothing is left open in the card.
    #[test]
    fn no_interleaving_loses_an_answer_or_a_channel(
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let mut rig = Rig::new();
        let mut ports: Vec<PortId> = vec![];
        let mut asked: Vec<(PortId, RequestId)> = vec![];
        for (index, action) in actions.into_iter().enumerate() {
            let port = |number| choose(&ports, number).copied();
            let of = |id, number| (id, SessionId(number as u32 + 1), ChannelId(number as u32 + 1));
            let request = match action {
                Action::OpenPort(granted) => {
                    let origin = if granted { ORIGIN } else { "https://other.example" };
                    let port = rig.open_port(index as u64, origin);
                    ports.push(port);
                    Some((port, RequestBody::GetReaders))
                },
                Action::OpenSession(number) => {
                    port(number).map(|port| (port, RequestBody::OpenSession(ReaderId(0))))
                },
                Action::OpenChannel(number, session, basic, known) => port(number).map(|id| {
                    let (id, session, _) = of(id, session);
                    let aid: &[u8] = match (known, index % 2) {
                        (true, 0) => &echo::AID,
                        // Partial.
                        (true, _) => &echo::AID[..6],
                        (false, _) => b"\xF0NOBODY",
                    };
                    let body = if basic { open_basic(session, Some(aid)) } else { open(session, aid) };
                    (id, body)
                }),
                Action::Transmit(number, channel, timeout) => port(number).map(|id| {
                    let (id, _, channel) = of(id, channel);
                    let RequestBody::Transmit { channel, command, .. } = echo(channel, b"x") else {
                        unreachable!();
                    };
                    (id, RequestBody::Transmit { channel, command, timeout_ms: timeout })
                }),
                Action::CloseChannel(number, channel) => port(number).map(|id| {
                    let (id, _, channel) = of(id, channel);
                    (id, RequestBody::CloseChannel(channel))
                }),
                Action::CloseSession(number, session) => port(number).map(|id| {
                    let (id, session, _) = of(id, session);
                    (id, RequestBody::CloseSession(session))
                }),
                Action::SelectNext(number, channel) => port(number).map(|id| {
                    let (id, _, channel) = of(id, channel);
                    (id, RequestBody::SelectNext { channel, timeout_ms: None })
                }),
                Action::Reset(number) => {
                    port(number).map(|id| (id, RequestBody::Reset(ReaderId(0))))
                },
                Action::Watch(number) => port(number).map(|id| (id, RequestBody::WatchElements)),
                Action::CardPresent(present) => {
                    if let Some(worker) = rig.worker(&embedded()) {
                        // A card that is out of its reader has no power.
                        rig.card().card.reset();
                        let message = WorkerMessage::CardPresent(present);
                        rig.input(Input::WorkerFrame(worker, Frame::encode(&message).unwrap()));
                    }
                    None
                },
                Action::Shutdown(number) => port(number).map(|id| (id, RequestBody::Shutdown)),
                Action::ClosePort(number) => {
                    if let Some(port) = port(number) {
                        rig.input(Input::ClosePort(port));
                    }
                    None
                },
                Action::Garbage(number, bytes) => {
                    if let Some(port) = port(number) {
                        rig.input(Input::PortFrame(port, Frame::from_bytes(bytes)));
                    }
                    None
                },
                Action::Grant(allowed) => {
                    rig.grant(ORIGIN, allowed);
                    None
                },
                Action::StartWorker => {
                    rig.start_worker();
                    None
                },
                Action::Answer(number) | Action::Fail(number, _) | Action::Kill(number) => {
                    let mut workers: Vec<WorkerId> = rig.workers.keys().copied().collect();
                    workers.sort_by_key(|id| id.0);
                    if let Some(worker) = choose(&workers, number).copied() {
                        let busy = rig.workers[&worker].request.is_some();
                        match action {
                            Action::Answer(_) => {
                                rig.answer(worker);
                            },
                            Action::Fail(_, true) if busy => {
                                rig.card().card.reset();
                                rig.fail(worker, WorkerError::CardReset);
                            },
                            Action::Fail(_, false) if busy => {
                                rig.fail(worker, WorkerError::Communication);
                            },
                            Action::Kill(_) => rig.kill(worker),
                            _ => {},
                        }
                    }
                    None
                },
                Action::Tick => {
                    if rig.broker.next_deadline().is_some() {
                        rig.tick();
                    }
                    None
                },
            };
            if let Some((port, body)) = request
                && !rig.closed_ports.contains(&port)
            {
                asked.push((port, rig.send(port, body)));
            }
        }
        // Let it come to rest: what waits for a pause goes on after it, and the grant lets a last page in.
        rig.settle();
        for _ in 0..50 {
            if asked.iter().all(|key| rig.replies.contains_key(key) || rig.closed_ports.contains(&key.0)) {
                break;
            }
            rig.tick();
            rig.settle();
        }
        for (port, request) in asked {
            prop_assert!(
                rig.replies.contains_key(&(port, request)) || rig.closed_ports.contains(&port),
                "no answer to request {} of port {}", request.0, port.0
            );
        }
        for port in ports {
            rig.input(Input::ClosePort(port));
        }
        rig.settle();
        // A card that lost its worker is reset before anybody uses it again.
        rig.grant(ORIGIN, true);
        let last = rig.open_port(u64::MAX, ORIGIN);
        let opened = rig.send(last, RequestBody::GetReaders);
        rig.settle();
        prop_assert!(rig.take(last, opened).is_some());
        let session = rig.send(last, RequestBody::OpenSession(ReaderId(0)));
        rig.settle();
        if !rig.replies.contains_key(&(last, session)) {
            rig.tick();
            rig.settle();
        }
        prop_assert!(rig.take(last, session).expect("a session").is_ok());
        prop_assert_eq!(rig.card().open_channels(), 0);
        prop_assert!(rig.broker.groups.is_empty());
        prop_assert_eq!(rig.broker.ports.len(), 1);
    }
}

#[test]
fn the_ports_of_an_event_loop_have_quotas_together() {
    let mut rig = Rig::new();
    let ports: Vec<_> = (0..10).map(|_| rig.echo()).collect();
    let elsewhere = rig.open_port_as(
        7,
        PortIdentity {
            event_loop: 2,
            ..identity(ORIGIN)
        },
    );
    let session = rig.open_session(elsewhere);
    let other = rig.open_channel(elsewhere, session);
    let command = Command::Raw([&[0, 0x10, 0, 0, 0, 0xff, 0xff][..], &[7; 0xffff]].concat());
    let big = |channel| RequestBody::Transmit {
        channel,
        command: command.clone(),
        timeout_ms: None,
    };
    let mut requests = Vec::new();
    for (port, _, channel) in ports {
        for _ in 0..14 {
            requests.push((port, rig.send(port, big(channel))));
        }
    }
    let refused = requests
        .iter()
        .filter(|request| rig.replies.contains_key(request))
        .count();
    assert_eq!(refused, 140 - 8 * 1024 * 1024 / (64 * 1024 + 20));
    // What somebody else asks for is not refused, and has to wait for the command that runs and one more.
    let request = rig.send(elsewhere, big(other));
    let worker = rig.worker(&embedded()).expect("a worker");
    for _ in 0..3 {
        assert!(rig.answer(worker));
    }
    assert!(rig.take(elsewhere, request).expect("an answer").is_ok());
    rig.settle();
    for (port, request) in requests {
        assert!(rig.take(port, request).is_some());
    }
}
