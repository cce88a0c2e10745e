/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! [Permissions policies][spec] of documents and frames. They are read here; what a framed document may use is decided by
//! the constellation, which knows the documents that frame it.
//!
//! [spec]: https://w3c.github.io/webappsec-permissions-policy/

use content_security_policy::sandboxing_directive::SandboxingFlagSet;
use html5ever::local_name;
use http::HeaderMap;
use hyper_serde::Serde;
use servo_url::{ImmutableOrigin, ServoUrl};
use token_traits::FeatureSet;

use crate::dom::bindings::inheritance::Castable;
use crate::dom::document::Document;
use crate::dom::element::Element;
use crate::dom::html::htmliframeelement::HTMLIFrameElement;
use crate::dom::node::NodeTraits;

pub(crate) type PermissionsPolicy =
    token_traits::permissions_policy::PermissionsPolicy<ImmutableOrigin>;

/// The declared policy of a document of this origin, whose response has these headers.
///
/// <https://w3c.github.io/webappsec-permissions-policy/#algo-create-from-response>
pub(crate) fn declared_policy(
    headers: Option<&Serde<HeaderMap>>,
    origin: &ImmutableOrigin,
) -> PermissionsPolicy {
    let Some(headers) = headers else {
        return PermissionsPolicy::default();
    };
    let lines: Result<Vec<_>, _> = headers
        .get_all("permissions-policy")
        .iter()
        .map(|line| line.to_str())
        .collect();
    PermissionsPolicy::from_header(&lines.unwrap_or_default().join(", "), origin, parse_origin)
}

/// The origin that an expression in an allowlist stands for.
fn parse_origin(expression: &str) -> Option<ImmutableOrigin> {
    let url = ServoUrl::parse(expression).ok()?;
    let names_an_origin = url.path() == "/" &&
        url.query().is_none() &&
        url.fragment().is_none() &&
        url.username().is_empty() &&
        url.password().is_none();
    Some(url.origin()).filter(|origin| names_an_origin && origin.is_tuple())
}

impl Document {
    /// The features that this document's own policy leaves it. Those that frame it may leave it fewer.
    pub(crate) fn own_features(&self) -> FeatureSet {
        self.permissions_policy()
            .own_features(self.origin().immutable())
    }
}

impl HTMLIFrameElement {
    /// What this frame's document hands on to the documents in it.
    pub(crate) fn container_policy(&self) -> PermissionsPolicy {
        let document = self.owner_document();
        let origin = document.origin().immutable().clone();
        // <https://w3c.github.io/webappsec-permissions-policy/#algo-process-policy-attributes>
        let attribute = PermissionsPolicy::from_attribute(
            &self
                .upcast::<Element>()
                .get_string_attribute(&local_name!("allow"))
                .str(),
            &origin,
            self.declared_origin(&document).as_ref(),
            parse_origin,
        );
        document.permissions_policy().delegate(&attribute, &origin)
    }

    /// The origin that the documents in this frame are expected to have, unless it is opaque.
    ///
    /// <https://w3c.github.io/webappsec-permissions-policy/#declared-origin>
    fn declared_origin(&self, document: &Document) -> Option<ImmutableOrigin> {
        // Step 1. If node's node document's sandboxed origin browsing context flag is set, then return a unique opaque
        // origin.
        // Step 2. If node's sandbox attribute is set, and does not contain the allow-same-origin keyword, then return a
        // unique opaque origin.
        if self
            .sandboxing_flag_set()
            .contains(SandboxingFlagSet::SANDBOXED_ORIGIN_BROWSING_CONTEXT_FLAG)
        {
            return None;
        }
        let own = document.origin().immutable().clone();
        let element = self.upcast::<Element>();
        // Step 3. If node's srcdoc attribute is set, then return node's node document's origin.
        if element.has_attribute(&local_name!("srcdoc")) {
            return Some(own);
        }
        // Step 4. If node's src attribute is set:
        let url = element
            .get_attribute_string_value(&local_name!("src"))
            .and_then(|src| document.encoding_parse_a_url(&src).ok());
        match url {
            // Documents at about:blank have the origin of this one.
            Some(url) if !url.matches_about_blank() => {
                Some(url.origin()).filter(|origin| origin.is_tuple())
            },
            // Step 5. Return node's node document's origin.
            _ => Some(own),
        }
    }
}
