/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The virtual card answers any sequence of commands, and with a response where the exchange of
//! the broker's side sends them.
//!
//! Input: the protocol (1 byte), then commands, each with its length in front (1 byte).
#![no_main]

use libfuzzer_sys::fuzz_target;
use secure_element::apdu::CommandApdu;
use secure_element::exchange::{ExchangeError, Kind, Protocol, run};
use virtual_card::applets::echo::{self, INS_DELAY, INS_FAULT};
use virtual_card::{Card, VirtualCard};

fuzz_target!(|bytes: &[u8]| {
    let Some((&options, mut rest)) = bytes.split_first() else {
        return;
    };
    let (name, protocol) = if options & 1 == 0 {
        ("t0", Protocol::T0)
    } else {
        ("default", Protocol::T1)
    };
    let Ok(mut card) = VirtualCard::from_profile(name) else {
        return;
    };
    if options & 2 == 0 {
        let select = [&[0x00, 0xA4, 0x04, 0x0C, 0x08][..], &echo::AID].concat();
        card.transmit(&select);
    }
    while let Some((&length, behind)) = rest.split_first() {
        let (bytes, behind) = behind.split_at(behind.len().min(usize::from(length)));
        rest = behind;
        // These wait and fail because they are told to. In an envelope, too.
        if bytes
            .iter()
            .any(|byte| [INS_DELAY, INS_FAULT].contains(byte))
        {
            continue;
        }
        assert!(card.transmit(bytes).len() >= 2);
        if let Ok(command) = CommandApdu::parse(bytes) {
            let _ = run::<ExchangeError>(&command, protocol, Kind::Ordinary, |bytes| {
                Ok(card.transmit(bytes))
            });
        }
    }
});
