/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! How long the token processes take to start, and how much memory they take.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use e2e::process::{Process, run};
use e2e::shell::{PCSC, Shell, VIRTUAL_CARD};
use serde_json::json;

use super::exchange::{Connection, FIVE_BYTES, Page, start_browser};
use crate::{Aim, Measurement, Result};

/// Browsers that are started for each row.
const STARTS: usize = 10;
/// How long a process may take to start and end.
const LIMIT: Duration = Duration::from_secs(20);
/// Commands before memory is looked at.
const COMMANDS: usize = 1000;
/// The argument that makes this program a client that uses PC/SC directly. A number of commands follows.
pub const NATIVE_CLIENT: &str = "native-client";

const START_AIM: Aim = Aim::AtMost(30.0);
const MEMORY_AIM: Aim = Aim::AtMost(15.0);

/// The first `getReaders()` of a fresh browser starts the broker, and with PC/SC the monitor as well; the first
/// `openSession()` starts the reader's worker. What either takes longer than the second call is the start of processes.
/// Against it: a process of the same binary that does nothing but end, and one that connects to the card natively.
///
/// The PC/SC service has to run, with a card in its first slot.
pub fn starts(broker: &Path) -> Result<Vec<Measurement>> {
    let mut ends = Vec::new();
    let mut connects = Vec::new();
    let mut starts = [const { Vec::new() }; 4];
    for _ in 0..STARTS {
        ends.push(time_to_end(Command::new(broker).arg("--help"))?);
        connects.push(time_to_end(&mut native_client(0)?)?);
        for (configuration, starts) in [VIRTUAL_CARD, PCSC].into_iter().zip(starts.chunks_mut(2)) {
            let browser = start_browser(configuration)?;
            let times = Page::new(&browser)?.call("start()")?;
            let times: [f64; 2] = serde_json::from_value(times)?;
            starts
                .iter_mut()
                .zip(times)
                .for_each(|(starts, time)| starts.push(time));
        }
    }
    let [broker, card, broker_and_monitor, reader] = starts;
    let row = |name: &str, baseline: &Vec<f64>, ours| {
        Measurement::new(format!("start: {name}"), "ms", baseline.clone(), ours).aim(START_AIM)
    };
    Ok(vec![
        row("broker / exec", &ends, broker),
        row("broker and monitor / exec", &ends, broker_and_monitor),
        row("worker of the embedded card / exec", &ends, card),
        row(
            "worker of a PC/SC reader / native client",
            &connects,
            reader,
        ),
    ])
}

/// What token processes of these kinds take, after they have carried commands, against what a native client takes.
pub fn memory(shell: &Shell, kinds: &[&str]) -> Result<Vec<Measurement>> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("{kinds:?}: only root can see the memory of processes that are not dumpable");
        return Ok(Vec::new());
    }
    let native = run(&mut native_client(COMMANDS)?, LIMIT)?;
    if !native.status.success() {
        return Err(String::from_utf8_lossy(&native.stderr).into());
    }
    let native: [f64; 3] = serde_json::from_slice(&native.stdout)?;
    let mut measurements = Vec::new();
    for kind in kinds {
        let processes = shell.token_processes(kind);
        let process = processes
            .first()
            .ok_or_else(|| format!("there is no {kind} process"))?;
        let ours = memory_of(&process.pid.to_string())?;
        for ((field, native), ours) in MEMORY.into_iter().zip(native).zip(ours) {
            let name = format!("memory: {kind}, {field} / native client");
            measurements
                .push(Measurement::new(name, "MB", vec![native], vec![ours]).aim(MEMORY_AIM));
        }
    }
    Ok(measurements)
}

/// That of the worker which is the embedded card.
pub fn memory_of_embedded_card() -> Result<Vec<Measurement>> {
    let browser = start_browser(VIRTUAL_CARD)?;
    let page = Page::new(&browser)?;
    page.open(0, 1)?;
    page.exchange(&[0], 1, FIVE_BYTES, COMMANDS)?;
    memory(&browser.shell, &["virtual-card"])
}

/// The kernel's names: all that is resident; the same with each page divided by the number of processes that share it;
/// what has been written and is nobody else's.
const MEMORY: [&str; 3] = ["Rss", "Pss", "Private_Dirty"];

/// In MB.
fn memory_of(pid: &str) -> Result<[f64; 3]> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let mut memory = [f64::NAN; 3];
    for (field, value) in MEMORY.into_iter().zip(&mut memory) {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kibibytes = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .ok_or("no such field")?;
        *value = kibibytes.parse::<f64>()? * 1024.0 / 1e6;
    }
    Ok(memory)
}

/// This program as [`NATIVE_CLIENT`].
fn native_client(commands: usize) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(NATIVE_CLIENT).arg(commands.to_string());
    Ok(command)
}

/// Connects to the card in the first slot, opens a channel, sends so many commands and prints what memory it takes.
pub fn run_native_client(commands: usize) -> Result<()> {
    let connection = Connection::open(0)?;
    connection.exchange(&FIVE_BYTES, commands)?;
    println!("{}", json!(memory_of("self")?));
    connection.close();
    Ok(())
}

/// The milliseconds from a program's start to its end.
fn time_to_end(command: &mut Command) -> Result<f64> {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let pid = child.id();
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || sender.send((child.wait(), started.elapsed())));
    match ended.recv_timeout(LIMIT) {
        Ok((Ok(status), took)) if status.success() => Ok(took.as_secs_f64() * 1e3),
        Ok((status, _)) => Err(format!("{command:?} ended with {status:?}").into()),
        Err(error) => {
            Process::get(pid).iter().for_each(Process::kill);
            Err(error.into())
        }
    }
}
