/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What makes a card a UICC with access rules in files: EF.DIR, which names a USIM ([`Directory`]), and
//! a PKCS#15 application whose files hold the rules ([`Arf`]; GlobalPlatform Secure Element Access
//! Control section 7).

use secure_element::access::PKCS15_AID;
use secure_element::apdu::{CommandApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;
use secure_element::tlv::{self, Tag};

use super::files::{File, Files};
use super::issuer::IssuerSecurityDomain;
use super::{aid, ara_m, conformance, echo, pin};
use crate::{Applet, Outcome, Selection};

/// The AID of the application with the files.
pub const AID: [u8; 12] = PKCS15_AID;
/// The AID of a USIM. EF.DIR names it; the application itself is not there.
pub const USIM_AID: [u8; 12] = [
    0xA0, 0x00, 0x00, 0x00, 0x87, 0x10, 0x02, 0xFF, 0x49, 0xFF, 0x05, 0x89,
];

/// The file identifier of EF.DIR.
pub const EF_DIR: u16 = 0x2F00;
/// The file identifier of EF.ODF.
pub const EF_ODF: u16 = 0x5031;
/// The file identifier of EF.DODF, as EF.ODF names it.
pub const EF_DODF: u16 = 0x5207;
/// The file identifier of EF.ACMain, as EF.DODF names it.
pub const EF_AC_MAIN: u16 = 0x4200;
/// The file identifier of EF.ACRules, as EF.ACMain names it.
pub const EF_AC_RULES: u16 = 0x4300;
/// The file identifier of the first EF.ACConditions. Others follow it.
pub const EF_AC_CONDITIONS: u16 = 0x4310;

const OCTET_STRING: Tag = Tag(0x04);
const OBJECT_IDENTIFIER: Tag = Tag(0x06);
const UTF8_STRING: Tag = Tag(0x0C);
const SEQUENCE: Tag = Tag(0x30);
const APPLICATION_TEMPLATE: Tag = Tag(0x61);
const APPLICATION_IDENTIFIER: Tag = Tag(0x4F);
const CONTEXT_0: Tag = Tag(0x80);
const IMPLICIT_APPLICATION: Tag = Tag(0x81);
const ALL_APPLICATIONS: Tag = Tag(0x82);
const CONSTRUCTED_0: Tag = Tag(0xA0);
const CONSTRUCTED_1: Tag = Tag(0xA1);
const DATA_OBJECTS: Tag = Tag(0xA7);
/// 1.2.840.114283.200.1.1.
const ACCESS_CONTROL: [u8; 10] = [0x2A, 0x86, 0x48, 0x86, 0xFC, 0x6B, 0x81, 0x48, 0x01, 0x01];

fn object(tag: Tag, parts: &[&[u8]]) -> Vec<u8> {
    let mut object = Vec::new();
    tlv::write(&mut object, tag, &parts.concat());
    object
}

fn path(id: u16) -> Vec<u8> {
    object(SEQUENCE, &[&object(OCTET_STRING, &[&id.to_be_bytes()])])
}

/// A record of EF.DIR that names an application.
pub fn directory_entry(aid: &[u8]) -> Vec<u8> {
    let aid = object(APPLICATION_IDENTIFIER, &[aid]);
    object(APPLICATION_TEMPLATE, &[&aid])
}

/// The issuer security domain together with EF.DIR. It is selected by default, as the master file of a
/// UICC is.
#[derive(Debug, Default)]
pub struct Directory {
    issuer: IssuerSecurityDomain,
    files: Files,
}

impl Directory {
    /// With this EF.DIR.
    pub fn new(directory: File) -> Self {
        let mut files = Files::default();
        files.put(EF_DIR, directory);
        Self {
            issuer: IssuerSecurityDomain,
            files,
        }
    }

    /// The one of the profile `uicc`: it names the PKCS#15 application and a USIM.
    pub fn sample() -> Self {
        let records = [&AID, &USIM_AID].map(|aid| directory_entry(aid));
        Self::new(File::Records(records.to_vec()))
    }
}

impl Applet for Directory {
    fn aid(&self) -> Aid {
        self.issuer.aid()
    }

    fn select(&mut self, channel: ChannelNumber, p2: u8) -> Selection {
        self.files.select_application(channel);
        self.issuer.select(channel, p2)
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        match self.files.process(channel, command) {
            Some(response) => response.into(),
            None => self.issuer.process(channel, command),
        }
    }
}

/// The PKCS#15 application with the access rule files.
#[derive(Clone, Debug)]
pub struct Arf {
    files: Files,
}

/// Who may use an application, and how: as in [`ara_m::rule`].
pub type Rule<'a> = (Option<&'a [u8]>, &'a [u8], &'a [u8]);

impl Arf {
    /// One without files.
    pub fn new() -> Self {
        Self {
            files: Files::default(),
        }
    }

    /// One with the files for these rules. Those for one application are in one conditions file.
    pub fn with_rules(rules: &[Rule<'_>]) -> Self {
        let mut applications: Vec<(Option<&[u8]>, Vec<u8>)> = Vec::new();
        for (application, origin, access) in rules {
            let condition = condition(origin, access);
            match applications.iter_mut().find(|(aid, _)| aid == application) {
                Some((_, conditions)) => conditions.extend(condition),
                None => applications.push((*application, condition)),
            }
        }
        let mut arf = Self::new();
        let mut content = Vec::new();
        for (id, (application, conditions)) in (EF_AC_CONDITIONS..).zip(applications) {
            let target = match application {
                None => object(IMPLICIT_APPLICATION, &[]),
                Some([]) => object(ALL_APPLICATIONS, &[]),
                Some(aid) => object(CONSTRUCTED_0, &[&object(OCTET_STRING, &[aid])]),
            };
            content.extend(object(SEQUENCE, &[&target, &path(id)]));
            arf = arf.with_file(id, File::Transparent(conditions));
        }
        let refresh_tag = object(OCTET_STRING, &[&[0, 0, 0, 0, 0, 0, 0, 1]]);
        let main = object(SEQUENCE, &[&refresh_tag, &path(EF_AC_RULES)]);
        let odf = object(DATA_OBJECTS, &[&path(EF_DODF)]);
        for (id, content) in [
            (EF_ODF, odf),
            (EF_DODF, data_object(EF_AC_MAIN)),
            (EF_AC_MAIN, main),
            (EF_AC_RULES, content),
        ] {
            arf = arf.with_file(id, File::Transparent(content));
        }
        arf
    }

    /// The one of the profile `uicc`, with the rules of [`ara_m::AraM::sample`].
    pub fn sample() -> Self {
        const NEVER: [u8; 1] = [0x00];
        const ALWAYS: [u8; 1] = [0x01];
        Self::with_rules(&[
            (Some(&echo::AID), &[], &ALWAYS),
            (Some(&conformance::AID), &[], &ALWAYS),
            (Some(&echo::SECOND_AID), &ara_m::WALLET, &ALWAYS),
            (Some(&echo::SECOND_AID), &ara_m::SHOP, &ara_m::ECHO_ONLY),
            (Some(&pin::AID), &[], &NEVER),
        ])
    }

    /// With this file, in the place of another one of that identifier.
    #[must_use]
    pub fn with_file(mut self, id: u16, file: File) -> Self {
        self.files.put(id, file);
        self
    }

    /// Without the file of that identifier.
    #[must_use]
    pub fn without_file(mut self, id: u16) -> Self {
        self.files.delete(id);
        self
    }
}

impl Default for Arf {
    fn default() -> Self {
        Self::new()
    }
}

/// An entry of EF.DODF that names an access control main file.
pub fn data_object(main: u16) -> Vec<u8> {
    let label = object(SEQUENCE, &[&object(UTF8_STRING, &[b"GP SE Acc Ctl"])]);
    let oid = object(OBJECT_IDENTIFIER, &[&ACCESS_CONTROL]);
    let value = object(CONSTRUCTED_1, &[&object(SEQUENCE, &[&oid, &path(main)])]);
    object(CONSTRUCTED_1, &[&object(SEQUENCE, &[]), &label, &value])
}

/// An entry of EF.ACConditions.
fn condition(origin: &[u8], access: &[u8]) -> Vec<u8> {
    let hash = match origin {
        [] => Vec::new(),
        hash => object(OCTET_STRING, &[hash]),
    };
    let rule = match access {
        [flag] => object(CONTEXT_0, &[&[*flag]]),
        filters => {
            let filters: Vec<u8> = filters
                .chunks(8)
                .flat_map(|filter| object(OCTET_STRING, &[filter]))
                .collect();
            object(CONSTRUCTED_1, &[&filters])
        }
    };
    let rules = object(CONSTRUCTED_0, &[&object(CONSTRUCTED_0, &[&rule])]);
    object(SEQUENCE, &[&hash, &rules])
}

impl Applet for Arf {
    fn aid(&self) -> Aid {
        const { aid(&AID) }
    }

    fn select(&mut self, channel: ChannelNumber, _: u8) -> Selection {
        self.files.select_application(channel);
        Selection::default()
    }

    fn process(&mut self, channel: ChannelNumber, command: &CommandApdu) -> Outcome {
        match self.files.process(channel, command) {
            Some(response) => response.into(),
            None => StatusWord::INS_NOT_SUPPORTED.into(),
        }
    }
}
