/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Whatever is sent, the card neither panics nor loses a channel.

use std::collections::BTreeSet;

use proptest::prelude::*;
use virtual_card::applets::{ara_m, conformance, echo, exclusive, issuer, origin, pin, uicc};
use virtual_card::{Card, VirtualCard};

use super::{Client, channel, command};

const AIDS: [&[u8]; 13] = [
    &[],
    &issuer::AID,
    &echo::AID,
    &echo::SECOND_AID,
    &echo::WARNING_AID,
    &exclusive::AID,
    &pin::AID,
    &origin::AID,
    &conformance::AID,
    &conformance::UNSELECTABLE_AID,
    &ara_m::AID,
    &uicc::AID,
    &[0xF0],
];
const PROFILES: [&str; 7] = [
    "default",
    "t0",
    "four-channels",
    "basic-channel-only",
    "ara-m",
    "no-rules",
    "uicc",
];

/// What the applications know, and what they do not. Neither waits nor fails, because it is told to.
const INSTRUCTIONS: [u8; 26] = [
    0x06, 0x10, 0x12, 0x14, 0x16, 0x1C, 0x20, 0x24, 0x2C, 0x30, 0x40, 0x42, 0x44, 0x50, 0x54, 0xA4,
    0xB0, 0xB2, 0xC0, 0xC2, 0xC6, 0xCA, 0xCF, 0xE2, 0xF3, 0xFE,
];

#[derive(Clone, Debug)]
enum Step {
    Open(u8),
    Close(u8, u8),
    ResetChannel(u8),
    Select(u8, usize, u8),
    Command(u8, u8, usize, u8, u8, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let channel = || 0..20_u8;
    prop_oneof![
        3 => channel().prop_map(Step::Open),
        2 => (channel(), 0..22_u8).prop_map(|(on, closed)| Step::Close(on, closed)),
        1 => channel().prop_map(Step::ResetChannel),
        3 => (channel(), 0..AIDS.len(), any::<u8>())
            .prop_map(|(on, aid, p2)| Step::Select(on, aid, p2 & 0x0F)),
        4 => (
            channel(),
            prop_oneof![Just(0x00), Just(0x80), Just(0x10), Just(0x94), Just(0x04)],
            0..INSTRUCTIONS.len(),
            any::<u8>(),
            prop_oneof![Just(0x00), Just(0x80), any::<u8>()],
            proptest::collection::vec(any::<u8>(), 0..30),
        )
            .prop_map(|(on, cla, ins, p1, p2, data)| Step::Command(on, cla, ins, p1, p2, data)),
    ]
}

proptest! {
    #[test]
    fn channels_are_open_from_open_to_close(
        steps in proptest::collection::vec(step(), 1..60),
        profile in 0..PROFILES.len(),
    ) {
        let mut client = Client::new(PROFILES[profile]);
        let mut open = BTreeSet::from([0]);
        for step in steps {
            match step {
                Step::Open(on) => {
                    let answer = client.send(channel(on), [0, 0x70, 0, 0], &[], Some(1));
                    if let [number] = *answer.data {
                        prop_assert!(answer.status.is_ok() && open.contains(&on));
                        prop_assert!(open.insert(number), "channel {} twice", number);
                    }
                }
                Step::Close(on, closed) => {
                    let answer = client.send(channel(on), [0, 0x70, 0x80, closed], &[], None);
                    if answer.status.is_ok() {
                        let closed = if closed == 0 { on } else { closed };
                        prop_assert!(closed != 0 && open.contains(&on) && open.remove(&closed));
                    }
                }
                Step::ResetChannel(on) => {
                    client.send(channel(on), [0, 0x70, 0x40, 0], &[], None);
                }
                Step::Select(on, aid, p2) => {
                    client.send(channel(on), [0, 0xA4, 4, p2], AIDS[aid], Some(256));
                }
                Step::Command(on, cla, ins, p1, p2, data) => {
                    let ins = INSTRUCTIONS[ins];
                    // SELECT by DF name has its own step.
                    let p1 = if ins == 0xA4 { p1 & 0x03 } else { p1 };
                    // 94 has no form on the last channel.
                    let cla = if on == 19 { cla & 0x10 } else { cla };
                    client.send(channel(on), [cla, ins, p1, p2], &data, Some(256));
                }
            }
        }
        for number in 0..20 {
            let answer = client.send(channel(number), [0, 0xFE, 0, 0], &[], None);
            let is_open = answer.status.0 != 0x6881;
            prop_assert_eq!(is_open, open.contains(&number), "channel {}", number);
        }
        let bits = open.iter().fold(0, |bits, number| bits | 1 << number);
        prop_assert_eq!(client.open_channels(), bits);
        for number in open.into_iter().skip(1) {
            client.send(channel(number), [0, 0x70, 0x80, number], &[], None);
        }
        prop_assert_eq!(client.open_channels(), 1);
    }

    #[test]
    fn any_bytes_are_answered(
        commands in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20),
        aid in 0..AIDS.len(),
        profile in 0..PROFILES.len(),
    ) {
        let mut card = VirtualCard::from_profile(PROFILES[profile]).unwrap();
        let select = command(channel(0), [0, 0xA4, 4, 0x0C], AIDS[aid], None);
        card.transmit(&select.encode());
        for bytes in commands {
            // These wait and fail because they are told to, in envelopes too.
            if !bytes.iter().any(|byte| [echo::INS_DELAY, echo::INS_FAULT].contains(byte)) {
                prop_assert!(card.transmit(&bytes).len() >= 2);
            }
        }
    }

    #[test]
    fn faults_do_not_make_the_card_fail(
        faults in proptest::collection::vec(
            (0..=0x14_u8, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..5)),
            1..10,
        ),
        t0 in any::<bool>(),
    ) {
        let mut card = VirtualCard::from_profile(if t0 { "t0" } else { "default" }).unwrap();
        let select = [&[0, 0xA4, 4, 0x0C, 8][..], &echo::AID].concat();
        for (kind, parameter, data) in faults {
            if kind == echo::FAULT_MUTE {
                continue;
            }
            card.transmit(&select);
            let header = [0, echo::INS_FAULT, kind, parameter];
            card.transmit(&command(channel(0), header, &data, None).encode());
            card.transmit(&[0, 0x70, 0, 0, 1]);
            card.transmit(&[0, 0xC0, 0, 0, 0]);
        }
        card.reset();
        prop_assert!(card.is_present());
        prop_assert_eq!(card.transmit(&select), [0x90, 0x00]);
        prop_assert_eq!(card.transmit(&[0, echo::INS_OPEN_CHANNELS, 0, 0, 3]), [0, 0, 1, 0x90, 0]);
    }
}
