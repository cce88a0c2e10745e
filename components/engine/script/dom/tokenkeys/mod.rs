/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! [WebCrypto Key Discovery][spec] and its extension to keys that live in tokens. These files convert between Web IDL and
//! the messages of `token_traits` and forward; every decision is made by the token broker. How `SubtleCrypto` uses the keys
//! is in `subtlecrypto/token_operation.rs`.
//!
//! [spec]: https://w3c.github.io/webcrypto-key-discovery/

pub(crate) mod answer;
pub(crate) mod cryptokeys;
pub(crate) mod cryptotoken;
pub(crate) mod cryptotokenevent;
pub(crate) mod keyquery;
pub(crate) mod namedcryptokey;
pub(crate) mod tokencryptokey;
pub(crate) mod tokenhandle;
