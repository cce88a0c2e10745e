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
use token_traits::port::{ReaderInfo, RequestBody};
use token_traits::{ErrorKind, Feature, TokenError};

use crate::dom::bindings::codegen::Bindings::SecureElementBinding::SecureElementManagerMethods;
use crate::dom::bindings::codegen::Bindings::WindowBinding::WindowMethods;
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::reflector::DomGlobal;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::event::Event;
use crate::dom::eventtarget::EventTarget;
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::{Promise, RootedPromise};
use crate::dom::secureelement::answer::Answer;
use crate::dom::secureelement::reader::Reader;
use crate::dom::secureelement::readerevent::ReaderEvent;
use crate::dom::tokenport::{self, closed, reject, warn_author};
use crate::realms::enter_auto_realm;

/// <https://globalplatform.github.io/WebApis-for-SE/doc/#secureelementmanager-interface>
#[dom_struct]
pub(crate) struct SecureElementManager {
    eventtarget: EventTarget,
    /// One object a reader, whenever the page asks.
    readers: DomRefCell<FxHashMap<u32, Dom<Reader>>>,
    shut_down: Cell<bool>,
    /// Whether a listener for each of the events was ever attached: sepresent, seremoval.
    watches: Cell<(bool, bool)>,
}

impl SecureElementManager {
    pub(crate) fn new(cx: &mut JSContext, global: &GlobalScope) -> DomRoot<Self> {
        let manager = Self {
            eventtarget: EventTarget::new_inherited(),
            readers: Default::default(),
            shut_down: Cell::new(false),
            watches: Cell::new((false, false)),
        };
        reflect_dom_object_with_cx(Box::new(manager), global, cx)
    }

    /// Names the port that objects which are made now belong to.
    pub(crate) fn generation(&self) -> u64 {
        self.global().tokens().port().generation()
    }

    /// Sends a request to the token broker. The promise settles with its reply. `generation` is that of the port which
    /// the object that is asked belongs to.
    pub(crate) fn request(
        &self,
        realm: &mut CurrentRealm,
        generation: Option<u64>,
        body: RequestBody,
        answer: Answer,
    ) -> RootedPromise {
        let promise = Promise::new_in_realm(realm);
        let global = self.global();
        let answer = tokenport::Answer::SecureElement(answer);
        // Everything is closed once the manager has been shut down.
        if generation.is_some() && self.shut_down.get() {
            answer.settle_closed(realm, &global, &promise, closed());
            return promise;
        }
        global
            .tokens()
            .port()
            .request(realm, &global, &promise, generation, body, answer);
        promise
    }

    fn watch(&self) {
        let global = self.global();
        global
            .tokens()
            .port()
            .watch(&global, RequestBody::WatchElements);
    }

    /// A listener for events of this type was attached.
    ///
    /// > Web application starts while a Secure Element is present in a reader
    ///
    /// Nobody can listen that early, so the first listener for `sepresent` is told about what is there.
    pub(crate) fn listener_added(&self, type_: &Atom) {
        let (present, removal) = self.watches.get();
        let is_new = match &**type_ {
            "sepresent" if !present => {
                self.watches.set((true, removal));
                true
            },
            "seremoval" if !removal => {
                self.watches.set((present, true));
                !present
            },
            _ => false,
        };
        if is_new && !self.shut_down.get() {
            self.watch();
        }
    }

    /// The port has closed, and listeners are left that have to be told by the next one.
    pub(crate) fn watch_again(&self) {
        if self.watches.get() != (false, false) && !self.shut_down.get() {
            self.watch();
        }
    }

    /// Fires the event for an element that has come into a reader or has gone from it.
    pub(crate) fn element_changed(&self, cx: &mut JSContext, info: ReaderInfo) {
        if self.shut_down.get() {
            return;
        }
        let global = self.global();
        let mut realm = enter_auto_realm(cx, &*global);
        let cx: &mut JSContext = &mut realm.current_realm();
        let type_ = if info.present {
            "sepresent"
        } else {
            "seremoval"
        };
        let reader = self.reader(cx, info);
        let event = ReaderEvent::new(cx, global.as_window(), Atom::from(type_), &reader);
        event.upcast::<Event>().fire(cx, self.upcast());
    }

    /// The port has closed: its readers are nobody's.
    pub(crate) fn forget_readers(&self) {
        self.readers.borrow_mut().clear();
    }

    /// The object for a reader that the broker told about.
    pub(crate) fn reader(&self, cx: &mut JSContext, info: ReaderInfo) -> DomRoot<Reader> {
        let known = self
            .readers
            .borrow()
            .get(&info.id.0)
            .map(|reader| DomRoot::from_ref(&**reader));
        if let Some(reader) = known {
            reader.set_present(info.present);
            return reader;
        }
        let id = info.id.0;
        let reader = Reader::new(cx, &self.global(), self, info);
        self.readers
            .borrow_mut()
            .insert(id, Dom::from_ref(&*reader));
        reader
    }
}

impl SecureElementManagerMethods<crate::DomTypeHolder> for SecureElementManager {
    // <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SecureElementManager-onsepresent>
    event_handler!(sepresent, GetOnsepresent, SetOnsepresent);

    // <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SecureElementManager-onseremoval>
    event_handler!(seremoval, GetOnseremoval, SetOnseremoval);

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SecureElementManager-getReaders>
    fn GetReaders(&self, realm: &mut CurrentRealm) -> RootedPromise {
        // > It MUST be null if the shutdown() method has been called on this SecureElementManager object.
        if self.shut_down.get() {
            let promise = Promise::new_in_realm(realm);
            promise.resolve_native(realm, &None::<DomRoot<Reader>>);
            return promise;
        }
        // What the document has given up by itself, nobody has to be asked about.
        if !self
            .global()
            .as_window()
            .Document()
            .own_features()
            .contains(Feature::SecureElement)
        {
            let promise = Promise::new_in_realm(realm);
            let error = TokenError::new(
                ErrorKind::NotAllowed,
                "The document's Permissions-Policy header keeps secure elements from it.",
            );
            let global = self.global();
            warn_author(realm, &global, &error);
            reject(realm, &global, &promise, error);
            return promise;
        }
        self.request(realm, None, RequestBody::GetReaders, Answer::Readers)
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SecureElementManager-shutdown>
    fn Shutdown(&self, realm: &mut CurrentRealm) -> RootedPromise {
        // Step 3. If the shutdown() method has already been called on this object, then resolve promise.
        // Neither is there anything to close without a port.
        if self.shut_down.replace(true) || self.global().tokens().port().is_closed() {
            let promise = Promise::new_in_realm(realm);
            promise.resolve_native(realm, &());
            return promise;
        }
        // Steps 1, 2, 4 to 9.
        self.request(realm, None, RequestBody::Shutdown, Answer::Done)
    }
}
