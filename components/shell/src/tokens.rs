/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The engine's way to the token broker, the broker's way to the user, and the broker's configuration, from
//! `--token-config` or by default.
//!
//! Nothing else in the shell needs the patched engine. In a build without the feature `tokens`, `no_tokens` stands in for
//! this module.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use servo::{EventLoopWaker, Preferences, ServoBuilder, WebDriverCommandMsg};
use token_client::{ClientConfig, TokenClient};
use token_traits::control::{AccessConfig, ModuleConfig, WhenNoRules};
use token_traits::keys::Bytes;
use token_traits::prompt::{GrantId, PromptHost};
use token_traits::{Feature, Origin, PermissionState, TokenBroker as _};
use webdriver_server::TokenPromptMode;
use zeroize::Zeroizing;

use crate::chrome::tokens_page::{OverviewCallback, TokenOverview};
use crate::demo;
use crate::profile::Profile;
use crate::prompts::Mode;

/// The program that every token process runs, beside this one.
const BROKER_BINARY: &str = "token-broker";

/// The administrator's rules for elements that have none of their own.
const ADMINISTRATOR_RULES: &str = "/etc/servo-tokens/access-rules.toml";

/// The user's rules, in the profile.
const USER_RULES: &str = "access-rules.toml";

/// The `--token-config` file. A key that is not known is an error: a misspelt one must not loosen anything.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    pcsc: Pcsc,
    virtual_card: VirtualCard,
    access: Access,
    pkcs11: Vec<Pkcs11>,
    tpm: Tpm,
    piv: Piv,
}

/// `[access]`. Access rules are enforced in any case.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Access {
    /// A file of rules for elements that have none of their own, in place of the administrator's and the user's.
    rules: Option<PathBuf>,
    /// What applies where those say nothing.
    when_no_rules: Option<WhenNoRules>,
}

/// A file of rules, by whoever wrote it.
#[derive(Debug, Eq, PartialEq)]
enum RulesFile {
    /// Named by `[access] rules`.
    Explicit(PathBuf),
    /// The administrator of the machine wrote it.
    Administrator(PathBuf),
    /// The user wrote it. It may say no more than the user could answer when asked.
    User(PathBuf),
}

impl RulesFile {
    /// One file decides. Together, the user's rules would open what the administrator's close: a rule that names an origin
    /// or an application comes before one that is about all of them.
    fn choose(explicit: Option<&Path>, administrator: &Path, user: &Path) -> Option<Self> {
        // What cannot be looked at is not passed over.
        let is_there = |path: &Path| match path.symlink_metadata() {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        };
        if let Some(path) = explicit {
            return Some(Self::Explicit(path.to_owned()));
        }
        if is_there(administrator) {
            if is_there(user) {
                eprintln!(
                    "servo-tokens: {} is not used, because there is {}",
                    user.display(),
                    administrator.display()
                );
            }
            return Some(Self::Administrator(administrator.to_owned()));
        }
        is_there(user).then(|| Self::User(user.to_owned()))
    }

    /// The contents. The broker's own program checks them, so that there is one parser only.
    fn read(&self, broker_binary: &Path) -> Result<String, String> {
        let (path, check) = match self {
            Self::Explicit(path) | Self::Administrator(path) => (path, "check-access-rules"),
            Self::User(path) => (path, "check-user-access-rules"),
        };
        let checked = Command::new(broker_binary)
            .arg(check)
            .arg(path)
            .output()
            .map_err(|error| format!("cannot check {}: {error}", path.display()))?;
        if !checked.status.success() {
            let error = String::from_utf8_lossy(&checked.stderr);
            return Err(format!("access rules: {}", error.trim()));
        }
        std::fs::read_to_string(path)
            .map_err(|error| format!("access rules: {}: {error}", path.display()))
    }
}

impl Access {
    /// What the broker is told.
    fn to_config(&self, broker_binary: &Path, profile: &Path) -> Result<AccessConfig, String> {
        let rules = RulesFile::choose(
            self.rules.as_deref(),
            Path::new(ADMINISTRATOR_RULES),
            &profile.join(USER_RULES),
        );
        Ok(AccessConfig {
            device_rules: match rules {
                Some(rules) => rules.read(broker_binary)?,
                None => String::new(),
            },
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
    /// Readers, by the names that the service gives them, whose cards are UICCs.
    uicc_readers: Vec<String>,
}

impl Default for Pcsc {
    fn default() -> Self {
        Self {
            enabled: true,
            uicc_readers: Vec::new(),
        }
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

/// `[[pkcs11]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pkcs11 {
    /// The module's shared library.
    #[serde(deserialize_with = "absolute_path")]
    module: String,
    /// What the user knows it by.
    label: String,
    /// Files and folders that it may read.
    #[serde(default, deserialize_with = "absolute_paths")]
    read: Vec<String>,
    /// Files and folders that it may read, write, make and delete.
    #[serde(default, deserialize_with = "absolute_paths")]
    write: Vec<String>,
    /// Whether it may talk to the PC/SC service.
    #[serde(default)]
    pcsc: bool,
    /// Environment variables that it reads.
    #[serde(default, deserialize_with = "environment")]
    environment: BTreeMap<String, String>,
}

impl Pkcs11 {
    /// What the broker and the module's own process are told.
    fn to_config(&self) -> ModuleConfig {
        ModuleConfig {
            module: self.module.clone(),
            label: self.label.clone(),
            read: self.read.clone(),
            write: self.write.clone(),
            pcsc: self.pcsc,
            environment: self.environment.clone(),
        }
    }
}

/// `[tpm]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tpm {
    /// How it is reached, as the TPM software stack writes it. Without it no TPM is used.
    tcti: Option<String>,
}

/// `[piv]`: cards with a PIV application.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Piv {
    /// The management key of the cards in readers, in hexadecimal digits. Without it, no keys are made in them.
    #[serde(deserialize_with = "management_key")]
    management_key: Option<Bytes>,
}

/// Shows no key.
impl fmt::Debug for Piv {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Piv")
    }
}

/// Triple DES or AES.
fn management_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    const EXPECTED: &str = "a management key has 32, 48 or 64 hexadecimal digits";
    let digits = Zeroizing::new(String::deserialize(deserializer)?);
    let digit = |character: char| {
        character
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let digits: Option<Vec<u8>> = digits.chars().map(digit).collect();
    let digits = digits.filter(|digits| matches!(digits.len(), 32 | 48 | 64));
    let digits = digits.ok_or_else(|| D::Error::custom(EXPECTED))?;
    let pairs = digits.as_chunks::<2>().0;
    Ok(Some(Bytes(
        pairs.iter().map(|[high, low]| high << 4 | low).collect(),
    )))
}

/// A process that is locked down has no other folder than the root.
fn check_absolute(path: String) -> Result<String, String> {
    if Path::new(&path).is_absolute() {
        Ok(path)
    } else {
        Err(format!("\"{path}\" is not an absolute path"))
    }
}

fn absolute_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    check_absolute(String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn absolute_paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let paths = Vec::<String>::deserialize(deserializer)?;
    let checked: Result<_, _> = paths.into_iter().map(check_absolute).collect();
    checked.map_err(D::Error::custom)
}

fn environment<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let variables = BTreeMap::<String, String>::deserialize(deserializer)?;
    // The dynamic loader follows these before the process is locked down.
    match variables.keys().find(|name| name.starts_with("LD_")) {
        Some(name) => Err(D::Error::custom(format!("{name} cannot be set"))),
        None => Ok(variables),
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
        dom_token_keys_enabled: true,
        // Pages can ask whether they have the permission for tokens.
        dom_permissions_enabled: true,
        ..Preferences::default()
    }
}

impl TokenOverview for TokenClient {
    fn request(&self, callback: OverviewCallback) {
        self.overview(callback);
    }

    fn revoke(&self, grant: GrantId) {
        self.revoke(grant);
    }
}

/// Gives the engine its token broker, which asks the user through `prompts`, and the page of tokens its source. Starts nothing: the broker starts with the
/// first document that uses it, or with the page of tokens.
pub fn connect(
    builder: ServoBuilder,
    config: &TokenConfig,
    profile: &Profile,
    prompts: Arc<dyn PromptHost>,
    for_demo: bool,
) -> Result<(ServoBuilder, Option<Arc<dyn TokenOverview>>), String> {
    let broker_binary = std::env::current_exe()
        .map_err(|error| format!("cannot find this program's folder: {error}"))?
        .with_file_name(BROKER_BINARY);
    if !broker_binary.is_file() {
        return Err(format!(
            "{} is missing; build it with `cargo xtask build`",
            broker_binary.display()
        ));
    }
    let mut access = config
        .access
        .to_config(&broker_binary, profile.engine_dir())?;
    if for_demo {
        access.device_rules.push_str(demo::ACCESS_RULES);
    }
    let client_config = ClientConfig {
        broker_binary,
        access: Some(access),
        pcsc: config.pcsc.enabled,
        uicc_readers: config.pcsc.uicc_readers.clone(),
        virtual_card: config
            .virtual_card
            .enabled
            .then(|| config.virtual_card.profile.clone()),
        store: profile.token_store()?,
        modules: config.pkcs11.iter().map(Pkcs11::to_config).collect(),
        tpm: config.tpm.tcti.clone(),
        piv_management_key: config.piv.management_key.clone(),
    };
    let client = TokenClient::new(client_config, prompts);
    if for_demo && let Some(origin) = Origin::new(demo::ORIGIN) {
        client.set_permission(
            origin.clone(),
            origin,
            Feature::SecureElement,
            PermissionState::Granted,
        );
    }
    Ok((builder.token_broker(client.clone()), Some(client)))
}

/// Who answers prompts, as WebDriver clients say it.
pub struct PromptModes(Receiver<TokenPromptMode>);

impl PromptModes {
    /// What was said last, if something was said since this was asked. `manual` is who answers without a client.
    pub fn newest(&self, manual: &Mode) -> Option<Mode> {
        Some(match self.0.try_iter().last()? {
            TokenPromptMode::Manual => manual.clone(),
            TokenPromptMode::Accept { pin } => Mode::Accept {
                pin: pin.map(Zeroizing::new),
            },
            TokenPromptMode::Reject => Mode::Reject,
        })
    }
}

/// Starts the WebDriver server on `port`. `waker` makes the event loop look at what it sends.
pub fn start_webdriver(
    port: u16,
    commands: Sender<WebDriverCommandMsg>,
    waker: Box<dyn EventLoopWaker>,
    preferences: Preferences,
) -> PromptModes {
    let (modes, receiver) = unbounded();
    webdriver_server::start_server(port, commands, modes, waker, preferences);
    PromptModes(receiver)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = TokenConfig::parse("[pcsc]\nenabled = false").unwrap();
        assert!(!config.pcsc.enabled);
        assert!(config.virtual_card.enabled);
        assert_eq!(config.virtual_card.profile, "default");
        let uicc_readers = "[pcsc]\nuicc_readers = [\"SIM 00 00\"]";
        let config = TokenConfig::parse(uicc_readers).unwrap();
        assert!(config.pcsc.enabled);
        assert_eq!(config.pcsc.uicc_readers, ["SIM 00 00"]);
    }

    #[test]
    fn modules_and_the_tpm() {
        let config = TokenConfig::parse("").unwrap();
        assert!(config.pkcs11.is_empty() && config.tpm.tcti.is_none());
        let config = TokenConfig::parse(
            "[tpm]\ntcti = \"device:/dev/tpmrm0\"\n[[pkcs11]]\nmodule = \"/a.so\"\nlabel = \"A\"\n\
             [[pkcs11]]\nmodule = \"/b.so\"\nlabel = \"B\"\nread = [\"/c\"]\nwrite = [\"/d\"]\npcsc = true\n\
             environment = { CONF = \"x\" }",
        )
        .unwrap();
        assert_eq!(config.tpm.tcti.as_deref(), Some("device:/dev/tpmrm0"));
        let modules: Vec<ModuleConfig> = config.pkcs11.iter().map(Pkcs11::to_config).collect();
        let plain = ModuleConfig {
            module: "/a.so".into(),
            label: "A".into(),
            ..ModuleConfig::default()
        };
        let full = ModuleConfig {
            module: "/b.so".into(),
            label: "B".into(),
            read: vec!["/c".into()],
            write: vec!["/d".into()],
            pcsc: true,
            environment: BTreeMap::from([("CONF".into(), "x".into())]),
        };
        assert_eq!(modules, [plain, full]);
        for (line, key) in [
            ("label = 1", "string"),
            ("write = [\"d\"]", "absolute"),
            ("environment = { LD_PRELOAD = \"/x\" }", "LD_PRELOAD"),
            ("pcscd = true", "pcscd"),
        ] {
            let text = format!("[[pkcs11]]\nmodule = \"/a.so\"\n{line}\n");
            let error = TokenConfig::parse(&text).unwrap_err();
            assert!(error.contains(key) && error.contains("line 3"), "{error}");
        }
        let error = TokenConfig::parse("[[pkcs11]]\nmodule = \"a.so\"\nlabel = \"A\"").unwrap_err();
        assert!(
            error.contains("absolute") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn the_management_key_of_piv_cards() {
        let key = |digits: &str| {
            let text = format!("[piv]\nmanagement_key = \"{digits}\"");
            TokenConfig::parse(&text).map(|config| config.piv.management_key)
        };
        let expected = Bytes((0..24).collect());
        assert_eq!(
            key("000102030405060708090a0b0C0D0E0F1011121314151617"),
            Ok(Some(expected))
        );
        for wrong in ["", "00", "zz", &"0".repeat(33), &"g".repeat(32)] {
            let error = key(wrong).unwrap_err();
            assert!(
                error.contains("line 2") && error.contains("management key"),
                "{error}"
            );
        }
        assert_eq!(TokenConfig::parse("").unwrap().piv.management_key, None);
        let shown = format!("{:?}", TokenConfig::parse("").unwrap());
        assert!(shown.contains("piv: Piv"), "{shown}");
    }

    #[test]
    fn the_choice_where_there_are_no_rules() {
        let access = TokenConfig::parse("").unwrap().access;
        assert_eq!((access.rules, access.when_no_rules), (None, None));
        let text = "[access]\nrules = \"rules.toml\"\nwhen_no_rules = \"deny\"";
        let access = TokenConfig::parse(text).unwrap().access;
        assert_eq!(access.when_no_rules, Some(WhenNoRules::Deny));
        let error = TokenConfig::parse("[access]\nwhen_no_rules = \"maybe\"").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn one_file_of_rules_decides() {
        let folder = tempfile::tempdir().unwrap();
        let (administrator, user) = (folder.path().join("etc"), folder.path().join("user"));
        let choose = |explicit| RulesFile::choose(explicit, &administrator, &user);
        assert_eq!(choose(None), None);
        fs::write(&user, "").unwrap();
        assert_eq!(choose(None), Some(RulesFile::User(user.clone())));
        // A link that leads nowhere is there, and cannot be read.
        symlink("nowhere", &administrator).unwrap();
        let chosen = choose(None);
        assert_eq!(
            chosen,
            Some(RulesFile::Administrator(administrator.clone()))
        );
        let explicit = Path::new("rules.toml");
        assert_eq!(
            choose(Some(explicit)),
            Some(RulesFile::Explicit(explicit.to_owned()))
        );
    }

    #[test]
    fn who_answers_is_whoever_was_named_last() {
        let (sender, receiver) = unbounded();
        let modes = PromptModes(receiver);
        assert!(modes.newest(&Mode::Nobody).is_none());
        sender.send(TokenPromptMode::Reject).unwrap();
        let pin = Some("1234".to_owned());
        sender.send(TokenPromptMode::Accept { pin }).unwrap();
        match modes.newest(&Mode::Nobody) {
            Some(Mode::Accept { pin: Some(pin) }) => assert_eq!(*pin, "1234"),
            other => panic!("{other:?}"),
        }
        sender.send(TokenPromptMode::Manual).unwrap();
        assert!(matches!(modes.newest(&Mode::Nobody), Some(Mode::Nobody)));
        sender.send(TokenPromptMode::Reject).unwrap();
        assert!(matches!(modes.newest(&Mode::Nobody), Some(Mode::Reject)));
    }

    #[test]
    fn a_pin_is_not_logged() {
        let command: TokenPromptMode =
            serde_json::from_str(r#"{"mode": "accept", "pin": "1234"}"#).unwrap();
        assert!(!format!("{command:?}").contains("1234"));
        let pin = Some("1234".to_owned());
        assert!(command == TokenPromptMode::Accept { pin });
        for body in [
            r#"{"mode": "manual", "pin": null}"#,
            r#"{"mode": "reject"}"#,
        ] {
            assert!(
                serde_json::from_str::<TokenPromptMode>(body).is_ok(),
                "{body}"
            );
        }
        for body in [
            r#"{"mode": "always"}"#,
            r#"{"mode": "accept", "pin": 1234}"#,
            "{}",
        ] {
            assert!(
                serde_json::from_str::<TokenPromptMode>(body).is_err(),
                "{body}"
            );
        }
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
