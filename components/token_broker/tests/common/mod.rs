/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A main process's client and pages without an engine, for tests of the real processes.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use token_client::{ClientConfig, TokenClient};
use token_traits::control::AccessConfig;
use token_traits::port::{
    ChannelId, ChannelType, Command, PortMessage, PortRequest, ReaderId, ReaderInfo, ReplyBody,
    RequestBody, RequestId, SessionId,
};
use token_traits::prompt::{AnswerCallback, PromptAnswer, PromptHost, PromptId, PromptRequest};
use token_traits::{
    Connection, ErrorKind, Frame, Origin, PortId, PortIdentity, TokenBroker, TokenError, TokenPort,
};
use token_traits::{Feature, PermissionState};
use virtual_card::applets::echo;

pub const ORIGIN: &str = "https://bank.example";

/// Whatever should happen happens by then, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a page may be left without an answer when a process dies.
pub const PROMPTLY: Duration = Duration::from_secs(1);

pub type Reply = Result<ReplyBody, TokenError>;

/// A client whose processes can be told from those of other tests: they run under a name of their own.
pub struct Browser {
    pub client: Arc<TokenClient>,
    binary: PathBuf,
    _directory: TempDir,
}

/// A configuration that starts nothing.
pub fn nothing() -> ClientConfig {
    ClientConfig {
        broker_binary: PathBuf::new(),
        pcsc: false,
        uicc_readers: Vec::new(),
        virtual_card: None,
        access: None,
        store: None,
        modules: Vec::new(),
        tpm: None,
        piv_management_key: None,
    }
}

/// There is nobody to ask.
pub struct Nobody;

impl PromptHost for Nobody {
    fn show(&self, _request: PromptRequest, answer: AnswerCallback) {
        answer(PromptAnswer::Refused);
    }

    fn withdraw(&self, _id: PromptId) {}
}

pub fn identity(origin: &str) -> PortIdentity {
    let origin = Origin::new(origin).expect("an origin");
    PortIdentity {
        origin: origin.clone(),
        top_level_origin: origin,
        webview: 1,
        event_loop: 1,
        private: false,
        connection: Connection::TrustedHttps,
        features: token_traits::FeatureSet::ALL,
    }
}

/// Has automation answer for the user that the origin may use tokens.
pub fn grant(client: &TokenClient, origin: &str) {
    let origin = Origin::new(origin).expect("an origin");
    client.set_permission(
        origin.clone(),
        origin,
        Feature::SecureElement,
        PermissionState::Granted,
    );
}

pub fn try_open_page(client: &TokenClient, origin: &str) -> Result<Page, TokenError> {
    try_open_page_as(client, identity(origin))
}

pub fn try_open_page_as(client: &TokenClient, identity: PortIdentity) -> Result<Page, TokenError> {
    let (sender, receiver) = mpsc::channel();
    let callback = move |result| {
        let _ = sender.send(result);
    };
    let id = client.open_port(identity, Box::new(callback));
    let port = receiver.recv_timeout(PATIENCE).expect("an outcome")?;
    Ok(Page::new(id, port))
}

impl Browser {
    /// With the embedded card, and a grant for [`ORIGIN`].
    pub fn start(pcsc: bool) -> Self {
        let browser = Self::with_user(pcsc, None, Arc::new(Nobody));
        browser.grant(ORIGIN);
        browser
    }

    /// With PC/SC and access rules, and a grant for [`ORIGIN`].
    pub fn with_access(access: AccessConfig, uicc_readers: Vec<String>) -> Self {
        let config = ClientConfig {
            pcsc: true,
            uicc_readers,
            access: Some(access),
            ..nothing()
        };
        let browser = Self::configured(config, Arc::new(Nobody));
        browser.grant(ORIGIN);
        browser
    }

    pub fn grant(&self, origin: &str) {
        grant(&self.client, origin);
    }

    /// With the embedded card, a folder to remember things in, and somebody to ask.
    pub fn with_user(pcsc: bool, store: Option<PathBuf>, user: Arc<dyn PromptHost>) -> Self {
        let config = ClientConfig {
            pcsc,
            virtual_card: Some("default".into()),
            store,
            ..nothing()
        };
        Self::configured(config, user)
    }

    pub fn configured(config: ClientConfig, user: Arc<dyn PromptHost>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let binary = directory.path().join("token-broker");
        symlink(env!("CARGO_BIN_EXE_token-broker"), &binary).expect("a link");
        let config = ClientConfig {
            broker_binary: binary.clone(),
            ..config
        };
        Self {
            client: TokenClient::new(config, user),
            binary,
            _directory: directory,
        }
    }

    pub fn try_open_page(&self, origin: &str) -> Result<Page, TokenError> {
        try_open_page(&self.client, origin)
    }

    pub fn open_page(&self) -> Page {
        self.try_open_page(ORIGIN).expect("a port")
    }

    /// The processes of a kind.
    pub fn processes(&self, kind: &str) -> Vec<Pid> {
        processes_of(&self.binary, Some(kind))
    }

    /// The one process of a kind.
    pub fn process(&self, kind: &str) -> Pid {
        wait_for(&format!("a {kind} process"), || {
            match self.processes(kind)[..] {
                [pid] => Some(pid),
                _ => None,
            }
        })
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }
}

/// The processes that were started as `binary`, of a kind if one is given. Those that have ended, but have not been
/// reaped, have no command line and do not count.
pub fn processes_of(binary: &Path, kind: Option<&str>) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process that has ended meanwhile is none.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let mut arguments = line.split(|byte| *byte == 0);
        if arguments.next() == Some(binary.as_os_str().as_bytes())
            && kind.is_none_or(|kind| arguments.next() == Some(kind.as_bytes()))
        {
            found.extend(Pid::from_raw(pid));
        }
    }
    found
}

pub fn kill(pid: Pid) {
    rustix::process::kill_process(pid, Signal::KILL).expect("a process to kill");
}

pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A document with a port.
pub struct Page {
    pub id: PortId,
    pub requests: IpcSender<Frame>,
    pub messages: IpcReceiver<Frame>,
    next: u64,
    replies: HashMap<RequestId, Reply>,
    /// What it was told of elements without asking.
    pub elements: Vec<ReaderInfo>,
}

/// The port has closed.
#[derive(Debug, Eq, PartialEq)]
pub struct PortClosed;

impl Page {
    pub fn new(id: PortId, port: TokenPort) -> Self {
        Self {
            id,
            requests: port.requests,
            messages: port.messages,
            next: 1,
            replies: HashMap::new(),
            elements: Vec::new(),
        }
    }

    pub fn send(&mut self, body: RequestBody) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let frame = Frame::encode(&PortRequest { id, body }).expect("a frame");
        // A port that has closed shows when the answer is awaited.
        let _ = self.requests.send(frame);
        id
    }

    pub fn wait(&mut self, request: RequestId, limit: Duration) -> Result<Reply, PortClosed> {
        use ipc_channel::{IpcError, TryRecvError};
        let deadline = Instant::now() + limit;
        loop {
            if let Some(reply) = self.replies.remove(&request) {
                return Ok(reply);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer within {limit:?}");
            match self.messages.try_recv_timeout(left) {
                Ok(frame) => match frame.decode().expect("a message of the broker") {
                    PortMessage::Reply { request, result } => {
                        let earlier = self.replies.insert(request, result);
                        assert!(earlier.is_none(), "two answers");
                    }
                    PortMessage::Element(info) => self.elements.push(info),
                    PortMessage::Token(_) => {}
                },
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::IpcError(IpcError::Disconnected)) => return Err(PortClosed),
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn ask(&mut self, body: RequestBody) -> Reply {
        let request = self.send(body);
        self.wait(request, PATIENCE).expect("an open port")
    }

    pub fn readers(&mut self) -> Vec<ReaderInfo> {
        match self.ask(RequestBody::GetReaders) {
            Ok(ReplyBody::Readers(readers)) => readers,
            other => panic!("{other:?}"),
        }
    }

    pub fn open_session(&mut self, reader: ReaderId) -> SessionId {
        match self.ask(RequestBody::OpenSession(reader)) {
            Ok(ReplyBody::Session(session)) => session.id,
            other => panic!("{other:?}"),
        }
    }

    pub fn open_channel(&mut self, session: SessionId) -> ChannelId {
        match self.ask(open(session, &echo::AID)) {
            Ok(ReplyBody::Channel(channel)) => {
                let response = channel.open_response.expect("an answer to SELECT");
                assert!(response.ends_with(&[0x90, 0x00]));
                channel.id
            }
            other => panic!("{other:?}"),
        }
    }

    /// Opens a channel to the echo applet of the embedded card.
    pub fn open_echo(&mut self) -> ChannelId {
        let reader = self.readers()[0].id;
        let session = self.open_session(reader);
        self.open_channel(session)
    }

    pub fn assert_echoes(&mut self, channel: ChannelId, data: &[u8]) {
        let expected = [data, &[0x90, 0x00]].concat();
        let reply = self.ask(command(channel, echo::INS_ECHO, 0, data));
        assert_eq!(reply, Ok(ReplyBody::Response(expected)));
    }
}

pub fn open(session: SessionId, aid: &[u8]) -> RequestBody {
    RequestBody::OpenChannel {
        session,
        channel_type: ChannelType::Supplementary,
        aid: Some(aid.to_vec()),
        p2: 0,
    }
}

/// A command to the echo applet; `p` is P1 and P2.
pub fn command(channel: ChannelId, ins: u8, p: u16, data: &[u8]) -> RequestBody {
    let [p1, p2] = p.to_be_bytes();
    RequestBody::Transmit {
        channel,
        command: Command::Fields {
            header: [0x00, ins, p1, p2],
            data: Some(data.to_vec()),
            le: Some(0),
            extended: false,
        },
        timeout_ms: None,
    }
}

/// A command that the card answers after that many times 10 ms.
pub fn slow(channel: ChannelId, times_10_ms: u16) -> RequestBody {
    command(channel, echo::INS_DELAY, times_10_ms, b"slow")
}

pub fn kind(reply: Reply) -> ErrorKind {
    reply.expect_err("an error").kind
}
