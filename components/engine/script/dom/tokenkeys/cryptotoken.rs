/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::fmt::Write;
use std::ptr;

use dom_struct::dom_struct;
use js::context::JSContext;
use js::conversions::ToJSValConvertible;
use js::jsval::{ObjectOrNullValue, UndefinedValue};
use js::realm::CurrentRealm;
use js::rust::MutableHandleValue;
use js::rust::wrappers2::JS_NewObject;
use script_bindings::cell::DomRefCell;
use script_bindings::reflector::{Reflector, reflect_dom_object};
use sha2::{Digest, Sha256};
use token_traits::keys::{Bytes, KeyTokenId, KeysReply, KeysRequest, MAX_CERTIFICATE, TokenInfo};

use crate::conversions::Convert;
use crate::dom::bindings::buffer_source::get_buffer_source_copy;
use crate::dom::bindings::codegen::Bindings::CryptoKeyBinding::KeyUsage;
use crate::dom::bindings::codegen::Bindings::SubtleCryptoBinding::AlgorithmIdentifier;
use crate::dom::bindings::codegen::Bindings::TokenKeysBinding::{
    CryptoTokenMethods, KeyProtection, TokenKeyOptions,
};
use crate::dom::bindings::codegen::UnionTypes::ArrayBufferViewOrArrayBuffer;
use crate::dom::bindings::error::{Error, Fallible};
use crate::dom::bindings::reflector::DomGlobal;
use crate::dom::bindings::root::{DomRoot, MutNullableDom};
use crate::dom::bindings::str::DOMString;
use crate::dom::bindings::utils::set_dictionary_property;
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::{Promise, RootedPromise};
use crate::dom::subtlecrypto::SubtleCrypto;
use crate::dom::subtlecrypto::token_operation::{
    array_buffer, generate_named_key, supports, unwrap_named_key,
};
use crate::dom::tokencryptokey::TokenCryptoKey;
use crate::dom::tokenkeys::answer::{Nothing, Settle, ask, done, unexpected};

/// A token.
#[dom_struct]
pub(crate) struct CryptoToken {
    reflector_: Reflector,
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    info: DomRefCell<TokenInfo>,
    subtle: MutNullableDom<SubtleCrypto>,
}

impl CryptoToken {
    pub(crate) fn new(cx: &mut JSContext, global: &GlobalScope, info: TokenInfo) -> DomRoot<Self> {
        let token = Self {
            reflector_: Reflector::new(),
            info: DomRefCell::new(info),
            subtle: Default::default(),
        };
        reflect_dom_object(cx, Box::new(token), global)
    }

    /// Takes in what the broker says of it now.
    pub(crate) fn update(&self, info: TokenInfo) {
        *self.info.borrow_mut() = info;
    }

    pub(crate) fn token_id(&self) -> KeyTokenId {
        self.info.borrow().id
    }

    pub(crate) fn info(&self) -> TokenInfo {
        self.info.borrow().clone()
    }

    /// Asks for something about a key, which has to be in this token.
    fn ask_about(
        &self,
        realm: &mut CurrentRealm,
        key: &TokenCryptoKey,
        request: KeysRequest,
        settle: Settle,
    ) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        if key.info().token.id != self.token_id() {
            let error = Error::InvalidAccess(Some("The key is in another token.".into()));
            promise.reject_error(realm, error);
            return promise;
        }
        ask(
            realm,
            &self.global(),
            &promise,
            request,
            Nothing::Error,
            settle,
        );
        promise
    }
}

impl CryptoTokenMethods<crate::DomTypeHolder> for CryptoToken {
    fn Id(&self) -> DOMString {
        DOMString::from(hexadecimal(&self.token_id().0))
    }

    fn Label(&self) -> DOMString {
        DOMString::from(self.info.borrow().label.clone())
    }

    fn Protection(&self) -> KeyProtection {
        self.info.borrow().protection.convert()
    }

    fn Present(&self) -> bool {
        self.info.borrow().present
    }

    fn Provisionable(&self) -> bool {
        self.info.borrow().provisionable
    }

    fn Subtle(&self, cx: &mut JSContext) -> DomRoot<SubtleCrypto> {
        self.subtle
            .or_init(|| SubtleCrypto::new_for_token(cx, &self.global(), self))
    }

    fn Supports(
        &self,
        cx: &mut JSContext,
        operation: DOMString,
        algorithm: AlgorithmIdentifier,
    ) -> bool {
        let features = self.info().features;
        supports(cx, &features, &operation.str(), &algorithm)
    }

    fn GenerateKey(
        &self,
        realm: &mut CurrentRealm,
        algorithm: AlgorithmIdentifier,
        usages: Vec<KeyUsage>,
        options: &TokenKeyOptions,
    ) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        if let Err(error) = generate_named_key(realm, self, &promise, &algorithm, usages, options) {
            promise.reject_error(realm, error);
        }
        promise
    }

    fn UnwrapKey(
        &self,
        realm: &mut CurrentRealm,
        wrapped_key: ArrayBufferViewOrArrayBuffer,
        unwrapping_key: &TokenCryptoKey,
        unwrap_algorithm: AlgorithmIdentifier,
        unwrapped_key_algorithm: AlgorithmIdentifier,
        usages: Vec<KeyUsage>,
        options: &TokenKeyOptions,
    ) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        let wrapped_key = get_buffer_source_copy((&wrapped_key).into());
        let algorithms = (&unwrap_algorithm, &unwrapped_key_algorithm);
        if let Err(error) = unwrap_named_key(
            realm,
            self,
            &promise,
            wrapped_key,
            unwrapping_key,
            algorithms,
            usages,
            options,
        ) {
            promise.reject_error(realm, error);
        }
        promise
    }

    fn DeleteKey(&self, realm: &mut CurrentRealm, key: &TokenCryptoKey) -> RootedPromise {
        self.ask_about(realm, key, KeysRequest::Delete(key.info().id), done())
    }

    fn InstallCertificate(
        &self,
        realm: &mut CurrentRealm,
        key: &TokenCryptoKey,
        certificate: ArrayBufferViewOrArrayBuffer,
    ) -> RootedPromise {
        let certificate = get_buffer_source_copy((&certificate).into());
        if certificate.len() > MAX_CERTIFICATE {
            let promise = Promise::new_in_realm(realm);
            let error = Error::Data(Some("The certificate is too long.".into()));
            promise.reject_error(realm, error);
            return promise;
        }
        let request = KeysRequest::InstallCertificate {
            key: key.info().id,
            certificate: Bytes(certificate),
        };
        self.ask_about(realm, key, request, done())
    }

    fn RemoveCertificate(&self, realm: &mut CurrentRealm, key: &TokenCryptoKey) -> RootedPromise {
        let request = KeysRequest::RemoveCertificate(key.info().id);
        self.ask_about(realm, key, request, done())
    }

    fn AttestKey(
        &self,
        realm: &mut CurrentRealm,
        key: &TokenCryptoKey,
        challenge: ArrayBufferViewOrArrayBuffer,
    ) -> RootedPromise {
        let challenge = get_buffer_source_copy((&challenge).into());
        let request = KeysRequest::Attest {
            key: key.info().id,
            challenge: Sha256::digest(&challenge).into(),
        };
        let settle: Settle = Box::new(|cx, _, promise, reply| {
            let KeysReply::Attestation {
                format,
                statement,
                chain,
            } = reply
            else {
                return Err(unexpected());
            };
            rooted!(&in(cx) let mut attestation = UndefinedValue());
            attestation_object(cx, format, &statement, &chain, attestation.handle_mut())?;
            promise.resolve(cx, attestation.handle());
            Ok(())
        });
        self.ask_about(realm, key, request, settle)
    }
}

/// Makes a `TokenAttestation` dictionary. The bindings have no dictionaries with sequences of `ArrayBuffer`s.
#[expect(unsafe_code)]
fn attestation_object(
    cx: &mut JSContext,
    format: String,
    statement: &Bytes,
    chain: &[Bytes],
    mut attestation: MutableHandleValue,
) -> Fallible<()> {
    rooted!(&in(cx) let object = unsafe { JS_NewObject(cx, ptr::null()) });
    let chain = chain
        .iter()
        .map(|certificate| array_buffer(cx, &certificate.0))
        .collect::<Fallible<Vec<_>>>()?;
    rooted!(&in(cx) let mut value = UndefinedValue());
    chain.to_jsval(cx, value.handle_mut());
    set(cx, object.handle(), c"chain", value.handle())?;
    DOMString::from(format).to_jsval(cx, value.handle_mut());
    set(cx, object.handle(), c"format", value.handle())?;
    array_buffer(cx, &statement.0)?.to_jsval(cx, value.handle_mut());
    set(cx, object.handle(), c"statement", value.handle())?;
    attestation.set(ObjectOrNullValue(object.get()));
    Ok(())
}

fn set(
    cx: &mut JSContext,
    object: js::rust::HandleObject,
    name: &std::ffi::CStr,
    value: js::rust::HandleValue,
) -> Fallible<()> {
    set_dictionary_property(cx, object, name, value).map_err(|()| Error::JSFailed)
}

/// In lower case.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
