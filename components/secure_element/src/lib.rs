/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! ISO/IEC 7816-4 and GlobalPlatform as pure logic, without any input or output.
//!
//! Everything that arrives here may come from a hostile page or a hostile card. Every parser is
//! total: it ends, it allocates no more than a bound that its module states, it never panics, and
//! what it cannot accept is a typed error.
//!
//! - [`apdu`]: command and response APDUs and status words;
//! - [`class_byte`]: logical channels in the class byte, and what a caller may not send;
//! - [`channel`]: opening and closing logical channels, selecting applications;
//! - [`exchange`]: one command over T=0 or T=1, GET RESPONSE and re-issue included;
//! - [`tlv`] and [`fci`]: BER-TLV and the answer to SELECT;
//! - [`origin`]: applications that tell web origins apart;
//! - [`atr`]: the answer to reset;
//! - [`piv`]: the PIV application, and what its keys do;
//! - [`access`]: access rules: reading them from a card, and deciding by them.

#![forbid(unsafe_code)]

pub mod access;
pub mod apdu;
pub mod atr;
pub mod channel;
pub mod class_byte;
pub mod exchange;
pub mod fci;
pub mod origin;
pub mod piv;
pub mod tlv;
