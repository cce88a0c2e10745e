/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The whole browser, under load, when something in it ends or stands still: every promise is settled, and the next call
//! works. What happens to each kind of token process by itself is tested in `components/token_broker/tests`.
//!
//! `FAULTS_CYCLES` sets how often something is killed, `FAULTS_SEED` repeats a run, and `FAULTS_SUSPENSION` is for how many
//! seconds processes are stopped.

use std::error::Error;
use std::time::{Duration, SystemTime};
use std::{env, thread};

use e2e::browser::{Browser, HELPERS};
use e2e::process::{Process, survivors, wait_for};
use e2e::shell::Options;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::json;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Another name of the server, which is another site.
const ELSEWHERE: &str = "not-web-platform.test";
/// Everything has to end with the browser in this time.
const END: Duration = Duration::from_secs(5);

/// Loops that use the card until `stop()`, which gives what became of their promises. All have a limit, after which the
/// page says which promise was never settled.
const LOAD: &str = r#"
    // What a page is told when a process behind the API ends, or the card is busy.
    const expected = ["SEIoException", "SEClosedException", "SENotPresentException", "SEShutdownException",
                      "SEChannelUnavailableException", "InvalidStateError", "no reader"];
    self.load = { running: true, asked: 0, settled: 0, good: 0, waiting: new Map(), strange: [] };
    const track = async (name, promise) => {
        const number = load.asked++;
        load.waiting.set(number, name);
        try {
            const value = await promise;
            load.good++;
            return value;
        } catch (error) {
            if (!expected.includes(error.name))
                load.strange.push(`${name}: ${error}`);
            throw error;
        } finally {
            load.settled++;
            load.waiting.delete(number);
        }
    };
    const pause = time => new Promise(resolve => setTimeout(resolve, time));
    const use = async number => {
        const manager = navigator.secureElementManager;
        const [reader] = await track("getReaders", manager.getReaders());
        if (!reader?.isSEPresent)
            return;
        const session = await track("openSession", reader.openSession());
        try {
            const channel = await track("open", session.openSupplementaryChannel(hex("F0534552564F0101")));
            for (let command = 0; command < 10; command++) {
                const data = number.toString(16).padStart(2, "0") + command.toString(16).padStart(2, "0");
                const response = await track("transmit", channel.transmit(self.command("00100000" + data, 0)));
                if (answer(response) !== data + "9000")
                    load.strange.push(`${data}: ${answer(response)}`);
            }
            // The card takes that many milliseconds for it.
            await track("slow", channel.transmit(self.command("00180014")));
        } finally {
            await track("close", session.close());
        }
    };
    const loops = Array.from({ length: 6 }, async (_, number) => {
        while (load.running) {
            await use(number).catch(() => {});
            await pause(1);
        }
    });
    self.stop = async () => {
        load.running = false;
        const timeout = pause(10000).then(() => "late");
        const outcome = await Promise.race([Promise.all(loops), timeout]);
        return { late: outcome === "late", waiting: [...load.waiting.values()], strange: load.strange,
                 asked: load.asked, settled: load.settled, good: load.good };
    };
"#;

/// Asks the echo applet for one answer, from the beginning.
const ECHO: &str = r#"(async () => {
    const session = await (await reader()).openSession();
    const channel = await session.openSupplementaryChannel(hex("F0534552564F0101"));
    const response = await channel.transmit(command("00100000" + "010203", 0));
    await session.close();
    return answer(response);
})()"#;

fn number(variable: &str, usual: u64) -> u64 {
    env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(usual)
}

/// SplitMix64: the same cycles for the same seed.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = number("FAULTS_SEED", u64::from(now.subsec_nanos()));
        println!("FAULTS_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A browser with a page that uses the card all the time, in a profile.
fn start(profile: &std::path::Path) -> Result<Browser> {
    let browser = Browser::start(&Options {
        profile: Some(profile.to_owned()),
        ..Options::default()
    })?;
    browser.grant()?;
    begin(&browser)?;
    Ok(browser)
}

fn begin(browser: &Browser) -> Result {
    browser.session.execute(LOAD, &[])?;
    Ok(())
}

/// Ends the load, and looks at what became of it.
fn settle(browser: &Browser, after: &str) -> Result {
    let outcome = browser.evaluate("stop()")??;
    assert_eq!(outcome["late"], false, "after {after}: {outcome}");
    assert_eq!(outcome["waiting"], json!([]), "after {after}: {outcome}");
    assert_eq!(outcome["strange"], json!([]), "after {after}: {outcome}");
    assert_eq!(
        outcome["asked"], outcome["settled"],
        "after {after}: {outcome}"
    );
    assert_ne!(outcome["good"], 0, "after {after}: there was no load");
    let echo = browser.evaluate(ECHO)?;
    assert_eq!(echo, Ok(json!("0102039000")), "after {after}");
    Ok(())
}

fn content_processes(browser: &Browser) -> Vec<Process> {
    let mut processes = browser.shell.processes();
    processes.retain(|process| {
        process
            .arguments
            .get(1)
            .is_some_and(|flag| flag == "--content-process")
    });
    processes
}

/// A tab of another site, which uses the card too. Its content process is killed in the middle of that, and the tab closed.
fn kill_content_process(browser: &Browser, chance: &mut Chance) -> Result {
    let session = &browser.session;
    let first = session.window()?;
    let before = content_processes(browser);
    let second = session.new_window()?;
    session.switch_to_window(&second)?;
    session.navigate(&browser.server.url_on(ELSEWHERE, "/"))?;
    session.execute(HELPERS, &[])?;
    session.set_permission(json!({ "name": "secure-element" }), "granted")?;
    begin(browser)?;
    thread::sleep(Duration::from_millis(chance.below(200)));
    let new: Vec<Process> = content_processes(browser)
        .into_iter()
        .filter(|process| !before.contains(process))
        .collect();
    assert!(!new.is_empty());
    new.iter().for_each(Process::kill);
    assert_eq!(survivors(&new, END), []);
    session.close_window()?;
    session.switch_to_window(&first)?;
    Ok(())
}

#[test]
fn whatever_is_killed_every_promise_is_settled_and_the_next_call_works() -> Result {
    let cycles = number("FAULTS_CYCLES", 20);
    let mut chance = Chance::new();
    let profile = tempfile::tempdir()?;
    let mut browser = start(profile.path())?;
    let mut kinds = Vec::new();
    for cycle in 0..cycles {
        // Each kind in turn, in an order that changes.
        if kinds.is_empty() {
            kinds = vec![
                "broker",
                "virtual-card",
                "content process",
                "broker",
                "main process",
            ];
        }
        let which = chance.below(kinds.len() as u64);
        let kind = kinds.swap_remove(usize::try_from(which)?);
        thread::sleep(Duration::from_millis(50 + chance.below(300)));
        match kind {
            "main process" => {
                // The page is gone with it; what it left must not disturb the next one.
                let started = browser.shell.kill_main_process();
                assert_eq!(survivors(&started, END), [], "cycle {cycle}");
                drop(browser);
                browser = start(profile.path())?;
            }
            "content process" => {
                kill_content_process(&browser, &mut chance)?;
                settle(&browser, kind)?;
                begin(&browser)?;
            }
            _ => {
                let victim = wait_for(END, || browser.shell.token_processes(kind).pop())
                    .ok_or(format!("cycle {cycle}: no {kind}"))?;
                victim.kill();
                // Most loops meet it, not all.
                thread::sleep(Duration::from_millis(chance.below(500)));
                settle(&browser, kind)?;
                begin(&browser)?;
            }
        }
        println!("cycle {cycle}: {kind}");
    }
    settle(&browser, "the last")
}

fn signal(processes: &[Process], signal: Signal) -> Result {
    for process in processes {
        let pid = Pid::from_raw(i32::try_from(process.pid)?).ok_or("no process")?;
        kill_process(pid, signal)?;
    }
    Ok(())
}

/// What happens to a computer that is suspended happens to processes that are stopped: their deadlines have passed when
/// they go on.
#[test]
fn whoever_stands_still_for_a_while_goes_on() -> Result {
    let time = Duration::from_secs(number("FAULTS_SUSPENSION", 3));
    let profile = tempfile::tempdir()?;
    let browser = start(profile.path())?;
    let all = |browser: &Browser| browser.shell.processes();
    for kind in ["virtual-card", "broker", "content process", "all"] {
        thread::sleep(Duration::from_millis(200));
        let stopped = match kind {
            "content process" => content_processes(&browser),
            "all" => all(&browser),
            _ => browser.shell.token_processes(kind),
        };
        assert!(!stopped.is_empty(), "{kind}");
        signal(&stopped, Signal::STOP)?;
        thread::sleep(time);
        // One that was killed for being silent is gone.
        let still: Vec<Process> = stopped.into_iter().filter(Process::is_alive).collect();
        signal(&still, Signal::CONT)?;
        settle(&browser, kind)?;
        begin(&browser)?;
    }
    settle(&browser, "the last")
}

/// A broker that stands still does not hold up a page that does not use it, nor the tab of another site.
#[test]
fn a_broker_that_stands_still_holds_up_nobody_else() -> Result {
    let profile = tempfile::tempdir()?;
    let browser = start(profile.path())?;
    let broker =
        wait_for(END, || browser.shell.token_processes("broker").pop()).ok_or("no broker")?;
    signal(std::slice::from_ref(&broker), Signal::STOP)?;
    let session = &browser.session;
    let first = session.window()?;
    let second = session.new_window()?;
    session.switch_to_window(&second)?;
    session.navigate(&browser.server.url_on(ELSEWHERE, "/"))?;
    assert_eq!(
        browser.evaluate("fetch('/').then(response => response.status)")??,
        200
    );
    session.close_window()?;
    session.switch_to_window(&first)?;
    let pauses = browser.evaluate(
        "new Promise(resolve => {
            let longest = 0, last = performance.now(), count = 0;
            const timer = setInterval(() => {
                const now = performance.now();
                longest = Math.max(longest, now - last);
                last = now;
                if (++count === 50) { clearInterval(timer); resolve(longest); }
            }, 20);
        })",
    )??;
    assert!(
        pauses.as_f64().is_some_and(|longest| longest < 1000.0),
        "{pauses}"
    );
    signal(&[broker], Signal::CONT)?;
    settle(&browser, "a broker that stood still")
}

/// What is in the store's place cannot be opened as one: pages still use tokens, and the user is told that nothing will be
/// remembered.
#[test]
fn a_store_that_cannot_be_opened_keeps_nobody_from_using_tokens() -> Result {
    let profile = tempfile::tempdir()?;
    std::fs::create_dir_all(profile.path().join("tokens/tokens.sqlite"))?;
    let browser = start(profile.path())?;
    thread::sleep(Duration::from_millis(100));
    settle(&browser, "a store that cannot be opened")?;
    let log = browser.shell.log();
    assert!(log.contains("tokens.sqlite"), "{log}");
    Ok(())
}
/// No more descriptors in the main process, when a broker has to be started: what cannot be served is refused, and served
/// when there are some again.
#[test]
fn a_main_process_without_descriptors_refuses_and_goes_on() -> Result {
    let profile = tempfile::tempdir()?;
    let browser = start(profile.path())?;
    settle(&browser, "the start")?;
    let main_process = Pid::from_raw(i32::try_from(browser.shell.pid())?);
    let later = format!(
        "void setTimeout(async () => {{
            self.outcome = await {ECHO}.catch(error => error.name);
        }}, 500)"
    );
    browser.evaluate(&later)??;
    for victim in browser.shell.token_processes("broker") {
        victim.kill();
    }
    let none = Rlimit {
        current: Some(8),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let usual = prlimit(main_process, Resource::Nofile, none)?;
    thread::sleep(Duration::from_secs(3));
    prlimit(main_process, Resource::Nofile, usual)?;

    let refused = wait_for(Duration::from_secs(10), || {
        let outcome = browser.evaluate("self.outcome ?? null").ok()?.ok()?;
        (!outcome.is_null()).then_some(outcome)
    });
    let refused = refused.ok_or_else(|| browser.shell.log_tail())?;
    assert_ne!(refused, json!("0102039000"), "it had descriptors after all");
    let healed = wait_for(Duration::from_secs(20), || {
        (browser.evaluate(ECHO).ok()? == Ok(json!("0102039000"))).then_some(())
    });
    assert_eq!(healed, Some(()), "{}", browser.shell.log_tail());
    Ok(())
}
