/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `bench apdu [--json FILE]`: what the browser costs, against a direct baseline in the same run.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::shell::{Options, PCSC};
use pcsc::{Card, Context, Disposition, Protocols, Scope, ShareMode};
use serde_json::{Value, json};
use virtual_card::VirtualCard;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

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

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One line of the table, times in microseconds.
struct Measurement {
    name: String,
    baseline: Sorted,
    ours: Sorted,
}

/// Times in microseconds, in ascending order.
struct Sorted(Vec<f64>);

impl Sorted {
    fn new(mut times: Vec<f64>) -> Sorted {
        times.sort_unstable_by(f64::total_cmp);
        Sorted(times)
    }

    /// The time that so many percent of all do not exceed.
    fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or(f64::NAN)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let json_file = match arguments.as_slice() {
        ["apdu"] => None,
        ["apdu", "--json", file] => Some(PathBuf::from(file)),
        _ => {
            eprintln!("usage: bench apdu [--json FILE]");
            return ExitCode::FAILURE;
        }
    };
    match run(json_file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(json_file: Option<PathBuf>) -> Result<()> {
    let measurements = apdu()?;
    println!(
        "{:34} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>6}",
        "name (µs)", "baseline", "ours", "ratio", "added", "p50", "p99", "n"
    );
    let mut list = Vec::new();
    for Measurement {
        name,
        baseline,
        ours,
    } in &measurements
    {
        let (base, p50, p99) = (
            baseline.percentile(50),
            ours.percentile(50),
            ours.percentile(99),
        );
        let (ratio, added, n) = (p50 / base, p50 - base, ours.0.len());
        println!(
            "{name:34} {base:9.1} {p50:9.1} {ratio:6.2} {added:9.1} {p50:9.1} {p99:9.1} {n:6}"
        );
        println!("{:34} {:>9.1}", "  baseline's p99", baseline.percentile(99));
        list.push(json!({
            "name": name, "unit": "µs", "baseline": base, "ours": p50,
            "ratio": ratio, "p50": p50, "p99": p99, "n": n,
        }));
    }
    if let Some(file) = json_file {
        std::fs::write(file, serde_json::to_string_pretty(&list)?)?;
    }
    Ok(())
}

/// From the call of `transmit()` to its promise's resolution, as the page sees it, against
/// `SCardTransmit` of the same command to the same card on a channel of its own.
fn apdu() -> Result<Vec<Measurement>> {
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

    let mut measurements = Vec::new();
    for length in LENGTHS {
        let (mut baseline, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            baseline.extend(native.measure(length)?);
            ours.extend(measure_page(&browser, length)?);
        }
        measurements.push(Measurement {
            name: format!("APDU over vpcd, {length} bytes echoed"),
            baseline: Sorted::new(baseline),
            ours: Sorted::new(ours),
        });
    }
    native.disconnect()?;
    Ok(measurements)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = Sorted::new((1..=200).rev().map(f64::from).collect());
        assert_eq!((times.percentile(50), times.percentile(99)), (100.0, 198.0));
        assert_eq!(Sorted::new(vec![7.0]).percentile(99), 7.0);
    }
}
