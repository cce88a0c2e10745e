/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Expectation files: the part of wptrunner's `.ini` that this project needs.
//!
//! ```ini
//! [page.https.html]
//!   expected: TIMEOUT
//!   reason: why
//!   [name of a subtest]
//!     expected: FAIL
//!     reason: why
//! ```
//!
//! What is not listed is expected to be fine. Every entry has to give a reason.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use super::Status;

/// An expectation other than success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// How it ends.
    pub status: Status,
    /// Why that is accepted.
    pub reason: String,
}

/// What is expected of one page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// Of the page as a whole.
    pub page: Option<Expected>,
    /// Of its subtests, by name.
    pub subtests: HashMap<String, Expected>,
}

impl Expectations {
    /// Reads the expectations of a page; without a file there are none.
    ///
    /// `source` is the test's file below the tree, `page` the last part of its URL with the query.
    ///
    /// # Errors
    /// If the file cannot be read or is malformed; the error names file and line.
    pub fn load(tree: &Path, source: &str, page: &str) -> io::Result<Expectations> {
        let file = tree.join("metadata").join(format!("{source}.ini"));
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Expectations::default());
            }
            other => other?,
        };
        let mut pages = parse(&text)
            .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?;
        Ok(pages.remove(page).unwrap_or_default())
    }
}

/// A section under construction.
struct Section {
    page: String,
    subtest: Option<String>,
    line: usize,
    status: Option<Status>,
    reason: Option<String>,
}

fn parse(text: &str) -> Result<HashMap<String, Expectations>, String> {
    let mut pages: HashMap<String, Expectations> = HashMap::new();
    let mut section: Option<Section> = None;
    for (index, raw) in text.lines().enumerate() {
        let line = raw.trim();
        let number = index + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let indented = raw.starts_with(' ');
        if let Some(name) = line.strip_prefix('[') {
            let name = name
                .strip_suffix(']')
                .ok_or(format!("line {number}: no closing bracket"))?;
            // As in wptrunner, a bracket within a name is escaped.
            let name = name.replace("\\]", "]").replace("\\[", "[");
            let page = section.as_ref().map(|section| section.page.clone());
            if let Some(finished) = section.take() {
                finish(finished, &mut pages)?;
            }
            let (page, subtest) = if indented {
                (
                    page.ok_or(format!("line {number}: a subtest before any page"))?,
                    Some(name),
                )
            } else {
                (name, None)
            };
            section = Some(Section {
                page,
                subtest,
                line: number,
                status: None,
                reason: None,
            });
            continue;
        }
        let current = section
            .as_mut()
            .ok_or(format!("line {number}: outside any section"))?;
        let (key, value) = line
            .split_once(':')
            .ok_or(format!("line {number}: no colon"))?;
        let value = value.trim();
        match key {
            "expected" => {
                let status = Status::from_name(value);
                current.status = Some(status.ok_or(format!("line {number}: no status {value:?}"))?);
            }
            "reason" => current.reason = Some(value.to_owned()),
            _ => return Err(format!("line {number}: unknown key {key:?}")),
        }
    }
    if let Some(finished) = section {
        finish(finished, &mut pages)?;
    }
    Ok(pages)
}

fn finish(section: Section, pages: &mut HashMap<String, Expectations>) -> Result<(), String> {
    let expectations = pages.entry(section.page).or_default();
    let Some(status) = section.status else {
        return match section.subtest {
            // A page's section may be there for its subtests only.
            None if section.reason.is_none() => Ok(()),
            _ => Err(format!("line {}: nothing is expected", section.line)),
        };
    };
    let reason = section.reason.filter(|reason| !reason.is_empty());
    let reason = reason.ok_or(format!("line {}: no reason is given", section.line))?;
    let expected = Expected { status, reason };
    match section.subtest {
        None => expectations.page = Some(expected),
        Some(name) => {
            if expectations
                .subtests
                .insert(name.clone(), expected)
                .is_some()
            {
                return Err(format!("line {}: {name:?} comes twice", section.line));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_subtests_have_their_own() {
        let pages = parse(
            "# header\n[a.html]\n  [sub: one [x\\]]\n    expected: FAIL\n    reason: r1\n\n  [two]\n    \
             reason: r2\n    expected: TIMEOUT\n[a.html?v]\n  expected: CRASH\n  reason: r3\n",
        )
        .unwrap();
        let expected = |status, reason: &str| Expected {
            status,
            reason: reason.into(),
        };
        assert_eq!(pages["a.html"].page, None);
        assert_eq!(
            pages["a.html"].subtests["sub: one [x]"],
            expected(Status::Fail, "r1")
        );
        assert_eq!(
            pages["a.html"].subtests["two"],
            expected(Status::Timeout, "r2")
        );
        assert_eq!(pages["a.html?v"].page, Some(expected(Status::Crash, "r3")));
    }

    #[test]
    fn malformed_files_are_errors_that_name_the_line() {
        for (text, line) in [
            ("[a.html]\n  [s]\n    expected: FAIL\n", "line 2"),
            ("[a.html]\n  expected: BAD\n  reason: r", "line 2"),
            ("[a.html]\n  bug: 1\n", "line 2"),
            ("  [s]\n", "line 1"),
            ("expected: FAIL\n", "line 1"),
            ("[a.html]\n  [s]\n    reason: r\n", "line 2"),
            ("[a.html\n", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(line), "{text:?}: {error}");
        }
    }

    #[test]
    fn no_file_expects_success() {
        let tree = tempfile::tempdir().unwrap();
        let expectations = Expectations::load(tree.path(), "a/b.html", "b.html").unwrap();
        assert_eq!(expectations, Expectations::default());
    }
}
