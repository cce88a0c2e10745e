/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The local files that pages may load: those that the user opened, and what is beside and below them.
//!
//! What a request says of its client is the word of a content process, so it cannot decide about files.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use parking_lot::Mutex;
use url::Url;

static FOLDERS: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Default::default);

/// Lets pages load the file that the URL is of, and everything in its folder, for as long as the process lives. Does
/// nothing for other URLs.
pub fn allow_local_files(url: &Url) {
    let Some(path) = path(url) else {
        return;
    };
    let folder = if path.is_dir() {
        Some(path.as_path())
    } else {
        path.parent()
    };
    if let Some(folder) = folder {
        FOLDERS.lock().insert(folder.to_owned());
    }
}

/// The path of the file that the URL is of, if pages may load it. Links are resolved: one in the folder does not lead out
/// of it.
pub(crate) fn allowed_local_file(url: &Url) -> Option<PathBuf> {
    let path = path(url)?;
    let folders = FOLDERS.lock();
    path.ancestors()
        .any(|ancestor| folders.contains(ancestor))
        .then_some(path)
}

fn path(url: &Url) -> Option<PathBuf> {
    if url.scheme() != "file" {
        return None;
    }
    fs::canonicalize(url.to_file_path().ok()?).ok()
}
