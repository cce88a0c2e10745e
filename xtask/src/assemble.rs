/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Assembling the engine: published crate, patches, new files.
//!
//! Each part is staged in `target/assembly`, then synced into `target/engine`, where cargo builds. The staged tree
//! stays as the record of what was written, so that an edit by hand is seen and never overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::patch::Patch;
use crate::paths::{OWN_CRATES, Paths};
use crate::process::{self, cargo, git, step};
use crate::series::{self, EngineCrate, Lock, read_text};
use crate::tree::{self, Change};

/// Part of every stamp: raise it when the same inputs are assembled differently.
const FORMAT: u32 = 1;

/// What an assembly puts into one folder of `target/engine`.
#[derive(Clone, Debug)]
pub enum Part {
    /// A crate of Servo with our changes.
    Engine(EngineCrate),
    /// One of our own crates, as it is.
    Own(&'static str),
}

impl Part {
    /// Its folder in `target/engine`.
    pub fn folder(&self) -> &str {
        match self {
            Self::Engine(engine_crate) => &engine_crate.folder,
            Self::Own(name) => name,
        }
    }
}

/// What to do with edits by hand in `target/engine`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Edits {
    /// Name them and stop.
    Refuse,
    /// Overwrite them.
    Discard,
}

/// Whether the shell's lock file must fit already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LockFile {
    /// It must: cargo runs with `--locked`.
    Checked,
    /// It is about to be written anew.
    Unchecked,
}

/// Keeps other xtasks from the target directory until it is dropped.
pub struct Guard(#[expect(dead_code, reason = "held, not used")] File);

/// Waits until no other xtask assembles or builds in this target directory.
pub fn lock_target(paths: &Paths) -> Result<Guard> {
    fs::create_dir_all(paths.assembly())?;
    let path = paths.assembly().join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        step("Waiting for another `cargo xtask` that builds in the same target directory");
        file.lock()?;
    }
    Ok(Guard(file))
}

/// Where the record of the last assembly of `folder` lies.
pub fn record(paths: &Paths, folder: &str) -> PathBuf {
    paths.assembly().join(folder)
}

fn stamp_file(paths: &Paths, folder: &str) -> PathBuf {
    paths.assembly().join(format!("{folder}.stamp"))
}

fn stage_directory(paths: &Paths, folder: &str) -> PathBuf {
    paths.assembly().join(format!(".stage-{folder}"))
}

/// All parts, checked against the shell's manifest.
pub fn parts(paths: &Paths, lock: &Lock) -> Result<Vec<Part>> {
    let crates = series::discover(paths, lock)?;
    series::check_shell_manifest(paths, &crates)?;
    let own = OWN_CRATES.into_iter().map(Part::Own);
    Ok(crates.into_iter().map(Part::Engine).chain(own).collect())
}

/// Brings `target/engine` up to date. The caller holds the [`Guard`].
pub fn assemble(paths: &Paths, edits: Edits, lock_file: LockFile) -> Result<()> {
    let lock = Lock::of_shell(paths)?;
    let parts = parts(paths, &lock)?;
    if lock_file == LockFile::Checked {
        let crates = parts.iter().filter_map(|part| match part {
            Part::Engine(engine_crate) => Some(engine_crate.clone()),
            Part::Own(_) => None,
        });
        series::check_lock(&crates.collect::<Vec<_>>(), &lock)?;
    }

    let mut staged = BTreeMap::new();
    let mut sources = Sources::new(paths);
    for part in &parts {
        let stamp = stamp(paths, part)?;
        let old = tree::read_if_there(&stamp_file(paths, part.folder()))?;
        if old.as_deref() != Some(stamp.as_bytes()) {
            stage(paths, part, &mut sources)?;
            staged.insert(part.folder().to_owned(), stamp);
        } else {
            // Left by a run that was refused, and out of date now.
            tree::remove(&stage_directory(paths, part.folder()))?;
        }
    }

    let gone = recorded(paths)?
        .into_iter()
        .filter(|folder| !parts.iter().any(|part| part.folder() == folder))
        .collect::<Vec<_>>();
    let mut edited = BTreeMap::new();
    for folder in parts
        .iter()
        .map(Part::folder)
        .chain(gone.iter().map(String::as_str))
    {
        let edits = hand_edits(paths, folder)?;
        if !edits.is_empty() {
            edited.insert(folder.to_owned(), edits);
        }
    }
    if edits == Edits::Refuse && !edited.is_empty() {
        bail!(refusal(paths, &edited));
    }

    for part in &parts {
        let folder = part.folder();
        let stage = stage_directory(paths, folder);
        let record = record(paths, folder);
        let engine = paths.engine().join(folder);
        if let Some(stamp) = staged.get(folder) {
            if engine.exists() && !record.exists() {
                step(format!(
                    "Replacing {}, which no assembly wrote",
                    engine.display()
                ));
            }
            // Until the record is replaced, a file that equals the staged one is ours as well: see `hand_edits`.
            let written = tree::sync(&stage, &engine)?;
            tree::remove(&record)?;
            fs::rename(&stage, &record)?;
            tree::write(&stamp_file(paths, folder), stamp.as_bytes())?;
            report(part, written);
        } else if edited.contains_key(folder) || !engine.exists() {
            let written = tree::sync(&record, &engine)?;
            report(part, written);
        }
    }
    for folder in &gone {
        step(format!("Removing {folder}: it is not changed any more"));
        tree::remove(&paths.engine().join(folder))?;
        tree::remove(&record(paths, folder))?;
        fs::remove_file(stamp_file(paths, folder))?;
    }
    Ok(())
}

fn report(part: &Part, written: usize) {
    let folder = part.folder();
    if written == 0 {
        return;
    }
    match part {
        Part::Engine(EngineCrate {
            package,
            version,
            patches,
            ..
        }) => step(format!(
            "Assembled {folder} ({package} {version}, {} patches): {written} files written",
            patches.len()
        )),
        Part::Own(_) => step(format!("Copied {folder}: {written} files written")),
    }
}

/// The folders that an earlier assembly wrote.
fn recorded(paths: &Paths) -> Result<Vec<String>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(paths.assembly())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(folder) = name.strip_suffix(".stamp") {
            folders.push(folder.to_owned());
        }
    }
    folders.sort();
    Ok(folders)
}

/// The files in `target/engine/<folder>` that somebody changed since the last assembly.
pub fn hand_edits(paths: &Paths, folder: &str) -> Result<BTreeMap<PathBuf, Change>> {
    let record = record(paths, folder);
    let engine = paths.engine().join(folder);
    if !record.exists() || !engine.exists() {
        return Ok(BTreeMap::new());
    }
    let mut changes = tree::differences(&record, &engine)?;
    if folder != "shell" {
        // Only the shell's lock file counts; others come from a cargo that was run in the folder.
        changes.remove(Path::new("Cargo.lock"));
    }
    // What is already as it is about to become: an assembly was interrupted, or the edit was carried over by hand.
    let stage = stage_directory(paths, folder);
    if stage.exists() && !changes.is_empty() {
        let pending = tree::differences(&stage, &engine)?;
        changes.retain(|file, _| pending.contains_key(file));
    }
    Ok(changes)
}

fn refusal(paths: &Paths, edited: &BTreeMap<String, BTreeMap<PathBuf, Change>>) -> String {
    let mut message = format!("edited by hand in {}:\n", paths.engine().display());
    for (folder, edits) in edited {
        for (file, change) in edits {
            let path = Path::new(folder).join(file);
            message += &format!("  {} ({change:?})\n", path.display());
        }
    }
    message += "`cargo xtask patches refresh` carries the edits over into the checkout;\n\
                `cargo xtask patches refresh --discard` throws them away.";
    message
}

/// A hash over everything that goes into a part. It only saves work, so a hash from std does.
fn stamp(paths: &Paths, part: &Part) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    FORMAT.hash(&mut hasher);
    let mut add_tree = |directory: &Path| -> Result<()> {
        for file in tree::files(directory)? {
            tree::read(&directory.join(&file))?.hash(&mut hasher);
            file.hash(&mut hasher);
        }
        Ok(())
    };
    match part {
        Part::Own(name) => add_tree(&paths.own_crate(name))?,
        Part::Engine(engine_crate) => {
            add_tree(&paths.patches().join(&engine_crate.folder))?;
            add_tree(&paths.overlay().join(&engine_crate.folder))?;
            engine_crate.package.hash(&mut hasher);
            engine_crate.version.hash(&mut hasher);
        }
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn stage(paths: &Paths, part: &Part, sources: &mut Sources) -> Result<()> {
    let stage = stage_directory(paths, part.folder());
    tree::remove(&stage)?;
    match part {
        Part::Own(name) => tree::copy(&paths.own_crate(name), &stage),
        Part::Engine(engine_crate) => {
            stage_engine_crate(paths, engine_crate, &sources.of(engine_crate)?, &stage)
        }
    }
}

/// Copies a published crate without the lock file that it brings: ours decides.
pub fn copy_pristine(source: &Path, to: &Path) -> Result<()> {
    tree::copy(source, to)?;
    if to.join("Cargo.lock").exists() {
        fs::remove_file(to.join("Cargo.lock"))?;
    }
    Ok(())
}

/// Puts a patched and extended copy of `source` into the empty directory `to`.
pub fn stage_engine_crate(
    paths: &Paths,
    engine_crate: &EngineCrate,
    source: &Path,
    to: &Path,
) -> Result<()> {
    copy_pristine(source, to)?;
    let published = tree::files(to)?.into_iter().collect::<BTreeSet<_>>();
    for patch in &engine_crate.patches {
        apply(paths, patch, to, &[])?;
    }
    if let Some(overlay) = &engine_crate.overlay {
        for file in tree::files(overlay)? {
            ensure!(
                !published.contains(&file),
                "{} would replace a file of {} {}: change it with a patch",
                paths.show(&overlay.join(&file)),
                engine_crate.package,
                engine_crate.version
            );
            tree::write(&to.join(&file), &tree::read(&overlay.join(&file))?)?;
        }
    }
    Ok(())
}

/// Applies one patch in `directory`: checked before, and checked to be reversible after.
pub fn apply(paths: &Paths, patch: &Path, directory: &Path, leniency: &[&str]) -> Result<()> {
    let context = || format!("{} does not apply", paths.show(patch));
    let parsed = Patch::parse(&read_text(patch)?).with_context(|| paths.show(patch))?;
    if parsed.files.is_empty() {
        // About to be written: `patches check` insists on content, an assembly does not.
        return Ok(());
    }
    let git_apply = |arguments: &[&str]| {
        let mut command = git(directory);
        command
            .args(["apply", "--whitespace=nowarn"])
            .args(leniency)
            .args(arguments)
            .arg(patch);
        process::output(&mut command).with_context(context)
    };
    git_apply(&["--check"])?;
    git_apply(&[])?;
    git_apply(&["--reverse", "--check"])?;
    Ok(())
}

/// Finds the published sources of packages, downloading them where they are missing.
pub struct Sources<'a> {
    paths: &'a Paths,
    fetched: bool,
}

impl<'a> Sources<'a> {
    /// Nothing is looked for yet.
    pub fn new(paths: &'a Paths) -> Self {
        Self {
            paths,
            fetched: false,
        }
    }

    /// The directory with the unpacked crate.
    pub fn of(&mut self, engine_crate: &EngineCrate) -> Result<PathBuf> {
        let EngineCrate {
            package, version, ..
        } = engine_crate;
        if let Some(found) = in_cargo_home(package, version)? {
            return Ok(found);
        }
        if !self.fetched {
            fetch(self.paths)?;
            self.fetched = true;
        }
        in_cargo_home(package, version)?.with_context(|| {
            format!("cargo fetched {package} {version}, but it is not in cargo's registry folder")
        })
    }
}

/// Looks in the registries that cargo has unpacked crates from.
fn in_cargo_home(package: &str, version: &str) -> Result<Option<PathBuf>> {
    let home = match std::env::var_os("CARGO_HOME").filter(|value| !value.is_empty()) {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir()
            .context("neither CARGO_HOME nor a home directory is known")?
            .join(".cargo"),
    };
    let Ok(registries) = fs::read_dir(home.join("registry/src")) else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for registry in registries {
        let directory = registry?.path().join(format!("{package}-{version}"));
        // Cargo writes this file last: without it the crate may be half unpacked.
        if directory.join(".cargo-ok").exists() {
            found.push(directory);
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

/// Lets cargo download the crates that we change. A manifest of its own is needed for that: the shell's names
/// folders that do not exist yet.
fn fetch(paths: &Paths) -> Result<()> {
    step("Downloading the engine's sources");
    let directory = paths.assembly().join(".fetch");
    let lock = Lock::of_shell(paths)?;
    let mut manifest = String::from(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n\
         [workspace]\n\n[dependencies]\n",
    );
    for engine_crate in series::discover(paths, &lock)? {
        manifest += &format!(
            "{} = {{ version = \"={}\", default-features = false }}\n",
            engine_crate.package, engine_crate.version
        );
    }
    tree::write(&directory.join("Cargo.toml"), manifest.as_bytes())?;
    tree::write(&directory.join("lib.rs"), b"")?;
    // Cargo keeps to the versions of a lock file that it finds, so nothing is downloaded twice.
    let lock_file = paths.own_crate("shell").join("Cargo.lock");
    tree::write(&directory.join("Cargo.lock"), &tree::read(&lock_file)?)?;
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    process::run(cargo(&directory).args(["fetch", "--target", &host]))
}
