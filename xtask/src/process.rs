/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Starting other programs: with visible steps, without the environment that `cargo run` adds, and never through a
//! shell.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write, stderr};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How often a long build shows a sign of life where there is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How often the end of a child is looked for while it is silent.
const POLL: Duration = Duration::from_millis(200);

/// How long output is still read after the child has ended.
const LINGER: Duration = Duration::from_secs(2);

/// Says what is done next.
pub fn step(message: impl std::fmt::Display) {
    eprintln!("==> {message}");
}

/// Whether progress bars and colours have a reader.
pub fn interactive() -> bool {
    stderr().is_terminal() && env::var_os("CI").is_none()
}

/// Takes away what `cargo run` sets for us and what would leak into build scripts.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || matches!(
                name,
                "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE"
            )
        {
            command.env_remove(name);
        }
    }
}

/// A program, without cargo's additions to the environment.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    clean(&mut command);
    command
}

/// Cargo, in `directory`.
pub fn cargo(directory: &Path) -> Command {
    let mut command = program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(directory);
    command
}

/// Git, in `directory`, as if there were no repository around it and no configuration.
pub fn git(directory: &Path) -> Command {
    let mut command = program("git");
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("GIT_")) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(directory)
        // In a subdirectory of a repository, `git apply` silently skips every path outside of that directory.
        .env(
            "GIT_CEILING_DIRECTORIES",
            directory.parent().unwrap_or(directory),
        )
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::null());
    command
}

/// The command line as one would type it.
fn describe(command: &Command) -> String {
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let mut words = vec![name.to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    ensure!(status.success(), "`{}` failed: {status}", describe(command));
    Ok(())
}

/// Whether the program could be started and succeeded; its output is thrown away.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs to the end; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    check(command, status)
}

/// Runs to the end and returns the standard output; an error, with what it said, if it fails.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}\n{}",
        describe(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(output.stdout)
}

/// A line that a child wrote, and whether to its standard error.
struct Line {
    text: String,
    is_error: bool,
}

/// Sends each line of `stream` until its end.
fn forward(stream: impl Read + Send + 'static, is_error: bool, lines: Sender<Line>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        while reader
            .read_until(b'\n', &mut bytes)
            .is_ok_and(|length| length > 0)
        {
            let text = String::from_utf8_lossy(&bytes)
                .trim_end_matches('\n')
                .to_owned();
            bytes.clear();
            if lines.send(Line { text, is_error }).is_err() {
                break;
            }
        }
    });
}

/// Runs to the end, printing what it prints, and shows each line to `watch` first. Where `watch` returns false the
/// line is not printed. `idle` is called after each half minute without a printed line. The status is not checked.
fn run_watched(
    command: &mut Command,
    mut watch: impl FnMut(&str) -> bool,
    mut idle: impl FnMut(),
) -> Result<ExitStatus> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    let (sender, lines) = mpsc::channel();
    if let Some(stream) = child.stdout.take() {
        forward(stream, false, sender.clone());
    }
    if let Some(stream) = child.stderr.take() {
        forward(stream, true, sender.clone());
    }
    drop(sender);
    let mut next_beat = Instant::now() + HEARTBEAT;
    // A process that the child left behind may hold the pipes open: the child's own end is what counts.
    let mut give_up = None;
    loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => {
                if !watch(&line.text) {
                    continue;
                }
                next_beat = Instant::now() + HEARTBEAT;
                if line.is_error {
                    eprintln!("{}", line.text);
                } else {
                    // A closed pipe behind us must not end the run: its result counts.
                    drop(writeln!(std::io::stdout(), "{}", line.text));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                if give_up.is_none() && child.try_wait()?.is_some() {
                    give_up = Some(now + LINGER);
                }
                if give_up.is_some_and(|deadline| now > deadline) {
                    break;
                }
                if now > next_beat {
                    idle();
                    next_beat = now + HEARTBEAT;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(child.wait()?)
}

/// Runs to the end, printing what it prints, and shows each line to `watch`.
pub fn run_reading(command: &mut Command, mut watch: impl FnMut(&str)) -> Result<ExitStatus> {
    let started = Instant::now();
    let name = describe(command);
    run_watched(
        command,
        |line| {
            watch(line);
            true
        },
        || eprintln!("    still running after {}: {name}", elapsed(started)),
    )
}

/// Runs a cargo build. On a terminal cargo shows its own progress; elsewhere a line every half minute stands for
/// the hundreds of "Compiling" lines.
pub fn run_cargo_build(command: &mut Command) -> Result<()> {
    if interactive() {
        return run(command);
    }
    let started = Instant::now();
    let progress = std::cell::RefCell::new((0_usize, String::new()));
    let status = run_watched(
        command,
        |line| {
            let line = line.trim_start();
            let crate_line = line
                .strip_prefix("Compiling ")
                .or_else(|| line.strip_prefix("Checking "));
            if let Some(name) = crate_line {
                let mut progress = progress.borrow_mut();
                progress.0 += 1;
                progress.1 = name.split(" (").next().unwrap_or(name).to_owned();
                return false;
            }
            !["Downloaded ", "Downloading ", "Adding "]
                .iter()
                .any(|noise| line.starts_with(noise))
        },
        || {
            let progress = progress.borrow();
            let (count, last) = &*progress;
            eprintln!(
                "    {}: {count} crates compiled or under way, last {last}",
                elapsed(started)
            );
        },
    )?;
    check(command, status)
}

/// The time since `start`, as minutes and seconds.
pub fn elapsed(start: Instant) -> String {
    let seconds = start.elapsed().as_secs();
    format!("{}m {:02}s", seconds / 60, seconds % 60)
}
