/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys behind a PKCS#11 module (OASIS PKCS #11 2.40).
//!
//! A module is somebody else's code in this process: whatever it does, it does to this process alone. Nothing of what it
//! returns is believed, but memory is its own: a length that it makes up can end the process.
//!
//! Login is the process's, not a session's, so it is the broker that keeps origins apart.

mod objects;
mod operations;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo as ModuleTokenInfo};
use cryptoki::types::RawAuthPin;
use rustix::net::{RecvFlags, recv};

use crate::key_protocol::{
    Attestation, Bytes, Cipher, Curve, Hash, KeyAlgorithm, KeyError, KeyInfo, KeyRef, KeyUse,
    Login, MAX_TOKENS, NewKey, Secret, SignatureScheme, TokenFeature, TokenId, TokenInfo,
    WrapScheme,
};
use crate::key_provider::KeyProvider;

/// Most slots that are looked at.
const MAX_SLOTS: usize = 256;

/// Software that says it is a token in hardware, or does not say that it is not.
const SOFTWARE: [&str; 4] = ["softhsm", "software", "nss", "kryoptic"];

/// A module that is loaded and initialized. It is never finalized: modules hang and crash there, and the process ends anyway.
pub struct Module {
    context: Pkcs11,
    tokens: Mutex<Tokens>,
    /// Whether descriptor 0 is a connection to the PC/SC service.
    uses_pcsc: bool,
}

/// The tokens that were there when somebody looked.
#[derive(Default)]
struct Tokens {
    known: HashMap<TokenId, Arc<Token>>,
    next: u64,
    /// The slots with tokens at the last look.
    slots: Vec<u64>,
}

/// What tells two tokens apart.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Identity {
    slot: u64,
    label: String,
    manufacturer: String,
    serial: String,
}

impl Identity {
    fn new(slot: Slot, info: &ModuleTokenInfo) -> Self {
        Self {
            slot: slot.id(),
            label: text(info.label(), 32),
            manufacturer: text(info.manufacturer_id(), 32),
            serial: text(info.serial_number(), 32),
        }
    }
}

/// A token.
struct Token {
    slot: Slot,
    identity: Identity,
    mechanisms: Vec<MechanismType>,
    wants_login: bool,
    state: Mutex<State>,
}

/// What is open in a token.
#[derive(Default)]
struct State {
    session: Option<Session>,
    is_logged_in: bool,
    /// Keys that were found before.
    handles: HashMap<KeyRef, Key>,
    /// The last list of keys, for those who want the rest of it.
    list: Vec<KeyInfo>,
}

/// A key that was found.
#[derive(Clone, Copy, Debug)]
struct Key {
    handle: ObjectHandle,
    algorithm: KeyAlgorithm,
    asks_each_time: bool,
}

impl Module {
    /// Loads a module and initializes it.
    ///
    /// # Errors
    /// With a sentence for the log.
    pub fn load(path: &str, uses_pcsc: bool) -> Result<Self, String> {
        let context = Pkcs11::new(path).map_err(|error| match error {
            Error::LibraryLoading(error) => format!("the PKCS#11 module cannot be loaded: {error}"),
            error => format!("{path} is no PKCS#11 module: {error}"),
        })?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        match context.initialize(arguments) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(Self {
                context,
                tokens: Mutex::default(),
                uses_pcsc,
            }),
            Err(error) => Err(format!("the PKCS#11 module {path} does not start: {error}")),
        }
    }

    fn slots(&self) -> Result<Vec<Slot>, KeyError> {
        let mut slots = self.context.get_slots_with_token().map_err(error)?;
        slots.truncate(MAX_SLOTS);
        Ok(slots)
    }

    fn token(&self, id: TokenId) -> Result<Arc<Token>, KeyError> {
        let tokens = lock(&self.tokens);
        tokens.known.get(&id).cloned().ok_or(KeyError::NoToken)
    }

    /// Makes a token known, or finds the one that is known already.
    fn remember(
        &self,
        slot: Slot,
        info: &ModuleTokenInfo,
    ) -> Result<(TokenId, Arc<Token>), KeyError> {
        let identity = Identity::new(slot, info);
        let known = lock(&self.tokens)
            .known
            .iter()
            .find(|(_, token)| token.identity == identity)
            .map(|(id, token)| (*id, token.clone()));
        if let Some(known) = known {
            return Ok(known);
        }
        let mut mechanisms = self.context.get_mechanism_list(slot).map_err(error)?;
        mechanisms.truncate(512);
        let token = Arc::new(Token {
            slot,
            identity,
            mechanisms,
            wants_login: info.login_required(),
            state: Mutex::default(),
        });
        let mut tokens = lock(&self.tokens);
        let id = TokenId(tokens.next);
        tokens.next += 1;
        tokens.known.insert(id, token.clone());
        Ok((id, token))
    }

    /// Does something in a token's session, which is opened if there is none.
    fn with<T>(
        &self,
        id: TokenId,
        run: impl FnOnce(&mut Open<'_>) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let token = self.token(id)?;
        let mut state = lock(&token.state);
        let session = match state.session.take() {
            Some(session) => session,
            None => {
                state.is_logged_in = false;
                state.handles.clear();
                // Write-protected tokens have no other.
                self.context
                    .open_rw_session(token.slot)
                    .or_else(|_| self.context.open_ro_session(token.slot))
                    .map_err(error)?
            }
        };
        let mut open = Open {
            session,
            context: &self.context,
            token: &token,
            state: &mut state,
        };
        let result = run(&mut open);
        let Open { session, .. } = open;
        match result {
            // Whatever was open there has gone with it.
            Err(KeyError::NoToken) => {
                *state = State::default();
                drop(session);
                lock(&self.tokens).known.remove(&id);
            }
            _ => state.session = Some(session),
        }
        result
    }
}

/// A token with a session.
struct Open<'a> {
    session: Session,
    context: &'a Pkcs11,
    token: &'a Token,
    state: &'a mut State,
}

impl Open<'_> {
    fn has(&self, mechanism: MechanismType) -> bool {
        self.token.mechanisms.contains(&mechanism)
    }

    fn login(&mut self, pin: Option<&Secret>) -> Result<(), KeyError> {
        let info = self
            .context
            .get_token_info(self.token.slot)
            .map_err(error)?;
        // A PIN is for the token that it was entered for.
        if Identity::new(self.token.slot, &info) != self.token.identity {
            return Err(KeyError::NoToken);
        }
        if info.user_pin_locked() {
            return Err(KeyError::PinLocked);
        }
        let outcome = match pin {
            Some(pin) => {
                let pin = RawAuthPin::new(Box::new(pin.expose().to_vec()));
                self.session.login_with_raw(UserType::User, &pin)
            }
            None if info.protected_authentication_path() => {
                self.session.login(UserType::User, None)
            }
            None => return Err(KeyError::PinInvalid),
        };
        match outcome {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                self.state.is_logged_in = true;
                self.state.handles.clear();
                Ok(())
            }
            Err(other) => Err(error(other)),
        }
    }

    fn logout(&mut self) -> Result<(), KeyError> {
        self.state.is_logged_in = false;
        self.state.handles.clear();
        match self.session.logout() {
            Ok(()) | Err(Error::Pkcs11(RvError::UserNotLoggedIn, _)) => Ok(()),
            Err(other) => Err(error(other)),
        }
    }
}

impl KeyProvider for Module {
    fn tokens(&self) -> Result<Vec<TokenInfo>, KeyError> {
        let slots = self.slots()?;
        let mut list = Vec::new();
        for slot in &slots {
            if list.len() == MAX_TOKENS {
                break;
            }
            let Ok(info) = self.context.get_token_info(*slot) else {
                continue;
            };
            if !info.token_initialized() {
                continue;
            }
            let Ok(slot_info) = self.context.get_slot_info(*slot) else {
                continue;
            };
            let (id, token) = self.remember(*slot, &info)?;
            list.push(TokenInfo {
                id,
                label: token.identity.label.clone(),
                manufacturer: token.identity.manufacturer.clone(),
                model: text(info.model(), 32),
                serial: token.identity.serial.clone(),
                slot: text(slot_info.slot_description(), 64),
                is_hardware: slot_info.hardware_slot() && !is_software(&info),
                is_removable: slot_info.removable_device(),
                is_read_only: info.write_protected(),
                login: Login {
                    is_required: info.login_required(),
                    has_own_path: info.protected_authentication_path(),
                    is_not_set: !info.user_pin_initialized(),
                    tries_are_low: info.user_pin_count_low(),
                    is_last_try: info.user_pin_final_try(),
                    is_locked: info.user_pin_locked(),
                },
                features: features(&token.mechanisms, info.write_protected()),
            });
        }
        let mut tokens = lock(&self.tokens);
        tokens
            .known
            .retain(|id, _| list.iter().any(|token| token.id == *id));
        tokens.slots = slots.iter().map(|slot| slot.id()).collect();
        Ok(list)
    }

    /// When the service ends, its one connection does. The next worker makes a new one.
    fn is_over(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        // At its end there are no bytes, and no others that come.
        let mut byte = [0; 1];
        self.uses_pcsc
            && matches!(
                recv(rustix::stdio::stdin(), &mut byte[..], flags),
                Ok((_, 0))
            )
    }

    fn has_changed(&self) -> bool {
        let Ok(slots) = self.slots() else {
            return false;
        };
        let slots: Vec<u64> = slots.iter().map(|slot| slot.id()).collect();
        let mut tokens = lock(&self.tokens);
        let has_changed = tokens.slots != slots;
        tokens.slots = slots;
        has_changed
    }

    fn keys(&self, token: TokenId, start: usize) -> Result<(Vec<KeyInfo>, bool), KeyError> {
        self.with(token, |open| open.keys(start))
    }

    fn certificates(&self, token: TokenId, key: &KeyRef) -> Result<Vec<Bytes>, KeyError> {
        self.with(token, |open| open.certificates(key))
    }

    fn login(&self, token: TokenId, pin: Option<&Secret>) -> Result<(), KeyError> {
        self.with(token, |open| open.login(pin))
    }

    fn logout(&self, token: TokenId) -> Result<(), KeyError> {
        self.with(token, |open| open.logout())
    }

    fn generate(&self, token: TokenId, key: &NewKey) -> Result<KeyInfo, KeyError> {
        self.with(token, |open| open.generate(key))
    }

    fn delete(&self, token: TokenId, key: &KeyUse) -> Result<(), KeyError> {
        self.with(token, |open| open.delete(&key.key))
    }

    fn sign(
        &self,
        token: TokenId,
        key: &KeyUse,
        scheme: SignatureScheme,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with(token, |open| open.sign(key, scheme, data))
    }

    fn verify_mac(
        &self,
        token: TokenId,
        key: &KeyUse,
        hash: Hash,
        data: &[u8],
        mac: &[u8],
    ) -> Result<bool, KeyError> {
        self.with(token, |open| open.verify_mac(key, hash, data, mac))
    }

    fn encrypt(
        &self,
        token: TokenId,
        key: &KeyUse,
        cipher: &Cipher,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with(token, |open| open.encrypt(key, cipher, data))
    }

    fn decrypt(
        &self,
        token: TokenId,
        key: &KeyUse,
        cipher: &Cipher,
        data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with(token, |open| open.decrypt(key, cipher, data))
    }

    fn derive(&self, token: TokenId, key: &KeyUse, public: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.with(token, |open| open.derive(key, public))
    }

    fn derive_key(
        &self,
        token: TokenId,
        key: &KeyUse,
        public: &[u8],
        new: &NewKey,
    ) -> Result<KeyInfo, KeyError> {
        self.with(token, |open| open.derive_key(key, public, new))
    }

    fn wrap(
        &self,
        token: TokenId,
        with: &KeyUse,
        scheme: &WrapScheme,
        key: &KeyRef,
    ) -> Result<Vec<u8>, KeyError> {
        self.with(token, |open| open.wrap(with, scheme, key))
    }

    fn unwrap(
        &self,
        token: TokenId,
        with: &KeyUse,
        scheme: &WrapScheme,
        data: &[u8],
        key: &NewKey,
    ) -> Result<KeyInfo, KeyError> {
        self.with(token, |open| open.unwrap(with, scheme, data, key))
    }

    fn install_certificate(
        &self,
        token: TokenId,
        key: &KeyRef,
        certificate: &[u8],
    ) -> Result<(), KeyError> {
        self.with(token, |open| open.install_certificate(key, certificate))
    }

    fn remove_certificate(&self, token: TokenId, key: &KeyRef) -> Result<(), KeyError> {
        self.with(token, |open| open.remove_certificate(key))
    }

    fn attest(&self, _: TokenId, _: &KeyUse, _: &[u8]) -> Result<Attestation, KeyError> {
        Err(KeyError::Unsupported)
    }

    fn read_data(&self, token: TokenId, key: &KeyRef) -> Result<Option<Bytes>, KeyError> {
        self.with(token, |open| open.read_data(key))
    }

    fn write_data(&self, token: TokenId, key: &KeyRef, data: &[u8]) -> Result<(), KeyError> {
        self.with(token, |open| open.write_data(key, data))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a token says of itself, without what could move the text around it.
fn text(given: &str, length: usize) -> String {
    given
        .trim_end()
        .chars()
        .filter(|character| !character.is_control())
        .take(length)
        .collect()
}

fn is_software(info: &ModuleTokenInfo) -> bool {
    let said = format!("{} {}", info.manufacturer_id(), info.model()).to_lowercase();
    SOFTWARE.iter().any(|name| said.contains(name))
}

fn features(mechanisms: &[MechanismType], is_read_only: bool) -> Vec<TokenFeature> {
    let mut features = Vec::new();
    let mut add = |mechanism: MechanismType, which: &[TokenFeature]| {
        if mechanisms.contains(&mechanism) {
            for feature in which {
                if !features.contains(feature) {
                    features.push(*feature);
                }
            }
        }
    };
    let generate = TokenFeature::Generate;
    if !is_read_only {
        let rsa = [2048, 3072, 4096].map(|bits| generate(KeyAlgorithm::Rsa { bits }));
        add(MechanismType::RSA_PKCS_KEY_PAIR_GEN, &rsa);
        let curves = [Curve::P256, Curve::P384, Curve::P521];
        let ec = curves.map(|curve| generate(KeyAlgorithm::Ec(curve)));
        add(MechanismType::ECC_KEY_PAIR_GEN, &ec);
        let aes = [128, 192, 256].map(|bits| generate(KeyAlgorithm::Aes { bits }));
        add(MechanismType::AES_KEY_GEN, &aes);
        let secret = [256, 512].map(|bits| generate(KeyAlgorithm::Secret { bits }));
        add(MechanismType::GENERIC_SECRET_KEY_GEN, &secret);
    }
    // With the raw operation, the padding is the worker's.
    for mechanism in [MechanismType::RSA_PKCS, MechanismType::RSA_X_509] {
        add(mechanism, &[TokenFeature::RsaPkcs1]);
    }
    for mechanism in [MechanismType::RSA_PKCS_PSS, MechanismType::RSA_X_509] {
        add(mechanism, &[TokenFeature::RsaPss]);
    }
    for mechanism in [MechanismType::RSA_PKCS_OAEP, MechanismType::RSA_X_509] {
        add(mechanism, &[TokenFeature::RsaOaep]);
    }
    for (mechanism, feature) in [
        (MechanismType::ECDSA, TokenFeature::Ecdsa),
        (MechanismType::ECDH1_DERIVE, TokenFeature::Ecdh),
        (MechanismType::AES_CBC_PAD, TokenFeature::AesCbc),
        (MechanismType::AES_CTR, TokenFeature::AesCtr),
        (MechanismType::AES_GCM, TokenFeature::AesGcm),
        (MechanismType::AES_KEY_WRAP, TokenFeature::AesKw),
        (MechanismType::SHA1_HMAC, TokenFeature::Hmac(Hash::Sha1)),
        (MechanismType::SHA256_HMAC, TokenFeature::Hmac(Hash::Sha256)),
        (MechanismType::SHA384_HMAC, TokenFeature::Hmac(Hash::Sha384)),
        (MechanismType::SHA512_HMAC, TokenFeature::Hmac(Hash::Sha512)),
    ] {
        add(mechanism, &[feature]);
    }
    if !is_read_only {
        features.extend([TokenFeature::Data, TokenFeature::Certificates]);
    }
    features
}

/// What an error of the module's means.
fn error(error: Error) -> KeyError {
    use RvError::*;
    let Error::Pkcs11(code, function) = error else {
        log::debug!("{error}");
        return match error {
            Error::NotSupported | Error::NullFunctionPointer => KeyError::Unsupported,
            _ => KeyError::Nonsense,
        };
    };
    log::debug!("{function}: {code}");
    match code {
        DeviceRemoved | TokenNotPresent | TokenNotRecognized | SessionHandleInvalid
        | SessionClosed | SlotIdInvalid => KeyError::NoToken,
        ObjectHandleInvalid
        | KeyHandleInvalid
        | WrappingKeyHandleInvalid
        | UnwrappingKeyHandleInvalid => KeyError::NoKey,
        UserNotLoggedIn => KeyError::NotLoggedIn,
        PinIncorrect => KeyError::PinIncorrect,
        PinInvalid | PinLenRange | ArgumentsBad if is_login(&function) => KeyError::PinInvalid,
        PinLocked | PinExpired | UserPinNotInitialized => KeyError::PinLocked,
        FunctionCanceled | Cancel => KeyError::Canceled,
        FunctionRejected | ActionProhibited | PinTooWeak => KeyError::Refused,
        MechanismInvalid
        | MechanismParamInvalid
        | KeySizeRange
        | CurveNotSupported
        | DomainParamsInvalid
        | FunctionNotSupported
        | FunctionNotParallel
        | ArgumentsBad
        | TemplateIncomplete
        | TemplateInconsistent
        | AttributeTypeInvalid
        | AttributeValueInvalid
        | WrappingKeySizeRange
        | UnwrappingKeySizeRange => KeyError::Unsupported,
        KeyFunctionNotPermitted
        | KeyTypeInconsistent
        | WrappingKeyTypeInconsistent
        | UnwrappingKeyTypeInconsistent => KeyError::UsageRefused,
        KeyUnextractable | KeyNotWrappable | AttributeSensitive | InformationSensitive => {
            KeyError::Unextractable
        }
        DataInvalid
        | DataLenRange
        | EncryptedDataInvalid
        | EncryptedDataLenRange
        | WrappedKeyInvalid
        | WrappedKeyLenRange
        | PublicKeyInvalid => KeyError::BadData,
        TokenWriteProtected | SessionReadOnly | AttributeReadOnly => KeyError::ReadOnly,
        DeviceMemory => KeyError::Full,
        SessionCount | OperationActive => KeyError::Busy,
        _ => KeyError::Failed,
    }
}

fn is_login(function: &cryptoki::context::Function) -> bool {
    matches!(function, cryptoki::context::Function::Login)
}
