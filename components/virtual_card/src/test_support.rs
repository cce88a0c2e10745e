/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! For tests: a `pcscd` of their own, with two slots of the reader driver `vpcd`, and cards in
//! them.
//!
//! `pcscd` makes its socket at a fixed place, and may be running already. So it is started in a
//! mount namespace in which /run is a temporary directory, with ports that are free. That needs
//! the programs `unshare`, `setpriv`, `mount` and `pcscd`, and either root or user namespaces.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Card;
use crate::vpcd::{self, Ended, REMOVAL_TIME};

/// The name of the environment variable by which libpcsclite finds the socket of `pcscd`.
pub const SOCKET_VARIABLE: &str = "PCSCLITE_CSOCK_NAME";

const DRIVER: &str = "/usr/lib/pcsc/drivers/serial/libifdvpcd.so";
const START_WAIT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// libpcsclite looks its socket up once in a process, so all instances of a process follow each
/// other at the same place.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A `pcscd` that ends when this is dropped, or when the thread that started it ends.
pub struct Pcscd {
    child: Child,
    directory: PathBuf,
    port: u16,
    /// Also keeps this from moving to another thread, whose end would not be the end of `pcscd`.
    _serialised: MutexGuard<'static, ()>,
}

impl Pcscd {
    /// Starts it, and waits for any other one that this process has started.
    ///
    /// Sets [`SOCKET_VARIABLE`] for this process and the ones that it starts.
    pub fn start() -> io::Result<Self> {
        let serialised = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = std::env::temp_dir().join(format!("servo-tokens-pcscd-{}", process::id()));
        let run = directory.join("run");
        let configuration = directory.join("reader.conf.d");
        fs::create_dir_all(&run)?;
        fs::create_dir_all(&configuration)?;
        let port = two_free_ports()?;
        fs::write(configuration.join("vpcd"), reader_configuration(port))?;
        static VARIABLE: Once = Once::new();
        VARIABLE.call_once(|| {
            // SAFETY: nothing in a test process reads the environment from C code before it uses
            // libpcsclite, which it cannot usefully do before a pcscd runs.
            unsafe { std::env::set_var(SOCKET_VARIABLE, socket(&directory)) };
        });

        let log = fs::File::create(directory.join("log"))?;
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let child = command
            .args(["--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-c"])
            .arg(r#"mount --bind "$1" /run && exec pcscd --foreground --config "$2""#)
            .arg("sh")
            .arg(&run)
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut pcscd = Self {
            child,
            directory,
            port,
            _serialised: serialised,
        };
        pcscd.wait_until_ready()?;
        Ok(pcscd)
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START_WAIT;
        while UnixStream::connect(self.socket()).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("pcscd did not start: {log}")));
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// The socket that clients connect to.
    pub fn socket(&self) -> PathBuf {
        socket(&self.directory)
    }

    /// The TCP port of the first slot; that of the second is one more.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Puts a card into the slot 0 or 1. It takes `pcscd` up to a second to notice.
    pub fn insert(&self, slot: u8, mut card: impl Card + 'static) -> io::Result<InsertedCard> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port + u16::from(slot)));
        let mut stream = vpcd::connect(address, START_WAIT)?;
        let current = Arc::new(Mutex::new(Some(stream.try_clone()?)));
        let inserted = InsertedCard(current.clone());
        thread::spawn(move || {
            // An error is the test's end pulling the connection away.
            while let Ok(Ended::Removed) = vpcd::serve(&mut card, stream) {
                thread::sleep(REMOVAL_TIME);
                card.reset();
                let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(slot) = current.as_mut() else {
                    return;
                };
                let Ok(next) = vpcd::connect(address, START_WAIT) else {
                    return;
                };
                let Ok(clone) = next.try_clone() else {
                    return;
                };
                *slot = clone;
                stream = next;
            }
        });
        Ok(inserted)
    }
}

impl Drop for Pcscd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A card in a slot, until this is dropped.
pub struct InsertedCard(Arc<Mutex<Option<TcpStream>>>);

impl Drop for InsertedCard {
    fn drop(&mut self) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = current.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("run/pcscd/pcscd.comm")
}

fn reader_configuration(port: u16) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "FRIENDLYNAME \"Virtual PCD\"");
    let _ = writeln!(text, "DEVICENAME /dev/null:{port:#X}");
    let _ = writeln!(text, "LIBPATH {DRIVER}");
    let _ = writeln!(text, "CHANNELID {port:#X}");
    text
}

/// The driver has two slots, on ports that follow each other.
fn two_free_ports() -> io::Result<u16> {
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        let first = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = first.local_addr()?.port();
        let second = port.checked_add(1);
        if let Some(second) = second
            && TcpListener::bind((Ipv4Addr::UNSPECIFIED, second)).is_ok()
        {
            return Ok(port);
        }
    }
    Err(io::Error::other("no two free ports follow each other"))
}
