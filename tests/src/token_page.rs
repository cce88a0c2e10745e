/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A page that uses keys in tokens, and OpenSSL to check what it gets.

use std::error::Error;
use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::browser::{Browser, HELPERS};
use crate::server::Server;
use crate::shell::Options;
use crate::softhsm::{SoftHsm, finish};

/// What tests of keys come to.
pub type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Another name of the server, which is another origin.
pub const ELSEWHERE: &str = "not-web-platform.test";
/// The label of SoftHSM2's token.
pub const LABEL: &str = "Company card";
/// A token configuration without cards, for others to go on with.
pub const NO_CARDS: &str = "[pcsc]\nenabled = false\n\n[virtual_card]\nenabled = false\n\n";

const PAGE: &str =
    "<!DOCTYPE html><title>page</title><button id=go style='padding: 2em'>Go</button>";

const SCRIPT: &str = r#"
    self.encode = buffer => btoa(String.fromCharCode(...new Uint8Array(buffer)));
    self.decode = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    self.bytes = text => new TextEncoder().encode(text);
    self.failure = promise => promise.then(() => "no failure", error => error.name);
    self.subtle = crypto.subtle;
    self.curve = { name: "ECDSA", namedCurve: "P-256" };
    self.ecdsa = { name: "ECDSA", hash: "SHA-256" };
    self.rsa = (name, hash = "SHA-256") =>
        ({ name, modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash });
"#;

/// A browser on a page that has a button, with a token of some kind. The page's scripts have `encode` and `decode` (base64),
/// `bytes` (of a text), `failure` (the name of a promise's error), `subtle`, `curve`, `ecdsa` and `rsa(name, hash)`.
#[derive(Debug)]
pub struct Page<T> {
    /// It ends before the token does.
    pub browser: Browser,
    /// What keeps the keys.
    pub token: T,
    pin: String,
}

impl Page<SoftHsm> {
    /// With a token of SoftHSM2's.
    ///
    /// # Errors
    /// If something does not start.
    pub fn softhsm() -> Result<Self> {
        let hsm = SoftHsm::with_token(LABEL)?;
        let config = hsm.token_config();
        Self::with_softhsm(hsm, &config)
    }

    /// With this token configuration for it.
    ///
    /// # Errors
    /// If something does not start.
    pub fn with_softhsm(hsm: SoftHsm, config: &str) -> Result<Self> {
        let pin = hsm.pin().to_owned();
        Self::start(hsm, config, &pin)
    }
}

impl<T> Page<T> {
    /// With a part of a token configuration that has the browser use `token`, and a user who knows this PIN and accepts
    /// everything.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start(token: T, config: &str, pin: &str) -> Result<Self> {
        Self::start_on(Server::builder().start()?, token, config, pin)
    }

    /// The same on a server that has more than the page.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start_on(server: Server, token: T, config: &str, pin: &str) -> Result<Self> {
        let options = Options {
            token_config: format!("{NO_CARDS}{config}"),
            ..Options::default()
        };
        let browser = Browser::start_on(server, &options)?;
        browser.server.page("/page", PAGE);
        let page = Self {
            browser,
            token,
            pin: pin.to_owned(),
        };
        page.open(&page.browser.server.url("/page"))?;
        page.accept()?;
        Ok(page)
    }

    /// Opens a page, and gives it the scripts' helpers.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn open(&self, url: &str) -> Result {
        let session = &self.browser.session;
        session.navigate(url)?;
        session.execute(HELPERS, &[])?;
        session.execute(SCRIPT, &[])?;
        Ok(())
    }

    /// Opens the page again, as another origin.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn open_elsewhere(&self) -> Result {
        self.open(&self.browser.server.url_on(ELSEWHERE, "/page"))
    }

    /// The user accepts everything, and enters the right PIN.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn accept(&self) -> Result {
        self.accept_with(&self.pin)
    }

    /// The user accepts everything, and enters this PIN.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn accept_with(&self, pin: &str) -> Result {
        let body = json!({ "mode": "accept", "pin": pin });
        self.browser.session.post("token-prompts/set-mode", body)?;
        Ok(())
    }

    /// The user refuses everything.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn reject(&self) -> Result {
        let body = json!({ "mode": "reject" });
        self.browser.session.post("token-prompts/set-mode", body)?;
        Ok(())
    }

    /// What an expression comes to.
    ///
    /// # Errors
    /// Those of WebDriver, and what the expression throws.
    pub fn run(&self, expression: &str) -> Result<Value> {
        Ok(self.browser.evaluate(expression)??)
    }

    /// What an expression comes to that is evaluated when the user clicks.
    ///
    /// # Errors
    /// As with [`Page::run`].
    pub fn on_click(&self, expression: &str) -> Result<Value> {
        let script = format!("go.onclick = () => {{ self.outcome = {expression}; }}");
        let session = &self.browser.session;
        session.execute(&script, &[])?;
        let button = session.find("#go")?;
        session.click(&button)?;
        self.run("outcome")
    }

    /// The user grants a token, which is in `token` then. Gives its label.
    ///
    /// # Errors
    /// As with [`Page::run`].
    pub fn grant_token(&self) -> Result<Value> {
        self.on_click(
            "cryptokeys.requestToken().then(token => { self.token = token; return token.label; })",
        )
    }
}

/// A text in JSON.
///
/// # Errors
/// If it is something else.
pub fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .ok_or_else(|| format!("no text: {value}").into())
}

/// Bytes in base64 in JSON.
///
/// # Errors
/// If it is something else.
pub fn decode(value: &Value) -> Result<Vec<u8>> {
    Ok(BASE64.decode(text(value)?)?)
}

/// OpenSSL, and a folder for its files.
#[derive(Debug)]
pub struct OpenSsl(TempDir);

impl OpenSsl {
    /// An empty folder.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    /// Writes a file, and gives its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn file(&self, name: &str, contents: &[u8]) -> Result<String> {
        let path = self.0.path().join(name);
        fs::write(&path, contents)?;
        Ok(path.display().to_string())
    }

    /// Runs a command in the folder, and gives what it prints.
    ///
    /// # Errors
    /// If it fails; then what it says.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("openssl");
        command.current_dir(self.0.path()).args(arguments);
        Ok(finish(&mut command)?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it is not there.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.0.path().join(name))?)
    }

    /// Fails unless it is a signature of the message.
    ///
    /// # Errors
    /// If it is not.
    pub fn verify(
        &self,
        spki: &[u8],
        signature: &[u8],
        message: &[u8],
        options: &[&str],
    ) -> Result {
        let key = self.file("key.der", spki)?;
        self.run(&[
            "pkey", "-pubin", "-inform", "DER", "-in", &key, "-pubout", "-out", "key.pem",
        ])?;
        let signature = self.file("signature", signature)?;
        let message = self.file("message", message)?;
        let arguments = ["dgst", "-verify", "key.pem", "-signature", &signature];
        let said = self.run(&[&arguments[..], options, &[&message]].concat())?;
        match said.contains("Verified OK") {
            true => Ok(()),
            false => Err(said.into()),
        }
    }
}

/// `r` and `s`, of 66 bytes each at most, as OpenSSL wants them: a DER sequence of two integers.
pub fn der_signature(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(signature.len() / 2);
    let integers = [r, s].map(|number| {
        let mut digits: Vec<u8> = number
            .iter()
            .copied()
            .skip_while(|byte| *byte == 0)
            .collect();
        if digits.first().is_none_or(|first| *first >= 0x80) {
            digits.insert(0, 0);
        }
        let length = u8::try_from(digits.len()).unwrap_or(u8::MAX);
        [vec![2, length], digits].concat()
    });
    let content = integers.concat();
    let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
    let head = if length < 128 {
        vec![0x30, length]
    } else {
        vec![0x30, 0x81, length]
    };
    [head, content].concat()
}
