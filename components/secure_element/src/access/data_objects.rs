/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The rules in an ARA-M's answer to GET DATA \[All\] (sections 6.1 and 6.2).
//!
//! ```text
//! E2 REF-AR-DO
//!    E1 REF-DO
//!       4F AID-REF-DO          length 0: all applications; 5 to 16: this one
//!       C0 AID-REF-DO          length 0, in place of 4F: the implicitly selected one
//!       C1 DeviceAppID-REF-DO  length 0: everybody; 20: SHA-1; 32: SHA-256
//!       CA PKG-REF-DO          the name of a package (GPD_SPE_068)
//!    E3 AR-DO
//!       D0 APDU-AR-DO          00 never; 01 always; filters of 8 bytes
//!       D1 NFC-AR-DO           00 never; 01 always
//!       DB PERM-AR-DO          8 bytes (GPD_SPE_068)
//! ```

use thiserror::Error;

use super::MAX_RULES;
use super::rule::{AidRef, ApduRule, AppRef, Filter, Rule};
use crate::channel::Aid;
use crate::tlv::{Reader, Tag, Tlv, TlvError};

const REF_DO: Tag = Tag(0xE1);
const REF_AR_DO: Tag = Tag(0xE2);
const AR_DO: Tag = Tag(0xE3);
const AID_REF_DO: Tag = Tag(0x4F);
const IMPLICIT_AID_REF_DO: Tag = Tag(0xC0);
const DEVICE_APP_ID_REF_DO: Tag = Tag(0xC1);
const PKG_REF_DO: Tag = Tag(0xCA);
const APDU_AR_DO: Tag = Tag(0xD0);
const NFC_AR_DO: Tag = Tag(0xD1);
const PERM_AR_DO: Tag = Tag(0xDB);

const MAX_PACKAGE_LENGTH: usize = 127;
const PERMISSIONS_LENGTH: usize = 8;

/// Why rules cannot be read. The element they are from is closed to everybody: a part that cannot
/// be understood may be the one that denies.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RulesError {
    /// They are not made of data objects.
    #[error("the access rules are malformed: {0}")]
    Tlv(#[from] TlvError),
    /// A data object has a value that it cannot have.
    #[error("data object {0:02X} has an invalid value")]
    InvalidValue(u32),
    /// A data object, or one in its place, is there twice.
    #[error("data object {0:02X} is there twice")]
    Duplicate(u32),
    /// There are more than [`MAX_RULES`].
    #[error("there are more than {MAX_RULES} access rules")]
    TooMany,
}

/// Reads the value of an ARA-M's Response-ALL-REF-AR-DO (FF40).
///
/// Rules with a data object of unknown tag are left out, and so are those that name no application,
/// nobody, or a package. Anything malformed is an error, in them too.
pub fn parse_rules(body: &[u8]) -> Result<Vec<Rule>, RulesError> {
    let mut rules = Vec::new();
    for object in Reader::new(body) {
        let object = object?;
        if object.tag != REF_AR_DO {
            continue;
        }
        if let Some(rule) = parse_rule(&object)? {
            if rules.len() == MAX_RULES {
                return Err(RulesError::TooMany);
            }
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// `None` if the rule is to be left out. Every data object in it is looked at first, whatever makes
/// it so.
fn parse_rule(object: &Tlv<'_>) -> Result<Option<Rule>, RulesError> {
    let mut reference = None;
    let mut access = None;
    let mut is_known = true;
    for part in object.parts()? {
        let part = part?;
        match part.tag {
            REF_DO => set_once(&mut reference, part, parse_reference(&part)?)?,
            AR_DO => set_once(&mut access, part, parse_access(&part)?)?,
            _ => is_known = false,
        }
    }
    let (Some(Some((aid, app))), Some(Some(CommandAccess(apdu)))) = (reference, access) else {
        return Ok(None);
    };
    Ok(is_known.then_some(Rule { aid, app, apdu }))
}

fn parse_reference(object: &Tlv<'_>) -> Result<Option<(AidRef, AppRef)>, RulesError> {
    let mut aid = None;
    let mut app = None;
    let mut package = None;
    let mut is_known = true;
    for part in object.parts()? {
        let part = part?;
        match part.tag {
            AID_REF_DO | IMPLICIT_AID_REF_DO => set_once(&mut aid, part, parse_aid(&part)?)?,
            DEVICE_APP_ID_REF_DO => set_once(&mut app, part, parse_app(&part)?)?,
            PKG_REF_DO => set_once(&mut package, part, check_package(&part)?)?,
            _ => is_known = false,
        }
    }
    let (Some(aid), Some(app), None) = (aid, app, package) else {
        return Ok(None);
    };
    Ok(is_known.then_some((aid, app)))
}

/// What an AR-DO says about commands.
struct CommandAccess(Option<ApduRule>);

fn parse_access(object: &Tlv<'_>) -> Result<Option<CommandAccess>, RulesError> {
    let mut apdu = None;
    let mut nfc = None;
    let mut permissions = None;
    let mut is_known = true;
    for part in object.parts()? {
        let part = part?;
        match part.tag {
            APDU_AR_DO => set_once(&mut apdu, part, parse_apdu_rule(&part)?)?,
            // NFC events go to no page, and permissions are for Android's packages.
            NFC_AR_DO => set_once(&mut nfc, part, parse_flag(&part)?)?,
            PERM_AR_DO => set_once(&mut permissions, part, check_permissions(&part)?)?,
            _ => is_known = false,
        }
    }
    Ok(is_known.then_some(CommandAccess(apdu)))
}

fn set_once<T>(place: &mut Option<T>, object: Tlv<'_>, value: T) -> Result<(), RulesError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(RulesError::Duplicate(object.tag.0)),
    }
}

fn invalid(object: &Tlv<'_>) -> RulesError {
    RulesError::InvalidValue(object.tag.0)
}

fn parse_aid(object: &Tlv<'_>) -> Result<AidRef, RulesError> {
    match (object.tag, object.value) {
        (IMPLICIT_AID_REF_DO, []) => Ok(AidRef::Implicit),
        (AID_REF_DO, []) => Ok(AidRef::All),
        (AID_REF_DO, value) => rule_aid(value).ok_or_else(|| invalid(object)),
        _ => Err(invalid(object)),
    }
}

/// A reference to the application of an AID of 5 to 16 bytes.
pub(super) fn rule_aid(aid: &[u8]) -> Option<AidRef> {
    let aid = Aid::new(aid).ok()?;
    aid.has_complete_length().then_some(AidRef::Aid(aid))
}

fn parse_app(object: &Tlv<'_>) -> Result<AppRef, RulesError> {
    app_ref(object.value).ok_or_else(|| invalid(object))
}

/// A reference to whom a hash of 0, 20 or 32 bytes names.
pub(super) fn app_ref(hash: &[u8]) -> Option<AppRef> {
    if hash.is_empty() {
        Some(AppRef::All)
    } else if let Ok(hash) = hash.try_into() {
        Some(AppRef::Sha1(hash))
    } else {
        hash.try_into().ok().map(AppRef::Sha256)
    }
}

fn check_package(object: &Tlv<'_>) -> Result<(), RulesError> {
    let is_valid =
        (1..=MAX_PACKAGE_LENGTH).contains(&object.value.len()) && object.value.is_ascii();
    is_valid.then_some(()).ok_or_else(|| invalid(object))
}

fn check_permissions(object: &Tlv<'_>) -> Result<(), RulesError> {
    let is_valid = object.value.len() == PERMISSIONS_LENGTH;
    is_valid.then_some(()).ok_or_else(|| invalid(object))
}

fn parse_flag(object: &Tlv<'_>) -> Result<bool, RulesError> {
    match object.value {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(invalid(object)),
    }
}

fn parse_apdu_rule(object: &Tlv<'_>) -> Result<ApduRule, RulesError> {
    if object.value.len() == 1 {
        return Ok(match parse_flag(object)? {
            true => ApduRule::Always,
            false => ApduRule::Never,
        });
    }
    let (filters, rest) = object.value.as_chunks::<{ Filter::LENGTH }>();
    if filters.is_empty() || !rest.is_empty() {
        return Err(invalid(object));
    }
    let filters = filters.iter().copied().map(Filter::from_bytes).collect();
    Ok(ApduRule::Filters(filters))
}
