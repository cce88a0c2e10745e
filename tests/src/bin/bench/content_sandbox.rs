/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the sandbox of content processes costs: the same browser without it is the baseline.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2e::server::{Response, Server};
use e2e::shell::{Options, Shell};
use serde_json::Value;

use crate::{Aim, Measurement, Result};

/// The two take turns, so that a machine that changes its pace slows both. Each turn starts the browser anew.
const TURNS: usize = 12;
/// Loads of each kind, and rounds of the programs, in one turn that are measured.
const LOADS: usize = 12;
const ROUNDS: usize = 5;
/// Those at the start of each turn that are not.
const WARM_UP: usize = 3;
/// How long a load may take.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// How long all rounds of the programs may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(300);
const AIM: Aim = Aim::Ratio(1.02);

/// What one browser was measured to take, in milliseconds.
#[derive(Default)]
struct Times {
    loads: BTreeMap<&'static str, Vec<f64>>,
    /// By program, one for each round of each turn.
    scripts: BTreeMap<String, Vec<f64>>,
    /// What the programs gave.
    results: Value,
    /// Of the processor, by all processes of the browser, one for each turn.
    processor: BTreeMap<&'static str, Vec<f64>>,
}

/// Page loads as in `page-load`, one of a page with a lot in it, and programs in the page.
pub fn run() -> Result<Vec<Measurement>> {
    let server = Server::builder().start()?;
    serve(&server);
    let (mut without, mut with) = (Times::default(), Times::default());
    for round in 0..TURNS {
        // Whoever comes second finds a machine that is awake, so the order changes as well.
        if round % 2 == 0 {
            turn(false, &server, &mut without)?;
            turn(true, &server, &mut with)?;
        } else {
            turn(true, &server, &mut with)?;
            turn(false, &server, &mut without)?;
        }
    }
    if without.results != with.results {
        return Err("a program gives something else in the sandbox".into());
    }
    let [baseline, ours] = [&without, &with].map(|times| geometric_means(&times.scripts));
    let all = "script: all (geometric mean)".to_owned();
    let mut measurements = vec![Measurement::new(all, "ms", baseline, ours).aim(AIM)];
    // Other programs on the machine change these less.
    for (name, baseline) in without.processor {
        let ours = with.processor.remove(name).unwrap_or_default();
        measurements.push(Measurement::new(name.to_owned(), "ms", baseline, ours).aim(AIM));
    }
    for (name, baseline) in without.loads {
        let ours = with.loads.remove(name).unwrap_or_default();
        measurements.push(Measurement::new(name.to_owned(), "ms", baseline, ours).aim(AIM));
    }
    for (name, baseline) in without.scripts {
        let ours = with.scripts.remove(&name).unwrap_or_default();
        measurements.push(Measurement::new(
            format!("script: {name}"),
            "ms",
            baseline,
            ours,
        ));
    }
    Ok(measurements)
}

/// For each round, of what all programs took.
fn geometric_means(scripts: &BTreeMap<String, Vec<f64>>) -> Vec<f64> {
    let rounds = scripts.values().map(Vec::len).min().unwrap_or_default();
    (0..rounds)
        .map(|round| {
            let logarithms: f64 = scripts.values().map(|times| times[round].ln()).sum();
            (logarithms / scripts.len() as f64).exp()
        })
        .collect()
}

fn serve(server: &Server) {
    server.page("/", "<!DOCTYPE html><title>page</title><p>A page.");
    let mut page = String::from(
        "<!DOCTYPE html><meta charset=utf-8><title>page</title><style>
        body { font: 14px serif } h2 { font: bold 20px sans-serif } section { display: grid; grid-template-columns: 1fr 2fr }
        section:nth-child(3n) { background: silver } p::first-letter { font-size: 150% } code { font-family: monospace }
        </style>",
    );
    for index in 0..150 {
        page += &format!(
            "<section><h2>Part {index}</h2><div><p>Some text with <b>bold</b> and <i>italic</i> words, <code>code</code>, \
             a <a href=#{index}>link</a>, and enough of them to be broken into lines more than once on any page.</p>\
             <table><tr><td>one<td>two<tr><td>three<td>four</table></div></section>"
        );
    }
    page += "<script>
        for (const section of document.querySelectorAll('section')) section.dataset.height = section.offsetHeight;
        localStorage.setItem('visits', 1 + Number(localStorage.getItem('visits')));
        </script>";
    server.page("/large", &page);
    server.page(
        "/programs",
        "<!DOCTYPE html><title>page</title><body><script src=/programs.js></script>",
    );
    let javascript = |text: &'static str| {
        move |_: &e2e::server::Request| Response::new(200, "text/javascript", text)
    };
    server.route(
        "/programs.js",
        javascript(include_str!("content_sandbox.js")),
    );
    server.route(
        "/worker.js",
        javascript(
            "onmessage = ({ data }) => postMessage(data.reduce((sum, value) => sum + value, 0));",
        ),
    );
}

fn turn(sandbox: bool, server: &Server, times: &mut Times) -> Result<()> {
    let preference = (
        "dom_content_process_sandbox_enabled".to_owned(),
        sandbox.to_string(),
    );
    let options = Options {
        preferences: vec![preference],
        ..Options::default()
    };
    let shell = Shell::start(server, &options)?;
    let mut session = shell.session()?;
    session.set_timeouts(SCRIPT_LIMIT, LOAD_LIMIT)?;
    session.set_deadline(SCRIPT_LIMIT);
    let load = |session: &e2e::webdriver::Session, url: &str| -> Result<f64> {
        let started = Instant::now();
        session.navigate(url)?;
        let took = started.elapsed();
        if session.title()? != "page" {
            return Err("the page was not loaded".into());
        }
        Ok(took.as_secs_f64() * 1e3)
    };
    let before = processor_time(&shell);
    let window = session.window()?;
    for round in 0..WARM_UP + LOADS {
        // The query keeps the page out of the cache.
        let url = |path: &str| server.url(&format!("/{path}?{round}"));
        let same_process = load(&session, &url(""))?;
        let large = load(&session, &url("large"))?;
        // A new window shares no content process with the old one.
        session.switch_to_window(&session.new_window()?)?;
        let new_process = load(&session, &server.url(&format!("/?new{round}")))?;
        session.close_window()?;
        session.switch_to_window(&window)?;
        if round >= WARM_UP {
            for (name, took) in [
                ("page load", same_process),
                ("page load, a large page", large),
                ("page load in a new process", new_process),
            ] {
                times.loads.entry(name).or_default().push(took);
            }
        }
    }
    let after_loads = processor_time(&shell);
    load(&session, &server.url("/programs"))?;
    let measured = session.evaluate(&format!("measure({WARM_UP}, {ROUNDS})"))??;
    for (name, took) in measured["times"].as_object().ok_or("no times")? {
        let took = took
            .as_array()
            .ok_or("no times")?
            .iter()
            .filter_map(Value::as_f64);
        times.scripts.entry(name.clone()).or_default().extend(took);
    }
    times.results = measured["results"].clone();
    for (name, took) in [
        (
            "processor time of the loads in a turn",
            after_loads - before,
        ),
        (
            "processor time of the programs in a turn",
            processor_time(&shell) - after_loads,
        ),
    ] {
        times.processor.entry(name).or_default().push(took);
    }
    Ok(())
}

/// What all processes of the browser have had of the processor so far, in milliseconds. Those that have ended count through
/// their parent.
fn processor_time(shell: &Shell) -> f64 {
    /// Linux counts in hundredths of a second here.
    const TICK: f64 = 10.0;
    let ticks = |pid: u32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may have anything in it. Own and those of ended children, in user code and in the kernel.
        let (_, fields) = status.rsplit_once(')')?;
        let fields = fields.split_whitespace().skip(11).take(4);
        Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
    };
    let processes = shell.processes();
    let ticks = processes.iter().filter_map(|process| ticks(process.pid));
    ticks.sum::<u64>() as f64 * TICK
}
