/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Dictionaries of [RFC 8941](https://www.rfc-editor.org/rfc/rfc8941), section 4.2. Parameters are checked and forgotten.

/// A bare item.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Bare {
    /// A token.
    Token(String),
    /// A string, without its quotes and escapes.
    String(String),
    /// A number, a boolean or a byte sequence.
    Other,
}

/// The value of a dictionary's member.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Member {
    /// One item.
    Item(Bare),
    /// An inner list.
    List(Vec<Bare>),
}

/// Parses a dictionary; `None` if anything in it is malformed. Of members with the same key the last one counts.
pub(super) fn parse_dictionary(input: &str) -> Option<Vec<(String, Member)>> {
    let mut parser = Parser(input.trim_matches(' ').as_bytes());
    let mut members: Vec<(String, Member)> = Vec::new();
    while !parser.0.is_empty() {
        let key = parser.key()?;
        let member = if parser.take(b'=') {
            parser.member()?
        } else {
            parser.parameters()?;
            Member::Item(Bare::Other)
        };
        members.retain(|(other, _)| *other != key);
        members.push((key, member));
        parser.skip(b" \t");
        if parser.0.is_empty() {
            break;
        }
        if !parser.take(b',') {
            return None;
        }
        parser.skip(b" \t");
        if parser.0.is_empty() {
            return None;
        }
    }
    Some(members)
}

/// What has not been read.
struct Parser<'a>(&'a [u8]);

impl Parser<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.0.first() == Some(&byte);
        if is_next {
            self.0 = &self.0[1..];
        }
        is_next
    }

    fn skip(&mut self, bytes: &[u8]) {
        while self.0.first().is_some_and(|byte| bytes.contains(byte)) {
            self.0 = &self.0[1..];
        }
    }

    /// Reads ASCII characters as long as they are wanted.
    fn take_while(&mut self, is_wanted: impl Fn(u8) -> bool) -> String {
        let length = self
            .0
            .iter()
            .position(|byte| !is_wanted(*byte))
            .unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken.iter().map(|byte| char::from(*byte)).collect()
    }

    fn key(&mut self) -> Option<String> {
        let first = *self.0.first()?;
        (first.is_ascii_lowercase() || first == b'*').then(|| {
            self.take_while(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)
            })
        })
    }

    fn member(&mut self) -> Option<Member> {
        if !self.take(b'(') {
            return Some(Member::Item(self.item()?));
        }
        let mut items = Vec::new();
        loop {
            self.skip(b" ");
            if self.take(b')') {
                self.parameters()?;
                return Some(Member::List(items));
            }
            items.push(self.item()?);
            if !matches!(self.0.first(), Some(b' ' | b')')) {
                return None;
            }
        }
    }

    fn item(&mut self) -> Option<Bare> {
        let item = self.bare_item()?;
        self.parameters()?;
        Some(item)
    }

    fn parameters(&mut self) -> Option<()> {
        while self.take(b';') {
            self.skip(b" ");
            self.key()?;
            if self.take(b'=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    fn bare_item(&mut self) -> Option<Bare> {
        match *self.0.first()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => self.string(),
            b':' => self.byte_sequence(),
            b'?' => {
                self.next();
                matches!(self.next()?, b'0' | b'1').then_some(Bare::Other)
            }
            first if first == b'*' || first.is_ascii_alphabetic() => {
                Some(Bare::Token(self.take_while(|byte| {
                    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
                })))
            }
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Bare> {
        self.take(b'-');
        let whole = self.take_while(|byte| byte.is_ascii_digit()).len();
        let is_valid = if self.take(b'.') {
            let fraction = self.take_while(|byte| byte.is_ascii_digit()).len();
            (1..=12).contains(&whole) && (1..=3).contains(&fraction)
        } else {
            (1..=15).contains(&whole)
        };
        is_valid.then_some(Bare::Other)
    }

    fn string(&mut self) -> Option<Bare> {
        self.next();
        let mut string = String::new();
        loop {
            let byte = match self.next()? {
                b'"' => return Some(Bare::String(string)),
                b'\\' => self.next().filter(|byte| b"\"\\".contains(byte))?,
                byte @ 0x20..=0x7E => byte,
                _ => return None,
            };
            string.push(char::from(byte));
        }
    }

    fn byte_sequence(&mut self) -> Option<Bare> {
        self.next();
        self.take_while(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
        self.take(b':').then_some(Bare::Other)
    }
}
