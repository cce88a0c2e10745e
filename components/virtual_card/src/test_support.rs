/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! For tests: a `pcscd` of their own, with two slots of the reader driver `vpcd`, a reader that can
//! be plugged in, cards in them, and OpenSC as another program that uses them.
//!
//! `pcscd` makes its socket at a fixed place, and may be running already. So it is started in a
//! mount namespace in which /run is a temporary directory, with ports that are free. That needs
//! the programs `unshare`, `setpriv`, `mount` and `pcscd`, and either root or user namespaces.
//!
//! A reader that is plugged in is what `pcscd` takes for a USB device: libudev is replaced by
//! [`virtual_usb`], and the one driver for USB devices is another copy of `vpcd`, which keeps its
//! state in static variables.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::Card;
use crate::vpcd::{self, Ended, REMOVAL_TIME};

/// The name of the environment variable by which libpcsclite finds the socket of `pcscd`.
pub const SOCKET_VARIABLE: &str = "PCSCLITE_CSOCK_NAME";

const DRIVER: &str = "/usr/lib/pcsc/drivers/serial/libifdvpcd.so";
/// What the reader that is plugged in says it is, in hexadecimal.
const USB_VENDOR: &str = "1209";
const USB_PRODUCT: &str = "0001";
/// Where `pcscd` finds the driver of the readers that are there from the beginning.
const SERIAL_DRIVER: &str = "/usr/lib/pcsc/drivers/libifdvpcd.so";
/// Where it finds the driver of those that are plugged in.
const USB_DRIVER: &str = "/usr/lib/pcsc/drivers/virtual.bundle/Contents/Linux/libifdvpcd.so";
/// How long `pcscd` may take to start or to end.
const START_WAIT: Duration = Duration::from_secs(10);
/// How long OpenSC may take, the waits for its commands' answers not counted.
const OPENSC_WAIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// libpcsclite looks its socket up once in a process, so all instances of a process follow each
/// other at the same place.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A `pcscd` that ends when this is dropped, or when the thread that started it ends.
pub struct Pcscd {
    /// `None` while it is stopped.
    child: Option<Child>,
    directory: PathBuf,
    port: u16,
    usb_port: u16,
    /// Of the cards that are in the reader which can be plugged in, or were.
    usb_cards: Arc<Mutex<Vec<Connection>>>,
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
        let port = two_free_ports()?;
        let usb_port = two_free_ports()?;
        write_configuration(&directory, port)?;
        static VARIABLE: Once = Once::new();
        VARIABLE.call_once(|| {
            // SAFETY: nothing in a test process reads the environment from C code before it uses
            // libpcsclite, which it cannot usefully do before a pcscd runs.
            unsafe { std::env::set_var(SOCKET_VARIABLE, socket(&directory)) };
        });
        let mut pcscd = Self {
            child: None,
            directory,
            port,
            usb_port,
            usb_cards: Arc::default(),
            _serialised: serialised,
        };
        pcscd.start_again()?;
        Ok(pcscd)
    }

    /// Starts it once more after [`Pcscd::stop`]: with the same readers, and the same cards in them.
    pub fn start_again(&mut self) -> io::Result<()> {
        let log = fs::File::create(self.directory.join("log"))?;
        let run = run_directory(&self.directory);
        // Killed, it leaves its socket behind, which would be taken for a sign of life.
        if run.exists() {
            fs::remove_dir_all(&run)?;
        }
        fs::create_dir_all(&run)?;
        match fs::remove_file(usb_socket(&self.directory)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let child = command
            .args([
                "--mount",
                "setpriv",
                "--pdeathsig",
                "KILL",
                "sh",
                "-e",
                "-c",
            ])
            .arg(START)
            .arg("sh")
            .arg(&self.directory)
            .arg(stand_in_for_libudev()?)
            .env(virtual_usb::SOCKET_VARIABLE, usb_socket(&self.directory))
            .env(virtual_usb::PORT_VARIABLE, self.usb_port.to_string())
            .env(virtual_usb::SERIAL_DRIVER_VARIABLE, SERIAL_DRIVER)
            .env(virtual_usb::USB_DRIVER_VARIABLE, USB_DRIVER)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let deadline = Instant::now() + START_WAIT;
        let child = self.child.insert(child);
        while UnixStream::connect(socket(&self.directory)).is_err() {
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("pcscd did not start: {log}")));
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Ends it with this signal and waits until it has ended. Its readers go with it; the cards
    /// stay in them.
    pub fn stop(&mut self, signal: Signal) -> io::Result<()> {
        self.signal(signal)?;
        if let Some(mut child) = self.child.take() {
            end_within(&mut child, START_WAIT)?;
        }
        Ok(())
    }

    /// Sends it a signal: `STOP` makes it hang, and `CONT` go on.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let child = self.child.as_ref();
        let child = child.ok_or_else(|| io::Error::other("pcscd is not running"))?;
        Ok(rustix::process::kill_process(
            Pid::from_child(child),
            signal,
        )?)
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
    pub fn insert(&self, slot: u8, card: impl Card + 'static) -> io::Result<InsertedCard> {
        insert(self.port + u16::from(slot), card)
    }

    /// Plugs a reader in, which has two slots. There is only one; it is pulled out when this is
    /// dropped, and has to be plugged in again after [`Pcscd::stop`].
    pub fn plug_in(&self) -> io::Result<PluggedReader> {
        let reader = PluggedReader {
            socket: usb_socket(&self.directory),
            port: self.usb_port,
            cards: self.usb_cards.clone(),
        };
        let deadline = Instant::now() + START_WAIT;
        // pcscd listens for devices only some time after it listens for clients.
        while let Err(error) = reader.announce("add") {
            if Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(reader)
    }

    /// Has OpenSC's `opensc-tool` do something with the card in a reader, counted from 0, without
    /// its card drivers, and returns what it writes. It holds a transaction on the card from its
    /// beginning to its end.
    ///
    /// # Errors
    /// If it fails, with what it writes, or does not end in time.
    pub fn opensc_tool(&self, reader: u8, arguments: &[&str]) -> io::Result<String> {
        self.start_opensc_tool(reader, arguments)?.wait()
    }

    /// As [`Pcscd::opensc_tool`], without waiting.
    pub fn start_opensc_tool(&self, reader: u8, arguments: &[&str]) -> io::Result<OpenscTool> {
        let reader = reader.to_string();
        OpenscTool::start(
            &[
                &["--reader", &reader, "--card-driver", "default"],
                arguments,
            ]
            .concat(),
            tempfile::tempfile_in(&self.directory)?,
        )
    }
}

impl Drop for Pcscd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A reader, until this is dropped.
pub struct PluggedReader {
    socket: PathBuf,
    port: u16,
    cards: Arc<Mutex<Vec<Connection>>>,
}

impl PluggedReader {
    /// What the names of its two slots begin with.
    pub const NAME: &str = "Pluggable PCD";

    /// Puts a card into the slot 0 or 1. It takes `pcscd` up to a second to notice. The card stays
    /// there while the reader is pulled out.
    pub fn insert(&self, slot: u8, card: impl Card + 'static) -> io::Result<InsertedCard> {
        let inserted = insert(self.port + u16::from(slot), card)?;
        let mut cards = self.cards.lock().unwrap_or_else(PoisonError::into_inner);
        cards.push(inserted.0.clone());
        Ok(inserted)
    }

    fn announce(&self, action: &str) -> io::Result<()> {
        let message = format!("{action} 1-1:1.0 {USB_VENDOR} {USB_PRODUCT}");
        let sent = UnixDatagram::unbound()?.send_to(message.as_bytes(), &self.socket);
        sent.map(drop)
    }
}

impl Drop for PluggedReader {
    fn drop(&mut self) {
        // A command that is under way fails at once, as it does where a cable is pulled.
        let cards = self.cards.lock().unwrap_or_else(PoisonError::into_inner);
        for card in cards.iter() {
            if let Some(stream) = &*card.lock() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        // Where pcscd has been stopped, there is nobody to be told.
        let _ = self.announce("remove");
    }
}

fn insert(port: u16, card: impl Card + 'static) -> io::Result<InsertedCard> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = vpcd::connect(address, START_WAIT)?;
    let connection = Connection(Arc::new(Mutex::new(Some(stream.try_clone()?))));
    let inserted = InsertedCard(connection.clone());
    thread::spawn(move || connection.keep(card, address, stream));
    Ok(inserted)
}

/// A card in a slot, until this is dropped.
pub struct InsertedCard(Connection);

impl Drop for InsertedCard {
    fn drop(&mut self) {
        if let Some(stream) = self.0.lock().take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What connects a card to its slot; `None` once the card has been taken out.
#[derive(Clone)]
struct Connection(Arc<Mutex<Option<TcpStream>>>);

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the card until it is taken out. Where the card leaves by itself, it comes back; where
    /// `pcscd` ends, this waits for the next one.
    fn keep(&self, mut card: impl Card, address: SocketAddr, mut stream: TcpStream) {
        loop {
            // An error is a connection that broke, like that to a driver that was killed.
            if let Ok(Ended::Removed) = vpcd::serve(&mut card, stream) {
                thread::sleep(card.returns_after().unwrap_or(REMOVAL_TIME));
                card.reset();
            }
            stream = loop {
                if self.lock().is_none() {
                    return;
                }
                if let Ok(next) = TcpStream::connect(address) {
                    break next;
                }
                thread::sleep(POLL_INTERVAL);
            };
            match (&mut *self.lock(), stream.try_clone()) {
                (Some(current), Ok(clone)) => *current = clone,
                _ => return,
            }
        }
    }
}

/// A running `opensc-tool`, killed when this is dropped.
pub struct OpenscTool {
    child: Child,
    output: fs::File,
}

impl OpenscTool {
    fn start(arguments: &[&str], output: fs::File) -> io::Result<Self> {
        let child = Command::new("opensc-tool")
            .args(arguments)
            .env("LANG", "C")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .spawn()?;
        Ok(Self { child, output })
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has written so far, errors included.
    pub fn output(&self) -> io::Result<String> {
        use std::os::unix::fs::FileExt;
        let mut text = vec![0; usize::try_from(self.output.metadata()?.len()).unwrap_or(0)];
        self.output.read_exact_at(&mut text, 0)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it fails, with what it wrote, or does not end in time.
    pub fn wait(mut self) -> io::Result<String> {
        let status = end_within(&mut self.child, OPENSC_WAIT)?;
        let text = self.output()?;
        if !status.success() {
            return Err(io::Error::other(format!("opensc-tool: {status}\n{text}")));
        }
        Ok(text)
    }
}

impl Drop for OpenscTool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process; one that does not end in time is killed.
fn end_within(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// What runs in the mount namespace. Arguments: the directory, the stand-in for libudev.
const START: &str = r#"
    mount --bind "$1/run" /run
    mount --bind "$1/drivers" /usr/lib/pcsc/drivers
    LD_PRELOAD="$2" exec pcscd --foreground --config "$1/reader.conf.d"
"#;

/// Writes what `pcscd` reads at its start.
fn write_configuration(directory: &Path, port: u16) -> io::Result<()> {
    // Whatever an earlier one of this process left behind.
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let readers = directory.join("reader.conf.d");
    let drivers = directory.join("drivers");
    let bundle = drivers.join("virtual.bundle/Contents");
    let usb_drivers = bundle.join("Linux");
    fs::create_dir_all(&readers)?;
    fs::create_dir_all(&usb_drivers)?;
    fs::copy(DRIVER, drivers.join("libifdvpcd.so"))?;
    fs::copy(DRIVER, usb_drivers.join("libifdvpcd.so"))?;
    fs::write(readers.join("vpcd"), reader_configuration(port))?;
    fs::write(bundle.join("Info.plist"), bundle_configuration())
}

fn bundle_configuration() -> String {
    let name = PluggedReader::NAME;
    format!(
        "<plist version=\"1.0\"><dict>\n\
         <key>CFBundleExecutable</key> <string>libifdvpcd.so</string>\n\
         <key>CFBundleName</key> <string>VIRTUAL</string>\n\
         <key>ifdVendorID</key> <array> <string>0x{USB_VENDOR}</string> </array>\n\
         <key>ifdProductID</key> <array> <string>0x{USB_PRODUCT}</string> </array>\n\
         <key>ifdFriendlyName</key> <array> <string>{name}</string> </array>\n\
         </dict></plist>\n"
    )
}

/// Cargo puts it beside the programs of the tests, or one directory below other programs.
fn stand_in_for_libudev() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().unwrap_or(Path::new("."));
    let name = "libvirtual_usb.so";
    let places = [directory.join(name), directory.join("deps").join(name)];
    places
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| io::Error::other(format!("no {name} beside {}", program.display())))
}

fn usb_socket(directory: &Path) -> PathBuf {
    directory.join("usb")
}

fn run_directory(directory: &Path) -> PathBuf {
    directory.join("run")
}

fn socket(directory: &Path) -> PathBuf {
    run_directory(directory).join("pcscd/pcscd.comm")
}

fn reader_configuration(port: u16) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "FRIENDLYNAME \"Virtual PCD\"");
    let _ = writeln!(text, "DEVICENAME /dev/null:{port:#X}");
    let _ = writeln!(text, "LIBPATH {SERIAL_DRIVER}");
    let _ = writeln!(text, "CHANNELID {port:#X}");
    text
}

/// The driver has two slots, on ports that follow each other. They come from below those that the
/// kernel gives to connections: a test that makes many leaves no two free neighbours there.
fn two_free_ports() -> io::Result<u16> {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    // Test processes that start together begin at different places, and never at the same one again.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let is_free = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    let pairs = (PORTS.end - PORTS.start) / 2;
    // A prime keeps processes apart whose numbers follow each other.
    let begin = (process::id().wrapping_mul(37) % u32::from(pairs)) as u16;
    for _ in 0..pairs {
        let pair = (begin + NEXT.fetch_add(1, Ordering::Relaxed) % pairs) % pairs;
        let port = PORTS.start + 2 * pair;
        if is_free(port) && is_free(port + 1) {
            return Ok(port);
        }
    }
    Err(io::Error::other("no two free ports follow each other"))
}
