/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::time::Duration;

use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;

/// An application on the card.
pub trait Applet: Send {
    /// Its complete AID, which is its DF name.
    fn aid(&self) -> Aid;

    /// Whether it may be selected on several channels at once. Where not, the card answers 6985 to
    /// a second selection.
    fn is_multi_selectable(&self) -> bool {
        true
    }

    /// It is being selected on `channel`, perhaps once more: what it remembers of this channel ends
    /// here at the latest. `p2` is that of SELECT, or 0 where MANAGE CHANNEL selects it.
    fn select(&mut self, channel: ChannelNumber, p2: u8) -> Selection {
        let _ = (channel, p2);
        Selection::default()
    }

    /// Whether bits 5 to 3 of this class byte, channel stripped, are the application's own
    /// business. Otherwise the card reads them as chaining and secure messaging.
    fn owns_class(&self, class: u8) -> bool {
        let _ = class;
        false
    }

    /// Whether the card collects the data of a chain of such commands. The class byte comes without
    /// channel and chaining bit.
    fn takes_chain(&self, header: Header) -> bool {
        let _ = header;
        false
    }

    /// Carries out a command that arrived on `channel`, class byte as received. The channel is
    /// open; a chain is a single command; and unless the class is its own, there is no secure
    /// messaging. A response whose data is longer than the caller allows becomes 6Cxx, or is sent
    /// in parts with T=0.
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
    /// What is answered instead of file control information, for applications whose standard says so.
    pub answer: Option<Vec<u8>>,
}

impl Default for Selection {
    fn default() -> Self {
        StatusWord::OK.into()
    }
}

impl From<StatusWord> for Selection {
    fn from(status: StatusWord) -> Self {
        Self {
            status,
            control_information: Vec::new(),
            answer: None,
        }
    }
}

/// What comes of a command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A response.
    Response(ResponseApdu),
    /// A response that leaves in parts over either protocol, unless the caller's extended Le has
    /// room for all of it.
    InParts(ResponseApdu, Parts),
    /// The channels that are open in the card, in 3 bytes: bit n of the number stands for channel
    /// n.
    OpenChannels,
    /// 9000, and the card is to do something that it should not, later.
    Rig(Rigged),
    /// The card does something that it should not, now.
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

/// How a long response is taken apart. What follows a part is announced by 61xx, and GET RESPONSE
/// fetches it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parts {
    /// 255 bytes each. With T=0 even the first one is announced, so that 61FF comes first.
    Of255,
    /// 256 bytes each, so that 6100 announces them.
    Of256,
    /// 255 bytes each. With T=0 the first one has to be asked for with that length: 6CFF.
    Of255AfterCorrection,
}

impl Parts {
    pub(crate) const fn length(self) -> usize {
        match self {
            Self::Of255 | Self::Of255AfterCorrection => 255,
            Self::Of256 => 256,
        }
    }
}

/// What the card does the next time that it gets a certain command, once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rigged {
    /// The command, on whatever channel it comes.
    pub command: RiggedCommand,
    /// Whether the card carries it out all the same.
    pub carried_out: bool,
    /// What the card sends, whether that is a response or not.
    pub answer: Vec<u8>,
}

/// Commands that are the card's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RiggedCommand {
    /// MANAGE CHANNEL, open.
    Open,
    /// SELECT by DF name, but for that of the ARA-M.
    Select,
    /// MANAGE CHANNEL, close.
    Close,
    /// MANAGE CHANNEL, reset the basic channel.
    ResetChannel,
}

/// How a card can fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It sends exactly these bytes, whether they are a response or not.
    Raw(Vec<u8>),
    /// It sends bytes, and with T=0 others at each GET RESPONSE that follows, for ever.
    RawThen {
        /// At the command.
        first: Vec<u8>,
        /// At GET RESPONSE.
        then: Vec<u8>,
    },
    /// It does not answer, for [`crate::MAX_DELAY`].
    Mute,
    /// It loses its state as by a reset that nobody asked for, and answers 6F00.
    Reset,
    /// It leaves its reader, for this long (see [`crate::Card::returns_after`]).
    Removal(Duration),
}
