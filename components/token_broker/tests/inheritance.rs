/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What token processes get from the main process besides their arguments. Alone in a program, because the processes of
//! other tests would inherit it too.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, mpsc};

use common::*;
use token_client::{ClientConfig, TokenClient};
use token_traits::TokenBroker;

#[test]
fn token_processes_inherit_no_descriptor_and_gain_no_privileges() {
    // A descriptor without close-on-exec, as C libraries open them.
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).expect("a flag");
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    let channel = page.open_echo();
    drop(writer);
    // The end comes only if no process holds the other end any more.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(reader.read(&mut [0])));
    let end = receiver.recv_timeout(PATIENCE).expect("an end of the pipe");
    assert_eq!(end.expect("an end of the pipe"), 0);
    for kind in ["broker", "virtual-card"] {
        let pid = browser.process(kind).as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        assert!(status.contains("NoNewPrivs:\t1"), "{kind}");
    }
    page.assert_echoes(channel, b"all of them still run");
}

#[test]
fn token_processes_get_no_environment_but_what_they_need() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("script");
    let output = directory.path().join("environment");
    let text = format!(
        "#!/bin/sh\ntr '\\0' '\\n' < /proc/$$/environ > {}\n",
        output.display()
    );
    // The script needs a path for `tr`, which the shell has by default.
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("a script");
    let client = TokenClient::new(
        ClientConfig {
            broker_binary: script,
            ..nothing()
        },
        Arc::new(Nobody),
    );
    let (sender, receiver) = mpsc::channel();
    client.open_port(
        identity(ORIGIN),
        Box::new(move |result| sender.send(result.is_err()).expect("a test")),
    );
    assert!(receiver.recv_timeout(PATIENCE).expect("an outcome"));
    let environment = fs::read_to_string(output).expect("the script's output");
    let unexpected: Vec<&str> = environment
        .lines()
        .filter(|line| {
            let allowed = [
                "RUST_LOG=",
                "RUST_BACKTRACE=",
                "PCSCLITE_CSOCK_NAME=",
                "PCSCLITE_NO_BLOCKING=1",
                "GLIBC_TUNABLES=glibc.malloc.perturb=165",
            ];
            !allowed.iter().any(|name| line.starts_with(name))
        })
        .collect();
    assert_eq!(unexpected, [] as [&str; 0]);
}
