/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What stands in for `tokens` where the engine has no patches: in the baseline of a benchmark, which gets the same flags
//! and has nothing to do with them.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Sender;
use servo::{EventLoopWaker, Preferences, ServoBuilder, WebDriverCommandMsg};
use token_traits::prompt::PromptHost;

use crate::chrome::tokens_page::TokenOverview;
use crate::profile::Profile;
use crate::prompts::Mode;

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

/// Leaves the engine as it is. There is nothing to show.
pub fn connect(
    builder: ServoBuilder,
    _config: &TokenConfig,
    _profile: &Profile,
    _prompts: Arc<dyn PromptHost>,
    _for_demo: bool,
) -> Result<(ServoBuilder, Option<Arc<dyn TokenOverview>>), String> {
    Ok((builder, None))
}

/// Nobody answers prompts that there are none of.
pub struct PromptModes;

impl PromptModes {
    /// Nothing is ever said.
    pub fn newest(&self, _manual: &Mode) -> Option<Mode> {
        None
    }
}

/// Starts the WebDriver server on `port`.
pub fn start_webdriver(
    port: u16,
    commands: Sender<WebDriverCommandMsg>,
    waker: Box<dyn EventLoopWaker>,
    preferences: Preferences,
) -> PromptModes {
    webdriver_server::start_server(port, commands, waker, preferences);
    PromptModes
}
