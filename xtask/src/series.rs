/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Which Servo crates are changed: the folders of `patches/` and `components/engine/`, held against the shell's
//! manifest and lock file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

use crate::paths::{OWN_CRATES, Paths};
use crate::tree;

/// A crate of the engine that is patched, extended by new files, or both.
#[derive(Clone, Debug)]
pub struct EngineCrate {
    /// Its folder's name in Servo's tree, and ours: `script`.
    pub folder: String,
    /// Its name in the registry: `servo-script`.
    pub package: String,
    /// The version in the shell's lock file.
    pub version: String,
    /// The patches in the order in which they apply.
    pub patches: Vec<PathBuf>,
    /// The folder with new files, if there is one.
    pub overlay: Option<PathBuf>,
}

/// One package of a lock file.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Locked {
    version: String,
    /// None for a package that comes from a path.
    source: Option<String>,
}

/// A `Cargo.lock`: packages by name.
#[derive(Debug, Default)]
pub struct Lock(BTreeMap<String, Vec<Locked>>);

impl Lock {
    /// Reads the shell's lock file.
    pub fn of_shell(paths: &Paths) -> Result<Self> {
        let path = paths.own_crate("shell").join("Cargo.lock");
        Self::parse(&read_text(&path)?).with_context(|| format!("in {}", paths.show(&path)))
    }

    /// The packages, as `name version`, that are in this lock file and not in `other`.
    pub fn packages_not_in(&self, other: &Self) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, locked) in &self.0 {
            let others = other.0.get(name).map_or(&[][..], Vec::as_slice);
            for Locked { version, .. } in locked {
                if !others.iter().any(|one| one.version == *version) {
                    missing.push(format!("{name} {version}"));
                }
            }
        }
        missing
    }

    /// Reads the text of a lock file.
    pub fn parse(text: &str) -> Result<Self> {
        let table = text.parse::<Table>()?;
        let mut packages: BTreeMap<String, Vec<Locked>> = BTreeMap::new();
        let list = table.get("package").and_then(Value::as_array);
        for package in list.into_iter().flatten() {
            let text = |key| package.get(key).and_then(Value::as_str).map(str::to_owned);
            let name = text("name").context("a package without a name")?;
            let version = text("version").context("a package without a version")?;
            packages.entry(name).or_default().push(Locked {
                version,
                source: text("source"),
            });
        }
        Ok(Self(packages))
    }

    /// The version of a package of which there is one.
    pub fn version(&self, package: &str) -> Result<&str> {
        match self.0.get(package).map(Vec::as_slice) {
            Some([one]) => Ok(&one.version),
            Some(_) => bail!("the shell's Cargo.lock has several versions of `{package}`"),
            None => bail!("the shell's Cargo.lock has no package `{package}`"),
        }
    }

    /// The package that a folder of Servo's tree is published as.
    fn package_for(&self, folder: &str) -> Result<String> {
        let prefixed = format!("servo-{}", folder.replace('_', "-"));
        if folder != "servo" && self.0.contains_key(&prefixed) {
            return Ok(prefixed);
        }
        ensure!(
            self.0.contains_key(folder),
            "the shell's Cargo.lock has neither `{prefixed}` nor `{folder}`"
        );
        Ok(folder.to_owned())
    }

    fn comes_from_registry(&self, package: &str) -> bool {
        self.0
            .get(package)
            .is_some_and(|locked| locked.iter().any(|one| one.source.is_some()))
    }
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(tree::read(path)?).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The names of the directories in `directory`, none if it does not exist.
fn folders(directory: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    if !directory.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Finds all engine crates.
pub fn discover(paths: &Paths, lock: &Lock) -> Result<Vec<EngineCrate>> {
    let patched = folders(&paths.patches())?;
    let extended = folders(&paths.overlay())?;
    let mut crates = Vec::new();
    for folder in patched.union(&extended) {
        ensure!(
            !OWN_CRATES.contains(&folder.as_str()) && folder != "target",
            "`{folder}` cannot be the name of an engine crate's folder: it has another use"
        );
        let package = lock.package_for(folder)?;
        crates.push(EngineCrate {
            version: lock.version(&package)?.to_owned(),
            patches: series(&paths.patches().join(folder))?,
            overlay: extended
                .contains(folder)
                .then(|| paths.overlay().join(folder)),
            folder: folder.clone(),
            package,
        });
    }
    Ok(crates)
}

/// The patches in `directory`, in order.
fn series(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut patches = Vec::new();
    let mut numbers = BTreeMap::new();
    for file in tree::files(directory)? {
        let name = file.to_string_lossy().into_owned();
        let number = patch_number(&name).with_context(|| {
            format!(
                "{}: a patch is named NNNN-area-subject.patch",
                directory.join(&file).display()
            )
        })?;
        if let Some(other) = numbers.insert(number.to_owned(), name.clone()) {
            bail!("{other} and {name} have the same number");
        }
        patches.push(directory.join(&file));
    }
    Ok(patches)
}

/// The four digits that a patch's file name begins with.
fn patch_number(name: &str) -> Option<&str> {
    let (number, rest) = name.strip_suffix(".patch")?.split_once('-')?;
    let digits = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
    let words = !rest.is_empty()
        && rest.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
        });
    (digits && words).then_some(number)
}

/// Checks that the shell builds with exactly the crates that are assembled.
pub fn check_shell_manifest(paths: &Paths, crates: &[EngineCrate]) -> Result<()> {
    let path = paths.own_crate("shell").join("Cargo.toml");
    compare_with_manifest(&read_text(&path)?, crates)
        .with_context(|| format!("{} does not fit patches/", paths.show(&path)))
}

fn compare_with_manifest(manifest: &str, crates: &[EngineCrate]) -> Result<()> {
    let table = manifest.parse::<Table>()?;
    let entries = table
        .get("patch")
        .and_then(|patch| patch.get("crates-io"))
        .and_then(Value::as_table)
        .cloned()
        .unwrap_or_default();
    let mut problems = Vec::new();
    for engine_crate in crates {
        let EngineCrate {
            folder, package, ..
        } = engine_crate;
        let wanted = format!("{package} = {{ path = \"../{folder}\" }}");
        match entries.get(package).and_then(|entry| entry.get("path")) {
            Some(Value::String(path)) if *path == format!("../{folder}") => {}
            _ => problems.push(format!("add to [patch.crates-io]: {wanted}")),
        }
    }
    for name in entries.keys() {
        if !crates.iter().any(|one| one.package == *name) {
            problems.push(format!(
                "remove from [patch.crates-io]: `{name}` has neither patches nor files in components/engine"
            ));
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Checks that the lock file takes the assembled crates from their folders.
pub fn check_lock(crates: &[EngineCrate], lock: &Lock) -> Result<()> {
    let stale = crates
        .iter()
        .filter(|one| lock.comes_from_registry(&one.package))
        .map(|one| one.package.as_str())
        .collect::<Vec<_>>();
    ensure!(
        stale.is_empty(),
        "components/shell/Cargo.lock still takes {} from the registry: run `cargo xtask lock`",
        stale.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine_crate(folder: &str, package: &str) -> EngineCrate {
        EngineCrate {
            folder: folder.to_owned(),
            package: package.to_owned(),
            version: "0.7.0".to_owned(),
            patches: Vec::new(),
            overlay: None,
        }
    }

    const LOCK: &str = r#"
        version = 4
        [[package]]
        name = "servo"
        version = "0.7.0"
        [[package]]
        name = "servo-script-bindings"
        version = "0.7.0"
        [[package]]
        name = "ipc-channel"
        version = "0.23.1"
        source = "registry+https://example.org/index"
        [[package]]
        name = "syn"
        version = "1.0.0"
        [[package]]
        name = "syn"
        version = "2.0.0"
    "#;

    #[test]
    fn folders_name_packages() {
        let lock = Lock::parse(LOCK).unwrap();
        assert_eq!(lock.package_for("servo").unwrap(), "servo");
        assert_eq!(
            lock.package_for("script_bindings").unwrap(),
            "servo-script-bindings"
        );
        assert_eq!(lock.package_for("ipc-channel").unwrap(), "ipc-channel");
        assert!(lock.package_for("nothing").is_err());
        assert_eq!(lock.version("ipc-channel").unwrap(), "0.23.1");
        assert!(lock.version("syn").is_err());
    }

    #[test]
    fn packages_that_another_lock_lacks() {
        let lock = Lock::parse(LOCK).unwrap();
        assert_eq!(lock.packages_not_in(&lock), [""; 0]);
        let changed = LOCK.replace("2.0.0", "2.0.1");
        let changed = Lock::parse(&changed.replace("ipc-channel", "other")).unwrap();
        assert_eq!(
            changed.packages_not_in(&lock),
            ["other 0.23.1", "syn 2.0.1"]
        );
    }

    #[test]
    fn a_lock_that_knows_no_patch_is_refused() {
        let lock = Lock::parse(LOCK).unwrap();
        assert!(check_lock(&[engine_crate("servo", "servo")], &lock).is_ok());
        let error = check_lock(&[engine_crate("ipc-channel", "ipc-channel")], &lock).unwrap_err();
        assert!(error.to_string().contains("cargo xtask lock"), "{error}");
    }

    #[test]
    fn manifest_and_folders_must_agree() {
        let crates = [engine_crate("script", "servo-script")];
        let manifest = |lines: &str| format!("[patch.crates-io]\n{lines}\n");
        let check = |lines: &str| compare_with_manifest(&manifest(lines), &crates);
        assert!(check(r#"servo-script = { path = "../script" }"#).is_ok());
        for wrong in [
            "",
            r#"servo-script = { path = "../elsewhere" }"#,
            "servo-script = { path = \"../script\" }\nservo-net = { path = \"../net\" }",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn patch_names() {
        assert_eq!(patch_number("0001-script-connect.patch"), Some("0001"));
        for wrong in [
            "1-a.patch",
            "0001.patch",
            "0001-A.patch",
            "0001-a.diff",
            "0001-.patch",
        ] {
            assert_eq!(patch_number(wrong), None, "{wrong}");
        }
    }
}
