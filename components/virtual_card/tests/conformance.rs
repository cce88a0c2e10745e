/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The behaviour that the conformance application is for, all of it, through a real `pcscd`.

use std::time::{Duration, Instant};

use pcsc::{Card as PcscCard, Context, Disposition, Protocols, Scope, ShareMode};
use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::channel::{Aid, Opened, SelectResponse, open_command, parse_opened, select};
use secure_element::class_byte::{ChannelNumber, with_channel};
use secure_element::exchange::{Kind, Protocol, run};
use virtual_card::VirtualCard;
use virtual_card::applets::conformance::{AID, WARNINGS, pattern};
use virtual_card::test_support::Pcscd;

const WAIT: Duration = Duration::from_secs(10);
const CLASSES: [u8; 4] = [0x00, 0x80, 0xA0, 0x94];

struct Vector {
    header: [u8; 4],
    data: &'static [u8],
    le: Option<u32>,
    expected: ResponseApdu,
}

fn vector(
    header: [u8; 4],
    data: &'static [u8],
    le: Option<u32>,
    expected: Vec<u8>,
    status: StatusWord,
) -> Vector {
    let expected = ResponseApdu::new(expected, status);
    Vector {
        header,
        data,
        le,
        expected,
    }
}

fn vectors() -> Vec<Vector> {
    let ok = StatusWord::OK;
    let mut vectors = Vec::new();
    for cla in CLASSES {
        let header = |ins| [cla, ins, 0, 0];
        vectors.push(vector(header(0x06), &[], None, vec![], ok));
        vectors.push(vector(header(0x0A), &[0xAA], None, vec![], ok));
        vectors.push(vector(header(0x08), &[], Some(256), pattern(256), ok));
        vectors.push(vector(header(0x0C), &[0xAA], Some(256), pattern(256), ok));
    }
    for (n, warning) in (1..).zip(WARNINGS) {
        let header = |p2| [0, 0xF3, n, p2];
        let described = vec![1, 0xF3, n, 0x0C, 1, 0xAA, 0];
        vectors.push(vector(header(0x06), &[], None, vec![], warning));
        vectors.push(vector(header(0x0A), &[0xAA], None, vec![], warning));
        vectors.push(vector(header(0x08), &[], Some(256), pattern(3), warning));
        vectors.push(vector(header(0x0C), &[0xAA], Some(256), described, warning));
    }
    for (cla, ins, length, data) in [
        (0x00, 0xC2, 0x0800_u16, &[][..]),
        (0x00, 0xC4, 0x0800, &[0x12, 0x34]),
        (0x00, 0xC6, 0x0800, &[]),
        (0x00, 0xC8, 0x0800, &[0x12, 0x34]),
        (0x00, 0xC2, 0x7FFF, &[]),
        (0x00, 0xCF, 0x0800, &[]),
        (0x94, 0xC2, 0x0800, &[]),
    ] {
        let [p1, p2] = length.to_be_bytes();
        let header = [cla, ins, p1, p2];
        vectors.push(vector(header, data, Some(65_536), pattern(length), ok));
    }
    vectors.push(vector([0, 0xF4, 0, 0], &[], Some(256), vec![0], ok));
    vectors
}

fn connect(context: &Context) -> PcscCard {
    let deadline = Instant::now() + WAIT;
    loop {
        for reader in context.list_readers_owned().unwrap_or_default() {
            let protocols = Protocols::T0 | Protocols::T1;
            if let Ok(card) = context.connect(&reader, ShareMode::Shared, protocols) {
                return card;
            }
        }
        assert!(Instant::now() < deadline, "no card");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn everything_is_as_the_suite_expects() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 16 + 64 + 7 + 1);
    for (profile, protocol) in [("default", Protocol::T1), ("t0", Protocol::T0)] {
        let pcscd = Pcscd::start().unwrap();
        let card = VirtualCard::from_profile(profile).unwrap();
        let _inserted = pcscd.insert(0, card).unwrap();
        let context = Context::establish(Scope::User).unwrap();
        let card = connect(&context);
        let run = |command: &CommandApdu, kind| {
            let mut buffer = vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED];
            run::<Box<dyn std::error::Error>>(command, protocol, kind, |bytes| {
                Ok(card.transmit(bytes, &mut buffer)?.to_vec())
            })
            .unwrap()
        };
        let opened = run(&open_command(), Kind::Ordinary);
        let Ok(Opened::Channel(supplementary)) = parse_opened(&opened) else {
            panic!("no channel");
        };
        for channel in [ChannelNumber::BASIC, supplementary] {
            let aid = Aid::new(&AID).unwrap();
            let select = select(Some(&aid), SelectResponse::Fci, channel).unwrap();
            assert!(run(&select, Kind::Select).status.is_ok());
            for vector in &vectors {
                let [cla, ins, p1, p2] = vector.header;
                let cla = with_channel(cla, channel).unwrap();
                let header = Header::new(cla, ins, p1, p2);
                let data = vector.data.to_vec();
                let command = CommandApdu::with_shortest_form(header, data, vector.le).unwrap();
                let answer = run(&command, Kind::Ordinary);
                assert_eq!(answer, vector.expected, "{profile} {:02X?}", vector.header);
            }
        }
        card.disconnect(Disposition::LeaveCard)
            .map_err(|(_, error)| error)
            .unwrap();
    }
}
