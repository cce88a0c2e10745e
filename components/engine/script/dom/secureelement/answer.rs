/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::ptr;

use js::context::JSContext;
use js::jsapi::JSObject;
use js::typedarray::Uint8;
use script_bindings::buffer_source::create_buffer_source;
use token_traits::port::{ChannelType, ReplyBody, RequestBody};

use crate::dom::bindings::error::Error;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::Promise;
use crate::dom::secureelement::channel::Channel;
use crate::dom::secureelement::reader::Reader;
use crate::dom::secureelement::seresponse::SEResponse;
use crate::dom::secureelement::session::Session;
use crate::dom::tokenport::{reject, unexpected_reply};

/// What a reply is made into.
#[derive(JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
pub(crate) enum Answer {
    /// The readers, as an array.
    Readers,
    /// A session with this reader.
    Session(Dom<Reader>),
    /// A channel in this session.
    Channel(
        Dom<Session>,
        #[no_trace]
        #[ignore_malloc_size_of = "external type"]
        ChannelType,
    ),
    /// A response on this channel.
    Response(Dom<Channel>),
    /// A response to SELECT on this channel.
    Selected(Dom<Channel>),
    /// The bytes of a response.
    Raw,
    /// Nothing. What is closed already counts as done.
    Done,
    /// Nothing, once the reader has been reset.
    Reset,
}

impl Answer {
    /// The request once more, if asking it twice does nothing twice, unlike a command.
    pub(crate) fn request_again(&self) -> Option<RequestBody> {
        matches!(self, Answer::Readers).then_some(RequestBody::GetReaders)
    }

    /// Makes the reply into what the promise was for.
    pub(crate) fn resolve(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &Promise,
        body: ReplyBody,
    ) {
        // Each arm roots what the answer holds before anything can collect garbage.
        match (self, body) {
            (Answer::Readers, ReplyBody::Readers(readers)) => {
                let manager = global.tokens().secure_element_manager(cx, global);
                let readers: Vec<_> = readers
                    .into_iter()
                    .map(|info| manager.reader(cx, info))
                    .collect();
                promise.resolve_native(cx, &readers);
            },
            (Answer::Session(reader), ReplyBody::Session(info)) => {
                let reader = DomRoot::from_ref(&*reader);
                let session = Session::new(cx, global, &reader, info);
                promise.resolve_native(cx, &session);
            },
            (Answer::Channel(session, channel_type), ReplyBody::Channel(info)) => {
                let session = DomRoot::from_ref(&*session);
                let channel = Channel::new(cx, global, &session, channel_type, info);
                promise.resolve_native(cx, &channel);
            },
            (Answer::Response(channel), ReplyBody::Response(raw)) => {
                let channel = DomRoot::from_ref(&*channel);
                match SEResponse::new(cx, global, Some(&channel), &raw) {
                    Some(response) => promise.resolve_native(cx, &response),
                    None => reject(cx, global, promise, unexpected_reply()),
                }
            },
            (Answer::Selected(channel), ReplyBody::Response(raw)) => {
                let channel = DomRoot::from_ref(&*channel);
                match SEResponse::new(cx, global, Some(&channel), &raw) {
                    Some(response) => {
                        channel.set_open_response(&response);
                        promise.resolve_native(cx, &response)
                    },
                    None => reject(cx, global, promise, unexpected_reply()),
                }
            },
            (Answer::Raw, ReplyBody::Response(raw)) => {
                rooted!(&in(cx) let mut array = ptr::null_mut::<JSObject>());
                match create_buffer_source::<Uint8>(cx, &raw, array.handle_mut()) {
                    Ok(array) => promise.resolve_native(cx, &array),
                    Err(()) => promise.reject_error(cx, Error::JSFailed),
                }
            },
            (Answer::Done | Answer::Reset, ReplyBody::Done) => promise.resolve_native(cx, &()),
            _ => reject(cx, global, promise, unexpected_reply()),
        }
    }
}
