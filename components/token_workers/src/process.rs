/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! How a token process begins: it reports to the main process, opens its device, locks itself down, and serves.

use std::io;

use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use rustix::process::{DumpableBehavior, Signal};
use serde::{Deserialize, Serialize};
use token_traits::control::Hello;
use token_traits::wire::WIRE_VERSION;

/// A token process's channels to and from whoever it serves.
pub struct Channels<ToChild, FromChild> {
    /// What it is asked.
    pub requests: IpcReceiver<ToChild>,
    /// What it answers.
    pub replies: IpcSender<FromChild>,
    /// Closes when the main process is gone.
    pub lifeline: Lifeline,
}

/// Closes when the main process is gone, however it ended.
pub struct Lifeline(IpcReceiver<()>);

impl Lifeline {
    /// Starts the thread that ends this process with the main process, even while the serving thread hangs in a device.
    pub fn watch(self) -> io::Result<()> {
        std::thread::Builder::new()
            .name("lifeline".into())
            .spawn(move || {
                // Nothing is ever sent, so the only outcome is that the channel has closed.
                let _ = self.0.recv();
                std::process::exit(0);
            })?;
        Ok(())
    }
}

/// Closes every file descriptor that the main process let slip into this one, except the standard streams.
///
/// # Safety
///
/// Nothing in this process owns a file descriptor yet, the standard streams excepted.
pub unsafe fn close_inherited_fds() -> io::Result<()> {
    // SAFETY: the caller promises that no object relies on any of these descriptors.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects to the main process's one-shot server of that name and reports to it.
pub fn connect<ToChild, FromChild>(token: String) -> io::Result<Channels<ToChild, FromChild>>
where
    ToChild: for<'de> Deserialize<'de> + Serialize,
    FromChild: for<'de> Deserialize<'de> + Serialize,
{
    end_with_parent()?;
    let (to_child, requests) = ipc::channel()?;
    let (replies, from_child) = ipc::channel()?;
    let (lifeline, watched) = ipc::channel()?;
    IpcSender::connect(token)?
        .send(Hello::<ToChild, FromChild> {
            version: WIRE_VERSION,
            to_child,
            from_child,
            lifeline,
        })
        .map_err(io::Error::other)?;
    Ok(Channels {
        requests,
        replies,
        lifeline: Lifeline(watched),
    })
}

/// Asks the kernel to kill this process with the thread that started it, which the main process keeps for its own whole
/// life. [`Lifeline`] covers what this cannot: a parent that died before the call.
fn end_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Gives up what this process does not need any more. Called with the device open and before any other thread runs.
///
/// After it the process gains no privileges through `execve` and can neither be traced nor dumped by others of the
/// same user. The Landlock and seccomp rules of each process kind belong at the end of this function.
pub fn lock_down() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
