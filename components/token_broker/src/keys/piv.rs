/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A PIV card as a token: what [`Operation`]s are in its commands.
//!
//! A slot is a key. What the standard has no place for is kept in the data object of the slot's certificate, behind the
//! certificate, in an object of the private class, D0, which others pass over:
//!
//! | tag | value |
//! |---|---|
//! | 80 | the key's name |
//! | 81 | what the browser keeps with it (its origins) |
//! | 82 | its public half, SubjectPublicKeyInfo: for cards that do not tell it, and to see that it is still the same key |
//! | 83 | what it may do: bits, 1 sign, 2 decrypt, 4 derive |
//!
//! So it stays with the card. Another program that writes the slot's certificate drops it: then the key has no list of
//! origins any more, and only the user can give it to one.

use std::sync::Arc;

use secure_element::piv::data::{certificate, with_certificate};
use secure_element::piv::key::{PublicKey, ecdsa_input, plain_signature};
use secure_element::piv::{
    Algorithm, Card, Discovery, Generate, ManagementKey, PinPolicy, PinReference, PivError, Slot,
    Tries,
};
use secure_element::tlv::{self, Reader, Tag};
use sha2::{Digest, Sha256};
use token_workers::key_protocol::{
    Bytes, Cipher, Curve, KeyAlgorithm, KeyError, KeyInfo, KeyRef, KeyReply, KeyUse, Login,
    MAX_LABEL, NewKey, Operation, SignatureScheme, Usages,
};
use token_workers::padding;
use zeroize::Zeroizing;

const KEPT: Tag = Tag(0xD0);
const NAME: Tag = Tag(0x80);
const DATA: Tag = Tag(0x81);
const PUBLIC: Tag = Tag(0x82);
const USAGES: Tag = Tag(0x83);
const END: Tag = Tag(0xFE);

/// What is known of a card.
#[derive(Debug)]
pub(crate) struct CardInfo {
    /// What the application calls itself.
    pub(crate) label: Option<String>,
    /// Which one it is, as far as it says.
    pub(crate) serial: String,
    /// What it can generate, as far as it says.
    pub(crate) algorithms: Vec<Algorithm>,
    pin: PinReference,
    /// It says which keys it has; others only have certificates.
    tells_keys: bool,
}

/// A key.
#[derive(Clone, Debug)]
pub(crate) struct SlotKey {
    slot: Slot,
    algorithm: Algorithm,
    /// SubjectPublicKeyInfo.
    spki: Vec<u8>,
    pin_policy: PinPolicy,
    is_generated: bool,
    certificate: Option<Vec<u8>>,
    kept: Kept,
}

/// What is kept with a key.
#[derive(Clone, Debug, Default)]
struct Kept {
    name: Option<String>,
    data: Option<Vec<u8>>,
    usages: Option<u8>,
}

/// What a card is to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// Say whether it has the application, and how the PIN is.
    Look,
    /// Something that a document asks for.
    Operate(Operation),
}

/// What is known before, and after.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// The application is selected.
    pub(crate) is_selected: bool,
    /// A login has not ended.
    pub(crate) is_logged_in: bool,
    /// The card may not have forgotten what was shown to it.
    pub(crate) is_dirty: bool,
    pub(crate) info: Option<Arc<CardInfo>>,
    pub(crate) keys: Option<Arc<Vec<SlotKey>>>,
    pub(crate) login: Login,
    pub(crate) management_key: Option<ManagementKey>,
}

/// What has come of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: Result<KeyReply, KeyError>,
    pub(crate) state: State,
}

/// Has the card do it. What the PIN has opened for one operation is closed after it; a login stays.
pub(crate) async fn carry_out(card: Card, task: Task, state: State) -> Result<Outcome, PivError> {
    let mut at = At {
        card,
        state,
        pin_was_shown: false,
    };
    let result = at.perform(&task).await.map_err(key_error);
    let is_over = matches!(result, Err(KeyError::NotLoggedIn));
    at.state.is_logged_in &= !is_over;
    if at.pin_was_shown && !at.state.is_logged_in {
        at.forget_pin().await;
    }
    Ok(Outcome {
        result,
        state: at.state,
    })
}

fn key_error(error: Refusal) -> KeyError {
    match error {
        Refusal::Key(error) => error,
        Refusal::Card(error) => match error {
            PivError::NoApplication => KeyError::NoToken,
            PivError::NotThere => KeyError::NoKey,
            PivError::NotAuthenticated => KeyError::NotLoggedIn,
            PivError::WrongPin { .. } => KeyError::PinIncorrect,
            PivError::Blocked => KeyError::PinLocked,
            PivError::InvalidPin => KeyError::PinInvalid,
            PivError::WrongManagementKey => KeyError::ReadOnly,
            PivError::Unsupported => KeyError::Unsupported,
            PivError::Full => KeyError::Full,
            PivError::BadData => KeyError::BadData,
            PivError::Nonsense => KeyError::Nonsense,
            PivError::Status(_) => KeyError::Failed,
        },
    }
}

enum Refusal {
    Key(KeyError),
    Card(PivError),
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

impl From<PivError> for Refusal {
    fn from(error: PivError) -> Self {
        Self::Card(error)
    }
}

struct At {
    card: Card,
    state: State,
    pin_was_shown: bool,
}

impl At {
    async fn perform(&mut self, task: &Task) -> Result<KeyReply, Refusal> {
        let info = self.enter().await?;
        let operation = match task {
            Task::Look => {
                self.look(&info).await?;
                return Ok(KeyReply::Done);
            }
            Task::Operate(operation) => operation,
        };
        match operation {
            Operation::ListKeys { start } => {
                self.read_keys(&info).await?;
                let can_change = self.state.management_key.is_some();
                let start = usize::try_from(*start).unwrap_or(usize::MAX);
                let keys = self.state.keys.iter().flat_map(|keys| keys.iter());
                let keys = keys.skip(start).map(|key| key.info(can_change)).collect();
                Ok(KeyReply::Keys { keys, more: false })
            }
            Operation::ListCertificates(key) => {
                let key = self.key(&info, key).await?;
                let certificate = key.certificate.clone().map(Bytes);
                Ok(KeyReply::Certificates(certificate.into_iter().collect()))
            }
            Operation::ReadData(key) => {
                let key = self.key(&info, key).await?;
                Ok(KeyReply::Data(key.kept.data.clone().map(Bytes)))
            }
            Operation::Login { pin } => {
                let pin = pin.as_ref().ok_or(KeyError::PinInvalid)?;
                // A wrong one ends what an earlier one has opened.
                self.state.is_logged_in = false;
                self.show_pin(&info, pin.expose()).await?;
                self.state.is_logged_in = true;
                Ok(KeyReply::Done)
            }
            Operation::Logout => {
                self.state.is_logged_in = false;
                self.pin_was_shown = true;
                Ok(KeyReply::Done)
            }
            Operation::Generate(new) => self.generate(&info, new).await,
            Operation::Delete(used) => self.delete(&info, used).await,
            Operation::Sign { key, scheme, data } => self.sign(&info, key, *scheme, &data.0).await,
            Operation::Decrypt {
                key,
                cipher: Cipher::RsaOaep { hash, label },
                data,
            } => {
                let slot_key = self.authorized(&info, key).await?;
                if !slot_key.algorithm.is_rsa() {
                    return Err(KeyError::UsageRefused.into());
                }
                let (slot, algorithm) = (slot_key.slot, slot_key.algorithm);
                let block = self.card.operate(slot, algorithm, &data.0).await?;
                let block = Zeroizing::new(block);
                let text = padding::oaep_decode(*hash, &label.0, &block);
                let text = text.ok_or(KeyError::BadData)?;
                Ok(KeyReply::Bytes(Bytes(text.to_vec())))
            }
            Operation::Derive {
                key,
                public,
                into: None,
            } => {
                let slot_key = self.authorized(&info, key).await?;
                let (slot, algorithm) = (slot_key.slot, slot_key.algorithm);
                let secret = self.card.agree(slot, algorithm, &public.0).await?;
                Ok(KeyReply::Bytes(Bytes(secret)))
            }
            Operation::InstallCertificate { key, certificate } => {
                let mut changed = self.key(&info, key).await?;
                let own = PublicKey::of_certificate(&certificate.0)
                    .is_ok_and(|public| public.to_spki() == changed.spki);
                if !own {
                    return Err(KeyError::BadData.into());
                }
                changed.certificate = Some(certificate.0.clone());
                self.change(changed).await
            }
            Operation::RemoveCertificate(key) => {
                let mut changed = self.key(&info, key).await?;
                changed.certificate = None;
                self.change(changed).await
            }
            Operation::WriteData { key, data } => {
                let mut changed = self.key(&info, key).await?;
                changed.kept.data = Some(data.0.clone());
                self.change(changed).await
            }
            Operation::VerifyMac { .. }
            | Operation::Encrypt { .. }
            | Operation::Decrypt { .. }
            | Operation::Derive { .. }
            | Operation::Wrap { .. }
            | Operation::Unwrap { .. }
            | Operation::Attest { .. } => Err(KeyError::Unsupported.into()),
        }
    }

    /// Selects the application, where it is not selected, and reads what does not change.
    async fn enter(&mut self) -> Result<Arc<CardInfo>, Refusal> {
        let properties = match self.state.is_selected {
            true => None,
            false => Some(self.card.select().await?),
        };
        self.state.is_selected = true;
        if let Some(info) = &self.state.info {
            return Ok(info.clone());
        }
        let properties = properties.unwrap_or_default();
        let discovery = self.card.discovery().await.unwrap_or_default();
        let chuid = self.card.chuid().await.unwrap_or_default();
        let guid = chuid
            .as_ref()
            .and_then(|chuid| chuid.guid)
            .map(|guid| guid.to_vec());
        let fasc_n = chuid.and_then(|chuid| chuid.fasc_n);
        let serial = match self.card.serial().await? {
            Some(serial) => serial.to_string(),
            None => hexadecimal(&guid.or(fasc_n).unwrap_or_default()),
        };
        let info = Arc::new(CardInfo {
            label: properties.label,
            serial,
            algorithms: properties.algorithms,
            pin: pin_of(discovery),
            tells_keys: self.card.management_algorithm().await?.is_some(),
        });
        self.state.info = Some(info.clone());
        Ok(info)
    }

    /// How the PIN is.
    async fn look(&mut self, info: &CardInfo) -> Result<(), Refusal> {
        let mut login = Login {
            is_required: true,
            ..Login::default()
        };
        match self.card.tries(info.pin).await? {
            Tries::Left(tries) => {
                login.tries_are_low = tries < 3;
                login.is_last_try = tries == 1;
                login.is_locked = tries == 0;
            }
            // Another program's, or this one's.
            Tries::Verified | Tries::Unknown => {}
        }
        self.state.login = login;
        Ok(())
    }

    async fn show_pin(&mut self, info: &CardInfo, pin: &[u8]) -> Result<(), Refusal> {
        self.pin_was_shown = true;
        Ok(self.card.verify(info.pin, pin).await?)
    }

    async fn forget_pin(&mut self) {
        let pin = self.state.info.as_ref().map(|info| info.pin);
        if self.card.forget_pin(pin.unwrap_or_default()).await.is_err() {
            // An older card: the end of the channel, or a reset, makes it forget.
            self.state.is_dirty = true;
        }
    }

    async fn read_keys(&mut self, info: &CardInfo) -> Result<(), Refusal> {
        let mut keys = Vec::new();
        for slot in Slot::all() {
            let metadata = match info.tells_keys {
                true => match self.card.metadata(slot).await? {
                    Some(metadata) => Some(metadata),
                    None => continue,
                },
                false => None,
            };
            // One that cannot be read, or makes no sense, is as good as none.
            let value = self.card.find_data(slot.certificate()).await;
            let value = value.ok().flatten().unwrap_or_default();
            let certificate = certificate(&value).ok().flatten();
            let (kept, kept_spki) = Kept::read(&value).unwrap_or_default();
            let metadata = metadata.unwrap_or_default();
            let of_certificate = certificate
                .as_deref()
                .and_then(|certificate| PublicKey::of_certificate(certificate).ok());
            let of_kept = kept_spki
                .as_deref()
                .and_then(|spki| PublicKey::from_spki(spki).ok());
            let public = metadata
                .public_key
                .or_else(|| of_kept.clone())
                .or_else(|| of_certificate.clone());
            let Some((public, algorithm)) =
                public.and_then(|public| Some((public.clone(), public.algorithm()?)))
            else {
                continue;
            };
            let is_kept = of_kept.as_ref() == Some(&public);
            keys.push(SlotKey {
                slot,
                algorithm,
                spki: public.to_spki(),
                pin_policy: metadata.pin_policy.unwrap_or(slot.pin_policy()),
                // What is kept was written when the key was made.
                is_generated: metadata.is_generated.unwrap_or(is_kept),
                certificate: certificate.filter(|_| of_certificate.as_ref() == Some(&public)),
                kept: if is_kept { kept } else { Kept::default() },
            });
        }
        self.state.keys = Some(Arc::new(keys));
        Ok(())
    }

    /// A key that is there.
    async fn key(&mut self, info: &CardInfo, key: &KeyRef) -> Result<SlotKey, Refusal> {
        if self.state.keys.is_none() {
            self.read_keys(info).await?;
        }
        let mut keys = self.state.keys.iter().flat_map(|keys| keys.iter());
        let found = keys.find(|found| found.reference() == *key).cloned();
        found.ok_or(KeyError::NoKey.into())
    }

    /// A key that is about to be used, with what authorizes it shown.
    async fn authorized(&mut self, info: &CardInfo, used: &KeyUse) -> Result<SlotKey, Refusal> {
        let key = self.key(info, &used.key).await?;
        match (&used.auth, key.pin_policy) {
            (Some(pin), PinPolicy::Always) => self.show_pin(info, pin.expose()).await?,
            (None, PinPolicy::Always) => return Err(KeyError::NotLoggedIn.into()),
            // What another program has opened on a channel of its own is not open here.
            (_, PinPolicy::Once) if !self.state.is_logged_in => {
                return Err(KeyError::NotLoggedIn.into());
            }
            _ => {}
        }
        Ok(key)
    }

    async fn sign(
        &mut self,
        info: &CardInfo,
        used: &KeyUse,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<KeyReply, Refusal> {
        let key = self.key(info, &used.key).await?;
        let algorithm = key.algorithm;
        let length = algorithm.length();
        let input = match (scheme, algorithm.is_rsa()) {
            (SignatureScheme::RsaPkcs1(hash), true) => padding::pkcs1_encode(hash, digest, length),
            (SignatureScheme::RsaPss { hash, salt_length }, true) => {
                let salt = random(usize::from(salt_length).min(length))?;
                let is_whole = salt.len() == usize::from(salt_length);
                let encoded = padding::pss_encode(hash, digest, &salt, 8 * length);
                encoded.filter(|_| is_whole)
            }
            (SignatureScheme::Ecdsa, false) => Some(ecdsa_input(algorithm, digest)),
            _ => return Err(KeyError::UsageRefused.into()),
        };
        let input = input.ok_or(KeyError::Unsupported)?;
        self.authorized(info, used).await?;
        let signature = self.card.operate(key.slot, algorithm, &input).await?;
        let signature = match algorithm.is_rsa() {
            true => signature,
            false => plain_signature(algorithm, &signature)?,
        };
        Ok(KeyReply::Bytes(Bytes(signature)))
    }

    /// Shows the management key.
    async fn manage(&mut self) -> Result<(), Refusal> {
        let key = self
            .state
            .management_key
            .clone()
            .ok_or(KeyError::ReadOnly)?;
        let challenge = random(16)?;
        let challenge = challenge.first_chunk().ok_or(KeyError::Failed)?;
        Ok(self.card.authenticate_management(&key, challenge).await?)
    }

    /// Writes a slot's data object, and what is known of its key.
    async fn write(&mut self, key: SlotKey) -> Result<(), Refusal> {
        let value = key.object();
        self.card.put_data(key.slot.certificate(), &value).await?;
        let known = self.state.keys.take().unwrap_or_default();
        let others = known.iter().filter(|other| other.slot != key.slot).cloned();
        let mut keys: Vec<SlotKey> = others.collect();
        keys.push(key);
        self.state.keys = Some(Arc::new(keys));
        Ok(())
    }

    async fn change(&mut self, key: SlotKey) -> Result<KeyReply, Refusal> {
        self.manage().await?;
        self.write(key).await?;
        Ok(KeyReply::Done)
    }

    async fn generate(&mut self, info: &CardInfo, new: &NewKey) -> Result<KeyReply, Refusal> {
        let algorithm = algorithm(new.algorithm).ok_or(KeyError::Unsupported)?;
        if new.is_wrappable || !new.is_persistent || new.auth.is_some() {
            return Err(KeyError::Unsupported.into());
        }
        // Nothing that another program has put there meanwhile is replaced.
        self.read_keys(info).await?;
        let keys = self.state.keys.clone().unwrap_or_default();
        self.manage().await?;
        let mut refused = KeyError::Full;
        for slot in places(new, info.tells_keys) {
            if keys.iter().any(|key| key.slot == slot) {
                continue;
            }
            let is_own_policy = slot.pin_policy() == PinPolicy::Always;
            let pin_policy = (new.asks_each_time && !is_own_policy).then_some(PinPolicy::Always);
            let made = self
                .card
                .generate(Generate {
                    slot,
                    algorithm,
                    pin_policy,
                })
                .await;
            let public = match made {
                Ok(public) => public,
                // Not in this slot.
                Err(PivError::Unsupported) => {
                    refused = KeyError::Unsupported;
                    continue;
                }
                Err(PivError::BadData) => return Err(KeyError::Unsupported.into()),
                Err(error) => return Err(error.into()),
            };
            let name = Some(&new.label).filter(|name| !name.is_empty()).cloned();
            let key = SlotKey {
                slot,
                algorithm,
                spki: public.to_spki(),
                pin_policy: pin_policy.unwrap_or(slot.pin_policy()),
                is_generated: true,
                certificate: None,
                kept: Kept {
                    name,
                    data: None,
                    usages: Some(bits(new.usages)),
                },
            };
            let info = key.info(true);
            if let Err(error) = self.write(key).await {
                // Nobody would find it again.
                let _ = self.card.delete_key(slot).await;
                return Err(error);
            }
            return Ok(KeyReply::Key(Box::new(info)));
        }
        Err(refused.into())
    }

    async fn delete(&mut self, info: &CardInfo, used: &KeyUse) -> Result<KeyReply, Refusal> {
        let key = self.key(info, &used.key).await?;
        self.manage().await?;
        match self.card.delete_key(key.slot).await {
            Ok(()) | Err(PivError::NotThere) => {}
            // The standard knows no such command. Another key in its place, of which nobody hears, ends it as well.
            Err(_) => {
                let other = Generate {
                    slot: key.slot,
                    algorithm: key.algorithm,
                    pin_policy: None,
                };
                self.card.generate(other).await?;
            }
        }
        self.card.put_data(key.slot.certificate(), &[]).await?;
        let known = self.state.keys.take().unwrap_or_default();
        let others = known.iter().filter(|other| other.slot != key.slot).cloned();
        self.state.keys = Some(Arc::new(others.collect()));
        Ok(KeyReply::Done)
    }
}

/// The PIN that the card's holder knows.
fn pin_of(discovery: Discovery) -> PinReference {
    match discovery {
        Discovery {
            prefers_global_pin: true,
            ..
        }
        | Discovery {
            has_application_pin: false,
            has_global_pin: true,
            ..
        } => PinReference::Global,
        _ => PinReference::Application,
    }
}

/// Where a new key can be, the best first.
fn places(new: &NewKey, takes_policies: bool) -> Vec<Slot> {
    let retired = Slot::all().filter(|slot| slot.is_retired());
    let signs = new.usages.contains(Usages::SIGN);
    let mut places = match (new.asks_each_time, signs) {
        (true, true) => vec![Slot::SIGNATURE],
        (true, false) => Vec::new(),
        (false, true) => vec![Slot::AUTHENTICATION],
        (false, false) => vec![Slot::KEY_MANAGEMENT],
    };
    if !new.asks_each_time || takes_policies {
        places.extend(retired);
    }
    if !new.asks_each_time {
        let last = if signs {
            Slot::KEY_MANAGEMENT
        } else {
            Slot::AUTHENTICATION
        };
        places.push(last);
    }
    places
}

fn algorithm(of: KeyAlgorithm) -> Option<Algorithm> {
    match of {
        KeyAlgorithm::Rsa { bits: 2048 } => Some(Algorithm::Rsa2048),
        KeyAlgorithm::Rsa { bits: 3072 } => Some(Algorithm::Rsa3072),
        KeyAlgorithm::Rsa { bits: 4096 } => Some(Algorithm::Rsa4096),
        KeyAlgorithm::Ec(Curve::P256) => Some(Algorithm::P256),
        KeyAlgorithm::Ec(Curve::P384) => Some(Algorithm::P384),
        _ => None,
    }
}

/// The kind of key, for documents.
pub(crate) fn key_algorithm(of: Algorithm) -> KeyAlgorithm {
    match of {
        Algorithm::Rsa1024 => KeyAlgorithm::Rsa { bits: 1024 },
        Algorithm::Rsa2048 => KeyAlgorithm::Rsa { bits: 2048 },
        Algorithm::Rsa3072 => KeyAlgorithm::Rsa { bits: 3072 },
        Algorithm::Rsa4096 => KeyAlgorithm::Rsa { bits: 4096 },
        Algorithm::P256 => KeyAlgorithm::Ec(Curve::P256),
        Algorithm::P384 => KeyAlgorithm::Ec(Curve::P384),
    }
}

const USAGE_BITS: [(u8, Usages); 3] =
    [(1, Usages::SIGN), (2, Usages::DECRYPT), (4, Usages::DERIVE)];

fn bits(usages: Usages) -> u8 {
    let held = USAGE_BITS
        .iter()
        .filter(|(_, usage)| usages.contains(*usage));
    held.fold(0, |bits, (bit, _)| bits | bit)
}

impl SlotKey {
    /// Names the slot and this key in it, so that another one there is not taken for it.
    fn reference(&self) -> KeyRef {
        let digest = Sha256::digest(&self.spki);
        let digest = digest.get(..16).unwrap_or_default();
        KeyRef([&[self.slot.reference()], digest].concat())
    }

    fn usages(&self) -> Usages {
        let is_for_agreement = self.slot == Slot::KEY_MANAGEMENT || self.slot.is_retired();
        let bits = self.kept.usages.unwrap_or(match is_for_agreement {
            true => 2 | 4,
            false => 1,
        });
        let held = USAGE_BITS.iter().filter(|(bit, _)| bits & bit != 0);
        let held = held.fold(Usages::NONE, |all, (_, usage)| all.and(*usage));
        let possible = match self.algorithm.is_rsa() {
            true => Usages::SIGN.and(Usages::DECRYPT),
            false => Usages::SIGN.and(Usages::DERIVE),
        };
        held.common(possible)
    }

    fn info(&self, can_change: bool) -> KeyInfo {
        let name = self.kept.name.clone();
        KeyInfo {
            key: self.reference(),
            label: name.unwrap_or_else(|| self.slot.name()),
            identifier: vec![self.slot.reference()],
            algorithm: key_algorithm(self.algorithm),
            usages: self.usages(),
            public_key: Some(Bytes(self.spki.clone())),
            has_certificate: self.certificate.is_some(),
            is_hidden: false,
            is_sensitive: true,
            is_extractable: false,
            is_local: self.is_generated,
            was_never_extractable: self.is_generated,
            asks_each_time: self.pin_policy == PinPolicy::Always,
            is_persistent: true,
            is_modifiable: can_change,
        }
    }

    /// The value of its slot's data object.
    fn object(&self) -> Vec<u8> {
        let mut kept = Vec::new();
        if let Some(name) = &self.kept.name {
            tlv::write(&mut kept, NAME, name.as_bytes());
        }
        if let Some(data) = &self.kept.data {
            tlv::write(&mut kept, DATA, data);
        }
        tlv::write(&mut kept, PUBLIC, &self.spki);
        if let Some(usages) = self.kept.usages {
            tlv::write(&mut kept, USAGES, &[usages]);
        }
        let mut value = Vec::new();
        tlv::write(&mut value, KEPT, &kept);
        if let Some(certificate) = &self.certificate {
            // In front of what ends the object.
            let certificate = with_certificate(certificate);
            let end = [0xFE, 0x00];
            let body = certificate.strip_suffix(&end).unwrap_or(&certificate);
            value.splice(0..0, body.iter().copied());
        }
        tlv::write(&mut value, END, &[]);
        value
    }
}

impl Kept {
    /// Reads it from the value of a data object, with the public half that it was written for.
    fn read(value: &[u8]) -> Option<(Self, Option<Vec<u8>>)> {
        let objects: Result<Vec<_>, _> = Reader::new(value).collect();
        let kept = objects
            .ok()?
            .into_iter()
            .find(|object| object.tag == KEPT)?;
        let mut found = Self::default();
        let mut public = None;
        for part in Reader::new(kept.value) {
            let part = part.ok()?;
            match (part.tag, part.value) {
                (NAME, name) if name.len() <= MAX_LABEL => {
                    found.name = String::from_utf8(name.to_vec()).ok();
                }
                (DATA, data) => found.data = Some(data.to_vec()),
                (PUBLIC, spki) => public = Some(spki.to_vec()),
                (USAGES, [usages]) => found.usages = Some(*usages),
                _ => {}
            }
        }
        Some((found, public))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn random(length: usize) -> Result<Vec<u8>, KeyError> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(rest, flags) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(KeyError::Failed),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(certificate: Option<Vec<u8>>, kept: Kept) -> SlotKey {
        let public = PublicKey::Ec {
            algorithm: Algorithm::P256,
            point: [&[4][..], &[7; 64]].concat(),
        };
        SlotKey {
            slot: Slot::AUTHENTICATION,
            algorithm: Algorithm::P256,
            spki: public.to_spki(),
            pin_policy: PinPolicy::Once,
            is_generated: true,
            certificate,
            kept,
        }
    }

    #[test]
    fn what_is_kept_stands_behind_the_certificate() {
        let kept = Kept {
            name: Some("signing".into()),
            data: Some(vec![1; 500]),
            usages: Some(1),
        };
        for of in [None, Some(vec![0x30, 0x03, 0x02, 0x01, 0x05])] {
            let key = key(of.clone(), kept.clone());
            let value = key.object();
            assert_eq!(certificate(&value), Ok(of));
            let (found, spki) = Kept::read(&value).unwrap();
            assert_eq!(found.name.as_deref(), Some("signing"));
            assert_eq!(found.data, Some(vec![1; 500]));
            assert_eq!(found.usages, Some(1));
            assert_eq!(spki, Some(key.spki.clone()));
            assert!(value.ends_with(&[0xFE, 0x00]));
        }
        for malformed in [&[0xD0, 0x05, 0x80][..], &[0xD0, 0x02, 0x80, 0x05], &[]] {
            assert!(Kept::read(malformed).is_none());
        }
    }

    #[test]
    fn keys_find_places_that_ask_as_they_are_to() {
        let new = |usages, asks_each_time| NewKey {
            algorithm: KeyAlgorithm::Ec(Curve::P256),
            usages,
            label: String::new(),
            is_wrappable: false,
            is_persistent: true,
            asks_each_time,
            auth: None,
        };
        let first = |usages, each, policies| places(&new(usages, each), policies).first().copied();
        assert_eq!(
            first(Usages::SIGN, false, false),
            Some(Slot::AUTHENTICATION)
        );
        assert_eq!(
            first(Usages::DERIVE, false, false),
            Some(Slot::KEY_MANAGEMENT)
        );
        assert_eq!(first(Usages::SIGN, true, false), Some(Slot::SIGNATURE));
        assert_eq!(first(Usages::DERIVE, true, false), None);
        assert_eq!(first(Usages::DERIVE, true, true), Slot::new(0x82));
        for each in [true, false] {
            let all = places(&new(Usages::SIGN, each), true);
            // Nothing goes where no PIN is asked for.
            assert!(!all.contains(&Slot::CARD_AUTHENTICATION));
            assert_eq!(all.contains(&Slot::SIGNATURE), each);
        }
    }

    #[test]
    fn a_key_is_named_with_its_slot_and_its_public_half() {
        let one = key(None, Kept::default());
        let mut other = one.clone();
        other.spki[40] ^= 1;
        assert_ne!(one.reference(), other.reference());
        let info = one.info(true);
        assert_eq!(info.label, "PIV Authentication");
        assert_eq!(info.usages, Usages::SIGN);
        assert_eq!(info.identifier, [0x9A]);
        other.slot = Slot::KEY_MANAGEMENT;
        assert_eq!(other.info(false).usages, Usages::DERIVE);
        assert!(!other.info(false).is_modifiable);
    }
}
