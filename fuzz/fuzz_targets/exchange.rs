/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Whatever command a page sends and whatever a card answers, an exchange ends, within its bounds.
//!
//! Input: options (1 byte), length of the command (2 bytes), the command, then the card's answers,
//! each with its length in front (1 byte). The answers repeat.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secure_element::apdu::{CommandApdu, MAX_RESPONSE_DATA};
use secure_element::exchange::{ExchangeError, Kind, MAX_STEPS, Protocol, run};

fuzz_target!(|bytes: &[u8]| {
    let Some((&[options, high, low], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let Some((command, mut rest)) = rest.split_at_checked(length) else {
        return;
    };
    let Ok(command) = CommandApdu::parse(command) else {
        return;
    };
    let mut answers = Vec::new();
    while let Some((&length, behind)) = rest.split_first() {
        let (answer, behind) = behind.split_at(behind.len().min(usize::from(length)));
        answers.push(answer);
        rest = behind;
    }
    let mut answers = answers.into_iter().cycle();
    let protocol = if options & 1 == 0 {
        Protocol::T0
    } else {
        Protocol::T1
    };
    let kind = if options & 2 == 0 {
        Kind::Ordinary
    } else {
        Kind::Select
    };
    let mut steps = 0;
    let result = run::<ExchangeError>(&command, protocol, kind, |_| {
        steps += 1;
        Ok(answers.next().unwrap_or_default().to_vec())
    });
    assert!(
        steps
            <= if protocol == Protocol::T1 {
                1
            } else {
                MAX_STEPS
            }
    );
    if let Ok(response) = result {
        assert!(response.data.len() <= MAX_RESPONSE_DATA);
    }
});
