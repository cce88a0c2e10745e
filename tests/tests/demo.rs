/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The built-in demo page, as text: on the embedded card, and on cards in a reader.

use std::thread;
use std::time::{Duration, Instant};

use e2e::shell::{PCSC, VIRTUAL_CARD, run_demo};
use nitrokey_card::PivCard;
use pcsc::{Context, Disposition, Protocols, Scope, ShareMode};
use virtual_card::test_support::{InsertedCard, Pcscd};
use virtual_card::{Card, VirtualCard};

/// How long PC/SC may take to notice a card.
const NOTICE: Duration = Duration::from_secs(10);

/// Runs the demo, and gives its exit code and the lines that it printed, the spaces in them run together.
fn demo(token_config: &str) -> (Option<i32>, Vec<String>) {
    let output = run_demo(token_config).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines = text.lines().map(words).collect();
    eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code(), lines)
}

/// Puts a card into a reader, and waits until PC/SC can connect to it: the demo does not wait.
fn insert(pcscd: &Pcscd, card: impl Card + 'static) -> InsertedCard {
    let inserted = pcscd.insert(0, card).unwrap();
    let context = Context::establish(Scope::User).unwrap();
    let deadline = Instant::now() + NOTICE;
    let connect = || context.connect(c"Virtual PCD 00 00", ShareMode::Shared, Protocols::ANY);
    let card = loop {
        match connect() {
            Ok(card) => break card,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(50));
    };
    let left = card.disconnect(Disposition::LeaveCard);
    assert!(left.is_ok(), "the card is left as it is");
    inserted
}

#[track_caller]
fn assert_in_order(lines: &[String], expected: &[&str]) {
    let mut rest = lines.iter();
    for line in expected {
        assert!(
            rest.any(|seen| seen == line),
            "{line:?} is missing or misplaced in {lines:#?}"
        );
    }
}

#[test]
fn the_embedded_card_echoes() {
    let (code, lines) = demo(VIRTUAL_CARD);
    assert_in_order(
        &lines,
        &[
            "Found 1 reader.",
            "Opened a session with Embedded virtual card.",
            "Opened a channel of its own to the echo application.",
            "Status 90 00",
            "Answer 48 65 6C 6C 6F 2C 20 63 61 72 64 21",
            "Status 90 00",
            "Text “Hello, card!”",
            "The page and the card understood each other.",
        ],
    );
    assert_eq!(code, Some(0));
}

#[test]
fn a_card_in_a_reader_echoes() {
    let pcscd = Pcscd::start().unwrap();
    let _card = insert(&pcscd, VirtualCard::from_profile("t0").unwrap());
    let (code, lines) = demo(PCSC);
    assert_in_order(
        &lines,
        &[
            "Found 2 readers.",
            "smartcard Virtual PCD 00 01 (empty)",
            "Opened a channel of its own to the echo application.",
            "Text “Hello, card!”",
        ],
    );
    assert_eq!(code, Some(0));
}

#[test]
fn a_piv_card_by_others_shows_its_discovery_object() {
    let pcscd = Pcscd::start().unwrap();
    let _card = insert(&pcscd, PivCard::new().unwrap());
    let (code, lines) = demo(PCSC);
    // SP 800-73-4 part 1, section 3.3.2: the application's AID, and that its PIN opens it.
    assert_in_order(
        &lines,
        &[
            "Opened the basic channel to the PIV application.",
            "AID A0 00 00 03 08 00 00 10 00 01 00",
            "Status 90 00",
            "Asked it for its discovery object.",
            "Answer 7E 12 4F 0B A0 00 00 03 08 00 00 10 00 01 00 5F 2F 02 40 10",
            "Status 90 00",
            "Opened by the application's PIN",
            "The page and the card understood each other.",
        ],
    );
    assert_eq!(code, Some(0));
}

/// Knows a few commands by heart. Without logical channels, as most cards are.
struct RoteCard(&'static [(&'static [u8], &'static [u8])]);

impl Card for RoteCard {
    fn atr(&self) -> &[u8] {
        &[0x3B, 0x80, 0x01, 0x81]
    }

    fn reset(&mut self) {}

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        let known = self.0.iter().find(|(known, _)| *known == command);
        match (known, command.get(1)) {
            (Some((_, answer)), _) => answer.to_vec(),
            (None, Some(0xA4)) => vec![0x6A, 0x82],
            (None, _) => vec![0x6D, 0x00],
        }
    }
}

#[test]
fn an_openpgp_card_shows_its_serial_number() {
    let pcscd = Pcscd::start().unwrap();
    let _card = insert(
        &pcscd,
        RoteCard(&[
            (
                b"\x00\xA4\x04\x00\x06\xD2\x76\x00\x01\x24\x01\x00",
                b"\x6F\x12\x84\x10\xD2\x76\x00\x01\x24\x01\x03\x04\xFF\xFE\x01\x23\x45\x67\x00\x00\x90\x00",
            ),
            (
                b"\x00\xCA\x00\x6E\x00",
                b"\x6E\x1C\x4F\x10\xD2\x76\x00\x01\x24\x01\x03\x04\xFF\xFE\x01\x23\x45\x67\x00\x00\
                  \x5F\x52\x03\x00\x31\x84\x7F\x74\x00\x73\x00\x90\x00",
            ),
        ]),
    );
    let (code, lines) = demo(PCSC);
    assert_in_order(
        &lines,
        &[
            "Opened the basic channel to the OpenPGP application.",
            "Asked it for its application related data.",
            "AID D2 76 00 01 24 01 03 04 FF FE 01 23 45 67 00 00",
            "Version 3.4",
            "Serial 01 23 45 67 of manufacturer FF FE",
        ],
    );
    assert_eq!(code, Some(0));
}

#[test]
fn a_card_without_a_known_application_is_a_failure_that_says_so() {
    let pcscd = Pcscd::start().unwrap();
    let _card = insert(&pcscd, RoteCard(&[]));
    let (code, lines) = demo(PCSC);
    let why = "Error The card has none of the applications that this page knows";
    assert!(lines.iter().any(|line| line.starts_with(why)), "{lines:#?}");
    assert_in_order(&lines, &["It did not work.", "The demo failed."]);
    assert_eq!(code, Some(1));
}
