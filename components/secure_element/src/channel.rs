/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Opening and closing logical channels and selecting applications: the commands, and what the
//! answers mean (Web API for Accessing Secure Element sections 11 and 12, ISO/IEC 7816-4 sections
//! 11.1.1 and 11.1.2).

use std::fmt;

use thiserror::Error;

use crate::apdu::{CommandApdu, CommandError, Header, ResponseApdu, StatusWord};
use crate::class_byte::{self, ChannelNumber};

const INS_MANAGE_CHANNEL: u8 = 0x70;
const P1_OPEN: u8 = 0x00;
const P1_RESET: u8 = 0x40;
const P1_CLOSE: u8 = 0x80;

const INS_SELECT: u8 = 0xA4;
const P1_BY_DF_NAME: u8 = 0x04;
const P2_NEXT_OCCURRENCE: u8 = 0x02;

/// An application identifier, or the beginning of one, as SELECT by DF name takes it: 1 to 16
/// bytes.
///
/// ISO/IEC 7816-4 section 12.2.3 gives a complete AID 5 to 16 bytes. The Web API also allows a
/// partial one, for which it names no least length. [`Aid::has_complete_length`] tells the two
/// apart as far as that is possible; an empty AID is not an `Aid` (see [`select`]).
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Aid {
    bytes: [u8; Aid::MAX_LENGTH],
    length: u8,
}

/// The bytes given are not 1 to 16.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("an AID has 1 to 16 bytes, not {0}")]
pub struct AidError(pub usize);

impl Aid {
    /// The length of the longest AID.
    pub const MAX_LENGTH: usize = 16;
    /// The length of a registered application provider identifier, and of the shortest complete
    /// AID.
    pub const RID_LENGTH: usize = 5;

    /// The AID of these 1 to 16 bytes.
    pub const fn new(aid: &[u8]) -> Result<Self, AidError> {
        if aid.is_empty() || aid.len() > Self::MAX_LENGTH {
            return Err(AidError(aid.len()));
        }
        let mut bytes = [0; Self::MAX_LENGTH];
        bytes.split_at_mut(aid.len()).0.copy_from_slice(aid);
        Ok(Self {
            bytes,
            length: aid.len() as u8,
        })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        // The length is at most 16, so the fallback is never taken.
        self.bytes.get(..usize::from(self.length)).unwrap_or(&[])
    }

    /// Whether this can be a complete AID. Shorter ones span application providers.
    pub fn has_complete_length(&self) -> bool {
        usize::from(self.length) >= Self::RID_LENGTH
    }

    /// Whether an application of the DF name `name` is meant by this complete or partial AID.
    pub fn matches(&self, name: &[u8]) -> bool {
        name.starts_with(self.as_bytes())
    }
}

/// Shows the length only: which applets a page asks for is its user's business.
impl fmt::Debug for Aid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Aid({} bytes)", self.length)
    }
}

impl TryFrom<&[u8]> for Aid {
    type Error = AidError;

    fn try_from(aid: &[u8]) -> Result<Self, AidError> {
        Self::new(aid)
    }
}

/// What SELECT is to answer: bits 4 and 3 of its P2. The Web API allows these four values, all of
/// them with "first or only occurrence".
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SelectResponse {
    /// 00: the file control information template.
    #[default]
    Fci,
    /// 04: the file control parameters.
    Fcp,
    /// 08: the file management data.
    Fmd,
    /// 0C: no data, or proprietary data.
    None,
}

/// A P2 of SELECT that the Web API does not allow.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("P2 of SELECT must be 00, 04, 08 or 0C, not {0:02X}")]
pub struct P2Error(pub u8);

impl SelectResponse {
    /// Reads the P2 that a caller gives.
    pub const fn from_p2(p2: u8) -> Result<Self, P2Error> {
        match p2 {
            0x00 => Ok(Self::Fci),
            0x04 => Ok(Self::Fcp),
            0x08 => Ok(Self::Fmd),
            0x0C => Ok(Self::None),
            _ => Err(P2Error(p2)),
        }
    }

    /// The P2 for the first or only occurrence.
    pub const fn to_p2(self) -> u8 {
        match self {
            Self::Fci => 0x00,
            Self::Fcp => 0x04,
            Self::Fmd => 0x08,
            Self::None => 0x0C,
        }
    }
}

/// MANAGE CHANNEL that opens the next free supplementary channel, sent on the basic channel.
pub const fn open_command() -> CommandApdu {
    let header = Header::new(0x00, INS_MANAGE_CHANNEL, P1_OPEN, 0x00);
    CommandApdu::short_without_data(header, Some(1))
}

/// MANAGE CHANNEL that closes a supplementary channel, sent on that channel. For the basic
/// channel, which cannot be closed, use [`reset_command`].
pub const fn close_command(channel: ChannelNumber) -> CommandApdu {
    let class = class_byte::interindustry(channel);
    let header = Header::new(class, INS_MANAGE_CHANNEL, P1_CLOSE, channel.get());
    CommandApdu::short_without_data(header, None)
}

/// MANAGE CHANNEL that resets the basic channel: the default application is selected again. Where
/// a card answers with an error, the Web API wants `select(None, ..)` on the basic channel instead.
pub const fn reset_command() -> CommandApdu {
    let header = Header::new(0x00, INS_MANAGE_CHANNEL, P1_RESET, 0x00);
    CommandApdu::short_without_data(header, None)
}

/// SELECT by DF name, first or only occurrence. Without an AID, Lc and data are omitted and the
/// issuer security domain is selected.
pub fn select(
    aid: Option<&Aid>,
    response: SelectResponse,
    channel: ChannelNumber,
) -> Result<CommandApdu, CommandError> {
    select_command(aid, response, response.to_p2(), channel)
}

/// SELECT by DF name, next occurrence, with the same partial AID as before.
pub fn select_next(
    aid: &Aid,
    response: SelectResponse,
    channel: ChannelNumber,
) -> Result<CommandApdu, CommandError> {
    let p2 = response.to_p2() | P2_NEXT_OCCURRENCE;
    select_command(Some(aid), response, p2, channel)
}

fn select_command(
    aid: Option<&Aid>,
    response: SelectResponse,
    p2: u8,
    channel: ChannelNumber,
) -> Result<CommandApdu, CommandError> {
    let class = class_byte::interindustry(channel);
    let header = Header::new(class, INS_SELECT, P1_BY_DF_NAME, p2);
    let data = aid.map_or(&[][..], Aid::as_bytes).to_vec();
    let le = (response != SelectResponse::None).then_some(256);
    CommandApdu::with_shortest_form(header, data, le)
}

/// The card did not do what the command asks for, in a way that has no outcome of its own.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ChannelError {
    /// MANAGE CHANNEL succeeded, but its answer is not one byte.
    #[error("MANAGE CHANNEL answered with {0} bytes instead of a channel number")]
    NoChannelNumber(usize),
    /// The card named a channel that it cannot have opened: 0, or more than 19.
    #[error("the card says that it opened channel {0}")]
    InvalidChannel(u8),
    /// Another status word than the ones with a meaning here.
    #[error("the card answered with status {0}")]
    Refused(StatusWord),
}

/// What became of opening a supplementary channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opened {
    /// The card opened this channel, 1 to 19. Whether it was open before is the caller's to check.
    Channel(ChannelNumber),
    /// The card has no free channel, or no logical channels at all.
    NoChannel,
}

/// Reads the answer to [`open_command`].
///
/// 6881 and 6A81 say that there is no channel; so do 6D00 and 6E00, with which cards without
/// logical channels answer.
pub fn parse_opened(response: &ResponseApdu) -> Result<Opened, ChannelError> {
    match response.status {
        StatusWord::OK => match *response.data {
            [number] => match ChannelNumber::new(number) {
                Some(channel) if !channel.is_basic() => Ok(Opened::Channel(channel)),
                _ => Err(ChannelError::InvalidChannel(number)),
            },
            _ => Err(ChannelError::NoChannelNumber(response.data.len())),
        },
        StatusWord::CHANNEL_NOT_SUPPORTED
        | StatusWord::FUNCTION_NOT_SUPPORTED
        | StatusWord::INS_NOT_SUPPORTED
        | StatusWord::CLA_NOT_SUPPORTED => Ok(Opened::NoChannel),
        status => Err(ChannelError::Refused(status)),
    }
}

/// What became of selecting an application.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Selected {
    /// 9000 or a warning: the application is selected, and the response is the channel's
    /// `openResponse`.
    Application,
    /// No (further) application of that name can be selected.
    NoApplication,
    /// The card does not support the channel.
    NoChannel,
}

/// Reads the answer to [`select`] and [`select_next`].
///
/// 6A82 says that there is no such application, and 6999 (GlobalPlatform) that it will not be
/// selected.
pub fn parse_selected(response: &ResponseApdu) -> Result<Selected, ChannelError> {
    match response.status {
        status if status.is_ok() || status.is_warning() => Ok(Selected::Application),
        StatusWord::NOT_FOUND | StatusWord::APPLET_SELECT_FAILED => Ok(Selected::NoApplication),
        StatusWord::CHANNEL_NOT_SUPPORTED | StatusWord::FUNCTION_NOT_SUPPORTED => {
            Ok(Selected::NoChannel)
        }
        status => Err(ChannelError::Refused(status)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::class_byte::channel_of;

    const NAME: [u8; 7] = [0xA0, 0, 0, 0, 0x03, 1, 2];

    fn channel(number: u8) -> ChannelNumber {
        ChannelNumber::new(number).unwrap()
    }

    #[test]
    fn aids_are_bounded() {
        assert_eq!(Aid::new(&[]), Err(AidError(0)));
        assert_eq!(Aid::new(&[0; 17]), Err(AidError(17)));
        assert_eq!(Aid::new(&[1; 16]).unwrap().as_bytes(), [1; 16]);
        let aid = Aid::new(&NAME).unwrap();
        assert_eq!(aid.as_bytes(), NAME);
        assert!(aid.has_complete_length());
        let partial = Aid::new(&NAME[..4]).unwrap();
        assert!(!partial.has_complete_length());
        assert!(partial.matches(&NAME) && aid.matches(&NAME));
        assert!(!aid.matches(&NAME[..6]));
        assert!(!format!("{aid:?}").contains("160"));
    }

    #[test]
    fn manage_channel_commands() {
        assert_eq!(open_command().encode(), [0x00, 0x70, 0x00, 0x00, 0x01]);
        assert_eq!(close_command(channel(2)).encode(), [0x02, 0x70, 0x80, 0x02]);
        assert_eq!(close_command(channel(19)).encode(), [0x4F, 0x70, 0x80, 19]);
        assert_eq!(reset_command().encode(), [0x00, 0x70, 0x40, 0x00]);
    }

    #[test]
    fn select_commands() {
        let aid = Aid::new(&[0xA0, 0, 0, 0, 3]).unwrap();
        let encoded = |command: Result<CommandApdu, CommandError>| command.unwrap().encode();
        assert_eq!(
            encoded(select(
                Some(&aid),
                SelectResponse::Fci,
                ChannelNumber::BASIC
            )),
            [0x00, 0xA4, 0x04, 0x00, 5, 0xA0, 0, 0, 0, 3, 0]
        );
        assert_eq!(
            encoded(select(Some(&aid), SelectResponse::None, channel(4))),
            [0x40, 0xA4, 0x04, 0x0C, 5, 0xA0, 0, 0, 0, 3]
        );
        assert_eq!(
            encoded(select_next(&aid, SelectResponse::Fcp, channel(1))),
            [0x01, 0xA4, 0x04, 0x06, 5, 0xA0, 0, 0, 0, 3, 0]
        );
        // An empty AID: Lc and data are omitted.
        assert_eq!(
            encoded(select(None, SelectResponse::Fci, channel(1))),
            [0x01, 0xA4, 0x04, 0x00, 0x00]
        );
    }

    #[test]
    fn only_four_values_of_p2_are_allowed() {
        for p2 in 0..=0xFF {
            match SelectResponse::from_p2(p2) {
                Ok(response) => {
                    assert!(p2 & !0x0C == 0);
                    assert_eq!(response.to_p2(), p2);
                }
                Err(error) => {
                    assert!(p2 & !0x0C != 0);
                    assert_eq!(error, P2Error(p2));
                }
            }
        }
    }

    #[test]
    fn answers_to_open() {
        let answer =
            |data: &[u8], sw| parse_opened(&ResponseApdu::new(data.to_vec(), StatusWord(sw)));
        assert_eq!(answer(&[1], 0x9000), Ok(Opened::Channel(channel(1))));
        assert_eq!(answer(&[19], 0x9000), Ok(Opened::Channel(channel(19))));
        for number in [0, 20, 0xFF] {
            assert_eq!(
                answer(&[number], 0x9000),
                Err(ChannelError::InvalidChannel(number))
            );
        }
        assert_eq!(answer(&[], 0x9000), Err(ChannelError::NoChannelNumber(0)));
        assert_eq!(
            answer(&[1, 2], 0x9000),
            Err(ChannelError::NoChannelNumber(2))
        );
        for sw in [0x6881, 0x6A81, 0x6D00, 0x6E00] {
            assert_eq!(answer(&[], sw), Ok(Opened::NoChannel));
        }
        for sw in [0x6985, 0x6200, 0x6F00] {
            assert_eq!(answer(&[1], sw), Err(ChannelError::Refused(StatusWord(sw))));
        }
    }

    #[test]
    fn answers_to_select() {
        let answer = |sw| parse_selected(&StatusWord(sw).into());
        for sw in [0x9000, 0x6200, 0x6283, 0x6310] {
            assert_eq!(answer(sw), Ok(Selected::Application));
        }
        for sw in [0x6A82, 0x6999] {
            assert_eq!(answer(sw), Ok(Selected::NoApplication));
        }
        for sw in [0x6881, 0x6A81] {
            assert_eq!(answer(sw), Ok(Selected::NoChannel));
        }
        for sw in [0x6985, 0x6A86, 0x6110, 0x6E00] {
            assert_eq!(answer(sw), Err(ChannelError::Refused(StatusWord(sw))));
        }
    }

    proptest! {
        #[test]
        fn select_commands_say_what_they_were_made_of(
            aid in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..=16)),
            response in prop_oneof![
                Just(SelectResponse::Fci),
                Just(SelectResponse::Fcp),
                Just(SelectResponse::Fmd),
                Just(SelectResponse::None),
            ],
            number in 0..=ChannelNumber::MAX,
            is_next in any::<bool>(),
        ) {
            let channel = channel(number);
            let name = aid.as_deref().map(|aid| Aid::new(aid).unwrap());
            let command = match &name {
                Some(name) if is_next => select_next(name, response, channel),
                _ => select(name.as_ref(), response, channel),
            };
            let command = CommandApdu::parse(&command.unwrap().encode()).unwrap();
            let header = command.header();
            prop_assert_eq!(channel_of(header.cla), Ok(channel));
            prop_assert_eq!((header.ins, header.p1), (INS_SELECT, P1_BY_DF_NAME));
            let next = if is_next && name.is_some() { P2_NEXT_OCCURRENCE } else { 0 };
            prop_assert_eq!(header.p2 & 0x03, next);
            prop_assert_eq!(SelectResponse::from_p2(header.p2 & !0x03), Ok(response));
            prop_assert_eq!(command.data(), aid.as_deref().unwrap_or_default());
            prop_assert_eq!(command.le().is_some(), response != SelectResponse::None);
        }

        #[test]
        fn aids_keep_their_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            match Aid::new(&bytes) {
                Ok(aid) => prop_assert_eq!(aid.as_bytes(), bytes),
                Err(error) => {
                    prop_assert_eq!(error, AidError(bytes.len()));
                    prop_assert!(!(1..=16).contains(&bytes.len()));
                }
            }
        }

        #[test]
        fn close_commands_name_their_channel(number in 1..=ChannelNumber::MAX) {
            let command = CommandApdu::parse(&close_command(channel(number)).encode()).unwrap();
            let header = command.header();
            prop_assert_eq!(channel_of(header.cla), Ok(channel(number)));
            prop_assert_eq!((header.p1, header.p2), (P1_CLOSE, number));
        }
    }
}
