/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Token processes: when they start, what happens when they are killed, and that nothing is left.

use std::thread;
use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::process::{Process, survivors, wait_for};
use e2e::shell::Options;
use serde_json::{Value, json};

/// In this time a promise has to be rejected after its process was killed.
const REJECTION: Duration = Duration::from_secs(1);
/// In this time everything has to end with the browser.
const END: Duration = Duration::from_secs(5);
/// A command of thirty seconds is under way by then.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// Opens a channel to the echo applet in `self.channel`, and begins a command of thirty seconds on
/// it, which puts what comes of it into `self.outcome`.
const BEGIN: &str = r#"(async () => {
    const session = await (await reader()).openSession();
    self.channel = await session.openSupplementaryChannel(hex("F0534552564F0101"));
    self.outcome = null;
    channel.transmit(command("00180BB8")).then(
        response => outcome = answer(response),
        error => outcome = error.name);
})()"#;

/// Asks the echo applet for one answer, from the beginning.
const ECHO: &str = r#"(async () => {
    const session = await (await reader()).openSession();
    const channel = await session.openSupplementaryChannel(hex("F0534552564F0101"));
    const response = await channel.transmit(command("00100000" + "010203", 0));
    await session.close();
    return answer(response);
})()"#;

fn outcome(browser: &Browser) -> Option<String> {
    let value = browser.session.execute("return self.outcome", &[]).unwrap();
    value.as_str().map(str::to_owned)
}

fn only(mut processes: Vec<Process>) -> Process {
    assert_eq!(processes.len(), 1, "{processes:?}");
    processes.remove(0)
}

/// Kills the token process of a kind while a command is under way.
fn kill_during_transmit(kind: &str) {
    let browser = Browser::start(&Options::default()).unwrap();
    browser.grant().unwrap();
    assert_eq!(browser.evaluate(BEGIN).unwrap(), Ok(Value::Null));
    thread::sleep(UNDER_WAY);
    assert_eq!(outcome(&browser), None, "the command is under way");

    let victim = only(browser.shell.token_processes(kind));
    let killed = Instant::now();
    victim.kill();
    let outcome = wait_for(REJECTION, || outcome(&browser));
    let took = killed.elapsed();
    assert_eq!(outcome.as_deref(), Some("SEIoException"), "after {took:?}");
    assert!(took < REJECTION, "{took:?}");

    // What belonged to the dead process is of no use, but says so.
    let stale = browser
        .evaluate("channel.transmit(command('00100000', 0))")
        .unwrap();
    assert!(stale.is_err(), "{stale:?}");
    assert_eq!(browser.evaluate(ECHO).unwrap(), Ok(json!("0102039000")));
    let replacement = only(browser.shell.token_processes(kind));
    assert_ne!(replacement.pid, victim.pid);
}

#[test]
fn killing_the_broker_rejects_and_the_next_call_works() {
    kill_during_transmit("broker");
}

#[test]
fn killing_the_worker_rejects_and_the_next_call_works() {
    kill_during_transmit("virtual-card");
}

#[test]
fn objects_of_an_older_port_stay_closed() {
    let browser = Browser::start(&Options::default()).unwrap();
    browser.grant().unwrap();
    let open = |name: &str| {
        browser
            .evaluate(&format!(
                r#"(async () => {{
                    self.{name} = {{ reader: await reader() }};
                    {name}.session = await {name}.reader.openSession();
                    {name}.channel =
                        await {name}.session.openSupplementaryChannel(hex("F0534552564F0101"));
                }})()"#
            ))
            .unwrap()
            .unwrap();
    };
    open("older");
    only(browser.shell.token_processes("broker")).kill();
    // The page has to learn of it, else it would ask the port that is no more.
    let lost = browser.evaluate("older.channel.transmit(command('00100000', 0))");
    assert!(lost.unwrap().is_err());

    // Readers, sessions and channels are numbered from the beginning again.
    open("newer");
    for call in [
        "older.reader.openSession()",
        "older.session.openBasicChannel(null)",
        "older.channel.transmit(command('00100000', 0))",
        "older.channel.selectNext()",
        "older.reader.reset()",
    ] {
        let error = browser.evaluate(call).unwrap().unwrap_err();
        assert!(error.starts_with("SEClosedException"), "{call}: {error}");
    }
    for call in [
        "older.channel.close()",
        "older.session.close()",
        "older.reader.closeSessions()",
    ] {
        assert_eq!(browser.evaluate(call).unwrap(), Ok(Value::Null), "{call}");
    }
    // And none of that has closed what is open now.
    let answer = "newer.channel.transmit(command('00100000' + '0102', 0)).then(answer)";
    assert_eq!(browser.evaluate(answer).unwrap(), Ok(json!("01029000")));
}

#[test]
fn killing_it_over_and_over_harms_nothing_else() {
    let browser = Browser::start(&Options::default()).unwrap();
    browser.grant().unwrap();
    for kind in [
        "broker",
        "virtual-card",
        "broker",
        "broker",
        "broker",
        "broker",
    ] {
        assert_eq!(
            browser.evaluate(ECHO).unwrap(),
            Ok(json!("0102039000")),
            "before {kind}"
        );
        browser
            .shell
            .token_processes(kind)
            .iter()
            .for_each(Process::kill);
    }
    assert_eq!(browser.evaluate(ECHO).unwrap(), Ok(json!("0102039000")));
}

#[test]
fn no_token_process_runs_before_it_is_needed() {
    let browser = Browser::start(&Options::default()).unwrap();
    browser.grant().unwrap();
    let running = || -> Vec<Process> {
        let mut processes = browser.shell.processes();
        processes.retain(|process| process.program() == "token-broker");
        processes
    };
    let touch = "String(navigator.secureElementManager) + new SECommand(0, 0, 0, 0).cla";
    assert_eq!(
        browser.evaluate(touch).unwrap(),
        Ok(json!("[object SecureElementManager]0"))
    );
    assert_eq!(running(), []);
    assert_eq!(browser.evaluate(ECHO).unwrap(), Ok(json!("0102039000")));
    assert_eq!(running().len(), 2, "{:?}", running());
}

#[test]
fn nothing_outlives_a_killed_browser() {
    let mut browser = Browser::start(&Options::default()).unwrap();
    browser.grant().unwrap();
    assert_eq!(browser.evaluate(BEGIN).unwrap(), Ok(Value::Null));
    let started = browser.shell.kill_main_process();
    let is_content = |process: &Process| {
        process
            .arguments
            .iter()
            .any(|argument| argument == "--content-process")
    };
    assert!(started.iter().any(is_content), "{started:?}");
    for kind in ["broker", "virtual-card"] {
        let runs = started
            .iter()
            .any(|process| process.arguments.get(1).is_some_and(|it| it == kind));
        assert!(runs, "{kind} is not in {started:?}");
    }
    assert_eq!(survivors(&started, END), []);
}

#[test]
fn nothing_outlives_a_browser_that_ends() {
    let mut browser = Browser::start(&Options::default()).unwrap();
    browser.grant().unwrap();
    assert_eq!(browser.evaluate(BEGIN).unwrap(), Ok(Value::Null));
    let started = browser.shell.processes();
    // It may end before it has answered.
    let _ = browser.session.delete("servo/shutdown");
    assert_eq!(
        wait_for(END, || browser.shell.has_ended().then_some(())),
        Some(())
    );
    assert_eq!(survivors(&started, END), []);
}
