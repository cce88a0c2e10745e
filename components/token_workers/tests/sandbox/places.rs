/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The rows of the table of files, once more, and each right in each place; and the one port. Nothing here is taken from the table.

use std::ffi::c_void;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io, ptr};

use token_traits::control::ModuleConfig;
use token_workers::sandbox::Kind;

use crate::attempts::{AT_CWD, MODULE, PCSC_MODULE, SOFTWARE_TPM, address, c_path, call, result};
use crate::rows::connect;

/// A right of Landlock's, or two that are used together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Right {
    Read,
    Write,
    Cut,
    Run,
    Control,
    List,
    MakeFile,
    MakeFolder,
    MakeLink,
    MakePipe,
    MakeSocket,
    MakeDevice,
    MakeDisk,
    DeleteFile,
    DeleteFolder,
    Move,
}

use Right::*;

const OF_FILES: [Right; 4] = [Read, Write, Cut, Run];
const OF_FOLDERS: [Right; 16] = [
    Read,
    Write,
    Cut,
    Run,
    Control,
    List,
    MakeFile,
    MakeFolder,
    MakeLink,
    MakePipe,
    MakeSocket,
    MakeDevice,
    MakeDisk,
    DeleteFile,
    DeleteFolder,
    Move,
];

const FOLDERS: [&str; 10] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/store",
    "/settings",
    "/tokens",
    "/home/user",
    "/etc/pkcs11",
];

const FILES: [&str; 9] = [
    "/etc/ld.so.cache",
    "/dev/urandom",
    "/etc/ssl/openssl.cnf",
    "/opt/module.so",
    "/opt/module.conf",
    "/opt/state",
    "/opt/other.so",
    "/dev/tpmrm0",
    "/etc/passwd",
];

/// What a process of this kind may do in a place, as the documentation says it.
fn rights(kind: &str, place: &str) -> &'static [Right] {
    match (kind, place) {
        ("broker", "/store") => &[Read, Write, Cut, List, MakeFile, DeleteFile],
        ("broker", "/dev/urandom") => &[Read],
        (
            MODULE | PCSC_MODULE,
            "/lib" | "/lib64" | "/usr/lib" | "/usr/lib64" | "/usr/local/lib" | "/settings",
        ) => &[Read, List],
        (
            MODULE | PCSC_MODULE,
            "/etc/ld.so.cache"
            | "/dev/urandom"
            | "/etc/ssl/openssl.cnf"
            | "/opt/module.so"
            | "/opt/module.conf",
        ) => &[Read],
        (MODULE | PCSC_MODULE, "/tokens") => &[
            Read,
            Write,
            Cut,
            List,
            MakeFile,
            MakeFolder,
            DeleteFile,
            DeleteFolder,
        ],
        (MODULE | PCSC_MODULE, "/opt/state") => &[Read, Write, Cut],
        _ => &[],
    }
}

/// That kind of process, with these places.
pub fn kind(name: &str) -> Kind<'static> {
    match name {
        MODULE | PCSC_MODULE => Kind::Module(Box::leak(Box::new(ModuleConfig {
            module: "/opt/module.so".into(),
            label: "Module".into(),
            read: vec!["/opt/module.conf".into(), "/settings".into()],
            write: vec!["/opt/state".into(), "/tokens".into()],
            pcsc: name == PCSC_MODULE,
            ..ModuleConfig::default()
        }))),
        other => crate::kind(other, Path::new("/store")),
    }
}

/// The first version of Landlock that knows a right.
fn since(right: Right) -> i32 {
    match right {
        Cut => 3,
        Control => 5,
        _ => 1,
    }
}

/// Gives this process a root folder of its own, which is this one, with all places in it.
pub fn enter(root: &Path) -> io::Result<()> {
    for place in FOLDERS {
        let folder = within(root, place);
        for name in ["deleted", "from", "to"] {
            fs::create_dir_all(folder.join(name))?;
        }
        for name in ["read", "written", "cut", "removed", "device", "from/moved"] {
            fs::write(folder.join(name), "text")?;
        }
        fs::write(folder.join("run"), "no program")?;
        fs::set_permissions(folder.join("run"), fs::Permissions::from_mode(0o755))?;
    }
    for place in FILES {
        let file = within(root, place);
        fs::create_dir_all(file.parent().expect("a folder"))?;
        fs::write(&file, "text")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir_all(root.join("proc"))?;
    // SAFETY: both take no address.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if user == 0 {
        // SAFETY: it takes no address.
        done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    } else {
        // SAFETY: it takes no address.
        done(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUSER) })?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE)?;
    let bind = libc::MS_BIND | libc::MS_REC;
    mount(Some(Path::new("/proc")), &root.join("proc"), bind)?;
    for place in FOLDERS {
        let device = within(root, place).join("device");
        mount(Some(Path::new("/dev/null")), &device, libc::MS_BIND)?;
    }
    let root = c_path(root);
    // SAFETY: the string ends with a zero.
    done(unsafe { libc::chroot(root.as_ptr()) })?;
    std::env::set_current_dir("/")
}

fn within(root: &Path, place: &str) -> PathBuf {
    root.join(place.trim_start_matches('/'))
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mount(from: Option<&Path>, to: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let from = from.map(c_path);
    let from = from.as_ref().map_or(ptr::null(), |from| from.as_ptr());
    let to = c_path(to);
    let none = ptr::null::<c_void>();
    // SAFETY: the strings end with a zero, and the other addresses are none.
    done(unsafe { libc::mount(from, to.as_ptr(), ptr::null(), flags, none) })
}

/// Uses a right in a folder, or of a file.
fn try_it(place: &Path, right: Right) -> Result<(), i32> {
    let of = |name: &str| match place.is_dir() {
        true => place.join(name),
        false => place.to_owned(),
    };
    let open = |name: &str, flags: i32| {
        let path = c_path(&of(name));
        result(
            libc::SYS_openat,
            [AT_CWD, address(&path), flags as u64, 0o600],
        )
    };
    let make = |kind: u32| {
        let path = c_path(&of(&format!("node {kind}")));
        // That of `/dev/null`, if it is a device.
        let number = libc::makedev(1, 3);
        call(
            libc::SYS_mknodat,
            [AT_CWD, address(&path), (kind | 0o600).into(), number],
        )
    };
    match right {
        Read => open("read", libc::O_RDONLY).map(drop),
        Write => open("written", libc::O_WRONLY).map(drop),
        Cut => {
            let path = c_path(&of("cut"));
            call(libc::SYS_truncate, [address(&path), 0, 0, 0])
        }
        Run => {
            let path = c_path(&of("run"));
            call(libc::SYS_execve, [address(&path), 0, 0, 0])
        }
        Control => call(
            libc::SYS_ioctl,
            [open("device", libc::O_RDONLY)?, 0x1234_5678, 0, 0],
        ),
        List => open(".", libc::O_RDONLY | libc::O_DIRECTORY).map(drop),
        MakeFile => make(libc::S_IFREG),
        MakeFolder => {
            let path = c_path(&of("folder"));
            call(libc::SYS_mkdirat, [AT_CWD, address(&path), 0o700, 0])
        }
        MakeLink => {
            let path = c_path(&of("link"));
            call(
                libc::SYS_symlinkat,
                [address(&path), AT_CWD, address(&path), 0],
            )
        }
        MakePipe => make(libc::S_IFIFO),
        MakeSocket => make(libc::S_IFSOCK),
        MakeDevice => make(libc::S_IFCHR),
        MakeDisk => make(libc::S_IFBLK),
        DeleteFile => {
            let path = c_path(&of("removed"));
            call(libc::SYS_unlinkat, [AT_CWD, address(&path), 0, 0])
        }
        DeleteFolder => {
            let path = c_path(&of("deleted"));
            let flags = libc::AT_REMOVEDIR as u64;
            call(libc::SYS_unlinkat, [AT_CWD, address(&path), flags, 0])
        }
        Move => {
            let (from, to) = (c_path(&of("from/moved")), c_path(&of("to/moved")));
            call(
                libc::SYS_renameat2,
                [AT_CWD, address(&from), AT_CWD, address(&to)],
            )
        }
    }
}

/// What is not as the documentation says, in a process with these rules of Landlock.
pub fn wrong(kind: &str, version: i32) -> Vec<String> {
    let folders = FOLDERS.iter().map(|place| (*place, &OF_FOLDERS[..]));
    let files = FILES.iter().map(|place| (*place, &OF_FILES[..]));
    let mut wrong = Vec::new();
    for (place, all) in folders.chain(files) {
        for right in all.iter().filter(|right| since(**right) <= version) {
            let seen = try_it(Path::new(place), *right);
            // The kernel's second answer is about files that would have other rules in their new folder.
            let is_refused = matches!(seen, Err(libc::EACCES | libc::EXDEV));
            if is_refused == rights(kind, place).contains(right) {
                wrong.push(format!("{place}, {right:?}: {seen:?}"));
            }
        }
    }
    // Whoever has no port of its own connects to none.
    if version >= 4 {
        for (port, expected) in [
            (
                1,
                if kind == SOFTWARE_TPM {
                    libc::ECONNREFUSED
                } else {
                    libc::EACCES
                },
            ),
            (2, libc::EACCES),
        ] {
            let seen = connect(port);
            if seen != Err(expected) {
                wrong.push(format!("port {port}: {seen:?}"));
            }
        }
    }
    wrong
}
