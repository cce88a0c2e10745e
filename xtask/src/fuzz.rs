/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `cargo xtask fuzz`: libFuzzer on the targets of `fuzz/`, with the toolchain that is there.
//!
//! What it builds, finds and learns stays in the target directory: `fuzz/build`, `fuzz/artifacts` and `fuzz/corpus`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::paths::Paths;
use crate::process::{self, cargo, program, step};
use crate::series::read_text;
use crate::setup::{Need, setup};

/// The name that stands for every target.
const ALL: &str = "all";

/// How often it is said how far the fuzzer is.
const PROGRESS: Duration = Duration::from_secs(10);
/// How often an interruption is looked for.
const POLL: Duration = Duration::from_millis(200);
/// How long a fuzzer may take to end: by itself after an interruption, and when its time is over.
const INTERRUPTION_GRACE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(120);

/// The exit status of a program that was interrupted, as shells give it.
const INTERRUPTED: i32 = 128 + SIGINT;

/// What to do about one target, or about all.
pub enum Task {
    /// Look for inputs that fail, for so many seconds each.
    Search { seconds: u32 },
    /// Run this input.
    Replay(PathBuf),
}

/// Prints the names of the targets.
pub fn list(paths: &Paths) -> Result<()> {
    for target in targets(paths)? {
        println!("{target}");
    }
    Ok(())
}

/// Builds the target and does the task.
pub fn fuzz(paths: &Paths, target: &str, task: Task) -> Result<()> {
    let known = targets(paths)?;
    let chosen = match target {
        ALL => known,
        _ if known.iter().any(|name| name == target) => vec![target.to_owned()],
        _ => bail!(
            "there is no fuzz target `{target}`; there are {}, and `{ALL}`",
            known.join(", ")
        ),
    };
    if let Task::Replay(file) = &task {
        ensure!(target != ALL, "an input belongs to one target: name it");
        ensure!(file.is_file(), "there is no file {}", file.display());
    }
    setup(Need::Build)?;
    install_cargo_fuzz(paths)?;
    let folders = Folders::new(paths)?;
    folders.build(paths, (target != ALL).then_some(target))?;
    match task {
        Task::Search { seconds } => search(paths, &folders, &chosen, seconds),
        Task::Replay(file) => replay(&folders, target, &file),
    }
}

/// The names of the binaries in `fuzz/Cargo.toml`.
fn targets(paths: &Paths) -> Result<Vec<String>> {
    let manifest = paths.root.join("fuzz/Cargo.toml");
    let text = read_text(&manifest)?;
    let table: toml::Table = toml::from_str(&text)
        .with_context(|| format!("{} is no manifest", paths.show(&manifest)))?;
    let names: Vec<String> = table
        .get("bin")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|bin| Some(bin.get("name")?.as_str()?.to_owned()))
        .collect();
    ensure!(
        !names.is_empty(),
        "{} has no targets",
        paths.show(&manifest)
    );
    Ok(names)
}

fn install_cargo_fuzz(paths: &Paths) -> Result<()> {
    if process::succeeds(cargo(&paths.root).args(["fuzz", "--version"])) {
        return Ok(());
    }
    step("Installing cargo-fuzz through cargo, because it is not there");
    process::run_cargo_build(cargo(&paths.root).args(["install", "--locked", "cargo-fuzz"]))
}

/// A sanitizer that cargo-fuzz knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sanitizer {
    Address,
    None,
}

/// Where things are, and what the toolchain is like.
struct Folders {
    build: PathBuf,
    corpus: PathBuf,
    artifacts: PathBuf,
    seeds: PathBuf,
    host: String,
    sanitizer: Sanitizer,
}

impl Folders {
    fn new(paths: &Paths) -> Result<Self> {
        let folder = paths.target.join("fuzz");
        let rustc = |arguments: &[&str]| -> Result<String> {
            let mut command = program("rustc");
            command.current_dir(&paths.root).args(arguments);
            Ok(String::from_utf8(process::output(&mut command)?)?)
        };
        let version = rustc(&["--version", "--verbose"])?;
        let host = host(&version).context("rustc does not name its host")?;
        let libraries = rustc(&["--print", "target-libdir"])?;
        let sanitizer = sanitizer(Path::new(libraries.trim_end()));
        step(format!(
            "{} with {}",
            version.lines().next().unwrap_or("rustc"),
            match sanitizer {
                Sanitizer::Address => "AddressSanitizer",
                Sanitizer::None => "no sanitizer: this toolchain comes without AddressSanitizer",
            }
        ));
        Ok(Self {
            build: folder.join("build"),
            corpus: folder.join("corpus"),
            artifacts: folder.join("artifacts"),
            seeds: paths.root.join("fuzz/seeds"),
            host: host.to_owned(),
            sanitizer,
        })
    }

    /// Builds one target, or all.
    fn build(&self, paths: &Paths, target: Option<&str>) -> Result<()> {
        step(match target {
            Some(target) => format!("Building the fuzz target {target}"),
            None => "Building all fuzz targets".to_owned(),
        });
        let mut command = cargo(&paths.root);
        command
            .args(["fuzz", "build", "--fuzz-dir=fuzz", "--sanitizer"])
            .arg(match self.sanitizer {
                Sanitizer::Address => "address",
                Sanitizer::None => "none",
            })
            .arg("--target")
            .arg(&self.host)
            .arg("--target-dir")
            .arg(&self.build)
            .args(target)
            // The compiler's instrumentation is there in stable releases too, but they do not offer it.
            .env("RUSTC_BOOTSTRAP", "1");
        process::run_cargo_build(&mut command)
    }

    /// The fuzzer of a target, without arguments.
    fn fuzzer(&self, target: &str) -> Command {
        let binary = self.build.join(&self.host).join("release").join(target);
        let mut command = program(binary);
        command
            .stdin(Stdio::null())
            // Linkers and debuggers confuse the first; the second needs ptrace, which containers forbid.
            .env("ASAN_OPTIONS", "detect_odr_violation=0:detect_leaks=0")
            .env("RUST_BACKTRACE", "1")
            // Seconds for one input, and MiB in all and at once.
            .args(["-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=64"]);
        command
    }
}

/// "host: x86_64-unknown-linux-gnu" in what `rustc --version --verbose` prints.
fn host(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("host: "))
}

/// Rustup's toolchains have the sanitizers' runtimes, those of distributions often have not.
fn sanitizer(libraries: &Path) -> Sanitizer {
    let has_runtime = fs::read_dir(libraries)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("librustc") && name.ends_with("_rt.asan.a")
        });
    if has_runtime {
        Sanitizer::Address
    } else {
        Sanitizer::None
    }
}

fn replay(folders: &Folders, target: &str, file: &Path) -> Result<()> {
    let file = std::path::absolute(file)?;
    let status = folders.fuzzer(target).arg(&file).status()?;
    ensure!(
        status.success(),
        "{target} fails with {} ({status})",
        file.display()
    );
    println!("{target} does not fail with {}", file.display());
    Ok(())
}

fn search(paths: &Paths, folders: &Folders, targets: &[String], seconds: u32) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let mut failed = Vec::new();
    for target in targets {
        step(format!(
            "Fuzzing {target} for {seconds} s, from the inputs in {} and {}",
            paths.show(&folders.seeds.join(target)),
            paths.show(&folders.corpus.join(target))
        ));
        let run = run(folders, target, seconds, &interrupted)?;
        let Run { executions, .. } = run;
        match run.end {
            End::Time => println!("{target}: {executions} executions, nothing found"),
            End::Interruption => {
                println!("{target}: {executions} executions, nothing found, interrupted");
                std::process::exit(INTERRUPTED);
            }
            End::Failure(status) => {
                println!("{target}: failed after {executions} executions ({status})");
                if let Some(file) = run.reproducer {
                    println!(
                        "    input: {file}\n    replay: cargo xtask fuzz {target} --replay {file}"
                    );
                }
                failed.push(target.as_str());
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// What became of a run.
struct Run {
    executions: u64,
    /// The input that failed.
    reproducer: Option<String>,
    end: End,
}

enum End {
    /// The time was over.
    Time,
    Interruption,
    Failure(ExitStatus),
}

/// What the fuzzer has said so far.
#[derive(Debug, Default, Eq, PartialEq)]
struct Progress {
    executions: u64,
    /// Edges of the program, and inputs in the corpus.
    covered: String,
    corpus: String,
    reproducer: Option<String>,
}

impl Progress {
    /// Takes a line in; returns whether it says something about a failure.
    fn read(&mut self, line: &str) -> bool {
        if let Some(rest) = line.strip_prefix('#') {
            // "#4096	pulse  cov: 214 ft: 530 corp: 81/2Kb lim: 43 exec/s: 2048 rss: 40Mb"
            let words: Vec<&str> = rest.split_whitespace().collect();
            if let Some(executions) = words.first().and_then(|word| word.parse().ok()) {
                self.executions = executions;
            }
            for pair in words.windows(2) {
                match *pair {
                    ["cov:", value] => self.covered = value.to_owned(),
                    ["corp:", value] => {
                        value
                            .split('/')
                            .next()
                            .unwrap_or(value)
                            .clone_into(&mut self.corpus);
                    }
                    _ => {}
                }
            }
            return false;
        }
        if let Some(statistic) = line.strip_prefix("stat::") {
            if let Some(value) = statistic.strip_prefix("number_of_executed_units:")
                && let Ok(executions) = value.trim().parse()
            {
                self.executions = executions;
            }
            return false;
        }
        if let Some((_, file)) = line.split_once("Test unit written to ") {
            self.reproducer = Some(file.trim().to_owned());
        }
        // What it begins with, the words that it has found useful, and its end.
        !["INFO:", "\"", "Done "]
            .iter()
            .any(|noise| line.starts_with(noise))
    }
}

fn run(folders: &Folders, target: &str, seconds: u32, interrupted: &AtomicBool) -> Result<Run> {
    let corpus = folders.corpus.join(target);
    let artifacts = folders.artifacts.join(target);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let mut command = folders.fuzzer(target);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-print_funcs=0"])
        // New inputs go to the first.
        .arg(&corpus)
        .arg(folders.seeds.join(target))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start the fuzzer of {target}"))?;
    let (sender, lines) = mpsc::channel();
    if let Some(stream) = child.stderr.take() {
        thread::spawn(move || {
            for line in BufReader::new(stream)
                .split(b'\n')
                .map_while(|line| line.ok())
            {
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }

    let started = Instant::now();
    let deadline = started + Duration::from_secs(seconds.into()) + GRACE;
    let mut next_report = started + PROGRESS;
    let mut give_up = None;
    let mut progress = Progress::default();
    loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => {
                if progress.read(&line) && give_up.is_none() {
                    eprintln!("{line}");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = Instant::now();
        if give_up.is_none() && interrupted.load(Ordering::Relaxed) {
            // Where the signal came from a terminal, the fuzzer got it as well.
            give_up = Some(now + INTERRUPTION_GRACE);
        }
        if now > give_up.unwrap_or(deadline) {
            child.kill()?;
            break;
        }
        if now > next_report {
            next_report = now + PROGRESS;
            eprintln!(
                "    {target}: {}, {} executions, {} edges covered, {} inputs kept",
                process::elapsed(started),
                progress.executions,
                progress.covered,
                progress.corpus
            );
        }
    }
    let status = end(&mut child)?;
    Ok(Run {
        executions: progress.executions,
        end: match status {
            _ if give_up.is_some() && progress.reproducer.is_none() => End::Interruption,
            status if status.success() => End::Time,
            status => End::Failure(status),
        },
        reproducer: progress.reproducer,
    })
}

/// Waits for a child that has closed its output or was killed.
fn end(child: &mut Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + GRACE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
        }
        thread::sleep(POLL / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_body_and_seeds() {
        let paths = Paths::from_env().unwrap();
        let targets = targets(&paths).unwrap();
        for target in &targets {
            let source = paths.root.join(format!("fuzz/fuzz_targets/{target}.rs"));
            let text = fs::read_to_string(source).unwrap();
            assert!(text.contains(&format!("fuzz_bodies::{target}::run")));
            let seeds = paths.root.join("fuzz/seeds").join(target);
            assert!(fs::read_dir(seeds).unwrap().count() > 0, "{target}");
        }
        // The bodies' own tests see to it that each of them has seeds.
        for folder in ["fuzz/fuzz_targets", "fuzz/seeds"] {
            let entries = fs::read_dir(paths.root.join(folder)).unwrap();
            assert_eq!(entries.count(), targets.len(), "{folder}");
        }
    }

    #[test]
    fn what_the_fuzzer_says() {
        let mut progress = Progress::default();
        let line = "#4096\tpulse  cov: 214 ft: 530 corp: 81/2Kb lim: 43 exec/s: 2048 rss: 40Mb";
        assert!(!progress.read(line));
        assert_eq!(progress.executions, 4096);
        assert_eq!((&*progress.covered, &*progress.corpus), ("214", "81"));
        for noise in [
            "INFO: Seed: 1",
            "###### Recommended dictionary. ######",
            "\"\\001\\000\" # Uses: 5",
            "Done 5000 runs in 2 second(s)",
            "stat::number_of_executed_units: 5000",
        ] {
            assert!(!progress.read(noise), "{noise}");
        }
        assert_eq!(progress.executions, 5000);
        assert!(progress.read("thread '<unnamed>' panicked at src/tlv.rs:1:1:"));
        assert_eq!(progress.reproducer, None);
        assert!(progress.read("artifact_prefix='/t/'; Test unit written to /t/crash-1"));
        assert_eq!(progress.reproducer.as_deref(), Some("/t/crash-1"));
    }

    #[test]
    fn the_toolchain() {
        let version = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: a-b-c\nrelease: 1";
        assert_eq!(host(version), Some("a-b-c"));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(sanitizer(folder.path()), Sanitizer::None);
        fs::write(folder.path().join("librustc-stable_rt.asan.a"), []).unwrap();
        assert_eq!(sanitizer(folder.path()), Sanitizer::Address);
    }
}
