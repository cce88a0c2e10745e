/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The loop of a worker that talks to a card.

use std::time::{Duration, Instant};

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use secure_element::apdu::CommandApdu;
use secure_element::exchange::{self, ExchangeError, Kind};
use token_traits::Frame;

use crate::protocol::{
    Connected, Protocol, ReplyBody, RequestBody, WorkerError, WorkerMessage, WorkerRequest,
};

/// A card behind some device.
pub trait Device {
    /// Connects to the card, after a reset of it if asked for, or makes sure that the connection still stands.
    fn connect(&mut self, reset: bool) -> Result<Connected, WorkerError>;

    /// Gives `commands` a way to exchange bytes with the connected card, over its transmission protocol. Where one
    /// command takes several exchanges, nobody else's come between. What comes back may be too short to be a response.
    fn with_card<T>(
        &mut self,
        commands: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<Vec<u8>, WorkerError>) -> T,
    ) -> Result<T, WorkerError>;

    /// The protocol of the connection, if there is one.
    fn protocol(&self) -> Option<Protocol>;

    /// Lets go of the card and leaves it as it is.
    fn disconnect(&mut self);
}

/// Serves a device until the channel closes or the peer breaks the protocol.
pub fn serve(device: &mut impl Device, requests: &IpcReceiver<Frame>, replies: &IpcSender<Frame>) {
    while let Ok(frame) = requests.recv() {
        let WorkerRequest { id, body } = match frame.decode() {
            Ok(request) => request,
            Err(error) => {
                log::error!("the broker sent something else than a request: {error}");
                break;
            }
        };
        let result = perform(device, body);
        if let Err(error) = &result {
            log::debug!("request {id}: {error}");
        }
        let message = WorkerMessage::Reply {
            request: id,
            result,
        };
        let Ok(frame) = Frame::encode(&message) else {
            log::error!("a reply does not fit into a frame");
            break;
        };
        if replies.send(frame).is_err() {
            break;
        }
    }
    device.disconnect();
}

fn perform(device: &mut impl Device, body: RequestBody) -> Result<ReplyBody, WorkerError> {
    let result = match body {
        RequestBody::Connect { reset } => device.connect(reset).map(ReplyBody::Connected),
        RequestBody::Reset => device.connect(true).map(ReplyBody::Connected),
        RequestBody::Transmit {
            command,
            select,
            timeout_ms,
        } => transmit(device, &command, select, timeout_ms).map(ReplyBody::Response),
        RequestBody::Disconnect => {
            device.disconnect();
            Ok(ReplyBody::Done)
        }
    };
    if let Err(error) = result
        && !error.keeps_connection()
    {
        device.disconnect();
    }
    result
}

fn transmit(
    device: &mut impl Device,
    command: &[u8],
    select: bool,
    timeout_ms: u32,
) -> Result<Vec<u8>, WorkerError> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
    let command = CommandApdu::parse(command).map_err(|_| WorkerError::Command)?;
    let kind = if select { Kind::Select } else { Kind::Ordinary };
    let protocol = match device.protocol().ok_or(WorkerError::NotConnected)? {
        Protocol::T0 => exchange::Protocol::T0,
        Protocol::T1 => exchange::Protocol::T1,
    };
    let response = device.with_card(|exchange| {
        exchange::run(&command, protocol, kind, |bytes| {
            if Instant::now() >= deadline {
                return Err(WorkerError::Timeout);
            }
            exchange(bytes)
        })
    })??;
    Ok(response.encode())
}

impl From<ExchangeError> for WorkerError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Class(_) => Self::Command,
            // No status word: the card went away in the middle of the command.
            ExchangeError::Response(_) => Self::Communication,
            ExchangeError::TooMuchData | ExchangeError::TooManySteps => Self::ResponseTooLong,
            ExchangeError::Ended => Self::Communication,
        }
    }
}
