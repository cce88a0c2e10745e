/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Benchmarks: what the browser costs, against a direct baseline in the same run.

mod access;
mod apdu;
mod content_sandbox;
mod keys;
mod page_load;
mod start;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

const HELP: &str = "\
usage: bench NAME [--json FILE]

Measures what the browser in SERVO_TOKENS_SHELL costs, against a baseline in the same run. A table goes to standard
output, the same as JSON to FILE.

  access     What access rules cost: a decision, reading them, and enforcing them, against doing without. It needs no
             browser, but the token broker in SERVO_TOKENS_BROKER.
  apdu       What a page's commands to a card take, against SCardTransmit of the same commands through the native
             library, behind a pcscd of its own; start and memory of the token processes; stalls of the page.
  content-sandbox
             What page loads and programs in a page take in the sandbox of content processes, against the same browser
             without it.
  keys       How many signatures a page gets from keys in SoftHSM2 and in a TPM in software, against programs that use the
             same through cryptoki, node-webcrypto-p11 and tss-esapi; stalls of the page.
  page-load  The load of a trivial HTTPS page that does not use the token APIs, against that in the browser in
             SERVO_TOKENS_BASELINE: one with the same flags around an engine without patches.
  start      How long the token processes in SERVO_TOKENS_BROKER take to start, against those in
             SERVO_TOKENS_BROKER_WITHOUT_SANDBOX. It needs no browser.
";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One line of the table.
struct Measurement {
    name: String,
    unit: &'static str,
    baseline: Sorted,
    ours: Sorted,
    aim: Option<Aim>,
}

/// What should be reached.
#[derive(Clone, Copy)]
enum Aim {
    /// So many times the baseline at most.
    Ratio(f64),
    /// So many times the baseline at least.
    RatioAtLeast(f64),
    /// So much at most, whatever the baseline.
    AtMost(f64),
    /// So much at least, whatever the baseline.
    AtLeast(f64),
}

impl Aim {
    fn describe(self, unit: &str) -> String {
        match self {
            Aim::Ratio(limit) => format!("aim {limit} times"),
            Aim::RatioAtLeast(limit) => format!("aim {limit} times at least"),
            Aim::AtMost(limit) => format!("aim {limit} {unit}"),
            Aim::AtLeast(limit) => format!("aim {limit} {unit} at least"),
        }
    }

    fn is_met(self, ratio: f64, ours: f64) -> bool {
        match self {
            Aim::Ratio(limit) => ratio <= limit,
            Aim::RatioAtLeast(limit) => ratio >= limit,
            Aim::AtMost(limit) => ours <= limit,
            Aim::AtLeast(limit) => ours >= limit,
        }
    }
}

impl Measurement {
    /// Takes times in this unit.
    fn new(name: String, unit: &'static str, baseline: Vec<f64>, ours: Vec<f64>) -> Measurement {
        Measurement {
            name,
            unit,
            baseline: Sorted::new(baseline),
            ours: Sorted::new(ours),
            aim: None,
        }
    }

    fn aim(self, aim: impl Into<Option<Aim>>) -> Measurement {
        Measurement {
            aim: aim.into(),
            ..self
        }
    }

    /// What 99 percent of these are at least as good as.
    fn worst(&self, values: &Sorted) -> f64 {
        let more_is_better = self.unit == "1/s" || matches!(self.aim, Some(Aim::AtLeast(_)));
        values.percentile(if more_is_better { 1 } else { 99 })
    }
}

/// Times in ascending order.
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
    let (name, json_file) = match arguments.as_slice() {
        ["-h" | "--help"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        [apdu::processes::NATIVE_CLIENT, commands] => {
            return ended(native_client(commands));
        }
        [keys::native::NATIVE, what] => return ended(keys::native::run(what)),
        [name] => (*name, None),
        [name, "--json", file] => (*name, Some(PathBuf::from(file))),
        _ => ("", None),
    };
    let measured = match name {
        "access" => access::run(),
        "apdu" => apdu::run(),
        "content-sandbox" => content_sandbox::run(),
        "keys" => keys::run(),
        "page-load" => page_load::run(),
        "start" => start::run(),
        _ => {
            eprint!("{HELP}");
            return ExitCode::FAILURE;
        }
    };
    ended(measured.and_then(|measurements| report(&measurements, json_file)))
}

fn native_client(commands: &str) -> Result<()> {
    apdu::processes::run_native_client(commands.parse()?)
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report(measurements: &[Measurement], json_file: Option<PathBuf>) -> Result<()> {
    println!(
        "{:56} {:>4} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>6}  aim",
        "name", "unit", "baseline", "its p99", "ratio", "added", "p50", "p99", "n"
    );
    let mut list = Vec::new();
    for measurement in measurements {
        let Measurement {
            name,
            unit,
            baseline,
            ours,
            aim,
        } = measurement;
        let (base, base_p99) = (baseline.percentile(50), measurement.worst(baseline));
        let (p50, p99) = (ours.percentile(50), measurement.worst(ours));
        let (ratio, added, n) = (p50 / base, p50 - base, ours.0.len());
        let described = aim.map(|aim| aim.describe(unit));
        let verdict = match (aim, &described) {
            (Some(aim), Some(described)) => {
                let verdict = if aim.is_met(ratio, p50) {
                    "met"
                } else {
                    "MISSED"
                };
                format!("{described}: {verdict}")
            }
            _ => String::new(),
        };
        println!(
            "{name:56} {unit:>4} {base:9.2} {base_p99:9.2} {ratio:6.3} {added:9.2} {p50:9.2} {p99:9.2} {n:6}  {verdict}"
        );
        let name = match described {
            Some(described) => format!("{name} ({described})"),
            None => name.clone(),
        };
        list.push(json!({
            "name": name, "unit": unit, "baseline": rounded(base), "ours": rounded(p50),
            "ratio": rounded(ratio), "p50": rounded(p50), "p99": rounded(p99), "n": n,
        }));
    }
    if let Some(file) = json_file {
        std::fs::write(file, serde_json::to_string_pretty(&list)?)?;
    }
    Ok(())
}

/// Without digits that mean nothing.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
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
