/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Cards behind a real `pcscd`, which each test starts for itself, seen by libpcsclite and by
//! OpenSC, which shares no code with this project.

use std::ffi::CString;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pcsc::{Context, Disposition, Protocols, ReaderState, Scope, ShareMode, State};
use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::atr::Atr;
use secure_element::channel::{Aid, SelectResponse, select};
use secure_element::class_byte::ChannelNumber;
use secure_element::exchange::{ExchangeError, Kind, Protocol, run};
use secure_element::fci;
use virtual_card::applets::echo;
use virtual_card::test_support::{Pcscd, PluggedReader};
use virtual_card::{Card, VirtualCard};

/// What a loaded machine needs to notice a card.
const WAIT: Duration = Duration::from_secs(10);
const BASIC: ChannelNumber = ChannelNumber::BASIC;

/// A connection to the card in the first slot.
struct Client {
    context: Context,
    /// Taken when it is dropped, so that it can be disconnected without resetting the card.
    card: Option<pcsc::Card>,
    protocol: Protocol,
}

impl Client {
    fn connect() -> Self {
        let context = Context::establish(Scope::User).unwrap();
        let reader = wait_for_card(&context, true);
        let protocols = Protocols::T0 | Protocols::T1;
        let card = context
            .connect(&reader, ShareMode::Shared, protocols)
            .unwrap();
        let protocol = match card.status2_owned().unwrap().protocol2() {
            Some(pcsc::Protocol::T0) => Protocol::T0,
            Some(pcsc::Protocol::T1) => Protocol::T1,
            other => panic!("the card uses {other:?}"),
        };
        Self {
            context,
            card: Some(card),
            protocol,
        }
    }

    fn transmit(&self, bytes: &[u8]) -> Result<Vec<u8>, pcsc::Error> {
        let mut buffer = vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED];
        let card = self.card.as_ref().unwrap();
        card.transmit(bytes, &mut buffer).map(<[u8]>::to_vec)
    }

    fn run(&self, command: &CommandApdu, kind: Kind) -> ResponseApdu {
        run::<ExchangeError>(command, self.protocol, kind, |bytes| {
            Ok(self.transmit(bytes).unwrap())
        })
        .unwrap()
    }

    fn select_echo(&self) {
        let aid = Aid::new(&echo::AID).unwrap();
        let command = select(Some(&aid), SelectResponse::Fci, BASIC).unwrap();
        let answer = self.run(&command, Kind::Select);
        assert_eq!(answer.status, StatusWord::OK);
        assert_eq!(fci::df_name(&answer.data), Ok(Some(aid)));
    }

    fn send(&self, header: [u8; 4], data: &[u8], le: u32) -> ResponseApdu {
        let [cla, ins, p1, p2] = header;
        let header = Header::new(cla, ins, p1, p2);
        let command = CommandApdu::with_shortest_form(header, data.to_vec(), Some(le)).unwrap();
        self.run(&command, Kind::Ordinary)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(card) = self.card.take() {
            let _ = card.disconnect(Disposition::LeaveCard);
        }
    }
}

/// Waits until the first slot holds a card, or none, and returns the reader's name.
fn wait_for_card(context: &Context, present: bool) -> std::ffi::CString {
    let deadline = Instant::now() + WAIT;
    let names = context.list_readers_owned().unwrap();
    let reader = names
        .iter()
        .find(|name| name.to_bytes().ends_with(b" 00"))
        .unwrap();
    let mut states = [ReaderState::new(reader.clone(), State::UNAWARE)];
    loop {
        let left = deadline
            .checked_duration_since(Instant::now())
            .expect("a card in time");
        context.get_status_change(left, &mut states).unwrap();
        if states[0].event_state().contains(State::PRESENT) == present {
            return reader.clone();
        }
        states[0].sync_current_state();
    }
}

fn ok(data: &[u8]) -> ResponseApdu {
    ResponseApdu::new(data.to_vec(), StatusWord::OK)
}

fn card(profile: &str) -> VirtualCard {
    VirtualCard::from_profile(profile).unwrap()
}

#[test]
fn commands_of_every_length_pass_over_both_protocols() {
    for (profile, protocol) in [("default", Protocol::T1), ("t0", Protocol::T0)] {
        let pcscd = Pcscd::start().unwrap();
        let card = card(profile);
        let atr = card.atr().to_vec();
        let _inserted = pcscd.insert(0, card).unwrap();
        let client = Client::connect();
        assert_eq!(client.protocol, protocol);
        let status = client.card.as_ref().unwrap().status2_owned().unwrap();
        assert_eq!(status.atr(), atr);
        client.select_echo();
        let data = echo::pattern(30_000);
        for length in [1, 255, 256, 503, 30_000] {
            let data = &data[..length];
            assert_eq!(
                client.send([0, echo::INS_ECHO, 0, 0], data, 65_536),
                ok(data),
                "{length}"
            );
        }
        for length in [0, 255, 256, 257, 30_000] {
            let [p1, p2] = u16::to_be_bytes(length);
            assert_eq!(
                client.send([0x80, echo::INS_PATTERN, p1, p2], &[], 65_536),
                ok(&echo::pattern(length))
            );
        }
    }
}

#[test]
fn channels_stay_apart() {
    let pcscd = Pcscd::start().unwrap();
    let _inserted = pcscd.insert(0, card("default")).unwrap();
    let client = Client::connect();
    for number in 1..=4 {
        assert_eq!(
            client.transmit(&[0, 0x70, 0, 0, 1]),
            Ok(vec![number, 0x90, 0])
        );
    }
    let select = [&[0x40, 0xA4, 4, 0x0C, 8][..], &echo::AID].concat();
    assert_eq!(client.transmit(&select), Ok(vec![0x90, 0]));
    let ask = |class| client.transmit(&[class, echo::INS_CHANNEL, 0, 0, 2]);
    assert_eq!(ask(0x40), Ok(vec![4, 0x40, 0x90, 0]));
    assert_eq!(ask(0x03), Ok(vec![0x6D, 0]));
}

#[test]
fn a_broken_answer_comes_through_as_it_is() {
    let pcscd = Pcscd::start().unwrap();
    let _inserted = pcscd.insert(0, card("default")).unwrap();
    let client = Client::connect();
    client.select_echo();
    let one_byte = [0, echo::INS_FAULT, echo::FAULT_ONE_BYTE, 0];
    assert_eq!(client.transmit(&one_byte), Ok(vec![0x90]));
    assert_eq!(
        client.send([0, echo::INS_PARAMETERS, 1, 2], &[], 2),
        ok(&[1, 2])
    );
}

#[test]
fn a_card_that_leaves_in_the_middle_of_a_command_comes_back() {
    let pcscd = Pcscd::start().unwrap();
    let _inserted = pcscd.insert(0, card("default")).unwrap();
    let client = Client::connect();
    client.select_echo();
    let answer = client.transmit(&[0, echo::INS_FAULT, echo::FAULT_REMOVAL, 0]);
    // No status word either way: pcscd 1.9.9 calls this a success of no bytes.
    assert!(answer.is_err() || answer == Ok(Vec::new()), "{answer:?}");
    wait_for_card(&client.context, false);
    drop(client);
    Client::connect().select_echo();
}

#[test]
fn a_card_that_is_taken_out_is_gone() {
    let pcscd = Pcscd::start().unwrap();
    let inserted = pcscd.insert(0, card("default")).unwrap();
    let client = Client::connect();
    drop(inserted);
    wait_for_card(&client.context, false);
}

#[test]
fn readers_are_plugged_in_and_pulled_out() {
    let pcscd = Pcscd::start().unwrap();
    let context = Context::establish(Scope::User).unwrap();
    let pluggable = || -> Vec<String> {
        let names = loop {
            match context.list_readers_owned() {
                // One more came while they were counted.
                Err(pcsc::Error::InsufficientBuffer) => {}
                names => break names.unwrap(),
            }
        };
        names
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with(PluggedReader::NAME))
            .collect()
    };
    assert_eq!(pluggable(), [""; 0]);
    for _ in 0..2 {
        let reader = pcscd.plug_in().unwrap();
        wait_for("the reader", || pluggable().len() == 2);
        for slot in 0..2 {
            let inserted = reader.insert(slot, card("default")).unwrap();
            let name = CString::new(pluggable()[usize::from(slot)].clone()).unwrap();
            let connect = || context.connect(&name, ShareMode::Shared, Protocols::T1);
            wait_for("the card", || connect().is_ok_and(leave));
            drop(inserted);
            wait_for("its removal", || !connect().is_ok_and(leave));
        }
        drop(reader);
        wait_for("the end of the reader", || pluggable().is_empty());
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn leave(card: pcsc::Card) -> bool {
    card.disconnect(Disposition::LeaveCard).is_ok()
}

/// Ends a program, however the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_program_serves_a_card_to_opensc() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().unwrap();
        let program = Command::new(env!("CARGO_BIN_EXE_virtual-card"))
            .args([
                "vpcd",
                "--profile",
                profile,
                "--port",
                &pcscd.port().to_string(),
            ])
            .stdin(Stdio::null())
            .spawn();
        let mut program = Running(program.unwrap());
        let context = Context::establish(Scope::User).unwrap();
        wait_for_card(&context, true);

        let opensc_tool = |arguments: &[&str]| pcscd.opensc_tool(0, arguments).unwrap();
        let atr = opensc_tool(&["--atr"]);
        let atr: Vec<u8> = atr
            .trim()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        assert_eq!(atr, card(profile).atr());
        assert!(Atr::parse(&atr).is_ok());

        let text = opensc_tool(&[
            "--send-apdu",
            "00:A4:04:00:08:F0:53:45:52:56:4F:01:01:00",
            "--send-apdu",
            "00:10:00:00:03:0A:0B:0C:00",
            "--send-apdu",
            "00:12:12:34:02",
        ]);
        let answers: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("Received"))
            .collect();
        assert_eq!(answers.len(), 3, "{text}");
        assert!(
            answers
                .iter()
                .all(|line| line.contains("SW1=0x90, SW2=0x00")),
            "{text}"
        );
        assert!(
            text.contains("6F 0A 84 08 F0 53 45 52 56 4F 01 01"),
            "{text}"
        );
        assert!(
            text.contains("0A 0B 0C") && text.contains("12 34"),
            "{text}"
        );

        // It ends with the driver.
        drop(pcscd);
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(status) = program.0.try_wait().unwrap() {
                assert!(status.success());
                break;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn an_unknown_profile_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_virtual-card"))
        .args(["vpcd", "--profile", "nobody"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody"));
}
