/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The smallest cases in which other enforcers decide differently, each with what is right.

use secure_element::access::{
    Access, AidRef, AppId, AppRef, Denial, RuleSet, Specificity, Target, parse_rules,
};

use crate::{
    S1, S2, X, Y, absent, aid, always, app, decide, decide_implicit, filter, filtered, header, hex,
    never, ref_ar_do, s1, s2, sha1, sha256, tlv,
};

const BY_APP_AND_APPLICATION: Access = Access::Never(Denial::Rule(Specificity::AppAndApplication));
const OTHERS_ONLY: Access = Access::Never(Denial::OthersOnly);

#[test]
fn a_rule_for_another_origin_shadows_one_for_all_applications() {
    let rules = [always(s1(), sha1(Y)), always(AidRef::All, sha1(X))];
    assert_eq!(decide(&rules, &S1, X), OTHERS_ONLY);
    assert_eq!(decide(&rules, &S1, Y), Access::Always);
    assert_eq!(decide(&rules, &S2, X), Access::Always);
    assert_eq!(decide(&rules, &S2, Y), OTHERS_ONLY);
}

#[test]
fn a_rule_for_another_origin_shadows_one_for_everybody() {
    let rules = [always(s1(), sha1(Y)), always(AidRef::All, AppRef::All)];
    assert_eq!(decide(&rules, &S1, X), OTHERS_ONLY);
    assert_eq!(decide(&rules, &S2, X), Access::Always);
    let rules = [always(s1(), sha1(Y)), always(s1(), AppRef::All)];
    assert_eq!(decide(&rules, &S1, X), OTHERS_ONLY);
    let rules = [
        always(AidRef::All, sha1(Y)),
        always(AidRef::All, AppRef::All),
    ];
    assert_eq!(decide(&rules, &S1, X), OTHERS_ONLY);
}

#[test]
fn a_rule_that_denies_it_to_another_origin_shadows_as_well() {
    let rules = [never(s1(), sha1(Y)), always(AidRef::All, AppRef::All)];
    assert_eq!(decide(&rules, &S1, X), OTHERS_ONLY);
    let rules = [absent(s1(), sha256(Y)), always(s1(), AppRef::All)];
    assert_eq!(decide(&rules, &S1, X), OTHERS_ONLY);
}

#[test]
fn what_a_rule_does_not_say_is_settled_after_combining() {
    let rules = [always(s1(), sha1(X)), absent(s1(), sha1(X))];
    assert_eq!(decide(&rules, &S1, X), Access::Always);
    assert_eq!(decide(&rules[1..], &S1, X), BY_APP_AND_APPLICATION);
    let filters = [filter(0x00B0_0000, 0xFFFF_0000)];
    let rules = [absent(s1(), sha1(X)), filtered(s1(), sha1(X), &filters)];
    assert!(decide(&rules, &S1, X).allows_command(header(0x00B0_0000)));
    let rules = [absent(s1(), sha1(X)), never(s1(), sha1(X))];
    assert_eq!(decide(&rules, &S1, X), BY_APP_AND_APPLICATION);
}

#[test]
fn no_rules_give_no_access() {
    assert_eq!(decide(&[], &S1, X), Access::Never(Denial::NoRule));
    assert_eq!(decide_implicit(&[], X), Access::Never(Denial::NoRule));
    assert!(RuleSet::new([]).is_empty());
    for rule in [
        never(s1(), sha1(X)),
        never(AidRef::All, AppRef::All),
        never(AidRef::Implicit, sha1(X)),
    ] {
        assert!(!RuleSet::new([rule]).is_empty());
    }
}

#[test]
fn the_implicitly_selected_application_is_not_all_applications() {
    let rules = [always(AidRef::Implicit, AppRef::All)];
    assert_eq!(decide_implicit(&rules, X), Access::Always);
    assert_eq!(decide(&rules, &S1, X), Access::Never(Denial::NoRule));
}

#[test]
fn the_implicitly_selected_application_is_one_application() {
    let rules = [
        always(AidRef::Implicit, sha1(Y)),
        always(AidRef::All, AppRef::All),
    ];
    assert_eq!(decide_implicit(&rules, X), OTHERS_ONLY);
    assert_eq!(decide(&rules, &S1, X), Access::Always);
    let rules = [
        never(AidRef::Implicit, AppRef::All),
        always(AidRef::All, sha1(X)),
    ];
    let by_everybody = Access::Never(Denial::Rule(Specificity::Application));
    assert_eq!(decide_implicit(&rules, X), by_everybody);
    assert_eq!(decide(&rules, &S1, X), Access::Always);
    let rules = [always(AidRef::All, sha1(X))];
    assert_eq!(decide_implicit(&rules, X), Access::Always);
    assert_eq!(decide_implicit(&rules, Y), OTHERS_ONLY);
}

#[test]
fn a_denial_wins_over_an_allowance_in_any_order() {
    let mut rules = [always(s1(), sha1(X)), never(s1(), sha1(X))];
    assert_eq!(decide(&rules, &S1, X), BY_APP_AND_APPLICATION);
    rules.reverse();
    assert_eq!(decide(&rules, &S1, X), BY_APP_AND_APPLICATION);
}

#[test]
fn filters_of_the_same_references_count_together() {
    let read = filter(0x00B0_0000, 0xFFFF_0000);
    let write = filter(0x00D6_0000, 0xFFFF_0000);
    let rules = [
        filtered(s1(), sha1(X), &[read]),
        filtered(s1(), sha1(X), &[write]),
    ];
    let access = decide(&rules, &S1, X);
    for (command, expected) in [
        (0x00B0_0102, true),
        (0x00D6_0000, true),
        (0x0020_0080, false),
    ] {
        assert_eq!(access.allows_command(header(command)), expected);
    }
}

#[test]
fn filters_win_over_always_in_any_order() {
    let read = filter(0x00B0_0000, 0xFFFF_0000);
    let write = filter(0x00D6_0000, 0xFFFF_0000);
    let mut rules = [
        filtered(s1(), sha1(X), &[read]),
        filtered(s1(), sha1(X), &[write]),
        always(s1(), sha1(X)),
    ];
    for _ in 0..3 {
        let access = decide(&rules, &S1, X);
        assert!(access.allows_channel());
        assert!(!access.allows_command(header(0x0020_0080)));
        assert!(access.allows_command(header(0x00D6_0000)));
        rules.rotate_left(1);
    }
    let rules = [filtered(s1(), sha1(X), &[read]), never(s1(), sha1(X))];
    assert_eq!(decide(&rules, &S1, X), BY_APP_AND_APPLICATION);
}

#[test]
fn filters_that_match_nothing_give_a_channel_without_commands() {
    let rules = [filtered(s1(), sha1(X), &[filter(0x00B0_0001, 0xFFFF_0000)])];
    let access = decide(&rules, &S1, X);
    assert!(access.allows_channel());
    assert!(!access.allows_command(header(0x00B0_0001)));
}

#[test]
fn sha256_comes_before_sha1_whatever_they_say() {
    let rules = [always(s1(), sha256(X)), never(s1(), sha1(X))];
    assert_eq!(decide(&rules, &S1, X), Access::Always);
    let rules = [never(s1(), sha256(X)), always(s1(), sha1(X))];
    assert_eq!(decide(&rules, &S1, X), BY_APP_AND_APPLICATION);
    let rules = [absent(s1(), sha256(X)), always(s1(), sha1(X))];
    assert_eq!(decide(&rules, &S1, X), BY_APP_AND_APPLICATION);
    // Each counts alone, in both steps that name the origin.
    for origin in [sha1(X), sha256(X)] {
        assert_eq!(decide(&[always(s1(), origin)], &S1, X), Access::Always);
        assert_eq!(
            decide(&[always(AidRef::All, origin)], &S1, X),
            Access::Always
        );
    }
    let rules = [never(AidRef::All, sha256(X)), always(AidRef::All, sha1(X))];
    assert_eq!(
        decide(&rules, &S1, X),
        Access::Never(Denial::Rule(Specificity::App))
    );
}

#[test]
fn a_more_specific_rule_by_sha1_comes_before_a_less_specific_one_by_sha256() {
    let rules = [never(s1(), sha1(X)), always(AidRef::All, sha256(X))];
    assert_eq!(decide(&rules, &S1, X), BY_APP_AND_APPLICATION);
    let rules = [always(s1(), sha1(X)), never(AidRef::All, sha256(X))];
    assert_eq!(decide(&rules, &S1, X), Access::Always);
}

#[test]
fn everybody_s_rule_for_the_application_comes_before_the_origin_s_for_all() {
    let rules = [never(s1(), AppRef::All), always(AidRef::All, sha1(X))];
    let by_application = Access::Never(Denial::Rule(Specificity::Application));
    assert_eq!(decide(&rules, &S1, X), by_application);
    assert_eq!(decide(&rules, &S2, X), Access::Always);
}

#[test]
fn an_origin_s_rule_for_all_comes_before_everybody_s() {
    let rules = [
        always(AidRef::All, sha1(X)),
        never(AidRef::All, AppRef::All),
    ];
    assert_eq!(decide(&rules, &S1, X), Access::Always);
    assert_eq!(decide(&rules, &S1, Y), OTHERS_ONLY);
    let by_nothing = Access::Never(Denial::Rule(Specificity::Nothing));
    assert_eq!(decide(&rules[1..], &S1, Y), by_nothing);
}

#[test]
fn without_hashes_only_rules_for_everybody_apply() {
    let rules = RuleSet::new([always(s1(), sha1(X)), always(s2(), AppRef::All)]);
    let nobody = AppId::from_hashes(None, None);
    let access = |name: &[u8]| rules.channel_access(Target::Application(aid(name)), &nobody);
    assert_eq!(access(&S1), OTHERS_ONLY);
    assert_eq!(access(&S2), Access::Always);
}

#[test]
fn one_hash_does_not_stand_for_the_other() {
    let rules = RuleSet::new([always(s1(), sha256(X))]);
    let by_sha1 = AppId::from_hashes(None, Some([X; 20]));
    let access = rules.channel_access(Target::Application(aid(&S1)), &by_sha1);
    assert_eq!(access, OTHERS_ONLY);
}

#[test]
fn a_padded_uuid_matches_no_origin() {
    let uuid = [&[0x5A; 16][..], &[0xFF; 4]].concat();
    let body = ref_ar_do(&[tlv(0x4F, &S1), tlv(0xC1, &uuid)], &[tlv(0xD0, &[1])]);
    let rules = RuleSet::new(parse_rules(&body).unwrap());
    let origin = AppId::from_origin("https://bank.example").unwrap();
    let access = rules.channel_access(Target::Application(aid(&S1)), &origin);
    assert_eq!(access, OTHERS_ONLY);
}

/// Android reads 00 for a device application without an AID as "everything for everybody".
#[test]
fn a_rule_without_an_application_gives_nothing() {
    for reference in ["C100", "C114 1111111111111111111111111111111111111111"] {
        let body = tlv(
            0xE2,
            &[tlv(0xE1, &hex(reference)), hex("E303 D00101")].concat(),
        );
        assert_eq!(parse_rules(&body), Ok(vec![]));
    }
}

#[test]
fn whoever_is_named_may_learn_that_the_application_is_there() {
    let denial = |rules: &[secure_element::access::Rule], origin| match decide(rules, &S1, origin) {
        Access::Never(denial) => denial.names_app(),
        other => panic!("{other:?}"),
    };
    assert!(denial(&[never(s1(), sha1(X))], X));
    assert!(denial(&[never(AidRef::All, sha1(X))], X));
    assert!(!denial(&[never(s1(), sha1(X))], Y));
    assert!(!denial(&[never(s1(), AppRef::All)], X));
    assert!(!denial(&[never(AidRef::All, AppRef::All)], X));
    assert!(!denial(&[], X));
    assert!(!Denial::Unnamed.names_app());
}

#[test]
fn origins_are_found_by_their_own_hashes() {
    let origin = AppId::from_origin("https://bank.example").unwrap();
    for reference in [
        AppRef::Sha1(*origin.sha1().unwrap()),
        AppRef::Sha256(*origin.sha256().unwrap()),
    ] {
        let rules = RuleSet::new([always(s1(), reference)]);
        let target = Target::Application(aid(&S1));
        assert_eq!(rules.channel_access(target, &origin), Access::Always);
        assert_eq!(rules.channel_access(target, &app(X)), OTHERS_ONLY);
    }
}
