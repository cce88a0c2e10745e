/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What keys in a token are used for.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource, PkcsPssParams};
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::UserType;
use cryptoki::types::RawAuthPin;
use cryptoki_sys::CK_AES_CTR_PARAMS;
use zeroize::{Zeroize, Zeroizing};

use super::{Key, Open, error};
use crate::encoding;
use crate::key_protocol::{
    Cipher, Hash, KeyAlgorithm, KeyError, KeyInfo, KeyRef, KeyUse, NewKey, Secret, SignatureScheme,
    Usages, WrapScheme,
};
use crate::{padding, random};

/// How long an identifier is that this side gives to a key, in bytes.
const ID_LENGTH: usize = 20;

/// 65537.
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];

fn hash_mechanism(hash: Hash) -> (MechanismType, PkcsMgfType) {
    match hash {
        Hash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        Hash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
        Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
    }
}

fn mac_mechanism(hash: Hash) -> Mechanism<'static> {
    match hash {
        Hash::Sha1 => Mechanism::Sha1Hmac,
        Hash::Sha256 => Mechanism::Sha256Hmac,
        Hash::Sha384 => Mechanism::Sha384Hmac,
        Hash::Sha512 => Mechanism::Sha512Hmac,
    }
}

fn oaep_parameters(hash: Hash, label: &[u8]) -> PkcsOaepParams<'_> {
    let (mechanism, mask) = hash_mechanism(hash);
    let source = match label {
        [] => PkcsOaepSource::empty(),
        label => PkcsOaepSource::data_specified(label),
    };
    PkcsOaepParams::new(mechanism, mask, source)
}

/// Whether a module says that it does not know the mechanism, or not with these parameters. Nothing was done then.
fn is_unknown(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::MechanismInvalid | RvError::MechanismParamInvalid | RvError::ArgumentsBad,
            _
        )
    )
}

/// Puts the zeros back that a module leaves out of a number.
fn padded(mut number: Vec<u8>, length: usize) -> Result<Vec<u8>, KeyError> {
    if number.len() > length {
        number.zeroize();
        return Err(KeyError::Nonsense);
    }
    let filling = vec![0; length - number.len()];
    Ok([filling, number].concat())
}

impl Open<'_> {
    /// Uses a key that was found; if its handle has become invalid, it is looked for once more.
    fn with_key<T>(
        &mut self,
        key: &KeyRef,
        run: impl Fn(&mut Self, Key) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let found = self.find(key)?;
        match run(self, found) {
            Err(KeyError::NoKey) => {
                self.state.handles.remove(key);
                let again = self.find(key)?;
                run(self, again)
            }
            result => result,
        }
    }

    /// C_Sign; with the PIN in between where the key asks each time.
    fn raw_sign(
        &self,
        key: Key,
        auth: Option<&Secret>,
        mechanism: &Mechanism<'_>,
        data: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let Some(pin) = auth.filter(|_| key.asks_each_time) else {
            return self.session.sign(mechanism, key.handle, data);
        };
        self.session.sign_init(mechanism, key.handle)?;
        self.log_in_for_this(pin)?;
        self.session.sign_update(data)?;
        self.session.sign_final()
    }

    fn raw_decrypt(
        &self,
        key: Key,
        auth: Option<&Secret>,
        mechanism: &Mechanism<'_>,
        data: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let Some(pin) = auth.filter(|_| key.asks_each_time) else {
            return self.session.decrypt(mechanism, key.handle, data);
        };
        self.session.decrypt_init(mechanism, key.handle)?;
        self.log_in_for_this(pin)?;
        let mut text = self.session.decrypt_update(data)?;
        text.extend(self.session.decrypt_final()?);
        Ok(text)
    }

    fn log_in_for_this(&self, pin: &Secret) -> Result<(), Error> {
        let pin = RawAuthPin::new(Box::new(pin.expose().to_vec()));
        self.session.login_with_raw(UserType::ContextSpecific, &pin)
    }

    pub(super) fn sign(
        &mut self,
        key: &KeyUse,
        scheme: SignatureScheme,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let auth = key.auth.as_ref();
        self.with_key(&key.key, |open, key| match (key.algorithm, scheme) {
            (KeyAlgorithm::Rsa { bits }, SignatureScheme::RsaPkcs1(hash)) => {
                let info = padding::digest_info(hash, data);
                let padded = || padding::pkcs1_encode(hash, data, usize::from(bits).div_ceil(8));
                open.rsa_sign(key, auth, bits, (&Mechanism::RsaPkcs, &info), padded)
            }
            (KeyAlgorithm::Rsa { bits }, SignatureScheme::RsaPss { hash, salt_length }) => {
                let (mechanism, mask) = hash_mechanism(hash);
                let parameters = PkcsPssParams {
                    hash_alg: mechanism,
                    mgf: mask,
                    s_len: u64::from(salt_length).into(),
                };
                let padded = || {
                    let mut salt = vec![0; salt_length.into()];
                    random(&mut salt).ok()?;
                    padding::pss_encode(hash, data, &salt, bits.into())
                };
                let in_token = (&Mechanism::RsaPkcsPss(parameters), data);
                open.rsa_sign(key, auth, bits, in_token, padded)
            }
            (KeyAlgorithm::Ec(curve), SignatureScheme::Ecdsa) => {
                // What is longer than the curve's order does not count (FIPS 186-5, 6.4.1).
                let digest = &data[..data.len().min(curve.length())];
                let signature = open
                    .raw_sign(key, auth, &Mechanism::Ecdsa, digest)
                    .map_err(error)?;
                encoding::ecdsa_signature(curve, &signature).ok_or(KeyError::Nonsense)
            }
            (
                KeyAlgorithm::Secret { .. } | KeyAlgorithm::Aes { .. },
                SignatureScheme::Hmac(hash),
            ) => {
                let mac = open
                    .raw_sign(key, auth, &mac_mechanism(hash), data)
                    .map_err(error)?;
                if mac.len() == hash.length() {
                    Ok(mac)
                } else {
                    Err(KeyError::Nonsense)
                }
            }
            _ => Err(KeyError::UsageRefused),
        })
    }

    /// Signs with RSA: by the mechanism that pads in the token, or with the raw one where the token does not know that.
    fn rsa_sign(
        &self,
        key: Key,
        auth: Option<&Secret>,
        bits: u16,
        (mechanism, data): (&Mechanism<'_>, &[u8]),
        padded_data: impl Fn() -> Option<Vec<u8>>,
    ) -> Result<Vec<u8>, KeyError> {
        let in_token = if self.has(mechanism.mechanism_type()) {
            self.raw_sign(key, auth, mechanism, data)
        } else {
            let function = cryptoki::context::Function::SignInit;
            Err(Error::Pkcs11(RvError::MechanismInvalid, function))
        };
        let signature = match in_token {
            Err(error) if is_unknown(&error) && self.has(MechanismType::RSA_X_509) => {
                let encoded = padded_data().ok_or(KeyError::BadData)?;
                self.raw_sign(key, auth, &Mechanism::RsaX509, &encoded)
            }
            outcome => outcome,
        };
        let signature = signature.map_err(error)?;
        padded(signature, usize::from(bits).div_ceil(8))
    }

    pub(super) fn verify_mac(
        &mut self,
        key: &KeyUse,
        hash: Hash,
        data: &[u8],
        mac: &[u8],
    ) -> Result<bool, KeyError> {
        self.with_key(&key.key, |open, key| {
            let outcome = open
                .session
                .verify(&mac_mechanism(hash), key.handle, data, mac);
            match outcome {
                Ok(()) => Ok(true),
                Err(Error::Pkcs11(RvError::SignatureInvalid | RvError::SignatureLenRange, _)) => {
                    Ok(false)
                }
                Err(other) => Err(error(other)),
            }
        })
    }

    pub(super) fn encrypt(
        &mut self,
        key: &KeyUse,
        cipher: &Cipher,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with_key(&key.key, |open, key| {
            open.aes(key, cipher, |mechanism| {
                open.session.encrypt(mechanism, key.handle, data)
            })
        })
    }

    pub(super) fn decrypt(
        &mut self,
        key: &KeyUse,
        cipher: &Cipher,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let auth = key.auth.as_ref();
        self.with_key(&key.key, |open, key| {
            let outcome = match (cipher, key.algorithm) {
                (Cipher::RsaOaep { hash, label }, KeyAlgorithm::Rsa { bits }) => {
                    open.oaep(key, auth, bits, *hash, &label.0, data)
                }
                _ => open.aes(key, cipher, |mechanism| {
                    open.session.decrypt(mechanism, key.handle, data)
                }),
            };
            match outcome {
                // That is what some say of a wrong padding or tag.
                Err(KeyError::Failed) => Err(KeyError::BadData),
                outcome => outcome,
            }
        })
    }

    fn aes(
        &self,
        key: Key,
        cipher: &Cipher,
        run: impl FnOnce(&Mechanism<'_>) -> Result<Vec<u8>, Error>,
    ) -> Result<Vec<u8>, KeyError> {
        if !matches!(key.algorithm, KeyAlgorithm::Aes { .. }) {
            return Err(KeyError::UsageRefused);
        }
        let outcome = match cipher {
            Cipher::RsaOaep { .. } => return Err(KeyError::UsageRefused),
            Cipher::AesCbc { iv } => run(&Mechanism::AesCbcPad(*iv)),
            Cipher::AesCtr { counter, bits } => {
                let parameters = CK_AES_CTR_PARAMS {
                    ulCounterBits: (*bits).into(),
                    cb: *counter,
                };
                let mechanism =
                    VendorDefinedMechanism::new(MechanismType::AES_CTR, Some(&parameters));
                run(&Mechanism::VendorDefined(mechanism))
            }
            Cipher::AesGcm {
                iv,
                additional_data,
                tag_bits,
            } => {
                let mut iv = iv.0.clone();
                let parameters =
                    GcmParams::new(&mut iv, &additional_data.0, u64::from(*tag_bits).into())
                        .map_err(error)?;
                run(&Mechanism::AesGcm(parameters))
            }
        };
        outcome.map_err(error)
    }

    fn oaep(
        &self,
        key: Key,
        auth: Option<&Secret>,
        bits: u16,
        hash: Hash,
        label: &[u8],
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let length = usize::from(bits).div_ceil(8);
        if data.len() != length {
            return Err(KeyError::BadData);
        }
        // Not all modules look at the label.
        let is_for_token = label.is_empty() || !self.has(MechanismType::RSA_X_509);
        if is_for_token && self.has(MechanismType::RSA_PKCS_OAEP) {
            let mechanism = Mechanism::RsaPkcsOaep(oaep_parameters(hash, label));
            match self.raw_decrypt(key, auth, &mechanism, data) {
                Err(error) if is_unknown(&error) && self.has(MechanismType::RSA_X_509) => {}
                outcome => return outcome.map_err(error),
            }
        }
        let encoded = self
            .raw_decrypt(key, auth, &Mechanism::RsaX509, data)
            .map_err(error)?;
        let encoded = Zeroizing::new(padded(encoded, length)?);
        let text = padding::oaep_decode(hash, label, &encoded).ok_or(KeyError::BadData)?;
        Ok(text.to_vec())
    }

    /// Agrees on a secret, as an object that the template describes.
    fn agree(
        &self,
        key: Key,
        public: &[u8],
        template: &[Attribute],
    ) -> Result<ObjectHandle, KeyError> {
        let KeyAlgorithm::Ec(curve) = key.algorithm else {
            return Err(KeyError::UsageRefused);
        };
        if public.len() != 1 + 2 * curve.length() || public.first() != Some(&0x04) {
            return Err(KeyError::BadData);
        }
        let derive = |point: &[u8]| {
            let parameters = Ecdh1DeriveParams::new(EcKdf::null(), point);
            let mechanism = Mechanism::Ecdh1Derive(parameters);
            self.session.derive_key(&mechanism, key.handle, template)
        };
        match derive(public) {
            // Some want the point as it is in CKA_EC_POINT.
            Err(first) if is_unknown(&first) => derive(&encoding::wrapped_point(public)),
            outcome => outcome,
        }
        .map_err(|failed| match error(failed) {
            // It is the point that they do not like.
            KeyError::Unsupported | KeyError::Failed if self.has(MechanismType::ECDH1_DERIVE) => {
                KeyError::BadData
            }
            other => other,
        })
    }

    pub(super) fn derive(&mut self, key: &KeyUse, public: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.with_key(&key.key, |open, key| {
            let KeyAlgorithm::Ec(curve) = key.algorithm else {
                return Err(KeyError::UsageRefused);
            };
            let length = curve.length();
            let template = [
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::GENERIC_SECRET),
                Attribute::Token(false),
                Attribute::Sensitive(false),
                Attribute::Extractable(true),
                Attribute::ValueLen((length as u64).into()),
            ];
            let object = open.agree(key, public, &template)?;
            let value = open.session.get_attributes(object, &[AttributeType::Value]);
            let destroyed = open.session.destroy_object(object);
            let value = value.map_err(error)?.pop();
            destroyed.map_err(error)?;
            match value {
                Some(Attribute::Value(value)) => padded(value, length),
                _ => Err(KeyError::Nonsense),
            }
        })
    }

    pub(super) fn derive_key(
        &mut self,
        key: &KeyUse,
        public: &[u8],
        new: &NewKey,
    ) -> Result<KeyInfo, KeyError> {
        let mut template = self.secret_template(new)?;
        let bits = match new.algorithm {
            KeyAlgorithm::Aes { bits } | KeyAlgorithm::Secret { bits } => usize::from(bits),
            _ => return Err(KeyError::Unsupported),
        };
        template.push(Attribute::ValueLen((bits as u64 / 8).into()));
        let object = self.with_key(&key.key, |open, key| match key.algorithm {
            // The web's API takes the first bits of a secret, PKCS #11 the last ones.
            KeyAlgorithm::Ec(curve) if 8 * curve.length() == bits => {
                open.agree(key, public, &template)
            }
            KeyAlgorithm::Ec(_) => Err(KeyError::Unsupported),
            _ => Err(KeyError::UsageRefused),
        })?;
        self.keep(object, None, new)
    }

    pub(super) fn wrap(
        &mut self,
        with: &KeyUse,
        scheme: &WrapScheme,
        key: &KeyRef,
    ) -> Result<Vec<u8>, KeyError> {
        if *scheme != WrapScheme::AesKw {
            return Err(KeyError::Unsupported);
        }
        self.with_key(&with.key, |open, with| {
            let wrapped = open.find(key)?;
            match (with.algorithm, wrapped.algorithm) {
                (
                    KeyAlgorithm::Aes { .. },
                    KeyAlgorithm::Aes { .. } | KeyAlgorithm::Secret { .. },
                ) => open
                    .session
                    .wrap_key(&Mechanism::AesKeyWrap, with.handle, wrapped.handle)
                    .map_err(error),
                (KeyAlgorithm::Aes { .. }, _) => Err(KeyError::Unextractable),
                _ => Err(KeyError::UsageRefused),
            }
        })
    }

    pub(super) fn unwrap(
        &mut self,
        with: &KeyUse,
        scheme: &WrapScheme,
        data: &[u8],
        new: &NewKey,
    ) -> Result<KeyInfo, KeyError> {
        let template = self.secret_template(new)?;
        // It is 8 bytes longer than what is in it (RFC 3394, 2.2.1).
        if let (WrapScheme::AesKw, KeyAlgorithm::Aes { bits } | KeyAlgorithm::Secret { bits }) =
            (scheme, new.algorithm)
            && bits != 0
            && data.len() != usize::from(bits) / 8 + 8
        {
            return Err(KeyError::BadData);
        }
        let object = self.with_key(&with.key, |open, with| {
            let mechanism = match (scheme, with.algorithm) {
                (WrapScheme::AesKw, KeyAlgorithm::Aes { .. }) => Mechanism::AesKeyWrap,
                // Not all modules look at the label, and here nobody else can.
                (WrapScheme::RsaOaep { label, .. }, _) if !label.0.is_empty() => {
                    return Err(KeyError::Unsupported);
                }
                // Without this in the token there is no way that does not bring the key out of it.
                (WrapScheme::RsaOaep { hash, label }, KeyAlgorithm::Rsa { .. }) => {
                    Mechanism::RsaPkcsOaep(oaep_parameters(*hash, &label.0))
                }
                _ => return Err(KeyError::UsageRefused),
            };
            open.session
                .unwrap_key(&mechanism, with.handle, data, &template)
                .map_err(|failed| match error(failed) {
                    KeyError::Failed => KeyError::BadData,
                    other => other,
                })
        })?;
        self.keep(object, None, new)
    }

    pub(super) fn generate(&mut self, new: &NewKey) -> Result<KeyInfo, KeyError> {
        match new.algorithm {
            KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ec(_) => self.generate_pair(new),
            KeyAlgorithm::Aes { bits } => self.generate_secret(new, &Mechanism::AesKeyGen, bits),
            KeyAlgorithm::Secret { bits } => {
                self.generate_secret(new, &Mechanism::GenericSecretKeyGen, bits)
            }
        }
    }

    fn generate_secret(
        &mut self,
        new: &NewKey,
        mechanism: &Mechanism<'_>,
        bits: u16,
    ) -> Result<KeyInfo, KeyError> {
        if bits == 0 || !bits.is_multiple_of(8) {
            return Err(KeyError::Unsupported);
        }
        let mut template = self.secret_template(new)?;
        template.push(Attribute::ValueLen((u64::from(bits) / 8).into()));
        let object = self.session.generate_key(mechanism, &template);
        self.keep(object.map_err(error)?, None, new)
    }

    fn generate_pair(&mut self, new: &NewKey) -> Result<KeyInfo, KeyError> {
        if new.is_wrappable {
            return Err(KeyError::Unsupported);
        }
        let id = Attribute::Id(new_id()?);
        let label = Attribute::Label(new.label.clone().into_bytes());
        let may = |usage| new.usages.contains(usage);
        let mut public = vec![
            Attribute::Token(new.is_persistent),
            Attribute::Private(false),
            id.clone(),
            label.clone(),
        ];
        let mut private = vec![
            Attribute::Token(new.is_persistent),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            id,
            label,
            Attribute::Sign(may(Usages::SIGN)),
        ];
        public.push(Attribute::Verify(may(Usages::SIGN)));
        if new.asks_each_time {
            private.push(Attribute::AlwaysAuthenticate(true));
        }
        let mechanism = match new.algorithm {
            KeyAlgorithm::Rsa { bits } => {
                public.extend([
                    Attribute::ModulusBits(u64::from(bits).into()),
                    Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()),
                    Attribute::Encrypt(may(Usages::DECRYPT)),
                    Attribute::Wrap(may(Usages::UNWRAP)),
                ]);
                private.extend([
                    Attribute::Decrypt(may(Usages::DECRYPT)),
                    Attribute::Unwrap(may(Usages::UNWRAP)),
                    Attribute::Derive(false),
                ]);
                Mechanism::RsaPkcsKeyPairGen
            }
            KeyAlgorithm::Ec(curve) => {
                let parameters = encoding::curve_parameters(curve).to_vec();
                public.push(Attribute::EcParams(parameters));
                // Tokens may allow what is not said.
                private.extend([
                    Attribute::Derive(may(Usages::DERIVE)),
                    Attribute::Decrypt(false),
                    Attribute::Unwrap(false),
                ]);
                Mechanism::EccKeyPairGen
            }
            _ => return Err(KeyError::Unsupported),
        };
        let (public, private) = self
            .session
            .generate_key_pair(&mechanism, &public, &private)
            .map_err(error)?;
        self.keep(private, Some(public), new)
    }

    fn secret_template(&self, new: &NewKey) -> Result<Vec<Attribute>, KeyError> {
        let key_type = match new.algorithm {
            KeyAlgorithm::Aes { .. } => KeyType::AES,
            KeyAlgorithm::Secret { .. } => KeyType::GENERIC_SECRET,
            _ => return Err(KeyError::Unsupported),
        };
        let may = |usage| new.usages.contains(usage);
        Ok(vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(key_type),
            Attribute::Token(new.is_persistent),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(new.is_wrappable),
            Attribute::Id(new_id()?),
            Attribute::Label(new.label.clone().into_bytes()),
            Attribute::Sign(may(Usages::SIGN)),
            Attribute::Verify(may(Usages::VERIFY)),
            Attribute::Encrypt(may(Usages::ENCRYPT)),
            Attribute::Decrypt(may(Usages::DECRYPT)),
            Attribute::Wrap(may(Usages::WRAP)),
            Attribute::Unwrap(may(Usages::UNWRAP)),
            Attribute::Derive(false),
        ])
    }

    /// Looks at what was made. If it is not what it should be, or can leave the token, it is deleted.
    fn keep(
        &mut self,
        object: ObjectHandle,
        public: Option<ObjectHandle>,
        new: &NewKey,
    ) -> Result<KeyInfo, KeyError> {
        let problem = match self.made(object, public) {
            Ok(mut info)
                if info.is_sensitive
                    && info.is_extractable == new.is_wrappable
                    && info.is_persistent == new.is_persistent
                    && info.asks_each_time == new.asks_each_time =>
            {
                let is_untold = matches!(
                    info.algorithm,
                    KeyAlgorithm::Aes { bits: 0 } | KeyAlgorithm::Secret { bits: 0 }
                );
                if is_untold {
                    info.algorithm = new.algorithm;
                }
                if info.algorithm == new.algorithm {
                    return Ok(info);
                }
                // An encrypted key of another length, a secret that is too short.
                KeyError::BadData
            }
            Ok(_) => KeyError::Unsupported,
            Err(error) => error,
        };
        self.state.handles.clear();
        for object in [Some(object), public].into_iter().flatten() {
            if let Err(failed) = self.session.destroy_object(object) {
                log::warn!("a key that is not what it should be stays in the token: {failed}");
            }
        }
        Err(problem)
    }
}

fn new_id() -> Result<Vec<u8>, KeyError> {
    let mut id = vec![0; ID_LENGTH];
    random(&mut id)?;
    Ok(id)
}
