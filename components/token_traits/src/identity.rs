/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Who is at the other end of a port. Made by the parent process from its own tables, never by content.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::feature::FeatureSet;

/// The longest origin accepted, in bytes: a scheme, a DNS name of 253 bytes and a port fit many times over.
pub const MAX_ORIGIN_LENGTH: usize = 512;

/// A tuple origin in its ASCII serialisation (RFC 6454, section 6.2), for example `https://bank.example`.
/// Opaque origins have no value of this type: they get no port.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Origin(String);

impl Origin {
    /// Takes `scheme://host[:port]`, lower case, ASCII, without a path. Returns `None` for anything else,
    /// `null` (an opaque origin) included.
    pub fn new(serialization: &str) -> Option<Self> {
        if serialization.len() > MAX_ORIGIN_LENGTH {
            return None;
        }
        let (scheme, rest) = serialization.split_once("://")?;
        let scheme_is_valid = scheme.starts_with(|first: char| first.is_ascii_lowercase())
            && scheme.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
            });
        let rest_is_valid = !rest.is_empty()
            && rest.bytes().all(|byte| {
                byte.is_ascii_graphic()
                    && !byte.is_ascii_uppercase()
                    && !b"/?#@\\\"<>".contains(&byte)
            });
        (scheme_is_valid && rest_is_valid).then(|| Self(serialization.to_owned()))
    }

    /// The ASCII serialisation.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before `://`.
    pub fn scheme(&self) -> &str {
        self.0.split("://").next().unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let serialization = String::deserialize(deserializer)?;
        Self::new(&serialization).ok_or_else(|| serde::de::Error::custom("not a tuple origin"))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Origins stay out of logs below `trace`; a prompt or an audit entry asks for [`Origin::as_str`].
impl fmt::Debug for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Origin(..)")
    }
}

/// How the document was fetched, as the parent process knows it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Connection {
    /// HTTPS with a certificate that the engine trusts without an exception, or what a preference takes for that.
    TrustedHttps,
    /// HTTPS, but certificate errors are ignored or the user made an exception.
    HttpsWithException,
    /// Everything else, plain HTTP on a loopback address included.
    Insecure,
}

/// What a port stands for. Immutable for the life of the port.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PortIdentity {
    /// The document's origin, checked by the parent process.
    pub origin: Origin,
    /// The origin of the document at the top of the document's frame tree.
    pub top_level_origin: Origin,
    /// The webview (tab) that the document is in; opaque, unique for the life of the main process.
    pub webview: u64,
    /// The event loop that the document runs in, which is all that one content process has of a site; opaque, unique for the
    /// life of the main process. What the documents of one may take together is bounded.
    pub event_loop: u64,
    /// Whether the webview browses privately.
    pub private: bool,
    /// How the document was fetched.
    pub connection: Connection,
    /// The features that the permissions policy of the document leaves it.
    pub features: FeatureSet,
}

impl PortIdentity {
    /// Whether two documents are of one party: what one of them may do to a card, the other may do as well.
    pub fn is_same_party(&self, other: &Self) -> bool {
        self.origin == other.origin
            && self.top_level_origin == other.top_level_origin
            && self.private == other.private
    }
}

#[cfg(test)]
mod tests {
    use super::Origin;

    #[test]
    fn takes_tuple_origins_only() {
        for good in [
            "https://bank.example",
            "https://bank.example:8443",
            "http://[::1]:80",
            "https://xn--bcher-kva.example",
            "servo-tokens://demo",
        ] {
            assert_eq!(Origin::new(good).expect(good).as_str(), good);
        }
        for bad in [
            "",
            "null",
            "https://",
            "https:bank.example",
            "https://bank.example/",
            "https://user@bank.example",
            "https://Bank.example",
            "https://bücher.example",
            "HTTPS://bank.example",
            "https://bank.example ",
            "1https://bank.example",
        ] {
            assert!(Origin::new(bad).is_none(), "{bad}");
        }
        assert!(Origin::new(&format!("https://{}", "a".repeat(600))).is_none());
    }
}
