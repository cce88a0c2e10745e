/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a content process that has been taken over can do with the ports of its documents, to the broker itself. It follows
//! ipc-channel's format here; what it can do without is in the browser's own tests.

mod common;

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use ipc_channel::ipc::IpcSender;
use rustix::process::{Pid, Resource, getrlimit, setrlimit};
use token_traits::port::{
    ChannelId, Command, MAX_REQUESTS_IN_FLIGHT, PortRequest, ReaderId, RequestBody, RequestId,
    SessionId,
};
use token_traits::{ErrorKind, Frame, PortIdentity, TokenBroker as _};
use virtual_card::applets::echo;

const CONTENT: &str = "content process";

/// Where the attacker is. The user has allowed it to use the reader.
const EVIL: &str = "https://evil.example";

/// Where nothing has been allowed.
const STRANGE: &str = "https://strange.example";

/// Most ports of one event loop.
const PORTS: u64 = 128;

/// The most memory that a broker may have used, in KiB.
const MEMORY: u64 = 400 * 1024;

fn browser() -> Browser {
    // This program holds the documents' ends.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("room for the pages");
    let browser = Browser::start(false);
    browser.grant(EVIL);
    browser
}

/// A document of the attacker's process.
fn evil_page(browser: &Browser, webview: u64, origin: &str) -> Option<Page> {
    let identity = PortIdentity {
        webview: 100 + webview,
        event_loop: 2,
        ..identity(origin)
    };
    try_open_page_as(&browser.client, identity).ok()
}

/// Somebody else's document, with a channel.
struct Victim {
    page: Page,
    channel: ChannelId,
    broker: Pid,
    longest: Duration,
}

impl Victim {
    fn new(browser: &Browser) -> Self {
        let mut page = browser.open_page();
        let channel = page.open_echo();
        Self {
            page,
            channel,
            broker: browser.process("broker"),
            longest: Duration::ZERO,
        }
    }

    fn use_the_card(&mut self) {
        let begun = Instant::now();
        self.page.assert_echoes(self.channel, b"not yours");
        self.longest = self.longest.max(begun.elapsed());
    }

    /// What it has noticed, in words.
    fn words(&mut self, browser: &Browser) -> String {
        self.use_the_card();
        let same = browser.processes("broker") == [self.broker];
        match (same, self.longest < PROMPTLY) {
            (true, true) => "other documents are answered in time".to_owned(),
            (true, false) => format!("other documents wait for {:?}", self.longest),
            (false, _) => "the broker ends".to_owned(),
        }
    }
}

fn transmit(channel: ChannelId, command: Vec<u8>) -> RequestBody {
    RequestBody::Transmit {
        channel,
        command: Command::Raw(command),
        timeout_ms: None,
    }
}

/// `true` if the port has been closed.
fn is_closed(page: &mut Page) -> bool {
    let request = page.send(RequestBody::GetReaders);
    page.wait(request, PROMPTLY) == Err(PortClosed)
}

#[test]
fn ids_of_other_documents_and_of_what_has_ended() {
    let browser = browser();
    let mut victim = Victim::new(&browser);
    let mut page = evil_page(&browser, 0, STRANGE).expect("a port");
    // Whatever its number: the victim has the first ones.
    let mut refused = 0;
    for number in 0..40 {
        let channel = ChannelId(number);
        for body in [
            transmit(channel, vec![0, echo::INS_ECHO, 0, 0]),
            RequestBody::SelectNext {
                channel,
                timeout_ms: None,
            },
            open(SessionId(number), &echo::AID),
            RequestBody::OpenSession(ReaderId(number)),
            RequestBody::Reset(ReaderId(number)),
        ] {
            page.ask(body).expect_err("an error");
            refused += 1;
        }
        for body in [
            RequestBody::CloseChannel(channel),
            RequestBody::CloseSession(SessionId(number)),
            RequestBody::CloseSessions(ReaderId(number)),
        ] {
            page.ask(body).expect("nothing to close");
        }
    }
    let outcome = match (refused, page.readers().len()) {
        (200, 0) => "they mean nothing there",
        _ => "it gets something",
    };
    threat_model::outcome(
        CONTENT,
        "names readers, sessions and channels of another document in a port of its own",
        &format!("{outcome}; {}", victim.words(&browser)),
    );

    let mut page = evil_page(&browser, 0, EVIL).expect("a port");
    let channel = page.open_echo();
    page.assert_echoes(channel, b"mine");
    assert!(page.ask(RequestBody::Shutdown).is_ok());
    // Another one may have the card's channel now.
    let mut other = browser.open_page();
    let other_channel = other.open_echo();
    let dead = kind(page.ask(transmit(channel, vec![0, echo::INS_ECHO, 0, 0])));
    let outcome = match dead {
        ErrorKind::Closed => "refused: it is closed",
        _ => "something else happens",
    };
    other.assert_echoes(other_channel, b"nor this");
    threat_model::outcome(
        CONTENT,
        "uses a channel that it has closed, when another document has the card's",
        &format!("{outcome}; {}", victim.words(&browser)),
    );
}

#[test]
fn requests_that_break_the_protocol() {
    let browser = browser();
    let mut victim = Victim::new(&browser);
    let outcome = |page: &mut Page| match is_closed(page) {
        true => "the port is closed",
        false => "the port stays open",
    };

    let mut page = evil_page(&browser, 0, EVIL).expect("a port");
    let channel = page.open_echo();
    let request = Frame::encode(&PortRequest {
        id: RequestId(u64::MAX),
        body: slow(channel, 10),
    });
    let request = request.expect("a frame");
    for _ in 0..2 {
        page.requests.send(request.clone()).expect("an open port");
    }
    let seen = outcome(&mut page);
    threat_model::outcome(
        CONTENT,
        "sends a request again that has not been answered",
        &format!("{seen}; {}", victim.words(&browser)),
    );

    let mut page = evil_page(&browser, 0, EVIL).expect("a port");
    let channel = page.open_echo();
    for _ in 0..=MAX_REQUESTS_IN_FLIGHT {
        page.send(slow(channel, 1));
    }
    let seen = outcome(&mut page);
    threat_model::outcome(
        CONTENT,
        "sends more requests than a port may have in flight",
        &format!("{seen}; {}", victim.words(&browser)),
    );

    // With a message that says nothing, so that it is not refused for what it says.
    let count = |broker: Pid| {
        let folder = format!("/proc/{}/fd", broker.as_raw_nonzero());
        // Only root may look.
        fs::read_dir(folder).map_or(0, Iterator::count)
    };
    let before = count(victim.broker);
    let pages: Vec<Page> = (0..PORTS)
        .map(|number| evil_page(&browser, number, EVIL).expect("a port"))
        .collect();
    let (smuggled, _) = ipc_channel::ipc::channel::<()>().expect("a channel");
    let mut closed = 0;
    for Page {
        requests, messages, ..
    } in pages
    {
        let requests = requests.to_opaque().to::<Vec<IpcSender<()>>>();
        let _ = requests.send(vec![smuggled.clone(); 60]);
        closed += usize::from(messages.try_recv_timeout(PROMPTLY).is_err());
    }
    assert_eq!(closed as u64, PORTS);
    wait_for("the descriptors to be gone", || {
        (count(victim.broker) <= before).then_some(())
    });
    threat_model::outcome(
        CONTENT,
        "sends 60 descriptors in each of 128 ports",
        &format!("the ports are closed; {}", victim.words(&browser)),
    );
}

#[test]
fn more_ports_than_one_process_may_have() {
    let browser = browser();
    let mut victim = Victim::new(&browser);
    let pages: Vec<_> = (0..200)
        .filter_map(|number| evil_page(&browser, number, EVIL))
        .collect();
    let outcome = format!("{} are opened", pages.len());
    assert_eq!(pages.len() as u64, PORTS);
    // There are some left for others.
    let mut other = browser.open_page();
    let channel = other.open_echo();
    other.assert_echoes(channel, b"also there");
    threat_model::outcome(
        CONTENT,
        "opens 200 ports for documents in as many tabs",
        &format!("{outcome}; {}", victim.words(&browser)),
    );
}

/// What the attacker does in one of its ports.
struct Flood {
    words: &'static str,
    origin: &'static str,
    /// Whether it takes the answers.
    reads: bool,
    /// Whether the ports have channels.
    has_channels: bool,
    request: fn(ChannelId) -> RequestBody,
}

#[test]
fn a_flood_of_slow_commands() {
    run(&Flood {
        words: "has as many slow commands waiting for the card as it can, in all of its ports",
        origin: EVIL,
        reads: true,
        has_channels: true,
        request: |channel| slow(channel, 10),
    });
}

#[test]
fn a_flood_of_long_commands() {
    run(&Flood {
        words: "sends the longest commands that there are, in all of its ports",
        origin: EVIL,
        reads: true,
        has_channels: true,
        request: |channel| {
            let command = [
                &[0, echo::INS_STATUS, 0x90, 0, 0, 0xff, 0xff][..],
                &[7; 0xffff],
            ];
            transmit(channel, command.concat())
        },
    });
}

#[test]
fn a_flood_of_long_answers() {
    run(&Flood {
        words: "asks for the longest answers that there are, and reads none",
        origin: EVIL,
        reads: false,
        has_channels: true,
        request: |channel| transmit(channel, vec![0, echo::INS_PATTERN, 0xff, 0xff, 0, 0, 0]),
    });
}

#[test]
fn a_flood_of_questions() {
    run(&Flood {
        words: "asks for readers without an end, though nobody has clicked",
        origin: STRANGE,
        reads: true,
        has_channels: false,
        request: |_| RequestBody::GetReaders,
    });
}

#[test]
fn a_flood_of_answers_that_nobody_reads() {
    run(&Flood {
        words: "asks for readers without an end, and reads no answer",
        origin: EVIL,
        reads: false,
        has_channels: false,
        request: |_| RequestBody::GetReaders,
    });
}

#[test]
fn a_flood_of_sessions() {
    run(&Flood {
        words: "opens and closes sessions without an end",
        origin: EVIL,
        reads: true,
        has_channels: false,
        request: |_| RequestBody::OpenSession(ReaderId(0)),
    });
}

fn run(flood: &Flood) {
    let browser = browser();
    let mut victim = Victim::new(&browser);
    let is_over = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let all_are_open = Barrier::new(4);
    std::thread::scope(|scope| {
        let _end = End(&is_over);
        for thread in 0..4 {
            let (browser, is_over, sent) = (&browser, &is_over, &sent);
            let all_are_open = &all_are_open;
            scope.spawn(move || attack(flood, browser, thread, is_over, sent, all_are_open));
        }
        wait_for("the flood", || {
            (sent.load(Ordering::Relaxed) > 4_000).then_some(())
        });
        for _ in 0..20 {
            victim.use_the_card();
        }
        threat_model::outcome(CONTENT, flood.words, &victim.words(&browser));
    });
    let broker = victim.broker.as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{broker}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let memory = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    let memory: u64 = memory.expect("a size");
    assert!(memory < MEMORY, "{}: {memory} KiB", flood.words);
    victim.use_the_card();
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One of the attacker's documents.
struct EvilPage {
    page: Page,
    channel: ChannelId,
    in_flight: usize,
}

/// Sends what it can in a quarter of the attacker's ports. Those that are closed it opens again.
fn attack(
    flood: &Flood,
    browser: &Browser,
    thread: u64,
    is_over: &AtomicBool,
    sent: &AtomicU64,
    all_are_open: &Barrier,
) {
    // The card has 19 channels, and one is the victim's.
    let ports = if flood.has_channels { 4 } else { PORTS / 4 };
    let open = |number| -> Option<EvilPage> {
        let mut page = evil_page(browser, thread * PORTS + number, flood.origin)?;
        let mut channel = ChannelId(0);
        if flood.has_channels {
            channel = page.open_echo_if_possible()?;
        } else if flood.origin == EVIL {
            let request = page.send(RequestBody::GetReaders);
            page.wait(request, PATIENCE).ok()?.ok()?;
        }
        Some(EvilPage {
            page,
            channel,
            in_flight: 0,
        })
    };
    let mut pages: Vec<Option<EvilPage>> = (0..ports).map(open).collect();
    // Its own commands would have to wait for those of the others.
    all_are_open.wait();
    while !is_over.load(Ordering::SeqCst) {
        for (number, place) in pages.iter_mut().enumerate() {
            let Some(evil) = place else {
                *place = open(number as u64);
                continue;
            };
            while flood.reads && evil.page.messages.try_recv().is_ok() {
                evil.in_flight -= 1;
            }
            let most = match flood.reads {
                true => MAX_REQUESTS_IN_FLIGHT - 6 - evil.in_flight,
                false => 100,
            };
            for _ in 0..most.min(50) {
                let id = RequestId(1_000_000 + sent.fetch_add(1, Ordering::Relaxed));
                let body = (flood.request)(evil.channel);
                let frame = Frame::encode(&PortRequest { id, body }).expect("a frame");
                evil.in_flight += 1;
                if evil.page.requests.send(frame).is_err() {
                    browser.client.close_port(evil.page.id);
                    *place = None;
                    break;
                }
            }
        }
    }
}

trait OpenEcho {
    fn open_echo_if_possible(&mut self) -> Option<ChannelId>;
}

impl OpenEcho for Page {
    /// Where others have taken all channels, or the card is busy, there is none.
    fn open_echo_if_possible(&mut self) -> Option<ChannelId> {
        use token_traits::port::ReplyBody;
        let mut ask = |body| {
            let request = self.send(body);
            self.wait(request, PATIENCE).ok()?.ok()
        };
        let ReplyBody::Readers(readers) = ask(RequestBody::GetReaders)? else {
            return None;
        };
        let ReplyBody::Session(session) = ask(RequestBody::OpenSession(readers.first()?.id))?
        else {
            return None;
        };
        match ask(open(session.id, &echo::AID))? {
            ReplyBody::Channel(channel) => Some(channel.id),
            _ => None,
        }
    }
}
