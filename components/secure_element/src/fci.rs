/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The answer to SELECT: file control information (ISO/IEC 7816-4 section 7.4).

use thiserror::Error;

use crate::channel::{Aid, AidError};
use crate::tlv::{Reader, Tag, TlvError};

/// The file control information template.
pub const FCI_TEMPLATE: Tag = Tag(0x6F);
/// The file control parameters template.
pub const FCP_TEMPLATE: Tag = Tag(0x62);
/// The DF name: the complete AID of the application that was selected.
pub const DF_NAME: Tag = Tag(0x84);

/// Why file control information cannot be read.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum FciError {
    /// It is not made of data objects.
    #[error(transparent)]
    Tlv(#[from] TlvError),
    /// The DF name is no AID.
    #[error(transparent)]
    DfName(#[from] AidError),
    /// There is more than one DF name.
    #[error("there is more than one DF name")]
    SeveralDfNames,
}

/// The DF name in the data that SELECT answered, if it is there.
///
/// `None` if there is no data, if it is another template than 6F and 62, or if the template names
/// nothing. Whoever decides by the name must take both `None` and an error as an application
/// without a name.
pub fn df_name(data: &[u8]) -> Result<Option<Aid>, FciError> {
    if data.is_empty() {
        return Ok(None);
    }
    let template = Reader::new(data).only()?;
    if template.tag != FCI_TEMPLATE && template.tag != FCP_TEMPLATE {
        return Ok(None);
    }
    let mut name = None;
    for object in template.parts()? {
        let object = object?;
        if object.tag == DF_NAME && name.replace(Aid::new(object.value)?).is_some() {
            return Err(FciError::SeveralDfNames);
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tlv;

    fn name(data: &[u8]) -> Result<Option<Vec<u8>>, FciError> {
        df_name(data).map(|name| name.map(|name| name.as_bytes().to_vec()))
    }

    #[test]
    fn names_are_found() {
        // An issuer security domain's answer: 6F { 84 name, A5 { 9F65 maximum length } }.
        let isd = [
            0x6F, 0x10, 0x84, 0x08, 0xA0, 0, 0, 1, 0x51, 0, 0, 0, 0xA5, 0x04, 0x9F, 0x65, 0x01,
            0xFF,
        ];
        assert_eq!(name(&isd), Ok(Some(vec![0xA0, 0, 0, 1, 0x51, 0, 0, 0])));
        assert_eq!(name(&[0x62, 3, 0x84, 1, 7]), Ok(Some(vec![7])));
    }

    #[test]
    fn answers_without_a_name() {
        assert_eq!(name(&[]), Ok(None));
        assert_eq!(name(&[0x6F, 0]), Ok(None));
        assert_eq!(name(&[0x61, 3, 0x4F, 1, 7]), Ok(None));
        // The name counts in the template only, not deeper.
        assert_eq!(name(&[0x6F, 5, 0xA5, 3, 0x84, 1, 7]), Ok(None));
    }

    #[test]
    fn doubtful_answers_are_errors() {
        assert_eq!(name(&[0x6F, 3, 0x84, 1]), Err(TlvError::Truncated.into()));
        assert_eq!(name(&[0x6F, 2, 0x84, 0]), Err(AidError(0).into()));
        assert_eq!(
            name(&[0x6F, 2, 0x84, 1, 7]),
            Err(TlvError::InvalidLength.into())
        );
        assert_eq!(
            name(&[0x6F, 6, 0x84, 1, 7, 0x84, 1, 8]),
            Err(FciError::SeveralDfNames)
        );
        let mut long = vec![0x6F, 19, 0x84, 17];
        long.extend([1; 17]);
        assert_eq!(name(&long), Err(AidError(17).into()));
    }

    proptest! {
        #[test]
        fn a_name_is_found_among_other_objects(
            name in proptest::collection::vec(any::<u8>(), 1..=16),
            before in proptest::collection::vec(any::<u8>(), 0..300),
            behind in proptest::collection::vec(any::<u8>(), 0..300),
            template in prop_oneof![Just(FCI_TEMPLATE), Just(FCP_TEMPLATE)],
        ) {
            let mut objects = Vec::new();
            tlv::write(&mut objects, Tag(0x85), &before);
            tlv::write(&mut objects, DF_NAME, &name);
            tlv::write(&mut objects, Tag(0x9F65), &behind);
            let mut answer = Vec::new();
            tlv::write(&mut answer, template, &objects);
            let aid = Aid::new(&name).unwrap();
            prop_assert_eq!(df_name(&answer), Ok(Some(aid)));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = df_name(&bytes);
            let template = [&[0x6F, bytes.len() as u8][..], &bytes].concat();
            let _ = df_name(&template);
        }
    }
}
