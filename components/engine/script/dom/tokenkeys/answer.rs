/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use js::context::JSContext;
use token_traits::keys::{KeysReply, KeysRequest};
use token_traits::port::RequestBody;
use token_traits::{ErrorKind, Feature, TokenError};

use crate::dom::bindings::error::{Error, Fallible};
use crate::dom::bindings::root::DomRoot;
use crate::dom::cryptotoken::CryptoToken;
use crate::dom::globalscope::GlobalScope;
use crate::dom::promise::RootedPromise;
use crate::dom::tokenport;

/// Settles a promise with a reply. What it holds has to be rooted by itself.
pub(crate) type Settle =
    Box<dyn FnOnce(&mut JSContext, &GlobalScope, &RootedPromise, KeysReply) -> Fallible<()>>;

/// What a promise becomes where there is nothing that the document may see.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Nothing {
    /// Rejected.
    Error,
    /// Resolved with null.
    Null,
    /// Resolved with an empty array.
    Empty,
}

/// What a reply about keys is made into.
#[derive(JSTraceable, MallocSizeOf)]
#[cfg_attr(crown, crown::unrooted_must_root_lint::must_root)]
pub(crate) struct Answer {
    /// The request once more, if asking it twice does nothing twice.
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    again: Option<KeysRequest>,
    #[no_trace]
    #[ignore_malloc_size_of = "external type"]
    nothing: Nothing,
    #[no_trace]
    #[ignore_malloc_size_of = "closures"]
    settle: Settle,
}

impl Answer {
    pub(crate) fn request_again(&self) -> Option<RequestBody> {
        self.again.clone().map(RequestBody::Keys)
    }

    /// Makes the reply into what the promise was for.
    pub(crate) fn resolve(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &RootedPromise,
        reply: KeysReply,
    ) {
        if let Err(error) = (self.settle)(cx, global, promise, reply) {
            promise.reject_error(cx, error);
        }
    }

    /// Settles a promise whose request has failed.
    pub(crate) fn fail(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &RootedPromise,
        error: TokenError,
    ) {
        let is_nothing = matches!(error.kind, ErrorKind::NotFound | ErrorKind::NotAllowed);
        match self.nothing {
            Nothing::Null if is_nothing => {
                promise.resolve_native(cx, &None::<DomRoot<CryptoToken>>)
            },
            Nothing::Empty if is_nothing => {
                promise.resolve_native(cx, &Vec::<DomRoot<CryptoToken>>::new())
            },
            _ => reject(cx, global, promise, error),
        }
    }
}

/// Asks the token broker. `settle` gets a reply, and `nothing` says what becomes of "not found" and "not allowed".
pub(crate) fn ask(
    cx: &mut JSContext,
    global: &GlobalScope,
    promise: &RootedPromise,
    request: KeysRequest,
    nothing: Nothing,
    settle: Settle,
) {
    let again = match &request {
        KeysRequest::GetKeyByName(_) |
        KeysRequest::GetKeys(_) |
        KeysRequest::GetTokens(_) |
        KeysRequest::GetCertificates(_) => Some(request.clone()),
        _ => None,
    };
    let answer = Answer {
        again,
        nothing,
        settle,
    };
    // What the document has given up by itself, nobody has to be asked about.
    if !global.token_features().contains(Feature::TokenKeys) {
        let error = TokenError::new(
            ErrorKind::NotAllowed,
            "The document's Permissions-Policy header keeps token keys from it, or the worker belongs to no document.",
        );
        tokenport::warn_author(cx, global, &error);
        return answer.fail(cx, global, promise, error);
    }
    global.tokens().port().request(
        cx,
        global,
        promise,
        None,
        RequestBody::Keys(request),
        tokenport::Answer::Keys(answer),
    );
}

/// The reply was none to what was asked.
pub(crate) fn unexpected() -> Error {
    Error::Operation(Some(tokenport::unexpected_reply().message))
}

/// Rejects with the exception that this API has for the failure.
pub(crate) fn reject(
    cx: &mut JSContext,
    global: &GlobalScope,
    promise: &RootedPromise,
    error: TokenError,
) {
    let kind = match error.kind {
        // The names of the Secure Element API mean nothing here.
        ErrorKind::Io |
        ErrorKind::NoChannel |
        ErrorKind::NoApplication |
        ErrorKind::Unknown |
        ErrorKind::InvalidState => ErrorKind::Operation,
        ErrorKind::Security => ErrorKind::NotAllowed,
        ErrorKind::Closed => ErrorKind::Gone,
        ErrorKind::Unsupported => ErrorKind::NotSupported,
        ErrorKind::InvalidValue | ErrorKind::QuotaExceeded => {
            return promise.reject_error(
                cx,
                Error::QuotaExceeded {
                    quota: None,
                    requested: None,
                },
            );
        },
        kind => kind,
    };
    let message = match error.kind {
        ErrorKind::Io => "The connection to the token was lost.".to_owned(),
        _ => error.message,
    };
    tokenport::reject(cx, global, promise, TokenError { kind, message });
}

/// Resolves with nothing.
pub(crate) fn done() -> Settle {
    Box::new(|cx, _, promise, reply| match reply {
        KeysReply::Done => {
            promise.resolve_native(cx, &());
            Ok(())
        },
        _ => Err(unexpected()),
    })
}
