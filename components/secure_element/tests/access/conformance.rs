/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The rules and verdicts of Android's compatibility test suite for access control: 41 rules as a
//! public ARA-M for that suite holds them, and the same as PKCS#15 files; 48 verdicts about
//! channels and 76 about commands.

use std::collections::BTreeMap;

use secure_element::access::{AppId, Outcome, RefreshTag, RuleSet, Target, parse_rules};
use secure_element::apdu::CommandApdu;
use secure_element::class_byte::without_channel;

use crate::arf::Files;
use crate::{aid, header, hex, ref_ar_do, tlv};

const APP1: &str = "4BBE31BEB2F753CFE71EC6BF112548687BB6C34E";
const APP2: &str = "93B0FF2260BABD4C2A92C68AAA0039DC514D8A33";
const APP3: &str = "5528CA826DA49D0D7329F8117481CCB27B8833AA";
const CARRIER: &str = "61ED377E85D386A8DFEE6B864BD85B0BFAA5AF81";

/// The applications end in 40 to 4F.
fn name(last: u8) -> Vec<u8> {
    [&hex("A000000476416E64726F6964435453")[..], &[last]].concat()
}

fn app(hash: &str) -> AppId {
    AppId::from_hashes(None, Some(hex(hash).try_into().unwrap()))
}

/// The body of the ARA-M's answer.
pub(crate) fn body() -> Vec<u8> {
    let never = || vec![tlv(0xD0, &[0])];
    let always = || vec![tlv(0xD0, &[1])];
    let on_40 = || vec![tlv(0xD0, &hex("00060000FFFF0000 A0060000FFFF0000"))];
    let on_41 = || vec![tlv(0xD0, &hex("94000000FF000000"))];
    let rule = |last: u8, hash: &str, access: &[Vec<u8>]| {
        ref_ar_do(&[tlv(0x4F, &name(last)), tlv(0xC1, &hex(hash))], access)
    };
    let mut rules = vec![
        ref_ar_do(
            &[tlv(0x4F, &[0xFF; 6]), tlv(0xC1, &hex(CARRIER))],
            &[tlv(0xD0, &[1]), tlv(0xDB, &hex("0000000000000001"))],
        ),
        ref_ar_do(&[tlv(0x4F, &[]), tlv(0xC1, &[])], &always()),
    ];
    rules.extend((0x40..=0x4F).map(|last| rule(last, "", &never())));
    rules.push(rule(0x40, APP1, &on_40()));
    rules.push(rule(0x41, APP1, &on_41()));
    let others = [
        0x42, 0x44, 0x45, 0x47, 0x48, 0x49, 0x4A, 0x4B, 0x4C, 0x4D, 0x4E, 0x4F,
    ];
    rules.extend(others.map(|last| rule(last, APP1, &always())));
    rules.push(rule(0x40, APP2, &on_40()));
    rules.push(rule(0x41, APP2, &on_41()));
    rules.extend([0x43, 0x45, 0x46].map(|last| rule(last, APP2, &always())));
    rules.push(rule(0x40, APP3, &always()));
    rules.push(rule(0x41, APP3, &on_41()));
    rules.extend([0x45, 0x46].map(|last| rule(last, APP3, &always())));
    assert_eq!(rules.len(), 41);
    rules.concat()
}

/// The same rules in the files of a PKCS#15 application.
fn files() -> Files {
    let numbered = |last: u8, file: u16| {
        let aid = tlv(0xA0, &tlv(0x04, &name(last)));
        [tlv(0x30, &[aid, path(file)].concat())].concat()
    };
    let mut rules = tlv(0x30, &[hex("8200"), path(0x4310)].concat());
    for (last, file) in [
        (0x40, 0x4311),
        (0x41, 0x4312),
        (0x42, 0x4313),
        (0x43, 0x4314),
        (0x44, 0x4315),
        (0x45, 0x4316),
        (0x46, 0x4317),
    ] {
        rules.extend(numbered(last, file));
    }
    let carrier = tlv(0xA0, &tlv(0x04, &[0xFF; 6]));
    rules.extend(tlv(0x30, &[carrier, path(0x4318)].concat()));
    rules.extend((0x47..=0x4F).flat_map(|last| numbered(last, 0x4313)));
    assert_eq!(rules.len(), 476, "200 and 200 and 76 bytes");

    let condition =
        |hash: &str, rest: &str| tlv(0x30, &[tlv(0x04, &hex(hash)), hex(rest)].concat());
    let on_40 = "A018 A016 A114 0408 00060000FFFF0000 0408 A0060000FFFFFFFF";
    let nfc_always = "A005 A103 800101";
    let nfc_never = "A005 A103 800100";
    BTreeMap::from([
        (0x5031, tlv(0xA7, &path(0x5207))),
        (0x5207, crate::arf::dodf(0x4200)),
        (
            0x4200,
            tlv(0x30, &[hex("0408 0102030405060708"), path(0x4300)].concat()),
        ),
        (0x4300, rules),
        (0x4310, hex("3000")),
        (
            0x4311,
            [
                condition(APP1, on_40),
                condition(APP2, on_40),
                condition(APP3, ""),
            ]
            .concat(),
        ),
        (0x4312, hex("3010 A00E A00C A10A 0408 94000000FF000000")),
        (0x4313, condition(APP1, nfc_always)),
        (0x4314, condition(APP2, nfc_always)),
        (0x4315, condition(APP1, nfc_never)),
        (
            0x4316,
            [APP1, APP2, APP3]
                .map(|hash| condition(hash, nfc_always))
                .concat(),
        ),
        (
            0x4317,
            [APP2, APP3].map(|hash| condition(hash, "")).concat(),
        ),
        (0x4318, condition(CARRIER, "")),
    ])
}

fn path(file: u16) -> Vec<u8> {
    tlv(0x30, &tlv(0x04, &file.to_be_bytes()))
}

/// Of each of the three apps: the applications that it may open.
const MAY_OPEN: [(&str, &[u8]); 3] = [
    (
        APP1,
        &[
            0x40, 0x41, 0x42, 0x44, 0x45, 0x47, 0x48, 0x49, 0x4A, 0x4B, 0x4C, 0x4D, 0x4E, 0x4F,
        ],
    ),
    (APP2, &[0x40, 0x41, 0x43, 0x45, 0x46]),
    (APP3, &[0x40, 0x41, 0x45, 0x46]),
];

/// Of an app and an application: commands that it may send, and commands that it may not.
const MAY_SEND: [(&str, u8, &[&str], &[&str]); 6] = [
    (APP1, 0x40, FEW, OTHERS),
    (APP1, 0x41, CLASS_94, OTHER_CLASSES),
    (APP2, 0x40, FEW, OTHERS),
    (APP2, 0x41, CLASS_94, OTHER_CLASSES),
    (
        APP3,
        0x40,
        &[
            "00060000",
            "80060000",
            "A0060000",
            "94060000",
            "000A000001AA",
            "800A000001AA",
            "A00A000001AA",
            "940A000001AA",
            "0008000000",
            "8008000000",
            "A008000000",
            "9408000000",
            "000C000001AA00",
            "800C000001AA00",
            "A00C000001AA00",
            "940C000001AA00",
        ],
        &[],
    ),
    (APP3, 0x41, CLASS_94, OTHER_CLASSES),
];
const FEW: &[&str] = &["00060000", "A0060000"];
const OTHERS: &[&str] = &["0008000000", "80060000", "A008000000", "9406000000"];
const CLASS_94: &[&str] = &["94060000", "9408000000", "940C000001AA00", "940A000001AA"];
const OTHER_CLASSES: &[&str] = &[
    "00060000",
    "80060000",
    "A0060000",
    "0008000000",
    "000A000001AA",
    "800A000001AA",
    "A00A000001AA",
    "8008000000",
    "A008000000",
    "000C000001AA00",
    "800C000001AA00",
    "A00C000001AA00",
];

/// How many verdicts are right, about channels and about commands.
fn right_verdicts(rules: &RuleSet) -> (usize, usize) {
    let access = |hash: &str, last: u8| {
        rules.channel_access(Target::Application(aid(&name(last))), &app(hash))
    };
    let channels = MAY_OPEN.iter().flat_map(|(hash, may)| {
        (0x40..=0x4F).filter(move |last| {
            let is_right = access(hash, *last).allows_channel() == may.contains(last);
            assert!(is_right, "{hash} {last:02X}");
            is_right
        })
    });
    let commands = MAY_SEND.iter().map(|(hash, last, may, may_not)| {
        let is_allowed = |command: &&&str| {
            let command = CommandApdu::parse(&hex(command)).unwrap();
            let mut header = command.header();
            header.cla = without_channel(header.cla).unwrap();
            access(hash, *last).allows_command(header)
        };
        assert!(
            may.iter().all(|command| is_allowed(&command)),
            "{hash} {last:02X}"
        );
        assert!(
            !may_not.iter().any(|command| is_allowed(&command)),
            "{hash} {last:02X}"
        );
        may.len() + may_not.len()
    });
    (channels.count(), commands.sum())
}

#[test]
fn all_verdicts_by_the_ara_m() {
    let body = body();
    assert_eq!(body.len(), 1704);
    let rules = RuleSet::new(parse_rules(&body).unwrap());
    assert_eq!(right_verdicts(&rules), (48, 76));
}

#[test]
fn others_may_use_other_applications_only() {
    let rules = RuleSet::new(parse_rules(&body()).unwrap());
    let nobody = app("0000000000000000000000000000000000000000");
    for last in 0x40..=0x4F {
        let access = rules.channel_access(Target::Application(aid(&name(last))), &nobody);
        assert!(!access.allows_channel());
    }
    for other in [&name(0x31)[..], &hex("A0000000031010")] {
        let access = rules.channel_access(Target::Application(aid(other)), &nobody);
        assert!(access.allows_command(header(0x00A4_0000)));
    }
}

#[test]
fn all_verdicts_by_the_files() {
    let outcome = crate::arf::read(&files(), None);
    let Outcome::Rules { rules, refresh_tag } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(refresh_tag, RefreshTag([1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(right_verdicts(&rules), (48, 76));
}
