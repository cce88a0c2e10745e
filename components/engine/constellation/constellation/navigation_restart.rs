/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use layout_api::ScriptThreadFactory;
use log::warn;
use script_traits::{DiscardBrowsingContext, ScriptThreadMessage};
use servo_base::id::{PipelineId, WebViewId};
use servo_constellation_traits::{
    LoadData, NavigationHistoryBehavior, ServiceWorkerManagerFactory, TargetSnapshotParams,
};

use super::{Constellation, ExitPipelineMode};
use crate::session_history::SessionHistoryChange;

impl<STF, SWF> Constellation<STF, SWF>
where
    STF: ScriptThreadFactory,
    SWF: ServiceWorkerManagerFactory,
{
    /// A navigation has been redirected to another site while it was loading in the event loop of the first one.
    /// Start over in an event loop of the right site.
    ///
    /// See <https://github.com/servo/servo/issues/23037>.
    pub(super) fn handle_restart_navigation(
        &mut self,
        webview_id: WebViewId,
        pipeline_id: PipelineId,
        load_data: LoadData,
        target_snapshot_params: TargetSnapshotParams,
    ) {
        let opener = self
            .pipelines
            .get(&pipeline_id)
            .and_then(|pipeline| pipeline.opener);
        let Some(change) = self
            .webviews
            .get_mut(&webview_id)
            .and_then(|webview| webview.remove_pending_change_for_pipeline(pipeline_id))
        else {
            return warn!("{pipeline_id}: Tried to restart a navigation that is not pending");
        };
        self.close_pipeline(
            pipeline_id,
            DiscardBrowsingContext::No,
            ExitPipelineMode::Normal,
        );

        let browsing_context = self.browsing_contexts.get_mut(&change.browsing_context_id);
        let parent_pipeline_id = browsing_context
            .as_ref()
            .and_then(|browsing_context| browsing_context.parent_pipeline_id);
        let is_private = match (&browsing_context, &change.new_browsing_context_info) {
            (Some(browsing_context), _) => browsing_context.is_private,
            (None, Some(info)) => info.is_private,
            (None, None) => {
                return warn!("{pipeline_id}: Restarted navigation in closed browsing context");
            },
        };

        // The framing element has to know about the new pipeline, so its script thread starts the load.
        if let (Some(parent_pipeline_id), Some(browsing_context)) =
            (parent_pipeline_id, browsing_context)
        {
            browsing_context.forwarded_load = Some(load_data.clone());
            let history_handling = match change.replace {
                Some(_) => NavigationHistoryBehavior::Replace,
                None => NavigationHistoryBehavior::Push,
            };
            self.send_message_to_pipeline(
                parent_pipeline_id,
                ScriptThreadMessage::NavigateIframe(
                    parent_pipeline_id,
                    change.browsing_context_id,
                    load_data,
                    history_handling,
                    target_snapshot_params,
                ),
                "Restarted the navigation of an iframe after closure",
            );
            return;
        }

        let new_pipeline_id = PipelineId::new();
        self.new_pipeline(
            new_pipeline_id,
            change.browsing_context_id,
            webview_id,
            None,
            opener,
            change.viewport_details,
            load_data,
            is_private,
            target_snapshot_params,
            None,
        );
        if let Some(webview) = self.webviews.get_mut(&webview_id) {
            webview.add_pending_change(SessionHistoryChange {
                new_pipeline_id,
                ..change
            });
        }
    }
}
