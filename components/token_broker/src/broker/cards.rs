/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys in cards: PIV applications in readers, served through the readers' queues like what pages ask of a card.
//!
//! Each operation has a channel of its own, which is closed after it. A login keeps its channel until it ends: that is where
//! the card remembers it. Before a page gets a channel on such a card, the login ends, so that no page finds a PIN verified.

use secure_element::channel::{Opened, open_command, parse_opened};
use secure_element::piv::dialogue::{Dialogue, Step as Turn};
use secure_element::piv::{ManagementKey, PivError};
use token_traits::keys::{Curve, KeyAlgorithm};
use token_traits::prompt::MAX_NAME_LENGTH;
use token_workers::key_protocol::{
    KeyError, KeyReply, KeyRequestBody, Operation, TokenFeature, TokenId, TokenInfo,
};

use super::*;
use crate::keys::piv::{self, CardInfo, Outcome, State};
use crate::reader::{CardJob, CardStage, CardStep};

/// How long a card may take to say that it is a token.
const LOOK_LIMIT: Duration = Duration::from_secs(4);
/// So much before whoever waits gives up, the card is given up.
const MARGIN: Duration = Duration::from_secs(1);
/// The management key that the embedded card has at first, as other cards of its kind: Triple DES.
const DEFAULT_MANAGEMENT_KEY: [u8; 24] = [
    1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
];
/// In the readers' queues the keys take turns with the event loops, as if they were one.
const KEYS: u64 = u64::MAX;
/// What a reader is called that is none: the driver of virtual smart cards.
const VIRTUAL_READER: &str = "Virtual PCD";

/// What is asked of all cards together.
#[derive(Debug, Default)]
pub(super) struct Cards {
    /// Somebody has asked which tokens there are, so that changes are of interest.
    is_used: bool,
    /// A card has come or gone.
    has_changed: bool,
    next_token: u64,
    /// Lists that wait for PC/SC's readers, and until when.
    waiting: Vec<(u64, Instant)>,
    /// Lists that are being made: how many readers have not said anything, and the tokens in the others.
    lists: BTreeMap<u64, (usize, Vec<TokenInfo>)>,
}

/// What is known of the card in a reader, as long as it is there.
#[derive(Debug, Default)]
pub(crate) struct CardKeys {
    token: Option<TokenId>,
    /// It has no PIV application.
    is_none: bool,
    state: State,
    /// Where a login is.
    channel: Option<ChannelNumber>,
}

impl CardKeys {
    /// Whether somebody is logged in.
    pub(super) fn is_open(&self) -> bool {
        self.channel.is_some()
    }

    /// The connection, or the card's memory, has gone: what was open in it, and what was read.
    pub(super) fn forget(&mut self) -> Option<ChannelNumber> {
        self.state.is_logged_in = false;
        self.state.keys = None;
        self.channel.take()
    }
}

impl Broker {
    /// Something is asked of [`ProviderId::Cards`].
    pub(super) fn cards_request(&mut self, request: KeyRequest, now: Instant) {
        let KeyRequest { id, body } = request;
        match body {
            KeyRequestBody::ListTokens => {
                self.cards.is_used = true;
                if self.config.pcsc && !self.readers_are_known {
                    self.cards.waiting.push((id, now + MONITOR_TIMEOUT));
                    self.want_monitor(now);
                } else {
                    self.list_cards(id, now);
                }
            }
            KeyRequestBody::Token(token, operation) => {
                let readers = self.readers.iter();
                let key = readers
                    .filter(|(_, reader)| reader.present)
                    .find(|(_, reader)| reader.keys.token == Some(token))
                    .map(|(key, _)| *key);
                let Some(key) = key else {
                    return self.card_answer(id, Err(KeyError::NoToken), now);
                };
                let limit = operation.time_limit().saturating_sub(MARGIN);
                let job = CardJob {
                    request: Some(id),
                    deadline: now + limit,
                    task: piv::Task::Operate(operation),
                };
                self.enqueue_card(key, job, now);
            }
            KeyRequestBody::Cancel { request } => {
                let is_it = |job: &Job| {
                    matches!(job, Job::Keys(job) if job.request == Some(request)
                        && matches!(job.task, piv::Task::Operate(_)))
                };
                let mut canceled = Vec::new();
                for reader in self.readers.values_mut() {
                    canceled.extend(reader.queue.take(is_it));
                }
                if !canceled.is_empty() {
                    self.card_answer(request, Err(KeyError::Canceled), now);
                }
            }
        }
    }

    fn enqueue_card(&mut self, key: ReaderKey, job: CardJob, now: Instant) {
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.queue.push(KEYS, Job::Keys(job));
        }
        self.advance(key, now);
    }

    /// Asks each card whether it is a token.
    fn list_cards(&mut self, request: u64, now: Instant) {
        let readers = self.readers.iter();
        let keys: Vec<ReaderKey> = readers
            .filter(|(_, reader)| reader.present && !reader.keys.is_none)
            .map(|(key, _)| *key)
            .collect();
        if keys.is_empty() {
            return self.card_answer(request, Ok(KeyReply::Tokens(Vec::new())), now);
        }
        self.cards.lists.insert(request, (keys.len(), Vec::new()));
        for key in keys {
            let job = CardJob {
                request: Some(request),
                deadline: now + LOOK_LIMIT,
                task: piv::Task::Look,
            };
            self.enqueue_card(key, job, now);
        }
    }

    /// PC/SC's readers are known, or have been waited for long enough.
    pub(super) fn list_waiting_cards(&mut self, is_known: bool, now: Instant) {
        let (due, waiting) = std::mem::take(&mut self.cards.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, until)| is_known || *until <= now);
        self.cards.waiting = waiting;
        for (request, _) in due {
            self.list_cards(request, now);
        }
    }

    /// When a list has waited for long enough.
    pub(super) fn cards_deadline(&self) -> Option<Instant> {
        self.cards.waiting.iter().map(|(_, until)| *until).min()
    }

    /// Whether it matters which readers there are.
    pub(super) fn cards_want_readers(&self) -> bool {
        !self.cards.waiting.is_empty() || (self.cards.is_used && !self.ports.is_empty())
    }

    /// A card has come or gone.
    pub(super) fn card_changed(&mut self) {
        self.cards.has_changed = true;
    }

    /// Tells whoever uses keys that a card has come or gone.
    pub(super) fn tell_cards(&mut self, now: Instant) {
        if std::mem::take(&mut self.cards.has_changed) && self.cards.is_used {
            self.cards_message(KeyMessage::TokensChanged, now);
        }
    }

    fn card_answer(&mut self, request: u64, result: Result<KeyReply, KeyError>, now: Instant) {
        self.cards_message(KeyMessage::Reply { request, result }, now);
    }

    /// Answers whoever waits for a job.
    pub(super) fn card_job_ended(
        &mut self,
        key: ReaderKey,
        job: CardJob,
        result: Result<KeyReply, KeyError>,
        now: Instant,
    ) {
        let Some(request) = job.request else {
            return;
        };
        match job.task {
            piv::Task::Operate(_) => self.card_answer(request, result, now),
            piv::Task::Look => {
                let token = self.card_token(key, &result);
                let Some((remaining, tokens)) = self.cards.lists.get_mut(&request) else {
                    return;
                };
                tokens.extend(token);
                *remaining -= 1;
                if *remaining == 0
                    && let Some((_, tokens)) = self.cards.lists.remove(&request)
                {
                    self.card_answer(request, Ok(KeyReply::Tokens(tokens)), now);
                }
            }
        }
    }

    /// The card in a reader as a token, if it is one.
    fn card_token(
        &mut self,
        key: ReaderKey,
        result: &Result<KeyReply, KeyError>,
    ) -> Option<TokenInfo> {
        let reader = self.readers.get_mut(&key)?;
        if !reader.present {
            return None;
        }
        let keys = &mut reader.keys;
        match result {
            Ok(_) => {}
            // It is busy, perhaps. What was known of it still holds.
            Err(_) => {
                keys.token?;
            }
        }
        let info = keys.state.info.clone()?;
        let id = *keys.token.get_or_insert_with(|| {
            self.cards.next_token += 1;
            TokenId(self.cards.next_token)
        });
        let login = keys.state.login;
        let can_change = self.management_key(key).is_some();
        let reader = self.readers.get(&key)?;
        let is_embedded = reader.pcsc_name().is_none();
        let is_virtual = reader.display_name.starts_with(VIRTUAL_READER);
        let label = info.label.as_deref().unwrap_or("PIV card");
        Some(TokenInfo {
            id,
            label: display_name(label).chars().take(32).collect(),
            manufacturer: String::new(),
            model: "PIV".to_owned(),
            serial: info.serial.chars().take(32).collect(),
            slot: reader.display_name.chars().take(MAX_NAME_LENGTH).collect(),
            is_hardware: !is_embedded && !is_virtual,
            is_removable: !is_embedded,
            is_read_only: !can_change,
            login,
            features: features(&info, can_change),
        })
    }

    /// What lets the broker change a card: what the configuration says, or what the embedded card has at first.
    fn management_key(&self, key: ReaderKey) -> Option<ManagementKey> {
        let reader = self.readers.get(&key)?;
        match (reader.pcsc_name(), &self.config.piv_management_key) {
            (None, _) => ManagementKey::new(&DEFAULT_MANAGEMENT_KEY).ok(),
            (Some(_), Some(configured)) => ManagementKey::new(&configured.0).ok(),
            (Some(_), None) => None,
        }
    }

    /// Begins a job.
    pub(super) fn start_card_job(&mut self, key: ReaderKey, job: CardJob, now: Instant) {
        let Some(reader) = self.readers.get(&key) else {
            return;
        };
        if !reader.present {
            return self.card_job_ended(key, job, Err(KeyError::NoToken), now);
        }
        let is_logout = matches!(job.task, piv::Task::Operate(Operation::Logout));
        if is_logout && !reader.keys.is_open() {
            return self.card_job_ended(key, job, Ok(KeyReply::Done), now);
        }
        let reset = reader.needs_reset && reader.sessions == 0 && !reader.keys.is_open();
        if reset || !reader.connected {
            let deadline = job.deadline;
            let stage = CardStage::Connect { reset };
            let step = Step::Keys(Box::new(CardStep { job, stage }));
            let body = protocol::RequestBody::Connect { reset };
            return self.run(key, step, body, deadline);
        }
        self.open_for_card_job(key, job, now);
    }

    fn open_for_card_job(&mut self, key: ReaderKey, job: CardJob, now: Instant) {
        let channel = self
            .readers
            .get(&key)
            .and_then(|reader| reader.keys.channel);
        match channel {
            Some(channel) => self.converse(key, job, channel, true, now),
            None => {
                let deadline = job.deadline;
                let body = transmit(open_command().encode(), false, deadline, now);
                let stage = CardStage::Open;
                let step = Step::Keys(Box::new(CardStep { job, stage }));
                self.run(key, step, body, deadline);
            }
        }
    }

    /// Begins the commands of a job on a channel.
    fn converse(
        &mut self,
        key: ReaderKey,
        mut job: CardJob,
        channel: ChannelNumber,
        is_selected: bool,
        now: Instant,
    ) {
        let management_key = self.management_key(key);
        let Some(reader) = self.readers.get(&key) else {
            return;
        };
        let state = State {
            is_selected,
            is_dirty: false,
            management_key,
            ..reader.keys.state.clone()
        };
        let kind = match job.task {
            piv::Task::Look => piv::Task::Look,
            // Only what kind it is matters to whoever waits.
            piv::Task::Operate(_) => piv::Task::Operate(Operation::Logout),
        };
        let task = std::mem::replace(&mut job.task, kind);
        let turn = Dialogue::start(channel, move |card| piv::carry_out(card, task, state));
        self.take_turn(key, job, channel, turn, now);
    }

    fn take_turn(
        &mut self,
        key: ReaderKey,
        job: CardJob,
        channel: ChannelNumber,
        turn: Turn<Outcome>,
        now: Instant,
    ) {
        match turn {
            Turn::Send(dialogue, command) => {
                let deadline = job.deadline;
                let select = command.header().ins == 0xA4;
                let body = transmit(command.encode(), select, deadline, now);
                let stage = CardStage::Converse { channel, dialogue };
                let step = Step::Keys(Box::new(CardStep { job, stage }));
                self.run(key, step, body, deadline);
            }
            Turn::Done(outcome) => self.conversed(key, job, channel, outcome, now),
        }
    }

    fn conversed(
        &mut self,
        key: ReaderKey,
        job: CardJob,
        channel: ChannelNumber,
        outcome: Result<Outcome, PivError>,
        now: Instant,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let result = match outcome {
            Ok(Outcome { result, mut state }) => {
                reader.needs_reset |= state.is_dirty;
                state.management_key = None;
                reader.keys.state = state;
                result
            }
            Err(_) => Err(KeyError::Failed),
        };
        // It has no such application.
        reader.keys.is_none |= result == Err(KeyError::NoToken);
        if reader.keys.state.is_logged_in && !matches!(result, Err(KeyError::Failed)) {
            reader.keys.channel = Some(channel);
        } else {
            reader.keys.state.is_logged_in = false;
            reader.keys.channel = None;
            self.close_first(key, channel);
        }
        self.card_job_ended(key, job, result, now);
    }

    /// Goes on with what a worker has answered.
    pub(super) fn card_step_ended(
        &mut self,
        key: ReaderKey,
        step: CardStep,
        result: Result<protocol::ReplyBody, WorkerError>,
        is_stale: bool,
        now: Instant,
    ) {
        let CardStep { job, stage } = step;
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        if is_stale {
            reader.needs_reset = true;
            return self.card_job_ended(key, job, Err(KeyError::Failed), now);
        }
        let response = match result {
            Ok(protocol::ReplyBody::Connected(connected)) => {
                return self.connected_for_card_job(key, job, &stage, &connected, now);
            }
            Ok(protocol::ReplyBody::Response(bytes)) => ResponseApdu::parse(&bytes).ok(),
            Ok(protocol::ReplyBody::Done) => None,
            Err(error) if error.keeps_connection() => None,
            Err(error) => {
                reader.needs_reset |= reader.connected
                    && !matches!(error, WorkerError::CardReset | WorkerError::CardRemoved);
                self.connection_lost(key, io_error(&error.to_string()));
                let key_error = match stage {
                    CardStage::Converse { .. } => KeyError::Failed,
                    // Nothing was begun.
                    CardStage::Connect { .. } | CardStage::Open => KeyError::NoToken,
                };
                return self.card_job_ended(key, job, Err(key_error), now);
            }
        };
        match (stage, response) {
            (CardStage::Open, Some(response)) => match parse_opened(&response) {
                Ok(Opened::Channel(channel)) if reader.channels.insert(channel) => {
                    self.converse(key, job, channel, false, now);
                }
                // A card without logical channels.
                Ok(Opened::NoChannel) | Err(ChannelError::Refused(_)) => {
                    match reader.channels.insert(ChannelNumber::BASIC) {
                        true => self.converse(key, job, ChannelNumber::BASIC, false, now),
                        false => self.card_job_ended(key, job, Err(KeyError::Busy), now),
                    }
                }
                Ok(Opened::Channel(_)) | Err(_) => {
                    reader.needs_reset = true;
                    self.card_job_ended(key, job, Err(KeyError::Nonsense), now);
                }
            },
            (CardStage::Converse { channel, dialogue }, Some(response)) => {
                let turn = dialogue.receive(response);
                self.take_turn(key, job, channel, turn, now);
            }
            // Nobody knows what the card has done.
            (CardStage::Converse { channel, .. }, None) => {
                reader.needs_reset = true;
                let kept = reader.keys.forget();
                self.close_first(key, kept.unwrap_or(channel));
                self.card_job_ended(key, job, Err(KeyError::Failed), now);
            }
            (CardStage::Open | CardStage::Connect { .. }, _) => {
                reader.needs_reset = true;
                self.card_job_ended(key, job, Err(KeyError::Failed), now);
            }
        }
    }

    fn connected_for_card_job(
        &mut self,
        key: ReaderKey,
        job: CardJob,
        stage: &CardStage,
        connected: &Connected,
        now: Instant,
    ) {
        let CardStage::Connect { reset } = *stage else {
            return self.card_job_ended(key, job, Err(KeyError::Failed), now);
        };
        let was_connected = self
            .readers
            .get(&key)
            .is_some_and(|reader| reader.connected);
        if connected.fresh && was_connected {
            self.connection_lost(key, io_error(&WorkerError::CardReset.to_string()));
        }
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        reader.connected = true;
        reader.needs_reset &= !reset;
        if reset {
            reader.basic_is_dirty = false;
            reader.unlocked_by = None;
        }
        self.open_for_card_job(key, job, now);
    }

    /// Ends a login, before anything else that is asked of the card.
    pub(super) fn log_out_of_card(&mut self, key: ReaderKey, now: Instant) {
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.queue.push_front(Job::Keys(CardJob {
                request: None,
                deadline: now + CLOSE_TIMEOUT,
                task: piv::Task::Operate(Operation::Logout),
            }));
        }
    }

    /// Answers whoever waits for the keys in a card that has gone, or cannot be reached.
    pub(super) fn fail_card_jobs(&mut self, key: ReaderKey, now: Instant) {
        self.end_card_jobs(key, now, KeyError::Failed, |_| true);
    }

    /// Answers what has waited for too long.
    pub(super) fn expire_card_jobs(&mut self, key: ReaderKey, now: Instant) {
        self.end_card_jobs(key, now, KeyError::Busy, |job| job.deadline <= now);
    }

    fn end_card_jobs(
        &mut self,
        key: ReaderKey,
        now: Instant,
        error: KeyError,
        which: impl Fn(&CardJob) -> bool,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let ended = reader
            .queue
            .take(|job| matches!(job, Job::Keys(job) if which(job)));
        for job in ended {
            if let Job::Keys(job) = job {
                self.card_job_ended(key, job, Err(error), now);
            }
        }
    }
}

/// What a token of this kind can do.
fn features(info: &CardInfo, can_change: bool) -> Vec<TokenFeature> {
    let mut features = vec![
        TokenFeature::RsaPkcs1,
        TokenFeature::RsaPss,
        TokenFeature::RsaOaep,
        TokenFeature::Ecdsa,
        TokenFeature::Ecdh,
        TokenFeature::Data,
    ];
    if can_change {
        features.push(TokenFeature::Certificates);
        let usual = [
            KeyAlgorithm::Rsa { bits: 2048 },
            KeyAlgorithm::Ec(Curve::P256),
        ];
        let said = info.algorithms.iter().copied().map(piv::key_algorithm);
        let mut algorithms: Vec<KeyAlgorithm> = said.collect();
        if algorithms.is_empty() {
            algorithms = usual.to_vec();
        }
        features.extend(algorithms.into_iter().map(TokenFeature::Generate));
    }
    features
}
