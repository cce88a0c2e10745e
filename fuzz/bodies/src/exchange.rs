/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! One command and its response over T=0 and T=1.

use secure_element::apdu::{CommandApdu, MAX_RESPONSE_DATA};
use secure_element::class_byte::channel_of;
use secure_element::exchange::{ExchangeError, Kind, MAX_STEPS, Protocol, run as exchange};

const INS_GET_RESPONSE: u8 = 0xC0;
const INS_ENVELOPE: u8 = 0xC2;

/// Whatever command a page sends and whatever a card answers, an exchange ends within its bounds, sends only what its
/// protocol can carry, and stays on its channel.
///
/// Input: options (1 byte: bit 1 T=1, bit 2 SELECT), the length of the command (2 bytes), the command, then the card's
/// answers, each with its length in front (1 byte). The answers repeat.
pub fn run(bytes: &[u8]) {
    let Some((&[options, high, low], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let Some((encoded, mut rest)) = rest.split_at_checked(length) else {
        return;
    };
    let Ok(command) = CommandApdu::parse(encoded) else {
        return;
    };
    let mut answers = Vec::new();
    while let Some((&length, behind)) = rest.split_first() {
        let (answer, behind) = behind.split_at(behind.len().min(usize::from(length)));
        answers.push(answer);
        rest = behind;
    }
    let mut answers = answers.into_iter().cycle();
    let (protocol, most_steps) = match options & 1 {
        0 => (Protocol::T0, MAX_STEPS),
        _ => (Protocol::T1, 1),
    };
    let kind = match options & 2 {
        0 => Kind::Ordinary,
        _ => Kind::Select,
    };
    let channel = channel_of(command.header().cla);
    let mut steps = 0;
    let mut enveloped = Vec::new();
    let mut received = 0;
    let result = exchange::<ExchangeError>(&command, protocol, kind, |sent| {
        steps += 1;
        match protocol {
            Protocol::T1 => assert_eq!(sent, encoded),
            Protocol::T0 => {
                let [class, instruction, _, _, p3, data @ ..] = sent else {
                    panic!("a TPDU has at least five bytes");
                };
                assert!(data.is_empty() || data.len() == usize::from(*p3));
                assert_eq!(channel_of(*class), channel);
                if *instruction == INS_ENVELOPE && command.data().len() > 255 {
                    enveloped.extend(data);
                    assert!(encoded.starts_with(&enveloped));
                } else if *instruction != command.header().ins {
                    assert_eq!((*instruction, data), (INS_GET_RESPONSE, &[][..]));
                }
            }
        }
        let answer = answers.next().unwrap_or_default();
        received += answer.len();
        Ok(answer.to_vec())
    });
    assert!(steps <= most_steps);
    if let Ok(response) = result {
        assert!(response.data.len() <= MAX_RESPONSE_DATA.min(received));
    }
}
