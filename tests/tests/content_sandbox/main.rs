/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The sandbox of content processes: ordinary pages do not notice it, attackers do.

mod attempts;
mod files;
mod ordinary;
