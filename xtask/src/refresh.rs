/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `cargo xtask patches refresh`: carries edits by hand in `target/engine` over into the checkout, and writes each
//! patch anew with the offsets and context that it has now.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::assemble::{
    self, Edits, LockFile, Part, Sources, apply, copy_pristine, hand_edits, record,
};
use crate::check::{load, name};
use crate::patch::Patch;
use crate::paths::Paths;
use crate::process::{self, git, step};
use crate::readme;
use crate::series::{EngineCrate, Lock};
use crate::tree::{self, Change};

/// The contents of the files that a series touches, at one point of it.
type State = BTreeMap<PathBuf, Vec<u8>>;

/// Carries edits over and writes all patches anew. `into` (`<F>/NNNN-area-subject.patch`) takes the edits of its
/// crate's existing files; without it, and for the other crates, the last patch of the crate does.
pub fn refresh(paths: &Paths, into: Option<&str>) -> Result<()> {
    let _guard = assemble::lock_target(paths)?;
    let lock = Lock::of_shell(paths)?;
    let parts = assemble::parts(paths, &lock)?;
    let mut all = parts.iter().filter_map(|part| match part {
        Part::Engine(engine_crate) => Some(engine_crate),
        Part::Own(_) => None,
    });
    if let Some(into) = into {
        ensure!(
            all.any(|one| one.patches.iter().any(|patch| name(paths, patch) == into)),
            "there is no patch {into}; to begin one, write a file with its message only: `Subject: ...`, a blank \
             line, `Patch-Kind: feature`"
        );
    }
    let mut sources = Sources::new(paths);
    for part in &parts {
        let edits = hand_edits(paths, part.folder())?;
        let back = match part {
            Part::Own(name) => {
                let all = edits.keys().cloned().collect();
                Some((paths.own_crate(name), all))
            }
            Part::Engine(engine_crate) => {
                let source = sources.of(engine_crate)?;
                let mut published = tree::files(&source)?.into_iter().collect::<BTreeSet<_>>();
                published.remove(Path::new("Cargo.lock"));
                let (existing, new): (BTreeSet<_>, BTreeSet<_>) = edits
                    .keys()
                    .cloned()
                    .partition(|file| published.contains(file));
                if let Some(file) = existing.iter().find(|file| edits[*file] == Change::Removed) {
                    bail!(
                        "{}/{} was removed by hand: patches only change text, so restore it",
                        engine_crate.folder,
                        file.display()
                    );
                }
                Refresh::new(paths, engine_crate, &source, existing)?.run(into)?;
                Some((paths.overlay().join(&engine_crate.folder), new))
            }
        };
        if let Some((to, files)) = back {
            carry_back(paths, part.folder(), &to, &files)?;
        }
    }
    update_readme(paths, &lock)?;
    // Every edit is in the checkout now, merged with what else changed there.
    assemble::assemble(paths, Edits::Discard, LockFile::Unchecked)
}

/// Throws the edits in `target/engine` away.
pub fn discard(paths: &Paths) -> Result<()> {
    let _guard = assemble::lock_target(paths)?;
    assemble::assemble(paths, Edits::Discard, LockFile::Unchecked)
}

/// Copies edited files of ours from `target/engine/<folder>` to `to`, unless they changed there as well.
fn carry_back(paths: &Paths, folder: &str, to: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    for file in files {
        let target = to.join(file);
        let edited = tree::read_if_there(&paths.engine().join(folder).join(file))?;
        let current = tree::read_if_there(&target)?;
        let last = tree::read_if_there(&record(paths, folder).join(file))?;
        if current == edited {
            continue;
        }
        ensure!(
            current == last,
            "{} changed since the last assembly, and so did its copy in {}: carry the edit over by hand",
            paths.show(&target),
            paths.engine().display()
        );
        step(format!("Updating {}", paths.show(&target)));
        match edited {
            Some(contents) => tree::write(&target, &contents)?,
            None => {
                fs::remove_file(&target)?;
                tree::remove_empty_parents(&target, to);
            }
        }
    }
    Ok(())
}

fn update_readme(paths: &Paths, lock: &Lock) -> Result<()> {
    let path = paths.patches().join("README.md");
    let Some(old) = tree::read_if_there(&path)? else {
        return Ok(());
    };
    let old = String::from_utf8(old).context("patches/README.md is not UTF-8")?;
    let mut entries = BTreeMap::new();
    for engine_crate in crate::series::discover(paths, lock)? {
        for patch in &engine_crate.patches {
            entries.insert(name(paths, patch), load(paths, patch)?.lines());
        }
    }
    let new = readme::update(&old, &entries);
    if new != old {
        step("Updating the counts in patches/README.md");
        tree::write(&path, new.as_bytes())?;
    }
    Ok(())
}

/// The refresh of one crate.
struct Refresh<'a> {
    paths: &'a Paths,
    engine_crate: &'a EngineCrate,
    scratch: PathBuf,
    patches: Vec<Patch>,
    /// Existing Servo files that were edited by hand.
    edited: BTreeSet<PathBuf>,
    /// `states[0]` is the published crate, `states[n]` the crate after the n-th patch.
    states: Vec<State>,
}

impl<'a> Refresh<'a> {
    fn new(
        paths: &'a Paths,
        engine_crate: &'a EngineCrate,
        source: &Path,
        edited: BTreeSet<PathBuf>,
    ) -> Result<Self> {
        let scratch = paths.assembly().join(".refresh");
        tree::remove(&scratch)?;
        let tree_directory = scratch.join("tree");
        copy_pristine(source, &tree_directory)?;
        let mut patches = Vec::new();
        let mut touched = edited.clone();
        for path in &engine_crate.patches {
            let patch = load(paths, path)?;
            touched.extend(patch.files.iter().map(|(file, _)| PathBuf::from(file)));
            patches.push(patch);
        }
        let snapshot = || -> Result<State> {
            touched
                .iter()
                .map(|file| Ok((file.clone(), tree::read(&tree_directory.join(file))?)))
                .collect()
        };
        let mut states = vec![snapshot()?];
        for path in &engine_crate.patches {
            if let Err(error) = apply(paths, path, &tree_directory, &[]) {
                step(format!("{error:#}\n    trying again with less context"));
                apply(paths, path, &tree_directory, &["-C1", "--recount"])?;
            }
            states.push(snapshot()?);
        }
        Ok(Self {
            paths,
            engine_crate,
            scratch,
            patches,
            edited,
            states,
        })
    }

    fn run(mut self, into: Option<&str>) -> Result<()> {
        if !self.edited.is_empty() {
            self.fold(into)?;
        }
        for (index, path) in self.engine_crate.patches.iter().enumerate() {
            let diff = self.diff(&self.states[index], &self.states[index + 1])?;
            let text = format!("{}\n{diff}", self.patches[index].message);
            ensure!(
                !diff.is_empty() || self.patches[index].files.is_empty(),
                "{} would change nothing any more: remove it",
                self.paths.show(path)
            );
            // What is written must read as what was meant.
            let written = Patch::parse(&text).with_context(|| self.paths.show(path))?;
            if tree::read(path)? != text.as_bytes() {
                step(format!(
                    "Writing {} ({})",
                    self.paths.show(path),
                    written.lines()
                ));
                tree::write(path, text.as_bytes())?;
            }
        }
        tree::remove(&self.scratch)
    }

    /// Puts the edits into the states from the chosen patch on, so that this patch makes them and the later ones keep
    /// to what they did.
    fn fold(&mut self, into: Option<&str>) -> Result<()> {
        let folder = &self.engine_crate.folder;
        let patches = &self.engine_crate.patches;
        let chosen = match into {
            Some(into) if into.split('/').next() == Some(folder.as_str()) => patches
                .iter()
                .position(|patch| name(self.paths, patch) == into),
            _ => patches.len().checked_sub(1),
        };
        let chosen = chosen.with_context(|| {
            format!(
                "{folder} was edited by hand and has no patch to take the edits: write patches/{folder}/\
                 0001-area-subject.patch with its message only (`Subject: ...`, a blank line, `Patch-Kind: feature`)"
            )
        })?;
        step(format!(
            "Folding edits of {} into {}",
            self.edited
                .iter()
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
            self.paths.show(&patches[chosen])
        ));
        for file in &self.edited {
            let base = tree::read(&record(self.paths, folder).join(file))?;
            let edited = tree::read(&self.paths.engine().join(folder).join(file))?;
            for state in &mut self.states[chosen + 1..] {
                let contents = state.get_mut(file).context("a touched file has no state")?;
                *contents = merge(&self.scratch, contents, &base, &edited).with_context(|| {
                    format!(
                        "the edits of {folder}/{} overlap with a later patch: name another one with --into",
                        file.display()
                    )
                })?;
            }
        }
        Ok(())
    }

    /// What `git diff` says, without the object hashes.
    fn diff(&self, old: &State, new: &State) -> Result<String> {
        for (side, state) in [("a", old), ("b", new)] {
            let directory = self.scratch.join(side);
            tree::remove(&directory)?;
            fs::create_dir_all(&directory)?;
            for (file, contents) in state {
                if old.get(file) != new.get(file) {
                    tree::write(&directory.join(file), contents)?;
                }
            }
        }
        let output = git(&self.scratch)
            .args(["-c", "core.quotePath=false"])
            .args([
                "diff",
                "--no-index",
                "--no-prefix",
                "--no-renames",
                "--no-color",
            ])
            .args(["--no-ext-diff", "--unified=3", "a", "b"])
            .output()
            .context("cannot start git")?;
        // 1 says that there are differences.
        ensure!(
            matches!(output.status.code(), Some(0 | 1)) && output.stderr.is_empty(),
            "git diff failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).context("a patch is not UTF-8")?;
        // Lines of a hunk begin with a sign, so no source line is lost here.
        Ok(text
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("index "))
            .collect())
    }
}

/// Three-way merge of one file.
fn merge(scratch: &Path, current: &[u8], base: &[u8], edited: &[u8]) -> Result<Vec<u8>> {
    if current == base {
        return Ok(edited.to_vec());
    }
    for (file, contents) in [("current", current), ("base", base), ("edited", edited)] {
        tree::write(&scratch.join(file), contents)?;
    }
    process::output(git(scratch).args(["merge-file", "-p", "current", "base", "edited"]))
        .map_err(|_| anyhow!("the three-way merge has conflicts"))
}
