/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! All token processes end with the main process, however it ends.
//!
//! This program is its own harness: started with an argument, it is a main process that has processes started and then
//! waits to be killed.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use common::*;
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("main-process") {
        main_process();
    }
    let test = Trial::test("the_death_of_the_main_process_ends_all_processes", || {
        the_death_of_the_main_process_ends_all_processes();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}

fn main_process() -> ! {
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    let channel = page.open_echo();
    // The worker is busy for longer than the test takes, so it does not look at its channel.
    page.send(slow(channel, 60_000));
    println!("{}", browser.binary().display());
    std::io::stdout().flush().expect("an output");
    std::thread::sleep(Duration::from_secs(600));
    panic!("nobody killed the main process");
}

fn the_death_of_the_main_process_ends_all_processes() {
    let mut main_process = Command::new(std::env::current_exe().expect("a program"))
        .arg("main-process")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a main process");
    let mut binary = String::new();
    BufReader::new(main_process.stdout.take().expect("an output"))
        .read_line(&mut binary)
        .expect("a line");
    let binary = PathBuf::from(binary.trim_end());
    for kind in ["broker", "virtual-card"] {
        assert_eq!(processes_of(&binary, Some(kind)).len(), 1, "{kind}");
    }
    let _cleanup = KillAll(&binary);
    main_process.kill().expect("a process to kill");
    main_process.wait().expect("an end");
    wait_for("their end", || {
        processes_of(&binary, None).is_empty().then_some(())
    });
    // A killed main process leaves its directory behind.
    if let Some(directory) = binary.parent() {
        std::fs::remove_dir_all(directory).expect("the directory");
    }
}

/// What outlives the test although it should not does not outlive it for long.
struct KillAll<'a>(&'a Path);

impl Drop for KillAll<'_> {
    fn drop(&mut self) {
        for pid in processes_of(self.0, None) {
            kill(pid);
        }
    }
}
