/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Attacks by a compromised content process on the main process and the broker themselves, through the channels that it was
//! given, and by programs that join when a content process is started. `hostile-shell` is the browser with content processes
//! that do what the title of a page asks for.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::server::{ALTERNATE_HOST, HOST};
use e2e::shell::Options;
use ipc_channel::ipc::{self, IpcSender};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::json;
use tempfile::TempDir;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Who attacks, in the threat model.
const CONTENT: &str = "content process";

/// Where the victim is; the attacker is on the server's main host, which is of another site.
const VICTIM: &str = ALTERNATE_HOST;

/// How long anything may take in the browser that is not the attacker's.
const IN_TIME: Duration = Duration::from_secs(10);

/// How long an attack may take that sends as much as it can.
const ATTACK: Duration = Duration::from_secs(120);

/// A browser with a page that has the grant and uses the token.
struct Scene {
    browser: Browser,
    victim_tab: String,
    /// What content processes read when they start.
    start: PathBuf,
    _folder: TempDir,
}

impl Scene {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let start = folder.path().join("start");
        let browser = Browser::start(&Options {
            program: Some("hostile-shell"),
            // An attack may end the attacker's process. That must not end the browser.
            arguments: vec![],
            environment: vec![
                (
                    "RUST_LOG".into(),
                    "servo_constellation::content_process=warn".into(),
                ),
                ("HOSTILE_START".into(), start.display().to_string()),
            ],
            ..Options::default()
        })?;
        let server = &browser.server;
        server.page(
            "/victim",
            "<!DOCTYPE html><title>victim</title><script>\
             heard = 0; addEventListener('message', () => heard++);</script>",
        );
        server.page("/attacker", "<!DOCTYPE html><title>attacker</title>");
        server.page(
            "/other",
            "<!DOCTYPE html><title>other</title><script>parent.postMessage('loaded', '*');</script>",
        );
        browser
            .session
            .navigate(&server.url_on(VICTIM, "/victim"))?;
        browser.grant()?;
        let victim_tab = browser.session.window()?;
        let scene = Self {
            browser,
            victim_tab,
            start,
            _folder: folder,
        };
        assert_eq!(scene.others()?, WORKS);
        Ok(scene)
    }

    /// Opens the attacker's page, makes its content process attack, and waits until it has said what.
    fn attack(&self, command: &str, until: &str) -> Result<String> {
        let session = &self.browser.session;
        let before = self.browser.shell.log().len();
        let tab = session.new_window()?;
        session.switch_to_window(&tab)?;
        session.navigate(&self.browser.server.url("/attacker"))?;
        // The attacker's page may not answer any more.
        let executed = session.execute(
            "setTimeout(title => document.title = title, 0, arguments[0])",
            &[json!(format!("attack {command}"))],
        );
        let log = || self.browser.shell.log().split_off(before);
        let deadline = Instant::now() + ATTACK;
        while !log().contains(until) {
            if Instant::now() > deadline {
                let log = log();
                return Err(
                    format!("{command}: no {until:?} in the log: {executed:?} {log}").into(),
                );
            }
            sleep(Duration::from_millis(20));
        }
        Ok(log())
    }

    /// What others than the attacker can do, in words.
    fn others(&self) -> Result<String> {
        let session = &self.browser.session;
        let mut fail = Vec::new();
        let begun = Instant::now();
        session.switch_to_window(&self.victim_tab)?;
        for (what, expression, expected) in [
            (
                "use tokens",
                "navigator.secureElementManager.getReaders().then(readers => readers.length)",
                json!(1),
            ),
            (
                "store data",
                "(localStorage.x = 1, localStorage.x + localStorage.length)",
                json!("11"),
            ),
            (
                "fetch",
                "fetch('/other').then(response => response.status)",
                json!(200),
            ),
        ] {
            match self.browser.evaluate(expression) {
                Ok(Ok(value)) if value == expected => {}
                seen => fail.push(format!("{what} ({seen:?})")),
            }
        }
        // Another site's, in a process of its own.
        let tab = session.new_window()?;
        session.switch_to_window(&tab)?;
        session.navigate(&self.browser.server.insecure_url_on(HOST, "/other"))?;
        if session.title()? != "other" {
            fail.push("load".to_owned());
        }
        session.close_window()?;
        session.switch_to_window(&self.victim_tab)?;
        if begun.elapsed() > IN_TIME {
            fail.push(format!("do so in time ({:?})", begun.elapsed()));
        }
        Ok(match fail.is_empty() {
            true => WORKS.to_owned(),
            false => format!("other pages cannot {}", fail.join(", ")),
        })
    }

    /// The main process and the broker, which no attack is to end.
    fn trusted(&self) -> Vec<u32> {
        let mut trusted = vec![self.browser.shell.pid()];
        let brokers = self.browser.shell.token_processes("broker");
        trusted.extend(brokers.iter().map(|broker| broker.pid));
        trusted
    }

    /// Plays an attack, and says what has come of it.
    fn outcome(&self, command: &str, until: &str) -> Result<String> {
        let trusted = self.trusted();
        self.attack(command, until)?;
        let others = self.others()?;
        Ok(match self.trusted() == trusted {
            true => others,
            false => format!("the main process or the broker ends; {others}"),
        })
    }
}

/// What [`Scene::others`] gives.
const WORKS: &str = "other pages load, fetch, store data and use tokens";

/// Every name of an attack in `wire.rs`, and what it is.
const PACKETS: [(&str, &str); 6] = [
    ("bytes", "send bytes that are no message"),
    (
        "lengths",
        "announce messages of lengths that they do not have, or nobody has memory for",
    ),
    ("unfinished", "begin long messages, and not finish them"),
    (
        "descriptors",
        "send descriptors by the hundred, of every kind, and leave out those that are named",
    ),
    ("memory", "send shared memory that shrinks, or is not there"),
    ("flood", "send 20,000 packets as fast as possible"),
];

#[test]
fn packets_that_are_no_messages_to_the_main_process() -> Result {
    let scene = Scene::start()?;
    for (name, attempt) in PACKETS {
        let others = scene.outcome(&format!("wire {name}"), "channels attacked")?;
        threat_model::outcome(
            CONTENT,
            &format!("{attempt}, on each channel to the main process"),
            &format!("dropped; {others}"),
        );
    }
    Ok(())
}

#[test]
fn packets_that_are_no_messages_to_the_broker() -> Result {
    let scene = Scene::start()?;
    let url = scene.browser.server.url("/attacker");
    for (name, attempt) in PACKETS {
        let before = scene.browser.shell.log().len();
        let others = scene.outcome(&format!("wire-port {name} {url}"), "port attacked")?;
        let port = match scene.browser.shell.log()[before..].contains("port attacked, no answer") {
            true => "the port is closed",
            false => "the port goes on",
        };
        threat_model::outcome(
            CONTENT,
            &format!("{attempt}, on its own token port"),
            &format!("{port}; {others}"),
        );
    }
    Ok(())
}

#[test]
fn messages_that_are_too_much() -> Result {
    let scene = Scene::start()?;
    let url = scene.browser.server.url("/attacker");
    for (command, until, attempt) in [
        (
            "nested".to_owned(),
            "hostile: nested",
            "send a value that is nested 100,000 times",
        ),
        (
            "flood".to_owned(),
            "hostile: flooded",
            "send the constellation 200,000 messages as fast as possible",
        ),
        (
            format!("flood-ports {url}"),
            "hostile: flooded",
            "ask for 5,000 token ports as fast as possible",
        ),
        (
            "silence".to_owned(),
            "hostile: asked",
            "ask 1,000 questions, and take no answer",
        ),
    ] {
        let others = scene.outcome(&command, until)?;
        threat_model::outcome(CONTENT, attempt, &others);
    }
    Ok(())
}

#[test]
fn announcing_a_display_list() -> Result {
    let scene = Scene::start()?;
    let others = scene.outcome("display-list", "hostile: announced, true")?;
    threat_model::outcome(
        CONTENT,
        "announce a display list to paint, and not send it",
        &format!("the main process waits for it for five seconds; {others}"),
    );
    Ok(())
}

#[test]
fn pretending_to_end() -> Result {
    let scene = Scene::start()?;
    let others = scene.outcome("lifeline", "hostile: lifeline")?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let log = || scene.browser.shell.log();
    while !log().contains("does not end") && Instant::now() < deadline {
        sleep(Duration::from_millis(100));
    }
    assert!(log().contains("does not end"), "{}", log());
    threat_model::outcome(
        CONTENT,
        "say that it ends, and go on",
        &format!("it is ended after ten seconds; {others}"),
    );
    Ok(())
}

#[test]
fn using_a_port_that_is_closed() -> Result {
    let scene = Scene::start()?;
    let url = scene.browser.server.url("/attacker");
    let log = scene.attack(&format!("old-port {url}"), "hostile: old port")?;
    let line = log
        .lines()
        .find(|line| line.contains("hostile: old port"))
        .unwrap_or_default();
    assert!(line.contains("0 readers before"), "{line}");
    assert!(log.contains("hostile: new port, 0 readers"), "{log}");
    assert!(line.contains("no answer"), "{line}");
    threat_model::outcome(
        CONTENT,
        "keep the port of a document that has another by now, and use it",
        "no answer: it is closed",
    );
    Ok(())
}

/// What content processes have been told to connect to.
fn names_of_servers(scene: &Scene) -> Vec<String> {
    let processes = scene.browser.shell.processes();
    let mut names: Vec<_> = processes
        .iter()
        .filter_map(|process| {
            let mut arguments = process.arguments.iter();
            arguments.find(|argument| *argument == "--content-process")?;
            arguments.next().cloned()
        })
        .collect();
    names.sort();
    names
}

/// Opens a page in a sandboxed frame of the victim's page, which has a process of its own, without waiting for it, and gives
/// what that is to connect to.
fn start_another(scene: &Scene) -> Result<String> {
    let before = names_of_servers(scene);
    let session = &scene.browser.session;
    session.switch_to_window(&scene.victim_tab)?;
    let url = scene.browser.server.url("/other");
    session.execute(
        "const frame = document.createElement('iframe'); frame.sandbox = 'allow-scripts'; \
         frame.src = arguments[0]; document.body.append(frame);",
        &[json!(url)],
    )?;
    let deadline = Instant::now() + IN_TIME;
    while Instant::now() < deadline {
        let now = names_of_servers(scene);
        if let Some(name) = now.into_iter().find(|name| !before.contains(name)) {
            return Ok(name);
        }
        sleep(Duration::from_millis(5));
    }
    Err("no process was started".into())
}

#[test]
fn a_stranger_in_the_place_of_a_content_process() -> Result {
    let scene = Scene::start()?;
    fs::write(&scene.start, "late")?;
    let name = start_another(&scene)?;
    // So many that there is no room for another, and one that speaks as the process would.
    let crowd: Vec<_> = (0..9)
        .filter_map(|_| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::SEQPACKET;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).ok()?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(&name).ok()?).ok()?;
            Some(socket)
        })
        .collect();
    assert!(!crowd.is_empty(), "the stranger came too late");
    let (content, received) = ipc::channel::<Vec<u8>>()?;
    let stranger = IpcSender::<IpcSender<Vec<u8>>>::connect(name)?;
    let _ = stranger.send(content);
    let given = !matches!(
        received.try_recv_timeout(Duration::from_secs(4)),
        Err(ipc_channel::TryRecvError::Empty
            | ipc_channel::TryRecvError::IpcError(ipc_channel::IpcError::Disconnected))
    );
    fs::write(&scene.start, "")?;
    let deadline = Instant::now() + IN_TIME;
    let loaded = || -> Result<bool> { Ok(scene.browser.evaluate("heard")?? == 1) };
    while !loaded()? && Instant::now() < deadline {
        sleep(Duration::from_millis(50));
    }
    let page = loaded()?;
    let others = scene.others()?;
    threat_model::outcome(
        "stranger",
        "connect in the place of a content process, ten times, before it does",
        &format!(
            "it is given {}; the process is started {}; {others}",
            if given {
                "the process's channels"
            } else {
                "nothing"
            },
            if page {
                "as it should be"
            } else {
                "without a page"
            },
        ),
    );
    Ok(())
}

#[test]
fn a_content_process_that_never_connects() -> Result {
    let scene = Scene::start()?;
    fs::write(&scene.start, "never")?;
    let name = start_another(&scene)?;
    // It reads this soon after it has been started.
    sleep(Duration::from_secs(5));
    fs::write(&scene.start, "")?;
    let others = scene.others()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while names_of_servers(&scene).contains(&name) && Instant::now() < deadline {
        sleep(Duration::from_millis(100));
    }
    let ended = !names_of_servers(&scene).contains(&name);
    threat_model::outcome(
        CONTENT,
        "be started, and never connect",
        &format!(
            "it is {} after half a minute; {others}",
            if ended { "ended" } else { "still there" }
        ),
    );
    Ok(())
}
