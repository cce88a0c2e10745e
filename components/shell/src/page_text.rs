/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Headless mode without WebDriver: wait for the page, print its text, end.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use servo::{JSValue, JavaScriptEvaluationError, WebView};

/// How long a page may take to load, and the demo to come to its end.
const LIMIT: Duration = Duration::from_secs(30);

/// Answers with what is wrong with the page (the empty string if nothing), the demo's state, and the page's text.
///
/// The engine shows its own page instead of one that could not be loaded, and tells nobody. It is known by its title and
/// contents.
const SCRIPT: &str = r#"(() => {
    const text = document.body?.innerText ?? "";
    const failed =
        document.title === "Error loading page" && text.startsWith("Could not load the requested page:") ||
        document.title === "Certificate error" && document.getElementById("allow") !== null;
    return [failed ? text.split("\n")[0] : "", document.documentElement.dataset.state ?? "", text];
})()"#;

/// A page's text; or, if it is known, together with what went wrong.
pub struct Outcome {
    text: String,
    problem: Option<String>,
}

type Evaluation = Result<JSValue, JavaScriptEvaluationError>;

/// Waits for the first page.
pub struct PageText {
    is_demo: bool,
    deadline: Instant,
    loaded: Cell<bool>,
    /// Something has happened since the page was last looked at.
    changed: Cell<bool>,
    looking: Cell<bool>,
    /// What the last look brought, until the next step.
    seen: Rc<RefCell<Option<Evaluation>>>,
    crash: RefCell<Option<String>>,
}

impl PageText {
    /// The time starts now. The demo is done when it says so, other pages when they are loaded.
    pub fn new(is_demo: bool) -> Self {
        Self {
            is_demo,
            deadline: Instant::now() + LIMIT,
            loaded: Cell::new(false),
            changed: Cell::new(false),
            looking: Cell::new(false),
            seen: Default::default(),
            crash: Default::default(),
        }
    }

    /// When [`Self::step`] must be called at the latest.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The page has been loaded.
    pub fn page_loaded(&self) {
        self.loaded.set(true);
        self.changed.set(true);
    }

    /// The page's title has changed, with which the demo reports progress.
    pub fn page_changed(&self) {
        self.changed.set(true);
    }

    /// The page's content process or thread is gone.
    pub fn page_crashed(&self, reason: &str) {
        *self.crash.borrow_mut() = Some(reason.to_owned());
    }

    /// Does the next step. Answers when it is the last.
    pub fn step(&self, webview: Option<&WebView>) -> Option<Outcome> {
        let failure = |problem: String| {
            Some(Outcome {
                text: String::new(),
                problem: Some(problem),
            })
        };
        if let Some(reason) = self.crash.borrow_mut().take() {
            return failure(format!("the page crashed: {reason}"));
        }
        let Some(webview) = webview else {
            return failure("the page has closed itself".into());
        };
        if let Some(seen) = self.seen.borrow_mut().take() {
            self.looking.set(false);
            match seen {
                Ok(value) => {
                    if let Some(outcome) = self.judge(&value) {
                        return Some(outcome);
                    }
                }
                Err(error) => return failure(format!("the page's text cannot be read: {error:?}")),
            }
        }
        if Instant::now() >= self.deadline {
            let what = if self.loaded.get() {
                "the demo did not end"
            } else {
                "the page was not loaded"
            };
            return failure(format!("{what} within {} seconds", LIMIT.as_secs()));
        }
        if self.loaded.get() && !self.looking.get() && self.changed.take() {
            self.looking.set(true);
            let seen = self.seen.clone();
            webview.evaluate_javascript(SCRIPT, move |result| *seen.borrow_mut() = Some(result));
        }
        None
    }

    fn judge(&self, value: &JSValue) -> Option<Outcome> {
        let JSValue::Array(values) = value else {
            return None;
        };
        let [
            JSValue::String(failure),
            JSValue::String(state),
            JSValue::String(text),
        ] = values.as_slice()
        else {
            return None;
        };
        let problem = if !failure.is_empty() {
            Some(failure.clone())
        } else if !self.is_demo || state == "done" {
            None
        } else if state == "failed" {
            Some("the demo failed".to_owned())
        } else {
            return None;
        };
        Some(Outcome {
            text: text.clone(),
            problem,
        })
    }

    /// Prints the outcome. Returns the exit code.
    pub fn print(&self, outcome: Outcome) -> u8 {
        let mut stdout = std::io::stdout();
        let printed = if outcome.text.is_empty() {
            Ok(())
        } else {
            writeln!(stdout, "{}", outcome.text.trim_end())
        };
        if let Err(error) = printed.and_then(|()| stdout.flush()) {
            eprintln!("servo-tokens: cannot print the page's text: {error}");
            return 1;
        }
        match outcome.problem {
            Some(problem) => {
                eprintln!("servo-tokens: {problem}");
                1
            }
            None => 0,
        }
    }
}
