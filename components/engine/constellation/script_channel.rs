/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The channel from a script event loop to the constellation.
//!
//! Every event loop has its own, so that the source of a message is known. In a process of its own, it also has its own
//! thread here, which takes its messages no faster than the constellation handles them: an event loop that sends without
//! an end fills its own socket, and then waits.

#[cfg(feature = "multiprocess")]
use std::thread;

use crossbeam_channel::{Receiver, Sender};
use servo_base::generic_channel::{GenericCallback, SendError};
use servo_base::id::ScriptEventLoopId;
#[cfg(feature = "multiprocess")]
use servo_config::opts;
use servo_constellation_traits::ScriptToConstellationSender;

use crate::constellation::ScriptMessage;

/// How many messages of one event loop may wait for the constellation.
#[cfg(feature = "multiprocess")]
const MAX_IN_FLIGHT: usize = 256;

/// Goes with a message until the constellation has it. Then there is room for another.
#[derive(Default)]
pub(crate) struct InFlight(Option<Receiver<()>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.0 {
            let _ = in_flight.try_recv();
        }
    }
}

pub(crate) fn new(
    event_loop_id: ScriptEventLoopId,
    constellation: Sender<ScriptMessage>,
) -> Result<ScriptToConstellationSender, SendError> {
    #[cfg(feature = "multiprocess")]
    if opts::get().multiprocess {
        let (sender, receiver) = GenericCallback::new_blocking()?;
        thread::Builder::new()
            .name(format!("Messages#{event_loop_id}"))
            .spawn(move || forward(event_loop_id, receiver, constellation))?;
        return Ok(sender);
    }
    GenericCallback::new(move |message| {
        let _ = constellation.send((event_loop_id, message, InFlight::default()));
    })
}

#[cfg(feature = "multiprocess")]
fn forward(
    event_loop_id: ScriptEventLoopId,
    receiver: servo_base::generic_channel::GenericReceiver<crate::constellation::ClaimedMessage>,
    constellation: Sender<ScriptMessage>,
) {
    use servo_base::generic_channel::ReceiveError;

    let (in_flight_sender, in_flight) = crossbeam_channel::bounded(MAX_IN_FLIGHT);
    loop {
        let message = match receiver.recv() {
            Ok(message) => Ok(message),
            Err(ReceiveError::DeserializationFailed(error)) => {
                Err(SendError::SerializationError(error))
            },
            Err(ReceiveError::Disconnected | ReceiveError::Io(_)) => return,
        };
        let slot = InFlight(Some(in_flight.clone()));
        if in_flight_sender.send(()).is_err() ||
            constellation.send((event_loop_id, message, slot)).is_err()
        {
            return;
        }
    }
}
