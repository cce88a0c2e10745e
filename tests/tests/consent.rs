/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Nothing before consent, as pages meet it. A WebDriver client answers the prompts (`token-prompts/set-mode`) and clicks;
//! what users see and do is in `window.rs`.

use std::time::Duration;

use e2e::browser::{Browser, HELPERS};
use e2e::process::wait_for;
use e2e::shell::{Options, VIRTUAL_CARD};
use serde_json::{Value, json};

/// A card without rules, whose owner is asked about its applications.
const ASK: &str = "[virtual_card]\nprofile = \"no-rules\"\n\n[pcsc]\nenabled = false\n\n\
                   [access]\nwhen_no_rules = \"ask\"\n";
/// Other names of the server.
const ELSEWHERE: &str = "not-web-platform.test";

const PAGE: &str = "<!DOCTYPE html><title>page</title><button id=go style='padding: 2em'>Go</button>\
                    <a id=next href='next'>Next</a>";

const SCRIPT: &str = r#"
    self.readers = async () => (await navigator.secureElementManager.getReaders()).map(reader => reader.name);
    self.attempt = async (aid = "F0534552564F0101") => {
        const [reader] = await navigator.secureElementManager.getReaders();
        if (!reader)
            return "no reader";
        const session = await reader.openSession();
        try {
            const channel = await session.openSupplementaryChannel(hex(aid));
            return answer(await channel.transmit(command("001000000102", 0)));
        } catch (error) {
            return error.name;
        } finally {
            await session.close();
        }
    };
"#;

fn start(token_config: &str) -> Browser {
    let options = Options {
        token_config: token_config.to_owned(),
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    browser.server.page("/page", PAGE);
    open(&browser, &browser.server.url("/page"));
    browser
}

fn open(browser: &Browser, url: &str) {
    browser.session.navigate(url).unwrap();
    prepare(browser);
}

/// Gives the document the functions that the tests use.
fn prepare(browser: &Browser) {
    browser.session.execute(HELPERS, &[]).unwrap();
    browser.session.execute(SCRIPT, &[]).unwrap();
}

fn set_mode(browser: &Browser, mode: &str) {
    let body = json!({ "mode": mode });
    browser
        .session
        .post("token-prompts/set-mode", body)
        .unwrap();
}

/// What an expression comes to that is evaluated without the user.
fn by_itself(browser: &Browser, expression: &str) -> Value {
    browser.evaluate(expression).unwrap().unwrap()
}

/// What an expression comes to that is evaluated when the user clicks.
fn on_click(browser: &Browser, expression: &str) -> Value {
    let script = format!("go.onclick = () => {{ self.outcome = {expression}; }}");
    browser.session.execute(&script, &[]).unwrap();
    let button = browser.session.find("#go").unwrap();
    browser.session.click(&button).unwrap();
    by_itself(browser, "outcome")
}

#[test]
fn a_page_gets_readers_when_the_user_clicks_and_allows_it() {
    let browser = start(VIRTUAL_CARD);
    assert_eq!(by_itself(&browser, "readers()"), json!([]));
    set_mode(&browser, "accept");
    assert_eq!(
        by_itself(&browser, "readers()"),
        json!([]),
        "nobody has clicked"
    );
    let readers = on_click(&browser, "readers()");
    assert_eq!(readers.as_array().unwrap().len(), 1, "{readers}");
    // It stays allowed.
    set_mode(&browser, "reject");
    assert_eq!(by_itself(&browser, "readers()"), readers);
    assert_eq!(by_itself(&browser, "attempt()"), json!("01029000"));
}

#[test]
fn whoever_is_refused_sees_nothing() {
    let browser = start(VIRTUAL_CARD);
    set_mode(&browser, "reject");
    assert_eq!(on_click(&browser, "readers()"), json!([]));
    let events = "new Promise(resolve => {
        navigator.secureElementManager.onsepresent = () => resolve('an element');
        setTimeout(() => resolve('nothing'), 500);
    })";
    assert_eq!(on_click(&browser, events), json!("nothing"));
}

#[test]
fn what_is_allowed_is_for_one_origin_and_ends_with_its_last_document() {
    let browser = start(VIRTUAL_CARD);
    set_mode(&browser, "accept");
    assert_eq!(on_click(&browser, "readers()").as_array().unwrap().len(), 1);
    set_mode(&browser, "reject");
    open(&browser, &browser.server.url_on(ELSEWHERE, "/page"));
    assert_eq!(on_click(&browser, "readers()"), json!([]));
    open(&browser, &browser.server.url("/page"));
    assert_eq!(by_itself(&browser, "readers()"), json!([]), "it has ended");
}

#[test]
fn without_a_window_nobody_answers_by_hand() {
    let browser = start(VIRTUAL_CARD);
    for mode in [None, Some("manual")] {
        if let Some(mode) = mode {
            set_mode(&browser, "accept");
            set_mode(&browser, mode);
        }
        assert_eq!(on_click(&browser, "readers()"), json!([]));
    }
    let said = browser.shell.log().matches("without a window").count();
    assert_eq!(said, 2, "{}", browser.shell.log());
}

#[test]
fn what_set_permission_says_comes_first() {
    let browser = start(VIRTUAL_CARD);
    let set = |state| {
        let descriptor = json!({ "name": "secure-element" });
        browser.session.set_permission(descriptor, state).unwrap();
    };
    set_mode(&browser, "accept");
    set("denied");
    assert_eq!(on_click(&browser, "readers()"), json!([]));
    set("granted");
    set_mode(&browser, "reject");
    assert_eq!(
        by_itself(&browser, "readers()").as_array().unwrap().len(),
        1
    );
    set("prompt");
    assert_eq!(on_click(&browser, "readers()"), json!([]));
    set_mode(&browser, "accept");
    assert_eq!(on_click(&browser, "readers()").as_array().unwrap().len(), 1);
}

#[test]
fn what_the_user_did_in_a_page_is_not_meant_for_the_next() {
    let browser = start(VIRTUAL_CARD);
    let next = "<!DOCTYPE html><script>
        self.outcome = navigator.secureElementManager.getReaders().then(readers => readers.length);
        </script><button id=go>Go</button>";
    browser.server.page("/next", next);
    set_mode(&browser, "accept");
    // So that the broker is there, and quick.
    assert_eq!(by_itself(&browser, "readers()"), json!([]));
    let link = browser.session.find("#next").unwrap();
    browser.session.click(&link).unwrap();
    let arrived = wait_for(Duration::from_secs(20), || {
        browser
            .session
            .url()
            .unwrap()
            .ends_with("/next")
            .then_some(())
    });
    assert!(arrived.is_some());
    assert_eq!(by_itself(&browser, "outcome"), json!(0));
    prepare(&browser);
    assert_eq!(on_click(&browser, "readers()").as_array().unwrap().len(), 1);
}

#[test]
fn an_application_needs_an_answer_of_its_own_where_the_card_has_no_rules() {
    let browser = start(ASK);
    set_mode(&browser, "accept");
    let click_and_wait = "readers().then(readers => readers.length)";
    assert_eq!(on_click(&browser, click_and_wait), json!(1));
    set_mode(&browser, "reject");
    // Whoever allows a reader has just done something: the first channel may ask.
    assert_eq!(
        on_click(&browser, "attempt()"),
        json!("SENoApplicationException")
    );
    assert_eq!(
        by_itself(&browser, "attempt()"),
        json!("SESecurityException")
    );
    set_mode(&browser, "accept");
    assert_eq!(
        by_itself(&browser, "attempt()"),
        json!("SESecurityException")
    );
    assert_eq!(on_click(&browser, "attempt()"), json!("01029000"));
    set_mode(&browser, "reject");
    assert_eq!(by_itself(&browser, "attempt()"), json!("01029000"));
    // The answer was about that one application.
    assert_eq!(
        on_click(&browser, "attempt('F0534552564F0102')"),
        json!("SENoApplicationException")
    );
    // The issuer security domain is none that a user can allow.
    set_mode(&browser, "accept");
    assert_eq!(
        on_click(&browser, "attempt('A000000151000000')"),
        json!("SESecurityException")
    );
}

#[test]
fn one_click_is_enough_for_a_reader_and_an_application() {
    let browser = start(ASK);
    set_mode(&browser, "accept");
    assert_eq!(on_click(&browser, "attempt()"), json!("01029000"));
}

#[test]
fn modes_are_checked_and_end_with_their_session() {
    let mut browser = start(VIRTUAL_CARD);
    for body in [
        json!({}),
        json!({ "mode": "always" }),
        json!({ "mode": "Accept" }),
        json!({ "mode": 1 }),
        json!({ "mode": "accept", "pin": 1234 }),
    ] {
        let error = browser.session.post("token-prompts/set-mode", body.clone());
        assert!(error.unwrap_err().is("invalid argument"), "{body}");
    }
    set_mode(&browser, "accept");
    let session = browser.session;
    session.close().unwrap();
    browser.session = browser.shell.session().unwrap();
    browser
        .session
        .set_timeouts(Duration::from_secs(30), Duration::from_secs(30))
        .unwrap();
    open(&browser, &browser.server.url("/page"));
    assert_eq!(on_click(&browser, "readers()"), json!([]));
}

#[test]
fn a_client_s_pin_is_not_logged() {
    let options = Options {
        environment: vec![(
            "RUST_LOG".into(),
            "webdriver=trace,webdriver_server=trace,servo_tokens=trace".into(),
        )],
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    let body = json!({ "mode": "accept", "pin": "8402617" });
    browser
        .session
        .post("token-prompts/set-mode", body)
        .unwrap();
    browser.evaluate("1").unwrap().unwrap();
    let log = browser.shell.log();
    assert!(log.contains("TokenPromptsSetMode"), "nothing is logged");
    assert!(!log.contains("8402617"), "{log}");
}
