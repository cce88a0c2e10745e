/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Cards and readers that come and go.

mod pcsc_common;

use pcsc_common::*;
use serde_json::json;
use virtual_card::applets::echo;
use virtual_card::test_support::{Pcscd, PluggedReader};

const FIRST: &str = "Virtual PCD 00 00";

fn event(kind: &str, reader: &str, present: bool) -> (String, String, bool) {
    (kind.to_owned(), reader.to_owned(), present)
}

#[test]
fn a_card_that_comes_and_goes_is_told_and_takes_what_was_open_with_it() {
    let pcscd = Pcscd::start().unwrap();
    let browser = start();
    wait_until(
        &browser,
        "readers().then(all => Object.values(all).map(reader => reader.isSEPresent))",
        &json!([false, false]),
    );
    let no_card = "readerNamed('Virtual PCD 00 00').then(reader => settled(reader.openSession()))";
    assert_eq!(evaluate(&browser, no_card), "SEIoException");
    evaluate(
        &browser,
        "(async () => { self.card = await readerNamed('Virtual PCD 00 00'); watch(); })()",
    );

    for _ in 0..2 {
        let inserted = pcscd.insert(0, card("default")).unwrap();
        assert_eq!(events(&browser, 1), [event("sepresent", FIRST, true)]);
        forget_events(&browser);
        // The page's object, not another one for the same reader.
        let same = "[seen.get(card.name) === card, card.isSEPresent]";
        assert_eq!(evaluate(&browser, same), json!([true, true]));
        evaluate(
            &browser,
            r#"(async () => {
                self.channels = await open(card, 3);
                self.session = channels[0].session;
                // What is open when the event fires.
                self.atEvent = event => {
                    if (event.type === "seremoval")
                        begin("atRemoval", echo(channels[0], "01"));
                };
            })()"#,
        );
        assert_eq!(evaluate(&browser, "echo(channels[1], '05')"), "059000");

        drop(inserted);
        assert_eq!(events(&browser, 1), [event("seremoval", FIRST, false)]);
        forget_events(&browser);
        assert_eq!(outcome(&browser, "atRemoval").0, "SEClosedException");
        let after = r#"(async () => [
            card.isSEPresent,
            await settled(echo(channels[2], "01")),
            await settled(channels[2].selectNext()),
            await settled(session.openSupplementaryChannel(ECHO)),
            await settled(channels[1].close().then(() => "closed")),
            await settled(session.close().then(() => "closed")),
            await settled(card.openSession()),
            await settled(card.reset()),
        ])()"#;
        assert_eq!(
            evaluate(&browser, after),
            json!([
                false,
                "SEClosedException",
                "SEClosedException",
                "SEClosedException",
                "closed",
                "closed",
                "SEIoException",
                "SEIoException",
            ])
        );
    }

    // It works as if nothing had happened.
    let _inserted = pcscd.insert(0, card("default")).unwrap();
    assert_eq!(events(&browser, 1), [event("sepresent", FIRST, true)]);
    assert_eq!(evaluate(&browser, "works(card)"), true);
}

#[test]
fn a_card_that_is_swapped_quickly_is_another_card() {
    let pcscd = Pcscd::start().unwrap();
    let first = pcscd.insert(0, card("default")).unwrap();
    let browser = start();
    wait_for_cards(&browser, 1);
    evaluate(
        &browser,
        r#"(async () => {
            self.card = await reader();
            self.channel = await open(card);
            self.historical = text(channel.session.historicalBytes);
            watch();
        })()"#,
    );
    assert_eq!(events(&browser, 1), [event("sepresent", FIRST, true)]);
    forget_events(&browser);

    drop(first);
    let _second = pcscd.insert(0, card("t0")).unwrap();
    assert_eq!(
        events(&browser, 2),
        [
            event("seremoval", FIRST, false),
            event("sepresent", FIRST, true)
        ]
    );
    // Nothing that was opened on the first card reaches the second.
    let stale = "settled(echo(channel, '01'))";
    assert_eq!(evaluate(&browser, stale), "SEClosedException");
    let second = r#"(async () => {
        const channel = await open(card);
        return [
            await echo(channel, "0A"),
            text(channel.session.historicalBytes) !== historical,
            text(await channel.transmit(command("001E0000", 0)).then(response => response.data)),
        ];
    })()"#;
    // And it has carried out nothing but what it was asked now.
    assert_eq!(
        evaluate(&browser, second),
        json!(["0a9000", true, "00000001"])
    );
}

#[test]
fn a_card_that_is_pulled_out_in_the_middle_of_a_command_rejects_what_waits() {
    let pcscd = Pcscd::start().unwrap();
    let (slow, commands) = observed("default");
    let inserted = pcscd.insert(0, slow).unwrap();
    let browser = start();
    wait_for_cards(&browser, 1);
    evaluate(
        &browser,
        r#"(async () => {
            watch();
            self.card = await reader();
            self.channels = await open(card, 2);
            // Ten seconds.
            begin("running", channels[0].transmit(command("001803E8")));
            begin("waiting", echo(channels[1], "01"));
            begin("opening", channels[0].session.openSupplementaryChannel(ECHO));
            begin("closing", channels[1].close());
        })()"#,
    );
    commands.wait_for(echo::INS_DELAY);
    drop(inserted);
    assert_eq!(outcome(&browser, "running").0, "SEIoException");
    for name in ["waiting", "opening"] {
        let (error, _) = outcome(&browser, name);
        assert!(
            ["SEIoException", "SEClosedException"].contains(&&*error),
            "{name}: {error}"
        );
    }
    assert_eq!(outcome(&browser, "closing").0, "ok");
    assert_eq!(
        events(&browser, 2),
        [
            event("sepresent", FIRST, true),
            event("seremoval", FIRST, false)
        ]
    );
    let _inserted = pcscd.insert(0, card("default")).unwrap();
    wait_for_cards(&browser, 1);
    assert_eq!(evaluate(&browser, "works(card)"), true);
}

#[test]
fn a_reader_that_is_plugged_in_and_pulled_out_leaves_the_others_alone() {
    let pcscd = Pcscd::start().unwrap();
    let _other = pcscd.insert(0, card("default")).unwrap();
    let browser = start();
    wait_for_cards(&browser, 1);
    evaluate(
        &browser,
        r#"(async () => {
            self.other = await open(await readerNamed("Virtual PCD 00 00"));
            watch();
            self.names = () => readers().then(all => Object.keys(all).sort());
        })()"#,
    );
    events(&browser, 1);
    forget_events(&browser);
    let without = json!(["Virtual PCD 00 00", "Virtual PCD 00 01"]);
    let (slot, with) = {
        let name = |slot| format!("{} 00 0{slot}", PluggedReader::NAME);
        let all = json!([name(0), name(1), "Virtual PCD 00 00", "Virtual PCD 00 01"]);
        (name(1), all)
    };
    assert_eq!(evaluate(&browser, "names()"), without);

    let mut plugged = pcscd.plug_in().unwrap();
    wait_until(&browser, "names()", &with);
    let (slow, commands) = observed("default");
    let _card = plugged.insert(1, slow).unwrap();
    for round in 0..2 {
        assert_eq!(events(&browser, 1), [event("sepresent", &slot, true)]);
        forget_events(&browser);
        evaluate(
            &browser,
            r#"(async () => {
                self.pluggable = await readerNamed("Pluggable PCD 00 01");
                const channels = await open(pluggable, 2);
                self.stale = channels[1];
                // Two seconds: the card will be busy for so long, plugged in or not.
                begin("running", channels[0].transmit(command("001800C8")));
            })()"#,
        );
        // In its time, the other reader answers.
        assert_eq!(evaluate(&browser, "echo(other, '0102')"), "01029000");
        commands.wait_for(echo::INS_DELAY);
        drop(plugged);
        let (error, took) = outcome(&browser, "running");
        assert_eq!(error, "SEIoException", "round {round}");
        assert!(took < 1500.0, "{took} ms");
        assert_eq!(events(&browser, 1), [event("seremoval", &slot, false)]);
        forget_events(&browser);
        wait_until(&browser, "names()", &without);
        let stale = r#"(async () => [
            pluggable.isSEPresent,
            await settled(echo(stale, "01")),
            await settled(stale.session.close().then(() => "closed")),
            await settled(pluggable.openSession()),
            await echo(other, "AA"),
        ])()"#;
        assert_eq!(
            evaluate(&browser, stale),
            json!([
                false,
                "SEClosedException",
                "closed",
                "SEIoException",
                "aa9000"
            ])
        );
        // The card is still in it.
        plugged = pcscd.plug_in().unwrap();
    }
    assert_eq!(events(&browser, 1), [event("sepresent", &slot, true)]);
    let works = "readerNamed('Pluggable PCD 00 01').then(works)";
    assert_eq!(evaluate(&browser, works), true);
    assert_eq!(evaluate(&browser, "echo(other, 'BB')"), "bb9000");
}
