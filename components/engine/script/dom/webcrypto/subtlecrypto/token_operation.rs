/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys that live in tokens. The token does what takes the private or secret key, and generates keys; the engine hashes, does
//! what takes the public key, and checks what the specification has it check.
//!
//! The functions that `SubtleCrypto` calls return whether the key lives in a token, so that the rest of the algorithm is
//! not for it.

use std::ptr;

use js::context::JSContext;
use js::jsapi::JSObject;
use js::typedarray::{ArrayBufferU8, HeapArrayBuffer};
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use token_traits::Origin;
use token_traits::keys::{
    AlgorithmQuery, Bytes, Cipher, Curve, Hash, KeyAlgorithm as TokenKeyAlgorithm, KeyInfo,
    KeyOperation, KeyTokenId, KeysReply, KeysRequest, MAX_DATA, NewKey, SignatureScheme,
    TokenFeature, Usages, UserVerification, WrapScheme,
};

use super::*;
use crate::conversions::Convert;
use crate::dom::bindings::codegen::Bindings::TokenKeysBinding::TokenKeyOptions;
use crate::dom::bindings::inheritance::Castable;
use crate::dom::cryptokey::{Handle, KeyUsageSliceHelper};
use crate::dom::cryptotoken::CryptoToken;
use crate::dom::tokencryptokey::{TokenCryptoKey, new_key};
use crate::dom::tokenkeys::answer::{Nothing, Settle, ask, unexpected};
use crate::dom::tokenkeys::tokenhandle::TokenHandle;

impl SubtleCrypto {
    /// One that makes keys in a token.
    pub(crate) fn new_for_token(
        cx: &mut JSContext,
        global: &GlobalScope,
        token: &CryptoToken,
    ) -> DomRoot<SubtleCrypto> {
        let subtle = SubtleCrypto::new(cx, global);
        subtle.token.set(Some(token));
        subtle
    }

    /// The token that it makes keys in.
    pub(super) fn token(&self) -> Option<DomRoot<CryptoToken>> {
        self.token.get()
    }

    fn use_token_key(
        &self,
        cx: &mut JSContext,
        promise: &RootedPromise,
        handle: &TokenHandle,
        operation: Fallible<KeyOperation>,
        settle: Settle,
    ) {
        match operation {
            Ok(operation) => ask(
                cx,
                &self.global(),
                promise,
                KeysRequest::Use {
                    key: handle.info.id,
                    operation,
                },
                Nothing::Error,
                settle,
            ),
            Err(error) => self.reject_promise_with_error(promise, error),
        }
    }
}

/// Whether a method that makes a key from another one is for this file: the other one lives in a token, or the key that is
/// made is to.
pub(super) fn is_asked(subtle: &SubtleCrypto, key: &CryptoKey) -> bool {
    key.token_handle().is_some() || subtle.token.get().is_some()
}

/// The handle of the key that another one is made from.
fn source_handle<'a>(
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    key: &'a CryptoKey,
) -> Option<&'a TokenHandle> {
    let handle = key.token_handle();
    if handle.is_none() {
        let error = not_supported("Keys come into a token only by one of its keys.");
        subtle.reject_promise_with_error(promise, error);
    }
    handle
}

fn not_supported(message: &str) -> Error {
    Error::NotSupported(Some(message.to_owned()))
}

fn operation_error(message: &str) -> Error {
    Error::Operation(Some(message.to_owned()))
}

fn invalid_access(message: &str) -> Error {
    Error::InvalidAccess(Some(message.to_owned()))
}

/// An `ArrayBuffer` with these bytes.
pub(crate) fn array_buffer(
    cx: &mut JSContext,
    bytes: &[u8],
) -> Fallible<RootedTraceableBox<HeapArrayBuffer>> {
    rooted!(&in(cx) let mut array = ptr::null_mut::<JSObject>());
    create_buffer_source::<ArrayBufferU8>(cx, bytes, array.handle_mut())
        .map_err(|()| Error::JSFailed)
}

/// Resolves with the bytes of a reply.
fn resolve_with_bytes() -> Settle {
    Box::new(|cx, _, promise, reply| match reply {
        KeysReply::Bytes(bytes) => {
            let bytes = Zeroizing::new(bytes.0);
            let array = array_buffer(cx, &bytes)?;
            promise.resolve_native(cx, &array);
            Ok(())
        },
        _ => Err(unexpected()),
    })
}

/// Data for a token, if it is not too much for it.
fn data_for_token(data: &[u8]) -> Fallible<Bytes> {
    if data.len() > MAX_DATA {
        return Err(Error::QuotaExceeded {
            quota: None,
            requested: None,
        });
    }
    Ok(Bytes::from(data))
}

fn token_hash(hash: &DigestAlgorithm) -> Fallible<Hash> {
    match hash.name() {
        CryptoAlgorithm::Sha1 => Ok(Hash::Sha1),
        CryptoAlgorithm::Sha256 => Ok(Hash::Sha256),
        CryptoAlgorithm::Sha384 => Ok(Hash::Sha384),
        CryptoAlgorithm::Sha512 => Ok(Hash::Sha512),
        _ => Err(not_supported("Tokens do not know this hash function.")),
    }
}

/// The hash function that belongs to a key.
fn hash_of(key: &CryptoKey) -> Fallible<&DigestAlgorithm> {
    match key.algorithm() {
        KeyAlgorithmAndDerivatives::RsaHashedKeyAlgorithm(algorithm) => Ok(&algorithm.hash),
        KeyAlgorithmAndDerivatives::HmacKeyAlgorithm(algorithm) => Ok(&algorithm.hash),
        _ => Err(operation_error("The key has no hash function.")),
    }
}

/// The sign operation with a key that lives in a token.
pub(super) fn sign(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: &SignAlgorithm,
    key: &CryptoKey,
    message: &[u8],
) -> bool {
    let Some(handle) = key.token_handle() else {
        return false;
    };
    let operation = (|| {
        let (scheme, data) = match algorithm {
            SignAlgorithm::RsassaPkcs1V1_5(_) => {
                let hash = hash_of(key)?;
                let scheme = SignatureScheme::RsaPkcs1(token_hash(hash)?);
                (scheme, Bytes(hash.digest(message)?))
            },
            SignAlgorithm::RsaPss(parameters) => {
                let hash = hash_of(key)?;
                let scheme = SignatureScheme::RsaPss {
                    hash: token_hash(hash)?,
                    salt_length: u16::try_from(parameters.salt_length)
                        .map_err(|_| operation_error("The salt is too long."))?,
                };
                (scheme, Bytes(hash.digest(message)?))
            },
            SignAlgorithm::Ecdsa(parameters) => {
                token_hash(&parameters.hash)?;
                let digest = parameters.hash.digest(message)?;
                (SignatureScheme::Ecdsa, Bytes(digest))
            },
            SignAlgorithm::Hmac(_) => {
                let scheme = SignatureScheme::Hmac(token_hash(hash_of(key)?)?);
                (scheme, data_for_token(message)?)
            },
            _ => return Err(not_supported("Tokens do not sign so.")),
        };
        Ok(KeyOperation::Sign { scheme, data })
    })();
    subtle.use_token_key(cx, promise, handle, operation, resolve_with_bytes());
    true
}

/// The verify operation with a key that lives in a token.
pub(super) fn verify(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: &VerifyAlgorithm,
    key: &CryptoKey,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let Some(handle) = key.token_handle() else {
        return false;
    };
    let operation = (|| {
        let VerifyAlgorithm::Hmac(_) = algorithm else {
            return Err(invalid_access("The key is not a public key."));
        };
        let hash = token_hash(hash_of(key)?)?;
        // No MAC has another length.
        let mac = if signature.len() == hash.length() {
            Bytes::from(signature)
        } else {
            Bytes::default()
        };
        Ok(KeyOperation::VerifyMac {
            hash,
            data: data_for_token(message)?,
            mac,
        })
    })();
    if let Ok(KeyOperation::VerifyMac { mac, .. }) = &operation &&
        mac.0.is_empty()
    {
        subtle.resolve_promise_with_bool(promise, false);
        return true;
    }
    let settle: Settle = Box::new(|cx, _, promise, reply| match reply {
        KeysReply::IsGenuine(is_genuine) => {
            promise.resolve_native(cx, &is_genuine);
            Ok(())
        },
        _ => Err(unexpected()),
    });
    subtle.use_token_key(cx, promise, handle, operation, settle);
    true
}

fn oaep(key: &CryptoKey, parameters: &RsaOaepParams) -> Fallible<Cipher> {
    Ok(Cipher::RsaOaep {
        hash: token_hash(hash_of(key)?)?,
        label: Bytes(parameters.label.clone().unwrap_or_default()),
    })
}

fn ctr(parameters: &AesCtrParams) -> Fallible<Cipher> {
    let Ok(counter) = <[u8; 16]>::try_from(&*parameters.counter) else {
        return Err(operation_error("The counter block must have 16 bytes."));
    };
    if !(1..=128).contains(&parameters.length) {
        return Err(operation_error("The counter must have 1 to 128 bits."));
    }
    Ok(Cipher::AesCtr {
        counter,
        bits: parameters.length,
    })
}

fn cbc(parameters: &AesCbcParams) -> Fallible<Cipher> {
    match <[u8; 16]>::try_from(&*parameters.iv) {
        Ok(iv) => Ok(Cipher::AesCbc { iv }),
        Err(_) => Err(operation_error(
            "The initialization vector must have 16 bytes.",
        )),
    }
}

fn gcm(parameters: &AesGcmParams) -> Fallible<Cipher> {
    let tag_bits = parameters.tag_length.unwrap_or(128);
    if !matches!(tag_bits, 32 | 64 | 96 | 104 | 112 | 120 | 128) {
        return Err(operation_error("There is no such length of a tag."));
    }
    Ok(Cipher::AesGcm {
        iv: data_for_token(&parameters.iv)?,
        additional_data: data_for_token(parameters.additional_data.as_deref().unwrap_or_default())?,
        tag_bits,
    })
}

/// The encrypt operation with a key that lives in a token. With a public key it is the engine's.
pub(super) fn encrypt(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: &EncryptAlgorithm,
    key: &CryptoKey,
    plaintext: &[u8],
) -> bool {
    let Some(handle) = key.token_handle() else {
        return false;
    };
    let operation = (|| {
        let cipher = match algorithm {
            EncryptAlgorithm::AesCtr(parameters) => ctr(parameters)?,
            EncryptAlgorithm::AesCbc(parameters) => cbc(parameters)?,
            EncryptAlgorithm::AesGcm(parameters) => gcm(parameters)?,
            EncryptAlgorithm::RsaOaep(_) => {
                return Err(invalid_access("The key is not a public key."));
            },
            _ => return Err(not_supported("Tokens do not encrypt so.")),
        };
        Ok(KeyOperation::Encrypt {
            cipher,
            data: data_for_token(plaintext)?,
        })
    })();
    subtle.use_token_key(cx, promise, handle, operation, resolve_with_bytes());
    true
}

fn decryption(
    algorithm: &DecryptAlgorithm,
    key: &CryptoKey,
    ciphertext: &[u8],
) -> Fallible<KeyOperation> {
    let cipher = match algorithm {
        DecryptAlgorithm::RsaOaep(parameters) => oaep(key, parameters)?,
        DecryptAlgorithm::AesCtr(parameters) => ctr(parameters)?,
        DecryptAlgorithm::AesCbc(parameters) => cbc(parameters)?,
        DecryptAlgorithm::AesGcm(parameters) => gcm(parameters)?,
        _ => return Err(not_supported("Tokens do not decrypt so.")),
    };
    Ok(KeyOperation::Decrypt {
        cipher,
        data: data_for_token(ciphertext)?,
    })
}

/// The decrypt operation with a key that lives in a token.
pub(super) fn decrypt(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: &DecryptAlgorithm,
    key: &CryptoKey,
    ciphertext: &[u8],
) -> bool {
    let Some(handle) = key.token_handle() else {
        return false;
    };
    let operation = decryption(algorithm, key, ciphertext);
    subtle.use_token_key(cx, promise, handle, operation, resolve_with_bytes());
    true
}

/// The other side's public key, as a token takes it, once it has been checked as
/// <https://w3c.github.io/webcrypto/#ecdh-operations-derive-bits> says.
fn public_point(
    algorithm: &DeriveBitsAlgorithm,
    key: &CryptoKey,
    length: Option<u32>,
) -> Fallible<Bytes> {
    let DeriveBitsAlgorithm::Ecdh(parameters) = algorithm else {
        return Err(not_supported("Tokens do not derive so."));
    };
    // Step 1. Let publicKey be the public member of normalizedAlgorithm.
    let public_key = parameters.public.root();

    // Step 2. If the [[type]] internal slot of publicKey is not "public", then throw an
    // InvalidAccessError.
    public_key.ensure_type(KeyType::Public)?;

    // Step 3. If the name attribute of the [[algorithm]] internal slot of publicKey is not equal to
    // the name member of normalizedAlgorithm, then throw an InvalidAccessError.
    if public_key.algorithm().name() != parameters.name {
        return Err(invalid_access("The public key is for another algorithm."));
    }

    // Step 4. Let maximumLength be the length in bits of the output of the field element to octet
    // string conversion.
    // Step 5. If length is not null and is greater than maximumLength, then throw an
    // OperationError.
    let maximum_length = ecdh_operation::maximum_length(&public_key)?;
    if length.is_some_and(|length| length > maximum_length) {
        return Err(operation_error("The curve does not give so many bits."));
    }

    // Step 6. If the [[type]] internal slot of key is not "private", then throw an
    // InvalidAccessError.
    key.ensure_type(KeyType::Private)?;

    // Step 7. If the name attribute of the [[algorithm]] internal slot of publicKey is not equal
    // to the name property of the [[algorithm]] internal slot of key, then throw an
    // InvalidAccessError.
    // Step 8. If the namedCurve attribute of the [[algorithm]] internal slot of publicKey is not
    // equal to the namedCurve property of the [[algorithm]] internal slot of key, then throw an
    // InvalidAccessError.
    match (public_key.algorithm(), key.algorithm()) {
        (
            KeyAlgorithmAndDerivatives::EcKeyAlgorithm(public),
            KeyAlgorithmAndDerivatives::EcKeyAlgorithm(private),
        ) if public.name == private.name && public.named_curve == private.named_curve => {},
        _ => return Err(invalid_access("The keys are on different curves.")),
    }

    let point = match public_key.handle() {
        Handle::P256PublicKey(public_key) => public_key.to_sec1_bytes(),
        Handle::P384PublicKey(public_key) => public_key.to_sec1_bytes(),
        Handle::P521PublicKey(public_key) => public_key.to_sec1_bytes(),
        _ => return Err(operation_error("The public key is on no curve.")),
    };
    Ok(Bytes(point.into_vec()))
}

/// Step 11 of <https://w3c.github.io/webcrypto/#ecdh-operations-derive-bits>
fn first_bits(reply: KeysReply, length: Option<u32>) -> Fallible<Zeroizing<Vec<u8>>> {
    let KeysReply::Bytes(secret) = reply else {
        return Err(unexpected());
    };
    let mut secret = Zeroizing::new(secret.0);
    let Some(length) = length else {
        return Ok(secret);
    };
    let byte_length = length.div_ceil(8) as usize;
    if secret.len() < byte_length {
        return Err(operation_error("The derived secret is too short."));
    }
    secret.truncate(byte_length);
    if length % 8 != 0 &&
        let Some(last_byte) = secret.last_mut()
    {
        *last_byte &= u8::MAX << (8 - length % 8);
    }
    Ok(secret)
}

/// The derive bits operation with a key that lives in a token.
pub(super) fn derive_bits(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: &DeriveBitsAlgorithm,
    key: &CryptoKey,
    length: Option<u32>,
) -> bool {
    let Some(handle) = key.token_handle() else {
        return false;
    };
    let operation = public_point(algorithm, key, length)
        .map(|public| KeyOperation::Derive { public, into: None });
    let settle: Settle = Box::new(move |cx, _, promise, reply| {
        let bits = first_bits(reply, length)?;
        let array = array_buffer(cx, &bits)?;
        promise.resolve_native(cx, &array);
        Ok(())
    });
    subtle.use_token_key(cx, promise, handle, operation, settle);
    true
}

/// The rest of a method that ends with importing a key.
pub(super) struct Import {
    pub(super) format: KeyFormat,
    pub(super) algorithm: ImportKeyAlgorithm,
    pub(super) extractable: bool,
    pub(super) usages: Vec<KeyUsage>,
}

impl Import {
    /// Imports the key into the engine and resolves with it.
    fn resolve(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &RootedPromise,
        key_data: &[u8],
    ) -> Fallible<()> {
        if self.format == KeyFormat::Jwk {
            JsonWebKey::parse(cx, key_data)?;
        }
        let result = self.algorithm.import_key(
            cx,
            global,
            self.format,
            key_data,
            self.extractable,
            self.usages.clone(),
        )?;
        // If the [[type]] internal slot of result is "secret" or "private" and usages is empty, then throw a SyntaxError.
        if result.Type() != KeyType::Public && self.usages.is_empty() {
            return Err(Error::Syntax(Some("Key usages is empty".into())));
        }
        promise.resolve_native(cx, &result);
        Ok(())
    }

    /// What it becomes in a token. The length in bits is 0 where only the token will know it.
    fn into_token(&self, bits: u32) -> Fallible<(Wanted, NewKey)> {
        if self.extractable {
            return Err(not_supported("Keys in tokens are never extractable."));
        }
        let wanted = Wanted::from_import(&self.algorithm)?;
        let name = wanted.name.unwrap_or(CryptoAlgorithm::Hmac);
        let bits = u16::try_from(bits).map_err(|_| not_supported("The key is too long."))?;
        let algorithm = match name {
            CryptoAlgorithm::Hmac => TokenKeyAlgorithm::Secret { bits },
            CryptoAlgorithm::AesCtr |
            CryptoAlgorithm::AesCbc |
            CryptoAlgorithm::AesGcm |
            CryptoAlgorithm::AesKw => TokenKeyAlgorithm::Aes { bits },
            _ => return Err(not_supported("Such a key cannot be brought into a token.")),
        };
        self.usages
            .ensure_only_contain_entries_from(allowed_usages(name))?;
        if self.usages.is_empty() {
            return Err(Error::Syntax(Some("Key usages is empty".into())));
        }
        let key = NewKey {
            algorithm,
            usages: token_usages(name, &self.usages),
            name: None,
            origins: Vec::new(),
            user_verification: UserVerification::Session,
            is_wrappable: false,
            is_persistent: false,
        };
        Ok((wanted, key))
    }
}

/// Resolves with the key that a token has made.
fn resolve_with_key(wanted: Wanted, usages: Vec<KeyUsage>, is_named: bool) -> Settle {
    Box::new(move |cx, global, promise, reply| {
        let KeysReply::Key(info) = reply else {
            return Err(unexpected());
        };
        let key = made_key(cx, global, *info, &wanted, &usages, is_named)?;
        promise.resolve_native(cx, &key);
        Ok(())
    })
}

/// The steps of `deriveKey()` from its step 15 on, with a base key that lives in a token. The derived key is the engine's,
/// unless it is to be in the token.
pub(super) fn derive_key(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: &DeriveBitsAlgorithm,
    base_key: &CryptoKey,
    length: Option<u32>,
    import: Import,
) {
    let Some(handle) = source_handle(subtle, promise, base_key) else {
        return;
    };
    let public = public_point(algorithm, base_key, length);
    let Some(token) = subtle.token() else {
        let operation = public.map(|public| KeyOperation::Derive { public, into: None });
        let settle: Settle = Box::new(move |cx, global, promise, reply| {
            let secret = first_bits(reply, length)?;
            import.resolve(cx, global, promise, &secret)
        });
        return subtle.use_token_key(cx, promise, handle, operation, settle);
    };
    let operation = (|| {
        let public = public?;
        ensure_in(&token, &handle.info)?;
        let (wanted, key) = import.into_token(length.unwrap_or(0))?;
        let into = Some(key);
        Ok((KeyOperation::Derive { public, into }, wanted))
    })();
    match operation {
        Ok((operation, wanted)) => {
            let settle = resolve_with_key(wanted, import.usages, false);
            subtle.use_token_key(cx, promise, handle, Ok(operation), settle);
        },
        Err(error) => subtle.reject_promise_with_error(promise, error),
    }
}

fn ensure_in(token: &CryptoToken, info: &KeyInfo) -> Fallible<()> {
    if token.token_id() == info.token.id {
        Ok(())
    } else {
        Err(invalid_access("The key is in another token."))
    }
}

/// The wrap key operation, if one of the keys lives in a token: the one that is to be wrapped never leaves it in the clear,
/// and only if it was made wrappable, wrapped by another key of the same token. Ciphers that encrypt data wrap the engine's
/// keys by [`encrypt`].
pub(super) fn wrap_key(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    format: KeyFormat,
    key: &CryptoKey,
    wrapping_key: &CryptoKey,
) -> bool {
    let is_key_wrap = wrapping_key.algorithm().name() == CryptoAlgorithm::AesKw;
    let operation = match (key.token_handle(), wrapping_key.token_handle()) {
        (None, Some(_)) if is_key_wrap => {
            let error = not_supported("The token wraps its own keys only, with this key.");
            subtle.reject_promise_with_error(promise, error);
            return true;
        },
        (None, _) => return false,
        (Some(wrapped), Some(wrapping))
            if wrapped.info.is_wrappable && wrapped.info.token.id == wrapping.info.token.id =>
        {
            if !is_key_wrap || !matches!(format, KeyFormat::Raw | KeyFormat::Raw_secret) {
                Err(not_supported(
                    "Keys leave a token in raw format, by AES-KW.",
                ))
            } else {
                Ok((
                    wrapping,
                    KeyOperation::Wrap {
                        scheme: WrapScheme::AesKw,
                        key: wrapped.info.id,
                    },
                ))
            }
        },
        _ => Err(invalid_access("The key cannot leave its token.")),
    };
    match operation {
        Ok((wrapping, operation)) => {
            subtle.use_token_key(cx, promise, wrapping, Ok(operation), resolve_with_bytes())
        },
        Err(error) => subtle.reject_promise_with_error(promise, error),
    }
    true
}

/// How a token unwraps a key into itself, and the length of the key in bits, or 0.
fn unwrapping(
    unwrapping_key: &CryptoKey,
    algorithm: Option<&DecryptAlgorithm>,
    key_algorithm: &ImportKeyAlgorithm,
    wrapped_key: &[u8],
) -> Fallible<(WrapScheme, u32)> {
    match algorithm {
        None => {
            // RFC 3394, 2.2.1: one block of 64 bits more.
            let length = wrapped_key.len().saturating_sub(8);
            if length == 0 || length % 8 != 0 {
                return Err(operation_error("The wrapped key is none."));
            }
            let bits = u32::try_from(length)
                .ok()
                .and_then(|length| length.checked_mul(8));
            let bits = bits.ok_or_else(|| operation_error("The wrapped key is too long."))?;
            Ok((WrapScheme::AesKw, bits))
        },
        Some(DecryptAlgorithm::RsaOaep(parameters)) => {
            let Cipher::RsaOaep { hash, label } = oaep(unwrapping_key, parameters)? else {
                return Err(unexpected());
            };
            let bits = match key_algorithm {
                ImportKeyAlgorithm::Hmac(parameters) => parameters.length.unwrap_or(0),
                _ => 0,
            };
            Ok((WrapScheme::RsaOaep { hash, label }, bits))
        },
        Some(_) => Err(not_supported(
            "Keys come into a token by RSA-OAEP or AES-KW.",
        )),
    }
}

/// The steps of `unwrapKey()` from its step 14 on, with an unwrapping key that lives in a token. `algorithm` is `None` for
/// AES-KW. The unwrapped key stays in the token where the token can do that and nothing asks for its bytes: it is raw, it
/// will not be extractable, and the unwrapping key is for unwrapping. Otherwise it becomes one of the engine's keys.
pub(super) fn unwrap_key(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: Option<&DecryptAlgorithm>,
    unwrapping_key: &CryptoKey,
    wrapped_key: &[u8],
    import: Import,
) {
    let Some(handle) = source_handle(subtle, promise, unwrapping_key) else {
        return;
    };
    let is_bound = subtle.token().is_some();
    let can_unwrap = matches!(algorithm, None | Some(DecryptAlgorithm::RsaOaep(_)));
    let is_raw = matches!(import.format, KeyFormat::Raw | KeyFormat::Raw_secret);
    if let Some(algorithm) = algorithm &&
        !is_bound &&
        (!can_unwrap || !is_raw || import.extractable)
    {
        let operation = decryption(algorithm, unwrapping_key, wrapped_key);
        let settle: Settle = Box::new(move |cx, global, promise, reply| match reply {
            KeysReply::Bytes(key_data) => {
                let key_data = Zeroizing::new(key_data.0);
                import.resolve(cx, global, promise, &key_data)
            },
            _ => Err(unexpected()),
        });
        return subtle.use_token_key(cx, promise, handle, operation, settle);
    }
    let operation = (|| {
        if let Some(token) = subtle.token() {
            ensure_in(&token, &handle.info)?;
        }
        if !is_raw {
            return Err(not_supported("Keys come into a token in raw format."));
        }
        let data = data_for_token(wrapped_key)?;
        let (scheme, bits) = unwrapping(unwrapping_key, algorithm, &import.algorithm, wrapped_key)?;
        let (wanted, key) = import.into_token(bits)?;
        Ok((KeyOperation::Unwrap { scheme, data, key }, wanted))
    })();
    match operation {
        Ok((operation, wanted)) => {
            let settle = resolve_with_key(wanted, import.usages, false);
            subtle.use_token_key(cx, promise, handle, Ok(operation), settle);
        },
        Err(error) => subtle.reject_promise_with_error(promise, error),
    }
}

/// `CryptoToken.unwrapKey()`: brings a key into a token, with a name.
#[expect(clippy::too_many_arguments)]
pub(crate) fn unwrap_named_key(
    cx: &mut JSContext,
    token: &CryptoToken,
    promise: &RootedPromise,
    wrapped_key: Vec<u8>,
    unwrapping_key: &TokenCryptoKey,
    (unwrap_algorithm, key_algorithm): (&AlgorithmIdentifier, &AlgorithmIdentifier),
    usages: Vec<KeyUsage>,
    options: &TokenKeyOptions,
) -> Fallible<()> {
    let unwrapping_key: &CryptoKey = unwrapping_key.upcast();
    let Some(handle) = unwrapping_key.token_handle() else {
        return Err(unexpected());
    };
    let (name, algorithm) = match normalize_algorithm::<UnwrapKeyOperation>(cx, unwrap_algorithm) {
        Ok(algorithm) => (algorithm.name(), None),
        Err(_) => {
            let algorithm = normalize_algorithm::<DecryptOperation>(cx, unwrap_algorithm)?;
            (algorithm.name(), Some(algorithm))
        },
    };
    let import = Import {
        format: KeyFormat::Raw,
        algorithm: normalize_algorithm::<ImportKeyOperation>(cx, key_algorithm)?,
        extractable: false,
        usages,
    };
    if name != unwrapping_key.algorithm().name() {
        return Err(invalid_access("The key is for another algorithm."));
    }
    if !unwrapping_key.usages().contains(&KeyUsage::UnwrapKey) {
        return Err(invalid_access("The key is not for unwrapping keys."));
    }
    ensure_in(token, &handle.info)?;
    let (scheme, bits) = unwrapping(
        unwrapping_key,
        algorithm.as_ref(),
        &import.algorithm,
        &wrapped_key,
    )?;
    let (wanted, key) = import.into_token(bits)?;
    let request = KeysRequest::Use {
        key: handle.info.id,
        operation: KeyOperation::Unwrap {
            scheme,
            data: data_for_token(&wrapped_key)?,
            key: with_options(key, options)?,
        },
    };
    let settle = resolve_with_key(wanted, import.usages, true);
    let global = token.global();
    ask(cx, &global, promise, request, Nothing::Error, settle);
    Ok(())
}

/// What `importKey()` of a token's `subtle` does not give away: it makes no keys in the token.
pub(super) fn refuse_import(
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    key: &CryptoKey,
) -> bool {
    let is_refused = subtle.token().is_some() && key.Type() != KeyType::Public;
    if is_refused {
        let error = not_supported("Keys come into a token only by one of its keys.");
        subtle.reject_promise_with_error(promise, error);
    }
    is_refused
}

/// The public half of a key that lives in a token, for the engine to use.
pub(crate) fn public_key_of(
    cx: &mut JSContext,
    global: &GlobalScope,
    key: &CryptoKey,
    usages: Vec<KeyUsage>,
) -> Fallible<DomRoot<CryptoKey>> {
    let public_key = key
        .token_handle()
        .and_then(|handle| handle.info.public_key.as_ref());
    let Some(public_key) = public_key else {
        return Err(invalid_access("The key has no public half."));
    };
    public_key_from(cx, global, key.algorithm(), &public_key.0, usages)
}

fn public_key_from(
    cx: &mut JSContext,
    global: &GlobalScope,
    algorithm: &KeyAlgorithmAndDerivatives,
    public_key: &[u8],
    usages: Vec<KeyUsage>,
) -> Fallible<DomRoot<CryptoKey>> {
    let import = match algorithm {
        KeyAlgorithmAndDerivatives::RsaHashedKeyAlgorithm(algorithm) => {
            let parameters = RsaHashedImportParams {
                name: algorithm.name,
                hash: algorithm.hash.clone(),
            };
            match algorithm.name {
                CryptoAlgorithm::RsaPss => ImportKeyAlgorithm::RsaPss(parameters),
                CryptoAlgorithm::RsaOaep => ImportKeyAlgorithm::RsaOaep(parameters),
                _ => ImportKeyAlgorithm::RsassaPkcs1V1_5(parameters),
            }
        },
        KeyAlgorithmAndDerivatives::EcKeyAlgorithm(algorithm) => {
            let parameters = EcKeyImportParams {
                name: algorithm.name,
                named_curve: algorithm.named_curve.clone(),
            };
            match algorithm.name {
                CryptoAlgorithm::Ecdh => ImportKeyAlgorithm::Ecdh(parameters),
                _ => ImportKeyAlgorithm::Ecdsa(parameters),
            }
        },
        _ => return Err(invalid_access("The key has no public half.")),
    };
    import.import_key(cx, global, KeyFormat::Spki, public_key, true, usages)
}

/// The steps of `getPublicKey()` from its step 9 on, for a key that lives in a token.
pub(super) fn get_public_key(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    key: &CryptoKey,
    usages: &[KeyUsage],
) -> bool {
    if key.token_handle().is_none() {
        return false;
    }
    match public_key_of(cx, &subtle.global(), key, usages.to_vec()) {
        Ok(public_key) => subtle.resolve_promise_with_key(promise, &public_key),
        Err(error) => subtle.reject_promise_with_error(promise, error),
    }
    true
}

/// What the keys of an algorithm can be used for.
fn allowed_usages(name: CryptoAlgorithm) -> &'static [KeyUsage] {
    match name {
        CryptoAlgorithm::RsassaPkcs1V1_5 |
        CryptoAlgorithm::RsaPss |
        CryptoAlgorithm::Ecdsa |
        CryptoAlgorithm::Hmac => &[KeyUsage::Sign, KeyUsage::Verify],
        CryptoAlgorithm::Ecdh => &[KeyUsage::DeriveKey, KeyUsage::DeriveBits],
        CryptoAlgorithm::AesKw => &[KeyUsage::WrapKey, KeyUsage::UnwrapKey],
        CryptoAlgorithm::RsaOaep |
        CryptoAlgorithm::AesCtr |
        CryptoAlgorithm::AesCbc |
        CryptoAlgorithm::AesGcm => &[
            KeyUsage::Encrypt,
            KeyUsage::Decrypt,
            KeyUsage::WrapKey,
            KeyUsage::UnwrapKey,
        ],
        _ => &[],
    }
}

/// Those of the above that a public key is for.
fn public_usages(name: CryptoAlgorithm) -> &'static [KeyUsage] {
    match name {
        CryptoAlgorithm::RsassaPkcs1V1_5 | CryptoAlgorithm::RsaPss | CryptoAlgorithm::Ecdsa => {
            &[KeyUsage::Verify]
        },
        CryptoAlgorithm::RsaOaep => &[KeyUsage::Encrypt, KeyUsage::WrapKey],
        _ => &[],
    }
}

/// Those that the key in the token is for.
fn own_usages(name: CryptoAlgorithm) -> Vec<KeyUsage> {
    let is_own = |usage: &&KeyUsage| !public_usages(name).contains(usage);
    allowed_usages(name)
        .iter()
        .filter(is_own)
        .cloned()
        .collect()
}

/// What a key in a token may do so that it can be used like this. AES-CBC, -CTR and -GCM wrap keys as they encrypt data; a
/// key that could decrypt data and wrap keys of the token would bring these out of it.
fn token_usage(name: CryptoAlgorithm, usage: KeyUsage) -> Usages {
    let is_own = own_usages(name).contains(&usage);
    let is_data_cipher = matches!(
        name,
        CryptoAlgorithm::AesCtr | CryptoAlgorithm::AesCbc | CryptoAlgorithm::AesGcm
    );
    match usage {
        _ if !is_own => Usages::NONE,
        KeyUsage::Sign => Usages::SIGN,
        KeyUsage::Verify => Usages::VERIFY,
        KeyUsage::Encrypt => Usages::ENCRYPT,
        KeyUsage::Decrypt => Usages::DECRYPT,
        KeyUsage::DeriveKey | KeyUsage::DeriveBits => Usages::DERIVE,
        KeyUsage::WrapKey if is_data_cipher => Usages::ENCRYPT,
        KeyUsage::UnwrapKey if is_data_cipher => Usages::DECRYPT,
        KeyUsage::WrapKey => Usages::WRAP,
        KeyUsage::UnwrapKey => Usages::UNWRAP,
        _ => Usages::NONE,
    }
}

fn token_usages(name: CryptoAlgorithm, usages: &[KeyUsage]) -> Usages {
    usages.iter().fold(Usages::NONE, |all, usage| {
        all.and(token_usage(name, *usage))
    })
}

/// What a page wants to do with a key. A token's RSA key has neither hash function nor padding, WebCrypto's keys have.
pub(crate) struct Wanted {
    name: Option<CryptoAlgorithm>,
    hash: Option<DigestAlgorithm>,
    named_curve: Option<String>,
    bits: Option<u32>,
    /// All of these.
    usages: Vec<KeyUsage>,
}

impl Wanted {
    /// From the members `algorithm` and `usages` of a `KeyQuery`. Of the algorithm, its name has to be given, and what else
    /// is given counts.
    pub(crate) fn from_query(
        cx: &mut JSContext,
        algorithm: Option<&AlgorithmIdentifier>,
        usages: Vec<KeyUsage>,
    ) -> Fallible<Self> {
        let mut wanted = Wanted {
            name: None,
            hash: None,
            named_curve: None,
            bits: None,
            usages,
        };
        match algorithm {
            None => {},
            Some(AlgorithmIdentifier::String(name)) => {
                wanted.name = Some(CryptoAlgorithm::from_str_ignore_case(&name.str())?);
            },
            Some(AlgorithmIdentifier::Object(object)) => {
                let object = object.handle();
                let name = get_required_parameter::<DOMString>(
                    cx,
                    object,
                    c"name",
                    StringificationBehavior::Default,
                )?;
                wanted.name = Some(CryptoAlgorithm::from_str_ignore_case(&name.str())?);
                let hash = get_property::<AlgorithmIdentifier>(cx, object, c"hash", ())?;
                if let Some(hash) = hash {
                    wanted.hash = Some(normalize_algorithm::<DigestOperation>(cx, &hash)?);
                }
                let named_curve = get_property::<DOMString>(
                    cx,
                    object,
                    c"namedCurve",
                    StringificationBehavior::Default,
                )?;
                wanted.named_curve = named_curve.map(String::from);
                for member in [c"modulusLength", c"length"] {
                    let bits =
                        get_property::<u32>(cx, object, member, ConversionBehavior::EnforceRange)?;
                    wanted.bits = wanted.bits.or(bits);
                }
            },
        }
        Ok(wanted)
    }

    fn new(name: CryptoAlgorithm) -> Self {
        Wanted {
            name: Some(name),
            hash: None,
            named_curve: None,
            bits: None,
            usages: Vec::new(),
        }
    }

    fn with_hash(name: CryptoAlgorithm, hash: &DigestAlgorithm) -> Fallible<Self> {
        token_hash(hash)?;
        Ok(Wanted {
            hash: Some(hash.clone()),
            ..Self::new(name)
        })
    }

    fn with_curve(name: CryptoAlgorithm, named_curve: &str) -> Fallible<Self> {
        token_curve(named_curve)?;
        Ok(Wanted {
            named_curve: Some(named_curve.to_owned()),
            ..Self::new(name)
        })
    }

    fn from_import(algorithm: &ImportKeyAlgorithm) -> Fallible<Self> {
        match algorithm {
            ImportKeyAlgorithm::RsassaPkcs1V1_5(parameters) |
            ImportKeyAlgorithm::RsaPss(parameters) |
            ImportKeyAlgorithm::RsaOaep(parameters) => {
                Self::with_hash(parameters.name, &parameters.hash)
            },
            ImportKeyAlgorithm::Ecdsa(parameters) | ImportKeyAlgorithm::Ecdh(parameters) => {
                Self::with_curve(parameters.name, &parameters.named_curve)
            },
            ImportKeyAlgorithm::AesCtr(parameters) |
            ImportKeyAlgorithm::AesCbc(parameters) |
            ImportKeyAlgorithm::AesGcm(parameters) |
            ImportKeyAlgorithm::AesKw(parameters) => Ok(Self::new(parameters.name)),
            ImportKeyAlgorithm::Hmac(parameters) => {
                Self::with_hash(parameters.name, &parameters.hash)
            },
            _ => Err(not_supported("Tokens do not know this algorithm.")),
        }
    }

    /// What the broker is asked for.
    pub(crate) fn query(&self) -> Fallible<(Option<AlgorithmQuery>, Usages)> {
        let Some(name) = self.name else {
            // Only these mean the same for all algorithms.
            let usages = self.usages.iter().fold(Usages::NONE, |usages, usage| {
                usages.and(match usage {
                    KeyUsage::Sign => Usages::SIGN,
                    KeyUsage::Decrypt => Usages::DECRYPT,
                    KeyUsage::DeriveKey | KeyUsage::DeriveBits => Usages::DERIVE,
                    _ => Usages::NONE,
                })
            });
            return Ok((None, usages));
        };
        // More than that no key has; no key has that either.
        let bits = self
            .bits
            .map(|bits| u16::try_from(bits).unwrap_or(u16::MAX));
        let (algorithm, usages) = match name {
            CryptoAlgorithm::RsassaPkcs1V1_5 | CryptoAlgorithm::RsaPss => {
                (AlgorithmQuery::Rsa { bits }, Usages::SIGN)
            },
            CryptoAlgorithm::RsaOaep => (AlgorithmQuery::Rsa { bits }, Usages::NONE),
            CryptoAlgorithm::Ecdsa | CryptoAlgorithm::Ecdh => {
                let curve = self.named_curve.as_deref().map(token_curve).transpose()?;
                let usages = match name {
                    CryptoAlgorithm::Ecdh => Usages::DERIVE,
                    _ => Usages::SIGN,
                };
                (AlgorithmQuery::Ec { curve }, usages)
            },
            CryptoAlgorithm::AesCtr |
            CryptoAlgorithm::AesCbc |
            CryptoAlgorithm::AesGcm |
            CryptoAlgorithm::AesKw => (AlgorithmQuery::Aes { bits }, Usages::NONE),
            CryptoAlgorithm::Hmac => (AlgorithmQuery::Secret, Usages::NONE),
            _ => return Err(not_supported("Tokens do not know this algorithm.")),
        };
        Ok((
            Some(algorithm),
            usages.and(token_usages(name, &self.usages)),
        ))
    }
}

fn token_curve(named_curve: &str) -> Fallible<Curve> {
    match named_curve {
        NAMED_CURVE_P256 => Ok(Curve::P256),
        NAMED_CURVE_P384 => Ok(Curve::P384),
        NAMED_CURVE_P521 => Ok(Curve::P521),
        _ => Err(not_supported("Unsupported namedCurve")),
    }
}

/// What a key of a token is for WebCrypto: its algorithm, and everything that it may be used for. `None` if it cannot be
/// what is wanted.
fn view(
    info: &KeyInfo,
    wanted: Option<&Wanted>,
) -> Option<(KeyAlgorithmAndDerivatives, Vec<KeyUsage>)> {
    let can = |usage| info.usages.contains(usage);
    let name = wanted.and_then(|wanted| wanted.name);
    let name = match (info.algorithm, name) {
        (TokenKeyAlgorithm::Rsa { .. }, None) if can(Usages::SIGN) => {
            CryptoAlgorithm::RsassaPkcs1V1_5
        },
        (TokenKeyAlgorithm::Rsa { .. }, None) => CryptoAlgorithm::RsaOaep,
        (TokenKeyAlgorithm::Ec(_), None) if can(Usages::SIGN) => CryptoAlgorithm::Ecdsa,
        (TokenKeyAlgorithm::Ec(_), None) => CryptoAlgorithm::Ecdh,
        (TokenKeyAlgorithm::Aes { .. }, None) if can(Usages::ENCRYPT) || can(Usages::DECRYPT) => {
            CryptoAlgorithm::AesGcm
        },
        (TokenKeyAlgorithm::Aes { .. }, None) => CryptoAlgorithm::AesKw,
        (TokenKeyAlgorithm::Secret { .. }, None) => CryptoAlgorithm::Hmac,
        (_, Some(name)) => name,
    };
    let hash = wanted
        .and_then(|wanted| wanted.hash.clone())
        .unwrap_or(DigestAlgorithm::Sha(Algorithm {
            name: CryptoAlgorithm::Sha256,
        }));
    let algorithm = match (info.algorithm, name) {
        (
            TokenKeyAlgorithm::Rsa { bits },
            CryptoAlgorithm::RsassaPkcs1V1_5 | CryptoAlgorithm::RsaPss | CryptoAlgorithm::RsaOaep,
        ) => {
            let public_key = info.public_key.as_ref()?;
            let public_key = rsa::RsaPublicKey::from_public_key_der(&public_key.0).ok()?;
            KeyAlgorithmAndDerivatives::RsaHashedKeyAlgorithm(RsaHashedKeyAlgorithm {
                name,
                modulus_length: bits.into(),
                public_exponent: public_key.e().to_be_bytes_trimmed_vartime().to_vec(),
                hash,
            })
        },
        (TokenKeyAlgorithm::Ec(curve), CryptoAlgorithm::Ecdsa | CryptoAlgorithm::Ecdh) => {
            let named_curve = match curve {
                Curve::P256 => NAMED_CURVE_P256,
                Curve::P384 => NAMED_CURVE_P384,
                Curve::P521 => NAMED_CURVE_P521,
            };
            let wanted_curve = wanted.and_then(|wanted| wanted.named_curve.as_deref());
            if wanted_curve.is_some_and(|wanted| wanted != named_curve) {
                return None;
            }
            KeyAlgorithmAndDerivatives::EcKeyAlgorithm(EcKeyAlgorithm {
                name,
                named_curve: named_curve.to_owned(),
            })
        },
        (
            TokenKeyAlgorithm::Aes { bits },
            CryptoAlgorithm::AesCtr |
            CryptoAlgorithm::AesCbc |
            CryptoAlgorithm::AesGcm |
            CryptoAlgorithm::AesKw,
        ) => KeyAlgorithmAndDerivatives::AesKeyAlgorithm(AesKeyAlgorithm { name, length: bits }),
        (TokenKeyAlgorithm::Secret { bits }, CryptoAlgorithm::Hmac) => {
            KeyAlgorithmAndDerivatives::HmacKeyAlgorithm(HmacKeyAlgorithm {
                name,
                hash,
                length: bits.into(),
            })
        },
        _ => return None,
    };
    let mut usages = own_usages(name);
    usages.retain(|usage| can(token_usage(name, *usage)));
    let usages = usages.normalized_value();
    let is_usable = |usage: &KeyUsage| {
        usages.contains(usage) ||
            // What takes the public half can always be done.
            (info.public_key.is_some() && public_usages(name).contains(usage))
    };
    let is_wanted = wanted.is_none_or(|wanted| wanted.usages.iter().all(is_usable));
    (is_wanted && !usages.is_empty()).then_some((algorithm, usages))
}

/// The object for a key that was found, unless it cannot be what is wanted.
pub(crate) fn found_key(
    cx: &mut JSContext,
    global: &GlobalScope,
    info: KeyInfo,
    wanted: Option<&Wanted>,
) -> Option<DomRoot<CryptoKey>> {
    let (algorithm, usages) = view(&info, wanted)?;
    let handle = TokenHandle::new(global, info, true)?;
    Some(new_key(cx, global, algorithm, usages, handle))
}

/// The object for a key that was made.
fn made_key(
    cx: &mut JSContext,
    global: &GlobalScope,
    info: KeyInfo,
    wanted: &Wanted,
    usages: &[KeyUsage],
    is_named: bool,
) -> Fallible<DomRoot<CryptoKey>> {
    let (algorithm, possible) = view(&info, Some(wanted)).ok_or_else(unexpected)?;
    let usages = usages.usage_intersection(&possible);
    let handle = TokenHandle::new(global, info, is_named).ok_or_else(unexpected)?;
    Ok(new_key(cx, global, algorithm, usages, handle))
}

/// `TokenCryptoKey.withAlgorithm()`: the same key for another algorithm, or for less.
pub(crate) fn key_with_algorithm(
    cx: &mut JSContext,
    global: &GlobalScope,
    key: &CryptoKey,
    algorithm: &AlgorithmIdentifier,
    usages: &[KeyUsage],
) -> Fallible<DomRoot<CryptoKey>> {
    let algorithm = normalize_algorithm::<ImportKeyOperation>(cx, algorithm)?;
    let wanted = Wanted::from_import(&algorithm)?;
    let name = algorithm.name();
    usages.ensure_only_contain_entries_from(&own_usages(name))?;
    if usages.is_empty() {
        return Err(Error::Syntax(Some("Key usages is empty".into())));
    }
    let Some(handle) = key.token_handle() else {
        return Err(unexpected());
    };
    let Some((algorithm, possible)) = view(&handle.info, Some(&wanted)) else {
        return Err(invalid_access("The key is not good for this algorithm."));
    };
    if !usages.iter().all(|usage| possible.contains(usage)) {
        return Err(invalid_access("The key may not be used so."));
    }
    let handle = TokenHandle::new(global, handle.info.clone(), true).ok_or_else(unexpected)?;
    let usages = usages.normalized_value();
    Ok(new_key(cx, global, algorithm, usages, handle))
}

/// What a token is to generate.
struct Generation {
    wanted: Wanted,
    key: NewKey,
    usages: Vec<KeyUsage>,
}

impl Generation {
    fn new(algorithm: &GenerateKeyAlgorithm, usages: Vec<KeyUsage>) -> Fallible<Self> {
        let name = algorithm.name();
        let allowed = allowed_usages(name);
        if allowed.is_empty() {
            return Err(not_supported("Tokens do not know this algorithm."));
        }
        usages.ensure_only_contain_entries_from(allowed)?;
        let (wanted, algorithm) = match algorithm {
            GenerateKeyAlgorithm::RsassaPkcs1V1_5(parameters) |
            GenerateKeyAlgorithm::RsaPss(parameters) |
            GenerateKeyAlgorithm::RsaOaep(parameters) => {
                parameters.validate_parameters()?;
                let exponent = &parameters.public_exponent;
                let zeros = exponent.iter().take_while(|byte| **byte == 0).count();
                if exponent[zeros..] != [1, 0, 1] {
                    return Err(not_supported("The public exponent has to be 65537."));
                }
                let bits = u16::try_from(parameters.modulus_length)
                    .map_err(|_| not_supported("The modulus is too long."))?;
                (
                    Wanted::with_hash(name, &parameters.hash)?,
                    TokenKeyAlgorithm::Rsa { bits },
                )
            },
            GenerateKeyAlgorithm::Ecdsa(parameters) | GenerateKeyAlgorithm::Ecdh(parameters) => (
                Wanted::with_curve(name, &parameters.named_curve)?,
                TokenKeyAlgorithm::Ec(token_curve(&parameters.named_curve)?),
            ),
            GenerateKeyAlgorithm::AesCtr(parameters) |
            GenerateKeyAlgorithm::AesCbc(parameters) |
            GenerateKeyAlgorithm::AesGcm(parameters) |
            GenerateKeyAlgorithm::AesKw(parameters) => {
                let bits = parameters.length;
                if !matches!(bits, 128 | 192 | 256) {
                    return Err(operation_error("There is no such length of an AES key."));
                }
                (Wanted::new(name), TokenKeyAlgorithm::Aes { bits })
            },
            GenerateKeyAlgorithm::Hmac(parameters) => {
                let wanted = Wanted::with_hash(name, &parameters.hash)?;
                let block_length = match token_hash(&parameters.hash)? {
                    Hash::Sha1 | Hash::Sha256 => 512,
                    Hash::Sha384 | Hash::Sha512 => 1024,
                };
                let bits = parameters.length.unwrap_or(block_length);
                if bits == 0 {
                    return Err(operation_error("A key has at least one bit."));
                }
                match u16::try_from(bits) {
                    Ok(bits) if bits.is_multiple_of(8) => {
                        (wanted, TokenKeyAlgorithm::Secret { bits })
                    },
                    _ => return Err(not_supported("There are no keys with so many bits.")),
                }
            },
            _ => return Err(not_supported("Tokens do not know this algorithm.")),
        };
        let token_usages = token_usages(name, &usages);
        if usages.usage_intersection(&own_usages(name)).is_empty() {
            return Err(Error::Syntax(Some("Key usages is empty".into())));
        }
        Ok(Generation {
            wanted,
            key: NewKey {
                algorithm,
                usages: token_usages,
                name: None,
                origins: Vec::new(),
                user_verification: UserVerification::Session,
                is_wrappable: false,
                is_persistent: false,
            },
            usages,
        })
    }

    fn ask(
        self,
        cx: &mut JSContext,
        global: &GlobalScope,
        promise: &RootedPromise,
        token: KeyTokenId,
        is_named: bool,
    ) {
        let Generation {
            wanted,
            key,
            usages,
        } = self;
        let settle: Settle = Box::new(move |cx, global, promise, reply| {
            let KeysReply::Key(info) = reply else {
                return Err(unexpected());
            };
            let public_key = info.public_key.clone();
            let key = made_key(cx, global, *info, &wanted, &usages, is_named)?;
            let Some(public_key) = public_key else {
                promise.resolve_native(cx, &key);
                return Ok(());
            };
            let public_usages = usages.usage_intersection(public_usages(key.algorithm().name()));
            let public_key =
                public_key_from(cx, global, key.algorithm(), &public_key.0, public_usages)?;
            let key_pair = CryptoKeyPair {
                publicKey: Some(public_key),
                privateKey: Some(key),
            };
            promise.resolve_native(cx, &key_pair);
            Ok(())
        });
        let request = KeysRequest::Generate { token, key };
        ask(cx, global, promise, request, Nothing::Error, settle);
    }
}

/// The steps of `generateKey()` from its step 8 on, if it is a token's `subtle` that does it.
pub(super) fn generate_key(
    cx: &mut JSContext,
    subtle: &SubtleCrypto,
    promise: &RootedPromise,
    algorithm: &GenerateKeyAlgorithm,
    extractable: bool,
    usages: &[KeyUsage],
) -> bool {
    let Some(token) = subtle.token() else {
        return false;
    };
    match Generation::new(algorithm, usages.to_vec()) {
        Ok(_) if extractable => {
            let error = not_supported("Keys in tokens are never extractable.");
            subtle.reject_promise_with_error(promise, error);
        },
        Ok(generation) => {
            generation.ask(cx, &subtle.global(), promise, token.token_id(), false);
        },
        Err(error) => subtle.reject_promise_with_error(promise, error),
    }
    true
}

/// `CryptoToken.generateKey()`
pub(crate) fn generate_named_key(
    cx: &mut JSContext,
    token: &CryptoToken,
    promise: &RootedPromise,
    algorithm: &AlgorithmIdentifier,
    usages: Vec<KeyUsage>,
    options: &TokenKeyOptions,
) -> Fallible<()> {
    let algorithm = normalize_algorithm::<GenerateKeyOperation>(cx, algorithm)?;
    let generation = Generation::new(&algorithm, usages)?;
    let is_pair = matches!(
        generation.key.algorithm,
        TokenKeyAlgorithm::Rsa { .. } | TokenKeyAlgorithm::Ec(_)
    );
    if options.wrappable && is_pair {
        return Err(not_supported("Private keys never leave a token."));
    }
    let generation = Generation {
        key: with_options(generation.key, options)?,
        ..generation
    };
    generation.ask(cx, &token.global(), promise, token.token_id(), true);
    Ok(())
}

fn with_options(key: NewKey, options: &TokenKeyOptions) -> Fallible<NewKey> {
    let origins = options
        .origins
        .iter()
        .flatten()
        .map(|origin| Origin::new(&origin.0))
        .collect::<Option<Vec<_>>>();
    let Some(origins) = origins else {
        return Err(Error::Type(
            c"An origin is written as in https://example.com".to_owned(),
        ));
    };
    Ok(NewKey {
        name: Some(String::from(options.name.clone())),
        origins,
        user_verification: options.userVerification.convert(),
        is_wrappable: options.wrappable,
        is_persistent: options.persistent,
        ..key
    })
}

/// `CryptoToken.supports()`: whether the token can do it, for an operation that `SubtleCrypto` has.
pub(crate) fn supports(
    cx: &mut JSContext,
    features: &[TokenFeature],
    operation: &str,
    algorithm: &AlgorithmIdentifier,
) -> bool {
    let has = |feature| features.contains(&feature);
    if operation == "generateKey" {
        return normalize_algorithm::<GenerateKeyOperation>(cx, algorithm).is_ok_and(|algorithm| {
            let usages = own_usages(algorithm.name());
            Generation::new(&algorithm, usages).is_ok_and(|generation| {
                has(TokenFeature::Generate(generation.key.algorithm)) &&
                    has_algorithm(features, algorithm.name())
            })
        });
    }
    let name = match operation {
        "sign" => normalize_algorithm::<SignOperation>(cx, algorithm).map(|it| it.name()),
        "verify" => match normalize_algorithm::<VerifyOperation>(cx, algorithm) {
            Ok(algorithm) if algorithm.name() == CryptoAlgorithm::Hmac => Ok(algorithm.name()),
            _ => return false,
        },
        "encrypt" => match normalize_algorithm::<EncryptOperation>(cx, algorithm) {
            Ok(algorithm) if algorithm.name() != CryptoAlgorithm::RsaOaep => Ok(algorithm.name()),
            _ => return false,
        },
        "decrypt" => normalize_algorithm::<DecryptOperation>(cx, algorithm).map(|it| it.name()),
        "deriveBits" | "deriveKey" => {
            normalize_algorithm::<DeriveBitsOperation>(cx, algorithm).map(|it| it.name())
        },
        "wrapKey" => normalize_algorithm::<WrapKeyOperation>(cx, algorithm).map(|it| it.name()),
        "unwrapKey" => normalize_algorithm::<UnwrapKeyOperation>(cx, algorithm)
            .map(|it| it.name())
            .or_else(|_| {
                normalize_algorithm::<DecryptOperation>(cx, algorithm).map(|it| it.name())
            }),
        _ => return false,
    };
    name.is_ok_and(|name| has_algorithm(features, name))
}

fn has_algorithm(features: &[TokenFeature], name: CryptoAlgorithm) -> bool {
    features.iter().any(|feature| {
        matches!(
            (feature, name),
            (TokenFeature::RsaPkcs1, CryptoAlgorithm::RsassaPkcs1V1_5) |
                (TokenFeature::RsaPss, CryptoAlgorithm::RsaPss) |
                (TokenFeature::RsaOaep, CryptoAlgorithm::RsaOaep) |
                (TokenFeature::Ecdsa, CryptoAlgorithm::Ecdsa) |
                (TokenFeature::Ecdh, CryptoAlgorithm::Ecdh) |
                (TokenFeature::AesCbc, CryptoAlgorithm::AesCbc) |
                (TokenFeature::AesCtr, CryptoAlgorithm::AesCtr) |
                (TokenFeature::AesGcm, CryptoAlgorithm::AesGcm) |
                (TokenFeature::AesKw, CryptoAlgorithm::AesKw) |
                (TokenFeature::Hmac(_), CryptoAlgorithm::Hmac)
        )
    })
}
