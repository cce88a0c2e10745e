/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The list of origins that is kept with a key, in the token where it keeps data, else in the browser's store.
//!
//! Whoever can write into the token can write anything there, so the list is read within bounds, and one that makes no sense
//! is a list of nobody. It names its key, so that it does not serve another one that comes in its place.

use serde::{Deserialize, Serialize};
use token_traits::Origin;
use token_traits::keys::MAX_ORIGINS;
use token_workers::key_protocol::MAX_DATA_OBJECT;

/// The layout below.
const VERSION: u8 = 1;

/// Who may discover and use a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OriginList {
    /// SHA-256 of the key's SubjectPublicKeyInfo; for a secret key of its identifier.
    pub key: [u8; 32],
    /// Who may delete it and change its certificate. `None` in a list of nobody.
    pub creator: Option<Origin>,
    /// Who may use it, the creator first, at most [`MAX_ORIGINS`] and one.
    pub origins: Vec<Origin>,
}

/// CBOR (RFC 8949): a map with text keys.
#[derive(Deserialize, Serialize)]
struct Encoded {
    version: u8,
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    creator: Origin,
    origins: Vec<Origin>,
}

impl OriginList {
    /// Of nobody.
    pub fn nobody() -> Self {
        Self {
            key: [0; 32],
            creator: None,
            origins: Vec::new(),
        }
    }

    /// Reads the list of the key that is named so. What makes no sense, or is another key's, is nobody's.
    pub fn read(bytes: &[u8], key: &[u8; 32]) -> Self {
        Self::parse(bytes)
            .filter(|list| list.key == *key)
            .unwrap_or_else(Self::nobody)
    }

    /// Reads a list, whatever key it is for.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_DATA_OBJECT {
            return None;
        }
        // Nothing in it is nested deeper than that.
        let Encoded {
            version,
            key,
            creator,
            origins,
        } = ciborium::de::from_reader_with_recursion_limit(bytes, 8).ok()?;
        if version != VERSION || origins.len() > MAX_ORIGINS + 1 {
            return None;
        }
        Some(Self {
            key: key.try_into().ok()?,
            creator: Some(creator),
            origins,
        })
    }

    /// Writes it. `None` if it is too long.
    pub fn write(&self) -> Option<Vec<u8>> {
        let encoded = Encoded {
            version: VERSION,
            key: self.key.to_vec(),
            creator: self.creator.clone()?,
            origins: self.origins.clone(),
        };
        let mut bytes = Vec::new();
        ciborium::into_writer(&encoded, &mut bytes).ok()?;
        (bytes.len() <= MAX_DATA_OBJECT).then_some(bytes)
    }

    /// Whether an origin may use the key.
    pub fn allows(&self, origin: &Origin) -> bool {
        self.origins.contains(origin)
    }

    /// Whether an origin made the key.
    pub fn is_creator(&self, origin: &Origin) -> bool {
        self.creator.as_ref() == Some(origin)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::new(text).unwrap()
    }

    fn list() -> OriginList {
        OriginList {
            key: [7; 32],
            creator: Some(origin("https://bank.example")),
            origins: vec![
                origin("https://bank.example"),
                origin("https://pay.example"),
            ],
        }
    }

    #[test]
    fn a_list_is_for_its_key_only() {
        let bytes = list().write().unwrap();
        assert_eq!(OriginList::read(&bytes, &[7; 32]), list());
        assert_eq!(OriginList::read(&bytes, &[8; 32]), OriginList::nobody());
        assert!(list().allows(&origin("https://pay.example")));
        assert!(!list().allows(&origin("https://shop.example")));
        assert!(list().is_creator(&origin("https://bank.example")));
        assert!(!list().is_creator(&origin("https://pay.example")));
        assert!(!OriginList::nobody().allows(&origin("https://bank.example")));
    }

    #[test]
    fn what_makes_no_sense_is_nobody_s() {
        let bytes = list().write().unwrap();
        for length in 0..bytes.len() {
            assert_eq!(
                OriginList::read(&bytes[..length], &[7; 32]),
                OriginList::nobody()
            );
        }
        let mut many = list();
        many.origins = vec![origin("https://a.example"); MAX_ORIGINS + 2];
        let many = many.write().unwrap();
        assert_eq!(OriginList::read(&many, &[7; 32]), OriginList::nobody());
        let deep = vec![0x81; MAX_DATA_OBJECT];
        assert_eq!(OriginList::read(&deep, &[7; 32]), OriginList::nobody());
        let long = vec![0x40; MAX_DATA_OBJECT + 1];
        assert_eq!(OriginList::read(&long, &[7; 32]), OriginList::nobody());
    }

    proptest! {
        #[test]
        fn anything_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            OriginList::read(&bytes, &[7; 32]);
        }

        #[test]
        fn a_list_that_is_a_little_different_never_panics(at in 0_usize..200, byte in any::<u8>()) {
            let mut bytes = list().write().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            OriginList::read(&bytes, &[7; 32]);
        }
    }
}
