/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::time::Duration;

use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;

/// An application on the card. It may be selected on several channels at once.
pub trait Applet: Send {
    /// Its complete AID, which is its DF name.
    fn aid(&self) -> Aid;

    /// It is being selected on `channel`.
    fn select(&mut self, channel: ChannelNumber) -> Selection {
        let _ = channel;
        Selection::default()
    }

    /// It is no longer selected on `channel`: another application is, or the channel is closed.
    fn deselect(&mut self, channel: ChannelNumber) {
        let _ = channel;
    }

    /// Carries out a command that arrived on `channel`, class byte as received. The channel is
    /// open, and there is neither chaining nor secure messaging. A response whose data is longer
    /// than the caller allows becomes 6Cxx, or is sent in parts with T=0.
    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome;

    /// The card was reset.
    fn reset(&mut self) {}
}

/// What an applet says to being selected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Selection {
    /// 9000 or a warning; with an error the application is not selected.
    pub status: StatusWord,
    /// Encoded data objects that follow the DF name in the file control information.
    pub control_information: Vec<u8>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            status: StatusWord::OK,
            control_information: Vec::new(),
        }
    }
}

/// What comes of a command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A response.
    Response(ResponseApdu),
    /// The card does something that it should not.
    Fault(Fault),
}

impl From<ResponseApdu> for Outcome {
    fn from(response: ResponseApdu) -> Self {
        Self::Response(response)
    }
}

impl From<StatusWord> for Outcome {
    fn from(status: StatusWord) -> Self {
        Self::Response(status.into())
    }
}

/// How a card can fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It sends exactly these bytes, whether they are a response or not.
    Raw(Vec<u8>),
    /// It does not answer, for [`crate::MAX_DELAY`].
    Mute,
    /// It loses its state as by a reset that nobody asked for, and answers 6F00.
    Reset,
    /// It leaves its reader, for this long (see [`crate::Card::returns_after`]).
    Removal(Duration),
}
