/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys of a TPM 2.0 (TCG TPM 2.0 Library).
//!
//! A TPM keeps no keys: it gives each one out, encrypted under a key of its own that never leaves it, and takes it back for
//! one use. So the broker stores them, and a [`KeyRef`] is the whole key. What stays loaded from one request to the next is a
//! session and the key that was used last, without what authorizes its use: loading it takes longer than signing.

use std::fs::OpenOptions;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::tss::{TPM2_CC_EncryptDecrypt2, TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::constants::{CapabilityType, PropertyTag, SessionType, Tss2ResponseCodeKind};
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm, SymmetricMode};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::{AesKeyBits, RsaKeyBits};
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, CapabilityData, Data, Digest, EccParameter, EccPoint, EccScheme, HashScheme,
    HashcheckTicket, InitialValue, KeyDerivationFunctionScheme, KeyedHashScheme, MaxBuffer,
    Private, Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyRsa,
    PublicKeyedHashParameters, PublicRsaParametersBuilder, RsaDecryptionScheme, RsaExponent,
    RsaScheme, Signature, SignatureScheme as TpmScheme, SymmetricCipherParameters,
    SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::{Context, Error};
use zeroize::Zeroizing;

use crate::encoding;
use crate::key_protocol::{
    Attestation, Bytes, Cipher, Curve, Hash, KeyAlgorithm, KeyError, KeyInfo, KeyRef, KeyUse,
    Login, NewKey, SignatureScheme, TokenFeature, TokenId, TokenInfo, Usages,
};
use crate::key_provider::KeyProvider;
use crate::padding;

/// The only token.
const TOKEN: TokenId = TokenId(0);

/// Where operating systems keep the storage root key (TCG TPM v2.0 Provisioning Guidance, 7.8).
const STORAGE_ROOT_KEY: u32 = 0x8100_0001;

/// The longest part that a TPM takes at once, in bytes.
const PART: usize = 1024;

/// The first handle of what is loaded (TPM 2.0 Library, part 2, 7.5).
const TPM2_TRANSIENT_FIRST: u32 = 0x8000_0000;
/// More is not loaded at a time.
const MAX_LEFT: u32 = 16;

/// Manufacturers of TPMs that are programs: swtpm, and those of virtual machines.
const SOFTWARE: [&str; 3] = ["IBM", "MSFT", "GOOG"];

/// The length of the modulus, in bytes.
const RSA_LENGTH: usize = 256;

/// The port of swtpm, if that is what it is.
pub fn port_of_swtpm(tcti: &str) -> Option<u16> {
    let parameters = tcti.strip_prefix("swtpm:")?.split(',');
    let mut ports = parameters.filter_map(|parameter| parameter.strip_prefix("port="));
    // The library's default.
    ports.next().map_or(Some(2321), |port| port.parse().ok())
}

/// A TPM, opened.
pub struct Tpm {
    inner: Mutex<Inner>,
    manufacturer: String,
    model: String,
    is_hardware: bool,
    has_ciphers: bool,
}

struct Inner {
    context: Context,
    /// The key under which the others are encrypted, and its name.
    parent: KeyHandle,
    parent_name: Vec<u8>,
    /// Goes on from one command to the next. Nothing that it authorizes or encrypts is readable on the TPM's bus.
    session: Option<AuthSession>,
    /// The key that was used last.
    loaded: Option<(Blob, KeyHandle)>,
    /// What signs attestations, for as long as this process runs.
    attestation_key: Option<Blob>,
    /// The TPM has forgotten what this process relies on.
    is_over: bool,
}

/// What a [`KeyRef`] of this provider is, in postcard's encoding.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Blob {
    /// What the key is for, as far as the TPM does not tell it apart.
    usages: Usages,
    /// The name of the key that it is encrypted under.
    #[serde(with = "serde_bytes")]
    parent: Vec<u8>,
    /// TPMT_PUBLIC.
    #[serde(with = "serde_bytes")]
    public: Vec<u8>,
    /// TPM2B_PRIVATE without its length, encrypted.
    #[serde(with = "serde_bytes")]
    private: Vec<u8>,
}

impl Blob {
    fn of(key: &KeyRef) -> Result<Self, KeyError> {
        postcard::from_bytes(&key.0).map_err(|_| KeyError::BadRequest)
    }

    fn encode(&self) -> Result<KeyRef, KeyError> {
        postcard::to_stdvec(self)
            .map(KeyRef)
            .map_err(|_| KeyError::Failed)
    }
}

/// Makes room in a TPM that no resource manager stands in front of: what a worker that was killed had loaded stays there, and
/// there is room for three. The kernel sees to that for a device.
fn flush_what_was_left(context: &mut Context) -> Result<(), Error> {
    let (left, _) =
        context.get_capability(CapabilityType::Handles, TPM2_TRANSIENT_FIRST, MAX_LEFT)?;
    if let CapabilityData::Handles(handles) = left {
        for handle in handles.into_inner() {
            let object = context.tr_from_tpm_public(handle)?;
            context.flush_context(object)?;
        }
    }
    Ok(())
}

impl Tpm {
    /// Opens a TPM, and finds or makes the key under which others are encrypted. After this nothing needs to be opened.
    ///
    /// # Errors
    /// With a sentence for the log.
    pub fn open(tcti: &str) -> Result<Self, String> {
        let is_known = ["device:", "swtpm:"]
            .iter()
            .any(|name| tcti.starts_with(name));
        if !is_known {
            return Err(format!(
                "[tpm] tcti: {tcti:?} is neither device:PATH nor swtpm:host=ADDRESS,port=PORT"
            ));
        }
        let configuration: TctiNameConf = tcti
            .parse()
            .map_err(|_| format!("[tpm] tcti: {tcti:?} makes no sense"))?;
        let failed = |error: Error| format!("the TPM {tcti} cannot be used: {error}");
        // The library says only that it could not.
        if let Some(path) = tcti.strip_prefix("device:") {
            let opened = OpenOptions::new().read(true).write(true).open(path);
            opened.map_err(|error| format!("the TPM {path} cannot be opened: {error}"))?;
        }
        let mut context =
            Context::new(configuration).map_err(|error| match port_of_swtpm(tcti) {
                Some(port) => format!("no TPM in software answers on port {port}"),
                None => failed(error),
            })?;
        if port_of_swtpm(tcti).is_some() {
            flush_what_was_left(&mut context).map_err(failed)?;
        }
        let (parent, parent_name) = parent(&mut context).map_err(failed)?;
        let mut property = |tag| -> Result<String, String> {
            let number = context.get_tpm_property(tag).map_err(failed)?;
            let bytes = number.unwrap_or_default().to_be_bytes();
            let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
            Ok(bytes
                .into_iter()
                .filter(printable)
                .map(char::from)
                .collect())
        };
        let manufacturer = property(PropertyTag::Manufacturer)?.trim().to_owned();
        let mut model = property(PropertyTag::VendorString1)?;
        model.push_str(&property(PropertyTag::VendorString2)?);
        let model = model.trim().to_owned();
        let is_software = SOFTWARE.contains(&manufacturer.as_str()) || model.starts_with("SW");
        let has_ciphers = has_ciphers(&mut context).map_err(failed)?;
        let mut inner = Inner {
            context,
            parent,
            parent_name,
            session: None,
            loaded: None,
            attestation_key: None,
            is_over: false,
        };
        // What the libraries load for it has to be loaded now.
        inner.session().map_err(failed)?;
        Ok(Self {
            inner: Mutex::new(inner),
            manufacturer,
            model,
            is_hardware: !is_software && tcti.starts_with("device:"),
            has_ciphers,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a key, which is loaded before if it is not the one that was used last.
    fn with<T>(
        &self,
        token: TokenId,
        key: &KeyUse,
        usage: Usages,
        run: impl FnOnce(&mut Context, KeyHandle, &Public) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        check(token)?;
        let blob = Blob::of(&key.key)?;
        if !blob.usages.contains(usage) {
            return Err(KeyError::UsageRefused);
        }
        let auth = key.auth.as_ref().map_or(&[][..], |auth| auth.expose());
        self.lock().with(&blob, auth, run)
    }
}

fn check(token: TokenId) -> Result<(), KeyError> {
    if token == TOKEN {
        Ok(())
    } else {
        Err(KeyError::NoToken)
    }
}

impl Inner {
    fn session(&mut self) -> Result<AuthSession, Error> {
        if let Some(session) = self.session {
            return Ok(session);
        }
        let session = self.context.start_auth_session(
            // Only the TPM that has the parent can know what it is about.
            Some(self.parent),
            None,
            None,
            SessionType::Hmac,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )?;
        let session = session.ok_or(Error::WrapperError(
            tss_esapi::WrapperErrorKind::WrongValueFromTpm,
        ))?;
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .with_decrypt(true)
            .with_encrypt(true)
            .build();
        self.context
            .tr_sess_set_attributes(session, attributes, mask)?;
        self.session = Some(session);
        Ok(session)
    }

    /// Does something in the session. After an error it may be out of step, and the next command gets a new one.
    fn authorized<T>(
        &mut self,
        run: impl FnOnce(&mut Context) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let session = self.session().map_err(error)?;
        let result = self.context.execute_with_session(Some(session), run);
        match &result {
            Ok(_) => {}
            Err(failure) => {
                self.session = None;
                let handle = SessionHandle::from(session).into();
                let flushed = self.context.flush_context(handle);
                // A machine that has slept, a TPM that was reset.
                self.is_over |= flushed.is_err() || *failure == KeyError::Failed;
            }
        }
        result
    }

    fn with<T>(
        &mut self,
        blob: &Blob,
        auth: &[u8],
        run: impl FnOnce(&mut Context, KeyHandle, &Public) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        if blob.parent != self.parent_name {
            return Err(KeyError::Foreign);
        }
        let public = Public::unmarshall(&blob.public).map_err(|_| KeyError::BadRequest)?;
        let auth = Auth::try_from(auth).map_err(|_| KeyError::BadRequest)?;
        let handle = match self.loaded.take() {
            Some((loaded, handle)) if loaded == *blob => handle,
            other => {
                self.loaded = other;
                self.forget();
                let private = Private::try_from(&*blob.private);
                let private = private.map_err(|_| KeyError::BadRequest)?;
                let parent = self.parent;
                let public = public.clone();
                self.authorized(|context| context.load(parent, private, public).map_err(error))?
            }
        };
        let outcome = match self.context.tr_set_auth(handle.into(), auth) {
            Ok(()) => self.authorized(|context| run(context, handle, &public)),
            Err(failed) => Err(error(failed)),
        };
        let cleared = self
            .context
            .tr_set_auth(handle.into(), Auth::default())
            .map_err(error);
        self.loaded = Some((blob.clone(), handle));
        if outcome.is_err() || cleared.is_err() {
            self.forget();
        }
        outcome
    }

    /// Has the TPM forget the key that is loaded.
    fn forget(&mut self) {
        if let Some((_, handle)) = self.loaded.take() {
            let flushed = self.context.flush_context(ObjectHandle::from(handle));
            self.is_over |= flushed.is_err();
        }
    }

    fn create(&mut self, public: Public, usages: Usages, auth: &[u8]) -> Result<Blob, KeyError> {
        let auth = Auth::try_from(auth).map_err(|_| KeyError::BadRequest)?;
        // There may be room for three in the TPM.
        self.forget();
        let parent = self.parent;
        let made = self.authorized(|context| {
            context
                .create(parent, public, Some(auth), None, None, None)
                .map_err(error)
        })?;
        Ok(Blob {
            usages,
            parent: self.parent_name.clone(),
            public: made.out_public.marshall().map_err(error)?,
            private: made.out_private.value().to_vec(),
        })
    }

    /// The key that signs attestations: it signs nothing but what the TPM itself says.
    fn attestation_key(&mut self) -> Result<Blob, KeyError> {
        if let Some(key) = &self.attestation_key {
            return Ok(key.clone());
        }
        let attributes = attributes(true, false, true)?;
        let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
        let parameters = PublicEccParametersBuilder::new()
            .with_symmetric(SymmetricDefinitionObject::Null)
            .with_ecc_scheme(scheme)
            .with_curve(EccCurve::NistP256)
            .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
            .with_is_signing_key(true)
            .with_restricted(true)
            .build()
            .map_err(error)?;
        let public = PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes)
            .with_ecc_parameters(parameters)
            .with_ecc_unique_identifier(EccPoint::default())
            .build()
            .map_err(error)?;
        let key = self.create(public, Usages::SIGN, &[])?;
        self.attestation_key = Some(key.clone());
        Ok(key)
    }
}

/// Finds the storage root key, or makes one that is the same each time.
fn parent(context: &mut Context) -> Result<(KeyHandle, Vec<u8>), Error> {
    let handle = PersistentTpmHandle::new(STORAGE_ROOT_KEY)?;
    if let Ok(found) = context.tr_from_tpm_public(TpmHandle::Persistent(handle)) {
        let found = KeyHandle::from(found);
        let (public, name, _) = context.read_public(found)?;
        let attributes = public.object_attributes();
        if attributes.restricted() && attributes.decrypt() && attributes.fixed_tpm() {
            return Ok((found, name.value().to_vec()));
        }
    }
    // TCG EK Credential Profile, 2.2.1.5: the template of a storage key on P-256.
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_decrypt(true)
        .with_restricted(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    )
    .build()?;
    let public = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()?;
    let made = context.execute_with_nullauth_session(|context| {
        context.create_primary(Hierarchy::Owner, public, None, None, None, None)
    })?;
    let name = context.tr_get_name(made.key_handle.into())?;
    Ok((made.key_handle, name.value().to_vec()))
}

fn has_ciphers(context: &mut Context) -> Result<bool, Error> {
    let (commands, _) =
        context.get_capability(CapabilityType::Command, TPM2_CC_EncryptDecrypt2, 1)?;
    Ok(match commands {
        CapabilityData::Commands(commands) => commands
            .first()
            .is_some_and(|command| u32::from(command.command_index()) == TPM2_CC_EncryptDecrypt2),
        _ => false,
    })
}

fn attributes(sign: bool, decrypt: bool, restricted: bool) -> Result<ObjectAttributes, KeyError> {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        // The dictionary of wrong authorizations is one for all keys and programs. These have 256 bits.
        .with_no_da(true)
        .with_sign_encrypt(sign)
        .with_decrypt(decrypt)
        .with_restricted(restricted)
        .build()
        .map_err(error)
}

/// The template of a key.
fn template(new: &NewKey) -> Result<Public, KeyError> {
    let may = |usage| new.usages.contains(usage);
    let builder = PublicBuilder::new().with_name_hashing_algorithm(HashingAlgorithm::Sha256);
    let builder = match new.algorithm {
        KeyAlgorithm::Rsa { bits: 2048 } => {
            // A TPM chooses the length of a PSS salt by itself. With the raw operation it does not.
            let attributes = attributes(may(Usages::SIGN), true, false)?;
            let parameters = PublicRsaParametersBuilder::new()
                .with_scheme(RsaScheme::Null)
                .with_key_bits(RsaKeyBits::Rsa2048)
                .with_exponent(RsaExponent::default())
                .with_is_signing_key(may(Usages::SIGN))
                .with_is_decryption_key(true)
                .with_restricted(false)
                .build()
                .map_err(error)?;
            builder
                .with_public_algorithm(PublicAlgorithm::Rsa)
                .with_object_attributes(attributes)
                .with_rsa_parameters(parameters)
                .with_rsa_unique_identifier(PublicKeyRsa::default())
        }
        KeyAlgorithm::Ec(Curve::P256) => {
            let (sign, decrypt) = (may(Usages::SIGN), may(Usages::DERIVE));
            let hash = HashScheme::new(HashingAlgorithm::Sha256);
            let scheme = match (sign, decrypt) {
                (true, false) => EccScheme::EcDsa(hash),
                (false, true) => EccScheme::EcDh(hash),
                _ => return Err(KeyError::Unsupported),
            };
            let parameters = PublicEccParametersBuilder::new()
                .with_symmetric(SymmetricDefinitionObject::Null)
                .with_ecc_scheme(scheme)
                .with_curve(EccCurve::NistP256)
                .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
                .with_is_signing_key(sign)
                .with_is_decryption_key(decrypt)
                .with_restricted(false)
                .build()
                .map_err(error)?;
            builder
                .with_public_algorithm(PublicAlgorithm::Ecc)
                .with_object_attributes(attributes(sign, decrypt, false)?)
                .with_ecc_parameters(parameters)
                .with_ecc_unique_identifier(EccPoint::default())
        }
        // As long as the digest that names the key.
        KeyAlgorithm::Secret { bits: 256 } => builder
            .with_public_algorithm(PublicAlgorithm::KeyedHash)
            .with_object_attributes(attributes(true, true, false)?)
            .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
            .with_keyed_hash_unique_identifier(Digest::default()),
        KeyAlgorithm::Aes { bits } => {
            let key_bits = match bits {
                128 => AesKeyBits::Aes128,
                256 => AesKeyBits::Aes256,
                _ => return Err(KeyError::Unsupported),
            };
            let cipher = SymmetricDefinitionObject::Aes {
                key_bits,
                mode: SymmetricMode::Null,
            };
            let attributes = attributes(may(Usages::ENCRYPT), may(Usages::DECRYPT), false)?;
            builder
                .with_public_algorithm(PublicAlgorithm::SymCipher)
                .with_object_attributes(attributes)
                .with_symmetric_cipher_parameters(SymmetricCipherParameters::new(cipher))
                .with_symmetric_cipher_unique_identifier(Digest::default())
        }
        _ => return Err(KeyError::Unsupported),
    };
    builder.build().map_err(error)
}

/// SubjectPublicKeyInfo.
fn public_key(public: &Public) -> Option<Vec<u8>> {
    match public {
        Public::Rsa { unique, .. } => Some(encoding::rsa_public_key(unique.value(), &[1, 0, 1])),
        Public::Ecc { unique, .. } => {
            let length = Curve::P256.length();
            let x = padded(unique.x().value(), length).ok()?;
            let y = padded(unique.y().value(), length).ok()?;
            encoding::ec_public_key(Curve::P256, &[&[4], &x[..], &y].concat())
        }
        _ => None,
    }
}

/// TPMs leave zeros at the beginning of numbers out, or do not.
fn padded(number: &[u8], length: usize) -> Result<Vec<u8>, KeyError> {
    let start = number.len().saturating_sub(length);
    let (more, number) = number.split_at(start);
    if more.iter().any(|byte| *byte != 0) {
        return Err(KeyError::Nonsense);
    }
    Ok([&vec![0; length - number.len()], number].concat())
}

fn algorithm(hash: Hash) -> HashingAlgorithm {
    match hash {
        Hash::Sha1 => HashingAlgorithm::Sha1,
        Hash::Sha256 => HashingAlgorithm::Sha256,
        Hash::Sha384 => HashingAlgorithm::Sha384,
        Hash::Sha512 => HashingAlgorithm::Sha512,
    }
}

/// The operation of RSA without a padding.
fn raw_rsa(context: &mut Context, key: KeyHandle, input: &[u8]) -> Result<Vec<u8>, KeyError> {
    let input = PublicKeyRsa::try_from(input).map_err(error)?;
    let output = context
        .rsa_decrypt(key, input, RsaDecryptionScheme::Null, Data::default())
        .map_err(error)?;
    padded(output.value(), RSA_LENGTH)
}

fn sign_digest(
    context: &mut Context,
    key: KeyHandle,
    scheme: TpmScheme,
    digest: &[u8],
) -> Result<Signature, KeyError> {
    let no_ticket = TPMT_TK_HASHCHECK {
        tag: TPM2_ST_HASHCHECK,
        hierarchy: TPM2_RH_NULL,
        digest: Default::default(),
    };
    let ticket = HashcheckTicket::try_from(no_ticket).map_err(error)?;
    let digest = Digest::try_from(digest).map_err(error)?;
    context.sign(key, digest, scheme, ticket).map_err(error)
}

fn is_rsa(public: &Public) -> bool {
    matches!(public, Public::Rsa { .. })
}

impl KeyProvider for Tpm {
    fn tokens(&self) -> Result<Vec<TokenInfo>, KeyError> {
        let generate = TokenFeature::Generate;
        let mut features = vec![
            generate(KeyAlgorithm::Rsa { bits: 2048 }),
            generate(KeyAlgorithm::Ec(Curve::P256)),
            generate(KeyAlgorithm::Secret { bits: 256 }),
            TokenFeature::RsaPkcs1,
            TokenFeature::RsaPss,
            TokenFeature::RsaOaep,
            TokenFeature::Ecdsa,
            TokenFeature::Ecdh,
            TokenFeature::Hmac(Hash::Sha1),
            TokenFeature::Hmac(Hash::Sha256),
            TokenFeature::Attest,
        ];
        if self.has_ciphers {
            features.extend([
                generate(KeyAlgorithm::Aes { bits: 128 }),
                generate(KeyAlgorithm::Aes { bits: 256 }),
                TokenFeature::AesCbc,
                TokenFeature::AesCtr,
            ]);
        }
        Ok(vec![TokenInfo {
            id: TOKEN,
            label: "TPM".into(),
            manufacturer: self.manufacturer.clone(),
            model: self.model.clone(),
            // The name of the key that all others depend on. It tells two TPMs apart.
            serial: self
                .lock()
                .parent_name
                .iter()
                .rev()
                .take(16)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            slot: "TPM".into(),
            is_hardware: self.is_hardware,
            is_removable: false,
            is_read_only: false,
            login: Login::default(),
            features,
        }])
    }

    fn is_over(&self) -> bool {
        self.lock().is_over
    }

    fn keys(&self, token: TokenId, _: usize) -> Result<(Vec<KeyInfo>, bool), KeyError> {
        check(token)?;
        Ok((Vec::new(), false))
    }

    fn generate(&self, token: TokenId, new: &NewKey) -> Result<KeyInfo, KeyError> {
        check(token)?;
        if new.is_wrappable || new.asks_each_time {
            return Err(KeyError::Unsupported);
        }
        if matches!(new.algorithm, KeyAlgorithm::Aes { .. }) && !self.has_ciphers {
            return Err(KeyError::Unsupported);
        }
        let auth = new.auth.as_ref().map_or(&[][..], |auth| auth.expose());
        let blob = self.lock().create(template(new)?, new.usages, auth)?;
        let public = Public::unmarshall(&blob.public).map_err(error)?;
        let public_key = public_key(&public);
        if new.algorithm_has_public_half() && public_key.is_none() {
            return Err(KeyError::Nonsense);
        }
        Ok(KeyInfo {
            key: blob.encode()?,
            label: new.label.clone(),
            identifier: Vec::new(),
            algorithm: new.algorithm,
            usages: new.usages,
            public_key: public_key.map(Bytes),
            has_certificate: false,
            is_hidden: false,
            is_sensitive: true,
            is_extractable: false,
            is_local: true,
            was_never_extractable: true,
            asks_each_time: false,
            is_persistent: new.is_persistent,
            is_modifiable: true,
        })
    }

    /// The TPM has nothing to delete: without the [`KeyRef`] there is no key.
    fn delete(&self, token: TokenId, key: &KeyUse) -> Result<(), KeyError> {
        check(token)?;
        Blob::of(&key.key).map(drop)
    }

    fn sign(
        &self,
        token: TokenId,
        key: &KeyUse,
        scheme: SignatureScheme,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with(token, key, Usages::SIGN, |context, handle, public| {
            match scheme {
                SignatureScheme::RsaPkcs1(hash) if is_rsa(public) => {
                    let hash_scheme = HashScheme::new(algorithm(hash));
                    let scheme = TpmScheme::RsaSsa { hash_scheme };
                    match sign_digest(context, handle, scheme, data) {
                        Ok(Signature::RsaSsa(signature)) => {
                            padded(signature.signature().value(), RSA_LENGTH)
                        }
                        Ok(_) => Err(KeyError::Nonsense),
                        // It does not have that hash.
                        Err(KeyError::Unsupported) => {
                            let encoded = padding::pkcs1_encode(hash, data, RSA_LENGTH);
                            raw_rsa(context, handle, &encoded.ok_or(KeyError::BadData)?)
                        }
                        Err(error) => Err(error),
                    }
                }
                SignatureScheme::RsaPss { hash, salt_length } if is_rsa(public) => {
                    let mut salt = vec![0; salt_length.into()];
                    crate::random(&mut salt)?;
                    let encoded = padding::pss_encode(hash, data, &salt, 8 * RSA_LENGTH);
                    raw_rsa(context, handle, &encoded.ok_or(KeyError::BadData)?)
                }
                SignatureScheme::Ecdsa if matches!(public, Public::Ecc { .. }) => {
                    // The key is for SHA-256, of which only the length matters: what is longer than the curve's order
                    // does not count, and a shorter number is the same with zeros before it (FIPS 186-5, 6.4.1).
                    let length = Curve::P256.length();
                    let digest = padded(&data[..data.len().min(length)], length)?;
                    let hash_scheme = HashScheme::new(HashingAlgorithm::Sha256);
                    let scheme = TpmScheme::EcDsa { hash_scheme };
                    match sign_digest(context, handle, scheme, &digest)? {
                        Signature::EcDsa(signature) => {
                            let r = padded(signature.signature_r().value(), length)?;
                            let s = padded(signature.signature_s().value(), length)?;
                            Ok([r, s].concat())
                        }
                        _ => Err(KeyError::Nonsense),
                    }
                }
                SignatureScheme::Hmac(hash) => mac(context, handle, public, hash, data),
                _ => Err(KeyError::UsageRefused),
            }
        })
    }

    fn verify_mac(
        &self,
        token: TokenId,
        key: &KeyUse,
        hash: Hash,
        data: &[u8],
        given: &[u8],
    ) -> Result<bool, KeyError> {
        let made = self.with(token, key, Usages::VERIFY, |context, handle, public| {
            mac(context, handle, public, hash, data)
        })?;
        // In a time that says nothing about where they differ.
        let differences = made.iter().zip(given).fold(0, |all, (a, b)| all | (a ^ b));
        Ok(made.len() == given.len() && differences == 0)
    }

    fn encrypt(
        &self,
        token: TokenId,
        key: &KeyUse,
        cipher: &Cipher,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let padded = match cipher {
            Cipher::AesCbc { .. } => {
                let filling = 16 - data.len() % 16;
                [data, &vec![filling as u8; filling]].concat()
            }
            _ => data.to_vec(),
        };
        let padded = Zeroizing::new(padded);
        self.with(token, key, Usages::ENCRYPT, |context, handle, public| {
            crypt(context, handle, public, cipher, &padded, false)
        })
    }

    fn decrypt(
        &self,
        token: TokenId,
        key: &KeyUse,
        cipher: &Cipher,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with(token, key, Usages::DECRYPT, |context, handle, public| {
            if let Cipher::RsaOaep { hash, label } = cipher {
                if !is_rsa(public) {
                    return Err(KeyError::UsageRefused);
                }
                if data.len() != RSA_LENGTH {
                    return Err(KeyError::BadData);
                }
                let encoded = Zeroizing::new(raw_rsa(context, handle, data)?);
                let text = padding::oaep_decode(*hash, &label.0, &encoded);
                return text.map(|text| text.to_vec()).ok_or(KeyError::BadData);
            }
            let is_cbc = matches!(cipher, Cipher::AesCbc { .. });
            if is_cbc && (data.is_empty() || !data.len().is_multiple_of(16)) {
                return Err(KeyError::BadData);
            }
            let mut text = crypt(context, handle, public, cipher, data, true)?;
            if is_cbc {
                let filling = text.last().copied().unwrap_or_default();
                let start = text.len().saturating_sub(filling.into());
                let is_right = (1..=16).contains(&filling)
                    && text[start..].iter().all(|byte| *byte == filling);
                if !is_right {
                    return Err(KeyError::BadData);
                }
                text.truncate(start);
            }
            Ok(text)
        })
    }

    fn derive(&self, token: TokenId, key: &KeyUse, point: &[u8]) -> Result<Vec<u8>, KeyError> {
        let length = Curve::P256.length();
        self.with(token, key, Usages::DERIVE, |context, handle, public| {
            if !matches!(public, Public::Ecc { .. }) {
                return Err(KeyError::UsageRefused);
            }
            if point.len() != 1 + 2 * length || point.first() != Some(&4) {
                return Err(KeyError::BadData);
            }
            let coordinate = |bytes: &[u8]| EccParameter::try_from(bytes).map_err(error);
            let (x, y) = point[1..].split_at(length);
            let point = EccPoint::new(coordinate(x)?, coordinate(y)?);
            let secret =
                context
                    .ecdh_z_gen(handle, point)
                    .map_err(|failed| match error(failed) {
                        KeyError::Unsupported => KeyError::BadData,
                        other => other,
                    })?;
            padded(secret.x().value(), length)
        })
    }

    fn attest(
        &self,
        token: TokenId,
        key: &KeyUse,
        challenge: &[u8],
    ) -> Result<Attestation, KeyError> {
        check(token)?;
        let blob = Blob::of(&key.key)?;
        let challenge = Data::try_from(challenge).map_err(|_| KeyError::BadRequest)?;
        let auth = key.auth.as_ref().map_or(&[][..], |auth| auth.expose());
        let mut inner = self.lock();
        let signer = inner.attestation_key()?;
        let signer_public = Public::unmarshall(&signer.public).map_err(error)?;
        let signer_private = Private::try_from(&*signer.private).map_err(error)?;
        let parent = inner.parent;
        let (statement, signature) = inner.with(&blob, auth, |context, handle, _| {
            let signer = context
                .load(parent, signer_private, signer_public)
                .map_err(error)?;
            let (session, _, _) = context.sessions();
            let sessions = (session, Some(AuthSession::Password), None);
            let certified = context.execute_with_sessions(sessions, |context| {
                context.certify(handle.into(), signer, challenge, TpmScheme::Null)
            });
            let flushed = context.flush_context(signer.into());
            let certified = certified.map_err(error)?;
            flushed.map_err(error)?;
            Ok(certified)
        })?;
        Ok(Attestation {
            statement: Bytes(statement.marshall().map_err(error)?),
            signature: Bytes(signature.marshall().map_err(error)?),
            signer: Bytes(signer.public),
            public: Bytes(blob.public),
        })
    }
}

/// TPM2_HMAC. Longer messages than [`PART`] would take a sequence, which the library does not have.
fn mac(
    context: &mut Context,
    key: KeyHandle,
    public: &Public,
    hash: Hash,
    data: &[u8],
) -> Result<Vec<u8>, KeyError> {
    if !matches!(public, Public::KeyedHash { .. }) {
        return Err(KeyError::UsageRefused);
    }
    if data.len() > PART {
        return Err(KeyError::Unsupported);
    }
    let data = MaxBuffer::try_from(data).map_err(error)?;
    let made = context
        .hmac(key.into(), data, algorithm(hash))
        .map_err(error)?;
    if made.value().len() == hash.length() {
        Ok(made.value().to_vec())
    } else {
        Err(KeyError::Nonsense)
    }
}

/// TPM2_EncryptDecrypt2, part by part.
fn crypt(
    context: &mut Context,
    key: KeyHandle,
    public: &Public,
    cipher: &Cipher,
    data: &[u8],
    decrypt: bool,
) -> Result<Vec<u8>, KeyError> {
    if !matches!(public, Public::SymCipher { .. }) {
        return Err(KeyError::UsageRefused);
    }
    let (mode, first) = match cipher {
        Cipher::AesCbc { iv } => (SymmetricMode::Cbc, iv),
        Cipher::AesCtr { counter, bits } => {
            // A TPM counts with the whole block. Until the counting bits are used up that is the same.
            let shift = 128_u32.saturating_sub((*bits).into());
            let count = u128::from_be_bytes(*counter) << shift >> shift;
            let blocks = data.len().div_ceil(16) as u128;
            let last = count.checked_add(blocks.saturating_sub(1));
            if last.is_none_or(|last| last > u128::MAX >> shift) {
                return Err(KeyError::Unsupported);
            }
            (SymmetricMode::Ctr, counter)
        }
        Cipher::AesGcm { .. } => return Err(KeyError::Unsupported),
        Cipher::RsaOaep { .. } => return Err(KeyError::UsageRefused),
    };
    let mut iv = InitialValue::try_from(&first[..]).map_err(error)?;
    let mut output = Vec::with_capacity(data.len());
    for part in data.chunks(PART) {
        let part = MaxBuffer::try_from(part).map_err(error)?;
        let (done, next) = context
            .encrypt_decrypt_2(key, decrypt, mode, part, iv)
            .map_err(error)?;
        output.extend(done.value());
        iv = next;
    }
    if output.len() == data.len() {
        Ok(output)
    } else {
        Err(KeyError::Nonsense)
    }
}

/// What an answer of the TPM's, or of the library, means.
fn error(error: Error) -> KeyError {
    use Tss2ResponseCodeKind::*;
    log::debug!("{error}");
    let Error::Tss2Error(code) = error else {
        return KeyError::Nonsense;
    };
    match code.kind() {
        Some(AuthFail | BadAuth | AuthUnavailable | PolicyFail | AuthType) => KeyError::Refused,
        Some(Lockout) => KeyError::LockedOut,
        Some(Integrity | Parent) => KeyError::Foreign,
        Some(
            Hash | Scheme | Mode | Curve | Attributes | Symmetric | Asymmetric | KeySize | Kdf
            | Mgf | Type | CommandCode | Value | Key,
        ) => KeyError::Unsupported,
        Some(EccPoint | Size | Range) => KeyError::BadData,
        Some(Retry | Yielded | Testing | NvRate | ObjectMemory | SessionMemory | Memory) => {
            KeyError::Busy
        }
        Some(Canceled) => KeyError::Canceled,
        _ => KeyError::Failed,
    }
}
