/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The protocol of the reader driver vpcd, from the card's side.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use virtual_card::Card;
use virtual_card::vpcd::{Ended, serve};

/// Longer inputs would not fit into the sockets' buffers before the card reads them.
const MAX_INPUT: usize = 32 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);
/// Connections that have ended keep their ports for a second.
const PORT_WAIT: Duration = Duration::from_millis(100);

/// A command that begins with it takes the card out of its reader.
pub const REMOVAL: u8 = 0xE0;
/// A command that begins with it is answered with twice as many bytes as its second and third byte say.
pub const LONG_ANSWER: u8 = 0xE1;

const ATR: [u8; 4] = [0x3B, 0x02, b'O', b'K'];

/// Whatever a driver sends, the card gets the commands in it, the driver gets exactly one message for each of them and
/// for each request for the ATR, and the connection ends where the driver or the card does.
///
/// Input: what the driver sends.
pub fn run(bytes: &[u8]) {
    if bytes.len() > MAX_INPUT {
        return;
    }
    let expected = expected(bytes);
    let (mut driver, stream) = connect().unwrap_or_else(|error| panic!("no sockets: {error}"));
    driver
        .write_all(bytes)
        .and_then(|()| driver.shutdown(Shutdown::Write))
        .unwrap_or_else(|error| panic!("cannot write: {error}"));
    let mut card = ScriptedCard::default();
    let mut answers = Vec::new();
    let end = thread::scope(|scope| {
        let end = scope.spawn(|| serve(&mut card, stream));
        // A connection that ends with commands unread ends with an error.
        if let Err(error) = driver.read_to_end(&mut answers) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        end.join()
    });
    let end = match end {
        Ok(Ok(end)) => Ok(end),
        Ok(Err(error)) => Err(error.kind()),
        Err(panic) => std::panic::resume_unwind(panic),
    };
    assert_eq!((card, end), (expected.card, expected.end));
    // Not with a message: it would be long.
    assert!(answers == expected.answers);
}

fn connect() -> io::Result<(TcpStream, TcpStream)> {
    thread_local! {
        static LISTENER: io::Result<TcpListener> = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    }
    LISTENER.with(|listener| {
        let listener = listener
            .as_ref()
            .map_err(|error| io::Error::from(error.kind()))?;
        let address = listener.local_addr()?;
        let driver = loop {
            match TcpStream::connect(address) {
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                    thread::sleep(PORT_WAIT);
                }
                result => break result?,
            }
        };
        driver.set_read_timeout(Some(DEADLINE))?;
        let (stream, _) = listener.accept()?;
        Ok((driver, stream))
    })
}

/// What has to come of an input.
struct Expected {
    card: ScriptedCard,
    answers: Vec<u8>,
    end: Result<Ended, ErrorKind>,
}

fn expected(mut bytes: &[u8]) -> Expected {
    let mut card = ScriptedCard::default();
    let mut answers = Vec::new();
    let mut answer = |message: &[u8]| match u16::try_from(message.len()) {
        Ok(length) => {
            answers.extend(length.to_be_bytes());
            answers.extend(message);
        }
        Err(_) => answers.extend([0, 2, 0x6F, 0x00]),
    };
    let end = loop {
        let message = bytes.split_first_chunk().and_then(|(length, rest)| {
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        });
        let Some((message, rest)) = message else {
            break Ok(Ended::Disconnected);
        };
        bytes = rest;
        match *message {
            [] | [0x00] => {}
            [0x01 | 0x02] => card.reset(),
            [0x04] => answer(&ATR),
            [_] => break Err(ErrorKind::InvalidData),
            _ => {
                let response = card.transmit(message);
                if !card.is_present() {
                    break Ok(Ended::Removed);
                }
                answer(&response);
            }
        }
    };
    Expected { card, answers, end }
}

/// A card that answers with the command, or as [`REMOVAL`] and [`LONG_ANSWER`] say.
#[derive(Debug, Default, Eq, PartialEq)]
struct ScriptedCard {
    resets: usize,
    commands: Vec<Vec<u8>>,
    removed: bool,
}

impl Card for ScriptedCard {
    fn atr(&self) -> &[u8] {
        &ATR
    }

    fn reset(&mut self) {
        self.resets += 1;
    }

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        self.commands.push(command.to_vec());
        match *command {
            [REMOVAL, ..] => {
                self.removed = true;
                Vec::new()
            }
            [LONG_ANSWER, high, low, ..] => {
                vec![0x90; 2 * usize::from(u16::from_be_bytes([high, low]))]
            }
            _ => [command, &[0x90, 0x00]].concat(),
        }
    }

    fn is_present(&self) -> bool {
        !self.removed
    }
}
