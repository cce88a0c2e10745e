/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Answers to reset.

use secure_element::atr::{Atr, MAX_LENGTH};

/// What is read from an answer to reset stands in it, and it offers some protocol unless it names only what is none.
pub fn run(bytes: &[u8]) {
    let Ok(atr) = Atr::parse(bytes) else {
        return;
    };
    let [0x3B | 0x3F, t0, ..] = *bytes else {
        panic!("not the beginning of an answer to reset");
    };
    assert!(bytes.len() <= MAX_LENGTH);
    let historical = atr.historical_bytes();
    assert_eq!(historical.len(), usize::from(t0 & 0x0F));
    // Nothing but the check byte may follow them.
    let (_, last) = bytes.split_at(bytes.len() - historical.len());
    let check_byte_is_last = bytes
        .split_last()
        .is_some_and(|(_, before)| before.ends_with(historical));
    assert!(last == historical || check_byte_is_last);
    let names_protocol = t0 & 0x80 != 0;
    assert!(names_protocol || atr.offers(0));
    assert!((15..=u8::MAX).all(|number| !atr.offers(number)));
}
