/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Ending in good order: on SIGINT and SIGTERM, and within a limited time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use servo::EventLoopWaker;
use signal_hook::consts::{SIGINT, SIGTERM};

/// How long the engine may take to stop.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// SIGINT and SIGTERM, as an event for the main loop.
pub struct Signals {
    /// The first signal received, or 0.
    received: Arc<AtomicI32>,
}

impl Signals {
    /// Catches the signals from now on. The first one is noted and wakes the event loop, the second one ends the process
    /// at once.
    pub fn listen(waker: Box<dyn EventLoopWaker>) -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("cannot listen for signals: {error}");
        let received = Arc::new(AtomicI32::new(0));
        let mut signals =
            signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(problem)?;
        let seen = received.clone();
        thread::Builder::new()
            .name("Signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    if seen.swap(signal, Ordering::Relaxed) != 0 {
                        std::process::exit(exit_code(signal).into());
                    }
                    waker.wake();
                }
            })
            .map_err(problem)?;
        Ok(Self { received })
    }

    /// The signal that asked the program to end.
    pub fn received(&self) -> Option<i32> {
        match self.received.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }
}

/// The exit code with which shells report the end by a signal.
pub fn exit_code(signal: i32) -> u8 {
    128u8.saturating_add(u8::try_from(signal).unwrap_or_default())
}

/// Ends the process if it lives longer than [`SHUTDOWN_LIMIT`]: a stuck engine must not keep it.
pub struct Watchdog {
    /// Disconnected on drop.
    _stop: Sender<()>,
}

impl Watchdog {
    /// The time starts now, and stops with the drop of the result. `temporary` is a folder that
    /// must not stay behind.
    pub fn start(temporary: Option<PathBuf>) -> Self {
        let (stop, stopped) = bounded(0);
        // Without a thread there is no watchdog, which is no reason not to shut down.
        let _ = thread::Builder::new()
            .name("Watchdog".into())
            .spawn(move || {
                if stopped.recv_timeout(SHUTDOWN_LIMIT) == Err(RecvTimeoutError::Timeout) {
                    eprintln!(
                        "The engine did not stop within {} seconds.",
                        SHUTDOWN_LIMIT.as_secs()
                    );
                    if let Some(folder) = &temporary {
                        let _ = std::fs::remove_dir_all(folder);
                    }
                    std::process::exit(1);
                }
            });
        Self { _stop: stop }
    }
}
