/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What data objects contain. Whatever is not known is passed over; what is known and has another form is an error.

use miniz_oxide::inflate;

use super::{Algorithm, MAX_CERTIFICATE, ManagementAlgorithm, PivError};
use crate::tlv::{self, Reader, Tag};

/// The first data object of that tag.
pub(super) fn find(objects: &[u8], tag: u32) -> Result<Option<&[u8]>, PivError> {
    for object in Reader::new(objects) {
        let object = object.map_err(|_| PivError::Nonsense)?;
        if object.tag == Tag(tag) {
            return Ok(Some(object.value));
        }
    }
    Ok(None)
}

/// The value of the one data object that there is, if it has that tag.
pub(super) fn only(objects: &[u8], tag: u32) -> Result<&[u8], PivError> {
    match Reader::new(objects).only() {
        Ok(object) if object.tag == Tag(tag) => Ok(object.value),
        _ => Err(PivError::Nonsense),
    }
}

/// The answer to SELECT, the application property template (part 2, 3.1.1).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ApplicationProperties {
    /// What the application calls itself; made printable.
    pub label: Option<String>,
    /// The asymmetric algorithms that it says it has. Many say nothing.
    pub algorithms: Vec<Algorithm>,
    /// The symmetric ones.
    pub management_algorithms: Vec<ManagementAlgorithm>,
}

impl ApplicationProperties {
    /// Reads the template 61.
    pub fn parse(bytes: &[u8]) -> Result<Self, PivError> {
        let template = only(bytes, 0x61)?;
        let mut properties = Self {
            label: find(template, 0x50)?.map(printable),
            ..Self::default()
        };
        for object in Reader::new(find(template, 0xAC)?.unwrap_or_default()) {
            let object = object.map_err(|_| PivError::Nonsense)?;
            if let (Tag(0x80), [byte]) = (object.tag, object.value) {
                properties.algorithms.extend(Algorithm::from_byte(*byte));
                let symmetric = ManagementAlgorithm::from_byte(*byte);
                properties.management_algorithms.extend(symmetric);
            }
        }
        Ok(properties)
    }
}

/// At most 64 characters, none of which controls anything.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.chars().filter(|character| !character.is_control());
    text.take(64).collect()
}

/// The discovery object (part 1, 3.3.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Discovery {
    /// The application's own PIN can be used.
    pub has_application_pin: bool,
    /// The card's global PIN can be used.
    pub has_global_pin: bool,
    /// The global one is what its holder knows.
    pub prefers_global_pin: bool,
}

impl Default for Discovery {
    /// What holds for a card without a discovery object.
    fn default() -> Self {
        Self {
            has_application_pin: true,
            has_global_pin: false,
            prefers_global_pin: false,
        }
    }
}

impl Discovery {
    /// Reads the object 7E, its value.
    pub fn parse(value: &[u8]) -> Result<Self, PivError> {
        match find(value, 0x5F2F)? {
            Some([first, second]) => Ok(Self {
                has_application_pin: first & 0x40 != 0,
                has_global_pin: first & 0x20 != 0,
                prefers_global_pin: first & 0x20 != 0 && *second == 0x20,
            }),
            None => Ok(Self::default()),
            Some(_) => Err(PivError::Nonsense),
        }
    }
}

/// The card holder unique identifier (part 1, 3.1.2).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Chuid {
    /// The number under which the card was issued, of federal cards.
    pub fasc_n: Option<Vec<u8>>,
    /// The card's UUID. All zeros, and repeated ones, stand for none.
    pub guid: Option<[u8; 16]>,
    /// YYYYMMDD, as the card writes it.
    pub expiry: Option<[u8; 8]>,
}

impl Chuid {
    /// Reads the object 5FC102, its value. Nobody checks its signature here.
    pub fn parse(value: &[u8]) -> Result<Self, PivError> {
        let mut chuid = Self::default();
        for object in Reader::new(value) {
            let object = object.map_err(|_| PivError::Nonsense)?;
            match object.tag.0 {
                0x30 if object.value.len() <= 25 => chuid.fasc_n = Some(object.value.to_vec()),
                0x34 => {
                    let guid = object.value.try_into().ok();
                    chuid.guid = guid.filter(|guid: &[u8; 16]| guid.iter().any(|b| *b != 0));
                }
                0x35 => chuid.expiry = object.value.try_into().ok(),
                // A signature may be long, and is not needed.
                0x3E => break,
                _ => {}
            }
        }
        Ok(chuid)
    }

    /// The object for a card of that UUID that no authority has issued: its value.
    pub fn self_issued(guid: &[u8; 16], expiry: &[u8; 8]) -> Vec<u8> {
        let mut value = Vec::new();
        // A FASC-N of nines (SP 800-73-5 part 1, 3.1.2): there is no agency.
        let fasc_n: [u8; 25] = [
            0xD4, 0xE7, 0x39, 0xDA, 0x73, 0x9C, 0xED, 0x39, 0xCE, 0x73, 0x9D, 0x83, 0x68, 0x58,
            0x21, 0x08, 0x42, 0x10, 0x84, 0x21, 0xC8, 0x42, 0x10, 0xC3, 0xEB,
        ];
        tlv::write(&mut value, Tag(0x30), &fasc_n);
        tlv::write(&mut value, Tag(0x34), guid);
        tlv::write(&mut value, Tag(0x35), expiry);
        tlv::write(&mut value, Tag(0x3E), &[]);
        tlv::write(&mut value, Tag(0xFE), &[]);
        value
    }
}

/// The certificate in the value of a data object (part 1, appendix A, table 13), unpacked. `None` if the object is empty.
pub fn certificate(value: &[u8]) -> Result<Option<Vec<u8>>, PivError> {
    let Some(certificate) = find(value, 0x70)?.filter(|certificate| !certificate.is_empty()) else {
        return Ok(None);
    };
    let is_compressed = match find(value, 0x71)? {
        Some([info]) => info & 0x01 != 0,
        None => false,
        Some(_) => return Err(PivError::Nonsense),
    };
    let certificate = match is_compressed {
        true => unpack(certificate)?,
        false => certificate.to_vec(),
    };
    match Reader::new(&certificate).only() {
        Ok(object) if object.tag == Tag(0x30) && certificate.len() <= MAX_CERTIFICATE => {
            Ok(Some(certificate))
        }
        _ => Err(PivError::Nonsense),
    }
}

/// The value of a data object with a certificate.
pub fn with_certificate(certificate: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    tlv::write(&mut value, Tag(0x70), certificate);
    tlv::write(&mut value, Tag(0x71), &[0]);
    tlv::write(&mut value, Tag(0xFE), &[]);
    value
}

/// Unpacks gzip (RFC 1952), or zlib, which some cards' tools write. Never more than [`MAX_CERTIFICATE`] bytes.
fn unpack(packed: &[u8]) -> Result<Vec<u8>, PivError> {
    let unpacked = match packed {
        [0x1F, 0x8B, 0x08, flags, _, _, _, _, _, _, rest @ ..] => {
            let deflated = skip_gzip_fields(*flags, rest).ok_or(PivError::Nonsense)?;
            inflate::decompress_to_vec_with_limit(deflated, MAX_CERTIFICATE)
        }
        [first, ..] if first & 0x0F == 0x08 => {
            inflate::decompress_to_vec_zlib_with_limit(packed, MAX_CERTIFICATE)
        }
        _ => return Err(PivError::Nonsense),
    };
    unpacked.map_err(|_| PivError::Nonsense)
}

/// What follows the optional fields of a gzip header (RFC 1952, 2.3.1).
fn skip_gzip_fields(flags: u8, mut rest: &[u8]) -> Option<&[u8]> {
    if flags & 0x04 != 0 {
        let (length, behind) = rest.split_first_chunk::<2>()?;
        rest = behind.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    // The original file's name, and a comment.
    for flag in [0x08, 0x10] {
        if flags & flag != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    match flags & 0x02 {
        0 => Some(rest),
        _ => rest.get(2..),
    }
}
