/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the way to the card costs a page, against a native program at the same card.

mod exchange;
pub mod processes;

use std::env;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use e2e::shell::{PCSC, VARIABLE};
use virtual_card::VirtualCard;
use virtual_card::test_support::Pcscd;

use self::exchange::{EXTENDED, Exchange, FIVE_BYTES, Native, Page, SHORT, SLOW, start_browser};
use crate::{Aim, Measurement, Result};

/// Baseline and browser take turns, so that a machine that changes its pace slows both.
const TURNS: usize = 10;
/// Commands on so many channels are in flight at a time.
const CHANNELS: usize = 16;
/// How long one look for stalls takes, in milliseconds, and how many there are.
const STALL: (u32, usize) = (1000, 8);

/// Everything over a pcscd of its own, with a card in each of its two slots.
pub fn run() -> Result<Vec<Measurement>> {
    let broker =
        PathBuf::from(env::var_os(VARIABLE).unwrap_or_default()).with_file_name("token-broker");
    let awake = keep_cores_awake();
    eprintln!(
        "cores {}",
        match &awake {
            Some(_) => "kept awake: /dev/cpu_dma_latency is held at 0 for both sides",
            None =>
                "may sleep between commands, as /dev/cpu_dma_latency cannot be opened: run as root for steadier numbers",
        }
    );
    let pcscd = Pcscd::start()?;
    let _cards = [
        pcscd.insert(0, VirtualCard::from_profile("default")?)?,
        pcscd.insert(1, VirtualCard::from_profile("default")?)?,
    ];
    let native = [Native::start(0)?, Native::start(1)?];

    let browser = start_browser(PCSC)?;
    let page = Page::new(&browser)?;
    page.open(0, CHANNELS)?;
    page.open(1, 1)?;
    let mut measurements = Vec::new();
    for in_flight in [1, CHANNELS] {
        for exchange in [FIVE_BYTES, SHORT, EXTENDED, SLOW] {
            measurements.push(compare(&native[0], &page, exchange, in_flight)?);
        }
    }
    measurements.push(compare_two_readers(&native, &page)?);
    measurements.extend(look_for_stalls(&page)?);
    measurements.extend(processes::memory(
        &browser.shell,
        &["broker", "pcsc-monitor", "pcsc-reader"],
    )?);
    drop(browser);
    measurements.extend(processes::memory_of_embedded_card()?);
    measurements.extend(processes::starts(&broker)?);
    Ok(measurements)
}

/// From one answer to the next, while so many commands are in flight: `transmit()` in a page, against `SCardTransmit`,
/// which takes one command at a time.
fn compare(
    native: &Native,
    page: &Page,
    exchange: Exchange,
    in_flight: usize,
) -> Result<Measurement> {
    let (mut baseline, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        baseline.extend(per_command(
            &native.exchange(exchange, exchange.count)?,
            in_flight,
        ));
        for moments in page.exchange(&[0], in_flight, exchange, exchange.count)? {
            ours.extend(per_command(&moments, in_flight));
        }
    }
    let name = format!("{}, {in_flight} in flight", exchange.name);
    Ok(Measurement::new(name, "µs", baseline, ours).aim(exchange.aim))
}

/// What each command took, as the mean over blocks of as many as were in flight. The first tenth is the warm-up.
fn per_command(moments: &[f64], in_flight: usize) -> Vec<f64> {
    let marks: Vec<f64> = moments
        .iter()
        .copied()
        .skip(moments.len() / 10)
        .step_by(in_flight)
        .collect();
    marks
        .windows(2)
        .map(|marks| (marks[1] - marks[0]) / in_flight as f64)
        .collect()
}

/// How many times the commands of one reader two readers carry in the same time.
fn compare_two_readers(native: &[Native; 2], page: &Page) -> Result<Measurement> {
    let rate = |moments: &Vec<f64>| {
        let (first, last) = (moments[0], moments[moments.len() - 1]);
        (moments.len() - 1) as f64 / (last - first)
    };
    let (mut baseline, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let one = rate(&native[0].exchange(SLOW, SLOW.count)?);
        for native in native {
            native.begin(SLOW, SLOW.count)?;
        }
        baseline.push((rate(&native[0].moments()?) + rate(&native[1].moments()?)) / one);

        let one: f64 = page
            .exchange(&[0], 1, SLOW, SLOW.count)?
            .iter()
            .map(rate)
            .sum();
        let two: f64 = page
            .exchange(&[0, 1], 1, SLOW, SLOW.count)?
            .iter()
            .map(rate)
            .sum();
        ours.push(two / one);
    }
    let measurement = Measurement::new(
        "10 ms card, two readers against one".into(),
        "x",
        baseline,
        ours,
    );
    Ok(measurement.aim(Aim::AtLeast(1.9)))
}

/// The longest time between two turns of a timer of the page, against that without any command.
fn look_for_stalls(page: &Page) -> Result<Vec<Measurement>> {
    let (duration, turns) = STALL;
    let look = |in_flight: usize, exchange: Exchange| -> Result<f64> {
        let stall = page.call(&format!(
            "longestStall({in_flight}, {}, {duration})",
            exchange.to_json()
        ))?;
        Ok(serde_json::from_value(stall)?)
    };
    let mut measurements = Vec::new();
    for exchange in [FIVE_BYTES, EXTENDED] {
        let (mut baseline, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..turns {
            baseline.push(look(0, exchange)?);
            ours.push(look(CHANNELS, exchange)?);
        }
        let name = format!(
            "longest stall in a second, {}, {CHANNELS} in flight",
            exchange.name
        );
        measurements.push(Measurement::new(name, "ms", baseline, ours));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_command_is_the_mean_of_blocks_after_the_warm_up() {
        let moments: Vec<f64> = (0..=20).map(|moment| f64::from(moment * moment)).collect();
        assert_eq!(per_command(&moments, 1).len(), 18);
        assert_eq!(per_command(&moments, 1)[0], 5.0);
        assert_eq!(per_command(&moments, 9), [13.0, 31.0]);
    }
}
