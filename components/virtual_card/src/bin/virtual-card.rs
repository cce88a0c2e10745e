/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Runs a virtual card.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use virtual_card::{VirtualCard, vpcd};

/// A smart card in software.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Insert the card into a slot of the reader driver vpcd, and serve it until pcscd ends.
    Vpcd {
        /// The TCP port of the slot, on this machine.
        #[arg(long, default_value_t = vpcd::DEFAULT_PORT)]
        port: u16,
        /// What the card is like: default, t0, or basic-channel-only.
        #[arg(long, default_value = "default")]
        profile: String,
        /// How many seconds to wait for the driver.
        #[arg(long, default_value_t = 10)]
        wait: u64,
    },
}

fn main() -> ExitCode {
    let Command::Vpcd {
        port,
        profile,
        wait,
    } = Arguments::parse().command;
    let mut card = match VirtualCard::from_profile(&profile) {
        Ok(card) => card,
        Err(error) => {
            eprintln!("virtual-card: {error}");
            return ExitCode::from(2);
        }
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match vpcd::serve_until_disconnected(&mut card, address, Duration::from_secs(wait)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtual-card: cannot serve the card at {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
