/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A smart card in software: ISO/IEC 7816-4 with logical channels, over T=0 or T=1.
//!
//! [`VirtualCard`] is the card. It is the embedded default of the token broker, and [`vpcd`] puts
//! it, or any other [`Card`], behind `pcscd` as if it were plugged into a reader. What is on it is
//! described at [`applets`], and for authors of tests in `docs/virtual-card.md`.

#![forbid(unsafe_op_in_unsafe_fn)]

use std::time::Duration;

mod applet;
pub mod applets;
mod card;
mod profile;
mod t0;
#[cfg(feature = "test_support")]
pub mod test_support;
pub mod vpcd;

pub use applet::{Applet, Fault, Outcome, Parts, Rigged, RiggedCommand, Selection};
pub use card::VirtualCard;
pub use profile::{AccessRules, Profile, UnknownProfile};

/// The longest that a card keeps a caller waiting. A test that wants a card that hangs for ever
/// has long ended by then, and a forgotten one does not stay for ever.
pub const MAX_DELAY: Duration = Duration::from_secs(600);

/// A smart card as a reader sees it.
pub trait Card: Send {
    /// The answer to reset.
    fn atr(&self) -> &[u8];

    /// Powers the card up, or resets it: all channels but the basic one close, and all state that
    /// a card keeps in memory is lost. A card that had left its reader is back.
    fn reset(&mut self);

    /// Carries out a command as it arrives over the card's transmission protocol, and returns what
    /// the card sends back: with T=1 a response APDU, with T=0 the answer to one TPDU.
    ///
    /// May block for as long as the card takes, at most [`MAX_DELAY`]. A card may answer with
    /// nonsense, and with nothing.
    fn transmit(&mut self, command: &[u8]) -> Vec<u8>;

    /// Whether the card is in its reader. Where it is not after [`Card::transmit`], the card was
    /// pulled in the middle of the command, and there is no answer.
    fn is_present(&self) -> bool {
        true
    }

    /// For a card that is not in its reader: the time from now until it is to be put back, which
    /// whoever has the reader does by [`Card::reset`]; zero when that time has come. `None` while
    /// the card is present, and for a card that has nothing to say about it.
    fn returns_after(&self) -> Option<Duration> {
        None
    }
}

impl<C: Card + ?Sized> Card for Box<C> {
    fn atr(&self) -> &[u8] {
        (**self).atr()
    }

    fn reset(&mut self) {
        (**self).reset();
    }

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        (**self).transmit(command)
    }

    fn is_present(&self) -> bool {
        (**self).is_present()
    }

    fn returns_after(&self) -> Option<Duration> {
        (**self).returns_after()
    }
}
