/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The main process's side of the token broker: starts and supervises the token processes, opens ports, and lets prompts
//! through to the user if the user has just done something.
//!
//! [`TokenClient`] is what the embedder gives the engine. Until the first port or overview is asked for, it starts
//! neither a process nor a thread.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod activation;
mod bootstrap;
mod child;
mod outbox;
mod supervisor;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use token_traits::control::{AccessConfig, BrokerConfig, ModuleConfig};
use token_traits::keys::Bytes;
use token_traits::prompt::{GrantId, Overview, PromptHost};
use token_traits::{
    ErrorKind, Feature, OpenPortCallback, Origin, PermissionState, PortId, PortIdentity,
    TokenBroker, TokenError,
};

use crate::activation::Activations;
use crate::supervisor::Event;

/// What to start.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The `token-broker` program.
    pub broker_binary: PathBuf,
    /// Whether PC/SC readers are used.
    pub pcsc: bool,
    /// Readers, by the names that PC/SC gives them, whose cards are UICCs.
    pub uicc_readers: Vec<String>,
    /// The profile of the embedded virtual card, if there is to be one.
    pub virtual_card: Option<String>,
    /// Whether access rules are enforced, and what applies to elements without rules of their own.
    pub access: Option<AccessConfig>,
    /// The folder for grants and the audit log, which is there already. With `None` they end with the broker.
    pub store: Option<PathBuf>,
    /// The PKCS#11 modules that are used.
    pub modules: Vec<ModuleConfig>,
    /// How the TPM is reached, where it is used: [`BrokerConfig::tpm`].
    pub tpm: Option<String>,
    /// The management key of PIV cards in readers: [`BrokerConfig::piv_management_key`].
    pub piv_management_key: Option<Bytes>,
}

impl ClientConfig {
    fn broker_config(&self) -> BrokerConfig {
        BrokerConfig {
            pcsc: self.pcsc,
            virtual_card: self.virtual_card.clone(),
            uicc_readers: self.uicc_readers.clone(),
            access: self.access.clone(),
            modules: self.modules.clone(),
            tpm: self.tpm.clone(),
            piv_management_key: self.piv_management_key.clone(),
        }
    }
}

/// Takes an overview, once, on any thread.
pub type OverviewCallback = Box<dyn FnOnce(Overview) + Send>;

/// An origin, its top-level origin, and what it is about.
type Subject = (Origin, Origin, Feature);

/// What automation has answered for the user. It outlives every broker.
type Permissions = Arc<Mutex<HashMap<Subject, PermissionState>>>;

/// A token broker in processes of its own, started when it is first needed and again after it has died.
///
/// When this is dropped, and when the main process ends in whatever way, all token processes end.
pub struct TokenClient {
    config: ClientConfig,
    prompts: Arc<dyn PromptHost>,
    permissions: Permissions,
    activations: Arc<Mutex<Activations>>,
    next_port: AtomicU64,
    supervisor: OnceLock<Option<Sender<Event>>>,
}

impl TokenClient {
    /// Nothing is started yet. Whatever the broker asks the user goes to `prompts`.
    pub fn new(config: ClientConfig, prompts: Arc<dyn PromptHost>) -> Arc<Self> {
        Arc::new(Self {
            config,
            prompts,
            permissions: Permissions::default(),
            activations: Arc::default(),
            next_port: AtomicU64::new(1),
            supervisor: OnceLock::new(),
        })
    }

    fn supervisor(&self) -> Option<&Sender<Event>> {
        self.supervisor
            .get_or_init(|| {
                supervisor::start(
                    self.config.clone(),
                    self.prompts.clone(),
                    self.permissions.clone(),
                    self.activations.clone(),
                )
                .inspect_err(|error| log::error!("cannot start the token supervisor: {error}"))
                .ok()
            })
            .as_ref()
    }

    /// Asks what there is for the page of tokens, and starts the broker if it does not run. A callback that is dropped
    /// means that there is no answer within some seconds.
    pub fn overview(&self, callback: OverviewCallback) {
        if let Some(supervisor) = self.supervisor() {
            // Without a supervisor there is no answer.
            let _ = supervisor.send(Event::Overview(callback));
        }
    }

    /// Ends a grant of the user's, or deletes a rule. What has ended already is no error.
    pub fn revoke(&self, grant: GrantId) {
        if let Some(supervisor) = self.supervisor() {
            // Without a supervisor there is no broker, and the grant stays on the page of tokens.
            let _ = supervisor.send(Event::Revoke(grant));
        }
    }
}

impl TokenBroker for TokenClient {
    fn open_port(&self, identity: PortIdentity, callback: OpenPortCallback) -> PortId {
        let port = PortId(self.next_port.fetch_add(1, Ordering::Relaxed));
        let event = Event::OpenPort(port, identity, callback);
        let unsent = match self.supervisor() {
            Some(supervisor) => supervisor.send(event).err().map(|error| error.0),
            None => Some(event),
        };
        if let Some(Event::OpenPort(_, _, callback)) = unsent {
            callback(Err(TokenError::new(
                ErrorKind::Io,
                "the token broker cannot be started",
            )));
        }
        port
    }

    fn set_permission(
        &self,
        origin: Origin,
        top_level_origin: Origin,
        feature: Feature,
        state: PermissionState,
    ) {
        let subject = (origin, top_level_origin, feature);
        lock(&self.permissions).insert(subject.clone(), state);
        if let Some(Some(supervisor)) = self.supervisor.get() {
            // Without a supervisor there is no broker to tell.
            let _ = supervisor.send(Event::PermissionSet(subject, state));
        }
    }

    fn user_input(&self, webview: u64) {
        lock(&self.activations).note(webview, Instant::now());
    }

    fn document_left(&self, webview: u64) {
        lock(&self.activations).forget(webview);
    }

    fn close_port(&self, port: PortId) {
        if let Some(Some(supervisor)) = self.supervisor.get() {
            // Without a supervisor there are no ports.
            let _ = supervisor.send(Event::ClosePort(port));
        }
    }
}

impl Drop for TokenClient {
    fn drop(&mut self) {
        if let Some(Some(supervisor)) = self.supervisor.get() {
            // A supervisor that has ended has nothing left to stop.
            let _ = supervisor.send(Event::Stop);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
