/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Using keys.

use token_traits::keys::{
    Bytes, Cipher, Curve, KeyAlgorithm, KeyOperation, MAX_DATA, SignatureScheme, Usages, WrapScheme,
};
use token_workers::key_protocol::{KeyError, KeyReply, KeyUse, Operation, Secret};

use super::discovery::{Place, bounded, too_long};
use super::provider::Failure;
use super::*;

/// The longest MAC, in bytes.
const MAX_MAC: usize = 64;
/// The longest label of OAEP, in bytes.
const MAX_OAEP_LABEL: usize = 1024;
/// The longest initialization vector of AES-GCM, and the longest additional data, in bytes.
const MAX_IV: usize = 256;
const MAX_ADDITIONAL_DATA: usize = 4096;
/// The longest encrypted key, in bytes.
const MAX_WRAPPED: usize = 4096;

const WRONG_KIND: &str = "the key is not of the kind that this takes";
const NOT_MEANT: &str = "the key is not meant for it";

impl Shared {
    pub(super) async fn use_key(
        &self,
        caller: &Caller,
        id: KeyId,
        operation: KeyOperation,
    ) -> Result<KeysReply, TokenError> {
        let place = self.resolve(caller, id).await?;
        check(&place.1.info, &operation)?;
        self.with(|state| state.used(caller, &place));
        let wrapped = match &operation {
            KeyOperation::Wrap { key, .. } => Some(self.resolve(caller, *key).await?),
            _ => None,
        };
        match operation {
            KeyOperation::Derive {
                public,
                into: Some(key),
            } => {
                let make = move |with: KeyUse, new| Operation::Derive {
                    key: with,
                    public: public.clone(),
                    into: Some(new),
                };
                self.make_from(caller, &place, key, make).await
            }
            KeyOperation::Unwrap { scheme, data, key } => {
                let make = move |with: KeyUse, new| Operation::Unwrap {
                    with,
                    scheme: scheme.clone(),
                    data: data.clone(),
                    key: new,
                };
                self.make_from(caller, &place, key, make).await
            }
            KeyOperation::Wrap { scheme, .. } => {
                let (name, wrapped) = wrapped.ok_or_else(gone)?;
                if name != place.0 {
                    let message = "both keys have to be in the same token";
                    return Err(error(ErrorKind::InvalidAccess, message));
                }
                // What wraps a key that may not be seen must itself be such a key, and must not decrypt what it has wrapped.
                let with = &place.1.info;
                if !with.is_local || with.usages.contains(Usages::DECRYPT) {
                    let message = "keys are wrapped by keys that the token made, and that do not decrypt data";
                    return Err(error(ErrorKind::InvalidAccess, message));
                }
                let info = &wrapped.info;
                let is_secret = query::kind(info.algorithm) == token_traits::keys::KeyKind::Secret;
                if !info.is_extractable || !is_secret {
                    let message = "the key was not made to be wrapped";
                    return Err(error(ErrorKind::InvalidAccess, message));
                }
                let make = |with: KeyUse| Operation::Wrap {
                    with,
                    scheme: scheme.clone(),
                    key: info.key.clone(),
                };
                reply(self.apply(caller, &place, make).await?)
            }
            KeyOperation::Sign { scheme, data } => {
                let make = |key| Operation::Sign {
                    key,
                    scheme,
                    data: data.clone(),
                };
                reply(self.apply(caller, &place, make).await?)
            }
            KeyOperation::VerifyMac { hash, data, mac } => {
                let make = |key| Operation::VerifyMac {
                    key,
                    hash,
                    data: data.clone(),
                    mac: mac.clone(),
                };
                reply(self.apply(caller, &place, make).await?)
            }
            KeyOperation::Encrypt { cipher, data } => {
                let make = |key| Operation::Encrypt {
                    key,
                    cipher: cipher.clone(),
                    data: data.clone(),
                };
                reply(self.apply(caller, &place, make).await?)
            }
            KeyOperation::Decrypt { cipher, data } => {
                let make = |key| Operation::Decrypt {
                    key,
                    cipher: cipher.clone(),
                    data: data.clone(),
                };
                reply(self.apply(caller, &place, make).await?)
            }
            KeyOperation::Derive { public, into: None } => {
                let make = |key| Operation::Derive {
                    key,
                    public: public.clone(),
                    into: None,
                };
                reply(self.apply(caller, &place, make).await?)
            }
        }
    }

    /// Has a key's token do something with it, with whatever authorizes that.
    pub(super) async fn apply(
        &self,
        caller: &Caller,
        place: &Place,
        operation: impl Fn(KeyUse) -> Operation,
    ) -> Result<KeyReply, TokenError> {
        let (name, entry) = place;
        let used = |auth: Option<Secret>| {
            let key = entry.info.key.clone();
            operation(KeyUse { key, auth })
        };
        self.end_login_of_another(caller, name).await;
        let logins = self.logins(name);
        let result = if entry.info.asks_each_time {
            self.perform_with_pin(caller, name, logins, used).await
        } else {
            let auth = self.with(|state| state.auth(name, entry));
            match self.operate(name, used(auth)).await {
                Err(Failure::Key(KeyError::NotLoggedIn)) => {
                    self.login(caller, name, logins).await?;
                    let auth = self.with(|state| state.auth(name, entry));
                    self.operate(name, used(auth)).await.map_err(Into::into)
                }
                answer => answer.map_err(Into::into),
            }
        };
        // It may have been withdrawn meanwhile.
        if !self.with(|state| state.may_use(caller, name, entry)) {
            return Err(refused());
        }
        if let Err(error) = &result
            && error.kind == ErrorKind::Gone
        {
            // It is looked for again the next time.
            self.with(|state| state.replace_entry(name, &entry.info.key, None));
        }
        result
    }

    pub(super) async fn get_certificates(
        &self,
        caller: &Caller,
        key: KeyId,
    ) -> Result<KeysReply, TokenError> {
        let (name, entry) = self.resolve(caller, key).await?;
        let is_stored = self.with(|state| state.stored.contains_key(&entry.name));
        if is_stored {
            let certificates = entry.certificates.iter();
            let certificates = certificates.map(|it| Bytes(it.der.clone())).collect();
            return Ok(KeysReply::Certificates(certificates));
        }
        let operation = Operation::ListCertificates(entry.info.key.clone());
        match self.perform(caller, &name, operation).await? {
            KeyReply::Certificates(certificates) => {
                Ok(KeysReply::Certificates(bounded(certificates)))
            }
            _ => Err(Failure::Key(KeyError::Nonsense).into()),
        }
    }

    pub(super) async fn attest(
        &self,
        caller: &Caller,
        key: KeyId,
        challenge: [u8; 32],
    ) -> Result<KeysReply, TokenError> {
        let place = self.resolve(caller, key).await?;
        let make = |key| Operation::Attest {
            key,
            challenge: Bytes(challenge.to_vec()),
        };
        match self.apply(caller, &place, make).await? {
            KeyReply::Attestation(attestation) => {
                let bytes = |bytes: Bytes| ciborium::Value::Bytes(bytes.0);
                let text = |text: &str| ciborium::Value::Text(text.to_owned());
                // As in WebAuthn's statement of that format (section 8.3), with the attestation key's public area in place of
                // its certificates.
                let map = ciborium::Value::Map(vec![
                    (text("ver"), text("2.0")),
                    (text("sig"), bytes(attestation.signature)),
                    (text("certInfo"), bytes(attestation.statement)),
                    (text("pubArea"), bytes(attestation.public)),
                    (text("akPub"), bytes(attestation.signer)),
                ]);
                let mut statement = Vec::new();
                ciborium::into_writer(&map, &mut statement)
                    .map_err(|_| TokenError::from(Failure::Key(KeyError::Nonsense)))?;
                Ok(KeysReply::Attestation {
                    format: "tpm".to_owned(),
                    statement: Bytes(statement),
                    chain: Vec::new(),
                })
            }
            _ => Err(Failure::Key(KeyError::Nonsense).into()),
        }
    }
}

impl State {
    /// What authorizes the use of a key whose token keeps an authValue for each.
    pub(super) fn auth(&self, name: &TokenName, entry: &super::token::Entry) -> Option<Secret> {
        if self.tokens.get(name)?.provider != ProviderId::Tpm {
            return None;
        }
        let creator = entry.list.as_ref()?.creator.as_ref()?;
        Some(self.secret.auth_value(creator))
    }

    /// Notes that a grant was used, and for what.
    fn used(&mut self, caller: &Caller, (name, entry): &Place) {
        let grants = &mut self.lent.grants;
        let by = [
            grants.of_token(&caller.party, name),
            grants.of_key(&caller.party, name, &entry.name),
        ];
        for grant in by.into_iter().flatten() {
            if grants.used(grant, self.time) {
                let write = Write::Used(grant, self.time);
                self.effects.push(Effect::Store(write));
            }
        }
        let label = self.tokens.get(name).map(super::token::Token::label);
        self.note(caller, label.unwrap_or_default(), "key used");
    }
}

fn reply(reply: KeyReply) -> Result<KeysReply, TokenError> {
    match reply {
        KeyReply::Bytes(bytes) => Ok(KeysReply::Bytes(bytes)),
        KeyReply::IsGenuine(is_genuine) => Ok(KeysReply::IsGenuine(is_genuine)),
        _ => Err(Failure::Key(KeyError::Nonsense).into()),
    }
}

/// Whether a key can be used so.
fn check(
    info: &token_workers::key_protocol::KeyInfo,
    operation: &KeyOperation,
) -> Result<(), TokenError> {
    let wrong_kind = || Err(error(ErrorKind::InvalidAccess, WRONG_KIND));
    let bad_data = |message| Err(error(ErrorKind::Operation, message));
    let (usage, length) = match operation {
        KeyOperation::Sign { data, .. } => (Usages::SIGN, data.0.len()),
        KeyOperation::VerifyMac { data, .. } => (Usages::VERIFY, data.0.len()),
        KeyOperation::Encrypt { data, .. } => (Usages::ENCRYPT, data.0.len()),
        KeyOperation::Decrypt { data, .. } => (Usages::DECRYPT, data.0.len()),
        KeyOperation::Derive { public, .. } => (Usages::DERIVE, public.0.len()),
        KeyOperation::Wrap { .. } => (Usages::WRAP, 0),
        KeyOperation::Unwrap { data, .. } => (Usages::UNWRAP, data.0.len()),
    };
    let of = info.algorithm;
    let fits = match operation {
        KeyOperation::Sign { scheme, .. } => match scheme {
            SignatureScheme::RsaPkcs1(_) | SignatureScheme::RsaPss { .. } => {
                matches!(of, KeyAlgorithm::Rsa { .. })
            }
            SignatureScheme::Ecdsa => matches!(of, KeyAlgorithm::Ec(_)),
            SignatureScheme::Hmac(_) => matches!(of, KeyAlgorithm::Secret { .. }),
        },
        KeyOperation::VerifyMac { .. } => matches!(of, KeyAlgorithm::Secret { .. }),
        KeyOperation::Encrypt { cipher, .. } | KeyOperation::Decrypt { cipher, .. } => match cipher
        {
            Cipher::RsaOaep { .. } => {
                matches!(of, KeyAlgorithm::Rsa { .. })
                    && matches!(operation, KeyOperation::Decrypt { .. })
            }
            Cipher::AesCbc { .. } | Cipher::AesCtr { .. } | Cipher::AesGcm { .. } => {
                matches!(of, KeyAlgorithm::Aes { .. })
            }
        },
        KeyOperation::Derive { .. } => matches!(of, KeyAlgorithm::Ec(_)),
        KeyOperation::Wrap { scheme, .. } => {
            matches!((scheme, of), (WrapScheme::AesKw, KeyAlgorithm::Aes { .. }))
        }
        KeyOperation::Unwrap { scheme, .. } => matches!(
            (scheme, of),
            (WrapScheme::AesKw, KeyAlgorithm::Aes { .. })
                | (WrapScheme::RsaOaep { .. }, KeyAlgorithm::Rsa { .. })
        ),
    };
    if !fits {
        return wrong_kind();
    }
    // What a key may do that hides before a login is known only then; the token checks it as well.
    if !info.is_hidden && !info.usages.contains(usage) {
        return Err(error(ErrorKind::InvalidAccess, NOT_MEANT));
    }
    if length > MAX_DATA {
        return Err(too_long());
    }
    let is_well_formed = match operation {
        KeyOperation::Sign { scheme, data } => match scheme {
            SignatureScheme::RsaPkcs1(hash) => data.0.len() == hash.length(),
            SignatureScheme::RsaPss { hash, salt_length } => {
                data.0.len() == hash.length() && *salt_length <= 2048
            }
            SignatureScheme::Ecdsa => (20..=64).contains(&data.0.len()),
            SignatureScheme::Hmac(_) => true,
        },
        KeyOperation::VerifyMac { mac, .. } => mac.0.len() <= MAX_MAC,
        KeyOperation::Encrypt { cipher, .. } | KeyOperation::Decrypt { cipher, .. } => match cipher
        {
            Cipher::RsaOaep { label, .. } => label.0.len() <= MAX_OAEP_LABEL,
            Cipher::AesCbc { .. } => true,
            Cipher::AesCtr { bits, .. } => (1..=128).contains(bits),
            Cipher::AesGcm {
                iv,
                additional_data,
                tag_bits,
            } => {
                (1..=MAX_IV).contains(&iv.0.len())
                    && additional_data.0.len() <= MAX_ADDITIONAL_DATA
                    && [32, 64, 96, 104, 112, 120, 128].contains(tag_bits)
            }
        },
        KeyOperation::Derive { public, .. } => match of {
            KeyAlgorithm::Ec(curve) => is_point(curve, &public.0),
            _ => false,
        },
        KeyOperation::Wrap { scheme, .. } => is_wrap_bounded(scheme),
        KeyOperation::Unwrap { scheme, data, .. } => {
            is_wrap_bounded(scheme) && data.0.len() <= MAX_WRAPPED
        }
    };
    match is_well_formed {
        true => Ok(()),
        false => bad_data("the data are too long, too short or not well-formed"),
    }
}

fn is_wrap_bounded(scheme: &WrapScheme) -> bool {
    match scheme {
        WrapScheme::AesKw => true,
        WrapScheme::RsaOaep { label, .. } => label.0.len() <= MAX_OAEP_LABEL,
    }
}

/// Whether it has the form of an uncompressed point (SEC 1, 2.3.3). Whether it is on the curve, the token says.
fn is_point(curve: Curve, bytes: &[u8]) -> bool {
    bytes.len() == 1 + 2 * curve.length() && bytes.first() == Some(&4)
}
