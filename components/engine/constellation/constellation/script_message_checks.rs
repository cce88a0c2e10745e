/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Checks what a script event loop tells the constellation against the constellation's own tables.
//!
//! Every event loop has a channel of its own, so its id is known; the webview, pipelines, browsing contexts, URLs and
//! origins in its messages are claims. A compromised content process may do to its own site what it likes, but it may
//! not speak for a document of another event loop, plant content in one, or give its documents the URL of another site.
//!
//! See <https://github.com/servo/servo/issues/11722> and <https://github.com/servo/servo/issues/10542>.

use layout_api::ScriptThreadFactory;
use servo_base::id::{BrowsingContextId, PipelineId, ScriptEventLoopId, WebViewId};
use servo_constellation_traits::{
    IFrameLoadInfo, LoadData, LoadOrigin, ScriptToConstellationMessage, ServiceWorkerManagerFactory,
};
use servo_url::{ImmutableOrigin, ServoUrl};

use super::Constellation;
use crate::site::Site;

/// Why a message is refused, for the log.
type Refusal = &'static str;

impl<STF, SWF> Constellation<STF, SWF>
where
    STF: ScriptThreadFactory,
    SWF: ServiceWorkerManagerFactory,
{
    /// Whether `event_loop_id` may send `message` in the name of `source`. Where the constellation itself had asked for
    /// the message, this puts back what was asked.
    pub(super) fn check_script_message(
        &mut self,
        event_loop_id: ScriptEventLoopId,
        webview_id: WebViewId,
        source: PipelineId,
        message: &mut ScriptToConstellationMessage,
    ) -> Result<(), Refusal> {
        use ScriptToConstellationMessage as Message;

        match message {
            // Log entries come from threads that belong to no document; the caller fills in the event loop.
            Message::LogEntry(..) |
            // Script asks these about other pipelines, in the name of any. The answers do not depend on the name.
            Message::GetBrowsingContextInfo(..) |
            Message::GetTopForBrowsingContext(..) |
            Message::GetChildBrowsingContextCount(..) |
            Message::GetChildBrowsingContextId(..) |
            Message::GetDocumentOrigin(..) |
            Message::GetDocumentOriginDetails(..) |
            Message::IsCurrentlyFullyActive(..) => return Ok(()),
            _ => {},
        }

        match self.pipelines.get(&source) {
            Some(pipeline) if pipeline.event_loop.id() != event_loop_id => {
                return Err("it is in the name of a pipeline of another event loop");
            },
            Some(pipeline) if pipeline.webview_id != webview_id => {
                return Err("it is in the name of another webview");
            },
            Some(_) => {},
            // The pipeline has closed meanwhile, or is one that only script knows, such as a worklet's.
            // What acts on the claimed webview needs a pipeline that is in it.
            None => {
                if matches!(
                    message,
                    Message::DiscardTopLevelBrowsingContext |
                        Message::IFrameSizes(..) |
                        Message::MediaSessionEvent(..) |
                        Message::TraverseHistory(..)
                ) {
                    return Err("it is in the name of an unknown pipeline");
                }
            },
        }

        match message {
            Message::LoadUrl(load_data, ..) => {
                self.check_load_data(event_loop_id, load_data)?;
                self.check_planted_content(event_loop_id, load_data)?;
                self.check_content_of_navigation(event_loop_id, source, load_data)
            },
            Message::RestartNavigation(load_data, _) => {
                let Some(pipeline) = self.pipelines.get(&source) else {
                    return Err("it restarts the navigation of an unknown pipeline");
                };
                // Whose navigation it was does not change.
                load_data.load_origin = pipeline.load_data.load_origin.clone();
                load_data.creator_pipeline_id = None;
                self.check_load_data_but_initiator(event_loop_id, load_data)?;
                self.check_planted_content(event_loop_id, load_data)
            },
            Message::ScriptLoadedURLInIFrame(load_info) => {
                self.check_iframe(event_loop_id, &load_info.info)?;
                let known = self
                    .browsing_contexts
                    .get(&load_info.info.browsing_context_id);
                if known.is_some_and(|browsing_context| {
                    browsing_context.parent_pipeline_id != Some(load_info.info.parent_pipeline_id)
                }) {
                    return Err("its browsing context is not a child of the parent that it names");
                }
                if load_info
                    .old_pipeline_id
                    .and_then(|id| self.pipelines.get(&id))
                    .is_some_and(|old| old.browsing_context_id != load_info.info.browsing_context_id)
                {
                    return Err("its old pipeline is in another browsing context");
                }
                if self.restore_forwarded_load(&load_info.info, &mut load_info.load_data) {
                    return Ok(());
                }
                self.check_load_data(event_loop_id, &load_info.load_data)?;
                self.check_planted_content(event_loop_id, &load_info.load_data)
            },
            Message::ScriptNewIFrame(load_info) => {
                self.check_iframe(event_loop_id, &load_info.info)?;
                if self
                    .browsing_contexts
                    .contains_key(&load_info.info.browsing_context_id)
                {
                    return Err("its new browsing context exists already");
                }
                self.check_initial_about_blank(event_loop_id, &load_info.load_data)
            },
            Message::CreateAuxiliaryWebView(request) => {
                self.check_runs_in(event_loop_id, request.opener_pipeline_id)?;
                if request.opener_webview_id != webview_id {
                    return Err("its opener is in another webview");
                }
                self.check_initial_about_blank(event_loop_id, &request.load_data)
            },
            Message::SetFinalUrl(url) => self.check_final_url(source, url),
            Message::NavigatedToFragment(url, _) |
            Message::PushHistoryState(_, url) |
            Message::ReplaceHistoryState(_, url) => self.check_document_url(source, url),
            Message::PostMessage {
                source,
                source_origin,
                ..
            } => {
                self.check_runs_in(event_loop_id, *source)?;
                self.check_origin(event_loop_id, source_origin)
            },
            Message::RemoveIFrame(browsing_context_id, _) => {
                self.check_is_child(event_loop_id, *browsing_context_id)
            },
            Message::IFrameSizes(sizes) => sizes
                .iter()
                .try_for_each(|size| self.check_is_child(event_loop_id, size.browsing_context_id)),
            Message::TitleChanged(pipeline_id, _) |
            Message::MediaSessionEvent(pipeline_id, _) => {
                self.check_runs_in(event_loop_id, *pipeline_id)
            },
            Message::ForwardDOMMessage(_, scope_url) => {
                self.check_origin(event_loop_id, &scope_url.origin())
            },
            // These act on nothing but their source, answer questions, check the origin that they name themselves,
            // or are about things with ids of their own: ports, canvases, evaluations, focus. A message that is new in
            // the engine does not compile before it has its place here.
            Message::AbortLoadUrl |
            Message::AcquireWakeLock(..) |
            Message::ActivateDocument |
            Message::BroadcastStorageEvent(..) |
            Message::ChangeRunningAnimationsState(..) |
            Message::ChangeWorkerAnimationFrameProviderState(..) |
            Message::CompleteMessagePortTransfer(..) |
            Message::CreateCanvasPaintThread(..) |
            Message::DiscardDocument |
            Message::DiscardTopLevelBrowsingContext |
            Message::DisentanglePorts(..) |
            Message::EntanglePorts(..) |
            Message::FinishJavaScriptEvaluation(..) |
            Message::FocusAncestorBrowsingContextsForFocusingSteps(..) |
            Message::FocusRemoteBrowsingContext(..) |
            Message::ForwardKeyboardScroll(..) |
            Message::GetBrowsingContextInfo(..) |
            Message::GetChildBrowsingContextCount(..) |
            Message::GetChildBrowsingContextId(..) |
            Message::GetDocumentOrigin(..) |
            Message::GetDocumentOriginDetails(..) |
            Message::GetTopForBrowsingContext(..) |
            Message::IsCurrentlyFullyActive(..) |
            Message::JointSessionHistoryLength(..) |
            Message::LoadComplete |
            Message::LogEntry(..) |
            Message::MessagePortShipped(..) |
            Message::MessagePortTransferResult(..) |
            Message::NewBroadcastChannelNameInRouter(..) |
            Message::NewBroadcastChannelRouter(..) |
            Message::NewMessagePort(..) |
            Message::NewMessagePortRouter(..) |
            Message::OpenTokenPort(..) |
            Message::PipelineExited |
            Message::RegisterInterest(..) |
            Message::RegisterWorkerAnimationFrameProvider(..) |
            Message::ReleaseWakeLock(..) |
            Message::RemoveBroadcastChannelNameInRouter(..) |
            Message::RemoveBroadcastChannelRouter(..) |
            Message::RemoveMessagePortRouter(..) |
            Message::ReportMemory(..) |
            Message::RerouteMessagePort(..) |
            Message::RespondToScreenshotReadinessRequest(..) |
            Message::ScheduleBroadcast(..) |
            Message::ServiceWorkerAlgorithm(..) |
            Message::TraverseHistory(..) |
            Message::TriggerGarbageCollection |
            Message::UnregisterInterest(..) |
            Message::UnregisterWorkerAnimationFrameProvider(..) => Ok(()),
            #[cfg(feature = "webgpu")]
            Message::GetWebGPUChan(..) | Message::RequestAdapter(..) => Ok(()),
        }
    }

    /// A navigation that a framed document asks for goes through the event loop of its parent. That it comes back from
    /// there does not make the parent's site its initiator: whose it is was checked when it was asked for.
    fn restore_forwarded_load(&mut self, info: &IFrameLoadInfo, load_data: &mut LoadData) -> bool {
        let Some(forwarded) = self
            .browsing_contexts
            .get_mut(&info.browsing_context_id)
            .and_then(|browsing_context| {
                browsing_context
                    .forwarded_load
                    .take_if(|forwarded| forwarded.url == load_data.url)
            })
        else {
            return false;
        };
        // The framing element may sandbox the document, and has no other say in the request.
        let sandboxing_flag_set = load_data.creation_sandboxing_flag_set;
        *load_data = forwarded;
        load_data
            .creation_sandboxing_flag_set
            .insert(sandboxing_flag_set);
        true
    }

    fn event_loop_hosts(&self, id: ScriptEventLoopId, site: &Site) -> bool {
        self.event_loops()
            .iter()
            .any(|event_loop| event_loop.id() == id && event_loop.hosts(site))
    }

    /// Pipelines that have closed meanwhile are anybody's: nothing can be done to them.
    fn check_runs_in(
        &self,
        event_loop_id: ScriptEventLoopId,
        pipeline_id: PipelineId,
    ) -> Result<(), Refusal> {
        match self.pipelines.get(&pipeline_id) {
            Some(pipeline) if pipeline.event_loop.id() != event_loop_id => {
                Err("it names a pipeline of another event loop")
            },
            _ => Ok(()),
        }
    }

    fn check_is_child(
        &self,
        event_loop_id: ScriptEventLoopId,
        browsing_context_id: BrowsingContextId,
    ) -> Result<(), Refusal> {
        let Some(browsing_context) = self.browsing_contexts.get(&browsing_context_id) else {
            return Ok(());
        };
        match browsing_context.parent_pipeline_id {
            Some(parent_pipeline_id) => self.check_runs_in(event_loop_id, parent_pipeline_id),
            None => Err("it names a top-level browsing context as a child"),
        }
    }

    fn check_iframe(
        &self,
        event_loop_id: ScriptEventLoopId,
        info: &IFrameLoadInfo,
    ) -> Result<(), Refusal> {
        self.check_runs_in(event_loop_id, info.parent_pipeline_id)?;
        if self
            .pipelines
            .get(&info.parent_pipeline_id)
            .is_some_and(|parent| parent.webview_id != info.webview_id)
        {
            return Err("its parent is in another webview");
        }
        if self.pipelines.contains_key(&info.new_pipeline_id) {
            return Err("its new pipeline exists already");
        }
        Ok(())
    }

    /// An origin that a message claims: opaque, or of the event loop's own site.
    fn check_origin(
        &self,
        event_loop_id: ScriptEventLoopId,
        origin: &ImmutableOrigin,
    ) -> Result<(), Refusal> {
        match Site::of_origin(origin) {
            Some(site) if !self.event_loop_hosts(event_loop_id, &site) => {
                Err("it claims an origin of another site")
            },
            _ => Ok(()),
        }
    }

    /// What is true of any load that a script may ask for.
    fn check_load_data(
        &self,
        event_loop_id: ScriptEventLoopId,
        load_data: &LoadData,
    ) -> Result<(), Refusal> {
        match &load_data.load_origin {
            LoadOrigin::Script(origin) => self.check_origin(event_loop_id, origin.immutable())?,
            // The developer tools navigate through script.
            LoadOrigin::Constellation if self.devtools_sender.is_some() => {},
            LoadOrigin::Constellation | LoadOrigin::WebDriver => {
                return Err("it claims to come from the browser itself");
            },
        }
        self.check_load_data_but_initiator(event_loop_id, load_data)
    }

    /// The first document of a new browsing context, which script makes by itself.
    fn check_initial_about_blank(
        &self,
        event_loop_id: ScriptEventLoopId,
        load_data: &LoadData,
    ) -> Result<(), Refusal> {
        if !load_data.is_initial_about_blank ||
            load_data.js_eval_result.is_some() ||
            !load_data.srcdoc.is_empty()
        {
            return Err("a new browsing context does not begin with the initial about:blank");
        }
        self.check_load_data(event_loop_id, load_data)
    }

    fn check_load_data_but_initiator(
        &self,
        event_loop_id: ScriptEventLoopId,
        load_data: &LoadData,
    ) -> Result<(), Refusal> {
        if let Some(creator_pipeline_id) = load_data.creator_pipeline_id {
            self.check_runs_in(event_loop_id, creator_pipeline_id)?;
        }
        if load_data.crash.is_some() {
            return Err("it asks for a crash page");
        }
        if load_data.url.scheme() == "javascript" {
            // Script evaluates these itself, and asks to load their results.
            return Err("it asks to load a javascript: URL");
        }
        if load_data.is_initial_about_blank && load_data.url.as_str() != "about:blank" {
            return Err("its initial about:blank is none");
        }
        Ok(())
    }

    /// The results of javascript: URLs and srcdoc documents bring their content with them. They may only be loaded
    /// where the site of their URL is the sender's own.
    fn check_planted_content(
        &self,
        event_loop_id: ScriptEventLoopId,
        load_data: &LoadData,
    ) -> Result<(), Refusal> {
        let inherits_origin = matches!(load_data.url.as_str(), "about:blank" | "about:srcdoc");
        if !load_data.srcdoc.is_empty() && load_data.url.as_str() != "about:srcdoc" {
            return Err("it brings the content of a srcdoc document for another URL");
        }
        if load_data.js_eval_result.is_some() && !inherits_origin {
            let is_own_site = Site::of_url(&load_data.url)
                .is_some_and(|site| self.event_loop_hosts(event_loop_id, &site));
            if !is_own_site {
                return Err("it brings content for a URL of another site");
            }
        }
        Ok(())
    }

    /// A document with an inherited origin ends up in the event loop of its parent, so that has to be the sender's if
    /// the navigation brings content.
    fn check_content_of_navigation(
        &self,
        event_loop_id: ScriptEventLoopId,
        source: PipelineId,
        load_data: &LoadData,
    ) -> Result<(), Refusal> {
        let inherits_origin = matches!(load_data.url.as_str(), "about:blank" | "about:srcdoc");
        let brings_content = !load_data.srcdoc.is_empty() || load_data.js_eval_result.is_some();
        if !inherits_origin || !brings_content {
            return Ok(());
        }
        let parent_pipeline_id = self
            .pipelines
            .get(&source)
            .and_then(|pipeline| self.browsing_contexts.get(&pipeline.browsing_context_id))
            .and_then(|browsing_context| browsing_context.parent_pipeline_id);
        match parent_pipeline_id {
            Some(parent_pipeline_id) => self.check_runs_in(event_loop_id, parent_pipeline_id),
            None => Ok(()),
        }
    }

    /// The URL of a document after the redirects of its load.
    fn check_final_url(&self, source: PipelineId, url: &ServoUrl) -> Result<(), Refusal> {
        let Some(pipeline) = self.pipelines.get(&source) else {
            return Ok(());
        };
        // A navigation that is redirected to another site starts over in that site's event loop. One with a body
        // cannot: its document shares a process with another site. The event loop remembers that, and gets no port to
        // the token broker any more.
        if pipeline.load_data.method.as_str() != "GET" {
            return Ok(());
        }
        self.check_document_url(source, url)
    }

    /// A URL that a document gives itself: of the site that the document was loaded from.
    fn check_document_url(&self, source: PipelineId, url: &ServoUrl) -> Result<(), Refusal> {
        let Some(pipeline) = self.pipelines.get(&source) else {
            return Ok(());
        };
        let site = Site::of_url(url);
        if site != Site::of_url(&pipeline.url) ||
            (site.is_none() && url.scheme() != pipeline.url.scheme())
        {
            return Err("it gives the document a URL of another site");
        }
        Ok(())
    }
}
