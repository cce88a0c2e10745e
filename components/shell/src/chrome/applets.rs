/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Applications on cards that a user may have heard of, by the identifier under which a card knows them.

use std::fmt::Write as _;

/// Beginning of the identifier, and name. Where one begins with another, the longer one comes first.
const KNOWN: &[(&[u8], &str)] = &[
    (b"\xA0\x00\x00\x03\x08", "PIV (identity card)"),
    (b"\xD2\x76\x00\x01\x24\x01", "OpenPGP card"),
    (b"\xA0\x00\x00\x06\x47\x2F\x00\x01", "FIDO security key"),
    (
        b"\xA0\x00\x00\x00\x63PKCS-15",
        "PKCS #15 keys and certificates",
    ),
    (
        b"\xA0\x00\x00\x02\x47\x10\x01",
        "Passport or travel document",
    ),
    (
        b"\xE8\x07\x04\x00\x7F\x00\x07\x03\x02",
        "Electronic identity card (eID)",
    ),
    (
        b"\xA0\x00\x00\x00\x87\x10\x02",
        "Mobile network subscription (USIM)",
    ),
    (
        b"\xA0\x00\x00\x00\x87\x10\x04",
        "Mobile network subscription (ISIM)",
    ),
    (b"\xA0\x00\x00\x05\x59\x10\x10", "eSIM management"),
    (
        b"\xA0\x00\x00\x05\x27\x21\x01",
        "Yubico one-time passwords (OATH)",
    ),
    (b"\xA0\x00\x00\x05\x27\x20\x01", "Yubico one-time passwords"),
    (b"1PAY.SYS.DDF01", "Payment card directory"),
    (b"2PAY.SYS.DDF01", "Payment card directory"),
    (b"\xA0\x00\x00\x00\x03\x10\x10", "Visa payment card"),
    (b"\xA0\x00\x00\x00\x04\x10\x10", "Mastercard payment card"),
    (b"\xA0\x00\x00\x00\x25\x01", "American Express payment card"),
    (
        b"\xA0\x00\x00\x01\x51\x00\x00",
        "Card management (issuer security domain)",
    ),
    (
        b"\xA0\x00\x00\x00\x03\x00\x00",
        "Card management (issuer security domain)",
    ),
    (
        b"\xF0SERVO\x01\x01",
        "Echo application of the embedded card",
    ),
];

/// The application's name, if it is a well-known one.
pub fn name(aid: &[u8]) -> Option<&'static str> {
    KNOWN
        .iter()
        .find(|(prefix, _)| aid.starts_with(prefix))
        .map(|(_, name)| *name)
}

/// The identifier as pairs of hexadecimal digits. It has 16 bytes at most; what is more is left out.
pub fn hex(aid: &[u8]) -> String {
    let mut text = String::new();
    for (index, byte) in aid.iter().take(16).enumerate() {
        if index > 0 {
            text.push(' ');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02X}");
    }
    if aid.len() > 16 {
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_by_their_beginning() {
        assert_eq!(
            name(b"\xA0\x00\x00\x03\x08\x00\x00\x10\x00\x01\x00"),
            Some("PIV (identity card)")
        );
        assert_eq!(
            name(b"\xA0\x00\x00\x00\x03\x10\x10\x01"),
            Some("Visa payment card")
        );
        assert_eq!(name(b"\xA0\x00\x00"), None);
        assert_eq!(name(b""), None);
    }

    #[test]
    fn longer_ones_come_first() {
        for (index, (prefix, _)) in KNOWN.iter().enumerate() {
            for (earlier, _) in &KNOWN[..index] {
                assert!(!prefix.starts_with(earlier), "{}", hex(prefix));
            }
        }
    }

    #[test]
    fn identifiers_in_hex() {
        assert_eq!(hex(&[0xA0, 0, 0x0F]), "A0 00 0F");
        assert_eq!(hex(&[0; 17]).len(), 16 * 3 + 3);
    }
}
