/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The embedded card in software.

use std::time::Duration;

use secure_element::atr::Atr;
use virtual_card::{Card, UnknownProfile, VirtualCard};

use crate::protocol::{Connected, Protocol, WorkerError};
use crate::serve::Device;

/// A virtual card, and the reader that it is soldered into.
pub struct VirtualReader {
    card: VirtualCard,
    protocol: Protocol,
    connected: bool,
}

impl VirtualReader {
    /// A card of that profile, powered up.
    pub fn open(profile: &str) -> Result<Self, UnknownProfile> {
        let card = VirtualCard::from_profile(profile)?;
        let offers_t1 = Atr::parse(card.atr()).is_ok_and(|atr| atr.offers(1));
        Ok(Self {
            card,
            protocol: if offers_t1 {
                Protocol::T1
            } else {
                Protocol::T0
            },
            connected: false,
        })
    }
}

impl Device for VirtualReader {
    fn connect(&mut self, reset: bool) -> Result<Connected, WorkerError> {
        if !self.card.is_present() {
            return Err(WorkerError::NoCard);
        }
        if reset {
            self.card.reset();
        }
        let fresh = reset || !self.connected;
        self.connected = true;
        Ok(Connected {
            atr: self.card.atr().to_vec(),
            protocol: self.protocol,
            fresh,
        })
    }

    fn with_card<T>(
        &mut self,
        commands: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<Vec<u8>, WorkerError>) -> T,
    ) -> Result<T, WorkerError> {
        if !self.connected {
            return Err(WorkerError::NotConnected);
        }
        let card = &mut self.card;
        Ok(commands(&mut |bytes| {
            let response = card.transmit(bytes);
            if !card.is_present() {
                Err(WorkerError::CardRemoved)
            } else if response.is_empty() {
                Err(WorkerError::Communication)
            } else {
                Ok(response)
            }
        }))
    }

    fn protocol(&self) -> Option<Protocol> {
        self.connected.then_some(self.protocol)
    }

    fn disconnect(&mut self) {
        self.connected = false;
    }

    fn card_returns_after(&mut self) -> Option<Duration> {
        let after = self.card.returns_after()?;
        if after.is_zero() {
            // It is put back, and powered up.
            self.card.reset();
            return None;
        }
        Some(after)
    }
}
