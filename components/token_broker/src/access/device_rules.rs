/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Device rules, `access-rules.toml`: what the device's owner or administrator allows where a card
//! has no rules of its own. The rules are the same as on a card, with origins in place of hashes,
//! and so is the decision: [`DeviceRules::for_element`].
//!
//! ```toml
//! [[rule]]
//! origin = "https://bank.example"  # or "*", everybody
//! aid = "A00000000401"             # or "*", all applications, or "default", the implicitly selected one
//! element = "smartcard"            # or "uicc", "ese", "sd", "other"; "*", all of them, if left out
//! apdu = [{ header = "00B00000", mask = "FFFF0000" }]  # or "always" or "never"
//! ```

use std::fmt::{self, Write as _};

use secure_element::access::{AidRef, ApduRule, AppId, AppRef, Filter, Rule, RuleSet};
use secure_element::channel::Aid;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;
use token_traits::Origin;
use token_traits::port::ElementType;
use toml::Spanned;

use super::is_promptable;

/// The longest file that is read, in bytes.
pub const MAX_LENGTH: usize = 1 << 20;

/// Rules of a file, in its order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeviceRules {
    /// The rules.
    pub rules: Vec<DeviceRule>,
}

/// One rule. Displayed as it is written in a file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// Whom it is about; `None` is everybody.
    #[serde(deserialize_with = "origin")]
    pub origin: Option<Origin>,
    /// Which application it is about.
    #[serde(deserialize_with = "aid")]
    pub aid: AidRef,
    /// On which elements; `None` is all.
    #[serde(default, deserialize_with = "element")]
    pub element: Option<ElementType>,
    /// What it allows.
    #[serde(deserialize_with = "apdu")]
    pub apdu: ApduRule,
}

/// What is wrong with a file: a sentence that names the key, and where it stands.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("line {line}: {message}")]
pub struct DeviceRulesError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl DeviceRules {
    /// Reads an administrator's file, of at most [`MAX_LENGTH`] bytes.
    pub fn parse(text: &str) -> Result<Self, DeviceRulesError> {
        let rules = Self::read(text)?;
        Ok(Self {
            rules: rules.into_iter().map(Spanned::into_inner).collect(),
        })
    }

    /// Reads a user's own file. It can forbid everything, but allow only what the user could allow when asked.
    pub fn parse_of_user(text: &str) -> Result<Self, DeviceRulesError> {
        let too_much = |rule: &DeviceRule| {
            rule.apdu != ApduRule::Never
                && !matches!(rule.aid, AidRef::Aid(aid) if is_promptable(aid.as_bytes()))
        };
        let rules = Self::read(text)?;
        match rules.iter().find(|rule| too_much(rule.get_ref())) {
            Some(rule) => Err(DeviceRulesError {
                line: line(text, rule.span().start),
                message: "aid: a user's rules can allow single applications only, and none that manages a card or keeps \
                          keys for FIDO, PIV, OpenPGP, PKCS #15 or a mobile network; an administrator's can"
                    .to_owned(),
            }),
            None => Self::parse(text),
        }
    }

    fn read(text: &str) -> Result<Vec<Spanned<DeviceRule>>, DeviceRulesError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            rule: Vec<Spanned<DeviceRule>>,
        }
        // So long a file has fewer rules and filters than an element may have.
        if text.len() > MAX_LENGTH {
            return Err(DeviceRulesError {
                line: text.lines().count(),
                message: "the file is longer than 1 MiB".to_owned(),
            });
        }
        let file: File = toml::from_str(text).map_err(|error| DeviceRulesError {
            line: line(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        Ok(file.rule)
    }

    /// The rules for elements of a type. An empty set allows nothing.
    pub fn for_element(&self, element: ElementType) -> RuleSet {
        RuleSet::new(self.rules.iter().filter_map(|rule| {
            let app = match &rule.origin {
                None => AppRef::All,
                // The hash is this program's own choice here: origins have both.
                Some(origin) => {
                    let app = AppId::from_origin(origin.as_str()).ok()?;
                    AppRef::Sha256(*app.sha256()?)
                }
            };
            rule.element
                .is_none_or(|only| only == element)
                .then(|| Rule {
                    aid: rule.aid,
                    app,
                    apdu: Some(rule.apdu.clone()),
                })
        }))
    }
}

/// The number of the line in which a byte is, from 1.
fn line(text: &str, byte: usize) -> usize {
    let before = text.get(..byte).unwrap_or(text);
    before.matches('\n').count() + 1
}

impl fmt::Display for DeviceRules {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, rule) in self.rules.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{rule}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No value has a character that TOML would want escaped.
        let origin = self.origin.as_ref().map_or("*", Origin::as_str);
        let aid = match &self.aid {
            AidRef::All => "*".to_owned(),
            AidRef::Implicit => "default".to_owned(),
            AidRef::Aid(aid) => hex(aid.as_bytes()),
        };
        writeln!(
            formatter,
            "[[rule]]\norigin = \"{origin}\"\naid = \"{aid}\""
        )?;
        if let Some(element) = self.element {
            let (name, _) = ELEMENTS
                .into_iter()
                .find(|(_, other)| *other == element)
                .ok_or(fmt::Error)?;
            writeln!(formatter, "element = \"{name}\"")?;
        }
        match &self.apdu {
            ApduRule::Always => writeln!(formatter, "apdu = \"always\""),
            ApduRule::Never => writeln!(formatter, "apdu = \"never\""),
            ApduRule::Filters(filters) => {
                writeln!(formatter, "apdu = [")?;
                for Filter { header, mask } in filters {
                    let (header, mask) = (hex(header), hex(mask));
                    writeln!(
                        formatter,
                        "    {{ header = \"{header}\", mask = \"{mask}\" }},"
                    )?;
                }
                writeln!(formatter, "]")
            }
        }
    }
}

const ELEMENTS: [(&str, ElementType); 5] = [
    ("uicc", ElementType::Uicc),
    ("smartcard", ElementType::SmartCard),
    ("ese", ElementType::Embedded),
    ("sd", ElementType::Sd),
    ("other", ElementType::Other),
];

fn origin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Origin>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "*" => Ok(None),
        text => Origin::new(text)
            .map(Some)
            .ok_or_else(|| D::Error::custom("origin: an origin, as https://bank.example, or *")),
    }
}

fn aid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AidRef, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "*" => Ok(AidRef::All),
        "default" => Ok(AidRef::Implicit),
        digits => bytes(digits)
            .and_then(|aid| Aid::new(&aid).ok())
            .filter(Aid::has_complete_length)
            .map(AidRef::Aid)
            .ok_or_else(|| {
                D::Error::custom("aid: 5 to 16 bytes in hexadecimal digits, or *, or default")
            }),
    }
}

fn element<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ElementType>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "*" {
        return Ok(None);
    }
    ELEMENTS
        .into_iter()
        .find(|(name, _)| *name == text)
        .map(|(_, element)| Some(element))
        .ok_or_else(|| D::Error::custom("element: uicc, smartcard, ese, sd, other, or *"))
}

fn apdu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ApduRule, D::Error> {
    struct ApduVisitor;

    impl<'de> Visitor<'de> for ApduVisitor {
        type Value = ApduRule;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("apdu: always, never, or a list of { header, mask }")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "always" => Ok(ApduRule::Always),
                "never" => Ok(ApduRule::Never),
                _ => Err(E::custom(
                    "apdu: always, never, or a list of { header, mask }",
                )),
            }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut filters = Vec::new();
            while let Some(FilterSpec { header, mask }) = list.next_element()? {
                filters.push(Filter { header, mask });
            }
            if filters.is_empty() {
                return Err(A::Error::custom("apdu: the list must not be empty"));
            }
            Ok(ApduRule::Filters(filters))
        }
    }

    deserializer.deserialize_any(ApduVisitor)
}

#[derive(Deserialize)]
#[serde(try_from = "RawFilter")]
struct FilterSpec {
    header: [u8; 4],
    mask: [u8; 4],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFilter {
    #[serde(deserialize_with = "four_bytes")]
    header: [u8; 4],
    #[serde(deserialize_with = "four_bytes")]
    mask: [u8; 4],
}

impl TryFrom<RawFilter> for FilterSpec {
    type Error = &'static str;

    fn try_from(RawFilter { header, mask }: RawFilter) -> Result<Self, Self::Error> {
        // On a card that is a filter that never matches; here somebody has made a mistake.
        let outside = header
            .iter()
            .zip(mask)
            .any(|(header, mask)| header & !mask != 0);
        if outside {
            Err("header: it has bits that its mask does not have, so no command matches")
        } else {
            Ok(Self { header, mask })
        }
    }
}

fn four_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 4], D::Error> {
    bytes(&String::deserialize(deserializer)?)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| D::Error::custom("header and mask: 4 bytes in hexadecimal digits"))
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secure_element::access::{Access, Target};
    use secure_element::apdu::Header;

    use super::*;

    const FILE: &str = r#"
# The bank's own applet.
[[rule]]
origin = "https://bank.example"
aid = "A00000000401"
element = "smartcard"
apdu = [{ header = "00B00000", mask = "FFFF0000" }, { header = "80ca9f7f", mask = "ffffffff" }]

[[rule]]
origin = "*"
aid = "*"
element = "ese"
apdu = "never"

[[rule]]
origin = "https://shop.example:8443"
aid = "default"
apdu = "always"
"#;

    fn app(origin: &str) -> AppId {
        AppId::from_origin(origin).unwrap()
    }

    fn application(bytes: &[u8]) -> Target {
        Target::Application(Aid::new(bytes).unwrap())
    }

    const BANK: [u8; 6] = [0xA0, 0, 0, 0, 4, 1];

    #[test]
    fn a_file_of_every_kind_of_rule() {
        let rules = DeviceRules::parse(FILE).unwrap();
        assert_eq!(rules.rules.len(), 3);
        let bank = app("https://bank.example");
        let shop = app("https://shop.example:8443");

        let card = rules.for_element(ElementType::SmartCard);
        let access = card.channel_access(application(&BANK), &bank);
        for (command, expected) in [
            (Header::new(0x00, 0xB0, 0x12, 0x34), true),
            (Header::new(0x80, 0xCA, 0x9F, 0x7F), true),
            (Header::new(0x00, 0x20, 0x00, 0x80), false),
        ] {
            assert_eq!(access.allows_command(command), expected);
        }
        assert!(
            !card
                .channel_access(application(&BANK), &shop)
                .allows_channel()
        );
        assert_eq!(card.channel_access(Target::Implicit, &shop), Access::Always);
        assert!(
            !card
                .channel_access(Target::Implicit, &bank)
                .allows_channel()
        );

        let embedded = rules.for_element(ElementType::Embedded);
        assert!(
            !embedded
                .channel_access(application(&BANK), &bank)
                .allows_channel()
        );
        assert_eq!(
            embedded.channel_access(Target::Implicit, &shop),
            Access::Always
        );
        assert!(
            rules
                .for_element(ElementType::Uicc)
                .channel_access(Target::Implicit, &shop)
                .allows_channel()
        );
    }

    #[test]
    fn rules_are_written_for_people_too() {
        let rules = DeviceRules::parse(FILE).unwrap();
        let expected = r#"[[rule]]
origin = "https://bank.example"
aid = "A00000000401"
element = "smartcard"
apdu = [
    { header = "00B00000", mask = "FFFF0000" },
    { header = "80CA9F7F", mask = "FFFFFFFF" },
]

[[rule]]
origin = "*"
aid = "*"
element = "ese"
apdu = "never"

[[rule]]
origin = "https://shop.example:8443"
aid = "default"
apdu = "always"
"#;
        assert_eq!(rules.to_string(), expected);
    }

    #[test]
    fn no_rules_are_no_access() {
        for text in ["", "# nothing\n", "rule = []"] {
            let rules = DeviceRules::parse(text).unwrap();
            assert!(rules.for_element(ElementType::SmartCard).is_empty());
        }
    }

    #[test]
    fn every_name_of_an_element() {
        for (name, element) in ELEMENTS {
            let text = format!(
                "[[rule]]\norigin = \"*\"\naid = \"*\"\napdu = \"always\"\nelement = \"{name}\""
            );
            let rules = DeviceRules::parse(&text).unwrap();
            for (_, other) in ELEMENTS {
                assert_eq!(
                    rules.for_element(other).is_empty(),
                    other != element,
                    "{name}"
                );
            }
        }
        let text = "[[rule]]\norigin = \"*\"\naid = \"*\"\napdu = \"always\"\nelement = \"*\"";
        let rules = DeviceRules::parse(text).unwrap();
        assert!(
            ELEMENTS
                .iter()
                .all(|(_, element)| !rules.for_element(*element).is_empty())
        );
    }

    #[test]
    fn mistakes_are_named_with_their_lines() {
        let rule = |key: &str, value: &str| {
            let mut lines = [
                ("origin", "\"https://bank.example\""),
                ("aid", "\"A00000000401\""),
                ("element", "\"sd\""),
                ("apdu", "\"always\""),
            ];
            if let Some(line) = lines.iter_mut().find(|(name, _)| *name == key) {
                line.1 = value;
            }
            let lines = lines.map(|(key, value)| format!("{key} = {value}\n"));
            format!("\n[[rule]]\n{}", lines.concat())
        };
        assert!(DeviceRules::parse(&rule("", "")).is_ok());
        for (key, value, line, named) in [
            ("origin", "\"\"", 3, "origin"),
            ("origin", "\"null\"", 3, "origin"),
            ("origin", "\"https://Bank.example\"", 3, "origin"),
            ("origin", "\"https://bank.example/path\"", 3, "origin"),
            ("origin", "\"https://*.example\\\"\"", 3, "origin"),
            ("aid", "\"\"", 4, "aid"),
            ("aid", "\"A0000000\"", 4, "aid"),
            ("aid", "\"A000000004010\"", 4, "aid"),
            ("aid", "\"A0000000040102030405060708090A0B0C\"", 4, "aid"),
            ("aid", "\"bank applet\"", 4, "aid"),
            ("element", "\"card\"", 5, "element"),
            ("apdu", "\"sometimes\"", 6, "apdu"),
            ("apdu", "[]", 6, "apdu"),
            ("apdu", "true", 6, "apdu"),
            (
                "apdu",
                "[{ header = \"00B000\", mask = \"FFFFFFFF\" }]",
                6,
                "header",
            ),
            (
                "apdu",
                "[{ header = \"00B00001\", mask = \"FFFF0000\" }]",
                6,
                "header",
            ),
            ("apdu", "[{ header = \"00B00000\" }]", 6, "mask"),
            (
                "apdu",
                "[{ header = \"00B00000\", mask = \"FFFF0000\", le = 1 }]",
                6,
                "le",
            ),
        ] {
            let error = DeviceRules::parse(&rule(key, value)).unwrap_err();
            assert_eq!(error.line, line, "{value}: {error}");
            assert!(error.message.contains(named), "{value}: {error}");
        }
    }

    #[test]
    fn a_user_allows_no_more_than_a_prompt_could() {
        let file = |aid: &str, apdu: &str| {
            format!("\n\n[[rule]]\norigin = \"*\"\naid = \"{aid}\"\napdu = {apdu}\n")
        };
        let always = "\"always\"";
        let filters = "[{ header = \"00B00000\", mask = \"FFFF0000\" }]";
        let (echo, piv) = ("F0534552564F0101", "A000000308000010000100");
        for apdu in [always, filters] {
            let text = file(echo, apdu);
            assert_eq!(DeviceRules::parse_of_user(&text), DeviceRules::parse(&text));
            for aid in [
                piv,
                "A000000308",
                "A0000006472F0001",
                "A000000151",
                "*",
                "default",
            ] {
                let text = file(echo, "\"never\"") + &file(aid, apdu);
                assert!(DeviceRules::parse(&text).is_ok());
                let error = DeviceRules::parse_of_user(&text).unwrap_err();
                assert_eq!(error.line, 9, "{aid}: {error}");
                assert!(error.message.starts_with("aid: "), "{error}");
            }
        }
        for aid in [piv, "*", "default"] {
            assert!(DeviceRules::parse_of_user(&file(aid, "\"never\"")).is_ok());
        }
        let mistake = DeviceRules::parse_of_user("[[rule]]\norigin = 1").unwrap_err();
        assert_eq!(mistake.line, 2);
    }

    #[test]
    fn unknown_and_missing_keys_are_named() {
        let error = |text: &str| DeviceRules::parse(text).unwrap_err();
        let unknown = error("\n\n[[rules]]\n");
        assert_eq!(unknown.line, 3);
        assert!(unknown.message.contains("rules"), "{unknown}");
        let unknown = error("[[rule]]\norigin = \"*\"\naids = \"*\"\napdu = \"always\"\n");
        assert_eq!(unknown.line, 3);
        assert!(unknown.message.contains("aids"), "{unknown}");
        let missing = error("[[rule]]\norigin = \"*\"\napdu = \"always\"\n");
        assert!(missing.message.contains("aid"), "{missing}");
        let twice = error("[[rule]]\naid = \"*\"\naid = \"*\"\n");
        assert_eq!(twice.line, 3);
        assert_eq!(error("[[rule]]\norigin = ").line, 2);
        assert_eq!(error("x").to_string().find("line 1: "), Some(0));
    }

    #[test]
    fn files_are_bounded() {
        let mut text = "#".repeat(MAX_LENGTH);
        assert!(DeviceRules::parse(&text).is_ok());
        text.push('#');
        assert!(DeviceRules::parse(&text).is_err());
        // Nested as deep as the file allows.
        assert!(DeviceRules::parse(&format!("rule = {}", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn many_rules_are_read() {
        let rule = "[[rule]]\norigin=\"*\"\naid=\"*\"\napdu=\"never\"\n";
        let rules = DeviceRules::parse(&rule.repeat(10_000)).unwrap();
        assert_eq!(rules.rules.len(), 10_000);
    }

    fn any_rule() -> impl Strategy<Value = DeviceRule> {
        let origin = prop_oneof![
            Just(None),
            Just(Origin::new("https://bank.example")),
            Just(Origin::new("http://localhost:8000")),
        ];
        let aid = prop_oneof![
            Just(AidRef::All),
            Just(AidRef::Implicit),
            proptest::collection::vec(any::<u8>(), 5..=16)
                .prop_map(|aid| AidRef::Aid(Aid::new(&aid).unwrap())),
        ];
        let element = proptest::option::of(0..5_usize)
            .prop_map(|element| element.map(|element| ELEMENTS[element].1));
        let filter = (any::<u32>(), any::<u32>()).prop_map(|(header, mask)| Filter {
            header: (header & mask).to_be_bytes(),
            mask: mask.to_be_bytes(),
        });
        let apdu = prop_oneof![
            Just(ApduRule::Always),
            Just(ApduRule::Never),
            proptest::collection::vec(filter, 1..4).prop_map(ApduRule::Filters),
        ];
        (origin, aid, element, apdu).prop_map(|(origin, aid, element, apdu)| DeviceRule {
            origin,
            aid,
            element,
            apdu,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rules in proptest::collection::vec(any_rule(), 0..6)) {
            let rules = DeviceRules { rules };
            prop_assert_eq!(DeviceRules::parse(&rules.to_string()), Ok(rules));
        }

        #[test]
        fn anything_can_be_parsed(text in "(\\[\\[rule\\]\\]|\\PC|\n|aid=|apdu=|\"\\*\"|\\[\\{){0,40}") {
            if let Err(error) = DeviceRules::parse(&text) {
                prop_assert!(error.line >= 1 && error.line <= text.matches('\n').count() + 1);
            }
        }
    }
}
