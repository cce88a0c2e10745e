/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys in tokens, with workers that answer what they are told to.

use token_traits::Connection;
use token_traits::control::ModuleConfig;
use token_traits::keys::{
    Bytes, Curve, KeyAlgorithm, KeyId, KeyInfo, KeyOperation, KeyQuery, KeyTokenId, KeysReply,
    KeysRequest, NewKey, SignatureScheme, TokenInfo, TokenQuery, Usages, UserVerification,
};
use token_traits::prompt::{GrantKind, Pin, Question};
use token_workers::key_protocol::{
    self as protocol, KeyError, KeyRef, KeyReply, KeyRequestBody, KeyUse, Login, Operation,
    TokenFeature, TokenId,
};
use zeroize::Zeroizing;

use super::*;
use crate::keys::{InstallationSecret, OriginList};
use crate::store::Remembered;

type Reply = Result<KeysReply, TokenError>;
type Answer = Result<KeyReply, KeyError>;

const BANK: &str = "https://bank.example";
const SHOP: &str = "https://shop.example";
const PIN: &str = "246810";
const TPM: &str = "device:/dev/tpmrm0";

/// A token in a worker.
#[derive(Clone)]
struct Fake {
    info: protocol::TokenInfo,
    keys: Vec<(protocol::KeyInfo, Option<Vec<u8>>)>,
    logged_in: bool,
    wrong: u8,
}

fn token(id: u64, label: &str) -> Fake {
    Fake {
        info: protocol::TokenInfo {
            id: TokenId(id),
            label: label.to_owned(),
            manufacturer: "Maker".to_owned(),
            model: "Model".to_owned(),
            serial: label.to_owned(),
            slot: "Slot".to_owned(),
            is_hardware: true,
            is_removable: true,
            is_read_only: false,
            login: Login {
                is_required: true,
                ..Login::default()
            },
            features: vec![TokenFeature::Ecdsa, TokenFeature::Data],
        },
        keys: Vec::new(),
        logged_in: false,
        wrong: 0,
    }
}

fn key(number: u8, label: &str) -> protocol::KeyInfo {
    protocol::KeyInfo {
        key: KeyRef(vec![number]),
        label: label.to_owned(),
        identifier: vec![number],
        algorithm: KeyAlgorithm::Ec(Curve::P256),
        usages: Usages::SIGN,
        public_key: Some(Bytes(vec![number; 91])),
        has_certificate: false,
        is_hidden: false,
        is_sensitive: true,
        is_extractable: false,
        is_local: true,
        was_never_extractable: true,
        asks_each_time: false,
        is_persistent: true,
        is_modifiable: true,
    }
}

/// The list of a key that `creator` made, for `origins`.
fn list(of: &protocol::KeyInfo, creator: &str, origins: &[&str]) -> Option<Vec<u8>> {
    use sha2::Digest;
    let public = of.public_key.as_ref().unwrap();
    let origin = |text: &str| Origin::new(text).unwrap();
    let list = OriginList {
        key: sha2::Sha256::digest(&public.0).into(),
        creator: Some(origin(creator)),
        origins: origins.iter().map(|text| origin(text)).collect(),
    };
    list.write()
}

impl Fake {
    fn with(mut self, key: protocol::KeyInfo, list: Option<Vec<u8>>) -> Self {
        self.keys.push((key, list));
        self
    }

    fn login(&mut self, pin: Option<&[u8]>) -> Result<(), KeyError> {
        let login = &mut self.info.login;
        if login.is_locked {
            return Err(KeyError::PinLocked);
        }
        if pin == Some(PIN.as_bytes()) || login.has_own_path {
            self.wrong = 0;
            (login.tries_are_low, login.is_last_try) = (false, false);
            self.logged_in = true;
            return Ok(());
        }
        self.wrong += 1;
        login.tries_are_low = true;
        login.is_last_try = self.wrong == 2;
        login.is_locked = self.wrong == 3;
        Err(KeyError::PinIncorrect)
    }

    fn find(
        &mut self,
        key: &KeyRef,
    ) -> Result<&mut (protocol::KeyInfo, Option<Vec<u8>>), KeyError> {
        self.keys
            .iter_mut()
            .find(|(known, _)| known.key == *key)
            .ok_or(KeyError::NoKey)
    }

    fn perform(&mut self, operation: &Operation) -> Answer {
        let wants_login = self.info.login.is_required && !self.logged_in;
        match operation {
            Operation::ListKeys { start } => Ok(KeyReply::Keys {
                // One at a time.
                keys: self
                    .keys
                    .get(*start as usize)
                    .map(|(info, _)| info.clone())
                    .into_iter()
                    .collect(),
                more: *start as usize + 1 < self.keys.len(),
            }),
            Operation::ReadData(key) => {
                let data = self.find(key)?.1.clone();
                Ok(KeyReply::Data(data.map(Bytes)))
            }
            Operation::Login { pin } => {
                self.login(pin.as_ref().map(|pin| pin.expose()))?;
                Ok(KeyReply::Done)
            }
            Operation::Logout => {
                self.logged_in = false;
                Ok(KeyReply::Done)
            }
            _ if wants_login => Err(KeyError::NotLoggedIn),
            Operation::Generate(new) => {
                let number = 100 + u8::try_from(self.keys.len()).unwrap();
                let info = protocol::KeyInfo {
                    usages: new.usages,
                    is_persistent: new.is_persistent,
                    asks_each_time: new.asks_each_time,
                    ..key(number, &new.label)
                };
                self.keys.push((info.clone(), None));
                Ok(KeyReply::Key(Box::new(info)))
            }
            Operation::WriteData { key, data } => {
                self.find(key)?.1 = Some(data.0.clone());
                Ok(KeyReply::Done)
            }
            Operation::Delete(KeyUse { key, .. }) => {
                self.find(key)?;
                self.keys.retain(|(known, _)| known.key != *key);
                Ok(KeyReply::Done)
            }
            Operation::Sign { key, .. } => {
                let asks = self.find(&key.key)?.0.asks_each_time;
                if asks {
                    let pin = key.auth.as_ref().ok_or(KeyError::NotLoggedIn)?;
                    self.login(Some(pin.expose()))?;
                }
                Ok(KeyReply::Bytes(Bytes(vec![7; 64])))
            }
            _ => Err(KeyError::Unsupported),
        }
    }
}

/// A broker with a module, and what is around it.
struct Rig {
    broker: Broker,
    now: Instant,
    next: u64,
    to_start: Vec<(WorkerId, WorkerKind)>,
    running: Vec<(WorkerId, WorkerKind)>,
    /// What workers have not answered.
    asked: VecDeque<(WorkerId, KeyRequest)>,
    tokens: Vec<Fake>,
    /// What the tokens were asked.
    log: Vec<Operation>,
    replies: HashMap<(PortId, RequestId), (Instant, Reply)>,
    told: Vec<(PortId, TokenInfo)>,
    is_active: bool,
    prompts: BTreeMap<PromptId, PromptRequest>,
    stored: Vec<Write>,
    killed: Vec<WorkerId>,
    released: Vec<WorkerId>,
    overviews: Vec<Overview>,
}

impl Rig {
    fn new(tokens: Vec<Fake>) -> Self {
        Self::restored(tokens, Remembered::default(), None)
    }

    fn restored(tokens: Vec<Fake>, remembered: Remembered, tpm: Option<&str>) -> Self {
        let mut rig = Self {
            broker: Broker::new(),
            now: Instant::now(),
            next: 1,
            to_start: Vec::new(),
            running: Vec::new(),
            asked: VecDeque::new(),
            tokens,
            log: Vec::new(),
            replies: HashMap::new(),
            told: Vec::new(),
            is_active: false,
            prompts: BTreeMap::new(),
            stored: Vec::new(),
            killed: Vec::new(),
            released: Vec::new(),
            overviews: Vec::new(),
        };
        let module = ModuleConfig {
            module: "/usr/lib/module.so".to_owned(),
            label: "Module".to_owned(),
            ..ModuleConfig::default()
        };
        let is_tpm = tpm.is_some();
        rig.input(Input::Configure(BrokerConfig {
            modules: if is_tpm { Vec::new() } else { vec![module] },
            tpm: tpm.map(str::to_owned),
            ..BrokerConfig::default()
        }));
        rig.input(Input::Restore(remembered, SystemTime::UNIX_EPOCH));
        rig
    }

    fn input(&mut self, input: Input) {
        for output in self.broker.handle(input, self.now) {
            match output {
                Output::ToPort(port, PortMessage::Reply { request, result }) => {
                    let result = result.map(|body| match body {
                        ReplyBody::Keys(reply) => reply,
                        other => panic!("{other:?}"),
                    });
                    let earlier = self.replies.insert((port, request), (self.now, result));
                    assert!(earlier.is_none(), "two replies");
                }
                Output::ToPort(port, PortMessage::Token(info)) => self.told.push((port, info)),
                Output::StartWorker(worker, kind) => self.to_start.push((worker, kind)),
                Output::KillWorker(worker) => {
                    self.forget(worker);
                    self.killed.push(worker);
                }
                Output::ReleaseWorker(worker) => {
                    self.forget(worker);
                    self.released.push(worker);
                }
                Output::ToKeyWorker(worker, request) => {
                    assert!(self.running.iter().any(|(id, _)| *id == worker));
                    self.asked.push_back((worker, request));
                }
                Output::CheckActivation(prompt, _) => {
                    let is_active = self.is_active;
                    self.input(Input::Activation { prompt, is_active });
                }
                Output::Prompt(request) => {
                    if let Some(replaced) = &request.replaces {
                        self.prompts.remove(replaced).expect("a prompt");
                    }
                    self.prompts.insert(request.id, request);
                }
                Output::WithdrawPrompt(prompt) => {
                    self.prompts
                        .remove(&prompt)
                        .expect("a prompt that is shown");
                }
                Output::Store(write) => self.stored.push(write),
                Output::Overview(_, overview) => self.overviews.push(overview),
                Output::PortOpened(_) | Output::ClosePort(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn forget(&mut self, worker: WorkerId) {
        self.running.retain(|(id, _)| *id != worker);
        self.to_start.retain(|(id, _)| *id != worker);
        self.asked.retain(|(id, _)| *id != worker);
        for token in &mut self.tokens {
            token.logged_in = false;
        }
    }

    fn start(&mut self) -> bool {
        if self.to_start.is_empty() {
            return false;
        }
        let (worker, kind) = self.to_start.remove(0);
        self.running.push((worker, kind));
        self.input(Input::WorkerStarted(worker));
        true
    }

    /// Answers what a worker was asked first.
    fn answer(&mut self) -> bool {
        let Some((worker, request)) = self.asked.pop_front() else {
            return false;
        };
        let result = match &request.body {
            KeyRequestBody::ListTokens => Ok(KeyReply::Tokens(
                self.tokens.iter().map(|token| token.info.clone()).collect(),
            )),
            KeyRequestBody::Token(id, operation) => {
                self.log.push(operation.clone());
                let token = self.tokens.iter_mut().find(|token| token.info.id == *id);
                token.map_or(Err(KeyError::NoToken), |token| token.perform(operation))
            }
            KeyRequestBody::Cancel { .. } => return true,
        };
        self.say(worker, request.id, result);
        true
    }

    fn say(&mut self, worker: WorkerId, request: u64, result: Answer) {
        let message = KeyMessage::Reply { request, result };
        let frame = Frame::encode(&message).unwrap();
        self.input(Input::WorkerFrame(worker, frame));
    }

    fn tokens_changed(&mut self) {
        let worker = self.running[0].0;
        let frame = Frame::encode(&KeyMessage::TokensChanged).unwrap();
        self.input(Input::WorkerFrame(worker, frame));
    }

    fn settle(&mut self) {
        while self.start() || self.answer() {}
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Tick);
        self.settle();
    }

    fn page(&mut self, origin: &str) -> PortId {
        self.page_as(super::tests::identity(origin))
    }

    fn page_as(&mut self, identity: PortIdentity) -> PortId {
        self.next += 1;
        let port = PortId(self.next);
        self.input(Input::OpenPort { port, identity });
        port
    }

    fn send(&mut self, port: PortId, request: KeysRequest) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        let body = RequestBody::Keys(request);
        let frame = Frame::encode(&PortRequest { id, body }).unwrap();
        self.input(Input::PortFrame(port, frame));
        id
    }

    /// The answer, which comes without a user.
    fn ask(&mut self, port: PortId, request: KeysRequest) -> Reply {
        let id = self.send(port, request);
        self.finish(port, id)
    }

    /// Lets everything happen but what users do, up to the answer.
    fn finish(&mut self, port: PortId, id: RequestId) -> Reply {
        self.settle();
        if !self.replies.contains_key(&(port, id)) {
            self.wait(Duration::from_millis(10));
        }
        self.replies.remove(&(port, id)).expect("an answer").1
    }

    fn has_answer(&self, port: PortId, id: RequestId) -> bool {
        self.replies.contains_key(&(port, id))
    }

    fn prompt(&self) -> &PromptRequest {
        assert_eq!(self.prompts.len(), 1, "{:?}", self.prompts);
        self.prompts.values().next().unwrap()
    }

    fn user(&mut self, answer: PromptAnswer) {
        let prompt = self.prompt().id;
        self.prompts.remove(&prompt);
        self.input(Input::PromptAnswered { prompt, answer });
        self.settle();
    }

    fn enter(&mut self, pin: &str) {
        let pin = Pin::new(Zeroizing::new(pin.to_owned()));
        self.user(PromptAnswer::Pin(pin));
    }

    /// The user gives a page the first token.
    fn give_token(&mut self, port: PortId, remember: bool) -> KeyTokenId {
        self.is_active = true;
        let id = self.send(port, KeysRequest::RequestToken(TokenQuery::default()));
        self.settle();
        self.user(PromptAnswer::Chosen { index: 0, remember });
        self.is_active = false;
        match self.finish(port, id) {
            Ok(KeysReply::Token(token)) => token.id,
            other => panic!("{other:?}"),
        }
    }

    fn keys(&mut self, port: PortId) -> Vec<KeyInfo> {
        match self.ask(port, KeysRequest::GetKeys(Box::default())) {
            Ok(KeysReply::Keys(keys)) => keys,
            other => panic!("{other:?}"),
        }
    }

    fn by_name(&mut self, port: PortId, name: &str) -> Option<KeyInfo> {
        match self.ask(port, KeysRequest::GetKeyByName(name.to_owned())) {
            Ok(KeysReply::Keys(keys)) => keys.into_iter().next(),
            other => panic!("{other:?}"),
        }
    }

    fn overview(&mut self) -> Overview {
        self.input(Input::GetOverview(1));
        self.overviews.pop().unwrap()
    }

    fn permit(&mut self, origin: &str, state: PermissionState) {
        let origin = Origin::new(origin).unwrap();
        self.input(Input::SetPermission {
            origin: origin.clone(),
            top_level_origin: origin,
            feature: Feature::TokenKeys,
            state,
        });
        self.settle();
    }
}

fn sign(key: KeyId) -> KeysRequest {
    KeysRequest::Use {
        key,
        operation: KeyOperation::Sign {
            scheme: SignatureScheme::Ecdsa,
            data: Bytes(vec![1; 32]),
        },
    }
}

fn signature() -> Reply {
    Ok(KeysReply::Bytes(Bytes(vec![7; 64])))
}

fn new_key(name: &str) -> NewKey {
    NewKey {
        algorithm: KeyAlgorithm::Ec(Curve::P256),
        usages: Usages::SIGN,
        name: Some(name.to_owned()),
        origins: Vec::new(),
        user_verification: UserVerification::Session,
        is_wrappable: false,
        is_persistent: true,
    }
}

fn kind(reply: Reply) -> ErrorKind {
    reply.unwrap_err().kind
}

/// A token with a key of the bank's, and one that nobody has written a list for.
fn bank_token() -> Fake {
    let own = key(1, "own");
    let for_bank = list(&own, BANK, &[BANK]);
    token(1, "Card")
        .with(own, for_bank)
        .with(key(2, "old"), None)
}

#[test]
fn who_cannot_have_keys_sees_none_and_starts_nothing() {
    let mut rig = Rig::new(vec![bank_token()]);
    rig.is_active = true;
    let bank = super::tests::identity(BANK);
    let strangers = [
        PortIdentity {
            private: true,
            ..bank.clone()
        },
        PortIdentity {
            connection: Connection::HttpsWithException,
            ..bank.clone()
        },
        PortIdentity {
            features: token_traits::FeatureSet::NONE,
            ..bank
        },
    ];
    for (index, stranger) in strangers.into_iter().enumerate() {
        // Not even automation changes that.
        if index == 1 {
            rig.permit(BANK, PermissionState::Granted);
        }
        let port = rig.page_as(stranger);
        assert!(rig.keys(port).is_empty());
        assert_eq!(rig.by_name(port, "own"), None);
        let tokens = rig.ask(port, KeysRequest::GetTokens(TokenQuery::default()));
        assert_eq!(tokens, Ok(KeysReply::Tokens(vec![])));
        for request in [
            KeysRequest::RequestKey(Box::default()),
            KeysRequest::RequestToken(TokenQuery::default()),
            sign(KeyId([0; 16])),
        ] {
            assert_eq!(kind(rig.ask(port, request)), ErrorKind::NotAllowed);
        }
        assert_eq!(rig.ask(port, KeysRequest::WatchTokens), Ok(KeysReply::Done));
    }
    // Nor does one that has not been allowed anything, as long as nobody touches it.
    rig.permit(BANK, PermissionState::Prompt);
    rig.is_active = false;
    let port = rig.page(BANK);
    assert!(rig.keys(port).is_empty());
    let request = KeysRequest::RequestKey(Box::default());
    assert_eq!(kind(rig.ask(port, request)), ErrorKind::NotAllowed);
    rig.permit(BANK, PermissionState::Denied);
    rig.is_active = true;
    let request = KeysRequest::RequestToken(TokenQuery::default());
    assert_eq!(kind(rig.ask(port, request)), ErrorKind::NotAllowed);
    assert!(rig.prompts.is_empty());
    assert!(rig.to_start.is_empty() && rig.running.is_empty());
}

#[test]
fn what_is_not_yours_takes_as_long_as_what_is_not_there() {
    let own = key(1, "own");
    let theirs = key(2, "theirs");
    let (for_bank, for_shop) = (list(&own, BANK, &[BANK]), list(&theirs, SHOP, &[SHOP]));
    let card = token(1, "Card").with(own, for_bank).with(theirs, for_shop);
    let mut rig = Rig::new(vec![card]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let mut measured = Vec::new();
    for name in ["theirs", "missing", "own"] {
        // What was read is read again after a while.
        rig.wait(Duration::from_secs(20));
        rig.log.clear();
        let begun = rig.now;
        let id = rig.send(port, KeysRequest::GetKeyByName(name.to_owned()));
        rig.settle();
        assert!(!rig.has_answer(port, id), "an answer without delay");
        rig.wait(Duration::from_millis(10));
        let (time, reply) = rig.replies.remove(&(port, id)).unwrap();
        let Ok(KeysReply::Keys(keys)) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(keys.len(), usize::from(name == "own"));
        measured.push((time - begun, std::mem::take(&mut rig.log)));
    }
    assert_eq!(measured[0], measured[1]);
    assert_eq!(measured[1], measured[2]);
    assert!(!measured[0].1.is_empty());
}

#[test]
fn a_token_is_the_origins_that_the_user_says() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.is_active = true;
    let id = rig.send(port, KeysRequest::RequestToken(TokenQuery::default()));
    rig.settle();
    match &rig.prompt().question {
        Question::ChooseToken { tokens } => assert_eq!(tokens[0].label, "Card"),
        other => panic!("{other:?}"),
    }
    assert!(rig.keys(port).is_empty(), "before the answer");
    rig.user(PromptAnswer::Refused);
    assert_eq!(kind(rig.finish(port, id)), ErrorKind::NotAllowed);
    let token = rig.give_token(port, true);
    let keys = rig.keys(port);
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].name, "own");
    assert_eq!(keys[0].token.id, token);
    // Another origin, and the same one in another's frame, have nothing.
    let shop = rig.page(SHOP);
    let framed = rig.page_as(PortIdentity {
        top_level_origin: Origin::new(SHOP).unwrap(),
        ..super::tests::identity(BANK)
    });
    for other in [shop, framed] {
        assert!(rig.keys(other).is_empty());
        assert_eq!(kind(rig.ask(other, sign(keys[0].id))), ErrorKind::Gone);
    }
    let overview = rig.overview();
    assert!(overview.grants.iter().any(|grant| grant.remembered
        && grant.what
            == GrantKind::Token {
                token: "Card".to_owned()
            }));
    // The user takes it back.
    let id = overview.grants.iter().find_map(|grant| grant.id).unwrap();
    rig.input(Input::Revoke(id));
    rig.settle();
    assert!(rig.keys(port).is_empty());
    assert_eq!(kind(rig.ask(port, sign(keys[0].id))), ErrorKind::NotAllowed);
    let decisions: Vec<String> = rig
        .overview()
        .audit
        .into_iter()
        .map(|it| it.decision)
        .collect();
    assert!(decisions.contains(&"revoked by the user".to_owned()));
    assert!(decisions.contains(&"token allowed by the user".to_owned()));
    assert!(decisions.contains(&"keys refused by the user".to_owned()));
}

#[test]
fn the_chooser_shows_what_comes() {
    let mut rig = Rig::new(vec![]);
    let port = rig.page(BANK);
    rig.is_active = true;
    let id = rig.send(port, KeysRequest::RequestToken(TokenQuery::default()));
    rig.settle();
    let first = rig.prompt().id;
    rig.tokens.push(bank_token());
    rig.tokens_changed();
    rig.settle();
    assert_eq!(rig.prompt().replaces, Some(first));
    rig.user(PromptAnswer::Chosen {
        index: 0,
        remember: false,
    });
    assert!(matches!(rig.finish(port, id), Ok(KeysReply::Token(_))));
    // It goes with the page.
    rig.send(port, KeysRequest::RequestToken(TokenQuery::default()));
    rig.settle();
    rig.prompt();
    rig.input(Input::ClosePort(port));
    assert!(rig.prompts.is_empty());
}

#[test]
fn requests_wait_for_one_pin_together() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let key = rig.keys(port)[0].id;
    let ids: Vec<RequestId> = (0..20).map(|_| rig.send(port, sign(key))).collect();
    rig.settle();
    match &rig.prompt().question {
        Question::EnterPin {
            token,
            was_wrong: false,
            tries_left: None,
            ..
        } => assert_eq!(token, "Card"),
        other => panic!("{other:?}"),
    }
    rig.user(PromptAnswer::Refused);
    for id in ids {
        assert_eq!(kind(rig.finish(port, id)), ErrorKind::NotAllowed);
    }
    assert!(rig.prompts.is_empty(), "it is asked again");

    let ids: Vec<RequestId> = (0..20).map(|_| rig.send(port, sign(key))).collect();
    rig.settle();
    rig.enter(PIN);
    for id in ids {
        assert_eq!(rig.finish(port, id), signature());
    }
    assert_eq!(rig.ask(port, sign(key)), signature());
}

#[test]
fn one_that_waits_takes_over_when_the_one_that_asked_goes() {
    let mut rig = Rig::new(vec![bank_token()]);
    let (first, second) = (rig.page(BANK), rig.page(BANK));
    rig.give_token(first, false);
    let key = rig.keys(first)[0].id;
    rig.send(first, sign(key));
    let id = rig.send(second, sign(key));
    rig.settle();
    rig.prompt();
    rig.input(Input::ClosePort(first));
    rig.settle();
    rig.enter(PIN);
    assert_eq!(rig.finish(second, id), signature());
}

#[test]
fn the_last_try_is_not_spent_without_a_warning() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let key = rig.keys(port)[0].id;
    let asked = |rig: &Rig| match rig.prompt().question {
        Question::EnterPin {
            was_wrong,
            tries_left,
            ..
        } => (was_wrong, tries_left),
        ref other => panic!("{other:?}"),
    };
    let id = rig.send(port, sign(key));
    rig.settle();
    assert_eq!(asked(&rig), (false, None));
    rig.enter("111111");
    assert_eq!(asked(&rig), (true, None));
    // The same again cannot be right, and spends nothing.
    rig.enter("111111");
    assert_eq!(rig.tokens[0].wrong, 1);
    assert_eq!(asked(&rig), (true, None));
    rig.enter("222222");
    assert_eq!(asked(&rig), (true, Some(1)));
    for _ in 0..2 {
        rig.enter("222222");
    }
    assert_eq!(kind(rig.finish(port, id)), ErrorKind::NotAllowed);
    assert_eq!(rig.tokens[0].wrong, 2);
    // The next one is told from the beginning.
    let id = rig.send(port, sign(key));
    rig.settle();
    assert_eq!(asked(&rig), (false, Some(1)));
    rig.enter("333333");
    assert_eq!(kind(rig.finish(port, id)), ErrorKind::NotAllowed);
    // It is locked: nobody is asked any more.
    assert_eq!(kind(rig.ask(port, sign(key))), ErrorKind::NotAllowed);
    let logins = rig
        .log
        .iter()
        .filter(|it| matches!(it, Operation::Login { .. }));
    assert_eq!(logins.count(), 3);
}

#[test]
fn a_token_with_a_keypad_asks_by_itself() {
    let mut card = bank_token();
    card.info.login.has_own_path = true;
    let mut rig = Rig::new(vec![card]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let key = rig.keys(port)[0].id;
    assert_eq!(rig.ask(port, sign(key)), signature());
    assert!(rig.log.contains(&Operation::Login { pin: None }));
}

#[test]
fn a_key_that_asks_each_time_asks_each_time() {
    let mut own = key(1, "own");
    own.asks_each_time = true;
    let for_bank = list(&own, BANK, &[BANK]);
    let mut rig = Rig::new(vec![token(1, "Card").with(own, for_bank)]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let own = rig.keys(port).remove(0);
    assert_eq!(own.user_verification, UserVerification::EachUse);
    for _ in 0..3 {
        let id = rig.send(port, sign(own.id));
        rig.settle();
        rig.enter("111111");
        rig.enter(PIN);
        assert_eq!(rig.finish(port, id), signature());
    }
    let ids: Vec<_> = (0..3).map(|_| rig.send(port, sign(own.id))).collect();
    rig.settle();
    rig.user(PromptAnswer::Refused);
    for id in ids {
        assert_eq!(kind(rig.finish(port, id)), ErrorKind::NotAllowed);
    }
}

#[test]
fn the_token_forgets_its_user_when_nobody_uses_it() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let key = rig.keys(port)[0].id;
    let log_in = |rig: &mut Rig, port| {
        let id = rig.send(port, sign(key));
        rig.settle();
        rig.enter(PIN);
        assert_eq!(rig.finish(port, id), signature());
        assert!(rig.tokens[0].logged_in);
    };
    log_in(&mut rig, port);
    rig.wait(Duration::from_secs(299));
    assert_eq!(rig.ask(port, sign(key)), signature());
    rig.wait(Duration::from_secs(299));
    assert!(rig.tokens[0].logged_in);
    rig.wait(Duration::from_secs(2));
    assert!(!rig.tokens[0].logged_in);
    log_in(&mut rig, port);
    // A page of another origin does not keep it.
    rig.page(SHOP);
    rig.input(Input::ClosePort(port));
    rig.settle();
    assert!(!rig.tokens[0].logged_in);
    // Nor does the worker stay when nobody has to do with keys.
    let port = rig.page(BANK);
    rig.give_token(port, false);
    rig.wait(Duration::from_secs(61));
    assert!(rig.released.is_empty());
    rig.input(Input::ClosePort(port));
    rig.wait(Duration::from_secs(61));
    rig.wait(Duration::from_secs(61));
    assert_eq!(rig.released.len(), 1);
    assert!(rig.broker.next_deadline().is_none());
}

#[test]
fn a_worker_that_hangs_is_killed() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let key = rig.keys(port)[0].id;
    let ids: Vec<_> = (0..20).map(|_| rig.send(port, sign(key))).collect();
    assert_eq!(rig.asked.len(), 8);
    rig.now += Duration::from_secs(20);
    rig.input(Input::Tick);
    assert!(rig.killed.is_empty(), "it is not overdue yet");
    rig.now = rig.broker.next_deadline().unwrap();
    rig.input(Input::Tick);
    assert_eq!(rig.killed.len(), 1);
    let kinds: Vec<ErrorKind> = ids
        .into_iter()
        .map(|id| kind(rig.replies.remove(&(port, id)).expect("an answer").1))
        .collect();
    assert_eq!(kinds[0], ErrorKind::Timeout);
    assert_eq!(kinds[1..8], [ErrorKind::Operation; 7]);
    assert_eq!(kinds[8..], [ErrorKind::Gone; 12]);
    // The next one is started, and the key and the grant are as before.
    let id = rig.send(port, sign(key));
    rig.settle();
    rig.enter(PIN);
    assert_eq!(rig.finish(port, id), signature());
}

#[test]
fn a_worker_that_cannot_be_started_has_no_tokens() {
    let mut rig = Rig::new(vec![bank_token()]);
    rig.permit(BANK, PermissionState::Granted);
    let port = rig.page(BANK);
    for _ in 0..3 {
        let id = rig.send(port, KeysRequest::GetKeys(Box::default()));
        if let Some((worker, _)) = rig.to_start.pop() {
            rig.input(Input::WorkerEnded(worker));
        }
        assert!(rig.killed.is_empty());
        rig.wait(Duration::from_millis(10));
        for _ in 0..20 {
            if rig.has_answer(port, id) {
                break;
            }
            rig.to_start.clear();
            rig.now = rig.broker.next_deadline().expect("a deadline").max(rig.now);
            rig.input(Input::Tick);
        }
        let reply = rig.replies.remove(&(port, id)).expect("an answer").1;
        assert_eq!(reply, Ok(KeysReply::Keys(vec![])));
    }
}

#[test]
fn a_worker_that_says_nonsense_is_killed() {
    let too_long = protocol::KeyInfo {
        label: "x".repeat(256),
        ..key(1, "")
    };
    let nonsense: Vec<Answer> = vec![
        Ok(KeyReply::Done),
        Ok(KeyReply::IsGenuine(true)),
        Ok(KeyReply::Tokens(vec![])),
        Ok(KeyReply::Bytes(Bytes(vec![0; 66_000]))),
        Ok(KeyReply::Key(Box::new(too_long))),
    ];
    for answer in nonsense {
        let mut rig = Rig::new(vec![bank_token()]);
        let port = rig.page(BANK);
        rig.give_token(port, false);
        let key = rig.keys(port)[0].id;
        let id = rig.send(port, sign(key));
        let (worker, request) = rig.asked.pop_front().unwrap();
        rig.say(worker, request.id, answer);
        assert_eq!(rig.killed, [worker]);
        let reply = rig.replies.remove(&(port, id)).expect("an answer").1;
        assert_eq!(kind(reply), ErrorKind::Operation);
    }
    // What was not asked, and what is no message.
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let worker = rig.running[0].0;
    rig.say(worker, 12_345, Ok(KeyReply::Done));
    assert_eq!(rig.killed, [worker]);
    rig.keys(port);
    let worker = rig.running[0].0;
    rig.input(Input::WorkerFrame(worker, Frame::from_bytes(vec![1, 2, 3])));
    assert_eq!(rig.killed.len(), 2);
    rig.wait(Duration::from_secs(5));
    rig.keys(port);
    for _ in 0..101 {
        rig.tokens_changed();
        if rig.killed.len() == 3 {
            break;
        }
    }
    assert_eq!(rig.killed.len(), 3, "it may talk without an end");
}

#[test]
fn pages_hear_of_tokens_that_they_have() {
    let mut rig = Rig::new(vec![bank_token()]);
    let (bank, shop) = (rig.page(BANK), rig.page(SHOP));
    let token = rig.give_token(bank, true);
    for port in [bank, shop] {
        assert_eq!(rig.ask(port, KeysRequest::WatchTokens), Ok(KeysReply::Done));
    }
    let card = rig.tokens.pop().unwrap();
    rig.tokens_changed();
    rig.settle();
    let told = std::mem::take(&mut rig.told);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].0, told[0].1.id), (bank, token));
    assert!(!told[0].1.present);
    assert!(rig.keys(bank).is_empty());
    rig.tokens.push(card);
    rig.tokens_changed();
    rig.settle();
    let told = std::mem::take(&mut rig.told);
    assert!(told.len() == 1 && told[0].1.present);
    // A worker's end is not a token's: nothing is told, and a new one is started to go on watching.
    let worker = rig.running[0].0;
    rig.forget(worker);
    rig.input(Input::WorkerEnded(worker));
    rig.wait(Duration::from_secs(1));
    assert!(rig.told.is_empty());
    assert_eq!(rig.running.len(), 1);
    assert_eq!(rig.keys(bank).len(), 1);
}

#[test]
fn a_grant_for_now_ends_with_the_token_or_the_page() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    assert_eq!(rig.keys(port).len(), 1);
    let card = rig.tokens.pop().unwrap();
    rig.tokens_changed();
    rig.keys(port);
    rig.tokens.push(card);
    rig.tokens_changed();
    assert!(rig.keys(port).is_empty());
    rig.give_token(port, false);
    assert_eq!(rig.keys(port).len(), 1);
    rig.input(Input::ClosePort(port));
    let port = rig.page(BANK);
    assert!(rig.keys(port).is_empty());
    assert!(!rig.stored.iter().any(|it| matches!(it, Write::Grant(..))));
}

#[test]
fn a_key_without_a_list_is_the_users_to_give() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(SHOP);
    rig.is_active = true;
    let id = rig.send(port, KeysRequest::RequestKey(Box::default()));
    rig.settle();
    match &rig.prompt().question {
        Question::ChooseKey { keys } => {
            let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
            assert_eq!(names, ["old"], "another origin's key is offered");
        }
        other => panic!("{other:?}"),
    }
    rig.user(PromptAnswer::Chosen {
        index: 0,
        remember: true,
    });
    let Ok(KeysReply::Key(key)) = rig.finish(port, id) else {
        panic!("no key");
    };
    assert!(!key.is_own);
    assert_eq!(rig.keys(port).len(), 1);
    // The token itself has not been given.
    let tokens = rig.ask(port, KeysRequest::GetTokens(TokenQuery::default()));
    assert_eq!(tokens, Ok(KeysReply::Tokens(vec![])));
    let make = KeysRequest::Generate {
        token: key.token.id,
        key: new_key("new"),
    };
    assert_eq!(kind(rig.ask(port, make)), ErrorKind::NotAllowed);
    assert_eq!(
        kind(rig.ask(port, KeysRequest::Delete(key.id))),
        ErrorKind::NotAllowed
    );
    let overview = rig.overview();
    assert_eq!(
        overview.grants[0].what,
        GrantKind::Key {
            name: "old".to_owned(),
            token: "Card".to_owned()
        }
    );
    assert_eq!(
        rig.ask(port, KeysRequest::ForgetKey(key.id)),
        Ok(KeysReply::Done)
    );
    assert!(rig.keys(port).is_empty());
    assert!(rig.stored.iter().any(|it| matches!(it, Write::Revoke(_))));
    // Where nothing fits there is no prompt.
    let query = KeyQuery {
        name: Some("own".to_owned()),
        ..KeyQuery::default()
    };
    let request = KeysRequest::RequestKey(Box::new(query));
    assert_eq!(kind(rig.ask(port, request)), ErrorKind::NotFound);
}

#[test]
fn a_key_is_made_with_its_list_whatever_becomes_of_the_page() {
    let mut rig = Rig::new(vec![token(1, "Card")]);
    rig.tokens[0].info.login.is_required = false;
    let port = rig.page(BANK);
    let token = rig.give_token(port, true);
    let mut shared = new_key("key");
    shared.origins = vec![Origin::new(SHOP).unwrap()];
    let make = |key: NewKey| KeysRequest::Generate { token, key };
    let id = rig.send(port, make(shared.clone()));
    rig.settle();
    match &rig.prompt().question {
        Question::ShareKey {
            name,
            token,
            origins,
        } => {
            assert_eq!((name.as_str(), token.as_str()), ("key", "Card"));
            assert_eq!(*origins, [Origin::new(SHOP).unwrap()]);
        }
        other => panic!("{other:?}"),
    }
    rig.user(PromptAnswer::Refused);
    assert_eq!(kind(rig.finish(port, id)), ErrorKind::NotAllowed);
    assert!(rig.tokens[0].keys.is_empty());
    // The page goes while the key is made.
    rig.send(port, make(new_key("key")));
    while rig.tokens[0].keys.is_empty() {
        assert!(rig.answer());
    }
    rig.input(Input::ClosePort(port));
    rig.settle();
    assert!(rig.tokens[0].keys[0].1.is_some(), "a key without a list");
    let port = rig.page(BANK);
    let key = rig.by_name(port, "key").expect("the key");
    assert!(key.is_own);
    // Two of one name are one too many, also at the same time.
    let ids = [
        rig.send(port, make(new_key("two"))),
        rig.send(port, make(new_key("two"))),
    ];
    let kinds: Vec<bool> = ids.map(|id| rig.finish(port, id).is_ok()).into();
    assert_eq!(kinds, [true, false]);
    assert_eq!(
        kind(rig.ask(port, make(new_key("key")))),
        ErrorKind::NameTaken
    );
    assert_eq!(
        rig.ask(port, KeysRequest::Delete(key.id)),
        Ok(KeysReply::Done)
    );
    assert!(rig.ask(port, make(new_key("key"))).is_ok());
    // What cannot be.
    let unsupported = [
        NewKey {
            algorithm: KeyAlgorithm::Aes { bits: 100 },
            usages: Usages::NONE,
            ..new_key("a")
        },
        NewKey {
            is_wrappable: true,
            ..new_key("b")
        },
        NewKey {
            usages: Usages::ENCRYPT,
            ..new_key("c")
        },
    ];
    for key in unsupported {
        assert_eq!(kind(rig.ask(port, make(key))), ErrorKind::NotSupported);
    }
    let long = new_key(&"x".repeat(256));
    assert_eq!(kind(rig.ask(port, make(long))), ErrorKind::QuotaExceeded);
    rig.tokens[0].info.is_read_only = true;
    rig.tokens_changed();
    assert_eq!(kind(rig.ask(port, make(new_key("d")))), ErrorKind::ReadOnly);
}

#[test]
fn where_the_token_keeps_no_data_the_store_does() {
    let mut card = token(1, "Card");
    card.info.features.clear();
    card.info.login.is_required = false;
    let mut rig = Rig::new(vec![card]);
    let port = rig.page(BANK);
    let token = rig.give_token(port, true);
    let key = new_key("key");
    let made = rig.ask(port, KeysRequest::Generate { token, key });
    let Ok(KeysReply::Key(made)) = made else {
        panic!("{made:?}");
    };
    let mut remembered = Remembered::default();
    for write in std::mem::take(&mut rig.stored) {
        match write {
            Write::Grant(id, grant) => remembered.grants.push((id, grant)),
            Write::List(name, list) => remembered.key_lists.push((name, list)),
            _ => {}
        }
    }
    assert_eq!(remembered.key_lists.len(), 1);
    let tokens = std::mem::take(&mut rig.tokens);
    let mut rig = Rig::restored(tokens, remembered, None);
    let port = rig.page(BANK);
    assert_eq!(rig.by_name(port, "key").map(|key| key.id), Some(made.id));
    assert_eq!(
        rig.ask(port, KeysRequest::Delete(made.id)),
        Ok(KeysReply::Done)
    );
    assert!(
        rig.stored
            .iter()
            .any(|it| matches!(it, Write::ForgetList(_)))
    );
}

#[test]
fn a_list_that_makes_no_sense_is_nobody_s() {
    for data in [
        vec![],
        b"nonsense".to_vec(),
        list(&key(9, ""), BANK, &[BANK]).unwrap(),
    ] {
        let card = token(1, "Card").with(key(1, "key"), Some(data));
        let mut rig = Rig::new(vec![card]);
        rig.permit(BANK, PermissionState::Granted);
        let port = rig.page(BANK);
        assert!(rig.keys(port).is_empty());
        let request = KeysRequest::RequestKey(Box::default());
        assert_eq!(kind(rig.ask(port, request)), ErrorKind::NotFound);
    }
}

#[test]
fn a_tpm_s_keys_are_in_the_store_and_refuse_other_origins_by_themselves() {
    let mut tpm = token(1, "TPM");
    tpm.info.login.is_required = false;
    tpm.info.features.clear();
    let secret = || InstallationSecret(Zeroizing::new([5; 32]));
    let remembered = Remembered {
        secret: secret(),
        ..Remembered::default()
    };
    let mut rig = Rig::restored(vec![tpm.clone()], remembered, Some(TPM));
    let mut auths = Vec::new();
    let mut stored = Vec::new();
    for origin in [BANK, SHOP] {
        let port = rig.page(origin);
        let token = rig.give_token(port, true);
        let key = new_key("key");
        let Ok(KeysReply::Key(made)) = rig.ask(port, KeysRequest::Generate { token, key }) else {
            panic!("no key");
        };
        assert_eq!(rig.keys(port).len(), 1);
        rig.ask(port, sign(made.id)).unwrap();
        match (&rig.log[rig.log.len() - 2..], made.is_own) {
            ([Operation::Generate(new), Operation::Sign { key, .. }], true) => {
                assert_eq!(new.auth, key.auth);
                auths.push(key.auth.clone().expect("an authValue"));
            }
            other => panic!("{other:?}"),
        }
        stored.push(made.id);
    }
    assert_ne!(auths[0], auths[1]);
    assert!(
        !rig.log
            .iter()
            .any(|it| matches!(it, Operation::ListKeys { .. }))
    );
    // Another broker has them from the store.
    let mut remembered = Remembered {
        secret: secret(),
        ..Remembered::default()
    };
    for write in std::mem::take(&mut rig.stored) {
        match write {
            Write::Grant(id, grant) => remembered.grants.push((id, grant)),
            Write::StoredKey(key) => {
                let bytes = key.write().unwrap();
                let read = crate::keys::StoredKey::read(&bytes).unwrap();
                assert_eq!(read, *key);
                remembered.stored_keys.push(read);
            }
            _ => {}
        }
    }
    let tokens = std::mem::take(&mut rig.tokens);
    let mut rig = Rig::restored(tokens, remembered, Some(TPM));
    let port = rig.page(BANK);
    assert_eq!(rig.by_name(port, "key").map(|key| key.id), Some(stored[0]));
    assert_eq!(kind(rig.ask(port, sign(stored[1]))), ErrorKind::Gone);
    assert_eq!(rig.ask(port, sign(stored[0])), signature());
    assert_eq!(
        rig.ask(port, KeysRequest::Delete(stored[0])),
        Ok(KeysReply::Done)
    );
    assert!(
        rig.stored
            .iter()
            .any(|it| matches!(it, Write::ForgetStoredKey(_)))
    );
    assert_eq!(rig.by_name(port, "key"), None);
}

#[test]
fn what_is_withdrawn_meanwhile_is_not_answered() {
    let mut rig = Rig::new(vec![bank_token()]);
    rig.tokens[0].info.login.is_required = false;
    let port = rig.page(BANK);
    rig.give_token(port, true);
    let key = rig.keys(port)[0].id;
    let id = rig.send(port, sign(key));
    let grant = rig.overview().grants[0].id.unwrap();
    rig.input(Input::Revoke(grant));
    assert_eq!(kind(rig.finish(port, id)), ErrorKind::NotAllowed);
}

#[test]
fn keys_of_one_name_and_identifier_are_told_apart_by_nothing() {
    let twins = [1, 2].map(|number| protocol::KeyInfo {
        identifier: vec![7],
        ..key(number, "twin")
    });
    let mut card = token(1, "Card");
    for twin in twins {
        let for_bank = list(&twin, BANK, &[BANK]);
        card = card.with(twin, for_bank);
    }
    let other = protocol::KeyInfo {
        identifier: vec![7],
        ..key(3, "other")
    };
    let for_bank = list(&other, BANK, &[BANK]);
    let mut rig = Rig::new(vec![card.with(other, for_bank)]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let identifiers: Vec<_> = rig
        .keys(port)
        .into_iter()
        .map(|key| key.identifier)
        .collect();
    assert_eq!(identifiers, [None, None, Some(Bytes(vec![7]))]);
}

#[test]
fn a_query_with_ten_thousand_issuers_is_answered() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    let mut query = KeyQuery {
        issuers: (0..10_000_u32).map(u32::to_be_bytes).collect(),
        ..KeyQuery::default()
    };
    let ask = |rig: &mut Rig, query: &KeyQuery| {
        rig.ask(port, KeysRequest::GetKeys(Box::new(query.clone())))
    };
    assert_eq!(ask(&mut rig, &query), Ok(KeysReply::Keys(vec![])));
    query.issuers.resize(12_001, [0; 4]);
    assert_eq!(kind(ask(&mut rig, &query)), ErrorKind::QuotaExceeded);
}

#[test]
fn what_is_made_while_a_token_is_read_is_found() {
    let mut rig = Rig::new(vec![bank_token()]);
    let port = rig.page(BANK);
    rig.give_token(port, false);
    rig.wait(Duration::from_secs(20));
    let first = rig.send(port, KeysRequest::GetKeys(Box::default()));
    while !matches!(
        rig.asked.front(),
        Some((
            _,
            KeyRequest {
                body: KeyRequestBody::Token(_, Operation::ReadData(_)),
                ..
            }
        ))
    ) {
        assert!(rig.answer(), "nothing is read");
    }
    let late = key(9, "late");
    let for_bank = list(&late, BANK, &[BANK]);
    rig.tokens[0].keys.push((late, for_bank));
    assert!(rig.by_name(port, "late").is_some());
    assert!(rig.has_answer(port, first));
}

#[test]
fn tokens_that_come_and_go_without_an_end_are_forgotten() {
    let mut rig = Rig::new(vec![]);
    rig.permit(BANK, PermissionState::Granted);
    let port = rig.page(BANK);
    rig.keys(port);
    let length = |rig: &Rig| format!("{:?}", rig.broker).len();
    let mut longest = [0, 0];
    for round in 0..1_000 {
        rig.tokens = vec![token(round, &round.to_string())];
        rig.wait(Duration::from_millis(50));
        rig.tokens_changed();
        let found = rig.ask(port, KeysRequest::GetTokens(TokenQuery::default()));
        assert!(matches!(found, Ok(KeysReply::Tokens(tokens)) if tokens.len() == 1));
        let half = &mut longest[usize::from(round >= 500)];
        *half = length(&rig).max(*half);
    }
    assert!(longest[1] < longest[0] * 11 / 10, "{longest:?}");
}
