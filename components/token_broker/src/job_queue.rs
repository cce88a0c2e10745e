/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The jobs that wait for a reader. Event loops take turns: one that asks for a lot at once is served in the order in which
//! it has asked, but others wait for one command of it only.

use std::collections::VecDeque;

use crate::reader::Job;

/// Most jobs that may wait for one reader, from all documents together.
const MAX_JOBS: usize = 4096;
/// Most of them that may be of one event loop.
pub(crate) const MAX_JOBS_OF_EVENT_LOOP: usize = MAX_JOBS / 4;

#[derive(Debug)]
struct Waiting {
    /// In whose turn it is. Never goes down from one job to the next, and up with each that a page asks for of one event loop.
    round: u64,
    event_loop: Option<u64>,
    job: Job,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct JobQueue {
    jobs: VecDeque<Waiting>,
}

impl JobQueue {
    /// Whether what a page of that event loop asks for can wait as well.
    pub(crate) fn has_room(&self, event_loop: u64) -> bool {
        let of_loop = |job: &&Waiting| job.event_loop == Some(event_loop);
        self.jobs.len() < MAX_JOBS
            && self.jobs.iter().filter(of_loop).count() < MAX_JOBS_OF_EVENT_LOOP
    }

    /// Adds a job after all others of the event loop.
    pub(crate) fn push(&mut self, event_loop: u64, job: Job) {
        let event_loop = Some(event_loop);
        let mut of_loop = self.jobs.iter().rev();
        let last = of_loop.find(|other| other.event_loop == event_loop);
        let round = match (last, &job) {
            (Some(last), Job::Asked { .. } | Job::Keys(_)) => last.round + 1,
            // What ends something takes nobody's turn.
            (Some(last), Job::CloseChannel(_) | Job::Barrier(_)) => last.round,
            (None, _) => self.round(),
        };
        let place = self.jobs.partition_point(|other| other.round <= round);
        self.jobs.insert(
            place,
            Waiting {
                round,
                event_loop,
                job,
            },
        );
    }

    /// Adds a job before all others.
    pub(crate) fn push_front(&mut self, job: Job) {
        let round = self.round();
        self.jobs.push_front(Waiting {
            round,
            event_loop: None,
            job,
        });
    }

    fn round(&self) -> u64 {
        self.jobs.front().map_or(0, |first| first.round)
    }

    pub(crate) fn front(&self) -> Option<&Job> {
        self.jobs.front().map(|waiting| &waiting.job)
    }

    pub(crate) fn pop_front(&mut self) -> Option<Job> {
        self.jobs.pop_front().map(|waiting| waiting.job)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().map(|waiting| &waiting.job)
    }

    pub(crate) fn into_jobs(self) -> impl Iterator<Item = Job> {
        self.jobs.into_iter().map(|waiting| waiting.job)
    }

    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&Job) -> bool) {
        self.jobs.retain(|waiting| keeps(&waiting.job));
    }

    /// Takes the jobs that `which` says.
    pub(crate) fn take(&mut self, which: impl Fn(&Job) -> bool) -> Vec<Job> {
        let (taken, rest) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition::<VecDeque<_>, _>(|waiting| which(&waiting.job));
        self.jobs = rest;
        taken.into_iter().map(|waiting| waiting.job).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;
    use token_traits::PortId;
    use token_traits::port::RequestId;

    use super::*;
    use crate::reader::{GroupId, Task, Ticket};

    fn asked(event_loop: u64, request: u64) -> Job {
        Job::Asked {
            ticket: Ticket {
                port: PortId(event_loop),
                request: RequestId(request),
            },
            deadline: Instant::now(),
            task: Task::OpenSession,
        }
    }

    /// The event loop of the next job, and what it is called.
    fn next(queue: &mut JobQueue) -> Option<(u64, u64)> {
        match queue.pop_front()? {
            Job::Asked { ticket, .. } => Some((ticket.port.0, ticket.request.0)),
            Job::Barrier(group) => Some((0, group.0)),
            Job::CloseChannel(_) | Job::Keys(_) => panic!("nobody has pushed it"),
        }
    }

    #[test]
    fn who_asks_for_a_lot_does_not_keep_others_waiting() {
        let mut queue = JobQueue::default();
        for request in 0..100 {
            queue.push(1, asked(1, request));
        }
        queue.push(2, asked(2, 0));
        queue.push(2, asked(2, 1));
        queue.push(3, asked(3, 0));
        let order: Vec<_> = (0..6).map_while(|_| next(&mut queue)).collect();
        assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 2)]);
        // Nor has who comes later to wait for those turns.
        queue.push(2, asked(2, 2));
        assert_eq!(next(&mut queue), Some((1, 3)));
        assert_eq!(next(&mut queue), Some((2, 2)));
    }

    #[test]
    fn one_event_loop_does_not_fill_it() {
        let mut queue = JobQueue::default();
        for event_loop in 0..4 {
            for request in 0..MAX_JOBS_OF_EVENT_LOOP as u64 {
                assert!(queue.has_room(event_loop));
                queue.push(event_loop, asked(event_loop, request));
            }
            assert!(!queue.has_room(event_loop));
        }
        assert!(!queue.has_room(9));
        queue.pop_front();
        assert!(queue.has_room(9));
    }

    proptest! {
        #[test]
        fn what_one_event_loop_asks_for_stays_in_order(
            steps in proptest::collection::vec((0..5_u64, 0..6_u8), 0..200),
        ) {
            let mut queue = JobQueue::default();
            let mut pushed = 0;
            let mut first_of = [0; 5];
            for (event_loop, what) in steps {
                pushed += 1;
                match what {
                    0 => {
                        if let Some((of, number)) = next(&mut queue) {
                            let of = of as usize;
                            prop_assert!(of == 0 || first_of[of] < number);
                            first_of[of] = number;
                        }
                    }
                    1 => queue.push_front(Job::Barrier(GroupId(pushed))),
                    2 => queue.push(event_loop.max(1), Job::Barrier(GroupId(pushed))),
                    _ => queue.push(event_loop.max(1), asked(event_loop.max(1), pushed)),
                }
                let rounds: Vec<u64> = queue.jobs.iter().map(|waiting| waiting.round).collect();
                prop_assert!(rounds.is_sorted());
                for event_loop in 1..5 {
                    let of_loop = queue.jobs.iter().filter(|waiting| waiting.event_loop == Some(event_loop));
                    let numbers: Vec<u64> = of_loop
                        .map(|waiting| match &waiting.job {
                            Job::Asked { ticket, .. } => ticket.request.0,
                            Job::Barrier(group) => group.0,
                            Job::CloseChannel(_) | Job::Keys(_) => 0,
                        })
                        .collect();
                    prop_assert!(numbers.is_sorted());
                }
            }
        }
    }
}
