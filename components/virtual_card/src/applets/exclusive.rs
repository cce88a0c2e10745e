/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An application that only one channel can have at a time. On it, it is an [`echo`] application.

use secure_element::apdu::{CommandApdu, Header};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;

use super::aid;
use super::echo::Echo;
use crate::{Applet, Outcome, Selection};

/// Its AID.
pub const AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x03, 0x01];

/// The application. SELECT answers 6985 while it is selected on another channel; so does MANAGE
/// CHANNEL that comes on the channel where it is selected, because the new channel would get it.
#[derive(Debug)]
pub struct Exclusive(Echo);

impl Exclusive {
    /// The application.
    pub const fn new() -> Self {
        Self(Echo::new(aid(&AID)))
    }
}

impl Default for Exclusive {
    fn default() -> Self {
        Self::new()
    }
}

impl Applet for Exclusive {
    fn aid(&self) -> Aid {
        self.0.aid()
    }

    fn is_multi_selectable(&self) -> bool {
        false
    }

    fn select(&mut self, channel: ChannelNumber, p2: u8) -> Selection {
        self.0.select(channel, p2)
    }

    fn takes_chain(&self, header: Header) -> bool {
        self.0.takes_chain(header)
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        self.0.process(channel, command)
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}
