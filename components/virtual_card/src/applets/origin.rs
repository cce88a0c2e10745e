/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An application that tells web origins apart by itself: it gives away what it holds only to the
//! origin that this belongs to, whoever else was allowed to reach it.
//!
//! The card cannot see the web. So whoever stands between the web and the card, and knows the
//! caller's origin, says it: PRESENT ORIGIN is the first command on a channel after SELECT, and
//! cannot be repeated before the next SELECT. From then on the application serves that origin on
//! that channel, and takes no personalisation there. Whoever lets a page use the channel must have
//! presented the page's origin before that, and so nothing that the page sends can change it.
//! Without a presented origin nothing is given away. That it wants to be told, the application says
//! in its file control information: [`secure_element::origin`].
//!
//! There are [`SLOTS`] slots; in each is an origin and a secret of 16 bytes. They outlive a reset.
//!
//! Class 00 or 80, on any channel:
//!
//! | INS | P1 P2 | data | answer |
//! |---|---|---|---|
//! | 40 PRESENT ORIGIN | 00 00 | the origin's ASCII serialisation (RFC 6454) | 9000, known or not; 6985 after any other command since SELECT; 6A80 if it is no origin |
//! | 42 PERSONALISE | slot 00 | secret, origin | 9000; 6982 on a channel with an origin |
//! | 42 PERSONALISE | slot 00 | none | 9000, the slot is empty; 6982 on a channel with an origin |
//! | 44 GET SECRET | slot 00 | none | the secret; 6982 if it is another origin's, or nobody's |
//! | 46 MY SLOTS | 00 00 | none | the numbers of the slots of the origin that was presented; 6982 without one |
//!
//! An origin has at most 255 bytes, is all lower case and has no default port: the bytes are
//! compared as they are. "null" is no origin.

use std::collections::BTreeMap;

use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;
use secure_element::{origin, tlv};

use super::{aid, is_plain_class};
use crate::{Applet, Outcome, Selection};

/// Its AID.
pub const AID: [u8; 8] = [0xF0, b'S', b'E', b'R', b'V', b'O', 0x05, 0x01];

/// Says who uses the channel.
pub use secure_element::origin::INS_PRESENT_ORIGIN;
/// Fills a slot, or empties it.
pub const INS_PERSONALISE: u8 = 0x42;
/// Answers with the secret in a slot.
pub const INS_GET_SECRET: u8 = 0x44;
/// Answers with the slots of the caller.
pub const INS_MY_SLOTS: u8 = 0x46;

/// How many slots there are.
pub const SLOTS: usize = 8;
/// The origin in slot 0 of the card as it comes.
pub const SAMPLE_ORIGIN: &str = "https://wallet.example";
/// The secret in slot 0 of the card as it comes.
pub const SAMPLE_SECRET: [u8; 16] = *b"for one origin  ";

const MAX_ORIGIN: usize = 255;
const SECURITY_STATUS_NOT_SATISFIED: StatusWord = StatusWord(0x6982);
const INCORRECT_DATA: StatusWord = StatusWord(0x6A80);

/// The application.
#[derive(Debug, Default)]
pub struct OriginAware {
    slots: [Option<Slot>; SLOTS],
    /// By channel, whatever happened there since SELECT.
    callers: BTreeMap<u8, Caller>,
    refusal: Option<StatusWord>,
}

#[derive(Clone, Debug)]
struct Slot {
    origin: Vec<u8>,
    secret: [u8; 16],
}

/// Who uses a channel.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Caller {
    /// There was a command before any origin was presented.
    Unknown,
    Origin(Vec<u8>),
}

impl OriginAware {
    /// One that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The one that is on the card: [`SAMPLE_SECRET`] of [`SAMPLE_ORIGIN`] is in slot 0.
    pub fn sample() -> Self {
        Self::new().with(0, SAMPLE_ORIGIN, SAMPLE_SECRET)
    }

    /// With this in a slot. Slots are numbered from 0; one that does not exist holds nothing.
    #[must_use]
    pub fn with(mut self, slot: usize, origin: &str, secret: [u8; 16]) -> Self {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Some(Slot {
                origin: origin.as_bytes().to_vec(),
                secret,
            });
        }
        self
    }

    /// With this answer to every PRESENT ORIGIN, which it then does not carry out.
    #[must_use]
    pub const fn with_refusal(mut self, status: StatusWord) -> Self {
        self.refusal = Some(status);
        self
    }

    fn present(&mut self, channel: u8, origin: &[u8]) -> StatusWord {
        if let Some(refusal) = self.refusal {
            return refusal;
        }
        if self.callers.contains_key(&channel) {
            return StatusWord::CONDITIONS_NOT_SATISFIED;
        }
        if !is_origin(origin) {
            return INCORRECT_DATA;
        }
        self.callers
            .insert(channel, Caller::Origin(origin.to_vec()));
        StatusWord::OK
    }

    fn personalise(&mut self, slot: u8, data: &[u8]) -> StatusWord {
        let Some(slot) = self.slots.get_mut(usize::from(slot)) else {
            return StatusWord::INCORRECT_P1_P2;
        };
        *slot = match data.split_first_chunk() {
            None if data.is_empty() => None,
            Some((&secret, origin)) if is_origin(origin) => Some(Slot {
                origin: origin.to_vec(),
                secret,
            }),
            _ => return INCORRECT_DATA,
        };
        StatusWord::OK
    }
}

/// Whether this looks like the serialisation of an origin: a scheme, a host, perhaps a port, and
/// nothing else. The application only compares it.
fn is_origin(bytes: &[u8]) -> bool {
    let Some(text) = str::from_utf8(bytes).ok() else {
        return false;
    };
    let Some((scheme, host)) = text.split_once("://") else {
        return false;
    };
    let is_plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b'/')
    };
    bytes.len() <= MAX_ORIGIN
        && [scheme, host]
            .iter()
            .all(|part| !part.is_empty() && is_plain(part))
}

impl Applet for OriginAware {
    fn aid(&self) -> Aid {
        const { aid(&AID) }
    }

    fn select(&mut self, channel: ChannelNumber, _: u8) -> Selection {
        self.callers.remove(&channel.get());
        let mut announcement = Vec::new();
        tlv::write(
            &mut announcement,
            origin::OBJECT_IDENTIFIER,
            &origin::ANNOUNCEMENT,
        );
        let mut control_information = Vec::new();
        tlv::write(
            &mut control_information,
            origin::PROPRIETARY_INFORMATION,
            &announcement,
        );
        Selection {
            control_information,
            ..Selection::default()
        }
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        let channel = channel.get();
        let header = command.header();
        let is_known = is_plain_class(header.cla);
        if is_known && header.ins == INS_PRESENT_ORIGIN && (header.p1, header.p2) == (0, 0) {
            let status = self.present(channel, command.data());
            // One attempt is all there is.
            self.callers.entry(channel).or_insert(Caller::Unknown);
            return status.into();
        }
        let caller = self.callers.entry(channel).or_insert(Caller::Unknown);
        if !is_known {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        let data = match (header.ins, &*caller) {
            (INS_PRESENT_ORIGIN..=INS_MY_SLOTS, _) if header.p2 != 0 => {
                return StatusWord::INCORRECT_P1_P2.into();
            }
            (INS_PERSONALISE, Caller::Unknown) => {
                return self.personalise(header.p1, command.data()).into();
            }
            (INS_GET_SECRET, Caller::Origin(origin)) => {
                let slot = self.slots.get(usize::from(header.p1));
                match slot {
                    Some(Some(slot)) if slot.origin == *origin => slot.secret.to_vec(),
                    _ => return SECURITY_STATUS_NOT_SATISFIED.into(),
                }
            }
            (INS_MY_SLOTS, Caller::Origin(origin)) => (0..)
                .zip(&self.slots)
                .filter(|(_, slot)| slot.as_ref().is_some_and(|slot| slot.origin == *origin))
                .map(|(number, _)| number)
                .collect(),
            (INS_PERSONALISE | INS_GET_SECRET | INS_MY_SLOTS, _) => {
                return SECURITY_STATUS_NOT_SATISFIED.into();
            }
            (INS_PRESENT_ORIGIN, _) => return StatusWord::INCORRECT_P1_P2.into(),
            _ => return StatusWord::INS_NOT_SUPPORTED.into(),
        };
        ResponseApdu::new(data, StatusWord::OK).into()
    }
}
