/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Who asks: an origin, as a rule on a card names it.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The identifiers under which rules may name one origin: hashes of its ASCII serialisation (Web
/// API for Accessing Secure Element section 6.2).
///
/// Origins have both. One alone is for rules and tables that know no more.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct AppId {
    sha256: Option<[u8; 32]>,
    sha1: Option<[u8; 20]>,
}

/// The string is not the ASCII serialisation of a tuple origin.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("this is not the ASCII serialisation of an origin")]
pub struct OriginError;

impl AppId {
    /// The identifiers of an origin, given its ASCII serialisation (RFC 6454 section 6.2), for
    /// example `https://bank.example`. An opaque origin (`null`) has none.
    ///
    /// Only what no origin could be is refused: serialising it right is up to the caller.
    pub fn from_origin(origin: &str) -> Result<Self, OriginError> {
        let is_tuple = origin
            .split_once("://")
            .is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty());
        if !is_tuple || !origin.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(OriginError);
        }
        Ok(Self {
            sha256: Some(Sha256::digest(origin).into()),
            sha1: Some(Sha1::digest(origin).into()),
        })
    }

    /// An identifier of hashes that somebody else made. With neither, only rules about everybody
    /// apply.
    pub const fn from_hashes(sha256: Option<[u8; 32]>, sha1: Option<[u8; 20]>) -> Self {
        Self { sha256, sha1 }
    }

    /// The SHA-256.
    pub const fn sha256(&self) -> Option<&[u8; 32]> {
        self.sha256.as_ref()
    }

    /// The SHA-1.
    pub const fn sha1(&self) -> Option<&[u8; 20]> {
        self.sha1.as_ref()
    }
}

/// Does not show the hashes: short origins can be guessed from them.
impl fmt::Debug for AppId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AppId")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf %s https://wallet.example | sha256sum`, and sha1sum.
    #[test]
    fn hashes_of_the_serialisation() {
        let app = AppId::from_origin("https://wallet.example").unwrap();
        assert_eq!(
            app.sha256().map(|hash| hash[..4].to_vec()),
            Some(vec![0x40, 0xD5, 0xFB, 0x05])
        );
        let app = AppId::from_origin("https://shop.example").unwrap();
        assert_eq!(
            app.sha1().map(|hash| hash[..4].to_vec()),
            Some(vec![0x77, 0xE0, 0x64, 0xAB])
        );
        assert_ne!(
            app,
            AppId::from_origin("https://shop.example:8443").unwrap()
        );
    }

    #[test]
    fn what_is_no_origin_has_no_identifier() {
        for text in [
            "",
            "null",
            "https://",
            "://bank.example",
            "https://bänk.example",
            "a://b c",
        ] {
            assert_eq!(AppId::from_origin(text), Err(OriginError), "{text}");
        }
    }

    #[test]
    fn hashes_are_not_shown() {
        let app = AppId::from_hashes(Some([0xAB; 32]), None);
        assert_eq!(format!("{app:?}"), "AppId");
        assert_eq!((app.sha256(), app.sha1()), (Some(&[0xAB; 32]), None));
    }
}
