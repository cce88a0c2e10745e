/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a token process gives up once its device is open.
//!
//! [`table`] says, for each kind of process, which system calls it keeps, which files and how much of the machine. All the
//! rest is forbidden: a system call that is not in the table ends the process with `SIGSYS`. `docs/sandbox.md` explains the
//! table; a test keeps the two alike.
//!
//! There is no way to run without: where the kernel cannot do it, [`lock_down`] fails, and so does the process.

mod apply;
#[expect(
    unsafe_code,
    reason = "asks the kernel what it can do, and sets a signal's disposition"
)]
mod kernel;
pub mod table;

use std::path::Path;

use token_traits::control::ModuleConfig;

pub use self::apply::{Profile, Step};
pub use self::kernel::{Support, support};

/// The kinds of token processes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind<'a> {
    /// Decides, and opens no device.
    Broker {
        /// The folder in which it keeps what outlives it.
        store: Option<&'a Path>,
    },
    /// Talks to the card in one PC/SC reader.
    PcscReader,
    /// Watches the PC/SC service.
    PcscMonitor,
    /// Is a card in software.
    VirtualCard,
    /// Runs a PKCS#11 module, which is loaded after the lock-down: it is not trusted.
    Module(&'a ModuleConfig),
    /// Talks to the TPM.
    Tpm {
        /// Where a TPM in software listens, on the loopback interface: its library connects to it for each command.
        port: Option<u16>,
    },
}

/// Why a process cannot be locked down. The text says what is missing.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel has no Landlock.
    #[error(
        "this kernel has no Landlock, without which token processes do not run: it takes Linux 5.13 or newer, built with \
         CONFIG_SECURITY_LANDLOCK"
    )]
    NoLandlock,
    /// The kernel has it, but it was not turned on.
    #[error(
        "Landlock is turned off in this kernel, and without it token processes do not run: add landlock to the list in \
         the boot parameter lsm="
    )]
    LandlockIsOff,
    /// Something forbids to ask for it.
    #[error(
        "Landlock cannot be used ({0}), perhaps because a container forbids it; without it token processes do not run"
    )]
    LandlockIsForbidden(std::io::Error),
    /// The kernel filters no system calls, or cannot end a process that makes one.
    #[error(
        "this kernel cannot filter system calls ({0}), without which token processes do not run: it takes Linux 4.14 or \
         newer, built with CONFIG_SECCOMP_FILTER"
    )]
    NoSeccomp(std::io::Error),
    /// The rules of Landlock could not be set.
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter is wrong, or could not be set.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// Another step failed.
    #[error("{0}: {1}")]
    Step(&'static str, std::io::Error),
    /// Rules apply to a thread and to those that it starts, not to those that were there before.
    #[error("{0} threads run already")]
    Threads(u64),
}

/// Whether this program was built for benchmarks to compare with. That takes a flag of the compiler: nobody can turn the
/// sandbox off in a program, nor a crate by one of its features.
const IS_OFF: bool = cfg!(token_sandbox = "off");

/// Gives up everything that a process of this kind does not need. Called with the device open and before any other thread
/// runs. [`no_more_threads`] follows.
///
/// # Errors
/// If anything of it fails: then the process is to end.
pub fn lock_down(kind: Kind<'_>) -> Result<(), SandboxError> {
    support()?;
    let threads = kernel::threads().map_err(|error| SandboxError::Step("/proc", error))?;
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    if IS_OFF {
        return Ok(());
    }
    let profile = Profile::of(kind);
    for step in Step::LOCK_DOWN {
        profile.apply(step)?;
    }
    Ok(())
}

/// Gives up starting threads. Called in a process that is locked down when its last thread runs, and before it reads
/// anything that it does not trust.
///
/// # Errors
/// If that fails: then the process is to end.
pub fn no_more_threads() -> Result<(), SandboxError> {
    give_up(&table::all_of(table::START.calls))
}

/// Gives up making memory executable. Called in the worker of a PKCS#11 module when that is loaded and initialized, in place
/// of [`no_more_threads`]: modules start threads whenever they like.
///
/// # Errors
/// If that fails: then the process is to end.
pub fn no_more_code() -> Result<(), SandboxError> {
    give_up(table::LOADED)
}

fn give_up(calls: &[table::Call]) -> Result<(), SandboxError> {
    if IS_OFF {
        return Ok(());
    }
    apply::give_up(calls)
}
