/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Compares outcomes with expectations, and prints them.

use std::fmt::Write;

use super::{Expectations, Expected, Outcome, Status};

/// One page, judged.
#[derive(Debug, Default)]
pub struct Report {
    /// URL of the page.
    pub url: String,
    /// Subtests that passed, as they should.
    pub passed: usize,
    /// Subtests, or the page, that ended otherwise than expected; in full.
    pub unexpected: Vec<String>,
    /// Subtests, or the page, that failed as expected, with the reason.
    pub known: Vec<String>,
}

impl Report {
    /// Judges an outcome.
    pub fn new(url: &str, outcome: &Outcome, expectations: &Expectations) -> Report {
        let mut report = Report {
            url: url.to_owned(),
            ..Report::default()
        };
        report.judge(
            "(page)",
            outcome.status,
            &outcome.message,
            Status::Ok,
            expectations.page.as_ref(),
        );
        for subtest in &outcome.subtests {
            let expected = expectations.subtests.get(&subtest.name);
            let (name, message) = (&subtest.name, &subtest.message);
            report.judge(name, subtest.status, message, Status::Pass, expected);
            if subtest.status == Status::Pass && expected.is_none() {
                report.passed += 1;
            }
        }
        for name in expectations.subtests.keys() {
            if !outcome.subtests.iter().any(|subtest| subtest.name == *name) {
                report
                    .unexpected
                    .push(format!("{name}: has an expectation, but was not there"));
            }
        }
        if outcome.status == Status::Ok && outcome.subtests.is_empty() {
            report
                .unexpected
                .push("(page): it has no subtests".to_owned());
        }
        report
    }

    fn judge(
        &mut self,
        name: &str,
        status: Status,
        message: &str,
        success: Status,
        expected: Option<&Expected>,
    ) {
        let wanted = expected.map_or(success, |expected| expected.status);
        if status != wanted {
            let (status, wanted) = (status.name(), wanted.name());
            let message = message.trim().replace('\n', "\n      ");
            let line = format!("{name}: {status}, expected {wanted}\n      {message}");
            self.unexpected.push(line.trim_end().to_owned());
        } else if let Some(expected) = expected {
            self.known
                .push(format!("{name}: {} ({})", status.name(), expected.reason));
        }
    }
}

/// Prints every page in a line, the unexpected in full, and the sum as the last line. Gives
/// whether all went as expected, and something did run.
pub fn print_table(reports: &[Report]) -> bool {
    let text = table(reports);
    print!("{text}");
    !reports.is_empty() && reports.iter().all(|report| report.unexpected.is_empty())
}

fn table(reports: &[Report]) -> String {
    let width = reports
        .iter()
        .map(|report| report.url.len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = format!("{:width$}  passed  known  unexpected\n", "test");
    // Writing to a String cannot fail.
    for Report {
        url,
        passed,
        known,
        unexpected,
    } in reports
    {
        let (known, unexpected) = (known.len(), unexpected.len());
        let _ = writeln!(text, "{url:width$}  {passed:6}  {known:5}  {unexpected:10}");
    }
    for (heading, lines) in [
        (
            "Known failures",
            (|report| &report.known) as fn(&Report) -> &Vec<String>,
        ),
        ("Unexpected", |report| &report.unexpected),
    ] {
        if reports.iter().all(|report| lines(report).is_empty()) {
            continue;
        }
        let _ = writeln!(text, "\n{heading}:");
        for report in reports.iter().filter(|report| !lines(report).is_empty()) {
            let _ = writeln!(text, "  {}", report.url);
            for line in lines(report) {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
    let passed: usize = reports.iter().map(|report| report.passed).sum();
    let failed: usize = reports.iter().map(|report| report.unexpected.len()).sum();
    let _ = writeln!(text, "\n{passed} passed, {failed} failed");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wpt::Subtest;

    fn subtest(name: &str, status: Status) -> Subtest {
        Subtest {
            name: name.into(),
            status,
            message: "m1\nm2".into(),
        }
    }

    fn outcome(subtests: Vec<Subtest>) -> Outcome {
        Outcome {
            status: Status::Ok,
            message: String::new(),
            subtests,
        }
    }

    fn expecting(name: &str, status: Status) -> Expectations {
        let expected = Expected {
            status,
            reason: "later".into(),
        };
        Expectations {
            page: None,
            subtests: [(name.into(), expected)].into(),
        }
    }

    #[test]
    fn only_what_is_unexpected_fails() {
        let subtests = vec![subtest("a", Status::Pass), subtest("b", Status::Fail)];
        let report = Report::new("/t", &outcome(subtests.clone()), &Expectations::default());
        assert_eq!(
            (report.passed, report.unexpected.len(), report.known.len()),
            (1, 1, 0)
        );
        assert_eq!(
            report.unexpected[0],
            "b: FAIL, expected PASS\n      m1\n      m2"
        );
        let report = Report::new("/t", &outcome(subtests), &expecting("b", Status::Fail));
        assert_eq!(
            (report.passed, report.unexpected.len(), report.known.len()),
            (1, 0, 1)
        );
        assert_eq!(report.known[0], "b: FAIL (later)");
    }

    #[test]
    fn an_expectation_that_does_not_hold_fails() {
        let passed = vec![subtest("b", Status::Pass)];
        let report = Report::new("/t", &outcome(passed), &expecting("b", Status::Fail));
        assert_eq!((report.passed, report.unexpected.len()), (0, 1));
        let report = Report::new("/t", &outcome(vec![]), &expecting("b", Status::Fail));
        assert_eq!(report.unexpected.len(), 2, "{report:?}");
    }

    #[test]
    fn a_page_that_did_not_finish_fails() {
        let mut outcome = outcome(vec![subtest("a", Status::Pass)]);
        outcome.status = Status::Crash;
        let report = Report::new("/t", &outcome, &Expectations::default());
        assert_eq!((report.passed, report.unexpected.len()), (1, 1));
    }

    #[test]
    fn the_last_line_is_the_sum() {
        let reports = [
            Report {
                url: "/a".into(),
                passed: 3,
                ..Report::default()
            },
            Report {
                url: "/b".into(),
                passed: 1,
                unexpected: vec!["x".into()],
                known: vec![],
            },
        ];
        assert_eq!(table(&reports).lines().last(), Some("4 passed, 1 failed"));
        assert!(table(&reports).contains("\nUnexpected:\n  /b\n    x\n"));
        assert!(!print_table(&[]));
        assert!(!print_table(&reports));
        assert!(print_table(&reports[..1]));
    }
}
