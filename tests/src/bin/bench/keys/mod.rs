/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a page's signatures with keys in tokens take, against programs that use the same token without a browser.

pub mod native;

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use e2e::browser::Browser;
use e2e::shell::Options;
use e2e::softhsm::{PIN, SoftHsm};
use e2e::swtpm::SoftwareTpm;
use serde_json::{Value, json};

use self::native::Program;
use crate::{Aim, Measurement, Result};

/// Those who are compared take turns, so that a machine that changes its pace slows all.
const TURNS: usize = 10;
/// So many signatures are under way at a time.
const MANY: usize = 32;
/// A rate is that of so many signatures.
const BLOCK: usize = 16;
/// How long one turn may take, and the generation of a key.
const LIMIT: Duration = Duration::from_secs(120);
/// How long one look for stalls takes, in milliseconds, and how many there are.
const STALL: (u32, usize) = (1000, 8);
/// RSA keys that are made.
const GENERATIONS: usize = 4;

const PAGE: &str =
    "<!DOCTYPE html><title>page</title><button id=go style='padding: 2em'>Go</button>";

/// A key, and how many signatures with it are one turn.
#[derive(Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    count: usize,
}

const RSA: Key = Key {
    name: "RSA-2048",
    count: 192,
};
const P256: Key = Key {
    name: "P-256",
    count: 640,
};
const KEYS: [Key; 2] = [RSA, P256];

/// A browser with one token, which the user has granted to the page.
struct Page(Browser);

impl Page {
    fn start(token: &str) -> Result<Page> {
        let browser = Browser::start(&Options {
            token_config: format!(
                "[pcsc]\nenabled = false\n\n[virtual_card]\nenabled = false\n\n{token}"
            ),
            ..Options::default()
        })?;
        browser.server.page("/page", PAGE);
        browser.open("/page")?;
        let session = &browser.session;
        session.set_timeouts(LIMIT, LIMIT)?;
        session.execute(include_str!("page.js"), &[])?;
        session.post(
            "token-prompts/set-mode",
            json!({ "mode": "accept", "pin": PIN }),
        )?;
        session.execute(
            "go.onclick = () => { self.granted = cryptokeys.requestToken(); }",
            &[],
        )?;
        session.click(&session.find("#go")?)?;
        browser.evaluate("granted.then(token => { self.token = token; return null; })")??;
        let page = Page(browser);
        for key in KEYS {
            page.call(&format!("make({})", json!(key.name)))?;
        }
        Ok(page)
    }

    fn call(&self, expression: &str) -> Result<Value> {
        Ok(self.0.evaluate(&format!("bench.{expression}"))??)
    }

    /// The moments of the start and of so many signatures, in µs.
    fn sign(&self, key: Key, in_flight: usize, count: usize) -> Result<Vec<f64>> {
        let name = json!(key.name);
        let moments = self.call(&format!("sign({name}, {in_flight}, {count})"))?;
        let mut moments: Vec<f64> = serde_json::from_value(moments)?;
        moments.iter_mut().for_each(|moment| *moment *= 1e3);
        if moments.len() != count + 1 {
            return Err("the page measured something else".into());
        }
        Ok(moments)
    }

    /// The longest time without a turn of the page's event loop.
    fn stall(&self, while_: &str) -> Result<f64> {
        Ok(serde_json::from_value(self.call(while_)?)?)
    }
}

pub fn run() -> Result<Vec<Measurement>> {
    let hsm = SoftHsm::with_token("Company card")?;
    let page = Page::start(&hsm.token_config())?;
    let mut native = Program::pkcs11(&hsm)?;
    let mut node = Program::node(&hsm);
    let mut measurements = Vec::new();
    for key in KEYS {
        for in_flight in [1, MANY] {
            measurements.extend(compare(&page, &mut native, &mut node, key, in_flight)?);
        }
    }
    measurements.extend(look_for_stalls(&page)?);
    drop(page);

    // One for each, because there is room for three keys in a TPM.
    let (browsers, natives) = (SoftwareTpm::start()?, SoftwareTpm::start()?);
    let page = Page::start(&browsers.token_config())?;
    let mut native = Program::tpm(&natives)?;
    for key in KEYS {
        measurements.extend(compare_tpm(&page, &mut native, key)?);
    }
    Ok(measurements)
}

/// Signatures per second: of the page; of one thread that calls the module, and of as many as the machine has processors; of
/// node-webcrypto-p11, which fails when a second signature begins before the first one has ended.
fn compare(
    page: &Page,
    native: &mut Program,
    node: &mut Result<Program>,
    key: Key,
    in_flight: usize,
) -> Result<Vec<Measurement>> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let count = key.count;
    let [mut ours, mut one, mut all, mut through_node] = [const { Vec::new() }; 4];
    for _ in 0..TURNS {
        one.extend(rates(&native.sign(key, 1, count)?));
        ours.extend(rates(&page.sign(key, in_flight, count)?));
        if in_flight > 1 {
            all.extend(rates(&native.sign(key, processors, count)?));
        }
        if let Ok(node) = node {
            through_node.extend(rates(&node.sign(key, 1, count)?));
        }
    }
    let row = |baseline: &str, rates, ours: &Vec<f64>, aim: Option<f64>| {
        let name = format!("{}, {in_flight} in flight / {baseline}", key.name);
        Measurement::new(name, "1/s", rates, ours.clone()).aim(aim.map(Aim::RatioAtLeast))
    };
    let is_many = in_flight > 1;
    let mut rows = vec![row("cryptoki", one, &ours, is_many.then_some(0.9))];
    if is_many {
        let threads = format!("cryptoki, {processors} threads");
        rows.push(row(&threads, all, &ours, None));
    }
    rows.push(match node {
        Ok(_) => row("node-webcrypto-p11", through_node, &ours, Some(1.0)),
        Err(error) => row(
            &format!("node-webcrypto-p11, MISSING: {error}"),
            Vec::new(),
            &ours,
            None,
        ),
    });
    Ok(rows)
}

/// From one signature of a TPM to the next.
fn compare_tpm(page: &Page, native: &mut Program, key: Key) -> Result<Vec<Measurement>> {
    let count = RSA.count;
    let mut measurements = Vec::new();
    for in_flight in [1, MANY] {
        let (mut baseline, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            baseline.extend(times(&native.sign(key, 1, count)?));
            ours.extend(times(&page.sign(key, in_flight, count)?));
        }
        let name = format!("TPM, {}, {in_flight} in flight / tss-esapi", key.name);
        let row = Measurement::new(name, "µs", baseline, ours);
        measurements.push(row.aim(Aim::Ratio(1.1)));
    }
    Ok(measurements)
}

/// How long each signature takes, in the mean of each block, without the first tenth.
fn times(moments: &[f64]) -> Vec<f64> {
    let marks: Vec<f64> = moments
        .iter()
        .copied()
        .skip(moments.len() / 10)
        .step_by(BLOCK)
        .collect();
    marks
        .windows(2)
        .map(|marks| (marks[1] - marks[0]) / BLOCK as f64)
        .collect()
}

/// Signatures per second in each block.
fn rates(moments: &[f64]) -> Vec<f64> {
    times(moments).into_iter().map(|time| 1e6 / time).collect()
}

/// The longest time between two turns of a timer of the page, against that of a page that does nothing.
fn look_for_stalls(page: &Page) -> Result<Vec<Measurement>> {
    let (duration, turns) = STALL;
    let aim = Aim::AtMost(5.0);
    let idle = || page.stall(&format!("idle({duration})"));
    let mut measurements = Vec::new();
    for key in KEYS {
        let (mut baseline, mut ours) = (Vec::new(), Vec::new());
        let name = json!(key.name);
        for _ in 0..turns {
            baseline.push(idle()?);
            ours.push(page.stall(&format!("signing({name}, {MANY}, {duration})"))?);
        }
        let name = format!(
            "longest stall in a second, {}, {MANY} in flight / idle",
            key.name
        );
        measurements.push(Measurement::new(name, "ms", baseline, ours).aim(aim));
    }
    let (mut baseline, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..GENERATIONS {
        baseline.push(idle()?);
        ours.push(page.stall("generating(\"RSA-4096\")")?);
    }
    let name = "longest stall while an RSA-4096 key is made / idle";
    measurements.push(Measurement::new(name.into(), "ms", baseline, ours).aim(aim));
    Ok(measurements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_blocks_after_the_warm_up() {
        // 1 ms each.
        let moments: Vec<f64> = (0..=80).map(|moment| f64::from(moment) * 1e3).collect();
        assert_eq!(rates(&moments), [1000.0; 4]);
    }
}
