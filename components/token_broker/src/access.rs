/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Who may see and open what.

pub mod device_rules;
mod policy;

use std::collections::HashSet;

use secure_element::access::Access;
use secure_element::apdu::Header;
use token_traits::{Connection, Feature, Origin, PortIdentity, TokenError};

pub use self::policy::{ElementPolicy, is_promptable, refused};

/// What the user has allowed, as the main process tells it. It lives as long as the broker; the main process keeps it.
#[derive(Debug, Default)]
pub struct Grants(HashSet<(Origin, Origin, Feature)>);

impl Grants {
    /// Allows a feature to an origin under a top-level origin, or no longer allows it.
    pub fn set(
        &mut self,
        origin: Origin,
        top_level_origin: Origin,
        feature: Feature,
        allowed: bool,
    ) {
        let grant = (origin, top_level_origin, feature);
        if allowed {
            self.0.insert(grant);
        } else {
            self.0.remove(&grant);
        }
    }

    fn allows(&self, identity: &PortIdentity, feature: Feature) -> bool {
        self.0.contains(&(
            identity.origin.clone(),
            identity.top_level_origin.clone(),
            feature,
        ))
    }
}

/// Whether a document sees readers at all. One that does not must not be able to tell that there are any.
pub fn may_see_readers(identity: &PortIdentity, grants: &Grants) -> bool {
    identity.connection == Connection::TrustedHttps
        && grants.allows(identity, Feature::SecureElement)
}

/// ENVELOPE: the command inside it is another one than its header says.
const INS_ENVELOPE: [u8; 2] = [0xC2, 0xC3];

/// Whether a command may be sent to an applet. `header` has the class that the command would have on the basic channel.
///
/// # Errors
/// What the page is told.
pub fn check_command(access: &Access, header: Header) -> Result<(), TokenError> {
    let is_hidden = matches!(access, Access::Filters(_)) && INS_ENVELOPE.contains(&header.ins);
    if access.allows_command(header) && !is_hidden {
        Ok(())
    } else {
        Err(refused())
    }
}

#[cfg(test)]
mod tests {
    use token_traits::FeatureSet;

    use super::*;

    fn identity(origin: &str, top_level_origin: &str, connection: Connection) -> PortIdentity {
        PortIdentity {
            origin: Origin::new(origin).unwrap(),
            top_level_origin: Origin::new(top_level_origin).unwrap(),
            webview: 1,
            private: false,
            connection,
            features: FeatureSet::ALL,
        }
    }

    #[test]
    fn a_grant_is_for_one_pair_of_origins_over_a_trusted_connection() {
        const BANK: &str = "https://bank.example";
        let mut grants = Grants::default();
        let bank = |connection| identity(BANK, BANK, connection);
        assert!(!may_see_readers(&bank(Connection::TrustedHttps), &grants));

        let origin = Origin::new(BANK).unwrap();
        grants.set(origin.clone(), origin.clone(), Feature::SecureElement, true);
        assert!(may_see_readers(&bank(Connection::TrustedHttps), &grants));
        assert!(!may_see_readers(
            &bank(Connection::HttpsWithException),
            &grants
        ));
        assert!(!may_see_readers(&bank(Connection::Insecure), &grants));
        for (origin, top_level_origin) in [
            (BANK, "https://shop.example"),
            ("https://shop.example", BANK),
            ("https://bank.example:8443", "https://bank.example:8443"),
        ] {
            let other = identity(origin, top_level_origin, Connection::TrustedHttps);
            assert!(!may_see_readers(&other, &grants));
        }

        grants.set(origin.clone(), origin, Feature::SecureElement, false);
        assert!(!may_see_readers(&bank(Connection::TrustedHttps), &grants));
    }
}
