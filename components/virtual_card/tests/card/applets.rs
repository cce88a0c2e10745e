/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The applications but echo and the ARA-M.

use secure_element::channel::{close_command, open_command};
use secure_element::class_byte::ChannelNumber;
use secure_element::exchange::{Kind, Protocol};
use secure_element::fci;
use virtual_card::Card;
use virtual_card::applets::{conformance, echo, exclusive, issuer, origin, pin};

use super::{BASIC, Client, Opened, ResponseApdu, StatusWord, channel, command, name, ok, status};

#[test]
fn an_exclusive_application_has_one_channel_at_a_time() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let first = client.open_with(&exclusive::AID);
        let second = client.open_with(&echo::AID);
        let answers = |client: &mut Client, channel| {
            client
                .send(channel, [0, echo::INS_CHANNEL, 0, 0], &[], Some(2))
                .data
        };
        for busy in [BASIC, second] {
            assert_eq!(client.select(&exclusive::AID, busy), status(0x6985));
            // By a partial AID, too.
            assert_eq!(client.select(&exclusive::AID[..7], busy), status(0x6985));
        }
        assert_eq!(answers(&mut client, second), [2, 2]);
        assert_eq!(answers(&mut client, first), [1, 1]);
        // A new channel would get it.
        let open = command(first, [0, 0x70, 0, 0], &[], Some(1));
        assert_eq!(client.run(&open, Kind::Ordinary), status(0x6985));
        assert_eq!(client.open_channels(), 0b111, "{profile}");
        // From elsewhere it does not.
        let open = command(second, [0, 0x70, 0, 0], &[], Some(1));
        assert_eq!(client.run(&open, Kind::Ordinary), ok(&[3]));
        assert_eq!(answers(&mut client, channel(3)), [3, 3]);
        // Where it is selected already it can be selected again.
        assert_eq!(name(&client.select(&exclusive::AID, first)), exclusive::AID);
        // It is free when another one is selected there, the channel is closed or the card reset.
        client.select(&echo::AID, first);
        assert_eq!(
            name(&client.select(&exclusive::AID, second)),
            exclusive::AID
        );
        assert_eq!(client.select(&exclusive::AID, first), status(0x6985));
        client.run(&close_command(second), Kind::Ordinary);
        assert_eq!(name(&client.select(&exclusive::AID, first)), exclusive::AID);
        client.card.reset();
        assert_eq!(name(&client.select(&exclusive::AID, BASIC)), exclusive::AID);
        // The others do not mind.
        let third = client.open_with(&echo::AID);
        assert_eq!(name(&client.select(&echo::AID, BASIC)), echo::AID);
        assert_eq!(answers(&mut client, third), [1, 1]);
    }
}

/// Sends these in turn to the application with the PIN on `channel`.
fn pin_steps(client: &mut Client, channel: ChannelNumber, steps: &[(u8, u8, &[u8], u16)]) {
    for (number, &(ins, p1, data, sw)) in steps.iter().enumerate() {
        let header = [0, ins, p1, pin::REFERENCE];
        let le = (ins == pin::INS_SECRET).then_some(256);
        let answer = client.send(channel, header, data, le);
        assert_eq!(
            answer.status,
            StatusWord(sw),
            "step {number}: {ins:02X} {p1:02X}"
        );
    }
}

#[test]
fn a_pin_has_tries() {
    use pin::{
        INS_CHANGE_REFERENCE_DATA as CHANGE, INS_RESET_RETRY_COUNTER as RESET, INS_SECRET,
        INS_VERIFY as VERIFY,
    };
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        client.select(&pin::AID, BASIC);
        pin_steps(
            &mut client,
            BASIC,
            &[
                (INS_SECRET, 0, &[], 0x6982),
                (VERIFY, 0, &[], 0x63C3),
                (VERIFY, 0, b"0000", 0x63C2),
                (VERIFY, 0, &[], 0x63C2),
                // The length is no guess.
                (VERIFY, 0, b"000", 0x6700),
                (VERIFY, 0, b"12345", 0x6700),
                (VERIFY, 1, b"1234", 0x6A86),
                (VERIFY, 0, b"1234", 0x9000),
                (VERIFY, 0, &[], 0x9000),
                (INS_SECRET, 0, &[], 0x9000),
                (VERIFY, 0xFF, b"1234", 0x6700),
                (VERIFY, 0xFF, &[], 0x9000),
                (INS_SECRET, 0, &[], 0x6982),
                (VERIFY, 0, &[], 0x63C3),
                // A wrong one ends what a right one began.
                (VERIFY, 0, b"1234", 0x9000),
                (VERIFY, 0, b"1111", 0x63C2),
                (INS_SECRET, 0, &[], 0x6982),
                (CHANGE, 0, b"11112222", 0x63C1),
                (CHANGE, 0, b"1234222", 0x6700),
                (CHANGE, 0, b"123", 0x6700),
                (CHANGE, 1, b"12342222", 0x6A86),
                (CHANGE, 0, b"12342222", 0x9000),
                (INS_SECRET, 0, &[], 0x9000),
                (VERIFY, 0, b"1234", 0x63C2),
                (VERIFY, 0, b"2222", 0x9000),
                (VERIFY, 0, b"0000", 0x63C2),
                (VERIFY, 0, b"0000", 0x63C1),
                (VERIFY, 0, b"0000", 0x63C0),
                (VERIFY, 0, &[], 0x6983),
                (VERIFY, 0, b"2222", 0x6983),
                (CHANGE, 0, b"22223333", 0x6983),
                (RESET, 0, b"000000003333", 0x63C4),
                (RESET, 2, b"123456783333", 0x6A86),
                (RESET, 0, b"12345678333", 0x6700),
                (RESET, 1, b"123456783333", 0x6700),
                (RESET, 0, b"123456783333", 0x9000),
                (INS_SECRET, 0, &[], 0x6982),
                (VERIFY, 0, b"3333", 0x9000),
                (VERIFY, 0, b"0000", 0x63C2),
                (RESET, 1, b"12345678", 0x9000),
                (VERIFY, 0, &[], 0x63C3),
                (VERIFY, 0, b"3333", 0x9000),
                (RESET, 0, b"000000000000", 0x63C4),
                (RESET, 0, b"000000000000", 0x63C3),
                (RESET, 0, b"000000000000", 0x63C2),
                (RESET, 0, b"000000000000", 0x63C1),
                (RESET, 0, b"000000000000", 0x63C0),
                (RESET, 0, b"123456780000", 0x6983),
                // The PIN itself is not concerned.
                (VERIFY, 0, b"3333", 0x9000),
            ],
        );
        let tries = [0, pin::INS_TRIES, 0, 0];
        assert_eq!(client.send(BASIC, tries, &[], Some(2)), ok(&[3, 0]));
        for ins in [VERIFY, CHANGE, RESET] {
            let answer = client.send(BASIC, [0, ins, 0, 0x81], b"12345678", None);
            assert_eq!(answer, status(0x6A88));
        }
        let restore = [0, pin::INS_RESTORE, 0, 0];
        assert_eq!(client.send(BASIC, restore, &[], None), ok(&[]));
        assert_eq!(client.send(BASIC, tries, &[], Some(2)), ok(&[3, 5]));
        pin_steps(&mut client, BASIC, &[(VERIFY, 0, b"1234", 0x9000)]);
        let secret = client.send(BASIC, [0, INS_SECRET, 0, 0], &[], Some(256));
        assert_eq!(secret, ok(&pin::SECRET), "{profile}");
    }
}

#[test]
fn a_verified_pin_is_forgotten() {
    const VERIFY: (u8, u8, &[u8], u16) = (pin::INS_VERIFY, 0, b"1234", 0x9000);
    const SECRET: (u8, u8, &[u8], u16) = (pin::INS_SECRET, 0, &[], 0x9000);
    const REFUSED: (u8, u8, &[u8], u16) = (pin::INS_SECRET, 0, &[], 0x6982);
    const WRONG: &[u8] = b"0000";
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let first = client.open_with(&pin::AID);
        let second = client.open_with(&pin::AID);
        pin_steps(&mut client, first, &[VERIFY, SECRET]);
        pin_steps(&mut client, second, &[REFUSED, VERIFY, SECRET]);
        // A wrong PIN is a matter of its channel,
        pin_steps(
            &mut client,
            first,
            &[(pin::INS_VERIFY, 0, WRONG, 0x63C2), REFUSED],
        );
        pin_steps(&mut client, second, &[SECRET]);
        // SELECT forgets, whichever application it selects, unless it finds none,
        assert_eq!(client.select(&[0xF0, 1, 2, 3, 4], second), status(0x6A82));
        pin_steps(&mut client, second, &[SECRET]);
        client.select(&pin::AID, second);
        pin_steps(&mut client, second, &[REFUSED, VERIFY, SECRET]);
        client.select(&echo::AID, second);
        client.select(&pin::AID, second);
        pin_steps(&mut client, second, &[REFUSED, VERIFY]);
        // the end of the channel does,
        client.run(&close_command(second), Kind::Ordinary);
        assert_eq!(client.open_with(&pin::AID), second);
        pin_steps(&mut client, second, &[REFUSED, VERIFY]);
        // the last try,
        pin_steps(&mut client, first, &[VERIFY]);
        for sw in [0x63C2, 0x63C1, 0x63C0] {
            pin_steps(&mut client, first, &[(pin::INS_VERIFY, 0, WRONG, sw)]);
        }
        pin_steps(&mut client, second, &[REFUSED]);
        // and a reset, which gives no tries back.
        client.send(first, [0, pin::INS_RESTORE, 0, 0], &[], None);
        pin_steps(&mut client, first, &[(pin::INS_VERIFY, 0, WRONG, 0x63C2)]);
        client.select(&pin::AID, BASIC);
        pin_steps(
            &mut client,
            BASIC,
            &[VERIFY, (pin::INS_VERIFY, 0, WRONG, 0x63C2)],
        );
        client.card.reset();
        client.select(&pin::AID, BASIC);
        pin_steps(
            &mut client,
            BASIC,
            &[REFUSED, (pin::INS_VERIFY, 0, &[], 0x63C2)],
        );
        pin_steps(&mut client, BASIC, &[VERIFY]);
        client.card.reset();
        client.select(&pin::AID, BASIC);
        pin_steps(&mut client, BASIC, &[REFUSED]);
    }
}

fn origin_send(
    client: &mut Client,
    channel: ChannelNumber,
    ins: u8,
    p1: u8,
    data: &[u8],
) -> ResponseApdu {
    client.send(channel, [0x80, ins, p1, 0], data, Some(256))
}

#[test]
fn each_origin_gets_what_is_its_own() {
    use origin::{
        INS_GET_SECRET as GET, INS_MY_SLOTS as SLOTS, INS_PERSONALISE as PUT,
        INS_PRESENT_ORIGIN as PRESENT,
    };
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let selected = client.select(&origin::AID, BASIC);
        assert!(secure_element::origin::is_announced(&selected.data));
        // Without an origin there is nothing, but slots can be filled.
        assert_eq!(origin_send(&mut client, BASIC, GET, 0, &[]), status(0x6982));
        assert_eq!(
            origin_send(&mut client, BASIC, SLOTS, 0, &[]),
            status(0x6982)
        );
        let other = [&[7; 16][..], b"https://other.example:8443"].concat();
        let wallet = [&[8; 16][..], b"https://wallet.example"].concat();
        assert_eq!(origin_send(&mut client, BASIC, PUT, 1, &other), ok(&[]));
        assert_eq!(origin_send(&mut client, BASIC, PUT, 7, &wallet), ok(&[]));
        assert_eq!(
            origin_send(&mut client, BASIC, PUT, 8, &wallet),
            status(0x6A86)
        );
        assert_eq!(
            origin_send(&mut client, BASIC, PUT, 2, &other[..16]),
            status(0x6A80)
        );
        assert_eq!(
            origin_send(&mut client, BASIC, PUT, 2, &other[..3]),
            status(0x6A80)
        );
        // It is too late for an origin now.
        let present = |client: &mut Client, channel, origin: &str| {
            origin_send(client, channel, PRESENT, 0, origin.as_bytes())
        };
        assert_eq!(
            present(&mut client, BASIC, "https://wallet.example"),
            status(0x6985)
        );

        for (caller, slots) in [
            ("https://wallet.example", &[0, 7][..]),
            ("https://other.example:8443", &[1]),
            ("https://other.example", &[]),
            ("https://wallet.example.attacker.example", &[]),
            ("http://wallet.example", &[]),
        ] {
            let own = client.open_with(&origin::AID);
            assert_eq!(present(&mut client, own, caller), ok(&[]), "{caller}");
            assert_eq!(origin_send(&mut client, own, SLOTS, 0, &[]), ok(slots));
            for slot in 0..=8 {
                let expected = match slot {
                    _ if !slots.contains(&slot) => status(0x6982),
                    0 => ok(&origin::SAMPLE_SECRET),
                    1 => ok(&[7; 16]),
                    _ => ok(&[8; 16]),
                };
                assert_eq!(origin_send(&mut client, own, GET, slot, &[]), expected);
            }
            // The page cannot become somebody else, and cannot change what is there.
            assert_eq!(
                present(&mut client, own, "https://wallet.example"),
                status(0x6985)
            );
            assert_eq!(origin_send(&mut client, own, SLOTS, 0, &[]), ok(slots));
            assert_eq!(
                origin_send(&mut client, own, PUT, 0, &other),
                status(0x6982)
            );
            assert_eq!(origin_send(&mut client, own, PUT, 0, &[]), status(0x6982));
            // Another channel is another matter, and a new selection a new beginning.
            assert_eq!(
                origin_send(&mut client, BASIC, SLOTS, 0, &[]),
                status(0x6982)
            );
            client.select(&origin::AID, own);
            assert_eq!(origin_send(&mut client, own, SLOTS, 0, &[]), status(0x6982));
            client.run(&close_command(own), Kind::Ordinary);
        }

        // What is held outlives a reset; who called does not.
        let own = client.open_with(&origin::AID);
        assert_eq!(
            present(&mut client, own, "https://other.example:8443"),
            ok(&[])
        );
        client.card.reset();
        assert_eq!(client.open_with(&origin::AID), own);
        assert_eq!(origin_send(&mut client, own, PUT, 0, &[]), ok(&[]));
        client.select(&origin::AID, own);
        assert_eq!(present(&mut client, own, "https://wallet.example"), ok(&[]));
        assert_eq!(
            origin_send(&mut client, own, SLOTS, 0, &[]),
            ok(&[7]),
            "{profile}"
        );
    }
}

#[test]
fn only_an_origin_is_one() {
    let long = format!("https://{}", "a".repeat(247));
    let too_long = format!("{long}a");
    for (text, sw) in [
        ("https://a", 0x9000),
        ("http://localhost:8000", 0x9000),
        ("https://[::1]:8443", 0x9000),
        (&long, 0x9000),
        (&too_long, 0x6A80),
        ("", 0x6A80),
        ("null", 0x6A80),
        ("https://", 0x6A80),
        ("://a", 0x6A80),
        ("https://a/", 0x6A80),
        ("https://a b", 0x6A80),
        ("https://A", 0x6A80),
        ("https://\u{e9}", 0x6A80),
        ("https:a", 0x6A80),
    ] {
        let mut client = Client::new("default");
        client.select(&origin::AID, BASIC);
        let ins = origin::INS_PRESENT_ORIGIN;
        let answer = origin_send(&mut client, BASIC, ins, 0, text.as_bytes());
        assert_eq!(answer, status(sw), "{text}");
        // One attempt is all there is.
        let answer = origin_send(&mut client, BASIC, ins, 0, b"https://wallet.example");
        assert_eq!(answer, status(0x6985));
    }
}

const CLASSES: [u8; 4] = [0x00, 0x80, 0xA0, 0x94];

#[test]
fn commands_without_data_and_with_256_bytes() {
    let all: Vec<u8> = (0..=0xFF).collect();
    for profile in ["default", "t0", "no-extended-length"] {
        let mut client = Client::new(profile);
        let own = client.open_with(&conformance::AID);
        for cla in CLASSES {
            for on in [BASIC, own] {
                client.select(&conformance::AID, on);
                let mut send = |ins, data: &[u8], le| client.send(on, [cla, ins, 0, 0], data, le);
                assert_eq!(send(0x06, &[], None), ok(&[]), "{profile} {cla:02X}");
                assert_eq!(send(0x0A, &[0xAA], None), ok(&[]));
                assert_eq!(send(0x08, &[], Some(256)), ok(&all));
                assert_eq!(send(0x0C, &[0xAA], Some(256)), ok(&all));
            }
        }
        for cla in [0x10, 0x84, 0x8C, 0x90, 0xB0] {
            let answer = client.send(BASIC, [cla, 0x06, 0, 0], &[], None);
            assert!(answer.status.is_error(), "{cla:02X}");
        }
    }
}

#[test]
fn warnings_in_every_case() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        client.select(&conformance::AID, BASIC);
        let mut seen = 0;
        for (number, &warning) in (1..).zip(&conformance::WARNINGS) {
            for (p2, data, le, expected) in [
                (0x06, &[][..], None, &[][..]),
                (0x0A, &[0xAA], None, &[]),
                (0x08, &[], Some(256), &[0, 1, 0xFF]),
                (
                    0x0C,
                    &[0xAA],
                    Some(256),
                    &[1, 0xF3, number, 0x0C, 1, 0xAA, 0],
                ),
            ] {
                let answer = client.send(BASIC, [0, 0xF3, number, p2], data, le);
                let expected = ResponseApdu::new(expected.to_vec(), warning);
                assert_eq!(answer, expected, "{profile} {number:02X} {p2:02X}");
                assert!(warning.is_warning());
                seen += 1;
            }
        }
        assert_eq!(seen, 64);
        for (p1, p2) in [(0, 6), (0x11, 6), (1, 7)] {
            assert_eq!(
                client.send(BASIC, [0, 0xF3, p1, p2], &[], None),
                status(0x6A86)
            );
        }
    }
}

/// Class, INS, P1 P2 and data of the suite's segmented responses.
const SEGMENTED: [(u8, u8, u16, &[u8]); 7] = [
    (0x00, 0xC2, 0x0800, &[]),
    (0x00, 0xC4, 0x0800, &[0x12, 0x34]),
    (0x00, 0xC6, 0x0800, &[]),
    (0x00, 0xC8, 0x0800, &[0x12, 0x34]),
    (0x00, 0xC2, 0x7FFF, &[]),
    (0x00, 0xCF, 0x0800, &[]),
    (0x94, 0xC2, 0x0800, &[]),
];

#[test]
fn long_responses_come_in_parts_over_t0() {
    let mut client = Client::new("t0");
    let own = client.open_with(&conformance::AID);
    for (cla, ins, length, data) in SEGMENTED {
        let [p1, p2] = length.to_be_bytes();
        let header = [cla, ins, p1, p2];
        let expected = conformance::pattern(length);
        assert_eq!(expected.last(), Some(&0xFF));
        let answer = client.send(own, header, data, Some(256));
        assert_eq!(answer, ok(&expected), "{ins:02X}");
    }
    // What it begins with.
    for (ins, sw) in [
        (0xC2, 0x61FF),
        (0xC4, 0x61FF),
        (0xC8, 0x6100),
        (0xCF, 0x6CFF),
    ] {
        let mut tpdu = vec![1, ins, 8, 0, 0];
        if matches!(ins, 0xC4 | 0xC8) {
            tpdu = vec![1, ins, 8, 0, 2, 0x12, 0x34];
        }
        let answer = client.card.transmit(&tpdu);
        assert_eq!(
            ResponseApdu::parse(&answer).unwrap(),
            status(sw),
            "{ins:02X}"
        );
    }
    let first = ResponseApdu::parse(&client.card.transmit(&[1, 0xC6, 8, 0, 0])).unwrap();
    assert_eq!((first.data.len(), first.status), (256, StatusWord(0x6100)));
    // GET RESPONSE for 256 bytes, where 255 were announced.
    client.card.transmit(&[1, 0xC2, 8, 0, 0]);
    assert_eq!(client.card.transmit(&[1, 0xC0, 0, 0, 0]), [0x6C, 0xFF]);
    let part = ResponseApdu::parse(&client.card.transmit(&[1, 0xC0, 0, 0, 0xFF])).unwrap();
    assert_eq!((part.data.len(), part.status), (255, StatusWord(0x61FF)));
    // The right length at once.
    let part = ResponseApdu::parse(&client.card.transmit(&[1, 0xCF, 8, 0, 0xFF])).unwrap();
    assert_eq!((part.data.len(), part.status), (255, StatusWord(0x61FF)));
    assert_eq!(client.card.transmit(&[1, 0xCF, 8, 0, 0x10]), [0x6C, 0xFF]);
    // An empty one.
    assert_eq!(client.send(own, [0, 0xC6, 0, 0], &[], Some(256)), ok(&[]));
}

#[test]
fn long_responses_come_as_the_caller_can_take_them_over_t1() {
    for profile in ["default", "no-extended-length"] {
        for (cla, ins, length, data) in SEGMENTED {
            let mut client = Client::new(profile);
            client.open();
            let own = client.open_with(&conformance::AID);
            let [p1, p2] = length.to_be_bytes();
            let header = [cla, ins, p1, p2];
            let expected = conformance::pattern(length);
            if profile == "default" {
                for le in [length.into(), 65_536] {
                    assert_eq!(client.send(own, header, data, Some(le)), ok(&expected));
                }
            }
            // By itself, in parts.
            let (part, announced) = match ins {
                0xC6 | 0xC8 => (256, 0x6100),
                _ => (255, 0x61FF),
            };
            let mut answer = client.send(own, header, data, Some(256));
            let mut received: Vec<u8> = Vec::new();
            while !answer.status.is_ok() {
                assert_eq!(answer.data.len(), part);
                received.extend(&answer.data);
                let left = expected.len() - received.len();
                let sw = if left < part {
                    0x6100 + left as u16
                } else {
                    announced
                };
                assert_eq!(answer.status, StatusWord(sw), "{ins:02X}");
                let le = if left < part { left } else { part };
                answer = client.send(own, [0, 0xC0, 0, 0], &[], Some(le as u32));
            }
            received.extend(&answer.data);
            assert_eq!(received, expected);
            // Nothing is left.
            let answer = client.send(own, [0, 0xC0, 0, 0], &[], Some(256));
            assert_eq!(answer, status(0x6D00));
            // Another command in between, or another channel, loses the rest.
            for other in [own, channel(1)] {
                client.select(&conformance::AID, channel(1));
                client.send(own, header, data, Some(256));
                client.send(other, [0, 0x06, 0, 0], &[], None);
                let answer = client.send(own, [0, 0xC0, 0, 0], &[], Some(256));
                assert_eq!(answer, status(0x6D00));
            }
            // GET RESPONSE there, too; and a reset does.
            client.send(own, header, data, Some(256));
            let answer = client.send(channel(1), [0, 0xC0, 0, 0], &[], Some(256));
            assert_eq!(answer, status(0x6D00));
            client.select(&conformance::AID, BASIC);
            client.send(BASIC, header, data, Some(256));
            client.card.reset();
            let answer = client.send(BASIC, [0, 0xC0, 0, 0], &[], Some(256));
            assert_eq!(answer, status(0x6D00));
            client.open();
            assert_eq!(client.open_with(&conformance::AID), own);
            // Without Le there is no room for anything.
            let answer = client.send(own, header, data, None);
            assert_eq!(answer, status(announced));
        }
    }
}

#[test]
fn p2_comes_back() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        assert_eq!(client.protocol == Protocol::T0, profile == "t0");
        let own = client.open_with(&conformance::AID);
        for p2 in [0x00, 0x01, 0xFF] {
            assert_eq!(
                client.send(own, [0, 0xF4, 0, p2], &[], Some(256)),
                ok(&[p2])
            );
        }
        for p2 in [0x00, 0x04, 0x08, 0x0C] {
            let le = (p2 != 0x0C).then_some(256);
            client.send(own, [0, 0xA4, 4, p2], &conformance::AID, le);
            assert_eq!(client.send(own, [0, 0xF4, 1, 0], &[], Some(256)), ok(&[p2]));
        }
        assert_eq!(
            client.send(own, [0, 0xF4, 2, 0], &[], Some(256)),
            status(0x6A86)
        );
    }
}

#[test]
fn selectability() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        assert_eq!(
            name(&client.select(&conformance::AID, BASIC)),
            conformance::AID
        );
        let long = client.select(&conformance::LONG_RESPONSE_AID, BASIC);
        assert_eq!(name(&long), conformance::LONG_RESPONSE_AID);
        assert!((200..=256).contains(&long.data.len()), "{profile}");
        assert!(fci::df_name(&long.data).is_ok());
        // A refusal leaves everything as it was, and a channel that was opened for it open.
        assert_eq!(
            client.select(&conformance::UNSELECTABLE_AID, BASIC),
            status(0x6999)
        );
        assert_eq!(client.send(BASIC, [0, 0xF4, 0, 3], &[], Some(1)), ok(&[3]));
        assert_eq!(client.open(), Opened::Channel(channel(1)));
        assert_eq!(
            client.select(&conformance::UNSELECTABLE_AID, channel(1)),
            status(0x6999)
        );
        assert_eq!(
            client.send(channel(1), [0, 0xF4, 0, 3], &[], Some(1)),
            status(0x6D00)
        );
        assert_eq!(client.open_channels(), 0b11);
        assert_eq!(name(&client.select(&[], channel(1))), issuer::AID);
        assert!(client.run(&open_command(), Kind::Ordinary).status.is_ok());
    }
}
