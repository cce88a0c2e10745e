/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! SoftHSM2.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use token_traits::control::{ModuleConfig, WorkerKind};
use token_workers::key_protocol::{
    Cipher, Curve, Hash, KeyAlgorithm, KeyError, KeyReply, KeyRequestBody, NewKey, Operation,
    Secret, SignatureScheme, TokenFeature, TokenId, Usages, WrapScheme,
};

use crate::openssl::{OpenSsl, ecdsa_der};
use crate::worker::{
    Failure, PATIENCE, Worker, decrypt, encrypt, new_key, public_key, sign, status_line, using,
};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
pub const PIN: &str = "246810";
const SO_PIN: &str = "13579246";

/// A folder with a token.
pub struct SoftHsm(TempDir);

impl SoftHsm {
    pub fn new() -> Self {
        let hsm = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir(hsm.tokens()).expect("a folder");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            hsm.tokens().display()
        );
        fs::write(hsm.configuration(), text).expect("a file");
        hsm.add_token("First");
        hsm
    }

    pub fn add_token(&self, label: &str) {
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--so-pin", SO_PIN, "--pin", PIN])
            .env("SOFTHSM2_CONF", self.configuration())
            .output()
            .expect("softhsm2-util");
        assert!(output.status.success(), "{output:?}");
    }

    fn tokens(&self) -> PathBuf {
        self.0.path().join("tokens")
    }

    fn configuration(&self) -> PathBuf {
        self.0.path().join("softhsm2.conf")
    }

    pub fn config(&self) -> ModuleConfig {
        let configuration = self.configuration().display().to_string();
        ModuleConfig {
            module: MODULE.into(),
            label: "SoftHSM".into(),
            read: vec![configuration.clone()],
            write: vec![self.tokens().display().to_string()],
            pcsc: false,
            environment: BTreeMap::from([("SOFTHSM2_CONF".into(), configuration)]),
        }
    }

    pub fn worker(&self) -> Worker {
        Worker::start(&WorkerKind::Module(self.config()))
    }

    /// A worker that is logged in.
    fn open(&self) -> (Worker, TokenId) {
        let mut worker = self.worker();
        let token = worker.token();
        assert_eq!(worker.login(token, PIN), Ok(KeyReply::Done));
        (worker, token)
    }
}

const RSA: KeyAlgorithm = KeyAlgorithm::Rsa { bits: 2048 };
const MESSAGE: &[u8] = b"The token signs, nobody else.";

#[test]
fn what_a_token_says_of_itself() {
    let hsm = SoftHsm::new();
    let mut worker = hsm.worker();
    let tokens = worker.tokens();
    let [token] = &tokens[..] else {
        panic!("{tokens:?}");
    };
    assert_eq!(token.label, "First");
    assert_eq!(token.manufacturer, "SoftHSM project");
    assert!(!token.serial.is_empty());
    assert!(!token.is_hardware && !token.is_read_only && token.login.is_required);
    assert!(!token.login.is_locked && !token.login.is_not_set);
    for feature in [
        TokenFeature::Generate(RSA),
        TokenFeature::Generate(KeyAlgorithm::Ec(Curve::P384)),
        TokenFeature::RsaPss,
        TokenFeature::Ecdh,
        TokenFeature::AesKw,
        TokenFeature::Hmac(Hash::Sha512),
        TokenFeature::Data,
    ] {
        assert!(token.features.contains(&feature), "{feature:?}");
    }
    assert!(!token.features.contains(&TokenFeature::Attest));
}

#[test]
fn the_process_is_locked_down() {
    let hsm = SoftHsm::new();
    let (worker, _) = hsm.open();
    assert_eq!(status_line(worker.pid(), "Seccomp:"), "2");
    assert_eq!(status_line(worker.pid(), "NoNewPrivs:"), "1");
}

#[test]
fn tokens_come_and_go() {
    let hsm = SoftHsm::new();
    let mut worker = hsm.worker();
    let first = worker.tokens();
    hsm.add_token("Second");
    let second = worker.tokens();
    // SoftHSM looks for new tokens when it starts; its slots stay as they are.
    assert_eq!(first, second);
    let mut next = hsm.worker();
    assert_eq!(next.tokens().len(), 2);
    let unknown = TokenId(77);
    let error = next.does(unknown, Operation::Logout);
    assert_eq!(error, Err(Failure::Error(KeyError::NoToken)));
}

#[test]
fn pins() {
    let hsm = SoftHsm::new();
    let mut worker = hsm.worker();
    let token = worker.token();
    let refused = |error| Err(Failure::Error(error));
    assert_eq!(worker.login(token, "1111"), refused(KeyError::PinIncorrect));
    assert!(worker.tokens()[0].login.tries_are_low);
    let key = new_key(RSA, Usages::SIGN, "key");
    let before = worker.does(token, Operation::Generate(key));
    assert_eq!(before, refused(KeyError::NotLoggedIn));
    let empty = worker.does(token, Operation::Login { pin: None });
    assert_eq!(empty, refused(KeyError::PinInvalid));
    assert_eq!(worker.login(token, PIN), Ok(KeyReply::Done));
    // Login is the process's: again is no error.
    assert_eq!(worker.login(token, PIN), Ok(KeyReply::Done));
    let key = worker.generate(
        token,
        new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "key"),
    );
    assert_eq!(worker.does(token, Operation::Logout), Ok(KeyReply::Done));
    let digest = [0; 32];
    let after = worker.does(token, sign(&key.key, SignatureScheme::Ecdsa, &digest));
    assert_eq!(after, refused(KeyError::NotLoggedIn));
    // Its public half still shows.
    let shown = worker.keys(token);
    assert_eq!(shown.len(), 1);
    assert!(shown[0].is_hidden && shown[0].usages.contains(Usages::SIGN));
    assert_eq!(
        (&shown[0].key, &shown[0].public_key),
        (&key.key, &key.public_key)
    );
    assert_eq!(worker.login(token, PIN), Ok(KeyReply::Done));
    assert!(!worker.keys(token)[0].is_hidden);
}

#[test]
fn rsa_signatures() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let key = worker.generate(token, new_key(RSA, Usages::SIGN, "signing key"));
    assert_eq!((key.algorithm, key.label.as_str()), (RSA, "signing key"));
    assert!(key.is_sensitive && key.is_local && key.was_never_extractable && key.is_persistent);
    assert!(!key.is_extractable);
    let openssl = OpenSsl::new();
    let public = public_key(&key);
    for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        let digest = openssl.digest(hash, MESSAGE);
        let scheme = SignatureScheme::RsaPkcs1(hash);
        let signature = worker.bytes(token, sign(&key.key, scheme, &digest));
        assert!(openssl.verifies(&public, hash, &[], MESSAGE, &signature));
        assert!(!openssl.verifies(&public, hash, &[], b"other", &signature));
        for salt_length in [0, 20, 32] {
            let scheme = SignatureScheme::RsaPss { hash, salt_length };
            let signature = worker.bytes(token, sign(&key.key, scheme, &digest));
            let salt = format!("rsa_pss_saltlen:{salt_length}");
            let options = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", &salt];
            assert!(openssl.verifies(&public, hash, &options, MESSAGE, &signature));
        }
    }
    // Another length is no digest of that hash.
    let scheme = SignatureScheme::RsaPkcs1(Hash::Sha256);
    let short = worker.does(token, sign(&key.key, scheme, &[0; 31]));
    assert_eq!(short, Err(Failure::Error(KeyError::BadRequest)));
    let wrong = worker.does(token, sign(&key.key, SignatureScheme::Ecdsa, &[0; 32]));
    assert_eq!(wrong, Err(Failure::Error(KeyError::UsageRefused)));
    // It was not made for that.
    let oaep = Cipher::RsaOaep {
        hash: Hash::Sha1,
        label: Default::default(),
    };
    let wrong = worker.does(token, decrypt(&key.key, &oaep, &[1; 256]));
    assert_eq!(wrong, Err(Failure::Error(KeyError::UsageRefused)));
}

#[test]
fn ecdsa_signatures() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let openssl = OpenSsl::new();
    for curve in [Curve::P256, Curve::P384, Curve::P521] {
        let new = new_key(KeyAlgorithm::Ec(curve), Usages::SIGN, "key");
        let key = worker.generate(token, new);
        let public = public_key(&key);
        for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
            let digest = openssl.digest(hash, MESSAGE);
            // Some numbers are short.
            for _ in 0..8 {
                let signing = sign(&key.key, SignatureScheme::Ecdsa, &digest);
                let signature = ecdsa_der(curve, &worker.bytes(token, signing));
                assert!(openssl.verifies(&public, hash, &[], MESSAGE, &signature));
            }
        }
    }
}

#[test]
fn oaep_by_the_token_and_by_its_raw_operation() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let key = worker.generate(token, new_key(RSA, Usages::DECRYPT, "key"));
    let openssl = OpenSsl::new();
    openssl.put("key.der", &public_key(&key));
    openssl.put("text", MESSAGE);
    // SoftHSM itself knows SHA-1 without a label, and no other.
    for (hash, label) in [
        (Hash::Sha1, ""),
        (Hash::Sha1, "6c6162656c"),
        (Hash::Sha256, ""),
        (Hash::Sha256, "6c6162656c"),
        (Hash::Sha384, ""),
        (Hash::Sha512, ""),
    ] {
        let name = crate::openssl::name(hash);
        let (oaep, mgf1) = (format!("rsa_oaep_md:{name}"), format!("rsa_mgf1_md:{name}"));
        let label_option = format!("rsa_oaep_label:{label}");
        let mut arguments = vec!["pkeyutl", "-encrypt", "-pubin", "-inkey", "key.der"];
        arguments.extend(["-keyform", "DER", "-in", "text", "-out", "ciphertext"]);
        arguments.extend(["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", &oaep]);
        arguments.extend(["-pkeyopt", &mgf1]);
        if !label.is_empty() {
            arguments.extend(["-pkeyopt", &label_option]);
        }
        openssl.run(&arguments);
        let ciphertext = openssl.get("ciphertext");
        let cipher = |label: &[u8]| Cipher::RsaOaep {
            hash,
            label: label.into(),
        };
        let right: &[u8] = if label.is_empty() { b"" } else { b"label" };
        let text = worker.bytes(token, decrypt(&key.key, &cipher(right), &ciphertext));
        assert_eq!(text, MESSAGE, "{hash:?} {label}");
        let bad = Err(Failure::Error(KeyError::BadData));
        let other = worker.does(token, decrypt(&key.key, &cipher(b"other"), &ciphertext));
        assert_eq!(other, bad);
        let mut changed = ciphertext.clone();
        changed[200] ^= 1;
        let other = worker.does(token, decrypt(&key.key, &cipher(right), &changed));
        assert_eq!(other, bad);
        let other = worker.does(token, decrypt(&key.key, &cipher(right), &ciphertext[1..]));
        assert_eq!(other, bad);
    }
}

#[test]
fn ecdh() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let openssl = OpenSsl::new();
    for (curve, name) in [
        (Curve::P256, "P-256"),
        (Curve::P384, "P-384"),
        (Curve::P521, "P-521"),
    ] {
        let new = new_key(KeyAlgorithm::Ec(curve), Usages::DERIVE, "key");
        let key = worker.generate(token, new);
        openssl.put("token.der", &public_key(&key));
        let group = format!("ec_paramgen_curve:{name}");
        let generating = [
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            &group,
            "-out",
            "own.pem",
        ];
        openssl.run(&generating);
        let public = openssl.run(&["pkey", "-in", "own.pem", "-pubout", "-outform", "DER"]);
        let point = &public[public.len() - 1 - 2 * curve.length()..];
        let deriving = [
            "pkeyutl",
            "-derive",
            "-inkey",
            "own.pem",
            "-peerform",
            "DER",
        ];
        let secret = openssl.run(&[&deriving[..], &["-peerkey", "token.der"]].concat());
        let derive = |public: &[u8], into| Operation::Derive {
            key: using(&key.key),
            public: public.into(),
            into,
        };
        assert_eq!(worker.bytes(token, derive(point, None)), secret);
        let mut off_the_curve = point.to_vec();
        off_the_curve[curve.length()] ^= 1;
        let bad = Err(Failure::Error(KeyError::BadData));
        assert_eq!(worker.does(token, derive(&off_the_curve, None)), bad);
        assert_eq!(worker.does(token, derive(&point[1..], None)), bad);
        if curve == Curve::P256 {
            // The secret stays in the token, as a key for HMAC.
            let algorithm = KeyAlgorithm::Secret { bits: 256 };
            let new = new_key(algorithm, Usages::SIGN, "derived");
            let derived = match worker.does(token, derive(point, Some(new))) {
                Ok(KeyReply::Key(key)) => key,
                other => panic!("{other:?}"),
            };
            assert!(derived.is_sensitive && !derived.is_extractable);
            let scheme = SignatureScheme::Hmac(Hash::Sha256);
            let mac = worker.bytes(token, sign(&derived.key, scheme, MESSAGE));
            assert_eq!(mac, hmac(&openssl, Hash::Sha256, &secret, MESSAGE));
        }
    }
}

fn hmac(openssl: &OpenSsl, hash: Hash, key: &[u8], message: &[u8]) -> Vec<u8> {
    openssl.put("message", message);
    let key = format!("hexkey:{}", hex(key));
    let hash = format!("-{}", crate::openssl::name(hash));
    let arguments = [
        "dgst", &hash, "-mac", "HMAC", "-macopt", &key, "-binary", "message",
    ];
    openssl.run(&arguments)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const ALL_OF_AES: Usages = Usages::ENCRYPT
    .and(Usages::DECRYPT)
    .and(Usages::WRAP)
    .and(Usages::UNWRAP);

#[test]
fn aes() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    for bits in [128, 192, 256] {
        let new = new_key(KeyAlgorithm::Aes { bits }, ALL_OF_AES, "key");
        let key = worker.generate(token, new);
        assert_eq!(key.public_key, None);
        for cipher in [
            Cipher::AesCbc { iv: [7; 16] },
            Cipher::AesCtr {
                counter: [1; 16],
                bits: 64,
            },
            Cipher::AesGcm {
                iv: vec![3; 12].into(),
                additional_data: vec![5; 20].into(),
                tag_bits: 128,
            },
        ] {
            for length in [0, 1, 16, 1000, 64 * 1024] {
                let text = vec![9; length];
                let ciphertext = worker.does(token, encrypt(&key.key, &cipher, &text));
                // What does not fit into an answer with its padding or tag is refused, not cut.
                let ciphertext = match ciphertext {
                    Ok(KeyReply::Bytes(ciphertext)) => ciphertext.0,
                    other => panic!("{cipher:?} {length}: {other:?}"),
                };
                assert!(ciphertext.len() >= length);
                if ciphertext.len() <= 64 * 1024 {
                    let back = worker.bytes(token, decrypt(&key.key, &cipher, &ciphertext));
                    assert_eq!(back, text);
                }
            }
            if matches!(cipher, Cipher::AesGcm { .. }) {
                let mut ciphertext = worker.bytes(token, encrypt(&key.key, &cipher, MESSAGE));
                ciphertext[0] ^= 1;
                let changed = worker.does(token, decrypt(&key.key, &cipher, &ciphertext));
                assert_eq!(changed, Err(Failure::Error(KeyError::BadData)));
            }
        }
    }
}

/// The module that Debian 12 has crashes there. That costs the worker, and the next one serves the same token.
#[test]
fn aes_gcm_without_additional_data_costs_no_more_than_the_worker() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let new = new_key(KeyAlgorithm::Aes { bits: 128 }, ALL_OF_AES, "key");
    let key = worker.generate(token, new);
    let cipher = Cipher::AesGcm {
        iv: vec![3; 12].into(),
        additional_data: Default::default(),
        tag_bits: 128,
    };
    match worker.does(token, encrypt(&key.key, &cipher, MESSAGE)) {
        Err(Failure::Ended) => {
            assert!(worker.end(PATIENCE).is_some_and(|status| !status.success()));
            let (mut next, token) = hsm.open();
            let cipher = Cipher::AesCbc { iv: [0; 16] };
            let ciphertext = next.bytes(token, encrypt(&key.key, &cipher, MESSAGE));
            assert_eq!(
                next.bytes(token, decrypt(&key.key, &cipher, &ciphertext)),
                MESSAGE
            );
        }
        // Newer ones do not.
        Ok(KeyReply::Bytes(ciphertext)) => {
            assert_eq!(
                worker.bytes(token, decrypt(&key.key, &cipher, &ciphertext.0)),
                MESSAGE
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn macs() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let usages = Usages::SIGN.and(Usages::VERIFY);
    let key = worker.generate(
        token,
        new_key(KeyAlgorithm::Secret { bits: 512 }, usages, "key"),
    );
    for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        let mac = worker.bytes(token, sign(&key.key, SignatureScheme::Hmac(hash), MESSAGE));
        assert_eq!(mac.len(), hash.length());
        let mut verify = |mac: &[u8]| {
            worker.does(
                token,
                Operation::VerifyMac {
                    key: using(&key.key),
                    hash,
                    data: MESSAGE.into(),
                    mac: mac.into(),
                },
            )
        };
        assert_eq!(verify(&mac), Ok(KeyReply::IsGenuine(true)));
        let mut changed = mac.clone();
        changed[3] ^= 1;
        assert_eq!(verify(&changed), Ok(KeyReply::IsGenuine(false)));
        assert_eq!(verify(&mac[1..]), Ok(KeyReply::IsGenuine(false)));
    }
}

/// A data key leaves the token encrypted, and comes back.
#[test]
fn keys_are_wrapped_only_if_they_were_made_for_it() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let wrapping = new_key(KeyAlgorithm::Aes { bits: 256 }, ALL_OF_AES, "wrapping key");
    let wrapping = worker.generate(token, wrapping);
    let data_key = |is_wrappable| NewKey {
        is_wrappable,
        ..new_key(KeyAlgorithm::Aes { bits: 256 }, ALL_OF_AES, "data key")
    };
    let closed = worker.generate(token, data_key(false));
    let open = worker.generate(token, data_key(true));
    assert!(open.is_extractable && open.is_sensitive && !closed.is_extractable);
    let wrap = |key: &token_workers::key_protocol::KeyInfo| Operation::Wrap {
        with: using(&wrapping.key),
        scheme: WrapScheme::AesKw,
        key: key.key.clone(),
    };
    let refused = worker.does(token, wrap(&closed));
    assert_eq!(refused, Err(Failure::Error(KeyError::Unextractable)));
    let wrapped = worker.bytes(token, wrap(&open));
    assert_eq!(wrapped.len(), 40);
    let cipher = Cipher::AesCbc { iv: [1; 16] };
    let ciphertext = worker.bytes(token, encrypt(&open.key, &cipher, MESSAGE));
    let deleted = worker.does(token, Operation::Delete(using(&open.key)));
    assert_eq!(deleted, Ok(KeyReply::Done));
    let unwrap = |data: &[u8], key: NewKey| Operation::Unwrap {
        with: using(&wrapping.key),
        scheme: WrapScheme::AesKw,
        data: data.into(),
        key,
    };
    let back = match worker.does(token, unwrap(&wrapped, data_key(false))) {
        Ok(KeyReply::Key(key)) => key,
        other => panic!("{other:?}"),
    };
    assert!(back.is_sensitive && !back.is_extractable && !back.is_local);
    assert_eq!(
        worker.bytes(token, decrypt(&back.key, &cipher, &ciphertext)),
        MESSAGE
    );
    let mut changed = wrapped.clone();
    changed[9] ^= 1;
    let bad = Err(Failure::Error(KeyError::BadData));
    assert_eq!(worker.does(token, unwrap(&changed, data_key(false))), bad);
    // It is longer than that.
    let shorter = new_key(KeyAlgorithm::Aes { bits: 128 }, ALL_OF_AES, "data key");
    let before = worker.keys(token).len();
    assert_eq!(worker.does(token, unwrap(&wrapped, shorter)), bad);
    assert_eq!(worker.keys(token).len(), before);
}

/// A server's secret is brought into the token, encrypted with a key in it.
#[test]
fn a_secret_is_unwrapped_into_the_token() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let transport = worker.generate(token, new_key(RSA, Usages::UNWRAP, "transport key"));
    let openssl = OpenSsl::new();
    let secret = [0x5a; 32];
    openssl.put("key.der", &public_key(&transport));
    openssl.put("secret", &secret);
    let mut arguments = vec!["pkeyutl", "-encrypt", "-pubin", "-inkey", "key.der"];
    arguments.extend(["-keyform", "DER", "-in", "secret", "-pkeyopt"]);
    arguments.push("rsa_padding_mode:oaep");
    let encrypted = openssl.run(&arguments);
    let unwrap = |hash, data: &[u8]| Operation::Unwrap {
        with: using(&transport.key),
        scheme: WrapScheme::RsaOaep {
            hash,
            label: Default::default(),
        },
        data: data.into(),
        key: new_key(
            KeyAlgorithm::Secret { bits: 256 },
            Usages::SIGN,
            "API secret",
        ),
    };
    let key = match worker.does(token, unwrap(Hash::Sha1, &encrypted)) {
        Ok(KeyReply::Key(key)) => key,
        other => panic!("{other:?}"),
    };
    assert!(key.is_sensitive && !key.is_extractable && !key.is_local);
    let scheme = SignatureScheme::Hmac(Hash::Sha256);
    let mac = worker.bytes(token, sign(&key.key, scheme, MESSAGE));
    assert_eq!(mac, hmac(&openssl, Hash::Sha256, &secret, MESSAGE));
    // SoftHSM cannot do that by itself, and nobody does it outside of the token.
    let outside = worker.does(token, unwrap(Hash::Sha256, &encrypted));
    assert_eq!(outside, Err(Failure::Error(KeyError::Unsupported)));
}

#[test]
fn certificates() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let key = worker.generate(
        token,
        new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "key"),
    );
    let other = worker.generate(
        token,
        new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "other"),
    );
    let openssl = OpenSsl::new();
    let mut making = vec![
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key",
    ];
    making.extend(["-out", "ca.pem", "-subj", "/CN=Test CA"]);
    openssl.run(&making);
    let certificate = |public_key: &[u8], name: &str| {
        openssl.put("key.der", public_key);
        let subject = format!("/CN={name}");
        let mut making = vec!["x509", "-new", "-force_pubkey", "key.der", "-CA", "ca.pem"];
        making.extend(["-CAkey", "ca.key", "-subj", &subject, "-outform", "DER"]);
        openssl.run(&making)
    };
    let first = certificate(&public_key(&key), "first");
    let second = certificate(&public_key(&key), "second");
    let install = |certificate: &[u8]| Operation::InstallCertificate {
        key: key.key.clone(),
        certificate: certificate.into(),
    };
    let list = || Operation::ListCertificates(key.key.clone());
    let bad = Err(Failure::Error(KeyError::BadData));
    assert_eq!(worker.does(token, install(b"no certificate")), bad);
    let foreign = certificate(&public_key(&other), "foreign");
    assert_eq!(worker.does(token, install(&foreign)), bad);
    for current in [&first, &second] {
        assert_eq!(worker.does(token, install(current)), Ok(KeyReply::Done));
        let expected = KeyReply::Certificates(vec![current[..].into()]);
        assert_eq!(worker.does(token, list()), Ok(expected));
    }
    let listed = worker.keys(token);
    let has_certificate = |name: &str| {
        let key = listed.iter().find(|key| key.label == name);
        key.expect("a key").has_certificate
    };
    assert!(has_certificate("key") && !has_certificate("other"));
    let removed = worker.does(token, Operation::RemoveCertificate(key.key.clone()));
    assert_eq!(removed, Ok(KeyReply::Done));
    let none = KeyReply::Certificates(Vec::new());
    assert_eq!(worker.does(token, list()), Ok(none));
}

#[test]
fn what_is_kept_with_a_key_shows_before_a_login_and_ends_with_the_key() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let key = worker.generate(
        token,
        new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "key"),
    );
    let read = || Operation::ReadData(key.key.clone());
    let write = |data: &[u8]| Operation::WriteData {
        key: key.key.clone(),
        data: data.into(),
    };
    assert_eq!(worker.does(token, read()), Ok(KeyReply::Data(None)));
    for data in [&b"https://one.example"[..], b"https://two.example"] {
        assert_eq!(worker.does(token, write(data)), Ok(KeyReply::Done));
        let expected = KeyReply::Data(Some(data.into()));
        assert_eq!(worker.does(token, read()), Ok(expected));
    }
    let mut next = hsm.worker();
    let next_token = next.token();
    let expected = KeyReply::Data(Some(b"https://two.example"[..].into()));
    assert_eq!(next.does(next_token, read()), Ok(expected));
    let refused = next.does(next_token, write(b"https://evil.example"));
    assert_eq!(refused, Err(Failure::Error(KeyError::NotLoggedIn)));
    let deleted = worker.does(token, Operation::Delete(using(&key.key)));
    assert_eq!(deleted, Ok(KeyReply::Done));
    assert_eq!(worker.does(token, read()), Ok(KeyReply::Data(None)));
    assert!(worker.keys(token).is_empty());
}

#[test]
fn a_key_that_another_program_deletes_is_gone() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let key = worker.generate(
        token,
        new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "key"),
    );
    let signing = || sign(&key.key, SignatureScheme::Ecdsa, &[7; 32]);
    worker.bytes(token, signing());
    let (mut other, other_token) = hsm.open();
    let deleted = other.does(other_token, Operation::Delete(using(&key.key)));
    assert_eq!(deleted, Ok(KeyReply::Done));
    let gone = Err(Failure::Error(KeyError::NoKey));
    assert_eq!(worker.does(token, signing()), gone);
    assert_eq!(worker.does(token, signing()), gone);
}

#[test]
fn keys_that_do_not_stay_end_with_the_worker() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let key = NewKey {
        is_persistent: false,
        ..new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "key")
    };
    let key = worker.generate(token, key);
    assert!(!key.is_persistent);
    worker.bytes(token, sign(&key.key, SignatureScheme::Ecdsa, &[7; 32]));
    drop(worker);
    let (mut next, token) = hsm.open();
    assert!(next.keys(token).is_empty());
}

#[test]
fn a_long_list_of_keys_comes_in_parts() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let label = "x".repeat(200);
    for _ in 0..120 {
        worker.generate(
            token,
            new_key(KeyAlgorithm::Ec(Curve::P521), Usages::SIGN, &label),
        );
    }
    match worker.does(token, Operation::ListKeys { start: 0 }) {
        Ok(KeyReply::Keys { keys, more }) => assert!(more && keys.len() < 120),
        other => panic!("{other:?}"),
    }
    let keys = worker.keys(token);
    let names: std::collections::HashSet<_> = keys.iter().map(|key| &key.key).collect();
    assert_eq!((keys.len(), names.len()), (120, 120));
}

#[test]
fn requests_that_wait_are_canceled() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let slow = new_key(KeyAlgorithm::Rsa { bits: 4096 }, Usages::SIGN, "slow");
    let first = worker.send(KeyRequestBody::Token(
        token,
        Operation::Generate(slow.clone()),
    ));
    let second = worker.send(KeyRequestBody::Token(token, Operation::Generate(slow)));
    worker.send(KeyRequestBody::Cancel { request: second });
    // Other tokens and the list of them do not wait.
    let begun = Instant::now();
    worker.tokens();
    assert!(begun.elapsed() < Duration::from_secs(5));
    let first = worker.answer_within(first, PATIENCE);
    assert!(matches!(first, Ok(KeyReply::Key(_))), "{first:?}");
    let second = worker.answer_within(second, PATIENCE);
    assert_eq!(second, Err(Failure::Error(KeyError::Canceled)));
}

#[test]
fn too_many_requests_are_refused_and_a_thousand_signatures_are_made() {
    let hsm = SoftHsm::new();
    let (mut worker, token) = hsm.open();
    let key = worker.generate(
        token,
        new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "key"),
    );
    let signing = || {
        let operation = sign(&key.key, SignatureScheme::Ecdsa, &[7; 32]);
        KeyRequestBody::Token(token, operation)
    };
    let (mut made, mut busy) = (0, 0);
    while made < 1000 {
        let ids: Vec<u64> = (0..300).map(|_| worker.send(signing())).collect();
        for _ in ids {
            match worker.message(PATIENCE) {
                Ok(token_workers::key_protocol::KeyMessage::Reply { result, .. }) => match result {
                    Ok(KeyReply::Bytes(_)) => made += 1,
                    Err(KeyError::Busy) => busy += 1,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }
    }
    eprintln!("{busy} were refused");
}

#[test]
fn the_worker_ends_with_the_main_process() {
    let hsm = SoftHsm::new();
    let (mut worker, _) = hsm.open();
    worker.cut();
    assert!(worker.end(PATIENCE).is_some_and(|status| status.success()));
}

#[test]
fn without_a_place_to_write_nothing_is_written() {
    let hsm = SoftHsm::new();
    let mut config = hsm.config();
    config.read.append(&mut config.write);
    let mut worker = Worker::start(&WorkerKind::Module(config));
    let tokens = worker.tokens();
    let [token] = &tokens[..] else {
        panic!("{tokens:?}");
    };
    let login = worker.login(token.id, PIN);
    let key = new_key(KeyAlgorithm::Ec(Curve::P256), Usages::SIGN, "key");
    let made = worker.does(token.id, Operation::Generate(key));
    assert!(login.is_err() || made.is_err(), "{login:?} {made:?}");
    let (mut next, token) = hsm.open();
    assert!(next.keys(token).is_empty());
}

#[test]
fn a_pin_is_not_shown() {
    let secret = Secret::new(PIN.into());
    let request = KeyRequestBody::Token(TokenId(1), Operation::Login { pin: Some(secret) });
    assert!(!format!("{request:?}").contains(PIN));
}
