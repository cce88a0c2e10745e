/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use log::warn;
use serde::{Deserialize, Serialize};
use servo_base::generic_channel::{GenericReceiver, ReceiveError};

/// The next message, or `None` if there will be no more. All content processes send to the threads of this crate, so what
/// cannot be decoded comes from one that is not to be trusted, and is not the end.
pub(crate) fn next_message<T>(receiver: &GenericReceiver<T>) -> Option<T>
where
    T: for<'de> Deserialize<'de> + Serialize,
{
    loop {
        match receiver.recv() {
            Ok(message) => return Some(message),
            Err(ReceiveError::Disconnected) => return None,
            Err(error) => warn!("A message to a storage thread is malformed: {error}"),
        }
    }
}
