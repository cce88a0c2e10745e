/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The answer to reset (ISO/IEC 7816-3 section 8.2).

use thiserror::Error;

/// The longest answer to reset: TS and 32 characters.
pub const MAX_LENGTH: usize = 33;

const TS_DIRECT: u8 = 0x3B;
const TS_INVERSE: u8 = 0x3F;
/// A protocol number that is none: the interface bytes behind it are global.
const GLOBAL_INTERFACE: u8 = 15;

/// Why bytes are not an answer to reset.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum AtrError {
    /// More than [`MAX_LENGTH`] bytes.
    #[error("an ATR has at most {MAX_LENGTH} bytes, not {0}")]
    TooLong(usize),
    /// The first byte is neither 3B nor 3F.
    #[error("an ATR does not start with {0:02X}")]
    InvalidTs(u8),
    /// It ends before the bytes that it announces.
    #[error("the ATR is cut off")]
    Truncated,
    /// There are bytes behind its end.
    #[error("{0} bytes follow the ATR")]
    TrailingBytes(usize),
    /// The check byte is wrong.
    #[error("the ATR's check byte is wrong")]
    WrongCheckByte,
}

/// What an answer to reset says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Atr<'a> {
    historical_bytes: &'a [u8],
    /// Bit n: the card offers T=n.
    protocols: u16,
}

impl<'a> Atr<'a> {
    /// Reads an answer to reset, its check byte included.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AtrError> {
        if bytes.len() > MAX_LENGTH {
            return Err(AtrError::TooLong(bytes.len()));
        }
        let [ts, checked @ ..] = bytes else {
            return Err(AtrError::Truncated);
        };
        if ![TS_DIRECT, TS_INVERSE].contains(ts) {
            return Err(AtrError::InvalidTs(*ts));
        }
        let (t0, mut rest) = checked.split_first().ok_or(AtrError::Truncated)?;
        let historical_length = usize::from(t0 & 0x0F);
        let mut protocols = 0;
        let mut has_check_byte = false;
        // Each round reads at least TDi, so the bound on the length bounds the rounds.
        let mut presence = t0 >> 4;
        loop {
            // TAi, TBi and TCi say nothing that is needed here.
            let skipped = (presence & 0b0111).count_ones() as usize;
            rest = rest.get(skipped..).ok_or(AtrError::Truncated)?;
            if presence & 0b1000 == 0 {
                break;
            }
            let (td, behind) = rest.split_first().ok_or(AtrError::Truncated)?;
            rest = behind;
            presence = td >> 4;
            let protocol = td & 0x0F;
            if protocol != GLOBAL_INTERFACE {
                protocols |= 1 << protocol;
            }
            has_check_byte |= protocol != 0;
        }
        // Without TD1, T=0 is offered.
        if t0 & 0x80 == 0 {
            protocols = 1;
        }
        let (historical_bytes, mut behind) = rest
            .split_at_checked(historical_length)
            .ok_or(AtrError::Truncated)?;
        if has_check_byte {
            behind = behind.get(1..).ok_or(AtrError::Truncated)?;
        }
        if !behind.is_empty() {
            return Err(AtrError::TrailingBytes(behind.len()));
        }
        if has_check_byte && checked.iter().fold(0, |sum, byte| sum ^ byte) != 0 {
            return Err(AtrError::WrongCheckByte);
        }
        Ok(Self {
            historical_bytes,
            protocols,
        })
    }

    /// The 0 to 15 historical bytes.
    pub const fn historical_bytes(&self) -> &'a [u8] {
        self.historical_bytes
    }

    /// Whether the card offers the transmission protocol T=`number`.
    pub const fn offers(&self, number: u8) -> bool {
        number < GLOBAL_INTERFACE && self.protocols & (1 << number) != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vectors() {
        // (ATR, historical bytes, T=0, T=1)
        let cases: [(&[u8], &[u8], bool, bool); 6] = [
            (&[0x3B, 0x00], &[], true, false),
            (&[0x3B, 0x04, 1, 2, 3, 4], &[1, 2, 3, 4], true, false),
            // TD1 = 80 (T=0), TD2 = 01 (T=1), as contactless readers build it.
            (&[0x3B, 0x81, 0x80, 0x01, 0x55, 0x55], &[0x55], true, true),
            // A YubiKey NEO and a YubiKey 5: T=1 only.
            (
                &[
                    0x3B, 0xFC, 0x13, 0x00, 0x00, 0x81, 0x31, 0xFE, 0x15, b'Y', b'u', b'b', b'i',
                    b'k', b'e', b'y', b'N', b'E', b'O', b'r', b'3', 0xE1,
                ],
                b"YubikeyNEOr3",
                false,
                true,
            ),
            (
                &[
                    0x3B, 0xFD, 0x13, 0x00, 0x00, 0x81, 0x31, 0xFE, 0x15, 0x80, 0x73, 0xC0, 0x21,
                    0xC0, 0x57, b'Y', b'u', b'b', b'i', b'K', b'e', b'y', 0x40,
                ],
                b"\x80\x73\xC0\x21\xC0\x57YubiKey",
                false,
                true,
            ),
            (&[0x3F, 0x80, 0x1F, 0x55, 0xCA], &[], false, false),
        ];
        for (bytes, historical, t0, t1) in cases {
            let atr = Atr::parse(bytes).unwrap_or_else(|error| panic!("{bytes:02X?}: {error}"));
            assert_eq!(atr.historical_bytes(), historical);
            assert_eq!((atr.offers(0), atr.offers(1)), (t0, t1), "{bytes:02X?}");
            assert!(!atr.offers(15) && !atr.offers(255));
        }
    }

    #[test]
    fn malformed_ones_are_errors() {
        for (bytes, error) in [
            (&[][..], AtrError::Truncated),
            (&[0x3B], AtrError::Truncated),
            (&[0x3A, 0x00], AtrError::InvalidTs(0x3A)),
            (&[0x3B, 0x10], AtrError::Truncated),
            (&[0x3B, 0x80], AtrError::Truncated),
            (&[0x3B, 0x02, 1], AtrError::Truncated),
            (&[0x3B, 0x80, 0x01], AtrError::Truncated),
            (&[0x3B, 0x00, 0x00], AtrError::TrailingBytes(1)),
            (&[0x3B, 0x80, 0x01, 0x80], AtrError::WrongCheckByte),
        ] {
            assert_eq!(Atr::parse(bytes), Err(error), "{bytes:02X?}");
        }
        assert_eq!(Atr::parse(&[0x3B; 34]), Err(AtrError::TooLong(34)));
        // TD follows TD until the bytes run out.
        assert_eq!(
            Atr::parse(&[&[0x3B][..], &[0x80; 32]].concat()),
            Err(AtrError::Truncated)
        );
    }

    /// An answer to reset with these historical bytes and, for each protocol, the interface bytes TA, TB and TC of
    /// the group that its TD begins.
    fn build(historical: &[u8], first: &[u8], groups: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let presence = |bytes: &[u8], is_last: bool| {
            let follows = if is_last { 0 } else { 0b1000 };
            ((1 << bytes.len()) - 1) | follows
        };
        let mut bytes = vec![
            TS_DIRECT,
            (presence(first, groups.is_empty()) << 4) | historical.len() as u8,
        ];
        bytes.extend(first);
        for (index, (protocol, interface)) in groups.iter().enumerate() {
            bytes.push((presence(interface, index + 1 == groups.len()) << 4) | protocol);
            bytes.extend(interface);
        }
        bytes.extend(historical);
        if groups.iter().any(|(protocol, _)| *protocol != 0) {
            bytes.push(bytes.iter().skip(1).fold(0, |sum, byte| sum ^ byte));
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(
            historical in proptest::collection::vec(any::<u8>(), 0..=15),
            first in proptest::collection::vec(any::<u8>(), 0..=3),
            groups in proptest::collection::vec(
                (0..=15_u8, proptest::collection::vec(any::<u8>(), 0..=3)),
                0..4,
            ),
        ) {
            let bytes = build(&historical, &first, &groups);
            if bytes.len() > MAX_LENGTH {
                prop_assert_eq!(Atr::parse(&bytes), Err(AtrError::TooLong(bytes.len())));
                return Ok(());
            }
            let atr = Atr::parse(&bytes).unwrap();
            prop_assert_eq!(atr.historical_bytes(), historical);
            for number in 0..15 {
                let is_named = groups.iter().any(|(protocol, _)| *protocol == number);
                let is_default = groups.is_empty() && number == 0;
                prop_assert_eq!(atr.offers(number), is_named || is_default);
            }
        }

        #[test]
        fn a_wrong_check_byte_is_noticed(
            historical in proptest::collection::vec(any::<u8>(), 1..=15),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let mut bytes = build(&historical, &[], &[(1, vec![])]);
            let from = bytes.len() - historical.len() - 1;
            let at = from + at.index(historical.len() + 1);
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(Atr::parse(&bytes), Err(AtrError::WrongCheckByte));
        }

        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Atr::parse(&bytes);
            if let Some(ts) = bytes.first_mut() {
                *ts = TS_DIRECT;
            }
            if let Ok(atr) = Atr::parse(&bytes) {
                prop_assert!(atr.historical_bytes().len() <= 15);
            }
        }
    }
}
