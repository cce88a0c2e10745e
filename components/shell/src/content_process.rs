/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Content processes: how the main process prepares them, and how they start.
//!
//! A content process ends when the main process does, however that ends. By itself it would not: Servo's content
//! processes wait on channels whose other ends their siblings may hold open as well.
//!
//! This rests on `PR_SET_PDEATHSIG`, which costs no thread. A watching thread would stay outside of a sandbox that the
//! process enters later, and would be its hole. The kernel sends the signal when the *thread* that started the process
//! ends. That is Servo's constellation thread, for every content process: it ends with the main process at the latest,
//! so the signal cannot be missed, and once it has ended, nothing is left that a content process could work for.

use std::process::ExitCode;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use crate::cli::Settings;
use crate::{fail, install_crypto_provider};

/// First argument of a content process. Chosen by Servo.
pub const FLAG: &str = "--content-process";

/// Environment variable in which the main process tells its content processes its process id.
const PARENT_VARIABLE: &str = "SERVO_TOKENS_MAIN_PROCESS";

/// Sets what content processes inherit, and what the engine reads from the environment. To be called at the start of
/// the main process, while it has one thread.
pub fn prepare_environment(settings: &Settings) {
    // SAFETY: changing the environment is unsafe because other threads might read the environment meanwhile; there are none yet.
    unsafe {
        std::env::set_var(PARENT_VARIABLE, getpid().as_raw_nonzero().to_string());
        if let Some(host_file) = &settings.host_file {
            // The engine gives this variable precedence over its own option; the command line should win.
            std::env::set_var("HOST_FILE", host_file);
        }
        if settings.headless {
            // Use no display even where there is one. For Wayland, no name means the default one.
            std::env::remove_var("DISPLAY");
            std::env::set_var("WAYLAND_DISPLAY", "/nonexistent");
        }
        if settings.webdriver.is_some()
            && let Ok(filter) = std::env::var("RUST_LOG")
            && !filter.is_empty()
        {
            std::env::set_var("RUST_LOG", without_request_bodies(&filter));
        }
    }
}

/// The HTTP server below the WebDriver server logs every request with its body, at the level "debug". The body may be a PIN.
fn without_request_bodies(filter: &str) -> String {
    // Directives, then a pattern if there is one. The most specific directive decides, and among equals the last one.
    let pattern_at = filter.find('/').unwrap_or(filter.len());
    let (directives, pattern) = filter.split_at(pattern_at);
    format!("{directives},webdriver::server=warn{pattern}")
}

/// Runs a content process until the engine ends it.
pub fn run(token: String, run_content_process: fn(String)) -> ExitCode {
    if let Err(error) = end_with_parent() {
        return fail(&error);
    }
    // Standard output belongs to the main process, which prints the page's text there; the engine prints alerts.
    // SAFETY: nothing owns these two descriptors, which stay open throughout.
    if unsafe { libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) } < 0 {
        return fail("a content process cannot redirect its output");
    }
    install_crypto_provider();
    run_content_process(token);
    ExitCode::SUCCESS
}

fn end_with_parent() -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("a content process cannot be tied to its parent: {error}"))?;
    // The parent may have ended before that call. Then the process has another parent by now.
    let expected = std::env::var(PARENT_VARIABLE)
        .ok()
        .and_then(|pid| pid.parse::<i32>().ok());
    let actual = getppid().map(|pid| pid.as_raw_nonzero().get());
    match (expected, actual) {
        (Some(expected), Some(actual)) if expected == actual => Ok(()),
        _ => Err("a content process can only be started by the browser".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::without_request_bodies;

    #[test]
    fn request_bodies_are_not_logged() {
        for (filter, expected) in [
            ("debug", "debug,webdriver::server=warn"),
            (
                "trace,webdriver::server=trace",
                "trace,webdriver::server=trace,webdriver::server=warn",
            ),
            ("debug/session", "debug,webdriver::server=warn/session"),
        ] {
            assert_eq!(without_request_bodies(filter), expected);
        }
    }
}
