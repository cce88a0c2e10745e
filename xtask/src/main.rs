/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Set-up, assembly, build, run and test: what the README's commands do.

mod assemble;
mod baseline;
mod check;
mod fuzz;
mod patch;
mod paths;
mod process;
mod readme;
mod refresh;
mod series;
mod setup;
mod shell;
mod test;
mod tree;

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use crate::assemble::{Edits, LockFile};
use crate::fuzz::Task;
use crate::paths::Paths;
use crate::process::{program, step};
use crate::setup::{Need, setup};
use crate::shell::Profile;

/// Assembles, builds, runs and tests a Servo with secure hardware tokens.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the system packages that are missing, through apt-get where it is there.
    Setup,
    /// Bring target/engine up to date: published crates, patches, new files. `build` does it by itself.
    Assemble,
    /// Build the shell and the broker; the last line is the path of the shell's binary.
    Build {
        /// Build with optimisations, as benchmarks do.
        #[arg(long)]
        release: bool,
    },
    /// Set up, build and open the browser: the demo page on the embedded card, or URL.
    Run {
        /// The page to open.
        url: Option<String>,
        /// Build with optimisations.
        #[arg(long)]
        release: bool,
        /// Flags for the shell, after `--`.
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// Set up and run every check and test; the last line is `N passed, N failed`.
    Test {
        /// Only the web tests whose path contains PATTERN.
        #[arg(long, value_name = "PATTERN", conflicts_with = "filter")]
        wpt: Option<String>,
        /// Only the Rust tests whose name contains FILTER, after `--`; no checks, no web tests.
        #[arg(last = true)]
        filter: Option<String>,
    },
    /// Run a benchmark against its baseline, with optimised builds.
    Bench {
        /// Which one.
        name: Benchmark,
        /// Also write the results to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Feed a fuzz target with inputs; fails, and says how to see it again, where one of them shows a defect.
    Fuzz {
        /// Which one; `all` for each in turn.
        #[arg(required_unless_present = "list")]
        target: Option<String>,
        /// Name the targets.
        #[arg(long)]
        list: bool,
        /// How long each target runs.
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
        /// Run this input only, for example one that failed before.
        #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
        replay: Option<PathBuf>,
    },
    /// Look after the patches on Servo's files.
    #[command(subcommand)]
    Patches(Patches),
    /// Update components/shell/Cargo.lock after a change of dependencies or of the set of patched crates.
    Lock,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Benchmark {
    /// What access rules cost: a decision, reading them, enforcing them. Builds no engine.
    Access,
    /// What a page's commands to a card cost, against SCardTransmit over pcscd; start and memory of the token processes.
    Apdu,
    /// Page loads and programs in a page, in the sandbox of content processes and without it.
    ContentSandbox,
    /// Signatures of a page with keys in tokens, against the same tokens without a browser.
    Keys,
    /// A page without tokens, against the same browser around the published engine, which is built for it.
    PageLoad,
    /// How long token processes take to start, against the same without sandboxes. Builds no engine.
    Start,
}

#[derive(Subcommand)]
enum Patches {
    /// Apply everything in a scratch folder; check manifests, trailers and patches/README.md.
    Check,
    /// Count the changed lines in existing Servo files; fails over the budget.
    Stat,
    /// Carry edits by hand in target/engine over into patches/ and components/, and update every patch's offsets.
    Refresh {
        /// The patch that takes the edits of existing Servo files, as `<folder>/NNNN-area-subject.patch`; by
        /// default the last one of the crate.
        #[arg(long, value_name = "PATCH", conflicts_with = "discard")]
        into: Option<String>,
        /// Throw the edits in target/engine away instead.
        #[arg(long)]
        discard: bool,
    },
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    let paths = Paths::from_env()?;
    match command {
        Command::Setup => {
            setup(Need::Test)?;
            step("Everything that is needed is installed");
            Ok(())
        }
        Command::Assemble => {
            let _guard = assemble::lock_target(&paths)?;
            assemble::assemble(&paths, Edits::Refuse, LockFile::Unchecked)
        }
        Command::Build { release } => {
            setup(Need::Run)?;
            let binary = shell::build(&paths, Profile::new(release))?;
            println!("{}", binary.display());
            Ok(())
        }
        Command::Run {
            url,
            release,
            flags,
        } => run(&paths, url, release, flags),
        Command::Test { wpt, filter } => match wpt {
            Some(pattern) => test::web_only(&paths, &pattern),
            None => test::all(&paths, filter.as_deref()),
        },
        Command::Bench { name, json } => bench(&paths, name, json),
        Command::Fuzz {
            target: Some(target),
            list: false,
            seconds,
            replay,
        } => {
            let task = replay.map_or(Task::Search { seconds }, Task::Replay);
            fuzz::fuzz(&paths, &target, task)
        }
        Command::Fuzz { .. } => fuzz::list(&paths),
        Command::Patches(Patches::Check) => check::check(&paths),
        Command::Patches(Patches::Stat) => check::stat(&paths),
        Command::Patches(Patches::Refresh { discard: true, .. }) => refresh::discard(&paths),
        Command::Patches(Patches::Refresh { into, .. }) => {
            refresh::refresh(&paths, into.as_deref())
        }
        Command::Lock => shell::update_lock(&paths),
    }
}

/// Replaces this process by the shell.
fn run(paths: &Paths, url: Option<String>, release: bool, flags: Vec<String>) -> Result<()> {
    setup(Need::Run)?;
    let binary = shell::build(paths, Profile::new(release))?;
    let mut command = program(&binary);
    let has_display = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()));
    if !has_display && !flags.iter().any(|flag| flag == "--headless") {
        step("No display (neither DISPLAY nor WAYLAND_DISPLAY is set): running headless");
        command.arg("--headless");
    }
    command.args(flags).args(url);
    Err(command.exec()).with_context(|| format!("cannot start {}", binary.display()))
}

fn bench(paths: &Paths, benchmark: Benchmark, json: Option<PathBuf>) -> Result<()> {
    setup(Need::Test)?;
    const BENCH: [&str; 5] = ["run", "--release", "--package=e2e", "--bin=bench", "--"];
    let mut command = match benchmark {
        Benchmark::Access => {
            let broker = shell::build_broker(paths, Profile::Release)?;
            let mut command = shell::e2e_without_shell(paths);
            command.env("SERVO_TOKENS_BROKER", broker);
            command.args(BENCH).arg("access");
            command
        }
        Benchmark::Apdu => {
            let mut command = shell::e2e(paths, &shell_to_measure(paths)?);
            command.args(BENCH).arg("apdu");
            command
        }
        Benchmark::ContentSandbox => {
            let mut command = shell::e2e(paths, &shell_to_measure(paths)?);
            command.args(BENCH).arg("content-sandbox");
            command
        }
        Benchmark::Keys => {
            let mut command = shell::e2e(paths, &shell_to_measure(paths)?);
            command.args(BENCH).arg("keys");
            command
        }
        Benchmark::PageLoad => {
            let mut command = shell::e2e(paths, &shell_to_measure(paths)?);
            let baseline = baseline::build(paths)?;
            command.env("SERVO_TOKENS_BASELINE", baseline);
            command.args(BENCH).arg("page-load");
            command
        }
        Benchmark::Start => {
            let broker = shell::build_broker(paths, Profile::Release)?;
            let without = shell::build_broker_without_sandbox(paths)?;
            let mut command = shell::e2e_without_shell(paths);
            command.env("SERVO_TOKENS_BROKER", broker);
            command.env("SERVO_TOKENS_BROKER_WITHOUT_SANDBOX", without);
            command.args(BENCH).arg("start");
            command
        }
    };
    if let Some(file) = json {
        // The benchmark does not run in this directory.
        command.arg("--json").arg(std::path::absolute(file)?);
    }
    process::run(&mut command)
}

/// The shell in `SERVO_TOKENS_SHELL`, however it was built, else one that is built with optimisations.
fn shell_to_measure(paths: &Paths) -> Result<PathBuf> {
    let Some(given) = env::var_os("SERVO_TOKENS_SHELL").filter(|value| !value.is_empty()) else {
        return shell::build(paths, Profile::Release);
    };
    let shell = std::path::absolute(given)?;
    step(format!("Measuring {}", shell.display()));
    Ok(shell)
}
