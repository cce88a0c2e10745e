/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use js::context::JSContext;
use sha2::{Digest, Sha256};
use token_traits::keys::{
    self, Bytes, KeyKind, MAX_ISSUERS, Protection, Provenance, TokenSelector, UserVerification,
};

use crate::conversions::Convert;
use crate::dom::bindings::buffer_source::get_buffer_source_copy;
use crate::dom::bindings::codegen::Bindings::CryptoKeyBinding::KeyType;
use crate::dom::bindings::codegen::Bindings::TokenKeysBinding::{
    KeyProtection, KeyProvenance, KeyQuery, KeyUserVerification, TokenQuery,
};
use crate::dom::bindings::codegen::UnionTypes::{
    ArrayBufferViewOrArrayBuffer, CryptoTokenOrTokenQuery,
};
use crate::dom::bindings::error::{Error, Fallible};
use crate::dom::bindings::str::DOMString;
use crate::dom::subtlecrypto::token_operation::Wanted;

impl Convert<KeyProtection> for Protection {
    fn convert(self) -> KeyProtection {
        match self {
            Protection::Software => KeyProtection::Software,
            Protection::Isolated => KeyProtection::Isolated,
            Protection::Hardware => KeyProtection::Hardware,
        }
    }
}

impl Convert<Protection> for KeyProtection {
    fn convert(self) -> Protection {
        match self {
            KeyProtection::Software => Protection::Software,
            KeyProtection::Isolated => Protection::Isolated,
            KeyProtection::Hardware => Protection::Hardware,
        }
    }
}

impl Convert<UserVerification> for KeyUserVerification {
    fn convert(self) -> UserVerification {
        match self {
            KeyUserVerification::None => UserVerification::None,
            KeyUserVerification::Session => UserVerification::Session,
            KeyUserVerification::Each_use => UserVerification::EachUse,
        }
    }
}

fn text(value: &Option<DOMString>) -> Option<String> {
    value.clone().map(String::from)
}

fn bytes(source: &ArrayBufferViewOrArrayBuffer) -> Bytes {
    Bytes(get_buffer_source_copy(source.into()))
}

/// What the broker is asked for tokens like these.
pub(crate) fn token_query(query: &TokenQuery) -> keys::TokenQuery {
    keys::TokenQuery {
        label: text(&query.label),
        manufacturer: text(&query.manufacturer),
        model: text(&query.model),
        reader: text(&query.reader),
        minimum_protection: query.minimumProtection.convert(),
        provisionable: query.provisionable,
    }
}

/// What the broker is asked for keys like these, and what the keys that it finds are to be used with.
pub(crate) fn key_query(
    cx: &mut JSContext,
    query: &KeyQuery,
) -> Fallible<(keys::KeyQuery, Wanted)> {
    let usages = query.usages.clone().unwrap_or_default();
    let wanted = Wanted::from_query(cx, query.algorithm.as_ref(), usages)?;
    let (algorithm, usages) = wanted.query()?;

    let issuers = query.certificateIssuers.as_deref().unwrap_or_default();
    if issuers.len() > MAX_ISSUERS {
        return Err(Error::QuotaExceeded {
            quota: None,
            requested: None,
        });
    }
    let purposes = query.extendedKeyUsages.iter().flatten();
    let extended_key_usages: Vec<String> = purposes
        .map(|purpose| String::from(purpose.clone()))
        .collect();
    let is_identifier = |text: &String| {
        text.contains('.') &&
            text
                .split('.')
                .all(|arc| !arc.is_empty() && arc.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if !extended_key_usages.iter().all(is_identifier) {
        return Err(Error::Type(
            c"extendedKeyUsages takes dotted object identifiers.".into(),
        ));
    }

    let query = keys::KeyQuery {
        name: text(&query.name),
        identifier: query.keyIdentifier.as_ref().map(bytes),
        public_key: query.publicKey.as_ref().map(bytes),
        algorithms: algorithm.into_iter().collect(),
        kind: match query.type_ {
            None => None,
            Some(KeyType::Private) => Some(KeyKind::Private),
            Some(KeyType::Secret) => Some(KeyKind::Secret),
            Some(KeyType::Public) => {
                return Err(Error::Type(c"Tokens keep private and secret keys.".into()));
            },
        },
        usages,
        token: query.token.as_ref().map(|token| match token {
            CryptoTokenOrTokenQuery::CryptoToken(token) => TokenSelector::Is(token.token_id()),
            CryptoTokenOrTokenQuery::TokenQuery(query) => TokenSelector::Like(token_query(query)),
        }),
        minimum_protection: query.minimumProtection.convert(),
        user_verification: query.userVerification.map(Convert::convert),
        provenance: query.provenance.map(|provenance| match provenance {
            KeyProvenance::Unknown => Provenance::Unknown,
            KeyProvenance::Imported => Provenance::Imported,
            KeyProvenance::Generated => Provenance::Generated,
        }),
        attestable: query.attestable,
        issuers: issuers
            .iter()
            .map(|issuer| {
                let digest = Sha256::digest(get_buffer_source_copy(issuer.into()));
                [digest[0], digest[1], digest[2], digest[3]]
            })
            .collect(),
        // The values of the enumeration are in the order of the bits.
        certificate_key_usages: query
            .certificateKeyUsages
            .iter()
            .flatten()
            .fold(0, |bits, usage| bits | (1 << (*usage as u16))),
        extended_key_usages,
        valid_certificate: query.validCertificate,
    };
    Ok((query, wanted))
}
