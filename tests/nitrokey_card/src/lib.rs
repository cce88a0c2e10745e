/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Nitrokey's PIV application (`piv-authenticator`) and OpenPGP application (`opcard`) as virtual
//! cards.
//!
//! They are the firmware of a real token, written by others, and so an independent judge of what the
//! engine and the broker send. They know no logical channels (6881) and no secure messaging (6882).
//! Their keys come from a generator with a fixed seed: they are for tests only.

mod dispatch;

use std::io;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use heapless::{Vec as BoundedVec, VecView};
use iso7816::command::{CommandView, FromSliceError};
use iso7816::{Command, Status};
use tempfile::TempDir;
use trussed::virt::{StorageConfig, StoreConfig, with_platform};
use virtual_card::{Card, MAX_DELAY};

use crate::dispatch::{BACKENDS, Client, Dispatcher};

/// T=1. Historical bytes: selection by full and partial DF name, command chaining and extended
/// lengths, no logical channels, and a name.
const ATR: [u8; 18] = [
    0x3B, 0x8E, 0x01, 0x80, 0x73, 0xC0, 0x01, 0xC0, 0x58, b'N', b'i', b't', b'r', b'o', b'k', b'e',
    b'y', 0x1C,
];
/// The same for T=0, without extended lengths.
const T0_ATR: [u8; 16] = [
    0x3B, 0x0E, 0x80, 0x73, 0xC0, 0x01, 0x80, 0x58, b'N', b'i', b't', b'r', b'o', b'k', b'e', b'y',
];

/// The longest command, chained ones put together.
const MAX_COMMAND: usize = 7609;
/// The longest response.
const MAX_RESPONSE: usize = 7609;

const OK: [u8; 2] = [0x90, 0x00];
const WRONG_LENGTH: [u8; 2] = [0x67, 0x00];
const CONDITIONS_NOT_SATISFIED: [u8; 2] = [0x69, 0x85];
const CLA_NOT_SUPPORTED: [u8; 2] = [0x6E, 0x00];
const INS_SELECT: u8 = 0xA4;
const INS_GET_RESPONSE: u8 = 0xC0;

/// A PIV card; its default PIN is 123456.
pub type PivCard = NitrokeyCard<Piv>;

/// An OpenPGP card; its default PINs are 123456 for the user and 12345678 for the administrator.
pub type OpenPgpCard = NitrokeyCard<OpenPgp>;

/// An application of the firmware.
pub trait Application: Send + 'static {
    /// What the platform calls it.
    const NAME: &str;
    /// It, on a platform that is lent to it.
    #[doc(hidden)]
    type Running<'a>;

    #[doc(hidden)]
    fn start<'a>(client: Client<'a>) -> Self::Running<'a>;

    #[doc(hidden)]
    fn respond(
        running: &mut Self::Running<'_>,
        command: CommandView<'_>,
        reply: &mut VecView<u8>,
    ) -> Result<(), Status>;
}

/// `piv-authenticator`.
pub struct Piv;

impl Application for Piv {
    const NAME: &str = "piv";
    type Running<'a> = piv_authenticator::Authenticator<Client<'a>>;

    fn start<'a>(client: Client<'a>) -> Self::Running<'a> {
        piv_authenticator::Authenticator::new(client, piv_authenticator::Options::default())
    }

    fn respond(
        running: &mut Self::Running<'_>,
        command: CommandView<'_>,
        reply: &mut VecView<u8>,
    ) -> Result<(), Status> {
        running.respond(command, reply)
    }
}

/// `opcard`.
pub struct OpenPgp;

impl Application for OpenPgp {
    const NAME: &str = "opcard";
    type Running<'a> = opcard::Card<Client<'a>>;

    fn start<'a>(client: Client<'a>) -> Self::Running<'a> {
        opcard::Card::new(client, opcard::Options::default())
    }

    fn respond(
        running: &mut Self::Running<'_>,
        command: CommandView<'_>,
        reply: &mut VecView<u8>,
    ) -> Result<(), Status> {
        running.handle(command, reply)
    }
}

/// A card. What it keeps in its file system outlives a reset.
pub struct NitrokeyCard<A> {
    atr: &'static [u8],
    storage: TempDir,
    powered: Option<Powered>,
    application: PhantomData<A>,
}

/// The application from one reset to the next, on a thread of its own: its platform is lent to it
/// for as long as a function runs.
struct Powered {
    commands: Sender<Vec<u8>>,
    answers: Receiver<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl<A: Application> NitrokeyCard<A> {
    /// A new card, not powered yet.
    pub fn new() -> io::Result<Self> {
        Self::with_atr(&ATR)
    }

    /// A new card that speaks T=0, not powered yet. The application needs no other glue for that:
    /// without Le, it keeps its whole answer for GET RESPONSE. It takes no ENVELOPE.
    pub fn over_t0() -> io::Result<Self> {
        Self::with_atr(&T0_ATR)
    }

    fn with_atr(atr: &'static [u8]) -> io::Result<Self> {
        Ok(Self {
            atr,
            storage: TempDir::new()?,
            powered: None,
            application: PhantomData,
        })
    }
}

impl<A> NitrokeyCard<A> {
    fn power_down(&mut self) {
        if let Some(Powered {
            commands, thread, ..
        }) = self.powered.take()
        {
            drop(commands);
            // If it has panicked, it was in the middle of a command, which went unanswered.
            let _ = thread.join();
        }
    }
}

impl<A: Application> Card for NitrokeyCard<A> {
    fn atr(&self) -> &[u8] {
        self.atr
    }

    fn reset(&mut self) {
        self.power_down();
        let (commands, received) = channel();
        let (answer, answers) = channel();
        let storage = self.storage.path().to_owned();
        self.powered = Some(Powered {
            commands,
            answers,
            thread: thread::spawn(move || run::<A>(storage, &received, &answer)),
        });
    }

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        let Some(powered) = &self.powered else {
            return Vec::new();
        };
        match powered.commands.send(command.to_vec()) {
            Ok(()) => powered.answers.recv_timeout(MAX_DELAY).unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }
}

impl<A> Drop for NitrokeyCard<A> {
    fn drop(&mut self) {
        self.power_down();
    }
}

/// Carries out commands until no more can come.
fn run<A: Application>(storage: PathBuf, commands: &Receiver<Vec<u8>>, answer: &Sender<Vec<u8>>) {
    let store = StoreConfig {
        internal: StorageConfig::filesystem(storage.join("internal")),
        external: StorageConfig::filesystem(storage.join("external")),
        volatile: StorageConfig::ram(),
    };
    with_platform(store, |platform| {
        platform.run_client_with_backends(A::NAME, Dispatcher::default(), BACKENDS, |client| {
            let mut firmware = Firmware::<A> {
                application: A::start(client),
                is_selected: false,
                chained: None,
                pending: Vec::new(),
            };
            for command in commands {
                if answer.send(firmware.transmit(&command)).is_err() {
                    break;
                }
            }
        });
    });
}

/// What the application expects of the firmware around it: command chaining, and responses in
/// parts.
struct Firmware<'a, A: Application> {
    application: A::Running<'a>,
    is_selected: bool,
    /// The links of a chain so far.
    chained: Option<Command<MAX_COMMAND>>,
    /// What GET RESPONSE fetches.
    pending: Vec<u8>,
}

impl<A: Application> Firmware<'_, A> {
    fn transmit(&mut self, bytes: &[u8]) -> Vec<u8> {
        let link = match Command::<MAX_COMMAND>::try_from(bytes) {
            Ok(command) => command,
            Err(FromSliceError::InvalidClass) => return CLA_NOT_SUPPORTED.to_vec(),
            Err(_) => return WRONG_LENGTH.to_vec(),
        };
        let instruction = u8::from(link.instruction());
        if instruction == INS_GET_RESPONSE {
            return self.send_part(link.expected(), OK);
        }
        self.pending.clear();

        let is_last = link.class().chain().last_or_only();
        let command = match self.chained.take() {
            None => link,
            Some(mut chain) => {
                if chain.extend_from_command(&link).is_err() {
                    return WRONG_LENGTH.to_vec();
                }
                chain
            }
        };
        if !is_last {
            self.chained = Some(command);
            return OK.to_vec();
        }
        if !self.is_selected && instruction != INS_SELECT {
            return CONDITIONS_NOT_SATISFIED.to_vec();
        }

        let mut reply = BoundedVec::<u8, MAX_RESPONSE>::new();
        match A::respond(&mut self.application, command.as_view(), &mut reply) {
            Ok(()) => {
                self.is_selected |= instruction == INS_SELECT;
                self.pending = reply.to_vec();
                self.send_part(command.expected(), OK)
            }
            Err(status) => <[u8; 2]>::from(status).to_vec(),
        }
    }

    /// As much of what is pending as the caller expects.
    fn send_part(&mut self, expected: usize, status: [u8; 2]) -> Vec<u8> {
        let rest = self.pending.split_off(self.pending.len().min(expected));
        let mut part = std::mem::replace(&mut self.pending, rest);
        part.extend(match u8::try_from(self.pending.len()) {
            Ok(0) => status,
            Ok(rest) => [0x61, rest],
            Err(_) => [0x61, 0x00],
        });
        part
    }
}
