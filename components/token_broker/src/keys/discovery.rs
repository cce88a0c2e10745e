/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Finding keys and tokens.

use futures::future::join_all;
use token_traits::keys::{Bytes, KeyInfo, KeyQuery, KeyTokenId, MAX_LABEL, TokenQuery};
use token_traits::prompt::{MAX_NAME_LENGTH, PromptKey, PromptToken, Question};

use super::errors::{NO_ACTIVATION, not_there};
use super::token::{Entry, Token};
use super::*;
use crate::access::grants::{Grant, Lasts, Subject};
use crate::reader::display_name;
use token_traits::Frame;

/// Answers about keys come at multiples of this after the question, so that what they cost tells little.
const BEAT: Duration = Duration::from_millis(10);
/// What an answer may come to, in bytes, so that it fits into a frame.
const MAX_ANSWER: usize = 64 * 1024;
/// Most keys and tokens in a chooser.
const MAX_CHOICES: usize = 50;

/// A key in its token.
pub(super) type Place = (TokenName, Rc<Entry>);

impl State {
    /// A key, as a party sees it. `visible`: all that it may use.
    pub(super) fn key_info(
        &mut self,
        caller: &Caller,
        (name, entry): &Place,
        visible: &[Place],
    ) -> Option<KeyInfo> {
        let token = self.tokens.get(name)?;
        let info = &entry.info;
        let id = self.secret.key_id(&caller.party, name, &info.key);
        let is_unique = visible.iter().all(|(other_name, other)| {
            (other_name == name && other.info.key == info.key)
                || other.info.label != info.label
                || other.info.identifier != info.identifier
        });
        let is_own = entry
            .list
            .as_ref()
            .is_some_and(|list| list.is_creator(&caller.party.origin));
        let key = KeyInfo {
            id,
            token: token.page_info(self.secret.token_id(&caller.party, name)),
            name: info.label.chars().take(MAX_LABEL).collect(),
            identifier: (is_unique && !info.identifier.is_empty())
                .then(|| Bytes(info.identifier.clone())),
            algorithm: info.algorithm,
            usages: info.usages,
            public_key: info.public_key.clone(),
            protection: token.protection(),
            user_verification: query::user_verification(token, info),
            provenance: query::provenance(info),
            is_wrappable: info.is_extractable && info.is_sensitive,
            is_own,
            origins: match &entry.list {
                Some(list) if is_own => list.origins.clone(),
                _ => vec![caller.party.origin.clone()],
            },
        };
        let known = Known {
            party: caller.party.clone(),
            token: *name,
            key: info.key.clone(),
        };
        self.known.insert(id, known);
        Some(key)
    }

    fn place(&self, token: &Token) -> String {
        let provider = self.providers.get(&token.provider);
        let place = match token.info.slot.trim() {
            "" => provider.map_or("", |provider| &provider.place),
            slot => slot,
        };
        display_name(place)
    }

    fn prompt_token(&self, token: &Token) -> PromptToken {
        PromptToken {
            label: token.label(),
            place: self.place(token),
            protection: token.protection(),
        }
    }

    /// Notes what the user has allowed, if there is room for it.
    pub(super) fn grant(
        &mut self,
        caller: &Caller,
        token: &TokenName,
        subject: Subject,
        remember: bool,
    ) -> Result<(), TokenError> {
        let grant = Grant {
            party: caller.party.clone(),
            subject,
            lasts: match remember {
                true => Lasts::UntilRevoked,
                false => Lasts::WithToken(*token),
            },
            created: self.time,
            last_used: None,
        };
        match self.lent.grants.add(grant.clone()) {
            Some(id) if remember => self.effects.push(Effect::Store(Write::Grant(id, grant))),
            Some(_) => {}
            None => {
                log::error!("too many grants: revoke some on the page of tokens");
                return Err(refused());
            }
        }
        Ok(())
    }

    /// The tokens that fit, by the asking party's names.
    fn fitting_tokens(&self, caller: &Caller, query: &TokenQuery) -> Vec<(KeyTokenId, TokenName)> {
        let tokens = self.tokens.iter().filter(|(_, token)| token.present);
        tokens
            .filter(|(_, token)| query::token_fits(query, token, &self.place(token)))
            .map(|(name, _)| (self.secret.token_id(&caller.party, name), *name))
            .collect()
    }

    /// Those of the keys that fit.
    fn fitting_keys(&self, caller: &Caller, query: &KeyQuery, keys: &[Place]) -> Vec<Place> {
        let fits = |(name, entry): &&Place| {
            self.tokens.get(name).is_some_and(|token| {
                let id = self.secret.token_id(&caller.party, name);
                query::is_selected(query.token.as_ref(), id, token, &self.place(token))
                    && query::key_fits(query, token, entry, self.time)
            })
        };
        keys.iter().filter(fits).cloned().collect()
    }
}

impl Shared {
    /// Waits for the next beat since a time.
    async fn on_beat(&self, since: Instant) {
        let now = self.with(|state| state.now);
        let passed = now.saturating_duration_since(since).as_nanos();
        let beats = passed / BEAT.as_nanos() + 1;
        let beats = u32::try_from(beats).unwrap_or(u32::MAX);
        if let Some(until) = since.checked_add(BEAT.saturating_mul(beats)) {
            self.sleep_until(until).await;
        }
    }

    /// Everything in all tokens of which `may_look` holds.
    async fn keys_in(&self, may_look: impl Fn(&State, &TokenName) -> bool) -> Vec<Place> {
        let mut names = self.tokens().await;
        self.with(|state| names.retain(|name| may_look(state, name)));
        let directories = join_all(names.iter().map(|name| self.directory(name))).await;
        let mut keys = Vec::new();
        for (name, directory) in names.iter().zip(directories) {
            // What cannot be read now has nothing.
            if let Ok(directory) = directory {
                keys.extend(directory.keys.iter().map(|entry| (*name, entry.clone())));
            }
        }
        keys
    }

    /// All keys that a document may use now.
    pub(super) async fn visible_keys(&self, caller: &Caller) -> Vec<Place> {
        if !self.with(|state| state.has_anything(caller)) {
            return Vec::new();
        }
        let mut keys = self
            .keys_in(|state, name| state.sees_token(caller, name))
            .await;
        self.with(|state| keys.retain(|(name, entry)| state.may_use(caller, name, entry)));
        keys
    }

    pub(super) async fn get_key_by_name(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<KeysReply, TokenError> {
        let since = self.with(|state| state.now);
        let visible = self.visible_keys(caller).await;
        let found = visible
            .iter()
            .find(|(_, entry)| !name.is_empty() && entry.info.label == name);
        let found = self.with(|state| {
            let info = found.and_then(|found| state.key_info(caller, found, &visible));
            info.into_iter().collect()
        });
        self.on_beat(since).await;
        Ok(KeysReply::Keys(found))
    }

    pub(super) async fn get_keys(
        &self,
        caller: &Caller,
        query: KeyQuery,
    ) -> Result<KeysReply, TokenError> {
        if !query::is_bounded(&query) {
            return Err(too_long());
        }
        let since = self.with(|state| state.now);
        let visible = self.visible_keys(caller).await;
        let found = self.with(|state| {
            let fitting = state.fitting_keys(caller, &query, &visible);
            let infos = fitting
                .iter()
                .filter_map(|found| state.key_info(caller, found, &visible));
            bounded(infos.collect())
        });
        self.on_beat(since).await;
        Ok(KeysReply::Keys(found))
    }

    pub(super) async fn get_tokens(
        &self,
        caller: &Caller,
        query: &TokenQuery,
    ) -> Result<KeysReply, TokenError> {
        if !self.with(|state| state.has_anything(caller)) {
            return Ok(KeysReply::Tokens(Vec::new()));
        }
        self.tokens().await;
        Ok(self.with(|state| {
            let fitting = state.fitting_tokens(caller, query).into_iter();
            let granted = fitting.filter(|(_, name)| state.has_token(caller, name));
            let infos =
                granted.filter_map(|(id, name)| Some(state.tokens.get(&name)?.page_info(id)));
            KeysReply::Tokens(bounded(infos.collect()))
        }))
    }

    pub(super) async fn request_token(
        &self,
        caller: &Caller,
        query: &TokenQuery,
    ) -> Result<KeysReply, TokenError> {
        let is_beforehand = self.with(|state| state.permission(caller)) == PermissionState::Granted;
        if !is_beforehand && !self.is_active(caller).await? {
            return Err(error(ErrorKind::NotAllowed, NO_ACTIVATION));
        }
        self.tokens().await;
        let offer = || self.with(|state| state.fitting_tokens(caller, query));
        let chosen = if is_beforehand {
            let first = offer().into_iter().next().ok_or_else(not_there)?;
            (first, false)
        } else {
            let question = |offered: &[(KeyTokenId, TokenName)]| {
                let tokens = self.with(|state| {
                    let tokens = offered
                        .iter()
                        .filter_map(|(_, name)| state.tokens.get(name));
                    tokens.map(|token| state.prompt_token(token)).collect()
                });
                Question::ChooseToken { tokens }
            };
            self.choose(caller, offer, question).await?
        };
        let ((id, name), remember) = chosen;
        self.with(|state| {
            let token = state.tokens.get(&name).ok_or_else(gone)?;
            let (label, info) = (token.label(), token.page_info(id));
            if !is_beforehand {
                let subject = Subject::Token {
                    token: name,
                    label: label.clone(),
                };
                state.grant(caller, &name, subject, remember)?;
                state.note(caller, label, "token allowed by the user");
            }
            Ok(KeysReply::Token(info))
        })
    }

    /// Has the user choose one of what `offer` says, which is asked again whenever a token comes or goes.
    async fn choose<T: Clone + PartialEq>(
        &self,
        caller: &Caller,
        offer: impl Fn() -> Vec<T>,
        question: impl Fn(&[T]) -> Question,
    ) -> Result<(T, bool), TokenError> {
        let mut change = self.change();
        let mut offered = offer();
        offered.truncate(MAX_CHOICES);
        let mut shown = self.show(caller, question(&offered), None)?;
        loop {
            let Some(answer) = self.answer_or_change(&mut shown, change).await else {
                change = self.change();
                let mut now = offer();
                now.truncate(MAX_CHOICES);
                if now != offered {
                    offered = now;
                    shown = self.show(caller, question(&offered), Some(shown.id))?;
                }
                continue;
            };
            let chosen = match answer {
                PromptAnswer::Chosen { index, remember } => usize::try_from(index)
                    .ok()
                    .and_then(|index| offered.get(index))
                    .map(|chosen| (chosen.clone(), remember)),
                _ => None,
            };
            if chosen.is_none() && answer == PromptAnswer::Refused {
                self.with(|state| {
                    state.note(caller, String::new(), "keys refused by the user");
                });
            }
            return chosen.ok_or_else(refused);
        }
    }

    pub(super) async fn request_key(
        &self,
        caller: &Caller,
        query: KeyQuery,
    ) -> Result<KeysReply, TokenError> {
        if !query::is_bounded(&query) {
            return Err(too_long());
        }
        let since = self.with(|state| state.now);
        let is_beforehand = self.with(|state| state.permission(caller)) == PermissionState::Granted;
        if !is_beforehand && !self.is_active(caller).await? {
            return Err(error(ErrorKind::NotAllowed, NO_ACTIVATION));
        }
        // Those that the user may choose: the origin's own, and those that are nobody's.
        let mut keys = self.keys_in(|_, _| true).await;
        keys.retain(|(_, entry)| {
            let list = entry.list.as_ref();
            list.is_none_or(|list| list.allows(&caller.party.origin))
        });
        let offered = self.with(|state| state.fitting_keys(caller, &query, &keys));
        if offered.is_empty() {
            self.on_beat(since).await;
            return Err(not_there());
        }
        let (place, remember) = if is_beforehand {
            let first = offered.into_iter().next().ok_or_else(not_there)?;
            (first, false)
        } else {
            let choices: Vec<usize> = (0..offered.len()).collect();
            let is_there = |index: &usize| {
                offered.get(*index).is_some_and(|(name, _)| {
                    self.with(|state| state.tokens.get(name).is_some_and(|token| token.present))
                })
            };
            let offer = || choices.iter().copied().filter(is_there).collect();
            let question = |indices: &[usize]| {
                let keys = self.with(|state| {
                    let places = indices.iter().filter_map(|index| offered.get(*index));
                    places.filter_map(|place| state.prompt_key(place)).collect()
                });
                Question::ChooseKey { keys }
            };
            let (index, remember) = self.choose(caller, offer, question).await?;
            (offered.get(index).cloned().ok_or_else(gone)?, remember)
        };
        let (name, entry) = &place;
        self.with(|state| {
            let label = state.tokens.get(name).ok_or_else(gone)?.label();
            let subject = Subject::Key {
                token: *name,
                key: entry.name,
                name: display_name(&entry.info.label),
                label: label.clone(),
            };
            state.grant(caller, name, subject, remember)?;
            state.note(caller, label, "key allowed by the user");
            Ok::<_, TokenError>(())
        })?;
        keys.retain(|(name, entry)| self.with(|state| state.may_use(caller, name, entry)));
        let info = self.with(|state| state.key_info(caller, &place, &keys));
        Ok(KeysReply::Key(Box::new(info.ok_or_else(gone)?)))
    }

    /// What a document means by a key, if it may use it.
    pub(super) async fn resolve(&self, caller: &Caller, id: KeyId) -> Result<Place, TokenError> {
        let find = |state: &State| {
            let known = state.known.get(&id)?;
            (known.party == caller.party).then(|| (known.token, known.key.clone()))
        };
        let mut found = self.with(|state| find(state));
        let mut entry = None;
        if let Some((name, key)) = &found {
            entry = self.known_entry(name, key);
        }
        if entry.is_none() {
            // It was told to another document, before its token's worker ended, or before this broker was started.
            let visible = self.visible_keys(caller).await;
            self.with(|state| {
                for place in &visible {
                    state.key_info(caller, place, &visible);
                }
            });
            found = found.or_else(|| self.with(|state| find(state)));
            if let Some((name, key)) = &found {
                entry = self.known_entry(name, key);
            }
        }
        let (Some((name, _)), Some(entry)) = (found, entry) else {
            return Err(gone());
        };
        match self.with(|state| state.may_use(caller, &name, &entry)) {
            true => Ok((name, entry)),
            false => Err(refused()),
        }
    }

    /// What a document means by a token, if it may use it.
    pub(super) async fn resolve_token(
        &self,
        caller: &Caller,
        id: KeyTokenId,
    ) -> Result<TokenName, TokenError> {
        if !self.with(|state| state.has_anything(caller)) {
            return Err(refused());
        }
        self.tokens().await;
        self.with(|state| {
            let mut tokens = state.tokens.iter();
            let found = tokens.find(|(name, _)| state.secret.token_id(&caller.party, name) == id);
            let (name, token) = found.ok_or_else(gone)?;
            if !state.has_token(caller, name) {
                return Err(refused());
            }
            token.present.then_some(*name).ok_or_else(gone)
        })
    }

    pub(super) async fn forget_key(
        &self,
        caller: &Caller,
        id: KeyId,
    ) -> Result<KeysReply, TokenError> {
        let known = self.with(|state| state.known.get(&id).cloned());
        let Some(known) = known.filter(|known| known.party == caller.party) else {
            return Ok(KeysReply::Done);
        };
        let entry = self.known_entry(&known.token, &known.key);
        self.with(|state| {
            let grants = &mut state.lent.grants;
            let grant =
                entry.and_then(|entry| grants.of_key(&caller.party, &known.token, &entry.name));
            if let Some(grant) = grant {
                grants.remove(grant);
                state.effects.push(Effect::Store(Write::Revoke(grant)));
                let token = state.tokens.get(&known.token).map(Token::label);
                state.note(
                    caller,
                    token.unwrap_or_default(),
                    "key given back by the site",
                );
            }
        });
        Ok(KeysReply::Done)
    }

    pub(super) async fn forget_token(
        &self,
        caller: &Caller,
        id: KeyTokenId,
    ) -> Result<KeysReply, TokenError> {
        self.with(|state| {
            let names: Vec<TokenName> = state.tokens.keys().copied().collect();
            let name = names
                .into_iter()
                .find(|name| state.secret.token_id(&caller.party, name) == id);
            let grants = &mut state.lent.grants;
            let grant = name.and_then(|name| grants.of_token(&caller.party, &name));
            if let Some((grant, name)) = grant.zip(name) {
                grants.remove(grant);
                state.effects.push(Effect::Store(Write::Revoke(grant)));
                let token = state.tokens.get(&name).map(Token::label);
                state.note(
                    caller,
                    token.unwrap_or_default(),
                    "token given back by the site",
                );
            }
        });
        self.log_out_unused().await;
        Ok(KeysReply::Done)
    }
}

impl State {
    fn prompt_key(&self, (name, entry): &Place) -> Option<PromptKey> {
        let token = self.tokens.get(name)?;
        let shown: String = display_name(&entry.info.label);
        Some(PromptKey {
            name: shown.chars().take(MAX_NAME_LENGTH).collect(),
            token: self.prompt_token(token),
            certificate: entry.certificates.first().and_then(|it| it.shown()),
        })
    }
}

/// As many as fit into one answer.
pub(super) fn bounded<T: serde::Serialize>(items: Vec<T>) -> Vec<T> {
    let mut left = MAX_ANSWER;
    items
        .into_iter()
        .map_while(|item| {
            let length = Frame::encode(&item).ok()?.encoded_length();
            left = left.checked_sub(length)?;
            Some(item)
        })
        .collect()
}

pub(super) fn too_long() -> TokenError {
    error(ErrorKind::QuotaExceeded, "the request is too long")
}
