/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The token broker and its workers, one process each. The browser starts them.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
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
    /// What this process is
    kind: Kind,
    /// Where the browser listens for it; for the checks of access rules, the file
    #[arg(default_value = "", hide_default_value = true)]
    token: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Decides who may use which token, and passes commands on
    Broker,
    /// A smart card in software
    VirtualCard,
    /// Watches the PC/SC service for readers and cards
    PcscMonitor,
    /// Talks to the card in one PC/SC reader
    PcscReader,
    /// Checks an administrator's file of access rules, says what is wrong with it, and ends
    CheckAccessRules,
    /// The same for a user's own file, which can allow less
    CheckUserAccessRules,
    /// Says what keeps tokens from being used and what to do about it, and ends
    Doctor,
}

fn main() -> ExitCode {
    let Arguments { kind, token } = Arguments::parse();
    match kind {
        Kind::CheckAccessRules => return check_access_rules(&token, DeviceRules::parse),
        Kind::CheckUserAccessRules => {
            return check_access_rules(&token, DeviceRules::parse_of_user);
        }
        Kind::Doctor => return doctor(),
        _ => {}
    }
    // SAFETY: nothing has been opened yet: parsing the command line opens no file.
    let closed = unsafe { process::close_inherited_fds() };
    let pid = std::process::id();
    let name = kind.to_possible_value();
    let name = name.map_or_else(String::new, |value| value.get_name().to_owned());
    env_logger::Builder::from_default_env()
        .format(move |formatter, record| {
            writeln!(
                formatter,
                "[{} token-broker {name} {pid}] {}",
                record.level(),
                record.args()
            )
        })
        .init();
    if let Err(error) = closed {
        log::error!("cannot close inherited file descriptors: {error}");
        return ExitCode::FAILURE;
    }
    let program = match kind {
        Kind::Broker => {
            return match token_broker::event_loop::run(token) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    log::error!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
        Kind::VirtualCard => Program::VirtualCard,
        Kind::PcscMonitor => Program::PcscMonitor,
        Kind::PcscReader => Program::PcscReader,
        // Done above.
        Kind::CheckAccessRules | Kind::CheckUserAccessRules | Kind::Doctor => {
            return ExitCode::SUCCESS;
        }
    };
    token_workers::run(program, token)
}

fn check_access_rules(
    path: &str,
    parse: fn(&str) -> Result<DeviceRules, DeviceRulesError>,
) -> ExitCode {
    let outcome = std::fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|text| parse(&text).map_err(|error| error.to_string()));
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{path}: {error}");
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
