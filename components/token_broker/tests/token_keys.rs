/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys in tokens, with the real processes: SoftHSM2 in its worker, a user in software, OpenSSL to check what comes out.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use e2e::softhsm::{MODULE, PIN, SoftHsm};
use tempfile::TempDir;
use token_client::ClientConfig;
use token_traits::control::ModuleConfig;
use token_traits::keys::{
    Bytes, Cipher, Curve, Hash, KeyAlgorithm, KeyId, KeyInfo, KeyOperation, KeyQuery, KeysReply,
    KeysRequest, NewKey, Protection, Provenance, SignatureScheme, TokenInfo, TokenQuery, Usages,
    UserVerification, WrapScheme,
};
use token_traits::port::{ReplyBody, RequestBody};
use token_traits::prompt::{
    AnswerCallback, Pin, PromptAnswer, PromptHost, PromptId, PromptRequest, Question,
};
use token_traits::{ErrorKind, Origin, TokenBroker as _, TokenError};
use zeroize::Zeroizing;

const SHOP: &str = "https://shop.example";
const LABEL: &str = "Company card";

/// Chooses what comes first, enters PINs from a list, and remembers what was asked.
struct User {
    pins: Mutex<VecDeque<String>>,
    asked: Mutex<Vec<Question>>,
    remember: bool,
}

impl User {
    fn with_pins(pins: &[&str]) -> Arc<Self> {
        Arc::new(Self {
            pins: Mutex::new(pins.iter().map(|pin| (*pin).to_owned()).collect()),
            asked: Mutex::default(),
            remember: true,
        })
    }

    fn asked(&self) -> Vec<Question> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn add_pin(&self, pin: &str) {
        self.pins.lock().unwrap().push_back(pin.to_owned());
    }
}

impl PromptHost for User {
    fn show(&self, request: PromptRequest, answer: AnswerCallback) {
        let said = match &request.question {
            Question::EnterPin { .. } => match self.pins.lock().unwrap().pop_front() {
                Some(pin) => PromptAnswer::Pin(Pin::new(Zeroizing::new(pin))),
                None => PromptAnswer::Refused,
            },
            Question::ChooseToken { .. } | Question::ChooseKey { .. } => PromptAnswer::Chosen {
                index: 0,
                remember: self.remember,
            },
            _ => PromptAnswer::Allowed { remember: false },
        };
        self.asked.lock().unwrap().push(request.question);
        answer(said);
    }

    fn withdraw(&self, _id: PromptId) {}
}

/// The configuration with SoftHSM2.
fn config(hsm: &SoftHsm, store: Option<&Path>) -> ClientConfig {
    let configuration = hsm.tokens().with_file_name("softhsm2.conf");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    ClientConfig {
        modules: vec![ModuleConfig {
            module: MODULE.to_owned(),
            label: "SoftHSM".to_owned(),
            read: vec![text(&configuration)],
            write: vec![text(&hsm.tokens())],
            pcsc: false,
            environment: BTreeMap::from([("SOFTHSM2_CONF".to_owned(), text(&configuration))]),
        }],
        store: store.map(Path::to_path_buf),
        ..nothing()
    }
}

struct Rig {
    hsm: SoftHsm,
    user: Arc<User>,
    browser: Browser,
    page: Page,
}

impl Rig {
    fn new(pins: &[&str]) -> Self {
        let hsm = SoftHsm::with_token(LABEL).expect("SoftHSM2");
        let user = User::with_pins(pins);
        let browser = Browser::configured(config(&hsm, None), user.clone());
        let page = browser.open_page();
        Self {
            hsm,
            user,
            browser,
            page,
        }
    }

    fn ask(&mut self, request: KeysRequest) -> Result<KeysReply, TokenError> {
        self.browser.client.user_input(1);
        ask(&mut self.page, request)
    }

    fn token(&mut self) -> TokenInfo {
        match self.ask(KeysRequest::RequestToken(TokenQuery::default())) {
            Ok(KeysReply::Token(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    fn generate(&mut self, key: NewKey) -> Result<KeyInfo, TokenError> {
        let token = self.token().id;
        match self.ask(KeysRequest::Generate { token, key })? {
            KeysReply::Key(key) => Ok(*key),
            other => panic!("{other:?}"),
        }
    }

    fn by_name(&mut self, name: &str) -> Option<KeyInfo> {
        by_name(&mut self.page, name)
    }

    fn operate(&mut self, key: KeyId, operation: KeyOperation) -> Result<KeysReply, TokenError> {
        self.ask(KeysRequest::Use { key, operation })
    }

    fn bytes(&mut self, key: KeyId, operation: KeyOperation) -> Vec<u8> {
        match self.operate(key, operation) {
            Ok(KeysReply::Bytes(bytes)) => bytes.0,
            other => panic!("{other:?}"),
        }
    }
}

fn ask(page: &mut Page, request: KeysRequest) -> Result<KeysReply, TokenError> {
    match page.ask(RequestBody::Keys(request))? {
        ReplyBody::Keys(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn by_name(page: &mut Page, name: &str) -> Option<KeyInfo> {
    match ask(page, KeysRequest::GetKeyByName(name.to_owned())) {
        Ok(KeysReply::Keys(keys)) => {
            assert!(keys.len() <= 1);
            keys.into_iter().next()
        }
        other => panic!("{other:?}"),
    }
}

fn keys(page: &mut Page, query: KeyQuery) -> Vec<KeyInfo> {
    match ask(page, KeysRequest::GetKeys(Box::new(query))) {
        Ok(KeysReply::Keys(keys)) => keys,
        other => panic!("{other:?}"),
    }
}

fn new_key(name: &str, algorithm: KeyAlgorithm, usages: Usages) -> NewKey {
    NewKey {
        algorithm,
        usages,
        name: Some(name.to_owned()),
        origins: Vec::new(),
        user_verification: UserVerification::Session,
        is_wrappable: false,
        is_persistent: true,
    }
}

fn p256(name: &str) -> NewKey {
    new_key(name, KeyAlgorithm::Ec(Curve::P256), Usages::SIGN)
}

fn digest(data: &[u8]) -> Bytes {
    use sha2::Digest;
    Bytes(sha2::Sha256::digest(data).to_vec())
}

fn ecdsa(data: &[u8]) -> KeyOperation {
    KeyOperation::Sign {
        scheme: SignatureScheme::Ecdsa,
        data: digest(data),
    }
}

/// A signature as OpenSSL wants it (RFC 3279, 2.2.3).
fn in_der(signature: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for half in signature.chunks(signature.len() / 2) {
        let skipped = half.iter().take_while(|byte| **byte == 0).count();
        let mut number = half[skipped..].to_vec();
        if number.first().is_none_or(|first| first & 0x80 != 0) {
            number.insert(0, 0);
        }
        body.extend([2, u8::try_from(number.len()).unwrap()]);
        body.extend(number);
    }
    let mut der = vec![0x30, u8::try_from(body.len()).unwrap()];
    der.extend(body);
    der
}

/// Whether OpenSSL takes it for the key's signature of the digest.
fn openssl_verifies(key: &KeyInfo, digest: &[u8], signature: &[u8], options: &[&str]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let public = write("key", &key.public_key.as_ref().expect("a public key").0);
    let digest = write("digest", digest);
    let signature = write("signature", signature);
    let mut command = Command::new("openssl");
    command.args(["pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey"]);
    command.arg(public).arg("-sigfile").arg(signature);
    command.arg("-in").arg(digest);
    for option in options {
        command.args(["-pkeyopt", option]);
    }
    command.output().expect("OpenSSL").status.success()
}

#[test]
fn a_page_makes_finds_and_uses_keys_in_a_token() {
    let mut rig = Rig::new(&[PIN]);
    // Nothing is there before the user has said so, and no process is started.
    assert_eq!(rig.by_name("signer"), None);
    assert!(keys(&mut rig.page, KeyQuery::default()).is_empty());
    assert!(rig.browser.processes("module-worker").is_empty());
    let token = rig.token();
    assert_eq!(token.label, LABEL);
    assert!(token.present && token.provisionable);

    let made = rig.generate(p256("signer")).unwrap();
    assert!(made.is_own);
    assert_eq!(made.provenance, Provenance::Generated);
    assert_eq!(made.origins, [Origin::new(ORIGIN).unwrap()]);
    let rsa = KeyAlgorithm::Rsa { bits: 2048 };
    let rsa = rig
        .generate(new_key("rsa", rsa, Usages::SIGN.and(Usages::DECRYPT)))
        .unwrap();
    // The PIN was asked for once, and the token chosen three times.
    let pins = rig.user.asked();
    let pins = pins
        .iter()
        .filter(|it| matches!(it, Question::EnterPin { .. }));
    assert_eq!(pins.count(), 1);

    let found = rig.by_name("signer").expect("the key");
    assert_eq!(found.id, made.id);
    assert_eq!(found.public_key, made.public_key);
    assert_eq!(rig.by_name("Signer"), None);
    assert_eq!(keys(&mut rig.page, KeyQuery::default()).len(), 2);
    let query = KeyQuery {
        usages: Usages::DECRYPT,
        ..KeyQuery::default()
    };
    let found = keys(&mut rig.page, query);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].id, rsa.id);

    let data = digest(b"data").0;
    let signature = rig.bytes(made.id, ecdsa(b"data"));
    assert_eq!(signature.len(), 64);
    let der = in_der(&signature);
    assert!(openssl_verifies(&made, &data, &der, &[]));
    assert!(!openssl_verifies(&made, &digest(b"other").0, &der, &[]));

    let sign = |scheme| KeyOperation::Sign {
        scheme,
        data: digest(b"data"),
    };
    let signature = rig.bytes(rsa.id, sign(SignatureScheme::RsaPkcs1(Hash::Sha256)));
    assert!(openssl_verifies(
        &rsa,
        &data,
        &signature,
        &["digest:sha256"]
    ));
    let signature = rig.bytes(
        rsa.id,
        sign(SignatureScheme::RsaPss {
            hash: Hash::Sha256,
            salt_length: 32,
        }),
    );
    let pss = [
        "rsa_padding_mode:pss",
        "digest:sha256",
        "rsa_pss_saltlen:32",
    ];
    assert!(openssl_verifies(&rsa, &data, &signature, &pss));

    // What a key is not for, or cannot be for.
    let error = |result: Result<KeysReply, TokenError>| result.unwrap_err().kind;
    assert_eq!(
        error(rig.operate(made.id, sign(SignatureScheme::RsaPkcs1(Hash::Sha256)))),
        ErrorKind::InvalidAccess
    );
    let derive = KeyOperation::Derive {
        public: Bytes([&[4][..], &[1; 64]].concat()),
        into: None,
    };
    assert_eq!(
        error(rig.operate(made.id, derive)),
        ErrorKind::InvalidAccess
    );
    let short = KeyOperation::Sign {
        scheme: SignatureScheme::RsaPkcs1(Hash::Sha256),
        data: Bytes(vec![0; 31]),
    };
    assert_eq!(error(rig.operate(rsa.id, short)), ErrorKind::Operation);
    // A name is given once.
    assert_eq!(
        rig.generate(p256("signer")).unwrap_err().kind,
        ErrorKind::NameTaken
    );
    assert_eq!(
        ask(&mut rig.page, KeysRequest::Delete(made.id)),
        Ok(KeysReply::Done)
    );
    assert_eq!(rig.by_name("signer"), None);
    assert_eq!(error(rig.operate(made.id, ecdsa(b"data"))), ErrorKind::Gone);
    rig.generate(p256("signer")).unwrap();
}

#[test]
fn a_key_is_its_origins_alone() {
    let mut rig = Rig::new(&[PIN]);
    let own = rig.generate(p256("own")).unwrap();
    let mut shared = p256("shared");
    shared.origins = vec![Origin::new(SHOP).unwrap()];
    let shared = rig.generate(shared).unwrap();
    assert!(
        rig.user.asked().iter().any(
            |it| matches!(it, Question::ShareKey { origins, .. } if origins[0].as_str() == SHOP)
        )
    );
    assert_eq!(shared.origins.len(), 2);

    let mut shop = rig.browser.try_open_page(SHOP).expect("a port");
    assert_eq!(by_name(&mut shop, "shared"), None, "no grant");
    rig.browser.client.user_input(1);
    let token = ask(&mut shop, KeysRequest::RequestToken(TokenQuery::default()));
    let Ok(KeysReply::Token(token)) = token else {
        panic!("{token:?}");
    };
    assert_ne!(token.id, rig.token().id, "a name that two origins share");
    assert_eq!(by_name(&mut shop, "own"), None);
    assert_eq!(keys(&mut shop, KeyQuery::default()).len(), 1);
    let theirs = by_name(&mut shop, "shared").expect("the shared key");
    assert_ne!(theirs.id, shared.id);
    assert!(!theirs.is_own);
    assert_eq!(theirs.origins, [Origin::new(SHOP).unwrap()]);
    assert_eq!(theirs.public_key, shared.public_key);
    // It uses its own, neither deletes it nor uses another's by its name.
    let sign = |key| KeysRequest::Use {
        key,
        operation: ecdsa(b"data"),
    };
    let signature = match ask(&mut shop, sign(theirs.id)) {
        Ok(KeysReply::Bytes(signature)) => signature.0,
        other => panic!("{other:?}"),
    };
    let data = digest(b"data").0;
    assert!(openssl_verifies(&theirs, &data, &in_der(&signature), &[]));
    let kind = |result: Result<KeysReply, TokenError>| result.unwrap_err();
    let deleted = kind(ask(&mut shop, KeysRequest::Delete(theirs.id)));
    assert_eq!(deleted.kind, ErrorKind::NotAllowed);
    let of_another = kind(ask(&mut shop, sign(own.id)));
    let of_nobody = kind(ask(&mut shop, sign(KeyId([0; 16]))));
    assert_eq!(of_another, of_nobody);
    // The user does not see the first origin's own key in the chooser either.
    let query = KeyQuery {
        name: Some("own".to_owned()),
        ..KeyQuery::default()
    };
    rig.browser.client.user_input(1);
    let chosen = ask(&mut shop, KeysRequest::RequestKey(Box::new(query.clone())));
    let missing = KeyQuery {
        name: Some("missing".to_owned()),
        ..query
    };
    rig.browser.client.user_input(1);
    let none = ask(&mut shop, KeysRequest::RequestKey(Box::new(missing)));
    assert_eq!(chosen, none);
    assert_eq!(kind(none).kind, ErrorKind::NotFound);
    // The token is given back.
    assert_eq!(
        ask(&mut shop, KeysRequest::ForgetToken(token.id)),
        Ok(KeysReply::Done)
    );
    assert_eq!(by_name(&mut shop, "shared"), None);
    assert_eq!(
        kind(ask(&mut shop, sign(theirs.id))).kind,
        ErrorKind::NotAllowed
    );
}

#[test]
fn the_user_chooses_a_key_that_another_program_made() {
    let mut rig = Rig::new(&[PIN]);
    let token = ["--token-label", LABEL, "--keypairgen", "--key-type"];
    let key = ["EC:prime256v1", "--label", "old", "--id", "0102"];
    rig.hsm
        .pkcs11_tool(&[&token[..], &key[..]].concat())
        .expect("a key");
    rig.token();
    // Nothing says whom it is for.
    assert_eq!(rig.by_name("old"), None);
    let query = KeyQuery {
        name: Some("old".to_owned()),
        ..KeyQuery::default()
    };
    let request = KeysRequest::RequestKey(Box::new(query));
    // What the user did before counts no longer.
    rig.browser.client.document_left(1);
    assert_eq!(
        ask(&mut rig.page, request.clone()).unwrap_err().kind,
        ErrorKind::NotAllowed,
        "the user has not done anything"
    );
    let Ok(KeysReply::Key(key)) = rig.ask(request) else {
        panic!("no key");
    };
    assert_eq!(key.identifier, Some(Bytes(vec![1, 2])));
    assert!(!key.is_own);
    let signature = rig.bytes(key.id, ecdsa(b"data"));
    let data = digest(b"data").0;
    assert!(openssl_verifies(&key, &data, &in_der(&signature), &[]));
    assert_eq!(rig.by_name("old").expect("the key").id, key.id);
    // Another program deletes it.
    for kind in ["privkey", "pubkey"] {
        let delete = ["--delete-object", "--label", "old", "--type", kind];
        rig.hsm.pkcs11_tool(&delete).expect("it is deleted");
    }
    let error = rig.operate(key.id, ecdsa(b"data")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Gone);
    assert_eq!(rig.by_name("old"), None);
}

#[test]
fn a_wrong_pin_is_between_the_user_and_the_token() {
    let mut rig = Rig::new(&["111111", PIN]);
    rig.generate(p256("key")).expect("a key");
    let pins: Vec<bool> = rig
        .user
        .asked()
        .into_iter()
        .filter_map(|it| match it {
            Question::EnterPin { was_wrong, .. } => Some(was_wrong),
            _ => None,
        })
        .collect();
    assert_eq!(pins, [false, true]);

    // Who gives up, or enters the same again, is refused.
    for pins in [&[][..], &["111111"], &["111111"; 9]] {
        let mut rig = Rig::new(pins);
        let error = rig.generate(p256("key")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotAllowed);
        assert!(!error.message.contains("PIN"), "{error}");
        rig.user.pins.lock().unwrap().clear();
        rig.user.add_pin(PIN);
        rig.generate(p256("key"))
            .expect("a token that is not locked");
    }
}

#[test]
fn a_module_that_is_killed_costs_what_was_under_way() {
    let mut rig = Rig::new(&[PIN, PIN]);
    let key = rig.generate(p256("key")).unwrap();
    let rsa = KeyAlgorithm::Rsa { bits: 4096 };
    let token = rig.token().id;
    rig.browser.client.user_input(1);
    let request = rig.page.send(RequestBody::Keys(KeysRequest::Generate {
        token,
        key: new_key("long", rsa, Usages::SIGN),
    }));
    std::thread::sleep(Duration::from_millis(50));
    kill(rig.browser.process("module-worker"));
    let reply = rig.page.wait(request, PROMPTLY).expect("an answer");
    assert_eq!(reply.unwrap_err().kind, ErrorKind::Operation);
    // The next one is another process's, with a login of its own.
    let signature = rig.bytes(key.id, ecdsa(b"data"));
    let data = digest(b"data").0;
    assert!(openssl_verifies(&key, &data, &in_der(&signature), &[]));
}

#[test]
fn what_is_allowed_and_made_outlives_the_broker() {
    let hsm = SoftHsm::with_token(LABEL).expect("SoftHSM2");
    let folder = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let user = User::with_pins(&[PIN]);
        let browser = Browser::configured(config(&hsm, Some(folder.path())), user.clone());
        let page = browser.open_page();
        let mut rig = Rig {
            hsm: SoftHsm::with_token("another").expect("SoftHSM2"),
            user,
            browser,
            page,
        };
        if ids.is_empty() {
            rig.generate(p256("key")).expect("a key");
        }
        let found = rig.by_name("key").expect("the key");
        let signature = rig.bytes(found.id, ecdsa(b"data"));
        let data = digest(b"data").0;
        assert!(openssl_verifies(&found, &data, &in_der(&signature), &[]));
        ids.push((found.id, found.token.id));
        // The broker dies, and what the page has named is found again by the next one.
        kill(rig.browser.process("broker"));
        rig.page = wait_for("another broker", || rig.browser.try_open_page(ORIGIN).ok());
        rig.user.add_pin(PIN);
        rig.bytes(found.id, ecdsa(b"data"));
    }
    assert_eq!(ids[0], ids[1]);
}

/// A TPM in software. It ends when it is dropped.
struct SoftwareTpm {
    process: Child,
    _state: TempDir,
    tcti: String,
}

impl SoftwareTpm {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        // Two ports, one after the other.
        let port = loop {
            let first = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = first.local_addr().unwrap().port();
            if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
                break port;
            }
        };
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", state.path().display()))
            .args(["--server", &format!("type=tcp,port={port}")])
            .args(["--ctrl", &format!("type=tcp,port={}", port + 1)])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdout(Stdio::null())
            .spawn()
            .expect("swtpm");
        wait_for("swtpm", || {
            // It serves one connection, so none is made to find out.
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let listens = |port: u16| sockets.contains(&format!(":{port:04X} 00000000:0000 0A"));
            (listens(port) && listens(port + 1)).then_some(())
        });
        Self {
            process,
            _state: state,
            tcti: format!("swtpm:host=127.0.0.1,port={port}"),
        }
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_tpm_s_keys_outlive_the_broker_in_its_store() {
    let tpm = SoftwareTpm::start();
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let config = ClientConfig {
            tpm: Some(tpm.tcti.clone()),
            store: Some(folder.path().to_path_buf()),
            ..nothing()
        };
        let user = User::with_pins(&[]);
        let browser = Browser::configured(config, user.clone());
        let page = browser.open_page();
        (browser, page)
    };
    let (browser, mut page) = open();
    browser.client.user_input(1);
    let token = ask(&mut page, KeysRequest::RequestToken(TokenQuery::default()));
    let Ok(KeysReply::Token(token)) = token else {
        panic!("{token:?}");
    };
    assert_eq!(
        token.protection,
        Protection::Software,
        "swtpm is no hardware"
    );
    let generate = |page: &mut Page, key| {
        let token = token.id;
        ask(page, KeysRequest::Generate { token, key })
    };
    let Ok(KeysReply::Key(made)) = generate(&mut page, p256("key")) else {
        panic!("no key");
    };
    assert_eq!(made.user_verification, UserVerification::None);
    let rsa = new_key("rsa", KeyAlgorithm::Rsa { bits: 2048 }, Usages::SIGN);
    let Ok(KeysReply::Key(rsa)) = generate(&mut page, rsa) else {
        panic!("no key");
    };
    let each_use = NewKey {
        user_verification: UserVerification::EachUse,
        ..p256("other")
    };
    let error = generate(&mut page, each_use).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotSupported);
    let attest = KeysRequest::Attest {
        key: made.id,
        challenge: [7; 32],
    };
    match ask(&mut page, attest) {
        Ok(KeysReply::Attestation {
            format, statement, ..
        }) => {
            assert_eq!(format, "tpm");
            assert!(statement.0.windows(32).any(|part| part == [7; 32]));
        }
        other => panic!("{other:?}"),
    }
    drop((browser, page));

    let (_browser, mut page) = open();
    let data = digest(b"data").0;
    let use_key = |page: &mut Page, key: &KeyInfo, operation| {
        let key = key.id;
        match ask(page, KeysRequest::Use { key, operation }) {
            Ok(KeysReply::Bytes(bytes)) => bytes.0,
            other => panic!("{other:?}"),
        }
    };
    let found = by_name(&mut page, "key").expect("the key");
    assert_eq!(found.id, made.id);
    let signature = use_key(&mut page, &found, ecdsa(b"data"));
    assert!(openssl_verifies(&found, &data, &in_der(&signature), &[]));
    let sign = KeyOperation::Sign {
        scheme: SignatureScheme::RsaPkcs1(Hash::Sha256),
        data: digest(b"data"),
    };
    let signature = use_key(&mut page, &rsa, sign);
    assert!(openssl_verifies(
        &rsa,
        &data,
        &signature,
        &["digest:sha256"]
    ));
    assert_eq!(
        ask(&mut page, KeysRequest::Delete(found.id)),
        Ok(KeysReply::Done)
    );
    assert_eq!(by_name(&mut page, "key"), None);
}

#[test]
fn many_requests_are_under_way_at_once() {
    let mut rig = Rig::new(&[PIN]);
    let key = rig.generate(p256("key")).unwrap();
    let data = digest(b"data").0;
    for _ in 0..4 {
        let requests: Vec<_> = (0..250)
            .map(|_| {
                rig.page.send(RequestBody::Keys(KeysRequest::Use {
                    key: key.id,
                    operation: ecdsa(b"data"),
                }))
            })
            .collect();
        let mut last = Vec::new();
        for request in requests {
            match rig.page.wait(request, PATIENCE).expect("an open port") {
                Ok(ReplyBody::Keys(KeysReply::Bytes(signature))) => last = signature.0,
                other => panic!("{other:?}"),
            }
        }
        assert!(openssl_verifies(&key, &data, &in_der(&last), &[]));
    }
}

#[test]
fn secrets_are_wrapped_unwrapped_and_used_in_the_token() {
    let mut rig = Rig::new(&[PIN]);
    let aes = KeyAlgorithm::Aes { bits: 256 };
    let usages = Usages::ENCRYPT.and(Usages::DECRYPT);
    let mut data_key = new_key("data", aes, usages);
    data_key.is_wrappable = true;
    let data_key = rig.generate(data_key).unwrap();
    assert!(data_key.is_wrappable);
    let wrapper = rig
        .generate(new_key("wrapper", aes, Usages::WRAP.and(Usages::UNWRAP)))
        .unwrap();
    let cipher = Cipher::AesCbc { iv: [7; 16] };
    let encrypt = KeyOperation::Encrypt {
        cipher: cipher.clone(),
        data: Bytes(b"a text".to_vec()),
    };
    let encrypted = rig.bytes(data_key.id, encrypt);
    let wrapped = rig.bytes(
        wrapper.id,
        KeyOperation::Wrap {
            scheme: WrapScheme::AesKw,
            key: data_key.id,
        },
    );
    assert_eq!(wrapped.len(), 40);
    // What was not made to be wrapped is not.
    let error = rig
        .operate(
            wrapper.id,
            KeyOperation::Wrap {
                scheme: WrapScheme::AesKw,
                key: wrapper.id,
            },
        )
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidAccess);
    assert_eq!(
        rig.ask(KeysRequest::Delete(data_key.id)),
        Ok(KeysReply::Done)
    );
    let unwrap = |data: Vec<u8>| KeyOperation::Unwrap {
        scheme: WrapScheme::AesKw,
        data: Bytes(data),
        key: new_key("data", aes, usages),
    };
    let mut wrong = wrapped.clone();
    wrong[3] ^= 1;
    let error = rig.operate(wrapper.id, unwrap(wrong)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Operation);
    let back = match rig.operate(wrapper.id, unwrap(wrapped)) {
        Ok(KeysReply::Key(key)) => *key,
        other => panic!("{other:?}"),
    };
    assert!(back.is_own);
    // A key that came from outside, or that decrypts what it has wrapped, wraps nothing.
    let mut wrappable = new_key("wrappable", aes, Usages::ENCRYPT);
    wrappable.is_wrappable = true;
    let wrappable = rig.generate(wrappable).unwrap();
    let both = new_key("both", aes, Usages::DECRYPT.and(Usages::WRAP));
    let both = rig.generate(both).unwrap();
    let mut travels = new_key("travels", aes, Usages::WRAP);
    travels.is_wrappable = true;
    let travels = rig.generate(travels).unwrap();
    let wrap = |key| KeyOperation::Wrap {
        scheme: WrapScheme::AesKw,
        key,
    };
    let wrapped = rig.bytes(wrapper.id, wrap(travels.id));
    let unwrap = KeyOperation::Unwrap {
        scheme: WrapScheme::AesKw,
        data: Bytes(wrapped),
        key: new_key("outside", aes, Usages::WRAP),
    };
    let outside = match rig.operate(wrapper.id, unwrap) {
        Ok(KeysReply::Key(key)) => *key,
        other => panic!("{other:?}"),
    };
    for key in [both.id, outside.id] {
        let error = rig.operate(key, wrap(wrappable.id)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidAccess);
    }
    let decrypt = KeyOperation::Decrypt {
        cipher,
        data: Bytes(encrypted),
    };
    assert_eq!(rig.bytes(back.id, decrypt), b"a text");
}

/// Which of some strings of equal length are in the memory of a process.
fn found_in_memory<'a>(pid: rustix::process::Pid, wanted: &[&'a str]) -> Vec<&'a str> {
    use std::io::{Read, Seek, SeekFrom};
    let folder = format!("/proc/{}", pid.as_raw_nonzero());
    let maps = std::fs::read_to_string(format!("{folder}/maps")).expect("a list of mappings");
    let mut memory = std::fs::File::open(format!("{folder}/mem")).expect("its memory");
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut columns = line.split_whitespace();
        let (Some(range), Some(mode)) = (columns.next(), columns.next()) else {
            continue;
        };
        let bounds = range.split_once('-').map(|(from, to)| {
            let number = |text| u64::from_str_radix(text, 16).expect("an address");
            (number(from), number(to))
        });
        let Some((from, to)) = bounds.filter(|_| mode.starts_with("rw")) else {
            continue;
        };
        let mut bytes = vec![0; usize::try_from(to - from).expect("a length")];
        memory.seek(SeekFrom::Start(from)).expect("an offset");
        // Stacks that have not grown so far cannot be read.
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        for (at, byte) in bytes.iter().enumerate() {
            if *byte != 0 {
                let here = |text: &&&str| bytes[at..].starts_with(text.as_bytes());
                found.extend(wanted.iter().find(here).copied());
            }
        }
    }
    found
}

#[test]
fn no_pin_is_left_in_memory_once_it_was_used() {
    const LONG_PIN: &str = "73519402688461";
    const WRONG_PIN: &str = "920846135770";
    // Whoever frees memory may write over its beginning.
    let parts = [LONG_PIN, WRONG_PIN].map(|pin| [&pin[..7], &pin[3..10], &pin[5..12]]);
    let wanted = [&[&LABEL[..7]][..], &parts.concat()].concat();
    let check = |rig: &Rig| {
        for kind in ["broker", "module-worker"] {
            let mut found = found_in_memory(rig.browser.process(kind), &wanted);
            found.dedup();
            // What is there is found.
            assert_eq!(found, [&LABEL[..7]], "{kind}");
        }
    };
    let mut rig = Rig::new(&[WRONG_PIN]);
    let change = ["--change-pin", "--new-pin", LONG_PIN];
    rig.hsm.pkcs11_tool(&change).expect("another PIN");
    // At once, before anything else gets the same memory.
    rig.generate(p256("key")).unwrap_err();
    check(&rig);
    rig.user.add_pin(LONG_PIN);
    rig.generate(p256("key")).expect("a key");
    check(&rig);
}
