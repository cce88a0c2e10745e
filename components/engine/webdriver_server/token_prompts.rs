/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An extension command that says who answers the embedder's prompts for hardware tokens.

use std::fmt;

use crossbeam_channel::Sender;
use embedder_traits::EventLoopWaker;
use serde::Deserialize;
use webdriver::error::{ErrorStatus, WebDriverError, WebDriverResult};
use webdriver::response::WebDriverResponse;

/// Who answers the embedder's prompts for hardware tokens.
#[derive(Clone, Deserialize, PartialEq)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum TokenPromptMode {
    /// The user does, if there is one.
    Manual,
    /// They are accepted.
    Accept {
        /// The answer to questions for a PIN. Without it those are refused.
        pin: Option<String>,
    },
    /// They are refused.
    Reject,
}

/// Commands are logged; PINs must not be.
impl fmt::Debug for TokenPromptMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Manual => "Manual",
            Self::Accept { pin: None } => "Accept",
            Self::Accept { pin: Some(_) } => "Accept { pin: .. }",
            Self::Reject => "Reject",
        })
    }
}

/// The way to the embedder.
pub(crate) struct TokenPrompts {
    modes: Sender<TokenPromptMode>,
    event_loop_waker: Box<dyn EventLoopWaker>,
}

impl TokenPrompts {
    pub(crate) fn new(
        modes: Sender<TokenPromptMode>,
        event_loop_waker: Box<dyn EventLoopWaker>,
    ) -> Self {
        Self {
            modes,
            event_loop_waker,
        }
    }

    /// Applies to prompts that come from now on.
    pub(crate) fn handle_set_mode(
        &self,
        mode: TokenPromptMode,
    ) -> WebDriverResult<WebDriverResponse> {
        self.modes.send(mode).map_err(|_| {
            WebDriverError::new(
                ErrorStatus::UnknownError,
                "Failed to send message to embedder",
            )
        })?;
        self.event_loop_waker.wake();
        Ok(WebDriverResponse::Void)
    }

    /// What a client has set ends with its session.
    pub(crate) fn session_ended(&self) {
        let _ = self.handle_set_mode(TokenPromptMode::Manual);
    }
}
