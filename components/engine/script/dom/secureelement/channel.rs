/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::cell::Cell;

use dom_struct::dom_struct;
use js::context::JSContext;
use js::gc::CustomAutoRooterGuard;
use js::realm::CurrentRealm;
use js::typedarray::Uint8Array;
use script_bindings::reflector::{Reflector, reflect_dom_object};
use token_traits::port::{self, ChannelId, ChannelInfo, Command, RequestBody};

use crate::conversions::Convert;
use crate::dom::bindings::codegen::Bindings::SecureElementBinding::{ChannelMethods, ChannelType};
use crate::dom::bindings::error::Error;
use crate::dom::bindings::root::{Dom, DomRoot, MutNullableDom};
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::{Promise, RootedPromise};
use crate::dom::secureelement::answer::Answer;
use crate::dom::secureelement::secommand::SECommand;
use crate::dom::secureelement::seresponse::SEResponse;
use crate::dom::secureelement::session::Session;

/// <https://globalplatform.github.io/WebApis-for-SE/doc/#channel-interface>
#[dom_struct]
pub(crate) struct Channel {
    reflector_: Reflector,
    session: Dom<Session>,
    /// The port that the id means something in.
    generation: u64,
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    id: ChannelId,
    channel_type: ChannelType,
    open_response: MutNullableDom<SEResponse>,
    timeout: Cell<Option<i32>>,
}

impl Channel {
    pub(crate) fn new(
        cx: &mut JSContext,
        global: &GlobalScope,
        session: &Session,
        channel_type: port::ChannelType,
        info: ChannelInfo,
    ) -> DomRoot<Self> {
        let channel = Self {
            reflector_: Reflector::new(),
            session: Dom::from_ref(session),
            generation: session.manager().generation(),
            id: info.id,
            channel_type: channel_type.convert(),
            open_response: Default::default(),
            timeout: Cell::new(None),
        };
        let channel = reflect_dom_object(cx, Box::new(channel), global);
        if let Some(open_response) = info.open_response {
            let open_response = SEResponse::new(cx, global, Some(&channel), &open_response);
            channel.open_response.set(open_response.as_deref());
        }
        channel
    }

    pub(crate) fn set_open_response(&self, response: &SEResponse) {
        self.open_response.set(Some(response));
    }

    /// What the broker is told of `timeout`: one below zero has passed already.
    fn timeout_ms(&self) -> Option<u32> {
        self.timeout
            .get()
            .map(|timeout| u32::try_from(timeout).unwrap_or(0))
    }

    fn transmit(
        &self,
        realm: &mut CurrentRealm,
        command: Command,
        answer: Answer,
    ) -> RootedPromise {
        self.session.manager().request(
            realm,
            Some(self.generation),
            RequestBody::Transmit {
                channel: self.id,
                command,
                timeout_ms: self.timeout_ms(),
            },
            answer,
        )
    }
}

impl ChannelMethods<crate::DomTypeHolder> for Channel {
    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-session>
    fn Session(&self) -> DomRoot<Session> {
        DomRoot::from_ref(&*self.session)
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-channelType>
    fn ChannelType(&self) -> ChannelType {
        self.channel_type
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-openResponse>
    fn GetOpenResponse(&self) -> Option<DomRoot<SEResponse>> {
        self.open_response.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-timeout>
    fn GetTimeout(&self) -> Option<i32> {
        self.timeout.get()
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-timeout>
    fn SetTimeout(&self, timeout: Option<i32>) {
        self.timeout.set(timeout);
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-selectNext>
    fn SelectNext(&self, realm: &mut CurrentRealm) -> RootedPromise {
        self.session.manager().request(
            realm,
            Some(self.generation),
            RequestBody::SelectNext {
                channel: self.id,
                timeout_ms: self.timeout_ms(),
            },
            Answer::Selected(Dom::from_ref(self)),
        )
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-transmit>
    fn Transmit(&self, realm: &mut CurrentRealm, command: &SECommand) -> RootedPromise {
        match command.to_command() {
            Some(command) => self.transmit(realm, command, Answer::Response(Dom::from_ref(self))),
            None => {
                let promise = Promise::new_in_realm(realm);
                promise.reject_error(realm, Error::Type(c"The data's buffer is detached.".into()));
                promise
            },
        }
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-transmitRaw>
    fn TransmitRaw(
        &self,
        realm: &mut CurrentRealm,
        command: CustomAutoRooterGuard<Uint8Array>,
    ) -> RootedPromise {
        // An array that has lost its bytes is an empty one, and no command.
        self.transmit(
            realm,
            Command::Raw(command.to_vec().unwrap_or_default()),
            Answer::Raw,
        )
    }

    /// <https://globalplatform.github.io/WebApis-for-SE/doc/#widl-Channel-close>
    fn Close(&self, realm: &mut CurrentRealm) -> RootedPromise {
        self.session.manager().request(
            realm,
            Some(self.generation),
            RequestBody::CloseChannel(self.id),
            Answer::Done,
        )
    }
}

impl Convert<ChannelType> for port::ChannelType {
    fn convert(self) -> ChannelType {
        match self {
            port::ChannelType::Basic => ChannelType::Basic,
            port::ChannelType::Supplementary => ChannelType::Supplementary,
        }
    }
}
