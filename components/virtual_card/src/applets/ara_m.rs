/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The access rule application (ARA-M) of GlobalPlatform's Secure Element Access Control: it holds
//! the card's rules about who may use which application, and reads them out. It enforces nothing.
//!
//! Class 80, on any channel:
//!
//! | INS | P1 P2 | data | answer |
//! |---|---|---|---|
//! | CA GET DATA | FF 40 | none | all rules, FF40 { E2 .. }: as much of it as Le and the block size allow; 6A88 without rules |
//! | | FF 60 | none | what follows; 6985 without a beginning on this channel or behind the end; 6984 after the rules changed |
//! | | FF 50 | E1 | FF50 { E3 .. } with the access rules of exactly that reference; 6A88 if there are none |
//! | | DF 20 | none | DF20 { refresh tag of 8 bytes } |
//! | | DF 21 | any | DF21 { E5 { E6 03 01 01 00 } }: version 1.1.0 |
//! | | other | | 6A88 |
//! | E2 STORE DATA | 90 00 | F0 { E2 .. } | 9000; 6381 if there was a rule of the same reference, which is replaced |
//! | | 90 00 | F1, empty | 9000, there are no rules any more |
//! | | 90 00 | F1 { 4F, C0, E1 or E2 } | 9000, rules of that application, with that reference, or just that rule are deleted; 6A88 if there were none |
//! | | 90 00 | F2, empty | 9000; the refresh tag changes |
//!
//! Each STORE DATA that succeeds changes the refresh tag. What is malformed is 6A80, and other
//! parameters are 6A86. FF 40 and FF 60 without Le, and more than [`MAX_RULES`] bytes of rules are
//! 6700.
//! STORE DATA can be chained. Nothing has to be authenticated before it: this is a card for tests.
//!
//! What the application reads out can be anything, for tests of those who read it:
//! [`AraM::with_rules`] takes the content of FF40, [`AraM::with_answer`] everything.

use std::collections::BTreeMap;

use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::{ChannelNumber, without_channel};
use secure_element::tlv::{self, Reader, Tag, Tlv, TlvError};
use thiserror::Error;

use super::{aid, conformance, echo, pin};
use crate::{Applet, Outcome, Selection};

/// The AID that every ARA-M has.
pub const AID: [u8; 9] = [0xA0, 0x00, 0x00, 0x01, 0x51, 0x41, 0x43, 0x4C, 0x00];

/// The longest rules that STORE DATA makes, in bytes.
pub const MAX_RULES: usize = 32_768;
/// The longest block that GET DATA answers with if it is not told otherwise, in bytes.
pub const DEFAULT_BLOCK: u16 = 256;

const INS_GET_DATA: u8 = 0xCA;
const INS_STORE_DATA: u8 = 0xE2;

const GET_ALL: u16 = 0xFF40;
const GET_SPECIFIC: u16 = 0xFF50;
const GET_NEXT: u16 = 0xFF60;
const GET_REFRESH_TAG: u16 = 0xDF20;
const GET_CONFIGURATION: u16 = 0xDF21;
/// P1 P2 of STORE DATA: last block, the data is BER-TLV.
const STORE: u16 = 0x9000;

const AID_REF_DO: Tag = Tag(0x4F);
const DEFAULT_APPLICATION_REF_DO: Tag = Tag(0xC0);
const DEVICE_APP_ID_REF_DO: Tag = Tag(0xC1);
const APDU_AR_DO: Tag = Tag(0xD0);
const REF_DO: Tag = Tag(0xE1);
const REF_AR_DO: Tag = Tag(0xE2);
const AR_DO: Tag = Tag(0xE3);
const ARA_M_CONFIGURATION_DO: Tag = Tag(0xE5);
const VERSION_DO: Tag = Tag(0xE6);
const COMMAND_STORE_REF_AR_DO: Tag = Tag(0xF0);
const COMMAND_DELETE: Tag = Tag(0xF1);
const COMMAND_UPDATE_REFRESH_TAG: Tag = Tag(0xF2);

/// The SHA-256 of `https://wallet.example`.
pub(super) const WALLET: [u8; 32] = [
    0x40, 0xD5, 0xFB, 0x05, 0x8E, 0x24, 0x0B, 0x4E, 0x2B, 0xD0, 0xED, 0x47, 0x7A, 0xFF, 0x47, 0x6C,
    0xA3, 0x50, 0x86, 0xF3, 0x0B, 0x11, 0x02, 0xBB, 0x12, 0x4C, 0xBC, 0xAB, 0x4F, 0xEE, 0x80, 0xB2,
];
/// The SHA-1 of `https://shop.example`.
pub(super) const SHOP: [u8; 20] = [
    0x77, 0xE0, 0x64, 0xAB, 0x4E, 0x90, 0xFF, 0xDD, 0x99, 0xD4, 0xC6, 0xA6, 0xF7, 0x8C, 0x64, 0xF8,
    0xBF, 0x71, 0x34, 0x07,
];
/// Header 00 10 or 80 10, mask 7F FF: any parameters.
pub(super) const ECHO_ONLY: [u8; 8] = [0x00, echo::INS_ECHO, 0, 0, 0x7F, 0xFF, 0, 0];
/// The value of an APDU-AR-DO that allows every command.
const ALWAYS: [u8; 1] = [0x01];
const NEVER: [u8; 1] = [0x00];

const RULE_REPLACED: StatusWord = StatusWord(0x6381);
const RULES_CHANGED: StatusWord = StatusWord(0x6984);
const INCORRECT_DATA: StatusWord = StatusWord(0x6A80);
const REFERENCED_DATA_NOT_FOUND: StatusWord = StatusWord(0x6A88);

/// The application.
#[derive(Clone, Debug)]
pub struct AraM {
    content: Content,
    /// Counts the changes.
    refresh_tag: u64,
    block: u16,
    rules_changed: StatusWord,
    failure: Option<StatusWord>,
    /// How far GET DATA has come, by channel.
    positions: BTreeMap<u8, Position>,
}

#[derive(Clone, Debug)]
enum Content {
    /// The value of FF40.
    Rules(Vec<u8>),
    /// What GET DATA for all rules answers.
    Answer(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Position {
    refresh_tag: u64,
    offset: usize,
}

/// A file is neither rules nor hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("rules are bytes, or pairs of hexadecimal digits with comments behind #")]
pub struct NotRules;

impl AraM {
    /// One without rules.
    pub const fn new() -> Self {
        Self::with_content(Content::Rules(Vec::new()))
    }

    /// One with these rules: encoded REF-AR-DOs (E2), or whatever else it is to read out behind
    /// FF40 and its length. Less than 16 MiB.
    pub const fn with_rules(rules: Vec<u8>) -> Self {
        Self::with_content(Content::Rules(rules))
    }

    /// One that answers GET DATA for all rules with just these bytes, in blocks.
    pub const fn with_answer(answer: Vec<u8>) -> Self {
        Self::with_content(Content::Answer(answer))
    }

    const fn with_content(content: Content) -> Self {
        Self {
            content,
            refresh_tag: 1,
            block: DEFAULT_BLOCK,
            rules_changed: RULES_CHANGED,
            failure: None,
            positions: BTreeMap::new(),
        }
    }

    /// One with these bytes. If they begin with FF 40 they are everything that is read out, else the
    /// rules.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        if bytes.starts_with(&GET_ALL.to_be_bytes()) {
            Self::with_answer(bytes)
        } else {
            Self::with_rules(bytes)
        }
    }

    /// One with what is in a file, as [`from_file`] reads it.
    pub fn from_file(content: &[u8]) -> Result<Self, NotRules> {
        from_file(content).map(Self::from_bytes)
    }

    /// The one of most profiles: every origin may use every application, with every command.
    pub fn for_everybody() -> Self {
        Self::with_rules(rule(Some(&[]), &[], &ALWAYS))
    }

    /// The same, but nobody may use the application of this AID.
    pub fn for_everybody_but(aid: &[u8]) -> Self {
        let rules = [rule(Some(&[]), &[], &ALWAYS), rule(Some(aid), &[], &NEVER)];
        Self::with_rules(rules.concat())
    }

    /// The one of the profile `ara-m`, with a rule of each kind:
    ///
    /// - every origin may use the first echo application and the first one for conformance;
    /// - `https://wallet.example` (SHA-256) may use the second echo application;
    /// - `https://shop.example` (SHA-1) may send it the commands 00 10 and 80 10;
    /// - nobody may use the application with the PIN.
    pub fn sample() -> Self {
        let rules = [
            rule(Some(&echo::AID), &[], &ALWAYS),
            rule(Some(&conformance::AID), &[], &ALWAYS),
            rule(Some(&echo::SECOND_AID), &WALLET, &ALWAYS),
            rule(Some(&echo::SECOND_AID), &SHOP, &ECHO_ONLY),
            rule(Some(&pin::AID), &[], &NEVER),
        ];
        Self::with_rules(rules.concat())
    }

    /// With blocks of at most this many bytes, 1 to 65,535. Cards use 255 and 256.
    #[must_use]
    pub const fn with_block(mut self, block: u16) -> Self {
        self.block = if block == 0 { 1 } else { block };
        self
    }

    /// With this answer to GET DATA for what follows after the rules changed: 6984 or 6A84.
    #[must_use]
    pub const fn with_rules_changed(mut self, status: StatusWord) -> Self {
        self.rules_changed = status;
        self
    }

    /// With this answer to every GET DATA.
    #[must_use]
    pub const fn with_failure(mut self, status: StatusWord) -> Self {
        self.failure = Some(status);
        self
    }

    fn get_data(&mut self, channel: u8, command: &CommandApdu) -> ResponseApdu {
        if let Some(status) = self.failure {
            return status.into();
        }
        let Header { p1, p2, .. } = command.header();
        let object = u16::from_be_bytes([p1, p2]);
        let data = match object {
            GET_ALL => {
                let position = Position {
                    refresh_tag: self.refresh_tag,
                    offset: 0,
                };
                self.positions.insert(channel, position);
                return self.get_block(channel, command.le());
            }
            GET_NEXT => return self.get_block(channel, command.le()),
            GET_SPECIFIC => match self.get_specific(command.data()) {
                Ok(data) if data.is_empty() => return REFERENCED_DATA_NOT_FOUND.into(),
                Ok(data) => data,
                Err(_) => return INCORRECT_DATA.into(),
            },
            GET_REFRESH_TAG => self.refresh_tag.to_be_bytes().to_vec(),
            GET_CONFIGURATION => {
                let mut version = Vec::new();
                tlv::write(&mut version, VERSION_DO, &[1, 1, 0]);
                let mut configuration = Vec::new();
                tlv::write(&mut configuration, ARA_M_CONFIGURATION_DO, &version);
                configuration
            }
            _ => return REFERENCED_DATA_NOT_FOUND.into(),
        };
        let mut response = Vec::new();
        tlv::write(&mut response, Tag(object.into()), &data);
        ResponseApdu::new(response, StatusWord::OK)
    }

    /// The next block of all rules.
    fn get_block(&mut self, channel: u8, le: Option<u32>) -> ResponseApdu {
        let Some(le) = le else {
            return StatusWord::WRONG_LENGTH.into();
        };
        let all = match &self.content {
            Content::Rules(rules) if rules.is_empty() => {
                return REFERENCED_DATA_NOT_FOUND.into();
            }
            Content::Rules(rules) => {
                let mut all = Vec::new();
                tlv::write(&mut all, Tag(GET_ALL.into()), rules);
                all
            }
            Content::Answer(answer) => answer.clone(),
        };
        let Some(position) = self.positions.get_mut(&channel) else {
            return StatusWord::CONDITIONS_NOT_SATISFIED.into();
        };
        if position.refresh_tag != self.refresh_tag {
            self.positions.remove(&channel);
            return self.rules_changed.into();
        }
        let rest = all.get(position.offset..).unwrap_or_default();
        let length = rest.len().min(usize::from(self.block)).min(le as usize);
        let block = rest.get(..length).unwrap_or_default().to_vec();
        position.offset += length;
        if position.offset >= all.len() {
            self.positions.remove(&channel);
        }
        ResponseApdu::new(block, StatusWord::OK)
    }

    /// The AR-DOs of the rules with just this reference.
    fn get_specific(&self, reference: &[u8]) -> Result<Vec<u8>, TlvError> {
        Reader::new(reference).only()?;
        let mut found = Vec::new();
        for rule in self.rules()? {
            if rule.reference == reference {
                found.extend(rule.access);
            }
        }
        Ok(found)
    }

    /// The rules, as far as they are some.
    fn rules(&self) -> Result<Vec<Rule<'_>>, TlvError> {
        match &self.content {
            Content::Rules(rules) => Rule::read_all(rules),
            Content::Answer(_) => Err(TlvError::InvalidTag),
        }
    }

    fn store_data(&mut self, command: &CommandApdu) -> StatusWord {
        let Header { p1, p2, .. } = command.header();
        if u16::from_be_bytes([p1, p2]) != STORE {
            return StatusWord::INCORRECT_P1_P2;
        }
        let Ok(object) = Reader::new(command.data()).only() else {
            return INCORRECT_DATA;
        };
        let status = match object.tag {
            COMMAND_STORE_REF_AR_DO => self.store(object.value),
            COMMAND_DELETE => self.delete(object),
            COMMAND_UPDATE_REFRESH_TAG if object.value.is_empty() => Ok(StatusWord::OK),
            _ => return INCORRECT_DATA,
        };
        let status = status.unwrap_or(INCORRECT_DATA);
        if !status.is_error() {
            self.refresh_tag = self.refresh_tag.wrapping_add(1);
        }
        status
    }

    fn store(&mut self, new: &[u8]) -> Result<StatusWord, TlvError> {
        let new_rules = Rule::read_all(new)?;
        let [new_rule] = new_rules.as_slice() else {
            return Err(TlvError::InvalidLength);
        };
        let rules = self.rules()?;
        let mut content = Vec::new();
        let mut status = StatusWord::OK;
        for rule in &rules {
            if rule.reference == new_rule.reference {
                status = RULE_REPLACED;
            } else {
                content.extend(rule.whole);
            }
        }
        content.extend(new_rule.whole);
        if content.len() > MAX_RULES {
            return Ok(StatusWord::WRONG_LENGTH);
        }
        self.content = Content::Rules(content);
        Ok(status)
    }

    fn delete(&mut self, which: Tlv<'_>) -> Result<StatusWord, TlvError> {
        if which.value.is_empty() {
            self.content = Content::Rules(Vec::new());
            return Ok(StatusWord::OK);
        }
        let object = Reader::new(which.value).only()?;
        let is_meant = |rule: &Rule<'_>| match object.tag {
            AID_REF_DO | DEFAULT_APPLICATION_REF_DO => {
                let mut parts = Reader::new(rule.reference_value);
                let first = parts.next();
                first.is_some_and(|first| {
                    first.is_ok_and(|first| (first.tag, first.value) == (object.tag, object.value))
                })
            }
            REF_DO => rule.reference == which.value,
            _ => rule.whole == which.value,
        };
        if ![AID_REF_DO, DEFAULT_APPLICATION_REF_DO, REF_DO, REF_AR_DO].contains(&object.tag) {
            return Err(TlvError::InvalidTag);
        }
        let rules = self.rules()?;
        let mut content = Vec::new();
        let mut left = 0;
        for rule in rules.iter().filter(|rule| !is_meant(rule)) {
            content.extend(rule.whole);
            left += 1;
        }
        if left == rules.len() {
            return Ok(REFERENCED_DATA_NOT_FOUND);
        }
        self.content = Content::Rules(content);
        Ok(StatusWord::OK)
    }
}

impl Default for AraM {
    fn default() -> Self {
        Self::new()
    }
}

/// A rule within the bytes that it was read from.
struct Rule<'a> {
    /// The REF-AR-DO.
    whole: &'a [u8],
    /// Its REF-DO.
    reference: &'a [u8],
    reference_value: &'a [u8],
    /// Its AR-DO.
    access: &'a [u8],
}

impl<'a> Rule<'a> {
    fn read_all(bytes: &'a [u8]) -> Result<Vec<Self>, TlvError> {
        objects(bytes)?
            .into_iter()
            .map(|(whole, object)| {
                if object.tag != REF_AR_DO {
                    return Err(TlvError::InvalidTag);
                }
                match objects(object.value)?.as_slice() {
                    [(reference, ref_do), (access, ar_do)]
                        if (ref_do.tag, ar_do.tag) == (REF_DO, AR_DO) =>
                    {
                        Ok(Self {
                            whole,
                            reference,
                            reference_value: ref_do.value,
                            access,
                        })
                    }
                    _ => Err(TlvError::InvalidTag),
                }
            })
            .collect()
    }
}

/// The data objects in `bytes`, each with its own bytes, tag and length included.
fn objects(bytes: &[u8]) -> Result<Vec<(&[u8], Tlv<'_>)>, TlvError> {
    let mut reader = Reader::new(bytes);
    let mut objects = Vec::new();
    let mut begin = 0;
    while let Some(object) = reader.next() {
        let object = object?;
        let end = bytes.len() - reader.rest().len();
        objects.push((bytes.get(begin..end).unwrap_or_default(), object));
        begin = end;
    }
    Ok(objects)
}

/// An encoded rule. `aid` is an AID, no bytes for all applications, `None` for the one that is
/// selected by default; `application` is the hash of an origin, or no bytes for all of them;
/// `access` is the value of the APDU-AR-DO.
pub fn rule(aid: Option<&[u8]>, application: &[u8], access: &[u8]) -> Vec<u8> {
    let mut reference = Vec::new();
    match aid {
        Some(aid) => tlv::write(&mut reference, AID_REF_DO, aid),
        None => tlv::write(&mut reference, DEFAULT_APPLICATION_REF_DO, &[]),
    }
    tlv::write(&mut reference, DEVICE_APP_ID_REF_DO, application);
    let mut apdu = Vec::new();
    tlv::write(&mut apdu, APDU_AR_DO, access);
    let mut parts = Vec::new();
    tlv::write(&mut parts, REF_DO, &reference);
    tlv::write(&mut parts, AR_DO, &apdu);
    let mut rule = Vec::new();
    tlv::write(&mut rule, REF_AR_DO, &parts);
    rule
}

/// What is in a file: bytes, or hexadecimal digits with white space anywhere between two of them and
/// comments from # to the end of the line.
pub fn from_file(content: &[u8]) -> Result<Vec<u8>, NotRules> {
    match str::from_utf8(content) {
        Ok(text) if text.is_ascii() => from_hex(text),
        _ => Ok(content.to_vec()),
    }
}

fn from_hex(text: &str) -> Result<Vec<u8>, NotRules> {
    let digits = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().chars())
        .filter(|character| !character.is_ascii_whitespace())
        .map(|digit| digit.to_digit(16).ok_or(NotRules));
    let digits = digits.collect::<Result<Vec<u32>, NotRules>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return Err(NotRules);
    };
    // A digit is less than 16.
    Ok(pairs
        .iter()
        .map(|[high, low]| (high << 4 | low) as u8)
        .collect())
}

impl Applet for AraM {
    fn aid(&self) -> Aid {
        const { aid(&AID) }
    }

    fn select(&mut self, channel: ChannelNumber, _: u8) -> Selection {
        self.positions.remove(&channel.get());
        Selection::default()
    }

    fn takes_chain(&self, header: Header) -> bool {
        header.ins == INS_STORE_DATA
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        if without_channel(header.cla) != Ok(0x80) {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        match header.ins {
            INS_GET_DATA => self.get_data(channel.get(), command).into(),
            INS_STORE_DATA => self.store_data(command).into(),
            _ => StatusWord::INS_NOT_SUPPORTED.into(),
        }
    }
}
