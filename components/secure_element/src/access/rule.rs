/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! One access rule, whatever it was read from.

use std::fmt;

use crate::apdu::Header;
use crate::channel::Aid;

/// Which application of the element a rule is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AidRef {
    /// All that have no rule of their own.
    All,
    /// The one of this AID, 5 to 16 bytes.
    Aid(Aid),
    /// The implicitly selected one, whatever its AID and its channel.
    Implicit,
}

/// Whom a rule is about.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub enum AppRef {
    /// Everybody who has no rule of their own.
    All,
    /// Whose identifier has this SHA-1. A UUID, padded with FF to 20 bytes, looks the same and
    /// matches no origin.
    Sha1([u8; 20]),
    /// Whose identifier has this SHA-256.
    Sha256([u8; 32]),
}

/// Tells the kinds apart only: which origins a card knows is its holder's business.
impl fmt::Debug for AppRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::All => "All",
            Self::Sha1(_) => "Sha1",
            Self::Sha256(_) => "Sha256",
        })
    }
}

/// A command header and a mask (section 6.1.6): it matches a command whose header, masked, is this
/// header. One with a bit outside its mask matches nothing.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Filter {
    /// The header.
    pub header: [u8; 4],
    /// Which bits of it count.
    pub mask: [u8; 4],
}

impl Filter {
    /// The length of an encoded filter, in bytes.
    pub(crate) const LENGTH: usize = 8;

    /// A filter of its encoding: header, then mask.
    pub(crate) fn from_bytes([a, b, c, d, e, f, g, h]: [u8; Self::LENGTH]) -> Self {
        Self {
            header: [a, b, c, d],
            mask: [e, f, g, h],
        }
    }
}

/// What a rule says about commands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ApduRule {
    /// No command, and no channel.
    Never,
    /// Every command.
    Always,
    /// The commands that one of these matches.
    Filters(Vec<Filter>),
}

/// An access rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// What it is about.
    pub aid: AidRef,
    /// Whom it is about.
    pub app: AppRef,
    /// What it says about commands. `None` says nothing: it means "never", unless another rule of
    /// the same references says something else (annex G).
    pub apdu: Option<ApduRule>,
}

/// Filters, arranged so that their number hardly counts: one look-up for each mask.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filters {
    /// Masks, ascending, each with its headers, ascending.
    by_mask: Vec<(u32, Vec<u32>)>,
}

impl Filters {
    /// Whether one of them matches the header. Its class byte must be without a channel
    /// ([`without_channel`](crate::class_byte::without_channel)).
    pub fn match_header(&self, header: Header) -> bool {
        let header = u32::from_be_bytes(header.to_bytes());
        self.by_mask
            .iter()
            .any(|(mask, headers)| headers.binary_search(&(header & mask)).is_ok())
    }
}

impl FromIterator<Filter> for Filters {
    fn from_iter<I: IntoIterator<Item = Filter>>(filters: I) -> Self {
        let mut pairs: Vec<(u32, u32)> = filters
            .into_iter()
            .map(|filter| {
                let header = u32::from_be_bytes(filter.header);
                (u32::from_be_bytes(filter.mask), header)
            })
            .collect();
        pairs.sort_unstable();
        let mut by_mask: Vec<(u32, Vec<u32>)> = Vec::new();
        for (mask, header) in pairs {
            match by_mask.last_mut() {
                Some((last, headers)) if *last == mask => headers.push(header),
                _ => by_mask.push((mask, vec![header])),
            }
        }
        Self { by_mask }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(header: u32, mask: u32) -> Filter {
        Filter {
            header: header.to_be_bytes(),
            mask: mask.to_be_bytes(),
        }
    }

    fn header(header: u32) -> Header {
        let [cla, ins, p1, p2] = header.to_be_bytes();
        Header::new(cla, ins, p1, p2)
    }

    #[test]
    fn a_filter_matches_the_masked_header() {
        let filters = Filters::from_iter([
            filter(0x00B0_0000, 0xFFFF_0000),
            filter(0x80CA_FF40, 0xFFFF_FFFF),
        ]);
        for (command, expected) in [
            (0x00B0_0000, true),
            (0x00B0_1234, true),
            (0x00B1_0000, false),
            (0x80B0_0000, false),
            (0x80CA_FF40, true),
            (0x80CA_FF60, false),
        ] {
            assert_eq!(
                filters.match_header(header(command)),
                expected,
                "{command:08X}"
            );
        }
        assert!(!Filters::default().match_header(header(0)));
        let everything = Filters::from_iter([filter(0, 0)]);
        assert!(everything.match_header(header(0xFFFF_FFFF)));
    }

    #[test]
    fn a_header_bit_outside_the_mask_never_matches() {
        let filters = Filters::from_iter([filter(0x00B0_0001, 0xFFFF_0000)]);
        assert!(!filters.match_header(header(0x00B0_0001)));
        assert!(!filters.match_header(header(0x00B0_0000)));
    }

    #[test]
    fn filters_of_the_same_mask_are_looked_up_at_once() {
        let same = (0..1000).map(|header| filter(header, 0xFFFF_FFFF));
        let filters = Filters::from_iter(same.chain([filter(0, 0xFF00_0000)]));
        assert_eq!(filters.by_mask.len(), 2);
        assert!(filters.match_header(header(999)) && filters.match_header(header(0x1234)));
        assert!(!filters.match_header(header(0x0100_0000)));
    }

    #[test]
    fn identifiers_are_not_shown() {
        assert_eq!(format!("{:?}", AppRef::Sha1([0xAB; 20])), "Sha1");
        assert_eq!(format!("{:?}", AppRef::Sha256([0xAB; 32])), "Sha256");
        assert_eq!(format!("{:?}", AppRef::All), "All");
    }

    proptest! {
        #[test]
        fn arranged_filters_match_as_a_list_does(
            list in proptest::collection::vec((0..8_u32, 0..8_u32), 0..6),
            command in 0..16_u32,
        ) {
            let filters: Filters = list.iter().map(|&(header, mask)| filter(header, mask)).collect();
            let expected = list.iter().any(|&(header, mask)| command & mask == header);
            prop_assert_eq!(filters.match_header(header(command)), expected);
        }
    }
}
