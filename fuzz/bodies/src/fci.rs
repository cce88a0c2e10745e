/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The answer to SELECT.

use secure_element::channel::Aid;
use secure_element::fci::{self, DF_NAME, FCI_TEMPLATE, FCP_TEMPLATE};
use secure_element::tlv::{self, Reader};

/// A DF name that is found stands in the one template that fills the answer, and there once. A name put there is found.
pub fn run(bytes: &[u8]) {
    if let Ok(Some(name)) = fci::df_name(bytes) {
        let names = Reader::new(bytes)
            .only()
            .ok()
            .filter(|template| [FCI_TEMPLATE, FCP_TEMPLATE].contains(&template.tag))
            .and_then(|template| template.parts().ok())
            .map(|parts| {
                parts
                    .flatten()
                    .filter(|object| object.tag == DF_NAME)
                    .map(|object| object.value)
                    .collect::<Vec<_>>()
            });
        assert_eq!(names.as_deref(), Some(&[name.as_bytes()][..]));
    }

    let mut objects = Vec::new();
    tlv::write(&mut objects, DF_NAME, bytes);
    let mut answer = Vec::new();
    tlv::write(&mut answer, FCI_TEMPLATE, &objects);
    match Aid::new(bytes) {
        Ok(name) => assert_eq!(fci::df_name(&answer), Ok(Some(name))),
        Err(error) => assert_eq!(fci::df_name(&answer), Err(error.into())),
    }
}
