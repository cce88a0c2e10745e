/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Drives one browser from test to test, and replaces it when it is no longer fit for use.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Outcome, Scheme, Status, Subtest, Test};
use crate::process::wait_for;
use crate::server::{HOST, Server};
use crate::shell::{Options, Shell, StartError};
use crate::webdriver::{self, Element, Error, Frame, Session};

/// How often a page is asked for news.
const POLL: Duration = Duration::from_millis(15);
/// What a page may take beyond its own timeout, which testharness.js enforces from within.
const GRACE: Duration = Duration::from_secs(5);
/// How long any one WebDriver command may take; a page that is busy for longer has had its time.
const COMMAND: Duration = Duration::from_secs(20);
/// How long one of the runner's own scripts may take; a page may be busy.
const SCRIPT: Duration = Duration::from_secs(5);
/// How long a loaded page may do without a harness before it is taken for broken.
const NO_HARNESS: Duration = Duration::from_secs(2);

/// Why no more tests can be run.
#[derive(Debug)]
pub enum RunnerError {
    /// The browser does not start.
    Start(StartError),
    /// It starts, but does not open a session.
    Session(Error),
}

impl fmt::Display for RunnerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunnerError::Start(error) => error.fmt(formatter),
            RunnerError::Session(error) => write!(formatter, "no WebDriver session: {error}"),
        }
    }
}

impl std::error::Error for RunnerError {}

/// Runs tests one by one.
pub struct Runner<'a> {
    server: &'a Server,
    options: Options,
    /// What the browser's user enters where a token wants a PIN, saying yes to everything else.
    pin: Option<String>,
    browser: Option<Browser>,
}

struct Browser {
    shell: Shell,
    session: Session,
    window: String,
}

/// What one page did to the browser besides its results.
#[derive(Default)]
struct Traces {
    /// Permissions that it set: the frame's path and the descriptor.
    permissions: Vec<(Vec<u16>, Value)>,
}

/// One poll's answer.
enum News {
    /// The harness is there; it had these messages.
    Messages(Vec<Value>),
    /// There is no harness; whether a page has finished loading, and what its URL is.
    NoHarness { loaded: bool, url: String },
}

impl<'a> Runner<'a> {
    /// A runner of tests on `server`; the browser starts with the first test.
    pub fn new(server: &'a Server, options: Options) -> Runner<'a> {
        Runner {
            server,
            options,
            pin: None,
            browser: None,
        }
    }

    /// Has the browser's user say yes to every prompt about tokens, and enter this PIN where one is wanted.
    #[must_use]
    pub fn with_pin(mut self, pin: &str) -> Runner<'a> {
        self.pin = Some(pin.to_owned());
        self
    }

    /// Runs one test.
    ///
    /// # Errors
    /// If there is no browser to run it; whatever the test does to the browser is an outcome.
    pub fn run(&mut self, test: &Test) -> Result<Outcome, RunnerError> {
        let browser = match self.browser.take() {
            Some(browser) => browser,
            None => Browser::start(self.server, &self.options, self.pin.as_deref())?,
        };
        let url = match test.scheme {
            Scheme::Https => self.server.url_on(HOST, &test.url),
            Scheme::Http => self.server.insecure_url_on(HOST, &test.url),
        };
        let mut traces = Traces::default();
        match browser.run(&url, test.timeout, &mut traces) {
            Ok(outcome) => {
                // A browser that cannot be tidied up is replaced.
                if outcome.status != Status::Timeout && browser.tidy(&traces).is_ok() {
                    self.browser = Some(browser);
                }
                Ok(outcome)
            }
            Err(error) => {
                let log = browser.shell.log_tail();
                let status = match error {
                    Error::Timeout => Status::Timeout,
                    _ => Status::Crash,
                };
                Ok(page_failed(status, format!("{error}\n{log}")))
            }
        }
    }
}

fn page_failed(status: Status, message: String) -> Outcome {
    Outcome {
        status,
        message,
        subtests: Vec::new(),
    }
}

/// Whether the browser is unfit for use after this error.
fn is_fatal(error: &Error) -> bool {
    match error {
        Error::Connection(_) | Error::Timeout | Error::Malformed(_) => true,
        Error::Command { .. } => error.is("no such window") || error.is("invalid session id"),
    }
}

impl Browser {
    fn start(
        server: &Server,
        options: &Options,
        pin: Option<&str>,
    ) -> Result<Browser, RunnerError> {
        let shell = Shell::start(server, options).map_err(RunnerError::Start)?;
        let session = || -> webdriver::Result<(Session, String)> {
            // The harness says when a page is done; waiting for its load event would deadlock
            // with tests that need the runner before it.
            let capabilities = json!({
                "pageLoadStrategy": "none",
                "timeouts": { "script": SCRIPT.as_millis() as u64 },
                "unhandledPromptBehavior": "dismiss",
            });
            let mut session = shell.session_with(capabilities)?;
            session.set_deadline(COMMAND);
            if let Some(pin) = pin {
                let mode = json!({ "mode": "accept", "pin": pin });
                session.post("token-prompts/set-mode", mode)?;
            }
            let window = session.window()?;
            Ok((session, window))
        };
        let (session, window) = session().map_err(RunnerError::Session)?;
        Ok(Browser {
            shell,
            session,
            window,
        })
    }

    /// Runs the page. An error means that the browser died or hangs.
    fn run(&self, url: &str, timeout: Duration, traces: &mut Traces) -> webdriver::Result<Outcome> {
        self.session.navigate(url)?;
        let deadline = Instant::now() + timeout + GRACE;
        let mut loaded_without_harness: Option<Instant> = None;
        loop {
            match self.poll() {
                Ok(News::Messages(messages)) => {
                    loaded_without_harness = None;
                    for message in messages {
                        if message["type"] == "complete" {
                            return Ok(outcome_of(&message));
                        }
                        self.act(&message, traces)?;
                    }
                }
                Ok(News::NoHarness { loaded, url }) => {
                    if !loaded || url == "about:blank" {
                        loaded_without_harness = None;
                    } else if loaded_without_harness
                        .get_or_insert_with(Instant::now)
                        .elapsed()
                        > NO_HARNESS
                    {
                        let message = format!("{url} has no testharnessreport.js");
                        return Ok(page_failed(Status::Error, message));
                    }
                }
                Err(error) if is_fatal(&error) => return Err(error),
                // A script fails while its page is being replaced, or is busy.
                Err(_) => {}
            }
            if Instant::now() > deadline {
                let message = format!("no result within {:?}", timeout + GRACE);
                return Ok(page_failed(Status::Timeout, message));
            }
            std::thread::sleep(POLL);
        }
    }

    fn poll(&self) -> webdriver::Result<News> {
        let script = "const runner = window.__wptrunner;\n\
            return JSON.stringify(runner ? { messages: runner.take() } : \
            { loaded: document.readyState === 'complete', url: location.href });";
        let text = self.session.execute(script, &[])?;
        let malformed = || Error::Malformed(text.to_string());
        let answer: Value = text
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(malformed)?;
        if let Some(messages) = answer.get("messages").and_then(Value::as_array) {
            return Ok(News::Messages(messages.clone()));
        }
        let loaded = answer["loaded"].as_bool().ok_or_else(malformed)?;
        let url = answer["url"].as_str().ok_or_else(malformed)?.to_owned();
        Ok(News::NoHarness { loaded, url })
    }

    /// Does what the page asked for and tells it.
    fn act(&self, message: &Value, traces: &mut Traces) -> webdriver::Result<()> {
        let name = message["name"].as_str().unwrap_or_default();
        let done = self.carry_out(name, &message["parameters"], traces);
        let error = match done {
            Ok(()) => Value::Null,
            Err(error) if is_fatal(&error) => return Err(error),
            Err(error) => json!(format!("testdriver {name}: {error}")),
        };
        self.session.switch_to_frame(&Frame::Top)?;
        let arguments = [message["id"].clone(), error];
        self.session
            .execute(
                "window.__wptrunner.reply(arguments[0], arguments[1], null);",
                &arguments,
            )
            .map(drop)
    }

    fn carry_out(
        &self,
        name: &str,
        parameters: &Value,
        traces: &mut Traces,
    ) -> webdriver::Result<()> {
        match name {
            "click" => self.session.click(&self.element(&parameters["element"])?),
            "send_keys" => {
                let element = self.element(&parameters["element"])?;
                self.session
                    .send_keys(&element, parameters["keys"].as_str().unwrap_or_default())
            }
            "delete_all_cookies" => {
                self.enter(&parameters["frame"])?;
                self.session.delete("cookie").map(drop)
            }
            "set_permission" => {
                let path = self.enter(&parameters["frame"])?;
                let descriptor = parameters["permission"]["descriptor"].clone();
                let state = parameters["permission"]["state"]
                    .as_str()
                    .unwrap_or_default();
                self.session.set_permission(descriptor.clone(), state)?;
                traces.permissions.push((path, descriptor));
                Ok(())
            }
            _ => Err(Error::Malformed(format!("unknown request {name:?}"))),
        }
    }

    /// Switches to the frame that the page described.
    fn enter(&self, frame: &Value) -> webdriver::Result<Vec<u16>> {
        let path: Vec<u16> = serde_json::from_value(frame["path"].clone())
            .map_err(|_| Error::Malformed(format!("not a frame: {frame}")))?;
        self.enter_path(&path)?;
        Ok(path)
    }

    fn enter_path(&self, path: &[u16]) -> webdriver::Result<()> {
        self.session.switch_to_frame(&Frame::Top)?;
        path.iter()
            .try_for_each(|child| self.session.switch_to_frame(&Frame::Child(*child)))
    }

    fn element(&self, reference: &Value) -> webdriver::Result<Element> {
        self.enter(reference)?;
        let script = "return window.__wptrunner_elements[arguments[0]];";
        let value = self
            .session
            .execute(script, &[reference["index"].clone()])?;
        Element::from_value(&value).ok_or_else(|| Error::Malformed(format!("no element: {value}")))
    }

    /// Undoes what the page did, so that the next one starts afresh.
    fn tidy(&self, traces: &Traces) -> webdriver::Result<()> {
        for (path, descriptor) in &traces.permissions {
            self.enter_path(path)?;
            self.session.set_permission(descriptor.clone(), "prompt")?;
        }
        for window in self.session.windows()? {
            if window != self.window {
                self.session.switch_to_window(&window)?;
                self.session.close_window()?;
            }
        }
        self.session.switch_to_window(&self.window)?;
        self.session.switch_to_frame(&Frame::Top)?;
        self.session.navigate("about:blank")?;
        let blank = wait_for(SCRIPT, || match self.poll() {
            Ok(News::NoHarness { loaded: true, url }) => (url == "about:blank").then_some(Ok(())),
            Err(error) if is_fatal(&error) => Some(Err(error)),
            _ => None,
        });
        blank.unwrap_or(Err(Error::Timeout))
    }
}

fn outcome_of(message: &Value) -> Outcome {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = match message["status"].as_u64() {
        Some(0) => Status::Ok,
        Some(2) => Status::Timeout,
        Some(3) => Status::PreconditionFailed,
        _ => Status::Error,
    };
    let subtests = message["subtests"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    Outcome {
        status,
        message: text(&message["message"]),
        subtests: subtests
            .iter()
            .map(|subtest| Subtest {
                name: text(&subtest["name"]),
                status: match subtest["status"].as_u64() {
                    Some(0) => Status::Pass,
                    Some(2) => Status::Timeout,
                    Some(3) => Status::NotRun,
                    Some(4) => Status::PreconditionFailed,
                    _ => Status::Fail,
                },
                message: text(&subtest["message"]),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_the_harness_are_read() {
        let outcome = outcome_of(&json!({
            "type": "complete", "status": 2, "message": null,
            "subtests": [
                { "name": "a", "status": 0, "message": null },
                { "name": "b", "status": 1, "message": "why" },
                { "name": "c", "status": 3, "message": null },
                { "name": "d" },
            ],
        }));
        assert_eq!(outcome.status, Status::Timeout);
        let statuses: Vec<_> = outcome
            .subtests
            .iter()
            .map(|subtest| subtest.status)
            .collect();
        assert_eq!(
            statuses,
            [Status::Pass, Status::Fail, Status::NotRun, Status::Fail]
        );
        assert_eq!(outcome.subtests[1].message, "why");
        assert_eq!(outcome_of(&json!({})).status, Status::Error);
    }
}
