/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A document's end of its port to the token broker: opens it at the first request, matches replies to promises,
//! and rejects what is left when the port closes.

use std::cell::{Cell, RefCell};
use std::ptr;

use ipc_channel::ipc::IpcSender;
use ipc_channel::router::ROUTER;
use js::context::JSContext;
use js::jsapi::JSObject;
use js::typedarray::Uint8;
use rustc_hash::FxHashMap;
use script_bindings::buffer_source::create_buffer_source;
use script_bindings::cell::DomRefCell;
use servo_base::generic_channel::GenericCallback;
use servo_constellation_traits::ScriptToConstellationMessage;
use token_traits::port::{
    ChannelType, PortMessage, PortRequest, ReplyBody, RequestBody, RequestId,
};
use token_traits::{ErrorKind, Frame, TokenError, TokenPort};

use crate::dom::bindings::codegen::Bindings::DOMExceptionBinding::DOMExceptionMethods;
use crate::dom::bindings::error::Error;
use crate::dom::bindings::refcounted::Trusted;
use crate::dom::bindings::reflector::DomGlobal;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::bindings::str::DOMString;
use crate::dom::console::Console;
use crate::dom::domexception::DOMException;
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::{Promise, RootedPromise, TracedPromise};
use crate::dom::secureelement::channel::Channel;
use crate::dom::secureelement::reader::Reader;
use crate::dom::secureelement::secureelementmanager::SecureElementManager;
use crate::dom::secureelement::seresponse::SEResponse;
use crate::dom::secureelement::session::Session;
use crate::realms::enter_auto_realm;
use crate::tasks::task_source::SendableTaskSource;

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
    /// The bytes of a response.
    Raw,
    /// Nothing. What is closed already counts as done.
    Done,
    /// Nothing, once the reader has been reset.
    Reset,
}

#[derive(JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
struct PendingRequest {
    promise: TracedPromise,
    answer: Answer,
}

enum State {
    /// Not opened yet, or closed since. The next request opens it.
    Closed,
    /// The parent has been asked for it; the requests wait.
    Opening(Vec<Frame>),
    Open(IpcSender<Frame>),
}

/// The document's end of its port.
#[derive(JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
pub(crate) struct TokenPortClient {
    #[no_trace]
    #[ignore_malloc_size_of = "channels"]
    state: RefCell<State>,
    /// Goes up whenever the port closes, so that what is left of an older port cannot touch a newer one.
    generation: Cell<u64>,
    next_request: Cell<u64>,
    pending: DomRefCell<FxHashMap<u64, PendingRequest>>,
}

impl TokenPortClient {
    pub(crate) fn new() -> Self {
        Self {
            state: RefCell::new(State::Closed),
            generation: Cell::new(0),
            next_request: Cell::new(0),
            pending: Default::default(),
        }
    }

    /// Names the port that objects which are made now belong to.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Whether nothing has been asked since the last port closed.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.state.borrow(), State::Closed)
    }

    /// Sends a request and settles `promise` with its reply, or with an error if the port closes first. `generation` is
    /// that of the object which is asked.
    pub(crate) fn request(
        &self,
        cx: &mut JSContext,
        manager: &SecureElementManager,
        promise: &RootedPromise,
        generation: Option<u64>,
        body: RequestBody,
        answer: Answer,
    ) {
        // The broker's ids mean something within one port only: what belongs to an older one is closed.
        if generation.is_some_and(|generation| generation != self.generation.get()) {
            match answer {
                Answer::Done => promise.resolve_native(cx, &()),
                _ => reject(cx, &manager.global(), promise, closed()),
            }
            return;
        }
        let id = self.next_request.get();
        self.next_request.set(id + 1);
        let request = PortRequest {
            id: RequestId(id),
            body,
        };
        let Ok(frame) = Frame::encode(&request) else {
            let error = TokenError::new(ErrorKind::InvalidValue, "The request is too long.");
            reject(cx, &manager.global(), promise, error);
            return;
        };
        self.pending.borrow_mut().insert(
            id,
            PendingRequest {
                promise: promise.to_traced(),
                answer,
            },
        );

        let mut state = self.state.borrow_mut();
        match &mut *state {
            State::Closed => {
                *state = State::Opening(vec![frame]);
                drop(state);
                self.open(manager);
            },
            State::Opening(waiting) => waiting.push(frame),
            State::Open(sender) => {
                let sent = sender.send(frame).is_ok();
                drop(state);
                if !sent {
                    // The guard of the message route rejects what is pending; it may already be on its way.
                    self.guard(manager).close(connection_lost());
                }
            },
        }
    }

    fn guard(&self, manager: &SecureElementManager) -> PortGuard {
        PortGuard {
            manager: Some(Trusted::new(manager)),
            generation: self.generation.get(),
            task_source: manager
                .global()
                .task_manager()
                .dom_manipulation_task_source()
                .to_sendable(),
        }
    }

    /// Asks the parent for a port. A document states its origin; the parent verifies it.
    fn open(&self, manager: &SecureElementManager) {
        let global = manager.global();
        let mut guard = Some(self.guard(manager));
        let callback = GenericCallback::new(
            move |response: Result<Result<TokenPort, TokenError>, _>| {
                let Some(guard) = guard.take() else {
                    return;
                };
                match response {
                    Ok(Ok(port)) => guard.opened(port),
                    Ok(Err(error)) => guard.close(error),
                    Err(_) => guard.close(connection_lost()),
                }
            },
        );
        let sent = callback.is_ok_and(|callback| {
            global
                .script_to_constellation_chan()
                .send(ScriptToConstellationMessage::OpenTokenPort(
                    global.origin().immutable().clone(),
                    callback,
                ))
                .is_ok()
        });
        if !sent {
            self.guard(manager).close(connection_lost());
        }
    }

    fn handle_opened(&self, manager: &SecureElementManager, generation: u64, port: TokenPort) {
        if generation != self.generation.get() {
            return;
        }
        let State::Opening(waiting) = self.state.replace(State::Closed) else {
            return;
        };

        let guard = self.guard(manager);
        ROUTER.add_typed_route(
            port.messages,
            Box::new(move |frame| {
                if let Ok(frame) = frame {
                    guard.message(frame);
                }
            }),
        );
        // If the broker is gone already, the route above says so.
        for frame in waiting {
            let _ = port.requests.send(frame);
        }
        self.state.replace(State::Open(port.requests));
    }

    fn handle_message(
        &self,
        cx: &mut JSContext,
        manager: &SecureElementManager,
        generation: u64,
        frame: Frame,
    ) {
        if generation != self.generation.get() {
            return;
        }
        let Ok(PortMessage::Reply { request, result }) = frame.decode() else {
            warn!("The token broker sent a message that is none.");
            return self.handle_closed(cx, manager, generation, connection_lost());
        };
        let Some(pending) = self.pending.borrow_mut().remove(&request.0) else {
            return warn!("The token broker answered a question that nobody asked.");
        };
        let promise = pending.promise.root(cx);
        match result {
            Ok(body) => resolve(cx, manager, &promise, pending.answer, body),
            Err(error) => reject(cx, &manager.global(), &promise, error),
        }
    }

    /// Rejects everything that is pending. The next request opens a new port.
    fn handle_closed(
        &self,
        cx: &mut JSContext,
        manager: &SecureElementManager,
        generation: u64,
        error: TokenError,
    ) {
        if generation != self.generation.get() {
            return;
        }
        self.generation.set(generation + 1);
        self.state.replace(State::Closed);
        manager.forget_readers();
        if error.kind == ErrorKind::NotAllowed {
            // The page may swallow the error; its author should still learn why there are no tokens.
            Console::internal_warn(cx, &manager.global(), error.message.clone());
        }
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        for request in pending.into_values() {
            let promise = request.promise.root(cx);
            reject(cx, &manager.global(), &promise, error.clone());
        }
    }
}

fn connection_lost() -> TokenError {
    TokenError::new(
        ErrorKind::Io,
        "The connection to the token broker was lost. Ask for the readers again to start over.",
    )
}

fn closed() -> TokenError {
    TokenError::new(
        ErrorKind::Closed,
        "The connection to the token broker that this belonged to is closed. Ask for the readers again to start over.",
    )
}

fn unexpected_reply() -> TokenError {
    TokenError::new(ErrorKind::Unknown, "The token broker gave an unexpected reply.")
}

/// Carries what happens to a port to the script thread. Dropped, as the router does with the handlers of a channel
/// that closes, it says that the port has closed.
struct PortGuard {
    manager: Option<Trusted<SecureElementManager>>,
    generation: u64,
    task_source: SendableTaskSource,
}

impl PortGuard {
    fn opened(mut self, port: TokenPort) {
        let generation = self.generation;
        if let Some(manager) = self.manager.take() {
            self.task_source.queue(task!(token_port_opened: move || {
                let manager = manager.root();
                manager.port().handle_opened(&manager, generation, port);
            }));
        }
    }

    fn message(&self, frame: Frame) {
        let generation = self.generation;
        if let Some(manager) = self.manager.clone() {
            self.task_source.queue(task!(token_port_message: move |cx| {
                let manager = manager.root();
                manager.port().handle_message(cx, &manager, generation, frame);
            }));
        }
    }

    fn close(mut self, error: TokenError) {
        self.close_with(error);
    }

    fn close_with(&mut self, error: TokenError) {
        let generation = self.generation;
        if let Some(manager) = self.manager.take() {
            self.task_source.queue(task!(token_port_closed: move |cx| {
                let manager = manager.root();
                manager.port().handle_closed(cx, &manager, generation, error);
            }));
        }
    }
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        self.close_with(connection_lost());
    }
}

/// Rejects with a `DOMException` whose name is the one that the specification gives the error.
fn reject(cx: &mut JSContext, global: &GlobalScope, promise: &Promise, error: TokenError) {
    let exception = DOMException::Constructor(
        cx,
        global,
        None,
        DOMString::from(error.message),
        DOMString::from(error.kind.dom_exception_name()),
    );
    match exception {
        Ok(exception) => promise.reject_native(cx, &exception),
        Err(error) => promise.reject_error(cx, error),
    }
}

/// Makes the reply into what the promise was for.
fn resolve(
    cx: &mut JSContext,
    manager: &SecureElementManager,
    promise: &Promise,
    answer: Answer,
    body: ReplyBody,
) {
    let global = manager.global();
    let mut realm = enter_auto_realm(cx, &*global);
    let cx: &mut JSContext = &mut realm.current_realm();

    // Each arm roots what the answer holds before anything can collect garbage.
    match (answer, body) {
        (Answer::Readers, ReplyBody::Readers(readers)) => {
            let readers: Vec<_> = readers
                .into_iter()
                .map(|info| manager.reader(cx, info))
                .collect();
            promise.resolve_native(cx, &readers);
        },
        (Answer::Session(reader), ReplyBody::Session(info)) => {
            let reader = DomRoot::from_ref(&*reader);
            let session = Session::new(cx, &global, &reader, info);
            promise.resolve_native(cx, &session);
        },
        (Answer::Channel(session, channel_type), ReplyBody::Channel(info)) => {
            let session = DomRoot::from_ref(&*session);
            let channel = Channel::new(cx, &global, &session, channel_type, info);
            promise.resolve_native(cx, &channel);
        },
        (Answer::Response(channel), ReplyBody::Response(raw)) => {
            let channel = DomRoot::from_ref(&*channel);
            match SEResponse::new(cx, &global, Some(&channel), &raw) {
                Some(response) => promise.resolve_native(cx, &response),
                None => reject(cx, &global, promise, unexpected_reply()),
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
        _ => reject(cx, &global, promise, unexpected_reply()),
    }
}
