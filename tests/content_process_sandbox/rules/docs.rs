/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The tables in `docs/content-sandbox.md` are made from the code. This test compares them, and writes them where
//! `UPDATE_DOCS` is set.

use std::path::Path;
use std::{env, fs, io};

use libtest_mimic::Failed;

use crate::attempts::{ATTEMPTS, Outcome};
use crate::content_process_sandbox::table::{Call, GROUPS, NOT_IMPLEMENTED, Place, READ};

pub fn the_documentation_says_the_same() -> Result<(), Failed> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/content-sandbox.md");
    let written = fs::read_to_string(&file)?;
    let mut right = written.clone();
    for (name, table) in [
        ("files", files()),
        ("system calls", system_calls()),
        ("attempts", attempts()),
    ] {
        let (begin, end) = (
            format!("<!-- {name}: made from the code -->\n"),
            format!("<!-- end of {name} -->\n"),
        );
        let (before, rest) = right.split_once(&begin).ok_or("no such table")?;
        let (_, after) = rest.split_once(&end).ok_or("no end of the table")?;
        right = format!("{before}{begin}\n{table}\n{end}{after}");
    }
    if written == right {
        Ok(())
    } else if env::var_os("UPDATE_DOCS").is_some() {
        Ok(fs::write(file, right)?)
    } else {
        Err(
            "docs/content-sandbox.md says something else than the code; UPDATE_DOCS=1 writes it"
                .into(),
        )
    }
}

/// A table with these columns.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n{}|\n", head.join(" | "), "|---".repeat(head.len()));
    for row in rows {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text
}

fn files() -> String {
    let place = |place: &Place| match place {
        Place::Path(path) => format!("`{path}`"),
        Place::InHome(path) => format!("`~/{path}`"),
        Place::InUserData(path) => format!("`{path}` in `$XDG_DATA_HOME` or `~/.local/share`"),
        Place::Program => "the browser's program".to_owned(),
    };
    table(
        &["may be read", "for"],
        READ.iter().map(|files| {
            let places: Vec<String> = files.places.iter().map(place).collect();
            vec![places.join(", "), files.why.to_owned()]
        }),
    )
}

fn describe(call: &Call) -> String {
    let name = call.name.trim_start_matches("SYS_");
    if call.only.is_empty() {
        format!("`{name}`")
    } else {
        format!("`{name}` ({})", call.only)
    }
}

fn system_calls() -> String {
    let describe_all = |calls: &[Call]| {
        let calls: Vec<String> = calls.iter().map(describe).collect();
        calls.join(", ")
    };
    let rows = GROUPS.iter().map(|group| {
        vec![
            group.name.to_owned(),
            describe_all(group.calls),
            group.why.to_owned(),
        ]
    });
    let error = io::Error::from_raw_os_error(libc::ENOSYS);
    let rest = format!(
        "Fail, and the C library turns to older ones, whose arguments can be checked: {error}."
    );
    let rest = vec!["–".to_owned(), describe_all(NOT_IMPLEMENTED), rest];
    table(&["for", "system calls", "why"], rows.chain([rest]))
}

fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Error(libc::EACCES) => "`EACCES`".to_owned(),
        Outcome::Error(libc::EPERM) => "`EPERM`".to_owned(),
        Outcome::Error(libc::ENOSYS) => "`ENOSYS`".to_owned(),
        Outcome::Error(libc::ENOEXEC) => "`ENOEXEC`".to_owned(),
        Outcome::Error(libc::EINVAL) => "`EINVAL`".to_owned(),
        Outcome::Error(number) => number.to_string(),
        Outcome::Done => "done".to_owned(),
        Outcome::Ended | Outcome::Killed => "ended".to_owned(),
        Outcome::Reached => "up to the kernel".to_owned(),
    }
}

fn attempts() -> String {
    let rows = ATTEMPTS.iter().map(|attempt| {
        let [full, filtered, landlocked, neither] = attempt.outcomes.map(outcome);
        let since = match attempt.since {
            0 | 1 => String::new(),
            version => format!(", since its version {version}"),
        };
        let landlocked = format!("{landlocked}{since}");
        vec![attempt.name.to_owned(), full, filtered, landlocked, neither]
    });
    let head = [
        "attempt",
        "in the sandbox",
        "with seccomp alone",
        "with Landlock alone",
        "with neither",
    ];
    table(&head, rows)
}
