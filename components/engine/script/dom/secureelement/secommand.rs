/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::cell::Cell;

use dom_struct::dom_struct;
use js::context::JSContext;
use js::gc::CustomAutoRooterGuard;
use js::rust::HandleObject;
use js::typedarray::{HeapUint8Array, Uint8, Uint8Array};
use script_bindings::buffer_source::HeapBufferSource;
use script_bindings::cell::DomRefCell;
use script_bindings::reflector::{Reflector, reflect_dom_object_with_proto};
use script_bindings::trace::RootedTraceableBox;
use token_traits::port::Command;

use crate::dom::bindings::codegen::Bindings::SecureElementBinding::SECommandMethods;
use crate::dom::bindings::root::DomRoot;
use crate::dom::window::Window;

/// <https://globalplatform.github.io/WebApis-for-SE/doc/#secommand-interface>
#[dom_struct]
pub(crate) struct SECommand {
    reflector_: Reflector,
    cla: Cell<u8>,
    ins: Cell<u8>,
    p1: Cell<u8>,
    p2: Cell<u8>,
    #[ignore_malloc_size_of = "mozjs"]
    data: DomRefCell<Option<HeapBufferSource<Uint8>>>,
    le: Cell<Option<u16>>,
    extended: Cell<bool>,
}

impl SECommand {
    /// The fields as they are now. The broker checks and encodes them. `None` if the data's buffer is detached: a command
    /// that has lost its data must not be sent without.
    pub(crate) fn to_command(&self) -> Option<Command> {
        let data = match &*self.data.borrow() {
            Some(data) => Some(data.get_typed_array().ok()?.to_vec()?),
            None => None,
        };
        Some(Command::Fields {
            header: [self.cla.get(), self.ins.get(), self.p1.get(), self.p2.get()],
            data,
            le: self.le.get(),
            extended: self.extended.get(),
        })
    }
}

impl SECommandMethods<crate::DomTypeHolder> for SECommand {
    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#secommand-interface>
    fn Constructor(
        cx: &mut JSContext,
        window: &Window,
        proto: Option<HandleObject>,
        cla: u8,
        ins: u8,
        p1: u8,
        p2: u8,
        data: CustomAutoRooterGuard<Option<Uint8Array>>,
        le: Option<u16>,
        extended: bool,
    ) -> DomRoot<Self> {
        let command = Self {
            reflector_: Reflector::new(),
            cla: Cell::new(cla),
            ins: Cell::new(ins),
            p1: Cell::new(p1),
            p2: Cell::new(p2),
            data: Default::default(),
            le: Cell::new(le),
            extended: Cell::new(extended),
        };
        let command = reflect_dom_object_with_proto(cx, Box::new(command), window, proto);
        command.SetData(cx, data);
        command
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-cla>
    fn Cla(&self) -> u8 {
        self.cla.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-cla>
    fn SetCla(&self, cla: u8) {
        self.cla.set(cla);
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-ins>
    fn Ins(&self) -> u8 {
        self.ins.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-ins>
    fn SetIns(&self, ins: u8) {
        self.ins.set(ins);
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-p1>
    fn P1(&self) -> u8 {
        self.p1.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-p1>
    fn SetP1(&self, p1: u8) {
        self.p1.set(p1);
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-p2>
    fn P2(&self) -> u8 {
        self.p2.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-p2>
    fn SetP2(&self, p2: u8) {
        self.p2.set(p2);
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-data>
    fn GetData(&self) -> Option<RootedTraceableBox<HeapUint8Array>> {
        self.data
            .borrow()
            .as_ref()
            .and_then(|data| data.typed_array_to_option())
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-data>
    #[expect(unsafe_code)]
    fn SetData(&self, cx: &mut JSContext, data: CustomAutoRooterGuard<Option<Uint8Array>>) {
        let data = data.as_ref().map(|data| {
            // SAFETY: The guard roots the array, and the object is rooted again before anything can move it.
            rooted!(&in(cx) let object = unsafe { *data.underlying_object() });
            HeapBufferSource::new(object.handle())
        });
        *self.data.borrow_mut() = data;
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-le>
    fn GetLe(&self) -> Option<u16> {
        self.le.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-le>
    fn SetLe(&self, le: Option<u16>) {
        self.le.set(le);
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-isExtended>
    fn IsExtended(&self) -> bool {
        self.extended.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SECommand-isExtended>
    fn SetIsExtended(&self, extended: bool) {
        self.extended.set(extended);
    }
}
