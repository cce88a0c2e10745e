/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What keeps keys, and the loop of a worker that serves it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use token_traits::Frame;

use crate::key_protocol::{
    Attestation, Bytes, Cipher, Hash, KeyError, KeyInfo, KeyMessage, KeyRef, KeyReply, KeyRequest,
    KeyRequestBody, KeyUse, MAX_WAITING, NewKey, Operation, Secret, SignatureScheme, TokenId,
    TokenInfo, WrapScheme,
};

/// How often a provider is asked whether a token has come or gone.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Keys behind some device. Each method is [`Operation`]'s of the same name. What a provider cannot do is
/// [`KeyError::Unsupported`].
///
/// Several threads use it at the same time, but never for the same token.
pub trait KeyProvider: Send + Sync + 'static {
    /// The tokens that are there.
    fn tokens(&self) -> Result<Vec<TokenInfo>, KeyError>;

    /// Whether a token has come or gone since this was asked last.
    fn has_changed(&self) -> bool {
        false
    }

    /// Whether this process is of no use any more. Its successor may be.
    fn is_over(&self) -> bool {
        false
    }

    /// Some of the keys of a token, and whether there are more.
    fn keys(&self, token: TokenId, start: usize) -> Result<(Vec<KeyInfo>, bool), KeyError>;

    /// A key's certificates, its own first.
    fn certificates(&self, _: TokenId, _: &KeyRef) -> Result<Vec<Bytes>, KeyError> {
        Ok(Vec::new())
    }

    /// Logs in.
    fn login(&self, _: TokenId, _: Option<&Secret>) -> Result<(), KeyError> {
        Ok(())
    }

    /// Logs out.
    fn logout(&self, _: TokenId) -> Result<(), KeyError> {
        Ok(())
    }

    /// Makes a key.
    fn generate(&self, token: TokenId, key: &NewKey) -> Result<KeyInfo, KeyError>;

    /// Deletes a key.
    fn delete(&self, token: TokenId, key: &KeyUse) -> Result<(), KeyError>;

    /// Signs a digest, or makes a MAC.
    fn sign(
        &self,
        token: TokenId,
        key: &KeyUse,
        scheme: SignatureScheme,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError>;

    /// Checks a MAC.
    fn verify_mac(
        &self,
        token: TokenId,
        key: &KeyUse,
        hash: Hash,
        data: &[u8],
        mac: &[u8],
    ) -> Result<bool, KeyError>;

    /// Encrypts.
    fn encrypt(&self, _: TokenId, _: &KeyUse, _: &Cipher, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Decrypts.
    fn decrypt(&self, _: TokenId, _: &KeyUse, _: &Cipher, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Agrees on a secret, and hands it out.
    fn derive(&self, _: TokenId, _: &KeyUse, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Agrees on a secret that stays.
    fn derive_key(
        &self,
        _: TokenId,
        _: &KeyUse,
        _: &[u8],
        _: &NewKey,
    ) -> Result<KeyInfo, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Encrypts a key.
    fn wrap(
        &self,
        _: TokenId,
        _: &KeyUse,
        _: &WrapScheme,
        _: &KeyRef,
    ) -> Result<Vec<u8>, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Decrypts a key.
    fn unwrap(
        &self,
        _: TokenId,
        _: &KeyUse,
        _: &WrapScheme,
        _: &[u8],
        _: &NewKey,
    ) -> Result<KeyInfo, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Keeps a certificate.
    fn install_certificate(&self, _: TokenId, _: &KeyRef, _: &[u8]) -> Result<(), KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Deletes a certificate.
    fn remove_certificate(&self, _: TokenId, _: &KeyRef) -> Result<(), KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Says that a key is the token's own.
    fn attest(&self, _: TokenId, _: &KeyUse, _: &[u8]) -> Result<Attestation, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// What is kept with a key.
    fn read_data(&self, _: TokenId, _: &KeyRef) -> Result<Option<Bytes>, KeyError> {
        Err(KeyError::Unsupported)
    }

    /// Keeps something with a key.
    fn write_data(&self, _: TokenId, _: &KeyRef, _: &[u8]) -> Result<(), KeyError> {
        Err(KeyError::Unsupported)
    }
}

/// Carries out an operation.
fn perform(
    provider: &impl KeyProvider,
    token: TokenId,
    operation: &Operation,
) -> Result<KeyReply, KeyError> {
    if !operation.is_bounded() {
        return Err(KeyError::BadRequest);
    }
    let done = |()| KeyReply::Done;
    let bytes = |bytes| KeyReply::Bytes(Bytes(bytes));
    let key_info = |key| KeyReply::Key(Box::new(key));
    match operation {
        Operation::ListKeys { start } => {
            let start = usize::try_from(*start).unwrap_or(usize::MAX);
            let (keys, more) = provider.keys(token, start)?;
            Ok(KeyReply::Keys { keys, more })
        }
        Operation::ListCertificates(key) => provider
            .certificates(token, key)
            .map(KeyReply::Certificates),
        Operation::Login { pin } => provider.login(token, pin.as_ref()).map(done),
        Operation::Logout => provider.logout(token).map(done),
        Operation::Generate(key) => provider.generate(token, key).map(key_info),
        Operation::Delete(key) => provider.delete(token, key).map(done),
        Operation::Sign { key, scheme, data } => {
            provider.sign(token, key, *scheme, &data.0).map(bytes)
        }
        Operation::VerifyMac {
            key,
            hash,
            data,
            mac,
        } => provider
            .verify_mac(token, key, *hash, &data.0, &mac.0)
            .map(KeyReply::IsGenuine),
        Operation::Encrypt { key, cipher, data } => {
            provider.encrypt(token, key, cipher, &data.0).map(bytes)
        }
        Operation::Decrypt { key, cipher, data } => {
            provider.decrypt(token, key, cipher, &data.0).map(bytes)
        }
        Operation::Derive {
            key,
            public,
            into: None,
        } => provider.derive(token, key, &public.0).map(bytes),
        Operation::Derive {
            key,
            public,
            into: Some(new),
        } => provider
            .derive_key(token, key, &public.0, new)
            .map(key_info),
        Operation::Wrap { with, scheme, key } => provider.wrap(token, with, scheme, key).map(bytes),
        Operation::Unwrap {
            with,
            scheme,
            data,
            key,
        } => provider
            .unwrap(token, with, scheme, &data.0, key)
            .map(key_info),
        Operation::InstallCertificate { key, certificate } => provider
            .install_certificate(token, key, &certificate.0)
            .map(done),
        Operation::RemoveCertificate(key) => provider.remove_certificate(token, key).map(done),
        Operation::Attest { key, challenge } => provider
            .attest(token, key, &challenge.0)
            .map(KeyReply::Attestation),
        Operation::ReadData(key) => provider.read_data(token, key).map(KeyReply::Data),
        Operation::WriteData { key, data } => provider.write_data(token, key, &data.0).map(done),
    }
}

/// What a thread of the worker has to do.
enum Job {
    ListTokens,
    Token(TokenId, Operation),
}

/// The requests that were not answered yet, and whether somebody waits for the answer.
type Waiting = Arc<Mutex<HashMap<u64, bool>>>;

/// Starts the threads that serve a provider, and returns what they serve.
///
/// # Errors
/// If a thread cannot be started.
pub fn start(
    provider: impl KeyProvider,
    lanes: usize,
    replies: IpcSender<Frame>,
) -> io::Result<Server> {
    let provider = Arc::new(provider);
    let waiting = Waiting::default();
    let mut senders = Vec::new();
    for lane in 0..=lanes {
        let (sender, jobs) = mpsc::channel();
        let lane = Lane {
            provider: provider.clone(),
            waiting: waiting.clone(),
            replies: replies.clone(),
            // One of them has nothing else to do.
            looks: lane == 0,
        };
        thread::Builder::new()
            .name("keys".into())
            .spawn(move || lane.run(&jobs))?;
        senders.push(sender);
    }
    let tokens = senders.split_off(1);
    let [list] = senders.try_into().map_err(|_| io::ErrorKind::Other)?;
    Ok(Server {
        list,
        tokens,
        waiting,
        replies,
    })
}

/// Hands the broker's requests to the threads.
pub struct Server {
    list: Sender<(u64, Job)>,
    tokens: Vec<Sender<(u64, Job)>>,
    waiting: Waiting,
    replies: IpcSender<Frame>,
}

impl Server {
    /// Serves until the channel closes or the broker breaks the protocol.
    pub fn serve(&self, requests: &IpcReceiver<Frame>) {
        while let Ok(frame) = requests.recv() {
            let request = match frame.decode() {
                Ok(request) => request,
                Err(error) => {
                    log::error!("the broker sent something else than a request: {error}");
                    return;
                }
            };
            if self.accept(request).is_err() {
                return;
            }
        }
    }

    fn accept(&self, KeyRequest { id, body }: KeyRequest) -> Result<(), ()> {
        let job = match body {
            KeyRequestBody::Cancel { request } => {
                if let Some(is_wanted) = lock(&self.waiting).get_mut(&request) {
                    *is_wanted = false;
                }
                return Ok(());
            }
            KeyRequestBody::ListTokens => Job::ListTokens,
            KeyRequestBody::Token(token, operation) => Job::Token(token, operation),
        };
        {
            let mut waiting = lock(&self.waiting);
            if waiting.contains_key(&id) {
                log::error!("the broker used the id of a request again");
                return Err(());
            }
            if waiting.len() >= MAX_WAITING {
                return reply(&self.replies, id, Err(KeyError::Busy));
            }
            waiting.insert(id, true);
        }
        let lane = match &job {
            Job::ListTokens => &self.list,
            Job::Token(token, _) => {
                let lanes = self.tokens.len() as u64;
                usize::try_from(token.0 % lanes.max(1))
                    .ok()
                    .and_then(|lane| self.tokens.get(lane))
                    .ok_or(())?
            }
        };
        lane.send((id, job)).map_err(|_| ())
    }
}

/// One thread.
struct Lane<P> {
    provider: Arc<P>,
    waiting: Waiting,
    replies: IpcSender<Frame>,
    looks: bool,
}

impl<P: KeyProvider> Lane<P> {
    fn run(&self, jobs: &Receiver<(u64, Job)>) {
        loop {
            let (id, job) = match jobs.recv_timeout(LOOK_PERIOD) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    if self.looks && self.provider.is_over() {
                        crate::process::end();
                    }
                    if self.looks
                        && self.provider.has_changed()
                        && send(&self.replies, &KeyMessage::TokensChanged).is_err()
                    {
                        return;
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let is_wanted = lock(&self.waiting).get(&id).copied().unwrap_or(false);
            let result = if is_wanted {
                // What panics is a library that got something from the token that it did not expect.
                let outcome = catch_unwind(AssertUnwindSafe(|| match &job {
                    Job::ListTokens => self.provider.tokens().map(KeyReply::Tokens),
                    Job::Token(token, operation) => {
                        perform(self.provider.as_ref(), *token, operation)
                    }
                }));
                outcome.unwrap_or(Err(KeyError::Nonsense))
            } else {
                Err(KeyError::Canceled)
            };
            // A PIN is not kept until the next job comes.
            drop(job);
            lock(&self.waiting).remove(&id);
            if let Err(error) = &result {
                log::debug!("request {id}: {error}");
            }
            if reply(&self.replies, id, result).is_err() {
                return;
            }
            if self.provider.is_over() {
                crate::process::end();
            }
        }
    }
}

fn reply(
    replies: &IpcSender<Frame>,
    request: u64,
    result: Result<KeyReply, KeyError>,
) -> Result<(), ()> {
    let message = KeyMessage::Reply { request, result };
    match Frame::encode(&message) {
        Ok(frame) => replies.send(frame).map_err(|_| ()),
        // What the token gave is longer than anything it should give.
        Err(error) => {
            log::warn!("request {request}: {error}");
            let result = Err(KeyError::Nonsense);
            send(replies, &KeyMessage::Reply { request, result })
        }
    }
}

fn send(replies: &IpcSender<Frame>, message: &KeyMessage) -> Result<(), ()> {
    let frame = Frame::encode(message).map_err(|_| ())?;
    replies.send(frame).map_err(|_| ())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
