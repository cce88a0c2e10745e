/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the engine and the token broker share: identities, ids, requests, replies, errors, the wire, and
//! the trait [`TokenBroker`] through which the engine's parent process reaches a broker.
//!
//! The parts by reader:
//! - a document (content process) uses [`TokenPort`], [`port`] and [`wire`];
//! - the engine's parent (constellation) uses [`identity`] and [`TokenBroker`];
//! - the main process and the broker use [`control`] between them, and [`transport`] towards whom they do not trust.
//!
//! Only plain `ipc_channel::ipc` types cross to the broker: Servo's `GenericSender` and `GenericCallback`
//! serialise as addresses in single-process mode.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod control;
pub mod error;
pub mod feature;
pub mod identity;
pub mod keys;
pub mod permissions_policy;
pub mod port;
pub mod prompt;
pub mod transport;
pub mod wire;

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use serde::{Deserialize, Serialize};

pub use crate::error::{ErrorKind, TokenError};
pub use crate::feature::{Feature, FeatureSet, PermissionState};
pub use crate::identity::{Connection, Origin, PortIdentity};
pub use crate::wire::Frame;

/// A document's two ends of the channel to the broker. What travels is [`port::PortRequest`] one way and
/// [`port::PortMessage`] the other, each in a [`Frame`].
///
/// Whoever holds the sender acts for the [`PortIdentity`] that the broker was given when the port was opened:
/// no message names an origin.
#[derive(Debug, Deserialize, Serialize)]
pub struct TokenPort {
    /// Carries [`port::PortRequest`]s to the broker.
    pub requests: IpcSender<Frame>,
    /// Carries [`port::PortMessage`]s from the broker. It closes when the broker dies or closes the port.
    pub messages: IpcReceiver<Frame>,
}

/// Names a port between the parent process and the broker. Content never sees it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct PortId(pub u64);

/// Called once with the outcome of [`TokenBroker::open_port`], on any thread.
pub type OpenPortCallback = Box<dyn FnOnce(Result<TokenPort, TokenError>) + Send>;

/// The parent process's way to a token broker. The engine gets an implementation from its embedder and starts
/// nothing by itself. No method blocks.
pub trait TokenBroker: Send + Sync {
    /// Opens a port that acts for `identity`. The callback gets the document's ends of it, or
    /// [`ErrorKind::NotAllowed`] if this embedder gives that identity no port, or [`ErrorKind::Io`] if no broker
    /// could be started. A port that is closed before the broker has started gets [`ErrorKind::Closed`].
    fn open_port(&self, identity: PortIdentity, callback: OpenPortCallback) -> PortId;

    /// Answers for the user, beforehand, whether an origin under a top-level origin may use a feature: with
    /// [`PermissionState::Granted`] whatever a user could allow when asked, with [`PermissionState::Denied`] nothing, with
    /// [`PermissionState::Prompt`] the user is asked again. For automation; it outlives every broker.
    fn set_permission(
        &self,
        origin: Origin,
        top_level_origin: Origin,
        feature: Feature,
        state: PermissionState,
    );

    /// The user has just clicked, touched or pressed a key in a webview ([`PortIdentity::webview`]). Nothing but what the
    /// parent process has seen itself may be said here: prompts are shown only soon after it.
    fn user_input(&self, webview: u64);

    /// Another document takes the place of the one at the top of a webview. What the user did in that one counts no longer.
    fn document_left(&self, webview: u64);

    /// Closes a port and everything that was opened through it. Unknown ids are ignored.
    fn close_port(&self, port: PortId);
}
