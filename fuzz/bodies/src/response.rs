/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Response APDUs.

use secure_element::apdu::{MAX_RESPONSE, ResponseApdu, StatusWord};
use secure_element::channel::{Opened, Selected, parse_opened, parse_selected};

/// Exactly the bytes that hold a status word are a response, and are written as they were. A channel is opened and an
/// application selected only by an answer that says so.
pub fn run(bytes: &[u8]) {
    let Ok(response) = ResponseApdu::parse(bytes) else {
        assert!(!(2..=MAX_RESPONSE).contains(&bytes.len()));
        return;
    };
    assert_eq!(response.encode(), bytes);
    let status = response.status;
    assert!(
        [
            status.is_ok(),
            status.is_warning(),
            status.is_error(),
            status.bytes_available().is_some()
        ]
        .iter()
        .filter(|is_so| **is_so)
        .count()
            <= 1
    );
    assert!(status.exact_length().is_none_or(|length| length >= 1));

    let opened = match *response.data {
        [number @ 1..=19] if status == StatusWord::OK => Some(number),
        _ => None,
    };
    match parse_opened(&response) {
        Ok(Opened::Channel(channel)) => assert_eq!(Some(channel.get()), opened),
        Ok(Opened::NoChannel) | Err(_) => assert_eq!(opened, None),
    }
    let is_selected = parse_selected(&response) == Ok(Selected::Application);
    assert_eq!(is_selected, status.is_ok() || status.is_warning());
}
