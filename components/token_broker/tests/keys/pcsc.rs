/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Modules that talk to PC/SC: OpenSC's, and one that does harm.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use token_traits::control::{ModuleConfig, WorkerKind};
use token_workers::key_protocol::KeyError;
use virtual_card::VirtualCard;
use virtual_card::test_support::{Pcscd, SOCKET_VARIABLE};

use crate::hostile;
use crate::worker::{Failure, PATIENCE, Worker};

fn with_service(config: ModuleConfig, socket: &Path) -> ModuleConfig {
    let mut config = ModuleConfig {
        pcsc: true,
        ..config
    };
    let socket = socket.display().to_string();
    config.environment.insert(SOCKET_VARIABLE.into(), socket);
    config
}

/// There is one connection, to the service, and no other, whatever the module asks for.
#[test]
fn a_module_gets_one_connection_and_makes_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = UnixListener::bind(folder.path().join("service")).expect("a socket");
    let other = UnixListener::bind(folder.path().join("other")).expect("a socket");
    let manner = "connects to a local socket, with `pcsc`";
    let config = hostile::config(manner, &folder.path().join("other"));
    let config = with_service(config, &folder.path().join("service"));
    let mut worker = Worker::start(&WorkerKind::Module(config));
    let signature = hostile::use_it(&mut worker).expect("a signature");
    assert_eq!(signature[0], 0);
    let (mut connection, _) = service.accept().expect("a connection");
    let mut text = [0; 5];
    connection.read_exact(&mut text).expect("a text");
    assert_eq!(&text, b"hello");
    for listener in [&service, &other] {
        listener.set_nonblocking(true).expect("a socket");
        assert!(listener.accept().is_err());
    }
    threat_model::outcome(
        "module worker",
        manner,
        "it gets its connection to pcscd, whatever it names",
    );
    // When the service ends, a new connection takes a new worker.
    drop(connection);
    assert!(worker.end(PATIENCE).is_some());
}

const OPENSC: &str = "/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so";

#[test]
fn opensc_sees_a_card() {
    let pcscd = Pcscd::start().expect("pcscd");
    let card = VirtualCard::from_profile("default").expect("a card");
    let _inserted = pcscd.insert(0, card).expect("a card");
    let config = ModuleConfig {
        module: OPENSC.into(),
        label: "OpenSC".into(),
        ..ModuleConfig::default()
    };
    let kind = WorkerKind::Module(with_service(config, &pcscd.socket()));
    let mut worker = Worker::start(&kind);
    let until = Instant::now() + PATIENCE;
    let token = loop {
        if let Some(token) = worker.tokens().pop() {
            break token;
        }
        assert!(Instant::now() < until, "OpenSC sees no card");
        thread::sleep(Duration::from_millis(200));
    };
    assert!(
        token.is_removable && token.slot.contains("Virtual PCD"),
        "{token:?}"
    );
    assert!(token.login.is_required && worker.keys(token.id).is_empty());
    let wrong = worker.login(token.id, "000000");
    assert_eq!(wrong, Err(Failure::Error(KeyError::PinIncorrect)));
    // When the service ends, its one connection does, and the worker with it.
    drop(pcscd);
    assert!(worker.end(PATIENCE).is_some());
}
