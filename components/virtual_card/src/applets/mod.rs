/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The applications of the card.

pub mod echo;
pub mod issuer;

use secure_element::channel::Aid;

/// For constants: what is no AID does not compile.
const fn aid(bytes: &[u8]) -> Aid {
    match Aid::new(bytes) {
        Ok(aid) => aid,
        Err(_) => panic!("the constant is an AID"),
    }
}
