/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Cards with a PIV application: NIST SP 800-73-5, and what vendors have added to it.
//!
//! - [`dialogue`]: a course of commands, written down one after the other, that does no input or output: it says what to
//!   send and is told what came back;
//! - [`Card`]: the commands of the application, for such a course;
//! - [`data`]: what data objects contain;
//! - [`key`]: public keys and signatures, between the card's templates and X.509's.
//!
//! Section numbers are those of SP 800-73-5, part 1 (data model) and part 2 (card commands).

mod card;
pub mod data;
pub mod dialogue;
pub mod key;
mod management;

#[cfg(test)]
mod tests;

use thiserror::Error;

pub use self::card::{Card, Generate, Metadata, PinReference, Tries};
pub use self::data::Discovery;
pub use self::management::{ManagementAlgorithm, ManagementKey, ManagementKeyError};
use crate::apdu::StatusWord;

/// The application's AID without its version (part 1, 2.2), by which it is selected.
pub const AID: [u8; 9] = [0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00];

/// The longest response that is put together, in bytes: a certificate in its data object.
pub const MAX_RESPONSE: usize = 20 * 1024;

/// The longest certificate, in bytes, whether it comes compressed or not.
pub const MAX_CERTIFICATE: usize = 16 * 1024;

/// Why something has not come of a command.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum PivError {
    /// The card has no PIV application.
    #[error("the card has no PIV application")]
    NoApplication,
    /// Data object, key or certificate are not there.
    #[error("it is not on the card")]
    NotThere,
    /// It takes a PIN, or the management key, first.
    #[error("the card wants a PIN or the management key first")]
    NotAuthenticated,
    /// The PIN or the unblocking code is wrong.
    #[error("the PIN is wrong")]
    WrongPin {
        /// How often one may try again.
        tries: u8,
    },
    /// No try is left.
    #[error("the PIN is blocked")]
    Blocked,
    /// It has not 6 to 8 printable ASCII characters, so that it cannot be a PIN. Nothing was sent.
    #[error("that cannot be a PIN")]
    InvalidPin,
    /// The card does not take the management key, or does not know it.
    #[error("the management key is wrong")]
    WrongManagementKey,
    /// The card cannot do that.
    #[error("the card does not support it")]
    Unsupported,
    /// The card has no room.
    #[error("the card is full")]
    Full,
    /// What was given is of a length or form that the card cannot take.
    #[error("the data are not what they should be")]
    BadData,
    /// The card's answer is not what the standard says.
    #[error("the card answered nonsense")]
    Nonsense,
    /// A status word without a meaning of its own here.
    #[error("the card answered with status {0}")]
    Status(StatusWord),
}

impl From<StatusWord> for PivError {
    fn from(status: StatusWord) -> Self {
        match status.0 {
            0x6982 => Self::NotAuthenticated,
            0x6983 => Self::Blocked,
            0x63C0..=0x63CF => Self::WrongPin {
                tries: status.sw2() & 0x0F,
            },
            0x6A82 | 0x6A88 => Self::NotThere,
            0x6A84 => Self::Full,
            0x6A80 | 0x6700 => Self::BadData,
            0x6A81 | 0x6A86 | 0x6D00 | 0x6E00 | 0x6884 => Self::Unsupported,
            _ => Self::Status(status),
        }
    }
}

/// A key reference of an asymmetric key (part 1, table 4b, and part 2, table 2): a place for a key and its certificate.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Slot(u8);

impl Slot {
    /// The PIV authentication key.
    pub const AUTHENTICATION: Self = Self(0x9A);
    /// The digital signature key: it takes a PIN for each use.
    pub const SIGNATURE: Self = Self(0x9C);
    /// The key management key: to decrypt, or to agree on secrets.
    pub const KEY_MANAGEMENT: Self = Self(0x9D);
    /// The card authentication key: it takes no PIN.
    pub const CARD_AUTHENTICATION: Self = Self(0x9E);

    /// All: the four that cards have at least, then the retired key management keys.
    pub fn all() -> impl Iterator<Item = Self> {
        let retired = (0x82..=0x95).map(Self);
        [0x9A, 0x9C, 0x9D, 0x9E]
            .map(Self)
            .into_iter()
            .chain(retired)
    }

    /// The slot of that key reference.
    pub fn new(reference: u8) -> Option<Self> {
        matches!(reference, 0x82..=0x95 | 0x9A | 0x9C..=0x9E).then_some(Self(reference))
    }

    /// The key reference.
    pub const fn reference(self) -> u8 {
        self.0
    }

    /// Whether it is one for retired key management keys.
    pub const fn is_retired(self) -> bool {
        matches!(self.0, 0x82..=0x95)
    }

    /// The data object with its certificate (part 1, table 3).
    pub fn certificate(self) -> Object {
        let last = match self.0 {
            0x9A => 0x05,
            0x9C => 0x0A,
            0x9D => 0x0B,
            0x9E => 0x01,
            retired => 0x0D + retired.saturating_sub(0x82),
        };
        Object(0x5F_C100 | u32::from(last))
    }

    /// What the standard calls its key.
    pub fn name(self) -> String {
        match self.0 {
            0x9A => "PIV Authentication".to_owned(),
            0x9C => "Digital Signature".to_owned(),
            0x9D => "Key Management".to_owned(),
            0x9E => "Card Authentication".to_owned(),
            retired => format!("Retired Key Management {}", retired.saturating_sub(0x81)),
        }
    }

    /// When its key takes a PIN, if the card has no policy of its own (part 1, table 4b).
    pub const fn pin_policy(self) -> PinPolicy {
        match self.0 {
            0x9C => PinPolicy::Always,
            0x9E => PinPolicy::Never,
            _ => PinPolicy::Once,
        }
    }
}

/// When a key takes a PIN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PinPolicy {
    /// Never.
    Never,
    /// Once in a session.
    Once,
    /// Right before each use.
    Always,
}

impl PinPolicy {
    /// As it is written in templates and metadata; a policy that a vendor has added is none of these.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Never),
            2 => Some(Self::Once),
            3 => Some(Self::Always),
            _ => None,
        }
    }

    /// As it is written in templates and metadata.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Never => 1,
            Self::Once => 2,
            Self::Always => 3,
        }
    }
}

/// The tag of a data object, one to three bytes as a number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Object(pub u32);

impl Object {
    /// The discovery object (part 1, 3.3.2).
    pub const DISCOVERY: Self = Self(0x7E);
    /// The card holder unique identifier (part 1, 3.1.2).
    pub const CHUID: Self = Self(0x5F_C102);
    /// The card capability container.
    pub const CAPABILITIES: Self = Self(0x5F_C107);
    /// The key history object (part 1, 3.3.3).
    pub const KEY_HISTORY: Self = Self(0x5F_C10C);
    /// Yubico: the certificate of the key that signs attestations.
    pub const ATTESTATION_CERTIFICATE: Self = Self(0x5F_FF01);

    /// The bytes of the tag.
    pub fn to_bytes(self) -> Vec<u8> {
        let bytes = self.0.to_be_bytes();
        bytes.into_iter().skip_while(|byte| *byte == 0).collect()
    }
}

/// Algorithm identifiers of asymmetric keys (SP 800-78-5, table 13; RSA with 4096 bits is a widespread addition).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Algorithm {
    /// RSA with 1024 bits, of old cards.
    Rsa1024,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 3072 bits.
    Rsa3072,
    /// RSA with 4096 bits.
    Rsa4096,
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl Algorithm {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Rsa1024,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
        Self::P256,
        Self::P384,
    ];

    /// The algorithm of that identifier.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.to_byte() == byte)
    }

    /// The identifier.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Rsa1024 => 0x06,
            Self::Rsa2048 => 0x07,
            Self::Rsa3072 => 0x05,
            Self::Rsa4096 => 0x16,
            Self::P256 => 0x11,
            Self::P384 => 0x14,
        }
    }

    /// The length in bytes of a modulus, or of a coordinate: what the private operation takes.
    pub const fn length(self) -> usize {
        match self {
            Self::Rsa1024 => 128,
            Self::Rsa2048 => 256,
            Self::Rsa3072 => 384,
            Self::Rsa4096 => 512,
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// Whether it is RSA.
    pub const fn is_rsa(self) -> bool {
        !matches!(self, Self::P256 | Self::P384)
    }
}
