/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The token broker and its workers, one process each. The browser starts them.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use token_broker::access::device_rules::DeviceRules;
use token_workers::{Program, process};

/// Serves hardware tokens to a browser's pages.
///
/// This program is started by the browser, which gives it the arguments. There is nothing to be done with it by hand.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What this process is
    kind: Kind,
    /// Where the browser listens for it; for check-access-rules, the file
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
    /// Checks a file of access rules, says what is wrong with it, and ends
    CheckAccessRules,
}

fn main() -> ExitCode {
    let Arguments { kind, token } = Arguments::parse();
    if matches!(kind, Kind::CheckAccessRules) {
        return check_access_rules(&token);
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
        Kind::CheckAccessRules => return ExitCode::SUCCESS,
    };
    token_workers::run(program, token)
}

fn check_access_rules(path: &str) -> ExitCode {
    let outcome = std::fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|text| DeviceRules::parse(&text).map_err(|error| error.to_string()));
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}
