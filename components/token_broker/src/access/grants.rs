/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the user, or automation on the user's behalf, has allowed to whom.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use secure_element::channel::Aid;
use token_traits::prompt::GrantId;
use token_traits::{Feature, Origin, PermissionState, PortIdentity};

use crate::reader::ReaderKey;

/// Most grants that are kept, remembered or not.
pub const MAX_GRANTS: usize = 1_000;

/// How often the last use of a grant is noted.
const USE_INTERVAL: Duration = Duration::from_secs(60);

/// Whom a grant is for: an origin in documents of one top-level origin.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Party {
    /// The document's origin.
    pub origin: Origin,
    /// The origin of the document at the top of its frame tree.
    pub top_level_origin: Origin,
}

impl Party {
    /// The party that a document belongs to.
    pub fn of(identity: &PortIdentity) -> Self {
        Self {
            origin: identity.origin.clone(),
            top_level_origin: identity.top_level_origin.clone(),
        }
    }
}

/// The name by which a grant knows a reader: the same whenever the reader is plugged in.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ReaderName {
    /// The name that PC/SC gives it.
    Pcsc(String),
    /// The embedded virtual card with this profile.
    Virtual(String),
}

/// The name by which a grant knows a token with keys: a hash of what the token says of itself.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TokenName(pub [u8; 32]);

/// The name by which a grant knows a key: SHA-256 of its SubjectPublicKeyInfo; for a secret key a hash of where it is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyName(pub [u8; 32]);

/// What a grant is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// To see a reader and to open sessions with it.
    Reader(ReaderName),
    /// To use the application with this DF name, on elements without access rules of their own. Where a card does not name
    /// its application, it is the AID that it was selected with.
    Applet(Aid),
    /// To use the origin's own keys in a token, and to make some.
    Token {
        /// Which.
        token: TokenName,
        /// What its owner called it when the grant was given.
        label: String,
    },
    /// To use a key.
    Key {
        /// The token that it is in.
        token: TokenName,
        /// Which.
        key: KeyName,
        /// What it was called when the grant was given.
        name: String,
        /// What the token's owner called that then.
        label: String,
    },
}

impl Subject {
    /// Whether it is the same thing, whatever it is called.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Token { token, .. }, Self::Token { token: other, .. }) => token == other,
            (
                Self::Key { token, key, .. },
                Self::Key {
                    token: other_token,
                    key: other,
                    ..
                },
            ) => (token, key) == (other_token, other),
            _ => self == other,
        }
    }
}

/// How long a grant lasts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lasts {
    /// Until the user revokes it.
    UntilRevoked,
    /// Until the card in this reader is removed or the party's last document goes.
    WithCard(ReaderKey),
    /// Until this token is removed or the party's last document goes.
    WithToken(TokenName),
}

/// Something that the user has allowed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Whom.
    pub party: Party,
    /// What.
    pub subject: Subject,
    /// For how long.
    pub lasts: Lasts,
    /// Since when.
    pub created: SystemTime,
    /// When it was last used, to the minute.
    pub last_used: Option<SystemTime>,
}

/// Everything that is allowed.
#[derive(Debug, Default)]
pub struct Grants {
    permissions: HashMap<(Party, Feature), PermissionState>,
    grants: BTreeMap<GrantId, Grant>,
    next: i64,
}

impl Grants {
    /// Takes what was remembered. Ids that are given from now on are new.
    pub fn restore(&mut self, grants: impl IntoIterator<Item = (GrantId, Grant)>) {
        for (id, grant) in grants.into_iter().take(MAX_GRANTS) {
            self.next = self.next.max(id.0.saturating_add(1));
            self.grants.insert(id, grant);
        }
    }

    /// Automation answers for the user.
    pub fn set_permission(&mut self, party: Party, feature: Feature, state: PermissionState) {
        if state == PermissionState::Prompt {
            self.permissions.remove(&(party, feature));
        } else {
            self.permissions.insert((party, feature), state);
        }
    }

    /// What automation has answered: [`PermissionState::Prompt`] if nothing.
    pub fn permission(&self, party: &Party, feature: Feature) -> PermissionState {
        self.permissions
            .get(&(party.clone(), feature))
            .copied()
            .unwrap_or(PermissionState::Prompt)
    }

    /// What automation has answered, to whom.
    pub fn permissions(&self) -> impl Iterator<Item = (&Party, Feature, PermissionState)> {
        self.permissions
            .iter()
            .map(|((party, feature), state)| (party, *feature, *state))
    }

    /// All grants.
    pub fn iter(&self) -> impl Iterator<Item = (GrantId, &Grant)> {
        self.grants.iter().map(|(id, grant)| (*id, grant))
    }

    /// Adds a grant, or prolongs the one of the same party for the same subject. `None` if there are too many.
    pub fn add(&mut self, grant: Grant) -> Option<GrantId> {
        let known = self
            .grants
            .iter_mut()
            .find(|(_, known)| known.party == grant.party && known.subject.is_same(&grant.subject));
        if let Some((id, known)) = known {
            if known.lasts != Lasts::UntilRevoked {
                known.lasts = grant.lasts;
            }
            return Some(*id);
        }
        if self.grants.len() >= MAX_GRANTS {
            return None;
        }
        let id = GrantId(self.next);
        self.next = self.next.checked_add(1)?;
        self.grants.insert(id, grant);
        Some(id)
    }

    /// Ends a grant. `None` if there is no such.
    pub fn remove(&mut self, id: GrantId) -> Option<Grant> {
        self.grants.remove(&id)
    }

    /// A card has gone, and what was allowed for as long as it is there.
    pub fn card_gone(&mut self, reader: ReaderKey) {
        self.grants
            .retain(|_, grant| grant.lasts != Lasts::WithCard(reader));
    }

    /// A token has gone, and what was allowed for as long as it is there.
    pub fn token_gone(&mut self, token: &TokenName) {
        self.grants
            .retain(|_, grant| grant.lasts != Lasts::WithToken(*token));
    }

    /// The last document of a party has gone, and what was allowed for as long as there is one.
    pub fn party_gone(&mut self, party: &Party) {
        self.grants
            .retain(|_, grant| grant.party != *party || grant.lasts == Lasts::UntilRevoked);
    }

    /// The grant by which a party may see a reader.
    pub fn of_reader(&self, party: &Party, reader: &ReaderName) -> Option<GrantId> {
        self.of(
            party,
            |subject| matches!(subject, Subject::Reader(name) if name == reader),
        )
    }

    /// The grant by which a party may use an application.
    pub fn of_applet(&self, party: &Party, applet: &[u8]) -> Option<GrantId> {
        self.of(
            party,
            |subject| matches!(subject, Subject::Applet(aid) if aid.as_bytes() == applet),
        )
    }

    /// The grant by which a party may use a token.
    pub fn of_token(&self, party: &Party, wanted: &TokenName) -> Option<GrantId> {
        self.of(
            party,
            |subject| matches!(subject, Subject::Token { token, .. } if token == wanted),
        )
    }

    /// The grant by which a party may use a key.
    pub fn of_key(&self, party: &Party, token: &TokenName, key: &KeyName) -> Option<GrantId> {
        self.of(party, |subject| {
            matches!(subject, Subject::Key { token: in_token, key: wanted, .. }
                if (in_token, wanted) == (token, key))
        })
    }

    /// Whether a party may use any key that is in a token.
    pub fn has_key_in(&self, party: &Party, wanted: &TokenName) -> bool {
        self.of(
            party,
            |subject| matches!(subject, Subject::Key { token, .. } if token == wanted),
        )
        .is_some()
    }

    /// Whether a party may use any key or token, there or not.
    pub fn has_key_or_token(&self, party: &Party) -> bool {
        self.of(party, |subject| {
            matches!(subject, Subject::Key { .. } | Subject::Token { .. })
        })
        .is_some()
    }

    /// Whether a party may see any reader, plugged in or not.
    pub fn has_reader(&self, party: &Party) -> bool {
        self.of(party, |subject| matches!(subject, Subject::Reader(_)))
            .is_some()
    }

    /// The applications that a party may use.
    pub fn applets(&self, party: &Party) -> Vec<Aid> {
        self.grants
            .values()
            .filter(|grant| grant.party == *party)
            .filter_map(|grant| match grant.subject {
                Subject::Applet(aid) => Some(aid),
                Subject::Reader(_) | Subject::Token { .. } | Subject::Key { .. } => None,
            })
            .collect()
    }

    /// Notes that a grant is used. Says whether that is worth remembering.
    pub fn used(&mut self, id: GrantId, now: SystemTime) -> bool {
        let Some(grant) = self.grants.get_mut(&id) else {
            return false;
        };
        let is_news = grant.last_used.is_none_or(|last| {
            // A clock that was set back makes everything new.
            now.duration_since(last).unwrap_or(Duration::MAX) >= USE_INTERVAL
        });
        if is_news {
            grant.last_used = Some(now);
        }
        is_news && grant.lasts == Lasts::UntilRevoked
    }

    fn of(&self, party: &Party, is_wanted: impl Fn(&Subject) -> bool) -> Option<GrantId> {
        self.grants
            .iter()
            .find(|(_, grant)| grant.party == *party && is_wanted(&grant.subject))
            .map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANK: &str = "https://bank.example";
    const SHOP: &str = "https://shop.example";

    fn party(origin: &str, top_level_origin: &str) -> Party {
        Party {
            origin: Origin::new(origin).unwrap(),
            top_level_origin: Origin::new(top_level_origin).unwrap(),
        }
    }

    fn reader(name: &str) -> ReaderName {
        ReaderName::Pcsc(name.to_owned())
    }

    fn grant(party: &Party, subject: Subject, lasts: Lasts) -> Grant {
        Grant {
            party: party.clone(),
            subject,
            lasts,
            created: SystemTime::UNIX_EPOCH,
            last_used: None,
        }
    }

    const CARD: Lasts = Lasts::WithCard(ReaderKey(1));

    #[test]
    fn a_grant_is_for_one_pair_of_origins_and_one_reader() {
        let mut grants = Grants::default();
        let bank = party(BANK, BANK);
        let subject = Subject::Reader(reader("A"));
        let id = grants.add(grant(&bank, subject, CARD)).unwrap();
        assert_eq!(grants.of_reader(&bank, &reader("A")), Some(id));
        assert_eq!(grants.of_reader(&bank, &reader("B")), None);
        let virtual_card = ReaderName::Virtual("A".to_owned());
        assert_eq!(grants.of_reader(&bank, &virtual_card), None);
        for other in [party(BANK, SHOP), party(SHOP, BANK), party(SHOP, SHOP)] {
            assert_eq!(grants.of_reader(&other, &reader("A")), None);
            assert!(!grants.has_reader(&other));
        }
        assert!(grants.has_reader(&bank));
        assert!(grants.remove(id).is_some());
        assert!(!grants.has_reader(&bank));
        assert!(grants.remove(id).is_none());
    }

    #[test]
    fn an_application_is_not_a_reader() {
        let mut grants = Grants::default();
        let bank = party(BANK, BANK);
        let aid = Aid::new(&[0xA0, 0, 0, 0, 1]).unwrap();
        let id = grants
            .add(grant(&bank, Subject::Applet(aid), CARD))
            .unwrap();
        assert!(!grants.has_reader(&bank));
        assert_eq!(grants.of_applet(&bank, aid.as_bytes()), Some(id));
        assert_eq!(grants.of_applet(&bank, &aid.as_bytes()[..4]), None);
        assert_eq!(grants.applets(&bank), [aid]);
        assert!(grants.applets(&party(BANK, SHOP)).is_empty());
    }

    #[test]
    fn what_is_not_remembered_ends_with_the_card_or_the_last_document() {
        let bank = party(BANK, BANK);
        let shop = party(SHOP, SHOP);
        let fill = || {
            let mut grants = Grants::default();
            let mut add = |party: &Party, name: &str, lasts| {
                let subject = Subject::Reader(reader(name));
                grants.add(grant(party, subject, lasts)).unwrap();
            };
            add(&bank, "A", CARD);
            add(&bank, "B", Lasts::WithCard(ReaderKey(2)));
            add(&bank, "C", Lasts::UntilRevoked);
            add(&shop, "A", CARD);
            grants
        };
        let left = |grants: &Grants| grants.iter().count();
        let mut grants = fill();
        grants.card_gone(ReaderKey(1));
        assert_eq!(left(&grants), 2);
        assert!(grants.of_reader(&bank, &reader("A")).is_none());
        assert!(grants.of_reader(&bank, &reader("B")).is_some());
        let mut grants = fill();
        grants.party_gone(&bank);
        assert_eq!(left(&grants), 2);
        assert!(grants.of_reader(&bank, &reader("C")).is_some());
        assert!(grants.of_reader(&shop, &reader("A")).is_some());
    }

    #[test]
    fn the_same_again_is_prolonged_and_never_shortened() {
        let mut grants = Grants::default();
        let bank = party(BANK, BANK);
        let subject = || Subject::Reader(reader("A"));
        let id = grants.add(grant(&bank, subject(), CARD));
        assert_eq!(grants.add(grant(&bank, subject(), Lasts::UntilRevoked)), id);
        assert_eq!(grants.add(grant(&bank, subject(), CARD)), id);
        grants.party_gone(&bank);
        assert!(grants.has_reader(&bank));
    }

    #[test]
    fn there_are_not_too_many_and_ids_are_new() {
        let mut grants = Grants::default();
        let bank = party(BANK, BANK);
        let named =
            |number: usize| grant(&bank, Subject::Reader(reader(&number.to_string())), CARD);
        grants.restore([(GrantId(41), named(0))]);
        assert_eq!(grants.add(named(1)), Some(GrantId(42)));
        for number in 2..MAX_GRANTS {
            assert!(grants.add(named(number)).is_some());
        }
        assert_eq!(grants.add(named(MAX_GRANTS)), None);
        assert_eq!(grants.add(named(1)), Some(GrantId(42)));

        let mut grants = Grants::default();
        grants.restore([(GrantId(i64::MAX), named(0))]);
        assert_eq!(grants.add(named(1)), None);
    }

    #[test]
    fn uses_are_noted_once_a_minute() {
        let mut grants = Grants::default();
        let bank = party(BANK, BANK);
        let subject = Subject::Reader(reader("A"));
        let id = grants
            .add(grant(&bank, subject, Lasts::UntilRevoked))
            .unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (seconds, is_news) in [
            (100, true),
            (159, false),
            (160, true),
            (50, true),
            (51, false),
        ] {
            assert_eq!(grants.used(id, at(seconds)), is_news, "{seconds}");
        }
        assert!(!grants.used(GrantId(99), at(1000)));
        let applet = Subject::Applet(Aid::new(&[1; 5]).unwrap());
        let id = grants.add(grant(&bank, applet, CARD)).unwrap();
        assert!(!grants.used(id, at(1000)), "nothing to remember");
        assert!(
            grants
                .iter()
                .any(|(_, grant)| grant.last_used == Some(at(1000)))
        );
    }

    #[test]
    fn automation_answers_until_it_asks_again() {
        let mut grants = Grants::default();
        let bank = party(BANK, BANK);
        let state = |grants: &Grants| grants.permission(&bank, Feature::SecureElement);
        assert_eq!(state(&grants), PermissionState::Prompt);
        for next in [
            PermissionState::Granted,
            PermissionState::Denied,
            PermissionState::Prompt,
        ] {
            grants.set_permission(bank.clone(), Feature::SecureElement, next);
            assert_eq!(state(&grants), next);
            assert_eq!(
                grants.permission(&bank, Feature::TokenKeys),
                PermissionState::Prompt
            );
            assert_eq!(
                grants.permission(&party(BANK, SHOP), Feature::SecureElement),
                PermissionState::Prompt
            );
        }
        assert_eq!(grants.permissions().count(), 0);
    }
}
