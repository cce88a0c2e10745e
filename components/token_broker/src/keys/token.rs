/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Tokens: which are there, what is in them, and who is logged in.
//!
//! A token's name outlives its worker and this broker. What is in it is read anew for each question about keys, all of it
//! whatever the question is, so that the time it takes tells nothing of keys that the asking origin may not use.

use std::cell::Cell;

use futures::future::join_all;
use futures::lock::Mutex;
use token_traits::keys::{self, Bytes, KeyTokenId, Protection};
use token_traits::prompt::Question;
use token_workers::key_protocol::{
    self as protocol, KeyError, KeyInfo, KeyReply, MAX_KEYS, Operation, Secret, TokenFeature,
    TokenId,
};
use zeroize::Zeroizing;

use super::certificate::Certificate;
use super::errors::NO_ACTIVATION;
use super::ids;
use super::provider::{Answer, Failure};
use super::*;
use crate::reader::display_name;

/// How long a document waits for a provider's list of tokens.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// A token that nobody has used for this long forgets its user.
const LOGIN_LIMIT: Duration = Duration::from_secs(5 * 60);
/// What is kept with a key, and its certificates, are read again after this long, in case another program has changed them.
const REREAD: Duration = Duration::from_secs(10);
/// The user may enter the same wrong PIN so often again. None of them but the first spends a try.
const MAX_REPEATS: usize = 2;
/// Most bytes that the certificates in a token may have together. Further ones are not looked at.
const MAX_CERTIFICATES: usize = 4 * 1024 * 1024;
/// So many tokens are remembered that have gone.
const MAX_GONE: usize = 256;
/// Most characters of a token's label.
const MAX_TOKEN_LABEL: usize = 64;
/// Bounds of a PIN in characters, where the token does not say.
const PIN_LENGTH: (u8, u8) = (1, 64);

/// A token that is there, or was.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) provider: ProviderId,
    /// What its provider calls it, if it is there and the provider runs.
    pub(super) handle: Option<TokenId>,
    pub(super) info: protocol::TokenInfo,
    pub(super) present: bool,
    logged_in: bool,
    /// Who has logged in.
    user: Option<Party>,
    last_used: Instant,
    /// Whoever asks for the PIN holds it.
    login_lock: Rc<Mutex<()>>,
    /// How many logins have ended, one way or the other.
    logins: u64,
    /// Who has refused the last one.
    refused_by: Option<Party>,
    /// Whoever reads what is in it holds it.
    read_lock: Rc<Mutex<()>>,
    directory: Option<Rc<Directory>>,
    /// Lists of origins of keys that do not stay.
    pub(super) temporary: HashMap<KeyRef, Rc<OriginList>>,
}

/// What is in a token.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// When it was begun to be read, in the order of things.
    read: u64,
    pub(super) keys: Vec<Rc<Entry>>,
    by_ref: HashMap<KeyRef, usize>,
}

/// A key in a token.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) info: KeyInfo,
    pub(super) name: KeyName,
    /// `None`: there is none, so that only the user's choice gives it to an origin.
    pub(super) list: Option<Rc<OriginList>>,
    pub(super) certificates: Rc<Vec<Certificate>>,
    /// When the last two were read.
    read: Instant,
}

impl Directory {
    pub(super) fn new(read: u64, keys: Vec<Rc<Entry>>) -> Self {
        let refs = keys.iter().enumerate();
        Self {
            read,
            by_ref: refs
                .map(|(index, entry)| (entry.info.key.clone(), index))
                .collect(),
            keys,
        }
    }

    pub(super) fn get(&self, key: &KeyRef) -> Option<&Rc<Entry>> {
        self.keys.get(*self.by_ref.get(key)?)
    }
}

impl Entry {
    pub(super) fn new(token: &TokenName, mut info: KeyInfo, now: Instant) -> Self {
        // Modules allow keys what no key of their kind can do.
        info.usages = info.usages.common(query::possible_usages(info.algorithm));
        Self {
            name: ids::key_name(token, &info),
            list: None,
            certificates: Rc::default(),
            read: now,
            info,
        }
    }
}

impl Token {
    fn new(provider: ProviderId, info: protocol::TokenInfo, now: Instant) -> Self {
        Self {
            provider,
            handle: None,
            info,
            present: false,
            logged_in: false,
            user: None,
            last_used: now,
            login_lock: Rc::default(),
            logins: 0,
            refused_by: None,
            read_lock: Rc::default(),
            directory: None,
            temporary: HashMap::new(),
        }
    }

    /// Its provider has ended, or it has been taken out.
    fn gone(&mut self) {
        self.handle = None;
        self.logged_in = false;
        self.directory = None;
        self.temporary.clear();
    }

    pub(super) fn label(&self) -> String {
        let label = display_name(self.info.label.trim());
        label.chars().take(MAX_TOKEN_LABEL).collect()
    }

    pub(super) fn protection(&self) -> Protection {
        match self.info.is_hardware {
            true => Protection::Hardware,
            false => Protection::Software,
        }
    }

    pub(super) fn can(&self, feature: TokenFeature) -> bool {
        self.info.features.contains(&feature)
    }

    /// What was last read.
    pub(super) fn known(&self) -> Option<&Directory> {
        self.directory.as_deref()
    }

    /// When its user is logged out by itself.
    pub(super) fn logout_time(&self) -> Option<Instant> {
        self.logged_in.then(|| self.last_used + LOGIN_LIMIT)
    }

    pub(super) fn page_info(&self, id: KeyTokenId) -> keys::TokenInfo {
        keys::TokenInfo {
            id,
            label: self.label(),
            protection: self.protection(),
            present: self.present,
            provisionable: !self.info.is_read_only,
            features: self.info.features.clone(),
        }
    }
}

impl State {
    /// A provider has ended.
    pub(super) fn provider_gone(&mut self, id: ProviderId) {
        for token in self.tokens.values_mut() {
            if token.provider == id {
                token.gone();
            }
        }
    }

    /// A provider says which tokens there are.
    fn set_tokens(&mut self, id: ProviderId, infos: Vec<protocol::TokenInfo>) {
        let prefix = match id {
            ProviderId::Module(_) => "module",
            ProviderId::Tpm => "tpm",
            ProviderId::Cards => "cards",
        };
        let now = self.now;
        let mut listed = HashSet::new();
        let mut changed = Vec::new();
        for info in infos {
            let mut name = ids::token_name(prefix, &info);
            if listed.contains(&name) {
                // Two that say the same of themselves can only be told by their places.
                name = TokenName(ids::digest(&[&name.0, info.slot.as_bytes()]));
            }
            if !listed.insert(name) {
                continue;
            }
            let token = self
                .tokens
                .entry(name)
                .or_insert_with(|| Token::new(id, info.clone(), now));
            if token.handle != Some(info.id) {
                token.gone();
            }
            token.provider = id;
            token.handle = Some(info.id);
            token.info = info;
            if !token.present {
                token.present = true;
                changed.push(name);
            }
        }
        for (name, token) in &mut self.tokens {
            if token.provider == id && !listed.contains(name) {
                token.gone();
                if token.present {
                    token.present = false;
                    changed.push(*name);
                }
            }
        }
        if self.tokens.len() > MAX_GONE {
            self.tokens.retain(|_, token| token.present);
        }
        if let Some(provider) = self.providers.get_mut(&id) {
            provider.is_listed = true;
        }
        if changed.is_empty() {
            return;
        }
        for name in changed {
            self.tell(name);
            if self.tokens.get(&name).is_some_and(|token| !token.present) {
                self.lent.grants.token_gone(&name);
            }
        }
        for change in std::mem::take(&mut self.changes) {
            // Nobody may wait for it any more.
            let _ = change.send(());
        }
    }

    /// Tells documents that watch of a token that has come or gone.
    fn tell(&mut self, name: TokenName) {
        let Some(token) = self.tokens.get(&name) else {
            return;
        };
        for (id, port) in &self.ports {
            if port.watches && self.sees_token(&port.caller, &name) {
                let token_id = self.secret.token_id(&port.caller.party, &name);
                let info = token.page_info(token_id);
                self.effects.push(Effect::Token(*id, info));
            }
        }
    }

    /// Whether a document's origin has been allowed a token, or a key in it.
    pub(super) fn sees_token(&self, caller: &Caller, token: &TokenName) -> bool {
        self.has_token(caller, token)
            || (self.may_ask(caller) && self.lent.grants.has_key_in(&caller.party, token))
    }

    /// Whether a document's origin has been allowed a token.
    pub(super) fn has_token(&self, caller: &Caller, token: &TokenName) -> bool {
        caller.is_eligible
            && match self.permission(caller) {
                PermissionState::Granted => true,
                PermissionState::Denied => false,
                PermissionState::Prompt => {
                    self.lent.grants.of_token(&caller.party, token).is_some()
                }
            }
    }

    /// Whether a document's origin may use a key: it is on the key's list and has been allowed the token or the key, or there
    /// is no list and the user has chosen the key for it.
    pub(super) fn may_use(&self, caller: &Caller, token: &TokenName, entry: &Entry) -> bool {
        let has_key = || {
            self.may_ask(caller)
                && self
                    .lent
                    .grants
                    .of_key(&caller.party, token, &entry.name)
                    .is_some()
        };
        match &entry.list {
            Some(list) => {
                list.allows(&caller.party.origin) && (self.has_token(caller, token) || has_key())
            }
            None => has_key(),
        }
    }

    /// Whether there can be anything that a document may use.
    pub(super) fn has_anything(&self, caller: &Caller) -> bool {
        caller.is_eligible
            && match self.permission(caller) {
                PermissionState::Granted => true,
                PermissionState::Denied => false,
                PermissionState::Prompt => self.lent.grants.has_key_or_token(&caller.party),
            }
    }

    /// The provider and what it calls a token.
    fn live(&mut self, name: &TokenName) -> Result<(&mut Provider, TokenId), Failure> {
        let now = self.now;
        let token = self.tokens.get_mut(name).ok_or(Failure::Gone)?;
        token.last_used = now;
        let handle = token.handle.ok_or(Failure::Gone)?;
        let provider = self.providers.get_mut(&token.provider);
        Ok((provider.ok_or(Failure::Gone)?, handle))
    }

    /// The list of a key that is in no data object of its token.
    fn list_elsewhere(&self, token: &TokenName, entry: &Entry) -> Option<Rc<OriginList>> {
        let temporary = &self.tokens.get(token)?.temporary;
        let list = temporary.get(&entry.info.key);
        list.or_else(|| self.lists.get(&entry.name)).cloned()
    }

    /// Puts a key into what is known of its token, or takes it out.
    pub(super) fn replace_entry(
        &mut self,
        name: &TokenName,
        key: &KeyRef,
        entry: Option<Rc<Entry>>,
    ) {
        let Some(token) = self.tokens.get_mut(name) else {
            return;
        };
        let Some(directory) = &token.directory else {
            return;
        };
        let mut keys = directory.keys.clone();
        let place = keys.iter_mut().find(|known| known.info.key == *key);
        match (place, entry) {
            (Some(place), Some(entry)) => *place = entry,
            (None, Some(entry)) => keys.push(entry),
            (_, None) => keys.retain(|known| known.info.key != *key),
        }
        token.directory = Some(Rc::new(Directory::new(directory.read, keys)));
    }
}

impl Shared {
    // Lists of tokens.

    /// Has a provider say which tokens there are, unless that is known.
    async fn listed(&self, id: ProviderId) {
        let asked = self.with(|state| {
            let provider = state.providers.get_mut(&id)?;
            (!provider.is_listed).then(|| provider.list_tokens())
        });
        if let Some(asked) = asked
            && let Some(Ok(Ok(KeyReply::Tokens(tokens)))) = self.within(LIST_LIMIT, asked).await
        {
            self.with(|state| state.set_tokens(id, tokens));
        }
    }

    /// Has a provider say it again.
    async fn list_again(&self, id: ProviderId) {
        self.with(|state| {
            if let Some(provider) = state.providers.get_mut(&id) {
                provider.is_listed = false;
            }
        });
        self.listed(id).await;
    }

    /// The tokens that are there.
    pub(super) async fn tokens(&self) -> Vec<TokenName> {
        let providers: Vec<ProviderId> =
            self.with(|state| state.providers.keys().copied().collect());
        join_all(providers.into_iter().map(|id| self.listed(id))).await;
        self.with(|state| {
            let present = state.tokens.iter().filter(|(_, token)| token.present);
            present.map(|(name, _)| *name).collect()
        })
    }

    /// Keeps lists of tokens up to date for documents that watch, and for prompts.
    pub(super) async fn watch(&self) {
        let is_wanted = self.with(|state| {
            let watchers = state.ports.values().filter(|port| port.watches);
            !state.changes.is_empty()
                || watchers
                    .into_iter()
                    .any(|port| state.has_anything(&port.caller))
        });
        if is_wanted {
            self.tokens().await;
        }
    }

    /// A document begins to watch. It is told of what comes and goes from now on.
    pub(super) async fn watch_one(&self, caller: &Caller) {
        if self.with(|state| state.has_anything(caller)) {
            self.tokens().await;
        }
    }

    // Operations.

    /// Has something done with a token.
    pub(super) async fn operate(&self, name: &TokenName, operation: Operation) -> Answer {
        let known = self.with(|state| Some(state.tokens.get(name)?.provider));
        match known {
            Some(provider) => self.listed(provider).await,
            // It was known to an earlier broker.
            None => {
                self.tokens().await;
            }
        }
        let asked = self.with(|state| {
            let (provider, token) = state.live(name)?;
            Ok(provider.operate(token, operation))
        })?;
        asked.await.unwrap_or(Err(Failure::Gone))
    }

    /// Has it done, with a login before where the token wants one.
    pub(super) async fn perform(
        &self,
        caller: &Caller,
        name: &TokenName,
        operation: Operation,
    ) -> Result<KeyReply, TokenError> {
        self.end_login_of_another(caller, name).await;
        let logins = self.logins(name);
        match self.operate(name, operation.clone()).await {
            Err(Failure::Key(KeyError::NotLoggedIn)) => {
                self.login(caller, name, logins).await?;
                Ok(self.operate(name, operation).await?)
            }
            answer => Ok(answer?),
        }
    }

    // Login.

    /// What a card's PIN has opened for one party does not serve another, which has its user enter the PIN itself.
    pub(super) async fn end_login_of_another(&self, caller: &Caller, name: &TokenName) {
        let is_anothers = self.with(|state| {
            let token = state.tokens.get(name);
            token.is_some_and(|token| {
                token.provider == ProviderId::Cards
                    && token.logged_in
                    && token.user.as_ref() != Some(&caller.party)
            })
        });
        if is_anothers {
            self.log_out(vec![*name]).await;
        }
    }

    pub(super) fn logins(&self, name: &TokenName) -> u64 {
        self.with(|state| state.tokens.get(name).map_or(0, |token| token.logins))
    }

    /// Logs the user in. `seen`: how many logins had ended when it turned out to be needed.
    pub(super) async fn login(
        &self,
        caller: &Caller,
        name: &TokenName,
        seen: u64,
    ) -> Result<(), TokenError> {
        let lock = self.with(|state| Some(state.tokens.get(name)?.login_lock.clone()));
        let _guard = lock.as_ref().ok_or_else(gone)?.lock().await;
        let ended = self.with(|state| {
            let token = state.tokens.get(name)?;
            if token.logins == seen {
                None
            } else if token.logged_in {
                Some(Ok(()))
            } else {
                (token.refused_by.as_ref() == Some(&caller.party)).then(|| Err(refused()))
            }
        });
        if let Some(ended) = ended {
            return ended;
        }
        let result = self
            .with_pin(caller, name, |pin| Operation::Login { pin })
            .await;
        self.login_ended(caller, name, result.is_ok());
        result.map(|_| ())
    }

    fn login_ended(&self, caller: &Caller, name: &TokenName, is_in: bool) {
        self.with(|state| {
            let now = state.now;
            let Some(token) = state.tokens.get_mut(name) else {
                return;
            };
            token.logins += 1;
            token.logged_in = is_in && token.handle.is_some();
            token.user = token.logged_in.then(|| caller.party.clone());
            token.last_used = now;
            token.refused_by = (!is_in).then(|| caller.party.clone());
            if is_in {
                // Private keys have come into sight.
                token.directory = None;
                let label = token.label();
                state.note(caller, label, "logged in to the token");
            }
        });
    }

    /// Has something done that takes the PIN each time. `seen` as in [`Self::login`].
    pub(super) async fn perform_with_pin(
        &self,
        caller: &Caller,
        name: &TokenName,
        seen: u64,
        operation: impl Fn(Option<Secret>) -> Operation,
    ) -> Result<KeyReply, TokenError> {
        let lock = self.with(|state| Some(state.tokens.get(name)?.login_lock.clone()));
        let _guard = lock.as_ref().ok_or_else(gone)?.lock().await;
        let is_refused = self.with(|state| {
            let token = state.tokens.get(name);
            token.is_some_and(|token| {
                token.logins != seen && token.refused_by.as_ref() == Some(&caller.party)
            })
        });
        if is_refused {
            return Err(refused());
        }
        let result = self.with_pin(caller, name, operation).await;
        let is_refusal = matches!(&result, Err(error) if error.kind == ErrorKind::NotAllowed);
        self.with(|state| {
            if let Some(token) = state.tokens.get_mut(name) {
                token.logins += 1;
                token.refused_by = is_refusal.then(|| caller.party.clone());
            }
        });
        result
    }

    /// Asks for the PIN until it is right, the user gives up, or the token is locked.
    async fn with_pin(
        &self,
        caller: &Caller,
        name: &TokenName,
        operation: impl Fn(Option<Secret>) -> Operation,
    ) -> Result<KeyReply, TokenError> {
        let mut wrong: Option<Zeroizing<Vec<u8>>> = None;
        let mut repeats = 0;
        loop {
            // How many tries there are changes with each, and with what other programs do.
            let provider = self.with(|state| Some(state.tokens.get(name)?.provider));
            self.list_again(provider.ok_or_else(gone)?).await;
            let (login, label) = self
                .with(|state| {
                    let token = state.tokens.get(name)?;
                    token.handle?;
                    Some((token.info.login, token.label()))
                })
                .ok_or_else(gone)?;
            if login.is_locked || login.is_not_set {
                return Err(refused());
            }
            let pin = match login.has_own_path {
                true => None,
                false => {
                    let question = Question::EnterPin {
                        token: label,
                        was_wrong: wrong.is_some(),
                        tries_left: login.is_last_try.then_some(1),
                        min_length: PIN_LENGTH.0,
                        max_length: PIN_LENGTH.1,
                    };
                    match self.ask(caller, question).await? {
                        PromptAnswer::Pin(pin) => {
                            Some(Zeroizing::new(pin.as_str().as_bytes().to_vec()))
                        }
                        PromptAnswer::NotAsked => {
                            return Err(error(ErrorKind::NotAllowed, NO_ACTIVATION));
                        }
                        _ => return Err(refused()),
                    }
                }
            };
            if pin.is_some() && pin == wrong {
                repeats += 1;
                if repeats > MAX_REPEATS {
                    return Err(refused());
                }
                continue;
            }
            let secret = pin.as_ref().map(|pin| Secret::new(pin.to_vec()));
            let mut answer = self.operate(name, operation(secret)).await;
            if answer == Err(Failure::Key(KeyError::NotLoggedIn)) {
                let login = Operation::Login {
                    pin: pin.as_ref().map(|pin| Secret::new(pin.to_vec())),
                };
                answer = self.operate(name, login).await;
                if answer.is_ok() {
                    self.login_ended(caller, name, true);
                    let secret = pin.as_ref().map(|pin| Secret::new(pin.to_vec()));
                    answer = self.operate(name, operation(secret)).await;
                }
            }
            match answer {
                Err(Failure::Key(KeyError::PinIncorrect | KeyError::PinInvalid)) => {
                    if pin.is_none() {
                        repeats += 1;
                        if repeats > MAX_REPEATS {
                            return Err(refused());
                        }
                    }
                    wrong = pin;
                }
                answer => return Ok(answer?),
            }
        }
    }

    /// Logs out of tokens that nobody has used for some time.
    pub(super) async fn log_out_idle(&self) {
        let due = self.with(|state| {
            let now = state.now;
            let tokens = state.tokens.iter();
            tokens
                .filter(|(_, token)| token.logout_time().is_some_and(|time| time <= now))
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
        });
        self.log_out(due).await;
    }

    /// Logs out of tokens that no document may use any more.
    pub(super) async fn log_out_unused(&self) {
        let due = self.with(|state| {
            let tokens = state.tokens.iter().filter(|(_, token)| token.logged_in);
            tokens
                .map(|(name, _)| *name)
                .filter(|name| {
                    let mut ports = state.ports.values();
                    !ports.any(|port| state.sees_token(&port.caller, name))
                })
                .collect::<Vec<_>>()
        });
        self.log_out(due).await;
    }

    async fn log_out(&self, names: Vec<TokenName>) {
        for name in names {
            let asked = self.with(|state| {
                let token = state.tokens.get_mut(&name)?;
                token.logged_in = false;
                token.directory = None;
                let (provider, token) = state.live(&name).ok()?;
                Some(provider.operate(token, Operation::Logout))
            });
            if let Some(asked) = asked {
                // Where it fails, the token is gone, or forgets its user with its worker.
                let _ = asked.await;
            }
        }
    }

    // What is in tokens.

    /// What is in a token, as it is now.
    pub(super) async fn directory(&self, name: &TokenName) -> Result<Rc<Directory>, Failure> {
        let (asked, lock) = self.with(|state| {
            let asked = state.next();
            let token = state.tokens.get(name).ok_or(Failure::Gone)?;
            Ok((asked, token.read_lock.clone()))
        })?;
        let _guard = lock.lock().await;
        let known = self.with(|state| state.tokens.get(name)?.directory.clone());
        if let Some(known) = known
            && known.read > asked
        {
            return Ok(known);
        }
        // Whoever asks from now on may mean something that is made meanwhile.
        let (read, stored) = self.with(|state| (state.next(), state.stored_keys(name)));
        let keys = match stored {
            Some(keys) => keys,
            None => self.read_keys(name).await?,
        };
        self.with(|state| {
            let directory = Rc::new(Directory::new(read, keys));
            let token = state.tokens.get_mut(name).ok_or(Failure::Gone)?;
            token.directory = Some(directory.clone());
            Ok(directory)
        })
    }

    /// What was last read.
    pub(super) fn known_entry(&self, name: &TokenName, key: &KeyRef) -> Option<Rc<Entry>> {
        self.with(|state| {
            let directory = state.tokens.get(name)?.directory.as_ref()?;
            directory.get(key).cloned()
        })
    }

    async fn read_keys(&self, name: &TokenName) -> Result<Vec<Rc<Entry>>, Failure> {
        let before = self.with(|state| state.tokens.get(name)?.directory.clone());
        let mut infos: Vec<KeyInfo> = Vec::new();
        loop {
            let start = u32::try_from(infos.len()).unwrap_or(u32::MAX);
            let page = self.operate(name, Operation::ListKeys { start }).await?;
            let KeyReply::Keys { keys, more } = page else {
                return Err(Failure::Key(KeyError::Nonsense));
            };
            let is_last = !more || keys.is_empty();
            infos.extend(keys);
            if is_last || infos.len() >= MAX_KEYS {
                break;
            }
        }
        infos.truncate(MAX_KEYS);
        let room = Cell::new(MAX_CERTIFICATES);
        let entries = infos.into_iter().map(|info| {
            let before = before.as_ref().and_then(|before| before.get(&info.key));
            self.read_key(name, info, before.cloned(), &room)
        });
        let entries: Vec<Result<Entry, Failure>> = join_all(entries).await;
        entries
            .into_iter()
            .map(|entry| entry.map(Rc::new))
            .collect()
    }

    /// Reads what is kept with a key, and its certificates.
    pub(super) async fn read_key(
        &self,
        name: &TokenName,
        info: KeyInfo,
        before: Option<Rc<Entry>>,
        room: &Cell<usize>,
    ) -> Result<Entry, Failure> {
        let (now, has_data, mut entry) = self.with(|state| {
            let token = state.tokens.get(name);
            let has_data = token.is_some_and(|token| token.can(TokenFeature::Data));
            let now = state.now;
            (now, has_data, Entry::new(name, info, now))
        });
        if let Some(before) = before
            && before.info == entry.info
            && before.read + REREAD > now
        {
            entry.list = before.list.clone();
            entry.certificates = before.certificates.clone();
            entry.read = before.read;
            return Ok(entry);
        }
        let key = entry.info.key.clone();
        let data = async {
            match has_data {
                true => self.operate(name, Operation::ReadData(key.clone())).await,
                false => Ok(KeyReply::Data(None)),
            }
        };
        let certificates = async {
            match entry.info.has_certificate {
                true => {
                    self.operate(name, Operation::ListCertificates(key.clone()))
                        .await
                }
                false => Ok(KeyReply::Certificates(Vec::new())),
            }
        };
        let (data, certificates) = futures::future::join(data, certificates).await;
        let list = match data {
            Ok(KeyReply::Data(Some(data))) => {
                let list = OriginList::read(&data.0, &binding(&entry.info));
                Some(Rc::new(list))
            }
            // A key that has just gone has none.
            Ok(_) | Err(Failure::Key(KeyError::NoKey | KeyError::Unsupported)) => None,
            // One that cannot be read might forbid it.
            Err(Failure::Key(_)) => Some(Rc::new(OriginList::nobody())),
            Err(failure) => return Err(failure),
        };
        entry.list = match list {
            Some(list) => Some(list),
            None => self.with(|state| state.list_elsewhere(name, &entry)),
        };
        if let Ok(KeyReply::Certificates(certificates)) = certificates
            && let length = certificates.iter().map(|it| it.0.len()).sum()
            && let Some(left) = room.get().checked_sub(length)
        {
            room.set(left);
            let certificates = certificates
                .into_iter()
                .map(|Bytes(der)| Certificate::new(der));
            entry.certificates = Rc::new(certificates.collect());
        }
        Ok(entry)
    }
}

/// How a list names its key.
pub(super) fn binding(info: &KeyInfo) -> [u8; 32] {
    use sha2::Digest;
    match &info.public_key {
        Some(public) => sha2::Sha256::digest(&public.0).into(),
        None => ids::digest(&[b"identifier", &info.identifier]),
    }
}
