/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An application that behaves as the one that Android's compatibility tests of the Open Mobile
//! API talk to (source.android.com, "CTS Test for Secure Element"), under AIDs of its own.
//!
//! There are three of them: [`AID`]; [`LONG_RESPONSE_AID`], whose answer to SELECT has a second
//! data object of more than 200 bytes; and [`UNSELECTABLE_AID`], which answers SELECT with 6999.
//!
//! Class 00, 80, A0 or 94, on any channel. A pattern is 00 01 .. FF 00 .., but
//! its last byte is always FF.
//!
//! | INS | P1 P2 | case | answer |
//! |---|---|---|---|
//! | 06, 0A | any | 1, 3 | 9000 |
//! | 08, 0C | any | 2, 4 | a pattern of 256 bytes |
//! | F3 | n 06 | 1 | the n-th of [`WARNINGS`], counted from 1 |
//! | F3 | n 0A | 3 | the n-th of [`WARNINGS`] |
//! | F3 | n 08 | 2 | a pattern of 3 bytes, and the n-th of [`WARNINGS`] |
//! | F3 | n 0C | 4 | the command as short bytes with Le 00, but with 01 as its class, and the n-th of [`WARNINGS`] |
//! | C2, C4 | length | 2, 4 | a pattern of that length, in parts of 255 bytes |
//! | C6, C8 | length | 2, 4 | a pattern of that length, in parts of 256 bytes |
//! | CF | length | 2 | a pattern of that length, in parts of 255 bytes, over T=0 after 6CFF |
//! | F4 | 00 p2 | 2 | the byte p2 |
//! | F4 | 01 any | 2 | P2 of the SELECT that selected the application on this channel |
//!
//! Other parameters of F3 and F4 are 6A86.
//!
//! Over T=0 the parts follow each other as 61xx says. Over T=1 a caller with room for everything in
//! an extended Le gets everything; another one gets the first part with 61xx, and fetches the others
//! with GET RESPONSE (00 C0 00 00 xx) by itself. There, 6CFF does not occur.

use std::collections::BTreeMap;

use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::{ChannelNumber, without_channel};
use secure_element::tlv::{self, Tag};

use super::aid;
use crate::{Applet, Outcome, Parts, Selection};

/// The AID of the one for most of the tests.
pub const AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x06, 0x31];
/// The AID of the one with a long answer to SELECT.
pub const LONG_RESPONSE_AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x06, 0x32];
/// The AID of the one that refuses to be selected.
pub const UNSELECTABLE_AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x06, 0xFF];

/// What F3 answers with. The suite's page has 6282 for 0E, but the suite itself 6286.
pub const WARNINGS: [StatusWord; 16] = [
    StatusWord(0x6200),
    StatusWord(0x6281),
    StatusWord(0x6282),
    StatusWord(0x6283),
    StatusWord(0x6285),
    StatusWord(0x62F1),
    StatusWord(0x62F2),
    StatusWord(0x63F1),
    StatusWord(0x63F2),
    StatusWord(0x63C2),
    StatusWord(0x6202),
    StatusWord(0x6280),
    StatusWord(0x6284),
    StatusWord(0x6286),
    StatusWord(0x6300),
    StatusWord(0x6381),
];

const CLASSES: [u8; 4] = [0x00, 0x80, 0xA0, 0x94];
const PROPRIETARY_DATA: Tag = Tag(0xA5);
/// Discretionary data.
const DISCRETIONARY_DATA: Tag = Tag(0x53);
const LONG_LENGTH: u16 = 220;

/// The application.
#[derive(Debug)]
pub struct Conformance {
    aid: Aid,
    selection: Selection,
    /// P2 of SELECT, by channel.
    p2: BTreeMap<u8, u8>,
}

impl Conformance {
    /// One under this AID, that can be selected.
    pub fn new(aid: Aid) -> Self {
        Self {
            aid,
            selection: Selection::default(),
            p2: BTreeMap::new(),
        }
    }

    /// The three that are on the card.
    pub fn all() -> [Self; 3] {
        const AIDS: [Aid; 3] = [aid(&AID), aid(&LONG_RESPONSE_AID), aid(&UNSELECTABLE_AID)];
        let [first, mut second, mut third] = AIDS.map(Self::new);
        let mut data = Vec::new();
        tlv::write(&mut data, DISCRETIONARY_DATA, &pattern(LONG_LENGTH));
        let information = &mut second.selection.control_information;
        tlv::write(information, PROPRIETARY_DATA, &data);
        third.selection.status = StatusWord::APPLET_SELECT_FAILED;
        [first, second, third]
    }
}

/// What the application answers with.
pub fn pattern(length: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=0xFF).cycle().take(usize::from(length)).collect();
    if let Some(last) = bytes.last_mut() {
        *last = 0xFF;
    }
    bytes
}

/// The command as it would be with one-byte lengths and Le 00, with class 01 instead of its own.
fn described(command: &CommandApdu) -> Vec<u8> {
    let [_, ins, p1, p2] = command.header().to_bytes();
    let data = command.data();
    [&[0x01, ins, p1, p2, data.len() as u8], data, &[0x00]].concat()
}

impl Applet for Conformance {
    fn aid(&self) -> Aid {
        self.aid
    }

    fn select(&mut self, channel: ChannelNumber, p2: u8) -> Selection {
        self.p2.insert(channel.get(), p2);
        self.selection.clone()
    }

    /// 94 would announce chaining and secure messaging.
    fn owns_class(&self, class: u8) -> bool {
        CLASSES.contains(&class)
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        if !without_channel(header.cla).is_ok_and(|class| CLASSES.contains(&class)) {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        let length = u16::from_be_bytes([header.p1, header.p2]);
        let in_parts = |parts| {
            let response = ResponseApdu::new(pattern(length), StatusWord::OK);
            Outcome::InParts(response, parts)
        };
        let (data, status) = match header.ins {
            0x06 | 0x0A => (Vec::new(), StatusWord::OK),
            0x08 | 0x0C => (pattern(256), StatusWord::OK),
            0xF3 => {
                let warning = usize::from(header.p1).checked_sub(1);
                let warning = warning.and_then(|index| WARNINGS.get(index));
                match (warning, header.p2) {
                    (Some(&warning), 0x06 | 0x0A) => (Vec::new(), warning),
                    (Some(&warning), 0x08) => (pattern(3), warning),
                    (Some(&warning), 0x0C) => (described(command), warning),
                    _ => (Vec::new(), StatusWord::INCORRECT_P1_P2),
                }
            }
            0xC2 | 0xC4 => return in_parts(Parts::Of255),
            0xC6 | 0xC8 => return in_parts(Parts::Of256),
            0xCF => return in_parts(Parts::Of255AfterCorrection),
            0xF4 => match header.p1 {
                0x00 => (vec![header.p2], StatusWord::OK),
                0x01 => {
                    let p2 = self.p2.get(&channel.get());
                    (p2.copied().into_iter().collect(), StatusWord::OK)
                }
                _ => (Vec::new(), StatusWord::INCORRECT_P1_P2),
            },
            _ => (Vec::new(), StatusWord::INS_NOT_SUPPORTED),
        };
        ResponseApdu::new(data, status).into()
    }
}
