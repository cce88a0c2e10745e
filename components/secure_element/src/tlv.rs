/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! BER-TLV data objects (ISO/IEC 7816-4 section 6.3, ISO/IEC 8825-1), read without copying.
//!
//! Tags have one to three bytes, lengths are definite and have one to five. A length may be
//! written longer than needed: cards do that. Nothing is skipped: whatever is not a data object
//! ends the reading with an error, so that nobody resynchronises in the middle of data.

use thiserror::Error;

/// How deep data objects may be nested. Real templates nest four or five deep.
pub const MAX_DEPTH: u8 = 16;

/// Why bytes are not a sequence of data objects.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TlvError {
    /// The bytes end within a tag, a length or a value.
    #[error("the data object is cut off")]
    Truncated,
    /// A tag of 0, which ISO/IEC 8825-1 keeps for the end of contents.
    #[error("a tag must not be zero")]
    ZeroTag,
    /// A tag of more than three bytes, or one whose number begins with a zero byte.
    #[error("the tag is not one of ISO/IEC 7816-4")]
    InvalidTag,
    /// An indefinite length, or one of more than four bytes behind the first.
    #[error("the length is not one of ISO/IEC 7816-4")]
    InvalidLength,
    /// Data objects nested deeper than [`MAX_DEPTH`].
    #[error("data objects are nested too deep")]
    TooDeep,
    /// The data object asked for its parts is a primitive one.
    #[error("the data object is primitive")]
    Primitive,
}

/// A tag: its one to three bytes as a number, `0x6F`, `0x9F7F` or `0xFF40`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Tag(pub u32);

/// A data object within the bytes it was read from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tlv<'a> {
    /// The tag.
    pub tag: Tag,
    /// The value.
    pub value: &'a [u8],
    constructed: bool,
    depth: u8,
}

impl<'a> Tlv<'a> {
    /// Whether the value consists of data objects.
    pub const fn is_constructed(&self) -> bool {
        self.constructed
    }

    /// The data objects in the value of a constructed one.
    pub const fn parts(&self) -> Result<Reader<'a>, TlvError> {
        if !self.constructed {
            return Err(TlvError::Primitive);
        }
        if self.depth + 1 >= MAX_DEPTH {
            return Err(TlvError::TooDeep);
        }
        Ok(Reader {
            rest: self.value,
            depth: self.depth + 1,
        })
    }
}

/// The beginning of a data object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Announced {
    /// The tag.
    pub tag: Tag,
    /// How many bytes tag and length take.
    pub header: usize,
    /// How many bytes the value takes.
    pub length: usize,
}

/// Reads data objects that follow each other. After an error it yields nothing more.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    depth: u8,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            depth: 0,
        }
    }

    /// The one data object that fills the bytes; an error if there is none or more behind it.
    pub fn only(mut self) -> Result<Tlv<'a>, TlvError> {
        let first = self.next().ok_or(TlvError::Truncated)??;
        if self.rest.is_empty() {
            Ok(first)
        } else {
            Err(TlvError::InvalidLength)
        }
    }

    /// What the next data object announces. Its value need not be there.
    pub fn announced(&self) -> Result<Announced, TlvError> {
        let mut ahead = self.clone();
        let (_, tag) = ahead.read_tag()?;
        let length = ahead.read_length()?;
        Ok(Announced {
            tag,
            header: self.rest.len() - ahead.rest.len(),
            length,
        })
    }

    /// The bytes not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn read(&mut self) -> Result<Tlv<'a>, TlvError> {
        let (first, tag) = self.read_tag()?;
        let length = self.read_length()?;
        let (value, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(TlvError::Truncated)?;
        self.rest = rest;
        Ok(Tlv {
            tag,
            value,
            constructed: first & 0x20 != 0,
            depth: self.depth,
        })
    }

    fn read_byte(&mut self) -> Result<u8, TlvError> {
        let (&byte, rest) = self.rest.split_first().ok_or(TlvError::Truncated)?;
        self.rest = rest;
        Ok(byte)
    }

    fn read_tag(&mut self) -> Result<(u8, Tag), TlvError> {
        let first = self.read_byte()?;
        if first == 0 {
            return Err(TlvError::ZeroTag);
        }
        let mut tag = u32::from(first);
        if first & 0x1F != 0x1F {
            return Ok((first, Tag(tag)));
        }
        for position in 0..2 {
            let byte = self.read_byte()?;
            if position == 0 && byte & 0x7F == 0 {
                return Err(TlvError::InvalidTag);
            }
            tag = tag << 8 | u32::from(byte);
            if byte & 0x80 == 0 {
                return Ok((first, Tag(tag)));
            }
        }
        Err(TlvError::InvalidTag)
    }

    fn read_length(&mut self) -> Result<usize, TlvError> {
        let first = self.read_byte()?;
        let count = match first {
            0..=0x7F => return Ok(usize::from(first)),
            0x81..=0x84 => first & 0x7F,
            _ => return Err(TlvError::InvalidLength),
        };
        let mut length = 0_u32;
        for _ in 0..count {
            length = length << 8 | u32::from(self.read_byte()?);
        }
        usize::try_from(length).map_err(|_| TlvError::Truncated)
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Tlv<'a>, TlvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let object = self.read();
        if object.is_err() {
            self.rest = &[];
        }
        Some(object)
    }
}

/// Appends a data object to `bytes`, with the shortest length.
///
/// The tag is written as its one to three significant bytes; the value has less than 16 MiB.
pub fn write(bytes: &mut Vec<u8>, tag: Tag, value: &[u8]) {
    push_significant(bytes, tag.0);
    if value.len() < 0x80 {
        bytes.push(value.len() as u8);
    } else {
        let mut length = Vec::new();
        push_significant(&mut length, value.len() as u32);
        bytes.push(0x80 | length.len() as u8);
        bytes.extend(length);
    }
    bytes.extend(value);
}

fn push_significant(bytes: &mut Vec<u8>, number: u32) {
    bytes.extend(number.to_be_bytes().iter().skip_while(|&&byte| byte == 0));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<Result<(u32, Vec<u8>), TlvError>> {
        Reader::new(bytes)
            .map(|object| object.map(|object| (object.tag.0, object.value.to_vec())))
            .collect()
    }

    #[test]
    fn tags_and_lengths() {
        let long = vec![7; 0x80];
        assert_eq!(read(&[]), []);
        assert_eq!(
            read(&[0x84, 2, 1, 2, 0x4F, 0]),
            [Ok((0x84, vec![1, 2])), Ok((0x4F, vec![]))]
        );
        assert_eq!(read(&[0x9F, 0x7F, 1, 5]), [Ok((0x9F7F, vec![5]))]);
        assert_eq!(read(&[0xFF, 0x40, 0]), [Ok((0xFF40, vec![]))]);
        assert_eq!(read(&[0x7F, 0x81, 0x02, 0]), [Ok((0x7F8102, vec![]))]);
        assert_eq!(
            read(&[&[0x53, 0x81, 0x80][..], &long].concat()),
            [Ok((0x53, long.clone()))]
        );
        // Longer than needed, which cards produce.
        assert_eq!(read(&[0x53, 0x82, 0, 1, 9]), [Ok((0x53, vec![9]))]);
        assert_eq!(read(&[0x53, 0x83, 0, 0, 1, 9]), [Ok((0x53, vec![9]))]);
        assert_eq!(read(&[0x53, 0x84, 0, 0, 0, 1, 9]), [Ok((0x53, vec![9]))]);
    }

    #[test]
    fn what_is_not_a_data_object_ends_the_reading() {
        for (bytes, error) in [
            (&[0x84][..], TlvError::Truncated),
            (&[0x84, 2, 1], TlvError::Truncated),
            (&[0x9F], TlvError::Truncated),
            (&[0x84, 0x82, 1], TlvError::Truncated),
            (&[0x00, 0x00], TlvError::ZeroTag),
            (&[0x9F, 0x80, 0x01, 0], TlvError::InvalidTag),
            (&[0x9F, 0x81, 0x82, 0x01, 0], TlvError::InvalidTag),
            (&[0x84, 0x80, 0, 0], TlvError::InvalidLength),
            (&[0x84, 0x85, 0, 0, 0, 0, 1, 1], TlvError::InvalidLength),
            (
                &[0x84, 0x84, 0xFF, 0xFF, 0xFF, 0xFF, 1],
                TlvError::Truncated,
            ),
            (&[0x84, 0x84, 0, 0, 0], TlvError::Truncated),
            (&[0x84, 0xFF], TlvError::InvalidLength),
        ] {
            assert_eq!(read(bytes), [Err(error)], "{bytes:02X?}");
        }
        assert_eq!(
            read(&[0x84, 0, 0, 0x84, 0]),
            [Ok((0x84, vec![])), Err(TlvError::ZeroTag)]
        );
    }

    #[test]
    fn a_beginning_announces_the_rest() {
        let announced = |tag, header, length| {
            Ok(Announced {
                tag: Tag(tag),
                header,
                length,
            })
        };
        for (bytes, expected) in [
            (
                &[0xFF, 0x40, 0x82, 0x06, 0xA8, 0xE2][..],
                announced(0xFF40, 5, 0x06A8),
            ),
            (&[0x84, 0], announced(0x84, 2, 0)),
            (&[0xFF, 0x40, 0x82, 0x06], Err(TlvError::Truncated)),
            (&[], Err(TlvError::Truncated)),
        ] {
            let reader = Reader::new(bytes);
            assert_eq!(reader.announced(), expected);
            assert_eq!(reader.rest(), bytes);
        }
    }

    #[test]
    fn only_wants_exactly_one() {
        assert_eq!(
            Reader::new(&[0x84, 1, 2]).only().map(|object| object.value),
            Ok(&[2][..])
        );
        assert_eq!(Reader::new(&[]).only(), Err(TlvError::Truncated));
        assert_eq!(
            Reader::new(&[0x84, 0, 0x84, 0]).only(),
            Err(TlvError::InvalidLength)
        );
    }

    #[test]
    fn parts_are_for_constructed_objects() {
        let template = Reader::new(&[0x6F, 3, 0x84, 1, 5]).only().unwrap();
        assert!(template.is_constructed());
        let name = template.parts().unwrap().only().unwrap();
        assert_eq!((name.tag, name.value), (Tag(0x84), &[5][..]));
        assert_eq!(name.parts().unwrap_err(), TlvError::Primitive);
    }

    #[test]
    fn depth_is_bounded() {
        let mut bytes = Vec::new();
        for _ in 0..40 {
            let inner = std::mem::take(&mut bytes);
            write(&mut bytes, Tag(0x6F), &inner);
        }
        let mut object = Reader::new(&bytes).only().unwrap();
        let mut depth = 1;
        let error = loop {
            match object.parts() {
                Ok(parts) => object = parts.only().unwrap(),
                Err(error) => break error,
            }
            depth += 1;
        };
        assert_eq!((depth, error), (MAX_DEPTH, TlvError::TooDeep));
    }

    /// Data objects in data objects.
    #[derive(Clone, Debug, PartialEq)]
    enum Tree {
        Value(u32, Vec<u8>),
        Parts(u32, Vec<Tree>),
    }

    impl Tree {
        fn write(&self, bytes: &mut Vec<u8>) {
            match self {
                Self::Value(tag, value) => write(bytes, Tag(*tag), value),
                Self::Parts(tag, parts) => {
                    let mut value = Vec::new();
                    parts.iter().for_each(|part| part.write(&mut value));
                    write(bytes, Tag(*tag), &value);
                }
            }
        }

        fn read(reader: Reader) -> Result<Vec<Self>, TlvError> {
            reader
                .map(|object| {
                    let object = object?;
                    Ok(if object.is_constructed() {
                        Self::Parts(object.tag.0, Self::read(object.parts()?)?)
                    } else {
                        Self::Value(object.tag.0, object.value.to_vec())
                    })
                })
                .collect()
        }
    }

    fn trees() -> impl Strategy<Value = Vec<Tree>> {
        let primitive = prop_oneof![Just(0x84_u32), Just(0x9F7F), Just(0x5F2D), Just(0x9F8102)];
        let constructed = prop_oneof![Just(0x6F_u32), Just(0xFF40), Just(0x7F8102)];
        let value = (primitive, proptest::collection::vec(any::<u8>(), 0..200));
        let tree = value
            .prop_map(|(tag, value)| Tree::Value(tag, value))
            .prop_recursive(u32::from(MAX_DEPTH) - 1, 60, 5, move |part| {
                (constructed.clone(), proptest::collection::vec(part, 0..5))
                    .prop_map(|(tag, parts)| Tree::Parts(tag, parts))
            });
        proptest::collection::vec(tree, 0..5)
    }

    proptest! {
        #[test]
        fn nested_objects_round_trip(trees in trees()) {
            let mut bytes = Vec::new();
            trees.iter().for_each(|tree| tree.write(&mut bytes));
            prop_assert_eq!(Tree::read(Reader::new(&bytes)), Ok(trees));
        }

        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for object in Reader::new(&bytes).flatten() {
                if let Ok(parts) = object.parts() {
                    let _ = parts.count();
                }
            }
        }

        #[test]
        fn what_is_written_is_read(
            tag in prop_oneof![Just(0x84_u32), Just(0x6F), Just(0x9F7F), Just(0xFF40), Just(0x7F8102)],
            // So many bytes at random would take seconds.
            value in (0..70_000_usize, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        ) {
            let mut bytes = Vec::new();
            write(&mut bytes, Tag(tag), &value);
            let object = Reader::new(&bytes).only().unwrap();
            prop_assert_eq!(object.tag, Tag(tag));
            prop_assert_eq!(object.value, &value[..]);
        }
    }
}
