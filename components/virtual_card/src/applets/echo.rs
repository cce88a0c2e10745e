/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An application for tests: it echoes, answers as it is told to, waits and fails.
//!
//! There are three of them on the card, under a proprietary provider identifier (F0, "SERVO"):
//! [`AID`] and [`SECOND_AID`], which share all but their last byte, and [`WARNING_AID`], whose
//! SELECT answers with the warning 6283 (selected file invalidated).
//!
//! Class 00 or 80, on any channel:
//!
//! | INS | P1 P2 | data | answer |
//! |---|---|---|---|
//! | 10 | any | any | the data |
//! | 12 | any | none | P1 P2 |
//! | 14 | n | none | n bytes: 0, 1, .. 250, 0, .. |
//! | 16 | status word | any | the data, with that status word |
//! | 18 | n | any | the data, after n times 10 ms, at most [`crate::MAX_DELAY`] |
//! | 1A | a fault, 00 or what the fault says | none | see [`FAULT_EMPTY`] and what follows it |
//! | 1C | any | none | the channel's number, and the class byte as received |
//! | 1E | any | none | the commands that this applet carried out since the last reset, 4 bytes; this one not counted |
//!
//! Anything else is 6D00, another class 6E00, another fault 6A86.

use std::thread;
use std::time::Duration;

use secure_element::apdu::{CommandApdu, MAX_RESPONSE, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::{ChannelNumber, without_channel};

use super::aid;
use crate::{Applet, Fault, MAX_DELAY, Outcome, Selection};

/// The AID of the first echo application.
pub const AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x01, 0x01];
/// The AID of the second one, the next occurrence of the first seven bytes.
pub const SECOND_AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x01, 0x02];
/// The AID of the one that is selected with a warning.
pub const WARNING_AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x02, 0x01];

/// Answers with the command data.
pub const INS_ECHO: u8 = 0x10;
/// Answers with P1 P2.
pub const INS_PARAMETERS: u8 = 0x12;
/// Answers with P1 P2 bytes.
pub const INS_PATTERN: u8 = 0x14;
/// Answers with the status word P1 P2.
pub const INS_STATUS: u8 = 0x16;
/// Answers P1 P2 times 10 ms later.
pub const INS_DELAY: u8 = 0x18;
/// Fails in the way that P1 says.
pub const INS_FAULT: u8 = 0x1A;
/// Answers with the channel and the class byte.
pub const INS_CHANNEL: u8 = 0x1C;
/// Answers with the number of commands carried out.
pub const INS_COUNT: u8 = 0x1E;

/// P1 of [`INS_FAULT`]: an answer without a byte.
pub const FAULT_EMPTY: u8 = 0x00;
/// P1 of [`INS_FAULT`]: an answer of one byte, 90.
pub const FAULT_ONE_BYTE: u8 = 0x01;
/// P1 of [`INS_FAULT`]: no answer.
pub const FAULT_MUTE: u8 = 0x02;
/// P1 of [`INS_FAULT`]: the card resets itself.
pub const FAULT_RESET: u8 = 0x03;
/// P1 of [`INS_FAULT`]: the card leaves its reader in the middle of the command, for P2 times 100 ms;
/// P2 of 00 stands for [`DEFAULT_REMOVAL`].
pub const FAULT_REMOVAL: u8 = 0x04;
/// P1 of [`INS_FAULT`]: an answer that is one byte longer than any response. vpcd cannot carry it,
/// so it becomes 6F00 there.
pub const FAULT_TOO_LONG: u8 = 0x05;

const SELECTED_FILE_INVALIDATED: StatusWord = StatusWord(0x6283);
const DELAY_UNIT: Duration = Duration::from_millis(10);
const REMOVAL_UNIT: Duration = Duration::from_millis(100);
/// How long [`FAULT_REMOVAL`] takes the card away if it is not told.
pub const DEFAULT_REMOVAL: Duration = Duration::from_millis(500);

/// An echo application.
#[derive(Debug)]
pub struct Echo {
    aid: Aid,
    selection_status: StatusWord,
    count: u32,
}

impl Echo {
    /// One under this AID.
    pub const fn new(aid: Aid) -> Self {
        Self {
            aid,
            selection_status: StatusWord::OK,
            count: 0,
        }
    }

    /// The three that are on the card.
    pub fn all() -> [Self; 3] {
        const AIDS: [Aid; 3] = [aid(&AID), aid(&SECOND_AID), aid(&WARNING_AID)];
        let [first, second, mut third] = AIDS.map(Self::new);
        third.selection_status = SELECTED_FILE_INVALIDATED;
        [first, second, third]
    }
}

impl Applet for Echo {
    fn aid(&self) -> Aid {
        self.aid
    }

    fn select(&mut self, _: ChannelNumber) -> Selection {
        Selection {
            status: self.selection_status,
            ..Selection::default()
        }
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        if !matches!(without_channel(header.cla), Ok(0x00 | 0x80)) {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        let count = self.count;
        self.count = self.count.wrapping_add(1);
        let parameters = u16::from_be_bytes([header.p1, header.p2]);
        let (data, status) = match header.ins {
            INS_ECHO => (command.data().to_vec(), StatusWord::OK),
            INS_PARAMETERS => (vec![header.p1, header.p2], StatusWord::OK),
            INS_PATTERN => (pattern(parameters), StatusWord::OK),
            INS_STATUS => (command.data().to_vec(), StatusWord(parameters)),
            INS_DELAY => {
                thread::sleep((DELAY_UNIT * u32::from(parameters)).min(MAX_DELAY));
                (command.data().to_vec(), StatusWord::OK)
            }
            INS_FAULT => return fault(header.p1, header.p2),
            INS_CHANNEL => (vec![channel.get(), header.cla], StatusWord::OK),
            INS_COUNT => (count.to_be_bytes().to_vec(), StatusWord::OK),
            _ => (Vec::new(), StatusWord::INS_NOT_SUPPORTED),
        };
        ResponseApdu::new(data, status).into()
    }

    fn reset(&mut self) {
        self.count = 0;
    }
}

/// The bytes that [`INS_PATTERN`] answers with. Their period of 251 shows parts that are lost,
/// doubled or swapped.
pub fn pattern(length: u16) -> Vec<u8> {
    (0..251).cycle().take(usize::from(length)).collect()
}

fn fault(kind: u8, p2: u8) -> Outcome {
    Outcome::Fault(match kind {
        FAULT_EMPTY => Fault::Raw(Vec::new()),
        FAULT_ONE_BYTE => Fault::Raw(vec![0x90]),
        FAULT_MUTE => Fault::Mute,
        FAULT_RESET => Fault::Reset,
        FAULT_REMOVAL if p2 == 0 => Fault::Removal(DEFAULT_REMOVAL),
        FAULT_REMOVAL => Fault::Removal(REMOVAL_UNIT * u32::from(p2)),
        FAULT_TOO_LONG => Fault::Raw(vec![0x90; MAX_RESPONSE + 1]),
        _ => return StatusWord::INCORRECT_P1_P2.into(),
    })
}
