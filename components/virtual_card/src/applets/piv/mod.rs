/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A PIV application (NIST SP 800-73-5), with the additions of Yubico's that tools expect.
//!
//! Class 00, on any channel; chaining is 10. What a PIN or the management key has opened is known per channel.
//!
//! | INS | P1 P2 | data | answer |
//! |---|---|---|---|
//! | CB GET DATA | 3F FF | 5C tag | the object; 6A82 |
//! | DB PUT DATA | 3F FF | 5C tag, 53 value | 9000; 6982 without the management key; 6A84 if it is too much |
//! | 20 VERIFY | 00 80 | PIN | 9000; 63Cx; 6983 |
//! | | 00 80 | none | 9000 if the PIN was verified on this channel, else 63Cx or 6983 |
//! | | FF 80 | none | 9000; it is no longer verified on this channel |
//! | 24 CHANGE REFERENCE DATA | 00 80, 00 81 | PIN or PUK, new one | as VERIFY |
//! | 2C RESET RETRY COUNTER | 00 80 | PUK, new PIN | as VERIFY, for the PUK |
//! | 47 GENERATE | 00 slot | AC { 80 algorithm, AA PIN policy } | 7F49 { .. }; 6982 without the management key |
//! | 87 GENERAL AUTHENTICATE | algorithm slot | 7C { 82, 81 .. }, 7C { 82, 85 .. } | 7C { 82 .. }; 6982 without a PIN |
//! | 87 | algorithm 9B | 7C { 81 }, 7C { 80 }, .. | the management key, in one direction or in both |
//! | F6 | FF slot | none | 9000, the key is deleted; 6982 without the management key |
//! | F7 GET METADATA | 00 slot, 80, 81 or 9B | none | 01, 02, 03, 04, 05, 06 |
//! | F8 | 00 00 | none | the serial number, 4 bytes |
//! | FD | 00 00 | none | the version, 3 bytes |
//! | FF SET MANAGEMENT KEY | FF FF | algorithm, 9B, length, key | 9000; 6982 without the management key |

mod keys;

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::{ChannelNumber, without_channel};
use secure_element::piv::data::Chuid;
use secure_element::piv::{Algorithm, ManagementAlgorithm, ManagementKey, Object, PinPolicy, Slot};
use secure_element::tlv::{self, Reader, Tag};

pub use self::keys::{Failed, PrivateKey};
use super::aid;
use super::pin::Secret;
use crate::{Applet, Outcome, Parts, Selection};

/// Its AID, with the version.
pub const AID: [u8; 11] = [0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0, 0x01, 0];
/// The PIN at first.
pub const PIN: [u8; 6] = *b"123456";
/// The PUK at first.
pub const PUK: [u8; 8] = *b"12345678";
/// Wrong PINs, and wrong PUKs, until it is blocked.
pub const TRIES: u8 = 3;
/// The management key at first, Triple DES.
pub const MANAGEMENT_KEY: [u8; 24] = [
    1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
];
/// Its serial number.
pub const SERIAL: [u8; 4] = [0x00, 0x53, 0x45, 0x52];
/// What it says is its version.
pub const VERSION: [u8; 3] = [5, 7, 0];
/// The UUID in its CHUID.
pub const GUID: [u8; 16] = *b"SERVO-PIV-000001";

/// All data objects together, in bytes.
const MAX_OBJECTS: usize = 64 * 1024;

const SECURITY_STATUS_NOT_SATISFIED: StatusWord = StatusWord(0x6982);
const INCORRECT_DATA: StatusWord = StatusWord(0x6A80);
const FULL: StatusWord = StatusWord(0x6A84);
const REFERENCE_NOT_FOUND: StatusWord = StatusWord(0x6A88);
const EXECUTION_ERROR: StatusWord = StatusWord(0x6F00);

const REFERENCE_PIN: u8 = 0x80;
const REFERENCE_PUK: u8 = 0x81;
const REFERENCE_MANAGEMENT_KEY: u8 = 0x9B;

type Answer = Result<Vec<u8>, StatusWord>;

/// The application.
#[derive(Debug)]
pub struct Piv {
    pin: Secret<8>,
    puk: Secret<8>,
    /// `None` if there is none, so that nobody can show it.
    management_key: Option<(ManagementAlgorithm, ManagementKey)>,
    keys: BTreeMap<Slot, Key>,
    objects: BTreeMap<Object, Vec<u8>>,
    /// The channels on which the PIN was verified.
    verified: BTreeSet<u8>,
    /// Those on which that was the last command.
    just_verified: BTreeSet<u8>,
    /// Those on which the management key was shown.
    managed: BTreeSet<u8>,
    /// What the card waits for in an authentication with the management key.
    expected: BTreeMap<u8, Expected>,
}

#[derive(Debug)]
struct Key {
    private: PrivateKey,
    pin_policy: PinPolicy,
    is_generated: bool,
}

#[derive(Debug)]
enum Expected {
    /// The challenge of the card, encrypted.
    Response(Vec<u8>),
    /// The witness of the card, in the clear.
    Witness(Vec<u8>),
}

impl Piv {
    /// The application as it is at first: without keys.
    pub fn new() -> Self {
        let mut discovery = Vec::new();
        tlv::write(&mut discovery, Tag(0x4F), &AID);
        // The application's PIN only (SP 800-73-5 part 1, 3.3.2).
        tlv::write(&mut discovery, Tag(0x5F2F), &[0x40, 0x00]);
        let mut history = Vec::new();
        tlv::write(&mut history, Tag(0xC1), &[0]);
        tlv::write(&mut history, Tag(0xC2), &[0]);
        tlv::write(&mut history, Tag(0xFE), &[]);
        let objects = [
            (Object::DISCOVERY, discovery),
            (Object::CHUID, Chuid::self_issued(&GUID, b"20991231")),
            (Object::KEY_HISTORY, history),
        ];
        Self {
            pin: Secret::new(padded(&PIN), TRIES),
            puk: Secret::new(padded(&PUK), TRIES),
            management_key: management_key(ManagementAlgorithm::Tdes, &MANAGEMENT_KEY),
            keys: BTreeMap::new(),
            objects: objects.into(),
            verified: BTreeSet::new(),
            just_verified: BTreeSet::new(),
            managed: BTreeSet::new(),
            expected: BTreeMap::new(),
        }
    }

    /// With a key that comes from outside, under the slot's own PIN policy.
    #[must_use]
    pub fn with_key(mut self, slot: Slot, private: PrivateKey) -> Self {
        let key = Key {
            private,
            pin_policy: slot.pin_policy(),
            is_generated: false,
        };
        self.keys.insert(slot, key);
        self
    }

    /// With another management key. One of another length than the algorithm wants is none, which nobody can show.
    #[must_use]
    pub fn with_management_key(mut self, algorithm: ManagementAlgorithm, key: &[u8]) -> Self {
        self.management_key = management_key(algorithm, key);
        self
    }

    fn forget(&mut self, channel: u8) {
        self.verified.remove(&channel);
        self.just_verified.remove(&channel);
        self.managed.remove(&channel);
        self.expected.remove(&channel);
    }

    fn get_data(&self, p1: u8, p2: u8, data: &[u8]) -> Answer {
        if (p1, p2) != (0x3F, 0xFF) {
            return Err(StatusWord::INCORRECT_P1_P2);
        }
        let object = match Reader::new(data).only() {
            Ok(list) if list.tag == Tag(0x5C) => object(list.value)?,
            _ => return Err(INCORRECT_DATA),
        };
        let value = self.objects.get(&object).ok_or(StatusWord::NOT_FOUND)?;
        let tag = match object {
            Object::DISCOVERY => Tag(0x7E),
            _ => Tag(0x53),
        };
        Ok(wrapped(tag, value))
    }

    fn put_data(&mut self, channel: u8, p1: u8, p2: u8, data: &[u8]) -> Answer {
        if !self.managed.contains(&channel) {
            return Err(SECURITY_STATUS_NOT_SATISFIED);
        }
        if (p1, p2) != (0x3F, 0xFF) {
            return Err(StatusWord::INCORRECT_P1_P2);
        }
        let mut parts = Reader::new(data);
        let object = match parts.next() {
            Some(Ok(list)) if list.tag == Tag(0x5C) => object(list.value)?,
            _ => return Err(INCORRECT_DATA),
        };
        let value = match parts.only() {
            Ok(value) if value.tag == Tag(0x53) && object != Object::DISCOVERY => value.value,
            _ => return Err(INCORRECT_DATA),
        };
        let others = self.objects.iter().filter(|(other, _)| **other != object);
        let length: usize = others.map(|(_, value)| value.len() + 4).sum();
        if length + value.len() > MAX_OBJECTS {
            return Err(FULL);
        }
        if value.is_empty() {
            self.objects.remove(&object);
        } else {
            self.objects.insert(object, value.to_vec());
        }
        Ok(Vec::new())
    }

    /// The PIN or the PUK.
    fn secret(&mut self, reference: u8) -> Result<&mut Secret<8>, StatusWord> {
        match reference {
            REFERENCE_PIN => Ok(&mut self.pin),
            REFERENCE_PUK => Ok(&mut self.puk),
            _ => Err(REFERENCE_NOT_FOUND),
        }
    }

    /// What comes of comparing the PIN.
    fn pin_compared(&mut self, channel: u8, status: StatusWord) -> Answer {
        if status.is_ok() {
            self.verified.insert(channel);
            self.just_verified.insert(channel);
            return Ok(Vec::new());
        }
        self.verified.remove(&channel);
        if self.pin.tries == 0 {
            self.verified.clear();
        }
        Err(status)
    }

    fn verify(&mut self, channel: u8, p1: u8, p2: u8, data: &[u8]) -> Answer {
        if p2 != REFERENCE_PIN {
            return Err(REFERENCE_NOT_FOUND);
        }
        match (p1, data) {
            (0x00, []) if self.verified.contains(&channel) => Ok(Vec::new()),
            (0x00, []) => Err(self.pin.state()),
            (0x00, _) => {
                let pin = pin(data)?;
                let status = self.pin.compare(&pin);
                self.pin_compared(channel, status)
            }
            (0xFF, []) => {
                self.verified.remove(&channel);
                Ok(Vec::new())
            }
            (0xFF, _) => Err(StatusWord::WRONG_LENGTH),
            _ => Err(StatusWord::INCORRECT_P1_P2),
        }
    }

    fn change(&mut self, channel: u8, p1: u8, p2: u8, data: &[u8]) -> Answer {
        let secret = self.secret(p2)?;
        let (old, new) = pair(p1, data)?;
        // Of what it cannot be no try is spent.
        let new = if p2 == REFERENCE_PIN { pin(&new)? } else { new };
        let status = secret.compare(&old);
        if status.is_ok() {
            secret.value = new;
        }
        match p2 {
            REFERENCE_PIN => self.pin_compared(channel, status),
            _ if status.is_ok() => Ok(Vec::new()),
            _ => Err(status),
        }
    }

    fn reset_retry_counter(&mut self, p1: u8, p2: u8, data: &[u8]) -> Answer {
        if p2 != REFERENCE_PIN {
            return Err(REFERENCE_NOT_FOUND);
        }
        let (puk, new) = pair(p1, data)?;
        let new = pin(&new)?;
        let status = self.puk.compare(&puk);
        if !status.is_ok() {
            return Err(status);
        }
        self.pin = Secret::new(new, TRIES);
        self.verified.clear();
        self.just_verified.clear();
        Ok(Vec::new())
    }

    fn generate(&mut self, channel: u8, p1: u8, p2: u8, data: &[u8]) -> Answer {
        if !self.managed.contains(&channel) {
            return Err(SECURITY_STATUS_NOT_SATISFIED);
        }
        let slot = match (p1, Slot::new(p2)) {
            (0x00, Some(slot)) => slot,
            _ => return Err(StatusWord::INCORRECT_P1_P2),
        };
        let template = match Reader::new(data).only() {
            Ok(template) if template.tag == Tag(0xAC) => template.value,
            _ => return Err(INCORRECT_DATA),
        };
        let mut algorithm = None;
        let mut pin_policy = slot.pin_policy();
        for part in Reader::new(template) {
            let part = part.map_err(|_| INCORRECT_DATA)?;
            match (part.tag.0, part.value) {
                (0x80, [byte]) => algorithm = Algorithm::from_byte(*byte),
                // 0 is the slot's own.
                (0xAA, [0]) => {}
                (0xAA, [byte]) => {
                    pin_policy = PinPolicy::from_byte(*byte).ok_or(INCORRECT_DATA)?;
                }
                // A touch, which nobody can give this card.
                (0xAB, [0 | 1]) => {}
                _ => return Err(INCORRECT_DATA),
            }
        }
        let generated = algorithm.and_then(PrivateKey::generate);
        let private = generated
            .ok_or(INCORRECT_DATA)?
            .map_err(|_| EXECUTION_ERROR)?;
        let public = private.public();
        let key = Key {
            private,
            pin_policy,
            is_generated: true,
        };
        self.keys.insert(slot, key);
        Ok(wrapped(Tag(0x7F49), &public.to_objects()))
    }

    fn general_authenticate(
        &mut self,
        channel: u8,
        p1: u8,
        p2: u8,
        data: &[u8],
        just_verified: bool,
    ) -> Answer {
        let template = match Reader::new(data).only() {
            Ok(template) if template.tag == Tag(0x7C) => template.value,
            _ => return Err(INCORRECT_DATA),
        };
        let mut parts = BTreeMap::new();
        for part in Reader::new(template) {
            let part = part.map_err(|_| INCORRECT_DATA)?;
            parts.insert(part.tag.0, part.value);
        }
        let output = match p2 {
            REFERENCE_MANAGEMENT_KEY => self.manage(channel, p1, &parts)?,
            _ => {
                let slot = Slot::new(p2).ok_or(StatusWord::INCORRECT_P1_P2)?;
                let output = self.use_key(channel, p1, slot, &parts, just_verified)?;
                wrapped(Tag(0x82), &output)
            }
        };
        match output.as_slice() {
            [] => Ok(output),
            output => Ok(wrapped(Tag(0x7C), output)),
        }
    }

    fn use_key(
        &self,
        channel: u8,
        algorithm: u8,
        slot: Slot,
        parts: &BTreeMap<u32, &[u8]>,
        just_verified: bool,
    ) -> Answer {
        let key = self.keys.get(&slot).ok_or(REFERENCE_NOT_FOUND)?;
        if key.private.algorithm().map(Algorithm::to_byte) != Some(algorithm) {
            return Err(StatusWord::INCORRECT_P1_P2);
        }
        let is_allowed = match key.pin_policy {
            PinPolicy::Never => true,
            PinPolicy::Once => self.verified.contains(&channel),
            PinPolicy::Always => just_verified && self.verified.contains(&channel),
        };
        if !is_allowed {
            return Err(SECURITY_STATUS_NOT_SATISFIED);
        }
        let part = |tag: u32| parts.get(&tag).copied();
        match (part(0x82), part(0x81), part(0x85)) {
            (Some([]), Some(input), None) => key.private.operate(input),
            (Some([]), None, Some(point)) => key.private.agree(point),
            _ => return Err(INCORRECT_DATA),
        }
        .map_err(|Failed| INCORRECT_DATA)
    }

    /// Authentication with the management key (part 2, 3.2.4 and appendix A.1).
    fn manage(&mut self, channel: u8, p1: u8, parts: &BTreeMap<u32, &[u8]>) -> Answer {
        let Some((algorithm, key)) = &self.management_key else {
            return Err(REFERENCE_NOT_FOUND);
        };
        let algorithm = *algorithm;
        if ManagementAlgorithm::from_byte(p1) != Some(algorithm) {
            return Err(StatusWord::INCORRECT_P1_P2);
        }
        let encrypt = |block: &[u8]| key.encrypt(algorithm, block).ok_or(INCORRECT_DATA);
        let random = || {
            let mut bytes = vec![0; algorithm.block_length()];
            let mut generator = keys::generator().map_err(|_| EXECUTION_ERROR)?;
            generator.fill_bytes(&mut bytes);
            Ok(bytes)
        };
        let expected = self.expected.remove(&channel);
        let part = |tag: u32| parts.get(&tag).copied();
        match (part(0x80), part(0x81), part(0x82), expected) {
            // The card's challenge is to be encrypted.
            (None, Some([]), None, _) => {
                let challenge = random()?;
                let expected = Expected::Response(encrypt(&challenge)?);
                self.expected.insert(channel, expected);
                Ok(wrapped(Tag(0x81), &challenge))
            }
            (None, None, Some(response), Some(Expected::Response(expected))) => {
                if response != expected {
                    return Err(SECURITY_STATUS_NOT_SATISFIED);
                }
                self.managed.insert(channel);
                Ok(Vec::new())
            }
            // The card's witness is to be decrypted, and then a challenge is for the card to encrypt.
            (Some([]), None, None, _) => {
                let witness = random()?;
                let encrypted = encrypt(&witness)?;
                self.expected.insert(channel, Expected::Witness(witness));
                Ok(wrapped(Tag(0x80), &encrypted))
            }
            (
                Some(witness),
                Some(challenge),
                None | Some([]),
                Some(Expected::Witness(expected)),
            ) => {
                if witness != expected {
                    return Err(SECURITY_STATUS_NOT_SATISFIED);
                }
                let response = encrypt(challenge)?;
                self.managed.insert(channel);
                Ok(wrapped(Tag(0x82), &response))
            }
            _ => Err(INCORRECT_DATA),
        }
    }

    fn metadata(&self, p1: u8, p2: u8) -> Answer {
        if p1 != 0x00 {
            return Err(StatusWord::INCORRECT_P1_P2);
        }
        let mut metadata = Vec::new();
        let mut write = |tag: u32, value: &[u8]| tlv::write(&mut metadata, Tag(tag), value);
        match p2 {
            REFERENCE_PIN | REFERENCE_PUK => {
                let (secret, first) = match p2 {
                    REFERENCE_PIN => (&self.pin, padded(&PIN)),
                    _ => (&self.puk, padded(&PUK)),
                };
                write(0x01, &[0xFF]);
                write(0x05, &[u8::from(secret.value == first)]);
                write(0x06, &[TRIES, secret.tries]);
            }
            REFERENCE_MANAGEMENT_KEY => {
                let (algorithm, _) = self.management_key.as_ref().ok_or(REFERENCE_NOT_FOUND)?;
                write(0x01, &[algorithm.to_byte()]);
                write(0x02, &[0x00, 0x01]);
            }
            _ => {
                let slot = Slot::new(p2).ok_or(StatusWord::INCORRECT_P1_P2)?;
                let key = self.keys.get(&slot).ok_or(REFERENCE_NOT_FOUND)?;
                let algorithm = key.private.algorithm().ok_or(EXECUTION_ERROR)?;
                write(0x01, &[algorithm.to_byte()]);
                write(0x02, &[key.pin_policy.to_byte(), 0x01]);
                write(0x03, &[if key.is_generated { 1 } else { 2 }]);
                write(0x04, &key.private.public().to_objects());
            }
        }
        Ok(metadata)
    }

    fn delete_key(&mut self, channel: u8, p1: u8, p2: u8) -> Answer {
        if !self.managed.contains(&channel) {
            return Err(SECURITY_STATUS_NOT_SATISFIED);
        }
        let slot = match (p1, Slot::new(p2)) {
            (0xFF, Some(slot)) => slot,
            _ => return Err(StatusWord::INCORRECT_P1_P2),
        };
        match self.keys.remove(&slot) {
            Some(_) => Ok(Vec::new()),
            None => Err(REFERENCE_NOT_FOUND),
        }
    }

    fn set_management_key(&mut self, channel: u8, p1: u8, data: &[u8]) -> Answer {
        if !self.managed.contains(&channel) {
            return Err(SECURITY_STATUS_NOT_SATISFIED);
        }
        let &[algorithm, REFERENCE_MANAGEMENT_KEY, length, ref key @ ..] = data else {
            return Err(INCORRECT_DATA);
        };
        let algorithm = ManagementAlgorithm::from_byte(algorithm);
        let new = algorithm.and_then(|algorithm| management_key(algorithm, key));
        if p1 != 0xFF || key.len() != usize::from(length) || new.is_none() {
            return Err(INCORRECT_DATA);
        }
        self.management_key = new;
        Ok(Vec::new())
    }
}

impl Default for Piv {
    fn default() -> Self {
        Self::new()
    }
}

impl Applet for Piv {
    fn aid(&self) -> Aid {
        const { aid(&AID) }
    }

    fn select(&mut self, channel: ChannelNumber, _: u8) -> Selection {
        self.forget(channel.get());
        // The application property template (part 2, 3.1.1).
        let mut algorithms = Vec::new();
        for algorithm in [
            ManagementAlgorithm::Tdes.to_byte(),
            ManagementAlgorithm::Aes128.to_byte(),
            ManagementAlgorithm::Aes192.to_byte(),
            ManagementAlgorithm::Aes256.to_byte(),
            Algorithm::Rsa2048.to_byte(),
            Algorithm::Rsa3072.to_byte(),
            Algorithm::P256.to_byte(),
            Algorithm::P384.to_byte(),
        ] {
            tlv::write(&mut algorithms, Tag(0x80), &[algorithm]);
        }
        tlv::write(&mut algorithms, Tag(0x06), &[0x00]);
        let mut template = Vec::new();
        tlv::write(&mut template, Tag(0x4F), AID.get(5..).unwrap_or_default());
        let authority = wrapped(Tag(0x4F), AID.get(..5).unwrap_or_default());
        tlv::write(&mut template, Tag(0x79), &authority);
        tlv::write(&mut template, Tag(0x50), b"Servo virtual PIV");
        tlv::write(&mut template, Tag(0xAC), &algorithms);
        Selection {
            answer: Some(wrapped(Tag(0x61), &template)),
            ..Selection::default()
        }
    }

    fn takes_chain(&self, header: Header) -> bool {
        header.cla == 0x00 && matches!(header.ins, 0x87 | 0xDB)
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        let Header { cla, ins, p1, p2 } = command.header();
        if without_channel(cla) != Ok(0x00) {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        let channel = channel.get();
        let just_verified = self.just_verified.remove(&channel);
        let data = command.data();
        let answer = match (ins, p1, p2) {
            (0xCB, ..) => self.get_data(p1, p2, data),
            (0xDB, ..) => self.put_data(channel, p1, p2, data),
            (0x20, ..) => self.verify(channel, p1, p2, data),
            (0x24, ..) => self.change(channel, p1, p2, data),
            (0x2C, ..) => self.reset_retry_counter(p1, p2, data),
            (0x47, ..) => self.generate(channel, p1, p2, data),
            (0x87, ..) => self.general_authenticate(channel, p1, p2, data, just_verified),
            (0xF6, ..) => self.delete_key(channel, p1, p2),
            (0xF7, ..) => self.metadata(p1, p2),
            (0xF8, 0, 0) => Ok(SERIAL.to_vec()),
            (0xFD, 0, 0) => Ok(VERSION.to_vec()),
            (0xFF, _, 0xFF) => self.set_management_key(channel, p1, data),
            (0xF8 | 0xFD | 0xFF, ..) => Err(StatusWord::INCORRECT_P1_P2),
            _ => Err(StatusWord::INS_NOT_SUPPORTED),
        };
        match answer {
            Ok(data) => {
                let response = ResponseApdu::new(data, StatusWord::OK);
                Outcome::InParts(response, Parts::Of256)
            }
            Err(status) => status.into(),
        }
    }

    fn reset(&mut self) {
        self.verified.clear();
        self.just_verified.clear();
        self.managed.clear();
        self.expected.clear();
    }
}

fn wrapped(tag: Tag, value: &[u8]) -> Vec<u8> {
    let mut object = Vec::new();
    tlv::write(&mut object, tag, value);
    object
}

fn management_key(
    algorithm: ManagementAlgorithm,
    key: &[u8],
) -> Option<(ManagementAlgorithm, ManagementKey)> {
    let key = ManagementKey::new(key)
        .ok()
        .filter(|_| key.len() == algorithm.key_length())?;
    Some((algorithm, key))
}

/// The data object of that tag: the discovery object, or one of 5F0000 to 5FFFFF.
fn object(tag: &[u8]) -> Result<Object, StatusWord> {
    match *tag {
        [0x7E] => Ok(Object::DISCOVERY),
        [0x5F, high, low] => Ok(Object(u32::from_be_bytes([0, 0x5F, high, low]))),
        _ => Err(StatusWord::NOT_FOUND),
    }
}

const fn padded(value: &[u8]) -> [u8; 8] {
    let mut padded = [0xFF; 8];
    let length = if value.len() < 8 { value.len() } else { 8 };
    padded
        .split_at_mut(length)
        .0
        .copy_from_slice(value.split_at(length).0);
    padded
}

/// A PIN: 6 to 8 bytes and padding. No try is spent on anything else.
fn pin(data: &[u8]) -> Result<[u8; 8], StatusWord> {
    let pin: [u8; 8] = data.try_into().map_err(|_| StatusWord::WRONG_LENGTH)?;
    let length = pin.iter().take_while(|byte| **byte != 0xFF).count();
    let is_filled = pin.iter().skip(length).all(|byte| *byte == 0xFF);
    match length {
        6.. if is_filled => Ok(pin),
        _ => Err(INCORRECT_DATA),
    }
}

fn pair(p1: u8, data: &[u8]) -> Result<([u8; 8], [u8; 8]), StatusWord> {
    if p1 != 0x00 {
        return Err(StatusWord::INCORRECT_P1_P2);
    }
    let (old, new) = data.split_first_chunk().ok_or(StatusWord::WRONG_LENGTH)?;
    let new = new.try_into().map_err(|_| StatusWord::WRONG_LENGTH)?;
    Ok((*old, new))
}
