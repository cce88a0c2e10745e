/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use net_traits::pub_domains::reg_suffix;
use servo_url::{Host, ImmutableOrigin, ServoUrl};

/// A tuple origin's scheme and registrable domain, or its host where that is an IP address. Opaque origins have no
/// value of this type.
///
/// <https://html.spec.whatwg.org/multipage/#concept-site>
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Site {
    scheme: String,
    host: Host,
}

impl Site {
    /// <https://html.spec.whatwg.org/multipage/#obtain-a-site>
    pub(crate) fn of_origin(origin: &ImmutableOrigin) -> Option<Self> {
        // Step 1. If origin is an opaque origin, then return origin.
        let ImmutableOrigin::Tuple(scheme, host, _) = origin else {
            return None;
        };
        // Step 2. If origin's host's registrable domain is null, then return (origin's scheme, origin's host).
        // Step 3. Return (origin's scheme, origin's host's registrable domain).
        Some(Self {
            scheme: scheme.clone(),
            host: match host {
                Host::Domain(domain) => Host::Domain(reg_suffix(domain).to_owned()),
                ip_address => ip_address.clone(),
            },
        })
    }

    pub(crate) fn of_url(url: &ServoUrl) -> Option<Self> {
        Self::of_origin(&url.origin())
    }
}
