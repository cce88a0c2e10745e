/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The applications of the card.
//!
//! All but the issuer security domain and the ARA-M are under a proprietary application provider
//! identifier, F0 and "SERVO":
//!
//! | AID | application |
//! |---|---|
//! | A0 00 00 01 51 00 00 00 | [`issuer`] security domain, the default |
//! | F0 "SERVO" 01 01, 01 02, 02 01 | [`echo`] |
//! | F0 "SERVO" 03 01 | [`exclusive`]: not multi-selectable |
//! | F0 "SERVO" 04 01 | [`pin`] |
//! | F0 "SERVO" 05 01 | [`origin`]: tells web origins apart |
//! | F0 "SERVO" 06 31, 06 32, 06 FF | [`conformance`] |
//! | A0 00 00 03 08 00 00 10 00 01 00 | [`piv`], in the profiles `default` and `piv` |
//! | A0 00 00 01 51 41 43 4C 00 | [`ara_m`]: the access rule application, where there is one |
//! | A0 00 00 00 63 "PKCS-15" | [`uicc`]: access rules in files, where there are some |

pub mod ara_m;
pub mod conformance;
pub mod echo;
pub mod exclusive;
pub mod files;
pub mod issuer;
pub mod origin;
pub mod pin;
pub mod piv;
pub mod uicc;

use secure_element::channel::Aid;
use secure_element::class_byte::without_channel;

use crate::{AccessRules, Applet, Profile};

/// What is selected by default.
pub(crate) fn default(profile: Profile) -> Box<dyn Applet> {
    match profile.access_rules {
        AccessRules::Files => Box::new(uicc::Directory::sample()),
        _ => Box::new(issuer::IssuerSecurityDomain),
    }
}

/// Everything else, in the order in which partial AIDs find it.
pub(crate) fn others(profile: Profile) -> Vec<Box<dyn Applet>> {
    let mut applets: Vec<Box<dyn Applet>> = Vec::new();
    for echo in echo::Echo::all() {
        applets.push(Box::new(echo));
    }
    applets.push(Box::new(exclusive::Exclusive::new()));
    applets.push(Box::new(pin::Pin::new()));
    applets.push(Box::new(origin::OriginAware::sample()));
    for conformance in conformance::Conformance::all() {
        applets.push(Box::new(conformance));
    }
    if profile.has_piv {
        applets.push(Box::new(piv::Piv::new()));
    }
    match profile.access_rules {
        AccessRules::None => {}
        AccessRules::ForEverybodyButPiv => {
            applets.push(Box::new(ara_m::AraM::for_everybody_but(&piv::AID)));
        }
        AccessRules::ForEverybody => applets.push(Box::new(ara_m::AraM::for_everybody())),
        AccessRules::Sample => applets.push(Box::new(ara_m::AraM::sample())),
        AccessRules::Files => applets.push(Box::new(uicc::Arf::sample())),
    }
    applets
}

/// For constants: what is no AID does not compile.
const fn aid(bytes: &[u8]) -> Aid {
    match Aid::new(bytes) {
        Ok(aid) => aid,
        Err(_) => panic!("the constant is an AID"),
    }
}

/// Whether a class byte, on any channel, is 00 or 80.
fn is_plain_class(class: u8) -> bool {
    matches!(without_channel(class), Ok(0x00 | 0x80))
}
