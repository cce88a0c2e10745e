/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Reading an ARA-M.

use proptest::prelude::*;
use secure_element::access::{
    AppId, AraMReader, AraMStep, Closed, MAX_BYTES, Outcome, RefreshTag, RulesError, Target,
};
use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::class_byte::ChannelNumber;
use secure_element::tlv::TlvError;

use crate::conformance::body;
use crate::{S1, aid, hex, tlv};

const TAG: RefreshTag = RefreshTag([1, 2, 3, 4, 5, 6, 7, 8]);
const RULE: &str = "E20B E1044F00C100 E303D00101";

/// An ARA-M that answers as its parts say.
struct Card {
    refresh_tag: ResponseApdu,
    /// What FF40 and FF60 read out.
    answer: Vec<u8>,
    block: usize,
    /// Status words in place of these answers to FF40 and FF60, counted from 0.
    failures: Vec<(usize, u16)>,
    offset: usize,
    reads: usize,
    commands: Vec<Vec<u8>>,
}

impl Card {
    fn new(answer: Vec<u8>) -> Self {
        let refresh_tag = ResponseApdu::new(tlv(0xDF20, &TAG.0), StatusWord::OK);
        Self {
            refresh_tag,
            answer,
            block: 256,
            failures: Vec::new(),
            offset: 0,
            reads: 0,
            commands: Vec::new(),
        }
    }

    fn with_body(body: &[u8]) -> Self {
        Self::new(tlv(0xFF40, body))
    }

    fn failing(mut self, failures: &[(usize, u16)]) -> Self {
        self.failures = failures.to_vec();
        self
    }

    fn transmit(&mut self, command: &CommandApdu) -> ResponseApdu {
        self.commands.push(command.encode());
        let header = command.header();
        assert_eq!(
            (header.ins, command.data(), command.le()),
            (0xCA, &[][..], Some(256))
        );
        match u16::from_be_bytes([header.p1, header.p2]) {
            0xDF20 => return self.refresh_tag.clone(),
            0xFF40 => self.offset = 0,
            0xFF60 => {}
            other => panic!("{other:04X}"),
        }
        let read = self.reads;
        self.reads += 1;
        if let Some((_, status)) = self.failures.iter().find(|(at, _)| *at == read) {
            return StatusWord(*status).into();
        }
        let rest = &self.answer[self.offset.min(self.answer.len())..];
        let block = rest[..rest.len().min(self.block)].to_vec();
        self.offset += block.len();
        ResponseApdu::new(block, StatusWord::OK)
    }

    fn read_on(&mut self, channel: u8, known: Option<RefreshTag>) -> Outcome {
        let channel = ChannelNumber::new(channel).unwrap();
        let mut step = AraMReader::start(channel, known);
        loop {
            step = match step {
                AraMStep::Send(reader, command) => reader.receive(&self.transmit(&command)),
                AraMStep::Done(outcome) => return outcome,
            };
        }
    }

    fn read(&mut self) -> Outcome {
        self.read_on(1, None)
    }
}

fn closed(outcome: Outcome) -> Closed {
    match outcome {
        Outcome::Closed(closed) => closed,
        other => panic!("{other:?}"),
    }
}

fn allows_everything(outcome: &Outcome) -> bool {
    let Outcome::Rules { rules, .. } = outcome else {
        panic!("{outcome:?}");
    };
    let nobody = AppId::from_hashes(None, None);
    rules
        .channel_access(Target::Application(aid(&S1)), &nobody)
        .allows_channel()
}

#[test]
fn the_commands() {
    let mut card = Card::with_body(&body());
    assert!(matches!(
        card.read(),
        Outcome::Rules {
            refresh_tag: TAG,
            ..
        }
    ));
    let next = [0x81, 0xCA, 0xFF, 0x60, 0x00];
    let mut expected = vec![
        vec![0x81, 0xCA, 0xDF, 0x20, 0x00],
        vec![0x81, 0xCA, 0xFF, 0x40, 0x00],
    ];
    expected.extend(std::iter::repeat_n(next.to_vec(), 6));
    assert_eq!(card.commands, expected);

    for (channel, class) in [(0, 0x80), (3, 0x83), (4, 0xC0), (19, 0xCF)] {
        let mut card = Card::with_body(&hex(RULE));
        assert!(allows_everything(&card.read_on(channel, None)));
        assert!(card.commands.iter().all(|command| command[0] == class));
    }
}

#[test]
fn blocks_of_every_size() {
    for block in [2, 3, 4, 5, 255, 256, 1709] {
        let mut card = Card::with_body(&body());
        card.block = block;
        let outcome = card.read();
        if block == 2 {
            // The first block has the length.
            assert_eq!(closed(outcome), TlvError::Truncated.into_closed());
        } else if block < 5 {
            assert!(matches!(outcome, Outcome::Closed(_)), "{block}");
        } else {
            assert!(allows_everything(&outcome), "{block}");
        }
    }
}

trait IntoClosed {
    fn into_closed(self) -> Closed;
}

impl IntoClosed for TlvError {
    fn into_closed(self) -> Closed {
        RulesError::Tlv(self).into()
    }
}

#[test]
fn every_form_of_the_length() {
    for length in ["0D", "810D", "82000D", "8300000D", "840000000D"] {
        let mut card = Card::new(hex(&format!("FF40 {length} {RULE}")));
        assert!(allows_everything(&card.read()), "{length}");
    }
    for length in ["80", "850000000D0D"] {
        let mut card = Card::new(hex(&format!("FF40 {length} {RULE}")));
        assert_eq!(closed(card.read()), TlvError::InvalidLength.into_closed());
    }
}

/// Rules of exactly 255 bytes, of which cards were seen to write the length as 82 00 FF.
#[test]
fn a_length_of_255_bytes_in_three() {
    let filters = hex("00B00000FFFF0000").repeat(29);
    let rule = crate::ref_ar_do(&[hex("4F00 C100")], &[tlv(0xD0, &filters)]);
    let body = [rule, hex("8006 010203040506")].concat();
    assert_eq!(body.len(), 255);
    let mut card = Card::new([hex("FF40 8200FF"), body].concat());
    assert!(allows_everything(&card.read()));
}

#[test]
fn the_refresh_tag() {
    let mut card = Card::with_body(&hex(RULE));
    assert!(matches!(card.read_on(1, Some(TAG)), Outcome::Unchanged));
    assert_eq!(card.commands.len(), 1);
    let other = Some(RefreshTag([8; 8]));
    assert!(allows_everything(&card.read_on(1, other)));

    for answer in [
        "",
        "DF2007 01020304050607",
        "DF2009 010203040506070809",
        "DF2108 0102030405060708",
        "DF2008 01020304050607",
        "DF2008 0102030405060708 00",
    ] {
        let mut card = Card::with_body(&hex(RULE));
        card.refresh_tag = ResponseApdu::new(hex(answer), StatusWord::OK);
        assert_eq!(closed(card.read()), Closed::RefreshTag, "{answer}");
        assert_eq!(card.commands.len(), 1);
    }
    for status in [0x6A88, 0x6A82, 0x6984, 0x6D00, 0x6282] {
        let mut card = Card::with_body(&hex(RULE));
        card.refresh_tag.status = StatusWord(status);
        assert_eq!(closed(card.read()), Closed::Status(StatusWord(status)));
    }
}

#[test]
fn no_rules() {
    let mut card = Card::with_body(&body()).failing(&[(0, 0x6A88)]);
    assert!(matches!(card.read(), Outcome::NoRules));
    // An answer without rules is an answer: nobody is allowed anything.
    let mut card = Card::with_body(&[]);
    assert!(!allows_everything(&card.read()));
    // In the middle it is no answer.
    let mut card = Card::with_body(&body()).failing(&[(3, 0x6A88)]);
    assert_eq!(closed(card.read()), Closed::Status(StatusWord(0x6A88)));
}

#[test]
fn other_status_words_close_the_element() {
    for status in [
        0x6A82, 0x6982, 0x6985, 0x6D00, 0x6E00, 0x6200, 0x6282, 0x6310, 0x6108, 0x6C10, 0x9001,
    ] {
        for at in [0, 2] {
            let mut card = Card::with_body(&body()).failing(&[(at, status)]);
            assert_eq!(closed(card.read()), Closed::Status(StatusWord(status)));
        }
    }
}

#[test]
fn rules_that_change_are_read_again() {
    for status in [0x6984, 0x6A84] {
        for at in [0, 1, 6] {
            let mut card = Card::with_body(&body()).failing(&[(at, status)]);
            assert!(allows_everything(&card.read()), "{status:04X} {at}");
            // The refresh tag is read again too: it has changed.
            let refresh_tags = card.commands.iter().filter(|command| command[2] == 0xDF);
            assert_eq!(refresh_tags.count(), 2);
        }
    }
}

#[test]
fn rules_that_keep_changing_close_the_element() {
    let failures: Vec<_> = (0..5).map(|at| (at, 0x6984)).collect();
    let mut card = Card::with_body(&body()).failing(&failures);
    assert!(allows_everything(&card.read()));
    let failures: Vec<_> = (0..6).map(|at| (at, 0x6984)).collect();
    let mut card = Card::with_body(&body()).failing(&failures);
    assert_eq!(closed(card.read()), Closed::KeepChanging);
}

#[test]
fn other_lengths_than_announced_close_the_element() {
    // Too few bytes, too many, none.
    let mut card = Card::new([hex("FF40 0E"), hex(RULE)].concat());
    assert_eq!(closed(card.read()), Closed::Length);
    let mut card = Card::new([hex("FF40 0C"), hex(RULE)].concat());
    assert_eq!(closed(card.read()), Closed::Length);
    let mut card = Card::new(Vec::new());
    assert_eq!(closed(card.read()), Closed::Length);
    // Another data object.
    let mut card = Card::new([hex("FF50 0D"), hex(RULE)].concat());
    assert_eq!(closed(card.read()), TlvError::InvalidTag.into_closed());
    let mut card = Card::new(hex(RULE));
    assert_eq!(closed(card.read()), TlvError::InvalidTag.into_closed());
}

#[test]
fn malformed_rules_close_the_element() {
    let mut card = Card::with_body(&hex("E20B E1044F00C100 E303D00102"));
    assert_eq!(closed(card.read()), RulesError::InvalidValue(0xD0).into());
}

#[test]
fn the_bytes_are_bounded() {
    // An object of unknown tag, as long as it can be.
    let filler = |length: usize| tlv(0x80, &vec![0; length]);
    let longest = [hex(RULE), filler(MAX_BYTES - 13 - 4)].concat();
    assert_eq!(longest.len(), MAX_BYTES);
    assert!(allows_everything(&Card::with_body(&longest).read()));
    let mut card = Card::with_body(&[hex(RULE), filler(MAX_BYTES - 13 - 3)].concat());
    assert_eq!(closed(card.read()), Closed::TooLong);
    assert_eq!(card.commands.len(), 2);
    let mut card = Card::new(hex("FF40 84FFFFFFFF E2"));
    assert_eq!(closed(card.read()), Closed::TooLong);
}

#[test]
fn the_commands_are_bounded() {
    let longest = [hex(RULE), tlv(0x80, &vec![0; MAX_BYTES - 17])].concat();
    let mut card = Card::with_body(&longest);
    card.block = 64;
    assert!(allows_everything(&card.read()));
    card = Card::with_body(&longest);
    card.block = 32;
    assert_eq!(closed(card.read()), Closed::TooManyCommands);
    assert_eq!(card.commands.len(), 1100);
}

proptest! {
    /// Whatever a card answers, reading ends.
    #[test]
    fn reading_ends(
        answers in proptest::collection::vec(
            (
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    Just(hex("DF2008 0102030405060708")),
                    Just([hex("FF40 81A0"), hex(RULE)].concat()),
                    Just(hex(RULE)),
                ],
                prop_oneof![4 => Just(0x9000_u16), 1 => Just(0x6984), 1 => any::<u16>()],
            ),
            1..20,
        ),
    ) {
        let mut answers = answers.iter().cycle();
        let mut step = AraMReader::start(ChannelNumber::BASIC, None);
        let mut commands = 0;
        while let AraMStep::Send(reader, _) = step {
            commands += 1;
            prop_assert!(commands <= 1100);
            let (data, status) = answers.next().unwrap();
            step = reader.receive(&ResponseApdu::new(data.clone(), StatusWord(*status)));
        }
    }
}
