/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use secure_element::exchange::Protocol;
use thiserror::Error;

/// What a card is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Profile {
    /// What it is for, in a few words.
    pub description: &'static str,
    /// The transmission protocol that the card offers.
    pub protocol: Protocol,
    /// How many logical channels it has besides the basic one, 0 to 19.
    pub supplementary_channels: u8,
    /// Whether commands may have lengths of two bytes. With T=0 they come in envelopes.
    pub extended_length: bool,
    /// Which access rules are on the card.
    pub access_rules: AccessRules,
    /// Whether the card has a PIV application.
    pub has_piv: bool,
}

/// Which access rules are on a card.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessRules {
    /// None, and no application for any, as on almost every card.
    None,
    /// An ARA-M that allows everybody everything. Without one, an embedded element is closed.
    ForEverybody,
    /// The same, but for the PIV application, whose keys belong to origins: those who could send it commands could use them
    /// all.
    ForEverybodyButPiv,
    /// An ARA-M with a few rules: [`crate::applets::ara_m::AraM::sample`].
    Sample,
    /// The same rules in PKCS#15 files, and an EF.DIR that names a USIM.
    Files,
}

/// The default one without its PIV application.
const PLAIN: Profile = Profile {
    description: "like default without PIV, with an ARA-M that allows everybody everything",
    protocol: Protocol::T1,
    supplementary_channels: 19,
    extended_length: true,
    access_rules: AccessRules::ForEverybody,
    has_piv: false,
};

impl Profile {
    /// The profiles that have a name, as configurations give it.
    pub const NAMED: [(&'static str, Self); 10] = [
        (
            "default",
            Self {
                description: "T=1, 19 supplementary channels, extended lengths, a PIV application, an ARA-M that allows \
                              everybody everything else",
                access_rules: AccessRules::ForEverybodyButPiv,
                has_piv: true,
                ..PLAIN
            },
        ),
        (
            "t0",
            Self {
                description: "like default without PIV, but T=0",
                protocol: Protocol::T0,
                ..PLAIN
            },
        ),
        (
            "basic-channel-only",
            Self {
                description: "like default without PIV, but without supplementary channels",
                supplementary_channels: 0,
                ..PLAIN
            },
        ),
        (
            "four-channels",
            Self {
                description: "like default without PIV, but with the basic and three supplementary channels",
                supplementary_channels: 3,
                ..PLAIN
            },
        ),
        (
            "no-extended-length",
            Self {
                description: "like default without PIV, but commands have lengths of one byte only",
                extended_length: false,
                ..PLAIN
            },
        ),
        (
            "ara-m",
            Self {
                description: "like default without PIV, with a few access rules in an ARA-M",
                access_rules: AccessRules::Sample,
                ..PLAIN
            },
        ),
        (
            "no-rules",
            Self {
                description: "like default without PIV, but without an ARA-M, as almost every card",
                access_rules: AccessRules::None,
                ..PLAIN
            },
        ),
        ("plain", PLAIN),
        (
            "piv",
            Self {
                description: "a PIV card like most: T=1, only the basic channel, no access rules",
                supplementary_channels: 0,
                extended_length: false,
                access_rules: AccessRules::None,
                has_piv: true,
                ..PLAIN
            },
        ),
        (
            "uicc",
            Self {
                description: "like t0, but with a USIM in EF.DIR, and the rules of ara-m in PKCS#15 files",
                protocol: Protocol::T0,
                access_rules: AccessRules::Files,
                ..PLAIN
            },
        ),
    ];

    /// The profile of that name.
    pub fn named(name: &str) -> Result<Self, UnknownProfile> {
        Self::NAMED
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, profile)| *profile)
            .ok_or_else(|| UnknownProfile(name.to_owned()))
    }

    /// The answer to reset: historical bytes in COMPACT-TLV with the card capabilities and the
    /// name (ISO/IEC 7816-4 section 8.1.1).
    pub(crate) fn atr(self) -> Vec<u8> {
        // Selection by full and by partial DF name; data units of one byte; command chaining.
        let mut capabilities = [0xC0, 0x01, 0x80];
        if self.protocol == Protocol::T1 && self.extended_length {
            // Extended Lc and Le.
            capabilities[2] |= 0x40;
        }
        if self.supplementary_channels > 0 {
            // The card chooses the channel number; "8 or more" is all that can be said above 7.
            capabilities[2] |= 0x10 | self.supplementary_channels.min(7);
        }
        let mut historical = vec![0x80, 0x73];
        historical.extend(capabilities);
        historical.extend(b"\x55SERVO");

        let length = historical.len() as u8;
        match self.protocol {
            Protocol::T0 => [&[0x3B, length][..], &historical].concat(),
            Protocol::T1 => {
                // TD1: T=1, nothing further, and so a check byte.
                let mut atr = [&[0x3B, 0x80 | length, 0x01][..], &historical].concat();
                let check = atr.iter().skip(1).fold(0, |sum, byte| sum ^ byte);
                atr.push(check);
                atr
            }
        }
    }
}

/// There is no profile of that name.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("there is no virtual card profile {0:?}")]
pub struct UnknownProfile(pub String);
