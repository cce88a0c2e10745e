/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A TPM in software (swtpm), with a state of its own in a temporary folder.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use tempfile::TempDir;

/// How long it may take to start.
const LIMIT: Duration = Duration::from_secs(20);

/// A TPM, on two ports of the loopback interface. It ends when it is dropped.
#[derive(Debug)]
pub struct SoftwareTpm {
    process: Child,
    _state: TempDir,
    port: u16,
}

impl SoftwareTpm {
    /// Starts one that has no keys.
    ///
    /// # Errors
    /// If swtpm cannot be run, or does not listen in time.
    pub fn start() -> io::Result<Self> {
        let state = tempfile::tempdir()?;
        let port = ports()?;
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", state.path().display()))
            .args(["--server", &format!("type=tcp,port={port}")])
            .args(["--ctrl", &format!("type=tcp,port={}", port + 1)])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let tpm = Self {
            process,
            _state: state,
            port,
        };
        let deadline = Instant::now() + LIMIT;
        // It serves one connection at a time, so none is made to find out.
        while !(is_listening(port)? && is_listening(port + 1)?) {
            if Instant::now() > deadline {
                return Err(io::Error::other("swtpm does not start"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(tpm)
    }

    /// How the TPM software stack names it.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// A part of a token configuration that has the browser use it.
    pub fn token_config(&self) -> String {
        format!("[tpm]\ntcti = {:?}\n", self.tcti())
    }

    /// It is switched off.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn switch_off(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait().map(drop)
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        // It fails only if it has ended.
        let _ = self.switch_off();
    }
}

/// Two free ports, one after the other.
fn ports() -> io::Result<u16> {
    loop {
        let first = TcpListener::bind("127.0.0.1:0")?;
        let port = first.local_addr()?.port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return Ok(port);
        }
    }
}

fn is_listening(port: u16) -> io::Result<bool> {
    let sockets = fs::read_to_string("/proc/net/tcp")?;
    Ok(sockets.contains(&format!(":{port:04X} 00000000:0000 0A")))
}
