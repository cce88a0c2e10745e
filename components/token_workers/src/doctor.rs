/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Says what keeps this machine's tokens from being used, and what to do about it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::{TcpStream, ToSocketAddrs};
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

/// Looks at the kernel, the PC/SC service, its readers and cards, and the TPM: the one that the configuration names, or the
/// usual one. Changes nothing, and connects to no card.
pub fn examine(tcti: Option<&str>) -> Vec<Finding> {
    let mut findings = vec![kernel()];
    findings.extend(pc_sc());
    findings.push(match tcti {
        None => tpm(Path::new(TPM)),
        Some(tcti) => configured_tpm(tcti),
    });
    findings
}

fn configured_tpm(tcti: &str) -> Finding {
    if let Some(path) = tcti.strip_prefix("device:") {
        return match tpm(Path::new(path)) {
            Finding::Absent(text) => Finding::Bad(text),
            finding => finding,
        };
    }
    let Some(parameters) = tcti.strip_prefix("swtpm:") else {
        return Finding::Bad(format!(
            "[tpm] tcti: {tcti:?} is neither device:PATH nor swtpm:host=ADDRESS,port=PORT"
        ));
    };
    let parameter = |name: &str| {
        let mut parameters = parameters.split(',');
        parameters.find_map(|parameter| parameter.strip_prefix(name))
    };
    let host = parameter("host=").unwrap_or("127.0.0.1");
    let port = parameter("port=").unwrap_or("2321");
    match connects(&format!("{host}:{port}")) {
        Ok(()) => Finding::Good(format!(
            "a TPM in software listens at {host}:{port}. It does not count as hardware"
        )),
        Err(error) => Finding::Bad(format!(
            "no TPM in software listens at {host}:{port}: {error}. Start it: swtpm socket --tpm2 --tpmstate dir=/ABSOLUTE/FOLDER \
             --server type=tcp,port={port} --ctrl type=tcp,port=PORT_AFTER_IT --flags not-need-init,startup-clear"
        )),
    }
}

fn connects(address: &str) -> io::Result<()> {
    let address = address.to_socket_addrs()?.next();
    let address = address.ok_or(ErrorKind::AddrNotAvailable)?;
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(drop)
}

/// The beginning of an ELF file, as far as it says for which machines it is.
type Header = [u8; 20];

fn header(path: &Path) -> io::Result<Header> {
    let mut header = [0; 20];
    File::open(path)?.read_exact(&mut header)?;
    Ok(header)
}

/// Looks whether a PKCS#11 module could be loaded, without loading it.
pub fn module_file(path: &Path) -> Finding {
    let shown = path.display();
    let header = match header(path) {
        Ok(header) => header,
        Err(error) => {
            return Finding::Bad(format!(
                "the PKCS#11 module {shown} cannot be read: {error}"
            ));
        }
    };
    let own = self::header(Path::new("/proc/self/exe"));
    // The class (32 or 64 bits), the order of bytes, and the machine.
    let machine = |header: &Header| [header[4], header[5], header[18], header[19]];
    match own {
        _ if !header.starts_with(b"\x7fELF") => {
            Finding::Bad(format!("{shown} is no shared library"))
        }
        Ok(own) if machine(&own) != machine(&header) => Finding::Bad(format!(
            "the PKCS#11 module {shown} is for another kind of processor than the browser ({}). Install the one for {}",
            if header[4] == 1 { "32 bits" } else { "64 bits" },
            std::env::consts::ARCH
        )),
        _ => Finding::Good(format!("{shown} is a shared library for this machine")),
    }
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
    fn a_module_is_a_library_for_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("module.so");
        let own = std::fs::read("/proc/self/exe").unwrap();
        let mut other = own[..64].to_vec();
        for (bytes, problem) in [
            (&own[..64], None),
            (&b"text"[..], Some("cannot be read")),
            (&[b'x'; 64], Some("no shared library")),
        ] {
            std::fs::write(&file, bytes).unwrap();
            match (module_file(&file), problem) {
                (Finding::Good(_), None) => {}
                (Finding::Bad(text), Some(problem)) => assert!(text.contains(problem), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        other[4] ^= 3;
        std::fs::write(&file, &other).unwrap();
        assert!(matches!(module_file(&file), Finding::Bad(text) if text.contains("32 bits")));
        assert!(matches!(
            module_file(Path::new("/nowhere.so")),
            Finding::Bad(_)
        ));
    }

    #[test]
    fn a_tpm_in_software_listens_or_not() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let tcti = format!("swtpm:host=127.0.0.1,port={port}");
        assert!(matches!(configured_tpm(&tcti), Finding::Good(_)));
        drop(server);
        assert!(matches!(configured_tpm(&tcti), Finding::Bad(text) if text.contains("Start it")));
        assert!(matches!(configured_tpm("device:/nowhere"), Finding::Bad(_)));
        assert!(matches!(configured_tpm("tabrmd:"), Finding::Bad(_)));
    }

    #[test]
    fn a_tpm_is_there_or_not() {
        assert!(matches!(tpm(Path::new("/nowhere/tpm")), Finding::Absent(_)));
        assert!(matches!(tpm(Path::new("/dev/null")), Finding::Good(_)));
        // A folder cannot be opened for writing.
        assert!(matches!(tpm(Path::new("/")), Finding::Bad(_)));
    }
}
