/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Command and response APDUs, and status words (ISO/IEC 7816-4 section 5, ISO/IEC 7816-3
//! section 12.1).

use std::fmt;

use thiserror::Error;

/// The most data bytes that a command can carry (extended Lc).
pub const MAX_COMMAND_DATA: usize = 65_535;
/// The most data bytes that a response can carry (extended Le).
pub const MAX_RESPONSE_DATA: usize = 65_536;
/// The longest command: header, extended Lc, data, extended Le.
pub const MAX_COMMAND: usize = 4 + 3 + MAX_COMMAND_DATA + 2;
/// The longest response: data and status word.
pub const MAX_RESPONSE: usize = MAX_RESPONSE_DATA + 2;

const MAX_SHORT_DATA: usize = 255;
const MAX_SHORT_LE: u32 = 256;
const MAX_EXTENDED_LE: u32 = 65_536;

/// Why bytes are not a command APDU, or parts do not make one.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum CommandError {
    /// There are fewer bytes than the four of a header.
    #[error("a command has at least 4 bytes, not {0}")]
    TooShort(usize),
    /// There are more bytes than any command can have.
    #[error("a command has at most {MAX_COMMAND} bytes, not {0}")]
    TooLong(usize),
    /// An extended length was begun, but its two bytes are not there.
    #[error("the extended length field is cut off")]
    TruncatedLength,
    /// An extended Lc of zero, which has no meaning.
    #[error("an extended Lc must not be zero")]
    ZeroLc,
    /// Lc announces a number of data bytes that the rest of the command does not match.
    #[error("Lc announces {announced} data bytes, but {available} bytes follow it")]
    LengthMismatch {
        /// What Lc says.
        announced: usize,
        /// The bytes behind Lc, Le included.
        available: usize,
    },
    /// More data than the length form can carry.
    #[error("{0} data bytes do not fit into the command")]
    DataTooLong(usize),
    /// An Le of 0, or more than the length form can carry.
    #[error("an expected length of {0} cannot be encoded")]
    InvalidLe(u32),
}

/// How Lc and Le are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LengthForm {
    /// One byte: at most 255 bytes of data and 256 expected.
    Short,
    /// Two bytes (three for the first field): at most 65,535 bytes of data and 65,536 expected.
    Extended,
}

/// The four bytes that every command starts with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// Class byte.
    pub cla: u8,
    /// Instruction byte.
    pub ins: u8,
    /// First parameter byte.
    pub p1: u8,
    /// Second parameter byte.
    pub p2: u8,
}

impl Header {
    /// A header of the four bytes, in the order in which they are sent.
    pub const fn new(cla: u8, ins: u8, p1: u8, p2: u8) -> Self {
        Self { cla, ins, p1, p2 }
    }

    /// The four bytes as they are sent.
    pub const fn to_bytes(self) -> [u8; 4] {
        [self.cla, self.ins, self.p1, self.p2]
    }
}

/// A well-formed command APDU.
///
/// Its parts always fit its length form, so [`CommandApdu::encode`] cannot fail.
#[derive(Clone, Eq, PartialEq)]
pub struct CommandApdu {
    header: Header,
    data: Vec<u8>,
    /// 1..=65,536, and at most 256 in the short form.
    le: Option<u32>,
    form: LengthForm,
}

/// Shows lengths only: the data may be a PIN.
impl fmt::Debug for CommandApdu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CommandApdu")
            .field("ins", &format_args!("{:02X}", self.header.ins))
            .field("data_length", &self.data.len())
            .field("le", &self.le)
            .field("form", &self.form)
            .finish()
    }
}

impl CommandApdu {
    /// A command of its parts. `le` is the number of bytes expected at most, 1 to 65,536; `None`
    /// expects none. `data` may be empty, which means that there is none.
    pub fn new(
        header: Header,
        data: Vec<u8>,
        le: Option<u32>,
        form: LengthForm,
    ) -> Result<Self, CommandError> {
        let (max_data, max_le) = match form {
            LengthForm::Short => (MAX_SHORT_DATA, MAX_SHORT_LE),
            LengthForm::Extended => (MAX_COMMAND_DATA, MAX_EXTENDED_LE),
        };
        if data.len() > max_data {
            return Err(CommandError::DataTooLong(data.len()));
        }
        if let Some(le) = le
            && !(1..=max_le).contains(&le)
        {
            return Err(CommandError::InvalidLe(le));
        }
        // Case 1 has no length field, so it has no extended form either.
        let form = if data.is_empty() && le.is_none() {
            LengthForm::Short
        } else {
            form
        };
        Ok(Self {
            header,
            data,
            le,
            form,
        })
    }

    /// A command of its parts, in the shortest form that carries them.
    pub fn with_shortest_form(
        header: Header,
        data: Vec<u8>,
        le: Option<u32>,
    ) -> Result<Self, CommandError> {
        let form = if data.len() <= MAX_SHORT_DATA && le.is_none_or(|le| le <= MAX_SHORT_LE) {
            LengthForm::Short
        } else {
            LengthForm::Extended
        };
        Self::new(header, data, le, form)
    }

    /// A short case 1 or case 2 command without data. Only for lengths known when it is written:
    /// `le` counts up to 255, and 0 stands for 256.
    pub(crate) const fn short_without_data(header: Header, le: Option<u8>) -> Self {
        let le = match le {
            None => None,
            Some(0) => Some(MAX_SHORT_LE),
            Some(le) => Some(le as u32),
        };
        Self {
            header,
            data: Vec::new(),
            le,
            form: LengthForm::Short,
        }
    }

    /// Reads a command in any of the cases 1, 2S, 3S, 4S, 2E, 3E and 4E (ISO/IEC 7816-3 section
    /// 12.1.3).
    pub fn parse(bytes: &[u8]) -> Result<Self, CommandError> {
        if bytes.len() > MAX_COMMAND {
            return Err(CommandError::TooLong(bytes.len()));
        }
        let Some((&[cla, ins, p1, p2], body)) = bytes.split_first_chunk::<4>() else {
            return Err(CommandError::TooShort(bytes.len()));
        };
        let header = Header::new(cla, ins, p1, p2);
        let (data, le, form) = match *body {
            [] => (&[][..], None, LengthForm::Short),
            [le] => (&[][..], Some(short_le(le)), LengthForm::Short),
            [0, high, low] => (
                &[][..],
                Some(extended_le([high, low])),
                LengthForm::Extended,
            ),
            [0, _] => return Err(CommandError::TruncatedLength),
            [0, high, low, ref rest @ ..] => {
                let lc = usize::from(u16::from_be_bytes([high, low]));
                if lc == 0 {
                    return Err(CommandError::ZeroLc);
                }
                let (data, le) = split_data(rest, lc)?;
                let le = match *le {
                    [] => None,
                    [high, low] => Some(extended_le([high, low])),
                    _ => return Err(mismatch(rest, lc)),
                };
                (data, le, LengthForm::Extended)
            }
            [lc, ref rest @ ..] => {
                let lc = usize::from(lc);
                let (data, le) = split_data(rest, lc)?;
                let le = match *le {
                    [] => None,
                    [le] => Some(short_le(le)),
                    _ => return Err(mismatch(rest, lc)),
                };
                (data, le, LengthForm::Short)
            }
        };
        Self::new(header, data.to_vec(), le, form)
    }

    /// The bytes of the command.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 3 + self.data.len() + 2);
        bytes.extend(self.header.to_bytes());
        match self.form {
            LengthForm::Short => {
                if !self.data.is_empty() {
                    bytes.push(self.data.len() as u8);
                    bytes.extend(&self.data);
                }
                if let Some(le) = self.le {
                    // 256 is written as 0.
                    bytes.push(le as u8);
                }
            }
            LengthForm::Extended => {
                bytes.push(0);
                if !self.data.is_empty() {
                    bytes.extend((self.data.len() as u16).to_be_bytes());
                    bytes.extend(&self.data);
                }
                if let Some(le) = self.le {
                    // 65,536 is written as 0.
                    bytes.extend((le as u16).to_be_bytes());
                }
            }
        }
        bytes
    }

    /// The four header bytes.
    pub const fn header(&self) -> Header {
        self.header
    }

    /// The same command with another class byte.
    pub fn with_class(mut self, cla: u8) -> Self {
        self.header.cla = cla;
        self
    }

    /// The command data; empty if there is none.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The number of response bytes expected at most, 1 to 65,536.
    pub const fn le(&self) -> Option<u32> {
        self.le
    }

    /// How the lengths are written.
    pub const fn length_form(&self) -> LengthForm {
        self.form
    }
}

fn short_le(byte: u8) -> u32 {
    if byte == 0 {
        MAX_SHORT_LE
    } else {
        u32::from(byte)
    }
}

fn extended_le(bytes: [u8; 2]) -> u32 {
    match u16::from_be_bytes(bytes) {
        0 => MAX_EXTENDED_LE,
        le => u32::from(le),
    }
}

fn split_data(rest: &[u8], lc: usize) -> Result<(&[u8], &[u8]), CommandError> {
    rest.split_at_checked(lc).ok_or_else(|| mismatch(rest, lc))
}

fn mismatch(rest: &[u8], lc: usize) -> CommandError {
    CommandError::LengthMismatch {
        announced: lc,
        available: rest.len(),
    }
}

/// The two bytes that end every response (ISO/IEC 7816-4 section 5.6).
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StatusWord(pub u16);

impl StatusWord {
    /// Success.
    pub const OK: Self = Self(0x9000);
    /// Wrong length, no further indication.
    pub const WRONG_LENGTH: Self = Self(0x6700);
    /// The card does not support the logical channel.
    pub const CHANNEL_NOT_SUPPORTED: Self = Self(0x6881);
    /// The card does not support secure messaging.
    pub const SECURE_MESSAGING_NOT_SUPPORTED: Self = Self(0x6882);
    /// The card does not support command chaining.
    pub const CHAINING_NOT_SUPPORTED: Self = Self(0x6884);
    /// Conditions of use not satisfied.
    pub const CONDITIONS_NOT_SATISFIED: Self = Self(0x6985);
    /// The applet refused to be selected (GlobalPlatform).
    pub const APPLET_SELECT_FAILED: Self = Self(0x6999);
    /// Function not supported; as an answer to MANAGE CHANNEL, no channel is free.
    pub const FUNCTION_NOT_SUPPORTED: Self = Self(0x6A81);
    /// File or application not found.
    pub const NOT_FOUND: Self = Self(0x6A82);
    /// Incorrect parameters P1-P2.
    pub const INCORRECT_P1_P2: Self = Self(0x6A86);
    /// Instruction code not supported.
    pub const INS_NOT_SUPPORTED: Self = Self(0x6D00);
    /// Class not supported.
    pub const CLA_NOT_SUPPORTED: Self = Self(0x6E00);

    /// The first byte.
    pub const fn sw1(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The second byte.
    pub const fn sw2(self) -> u8 {
        self.0 as u8
    }

    /// The two bytes as they are sent.
    pub const fn to_bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }

    /// Whether this is 9000.
    pub const fn is_ok(self) -> bool {
        self.0 == 0x9000
    }

    /// Whether this is a warning, 62xx or 63xx.
    pub const fn is_warning(self) -> bool {
        matches!(self.sw1(), 0x62 | 0x63)
    }

    /// Whether this is an execution or checking error, 64xx to 6Fxx.
    pub const fn is_error(self) -> bool {
        matches!(self.sw1(), 0x64..=0x6F)
    }

    /// 61xx: that many more bytes are available, 1 to 256.
    pub const fn bytes_available(self) -> Option<u16> {
        self.length_in_sw2(0x61)
    }

    /// 6Cxx: the length that the command should have asked for, 1 to 256.
    pub const fn exact_length(self) -> Option<u16> {
        self.length_in_sw2(0x6C)
    }

    const fn length_in_sw2(self, sw1: u8) -> Option<u16> {
        if self.sw1() != sw1 {
            None
        } else if self.sw2() == 0 {
            Some(256)
        } else {
            Some(self.sw2() as u16)
        }
    }
}

impl fmt::Debug for StatusWord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04X}", self.0)
    }
}

impl fmt::Display for StatusWord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04X}", self.0)
    }
}

/// Why bytes are not a response APDU.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ResponseError {
    /// There is no complete status word. Real readers deliver this: a card that was pulled in the
    /// middle of a command can appear as success with no byte.
    #[error("a response has at least 2 bytes, not {0}")]
    TooShort(usize),
    /// There are more bytes than any response can have.
    #[error("a response has at most {MAX_RESPONSE} bytes, not {0}")]
    TooLong(usize),
}

/// A response APDU: data, which may be empty, and a status word.
#[derive(Clone, Eq, PartialEq)]
pub struct ResponseApdu {
    /// The response data, without the status word.
    pub data: Vec<u8>,
    /// The status word.
    pub status: StatusWord,
}

/// Shows the length of the data only.
impl fmt::Debug for ResponseApdu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ResponseApdu")
            .field("data_length", &self.data.len())
            .field("status", &self.status)
            .finish()
    }
}

impl ResponseApdu {
    /// A response of its parts.
    pub const fn new(data: Vec<u8>, status: StatusWord) -> Self {
        Self { data, status }
    }

    /// Reads a response of 2 to [`MAX_RESPONSE`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ResponseError> {
        if bytes.len() > MAX_RESPONSE {
            return Err(ResponseError::TooLong(bytes.len()));
        }
        let Some((data, &status)) = bytes.split_last_chunk::<2>() else {
            return Err(ResponseError::TooShort(bytes.len()));
        };
        Ok(Self {
            data: data.to_vec(),
            status: StatusWord(u16::from_be_bytes(status)),
        })
    }

    /// The bytes of the response.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.data.len() + 2);
        bytes.extend(&self.data);
        bytes.extend(self.status.to_bytes());
        bytes
    }
}

impl From<StatusWord> for ResponseApdu {
    fn from(status: StatusWord) -> Self {
        Self::new(Vec::new(), status)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: [u8; 4] = [0x00, 0xA4, 0x04, 0x00];

    fn bytes(parts: &[&[u8]]) -> Vec<u8> {
        [&HEADER[..]]
            .iter()
            .chain(parts)
            .flat_map(|part| part.iter().copied())
            .collect()
    }

    fn parse(parts: &[&[u8]]) -> Result<CommandApdu, CommandError> {
        CommandApdu::parse(&bytes(parts))
    }

    #[test]
    fn every_case_is_read() {
        let data = [7; 300];
        // (body, data length, Le, form)
        let cases: [(Vec<u8>, usize, Option<u32>, LengthForm); 11] = [
            (vec![], 0, None, LengthForm::Short),
            (vec![5], 0, Some(5), LengthForm::Short),
            (vec![0], 0, Some(256), LengthForm::Short),
            ([&[2][..], &data[..2]].concat(), 2, None, LengthForm::Short),
            (
                [&[255][..], &data[..255]].concat(),
                255,
                None,
                LengthForm::Short,
            ),
            (
                [&[2][..], &data[..2], &[0]].concat(),
                2,
                Some(256),
                LengthForm::Short,
            ),
            (vec![0, 0x01, 0x00], 0, Some(256), LengthForm::Extended),
            (vec![0, 0, 0], 0, Some(65_536), LengthForm::Extended),
            (
                [&[0, 0, 1][..], &data[..1]].concat(),
                1,
                None,
                LengthForm::Extended,
            ),
            (
                [&[0, 1, 44][..], &data[..]].concat(),
                300,
                None,
                LengthForm::Extended,
            ),
            (
                [&[0, 1, 44][..], &data[..], &[0, 0]].concat(),
                300,
                Some(65_536),
                LengthForm::Extended,
            ),
        ];
        for (body, length, le, form) in cases {
            let command = parse(&[&body]).unwrap();
            assert_eq!(command.header().to_bytes(), HEADER);
            assert_eq!(command.data().len(), length);
            assert_eq!(command.le(), le);
            assert_eq!(command.length_form(), form);
            assert_eq!(command.encode(), bytes(&[&body]));
        }
    }

    #[test]
    fn every_malformed_length_is_its_own_error() {
        assert_eq!(CommandApdu::parse(&[]), Err(CommandError::TooShort(0)));
        assert_eq!(
            CommandApdu::parse(&HEADER[..3]),
            Err(CommandError::TooShort(3))
        );
        assert_eq!(parse(&[&[0, 1]]), Err(CommandError::TruncatedLength));
        assert_eq!(parse(&[&[0, 0, 0, 9]]), Err(CommandError::ZeroLc));
        let mismatch = |announced, available| {
            Err(CommandError::LengthMismatch {
                announced,
                available,
            })
        };
        // Short: too little, and one byte too many behind Le.
        assert_eq!(parse(&[&[2, 1]]), mismatch(2, 1));
        assert_eq!(parse(&[&[1, 1, 0, 0]]), mismatch(1, 3));
        // Extended: too little, half an Le, and one byte too many.
        assert_eq!(parse(&[&[0, 0, 2, 1]]), mismatch(2, 1));
        assert_eq!(parse(&[&[0, 0, 1, 1, 0]]), mismatch(1, 2));
        assert_eq!(parse(&[&[0, 0, 1, 1, 0, 0, 0]]), mismatch(1, 4));
        let long = vec![0; MAX_COMMAND + 1];
        assert_eq!(
            CommandApdu::parse(&long),
            Err(CommandError::TooLong(long.len()))
        );
    }

    #[test]
    fn the_longest_command_round_trips() {
        let header = Header::new(0x80, 1, 2, 3);
        let command = CommandApdu::new(
            header,
            vec![3; MAX_COMMAND_DATA],
            Some(65_536),
            LengthForm::Extended,
        )
        .unwrap();
        let encoded = command.encode();
        assert_eq!(encoded.len(), MAX_COMMAND);
        assert_eq!(CommandApdu::parse(&encoded), Ok(command));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let header = Header::new(0, 1, 2, 3);
        for (length, le, form, error) in [
            (256, None, LengthForm::Short, CommandError::DataTooLong(256)),
            (
                65_536,
                None,
                LengthForm::Extended,
                CommandError::DataTooLong(65_536),
            ),
            (0, Some(0), LengthForm::Extended, CommandError::InvalidLe(0)),
            (
                0,
                Some(257),
                LengthForm::Short,
                CommandError::InvalidLe(257),
            ),
            (
                0,
                Some(65_537),
                LengthForm::Extended,
                CommandError::InvalidLe(65_537),
            ),
        ] {
            assert_eq!(
                CommandApdu::new(header, vec![0; length], le, form),
                Err(error)
            );
        }
    }

    #[test]
    fn a_case_1_command_has_no_extended_form() {
        let header = Header::new(0, 1, 2, 3);
        let command = CommandApdu::new(header, vec![], None, LengthForm::Extended).unwrap();
        assert_eq!(command.encode(), [0, 1, 2, 3]);
    }

    #[test]
    fn the_shortest_form_is_found() {
        let header = Header::new(0, 1, 2, 3);
        let form = |length, le| {
            CommandApdu::with_shortest_form(header, vec![0; length], le)
                .unwrap()
                .length_form()
        };
        assert_eq!(form(255, Some(256)), LengthForm::Short);
        assert_eq!(form(256, None), LengthForm::Extended);
        assert_eq!(form(0, Some(257)), LengthForm::Extended);
    }

    #[test]
    fn responses_without_a_status_word_are_errors() {
        assert_eq!(ResponseApdu::parse(&[]), Err(ResponseError::TooShort(0)));
        assert_eq!(
            ResponseApdu::parse(&[0x90]),
            Err(ResponseError::TooShort(1))
        );
        assert_eq!(ResponseApdu::parse(&[0x90, 0]), Ok(StatusWord::OK.into()));
        let long = vec![0; MAX_RESPONSE + 1];
        assert_eq!(
            ResponseApdu::parse(&long),
            Err(ResponseError::TooLong(long.len()))
        );
        let longest = ResponseApdu::parse(&long[1..]).unwrap();
        assert_eq!(longest.data.len(), MAX_RESPONSE_DATA);
    }

    #[test]
    fn status_words_have_classes() {
        let sw = StatusWord;
        assert!(sw(0x9000).is_ok() && !sw(0x9001).is_ok());
        assert!(sw(0x6283).is_warning() && sw(0x63C1).is_warning() && !sw(0x6400).is_warning());
        assert!(sw(0x6400).is_error() && sw(0x6C10).is_error() && sw(0x6FFF).is_error());
        assert!(!sw(0x6110).is_error() && !sw(0x6310).is_error() && !sw(0x9000).is_error());
        assert_eq!(sw(0x6100).bytes_available(), Some(256));
        assert_eq!(sw(0x6105).bytes_available(), Some(5));
        assert_eq!(sw(0x6C05).bytes_available(), None);
        assert_eq!(sw(0x6C05).exact_length(), Some(5));
        assert_eq!(sw(0x6C00).exact_length(), Some(256));
        assert_eq!((sw(0x6A82).sw1(), sw(0x6A82).sw2()), (0x6A, 0x82));
    }

    #[test]
    fn debug_output_holds_no_data() {
        let command = parse(&[&[4, 0x31, 0x32, 0x33, 0x34]]).unwrap();
        assert!(!format!("{command:?}").contains("49, 50"));
        let response = ResponseApdu::new(vec![0x31, 0x32], StatusWord::OK);
        assert!(!format!("{response:?}").contains("49"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_exact(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(command) = CommandApdu::parse(&bytes) {
                prop_assert_eq!(command.encode(), bytes);
            }
        }

        #[test]
        fn encoding_round_trips(
            header in any::<[u8; 4]>(),
            data in proptest::collection::vec(any::<u8>(), 0..600),
            le in proptest::option::of(1..=65_536_u32),
            extended in any::<bool>(),
        ) {
            let form = if extended { LengthForm::Extended } else { LengthForm::Short };
            let [cla, ins, p1, p2] = header;
            if let Ok(command) = CommandApdu::new(Header::new(cla, ins, p1, p2), data, le, form) {
                prop_assert_eq!(CommandApdu::parse(&command.encode()), Ok(command));
            }
        }

        #[test]
        fn responses_round_trip(bytes in proptest::collection::vec(any::<u8>(), 2..600)) {
            prop_assert_eq!(ResponseApdu::parse(&bytes).unwrap().encode(), bytes);
        }
    }
}
