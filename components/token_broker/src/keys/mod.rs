/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys that live in tokens: which of them a document may find and use, and what it takes to do so.
//!
//! Like the rest of the broker it does no input or output: it is told what happened and says what to do ([`Effect`]). What a
//! document asks takes many steps (lists, prompts, a login, the operation), so each request is a future that waits for the
//! events; [`Keys`] polls them. None of them holds the state across an `await`.
//!
//! - [`provider`]: what keeps keys, and how it is asked (the seam for PKCS#11, TPM and cards);
//! - [`token`]: tokens, what is in them, and who is logged in;
//! - [`discovery`]: finding keys and tokens; [`query`] what fits;
//! - [`operate`]: using keys; [`provision`]: making, deleting and certifying them;
//! - [`piv`]: PIV cards as tokens;
//! - [`origins`]: the list of origins that is kept with a key; [`ids`]: what a party calls a key;
//! - [`errors`]: what the page is told.

mod ask;
mod certificate;
mod discovery;
mod errors;
mod ids;
mod operate;
mod origins;
pub(crate) mod piv;
mod provider;
mod provision;
mod query;
mod token;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use futures::channel::oneshot;
use futures::executor::LocalPool;
use futures::future::{AbortHandle, Abortable};
use futures::task::LocalSpawnExt;
use token_traits::control::{BrokerConfig, WorkerId, WorkerKind};
use token_traits::keys::{KeyId, KeysReply, KeysRequest, TokenInfo};
use token_traits::port::RequestId;
use token_traits::prompt::{PromptAnswer, PromptId, PromptRequest};
use token_traits::{ErrorKind, Feature, Origin, PermissionState, PortId, PortIdentity, TokenError};
use token_workers::key_protocol::{KeyMessage, KeyRef, KeyRequest};

use self::ask::Pending;
use self::errors::{error, gone, refused};
pub use self::ids::InstallationSecret;
pub use self::origins::OriginList;
use self::provider::Provider;
pub(crate) use self::provider::ProviderId;
pub use self::provision::StoredKey;
use self::token::Token;
use crate::access;
use crate::access::grants::{Grants, KeyName, Party, TokenName};
use crate::reader::Ticket;
use crate::store::Write;

/// A provider whose tokens nobody uses ends after this long.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Why a worker is killed.
const TOO_LATE: &str = "missed its deadline";

/// Something to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Answer a document.
    Reply(Ticket, Result<KeysReply, TokenError>),
    /// Tell a document of a token.
    Token(PortId, TokenInfo),
    /// Have a provider's worker started.
    StartWorker(WorkerId, ProviderId, WorkerKind),
    /// Kill a worker.
    KillWorker(WorkerId, &'static str),
    /// Let a worker go.
    ReleaseWorker(WorkerId),
    /// Ask a worker.
    ToWorker(WorkerId, KeyRequest),
    /// Ask [`ProviderId::Cards`].
    ToCards(KeyRequest),
    /// Has the user just done something in that webview?
    CheckActivation(PromptId, u64),
    /// Ask the user.
    Prompt(PromptRequest),
    /// Do not ask any more.
    WithdrawPrompt(PromptId),
    /// Remember something.
    Store(Write),
    /// Add to the audit log.
    Note {
        /// Who.
        origin: Origin,
        /// The token's label.
        token: String,
        /// What.
        decision: &'static str,
    },
}

/// What the rest of the broker lends while something is dealt with.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    pub(crate) grants: Grants,
    pub(crate) next_worker: u64,
    pub(crate) next_prompt: u64,
}

/// See the module's documentation.
pub(crate) struct Keys {
    pool: LocalPool,
    shared: Shared,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shared.0.try_borrow() {
            Ok(state) => state.fmt(formatter),
            Err(_) => formatter.write_str("Keys"),
        }
    }
}

/// What all requests share. It is borrowed for moments only.
#[derive(Clone)]
struct Shared(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    now: Instant,
    time: SystemTime,
    lent: Lent,
    secret: InstallationSecret,
    ports: HashMap<PortId, Port>,
    providers: BTreeMap<ProviderId, Provider>,
    workers: HashMap<WorkerId, ProviderId>,
    tokens: BTreeMap<TokenName, Token>,
    /// Lists of origins of keys whose tokens keep no data.
    lists: HashMap<KeyName, Rc<OriginList>>,
    /// Keys of tokens that keep none themselves.
    stored: BTreeMap<KeyName, Rc<StoredKey>>,
    /// Names that are being given to keys.
    reserved: HashSet<(TokenName, Origin, String)>,
    /// Which keys documents can name.
    known: HashMap<KeyId, Known>,
    prompts: BTreeMap<PromptId, Pending>,
    timers: BTreeMap<(Instant, u64), oneshot::Sender<()>>,
    /// Who waits for tokens to come or go.
    changes: Vec<oneshot::Sender<()>>,
    /// Goes up with everything that has an order.
    count: u64,
    effects: Vec<Effect>,
}

#[derive(Clone, Debug)]
struct Known {
    party: Party,
    token: TokenName,
    key: KeyRef,
}

#[derive(Debug)]
struct Port {
    caller: Rc<Caller>,
    /// Whether it is told of tokens that come and go.
    watches: bool,
    requests: HashMap<RequestId, AbortHandle>,
}

/// Who asks.
#[derive(Debug)]
struct Caller {
    port: PortId,
    party: Party,
    webview: u64,
    /// Whether it can have to do with keys at all.
    is_eligible: bool,
}

impl Default for Keys {
    fn default() -> Self {
        let state = State {
            now: Instant::now(),
            time: SystemTime::UNIX_EPOCH,
            lent: Lent::default(),
            secret: InstallationSecret::default(),
            ports: HashMap::new(),
            providers: BTreeMap::new(),
            workers: HashMap::new(),
            tokens: BTreeMap::new(),
            lists: HashMap::new(),
            stored: BTreeMap::new(),
            reserved: HashSet::new(),
            known: HashMap::new(),
            prompts: BTreeMap::new(),
            timers: BTreeMap::new(),
            changes: Vec::new(),
            count: 1,
            effects: Vec::new(),
        };
        Self {
            pool: LocalPool::new(),
            shared: Shared(Rc::new(RefCell::new(state))),
        }
    }
}

impl Keys {
    /// What may be started.
    pub(crate) fn configure(&mut self, config: &BrokerConfig) {
        self.shared.with(|state| {
            for (index, module) in config.modules.iter().enumerate() {
                let id = ProviderId::Module(index);
                let kind = WorkerKind::Module(module.clone());
                let provider = Provider::new(id, module.label.clone(), Some(kind));
                state.providers.insert(id, provider);
            }
            if let Some(tcti) = &config.tpm {
                let kind = WorkerKind::Tpm { tcti: tcti.clone() };
                let provider = Provider::new(ProviderId::Tpm, "TPM".to_owned(), Some(kind));
                state.providers.insert(ProviderId::Tpm, provider);
            }
            if config.pcsc || config.virtual_card.is_some() {
                let provider = Provider::new(ProviderId::Cards, "Cards".to_owned(), None);
                state.providers.insert(ProviderId::Cards, provider);
            }
        });
    }

    /// What was remembered.
    pub(crate) fn restore(
        &mut self,
        secret: InstallationSecret,
        lists: Vec<(KeyName, OriginList)>,
        stored: Vec<StoredKey>,
    ) {
        self.shared.with(|state| {
            state.secret = secret;
            state.lists = lists
                .into_iter()
                .map(|(key, list)| (key, Rc::new(list)))
                .collect();
            state.stored = stored
                .into_iter()
                .map(|stored| (stored.name(), Rc::new(stored)))
                .collect();
        });
    }

    /// Has `act` deal with what happened, lets everything go on that can, and says what is to be done.
    pub(crate) fn turn(
        &mut self,
        lent: &mut Lent,
        now: Instant,
        time: SystemTime,
        act: impl FnOnce(&mut Self),
    ) -> Vec<Effect> {
        self.shared.with(|state| {
            state.now = now;
            state.time = time;
            std::mem::swap(&mut state.lent, lent);
        });
        act(self);
        self.pool.run_until_stalled();
        self.shared.with(|state| {
            state.settle();
            std::mem::swap(&mut state.lent, lent);
            std::mem::take(&mut state.effects)
        })
    }

    /// A document asks.
    pub(crate) fn request(
        &mut self,
        ticket: Ticket,
        identity: &PortIdentity,
        request: KeysRequest,
    ) {
        let shared = self.shared.clone();
        let (abort, registration) = AbortHandle::new_pair();
        // What changes a token is carried through, whether the document waits or not: half of it would be left otherwise.
        let is_carried_through = matches!(
            request,
            KeysRequest::Generate { .. }
                | KeysRequest::Delete(_)
                | KeysRequest::InstallCertificate { .. }
                | KeysRequest::RemoveCertificate(_)
                | KeysRequest::Use {
                    operation: token_traits::keys::KeyOperation::Derive { into: Some(_), .. }
                        | token_traits::keys::KeyOperation::Unwrap { .. },
                    ..
                }
        );
        let caller = shared.with(|state| {
            let port = state.ports.entry(ticket.port).or_insert_with(|| Port {
                caller: Rc::new(Caller {
                    port: ticket.port,
                    party: Party::of(identity),
                    webview: identity.webview,
                    is_eligible: access::is_eligible(identity)
                        && identity.features.contains(Feature::TokenKeys),
                }),
                watches: false,
                requests: HashMap::new(),
            });
            if !is_carried_through {
                port.requests.insert(ticket.request, abort);
            }
            port.caller.clone()
        });
        let task = async move {
            let result = shared.serve(&caller, request).await;
            shared.with(|state| {
                if let Some(port) = state.ports.get_mut(&ticket.port) {
                    port.requests.remove(&ticket.request);
                }
                state.effects.push(Effect::Reply(ticket, result));
            });
        };
        let task = Abortable::new(task, registration);
        self.spawn(async move {
            // Then nobody waits for the answer.
            let _ = task.await;
        });
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        if self.pool.spawner().spawn_local(task).is_err() {
            log::error!("a request cannot be begun");
        }
    }

    /// A document has gone. `is_last`: it was its party's last.
    pub(crate) fn port_closed(&mut self, id: PortId, party: &Party, is_last: bool) {
        let port = self.shared.with(|state| {
            // Nothing is asked for it any more, whatever is carried through.
            let effects = &mut state.effects;
            state.prompts.retain(|prompt, pending| {
                let stays = pending.port != id;
                if !stays && pending.is_shown {
                    effects.push(Effect::WithdrawPrompt(*prompt));
                }
                stays
            });
            state.ports.remove(&id)
        });
        for request in port.iter().flat_map(|port| port.requests.values()) {
            request.abort();
        }
        if is_last {
            let shared = self.shared.clone();
            let party = party.clone();
            shared.with(|state| state.known.retain(|_, known| known.party != party));
            self.spawn(async move { shared.party_gone(&party).await });
        }
        let shared = self.shared.clone();
        self.spawn(async move { shared.log_out_unused().await });
    }

    /// What is allowed to whom has changed.
    pub(crate) fn grants_changed(&mut self) {
        let shared = self.shared.clone();
        self.spawn(async move {
            shared.log_out_unused().await;
            shared.watch().await;
        });
    }

    /// Whether it is one of its workers.
    pub(crate) fn has_worker(&self, worker: WorkerId) -> bool {
        self.shared
            .with(|state| state.workers.contains_key(&worker))
    }

    /// A worker has reported.
    pub(crate) fn worker_started(&mut self, worker: WorkerId) {
        self.shared.with(|state| {
            let now = state.now;
            if let Some(provider) = state.provider_of(worker) {
                provider.started(now);
            }
        });
    }

    /// A worker has ended.
    pub(crate) fn worker_ended(&mut self, worker: WorkerId) {
        self.shared.with(|state| state.worker_ended(worker, false));
        let shared = self.shared.clone();
        self.spawn(async move { shared.watch().await });
    }

    /// A worker has sent something.
    pub(crate) fn worker_message(&mut self, worker: WorkerId, message: Option<KeyMessage>) {
        let id = self
            .shared
            .with(|state| state.workers.get(&worker).copied());
        let Some(id) = id else {
            return;
        };
        let is_fine = message.is_some_and(|message| self.message(id, message));
        if !is_fine {
            self.shared.with(|state| {
                state.kill(id, "sent something unexpected", false);
            });
            let shared = self.shared.clone();
            self.spawn(async move { shared.watch().await });
        }
    }

    /// A provider has said something. Returns whether it made sense.
    pub(crate) fn message(&mut self, id: ProviderId, message: KeyMessage) -> bool {
        match message {
            KeyMessage::Reply { request, result } => self.shared.with(|state| {
                let now = state.now;
                let provider = state.providers.get_mut(&id);
                provider.is_some_and(|provider| provider.answered(request, result, now).is_ok())
            }),
            KeyMessage::TokensChanged => {
                self.shared.with(|state| {
                    if let Some(provider) = state.providers.get_mut(&id) {
                        provider.is_listed = false;
                    }
                });
                let shared = self.shared.clone();
                self.spawn(async move { shared.watch().await });
                true
            }
        }
    }

    /// The main process has answered whether the user has just done something. Returns whether it was asked for this.
    pub(crate) fn activation(&mut self, prompt: PromptId, is_active: bool) -> bool {
        let answer = match is_active {
            true => PromptAnswer::Allowed { remember: false },
            false => PromptAnswer::NotAsked,
        };
        self.answered(prompt, false, answer)
    }

    /// The user has answered. Returns whether this has asked.
    pub(crate) fn prompt_answered(&mut self, prompt: PromptId, answer: PromptAnswer) -> bool {
        self.answered(prompt, true, answer)
    }

    fn answered(&mut self, prompt: PromptId, is_shown: bool, answer: PromptAnswer) -> bool {
        let pending = self.shared.with(|state| {
            let of_this = state.prompts.get(&prompt)?;
            (of_this.is_shown == is_shown).then(|| state.prompts.remove(&prompt))?
        });
        match pending {
            Some(pending) => {
                // Nobody may wait for it any more.
                let _ = pending.answer.send(answer);
                true
            }
            None => false,
        }
    }

    /// When the time has to be told.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.shared.with(|state| {
            let providers = state.providers.values().filter_map(|provider| {
                let idle = provider
                    .worker()
                    .and(provider.idle_since)
                    .filter(|_| state.ports.is_empty());
                let idle = idle.map(|since| since + IDLE_LIMIT);
                provider.deadline().into_iter().chain(idle).min()
            });
            let timer = state.timers.keys().next().map(|(time, _)| *time);
            let logout = state.tokens.values().filter_map(Token::logout_time);
            providers.chain(timer).chain(logout).min()
        })
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        let due = self.shared.with(|state| {
            let now = state.now;
            for id in state.providers.keys().copied().collect::<Vec<_>>() {
                let Some(provider) = state.providers.get_mut(&id) else {
                    continue;
                };
                let is_idle = provider
                    .idle_since
                    .is_some_and(|since| since + IDLE_LIMIT <= now);
                if provider.is_overdue(now) {
                    state.kill(id, TOO_LATE, true);
                } else if is_idle
                    && state.ports.is_empty()
                    && let Some(worker) = provider.worker()
                {
                    provider.released();
                    state.workers.remove(&worker);
                    state.provider_gone(id);
                    state.effects.push(Effect::ReleaseWorker(worker));
                }
            }
            let later = state.timers.split_off(&(now, u64::MAX));
            std::mem::replace(&mut state.timers, later)
        });
        for timer in due.into_values() {
            // Nobody may wait for it any more.
            let _ = timer.send(());
        }
        let shared = self.shared.clone();
        self.spawn(async move { shared.log_out_idle().await });
    }
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    async fn serve(&self, caller: &Caller, request: KeysRequest) -> Result<KeysReply, TokenError> {
        let may_ask = self.with(|state| state.may_ask(caller));
        match request {
            KeysRequest::GetKeyByName(name) => self.get_key_by_name(caller, &name).await,
            KeysRequest::GetKeys(query) => self.get_keys(caller, *query).await,
            KeysRequest::GetTokens(query) => self.get_tokens(caller, &query).await,
            KeysRequest::WatchTokens => {
                self.with(|state| {
                    if let Some(port) = state.ports.get_mut(&caller.port) {
                        port.watches = caller.is_eligible;
                    }
                });
                self.watch_one(caller).await;
                Ok(KeysReply::Done)
            }
            KeysRequest::RequestKey(_) | KeysRequest::RequestToken(_) if !may_ask => Err(refused()),
            KeysRequest::RequestKey(query) => self.request_key(caller, *query).await,
            KeysRequest::RequestToken(query) => self.request_token(caller, &query).await,
            KeysRequest::ForgetKey(key) => self.forget_key(caller, key).await,
            KeysRequest::ForgetToken(token) => self.forget_token(caller, token).await,
            // It may have been allowed before.
            _ if !may_ask => Err(refused()),
            KeysRequest::Generate { token, key } => self.generate(caller, token, key).await,
            KeysRequest::Delete(key) => self.delete(caller, key).await,
            KeysRequest::InstallCertificate { key, certificate } => {
                self.install_certificate(caller, key, certificate).await
            }
            KeysRequest::RemoveCertificate(key) => self.remove_certificate(caller, key).await,
            KeysRequest::GetCertificates(key) => self.get_certificates(caller, key).await,
            KeysRequest::Attest { key, challenge } => self.attest(caller, key, challenge).await,
            KeysRequest::Use { key, operation } => self.use_key(caller, key, operation).await,
        }
    }
}

impl State {
    /// Whether the user may be asked for that document, or has been.
    fn may_ask(&self, caller: &Caller) -> bool {
        caller.is_eligible && self.permission(caller) != PermissionState::Denied
    }

    fn permission(&self, caller: &Caller) -> PermissionState {
        self.lent
            .grants
            .permission(&caller.party, Feature::TokenKeys)
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn provider_of(&mut self, worker: WorkerId) -> Option<&mut Provider> {
        let id = self.workers.get(&worker)?;
        self.providers.get_mut(id)
    }

    fn worker_ended(&mut self, worker: WorkerId, overdue: bool) {
        let Some(id) = self.workers.remove(&worker) else {
            return;
        };
        let now = self.now;
        if let Some(provider) = self.providers.get_mut(&id) {
            provider.ended(overdue, now);
        }
        self.provider_gone(id);
    }

    /// Ends a provider's worker, if it has one.
    fn kill(&mut self, id: ProviderId, why: &'static str, overdue: bool) {
        let now = self.now;
        let Some(provider) = self.providers.get_mut(&id) else {
            return;
        };
        match provider.worker() {
            Some(worker) => {
                self.effects.push(Effect::KillWorker(worker, why));
                self.worker_ended(worker, overdue);
            }
            None => {
                provider.ended(overdue, now);
                self.provider_gone(id);
            }
        }
    }

    /// Sends what providers are to be asked, and withdraws prompts that nobody waits for.
    fn settle(&mut self) {
        let effects = &mut self.effects;
        self.prompts.retain(|id, pending| {
            let is_wanted = !pending.answer.is_canceled();
            if !is_wanted && pending.is_shown {
                effects.push(Effect::WithdrawPrompt(*id));
            }
            is_wanted
        });
        self.timers.retain(|_, timer| !timer.is_canceled());
        self.changes.retain(|change| !change.is_canceled());
        for provider in self.providers.values_mut() {
            provider.advance(self.now, &mut self.lent.next_worker, effects);
        }
        for effect in effects {
            if let Effect::StartWorker(worker, id, _) = effect {
                self.workers.insert(*worker, *id);
            }
        }
    }

    fn note(&mut self, caller: &Caller, token: String, decision: &'static str) {
        let origin = caller.party.origin.clone();
        self.effects.push(Effect::Note {
            origin,
            token,
            decision,
        });
    }
}

/// As long as so many wait for the user, no more are taken.
fn too_many_prompts() -> TokenError {
    error(ErrorKind::Gone, "too many questions wait for the user")
}
