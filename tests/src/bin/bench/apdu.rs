/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a command to the card costs a page.

use std::fs::File;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::shell::{Options, PCSC};
use pcsc::{Card, Context, Disposition, Protocols, Scope, ShareMode};
use serde_json::Value;
use virtual_card::VirtualCard;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

use crate::{Measurement, Result};

/// Baseline and browser take turns, so that a machine that changes its pace slows both.
const TURNS: usize = 5;
/// Commands in one turn that are measured.
const MEASURED: usize = 1000;
/// Commands at the start of each turn that are not.
const WARM_UP: usize = 100;
/// How long PC/SC may take to notice the card.
const NOTICE: Duration = Duration::from_secs(10);
/// How many bytes the card echoes.
const LENGTHS: [u8; 2] = [4, 250];

/// From the call of `transmit()` to its promise's resolution, as the page sees it, against
/// `SCardTransmit` of the same command to the same card on a channel of its own.
pub fn run() -> Result<Vec<Measurement>> {
    let pcscd = Pcscd::start()?;
    let _card = pcscd.insert(0, VirtualCard::from_profile("default")?)?;
    let native = Native::connect()?;
    let options = Options {
        token_config: PCSC.to_owned(),
        ..Options::default()
    };
    let browser = Browser::start(&options)?;
    browser.grant()?;
    open_channel(&browser)?;
    let awake = keep_cores_awake();
    eprintln!(
        "cores {}",
        match &awake {
            Some(_) => "kept awake: /dev/cpu_dma_latency is held at 0 for both sides",
            None =>
                "may sleep between commands, as /dev/cpu_dma_latency cannot be opened: run as root for steadier numbers",
        }
    );

    let mut measurements = Vec::new();
    for length in LENGTHS {
        let (mut baseline, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            baseline.extend(native.measure(length)?);
            ours.extend(measure_page(&browser, length)?);
        }
        let name = format!("APDU over vpcd, {length} bytes echoed");
        measurements.push(Measurement::new(name, "µs", baseline, ours));
    }
    native.disconnect()?;
    Ok(measurements)
}

/// Cores that nobody uses go to sleep, and each hop between processes pays for waking one up: more, on a virtual
/// machine, than for anything else. The kernel keeps them awake for as long as somebody holds this file with a 0 in it
/// (`Documentation/admin-guide/pm/cpuidle.rst`). `None` where that is not allowed.
fn keep_cores_awake() -> Option<File> {
    let mut file = File::options()
        .write(true)
        .open("/dev/cpu_dma_latency")
        .ok()?;
    file.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(file)
}

fn open_channel(browser: &Browser) -> Result<()> {
    let open = r#"(async () => {
        const session = await (await reader()).openSession();
        self.channel = await session.openSupplementaryChannel(hex("F0534552564F0101"));
    })()"#;
    let deadline = Instant::now() + NOTICE;
    loop {
        match browser.evaluate(open)? {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The times of one turn in the page, by its own clock, which ticks every 10 µs.
fn measure_page(browser: &Browser, length: u8) -> Result<Vec<f64>> {
    let script = format!(
        r#"(async () => {{
            const command = new SECommand(0, 0x10, 0, 0, new Uint8Array({length}).fill(0x5A), 0);
            const times = [];
            for (let round = 0; round < {WARM_UP} + {MEASURED}; round++) {{
                const started = performance.now();
                const response = await channel.transmit(command);
                const ended = performance.now();
                if (response.sw1 !== 0x90 || response.data.length !== {length})
                    throw new Error("a wrong answer");
                if (round >= {WARM_UP})
                    times.push(Math.round((ended - started) * 1000));
            }}
            return times;
        }})()"#
    );
    let times = browser.evaluate(&script)??;
    let times: Vec<f64> = times
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_f64)
        .collect();
    if times.len() != MEASURED {
        return Err(format!("{} times instead of {MEASURED}", times.len()).into());
    }
    Ok(times)
}

/// A connection without a browser.
struct Native {
    card: Card,
    channel: u8,
}

impl Native {
    fn connect() -> Result<Native> {
        let context = Context::establish(Scope::User)?;
        let deadline = Instant::now() + NOTICE;
        let card = loop {
            match context.connect(c"Virtual PCD 00 00", ShareMode::Shared, Protocols::T1) {
                Ok(card) => break card,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        };
        let mut buffer = [0; 300];
        let channel = match *card.transmit(&[0x00, 0x70, 0x00, 0x00, 0x01], &mut buffer)? {
            [channel @ 1..=3, 0x90, 0x00] => channel,
            ref answer => return Err(format!("no channel: {answer:02X?}").into()),
        };
        let native = Native { card, channel };
        let select = [&[channel, 0xA4, 0x04, 0x0C, 8][..], &echo::AID].concat();
        native.transmit(&select, &mut buffer)?;
        Ok(native)
    }

    fn transmit<'a>(&self, command: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let answer = self.card.transmit(command, buffer)?;
        match answer.strip_suffix(&[0x90, 0x00]) {
            Some(data) => Ok(data),
            None => Err(format!("the card answered {answer:02X?}").into()),
        }
    }

    fn measure(&self, length: u8) -> Result<Vec<f64>> {
        let data = vec![0x5A; usize::from(length)];
        let command = [
            &[self.channel, echo::INS_ECHO, 0, 0, length][..],
            &data,
            &[0],
        ]
        .concat();
        let mut buffer = [0; 300];
        let mut times = Vec::with_capacity(MEASURED);
        for round in 0..WARM_UP + MEASURED {
            let started = Instant::now();
            let answer = self.transmit(&command, &mut buffer)?;
            let took = started.elapsed();
            if answer != data {
                return Err("a wrong answer".into());
            }
            if round >= WARM_UP {
                times.push(took.as_secs_f64() * 1e6);
            }
        }
        Ok(times)
    }

    /// Dropping the card would reset it under the browser.
    fn disconnect(self) -> Result<()> {
        let done = self.card.disconnect(Disposition::LeaveCard);
        done.map_err(|(_, error)| error.into())
    }
}
