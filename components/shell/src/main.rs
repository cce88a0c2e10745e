/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser.

use std::process::ExitCode;

fn main() -> ExitCode {
    tokens_shell::main(servo::run_content_process)
}
