/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Data objects, and the DF name in them: reading ends and stays within the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secure_element::fci;
use secure_element::tlv::Reader;

fn walk(reader: Reader<'_>, depth: usize) {
    assert!(depth < usize::from(secure_element::tlv::MAX_DEPTH));
    for object in reader.flatten() {
        if let Ok(parts) = object.parts() {
            walk(parts, depth + 1);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    walk(Reader::new(bytes), 0);
    if let Ok(Some(name)) = fci::df_name(bytes) {
        assert!(
            bytes
                .windows(name.as_bytes().len())
                .any(|part| part == name.as_bytes())
        );
    }
});
