/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Modules that do harm.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;
use token_traits::control::{ModuleConfig, WorkerKind};
use token_workers::key_protocol::{KeyError, KeyInfo, KeyReply, KeyRequestBody, Operation};
use token_workers::key_protocol::{SignatureScheme, TokenId, TokenInfo};

use crate::softhsm::SoftHsm;
use crate::worker::{Failure, PATIENCE, Worker, sign};

/// Who tries, in `docs/threat-model.md`.
const ATTACKER: &str = "module worker";

/// Nothing happens for that long where nothing should.
const SHORT: Duration = Duration::from_millis(1500);

/// The module's shared library, compiled once.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hostile.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys/hostile_module.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&path, &source])
            .status()
            .expect("a compiler");
        assert!(status.success());
        (folder, path)
    });
    path
}

pub fn config(manner: &str, target: &Path) -> ModuleConfig {
    ModuleConfig {
        module: library().display().to_string(),
        label: "Hostile".into(),
        environment: BTreeMap::from([
            ("MANNER".into(), manner.into()),
            ("TARGET".into(), target.display().to_string()),
        ]),
        ..ModuleConfig::default()
    }
}

fn worker(manner: &str) -> Worker {
    let kind = WorkerKind::Module(config(manner, Path::new("/etc/passwd")));
    Worker::start(&kind)
}

fn list(worker: &mut Worker) -> Result<Vec<TokenInfo>, Failure> {
    let id = worker.send(KeyRequestBody::ListTokens);
    match worker.answer_within(id, Duration::from_secs(20))? {
        KeyReply::Tokens(tokens) => Ok(tokens),
        other => panic!("{other:?}"),
    }
}

fn list_keys(worker: &mut Worker, token: TokenId) -> Result<Vec<KeyInfo>, Failure> {
    match worker.does(token, Operation::ListKeys { start: 0 })? {
        KeyReply::Keys { keys, more: false } => Ok(keys),
        KeyReply::Keys { .. } => panic!("too many keys"),
        other => panic!("{other:?}"),
    }
}

/// Looks for tokens, then for keys, and signs with the first.
pub fn use_it(worker: &mut Worker) -> Result<Vec<u8>, Failure> {
    let tokens = list(worker)?;
    let token = tokens.first().ok_or(Failure::Error(KeyError::NoToken))?.id;
    let keys = list_keys(worker, token)?;
    let key = keys.first().ok_or(Failure::Error(KeyError::NoKey))?;
    match worker.does(token, sign(&key.key, SignatureScheme::Ecdsa, &[7; 32]))? {
        KeyReply::Bytes(signature) => Ok(signature.0),
        other => panic!("{other:?}"),
    }
}

const ANSWERS: &str = "the worker answers an error";
const ENDS: &str = "the worker ends, and nobody else";

#[test]
fn a_harmless_module_signs() {
    let mut worker = worker("");
    let signature = use_it(&mut worker).expect("a signature");
    assert_eq!(signature.len(), 64);
    assert_eq!((signature[0], signature[1]), (0, 1));
}

#[test]
fn nonsense_is_an_error_or_the_end_of_the_worker() {
    for (manner, error) in [
        ("has no functions", None),
        ("fails in C_Initialize", None),
        ("crashes when it is loaded", None),
        ("crashes in C_Initialize", None),
        ("crashes in C_Sign", None),
        ("ends the process in C_Sign", None),
        ("takes all memory", None),
        ("has 2^32 slots", None),
        ("has 2^60 mechanisms", Some(KeyError::Nonsense)),
        ("has attributes of 2^60 bytes", Some(KeyError::NoKey)),
        ("has attributes of no length", Some(KeyError::NoKey)),
        ("has attributes longer than it said", None),
        ("has no attributes", Some(KeyError::NoKey)),
        ("finds more objects than fit", Some(KeyError::Nonsense)),
        ("makes signatures of 2^60 bytes", None),
        (
            "makes signatures of unknown length",
            Some(KeyError::Nonsense),
        ),
        ("makes signatures of no length", Some(KeyError::Nonsense)),
        ("returns an error that there is not", Some(KeyError::Failed)),
    ] {
        let mut worker = worker(manner);
        let outcome = match (use_it(&mut worker), error) {
            (Err(Failure::Error(seen)), Some(error)) => {
                assert_eq!(seen, error, "{manner}");
                assert!(
                    list(&mut worker).is_ok() || manner.contains("mechanisms"),
                    "{manner}"
                );
                ANSWERS
            }
            (Err(Failure::Ended), None) => {
                assert!(worker.end(PATIENCE).is_some(), "{manner}");
                ENDS
            }
            other => panic!("{manner}: {other:?}"),
        };
        threat_model::outcome(ATTACKER, manner, outcome);
    }
}

#[test]
fn what_is_longer_than_it_said_is_not_read() {
    let manner = "makes signatures longer than it said";
    let signature = use_it(&mut worker(manner)).expect("a signature");
    assert_eq!(signature, [0; 64]);
    threat_model::outcome(ATTACKER, manner, "what there was no room for is not read");
}

#[test]
fn names_that_are_no_text_are_made_to_be_text() {
    let manner = "has names that are no text";
    let mut worker = worker(manner);
    let tokens = list(&mut worker).expect("a list");
    let names = tokens.iter().flat_map(|token| {
        let names = [
            &token.label,
            &token.manufacturer,
            &token.model,
            &token.serial,
        ];
        names.map(|name| name.chars())
    });
    assert!(names.flatten().all(|character| !character.is_control()));
    let keys = list_keys(&mut worker, tokens[0].id).expect("a list");
    assert!(keys[0].label.starts_with('\u{fffd}'));
    let outcome = "they are shown as text, without control characters";
    threat_model::outcome(ATTACKER, manner, outcome);
}

#[test]
fn lists_without_an_end_have_one() {
    for (manner, outcome) in [
        ("finds objects without an end", "4,096 are looked at"),
        (
            "has more slots than it said",
            "those that it has not said are not looked at",
        ),
    ] {
        let mut worker = worker(manner);
        let tokens = list(&mut worker);
        if manner.contains("slots") {
            // It says how many fit, and then that there are more.
            assert!(
                matches!(&tokens, Ok(tokens) if tokens.len() <= 1)
                    || matches!(tokens, Err(Failure::Error(_))),
                "{tokens:?}"
            );
        } else {
            let token = tokens.expect("a list")[0].id;
            match worker.does(token, Operation::ListKeys { start: 0 }) {
                Ok(KeyReply::Keys { keys, more }) => assert!(more && keys.len() < 4096),
                other => panic!("{other:?}"),
            }
        }
        threat_model::outcome(ATTACKER, manner, outcome);
    }
}

#[test]
fn a_module_that_hangs_keeps_nobody_else_waiting_and_ends_with_the_browser() {
    for manner in [
        "hangs when it is loaded",
        "hangs in C_Initialize",
        "hangs in C_Sign",
    ] {
        let mut worker = worker(manner);
        if manner == "hangs in C_Sign" {
            let token = list(&mut worker).expect("a list")[0].id;
            let keys = list_keys(&mut worker, token).expect("a list");
            let operation = sign(&keys[0].key, SignatureScheme::Ecdsa, &[7; 32]);
            let id = worker.send(KeyRequestBody::Token(token, operation));
            assert_eq!(worker.answer_within(id, SHORT), Err(Failure::Silence));
            list(&mut worker).expect("a list");
        } else {
            let id = worker.send(KeyRequestBody::ListTokens);
            assert_eq!(worker.answer_within(id, SHORT), Err(Failure::Silence));
        }
        // Another module's worker is another process.
        let hsm = SoftHsm::new();
        assert_eq!(hsm.worker().tokens().len(), 1);
        worker.cut();
        assert!(worker.end(PATIENCE).is_some(), "{manner}");
        let outcome =
            "its own tokens wait until the worker is killed, no others; it ends with the browser";
        threat_model::outcome(ATTACKER, manner, outcome);
    }
}

#[test]
fn a_thread_of_a_module_s_costs_a_processor_s_time() {
    let manner = "starts a thread that never rests";
    let mut worker = worker(manner);
    use_it(&mut worker).expect("a signature");
    worker.cut();
    assert!(worker.end(PATIENCE).is_some());
    let outcome = "possible: it takes one processor's time until the worker ends";
    threat_model::outcome(ATTACKER, manner, outcome);
}

fn error_name(number: u8) -> &'static str {
    match number.into() {
        libc::EACCES => "refused (EACCES)",
        libc::EPERM => "refused (EPERM)",
        other => panic!("error {other}"),
    }
}

#[test]
fn what_a_module_tries_with_the_rest_of_the_machine() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    fs::write(&secret, "secret").expect("a file");
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    for (manner, target) in [
        ("reads a file", &secret),
        ("writes a file", &secret),
        ("lists a folder", &secret),
        ("opens a device", &secret),
        ("connects to a local socket", &socket),
        ("connects over TCP", &socket),
        ("starts a program", &secret),
        ("starts a process", &secret),
        ("traces the browser", &secret),
        ("signals the browser", &secret),
        ("makes code", &secret),
        ("loads a library", &secret),
    ] {
        let mut worker = Worker::start(&WorkerKind::Module(config(manner, target)));
        let outcome = match use_it(&mut worker) {
            Ok(signature) => error_name(signature[0]),
            Err(Failure::Ended) => {
                let status = worker.end(PATIENCE).expect("an end");
                assert_eq!(status.signal(), Some(libc::SIGSYS), "{manner}");
                "the worker is ended"
            }
            other => panic!("{manner}: {other:?}"),
        };
        threat_model::outcome(ATTACKER, manner, outcome);
    }
    // Its first line of code runs in the sandbox already.
    let manner = "connects when it is loaded";
    let mut worker = Worker::start(&WorkerKind::Module(config(manner, &socket)));
    use_it(&mut worker).expect("a signature");
    threat_model::outcome(ATTACKER, manner, error_name(libc::EACCES as u8));
    let manner = "reads when it is loaded";
    let mut worker = Worker::start(&WorkerKind::Module(config(manner, &secret)));
    use_it(&mut worker).expect("a signature");
    threat_model::outcome(ATTACKER, manner, error_name(libc::EACCES as u8));
    assert!(listener.accept().is_err(), "somebody has connected");
    assert_eq!(fs::read_to_string(&secret).expect("a file"), "secret");
    // With the configuration's leave it can.
    let readable = ModuleConfig {
        read: vec![secret.display().to_string()],
        ..config("reads a file", &secret)
    };
    let mut worker = Worker::start(&WorkerKind::Module(readable));
    assert_eq!(use_it(&mut worker).expect("a signature")[0], 0);
}

#[test]
fn what_is_no_module_is_not_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.so");
    fs::write(&text, "text").expect("a file");
    for module in [
        text.as_path(),
        Path::new("/nowhere.so"),
        Path::new("/lib64/ld-linux-x86-64.so.2"),
    ] {
        let config = ModuleConfig {
            module: module.display().to_string(),
            ..config("", &text)
        };
        let mut worker = Worker::start(&WorkerKind::Module(config));
        let status = worker.end(PATIENCE);
        assert!(
            status.is_some_and(|status| !status.success()),
            "{}",
            module.display()
        );
    }
}
