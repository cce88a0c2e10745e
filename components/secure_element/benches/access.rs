/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a decision costs, with few rules and with many: it should be the same, and less than a
//! microsecond. `cargo bench -p secure_element --bench access`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use secure_element::access::{
    AidRef, ApduRule, AppId, AppRef, Filter, Rule, RuleSet, Target, parse_rules,
};
use secure_element::apdu::Header;
use secure_element::channel::Aid;
use secure_element::tlv::{self, Tag};

const COUNTS: [usize; 2] = [10, 10_000];
const READ: Filter = Filter {
    header: [0x00, 0xB0, 0x00, 0x00],
    mask: [0xFF, 0xFF, 0x00, 0x00],
};

fn aid(number: usize) -> Aid {
    let [.., a, b, c] = number.to_be_bytes();
    let bytes = [0xA0, 0x00, 0x00, 0x01, 0x51, a, b, c];
    Aid::new(&bytes).unwrap_or_else(|error| panic!("{error}"))
}

fn app(number: usize) -> AppId {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    let mut sha1 = [0; 20];
    sha1[..8].copy_from_slice(&number.to_be_bytes());
    AppId::from_hashes(Some(hash), Some(sha1))
}

fn app_ref(number: usize) -> AppRef {
    app(number)
        .sha1()
        .map_or(AppRef::All, |hash| AppRef::Sha1(*hash))
}

/// Rules for as many applications, each for another origin.
fn many_applications(count: usize) -> Vec<Rule> {
    (0..count)
        .map(|number| Rule {
            aid: AidRef::Aid(aid(number)),
            app: app_ref(number),
            apdu: Some(ApduRule::Filters(vec![READ])),
        })
        .collect()
}

/// Rules for one application and one origin, each with another filter.
fn one_application(count: usize) -> Vec<Rule> {
    (0..count)
        .map(|number| {
            let [.., p1, p2] = number.to_be_bytes();
            let filter = Filter {
                header: [0x00, 0xB0, p1, p2],
                mask: [0xFF; 4],
            };
            Rule {
                aid: AidRef::Aid(aid(0)),
                app: app_ref(0),
                apdu: Some(ApduRule::Filters(vec![filter])),
            }
        })
        .collect()
}

fn encode(rules: &[Rule]) -> Vec<u8> {
    let mut body = Vec::new();
    for rule in rules {
        let (AidRef::Aid(aid), AppRef::Sha1(hash)) = (rule.aid, rule.app) else {
            continue;
        };
        let mut reference = Vec::new();
        tlv::write(&mut reference, Tag(0x4F), aid.as_bytes());
        tlv::write(&mut reference, Tag(0xC1), &hash);
        let mut access = Vec::new();
        tlv::write(&mut access, Tag(0xD0), &[READ.header, READ.mask].concat());
        let mut parts = Vec::new();
        tlv::write(&mut parts, Tag(0xE1), &reference);
        tlv::write(&mut parts, Tag(0xE3), &access);
        tlv::write(&mut body, Tag(0xE2), &parts);
    }
    body
}

fn decisions(criterion: &mut Criterion) {
    let command = Header::new(0x00, 0xB0, 0x00, 0x00);
    let mut group = criterion.benchmark_group("access");
    for count in COUNTS {
        let rules = RuleSet::new(many_applications(count));
        let last = Target::Application(aid(count - 1));
        let requested = aid(0);
        let prefix = requested.as_bytes().get(..5).unwrap_or_default();
        let (holder, stranger) = (app(count - 1), app(count));
        group.bench_function(BenchmarkId::new("decision", count), |bencher| {
            bencher.iter(|| {
                let access = rules.channel_access(black_box(last), black_box(&holder));
                access.allows_command(black_box(command))
            });
        });
        group.bench_function(BenchmarkId::new("refusal", count), |bencher| {
            bencher.iter(|| rules.channel_access(black_box(last), black_box(&stranger)));
        });
        group.bench_function(BenchmarkId::new("before-select", count), |bencher| {
            bencher.iter(|| rules.may_select(black_box(prefix), black_box(&holder)));
        });
        let rules = RuleSet::new(one_application(count));
        let access = rules.channel_access(Target::Application(aid(0)), &app(0));
        group.bench_function(BenchmarkId::new("command", count), |bencher| {
            bencher.iter(|| access.allows_command(black_box(command)));
        });
        let body = encode(&many_applications(count));
        group.bench_function(BenchmarkId::new("parse-and-arrange", count), |bencher| {
            bencher.iter(|| parse_rules(black_box(&body)).map(RuleSet::new));
        });
    }
    group.finish();
}

criterion_group!(
    name = benches;
    config = Criterion::default().without_plots();
    targets = decisions
);
criterion_main!(benches);
