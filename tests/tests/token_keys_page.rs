/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Token keys in pages and their workers, where that takes more than a page: preferences, processes that die, waiting. The
//! rest is in `wpt/webcrypto-key-discovery/`.

use std::time::Duration;

use e2e::browser::Browser;
use e2e::shell::Options;
use e2e::softhsm::{PIN, SoftHsm};
use serde_json::{Value, json};

const PAGE: &str = "<!DOCTYPE html><title>page</title><button id=go>Go</button>";

const SCRIPT: &str = r#"
    self.outcome = promise => promise.then(value => value ?? "fulfilled", error => error.name);
    const ECDSA = {name: "ECDSA", namedCurve: "P-256"};
    const SLOW = {name: "RSA-PSS", modulusLength: 4096, publicExponent: Uint8Array.of(1, 0, 1), hash: "SHA-256"};
    self.start = async () => {
        self.token = await cryptokeys.requestToken();
        const {privateKey} = await token.generateKey(ECDSA, ["sign"], {name: "key"});
        self.key = privateKey;
        return key.name;
    };
    self.sign = async () =>
        (await crypto.subtle.sign({name: "ECDSA", hash: "SHA-256"}, key, new Uint8Array(3))).byteLength;
    self.generate_slowly = () => token.subtle.generateKey(SLOW, false, ["sign"]);
    self.worker = source => new Worker(URL.createObjectURL(new Blob([source])));
    self.answer = worker => new Promise(resolve => { worker.onmessage = ({data}) => resolve(data); });
    self.SIGNER = `onmessage = ({data}) => {
        crypto.subtle.sign({name: "ECDSA", hash: "SHA-256"}, data, new Uint8Array(3))
            .then(signature => postMessage(signature.byteLength), error => postMessage(error.name));
    }`;
"#;

/// A browser whose user has given a page a token and entered its PIN. The page has made a key.
fn start(hsm: &SoftHsm, preferences: &[(&str, &str)]) -> Browser {
    let token_config = format!(
        "[virtual_card]\nenabled = false\n\n[pcsc]\nenabled = false\n\n{}",
        hsm.token_config()
    );
    let preferences = preferences
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let options = Options {
        token_config,
        preferences: preferences.collect(),
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    let script = Duration::from_secs(60);
    browser.session.set_timeouts(script, script).unwrap();
    browser.server.page("/page", PAGE);
    browser.open("/page").unwrap();
    let mode = json!({ "mode": "accept", "pin": PIN });
    browser
        .session
        .post("token-prompts/set-mode", mode)
        .unwrap();
    browser.session.execute(SCRIPT, &[]).unwrap();
    browser
        .session
        .execute("go.onclick = () => { self.started = start(); }", &[])
        .unwrap();
    let button = browser.session.find("#go").unwrap();
    browser.session.click(&button).unwrap();
    assert_eq!(evaluate(&browser, "started"), "key");
    browser
}

fn evaluate(browser: &Browser, expression: &str) -> Value {
    browser.evaluate(expression).unwrap().unwrap()
}

#[test]
fn databases_do_not_store_token_keys() {
    let hsm = SoftHsm::with_token("Token").unwrap();
    let browser = start(&hsm, &[("dom_indexeddb_enabled", "true")]);
    let store = |value: &str| {
        let expression = format!(
            "new Promise((resolve, reject) => {{
                const request = indexedDB.open('database ' + Math.random(), 1);
                request.onupgradeneeded = async () => {{
                    const value = await {value};
                    const store = request.result.createObjectStore('store');
                    try {{
                        store.put(value, 1);
                        resolve('stored');
                    }} catch (error) {{
                        resolve(error.name);
                    }}
                }};
                request.onerror = reject;
            }})"
        );
        evaluate(&browser, &expression)
    };
    assert_eq!(store("({a: 1})"), "stored");
    assert_eq!(store("key"), "DataCloneError");
    assert_eq!(store("({keys: [key]})"), "DataCloneError");
}

#[test]
fn the_page_goes_on_while_a_token_makes_a_key() {
    let hsm = SoftHsm::with_token("Token").unwrap();
    let browser = start(&hsm, &[]);
    let expression = "(async () => {
        let ticks = 0;
        const interval = setInterval(() => { ticks += 1; }, 1);
        const generated = generate_slowly();
        const {privateKey} = await generated;
        clearInterval(interval);
        return [privateKey.algorithm.modulusLength, ticks];
    })()";
    let outcome = evaluate(&browser, expression);
    assert_eq!(outcome[0], 4096);
    // It takes a token in software tenths of a second at least.
    assert!(outcome[1].as_u64().unwrap() >= 10, "{outcome}");
}

#[test]
fn what_waits_for_a_broker_that_dies_is_rejected_and_the_next_call_works() {
    let hsm = SoftHsm::with_token("Token").unwrap();
    let browser = start(&hsm, &[]);
    browser
        .session
        .execute("self.waiting = outcome(generate_slowly())", &[])
        .unwrap();
    // When this is answered, the question before it has arrived.
    assert_eq!(
        evaluate(
            &browser,
            "cryptokeys.getTokens().then(tokens => tokens.length)"
        ),
        1
    );
    let brokers = browser.shell.token_processes("broker");
    assert_eq!(brokers.len(), 1);
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &brokers[0].pid.to_string()])
        .status();
    assert!(killed.unwrap().success());
    assert_eq!(evaluate(&browser, "waiting"), "OperationError");
    // What was granted for this time only ended with the broker. Nothing hangs, nothing is replayed.
    assert_eq!(
        evaluate(&browser, "cryptokeys.getKeyByName('no such key')"),
        Value::Null
    );
    assert_eq!(browser.shell.token_processes("broker").len(), 1);
}

#[test]
fn workers_come_and_go() {
    let hsm = SoftHsm::with_token("Token").unwrap();
    let browser = start(&hsm, &[]);
    // More than a document's workers have ports at a time.
    let expression = "(async () => {
        const answers = new Set();
        for (let count = 0; count < 70; count += 1) {
            const one = worker(SIGNER);
            one.postMessage(key);
            answers.add(await answer(one));
            one.terminate();
        }
        return [...answers];
    })()";
    assert_eq!(evaluate(&browser, expression), json!([64]));
    let expression = "(async () => {
        const workers = Array.from({length: 20}, () => worker(SIGNER));
        const answers = workers.map(answer);
        workers.forEach(one => one.postMessage(key));
        return [...new Set(await Promise.all(answers))];
    })()";
    assert_eq!(evaluate(&browser, expression), json!([64]));
    assert_eq!(evaluate(&browser, "sign()"), 64);
}

#[test]
fn workers_of_workers_have_ports_and_shared_workers_have_none() {
    let hsm = SoftHsm::with_token("Token").unwrap();
    let browser = start(&hsm, &[]);
    let expression = "(async () => {
        const outer = worker(`onmessage = ({data}) => {
            const inner = new Worker(URL.createObjectURL(new Blob([${JSON.stringify(SIGNER)}])));
            inner.onmessage = ({data}) => postMessage(data);
            inner.postMessage(data);
        }`);
        outer.postMessage(key);
        return answer(outer);
    })()";
    assert_eq!(evaluate(&browser, expression), 64);
    let expression = "(() => {
        const source = `onconnect = async ({ports: [port]}) => {
            const keys = await cryptokeys.getKeys();
            const tokens = await cryptokeys.getTokens();
            port.postMessage([await cryptokeys.getKeyByName('key'), keys.length, tokens.length]);
        }`;
        const {port} = new SharedWorker(URL.createObjectURL(new Blob([source])));
        return answer(port);
    })()";
    assert_eq!(evaluate(&browser, expression), json!([null, 0, 0]));
}
