/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A PC/SC service that ends, and a card that never answers.

mod pcsc_common;

use e2e::process::wait_for;
use pcsc_common::*;
use rustix::process::Signal;
use serde_json::json;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

#[test]
fn a_service_that_ends_takes_everything_with_it_and_brings_it_back() {
    for signal in [Signal::KILL, Signal::TERM] {
        let mut pcscd = Pcscd::start().unwrap();
        let (slow, commands) = observed("default");
        let _first = pcscd.insert(0, slow).unwrap();
        let _second = pcscd.insert(1, card("t0")).unwrap();
        let browser = start();
        wait_for_cards(&browser, 2);
        evaluate(
            &browser,
            r#"(async () => {
                watch();
                self.first = await readerNamed("Virtual PCD 00 00");
                self.channel = await open(first);
                self.idle = await open(await readerNamed("Virtual PCD 00 01"));
                // Two seconds: the card will be busy for so long, whatever becomes of pcscd.
                begin("running", channel.transmit(command("001800C8")));
                begin("waiting", echo(channel, "01"));
            })()"#,
        );
        events(&browser, 2);
        forget_events(&browser);
        commands.wait_for(echo::INS_DELAY);

        pcscd.stop(signal).unwrap();
        let (error, took) = outcome(&browser, "running");
        assert_eq!(error, "SEIoException", "{signal:?}");
        assert!(took < 1800.0, "{signal:?}: {took} ms");
        let (error, _) = outcome(&browser, "waiting");
        assert!(
            ["SEIoException", "SEClosedException"].contains(&&*error),
            "{signal:?}: {error}"
        );
        let gone = events(&browser, 2);
        assert!(
            gone.iter()
                .all(|(kind, _, present)| kind == "seremoval" && !present),
            "{gone:?}"
        );
        forget_events(&browser);
        let meanwhile = r#"(async () => [
            (await navigator.secureElementManager.getReaders()).length,
            first.isSEPresent,
            await settled(echo(channel, "01")),
            await settled(echo(idle, "01")),
            await settled(idle.session.close().then(() => "closed")),
            await settled(first.openSession()),
        ])()"#;
        assert_eq!(
            evaluate(&browser, meanwhile),
            json!([
                0,
                false,
                "SEClosedException",
                "SEClosedException",
                "closed",
                "SEIoException"
            ]),
            "{signal:?}"
        );

        pcscd.start_again().unwrap();
        let mut back = events(&browser, 2);
        back.sort();
        for (slot, event) in back.iter().enumerate() {
            let name = format!("Virtual PCD 00 0{slot}");
            assert_eq!(*event, ("sepresent".to_owned(), name.clone(), true));
            let works = format!("readerNamed({name:?}).then(works)");
            assert_eq!(evaluate(&browser, &works), true, "{signal:?}: {name}");
        }
    }
}

#[test]
fn a_mute_card_costs_its_own_reader_alone_until_it_is_replaced() {
    let pcscd = Pcscd::start().unwrap();
    let (mute, commands) = observed("default");
    let mute = pcscd.insert(0, mute).unwrap();
    let _other = pcscd.insert(1, card("default")).unwrap();
    let browser = start();
    wait_for_cards(&browser, 2);
    evaluate(
        &browser,
        r#"(async () => {
            watch();
            self.first = await readerNamed("Virtual PCD 00 00");
            self.channels = await open(first, 2);
        })()"#,
    );
    let workers = || browser.shell.token_processes("pcsc-reader");
    let [stuck] = &workers()[..] else {
        panic!("{:?}", workers());
    };
    evaluate(
        &browser,
        "(async () => { self.other = await open(await readerNamed('Virtual PCD 00 01')); })()",
    );
    let unconcerned: Vec<_> = workers()
        .into_iter()
        .filter(|worker| worker != stuck)
        .collect();
    assert_eq!(unconcerned.len(), 1, "{unconcerned:?}");
    events(&browser, 2);
    forget_events(&browser);

    // What the other reader does meanwhile: how long its slowest answer takes, in milliseconds.
    let meanwhile = |condition: &str| {
        let slowest = evaluate(
            &browser,
            &format!(
                r#"(async () => {{
                    let longest = 0;
                    for (let count = 0; count < 10 || ({condition}); count++) {{
                        const started = performance.now();
                        if (await echo(other, "03") !== "039000")
                            throw new Error("wrong answer");
                        longest = Math.max(longest, performance.now() - started);
                        await new Promise(resolve => setTimeout(resolve, 10));
                    }}
                    return longest;
                }})()"#
            ),
        );
        let slowest = slowest.as_f64().unwrap();
        assert!(slowest < 150.0, "{slowest} ms");
    };
    evaluate(
        &browser,
        r#"(async () => {
            channels[0].timeout = 300;
            begin("mute", channels[0].transmit(command("001A0200")));
            begin("waiting", echo(channels[1], "01"));
        })()"#,
    );
    commands.wait_for(echo::INS_FAULT);
    meanwhile("!outcomes.mute");
    let (error, took) = outcome(&browser, "mute");
    assert_eq!(error, "SEIoException");
    assert!((295.0..450.0).contains(&took), "{took} ms");
    let (error, _) = outcome(&browser, "waiting");
    assert!(
        ["SEIoException", "SEClosedException"].contains(&&*error),
        "{error}"
    );
    let killed = wait_for(NOTICE, || (!stuck.is_alive()).then_some(()));
    assert!(killed.is_some(), "the worker hangs with its card");
    let stale = "settled(echo(channels[0], '01'))";
    assert_eq!(evaluate(&browser, stale), "SEClosedException");

    // pcscd itself hangs with the card, so that a new session cannot be had, but waits, in a worker
    // of its own.
    evaluate(&browser, "void begin('again', first.openSession())");
    let replaced = wait_for(NOTICE, || (workers().len() == 2).then_some(()));
    assert!(replaced.is_some(), "{:?}", workers());
    assert!(!workers().contains(stuck));
    meanwhile("false");
    assert!(evaluate(&browser, "outcomes.again").is_null());

    // Its end is the card's.
    drop(mute);
    let removed = [(
        "seremoval".to_owned(),
        "Virtual PCD 00 00".to_owned(),
        false,
    )];
    assert_eq!(events(&browser, 1), removed);
    forget_events(&browser);
    assert_eq!(outcome(&browser, "again").0, "SEIoException");
    let _healthy = pcscd.insert(0, card("default")).unwrap();
    let inserted = [("sepresent".to_owned(), "Virtual PCD 00 00".to_owned(), true)];
    assert_eq!(events(&browser, 1), inserted);
    assert_eq!(evaluate(&browser, "works(first)"), true);
    // The other reader's worker has seen nothing of all that.
    assert!(workers().contains(&unconcerned[0]));
    assert_eq!(evaluate(&browser, "echo(other, '04')"), "049000");
}
