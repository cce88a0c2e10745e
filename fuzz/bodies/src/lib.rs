/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What each fuzz target does with arbitrary bytes. A body panics where something does not hold.
//!
//! `cargo xtask fuzz TARGET` runs a body under libFuzzer. An ordinary test runs every body with the seeds in
//! `fuzz/seeds`, and with some thousand inputs made from them and at random.

#![forbid(unsafe_code)]

pub mod access;
pub mod apdu;
pub mod atr;
pub mod broker_to_document;
pub mod exchange;
pub mod fci;
pub mod keys;
pub mod permissions_policy;
pub mod piv;
pub mod port_to_broker;
pub mod response;
pub mod seeds;
pub mod tlv;
pub mod transport;
pub mod virtual_card;
pub mod vpcd;

/// Takes an input; panics where it shows a defect.
pub type Body = fn(&[u8]);

/// All targets, each with its name.
pub const TARGETS: [(&str, Body); 15] = [
    ("access", access::run),
    ("apdu", apdu::run),
    ("atr", atr::run),
    ("broker_to_document", broker_to_document::run),
    ("exchange", exchange::run),
    ("fci", fci::run),
    ("keys", keys::run),
    ("permissions_policy", permissions_policy::run),
    ("piv", piv::run),
    ("port_to_broker", port_to_broker::run),
    ("response", response::run),
    ("tlv", tlv::run),
    ("transport", transport::run),
    ("virtual_card", virtual_card::run),
    ("vpcd", vpcd::run),
];
