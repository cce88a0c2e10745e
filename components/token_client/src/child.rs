/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! One token process, from its start to its end.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipc_channel::ipc::{IpcOneShotServer, IpcSender};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use token_traits::control::Hello;

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
    /// `None` once it has reported.
    pending: Option<Pending>,
    /// The process ends when this is dropped.
    pub(crate) lifeline: Option<IpcSender<()>>,
}

struct Pending {
    /// The name of the server where it is to report.
    token: String,
    until: Instant,
}

impl Child {
    /// Starts `binary` as a process of that kind, with those arguments besides. `reported` is called when it has reported or will not any more,
    /// `ended` when it has ended and been reaped, both on threads of their own.
    pub(crate) fn start<ToChild, FromChild>(
        id: ChildId,
        binary: &Path,
        kind: &str,
        arguments: &[&OsStr],
        reported: impl FnOnce(Result<Hello<ToChild, FromChild>, String>) + Send + 'static,
        ended: impl FnOnce(io::Result<ExitStatus>) + Send + 'static,
    ) -> io::Result<Self>
    where
        ToChild: for<'de> Deserialize<'de> + Serialize + Send + 'static,
        FromChild: for<'de> Deserialize<'de> + Serialize + Send + 'static,
    {
        let (server, token) = IpcOneShotServer::<Hello<ToChild, FromChild>>::new()?;
        let environment = ENVIRONMENT
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)));
        // What the process does not need must not keep anything open either. Its own first step is to close whatever
        // file descriptors it has inherited all the same.
        let mut process = Command::new(binary)
            .arg(kind)
            .arg(&token)
            .args(arguments)
            .env_clear()
            .envs(environment)
            // Without it libpcsclite waits for other programs for ever, and a worker could only be killed.
            .env("PCSCLITE_NO_BLOCKING", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let handle = i32::try_from(process.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("no process id"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(error);
            }
        };
        let child = Self {
            id,
            handle,
            pending: Some(Pending {
                token,
                until: Instant::now() + START_LIMIT,
            }),
            lifeline: None,
        };
        // From here on an error drops `child`, which kills the process.
        thread::Builder::new()
            .name(format!("{kind} exit"))
            .spawn(move || ended(process.wait()))?;
        thread::Builder::new()
            .name(format!("{kind} start"))
            .spawn(move || {
                let hello = server.accept().map(|(_, hello)| hello);
                reported(hello.map_err(|error| error.to_string()));
            })?;
        Ok(child)
    }

    /// Takes in that the process has reported.
    pub(crate) fn started(&mut self, lifeline: IpcSender<()>) {
        self.pending = None;
        self.lifeline = Some(lifeline);
    }

    /// Until when the process has to report; `None` once it has.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.until)
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
        if let Some(Pending { token, .. }) = &self.pending {
            // The thread that waits for the report cannot be interrupted, but it can be connected to: it finds a
            // connection that closes without a word. Where it has ended meanwhile, the name is gone.
            let _ = IpcSender::<()>::connect(token.clone());
        }
    }
}
