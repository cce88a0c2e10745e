/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The card's side of T=0: commands arrive as TPDUs, with ENVELOPE where they are longer, and
//! responses leave in parts (ISO/IEC 7816-3 section 12.2).

use secure_element::apdu::{
    CommandApdu, Header, LengthForm, MAX_COMMAND, ResponseApdu, StatusWord,
};
use secure_element::class_byte::channel_of;

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
    /// What GET RESPONSE on the channel of this class byte fetches.
    Response(u8, ResponseApdu),
    /// The response to a command that asked for too much: it is sent when the same command comes
    /// again with the right length, so that the command is carried out once.
    Reissue(Header, ResponseApdu),
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
    pub(crate) fn receive(&mut self, tpdu: &[u8]) -> Received {
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
        match (ins, pending) {
            (INS_GET_RESPONSE, Pending::Response(class, response))
                if channel_of(class) == channel_of(cla) =>
            {
                return Received::Answer(self.send_part(cla, response, wanted));
            }
            (INS_GET_RESPONSE, _) => return StatusWord::CONDITIONS_NOT_SATISFIED.into(),
            (INS_ENVELOPE, _) => return self.receive_envelope(envelopes, data),
            (_, Pending::Reissue(expected, response))
                if expected == header && data.is_empty() && response.data.len() == wanted =>
            {
                return Received::Answer(response.encode());
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
    pub(crate) fn answer(&mut self, received: &ReceivedCommand, response: ResponseApdu) -> Vec<u8> {
        let header = received.command.header();
        if response.data.is_empty() || response.status.is_error() {
            return response.status.to_bytes().to_vec();
        }
        let Some(wanted) = received.wanted else {
            // A SELECT that ends with a warning says so first (GlobalPlatform cards do).
            if header.ins == INS_SELECT && response.status.is_warning() {
                let status = response.status;
                let rest = ResponseApdu::new(response.data, StatusWord::OK);
                self.pending = Pending::Response(header.cla, rest);
                return status.to_bytes().to_vec();
            }
            let status = available(&response);
            self.pending = Pending::Response(header.cla, response);
            return status.to_bytes().to_vec();
        };
        if response.data.len() < wanted {
            let status = exact(&response);
            self.pending = Pending::Reissue(header, response);
            return status.to_bytes().to_vec();
        }
        self.send_part(header.cla, response, wanted)
    }

    fn send_part(&mut self, class: u8, mut response: ResponseApdu, wanted: usize) -> Vec<u8> {
        if response.data.len() < wanted {
            let status = exact(&response);
            self.pending = Pending::Response(class, response);
            return status.to_bytes().to_vec();
        }
        let rest = response.data.split_off(wanted);
        if rest.is_empty() {
            return response.encode();
        }
        let rest = ResponseApdu::new(rest, response.status);
        response.status = available(&rest);
        self.pending = Pending::Response(class, rest);
        response.encode()
    }
}

/// 61xx for what is left of a response.
fn available(response: &ResponseApdu) -> StatusWord {
    // 256 and more are written as 0.
    let length = response.data.len().min(MAX_PART) as u8;
    StatusWord(u16::from_be_bytes([0x61, length]))
}

/// 6Cxx for a response of less than 256 bytes.
fn exact(response: &ResponseApdu) -> StatusWord {
    StatusWord(u16::from_be_bytes([0x6C, response.data.len() as u8]))
}
