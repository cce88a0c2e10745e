/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Token processes that were taken over: a broker against the main process, a worker against the broker; and a stranger who
//! is at the meeting place before the process that was started.
//!
//! This program is its own harness, and plays all of them: its first argument says which.

mod common;

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs, io, thread};

use common::*;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use token_client::{ClientConfig, TokenClient};
use token_traits::control::{FromBroker, Hello, ToBroker, WorkerId, WorkerKind};
use token_traits::port::{Command as PortCommand, ReplyBody, RequestBody};
use token_traits::prompt::{AuditEntry, Overview, PromptId, PromptRequest, Question};
use token_traits::transport::Carrier;
use token_traits::wire::WIRE_VERSION;
use token_traits::{ErrorKind, Frame, Origin, PortId, TokenBroker};
use token_workers::process::{self, Channels};
use token_workers::protocol::{
    Connected, Protocol, ReplyBody as WorkerReply, RequestBody as WorkerBody, WorkerMessage,
    WorkerRequest,
};
use token_workers::sandbox::{self, Kind};

/// What a hostile broker does to the main process.
const BROKERS: [&str; 12] = [
    "sends bytes",
    "sends frames that are no messages",
    "announces a message of 2^60 bytes",
    "announces more and sends nothing",
    "sends descriptors",
    "floods",
    "floods and does not read",
    "starts and kills workers",
    "sends an overview without an end",
    "answers what nobody asked",
    "says nothing",
    "says nothing and does not read",
];

/// What a hostile worker does to the broker, when it is to carry a command.
const WORKERS: [&str; 14] = [
    "sends bytes",
    "sends frames that are no messages",
    "announces a message of 2^60 bytes",
    "announces more and sends nothing",
    "sends descriptors",
    "floods",
    "answers too long",
    "answers nothing",
    "answers something else",
    "answers another request",
    "answers twice",
    "says that it watches readers",
    "does not answer",
    "takes all the memory that it can",
];

/// What a stranger does at the meeting place.
const STRANGERS: [&str; 4] = [
    "reports as if it were the process",
    "sends bytes",
    "holds the line",
    "takes all places",
];

/// How long the main process may leave a document or the page of tokens without an answer, whatever brokers do: it tries
/// two, for 10 seconds each.
const LIMIT: Duration = Duration::from_secs(25);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["main-process", manner] => {
            main_process(manner);
            return ExitCode::SUCCESS;
        }
        ["hostile", manner, "broker", token, ..] => {
            hostile_broker(manner, token).expect("a broker");
            return ExitCode::SUCCESS;
        }
        ["hostile", manner, _, token] => {
            hostile_worker(manner, token).expect("a worker");
            return ExitCode::SUCCESS;
        }
        ["stranger", manner, token] => {
            stranger(manner, token).expect("a stranger");
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut tests = Vec::new();
    for manner in BROKERS {
        let name = format!("a broker that {manner} does not harm the main process");
        tests.push(Trial::test(name, || a_hostile_broker(manner)));
    }
    for manner in WORKERS {
        let name = format!("a worker that {manner} does not harm the broker");
        tests.push(Trial::test(name, || {
            a_hostile_worker(manner);
            Ok(())
        }));
    }
    for manner in STRANGERS {
        let name = format!("a stranger who {manner} does not get in");
        tests.push(Trial::test(name, || {
            a_stranger(manner);
            Ok(())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// A script in that folder which starts processes of the kind as hostile ones, as long as the file `hostile` is there, and
/// all others as they should be.
fn program(folder: &Path, kind: &str, manner: &str) -> PathBuf {
    let this = env::current_exe().expect("this program");
    let hostile = folder.join("hostile");
    fs::write(&hostile, "").expect("a file");
    let start = format!(
        "[ \"$1\" = {kind} ] && [ -e {} ] && exec {} hostile '{manner}' \"$@\"",
        hostile.display(),
        this.display()
    );
    script(folder, &start)
}

/// A script that does something, and then becomes the process that it should be.
fn script(folder: &Path, first: &str) -> PathBuf {
    let script = folder.join("token-broker");
    let broker = env!("CARGO_BIN_EXE_token-broker");
    let text = format!("#!/bin/sh\n{first}\nexec {broker} \"$@\"\n");
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).expect("a script");
    script
}

fn client(binary: PathBuf) -> Arc<TokenClient> {
    let config = ClientConfig {
        broker_binary: binary,
        virtual_card: Some("default".into()),
        ..nothing()
    };
    let client = TokenClient::new(config, Arc::new(Nobody));
    grant(&client, ORIGIN);
    client
}

// A hostile broker.

/// Each has a main process of its own, so that nothing of what others do counts.
fn a_hostile_broker(manner: &str) -> Result<(), Failed> {
    let mut main_process = Command::new(env::current_exe()?)
        .args(["main-process", manner])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let errors = main_process.stderr.take().ok_or("no output")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(io::read_to_string(errors));
    });
    // Everything in there has a limit.
    let errors = receiver.recv_timeout(LIMIT * 8);
    let _ = main_process.kill();
    let status = main_process.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{status}: {errors:?}").into())
    }
}

/// What this process takes of the machine.
#[derive(Debug)]
struct Taken {
    kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Taken {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let value = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let count = |folder| fs::read_dir(folder).expect("a folder").count();
        Self {
            kib: value.expect("a size").parse().expect("a size"),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }
}

fn main_process(manner: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let client = client(program(folder.path(), "broker", manner));
    let before = Taken::now();
    let asked = Instant::now();
    let (sender, port) = mpsc::channel();
    let callback = move |result: Result<_, _>| {
        let _ = sender.send(result.map(|_| ()));
    };
    client.open_port(identity(ORIGIN), Box::new(callback));
    let (sender, overview) = mpsc::channel::<Overview>();
    client.overview(Box::new(move |overview| {
        let _ = sender.send(overview);
    }));
    client.user_input(1);
    assert!(
        asked.elapsed() < Duration::from_millis(500),
        "the caller waits"
    );
    let port: Result<(), _> = port.recv_timeout(LIMIT).expect("an outcome");
    let overview = overview.recv_timeout(LIMIT);
    assert_ne!(overview, Err(RecvTimeoutError::Timeout));
    let after = Taken::now();
    assert!(after.kib < before.kib + 65_536, "{before:?}, {after:?}");
    assert!(
        after.descriptors < before.descriptors + 16,
        "{before:?}, {after:?}"
    );
    assert!(after.threads < before.threads + 16, "{before:?}, {after:?}");

    // With a good broker all is well again. One that opens ports, and does harm otherwise, stays until it ends.
    fs::remove_file(folder.path().join("hostile")).expect("a file");
    let mut page = wait_for("a port", || try_open_page(&client, ORIGIN).ok());
    assert_eq!(page.readers().len(), 1);
    let outcome = match port {
        Ok(()) => "documents get ports; another broker serves the next ones",
        Err(_) => "documents get an error in time; another broker serves the next ones",
    };
    threat_model::outcome("broker", manner, outcome);
}

/// Reports, and then does harm until it is killed.
fn hostile_broker(manner: &str, token: &str) -> io::Result<()> {
    let Channels {
        requests,
        replies,
        lifeline,
    } = process::connect::<ToBroker, Frame>(token.to_owned())?.report()?;
    lifeline.watch()?;
    if !manner.ends_with("does not read") {
        thread::spawn(move || while requests.recv().is_ok() {});
    }
    let send = |message: FromBroker| {
        let _ = replies.send(Frame::encode(&message).expect("a frame"));
    };
    let worker = |number| WorkerId(number % 100);
    let mut number = 0;
    loop {
        number += 1;
        match manner {
            "floods" | "floods and does not read" => {
                send(FromBroker::CheckActivation {
                    prompt: PromptId(number),
                    webview: 1,
                });
                send(FromBroker::Prompt(prompt(number)));
            }
            "starts and kills workers" => {
                send(FromBroker::StartWorker {
                    worker: worker(number),
                    kind: WorkerKind::VirtualCard {
                        profile: "default".into(),
                    },
                });
                send(FromBroker::KillWorker(worker(number / 2)));
            }
            "sends an overview without an end" => {
                let entry = AuditEntry {
                    time: SystemTime::now(),
                    origin: Origin::new(ORIGIN).expect("an origin"),
                    reader: "x".repeat(60_000),
                    applet: None,
                    decision: String::new(),
                };
                for id in 0..3 {
                    send(FromBroker::Overview {
                        id,
                        part: Overview {
                            audit: vec![entry.clone()],
                            ..Overview::default()
                        },
                        is_last: false,
                    });
                }
            }
            "answers what nobody asked" => {
                send(FromBroker::PortOpened(PortId(number + 1000)));
                send(FromBroker::PortClosed(PortId(number)));
                send(FromBroker::WithdrawPrompt(PromptId(number)));
                send(FromBroker::KillWorker(worker(number)));
            }
            "says nothing" | "says nothing and does not read" => thread::park(),
            _ => {
                send_harm(manner, &replies)?;
                thread::park();
            }
        }
    }
}

fn prompt(number: u64) -> PromptRequest {
    let origin = Origin::new(ORIGIN).expect("an origin");
    PromptRequest {
        id: PromptId(number),
        replaces: Some(PromptId(number - 1)),
        webview: 1,
        origin: origin.clone(),
        top_level_origin: origin,
        question: Question::UseApplet {
            reader: "\u{202e}".repeat(10_000),
            applet: Some(vec![0; 10_000]),
        },
    }
}

/// What harms receivers of ipc-channel that trust the sender.
fn send_harm(manner: &str, channel: &IpcSender<Frame>) -> io::Result<()> {
    let (_, unused) = ipc::channel()?;
    let wire = Carrier::new()?.unpack(unused, channel.clone().to_opaque().to())?;
    let socket = wire.sending_end();
    let header =
        |length: usize, total: usize| [&length.to_ne_bytes()[..], &total.to_ne_bytes()].concat();
    let payload = [0xa5; 100];
    let packet = |total: usize| [&header(16 + payload.len(), total), &payload[..]].concat();
    match manner {
        "sends bytes" => send_packet(socket, &[0xa5; 1000], &[]),
        "sends frames that are no messages" => {
            let _ = channel.send(Frame::from_bytes(vec![0xff; 100]));
        }
        "announces a message of 2^60 bytes" => {
            // With a socket for the rest, as it should be.
            let (_kept, rest) = std::os::unix::net::UnixDatagram::pair()?;
            send_packet(socket, &packet(1 << 60), &[rest.as_fd()]);
            thread::sleep(Duration::from_secs(1));
        }
        "announces more and sends nothing" => {
            let (_kept, rest) = std::os::unix::net::UnixDatagram::pair()?;
            send_packet(socket, &packet(1 << 20), &[rest.as_fd()]);
            // The rest never comes, and the socket for it does not close.
            thread::park();
        }
        "sends descriptors" => {
            let file = fs::File::open("/dev/null")?;
            let frame = Frame::from_bytes(vec![WIRE_VERSION]);
            let encoded = [1, WIRE_VERSION];
            assert_eq!(frame.encoded_length(), 1);
            let packet = [&header(16 + encoded.len(), encoded.len()), &encoded[..]].concat();
            for _ in 0..100 {
                send_packet(socket, &packet, &[file.as_fd(); 64]);
            }
        }
        other => panic!("{other}"),
    }
    Ok(())
}

fn send_packet(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let parts = [io::IoSlice::new(packet)];
    // Whoever does not want more closes.
    let _ = rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL);
}

// A hostile worker.

fn a_hostile_worker(manner: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let binary = program(folder.path(), "virtual-card", manner);
    let client = client(binary);
    let mut other = try_open_page(&client, ORIGIN).expect("a port");
    let mut page = try_open_page(&client, ORIGIN).expect("a port");
    let channel = page.open_echo();
    let begun = Instant::now();
    let request = page.send(RequestBody::Transmit {
        channel,
        command: PortCommand::Raw(vec![0x00, 0xca, 0x00, 0x00, 0x00]),
        timeout_ms: Some(500),
    });
    let reply = page.wait(request, PATIENCE).expect("an open port");
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(2), "{taken:?}");
    if manner == "floods" {
        assert!(taken < Duration::from_millis(500), "the time was over");
    }
    let outcome = match reply {
        // What it answers is its own affair: the card could have said it.
        Ok(reply) => {
            assert_eq!(reply, ReplyBody::Response(vec![0x90, 0x00]));
            "the command gets its first answer"
        }
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Io);
            "the command fails in time"
        }
    };
    assert_eq!(manner == "answers twice", outcome.contains("first"));
    // The same broker serves others meanwhile, and still serves this one.
    for page in [&mut other, &mut page] {
        for _ in 0..10 {
            let request = page.send(RequestBody::GetReaders);
            assert!(page.wait(request, PROMPTLY).expect("an open port").is_ok());
        }
    }
    fs::remove_file(folder.path().join("hostile")).expect("a file");
    // A worker that is not known to be bad yet serves until it does something that is forbidden.
    wait_for("a good worker", || {
        let Ok(ReplyBody::Readers(readers)) = page.ask(RequestBody::GetReaders) else {
            return None;
        };
        let session = match page.ask(RequestBody::OpenSession(readers[0].id)) {
            Ok(ReplyBody::Session(session)) => session.id,
            _ => return None,
        };
        let channel = match page.ask(open(session, &virtual_card::applets::echo::AID)) {
            Ok(ReplyBody::Channel(channel)) => channel.id,
            _ => return None,
        };
        let echo = command(channel, virtual_card::applets::echo::INS_ECHO, 0, b"good");
        let expected = ReplyBody::Response([&b"good"[..], &[0x90, 0x00]].concat());
        (page.ask(echo) == Ok(expected)).then_some(())
    });
    let outcome =
        format!("{outcome}; other documents are served meanwhile; another worker takes its place");
    threat_model::outcome("card's worker", manner, &outcome);
}

/// Is a card that opens channels and selects whatever is asked for, and does harm with any other command.
fn hostile_worker(manner: &str, token: &str) -> io::Result<()> {
    let Channels {
        requests,
        replies,
        lifeline,
    } = process::connect::<Frame, Frame>(token.to_owned())?.report()?;
    if manner.starts_with("takes all") {
        // Only the sandbox stands between it and the machine.
        sandbox::lock_down(Kind::VirtualCard).map_err(io::Error::other)?;
    }
    lifeline.watch()?;
    let kind: WorkerKind = requests
        .recv()
        .map_err(io::Error::other)?
        .decode()
        .map_err(io::Error::other)?;
    assert!(matches!(kind, WorkerKind::VirtualCard { .. }));
    let send = |message: WorkerMessage| {
        let _ = replies.send(Frame::encode(&message).expect("a frame"));
    };
    while let Ok(frame) = requests.recv() {
        let WorkerRequest { id, body } = frame.decode().map_err(io::Error::other)?;
        let answer = |request, body| {
            send(WorkerMessage::Reply {
                request,
                result: Ok(body),
            });
        };
        let command = match body {
            WorkerBody::Connect { .. } | WorkerBody::Reset => {
                let connected = Connected {
                    atr: vec![0x3b, 0x80, 0x01, 0x81],
                    protocol: Protocol::T1,
                    fresh: true,
                };
                answer(id, WorkerReply::Connected(connected));
                continue;
            }
            WorkerBody::Disconnect => {
                answer(id, WorkerReply::Done);
                continue;
            }
            WorkerBody::Transmit { command, .. } => command,
        };
        let success = vec![0x90, 0x00];
        match command.get(1) {
            Some(0x70) => answer(id, WorkerReply::Response(vec![1, 0x90, 0x00])),
            Some(0xa4) => answer(id, WorkerReply::Response(success)),
            _ => match manner {
                "floods" => {
                    for number in 0_u64.. {
                        send(WorkerMessage::CardPresent(number % 2 == 0));
                    }
                }
                "answers too long" => answer(id, WorkerReply::Response(vec![0x90; 70_000])),
                "answers nothing" => answer(id, WorkerReply::Response(Vec::new())),
                "answers something else" => answer(id, WorkerReply::Done),
                "answers another request" => answer(id + 1, WorkerReply::Response(success)),
                "answers twice" => {
                    answer(id, WorkerReply::Response(success.clone()));
                    answer(id, WorkerReply::Response(success));
                }
                "says that it watches readers" => send(WorkerMessage::Readers(Vec::new())),
                "does not answer" => thread::park(),
                // Until there is none, which ends it.
                "takes all the memory that it can" => loop {
                    std::mem::forget(Vec::<u8>::with_capacity(1 << 20));
                },
                _ => send_harm(manner, &replies)?,
            },
        }
    }
    Ok(())
}

// A stranger.

fn a_stranger(manner: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let this = env::current_exe().expect("this program");
    // The script goes on when the stranger has connected.
    let first = format!(
        "[ \"$1\" = broker ] && mkfifo {0}/there && {{ {1} stranger '{manner}' \"$2\" > {0}/there & read line < {0}/there; }}",
        folder.path().display(),
        this.display()
    );
    let client = client(script(folder.path(), &first));
    let begun = Instant::now();
    let mut page = try_open_page(&client, ORIGIN).expect("a port");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(page.readers().len(), 1);
    let channel = page.open_echo();
    page.assert_echoes(channel, b"the right one");
    threat_model::outcome(
        "stranger",
        &format!("{manner}, where a token process is to report"),
        "nobody listens; the right process serves",
    );
}

/// Connects, says so, and is there for a while.
fn stranger(manner: &str, token: &str) -> io::Result<()> {
    let mut kept = Vec::new();
    let connect = || IpcSender::<Hello<ToBroker, Frame>>::connect(token.to_owned());
    match manner {
        "reports as if it were the process" => {
            let (to_child, requests) = ipc::channel()?;
            let (replies, from_child) = ipc::channel()?;
            let (lifeline, watched) = ipc::channel()?;
            let hello = Hello {
                version: WIRE_VERSION,
                to_child,
                from_child,
                lifeline,
            };
            let _ = connect()?.send(hello);
            say_that_it_is_there();
            return serve_in_its_place(requests, replies, watched);
        }
        "sends bytes" => {
            let connection = connect()?;
            let (_, unused) = ipc::channel()?;
            let wire = Carrier::new()?.unpack(unused, connection.to_opaque().to())?;
            send_packet(wire.sending_end(), &[0xff; 10_000], &[]);
        }
        "holds the line" => kept.push(connect()?),
        "takes all places" => {
            for _ in 0..10 {
                kept.push(connect()?);
            }
            thread::spawn({
                let token = token.to_owned();
                move || {
                    loop {
                        // Until the place is closed.
                        let Ok(connection) = IpcSender::<()>::connect(token.clone()) else {
                            return;
                        };
                        drop(connection);
                    }
                }
            });
        }
        other => panic!("{other}"),
    }
    say_that_it_is_there();
    thread::sleep(Duration::from_secs(3));
    drop(kept);
    Ok(())
}

fn say_that_it_is_there() {
    println!("there");
    io::stdout().flush().expect("an output");
}

/// Opens ports and answers nothing, so that the test would notice.
fn serve_in_its_place(
    requests: IpcReceiver<ToBroker>,
    replies: IpcSender<Frame>,
    _watched: IpcReceiver<()>,
) -> io::Result<()> {
    while let Ok(message) = requests.try_recv_timeout(Duration::from_secs(3)) {
        if let ToBroker::OpenPort { port, .. } = message {
            let opened = FromBroker::PortOpened(port);
            let _ = replies.send(Frame::encode(&opened).expect("a frame"));
            // Keeps the port's ends.
            std::mem::forget(message);
        }
    }
    Ok(())
}
