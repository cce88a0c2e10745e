/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The card in a PC/SC reader.
//!
//! Rules that pcsclite imposes:
//! - `pcsc::Card` resets the card when it is dropped, for every program that uses it, so [`Connection`] always
//!   disconnects with `LeaveCard` itself;
//! - "insufficient buffer" means that the card has already carried the command out, so the buffer takes the longest
//!   response there is;
//! - after `SCARD_W_RESET_CARD` everything that was open in the card is gone, so the connection ends with an error
//!   and no command is ever sent twice;
//! - `SCardTransmit` has no timeout, and `SCardCancel` does not end it: the broker kills this process instead;
//! - while another program holds a transaction, the library tries again for ever, unless `PCSCLITE_NO_BLOCKING` is in
//!   the environment. With it this process can give up in time, and keep what is open in the card;
//! - a context outlives its service, but is of no use any more.

use std::ffi::{CStr, CString};
use std::thread;
use std::time::{Duration, Instant};

use pcsc::{Card, Context, Disposition, Error, Protocols, Scope, ShareMode};

use crate::protocol::{Connected, Protocol, WorkerError};
use crate::serve::Device;

const PROTOCOLS: Protocols = Protocols::T0.union(Protocols::T1);

/// How long a reset waits for the end of another program's transaction: less than what any page waits for a session, so
/// that it ends with an error and not with this process.
const LOCK_WAIT: Duration = Duration::from_secs(25);

/// How often it looks.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// How long transactions may follow each other before another program gets its turn.
const TURN: Duration = Duration::from_secs(1);

/// Another program that waits for the end of a transaction looks every 100 ms.
const PAUSE: Duration = Duration::from_millis(110);

/// A PC/SC reader.
pub struct PcscReader {
    context: Context,
    name: CString,
    connection: Option<Connection>,
    buffer: Vec<u8>,
    turn: Turn,
}

impl PcscReader {
    /// Connects to the PC/SC service. Nothing is done with the reader yet.
    pub fn open(name: &str) -> Result<Self, WorkerError> {
        Ok(Self {
            name: CString::new(name).map_err(|_| WorkerError::NoReader)?,
            context: Context::establish(Scope::User).map_err(worker_error)?,
            connection: None,
            buffer: vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED],
            turn: Turn::default(),
        })
    }
}

impl Device for PcscReader {
    fn connect(&mut self, reset: bool) -> Result<Connected, WorkerError> {
        let mut fresh = false;
        if let Some(old) = &self.connection {
            match old.check() {
                Ok(()) => {}
                Err(WorkerError::NoService) => return Err(WorkerError::NoService),
                Err(_) => self.connection = None,
            }
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                fresh = true;
                none.insert(Connection::new(&self.context, &self.name)?)
            }
        };
        if reset {
            fresh = true;
            connection.reset()?;
        }
        Ok(Connected {
            atr: connection.atr.clone(),
            protocol: connection.protocol,
            fresh,
        })
    }

    fn with_card<T>(
        &mut self,
        commands: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<Vec<u8>, WorkerError>) -> T,
    ) -> Result<T, WorkerError> {
        let connection = self.connection.as_mut().ok_or(WorkerError::NotConnected)?;
        let card = connection.card.as_mut().ok_or(WorkerError::NotConnected)?;
        let buffer = &mut self.buffer;
        match connection.protocol {
            // GET RESPONSE must follow its command at once, and other programs share the card.
            Protocol::T0 => {
                self.turn.begin()?;
                // To begin a transaction is the one thing for which the library waits in any case.
                card.status2_owned().map_err(worker_error)?;
                let transaction = card.transaction().map_err(worker_error)?;
                let result = commands(&mut |bytes| transmit(&transaction, bytes, buffer));
                drop(transaction);
                self.turn.end();
                Ok(result)
            }
            // One command is one exchange.
            Protocol::T1 => Ok(commands(&mut |bytes| transmit(card, bytes, buffer))),
        }
    }

    fn protocol(&self) -> Option<Protocol> {
        self.connection
            .as_ref()
            .map(|connection| connection.protocol)
    }

    fn disconnect(&mut self) {
        self.connection = None;
    }
}

fn transmit(card: &Card, bytes: &[u8], buffer: &mut [u8]) -> Result<Vec<u8>, WorkerError> {
    let response = card.transmit(bytes, buffer).map_err(worker_error)?;
    // A card that is pulled in the middle of a command can appear as success without a single byte.
    if response.is_empty() {
        card.status2_owned().map_err(worker_error)?;
        return Err(WorkerError::Communication);
    }
    Ok(response.to_vec())
}

/// Since when transactions have followed each other without a pause, and when the last one ended.
#[derive(Default)]
struct Turn(Option<(Instant, Instant)>);

impl Turn {
    /// Before a transaction: refuses it where others have had no chance for too long.
    fn begin(&mut self) -> Result<(), WorkerError> {
        let now = Instant::now();
        match self.0 {
            Some((since, end)) if now < end + PAUSE => {
                if now >= since + TURN {
                    return Err(WorkerError::Busy);
                }
            }
            _ => self.0 = None,
        }
        Ok(())
    }

    /// After a transaction.
    fn end(&mut self) {
        let now = Instant::now();
        let since = self.0.map_or(now, |(since, _)| since);
        self.0 = Some((since, now));
    }
}

/// A connected card, left as it is when this is dropped.
struct Connection {
    /// `None` only while it is being dropped.
    card: Option<Card>,
    protocol: Protocol,
    atr: Vec<u8>,
}

impl Connection {
    fn new(context: &Context, reader: &CStr) -> Result<Self, WorkerError> {
        let card = context
            .connect(reader, ShareMode::Shared, PROTOCOLS)
            .map_err(worker_error)?;
        let mut connection = Self {
            card: Some(card),
            protocol: Protocol::T1,
            atr: Vec::new(),
        };
        let until = Instant::now() + LOCK_WAIT;
        when_unlocked(until, || connection.read_status())?;
        Ok(connection)
    }

    fn card(&self) -> Result<&Card, WorkerError> {
        self.card.as_ref().ok_or(WorkerError::NotConnected)
    }

    /// Whether everything that was opened in the card is still there, as far as can be told.
    fn check(&self) -> Result<(), WorkerError> {
        match self.card()?.status2_owned().map_err(worker_error) {
            Ok(status) if status.protocol2().is_none() => Err(WorkerError::NotConnected),
            // Another program's transaction; what it does will show with the next command.
            Ok(_) | Err(WorkerError::Busy) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read_status(&mut self) -> Result<(), WorkerError> {
        let status = self.card()?.status2_owned().map_err(worker_error)?;
        self.protocol = match status.protocol2() {
            Some(pcsc::Protocol::T0) => Protocol::T0,
            Some(pcsc::Protocol::T1) => Protocol::T1,
            _ => return Err(WorkerError::Protocol),
        };
        self.atr = status.atr().to_vec();
        Ok(())
    }

    fn reset(&mut self) -> Result<(), WorkerError> {
        let until = Instant::now() + LOCK_WAIT;
        when_unlocked(until, || {
            self.card
                .as_mut()
                .ok_or(WorkerError::NotConnected)?
                .reconnect(ShareMode::Shared, PROTOCOLS, Disposition::ResetCard)
                .map_err(worker_error)
        })?;
        when_unlocked(until, || self.read_status())
    }
}

/// Repeats what fails as long as another program holds a transaction.
fn when_unlocked(
    until: Instant,
    mut action: impl FnMut() -> Result<(), WorkerError>,
) -> Result<(), WorkerError> {
    loop {
        match action() {
            Err(WorkerError::Busy) if Instant::now() < until => thread::sleep(LOCK_INTERVAL),
            result => return result,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(card) = self.card.take()
            && let Err((card, error)) = card.disconnect(Disposition::LeaveCard)
        {
            log::debug!("disconnect: {error}");
            // Its drop would reset the card. The handle ends with the process's connection to the service.
            std::mem::forget(card);
        }
    }
}

/// What a PC/SC error means to the broker.
fn worker_error(error: Error) -> WorkerError {
    log::debug!("PC/SC: {error}");
    match error {
        Error::UnknownReader | Error::ReaderUnavailable | Error::NoReadersAvailable => {
            WorkerError::NoReader
        }
        Error::NoSmartcard => WorkerError::NoCard,
        Error::RemovedCard => WorkerError::CardRemoved,
        Error::ResetCard => WorkerError::CardReset,
        Error::UnresponsiveCard | Error::UnpoweredCard => WorkerError::Unresponsive,
        Error::SharingViolation => WorkerError::Busy,
        Error::ProtoMismatch | Error::UnsupportedCard => WorkerError::Protocol,
        // The library's own name for a service that goes away in the middle of a call is the second.
        Error::NoService | Error::CommError | Error::ServiceStopped | Error::InvalidHandle => {
            WorkerError::NoService
        }
        _ => WorkerError::Communication,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_that_follow_each_other_leave_others_a_turn() {
        let mut turn = Turn::default();
        assert_eq!(turn.begin(), Ok(()));
        turn.end();
        assert_eq!(turn.begin(), Ok(()), "the turn has just begun");
        let Some((since, end)) = turn.0 else {
            panic!("the turn is forgotten");
        };
        // It has lasted too long.
        turn.0 = Some((since - TURN, end));
        assert_eq!(turn.begin(), Err(WorkerError::Busy));
        assert_eq!(turn.begin(), Err(WorkerError::Busy));
        // The others have had their turn.
        turn.0 = Some((since - TURN, end - PAUSE));
        assert_eq!(turn.begin(), Ok(()));
        turn.end();
        assert_eq!(turn.begin(), Ok(()));
    }
}
