/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Applications that are selected by a part of their AID, and those that the card does not name.

use proptest::prelude::*;
use secure_element::access::{Access, AidRef, AppRef, Denial, Rule, RuleSet, Specificity, Target};
use secure_element::channel::Aid;

use crate::{S1, S2, X, Y, aid, always, app, never, s1, s2, sha1, sha256};

const UNNAMED: Access = Access::Never(Denial::Unnamed);
const OTHERS_ONLY: Access = Access::Never(Denial::OthersOnly);

fn after(rules: &[Rule], requested: &[u8], name: Option<&[u8]>, origin: u8) -> Access {
    let name = name.map(aid);
    RuleSet::new(rules.iter().cloned()).access_after_select(requested, name.as_ref(), &app(origin))
}

fn may_select(rules: &[Rule], requested: &[u8], origin: u8) -> bool {
    RuleSet::new(rules.iter().cloned()).may_select(requested, &app(origin))
}

/// The rule protects an application from everybody but Y; a rule for all applications lets X in
/// where there is no other.
fn protected() -> [Rule; 2] {
    [always(s1(), sha1(Y)), always(AidRef::All, AppRef::All)]
}

#[test]
fn a_partial_aid_does_not_slip_past_a_rule() {
    let rules = protected();
    // Five bytes of the AID have no rule, so deciding by them would let X in.
    assert_eq!(after(&rules, &S1[..5], Some(&S1), X), OTHERS_ONLY);
    assert_eq!(after(&rules, &S1[..5], Some(&S1), Y), Access::Always);
    assert_eq!(after(&rules, &[], Some(&S1), X), OTHERS_ONLY);
    // What else begins so is not protected.
    assert_eq!(after(&rules, &S1[..5], Some(&S2), X), Access::Always);
    assert!(may_select(&rules, &S1[..5], X));
    assert!(may_select(&rules, &S1[..5], Y));
}

#[test]
fn the_next_occurrence_does_not_slip_past_a_rule() {
    let rules = protected();
    let requested = &S1[..5];
    assert_eq!(after(&rules, requested, Some(&S2), X), Access::Always);
    assert_eq!(after(&rules, requested, Some(&S1), X), OTHERS_ONLY);
    assert_eq!(after(&rules, requested, None, X), UNNAMED);
}

#[test]
fn an_unnamed_application_does_not_slip_past_a_rule() {
    let rules = protected();
    assert_eq!(after(&rules, &S1[..5], None, X), UNNAMED);
    // Not by an AID that the card may have taken as the beginning of another one.
    assert_eq!(after(&rules, &S1, None, Y), UNNAMED);
    assert_eq!(after(&rules, &S2, None, X), UNNAMED);
    assert_eq!(after(&rules, &[], None, X), UNNAMED);
    // A rule for the implicitly selected application is about an unnamed one too.
    let rules = [
        never(AidRef::Implicit, AppRef::All),
        always(AidRef::All, AppRef::All),
    ];
    assert_eq!(after(&rules, &S1, None, X), UNNAMED);
    let rules = [
        never(AidRef::Implicit, sha1(Y)),
        always(AidRef::All, AppRef::All),
    ];
    assert_eq!(after(&rules, &S1, None, X), UNNAMED);
}

#[test]
fn an_unnamed_application_where_all_have_the_same_rules() {
    let rules = [always(AidRef::All, sha1(X))];
    assert_eq!(after(&rules, &S1, None, X), Access::Always);
    assert_eq!(after(&rules, &[], None, X), Access::Always);
    assert_eq!(after(&rules, &S1, None, Y), OTHERS_ONLY);
    assert_eq!(after(&[], &S1, None, X), Access::Never(Denial::NoRule));
}

#[test]
fn sixteen_bytes_are_a_complete_aid() {
    let full = [7; 16];
    let rules = [
        always(AidRef::Aid(aid(&full)), sha1(Y)),
        always(AidRef::All, AppRef::All),
    ];
    assert_eq!(after(&rules, &full, None, Y), Access::Always);
    assert_eq!(after(&rules, &full, None, X), OTHERS_ONLY);
    assert_eq!(after(&rules, &full[..15], None, Y), UNNAMED);
    assert!(may_select(&rules, &full, Y));
    assert!(!may_select(&rules, &full, X));
    assert!(may_select(&rules, &[8; 16], X));
    assert_eq!(after(&rules, &[8; 16], None, X), Access::Always);
}

#[test]
fn a_name_that_select_cannot_have_found_is_none() {
    let rules = protected();
    // Longer than what was asked for it may be; shorter or another it may not.
    assert_eq!(after(&rules, &S1, Some(&S1[..5]), X), UNNAMED);
    assert_eq!(after(&rules, &S1, Some(&S2), X), UNNAMED);
    assert_eq!(
        after(&[always(AidRef::All, AppRef::All)], &S1, Some(&S2), X),
        UNNAMED
    );
    let longer = [&S1[..], &[1, 2]].concat();
    assert_eq!(after(&rules, &S1, Some(&longer), X), Access::Always);
}

#[test]
fn more_bytes_than_an_aid_has() {
    let rules = [always(AidRef::All, AppRef::All)];
    assert!(!may_select(&rules, &[7; 17], X));
    assert_eq!(after(&rules, &[7; 17], Some(&[7; 16]), X), UNNAMED);
}

#[test]
fn before_select() {
    // Nothing that begins so can be allowed: the card need not be asked.
    let rules = [always(s1(), sha1(X)), never(s2(), sha1(X))];
    assert!(may_select(&rules, &S1, X));
    assert!(may_select(&rules, &S1[..3], X));
    assert!(may_select(&rules, &[], X));
    assert!(!may_select(&rules, &S1, Y));
    assert!(!may_select(&rules, &S1[..3], Y));
    assert!(!may_select(&rules, &S2, X));
    assert!(!may_select(&rules, &[0xA1], X));
    assert!(!may_select(&rules, &[&S1[..], &[0]].concat(), X));
    assert!(!may_select(&[], &[], X));
    assert!(may_select(&[always(s1(), AppRef::All)], &S1[..5], X));
    // Shadowed by a rule for another origin.
    assert!(!may_select(
        &[always(s1(), AppRef::All), never(s1(), sha1(Y))],
        &S1[..5],
        X
    ));
    // Taken back by the other hash.
    assert!(!may_select(
        &[always(s1(), sha1(X)), never(s1(), sha256(X))],
        &S1[..5],
        X
    ));
    let rules = [
        always(s1(), sha1(X)),
        never(s1(), sha256(X)),
        always(s2(), sha1(X)),
    ];
    assert!(may_select(&rules, &S1[..5], X));
}

#[test]
fn rules_whose_author_knew_the_request_only() {
    let as_requested = |rules: &[Rule], requested: &[u8]| {
        RuleSet::new(rules.iter().cloned()).access_as_requested(requested, &app(X))
    };
    let rules = [always(s1(), sha1(X))];
    assert_eq!(as_requested(&rules, &S1), Access::Always);
    assert_eq!(as_requested(&rules, &S2), Access::Never(Denial::NoRule));
    // A rule about a longer AID could be about the application that was selected.
    assert_eq!(as_requested(&rules, &S1[..5]), UNNAMED);
    let all = [always(s1(), sha1(X)), always(AidRef::All, AppRef::All)];
    assert_eq!(as_requested(&all, &S1[..5]), UNNAMED);
    let longer = aid(&[&S1[..], &[0]].concat());
    let both = [always(s1(), sha1(X)), always(AidRef::Aid(longer), sha1(X))];
    assert_eq!(as_requested(&both, &S1), UNNAMED);
    assert_eq!(as_requested(&both, longer.as_bytes()), Access::Always);
    assert_eq!(as_requested(&rules, &[]), UNNAMED);
    assert_eq!(as_requested(&rules, &[7; 17]), UNNAMED);
}

/// In whatever order the rules are given or kept.
#[test]
fn many_applications_with_the_same_beginnings() {
    let name = |number: u8| [&S1[..], &[number / 16, number % 16]].concat();
    let rules: Vec<_> = (0..=255)
        .map(|number| always(AidRef::Aid(aid(&name(number))), sha1(X)))
        .collect();
    let set = RuleSet::new(rules);
    for number in 0..=255 {
        let name = name(number);
        assert!((0..=name.len()).all(|length| set.may_select(&name[..length], &app(X))));
        assert!(!set.may_select(&name, &app(Y)));
        assert_eq!(set.access_as_requested(&name, &app(X)), Access::Always);
        assert_eq!(set.access_as_requested(&name[..7], &app(X)), UNNAMED);
    }
    assert!(!set.may_select(&[&S1[..], &[16]].concat(), &app(X)));
}

fn small_rules() -> impl Strategy<Value = Vec<Rule>> {
    let name = proptest::collection::vec(0..2_u8, 5..8);
    let aid_ref = prop_oneof![
        4 => name.prop_map(|name| AidRef::Aid(aid(&name))),
        1 => Just(AidRef::All),
        1 => Just(AidRef::Implicit),
    ];
    let app_ref = prop_oneof![
        Just(AppRef::All),
        Just(sha1(X)),
        Just(sha256(X)),
        Just(sha1(Y)),
        Just(sha256(Y))
    ];
    let rule = (aid_ref, app_ref, any::<bool>()).prop_map(|(aid, app, allows)| {
        if allows {
            always(aid, app)
        } else {
            never(aid, app)
        }
    });
    proptest::collection::vec(rule, 0..8)
}

proptest! {
    /// The question before SELECT is answered as by trying every application that could be there.
    #[test]
    fn before_select_is_right_for_every_prefix(
        rules in small_rules(),
        requested in proptest::collection::vec(0..2_u8, 0..8),
    ) {
        let set = RuleSet::new(rules.iter().cloned());
        // Rules have names of 5 to 7 bytes: one of 9 has no rule.
        let mut names: Vec<Vec<u8>> = rules.iter().filter_map(|rule| match rule.aid {
            AidRef::Aid(aid) => Some(aid.as_bytes().to_vec()),
            _ => None,
        }).collect();
        let mut other = requested.clone();
        other.resize(9, 9);
        names.push(other);
        let expected = names.iter().filter(|name| name.starts_with(&requested)).any(|name| {
            set.channel_access(Target::Application(aid(name)), &app(X)).allows_channel()
        });
        prop_assert_eq!(set.may_select(&requested, &app(X)), expected);
    }

    /// Whatever the card reports, nothing more is allowed than for the application itself.
    #[test]
    fn after_select_allows_no_more_than_the_rules_of_the_application(
        rules in small_rules(),
        name in proptest::collection::vec(0..2_u8, 5..8),
        cut in 0..9_usize,
        is_named: bool,
    ) {
        let set = RuleSet::new(rules);
        let requested = &name[..cut.min(name.len())];
        let name: Aid = aid(&name);
        let df_name = is_named.then_some(&name);
        let access = set.access_after_select(requested, df_name, &app(X));
        let real = set.channel_access(Target::Application(name), &app(X));
        if access.allows_channel() {
            prop_assert_eq!(&access, &real);
            prop_assert!(set.may_select(requested, &app(X)));
        }
        if is_named {
            prop_assert_eq!(&access, &real);
        }
    }
}

#[test]
fn denials_say_which_rule() {
    let rules = [never(s1(), AppRef::All)];
    let by_application = Access::Never(Denial::Rule(Specificity::Application));
    assert_eq!(after(&rules, &S1, Some(&S1), X), by_application);
}
