/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys in PIV cards, with the real processes: the embedded card, and cards behind a real `pcscd`, one of which nobody here
//! wrote. OpenSSL checks what comes out.

mod common;

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use nitrokey_card::PivCard;
use sha2::Digest;
use tempfile::TempDir;
use token_client::ClientConfig;
use token_traits::control::AccessConfig;
use token_traits::keys::{
    Bytes, Cipher, Curve, Hash, KeyAlgorithm, KeyInfo, KeyOperation, KeyQuery, KeysReply,
    KeysRequest, NewKey, Protection, Provenance, SignatureScheme, TokenInfo, TokenQuery, Usages,
    UserVerification,
};
use token_traits::port::{ChannelType, ReplyBody, RequestBody};
use token_traits::prompt::{
    AnswerCallback, Pin, PromptAnswer, PromptHost, PromptId, PromptRequest, Question,
};
use token_traits::{ErrorKind, TokenBroker as _, TokenError};
use virtual_card::VirtualCard;
use virtual_card::applets::piv;
use virtual_card::test_support::Pcscd;
use zeroize::Zeroizing;

const SHOP: &str = "https://shop.example";
const PIN: &str = "123456";
/// What generating the largest keys takes on a machine that is busy with other things.
const GENERATION: Duration = Duration::from_secs(100);

/// Chooses what comes first, enters PINs from a list, and remembers what was asked.
#[derive(Default)]
struct User {
    pins: Mutex<VecDeque<String>>,
    asked: Mutex<Vec<Question>>,
}

impl User {
    fn asked(&self) -> Vec<Question> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// For each PIN that was asked for since the last time, the tries that were said to be left.
    fn pins_asked(&self) -> Vec<Option<u32>> {
        let asked = self
            .asked()
            .into_iter()
            .filter_map(|question| match question {
                Question::EnterPin { tries_left, .. } => Some(tries_left.map(u32::from)),
                _ => None,
            });
        asked.collect()
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
                remember: true,
            },
            _ => PromptAnswer::Allowed { remember: false },
        };
        self.asked.lock().unwrap().push(request.question);
        answer(said);
    }

    fn withdraw(&self, _id: PromptId) {}
}

struct Rig {
    user: Arc<User>,
    browser: Browser,
    page: Page,
}

/// With access rules, as the shell has it.
fn config() -> ClientConfig {
    ClientConfig {
        access: Some(AccessConfig {
            device_rules: String::new(),
            when_no_rules: None,
        }),
        ..nothing()
    }
}

fn pcsc_config() -> ClientConfig {
    ClientConfig {
        pcsc: true,
        piv_management_key: Some(Bytes(piv::MANAGEMENT_KEY.to_vec())),
        ..config()
    }
}

impl Rig {
    fn new(config: ClientConfig, pins: &[&str]) -> Self {
        let user = Arc::new(User::default());
        let browser = Browser::configured(config, user.clone());
        let page = browser.open_page();
        let rig = Self {
            user,
            browser,
            page,
        };
        rig.add_pins(pins);
        rig
    }

    fn embedded(pins: &[&str]) -> Self {
        let config = ClientConfig {
            virtual_card: Some("default".into()),
            ..config()
        };
        Self::new(config, pins)
    }

    fn add_pins(&self, pins: &[&str]) {
        let pins = pins.iter().map(|pin| (*pin).to_owned());
        self.user.pins.lock().unwrap().extend(pins);
    }

    fn ask(&mut self, request: KeysRequest) -> Result<KeysReply, TokenError> {
        self.browser.client.user_input(1);
        ask(&mut self.page, request)
    }

    fn token(&mut self) -> TokenInfo {
        token(&self.browser, &mut self.page)
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

    fn operate(&mut self, key: &KeyInfo, operation: KeyOperation) -> Result<Vec<u8>, TokenError> {
        let key = key.id;
        match self.ask(KeysRequest::Use { key, operation })? {
            KeysReply::Bytes(bytes) => Ok(bytes.0),
            other => panic!("{other:?}"),
        }
    }

    /// Has OpenSSL check a signature of a key on a curve.
    fn sign(&mut self, key: &KeyInfo) -> Result<(), TokenError> {
        let signature = self.operate(key, ecdsa())?;
        check_ecdsa(key, &signature);
        Ok(())
    }
}

fn token(browser: &Browser, page: &mut Page) -> TokenInfo {
    browser.client.user_input(1);
    match ask(page, KeysRequest::RequestToken(TokenQuery::default())) {
        Ok(KeysReply::Token(token)) => token,
        other => panic!("{other:?}"),
    }
}

fn ask(page: &mut Page, request: KeysRequest) -> Result<KeysReply, TokenError> {
    let id = page.send(RequestBody::Keys(request));
    match page.wait(id, GENERATION).expect("an open port")? {
        ReplyBody::Keys(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn by_name(page: &mut Page, name: &str) -> Option<KeyInfo> {
    match ask(page, KeysRequest::GetKeyByName(name.to_owned())) {
        Ok(KeysReply::Keys(keys)) => keys.into_iter().next(),
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

const P256: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P256);
const P384: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P384);
const RSA: KeyAlgorithm = KeyAlgorithm::Rsa { bits: 2048 };

fn p256(name: &str) -> NewKey {
    new_key(name, P256, Usages::SIGN)
}

fn digest() -> Vec<u8> {
    sha2::Sha256::digest(b"data").to_vec()
}

fn ecdsa() -> KeyOperation {
    KeyOperation::Sign {
        scheme: SignatureScheme::Ecdsa,
        data: Bytes(digest()),
    }
}

fn openssl(folder: &Path, arguments: &str) -> bool {
    let mut command = Command::new("openssl");
    command
        .args(arguments.split_whitespace())
        .current_dir(folder);
    command.output().expect("OpenSSL").status.success()
}

/// Whether OpenSSL takes it for the key's signature of the digest, and of no other.
fn check(key: &KeyInfo, signature: &[u8], options: &str) {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("key", &key.public_key.as_ref().unwrap().0);
    write("signature", signature);
    write("digest", &digest());
    let verify = format!(
        "pkeyutl -verify -pubin -keyform DER -inkey key -sigfile signature -in digest {options}"
    );
    assert!(openssl(folder.path(), &verify));
    write("digest", &[7; 32]);
    assert!(!openssl(folder.path(), &verify));
}

fn check_ecdsa(key: &KeyInfo, signature: &[u8]) {
    let mut numbers = Vec::new();
    for half in signature.chunks(signature.len() / 2) {
        secure_element::piv::key::write_unsigned(&mut numbers, half);
    }
    let mut der = vec![0x30, u8::try_from(numbers.len()).unwrap()];
    der.extend(numbers);
    check(key, &der, "");
}

/// A certificate for a key, in DER.
fn certify(key: &KeyInfo) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let spki = &key.public_key.as_ref().unwrap().0;
    std::fs::write(folder.path().join("key.der"), spki).unwrap();
    for arguments in [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca",
        "pkey -pubin -inform DER -in key.der -out key.pem",
        "x509 -new -force_pubkey key.pem -subj /CN=holder -days 9 -CA ca.pem -CAkey ca.key -outform DER -out out",
    ] {
        assert!(openssl(folder.path(), arguments), "{arguments}");
    }
    std::fs::read(folder.path().join("out")).unwrap()
}

#[test]
fn the_embedded_card_makes_keeps_and_uses_keys() {
    let mut rig = Rig::embedded(&[PIN]);
    // Nothing is there before the user has said so, and no process is started.
    assert_eq!(rig.by_name("signer"), None);
    assert!(rig.browser.processes("virtual-card-worker").is_empty());
    let token = rig.token();
    assert_eq!(token.label, "Servo virtual PIV");
    assert_eq!(token.protection, Protection::Software);
    assert!(token.present && token.provisionable);

    let signer = rig.generate(p256("signer")).unwrap();
    assert_eq!(signer.provenance, Provenance::Generated);
    assert!(signer.is_own);
    let rsa = rig.generate(new_key("rsa", RSA, Usages::SIGN)).unwrap();
    let both = Usages::DECRYPT;
    let decrypter = rig.generate(new_key("decrypter", RSA, both)).unwrap();
    let agreer = rig
        .generate(new_key("agreer", P384, Usages::DERIVE))
        .unwrap();
    assert_eq!(
        rig.generate(p256("signer")).unwrap_err().kind,
        ErrorKind::NameTaken
    );
    let p521 = KeyAlgorithm::Ec(Curve::P521);
    let unsupported = rig.generate(new_key("no", p521, Usages::SIGN)).unwrap_err();
    assert_eq!(unsupported.kind, ErrorKind::NotSupported);

    // They are found as they are in the card.
    let found = rig.by_name("signer").expect("the key");
    assert_eq!(
        (found.id, &found.public_key),
        (signer.id, &signer.public_key)
    );
    let query = KeyQuery {
        usages: Usages::DERIVE,
        ..KeyQuery::default()
    };
    match rig.ask(KeysRequest::GetKeys(Box::new(query))) {
        Ok(KeysReply::Keys(keys)) => {
            assert_eq!(keys.len(), 1, "{keys:?}");
            assert_eq!(keys[0].id, agreer.id);
        }
        other => panic!("{other:?}"),
    }

    // Making keys takes no PIN, using them takes it once.
    assert_eq!(rig.user.pins_asked(), []);
    rig.sign(&signer).unwrap();
    rig.sign(&signer).unwrap();
    for (scheme, options) in [
        (
            SignatureScheme::RsaPkcs1(Hash::Sha256),
            "-pkeyopt digest:sha256",
        ),
        (
            SignatureScheme::RsaPss {
                hash: Hash::Sha256,
                salt_length: 32,
            },
            "-pkeyopt rsa_padding_mode:pss -pkeyopt digest:sha256 -pkeyopt rsa_pss_saltlen:32",
        ),
    ] {
        let data = Bytes(digest());
        let signature = rig.operate(&rsa, KeyOperation::Sign { scheme, data });
        check(&rsa, &signature.unwrap(), options);
    }
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("key", &decrypter.public_key.as_ref().unwrap().0);
    write("text", b"a secret");
    assert!(openssl(
        folder.path(),
        "pkeyutl -encrypt -pubin -keyform DER -inkey key -in text -out encrypted \
         -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256"
    ));
    let encrypted = std::fs::read(folder.path().join("encrypted")).unwrap();
    let decrypt = |data: Vec<u8>| KeyOperation::Decrypt {
        cipher: Cipher::RsaOaep {
            hash: Hash::Sha256,
            label: Bytes::default(),
        },
        data: Bytes(data),
    };
    let text = rig.operate(&decrypter, decrypt(encrypted.clone()));
    assert_eq!(text.as_deref(), Ok(&b"a secret"[..]));
    let mut damaged = encrypted;
    damaged[100] ^= 1;
    let error = rig.operate(&decrypter, decrypt(damaged)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Operation);

    write("card", &agreer.public_key.as_ref().unwrap().0);
    for arguments in [
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out peer.pem",
        "pkey -in peer.pem -pubout -outform DER -out peer.der",
        "pkey -pubin -inform DER -in card -out card.pem",
        "pkeyutl -derive -inkey peer.pem -peerkey card.pem -out secret",
    ] {
        assert!(openssl(folder.path(), arguments), "{arguments}");
    }
    let peer = std::fs::read(folder.path().join("peer.der")).unwrap();
    let point = peer[peer.len() - 97..].to_vec();
    let derive = KeyOperation::Derive {
        public: Bytes(point),
        into: None,
    };
    let secret = rig.operate(&agreer, derive).unwrap();
    assert_eq!(secret, std::fs::read(folder.path().join("secret")).unwrap());
    assert_eq!(rig.user.pins_asked(), [None]);

    // A certificate changes nothing about the key's name and who may use it.
    let certificate = Bytes(certify(&signer));
    let foreign = Bytes(certify(&agreer));
    let key = signer.id;
    let install = |certificate: &Bytes| KeysRequest::InstallCertificate {
        key,
        certificate: certificate.clone(),
    };
    assert!(rig.ask(install(&foreign)).is_err());
    assert_eq!(rig.ask(install(&certificate)), Ok(KeysReply::Done));
    let chain = rig.ask(KeysRequest::GetCertificates(key));
    assert_eq!(chain, Ok(KeysReply::Certificates(vec![certificate])));
    let found = rig.by_name("signer").expect("the key");
    assert_eq!(found.id, signer.id);
    rig.sign(&found).unwrap();
    assert_eq!(
        rig.ask(KeysRequest::RemoveCertificate(key)),
        Ok(KeysReply::Done)
    );
    let chain = rig.ask(KeysRequest::GetCertificates(key));
    assert_eq!(chain, Ok(KeysReply::Certificates(Vec::new())));

    assert_eq!(rig.ask(KeysRequest::Delete(key)), Ok(KeysReply::Done));
    assert_eq!(rig.by_name("signer"), None);
    assert_eq!(rig.sign(&signer).unwrap_err().kind, ErrorKind::Gone);
    // Its place is free again, and what is there now is another key.
    let next = rig.generate(p256("signer")).unwrap();
    assert_ne!(next.public_key, signer.public_key);
    rig.sign(&next).unwrap();
}

#[test]
fn a_key_that_asks_each_time_asks_each_time() {
    let mut rig = Rig::embedded(&[PIN, PIN, PIN]);
    let mut new = p256("each");
    new.user_verification = UserVerification::EachUse;
    let key = rig.generate(new).unwrap();
    assert_eq!(key.user_verification, UserVerification::EachUse);
    for _ in 0..2 {
        rig.sign(&key).unwrap();
        assert_eq!(rig.user.pins_asked(), [None]);
    }
    // What it was asked for does not serve the others.
    let other = rig.generate(p256("once")).unwrap();
    rig.sign(&other).unwrap();
    assert_eq!(rig.user.pins_asked(), [None]);
    let error = rig.sign(&key).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotAllowed);
    assert_eq!(rig.user.pins_asked(), [None]);
}

#[test]
fn wrong_pins_are_the_users_business_and_the_last_try_is_announced() {
    let mut rig = Rig::embedded(&[]);
    let key = rig.generate(p256("key")).unwrap();
    // What cannot be a PIN spends no try.
    rig.add_pins(&["1", "111111", "222222", PIN]);
    rig.sign(&key).unwrap();
    assert_eq!(rig.user.pins_asked(), [None, None, None, Some(1)]);
    // Another browser's worth of wrong ones.
    let mut rig = Rig::embedded(&["111111", "222222", "333333", PIN]);
    let key = rig.generate(p256("key")).unwrap();
    let error = rig.sign(&key).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotAllowed);
    assert_eq!(rig.user.pins_asked(), [None, None, Some(1)]);
    // Nothing is asked for any more: the PIN is blocked.
    assert_eq!(rig.sign(&key).unwrap_err(), error);
    assert_eq!(rig.user.pins_asked(), []);
}

#[test]
fn what_one_origin_has_unlocked_serves_no_other_and_no_channel() {
    let mut rig = Rig::embedded(&[PIN, PIN, PIN]);
    let mut shared = p256("shared");
    shared.origins = vec![token_traits::Origin::new(SHOP).unwrap()];
    let key = rig.generate(shared).unwrap();
    rig.sign(&key).unwrap();
    assert_eq!(rig.user.pins_asked(), [None]);

    let mut shop = rig.browser.try_open_page(SHOP).expect("a port");
    token(&rig.browser, &mut shop);
    let theirs = by_name(&mut shop, "shared").expect("the key");
    let sign = |key: &KeyInfo| KeysRequest::Use {
        key: key.id,
        operation: ecdsa(),
    };
    rig.browser.client.user_input(1);
    assert!(matches!(
        ask(&mut shop, sign(&theirs)),
        Ok(KeysReply::Bytes(_))
    ));
    assert_eq!(
        rig.user.pins_asked(),
        [None],
        "the other site's login served this one"
    );

    // A page with a channel on the card: the login ends before it gets it, and the application itself is not for pages.
    rig.browser.grant(ORIGIN);
    let reader = rig.page.readers()[0].id;
    let session = rig.page.open_session(reader);
    rig.page.open_channel(session);
    rig.browser.client.user_input(1);
    assert!(matches!(
        ask(&mut shop, sign(&theirs)),
        Ok(KeysReply::Bytes(_))
    ));
    assert_eq!(rig.user.pins_asked(), [None], "the login was still open");
    for aid in [&piv::AID[..], &piv::AID[..9], &piv::AID[..5]] {
        let refused = rig.page.ask(RequestBody::OpenChannel {
            session,
            channel_type: ChannelType::Supplementary,
            aid: Some(aid.to_vec()),
            p2: 0,
        });
        let kind = refused.unwrap_err().kind;
        assert!(
            matches!(kind, ErrorKind::Security | ErrorKind::NoApplication),
            "{kind:?}"
        );
    }
}

/// What a page sees of keys in a card behind pcscd.
fn wait_for_token(rig: &mut Rig) -> TokenInfo {
    let deadline = Instant::now() + PATIENCE;
    loop {
        rig.browser.client.user_input(1);
        match ask(
            &mut rig.page,
            KeysRequest::RequestToken(TokenQuery::default()),
        ) {
            Ok(KeysReply::Token(token)) if token.present => return token,
            other => assert!(Instant::now() < deadline, "no token: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn nitrokeys_card_keeps_keys_with_their_names_and_origins() {
    let pcscd = Pcscd::start().unwrap();
    let _card = pcscd.insert(0, PivCard::new().unwrap()).unwrap();
    let certificate;
    let public;
    {
        let mut rig = Rig::new(pcsc_config(), &[PIN, PIN]);
        wait_for_token(&mut rig);
        let key = rig.generate(p256("signer")).unwrap();
        rig.sign(&key).unwrap();
        rig.sign(&key).unwrap();
        assert_eq!(rig.user.pins_asked(), [None]);
        let mut each = p256("each");
        each.user_verification = UserVerification::EachUse;
        let each = rig.generate(each).unwrap();
        rig.sign(&each).unwrap();
        assert_eq!(rig.user.pins_asked(), [None]);
        certificate = Bytes(certify(&key));
        let install = KeysRequest::InstallCertificate {
            key: key.id,
            certificate: certificate.clone(),
        };
        assert_eq!(rig.ask(install), Ok(KeysReply::Done));
        public = key.public_key.clone();
        // This firmware is built without RSA.
        let error = rig.generate(new_key("rsa", RSA, Usages::SIGN)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotSupported);
    }
    // Another browser, with another store: everything was on the card.
    let mut rig = Rig::new(pcsc_config(), &["654321", PIN]);
    wait_for_token(&mut rig);
    let key = rig.by_name("signer").expect("the key");
    assert_eq!(key.public_key, public);
    let chain = rig.ask(KeysRequest::GetCertificates(key.id));
    assert_eq!(chain, Ok(KeysReply::Certificates(vec![certificate])));
    rig.sign(&key).unwrap();
    assert_eq!(rig.user.pins_asked().len(), 2);
    // Another origin finds nothing.
    let mut shop = rig.browser.try_open_page(SHOP).expect("a port");
    token(&rig.browser, &mut shop);
    assert_eq!(by_name(&mut shop, "signer"), None);

    // Without the management key, the card is as it is.
    let config = ClientConfig {
        piv_management_key: None,
        ..pcsc_config()
    };
    let mut rig = Rig::new(config, &[PIN]);
    assert!(!wait_for_token(&mut rig).provisionable);
    let key = rig.by_name("signer").expect("the key");
    rig.sign(&key).unwrap();
    let error = rig.generate(p256("another")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ReadOnly);
}

#[test]
fn a_card_that_is_pulled_fails_what_is_under_way_and_nothing_else() {
    let pcscd = Pcscd::start().unwrap();
    let inserted = pcscd
        .insert(0, VirtualCard::from_profile("piv").unwrap())
        .unwrap();
    let mut rig = Rig::new(pcsc_config(), &[PIN]);
    let token = wait_for_token(&mut rig);
    assert_eq!(token.protection, Protection::Software, "the reader is none");
    let key = rig.generate(p256("signer")).unwrap();
    rig.sign(&key).unwrap();
    // Keys of 3072 bits take the card long enough.
    let bits = KeyAlgorithm::Rsa { bits: 3072 };
    let mut requests = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let key = new_key(name, bits, Usages::SIGN);
        let token = token.id;
        let generate = KeysRequest::Generate { token, key };
        requests.push(rig.page.send(RequestBody::Keys(generate)));
    }
    std::thread::sleep(Duration::from_millis(100));
    drop(inserted);
    let mut failed = 0;
    for request in requests {
        let reply = rig.page.wait(request, PATIENCE).expect("an open port");
        if let Err(error) = reply {
            assert!(
                matches!(error.kind, ErrorKind::Operation | ErrorKind::Gone),
                "{error:?}"
            );
            failed += 1;
        }
    }
    assert!(failed > 0, "it was too quick");
    // Nobody may have noticed yet that the card has gone.
    let error = rig.sign(&key).unwrap_err();
    assert!(
        matches!(error.kind, ErrorKind::Gone | ErrorKind::Operation),
        "{error:?}"
    );
    wait_for("the token to go", || {
        match ask(&mut rig.page, KeysRequest::GetTokens(TokenQuery::default())) {
            Ok(KeysReply::Tokens(tokens)) => {
                tokens.iter().all(|token| !token.present).then_some(())
            }
            other => panic!("{other:?}"),
        }
    });
    // What comes back with the same name has lost its keys.
    let _other = pcscd
        .insert(0, VirtualCard::from_profile("piv").unwrap())
        .unwrap();
    wait_for_token(&mut rig);
    assert_eq!(rig.by_name("signer"), None);
    rig.add_pins(&[PIN]);
    let key = rig.generate(p256("signer")).unwrap();
    rig.sign(&key).unwrap();
}
