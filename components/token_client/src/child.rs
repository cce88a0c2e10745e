/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! One token process, from its start to its end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::bootstrap::{Reported, Server};

/// How long a process may take to report.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The environment variables that token processes get: for their logs, and for a PC/SC service that does not listen
/// where it usually does.
const ENVIRONMENT: [&str; 3] = ["RUST_LOG", "RUST_BACKTRACE", "PCSCLITE_CSOCK_NAME"];

/// Names a process among all that were ever started.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct ChildId(pub(crate) u64);

/// A token process that runs, as far as is known. It is killed when this is dropped.
pub(crate) struct Child {
    pub(crate) id: ChildId,
    handle: OwnedFd,
    /// Until when it has to report; `None` once it has.
    deadline: Option<Instant>,
    /// The process ends when this is dropped.
    lifeline: Option<OwnedFd>,
}

impl Child {
    /// Starts `binary` as a process of that kind, with those arguments and environment variables besides. `reported` is called when it has reported
    /// or will not any more, `ended` when it has ended and been reaped, both on threads of their own.
    pub(crate) fn start(
        id: ChildId,
        binary: &Path,
        kind: &str,
        arguments: &[&OsStr],
        more_environment: &BTreeMap<String, String>,
        reported: impl FnOnce(Result<Reported, String>) + Send + 'static,
        ended: impl FnOnce(io::Result<ExitStatus>) + Send + 'static,
    ) -> io::Result<Self> {
        let server = Server::new()?;
        let environment = ENVIRONMENT
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)));
        // What the process does not need must not keep anything open either. Its own first step is to close whatever
        // file descriptors it has inherited all the same.
        let mut process = Command::new(binary)
            .arg(kind)
            .arg(server.name())
            .args(arguments)
            .env_clear()
            .envs(environment)
            .envs(more_environment)
            // Without it libpcsclite waits for other programs for ever, and a worker could only be killed.
            .env("PCSCLITE_NO_BLOCKING", "1")
            // PINs pass through buffers of libraries that do not wipe them: this has malloc write over what is freed.
            .env("GLIBC_TUNABLES", "glibc.malloc.perturb=165")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let pid = Pid::from_child(&process);
        let handles = pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|handle| Ok((handle.try_clone()?, handle)));
        let (handle, watched) = match handles {
            Ok(handles) => handles,
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(error);
            }
        };
        let until = Instant::now() + START_LIMIT;
        let child = Self {
            id,
            handle,
            deadline: Some(until),
            lifeline: None,
        };
        // From here on an error drops `child`, which kills the process.
        thread::Builder::new()
            .name(format!("{kind} exit"))
            .spawn(move || ended(process.wait()))?;
        thread::Builder::new()
            .name(format!("{kind} start"))
            .spawn(move || reported(server.wait(pid, watched.as_fd(), until)))?;
        Ok(child)
    }

    /// Takes in that the process has reported.
    pub(crate) fn started(&mut self, lifeline: OwnedFd) {
        self.deadline = None;
        self.lifeline = Some(lifeline);
    }

    /// Until when the process has to report; `None` once it has.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Kills the process at once.
    pub(crate) fn kill(&self) {
        // The only failure is that it has ended already: the descriptor can mean no other process.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
