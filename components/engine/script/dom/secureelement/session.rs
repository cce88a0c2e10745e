/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use dom_struct::dom_struct;
use js::context::JSContext;
use js::gc::CustomAutoRooterGuard;
use js::realm::CurrentRealm;
use js::typedarray::{HeapUint8Array, Uint8, Uint8Array};
use script_bindings::buffer_source::HeapBufferSource;
use script_bindings::reflector::{Reflector, reflect_dom_object};
use script_bindings::trace::RootedTraceableBox;
use token_traits::port::{ChannelType, RequestBody, SessionId, SessionInfo};

use crate::dom::bindings::codegen::Bindings::SecureElementBinding::SessionMethods;
use crate::dom::bindings::error::Error;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::{Promise, RootedPromise};
use crate::dom::secureelement::answer::Answer;
use crate::dom::secureelement::reader::Reader;
use crate::dom::secureelement::secureelementmanager::SecureElementManager;

/// <https://globalplatform.github.io/WebApis-for-SE/doc/#session-interface>
#[dom_struct]
pub(crate) struct Session {
    reflector_: Reflector,
    reader: Dom<Reader>,
    /// The port that the id means something in.
    generation: u64,
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    id: SessionId,
    /// Not initialised where the interface provides no historical bytes.
    #[ignore_malloc_size_of = "mozjs"]
    historical_bytes: HeapBufferSource<Uint8>,
}

impl Session {
    pub(crate) fn new(
        cx: &mut JSContext,
        global: &GlobalScope,
        reader: &Reader,
        info: SessionInfo,
    ) -> DomRoot<Self> {
        let session = Self {
            reflector_: Reflector::new(),
            reader: Dom::from_ref(reader),
            generation: reader.manager().generation(),
            id: info.id,
            historical_bytes: HeapBufferSource::default(),
        };
        let session = reflect_dom_object(cx, Box::new(session), global);
        if let Some(historical_bytes) = info.historical_bytes {
            let _ = session.historical_bytes.set_data(cx, &historical_bytes);
        }
        session
    }

    pub(crate) fn manager(&self) -> &SecureElementManager {
        self.reader.manager()
    }

    fn open_channel(
        &self,
        realm: &mut CurrentRealm,
        channel_type: ChannelType,
        aid: CustomAutoRooterGuard<Option<Uint8Array>>,
        p2: u8,
    ) -> RootedPromise {
        // An empty AID names the issuer security domain, so an array that has lost its bytes must not become one.
        let aid = match aid.as_ref().map(|aid| aid.to_vec()) {
            Some(None) => {
                let promise = Promise::new_in_realm(realm);
                promise.reject_error(realm, Error::Type(c"The AID's buffer is detached.".into()));
                return promise;
            },
            aid => aid.flatten(),
        };
        self.manager().request(
            realm,
            Some(self.generation),
            RequestBody::OpenChannel {
                session: self.id,
                channel_type,
                aid,
                p2,
            },
            Answer::Channel(Dom::from_ref(self), channel_type),
        )
    }
}

impl SessionMethods<crate::DomTypeHolder> for Session {
    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Session-reader>
    fn Reader(&self) -> DomRoot<Reader> {
        DomRoot::from_ref(&*self.reader)
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Session-historicalBytes>
    fn GetHistoricalBytes(&self) -> Option<RootedTraceableBox<HeapUint8Array>> {
        self.historical_bytes.typed_array_to_option()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Session-openBasicChannel>
    fn OpenBasicChannel(
        &self,
        realm: &mut CurrentRealm,
        aid: CustomAutoRooterGuard<Option<Uint8Array>>,
        p2: u8,
    ) -> RootedPromise {
        self.open_channel(realm, ChannelType::Basic, aid, p2)
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Session-openSupplementaryChannel>
    fn OpenSupplementaryChannel(
        &self,
        realm: &mut CurrentRealm,
        aid: CustomAutoRooterGuard<Option<Uint8Array>>,
        p2: u8,
    ) -> RootedPromise {
        self.open_channel(realm, ChannelType::Supplementary, aid, p2)
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Session-close>
    fn Close(&self, realm: &mut CurrentRealm) -> RootedPromise {
        self.manager().request(
            realm,
            Some(self.generation),
            RequestBody::CloseSession(self.id),
            Answer::Done,
        )
    }
}
