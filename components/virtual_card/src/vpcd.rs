/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A card behind `pcscd`, through the reader driver `vpcd` of vsmartcard.
//!
//! The driver listens on a TCP port for each of its slots (35963 and 35964 as packaged), and a
//! card that connects is inserted. Both sides send messages of a length (2 bytes, big endian) and
//! that many bytes. A message of one byte from the driver is a control: 00 power off, 01 power on,
//! 02 reset, 04 ask for the ATR; only the last is answered. Any other message is a command, and is
//! answered with the response.
//!
//! The driver waits for each answer and sends its messages in two writes, so that Nagle's algorithm
//! and delayed acknowledgements would cost 40 ms a command. So this side acknowledges at once, and
//! sends each message in one write.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_tcp_quickack;

use crate::Card;

/// The port of the driver's first slot, as packaged.
pub const DEFAULT_PORT: u16 = 35963;
/// How long a card that left its reader stays away, if it does not say so itself.
pub const REMOVAL_TIME: Duration = Duration::from_secs(1);

const POWER_OFF: u8 = 0x00;
const POWER_ON: u8 = 0x01;
const RESET: u8 = 0x02;
const GET_ATR: u8 = 0x04;

const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// Connects to a slot, as soon as something listens there. Fails when nothing does within `wait`.
pub fn connect(address: SocketAddr, wait: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + wait;
    loop {
        match TcpStream::connect(address) {
            Err(_) if Instant::now() < deadline => thread::sleep(CONNECT_INTERVAL),
            result => return result,
        }
    }
}

/// How [`serve`] ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The driver closed the connection, or ended.
    Disconnected,
    /// The card left its reader in the middle of a command.
    Removed,
}

/// Serves `card` in the slot at the other end of `stream`, until either leaves.
pub fn serve(card: &mut dyn Card, stream: TcpStream) -> io::Result<Ended> {
    let mut connection = Connection::new(stream)?;
    while let Some(message) = connection.receive()? {
        match *message {
            [] => {}
            [POWER_OFF] => {}
            [POWER_ON | RESET] => card.reset(),
            [GET_ATR] => connection.send(card.atr())?,
            [_] => {
                // Neither a control nor a command of at least four bytes.
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "unknown control byte",
                ));
            }
            ref command => {
                let response = card.transmit(command);
                if !card.is_present() {
                    // Whoever else holds the stream must not keep the card in its slot.
                    let _ = connection.reader.get_ref().shutdown(Shutdown::Both);
                    return Ok(Ended::Removed);
                }
                connection.send(&response)?;
            }
        }
    }
    Ok(Ended::Disconnected)
}

/// Serves `card` in the slot at `address` until the driver ends. A card that leaves its reader is
/// back when it says so, else after [`REMOVAL_TIME`]. `wait` bounds each wait for the driver to listen.
pub fn serve_until_disconnected(
    card: &mut dyn Card,
    address: SocketAddr,
    wait: Duration,
) -> io::Result<()> {
    while serve(card, connect(address, wait)?)? == Ended::Removed {
        thread::sleep(card.returns_after().unwrap_or(REMOVAL_TIME));
        card.reset();
    }
    Ok(())
}

/// Messages over TCP, each in a single write, with acknowledgements that are not delayed.
struct Connection {
    reader: BufReader<TcpStream>,
    /// Reused, so that a message is one write without an allocation.
    outgoing: Vec<u8>,
}

impl Connection {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::with_capacity(usize::from(u16::MAX) + 2, stream),
            outgoing: Vec::new(),
        })
    }

    /// The next message; `None` if the other side has closed the connection.
    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 2];
        self.acknowledge_at_once()?;
        match self.reader.read_exact(&mut length) {
            Err(error) if is_closed(&error) => return Ok(None),
            result => result?,
        }
        // The kernel falls back to delayed acknowledgements whenever it likes, and the driver's
        // second write waits for the acknowledgement of the first.
        self.acknowledge_at_once()?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        match self.reader.read_exact(&mut message) {
            Err(error) if is_closed(&error) => Ok(None),
            result => result.map(|()| Some(message)),
        }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        const EXECUTION_ERROR: [u8; 2] = [0x6F, 0x00];
        let (length, message) = match u16::try_from(message.len()) {
            Ok(length) => (length, message),
            Err(_) => (2, &EXECUTION_ERROR[..]),
        };
        self.outgoing.clear();
        self.outgoing.extend(length.to_be_bytes());
        self.outgoing.extend(message);
        match self.reader.get_mut().write_all(&self.outgoing) {
            // The next read reports the end.
            Err(error) if is_closed(&error) => Ok(()),
            result => result,
        }
    }

    fn acknowledge_at_once(&self) -> io::Result<()> {
        set_tcp_quickack(self.reader.get_ref(), true).map_err(io::Error::from)
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}
