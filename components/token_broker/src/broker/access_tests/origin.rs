/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Applets that are told the origin.

use std::sync::{Arc, Mutex};

use secure_element::origin::{
    ANNOUNCEMENT, INS_PRESENT_ORIGIN, OBJECT_IDENTIFIER, PROPRIETARY_INFORMATION,
};
use secure_element::tlv;
use virtual_card::applets::origin::{
    self, INS_GET_SECRET, INS_MY_SLOTS, OriginAware, SAMPLE_SECRET,
};
use virtual_card::{Applet, Outcome, Selection};

use super::*;

/// What reaches an applet.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Event {
    /// With this P2.
    Selected(u8),
    Told(String),
    /// Its instruction.
    Command(u8),
}

use Event::{Command as Sent, Selected as Chosen, Told};

type Events = Arc<Mutex<Vec<Event>>>;

/// An applet that notes what reaches it.
struct Witness {
    aid: Aid,
    announces: bool,
    /// What it answers when it is told the origin.
    verdict: StatusWord,
    events: Events,
}

impl Witness {
    fn new(aid: &[u8]) -> Self {
        Self {
            aid: Aid::new(aid).unwrap(),
            announces: true,
            verdict: StatusWord::OK,
            events: Events::default(),
        }
    }

    fn events(&self) -> Events {
        self.events.clone()
    }
}

impl Applet for Witness {
    fn aid(&self) -> Aid {
        self.aid
    }

    fn select(&mut self, _: ChannelNumber, p2: u8) -> Selection {
        self.events.lock().unwrap().push(Chosen(p2));
        let mut announcement = Vec::new();
        let mut control_information = Vec::new();
        if self.announces {
            tlv::write(&mut announcement, OBJECT_IDENTIFIER, &ANNOUNCEMENT);
            tlv::write(
                &mut control_information,
                PROPRIETARY_INFORMATION,
                &announcement,
            );
        }
        Selection {
            control_information,
            ..Selection::default()
        }
    }

    fn process(&mut self, _: ChannelNumber, command: &CommandApdu) -> Outcome {
        let header = command.header();
        let (event, status) = match header.ins {
            INS_PRESENT_ORIGIN => {
                assert_eq!(header.cla & 0x80, 0x80);
                assert_eq!((header.p1, header.p2), (0, 0));
                let origin = String::from_utf8(command.data().to_vec()).unwrap();
                (Told(origin), self.verdict)
            }
            ins => (Sent(ins), StatusWord::OK),
        };
        self.events.lock().unwrap().push(event);
        status.into()
    }
}

const FIRST: [u8; 8] = *b"\xF0WITNES\x01";
const SECOND: [u8; 8] = *b"\xF0WITNES\x02";
const THIRD: [u8; 8] = *b"\xF0WITNES\x03";

fn rig_with(witnesses: Vec<Witness>, rules: AraM) -> Rig {
    let mut card = VirtualCard::from_profile("default").unwrap();
    for witness in witnesses {
        card.install(Box::new(witness));
    }
    card.install(Box::new(rules));
    Rig::with_card(Some(access("", None)), card)
}

fn told(origin: &str) -> Event {
    Told(origin.to_owned())
}

fn taken(events: &Events) -> Vec<Event> {
    std::mem::take(&mut *events.lock().unwrap())
}

fn open_as(session: SessionId, aid: &[u8], p2: u8) -> RequestBody {
    RequestBody::OpenChannel {
        session,
        channel_type: ChannelType::Supplementary,
        aid: Some(aid.to_vec()),
        p2,
    }
}

fn next(channel: ChannelId) -> RequestBody {
    RequestBody::SelectNext {
        channel,
        timeout_ms: None,
    }
}

fn raw(channel: ChannelId, command: &[u8]) -> RequestBody {
    RequestBody::Transmit {
        channel,
        command: Command::Raw(command.to_vec()),
        timeout_ms: None,
    }
}

#[test]
fn the_card_gives_a_secret_to_its_origin_and_its_refusal_reaches_others() {
    let mut rig = rig_with(vec![], AraM::for_everybody());
    let get_secret = [0x80, INS_GET_SECRET, 0, 0, 0];
    let (wallet, session) = rig.visit(WALLET);
    let own = rig.try_open(wallet, session, &origin::AID).unwrap();
    let secret = [&SAMPLE_SECRET[..], &[0x90, 0x00]].concat();
    assert_eq!(rig.try_send(wallet, own, &get_secret), Ok(secret.clone()));

    let (shop, session) = rig.visit(SHOP);
    let theirs = rig.try_open(shop, session, &origin::AID).unwrap();
    let refusal = Ok(vec![0x69, 0x82]);
    assert_eq!(rig.try_send(shop, theirs, &get_secret), refusal);
    let slots = rig.try_send(shop, theirs, &[0x80, INS_MY_SLOTS, 0, 0, 0]);
    assert_eq!(slots, Ok(vec![0x90, 0x00]));
    // Nothing that a page sends makes it another.
    for (ins, class) in [
        (INS_PRESENT_ORIGIN, 0x80),
        (INS_PRESENT_ORIGIN, 0x00),
        (INS_PRESENT_ORIGIN, 0x90),
        (INS_PRESENT_ORIGIN, 0xC3),
        (0xC2, 0x00),
        (0xC3, 0x80),
    ] {
        let data = WALLET.as_bytes();
        let command = [&[class, ins, 0, 0, data.len() as u8][..], data].concat();
        let sent = rig.try_send(shop, theirs, &command);
        assert_eq!(sent, Err(ErrorKind::Security), "{class:02X} {ins:02X}");
    }
    assert_eq!(rig.try_send(shop, theirs, &get_secret), refusal);
    assert_eq!(rig.try_send(wallet, own, &get_secret), Ok(secret));
}

#[test]
fn the_origin_comes_first_whatever_the_page_wants_select_to_answer() {
    let witness = Witness::new(&FIRST);
    let events = witness.events();
    let mut rig = rig_with(vec![witness], AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    for (p2, tag) in [
        (0x00, Some(0x6F)),
        (0x04, Some(0x62)),
        (0x08, Some(0x64)),
        (0x0C, None),
    ] {
        let Ok(ReplyBody::Channel(channel)) = rig.ask(port, open_as(session, &FIRST[..6], p2))
        else {
            panic!("no channel");
        };
        let answer = channel.open_response.unwrap();
        assert_eq!(answer.first().copied(), tag.or(Some(0x90)));
        assert!(rig.try_send(port, channel.id, &[0x00, 0x77, 0, 0]).is_ok());
        let expected = match p2 {
            0x00 => vec![Chosen(0), told(ORIGIN), Sent(0x77)],
            p2 => vec![Chosen(0), Chosen(p2), told(ORIGIN), Sent(0x77)],
        };
        assert_eq!(taken(&events), expected);
    }
}

#[test]
fn an_applet_that_does_not_want_to_know_is_not_told() {
    let witness = Witness {
        announces: false,
        ..Witness::new(&FIRST)
    };
    let events = witness.events();
    let mut rig = rig_with(vec![witness], AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &FIRST).unwrap();
    // What would be reserved is its own.
    for ins in [INS_PRESENT_ORIGIN, 0xC2] {
        assert!(rig.try_send(port, channel, &[0x80, ins, 0, 0]).is_ok());
    }
    assert_eq!(taken(&events), [Chosen(0), told(""), Sent(0xC2)]);
}

#[test]
fn a_refusal_is_a_security_error_and_leaves_no_channel() {
    for verdict in [0x6982, 0x6A80, 0x6985, 0x6D00, 0x6200, 0x63C1, 0x6100] {
        let witness = Witness {
            verdict: StatusWord(verdict),
            ..Witness::new(&FIRST)
        };
        let events = witness.events();
        let mut rig = rig_with(vec![witness], AraM::for_everybody());
        let (port, session) = rig.visit(ORIGIN);
        let opened = rig.try_open(port, session, &FIRST);
        assert_eq!(opened, Err(ErrorKind::Security), "{verdict:04X}");
        assert_eq!(taken(&events), [Chosen(0), told(ORIGIN)]);
        assert_eq!(rig.card().open_channels(), 0);
        let basic = rig.channel_or_error(port, open_basic(session, Some(&FIRST)));
        assert_eq!(basic, Err(ErrorKind::Security));
        // It is not selected there any more.
        let channel = rig
            .channel_or_error(port, open_basic(session, None))
            .unwrap();
        taken(&events);
        rig.try_send(port, channel, &[0x00, 0x77, 0, 0]).unwrap();
        assert_eq!(taken(&events), []);
    }
}

#[test]
fn an_applet_that_the_rules_refuse_is_not_told() {
    let witness = Witness::new(&FIRST);
    let events = witness.events();
    let rules = ara_m::rule(Some(&FIRST), &[0xAA; 32], &ALWAYS);
    let rules = [rules, ara_m::rule(Some(&[]), &[], &ALWAYS)].concat();
    let mut rig = rig_with(vec![witness], AraM::with_rules(rules));
    let (port, session) = rig.visit(ORIGIN);
    assert!(rig.try_open(port, session, &FIRST[..5]).is_err());
    assert_eq!(taken(&events), [Chosen(0)]);
}

#[test]
fn an_applet_that_the_rules_refuse_by_its_whole_aid_is_not_even_selected() {
    let aid = *b"\xF0SIXTEEN BYTES..";
    let witness = Witness::new(&aid);
    let events = witness.events();
    let rules = ara_m::rule(Some(&aid), &[0xAA; 32], &ALWAYS);
    let rules = [rules, ara_m::rule(Some(&[]), &[], &ALWAYS)].concat();
    let mut rig = rig_with(vec![witness], AraM::with_rules(rules));
    let (port, session) = rig.visit(ORIGIN);
    let refused = rig.try_open(port, session, &aid);
    assert_eq!(refused, Err(ErrorKind::NoApplication));
    assert_eq!(taken(&events), []);
}

#[test]
fn a_channel_that_is_used_again_is_for_the_new_origin() {
    let witness = Witness::new(&FIRST);
    let events = witness.events();
    let mut rig = rig_with(vec![witness], AraM::for_everybody());
    for (basic, origin) in [
        (false, WALLET),
        (false, SHOP),
        (true, WALLET),
        (true, SHOP),
        (false, WALLET),
    ] {
        let (port, session) = rig.visit(origin);
        let body = match basic {
            true => open_basic(session, Some(&FIRST)),
            false => open(session, &FIRST),
        };
        let channel = rig.channel_or_error(port, body).unwrap();
        assert!(rig.try_send(port, channel, &[0x00, 0x77, 0, 0]).is_ok());
        assert_eq!(taken(&events), [Chosen(0), told(origin), Sent(0x77)]);
        rig.ask(port, RequestBody::CloseChannel(channel)).unwrap();
    }
    assert_eq!(rig.card().open_channels(), 0);
}

#[test]
fn each_next_applet_is_told_too() {
    let witnesses = [&FIRST, &SECOND, &THIRD].map(|aid| Witness {
        announces: *aid != SECOND,
        ..Witness::new(aid)
    });
    let [first, second, third] = [0, 1, 2].map(|index: usize| witnesses[index].events());
    let mut rig = rig_with(witnesses.into(), AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    for p2 in [0x00, 0x04, 0x0C] {
        let body = open_as(session, &FIRST[..7], p2);
        let channel = rig.channel_or_error(port, body).unwrap();
        let selected = |next: u8| match p2 {
            0 => vec![Chosen(next)],
            p2 => vec![Chosen(next), Chosen(p2)],
        };
        assert_eq!(taken(&first), [selected(0), vec![told(ORIGIN)]].concat());

        let Ok(ReplyBody::Response(answer)) = rig.ask(port, next(channel)) else {
            panic!("no second applet");
        };
        assert_eq!(answer.len() == 2, p2 == 0x0C);
        // This one has the instruction for itself.
        assert!(
            rig.try_send(port, channel, &[0x80, INS_PRESENT_ORIGIN, 0, 0])
                .is_ok()
        );
        assert_eq!(taken(&second), [selected(2), vec![told("")]].concat());

        assert!(rig.ask(port, next(channel)).is_ok());
        let reserved = rig.try_send(port, channel, &[0x80, INS_PRESENT_ORIGIN, 0, 0]);
        assert_eq!(reserved, Err(ErrorKind::Security));
        assert!(rig.try_send(port, channel, &[0x00, 0x77, 0, 0]).is_ok());
        let expected = [selected(2), vec![told(ORIGIN), Sent(0x77)]].concat();
        assert_eq!(taken(&third), expected);
        // Nothing follows, and the last one stays, for the same origin.
        let end = error(rig.ask(port, next(channel)));
        assert_eq!(end, ErrorKind::NoApplication);
        assert!(rig.try_send(port, channel, &[0x00, 0x77, 0, 0]).is_ok());
        assert_eq!(taken(&third), [Sent(0x77)]);
        rig.ask(port, RequestBody::CloseChannel(channel)).unwrap();
    }
}

#[test]
fn a_next_applet_that_refuses_ends_the_channel() {
    let second = Witness {
        verdict: StatusWord(0x6982),
        ..Witness::new(&SECOND)
    };
    let events = second.events();
    let mut rig = rig_with(vec![Witness::new(&FIRST), second], AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &FIRST[..7]).unwrap();
    // Commands wait behind it: they are for what will be selected, if it is.
    let selecting = rig.send(port, next(channel));
    let waiting = rig.send(port, raw(channel, &[0x00, 0x77, 0, 0]));
    rig.settle();
    assert_eq!(rig.kind(port, selecting), Some(ErrorKind::Security));
    assert_eq!(rig.kind(port, waiting), Some(ErrorKind::Closed));
    assert_eq!(taken(&events), [Chosen(2), told(ORIGIN)]);
    let closed = rig.try_send(port, channel, &[0x00, 0x77, 0, 0]);
    assert_eq!(closed, Err(ErrorKind::Closed));
    assert_eq!(rig.card().open_channels(), 0);
}

#[test]
fn an_applet_that_is_selected_again_is_told_again() {
    for (verdict, expected) in [
        (0x9000, ErrorKind::NoApplication),
        (0x6985, ErrorKind::Security),
    ] {
        let witness = Witness::new(&FIRST);
        let events = witness.events();
        // The second one is another origin's.
        let rules = [
            ara_m::rule(Some(&FIRST), &[], &ALWAYS),
            ara_m::rule(Some(&SECOND), &[0xAA; 32], &ALWAYS),
        ];
        let second = Witness::new(&SECOND);
        let untold = second.events();
        let mut rig = rig_with(vec![witness, second], AraM::with_rules(rules.concat()));
        let (port, session) = rig.visit(ORIGIN);
        let body = open_as(session, &FIRST[..7], 0x0C);
        let channel = rig.channel_or_error(port, body).unwrap();
        taken(&events);
        let mut replaced = Witness::new(&FIRST);
        replaced.verdict = StatusWord(verdict);
        replaced.events = events.clone();
        rig.card().card.install(Box::new(replaced));
        assert_eq!(error(rig.ask(port, next(channel))), expected);
        assert_eq!(taken(&events), [Chosen(0), told(ORIGIN)]);
        assert_eq!(taken(&untold), [Chosen(2)]);
        let sent = rig.try_send(port, channel, &[0x00, 0x77, 0, 0]);
        let reserved = rig.try_send(port, channel, &[0x00, INS_PRESENT_ORIGIN, 0, 0]);
        if verdict == 0x9000 {
            assert!(sent.is_ok());
            assert_eq!(reserved, Err(ErrorKind::Security));
            assert_eq!(taken(&events), [Sent(0x77)]);
        } else {
            assert_eq!(
                (sent, reserved),
                (Err(ErrorKind::Closed), Err(ErrorKind::Closed))
            );
            assert_eq!(taken(&events), []);
            assert_eq!(rig.card().open_channels(), 0);
        }
    }
}

/// Lets the embedded card answer until it is about to get PRESENT ORIGIN, and returns its worker.
fn until_told(rig: &mut Rig, events: &Events) -> WorkerId {
    let worker = rig.worker(&embedded()).unwrap();
    while !matches!(events.lock().unwrap().last(), Some(Chosen(_))) {
        assert!(rig.answer(worker));
    }
    worker
}

#[test]
fn what_ends_while_the_applet_is_told_gets_no_channel() {
    for case in 0..4 {
        let witness = Witness::new(&FIRST);
        let events = witness.events();
        let mut rig = rig_with(vec![witness], AraM::for_everybody());
        let (port, session) = rig.visit(ORIGIN);
        let request = rig.send(port, open(session, &FIRST));
        let worker = until_told(&mut rig, &events);
        let expected = match case {
            0 => {
                rig.fail(worker, WorkerError::Timeout);
                Some(ErrorKind::Io)
            }
            1 => {
                rig.grant(ORIGIN, false);
                Some(ErrorKind::Security)
            }
            2 => {
                rig.input(Input::ClosePort(port));
                None
            }
            _ => {
                rig.send(port, RequestBody::CloseSession(session));
                Some(ErrorKind::Closed)
            }
        };
        rig.settle();
        assert_eq!(rig.kind(port, request), expected, "{case}");
        assert_eq!(rig.card().open_channels(), 0, "{case}");
    }
}

#[test]
fn nothing_reaches_an_applet_that_was_not_told_at_select_next() {
    for error in [
        WorkerError::Timeout,
        WorkerError::ResponseTooLong,
        WorkerError::Busy,
    ] {
        let second = Witness::new(&SECOND);
        let events = second.events();
        let mut rig = rig_with(vec![Witness::new(&FIRST), second], AraM::for_everybody());
        let (port, session) = rig.visit(ORIGIN);
        let channel = rig.try_open(port, session, &FIRST[..7]).unwrap();
        let request = rig.send(port, next(channel));
        let waiting = rig.send(port, raw(channel, &[0x00, 0x77, 0, 0]));
        let worker = until_told(&mut rig, &events);
        rig.fail(worker, error);
        rig.settle();
        assert_eq!(rig.kind(port, request), Some(ErrorKind::Io));
        assert_eq!(rig.kind(port, waiting), Some(ErrorKind::Closed));
        assert_eq!(taken(&events), [Chosen(2)]);
        assert_eq!(rig.card().open_channels(), 0);
    }
}

#[test]
fn a_card_that_knows_no_p2_of_00_gets_the_one_of_the_page() {
    let mut rig = rig_with(vec![], AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    let other = rig.try_open(port, session, &echo::AID).unwrap();
    let rigged = |rig: &mut Rig, status: u16| {
        let [sw1, sw2] = status.to_be_bytes();
        let fault = [
            0x00,
            echo::INS_FAULT,
            echo::FAULT_NEXT_SELECT,
            0,
            2,
            sw1,
            sw2,
        ];
        assert_eq!(rig.try_send(port, other, &fault), Ok(vec![0x90, 0x00]));
    };
    rigged(&mut rig, 0x6A86);
    let opened = rig.channel_or_error(port, open_as(session, &echo::AID, 0x0C));
    assert!(opened.is_ok());
    // The name that the second answer has is as good.
    rigged(&mut rig, 0x6A86);
    let opened = rig.channel_or_error(port, open_as(session, &echo::AID, 0x04));
    let reply = rig.ask(port, next(opened.unwrap()));
    assert_eq!(error(reply), ErrorKind::InvalidState);
    // There is no second attempt where the page wants P2 of 00, or the applet is not there.
    rigged(&mut rig, 0x6A86);
    let opened = rig.channel_or_error(port, open_as(session, &echo::AID, 0x00));
    assert_eq!(opened, Err(ErrorKind::NoApplication));
    rigged(&mut rig, 0x6A82);
    let opened = rig.channel_or_error(port, open_as(session, &echo::AID, 0x0C));
    assert_eq!(opened, Err(ErrorKind::NoApplication));
    // selectNext() needs the name.
    let partial = rig.channel_or_error(port, open_as(session, &echo::AID[..7], 0x0C));
    let partial = partial.unwrap();
    rigged(&mut rig, 0x6A86);
    assert_eq!(error(rig.ask(port, next(partial))), ErrorKind::Unsupported);
    assert!(rig.try_send(port, partial, &[0x00, 0x12, 0, 0]).is_ok());
}

#[test]
fn a_card_that_finds_another_applet_the_second_time_opens_nothing() {
    let mut rig = rig_with(vec![], AraM::for_everybody());
    let (port, session) = rig.visit(ORIGIN);
    let other = rig.try_open(port, session, &echo::AID).unwrap();
    let answer = [&[0x6F, 7, 0x84, 5][..], b"OTHER", &[0x90, 0x00]].concat();
    let header = [
        0x00,
        echo::INS_FAULT,
        echo::FAULT_NEXT_SELECT,
        1,
        answer.len() as u8,
    ];
    let fault = [&header[..], &answer].concat();
    assert!(rig.try_send(port, other, &fault).is_ok());
    let opened = rig.channel_or_error(port, open_as(session, b"\xF0", 0x04));
    assert_eq!(opened, Err(ErrorKind::Io));
    // A card that names nothing the second time is no such case.
    let opened = rig.channel_or_error(port, open_as(session, b"\xF0", 0x0C));
    assert!(opened.is_ok());
    assert_eq!(rig.card().open_channels(), 2);
}

#[test]
fn an_origin_that_personalises_needs_a_channel_without_one() {
    // Nobody has one: the card's issuer fills the slots.
    let mut card = VirtualCard::from_profile("default").unwrap();
    card.install(Box::new(OriginAware::new().with(3, ORIGIN, [7; 16])));
    let mut rig = Rig::with_card(Some(access("", None)), card);
    let (port, session) = rig.visit(ORIGIN);
    let channel = rig.try_open(port, session, &origin::AID).unwrap();
    let slots = rig.try_send(port, channel, &[0x80, INS_MY_SLOTS, 0, 0, 0]);
    assert_eq!(slots, Ok(vec![3, 0x90, 0x00]));
    let fill = [&[0x80, origin::INS_PERSONALISE, 0, 0, 16][..], &[1; 16]].concat();
    assert_eq!(rig.try_send(port, channel, &fill), Ok(vec![0x69, 0x82]));
}
