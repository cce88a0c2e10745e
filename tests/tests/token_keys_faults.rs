/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Tokens, users and modules that fail: which error the page gets, and that the next call works.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use e2e::process::wait_for;
use e2e::softhsm::{SoftHsm, finish};
use e2e::token_page::{LABEL, Page, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

const SIGN: &str = "subtle.sign(ecdsa, key, bytes('x'))";

/// A page with a token, and a key in `key`.
fn page() -> Result<Page<SoftHsm>> {
    let page = Page::softhsm()?;
    page.grant_token()?;
    make_key(&page)?;
    Ok(page)
}

fn make_key<T>(page: &Page<T>) -> Result {
    page.run("token.generateKey(curve, ['sign'], { name: 'key' }).then(pair => { self.key = pair.privateKey; })")?;
    Ok(())
}

fn signs<T>(page: &Page<T>) -> Result {
    let length = page.run(&format!("{SIGN}.then(signature => signature.byteLength)"))?;
    assert_eq!(length, 64);
    Ok(())
}

#[test]
fn r13_wrong_pins_are_refusals_that_tell_nothing() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    let mut messages = Vec::new();
    let make = "token.generateKey(curve, ['sign'], { name: 'key' })
        .then(() => 'made', error => error.name + ': ' + error.message)";
    // The same wrong PIN is not tried again and again, and others are no better.
    for pin in ["111111", "111111", "222222", "1", "3333333333333333"] {
        page.accept_with(pin)?;
        messages.push(page.on_click(make)?);
    }
    page.reject()?;
    messages.push(page.on_click(make)?);
    for message in &messages {
        let message = message.as_str().unwrap_or_default();
        assert!(message.starts_with("NotAllowedError: "), "{messages:?}");
        assert!(
            !message.contains(|it: char| it.is_ascii_digit()),
            "{message}"
        );
    }
    // Whether a PIN was wrong or none was entered looks the same.
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    page.accept()?;
    page.on_click("token.generateKey(curve, ['sign'], { name: 'key' }).then(pair => { self.key = pair.privateKey; })")?;
    signs(&page)
}

/// The module that does harm, compiled.
fn hostile() -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("hostile.so");
    let source = e2e::checkout().join("components/token_broker/tests/keys/hostile_module.c");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
    finish(compiler.arg(&path).arg(&source))?;
    Ok((folder, path))
}

/// A module that fails in some manner costs its own calls; another module's key signs as before.
fn fails(manner: &str, wanted: &[&str]) -> Result {
    let (_folder, module) = hostile()?;
    let hsm = SoftHsm::with_token(LABEL)?;
    let config = format!(
        "{}\n[[pkcs11]]\nmodule = {module:?}\nlabel = \"Hostile\"\nenvironment = {{ MANNER = {manner:?} }}\n",
        hsm.token_config()
    );
    let page = Page::with_softhsm(hsm, &config)?;
    let label = page.on_click(&format!(
        "cryptokeys.requestToken({{ label: '{LABEL}' }}).then(token => {{ self.token = token; return token.label; }})"
    ))?;
    assert_eq!(label, LABEL);
    make_key(&page)?;
    page.on_click("cryptokeys.requestKey({ name: 'key', token: { label: 'Hostile' } }).then(key => { self.bad = key; })")?;
    for _ in 0..2 {
        let failure = page.run("failure(subtle.sign(ecdsa, bad, bytes('x')))")?;
        assert!(
            wanted.iter().any(|name| failure == *name),
            "{manner}: {failure}"
        );
        signs(&page)?;
    }
    Ok(())
}

#[test]
fn a_module_that_crashes_loses_what_is_under_way() -> Result {
    fails("crashes in C_Sign", &["OperationError"])
}

#[test]
fn a_module_that_ends_loses_what_is_under_way() -> Result {
    fails("ends the process in C_Sign", &["OperationError"])
}

#[test]
fn signatures_of_nonsense_lengths_are_none() -> Result {
    fails("makes signatures of no length", &["OperationError"])?;
    fails("makes signatures of unknown length", &["OperationError"])?;
    fails("makes signatures of 2^60 bytes", &["OperationError"])
}

#[test]
fn a_module_that_hangs_is_ended_in_time() -> Result {
    fails("hangs in C_Sign", &["TimeoutError"])
}

#[test]
fn a_locked_pin_is_a_refusal() -> Result {
    fails("has a locked PIN", &["NotAllowedError"])
}

#[test]
fn a_thousand_signatures_while_the_module_is_killed() -> Result {
    let page = page()?;
    page.run(&format!(
        "void (self.all = Promise.all(Array.from({{ length: 1000 }}, () => {SIGN}.then(() => 'made', error => error.name))))"
    ))?;
    for _ in 0..3 {
        for worker in page.browser.shell.token_processes("module-worker") {
            worker.kill();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let outcomes = page.run(
        "all.then(all => all.reduce((counts, name) => ({ ...counts, [name]: (counts[name] ?? 0) + 1 }), {}))",
    )?;
    let counts = outcomes.as_object().ok_or("no counts")?;
    let sum: u64 = counts.values().filter_map(Value::as_u64).sum();
    assert_eq!(sum, 1000, "{outcomes}");
    for name in counts.keys() {
        let is_known = ["made", "OperationError", "InvalidStateError"].contains(&name.as_str());
        assert!(is_known, "{outcomes}");
    }
    assert!(counts.len() > 1, "none was lost: {outcomes}");
    signs(&page)
}

#[test]
fn ten_thousand_issuers() -> Result {
    let page = page()?;
    let query = |count: usize| {
        format!(
            "{{ certificateIssuers: Array.from({{ length: {count} }}, (_, number) => bytes('issuer ' + number)) }}"
        )
    };
    let found = page.run(&format!("cryptokeys.getKeys({})", query(10_000)))?;
    assert_eq!(found, json!([]));
    signs(&page)
}

#[test]
fn a_token_whose_folder_goes_and_comes_back() -> Result {
    let page = page()?;
    let folder = page.token.tokens();
    let aside = folder.with_extension("aside");
    fs::rename(&folder, &aside)?;
    let failure = page.run(&format!("failure({SIGN})"))?;
    assert!(
        failure == "InvalidStateError" || failure == "OperationError",
        "{failure}"
    );
    assert_eq!(page.run("cryptokeys.getKeyByName('key')")?, Value::Null);
    fs::rename(&aside, &folder)?;
    // SoftHSM2 looks for tokens when it is loaded, and never again.
    for worker in page.browser.shell.token_processes("module-worker") {
        worker.kill();
    }
    let again = wait_for(Duration::from_secs(30), || {
        // It takes the PIN again, and that a click.
        page.on_click(&format!("{SIGN}.then(() => true, () => false)"))
            .is_ok_and(|signed| signed == true)
            .then_some(())
    });
    assert!(again.is_some(), "the key does not sign again");
    signs(&page)
}

#[test]
fn r3_a_key_deleted_by_another_program_fails_each_time() -> Result {
    let page = page()?;
    for kind in ["privkey", "pubkey"] {
        page.token
            .pkcs11_tool(&["--delete-object", "--type", kind, "--label", "key"])?;
    }
    for _ in 0..3 {
        assert_eq!(page.run(&format!("failure({SIGN})"))?, "InvalidStateError");
    }
    make_key(&page)?;
    signs(&page)
}
