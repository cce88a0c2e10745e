/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Who may see and open what.

pub mod device_rules;
pub mod grants;
mod policy;

use secure_element::access::Access;
use secure_element::apdu::Header;
use token_traits::{Connection, ErrorKind, Feature, PortIdentity, TokenError};

pub use self::policy::{Consent, ElementPolicy, NOBODY, is_promptable, not_there, refused};

/// Whether a document can have to do with tokens at all. One that cannot must not be able to tell that there are any.
pub fn is_eligible(identity: &PortIdentity) -> bool {
    identity.connection == Connection::TrustedHttps && !identity.private
}

/// Refuses what the permissions policy of a document does not leave it.
///
/// # Errors
/// What the page is told.
pub fn check_policy(identity: &PortIdentity, feature: Feature) -> Result<(), TokenError> {
    if identity.features.contains(feature) {
        return Ok(());
    }
    let message = format!(
        "the permissions policy does not allow {} in this document",
        feature.name()
    );
    Err(TokenError::new(ErrorKind::NotAllowed, message))
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
    use token_traits::{FeatureSet, Origin};

    use super::*;

    fn identity(origin: &str, connection: Connection) -> PortIdentity {
        let origin = Origin::new(origin).unwrap();
        PortIdentity {
            origin: origin.clone(),
            top_level_origin: origin,
            webview: 1,
            event_loop: 1,
            private: false,
            connection,
            features: FeatureSet::ALL,
        }
    }

    #[test]
    fn only_trusted_connections_outside_private_mode() {
        let bank = |connection| identity("https://bank.example", connection);
        assert!(is_eligible(&bank(Connection::TrustedHttps)));
        assert!(!is_eligible(&bank(Connection::HttpsWithException)));
        assert!(!is_eligible(&bank(Connection::Insecure)));
        let private = PortIdentity {
            private: true,
            ..bank(Connection::TrustedHttps)
        };
        assert!(!is_eligible(&private));
    }

    #[test]
    fn the_permissions_policy_is_about_one_feature() {
        let mut bank = identity("https://bank.example", Connection::TrustedHttps);
        assert_eq!(check_policy(&bank, Feature::SecureElement), Ok(()));
        bank.features = [Feature::TokenKeys].into_iter().collect();
        assert_eq!(check_policy(&bank, Feature::TokenKeys), Ok(()));
        let error = check_policy(&bank, Feature::SecureElement).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotAllowed);
        assert!(error.message.contains("secure-element"), "{error}");
    }
}
