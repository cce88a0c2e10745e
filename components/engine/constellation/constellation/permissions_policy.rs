/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What permissions policies leave the documents in frames. Each document hands on what it likes of its own features, so
//! the content process of a document can lower nobody but the document and those that it frames.

use layout_api::ScriptThreadFactory;
use servo_base::id::{BrowsingContextId, PipelineId};
use servo_constellation_traits::ServiceWorkerManagerFactory;
use servo_url::ImmutableOrigin;
use token_traits::FeatureSet;
use token_traits::permissions_policy::PermissionsPolicy;

use super::Constellation;

impl<STF, SWF> Constellation<STF, SWF>
where
    STF: ScriptThreadFactory,
    SWF: ServiceWorkerManagerFactory,
{
    /// Remembers what the parent of a new document in a frame hands on to it.
    pub(super) fn set_container_policy(
        &mut self,
        pipeline_id: PipelineId,
        policy: PermissionsPolicy<ImmutableOrigin>,
    ) {
        if let Some(pipeline) = self.pipelines.get_mut(&pipeline_id) {
            let browsing_context = self
                .browsing_contexts
                .get_mut(&pipeline.browsing_context_id);
            if let Some(browsing_context) = browsing_context {
                browsing_context.container_policy = policy.clone();
            }
            pipeline.container_policy = policy;
        }
    }

    /// A document of the session history is loaded again. It gets no more than the last one that the parent loaded.
    pub(super) fn inherit_container_policy(
        &mut self,
        browsing_context_id: BrowsingContextId,
        pipeline_id: PipelineId,
    ) {
        if let (Some(browsing_context), Some(pipeline)) = (
            self.browsing_contexts.get(&browsing_context_id),
            self.pipelines.get_mut(&pipeline_id),
        ) {
            pipeline.container_policy = browsing_context.container_policy.clone();
        }
    }

    /// The features that the document's embedders leave it: all, at the top; else those that the parent has and hands on
    /// to documents of this origin. The document's own header may leave it fewer.
    ///
    /// <https://w3c.github.io/webappsec-permissions-policy/#algo-define-inherited-policy>
    pub(super) fn inherited_features(&self, mut pipeline_id: PipelineId) -> FeatureSet {
        let mut features = FeatureSet::ALL;
        loop {
            let Some(pipeline) = self.pipelines.get(&pipeline_id) else {
                return FeatureSet::NONE;
            };
            let Some(browsing_context) = self.browsing_contexts.get(&pipeline.browsing_context_id)
            else {
                return FeatureSet::NONE;
            };
            let Some(parent_pipeline_id) = browsing_context.parent_pipeline_id else {
                return features;
            };
            let origin = self.known_origin(pipeline_id);
            features = features.intersection(
                pipeline
                    .container_policy
                    .delegated_features(origin.as_ref()),
            );
            pipeline_id = parent_pipeline_id;
        }
    }
}
