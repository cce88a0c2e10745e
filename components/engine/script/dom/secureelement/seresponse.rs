/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use dom_struct::dom_struct;
use js::context::JSContext;
use js::gc::CustomAutoRooterGuard;
use js::rust::HandleObject;
use js::typedarray::{HeapUint8Array, Uint8, Uint8Array};
use script_bindings::buffer_source::HeapBufferSource;
use script_bindings::reflector::{Reflector, reflect_dom_object_with_proto};
use script_bindings::trace::RootedTraceableBox;

use crate::dom::bindings::codegen::Bindings::SecureElementBinding::SEResponseMethods;
use crate::dom::bindings::error::{Error, Fallible};
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::globalscope::GlobalScope;
use crate::dom::secureelement::channel::Channel;
use crate::dom::window::Window;

/// <https://globalplatform.github.io/WebApis-for-SE/doc/#seresponse-interface>
#[dom_struct]
pub(crate) struct SEResponse {
    reflector_: Reflector,
    /// `None` for a response that a page constructed.
    channel: Option<Dom<Channel>>,
    sw1: u8,
    sw2: u8,
    #[ignore_malloc_size_of = "mozjs"]
    data: HeapBufferSource<Uint8>,
}

impl SEResponse {
    /// `None` where there is no status word.
    pub(crate) fn new(
        cx: &mut JSContext,
        global: &GlobalScope,
        channel: Option<&Channel>,
        raw: &[u8],
    ) -> Option<DomRoot<Self>> {
        Self::new_with_proto(cx, global, None, channel, raw)
    }

    fn new_with_proto(
        cx: &mut JSContext,
        global: &GlobalScope,
        proto: Option<HandleObject>,
        channel: Option<&Channel>,
        raw: &[u8],
    ) -> Option<DomRoot<Self>> {
        let (data, &[sw1, sw2]) = raw.split_last_chunk()?;
        let response = Self {
            reflector_: Reflector::new(),
            channel: channel.map(Dom::from_ref),
            sw1,
            sw2,
            data: HeapBufferSource::default(),
        };
        let response = reflect_dom_object_with_proto(cx, Box::new(response), global, proto);
        response.data.set_data(cx, data).ok()?;
        Some(response)
    }
}

impl SEResponseMethods<crate::DomTypeHolder> for SEResponse {
    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#seresponse-interface>
    fn Constructor(
        cx: &mut JSContext,
        window: &Window,
        proto: Option<HandleObject>,
        raw: CustomAutoRooterGuard<Uint8Array>,
    ) -> Fallible<DomRoot<Self>> {
        Self::new_with_proto(
            cx,
            window.upcast(),
            proto,
            None,
            &raw.to_vec().unwrap_or_default(),
        )
        .ok_or_else(|| Error::Type(c"A response APDU has at least two bytes.".into()))
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SEResponse-channel>
    fn GetChannel(&self) -> Option<DomRoot<Channel>> {
        self.channel.as_deref().map(DomRoot::from_ref)
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SEResponse-sw1>
    fn Sw1(&self) -> u8 {
        self.sw1
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SEResponse-sw2>
    fn Sw2(&self) -> u8 {
        self.sw2
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SEResponse-data>
    fn Data(&self) -> RootedTraceableBox<HeapUint8Array> {
        self.data
            .get_typed_array()
            .expect("The data is set before anybody gets the response")
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-SEResponse-isStatus>
    fn IsStatus(&self, sw1: Option<u8>, sw2: Option<u8>) -> bool {
        sw1.is_none_or(|sw1| sw1 == self.sw1) && sw2.is_none_or(|sw2| sw2 == self.sw2)
    }
}
