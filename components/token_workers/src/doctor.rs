/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Says what keeps this machine's tokens from being used, and what to do about it.

use std::fmt;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use pcsc::{Context, Error, ReaderState, Scope, State};

use crate::sandbox;

/// The TPM, through the kernel's resource manager.
const TPM: &str = "/dev/tpmrm0";

/// What was found about one thing, in a sentence for the user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Finding {
    /// It works.
    Good(String),
    /// It is not there, which may be intended.
    Absent(String),
    /// It is there and does not work, or something that it needs is missing.
    Bad(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(text) => write!(formatter, "ok       {text}"),
            Self::Absent(text) => write!(formatter, "absent   {text}"),
            Self::Bad(text) => write!(formatter, "problem  {text}"),
        }
    }
}

/// Looks at the kernel, the PC/SC service, its readers and cards, and the TPM. Changes nothing, and connects to no card.
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![kernel()];
    findings.extend(pc_sc());
    findings.push(tpm(Path::new(TPM)));
    findings
}

fn kernel() -> Finding {
    match sandbox::support() {
        Ok(support) => Finding::Good(format!(
            "the kernel can lock token processes down: seccomp, Landlock {}",
            support.landlock
        )),
        Err(error) => Finding::Bad(error.to_string()),
    }
}

fn pc_sc() -> Vec<Finding> {
    let context = match Context::establish(Scope::User) {
        Ok(context) => context,
        Err(Error::NoService | Error::ServiceStopped) => {
            return vec![Finding::Bad(
                "the PC/SC service is not running. Start it: systemctl start pcscd.socket \
                 (package pcscd). The browser notices by itself."
                    .to_owned(),
            )];
        }
        Err(error) => {
            return vec![Finding::Bad(format!(
                "the PC/SC service does not answer: {error}. Restart it: systemctl restart pcscd"
            ))];
        }
    };
    let mut findings = vec![Finding::Good("the PC/SC service is running".to_owned())];
    match context.list_readers_owned() {
        Ok(names) if names.is_empty() => findings.push(Finding::Absent(
            "no reader. A USB reader needs a driver (package libccid) and must be plugged in; lsusb \
             shows whether the machine sees it."
                .to_owned(),
        )),
        Ok(names) => findings.extend(names.into_iter().map(|name| reader(&context, name))),
        Err(error) => findings.push(Finding::Bad(format!("readers cannot be listed: {error}"))),
    }
    findings
}

fn reader(context: &Context, name: std::ffi::CString) -> Finding {
    let shown: String = name
        .to_string_lossy()
        .chars()
        .filter(|character| !character.is_control())
        .collect();
    let mut states = [ReaderState::new(name, State::UNAWARE)];
    let asked = context.get_status_change(Some(Duration::ZERO), &mut states);
    let [state] = &states;
    let flags = state.event_state();
    match asked {
        Ok(()) if flags.contains(State::MUTE) => Finding::Bad(format!(
            "reader {shown}: the card does not answer. Clean it, turn it round, put it in again."
        )),
        Ok(()) if flags.contains(State::EXCLUSIVE) => Finding::Bad(format!(
            "reader {shown}: another program keeps the card for itself. Often that is gpg's scdaemon: \
             gpgconf --kill scdaemon"
        )),
        Ok(()) if flags.contains(State::PRESENT) => {
            Finding::Good(format!("reader {shown}: there is a card in it"))
        }
        Ok(()) => Finding::Absent(format!("reader {shown}: no card in it")),
        Err(error) => Finding::Bad(format!("reader {shown}: {error}")),
    }
}

fn tpm(path: &Path) -> Finding {
    let shown = path.display();
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::Good(format!("the TPM {shown} can be used")),
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::Absent(format!(
            "no TPM ({shown}). Some machines have it turned off in the firmware's settings."
        )),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::Bad(format!(
            "no right to use the TPM {shown}. Join its group and log in again: \
             sudo usermod -aG tss $USER"
        )),
        Err(error) => Finding::Bad(format!("the TPM {shown}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tpm_is_there_or_not() {
        assert!(matches!(tpm(Path::new("/nowhere/tpm")), Finding::Absent(_)));
        assert!(matches!(tpm(Path::new("/dev/null")), Finding::Good(_)));
        // A folder cannot be opened for writing.
        assert!(matches!(tpm(Path::new("/")), Finding::Bad(_)));
    }
}
