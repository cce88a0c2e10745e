/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Building the shell with the assembled engine, and the broker beside it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::assemble::{self, Edits, LockFile};
use crate::paths::Paths;
use crate::process::{self, cargo, elapsed, run_cargo_build, step};
use crate::series::Lock;
use crate::{setup, tree};

/// How the shell and the broker are compiled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Profile {
    /// For tests and development.
    Dev,
    /// For benchmarks and use.
    Release,
}

impl Profile {
    /// From a command line's `--release`.
    pub fn new(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }

    /// Its folder in a cargo target directory.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }

    /// Cargo's argument for it, if it takes one.
    pub fn argument(self) -> Option<&'static str> {
        match self {
            Self::Dev => None,
            Self::Release => Some("--release"),
        }
    }
}

/// A SpiderMonkey archive that may lie beside the checkout, and the crate version that it was made from. With it
/// the build neither downloads one nor compiles SpiderMonkey.
const MOZJS_ARCHIVE: &str = "libmozjs-x86_64-unknown-linux-gnu.tar.gz";
const MOZJS_VERSION: &str = "153.3.0-1";

/// Assembles the engine, builds the broker and the shell; returns the shell's binary.
pub fn build(paths: &Paths, profile: Profile) -> Result<PathBuf> {
    build_with(paths, profile, &[])
}

/// As [`build`], with the browser that has hostile content processes beside the shell.
pub fn build_for_tests(paths: &Paths) -> Result<PathBuf> {
    build_with(paths, Profile::Dev, &["--features=hostile"])
}

fn build_with(paths: &Paths, profile: Profile, arguments: &[&str]) -> Result<PathBuf> {
    let started = Instant::now();
    let _guard = assemble::lock_target(paths)?;
    assemble::assemble(paths, Edits::Refuse, LockFile::Checked)?;

    let broker = build_broker(paths, profile)?;
    let output = paths.engine_target().join(profile.folder());
    let shell = output.join("servo-tokens");
    if shell.exists() {
        step("Building the shell");
    } else {
        step(
            "Building the shell with the whole engine: the first time this takes 15 minutes to an hour",
        );
    }
    let mut command = engine_cargo(paths, &paths.engine().join("shell"), "build")?;
    run_cargo_build(command.args(profile.argument()).args(arguments))?;

    place_beside(&broker, &output)?;
    step(format!("Built in {}", elapsed(started)));
    Ok(shell)
}

/// Builds the token broker alone, which takes no engine, and returns the binary's path.
pub fn build_broker(paths: &Paths, profile: Profile) -> Result<PathBuf> {
    step("Building the token broker");
    run_cargo_build(&mut broker_build(paths, profile, &paths.target))?;
    Ok(paths.target.join(profile.folder()).join("token-broker"))
}

/// Builds a token broker without sandboxes, optimised, for a benchmark to compare with. It is not for use.
pub fn build_broker_without_sandbox(paths: &Paths) -> Result<PathBuf> {
    step("Building a token broker without sandboxes");
    // A flag of the compiler changes everything that is built.
    let target = paths.target.join("without-sandbox");
    let mut build = broker_build(paths, Profile::Release, &target);
    run_cargo_build(build.env("RUSTFLAGS", "--cfg=token_sandbox=\"off\""))?;
    Ok(target.join(Profile::Release.folder()).join("token-broker"))
}

fn broker_build(paths: &Paths, profile: Profile, target: &Path) -> Command {
    let mut command = cargo(&paths.root);
    command
        .args(["build", "--package=token_broker", "--bin=token-broker"])
        .args(profile.argument())
        .env("CARGO_TARGET_DIR", target);
    command
}

/// A cargo command on the shell in `directory`, with what building an engine takes. Its user holds the guard.
pub fn engine_cargo(paths: &Paths, directory: &Path, subcommand: &str) -> Result<Command> {
    let environment = engine_environment(paths)?;
    for (name, value) in &environment {
        step(format!("{name}={}", value.to_string_lossy()));
    }
    let mut command = cargo(directory);
    command
        .args([subcommand, "--locked", "--manifest-path"])
        .arg(directory.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(paths.engine_target())
        .envs(environment);
    Ok(command)
}

/// Clippy on the shell, once it is built. `cargo clippy` would check all of Servo first: a check does not use what a
/// build has made. As the compiler of the shell alone, clippy does.
pub fn clippy(paths: &Paths) -> Result<()> {
    let _guard = assemble::lock_target(paths)?;
    let mut command = engine_cargo(paths, &paths.engine().join("shell"), "build")?;
    command
        // The test binaries contain everything else, and take no other binary's place.
        .args(["--tests", "--features=hostile"])
        .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
        // How `cargo clippy -- -D warnings` tells the driver.
        .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
    run_cargo_build(&mut command)
}

/// The command that runs the shell's own unit tests, once it is built.
pub fn unit_tests(paths: &Paths, filter: Option<&str>) -> Result<Command> {
    let mut command = engine_cargo(paths, &paths.engine().join("shell"), "test")?;
    command
        .args(["--features=hostile", "--no-fail-fast", "--"])
        .args(filter);
    Ok(command)
}

/// Puts the broker into the shell's folder, where the shell looks for it.
fn place_beside(broker: &Path, directory: &Path) -> Result<()> {
    let name = broker.file_name().context("a binary has a name")?;
    let target = directory.join(name);
    // A link of an earlier build shares the file that cargo replaces, or it is stale: both are solved by a new one.
    if target.exists() {
        fs::remove_file(&target)?;
    }
    fs::hard_link(broker, &target)
        .or_else(|_| fs::copy(broker, &target).map(drop))
        .with_context(|| format!("cannot put the broker into {}", directory.display()))
}

/// What the engine's build scripts need to find. Values from outside win. Always the same for the same target
/// directory: cargo rebuilds what depends on a variable that changes.
fn engine_environment(paths: &Paths) -> Result<Vec<(&'static str, OsString)>> {
    let mut variables = Vec::new();
    if let Some(clang) = setup::clang() {
        variables.push(("CLANG_PATH", clang.program.into_os_string()));
        variables.push(("LIBCLANG_PATH", clang.library.into_os_string()));
    }
    if let Some(archive) = mozjs_archive(paths)? {
        variables.push(("MOZJS_ARCHIVE", archive.into_os_string()));
    }
    variables.retain(|(name, _)| env::var_os(name).is_none());
    Ok(variables)
}

/// The archive's copy in the target directory: its path stays the same for every checkout that builds there.
fn mozjs_archive(paths: &Paths) -> Result<Option<PathBuf>> {
    let fits = cfg!(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_env = "gnu"
    )) && Lock::of_shell(paths)?.version("mozjs_sys").ok() == Some(MOZJS_VERSION);
    if !fits {
        return Ok(None);
    }
    let copy = paths
        .target
        .join("prebuilt")
        .join(MOZJS_VERSION)
        .join(MOZJS_ARCHIVE);
    if !copy.exists() {
        let original = paths.root.join("../shared/prebuilt").join(MOZJS_ARCHIVE);
        let Some(contents) = tree::read_if_there(&original)? else {
            return Ok(None);
        };
        // Renamed into place, so that an interrupted copy is not taken for an archive.
        let partial = copy.with_extension("partial");
        tree::write(&partial, &contents)?;
        fs::rename(&partial, &copy)?;
    }
    Ok(Some(copy))
}

/// Lets cargo write the shell's lock file after a change of manifests or patches, and copies it back.
pub fn update_lock(paths: &Paths) -> Result<()> {
    let _guard = assemble::lock_target(paths)?;
    assemble::assemble(paths, Edits::Refuse, LockFile::Unchecked)?;
    let manifest = paths.engine_shell_manifest();
    let directory = manifest
        .parent()
        .context("a manifest lies in a directory")?;
    let lock_file = directory.join("Cargo.lock");
    let before = tree::read(&lock_file)?;
    if let Err(error) = process::output(cargo(directory).args(["metadata", "--format-version=1"])) {
        // What cargo wrote before it failed would pass for an edit by hand.
        tree::write(&lock_file, &before)?;
        return Err(error);
    }
    let target = paths.own_crate("shell").join("Cargo.lock");
    let written = tree::read(&lock_file)?;
    if written == tree::read(&target)? {
        step("components/shell/Cargo.lock is up to date");
    } else {
        tree::write(&target, &written)?;
        step("Updated components/shell/Cargo.lock");
    }
    assemble::assemble(paths, Edits::Refuse, LockFile::Checked)
}

/// A command of the end-to-end package: `e2e` finds the shell through the environment.
pub fn e2e(paths: &Paths, shell: &Path) -> Command {
    let mut command = e2e_without_shell(paths);
    command.env("SERVO_TOKENS_SHELL", shell);
    command
}

/// As [`e2e`], for what needs no shell.
pub fn e2e_without_shell(paths: &Paths) -> Command {
    let mut command = cargo(&paths.root);
    command.env("CARGO_TARGET_DIR", &paths.target);
    command
}
