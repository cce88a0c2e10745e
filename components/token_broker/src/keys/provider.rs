/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Where keys are: the seam between what documents ask and what keeps the keys.
//!
//! A provider lists tokens and carries out [`Operation`]s. Everything that it is asked is a [`KeyRequest`], and everything that
//! it says is a [`KeyMessage`]:
//! - a worker gets and sends them in frames;
//! - [`ProviderId::Cards`], the cards that the broker drives itself, gets them as [`super::Effect::ToCards`] (in
//!   `Broker::cards_request`) and answers with `Broker::cards_message`, at once or later.
//!
//! It serves the requests for one token in the order in which they come, and answers each. What it calls a token
//! ([`TokenId`]) means something as long as it runs; a [`KeyRef`](token_workers::key_protocol::KeyRef) outlives it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use token_traits::control::{WorkerId, WorkerKind};
use token_traits::keys::MAX_PUBLIC_KEY;
use token_workers::key_protocol::{
    KeyError, KeyReply, KeyRequest, KeyRequestBody, MAX_CERTIFICATE, MAX_DATA, MAX_DATA_OBJECT,
    MAX_KEY_REF, MAX_KEYS, MAX_LABEL, MAX_TOKENS, Operation, TokenId,
};

use super::Effect;
use crate::supervision::{Slot, Wanted};

/// How many requests for one token are with its provider at a time: enough that it is never idle.
const DEPTH: usize = 8;
/// How long a provider may take to say which tokens there are.
const LIST_LIMIT: Duration = Duration::from_secs(20);
/// A provider that has not answered this long after the deadline is given up.
const GRACE: Duration = Duration::from_millis(50);
/// Most certificates of one key.
const MAX_CERTIFICATES: usize = 16;

/// Names a provider.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum ProviderId {
    /// The PKCS#11 module with this index in the configuration.
    Module(usize),
    /// The TPM. It keeps no keys itself: the broker's store has them, encrypted by the TPM.
    Tpm,
    /// The cards in readers, through the secure-element layer.
    Cards,
}

/// Why a request to a provider failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// The token says so.
    Key(KeyError),
    /// The token, or its provider, was not there when it was asked.
    Gone,
    /// The provider ended while it was at it. Nobody knows what became of it.
    Lost,
    /// The provider took too long, and was ended.
    Overdue,
}

pub(crate) type Answer = Result<KeyReply, Failure>;

/// The requests for one token wait for each other, and so do those for lists of tokens.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Lane {
    Tokens,
    Token(TokenId),
}

#[derive(Debug)]
struct Request {
    body: KeyRequestBody,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Sent {
    id: u64,
    limit: Duration,
    is_answer: fn(&KeyReply) -> bool,
    answer: oneshot::Sender<Answer>,
    is_canceled: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Request>,
    sent: VecDeque<Sent>,
    /// Since when the first of those that were sent is under way.
    since: Option<Instant>,
}

impl Queue {
    fn deadline(&self) -> Option<Instant> {
        Some(self.since? + self.sent.front()?.limit + GRACE)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) id: ProviderId,
    /// What the user knows it by.
    pub(crate) place: String,
    /// Its worker; `None` if the broker serves it itself.
    slot: Option<Slot>,
    /// Whether its tokens are known as they are now.
    pub(crate) is_listed: bool,
    lanes: BTreeMap<Lane, Queue>,
    lane_of: HashMap<u64, Lane>,
    next_request: u64,
    pub(crate) idle_since: Option<Instant>,
}

/// It breaks the protocol.
#[derive(Debug)]
pub(crate) struct Unexpected;

impl Provider {
    pub(crate) fn new(id: ProviderId, place: String, worker: Option<WorkerKind>) -> Self {
        Self {
            id,
            place,
            slot: worker.map(Slot::new),
            is_listed: false,
            lanes: BTreeMap::new(),
            lane_of: HashMap::new(),
            next_request: 1,
            idle_since: None,
        }
    }

    /// Asks which tokens there are.
    pub(crate) fn list_tokens(&mut self) -> oneshot::Receiver<Answer> {
        self.submit(Lane::Tokens, KeyRequestBody::ListTokens)
    }

    /// Asks for something to be done with a token.
    pub(crate) fn operate(
        &mut self,
        token: TokenId,
        operation: Operation,
    ) -> oneshot::Receiver<Answer> {
        self.submit(Lane::Token(token), KeyRequestBody::Token(token, operation))
    }

    fn submit(&mut self, lane: Lane, body: KeyRequestBody) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let queue = self.lanes.entry(lane).or_default();
        queue.waiting.push_back(Request { body, answer });
        receiver
    }

    /// Whether something waits for it.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.lanes.is_empty()
    }

    pub(crate) fn worker(&self) -> Option<WorkerId> {
        self.slot.as_ref().and_then(Slot::worker)
    }

    /// Sends what can be sent, after having the worker started if there is none.
    pub(crate) fn advance(
        &mut self,
        now: Instant,
        next_worker: &mut u64,
        effects: &mut Vec<Effect>,
    ) {
        // What nobody waits for any more is not begun.
        for queue in self.lanes.values_mut() {
            queue
                .waiting
                .retain(|request| !request.answer.is_canceled());
        }
        self.lanes
            .retain(|_, queue| !queue.waiting.is_empty() || !queue.sent.is_empty());
        if self.lanes.is_empty() {
            self.idle_since.get_or_insert(now);
            return;
        }
        self.idle_since = None;
        let worker = match &mut self.slot {
            None => None,
            Some(slot) => match slot.want(now, next_worker) {
                Wanted::Ready(worker) => Some(worker),
                Wanted::Later => return,
                Wanted::Start(worker) => {
                    effects.push(Effect::StartWorker(worker, self.id, slot.kind().clone()));
                    return;
                }
            },
        };
        for (lane, queue) in &mut self.lanes {
            for sent in &mut queue.sent {
                if sent.answer.is_canceled() && !sent.is_canceled {
                    sent.is_canceled = true;
                    let id = self.next_request;
                    self.next_request += 1;
                    let body = KeyRequestBody::Cancel { request: sent.id };
                    effects.push(to(worker, KeyRequest { id, body }));
                }
            }
            while queue.sent.len() < DEPTH
                && let Some(Request { body, answer }) = queue.waiting.pop_front()
            {
                let id = self.next_request;
                self.next_request += 1;
                let (limit, is_answer) = expected(&body);
                if queue.sent.is_empty() {
                    queue.since = Some(now);
                }
                queue.sent.push_back(Sent {
                    id,
                    limit,
                    is_answer,
                    answer,
                    is_canceled: false,
                });
                self.lane_of.insert(id, *lane);
                effects.push(to(worker, KeyRequest { id, body }));
            }
        }
    }

    /// It has answered.
    pub(crate) fn answered(
        &mut self,
        request: u64,
        result: Result<KeyReply, KeyError>,
        now: Instant,
    ) -> Result<(), Unexpected> {
        let lane = self.lane_of.remove(&request).ok_or(Unexpected)?;
        let queue = self.lanes.get_mut(&lane).ok_or(Unexpected)?;
        let index = queue.sent.iter().position(|sent| sent.id == request);
        let sent = index
            .and_then(|index| queue.sent.remove(index))
            .ok_or(Unexpected)?;
        if index == Some(0) {
            queue.since = (!queue.sent.is_empty()).then_some(now);
        }
        if let Ok(reply) = &result
            && !((sent.is_answer)(reply) && is_bounded(reply))
        {
            let _ = sent.answer.send(Err(Failure::Key(KeyError::Nonsense)));
            return Err(Unexpected);
        }
        // Nobody may wait for it any more.
        let _ = sent.answer.send(result.map_err(Failure::Key));
        Ok(())
    }

    /// Its worker has reported.
    pub(crate) fn started(&mut self, now: Instant) {
        if let Some(slot) = &mut self.slot {
            slot.started(now);
        }
    }

    /// Its worker has ended. What was under way is lost; what was not is not begun either, because what it names has gone.
    pub(crate) fn ended(&mut self, overdue: bool, now: Instant) {
        let was_ready = self.slot.as_ref().is_none_or(Slot::is_ready);
        if let Some(slot) = &mut self.slot {
            slot.ended(now);
        }
        self.fail(overdue.then_some(now));
        // Lists are asked for again, unless it cannot even be started.
        if !was_ready {
            self.lanes.clear();
        }
    }

    fn fail(&mut self, overdue: Option<Instant>) {
        self.is_listed = false;
        self.lane_of.clear();
        for (lane, mut queue) in std::mem::take(&mut self.lanes) {
            let is_late = overdue
                .zip(queue.deadline())
                .is_some_and(|(now, deadline)| deadline <= now);
            for (index, sent) in queue.sent.into_iter().enumerate() {
                let failure = match (index, is_late) {
                    (0, true) => Failure::Overdue,
                    _ => Failure::Lost,
                };
                let _ = sent.answer.send(Err(failure));
            }
            if lane == Lane::Tokens {
                queue.sent = VecDeque::new();
                queue.since = None;
                if !queue.waiting.is_empty() {
                    self.lanes.insert(lane, queue);
                }
                continue;
            }
            for request in queue.waiting {
                let _ = request.answer.send(Err(Failure::Gone));
            }
        }
    }

    /// Its worker is let go.
    pub(crate) fn released(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.released();
        }
        self.fail(None);
        self.idle_since = None;
    }

    /// When something is due by itself.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let start = self
            .slot
            .as_ref()
            .and_then(|slot| slot.deadline(self.is_wanted()));
        self.lanes
            .values()
            .filter_map(Queue::deadline)
            .chain(start)
            .min()
    }

    /// Whether its worker has to be killed.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        let start = self
            .slot
            .as_ref()
            .is_some_and(|slot| slot.start_is_overdue(now));
        start
            || self
                .lanes
                .values()
                .filter_map(Queue::deadline)
                .any(|deadline| deadline <= now)
    }
}

fn to(worker: Option<WorkerId>, request: KeyRequest) -> Effect {
    match worker {
        Some(worker) => Effect::ToWorker(worker, request),
        None => Effect::ToCards(request),
    }
}

/// How long an answer may take, and what can be one.
fn expected(body: &KeyRequestBody) -> (Duration, fn(&KeyReply) -> bool) {
    let operation = match body {
        KeyRequestBody::Token(_, operation) => operation,
        KeyRequestBody::ListTokens | KeyRequestBody::Cancel { .. } => {
            return (LIST_LIMIT, |reply| matches!(reply, KeyReply::Tokens(_)));
        }
    };
    let is_answer: fn(&KeyReply) -> bool = match operation {
        Operation::ListKeys { .. } => |reply| matches!(reply, KeyReply::Keys { .. }),
        Operation::ListCertificates(_) => |reply| matches!(reply, KeyReply::Certificates(_)),
        Operation::Login { .. }
        | Operation::Logout
        | Operation::Delete(_)
        | Operation::InstallCertificate { .. }
        | Operation::RemoveCertificate(_)
        | Operation::WriteData { .. } => |reply| matches!(reply, KeyReply::Done),
        Operation::Generate(_)
        | Operation::Unwrap { .. }
        | Operation::Derive { into: Some(_), .. } => |reply| matches!(reply, KeyReply::Key(_)),
        Operation::Sign { .. }
        | Operation::Encrypt { .. }
        | Operation::Decrypt { .. }
        | Operation::Derive { into: None, .. }
        | Operation::Wrap { .. } => |reply| matches!(reply, KeyReply::Bytes(_)),
        Operation::VerifyMac { .. } => |reply| matches!(reply, KeyReply::IsGenuine(_)),
        Operation::Attest { .. } => |reply| matches!(reply, KeyReply::Attestation(_)),
        Operation::ReadData(_) => |reply| matches!(reply, KeyReply::Data(_)),
    };
    (operation.time_limit(), is_answer)
}

/// Whether an answer keeps to its bounds.
fn is_bounded(reply: &KeyReply) -> bool {
    let key = |key: &token_workers::key_protocol::KeyInfo| {
        key.key.0.len() <= MAX_KEY_REF
            && key.label.len() <= MAX_LABEL
            && key.identifier.len() <= 255
            && key
                .public_key
                .as_ref()
                .is_none_or(|key| key.0.len() <= MAX_PUBLIC_KEY)
    };
    match reply {
        KeyReply::Done | KeyReply::IsGenuine(_) => true,
        KeyReply::Tokens(tokens) => {
            tokens.len() <= MAX_TOKENS
                && tokens.iter().all(|token| {
                    [
                        &token.label,
                        &token.manufacturer,
                        &token.model,
                        &token.serial,
                        &token.slot,
                    ]
                    .into_iter()
                    .all(|text| text.len() <= 256)
                        && token.features.len() <= 64
                })
        }
        KeyReply::Keys { keys, .. } => keys.len() <= MAX_KEYS && keys.iter().all(key),
        KeyReply::Certificates(certificates) => {
            certificates.len() <= MAX_CERTIFICATES
                && certificates.iter().all(|it| it.0.len() <= MAX_CERTIFICATE)
        }
        KeyReply::Key(info) => key(info),
        // A padding and a tag make a text longer.
        KeyReply::Bytes(bytes) => bytes.0.len() <= MAX_DATA + 32,
        KeyReply::Data(data) => data
            .as_ref()
            .is_none_or(|data| data.0.len() <= MAX_DATA_OBJECT),
        KeyReply::Attestation(attestation) => [
            &attestation.statement,
            &attestation.signature,
            &attestation.signer,
            &attestation.public,
        ]
        .into_iter()
        .all(|part| part.0.len() <= 4096),
    }
}
