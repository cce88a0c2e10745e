/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::cell::Cell;

use dom_struct::dom_struct;
use js::context::JSContext;
use js::realm::CurrentRealm;
use script_bindings::reflector::{Reflector, reflect_dom_object};
use token_traits::port::{ElementType, ReaderId, ReaderInfo, RequestBody};

use crate::conversions::Convert;
use crate::dom::bindings::codegen::Bindings::SecureElementBinding::{
    ReaderMethods, SecureElementType,
};
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::bindings::str::DOMString;
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::RootedPromise;
use crate::dom::secureelement::answer::Answer;
use crate::dom::secureelement::secureelementmanager::SecureElementManager;

/// <https://globalplatform.github.io/WebApis-for-SE/doc/#reader-interface>
#[dom_struct]
pub(crate) struct Reader {
    reflector_: Reflector,
    manager: Dom<SecureElementManager>,
    /// The port that the id means something in.
    generation: u64,
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    id: ReaderId,
    name: DOMString,
    element_type: SecureElementType,
    removable: bool,
    present: Cell<bool>,
}

impl Reader {
    pub(crate) fn new(
        cx: &mut JSContext,
        global: &GlobalScope,
        manager: &SecureElementManager,
        info: ReaderInfo,
    ) -> DomRoot<Self> {
        let reader = Self {
            reflector_: Reflector::new(),
            manager: Dom::from_ref(manager),
            generation: manager.generation(),
            id: info.id,
            name: DOMString::from(info.name),
            element_type: info.element_type.convert(),
            removable: info.removable,
            present: Cell::new(info.present),
        };
        reflect_dom_object(cx, Box::new(reader), global)
    }

    pub(crate) fn set_present(&self, present: bool) {
        self.present.set(present);
    }

    pub(crate) fn manager(&self) -> &SecureElementManager {
        &self.manager
    }
}

impl ReaderMethods<crate::DomTypeHolder> for Reader {
    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Reader-isSEPresent>
    fn IsSEPresent(&self) -> bool {
        self.present.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Reader-name>
    fn Name(&self) -> DOMString {
        self.name.clone()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Reader-secureElementType>
    fn SecureElementType(&self) -> SecureElementType {
        self.element_type
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Reader-isRemovable>
    fn IsRemovable(&self) -> bool {
        // NOTE: The specification's sentence says the opposite of the attribute's name. The name wins.
        self.removable
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Reader-openSession>
    fn OpenSession(&self, realm: &mut CurrentRealm) -> RootedPromise {
        self.manager.request(
            realm,
            Some(self.generation),
            RequestBody::OpenSession(self.id),
            Answer::Session(Dom::from_ref(self)),
        )
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Reader-closeSessions>
    fn CloseSessions(&self, realm: &mut CurrentRealm) -> RootedPromise {
        self.manager.request(
            realm,
            Some(self.generation),
            RequestBody::CloseSessions(self.id),
            Answer::Done,
        )
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Reader-reset>
    fn Reset(&self, realm: &mut CurrentRealm) -> RootedPromise {
        self.manager.request(
            realm,
            Some(self.generation),
            RequestBody::Reset(self.id),
            Answer::Reset,
        )
    }
}

impl Convert<SecureElementType> for ElementType {
    fn convert(self) -> SecureElementType {
        match self {
            ElementType::Uicc => SecureElementType::Uicc,
            ElementType::SmartCard => SecureElementType::Smartcard,
            ElementType::Embedded => SecureElementType::Ese,
            ElementType::Sd => SecureElementType::Sd,
            ElementType::Other => SecureElementType::Other,
        }
    }
}
