/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Reading an ARA-M (sections 4.1 and 5.1): which command to send, and what the answers come to.

use super::data_objects::{RulesError, parse_rules};
use super::{Closed, MAX_BYTES, Outcome, RefreshTag, RuleSet};
use crate::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use crate::class_byte::{self, ChannelNumber};
use crate::tlv::{Reader, Tag, TlvError};

/// The AID of the ARA-M. Select it on a channel of its own.
pub const ARA_M_AID: [u8; 9] = [0xA0, 0x00, 0x00, 0x01, 0x51, 0x41, 0x43, 0x4C, 0x00];

const INS_GET_DATA: u8 = 0xCA;
const GET_REFRESH_TAG: [u8; 2] = [0xDF, 0x20];
const GET_ALL: [u8; 2] = [0xFF, 0x40];
const GET_NEXT: [u8; 2] = [0xFF, 0x60];

const RESPONSE_REFRESH_TAG_DO: Tag = Tag(0xDF20);
const RESPONSE_ALL_REF_AR_DO: Tag = Tag(0xFF40);

const RULES_UPDATED: StatusWord = StatusWord(0x6984);
const RULES_UPDATED_TOO: StatusWord = StatusWord(0x6A84);
const NO_DATA: StatusWord = StatusWord(0x6A88);

/// How often reading may start again.
const MAX_RESTARTS: u8 = 5;
/// Enough for [`MAX_BYTES`] in blocks of 64 bytes; cards use 255 and 256.
const MAX_COMMANDS: u16 = 1100;

/// Reads the rules of an ARA-M that is selected on a channel.
///
/// The answers that it takes are complete: GET RESPONSE and re-issue are done below it. A failure
/// of the reader is no answer: give the reading up and try again next time.
#[derive(Clone, Debug)]
pub struct AraMReader {
    class: u8,
    known: Option<RefreshTag>,
    /// The refresh tag, once it is read, and the answer with all rules as far as it has come.
    read: Option<(RefreshTag, Vec<u8>)>,
    restarts: u8,
    commands: u16,
}

/// What to do next.
#[derive(Clone, Debug)]
pub enum AraMStep {
    /// Send the command, and give its answer to the reader.
    Send(AraMReader, CommandApdu),
    /// There is nothing more to read. The channel can be closed.
    Done(Outcome),
}

impl AraMReader {
    /// Starts to read, with the refresh tag that the rules read before had. They are read again
    /// only if it is another one now.
    pub fn start(channel: ChannelNumber, known: Option<RefreshTag>) -> AraMStep {
        let reader = Self {
            class: class_byte::globalplatform(channel),
            known,
            read: None,
            restarts: 0,
            commands: 0,
        };
        reader.send(GET_REFRESH_TAG)
    }

    /// Takes the answer to the command that was to be sent.
    pub fn receive(mut self, response: &ResponseApdu) -> AraMStep {
        let step = match self.read.take() {
            None => self.receive_refresh_tag(response),
            Some((refresh_tag, answer)) => self.receive_rules(refresh_tag, answer, response),
        };
        step.unwrap_or_else(|closed| AraMStep::Done(Outcome::Closed(closed)))
    }

    fn send(mut self, object: [u8; 2]) -> AraMStep {
        if self.commands == MAX_COMMANDS {
            return AraMStep::Done(Outcome::Closed(Closed::TooManyCommands));
        }
        self.commands += 1;
        let [p1, p2] = object;
        let header = Header::new(self.class, INS_GET_DATA, p1, p2);
        let command = CommandApdu::short_without_data(header, Some(0));
        AraMStep::Send(self, command)
    }

    fn receive_refresh_tag(mut self, response: &ResponseApdu) -> Result<AraMStep, Closed> {
        if !response.status.is_ok() {
            return Err(Closed::Status(response.status));
        }
        let refresh_tag = parse_refresh_tag(&response.data).ok_or(Closed::RefreshTag)?;
        if self.known == Some(refresh_tag) {
            return Ok(AraMStep::Done(Outcome::Unchanged));
        }
        self.read = Some((refresh_tag, Vec::new()));
        Ok(self.send(GET_ALL))
    }

    fn receive_rules(
        mut self,
        refresh_tag: RefreshTag,
        mut answer: Vec<u8>,
        response: &ResponseApdu,
    ) -> Result<AraMStep, Closed> {
        match response.status {
            StatusWord::OK => {}
            RULES_UPDATED | RULES_UPDATED_TOO => return self.restart(),
            NO_DATA if answer.is_empty() => return Ok(AraMStep::Done(Outcome::NoRules)),
            status => return Err(Closed::Status(status)),
        }
        if response.data.is_empty() {
            return Err(Closed::Length);
        }
        answer.extend(&response.data);
        // The first block has the whole length.
        let all = Reader::new(&answer).announced().map_err(RulesError::Tlv)?;
        if all.tag != RESPONSE_ALL_REF_AR_DO {
            return Err(RulesError::Tlv(TlvError::InvalidTag).into());
        }
        if all.length > MAX_BYTES {
            return Err(Closed::TooLong);
        }
        let body = answer.get(all.header..).unwrap_or_default();
        if body.len() > all.length {
            return Err(Closed::Length);
        }
        if body.len() < all.length {
            self.read = Some((refresh_tag, answer));
            return Ok(self.send(GET_NEXT));
        }
        let rules = Box::new(RuleSet::new(parse_rules(body)?));
        Ok(AraMStep::Done(Outcome::Rules { rules, refresh_tag }))
    }

    /// The rules have changed: what was read is void, and so is the refresh tag.
    fn restart(mut self) -> Result<AraMStep, Closed> {
        if self.restarts == MAX_RESTARTS {
            return Err(Closed::KeepChanging);
        }
        self.restarts += 1;
        Ok(self.send(GET_REFRESH_TAG))
    }
}

fn parse_refresh_tag(data: &[u8]) -> Option<RefreshTag> {
    let object = Reader::new(data).only().ok()?;
    let tag = object.value.try_into().ok()?;
    (object.tag == RESPONSE_REFRESH_TAG_DO).then_some(RefreshTag(tag))
}
