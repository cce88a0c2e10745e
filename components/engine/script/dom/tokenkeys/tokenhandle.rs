/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use malloc_size_of::{MallocSizeOf, MallocSizeOfOps};
use serde::{Deserialize, Serialize};
use servo_constellation_traits::{SerializableCryptoKeyHandle, StructuredSerializedData};
use token_traits::Origin;
use token_traits::keys::KeyInfo;

use crate::dom::bindings::error::{Error, ErrorResult};
use crate::dom::cryptokey::{CryptoKey, Handle};
use crate::dom::globalscope::GlobalScope;

/// What the engine has of a key that lives in a token: never the key.
#[derive(Deserialize, Serialize)]
pub(crate) struct TokenHandle {
    pub(crate) info: KeyInfo,
    /// The origin that the id of the key means something for.
    pub(crate) origin: Origin,
    /// Whether the object is a `TokenCryptoKey`. What `SubtleCrypto` makes is a `CryptoKey`, as for any other key.
    pub(crate) is_named: bool,
}

impl TokenHandle {
    /// For a key that the broker told about here. `None` for an origin that cannot have any.
    pub(crate) fn new(global: &GlobalScope, info: KeyInfo, is_named: bool) -> Option<Self> {
        Some(Self {
            info,
            origin: origin_of(global)?,
            is_named,
        })
    }
}

impl MallocSizeOf for TokenHandle {
    fn size_of(&self, _ops: &mut MallocSizeOfOps) -> usize {
        0
    }
}

/// The global's origin, as the broker knows it.
pub(crate) fn origin_of(global: &GlobalScope) -> Option<Origin> {
    Origin::new(&global.origin().immutable().ascii_serialization())
}

impl CryptoKey {
    /// The handle of a key that lives in a token.
    pub(crate) fn token_handle(&self) -> Option<&TokenHandle> {
        match self.handle() {
            Handle::Token(handle) => Some(handle),
            _ => None,
        }
    }
}

impl TryFrom<&TokenHandle> for SerializableCryptoKeyHandle {
    type Error = ();

    fn try_from(handle: &TokenHandle) -> Result<Self, ()> {
        let bytes = postcard::to_stdvec(handle).map_err(|_| ())?;
        Ok(SerializableCryptoKeyHandle::Token(bytes))
    }
}

impl TryFrom<&[u8]> for TokenHandle {
    type Error = ();

    fn try_from(bytes: &[u8]) -> Result<Self, ()> {
        postcard::from_bytes(bytes).map_err(|_| ())
    }
}

/// A key that lives in a token can be passed on, and not be stored: who may use it is asked anew each time the document is
/// opened.
///
/// <https://html.spec.whatwg.org/multipage/#structuredserializeforstorage>
pub(crate) fn check_storable(serialized: &StructuredSerializedData) -> ErrorResult {
    let has_token_key = serialized.crypto_keys.as_ref().is_some_and(|keys| {
        keys.values()
            .any(|key| matches!(key.handle, SerializableCryptoKeyHandle::Token(_)))
    });
    if has_token_key {
        return Err(Error::DataClone(Some(
            "A key that lives in a token cannot be stored.".into(),
        )));
    }
    Ok(())
}
