/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The begin and the end of content processes, on which the constellation does not wait.

use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipc_channel::IpcError;
use ipc_channel::ipc::{IpcOneShotServer, IpcSender};
use log::warn;

use crate::process_manager::Process;
use crate::sandboxing::UnprivilegedContent;

/// How long a content process may take to connect. Its user waits for it, but nobody else does.
#[cfg(target_os = "linux")]
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a content process may take to end when it has closed its lifeline, before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How often to look whether a process has ended.
const INTERVAL: Duration = Duration::from_millis(50);

/// A content process that several threads look after.
#[derive(Clone)]
pub struct SharedChild {
    id: u32,
    child: Arc<Mutex<Child>>,
}

impl From<Child> for SharedChild {
    fn from(child: Child) -> Self {
        Self {
            id: child.id(),
            child: Arc::new(Mutex::new(child)),
        }
    }
}

impl SharedChild {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        !matches!(self.lock().try_wait(), Ok(None))
    }

    /// Sees to the end of a process that has closed its lifeline, or has spoken on it, which it should not. The process may
    /// say so and go on.
    pub(crate) fn end(&self) {
        let child = self.clone();
        let reaper = move || {
            let deadline = Instant::now() + END_TIMEOUT;
            while !child.has_ended() {
                if Instant::now() > deadline {
                    warn!("Content process {} does not end.", child.id);
                    return child.kill();
                }
                thread::sleep(INTERVAL);
            }
        };
        if let Err(error) = start_thread("ContentProcessEnd", reaper) {
            warn!("Nobody looks after content process {}: {error}", self.id);
            let _ = self.lock().kill();
        }
    }

    fn kill(&self) {
        let mut child = self.lock();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
}

/// Hands its content over to a process that has been started, and is to connect to `server`.
///
/// The server's name is on the command line of the process, where everybody can read it: only the process itself is
/// listened to. If it does not connect, its content is dropped, by which the constellation learns that it has gone.
#[cfg(target_os = "linux")]
pub(crate) fn hand_over(
    mut server: IpcOneShotServer<IpcSender<UnprivilegedContent>>,
    process: &Process,
    content: UnprivilegedContent,
) -> Result<(), IpcError> {
    let (pid, child) = match process {
        Process::Unsandboxed(child) => (child.id(), Some(child.clone())),
        Process::Sandboxed(pid) => (*pid, None),
    };
    let run = move || {
        let connected = accept(&mut server, pid, child.as_ref()).and_then(|sender| {
            sender
                .send(content)
                .map_err(|error| format!("it did not take its content: {error}"))
        });
        if let Err(error) = connected {
            warn!("Content process {pid} did not start: {error}.");
            if let Some(child) = child {
                child.kill();
            }
        }
    };
    Ok(start_thread("ContentProcessStart", run)?)
}

#[cfg(target_os = "linux")]
fn accept(
    server: &mut IpcOneShotServer<IpcSender<UnprivilegedContent>>,
    pid: u32,
    child: Option<&SharedChild>,
) -> Result<IpcSender<UnprivilegedContent>, String> {
    use ipc_channel::TryRecvError;

    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match server.accept_from(pid, INTERVAL) {
            Ok((_, sender)) => return Ok(sender),
            Err(TryRecvError::Empty) if Instant::now() > deadline => {
                return Err("it did not connect in time".to_owned());
            },
            Err(TryRecvError::Empty) => {},
            Err(error) => return Err(error.to_string()),
        }
        if child.is_some_and(SharedChild::has_ended) {
            return Err("it ended".to_owned());
        }
    }
}

/// Hands its content over to a process that has been started, and is to connect to `server`.
#[cfg(not(target_os = "linux"))]
pub(crate) fn hand_over(
    server: IpcOneShotServer<IpcSender<UnprivilegedContent>>,
    _: &Process,
    content: UnprivilegedContent,
) -> Result<(), IpcError> {
    let (_receiver, sender) = server.accept()?;
    sender.send(content)
}
