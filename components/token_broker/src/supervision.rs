/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! When a worker is started, and again after it has ended.

use std::time::{Duration, Instant};

use token_traits::control::{GOOD_LIFE, WorkerId, WorkerKind, restart_pause};

/// How long the main process may take to start a worker or to say that it could not. It gives up by itself before that.
const START_LIMIT: Duration = Duration::from_secs(15);

/// The place of one worker, which may be empty.
#[derive(Debug)]
pub(crate) struct Slot {
    kind: WorkerKind,
    state: State,
    /// Ends in a row, without a good life in between.
    ends: u32,
    /// Not to be started before.
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Empty,
    Starting { worker: WorkerId, until: Instant },
    Ready { worker: WorkerId, since: Instant },
}

/// What became of asking for a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wanted {
    /// It is there.
    Ready(WorkerId),
    /// The main process is to be asked to start it, under this name.
    Start(WorkerId),
    /// It will come: it is being started, or has to wait first.
    Later,
}

impl Slot {
    pub(crate) fn new(kind: WorkerKind) -> Self {
        Self {
            kind,
            state: State::Empty,
            ends: 0,
            not_before: None,
        }
    }

    pub(crate) fn kind(&self) -> &WorkerKind {
        &self.kind
    }

    /// The worker that is there or on its way.
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        match self.state {
            State::Empty => None,
            State::Starting { worker, .. } | State::Ready { worker, .. } => Some(worker),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// Asks for the worker. `next` is the id of the next worker, and goes up if it is taken.
    pub(crate) fn want(&mut self, now: Instant, next: &mut u64) -> Wanted {
        match self.state {
            State::Ready { worker, .. } => Wanted::Ready(worker),
            State::Starting { .. } => Wanted::Later,
            State::Empty if self.not_before.is_some_and(|time| now < time) => Wanted::Later,
            State::Empty => {
                let worker = WorkerId(*next);
                *next += 1;
                self.state = State::Starting {
                    worker,
                    until: now + START_LIMIT,
                };
                Wanted::Start(worker)
            }
        }
    }

    /// The worker has reported.
    pub(crate) fn started(&mut self, now: Instant) {
        if let State::Starting { worker, .. } = self.state {
            self.state = State::Ready { worker, since: now };
        }
    }

    /// The worker has ended or is being killed.
    pub(crate) fn ended(&mut self, now: Instant) {
        if let State::Ready { since, .. } = self.state
            && now.saturating_duration_since(since) >= GOOD_LIFE
        {
            self.ends = 0;
        }
        self.state = State::Empty;
        self.ends = self.ends.saturating_add(1);
        let pause = restart_pause(self.ends);
        self.not_before = (!pause.is_zero()).then(|| now + pause);
    }

    /// The worker is let go because nobody needs it.
    pub(crate) fn released(&mut self) {
        self.state = State::Empty;
    }

    /// When something is due by itself: giving up on a start, or a start that had to wait and is still `wanted`.
    pub(crate) fn deadline(&self, wanted: bool) -> Option<Instant> {
        match self.state {
            State::Starting { until, .. } => Some(until),
            State::Empty if wanted => self.not_before,
            State::Empty | State::Ready { .. } => None,
        }
    }

    /// Whether the start has taken too long.
    pub(crate) fn start_is_overdue(&self, now: Instant) -> bool {
        matches!(self.state, State::Starting { until, .. } if until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_longer_and_longer_until_one_lives_well() {
        let mut now = Instant::now();
        let mut next = 0;
        let mut slot = Slot::new(WorkerKind::PcscMonitor);
        let mut pauses = vec![];
        for _ in 0..9 {
            assert!(matches!(slot.want(now, &mut next), Wanted::Start(_)));
            assert_eq!(slot.want(now, &mut next), Wanted::Later);
            slot.started(now);
            assert!(matches!(slot.want(now, &mut next), Wanted::Ready(_)));
            slot.ended(now);
            let pause = slot
                .deadline(true)
                .map_or(Duration::ZERO, |time| time - now);
            if !pause.is_zero() {
                let early = now + pause - Duration::from_millis(1);
                assert_eq!(slot.want(early, &mut next), Wanted::Later);
            }
            assert_eq!(slot.deadline(false), None);
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses, [0, 250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);

        assert!(matches!(slot.want(now, &mut next), Wanted::Start(_)));
        slot.started(now);
        now += GOOD_LIFE;
        slot.ended(now);
        assert!(matches!(slot.want(now, &mut next), Wanted::Start(_)));
    }

    #[test]
    fn a_start_that_hangs_is_overdue() {
        let now = Instant::now();
        let mut slot = Slot::new(WorkerKind::PcscMonitor);
        slot.want(now, &mut 0);
        assert!(!slot.start_is_overdue(now));
        let deadline = slot.deadline(false).unwrap();
        assert!(slot.start_is_overdue(deadline));
    }
}
