/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Cards that nobody here wrote: Nitrokey's PIV and OpenPGP applications, behind a real `pcscd`.

mod pcsc_common;

use e2e::browser::Browser;
use nitrokey_card::{OpenPgpCard, PivCard};
use pcsc_common::*;
use serde_json::{Value, json};
use virtual_card::Card;
use virtual_card::test_support::{InsertedCard, Pcscd};

/// The application's whole AID (SP 800-73-4 part 1 section 2.2).
const AID: &str = "A000000308000010000100";

/// What these tests' scripts share.
const HELPERS: &str = r#"
    self.AID = hex("A000000308000010000100");
    // The basic channel with PIV selected, in a session of its own.
    self.piv = async (aid = AID) => (await (await reader()).openSession()).openBasicChannel(aid);
    self.send = (channel, apdu, le) => channel.transmit(command(apdu, le)).then(answer);
    // GET DATA of an object, with this much of it expected; 0 stands for 256.
    self.getData = (channel, tag, le = 0) => send(channel, "00CB3FFF" + tag, le);
    // The outcome of opening a channel, which is closed again.
    self.tryOpen = async (method, aid) => {
        const session = await (await reader()).openSession();
        try {
            return answer((await session[method](aid)).openResponse);
        } catch (error) {
            return error.name;
        } finally {
            await session.close();
        }
    };
"#;

/// GET DATA of the discovery object: the application's AID and the PIN usage policy, which is the
/// application's PIN alone by default (SP 800-73-4 part 1 section 3.3.2).
const DISCOVERY: &str = "7e124f0ba0000003080000100001005f2f02";

/// No prompt opens PIV and OpenPGP applications, nor what a card selects by itself: this takes an administrator.
const RULES: &str = r#"
    [[rule]]
    origin = "*"
    aid = "*"
    apdu = "always"
"#;

fn start_with_card(card: impl Card + 'static) -> (Browser, InsertedCard, Pcscd) {
    let pcscd = Pcscd::start().unwrap();
    let inserted = pcscd.insert(0, card).unwrap();
    let browser = start_with_rules(Some(RULES));
    wait_for_cards(&browser, 1);
    browser.session.execute(HELPERS, &[]).unwrap();
    (browser, inserted, pcscd)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn a_page_reads_the_discovery_object_over_both_protocols() {
    for card in [PivCard::new().unwrap(), PivCard::over_t0().unwrap()] {
        let (browser, _card, _pcscd) = start_with_card(card);
        // It has the basic channel only, and says so in one way before an application is selected
        // and in another after.
        let refused = "tryOpen('openSupplementaryChannel', AID)";
        assert_eq!(evaluate(&browser, refused), "SENoChannelException");
        evaluate(&browser, "(async () => { self.channel = await piv(); })()");
        let discovery = evaluate(&browser, "getData(channel, '5C017E')");
        let discovery = text(&discovery);
        assert!(discovery.starts_with(DISCOVERY), "{discovery}");
        assert!(discovery.ends_with("9000"), "{discovery}");
        assert_eq!(discovery.len(), 2 * (2 + 18 + 2), "{discovery}");
        // A new card has no certificate: file not found.
        let certificate = "getData(channel, '5C035FC105')";
        assert_eq!(evaluate(&browser, certificate), "6a82");
        evaluate(&browser, "channel.session.close()");
        assert_eq!(evaluate(&browser, refused), "SENoChannelException");
    }
}

#[test]
fn aids_are_whole_partial_and_unknown() {
    let (browser, _card, _pcscd) = start_with_card(PivCard::new().unwrap());
    // The application property template, with the application's identifier in it.
    let whole = evaluate(&browser, "tryOpen('openBasicChannel', AID)");
    assert!(text(&whole).starts_with("61"), "{whole}");
    assert!(text(&whole).contains("4f06000010000100"), "{whole}");
    // Without its version.
    let partial = "tryOpen('openBasicChannel', AID.slice(0, 9))";
    assert_eq!(evaluate(&browser, partial), whole);
    for unknown in [
        "A000000308000020000100",
        "A00000030800001000010000",
        "D2760001240102",
    ] {
        for (method, error) in [
            ("openBasicChannel", "SENoApplicationException"),
            ("openSupplementaryChannel", "SENoChannelException"),
        ] {
            let outcome = format!("tryOpen('{method}', hex('{unknown}'))");
            assert_eq!(evaluate(&browser, &outcome), error, "{unknown}");
        }
    }
    let too_long = "tryOpen('openBasicChannel', new Uint8Array(17))";
    assert_eq!(evaluate(&browser, too_long), "SEInvalidValueException");
    // The card knows of no next occurrence, and says neither that there is one nor that there is
    // none. What was selected stays selected.
    let next = r#"(async () => {
        const channel = await piv(AID.slice(0, 9));
        const opened = channel.openResponse;
        const next = await settled(channel.selectNext());
        const same = channel.openResponse === opened;
        const discovery = await getData(channel, "5C017E");
        await channel.session.close();
        return [next, same, discovery.slice(-4)];
    })()"#;
    assert_eq!(
        evaluate(&browser, next),
        json!(["SEUnsupportedException", true, "9000"])
    );
    // The basic channel is free again each time.
    assert_eq!(evaluate(&browser, partial), whole);
}

#[test]
fn a_wrong_pin_is_an_answer_and_a_reset_ends_what_the_right_one_opened() {
    let (browser, _card, _pcscd) = start_with_card(PivCard::new().unwrap());
    evaluate(&browser, "(async () => { self.channel = await piv(); })()");
    // VERIFY: without data it asks how many tries are left (SP 800-73-4 part 2 section 3.2.1).
    let status = || evaluate(&browser, "send(channel, '00200080')");
    let wrong = "send(channel, '00200080' + '363534333231FFFF')";
    let right = "send(channel, '00200080' + '313233343536FFFF')";
    let before = status();
    let tries = u8::from_str_radix(text(&before).strip_prefix("63c").unwrap(), 16).unwrap();
    assert!(tries >= 2, "{before}");
    let less = json!(format!("63c{:x}", tries - 1));
    assert_eq!(evaluate(&browser, wrong), less);
    assert_eq!(status(), less);
    let warning =
        "channel.transmit(command('00200080')).then(response => response.isStatus(0x63, null))";
    assert_eq!(evaluate(&browser, warning), true);
    assert_eq!(evaluate(&browser, right), "9000");
    assert_eq!(status(), "9000");

    let reset = r#"(async () => {
        const result = await channel.session.reader.reset();
        return [result === undefined, await settled(send(channel, "00200080"))];
    })()"#;
    assert_eq!(
        evaluate(&browser, reset),
        json!([true, "SEClosedException"])
    );
    evaluate(&browser, "(async () => { self.channel = await piv(); })()");
    assert_eq!(status(), before);
}

#[test]
fn what_would_leave_the_channel_and_what_is_no_command_never_reaches_the_card() {
    let (browser, _card, _pcscd) = start_with_card(PivCard::new().unwrap());
    let outcomes = evaluate(
        &browser,
        r#"(async () => {
            const channel = await piv();
            const found = {};
            const select = "0B" + text(AID);
            for (const cla of ["00", "01", "40", "80", "84", "0C", "C0", "10"]) {
                for (const rest of ["70000001", "70800100", "A40400" + select, "A40400" + select + "00"]) {
                    const bytes = hex(cla + rest);
                    found[await settled(channel.transmitRaw(bytes).then(text))] = cla + rest;
                }
            }
            for (const malformed of ["", "00", "00CB3F", "00CB3FFF035C", "00CB3FFF035C017E0000",
                    "00CB3FFF0000045C017E", "FFCB3FFF", "006B0000", "009B0000"]) {
                const bytes = hex(malformed);
                found[await settled(channel.transmitRaw(bytes).then(text))] = malformed;
            }
            // Nothing has happened to the channel.
            found.after = await getData(channel, "5C017E");
            await channel.session.close();
            return found;
        })()"#,
    );
    let kinds: Vec<&String> = outcomes.as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["SEInvalidValueException", "after"], "{outcomes}");
    assert!(text(&outcomes["after"]).starts_with(DISCOVERY));
}

#[test]
fn long_objects_come_in_parts_over_t1_and_whole_over_t0() {
    for (card, over_t0) in [
        (PivCard::new().unwrap(), false),
        (PivCard::over_t0().unwrap(), true),
    ] {
        let (browser, _card, _pcscd) = start_with_card(card);
        // The key history object (SP 800-73-4 part 1 section 3.3.3) is not there; the discovery
        // object is always, and the page wants four bytes of it.
        let parts = evaluate(
            &browser,
            r#"(async () => {
                const channel = await piv();
                const whole = await getData(channel, "5C017E");
                const first = await getData(channel, "5C017E", 4);
                const rest = first.slice(-4, -2) === "61"
                    ? await send(channel, "00C00000", parseInt(first.slice(-2), 16)) : null;
                await channel.session.close();
                return [whole, first, rest];
            })()"#,
        );
        let whole = text(&parts[0]);
        if over_t0 {
            // GET RESPONSE is the browser's business there.
            assert_eq!(text(&parts[1]), whole);
            assert!(parts[2].is_null());
        } else {
            let first = text(&parts[1]);
            assert_eq!(first, format!("{}6110", &whole[..8]));
            assert_eq!(format!("{}{}", &first[..8], text(&parts[2])), whole);
        }
    }
}

#[test]
fn the_page_and_opensc_see_the_same_card() {
    let (browser, _card, pcscd) = start_with_card(PivCard::new().unwrap());
    evaluate(&browser, "(async () => { self.channel = await piv(); })()");
    let discovery = evaluate(&browser, "getData(channel, '5C017E')");
    // There is one channel, so what the other program selects is selected for the page too.
    let output = pcscd.opensc_tool(
        0,
        &[
            "--send-apdu",
            "00:A4:04:00:0B:A0:00:00:03:08:00:00:10:00:01:00:00",
            "--send-apdu",
            "00:CB:3F:FF:03:5C:01:7E:00",
        ],
    );
    let output = output.unwrap();
    assert_eq!(output.matches("SW1=0x90, SW2=0x00").count(), 2, "{output}");
    assert!(output.contains("7E 12 4F 0B A0 00 00 03 08"), "{output}");
    assert_eq!(evaluate(&browser, "getData(channel, '5C017E')"), discovery);
    pcscd.opensc_tool(0, &["--reset"]).unwrap();
    assert_eq!(
        evaluate(&browser, "settled(getData(channel, '5C017E'))"),
        "SEIoException"
    );
    assert_eq!(
        evaluate(&browser, "settled(getData(channel, '5C017E'))"),
        "SEClosedException"
    );
    let aid = format!("tryOpen('openBasicChannel', hex('{AID}'))");
    assert!(text(&evaluate(&browser, &aid)).ends_with("9000"));
}

/// OpenPGP card 3.4: the AID is D2 76 00 01 24 01, the version, manufacturer and serial number.
#[test]
fn an_openpgp_card_is_found_by_the_beginning_of_its_aid() {
    for card in [OpenPgpCard::new().unwrap(), OpenPgpCard::over_t0().unwrap()] {
        let (browser, _card, _pcscd) = start_with_card(card);
        let refused = "tryOpen('openSupplementaryChannel', hex('D27600012401'))";
        assert_eq!(evaluate(&browser, refused), "SENoChannelException");
        assert_eq!(
            evaluate(&browser, "tryOpen('openBasicChannel', AID)"),
            "SENoApplicationException"
        );
        evaluate(
            &browser,
            "(async () => { self.channel = await piv(hex('D27600012401')); })()",
        );
        let aid = evaluate(&browser, "send(channel, '00CA004F', 0)");
        assert!(text(&aid).starts_with("d27600012401"), "{aid}");
        assert_eq!(text(&aid).len(), 2 * (16 + 2), "{aid}");
        // Application related data, which begin with the AID. This card leaves the template's own
        // tag away. Over T=0 they come whole too.
        let related = evaluate(&browser, "send(channel, '00CA006E', 0)");
        let beginning = format!("4f10{}", text(&aid).trim_end_matches("9000"));
        assert!(text(&related).starts_with(&beginning), "{related}");
        assert!(text(&related).ends_with("9000"), "{related}");
        assert!(text(&related).len() > 2 * 200, "{related}");

        // Wrong PINs are answers, and spend tries; the right one is good until the reset.
        let verify = |pin: &str| evaluate(&browser, &format!("send(channel, '00200081{pin}')"));
        assert_eq!(verify(""), "63c3");
        assert_eq!(verify("363534333231"), "63c2");
        assert_eq!(verify("313233343536"), "9000");
        assert_eq!(verify(""), "9000");
        evaluate(&browser, "channel.session.reader.reset()");
        evaluate(
            &browser,
            "(async () => { self.channel = await piv(hex('D27600012401')); })()",
        );
        assert_eq!(verify(""), "63c3");
        // An instruction that it does not have.
        assert_eq!(evaluate(&browser, "send(channel, '00FE0000')"), "6d00");
    }
}
