/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Access rules, from the card and from the device, as a page meets them.

use std::fs;
use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::shell::Options;
use secure_element::access::AppId;
use serde_json::{Value, json};
use virtual_card::VirtualCard;
use virtual_card::applets::ara_m::{self, AraM};
use virtual_card::applets::{echo, pin};
use virtual_card::test_support::Pcscd;

const ALWAYS: [u8; 1] = [0x01];

/// Opens a supplementary channel to an AID, sends a command, and says what came of either.
const TRY: &str = r#"
    self.attempt = async (aid, command) => {
        const session = await (await reader()).openSession();
        try {
            const channel = await session.openSupplementaryChannel(hex(aid));
            return text(await channel.transmitRaw(hex(command)));
        } catch (error) {
            return error.name;
        } finally {
            await session.close();
        }
    };
"#;

fn start(token_config: &str) -> Browser {
    start_with(&Options {
        token_config: token_config.to_owned(),
        ..Options::default()
    })
}

fn start_with(options: &Options) -> Browser {
    let browser = Browser::start(options).unwrap();
    browser.grant().unwrap();
    browser.session.execute(TRY, &[]).unwrap();
    let card = wait_for(Duration::from_secs(10), || {
        browser.evaluate("reader()").unwrap().ok()
    });
    assert!(card.is_some(), "no card");
    browser
}

fn attempt(browser: &Browser, aid: &[u8], command: &str) -> Value {
    let aid: String = aid.iter().map(|byte| format!("{byte:02x}")).collect();
    let expression = format!("attempt({aid:?}, {command:?})");
    browser.evaluate(&expression).unwrap().unwrap()
}

fn embedded(profile: &str, access: &str) -> String {
    format!(
        "[pcsc]\nenabled = false\n\n[virtual_card]\nprofile = \"{profile}\"\n\n[access]\n{access}\n"
    )
}

#[test]
fn the_rules_of_the_embedded_card_decide() {
    let browser = start(&embedded("ara-m", ""));
    assert_eq!(attempt(&browser, &echo::AID, "00100000010700"), "079000");
    for refused in [&echo::SECOND_AID[..], &pin::AID, b"\xF0NOBODY"] {
        assert_eq!(
            attempt(&browser, refused, "00100000010700"),
            "SESecurityException"
        );
    }
}

#[test]
fn rules_on_a_card_in_a_reader_name_the_origin_by_its_hash() {
    let pcscd = Pcscd::start().unwrap();
    let config = "[pcsc]\nenabled = true\n\n[virtual_card]\nenabled = false\n\n[access]\n";
    // The origin has a port that is known when the server runs.
    let options = Options {
        token_config: config.to_owned(),
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    let origin = browser.evaluate("location.origin").unwrap().unwrap();
    let app = AppId::from_origin(origin.as_str().unwrap()).unwrap();
    let only_echo = [0x00, echo::INS_ECHO, 0, 0, 0x7F, 0xFF, 0, 0];
    let rules = [
        ara_m::rule(Some(&echo::AID), app.sha256().unwrap(), &only_echo),
        ara_m::rule(Some(&echo::SECOND_AID), app.sha1().unwrap(), &ALWAYS),
        ara_m::rule(Some(&echo::WARNING_AID), &[0xAA; 32], &ALWAYS),
    ];
    for profile in ["default", "t0", "basic-channel-only"] {
        let mut card = VirtualCard::from_profile(profile).unwrap();
        card.install(Box::new(AraM::with_rules(rules.concat())));
        let _inserted = pcscd.insert(0, card).unwrap();
        browser.grant().unwrap();
        browser.session.execute(TRY, &[]).unwrap();
        let card = wait_for(Duration::from_secs(10), || {
            browser.evaluate("reader()").unwrap().ok()
        });
        assert!(card.is_some(), "no card");
        if profile == "basic-channel-only" {
            let outcome = browser
                .evaluate(
                    r#"(async () => {
                        const session = await (await reader()).openSession();
                        const outcomes = [];
                        for (const aid of ["F0534552564F0101", "F0534552564F0201"]) {
                            const outcome = await session.openBasicChannel(hex(aid))
                                .then(channel => channel.close()).then(() => "ok", error => error.name);
                            outcomes.push(outcome);
                        }
                        await session.close();
                        return outcomes;
                    })()"#,
                )
                .unwrap();
            assert_eq!(outcome, Ok(json!(["ok", "SESecurityException"])));
        } else {
            let tried = |aid: &[u8], command| attempt(&browser, aid, command);
            assert_eq!(tried(&echo::AID, "00100000010700"), "079000", "{profile}");
            assert_eq!(tried(&echo::AID, "0012000000"), "SESecurityException");
            assert_eq!(tried(&echo::SECOND_AID, "0012070800"), "07089000");
            assert_eq!(tried(&echo::WARNING_AID, "00100000"), "SESecurityException");
        }
        drop(_inserted);
        let gone = wait_for(Duration::from_secs(10), || {
            browser.evaluate("reader()").unwrap().err()
        });
        assert!(gone.is_some(), "the card is still there");
    }
}

#[test]
fn rules_of_the_device_decide_where_the_card_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("access-rules.toml");
    fs::write(
        &rules,
        "[[rule]]\norigin = \"*\"\naid = \"F0534552564F0101\"\napdu = \"always\"\n",
    )
    .unwrap();
    let browser = start(&embedded("no-rules", &format!("rules = {rules:?}")));
    assert_eq!(attempt(&browser, &echo::AID, "00100000010700"), "079000");
    assert_eq!(
        attempt(&browser, &echo::SECOND_AID, "00100000010700"),
        "SESecurityException"
    );
    // A test has one browser at a time.
    drop(browser);
    // Nobody may use an embedded element without rules.
    let browser = start(&embedded("no-rules", ""));
    assert_eq!(
        attempt(&browser, &echo::AID, "00100000010700"),
        "SESecurityException"
    );
}

#[test]
fn the_user_s_rules_allow_what_a_user_can_allow() {
    let profile = tempfile::tempdir().unwrap();
    let rule =
        |aid: &str| format!("[[rule]]\norigin = \"*\"\naid = \"{aid}\"\napdu = \"always\"\n");
    let rules = profile.path().join("access-rules.toml");
    let options = Options {
        token_config: embedded("no-rules", ""),
        profile: Some(profile.path().to_owned()),
        ..Options::default()
    };
    fs::write(&rules, rule("F0534552564F0101")).unwrap();
    let browser = start_with(&options);
    assert_eq!(attempt(&browser, &echo::AID, "00100000010700"), "079000");
    assert_eq!(
        attempt(&browser, &echo::SECOND_AID, "00100000010700"),
        "SESecurityException"
    );
    drop(browser);
    // PIV, which the browser will serve keys from.
    fs::write(&rules, rule("F0534552564F0101") + &rule("A000000308")).unwrap();
    let error = Browser::start(&options).unwrap_err().to_string();
    assert!(error.contains("line 5: aid"), "{error}");
}

#[test]
fn a_mistake_in_the_rules_is_named_with_its_line_and_the_browser_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("access-rules.toml");
    fs::write(
        &rules,
        "[[rule]]\norigin = \"*\"\naid = \"*\"\napdus = \"always\"\n",
    )
    .unwrap();
    let options = Options {
        token_config: embedded("default", &format!("rules = {rules:?}")),
        ..Options::default()
    };
    let error = Browser::start(&options).unwrap_err().to_string();
    assert!(
        error.contains("line 4") && error.contains("apdus"),
        "{error}"
    );
}
