/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A browser on a page of its own server: what most end-to-end tests begin with.

use std::error::Error;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::Server;
use crate::shell::{Options, Shell};
use crate::webdriver::{self, Session};

/// How long a page's own script may take.
const SCRIPT: Duration = Duration::from_secs(30);
/// The page that is open at the start.
const START_PAGE: &str = "<!DOCTYPE html><title>start</title><p>An empty page.";

/// Functions for the page's scripts, to keep the tests short.
pub const HELPERS: &str = r#"
    self.hex = text => Uint8Array.from(text.match(/../g) || [], pair => parseInt(pair, 16));
    self.text = bytes => Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
    self.answer = response => text(response.data) + text([response.sw1, response.sw2]);
    self.reader = async () => {
        const [reader] = (await navigator.secureElementManager.getReaders())
            .filter(reader => reader.isSEPresent);
        if (!reader)
            throw new Error("no reader has an element");
        return reader;
    };
    self.command = (apdu, le) =>
        new SECommand(...hex(apdu).slice(0, 4), apdu.length > 8 ? hex(apdu).slice(4) : null, le);
"#;

/// The server, the browser and a session, which ends in the opposite order.
#[derive(Debug)]
pub struct Browser {
    /// Commands go here.
    pub session: Session,
    /// The processes.
    pub shell: Shell,
    /// The pages.
    pub server: Server,
}

impl Browser {
    /// Starts a server and a browser, and opens an empty page from it over HTTPS.
    ///
    /// # Errors
    /// If one of them does not start.
    pub fn start(options: &Options) -> Result<Browser, Box<dyn Error>> {
        Browser::start_on(Server::builder().start()?, options)
    }

    /// Starts a browser on this server, and opens an empty page from it over HTTPS.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_on(server: Server, options: &Options) -> Result<Browser, Box<dyn Error>> {
        let shell = Shell::start(&server, options)?;
        Browser::on(server, shell)
    }

    /// Opens an empty page from this server in a browser that runs.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn on(server: Server, shell: Shell) -> Result<Browser, Box<dyn Error>> {
        server.page("/", START_PAGE);
        let session = shell.session()?;
        session.set_timeouts(SCRIPT, SCRIPT)?;
        let browser = Browser {
            session,
            shell,
            server,
        };
        browser.open("/")?;
        Ok(browser)
    }

    /// Opens a page of the server, under its main name.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn open(&self, path: &str) -> webdriver::Result<()> {
        self.session.navigate(&self.server.url(path))?;
        self.session.execute(HELPERS, &[]).map(drop)
    }

    /// Grants the page's origin access to secure elements.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn grant(&self) -> webdriver::Result<()> {
        self.session
            .set_permission(json!({ "name": "secure-element" }), "granted")
    }

    /// Evaluates an expression, which may be a promise, in the page.
    ///
    /// The page has `hex(string)`, `text(bytes)`, `answer(SEResponse)`, `reader()` for the first
    /// reader with an element, and `command(header and data, le)`.
    ///
    /// # Errors
    /// Those of WebDriver; the inner error is what the page's script threw, `name: message`.
    pub fn evaluate(&self, expression: &str) -> webdriver::Result<Result<Value, String>> {
        self.session.evaluate(expression)
    }
}
