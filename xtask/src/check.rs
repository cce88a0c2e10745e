/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `cargo xtask patches check | stat`: does the series apply, is it described, does it keep to its budget?

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::assemble::{Sources, stage_engine_crate};
use crate::patch::{Kind, Lines, Patch};
use crate::paths::Paths;
use crate::process::step;
use crate::readme;
use crate::series::{self, EngineCrate, Lock, read_text};
use crate::tree;

/// How many lines of existing Servo files the features may change.
const FEATURE_BUDGET: usize = 600;

/// Applies everything in a scratch folder, and checks what goes with it.
pub fn check(paths: &Paths) -> Result<()> {
    let lock = Lock::of_shell(paths)?;
    let crates = series::discover(paths, &lock)?;
    let mut problems = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{error:#}"));
        }
    };
    note(series::check_shell_manifest(paths, &crates));
    note(series::check_lock(&crates, &lock));

    let scratch = paths.assembly().join(".check");
    let mut sources = Sources::new(paths);
    let mut entries = BTreeMap::new();
    let mut count = 0;
    for engine_crate in &crates {
        step(format!(
            "Checking {} ({} {}, {} patches)",
            engine_crate.folder,
            engine_crate.package,
            engine_crate.version,
            engine_crate.patches.len()
        ));
        tree::remove(&scratch)?;
        note(
            sources
                .of(engine_crate)
                .and_then(|source| stage_engine_crate(paths, engine_crate, &source, &scratch)),
        );
        for path in &engine_crate.patches {
            count += 1;
            note(load(paths, path).and_then(|patch| {
                entries.insert(name(paths, path), patch.lines());
                ensure!(
                    !patch.files.is_empty(),
                    "{} changes nothing",
                    paths.show(path)
                );
                Ok(())
            }));
        }
    }
    tree::remove(&scratch)?;
    let readme = paths.patches().join("README.md");
    let text = tree::read_if_there(&readme)?.unwrap_or_default();
    for problem in readme::problems(&String::from_utf8_lossy(&text), &entries) {
        note(Err(anyhow::anyhow!("{}: {problem}", paths.show(&readme))));
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    step(format!("{count} patches apply and can be reversed"));
    Ok(())
}

/// Reads a patch, naming it in errors.
pub fn load(paths: &Paths, path: &Path) -> Result<Patch> {
    Patch::parse(&read_text(path)?).with_context(|| paths.show(path))
}

/// `<F>/NNNN-area-subject.patch`.
pub fn name(paths: &Paths, path: &Path) -> String {
    path.strip_prefix(paths.patches())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// One patch in the table of `patches stat`.
struct Counted {
    folder: String,
    file: String,
    kind: Kind,
    lines: Lines,
}

/// Prints the changed lines of each patch and each crate; an error if the features exceed the budget.
pub fn stat(paths: &Paths) -> Result<()> {
    let lock = Lock::of_shell(paths)?;
    let mut counted = Vec::new();
    for EngineCrate {
        folder, patches, ..
    } in series::discover(paths, &lock)?
    {
        for path in patches {
            let patch = load(paths, &path)?;
            let file = name(paths, &path);
            counted.push(Counted {
                folder: folder.clone(),
                file,
                kind: patch.kind,
                lines: patch.lines(),
            });
        }
    }
    let features = print_stat(&counted);
    ensure!(
        features <= FEATURE_BUDGET,
        "the feature patches change {features} lines of existing Servo files; the budget is {FEATURE_BUDGET}"
    );
    Ok(())
}

/// Prints the table; returns the changed lines of the features. `counted` is ordered by folder.
fn print_stat(counted: &[Counted]) -> usize {
    let mut features = 0;
    let width = counted.iter().map(|one| one.file.len()).max().unwrap_or(0) + 2;
    for kind in [Kind::Feature, Kind::EngineSecurity] {
        let of_kind = counted
            .iter()
            .filter(|one| one.kind == kind)
            .collect::<Vec<_>>();
        println!("{kind} patches, lines in existing Servo files:");
        for of_crate in of_kind.chunk_by(|one, other| one.folder == other.folder) {
            print_row(width, &of_crate[0].folder, sum(of_crate), "");
            for one in of_crate {
                print_row(width, &format!("  {}", one.file), one.lines, "");
            }
        }
        let total = sum(&of_kind);
        let limit = match kind {
            Kind::Feature => {
                features = total.changed();
                format!(", of {FEATURE_BUDGET}")
            }
            Kind::EngineSecurity => ", counted apart".to_owned(),
        };
        print_row(width, "total", total, &limit);
    }
    features
}

fn sum(counted: &[&Counted]) -> Lines {
    let mut sum = Lines::default();
    for one in counted {
        sum += one.lines;
    }
    sum
}

fn print_row(width: usize, name: &str, lines: Lines, note: &str) {
    println!("  {name:<width$} {:>5}  {lines}{note}", lines.changed());
}
