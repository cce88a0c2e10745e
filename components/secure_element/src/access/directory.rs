/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! EF.DIR, the list of a card's applications (ISO/IEC 7816-4 section 12.2.2): whether the card is a
//! UICC.

use super::Closed;
use super::files::{DirectoryEntry, Path};
use crate::apdu::{CommandApdu, CommandError, Header, ResponseApdu, StatusWord};
use crate::class_byte::{self, ChannelNumber};

/// From the master file.
pub(super) const EF_DIR: [u8; 4] = [0x3F, 0x00, 0x2F, 0x00];
const MASTER_FILE: [u8; 2] = [0x3F, 0x00];
/// EF.DIR has a handful.
pub(super) const MAX_RECORDS: u8 = 64;

const INS_SELECT: u8 = 0xA4;
const SELECT_BY_FILE_ID: u8 = 0x00;
const SELECT_BY_PATH_FROM_MF: u8 = 0x08;
const SELECT_BY_PATH: u8 = 0x09;
/// Answer with the file control parameters.
const SELECT_FCP: u8 = 0x04;
const INS_READ_RECORD: u8 = 0xB2;
/// The record of the number in P1, in the file that is selected.
const READ_THIS_RECORD: u8 = 0x04;
const MAX_BLOCK: u32 = 256;

/// SELECT of a file.
pub(super) fn select(channel: ChannelNumber, path: &Path) -> Result<CommandApdu, CommandError> {
    let (p1, data) = match path.as_bytes() {
        id @ [_, _] => (SELECT_BY_FILE_ID, id),
        path => match path.strip_prefix(&MASTER_FILE) {
            Some(path) => (SELECT_BY_PATH_FROM_MF, path),
            None => (SELECT_BY_PATH, path),
        },
    };
    let class = class_byte::interindustry(channel);
    let header = Header::new(class, INS_SELECT, p1, SELECT_FCP);
    CommandApdu::with_shortest_form(header, data.to_vec(), Some(MAX_BLOCK))
}

/// READ RECORD, of the file that is selected.
pub(super) const fn read_record(channel: ChannelNumber, number: u8) -> CommandApdu {
    let class = class_byte::interindustry(channel);
    let header = Header::new(class, INS_READ_RECORD, number, READ_THIS_RECORD);
    CommandApdu::short_without_data(header, Some(0))
}

/// Reads EF.DIR, to see whether the card is a UICC, on a channel on which nothing else is to stay
/// selected.
///
/// The answers that it takes are complete, as for [`super::ArfReader`].
#[derive(Clone, Copy, Debug)]
pub struct DirectoryReader {
    channel: ChannelNumber,
    /// The record that was asked for last; 0 before that.
    record: u8,
}

/// What to do next.
#[derive(Clone, Debug)]
pub enum DirectoryStep {
    /// Send the command, and give its answer to the reader.
    Send(DirectoryReader, CommandApdu),
    /// The card is a UICC, or not. The rest of EF.DIR is not looked at.
    Done(bool),
    /// It cannot be known, and so nothing on the element may be used.
    Closed(Closed),
}

impl DirectoryReader {
    /// Starts to read.
    pub fn start(channel: ChannelNumber) -> DirectoryStep {
        let command = Path::new(&EF_DIR).and_then(|path| select(channel, &path).ok());
        match command {
            Some(command) => DirectoryStep::Send(Self { channel, record: 0 }, command),
            None => DirectoryStep::Closed(Closed::MalformedFile),
        }
    }

    /// Takes the answer to the command that was to be sent.
    pub fn receive(self, response: &ResponseApdu) -> DirectoryStep {
        let status = response.status;
        if self.record == 0 {
            // Where EF.DIR is not found, this is no UICC.
            if status.is_error() {
                return DirectoryStep::Done(false);
            }
        } else if status.is_ok() || status.is_warning() {
            let entry = DirectoryEntry::parse(&response.data);
            if entry.is_some_and(|entry| entry.is_of_uicc()) {
                return DirectoryStep::Done(true);
            }
        } else if is_execution_error(status) {
            // It is there, and cannot be read now.
            return DirectoryStep::Closed(Closed::Status(status));
        } else {
            // That was the last record; or it is another kind of file, or one that may not be read. A
            // UICC's has records that everybody may read (ETSI TS 102 221 section 13.1).
            return DirectoryStep::Done(false);
        }
        if self.record == MAX_RECORDS {
            return DirectoryStep::Done(false);
        }
        let record = self.record + 1;
        let command = read_record(self.channel, record);
        DirectoryStep::Send(Self { record, ..self }, command)
    }
}

/// Whether a status word says that carrying out a command failed, or nothing precise: 64xx to 66xx and
/// 6Fxx (ISO/IEC 7816-4 section 5.6).
fn is_execution_error(status: StatusWord) -> bool {
    matches!(status.sw1(), 0x64..=0x66 | 0x6F)
}
