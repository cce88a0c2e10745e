/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What each kind of document sees of the readers: the table of "Kinds of documents" in `docs/secure-element-api.md`. Every
//! origin here has the grant under every page at the top, so that nothing but the document's kind decides.

use std::error::Error;
use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::server::{ALTERNATE_HOST, HOST, Response, Server};
use e2e::shell::Options;
use e2e::webdriver::Frame;
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// The page sees the embedded card's reader.
const READER: &str = "1 reader";
/// There is nothing for the page.
const NOTHING: &str = "0 readers";
/// It may not even ask.
const REFUSED: &str = "NotAllowedError";
/// It does not have the API.
const ABSENT: &str = "absent";

/// Says how many readers the document sees, or why not.
const PROBE: &str = r#"
    self.probe = async () => {
        if (!("secureElementManager" in navigator))
            return "absent";
        try {
            const {length} = await navigator.secureElementManager.getReaders();
            return length == 1 ? "1 reader" : `${length} readers`;
        } catch (error) {
            return error.name;
        }
    };
"#;
/// Tells the page at the top, or the one that opened the window.
const TELL: &str = "probe().then(outcome => (opener ?? top).postMessage(outcome, '*'));";

/// Makes a frame with these attributes and gives what the document in it tells.
const TOP: &str = r#"
    self.told = () => new Promise(resolve =>
        addEventListener("message", event => resolve(event.data), {once: true}));
    self.frame = attributes => {
        const element = document.createElement("iframe");
        for (const [name, value] of Object.entries(attributes))
            element.setAttribute(name, value);
        document.body.append(element);
        return element;
    };
    self.outcome = async attributes => {
        const outcome = told();
        const element = frame(attributes);
        try {
            return await outcome;
        } finally {
            element.remove();
        }
    };
"#;

fn page(script: &str) -> String {
    format!("<!DOCTYPE html><title>page</title><body><script>{PROBE}{script}</script>")
}

/// With `?NAME=VALUE`, a page has that header.
fn with_header(html: String) -> impl Fn(&e2e::server::Request) -> Response + Send + Sync {
    move |request| {
        ["Permissions-Policy", "Content-Security-Policy"]
            .iter()
            .filter_map(|name| Some((name, request.parameter(name)?)))
            .fold(Response::html(html.clone()), |response, (name, value)| {
                response.with_header(name, &value)
            })
    }
}

/// What the tests ask for: `/top` for the page at the top, `/probe` for what tells by itself, `/nest` for a page with a frame.
fn serve(server: &Server) {
    server.route("/top", with_header(page(TOP)));
    server.route("/probe", with_header(page(TELL)));
    server.route("/nest", |request| {
        let parameter = |name| request.parameter(name).unwrap_or_default();
        Response::html(format!(
            "<!DOCTYPE html><iframe src=\"{}\" allow=\"{}\"></iframe>",
            parameter("src"),
            parameter("allow")
        ))
    });
    server.route("/redirect", |request| {
        Response::redirect(302, &request.parameter("to").unwrap_or_default())
    });
}

struct Scene {
    browser: Browser,
    /// The origin of the page at the top.
    here: String,
    /// An origin of another site.
    there: String,
    /// Another origin of the same site.
    beside: String,
}

impl Scene {
    /// With grants for all three origins in frames of the first, and for it.
    fn start(options: &Options) -> Result<Self> {
        let server = Server::builder().start()?;
        serve(&server);
        let browser = Browser::start_on(server, options)?;
        let server = &browser.server;
        let scene = Self {
            here: server.url(""),
            there: server.url_on(ALTERNATE_HOST, ""),
            beside: format!("https://{HOST}:{}", server.https_ports()[1]),
            browser,
        };
        scene.open("/top")?;
        scene.browser.grant()?;
        for origin in [&scene.there, &scene.beside] {
            scene.grant_in_frames(origin)?;
        }
        Ok(scene)
    }

    fn grant_in_frames(&self, origin: &str) -> Result {
        let session = &self.browser.session;
        session.execute(
            "self.granted = frame({src: arguments[0] + '/top'})",
            &[json!(origin)],
        )?;
        wait_for(Duration::from_secs(10), || {
            session.switch_to_frame(&Frame::Child(0)).ok()?;
            let done = session.evaluate("origin").ok()?.ok()? == json!(origin);
            let done = done && self.browser.grant().is_ok();
            session.switch_to_frame(&Frame::Top).ok()?;
            done.then_some(())
        })
        .ok_or_else(|| format!("no grant for {origin}"))?;
        session.execute("granted.remove()", &[])?;
        Ok(())
    }

    fn open(&self, path: &str) -> Result {
        self.browser
            .session
            .navigate(&self.browser.server.url(path))?;
        Ok(())
    }

    fn evaluate(&self, expression: &str) -> Result<String> {
        let value = self.browser.evaluate(expression)??;
        Ok(value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned))
    }

    /// What the document in a frame with these attributes sees.
    fn frame(&self, attributes: &Value) -> Result<String> {
        self.evaluate(&format!("outcome({attributes})"))
    }

    #[track_caller]
    fn check_frames(&self, cases: &[(&str, Value, &str)]) {
        let mut wrong = Vec::new();
        for (name, attributes, expected) in cases {
            let outcome = self
                .frame(attributes)
                .unwrap_or_else(|error| error.to_string());
            if outcome != *expected {
                wrong.push(format!("{name}: {outcome} instead of {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn inline() -> String {
    page(TELL)
}

#[test]
fn frames() -> Result {
    let scene = Scene::start(&Options::default())?;
    let (here, there, beside) = (&scene.here, &scene.there, &scene.beside);
    let probe = |origin: &str| format!("{origin}/probe");
    let allowed = "secure-element";
    let nest = |origin: &str, src: &str, allow: &str| {
        format!("{origin}/nest?src={}&allow={}", encode(src), encode(allow))
    };
    let redirect = |from: &str, to: &str| format!("{from}/redirect?to={}", encode(&probe(to)));
    let header =
        |origin: &str, value: &str| format!("{origin}/probe?Permissions-Policy={}", encode(value));
    scene.check_frames(&[
        ("same origin", json!({"src": probe(here)}), READER),
        ("same origin, 'none'", json!({"src": probe(here), "allow": "secure-element 'none'"}), REFUSED),
        ("same origin, only the other", json!({"src": probe(here), "allow": format!("secure-element {there}")}), REFUSED),
        ("same origin, with", json!({"src": probe(here), "allow": allowed}), READER),
        ("another site", json!({"src": probe(there)}), REFUSED),
        ("another site, with another feature", json!({"src": probe(there), "allow": "camera *"}), REFUSED),
        ("another site, with", json!({"src": probe(there), "allow": allowed}), READER),
        ("another site, 'src'", json!({"src": probe(there), "allow": "secure-element 'src'"}), READER),
        ("another site, *", json!({"src": probe(there), "allow": "camera; secure-element *"}), READER),
        ("another site, 'self'", json!({"src": probe(there), "allow": "secure-element 'self'"}), REFUSED),
        ("another site, by name", json!({"src": probe(there), "allow": format!("secure-element 'self' {there}")}), READER),
        ("another site, by another name", json!({"src": probe(there), "allow": format!("secure-element {beside}")}), REFUSED),
        ("another site, 'none'", json!({"src": probe(there), "allow": "secure-element 'none'"}), REFUSED),
        ("another site, twice", json!({"src": probe(there), "allow": "secure-element; secure-element *"}), READER),
        ("another site, twice, once without", json!({"src": probe(there), "allow": "secure-element *; secure-element 'none'"}), REFUSED),
        ("another origin of the site", json!({"src": probe(beside)}), REFUSED),
        ("another origin of the site, with", json!({"src": probe(beside), "allow": allowed}), READER),
        // The header of the document in the frame only takes away.
        ("another site, header without", json!({"src": header(there, "secure-element=()"), "allow": allowed}), REFUSED),
        ("another site, header with", json!({"src": header(there, "secure-element=*"), "allow": allowed}), READER),
        ("another site, header alone", json!({"src": header(there, "secure-element=*")}), REFUSED),
        // Redirects: the attribute means the origin that the frame was to show.
        ("redirected to another site", json!({"src": redirect(here, there), "allow": allowed}), REFUSED),
        ("redirected to another site by name", json!({"src": redirect(here, there), "allow": format!("secure-element {there}")}), READER),
        ("redirected back", json!({"src": redirect(there, here)}), READER),
        ("redirected back, with", json!({"src": redirect(there, here), "allow": allowed}), REFUSED),
        // Sandboxes. Without an origin nothing helps.
        ("sandboxed", json!({"src": probe(here), "sandbox": "allow-scripts"}), REFUSED),
        ("sandboxed, *", json!({"src": probe(here), "sandbox": "allow-scripts", "allow": "secure-element *"}), REFUSED),
        ("sandboxed, same origin", json!({"src": probe(here), "sandbox": "allow-scripts allow-same-origin"}), READER),
        ("sandboxed, another site, same origin", json!({"src": probe(there), "sandbox": "allow-scripts allow-same-origin"}), REFUSED),
        ("sandboxed, another site, same origin, with", json!({"src": probe(there), "sandbox": "allow-scripts allow-same-origin", "allow": allowed}), READER),
        ("CSP sandbox", json!({"src": format!("/probe?Content-Security-Policy={}", encode("sandbox allow-scripts")), "allow": "secure-element *"}), REFUSED),
        ("CSP sandbox, same origin", json!({"src": format!("/probe?Content-Security-Policy={}", encode("sandbox allow-scripts allow-same-origin"))}), READER),
        // Documents with the origin of another one.
        ("srcdoc", json!({"srcdoc": inline()}), READER),
        ("srcdoc, with", json!({"srcdoc": inline(), "allow": allowed}), READER),
        ("srcdoc, 'none'", json!({"srcdoc": inline(), "allow": "secure-element 'none'"}), REFUSED),
        ("srcdoc, sandboxed", json!({"srcdoc": inline(), "sandbox": "allow-scripts", "allow": "secure-element *"}), REFUSED),
        ("javascript:", json!({"src": format!("javascript:{}", encode(&format!("{:?}", inline())))}), READER),
        ("data:", json!({"src": format!("data:text/html,{}", encode(&inline())), "allow": "secure-element *"}), REFUSED),
        // Frames in frames: each has to hand it on.
        ("nested, same origin", json!({"src": nest(here, &probe(here), "")}), READER),
        ("nested, another site", json!({"src": nest(here, &probe(there), "")}), REFUSED),
        ("nested, another site, with", json!({"src": nest(here, &probe(there), allowed)}), READER),
        ("back in the middle of another site", json!({"src": nest(there, &probe(here), "")}), REFUSED),
        ("back in the middle, outer", json!({"src": nest(there, &probe(here), ""), "allow": "secure-element *"}), REFUSED),
        ("back in the middle, inner", json!({"src": nest(there, &probe(here), "secure-element *")}), REFUSED),
        ("back in the middle, both", json!({"src": nest(there, &probe(here), "secure-element *"), "allow": allowed}), READER),
        ("another site below itself, inner", json!({"src": nest(there, &probe(there), allowed)}), REFUSED),
        ("another site below itself, outer", json!({"src": nest(there, &probe(there), ""), "allow": allowed}), READER),
    ]);

    // about:blank, whose document is there at once.
    for (attributes, expected) in [
        ("{}", READER),
        ("{src: 'about:blank', allow: 'secure-element'}", READER),
        ("{allow: `secure-element 'none'`}", REFUSED),
        ("{sandbox: 'allow-scripts allow-same-origin'}", READER),
    ] {
        let outcome = scene.evaluate(&format!(
            "(async () => {{ const window = frame({attributes}).contentWindow; window.eval({PROBE:?}); \
             await new Promise(resolve => setTimeout(resolve, 500)); return window.probe(); }})()"
        ))?;
        assert_eq!(outcome, expected, "about:blank {attributes}");
    }
    let blob = scene.evaluate(&format!(
        "outcome({{src: URL.createObjectURL(new Blob([{:?}], {{type: 'text/html'}})), allow: 'secure-element *'}})",
        inline()
    ))?;
    assert_eq!(blob, REFUSED, "blob:");
    Ok(())
}

#[test]
fn the_header_of_the_page_at_the_top() -> Result {
    let scene = Scene::start(&Options::default())?;
    let there = &scene.there;
    let quoted = format!("secure-element=(self \"{there}\")");
    let refuses_itself = format!("secure-element=(\"{there}\")");
    for (header, itself, same_origin, another_site) in [
        ("camera=()", READER, READER, READER),
        ("secure-element=()", REFUSED, REFUSED, REFUSED),
        ("secure-element=self", READER, READER, REFUSED),
        ("secure-element=(self)", READER, READER, REFUSED),
        ("secure-element=*", READER, READER, READER),
        (&quoted, READER, READER, READER),
        (&refuses_itself, REFUSED, REFUSED, REFUSED),
        (
            "secure-element=(), secure-element=*",
            READER,
            READER,
            READER,
        ),
        // Malformed, and so ignored.
        ("secure-element=(", READER, READER, READER),
        ("secure-element 'none'", READER, READER, READER),
    ] {
        scene.open(&format!("/top?Permissions-Policy={}", encode(header)))?;
        assert_eq!(scene.evaluate("probe()")?, itself, "{header}");
        assert_eq!(
            scene.frame(&json!({"src": "/probe"}))?,
            same_origin,
            "{header}"
        );
        assert_eq!(
            scene.frame(&json!({"srcdoc": inline()}))?,
            same_origin,
            "{header}"
        );
        let attributes = json!({"src": format!("{there}/probe"), "allow": "secure-element *"});
        assert_eq!(scene.frame(&attributes)?, another_site, "{header}");
        let attributes = json!({"src": format!("{there}/probe")});
        assert_eq!(scene.frame(&attributes)?, REFUSED, "{header}, no attribute");
    }
    Ok(())
}

#[test]
fn the_console_says_why_a_policy_refuses() -> Result {
    let scene = Scene::start(&Options {
        environment: vec![("RUST_LOG".into(), "console=warn".into())],
        ..Options::default()
    })?;
    for (path, frame) in [
        ("/top?Permissions-Policy=secure-element%3D()", None),
        (
            "/top",
            Some(json!({"src": format!("{}/probe", scene.there)})),
        ),
    ] {
        let before = scene.browser.shell.log().len();
        scene.open(path)?;
        let outcome = match frame {
            None => scene.evaluate("probe()")?,
            Some(attributes) => scene.frame(&attributes)?,
        };
        assert_eq!(outcome, REFUSED);
        let says_why = wait_for(Duration::from_secs(5), || {
            let log = scene.browser.shell.log().split_off(before).to_lowercase();
            (log.contains("permissions-policy header")).then_some(())
        });
        assert!(says_why.is_some(), "{path}");
    }
    Ok(())
}

#[test]
fn a_changed_attribute_counts_from_the_next_document_on() -> Result {
    let scene = Scene::start(&Options::default())?;
    let there = &scene.there;
    scene.browser.server.page(
        "/again",
        &page(&format!(
            "{TELL} addEventListener('message', event => \
             event.data == 'reload' ? location.reload() : probe().then(outcome => parent.postMessage(outcome, '*')));"
        )),
    );
    let step = |script: &str| {
        scene.evaluate(&format!(
            "(() => {{ const outcome = told(); {script}; return outcome; }})()"
        ))
    };
    let first = step(&format!("self.one = frame({{src: '{there}/again'}})"))?;
    assert_eq!(first, REFUSED);
    assert_eq!(
        step("one.allow = 'secure-element'; one.contentWindow.postMessage('ask', '*')")?,
        REFUSED
    );
    assert_eq!(
        step("one.contentWindow.postMessage('reload', '*')")?,
        READER
    );
    assert_eq!(
        step("one.removeAttribute('allow'); one.contentWindow.postMessage('ask', '*')")?,
        READER
    );
    assert_eq!(step("one.src = one.src")?, REFUSED);
    assert_eq!(
        scene.evaluate("[one.allow, (one.allow = 'x', one.getAttribute('allow'))].join()")?,
        ",x"
    );
    Ok(())
}

#[test]
fn going_back_and_forward_in_a_frame() -> Result {
    let scene = Scene::start(&Options::default())?;
    let shown = format!("{}/shown", scene.there);
    let tell = TELL.replace("outcome,", "location.search + outcome,");
    // With the second listener the engine does not keep the document.
    scene.browser.server.page(
        "/shown",
        &page(&format!(
            "addEventListener('pageshow', () => {{ {tell} }}); addEventListener('unload', () => {{}});"
        )),
    );
    let step = |script: &str| {
        scene.evaluate(&format!(
            "(() => {{ const outcome = told(); {script}; return outcome; }})()"
        ))
    };
    assert_eq!(
        step(&format!("self.one = frame({{src: '{shown}?1'}})"))?,
        format!("?1{REFUSED}")
    );
    let with = format!("one.allow = 'secure-element'; one.src = '{shown}?2'");
    assert_eq!(step(&with)?, format!("?2{READER}"));
    // A document that is loaded once more gets what the last one got: nothing of the history brings back what was taken away.
    assert_eq!(step("history.back()")?, format!("?1{READER}"));
    assert_eq!(step("history.forward()")?, format!("?2{READER}"));
    let without = format!("one.allow = ''; one.src = '{shown}?3'");
    assert_eq!(step(&without)?, format!("?3{REFUSED}"));
    assert_eq!(step("history.back()")?, format!("?2{REFUSED}"));
    assert_eq!(step("history.back()")?, format!("?1{REFUSED}"));
    assert_eq!(step("history.forward()")?, format!("?2{REFUSED}"));
    Ok(())
}

#[test]
fn windows_that_a_page_opens_are_pages_of_their_own() -> Result {
    let scene = Scene::start(&Options::default())?;
    let session = &scene.browser.session;
    // The grants of frames are for frames, and the policy of the opener is not that of the window.
    scene.open("/top?Permissions-Policy=secure-element%3D()")?;
    let opened = |url: &str| {
        scene.evaluate(&format!(
            "(() => {{ const outcome = told(); open('{url}'); return outcome; }})()"
        ))
    };
    assert_eq!(opened(&format!("{}/probe", scene.there))?, NOTHING);
    assert_eq!(opened("/probe")?, READER);
    let top = session.window()?;
    session.navigate(&format!("{}/top", scene.there))?;
    scene.browser.grant()?;
    scene.open("/top")?;
    assert_eq!(session.window()?, top);
    assert_eq!(opened(&format!("{}/probe", scene.there))?, READER);
    Ok(())
}

#[test]
fn workers_have_no_secure_elements() -> Result {
    let scene = Scene::start(&Options::default())?;
    let script = "const outcome = 'secureElementManager' in navigator || 'SecureElementManager' in self ? 'present' : 'absent';";
    scene.browser.server.route("/worker.js", move |_| {
        Response::new(
            200,
            "text/javascript",
            format!("{script} self.postMessage?.(outcome); self.onconnect = event => event.ports[0].postMessage(outcome);"),
        )
    });
    let dedicated =
        "new Promise(resolve => new Worker('/worker.js').onmessage = event => resolve(event.data))";
    assert_eq!(scene.evaluate(dedicated)?, ABSENT);
    let shared = "new Promise(resolve => new SharedWorker('/worker.js').port.onmessage = event => resolve(event.data))";
    assert_eq!(scene.evaluate(shared)?, ABSENT);
    let data = "new Promise(resolve => new Worker('data:text/javascript,' + encodeURIComponent(\
        \"postMessage('secureElementManager' in navigator ? 'present' : 'absent')\")).onmessage = event => resolve(event.data))";
    assert_eq!(scene.evaluate(data)?, ABSENT);
    Ok(())
}

#[test]
fn reloading_and_going_back_and_forward() -> Result {
    let scene = Scene::start(&Options::default())?;
    let session = &scene.browser.session;
    let open_session = "(async () => { const [reader] = await navigator.secureElementManager.getReaders(); \
        self.kept = await reader.openSession(); return 'open'; })()";
    assert_eq!(scene.evaluate(open_session)?, "open");
    // The document that goes may still be the one that answers.
    let wait_until = |expression: &str, expected: &str| {
        wait_for(Duration::from_secs(10), || {
            (scene.evaluate(expression).ok()? == expected).then_some(())
        })
        .ok_or_else(|| format!("{expression} is not {expected}"))
    };
    session.execute("location.reload()", &[])?;
    wait_until("typeof kept", "undefined")?;
    wait_until("self.probe && probe()", READER)?;

    assert_eq!(scene.evaluate(open_session)?, "open");
    scene.open("/top?2")?;
    session.execute("history.back()", &[])?;
    wait_until("location.search", "")?;
    wait_until("self.probe && probe()", READER)?;
    // The page may come from the cache or anew; nothing stayed open.
    let kept = scene.evaluate(
        "self.kept ? kept.openBasicChannel(null).then(() => 'open', error => error.name) : 'gone'",
    )?;
    assert!(
        ["gone", "SEClosedException"].contains(&kept.as_str()),
        "{kept}"
    );
    session.execute("history.forward()", &[])?;
    wait_until("location.search", "?2")?;
    wait_until("self.probe && probe()", READER)?;
    Ok(())
}

/// What a page of this URL sees at the top, with its grant.
fn at_the_top(browser: &Browser, url: &str) -> Result<String> {
    browser.session.navigate(url)?;
    browser.grant()?;
    let outcome = browser.evaluate("probe()")??;
    Ok(outcome.as_str().unwrap_or_default().to_owned())
}

/// What a document sees in a frame of a page, with the attribute and its grant.
fn in_a_frame(browser: &Browser, top: &str, url: &str) -> Result<String> {
    let session = &browser.session;
    session.navigate(top)?;
    session.execute(
        "frame({src: arguments[0], allow: 'secure-element'})",
        &[json!(url)],
    )?;
    let outcome = wait_for(Duration::from_secs(10), || {
        session.switch_to_frame(&Frame::Child(0)).ok()?;
        let is_there = session.evaluate("location.href").ok()?.ok()? == json!(url);
        let outcome = (is_there && browser.grant().is_ok())
            .then(|| session.evaluate("probe()").ok()?.ok())
            .flatten();
        session.switch_to_frame(&Frame::Top).ok()?;
        outcome
    });
    let outcome = outcome.ok_or("the frame does not load")?;
    Ok(outcome.as_str().unwrap_or_default().to_owned())
}

fn preferences(names: &[&str]) -> Vec<(String, String)> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), "true".to_owned()))
        .collect()
}

fn start(options: &Options) -> Result<Browser> {
    let server = Server::builder().start()?;
    serve(&server);
    Browser::start_on(server, options)
}

#[test]
fn plain_http() -> Result {
    let browser = start(&Options::default())?;
    assert_eq!(at_the_top(&browser, &browser.server.url("/top"))?, READER);
    let server = &browser.server;
    assert_eq!(
        at_the_top(&browser, &server.insecure_url_on(HOST, "/top"))?,
        ABSENT
    );
    // A secure context, but no way to know who answers.
    for host in ["localhost", "127.0.0.1"] {
        assert_eq!(
            at_the_top(&browser, &server.insecure_url_on(host, "/top"))?,
            NOTHING,
            "{host}"
        );
    }
    // Who can change the page at the top decides what the user sees around the frame.
    let framed = server.url("/top");
    let top = server.insecure_url_on("localhost", "/top");
    assert_eq!(in_a_frame(&browser, &top, &framed)?, NOTHING);
    let top = server.url_on(ALTERNATE_HOST, "/top");
    assert_eq!(in_a_frame(&browser, &top, &framed)?, READER);
    Ok(())
}

#[test]
fn preferences_are_not_for_pages() -> Result {
    let browser = start(&Options::default())?;
    browser.open("/top")?;
    assert_eq!(browser.evaluate("typeof navigator.servo")??, "undefined");
    assert_eq!(browser.evaluate("typeof TestBinding")??, "undefined");
    Ok(())
}

#[test]
fn this_machine_with_the_preference_for_it() -> Result {
    let browser = start(&Options {
        preferences: preferences(&["dom_token_broker_localhost_enabled"]),
        ..Options::default()
    })?;
    let server = &browser.server;
    for host in ["localhost", "127.0.0.1"] {
        assert_eq!(
            at_the_top(&browser, &server.insecure_url_on(host, "/top"))?,
            READER,
            "{host}"
        );
    }
    assert_eq!(
        at_the_top(&browser, &server.insecure_url_on(HOST, "/top"))?,
        ABSENT
    );
    Ok(())
}

#[test]
fn ignored_certificate_errors() -> Result {
    for (names, expected) in [
        (&[][..], NOTHING),
        (&["dom_token_broker_untrusted_certificates_enabled"], READER),
    ] {
        let browser = start(&Options {
            arguments: vec![
                "--hard-fail".to_owned(),
                "--ignore-certificate-errors".to_owned(),
            ],
            preferences: preferences(names),
            ..Options::default()
        })?;
        assert_eq!(
            at_the_top(&browser, &browser.server.url("/top"))?,
            expected,
            "{names:?}"
        );
    }
    Ok(())
}

#[test]
fn private_browsing() -> Result {
    let browser = start(&Options {
        arguments: vec!["--hard-fail".to_owned(), "--private".to_owned()],
        ..Options::default()
    })?;
    assert_eq!(at_the_top(&browser, &browser.server.url("/top"))?, NOTHING);
    Ok(())
}

#[test]
fn single_process_mode() -> Result {
    for (names, expected) in [
        (&[][..], REFUSED),
        (&["dom_token_broker_single_process_enabled"], READER),
    ] {
        let browser = start(&Options {
            arguments: vec!["--hard-fail".to_owned(), "--single-process".to_owned()],
            preferences: preferences(names),
            ..Options::default()
        })?;
        assert_eq!(
            at_the_top(&browser, &browser.server.url("/top"))?,
            expected,
            "{names:?}"
        );
    }
    Ok(())
}

/// A browser that does not trust the server's certificate.
fn distrustful(mut options: Options) -> Result<(Browser, Server)> {
    let other = Server::builder().start()?;
    let authority = other.certificate_authority().display().to_string();
    options
        .arguments
        .extend(["--certificate-path".to_owned(), authority]);
    Ok((start(&options)?, other))
}

/// Makes an exception, in the way that the error page would if it were not of an opaque origin.
const ALLOW_CERTIFICATE: &str = r#"(async () => {
    const body = document.scripts[0].text.match(/xhr\.send\("(.*)"\)/)[1];
    await fetch("chrome:allowcert", {method: "POST", mode: "no-cors", body});
    return "sent";
})()"#;

fn is_error_page(browser: &Browser) -> bool {
    browser
        .session
        .title()
        .is_ok_and(|title| title == "Certificate error")
}

/// Nobody can make an exception where sites have processes of their own: neither does the button of the error page work,
/// nor is the secret on that page the one of the process that decides.
#[test]
fn certificate_exceptions_cannot_be_made() -> Result {
    let (browser, _other) = distrustful(Options::default())?;
    let url = browser.server.url("/top");
    browser.session.navigate(&url).ok();
    assert!(is_error_page(&browser));
    let button = browser.session.find("#allow")?;
    browser.session.click(&button)?;
    std::thread::sleep(Duration::from_secs(2));
    assert!(is_error_page(&browser));
    assert_eq!(browser.evaluate(ALLOW_CERTIFICATE)??, "sent");
    browser.session.navigate(&url).ok();
    assert!(is_error_page(&browser));
    Ok(())
}

#[test]
fn a_certificate_exception_is_no_trust() -> Result {
    let (browser, other) = distrustful(Options {
        arguments: vec!["--hard-fail".to_owned(), "--single-process".to_owned()],
        preferences: preferences(&["dom_token_broker_single_process_enabled"]),
        ..Options::default()
    })?;
    let url = browser.server.url("/top");
    browser.session.navigate(&url).ok();
    assert!(is_error_page(&browser));
    assert_eq!(browser.evaluate(ALLOW_CERTIFICATE)??, "sent");
    assert_eq!(at_the_top(&browser, &url)?, NOTHING);
    // The same certificate serves other hosts now, which the engine does not tell apart; neither is one of them trusted.
    let also = browser.server.url_on(ALTERNATE_HOST, "/top");
    assert_eq!(at_the_top(&browser, &also)?, NOTHING);
    // Another server, whose certificate is trusted, on a host without an exception.
    serve(&other);
    let trusted = format!("https://www.{HOST}:{}/top", other.https_ports()[0]);
    assert_eq!(at_the_top(&browser, &trusted)?, READER);
    let framed = format!("https://www1.{HOST}:{}/top", other.https_ports()[0]);
    assert_eq!(in_a_frame(&browser, &url, &framed)?, NOTHING);
    assert_eq!(in_a_frame(&browser, &trusted, &framed)?, READER);
    // The exception is for the host, at whatever port.
    assert_eq!(at_the_top(&browser, &other.url("/top"))?, NOTHING);
    Ok(())
}
