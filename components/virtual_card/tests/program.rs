/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The program `virtual-card`, with the reader driver's side of the connection played by the test.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use virtual_card::Profile;
use virtual_card::applets::{ara_m, echo, uicc};

/// What a loaded machine needs to start a program.
const WAIT: Duration = Duration::from_secs(20);

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virtual-card"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

/// The driver, and a card that the program put into it.
struct Driver {
    listener: TcpListener,
    card: TcpStream,
    program: Child,
}

impl Driver {
    fn start(arguments: &[&str]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let program = program(&["vpcd", "--port", &port])
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let card = accept(&listener);
        let mut driver = Self {
            listener,
            card,
            program,
        };
        driver.power_up();
        driver
    }

    fn power_up(&mut self) {
        self.send(&[1]);
    }

    fn send(&mut self, message: &[u8]) {
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        self.card.write_all(&length).unwrap();
        self.card.write_all(message).unwrap();
    }

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        self.send(command);
        let mut length = [0; 2];
        self.card.read_exact(&mut length).unwrap();
        let mut response = vec![0; u16::from_be_bytes(length).into()];
        self.card.read_exact(&mut response).unwrap();
        response
    }

    fn select(&mut self, aid: &[u8]) -> Vec<u8> {
        let length = aid.len() as u8;
        self.transmit(&[&[0, 0xA4, 4, 0x0C, length], aid].concat())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + WAIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(WAIT)).unwrap();
                return stream;
            }
            Err(error) if Instant::now() > deadline => panic!("no card: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn help_names_the_profiles() {
    let output = output(&["vpcd", "--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for (name, profile) in Profile::NAMED {
        assert!(help.contains(&format!("- {name}:")), "{name}");
        assert!(help.contains(profile.description), "{name}");
    }
}

#[test]
fn rules_that_are_none_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules");
    let path = path.to_str().unwrap();
    let missing = output(&["vpcd", "--ara-m", path]);
    fs::write(path, "E2 what").unwrap();
    let malformed = output(&["vpcd", "--ara-m", path]);
    for output in [missing, malformed] {
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains(path));
    }
}

#[test]
fn rules_come_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules");
    fs::write(&path, "E2 03 # not a rule\n 01 02 03").unwrap();
    for profile in ["default", "ara-m", "no-rules"] {
        let arguments = ["--profile", profile, "--ara-m", path.to_str().unwrap()];
        let mut driver = Driver::start(&arguments);
        assert_eq!(driver.select(&ara_m::AID), [0x90, 0]);
        let all = driver.transmit(&[0x80, 0xCA, 0xFF, 0x40, 0]);
        assert_eq!(all, [0xFF, 0x40, 5, 0xE2, 3, 1, 2, 3, 0x90, 0]);
    }
    let mut driver = Driver::start(&["--profile", "no-rules"]);
    assert_eq!(driver.select(&ara_m::AID), [0x6A, 0x82]);
}

#[test]
fn access_rule_files_come_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("conditions");
    fs::write(&path, "30 00 # everybody").unwrap();
    let replaced = format!("4311={}", path.display());
    let arguments = [
        "--profile",
        "uicc",
        "--arf-file",
        &replaced,
        "--arf-file",
        "4312=",
    ];
    let mut driver = Driver::start(&arguments);
    assert_eq!(driver.select(&uicc::AID), [0x90, 0]);
    let select = |id: u16| [&[0, 0xA4, 0, 0x0C, 2][..], &id.to_be_bytes()].concat();
    assert_eq!(driver.transmit(&select(0x4311)), [0x90, 0]);
    assert_eq!(driver.transmit(&[0, 0xB0, 0, 0, 2]), [0x30, 0, 0x90, 0]);
    assert_eq!(driver.transmit(&select(0x4312)), [0x6A, 0x82]);
    assert_eq!(driver.transmit(&select(0x4313)), [0x90, 0]);

    for (argument, message) in [("4311", "no ="), ("zz=", "digit"), ("1=nowhere", "nowhere")] {
        let output = output(&["vpcd", "--arf-file", argument]);
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_card_is_back_when_it_said() {
    let mut driver = Driver::start(&["--profile", "default"]);
    for (parameter, milliseconds) in [(2, 200), (0, 500)] {
        assert_eq!(driver.transmit(&[0, 0x70, 0, 0, 1]), [1, 0x90, 0]);
        assert_eq!(driver.select(&echo::AID), [0x90, 0]);
        let start = Instant::now();
        driver.send(&[0, echo::INS_FAULT, echo::FAULT_REMOVAL, parameter]);
        let mut nothing = [0];
        assert_eq!(driver.card.read(&mut nothing).unwrap(), 0, "it is gone");
        driver.card = accept(&driver.listener);
        assert!(start.elapsed() >= Duration::from_millis(milliseconds));
        driver.power_up();
    }
    // It was reset.
    assert_eq!(driver.select(&echo::AID), [0x90, 0]);
    let open = driver.transmit(&[0, echo::INS_OPEN_CHANNELS, 0, 0, 3]);
    assert_eq!(open, [0, 0, 1, 0x90, 0]);
}
