/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use dom_struct::dom_struct;
use js::context::JSContext;
use js::realm::CurrentRealm;
use js::rust::MutableHandleValue;
use script_bindings::reflector::reflect_dom_object;
use servo_constellation_traits::SerializableCryptoKey;
use std::str::FromStr;
use token_traits::keys::{KeyInfo, KeysReply, KeysRequest, Provenance, UserVerification};

use crate::conversions::Convert;
use crate::dom::bindings::codegen::Bindings::CryptoKeyBinding::{KeyType, KeyUsage};
use crate::dom::bindings::codegen::Bindings::SubtleCryptoBinding::AlgorithmIdentifier;
use crate::dom::bindings::codegen::Bindings::TokenKeysBinding::{
    KeyProtection, KeyProvenance, KeyUserVerification, TokenCryptoKeyMethods,
};
use crate::dom::bindings::error::Fallible;
use crate::dom::bindings::frozenarray::CachedFrozenArray;
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::reflector::DomGlobal;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::bindings::str::USVString;
use crate::dom::cryptokey::{CryptoKey, Handle};
use crate::dom::cryptotoken::CryptoToken;
use crate::dom::globalscope::GlobalScope;
use crate::dom::namedcryptokey::NamedCryptoKey;
use crate::dom::promise::{Promise, RootedPromise};
use crate::dom::subtlecrypto::KeyAlgorithmAndDerivatives;
use crate::dom::subtlecrypto::token_operation::{array_buffer, key_with_algorithm, public_key_of};
use crate::dom::tokenkeys::answer::{Nothing, ask, unexpected};
use crate::dom::tokenkeys::tokenhandle::{TokenHandle, origin_of};

/// A key that lives in a token.
#[dom_struct]
pub(crate) struct TokenCryptoKey {
    named_crypto_key: NamedCryptoKey,
    token: Dom<CryptoToken>,
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    info: Box<KeyInfo>,
    #[ignore_malloc_size_of = "Defined in mozjs"]
    origins: CachedFrozenArray,
}

impl TokenCryptoKey {
    fn new(
        cx: &mut JSContext,
        global: &GlobalScope,
        crypto_key: CryptoKey,
        info: KeyInfo,
    ) -> DomRoot<Self> {
        let token = global
            .tokens()
            .crypto_keys(cx, global)
            .token(cx, info.token.clone());
        let key = Self {
            named_crypto_key: NamedCryptoKey::new_inherited(crypto_key, &info),
            token: Dom::from_ref(&*token),
            info: Box::new(info),
            origins: CachedFrozenArray::new(),
        };
        let key = reflect_dom_object(cx, Box::new(key), global);
        key.upcast::<CryptoKey>().cache_objects(cx);
        key
    }

    pub(crate) fn info(&self) -> &KeyInfo {
        &self.info
    }
}

/// The object for a key that lives in a token: a `TokenCryptoKey`, or a plain `CryptoKey`, as the handle says.
pub(crate) fn new_key(
    cx: &mut JSContext,
    global: &GlobalScope,
    algorithm: KeyAlgorithmAndDerivatives,
    usages: Vec<KeyUsage>,
    handle: TokenHandle,
) -> DomRoot<CryptoKey> {
    let key_type = match handle.info.public_key {
        Some(_) => KeyType::Private,
        None => KeyType::Secret,
    };
    if !handle.is_named {
        let handle = Handle::Token(Box::new(handle));
        return CryptoKey::new(cx, global, key_type, false, algorithm, usages, handle);
    }
    let info = handle.info.clone();
    let handle = Handle::Token(Box::new(handle));
    let crypto_key = CryptoKey::new_inherited(key_type, false, algorithm, usages, handle);
    DomRoot::upcast(TokenCryptoKey::new(cx, global, crypto_key, info))
}

/// The deserialization steps of a key that lives in a token.
///
/// <https://w3c.github.io/webcrypto-key-discovery/#structured-clone-algorithm>
pub(crate) fn deserialize(
    cx: &mut JSContext,
    owner: &GlobalScope,
    serialized: SerializableCryptoKey,
) -> Result<DomRoot<CryptoKey>, ()> {
    let Handle::Token(handle) = Handle::try_from(serialized.handle)? else {
        return Err(());
    };
    // The id of a key means nothing to another origin.
    if origin_of(owner).as_ref() != Some(&handle.origin) {
        return Err(());
    }
    let usages = serialized
        .usages
        .iter()
        .map(|usage| KeyUsage::from_str(usage))
        .collect::<Result<Vec<_>, _>>()?;
    let algorithm = serialized.algorithm.try_into()?;
    Ok(new_key(cx, owner, algorithm, usages, *handle))
}

impl TokenCryptoKeyMethods<crate::DomTypeHolder> for TokenCryptoKey {
    fn Token(&self) -> DomRoot<CryptoToken> {
        DomRoot::from_ref(&*self.token)
    }

    fn Protection(&self) -> KeyProtection {
        self.info.protection.convert()
    }

    fn UserVerification(&self) -> KeyUserVerification {
        match self.info.user_verification {
            UserVerification::None => KeyUserVerification::None,
            UserVerification::Session => KeyUserVerification::Session,
            UserVerification::EachUse => KeyUserVerification::Each_use,
        }
    }

    fn Provenance(&self) -> KeyProvenance {
        match self.info.provenance {
            Provenance::Unknown => KeyProvenance::Unknown,
            Provenance::Imported => KeyProvenance::Imported,
            Provenance::Generated => KeyProvenance::Generated,
        }
    }

    fn Wrappable(&self) -> bool {
        self.info.is_wrappable
    }

    fn Origins(&self, cx: &mut JSContext, retval: MutableHandleValue) {
        let origins = || {
            self.info
                .origins
                .iter()
                .map(|origin| USVString(origin.as_str().to_owned()))
                .collect::<Vec<_>>()
        };
        self.origins.get_or_init(cx, origins, retval)
    }

    fn GetPublicKey(&self, realm: &mut CurrentRealm, usages: Vec<KeyUsage>) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        match public_key_of(realm, &self.global(), self.upcast(), usages) {
            Ok(public_key) => promise.resolve_native(realm, &public_key),
            Err(error) => promise.reject_error(realm, error),
        }
        promise
    }

    fn GetCertificateChain(&self, realm: &mut CurrentRealm) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        ask(
            realm,
            &self.global(),
            &promise,
            KeysRequest::GetCertificates(self.info.id),
            Nothing::Error,
            Box::new(|cx, _, promise, reply| match reply {
                KeysReply::Certificates(certificates) => {
                    let certificates = certificates
                        .iter()
                        .map(|certificate| array_buffer(cx, &certificate.0))
                        .collect::<Fallible<Vec<_>>>()?;
                    promise.resolve_native(cx, &certificates);
                    Ok(())
                },
                _ => Err(unexpected()),
            }),
        );
        promise
    }

    fn WithAlgorithm(
        &self,
        realm: &mut CurrentRealm,
        algorithm: AlgorithmIdentifier,
        usages: Vec<KeyUsage>,
    ) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        match key_with_algorithm(realm, &self.global(), self.upcast(), &algorithm, &usages) {
            Ok(key) => promise.resolve_native(realm, &key),
            Err(error) => promise.reject_error(realm, error),
        }
        promise
    }
}
