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
use virtual_card::applets::ara_m::{self, AraM};
use virtual_card::applets::files::File;
use virtual_card::applets::uicc::Arf;
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
        /// Put this file into the PKCS#15 application with the access rule files of the profile uicc:
        /// its identifier, and a file with its content as bytes or as hexadecimal digits. Without
        /// a name behind =, the file of that identifier is missing. Can be given several times.
        #[arg(long, value_name = "ID=FILE", value_parser = arf_file)]
        arf_file: Vec<(u16, PathBuf)>,
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
        arf_file,
        wait,
    } = Arguments::parse().command;
    let mut card = match card(&profile, ara_m.as_deref(), &arf_file) {
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

fn arf_file(argument: &str) -> Result<(u16, PathBuf), String> {
    let (id, path) = argument.split_once('=').ok_or("there is no =")?;
    let id = u16::from_str_radix(id, 16).map_err(|error| error.to_string())?;
    Ok((id, path.into()))
}

fn card(
    profile: &str,
    ara_m: Option<&Path>,
    arf_files: &[(u16, PathBuf)],
) -> Result<VirtualCard, String> {
    let mut card = VirtualCard::from_profile(profile).map_err(|error| error.to_string())?;
    let read = |path: &Path| {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let content = fs::read(path).map_err(|error| at(&error))?;
        ara_m::from_file(&content).map_err(|error| at(&error))
    };
    if let Some(path) = ara_m {
        card.install(Box::new(AraM::from_bytes(read(path)?)));
    }
    if !arf_files.is_empty() {
        let mut arf = Arf::sample();
        for (id, path) in arf_files {
            arf = if path.as_os_str().is_empty() {
                arf.without_file(*id)
            } else {
                arf.with_file(*id, File::Transparent(read(path)?))
            };
        }
        card.install(Box::new(arf));
    }
    Ok(card)
}
