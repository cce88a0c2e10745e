/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Access rules, as a page meets them: the broker with cards in software.

use secure_element::apdu::StatusWord;
use token_traits::control::AccessConfig;
use virtual_card::applets::ara_m::{self, AraM};
use virtual_card::applets::{conformance, echo, issuer, pin};
use virtual_card::{Card, VirtualCard};

use super::tests::*;
use super::*;

mod origin;
mod uicc;

const WALLET: &str = "https://wallet.example";
const SHOP: &str = "https://shop.example";
const ALWAYS: [u8; 1] = [0x01];

fn access(device_rules: &str, when_no_rules: Option<WhenNoRules>) -> AccessConfig {
    AccessConfig {
        device_rules: device_rules.to_owned(),
        when_no_rules,
    }
}

/// A rig whose embedded card has these access rules.
fn rig_with_rules(rules: AraM) -> Rig {
    let mut card = VirtualCard::from_profile("default").unwrap();
    card.install(Box::new(rules));
    Rig::with_card(Some(access("", None)), card)
}

fn rig_without_rules(access: AccessConfig) -> Rig {
    Rig::with_card(Some(access), VirtualCard::from_profile("no-rules").unwrap())
}

impl Rig {
    /// A port of this origin, with a session.
    fn visit(&mut self, origin: &str) -> (PortId, SessionId) {
        self.grant(origin, true);
        let number = self.next_port();
        let port = self.open_port(number, origin);
        let session = self.open_session(port);
        (port, session)
    }

    /// Asks for a channel, and says what came of it.
    fn try_open(
        &mut self,
        port: PortId,
        session: SessionId,
        aid: &[u8],
    ) -> Result<ChannelId, ErrorKind> {
        self.channel_or_error(port, open(session, aid))
    }

    fn channel_or_error(
        &mut self,
        port: PortId,
        body: RequestBody,
    ) -> Result<ChannelId, ErrorKind> {
        match self.ask(port, body) {
            Ok(ReplyBody::Channel(channel)) => Ok(channel.id),
            Err(error) => Err(error.kind),
            other => panic!("{other:?}"),
        }
    }

    fn try_send(
        &mut self,
        port: PortId,
        channel: ChannelId,
        command: &[u8],
    ) -> Result<Vec<u8>, ErrorKind> {
        let body = RequestBody::Transmit {
            channel,
            command: Command::Raw(command.to_vec()),
            timeout_ms: None,
        };
        match self.ask(port, body) {
            Ok(ReplyBody::Response(response)) => Ok(response),
            Err(error) => Err(error.kind),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_cards_rules_decide_who_opens_what() {
    let mut rig = rig_with_rules(AraM::sample());
    let (port, session) = rig.visit(ORIGIN);
    assert!(rig.try_open(port, session, &echo::AID).is_ok());
    assert!(rig.try_open(port, session, &conformance::AID).is_ok());
    // For others only, for nobody, without a rule, not there: all the same.
    for aid in [
        &echo::SECOND_AID[..],
        &pin::AID,
        &echo::WARNING_AID,
        b"\xF0NOBODY",
        &issuer::AID,
        &[],
    ] {
        assert_eq!(
            rig.try_open(port, session, aid),
            Err(ErrorKind::Security),
            "{aid:02X?}"
        );
    }
    for body in [open_basic(session, None), open_basic(session, Some(&[]))] {
        assert_eq!(rig.channel_or_error(port, body), Err(ErrorKind::Security));
    }
    let (wallet, session) = rig.visit(WALLET);
    assert!(rig.try_open(wallet, session, &echo::SECOND_AID).is_ok());
    assert_eq!(
        rig.try_open(wallet, session, &pin::AID),
        Err(ErrorKind::Security)
    );
    // Reading the rules has left no channel open.
    assert_eq!(rig.card().open_channels(), 3);
}

#[test]
fn filters_hold_for_every_command_in_every_class() {
    let mut rig = rig_with_rules(AraM::sample());
    let (port, session) = rig.visit(SHOP);
    let channel = rig.try_open(port, session, &echo::SECOND_AID).unwrap();
    for allowed in [
        [0x00, 0x10, 1, 2],
        [0x80, 0x10, 0, 0],
        [0x03, 0x10, 0, 0],
        [0x4F, 0x10, 0, 0],
    ] {
        assert!(
            rig.try_send(port, channel, &allowed).is_ok(),
            "{allowed:02X?}"
        );
    }
    for refused in [
        [0x00, 0x12, 1, 2],
        [0x83, 0x12, 0, 0],
        // A link of a chain.
        [0x10, 0x10, 0, 0],
        // What could hide another command, or fetch another's answer, or leave the applet.
        [0x00, 0xC2, 0, 0],
        [0x00, 0xC0, 0, 0],
        [0x00, 0xA4, 0x08, 0],
    ] {
        assert_eq!(
            rig.try_send(port, channel, &refused),
            Err(ErrorKind::Security),
            "{refused:02X?}"
        );
    }
    // The list of what may never be sent comes first, and has its own error.
    assert_eq!(
        rig.try_send(port, channel, &[0x00, 0x70, 0x80, 0x01]),
        Err(ErrorKind::InvalidValue)
    );
}

#[test]
fn a_filter_does_not_let_envelopes_through_even_where_it_names_them() {
    let filter = [0x00, 0x00, 0x00, 0x00, 0x7F, 0x00, 0x00, 0x00];
    let mut rig = rig_with_rules(AraM::with_rules(ara_m::rule(
        Some(&echo::AID),
        &[],
        &filter,
    )));
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &echo::AID).unwrap();
    assert!(rig.try_send(port, channel, &[0x00, 0x12, 1, 2]).is_ok());
    for ins in [0xC2, 0xC3] {
        let sent = rig.try_send(port, channel, &[0x00, ins, 0, 0]);
        assert_eq!(sent, Err(ErrorKind::Security));
    }
}

#[test]
fn a_partial_aid_does_not_slip_past_a_rule() {
    let mut rig = rig_with_rules(AraM::with_rules(
        [
            ara_m::rule(Some(&echo::SECOND_AID), &[], &ALWAYS),
            ara_m::rule(Some(&echo::AID), &[0xAA; 32], &ALWAYS),
        ]
        .concat(),
    ));
    let (port, session) = rig.visit(ORIGIN);
    // It finds the first applet, which is another origin's. That looks as if there were none.
    assert_eq!(
        rig.try_open(port, session, &echo::AID[..7]),
        Err(ErrorKind::NoApplication)
    );
    assert_eq!(
        rig.try_open(port, session, b"\xF0SERVO\x01\x7F"),
        Err(ErrorKind::Security)
    );
    assert!(rig.try_open(port, session, &echo::SECOND_AID).is_ok());
    assert_eq!(rig.card().open_channels(), 1);
}

#[test]
fn what_is_others_looks_as_what_is_not_there() {
    // No other begins with an AID of this length, so the rules refuse it before SELECT.
    const WHOLE: &[u8] = b"\xF0SIXTEEN BYTES..";
    let mut rig = rig_with_rules(AraM::with_rules(
        [
            ara_m::rule(Some(&[]), &[], &ALWAYS),
            ara_m::rule(Some(&echo::SECOND_AID), &[0xAA; 32], &ALWAYS),
            ara_m::rule(Some(WHOLE), &[0xAA; 32], &ALWAYS),
            ara_m::rule(None, &[0xAA; 32], &ALWAYS),
        ]
        .concat(),
    ));
    let (port, session) = rig.visit(ORIGIN);
    let absent = rig.ask(port, open(session, b"\xF0NOBODY"));
    assert_eq!(error(absent.clone()), ErrorKind::NoApplication);
    // In time, too: the card is asked as often.
    let mut cost = |aid: &[u8]| {
        let before = rig.commands(&embedded());
        let answer = rig.ask(port, open(session, aid));
        (answer, rig.commands(&embedded()) - before)
    };
    let (_, commands) = cost(b"\xF0NOBODY");
    assert_eq!(cost(&echo::SECOND_AID), (absent.clone(), commands));
    assert_eq!(cost(WHOLE), (absent, commands));
    assert!(rig.try_open(port, session, &echo::AID).is_ok());
    // The applet that is selected by default is always there.
    let implicit = rig.channel_or_error(port, open_basic(session, None));
    assert_eq!(implicit, Err(ErrorKind::Security));
}

#[test]
fn the_next_applet_is_one_that_the_rules_allow_or_none() {
    let next = |channel| RequestBody::SelectNext {
        channel,
        timeout_ms: None,
    };
    // Of the four echo applets, the second and the fourth are others'.
    let mut rig = rig_with_rules(AraM::with_rules(
        [
            ara_m::rule(Some(&echo::AID), &[], &ALWAYS),
            ara_m::rule(Some(&echo::SECOND_AID), &[0xAA; 32], &ALWAYS),
            ara_m::rule(Some(&echo::WARNING_AID), &[], &ALWAYS),
        ]
        .concat(),
    ));
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &echo::AID[..6]).unwrap();
    let Ok(ReplyBody::Response(second)) = rig.ask(port, next(channel)) else {
        panic!("the third applet");
    };
    let name = fci::df_name(&second[..second.len() - 2]).unwrap().unwrap();
    assert_eq!(name.as_bytes(), echo::WARNING_AID);
    assert!(rig.try_send(port, channel, &[0x00, 0x10, 0, 0]).is_ok());
    assert_eq!(
        error(rig.ask(port, next(channel))),
        ErrorKind::NoApplication
    );
    // The one before is selected again, though the card had gone on to others.
    assert_eq!(
        rig.try_send(port, channel, &[0x00, 0x12, 7, 8]),
        Ok(vec![0x90, 0x00])
    );
    let commands_reached_others = rig.try_send(port, channel, &[0x00, 0x12, 7, 8, 0]);
    assert_eq!(commands_reached_others, Ok(vec![7, 8, 0x90, 0x00]));
}

#[test]
fn commands_that_wait_behind_select_next_are_asked_about_again() {
    let filter = [0x00, 0x10, 0x00, 0x00, 0xFF, 0xFF, 0x00, 0x00];
    let mut rig = rig_with_rules(AraM::with_rules(
        [
            ara_m::rule(Some(&echo::AID), &[], &ALWAYS),
            ara_m::rule(Some(&echo::SECOND_AID), &[], &filter),
        ]
        .concat(),
    ));
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &echo::AID[..7]).unwrap();
    let body = |ins| RequestBody::Transmit {
        channel,
        command: Command::Raw(vec![0x00, ins, 0, 0]),
        timeout_ms: None,
    };
    let before = rig.send(port, body(0x12));
    let next = rig.send(
        port,
        RequestBody::SelectNext {
            channel,
            timeout_ms: None,
        },
    );
    let refused = rig.send(port, body(0x12));
    let allowed = rig.send(port, body(0x10));
    rig.settle();
    assert!(rig.take(port, before).unwrap().is_ok());
    assert!(rig.take(port, next).unwrap().is_ok());
    assert_eq!(rig.kind(port, refused), Some(ErrorKind::Security));
    assert!(rig.take(port, allowed).unwrap().is_ok());
}

#[test]
fn rules_that_cannot_be_read_close_the_element_to_everybody() {
    for rules in [
        // A value that no such rule has; an answer that is none; one that is too long; a failure.
        AraM::with_rules(ara_m::rule(Some(&echo::AID), &[], &[0x02])),
        AraM::with_answer(vec![0xFF, 0x40, 0x05, 0xE2]),
        AraM::with_answer(vec![0x00; 20]),
        AraM::sample().with_failure(StatusWord(0x6F00)),
    ] {
        let mut rig = rig_with_rules(rules);
        let (port, session) = rig.visit(ORIGIN);
        for _ in 0..2 {
            assert_eq!(
                rig.try_open(port, session, &echo::AID),
                Err(ErrorKind::Security)
            );
        }
        assert_eq!(rig.card().open_channels(), 0);
    }
}

#[test]
fn an_ara_m_without_rules_allows_nothing() {
    let mut rig = rig_with_rules(AraM::with_rules(vec![]));
    let (port, session) = rig.visit(ORIGIN);
    assert_eq!(
        rig.try_open(port, session, &echo::AID),
        Err(ErrorKind::Security)
    );
}

#[test]
fn rules_that_change_hold_from_the_next_channel_on() {
    let mut rig = rig_with_rules(AraM::with_rules(ara_m::rule(
        Some(&echo::AID),
        &[],
        &ALWAYS,
    )));
    let (port, session) = rig.visit(ORIGIN);
    let first = rig.try_open(port, session, &echo::AID).unwrap();
    assert_eq!(
        rig.try_open(port, session, &pin::AID),
        Err(ErrorKind::Security)
    );
    // The card's issuer stores another rule, and deletes the first.
    let store = |rig: &mut Rig, data: &[u8]| {
        let card = &mut rig.card().card;
        let select = [&[0x00, 0xA4, 0x04, 0x00, 9][..], &ara_m::AID].concat();
        assert!(card.transmit(&select).ends_with(&[0x90, 0x00]));
        let length = data.len() as u8;
        let command = [&[0x80, 0xE2, 0x90, 0x00, length][..], data].concat();
        assert_eq!(card.transmit(&command), [0x90, 0x00]);
    };
    let rule = ara_m::rule(Some(&pin::AID), &[], &ALWAYS);
    let length = rule.len() as u8;
    store(&mut rig, &[&[0xF0, length][..], &rule].concat());
    assert!(rig.try_open(port, session, &pin::AID).is_ok());
    store(&mut rig, &[0xF1, 0x00]);
    assert_eq!(
        rig.try_open(port, session, &echo::AID),
        Err(ErrorKind::Security)
    );
    // What was opened before stays as it was.
    assert!(rig.try_send(port, first, &[0x00, 0x12, 0, 0]).is_ok());
}

#[test]
fn a_card_without_logical_channels_has_its_rules_read_on_the_basic_one() {
    let mut card = VirtualCard::from_profile("basic-channel-only").unwrap();
    card.install(Box::new(AraM::with_rules(
        [
            ara_m::rule(Some(&echo::AID), &[], &ALWAYS),
            ara_m::rule(None, &[], &ALWAYS),
        ]
        .concat(),
    )));
    let mut rig = Rig::with_card(Some(access("", None)), card);
    let (port, session) = rig.visit(ORIGIN);
    let basic = |aid: Option<&[u8]>| open_basic(session, aid);
    let supplementary = rig.try_open(port, session, &echo::AID);
    assert_eq!(supplementary, Err(ErrorKind::NoChannel));
    assert_eq!(
        rig.channel_or_error(port, basic(Some(&pin::AID))),
        Err(ErrorKind::Security)
    );
    let channel = rig.channel_or_error(port, basic(Some(&echo::AID))).unwrap();
    assert!(rig.try_send(port, channel, &[0x00, 0x12, 0, 0]).is_ok());
    rig.ask(port, RequestBody::CloseChannel(channel)).unwrap();
    // The implicitly selected applet is the default one, not that which has the rules.
    let channel = rig.channel_or_error(port, basic(None)).unwrap();
    let life_cycle = rig
        .try_send(port, channel, &[0x80, 0xCA, 0x9F, 0x7F, 0x00])
        .unwrap();
    assert!(life_cycle.ends_with(&[0x90, 0x00]));
}

#[test]
fn no_free_channel_for_the_rules_is_no_channel_and_no_refusal() {
    let mut rig = rig_with_rules(AraM::with_rules(ara_m::rule(
        Some(&echo::AID),
        &[],
        &ALWAYS,
    )));
    let (port, session) = rig.visit(ORIGIN);
    for _ in 0..19 {
        rig.try_open(port, session, &echo::AID).unwrap();
    }
    assert_eq!(
        rig.try_open(port, session, &echo::AID),
        Err(ErrorKind::NoChannel)
    );
    assert_eq!(
        rig.try_open(port, session, &pin::AID),
        Err(ErrorKind::NoChannel)
    );
    // The basic one is free still, for the rules first.
    let refused = rig.channel_or_error(port, open_basic(session, Some(&pin::AID)));
    assert_eq!(refused, Err(ErrorKind::Security));
    let basic = rig.channel_or_error(port, open_basic(session, Some(&echo::AID)));
    assert!(basic.is_ok());
    assert_eq!(
        rig.channel_or_error(port, open_basic(session, Some(&echo::AID))),
        Err(ErrorKind::NoChannel)
    );
    let answer = rig.try_send(port, basic.unwrap(), &[0x00, 0x12, 7, 8, 0]);
    assert_eq!(answer, Ok(vec![7, 8, 0x90, 0x00]));
}

#[test]
fn rules_are_read_again_after_a_failure_of_the_reader_and_after_a_reset() {
    let mut rig = rig_with_rules(AraM::sample());
    let (port, session) = rig.visit(ORIGIN);
    let request = rig.send(port, open(session, &echo::AID));
    let worker = rig.worker(&embedded()).unwrap();
    rig.answer(worker);
    rig.fail(worker, WorkerError::Timeout);
    rig.settle();
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
    assert_eq!(rig.card().open_channels(), 0);
    assert!(rig.try_open(port, session, &echo::AID).is_ok());

    assert!(rig.ask(port, RequestBody::Reset(ReaderId(0))).is_ok());
    // Meanwhile the card has got other rules, with the same tag.
    rig.card().card.install(Box::new(AraM::with_rules(vec![])));
    let session = rig.open_session(port);
    assert_eq!(
        rig.try_open(port, session, &echo::AID),
        Err(ErrorKind::Security)
    );
}

#[test]
fn without_rules_on_the_card_those_of_the_device_decide() {
    let rules = r#"
        [[rule]]
        origin = "https://bank.example"
        aid = "F0534552564F0101"
        apdu = [{ header = "00100000", mask = "FFFF0000" }]

        [[rule]]
        origin = "https://bank.example"
        aid = "default"
        element = "ese"
        apdu = "always"
    "#;
    let mut rig = rig_without_rules(access(rules, None));
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &echo::AID).unwrap();
    assert!(rig.try_send(port, channel, &[0x00, 0x10, 0, 0]).is_ok());
    let refused = rig.try_send(port, channel, &[0x00, 0x12, 0, 0]);
    assert_eq!(refused, Err(ErrorKind::Security));
    for aid in [&echo::SECOND_AID[..], &[], b"\xF0NOBODY"] {
        assert_eq!(rig.try_open(port, session, aid), Err(ErrorKind::Security));
    }
    assert!(
        rig.channel_or_error(port, open_basic(session, None))
            .is_ok()
    );
    let (other, session) = rig.visit(SHOP);
    assert_eq!(
        rig.try_open(other, session, &echo::AID),
        Err(ErrorKind::Security)
    );
}

#[test]
fn what_a_prompt_may_allow_automation_allows_and_nothing_else() {
    let mut rig = rig_without_rules(access("", Some(WhenNoRules::Ask)));
    let (port, session) = rig.visit(ORIGIN);
    assert!(rig.try_open(port, session, &echo::AID).is_ok());
    assert!(rig.try_open(port, session, &echo::AID[..3]).is_ok());
    assert_eq!(rig.try_open(port, session, &[]), Err(ErrorKind::Security));
    assert_eq!(
        rig.try_open(port, session, &issuer::AID),
        Err(ErrorKind::Security)
    );
    assert_eq!(
        rig.try_open(port, session, &issuer::AID[..3]),
        Err(ErrorKind::Security)
    );
    assert_eq!(
        rig.channel_or_error(port, open_basic(session, None)),
        Err(ErrorKind::Security)
    );
    for when_no_rules in [None, Some(WhenNoRules::Deny)] {
        let mut rig = rig_without_rules(access("", when_no_rules));
        let (port, session) = rig.visit(ORIGIN);
        assert_eq!(
            rig.try_open(port, session, &echo::AID),
            Err(ErrorKind::Security)
        );
    }
}

const PIN: &[u8] = b"1234";
const WRONG: &[u8] = b"9999";

/// A rig in which everybody may use the PIN applet.
fn rig_with_pin() -> Rig {
    rig_with_rules(AraM::with_rules(
        [
            ara_m::rule(Some(&pin::AID), &[], &ALWAYS),
            ara_m::rule(Some(&echo::AID), &[], &ALWAYS),
        ]
        .concat(),
    ))
}

fn verify(pin: &[u8]) -> Vec<u8> {
    [&[0x00, 0x20, 0x00, 0x80, pin.len() as u8][..], pin].concat()
}

#[test]
fn no_page_spends_the_last_try() {
    let mut rig = rig_with_pin();
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    assert_eq!(
        rig.try_send(port, channel, &verify(WRONG)),
        Ok(vec![0x63, 0xC2])
    );
    assert_eq!(
        rig.try_send(port, channel, &verify(WRONG)),
        Ok(vec![0x63, 0xC1])
    );
    // Whatever is tried with it, and by whomever.
    let change = [&[0x00, 0x24, 0x00, 0x80, 8][..], WRONG, PIN].concat();
    for command in [verify(WRONG), verify(PIN), change] {
        let refused = rig.try_send(port, channel, &command);
        assert_eq!(refused, Err(ErrorKind::Security));
    }
    rig.input(Input::ClosePort(port));
    rig.settle();
    let (port, session) = rig.visit(SHOP);
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    let refused = rig.try_send(port, channel, &verify(PIN));
    assert_eq!(refused, Err(ErrorKind::Security));
    // Asking is free, and so is the other counter.
    assert_eq!(
        rig.try_send(port, channel, &[0x00, 0x20, 0x00, 0x80]),
        Ok(vec![0x63, 0xC1])
    );
    let unblock = [&[0x00, 0x2C, 0x00, 0x80, 12][..], b"12345678", PIN].concat();
    assert_eq!(rig.try_send(port, channel, &unblock), Ok(vec![0x90, 0x00]));
}

#[test]
fn the_last_try_is_known_of_before_anything_is_tried() {
    let mut rig = rig_with_pin();
    // Somebody else has spent the others.
    let (port, session) = rig.visit(ORIGIN);
    for command in [
        [&[0x00, 0xA4, 0x04, 0x00, 8][..], &pin::AID].concat(),
        verify(WRONG),
        verify(WRONG),
    ] {
        rig.card().card.transmit(&command);
    }
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    let refused = rig.try_send(port, channel, &verify(PIN));
    assert_eq!(refused, Err(ErrorKind::Security));
    let left = rig.try_send(port, channel, &[0x00, 0x52, 0, 0, 0]).unwrap();
    assert_eq!(left[0], 1);
}

#[test]
fn a_right_pin_brings_the_tries_back() {
    let mut rig = rig_with_pin();
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    for _ in 0..3 {
        assert_eq!(
            rig.try_send(port, channel, &verify(WRONG)),
            Ok(vec![0x63, 0xC2])
        );
        assert_eq!(
            rig.try_send(port, channel, &verify(PIN)),
            Ok(vec![0x90, 0x00])
        );
    }
}

#[test]
fn what_one_origin_has_unlocked_does_not_serve_another() {
    let mut rig = rig_with_pin();
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    assert_eq!(
        rig.try_send(port, channel, &verify(PIN)),
        Ok(vec![0x90, 0x00])
    );
    // Not while the first one is there.
    let (other, theirs) = rig.visit(SHOP);
    assert_eq!(
        rig.try_open(other, theirs, &echo::AID),
        Err(ErrorKind::Security)
    );
    // Its own pages go on.
    let (again, own) = rig.visit(ORIGIN);
    assert!(rig.try_open(again, own, &echo::AID).is_ok());
    for port in [port, again, other] {
        rig.input(Input::ClosePort(port));
    }
    rig.settle();
    let resets = rig.card().resets();
    let (other, theirs) = rig.visit(SHOP);
    assert_eq!(rig.card().resets(), resets + 1);
    assert!(rig.try_open(other, theirs, &echo::AID).is_ok());
}

/// Applets that begin with F0 SERVO 01: the first is everybody's, the second another origin's, and a third is not found.
fn rig_with_a_sibling() -> Rig {
    rig_with_rules(AraM::with_rules(
        [
            ara_m::rule(Some(&echo::AID), &[], &ALWAYS),
            ara_m::rule(Some(&echo::SECOND_AID), &[0xAA; 32], &ALWAYS),
        ]
        .concat(),
    ))
}

fn transmit_raw(channel: ChannelId, command: &[u8]) -> RequestBody {
    RequestBody::Transmit {
        channel,
        command: Command::Raw(command.to_vec()),
        timeout_ms: None,
    }
}

#[test]
fn a_channel_that_is_closed_meanwhile_brings_no_command_to_an_applet_that_is_passed_over() {
    let next = |channel| RequestBody::SelectNext {
        channel,
        timeout_ms: None,
    };
    // When it is closed: after so many answers of the card to `selectNext()`.
    for answers in 0..3 {
        let mut rig = rig_with_a_sibling();
        let (port, session) = rig.visit(ORIGIN);
        let channel = rig.try_open(port, session, &echo::AID[..7]).unwrap();
        let selecting = rig.send(port, next(channel));
        let waiting = rig.send(
            port,
            transmit_raw(channel, &[0x00, echo::INS_COUNT, 0, 0, 4]),
        );
        let worker = rig.worker(&embedded()).unwrap();
        for _ in 0..answers {
            assert!(rig.answer(worker));
        }
        let closing = rig.send(port, RequestBody::CloseChannel(channel));
        rig.settle();
        assert!(rig.take(port, selecting).unwrap().is_err());
        assert!(rig.take(port, closing).unwrap().is_ok());
        // The first applet is selected again before it is the command's turn, or the command is refused.
        match rig.take(port, waiting).unwrap() {
            Ok(ReplyBody::Response(answer)) => assert!(answer.ends_with(&[0x90, 0x00])),
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert_eq!(error.kind, ErrorKind::Security),
        }
        // Nothing has reached the second one, which counts for itself.
        let card = &mut rig.card().card;
        card.transmit(&[&[0x00, 0xA4, 4, 0, 8][..], &echo::SECOND_AID].concat());
        let count = card.transmit(&[0x00, echo::INS_COUNT, 0, 0, 4]);
        assert_eq!(count, [0, 0, 0, 0, 0x90, 0x00], "{answers}");
    }
}

#[test]
fn commands_that_were_sent_before_the_channel_was_closed_are_carried_out() {
    let mut rig = rig_with_a_sibling();
    let (port, session) = rig.visit(ORIGIN);
    let channels = [(); 2].map(|()| rig.try_open(port, session, &echo::AID).unwrap());
    // The card has something to do, so everything waits.
    let mut sent = Vec::new();
    for channel in channels {
        let command = |p1| transmit_raw(channel, &[0x00, 0x12, p1, 0, 0]);
        sent.extend((0..3).map(|p1| (p1, rig.send(port, command(p1)))));
    }
    let closing = channels.map(|channel| rig.send(port, RequestBody::CloseChannel(channel)));
    for channel in channels {
        let late = rig.send(port, transmit_raw(channel, &[0x00, 0x12, 3, 0, 0]));
        assert_eq!(rig.kind(port, late), Some(ErrorKind::Closed));
    }
    rig.settle();
    for (p1, request) in sent {
        let answer = rig.take(port, request).unwrap();
        assert_eq!(answer, Ok(ReplyBody::Response(vec![p1, 0, 0x90, 0x00])));
    }
    for request in closing {
        assert_eq!(rig.take(port, request), Some(Ok(ReplyBody::Done)));
    }
    assert_eq!(rig.card().open_channels(), 0);
}

#[test]
fn the_end_of_one_channel_is_not_that_of_another() {
    let mut rig = rig_with_a_sibling();
    let (port, session) = rig.visit(ORIGIN);
    let channels = [(); 2].map(|()| rig.try_open(port, session, &echo::AID).unwrap());
    let mut waiting = Vec::new();
    for channel in channels {
        waiting.push(rig.send(port, transmit_raw(channel, &[0x00, 0x12, 1, 0, 0])));
        rig.send(port, RequestBody::CloseChannel(channel));
    }
    rig.settle();
    for request in waiting {
        assert!(rig.take(port, request).unwrap().is_ok());
    }
    assert_eq!(rig.card().open_channels(), 0);
}

#[test]
fn a_channel_that_cannot_be_brought_back_takes_its_commands_with_it() {
    let mut rig = rig_with_a_sibling();
    let (port, session) = rig.visit(ORIGIN);
    let other = rig.try_open(port, session, &echo::AID).unwrap();
    let channel = rig.try_open(port, session, &echo::AID[..7]).unwrap();
    // SELECT of the next one is as it should be, twice, and that of the first one fails.
    let worker = rig.worker(&embedded()).unwrap();
    let selecting = rig.send(
        port,
        RequestBody::SelectNext {
            channel,
            timeout_ms: None,
        },
    );
    let waiting = rig.send(port, transmit_raw(channel, &[0x00, 0x12, 0, 0]));
    assert!(rig.answer(worker));
    assert!(rig.answer(worker));
    let number = rig.card().card.transmit(&[0x00, 0x70, 0, 0, 1])[0];
    rig.card()
        .card
        .transmit(&[&[number, 0xA4, 4, 0, 8][..], &echo::AID].concat());
    let fault = [
        number,
        echo::INS_FAULT,
        echo::FAULT_NEXT_SELECT,
        0,
        2,
        0x6F,
        0x00,
    ];
    assert_eq!(rig.card().card.transmit(&fault), [0x90, 0x00]);
    rig.settle();
    assert_eq!(rig.kind(port, selecting), Some(ErrorKind::NoApplication));
    assert_eq!(rig.kind(port, waiting), Some(ErrorKind::Closed));
    assert!(rig.try_send(port, other, &[0x00, 0x12, 0, 0]).is_ok());
    // The test's own, and the other one.
    assert_eq!(rig.card().open_channels(), 2);
}

#[test]
fn closing_the_channel_behind_it_does_not_let_a_command_spend_the_last_try() {
    let mut rig = rig_with_pin();
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    for left in [0xC2, 0xC1] {
        let answer = rig.try_send(port, channel, &verify(WRONG));
        assert_eq!(answer, Ok(vec![0x63, left]));
    }
    let other = rig.try_open(port, session, &pin::AID).unwrap();
    let before = rig.send(port, transmit_raw(other, &[0x00, 0x52, 0, 0, 0]));
    let verify = rig.send(port, transmit_raw(channel, &verify(WRONG)));
    rig.send(port, RequestBody::CloseChannel(channel));
    rig.settle();
    assert!(rig.take(port, before).unwrap().is_ok());
    assert_eq!(rig.kind(port, verify), Some(ErrorKind::Security));
    let left = rig.try_send(port, other, &[0x00, 0x52, 0, 0, 0]).unwrap();
    assert_eq!(left[0], 1);
}

#[test]
fn a_basic_channel_that_is_not_reset_is_for_nobody_without_select() {
    let mut rig = rig_with_rules(AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    let helper = rig.try_open(port, session, &echo::AID).unwrap();
    let basic = rig
        .channel_or_error(port, open_basic(session, Some(&pin::AID)))
        .unwrap();
    assert!(rig.try_send(port, basic, &verify(PIN)).is_ok());
    for fault in [echo::FAULT_NEXT_CHANNEL_RESET, echo::FAULT_NEXT_SELECT] {
        let command = [0x00, echo::INS_FAULT, fault, 0, 2, 0x6F, 0x00];
        assert!(rig.try_send(port, helper, &command).is_ok());
    }
    rig.ask(port, RequestBody::CloseChannel(basic)).unwrap();
    let implicit = open_basic(session, None);
    let opened = rig.channel_or_error(port, implicit);
    assert_eq!(opened, Err(ErrorKind::NoChannel));
    // With SELECT something else is there, and when that is closed, the default applet.
    let named = open_basic(session, Some(&echo::AID));
    let basic = rig.channel_or_error(port, named).unwrap();
    rig.ask(port, RequestBody::CloseChannel(basic)).unwrap();
    let implicit = open_basic(session, None);
    assert!(rig.channel_or_error(port, implicit).is_ok());
}

#[test]
fn a_reset_of_the_card_cleans_the_basic_channel() {
    let mut rig = rig_with_rules(AraM::for_everybody());
    for with_sessions in [false, true] {
        let (port, session) = rig.visit(ORIGIN);
        let helper = rig.try_open(port, session, &echo::AID).unwrap();
        for fault in [echo::FAULT_NEXT_CHANNEL_RESET, echo::FAULT_NEXT_SELECT] {
            let command = [0x00, echo::INS_FAULT, fault, 0, 2, 0x6F, 0x00];
            assert!(rig.try_send(port, helper, &command).is_ok());
        }
        // The second fault meets SELECT of the default applet: the first one of this applet is before it.
        let basic = rig
            .channel_or_error(port, open_basic(session, None))
            .unwrap();
        rig.ask(port, RequestBody::CloseChannel(basic)).unwrap();
        let implicit = open_basic(session, None);
        let refused = rig.channel_or_error(port, implicit);
        assert_eq!(refused, Err(ErrorKind::NoChannel));
        if with_sessions {
            rig.ask(port, RequestBody::Reset(ReaderId(0))).unwrap();
        } else {
            rig.ask(port, RequestBody::Shutdown).unwrap();
        }
        let session = rig.open_session(port);
        let implicit = open_basic(session, None);
        assert!(rig.channel_or_error(port, implicit).is_ok());
        rig.input(Input::ClosePort(port));
        rig.settle();
    }
}

#[test]
fn a_password_is_not_tried_for_a_page_that_has_gone() {
    let mut rig = rig_with_pin();
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    let request = rig.send(port, transmit_raw(channel, &verify(WRONG)));
    // The card is asked how many tries are left. Meanwhile the user takes the permission back.
    rig.grant(ORIGIN, false);
    rig.settle();
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Security));
    let card = &mut rig.card().card;
    card.transmit(&[&[0x00, 0xA4, 4, 0, 8][..], &pin::AID].concat());
    assert_eq!(card.transmit(&[0x00, 0x52, 0, 0, 2]), [3, 5, 0x90, 0x00]);
}

#[test]
fn a_basic_channel_on_which_rules_were_read_is_brought_back() {
    let fault = |rig: &mut Rig, kind: u8| {
        let card = &mut rig.card().card;
        let select = [&[0x00, 0xA4, 4, 0, 8][..], &echo::AID].concat();
        assert!(card.transmit(&select).ends_with(&[0x90, 0x00]));
        let command = [0x00, echo::INS_FAULT, kind, 0, 2, 0x6F, 0x00];
        assert_eq!(card.transmit(&command), [0x90, 0x00]);
    };
    let implicit = |rig: &mut Rig, port, session| {
        let opened = rig.channel_or_error(port, open_basic(session, None));
        opened.map(|channel| {
            // Only the issuer security domain knows this.
            let life_cycle = rig.try_send(port, channel, &[0x80, 0xCA, 0x9F, 0x7F, 0]);
            assert_eq!(life_cycle.unwrap().len(), 47);
            rig.ask(port, RequestBody::CloseChannel(channel)).unwrap();
        })
    };
    let card = VirtualCard::from_profile("basic-channel-only").unwrap();
    let mut rig = Rig::with_card(Some(access("", None)), card);
    let (port, session) = rig.visit(ORIGIN);
    let before = rig.commands(&embedded());
    assert_eq!(implicit(&mut rig, port, session), Ok(()));
    // MANAGE CHANNEL, the ARA-M, its tag, the rules, and the way back; the page's command, and the way back.
    assert_eq!(rig.commands(&embedded()) - before, 5 + 2);
    // It cannot be reset, but its default applet can be selected.
    fault(&mut rig, echo::FAULT_NEXT_CHANNEL_RESET);
    assert_eq!(implicit(&mut rig, port, session), Ok(()));
    // Nor that: the ARA-M is nobody's.
    fault(&mut rig, echo::FAULT_NEXT_CHANNEL_RESET);
    fault(&mut rig, echo::FAULT_NEXT_SELECT);
    let refused = implicit(&mut rig, port, session);
    assert_eq!(refused, Err(ErrorKind::NoChannel));
    // Next time it works, and the card is reset for the next one all the same.
    assert_eq!(implicit(&mut rig, port, session), Ok(()));
    let resets = rig.card().resets();
    rig.ask(port, RequestBody::Shutdown).unwrap();
    rig.open_session(port);
    assert_eq!(rig.card().resets(), resets + 1);
}

#[test]
fn no_page_spends_the_last_try_of_an_unblocking_code() {
    let mut rig = rig_with_pin();
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &pin::AID).unwrap();
    let unblock = |puk: &[u8]| [&[0x00, 0x2C, 0x00, 0x80, 12][..], puk, PIN].concat();
    for left in [0xC4, 0xC3, 0xC2, 0xC1] {
        let answer = rig.try_send(port, channel, &unblock(b"00000000"));
        assert_eq!(answer, Ok(vec![0x63, left]));
    }
    let refused = rig.try_send(port, channel, &unblock(b"12345678"));
    assert_eq!(refused, Err(ErrorKind::Security));
    // The PIN has tries of its own.
    let verified = rig.try_send(port, channel, &verify(PIN));
    assert_eq!(verified, Ok(vec![0x90, 0x00]));
}

/// An applet that answers every EXTERNAL AUTHENTICATE with this.
struct Gate(StatusWord);

const GATE: [u8; 8] = *b"\xF0GATE\x00\x00\x01";

impl virtual_card::Applet for Gate {
    fn aid(&self) -> Aid {
        Aid::new(&GATE).unwrap()
    }

    fn process(&mut self, _: ChannelNumber, command: &CommandApdu) -> virtual_card::Outcome {
        match command.header().ins {
            0x82 => self.0.into(),
            _ => StatusWord::INS_NOT_SUPPORTED.into(),
        }
    }
}

#[test]
fn keys_have_tries_and_unlock_too() {
    let authenticate = [0x00, 0x82, 0x00, 0x01, 2, 0xAA, 0xBB];
    let mut rig = rig_with_rules(AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    rig.card().card.install(Box::new(Gate(StatusWord(0x63C1))));
    let channel = rig.try_open(port, session, &GATE).unwrap();
    let answer = rig.try_send(port, channel, &authenticate);
    assert_eq!(answer, Ok(vec![0x63, 0xC1]));
    let refused = rig.try_send(port, channel, &authenticate);
    assert_eq!(refused, Err(ErrorKind::Security));
    // Another key, and it opens.
    rig.card().card.install(Box::new(Gate(StatusWord::OK)));
    let other_key = [0x00, 0x82, 0x00, 0x02, 2, 0xAA, 0xBB];
    let answer = rig.try_send(port, channel, &other_key);
    assert_eq!(answer, Ok(vec![0x90, 0x00]));
    let (other, theirs) = rig.visit(SHOP);
    let refused = rig.try_open(other, theirs, &echo::AID);
    assert_eq!(refused, Err(ErrorKind::Security));
}

#[test]
fn what_is_selected_again_is_what_was_selected_before() {
    let mut rig = rig_with_rules(AraM::with_rules(
        [
            ara_m::rule(Some(&echo::AID), &[], &ALWAYS),
            ara_m::rule(Some(&echo::SECOND_AID), &[0xAA; 32], &ALWAYS),
            ara_m::rule(Some(&[&echo::AID[..7], b"\x7F"].concat()), &[], &ALWAYS),
        ]
        .concat(),
    ));
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &echo::AID[..7]).unwrap();
    let worker = rig.worker(&embedded()).unwrap();
    let next = RequestBody::SelectNext {
        channel,
        timeout_ms: None,
    };
    let request = rig.send(port, next);
    assert!(rig.answer(worker));
    assert!(rig.answer(worker));
    // The card says that it has selected the third one, which the origin may use.
    let card = &mut rig.card().card;
    let number = card.transmit(&[0x00, 0x70, 0, 0, 1])[0];
    card.transmit(&[&[number, 0xA4, 4, 0, 8][..], &echo::AID].concat());
    let answer = [
        &[0x6F, 10, 0x84, 8][..],
        &echo::AID[..7],
        &[0x7F, 0x90, 0x00],
    ]
    .concat();
    let length = answer.len() as u8;
    let header = [number, echo::INS_FAULT, echo::FAULT_NEXT_SELECT, 0, length];
    assert_eq!(
        card.transmit(&[&header[..], &answer].concat()),
        [0x90, 0x00]
    );
    rig.settle();
    assert_eq!(rig.kind(port, request), Some(ErrorKind::NoApplication));
    let closed = rig.try_send(port, channel, &[0x00, 0x12, 0, 0]);
    assert_eq!(closed, Err(ErrorKind::Closed));
}
