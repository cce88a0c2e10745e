/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What is read from certificates. They come from tokens and pages, so they are bounded, and one that cannot be read has
//! nothing that a query could want.

use std::time::SystemTime;

use sha2::{Digest, Sha256};
use token_traits::prompt::PromptCertificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage};

use crate::reader::display_name;

/// A certificate, and what was read from it.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// In DER.
    pub(crate) der: Vec<u8>,
    pub(crate) contents: Option<Contents>,
}

/// What is in a certificate (RFC 5280).
#[derive(Debug)]
pub(crate) struct Contents {
    /// The first bytes of the SHA-256 of the issuer's name in DER.
    pub(crate) issuer: [u8; 4],
    not_before: SystemTime,
    not_after: SystemTime,
    /// Bits as in 4.2.1.3, digitalSignature being 1. All of them where the certificate does not say.
    key_usage: u16,
    /// Purposes, dotted; `None` where the certificate does not say.
    purposes: Option<Vec<String>>,
    /// SubjectPublicKeyInfo in DER.
    pub(crate) public_key: Vec<u8>,
    shown: PromptCertificate,
}

/// `anyExtendedKeyUsage` (4.2.1.12).
const ANY_PURPOSE: &str = "2.5.29.37.0";

impl Certificate {
    /// Reads what can be read.
    pub(crate) fn new(der: Vec<u8>) -> Self {
        let contents = Contents::parse(&der);
        Self { der, contents }
    }

    /// What the user is shown.
    pub(crate) fn shown(&self) -> Option<PromptCertificate> {
        Some(self.contents.as_ref()?.shown.clone())
    }
}

impl Contents {
    fn parse(der: &[u8]) -> Option<Self> {
        let certificate = x509_cert::Certificate::from_der(der).ok()?;
        let certificate = certificate.tbs_certificate();
        let validity = certificate.validity();
        let until = validity.not_after.to_date_time();
        let key_usage = certificate.get_extension::<KeyUsage>().ok()?;
        let purposes = certificate.get_extension::<ExtendedKeyUsage>().ok()?;
        let issuer = Sha256::digest(certificate.issuer().to_der().ok()?);
        Some(Self {
            issuer: *issuer.first_chunk()?,
            not_before: SystemTime::UNIX_EPOCH + validity.not_before.to_unix_duration(),
            not_after: SystemTime::UNIX_EPOCH + until.unix_duration(),
            key_usage: key_usage.map_or(u16::MAX, |(_, usage)| usage.0.bits()),
            purposes: purposes.map(|(_, purposes)| {
                purposes
                    .0
                    .iter()
                    .map(|purpose| purpose.to_string())
                    .collect()
            }),
            public_key: certificate.subject_public_key_info().to_der().ok()?,
            shown: PromptCertificate {
                subject: display_name(&certificate.subject().to_string()),
                issuer: display_name(&certificate.issuer().to_string()),
                expires: format!("{}-{:02}-{:02}", until.year(), until.month(), until.day()),
            },
        })
    }

    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Whether it allows all of these, as in RFC 5280, 4.2.1.3.
    pub(crate) fn allows(&self, key_usages: u16) -> bool {
        self.key_usage & key_usages == key_usages
    }

    /// Whether it allows a purpose, a dotted object identifier.
    pub(crate) fn is_for(&self, purpose: &str) -> bool {
        self.purposes.as_ref().is_none_or(|purposes| {
            purposes
                .iter()
                .any(|allowed| allowed == purpose || allowed == ANY_PURPOSE)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A certificate of 2026 for digital signatures and client authentication, made with OpenSSL.
    const LEAF: &[u8] = include_bytes!("leaf.der");

    #[test]
    fn a_certificate_says_what_it_is_for() {
        let leaf = Certificate::new(LEAF.to_vec());
        let contents = leaf.contents.as_ref().unwrap();
        assert!(contents.allows(1));
        assert!(contents.allows(0));
        assert!(!contents.allows(1 << 2));
        assert!(!contents.allows(1 | 1 << 2));
        assert!(contents.is_for("1.3.6.1.5.5.7.3.2"));
        assert!(!contents.is_for("1.3.6.1.5.5.7.3.1"));
        let shown = leaf.shown().unwrap();
        assert!(shown.subject.contains("CN=Leaf"), "{}", shown.subject);
        assert!(shown.issuer.contains("CN=Root"), "{}", shown.issuer);
        assert_eq!(shown.expires.len(), 10);
        assert!(contents.is_valid(contents.not_before));
        assert!(contents.is_valid(contents.not_after));
        let second = std::time::Duration::from_secs(1);
        assert!(!contents.is_valid(contents.not_before - second));
        assert!(!contents.is_valid(contents.not_after + second));
    }

    #[test]
    fn half_a_certificate_has_nothing() {
        for length in 0..LEAF.len() {
            assert!(Certificate::new(LEAF[..length].to_vec()).contents.is_none());
        }
    }

    proptest! {
        #[test]
        fn a_certificate_that_is_a_little_different_never_panics(at in 0..LEAF.len(), byte in any::<u8>()) {
            let mut der = LEAF.to_vec();
            der[at] = byte;
            Certificate::new(der);
        }
    }
}
