/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! SoftHSM2: a PKCS#11 module with tokens of its own, in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use tempfile::TempDir;

use crate::process::run;

/// Where Debian has the module.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// Where Debian has OpenSC's spy.
const SPY: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so";
/// The user's PIN of a new token.
pub const PIN: &str = "246810";
/// The security officer's PIN of a new token.
const SO_PIN: &str = "13579246";
/// A command of a tool takes less.
const LIMIT: Duration = Duration::from_secs(30);

/// A folder with tokens. It goes when it is dropped.
#[derive(Debug)]
pub struct SoftHsm {
    folder: TempDir,
    pin: String,
}

impl SoftHsm {
    /// Makes a token with that label and [`PIN`].
    ///
    /// # Errors
    /// If softhsm2-util cannot be run, or does not want to.
    pub fn with_token(label: &str) -> io::Result<Self> {
        Self::with_pin(label, PIN)
    }

    /// Makes a token with another PIN.
    ///
    /// # Errors
    /// As with [`SoftHsm::with_token`].
    pub fn with_pin(label: &str, pin: &str) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let pin = pin.to_owned();
        let hsm = Self { folder, pin };
        fs::create_dir(hsm.tokens())?;
        let tokens = hsm.tokens();
        fs::write(
            hsm.configuration(),
            format!(
                "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
                tokens.display()
            ),
        )?;
        hsm.add_token(label)?;
        Ok(hsm)
    }

    /// Makes another token.
    ///
    /// # Errors
    /// As with [`SoftHsm::with_token`].
    pub fn add_token(&self, label: &str) -> io::Result<()> {
        let mut command = self.tool("softhsm2-util");
        command.args(["--init-token", "--free", "--label", label]);
        command.args(["--so-pin", SO_PIN, "--pin", &self.pin]);
        finish(&mut command).map(drop)
    }

    /// The user's PIN.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// The folder with the tokens' files.
    pub fn tokens(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("softhsm2.conf")
    }

    /// A part of a token configuration that has the browser use it.
    pub fn token_config(&self) -> String {
        self.token_config_with(Path::new(MODULE))
    }

    /// The same with another module, which gets what this one needs.
    pub fn token_config_with(&self, module: &Path) -> String {
        let configuration = self.configuration();
        let tokens = self.tokens();
        format!(
            "[[pkcs11]]\nmodule = {module:?}\nlabel = \"SoftHSM\"\nread = [{configuration:?}]\nwrite = [{tokens:?}]\n\
             environment = {{ SOFTHSM2_CONF = {configuration:?} }}\n"
        )
    }

    /// The same through OpenSC's `pkcs11-spy`, which writes down each call of a function of the module's, and what is in it.
    ///
    /// # Errors
    /// If there is no place to write it to.
    pub fn token_config_spied(&self) -> io::Result<String> {
        let log = self.spy_log();
        fs::write(&log, "")?;
        let (configuration, tokens) = (self.configuration(), self.tokens());
        Ok(format!(
            "[[pkcs11]]\nmodule = {SPY:?}\nlabel = \"SoftHSM\"\nread = [{configuration:?}]\nwrite = [{tokens:?}, {log:?}]\n\
             environment = {{ SOFTHSM2_CONF = {configuration:?}, PKCS11SPY = {MODULE:?}, PKCS11SPY_OUTPUT = {log:?} }}\n"
        ))
    }

    /// Where the spy writes to.
    pub fn spy_log(&self) -> PathBuf {
        self.folder.path().join("spy.log")
    }

    /// A tool that uses these tokens.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.configuration());
        command
    }

    /// OpenSC's `pkcs11-tool`, logged in as the user, and what it prints.
    ///
    /// # Errors
    /// If it cannot be run, or does not want to.
    pub fn pkcs11_tool(&self, arguments: &[&str]) -> io::Result<String> {
        let mut command = self.tool("pkcs11-tool");
        command.args(["--module", MODULE, "--login", "--pin", &self.pin]);
        command.args(arguments);
        finish(&mut command)
    }
}

/// Runs a tool, and gives what it prints.
///
/// # Errors
/// If it cannot be run, or fails; then what it says.
pub fn finish(command: &mut Command) -> io::Result<String> {
    let output = run(command, LIMIT)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!(
        "{:?}: {}: {text}{error}",
        command.get_program(),
        output.status
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_sees_the_token() {
        let hsm = SoftHsm::with_token("Company card").unwrap();
        let token = ["--token-label", "Company card"];
        let key = [
            "--keypairgen",
            "--key-type",
            "EC:prime256v1",
            "--label",
            "a key",
        ];
        hsm.pkcs11_tool(&[&token[..], &key].concat()).unwrap();
        let listed = hsm.pkcs11_tool(&["--list-objects"]).unwrap();
        assert!(listed.contains("a key"), "{listed}");
        assert!(hsm.token_config().contains(MODULE));
        assert!(
            hsm.pkcs11_tool(&["--read-object", "--id", "99", "--type", "pubkey"])
                .is_err()
        );
    }
}
