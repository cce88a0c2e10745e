/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Public keys and signatures, between PKCS#11's encodings and the web's.

use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use crate::key_protocol::{Curve, KeyAlgorithm};

/// The contents of the object identifiers of curves, with their tags: CKA_EC_PARAMS of a named curve.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const P521: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];

/// `id-ecPublicKey` (RFC 5480).
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// `rsaEncryption` with its empty parameters (RFC 8017, A.1).
const RSA_ENCRYPTION: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// CKA_EC_PARAMS of a curve.
pub fn curve_parameters(curve: Curve) -> &'static [u8] {
    match curve {
        Curve::P256 => P256,
        Curve::P384 => P384,
        Curve::P521 => P521,
    }
}

/// The curve that CKA_EC_PARAMS names, if it is a known one.
pub fn curve(parameters: &[u8]) -> Option<Curve> {
    [Curve::P256, Curve::P384, Curve::P521]
        .into_iter()
        .find(|curve| curve_parameters(*curve) == parameters)
}

fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let bytes = length.to_be_bytes();
    let significant = bytes
        .iter()
        .position(|byte| *byte != 0)
        .map_or(&[][..], |first| &bytes[first..]);
    let mut encoded = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => encoded.push(short),
        // A usize has 8 bytes at most.
        _ => {
            encoded.push(0x80 | significant.len() as u8);
            encoded.extend(significant);
        }
    }
    encoded.extend(content);
    encoded
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let first = number.iter().position(|byte| *byte != 0);
    first.map_or(&[], |first| &number[first..])
}

fn integer(number: &[u8]) -> Vec<u8> {
    let digits = without_zeros(number);
    let sign: &[u8] = match digits.first() {
        Some(first) if *first < 0x80 => &[],
        _ => &[0],
    };
    tlv(INTEGER, &[sign, digits])
}

/// SubjectPublicKeyInfo of an RSA key.
pub fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = tlv(SEQUENCE, &[&integer(modulus), &integer(exponent)]);
    tlv(SEQUENCE, &[RSA_ENCRYPTION, &tlv(BIT_STRING, &[&[0], &key])])
}

/// How many bits a modulus has.
pub fn bits(modulus: &[u8]) -> usize {
    let digits = without_zeros(modulus);
    digits
        .first()
        .map_or(0, |first| 8 * digits.len() - first.leading_zeros() as usize)
}

/// SubjectPublicKeyInfo of a point on a curve, from CKA_EC_POINT. Modules give the point in an OCTET STRING, or bare. `None`
/// if it is neither, uncompressed.
pub fn ec_public_key(curve: Curve, ec_point: &[u8]) -> Option<Vec<u8>> {
    let length = 1 + 2 * curve.length();
    let wrapped = wrapped_point(&vec![0; length]);
    let header = &wrapped[..wrapped.len() - length];
    let inside = ec_point.strip_prefix(header);
    let point = inside
        .filter(|point| point.len() == length)
        .unwrap_or(ec_point);
    if point.len() != length || point.first() != Some(&0x04) {
        return None;
    }
    let algorithm = tlv(SEQUENCE, &[EC_PUBLIC_KEY, curve_parameters(curve)]);
    Some(tlv(
        SEQUENCE,
        &[&algorithm, &tlv(BIT_STRING, &[&[0], point])],
    ))
}

/// The point in an OCTET STRING, as some modules want it.
pub fn wrapped_point(point: &[u8]) -> Vec<u8> {
    tlv(OCTET_STRING, &[point])
}

/// What kind of key a SubjectPublicKeyInfo is for, as far as it is one of those that are known.
pub fn algorithm_of(public_key: &[u8]) -> Option<KeyAlgorithm> {
    let info = x509_cert::spki::SubjectPublicKeyInfoRef::from_der(public_key).ok()?;
    let key = info.subject_public_key.as_bytes()?;
    let length = key.len();
    for (curve, parameters) in [
        (Curve::P256, P256),
        (Curve::P384, P384),
        (Curve::P521, P521),
    ] {
        let algorithm = tlv(SEQUENCE, &[EC_PUBLIC_KEY, parameters]);
        if info.algorithm.to_der().ok()? == algorithm {
            return (length == 1 + 2 * curve.length()).then_some(KeyAlgorithm::Ec(curve));
        }
    }
    if info.algorithm.to_der().ok()? != RSA_ENCRYPTION {
        return None;
    }
    let numbers = Vec::<x509_cert::der::asn1::Uint>::from_der(key).ok()?;
    let bits = u16::try_from(bits(numbers.first()?.as_bytes())).ok()?;
    Some(KeyAlgorithm::Rsa { bits })
}

/// What a certificate says, in DER.
pub struct Contents {
    /// Its subject.
    pub subject: Vec<u8>,
    /// Its issuer.
    pub issuer: Vec<u8>,
    /// Its serial number.
    pub serial_number: Vec<u8>,
    /// Whose key it is.
    pub public_key: Vec<u8>,
}

/// Reads a certificate. `None` if it is none.
pub fn certificate(der: &[u8]) -> Option<Contents> {
    let certificate = Certificate::from_der(der).ok()?;
    let contents = certificate.tbs_certificate();
    Some(Contents {
        subject: contents.subject().to_der().ok()?,
        issuer: contents.issuer().to_der().ok()?,
        serial_number: contents.serial_number().to_der().ok()?,
        public_key: contents.subject_public_key_info().to_der().ok()?,
    })
}

/// The halves of an ECDSA signature, each as long as a coordinate. Some modules leave zeros out. `None` if it is none.
pub fn ecdsa_signature(curve: Curve, signature: &[u8]) -> Option<Vec<u8>> {
    let length = curve.length();
    if !signature.len().is_multiple_of(2) || signature.is_empty() || signature.len() > 2 * length {
        return None;
    }
    let (r, s) = signature.split_at(signature.len() / 2);
    let filling = vec![0; length - r.len()];
    Some([&*filling, r, &*filling, s].concat())
}
