/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Reading the access rule files of a UICC (section 7): which commands to send, and what the answers
//! come to.

use std::collections::BTreeMap;

use super::directory::{self, EF_DIR, MAX_RECORDS};
use super::files::{
    DirectoryEntry, Path, parse_conditions, parse_dodf, parse_main, parse_odf, parse_rules,
};
use super::rule::{AidRef, ApduRule, Rule};
use super::{Closed, MAX_BYTES, MAX_RULES, Outcome, RefreshTag, RuleSet};
use crate::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use crate::channel::{self, Aid, SelectResponse, Selected};
use crate::class_byte::{self, ChannelNumber};
use crate::tlv::{Reader, Tag};

/// The AID of PKCS #15 applications.
pub const PKCS15_AID: [u8; 12] = *b"\xA0\x00\x00\x00\x63PKCS-15";
/// The AID of an application that has access rule files and nothing else.
pub const GPAC_ARF_AID: [u8; 12] = *b"\xA0\x00\x00\x00\x18GPAC-15";

/// The applications that may have the files, in the order in which they are tried.
const APPLICATIONS: [[u8; 12]; 2] = [PKCS15_AID, GPAC_ARF_AID];

const EF_ODF: [u8; 2] = [0x50, 0x31];

const INS_READ_BINARY: u8 = 0xB0;

const FCP_TEMPLATE: Tag = Tag(0x62);
const FCI_TEMPLATE: Tag = Tag(0x6F);
const FILE_SIZE: Tag = Tag(0x80);

const END_OF_FILE: StatusWord = StatusWord(0x6282);
const RECORD_NOT_FOUND: StatusWord = StatusWord(0x6A83);
const OFFSET_OUTSIDE: StatusWord = StatusWord(0x6B00);

/// READ BINARY has 15 bits for the offset.
const MAX_FILE: usize = 0x8000;
const MAX_BLOCK: usize = 256;
const MAX_COMMANDS: u16 = 1100;

/// Reads the access rule files on a channel of its own, selecting whatever has to be.
///
/// The answers that it takes are complete: GET RESPONSE and re-issue are done below it. A failure
/// of the reader is no answer: give the reading up and try again next time.
#[derive(Clone, Debug)]
pub struct ArfReader {
    channel: ChannelNumber,
    known: Option<RefreshTag>,
    commands: u16,
    /// What has been read, in bytes.
    bytes: usize,
    state: State,
}

/// What the last command was for.
#[derive(Clone, Debug)]
enum State {
    /// To select the first of these.
    Application(&'static [[u8; 12]]),
    /// To select EF.DIR.
    Directory,
    /// To read its record of this number.
    Record(u8),
    /// To select the DF that EF.DIR names.
    Df,
    /// To select a file.
    Select(Goal),
    /// To read it.
    Read(Goal, File),
}

/// What a file is, and what is known from the files before it.
#[derive(Clone, Debug)]
enum Goal {
    Odf,
    Dodf {
        rest: Vec<Path>,
        main: Option<Path>,
    },
    Main,
    Rules(RefreshTag),
    Conditions {
        refresh_tag: RefreshTag,
        /// The applications that the file is about.
        aids: Vec<AidRef>,
        rest: BTreeMap<Path, Vec<AidRef>>,
        rules: Vec<Rule>,
        /// Rules and filters so far.
        count: usize,
    },
}

#[derive(Clone, Debug)]
struct File {
    /// As the card says, if it does.
    size: Option<usize>,
    content: Vec<u8>,
    /// How much was asked for.
    asked: usize,
}

/// What to do next.
#[derive(Clone, Debug)]
pub enum ArfStep {
    /// Send the command, and give its answer to the reader.
    Send(Box<ArfReader>, CommandApdu),
    /// There is nothing more to read. The channel can be closed.
    Done(Outcome),
}

impl ArfReader {
    /// Starts to read, with the refresh tag that the rules read before had. They are read again
    /// only if it is another one now.
    pub fn start(channel: ChannelNumber, known: Option<RefreshTag>) -> ArfStep {
        let reader = Self {
            channel,
            known,
            commands: 0,
            bytes: 0,
            state: State::Directory,
        };
        done_if_closed(reader.select_application(&APPLICATIONS))
    }

    /// Takes the answer to the command that was to be sent.
    pub fn receive(mut self, response: &ResponseApdu) -> ArfStep {
        let state = std::mem::replace(&mut self.state, State::Directory);
        done_if_closed(match state {
            State::Application(rest) => self.receive_application(rest, response),
            State::Directory => self.receive_directory(response),
            State::Record(number) => self.receive_record(number, response),
            State::Df if response.status.is_ok() => self.select_odf(),
            State::Df => Err(Closed::Status(response.status)),
            State::Select(goal) => self.receive_selected(goal, response),
            State::Read(goal, file) => self.receive_block(goal, file, response),
        })
    }

    fn send(mut self, state: State, command: CommandApdu) -> Result<ArfStep, Closed> {
        if self.commands == MAX_COMMANDS {
            return Err(Closed::TooManyCommands);
        }
        self.commands += 1;
        self.state = state;
        Ok(ArfStep::Send(Box::new(self), command))
    }

    fn select_application(self, rest: &'static [[u8; 12]]) -> Result<ArfStep, Closed> {
        let Some(aid) = rest.first() else {
            let path = Path::new(&EF_DIR).ok_or(Closed::MalformedFile)?;
            return self.select(&path, State::Directory);
        };
        let aid = Aid::new(aid).map_err(|_| Closed::MalformedFile)?;
        let command = channel::select(Some(&aid), SelectResponse::Fci, self.channel);
        let command = command.map_err(|_| Closed::TooLong)?;
        self.send(State::Application(rest), command)
    }

    fn receive_application(
        self,
        rest: &'static [[u8; 12]],
        response: &ResponseApdu,
    ) -> Result<ArfStep, Closed> {
        match channel::parse_selected(response) {
            Ok(Selected::Application) => self.select_odf(),
            Ok(Selected::NoApplication) => {
                self.select_application(rest.get(1..).unwrap_or_default())
            }
            _ => Err(Closed::Status(response.status)),
        }
    }

    fn receive_directory(self, response: &ResponseApdu) -> Result<ArfStep, Closed> {
        match response.status {
            StatusWord::OK => self.read_record(1),
            StatusWord::NOT_FOUND => Ok(ArfStep::Done(Outcome::NoRules)),
            status => Err(Closed::Status(status)),
        }
    }

    fn read_record(self, number: u8) -> Result<ArfStep, Closed> {
        let command = directory::read_record(self.channel, number);
        self.send(State::Record(number), command)
    }

    fn receive_record(self, number: u8, response: &ResponseApdu) -> Result<ArfStep, Closed> {
        match response.status {
            StatusWord::OK => {}
            RECORD_NOT_FOUND => return Ok(ArfStep::Done(Outcome::NoRules)),
            status => return Err(Closed::Status(status)),
        }
        let path = DirectoryEntry::parse(&response.data)
            .filter(|entry| entry.aid == PKCS15_AID)
            .and_then(|entry| entry.path);
        match path {
            Some(path) => {
                let path = Path::new(&path).ok_or(Closed::MalformedFile)?;
                self.select(&path, State::Df)
            }
            None if number < MAX_RECORDS => self.read_record(number + 1),
            None => Ok(ArfStep::Done(Outcome::NoRules)),
        }
    }

    fn select(self, path: &Path, state: State) -> Result<ArfStep, Closed> {
        let command = directory::select(self.channel, path).map_err(|_| Closed::TooLong)?;
        self.send(state, command)
    }

    fn select_odf(self) -> Result<ArfStep, Closed> {
        let path = Path::new(&EF_ODF).ok_or(Closed::MalformedFile)?;
        self.select(&path, State::Select(Goal::Odf))
    }

    fn receive_selected(self, goal: Goal, response: &ResponseApdu) -> Result<ArfStep, Closed> {
        if !response.status.is_ok() {
            return Err(Closed::Status(response.status));
        }
        let file = File {
            size: file_size(&response.data),
            content: Vec::new(),
            asked: 0,
        };
        self.read_on(goal, file)
    }

    /// Reads the next block of a file, or uses the file if there is none.
    fn read_on(self, goal: Goal, mut file: File) -> Result<ArfStep, Closed> {
        let offset = file.content.len();
        file.asked = match file.size {
            Some(size) if size > MAX_FILE => return Err(Closed::TooLong),
            Some(size) => size.saturating_sub(offset).min(MAX_BLOCK),
            None => MAX_BLOCK,
        };
        if file.asked == 0 {
            return self.use_file(goal, &file.content);
        }
        if offset >= MAX_FILE {
            return Err(Closed::TooLong);
        }
        let [.., p1, p2] = offset.to_be_bytes();
        let class = class_byte::interindustry(self.channel);
        let header = Header::new(class, INS_READ_BINARY, p1, p2);
        let le = u32::try_from(file.asked).ok();
        let command = CommandApdu::with_shortest_form(header, Vec::new(), le);
        let command = command.map_err(|_| Closed::TooLong)?;
        self.send(State::Read(goal, file), command)
    }

    fn receive_block(
        mut self,
        goal: Goal,
        mut file: File,
        response: &ResponseApdu,
    ) -> Result<ArfStep, Closed> {
        let is_last = match response.status {
            StatusWord::OK => response.data.is_empty(),
            END_OF_FILE | OFFSET_OUTSIDE => true,
            status => return Err(Closed::Status(status)),
        };
        if response.data.len() > file.asked {
            return Err(Closed::Length);
        }
        self.bytes += response.data.len();
        if self.bytes > MAX_BYTES {
            return Err(Closed::TooLong);
        }
        file.content.extend(&response.data);
        match file.size {
            None if is_last => self.use_file(goal, &file.content),
            Some(size) if is_last && file.content.len() < size => Err(Closed::Length),
            _ => self.read_on(goal, file),
        }
    }

    fn use_file(self, goal: Goal, content: &[u8]) -> Result<ArfStep, Closed> {
        match goal {
            Goal::Odf => {
                let paths = parse_odf(content)?;
                self.select_dodf(paths, None)
            }
            Goal::Dodf { rest, main } => {
                let mut paths = parse_dodf(content)?;
                paths.extend(main);
                if paths.len() > 1 {
                    return Err(Closed::SeveralMainFiles);
                }
                self.select_dodf(rest, paths.pop())
            }
            Goal::Main => {
                let (refresh_tag, path) = parse_main(content)?;
                if self.known == Some(refresh_tag) {
                    return Ok(ArfStep::Done(Outcome::Unchanged));
                }
                self.select(&path, State::Select(Goal::Rules(refresh_tag)))
            }
            Goal::Rules(refresh_tag) => {
                let rest = parse_rules(content)?;
                self.select_conditions(refresh_tag, rest, Vec::new(), 0)
            }
            Goal::Conditions {
                refresh_tag,
                aids,
                rest,
                mut rules,
                mut count,
            } => {
                for (app, apdu) in parse_conditions(content)? {
                    for aid in &aids {
                        // One file for many applications must not multiply beyond bounds.
                        count += match &apdu {
                            ApduRule::Filters(filters) => 1 + filters.len(),
                            _ => 1,
                        };
                        if count > MAX_RULES {
                            return Err(super::RulesError::TooMany.into());
                        }
                        rules.push(Rule {
                            aid: *aid,
                            app,
                            apdu: Some(apdu.clone()),
                        });
                    }
                }
                self.select_conditions(refresh_tag, rest, rules, count)
            }
        }
    }

    /// Goes on with the next data object directory file, or with the main file.
    fn select_dodf(self, mut rest: Vec<Path>, main: Option<Path>) -> Result<ArfStep, Closed> {
        match (rest.pop(), main) {
            (Some(path), main) => self.select(&path, State::Select(Goal::Dodf { rest, main })),
            (None, Some(main)) => self.select(&main, State::Select(Goal::Main)),
            (None, None) => Ok(ArfStep::Done(Outcome::NoRules)),
        }
    }

    /// Goes on with the next conditions file, or ends.
    fn select_conditions(
        self,
        refresh_tag: RefreshTag,
        mut rest: BTreeMap<Path, Vec<AidRef>>,
        rules: Vec<Rule>,
        count: usize,
    ) -> Result<ArfStep, Closed> {
        let Some((path, aids)) = rest.pop_first() else {
            let rules = Box::new(RuleSet::new(rules));
            return Ok(ArfStep::Done(Outcome::Rules { rules, refresh_tag }));
        };
        let goal = Goal::Conditions {
            refresh_tag,
            aids,
            rest,
            rules,
            count,
        };
        self.select(&path, State::Select(goal))
    }
}

fn done_if_closed(step: Result<ArfStep, Closed>) -> ArfStep {
    step.unwrap_or_else(|closed| ArfStep::Done(Outcome::Closed(closed)))
}

/// The size of a transparent file, as the answer to SELECT says.
fn file_size(data: &[u8]) -> Option<usize> {
    let template = Reader::new(data).only().ok()?;
    if template.tag != FCP_TEMPLATE && template.tag != FCI_TEMPLATE {
        return None;
    }
    let size = template
        .parts()
        .ok()?
        .flatten()
        .find(|part| part.tag == FILE_SIZE && !part.value.is_empty())?;
    let mut bytes = [0; 4];
    let leading = bytes.len().checked_sub(size.value.len())?;
    bytes.get_mut(leading..)?.copy_from_slice(size.value);
    usize::try_from(u32::from_be_bytes(bytes)).ok()
}
