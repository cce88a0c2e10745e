/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Making, deleting and certifying keys.

use serde::{Deserialize, Serialize};
use token_traits::keys::{
    Bytes, KeyAlgorithm, KeyKind, KeyTokenId, MAX_CERTIFICATE, MAX_LABEL, MAX_ORIGINS, NewKey,
    UserVerification,
};
use token_traits::prompt::Question;
use token_workers::key_protocol::{
    self as protocol, KeyError, KeyInfo, KeyReply, KeyUse, Operation, TokenFeature,
};

use super::certificate::Certificate;
use super::discovery::Place;
use super::provider::Failure;
use super::token::{Entry, binding};
use super::*;
use crate::reader::display_name;

const NOT_OWN: &str = "only the site that made the key may do that";

/// A key of a token that keeps none itself, as the store has it. The private part is encrypted by the token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredKey {
    /// The token.
    pub token: TokenName,
    /// What the token's worker said of it when it was made.
    pub info: KeyInfo,
    /// Who may use it.
    pub list: OriginList,
    /// Its own certificate in DER.
    pub certificate: Option<Vec<u8>>,
}

/// CBOR.
#[derive(Deserialize, Serialize)]
struct Encoded {
    #[serde(with = "serde_bytes")]
    token: Vec<u8>,
    info: KeyInfo,
    #[serde(with = "serde_bytes")]
    list: Vec<u8>,
    #[serde(with = "serde_bytes")]
    certificate: Option<Vec<u8>>,
}

impl StoredKey {
    /// Names it.
    pub fn name(&self) -> KeyName {
        ids::key_name(&self.token, &self.info)
    }

    /// As the store keeps it.
    pub fn write(&self) -> Option<Vec<u8>> {
        let encoded = Encoded {
            token: self.token.0.to_vec(),
            info: self.info.clone(),
            list: self.list.write()?,
            certificate: self.certificate.clone(),
        };
        let mut bytes = Vec::new();
        ciborium::into_writer(&encoded, &mut bytes).ok()?;
        Some(bytes)
    }

    /// `None` if it makes no sense.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let encoded: Encoded = ciborium::de::from_reader_with_recursion_limit(bytes, 16).ok()?;
        Some(Self {
            token: TokenName(encoded.token.try_into().ok()?),
            list: OriginList::read(&encoded.list, &binding(&encoded.info)),
            info: encoded.info,
            certificate: encoded.certificate,
        })
    }
}

impl State {
    /// The keys of a token that keeps none itself. `None` for any other token.
    pub(super) fn stored_keys(&self, name: &TokenName) -> Option<Vec<Rc<Entry>>> {
        let token = self.tokens.get(name)?;
        if token.provider != ProviderId::Tpm {
            return None;
        }
        let stored = self.stored.values().filter(|stored| stored.token == *name);
        let stays = stored.map(|stored| {
            let certificate = stored.certificate.clone().map(Certificate::new);
            let mut entry = Entry::new(name, stored.info.clone(), self.now);
            entry.list = Some(Rc::new(stored.list.clone()));
            entry.certificates = Rc::new(certificate.into_iter().collect());
            entry.info.has_certificate = stored.certificate.is_some();
            Rc::new(entry)
        });
        let known = token.known().into_iter().flat_map(|known| &known.keys);
        let temporary = known.filter(|entry| token.temporary.contains_key(&entry.info.key));
        Some(stays.chain(temporary.cloned()).collect())
    }
}

impl Shared {
    pub(super) async fn generate(
        &self,
        caller: &Caller,
        token: KeyTokenId,
        key: NewKey,
    ) -> Result<KeysReply, TokenError> {
        if is_open_ended(key.algorithm) {
            return Err(no_such_length());
        }
        let name = self.resolve_token(caller, token).await?;
        self.make(caller, &name, key, async |new| {
            self.perform(caller, &name, Operation::Generate(new)).await
        })
        .await
    }

    /// Has a key make another one in its token.
    pub(super) async fn make_from(
        &self,
        caller: &Caller,
        place: &Place,
        key: NewKey,
        operation: impl Fn(KeyUse, protocol::NewKey) -> Operation,
    ) -> Result<KeysReply, TokenError> {
        let name = place.0;
        if query::kind(key.algorithm) != KeyKind::Secret {
            let message = "only a secret key can be made so";
            return Err(error(ErrorKind::NotSupported, message));
        }
        // Who may use a key does not thereby get the right to put others beside it.
        if !self.with(|state| state.has_token(caller, &name)) {
            return Err(refused());
        }
        self.make(caller, &name, key, async |new: protocol::NewKey| {
            let operation = |with| operation(with, new.clone());
            self.apply(caller, place, operation).await
        })
        .await
    }

    /// Makes a key, and writes down who may use it, before anybody hears of it.
    async fn make(
        &self,
        caller: &Caller,
        name: &TokenName,
        key: NewKey,
        make: impl AsyncFnOnce(protocol::NewKey) -> Result<KeyReply, TokenError>,
    ) -> Result<KeysReply, TokenError> {
        check(&key)?;
        let own = &caller.party.origin;
        let mut origins = vec![own.clone()];
        for origin in &key.origins {
            if !origins.contains(origin) {
                origins.push(origin.clone());
            }
        }
        let (is_read_only, label) = self
            .with(|state| {
                let token = state.tokens.get(name)?;
                Some((token.info.is_read_only, token.label()))
            })
            .ok_or_else(gone)?;
        if is_read_only {
            return Err(Failure::Key(KeyError::ReadOnly).into());
        }
        let key_name = key.name.clone().unwrap_or_default();
        if origins.len() > 1
            && self.with(|state| state.permission(caller)) != PermissionState::Granted
        {
            let question = Question::ShareKey {
                token: label.clone(),
                name: display_name(&key_name),
                origins: origins[1..].to_vec(),
            };
            match self.ask(caller, question).await? {
                PromptAnswer::Allowed { .. } => {}
                _ => return Err(refused()),
            }
        }
        // Two at a time cannot have the same name either.
        let reserved = (*name, own.clone(), key_name.clone());
        if !key_name.is_empty() {
            let is_free = self.with(|state| state.reserved.insert(reserved.clone()));
            if !is_free {
                return Err(name_taken());
            }
        }
        let result = self
            .make_reserved(caller, name, key, &key_name, origins, make)
            .await;
        self.with(|state| state.reserved.remove(&reserved));
        let place = result?;
        let visible = self.visible_keys(caller).await;
        self.with(|state| {
            state.note(caller, label, "key made");
            let info = state.key_info(caller, &place, &visible);
            Ok(KeysReply::Key(Box::new(info.ok_or_else(gone)?)))
        })
    }

    async fn make_reserved(
        &self,
        caller: &Caller,
        name: &TokenName,
        key: NewKey,
        key_name: &str,
        origins: Vec<Origin>,
        make: impl AsyncFnOnce(protocol::NewKey) -> Result<KeyReply, TokenError>,
    ) -> Result<Place, TokenError> {
        let own = &caller.party.origin;
        if !key_name.is_empty() {
            let directory = self.directory(name).await?;
            let is_taken = directory.keys.iter().any(|entry| {
                let list = entry.list.as_ref();
                entry.info.label == key_name && list.is_some_and(|list| list.allows(own))
            });
            if is_taken {
                return Err(name_taken());
            }
        }
        let auth = self.with(|state| {
            let is_tpm = state.tokens.get(name)?.provider == ProviderId::Tpm;
            is_tpm.then(|| state.secret.auth_value(own))
        });
        let new = protocol::NewKey {
            algorithm: key.algorithm,
            usages: key.usages,
            label: key_name.to_owned(),
            is_wrappable: key.is_wrappable,
            is_persistent: key.is_persistent,
            asks_each_time: key.user_verification == UserVerification::EachUse,
            auth,
        };
        let KeyReply::Key(info) = make(new).await? else {
            return Err(Failure::Key(KeyError::Nonsense).into());
        };
        let list = OriginList {
            key: binding(&info),
            creator: Some(own.clone()),
            origins,
        };
        if let Err(error) = self.keep_list(caller, name, &info, &list).await {
            // A key that nobody may use is of no use.
            self.remove_key(caller, name, &info).await;
            return Err(error);
        }
        let list = Rc::new(list);
        self.with(|state| {
            let mut entry = Entry::new(name, *info, state.now);
            entry.list = Some(list.clone());
            let entry = Rc::new(entry);
            if let Some(token) = state.tokens.get_mut(name)
                && !key.is_persistent
            {
                token.temporary.insert(entry.info.key.clone(), list);
            }
            let key = entry.info.key.clone();
            state.replace_entry(name, &key, Some(entry.clone()));
            Ok((*name, entry))
        })
    }

    /// Writes down who may use a key: with the key, if its token keeps data.
    async fn keep_list(
        &self,
        caller: &Caller,
        name: &TokenName,
        info: &KeyInfo,
        list: &OriginList,
    ) -> Result<(), TokenError> {
        if !info.is_persistent {
            return Ok(());
        }
        let has_data = self.with(|state| {
            let token = state.tokens.get(name)?;
            match token.provider {
                ProviderId::Tpm => {
                    let stored = StoredKey {
                        token: *name,
                        info: info.clone(),
                        list: list.clone(),
                        certificate: None,
                    };
                    let write = Write::StoredKey(Box::new(stored.clone()));
                    state.effects.push(Effect::Store(write));
                    state.stored.insert(stored.name(), Rc::new(stored));
                    None
                }
                ProviderId::Module(_) | ProviderId::Cards => Some(token.can(TokenFeature::Data)),
            }
        });
        match has_data {
            None => Ok(()),
            Some(true) => {
                let data = list.write().ok_or_else(super::discovery::too_long)?;
                let operation = Operation::WriteData {
                    key: info.key.clone(),
                    data: Bytes(data),
                };
                self.perform(caller, name, operation).await.map(|_| ())
            }
            Some(false) => {
                self.with(|state| {
                    let key = ids::key_name(name, info);
                    let write = Write::List(key, list.clone());
                    state.effects.push(Effect::Store(write));
                    state.lists.insert(key, Rc::new(list.clone()));
                });
                Ok(())
            }
        }
    }

    async fn remove_key(&self, caller: &Caller, name: &TokenName, info: &KeyInfo) {
        let auth = self.with(|state| {
            let is_tpm = state.tokens.get(name)?.provider == ProviderId::Tpm;
            is_tpm.then(|| state.secret.auth_value(&caller.party.origin))
        });
        let key = info.key.clone();
        let result = self
            .operate(name, Operation::Delete(KeyUse { key, auth }))
            .await;
        if result.is_err() {
            log::warn!("a key that was made in vain is left in its token");
        }
    }

    /// A key that a document's origin has made.
    async fn own_key(&self, caller: &Caller, id: KeyId) -> Result<Place, TokenError> {
        let place = self.resolve(caller, id).await?;
        let is_own = place
            .1
            .list
            .as_ref()
            .is_some_and(|list| list.is_creator(&caller.party.origin));
        match is_own {
            true => Ok(place),
            false => Err(error(ErrorKind::NotAllowed, NOT_OWN)),
        }
    }

    pub(super) async fn delete(&self, caller: &Caller, id: KeyId) -> Result<KeysReply, TokenError> {
        let place = self.own_key(caller, id).await?;
        self.apply(caller, &place, Operation::Delete).await?;
        let (name, entry) = &place;
        self.with(|state| {
            state.replace_entry(name, &entry.info.key, None);
            if state.stored.remove(&entry.name).is_some() {
                let write = Write::ForgetStoredKey(entry.name);
                state.effects.push(Effect::Store(write));
            }
            if state.lists.remove(&entry.name).is_some() {
                let write = Write::ForgetList(entry.name);
                state.effects.push(Effect::Store(write));
            }
            if let Some(token) = state.tokens.get_mut(name) {
                token.temporary.remove(&entry.info.key);
                let label = token.label();
                state.note(caller, label, "key deleted");
            }
        });
        Ok(KeysReply::Done)
    }

    pub(super) async fn install_certificate(
        &self,
        caller: &Caller,
        id: KeyId,
        certificate: Bytes,
    ) -> Result<KeysReply, TokenError> {
        let place = self.own_key(caller, id).await?;
        if certificate.0.len() > MAX_CERTIFICATE {
            return Err(super::discovery::too_long());
        }
        let read = Certificate::new(certificate.0.clone());
        let of = read.contents.as_ref().map(|contents| &contents.public_key);
        if of.is_none() || of != place.1.info.public_key.as_ref().map(|key| &key.0) {
            let message = "it is not a certificate of that key";
            return Err(error(ErrorKind::Data, message));
        }
        let der = certificate.0.clone();
        let operation = Operation::InstallCertificate {
            key: place.1.info.key.clone(),
            certificate,
        };
        self.certify(caller, &place, Some(der), operation).await
    }

    pub(super) async fn remove_certificate(
        &self,
        caller: &Caller,
        id: KeyId,
    ) -> Result<KeysReply, TokenError> {
        let place = self.own_key(caller, id).await?;
        let operation = Operation::RemoveCertificate(place.1.info.key.clone());
        self.certify(caller, &place, None, operation).await
    }

    async fn certify(
        &self,
        caller: &Caller,
        (name, entry): &Place,
        der: Option<Vec<u8>>,
        operation: Operation,
    ) -> Result<KeysReply, TokenError> {
        let stored = self.with(|state| {
            let stored = state.stored.get(&entry.name)?;
            Some(StoredKey {
                certificate: der.clone(),
                ..StoredKey::clone(stored)
            })
        });
        match stored {
            Some(stored) => self.with(|state| {
                let write = Write::StoredKey(Box::new(stored.clone()));
                state.effects.push(Effect::Store(write));
                state.stored.insert(entry.name, Rc::new(stored));
            }),
            None => {
                self.perform(caller, name, operation).await?;
            }
        }
        self.with(|state| {
            let mut info = entry.info.clone();
            info.has_certificate = der.is_some();
            let mut renewed = Entry::new(name, info, state.now);
            renewed.list = entry.list.clone();
            renewed.certificates = Rc::new(der.map(Certificate::new).into_iter().collect());
            state.replace_entry(name, &entry.info.key, Some(Rc::new(renewed)));
            let label = state.tokens.get(name).map(super::token::Token::label);
            state.note(caller, label.unwrap_or_default(), "certificate changed");
        });
        Ok(KeysReply::Done)
    }

    /// A party's last document has gone, and with it the keys that were made for as long as there is one.
    pub(super) async fn party_gone(&self, party: &Party) {
        let keys: Vec<(TokenName, KeyRef)> = self.with(|state| {
            // In other frames it is the same origin.
            let mut ports = state.ports.values();
            if ports.any(|port| port.caller.party.origin == party.origin) {
                return Vec::new();
            }
            let tokens = state.tokens.iter();
            tokens
                .flat_map(|(name, token)| {
                    let lists = token.temporary.iter();
                    lists
                        .filter(|(_, list)| list.is_creator(&party.origin))
                        .map(|(key, _)| (*name, key.clone()))
                })
                .collect()
        });
        for (name, key) in keys {
            let auth = self.with(|state| {
                let token = state.tokens.get_mut(&name)?;
                token.temporary.remove(&key);
                (token.provider == ProviderId::Tpm).then(|| state.secret.auth_value(&party.origin))
            });
            let delete = Operation::Delete(KeyUse {
                key: key.clone(),
                auth,
            });
            // Where it fails, it goes with the token's worker.
            let _ = self.operate(&name, delete).await;
            self.with(|state| state.replace_entry(&name, &key, None));
        }
    }
}

fn name_taken() -> TokenError {
    let message = "this site has a key of that name in that token";
    error(ErrorKind::NameTaken, message)
}

fn no_such_length() -> TokenError {
    error(
        ErrorKind::NotSupported,
        "no token makes keys of that length",
    )
}

/// Whether it is as long as what it is unwrapped from makes it.
fn is_open_ended(algorithm: KeyAlgorithm) -> bool {
    matches!(
        algorithm,
        KeyAlgorithm::Aes { bits: 0 } | KeyAlgorithm::Secret { bits: 0 }
    )
}

/// Whether a key can be asked for.
fn check(key: &NewKey) -> Result<(), TokenError> {
    let unsupported = |message| Err(error(ErrorKind::NotSupported, message));
    let is_secret = query::kind(key.algorithm) == KeyKind::Secret;
    let bits_fit = match key.algorithm {
        KeyAlgorithm::Rsa { bits } => (1024..=16_384).contains(&bits) && bits % 8 == 0,
        KeyAlgorithm::Ec(_) => true,
        algorithm if is_open_ended(algorithm) => true,
        KeyAlgorithm::Aes { bits } => [128, 192, 256].contains(&bits),
        KeyAlgorithm::Secret { bits } => (8..=4096).contains(&bits) && bits % 8 == 0,
    };
    if !bits_fit {
        return Err(no_such_length());
    }
    if !query::possible_usages(key.algorithm).contains(key.usages) {
        return unsupported("no token makes keys for those usages together");
    }
    if key.is_wrappable && !is_secret {
        return unsupported("only secret keys can be made to be wrapped");
    }
    if key.user_verification == UserVerification::EachUse && is_secret {
        return unsupported("only private keys can ask for their user each time");
    }
    let name = key.name.as_deref().unwrap_or_default();
    if name.len() > MAX_LABEL || key.origins.len() > MAX_ORIGINS {
        return Err(super::discovery::too_long());
    }
    Ok(())
}
