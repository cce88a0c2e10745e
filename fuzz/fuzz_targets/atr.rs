/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Any answer to reset is read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secure_element::atr::Atr;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(atr) = Atr::parse(bytes) {
        assert!(atr.historical_bytes().len() <= 15);
        assert!((0..15).any(|protocol| atr.offers(protocol)) || bytes[1] & 0x80 != 0);
    }
});
