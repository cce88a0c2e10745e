/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Whether the user has just done something in a webview, so that a prompt may be shown there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long something that the user did counts. HTML's "transient activation duration" is for the browser to choose: "at
/// most a few seconds"; other engines take five, too.
/// <https://html.spec.whatwg.org/multipage/#transient-activation-duration>
pub(crate) const ACTIVATION_PERIOD: Duration = Duration::from_secs(5);

/// When the user last did something, by webview, unless a prompt has used it up. Made of what the main process itself has
/// seen, never of what a page says.
#[derive(Debug, Default)]
pub(crate) struct Activations(HashMap<u64, Instant>);

impl Activations {
    /// The user has done something.
    pub(crate) fn note(&mut self, webview: u64, now: Instant) {
        self.0.retain(|_, time| is_recent(*time, now));
        self.0.insert(webview, now);
    }

    /// Whether a prompt may be shown now.
    pub(crate) fn is_active(&self, webview: u64, now: Instant) -> bool {
        self.0
            .get(&webview)
            .is_some_and(|time| is_recent(*time, now))
    }

    /// Whether a prompt may be shown now, which uses up what the user did.
    pub(crate) fn consume(&mut self, webview: u64, now: Instant) -> bool {
        self.0
            .remove(&webview)
            .is_some_and(|time| is_recent(time, now))
    }

    /// What the user did there counts no longer.
    pub(crate) fn forget(&mut self, webview: u64) {
        self.0.remove(&webview);
    }
}

fn is_recent(time: Instant, now: Instant) -> bool {
    now.saturating_duration_since(time) < ACTIVATION_PERIOD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_prompt_within_the_period() {
        let (mut activations, start) = (Activations::default(), Instant::now());
        assert!(!activations.consume(1, start));
        activations.note(1, start);
        let almost = start + ACTIVATION_PERIOD - Duration::from_millis(1);
        assert!(activations.is_active(1, almost) && !activations.is_active(2, almost));
        assert!(activations.is_active(1, almost), "looking uses nothing up");
        assert!(!activations.is_active(1, start + ACTIVATION_PERIOD));
        assert!(activations.consume(1, almost));
        assert!(!activations.consume(1, almost) && !activations.is_active(1, almost));
        activations.note(1, start);
        assert!(!activations.consume(1, start + ACTIVATION_PERIOD));
        activations.note(1, start);
        activations.forget(1);
        assert!(!activations.is_active(1, start));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (mut activations, start) = (Activations::default(), Instant::now());
        for webview in 0..1000 {
            activations.note(webview, start + ACTIVATION_PERIOD * webview as u32);
        }
        assert_eq!(activations.0.len(), 1);
    }
}
