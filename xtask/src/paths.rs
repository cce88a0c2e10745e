/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Where things are: the checkout, the target directory and what lies in them.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Our own crates that the engine and the shell need beside them. Copied as they are.
pub const OWN_CRATES: [&str; 3] = ["shell", "token_client", "token_traits"];

/// The checkout and the target directory.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The checkout's root.
    pub root: PathBuf,
    /// `$CARGO_TARGET_DIR`, or `target` in the checkout.
    pub target: PathBuf,
}

impl Paths {
    /// Finds both from the environment that `cargo run` gives.
    pub fn from_env() -> Result<Self> {
        // The value at run time wins: a binary in a shared target directory may come from another checkout.
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir
            .parent()
            .context("xtask's manifest has no parent directory")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
            Some(value) => std::path::absolute(PathBuf::from(value))?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The hunks on existing Servo files: `patches/<F>/NNNN-area-subject.patch`.
    pub fn patches(&self) -> PathBuf {
        self.root.join("patches")
    }

    /// New files for Servo's crates: `components/engine/<F>/...`.
    pub fn overlay(&self) -> PathBuf {
        self.root.join("components/engine")
    }

    /// One of [`OWN_CRATES`] in the checkout.
    pub fn own_crate(&self, name: &str) -> PathBuf {
        self.root.join("components").join(name)
    }

    /// The assembled engine. Cargo builds here.
    pub fn engine(&self) -> PathBuf {
        self.target.join("engine")
    }

    /// What the last assembly wrote, to tell hand edits from it.
    pub fn assembly(&self) -> PathBuf {
        self.target.join("assembly")
    }

    /// The manifest that builds the shell.
    pub fn engine_shell_manifest(&self) -> PathBuf {
        self.engine().join("shell/Cargo.toml")
    }

    /// The target directory of the engine's own workspace.
    pub fn engine_target(&self) -> PathBuf {
        self.engine().join("target")
    }

    /// The shell around the published engine, which a benchmark compares with.
    pub fn baseline(&self) -> PathBuf {
        self.target.join("baseline")
    }

    /// Shows `path` relative to the checkout where it lies in it.
    pub fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .display()
            .to_string()
    }
}
