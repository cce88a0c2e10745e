/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! End-to-end tests: the browser, driven over WebDriver, against a test server and real cards.
//!
//! The browser's binary is found through the variable `SERVO_TOKENS_SHELL`; `cargo xtask test`
//! builds it and sets that.

pub mod browser;
pub mod image;
pub mod npm;
pub mod process;
pub mod server;
pub mod shell;
pub mod softhsm;
pub mod swtpm;
pub mod token_page;
pub mod webdriver;
pub mod wpt;

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` in the checkout.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from)
}
