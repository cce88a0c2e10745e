/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! How a token process begins: it connects to the main process, opens its device, locks itself down ([`crate::sandbox`]),
//! and serves.

use std::io;
use std::sync::mpsc;

use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use rustix::process::Signal;
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
        let (ready, is_ready) = mpsc::channel();
        std::thread::Builder::new()
            .name("lifeline".into())
            .spawn(move || {
                // Without anybody who waits for it, this process ends already.
                let _ = ready.send(());
                // Nothing is ever sent, so the only outcome is that the channel has closed.
                let _ = self.0.recv();
                end();
            })?;
        // The first steps of a thread wait for libraries that are being loaded, and a module may hang there.
        is_ready.recv().map_err(io::Error::other)
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

/// Ends this process at once, without what libraries do at the end of a process.
pub fn end() -> ! {
    end_with(0)
}

/// The same with a status.
pub fn end_with(status: i32) -> ! {
    // SAFETY: it takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}

/// A connection to the main process, which does not know yet that this process serves.
pub struct Connection<ToChild, FromChild> {
    server: IpcSender<Hello<ToChild, FromChild>>,
    hello: Hello<ToChild, FromChild>,
    channels: Channels<ToChild, FromChild>,
}

/// Connects to the main process's one-shot server of that name.
pub fn connect<ToChild, FromChild>(token: String) -> io::Result<Connection<ToChild, FromChild>>
where
    ToChild: for<'de> Deserialize<'de> + Serialize,
    FromChild: for<'de> Deserialize<'de> + Serialize,
{
    end_with_parent()?;
    let (to_child, requests) = ipc::channel()?;
    let (replies, from_child) = ipc::channel()?;
    let (lifeline, watched) = ipc::channel()?;
    Ok(Connection {
        server: IpcSender::connect(token)?,
        hello: Hello {
            version: WIRE_VERSION,
            to_child,
            from_child,
            lifeline,
        },
        channels: Channels {
            requests,
            replies,
            lifeline: Lifeline(watched),
        },
    })
}

impl<ToChild, FromChild> Connection<ToChild, FromChild> {
    /// Tells the main process that this one serves.
    pub fn report(self) -> io::Result<Channels<ToChild, FromChild>> {
        self.server.send(self.hello).map_err(io::Error::other)?;
        Ok(self.channels)
    }
}

/// Asks the kernel to kill this process with the thread that started it, which the main process keeps for its own whole
/// life. [`Lifeline`] covers what this cannot: a parent that died before the call.
fn end_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}
