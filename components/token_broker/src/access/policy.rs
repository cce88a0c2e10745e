/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the rules of an element, or those of the device where the element has none, allow an origin.
//!
//! An applet that an origin may not use and one that is not there look the same to it, unless a rule names the origin.

use secure_element::access::{Access, AppId, Denial, RuleSet, Target};
use secure_element::channel::Aid;
use token_traits::{ErrorKind, TokenError};

/// Applications that nobody can be allowed to use by a prompt, because their own protection would be bypassed: the
/// issuer security domains, access rules, FIDO (bound to origins by the browser), and what keys in tokens are served
/// from (bound to origins by the keys' lists). Only a card's own rule or an administrator's opens them.
const NEVER_BY_PROMPT: [&[u8]; 10] = [
    // Issuer security domains: GlobalPlatform, Visa, Gemalto.
    &[0xA0, 0x00, 0x00, 0x01, 0x51],
    &[0xA0, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00],
    &[0xA0, 0x00, 0x00, 0x00, 0x18, 0x43, 0x4D],
    // GlobalPlatform's access rule files.
    &[
        0xA0, 0x00, 0x00, 0x00, 0x18, 0x47, 0x50, 0x41, 0x43, 0x2D, 0x31, 0x35,
    ],
    // FIDO U2F and CTAP.
    &[0xA0, 0x00, 0x00, 0x06, 0x47],
    // PIV.
    &[0xA0, 0x00, 0x00, 0x03, 0x08],
    // OpenPGP.
    &[0xD2, 0x76, 0x00, 0x01, 0x24, 0x01],
    // PKCS#15.
    &[
        0xA0, 0x00, 0x00, 0x00, 0x63, 0x50, 0x4B, 0x43, 0x53, 0x2D, 0x31, 0x35,
    ],
    // SIM and USIM (3GPP).
    &[0xA0, 0x00, 0x00, 0x00, 0x87],
    // SIM (ETSI).
    &[0xA0, 0x00, 0x00, 0x00, 0x09],
];

/// Whether a prompt may allow the application of this AID, complete or partial.
pub fn is_promptable(aid: &[u8]) -> bool {
    // A partial AID may select any application that begins with it.
    !aid.is_empty()
        && NEVER_BY_PROMPT
            .iter()
            .all(|never| !never.starts_with(aid) && !aid.starts_with(never))
}

/// What a user says who may allow applications that no rule is about.
#[derive(Clone, Debug)]
pub enum Consent {
    /// Has allowed these, and can be asked about others.
    Asked(Vec<Aid>),
    /// Has allowed whatever a prompt can allow: automation answers.
    Given,
    /// Has nothing to say.
    Impossible,
}

impl Consent {
    /// Whether the application of this name, which is complete, is allowed.
    fn allows(&self, name: &[u8]) -> bool {
        is_promptable(name)
            && match self {
                Self::Asked(applets) => applets.iter().any(|aid| aid.as_bytes() == name),
                Self::Given => true,
                Self::Impossible => false,
            }
    }

    /// Whether an application is allowed that this AID, complete or partial, may find.
    fn may_select(&self, requested: &[u8]) -> bool {
        is_promptable(requested)
            && match self {
                Self::Asked(applets) => applets
                    .iter()
                    .any(|aid| aid.as_bytes().starts_with(requested)),
                Self::Given => true,
                Self::Impossible => false,
            }
    }

    /// Whether the user can be asked about an application of this name, or one that an AID like this may find.
    fn can_ask(&self, name: &[u8]) -> bool {
        matches!(self, Self::Asked(_)) && is_promptable(name)
    }
}

/// Whose rules decide about an element.
#[derive(Clone, Debug)]
pub enum ElementPolicy<'a> {
    /// The element's own.
    Card(&'a RuleSet),
    /// The device's, because the element has none.
    Device {
        /// The rules.
        rules: &'a RuleSet,
        /// What the user has to say.
        consent: Consent,
    },
    /// Nobody's: the element's own cannot be read.
    Closed,
    /// Nobody's: rules are not enforced.
    NotEnforced,
}

impl ElementPolicy<'_> {
    /// Before SELECT. `requested` is the AID, complete or partial, empty for the issuer security domain, `None` where no
    /// SELECT is sent.
    ///
    /// # Errors
    /// What the page is told.
    pub fn before_select(&self, requested: Option<&[u8]>, app: &AppId) -> Result<(), TokenError> {
        let (rules, consent) = match self {
            Self::Card(rules) => (rules, &Consent::Impossible),
            Self::Device { rules, consent } => (rules, consent),
            Self::Closed => return Err(closed()),
            Self::NotEnforced => return Ok(()),
        };
        let allowed = match requested {
            None => rules.channel_access(Target::Implicit, app).allows_channel(),
            // Which application a partial AID finds shows afterwards.
            Some(aid) => {
                rules.may_select(aid, app) || consent.may_select(aid) || consent.can_ask(aid)
            }
        };
        match self {
            _ if allowed => Ok(()),
            // Then SELECT would fail without saying why, if the application were not there.
            Self::Card(rules) if requested.is_some() && allows_what_has_no_rule(rules, app) => {
                Err(not_there())
            }
            _ => Err(refused()),
        }
    }

    /// After SELECT, the first or the next: what the origin may do with the application of this DF name, if the card
    /// names it.
    ///
    /// # Errors
    /// What the page is told.
    pub fn after_select(
        &self,
        requested: Option<&[u8]>,
        df_name: Option<&Aid>,
        app: &AppId,
    ) -> Result<Access, TokenError> {
        let access = |rules: &RuleSet| match requested {
            None => rules.channel_access(Target::Implicit, app),
            Some(aid) => rules.access_after_select(aid, df_name, app),
        };
        match self {
            Self::Card(rules) => match access(rules) {
                // The issuer security domain is always there.
                Access::Never(denial) if denial.names_app() || requested == Some(&[]) => {
                    Err(refused())
                }
                Access::Never(_) => Err(not_there()),
                access => Ok(access),
            },
            Self::Device { rules, consent } => {
                let mut access = access(rules);
                // Who writes rules for a card without any knows the application by the AID to select it with.
                if let (Access::Never(Denial::Unnamed), Some(aid), None) =
                    (&access, requested, df_name)
                {
                    access = rules.access_as_requested(aid, app);
                }
                let name = df_name.map(Aid::as_bytes).or(requested);
                match access {
                    Access::Never(Denial::NoRule | Denial::Unnamed)
                        if name.is_some_and(|name| consent.allows(name)) =>
                    {
                        Ok(Access::Always)
                    }
                    Access::Never(_) => Err(refused()),
                    access => Ok(access),
                }
            }
            Self::Closed => Err(closed()),
            Self::NotEnforced => Ok(Access::Always),
        }
    }

    /// What a refusal is called in the audit log.
    pub fn refusal(&self) -> &'static str {
        match self {
            Self::Card(_) => "refused by the card's rules",
            Self::Device { .. } | Self::NotEnforced => "refused: no rule of this device allows it",
            Self::Closed => "refused: the card's rules cannot be read",
        }
    }

    /// Whether SELECT would be sent only because the user can be asked about what it finds.
    pub fn asks_before_select(&self, requested: Option<&[u8]>, app: &AppId) -> bool {
        match (self, requested) {
            (Self::Device { rules, consent }, Some(aid)) => {
                consent.can_ask(aid) && !consent.may_select(aid) && !rules.may_select(aid, app)
            }
            _ => false,
        }
    }

    /// Whether the user can be asked about an application that [`Self::after_select`] refuses.
    pub fn can_ask_about(
        &self,
        requested: Option<&[u8]>,
        df_name: Option<&Aid>,
        app: &AppId,
    ) -> bool {
        let (Self::Device { rules, consent }, Some(requested)) = (self, requested) else {
            return false;
        };
        let access = rules.access_after_select(requested, df_name, app);
        matches!(access, Access::Never(Denial::NoRule | Denial::Unnamed))
            && consent.can_ask(df_name.map_or(requested, Aid::as_bytes))
    }
}

/// An AID that no application has: no registration authority gives it to anybody.
pub const NOBODY: Aid = match Aid::new(&[0xFF; Aid::MAX_LENGTH]) {
    Ok(aid) => aid,
    Err(_) => panic!("this has the length of an AID"),
};

/// Whether an origin may use applications without a rule of their own.
fn allows_what_has_no_rule(rules: &RuleSet, app: &AppId) -> bool {
    rules
        .channel_access(Target::Application(NOBODY), app)
        .allows_channel()
}

/// Where no rule allows it.
pub fn refused() -> TokenError {
    TokenError::new(
        ErrorKind::Security,
        "no access rule allows this origin to do that",
    )
}

/// What an application that is not there looks like.
pub fn not_there() -> TokenError {
    TokenError::new(ErrorKind::NoApplication, "the card has no such applet")
}

fn closed() -> TokenError {
    TokenError::new(
        ErrorKind::Security,
        "the access rules of the card cannot be read, so nobody may use it",
    )
}
