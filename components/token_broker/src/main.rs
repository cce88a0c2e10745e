/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The token broker and its workers, one process each. The browser starts them.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::{Args, Parser, Subcommand};
use log::LevelFilter;
use token_broker::access::device_rules::{DeviceRules, DeviceRulesError};
use token_traits::control::ModuleConfig;
use token_workers::doctor::{self, Finding};
use token_workers::{Program, process};

/// Serves hardware tokens to a browser's pages.
///
/// The browser starts this program and gives it the arguments. By hand, `token-broker doctor` says what keeps tokens from
/// being used, and `token-broker check-access-rules FILE` what is wrong with a file of rules.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    kind: Kind,
}

/// What this process is
#[derive(Subcommand)]
enum Kind {
    /// Decides who may use which token, and passes commands on
    Broker {
        #[command(flatten)]
        browser: Browser,
        /// The folder in which it keeps what outlives it
        #[arg(long)]
        store: Option<PathBuf>,
    },
    /// A smart card in software
    VirtualCard(Browser),
    /// Watches the PC/SC service for readers and cards
    PcscMonitor(Browser),
    /// Talks to the card in one PC/SC reader
    PcscReader(Browser),
    /// Runs a PKCS#11 module, and talks to its tokens
    ModuleWorker(Browser),
    /// Talks to the TPM
    TpmWorker(Browser),
    /// Checks an administrator's file of access rules, says what is wrong with it, and ends
    CheckAccessRules(Rules),
    /// The same for a user's own file, which can allow less
    CheckUserAccessRules(Rules),
    /// Says what keeps tokens from being used and what to do about it, and ends
    Doctor {
        /// The TPM that the configuration names, in place of the usual one
        #[arg(long)]
        tcti: Option<String>,
    },
    /// Says whether a PKCS#11 module works inside the sandbox that modules get, and which tokens it has, and ends
    CheckModule(Module),
    /// The part of that inside the sandbox
    #[command(hide = true)]
    TryModule(Module),
}

#[derive(Args)]
struct Module {
    /// Its shared library
    file: String,
    /// A file or folder that it may read, as with `read` in the configuration
    #[arg(long)]
    read: Vec<String>,
    /// A file or folder that it may also change, as with `write` in the configuration
    #[arg(long)]
    write: Vec<String>,
    /// Whether it may talk to the PC/SC service, as with `pcsc` in the configuration
    #[arg(long)]
    pcsc: bool,
}

impl Module {
    fn config(self) -> ModuleConfig {
        ModuleConfig {
            module: self.file,
            read: self.read,
            write: self.write,
            pcsc: self.pcsc,
            ..ModuleConfig::default()
        }
    }
}

#[derive(Args)]
struct Rules {
    /// The file
    file: PathBuf,
}

#[derive(Args)]
struct Browser {
    /// Where the browser listens for this process
    token: String,
}

fn main() -> ExitCode {
    match Arguments::parse().kind {
        Kind::Broker {
            browser: Browser { token },
            store,
        } => run("broker", || {
            match token_broker::event_loop::run(token, store) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    log::error!("{error}");
                    ExitCode::FAILURE
                }
            }
        }),
        Kind::VirtualCard(Browser { token }) => run("virtual-card", || {
            token_workers::run(Program::VirtualCard, token)
        }),
        Kind::PcscMonitor(Browser { token }) => run("pcsc-monitor", || {
            token_workers::run(Program::PcscMonitor, token)
        }),
        Kind::PcscReader(Browser { token }) => run("pcsc-reader", || {
            token_workers::run(Program::PcscReader, token)
        }),
        Kind::ModuleWorker(Browser { token }) => run("module-worker", || {
            token_workers::run(Program::Module, token)
        }),
        Kind::TpmWorker(Browser { token }) => {
            run("tpm-worker", || token_workers::run(Program::Tpm, token))
        }
        Kind::CheckAccessRules(Rules { file }) => check_access_rules(&file, DeviceRules::parse),
        Kind::CheckUserAccessRules(Rules { file }) => {
            check_access_rules(&file, DeviceRules::parse_of_user)
        }
        Kind::Doctor { tcti } => report(&doctor::examine(tcti.as_deref())),
        Kind::CheckModule(module) => report(&check_module(&module)),
        Kind::TryModule(module) => try_module(module),
    }
}

/// Runs one of the browser's processes, which the log calls `name`.
fn run(name: &'static str, body: impl FnOnce() -> ExitCode) -> ExitCode {
    // SAFETY: nothing has been opened yet: parsing the command line opens no file.
    let closed = unsafe { process::close_inherited_fds() };
    let pid = std::process::id();
    env_logger::Builder::new()
        .filter_level(LevelFilter::Error)
        // It calls an error what a module has and it does not know.
        .filter_module("cryptoki", LevelFilter::Off)
        // It logs what it returns as well.
        .filter_module("tss_esapi", LevelFilter::Off)
        .parse_default_env()
        .format(move |formatter, record| {
            writeln!(
                formatter,
                "[{} token-broker {name} {pid}] {}",
                record.level(),
                record.args()
            )
        })
        .init();
    match closed {
        Ok(()) => body(),
        Err(error) => {
            log::error!("cannot close inherited file descriptors: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check_access_rules(
    path: &Path,
    parse: fn(&str) -> Result<DeviceRules, DeviceRulesError>,
) -> ExitCode {
    let outcome = std::fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|text| parse(&text).map_err(|error| error.to_string()));
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// The module is somebody else's code, so a process of its own tries it, which may end in any way.
fn check_module(module: &Module) -> Vec<Finding> {
    let file = doctor::module_file(Path::new(&module.file));
    if matches!(file, Finding::Bad(_)) {
        return vec![file];
    }
    let places = |option: &'static str, places: &[String]| -> Vec<String> {
        let arguments = places
            .iter()
            .map(|place| [option.to_owned(), place.clone()]);
        arguments.flatten().collect()
    };
    let outcome = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .args(["try-module", &module.file])
            .args(places("--read", &module.read))
            .args(places("--write", &module.write))
            .args(module.pcsc.then_some("--pcsc"))
            .stdin(Stdio::null())
            .output()
    });
    let output = match outcome {
        Ok(output) => output,
        Err(error) => return vec![file, Finding::Bad(error.to_string())],
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let tried = if output.status.success() {
        Finding::Good(format!("it works in the sandbox. {}", said.trim()))
    } else if output.status.signal() == Some(SIGSYS) {
        Finding::Bad(
            "it makes a system call that modules may not make, and was ended. The kernel's log says which: \
             journalctl -k --grep=SECCOMP"
                .to_owned(),
        )
    } else if output.status.code().is_none() {
        Finding::Bad(format!("it crashes: {}", output.status))
    } else {
        Finding::Bad(format!(
            "it does not work in the sandbox. {} If it has files of its own, say so: --read PLACE, --write PLACE",
            said.trim()
        ))
    };
    vec![file, tried]
}

const SIGSYS: i32 = rustix::process::Signal::SYS.as_raw();

fn try_module(module: Module) -> ExitCode {
    match token_workers::try_module(&module.config()) {
        Ok(tokens) if tokens.is_empty() => println!("It has no token."),
        Ok(tokens) => println!("Its tokens: {}.", tokens.join("; ")),
        Err(error) => {
            println!("{error}.");
            // What the module left behind runs no more.
            process::end_with(1);
        }
    }
    process::end_with(0)
}

fn report(findings: &[Finding]) -> ExitCode {
    for finding in findings {
        println!("{finding}");
    }
    let is_bad = |finding: &Finding| matches!(finding, Finding::Bad(_));
    if findings.iter().any(is_bad) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
