/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Applications that tell web origins apart by themselves.
//!
//! A card cannot see the web, so whoever stands between the two says who the caller is. An
//! application that wants to know announces it in its file control information: in the answer to
//! SELECT by DF name with P2 of 00, template 6F, the proprietary information (A5) has the object
//! identifier (06) 2.25.192907503839295876901901113005163498631. It is one of those that are made
//! from a UUID (ITU-T X.667), so nobody else uses it.
//!
//! Such an application gets PRESENT ORIGIN after each SELECT, before any other command: class 80,
//! on any channel, instruction 40, P1 P2 of 00 00, and the ASCII serialisation of the caller's
//! origin (RFC 6454 section 6.2). With 9000 it serves that origin on that channel until the next
//! SELECT there or the end of the channel. With any other status word it refuses, and nobody uses
//! the channel. What callers send is never PRESENT ORIGIN: see [`is_reserved`].
//!
//! An application that can be reached without SELECT by DF name, because it is selected by default
//! or by a path, must not believe an origin that it is told there.

use crate::apdu::{CommandApdu, CommandError, Header};
use crate::class_byte::{self, ChannelNumber};
use crate::fci::FCI_TEMPLATE;
use crate::tlv::{Reader, Tag};

/// The announcement: the value of an object identifier, 2.25.192907503839295876901901113005163498631.
pub const ANNOUNCEMENT: [u8; 20] = [
    0x69, 0x82, 0xA2, 0xA0, 0xD1, 0x90, 0xB4, 0xC3, 0xC2, 0xB4, 0xD3, 0xBF, 0xD4, 0xF2, 0xC0, 0xD8,
    0xE5, 0xD5, 0x99, 0x07,
];

/// Proprietary information in BER-TLV, among file control parameters (ISO/IEC 7816-4 section 7.4.3).
pub const PROPRIETARY_INFORMATION: Tag = Tag(0xA5);
/// An object identifier.
pub const OBJECT_IDENTIFIER: Tag = Tag(0x06);

/// Says who the caller is.
pub const INS_PRESENT_ORIGIN: u8 = 0x40;
/// The command inside is another one than the header says.
const INS_ENVELOPE: [u8; 2] = [0xC2, 0xC3];

/// Whether the answer to SELECT announces that the application wants to know the caller's origin.
pub fn is_announced(answer: &[u8]) -> bool {
    let Ok(template) = Reader::new(answer).only() else {
        return false;
    };
    template.tag == FCI_TEMPLATE
        && template.parts().is_ok_and(|parts| {
            parts
                .map_while(Result::ok)
                .filter(|part| part.tag == PROPRIETARY_INFORMATION)
                // Others have other things there, not always data objects.
                .filter_map(|information| information.parts().ok())
                .flat_map(|parts| parts.map_while(Result::ok))
                .any(|part| part.tag == OBJECT_IDENTIFIER && part.value == ANNOUNCEMENT)
        })
}

/// PRESENT ORIGIN, with the ASCII serialisation of an origin.
///
/// # Errors
/// The origin has more than 65,535 bytes.
pub fn present_command(origin: &str, channel: ChannelNumber) -> Result<CommandApdu, CommandError> {
    let class = class_byte::globalplatform(channel);
    let header = Header::new(class, INS_PRESENT_ORIGIN, 0x00, 0x00);
    CommandApdu::with_shortest_form(header, origin.as_bytes().to_vec(), None)
}

/// Whether a command to such an application is none that a caller may send: PRESENT ORIGIN in any
/// class and with any parameters, a link of a chain of it included, and ENVELOPE, which could hold
/// it.
pub fn is_reserved(header: Header) -> bool {
    header.ins == INS_PRESENT_ORIGIN || INS_ENVELOPE.contains(&header.ins)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fci::DF_NAME;
    use crate::tlv;

    fn nested(tags: &[u32], value: &[u8]) -> Vec<u8> {
        tags.iter().rev().fold(value.to_vec(), |value, tag| {
            let mut object = Vec::new();
            tlv::write(&mut object, Tag(*tag), &value);
            object
        })
    }

    /// 2.25 and the number, in base 128 (ITU-T X.690 section 8.19).
    #[test]
    fn the_announcement_is_the_identifier() {
        let mut number = 192_907_503_839_295_876_901_901_113_005_163_498_631_u128;
        let mut digits = vec![(number & 0x7F) as u8];
        while number > 0x7F {
            number >>= 7;
            digits.push((number & 0x7F) as u8 | 0x80);
        }
        digits.push(2 * 40 + 25);
        digits.reverse();
        assert_eq!(digits, ANNOUNCEMENT);
    }

    #[test]
    fn it_is_found_in_the_proprietary_information_only() {
        assert!(is_announced(&nested(&[0x6F, 0xA5, 0x06], &ANNOUNCEMENT)));
        for tags in [
            &[0x6F, 0x06][..],
            &[0x62, 0xA5, 0x06],
            &[0x6F, 0xA5, 0x04],
            &[0x6F, 0xA5, 0x73, 0x06],
            &[0x6F, 0xA4, 0x06],
            &[0xA5, 0x06],
        ] {
            assert!(!is_announced(&nested(tags, &ANNOUNCEMENT)), "{tags:X?}");
        }
        for other in [&ANNOUNCEMENT[..19], &[0x2A], &[]] {
            assert!(!is_announced(&nested(&[0x6F, 0xA5, 0x06], other)));
        }
        assert!(!is_announced(&[]));
    }

    #[test]
    fn what_is_said_and_what_is_reserved() {
        let present = |number| {
            let channel = ChannelNumber::new(number).unwrap();
            present_command("https://a.example", channel).unwrap()
        };
        assert_eq!(present(2).encode(), b"\x82\x40\0\0\x11https://a.example");
        assert_eq!(present(5).header().cla, 0xC1);
        for (ins, expected) in [(0x40, true), (0xC2, true), (0xC3, true), (0x44, false)] {
            for class in [0x00, 0x10, 0x80, 0x90] {
                assert_eq!(is_reserved(Header::new(class, ins, 1, 2)), expected);
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_found_among_other_objects(
            name in proptest::collection::vec(any::<u8>(), 1..=16),
            before in proptest::collection::vec(any::<u8>(), 0..300),
            garbage in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let mut proprietary = nested(&[0x9F65], &before);
            tlv::write(&mut proprietary, OBJECT_IDENTIFIER, &[0x2A]);
            tlv::write(&mut proprietary, OBJECT_IDENTIFIER, &ANNOUNCEMENT);
            proprietary.extend(garbage);
            let mut objects = nested(&[DF_NAME.0], &name);
            objects.extend(nested(&[0xA5], &before));
            objects.extend(nested(&[0xA5], &proprietary));
            prop_assert!(is_announced(&nested(&[0x6F], &objects)));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for tags in [&[][..], &[0x6F], &[0x6F, 0xA5]] {
                let _ = is_announced(&nested(tags, &bytes));
            }
        }
    }
}
