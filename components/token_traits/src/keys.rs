/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys that live in tokens: what they are, and what a document asks the broker about them.
//!
//! A document sees the keys and tokens that its origin has been granted, and no others: what it may not use looks the same
//! as what is not there. Private and secret operations are the token's; what takes only a public key stays in the engine.
//!
//! Who hashes: the document's engine, except for HMAC. Who pads: the token, or its worker where the token has only the raw
//! operation.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::Origin;

/// The most data that one operation takes, in bytes, so that request and answer fit into frames.
pub const MAX_DATA: usize = 64 * 1024;

/// The longest certificate that is read or installed, in bytes.
pub const MAX_CERTIFICATE: usize = 16 * 1024;

/// The longest name of a key, in bytes.
pub const MAX_LABEL: usize = 255;

/// The longest public key, in bytes: SubjectPublicKeyInfo of RSA with 16,384 bits.
pub const MAX_PUBLIC_KEY: usize = 4096;

/// Most issuers in a query.
pub const MAX_ISSUERS: usize = 12_000;

/// Most origins that a key is for.
pub const MAX_ORIGINS: usize = 16;

/// Bytes of which the log tells only how many there are.
#[derive(Clone, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Bytes(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// A key, as all documents of one origin under one top-level origin name it, and nobody else. It stays the same as long as the
/// key does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct KeyId(pub [u8; 16]);

/// A token, as all documents of one origin under one top-level origin name it, and nobody else: an HMAC of what the token
/// says of itself, so that two origins cannot tell that they see the same one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct KeyTokenId(pub [u8; 16]);

/// Kinds of keys.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum KeyAlgorithm {
    /// RSA, with 65537 as the public exponent where it is generated.
    Rsa {
        /// The modulus' length.
        bits: u16,
    },
    /// On an elliptic curve: ECDSA, ECDH.
    Ec(Curve),
    /// AES.
    Aes {
        /// 128, 192 or 256; 0 for a key that is to be unwrapped and has the length that it has.
        bits: u16,
    },
    /// HMAC, or nothing particular.
    Secret {
        /// Its length, a multiple of 8; 0 as with AES.
        bits: u16,
    },
}

/// Curves.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Curve {
    /// NIST P-256, secp256r1.
    P256,
    /// NIST P-384, secp384r1.
    P384,
    /// NIST P-521, secp521r1.
    P521,
}

impl Curve {
    /// How many bytes a coordinate takes, and each half of a signature.
    pub fn length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

/// Hash functions.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Hash {
    /// A digest's length in bytes.
    pub fn length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// How to sign.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum SignatureScheme {
    /// RSASSA-PKCS1-v1_5 (RFC 8017, 8.2).
    RsaPkcs1(Hash),
    /// RSASSA-PSS with MGF1 of the same hash (RFC 8017, 8.1).
    RsaPss {
        /// The hash.
        hash: Hash,
        /// The salt's length in bytes.
        salt_length: u16,
    },
    /// ECDSA. The signature is `r` and `s`, each as long as a coordinate.
    Ecdsa,
    /// HMAC.
    Hmac(Hash),
}

/// How to encrypt.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Cipher {
    /// RSAES-OAEP with MGF1 of the same hash (RFC 8017, 7.1). With a private key, so for decryption only.
    RsaOaep {
        /// The hash.
        hash: Hash,
        /// The label; empty for none.
        label: Bytes,
    },
    /// AES-CBC with the padding of PKCS #7.
    AesCbc {
        /// The initialization vector.
        iv: [u8; 16],
    },
    /// AES-CTR.
    AesCtr {
        /// The first counter block.
        counter: [u8; 16],
        /// How many of its last bits count, 1 to 128.
        bits: u8,
    },
    /// AES-GCM. The tag follows the ciphertext.
    AesGcm {
        /// The initialization vector.
        iv: Bytes,
        /// What is authenticated and not encrypted.
        additional_data: Bytes,
        /// The tag's length in bits.
        tag_bits: u8,
    },
}

/// How to encrypt a key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum WrapScheme {
    /// AES key wrap (RFC 3394).
    AesKw,
    /// RSAES-OAEP, for unwrapping only.
    RsaOaep {
        /// The hash.
        hash: Hash,
        /// The label; empty for none.
        label: Bytes,
    },
}

/// A set of things that a key may do in its token.
#[derive(Clone, Copy, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usages(u8);

impl Usages {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Sign, make a MAC.
    pub const SIGN: Self = Self(1);
    /// Check a MAC.
    pub const VERIFY: Self = Self(1 << 1);
    /// Encrypt data.
    pub const ENCRYPT: Self = Self(1 << 2);
    /// Decrypt data.
    pub const DECRYPT: Self = Self(1 << 3);
    /// Agree on a secret.
    pub const DERIVE: Self = Self(1 << 4);
    /// Encrypt keys.
    pub const WRAP: Self = Self(1 << 5);
    /// Decrypt keys.
    pub const UNWRAP: Self = Self(1 << 6);

    /// All of them, by the names that their operations have.
    pub const ALL: [(&'static str, Self); 7] = [
        ("sign", Self::SIGN),
        ("verify", Self::VERIFY),
        ("encrypt", Self::ENCRYPT),
        ("decrypt", Self::DECRYPT),
        ("derive", Self::DERIVE),
        ("wrap", Self::WRAP),
        ("unwrap", Self::UNWRAP),
    ];

    /// Those of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// These if so, else nothing.
    #[must_use]
    pub const fn only_if(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for Usages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = Self::ALL
            .into_iter()
            .filter(|(_, usage)| self.contains(*usage));
        formatter
            .debug_set()
            .entries(held.map(|(name, _)| name))
            .finish()
    }
}

/// `KeyProtection`: where a key is kept. Ordered from the weakest.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum Protection {
    /// In a program's memory and files.
    #[default]
    Software,
    /// In a store of the operating system, apart from programs.
    Isolated,
    /// In hardware that resists being opened.
    Hardware,
}

/// `KeyUserVerification`: when the token asks who uses a key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum UserVerification {
    /// Never.
    None,
    /// Once, until the token or the browser forgets it.
    Session,
    /// For each use.
    EachUse,
}

/// `KeyProvenance`: where a key comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Provenance {
    /// The token does not say.
    Unknown,
    /// It has been outside of the token.
    Imported,
    /// The token made it, and it was never able to leave in the clear.
    Generated,
}

/// What a document asks about keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeysRequest {
    /// `CryptoKeys.getKeyByName()` (Key Discovery, 4.1.1). Answered by [`KeysReply::Keys`] with at most one.
    GetKeyByName(String),
    /// `CryptoKeys.getKeys()`: those that are granted already. Answered by [`KeysReply::Keys`].
    GetKeys(Box<KeyQuery>),
    /// `CryptoKeys.requestKey()`: the user chooses. Answered by [`KeysReply::Key`].
    RequestKey(Box<KeyQuery>),
    /// `CryptoKeys.getTokens()`. Answered by [`KeysReply::Tokens`].
    GetTokens(TokenQuery),
    /// `CryptoKeys.requestToken()`. Answered by [`KeysReply::Token`].
    RequestToken(TokenQuery),
    /// `CryptoKeys.forget()` with a key. Answered by [`KeysReply::Done`].
    ForgetKey(KeyId),
    /// `CryptoKeys.forget()` with a token. Answered by [`KeysReply::Done`].
    ForgetToken(KeyTokenId),
    /// A listener for the events of `CryptoKeys` was attached. Answered by [`KeysReply::Done`]. From then on
    /// [`crate::port::PortMessage::Token`] tells of granted tokens that come and go.
    WatchTokens,
    /// `CryptoToken.generateKey()`, and `generateKey()` of its `subtle`. Answered by [`KeysReply::Key`].
    Generate {
        /// Where.
        token: KeyTokenId,
        /// What.
        key: NewKey,
    },
    /// `CryptoToken.deleteKey()`. Answered by [`KeysReply::Done`].
    Delete(KeyId),
    /// `CryptoToken.installCertificate()`. Answered by [`KeysReply::Done`].
    InstallCertificate {
        /// The key that it is for.
        key: KeyId,
        /// In DER, at most [`MAX_CERTIFICATE`] bytes.
        certificate: Bytes,
    },
    /// `CryptoToken.removeCertificate()`. Answered by [`KeysReply::Done`].
    RemoveCertificate(KeyId),
    /// `TokenCryptoKey.getCertificateChain()`. Answered by [`KeysReply::Certificates`].
    GetCertificates(KeyId),
    /// `CryptoToken.attestKey()`. Answered by [`KeysReply::Attestation`].
    Attest {
        /// The key.
        key: KeyId,
        /// What the statement is to contain: a hash of what the page gave, 32 bytes.
        challenge: [u8; 32],
    },
    /// Use a key. Answered as [`KeyOperation`] says.
    Use {
        /// The key.
        key: KeyId,
        /// What for.
        operation: KeyOperation,
    },
}

/// What a key is used for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeyOperation {
    /// Sign a digest, or make a MAC of a message. Answered by [`KeysReply::Bytes`].
    Sign {
        /// How.
        scheme: SignatureScheme,
        /// The digest, as long as the hash makes it; for HMAC the message.
        data: Bytes,
    },
    /// Check a MAC. Answered by [`KeysReply::IsGenuine`].
    VerifyMac {
        /// The hash.
        hash: Hash,
        /// The message.
        data: Bytes,
        /// Its MAC.
        mac: Bytes,
    },
    /// Encrypt with a secret key. Answered by [`KeysReply::Bytes`].
    Encrypt {
        /// How.
        cipher: Cipher,
        /// The text.
        data: Bytes,
    },
    /// Decrypt. Answered by [`KeysReply::Bytes`].
    Decrypt {
        /// How.
        cipher: Cipher,
        /// The ciphertext.
        data: Bytes,
    },
    /// Agree on a secret (ECDH). Answered by [`KeysReply::Bytes`]; by [`KeysReply::Key`] if it is to stay in the token.
    Derive {
        /// The other side's public point, uncompressed (SEC 1, 2.3.3).
        public: Bytes,
        /// The key that the secret becomes in the token; `None` hands it out.
        into: Option<NewKey>,
    },
    /// Encrypt a secret key of the same token, which was made to be wrappable. Answered by [`KeysReply::Bytes`].
    Wrap {
        /// How.
        scheme: WrapScheme,
        /// The key that leaves the token encrypted.
        key: KeyId,
    },
    /// Decrypt a secret key into the token. Answered by [`KeysReply::Key`].
    Unwrap {
        /// How.
        scheme: WrapScheme,
        /// The encrypted key.
        data: Bytes,
        /// What it becomes.
        key: NewKey,
    },
}

/// A key to be made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NewKey {
    /// Its kind and size.
    pub algorithm: KeyAlgorithm,
    /// What it may do.
    pub usages: Usages,
    /// Its name, at most [`MAX_LABEL`] bytes; `None` for a key that nobody can discover.
    pub name: Option<String>,
    /// Who may discover and use it beside the origin that makes it, at most [`MAX_ORIGINS`].
    pub origins: Vec<Origin>,
    /// When the token is to ask who uses it.
    pub user_verification: UserVerification,
    /// Whether another key of the token may encrypt it. For secret keys only.
    pub is_wrappable: bool,
    /// Whether it stays when the document has gone.
    pub is_persistent: bool,
}

/// Which keys: those for which everything holds that is given (`KeyQuery`).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyQuery {
    /// Its name is this one.
    pub name: Option<String>,
    /// Its identifier in the token (`CKA_ID`) is this one.
    pub identifier: Option<Bytes>,
    /// Its public half (SubjectPublicKeyInfo) is this one, at most [`MAX_PUBLIC_KEY`] bytes.
    pub public_key: Option<Bytes>,
    /// It can be used with one of these; empty for any.
    pub algorithms: Vec<AlgorithmQuery>,
    /// It is of that kind.
    pub kind: Option<KeyKind>,
    /// It may do all of this.
    pub usages: Usages,
    /// It is in such a token.
    pub token: Option<TokenSelector>,
    /// It is kept at least that well.
    pub minimum_protection: Protection,
    /// The token asks for its user then.
    pub user_verification: Option<UserVerification>,
    /// It comes from there.
    pub provenance: Option<Provenance>,
    /// Whether the token can say that it is one of its own.
    pub attestable: Option<bool>,
    /// One of its certificates was issued by one of these, at most [`MAX_ISSUERS`]: the first four bytes of the SHA-256 of
    /// the issuer's name in DER. So few that ten thousand fit into a frame; who asks compares the names in full.
    pub issuers: Vec<[u8; 4]>,
    /// Its certificate allows all of these: bits as in RFC 5280, 4.2.1.3, `digitalSignature` being 1.
    pub certificate_key_usages: u16,
    /// Its certificate allows all of these purposes, dotted object identifiers.
    pub extended_key_usages: Vec<String>,
    /// Whether its certificate is within its dates.
    pub valid_certificate: Option<bool>,
}

/// An algorithm that a key is to be good for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum AlgorithmQuery {
    /// RSA.
    Rsa {
        /// With this length, if it matters.
        bits: Option<u16>,
    },
    /// An elliptic curve.
    Ec {
        /// This one, if it matters.
        curve: Option<Curve>,
    },
    /// AES.
    Aes {
        /// With this length, if it matters.
        bits: Option<u16>,
    },
    /// HMAC.
    Secret,
}

impl AlgorithmQuery {
    /// Whether a key of this kind is good for it.
    pub fn fits(self, algorithm: KeyAlgorithm) -> bool {
        match (self, algorithm) {
            (Self::Rsa { bits }, KeyAlgorithm::Rsa { bits: has })
            | (Self::Aes { bits }, KeyAlgorithm::Aes { bits: has }) => {
                bits.is_none_or(|bits| bits == has)
            }
            (Self::Ec { curve }, KeyAlgorithm::Ec(has)) => curve.is_none_or(|curve| curve == has),
            (Self::Secret, KeyAlgorithm::Secret { .. }) => true,
            _ => false,
        }
    }
}

/// Whether a key has a public half.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum KeyKind {
    /// It has.
    Private,
    /// It has none.
    Secret,
}

/// Names tokens in a query for keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum TokenSelector {
    /// This one.
    Is(KeyTokenId),
    /// Such ones.
    Like(TokenQuery),
}

/// Which tokens: those for which everything holds that is given (`TokenQuery`).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenQuery {
    /// Its owner calls it so.
    pub label: Option<String>,
    /// Who made it.
    pub manufacturer: Option<String>,
    /// What it is.
    pub model: Option<String>,
    /// The reader that it is in.
    pub reader: Option<String>,
    /// It keeps keys at least that well.
    pub minimum_protection: Protection,
    /// Whether keys can be made in it.
    pub provisionable: Option<bool>,
}

/// A successful answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeysReply {
    /// It is done and there is nothing to tell.
    Done,
    /// Keys.
    Keys(Vec<KeyInfo>),
    /// A key.
    Key(Box<KeyInfo>),
    /// Tokens.
    Tokens(Vec<TokenInfo>),
    /// A token.
    Token(TokenInfo),
    /// A signature, a MAC, a text, a ciphertext or a secret.
    Bytes(Bytes),
    /// Whether the MAC is the message's.
    IsGenuine(bool),
    /// Certificates in DER, each the issuer of the one before.
    Certificates(Vec<Bytes>),
    /// What the token says of a key.
    Attestation {
        /// The format of the statement: `tpm`.
        format: String,
        /// The statement, CBOR.
        statement: Bytes,
        /// The certificates of what signed it, in DER, leaf first.
        chain: Vec<Bytes>,
    },
}

/// A key, as its origin sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyInfo {
    /// Names it in requests.
    pub id: KeyId,
    /// Its token.
    pub token: TokenInfo,
    /// Its name, at most [`MAX_LABEL`] bytes.
    pub name: String,
    /// Its identifier in the token, at most 255 bytes; `None` where it has none, or shares it with another key of the same
    /// name.
    pub identifier: Option<Bytes>,
    /// Its kind and size.
    pub algorithm: KeyAlgorithm,
    /// What it may do.
    pub usages: Usages,
    /// The public half (SubjectPublicKeyInfo); `None` for secret keys.
    pub public_key: Option<Bytes>,
    /// How it is kept.
    pub protection: Protection,
    /// When the token asks who uses it.
    pub user_verification: UserVerification,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Whether another key of the token may encrypt it.
    pub is_wrappable: bool,
    /// Whether this origin made it, so that it may delete it and change its certificate.
    pub is_own: bool,
    /// Who may use it, as far as this origin may know: all of them if it made the key, else itself.
    pub origins: Vec<Origin>,
}

/// A token, as an origin sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenInfo {
    /// Names it in requests.
    pub id: KeyTokenId,
    /// What its owner calls it, printable, at most 64 characters.
    pub label: String,
    /// How it keeps keys.
    pub protection: Protection,
    /// Whether it is there.
    pub present: bool,
    /// Whether keys can be made in it.
    pub provisionable: bool,
    /// What it can do.
    pub features: Vec<TokenFeature>,
}

/// Something that a token can do by itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum TokenFeature {
    /// Generate such keys.
    Generate(KeyAlgorithm),
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs1,
    /// RSASSA-PSS.
    RsaPss,
    /// RSA-OAEP decryption.
    RsaOaep,
    /// ECDSA.
    Ecdsa,
    /// ECDH.
    Ecdh,
    /// AES-CBC.
    AesCbc,
    /// AES-CTR.
    AesCtr,
    /// AES-GCM.
    AesGcm,
    /// AES key wrap of its own keys.
    AesKw,
    /// HMAC.
    Hmac(Hash),
    /// Say that a key is one of its own.
    Attest,
    /// Keep data with a key.
    Data,
    /// Keep certificates.
    Certificates,
}
