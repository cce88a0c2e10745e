/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Nitrokey's PIV application behind a real `pcscd`, seen by libpcsclite and by OpenSC.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nitrokey_card::PivCard;
use pcsc::{Context, Disposition, Protocols, Scope, ShareMode};
use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::atr::Atr;
use secure_element::channel::{Opened, open_command, parse_opened};
use secure_element::exchange::{ExchangeError, Kind, Protocol, run};
use secure_element::tlv::{Reader, Tag};
use virtual_card::Card;
use virtual_card::test_support::Pcscd;

const WAIT: Duration = Duration::from_secs(10);
const READER: &std::ffi::CStr = c"Virtual PCD 00 00";

/// SELECT of the PIV application (NIST SP 800-73-4 part 2 section 3.1.1).
const SELECT: &[u8] = b"\x00\xA4\x04\x00\x0B\xA0\x00\x00\x03\x08\x00\x00\x10\x00\x01\x00\x00";
/// GET DATA of the discovery object (part 1 section 3.3.2).
const GET_DISCOVERY_OBJECT: &[u8] = b"\x00\xCB\x3F\xFF\x03\x5C\x01\x7E\x00";
/// VERIFY of the PIN that a new card has.
const VERIFY: &[u8] = b"\x00\x20\x00\x80\x08123456\xFF\xFF";
const VERIFY_WRONG: &[u8] = b"\x00\x20\x00\x80\x08654321\xFF\xFF";
/// VERIFY without data asks whether the PIN was verified, and how many tries are left.
const VERIFY_STATUS: &[u8] = b"\x00\x20\x00\x80";

fn connect(context: &Context) -> pcsc::Card {
    let deadline = Instant::now() + WAIT;
    loop {
        match context.connect(READER, ShareMode::Shared, Protocols::T0 | Protocols::T1) {
            Ok(card) => return card,
            Err(error) => assert!(Instant::now() < deadline, "no card: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Disconnects without a reset, which dropping the card would do.
fn leave(card: pcsc::Card) {
    assert!(card.disconnect(Disposition::LeaveCard).is_ok());
}

fn send(transmit: &mut dyn FnMut(&[u8]) -> Vec<u8>, command: &[u8]) -> ResponseApdu {
    let command = CommandApdu::parse(command).unwrap();
    run::<ExchangeError>(&command, Protocol::T1, Kind::Ordinary, |bytes| {
        Ok(transmit(bytes))
    })
    .unwrap()
}

#[test]
fn the_discovery_object_is_read_through_pcscd() {
    let pcscd = Pcscd::start().unwrap();
    let _inserted = pcscd.insert(0, PivCard::new().unwrap()).unwrap();
    let context = Context::establish(Scope::User).unwrap();
    let card = connect(&context);
    assert_eq!(
        card.status2_owned().unwrap().protocol2(),
        Some(pcsc::Protocol::T1)
    );
    let mut buffer = vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED];
    let mut transmit = |bytes: &[u8]| card.transmit(bytes, &mut buffer).unwrap().to_vec();

    let selected = send(&mut transmit, SELECT);
    assert_eq!(selected.status, StatusWord::OK);
    // The application property template.
    assert_eq!(Reader::new(&selected.data).only().unwrap().tag, Tag(0x61));

    let discovery = send(&mut transmit, GET_DISCOVERY_OBJECT);
    assert_eq!(discovery.status, StatusWord::OK);
    let object = Reader::new(&discovery.data).only().unwrap();
    assert_eq!(object.tag, Tag(0x7E));
    let parts: Vec<_> = object.parts().unwrap().map(Result::unwrap).collect();
    assert_eq!((parts[0].tag, parts[0].value), (Tag(0x4F), &SELECT[5..16]));
    assert_eq!((parts[1].tag, parts[1].value.len()), (Tag(0x5F2F), 2));
    leave(card);
}

#[test]
fn opensc_reads_it_too() {
    let pcscd = Pcscd::start().unwrap();
    let _inserted = pcscd.insert(0, PivCard::new().unwrap()).unwrap();
    let context = Context::establish(Scope::User).unwrap();
    leave(connect(&context));
    let run = |arguments: &[&str]| {
        let output = Command::new("opensc-tool")
            .args(arguments)
            .env("LANG", "C")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    };
    // Its own driver recognises the application.
    let name = run(&["--reader", "0", "--name"]);
    assert!(name.contains("Personal Identity Verification"), "{name}");
    let text = run(&[
        "--reader",
        "0",
        "--card-driver",
        "default",
        "--send-apdu",
        "00:A4:04:00:0B:A0:00:00:03:08:00:00:10:00:01:00:00",
        "--send-apdu",
        "00:CB:3F:FF:03:5C:01:7E:00",
    ]);
    assert_eq!(text.matches("SW1=0x90, SW2=0x00").count(), 2, "{text}");
    assert!(text.contains("7E 12 4F 0B A0 00 00 03 08"), "{text}");
}

#[test]
fn a_reset_ends_security_status_and_keeps_the_tries() {
    let mut card = PivCard::new().unwrap();
    let protocols = Atr::parse(card.atr()).map(|atr| (atr.offers(0), atr.offers(1)));
    assert_eq!(protocols, Ok((false, true)));
    assert_eq!(card.transmit(SELECT), [], "not powered yet");
    card.reset();
    let status = |card: &mut PivCard, command| {
        send(&mut |bytes: &[u8]| card.transmit(bytes), command).status
    };
    assert_eq!(
        status(&mut card, VERIFY),
        StatusWord::CONDITIONS_NOT_SATISFIED
    );
    assert_eq!(status(&mut card, SELECT), StatusWord::OK);
    assert_eq!(status(&mut card, VERIFY), StatusWord::OK);
    assert_eq!(status(&mut card, VERIFY_STATUS), StatusWord::OK);
    card.reset();
    assert_eq!(status(&mut card, SELECT), StatusWord::OK);
    let tries = status(&mut card, VERIFY_STATUS);
    assert_eq!(tries.0 & 0xFFF0, 0x63C0);
    assert_eq!(status(&mut card, VERIFY_WRONG), StatusWord(tries.0 - 1));
    card.reset();
    assert_eq!(status(&mut card, SELECT), StatusWord::OK);
    assert_eq!(status(&mut card, VERIFY_STATUS), StatusWord(tries.0 - 1));
}

#[test]
fn it_has_no_logical_channels() {
    let mut card = PivCard::new().unwrap();
    card.reset();
    assert_eq!(card.transmit(SELECT)[..1], [0x61]);
    let opened = send(
        &mut |bytes: &[u8]| card.transmit(bytes),
        &open_command().encode(),
    );
    assert_eq!(parse_opened(&opened), Ok(Opened::NoChannel));
    let discovery = [&[0x01], &GET_DISCOVERY_OBJECT[1..]].concat();
    assert_eq!(card.transmit(&discovery), [0x68, 0x81]);
}

#[test]
fn long_responses_come_in_parts() {
    let mut card = PivCard::new().unwrap();
    card.reset();
    let whole = card.transmit(SELECT);
    assert_eq!(whole[whole.len() - 2..], [0x90, 0x00]);
    let mut short = SELECT.to_vec();
    *short.last_mut().unwrap() = 10;
    let mut part = card.transmit(&short);
    assert_eq!(part.len(), 12);
    assert_eq!(part[10..], [0x61, (whole.len() - 2 - 10) as u8]);
    part.truncate(10);
    part.extend(card.transmit(&[0x00, 0xC0, 0x00, 0x00, 0x00]));
    assert_eq!(part, whole);
}
