/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The body of an ARA-M's answer: what is read, what is left out, and what closes the element.

use proptest::prelude::*;
use secure_element::access::{AidRef, ApduRule, AppRef, MAX_RULES, Rule, RulesError, parse_rules};
use secure_element::tlv::TlvError;

use crate::{X, aid, filter, hex, ref_ar_do, rule, tlv};

const AID: &str = "A000000151 01";

fn parse(body: &str) -> Result<Vec<Rule>, RulesError> {
    parse_rules(&hex(body))
}

/// A rule of the hexadecimal parts of its REF-DO and its AR-DO, lengths included.
fn with_parts(reference: &str, access: &str) -> Result<Vec<Rule>, RulesError> {
    parse_rules(&ref_ar_do(&[hex(reference)], &[hex(access)]))
}

fn with_access(access: &str) -> Result<Vec<Rule>, RulesError> {
    with_parts(&format!("4F06 {AID} C100"), access)
}

fn apdu_rule(access: &str) -> Option<ApduRule> {
    match with_access(access).as_deref() {
        Ok([rule]) => rule.apdu.clone(),
        other => panic!("{other:?}"),
    }
}

fn invalid(tag: u32) -> Result<Vec<Rule>, RulesError> {
    Err(RulesError::InvalidValue(tag))
}

fn twice(tag: u32) -> Result<Vec<Rule>, RulesError> {
    Err(RulesError::Duplicate(tag))
}

const NOTHING: Result<Vec<Rule>, RulesError> = Ok(Vec::new());

#[test]
fn references() {
    let references = |reference: &str| match with_parts(reference, "D00101").as_deref() {
        Ok([rule]) => (rule.aid, rule.app),
        other => panic!("{other:?}"),
    };
    let name = AidRef::Aid(aid(&hex(AID)));
    assert_eq!(references("4F00 C100"), (AidRef::All, AppRef::All));
    assert_eq!(references("C000 C100"), (AidRef::Implicit, AppRef::All));
    assert_eq!(references(&format!("4F06 {AID} C100")), (name, AppRef::All));
    // The order makes no difference.
    assert_eq!(references(&format!("C100 4F06 {AID}")), (name, AppRef::All));
    let sha1 = format!("4F06 {AID} C114 {}", "11".repeat(20));
    assert_eq!(references(&sha1), (name, AppRef::Sha1([X; 20])));
    let sha256 = format!("C000 C120 {}", "11".repeat(32));
    assert_eq!(
        references(&sha256),
        (AidRef::Implicit, AppRef::Sha256([X; 32]))
    );
}

#[test]
fn access_rules() {
    assert_eq!(apdu_rule("D00100"), Some(ApduRule::Never));
    assert_eq!(apdu_rule("D00101"), Some(ApduRule::Always));
    assert_eq!(apdu_rule("D10101"), None);
    assert_eq!(apdu_rule("D10100 D00101"), Some(ApduRule::Always));
    assert_eq!(apdu_rule("DB08 0000000000000001"), None);
    assert_eq!(
        apdu_rule("D00101 DB08 0000000000000001"),
        Some(ApduRule::Always)
    );
    assert_eq!(apdu_rule(""), None);
    assert_eq!(
        apdu_rule("D010 00B00000FFFF0000 80CA9F7FFFFFFFFF"),
        Some(ApduRule::Filters(vec![
            filter(0x00B0_0000, 0xFFFF_0000),
            filter(0x80CA_9F7F, 0xFFFF_FFFF),
        ]))
    );
}

#[test]
fn lengths_of_an_aid() {
    for length in 0..=17 {
        let aid = tlv(0x4F, &vec![7; length]);
        let body = ref_ar_do(&[aid, hex("C100")], &[hex("D00101")]);
        let expected = length == 0 || (5..=16).contains(&length);
        assert_eq!(parse_rules(&body).is_ok(), expected, "{length}");
        assert!(expected || parse_rules(&body) == invalid(0x4F));
    }
    assert_eq!(with_parts("C001 00 C100", "D00101"), invalid(0xC0));
    assert_eq!(
        with_parts(&format!("C006 {AID} C100"), "D00101"),
        invalid(0xC0)
    );
}

#[test]
fn lengths_of_a_hash() {
    for length in 0..=40 {
        let hash = tlv(0xC1, &vec![7; length]);
        let result = parse_rules(&ref_ar_do(&[hex("4F00"), hash], &[hex("D00101")]));
        if [0, 20, 32].contains(&length) {
            assert!(result.is_ok());
        } else {
            assert_eq!(result, invalid(0xC1), "{length}");
        }
    }
}

#[test]
fn invalid_access_rules_close_the_element() {
    for (access, tag) in [
        ("D000", 0xD0),
        ("D00102", 0xD0),
        ("D001FF", 0xD0),
        ("D0020101", 0xD0),
        ("D007 00B00000FFFF00", 0xD0),
        ("D009 00B00000FFFF000000", 0xD0),
        ("D00C 00B00000FFFF000000B00000", 0xD0),
        ("D100", 0xD1),
        ("D10102", 0xD1),
        ("D1020101", 0xD1),
        ("DB00", 0xDB),
        ("DB07 00000000000001", 0xDB),
        ("DB09 000000000000000001", 0xDB),
        ("D00101 D10102", 0xD1),
    ] {
        assert_eq!(with_access(access), invalid(tag), "{access}");
        // Also where an unknown tag leaves the rule out.
        assert_eq!(
            with_access(&format!("DF7F00 {access}")),
            invalid(tag),
            "{access}"
        );
    }
}

#[test]
fn repeated_parts_close_the_element() {
    assert_eq!(with_access("D00101 D00101"), twice(0xD0));
    assert_eq!(with_access("D10101 D10101"), twice(0xD1));
    assert_eq!(with_access(&"DB080000000000000001".repeat(2)), twice(0xDB));
    assert_eq!(with_parts("4F00 4F00 C100", "D00101"), twice(0x4F));
    assert_eq!(with_parts("4F00 C000 C100", "D00101"), twice(0xC0));
    assert_eq!(with_parts("4F00 C100 C100", "D00101"), twice(0xC1));
    assert_eq!(with_parts("4F00 CA0161 CA0161", "D00101"), twice(0xCA));
    assert_eq!(
        parse("E211 E1044F00C100 E1044F00C100 E303D00101"),
        twice(0xE1)
    );
    assert_eq!(
        parse("E210 E1044F00C100 E303D00101 E303D00101"),
        twice(0xE3)
    );
}

#[test]
fn rules_with_unknown_parts_are_left_out() {
    assert_eq!(with_access("D00101 D20101"), NOTHING);
    assert_eq!(with_access("DF2000"), NOTHING);
    assert_eq!(with_parts("4F00 C100 C200", "D00101"), NOTHING);
    assert_eq!(
        parse("E20E E1044F00C100 E303D00101 8000"),
        Err(TlvError::Truncated.into())
    );
    assert_eq!(parse("E20D E1044F00C100 E303D00101 8000"), NOTHING);
    // Only those rules.
    let known = "E20B E1044F00C100 E303D00101";
    let unknown = "E20D E1044F00C100 E303D00101 8000";
    let expected = Ok(vec![rule(AidRef::All, AppRef::All, Some(ApduRule::Always))]);
    assert_eq!(parse(&format!("{unknown} {known}")), expected);
    assert_eq!(parse(&format!("{known} {unknown}")), expected);
    assert_eq!(
        parse(&format!("8003010203 {known} E303D00101 BF200161")),
        expected
    );
}

#[test]
fn incomplete_rules_are_left_out() {
    for body in [
        "E200",
        "E206 E1044F00C100",
        "E205 E303D00101",
        "E207 E100 E303D00101",
        "E209 E1024F00 E303D00101",
        "E209 E102C100 E303D00101",
    ] {
        assert_eq!(parse(body), NOTHING, "{body}");
    }
}

#[test]
fn rules_for_packages_are_left_out() {
    assert_eq!(with_parts("4F00 C100 CA03 612E62", "D00101"), NOTHING);
    assert_eq!(with_parts("C100 CA03 612E62", "D00101"), NOTHING);
    let named = |length: usize, byte: u8| {
        let name = tlv(0xCA, &vec![byte; length]);
        parse_rules(&ref_ar_do(&[hex("4F00 C100"), name], &[hex("D00101")]))
    };
    assert_eq!(named(127, b'a'), NOTHING);
    assert_eq!(named(128, b'a'), invalid(0xCA));
    assert_eq!(named(0, b'a'), invalid(0xCA));
    assert_eq!(named(1, 0x80), invalid(0xCA));
}

#[test]
fn every_form_of_a_length() {
    let expected = Ok(vec![rule(AidRef::All, AppRef::All, Some(ApduRule::Always))]);
    for body in [
        "E20B E1044F00C100 E303D00101",
        "E2810B E1044F00C100 E303D00101",
        "E282000B E1044F00C100 E303D00101",
        "E28300000B E1044F00C100 E303D00101",
        "E2840000000B E1044F00C100 E303D00101",
        "E213 E18106 4F8100 C18100 E3820006 D083000001 01",
    ] {
        assert_eq!(parse(body), expected, "{body}");
    }
    // Rules of 255 bytes and more.
    for filters in [29, 30, 31, 300, 9000] {
        let access = tlv(0xD0, &hex("00B00000FFFF0000").repeat(filters));
        let rules = parse_rules(&ref_ar_do(&[hex("4F00 C100")], &[access])).unwrap();
        let Some(ApduRule::Filters(read)) = &rules[0].apdu else {
            panic!("no filters");
        };
        assert_eq!(read.len(), filters);
    }
}

#[test]
fn what_is_no_data_object_closes_the_element() {
    for (body, error) in [
        ("E2", TlvError::Truncated),
        ("E20B E1044F00C100 E303D001", TlvError::Truncated),
        ("E20B E1044F00C100 E304D00101", TlvError::Truncated),
        // The end of the reference is within the next data object.
        ("E20B E1054F00C100 E303D00101", TlvError::Truncated),
        ("E20B E1044F00C100 E303D00101 00", TlvError::ZeroTag),
        ("E20B E1044F00C100 E303D00101 FF", TlvError::Truncated),
        ("E280 E1044F00C100 E303D00101 0000", TlvError::InvalidLength),
        (
            "E285000000000B E1044F00C100 E303D00101",
            TlvError::InvalidLength,
        ),
    ] {
        assert_eq!(parse(body), Err(error.into()), "{body}");
    }
    // A good rule before it changes nothing.
    assert!(parse("E20B E1044F00C100 E303D00101 E2").is_err());
}

#[test]
fn the_number_of_rules_is_bounded() {
    let one = hex("E20B E1044F00C100 E303D00101");
    assert_eq!(parse_rules(&one.repeat(10_000)).unwrap().len(), 10_000);
    assert_eq!(
        parse_rules(&one.repeat(MAX_RULES)).unwrap().len(),
        MAX_RULES
    );
    let too_many = parse_rules(&one.repeat(MAX_RULES + 1));
    assert_eq!(too_many, Err(RulesError::TooMany));
}

#[test]
fn no_bytes_are_no_rules() {
    assert_eq!(parse_rules(&[]), NOTHING);
}

fn objects() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![
        Just(0xE1_u32),
        Just(0xE2),
        Just(0xE3),
        Just(0x4F),
        Just(0xC0),
        Just(0xC1),
        Just(0xCA),
        Just(0xD0),
        Just(0xD1),
        Just(0xDB),
        Just(0x80)
    ];
    let leaf = prop_oneof![
        Just(vec![]),
        Just(vec![0]),
        Just(vec![1]),
        proptest::collection::vec(any::<u8>(), 0..34),
    ];
    leaf.prop_recursive(4, 40, 4, move |inner| {
        proptest::collection::vec((tag.clone(), inner), 0..4).prop_map(|objects| {
            objects
                .iter()
                .flat_map(|(tag, value)| tlv(*tag, value))
                .collect()
        })
    })
}

proptest! {
    #[test]
    fn anything_can_be_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_rules(&bytes);
        let _ = parse_rules(&tlv(0xE2, &bytes));
    }

    #[test]
    fn any_objects_can_be_parsed(bytes in objects()) {
        let _ = parse_rules(&bytes);
    }

    /// Whatever is cut off or changed: an error, or no more rules than before.
    #[test]
    fn damage_adds_no_rules(at in 0..1704_usize, byte: u8, cut: bool) {
        let mut body = crate::conformance::body();
        if cut {
            body.truncate(at);
        } else {
            body[at] = byte;
        }
        if let Ok(rules) = parse_rules(&body) {
            prop_assert!(rules.len() <= 41);
        }
    }
}
