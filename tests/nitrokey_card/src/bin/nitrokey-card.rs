/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Runs Nitrokey's PIV application as a virtual card.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Parser, Subcommand};
use nitrokey_card::PivCard;
use virtual_card::vpcd;

/// Nitrokey's PIV application as a smart card.
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
        /// How many seconds to wait for the driver.
        #[arg(long, default_value_t = 10)]
        wait: u64,
    },
}

fn main() -> io::Result<()> {
    let Command::Vpcd { port, wait } = Arguments::parse().command;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut card = PivCard::new()?;
    vpcd::serve_until_disconnected(&mut card, address, Duration::from_secs(wait))
}
