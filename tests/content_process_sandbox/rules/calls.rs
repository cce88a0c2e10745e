/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! System calls as they are, without what the C library does before and after.

use std::ffi::{CString, c_long};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// The result, or the error number.
pub type Result<T = u64> = std::result::Result<T, i32>;

pub const HERE: u64 = libc::AT_FDCWD as u64;
/// No descriptor, and no process.
pub const NONE: u64 = u64::MAX;
pub const ERRORS: u64 = 2;

/// Makes a system call; arguments that are left out are 0.
pub fn call(number: c_long, arguments: &[u64]) -> Result {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: no caller gives addresses but those of its own variables, with their lengths.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    u64::try_from(result).map_err(|_| {
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or_default()
    })
}

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path")
}

pub fn address<T: ?Sized>(value: &T) -> u64 {
    ptr::from_ref(value).cast::<u8>() as u64
}

pub fn open(path: &Path, flags: i32) -> Result {
    let path = c_path(path);
    let pointer = path.as_ptr() as u64;
    call(libc::SYS_openat, &[HERE, pointer, flags as u64, 0o600])
}

pub fn socket(family: i32, kind: i32) -> Result {
    let kind = (kind | libc::SOCK_CLOEXEC) as u64;
    call(libc::SYS_socket, &[family as u64, kind])
}

pub fn pair(family: i32, kind: i32) -> Result<[u64; 2]> {
    let ends = [0_i32; 2];
    let kind = (kind | libc::SOCK_CLOEXEC) as u64;
    call(
        libc::SYS_socketpair,
        &[family as u64, kind, 0, address(&ends)],
    )?;
    Ok(ends.map(|end| end as u64))
}

/// The address of a local socket.
pub fn local(path: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path].concat()
}

/// The address of a server on the loopback interface.
pub fn loopback(port: u16) -> Vec<u8> {
    let mut name = Vec::from((libc::AF_INET as u16).to_ne_bytes());
    name.extend(port.to_be_bytes());
    name.extend([127, 0, 0, 1]);
    name.extend([0; 8]);
    name
}

/// A page of memory that can be read and written.
pub fn page() -> Result {
    let rights = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    call(libc::SYS_mmap, &[0, 4096, rights, flags, NONE])
}
