/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Ports between documents and the token broker. The constellation opens them, because it knows who runs where.

use content_security_policy::sandboxing_directive::SandboxingFlagSet;
use devtools_traits::WorkerId;
use embedder_traits::{InputEvent, MouseButtonAction, TouchEventType, WebDriverScriptCommand};
use keyboard_types::{Key, KeyState, NamedKey};
use layout_api::ScriptThreadFactory;
use log::warn;
use net::certificate_exceptions::has_certificate_exception;
use script_traits::DocumentActivity;
use servo_base::generic_channel::GenericCallback;
use servo_base::id::{BrowsingContextId, PipelineId, ScriptEventLoopId, WebViewId};
use servo_config::{opts, pref};
use servo_constellation_traits::ServiceWorkerManagerFactory;
use servo_url::{Host, ImmutableOrigin};
use token_traits::{
    Connection, ErrorKind, Feature, FeatureSet, Origin, PermissionState, PortIdentity, TokenBroker,
    TokenError, TokenPort,
};
use webdriver::command::SetPermissionState;
use webdriver::error::ErrorStatus;

use super::Constellation;
use crate::site::Site;

/// How many ports to keep open for the workers of a document.
const MAX_WORKER_PORTS: usize = 64;

/// How many creators or parents of documents without a URL of their own to follow.
const MAX_INHERITED_ORIGIN_DEPTH: usize = 16;

fn not_allowed(message: &str) -> TokenError {
    TokenError::new(ErrorKind::NotAllowed, message)
}

impl<STF, SWF> Constellation<STF, SWF>
where
    STF: ScriptThreadFactory,
    SWF: ServiceWorkerManagerFactory,
{
    /// A document, or a dedicated worker of it, wants a port to the token broker. The port acts for the identity that this
    /// process gives the document: a worker has the origin of its document or an opaque one.
    pub(super) fn handle_open_token_port(
        &mut self,
        (pipeline_id, worker): (PipelineId, Option<WorkerId>),
        claimed_origin: ImmutableOrigin,
        claimed_features: FeatureSet,
        callback: GenericCallback<Result<TokenPort, TokenError>>,
    ) {
        // A document has one port, and so has each worker. If it asks again, its broker has died, which nobody else here
        // notices.
        self.close_token_ports_if(pipeline_id, |opener| opener == worker);
        let port = self
            .identity_for_token_port(pipeline_id, &claimed_origin, claimed_features)
            .and_then(|identity| match &self.token_broker {
                Some(token_broker) => Ok((token_broker, identity)),
                None => Err(not_allowed("This browser has no token broker.")),
            });
        match port {
            Ok((token_broker, identity)) => {
                let port_id = token_broker.open_port(
                    identity,
                    Box::new(move |port| {
                        let _ = callback.send(port);
                    }),
                );
                let mut token_ports = self.token_ports.borrow_mut();
                let ports = token_ports.entry(pipeline_id).or_default();
                ports.push((worker, port_id));
                // Workers that have ended are not known here. One that lives opens another port when it needs one.
                let mut workers = ports.iter().filter(|(worker, _)| worker.is_some());
                if workers.clone().count() > MAX_WORKER_PORTS &&
                    let Some((oldest, _)) = workers.next().copied()
                {
                    drop(token_ports);
                    self.close_token_ports_if(pipeline_id, |opener| opener == oldest);
                }
            },
            Err(error) => {
                warn!(
                    "{pipeline_id}: No port to the token broker: {}",
                    error.message
                );
                let _ = callback.send(Err(error));
            },
        }
    }

    /// A document is no longer fully active. What the user did in it was not meant for the one that takes its place.
    pub(super) fn leave_token_document(&self, pipeline_id: PipelineId) {
        self.close_token_ports(pipeline_id);
        if let Some(token_broker) = &self.token_broker &&
            let Some(pipeline) = self.pipelines.get(&pipeline_id) &&
            pipeline.browsing_context_id == pipeline.webview_id
        {
            token_broker.document_left(webview_number(pipeline.webview_id));
        }
    }

    /// Closes the ports of a document that has gone, or is no longer fully active.
    pub(super) fn close_token_ports(&self, pipeline_id: PipelineId) {
        self.close_token_ports_if(pipeline_id, |_| true);
        self.token_ports.borrow_mut().remove(&pipeline_id);
    }

    fn close_token_ports_if(
        &self,
        pipeline_id: PipelineId,
        is_closed: impl Fn(Option<WorkerId>) -> bool,
    ) {
        let mut token_ports = self.token_ports.borrow_mut();
        let Some(ports) = token_ports.get_mut(&pipeline_id) else {
            return;
        };
        for (_, port_id) in ports.extract_if(.., |(worker, _)| is_closed(*worker)) {
            if let Some(token_broker) = &self.token_broker {
                token_broker.close_port(port_id);
            }
        }
    }

    /// Who a document is, from this process's own tables. Content can only make it less: its claim has to be what is
    /// known here, and a document whose origin is opaque gets no port.
    fn identity_for_token_port(
        &self,
        pipeline_id: PipelineId,
        claimed_origin: &ImmutableOrigin,
        claimed_features: FeatureSet,
    ) -> Result<PortIdentity, TokenError> {
        if !opts::get().multiprocess && !pref!(dom_token_broker_single_process_enabled) {
            return Err(not_allowed(
                "Tokens are not available when all pages share one process.",
            ));
        }

        let (Some(pipeline), ImmutableOrigin::Tuple(..)) =
            (self.pipelines.get(&pipeline_id), claimed_origin)
        else {
            return Err(not_allowed(
                "Tokens are not available to documents with an opaque origin.",
            ));
        };
        if self.get_activity(pipeline_id) != DocumentActivity::FullyActive {
            return Err(not_allowed("The document is not fully active."));
        }

        if pipeline.event_loop.hosts_several() {
            return Err(not_allowed(
                "The document shares a process with a document of another site, because a request with a body was \
                 redirected from one to the other. Open it in a new tab to use tokens.",
            ));
        }
        if self.known_origin(pipeline_id).as_ref() != Some(claimed_origin) {
            return Err(not_allowed(
                "The document's origin is not the one that it was loaded for.",
            ));
        }

        let Some((origin, top_level_origin)) = self.broker_origins(pipeline_id) else {
            return Err(not_allowed(
                "Tokens are not available in pages with an opaque origin.",
            ));
        };

        let features = self
            .inherited_features(pipeline_id)
            .intersection(claimed_features);
        if features == FeatureSet::NONE {
            return Err(not_allowed(
                "A permissions policy keeps tokens from the document: the Permissions-Policy header of the document or of a \
                 page that frames it, or a frame without an allow attribute for it.",
            ));
        }

        Ok(PortIdentity {
            origin,
            top_level_origin,
            webview: webview_number(pipeline.webview_id),
            event_loop: event_loop_number(pipeline.event_loop.id()),
            // With temporary storage, nothing of what is browsed is to be kept.
            private: opts::get().temporary_storage ||
                self
                    .browsing_contexts
                    .get(&pipeline.browsing_context_id)
                    .is_none_or(|browsing_context| browsing_context.is_private),
            connection: self.connection(pipeline_id),
            features,
        })
    }

    /// How a document was fetched, or the one among it and its ancestors that was fetched in the worst way: who can change
    /// an ancestor decides what the user sees around the document.
    fn connection(&self, pipeline_id: PipelineId) -> Connection {
        let Some(pipeline) = self.pipelines.get(&pipeline_id) else {
            return Connection::Insecure;
        };
        let mut connection = Connection::TrustedHttps;
        for pipeline in
            self.ancestor_or_self_pipelines_of_browsing_context_iter(pipeline.browsing_context_id)
        {
            match connection_of_origin(self.known_origin(pipeline.id)) {
                Connection::TrustedHttps => {},
                Connection::HttpsWithException => connection = Connection::HttpsWithException,
                Connection::Insecure => return Connection::Insecure,
            }
        }
        connection
    }

    /// WebDriver's [Set Permission][spec] for a token feature goes to the token broker. Gives back any other command.
    ///
    /// [spec]: https://www.w3.org/TR/permissions/#webdriver-command-set-permission
    pub(super) fn handle_set_token_permission(
        &self,
        pipeline_id: PipelineId,
        command: WebDriverScriptCommand,
    ) -> Option<WebDriverScriptCommand> {
        let (feature, state, reply) = match command {
            WebDriverScriptCommand::SetPermission(name, state, reply) => {
                match Feature::from_permission_name(&name) {
                    Some(feature) => (feature, state, reply),
                    None => return Some(WebDriverScriptCommand::SetPermission(name, state, reply)),
                }
            },
            command => return Some(command),
        };
        let result = match (&self.token_broker, self.broker_origins(pipeline_id)) {
            (None, _) => Err(ErrorStatus::UnsupportedOperation),
            (_, None) => Err(ErrorStatus::InvalidArgument),
            (Some(token_broker), Some((origin, top_level_origin))) => {
                let state = match state {
                    SetPermissionState::Granted => PermissionState::Granted,
                    SetPermissionState::Denied => PermissionState::Denied,
                    SetPermissionState::Prompt => PermissionState::Prompt,
                };
                token_broker.set_permission(origin, top_level_origin, feature, state);
                Ok(())
            },
        };
        let _ = reply.send(result);
        None
    }

    /// The origins of a pipeline's document and of the document at the top of its frame tree, if the broker can have
    /// to do with both.
    fn broker_origins(&self, pipeline_id: PipelineId) -> Option<(Origin, Origin)> {
        let pipeline = self.pipelines.get(&pipeline_id)?;
        let top_level_pipeline = self
            .ancestor_or_self_pipelines_of_browsing_context_iter(pipeline.browsing_context_id)
            .last()
            .unwrap_or(pipeline);
        let serialize = |id| Origin::new(&self.known_origin(id)?.ascii_serialization());
        Some((serialize(pipeline_id)?, serialize(top_level_pipeline.id)?))
    }

    /// The origin of a pipeline's document, as far as this process knows it: that of its URL, or for documents that
    /// inherit theirs, that of the creator or parent in the same event loop. `None` if it is opaque, or not of the site
    /// that the event loop is for.
    pub(super) fn known_origin(&self, mut pipeline_id: PipelineId) -> Option<ImmutableOrigin> {
        for _ in 0..MAX_INHERITED_ORIGIN_DEPTH {
            let pipeline = self.pipelines.get(&pipeline_id)?;
            if pipeline
                .load_data
                .creation_sandboxing_flag_set
                .contains(SandboxingFlagSet::SANDBOXED_ORIGIN_BROWSING_CONTEXT_FLAG)
            {
                return None;
            }
            let mut url = pipeline.url.clone();
            url.set_fragment(None);
            if !matches!(url.as_str(), "about:blank" | "about:srcdoc") {
                let origin = url.origin();
                let site = Site::of_origin(&origin).filter(|_| url.scheme() != "blob")?;
                return pipeline.event_loop.hosts_only(&site).then_some(origin);
            }
            let parent_pipeline_id = self
                .browsing_contexts
                .get(&pipeline.browsing_context_id)
                .and_then(|browsing_context| browsing_context.parent_pipeline_id);
            let inherits_from = match url.as_str() {
                "about:blank" => pipeline
                    .load_data
                    .creator_pipeline_id
                    .or(parent_pipeline_id),
                _ => parent_pipeline_id,
            }?;
            if self.pipelines.get(&inherits_from)?.event_loop.id() != pipeline.event_loop.id() {
                return None;
            }
            pipeline_id = inherits_from;
        }
        None
    }
}

fn webview_number(webview_id: WebViewId) -> u64 {
    let id = BrowsingContextId::from(webview_id);
    (u64::from(id.namespace_id.0) << 32) | u64::from(id.index.0.get())
}

/// Its number cannot be had otherwise.
fn event_loop_number(id: ScriptEventLoopId) -> u64 {
    id.to_string().parse().unwrap_or_default()
}

/// How documents of an origin are fetched.
fn connection_of_origin(origin: Option<ImmutableOrigin>) -> Connection {
    let Some(ImmutableOrigin::Tuple(scheme, host, _)) = origin else {
        return Connection::Insecure;
    };
    match scheme.as_str() {
        "https" if has_certificate_exception(&host) => Connection::HttpsWithException,
        "https"
            if opts::get().ignore_certificate_errors &&
                !pref!(dom_token_broker_untrusted_certificates_enabled) =>
        {
            Connection::HttpsWithException
        },
        "https" => Connection::TrustedHttps,
        "http" if pref!(dom_token_broker_localhost_enabled) && is_this_machine(&host) => {
            Connection::TrustedHttps
        },
        _ => Connection::Insecure,
    }
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Domain(domain) => domain == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

/// Tells the token broker of what the user does in a webview: a prompt is shown only soon after it. The event comes from
/// the embedder; a page can make none of these.
pub(super) fn note_user_input(
    token_broker: &dyn TokenBroker,
    webview_id: WebViewId,
    event: &InputEvent,
) {
    if triggers_activation(event) {
        token_broker.user_input(webview_number(webview_id));
    }
}

/// Whether an event causes an [activation triggering input event][spec]. The keys that only modify others trigger none
/// here, nor does a key that is held down.
///
/// [spec]: https://html.spec.whatwg.org/multipage/#activation-triggering-input-event
#[expect(deprecated)] // Keyboards that have Hyper and Super keys still send them.
fn triggers_activation(event: &InputEvent) -> bool {
    match event {
        InputEvent::MouseButton(event) => event.action == MouseButtonAction::Down,
        InputEvent::Touch(event) => matches!(event.event_type, TouchEventType::Up),
        InputEvent::Keyboard(event) => {
            let event = &event.event;
            event.state == KeyState::Down &&
                !event.repeat &&
                !matches!(
                    event.key,
                    Key::Named(
                        NamedKey::Alt |
                            NamedKey::AltGraph |
                            NamedKey::CapsLock |
                            NamedKey::Control |
                            NamedKey::Escape |
                            NamedKey::Fn |
                            NamedKey::FnLock |
                            NamedKey::Hyper |
                            NamedKey::Meta |
                            NamedKey::NumLock |
                            NamedKey::ScrollLock |
                            NamedKey::Shift |
                            NamedKey::Super |
                            NamedKey::Symbol |
                            NamedKey::SymbolLock
                    )
                )
        },
        _ => false,
    }
}
