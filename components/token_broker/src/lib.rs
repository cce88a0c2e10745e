/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Policy and routing between documents and tokens; its binary runs every process kind.
//!
//! - [`broker`] decides: a state machine without input or output, which is where the rules are tested;
//! - [`access`] says who may open what;
//! - [`event_loop`] connects the state machine to documents, workers and the main process;
//! - [`token_traits::transport`] keeps them from doing it harm on the way.

#![forbid(unsafe_code)]

pub mod access;
mod apdu;
pub mod broker;
pub mod event_loop;
mod job_queue;
pub mod keys;
mod overview;
mod reader;
pub mod store;
mod supervision;
