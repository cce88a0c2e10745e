/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a page that never touches the token APIs pays for them.

use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::server::Server;
use e2e::shell::{Options, Shell, VARIABLE};

use crate::{Measurement, Result};

/// The variable that has the path of the baseline: a browser with the same flags around an engine without patches.
pub const BASELINE_VARIABLE: &str = "SERVO_TOKENS_BASELINE";
/// The two browsers take turns, so that a machine that changes its pace slows both. Each turn starts one anew.
const TURNS: usize = 12;
/// Loads of each kind in one turn that are measured.
const MEASURED: usize = 20;
/// Loads of each kind at the start of each turn that are not.
const WARM_UP: usize = 4;
/// How long a load may take.
const LIMIT: Duration = Duration::from_secs(30);

const PAGE: &str = "<!DOCTYPE html><title>page</title><p>A page.";

/// The loads of one turn, in milliseconds.
#[derive(Default)]
struct Times {
    same_process: Vec<f64>,
    new_process: Vec<f64>,
}

/// From the command to navigate to its end, which is that of the page's load event, as a WebDriver client sees it.
pub fn run() -> Result<Vec<Measurement>> {
    let baseline_binary = binary(BASELINE_VARIABLE)?;
    let own_binary = binary(VARIABLE)?;
    let server = Server::builder().start()?;
    server.page("/", PAGE);
    let (mut baseline, mut ours) = (Times::default(), Times::default());
    for round in 0..TURNS {
        // Whoever comes second finds a machine that is awake, so the order changes as well.
        if round % 2 == 0 {
            turn(&baseline_binary, &server, &mut baseline)?;
            turn(&own_binary, &server, &mut ours)?;
        } else {
            turn(&own_binary, &server, &mut ours)?;
            turn(&baseline_binary, &server, &mut baseline)?;
        }
    }
    let measurement =
        |name: &str, baseline, ours| Measurement::new(name.to_owned(), "ms", baseline, ours);
    Ok(vec![
        measurement("page load", baseline.same_process, ours.same_process),
        measurement(
            "page load in a new process",
            baseline.new_process,
            ours.new_process,
        ),
    ])
}

fn binary(variable: &str) -> Result<PathBuf> {
    let binary =
        env::var_os(variable).ok_or_else(|| format!("{variable} is not set; see bench --help"))?;
    Ok(binary.into())
}

fn turn(binary: &Path, server: &Server, times: &mut Times) -> Result<()> {
    let shell = Shell::start_binary(binary, server, &Options::default())?;
    let session = shell.session()?;
    session.set_timeouts(LIMIT, LIMIT)?;
    let load = |url: &str| -> Result<f64> {
        let started = Instant::now();
        session.navigate(url)?;
        let took = started.elapsed();
        if session.title()? != "page" {
            return Err(format!("{} did not load the page", binary.display()).into());
        }
        Ok(took.as_secs_f64() * 1e3)
    };
    let window = session.window()?;
    for round in 0..WARM_UP + MEASURED {
        // The query keeps the page out of the cache.
        let url = |kind| server.url(&format!("/?{kind}{round}"));
        let same_process = load(&url("same"))?;
        // A new window shares no content process with the old one.
        session.switch_to_window(&session.new_window()?)?;
        let new_process = load(&url("new"))?;
        session.close_window()?;
        session.switch_to_window(&window)?;
        if round >= WARM_UP {
            times.same_process.push(same_process);
            times.new_process.push(new_process);
        }
    }
    Ok(())
}
