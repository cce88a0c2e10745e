/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The issuer security domain: selected by default, and by an empty AID (GlobalPlatform Card
//! Specification section 11.9).

use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::{ChannelNumber, without_channel};
use secure_element::tlv::{self, Tag};

use super::aid;
use crate::{Applet, Outcome, Selection};

/// The AID of the issuer security domain.
pub const AID: [u8; 8] = [0xA0, 0x00, 0x00, 0x01, 0x51, 0x00, 0x00, 0x00];

const INS_GET_DATA: u8 = 0xCA;
const PROPRIETARY_DATA: Tag = Tag(0xA5);
const MAXIMUM_DATA_LENGTH: Tag = Tag(0x9F65);
/// Card production life cycle data.
const CPLC: Tag = Tag(0x9F7F);
const CPLC_LENGTH: usize = 42;

/// The issuer security domain. Of its commands it knows GET DATA for the production life cycle
/// data (9F7F), which is all zero here.
#[derive(Debug, Default)]
pub struct IssuerSecurityDomain;

impl Applet for IssuerSecurityDomain {
    fn aid(&self) -> Aid {
        const { aid(&AID) }
    }

    fn select(&mut self, _: ChannelNumber) -> Selection {
        let mut maximum = Vec::new();
        tlv::write(&mut maximum, MAXIMUM_DATA_LENGTH, &[0xFF]);
        let mut control_information = Vec::new();
        tlv::write(&mut control_information, PROPRIETARY_DATA, &maximum);
        Selection {
            status: StatusWord::OK,
            control_information,
        }
    }

    fn process(&mut self, _: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        if !matches!(without_channel(header.cla), Ok(0x00 | 0x80)) {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        if header.ins != INS_GET_DATA {
            return StatusWord::INS_NOT_SUPPORTED.into();
        }
        if u32::from(u16::from_be_bytes([header.p1, header.p2])) != CPLC.0 {
            // Referenced data not found.
            return StatusWord(0x6A88).into();
        }
        let mut data = Vec::new();
        tlv::write(&mut data, CPLC, &[0; CPLC_LENGTH]);
        ResponseApdu::new(data, StatusWord::OK).into()
    }
}
