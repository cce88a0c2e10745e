/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! How long one command takes natively, from libpcsclite through pcscd and vpcd to the card and
//! back: what the card and the way to it cost before anything of the browser does.

use std::thread;
use std::time::{Duration, Instant};

use pcsc::{Context, Disposition, Protocols, Scope, ShareMode};
use virtual_card::VirtualCard;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

const ROUNDS: usize = 5_000;
const WAIT: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pcscd = Pcscd::start()?;
    let _inserted = pcscd.insert(0, VirtualCard::from_profile("default")?)?;
    let context = Context::establish(Scope::User)?;
    let deadline = Instant::now() + WAIT;
    let card = loop {
        match context.connect(c"Virtual PCD 00 00", ShareMode::Shared, Protocols::T1) {
            Ok(card) => break card,
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    };
    let mut buffer = vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED];
    let select = [&[0, 0xA4, 4, 0x0C, 8][..], &echo::AID].concat();
    card.transmit(&select, &mut buffer)?;
    let command = [0, echo::INS_ECHO, 0, 0, 4, 1, 2, 3, 4, 0];
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let answer = card.transmit(&command, &mut buffer)?;
        times.push(start.elapsed());
        assert_eq!(answer, [1, 2, 3, 4, 0x90, 0x00]);
    }
    times.sort_unstable();
    let percentile = |percent: usize| times[(ROUNDS - 1) * percent / 100].as_micros();
    println!(
        "{ROUNDS} commands: p50 {} µs, p99 {} µs",
        percentile(50),
        percentile(99)
    );
    let _ = card.disconnect(Disposition::LeaveCard);
    Ok(())
}
