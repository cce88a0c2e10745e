/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The real processes, with the embedded card.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use ipc_channel::{IpcError, TryRecvError};
use rustix::process::{Resource, getrlimit, setrlimit};
use token_traits::port::{Command, MAX_REQUESTS_IN_FLIGHT, ReplyBody, RequestBody};
use token_traits::{ErrorKind, Frame, PortIdentity, TokenBroker};
use virtual_card::applets::echo;

#[test]
fn a_page_gets_an_answer() {
    let browser = Browser::start(false);
    assert!(browser.processes("broker").is_empty(), "started too early");
    let mut page = browser.open_page();
    let readers = page.readers();
    assert_eq!(readers.len(), 1);
    assert!(
        browser.processes("virtual-card").is_empty(),
        "started too early"
    );
    let session = page.open_session(readers[0].id);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"hello");
    let pattern = RequestBody::Transmit {
        channel,
        command: Command::Raw(vec![0x00, echo::INS_PATTERN, 0xff, 0xff, 0x00, 0x00, 0x00]),
        timeout_ms: None,
    };
    let expected = [echo::pattern(0xffff), vec![0x90, 0x00]].concat();
    assert_eq!(page.ask(pattern), Ok(ReplyBody::Response(expected)));
    let long = Command::Raw(
        [
            &[0, echo::INS_STATUS, 0x90, 0, 0, 0xff, 0xff][..],
            &[7; 0xffff],
        ]
        .concat(),
    );
    let long = RequestBody::Transmit {
        channel,
        command: long,
        timeout_ms: None,
    };
    assert!(page.ask(long).is_ok());
    assert_eq!(
        page.ask(RequestBody::CloseSession(session)),
        Ok(ReplyBody::Done)
    );
    assert_eq!(kind(page.ask(slow(channel, 0))), ErrorKind::Closed);
}

#[test]
fn an_origin_without_a_grant_sees_nothing() {
    let browser = Browser::start(false);
    let mut page = browser
        .try_open_page("https://other.example")
        .expect("a port");
    assert_eq!(page.readers(), []);
    assert!(browser.processes("virtual-card").is_empty());
}

#[test]
fn the_death_of_the_broker_closes_the_port_and_the_next_port_works() {
    let browser = Browser::start(false);
    for _ in 0..3 {
        let mut page = browser.open_page();
        let channel = page.open_echo();
        let worker = browser.process("virtual-card");
        let request = page.send(slow(channel, 500));
        page.readers();
        let killed = Instant::now();
        kill(browser.process("broker"));
        assert_eq!(page.wait(request, PROMPTLY), Err(PortClosed));
        assert!(killed.elapsed() < PROMPTLY);
        wait_for("the worker's end", || {
            (!browser.processes("virtual-card").contains(&worker)).then_some(())
        });
    }
}

#[test]
fn the_death_of_a_worker_rejects_and_the_next_use_works() {
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    let mut other = browser.open_page();
    for _ in 0..3 {
        let channel = page.open_echo();
        let other_channel = other.open_echo();
        let running = page.send(slow(channel, 500));
        let queued = other.send(slow(other_channel, 0));
        // What was sent before has reached the broker when something that waits for no card is answered.
        page.readers();
        other.readers();
        kill(browser.process("virtual-card"));
        let killed = Instant::now();
        assert_eq!(kind(page.wait(running, PROMPTLY).unwrap()), ErrorKind::Io);
        assert_eq!(kind(other.wait(queued, PROMPTLY).unwrap()), ErrorKind::Io);
        assert!(killed.elapsed() < PROMPTLY);
        assert_eq!(kind(page.ask(slow(channel, 0))), ErrorKind::Closed);
        assert_eq!(kind(other.ask(slow(other_channel, 0))), ErrorKind::Closed);
    }
    let channel = page.open_echo();
    page.assert_echoes(channel, b"again");
}

#[test]
fn a_command_that_takes_too_long_is_ended_and_the_next_use_works() {
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    let channel = page.open_echo();
    let worker = browser.process("virtual-card");
    let RequestBody::Transmit { command, .. } = slow(channel, 3000) else {
        unreachable!();
    };
    let begun = Instant::now();
    let reply = page.ask(RequestBody::Transmit {
        channel,
        command,
        timeout_ms: Some(100),
    });
    let taken = begun.elapsed();
    assert_eq!(kind(reply), ErrorKind::Io);
    assert!(
        taken >= Duration::from_millis(100) && taken < PROMPTLY,
        "{taken:?}"
    );
    assert_eq!(kind(page.ask(slow(channel, 0))), ErrorKind::Closed);
    let channel = page.open_echo();
    page.assert_echoes(channel, b"again");
    assert_ne!(browser.process("virtual-card"), worker);
}

#[test]
fn faults_of_the_card_close_what_was_open() {
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    for fault in [echo::FAULT_EMPTY, echo::FAULT_ONE_BYTE, echo::FAULT_REMOVAL] {
        let channel = page.open_echo();
        let fault = command(channel, echo::INS_FAULT, u16::from(fault) << 8, b"");
        assert_eq!(kind(page.ask(fault)), ErrorKind::Io);
        assert_eq!(kind(page.ask(slow(channel, 0))), ErrorKind::Closed);
    }
    // The card was taken out, and is put back by itself.
    // The worker may notice only after it has answered.
    wait_for("the card", || {
        page.readers();
        let seen: Vec<bool> = page.elements.iter().map(|info| info.present).collect();
        (seen == [false, true]).then_some(())
    });
    let channel = page.open_echo();
    page.assert_echoes(channel, b"again");
}

#[test]
fn many_ports_at_once() {
    const PORTS: usize = 32;
    let browser = Browser::start(false);
    std::thread::scope(|scope| {
        for index in 0..PORTS {
            let browser = &browser;
            scope.spawn(move || {
                let mut page = browser.open_page();
                let reader = page.readers()[0].id;
                let session = page.open_session(reader);
                // The card has 19 supplementary channels, so some have to try again.
                let channel = loop {
                    match page.ask(open(session, &echo::AID)) {
                        Ok(ReplyBody::Channel(channel)) => break channel.id,
                        Err(error) if error.kind == ErrorKind::NoChannel => {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        other => panic!("{other:?}"),
                    }
                };
                let requests: Vec<_> = (0..20_u8)
                    .map(|n| {
                        let data = [index as u8, n];
                        (data, page.send(command(channel, echo::INS_ECHO, 0, &data)))
                    })
                    .collect();
                for ([a, b], request) in requests {
                    let reply = page.wait(request, PATIENCE).expect("an open port");
                    assert_eq!(reply, Ok(ReplyBody::Response(vec![a, b, 0x90, 0x00])));
                }
                // Half of them close in order, half just go away.
                if index % 2 == 0 {
                    assert_eq!(page.ask(RequestBody::Shutdown), Ok(ReplyBody::Done));
                }
            });
        }
    });
    assert_eq!(browser.processes("broker").len(), 1);
    assert_eq!(browser.processes("virtual-card").len(), 1);
    // Nothing was left open: all 19 channels can be had.
    let mut page = browser.open_page();
    let reader = page.readers()[0].id;
    let session = page.open_session(reader);
    for _ in 0..19 {
        page.open_channel(session);
    }
    assert_eq!(
        kind(page.ask(open(session, &echo::AID))),
        ErrorKind::NoChannel
    );
}

#[test]
fn a_port_that_breaks_the_protocol_is_closed_and_others_are_not() {
    let browser = Browser::start(false);
    let mut good = browser.open_page();
    let channel = good.open_echo();
    for frame in [
        Frame::from_bytes(vec![]),
        Frame::from_bytes(vec![1; 100]),
        Frame::from_bytes(vec![0xff; 80_000]),
    ] {
        let mut bad = browser.open_page();
        bad.requests.send(frame).expect("an open port");
        let request = bad.send(RequestBody::GetReaders);
        assert_eq!(bad.wait(request, PROMPTLY), Err(PortClosed));
    }
    let mut flooding = browser.open_page();
    let channel_of_flooding = flooding.open_echo();
    let first = flooding.send(slow(channel_of_flooding, 100));
    for _ in 0..MAX_REQUESTS_IN_FLIGHT {
        flooding.send(slow(channel_of_flooding, 0));
    }
    assert_eq!(flooding.wait(first, PROMPTLY), Err(PortClosed));
    good.assert_echoes(channel, b"still here");
}

#[test]
fn a_page_that_does_not_read_does_not_stop_the_others() {
    let browser = Browser::start(false);
    let mut good = browser.open_page();
    let channel = good.open_echo();
    let mut deaf = browser.open_page();
    let deaf_channel = deaf.open_echo();
    let pattern = RequestBody::Transmit {
        channel: deaf_channel,
        command: Command::Raw(vec![0x00, echo::INS_PATTERN, 0xff, 0xff, 0, 0, 0]),
        timeout_ms: None,
    };
    // More than its socket takes: the broker keeps the rest until it reads.
    let requests: Vec<_> = (0..20).map(|_| deaf.send(pattern.clone())).collect();
    let echoed = good.send(command(channel, echo::INS_ECHO, 0, b"1"));
    assert!(good.wait(echoed, PROMPTLY).expect("an open port").is_ok());
    for request in requests {
        let reply = deaf.wait(request, PROMPTLY).expect("an open port");
        assert!(matches!(reply, Ok(ReplyBody::Response(response)) if response.len() == 0x10001));
    }
    // More than the broker keeps: it gives the port up.
    let mut last = deaf.send(pattern.clone());
    for _ in 0..100 {
        last = deaf.send(pattern.clone());
        good.assert_echoes(channel, b"2");
    }
    assert_eq!(deaf.wait(last, PROMPTLY), Err(PortClosed));
    good.assert_echoes(channel, b"3");
    assert_eq!(browser.processes("broker").len(), 1);
}

/// What a document that was taken over can do to a receiver that trusts its peers.
#[test]
fn a_port_that_abuses_the_transport_is_closed_and_others_are_not() {
    let browser = Browser::start(false);
    let mut good = browser.open_page();
    let channel = good.open_echo();
    let broker = browser.process("broker");

    // Channels along with a message.
    let Page {
        requests, messages, ..
    } = browser.open_page();
    let (smuggled, kept) = ipc::channel::<()>().expect("a channel");
    let requests = requests.to_opaque().to::<(IpcSender<()>, Vec<u8>)>();
    requests
        .send((smuggled, vec![0; 10]))
        .expect("an open port");
    assert_eq!(end_of(&messages), Err(PortClosed));
    assert!(kept.recv().is_err(), "the channel is still open");

    // A message so long that ipc-channel announces the rest, for which a receiver would wait.
    let Page {
        requests, messages, ..
    } = browser.open_page();
    std::thread::spawn(move || requests.send(Frame::from_bytes(vec![0; 10_000_000])));
    assert_eq!(end_of(&messages), Err(PortClosed));

    good.assert_echoes(channel, b"still here");
    assert_eq!(browser.process("broker"), broker);
}

fn end_of(messages: &IpcReceiver<Frame>) -> Result<Frame, PortClosed> {
    messages.try_recv_timeout(PROMPTLY).map_err(|error| {
        let gone = TryRecvError::IpcError(IpcError::Disconnected);
        assert_eq!(error.to_string(), gone.to_string());
        PortClosed
    })
}

#[test]
fn a_port_that_the_main_process_closes_is_closed() {
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    let channel = page.open_echo();
    let request = page.send(slow(channel, 20));
    browser.client.close_port(page.id);
    assert_eq!(page.wait(request, PROMPTLY), Err(PortClosed));
}

#[test]
fn ports_are_limited_and_there_is_room_for_as_many() {
    const MAX_PORTS: u64 = 512;
    const OF_ONE: u64 = 128;
    // This program holds the documents' ends, as many as the broker.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("room for the pages");
    let browser = Browser::start(false);
    let open = |webview, event_loop| {
        let identity = PortIdentity {
            webview,
            event_loop,
            ..identity(ORIGIN)
        };
        try_open_page_as(&browser.client, identity)
    };
    let open_one_more = |webview, event_loop| {
        let one_more = open(webview, event_loop).map(|_| ());
        assert_eq!(one_more.expect_err("an error").kind, ErrorKind::Io);
    };
    let mut pages: Vec<Page> = Vec::new();
    // In turn, a tab with documents of many sites, and a site with documents in many tabs.
    for round in 0..MAX_PORTS / OF_ONE {
        let other = |index| 1000 * (round + 1) + index;
        let place = |index| match round % 2 {
            0 => (round, other(index)),
            _ => (other(index), round),
        };
        for index in 0..OF_ONE {
            let (webview, event_loop) = place(index);
            pages.push(open(webview, event_loop).expect("a port"));
        }
        let (webview, event_loop) = place(OF_ONE);
        open_one_more(webview, event_loop);
    }
    open_one_more(MAX_PORTS, MAX_PORTS);
    for page in &mut pages {
        assert_eq!(page.readers().len(), 1);
    }
    // There is room again when the main process closes a port, and when a document just goes.
    let closed = pages.pop().expect("a page");
    browser.client.close_port(closed.id);
    pages.push(open(MAX_PORTS, MAX_PORTS).expect("a port"));
    pages.pop();
    wait_for("room", || open(MAX_PORTS, MAX_PORTS).ok());
}

#[test]
fn a_broker_that_cannot_be_started_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing");
    let silent = directory.path().join("silent");
    // It ends without a word.
    std::os::unix::fs::symlink("/bin/true", &silent).expect("a link");
    for binary in [missing, silent] {
        let client = token_client::TokenClient::new(
            token_client::ClientConfig {
                broker_binary: binary,
                ..nothing()
            },
            Arc::new(Nobody),
        );
        let (sender, receiver) = std::sync::mpsc::channel();
        client.open_port(
            identity(ORIGIN),
            Box::new(move |result| sender.send(result.map(|_| ())).expect("a test")),
        );
        let outcome = receiver.recv_timeout(PATIENCE).expect("an outcome");
        assert_eq!(outcome.expect_err("an error").kind, ErrorKind::Io);
    }
}

#[test]
fn a_process_that_never_reports_is_given_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let mute = directory.path().join("mute");
    std::fs::write(&mute, "#!/bin/sh\nexec sleep 600\n").expect("a script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&mute, mode).expect("a script");
    let client = token_client::TokenClient::new(
        token_client::ClientConfig {
            broker_binary: mute.clone(),
            ..nothing()
        },
        Arc::new(Nobody),
    );
    let (sender, receiver) = std::sync::mpsc::channel();
    client.open_port(
        identity(ORIGIN),
        Box::new(move |result| sender.send(result.map(|_| ())).expect("a test")),
    );
    let begun = Instant::now();
    let outcome = receiver.recv_timeout(PATIENCE).expect("an outcome");
    assert_eq!(outcome.expect_err("an error").kind, ErrorKind::Io);
    assert!(begun.elapsed() >= Duration::from_secs(10));
    // `sh` has become `sleep`, still a child of this process unless it was killed.
    wait_for("its end", || (sleepers() == 0).then_some(()));
}

/// How many children of this process are called `sleep`.
fn sleepers() -> usize {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            let mut fields = stat.split(' ');
            fields.nth(1) == Some("(sleep)") && fields.nth(1) == Some(&own)
        })
        .count()
}

#[test]
fn dropping_the_client_ends_all_processes() {
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    let channel = page.open_echo();
    let request = page.send(slow(channel, 3000));
    let binary = browser.binary().to_owned();
    drop(browser);
    assert_eq!(page.wait(request, PROMPTLY), Err(PortClosed));
    wait_for("their end", || {
        processes_of(&binary, None).is_empty().then_some(())
    });
}
