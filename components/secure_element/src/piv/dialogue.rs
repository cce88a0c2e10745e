/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A course of commands that does no input or output.
//!
//! It is written as an asynchronous function that sends one command after the other, and driven by whoever has the card:
//! [`Step::Send`] says what to send, [`Dialogue::receive`] takes what came back. Nothing else may be awaited in it.
//!
//! A card cannot make it go on for ever: see [`MAX_COMMANDS`].

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Card, PivError};
use crate::apdu::{CommandApdu, ResponseApdu};
use crate::class_byte::ChannelNumber;

/// Most commands of a dialogue. The longest course looks at 24 certificates of 16 KiB, each of which takes 65.
pub const MAX_COMMANDS: usize = 2400;

/// What to do next.
pub enum Step<T> {
    /// Send the command and give the dialogue what comes back.
    Send(Dialogue<T>, CommandApdu),
    /// The outcome.
    Done(Result<T, PivError>),
}

/// A course of commands that waits for a response.
pub struct Dialogue<T> {
    course: Pin<Box<dyn Future<Output = Result<T, PivError>> + Send>>,
    line: Line,
}

/// Shows nothing: the course may hold a PIN.
impl<T> fmt::Debug for Dialogue<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Dialogue")
    }
}

impl<T> Dialogue<T> {
    /// Begins the course that `course` makes of a card, whose commands go over `channel`.
    pub fn start<F>(channel: ChannelNumber, course: impl FnOnce(Card) -> F) -> Step<T>
    where
        F: Future<Output = Result<T, PivError>> + Send + 'static,
    {
        let line = Line::default();
        let card = Card::new(line.clone(), channel);
        let course = Box::pin(course(card));
        Self { course, line }.go_on()
    }

    /// Takes the response to the last command.
    pub fn receive(self, response: ResponseApdu) -> Step<T> {
        self.line.lock().response = Some(response);
        self.go_on()
    }

    fn go_on(mut self) -> Step<T> {
        let mut context = Context::from_waker(Waker::noop());
        match self.course.as_mut().poll(&mut context) {
            Poll::Ready(outcome) => Step::Done(outcome),
            Poll::Pending => {
                let command = self.line.lock().command.take();
                match command {
                    Some(command) => Step::Send(self, command),
                    // It waits for something else than the card, for ever.
                    None => Step::Done(Err(PivError::Unsupported)),
                }
            }
        }
    }
}

/// Carries a course out with `transmit`, which sends a command to the card and returns what comes back.
pub fn run<T, E>(
    mut step: Step<T>,
    mut transmit: impl FnMut(CommandApdu) -> Result<ResponseApdu, E>,
) -> Result<Result<T, PivError>, E> {
    loop {
        match step {
            Step::Done(outcome) => return Ok(outcome),
            Step::Send(dialogue, command) => step = dialogue.receive(transmit(command)?),
        }
    }
}

/// Between a course and whoever drives it.
#[derive(Clone, Default)]
pub(super) struct Line(Arc<Mutex<Slots>>);

#[derive(Default)]
struct Slots {
    command: Option<CommandApdu>,
    response: Option<ResponseApdu>,
    sent: usize,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a command and waits for its response.
    pub(super) async fn exchange(&self, command: CommandApdu) -> Result<ResponseApdu, PivError> {
        {
            let mut slots = self.lock();
            slots.sent += 1;
            if slots.sent > MAX_COMMANDS {
                return Err(PivError::Nonsense);
            }
            slots.response = None;
            slots.command = Some(command);
        }
        let response = poll_fn(|_| match self.lock().response.take() {
            Some(response) => Poll::Ready(response),
            None => Poll::Pending,
        });
        Ok(response.await)
    }
}
