/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The rows of the table of limits, once more. Nothing here is taken from the table.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use token_workers::sandbox::{Profile, Step};

use crate::attempts::{MODULE, PCSC_MODULE};

const ALL: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

const MIB: u64 = 1024 * 1024;

/// What the kernel is to say of a process of this kind, where it has no limits before.
fn limit(kind: &str, resource: Resource) -> Option<u64> {
    match (resource, kind) {
        (Resource::Core, _) => Some(0),
        (Resource::Nofile, "broker" | "broker without a store") => Some(2048),
        (Resource::Nofile, MODULE | PCSC_MODULE) => Some(256),
        (Resource::Nofile, _) => Some(64),
        (Resource::As, "broker" | "broker without a store") => Some(1024 * MIB),
        (Resource::As, MODULE | PCSC_MODULE) => Some(2048 * MIB),
        (Resource::As, _) => Some(512 * MIB),
        (Resource::Fsize, "broker" | MODULE | PCSC_MODULE) => Some(64 * MIB),
        _ => None,
    }
}

/// What is not as the documentation says, in a process that takes this step alone.
pub fn wrong(kind: &str) -> Vec<String> {
    const LESS: Rlimit = Rlimit {
        current: Some(16),
        maximum: Some(17),
    };
    let profile = Profile::of(crate::kind(kind, Path::new("/nowhere")));
    let before = ALL.map(|resource| (resource, getrlimit(resource)));
    profile.apply(Step::Limits).expect("limits");
    let mut wrong = Vec::new();
    for (resource, before) in before {
        let after = getrlimit(resource);
        let expected = match limit(kind, resource) {
            Some(limit) => {
                let limit = Some(before.maximum.unwrap_or(u64::MAX).min(limit));
                Rlimit {
                    current: limit,
                    maximum: limit,
                }
            }
            None => before,
        };
        if after != expected {
            wrong.push(format!("{resource:?}: {after:?}"));
        }
    }
    // Less than the table's is not made more.
    setrlimit(Resource::Nofile, LESS).expect("a limit");
    profile.apply(Step::Limits).expect("limits");
    let after = getrlimit(Resource::Nofile).maximum;
    if after != LESS.maximum {
        wrong.push(format!("raised to {after:?}"));
    }
    wrong
}
