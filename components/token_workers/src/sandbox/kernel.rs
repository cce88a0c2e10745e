/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the kernel can do, and the calls that no crate wraps.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use super::SandboxError;

/// What this kernel has for sandboxes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Support {
    /// The version of Landlock's interface.
    pub landlock: i32,
}

/// Asks the kernel whether it has what token processes need. Changes nothing.
///
/// # Errors
/// If something is missing.
pub fn support() -> Result<Support, SandboxError> {
    // The flag's value, which libc does not have.
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no pointer.
    let landlock = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    if landlock < 1 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ENOSYS) => SandboxError::NoLandlock,
            Some(libc::EOPNOTSUPP) => SandboxError::LandlockIsOff,
            _ => SandboxError::LandlockIsForbidden(error),
        });
    }
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the pointer is to a u32, which the call reads.
    let seccomp = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            ptr::from_ref(&action),
        )
    };
    if seccomp != 0 {
        return Err(SandboxError::NoSeccomp(io::Error::last_os_error()));
    }
    Ok(Support {
        landlock: i32::try_from(landlock).unwrap_or(i32::MAX),
    })
}

/// How many threads this process has.
pub(super) fn threads() -> io::Result<u64> {
    // The folder has a link for itself, one for its parent, and one for each thread.
    let links = std::fs::metadata("/proc/self/task")?.nlink();
    Ok(links.saturating_sub(2))
}

/// Makes a write beyond the limit of a file's size an error instead of the end.
pub(super) fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: no handler is installed, so none can be unsafe.
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
