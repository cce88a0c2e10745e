/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The issuer security domain: selected by default, and by an empty AID (GlobalPlatform Card
//! Specification section 11.9).

use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;
use secure_element::tlv::{self, Tag};

use super::{aid, is_plain_class};
use crate::{Applet, Outcome, Selection};

/// The AID of the issuer security domain.
pub const AID: [u8; 8] = [0xA0, 0x00, 0x00, 0x01, 0x51, 0x00, 0x00, 0x00];

const INS_GET_DATA: u8 = 0xCA;
const PROPRIETARY_DATA: Tag = Tag(0xA5);
const MAXIMUM_DATA_LENGTH: Tag = Tag(0x9F65);
/// Card production life cycle data.
const CPLC: Tag = Tag(0x9F7F);
const CPLC_LENGTH: usize = 42;
const CARD_DATA: Tag = Tag(0x66);
const CARD_RECOGNITION_DATA: Tag = Tag(0x73);
const APPLICATION_TAG_0: Tag = Tag(0x60);
const OBJECT_IDENTIFIER: Tag = Tag(0x06);
/// globalPlatform 1: card recognition data.
const RECOGNITION_SCHEME: [u8; 7] = [0x2A, 0x86, 0x48, 0x86, 0xFC, 0x6B, 0x01];
/// globalPlatform 2 2 3: the version of the card specification, 2.3.
const MANAGEMENT_TYPE: [u8; 9] = [0x2A, 0x86, 0x48, 0x86, 0xFC, 0x6B, 0x02, 0x02, 0x03];

/// The issuer security domain. Of its commands it knows GET DATA, for the production life cycle
/// data (9F7F), which is all zero here, and the card data (66; GlobalPlatform Card Specification
/// annex H), which names the specification.
#[derive(Debug, Default)]
pub struct IssuerSecurityDomain;

impl Applet for IssuerSecurityDomain {
    fn aid(&self) -> Aid {
        const { aid(&AID) }
    }

    fn select(&mut self, _: ChannelNumber, _: u8) -> Selection {
        let mut maximum = Vec::new();
        tlv::write(&mut maximum, MAXIMUM_DATA_LENGTH, &[0xFF]);
        let mut control_information = Vec::new();
        tlv::write(&mut control_information, PROPRIETARY_DATA, &maximum);
        Selection {
            control_information,
            ..Selection::default()
        }
    }

    fn process(&mut self, _: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        if !is_plain_class(header.cla) {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        }
        if header.ins != INS_GET_DATA {
            return StatusWord::INS_NOT_SUPPORTED.into();
        }
        let mut data = Vec::new();
        match Tag(u32::from(u16::from_be_bytes([header.p1, header.p2]))) {
            CPLC => tlv::write(&mut data, CPLC, &[0; CPLC_LENGTH]),
            CARD_DATA => data = card_data(),
            // Referenced data not found.
            _ => return StatusWord(0x6A88).into(),
        }
        ResponseApdu::new(data, StatusWord::OK).into()
    }
}

fn card_data() -> Vec<u8> {
    let mut management_type = Vec::new();
    tlv::write(&mut management_type, OBJECT_IDENTIFIER, &MANAGEMENT_TYPE);
    let mut recognition = Vec::new();
    tlv::write(&mut recognition, OBJECT_IDENTIFIER, &RECOGNITION_SCHEME);
    tlv::write(&mut recognition, APPLICATION_TAG_0, &management_type);
    let mut data = Vec::new();
    tlv::write(&mut data, CARD_RECOGNITION_DATA, &recognition);
    let mut card_data = Vec::new();
    tlv::write(&mut card_data, CARD_DATA, &data);
    card_data
}
