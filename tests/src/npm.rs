/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Third-party scripts of the tests, from npm, at the versions that `npm/package-lock.json` pins.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::process::run;

/// How long a download may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// The directory that has `node_modules`, installed if it is not there or not current.
///
/// # Errors
/// If npm is missing or fails; the error has its output.
pub fn directory() -> io::Result<PathBuf> {
    let (directory, _lock) = lock()?;
    install(&directory)?;
    Ok(directory)
}

/// As [`directory`], with the native part of a package compiled, which no test needs. `file` is the part's name.
///
/// # Errors
/// If npm or a compiler is missing or fails; the error has the end of the output.
pub fn with_addon(package: &str, file: &str) -> io::Result<PathBuf> {
    let (directory, _lock) = lock()?;
    install(&directory)?;
    let built = Path::new("node_modules")
        .join(package)
        .join("build/Release");
    let built = directory.join(built).join(file);
    if built.exists() {
        return Ok(directory);
    }
    let mut npm = Command::new("npm");
    npm.current_dir(&directory)
        .args(["rebuild", "--foreground-scripts", package]);
    let output = run(&mut npm, DEADLINE)?;
    if !output.status.success() || !built.exists() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.trim().lines().last().unwrap_or_default();
        return Err(io::Error::other(format!(
            "npm cannot build {package} ({}): {last}",
            output.status
        )));
    }
    Ok(directory)
}

/// The directory, which nobody else changes as long as the file is open.
fn lock() -> io::Result<(PathBuf, fs::File)> {
    let directory = crate::target_directory().join("npm");
    fs::create_dir_all(&directory)?;
    // Test binaries may run side by side.
    let lock = fs::File::create(directory.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok((directory, lock))
}

fn install(directory: &Path) -> io::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("npm");
    let wanted = fs::read(source.join("package-lock.json"))?;
    let stamp = directory.join("installed-lock.json");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    for name in ["package.json", "package-lock.json"] {
        fs::copy(source.join(name), directory.join(name))?;
    }
    let mut npm = Command::new("npm");
    npm.current_dir(directory)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    let output = run(&mut npm, DEADLINE)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "npm ci failed ({}):\n{text}",
            output.status
        )));
    }
    fs::write(stamp, wanted)
}
