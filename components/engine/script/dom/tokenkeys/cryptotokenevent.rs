/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use dom_struct::dom_struct;
use js::context::JSContext;
use js::rust::HandleObject;
use script_bindings::reflector::reflect_dom_object_with_proto;
use stylo_atoms::Atom;

use crate::dom::bindings::codegen::Bindings::EventBinding::Event_Binding::EventMethods;
use crate::dom::bindings::codegen::Bindings::TokenKeysBinding::{
    CryptoTokenEventInit, CryptoTokenEventMethods,
};
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::bindings::str::DOMString;
use crate::dom::cryptotoken::CryptoToken;
use crate::dom::event::Event;
use crate::dom::globalscope::GlobalScope;

/// A token has come or gone.
#[dom_struct]
pub(crate) struct CryptoTokenEvent {
    event: Event,
    token: Dom<CryptoToken>,
}

impl CryptoTokenEvent {
    pub(crate) fn new(
        cx: &mut JSContext,
        global: &GlobalScope,
        type_: Atom,
        token: &CryptoToken,
    ) -> DomRoot<Self> {
        Self::new_with_proto(cx, global, None, type_, false, false, token)
    }

    fn new_with_proto(
        cx: &mut JSContext,
        global: &GlobalScope,
        proto: Option<HandleObject>,
        type_: Atom,
        bubbles: bool,
        cancelable: bool,
        token: &CryptoToken,
    ) -> DomRoot<Self> {
        let token_event = reflect_dom_object_with_proto(
            cx,
            Box::new(Self {
                event: Event::new_inherited(),
                token: Dom::from_ref(token),
            }),
            global,
            proto,
        );
        token_event
            .upcast::<Event>()
            .init_event(type_, bubbles, cancelable);
        token_event
    }
}

impl CryptoTokenEventMethods<crate::DomTypeHolder> for CryptoTokenEvent {
    fn Constructor(
        cx: &mut JSContext,
        global: &GlobalScope,
        proto: Option<HandleObject>,
        type_: DOMString,
        init: &CryptoTokenEventInit,
    ) -> DomRoot<Self> {
        let event = Self::new_with_proto(
            cx,
            global,
            proto,
            Atom::from(type_),
            init.parent.bubbles,
            init.parent.cancelable,
            &init.token,
        );
        event.upcast::<Event>().set_composed(init.parent.composed);
        event
    }

    fn Token(&self) -> DomRoot<CryptoToken> {
        DomRoot::from_ref(&*self.token)
    }

    /// <https://dom.spec.whatwg.org/#dom-event-istrusted>
    fn IsTrusted(&self) -> bool {
        self.event.IsTrusted()
    }
}
