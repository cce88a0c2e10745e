/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the access rule files hold (section 7; PKCS #15 version 1.1 sections 6.2 and 6.8): DER in
//! transparent files, with FF or 00 behind it up to the end of the file.
//!
//! ```text
//! EF.ODF           A7 { path of an EF.DODF }, among others
//! EF.DODF          A1 { SEQUENCE, SEQUENCE, [A0 ..], A1 { SEQUENCE { OID, path of EF.ACMain } } }, among others
//! EF.ACMain        SEQUENCE { OCTET STRING refresh tag, path of EF.ACRules }
//! EF.ACRules       SEQUENCE { A0 { OCTET STRING AID } or 81 implicit or 82 all, path of EF.ACConditions } ..
//! EF.ACConditions  SEQUENCE { [OCTET STRING hash], [A0 { [A0 APDU], [A1 NFC] }] } ..
//! APDU             80 00 never, 80 01 always, or A1 { OCTET STRING filter .. }
//! path             SEQUENCE { OCTET STRING, .. }
//! ```

use std::collections::BTreeMap;

use super::data_objects::{app_ref, rule_aid};
use super::rule::{AidRef, ApduRule, AppRef, Filter};
use super::{Closed, RefreshTag};
use crate::tlv::{Reader, Tag, Tlv};

const SEQUENCE: Tag = Tag(0x30);
const OCTET_STRING: Tag = Tag(0x04);
const OBJECT_IDENTIFIER: Tag = Tag(0x06);
/// Context-specific tags: what they mean depends on where they are.
const PRIMITIVE_0: Tag = Tag(0x80);
const PRIMITIVE_1: Tag = Tag(0x81);
const PRIMITIVE_2: Tag = Tag(0x82);
const CONSTRUCTED_0: Tag = Tag(0xA0);
const CONSTRUCTED_1: Tag = Tag(0xA1);
/// In EF.ODF: data objects. In EF.DODF: one with an object identifier.
const DATA_OBJECTS: Tag = Tag(0xA7);
const OID_DATA_OBJECT: Tag = CONSTRUCTED_1;

/// 1.2.840.114283.200.1.1, the access control main file of GlobalPlatform.
const ACCESS_CONTROL: [u8; 10] = [0x2A, 0x86, 0x48, 0x86, 0xFC, 0x6B, 0x81, 0x48, 0x01, 0x01];

const APPLICATION_TEMPLATE: Tag = Tag(0x61);
const APPLICATION_IDENTIFIER: Tag = Tag(0x4F);
const APPLICATION_PATH: Tag = Tag(0x51);

/// The path of a file: file identifiers of two bytes each.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Path(Vec<u8>);

impl Path {
    /// Cards nest files two or three deep.
    const MAX_LENGTH: usize = 16;

    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        let is_valid =
            !bytes.is_empty() && bytes.len().is_multiple_of(2) && bytes.len() <= Self::MAX_LENGTH;
        is_valid.then(|| Self(bytes.to_vec()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The data objects of a file up to its padding.
struct Objects<'a>(Reader<'a>);

impl<'a> Objects<'a> {
    fn new(content: &'a [u8]) -> Self {
        Self(Reader::new(content))
    }
}

impl<'a> Iterator for Objects<'a> {
    type Item = Result<Tlv<'a>, Closed>;

    fn next(&mut self) -> Option<Self::Item> {
        if is_padding(self.0.rest()) {
            return None;
        }
        Some(self.0.next()?.map_err(|_| Closed::MalformedFile))
    }
}

fn is_padding(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0xFF) || bytes.iter().all(|byte| *byte == 0x00)
}

/// Reads the parts of a data object one by one.
struct Parts<'a>(Reader<'a>);

impl<'a> Parts<'a> {
    fn of(object: &Tlv<'a>) -> Result<Self, Closed> {
        Ok(Self(object.parts().map_err(|_| Closed::MalformedFile)?))
    }

    fn optional(&mut self) -> Result<Option<Tlv<'a>>, Closed> {
        let next = self.0.next().transpose();
        next.map_err(|_| Closed::MalformedFile)
    }

    fn any(&mut self) -> Result<Tlv<'a>, Closed> {
        self.optional()?.ok_or(Closed::MalformedFile)
    }

    fn expect(&mut self, tag: Tag) -> Result<Tlv<'a>, Closed> {
        let part = self.any()?;
        (part.tag == tag)
            .then_some(part)
            .ok_or(Closed::MalformedFile)
    }

    fn path(&mut self) -> Result<Path, Closed> {
        // Index and length may follow the path; they are for files that share one.
        let path = Parts::of(&self.expect(SEQUENCE)?)?.expect(OCTET_STRING)?;
        Path::new(path.value).ok_or(Closed::MalformedFile)
    }

    fn end(mut self) -> Result<(), Closed> {
        match self.optional()? {
            None => Ok(()),
            Some(_) => Err(Closed::MalformedFile),
        }
    }
}

/// An entry of EF.DIR: an application, and where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DirectoryEntry {
    /// The AID.
    pub aid: Vec<u8>,
    /// The path of the application's DF, if it is given.
    pub path: Option<Vec<u8>>,
}

impl DirectoryEntry {
    /// Reads a record of EF.DIR (ISO/IEC 7816-4 section 12.2.2, ETSI TS 102 221 section 13.1). `None`
    /// if the record is not in use, or has no application template with an AID.
    pub fn parse(record: &[u8]) -> Option<Self> {
        let template = Objects::new(record).next()?.ok()?;
        if template.tag != APPLICATION_TEMPLATE {
            return None;
        }
        let mut aid = None;
        let mut path = None;
        for part in template.parts().ok()? {
            let part = part.ok()?;
            match part.tag {
                APPLICATION_IDENTIFIER => aid = Some(part.value.to_vec()),
                APPLICATION_PATH => path = Some(part.value.to_vec()),
                _ => {}
            }
        }
        aid.map(|aid| Self { aid, path })
    }

    /// Whether this is a USIM or an ISIM, as only a UICC has them (ETSI TS 101 220 annex E).
    pub fn is_of_uicc(&self) -> bool {
        const USIM: [u8; 7] = [0xA0, 0x00, 0x00, 0x00, 0x87, 0x10, 0x02];
        const ISIM: [u8; 7] = [0xA0, 0x00, 0x00, 0x00, 0x87, 0x10, 0x04];
        self.aid.starts_with(&USIM) || self.aid.starts_with(&ISIM)
    }
}

/// The paths of the data object directory files.
pub(super) fn parse_odf(content: &[u8]) -> Result<Vec<Path>, Closed> {
    let mut paths = Vec::new();
    for object in Objects::new(content) {
        let object = object?;
        if object.tag == DATA_OBJECTS {
            paths.push(Parts::of(&object)?.path()?);
        }
    }
    Ok(paths)
}

/// The paths of the access control main files.
pub(super) fn parse_dodf(content: &[u8]) -> Result<Vec<Path>, Closed> {
    let mut paths = Vec::new();
    for object in Objects::new(content) {
        let object = object?;
        if object.tag != OID_DATA_OBJECT {
            continue;
        }
        let mut parts = Parts::of(&object)?;
        // Attributes that all objects have, and those that data objects have.
        parts.expect(SEQUENCE)?;
        parts.expect(SEQUENCE)?;
        let mut part = parts.any()?;
        if part.tag == CONSTRUCTED_0 {
            part = parts.any()?;
        }
        if part.tag != OID_DATA_OBJECT {
            return Err(Closed::MalformedFile);
        }
        let mut parts = Parts::of(&Parts::of(&part)?.expect(SEQUENCE)?)?;
        if parts.expect(OBJECT_IDENTIFIER)?.value == ACCESS_CONTROL {
            paths.push(parts.path()?);
        }
    }
    Ok(paths)
}

/// The refresh tag, and the path of the access control rules file.
pub(super) fn parse_main(content: &[u8]) -> Result<(RefreshTag, Path), Closed> {
    let main = Objects::new(content)
        .next()
        .ok_or(Closed::MalformedFile)??;
    if main.tag != SEQUENCE {
        return Err(Closed::MalformedFile);
    }
    let mut parts = Parts::of(&main)?;
    let tag = parts.expect(OCTET_STRING)?.value;
    let tag = tag.try_into().map_err(|_| Closed::RefreshTag)?;
    Ok((RefreshTag(tag), parts.path()?))
}

/// The paths of the access control conditions files, each with the applications it is about.
pub(super) fn parse_rules(content: &[u8]) -> Result<BTreeMap<Path, Vec<AidRef>>, Closed> {
    let mut files: BTreeMap<Path, Vec<AidRef>> = BTreeMap::new();
    for object in Objects::new(content) {
        let object = object?;
        if object.tag != SEQUENCE {
            return Err(Closed::MalformedFile);
        }
        let mut parts = Parts::of(&object)?;
        let target = parts.any()?;
        let aid = match (target.tag, target.value) {
            (PRIMITIVE_1, []) => AidRef::Implicit,
            (PRIMITIVE_2, []) => AidRef::All,
            (CONSTRUCTED_0, _) => {
                let mut parts = Parts::of(&target)?;
                let aid = parts.expect(OCTET_STRING)?.value;
                parts.end()?;
                rule_aid(aid).ok_or(Closed::MalformedFile)?
            }
            _ => return Err(Closed::MalformedFile),
        };
        files.entry(parts.path()?).or_default().push(aid);
        parts.end()?;
    }
    Ok(files)
}

/// Who may use the applications that a conditions file is about, and how.
///
/// A file without conditions allows it to nobody. A condition without a hash is about everybody, and
/// one that says nothing about commands allows all of them: unlike in an ARA-M, the public
/// conformance files rely on that where they have rules about NFC events only.
pub(super) fn parse_conditions(content: &[u8]) -> Result<Vec<(AppRef, ApduRule)>, Closed> {
    let mut conditions = Vec::new();
    for object in Objects::new(content) {
        let object = object?;
        if object.tag != SEQUENCE {
            return Err(Closed::MalformedFile);
        }
        let mut parts = Parts::of(&object)?;
        let mut part = parts.optional()?;
        let mut app = AppRef::All;
        if let Some(hash) = part
            && hash.tag == OCTET_STRING
        {
            app = app_ref(hash.value).ok_or(Closed::MalformedFile)?;
            part = parts.optional()?;
        }
        let rule = match part {
            None => ApduRule::Always,
            Some(rules) if rules.tag == CONSTRUCTED_0 => parse_access_rules(&rules)?,
            Some(_) => return Err(Closed::MalformedFile),
        };
        parts.end()?;
        conditions.push((app, rule));
    }
    if conditions.is_empty() {
        conditions.push((AppRef::All, ApduRule::Never));
    }
    Ok(conditions)
}

fn parse_access_rules(object: &Tlv<'_>) -> Result<ApduRule, Closed> {
    let mut apdu = None;
    let mut nfc = None;
    let mut parts = Parts::of(object)?;
    while let Some(part) = parts.optional()? {
        let is_first = match part.tag {
            CONSTRUCTED_0 => apdu.replace(parse_apdu_rule(&part)?).is_none(),
            CONSTRUCTED_1 => {
                let mut parts = Parts::of(&part)?;
                let flag = parse_flag(&parts.expect(PRIMITIVE_0)?)?;
                parts.end()?;
                nfc.replace(flag).is_none()
            }
            _ => false,
        };
        if !is_first {
            return Err(Closed::MalformedFile);
        }
    }
    match (apdu, nfc) {
        (Some(apdu), _) => Ok(apdu),
        (None, Some(_)) => Ok(ApduRule::Always),
        (None, None) => Err(Closed::MalformedFile),
    }
}

fn parse_apdu_rule(object: &Tlv<'_>) -> Result<ApduRule, Closed> {
    let mut parts = Parts::of(object)?;
    let rule = parts.any()?;
    parts.end()?;
    if rule.tag == PRIMITIVE_0 {
        return Ok(if parse_flag(&rule)? {
            ApduRule::Always
        } else {
            ApduRule::Never
        });
    }
    if rule.tag != CONSTRUCTED_1 {
        return Err(Closed::MalformedFile);
    }
    let mut filters = Vec::new();
    let mut parts = Parts::of(&rule)?;
    while let Some(filter) = parts.optional()? {
        match filter.value.try_into() {
            Ok(bytes) if filter.tag == OCTET_STRING => filters.push(Filter::from_bytes(bytes)),
            _ => return Err(Closed::MalformedFile),
        }
    }
    if filters.is_empty() {
        return Err(Closed::MalformedFile);
    }
    Ok(ApduRule::Filters(filters))
}

fn parse_flag(object: &Tlv<'_>) -> Result<bool, Closed> {
    match object.value {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Closed::MalformedFile),
    }
}
