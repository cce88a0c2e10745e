/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The virtual card behind a real `pcscd`, as a card in a reader.

mod pcsc_common;

use std::time::{Duration, Instant};

use e2e::process::wait_for;
use pcsc_common::*;
use serde_json::json;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

const ECHO: &str = r#"(async () => {
    const session = await (await reader()).openSession();
    const channel = await session.openSupplementaryChannel(hex("F0534552564F0101"));
    const response = await channel.transmit(command("00100000" + "010203", 0));
    await session.close();
    return answer(response);
})()"#;

#[test]
fn a_card_in_a_reader_answers() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().unwrap();
        let _card = pcscd.insert(0, card(profile)).unwrap();
        let browser = start();
        wait_for_cards(&browser, 1);
        assert_eq!(evaluate(&browser, ECHO), json!("0102039000"), "{profile}");
        let reader = "reader().then(reader => [reader.name, reader.secureElementType])";
        let seen = evaluate(&browser, reader);
        assert!(seen[0].as_str().unwrap().contains("Virtual PCD"), "{seen}");
        assert_eq!(seen[1], "smartcard");
    }
}

#[test]
fn long_answers_come_over_both_protocols() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().unwrap();
        let _card = pcscd.insert(0, card(profile)).unwrap();
        let browser = start();
        wait_for_cards(&browser, 1);
        // INS 14 answers with P1 P2 bytes.
        let length = evaluate(
            &browser,
            r#"(async () => {
                const session = await (await reader()).openSession();
                const channel = await session.openBasicChannel(hex("F0534552564F0101"));
                const response = await channel.transmit(new SECommand(0, 0x14, 4, 0, null, 0, true));
                const right = response.data.every((byte, index) => byte === index % 251);
                await session.close();
                return [response.data.length, right, response.isStatus(0x90, 0x00)];
            })()"#,
        );
        assert_eq!(length, json!([1024, true, true]), "{profile}");
    }
}

#[test]
fn a_card_without_logical_channels_has_its_basic_one() {
    let pcscd = Pcscd::start().unwrap();
    let _card = pcscd.insert(0, card("basic-channel-only")).unwrap();
    let browser = start();
    wait_for_cards(&browser, 1);
    let open = |method: &str| {
        let expression = format!(
            "(async () => {{
                const session = await (await reader()).openSession();
                const channel = await session.{method}(hex('F0534552564F0101'));
                const response = await channel.transmit(command('00100000' + 'AA', 0));
                await session.close();
                return answer(response);
            }})()"
        );
        browser.evaluate(&expression).unwrap()
    };
    let refused = open("openSupplementaryChannel").unwrap_err();
    assert!(refused.starts_with("SENoChannelException:"), "{refused}");
    assert_eq!(open("openBasicChannel"), Ok(json!("aa9000")));
}

#[test]
fn two_readers_work_side_by_side() {
    let pcscd = Pcscd::start().unwrap();
    let _cards = [0, 1].map(|slot| pcscd.insert(slot, card("default")).unwrap());
    let browser = start();
    wait_for_cards(&browser, 2);
    // INS 18 waits for P1 P2 times 10 ms: one second on each of them, at the same time.
    let took = evaluate(
        &browser,
        r#"(async () => {
            const readers = await navigator.secureElementManager.getReaders();
            const channels = await Promise.all(readers.map(async reader =>
                (await reader.openSession()).openSupplementaryChannel(hex("F0534552564F0101"))));
            const started = performance.now();
            await Promise.all(channels.map(channel => channel.transmit(command("00180064"))));
            return performance.now() - started;
        })()"#,
    );
    let took = took.as_f64().unwrap();
    assert!((1000.0..1800.0).contains(&took), "{took} ms");
}

#[test]
fn killing_the_reader_worker_rejects_and_the_next_call_works() {
    let pcscd = Pcscd::start().unwrap();
    let (slow, commands) = observed("default");
    let _card = pcscd.insert(0, slow).unwrap();
    let browser = start();
    wait_for_cards(&browser, 1);
    // Two seconds: pcscd itself has to wait for the card before it serves anybody else.
    evaluate(
        &browser,
        r#"(async () => {
            const channel = await open(await reader());
            begin("running", channel.transmit(command("001800C8")));
        })()"#,
    );
    commands.wait_for(echo::INS_DELAY);
    let workers = browser.shell.token_processes("pcsc-reader");
    assert_eq!(workers.len(), 1, "{workers:?}");
    let killed = Instant::now();
    workers[0].kill();
    let settled = wait_for(Duration::from_secs(1), || {
        let value = evaluate(&browser, "outcomes.running");
        (!value.is_null()).then_some(())
    });
    assert!(settled.is_some(), "after {:?}", killed.elapsed());
    assert_eq!(outcome(&browser, "running").0, "SEIoException");
    assert_eq!(evaluate(&browser, ECHO), json!("0102039000"));
}
