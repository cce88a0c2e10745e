/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Decoding of everything that is sent over the wire: what the broker says to a document, and what broker, workers and
//! main process say to each other.

use serde::Serialize;
use serde::de::DeserializeOwned;
use token_traits::control::{BrokerConfig, FromBroker, WorkerKind};
use token_traits::port::{PortMessage, PortRequest};
use token_traits::prompt::{Overview, PromptAnswer, PromptRequest};
use token_traits::wire::{WIRE_VERSION, WireError};
use token_traits::{Frame, PortIdentity};
use token_workers::protocol::{WorkerMessage, WorkerRequest};

/// What can be decoded can be encoded, not longer than it was, and decoded again to the same. Frames of another version
/// are refused.
///
/// Input: the payload of a frame, without its version, so that seeds outlive it.
pub fn run(bytes: &[u8]) {
    let frame = Frame::from_bytes([&[WIRE_VERSION][..], bytes].concat());
    round_trip::<PortMessage>(&frame);
    round_trip::<PortRequest>(&frame);
    round_trip::<WorkerMessage>(&frame);
    round_trip::<WorkerRequest>(&frame);
    round_trip::<WorkerKind>(&frame);
    round_trip::<BrokerConfig>(&frame);
    round_trip::<PortIdentity>(&frame);
    round_trip::<FromBroker>(&frame);
    round_trip::<PromptRequest>(&frame);
    round_trip::<PromptAnswer>(&frame);
    round_trip::<Overview>(&frame);
    if bytes.first() != Some(&WIRE_VERSION) {
        let frame = Frame::from_bytes(bytes.to_vec());
        assert_eq!(frame.decode::<PortMessage>(), Err(WireError::Version));
    }
}

fn round_trip<T: Serialize + DeserializeOwned>(frame: &Frame) {
    let Ok(message) = frame.decode::<T>() else {
        return;
    };
    let again = encode(&message);
    assert!(again.encoded_length() <= frame.encoded_length());
    match again.decode::<T>() {
        Ok(message) => assert_eq!(encode(&message), again),
        Err(error) => panic!("what was encoded cannot be decoded: {error}"),
    }
}

fn encode<T: Serialize>(message: &T) -> Frame {
    Frame::encode(message).unwrap_or_else(|error| panic!("what was decoded fits: {error}"))
}
