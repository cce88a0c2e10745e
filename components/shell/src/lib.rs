/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A small browser around the patched Servo engine: in a window, headless, or driven through WebDriver.
//!
//! The same executable is the main process and every content process: Servo starts it again with
//! `--content-process TOKEN`.

mod app;
mod browser_window;
mod chrome;
mod cli;
mod content_process;
mod demo;
mod dialogs;
mod headless;
mod keyboard;
mod page_text;
mod prefs;
mod profile;
pub mod prompts;
mod real_window;
#[cfg(feature = "samples")]
mod samples;
mod shutdown;
mod tab;
mod text;
#[cfg_attr(not(feature = "tokens"), path = "no_tokens.rs")]
mod tokens;
mod webdriver;
mod window;

use std::process::ExitCode;

use crate::cli::{Cli, Settings};

/// The whole program. `run_content_process` is what its content processes do, with the token that Servo gave them.
pub fn main(run_content_process: fn(String)) -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|argument| argument == content_process::FLAG)
    {
        return match arguments.next().and_then(|token| token.into_string().ok()) {
            Some(token) => content_process::run(token, run_content_process),
            None => fail("a content process needs its token"),
        };
    }

    let settings = match Settings::from_cli(<Cli as clap::Parser>::parse()) {
        Ok(settings) => settings,
        Err(error) => return fail(&error),
    };
    content_process::prepare_environment(&settings);
    install_crypto_provider();

    let result = if settings.headless {
        headless::run(settings)
    } else {
        window::run(settings)
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

/// Servo leaves the choice of the TLS implementation to the program, in every process.
fn install_crypto_provider() {
    // An error means that a provider is installed already, which serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn fail(message: &str) -> ExitCode {
    eprintln!("servo-tokens: {message}");
    ExitCode::FAILURE
}
