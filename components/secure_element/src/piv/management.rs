/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The management key, 9B (part 2, 3.2.4): cards of any make let whoever has it generate keys and write data objects.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use des::TdesEde3;
use thiserror::Error;
use zeroize::Zeroizing;

/// Algorithm identifiers of symmetric keys (SP 800-78-5, table 13).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ManagementAlgorithm {
    /// Triple DES with three keys, the default of older cards.
    Tdes,
    /// AES-128.
    Aes128,
    /// AES-192, the default of newer cards.
    Aes192,
    /// AES-256.
    Aes256,
}

impl ManagementAlgorithm {
    /// All.
    pub const ALL: [Self; 4] = [Self::Tdes, Self::Aes128, Self::Aes192, Self::Aes256];

    /// The algorithm of that identifier. 00 stands for Triple DES, too.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x00 | 0x03 => Some(Self::Tdes),
            0x08 => Some(Self::Aes128),
            0x0A => Some(Self::Aes192),
            0x0C => Some(Self::Aes256),
            _ => None,
        }
    }

    /// The identifier.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Tdes => 0x03,
            Self::Aes128 => 0x08,
            Self::Aes192 => 0x0A,
            Self::Aes256 => 0x0C,
        }
    }

    /// The length of a key, in bytes.
    pub const fn key_length(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::Tdes | Self::Aes192 => 24,
            Self::Aes256 => 32,
        }
    }

    /// The length of a block, and of a challenge, in bytes.
    pub const fn block_length(self) -> usize {
        match self {
            Self::Tdes => 8,
            Self::Aes128 | Self::Aes192 | Self::Aes256 => 16,
        }
    }
}

/// No management key has that many bytes.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a management key has 16, 24 or 32 bytes, not {0}")]
pub struct ManagementKeyError(pub usize);

/// A management key. It is wiped when it is dropped, and never shown.
#[derive(Clone)]
pub struct ManagementKey(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for ManagementKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ManagementKey")
    }
}

impl ManagementKey {
    /// A key of 16, 24 or 32 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, ManagementKeyError> {
        match bytes.len() {
            16 | 24 | 32 => Ok(Self(Zeroizing::new(bytes.to_vec()))),
            length => Err(ManagementKeyError(length)),
        }
    }

    /// What a key of this length can be used with, the likeliest first.
    pub fn algorithms(&self) -> &'static [ManagementAlgorithm] {
        match self.0.len() {
            16 => &[ManagementAlgorithm::Aes128],
            24 => &[ManagementAlgorithm::Aes192, ManagementAlgorithm::Tdes],
            _ => &[ManagementAlgorithm::Aes256],
        }
    }

    /// Encrypts one block. `None` if key or block are too long or too short for the algorithm.
    pub fn encrypt(&self, algorithm: ManagementAlgorithm, block: &[u8]) -> Option<Vec<u8>> {
        fn with<C: KeyInit + BlockCipherEncrypt>(key: &[u8], block: &[u8]) -> Option<Vec<u8>> {
            let cipher = C::new_from_slice(key).ok()?;
            let mut block = Array::try_from(block).ok()?;
            cipher.encrypt_block(&mut block);
            Some(block.to_vec())
        }
        match algorithm {
            ManagementAlgorithm::Tdes => with::<TdesEde3>(&self.0, block),
            ManagementAlgorithm::Aes128 => with::<Aes128>(&self.0, block),
            ManagementAlgorithm::Aes192 => with::<Aes192>(&self.0, block),
            ManagementAlgorithm::Aes256 => with::<Aes256>(&self.0, block),
        }
    }

    /// Decrypts one block. `None` if key or block are too long or too short for the algorithm.
    pub fn decrypt(&self, algorithm: ManagementAlgorithm, block: &[u8]) -> Option<Vec<u8>> {
        fn with<C: KeyInit + BlockCipherDecrypt>(key: &[u8], block: &[u8]) -> Option<Vec<u8>> {
            let cipher = C::new_from_slice(key).ok()?;
            let mut block = Array::try_from(block).ok()?;
            cipher.decrypt_block(&mut block);
            Some(block.to_vec())
        }
        match algorithm {
            ManagementAlgorithm::Tdes => with::<TdesEde3>(&self.0, block),
            ManagementAlgorithm::Aes128 => with::<Aes128>(&self.0, block),
            ManagementAlgorithm::Aes192 => with::<Aes192>(&self.0, block),
            ManagementAlgorithm::Aes256 => with::<Aes256>(&self.0, block),
        }
    }
}
