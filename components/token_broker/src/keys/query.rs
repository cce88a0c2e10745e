/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What fits a query.

use std::time::SystemTime;

use token_traits::keys::{
    AlgorithmQuery, KeyAlgorithm, KeyKind, KeyQuery, KeyTokenId, MAX_ISSUERS, MAX_LABEL,
    MAX_PUBLIC_KEY, Provenance, TokenQuery, TokenSelector, Usages, UserVerification,
};
use token_workers::key_protocol::{KeyInfo, TokenFeature};

use super::token::{Entry, Token};

/// Most purposes in a query, and most algorithms.
const MAX_ITEMS: usize = 64;

/// Whether a query keeps to its bounds.
pub(super) fn is_bounded(query: &KeyQuery) -> bool {
    query.issuers.len() <= MAX_ISSUERS
        && query
            .name
            .as_ref()
            .is_none_or(|name| name.len() <= MAX_LABEL)
        && query.identifier.as_ref().is_none_or(|it| it.0.len() <= 256)
        && query
            .public_key
            .as_ref()
            .is_none_or(|it| it.0.len() <= MAX_PUBLIC_KEY)
        && query.algorithms.len() <= MAX_ITEMS
        && query.extended_key_usages.len() <= MAX_ITEMS
}

/// Whether a token, which the asking party calls so, fits.
pub(super) fn is_selected(
    selector: Option<&TokenSelector>,
    id: KeyTokenId,
    token: &Token,
    place: &str,
) -> bool {
    match selector {
        None => true,
        Some(TokenSelector::Is(wanted)) => *wanted == id,
        Some(TokenSelector::Like(query)) => token_fits(query, token, place),
    }
}

/// Whether a token fits. `place`: what the user calls its provider.
pub(super) fn token_fits(query: &TokenQuery, token: &Token, place: &str) -> bool {
    let is = |wanted: &Option<String>, what: &str| {
        wanted
            .as_ref()
            .is_none_or(|wanted| wanted.trim() == what.trim())
    };
    let info = &token.info;
    is(&query.label, &token.label())
        && is(&query.manufacturer, &info.manufacturer)
        && is(&query.model, &info.model)
        && (is(&query.reader, &info.slot) || is(&query.reader, place))
        && query.minimum_protection <= token.protection()
        && query
            .provisionable
            .is_none_or(|wanted| wanted != info.is_read_only)
}

/// Whether a key fits, which is in a token that does.
pub(super) fn key_fits(query: &KeyQuery, token: &Token, entry: &Entry, now: SystemTime) -> bool {
    let info = &entry.info;
    let name_fits = query.name.as_ref().is_none_or(|name| *name == info.label);
    let identifier = query.identifier.as_ref();
    let public_key = query.public_key.as_ref();
    let leaf = entry
        .certificates
        .first()
        .and_then(|certificate| certificate.contents.as_ref());
    let needs_leaf = query.certificate_key_usages != 0
        || !query.extended_key_usages.is_empty()
        || query.valid_certificate.is_some();
    let leaf_fits = match leaf {
        None => !needs_leaf,
        Some(leaf) => {
            leaf.allows(query.certificate_key_usages)
                && query
                    .extended_key_usages
                    .iter()
                    .all(|purpose| leaf.is_for(purpose))
                && query
                    .valid_certificate
                    .is_none_or(|wanted| wanted == leaf.is_valid(now))
        }
    };
    let issuer_fits = query.issuers.is_empty()
        || entry.certificates.iter().any(|certificate| {
            let contents = certificate.contents.as_ref();
            contents.is_some_and(|contents| query.issuers.contains(&contents.issuer))
        });
    let algorithms: &[AlgorithmQuery] = &query.algorithms;
    name_fits
        && identifier.is_none_or(|it| !it.0.is_empty() && it.0 == info.identifier)
        && public_key.is_none_or(|key| info.public_key.as_ref() == Some(key))
        && (algorithms.is_empty() || algorithms.iter().any(|it| it.fits(info.algorithm)))
        && query
            .kind
            .is_none_or(|wanted| wanted == kind(info.algorithm))
        && info.usages.contains(query.usages)
        && query.minimum_protection <= token.protection()
        && query
            .user_verification
            .is_none_or(|wanted| wanted == user_verification(token, info))
        && query
            .provenance
            .is_none_or(|wanted| wanted == provenance(info))
        && query
            .attestable
            .is_none_or(|wanted| wanted == is_attestable(token, info))
        && leaf_fits
        && issuer_fits
}

pub(super) fn kind(algorithm: KeyAlgorithm) -> KeyKind {
    match algorithm {
        KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ec(_) => KeyKind::Private,
        KeyAlgorithm::Aes { .. } | KeyAlgorithm::Secret { .. } => KeyKind::Secret,
    }
}

/// What keys of a kind can be used for.
pub(super) fn possible_usages(algorithm: KeyAlgorithm) -> Usages {
    match algorithm {
        KeyAlgorithm::Rsa { .. } => Usages::SIGN.and(Usages::DECRYPT).and(Usages::UNWRAP),
        KeyAlgorithm::Ec(_) => Usages::SIGN.and(Usages::DERIVE),
        KeyAlgorithm::Aes { .. } => Usages::ENCRYPT
            .and(Usages::DECRYPT)
            .and(Usages::WRAP)
            .and(Usages::UNWRAP),
        KeyAlgorithm::Secret { .. } => Usages::SIGN.and(Usages::VERIFY),
    }
}

pub(super) fn user_verification(token: &Token, info: &KeyInfo) -> UserVerification {
    if info.asks_each_time {
        UserVerification::EachUse
    } else if token.info.login.is_required {
        UserVerification::Session
    } else {
        UserVerification::None
    }
}

pub(super) fn provenance(info: &KeyInfo) -> Provenance {
    if info.is_hidden {
        Provenance::Unknown
    } else if info.is_local && info.is_sensitive {
        Provenance::Generated
    } else if info.is_local {
        Provenance::Unknown
    } else {
        Provenance::Imported
    }
}

fn is_attestable(token: &Token, info: &KeyInfo) -> bool {
    token.can(TokenFeature::Attest) && kind(info.algorithm) == KeyKind::Private
}
