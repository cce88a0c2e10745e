/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The workers that keep keys, as processes of their own: this test is their main process and their broker.
//!
//! OpenSSL's program checks what they make, and makes what they are given.

mod doctor;
mod hostile;
mod openssl;
mod pcsc;
mod softhsm;
mod tpm;
mod worker;
