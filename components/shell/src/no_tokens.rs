/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What stands in for `tokens` where the engine has no patches: in the baseline of a benchmark, which gets the same flags
//! and has nothing to do with them.

use std::path::Path;

use servo::{Preferences, ServoBuilder};

/// Nothing to configure.
#[derive(Default)]
pub struct TokenConfig;

impl TokenConfig {
    /// Accepts any file.
    pub fn read(_path: &Path) -> Result<Self, String> {
        Ok(Self)
    }
}

/// The preferences to start from.
pub fn preferences() -> Preferences {
    Preferences::default()
}

/// Leaves the engine as it is.
pub fn connect(
    builder: ServoBuilder,
    _config: &TokenConfig,
    _for_demo: bool,
) -> Result<ServoBuilder, String> {
    Ok(builder)
}
