/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The card's side of T=0: commands arrive as TPDUs, with ENVELOPE where they are longer, and
//! responses leave in parts (ISO/IEC 7816-3 section 12.2).

use secure_element::apdu::{
    CommandApdu, Header, LengthForm, MAX_COMMAND, ResponseApdu, StatusWord,
};
use secure_element::class_byte::channel_of;

use crate::Parts;

const INS_GET_RESPONSE: u8 = 0xC0;
const INS_ENVELOPE: u8 = 0xC2;
const INS_SELECT: u8 = 0xA4;
/// The most that one TPDU returns.
const MAX_PART: usize = 256;

/// What a card remembers between two TPDUs.
#[derive(Default)]
pub(crate) struct T0 {
    pending: Pending,
    /// The beginning of a command that arrives in envelopes.
    envelopes: Vec<u8>,
}

#[derive(Default)]
enum Pending {
    #[default]
    Nothing,
    /// What GET RESPONSE on the channel of this class byte fetches, in parts of this length.
    Response(u8, ResponseApdu, usize),
    /// The response to a command that asked for the wrong length: it is sent when the same command
    /// comes again with the right one, so that the command is carried out once.
    Reissue {
        command: Header,
        length: usize,
        response: ResponseApdu,
        part: usize,
    },
    /// What GET RESPONSE gets, however often it comes.
    Raw(Vec<u8>),
}

/// A command to be carried out.
pub(crate) struct ReceivedCommand {
    pub(crate) command: CommandApdu,
    /// What a case 1 or case 2 TPDU asks for, 1 to 256; `None` if the TPDU brought data.
    wanted: Option<usize>,
}

pub(crate) enum Received {
    /// The answer needs no application.
    Answer(Vec<u8>),
    Command(ReceivedCommand),
}

impl From<StatusWord> for Received {
    fn from(status: StatusWord) -> Self {
        Self::Answer(status.to_bytes().to_vec())
    }
}

impl T0 {
    pub(crate) fn receive(&mut self, tpdu: &[u8], takes_envelopes: bool) -> Received {
        let Some((&[cla, ins, p1, p2], body)) = tpdu.split_first_chunk::<4>() else {
            return StatusWord::WRONG_LENGTH.into();
        };
        let header = Header::new(cla, ins, p1, p2);
        // A reader may leave the P3 of a case 1 command out.
        let (&p3, data) = body.split_first().unwrap_or((&0, &[]));
        if !data.is_empty() && data.len() != usize::from(p3) {
            return StatusWord::WRONG_LENGTH.into();
        }
        let wanted = if p3 == 0 { MAX_PART } else { usize::from(p3) };
        let pending = std::mem::take(&mut self.pending);
        let envelopes = std::mem::take(&mut self.envelopes);
        // Applications may have these instructions for themselves, with other parameters.
        let is_transport = (p1, p2) == (0, 0);
        match (ins, pending) {
            (INS_GET_RESPONSE, Pending::Response(class, response, part))
                if is_transport && channel_of(class) == channel_of(cla) =>
            {
                return Received::Answer(self.send_part(cla, response, wanted, part));
            }
            (INS_GET_RESPONSE, Pending::Raw(bytes)) if is_transport => {
                self.pending = Pending::Raw(bytes.clone());
                return Received::Answer(bytes);
            }
            (INS_GET_RESPONSE, _) if is_transport => {
                return StatusWord::CONDITIONS_NOT_SATISFIED.into();
            }
            (INS_ENVELOPE, _) if is_transport && takes_envelopes => {
                return self.receive_envelope(envelopes, data);
            }
            (
                _,
                Pending::Reissue {
                    command,
                    length,
                    response,
                    part,
                },
            ) if command == header && data.is_empty() && length == wanted => {
                return Received::Answer(self.send_part(cla, response, wanted, part));
            }
            _ => {}
        }
        let (le, wanted) = match (body, data) {
            ([], _) => (None, Some(MAX_PART)),
            (_, []) => (Some(wanted as u32), Some(wanted)),
            // Le stays with the reader.
            _ => (None, None),
        };
        match CommandApdu::new(header, data.to_vec(), le, LengthForm::Short) {
            Ok(command) => Received::Command(ReceivedCommand { command, wanted }),
            Err(_) => StatusWord::WRONG_LENGTH.into(),
        }
    }

    fn receive_envelope(&mut self, mut command: Vec<u8>, part: &[u8]) -> Received {
        command.extend(part);
        if command.len() > MAX_COMMAND {
            return StatusWord::WRONG_LENGTH.into();
        }
        // The command's own extended Lc tells its end; so does an envelope without data.
        let complete = match *command {
            [_, _, _, _, 0, high, low, ref data @ ..] => {
                data.len() >= usize::from(u16::from_be_bytes([high, low]))
            }
            _ => false,
        };
        if !complete && !part.is_empty() {
            self.envelopes = command;
            return StatusWord::OK.into();
        }
        match CommandApdu::parse(&command) {
            Ok(command) => Received::Command(ReceivedCommand {
                command,
                wanted: None,
            }),
            Err(_) => StatusWord::WRONG_LENGTH.into(),
        }
    }

    /// The answer to the TPDU that brought the command, or the end of it.
    pub(crate) fn answer(
        &mut self,
        received: &ReceivedCommand,
        response: ResponseApdu,
        parts: Option<Parts>,
    ) -> Vec<u8> {
        let header = received.command.header();
        if response.data.is_empty() || response.status.is_error() {
            return response.status.to_bytes().to_vec();
        }
        let part = parts.map_or(MAX_PART, Parts::length);
        let is_announced = parts == Some(Parts::Of255);
        let Some(wanted) = received.wanted.filter(|_| !is_announced) else {
            // A SELECT that ends with a warning says so first (GlobalPlatform cards do).
            if header.ins == INS_SELECT && response.status.is_warning() {
                let status = response.status;
                let rest = ResponseApdu::new(response.data, StatusWord::OK);
                self.pending = Pending::Response(header.cla, rest, part);
                return status.to_bytes().to_vec();
            }
            let status = available(&response, part);
            self.pending = Pending::Response(header.cla, response, part);
            return status.to_bytes().to_vec();
        };
        let length = response.data.len().min(part);
        let is_wrong = match parts {
            Some(Parts::Of255AfterCorrection) => wanted != length,
            _ => wanted > length,
        };
        if is_wrong {
            self.pending = Pending::Reissue {
                command: header,
                length,
                response,
                part,
            };
            return exact(length).to_bytes().to_vec();
        }
        self.send_part(header.cla, response, wanted, part)
    }

    /// Answers each GET RESPONSE that follows with these bytes.
    pub(crate) fn answer_for_ever(&mut self, bytes: Vec<u8>) {
        self.pending = Pending::Raw(bytes);
    }

    fn send_part(
        &mut self,
        class: u8,
        mut response: ResponseApdu,
        wanted: usize,
        part: usize,
    ) -> Vec<u8> {
        let length = response.data.len().min(part);
        if length < wanted {
            self.pending = Pending::Response(class, response, part);
            return exact(length).to_bytes().to_vec();
        }
        let rest = response.data.split_off(wanted);
        if rest.is_empty() {
            return response.encode();
        }
        let rest = ResponseApdu::new(rest, response.status);
        response.status = available(&rest, part);
        self.pending = Pending::Response(class, rest, part);
        response.encode()
    }
}

/// 61xx for what is left of a response, of which GET RESPONSE fetches `part` bytes at most.
pub(crate) fn available(response: &ResponseApdu, part: usize) -> StatusWord {
    // 256 and more are written as 0.
    let length = response.data.len().min(part) as u8;
    StatusWord(u16::from_be_bytes([0x61, length]))
}

/// 6Cxx for a length of up to 256, which is written as 0.
pub(crate) fn exact(length: usize) -> StatusWord {
    StatusWord(u16::from_be_bytes([0x6C, length as u8]))
}
