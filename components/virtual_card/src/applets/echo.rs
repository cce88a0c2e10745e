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
//! | 1A | a fault, its parameter | the fault's | see [`FAULT_EMPTY`] and what follows it |
//! | 1C | any | none | the channel's number, and the class byte as received |
//! | 1E | any | none | the commands that this applet carried out since the last reset, 4 bytes; this one not counted |
//! | 30 | any | none | the channels that are open in the card, 3 bytes: bit n of the number stands for channel n |
//!
//! Anything else is 6D00, another class 6E00, another fault 6A86. 10, 16 and 18 can be chained, up
//! to 65,535 bytes.

use std::thread;
use std::time::Duration;

use secure_element::apdu::{CommandApdu, Header, MAX_RESPONSE, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;

use super::{aid, is_plain_class};
use crate::{Applet, Fault, MAX_DELAY, Outcome, Rigged, RiggedCommand, Selection};

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
/// Answers with the channels that are open in the card.
pub const INS_OPEN_CHANNELS: u8 = 0x30;

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
/// P1 of [`INS_FAULT`]: P2 bytes of [`garbage`]; P2 of 00 stands for 256.
pub const FAULT_GARBAGE: u8 = 0x06;
/// P1 of [`INS_FAULT`]: success, with P2 bytes (00: 1 byte) more than Le allows. Le is 0 where there
/// is none.
pub const FAULT_LE_IGNORED: u8 = 0x07;
/// P1 of [`INS_FAULT`]: P2 bytes and 61FF, and over T=0 the same at each GET RESPONSE, for ever.
pub const FAULT_ENDLESS: u8 = 0x08;
/// P1 of [`INS_FAULT`]: 6C and P2, whatever Le is.
pub const FAULT_WRONG_LE: u8 = 0x09;
/// P1 of [`INS_FAULT`]: 61 and P2, and over T=0 one byte and 9000 at GET RESPONSE, however many were
/// announced.
pub const FAULT_SHORTENED: u8 = 0x0A;
/// P1 of [`INS_FAULT`]: 9000; the card will answer the next MANAGE CHANNEL that opens a channel, on
/// any channel, with the data of this command, whatever that is. With P2 of 00 it opens none, with
/// 01 it does.
///
/// What this and the three below prepare is used once; several of them are used in turn. A reset
/// ends it.
pub const FAULT_NEXT_OPEN: u8 = 0x10;
/// P1 of [`INS_FAULT`]: like [`FAULT_NEXT_OPEN`], for SELECT by DF name.
pub const FAULT_NEXT_SELECT: u8 = 0x11;
/// P1 of [`INS_FAULT`]: like [`FAULT_NEXT_OPEN`], for MANAGE CHANNEL that closes a channel.
pub const FAULT_NEXT_CLOSE: u8 = 0x12;
/// P1 of [`INS_FAULT`]: like [`FAULT_NEXT_OPEN`], for MANAGE CHANNEL that resets a channel.
pub const FAULT_NEXT_CHANNEL_RESET: u8 = 0x13;

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

    fn select(&mut self, _: ChannelNumber, _: u8) -> Selection {
        self.selection_status.into()
    }

    fn takes_chain(&self, header: Header) -> bool {
        is_plain_class(header.cla) && matches!(header.ins, INS_ECHO | INS_STATUS | INS_DELAY)
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        if !is_plain_class(header.cla) {
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
            INS_FAULT => return fault(command),
            INS_OPEN_CHANNELS => return Outcome::OpenChannels,
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

/// The bytes that [`FAULT_GARBAGE`] answers with: always the same ones, and never a status word at
/// the end.
pub fn garbage(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_u32;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    })
    .take(length)
    .collect();
    if let [.., sw1, _] = bytes.as_mut_slice() {
        // 6x and 9x are status words.
        *sw1 |= 0x80;
        *sw1 &= 0xEF;
    }
    bytes
}

fn fault(command: &CommandApdu) -> Outcome {
    let Header { p1, p2, .. } = command.header();
    let rigged = |rigged| match p2 {
        0x00 | 0x01 => Outcome::Rig(Rigged {
            command: rigged,
            carried_out: p2 == 0x01,
            answer: command.data().to_vec(),
        }),
        _ => StatusWord::INCORRECT_P1_P2.into(),
    };
    let success = |length| ResponseApdu::new(pattern(length), StatusWord::OK).encode();
    Outcome::Fault(match p1 {
        FAULT_EMPTY => Fault::Raw(Vec::new()),
        FAULT_ONE_BYTE => Fault::Raw(vec![0x90]),
        FAULT_MUTE => Fault::Mute,
        FAULT_RESET => Fault::Reset,
        FAULT_REMOVAL if p2 == 0 => Fault::Removal(DEFAULT_REMOVAL),
        FAULT_REMOVAL => Fault::Removal(REMOVAL_UNIT * u32::from(p2)),
        FAULT_TOO_LONG => Fault::Raw(vec![0x90; MAX_RESPONSE + 1]),
        FAULT_GARBAGE => Fault::Raw(garbage(if p2 == 0 { 256 } else { usize::from(p2) })),
        FAULT_LE_IGNORED => {
            let le = u16::try_from(command.le().unwrap_or(0)).unwrap_or(u16::MAX);
            Fault::Raw(success(le.saturating_add(u16::from(p2.max(1)))))
        }
        FAULT_ENDLESS => {
            let data = pattern(u16::from(p2));
            let part = ResponseApdu::new(data, StatusWord(0x61FF)).encode();
            Fault::RawThen {
                first: part.clone(),
                then: part,
            }
        }
        FAULT_WRONG_LE => Fault::Raw(vec![0x6C, p2]),
        FAULT_SHORTENED => Fault::RawThen {
            first: vec![0x61, p2],
            then: success(1),
        },
        FAULT_NEXT_OPEN => return rigged(RiggedCommand::Open),
        FAULT_NEXT_SELECT => return rigged(RiggedCommand::Select),
        FAULT_NEXT_CLOSE => return rigged(RiggedCommand::Close),
        FAULT_NEXT_CHANNEL_RESET => return rigged(RiggedCommand::ResetChannel),
        _ => return StatusWord::INCORRECT_P1_P2.into(),
    })
}
