/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the broker and a worker that keeps keys say to each other, each message in a [`token_traits::Frame`].
//!
//! The broker may have many requests under way. A worker serves those for one token one after the other and in the order of
//! arrival, those for different tokens at the same time.
//!
//! Who hashes: the sender of a request, except for HMAC. Who pads: the token, or its worker where the token has only the raw
//! operation. The private operation itself is always the token's.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
pub use token_traits::keys::{
    Bytes, Cipher, Curve, Hash, KeyAlgorithm, MAX_CERTIFICATE, MAX_DATA, MAX_LABEL,
    SignatureScheme, TokenFeature, Usages, WrapScheme,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The broker to a worker that keeps keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyRequest {
    /// Names the reply; goes up with each request.
    pub id: u64,
    /// What is asked.
    pub body: KeyRequestBody,
}

/// What a worker that keeps keys is asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeyRequestBody {
    /// Which tokens are there? Answered by [`KeyReply::Tokens`].
    ListTokens,
    /// Do something with a token.
    Token(TokenId, Operation),
    /// Nobody waits for that request any more. If it has not begun, it is answered with [`KeyError::Canceled`]; if it has,
    /// it is carried out. This one itself has no answer.
    Cancel {
        /// The id of that request.
        request: u64,
    },
}

/// Names a token for as long as its worker runs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct TokenId(pub u64);

/// Something to do with a token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Operation {
    /// Which keys does it have? Answered by [`KeyReply::Keys`]. Keys that show only after a login are left out before, unless
    /// their public halves or their certificates show.
    ListKeys {
        /// How many to leave out, because they came with an earlier answer.
        start: u32,
    },
    /// A key's certificates, its own first. Answered by [`KeyReply::Certificates`].
    ListCertificates(KeyRef),
    /// Log in. Answered by [`KeyReply::Done`], also where somebody is logged in already.
    Login {
        /// The PIN; `None` where the token asks for it by itself.
        pin: Option<Secret>,
    },
    /// Log out. Answered by [`KeyReply::Done`].
    Logout,
    /// Generate a key or a pair of keys. Answered by [`KeyReply::Key`].
    Generate(NewKey),
    /// Delete a key, with its other half and its certificate. Answered by [`KeyReply::Done`].
    Delete(KeyUse),
    /// Sign a digest, or make a MAC of a message. Answered by [`KeyReply::Bytes`].
    Sign {
        /// A private key; a secret one for HMAC.
        key: KeyUse,
        /// How.
        scheme: SignatureScheme,
        /// The digest, as long as the hash makes it; for HMAC the message.
        data: Bytes,
    },
    /// Check a MAC. Answered by [`KeyReply::IsGenuine`].
    VerifyMac {
        /// A secret key.
        key: KeyUse,
        /// The hash.
        hash: Hash,
        /// The message.
        data: Bytes,
        /// Its MAC.
        mac: Bytes,
    },
    /// Encrypt with a secret key. Answered by [`KeyReply::Bytes`].
    Encrypt {
        /// The key.
        key: KeyUse,
        /// How.
        cipher: Cipher,
        /// The text.
        data: Bytes,
    },
    /// Decrypt. Answered by [`KeyReply::Bytes`].
    Decrypt {
        /// The key.
        key: KeyUse,
        /// How.
        cipher: Cipher,
        /// The ciphertext.
        data: Bytes,
    },
    /// Agree on a secret (ECDH). Answered by [`KeyReply::Bytes`], or by [`KeyReply::Key`] if it is to stay in the token.
    Derive {
        /// A private key on a curve.
        key: KeyUse,
        /// The other side's public point, uncompressed (SEC 1, 2.3.3).
        public: Bytes,
        /// Where the secret goes. `None` hands it out.
        into: Option<NewKey>,
    },
    /// Encrypt a key with another one, in the token. Answered by [`KeyReply::Bytes`].
    Wrap {
        /// The key that encrypts.
        with: KeyUse,
        /// How.
        scheme: WrapScheme,
        /// The secret key that is to leave the token encrypted, which was generated to be wrappable.
        key: KeyRef,
    },
    /// Decrypt a secret key into the token, in the token. Answered by [`KeyReply::Key`].
    Unwrap {
        /// The key that decrypts.
        with: KeyUse,
        /// How.
        scheme: WrapScheme,
        /// The encrypted key.
        data: Bytes,
        /// What it becomes.
        key: NewKey,
    },
    /// Keep a certificate with a key, in place of the one that is there. Answered by [`KeyReply::Done`].
    InstallCertificate {
        /// The key.
        key: KeyRef,
        /// The certificate in DER.
        certificate: Bytes,
    },
    /// Delete a key's own certificate. Answered by [`KeyReply::Done`].
    RemoveCertificate(KeyRef),
    /// Have the token say that a key is one of its own. Answered by [`KeyReply::Attestation`].
    Attest {
        /// The key.
        key: KeyUse,
        /// What the statement is to contain, at most 32 bytes.
        challenge: Bytes,
    },
    /// What the browser keeps with a key (its origins). Answered by [`KeyReply::Data`].
    ReadData(KeyRef),
    /// Keep something with a key, in place of what is there. Answered by [`KeyReply::Done`].
    WriteData {
        /// The key.
        key: KeyRef,
        /// What, at most [`MAX_DATA_OBJECT`] bytes.
        data: Bytes,
    },
}

/// The longest thing that is kept with a key, in bytes.
pub const MAX_DATA_OBJECT: usize = 4096;

/// Most tokens of one worker.
pub const MAX_TOKENS: usize = 32;

/// Most keys of one token.
pub const MAX_KEYS: usize = 4096;

/// Most requests that wait in a worker.
pub const MAX_WAITING: usize = 256;

/// A PIN, or what authorizes the use of a key. It is never shown, and wiped when it is dropped.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize, Zeroize, ZeroizeOnDrop)]
pub struct Secret(#[serde(with = "serde_bytes")] Vec<u8>);

impl Secret {
    /// Takes it over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a secret")
    }
}

/// A key's name in its token, or all of it, encrypted by a token that keeps none itself. Means nothing but to the kind of
/// worker that gave it, and outlives that worker.
#[derive(Clone, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct KeyRef(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl fmt::Debug for KeyRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a key ({} bytes)", self.0.len())
    }
}

/// The longest [`KeyRef`], in bytes.
pub const MAX_KEY_REF: usize = 2048;

/// A key and what it takes to use it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyUse {
    /// The key.
    pub key: KeyRef,
    /// What authorizes this one use: the PIN for a key that asks each time, a TPM key's authValue.
    pub auth: Option<Secret>,
}

/// A key to be made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NewKey {
    /// Its kind and size.
    pub algorithm: KeyAlgorithm,
    /// What it may do.
    pub usages: Usages,
    /// Its name, at most [`MAX_LABEL`] bytes.
    pub label: String,
    /// Whether another key of the token may encrypt it, so that it leaves the token encrypted. For secret keys only.
    pub is_wrappable: bool,
    /// Whether it stays when its worker ends.
    pub is_persistent: bool,
    /// Whether it is to ask for the PIN each time. For private keys only.
    pub asks_each_time: bool,
    /// What will authorize its use, for tokens that keep an authValue for each key.
    pub auth: Option<Secret>,
}

impl NewKey {
    /// Whether it is a pair of keys.
    pub fn algorithm_has_public_half(&self) -> bool {
        matches!(
            self.algorithm,
            KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ec(_)
        )
    }
}

/// A worker that keeps keys to the broker.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeyMessage {
    /// The one answer to a request.
    Reply {
        /// The request's id.
        request: u64,
        /// What came of it.
        result: Result<KeyReply, KeyError>,
    },
    /// A token has come or gone.
    TokensChanged,
}

/// A successful answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeyReply {
    /// It is done and there is nothing to tell.
    Done,
    /// The tokens that are there, at most [`MAX_TOKENS`].
    Tokens(Vec<TokenInfo>),
    /// Some of the keys.
    Keys {
        /// At least one, unless there are no more.
        keys: Vec<KeyInfo>,
        /// Whether there are more.
        more: bool,
    },
    /// Certificates in DER, each the issuer of the one before.
    Certificates(Vec<Bytes>),
    /// A key was made.
    Key(Box<KeyInfo>),
    /// A signature, a MAC, a text, a ciphertext or a secret.
    Bytes(Bytes),
    /// Whether the MAC is the message's.
    IsGenuine(bool),
    /// What was kept with the key, if something was.
    Data(Option<Bytes>),
    /// What the token says of the key.
    Attestation(Attestation),
}

/// A token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenInfo {
    /// Names it.
    pub id: TokenId,
    /// What its owner calls it, at most 32 characters. The token says it, as the next three, so it may be anything.
    pub label: String,
    /// Who made it, at most 32 characters.
    pub manufacturer: String,
    /// What it is, at most 32 characters.
    pub model: String,
    /// Which one it is, at most 32 characters.
    pub serial: String,
    /// Where it is: the reader's name, at most 64 characters.
    pub slot: String,
    /// Whether it is in hardware, as far as it says.
    pub is_hardware: bool,
    /// Whether it can be taken out.
    pub is_removable: bool,
    /// Whether nothing can be generated, installed or deleted.
    pub is_read_only: bool,
    /// What it takes to log in.
    pub login: Login,
    /// What it can do.
    pub features: Vec<TokenFeature>,
}

/// A token's login.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Login {
    /// Private keys show only after it.
    pub is_required: bool,
    /// The token asks for the PIN by itself (a reader with a keypad).
    pub has_own_path: bool,
    /// No PIN has been set, so that there is no login.
    pub is_not_set: bool,
    /// A wrong PIN was entered since the last right one.
    pub tries_are_low: bool,
    /// One more wrong PIN locks it.
    pub is_last_try: bool,
    /// It is locked.
    pub is_locked: bool,
}

/// A key in a token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyInfo {
    /// Names it.
    pub key: KeyRef,
    /// Its name, at most [`MAX_LABEL`] bytes. The token says it, so it may be anything.
    pub label: String,
    /// Its identifier in the token (`CKA_ID`), at most 255 bytes.
    pub identifier: Vec<u8>,
    /// Its kind and size. Some tokens do not tell the size of a secret key that came into them encrypted: 0 then.
    pub algorithm: KeyAlgorithm,
    /// What it may do. Before a login that is what the public half lets expect.
    pub usages: Usages,
    /// The public half (SubjectPublicKeyInfo, RFC 5280); `None` for secret keys.
    pub public_key: Option<Bytes>,
    /// Whether there is a certificate for it.
    pub has_certificate: bool,
    /// Whether it does not show before a login. Nothing after this is known then.
    pub is_hidden: bool,
    /// Its value is never shown in the clear (`CKA_SENSITIVE`).
    pub is_sensitive: bool,
    /// It may leave the token, encrypted if it is sensitive (`CKA_EXTRACTABLE`).
    pub is_extractable: bool,
    /// It was generated in the token (`CKA_LOCAL`).
    pub is_local: bool,
    /// It was never allowed to leave the token (`CKA_NEVER_EXTRACTABLE`).
    pub was_never_extractable: bool,
    /// It asks for the PIN each time (`CKA_ALWAYS_AUTHENTICATE`).
    pub asks_each_time: bool,
    /// It stays when its worker ends.
    pub is_persistent: bool,
    /// It can be changed and deleted.
    pub is_modifiable: bool,
}

/// What a token says of one of its keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attestation {
    /// The statement: TPMS_ATTEST for a TPM (TPM 2.0 Library, part 2, 10.12.8).
    pub statement: Bytes,
    /// The statement's signature: TPMT_SIGNATURE for a TPM.
    pub signature: Bytes,
    /// The public half of what signed it: TPMT_PUBLIC for a TPM.
    pub signer: Bytes,
    /// The key's own public area: TPMT_PUBLIC for a TPM.
    pub public: Bytes,
}

/// Why something could not be done.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
pub enum KeyError {
    /// The token is not there (any more).
    #[error("the token is not there")]
    NoToken,
    /// The key is not there (any more).
    #[error("the key is not there")]
    NoKey,
    /// It takes a login.
    #[error("the token wants a PIN first")]
    NotLoggedIn,
    /// The PIN is wrong. A try is spent.
    #[error("the PIN is wrong")]
    PinIncorrect,
    /// The PIN cannot be right: its length or its characters. No try is spent.
    #[error("that cannot be the PIN")]
    PinInvalid,
    /// The PIN is locked, has expired or was never set.
    #[error("the PIN is locked")]
    PinLocked,
    /// The token refuses what authorizes the use of the key.
    #[error("the token refuses this use of the key")]
    Refused,
    /// The token refuses any authorization for some time, because of too many wrong ones.
    #[error("the token is locked for some time")]
    LockedOut,
    /// It was given up before it began, or on the token itself.
    #[error("it was canceled")]
    Canceled,
    /// The token cannot do that: the algorithm, its parameters, the size.
    #[error("the token does not support it")]
    Unsupported,
    /// The key may not do that.
    #[error("the key is not meant for it")]
    UsageRefused,
    /// The key may not leave the token.
    #[error("the key cannot leave the token")]
    Unextractable,
    /// The ciphertext, the encrypted key, the point or the certificate is wrong, or data are too short or too long.
    #[error("the data are not what they should be")]
    BadData,
    /// The token takes no changes.
    #[error("the token is read-only")]
    ReadOnly,
    /// The token has no room.
    #[error("the token is full")]
    Full,
    /// Too much waits, or the token is busy with others.
    #[error("the token is busy")]
    Busy,
    /// The token, its module or the way to it failed.
    #[error("the token failed")]
    Failed,
    /// The token or its module answered something that cannot be.
    #[error("the token answered nonsense")]
    Nonsense,
    /// A key belongs to another TPM, or to this one before it was cleared.
    #[error("the key was made for another token")]
    Foreign,
    /// The request itself cannot be right.
    #[error("the request cannot be carried out")]
    BadRequest,
}

impl Operation {
    /// How long it may take. A worker that takes longer hangs, and is to be killed. A user who enters a PIN at the reader has
    /// two minutes.
    pub fn time_limit(&self) -> Duration {
        let seconds = match self {
            Self::Generate(_) => 180,
            Self::Login { pin: None } => 120,
            Self::ListKeys { .. } | Self::ListCertificates(_) => 60,
            _ => 20,
        };
        Duration::from_secs(seconds)
    }

    /// Whether all lengths are within their bounds.
    pub(crate) fn is_bounded(&self) -> bool {
        let used = |used: &KeyUse| used.key.0.len() <= MAX_KEY_REF && auth(used.auth.as_ref());
        let new = |new: &NewKey| new.label.len() <= MAX_LABEL && auth(new.auth.as_ref());
        match self {
            Self::ListKeys { .. } | Self::Logout => true,
            Self::ListCertificates(key) | Self::RemoveCertificate(key) | Self::ReadData(key) => {
                key.0.len() <= MAX_KEY_REF
            }
            Self::Login { pin } => auth(pin.as_ref()),
            Self::Generate(key) => new(key),
            Self::Delete(key) => used(key),
            Self::Sign { key, scheme, data } => {
                used(key)
                    && match scheme {
                        SignatureScheme::RsaPkcs1(hash) | SignatureScheme::RsaPss { hash, .. } => {
                            data.0.len() == hash.length()
                        }
                        SignatureScheme::Ecdsa => (20..=64).contains(&data.0.len()),
                        SignatureScheme::Hmac(_) => data.0.len() <= MAX_DATA,
                    }
            }
            Self::VerifyMac { key, data, mac, .. } => {
                used(key) && data.0.len() <= MAX_DATA && mac.0.len() <= 64
            }
            Self::Encrypt { key, cipher, data } | Self::Decrypt { key, cipher, data } => {
                let parameters = match cipher {
                    Cipher::RsaOaep { label, .. } => label.0.len() <= 1024,
                    Cipher::AesCbc { .. } => true,
                    Cipher::AesCtr { bits, .. } => (1..=128).contains(bits),
                    Cipher::AesGcm {
                        iv,
                        additional_data,
                        tag_bits,
                    } => {
                        (1..=256).contains(&iv.0.len())
                            && additional_data.0.len() <= 4096
                            && [32, 64, 96, 104, 112, 120, 128].contains(tag_bits)
                    }
                };
                used(key) && parameters && data.0.len() <= MAX_DATA
            }
            Self::Derive { key, public, into } => {
                used(key) && public.0.len() <= 133 && into.as_ref().is_none_or(new)
            }
            Self::Wrap { with, scheme, key } => {
                used(with) && wrap(scheme) && key.0.len() <= MAX_KEY_REF
            }
            Self::Unwrap {
                with,
                scheme,
                data,
                key,
            } => used(with) && wrap(scheme) && data.0.len() <= 4096 && new(key),
            Self::InstallCertificate { key, certificate } => {
                key.0.len() <= MAX_KEY_REF && certificate.0.len() <= MAX_CERTIFICATE
            }
            Self::Attest { key, challenge } => used(key) && challenge.0.len() <= 32,
            Self::WriteData { key, data } => {
                key.0.len() <= MAX_KEY_REF && data.0.len() <= MAX_DATA_OBJECT
            }
        }
    }
}

/// No token's PIN and no authValue is longer.
fn auth(auth: Option<&Secret>) -> bool {
    auth.is_none_or(|auth| auth.0.len() <= 255)
}

fn wrap(scheme: &WrapScheme) -> bool {
    match scheme {
        WrapScheme::AesKw => true,
        WrapScheme::RsaOaep { label, .. } => label.0.len() <= 1024,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use token_traits::Frame;

    use super::*;

    fn longest() -> Vec<Operation> {
        let key = KeyRef(vec![0xff; MAX_KEY_REF]);
        let used = KeyUse {
            key: key.clone(),
            auth: Some(Secret::new(vec![0xff; 255])),
        };
        let data = Bytes(vec![0xff; MAX_DATA]);
        vec![
            Operation::Encrypt {
                key: used.clone(),
                cipher: Cipher::AesGcm {
                    iv: Bytes(vec![0xff; 256]),
                    additional_data: Bytes(vec![0xff; 4096]),
                    tag_bits: 128,
                },
                data: data.clone(),
            },
            Operation::VerifyMac {
                key: used.clone(),
                hash: Hash::Sha512,
                data,
                mac: Bytes(vec![0xff; 64]),
            },
            Operation::InstallCertificate {
                key,
                certificate: Bytes(vec![0xff; MAX_CERTIFICATE]),
            },
        ]
    }

    #[test]
    fn what_is_within_its_bounds_fits_into_a_frame() {
        for operation in longest() {
            assert!(operation.is_bounded());
            let request = KeyRequest {
                id: u64::MAX,
                body: KeyRequestBody::Token(TokenId(u64::MAX), operation),
            };
            let frame = Frame::encode(&request).expect("a frame");
            assert_eq!(frame.decode(), Ok(request));
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        for mut operation in longest() {
            match &mut operation {
                Operation::Encrypt { data, .. } | Operation::VerifyMac { data, .. } => {
                    data.0.push(0)
                }
                Operation::InstallCertificate { certificate, .. } => certificate.0.push(0),
                other => panic!("{other:?}"),
            }
            assert!(!operation.is_bounded());
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let pin = Secret::new(b"246810".to_vec());
        let request = KeyRequestBody::Token(TokenId(1), Operation::Login { pin: Some(pin) });
        let shown = format!("{request:?}");
        assert!(shown.contains("a secret") && !shown.contains("50") && !shown.contains("246"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [&[token_traits::wire::WIRE_VERSION][..], &payload].concat();
            let frame = Frame::from_bytes(bytes);
            if let Ok(KeyRequest { body: KeyRequestBody::Token(_, operation), .. }) = frame.decode() {
                let _ = operation.is_bounded();
            }
            let _ = frame.decode::<KeyMessage>();
        }
    }
}
