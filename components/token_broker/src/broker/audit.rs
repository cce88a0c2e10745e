/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the page of tokens shows: the audit log, which is the user's own, and what is allowed to whom.

use secure_element::access::{AidRef, ApduRule};
use token_traits::prompt::{GrantInfo, GrantKind};

use super::*;
use crate::access::grants::{Grant, Lasts, ReaderName, Subject};
use crate::store::AUDIT_SHOWN;

/// The same again within this time is not noted again, so that no page can fill the log.
const QUIET: Duration = Duration::from_secs(60);
/// How long after it was asked for an overview somebody is taken to look at it.
const ATTENTION: Duration = Duration::from_secs(10);
/// Most rules of the device that are listed.
const MAX_LISTED_RULES: usize = 500;

impl Broker {
    /// The time of day. A clock that is set while the broker runs makes no difference.
    pub(super) fn time(&self, now: Instant) -> SystemTime {
        let (instant, time) = self.started.unwrap_or((now, SystemTime::UNIX_EPOCH));
        time + now.saturating_duration_since(instant)
    }

    /// Adds to the audit log.
    pub(super) fn note(
        &mut self,
        origin: &Origin,
        reader: &str,
        applet: Option<&[u8]>,
        decision: &str,
        now: Instant,
    ) {
        let entry = AuditEntry {
            time: self.time(now),
            origin: origin.clone(),
            reader: reader.to_owned(),
            applet: applet.map(<[u8]>::to_vec),
            decision: decision.to_owned(),
        };
        let is_repeated = self.audit.iter().rev().any(|earlier| {
            // What an earlier broker has noted may be of a time that is still to come, if the clock was set back.
            let age = entry.time.duration_since(earlier.time);
            age.is_ok_and(|age| age < QUIET)
                && (&earlier.origin, &earlier.reader) == (&entry.origin, &entry.reader)
                && (&earlier.applet, &earlier.decision) == (&entry.applet, &entry.decision)
        });
        if is_repeated {
            return;
        }
        if self.audit.len() >= AUDIT_SHOWN {
            self.audit.pop_front();
        }
        self.audit.push_back(entry.clone());
        self.outputs.push(Output::Store(Write::Audit(entry)));
    }

    /// Notes what became of a document's wish, and that what it was allowed was used.
    pub(super) fn note_use(
        &mut self,
        port: PortId,
        reader: ReaderKey,
        applet: Option<Vec<u8>>,
        what: &str,
        now: Instant,
    ) {
        let (Some(port), Some(reader)) = (self.ports.get(&port), self.readers.get(&reader)) else {
            return;
        };
        let by = [
            self.grants.of_reader(&port.party, &reader.name()),
            applet
                .as_deref()
                .and_then(|applet| self.grants.of_applet(&port.party, applet)),
        ];
        let origin = port.party.origin.clone();
        let reader = reader.display_name.clone();
        let time = self.time(now);
        for grant in by.into_iter().flatten() {
            if self.grants.used(grant, time) {
                self.outputs.push(Output::Store(Write::Used(grant, time)));
            }
        }
        self.note(&origin, &reader, applet.as_deref(), what, now);
    }

    /// Notes that the user has ended a grant.
    pub(super) fn note_revoked(&mut self, grant: &Grant, now: Instant) {
        let (reader, applet) = match &grant.subject {
            Subject::Reader(name) => (self.reader_title(name), None),
            Subject::Applet(aid) => (String::new(), Some(aid.as_bytes())),
            Subject::Token { label, .. } | Subject::Key { label, .. } => (label.clone(), None),
        };
        let origin = &grant.party.origin;
        self.note(origin, &reader, applet, "revoked by the user", now);
    }

    /// How a reader is called that may not be there.
    fn reader_title(&self, name: &ReaderName) -> String {
        let known = self.readers.values().find(|reader| reader.name() == *name);
        match (known, name) {
            (Some(reader), _) => reader.display_name.clone(),
            (None, ReaderName::Pcsc(name)) => display_name(name),
            (None, ReaderName::Virtual(_)) => EMBEDDED_CARD.to_owned(),
        }
    }

    /// Answers the page of tokens.
    pub(super) fn overview(&mut self, id: u64, now: Instant) {
        self.overview_until = Some(now + ATTENTION);
        self.want_monitor(now);
        let automation = self
            .grants
            .permissions()
            .map(|(party, _, state)| GrantInfo {
                id: None,
                origin: Some(party.origin.clone()),
                top_level_origin: Some(party.top_level_origin.clone()),
                what: GrantKind::Automation {
                    allowed: state == PermissionState::Granted,
                },
                remembered: false,
                created: None,
                last_used: None,
            });
        let by_the_user = self.grants.iter().map(|(id, grant)| GrantInfo {
            id: Some(id),
            origin: Some(grant.party.origin.clone()),
            top_level_origin: Some(grant.party.top_level_origin.clone()),
            what: match &grant.subject {
                Subject::Reader(name) => GrantKind::Reader {
                    reader: self.reader_title(name),
                },
                Subject::Applet(aid) => GrantKind::Applet {
                    applet: Some(aid.as_bytes().to_vec()),
                    allowed: true,
                },
                Subject::Token { label, .. } => GrantKind::Token {
                    token: label.clone(),
                },
                Subject::Key { name, label, .. } => GrantKind::Key {
                    name: name.clone(),
                    token: label.clone(),
                },
            },
            remembered: grant.lasts == Lasts::UntilRevoked,
            created: Some(grant.created),
            last_used: grant.last_used,
        });
        let of_the_device = self
            .listed_rules
            .rules
            .iter()
            .take(MAX_LISTED_RULES)
            .map(|rule| GrantInfo {
                id: None,
                origin: rule.origin.clone(),
                top_level_origin: None,
                what: GrantKind::Applet {
                    applet: match rule.aid {
                        AidRef::All => None,
                        AidRef::Implicit => Some(Vec::new()),
                        AidRef::Aid(aid) => Some(aid.as_bytes().to_vec()),
                    },
                    allowed: rule.apdu != ApduRule::Never,
                },
                remembered: true,
                created: None,
                last_used: None,
            });
        let overview = Overview {
            readers: self
                .prompt_readers()
                .into_iter()
                .map(|(_, reader)| reader)
                .collect(),
            grants: by_the_user.chain(automation).chain(of_the_device).collect(),
            audit: self.audit.iter().rev().cloned().collect(),
            problem: self.problem.clone(),
        };
        self.outputs.push(Output::Overview(id, overview));
    }
}
