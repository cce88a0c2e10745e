/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A card that tells origins apart by itself, as pages meet it.

use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::server::{ALTERNATE_HOST, Server};
use e2e::shell::{Options, PCSC};
use secure_element::apdu::StatusWord;
use serde_json::{Value, json};
use virtual_card::VirtualCard;
use virtual_card::applets::origin::{self, OriginAware};
use virtual_card::test_support::Pcscd;

/// Opens a channel to the applet with this P2, sends commands, and says what came of each.
const TRY: &str = r#"
    self.attempt = async (aid, p2, commands) => {
        const hex = text => Uint8Array.from(text.match(/../g), pair => parseInt(pair, 16));
        const text = bytes => Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
        const readers = await navigator.secureElementManager.getReaders();
        const session = await readers.find(reader => reader.isSEPresent).openSession();
        try {
            const channel = await session.openSupplementaryChannel(hex(aid), p2);
            const outcomes = [];
            for (const command of commands)
                outcomes.push(await channel.transmitRaw(hex(command)).then(text, error => error.name));
            return outcomes;
        } catch (error) {
            return error.name;
        } finally {
            await session.close();
        }
    };
"#;

const GET_FIRST: &str = "8044000000";
const GET_SECOND: &str = "8044010000";
const FIRST: &[u8; 16] = b"of the first one";
const SECOND: &[u8; 16] = b"the second one's";
const REFUSED: &str = "6982";

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the applet answers that holds this.
fn given(secret: &[u8]) -> String {
    digits(secret) + "9000"
}

/// Goes to a page whose origin the user allows to use secure elements.
fn visit(browser: &Browser, url: &str) {
    browser.session.navigate(url).unwrap();
    browser.grant().unwrap();
    browser.session.execute(TRY, &[]).unwrap();
    let card = wait_for(Duration::from_secs(10), || {
        let present = "navigator.secureElementManager.getReaders()\
                       .then(readers => readers.some(reader => reader.isSEPresent))";
        (browser.evaluate(present).unwrap() == Ok(json!(true))).then_some(())
    });
    assert!(card.is_some(), "no card");
}

fn attempt(browser: &Browser, p2: u8, commands: &[&str]) -> Value {
    let aid = digits(&origin::AID);
    let expression = format!("attempt({aid:?}, {p2}, {})", json!(commands));
    browser.evaluate(&expression).unwrap().unwrap()
}

#[test]
fn a_card_gives_what_it_holds_to_its_origin_only() {
    for profile in ["default", "t0"] {
        let server = Server::builder().start().unwrap();
        server.page("/", "<!DOCTYPE html><title>a page</title>");
        let urls = [server.url("/"), server.url_on(ALTERNATE_HOST, "/")];
        let [first, second] = urls.each_ref().map(|url| url.trim_end_matches('/'));
        let applet = OriginAware::new()
            .with(0, first, *FIRST)
            .with(1, second, *SECOND);
        let pcscd = Pcscd::start().unwrap();
        let mut card = VirtualCard::from_profile(profile).unwrap();
        card.install(Box::new(applet));
        let _inserted = pcscd.insert(0, card).unwrap();
        let options = Options {
            token_config: PCSC.to_owned(),
            ..Options::default()
        };
        let browser = Browser::start_on(server, &options).unwrap();

        visit(&browser, &urls[0]);
        let answers = attempt(&browser, 0, &[GET_FIRST, GET_SECOND]);
        assert_eq!(answers, json!([given(FIRST), REFUSED]), "{profile}");

        // The same for the other site, in the same reader, on the same channel of the card.
        visit(&browser, &urls[1]);
        // Whatever SELECT is to answer, and whatever the page says that it is.
        let first = first.as_bytes();
        for (class, p2) in [("80", 0x00), ("00", 0x04), ("90", 0x0C)] {
            let present = format!("{class}400000{:02x}{}", first.len(), digits(first));
            let answers = attempt(&browser, p2, &[&present, GET_FIRST, GET_SECOND]);
            let expected = json!(["SESecurityException", REFUSED, given(SECOND)]);
            assert_eq!(answers, expected, "{profile} {p2}");
        }
    }
}

#[test]
fn an_applet_that_refuses_an_origin_is_not_opened() {
    let server = Server::builder().start().unwrap();
    server.page("/", "<!DOCTYPE html><title>a page</title>");
    let url = server.url("/");
    let pcscd = Pcscd::start().unwrap();
    let mut card = VirtualCard::from_profile("default").unwrap();
    card.install(Box::new(
        OriginAware::sample().with_refusal(StatusWord(0x6985)),
    ));
    let _inserted = pcscd.insert(0, card).unwrap();
    let options = Options {
        token_config: PCSC.to_owned(),
        ..Options::default()
    };
    let browser = Browser::start_on(server, &options).unwrap();
    visit(&browser, &url);
    for p2 in [0x00, 0x0C] {
        let outcome = attempt(&browser, p2, &[GET_FIRST]);
        assert_eq!(outcome, json!("SESecurityException"));
    }
}
