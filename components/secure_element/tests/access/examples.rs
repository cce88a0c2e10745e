/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The worked examples in annex C of GlobalPlatform's specification, whose files and verdicts the
//! public tests of an enforcer repeat.

use std::collections::BTreeMap;

use secure_element::access::{AppId, Outcome, RuleSet, Target};

use crate::arf::{Files, dodf, read};
use crate::{aid, header, hex};

/// The application whose AID ends so; examples have up to five, and FF stands for any other.
fn name(last: u8) -> Vec<u8> {
    [&hex("A000000151")[..], &[last]].concat()
}

/// The apps 1 to 4, by SHA-1.
fn app(number: u8) -> AppId {
    AppId::from_hashes(None, Some([number * 0x11; 20]))
}

fn rules(acrules: &str, conditions: &[(u16, &str)]) -> RuleSet {
    let mut files: Files = BTreeMap::from([
        (0x5031, hex("A706 3004 0402 5207")),
        (0x5207, dodf(0x4200)),
        (0x4200, hex("3010 0408 0102030405060708 3004 0402 4300")),
        (0x4300, hex(acrules)),
    ]);
    files.extend(
        conditions
            .iter()
            .map(|(file, content)| (*file, hex(content))),
    );
    match read(&files, None) {
        Outcome::Rules { rules, .. } => *rules,
        other => panic!("{other:?}"),
    }
}

/// Checks which of the apps may open which applications.
fn check(rules: &RuleSet, apps: u8, table: &[(u8, &[u8])]) {
    for (last, may) in table {
        let target = Target::Application(aid(&name(*last)));
        for number in 1..=apps {
            let access = rules.channel_access(target, &app(number));
            assert_eq!(
                access.allows_channel(),
                may.contains(&number),
                "application {last:02X}, app {number}: {access:?}"
            );
        }
    }
}

const APP1: &str = "3016 0414 1111111111111111111111111111111111111111";
const APP2: &str = "3016 0414 2222222222222222222222222222222222222222";
const APP3: &str = "3016 0414 3333333333333333333333333333333333333333";

#[test]
fn first() {
    let rules = rules(
        "3010 A008 0406 A00000015101 3004 0402 4310
         3010 A008 0406 A00000015102 3004 0402 4311
         3010 A008 0406 A00000015103 3004 0402 4311
         3008 8200                   3004 0402 4312",
        &[(0x4310, ""), (0x4311, APP1), (0x4312, "3000")],
    );
    check(
        &rules,
        2,
        &[(1, &[]), (2, &[1]), (3, &[1]), (0xFF, &[1, 2])],
    );
}

#[test]
fn second() {
    let three = [APP1, APP2, APP3].concat();
    let rules = rules(
        "3010 A008 0406 A00000015101 3004 0402 4310
         3010 A008 0406 A00000015102 3004 0402 4311
         3010 A008 0406 A00000015103 3004 0402 4312
         3010 A008 0406 A00000015104 3004 0402 4313
         3010 A008 0406 A00000015105 3004 0402 4313
         3008 8200                   3004 0402 4313",
        &[
            (0x4310, "3000"),
            (0x4311, APP1),
            (0x4312, &three),
            (0x4313, ""),
        ],
    );
    let table: [(u8, &[u8]); 6] = [
        (1, &[1, 2, 3, 4]),
        (2, &[1]),
        (3, &[1, 2, 3]),
        (4, &[]),
        (5, &[]),
        (0xFF, &[]),
    ];
    check(&rules, 4, &table);
}

/// The third has a rule for the implicitly selected application, and filters.
#[test]
fn third() {
    let rules = rules(
        "3008 8100                   3004 0402 4380
         3010 A008 0406 A00000015101 3004 0402 4381
         3010 A008 0406 A00000015102 3004 0402 4382
         3010 A008 0406 A00000015103 3004 0402 4383",
        &[
            (0x4380, "3016 0414 0000000000000000000000000000000000000000"),
            (0x4381, APP1),
            (
                0x4382,
                "3035 0414 2222222222222222222222222222222222222222
                 A01D A016 A114 0408 80F20000FFFFFFFF 0408 80CA0000FFFF0000
                 A103 800100",
            ),
            (0x4383, "3000"),
        ],
    );
    check(
        &rules,
        3,
        &[(1, &[1]), (2, &[2]), (3, &[1, 2, 3]), (0xFF, &[])],
    );
    for number in 0..=3 {
        let access = rules.channel_access(Target::Implicit, &app(number));
        assert_eq!(access.allows_channel(), number == 0);
    }
    let filtered = rules.channel_access(Target::Application(aid(&name(2))), &app(2));
    for (command, expected) in [
        (0x80F2_0000, true),
        (0x80F2_4000, false),
        (0x80CA_0000, true),
        (0x80CA_9F7F, true),
        (0x00CA_0000, false),
    ] {
        assert_eq!(
            filtered.allows_command(header(command)),
            expected,
            "{command:08X}"
        );
    }
}
