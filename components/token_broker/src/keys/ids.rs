/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Names of tokens and keys: what one party calls a key tells nobody else anything.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use token_traits::Origin;
use token_traits::keys::{KeyId, KeyTokenId};
use token_workers::key_protocol::{KeyInfo, KeyRef, Secret, TokenInfo};
use zeroize::Zeroizing;

use crate::access::grants::{KeyName, Party, TokenName};

/// What one installation has and no other. Made once, kept in the store.
#[derive(Clone, Default)]
pub struct InstallationSecret(pub Zeroizing<[u8; 32]>);

impl fmt::Debug for InstallationSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("InstallationSecret(..)")
    }
}

impl InstallationSecret {
    /// A new one.
    ///
    /// # Panics
    /// If the kernel gives no random bytes: nothing could be kept apart then.
    pub fn random() -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        let mut filled = 0;
        while filled < secret.len() {
            let got = rustix::rand::getrandom(
                &mut secret[filled..],
                rustix::rand::GetRandomFlags::empty(),
            );
            match got {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("no random bytes: {error}"),
            }
        }
        Self(secret)
    }

    /// HMAC-SHA-256 of parts, each with its length before it.
    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        // HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0[..]) else {
            return [0; 32];
        };
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    fn short(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&self.mac(parts)[..16]);
        id
    }

    /// What a party calls a token.
    pub(crate) fn token_id(&self, party: &Party, token: &TokenName) -> KeyTokenId {
        let (origin, top) = (party.origin.as_str(), party.top_level_origin.as_str());
        KeyTokenId(self.short(&[b"token", origin.as_bytes(), top.as_bytes(), &token.0]))
    }

    /// What a party calls a key.
    pub(crate) fn key_id(&self, party: &Party, token: &TokenName, key: &KeyRef) -> KeyId {
        let (origin, top) = (party.origin.as_str(), party.top_level_origin.as_str());
        KeyId(self.short(&[b"key", origin.as_bytes(), top.as_bytes(), &token.0, &key.0]))
    }

    /// What a token that keeps an authValue for each key is to want before it uses one that this origin made. Whoever forgets
    /// to check the origin has another one, and is refused by the token.
    pub(crate) fn auth_value(&self, creator: &Origin) -> Secret {
        Secret::new(self.mac(&[b"auth", creator.as_str().as_bytes()]).to_vec())
    }
}

/// SHA-256 of parts, each with its length before it.
pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What a token says of itself that does not change.
pub(crate) fn token_name(provider: &str, token: &TokenInfo) -> TokenName {
    let mut parts = vec![
        provider.as_bytes(),
        token.manufacturer.as_bytes(),
        token.model.as_bytes(),
        token.serial.as_bytes(),
    ];
    // Without a number there is nothing better.
    if token.serial.trim().is_empty() {
        parts.extend([token.label.as_bytes(), token.slot.as_bytes()]);
    }
    TokenName(digest(&parts))
}

/// A key, whatever holds it: by its public half (SHA-256 of SubjectPublicKeyInfo), else by its place.
pub(crate) fn key_name(token: &TokenName, key: &KeyInfo) -> KeyName {
    KeyName(match &key.public_key {
        Some(public) => Sha256::digest(&public.0).into(),
        None => digest(&[b"secret", &token.0, &key.key.0]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(origin: &str, top_level_origin: &str) -> Party {
        Party {
            origin: Origin::new(origin).unwrap(),
            top_level_origin: Origin::new(top_level_origin).unwrap(),
        }
    }

    #[test]
    fn every_party_and_every_installation_has_its_own_names() {
        const BANK: &str = "https://bank.example";
        const SHOP: &str = "https://shop.example";
        let token = TokenName([1; 32]);
        let key = KeyRef(vec![1, 2, 3]);
        let mut ids = std::collections::HashSet::new();
        let mut tokens = std::collections::HashSet::new();
        for secret in [[1; 32], [2; 32]] {
            let secret = InstallationSecret(Zeroizing::new(secret));
            for (own, top) in [(BANK, BANK), (BANK, SHOP), (SHOP, BANK), (SHOP, SHOP)] {
                let party = party(own, top);
                assert!(tokens.insert(secret.token_id(&party, &token)));
                assert!(ids.insert(secret.key_id(&party, &token, &key)));
                assert!(ids.insert(secret.key_id(&party, &TokenName([2; 32]), &key)));
                assert!(ids.insert(secret.key_id(&party, &token, &KeyRef(vec![1, 2]))));
                assert_eq!(
                    secret.token_id(&party, &token),
                    secret.token_id(&party, &token)
                );
            }
            let auth = |origin| secret.auth_value(&Origin::new(origin).unwrap());
            assert_ne!(auth(BANK), auth(SHOP));
            assert_eq!(auth(BANK), auth(BANK));
            assert_eq!(auth(BANK).expose().len(), 32);
        }
    }
}
