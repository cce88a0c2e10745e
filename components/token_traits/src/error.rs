/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Errors as they travel from the broker to a document.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure it was. The first nine are the error types of the GlobalPlatform Web API for Accessing
/// Secure Element 1.0, section 15; the others are the web platform's.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum ErrorKind {
    /// `SESecurityException`: the access conditions refuse the operation.
    Security,
    /// `SEIoException`: communication failed (card, reader, worker or broker).
    Io,
    /// `SEInvalidStateException`: the object is not in the state that the operation needs.
    InvalidState,
    /// `SEInvalidValueException`: a parameter is wrong.
    InvalidValue,
    /// `SENoChannelException`: no channel is free.
    NoChannel,
    /// `SENoApplicationException`: the applet is not there.
    NoApplication,
    /// `SEClosedException`: the object is closed.
    Closed,
    /// `SEUnsupportedException`: the reader or the element does not support it.
    Unsupported,
    /// `SEUnknownException`: anything else.
    Unknown,
    /// `NotAllowedError`: this document gets no port, or the user did not consent.
    NotAllowed,
    /// `NotFoundError`: there is no such key or token, or none that the origin may use.
    NotFound,
    /// `NotSupportedError`: the token cannot do it.
    NotSupported,
    /// `InvalidAccessError`: the key may not be used so.
    InvalidAccess,
    /// `InvalidStateError`: the key or its token is not there any more.
    Gone,
    /// `OperationError`: the token failed, or the data were wrong.
    Operation,
    /// `DataError`: what was given is not well-formed, or does not belong together.
    Data,
    /// `NoModificationAllowedError`: the token cannot be changed.
    ReadOnly,
    /// `ConstraintError`: the name is taken.
    NameTaken,
    /// `QuotaExceededError`: the token is full, or the request too long.
    QuotaExceeded,
    /// `TimeoutError`: the token took too long.
    Timeout,
}

impl ErrorKind {
    /// The `name` of the `DOMException` that a page sees.
    pub fn dom_exception_name(self) -> &'static str {
        match self {
            Self::Security => "SESecurityException",
            Self::Io => "SEIoException",
            Self::InvalidState => "SEInvalidStateException",
            Self::InvalidValue => "SEInvalidValueException",
            Self::NoChannel => "SENoChannelException",
            Self::NoApplication => "SENoApplicationException",
            Self::Closed => "SEClosedException",
            Self::Unsupported => "SEUnsupportedException",
            Self::Unknown => "SEUnknownException",
            Self::NotAllowed => "NotAllowedError",
            Self::NotFound => "NotFoundError",
            Self::NotSupported => "NotSupportedError",
            Self::InvalidAccess => "InvalidAccessError",
            Self::Gone => "InvalidStateError",
            Self::Operation => "OperationError",
            Self::Data => "DataError",
            Self::ReadOnly => "NoModificationAllowedError",
            Self::NameTaken => "ConstraintError",
            Self::QuotaExceeded => "QuotaExceededError",
            Self::Timeout => "TimeoutError",
        }
    }
}

/// A failure with a sentence for the page's author. The message holds no card data, PIN, AID or origin.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenError {
    /// What kind of failure it was.
    pub kind: ErrorKind,
    /// What happened and, where there is something, what to do about it.
    pub message: String,
}

impl TokenError {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {}",
            self.kind.dom_exception_name(),
            self.message
        )
    }
}

impl std::error::Error for TokenError {}
