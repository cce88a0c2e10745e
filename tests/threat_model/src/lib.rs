/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The tables of attempts in `docs/threat-model.md`. Each row is what a test has seen.
//!
//! A test that plays an attack ends with [`outcome`], which compares the row with the document. With
//! `THREAT_MODEL=write` in the environment it writes the row instead. With `THREAT_MODEL_SEEN=FOLDER` it also leaves a note in
//! that folder, from which [`unseen`] finds the rows that no test has made.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// `docs/threat-model.md`.
fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/threat-model.md")
}

/// The attacker did `attempt`, and `outcome` is what came of it. The row names the file of the test.
///
/// # Panics
/// If the document says something else, or has no table for this attacker.
#[track_caller]
pub fn outcome(attacker: &str, attempt: &str, outcome: &str) {
    let test = Location::caller().file();
    let row = row(attempt, outcome, test);
    let result = if std::env::var_os("THREAT_MODEL").is_some_and(|value| value == "write") {
        write(&document(), attacker, attempt, &row)
    } else {
        compare(&document(), attacker, &row)
    };
    if let Err(error) = result {
        panic!("{attacker}: {error}");
    }
    if let Some(folder) = std::env::var_os("THREAT_MODEL_SEEN") {
        let note = format!("{attacker}\n{row}");
        let file = Path::new(&folder).join(name(&note));
        fs::write(&file, note).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// The rows in the document, `ATTACKER: ROW` each, that no test has made which left its notes in that folder.
///
/// # Errors
/// If the document or the folder cannot be read.
pub fn unseen(folder: &Path) -> io::Result<Vec<String>> {
    unseen_in(&fs::read_to_string(document())?, folder)
}

fn unseen_in(text: &str, folder: &Path) -> io::Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        seen.insert(fs::read_to_string(entry?.path())?);
    }
    let mut attacker = None;
    let mut unseen = Vec::new();
    for line in text.lines() {
        if let Some(begun) = line
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(CLOSE))
        {
            attacker = Some(begun);
        } else if line == END {
            attacker = None;
        } else if let Some(attacker) = attacker
            && is_row(line)
            && !seen.contains(&format!("{attacker}\n{line}"))
        {
            unseen.push(format!("{attacker}: {line}"));
        }
    }
    Ok(unseen)
}

const BEGIN: &str = "<!-- attempts of a ";
const CLOSE: &str = " -->";
const END: &str = "<!-- end of attempts -->";
const HEAD: &str = "| attempt | outcome | test |";
const RULE: &str = "|---|---|---|";

fn is_row(line: &str) -> bool {
    line.starts_with('|') && line != HEAD && line != RULE
}

fn row(attempt: &str, outcome: &str, test: &str) -> String {
    for cell in [attempt, outcome] {
        assert!(
            !cell.contains(['|', '\n']) && cell.trim() == cell && !cell.is_empty(),
            "{cell:?} is no cell of a table"
        );
    }
    format!("| {attempt} | {outcome} | `{test}` |")
}

/// A file's name for that text: FNV-1a, because no more is needed than that rows do not share one.
fn name(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Where the rows of the attacker are in the text.
fn rows_of(text: &str, attacker: &str) -> Result<(usize, usize), String> {
    let begin = format!("{BEGIN}{attacker}{CLOSE}\n");
    let begin = text
        .find(&begin)
        .map(|at| at + begin.len())
        .ok_or("docs/threat-model.md has no table for this attacker")?;
    let end = text[begin..]
        .find(END)
        .map(|at| begin + at)
        .ok_or("the table in docs/threat-model.md has no end")?;
    Ok((begin, end))
}

fn compare(document: &Path, attacker: &str, row: &str) -> Result<(), String> {
    let text = fs::read_to_string(document).map_err(|error| error.to_string())?;
    let (begin, end) = rows_of(&text, attacker)?;
    if text[begin..end].lines().any(|line| line == row) {
        return Ok(());
    }
    Err(format!(
        "docs/threat-model.md does not say\n{row}\nTHREAT_MODEL=write has the test write it"
    ))
}

fn write(document: &Path, attacker: &str, attempt: &str, row: &str) -> Result<(), String> {
    let write = || -> io::Result<Result<(), String>> {
        let mut file = File::options().read(true).write(true).open(document)?;
        // Tests run at the same time, in several processes.
        flock(&file, FlockOperation::LockExclusive)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let (begin, end) = match rows_of(&text, attacker) {
            Ok(place) => place,
            Err(error) => return Ok(Err(error)),
        };
        let same = format!("| {attempt} |");
        let mut rows: Vec<&str> = text[begin..end]
            .lines()
            .filter(|line| is_row(line))
            .collect();
        match rows.iter_mut().find(|line| line.starts_with(&same)) {
            Some(line) => *line = row,
            None => rows.push(row),
        }
        let table = format!("\n{HEAD}\n{RULE}\n{}\n\n", rows.join("\n"));
        let written = format!("{}{table}{}", &text[..begin], &text[end..]);
        file.rewind()?;
        file.write_all(written.as_bytes())?;
        file.set_len(written.len() as u64)?;
        Ok(Ok(()))
    };
    write().map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "# Title\n\n<!-- attempts of a page -->\n<!-- end of attempts -->\n\nMore.\n\n\
                         <!-- attempts of a card -->\n<!-- end of attempts -->\n";

    #[test]
    fn rows_are_written_once_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let document = folder.path().join("document.md");
        fs::write(&document, EMPTY).unwrap();
        let first = row("asks", "nothing happens", "a.rs");
        assert!(compare(&document, "page", &first).is_err());
        write(&document, "page", "asks", &first).unwrap();
        compare(&document, "page", &first).unwrap();
        assert!(compare(&document, "card", &first).is_err());
        assert!(compare(&document, "stranger", &first).is_err());

        let second = row("asks twice", "it is told so", "a.rs");
        write(&document, "page", "asks twice", &second).unwrap();
        let changed = row("asks", "something happens", "b.rs");
        write(&document, "page", "asks", &changed).unwrap();
        assert!(compare(&document, "page", &first).is_err());
        let text = fs::read_to_string(&document).unwrap();
        let expected = EMPTY.replacen(
            "page -->\n",
            &format!("page -->\n\n{HEAD}\n{RULE}\n{changed}\n{second}\n\n"),
            1,
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn rows_without_a_note_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (row("a", "b", "c"), row("d", "e", "f"));
        let text = format!(
            "| no | row |\n{BEGIN}page{CLOSE}\n\n{HEAD}\n{RULE}\n{one}\n{other}\n\n{END}\n| nor | this |\n"
        );
        let note = format!("page\n{one}");
        fs::write(folder.path().join(name(&note)), note).unwrap();
        let expected = [format!("page: {other}")];
        assert_eq!(unseen_in(&text, folder.path()).unwrap(), expected);
    }

    #[test]
    #[should_panic(expected = "no cell of a table")]
    fn a_cell_cannot_end_the_table() {
        let _ = row("a | b", "c", "d");
    }
}
