/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The engine's way to the token broker, and the broker's configuration, from `--token-config` or by default.
//!
//! Nothing else in the shell needs the patched engine. In a build without the feature `tokens`, `no_tokens` stands in for
//! this module.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use servo::{Preferences, ServoBuilder};
use token_client::{ClientConfig, TokenClient};
use token_traits::control::{AccessConfig, WhenNoRules};
use token_traits::{Feature, Origin, PermissionState, TokenBroker as _};

use crate::demo;

/// The program that every token process runs, beside this one.
const BROKER_BINARY: &str = "token-broker";

/// The `--token-config` file. A key that is not known is an error: a misspelt one must not loosen anything.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    pcsc: Pcsc,
    virtual_card: VirtualCard,
    access: Option<Access>,
}

/// `[access]`. Access rules are enforced where there is such a section.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Access {
    /// A file of rules for elements that have none of their own.
    rules: Option<PathBuf>,
    /// What applies where those say nothing.
    when_no_rules: Option<WhenNoRules>,
}

impl Access {
    /// What the broker is told. The broker's own program checks the file, so that there is one parser only.
    fn to_config(&self, broker_binary: &Path) -> Result<AccessConfig, String> {
        let device_rules = match &self.rules {
            None => String::new(),
            Some(path) => {
                let checked = Command::new(broker_binary)
                    .arg("check-access-rules")
                    .arg(path)
                    .output()
                    .map_err(|error| format!("cannot check {}: {error}", path.display()))?;
                if !checked.status.success() {
                    let error = String::from_utf8_lossy(&checked.stderr);
                    return Err(format!("[access] rules: {}", error.trim()));
                }
                std::fs::read_to_string(path)
                    .map_err(|error| format!("[access] rules: {}: {error}", path.display()))?
            }
        };
        Ok(AccessConfig {
            device_rules,
            when_no_rules: self.when_no_rules,
        })
    }
}

/// `[pcsc]`
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Pcsc {
    /// Whether the readers of the PC/SC service are used.
    enabled: bool,
}

impl Default for Pcsc {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// `[virtual_card]`
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct VirtualCard {
    /// Whether there is an embedded card in software.
    enabled: bool,
    /// How it behaves.
    profile: String,
}

impl Default for VirtualCard {
    fn default() -> Self {
        Self {
            enabled: true,
            profile: "default".to_owned(),
        }
    }
}

impl TokenConfig {
    /// Reads a file. The error is a sentence for the user that names the key and the line.
    pub fn read(path: &Path) -> Result<Self, String> {
        std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| Self::parse(&text))
            .map_err(|error| format!("--token-config: {}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }
}

/// The preferences to start from.
pub fn preferences() -> Preferences {
    // Without the patches on the engine there is no such preference, and this does not compile.
    Preferences {
        dom_secure_element_enabled: true,
        ..Preferences::default()
    }
}

/// Gives the engine its token broker. Starts nothing: the broker starts with the first document that uses it.
pub fn connect(
    builder: ServoBuilder,
    config: &TokenConfig,
    for_demo: bool,
) -> Result<ServoBuilder, String> {
    let broker_binary = std::env::current_exe()
        .map_err(|error| format!("cannot find this program's folder: {error}"))?
        .with_file_name(BROKER_BINARY);
    if !broker_binary.is_file() {
        return Err(format!(
            "{} is missing; build it with `cargo xtask build`",
            broker_binary.display()
        ));
    }
    let access = match &config.access {
        Some(access) => Some(access.to_config(&broker_binary)?),
        None => None,
    };
    let client = TokenClient::new(ClientConfig {
        broker_binary,
        access,
        pcsc: config.pcsc.enabled,
        virtual_card: config
            .virtual_card
            .enabled
            .then(|| config.virtual_card.profile.clone()),
    });
    if for_demo && let Some(origin) = Origin::new(demo::ORIGIN) {
        client.set_permission(
            origin.clone(),
            origin,
            Feature::SecureElement,
            PermissionState::Granted,
        );
    }
    Ok(builder.token_broker(client))
}

#[cfg(test)]
mod tests {
    use super::{TokenConfig, WhenNoRules};

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = TokenConfig::parse("[pcsc]\nenabled = false").unwrap();
        assert!(!config.pcsc.enabled);
        assert!(config.virtual_card.enabled);
        assert_eq!(config.virtual_card.profile, "default");
    }

    #[test]
    fn access_rules_are_enforced_where_there_is_such_a_section() {
        assert!(TokenConfig::parse("").unwrap().access.is_none());
        let access = TokenConfig::parse("[access]").unwrap().access.unwrap();
        assert_eq!((access.rules, access.when_no_rules), (None, None));
        let text = "[access]\nrules = \"rules.toml\"\nwhen_no_rules = \"deny\"";
        let access = TokenConfig::parse(text).unwrap().access.unwrap();
        assert_eq!(access.when_no_rules, Some(WhenNoRules::Deny));
        let error = TokenConfig::parse("[access]\nwhen_no_rules = \"maybe\"").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = TokenConfig::parse("[pcsc]\nenabled = true\nenable = true").unwrap_err();
        assert!(
            error.contains("`enable`") && error.contains("line 3"),
            "{error}"
        );
        let error = TokenConfig::parse("[pscs]\nenabled = true").unwrap_err();
        assert!(
            error.contains("`pscs`") && error.contains("line 1"),
            "{error}"
        );
    }
}
