/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The wire between processes that do not trust each other: versioned, bounded, total to decode.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Goes up with every change to a type that travels in a [`Frame`].
pub const WIRE_VERSION: u8 = 7;

/// The longest frame, in bytes: the longest APDU and ample room for what surrounds it.
pub const MAX_FRAME_LENGTH: usize = 72 * 1024;

/// One encoded message: a version byte, then the message in postcard's encoding.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct Frame(#[serde(with = "serde_bytes")] Vec<u8>);

/// Frames carry PINs: nothing of them is left in memory.
impl Drop for Frame {
    fn drop(&mut self) {
        self.0.fill(0);
        // Else it could be left out, because nobody reads it.
        std::hint::black_box(&self.0);
    }
}

/// Frames carry APDU data: their contents stay out of logs.
impl fmt::Debug for Frame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Frame({} bytes)", self.0.len())
    }
}

/// Why a frame is not a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WireError {
    /// Longer than [`MAX_FRAME_LENGTH`].
    TooLong,
    /// No version byte, or not [`WIRE_VERSION`].
    Version,
    /// Not an encoding of the expected type, or followed by something.
    Malformed,
}

impl fmt::Display for WireError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TooLong => "the message is too long",
            Self::Version => "the message is of another wire version",
            Self::Malformed => "the message is malformed",
        })
    }
}

impl std::error::Error for WireError {}

impl Frame {
    /// Takes bytes as they are, for tests and fuzzing.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// How long it is, in bytes.
    pub fn encoded_length(&self) -> usize {
        self.0.len()
    }

    /// Encodes a message.
    pub fn encode<T: Serialize>(message: &T) -> Result<Self, WireError> {
        let bytes =
            postcard::to_extend(message, vec![WIRE_VERSION]).map_err(|_| WireError::Malformed)?;
        if bytes.len() > MAX_FRAME_LENGTH {
            return Err(WireError::TooLong);
        }
        Ok(Self(bytes))
    }

    /// Decodes a message. Never panics, and allocates no more than a small multiple of the frame's own length.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        if self.0.len() > MAX_FRAME_LENGTH {
            return Err(WireError::TooLong);
        }
        match self.0.split_first() {
            Some((&WIRE_VERSION, payload)) => match postcard::take_from_bytes(payload) {
                Ok((message, [])) => Ok(message),
                _ => Err(WireError::Malformed),
            },
            _ => Err(WireError::Version),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::port::{
        ChannelId, Command, MAX_COMMAND_LENGTH, PortMessage, PortRequest, RequestBody, RequestId,
    };

    fn transmit(command: Vec<u8>) -> PortRequest {
        PortRequest {
            id: RequestId(7),
            body: RequestBody::Transmit {
                channel: ChannelId(1),
                command: Command::Raw(command),
                timeout_ms: Some(1000),
            },
        }
    }

    #[test]
    fn the_longest_command_fits() {
        let request = transmit(vec![0xa5; MAX_COMMAND_LENGTH]);
        assert_eq!(Frame::encode(&request).unwrap().decode(), Ok(request));
    }

    #[test]
    fn refuses_what_is_too_long_of_another_version_or_followed_by_something() {
        assert_eq!(
            Frame::encode(&transmit(vec![0; MAX_FRAME_LENGTH])),
            Err(WireError::TooLong)
        );
        let long = Frame::from_bytes(vec![WIRE_VERSION; MAX_FRAME_LENGTH + 1]);
        assert_eq!(long.decode::<PortRequest>(), Err(WireError::TooLong));

        let mut bytes = Frame::encode(&transmit(vec![1])).unwrap().0.clone();
        bytes.push(0);
        assert_eq!(
            Frame(bytes.clone()).decode::<PortRequest>(),
            Err(WireError::Malformed)
        );
        bytes[0] = WIRE_VERSION + 1;
        assert_eq!(
            Frame(bytes).decode::<PortRequest>(),
            Err(WireError::Version)
        );
        assert_eq!(
            Frame(vec![]).decode::<PortRequest>(),
            Err(WireError::Version)
        );
    }

    #[test]
    fn a_length_that_is_a_lie_does_not_allocate() {
        // A Transmit whose command claims 2^63 bytes and has none: version, id, variants, then the length.
        let honest = Frame::encode(&transmit(vec![])).unwrap().0.clone();
        let length_at = honest.len() - 4;
        assert_eq!(honest[length_at], 0);
        let mut bytes = honest[..length_at].to_vec();
        bytes.extend([0xff; 9]);
        bytes.push(0x01);
        assert_eq!(
            Frame(bytes).decode::<PortRequest>(),
            Err(WireError::Malformed)
        );
    }

    proptest! {
        #[test]
        fn decoding_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = vec![WIRE_VERSION];
            bytes.extend(payload);
            let frame = Frame(bytes);
            let _ = frame.decode::<PortRequest>();
            let _ = frame.decode::<PortMessage>();
        }
    }
}
