/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The card in software.

use secure_element::apdu::CommandApdu;
use secure_element::exchange::{ExchangeError, Kind, run as exchange};
use virtual_card::applets::echo::{self, INS_DELAY, INS_FAULT};
use virtual_card::{Card, Profile, VirtualCard};

/// Leaves the application selected that a reset selects.
pub const WITHOUT_ECHO: u8 = 0x80;

/// The virtual card answers any sequence of commands, and with a response where the exchange of the broker's side sends
/// them.
///
/// Input: options (1 byte: the profile in the low half; bit 8 without the echo applet), then commands, each with its
/// length in front (1 byte).
pub fn run(bytes: &[u8]) {
    let Some((&options, mut rest)) = bytes.split_first() else {
        return;
    };
    let index = usize::from(options & 0x0F) % Profile::NAMED.len();
    let (name, Profile { protocol, .. }) = Profile::NAMED[index];
    let mut card = VirtualCard::from_profile(name).unwrap_or_else(|error| panic!("{error}"));
    if options & WITHOUT_ECHO == 0 {
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
            let _ = exchange::<ExchangeError>(&command, protocol, Kind::Ordinary, |bytes| {
                let answer = card.transmit(bytes);
                assert!(answer.len() >= 2);
                Ok(answer)
            });
        }
    }
}
