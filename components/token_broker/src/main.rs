/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The token broker and its workers, one process each. The browser starts them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use log::LevelFilter;
use token_broker::access::device_rules::{DeviceRules, DeviceRulesError};
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
    Doctor,
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
        Kind::Doctor => doctor(),
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

fn doctor() -> ExitCode {
    let findings = doctor::examine();
    for finding in &findings {
        println!("{finding}");
    }
    let is_bad = |finding: &Finding| matches!(finding, Finding::Bad(_));
    if findings.iter().any(is_bad) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
