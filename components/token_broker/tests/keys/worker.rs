/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A worker's process.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipc_channel::ipc::{IpcOneShotServer, IpcReceiver, IpcSender};
use token_traits::Frame;
use token_traits::control::{WorkerHello, WorkerKind};
use token_workers::key_protocol::{
    Bytes, KeyError, KeyInfo, KeyMessage, KeyRef, KeyReply, KeyRequest, KeyRequestBody, KeyUse,
    NewKey, Operation, Secret, TokenId, TokenInfo, Usages,
};
use token_workers::key_protocol::{Cipher, KeyAlgorithm, SignatureScheme};

/// Whatever should happen happens by then.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The TPM's libraries write what they return to standard error as well.
const QUIET: (&str, &str) = ("TSS2_LOG", "all+NONE");

/// A worker, which ends with this.
pub struct Worker {
    process: Child,
    requests: IpcSender<Frame>,
    replies: IpcReceiver<Frame>,
    lifeline: Option<IpcSender<()>>,
    next: u64,
}

/// What does not come as an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The worker says so.
    Error(KeyError),
    /// The worker has ended.
    Ended,
    /// Nothing comes, and the worker lives.
    Silence,
}

impl Worker {
    pub fn start(kind: &WorkerKind) -> Self {
        let (name, environment) = match kind {
            WorkerKind::Module(module) => ("module-worker", module.environment.clone()),
            WorkerKind::Tpm { .. } => ("tpm-worker", [(QUIET.0.into(), QUIET.1.into())].into()),
            other => panic!("{other:?}"),
        };
        let (server, token) = IpcOneShotServer::<WorkerHello>::new().expect("a server");
        let process = Command::new(env!("CARGO_BIN_EXE_token-broker"))
            .args([name, &token])
            .env_clear()
            .envs(std::env::var_os("RUST_LOG").map(|level| ("RUST_LOG", level)))
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a process");
        let (_, hello) = server.accept().expect("a hello");
        hello
            .to_child
            .send(Frame::encode(kind).expect("a frame"))
            .expect("a worker");
        Self {
            process,
            requests: hello.to_child,
            replies: hello.from_child,
            lifeline: Some(hello.lifeline),
            next: 1,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn send(&mut self, body: KeyRequestBody) -> u64 {
        let id = self.next;
        self.next += 1;
        let request = KeyRequest { id, body };
        // A worker that has ended shows in the answer.
        let _ = self
            .requests
            .send(Frame::encode(&request).expect("a frame"));
        id
    }

    pub fn message(&mut self, limit: Duration) -> Result<KeyMessage, Failure> {
        match self.replies.try_recv_timeout(limit) {
            Ok(frame) => Ok(frame.decode().expect("a message")),
            Err(ipc_channel::TryRecvError::Empty) => Err(Failure::Silence),
            Err(_) => Err(Failure::Ended),
        }
    }

    pub fn answer_within(&mut self, id: u64, limit: Duration) -> Result<KeyReply, Failure> {
        let until = Instant::now() + limit;
        loop {
            match self.message(until.saturating_duration_since(Instant::now()))? {
                KeyMessage::Reply { request, result } if request == id => {
                    return result.map_err(Failure::Error);
                }
                KeyMessage::Reply { .. } | KeyMessage::TokensChanged => {}
            }
        }
    }

    pub fn ask(&mut self, body: KeyRequestBody) -> Result<KeyReply, Failure> {
        let id = self.send(body);
        self.answer_within(id, PATIENCE)
    }

    pub fn does(&mut self, token: TokenId, operation: Operation) -> Result<KeyReply, Failure> {
        self.ask(KeyRequestBody::Token(token, operation))
    }

    pub fn tokens(&mut self) -> Vec<TokenInfo> {
        match self.ask(KeyRequestBody::ListTokens) {
            Ok(KeyReply::Tokens(tokens)) => tokens,
            other => panic!("{other:?}"),
        }
    }

    pub fn token(&mut self) -> TokenId {
        self.tokens().first().expect("a token").id
    }

    pub fn login(&mut self, token: TokenId, pin: &str) -> Result<KeyReply, Failure> {
        let pin = Some(Secret::new(pin.into()));
        self.does(token, Operation::Login { pin })
    }

    pub fn keys(&mut self, token: TokenId) -> Vec<KeyInfo> {
        let mut all = Vec::new();
        loop {
            let start = u32::try_from(all.len()).expect("a number");
            match self.does(token, Operation::ListKeys { start }) {
                Ok(KeyReply::Keys { keys, more }) => {
                    all.extend(keys);
                    if !more {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn generate(&mut self, token: TokenId, key: NewKey) -> KeyInfo {
        match self.does(token, Operation::Generate(key)) {
            Ok(KeyReply::Key(key)) => *key,
            other => panic!("{other:?}"),
        }
    }

    pub fn bytes(&mut self, token: TokenId, operation: Operation) -> Vec<u8> {
        match self.does(token, operation) {
            Ok(KeyReply::Bytes(bytes)) => bytes.0,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of the process.
    pub fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.try_wait().expect("a process") {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What happens when the main process ends.
    pub fn cut(&mut self) {
        self.lifeline = None;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A key to be made that stays.
pub fn new_key(algorithm: KeyAlgorithm, usages: Usages, label: &str) -> NewKey {
    NewKey {
        algorithm,
        usages,
        label: label.into(),
        is_wrappable: false,
        is_persistent: true,
        asks_each_time: false,
        auth: None,
    }
}

pub fn using(key: &KeyRef) -> KeyUse {
    KeyUse {
        key: key.clone(),
        auth: None,
    }
}

pub fn sign(key: &KeyRef, scheme: SignatureScheme, data: &[u8]) -> Operation {
    Operation::Sign {
        key: using(key),
        scheme,
        data: data.into(),
    }
}

pub fn encrypt(key: &KeyRef, cipher: &Cipher, data: &[u8]) -> Operation {
    Operation::Encrypt {
        key: using(key),
        cipher: cipher.clone(),
        data: data.into(),
    }
}

pub fn decrypt(key: &KeyRef, cipher: &Cipher, data: &[u8]) -> Operation {
    Operation::Decrypt {
        key: using(key),
        cipher: cipher.clone(),
        data: data.into(),
    }
}

pub fn public_key(key: &KeyInfo) -> Vec<u8> {
    let Bytes(public_key) = key.public_key.clone().expect("a public key");
    public_key
}

/// What the kernel says of a process.
pub fn status_line(pid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let text = text.expect("a status");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.expect("a line").trim().to_owned()
}
