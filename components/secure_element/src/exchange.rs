/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! One command and its response over a transmission protocol, as a state machine that does no
//! input or output: it says what to send and is told what came back (Web API for Accessing Secure
//! Element section 7, ISO/IEC 7816-3 section 12.2).
//!
//! - T=1 carries the command as it is. There is one exchange, and GET RESPONSE is never sent.
//! - T=0 carries TPDUs of five bytes and at most 255 bytes of data. Le is dropped from case 4,
//!   longer commands go through ENVELOPE, 61xx is followed by GET RESPONSE, and 6Cxx by the same
//!   TPDU with the length that the card wants.
//!
//! A card cannot make this go on for ever, or collect more than a response can hold: see
//! [`MAX_STEPS`] and [`ExchangeError::TooMuchData`].

use std::fmt;

use thiserror::Error;

use crate::apdu::{
    CommandApdu, Header, MAX_RESPONSE_DATA, ResponseApdu, ResponseError, StatusWord,
};
use crate::class_byte::{self, ClassError};

/// How many TPDUs one command may take. A response of the greatest length takes 257 when the card
/// fills each part, and a command of the greatest length takes 258 envelopes.
pub const MAX_STEPS: usize = 1024;

const INS_GET_RESPONSE: u8 = 0xC0;
const INS_ENVELOPE: u8 = 0xC2;
/// The most data bytes in one TPDU.
const MAX_TPDU_DATA: usize = 255;

/// The transmission protocol between reader and card.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Character oriented, ISO/IEC 7816-3 section 10.
    T0,
    /// Block oriented, ISO/IEC 7816-3 section 11; also what contactless cards look like.
    T1,
}

/// Whether a warning is followed by GET RESPONSE on T=0.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kind {
    /// Any command: it is not.
    #[default]
    Ordinary,
    /// The SELECT that opens a channel or goes to its next application: it is (Web API for
    /// Accessing Secure Element section 11.2).
    Select,
}

/// Why an exchange cannot begin or go on. The command may have been carried out all the same.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ExchangeError {
    /// The class byte cannot be used.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// What came back is not a response.
    #[error(transparent)]
    Response(#[from] ResponseError),
    /// The card sent more than a response can hold.
    #[error("the response is longer than {MAX_RESPONSE_DATA} bytes")]
    TooMuchData,
    /// The card never comes to an end.
    #[error("the command takes more than {MAX_STEPS} exchanges with the card")]
    TooManySteps,
    /// The exchange had ended before.
    #[error("the exchange has ended")]
    Ended,
}

/// What to do next.
#[derive(Clone, Eq, PartialEq)]
pub enum Next {
    /// Send these bytes to the card and give what comes back to [`Exchange::step`].
    Send(Vec<u8>),
    /// The response to the command.
    Done(ResponseApdu),
}

/// Shows the length of what is to be sent only.
impl fmt::Debug for Next {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(bytes) => write!(formatter, "Send({} bytes)", bytes.len()),
            Self::Done(response) => formatter.debug_tuple("Done").field(response).finish(),
        }
    }
}

/// A command on its way.
pub struct Exchange {
    state: State,
    kind: Kind,
    get_response_class: u8,
    /// The TPDU that 6Cxx asks to be sent again, if it has a length to correct.
    reissue: Option<Header>,
    /// The response data so far.
    data: Vec<u8>,
    /// The warning with which SELECT ended, while GET RESPONSE fetches its data.
    warning: Option<StatusWord>,
    steps: usize,
}

enum State {
    T1,
    /// The command is being sent in envelopes; this much of it is left.
    Envelopes(Vec<u8>),
    /// The last TPDU of the command was sent.
    Command,
    GetResponse,
    Ended,
}

impl Exchange {
    /// Begins the exchange of `command`, and says what to send first.
    pub fn new(
        command: &CommandApdu,
        protocol: Protocol,
        kind: Kind,
    ) -> Result<(Self, Vec<u8>), ExchangeError> {
        let header = command.header();
        // GET RESPONSE and ENVELOPE belong to the transport: they carry the channel, but neither
        // chaining nor secure messaging.
        let get_response_class = class_byte::interindustry(class_byte::channel_of(header.cla)?);
        let mut exchange = Self {
            state: State::Command,
            kind,
            get_response_class,
            reissue: None,
            data: Vec::new(),
            warning: None,
            steps: 1,
        };
        let first = match protocol {
            Protocol::T1 => {
                exchange.state = State::T1;
                command.encode()
            }
            Protocol::T0 if command.data().len() > MAX_TPDU_DATA => {
                exchange.next_envelope(&command.encode())
            }
            Protocol::T0 if command.data().is_empty() => {
                // Case 1 has a P3 of 0, and case 2 asks for 256 bytes at most.
                let p3 = command
                    .le()
                    .map_or(0, |le| u16::try_from(le).unwrap_or(256).min(256));
                exchange.reissue = command.le().map(|_| header);
                tpdu(header, p3)
            }
            Protocol::T0 => {
                let mut bytes = tpdu(header, command.data().len() as u16);
                bytes.extend(command.data());
                bytes
            }
        };
        Ok((exchange, first))
    }

    /// Takes what came back for the bytes sent last.
    pub fn step(&mut self, response: &[u8]) -> Result<Next, ExchangeError> {
        let next = self.advance(response);
        if !matches!(next, Ok(Next::Send(_))) {
            self.state = State::Ended;
        }
        next
    }

    fn advance(&mut self, response: &[u8]) -> Result<Next, ExchangeError> {
        let part = ResponseApdu::parse(response)?;
        match &mut self.state {
            State::Ended => return Err(ExchangeError::Ended),
            State::T1 => return Ok(Next::Done(part)),
            State::Envelopes(rest) => {
                // Anything but plain success ends the command early.
                if !part.status.is_ok() || !part.data.is_empty() {
                    return Ok(Next::Done(part));
                }
                let rest = std::mem::take(rest);
                let envelope = self.next_envelope(&rest);
                return self.send(envelope);
            }
            State::Command | State::GetResponse => {}
        }

        let status = part.status;
        if let Some(length) = status.exact_length()
            && let Some(header) = self.reissue.take()
        {
            return self.send(tpdu(header, length));
        }
        if let Some(warning) = self.warning
            && status.is_error()
        {
            // The application was selected; it only has nothing to tell.
            return Ok(Next::Done(warning.into()));
        }
        if status.is_error() {
            // Section 7.2: the data received so far is discarded. An error that comes with data of
            // its own at the first TPDU keeps it.
            let data = match self.state {
                State::GetResponse => Vec::new(),
                _ => part.data,
            };
            return Ok(Next::Done(ResponseApdu::new(data, status)));
        }

        if self.data.len() + part.data.len() > MAX_RESPONSE_DATA {
            return Err(ExchangeError::TooMuchData);
        }
        self.data.extend(&part.data);
        if let Some(length) = status.bytes_available() {
            return self.get_response(length);
        }
        let wants_warning_data = self.kind == Kind::Select
            && status.is_warning()
            && self.data.is_empty()
            && matches!(self.state, State::Command);
        if wants_warning_data {
            self.warning = Some(status);
            return self.get_response(256);
        }
        let status = self.warning.unwrap_or(status);
        Ok(Next::Done(ResponseApdu::new(
            std::mem::take(&mut self.data),
            status,
        )))
    }

    fn get_response(&mut self, length: u16) -> Result<Next, ExchangeError> {
        self.state = State::GetResponse;
        let header = Header::new(self.get_response_class, INS_GET_RESPONSE, 0, 0);
        self.reissue = Some(header);
        self.send(tpdu(header, length))
    }

    /// The TPDU that carries the beginning of `rest`, of which the state keeps the end.
    fn next_envelope(&mut self, rest: &[u8]) -> Vec<u8> {
        let mut length = rest.len().min(MAX_TPDU_DATA);
        // A card tells the end of the command by its Lc, and can expect Le only as long as it has
        // not seen all of the data: Le never travels alone.
        if (1..=2).contains(&(rest.len() - length)) {
            length -= 2;
        }
        let (chunk, rest) = rest.split_at(length);
        self.state = if rest.is_empty() {
            State::Command
        } else {
            State::Envelopes(rest.to_vec())
        };
        let header = Header::new(self.get_response_class, INS_ENVELOPE, 0, 0);
        let mut bytes = tpdu(header, chunk.len() as u16);
        bytes.extend(chunk);
        bytes
    }

    fn send(&mut self, bytes: Vec<u8>) -> Result<Next, ExchangeError> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(ExchangeError::TooManySteps);
        }
        Ok(Next::Send(bytes))
    }
}

/// A header and its P3; 256 is written as 0.
fn tpdu(header: Header, p3: u16) -> Vec<u8> {
    let mut bytes = header.to_bytes().to_vec();
    bytes.push(p3 as u8);
    bytes
}

/// Carries `command` out with `transmit`, which sends bytes to the card and returns what comes
/// back. The errors of both sides arrive as `E`.
pub fn run<E: From<ExchangeError>>(
    command: &CommandApdu,
    protocol: Protocol,
    kind: Kind,
    mut transmit: impl FnMut(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<ResponseApdu, E> {
    let (mut exchange, mut bytes) = Exchange::new(command, protocol, kind)?;
    loop {
        match exchange.step(&transmit(&bytes)?)? {
            Next::Send(next) => bytes = next,
            Next::Done(response) => return Ok(response),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::apdu::LengthForm;

    /// What is sent, and what comes back.
    type Script<'a> = &'a [(&'a [u8], &'a [u8])];

    fn play(
        command: &[u8],
        protocol: Protocol,
        kind: Kind,
        script: Script,
    ) -> Result<ResponseApdu, ExchangeError> {
        let command = CommandApdu::parse(command).unwrap();
        let mut script = script.iter();
        let result = run(&command, protocol, kind, |sent| {
            let (expected, answer) = script.next().expect("nothing more is sent");
            assert_eq!(&sent, expected);
            Ok(answer.to_vec())
        });
        assert_eq!(script.next(), None, "all is sent");
        result
    }

    fn done(data: &[u8], sw: u16) -> Result<ResponseApdu, ExchangeError> {
        Ok(ResponseApdu::new(data.to_vec(), StatusWord(sw)))
    }

    fn t0(command: &[u8], script: Script) -> Result<ResponseApdu, ExchangeError> {
        play(command, Protocol::T0, Kind::Ordinary, script)
    }

    fn select(command: &[u8], script: Script) -> Result<ResponseApdu, ExchangeError> {
        play(command, Protocol::T0, Kind::Select, script)
    }

    #[test]
    fn t1_sends_once_whatever_comes_back() {
        let command = [0x00, 0xA4, 0x04, 0x00, 1, 7, 0];
        for sw in [0x9000, 0x6110, 0x6C10, 0x6283, 0x6A82] {
            let answer = [&[1, 2][..], &u16::to_be_bytes(sw)].concat();
            for kind in [Kind::Ordinary, Kind::Select] {
                let result = play(&command, Protocol::T1, kind, &[(&command, &answer)]);
                assert_eq!(result, done(&[1, 2], sw));
            }
        }
        let extended = [0x00, 0xCB, 0x3F, 0xFF, 0, 0, 1, 7, 0, 0];
        let result = play(
            &extended,
            Protocol::T1,
            Kind::Ordinary,
            &[(&extended, &[0x90, 0])],
        );
        assert_eq!(result, done(&[], 0x9000));
    }

    #[test]
    fn t0_maps_every_short_case() {
        // Case 1 gets a P3, case 4 loses its Le.
        assert_eq!(
            t0(&[0, 1, 2, 3], &[(&[0, 1, 2, 3, 0], &[0x90, 0])]),
            done(&[], 0x9000)
        );
        assert_eq!(
            t0(&[0, 1, 2, 3, 2], &[(&[0, 1, 2, 3, 2], &[8, 9, 0x90, 0])]),
            done(&[8, 9], 0x9000)
        );
        assert_eq!(
            t0(&[0, 1, 2, 3, 1, 7], &[(&[0, 1, 2, 3, 1, 7], &[0x90, 0])]),
            done(&[], 0x9000)
        );
        assert_eq!(
            t0(&[0, 1, 2, 3, 1, 7, 0], &[(&[0, 1, 2, 3, 1, 7], &[0x90, 0])]),
            done(&[], 0x9000)
        );
    }

    #[test]
    fn t0_maps_extended_cases_that_fit() {
        assert_eq!(
            t0(
                &[0, 1, 2, 3, 0, 0, 0],
                &[
                    (&[0, 1, 2, 3, 0], &[1, 0x61, 1]),
                    (&[0, 0xC0, 0, 0, 1], &[2, 0x90, 0])
                ]
            ),
            done(&[1, 2], 0x9000)
        );
        assert_eq!(
            t0(&[0, 1, 2, 3, 0, 0, 5], &[(&[0, 1, 2, 3, 5], &[0x90, 0])]),
            done(&[], 0x9000)
        );
        assert_eq!(
            t0(
                &[0, 1, 2, 3, 0, 0, 1, 7, 0, 0],
                &[(&[0, 1, 2, 3, 1, 7], &[0x90, 0])]
            ),
            done(&[], 0x9000)
        );
    }

    #[test]
    fn get_response_collects_the_data_on_the_same_channel() {
        // Chaining and secure messaging bits (1A: channel 2) do not reach GET RESPONSE.
        assert_eq!(
            t0(
                &[0x1A, 1, 2, 3, 1, 7, 0],
                &[
                    (&[0x1A, 1, 2, 3, 1, 7], &[0x61, 0]),
                    (&[0x02, 0xC0, 0, 0, 0], &[1, 2, 0x61, 1]),
                    (&[0x02, 0xC0, 0, 0, 1], &[3, 0x62, 0x82]),
                ]
            ),
            done(&[1, 2, 3], 0x6282)
        );
        assert_eq!(
            t0(
                &[0xE5, 1, 2, 3, 1, 7, 0],
                &[
                    (&[0xE5, 1, 2, 3, 1, 7], &[0x61, 1]),
                    (&[0x45, 0xC0, 0, 0, 1], &[1, 0x90, 0]),
                ]
            ),
            done(&[1], 0x9000)
        );
    }

    #[test]
    fn an_error_to_get_response_discards_the_data() {
        assert_eq!(
            t0(
                &[0, 1, 2, 3, 0],
                &[
                    (&[0, 1, 2, 3, 0], &[1, 2, 0x61, 5]),
                    (&[0, 0xC0, 0, 0, 5], &[9, 0x6F, 0]),
                ]
            ),
            done(&[], 0x6F00)
        );
    }

    #[test]
    fn a_wrong_length_is_corrected_once() {
        assert_eq!(
            t0(
                &[0, 1, 2, 3, 0],
                &[
                    (&[0, 1, 2, 3, 0], &[0x6C, 2]),
                    (&[0, 1, 2, 3, 2], &[1, 2, 0x90, 0])
                ]
            ),
            done(&[1, 2], 0x9000)
        );
        assert_eq!(
            t0(
                &[0, 1, 2, 3, 0],
                &[
                    (&[0, 1, 2, 3, 0], &[0x6C, 2]),
                    (&[0, 1, 2, 3, 2], &[0x6C, 3])
                ]
            ),
            done(&[], 0x6C03)
        );
        // GET RESPONSE has its own.
        assert_eq!(
            t0(
                &[0, 1, 2, 3, 1, 7, 0],
                &[
                    (&[0, 1, 2, 3, 1, 7], &[0x61, 0]),
                    (&[0, 0xC0, 0, 0, 0], &[0x6C, 1]),
                    (&[0, 0xC0, 0, 0, 1], &[5, 0x90, 0]),
                ]
            ),
            done(&[5], 0x9000)
        );
    }

    #[test]
    fn a_wrong_length_never_touches_p2_or_data() {
        assert_eq!(
            t0(&[0, 1, 2, 3], &[(&[0, 1, 2, 3, 0], &[0x6C, 2])]),
            done(&[], 0x6C02)
        );
        assert_eq!(
            t0(&[0, 1, 2, 3, 1, 7], &[(&[0, 1, 2, 3, 1, 7], &[0x6C, 2])]),
            done(&[], 0x6C02)
        );
    }

    #[test]
    fn only_select_fetches_data_behind_a_warning() {
        let command = [0, 0xA4, 4, 0, 1, 7, 0];
        let sent = &command[..6];
        assert_eq!(t0(&command, &[(sent, &[0x62, 0x83])]), done(&[], 0x6283));
        assert_eq!(
            select(
                &command,
                &[
                    (sent, &[0x62, 0x83]),
                    (&[0, 0xC0, 0, 0, 0], &[0x6C, 2]),
                    (&[0, 0xC0, 0, 0, 2], &[0x6F, 0, 0x90, 0]),
                ]
            ),
            done(&[0x6F, 0], 0x6283)
        );
        // A card that has nothing to give has selected the application all the same.
        assert_eq!(
            select(
                &command,
                &[(sent, &[0x63, 0]), (&[0, 0xC0, 0, 0, 0], &[0x69, 0x85])]
            ),
            done(&[], 0x6300)
        );
        // The data came with the warning, or behind 61xx.
        assert_eq!(
            select(
                &[0, 0xA4, 4, 0, 0],
                &[(&[0, 0xA4, 4, 0, 0], &[0x6F, 0, 0x62, 0x83])]
            ),
            done(&[0x6F, 0], 0x6283)
        );
        assert_eq!(
            select(
                &command,
                &[
                    (sent, &[0x61, 2]),
                    (&[0, 0xC0, 0, 0, 2], &[0x6F, 0, 0x62, 0x83])
                ]
            ),
            done(&[0x6F, 0], 0x6283)
        );
    }

    #[test]
    fn long_commands_go_through_envelopes() {
        let data = [7; 300];
        let command = [&[0x01, 1, 2, 3, 0, 1, 44][..], &data, &[0, 0]].concat();
        let first = [&[0x01, 0xC2, 0, 0, 255][..], &command[..255]].concat();
        let second = [&[0x01, 0xC2, 0, 0, 54][..], &command[255..]].concat();
        assert_eq!(
            t0(
                &command,
                &[
                    (&first, &[0x90, 0]),
                    (&second, &[0x61, 1]),
                    (&[0x01, 0xC0, 0, 0, 1], &[5, 0x90, 0]),
                ]
            ),
            done(&[5], 0x9000)
        );
        assert_eq!(t0(&command, &[(&first, &[0x6D, 0])]), done(&[], 0x6D00));
    }

    #[test]
    fn le_never_travels_alone() {
        // The data ends with the second envelope, if that is full.
        let data = [7; 503];
        let command = [&[0x00, 1, 2, 3, 0, 1, 247][..], &data, &[0, 0]].concat();
        assert_eq!(command.len(), 2 * 255 + 2);
        let envelope = |part: &[u8]| [&[0, 0xC2, 0, 0, part.len() as u8][..], part].concat();
        assert_eq!(
            t0(
                &command,
                &[
                    (&envelope(&command[..255]), &[0x90, 0]),
                    (&envelope(&command[255..508]), &[0x90, 0]),
                    (&envelope(&command[508..]), &[0x61, 1]),
                    (&[0x00, 0xC0, 0, 0, 1], &[5, 0x90, 0]),
                ]
            ),
            done(&[5], 0x9000)
        );
    }

    #[test]
    fn the_longest_command_and_response_pass() {
        let command = CommandApdu::new(
            Header::new(0, 1, 2, 3),
            vec![7; 65_535],
            Some(65_536),
            LengthForm::Extended,
        )
        .unwrap();
        let mut left = 256;
        let mut commands: Vec<u8> = Vec::new();
        let response = run::<ExchangeError>(&command, Protocol::T0, Kind::Ordinary, |sent| {
            if sent[1] == INS_ENVELOPE {
                commands.extend(&sent[5..]);
                return Ok(if commands.len() == command.encode().len() {
                    vec![0x61, 0]
                } else {
                    vec![0x90, 0]
                });
            }
            left -= 1;
            let mut answer = vec![3; 256];
            answer.extend(if left == 0 { [0x90, 0] } else { [0x61, 0] });
            Ok(answer)
        });
        assert_eq!(commands, command.encode());
        assert_eq!(response.unwrap().data, vec![3; 65_536]);
    }

    #[test]
    fn a_card_cannot_answer_without_end() {
        let command = CommandApdu::parse(&[0, 1, 2, 3, 0]).unwrap();
        let run_with = |answer: &[u8]| {
            run::<ExchangeError>(&command, Protocol::T0, Kind::Ordinary, |_| {
                Ok(answer.to_vec())
            })
        };
        assert_eq!(run_with(&[0x61, 1]), Err(ExchangeError::TooManySteps));
        let long = [&[0; 256][..], &[0x61, 0]].concat();
        assert_eq!(run_with(&long), Err(ExchangeError::TooMuchData));
    }

    #[test]
    fn broken_responses_are_errors_and_end_the_exchange() {
        let command = CommandApdu::parse(&[0, 1, 2, 3, 0]).unwrap();
        for protocol in [Protocol::T0, Protocol::T1] {
            for answer in [&[][..], &[0x90]] {
                let (mut exchange, _) = Exchange::new(&command, protocol, Kind::Ordinary).unwrap();
                let error = ResponseError::TooShort(answer.len());
                assert_eq!(exchange.step(answer), Err(error.into()));
                assert_eq!(exchange.step(&[0x90, 0]), Err(ExchangeError::Ended));
            }
        }
    }

    #[test]
    fn reserved_classes_are_refused() {
        let command = CommandApdu::parse(&[0x20, 1, 2, 3]).unwrap();
        let result = Exchange::new(&command, Protocol::T1, Kind::Ordinary);
        assert_eq!(result.err(), Some(ClassError::Reserved(0x20).into()));
    }

    proptest! {
        #[test]
        fn a_response_arrives_whole_however_the_card_cuts_it(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..=256), 1..30),
            announces in any::<bool>(),
            sw in prop_oneof![Just(0x9000_u16), 0x6200..=0x63FF_u16],
        ) {
            let command = CommandApdu::parse(&[0x02, 0xCA, 0, 0, 0]).unwrap();
            let mut left = parts.iter().peekable();
            let mut is_first = true;
            let response = run::<ExchangeError>(&command, Protocol::T0, Kind::Ordinary, |sent| {
                let part = left.peek().expect("nothing is asked for after the end");
                let length = [part.len() as u8];
                let announced = std::mem::take(&mut is_first) && announces;
                if announced {
                    return Ok([0x61, length[0]].to_vec());
                }
                if sent[4..] != length {
                    return Ok([0x6C, length[0]].to_vec());
                }
                let mut answer = left.next().cloned().unwrap_or_default();
                answer.extend(match left.peek() {
                    // It may say less than it has.
                    Some(_) => [0x61, 0x01],
                    None => sw.to_be_bytes(),
                });
                Ok(answer)
            });
            prop_assert_eq!(response, done(&parts.concat(), sw));
        }

        #[test]
        fn a_long_command_arrives_whole(
            data in proptest::collection::vec(any::<u8>(), 256..3000),
            le in proptest::option::of(1..=65_536_u32),
        ) {
            let header = Header::new(0x41, 0xDB, 1, 2);
            let command = CommandApdu::new(header, data, le, LengthForm::Extended).unwrap();
            let encoded = command.encode();
            let mut arrived: Vec<u8> = Vec::new();
            let response = run::<ExchangeError>(&command, Protocol::T0, Kind::Ordinary, |sent| {
                assert_eq!(sent[..4], [0x41, INS_ENVELOPE, 0, 0]);
                assert_eq!(sent.len(), 5 + usize::from(sent[4]));
                arrived.extend(&sent[5..]);
                Ok(vec![0x90, 0])
            });
            prop_assert_eq!(arrived, encoded);
            prop_assert_eq!(response, done(&[], 0x9000));
        }

        #[test]
        fn any_card_comes_to_an_end(
            command in proptest::collection::vec(any::<u8>(), 4..600),
            answers in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..4), prop_oneof![
                    Just([0x61, 2]), Just([0x6C, 1]), Just([0x62, 0x83]), Just([0x90, 0]), any::<[u8; 2]>(),
                ]),
                1..20,
            ),
            t1 in any::<bool>(),
            is_select in any::<bool>(),
        ) {
            let Ok(command) = CommandApdu::parse(&command) else { return Ok(()) };
            let protocol = if t1 { Protocol::T1 } else { Protocol::T0 };
            let kind = if is_select { Kind::Select } else { Kind::Ordinary };
            let mut answers = answers.iter().cycle();
            let mut sent = 0;
            let _ = run::<ExchangeError>(&command, protocol, kind, |_| {
                sent += 1;
                let (data, sw) = answers.next().unwrap();
                Ok([&data[..], sw].concat())
            });
            let most = if t1 { 1 } else { MAX_STEPS };
            prop_assert!(sent <= most);
        }
    }
}
