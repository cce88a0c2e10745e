/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The powerful features that the token APIs are behind, and who may use them.

use serde::{Deserialize, Serialize};

/// A powerful feature: what permissions are about, and what a permissions policy switches off for a document.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Feature {
    /// `secure-element`: the Secure Element API.
    SecureElement,
    /// `token-keys`: keys that live in a token.
    TokenKeys,
    /// `payment`: the Payment Request API.
    Payment,
    /// `publickey-credentials-create`: making WebAuthn credentials.
    PublicKeyCredentialsCreate,
    /// `publickey-credentials-get`: using WebAuthn credentials.
    PublicKeyCredentialsGet,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::SecureElement,
        Self::TokenKeys,
        Self::Payment,
        Self::PublicKeyCredentialsCreate,
        Self::PublicKeyCredentialsGet,
    ];

    /// The name in the Permissions API and in permissions policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::SecureElement => "secure-element",
            Self::TokenKeys => "token-keys",
            Self::Payment => "payment",
            Self::PublicKeyCredentialsCreate => "publickey-credentials-create",
            Self::PublicKeyCredentialsGet => "publickey-credentials-get",
        }
    }

    /// The feature with this name in a permissions policy.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|feature| feature.name() == name)
    }

    /// The feature with this name in the Permissions API, if it is one of the token APIs'.
    pub fn from_permission_name(name: &str) -> Option<Self> {
        [Self::SecureElement, Self::TokenKeys]
            .into_iter()
            .find(|feature| feature.name() == name)
    }
}

/// Some of the [`Feature`]s.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct FeatureSet(u8);

impl FeatureSet {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const ALL: Self = Self(0b1_1111);

    /// Whether a feature is among them.
    pub fn contains(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u8) != 0
    }

    /// Adds a feature.
    pub fn insert(&mut self, feature: Feature) {
        self.0 |= 1 << feature as u8;
    }

    /// Those that are in both.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        let mut set = Self::NONE;
        for feature in features {
            set.insert(feature);
        }
        set
    }
}

/// A [permission state](https://w3c.github.io/permissions/#dfn-permission-state).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum PermissionState {
    /// The origin may use the feature.
    Granted,
    /// It may not, and the user is not asked.
    Denied,
    /// The user is asked.
    Prompt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        assert_eq!(
            Feature::ALL.into_iter().collect::<FeatureSet>(),
            FeatureSet::ALL
        );
        for feature in Feature::ALL {
            let set: FeatureSet = [feature].into_iter().collect();
            for other in Feature::ALL {
                assert_eq!(set.contains(other), other == feature);
            }
            assert!(!FeatureSet::NONE.contains(feature));
            assert_eq!(set.intersection(FeatureSet::ALL), set);
            assert_eq!(Feature::from_name(feature.name()), Some(feature));
        }
        assert_eq!(Feature::from_name("camera"), None);
        assert_eq!(Feature::from_permission_name("payment"), None);
    }
}
