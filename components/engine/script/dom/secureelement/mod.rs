/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The [Web API for Accessing Secure Element][spec]. These files convert between Web IDL and the messages of
//! `token_traits` and forward; every decision is made by the token broker.
//!
//! [spec]: https://globalplatform.github.io/WebApis-for-SE/doc/

pub(crate) mod answer;
pub(crate) mod channel;
pub(crate) mod permission;
pub(crate) mod reader;
pub(crate) mod readerevent;
pub(crate) mod secommand;
pub(crate) mod secureelementmanager;
pub(crate) mod seresponse;
pub(crate) mod session;
