/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Permissions policies: a header and an `allow` attribute.

use token_traits::permissions_policy::PermissionsPolicy;
use token_traits::{FeatureSet, Origin};

/// Everything ends, and nobody gets more than whoever hands it on has.
///
/// The first byte is the length of the header; the rest is the attribute.
pub fn run(bytes: &[u8]) {
    let Some((&length, rest)) = bytes.split_first() else {
        return;
    };
    let (header, attribute) = rest.split_at(usize::from(length).min(rest.len()));
    let (header, attribute) = (
        String::from_utf8_lossy(header),
        String::from_utf8_lossy(attribute),
    );
    let origin = |text: &str| Origin::new(text);
    let (Some(own), Some(frame), Some(other)) = (
        origin("https://bank.example"),
        origin("https://shop.example"),
        origin("https://nobody.invalid"),
    ) else {
        panic!("these are origins");
    };

    let declared = PermissionsPolicy::from_header(&header, &own, origin);
    let container = PermissionsPolicy::from_attribute(&attribute, &own, Some(&frame), origin);
    let own_features = declared.own_features(&own);
    let delegated = declared.delegate(&container, &own);
    for origin in [Some(&own), Some(&frame), Some(&other), None] {
        let features = delegated.delegated_features(origin);
        assert_eq!(
            features.intersection(own_features),
            features,
            "more is handed on than there is"
        );
        let is_named = |text: &str| text.contains('*') || text.contains("nobody.invalid");
        if (origin == Some(&other) || origin.is_none()) && !is_named(&attribute) {
            assert_eq!(features, FeatureSet::NONE, "to somebody who is not named");
        }
    }
    // Without an attribute, it stays with the own origin.
    let plain = declared.delegate(&PermissionsPolicy::default(), &own);
    assert_eq!(plain.delegated_features(Some(&own)), own_features);
    assert_eq!(plain.delegated_features(Some(&frame)), FeatureSet::NONE);
    // Whoever has nothing hands nothing on.
    let nothing = "secure-element=(), token-keys=(), payment=(), publickey-credentials-create=(), \
                   publickey-credentials-get=()";
    let nothing = PermissionsPolicy::from_header(nothing, &own, origin);
    assert_eq!(
        nothing.delegate(&container, &own),
        PermissionsPolicy::default()
    );
}
