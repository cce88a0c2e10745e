/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Attacks by a compromised content process on a document of another site. `hostile-shell` is the browser with content
//! processes that do what the title of a page asks for.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::shell::Options;
use e2e::webdriver::Frame;
use serde_json::{Value, json};

type Result = std::result::Result<(), Box<dyn Error>>;

/// Who attacks, in the threat model.
const CONTENT: &str = "content process";

/// Where the victim is; the attacker is on the server's main host, which is of another site.
const VICTIM: &str = "not-web-platform.test";

/// How long an attack may take to show. Where it is refused, nothing ever shows.
const EFFECT: Duration = Duration::from_secs(1);

/// A browser with the victim's page in one tab, which has the grant, and the attacker's in another.
struct Scene {
    browser: Browser,
    victim_tab: String,
    victim_url: String,
    victim_origin: String,
    attacker_tab: RefCell<String>,
    /// How long the log was when the last attack began.
    before: Cell<usize>,
}

impl Scene {
    fn start() -> std::result::Result<Self, Box<dyn Error>> {
        let browser = Browser::start(&Options {
            program: Some("hostile-shell"),
            // An attack may end the attacker's process. That must not end the browser.
            arguments: vec![],
            environment: vec![("RUST_LOG".into(), "servo_constellation=warn".into())],
            ..Options::default()
        })?;
        browser.server.page(
            "/victim",
            "<!DOCTYPE html><title>victim</title><script>\
             addEventListener('storage', () => document.title = 'forged');</script>",
        );
        browser
            .server
            .page("/attacker", "<!DOCTYPE html><title>attacker</title>");

        let victim_url = browser.server.url_on(VICTIM, "/victim");
        browser.session.navigate(&victim_url)?;
        browser.grant()?;
        let victim_tab = browser.session.window()?;
        let victim_origin = browser.evaluate("origin")??;
        assert_eq!(
            browser
                .evaluate("navigator.secureElementManager.getReaders().then(r => r.length)")??,
            1,
            "the victim has what the attacker wants"
        );
        Ok(Self {
            victim_origin: victim_origin.as_str().unwrap_or_default().to_owned(),
            browser,
            victim_tab,
            victim_url,
            attacker_tab: RefCell::default(),
            before: Cell::default(),
        })
    }

    fn attacker_url(&self) -> String {
        self.browser.server.url("/attacker")
    }

    /// Opens the attacker's page, makes its content process attack, and sees to it that it does.
    fn attack(&self, command: &str) -> Result {
        let session = &self.browser.session;
        session.switch_to_window(&self.victim_tab)?;
        let tab = session.new_window()?;
        session.switch_to_window(&tab)?;
        session.navigate(&self.attacker_url())?;
        self.attacker_tab.replace(tab);
        self.before.set(self.browser.shell.log().len());
        session.execute(
            "document.title = arguments[0]",
            &[json!(format!("attack {command}"))],
        )?;
        self.wait_for_log(&format!("hostile: {command}"))
    }

    fn log_since_attack(&self) -> String {
        self.browser.shell.log().split_off(self.before.get())
    }

    fn wait_for_log(&self, text: &str) -> Result {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.log_since_attack().contains(text) {
            if Instant::now() > deadline {
                return Err(format!("no {text:?} in the log").into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Watches both tabs for as long as an attack may take to show.
    fn assert_no_effect(&self) -> Result {
        let deadline = Instant::now() + EFFECT;
        let session = &self.browser.session;
        while Instant::now() < deadline {
            // The attacker may have lost its own tab.
            if session
                .switch_to_window(&self.attacker_tab.borrow())
                .is_ok()
                && let (Ok(title), Ok(url)) = (session.title(), session.url())
            {
                // In its own origin it may do what it likes.
                assert!(
                    !(title.starts_with("planted") && title.contains(&self.victim_origin)),
                    "planted content runs: {title}"
                );
                assert!(
                    !url.starts_with(&self.victim_origin),
                    "the attacker's tab shows the victim's URL"
                );
            }
            session.switch_to_window(&self.victim_tab)?;
            assert_eq!(
                session.url()?,
                self.victim_url,
                "the victim's tab was navigated"
            );
            assert_eq!(session.title()?, "victim", "the victim got a forged event");
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// What has come of attacks that showed nothing, as a row of the threat model.
    fn row(&self, attempt: &str) {
        let outcome = match self.browser.shell.log().contains("Refused ScriptMsg::") {
            true => "refused, and nothing shows",
            false => "nothing shows",
        };
        threat_model::outcome(CONTENT, attempt, outcome);
    }

    /// That the last attack has been refused, and did not just fail.
    fn assert_refused(&self, message: &str) {
        let refused = format!("Refused ScriptMsg::{message}");
        assert!(
            self.log_since_attack().contains(&refused),
            "{refused:?} is not in the log"
        );
    }
}

/// Runs the attack on each of the first pipelines, among which the victim's is, and with each initiator: the attacker
/// claims the victim's origin, or admits its own.
fn plant_by_creator(attack: &str, attempt: &str) -> Result {
    let scene = Scene::start()?;
    let mut refused = false;
    for victim in 1..=6 {
        for initiator in [&scene.victim_url, &scene.attacker_url()] {
            scene.attack(&format!(
                "{attack} {victim} {initiator} <script>document.title=['planted',origin]</script>"
            ))?;
            scene.assert_no_effect()?;
            refused |= scene.log_since_attack().contains("another event loop");
        }
    }
    assert!(refused, "none of the pipelines was the victim's");
    scene.row(attempt);
    Ok(())
}

#[test]
fn planting_the_result_of_a_javascript_url_at_the_victims_url() -> Result {
    let scene = Scene::start()?;
    let victim_url = &scene.victim_url;
    for initiator in [victim_url, &scene.attacker_url()] {
        scene.attack(&format!(
            "js-result {initiator} {victim_url} <title>planted</title>"
        ))?;
        scene.assert_no_effect()?;
        scene.assert_refused("LoadUrl");
    }
    scene
        .row("show content of its own at another site's URL, as what a javascript: URL gave there");
    Ok(())
}

#[test]
fn planting_a_srcdoc_document_of_the_victims_origin() -> Result {
    plant_by_creator(
        "srcdoc",
        "make a srcdoc document that inherits another site's origin",
    )
}

#[test]
fn naming_the_victims_document_as_the_creator() -> Result {
    plant_by_creator(
        "creator",
        "name another site's document as the creator of its own",
    )
}

#[test]
fn renaming_the_own_document_to_the_victims_url() -> Result {
    let scene = Scene::start()?;
    scene.attack(&format!("final-url {}", scene.victim_url))?;
    scene.wait_for_log("hostile: port refused")?;
    scene.assert_no_effect()?;
    scene.assert_refused("SetFinalUrl");
    scene.row(
        "rename its document to another site's URL, and ask for a port and for storage events",
    );
    Ok(())
}

#[test]
fn opening_a_window_at_the_victims_url() -> Result {
    let scene = Scene::start()?;
    let (victim_url, attacker_url) = (&scene.victim_url, scene.attacker_url());
    scene.attack(&format!("new-window {attacker_url} {victim_url}"))?;
    scene.assert_no_effect()?;
    scene.assert_refused("CreateAuxiliaryWebView");
    scene.row("open a window that claims to be at another site's URL");
    Ok(())
}

#[test]
fn raising_a_sandboxed_document_of_the_victims() -> Result {
    let scene = Scene::start()?;
    let (server, victim_url) = (&scene.browser.server, &scene.victim_url);
    server.page(
        "/user-content",
        &format!("<!DOCTYPE html><title>attack port {victim_url}</title>"),
    );
    server.page(
        "/sandbox",
        &format!(
            "<!DOCTYPE html><iframe sandbox=allow-scripts src={}></iframe>",
            server.url_on(VICTIM, "/user-content")
        ),
    );
    // The process of the sandboxed document is one of its own, and as hostile as the others.
    scene.browser.session.navigate(&server.url("/sandbox"))?;
    scene.wait_for_log("hostile: port refused, NotAllowedError")?;
    assert!(!scene.log_since_attack().contains("port opened"));
    threat_model::outcome(
        CONTENT,
        "ask for a port with the origin of the site, from a document that the site has sandboxed",
        "no port",
    );
    Ok(())
}

#[test]
fn navigating_the_victim_in_its_own_name() -> Result {
    let scene = Scene::start()?;
    let attacker_url = scene.attacker_url();
    scene.attack(&format!("speak {attacker_url}"))?;
    scene.assert_no_effect()?;
    scene.assert_refused("LoadUrl");
    scene.row("navigate another site's tab, in the name of its document");
    Ok(())
}

#[test]
fn opening_a_port_in_the_victims_name() -> Result {
    let scene = Scene::start()?;
    scene.attack(&format!("port {}", scene.victim_url))?;
    scene.wait_for_log("hostile: port refused, NotAllowedError")?;

    scene.attack(&format!("port-of-another {}", scene.victim_url))?;
    scene.assert_no_effect()?;
    scene.assert_refused("OpenTokenPort");
    assert!(!scene.log_since_attack().contains("port opened"));

    // The attacker's own port is no better than its own grant, and shows that the attacks above were real.
    let attacker_url = scene.attacker_url();
    scene.attack(&format!("port {attacker_url}"))?;
    scene.wait_for_log("hostile: port opened, 0 readers")?;
    let session = &scene.browser.session;
    session.switch_to_window(&scene.attacker_tab.borrow())?;
    scene.browser.grant()?;
    scene.attack(&format!("port {attacker_url}"))?;
    scene.wait_for_log("hostile: port opened, 1 readers")?;
    threat_model::outcome(
        CONTENT,
        "ask for a port in another site's name, from its own document or as one of that site's",
        "no port; its own port sees what its own site was granted",
    );
    Ok(())
}

/// A page of the victim's with the attacker in a frame, which has a grant there. The page's title is what the frame has told.
fn framed(scene: &Scene, allow: &str) -> std::result::Result<String, Box<dyn Error>> {
    let (server, session) = (&scene.browser.server, &scene.browser.session);
    server.page(
        "/framed",
        "<!DOCTYPE html><title>framed</title><script>\
         navigator.secureElementManager.getReaders()\
             .then(readers => readers.length, error => error.name)\
             .then(seen => parent.postMessage(seen, '*'));</script>",
    );
    server.page(
        "/embeds",
        &format!(
            "<!DOCTYPE html><title>nothing</title><script>\
             addEventListener('message', event => document.title += ' ' + event.data);</script>\
             <iframe src={} allow='{allow}'></iframe>",
            server.url("/framed")
        ),
    );
    session.switch_to_window(&scene.victim_tab)?;
    session.navigate(&server.url_on(VICTIM, "/embeds"))?;
    session.switch_to_frame(&Frame::Child(0))?;
    scene.browser.grant()?;
    let told = scene.browser.evaluate(
        "navigator.secureElementManager.getReaders().then(readers => readers.length, error => error.name)",
    )??;
    session.switch_to_frame(&Frame::Top)?;
    Ok(told.to_string())
}

/// Makes the content process of the frame attack.
fn attack_from_frame(scene: &Scene, command: &str) -> Result {
    let session = &scene.browser.session;
    session.switch_to_frame(&Frame::Child(0))?;
    scene.before.set(scene.browser.shell.log().len());
    session.execute(
        "document.title = arguments[0]",
        &[json!(format!("attack {command}"))],
    )?;
    session.switch_to_frame(&Frame::Top)?;
    scene.wait_for_log(&format!("hostile: {command}"))
}

#[test]
fn claiming_features_that_the_embedder_did_not_hand_on() -> Result {
    let scene = Scene::start()?;
    let attacker_url = scene.browser.server.url("/framed");
    // That the frame may do it with the attribute shows that nothing else is in the way.
    assert_eq!(framed(&scene, "secure-element")?, "1");
    attack_from_frame(&scene, &format!("port {attacker_url}"))?;
    scene.wait_for_log("hostile: port opened, 1 readers")?;

    assert_eq!(framed(&scene, "")?, "\"NotAllowedError\"");
    attack_from_frame(&scene, &format!("port {attacker_url}"))?;
    scene.wait_for_log("hostile: port refused, NotAllowedError")?;
    assert!(!scene.log_since_attack().contains("port opened"));
    threat_model::outcome(
        CONTENT,
        "claim, in a frame, features that its embedder does not hand on to it",
        "no port; with the attribute, a port",
    );
    Ok(())
}

#[test]
fn handing_on_features_in_the_name_of_the_embedder() -> Result {
    let scene = Scene::start()?;
    let attacker_url = scene.browser.server.url("/framed");
    for attack in ["delegate-as-parent", "delegate-to-itself"] {
        assert_eq!(framed(&scene, "")?, "\"NotAllowedError\"");
        attack_from_frame(&scene, &format!("{attack} {attacker_url}"))?;
        let deadline = Instant::now() + EFFECT;
        while Instant::now() < deadline {
            let title = scene.browser.session.title()?;
            assert!(!title.contains('1'), "{attack}: the frame sees readers");
            sleep(Duration::from_millis(100));
        }
        scene.assert_refused("ScriptLoadedURLInIFrame");
    }
    scene.row("hand features on to its own frame, in the name of the embedder or in its own");
    Ok(())
}

#[test]
fn making_up_input() -> Result {
    let scene = Scene::start()?;
    let session = &scene.browser.session;
    session.post("token-prompts/set-mode", json!({ "mode": "accept" }))?;
    scene.attack("input")?;
    scene.wait_for_log("hostile: input was made up")?;
    let ask = "navigator.secureElementManager.getReaders().then(readers => readers.length)";
    let made_up = format!(
        "(() => {{ document.body.focus(); \
         for (const type of ['mousedown', 'mouseup', 'click', 'touchend', 'pointerdown', 'pointerup', 'keydown']) \
             document.body.dispatchEvent(new Event(type, {{bubbles: true}})); \
         document.body.click(); return {ask}; }})()"
    );
    assert_eq!(scene.browser.evaluate(&made_up)??, 0);
    // What the user does in another tab is not for this one.
    let tab = session.window()?;
    session.switch_to_window(&scene.victim_tab)?;
    session.click(&session.find("html")?)?;
    session.switch_to_window(&tab)?;
    assert_eq!(scene.browser.evaluate(ask)??, 0);
    // A click of the user's brings the prompt, which is accepted.
    session.click(&session.find("html")?)?;
    assert_eq!(scene.browser.evaluate(ask)??, 1);
    threat_model::outcome(
        CONTENT,
        "make up input, so that a prompt is shown",
        "no prompt: only what the user does in that tab counts",
    );
    Ok(())
}

#[test]
fn what_counts_as_input() -> Result {
    let browser = Browser::start(&Options::default())?;
    let session = &browser.session;
    session.post("token-prompts/set-mode", json!({ "mode": "accept" }))?;
    let key = |value: &str| {
        json!({"type": "key", "id": "keys", "actions": [
            {"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]})
    };
    let pointer = |kind: &str, actions: Value| json!({"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions});
    let to = json!({"type": "pointerMove", "x": 20, "y": 20, "duration": 0});
    let (down, up) = (
        json!({"type": "pointerDown", "button": 0}),
        json!({"type": "pointerUp", "button": 0}),
    );
    for (name, actions, counts) in [
        ("Escape", key("\u{E00C}"), false),
        ("Shift", key("\u{E008}"), false),
        ("a movement", pointer("mouse", json!([to])), false),
        ("a letter", key("a"), true),
        ("Enter", key("\u{E007}"), true),
        ("a click", pointer("mouse", json!([to, down, up])), true),
    ] {
        // What was granted before goes with the document.
        browser.open(&format!("/?{}", name.replace(' ', "-")))?;
        let readers = || {
            browser.evaluate(
                "navigator.secureElementManager.getReaders().then(readers => readers.length)",
            )
        };
        assert_eq!(readers()??, 0, "before {name}");
        session.post("actions", json!({ "actions": [actions] }))?;
        assert_eq!(readers()??, u8::from(counts), "{name}");
    }
    Ok(())
}
