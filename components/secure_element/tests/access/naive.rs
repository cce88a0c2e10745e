/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A second implementation, straight from the specification's prose, with nothing but scans of
//! lists; and all small sets of rules on which both must agree.

use proptest::prelude::*;
use secure_element::access::{
    Access, AidRef, ApduRule, AppId, AppRef, Filter, Rule, RuleSet, Target,
};

use crate::{
    S1, S2, X, Y, absent, aid, always, app, filter, filtered, header, never, s1, s2, sha1, sha256,
};

/// What comes of a request: nothing, everything, or what these filters let through.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Never,
    Always,
    Filters(Vec<Filter>),
}

/// "Rules which have the same references are aggregated."
fn aggregate(rules: &[Rule], aid: AidRef, app: AppRef) -> Option<Verdict> {
    let same: Vec<&Rule> = rules
        .iter()
        .filter(|rule| rule.aid == aid && rule.app == app)
        .collect();
    if same.is_empty() {
        return None;
    }
    // "NEVER has priority over everything else."
    for rule in &same {
        if rule.apdu == Some(ApduRule::Never) {
            return Some(Verdict::Never);
        }
    }
    // "Filters have priority over ALWAYS; all of them apply."
    let mut filters = Vec::new();
    let mut has_filters = false;
    for rule in &same {
        if let Some(ApduRule::Filters(more)) = &rule.apdu {
            has_filters = true;
            filters.extend(more);
        }
    }
    if has_filters {
        return Some(Verdict::Filters(filters));
    }
    for rule in &same {
        if rule.apdu == Some(ApduRule::Always) {
            return Some(Verdict::Always);
        }
    }
    // "A missing attribute is interpreted as NEVER after that."
    Some(Verdict::Never)
}

/// The rule that names the app, by SHA-256 or else by SHA-1.
fn aggregate_for(rules: &[Rule], aid: AidRef, app: &AppId) -> Option<Verdict> {
    if let Some(hash) = app.sha256()
        && let Some(verdict) = aggregate(rules, aid, AppRef::Sha256(*hash))
    {
        return Some(verdict);
    }
    if let Some(hash) = app.sha1()
        && let Some(verdict) = aggregate(rules, aid, AppRef::Sha1(*hash))
    {
        return Some(verdict);
    }
    None
}

fn decide(rules: &[Rule], target: AidRef, app: &AppId) -> Verdict {
    // Step A.
    if let Some(verdict) = aggregate_for(rules, target, app) {
        return verdict;
    }
    for rule in rules {
        if rule.aid == target && rule.app != AppRef::All {
            return Verdict::Never;
        }
    }
    // Step B.
    if let Some(verdict) = aggregate(rules, target, AppRef::All) {
        return verdict;
    }
    // Step C.
    if let Some(verdict) = aggregate_for(rules, AidRef::All, app) {
        return verdict;
    }
    for rule in rules {
        if rule.aid == AidRef::All && rule.app != AppRef::All {
            return Verdict::Never;
        }
    }
    // Step D.
    if let Some(verdict) = aggregate(rules, AidRef::All, AppRef::All) {
        return verdict;
    }
    Verdict::Never
}

impl Verdict {
    fn allows_command(&self, command: u32) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Filters(filters) => {
                for filter in filters {
                    let mut is_equal = true;
                    for (position, byte) in command.to_be_bytes().into_iter().enumerate() {
                        is_equal &= byte & filter.mask[position] == filter.header[position];
                    }
                    if is_equal {
                        return true;
                    }
                }
                false
            }
        }
    }
}

const COMMANDS: [u32; 5] = [
    0x00B0_0000,
    0x00B0_0102,
    0x00D6_0000,
    0x80CA_9F7F,
    0x0000_0000,
];

fn agree(rules: &[Rule], set: &RuleSet, target: AidRef, app: &AppId) {
    let expected = decide(rules, target, app);
    let target = match target {
        AidRef::Aid(aid) => Target::Application(aid),
        AidRef::Implicit => Target::Implicit,
        AidRef::All => panic!("nobody asks for all"),
    };
    let access = set.channel_access(target, app);
    let is_same = matches!(
        (&access, &expected),
        (Access::Never(_), Verdict::Never)
            | (Access::Always, Verdict::Always)
            | (Access::Filters(_), Verdict::Filters(_))
    );
    assert!(is_same, "{rules:?}: {access:?}, not {expected:?}");
    for command in COMMANDS {
        assert_eq!(
            access.allows_command(header(command)),
            expected.allows_command(command),
            "{rules:?}: {command:08X}"
        );
    }
}

/// Every rule about two applications, all, and the implicit one, and about two origins by either
/// hash and everybody, saying each kind of thing.
fn universe() -> Vec<Rule> {
    let read = [filter(0x00B0_0000, 0xFFFF_0000)];
    let write = [filter(0x00D6_0000, 0xFFFF_FFFF), filter(0x0000_0001, 0)];
    let mut rules = Vec::new();
    for aid in [s1(), AidRef::All, AidRef::Implicit] {
        for app in [AppRef::All, sha1(X), sha256(X), sha1(Y)] {
            rules.extend([
                always(aid, app),
                never(aid, app),
                absent(aid, app),
                filtered(aid, app, &read),
                filtered(aid, app, &write),
            ]);
        }
    }
    rules
}

fn requests() -> Vec<(AidRef, AppId)> {
    let mut requests = Vec::new();
    for target in [s1(), AidRef::Implicit] {
        requests.push((target, app(X)));
        requests.push((target, AppId::from_hashes(None, Some([X; 20]))));
    }
    requests
}

/// 60 rules: 219,661 lists of up to three, and 878,644 decisions.
#[test]
fn all_lists_of_up_to_three_rules() {
    let universe = universe();
    let requests = requests();
    let mut decisions = 0_u32;
    let mut check = |rules: &[Rule]| {
        let set = RuleSet::new(rules.iter().cloned());
        for (target, app) in &requests {
            agree(rules, &set, *target, app);
            decisions += 1;
        }
    };
    check(&[]);
    for first in &universe {
        check(std::slice::from_ref(first));
        for second in &universe {
            let two = [first.clone(), second.clone()];
            check(&two);
            for third in &universe {
                check(&[two[0].clone(), two[1].clone(), third.clone()]);
            }
        }
    }
    assert_eq!(decisions, 4 * (1 + 60 + 60 * 60 + 60 * 60 * 60));
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let aids = [s1(), s2(), AidRef::All, AidRef::Implicit];
    let apps = [AppRef::All, sha1(X), sha256(X), sha1(Y), sha256(Y)];
    let filters = proptest::collection::vec((0..4_usize, 0..3_usize), 1..3).prop_map(|filters| {
        let filters = filters.into_iter().map(|(command, mask)| {
            filter(
                COMMANDS[command],
                [0xFFFF_0000, 0xFFFF_FFFF, 0xFF00_0000][mask],
            )
        });
        Some(ApduRule::Filters(filters.collect()))
    });
    let apdu = prop_oneof![
        Just(None),
        Just(Some(ApduRule::Always)),
        Just(Some(ApduRule::Never)),
        filters,
    ];
    (
        proptest::sample::select(aids.to_vec()),
        proptest::sample::select(apps.to_vec()),
        apdu,
    )
        .prop_map(|(aid, app, apdu)| Rule { aid, app, apdu })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn longer_lists(rules in proptest::collection::vec(any_rule(), 0..14)) {
        let set = RuleSet::new(rules.iter().cloned());
        for target in [s1(), s2(), AidRef::Implicit] {
            for origin in [X, Y, 0x33] {
                agree(&rules, &set, target, &app(origin));
            }
        }
    }

    #[test]
    fn the_order_makes_no_difference(
        rules in proptest::collection::vec(any_rule(), 0..8),
        turn in 0..8_usize,
    ) {
        let mut turned = rules.clone();
        turned.rotate_left(turn.min(rules.len()));
        turned.reverse();
        let sets = [RuleSet::new(rules), RuleSet::new(turned)];
        for name in [S1, S2] {
            let target = Target::Application(aid(&name));
            let [a, b] = sets.each_ref().map(|set| set.channel_access(target, &app(X)));
            for command in COMMANDS {
                prop_assert_eq!(a.allows_command(header(command)), b.allows_command(header(command)));
            }
            prop_assert_eq!(a.allows_channel(), b.allows_channel());
        }
    }
}
