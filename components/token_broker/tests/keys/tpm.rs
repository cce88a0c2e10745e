/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A TPM in software (swtpm).

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use token_traits::control::WorkerKind;
use token_workers::key_protocol::{
    Attestation, Cipher, Curve, Hash, KeyAlgorithm, KeyError, KeyInfo, KeyRef, KeyReply, KeyUse,
    NewKey, Operation, Secret, SignatureScheme, TokenFeature, TokenId, Usages,
};

use crate::openssl::{OpenSsl, ecdsa_der};
use crate::worker::{
    Failure, PATIENCE, Worker, decrypt, encrypt, new_key, public_key, status_line,
};

const MESSAGE: &[u8] = b"The TPM signs, nobody else.";
const AUTH: &[u8] = &[0xa5; 32];

/// A TPM with its state, on two ports of the loopback interface.
struct SoftwareTpm {
    process: Child,
    state: TempDir,
    port: u16,
}

/// Two free ports, one after the other.
fn ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = first.local_addr().expect("an address").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

fn start(state: &TempDir, port: u16) -> Child {
    let path = state.path().display();
    let process = Command::new("swtpm")
        .args(["socket", "--tpm2", "--tpmstate", &format!("dir={path}")])
        .args(["--server", &format!("type=tcp,port={port}")])
        .args(["--ctrl", &format!("type=tcp,port={}", port + 1)])
        .args(["--flags", "not-need-init,startup-clear"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("swtpm");
    let until = Instant::now() + PATIENCE;
    // It serves one connection at a time, and a first one that closes would be its last.
    while !is_listening(port) || !is_listening(port + 1) {
        assert!(Instant::now() < until, "swtpm does not start");
        thread::sleep(Duration::from_millis(10));
    }
    process
}

fn is_listening(port: u16) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("a list");
    let listening = format!(":{port:04X} 00000000:0000 0A");
    sockets.contains(&listening)
}

impl SoftwareTpm {
    fn new() -> Self {
        let state = tempfile::tempdir().expect("a folder");
        let port = ports();
        Self {
            process: start(&state, port),
            state,
            port,
        }
    }

    fn kind(&self) -> WorkerKind {
        WorkerKind::Tpm {
            tcti: format!("swtpm:host=127.0.0.1,port={}", self.port),
        }
    }

    fn worker(&self) -> (Worker, TokenId) {
        let mut worker = Worker::start(&self.kind());
        let token = worker.token();
        (worker, token)
    }

    /// As when the machine starts again.
    fn restart(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.port = ports();
        self.process = start(&self.state, self.port);
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn key(algorithm: KeyAlgorithm, usages: Usages) -> NewKey {
    NewKey {
        auth: Some(Secret::new(AUTH.to_vec())),
        ..new_key(algorithm, usages, "key")
    }
}

/// With what authorizes it.
fn authorized(mut operation: Operation) -> Operation {
    match &mut operation {
        Operation::Sign { key, .. }
        | Operation::VerifyMac { key, .. }
        | Operation::Encrypt { key, .. }
        | Operation::Decrypt { key, .. }
        | Operation::Derive { key, .. }
        | Operation::Attest { key, .. } => key.auth = Some(Secret::new(AUTH.to_vec())),
        other => panic!("{other:?}"),
    }
    operation
}

fn sign(key: &KeyRef, scheme: SignatureScheme, data: &[u8]) -> Operation {
    authorized(crate::worker::sign(key, scheme, data))
}

const RSA: KeyAlgorithm = KeyAlgorithm::Rsa { bits: 2048 };
const P256: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P256);

#[test]
fn what_it_says_of_itself() {
    let tpm = SoftwareTpm::new();
    let (mut worker, _) = tpm.worker();
    let tokens = worker.tokens();
    let [token] = &tokens[..] else {
        panic!("{tokens:?}");
    };
    assert!(!token.is_hardware, "{token:?}");
    assert!(!token.login.is_required && !token.is_read_only && token.serial.len() == 32);
    assert_eq!(token.manufacturer, "IBM");
    for feature in [
        TokenFeature::Attest,
        TokenFeature::AesCbc,
        TokenFeature::Generate(RSA),
    ] {
        assert!(token.features.contains(&feature), "{feature:?}");
    }
    assert!(!token.features.contains(&TokenFeature::AesGcm));
    assert_eq!(status_line(worker.pid(), "Seccomp:"), "2");
    assert_eq!(status_line(worker.pid(), "Threads:"), "4");
}

#[test]
fn ecdsa() {
    let tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let made = worker.generate(token, key(P256, Usages::SIGN));
    assert!(made.is_sensitive && made.is_local && !made.is_extractable);
    let openssl = OpenSsl::new();
    let public = public_key(&made);
    for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        let digest = openssl.digest(hash, MESSAGE);
        for _ in 0..20 {
            let signature = worker.bytes(token, sign(&made.key, SignatureScheme::Ecdsa, &digest));
            let signature = ecdsa_der(Curve::P256, &signature);
            assert!(openssl.verifies(&public, hash, &[], MESSAGE, &signature));
        }
    }
}

#[test]
fn rsa() {
    let tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let made = worker.generate(token, key(RSA, Usages::SIGN.and(Usages::DECRYPT)));
    let openssl = OpenSsl::new();
    let public = public_key(&made);
    for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        let digest = openssl.digest(hash, MESSAGE);
        let scheme = SignatureScheme::RsaPkcs1(hash);
        let signature = worker.bytes(token, sign(&made.key, scheme, &digest));
        assert!(openssl.verifies(&public, hash, &[], MESSAGE, &signature));
        for salt_length in [0, 32] {
            let scheme = SignatureScheme::RsaPss { hash, salt_length };
            let signature = worker.bytes(token, sign(&made.key, scheme, &digest));
            let salt = format!("rsa_pss_saltlen:{salt_length}");
            let options = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", &salt];
            assert!(openssl.verifies(&public, hash, &options, MESSAGE, &signature));
        }
    }
    openssl.put("key.der", &public);
    openssl.put("text", MESSAGE);
    let mut arguments = vec![
        "pkeyutl", "-encrypt", "-pubin", "-inkey", "key.der", "-keyform",
    ];
    arguments.extend(["DER", "-in", "text", "-pkeyopt", "rsa_padding_mode:oaep"]);
    arguments.extend(["-pkeyopt", "rsa_oaep_md:sha256"]);
    let ciphertext = openssl.run(&arguments);
    let cipher = |label: &[u8]| Cipher::RsaOaep {
        hash: Hash::Sha256,
        label: label.into(),
    };
    let text = worker.bytes(
        token,
        authorized(decrypt(&made.key, &cipher(b""), &ciphertext)),
    );
    assert_eq!(text, MESSAGE);
    let other = worker.does(
        token,
        authorized(decrypt(&made.key, &cipher(b"x"), &ciphertext)),
    );
    assert_eq!(other, Err(Failure::Error(KeyError::BadData)));
}

/// A key of one origin is of no use to another, because the TPM wants to know the origin's secret.
#[test]
fn the_tpm_refuses_who_cannot_authorize_the_use() {
    let tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let made = worker.generate(token, key(P256, Usages::SIGN));
    let refused = Err(Failure::Error(KeyError::Refused));
    let digest = [7; 32];
    for auth in [None, Some(vec![]), Some(vec![0xa6; 32])] {
        // That the key is loaded from before makes no difference.
        worker.bytes(token, sign(&made.key, SignatureScheme::Ecdsa, &digest));
        // More often than any dictionary of attacks would allow.
        for _ in 0..10 {
            let operation = Operation::Sign {
                key: KeyUse {
                    key: made.key.clone(),
                    auth: auth.clone().map(Secret::new),
                },
                scheme: SignatureScheme::Ecdsa,
                data: digest[..].into(),
            };
            assert_eq!(worker.does(token, operation), refused);
        }
    }
    // Nobody is locked out by it.
    worker.bytes(token, sign(&made.key, SignatureScheme::Ecdsa, &digest));
    let other = worker.does(
        token,
        sign(&made.key, SignatureScheme::RsaPkcs1(Hash::Sha256), &digest),
    );
    assert_eq!(other, Err(Failure::Error(KeyError::UsageRefused)));
    // What is in the key's blob is the TPM's, but for what it may do.
    let changed = |index: usize| {
        let mut key = made.key.clone();
        let length = key.0.len();
        key.0[length - index] ^= 1;
        key
    };
    for index in [1, 40, 100] {
        worker.bytes(token, sign(&made.key, SignatureScheme::Ecdsa, &digest));
        let tried = worker.does(
            token,
            sign(&changed(index), SignatureScheme::Ecdsa, &digest),
        );
        assert!(matches!(tried, Err(Failure::Error(_))), "{tried:?}");
    }
    let nonsense = KeyRef(vec![0xff; 100]);
    let tried = worker.does(token, sign(&nonsense, SignatureScheme::Ecdsa, &digest));
    assert_eq!(tried, Err(Failure::Error(KeyError::BadRequest)));
    worker.bytes(token, sign(&made.key, SignatureScheme::Ecdsa, &digest));
}

#[test]
fn keys_outlive_the_worker_and_a_restart_and_belong_to_one_tpm() {
    let mut tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let made = worker.generate(token, key(P256, Usages::SIGN));
    let operation = || sign(&made.key, SignatureScheme::Ecdsa, &[7; 32]);
    worker.bytes(token, operation());
    drop(worker);
    tpm.restart();
    let (mut next, token) = tpm.worker();
    next.bytes(token, operation());
    let other = SoftwareTpm::new();
    let (mut worker, token) = other.worker();
    let foreign = worker.does(token, operation());
    assert_eq!(foreign, Err(Failure::Error(KeyError::Foreign)));
}

#[test]
fn when_the_tpm_goes_so_does_the_worker() {
    let mut tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let made = worker.generate(token, key(P256, Usages::SIGN));
    tpm.restart();
    let failed = worker.does(token, sign(&made.key, SignatureScheme::Ecdsa, &[7; 32]));
    assert!(failed.is_err(), "{failed:?}");
    assert!(worker.end(PATIENCE).is_some());
    let (mut next, token) = tpm.worker();
    next.bytes(token, sign(&made.key, SignatureScheme::Ecdsa, &[7; 32]));
}

#[test]
fn without_a_tpm_there_is_no_worker() {
    for tcti in [
        "swtpm:host=127.0.0.1,port=1",
        "device:/nowhere",
        "tabrmd:",
        "cmd:touch /tmp/started",
        "nonsense",
    ] {
        let kind = WorkerKind::Tpm { tcti: tcti.into() };
        let mut worker = Worker::start(&kind);
        let status = worker.end(PATIENCE);
        assert!(status.is_some_and(|status| !status.success()), "{tcti}");
    }
}

#[test]
fn ecdh() {
    let tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let made = worker.generate(token, key(P256, Usages::DERIVE));
    let openssl = OpenSsl::new();
    openssl.put("token.der", &public_key(&made));
    let mut generating = vec!["genpkey", "-algorithm", "EC", "-pkeyopt"];
    generating.extend(["ec_paramgen_curve:P-256", "-out", "own.pem"]);
    openssl.run(&generating);
    let public = openssl.run(&["pkey", "-in", "own.pem", "-pubout", "-outform", "DER"]);
    let point = &public[public.len() - 65..];
    let mut deriving = vec![
        "pkeyutl",
        "-derive",
        "-inkey",
        "own.pem",
        "-peerform",
        "DER",
    ];
    deriving.extend(["-peerkey", "token.der"]);
    let secret = openssl.run(&deriving);
    let derive = |public: &[u8]| {
        authorized(Operation::Derive {
            key: crate::worker::using(&made.key),
            public: public.into(),
            into: None,
        })
    };
    assert_eq!(worker.bytes(token, derive(point)), secret);
    let mut off_the_curve = point.to_vec();
    off_the_curve[64] ^= 1;
    let refused = worker.does(token, derive(&off_the_curve));
    assert_eq!(refused, Err(Failure::Error(KeyError::BadData)));
    // It was not made to sign.
    let wrong = worker.does(token, sign(&made.key, SignatureScheme::Ecdsa, &[0; 32]));
    assert_eq!(wrong, Err(Failure::Error(KeyError::UsageRefused)));
}

#[test]
fn macs() {
    let tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let usages = Usages::SIGN.and(Usages::VERIFY);
    let made = worker.generate(token, key(KeyAlgorithm::Secret { bits: 256 }, usages));
    for hash in [Hash::Sha1, Hash::Sha256] {
        let mac = worker.bytes(token, sign(&made.key, SignatureScheme::Hmac(hash), MESSAGE));
        assert_eq!(mac.len(), hash.length());
        let mut verify = |mac: &[u8]| {
            let operation = Operation::VerifyMac {
                key: crate::worker::using(&made.key),
                hash,
                data: MESSAGE.into(),
                mac: mac.into(),
            };
            worker.does(token, authorized(operation))
        };
        assert_eq!(verify(&mac), Ok(KeyReply::IsGenuine(true)));
        assert_eq!(verify(&mac[1..]), Ok(KeyReply::IsGenuine(false)));
        assert_eq!(
            verify(&[0; 32][..hash.length()]),
            Ok(KeyReply::IsGenuine(false))
        );
    }
    let scheme = SignatureScheme::Hmac(Hash::Sha256);
    let long = worker.does(token, sign(&made.key, scheme, &[0; 1025]));
    assert_eq!(long, Err(Failure::Error(KeyError::Unsupported)));
}

#[test]
fn aes() {
    let tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let usages = Usages::ENCRYPT.and(Usages::DECRYPT);
    let made = worker.generate(token, key(KeyAlgorithm::Aes { bits: 256 }, usages));
    for cipher in [
        Cipher::AesCbc { iv: [7; 16] },
        Cipher::AesCtr {
            counter: [1; 16],
            bits: 64,
        },
    ] {
        for length in [0, 1, 16, 1024, 3000] {
            let text = vec![9; length];
            let encrypting = authorized(encrypt(&made.key, &cipher, &text));
            let ciphertext = worker.bytes(token, encrypting);
            let decrypting = authorized(decrypt(&made.key, &cipher, &ciphertext));
            assert_eq!(worker.bytes(token, decrypting), text, "{cipher:?} {length}");
            assert!(length < 16 || ciphertext[..16] != text[..16]);
        }
    }
    let cbc = Cipher::AesCbc { iv: [7; 16] };
    let bad = worker.does(token, authorized(decrypt(&made.key, &cbc, &[3; 32])));
    assert_eq!(bad, Err(Failure::Error(KeyError::BadData)));
}

/// Takes a number of bytes off the beginning.
fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

/// Takes a TPM2B off the beginning.
fn sized<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = take(bytes, 2);
    take(bytes, u16::from_be_bytes([length[0], length[1]]).into())
}

#[test]
fn an_attestation_is_the_tpm_s_word_for_this_key_and_this_challenge() {
    let tpm = SoftwareTpm::new();
    let (mut worker, token) = tpm.worker();
    let made: KeyInfo = worker.generate(token, key(RSA, Usages::SIGN));
    let challenge = b"a challenge";
    let operation = Operation::Attest {
        key: crate::worker::using(&made.key),
        challenge: challenge[..].into(),
    };
    let unauthorized = worker.does(token, operation.clone());
    assert_eq!(unauthorized, Err(Failure::Error(KeyError::Refused)));
    let Attestation {
        statement,
        signature,
        signer,
        public,
    } = match worker.does(token, authorized(operation)) {
        Ok(KeyReply::Attestation(attestation)) => attestation,
        other => panic!("{other:?}"),
    };
    // TPMS_ATTEST: made by a TPM (`TPM_GENERATED_VALUE`), about an object (`TPM_ST_ATTEST_CERTIFY`).
    let mut rest = &statement.0[..];
    assert_eq!(take(&mut rest, 6), [0xff, 0x54, 0x43, 0x47, 0x80, 0x17]);
    let _signer = sized(&mut rest);
    assert_eq!(sized(&mut rest), challenge);
    let _clock_and_firmware = take(&mut rest, 17 + 8);
    let name = sized(&mut rest);
    let openssl = OpenSsl::new();
    assert_eq!(
        name,
        [&[0x00, 0x0b], &openssl.digest(Hash::Sha256, &public.0)[..]].concat()
    );
    // The public area holds the key's modulus.
    let modulus = &public.0[public.0.len() - 256..];
    assert!(
        public_key(&made)
            .windows(256)
            .any(|window| window == modulus)
    );
    // TPMT_SIGNATURE: ECDSA with SHA-256, by the signer's point at the end of its area.
    let mut rest = &signature.0[..];
    assert_eq!(take(&mut rest, 4), [0x00, 0x18, 0x00, 0x0b]);
    let number = |bytes: &[u8]| [&vec![0; 32 - bytes.len()], bytes].concat();
    let signature = [number(sized(&mut rest)), number(sized(&mut rest))].concat();
    let mut rest = &signer.0[signer.0.len() - 68..];
    let point = [&[4], sized(&mut rest), sized(&mut rest)].concat();
    let header = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let signer_key = [&header[..], &point].concat();
    let signature = ecdsa_der(Curve::P256, &signature);
    assert!(openssl.verifies(&signer_key, Hash::Sha256, &[], &statement.0, &signature));
}
