/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Directory trees: listing, copying, comparing, and a copy that touches only what differs.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// How a file in one tree differs from the same path in another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Only the newer tree has it.
    Added,
    /// Both have it, with different contents.
    Modified,
    /// Only the older tree has it.
    Removed,
}

/// What tools leave behind in source trees, and what cargo adds to a published crate.
fn is_noise(name: &str) -> bool {
    matches!(
        name,
        ".cargo-ok" | ".cargo_vcs_info.json" | "Cargo.toml.orig" | "__pycache__" | ".git"
    ) || name.ends_with('~')
        || name.ends_with(".swp")
        || name.ends_with(".orig")
        || name.ends_with(".rej")
        || name.ends_with(".pyc")
}

/// All files below `directory`, as paths relative to it, without noise. Empty if there is no such directory.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    fn walk(directory: &Path, relative: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            result => result.with_context(|| format!("cannot list {}", directory.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                bail!("a file name is not UTF-8: {}", entry.path().display());
            };
            if is_noise(name) {
                continue;
            }
            let relative = relative.join(name);
            if fs::metadata(entry.path())?.is_dir() {
                // A cargo target directory is not part of a crate's sources.
                if relative == Path::new("target") {
                    continue;
                }
                walk(&entry.path(), &relative, found)?;
            } else {
                found.push(relative);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(directory, Path::new(""), &mut found)?;
    found.sort();
    Ok(found)
}

/// Writes `contents` to `path`, making its directories.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Reads a whole file that may be missing.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result
            .map(Some)
            .with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Removes a directory and what is in it; no error if there is none.
pub fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("cannot remove {}", directory.display())),
    }
}

/// Copies all files of `from` into `to`, which keeps what else it has.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        write(&to.join(&file), &read(&from.join(&file))?)?;
    }
    Ok(())
}

/// What differs in `newer` against `older`.
pub fn differences(older: &Path, newer: &Path) -> Result<BTreeMap<PathBuf, Change>> {
    let mut changes = BTreeMap::new();
    for file in files(older)? {
        match read_if_there(&newer.join(&file))? {
            None => {
                changes.insert(file, Change::Removed);
            }
            Some(contents) if contents != read(&older.join(&file))? => {
                changes.insert(file, Change::Modified);
            }
            Some(_) => {}
        }
    }
    for file in files(newer)? {
        if !older.join(&file).is_file() {
            changes.insert(file, Change::Added);
        }
    }
    Ok(changes)
}

/// Makes `to` equal to `from`, writing only files whose contents differ: cargo rebuilds by modification time.
/// Returns the number of files written or removed.
pub fn sync(from: &Path, to: &Path) -> Result<usize> {
    let changes = differences(to, from)?;
    for (file, change) in &changes {
        let target = to.join(file);
        match change {
            Change::Removed => {
                fs::remove_file(&target)
                    .with_context(|| format!("cannot remove {}", target.display()))?;
                remove_empty_parents(&target, to);
            }
            Change::Added | Change::Modified => {
                write(&target, &read(&from.join(file))?)?;
            }
        }
    }
    fs::create_dir_all(to)?;
    Ok(changes.len())
}

/// Removes the directories above `path` that have become empty, up to and without `limit`.
pub fn remove_empty_parents(path: &Path, limit: &Path) {
    let mut parent = path.parent();
    while let Some(directory) = parent {
        // `remove_dir` refuses a directory that is not empty, which ends the climb.
        if directory == limit || fs::remove_dir(directory).is_err() {
            break;
        }
        parent = directory.parent();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn put(root: &Path, file: &str, contents: &str) {
        write(&root.join(file), contents.as_bytes()).unwrap();
    }

    #[test]
    fn sync_touches_only_what_differs() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        put(&from, "same.rs", "same");
        put(&from, "dom/changed.rs", "new");
        put(&from, "dom/added.rs", "added");
        put(&to, "same.rs", "same");
        put(&to, "dom/changed.rs", "old");
        put(&to, "gone/away.rs", "away");
        put(&to, "__pycache__/x.pyc", "noise stays");
        let long_ago = SystemTime::now() - Duration::from_secs(86_400);
        fs::File::options()
            .write(true)
            .open(to.join("same.rs"))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();

        assert_eq!(sync(&from, &to).unwrap(), 3);

        assert_eq!(differences(&from, &to).unwrap(), BTreeMap::new());
        let modified = fs::metadata(to.join("same.rs"))
            .unwrap()
            .modified()
            .unwrap();
        assert!(modified < SystemTime::now() - Duration::from_secs(3600));
        assert!(!to.join("gone").exists());
        assert!(to.join("__pycache__/x.pyc").exists());
        assert_eq!(sync(&from, &to).unwrap(), 0);
    }

    #[test]
    fn differences_name_each_kind() {
        let directory = tempfile::tempdir().unwrap();
        let (older, newer) = (
            directory.path().join("older"),
            directory.path().join("newer"),
        );
        put(&older, "a", "1");
        put(&older, "b", "1");
        put(&newer, "b", "2");
        put(&newer, "c", "1");
        put(&newer, "c.orig", "noise");
        let changes = differences(&older, &newer).unwrap();
        assert_eq!(
            changes.into_iter().collect::<Vec<_>>(),
            [
                (PathBuf::from("a"), Change::Removed),
                (PathBuf::from("b"), Change::Modified),
                (PathBuf::from("c"), Change::Added),
            ]
        );
    }
}
