/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Access rules: in an ARA-M's answer, as a card gives them piece by piece, and in a file of the device's owner.

use secure_element::access::{
    Access, AidRef, AppId, AppRef, AraMReader, AraMStep, ArfReader, ArfStep, MAX_BYTES, Outcome,
    Rule, RuleSet, Target, parse_rules,
};
use secure_element::apdu::{CommandApdu, ResponseApdu};
use secure_element::channel::Aid;
use secure_element::class_byte::{ChannelNumber, channel_of};
use secure_element::tlv::{self, Tag};
use token_broker::access::device_rules::DeviceRules;

/// The first byte of an input.
#[derive(Clone, Copy)]
pub enum Kind {
    /// The rest is the value of FF40.
    Body,
    /// The rest are the answers of an ARA-M, each with its length in front (1 byte). They repeat.
    AraM,
    /// The rest are the answers of a UICC, in the same way.
    Arf,
    /// The rest is a file.
    Device,
}

const KINDS: [Kind; 4] = [Kind::Body, Kind::AraM, Kind::Arf, Kind::Device];

/// Commands that no reading of rules may exceed.
const MAX_COMMANDS: usize = 1100;
/// More rules than these are not looked at one by one, so that inputs stay quick.
const MAX_COMPARED: usize = 6;

/// Reading ends within its bounds and on its channel; what is read is what its bytes say; a decision does not depend on
/// the order of the rules, and no partial AID and no missing name leads around one.
pub fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    match KINDS.get(usize::from(kind)) {
        Some(Kind::Body) => body(rest),
        Some(Kind::AraM) => drop(ara_m(&answers(rest))),
        Some(Kind::Arf) => arf(&answers(rest)),
        Some(Kind::Device) => device(&String::from_utf8_lossy(rest)),
        None => {}
    }
}

fn body(bytes: &[u8]) {
    let rules = parse_rules(bytes);
    // The shortest rule has 8 bytes: E2 06 { E1 .. }, E3 00.
    assert!(rules.as_ref().map_or(0, Vec::len) <= bytes.len() / 8);
    if bytes.len() <= MAX_BYTES {
        let mut answer = Vec::new();
        tlv::write(&mut answer, Tag(0xFF40), bytes);
        let refresh_tag = [&[0xDF, 0x20, 8][..], &[0; 8]].concat();
        let blocks = answer.chunks(256).map(<[u8]>::to_vec);
        let answers: Vec<_> = [refresh_tag].into_iter().chain(blocks).map(ok).collect();
        let outcome = ara_m(&answers);
        assert_eq!(rules.is_ok(), matches!(outcome, Outcome::Rules { .. }));
    }
    if let Ok(rules) = rules {
        decide(&rules);
    }
}

fn ok(data: Vec<u8>) -> ResponseApdu {
    ResponseApdu::new(data, secure_element::apdu::StatusWord::OK)
}

fn decide(rules: &[Rule]) {
    let set = RuleSet::new(rules.iter().cloned());
    let reversed = RuleSet::new(rules.iter().rev().cloned());
    assert_eq!(set.is_empty(), rules.is_empty());
    for rule in rules.iter().take(MAX_COMPARED) {
        let app = match rule.app {
            AppRef::All => AppId::from_hashes(None, None),
            AppRef::Sha1(hash) => AppId::from_hashes(None, Some(hash)),
            AppRef::Sha256(hash) => AppId::from_hashes(Some(hash), None),
        };
        for rule in rules.iter().take(MAX_COMPARED) {
            let AidRef::Aid(aid) = rule.aid else {
                let access = set.channel_access(Target::Implicit, &app);
                assert_eq!(access, reversed.channel_access(Target::Implicit, &app));
                continue;
            };
            let access = set.channel_access(Target::Application(aid), &app);
            assert_eq!(
                access,
                reversed.channel_access(Target::Application(aid), &app)
            );
            select(&set, &aid, &app, &access);
        }
    }
}

/// However an application is selected: named, the access is its own; unnamed, not more.
fn select(set: &RuleSet, aid: &Aid, app: &AppId, access: &Access) {
    let name = aid.as_bytes();
    for length in 0..=name.len() {
        let (requested, _) = name.split_at(length);
        assert_eq!(&set.access_after_select(requested, Some(aid), app), access);
        let unnamed = set.access_after_select(requested, None, app);
        assert!(!unnamed.allows_channel() || &unnamed == access);
        assert!(!access.allows_channel() || set.may_select(requested, app));
    }
}

fn answers(mut bytes: &[u8]) -> Vec<ResponseApdu> {
    let mut answers = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let (answer, rest) = rest.split_at(rest.len().min(usize::from(length)));
        answers.extend(ResponseApdu::parse(answer));
        bytes = rest;
    }
    answers
}

fn check(command: &CommandApdu, channel: ChannelNumber, commands: &mut usize) {
    assert_eq!(channel_of(command.header().cla), Ok(channel));
    *commands += 1;
    assert!(*commands <= MAX_COMMANDS);
}

const CHANNEL: Option<ChannelNumber> = ChannelNumber::new(7);

fn ara_m(answers: &[ResponseApdu]) -> Outcome {
    let channel = CHANNEL.unwrap_or(ChannelNumber::BASIC);
    let mut answers = answers.iter().cycle();
    let mut step = AraMReader::start(channel, None);
    let mut commands = 0;
    loop {
        match step {
            AraMStep::Done(outcome) => return outcome,
            AraMStep::Send(reader, command) => {
                check(&command, channel, &mut commands);
                match answers.next() {
                    Some(answer) => step = reader.receive(answer),
                    None => return Outcome::NoRules,
                }
            }
        }
    }
}

fn arf(answers: &[ResponseApdu]) {
    let channel = CHANNEL.unwrap_or(ChannelNumber::BASIC);
    let mut answers = answers.iter().cycle();
    let mut step = ArfReader::start(channel, None);
    let mut commands = 0;
    while let ArfStep::Send(reader, command) = step {
        check(&command, channel, &mut commands);
        let Some(answer) = answers.next() else {
            return;
        };
        step = reader.receive(answer);
    }
}

fn device(text: &str) {
    match DeviceRules::parse(text) {
        Ok(rules) => assert_eq!(DeviceRules::parse(&rules.to_string()), Ok(rules)),
        Err(error) => assert!((1..=text.matches('\n').count() + 1).contains(&error.line)),
    }
}
