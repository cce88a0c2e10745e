/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Logical channels in the class byte (ISO/IEC 7816-4 section 5.4.1, GlobalPlatform Card
//! Specification section 11.1.4), and the commands that a caller may not send on its channel
//! (Web API for Accessing Secure Element section 12.2).
//!
//! | class byte | meaning | channel |
//! |---|---|---|
//! | 00 to 1F | interindustry, first form: b5 chaining, b4-b3 secure messaging | b2-b1: 0 to 3 |
//! | 20 to 3F | reserved: refused | |
//! | 40 to 7F | interindustry, further form: b6 secure messaging, b5 chaining | b4-b1 + 4: 4 to 19 |
//! | 80 to BF | proprietary: carries channels as the first form does | b2-b1 |
//! | C0 to FE | proprietary: carries channels as the further form does | b4-b1 + 4 |
//! | FF | invalid: refused | |
//!
//! The order in which to use this on a caller's command: [`check_caller_command`], then
//! [`without_channel`] for whatever filters the header, then [`with_channel`].

use thiserror::Error;

use crate::apdu::{CommandApdu, Header};

/// Bit 8: the class is proprietary.
const PROPRIETARY: u8 = 0x80;
/// Bit 7: the further form, for channels 4 to 19.
const FURTHER: u8 = 0x40;
/// Bit 6: secure messaging in the further form; reserved in the interindustry first form.
const BIT_6: u8 = 0x20;
/// Bit 5: another command of the chain follows.
const CHAINING: u8 = 0x10;
/// Bits 4 and 3 of the first form: which secure messaging.
const FIRST_SM: u8 = 0x0C;
const FIRST_SM_PROPRIETARY: u8 = 0x04;
const FIRST_SM_HEADER_PLAIN: u8 = 0x08;
const FIRST_SM_HEADER_AUTHENTICATED: u8 = 0x0C;
const FIRST_CHANNEL: u8 = 0x03;
const FURTHER_CHANNEL: u8 = 0x0F;

const INS_MANAGE_CHANNEL: u8 = 0x70;
const INS_SELECT: u8 = 0xA4;
const P1_SELECT_BY_DF_NAME: u8 = 0x04;

/// A logical channel, 0 to 19.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChannelNumber(u8);

impl ChannelNumber {
    /// The channel that is always open.
    pub const BASIC: Self = Self(0);
    /// The highest channel that a class byte can name.
    pub const MAX: u8 = 19;

    /// The channel of that number, if there is one.
    pub const fn new(number: u8) -> Option<Self> {
        if number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number, 0 to 19.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whether this is the channel that is always open.
    pub const fn is_basic(self) -> bool {
        self.0 == 0
    }
}

/// Why a class byte cannot be used, or not on that channel.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ClassError {
    /// 20 to 3F, reserved by ISO/IEC 7816-4.
    #[error("class byte {0:02X} is reserved")]
    Reserved(u8),
    /// FF, which is invalid.
    #[error("class byte FF is invalid")]
    Invalid,
    /// Secure messaging that authenticates the command header has no form on channels 4 to 19.
    #[error("secure messaging with an authenticated header cannot be used on channel {0}")]
    HeaderAuthentication(u8),
    /// The class uses bits that have no counterpart on channels 4 to 19.
    #[error("class byte {class:02X} has no form on channel {channel}")]
    NoSuchForm {
        /// The class byte without its channel.
        class: u8,
        /// The channel it should have moved to.
        channel: u8,
    },
}

fn check(class: u8) -> Result<(), ClassError> {
    match class {
        0xFF => Err(ClassError::Invalid),
        0x20..=0x3F => Err(ClassError::Reserved(class)),
        _ => Ok(()),
    }
}

/// The channel that a class byte names.
pub fn channel_of(class: u8) -> Result<ChannelNumber, ClassError> {
    check(class)?;
    Ok(ChannelNumber(if class & FURTHER == 0 {
        class & FIRST_CHANNEL
    } else {
        (class & FURTHER_CHANNEL) + 4
    }))
}

/// The class byte as it is on the basic channel, whatever channel the caller wrote into it.
///
/// The further form knows only whether there is secure messaging. It becomes the kind that is
/// usual in its class: plain header (08) in interindustry classes, GlobalPlatform's own (84) in
/// proprietary ones.
pub fn without_channel(class: u8) -> Result<u8, ClassError> {
    check(class)?;
    if class & FURTHER == 0 {
        return Ok(class & !FIRST_CHANNEL);
    }
    let secure_messaging = match (class & BIT_6 != 0, class & PROPRIETARY != 0) {
        (false, _) => 0,
        (true, false) => FIRST_SM_HEADER_PLAIN,
        (true, true) => FIRST_SM_PROPRIETARY,
    };
    Ok(class & (PROPRIETARY | CHAINING) | secure_messaging)
}

/// The class byte moved to `channel`, whatever channel the caller wrote into it.
pub fn with_channel(class: u8, channel: ChannelNumber) -> Result<u8, ClassError> {
    let class = without_channel(class)?;
    let number = channel.get();
    if number < 4 {
        return Ok(class | number);
    }
    // Bit 6 of a first form means something only in proprietary classes, and there nobody has said
    // what it would become: as bit 6 of the further form it would announce secure messaging.
    if class & BIT_6 != 0 {
        return Err(ClassError::NoSuchForm {
            class,
            channel: number,
        });
    }
    let secure_messaging = match class & FIRST_SM {
        0 => 0,
        FIRST_SM_HEADER_AUTHENTICATED => return Err(ClassError::HeaderAuthentication(number)),
        _ => BIT_6,
    };
    let moved = class & (PROPRIETARY | CHAINING) | FURTHER | secure_messaging | (number - 4);
    if moved == 0xFF {
        return Err(ClassError::NoSuchForm {
            class,
            channel: number,
        });
    }
    Ok(moved)
}

/// The interindustry class byte for `channel`, without chaining and secure messaging.
pub const fn interindustry(channel: ChannelNumber) -> u8 {
    let number = channel.get();
    if number < 4 {
        number
    } else {
        FURTHER | (number - 4)
    }
}

/// GlobalPlatform's class byte for `channel` (80 to 83, C0 to CF), without chaining and secure
/// messaging.
pub const fn globalplatform(channel: ChannelNumber) -> u8 {
    PROPRIETARY | interindustry(channel)
}

/// Whether the class byte says that another command of the chain follows. In proprietary classes
/// this reads the same bit, as GlobalPlatform uses it.
pub const fn is_chained(class: u8) -> bool {
    class & CHAINING != 0
}

/// Whether the class byte announces secure messaging, in the coding of its form.
pub const fn has_secure_messaging(class: u8) -> bool {
    if class & FURTHER == 0 {
        class & FIRST_SM != 0
    } else {
        class & BIT_6 != 0
    }
}

/// Why a command may not be sent on a channel by whoever uses the channel.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum CallerCommandError {
    /// The class byte cannot be used.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// An instruction byte 6x or 9x, which ISO/IEC 7816-3 reserves for procedure bytes.
    #[error("instruction byte {0:02X} is invalid")]
    InvalidInstruction(u8),
    /// MANAGE CHANNEL: it would open and close channels of others.
    #[error("MANAGE CHANNEL is not allowed on a channel")]
    ManageChannel,
    /// SELECT by DF name: it would leave the application that the channel was opened for.
    #[error("SELECT by DF name is not allowed on a channel")]
    SelectByDfName,
}

/// Checks what a caller wants to send on its channel (Web API for Accessing Secure Element section
/// 12.2). The class makes no difference: cards take 80 70 and 80 A4 04 for what they look like.
pub fn check_caller_command(header: Header) -> Result<(), CallerCommandError> {
    check(header.cla)?;
    match header.ins {
        0x60..=0x6F | 0x90..=0x9F => Err(CallerCommandError::InvalidInstruction(header.ins)),
        INS_MANAGE_CHANNEL => Err(CallerCommandError::ManageChannel),
        INS_SELECT if header.p1 == P1_SELECT_BY_DF_NAME => Err(CallerCommandError::SelectByDfName),
        _ => Ok(()),
    }
}

/// Whether [`check_caller_command`] refuses the command.
pub fn is_forbidden_on_channel(command: &CommandApdu) -> bool {
    check_caller_command(command.header()).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(number: u8) -> ChannelNumber {
        ChannelNumber::new(number).unwrap()
    }

    #[test]
    fn there_are_20_channels() {
        assert_eq!(ChannelNumber::new(19).map(ChannelNumber::get), Some(19));
        assert_eq!(ChannelNumber::new(20), None);
        assert!(ChannelNumber::BASIC.is_basic() && !channel(1).is_basic());
    }

    #[test]
    fn vectors() {
        for (class, number, expected) in [
            (0x00, 0, Ok(0x00)),
            (0x00, 3, Ok(0x03)),
            (0x03, 1, Ok(0x01)),
            (0x00, 4, Ok(0x40)),
            (0x00, 19, Ok(0x4F)),
            (0x10, 1, Ok(0x11)),
            (0x10, 4, Ok(0x50)),
            (0x08, 5, Ok(0x61)),
            (0x04, 5, Ok(0x61)),
            (0x0C, 3, Ok(0x0F)),
            (0x0C, 4, Err(ClassError::HeaderAuthentication(4))),
            (0x1D, 19, Err(ClassError::HeaderAuthentication(19))),
            // The caller's own channel bits never count, in any form.
            (0x4F, 0, Ok(0x00)),
            (0x45, 4, Ok(0x40)),
            (0x6F, 2, Ok(0x0A)),
            (0x73, 6, Ok(0x72)),
            (0x80, 2, Ok(0x82)),
            (0x83, 0, Ok(0x80)),
            (0x80, 4, Ok(0xC0)),
            (0xCF, 19, Ok(0xCF)),
            (0xC3, 1, Ok(0x81)),
            (0x84, 7, Ok(0xE3)),
            (0xE3, 1, Ok(0x85)),
            (0x8C, 8, Err(ClassError::HeaderAuthentication(8))),
            (0x90, 4, Ok(0xD0)),
            (
                0x94,
                19,
                Err(ClassError::NoSuchForm {
                    class: 0x94,
                    channel: 19,
                }),
            ),
            (0x94, 18, Ok(0xFE)),
            (0xA0, 1, Ok(0xA1)),
            (
                0xA0,
                4,
                Err(ClassError::NoSuchForm {
                    class: 0xA0,
                    channel: 4,
                }),
            ),
            (0x20, 1, Err(ClassError::Reserved(0x20))),
            (0x3F, 1, Err(ClassError::Reserved(0x3F))),
            (0xFF, 1, Err(ClassError::Invalid)),
        ] {
            assert_eq!(
                with_channel(class, channel(number)),
                expected,
                "{class:02X} on {number}"
            );
        }
    }

    #[test]
    fn every_class_that_moves_names_its_new_channel_and_keeps_its_meaning() {
        for class in 0..=0xFF {
            for number in 0..=19 {
                let Ok(moved) = with_channel(class, channel(number)) else {
                    continue;
                };
                assert_eq!(
                    channel_of(moved),
                    Ok(channel(number)),
                    "{class:02X} on {number}"
                );
                assert_eq!(moved & PROPRIETARY, class & PROPRIETARY);
                assert_eq!(is_chained(moved), is_chained(class));
                assert_eq!(has_secure_messaging(moved), has_secure_messaging(class));
                assert!(!(0x20..=0x3F).contains(&moved) && moved != 0xFF);
                let stripped = without_channel(class).unwrap();
                assert_eq!(without_channel(stripped), Ok(stripped));
            }
        }
    }

    #[test]
    fn a_class_comes_back_from_every_channel() {
        for class in 0..=0xFF {
            for (from, to) in (4..=19).flat_map(|from| (0..=19).map(move |to| (from, to))) {
                let Ok(moved) = with_channel(class, channel(from)) else {
                    continue;
                };
                // The one that would become FF, which is no class.
                let Ok(there) = with_channel(moved, channel(to)) else {
                    assert_eq!((moved & 0xF0, to), (0xF0, 19));
                    continue;
                };
                let back = with_channel(there, channel(from));
                assert_eq!(back, Ok(moved), "{class:02X} from {from} to {to}");
            }
        }
    }

    #[test]
    fn every_valid_class_works_on_the_first_channels() {
        for class in 0..=0xFE {
            let valid = !(0x20..=0x3F).contains(&class);
            assert_eq!(
                with_channel(class, channel(1)).is_ok(),
                valid,
                "{class:02X}"
            );
        }
    }

    #[test]
    fn interindustry_classes() {
        assert_eq!(interindustry(ChannelNumber::BASIC), 0x00);
        assert_eq!(interindustry(channel(3)), 0x03);
        assert_eq!(interindustry(channel(4)), 0x40);
        assert_eq!(interindustry(channel(19)), 0x4F);
    }

    #[test]
    fn globalplatform_classes() {
        for number in 0..=ChannelNumber::MAX {
            let channel = channel(number);
            assert_eq!(Ok(globalplatform(channel)), with_channel(0x80, channel));
        }
    }

    #[test]
    fn channel_commands_are_refused_in_every_class() {
        for cla in 0..=0xFF {
            for (ins, p1) in [(0x70, 0x00), (0x70, 0x80), (0x70, 0x40), (0xA4, 0x04)] {
                let command = CommandApdu::parse(&[cla, ins, p1, 0x00, 0x00]).unwrap();
                assert!(
                    is_forbidden_on_channel(&command),
                    "{cla:02X}{ins:02X}{p1:02X}"
                );
            }
        }
    }

    #[test]
    fn other_commands_pass() {
        for header in [
            Header::new(0x00, 0xA4, 0x00, 0x0C),
            Header::new(0x00, 0xA4, 0x08, 0x00),
            Header::new(0x80, 0xCA, 0xFF, 0x40),
            Header::new(0xA0, 0xB0, 0x04, 0x00),
            Header::new(0x00, 0x20, 0x00, 0x80),
        ] {
            assert_eq!(check_caller_command(header), Ok(()));
        }
    }

    #[test]
    fn procedure_byte_instructions_are_refused() {
        for ins in (0x60..=0x6F).chain(0x90..=0x9F) {
            assert_eq!(
                check_caller_command(Header::new(0x00, ins, 0, 0)),
                Err(CallerCommandError::InvalidInstruction(ins))
            );
        }
    }
}
