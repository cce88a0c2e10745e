/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the broker and the worker add to a command: from a page's request to its reply, against an echo over the same
//! kind of channel with nobody in between, and against the card called directly.
//!
//! `cargo bench -p token_broker`

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::*;
use ipc_channel::ipc;
use token_traits::Frame;
use virtual_card::applets::echo;
use virtual_card::{Card, VirtualCard};

const WARM_UP: usize = 500;
const ROUNDS: usize = 10_000;

/// Bytes that the card echoes.
const LENGTHS: [u16; 2] = [16, 4096];

fn main() {
    println!(
        "{:<44}{:>8}{:>10}{:>10}",
        "microseconds", "bytes", "p50", "p99"
    );
    for length in LENGTHS {
        let data = echo::pattern(length);

        let mut card = VirtualCard::from_profile("default").expect("a profile");
        let select = [&[0x00, 0xa4, 0x04, 0x00, 0x08][..], &echo::AID].concat();
        assert!(card.transmit(&select).ends_with(&[0x90, 0x00]));
        let header = [0x00, echo::INS_ECHO, 0, 0];
        let apdu = [&header[..], &[0], &length.to_be_bytes(), &data, &[0, 0]].concat();
        let expected = [&data[..], &[0x90, 0x00]].concat();
        let direct = measure(|| assert_eq!(card.transmit(&apdu), expected));

        let (to_echo, requests) = ipc::channel::<Frame>().expect("a channel");
        let (replies, from_echo) = ipc::channel::<Frame>().expect("a channel");
        std::thread::spawn(move || {
            while let Ok(frame) = requests.recv() {
                if replies.send(frame).is_err() {
                    break;
                }
            }
        });
        let frame = Frame::from_bytes(vec![0; usize::from(length) + 24]);
        let one_hop = measure(|| {
            to_echo.send(frame.clone()).expect("an open channel");
            from_echo.recv().expect("an open channel");
        });

        let browser = Browser::start(false);
        let mut page = browser.open_page();
        let channel = page.open_echo();
        let whole = measure(|| page.assert_echoes(channel, &data));

        for (name, (p50, p99)) in [
            ("the card, called directly", direct),
            ("there and back over ipc-channel, one thread", one_hop),
            ("page, broker, worker, card, and back", whole),
        ] {
            println!(
                "{name:<44}{length:>8}{:>10.1}{:>10.1}",
                micros(p50),
                micros(p99)
            );
        }
    }
}

/// p50 and p99 of the time that `round` takes.
fn measure(mut round: impl FnMut()) -> (Duration, Duration) {
    for _ in 0..WARM_UP {
        round();
    }
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            round();
            begun.elapsed()
        })
        .collect();
    times.sort();
    (times[ROUNDS / 2], times[ROUNDS * 99 / 100])
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
