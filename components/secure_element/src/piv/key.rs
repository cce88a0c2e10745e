/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Public keys and signatures, between the card's templates and X.509's. DER is read as BER-TLV with definite lengths.

use super::data::{find, only};
use super::{Algorithm, PivError};
use crate::tlv::{self, Reader, Tag};

/// 1.2.840.113549.1.1.1
const RSA_ENCRYPTION: [u8; 9] = [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
/// 1.2.840.10045.2.1
const EC_PUBLIC_KEY: [u8; 7] = [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
/// 1.2.840.10045.3.1.7
const P256: [u8; 8] = [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
/// 1.3.132.0.34
const P384: [u8; 5] = [0x2B, 0x81, 0x04, 0x00, 0x22];

const INTEGER: Tag = Tag(0x02);
const BIT_STRING: Tag = Tag(0x03);
const OBJECT_IDENTIFIER: Tag = Tag(0x06);
const SEQUENCE: Tag = Tag(0x30);

/// A public key that a card can have the other half of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PublicKey {
    /// RSA; both numbers without leading zeros.
    Rsa {
        /// The modulus.
        modulus: Vec<u8>,
        /// The public exponent.
        exponent: Vec<u8>,
    },
    /// A point of a curve.
    Ec {
        /// The curve: one of the two.
        algorithm: Algorithm,
        /// Uncompressed (SEC 1, 2.3.3).
        point: Vec<u8>,
    },
}

impl PublicKey {
    /// Reads what GENERATE ASYMMETRIC KEY PAIR answers (part 2, 3.3.2): the template 7F49.
    pub fn from_template(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, PivError> {
        Self::from_objects(algorithm, only(bytes, 0x7F49)?)
    }

    /// Reads what the template contains; metadata have it like this.
    pub fn from_objects(algorithm: Algorithm, objects: &[u8]) -> Result<Self, PivError> {
        let key = if algorithm.is_rsa() {
            match (find(objects, 0x81)?, find(objects, 0x82)?) {
                (Some(modulus), Some(exponent)) => Self::Rsa {
                    modulus: without_zeros(modulus).to_vec(),
                    exponent: without_zeros(exponent).to_vec(),
                },
                _ => return Err(PivError::Nonsense),
            }
        } else {
            let point = find(objects, 0x86)?.ok_or(PivError::Nonsense)?.to_vec();
            Self::Ec { algorithm, point }
        };
        match key.algorithm() {
            Some(found) if found == algorithm => Ok(key),
            _ => Err(PivError::Nonsense),
        }
    }

    /// What the template contains.
    pub fn to_objects(&self) -> Vec<u8> {
        let mut objects = Vec::new();
        match self {
            Self::Rsa { modulus, exponent } => {
                tlv::write(&mut objects, Tag(0x81), modulus);
                tlv::write(&mut objects, Tag(0x82), exponent);
            }
            Self::Ec { point, .. } => tlv::write(&mut objects, Tag(0x86), point),
        }
        objects
    }

    /// The algorithm, if it is one that cards have: the length of a modulus says which.
    pub fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Rsa { modulus, exponent } => {
                // Its highest bit is set, and the exponent odd.
                let is_full = modulus.first().is_some_and(|byte| byte & 0x80 != 0);
                let is_odd = exponent.last().is_some_and(|byte| byte & 1 != 0);
                let is_short = exponent.len() <= 8;
                Algorithm::ALL.into_iter().find(|algorithm| {
                    let length = algorithm.length();
                    algorithm.is_rsa() && length == modulus.len() && is_full && is_odd && is_short
                })
            }
            Self::Ec { algorithm, point } => {
                let is_long_enough = point.len() == 2 * algorithm.length() + 1;
                let is_uncompressed = point.first() == Some(&0x04);
                (!algorithm.is_rsa() && is_long_enough && is_uncompressed).then_some(*algorithm)
            }
        }
    }

    /// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7; RFC 3279, 2.3.1; RFC 5480, 2).
    pub fn to_spki(&self) -> Vec<u8> {
        let mut identifier = Vec::new();
        let mut key = vec![0];
        match self {
            Self::Rsa { modulus, exponent } => {
                tlv::write(&mut identifier, OBJECT_IDENTIFIER, &RSA_ENCRYPTION);
                tlv::write(&mut identifier, Tag(0x05), &[]);
                let mut numbers = Vec::new();
                write_unsigned(&mut numbers, modulus);
                write_unsigned(&mut numbers, exponent);
                tlv::write(&mut key, SEQUENCE, &numbers);
            }
            Self::Ec { algorithm, point } => {
                tlv::write(&mut identifier, OBJECT_IDENTIFIER, &EC_PUBLIC_KEY);
                let curve = match algorithm {
                    Algorithm::P384 => &P384[..],
                    _ => &P256,
                };
                tlv::write(&mut identifier, OBJECT_IDENTIFIER, curve);
                key.extend(point);
            }
        }
        let mut parts = Vec::new();
        tlv::write(&mut parts, SEQUENCE, &identifier);
        tlv::write(&mut parts, BIT_STRING, &key);
        let mut spki = Vec::new();
        tlv::write(&mut spki, SEQUENCE, &parts);
        spki
    }

    /// Reads a SubjectPublicKeyInfo. [`PivError::Unsupported`] if it is of a kind that cards do not have.
    pub fn from_spki(spki: &[u8]) -> Result<Self, PivError> {
        let mut parts = Reader::new(only(spki, 0x30)?);
        let mut identifier = Reader::new(next(&mut parts, SEQUENCE)?);
        let key = match next(&mut parts, BIT_STRING)? {
            [0, key @ ..] => key,
            _ => return Err(PivError::Nonsense),
        };
        let key = match next(&mut identifier, OBJECT_IDENTIFIER)? {
            oid if oid == RSA_ENCRYPTION => {
                let mut numbers = Reader::new(only(key, 0x30)?);
                let modulus = without_zeros(next(&mut numbers, INTEGER)?).to_vec();
                let exponent = without_zeros(next(&mut numbers, INTEGER)?).to_vec();
                Self::Rsa { modulus, exponent }
            }
            oid if oid == EC_PUBLIC_KEY => {
                let algorithm = match next(&mut identifier, OBJECT_IDENTIFIER)? {
                    oid if oid == P256 => Algorithm::P256,
                    oid if oid == P384 => Algorithm::P384,
                    _ => return Err(PivError::Unsupported),
                };
                let point = key.to_vec();
                Self::Ec { algorithm, point }
            }
            _ => return Err(PivError::Unsupported),
        };
        match key.algorithm() {
            Some(_) => Ok(key),
            None => Err(PivError::Unsupported),
        }
    }

    /// The public key of a certificate (RFC 5280, 4.1). Nothing else of it is checked.
    pub fn of_certificate(certificate: &[u8]) -> Result<Self, PivError> {
        let mut parts = Reader::new(only(certificate, 0x30)?);
        let fields = Reader::new(next(&mut parts, SEQUENCE)?);
        let mut fields = fields.filter(|field| {
            // The version may be missing.
            !matches!(field, Ok(field) if field.tag == Tag(0xA0))
        });
        let mut field = |tag| match fields.next() {
            Some(Ok(field)) if field.tag == tag => Ok(field.value),
            _ => Err(PivError::Nonsense),
        };
        // Serial number, signature algorithm, issuer, validity, subject.
        field(INTEGER)?;
        for _ in 0..4 {
            field(SEQUENCE)?;
        }
        let mut spki = Vec::new();
        tlv::write(&mut spki, SEQUENCE, field(SEQUENCE)?);
        Self::from_spki(&spki)
    }
}

/// The next data object's value, if it has that tag.
fn next<'a>(reader: &mut Reader<'a>, tag: Tag) -> Result<&'a [u8], PivError> {
    match reader.next() {
        Some(Ok(object)) if object.tag == tag => Ok(object.value),
        _ => Err(PivError::Nonsense),
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// An INTEGER that is not negative, of its bytes, most significant first.
pub fn write_unsigned(bytes: &mut Vec<u8>, number: &[u8]) {
    let number = without_zeros(number);
    let is_negative = number.first().is_none_or(|byte| byte & 0x80 != 0);
    let sign = if is_negative { &[0][..] } else { &[] };
    tlv::write(bytes, INTEGER, &[sign, number].concat());
}

/// Makes of an ECDSA signature as cards give it (RFC 3279, 2.2.3) `r` and `s`, each as long as a coordinate.
pub fn plain_signature(algorithm: Algorithm, signature: &[u8]) -> Result<Vec<u8>, PivError> {
    let mut numbers = Reader::new(only(signature, 0x30)?);
    let mut plain = Vec::new();
    for _ in 0..2 {
        let number = without_zeros(next(&mut numbers, INTEGER)?);
        let zeros = algorithm
            .length()
            .checked_sub(number.len())
            .ok_or(PivError::Nonsense)?;
        plain.extend(std::iter::repeat_n(0, zeros));
        plain.extend(number);
    }
    match numbers.next() {
        None => Ok(plain),
        Some(_) => Err(PivError::Nonsense),
    }
}

/// The part of a digest that ECDSA signs on a curve, as long as a coordinate (FIPS 186-5, 6.4.1): its leftmost bits, or all
/// of it behind zeros.
pub fn ecdsa_input(algorithm: Algorithm, digest: &[u8]) -> Vec<u8> {
    let length = algorithm.length();
    let digest = digest.get(..length).unwrap_or(digest);
    let zeros = length.saturating_sub(digest.len());
    [&vec![0; zeros], digest].concat()
}
