/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The tables in `docs/sandbox.md` are made from the code. This test compares them, and writes them where
//! `UPDATE_DOCS` is set.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use landlock::AccessFs;
use libtest_mimic::Failed;
use rustix::process::Resource;
use token_workers::sandbox::Step;
use token_workers::sandbox::table::{self, Call, Group};

use crate::attempts::{
    ATTEMPTS, ATTEMPTS_OF_OTHERS, ATTEMPTS_OF_STORE, Attempt, MODULE, Outcome, PCSC_MODULE,
    SOFTWARE_TPM,
};
use crate::{KINDS, kind};

/// Stands for the folder that the main process names.
const STORE: &str = "its store";

pub fn the_documentation_says_the_same() -> Result<(), Failed> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/sandbox.md");
    let written = fs::read_to_string(&file)?;
    let mut right = written.clone();
    for (name, table) in [
        ("system calls", system_calls()),
        ("files", files()),
        ("limits", limits()),
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
        Err("docs/sandbox.md says something else than the code; UPDATE_DOCS=1 writes it".into())
    }
}

fn groups_of(name: &str) -> Vec<Group> {
    table::groups(kind(name, Path::new(STORE)))
}

/// The names of all kinds for which something holds.
fn kinds_where(holds: impl Fn(&str) -> bool) -> String {
    let kinds: Vec<&str> = KINDS.into_iter().filter(|kind| holds(kind)).collect();
    if kinds.len() == KINDS.len() {
        "all".to_owned()
    } else {
        kinds.join(", ")
    }
}

fn describe(call: &Call) -> String {
    let name = call.name.trim_start_matches("SYS_");
    if call.only.is_empty() {
        format!("`{name}`")
    } else {
        format!("`{name}` ({})", call.only)
    }
}

fn every_failing() -> impl Iterator<Item = &'static (Call, i32)> {
    let of_modules = table::FAILING_OF_MODULES.iter().chain(table::PRETENDED);
    table::FAILING.iter().chain(of_modules)
}

fn system_calls() -> String {
    let mut text = "| for | processes | system calls | why |\n|---|---|---|---|\n".to_owned();
    let mut done: Vec<&str> = Vec::new();
    for group in KINDS.into_iter().flat_map(groups_of) {
        if done.contains(&group.name) {
            continue;
        }
        done.push(group.name);
        let kinds =
            kinds_where(|kind| groups_of(kind).iter().any(|other| other.name == group.name));
        let calls: Vec<String> = group.calls.iter().map(describe).collect();
        let (name, why) = (group.name, group.why);
        let _ = writeln!(text, "| {name} | {kinds} | {} | {why} |", calls.join(", "));
    }
    let failing_of = |name: &str| table::failing(kind(name, Path::new(STORE)));
    for (call, number) in every_failing() {
        let what = match number {
            0 => "Does nothing, and returns descriptor 0 or success".to_owned(),
            number => {
                let error = std::io::Error::from_raw_os_error(*number);
                format!("Fails, and whoever makes it goes on without: {error}")
            }
        };
        let kinds = kinds_where(|kind| failing_of(kind).contains(&(*call, *number)));
        let _ = writeln!(text, "| – | {kinds} | {} | {what}. |", describe(call));
    }
    text
}

fn files() -> String {
    let mut text = "| process | may open | to |\n|---|---|---|\n".to_owned();
    for name in KINDS {
        let files = table::files(kind(name, Path::new(STORE)));
        if files.is_empty() {
            let _ = writeln!(text, "| {name} | nothing | |");
        }
        for files in files.chunk_by(|one, other| one.rights == other.rights) {
            let rights = files.first().map(|files| files.rights);
            let rights: Vec<&str> = rights
                .into_iter()
                .flatten()
                .map(|right| match right {
                    AccessFs::ReadFile => "read",
                    AccessFs::WriteFile => "write",
                    AccessFs::ReadDir => "list",
                    AccessFs::MakeReg => "make files",
                    AccessFs::MakeDir => "make folders",
                    AccessFs::RemoveFile => "delete files",
                    AccessFs::RemoveDir => "delete folders",
                    AccessFs::Truncate => "cut",
                    _ => "do something that this table has no word for",
                })
                .collect();
            let places = files.iter().map(|files| files.place.display().to_string());
            let places = places.collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "| {name} | {places} | {} |", rights.join(", "));
        }
    }
    text
}

fn limits() -> String {
    let mut text =
        "| process | core file | descriptors | memory (addresses) | size of a file |\n|---|---|---|---|---|\n"
            .to_owned();
    for name in KINDS {
        let limits = table::limits(kind(name, Path::new(STORE)));
        let of = |resource, unit: u64, name: &str| {
            let limit = limits.iter().find(|(other, _)| *other == resource);
            limit.map_or("–".to_owned(), |(_, value)| {
                format!("{}{name}", value / unit)
            })
        };
        const MIB: u64 = 1024 * 1024;
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} |",
            of(Resource::Core, 1, ""),
            of(Resource::Nofile, 1, ""),
            of(Resource::As, MIB, " MiB"),
            of(Resource::Fsize, MIB, " MiB")
        );
    }
    text
}

fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Killed => "ended".to_owned(),
        Outcome::Error(number) => match number {
            libc::EACCES => "`EACCES`".to_owned(),
            libc::EPERM => "`EPERM`".to_owned(),
            libc::ENOSYS => "`ENOSYS`".to_owned(),
            libc::ENOEXEC => "`ENOEXEC`".to_owned(),
            libc::EINVAL => "`EINVAL`".to_owned(),
            libc::ENOMEM => "`ENOMEM`".to_owned(),
            libc::EMFILE => "`EMFILE`".to_owned(),
            libc::EFBIG => "`EFBIG`".to_owned(),
            number => number.to_string(),
        },
        Outcome::Done => "done".to_owned(),
        Outcome::Reached => "up to the kernel".to_owned(),
    }
}

fn attempts() -> String {
    const OTHERS: &str = "virtual-card";
    let mut text = "| attempt | broker | module-worker | other processes | with the system calls | and without |\n|---|---|---|---|---|---|\n".to_owned();
    // With the kinds of processes that can try it.
    let row = |text: &mut String, attempt: &Attempt, kinds: &[&str]| {
        let [broker, module, others] = ["broker", MODULE, OTHERS].map(|kind| {
            if kinds.contains(&kind) {
                outcome(attempt.outcome(kind))
            } else {
                "–".to_owned()
            }
        });
        let unfiltered = outcome(attempt.unfiltered);
        let since = match (attempt.without, attempt.since) {
            (Some((Step::Landlock, _)), 2..) => format!(", since Landlock {}", attempt.since),
            _ => String::new(),
        };
        let without = attempt.without.map_or("–".to_owned(), |(step, other)| {
            let step = match step {
                Step::Landlock => "Landlock",
                Step::Limits => "the limit",
                Step::NotDumpable => "being not dumpable",
                Step::NoMoreThreads => "the last filter",
                Step::NoNewPrivileges | Step::SystemCalls => "a rule",
            };
            format!("{step}: {}", outcome(other))
        });
        let module = match attempt.of_pcsc_module {
            Some(Outcome::Done) => format!("{module}; {PCSC_MODULE}: pretended"),
            Some(other) => format!("{module}; {PCSC_MODULE}: {}", outcome(other)),
            None => module,
        };
        let others = match attempt.of_software_tpm {
            Some(other) => format!("{others}; {SOFTWARE_TPM}: {}", outcome(other)),
            None => others.to_owned(),
        };
        let name = attempt.name;
        let _ = writeln!(
            text,
            "| {name} | {broker} | {module} | {others} | {unfiltered}{since} | {without} |"
        );
    };
    for attempt in ATTEMPTS {
        row(&mut text, attempt, &["broker", MODULE, OTHERS]);
    }
    for attempt in ATTEMPTS_OF_STORE {
        row(&mut text, attempt, &["broker", MODULE]);
    }
    for attempt in ATTEMPTS_OF_OTHERS {
        row(&mut text, attempt, &[OTHERS]);
    }
    text
}
