/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The behaviour that Android's compatibility test suite asks of a terminal ("CTS Test for Secure Element", on
//! source.android.com), expressed for this API: on T=0 and T=1, embedded and over `pcscd`, on the basic channel and on a
//! supplementary one. What the card's applet answers is in docs/virtual-card.md, "Conformance".

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::shell::{Options, PCSC};
use serde_json::{Value, json};
use std::time::Duration;
use virtual_card::VirtualCard;
use virtual_card::test_support::Pcscd;

/// Runs the table on one kind of channel. Returns how many rows there were, and those that were not as they should be.
const TABLE: &str = include_str!("conformance.js");

/// 6 forbidden, 8 without data, 8 with 256 bytes, 64 with warnings, 7 in parts; each also raw, but for the last.
const ROWS: u64 = 6 + 2 * (8 + 8 + 64) + 7 + 5 + 5;

fn run(browser: &Browser, t0: bool) {
    browser.grant().unwrap();
    let ready = wait_for(Duration::from_secs(10), || {
        browser.evaluate("reader()").unwrap().ok()
    });
    assert!(ready.is_some(), "no card");
    browser.session.execute(TABLE, &[]).unwrap();
    for method in ["openBasicChannel", "openSupplementaryChannel"] {
        let outcome = browser
            .evaluate(&format!("conformance({method:?}, {t0})"))
            .unwrap()
            .unwrap();
        assert_eq!(outcome["wrong"], json!([]), "{method}, T=0: {t0}");
        assert_eq!(outcome["rows"], json!(ROWS), "{method}");
    }
    let left = "conformanceChannels()";
    assert_eq!(
        browser.evaluate(left).unwrap(),
        Ok(Value::from("0000039000"))
    );
}

fn embedded(profile: &str) {
    let options = Options {
        token_config: format!("[virtual_card]\nenabled = true\nprofile = \"{profile}\"\n"),
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    run(&browser, profile == "t0");
}

fn over_pcscd(profile: &str) {
    let pcscd = Pcscd::start().unwrap();
    let card = VirtualCard::from_profile(profile).unwrap();
    let _inserted = pcscd.insert(0, card).unwrap();
    let options = Options {
        token_config: PCSC.to_owned(),
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    run(&browser, profile == "t0");
}

#[test]
fn embedded_over_t1() {
    embedded("default");
}

#[test]
fn embedded_over_t0() {
    embedded("t0");
}

#[test]
fn in_a_reader_over_t1() {
    over_pcscd("default");
}

#[test]
fn in_a_reader_over_t0() {
    over_pcscd("t0");
}
