/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use content_security_policy::sandboxing_directive::SandboxingFlagSet;
use http::{Method, StatusCode};
use js::context::JSContext;
use net_traits::{Metadata, NetworkError, ResourceFetchTiming, ResourceTimingType};
use net_traits::pub_domains::is_same_site;
use servo_base::id::PipelineId;
use servo_constellation_traits::ScriptToConstellationMessage;

use super::ScriptThread;

/// The same limit that fetch has for redirects.
///
/// <https://fetch.spec.whatwg.org/#http-redirect-fetch>
const MAX_CROSS_SITE_REDIRECTS: u8 = 20;

impl ScriptThread {
    /// Documents of one site only share a process. If the load of `pipeline_id` turns out to lead to another site (by a
    /// redirect, or because its URL has been upgraded to HTTPS), ask the constellation to start over in an event loop
    /// of that site, and forget the load. Returns whether that happened.
    ///
    /// It is not possible for a request with a body, if the redirect is to repeat the body.
    ///
    /// See <https://github.com/servo/servo/issues/23037>.
    pub(super) fn maybe_restart_navigation(
        &self,
        cx: &mut JSContext,
        pipeline_id: PipelineId,
        metadata: &Metadata,
    ) -> bool {
        let url = match &metadata.location_url {
            Some(Ok(location_url)) => location_url,
            _ => &metadata.final_url,
        };
        let position = self.incomplete_loads.borrow().iter().position(|load| {
            load.pipeline_id == pipeline_id &&
                load.load_data.js_eval_result.is_none() &&
                load.load_data.url.origin().is_tuple() &&
                !load
                    .load_data
                    .creation_sandboxing_flag_set
                    .contains(SandboxingFlagSet::SANDBOXED_ORIGIN_BROWSING_CONTEXT_FLAG) &&
                !is_same_site(&load.load_data.url.origin(), &url.origin())
        });
        let Some(position) = position else {
            return false;
        };

        let becomes_get = matches!(
            metadata.status.try_code(),
            Some(StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER)
        );
        let is_get = self.incomplete_loads.borrow()[position].load_data.method == Method::GET;
        if !is_get && !becomes_get {
            return false;
        }

        if self.incomplete_loads.borrow()[position].load_data.cross_site_redirects >=
            MAX_CROSS_SITE_REDIRECTS
        {
            self.handle_fetch_metadata(cx, pipeline_id, Err(NetworkError::TooManyRedirects));
            let timing = ResourceFetchTiming::new(ResourceTimingType::Navigation);
            self.handle_fetch_eof(cx, pipeline_id, Ok(()), timing);
            return true;
        }

        let load = self.incomplete_loads.borrow_mut().remove(position);
        self.incomplete_parser_contexts
            .0
            .borrow_mut()
            .retain(|(id, _)| *id != pipeline_id);

        let webview_id = load.webview_id();
        let mut load_data = load.load_data;
        if !is_get {
            load_data.method = Method::GET;
            load_data.data = None;
            load_data.headers.remove(http::header::CONTENT_TYPE);
            load_data.headers.remove(http::header::CONTENT_LENGTH);
        }
        load_data.url = url.clone();
        load_data.referrer_policy = metadata.referrer_policy;
        load_data.cross_site_redirects += 1;

        let _ = self.senders.pipeline_to_constellation_sender.send((
            webview_id,
            pipeline_id,
            ScriptToConstellationMessage::RestartNavigation(load_data, load.target_snapshot_params),
        ));
        true
    }
}
