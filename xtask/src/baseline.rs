/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a benchmark compares the browser with: the same shell around the engine as it is published, built from the same
//! versions of everything else with the same settings, and sharing with it what they have in common.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::assemble;
use crate::paths::{OWN_CRATES, Paths};
use crate::process::{self, cargo, elapsed, step};
use crate::series::{self, Lock, read_text};
use crate::shell::{self, Profile};
use crate::tree;

/// The shell's binary in its manifest, and here: both are built into one folder.
const BINARY: (&str, &str) = ("servo-tokens", "servo-tokens-baseline");

/// Builds it, optimised; returns its binary.
pub fn build(paths: &Paths) -> Result<PathBuf> {
    let started = Instant::now();
    let _guard = assemble::lock_target(paths)?;
    write_sources(paths)?;
    resolve(paths)?;
    let binary = paths
        .engine_target()
        .join(Profile::Release.folder())
        .join(BINARY.1);
    if binary.exists() {
        step("Building the baseline");
    } else {
        step("Building the baseline: the first time this takes 10 minutes to half an hour");
    }
    let mut command = shell::engine_cargo(paths, &paths.baseline().join("shell"), "build")?;
    command
        .args(Profile::Release.argument())
        .args(["--no-default-features", "--bin", BINARY.1]);
    process::run_cargo_build(&mut command)?;
    step(format!("Built in {}", elapsed(started)));
    Ok(binary)
}

/// Copies our own crates. The token crates are not built, but cargo reads their manifests.
fn write_sources(paths: &Paths) -> Result<()> {
    let stage = paths.assembly().join(".stage-baseline");
    for name in OWN_CRATES {
        let (stage, to) = (stage.join(name), paths.baseline().join(name));
        tree::remove(&stage)?;
        tree::copy(&paths.own_crate(name), &stage)?;
        if name == "shell" {
            let manifest = stage.join("Cargo.toml");
            let text = read_text(&manifest)?;
            tree::write(&manifest, unpatched_manifest(&text)?.as_bytes())?;
            // The next step's own.
            let lock = tree::read_if_there(&to.join("Cargo.lock"))?.unwrap_or_default();
            tree::write(&stage.join("Cargo.lock"), &lock)?;
        }
        tree::sync(&stage, &to)?;
    }
    tree::remove(&stage)
}

/// Lets cargo add the published crates to what is left of the shell's lock file without the patched ones.
fn resolve(paths: &Paths) -> Result<()> {
    let shell = paths.baseline().join("shell");
    let ours = Lock::of_shell(paths)?;
    let patched = series::discover(paths, &ours)?
        .into_iter()
        .map(|one| one.package)
        .collect::<Vec<_>>();
    let text = read_text(&paths.own_crate("shell").join("Cargo.lock"))?;
    let rest = without_packages(&text, &patched);
    let record = paths.baseline().join("resolved-from.lock");
    if tree::read_if_there(&record)?.as_deref() == Some(rest.as_bytes()) {
        return Ok(());
    }
    let lock_file = shell.join("Cargo.lock");
    tree::write(&lock_file, rest.as_bytes())?;
    process::output(cargo(&shell).args(["update", "--workspace"]))?;
    let other = Lock::parse(&read_text(&lock_file)?)?.packages_not_in(&ours);
    ensure!(
        other.is_empty(),
        "the baseline would be built with other packages than the shell: {}",
        other.join(", ")
    );
    tree::write(&record, rest.as_bytes())
}

/// The shell's manifest with the published engine, and another name for the binary.
fn unpatched_manifest(text: &str) -> Result<String> {
    let (before, patch) = text
        .split_once("[patch.crates-io]\n")
        .context("the shell's manifest patches nothing")?;
    let after = patch.find("\n[").map_or("", |start| &patch[start + 1..]);
    let name = |name| format!("name = \"{name}\"\n");
    let (head, tail) = before
        .split_once(&name(BINARY.0))
        .context("the shell's manifest does not name its binary")?;
    Ok(format!("{head}{}{tail}{after}", name(BINARY.1)))
}

/// A lock file's text without the entries of these packages.
fn without_packages(text: &str, packages: &[String]) -> String {
    let is_kept = |entry: &&str| {
        let name = entry
            .strip_prefix("[[package]]\nname = \"")
            .and_then(|rest| rest.split('"').next());
        name.is_none_or(|name| !packages.iter().any(|one| one == name))
    };
    let entries = text.split("\n\n").filter(is_kept).collect::<Vec<_>>();
    entries.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_loses_its_patches() {
        let manifest = "[package]\nname = \"tokens-shell\"\n\n[[bin]]\nname = \"servo-tokens\"\n\n\
                        [patch.crates-io]\nservo = { path = \"../servo\" }\n\n[profile.dev]\ndebug = 0\n";
        assert_eq!(
            unpatched_manifest(manifest).unwrap(),
            "[package]\nname = \"tokens-shell\"\n\n[[bin]]\nname = \"servo-tokens-baseline\"\n\n\
             [profile.dev]\ndebug = 0\n"
        );
        let last = manifest.split_once("[profile").unwrap().0;
        assert!(
            unpatched_manifest(last)
                .unwrap()
                .ends_with("baseline\"\n\n")
        );
        assert!(unpatched_manifest("[package]\n").is_err());
    }

    #[test]
    fn the_lock_loses_the_patched_packages() {
        let lock = "version = 4\n\n[[package]]\nname = \"servo\"\nversion = \"1\"\n\n\
                    [[package]]\nname = \"servo-url\"\nversion = \"1\"\n";
        assert_eq!(
            without_packages(lock, &["servo".to_owned()]),
            "version = 4\n\n[[package]]\nname = \"servo-url\"\nversion = \"1\"\n"
        );
    }
}
