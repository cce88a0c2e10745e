/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::cell::Cell;

use dom_struct::dom_struct;
use js::context::JSContext;
use js::realm::CurrentRealm;
use rustc_hash::FxHashMap;
use script_bindings::cell::DomRefCell;
use script_bindings::reflector::reflect_dom_object_with_cx;
use stylo_atoms::Atom;
use token_traits::keys::{KeysReply, KeysRequest, TokenInfo};
use token_traits::port::RequestBody;

use crate::dom::bindings::codegen::Bindings::TokenKeysBinding::{
    CryptoKeysMethods, KeyQuery, TokenQuery,
};
use crate::dom::bindings::codegen::UnionTypes::TokenCryptoKeyOrCryptoToken;
use crate::dom::bindings::error::Error;
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::reflector::DomGlobal;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::bindings::str::DOMString;
use crate::dom::cryptotoken::{CryptoToken, hexadecimal};
use crate::dom::cryptotokenevent::CryptoTokenEvent;
use crate::dom::event::Event;
use crate::dom::eventtarget::EventTarget;
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::{Promise, RootedPromise};
use crate::dom::subtlecrypto::token_operation::found_key;
use crate::dom::tokenkeys::answer::{Nothing, Settle, ask, done, unexpected};
use crate::dom::tokenkeys::keyquery::{key_query, token_query};
use crate::realms::enter_auto_realm;

/// <https://w3c.github.io/webcrypto-key-discovery/#cryptokeys-interface>
#[dom_struct]
pub(crate) struct CryptoKeys {
    eventtarget: EventTarget,
    /// One object a token, whenever the page asks.
    tokens: DomRefCell<FxHashMap<String, Dom<CryptoToken>>>,
    /// Whether a listener for an event was ever attached.
    watches: Cell<bool>,
}

impl CryptoKeys {
    pub(crate) fn new(cx: &mut JSContext, global: &GlobalScope) -> DomRoot<Self> {
        let keys = Self {
            eventtarget: EventTarget::new_inherited(),
            tokens: Default::default(),
            watches: Cell::new(false),
        };
        reflect_dom_object_with_cx(Box::new(keys), global, cx)
    }

    /// The object for a token that the broker told about.
    pub(crate) fn token(&self, cx: &mut JSContext, info: TokenInfo) -> DomRoot<CryptoToken> {
        let id = hexadecimal(&info.id.0);
        let known = self
            .tokens
            .borrow()
            .get(&id)
            .map(|token| DomRoot::from_ref(&**token));
        if let Some(token) = known {
            token.update(info);
            return token;
        }
        let token = CryptoToken::new(cx, &self.global(), info);
        self.tokens.borrow_mut().insert(id, Dom::from_ref(&*token));
        token
    }

    /// A listener for events of this type was attached.
    pub(crate) fn listener_added(&self, type_: &Atom) {
        let is_ours = matches!(&**type_, "tokeninserted" | "tokenremoved");
        if is_ours && !self.watches.replace(true) {
            self.watch();
        }
    }

    /// The port has closed, and listeners are left that have to be told by the next one.
    pub(crate) fn watch_again(&self) {
        if self.watches.get() {
            self.watch();
        }
    }

    fn watch(&self) {
        let global = self.global();
        global
            .tokens()
            .port()
            .watch(&global, RequestBody::Keys(KeysRequest::WatchTokens));
    }

    /// Fires the event for a token that has come or gone.
    pub(crate) fn token_changed(&self, cx: &mut JSContext, info: TokenInfo) {
        let global = self.global();
        let mut realm = enter_auto_realm(cx, &*global);
        let cx: &mut JSContext = &mut realm.current_realm();
        let type_ = if info.present {
            "tokeninserted"
        } else {
            "tokenremoved"
        };
        let token = self.token(cx, info);
        let event = CryptoTokenEvent::new(cx, &global, Atom::from(type_), &token);
        event.upcast::<Event>().fire(cx, self.upcast());
    }

    fn ask(
        &self,
        realm: &mut CurrentRealm,
        request: KeysRequest,
        nothing: Nothing,
        settle: Settle,
    ) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        ask(realm, &self.global(), &promise, request, nothing, settle);
        promise
    }
}

impl CryptoKeysMethods<crate::DomTypeHolder> for CryptoKeys {
    // A token that the origin has been granted, or that has a key which it has been granted, has come.
    event_handler!(tokeninserted, GetOntokeninserted, SetOntokeninserted);

    // It has gone.
    event_handler!(tokenremoved, GetOntokenremoved, SetOntokenremoved);

    /// <https://w3c.github.io/webcrypto-key-discovery/#dfn-CryptoKeys-method-getKeyByName>
    fn GetKeyByName(&self, realm: &mut CurrentRealm, name: DOMString) -> RootedPromise {
        self.ask(
            realm,
            KeysRequest::GetKeyByName(String::from(name)),
            Nothing::Null,
            Box::new(|cx, global, promise, reply| {
                let KeysReply::Keys(keys) = reply else {
                    return Err(unexpected());
                };
                // If a key is found, resolve promise with a NamedCryptoKey. Otherwise, with null.
                let key = keys
                    .into_iter()
                    .next()
                    .and_then(|info| found_key(cx, global, info, None));
                promise.resolve_native(cx, &key);
                Ok(())
            }),
        )
    }

    fn GetKeys(&self, realm: &mut CurrentRealm, query: &KeyQuery) -> RootedPromise {
        let (query, wanted) = match key_query(realm, query) {
            Ok(query) => query,
            Err(error) => return rejected(realm, error),
        };
        self.ask(
            realm,
            KeysRequest::GetKeys(Box::new(query)),
            Nothing::Empty,
            Box::new(move |cx, global, promise, reply| {
                let KeysReply::Keys(keys) = reply else {
                    return Err(unexpected());
                };
                let keys: Vec<_> = keys
                    .into_iter()
                    .filter_map(|info| found_key(cx, global, info, Some(&wanted)))
                    .collect();
                promise.resolve_native(cx, &keys);
                Ok(())
            }),
        )
    }

    fn RequestKey(&self, realm: &mut CurrentRealm, query: &KeyQuery) -> RootedPromise {
        let (query, wanted) = match key_query(realm, query) {
            Ok(query) => query,
            Err(error) => return rejected(realm, error),
        };
        self.ask(
            realm,
            KeysRequest::RequestKey(Box::new(query)),
            Nothing::Error,
            Box::new(move |cx, global, promise, reply| {
                let KeysReply::Key(info) = reply else {
                    return Err(unexpected());
                };
                match found_key(cx, global, *info, Some(&wanted)) {
                    Some(key) => promise.resolve_native(cx, &key),
                    None => promise
                        .reject_error(cx, Error::NotFound(Some("There is no such key.".into()))),
                }
                Ok(())
            }),
        )
    }

    fn GetTokens(&self, realm: &mut CurrentRealm, query: &TokenQuery) -> RootedPromise {
        self.ask(
            realm,
            KeysRequest::GetTokens(token_query(query)),
            Nothing::Empty,
            Box::new(|cx, global, promise, reply| {
                let KeysReply::Tokens(tokens) = reply else {
                    return Err(unexpected());
                };
                let crypto_keys = global.tokens().crypto_keys(cx, global);
                let tokens: Vec<_> = tokens
                    .into_iter()
                    .map(|info| crypto_keys.token(cx, info))
                    .collect();
                promise.resolve_native(cx, &tokens);
                Ok(())
            }),
        )
    }

    fn RequestToken(&self, realm: &mut CurrentRealm, query: &TokenQuery) -> RootedPromise {
        self.ask(
            realm,
            KeysRequest::RequestToken(token_query(query)),
            Nothing::Error,
            Box::new(|cx, global, promise, reply| {
                let KeysReply::Token(info) = reply else {
                    return Err(unexpected());
                };
                let crypto_keys = global.tokens().crypto_keys(cx, global);
                let token = crypto_keys.token(cx, info);
                promise.resolve_native(cx, &token);
                Ok(())
            }),
        )
    }

    fn Forget(
        &self,
        realm: &mut CurrentRealm,
        granted: TokenCryptoKeyOrCryptoToken,
    ) -> RootedPromise {
        let request = match granted {
            TokenCryptoKeyOrCryptoToken::TokenCryptoKey(key) => {
                KeysRequest::ForgetKey(key.info().id)
            },
            TokenCryptoKeyOrCryptoToken::CryptoToken(token) => {
                KeysRequest::ForgetToken(token.token_id())
            },
        };
        self.ask(realm, request, Nothing::Error, done())
    }
}

fn rejected(realm: &mut CurrentRealm, error: Error) -> RootedPromise {
    let promise = Promise::new_in_realm(realm);
    promise.reject_error(realm, error);
    promise
}
