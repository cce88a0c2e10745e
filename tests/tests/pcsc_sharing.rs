/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Another program on the same card: OpenSC's `opensc-tool`, which shares no code with this
//! project, and holds a transaction for as long as it runs.

mod pcsc_common;

use pcsc_common::*;
use serde_json::json;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

/// SELECT of the second echo application on the basic channel.
const SELECT: &str = "00:A4:04:00:08:F0:53:45:52:56:4F:01:02:00";
/// It has to answer with 0A 0B 0C.
const ECHO: &str = "00:10:00:00:03:0A:0B:0C:00";
/// It has to answer with AA, after 50 ms.
const SLOW: &str = "00:18:00:05:01:AA:00";

/// What the tool says of the answers to its commands.
fn answers(text: &str) -> Vec<&str> {
    let received = |line: &&str| line.starts_with("Received");
    text.lines().filter(received).collect()
}

#[track_caller]
fn assert_all_right(text: &str, count: usize) {
    let answers = answers(text);
    assert_eq!(answers.len(), count, "{text}");
    let right = |line: &&str| line.contains("SW1=0x90, SW2=0x00");
    assert!(answers.iter().all(right), "{text}");
}

#[test]
fn opensc_and_a_page_use_one_card_side_by_side() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().unwrap();
        let _card = pcscd.insert(0, card(profile)).unwrap();
        let browser = start();
        wait_for_cards(&browser, 1);
        evaluate(
            &browser,
            "(async () => { self.channels = await open(await reader(), 3); })()",
        );
        let echoes = "Promise.all(channels.map((channel, index) => echo(channel, '0' + index)))";
        let right = json!(["009000", "019000", "029000"]);
        assert_eq!(evaluate(&browser, echoes), right, "{profile}");
        // On the basic channel, and on a channel of its own: the page has 1 to 3.
        let text = pcscd.opensc_tool(
            0,
            &[
                "--send-apdu",
                SELECT,
                "--send-apdu",
                ECHO,
                "--send-apdu",
                "00:70:00:00:01",
            ],
        );
        let text = text.unwrap();
        assert_all_right(&text, 3);
        assert!(text.contains("\n0A 0B 0C "), "{text}");
        assert!(text.contains("\n04 "), "{text}");
        assert_eq!(evaluate(&browser, echoes), right, "{profile}");
        // What the page selects is not what the other program has selected.
        let applets = r#"Promise.all(channels.map(async channel =>
            text((await channel.transmit(command("001C0000", 0))).data).slice(0, 2)))"#;
        assert_eq!(evaluate(&browser, applets), json!(["01", "02", "03"]));
        let text = pcscd.opensc_tool(0, &["--send-apdu", ECHO]).unwrap();
        assert_all_right(&text, 1);
    }
}

#[test]
fn every_answer_is_right_while_opensc_hammers_the_card() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().unwrap();
        let (slow, commands) = observed(profile);
        let _card = pcscd.insert(0, slow).unwrap();
        let browser = start();
        wait_for_cards(&browser, 1);
        evaluate(
            &browser,
            r#"(async () => {
                const channels = await open(await reader(), 5);
                // Which channel of the card each has.
                const number = channel =>
                    channel.transmit(command("001C0000", 0)).then(response => response.data[0]);
                const numbers = await Promise.all(channels.map(number));
                const wrong = [];
                const ask = async index => {
                    const at = index % channels.length;
                    const channel = channels[at];
                    if (index % 4 === 0) {
                        // Forty milliseconds each, so that the other program wants its turns.
                        const data = Uint8Array.of(index, 1, 2, 3);
                        const response = await channel.transmit(
                            new SECommand(0, 0x18, 0, 4, data, 0));
                        if (answer(response) !== text(data) + "9000")
                            wrong.push([index, answer(response)]);
                    } else if (index % 2) {
                        const found = await number(channel);
                        if (found !== numbers[at])
                            wrong.push([index, found]);
                    } else {
                        // Long enough for several steps over T=0.
                        const length = 300 + index;
                        const response = await channel.transmit(
                            new SECommand(0, 0x14, length >> 8, length & 0xFF, null, 0, true));
                        const right = response.isStatus(0x90, 0x00) && response.data.length === length
                            && response.data.every((byte, position) => byte === position % 251);
                        if (!right)
                            wrong.push([index, answer(response)]);
                    }
                };
                const all = Array.from({ length: 200 }, (_, index) => ask(index));
                begin("all", Promise.all(all).then(() => JSON.stringify([numbers, wrong])));
            })()"#,
        );
        let mut runs = 0;
        while evaluate(&browser, "outcomes.all").is_null() {
            let text = pcscd.opensc_tool(
                0,
                &[
                    "--send-apdu",
                    SELECT,
                    "--send-apdu",
                    SLOW,
                    "--send-apdu",
                    ECHO,
                ],
            );
            let text = text.unwrap();
            assert_all_right(&text, 3);
            assert!(text.contains("\n0A 0B 0C "), "{text}");
            commands.wait_for(echo::INS_DELAY);
            runs += 1;
        }
        let (all, took) = outcome(&browser, "all");
        assert_eq!(all, "[[1,2,3,4,5],[]]", "{profile}");
        assert!(runs >= 2, "{profile}: {runs} runs in {took} ms");
    }
}

#[test]
fn a_reset_by_opensc_closes_what_was_open_and_nothing_is_sent_twice() {
    let pcscd = Pcscd::start().unwrap();
    let _card = pcscd.insert(0, card("default")).unwrap();
    let _other = pcscd.insert(1, card("default")).unwrap();
    let browser = start();
    wait_for_cards(&browser, 2);
    evaluate(
        &browser,
        r#"(async () => {
            watch();
            self.card = await readerNamed("Virtual PCD 00 00");
            self.other = await open(await readerNamed("Virtual PCD 00 01"));
        })()"#,
    );
    events(&browser, 2);
    for kind in ["--reset=cold", "--reset=warm"] {
        evaluate(
            &browser,
            "(async () => { self.channels = await open(card, 2); })()",
        );
        pcscd.opensc_tool(0, &[kind]).unwrap();
        let after = r#"(async () => [
            await settled(echo(channels[0], "01")),
            await settled(echo(channels[0], "02")),
            await settled(echo(channels[1], "03")),
            await settled(channels[0].session.openSupplementaryChannel(ECHO)),
            await settled(channels[1].close().then(() => "closed")),
            card.isSEPresent,
            await echo(other, "04"),
        ])()"#;
        assert_eq!(
            evaluate(&browser, after),
            json!([
                "SEIoException",
                "SEClosedException",
                "SEClosedException",
                "SEClosedException",
                "closed",
                true,
                "049000"
            ]),
            "{kind}"
        );
        // The applet has carried out nothing since the reset but what is asked now.
        let count = r#"(async () => {
            const channel = await open(card);
            const count = await channel.transmit(command("001E0000", 0));
            await channel.session.close();
            return text(count.data);
        })()"#;
        assert_eq!(evaluate(&browser, count), "00000000", "{kind}");
    }
    // A reset is neither a removal nor an insertion.
    events(&browser, 2);
}

#[test]
fn a_program_that_holds_the_card_is_waited_for_until_the_time_is_over() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().unwrap();
        let (slow, commands) = observed(profile);
        let _card = pcscd.insert(0, slow).unwrap();
        let _other = pcscd.insert(1, card("default")).unwrap();
        let browser = start();
        wait_for_cards(&browser, 2);
        evaluate(
            &browser,
            r#"(async () => {
                self.card = await readerNamed("Virtual PCD 00 00");
                self.held = await open(card);
                self.other = await open(await readerNamed("Virtual PCD 00 01"));
            })()"#,
        );
        let workers = browser.shell.token_processes("pcsc-reader");
        assert_eq!(workers.len(), 2, "{workers:?}");

        // It waits for the second of its commands for 1.5 s.
        let mut tool = pcscd
            .start_opensc_tool(
                0,
                &[
                    "--send-apdu",
                    SELECT,
                    "--send-apdu",
                    "00:18:00:96:01:BB:00",
                    "--send-apdu",
                    ECHO,
                ],
            )
            .unwrap();
        commands.wait_for(echo::INS_DELAY);
        let meanwhile = evaluate(
            &browser,
            r#"(async () => {
                held.timeout = 300;
                begin("late", echo(held, "01"));
                // Without a time limit, it waits its turn.
                held.timeout = null;
                begin("patient", echo(held, "02"));
                let longest = 0;
                while (!outcomes.late) {
                    const started = performance.now();
                    await echo(other, "03");
                    longest = Math.max(longest, performance.now() - started);
                    await new Promise(resolve => setTimeout(resolve, 10));
                }
                return [longest, outcomes.patient];
            })()"#,
        );
        assert!(tool.is_running().unwrap(), "{profile}");
        let (error, took) = outcome(&browser, "late");
        assert_eq!(error, "SEIoException", "{profile}");
        assert!((299.0..450.0).contains(&took), "{profile}: {took} ms");
        let longest = meanwhile[0].as_f64().unwrap();
        assert!(longest < 150.0, "{profile}: {longest} ms");
        assert!(meanwhile[1].is_null(), "{profile}: {}", meanwhile[1]);

        let text = tool.wait().unwrap();
        assert_all_right(&text, 3);
        assert!(text.contains("\nBB "), "{text}");
        assert!(text.contains("\n0A 0B 0C "), "{text}");
        // The very channel works, the command that came too late was never sent, and nobody was
        // killed, which would have reset the card under the other program.
        assert_eq!(outcome(&browser, "patient").0, "029000", "{profile}");
        assert_eq!(evaluate(&browser, "echo(held, '04')"), "049000");
        let count = "held.transmit(command('001E0000', 0)).then(answer)";
        assert_eq!(evaluate(&browser, count), "000000029000", "{profile}");
        assert_eq!(browser.shell.token_processes("pcsc-reader"), workers);
    }
}
