/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A page's command, made into what is sent to the card.

use secure_element::apdu::{CommandApdu, CommandError, Header, LengthForm};
use secure_element::class_byte::{self, ChannelNumber};
use token_traits::port::Command;
use token_traits::{ErrorKind, TokenError};

/// A page's command, ready to be sent.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Prepared {
    /// The header with the class as on the basic channel, for access rules.
    pub(crate) header: Header,
    /// The command, on its channel.
    pub(crate) command: Vec<u8>,
}

/// Reads a page's command, refuses what would leave its channel, and moves it to that channel.
pub(crate) fn prepare(command: Command, channel: ChannelNumber) -> Result<Prepared, TokenError> {
    let invalid =
        |error: &dyn std::error::Error| TokenError::new(ErrorKind::InvalidValue, error.to_string());
    let command = parse(command).map_err(|error| invalid(&error))?;
    class_byte::check_caller_command(command.header()).map_err(|error| invalid(&error))?;
    let class_on = |channel| {
        class_byte::with_channel(command.header().cla, channel).map_err(|error| invalid(&error))
    };
    let header = Header {
        cla: class_on(ChannelNumber::BASIC)?,
        ..command.header()
    };
    let class = class_on(channel)?;
    Ok(Prepared {
        header,
        command: command.with_class(class).encode(),
    })
}

fn parse(command: Command) -> Result<CommandApdu, CommandError> {
    match command {
        Command::Raw(bytes) => CommandApdu::parse(&bytes),
        Command::Fields {
            header: [cla, ins, p1, p2],
            data,
            le,
            extended,
        } => {
            let data = data.unwrap_or_default();
            let form = if extended || data.len() > 255 || le.is_some_and(|le| le > 256) {
                LengthForm::Extended
            } else {
                LengthForm::Short
            };
            let le = le.map(|le| match (le, form) {
                (0, LengthForm::Short) => 256,
                (0, LengthForm::Extended) => 65_536,
                (le, _) => u32::from(le),
            });
            CommandApdu::new(Header::new(cla, ins, p1, p2), data, le, form)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_channel(channel: u8, command: Command) -> Result<Vec<u8>, ErrorKind> {
        prepare(command, ChannelNumber::new(channel).unwrap())
            .map(|prepared| prepared.command)
            .map_err(|error| error.kind)
    }

    fn fields(data: Option<Vec<u8>>, le: Option<u16>, extended: bool) -> Command {
        Command::Fields {
            header: [0x00, 0xca, 1, 2],
            data,
            le,
            extended,
        }
    }

    #[test]
    fn the_callers_channel_is_replaced() {
        let raw = |cla| Command::Raw(vec![cla, 0xca, 1, 2, 0]);
        assert_eq!(on_channel(2, raw(0x01)), Ok(vec![0x02, 0xca, 1, 2, 0]));
        assert_eq!(on_channel(0, raw(0x83)), Ok(vec![0x80, 0xca, 1, 2, 0]));
        assert_eq!(on_channel(5, raw(0x00)), Ok(vec![0x41, 0xca, 1, 2, 0]));
    }

    #[test]
    fn fields_take_the_short_form_where_it_does() {
        let short = |data, le| on_channel(0, fields(data, le, false)).unwrap();
        assert_eq!(short(None, None), [0x00, 0xca, 1, 2]);
        assert_eq!(short(Some(vec![]), Some(0)), [0x00, 0xca, 1, 2, 0]);
        assert_eq!(short(Some(vec![9]), Some(7)), [0x00, 0xca, 1, 2, 1, 9, 7]);
        assert_eq!(short(None, Some(257)), [0x00, 0xca, 1, 2, 0, 1, 1]);
        assert_eq!(short(Some(vec![0; 256]), Some(0))[4..7], [0, 1, 0]);
        let extended = on_channel(0, fields(Some(vec![9]), Some(0), true)).unwrap();
        assert_eq!(extended, [0x00, 0xca, 1, 2, 0, 0, 1, 9, 0, 0]);
        let too_long = fields(Some(vec![0; 65_536]), None, true);
        assert_eq!(on_channel(0, too_long), Err(ErrorKind::InvalidValue));
    }

    #[test]
    fn what_would_leave_the_channel_is_refused_in_every_class() {
        for cla in [0x00, 0x03, 0x40, 0x80, 0x84, 0xc0, 0xe0] {
            for command in [
                vec![cla, 0x70, 0x00, 0x00, 0x01],
                vec![cla, 0x70, 0x80, 0x01],
                vec![cla, 0xa4, 0x04, 0x00, 0x01, 0xa0],
            ] {
                assert_eq!(
                    on_channel(1, Command::Raw(command)),
                    Err(ErrorKind::InvalidValue)
                );
            }
        }
        for malformed in [
            vec![],
            vec![0, 1, 2],
            vec![0, 0xca, 0, 0, 5, 1],
            vec![0xff, 0xca, 0, 0],
        ] {
            assert_eq!(
                on_channel(1, Command::Raw(malformed)),
                Err(ErrorKind::InvalidValue)
            );
        }
    }
}
