/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Runs a virtual card.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Parser, Subcommand};
use virtual_card::applets::ara_m::AraM;
use virtual_card::{Profile, VirtualCard, vpcd};

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
        /// What the card is like.
        #[arg(long, default_value = "default", value_parser = profiles())]
        profile: String,
        /// Put an ARA-M on the card that reads out these access rules: REF-AR-DOs as bytes, or as
        /// hexadecimal digits with comments behind #. A file that begins with FF 40 is read out
        /// as it is. Replaces the rules of the profile.
        #[arg(long, value_name = "FILE")]
        ara_m: Option<PathBuf>,
        /// How many seconds to wait for the driver.
        #[arg(long, default_value_t = 10)]
        wait: u64,
    },
}

/// So that --help says what each of them is.
fn profiles() -> PossibleValuesParser {
    let profiles = Profile::NAMED.iter();
    profiles
        .map(|(name, profile)| PossibleValue::new(name).help(profile.description))
        .into()
}

fn main() -> ExitCode {
    let Command::Vpcd {
        port,
        profile,
        ara_m,
        wait,
    } = Arguments::parse().command;
    let mut card = match card(&profile, ara_m.as_deref()) {
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

fn card(profile: &str, ara_m: Option<&Path>) -> Result<VirtualCard, String> {
    let mut card = VirtualCard::from_profile(profile).map_err(|error| error.to_string())?;
    if let Some(path) = ara_m {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let rules = fs::read(path).map_err(|error| at(&error))?;
        let ara_m = AraM::from_file(&rules).map_err(|error| at(&error))?;
        card.install(Box::new(ara_m));
    }
    Ok(card)
}
