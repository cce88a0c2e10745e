/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A small blocking client for [W3C WebDriver](https://w3c.github.io/webdriver/).

use std::fmt;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use ureq::Agent;

/// How long any one command may take, unless [`Session::set_deadline`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(60);
/// The largest answer, in bytes; a screenshot is the largest there is.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// The key by which an element travels.
const ELEMENT_KEY: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Why a command failed.
#[derive(Debug)]
pub enum Error {
    /// No answer within the deadline.
    Timeout,
    /// No connection, or it broke: the browser is gone, most likely.
    Connection(String),
    /// An answer that is not WebDriver's.
    Malformed(String),
    /// The browser answered with an error.
    Command {
        /// The error code of the specification, such as `no such element`.
        code: String,
        /// What the browser says about it.
        message: String,
    },
}

impl Error {
    /// Whether the browser answered with this error code.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Error::Command { code, .. } if code == wanted)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Timeout => formatter.write_str("no answer in time"),
            Error::Connection(reason) => write!(formatter, "no connection: {reason}"),
            Error::Malformed(what) => write!(formatter, "malformed answer: {what}"),
            Error::Command { code, message } => write!(formatter, "{code}: {message}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<ureq::Error> for Error {
    fn from(error: ureq::Error) -> Error {
        match error {
            ureq::Error::Timeout(_) => Error::Timeout,
            ureq::Error::Json(error) => Error::Malformed(error.to_string()),
            other => Error::Connection(other.to_string()),
        }
    }
}

/// What a command gives.
pub type Result<T> = std::result::Result<T, Error>;

/// An element of the page, as the browser knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element(String);

impl Element {
    /// The element that a script returned.
    pub fn from_value(value: &Value) -> Option<Element> {
        value
            .get(ELEMENT_KEY)?
            .as_str()
            .map(|id| Element(id.to_owned()))
    }

    /// This element as an argument for a script.
    pub fn to_value(&self) -> Value {
        json!({ ELEMENT_KEY: self.0 })
    }
}

/// A frame to switch to.
#[derive(Clone, Debug)]
pub enum Frame {
    /// The top-level page.
    Top,
    /// The n-th child of the current frame, from 0.
    Child(u16),
    /// The frame in this `iframe` element.
    Of(Element),
}

/// A connection to a browser that may have no session yet.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    base: String,
}

impl Client {
    /// A client for a browser on a loopback port. Does not connect yet.
    pub fn new(port: u16) -> Client {
        let config = Agent::config_builder()
            .timeout_global(Some(DEADLINE))
            .http_status_as_error(false)
            .proxy(None)
            .build();
        Client {
            agent: config.into(),
            base: format!("http://127.0.0.1:{port}"),
        }
    }

    /// Whether the browser is ready for a new session.
    ///
    /// # Errors
    /// Those of [`Error`]; [`Error::Connection`] while nothing listens yet.
    pub fn is_ready(&self, deadline: Duration) -> Result<bool> {
        let request = self.agent.get(format!("{}/status", self.base));
        let response = request
            .config()
            .timeout_global(Some(deadline))
            .build()
            .call()?;
        Ok(value_of(response)?
            .get("ready")
            .and_then(Value::as_bool)
            .unwrap_or(false))
    }

    /// Opens a session with these capabilities (the `alwaysMatch` object).
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn new_session(&self, capabilities: Value) -> Result<Session> {
        let body = json!({ "capabilities": { "alwaysMatch": capabilities } });
        let response = self
            .agent
            .post(format!("{}/session", self.base))
            .send_json(body)?;
        let value = value_of(response)?;
        let id = value
            .get("sessionId")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::Malformed(format!("no session id: {value}")))?;
        Ok(Session {
            agent: self.agent.clone(),
            base: format!("{}/session/{id}", self.base),
            deadline: DEADLINE,
        })
    }
}

fn value_of(mut response: ureq::http::Response<ureq::Body>) -> Result<Value> {
    let status = response.status();
    // Read to its end, the answer leaves a connection that can be used again.
    let answer = response
        .body_mut()
        .with_config()
        .limit(MAX_ANSWER)
        .read_to_string()?;
    let mut answer: Value =
        serde_json::from_str(&answer).map_err(|error| Error::Malformed(error.to_string()))?;
    let value = match answer.get_mut("value") {
        Some(value) => value.take(),
        None => return Err(Error::Malformed(format!("status {status}, no value"))),
    };
    if status.is_success() {
        return Ok(value);
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    Err(match text("error") {
        Some(code) => Error::Command {
            code,
            message: text("message").unwrap_or_default(),
        },
        None => Error::Malformed(format!("status {status}: {value}")),
    })
}

fn string(value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Error::Malformed(format!("not a string: {other}"))),
    }
}

/// A session. It is not closed when dropped; the browser ends with its fixture.
#[derive(Debug)]
pub struct Session {
    agent: Agent,
    base: String,
    deadline: Duration,
}

impl Session {
    /// How long each further command may take.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Sends any command below the session: `path` is relative, such as `token-prompts/set-mode`.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn post(&self, path: &str, body: Value) -> Result<Value> {
        let request = self.agent.post(format!("{}/{path}", self.base));
        value_of(
            request
                .config()
                .timeout_global(Some(self.deadline))
                .build()
                .send_json(body)?,
        )
    }

    /// Asks for anything below the session.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(format!("{}/{path}", self.base));
        value_of(
            request
                .config()
                .timeout_global(Some(self.deadline))
                .build()
                .call()?,
        )
    }

    /// Deletes anything below the session.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn delete(&self, path: &str) -> Result<Value> {
        let separator = if path.is_empty() { "" } else { "/" };
        let request = self.agent.delete(format!("{}{separator}{path}", self.base));
        value_of(
            request
                .config()
                .timeout_global(Some(self.deadline))
                .build()
                .call()?,
        )
    }

    /// Ends the session.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn close(self) -> Result<()> {
        self.delete("").map(drop)
    }

    /// Loads a page, and waits for it as the session's page load strategy says.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn navigate(&self, url: &str) -> Result<()> {
        self.post("url", json!({ "url": url })).map(drop)
    }

    /// The page's URL.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn url(&self) -> Result<String> {
        string(self.get("url")?)
    }

    /// The page's title.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn title(&self) -> Result<String> {
        string(self.get("title")?)
    }

    /// Runs the body of a function and gives what it returns.
    ///
    /// # Errors
    /// Those of [`Error`]; `javascript error` if it throws.
    pub fn execute(&self, script: &str, arguments: &[Value]) -> Result<Value> {
        self.post(
            "execute/sync",
            json!({ "script": script, "args": arguments }),
        )
    }

    /// Runs the body of a function and gives what it passes to its last argument, a callback.
    ///
    /// # Errors
    /// Those of [`Error`]; `javascript error` if it throws, `script timeout` if it never answers.
    pub fn execute_async(&self, script: &str, arguments: &[Value]) -> Result<Value> {
        self.post(
            "execute/async",
            json!({ "script": script, "args": arguments }),
        )
    }

    /// Evaluates an expression that may be a promise, in the page; gives its value, or the
    /// exception's `name: message` as `Err`.
    ///
    /// # Errors
    /// Those of [`Error`]; the inner result is the script's own.
    pub fn evaluate(&self, expression: &str) -> Result<std::result::Result<Value, String>> {
        let script = format!(
            "const done = arguments[arguments.length - 1];\n\
             (async () => ({expression}))().then(\n\
                 value => done({{ value: value === undefined ? null : value }}),\n\
                 error => done({{ error: `${{error.name}}: ${{error.message}}` }}));"
        );
        let mut answer = self.execute_async(&script, &[])?;
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            return Ok(Err(error.to_owned()));
        }
        match answer.get_mut("value") {
            Some(value) => Ok(Ok(value.take())),
            None => Err(Error::Malformed(answer.to_string())),
        }
    }

    /// The first element that a CSS selector matches.
    ///
    /// # Errors
    /// Those of [`Error`]; `no such element` if there is none.
    pub fn find(&self, selector: &str) -> Result<Element> {
        let body = json!({ "using": "css selector", "value": selector });
        let value = self.post("element", body)?;
        Element::from_value(&value).ok_or_else(|| Error::Malformed(value.to_string()))
    }

    /// Clicks on the middle of an element, as a user would.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn click(&self, element: &Element) -> Result<()> {
        self.post(&format!("element/{}/click", element.0), json!({}))
            .map(drop)
    }

    /// Types into an element.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn send_keys(&self, element: &Element, text: &str) -> Result<()> {
        self.post(
            &format!("element/{}/value", element.0),
            json!({ "text": text }),
        )
        .map(drop)
    }

    /// The text of an element, as it is shown.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn text(&self, element: &Element) -> Result<String> {
        string(self.get(&format!("element/{}/text", element.0))?)
    }

    /// A picture of the page, PNG.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn screenshot(&self) -> Result<Vec<u8>> {
        let answer = match self.get("screenshot") {
            // Servo 0.7.0 loses the request now and then (seen about once in fifty pictures), and says so after ten
            // seconds.
            Err(error) if error.is("timeout") => self.get("screenshot")?,
            answer => answer?,
        };
        let text = string(answer)?;
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_err(|error| Error::Malformed(error.to_string()))
    }

    /// Makes further commands go to another frame.
    ///
    /// # Errors
    /// Those of [`Error`]; `no such frame` if there is none.
    pub fn switch_to_frame(&self, frame: &Frame) -> Result<()> {
        let id = match frame {
            Frame::Top => Value::Null,
            Frame::Child(index) => json!(index),
            Frame::Of(element) => element.to_value(),
        };
        self.post("frame", json!({ "id": id })).map(drop)
    }

    /// The handle of the current window.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn window(&self) -> Result<String> {
        string(self.get("window")?)
    }

    /// The handles of all windows.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn windows(&self) -> Result<Vec<String>> {
        let value = self.get("window/handles")?;
        serde_json::from_value(value).map_err(|error| Error::Malformed(error.to_string()))
    }

    /// Opens a window (or tab) and gives its handle; commands still go to the current one.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn new_window(&self) -> Result<String> {
        let value = self.post("window/new", json!({ "type": "window" }))?;
        string(value.get("handle").cloned().unwrap_or_default())
    }

    /// Makes further commands go to another window.
    ///
    /// # Errors
    /// Those of [`Error`]; `no such window` if there is none.
    pub fn switch_to_window(&self, handle: &str) -> Result<()> {
        self.post("window", json!({ "handle": handle })).map(drop)
    }

    /// Closes the current window. One has to switch to another before the next command.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn close_window(&self) -> Result<()> {
        self.delete("window").map(drop)
    }

    /// [Set Permission](https://w3c.github.io/permissions/#webdriver-command-set-permission) for
    /// the origin of the current frame. `state` is `granted`, `denied` or `prompt`.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn set_permission(&self, descriptor: Value, state: &str) -> Result<()> {
        self.post(
            "permissions",
            json!({ "descriptor": descriptor, "state": state }),
        )
        .map(drop)
    }

    /// Sets how long scripts and page loads may take.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn set_timeouts(&self, script: Duration, page_load: Duration) -> Result<()> {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (script, page_load) = (milliseconds(script), milliseconds(page_load));
        self.post(
            "timeouts",
            json!({ "script": script, "pageLoad": page_load }),
        )
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::server::{Request, Response, Server};

    /// Method, path and body of each request.
    type Seen = Arc<Mutex<Vec<(String, String, Value)>>>;

    /// A browser that knows its lines: requests are kept, answers are the given ones.
    fn scripted(answers: Vec<(u16, &'static str)>) -> (Server, Session, Seen) {
        let server = Server::builder().start().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        for path in [
            "session/s",
            "session/s/url",
            "session/s/element/e/click",
            "session/s/frame",
            "session/s/execute/async",
            "session/s/permissions",
            "session/s/screenshot",
        ] {
            let (seen, answers) = (seen.clone(), answers.clone());
            server.route(&format!("/{path}"), move |request: &Request| {
                let body = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
                seen.lock()
                    .unwrap()
                    .push((request.method.clone(), request.path.clone(), body));
                match answers.lock().unwrap().next() {
                    Some((status, body)) => Response::new(status, "application/json", body),
                    None => {
                        thread::sleep(Duration::from_secs(5));
                        Response::text(200, "")
                    }
                }
            });
        }
        server.route("/session", |_| {
            Response::new(
                200,
                "application/json",
                r#"{"value":{"sessionId":"s","capabilities":{}}}"#,
            )
        });
        let url = server.insecure_url_on("127.0.0.1", "");
        let port = url.rsplit_once(':').unwrap().1.parse().unwrap();
        let session = Client::new(port).new_session(json!({})).unwrap();
        (server, session, seen)
    }

    #[test]
    fn commands_have_the_form_of_the_specification() {
        let (_server, session, seen) = scripted(vec![
            (200, r#"{"value":null}"#),
            (200, r#"{"value":null}"#),
            (200, r#"{"value":null}"#),
            (200, r#"{"value":null}"#),
            (200, r#"{"value":"AQID"}"#),
            (200, r#"{"value":null}"#),
        ]);
        session.navigate("https://a.test/").unwrap();
        session.click(&Element("e".into())).unwrap();
        session
            .switch_to_frame(&Frame::Of(Element("f".into())))
            .unwrap();
        session
            .set_permission(json!({ "name": "secure-element" }), "granted")
            .unwrap();
        assert_eq!(session.screenshot().unwrap(), [1, 2, 3]);
        session.close().unwrap();
        let seen = seen.lock().unwrap();
        let line = |index: usize| {
            let (method, path, body): &(String, String, Value) = &seen[index];
            format!("{method} {path} {body}")
        };
        assert_eq!(line(0), r#"POST /session/s/url {"url":"https://a.test/"}"#);
        assert_eq!(line(1), "POST /session/s/element/e/click {}");
        assert_eq!(
            line(2),
            format!(r#"POST /session/s/frame {{"id":{{"{ELEMENT_KEY}":"f"}}}}"#)
        );
        assert_eq!(
            line(3),
            r#"POST /session/s/permissions {"descriptor":{"name":"secure-element"},"state":"granted"}"#
        );
        assert_eq!(line(5), "DELETE /session/s null");
    }

    #[test]
    fn errors_are_told_apart() {
        let (server, mut session, _) = scripted(vec![
            (
                404,
                r#"{"value":{"error":"no such frame","message":"m","stacktrace":""}}"#,
            ),
            (200, r#"{"other":1}"#),
            (500, "oops"),
            (200, r#"{"value":{"error":"SEIoException: gone"}}"#),
            (200, r#"{"value":{"value":[1]}}"#),
        ]);
        let error = session.switch_to_frame(&Frame::Child(7)).unwrap_err();
        assert!(error.is("no such frame") && error.to_string() == "no such frame: m");
        assert!(matches!(session.url(), Err(Error::Malformed(_))));
        assert!(matches!(session.url(), Err(Error::Malformed(_))));
        assert_eq!(
            session.evaluate("1").unwrap(),
            Err("SEIoException: gone".into())
        );
        assert_eq!(session.evaluate("1").unwrap(), Ok(json!([1])));
        session.set_deadline(Duration::from_millis(100));
        let started = Instant::now();
        assert!(matches!(session.url(), Err(Error::Timeout)));
        assert!(started.elapsed() < Duration::from_secs(3));
        drop(server);
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        assert!(matches!(
            Client::new(port).is_ready(Duration::from_secs(1)),
            Err(Error::Connection(_))
        ));
    }
}
