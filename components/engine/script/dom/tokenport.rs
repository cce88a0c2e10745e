/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A document's or dedicated worker's end of its port to the token broker: opens it at the first request, matches replies
//! to promises, and rejects what is left when the port closes. The Secure Element API and token keys share it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ipc_channel::ipc::IpcSender;
use ipc_channel::router::ROUTER;
use js::context::JSContext;
use rustc_hash::FxHashMap;
use script_bindings::cell::DomRefCell;
use servo_base::generic_channel::GenericCallback;
use servo_constellation_traits::ScriptToConstellationMessage;
use stylo_atoms::Atom;
use timers::TimerEventRequest;
use token_traits::port::{PortMessage, PortRequest, ReplyBody, RequestBody, RequestId};
use token_traits::{ErrorKind, Feature, FeatureSet, Frame, TokenError, TokenPort};

use crate::dom::bindings::codegen::Bindings::DOMExceptionBinding::DOMExceptionMethods;
use crate::dom::bindings::codegen::Bindings::WindowBinding::WindowMethods;
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::refcounted::Trusted;
use crate::dom::bindings::root::{Dom, DomRoot, MutNullableDom};
use crate::dom::bindings::str::DOMString;
use crate::dom::console::Console;
#[cfg(feature = "webcrypto")]
use crate::dom::cryptokeys::CryptoKeys;
use crate::dom::dedicatedworkerglobalscope::DedicatedWorkerGlobalScope;
use crate::dom::domexception::DOMException;
use crate::dom::eventtarget::EventTarget;
use crate::dom::globalscope::GlobalScope;
use crate::dom::permissionstatus::PermissionStatus;
use crate::dom::promise::{Promise, RootedPromise, TracedPromise};
use crate::dom::secureelement::answer::Answer as SecureElementAnswer;
use crate::dom::secureelement::permission::{set_state, token_feature};
use crate::dom::secureelement::secureelementmanager::SecureElementManager;
#[cfg(feature = "webcrypto")]
use crate::dom::tokenkeys::answer::Answer as KeysAnswer;
use crate::dom::window::Window;
use crate::dom::workerglobalscope::WorkerGlobalScope;
use crate::realms::enter_auto_realm;
use crate::tasks::task_source::SendableTaskSource;

/// What a global object has of the token APIs.
#[derive(Default, JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
pub(crate) struct Tokens {
    port: TokenPortClient,
    secure_element_manager: MutNullableDom<SecureElementManager>,
    #[cfg(feature = "webcrypto")]
    crypto_keys: MutNullableDom<CryptoKeys>,
}

impl Tokens {
    pub(crate) fn port(&self) -> &TokenPortClient {
        &self.port
    }

    pub(crate) fn secure_element_manager(
        &self,
        cx: &mut JSContext,
        global: &GlobalScope,
    ) -> DomRoot<SecureElementManager> {
        self.secure_element_manager
            .or_init(|| SecureElementManager::new(cx, global))
    }

    #[cfg(feature = "webcrypto")]
    pub(crate) fn crypto_keys(
        &self,
        cx: &mut JSContext,
        global: &GlobalScope,
    ) -> DomRoot<CryptoKeys> {
        self.crypto_keys.or_init(|| CryptoKeys::new(cx, global))
    }

    /// The document goes, and with it whatever it has opened. Returns whether there was anything.
    pub(crate) fn close(&self, cx: &mut JSContext, global: &GlobalScope) -> bool {
        let mut realm = enter_auto_realm(cx, global);
        self.port.close(&mut realm.current_realm(), global)
    }

    /// The port has closed, and what it had given out means nothing any more.
    fn port_closed(&self) {
        if let Some(manager) = self.secure_element_manager.get() {
            manager.forget_readers();
        }
    }

    /// The port has closed, and listeners are left that have to be told by the next one.
    fn watch_again(&self) {
        if let Some(manager) = self.secure_element_manager.get() {
            manager.watch_again();
        }
        #[cfg(feature = "webcrypto")]
        if let Some(keys) = self.crypto_keys.get() {
            keys.watch_again();
        }
    }
}

impl GlobalScope {
    /// The features of the token broker that a document leaves itself, or leaves this worker of it.
    pub(crate) fn token_features(&self) -> FeatureSet {
        if let Some(window) = self.downcast::<Window>() {
            window.Document().own_features()
        } else if let Some(worker) = self.downcast::<WorkerGlobalScope>() {
            worker.token_features()
        } else {
            FeatureSet::NONE
        }
    }

    /// The features that a worker which starts here may use.
    pub(crate) fn token_features_for_workers(&self) -> FeatureSet {
        self.token_features()
            .intersection(FeatureSet::from_iter([Feature::TokenKeys]))
    }
}

/// A listener for events of a type was attached: those who have something to tell ask to be told.
pub(crate) fn listener_added(target: &EventTarget, type_: &Atom) {
    if let Some(manager) = target.downcast::<SecureElementManager>() {
        manager.listener_added(type_);
    }
    #[cfg(feature = "webcrypto")]
    if let Some(keys) = target.downcast::<CryptoKeys>() {
        keys.listener_added(type_);
    }
}

/// What a reply is made into.
#[derive(JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
pub(crate) enum Answer {
    /// Something of the Secure Element API.
    SecureElement(SecureElementAnswer),
    /// The state of a permission. Without an answer it stays denied.
    Permission(Dom<PermissionStatus>),
    /// Something about keys.
    #[cfg(feature = "webcrypto")]
    Keys(KeysAnswer),
    /// Nobody waits for it.
    Nothing,
}

impl Answer {
    /// The request once more, if asking it twice does nothing twice, unlike a command.
    fn request_again(&self) -> Option<RequestBody> {
        match self {
            Answer::SecureElement(answer) => answer.request_again(),
            Answer::Permission(status) => {
                token_feature(status.get_query()).map(RequestBody::QueryPermission)
            },
            #[cfg(feature = "webcrypto")]
            Answer::Keys(answer) => answer.request_again(),
            Answer::Nothing => None,
        }
    }

    /// Makes the reply into what the promise was for.
    fn resolve(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &RootedPromise,
        body: ReplyBody,
    ) {
        let mut realm = enter_auto_realm(cx, global);
        let cx: &mut JSContext = &mut realm.current_realm();
        // Each arm roots what the answer holds before anything can collect garbage.
        match (self, body) {
            (Answer::SecureElement(answer), body) => answer.resolve(cx, global, promise, body),
            (Answer::Permission(status), ReplyBody::Permission(state)) => {
                let status = DomRoot::from_ref(&*status);
                set_state(&status, state);
                promise.resolve_native(cx, &status)
            },
            #[cfg(feature = "webcrypto")]
            (Answer::Keys(answer), ReplyBody::Keys(reply)) => {
                answer.resolve(cx, global, promise, reply)
            },
            (answer, _) => answer.fail(cx, global, promise, unexpected_reply()),
        }
    }

    /// Settles a promise whose request has failed.
    fn fail(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &RootedPromise,
        error: TokenError,
    ) {
        match self {
            // Who cannot ask has no permission.
            Answer::Permission(status) => {
                let status = DomRoot::from_ref(&*status);
                promise.resolve_native(cx, &status)
            },
            #[cfg(feature = "webcrypto")]
            Answer::Keys(answer) => {
                let mut realm = enter_auto_realm(cx, global);
                answer.fail(&mut realm.current_realm(), global, promise, error)
            },
            _ => reject(cx, global, promise, error),
        }
    }

    /// What is closed can be closed once more, and nothing else.
    pub(crate) fn settle_closed(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &RootedPromise,
        error: TokenError,
    ) {
        match self {
            Answer::SecureElement(SecureElementAnswer::Done) => promise.resolve_native(cx, &()),
            answer => answer.fail(cx, global, promise, error),
        }
    }
}

#[derive(JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
struct PendingRequest {
    /// `None` for what no page asked for.
    promise: Option<TracedPromise>,
    answer: Answer,
    /// The length of its frame, once it has been sent.
    sent: Option<usize>,
    /// Whether it has been asked again, because the first port closed before it was answered.
    is_second_attempt: bool,
}

/// A request that has not been sent.
struct WaitingRequest {
    id: u64,
    body: RequestBody,
    /// When it is to be rejected, if it has not been answered by then.
    deadline: Option<Instant>,
}

#[derive(Default)]
enum State {
    /// Not opened yet, or closed since. The next request opens it.
    #[default]
    Closed,
    /// The parent has been asked for it.
    Opening,
    Open(IpcSender<Frame>),
}

/// Most requests that are sent and not answered. Together with [`MAX_BYTES_IN_FLIGHT`] it keeps what the broker has not
/// read yet within the buffer that the kernel gives a socket, so sending never blocks, whatever the broker does.
const MAX_IN_FLIGHT: usize = 64;
/// Most bytes that are sent and not answered, if it is more than one request.
const MAX_BYTES_IN_FLIGHT: usize = 128 * 1024;

/// The document's end of its port.
#[derive(Default, JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
pub(crate) struct TokenPortClient {
    #[no_trace]
    #[ignore_malloc_size_of = "channels"]
    state: RefCell<State>,
    /// Goes up whenever the port closes, so that what is left of an older port cannot touch a newer one.
    generation: Cell<u64>,
    next_request: Cell<u64>,
    pending: DomRefCell<FxHashMap<u64, PendingRequest>>,
    /// Those of `pending` that have not been sent, in their order.
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    waiting: RefCell<VecDeque<WaitingRequest>>,
    /// How many of `pending` have been sent, and the length of their frames.
    in_flight: Cell<(usize, usize)>,
    /// The time of the next look at the deadlines of `waiting`.
    timer: Cell<Option<Instant>>,
}

impl TokenPortClient {
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
        global: &GlobalScope,
        promise: &RootedPromise,
        generation: Option<u64>,
        body: RequestBody,
        answer: Answer,
    ) {
        // Workers that can outlive a document have none whose port they could share.
        if !global.is::<Window>() && !global.is::<DedicatedWorkerGlobalScope>() {
            return answer.fail(cx, global, promise, no_document());
        }
        // A document that has gone has nothing open, and gets no port.
        if !is_active(global) {
            return answer.settle_closed(cx, global, promise, document_gone());
        }
        // The broker's ids mean something within one port only: what belongs to an older one is closed.
        if generation.is_some_and(|generation| generation != self.generation.get()) {
            return answer.settle_closed(cx, global, promise, closed());
        }
        self.enqueue(global, Some(promise.to_traced()), body, answer);
        self.send_waiting(cx, global);
        // Unless it has been sent, the last one that waits is this one.
        let deadline = self
            .waiting
            .borrow()
            .back()
            .and_then(|request| request.deadline);
        self.set_timer(global, deadline);
    }

    /// Asks to be told about what comes and goes.
    pub(crate) fn watch(&self, global: &GlobalScope, body: RequestBody) {
        self.enqueue(global, None, body, Answer::Nothing);
        // Nothing can fail that a page would have to learn of.
        let guard = self.guard(global);
        guard.send_waiting();
    }

    fn enqueue(
        &self,
        global: &GlobalScope,
        promise: Option<TracedPromise>,
        body: RequestBody,
        answer: Answer,
    ) {
        let id = self.next_request.get();
        self.next_request.set(id + 1);
        let timeout = match &body {
            RequestBody::Transmit { timeout_ms, .. } |
            RequestBody::SelectNext { timeout_ms, .. } => *timeout_ms,
            _ => None,
        };
        let now = Instant::now();
        let deadline =
            timeout.and_then(|timeout| now.checked_add(Duration::from_millis(timeout.into())));
        self.pending.borrow_mut().insert(
            id,
            PendingRequest {
                promise,
                answer,
                sent: None,
                is_second_attempt: false,
            },
        );
        self.wait_to_be_sent(global, id, body, deadline);
    }

    fn wait_to_be_sent(
        &self,
        global: &GlobalScope,
        id: u64,
        body: RequestBody,
        deadline: Option<Instant>,
    ) {
        self.waiting
            .borrow_mut()
            .push_back(WaitingRequest { id, body, deadline });
        if matches!(*self.state.borrow(), State::Closed) {
            self.state.replace(State::Opening);
            self.open(global);
        }
    }

    /// Sends what there is room for.
    fn send_waiting(&self, cx: &mut JSContext, global: &GlobalScope) {
        if !matches!(*self.state.borrow(), State::Open(_)) {
            return;
        }
        loop {
            let (count, bytes) = self.in_flight.get();
            if count >= MAX_IN_FLIGHT {
                break;
            }
            let Some(mut request) = self.waiting.borrow_mut().pop_front() else {
                break;
            };
            if let Some(deadline) = request.deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if let RequestBody::Transmit { timeout_ms, .. } |
                RequestBody::SelectNext { timeout_ms, .. } = &mut request.body
                {
                    *timeout_ms = u32::try_from(left.as_millis()).ok();
                }
            }
            let message = PortRequest {
                id: RequestId(request.id),
                body: request.body,
            };
            let Ok(frame) = Frame::encode(&message) else {
                let error = TokenError::new(ErrorKind::InvalidValue, "The request is too long.");
                self.reject_pending(cx, global, request.id, error);
                continue;
            };
            let length = frame.encoded_length();
            if count > 0 && bytes + length > MAX_BYTES_IN_FLIGHT {
                self.waiting.borrow_mut().push_front(WaitingRequest {
                    body: message.body,
                    ..request
                });
                break;
            }
            let sent = match &*self.state.borrow() {
                State::Open(sender) => sender.send(frame).is_ok(),
                State::Closed | State::Opening => false,
            };
            if !sent {
                // The guard of the message route rejects what is pending; it may already be on its way.
                return self.guard(global).close(connection_lost());
            }
            if let Some(pending) = self.pending.borrow_mut().get_mut(&request.id) {
                pending.sent = Some(length);
            }
            self.in_flight.set((count + 1, bytes + length));
        }
    }

    /// Sees to it that a request which waits to be sent is rejected in time. Those that have been sent are the broker's.
    fn set_timer(&self, global: &GlobalScope, deadline: Option<Instant>) {
        let Some(deadline) = deadline else {
            return;
        };
        if self.timer.get().is_some_and(|timer| timer <= deadline) {
            return;
        }
        self.timer.set(Some(deadline));
        let task_source = self.task_source(global);
        let trusted = Trusted::new(global);
        global.schedule_timer(TimerEventRequest {
            callback: Box::new(move || {
                let global = trusted.clone();
                task_source.queue(task!(token_port_timer: move |cx| {
                    let global = global.root();
                    global.tokens().port().expire(cx, &global);
                }));
            }),
            duration: deadline.saturating_duration_since(Instant::now()),
        });
    }

    fn expire(&self, cx: &mut JSContext, global: &GlobalScope) {
        self.timer.set(None);
        let now = Instant::now();
        let mut expired = Vec::new();
        self.waiting.borrow_mut().retain(|request| {
            let is_expired = request.deadline.is_some_and(|deadline| deadline <= now);
            if is_expired {
                expired.push(request.id);
            }
            !is_expired
        });
        for id in expired {
            let error = TokenError::new(
                ErrorKind::Io,
                "The time was over before the command could be sent.",
            );
            self.reject_pending(cx, global, id, error);
        }
        let waiting = self.waiting.borrow();
        let next = waiting.iter().filter_map(|request| request.deadline).min();
        drop(waiting);
        self.set_timer(global, next);
    }

    fn reject_pending(&self, cx: &mut JSContext, global: &GlobalScope, id: u64, error: TokenError) {
        let pending = self.pending.borrow_mut().remove(&id);
        if let Some(PendingRequest {
            promise: Some(promise),
            answer,
            ..
        }) = pending
        {
            let promise = promise.root(cx);
            answer.fail(cx, global, &promise, error);
        }
    }

    fn task_source(&self, global: &GlobalScope) -> SendableTaskSource {
        global
            .task_manager()
            .dom_manipulation_task_source()
            .to_sendable()
    }

    fn guard(&self, global: &GlobalScope) -> PortGuard {
        PortGuard {
            global: Some(Trusted::new(global)),
            generation: self.generation.get(),
            task_source: self.task_source(global),
        }
    }

    /// Asks the parent for a port. A document states its origin; the parent verifies it.
    fn open(&self, global: &GlobalScope) {
        let mut guard = Some(self.guard(global));
        let callback =
            GenericCallback::new(move |response: Result<Result<TokenPort, TokenError>, _>| {
                let Some(guard) = guard.take() else {
                    return;
                };
                match response {
                    Ok(Ok(port)) => guard.opened(port),
                    Ok(Err(error)) => guard.close(error),
                    Err(_) => guard.close(connection_lost()),
                }
            });
        let sent = callback.is_ok_and(|callback| {
            global
                .script_to_constellation_chan()
                .send(ScriptToConstellationMessage::OpenTokenPort(
                    global.origin().immutable().clone(),
                    global.token_features(),
                    global
                        .downcast::<WorkerGlobalScope>()
                        .map(|worker| worker.worker_id()),
                    callback,
                ))
                .is_ok()
        });
        if !sent {
            self.guard(global).close(connection_lost());
        }
    }

    fn handle_opened(
        &self,
        cx: &mut JSContext,
        global: &GlobalScope,
        generation: u64,
        port: TokenPort,
    ) {
        if generation != self.generation.get() || !matches!(*self.state.borrow(), State::Opening) {
            return;
        }

        let guard = self.guard(global);
        ROUTER.add_typed_route(
            port.messages,
            Box::new(move |frame| {
                if let Ok(frame) = frame {
                    guard.message(frame);
                }
            }),
        );
        // If the broker is gone already, the route above says so.
        self.state.replace(State::Open(port.requests));
        self.send_waiting(cx, global);
    }

    fn handle_message(
        &self,
        cx: &mut JSContext,
        global: &GlobalScope,
        generation: u64,
        frame: Frame,
    ) {
        if generation != self.generation.get() {
            return;
        }
        let (request, result) = match frame.decode() {
            Ok(PortMessage::Reply { request, result }) => (request, result),
            Ok(PortMessage::Element(info)) => {
                if let Some(manager) = global.tokens().secure_element_manager.get() {
                    manager.element_changed(cx, info);
                }
                return;
            },
            Ok(PortMessage::Token(_info)) => {
                #[cfg(feature = "webcrypto")]
                if let Some(keys) = global.tokens().crypto_keys.get() {
                    keys.token_changed(cx, _info);
                }
                return;
            },
            Err(_) => {
                warn!("The token broker sent a message that is none.");
                return self.handle_closed(cx, global, generation, connection_lost());
            },
        };
        let Some(pending) = self.pending.borrow_mut().remove(&request.0) else {
            return warn!("The token broker answered a question that nobody asked.");
        };
        if let Some(length) = pending.sent {
            let (count, bytes) = self.in_flight.get();
            self.in_flight.set((count - 1, bytes - length));
        }
        if let Some(promise) = pending.promise {
            let promise = promise.root(cx);
            match result {
                Ok(body) => pending.answer.resolve(cx, global, &promise, body),
                Err(error) => {
                    pending.answer.fail(cx, global, &promise, error.clone());
                    if error.kind == ErrorKind::NotAllowed {
                        warn_author(cx, global, &error);
                    }
                },
            }
        }
        self.send_waiting(cx, global);
    }

    /// Rejects everything that is pending. The next request opens a new port.
    fn handle_closed(
        &self,
        cx: &mut JSContext,
        global: &GlobalScope,
        generation: u64,
        error: TokenError,
    ) {
        if generation != self.generation.get() {
            return;
        }
        let was_open = matches!(*self.state.borrow(), State::Open(_));
        let is_active = is_active(global);
        // The broker may have ended just before.
        let error = if is_active { error } else { document_gone() };
        self.reject_all(cx, global, error, was_open && is_active);
        // A port that could not even be opened is not asked for again without a page's request.
        if was_open && is_active {
            global.tokens().watch_again();
        }
    }

    /// Closes the port, because the document goes. Returns whether there was one.
    pub(crate) fn close(&self, cx: &mut JSContext, global: &GlobalScope) -> bool {
        if self.is_closed() {
            return false;
        }
        self.reject_all(cx, global, document_gone(), false);
        true
    }

    /// Forgets the port and rejects what is pending. With `again`, what can be asked again is, once, in a new port.
    fn reject_all(&self, cx: &mut JSContext, global: &GlobalScope, error: TokenError, again: bool) {
        self.generation.set(self.generation.get() + 1);
        self.state.replace(State::Closed);
        self.waiting.borrow_mut().clear();
        self.in_flight.set((0, 0));
        global.tokens().port_closed();
        let is_query = |request: &PendingRequest| matches!(request.answer, Answer::Permission(..));
        if error.kind == ErrorKind::NotAllowed && !self.pending.borrow().values().all(is_query) {
            warn_author(cx, global, &error);
        }
        // Each stays where it is traced until it is its turn.
        let mut ids: Vec<u64> = self.pending.borrow().keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let mut pending = self.pending.borrow_mut();
            let request_again = match pending.get_mut(&id) {
                Some(request) if again && !request.is_second_attempt => {
                    request.is_second_attempt = true;
                    request.sent = None;
                    request.answer.request_again()
                },
                _ => None,
            };
            drop(pending);
            match request_again {
                Some(body) => self.wait_to_be_sent(global, id, body, None),
                None => self.reject_pending(cx, global, id, error.clone()),
            }
        }
    }
}

fn connection_lost() -> TokenError {
    TokenError::new(
        ErrorKind::Io,
        "The connection to the token broker was lost. Ask for the readers again to start over.",
    )
}

fn is_active(global: &GlobalScope) -> bool {
    match global.downcast::<Window>() {
        Some(window) => window.Document().is_fully_active(),
        None => global
            .downcast::<WorkerGlobalScope>()
            .is_some_and(|worker| !worker.is_closing()),
    }
}

fn no_document() -> TokenError {
    TokenError::new(
        ErrorKind::NotAllowed,
        "Tokens are available to documents and to their dedicated workers.",
    )
}

fn document_gone() -> TokenError {
    TokenError::new(
        ErrorKind::Closed,
        "The document has gone, and what it had opened is closed.",
    )
}

pub(crate) fn closed() -> TokenError {
    TokenError::new(
        ErrorKind::Closed,
        "The connection to the token broker that this belonged to is closed. Ask for the readers again to start over.",
    )
}

pub(crate) fn unexpected_reply() -> TokenError {
    TokenError::new(
        ErrorKind::Unknown,
        "The token broker gave an unexpected reply.",
    )
}

/// Carries what happens to a port to the script thread. Dropped, as the router does with the handlers of a channel
/// that closes, it says that the port has closed.
struct PortGuard {
    global: Option<Trusted<GlobalScope>>,
    generation: u64,
    task_source: SendableTaskSource,
}

impl PortGuard {
    fn opened(mut self, port: TokenPort) {
        let generation = self.generation;
        if let Some(global) = self.global.take() {
            self.task_source.queue(task!(token_port_opened: move |cx| {
                let global = global.root();
                global.tokens().port().handle_opened(cx, &global, generation, port);
            }));
        }
    }

    fn send_waiting(mut self) {
        if let Some(global) = self.global.take() {
            self.task_source.queue(task!(token_port_send: move |cx| {
                let global = global.root();
                global.tokens().port().send_waiting(cx, &global);
            }));
        }
    }

    fn message(&self, frame: Frame) {
        let generation = self.generation;
        if let Some(global) = self.global.clone() {
            self.task_source.queue(task!(token_port_message: move |cx| {
                let global = global.root();
                global.tokens().port().handle_message(cx, &global, generation, frame);
            }));
        }
    }

    fn close(mut self, error: TokenError) {
        self.close_with(error);
    }

    fn close_with(&mut self, error: TokenError) {
        let generation = self.generation;
        if let Some(global) = self.global.take() {
            self.task_source.queue(task!(token_port_closed: move |cx| {
                let global = global.root();
                global.tokens().port().handle_closed(cx, &global, generation, error);
            }));
        }
    }
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        self.close_with(connection_lost());
    }
}

/// The page may swallow the error; its author should still learn why there are no tokens.
pub(crate) fn warn_author(cx: &mut JSContext, global: &GlobalScope, error: &TokenError) {
    Console::internal_warn(cx, global, error.message.clone());
}

/// Rejects with a `DOMException` whose name is the one that the specification gives the error.
pub(crate) fn reject(
    cx: &mut JSContext,
    global: &GlobalScope,
    promise: &Promise,
    error: TokenError,
) {
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
