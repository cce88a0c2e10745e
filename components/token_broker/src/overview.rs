/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The page of tokens shows more than one message to the main process can hold.

use std::collections::VecDeque;

use serde::Serialize;
use token_traits::Frame;
use token_traits::prompt::Overview;
use token_traits::wire::MAX_FRAME_LENGTH;

/// What the items of a part may come to, in bytes: there is room for what surrounds them.
const MAX_PART: usize = MAX_FRAME_LENGTH - 4096;

/// Cuts an overview into parts that fit into frames, at least one. Lists keep their order.
pub(crate) fn parts(overview: Overview) -> VecDeque<Overview> {
    let first = Overview {
        problem: overview.problem,
        ..Overview::default()
    };
    let mut parts = Parts {
        parts: [first].into(),
        used: 0,
    };
    for reader in overview.readers {
        parts.add(reader, |part| &mut part.readers);
    }
    for grant in overview.grants {
        parts.add(grant, |part| &mut part.grants);
    }
    for entry in overview.audit {
        parts.add(entry, |part| &mut part.audit);
    }
    parts.parts
}

struct Parts {
    parts: VecDeque<Overview>,
    used: usize,
}

impl Parts {
    fn add<T: Serialize>(&mut self, item: T, list: impl FnOnce(&mut Overview) -> &mut Vec<T>) {
        // Nothing that is remembered is so long.
        let Ok(length) = Frame::encode(&item).map(|frame| frame.encoded_length()) else {
            return;
        };
        if self.used + length > MAX_PART {
            self.parts.push_back(Overview::default());
            self.used = 0;
        }
        self.used += length;
        if let Some(part) = self.parts.back_mut() {
            list(part).push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use token_traits::Origin;
    use token_traits::control::FromBroker;
    use token_traits::prompt::{AuditEntry, GrantId, GrantInfo, GrantKind};

    use super::*;
    use crate::access::grants::MAX_GRANTS;
    use crate::store::AUDIT_SHOWN;

    /// As long as an origin can be.
    fn origin() -> Origin {
        Origin::new(&format!("https://{}.example", "a".repeat(490))).unwrap()
    }

    /// As long as names can be, in characters of four bytes.
    fn name() -> String {
        "\u{10000}".repeat(token_traits::prompt::MAX_NAME_LENGTH)
    }

    #[test]
    fn the_longest_overview_arrives_in_order() {
        let grant = |id| GrantInfo {
            id: Some(GrantId(id)),
            origin: Some(origin()),
            top_level_origin: Some(origin()),
            what: GrantKind::Reader { reader: name() },
            remembered: true,
            created: Some(SystemTime::now()),
            last_used: Some(SystemTime::now()),
        };
        let entry = |applet: usize| AuditEntry {
            time: SystemTime::now(),
            origin: origin(),
            reader: name(),
            applet: Some(applet.to_be_bytes().to_vec()),
            decision: name(),
        };
        let overview = Overview {
            readers: Vec::new(),
            grants: (0..MAX_GRANTS as i64).map(grant).collect(),
            audit: (0..AUDIT_SHOWN).map(entry).collect(),
            problem: Some("a problem".into()),
        };
        let mut whole = Overview::default();
        let mut parts = parts(overview.clone());
        // The main process takes no more.
        assert!(parts.len() < 128, "{}", parts.len());
        while let Some(part) = parts.pop_front() {
            let is_last = parts.is_empty();
            let message = FromBroker::Overview {
                id: u64::MAX,
                part,
                is_last,
            };
            let frame = Frame::encode(&message).expect("a frame");
            let Ok(FromBroker::Overview { part, .. }) = frame.decode() else {
                panic!("it is something else");
            };
            whole.grants.extend(part.grants);
            whole.audit.extend(part.audit);
            whole.problem = part.problem.or(whole.problem);
        }
        assert_eq!(whole, overview);
    }

    #[test]
    fn an_empty_overview_is_one_part() {
        assert_eq!(parts(Overview::default()), [Overview::default()]);
    }
}
