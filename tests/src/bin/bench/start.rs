/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! How long token processes take to start, against the same without their sandboxes. It needs two builds of the token broker,
//! and no browser: a client of its own stands in for the page.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::access::Page;
use crate::{Aim, Measurement, Result};

/// The variable that has the path of the token broker's program.
const BROKER: &str = "SERVO_TOKENS_BROKER";
/// The same, built with `--cfg token_sandbox="off"`.
const BASELINE: &str = "SERVO_TOKENS_BROKER_WITHOUT_SANDBOX";
/// Baseline and ours take turns, so that a machine that changes its pace slows both.
const TURNS: usize = 100;

/// A start takes so many ms at most.
const START_AIM: Aim = Aim::AtMost(30.0);

/// What a start of each kind took, in ms.
#[derive(Default)]
struct Starts {
    broker: Vec<f64>,
    broker_with_store: Vec<f64>,
    worker: Vec<f64>,
}

impl Starts {
    /// The broker starts for the first port, and answers `getReaders()`; the card's worker starts for the first session.
    fn measure(&mut self, broker: &Path) -> Result<()> {
        let begun = Instant::now();
        let mut page = Page::open(broker, "default", None, None)?;
        self.broker.push(milliseconds(begun));
        let begun = Instant::now();
        page.session()?;
        let first = milliseconds(begun);
        let begun = Instant::now();
        page.session()?;
        self.worker.push(first - milliseconds(begun));

        let folder = tempfile::tempdir()?;
        let begun = Instant::now();
        Page::open(broker, "default", None, Some(folder.path().to_owned()))?;
        self.broker_with_store.push(milliseconds(begun));
        Ok(())
    }
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

/// Everything.
pub fn run() -> Result<Vec<Measurement>> {
    let program = |name: &str| -> Result<PathBuf> {
        let path = env::var_os(name).ok_or_else(|| format!("{name} is not set"))?;
        Ok(path.into())
    };
    let (broker, without) = (program(BROKER)?, program(BASELINE)?);
    let (mut ours, mut baseline) = (Starts::default(), Starts::default());
    for _ in 0..TURNS {
        baseline.measure(&without)?;
        ours.measure(&broker)?;
    }
    let row = |name: &str, baseline, ours| {
        Measurement::new(format!("start: {name}"), "ms", baseline, ours).aim(START_AIM)
    };
    Ok(vec![
        row("broker", baseline.broker, ours.broker),
        row(
            "broker with an empty store",
            baseline.broker_with_store,
            ours.broker_with_store,
        ),
        row("worker of the embedded card", baseline.worker, ours.worker),
    ])
}
