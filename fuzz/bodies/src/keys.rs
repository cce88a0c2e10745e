/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys in tokens, between documents and workers of which none is trusted.
//!
//! The input is a script: see [`Step`]. It plays the documents, a PKCS#11 module's worker and a TPM's, a main process that
//! keeps to its part, and a user who answers anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Result, Unstructured};
use token_broker::broker::{Broker, Input, Output};
use token_traits::control::{BrokerConfig, ModuleConfig, WorkerId, WorkerKind};
use token_traits::keys::{
    AlgorithmQuery, Bytes, Cipher, Curve, Hash, KeyAlgorithm, KeyId, KeyOperation, KeyQuery,
    KeyTokenId, KeysReply, KeysRequest, NewKey, SignatureScheme, TokenFeature, TokenQuery,
    TokenSelector, Usages, UserVerification, WrapScheme,
};
use token_traits::port::{
    MAX_REQUESTS_IN_FLIGHT, PortMessage, PortRequest, ReplyBody, RequestBody, RequestId,
};
use token_traits::prompt::{GrantId, Pin, PromptAnswer, PromptId, PromptRequest, Question};
use token_traits::{
    Connection, Feature, FeatureSet, Frame, Origin, PermissionState, PortId, PortIdentity,
};
use token_workers::key_protocol::{
    Attestation, KeyError, KeyInfo, KeyMessage, KeyRef, KeyReply, KeyRequest, KeyRequestBody,
    Login, Operation, TokenId, TokenInfo,
};

/// Documents at a time.
const SLOTS: usize = 4;
/// Scripts are cut off here.
const MAX_STEPS: usize = 300;
/// Answers of [`Step::Settle`].
const SETTLE_ROUNDS: usize = 200;
/// Requests for one token that are with a worker at a time, and a cancellation for each.
const DEPTH: usize = 2 * 8;
/// Deadlines that may follow each other before everything has come to its end.
const MAX_TICKS: usize = 40 * MAX_REQUESTS_IN_FLIGHT * SLOTS;
/// What a broker without ports may keep, as the length of its debug output: tokens, their keys, grants and the audit log.
const MAX_REST: usize = 1024 * 1024;

/// The steps of a script, each one byte and then its arguments. The arguments of one byte count modulo what there is.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Step {
    /// Slot: the document in it goes, and another one comes, with the identity of the slot.
    OpenPort,
    /// Slot.
    ClosePort,
    /// Slot, request (see [`Ask`]).
    Request,
    /// Slot, length, that many bytes: they are a frame.
    PortFrame,
    /// Slot, state (1 byte: prompt, granted, denied): for the origins of the slot's identity.
    SetPermission,
    /// Index among the workers that are to be started.
    WorkerStarted,
    /// Index among the workers that are to be started or run.
    WorkerEnded,
    /// Index among the workers that run, index among what it was asked, answer (see [`Answer`]).
    Answer,
    /// Index among the workers that run, length, that many bytes: they are a frame.
    WorkerFrame,
    /// Index among the workers that run, tokens (1 byte, a bit for each that is there): it says that they have changed.
    TokensChanged,
    /// Index among the keys, length, that many bytes: what is kept with it.
    SetData,
    /// Tenths of a second (1 byte), and then a tick.
    Wait,
    /// Up to the next deadline, and then a tick.
    Deadline,
    /// Workers start, and answer as honest ones do, until there is nothing more to be done. The user has done something,
    /// chooses what comes first, and enters the PIN.
    Settle,
    /// Whether the user has just done something (1 byte), for the first prompt that waits for that.
    Activation,
    /// Index among the prompts that are shown, answer (1 byte: refused, not asked, allowed, chosen, the PIN, another PIN),
    /// index of what is chosen, whether it is to be remembered.
    AnswerPrompt,
    /// Number of the grant.
    Revoke,
}

const STEPS: [Step; 17] = [
    Step::OpenPort,
    Step::ClosePort,
    Step::Request,
    Step::PortFrame,
    Step::SetPermission,
    Step::WorkerStarted,
    Step::WorkerEnded,
    Step::Answer,
    Step::WorkerFrame,
    Step::TokensChanged,
    Step::SetData,
    Step::Wait,
    Step::Deadline,
    Step::Settle,
    Step::Activation,
    Step::AnswerPrompt,
    Step::Revoke,
];

/// What a document asks for. Keys and tokens are one byte: which of those that any document has learned of.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Ask {
    /// Name (1 byte).
    GetKeyByName,
    /// Query (see [`query`]).
    GetKeys,
    /// Query.
    RequestKey,
    /// Without arguments.
    GetTokens,
    /// Without arguments.
    RequestToken,
    /// Key.
    ForgetKey,
    /// Token.
    ForgetToken,
    /// Without arguments.
    Watch,
    /// Token, key to be made (see [`new_key`]).
    Generate,
    /// Key.
    Delete,
    /// Key, length, that many bytes.
    InstallCertificate,
    /// Key.
    RemoveCertificate,
    /// Key.
    GetCertificates,
    /// Key.
    Attest,
    /// Key, kind (1 byte), length of the data (1 byte).
    Use,
    /// Key, key to be made.
    Unwrap,
    /// Key, key that is wrapped.
    Wrap,
}

const ASKS: [Ask; 17] = [
    Ask::GetKeyByName,
    Ask::GetKeys,
    Ask::RequestKey,
    Ask::GetTokens,
    Ask::RequestToken,
    Ask::ForgetKey,
    Ask::ForgetToken,
    Ask::Watch,
    Ask::Generate,
    Ask::Delete,
    Ask::InstallCertificate,
    Ask::RemoveCertificate,
    Ask::GetCertificates,
    Ask::Attest,
    Ask::Use,
    Ask::Unwrap,
    Ask::Wrap,
];

/// What a worker answers.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Answer {
    /// What an honest worker does.
    Honest,
    /// Index of the error.
    Error,
    /// Kind (1 byte), length, that many bytes in it.
    Anything,
    /// Like the first, but to another request.
    Mistaken,
}

const ANSWERS: [Answer; 4] = [
    Answer::Honest,
    Answer::Error,
    Answer::Anything,
    Answer::Mistaken,
];

const ERRORS: [KeyError; 20] = [
    KeyError::NoToken,
    KeyError::NoKey,
    KeyError::NotLoggedIn,
    KeyError::PinIncorrect,
    KeyError::PinInvalid,
    KeyError::PinLocked,
    KeyError::Refused,
    KeyError::LockedOut,
    KeyError::Canceled,
    KeyError::Unsupported,
    KeyError::UsageRefused,
    KeyError::Unextractable,
    KeyError::BadData,
    KeyError::ReadOnly,
    KeyError::Full,
    KeyError::Busy,
    KeyError::Failed,
    KeyError::Nonsense,
    KeyError::Foreign,
    KeyError::BadRequest,
];

const PIN: &str = "246810";
const NAMES: [&str; 4] = ["", "key", "other", "signer"];

/// Runs a script: what there is (1 byte: bit 1 a module, bit 2 a TPM), then [`Step`]s.
///
/// - Each request is answered at most once, and only by a port that is open and asked.
/// - Only an origin that was allowed something learns of keys and tokens, and only a key that it was told of does anything.
/// - The user is asked only for documents that are open and may ask, and has done something before being asked to choose.
/// - A PIN goes to a token and nowhere else.
/// - A worker gets nothing before it has started or after it has gone, and not too much at a time.
/// - There is always a deadline while something waits, everything comes to its end although no worker answers any more, and
///   little is left of ports that have closed.
pub fn run(bytes: &[u8]) {
    let mut script = Unstructured::new(bytes);
    let Ok(options) = u8::arbitrary(&mut script) else {
        return;
    };
    let mut rig = Rig::new(options);
    for _ in 0..MAX_STEPS {
        if script.is_empty() || rig.step(&mut script).is_err() {
            break;
        }
    }
    rig.come_to_an_end();
}

struct Port {
    id: PortId,
    unanswered: BTreeMap<u64, Kind>,
    last_request: u64,
}

/// What an answer may be.
#[derive(Clone, Copy)]
struct Kind {
    /// The key that does something.
    uses: Option<KeyId>,
}

struct Key {
    token: u64,
    info: KeyInfo,
    data: Option<Vec<u8>>,
}

struct Rig {
    broker: Broker,
    now: Instant,
    slots: [Option<Port>; SLOTS],
    /// Whether the origins of a slot have ever been allowed anything.
    allowed: [bool; SLOTS],
    /// What documents were told of, by slot.
    keys_told: Vec<(usize, KeyId)>,
    tokens_told: Vec<KeyTokenId>,
    waiting: Vec<PromptId>,
    active: BTreeSet<PromptId>,
    prompts: BTreeMap<PromptId, PromptRequest>,
    to_start: Vec<(WorkerId, WorkerKind)>,
    running: BTreeMap<u64, VecDeque<KeyRequest>>,
    ended: BTreeSet<u64>,
    next_port: u64,
    /// A bit for each token that is there.
    tokens: u8,
    logged_in: bool,
    keys: Vec<Key>,
}

fn origin(text: &str) -> Origin {
    Origin::new(text).unwrap_or_else(|| panic!("{text} is an origin"))
}

/// The first two are the same, the third is framed by the first, and to the fourth the user was connected in spite of
/// a bad certificate.
fn identity(slot: usize) -> PortIdentity {
    const BANK: &str = "https://bank.example";
    const SHOP: &str = "https://shop.example";
    let (own, top_level, connection) = match slot {
        0 | 1 => (BANK, BANK, Connection::TrustedHttps),
        2 => (SHOP, BANK, Connection::TrustedHttps),
        _ => (SHOP, SHOP, Connection::HttpsWithException),
    };
    let number = u64::try_from(slot).unwrap_or_default();
    PortIdentity {
        origin: origin(own),
        top_level_origin: origin(top_level),
        webview: number,
        event_loop: number,
        private: false,
        connection,
        features: FeatureSet::ALL,
    }
}

fn same_party(one: usize, other: usize) -> bool {
    let (one, other) = (identity(one), identity(other));
    (one.origin, one.top_level_origin) == (other.origin, other.top_level_origin)
}

fn byte(script: &mut Unstructured<'_>) -> Result<usize> {
    u8::arbitrary(script).map(usize::from)
}

fn index(script: &mut Unstructured<'_>, count: usize) -> Result<Option<usize>> {
    Ok(byte(script)?.checked_rem(count))
}

fn choice<T: Copy>(script: &mut Unstructured<'_>, of: &[T]) -> Result<T> {
    let index = index(script, of.len())?.ok_or(arbitrary::Error::EmptyChoose)?;
    of.get(index).copied().ok_or(arbitrary::Error::EmptyChoose)
}

fn counted(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = byte(script)?;
    Ok(script.bytes(length)?.to_vec())
}

fn frame<T: serde::Serialize>(message: &T) -> Frame {
    // What is too long for a frame is never sent.
    Frame::encode(message).unwrap_or_else(|_| Frame::from_bytes(Vec::new()))
}

fn usages(bits: usize) -> Usages {
    let held = Usages::ALL.iter().enumerate();
    held.fold(Usages::NONE, |all, (index, (_, usage))| {
        all.and(usage.only_if(bits & (1 << index) != 0))
    })
}

fn algorithm(number: usize) -> KeyAlgorithm {
    match number % 5 {
        0 => KeyAlgorithm::Ec(Curve::P256),
        1 => KeyAlgorithm::Rsa { bits: 2048 },
        2 => KeyAlgorithm::Aes { bits: 128 },
        3 => KeyAlgorithm::Secret { bits: 256 },
        _ => KeyAlgorithm::Aes { bits: 3 },
    }
}

/// Algorithm, usages, name, flags: bit 1 shared with another origin, 2 asks each time, 3 wrappable, 4 stays.
fn new_key(script: &mut Unstructured<'_>) -> Result<NewKey> {
    let [kind, bits, name, flags] = <[u8; 4]>::arbitrary(script)?.map(usize::from);
    Ok(NewKey {
        algorithm: algorithm(kind),
        usages: usages(bits),
        name: NAMES.get(name % 5).map(|name| (*name).to_owned()),
        origins: match flags & 1 {
            0 => Vec::new(),
            _ => vec![origin("https://shop.example")],
        },
        user_verification: match flags & 2 {
            0 => UserVerification::Session,
            _ => UserVerification::EachUse,
        },
        is_wrappable: flags & 4 != 0,
        is_persistent: flags & 8 != 0,
    })
}

/// Name, usages, flags: bit 1 only keys on P-256, 2 only with a valid certificate, 3 an issuer, 4 of the first token.
fn query(script: &mut Unstructured<'_>, token: Option<KeyTokenId>) -> Result<KeyQuery> {
    let [name, bits, flags] = <[u8; 3]>::arbitrary(script)?.map(usize::from);
    Ok(KeyQuery {
        name: NAMES.get(name % 5).map(|name| (*name).to_owned()),
        usages: usages(bits),
        algorithms: match flags & 1 {
            0 => Vec::new(),
            _ => vec![AlgorithmQuery::Ec {
                curve: Some(Curve::P256),
            }],
        },
        valid_certificate: (flags & 2 != 0).then_some(true),
        issuers: match flags & 4 {
            0 => Vec::new(),
            _ => vec![[1; 4]],
        },
        token: token.filter(|_| flags & 8 != 0).map(TokenSelector::Is),
        ..KeyQuery::default()
    })
}

fn operation(kind: usize, data: Bytes) -> KeyOperation {
    match kind % 8 {
        0 => KeyOperation::Sign {
            scheme: SignatureScheme::Ecdsa,
            data,
        },
        1 => KeyOperation::Sign {
            scheme: SignatureScheme::RsaPkcs1(Hash::Sha256),
            data,
        },
        2 => KeyOperation::Sign {
            scheme: SignatureScheme::Hmac(Hash::Sha256),
            data,
        },
        3 => KeyOperation::VerifyMac {
            hash: Hash::Sha256,
            data,
            mac: Bytes(vec![0; 32]),
        },
        4 => KeyOperation::Encrypt {
            cipher: Cipher::AesCbc { iv: [0; 16] },
            data,
        },
        5 => KeyOperation::Decrypt {
            cipher: Cipher::AesGcm {
                iv: Bytes(data.0.clone()),
                additional_data: Bytes::default(),
                tag_bits: 128,
            },
            data,
        },
        6 => KeyOperation::Decrypt {
            cipher: Cipher::RsaOaep {
                hash: Hash::Sha1,
                label: Bytes::default(),
            },
            data,
        },
        _ => KeyOperation::Derive {
            public: Bytes([&[4][..], &data.0].concat()),
            into: None,
        },
    }
}

fn key(number: u8, label: &str, algorithm: KeyAlgorithm, usages: Usages) -> KeyInfo {
    let is_private = matches!(algorithm, KeyAlgorithm::Ec(_) | KeyAlgorithm::Rsa { .. });
    KeyInfo {
        key: KeyRef(vec![number]),
        label: label.to_owned(),
        identifier: vec![number % 3],
        algorithm,
        usages,
        public_key: is_private.then(|| Bytes(vec![number; 91])),
        has_certificate: number % 2 == 1,
        is_hidden: false,
        is_sensitive: true,
        is_extractable: !is_private,
        is_local: true,
        was_never_extractable: false,
        asks_each_time: number % 5 == 4,
        is_persistent: true,
        is_modifiable: true,
    }
}

fn token(number: u64) -> TokenInfo {
    TokenInfo {
        id: TokenId(number),
        label: format!("Token {number}"),
        manufacturer: "Maker".to_owned(),
        model: "Model".to_owned(),
        serial: number.to_string(),
        slot: "Slot".to_owned(),
        is_hardware: false,
        is_removable: true,
        is_read_only: number == 2,
        login: Login {
            is_required: number == 0,
            ..Login::default()
        },
        features: match number {
            0 => vec![TokenFeature::Data, TokenFeature::Ecdsa],
            _ => vec![TokenFeature::Ecdsa],
        },
    }
}

impl Rig {
    fn new(options: u8) -> Self {
        let mut rig = Self {
            broker: Broker::new(),
            now: Instant::now(),
            slots: [const { None }; SLOTS],
            allowed: [false; SLOTS],
            keys_told: Vec::new(),
            tokens_told: Vec::new(),
            waiting: Vec::new(),
            active: BTreeSet::new(),
            prompts: BTreeMap::new(),
            to_start: Vec::new(),
            running: BTreeMap::new(),
            ended: BTreeSet::new(),
            next_port: 1,
            tokens: 0b11,
            logged_in: false,
            keys: vec![
                Key {
                    token: 0,
                    info: key(1, "key", algorithm(0), Usages::SIGN),
                    data: None,
                },
                Key {
                    token: 1,
                    info: key(2, "other", algorithm(2), Usages::WRAP),
                    data: None,
                },
            ],
        };
        rig.input(Input::Configure(BrokerConfig {
            modules: match options & 1 {
                0 => Vec::new(),
                _ => vec![ModuleConfig::default()],
            },
            tpm: (options & 2 != 0).then(|| "device:/dev/tpmrm0".to_owned()),
            ..BrokerConfig::default()
        }));
        rig
    }

    fn step(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        match choice(script, &STEPS)? {
            Step::OpenPort => {
                let slot = byte(script)? % SLOTS;
                self.close_port(slot);
                self.open_port(slot);
            }
            Step::ClosePort => {
                let slot = byte(script)? % SLOTS;
                self.close_port(slot);
            }
            Step::Request => {
                let slot = byte(script)? % SLOTS;
                let request = self.ask(script)?;
                self.request(slot, request);
            }
            Step::PortFrame => {
                let slot = byte(script)? % SLOTS;
                let bytes = counted(script)?;
                self.port_frame(slot, Frame::from_bytes(bytes));
            }
            Step::SetPermission => {
                let slot = byte(script)? % SLOTS;
                let state = choice(
                    script,
                    &[
                        PermissionState::Prompt,
                        PermissionState::Granted,
                        PermissionState::Denied,
                    ],
                )?;
                if state == PermissionState::Granted {
                    self.allow(slot);
                }
                let PortIdentity {
                    origin,
                    top_level_origin,
                    ..
                } = identity(slot);
                self.input(Input::SetPermission {
                    origin,
                    top_level_origin,
                    feature: Feature::TokenKeys,
                    state,
                });
            }
            Step::WorkerStarted => {
                if let Some(index) = index(script, self.to_start.len())? {
                    self.start_worker(index);
                }
            }
            Step::WorkerEnded => {
                let ids = self.to_start.iter().map(|(id, _)| id.0);
                let ids: Vec<u64> = ids.chain(self.running.keys().copied()).collect();
                if let Some(id) = index(script, ids.len())?.and_then(|index| ids.get(index)) {
                    self.forget_worker(WorkerId(*id));
                    self.input(Input::WorkerEnded(WorkerId(*id)));
                }
            }
            Step::Answer => {
                let worker = self.worker(script)?;
                let position = byte(script)?;
                let answer = choice(script, &ANSWERS)?;
                self.answer(worker, position, answer, script)?;
            }
            Step::WorkerFrame => {
                let worker = self.worker(script)?;
                let frame = Frame::from_bytes(counted(script)?);
                if let Some(worker) = worker {
                    self.input(Input::WorkerFrame(worker, frame));
                }
            }
            Step::TokensChanged => {
                let worker = self.worker(script)?;
                self.tokens = u8::arbitrary(script)?;
                if let Some(worker) = worker {
                    self.input(Input::WorkerFrame(
                        worker,
                        frame(&KeyMessage::TokensChanged),
                    ));
                }
            }
            Step::SetData => {
                let index = index(script, self.keys.len())?;
                let data = counted(script)?;
                if let Some(key) = index.and_then(|index| self.keys.get_mut(index)) {
                    key.data = Some(data);
                }
            }
            Step::Wait => {
                let tenths = u64::from(u8::arbitrary(script)?);
                self.now += Duration::from_millis(100 * tenths);
                self.input(Input::Tick);
            }
            Step::Deadline => {
                self.tick();
            }
            Step::Settle => self.settle(),
            Step::Activation => {
                let is_active = bool::arbitrary(script)?;
                self.activation(is_active);
            }
            Step::AnswerPrompt => {
                let index = index(script, self.prompts.len())?;
                let [kind, chosen, remember] = <[u8; 3]>::arbitrary(script)?;
                let remember = remember & 1 != 0;
                let pin = |pin: &str| PromptAnswer::Pin(Pin::new(pin.to_owned().into()));
                let answer = match kind % 6 {
                    0 => PromptAnswer::Refused,
                    1 => PromptAnswer::NotAsked,
                    2 => PromptAnswer::Allowed { remember },
                    3 => PromptAnswer::Chosen {
                        index: chosen.into(),
                        remember,
                    },
                    4 => pin(PIN),
                    _ => pin("000000"),
                };
                if let Some(id) = index.and_then(|index| self.prompts.keys().nth(index).copied()) {
                    self.answer_prompt(id, answer);
                }
            }
            Step::Revoke => {
                let id = GrantId(u8::arbitrary(script)?.into());
                self.input(Input::Revoke(id));
            }
        }
        Ok(())
    }

    fn worker(&self, script: &mut Unstructured<'_>) -> Result<Option<WorkerId>> {
        let index = index(script, self.running.len())?;
        Ok(index.and_then(|index| self.running.keys().nth(index).copied().map(WorkerId)))
    }

    fn allow(&mut self, slot: usize) {
        for other in 0..SLOTS {
            self.allowed[other] |= same_party(slot, other);
        }
    }

    // The documents.

    fn known_key(&self, script: &mut Unstructured<'_>) -> Result<KeyId> {
        let index = index(script, self.keys_told.len())?;
        let known = index.and_then(|index| self.keys_told.get(index));
        Ok(known.map_or(KeyId([7; 16]), |(_, id)| *id))
    }

    fn known_token(&self, script: &mut Unstructured<'_>) -> Result<KeyTokenId> {
        let index = index(script, self.tokens_told.len())?;
        let known = index.and_then(|index| self.tokens_told.get(index));
        Ok(known.copied().unwrap_or(KeyTokenId([7; 16])))
    }

    fn ask(&self, script: &mut Unstructured<'_>) -> Result<KeysRequest> {
        let first = self.tokens_told.first().copied();
        Ok(match choice(script, &ASKS)? {
            Ask::GetKeyByName => {
                let name = choice(script, &NAMES)?;
                KeysRequest::GetKeyByName(name.to_owned())
            }
            Ask::GetKeys => KeysRequest::GetKeys(Box::new(query(script, first)?)),
            Ask::RequestKey => KeysRequest::RequestKey(Box::new(query(script, first)?)),
            Ask::GetTokens => KeysRequest::GetTokens(TokenQuery::default()),
            Ask::RequestToken => KeysRequest::RequestToken(TokenQuery::default()),
            Ask::ForgetKey => KeysRequest::ForgetKey(self.known_key(script)?),
            Ask::ForgetToken => KeysRequest::ForgetToken(self.known_token(script)?),
            Ask::Watch => KeysRequest::WatchTokens,
            Ask::Generate => KeysRequest::Generate {
                token: self.known_token(script)?,
                key: new_key(script)?,
            },
            Ask::Delete => KeysRequest::Delete(self.known_key(script)?),
            Ask::InstallCertificate => KeysRequest::InstallCertificate {
                key: self.known_key(script)?,
                certificate: Bytes(counted(script)?),
            },
            Ask::RemoveCertificate => KeysRequest::RemoveCertificate(self.known_key(script)?),
            Ask::GetCertificates => KeysRequest::GetCertificates(self.known_key(script)?),
            Ask::Attest => KeysRequest::Attest {
                key: self.known_key(script)?,
                challenge: [1; 32],
            },
            Ask::Use => KeysRequest::Use {
                key: self.known_key(script)?,
                operation: operation(byte(script)?, Bytes(vec![0; byte(script)?])),
            },
            Ask::Unwrap => KeysRequest::Use {
                key: self.known_key(script)?,
                operation: KeyOperation::Unwrap {
                    scheme: WrapScheme::AesKw,
                    data: Bytes(vec![0; 24]),
                    key: new_key(script)?,
                },
            },
            Ask::Wrap => KeysRequest::Use {
                key: self.known_key(script)?,
                operation: KeyOperation::Wrap {
                    scheme: WrapScheme::AesKw,
                    key: self.known_key(script)?,
                },
            },
        })
    }

    fn request(&mut self, slot: usize, request: KeysRequest) {
        let Some(port) = &mut self.slots[slot] else {
            return;
        };
        port.last_request += 1;
        let id = RequestId(port.last_request);
        let body = RequestBody::Keys(request);
        self.port_frame(slot, frame(&PortRequest { id, body }));
    }

    fn port_frame(&mut self, slot: usize, frame: Frame) {
        let Some(port) = &mut self.slots[slot] else {
            return;
        };
        let id = port.id;
        if let Ok(request) = frame.decode::<PortRequest>() {
            let uses = match request.body {
                RequestBody::Keys(
                    KeysRequest::Use { key, .. }
                    | KeysRequest::Delete(key)
                    | KeysRequest::InstallCertificate { key, .. }
                    | KeysRequest::RemoveCertificate(key)
                    | KeysRequest::GetCertificates(key)
                    | KeysRequest::Attest { key, .. },
                ) => Some(key),
                _ => None,
            };
            port.unanswered.insert(request.id.0, Kind { uses });
        }
        self.input(Input::PortFrame(id, frame));
    }

    // The user.

    fn activation(&mut self, is_active: bool) {
        if self.waiting.is_empty() {
            return;
        }
        let prompt = self.waiting.remove(0);
        if is_active {
            self.active.insert(prompt);
        }
        self.input(Input::Activation { prompt, is_active });
    }

    fn answer_prompt(&mut self, prompt: PromptId, answer: PromptAnswer) {
        let Some(request) = self.prompts.remove(&prompt) else {
            return;
        };
        if matches!(answer, PromptAnswer::Chosen { .. }) {
            for slot in 0..SLOTS {
                let identity = identity(slot);
                self.allowed[slot] |= identity.origin == request.origin
                    && identity.top_level_origin == request.top_level_origin;
            }
        }
        self.input(Input::PromptAnswered { prompt, answer });
    }

    fn prompt(&mut self, request: PromptRequest) {
        let asks = self.slots.iter().enumerate().any(|(slot, port)| {
            let identity = identity(slot);
            port.is_some()
                && identity.origin == request.origin
                && identity.top_level_origin == request.top_level_origin
                && identity.webview == request.webview
                && identity.connection == Connection::TrustedHttps
        });
        assert!(asks, "the user is asked for nobody");
        if let Some(replaced) = request.replaces {
            let replaced = self.prompts.remove(&replaced);
            assert!(replaced.is_some(), "a prompt that is not shown is replaced");
        } else if matches!(
            request.question,
            Question::ChooseToken { .. } | Question::ChooseKey { .. }
        ) {
            assert!(!self.active.is_empty(), "the user did nothing");
        }
        let before = self.prompts.insert(request.id, request);
        assert!(before.is_none(), "two prompts have one id");
    }

    // The main process.

    fn open_port(&mut self, slot: usize) {
        let port = PortId(self.next_port);
        self.next_port += 1;
        self.slots[slot] = Some(Port {
            id: port,
            unanswered: BTreeMap::new(),
            last_request: 0,
        });
        let identity = identity(slot);
        self.input(Input::OpenPort { port, identity });
    }

    fn close_port(&mut self, slot: usize) {
        if let Some(port) = &self.slots[slot] {
            let id = port.id;
            self.input(Input::ClosePort(id));
            assert!(self.slots[slot].is_none(), "it stays open");
        }
    }

    fn start_worker(&mut self, index: usize) {
        let (id, _) = self.to_start.remove(index);
        self.running.insert(id.0, VecDeque::new());
        self.input(Input::WorkerStarted(id));
    }

    fn forget_worker(&mut self, worker: WorkerId) {
        self.running.remove(&worker.0);
        self.to_start.retain(|(id, _)| *id != worker);
        self.ended.insert(worker.0);
        self.logged_in = false;
    }

    // The workers.

    fn answer(
        &mut self,
        worker: Option<WorkerId>,
        position: usize,
        answer: Answer,
        script: &mut Unstructured<'_>,
    ) -> Result<()> {
        let scripted = match answer {
            Answer::Honest | Answer::Mistaken => None,
            Answer::Error => Some(Err(choice(script, &ERRORS)?)),
            Answer::Anything => Some(Ok(anything(byte(script)?, counted(script)?))),
        };
        let Some(id) = worker else {
            return Ok(());
        };
        let Some(asked) = self.running.get_mut(&id.0) else {
            return Ok(());
        };
        let request = position
            .checked_rem(asked.len())
            .and_then(|position| asked.remove(position));
        let Some(request) = request else {
            return Ok(());
        };
        let Some(honest) = self.honest(&request.body) else {
            return Ok(());
        };
        let message = KeyMessage::Reply {
            request: match answer {
                Answer::Mistaken => request.id.wrapping_add(1 << 40),
                _ => request.id,
            },
            result: scripted.unwrap_or(honest),
        };
        self.input(Input::WorkerFrame(id, frame(&message)));
        assert!(
            !matches!(answer, Answer::Mistaken) || !self.running.contains_key(&id.0),
            "a worker that is out of step goes on"
        );
        Ok(())
    }

    /// What an honest worker answers.
    fn honest(
        &mut self,
        body: &KeyRequestBody,
    ) -> Option<core::result::Result<KeyReply, KeyError>> {
        let (id, operation) = match body {
            KeyRequestBody::Cancel { .. } => return None,
            KeyRequestBody::ListTokens => {
                let there = (0..8).filter(|number| self.tokens & (1 << number) != 0);
                return Some(Ok(KeyReply::Tokens(there.map(token).collect())));
            }
            KeyRequestBody::Token(id, operation) => (id, operation),
        };
        Some(self.perform(*id, operation))
    }

    fn perform(
        &mut self,
        id: TokenId,
        operation: &Operation,
    ) -> core::result::Result<KeyReply, KeyError> {
        if id.0 >= 8 || self.tokens & (1 << id.0) == 0 {
            return Err(KeyError::NoToken);
        }
        let wants_login = id.0 == 0 && !self.logged_in;
        let find = |keys: &[Key], wanted: &KeyRef| {
            keys.iter()
                .position(|key| key.token == id.0 && key.info.key == *wanted)
                .ok_or(KeyError::NoKey)
        };
        match operation {
            Operation::ListKeys { start } => {
                let own = self.keys.iter().filter(|key| key.token == id.0);
                let start = usize::try_from(*start).unwrap_or(usize::MAX);
                let infos = own.skip(start).map(|key| key.info.clone());
                Ok(KeyReply::Keys {
                    keys: infos.collect(),
                    more: false,
                })
            }
            Operation::ReadData(key) => {
                let index = find(&self.keys, key)?;
                Ok(KeyReply::Data(self.keys[index].data.clone().map(Bytes)))
            }
            Operation::ListCertificates(_) => {
                Ok(KeyReply::Certificates(vec![Bytes(vec![0x30; 9])]))
            }
            Operation::Login { pin } => {
                let is_right = pin
                    .as_ref()
                    .is_some_and(|pin| pin.expose() == PIN.as_bytes());
                self.logged_in |= is_right;
                is_right
                    .then_some(KeyReply::Done)
                    .ok_or(KeyError::PinIncorrect)
            }
            Operation::Logout => {
                self.logged_in = false;
                Ok(KeyReply::Done)
            }
            _ if wants_login => Err(KeyError::NotLoggedIn),
            Operation::Generate(new)
            | Operation::Unwrap { key: new, .. }
            | Operation::Derive {
                into: Some(new), ..
            } => {
                let number = u8::try_from(self.keys.len() + 10).map_err(|_| KeyError::Full)?;
                let info = KeyInfo {
                    is_persistent: new.is_persistent,
                    ..key(number, &new.label, new.algorithm, new.usages)
                };
                self.keys.push(Key {
                    token: id.0,
                    info: info.clone(),
                    data: None,
                });
                Ok(KeyReply::Key(Box::new(info)))
            }
            Operation::WriteData { key, data } => {
                let index = find(&self.keys, key)?;
                self.keys[index].data = Some(data.0.clone());
                Ok(KeyReply::Done)
            }
            Operation::Delete(used) => {
                let index = find(&self.keys, &used.key)?;
                self.keys.remove(index);
                Ok(KeyReply::Done)
            }
            Operation::VerifyMac { .. } => Ok(KeyReply::IsGenuine(true)),
            Operation::Attest { .. } => Err(KeyError::Unsupported),
            Operation::InstallCertificate { .. } | Operation::RemoveCertificate(_) => {
                Ok(KeyReply::Done)
            }
            _ => Ok(KeyReply::Bytes(Bytes(vec![1; 64]))),
        }
    }

    fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS {
            let busy = self.running.iter().find(|(_, asked)| !asked.is_empty());
            let busy = busy.map(|(id, _)| WorkerId(*id));
            let shown = self.prompts.iter().next();
            let shown = shown.map(|(id, request)| (*id, request.question.clone()));
            if !self.waiting.is_empty() {
                self.activation(true);
            } else if !self.to_start.is_empty() {
                self.start_worker(0);
            } else if busy.is_some() {
                let nothing = &mut Unstructured::new(&[]);
                if self.answer(busy, 0, Answer::Honest, nothing).is_err() {
                    return;
                }
            } else if let Some((id, question)) = shown {
                let answer = match question {
                    Question::EnterPin { .. } => PromptAnswer::Pin(Pin::new(PIN.to_owned().into())),
                    Question::ShareKey { .. } => PromptAnswer::Allowed { remember: false },
                    _ => PromptAnswer::Chosen {
                        index: 0,
                        remember: true,
                    },
                };
                self.answer_prompt(id, answer);
            } else {
                return;
            }
        }
    }

    // Time.

    fn tick(&mut self) -> bool {
        let Some(deadline) = self.broker.next_deadline() else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.input(Input::Tick);
        true
    }

    /// From here on no worker answers, and no user.
    fn come_to_an_end(&mut self) {
        let mut ticks = 0..MAX_TICKS;
        while self
            .slots
            .iter()
            .flatten()
            .any(|port| !port.unanswered.is_empty())
        {
            assert!(self.tick(), "a request waits without a deadline");
            assert!(ticks.next().is_some(), "a request is never answered");
        }
        for slot in 0..SLOTS {
            self.close_port(slot);
        }
        while self.tick() {
            assert!(ticks.next().is_some(), "it never comes to rest");
        }
        assert!(self.prompts.is_empty(), "a prompt is left");
        let rest = format!("{:?}", self.broker).len();
        assert!(rest <= MAX_REST, "{rest} bytes are left");
    }

    // The broker.

    fn input(&mut self, input: Input) {
        for output in self.broker.handle(input, self.now) {
            self.output(output);
        }
        let waits = self
            .slots
            .iter()
            .flatten()
            .any(|port| !port.unanswered.is_empty());
        assert!(
            !waits || self.broker.next_deadline().is_some(),
            "something waits without a deadline"
        );
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::ToPort(port, message) => self.message(port, message),
            Output::ClosePort(port) => {
                let slot = self.slot_of(port);
                self.slots[slot] = None;
            }
            Output::PortOpened(port) => {
                self.slot_of(port);
            }
            Output::CheckActivation(prompt, _) => self.waiting.push(prompt),
            Output::Prompt(request) => self.prompt(request),
            Output::WithdrawPrompt(prompt) => {
                let shown = self.prompts.remove(&prompt);
                assert!(shown.is_some(), "a prompt that is not shown is withdrawn");
            }
            Output::Store(_) | Output::Overview(..) => {}
            Output::StartWorker(worker, kind) => {
                let is_new = !self.ended.contains(&worker.0)
                    && !self.running.contains_key(&worker.0)
                    && self.to_start.iter().all(|(id, _)| *id != worker);
                assert!(is_new, "a worker's id is used twice");
                self.to_start.push((worker, kind));
                let workers = self.to_start.len() + self.running.len();
                assert!(workers <= 2, "too many workers");
            }
            Output::KillWorker(worker) => self.forget_worker(worker),
            Output::ReleaseWorker(worker) => {
                assert!(self.running.contains_key(&worker.0), "it does not run");
                self.forget_worker(worker);
            }
            Output::ToKeyWorker(worker, request) => {
                let shown = format!("{request:?}");
                assert!(!shown.contains(PIN), "a PIN is shown");
                let Some(asked) = self.running.get_mut(&worker.0) else {
                    panic!("a request to a worker that does not run");
                };
                asked.push_back(request);
                assert!(asked.len() <= 9 * DEPTH, "a worker is asked too much");
            }
            Output::ToWorker(..) => panic!("there are no readers"),
        }
    }

    fn slot_of(&self, port: PortId) -> usize {
        self.slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|open| open.id == port))
            .unwrap_or_else(|| panic!("something for a port that is not open"))
    }

    fn message(&mut self, port: PortId, message: PortMessage) {
        let slot = self.slot_of(port);
        let (mut keys, mut tokens, mut is_disclosure) = (Vec::new(), Vec::new(), false);
        match message {
            PortMessage::Reply { request, result } => {
                let asked = self.slots[slot]
                    .as_mut()
                    .and_then(|port| port.unanswered.remove(&request.0));
                let Some(asked) = asked else {
                    panic!("an answer to what was not asked, or a second one");
                };
                if let (Some(used), Ok(_)) = (asked.uses, &result) {
                    let was_told = self
                        .keys_told
                        .iter()
                        .any(|(told, id)| *id == used && same_party(*told, slot));
                    assert!(was_told, "a key does something for a stranger");
                }
                match result {
                    Ok(ReplyBody::Keys(KeysReply::Keys(found))) => keys = found,
                    Ok(ReplyBody::Keys(KeysReply::Key(key))) => keys.push(*key),
                    Ok(ReplyBody::Keys(KeysReply::Tokens(found))) => tokens = found,
                    Ok(ReplyBody::Keys(KeysReply::Token(token))) => tokens.push(token),
                    Ok(ReplyBody::Keys(KeysReply::Done)) | Err(_) => {}
                    Ok(ReplyBody::Keys(_)) => is_disclosure = true,
                    // Frames of any bytes can be requests about readers.
                    Ok(_) => {}
                }
            }
            PortMessage::Element(_) => panic!("there are no readers"),
            PortMessage::Token(token) => tokens.push(token),
        }
        is_disclosure |= !keys.is_empty() || !tokens.is_empty();
        let is_trusted = identity(slot).connection == Connection::TrustedHttps;
        assert!(
            !is_disclosure || (self.allowed[slot] && is_trusted),
            "an origin that was allowed nothing learns of keys"
        );
        for key in keys {
            assert!(key.name.len() <= 255);
            let own = identity(slot).origin;
            assert!(
                key.origins.contains(&own),
                "a key that is not for the origin"
            );
            self.tokens_told.push(key.token.id);
            self.keys_told.push((slot, key.id));
        }
        self.tokens_told.extend(tokens.iter().map(|token| token.id));
    }
}

/// An answer that may have nothing to do with the question.
fn anything(kind: usize, bytes: Vec<u8>) -> KeyReply {
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match kind % 9 {
        0 => KeyReply::Done,
        1 => KeyReply::Tokens(vec![TokenInfo {
            label: text.clone(),
            serial: text,
            ..token(0)
        }]),
        2 => KeyReply::Keys {
            keys: vec![KeyInfo {
                label: text,
                public_key: Some(Bytes(bytes.clone())),
                key: KeyRef(bytes),
                ..key(1, "", algorithm(0), Usages::SIGN)
            }],
            more: kind >= 128,
        },
        3 => KeyReply::Certificates(vec![Bytes(bytes); kind / 8]),
        4 => KeyReply::Key(Box::new(KeyInfo {
            label: text,
            key: KeyRef(bytes),
            ..key(1, "", algorithm(kind), Usages::SIGN)
        })),
        5 => KeyReply::Bytes(Bytes(bytes)),
        6 => KeyReply::IsGenuine(true),
        7 => KeyReply::Data(Some(Bytes(bytes))),
        _ => KeyReply::Attestation(Attestation {
            statement: Bytes(bytes.clone()),
            signature: Bytes(bytes.clone()),
            signer: Bytes(bytes.clone()),
            public: Bytes(bytes),
        }),
    }
}
