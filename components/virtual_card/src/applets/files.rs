/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Elementary files of an application, which are selected and read (ISO/IEC 7816-4 sections 11.1.1,
//! 11.2.3 and 11.3.3).

use std::collections::BTreeMap;

use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::class_byte::{ChannelNumber, without_channel};
use secure_element::fci::FCP_TEMPLATE;
use secure_element::tlv::{self, Tag};

const INS_SELECT: u8 = 0xA4;
const INS_READ_BINARY: u8 = 0xB0;
const INS_READ_RECORD: u8 = 0xB2;
/// P1 of SELECT: a file identifier, a path from the master file, a path from the selected DF.
const SELECT_WAYS: [u8; 3] = [0x00, 0x08, 0x09];
/// The record of the number in P1.
const READ_THIS_RECORD: u8 = 0x04;

const FILE_SIZE: Tag = Tag(0x80);
const FILE_DESCRIPTOR: Tag = Tag(0x82);
const FILE_IDENTIFIER: Tag = Tag(0x83);

const END_OF_FILE: StatusWord = StatusWord(0x6282);
const WRONG_KIND_OF_FILE: StatusWord = StatusWord(0x6981);
const NO_FILE_SELECTED: StatusWord = StatusWord(0x6986);
const RECORD_NOT_FOUND: StatusWord = StatusWord(0x6A83);
const OFFSET_OUTSIDE: StatusWord = StatusWord(0x6B00);

/// An elementary file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum File {
    /// Bytes, for READ BINARY.
    Transparent(Vec<u8>),
    /// Records, for READ RECORD.
    Records(Vec<Vec<u8>>),
    /// This is what SELECT answers.
    Failing(StatusWord),
    /// This is what reading answers.
    Unreadable(StatusWord),
}

/// The files of an application, by their identifiers.
#[derive(Clone, Debug, Default)]
pub struct Files {
    files: BTreeMap<u16, File>,
    /// By channel.
    selected: BTreeMap<u8, u16>,
}

impl Files {
    /// Adds a file, or replaces it.
    pub fn put(&mut self, id: u16, file: File) {
        self.files.insert(id, file);
    }

    /// Deletes a file, if it is there.
    pub fn delete(&mut self, id: u16) {
        self.files.remove(&id);
    }

    /// The application is selected on this channel.
    pub(super) fn select_application(&mut self, channel: ChannelNumber) {
        self.selected.remove(&channel.get());
    }

    /// Carries out a command if it is one for files.
    pub(super) fn process(
        &mut self,
        channel: ChannelNumber,
        command: &CommandApdu,
    ) -> Option<ResponseApdu> {
        let Header { cla, ins, p1, p2 } = command.header();
        if without_channel(cla) != Ok(0x00) {
            return None;
        }
        Some(match ins {
            INS_SELECT => self.select(channel, p1, p2, command.data()),
            INS_READ_BINARY | INS_READ_RECORD => {
                let id = self.selected.get(&channel.get());
                match (ins, id.and_then(|id| self.files.get(id))) {
                    (INS_READ_BINARY, Some(File::Transparent(content))) => {
                        let offset = u16::from_be_bytes([p1, p2]);
                        read_binary(content, offset, command.le())
                    }
                    (INS_READ_RECORD, Some(File::Records(records))) => match p2 {
                        READ_THIS_RECORD => p1
                            .checked_sub(1)
                            .and_then(|index| records.get(usize::from(index)))
                            .map_or(RECORD_NOT_FOUND.into(), |record| {
                                ResponseApdu::new(record.clone(), StatusWord::OK)
                            }),
                        _ => StatusWord::INCORRECT_P1_P2.into(),
                    },
                    (_, Some(File::Unreadable(status))) => (*status).into(),
                    (_, Some(_)) => WRONG_KIND_OF_FILE.into(),
                    (_, None) => NO_FILE_SELECTED.into(),
                }
            }
            _ => return None,
        })
    }

    fn select(&mut self, channel: ChannelNumber, p1: u8, p2: u8, path: &[u8]) -> ResponseApdu {
        if !SELECT_WAYS.contains(&p1) || !matches!(p2, 0x04 | 0x0C) {
            return StatusWord::INCORRECT_P1_P2.into();
        }
        // There are no directories below.
        let id = path.try_into().map(u16::from_be_bytes);
        let Some((id, file)) = id.ok().and_then(|id| Some((id, self.files.get(&id)?))) else {
            return StatusWord::NOT_FOUND.into();
        };
        let (descriptor, size) = match file {
            File::Transparent(content) => (0x41, content.len()),
            File::Records(records) => (0x42, records.iter().map(Vec::len).sum()),
            File::Unreadable(_) => (0x41, 1),
            File::Failing(status) => return (*status).into(),
        };
        self.selected.insert(channel.get(), id);
        let mut parameters = Vec::new();
        tlv::write(&mut parameters, FILE_DESCRIPTOR, &[descriptor, 0x21]);
        tlv::write(&mut parameters, FILE_IDENTIFIER, &id.to_be_bytes());
        let [.., high, low] = size.to_be_bytes();
        tlv::write(&mut parameters, FILE_SIZE, &[high, low]);
        let mut answer = Vec::new();
        if p2 == 0x04 {
            tlv::write(&mut answer, FCP_TEMPLATE, &parameters);
        }
        ResponseApdu::new(answer, StatusWord::OK)
    }
}

fn read_binary(content: &[u8], offset: u16, le: Option<u32>) -> ResponseApdu {
    let Some(rest) = content.get(usize::from(offset)..) else {
        return OFFSET_OUTSIDE.into();
    };
    let le = le.unwrap_or_default() as usize;
    let data = rest.get(..le.min(rest.len())).unwrap_or_default().to_vec();
    // The longest short Le, and the longest of all, mean: as much as there is.
    let is_short = data.len() < le && !matches!(le, 256 | 65_536);
    let status = if is_short {
        END_OF_FILE
    } else {
        StatusWord::OK
    };
    ResponseApdu::new(data, status)
}
