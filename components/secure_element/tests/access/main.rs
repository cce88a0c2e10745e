/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Access rules from outside: tables of others, cards of our own, and a second implementation.

mod ara_m;
mod arf;
mod body;
mod conformance;
mod divergences;
mod examples;
mod naive;
mod select;

use secure_element::access::{
    Access, AidRef, ApduRule, AppId, AppRef, Filter, Rule, RuleSet, Target,
};
use secure_element::apdu::Header;
use secure_element::channel::Aid;
use secure_element::tlv::{self, Tag};

/// The bytes of hexadecimal digits, whatever is between them.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn tlv(tag: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    tlv::write(&mut bytes, Tag(tag), value);
    bytes
}

/// A REF-AR-DO of the encoded parts of its REF-DO and its AR-DO.
fn ref_ar_do(reference: &[Vec<u8>], access: &[Vec<u8>]) -> Vec<u8> {
    tlv(
        0xE2,
        &[tlv(0xE1, &reference.concat()), tlv(0xE3, &access.concat())].concat(),
    )
}

fn aid(bytes: &[u8]) -> Aid {
    Aid::new(bytes).unwrap()
}

fn header(bytes: u32) -> Header {
    let [cla, ins, p1, p2] = bytes.to_be_bytes();
    Header::new(cla, ins, p1, p2)
}

fn filter(header: u32, mask: u32) -> Filter {
    Filter {
        header: header.to_be_bytes(),
        mask: mask.to_be_bytes(),
    }
}

// A small world: two applications, two origins with both their hashes.

const S1: [u8; 6] = [0xA0, 0, 0, 1, 0x51, 1];
const S2: [u8; 6] = [0xA0, 0, 0, 1, 0x51, 2];

fn s1() -> AidRef {
    AidRef::Aid(aid(&S1))
}

fn s2() -> AidRef {
    AidRef::Aid(aid(&S2))
}

fn sha1(origin: u8) -> AppRef {
    AppRef::Sha1([origin; 20])
}

fn sha256(origin: u8) -> AppRef {
    AppRef::Sha256([origin; 32])
}

const X: u8 = 0x11;
const Y: u8 = 0x22;

fn app(origin: u8) -> AppId {
    AppId::from_hashes(Some([origin; 32]), Some([origin; 20]))
}

fn rule(aid: AidRef, app: AppRef, apdu: Option<ApduRule>) -> Rule {
    Rule { aid, app, apdu }
}

fn always(aid: AidRef, app: AppRef) -> Rule {
    rule(aid, app, Some(ApduRule::Always))
}

fn never(aid: AidRef, app: AppRef) -> Rule {
    rule(aid, app, Some(ApduRule::Never))
}

fn filtered(aid: AidRef, app: AppRef, filters: &[Filter]) -> Rule {
    rule(aid, app, Some(ApduRule::Filters(filters.to_vec())))
}

fn absent(aid: AidRef, app: AppRef) -> Rule {
    rule(aid, app, None)
}

fn decide(rules: &[Rule], name: &[u8], origin: u8) -> Access {
    let target = Target::Application(aid(name));
    RuleSet::new(rules.iter().cloned()).channel_access(target, &app(origin))
}

fn decide_implicit(rules: &[Rule], origin: u8) -> Access {
    RuleSet::new(rules.iter().cloned()).channel_access(Target::Implicit, &app(origin))
}
