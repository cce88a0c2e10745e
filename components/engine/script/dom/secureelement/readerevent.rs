/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use dom_struct::dom_struct;
use js::context::JSContext;
use js::rust::HandleObject;
use script_bindings::reflector::reflect_dom_object_with_proto;
use stylo_atoms::Atom;

use crate::dom::bindings::codegen::Bindings::EventBinding::Event_Binding::EventMethods;
use crate::dom::bindings::codegen::Bindings::SecureElementBinding::{
    ReaderEventInit, ReaderEventMethods,
};
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::bindings::str::DOMString;
use crate::dom::event::Event;
use crate::dom::secureelement::reader::Reader;
use crate::dom::window::Window;

/// <https://globalplatform.github.io/WebApis-for-SE/doc/#events>
#[dom_struct]
pub(crate) struct ReaderEvent {
    event: Event,
    reader: Dom<Reader>,
}

impl ReaderEvent {
    pub(crate) fn new(
        cx: &mut JSContext,
        window: &Window,
        type_: Atom,
        reader: &Reader,
    ) -> DomRoot<Self> {
        Self::new_with_proto(cx, window, None, type_, false, false, reader)
    }

    fn new_with_proto(
        cx: &mut JSContext,
        window: &Window,
        proto: Option<HandleObject>,
        type_: Atom,
        bubbles: bool,
        cancelable: bool,
        reader: &Reader,
    ) -> DomRoot<Self> {
        let reader_event = reflect_dom_object_with_proto(
            cx,
            Box::new(Self {
                event: Event::new_inherited(),
                reader: Dom::from_ref(reader),
            }),
            window,
            proto,
        );
        reader_event
            .upcast::<Event>()
            .init_event(type_, bubbles, cancelable);
        reader_event
    }
}

impl ReaderEventMethods<crate::DomTypeHolder> for ReaderEvent {
    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#constructor-parameters>
    fn Constructor(
        cx: &mut JSContext,
        window: &Window,
        proto: Option<HandleObject>,
        type_: DOMString,
        init: &ReaderEventInit,
    ) -> DomRoot<Self> {
        let event = Self::new_with_proto(
            cx,
            window,
            proto,
            Atom::from(type_),
            init.parent.bubbles,
            init.parent.cancelable,
            &init.reader,
        );
        event.upcast::<Event>().set_composed(init.parent.composed);
        event
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-ReaderEvent-reader>
    fn Reader(&self) -> DomRoot<Reader> {
        DomRoot::from_ref(&*self.reader)
    }

    /// <https://dom.spec.whatwg.org/#dom-event-istrusted>
    fn IsTrusted(&self) -> bool {
        self.event.IsTrusted()
    }
}
