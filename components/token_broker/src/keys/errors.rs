/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a page is told when something with a key fails: one table.

use token_traits::{ErrorKind, TokenError};
use token_workers::key_protocol::KeyError;

use super::provider::Failure;

/// Why a request fails.
pub(crate) const NOT_THERE: &str = "there is no such key, or none that this site may use";
/// Why a request fails.
pub(crate) const GONE: &str = "the key or its token is not there any more";
/// Why a request fails.
pub(crate) const REFUSED: &str = "the user has not allowed it";
/// Why a request fails.
pub(crate) const NO_ACTIVATION: &str = "the user can be asked only just after they have done something in the page: ask when they click";

pub(crate) fn error(kind: ErrorKind, message: &str) -> TokenError {
    TokenError::new(kind, message)
}

pub(crate) fn gone() -> TokenError {
    error(ErrorKind::Gone, GONE)
}

pub(crate) fn refused() -> TokenError {
    error(ErrorKind::NotAllowed, REFUSED)
}

pub(crate) fn not_there() -> TokenError {
    error(ErrorKind::NotFound, NOT_THERE)
}

/// The table. No counter of tries, no reason for a refusal gets to the page.
fn kind(error: KeyError) -> ErrorKind {
    match error {
        KeyError::NoToken | KeyError::NoKey | KeyError::Foreign => ErrorKind::Gone,
        KeyError::NotLoggedIn
        | KeyError::PinIncorrect
        | KeyError::PinInvalid
        | KeyError::PinLocked
        | KeyError::Refused
        | KeyError::LockedOut
        | KeyError::Canceled => ErrorKind::NotAllowed,
        KeyError::Unsupported => ErrorKind::NotSupported,
        KeyError::UsageRefused | KeyError::Unextractable => ErrorKind::InvalidAccess,
        KeyError::BadData
        | KeyError::Busy
        | KeyError::Failed
        | KeyError::Nonsense
        | KeyError::BadRequest => ErrorKind::Operation,
        KeyError::ReadOnly => ErrorKind::ReadOnly,
        KeyError::Full => ErrorKind::QuotaExceeded,
    }
}

impl From<Failure> for TokenError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Key(key_error) => match kind(key_error) {
                ErrorKind::Gone => gone(),
                ErrorKind::NotAllowed => refused(),
                kind => error(kind, &key_error.to_string()),
            },
            Failure::Gone => gone(),
            Failure::Lost => error(
                ErrorKind::Operation,
                "the token, or the way to it, failed meanwhile",
            ),
            Failure::Overdue => error(ErrorKind::Timeout, "the token took too long"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for (failure, name) in [
            (Failure::Key(KeyError::NoToken), "InvalidStateError"),
            (Failure::Key(KeyError::NoKey), "InvalidStateError"),
            (Failure::Key(KeyError::Foreign), "InvalidStateError"),
            (Failure::Key(KeyError::NotLoggedIn), "NotAllowedError"),
            (Failure::Key(KeyError::PinIncorrect), "NotAllowedError"),
            (Failure::Key(KeyError::PinInvalid), "NotAllowedError"),
            (Failure::Key(KeyError::PinLocked), "NotAllowedError"),
            (Failure::Key(KeyError::Refused), "NotAllowedError"),
            (Failure::Key(KeyError::LockedOut), "NotAllowedError"),
            (Failure::Key(KeyError::Canceled), "NotAllowedError"),
            (Failure::Key(KeyError::Unsupported), "NotSupportedError"),
            (Failure::Key(KeyError::UsageRefused), "InvalidAccessError"),
            (Failure::Key(KeyError::Unextractable), "InvalidAccessError"),
            (Failure::Key(KeyError::BadData), "OperationError"),
            (Failure::Key(KeyError::Busy), "OperationError"),
            (Failure::Key(KeyError::Failed), "OperationError"),
            (Failure::Key(KeyError::Nonsense), "OperationError"),
            (Failure::Key(KeyError::BadRequest), "OperationError"),
            (
                Failure::Key(KeyError::ReadOnly),
                "NoModificationAllowedError",
            ),
            (Failure::Key(KeyError::Full), "QuotaExceededError"),
            (Failure::Gone, "InvalidStateError"),
            (Failure::Lost, "OperationError"),
            (Failure::Overdue, "TimeoutError"),
        ] {
            let error = TokenError::from(failure);
            assert_eq!(error.kind.dom_exception_name(), name, "{failure:?}");
        }
        // A page cannot tell why.
        let all = [
            KeyError::PinLocked,
            KeyError::PinIncorrect,
            KeyError::Refused,
        ]
        .map(|error| TokenError::from(Failure::Key(error)));
        assert!(all.iter().all(|error| *error == all[0]));
    }
}
