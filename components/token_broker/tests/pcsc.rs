/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The real processes, over a real `pcscd` with virtual cards in its readers.

mod common;

use std::time::{Duration, Instant};

use common::*;
use pcsc::{Context, Disposition, Protocols, Scope, ShareMode};
use rustix::process::Signal;
use token_traits::ErrorKind;
use token_traits::port::{ElementType, ReaderInfo, ReplyBody, RequestBody};
use virtual_card::VirtualCard;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

fn card(profile: &str) -> VirtualCard {
    VirtualCard::from_profile(profile).expect("a profile")
}

/// The readers besides the embedded one, once so many of them have a card.
fn readers_with_cards(page: &mut Page, cards: usize) -> Vec<ReaderInfo> {
    wait_for("the readers", || {
        let mut readers = page.readers();
        readers.remove(0);
        let present = readers.iter().filter(|reader| reader.present).count();
        (readers.len() == 2 && present == cards).then_some(readers)
    })
}

#[test]
fn cards_come_and_go() {
    let pcscd = Pcscd::start().expect("pcscd");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let readers = readers_with_cards(&mut page, 0);
    assert!(readers.iter().all(|reader| reader.removable
        && reader.element_type == ElementType::SmartCard
        && reader.name.contains("Virtual PCD")));
    let no_card = page.ask(RequestBody::OpenSession(readers[0].id));
    assert_eq!(kind(no_card), ErrorKind::Io);

    let inserted = pcscd.insert(0, card("default")).expect("a card");
    let again = readers_with_cards(&mut page, 1);
    assert_eq!(again[0].id, readers[0].id);
    assert!(again[0].present);
    let session = page.open_session(readers[0].id);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"hello");

    drop(inserted);
    wait_for("the removal", || {
        let reply = page.ask(command(channel, echo::INS_ECHO, 0, b"gone"));
        (kind(reply) == ErrorKind::Closed).then_some(())
    });
    readers_with_cards(&mut page, 0);

    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    readers_with_cards(&mut page, 1);
    let session = page.open_session(readers[0].id);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"back");
}

#[test]
fn both_protocols_work_at_the_same_time() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _t1 = pcscd.insert(0, card("default")).expect("a card");
    let _t0 = pcscd.insert(1, card("t0")).expect("a card");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let readers = readers_with_cards(&mut page, 2);
    let channels: Vec<_> = readers
        .iter()
        .map(|reader| {
            let session = page.open_session(reader.id);
            page.open_channel(session)
        })
        .collect();
    let data: Vec<u8> = (0..=254).collect();
    for channel in &channels {
        for length in [0, 1, 100, 253, 255] {
            page.assert_echoes(*channel, &data[..length]);
        }
        let pattern = RequestBody::Transmit {
            channel: *channel,
            command: token_traits::port::Command::Raw(vec![0, echo::INS_PATTERN, 0x01, 0x00, 0]),
            timeout_ms: None,
        };
        let expected = [echo::pattern(0x100), vec![0x90, 0x00]].concat();
        assert_eq!(page.ask(pattern), Ok(ReplyBody::Response(expected)));
    }
    // While one card takes its time, the other answers.
    let slow_request = page.send(slow(channels[0], 50));
    let begun = Instant::now();
    page.assert_echoes(channels[1], b"meanwhile");
    assert!(begun.elapsed() < Duration::from_millis(400));
    assert!(
        page.wait(slow_request, PATIENCE)
            .expect("an open port")
            .is_ok()
    );
}

#[test]
fn nothing_of_ours_resets_a_card_that_others_use_and_their_resets_are_noticed() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let reader = readers_with_cards(&mut page, 1)[0].id;

    // Another program selects an applet on the basic channel and has it count.
    let context = Context::establish(Scope::User).expect("a context");
    let name = context.list_readers_owned().expect("readers").remove(0);
    let mut theirs = context
        .connect(&name, ShareMode::Shared, Protocols::T0 | Protocols::T1)
        .expect("a card");
    let mut buffer = [0; 300];
    let select = [&[0x00, 0xa4, 0x04, 0x00, 0x08][..], &echo::AID, &[0x00]].concat();
    theirs.transmit(&select, &mut buffer).expect("an answer");

    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"ours");
    assert_eq!(
        page.ask(RequestBody::CloseSession(session)),
        Ok(ReplyBody::Done)
    );
    // And once more, with a page that just goes away.
    let session = page.open_session(reader);
    page.open_channel(session);
    drop(page);
    let mut page = browser.open_page();
    let reader = readers_with_cards(&mut page, 1)[0].id;
    // Their handle still stands, and their applet is still selected.
    let echoed = theirs
        .transmit(&[0x00, echo::INS_ECHO, 0, 0, 1, 7, 0], &mut buffer)
        .expect("no reset");
    assert_eq!(echoed, [7, 0x90, 0x00]);

    // They reset the card under an open channel.
    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    theirs
        .reconnect(
            ShareMode::Shared,
            Protocols::T0 | Protocols::T1,
            Disposition::ResetCard,
        )
        .expect("a reset");
    let reply = page.ask(command(channel, echo::INS_ECHO, 0, b"lost"));
    assert_eq!(kind(reply), ErrorKind::Io);
    assert_eq!(kind(page.ask(open(session, &echo::AID))), ErrorKind::Closed);
    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"again");
    theirs
        .disconnect(Disposition::LeaveCard)
        .map_err(|(_, error)| error)
        .expect("an end");
}

#[test]
fn the_death_of_a_reader_worker_leaves_no_channel_open_and_the_other_reader_alone() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _first = pcscd.insert(0, card("default")).expect("a card");
    let _second = pcscd.insert(1, card("default")).expect("a card");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let readers = readers_with_cards(&mut page, 2);
    let mut sessions = Vec::new();
    for reader in &readers {
        let before = browser.processes("pcsc-reader");
        let session = page.open_session(reader.id);
        let worker = browser
            .processes("pcsc-reader")
            .into_iter()
            .find(|pid| !before.contains(pid))
            .expect("a worker of its own");
        sessions.push((session, page.open_channel(session), worker));
    }
    let [(_, first_channel, first_worker), (_, second_channel, _)] = sessions[..] else {
        unreachable!();
    };
    let request = page.send(slow(first_channel, 30));
    // Let the command reach the card, which goes on with it after the worker's death.
    std::thread::sleep(Duration::from_millis(100));
    kill(first_worker);
    let reply = page.wait(request, PROMPTLY).expect("an open port");
    assert_eq!(kind(reply), ErrorKind::Io);
    page.assert_echoes(second_channel, b"not concerned");

    let session = page.open_session(readers[0].id);
    for _ in 0..19 {
        page.open_channel(session);
    }
    assert_eq!(
        kind(page.ask(open(session, &echo::AID))),
        ErrorKind::NoChannel
    );
}

#[test]
fn a_card_that_falls_silent_is_given_up_in_time() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let reader = readers_with_cards(&mut page, 1)[0].id;
    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    let RequestBody::Transmit { command, .. } = slow(channel, 100) else {
        unreachable!();
    };
    let begun = Instant::now();
    let reply = page.ask(RequestBody::Transmit {
        channel,
        command,
        timeout_ms: Some(50),
    });
    assert_eq!(kind(reply), ErrorKind::Io);
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    // The card is free again once it has answered pcscd; the session waits for it.
    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"again");
}

#[test]
fn faults_of_a_card_are_errors() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    for fault in [echo::FAULT_ONE_BYTE, echo::FAULT_REMOVAL] {
        let reader = readers_with_cards(&mut page, 1)[0].id;
        let session = page.open_session(reader);
        let channel = page.open_channel(session);
        let fault = command(channel, echo::INS_FAULT, u16::from(fault) << 8, b"");
        assert_eq!(kind(page.ask(fault)), ErrorKind::Io);
        assert_eq!(kind(page.ask(slow(channel, 0))), ErrorKind::Closed);
    }
}

#[test]
fn the_service_may_be_down_and_come_back() {
    // Only so that libpcsclite looks at this process's own place.
    drop(Pcscd::start().expect("pcscd"));
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let readers = page.readers();
    assert_eq!(readers.len(), 1, "{readers:?}");
    let channel = page.open_echo();
    page.assert_echoes(channel, b"the embedded card works");

    let mut pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    for signal in [Signal::TERM, Signal::KILL] {
        let reader = readers_with_cards(&mut page, 1)[0].id;
        let session = page.open_session(reader);
        let ours = page.open_channel(session);
        page.assert_echoes(ours, b"so does the other");
        let running = page.send(slow(ours, 100));
        let worker = browser.process("pcsc-reader");
        pcscd.stop(signal).expect("an end");
        let reply = page.wait(running, PROMPTLY).expect("an open port");
        assert_eq!(kind(reply), ErrorKind::Io);
        wait_for("the end of the readers", || {
            (page.readers().len() == 1).then_some(())
        });
        assert_eq!(kind(page.ask(slow(ours, 0))), ErrorKind::Closed);
        assert_eq!(
            kind(page.ask(RequestBody::OpenSession(reader))),
            ErrorKind::Io
        );
        // Its context is of no use any more, and it could not get another one.
        wait_for("the end of the worker", || {
            (!browser.processes("pcsc-reader").contains(&worker)).then_some(())
        });
        page.assert_echoes(channel, b"the embedded card has seen nothing of it");
        pcscd.start_again().expect("pcscd");
    }
    let reader = readers_with_cards(&mut page, 1)[0].id;
    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"back");
}

#[test]
fn a_service_that_hangs_costs_no_more_than_the_time_that_a_page_gives_it() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let reader = readers_with_cards(&mut page, 1)[0].id;
    let session = page.open_session(reader);
    let ours = page.open_channel(session);
    let embedded = page.open_echo();
    pcscd.signal(Signal::STOP).expect("a pcscd that hangs");
    let mut request = slow(ours, 0);
    if let RequestBody::Transmit { timeout_ms, .. } = &mut request {
        *timeout_ms = Some(200);
    }
    let begun = Instant::now();
    let request = page.send(request);
    page.assert_echoes(embedded, b"not concerned");
    assert_eq!(page.readers().len(), 3);
    let reply = page.wait(request, PROMPTLY).expect("an open port");
    assert_eq!(kind(reply), ErrorKind::Io);
    let took = begun.elapsed();
    assert!((200..500).contains(&took.as_millis()), "{took:?}");
    assert_eq!(kind(page.ask(slow(ours, 0))), ErrorKind::Closed);
    // A new session waits for it.
    let request = page.send(RequestBody::OpenSession(reader));
    page.assert_echoes(embedded, b"not concerned");
    pcscd.signal(Signal::CONT).expect("a pcscd that goes on");
    let reply = page.wait(request, PATIENCE).expect("an open port");
    let Ok(ReplyBody::Session(session)) = reply else {
        panic!("{reply:?}");
    };
    let channel = page.open_channel(session.id);
    page.assert_echoes(channel, b"again");
}

#[test]
fn a_card_that_another_program_has_for_itself_is_busy_and_ours_is_free_when_nobody_uses_it() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let reader = readers_with_cards(&mut page, 1)[0].id;
    let context = Context::establish(Scope::User).expect("a context");
    let name = context.list_readers_owned().expect("readers").remove(0);
    let protocols = Protocols::T0 | Protocols::T1;
    let take = || context.connect(&name, ShareMode::Exclusive, protocols);
    let leave = |theirs: pcsc::Card| {
        let left = theirs.disconnect(Disposition::LeaveCard);
        left.map_err(|(_, error)| error).expect("an end");
    };

    let theirs = take().expect("a card that nobody uses");
    let begun = Instant::now();
    let refused = page.ask(RequestBody::OpenSession(reader));
    assert_eq!(kind(refused), ErrorKind::Io);
    assert!(begun.elapsed() < PROMPTLY, "{:?}", begun.elapsed());
    leave(theirs);

    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"ours");
    assert_eq!(take().err(), Some(pcsc::Error::SharingViolation));
    assert_eq!(
        page.ask(RequestBody::CloseSession(session)),
        Ok(ReplyBody::Done)
    );
    // Without a session, the card is let go.
    leave(wait_for("the card", || take().ok()));
    let session = page.open_session(reader);
    let channel = page.open_channel(session);
    page.assert_echoes(channel, b"ours again");
}

#[test]
fn a_transaction_of_another_program_delays_what_has_the_time_and_fails_what_has_not() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().expect("pcscd");
        let _inserted = pcscd.insert(0, card(profile)).expect("a card");
        let browser = Browser::start(true);
        let mut page = browser.open_page();
        let reader = readers_with_cards(&mut page, 1)[0].id;
        let session = page.open_session(reader);
        let channel = page.open_channel(session);
        let worker = browser.process("pcsc-reader");

        let context = Context::establish(Scope::User).expect("a context");
        let name = context.list_readers_owned().expect("readers").remove(0);
        let mut theirs = context
            .connect(&name, ShareMode::Shared, Protocols::T0 | Protocols::T1)
            .expect("a card");
        let transaction = theirs.transaction().expect("a transaction");
        let mut late = slow(channel, 0);
        if let RequestBody::Transmit { timeout_ms, .. } = &mut late {
            *timeout_ms = Some(200);
        }
        let begun = Instant::now();
        let late = page.send(late);
        let patient = page.send(command(channel, echo::INS_ECHO, 0, b"patient"));
        // The connection stands, so that a second session needs nothing of the card.
        let second = page.send(RequestBody::OpenSession(reader));
        let reply = page.wait(late, PROMPTLY).expect("an open port");
        assert_eq!(kind(reply), ErrorKind::Io);
        let took = begun.elapsed();
        assert!(
            (200..400).contains(&took.as_millis()),
            "{profile}: {took:?}"
        );
        let ended = transaction.end(Disposition::LeaveCard);
        ended.map_err(|(_, error)| error).expect("an end");
        let reply = page.wait(patient, PATIENCE).expect("an open port");
        let expected = [&b"patient"[..], &[0x90, 0x00]].concat();
        assert_eq!(reply, Ok(ReplyBody::Response(expected)), "{profile}");
        let reply = page.wait(second, PATIENCE).expect("an open port");
        assert!(matches!(reply, Ok(ReplyBody::Session(_))), "{reply:?}");
        // What came too late was never sent, nobody was killed, and so the card was not reset.
        let count = page.ask(command(channel, echo::INS_COUNT, 0, b""));
        let expected = Ok(ReplyBody::Response(vec![0, 0, 0, 1, 0x90, 0x00]));
        assert_eq!(count, expected, "{profile}");
        assert_eq!(browser.process("pcsc-reader"), worker);
        let left = theirs.disconnect(Disposition::LeaveCard);
        left.map_err(|(_, error)| error).expect("an end");
    }
}

#[test]
fn both_readers_take_no_longer_than_one() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _cards = [0, 1].map(|slot| pcscd.insert(slot, card("default")).expect("a card"));
    let browser = Browser::start(true);
    let mut page = browser.open_page();
    let channels: Vec<_> = readers_with_cards(&mut page, 2)
        .iter()
        .map(|reader| {
            let session = page.open_session(reader.id);
            page.open_channel(session)
        })
        .collect();
    let begun = Instant::now();
    let requests: Vec<_> = (0..10)
        .flat_map(|_| channels.clone())
        .map(|channel| page.send(slow(channel, 5)))
        .collect();
    for request in requests {
        let reply = page.wait(request, PATIENCE).expect("an open port");
        assert!(reply.is_ok(), "{reply:?}");
    }
    // Half a second each.
    let took = begun.elapsed();
    assert!((500..900).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn the_doctor_says_what_is_wrong_with_the_service_and_its_cards() {
    let doctor = || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_token-broker"))
            .arg("doctor")
            .output()
            .expect("the doctor");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            output.status.success(),
        )
    };
    let mut pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("default")).expect("a card");
    wait_for("the card", || {
        doctor().0.contains("there is a card in it").then_some(())
    });
    let (text, _) = doctor();
    assert!(
        text.contains("ok       the PC/SC service is running"),
        "{text}"
    );
    assert!(text.contains("no card in it"), "{text}");
    pcscd.stop(Signal::TERM).expect("an end");
    let (text, is_good) = doctor();
    assert!(
        text.contains("problem  the PC/SC service is not running"),
        "{text}"
    );
    assert!(!is_good);
}
