/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! BER-TLV data objects.

use secure_element::tlv::{self, MAX_DEPTH, Reader};

/// Reading ends, stays within the bytes and within the greatest depth. What was read is read again from how it is
/// written.
pub fn run(bytes: &[u8]) {
    walk(Reader::new(bytes), 0);
}

fn walk(mut reader: Reader<'_>, depth: u8) {
    assert!(depth < MAX_DEPTH);
    let mut before = reader.rest();
    while let Some(object) = reader.next() {
        let Ok(object) = object else {
            assert!(reader.next().is_none(), "it goes on after an error");
            return;
        };
        let mut written = Vec::new();
        tlv::write(&mut written, object.tag, object.value);
        let consumed = before.len() - reader.rest().len();
        assert!(written.len() <= consumed, "the shortest form is longer");
        let again = Reader::new(&written).only();
        assert_eq!(
            again.map(|again| (again.tag, again.value)),
            Ok((object.tag, object.value))
        );
        match object.parts() {
            Ok(parts) => walk(parts, depth + 1),
            Err(_) => assert!(!object.is_constructed() || depth + 1 == MAX_DEPTH),
        }
        before = reader.rest();
    }
}
