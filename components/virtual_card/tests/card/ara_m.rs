/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The access rule application.

use proptest::prelude::*;
use secure_element::class_byte::ChannelNumber;
use secure_element::exchange::Protocol;
use secure_element::tlv::{self, Tag};
use virtual_card::applets::ara_m::{AID, AraM, MAX_RULES, NotRules, rule};
use virtual_card::applets::{echo, issuer, piv};
use virtual_card::{AccessRules, Card, Profile, VirtualCard};

use super::{BASIC, Client, ResponseApdu, StatusWord, channel, ok, status};

const ALWAYS: [u8; 1] = [1];
const NEVER: [u8; 1] = [0];

/// A client that has selected this ARA-M on the basic channel.
fn client(profile: &str, ara_m: AraM) -> Client {
    let mut client = Client::new(profile);
    client.card.install(Box::new(ara_m));
    client.select(&AID, BASIC);
    client
}

fn get(client: &mut Client, on: ChannelNumber, object: u16, data: &[u8]) -> ResponseApdu {
    let [p1, p2] = object.to_be_bytes();
    client.send(on, [0x80, 0xCA, p1, p2], data, Some(256))
}

fn store(client: &mut Client, tag: u32, value: &[u8]) -> ResponseApdu {
    let mut data = Vec::new();
    tlv::write(&mut data, Tag(tag), value);
    // Over T=1 these come as one command, whatever their length.
    client.send(BASIC, [0x80, 0xE2, 0x90, 0], &data, None)
}

/// All rules, with how many blocks it took.
fn get_all(client: &mut Client, on: ChannelNumber) -> (Vec<u8>, usize) {
    let first = get(client, on, 0xFF40, &[]);
    let mut all = first.data;
    let mut blocks = 1;
    let mut status = first.status;
    while status.is_ok() {
        let next = get(client, on, 0xFF60, &[]);
        status = next.status;
        if status.is_ok() {
            assert!(!next.data.is_empty());
            all.extend(next.data);
            blocks += 1;
        }
    }
    assert_eq!(status, StatusWord(0x6985));
    (all, blocks)
}

fn whole(rules: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    tlv::write(&mut whole, Tag(0xFF40), rules);
    whole
}

#[test]
fn rules_come_in_blocks() {
    for profile in ["default", "t0", "no-extended-length"] {
        for (count, length, block, blocks) in [
            (1, 20, 256, 1),
            (12, 252, 255, 1),
            (12, 252, 256, 1),
            (12, 252, 250, 2),
            (81, 1_706, 256, 7),
            (81, 1_706, 255, 7),
            (81, 1_706, 1, 1_706),
        ] {
            let rule = rule(Some(&echo::AID), &[], &ALWAYS);
            let mut rules = rule.repeat(count);
            rules.resize(
                length - (whole(&vec![0; length - 4]).len() - (length - 4)),
                0,
            );
            let expected = whole(&rules);
            let ara_m = AraM::with_rules(rules).with_block(block);
            let mut client = client(profile, ara_m);
            let (all, n) = get_all(&mut client, BASIC);
            assert_eq!(
                (all, n),
                (expected.clone(), blocks),
                "{profile} {length} {block}"
            );
            // Again from the beginning, and on another channel in between.
            let own = client.open_with(&AID);
            let first = get(&mut client, BASIC, 0xFF40, &[]);
            assert_eq!(get_all(&mut client, own).0, expected);
            assert_eq!(first.data, expected[..first.data.len()]);
            if blocks > 1 {
                assert!(get(&mut client, BASIC, 0xFF60, &[]).status.is_ok());
            }
        }
    }
}

#[test]
fn le_bounds_a_block_too() {
    let rules = rule(Some(&echo::AID), &[], &ALWAYS);
    let expected = whole(&rules);
    let mut client = client("default", AraM::with_rules(rules));
    let mut send = |p1, p2, le| client.send(BASIC, [0x80, 0xCA, p1, p2], &[], le);
    assert_eq!(send(0xFF, 0x40, Some(3)), ok(&expected[..3]));
    assert_eq!(send(0xFF, 0x60, Some(5)), ok(&expected[3..8]));
    assert_eq!(send(0xFF, 0x60, Some(65_536)), ok(&expected[8..]));
    assert_eq!(send(0xFF, 0x60, Some(256)), status(0x6985));
    assert_eq!(send(0xFF, 0x40, None), status(0x6700));
}

#[test]
fn without_rules_there_is_nothing() {
    for profile in ["default", "t0"] {
        let mut client = client(profile, AraM::new());
        assert_eq!(get(&mut client, BASIC, 0xFF40, &[]), status(0x6A88));
        assert_eq!(get(&mut client, BASIC, 0xFF60, &[]), status(0x6A88));
        assert_eq!(get(&mut client, BASIC, 0xFF50, &[0xE1, 0]), status(0x6A88));
        assert_eq!(get(&mut client, BASIC, 0x9F7F, &[]), status(0x6A88));
        let tag = get(&mut client, BASIC, 0xDF20, &[]);
        assert_eq!((&tag.data[..3], tag.data.len()), (&[0xDF, 0x20, 8][..], 11));
        let configuration = get(&mut client, BASIC, 0xDF21, &[0xE4, 5, 0xE6, 3, 1, 1, 0]);
        assert_eq!(
            configuration,
            ok(&[0xDF, 0x21, 7, 0xE5, 5, 0xE6, 3, 1, 1, 0])
        );
        assert_eq!(
            client.send(BASIC, [0, 0xCA, 0xFF, 0x40], &[], Some(256)),
            status(0x6E00)
        );
        assert_eq!(
            client.send(BASIC, [0x80, 0x10, 0, 0], &[], None),
            status(0x6D00)
        );
        // Nobody begins in the middle.
        client.card.install(Box::new(AraM::sample()));
        assert_eq!(get(&mut client, BASIC, 0xFF60, &[]), status(0x6985));
    }
}

#[test]
fn rules_are_stored_replaced_and_deleted() {
    for profile in ["default", "t0"] {
        let mut client = client(profile, AraM::new());
        let first = rule(Some(&echo::AID), &[7; 20], &ALWAYS);
        let changed = rule(Some(&echo::AID), &[7; 20], &NEVER);
        let second = rule(Some(&echo::AID), &[8; 32], &[0; 8]);
        let third = rule(Some(&[]), &[], &NEVER);
        let fourth = rule(None, &[7; 20], &ALWAYS);
        let all = |client: &mut Client| get_all(client, BASIC).0;
        let mut tag = get(&mut client, BASIC, 0xDF20, &[]).data;
        let mut changes = |client: &mut Client, changes: bool| {
            let before = std::mem::replace(&mut tag, get(client, BASIC, 0xDF20, &[]).data);
            assert_eq!(before != tag, changes);
        };
        for (new, sw) in [
            (&first, 0x9000),
            (&second, 0x9000),
            (&third, 0x9000),
            (&fourth, 0x9000),
            (&changed, 0x6381),
        ] {
            assert_eq!(store(&mut client, 0xF0, new), status(sw));
            changes(&mut client, true);
        }
        let expected = [&*second, &third, &fourth, &changed].concat();
        assert_eq!(all(&mut client), whole(&expected));
        // What one reference may do.
        let reference = |rule: &[u8]| rule[2..4 + usize::from(rule[3])].to_vec();
        let access = get(&mut client, BASIC, 0xFF50, &reference(&changed));
        assert_eq!(access, ok(&[0xFF, 0x50, 5, 0xE3, 3, 0xD0, 1, 0]));
        assert_eq!(get(&mut client, BASIC, 0xFF50, &[0xE1, 0]), status(0x6A88));
        assert_eq!(get(&mut client, BASIC, 0xFF50, &[0xE1, 1]), status(0x6A80));

        // By reference, by rule, by application, all.
        assert_eq!(store(&mut client, 0xF1, &reference(&changed)), ok(&[]));
        changes(&mut client, true);
        assert_eq!(
            store(&mut client, 0xF1, &reference(&changed)),
            status(0x6A88)
        );
        changes(&mut client, false);
        assert_eq!(
            all(&mut client),
            whole(&[&*second, &third, &fourth].concat())
        );
        assert_eq!(store(&mut client, 0xF1, &fourth), ok(&[]));
        assert_eq!(all(&mut client), whole(&[&*second, &third].concat()));
        assert_eq!(store(&mut client, 0xF0, &fourth), ok(&[]));
        assert_eq!(store(&mut client, 0xF1, &[0xC0, 0]), ok(&[]));
        assert_eq!(store(&mut client, 0xF0, &first), ok(&[]));
        assert_eq!(
            all(&mut client),
            whole(&[&*second, &third, &first].concat())
        );
        let echo = [&[0x4F, 8][..], &echo::AID].concat();
        assert_eq!(store(&mut client, 0xF1, &echo), ok(&[]));
        assert_eq!(all(&mut client), whole(&third));
        assert_eq!(store(&mut client, 0xF1, &[]), ok(&[]));
        assert_eq!(get(&mut client, BASIC, 0xFF40, &[]), status(0x6A88));
        changes(&mut client, true);
        assert_eq!(store(&mut client, 0xF2, &[]), ok(&[]));
        changes(&mut client, true);

        // What is no rule.
        for (tag, value) in [
            (0xF0, &[][..]),
            (0xF0, &first[1..]),
            (0xF0, &[0xE2, 0]),
            (0xF0, &[0xE2, 4, 0xE3, 0, 0xE1, 0]),
            (0xF0, &[0xE1, 0]),
            (0xF1, &[0xE3, 0]),
            (0xF2, &[1]),
            (0xF4, &[]),
        ] {
            assert_eq!(
                store(&mut client, tag, value),
                status(0x6A80),
                "{tag:X} {value:02X?}"
            );
            changes(&mut client, false);
        }
        let answer = client.send(BASIC, [0x80, 0xE2, 0x90, 0], &[0xF2], None);
        assert_eq!(answer, status(0x6A80));
        let answer = client.send(BASIC, [0x80, 0xE2, 0x80, 0], &[0xF2, 0], None);
        assert_eq!(answer, status(0x6A86));
        // Rules outlive a reset, and are there for a broken T=0 or T=1 connection.
        assert_eq!(store(&mut client, 0xF0, &first), ok(&[]));
        client.card.reset();
        client.select(&AID, BASIC);
        assert_eq!(all(&mut client), whole(&first), "{profile}");
    }
}

#[test]
fn rules_can_be_chained_and_have_an_end() {
    let mut client = client("no-extended-length", AraM::new());
    let long = rule(Some(&echo::AID), &[], &[0; 400]);
    let mut data = Vec::new();
    tlv::write(&mut data, Tag(0xF0), &long);
    for (cla, part) in [(0x90, &data[..255]), (0x80, &data[255..])] {
        assert_eq!(
            client.send(BASIC, [cla, 0xE2, 0x90, 0], part, None),
            ok(&[])
        );
    }
    assert_eq!(get_all(&mut client, BASIC).0, whole(&long));

    let mut client = self::client("default", AraM::new());
    let half = |application| {
        rule(
            Some(&echo::AID),
            &[application; 20],
            &[0; MAX_RULES / 2 - 60],
        )
    };
    assert_eq!(store(&mut client, 0xF0, &half(1)), ok(&[]));
    assert_eq!(store(&mut client, 0xF0, &half(2)), ok(&[]));
    assert_eq!(store(&mut client, 0xF0, &half(3)), status(0x6700));
    assert_eq!(
        get_all(&mut client, BASIC).0,
        whole(&[half(1), half(2)].concat())
    );
}

#[test]
fn a_change_in_the_middle_is_told() {
    for profile in ["default", "t0"] {
        for (ara_m, sw) in [
            (AraM::sample(), 0x6984),
            (
                AraM::sample().with_rules_changed(StatusWord(0x6A84)),
                0x6A84,
            ),
        ] {
            let mut client = client(profile, ara_m.with_block(50));
            let own = client.open_with(&AID);
            assert!(get(&mut client, own, 0xFF40, &[]).status.is_ok());
            assert!(get(&mut client, own, 0xFF60, &[]).status.is_ok());
            store(&mut client, 0xF0, &rule(Some(&[]), &[], &NEVER));
            assert_eq!(get(&mut client, own, 0xFF60, &[]), status(sw), "{profile}");
            assert_eq!(get(&mut client, own, 0xFF60, &[]), status(0x6985));
            assert!(get(&mut client, own, 0xFF40, &[]).status.is_ok());
            assert!(get(&mut client, own, 0xFF60, &[]).status.is_ok());
            // A new selection is a new beginning.
            client.select(&AID, own);
            assert_eq!(get(&mut client, own, 0xFF60, &[]), status(0x6985));
        }
    }
}

#[test]
fn anything_can_be_read_out() {
    for profile in ["default", "t0"] {
        let mut client = client(profile, AraM::with_answer(vec![0xE2; 300]));
        assert_eq!(get_all(&mut client, BASIC), (vec![0xE2; 300], 2));
        assert_eq!(get(&mut client, BASIC, 0xFF50, &[0xE1, 0]), status(0x6A80));
        assert_eq!(
            store(&mut client, 0xF0, &rule(None, &[], &ALWAYS)),
            status(0x6A80)
        );
        // Only the end of everything mends it.
        assert_eq!(store(&mut client, 0xF1, &[]), ok(&[]));
        assert_eq!(store(&mut client, 0xF0, &rule(None, &[], &ALWAYS)), ok(&[]));
        // An answer without a byte.
        client.card.install(Box::new(AraM::with_answer(Vec::new())));
        assert_eq!(get(&mut client, BASIC, 0xFF40, &[]), ok(&[]));
        client
            .card
            .install(Box::new(AraM::sample().with_failure(StatusWord(0x6F00))));
        for object in [0xFF40, 0xFF50, 0xFF60, 0xDF20, 0xDF21, 0x9F7F] {
            assert_eq!(get(&mut client, BASIC, object, &[]), status(0x6F00));
        }
    }
}

#[test]
fn a_file_has_bytes_or_digits() {
    let rules = rule(Some(&echo::AID), &[], &ALWAYS);
    let digits: String = rules.iter().map(|byte| format!("{byte:02x} ")).collect();
    let commented = format!("# E2\n{}\n\n  # end\n", digits.replace(" e", "# 0\r\n\tE"));
    for content in [rules.as_slice(), digits.as_bytes(), commented.as_bytes()] {
        let mut client = client("default", AraM::from_file(content).unwrap());
        assert_eq!(get_all(&mut client, BASIC).0, whole(&rules));
    }
    for content in [&b"FF4003 0102"[..], &[0xFF, 0x40, 3, 1, 2]] {
        let mut client = client("default", AraM::from_file(content).unwrap());
        assert_eq!(get_all(&mut client, BASIC).0, [0xFF, 0x40, 3, 1, 2]);
    }
    for content in [&b""[..], b" # nothing\n"] {
        let mut client = client("default", AraM::from_file(content).unwrap());
        assert_eq!(get(&mut client, BASIC, 0xFF40, &[]), status(0x6A88));
    }
    for content in ["E", "E2 0", "E2 0g", "{}"] {
        assert_eq!(AraM::from_file(content.as_bytes()).err(), Some(NotRules));
    }
}

#[test]
fn it_is_where_the_profile_says_so() {
    for (name, profile) in Profile::NAMED {
        let card = VirtualCard::from_profile(name).unwrap();
        let mut client = Client {
            card,
            protocol: profile.protocol,
        };
        let selected = client.select(&AID, BASIC).status;
        let rules = match profile.access_rules {
            AccessRules::None | AccessRules::Files => {
                assert_eq!(selected, StatusWord(0x6A82), "{name}");
                continue;
            }
            AccessRules::ForEverybody => rule(Some(&[]), &[], &ALWAYS),
            AccessRules::ForEverybodyButPiv => {
                let but = rule(Some(&piv::AID), &[], &[0x00]);
                [rule(Some(&[]), &[], &ALWAYS), but].concat()
            }
            AccessRules::Sample => continue,
        };
        assert_eq!(selected, StatusWord::OK, "{name}");
        assert_eq!(get_all(&mut client, BASIC).0, whole(&rules), "{name}");
    }
    let mut client = Client::new("ara-m");
    assert_eq!(client.protocol, Protocol::T1);
    client.select(&AID, BASIC);
    let (all, _) = get_all(&mut client, BASIC);
    let everything = tlv::Reader::new(&all).only().unwrap();
    assert_eq!(everything.tag, Tag(0xFF40));
    let rules: Vec<_> = everything.parts().unwrap().map(Result::unwrap).collect();
    assert_eq!(rules.len(), 5);
    assert!(rules.iter().all(|rule| rule.tag == Tag(0xE2)));
    // It can be selected on all channels at once.
    for number in 1..=19 {
        assert_eq!(client.open_with(&AID), channel(number));
        assert_eq!(get_all(&mut client, channel(number)).0, all);
    }
    assert!(client.select(&issuer::AID, BASIC).status.is_ok());
}

proptest! {
    #[test]
    fn whatever_the_rules_are_they_arrive(
        rules in proptest::collection::vec(any::<u8>(), 1..1_500),
        block in 20..400_u16,
        t0 in any::<bool>(),
    ) {
        let expected = whole(&rules);
        let ara_m = AraM::with_rules(rules).with_block(block);
        let mut client = client(if t0 { "t0" } else { "default" }, ara_m);
        prop_assert_eq!(get_all(&mut client, BASIC).0, expected);
    }
}
