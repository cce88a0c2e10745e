/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An application with a PIN.
//!
//! Class 00 or 80, on any channel. The PIN is 4 bytes and at first "1234", the PUK is 8 bytes,
//! "12345678". The reference data qualifier, P2, is 80 for the three commands of ISO/IEC 7816-4
//! section 11.6; another one is 6A88.
//!
//! | INS | P1 P2 | data | answer |
//! |---|---|---|---|
//! | 20 VERIFY | 00 80 | PIN | 9000, or 63Cx with the tries that are left, or 6983 if there are none |
//! | | 00 80 | none | 9000 if the PIN was verified on this channel, else 63Cx or 6983; costs nothing |
//! | | FF 80 | none | 9000; it is no longer verified on this channel |
//! | 24 CHANGE REFERENCE DATA | 00 80 | PIN, new PIN | as VERIFY |
//! | 2C RESET RETRY COUNTER | 00 80 | PUK, new PIN | 9000, or 63Cx or 6983 for the PUK |
//! | | 01 80 | PUK | the same; the PIN stays |
//! | 50 | any | none | [`SECRET`], or 6982 if the PIN was not verified on this channel |
//! | 52 | any | none | the tries left: PIN, PUK |
//! | 54 | any | none | 9000; PIN, PUK and tries are as at first, and nothing is verified |
//!
//! Data of another length is 6700. That the PIN was verified is known per channel, and forgotten
//! with SELECT, when the channel closes, and with a reset; a wrong PIN ends it on its channel, and
//! the last try on all. PIN, PUK and tries outlive a reset.

use std::collections::BTreeSet;

use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;

use super::{aid, is_plain_class};
use crate::{Applet, Outcome, Selection};

/// Its AID.
pub const AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x04, 0x01];

/// The PIN at first.
pub const PIN: [u8; 4] = *b"1234";
/// The PUK.
pub const PUK: [u8; 8] = *b"12345678";
/// Wrong PINs until it is blocked.
pub const PIN_TRIES: u8 = 3;
/// Wrong PUKs until it is blocked.
pub const PUK_TRIES: u8 = 5;
/// What the application tells whoever has the PIN.
pub const SECRET: [u8; 16] = *b"only after a PIN";

/// Compares the PIN.
pub const INS_VERIFY: u8 = 0x20;
/// Changes the PIN.
pub const INS_CHANGE_REFERENCE_DATA: u8 = 0x24;
/// Gives the PIN new tries.
pub const INS_RESET_RETRY_COUNTER: u8 = 0x2C;
/// Answers with [`SECRET`].
pub const INS_SECRET: u8 = 0x50;
/// Answers with the tries left.
pub const INS_TRIES: u8 = 0x52;
/// Makes everything as it was at first.
pub const INS_RESTORE: u8 = 0x54;

/// P2 of the commands that are about the PIN.
pub const REFERENCE: u8 = 0x80;

const SECURITY_STATUS_NOT_SATISFIED: StatusWord = StatusWord(0x6982);
const BLOCKED: StatusWord = StatusWord(0x6983);
const REFERENCE_NOT_FOUND: StatusWord = StatusWord(0x6A88);

/// The application.
#[derive(Debug)]
pub struct Pin {
    pin: Secret<4>,
    puk: Secret<8>,
    /// The channels on which the PIN was verified.
    verified: BTreeSet<u8>,
}

#[derive(Debug)]
pub(super) struct Secret<const LENGTH: usize> {
    pub(super) value: [u8; LENGTH],
    pub(super) tries: u8,
    max_tries: u8,
}

impl<const LENGTH: usize> Secret<LENGTH> {
    pub(super) const fn new(value: [u8; LENGTH], max_tries: u8) -> Self {
        Self {
            value,
            tries: max_tries,
            max_tries,
        }
    }

    pub(super) fn compare(&mut self, value: &[u8; LENGTH]) -> StatusWord {
        let Some(left) = self.tries.checked_sub(1) else {
            return BLOCKED;
        };
        if *value == self.value {
            self.tries = self.max_tries;
            return StatusWord::OK;
        }
        self.tries = left;
        self.tries_left()
    }

    /// 63Cx, or 6983.
    pub(super) const fn state(&self) -> StatusWord {
        match self.tries {
            0 => BLOCKED,
            _ => self.tries_left(),
        }
    }

    /// 63Cx.
    const fn tries_left(&self) -> StatusWord {
        StatusWord(0x63C0 | self.tries as u16)
    }
}

impl Pin {
    /// The application as it is at first.
    pub const fn new() -> Self {
        Self {
            pin: Secret::new(PIN, PIN_TRIES),
            puk: Secret::new(PUK, PUK_TRIES),
            verified: BTreeSet::new(),
        }
    }

    fn compare(&mut self, channel: u8, pin: &[u8; 4]) -> StatusWord {
        let status = self.pin.compare(pin);
        if status.is_ok() {
            self.verified.insert(channel);
        } else {
            self.verified.remove(&channel);
        }
        if self.pin.tries == 0 {
            self.verified.clear();
        }
        status
    }

    fn verify(&mut self, channel: u8, p1: u8, data: &[u8]) -> StatusWord {
        match (p1, data) {
            (0x00, []) if self.verified.contains(&channel) => StatusWord::OK,
            (0x00, []) => self.pin.state(),
            (0x00, _) => match data.try_into() {
                Ok(pin) => self.compare(channel, pin),
                Err(_) => StatusWord::WRONG_LENGTH,
            },
            (0xFF, []) => {
                self.verified.remove(&channel);
                StatusWord::OK
            }
            (0xFF, _) => StatusWord::WRONG_LENGTH,
            _ => StatusWord::INCORRECT_P1_P2,
        }
    }

    fn change(&mut self, channel: u8, p1: u8, data: &[u8]) -> StatusWord {
        if p1 != 0x00 {
            return StatusWord::INCORRECT_P1_P2;
        }
        let Some((old, new)) = data.split_first_chunk() else {
            return StatusWord::WRONG_LENGTH;
        };
        let Ok(new) = new.try_into() else {
            return StatusWord::WRONG_LENGTH;
        };
        let status = self.compare(channel, old);
        if status.is_ok() {
            self.pin.value = new;
        }
        status
    }

    fn reset_retry_counter(&mut self, p1: u8, data: &[u8]) -> StatusWord {
        let Some((puk, new)) = data.split_first_chunk() else {
            return StatusWord::WRONG_LENGTH;
        };
        let new = match (p1, <[u8; 4]>::try_from(new)) {
            (0x00, Ok(new)) => new,
            (0x01, _) if new.is_empty() => self.pin.value,
            (0x00 | 0x01, _) => return StatusWord::WRONG_LENGTH,
            _ => return StatusWord::INCORRECT_P1_P2,
        };
        let status = self.puk.compare(puk);
        if status.is_ok() {
            self.pin = Secret::new(new, PIN_TRIES);
            self.verified.clear();
        }
        status
    }
}

impl Default for Pin {
    fn default() -> Self {
        Self::new()
    }
}

impl Applet for Pin {
    fn aid(&self) -> Aid {
        const { aid(&AID) }
    }

    fn select(&mut self, channel: ChannelNumber, _: u8) -> Selection {
        self.verified.remove(&channel.get());
        Selection::default()
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        if !is_plain_class(header.cla) {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        let channel = channel.get();
        let data = command.data();
        match header.ins {
            INS_VERIFY | INS_CHANGE_REFERENCE_DATA | INS_RESET_RETRY_COUNTER
                if header.p2 != REFERENCE =>
            {
                REFERENCE_NOT_FOUND.into()
            }
            INS_VERIFY => self.verify(channel, header.p1, data).into(),
            INS_CHANGE_REFERENCE_DATA => self.change(channel, header.p1, data).into(),
            INS_RESET_RETRY_COUNTER => self.reset_retry_counter(header.p1, data).into(),
            INS_SECRET if self.verified.contains(&channel) => {
                ResponseApdu::new(SECRET.to_vec(), StatusWord::OK).into()
            }
            INS_SECRET => SECURITY_STATUS_NOT_SATISFIED.into(),
            INS_TRIES => {
                let tries = vec![self.pin.tries, self.puk.tries];
                ResponseApdu::new(tries, StatusWord::OK).into()
            }
            INS_RESTORE => {
                *self = Self::new();
                StatusWord::OK.into()
            }
            _ => StatusWord::INS_NOT_SUPPORTED.into(),
        }
    }
}
