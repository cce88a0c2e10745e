/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A command that can be read is written as it was, moves between channels without changing its
//! meaning, and an answer is read whatever it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secure_element::apdu::{CommandApdu, ResponseApdu};
use secure_element::channel::{parse_opened, parse_selected};
use secure_element::class_byte::{
    ChannelNumber, channel_of, is_forbidden_on_channel, with_channel,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(command) = CommandApdu::parse(bytes) {
        assert_eq!(command.encode(), bytes);
        is_forbidden_on_channel(&command);
        for channel in (0..=ChannelNumber::MAX).filter_map(ChannelNumber::new) {
            if let Ok(class) = with_channel(command.header().cla, channel) {
                assert_eq!(channel_of(class), Ok(channel));
            }
        }
    }
    if let Ok(response) = ResponseApdu::parse(bytes) {
        assert_eq!(response.encode(), bytes);
        let _ = parse_opened(&response);
        let _ = parse_selected(&response);
    }
});
