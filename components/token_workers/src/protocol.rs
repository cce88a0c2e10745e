/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the broker and a worker say to each other, each message in a [`token_traits::Frame`].
//!
//! A worker serves one request at a time, in the order of arrival. The broker keeps at most one in flight per worker,
//! so commands to one card never overlap.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The broker to a worker that talks to a card.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkerRequest {
    /// Names the reply; goes up with each request.
    pub id: u64,
    /// What is asked.
    pub body: RequestBody,
}

/// What a worker is asked to do.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub enum RequestBody {
    /// Connect to the card, or make sure that the connection still stands. Answered by [`ReplyBody::Connected`].
    Connect {
        /// Reset the card first, because nobody knows what an earlier worker left behind in it (open channels,
        /// verified PINs).
        reset: bool,
    },
    /// Send a command and return its response. Answered by [`ReplyBody::Response`].
    Transmit {
        /// The command APDU. The broker has checked it and set its channel.
        #[serde(with = "serde_bytes")]
        command: Vec<u8>,
        /// Whether it is the SELECT that opens a channel: on T=0, a warning is followed by GET RESPONSE then.
        select: bool,
        /// How long it may take, in milliseconds. A worker does not begin another exchange with the card after that;
        /// one that the card never ends is ended by killing the worker.
        timeout_ms: u32,
    },
    /// Reset the card, warm. Answered by [`ReplyBody::Connected`].
    Reset,
    /// Leave the card as it is and let go of it. Answered by [`ReplyBody::Done`].
    Disconnect,
}

/// Shows no APDU data.
impl fmt::Debug for RequestBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { reset } => write!(formatter, "Connect {{ reset: {reset} }}"),
            Self::Transmit { command, .. } => {
                write!(formatter, "Transmit({} bytes)", command.len())
            }
            Self::Reset => formatter.write_str("Reset"),
            Self::Disconnect => formatter.write_str("Disconnect"),
        }
    }
}

impl fmt::Debug for WorkerRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WorkerRequest({}, {:?})", self.id, self.body)
    }
}

/// A worker to the broker.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum WorkerMessage {
    /// The one answer to a request.
    Reply {
        /// The request's id.
        request: u64,
        /// What came of it.
        result: Result<ReplyBody, WorkerError>,
    },
    /// From the monitor: all PC/SC readers, whenever anything about them has changed, and once at the start.
    Readers(Vec<ReaderStatus>),
    /// From the monitor: there is no PC/SC service (any more), so there are no readers, and nothing stands that was
    /// connected through it. It, or its successor, goes on looking for one.
    NoService,
    /// From a worker whose reader PC/SC does not watch: its card has come back or has gone.
    CardPresent(bool),
}

/// A successful answer.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub enum ReplyBody {
    /// The connection stands.
    Connected(Connected),
    /// A response APDU, at least 2 bytes.
    Response(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It is done and there is nothing to tell.
    Done,
}

/// Shows no APDU data.
impl fmt::Debug for ReplyBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(connected) => connected.fmt(formatter),
            Self::Response(response) => write!(formatter, "Response({} bytes)", response.len()),
            Self::Done => formatter.write_str("Done"),
        }
    }
}

/// A connection to a card.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Connected {
    /// The card's answer to reset.
    pub atr: Vec<u8>,
    /// The transmission protocol, for the log: the worker itself speaks it.
    pub protocol: Protocol,
    /// Whether it is a new connection: whatever was open on an earlier one is gone.
    pub fresh: bool,
}

/// A transmission protocol (ISO 7816-3).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Protocol {
    /// Character oriented.
    T0,
    /// Block oriented.
    T1,
}

/// A PC/SC reader.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReaderStatus {
    /// Its name, exactly as PC/SC wants it back, at most [`MAX_READER_NAME_LENGTH`] bytes.
    pub name: String,
    /// Whether there is a card in it.
    pub present: bool,
    /// Goes up, modulo 2^16, whenever a card comes or goes: a card that was changed for another one between two looks
    /// shows in it only.
    pub card_events: u32,
}

/// Most PC/SC readers that are looked at, as in pcsclite.
pub const MAX_READERS: usize = 16;

/// The longest PC/SC reader name, in bytes, as in pcsclite.
pub const MAX_READER_NAME_LENGTH: usize = 128;

/// Why a worker could not do what it was asked to.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
pub enum WorkerError {
    /// The reader is not there.
    #[error("the reader is not there")]
    NoReader,
    /// No card is in the reader.
    #[error("there is no card in the reader")]
    NoCard,
    /// The card was taken out.
    #[error("the card was removed")]
    CardRemoved,
    /// Somebody else reset the card: everything that was open or verified in it is gone.
    #[error("the card was reset by another program")]
    CardReset,
    /// The card is there but does not answer.
    #[error("the card does not answer")]
    Unresponsive,
    /// Another program keeps the card for itself. Nothing was sent.
    #[error("the card is in use by another program")]
    Busy,
    /// The card speaks no protocol that is supported.
    #[error("the card speaks neither T=0 nor T=1")]
    Protocol,
    /// There is no connection to a card.
    #[error("there is no connection to the card")]
    NotConnected,
    /// Communication with the card failed in another way. The command may have been carried out.
    #[error("communication with the card failed")]
    Communication,
    /// The response is longer, or takes more steps, than any response may.
    #[error("the card's response has no end")]
    ResponseTooLong,
    /// The command cannot be sent.
    #[error("the command cannot be sent to the card")]
    Command,
    /// The time was over before the response was complete.
    #[error("the card took too long")]
    Timeout,
    /// The PC/SC service has ended.
    #[error("the PC/SC service is not running")]
    NoService,
}

impl WorkerError {
    /// Whether the connection still stands, with everything that is open on it.
    pub fn keeps_connection(self) -> bool {
        matches!(
            self,
            Self::ResponseTooLong | Self::Command | Self::Timeout | Self::Busy
        )
    }
}
