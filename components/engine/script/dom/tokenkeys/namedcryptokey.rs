/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dom_struct::dom_struct;
use token_traits::keys::KeyInfo;

use crate::dom::bindings::codegen::Bindings::TokenKeysBinding::NamedCryptoKeyMethods;
use crate::dom::bindings::str::DOMString;
use crate::dom::cryptokey::CryptoKey;

/// <https://w3c.github.io/webcrypto-key-discovery/#namedcryptokey-interface>
#[dom_struct]
pub(crate) struct NamedCryptoKey {
    crypto_key: CryptoKey,
    name: DOMString,
    id: Option<DOMString>,
}

impl NamedCryptoKey {
    pub(crate) fn new_inherited(crypto_key: CryptoKey, info: &KeyInfo) -> Self {
        Self {
            crypto_key,
            name: DOMString::from(info.name.clone()),
            id: info
                .identifier
                .as_ref()
                .map(|identifier| DOMString::from(STANDARD.encode(&identifier.0))),
        }
    }
}

impl NamedCryptoKeyMethods<crate::DomTypeHolder> for NamedCryptoKey {
    /// <https://w3c.github.io/webcrypto-key-discovery/#dfn-NamedCryptoKey-name>
    fn Name(&self) -> DOMString {
        self.name.clone()
    }

    /// <https://w3c.github.io/webcrypto-key-discovery/#dfn-NamedCryptoKey-id>
    fn GetId(&self) -> Option<DOMString> {
        self.id.clone()
    }
}
