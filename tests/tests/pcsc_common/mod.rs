/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the tests with PC/SC readers share.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::shell::{Options, PCSC};
use serde_json::{Value, json};
use virtual_card::{Card, VirtualCard};

/// How long PC/SC may take to notice a card, a reader, or the end of its service.
pub const NOTICE: Duration = Duration::from_secs(10);

const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// What the pages' scripts share.
const HELPERS: &str = r#"
    self.ECHO = hex("F0534552564F0101");
    // All readers, by name.
    self.readers = async () => {
        const found = {};
        for (const reader of await navigator.secureElementManager.getReaders())
            found[reader.name] = reader;
        return found;
    };
    self.readerNamed = async name => {
        const found = await readers();
        if (!(name in found))
            throw new Error(`${name} is not in ${Object.keys(found)}`);
        return found[name];
    };
    self.open = async (reader, count = 1) => {
        const session = await reader.openSession();
        const channels = [];
        for (let number = 0; number < count; number++)
            channels.push(await session.openSupplementaryChannel(ECHO));
        return count === 1 ? channels[0] : channels;
    };
    self.echo = (channel, data) => channel.transmit(command("00100000" + data, 0)).then(answer);
    // A new session on this reader, to the end.
    self.works = async reader => {
        const channel = await open(reader);
        const echoed = await echo(channel, "0102");
        await channel.session.close();
        return echoed === "01029000";
    };
    // What has become of promises that are not awaited: a value, or the name of an error; and when.
    self.outcomes = {};
    self.begin = (name, promise) => {
        const started = performance.now();
        outcomes[name] = null;
        const settle = value => { outcomes[name] = [value, performance.now() - started]; };
        promise.then(value => settle(value === undefined ? "ok" : value), error => settle(error.name));
    };
    // The name of the error, or the value.
    self.settled = promise => promise.then(value => value, error => error.name);
    // What comes of events: the reader's object is compared with that of getReaders().
    self.events = [];
    self.watch = () => {
        const manager = navigator.secureElementManager;
        for (const type of ["sepresent", "seremoval"]) {
            manager.addEventListener(type, event => {
                events.push([type, event.reader.name, event.reader.isSEPresent]);
                (self.seen ||= new Map()).set(event.reader.name, event.reader);
                self.atEvent?.(event);
            });
        }
    };
"#;

pub fn start() -> Browser {
    start_with_rules(None)
}

/// With rules of the device, for cards that have none of their own.
pub fn start_with_rules(access_rules: Option<&str>) -> Browser {
    let options = Options {
        token_config: PCSC.to_owned(),
        access_rules: access_rules.map(str::to_owned),
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    browser.grant().unwrap();
    browser.session.execute(HELPERS, &[]).unwrap();
    browser
}

pub fn card(profile: &str) -> VirtualCard {
    VirtualCard::from_profile(profile).unwrap()
}

/// The value of an expression in the page, which must not throw.
#[track_caller]
pub fn evaluate(browser: &Browser, expression: &str) -> Value {
    match browser.evaluate(expression).unwrap() {
        Ok(value) => value,
        Err(error) => panic!("{expression}: {error}"),
    }
}

/// Waits until `condition` gives something, at most [`NOTICE`]. Each look is a connection of its
/// own to the browser, so it does not look too often.
fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + NOTICE;
    loop {
        let found = condition();
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Evaluates an expression until it has this value.
#[track_caller]
pub fn wait_until(browser: &Browser, expression: &str, expected: &Value) {
    let mut last = Ok(Value::Null);
    let seen = wait_for(|| {
        last = browser.evaluate(expression).unwrap();
        (last.as_ref() == Ok(expected)).then_some(())
    });
    assert!(seen.is_some(), "{expression} is {last:?}, not {expected}");
}

/// Waits until this many readers have a card.
#[track_caller]
pub fn wait_for_cards(browser: &Browser, count: u64) {
    let expression = "navigator.secureElementManager.getReaders()\
         .then(readers => readers.filter(reader => reader.isSEPresent).length)";
    wait_until(browser, expression, &json!(count));
}

/// Waits for what the page began under this name: a value or the name of an error, and after how
/// many milliseconds.
#[track_caller]
pub fn outcome(browser: &Browser, name: &str) -> (String, f64) {
    let found = wait_for(|| {
        let value = evaluate(browser, &format!("outcomes.{name}"));
        Some((value[0].as_str()?.to_owned(), value[1].as_f64()?))
    });
    found.unwrap_or_else(|| panic!("{name} is not settled"))
}

/// The events of the page's list, which has to become this long.
#[track_caller]
pub fn events(browser: &Browser, count: usize) -> Vec<(String, String, bool)> {
    let mut list = Vec::new();
    wait_for(|| {
        let value = evaluate(browser, "events");
        list = value.as_array()?.clone();
        (list.len() >= count).then_some(())
    });
    assert_eq!(list.len(), count, "{list:?}");
    list.iter()
        .map(|event| {
            (
                event[0].as_str().unwrap().to_owned(),
                event[1].as_str().unwrap().to_owned(),
                event[2].as_bool().unwrap(),
            )
        })
        .collect()
}

/// Takes the events from the page's list so far.
#[track_caller]
pub fn forget_events(browser: &Browser) {
    evaluate(browser, "void (events.length = 0)");
}

/// A card that tells which commands reach it.
pub struct Observed {
    card: VirtualCard,
    instructions: Sender<u8>,
}

/// What has reached a card.
pub struct Commands(Receiver<u8>);

pub fn observed(profile: &str) -> (Observed, Commands) {
    let (instructions, received) = channel();
    let card = card(profile);
    (Observed { card, instructions }, Commands(received))
}

impl Commands {
    /// Waits for a command with this instruction byte, from now on, and forgets those before it.
    #[track_caller]
    pub fn wait_for(&self, instruction: u8) {
        let deadline = Instant::now() + NOTICE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.0.recv_timeout(left) {
                Ok(received) if received == instruction => return,
                Ok(_) => {}
                Err(error) => panic!("no command {instruction:02X}: {error}"),
            }
        }
    }
}

impl Card for Observed {
    fn atr(&self) -> &[u8] {
        self.card.atr()
    }

    fn reset(&mut self) {
        self.card.reset();
    }

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        if let Some(instruction) = command.get(1) {
            // Nobody may want to know any more.
            let _ = self.instructions.send(*instruction);
        }
        self.card.transmit(command)
    }

    fn is_present(&self) -> bool {
        self.card.is_present()
    }

    fn returns_after(&self) -> Option<Duration> {
        self.card.returns_after()
    }
}
