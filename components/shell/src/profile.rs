/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The folder in which the browser keeps everything: the engine's cookies and storage, and the token broker's state.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::cli::Settings;

/// An open profile. Temporary folders go when it is dropped.
pub struct Profile {
    engine_dir: PathBuf,
    temporary: Option<TempDir>,
    private: bool,
    _lock: Option<File>,
}

impl Profile {
    /// Creates (mode 0700) or opens the profile that `settings` ask for. The error is a sentence for the user.
    pub fn open(settings: &Settings) -> Result<Self, String> {
        // WebDriver sessions start from nothing, as with other browsers, unless told where.
        if settings.private || (settings.webdriver.is_some() && settings.profile_dir.is_none()) {
            let temporary = tempfile::Builder::new()
                .prefix("servo-tokens-")
                .permissions(Permissions::from_mode(0o700))
                .tempdir()
                .map_err(|error| format!("cannot create a temporary profile: {error}"))?;
            return Ok(Self {
                engine_dir: temporary.path().to_owned(),
                temporary: Some(temporary),
                private: settings.private,
                _lock: None,
            });
        }
        let dir = match &settings.profile_dir {
            Some(dir) => dir.clone(),
            None => default_dir()
                .ok_or("there is no home folder for the profile: use --profile-dir or --private")?,
        };
        create_private_dir(&dir)
            .map_err(|error| format!("cannot use the profile {}: {error}", dir.display()))?;
        let lock = lock(&dir)?;
        Ok(Self {
            engine_dir: dir,
            temporary: None,
            private: false,
            _lock: Some(lock),
        })
    }

    /// Where the engine keeps cookies, site data and the like.
    pub fn engine_dir(&self) -> &Path {
        &self.engine_dir
    }

    /// Where the token broker keeps grants and the audit log: a folder that is made here. `None` if nothing is to be kept.
    pub fn token_store(&self) -> Result<Option<PathBuf>, String> {
        if self.private {
            return Ok(None);
        }
        let dir = self.engine_dir.join("tokens");
        create_private_dir(&dir)
            .map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
        // The broker may have another working directory.
        let dir =
            std::path::absolute(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Some(dir))
    }

    /// The folder that goes with the profile.
    pub fn temporary_dir(&self) -> Option<&Path> {
        self.temporary.as_ref().map(TempDir::path)
    }
}

fn default_dir() -> Option<PathBuf> {
    // The XDG base directory specification says to ignore paths that are not absolute.
    let data_home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let data_home = data_home.or_else(|| Some(std::env::home_dir()?.join(".local/share")))?;
    Some(data_home.join("servo-tokens/default"))
}

fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // The folder may have been there, readable for others.
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))
}

/// Two processes on one profile would overwrite each other's files.
fn lock(dir: &Path) -> Result<File, String> {
    let path = dir.join("lock");
    let file = File::create(&path)
        .map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        format!(
            "another browser uses the profile {}: choose another --profile-dir, or --private",
            dir.display()
        )
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(dir: &Path, private: bool) -> Profile {
        Profile {
            engine_dir: dir.to_owned(),
            temporary: None,
            private,
            _lock: None,
        }
    }

    #[test]
    fn grants_are_kept_in_a_private_folder_of_the_profile() {
        let parent = tempfile::tempdir().unwrap();
        let dir = profile(parent.path(), false)
            .token_store()
            .unwrap()
            .unwrap();
        assert_eq!(dir, parent.path().join("tokens"));
        assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);

        let parent = tempfile::tempdir().unwrap();
        assert_eq!(profile(parent.path(), true).token_store(), Ok(None));
        assert!(!parent.path().join("tokens").exists());
        let file = parent.path().join("file");
        File::create(&file).unwrap();
        assert!(profile(&file, false).token_store().is_err());
    }

    #[test]
    fn profile_folders_are_private_and_exclusive() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        create_private_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        create_private_dir(&dir).unwrap();
        assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);

        let first = lock(&dir).unwrap();
        assert!(lock(&dir).is_err());
        drop(first);
        assert!(lock(&dir).is_ok());
    }
}
