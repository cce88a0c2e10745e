/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The faults of the echo application.

use secure_element::channel::{
    ChannelError, close_command, open_command, parse_opened, reset_command,
};
use secure_element::exchange::{ExchangeError, Kind, run};
use virtual_card::Card;
use virtual_card::applets::{ara_m, conformance, echo};

use super::{BASIC, Client, Opened, channel, issuer, name, ok, status};

/// Sends a fault to the echo application that is selected on the basic channel. What comes back
/// does not have to be a response.
fn fault(client: &mut Client, kind: u8, parameter: u8) -> Vec<u8> {
    client
        .card
        .transmit(&[0, echo::INS_FAULT, kind, parameter, 10])
}

fn client(profile: &str) -> Client {
    let mut client = Client::new(profile);
    client.select(&echo::AID, BASIC);
    client
}

/// Makes the card answer a command to come with `answer`.
fn prepare(client: &mut Client, what: u8, carried_out: u8, answer: &[u8]) {
    client.select(&echo::AID, BASIC);
    let header = [0, echo::INS_FAULT, what, carried_out];
    assert_eq!(client.send(BASIC, header, answer, None), ok(&[]));
}

#[test]
fn answers_of_the_wrong_length() {
    for profile in ["default", "t0"] {
        let mut client = client(profile);
        let mut fault = |kind, parameter| fault(&mut client, kind, parameter);
        assert_eq!(fault(echo::FAULT_EMPTY, 0), []);
        assert_eq!(fault(echo::FAULT_ONE_BYTE, 0), [0x90]);
        assert_eq!(fault(echo::FAULT_TOO_LONG, 0).len(), 65_539);
        // Le was 10.
        for (parameter, length) in [(0, 11), (1, 11), (250, 260)] {
            let answer = fault(echo::FAULT_LE_IGNORED, parameter);
            let (data, status) = answer.split_at(length);
            assert_eq!(
                (data, status),
                (&*echo::pattern(length as u16), &[0x90, 0][..])
            );
        }
        assert_eq!(fault(echo::FAULT_WRONG_LE, 10), [0x6C, 10]);
        assert_eq!(fault(0x77, 0), [0x6A, 0x86]);
    }
}

#[test]
fn garbage_is_no_response_and_always_the_same() {
    for profile in ["default", "t0"] {
        let mut client = client(profile);
        for (parameter, length) in [(1, 1), (2, 2), (3, 3), (0, 256)] {
            let answer = fault(&mut client, echo::FAULT_GARBAGE, parameter);
            assert_eq!(answer, echo::garbage(length));
            assert_eq!(answer.len(), length);
            if let [.., sw1, _] = *answer {
                assert!(!matches!(sw1 >> 4, 0x6 | 0x9), "{sw1:02X}");
            }
        }
    }
}

#[test]
fn get_response_can_go_on_for_ever() {
    for (parameter, error) in [
        (0, ExchangeError::TooManySteps),
        (255, ExchangeError::TooMuchData),
    ] {
        let mut client = client("t0");
        let header = [0, echo::INS_FAULT, echo::FAULT_ENDLESS, parameter];
        let command = super::command(BASIC, header, &[], Some(256));
        let result = run(&command, client.protocol, Kind::Ordinary, |bytes| {
            Ok(client.card.transmit(bytes))
        });
        assert_eq!(result, Err(error));
    }
    // T=1 has no such thing: the caller sees the status word.
    let mut client = client("default");
    assert_eq!(fault(&mut client, echo::FAULT_ENDLESS, 1), [0, 0x61, 0xFF]);
    assert_eq!(client.card.transmit(&[0, 0xC0, 0, 0, 1]), [0x6D, 0]);
}

#[test]
fn more_can_be_announced_than_there_is() {
    let mut client = client("t0");
    assert_eq!(fault(&mut client, echo::FAULT_SHORTENED, 9), [0x61, 9]);
    assert_eq!(client.card.transmit(&[0, 0xC0, 0, 0, 9]), [0, 0x90, 0]);
}

#[test]
fn a_reset_closes_channels_and_forgets() {
    for profile in ["default", "t0"] {
        let mut client = client(profile);
        client.open();
        prepare(&mut client, echo::FAULT_NEXT_SELECT, 0, &[0x69, 0x85]);
        assert_eq!(fault(&mut client, echo::FAULT_RESET, 0), [0x6F, 0x00]);
        assert_eq!(
            client.send(channel(1), [0, 0x10, 0, 0], &[], None),
            status(0x6881)
        );
        assert_eq!(
            client.send(BASIC, [0, 0x10, 0, 0], &[], None),
            status(0x6D00)
        );
        assert_eq!(name(&client.select(&echo::AID, BASIC)), echo::AID);
        assert_eq!(client.open_channels(), 1);
    }
}

#[test]
fn a_removed_card_says_when_it_is_back() {
    for profile in ["default", "t0"] {
        for (parameter, milliseconds) in [(0, 500), (1, 100), (20, 2_000), (0xFF, 25_500)] {
            let mut client = client(profile);
            assert!(client.card.is_present());
            assert_eq!(client.card.returns_after(), None);
            assert_eq!(fault(&mut client, echo::FAULT_REMOVAL, parameter), []);
            assert!(!client.card.is_present());
            let after = client.card.returns_after().unwrap().as_millis();
            assert!(
                after <= milliseconds && after + 90 > milliseconds,
                "{after}"
            );
            // Until it is put back, nobody answers.
            assert_eq!(client.card.transmit(&[0, 0xA4, 4, 0]), []);
            client.card.reset();
            assert!(client.card.is_present());
            assert_eq!(client.card.returns_after(), None);
            assert_eq!(name(&client.select(&[], BASIC)), issuer::AID);
        }
    }
}

#[test]
fn opening_a_channel_can_be_answered_with_anything() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        for (answer, expected) in [
            (&[5, 0x90, 0][..], Ok(Opened::Channel(channel(5)))),
            (&[0, 0x90, 0], Err(ChannelError::InvalidChannel(0))),
            (&[20, 0x90, 0], Err(ChannelError::InvalidChannel(20))),
            (&[0x90, 0], Err(ChannelError::NoChannelNumber(0))),
            (&[1, 2, 0x90, 0], Err(ChannelError::NoChannelNumber(2))),
            (&[0x6A, 0x81], Ok(Opened::NoChannel)),
        ] {
            prepare(&mut client, echo::FAULT_NEXT_OPEN, 0, answer);
            let opened = parse_opened(&client.run(&open_command(), Kind::Ordinary));
            assert_eq!(opened, expected, "{profile}");
            assert_eq!(client.open_channels(), 1);
        }
        // Not even a response.
        for answer in [&[][..], &[0x90]] {
            prepare(&mut client, echo::FAULT_NEXT_OPEN, 0, answer);
            assert_eq!(client.card.transmit(&open_command().encode()), answer);
        }
        // It opened all the same.
        prepare(&mut client, echo::FAULT_NEXT_OPEN, 1, &[0x90, 0]);
        client.run(&open_command(), Kind::Ordinary);
        assert_eq!(client.open_channels(), 0b11);
        // Once is enough.
        assert_eq!(client.open(), Opened::Channel(channel(2)));
    }
}

#[test]
fn selecting_can_be_answered_with_anything() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let opened = client.open_with(&echo::AID);
        for (carried_out, expected) in [(0, status(0x6D00)), (1, ok(&[7]))] {
            prepare(
                &mut client,
                echo::FAULT_NEXT_SELECT,
                carried_out,
                &[0x69, 0x85],
            );
            assert_eq!(client.select(&conformance::AID, opened), status(0x6985));
            // Only this application knows the command.
            let answer = client.send(opened, [0, 0xF4, 0, 7], &[], Some(1));
            assert_eq!(answer, expected, "{profile}");
        }
        // The access rules are asked for first, and that is not what such a test is about.
        prepare(&mut client, echo::FAULT_NEXT_SELECT, 0, &[0x69, 0x85]);
        assert_eq!(name(&client.select(&ara_m::AID, opened)), ara_m::AID);
        assert_eq!(client.select(&echo::AID, opened), status(0x6985));
    }
}

#[test]
fn closing_can_be_answered_with_anything() {
    for profile in ["default", "t0"] {
        for (carried_out, open) in [(0, 0b11), (1, 0b01)] {
            let mut client = Client::new(profile);
            let opened = client.open_with(&echo::AID);
            prepare(&mut client, echo::FAULT_NEXT_CLOSE, carried_out, &[0x6F, 0]);
            // Opening is another matter.
            let other = client.open_with(&echo::AID);
            let close =
                |client: &mut Client, channel| client.run(&close_command(channel), Kind::Ordinary);
            assert_eq!(close(&mut client, opened), status(0x6F00));
            assert_eq!(close(&mut client, other), status(0x9000));
            assert_eq!(client.open_channels(), open, "{profile}");
        }
    }
}

#[test]
fn resetting_a_channel_can_be_answered_with_anything() {
    for profile in ["default", "t0"] {
        for (carried_out, expected) in [(0, ok(&[1, 2])), (1, status(0x6D00))] {
            let mut client = Client::new(profile);
            prepare(
                &mut client,
                echo::FAULT_NEXT_CHANNEL_RESET,
                carried_out,
                &[0x6A, 0x86],
            );
            let answer = client.run(&reset_command(), Kind::Ordinary);
            assert_eq!(answer, status(0x6A86));
            let answer = client.send(BASIC, [0, echo::INS_PARAMETERS, 1, 2], &[], Some(2));
            assert_eq!(answer, expected, "{profile}");
            assert_eq!(client.run(&reset_command(), Kind::Ordinary), status(0x9000));
        }
    }
}

#[test]
fn prepared_answers_wait_in_turn_and_have_an_end() {
    let mut client = client("default");
    for number in 0..64 {
        let answer = [0x6F, number];
        let header = [0, echo::INS_FAULT, echo::FAULT_NEXT_OPEN, 0];
        assert_eq!(client.send(BASIC, header, &answer, None), ok(&[]));
    }
    let header = [0, echo::INS_FAULT, echo::FAULT_NEXT_CLOSE, 0];
    assert_eq!(client.send(BASIC, header, &[0x6F, 0], None), status(0x6985));
    let header = [0, echo::INS_FAULT, echo::FAULT_NEXT_CLOSE, 2];
    assert_eq!(client.send(BASIC, header, &[0x6F, 0], None), status(0x6A86));
    for number in 0..64 {
        let answer = client.run(&open_command(), Kind::Ordinary);
        assert_eq!(answer, status(0x6F00 | number));
    }
    assert_eq!(client.open(), Opened::Channel(channel(1)));
}
