/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Runs web platform tests in the browser, with testdriver bridged through WebDriver.

mod expectations;
mod report;
mod runner;
mod tests;

pub use self::expectations::{Expectations, Expected};
pub use self::report::{Report, print_table};
pub use self::runner::{Runner, RunnerError};
pub use self::tests::{Scheme, Test, find_tests};

/// How a test page, or one of its subtests, ended; the names are those of wptrunner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The harness of the page finished (pages only).
    Ok,
    /// Passed (subtests only).
    Pass,
    /// Failed (subtests only).
    Fail,
    /// The page threw, or never was a test (pages only).
    Error,
    /// Did not end in time.
    Timeout,
    /// Never began (subtests only).
    NotRun,
    /// Does not apply here, the test says.
    PreconditionFailed,
    /// The browser died (pages only).
    Crash,
}

impl Status {
    /// The name in expectation files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::Pass => "PASS",
            Status::Fail => "FAIL",
            Status::Error => "ERROR",
            Status::Timeout => "TIMEOUT",
            Status::NotRun => "NOTRUN",
            Status::PreconditionFailed => "PRECONDITION_FAILED",
            Status::Crash => "CRASH",
        }
    }

    fn from_name(name: &str) -> Option<Status> {
        [
            Status::Ok,
            Status::Pass,
            Status::Fail,
            Status::Error,
            Status::Timeout,
            Status::NotRun,
            Status::PreconditionFailed,
            Status::Crash,
        ]
        .into_iter()
        .find(|status| status.name() == name)
    }
}

/// One subtest of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtest {
    /// Its name, unique within the page.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// Why, if it did not pass.
    pub message: String,
}

/// What one page gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How the page as a whole ended.
    pub status: Status,
    /// Why, if not well.
    pub message: String,
    /// Its subtests, in order.
    pub subtests: Vec<Subtest>,
}
