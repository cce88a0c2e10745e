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
//! - `SCardTransmit` has no timeout, and `SCardCancel` does not end it: the broker kills this process instead.

use std::ffi::{CStr, CString};

use pcsc::{Card, Context, Disposition, Error, Protocols, Scope, ShareMode};

use crate::protocol::{Connected, Protocol, WorkerError};
use crate::serve::Device;

/// A PC/SC reader.
pub struct PcscReader {
    context: Context,
    name: CString,
    connection: Option<Connection>,
    buffer: Vec<u8>,
}

impl PcscReader {
    /// Connects to the PC/SC service. Nothing is done with the reader yet.
    pub fn open(name: &str) -> Result<Self, WorkerError> {
        Ok(Self {
            name: CString::new(name).map_err(|_| WorkerError::NoReader)?,
            context: Context::establish(Scope::User).map_err(worker_error)?,
            connection: None,
            buffer: vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED],
        })
    }
}

impl Device for PcscReader {
    fn connect(&mut self, reset: bool) -> Result<Connected, WorkerError> {
        let mut fresh = false;
        if self.connection.as_ref().is_some_and(|old| !old.stands()) {
            self.connection = None;
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
            atr: connection.atr()?,
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
                let transaction = card.transaction().map_err(worker_error)?;
                Ok(commands(&mut |bytes| transmit(&transaction, bytes, buffer)))
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
        return Err(WorkerError::Communication);
    }
    Ok(response.to_vec())
}

/// A connected card, left as it is when this is dropped.
struct Connection {
    /// `None` only while it is being dropped.
    card: Option<Card>,
    protocol: Protocol,
}

impl Connection {
    fn new(context: &Context, reader: &CStr) -> Result<Self, WorkerError> {
        let card = context
            .connect(reader, ShareMode::Shared, Protocols::T0 | Protocols::T1)
            .map_err(worker_error)?;
        let mut connection = Self {
            card: Some(card),
            protocol: Protocol::T1,
        };
        connection.protocol = connection.active_protocol()?;
        Ok(connection)
    }

    fn card(&self) -> Result<&Card, WorkerError> {
        self.card.as_ref().ok_or(WorkerError::NotConnected)
    }

    fn stands(&self) -> bool {
        self.card().is_ok_and(|card| {
            card.status2_owned()
                .is_ok_and(|status| status.protocol2().is_some())
        })
    }

    fn active_protocol(&self) -> Result<Protocol, WorkerError> {
        match self.status()?.protocol2() {
            Some(pcsc::Protocol::T0) => Ok(Protocol::T0),
            Some(pcsc::Protocol::T1) => Ok(Protocol::T1),
            _ => Err(WorkerError::Protocol),
        }
    }

    fn atr(&self) -> Result<Vec<u8>, WorkerError> {
        Ok(self.status()?.atr().to_vec())
    }

    fn status(&self) -> Result<pcsc::CardStatusOwned, WorkerError> {
        self.card()?.status2_owned().map_err(worker_error)
    }

    fn reset(&mut self) -> Result<(), WorkerError> {
        self.card
            .as_mut()
            .ok_or(WorkerError::NotConnected)?
            .reconnect(
                ShareMode::Shared,
                Protocols::T0 | Protocols::T1,
                Disposition::ResetCard,
            )
            .map_err(worker_error)?;
        self.protocol = self.active_protocol()?;
        Ok(())
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
        Error::NoService | Error::ServiceStopped | Error::InvalidHandle => WorkerError::NoService,
        _ => WorkerError::Communication,
    }
}
