/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Pages that ask for nonsense, for too much, or leave in the middle: each call ends with an answer or an error that
//! the specification names, and afterwards the card has all its channels back.

use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::shell::Options;
use serde_json::{Value, json};

/// What the tests' scripts share.
const HELPERS: &str = r#"
    self.ECHO = hex("F0534552564F0101");
    self.NAMES = ["SESecurityException", "SEIoException", "SEInvalidStateException",
        "SEInvalidValueException", "SENoChannelException", "SENoApplicationException",
        "SEClosedException", "SEUnsupportedException", "SEUnknownException"];
    // How often each outcome occurred: "ok", or the name of the error.
    self.outcomes = async promises => {
        const counts = {};
        for (const result of await Promise.allSettled(promises)) {
            const name = result.status === "fulfilled" ? "ok" : result.reason.name;
            counts[name] = (counts[name] || 0) + 1;
        }
        return counts;
    };
    self.open = async () =>
        (await (await reader()).openSession()).openSupplementaryChannel(ECHO);
"#;

/// Closes the document's own sessions, opens as many channels as the card has, on each of which the applet answers, and
/// closes them.
const ALL_CHANNELS: &str = r#"(async () => {
    const card = await reader();
    await card.closeSessions();
    const session = await card.openSession();
    const channels = [await session.openBasicChannel(hex("F0534552564F0101"))];
    for (let count = 0; count < 19; count++)
        channels.push(await session.openSupplementaryChannel(hex("F0534552564F0101")));
    const answers = await Promise.all(channels.map((channel, index) =>
        channel.transmit(new SECommand(0, 0x10, 0, 0, Uint8Array.of(index), 0))));
    await session.close();
    return answers.every((response, index) =>
        response.isStatus(0x90, 0x00) && response.data.length === 1 && response.data[0] === index);
})()"#;

fn start() -> Browser {
    let browser = Browser::start(&Options::default()).unwrap();
    browser.grant().unwrap();
    browser.session.execute(HELPERS, &[]).unwrap();
    browser
}

/// The value of an expression in the page, which must not throw.
fn evaluate(browser: &Browser, expression: &str) -> Value {
    browser.evaluate(expression).unwrap().unwrap()
}

/// Closing what a document has left behind happens behind its back, so it may take a moment.
fn assert_all_channels_are_back(browser: &Browser) {
    let mut last = Ok(Value::Null);
    let all = wait_for(Duration::from_secs(10), || {
        last = browser.evaluate(ALL_CHANNELS).unwrap();
        (last == Ok(json!(true))).then_some(())
    });
    assert!(all.is_some(), "{last:?}");
}

#[test]
fn ten_thousand_commands_at_once_are_all_answered() {
    let browser = start();
    let counts = evaluate(
        &browser,
        r#"(async () => {
            const channels = await Promise.all([open(), open(), open(), open()]);
            const promises = [];
            let wrong = 0;
            for (let count = 0; count < 10000; count++) {
                const data = Uint8Array.of(count >> 8, count & 0xFF);
                promises.push(channels[count % 4].transmit(new SECommand(0, 0x10, 0, 0, data, 0))
                    .then(response => { wrong += text(response.data) !== text(data); }));
            }
            return [await outcomes(promises), wrong];
        })()"#,
    );
    assert_eq!(counts, json!([{ "ok": 10_000 }, 0]));
    assert_all_channels_are_back(&browser);
}

#[test]
fn ten_thousand_sessions_and_channels_at_once_end_in_errors_that_have_names() {
    let browser = start();
    let counts = evaluate(
        &browser,
        r#"(async () => {
            const card = await reader();
            const sessions = [];
            for (let count = 0; count < 5000; count++)
                sessions.push(card.openSession());
            const opened = await outcomes(sessions);
            const session = await sessions[0];
            const channels = [];
            for (let count = 0; count < 5000; count++)
                channels.push(session.openSupplementaryChannel(ECHO));
            return [opened, await outcomes(channels)];
        })()"#,
    );
    // The quota of sessions, and the card's supplementary channels.
    assert_eq!(counts[0], json!({ "ok": 32, "SEIoException": 4968 }));
    assert_eq!(counts[1], json!({ "ok": 19, "SENoChannelException": 4981 }));
    assert_all_channels_are_back(&browser);
}

#[test]
fn a_time_limit_holds_however_many_commands_wait() {
    let browser = start();
    let outcome = evaluate(
        &browser,
        r#"(async () => {
            const channel = await open();
            channel.timeout = 400;
            const started = performance.now();
            const promises = [];
            // INS 18 takes P1 P2 times 10 ms.
            for (let count = 0; count < 10000; count++)
                promises.push(channel.transmit(command("00180002")));
            const counts = await outcomes(promises);
            return [counts, performance.now() - started];
        })()"#,
    );
    let (counts, took) = (&outcome[0], outcome[1].as_f64().unwrap());
    let answered = counts["ok"].as_u64().unwrap();
    assert!((1..=20).contains(&answered), "{counts}");
    assert_eq!(counts["SEIoException"], json!(10_000 - answered));
    assert!((400.0..1500.0).contains(&took), "{took} ms");
    assert_all_channels_are_back(&browser);
}

#[test]
fn random_bytes_are_commands_or_invalid_values() {
    let browser = start();
    let counts = evaluate(
        &browser,
        r#"(async () => {
            const channel = await open();
            // Always the same bytes: a linear congruential generator.
            let state = 12345;
            const random = limit =>
                (state = (Math.imul(state, 1103515245) + 12345) >>> 0, (state >>> 8) % limit);
            const promises = [];
            for (let count = 0; count < 3000; count++) {
                const bytes = new Uint8Array(random(20)).map(() => random(256));
                // The card's own faults and delays are not what this is about.
                if (bytes.length > 1 && (bytes[1] & 0xF0) === 0x10)
                    bytes[1] = 0xB0;
                promises.push(channel.transmitRaw(bytes));
            }
            const counts = await outcomes(promises);
            const response = await channel.transmit(new SECommand(0, 0x10, 0, 0, ECHO, 0));
            return [counts, answer(response)];
        })()"#,
    );
    let (counts, last) = (counts[0].as_object().unwrap(), &counts[1]);
    assert_eq!(last, "f0534552564f01019000");
    assert!(counts["SEInvalidValueException"].as_u64().unwrap() > 1000);
    assert_eq!(counts.len(), 2, "answers and invalid values: {counts:?}");
    assert_all_channels_are_back(&browser);
}

#[test]
fn a_page_that_leaves_with_channels_open_gives_them_back() {
    let browser = start();
    let open = r#"(async () => {
        const session = await (await reader()).openSession();
        // Before the last channel is open, the rules have to be read on one of their own.
        const basic = await session.openBasicChannel(ECHO);
        for (let count = 0; count < 19; count++)
            await session.openSupplementaryChannel(ECHO);
        // And with commands under way.
        for (let count = 0; count < 100; count++)
            basic.transmit(command("00180001")).catch(() => {});
    })()"#;
    for path in ["/", "/?another"] {
        assert_eq!(evaluate(&browser, open), Value::Null);
        browser.open(path).unwrap();
        browser.session.execute(HELPERS, &[]).unwrap();
        assert_all_channels_are_back(&browser);
    }
    // To another site, whose page is in another process.
    assert_eq!(evaluate(&browser, open), Value::Null);
    browser.session.navigate("about:blank").unwrap();
    browser.open("/").unwrap();
    assert_all_channels_are_back(&browser);
}

#[test]
fn frames_that_come_and_go_leave_nothing_behind() {
    let browser = start();
    browser
        .server
        .page("/frame", "<!DOCTYPE html><title>frame</title>");
    let outcome = evaluate(
        &browser,
        r#"(async () => {
            const counts = {};
            const gone = [];
            const left = [];
            for (let count = 0; count < 40; count++) {
                const frame = document.createElement("iframe");
                frame.src = "/frame";
                const loaded = new Promise(resolve => frame.onload = resolve);
                document.body.append(frame);
                await loaded;
                const manager = frame.contentWindow.navigator.secureElementManager;
                const [card] = await manager.getReaders();
                const session = await card.openSession();
                const channel = await session.openSupplementaryChannel(ECHO);
                const response = await channel.transmit(new SECommand(0, 0x10, 0, 0, ECHO, 0));
                const name = answer(response);
                counts[name] = (counts[name] || 0) + 1;
                // One goes, one navigates, in the middle of a command.
                const under_way = channel.transmit(command("00180005"));
                const goes = count % 2 === 0;
                if (goes)
                    frame.remove();
                else
                    frame.src = "/frame?another";
                // Every call ends.
                for (const call of [under_way, channel.transmit(command("00100000"))])
                    await call.catch(error => { (goes ? gone : left).push(error.name); });
                frame.remove();
            }
            return [counts, gone.length, [...new Set(gone)], [...new Set(left)]];
        })()"#,
    );
    assert_eq!(outcome[0], json!({ "f0534552564f01019000": 40 }));
    assert_eq!(
        outcome[1], 40,
        "every call of a document that has gone is refused"
    );
    assert_eq!(outcome[2], json!(["SEClosedException"]));
    // The parent may close the port of a document before that learns that it has been left.
    let names = outcome[3].as_array().unwrap();
    let closed = |name: &Value| name == "SEClosedException" || name == "SEIoException";
    assert!(names.iter().all(closed), "{names:?}");
    assert_all_channels_are_back(&browser);
}

#[test]
fn what_a_card_says_is_an_answer_or_an_error_and_the_next_session_works() {
    let browser = start();
    // INS 1A, P1: see docs/virtual-card.md.
    for (fault, outcome) in [
        ("001A0000", "SEIoException"),
        ("001A0100", "SEIoException"),
        ("001A0300", "ok"),
        ("001A0500", "SEIoException"),
    ] {
        let expression =
            format!("(async () => outcomes([(await open()).transmit(command('{fault}', 0))]))()");
        assert_eq!(
            evaluate(&browser, &expression),
            json!({ outcome: 1 }),
            "{fault}"
        );
        assert_all_channels_are_back(&browser);
    }
}

#[test]
fn a_mute_card_costs_its_own_page_its_time_and_nobody_the_browser() {
    let browser = start();
    let started = Instant::now();
    let outcome = evaluate(
        &browser,
        r#"(async () => {
            const channel = await open();
            channel.timeout = 300;
            const started = performance.now();
            let error;
            await channel.transmit(command("001A0200")).catch(reason => { error = reason.name; });
            const took = performance.now() - started;
            let next;
            await channel.transmit(command("00100000", 0)).catch(reason => { next = reason.name; });
            return [error, next, took];
        })()"#,
    );
    assert_eq!(outcome[0], "SEIoException");
    assert_eq!(outcome[1], "SEClosedException");
    let took = outcome[2].as_f64().unwrap();
    assert!((299.0..450.0).contains(&took), "{took} ms");
    assert_all_channels_are_back(&browser);
    assert!(started.elapsed() < Duration::from_secs(10));
}
