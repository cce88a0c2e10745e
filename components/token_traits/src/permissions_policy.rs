/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! [Permissions policies][spec], as far as the [`Feature`]s need them. All of them have the default allowlist `'self'`.
//!
//! A document's header, and the `allow` attribute of a frame, are read in the content process of that document, which can
//! only lower its own features and what it hands on. What a framed document may use is decided where all documents are
//! known, from what each container document [delegates](PermissionsPolicy::delegate).
//!
//! Origins are of the engine's own type, `O`; how a URL becomes one is the engine's too.
//!
//! [spec]: https://w3c.github.io/webappsec-permissions-policy/

mod structured_fields;

use serde::{Deserialize, Serialize};

use crate::feature::{Feature, FeatureSet};
use structured_fields::{Bare, Member, parse_dictionary};

/// An [allowlist](https://w3c.github.io/webappsec-permissions-policy/#allowlists).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Allowlist<O> {
    /// The special value `*`.
    Any,
    /// These origins; nobody if there are none.
    Origins(Vec<O>),
}

impl<O: Clone + PartialEq> Allowlist<O> {
    /// Whether a document of this origin is allowed. `None` is an origin that nobody knows, or an opaque one.
    pub fn matches(&self, origin: Option<&O>) -> bool {
        match self {
            Self::Any => true,
            Self::Origins(origins) => origin.is_some_and(|origin| origins.contains(origin)),
        }
    }

    /// Those that are in both.
    fn intersection(self, other: &Self) -> Self {
        match (self, other) {
            (list, Self::Any) => list,
            (Self::Any, list) => list.clone(),
            (Self::Origins(mut origins), other) => {
                origins.retain(|origin| other.matches(Some(origin)));
                Self::Origins(origins)
            }
        }
    }
}

/// Allowlists of some of the [`Feature`]s, at most one each: what a header or an attribute declares, or what a document
/// delegates to one in a frame.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PermissionsPolicy<O>(Vec<(Feature, Allowlist<O>)>);

impl<O> Default for PermissionsPolicy<O> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<O: Clone + PartialEq> PermissionsPolicy<O> {
    /// Reads the `Permissions-Policy` header of a document of the origin `own`. A malformed header declares nothing.
    ///
    /// `parse_origin` gives the tuple origin that a URL without path, query and fragment stands for. Expressions that are
    /// no such URL, wildcards in hosts included, match nobody.
    ///
    /// <https://w3c.github.io/webappsec-permissions-policy/#algo-construct-policy>
    pub fn from_header(value: &str, own: &O, parse_origin: impl Fn(&str) -> Option<O>) -> Self {
        let mut policy = Self::default();
        for (name, member) in parse_dictionary(value).unwrap_or_default() {
            let Some(feature) = Feature::from_name(&name) else {
                continue;
            };
            let items = match member {
                Member::Item(item) => vec![item],
                Member::List(items) => items,
            };
            let allowlist = if items.contains(&Bare::Token("*".to_owned())) {
                Allowlist::Any
            } else {
                Allowlist::Origins(
                    items
                        .iter()
                        .filter_map(|item| match item {
                            Bare::Token(token) if token == "self" => Some(own.clone()),
                            Bare::String(url) => parse_origin(url),
                            Bare::Token(_) | Bare::Other => None,
                        })
                        .collect(),
                )
            };
            policy.0.push((feature, allowlist));
        }
        policy
    }

    /// Reads the `allow` attribute of a frame in a document of the origin `own`, where `declared` is the frame's
    /// [declared origin], if that is not opaque. `parse_origin` is as in [`Self::from_header`].
    ///
    /// For a feature that is named several times, browsers take the first list and the specification the last one. Here a
    /// document has to be in all of them.
    ///
    /// <https://w3c.github.io/webappsec-permissions-policy/#algo-parse-policy-directive>
    ///
    /// [declared origin]: https://w3c.github.io/webappsec-permissions-policy/#declared-origin
    pub fn from_attribute(
        value: &str,
        own: &O,
        declared: Option<&O>,
        parse_origin: impl Fn(&str) -> Option<O>,
    ) -> Self {
        let mut policy = Self::default();
        for declaration in value.split(';') {
            let mut tokens = declaration.split_ascii_whitespace();
            let Some(feature) = tokens.next().and_then(Feature::from_name) else {
                continue;
            };
            let targets: Vec<&str> = tokens.collect();
            let allowlist = if targets.contains(&"*") {
                Allowlist::Any
            } else if targets.is_empty() {
                Allowlist::Origins(declared.into_iter().cloned().collect())
            } else {
                let origin = |target: &&str| match target.to_ascii_lowercase().as_str() {
                    "'self'" => Some(own.clone()),
                    "'src'" => declared.cloned(),
                    "'none'" => None,
                    _ => parse_origin(target),
                };
                Allowlist::Origins(targets.iter().filter_map(origin).collect())
            };
            match policy.0.iter_mut().find(|(named, _)| *named == feature) {
                Some((_, list)) => *list = allowlist.intersection(list),
                None => policy.0.push((feature, allowlist)),
            }
        }
        policy
    }

    fn get(&self, feature: Feature) -> Option<&Allowlist<O>> {
        self.0
            .iter()
            .find(|(named, _)| *named == feature)
            .map(|(_, allowlist)| allowlist)
    }

    /// What a document of the origin `own` leaves itself, with this as its declared policy.
    pub fn own_features(&self, own: &O) -> FeatureSet {
        Feature::ALL
            .into_iter()
            .filter(|feature| {
                self.get(*feature)
                    .is_none_or(|declared| declared.matches(Some(own)))
            })
            .collect()
    }

    /// What a document of the origin `own`, with this as its declared policy, hands on to the documents in one of its frames,
    /// whose attribute says `container`. Features that it hands on to nobody are not in it.
    ///
    /// <https://w3c.github.io/webappsec-permissions-policy/#algo-define-inherited-policy>
    pub fn delegate(&self, container: &Self, own: &O) -> Self {
        let features = self.own_features(own);
        let delegated = Feature::ALL
            .into_iter()
            .filter(|feature| features.contains(*feature))
            .map(|feature| {
                let attribute = match container.get(feature) {
                    Some(allowlist) => allowlist.clone(),
                    None => Allowlist::Origins(vec![own.clone()]),
                };
                let declared = self.get(feature).unwrap_or(&Allowlist::Any);
                (feature, attribute.intersection(declared))
            })
            .filter(|(_, allowlist)| *allowlist != Allowlist::Origins(Vec::new()));
        Self(delegated.collect())
    }

    /// The features that this, delegated, leaves a document of this origin; `None` as in [`Allowlist::matches`].
    pub fn delegated_features(&self, origin: Option<&O>) -> FeatureSet {
        self.0
            .iter()
            .filter(|(_, allowlist)| allowlist.matches(origin))
            .map(|(feature, _)| *feature)
            .collect()
    }
}

#[cfg(test)]
mod tests;
