/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What is in a token: keys, their certificates, and what the browser keeps with them.

use cryptoki::object::{
    Attribute, AttributeInfo, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle,
};
use cryptoki::session::Session;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Key, Open, error};
use crate::encoding;
use crate::key_protocol::{
    Bytes, KeyAlgorithm, KeyError, KeyInfo, KeyRef, MAX_CERTIFICATE, MAX_DATA_OBJECT, MAX_KEYS,
    Usages,
};

/// CKA_APPLICATION of what the browser keeps with keys.
const APPLICATION: &[u8] = b"web-token-key-origins";

/// The longest attribute that is read, in bytes.
const MAX_ATTRIBUTE: usize = 64 * 1024;

/// Most certificates of a chain.
const MAX_CHAIN: usize = 8;

/// About how long a list of keys may be, in bytes, to fit into a frame.
const MAX_LIST: usize = 48 * 1024;

/// What a [`KeyRef`] of this provider is made of, in postcard's encoding. Handles end with the process; this does not.
///
/// A key is known by its CKA_ID, which it shares with its public half and its certificate; by its label only if it has none.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Name {
    pub is_private: bool,
    #[serde(with = "serde_bytes")]
    pub id: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub label: Vec<u8>,
}

impl Name {
    fn new(is_private: bool, id: &[u8], label: &[u8]) -> Self {
        Self {
            is_private,
            id: id.to_vec(),
            label: if id.is_empty() {
                label.to_vec()
            } else {
                Vec::new()
            },
        }
    }

    fn encode(&self) -> Result<KeyRef, KeyError> {
        postcard::to_stdvec(self)
            .map(KeyRef)
            .map_err(|_| KeyError::Nonsense)
    }

    pub fn of(key: &KeyRef) -> Result<Self, KeyError> {
        postcard::from_bytes(&key.0).map_err(|_| KeyError::BadRequest)
    }

    fn class(&self) -> ObjectClass {
        if self.is_private {
            ObjectClass::PRIVATE_KEY
        } else {
            ObjectClass::SECRET_KEY
        }
    }

    fn template(&self, class: ObjectClass) -> Vec<Attribute> {
        let mut template = vec![Attribute::Class(class)];
        if !self.id.is_empty() {
            template.push(Attribute::Id(self.id.clone()));
        }
        if !self.label.is_empty() {
            template.push(Attribute::Label(self.label.clone()));
        }
        template
    }

    /// CKA_LABEL of what is kept with the key: the same as long as the key keeps its identifier.
    fn data_label(&self) -> Vec<u8> {
        let name = if self.id.is_empty() {
            &self.label
        } else {
            &self.id
        };
        let class = if self.is_private { "private" } else { "secret" };
        let digest = Sha256::new()
            .chain_update(class)
            .chain_update([u8::from(self.id.is_empty())])
            .chain_update(name)
            .finalize();
        let digits = digest.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>().into_bytes()
    }

    fn data_template(&self) -> Vec<Attribute> {
        vec![
            Attribute::Class(ObjectClass::DATA),
            Attribute::Application(APPLICATION.to_vec()),
            Attribute::Label(self.data_label()),
        ]
    }
}

/// What a key, a public key or a certificate says of itself.
#[derive(Debug, Default)]
struct Described {
    id: Vec<u8>,
    label: Vec<u8>,
    key_type: Option<KeyType>,
    modulus: Option<Vec<u8>>,
    exponent: Option<Vec<u8>>,
    ec_parameters: Option<Vec<u8>>,
    ec_point: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    value_length: Option<u64>,
    usages: Usages,
    /// The same, as a public half says them.
    public_usages: Usages,
    is_sensitive: bool,
    is_extractable: bool,
    is_local: bool,
    was_never_extractable: bool,
    asks_each_time: bool,
    is_persistent: bool,
    is_modifiable: bool,
}

const LONG: [AttributeType; 7] = [
    AttributeType::Id,
    AttributeType::Label,
    AttributeType::Modulus,
    AttributeType::PublicExponent,
    AttributeType::EcParams,
    AttributeType::EcPoint,
    AttributeType::Value,
];

const PUBLIC: &[AttributeType] = &[
    AttributeType::Id,
    AttributeType::Label,
    AttributeType::KeyType,
    AttributeType::Modulus,
    AttributeType::PublicExponent,
    AttributeType::EcParams,
    AttributeType::EcPoint,
    AttributeType::Verify,
    AttributeType::Encrypt,
    AttributeType::Wrap,
    AttributeType::Derive,
];

const PRIVATE: &[AttributeType] = &[
    AttributeType::Id,
    AttributeType::Label,
    AttributeType::KeyType,
    AttributeType::Modulus,
    AttributeType::PublicExponent,
    AttributeType::EcParams,
    AttributeType::Sign,
    AttributeType::Decrypt,
    AttributeType::Derive,
    AttributeType::Unwrap,
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::Local,
    AttributeType::NeverExtractable,
    AttributeType::AlwaysAuthenticate,
    AttributeType::Token,
    AttributeType::Modifiable,
];

const SECRET: &[AttributeType] = &[
    AttributeType::Id,
    AttributeType::Label,
    AttributeType::KeyType,
    AttributeType::ValueLen,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Derive,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::Local,
    AttributeType::NeverExtractable,
    AttributeType::Token,
    AttributeType::Modifiable,
];

const CERTIFICATE: &[AttributeType] = &[
    AttributeType::Id,
    AttributeType::Label,
    AttributeType::Value,
];

/// CKA_ID, CKA_LABEL and CKA_VALUE.
type CertificateObject = (Vec<u8>, Vec<u8>, Vec<u8>);

/// Finds objects, and gives up looking for more than there can be.
fn find(session: &Session, template: &[Attribute]) -> Result<Vec<ObjectHandle>, KeyError> {
    let found = session.iter_objects(template).map_err(error)?;
    let found = found.take(MAX_KEYS).map(|object| object.map_err(error));
    found.collect()
}

/// Reads attributes. Those that an object does not have or does not tell are left out.
fn read(
    session: &Session,
    object: ObjectHandle,
    wanted: &[AttributeType],
) -> Result<Vec<Attribute>, KeyError> {
    // What has no fixed length is asked for it first: the library makes room for whatever the module says.
    let mut bounded = Vec::new();
    for attribute in wanted {
        if LONG.contains(attribute) {
            let info = session
                .get_attribute_info(object, &[*attribute])
                .map_err(error)?;
            match info.first() {
                Some(AttributeInfo::Available(length)) if *length <= MAX_ATTRIBUTE => {}
                Some(AttributeInfo::Available(_)) => return Err(KeyError::Nonsense),
                _ => continue,
            }
        }
        bounded.push(*attribute);
    }
    session.get_attributes(object, &bounded).map_err(error)
}

fn describe(
    session: &Session,
    object: ObjectHandle,
    wanted: &[AttributeType],
) -> Result<Described, KeyError> {
    let mut described = Described {
        is_modifiable: true,
        ..Described::default()
    };
    let may = |usage: Usages, usages: &mut Usages, is_so: bool| {
        *usages = usages.and(usage.only_if(is_so));
    };
    for attribute in read(session, object, wanted)? {
        let own = &mut described.usages;
        let public = &mut described.public_usages;
        match attribute {
            Attribute::Id(id) if id.len() <= 255 => described.id = id,
            Attribute::Label(label) if label.len() <= 255 => described.label = label,
            Attribute::Id(_) | Attribute::Label(_) => return Err(KeyError::Nonsense),
            Attribute::KeyType(key_type) => described.key_type = Some(key_type),
            Attribute::Modulus(modulus) => described.modulus = Some(modulus),
            Attribute::PublicExponent(exponent) => described.exponent = Some(exponent),
            Attribute::EcParams(parameters) => described.ec_parameters = Some(parameters),
            Attribute::EcPoint(point) => described.ec_point = Some(point),
            Attribute::Value(value) => described.value = Some(value),
            Attribute::ValueLen(length) => described.value_length = Some(length.into()),
            Attribute::Sign(is_so) => may(Usages::SIGN, own, is_so),
            Attribute::Verify(is_so) => {
                may(Usages::VERIFY, own, is_so);
                may(Usages::SIGN, public, is_so);
            }
            Attribute::Encrypt(is_so) => {
                may(Usages::ENCRYPT, own, is_so);
                may(Usages::DECRYPT, public, is_so);
            }
            Attribute::Decrypt(is_so) => may(Usages::DECRYPT, own, is_so),
            Attribute::Derive(is_so) => {
                may(Usages::DERIVE, own, is_so);
                may(Usages::DERIVE, public, is_so);
            }
            Attribute::Wrap(is_so) => {
                may(Usages::WRAP, own, is_so);
                may(Usages::UNWRAP, public, is_so);
            }
            Attribute::Unwrap(is_so) => may(Usages::UNWRAP, own, is_so),
            Attribute::Sensitive(is_so) => described.is_sensitive = is_so,
            Attribute::Extractable(is_so) => described.is_extractable = is_so,
            Attribute::Local(is_so) => described.is_local = is_so,
            Attribute::NeverExtractable(is_so) => described.was_never_extractable = is_so,
            Attribute::AlwaysAuthenticate(is_so) => described.asks_each_time = is_so,
            Attribute::Token(is_so) => described.is_persistent = is_so,
            Attribute::Modifiable(is_so) => described.is_modifiable = is_so,
            _ => {}
        }
    }
    Ok(described)
}

impl Described {
    fn public_key(&self) -> Option<Vec<u8>> {
        if let Some(parameters) = &self.ec_parameters {
            let curve = encoding::curve(parameters)?;
            return encoding::ec_public_key(curve, self.ec_point.as_ref()?);
        }
        let (modulus, exponent) = (self.modulus.as_ref()?, self.exponent.as_ref()?);
        // Longer ones than that are in no use.
        let is_rsa = (1024..=16384).contains(&encoding::bits(modulus)) && exponent.len() <= 256;
        is_rsa.then(|| encoding::rsa_public_key(modulus, exponent))
    }

    /// `None` if nobody here knows what to do with such a key.
    fn algorithm(&self) -> Option<KeyAlgorithm> {
        let length = || u16::try_from(self.value_length? * 8).ok();
        match self.key_type? {
            KeyType::RSA => {
                let bits = u16::try_from(encoding::bits(self.modulus.as_ref()?)).ok()?;
                Some(KeyAlgorithm::Rsa { bits })
            }
            KeyType::EC => {
                let curve = encoding::curve(self.ec_parameters.as_ref()?)?;
                Some(KeyAlgorithm::Ec(curve))
            }
            KeyType::AES => Some(KeyAlgorithm::Aes { bits: length()? }),
            KeyType::GENERIC_SECRET | KeyType::SHA_1_HMAC | KeyType::SHA256_HMAC => {
                Some(KeyAlgorithm::Secret { bits: length()? })
            }
            _ => None,
        }
    }

    fn name(&self, is_private: bool) -> Name {
        Name::new(is_private, &self.id, &self.label)
    }
}

impl Open<'_> {
    /// A part of the list of keys. The first makes it.
    pub(super) fn keys(&mut self, start: usize) -> Result<(Vec<KeyInfo>, bool), KeyError> {
        if start == 0 {
            self.state.list = self.all_keys()?;
        }
        let mut length = 0;
        let rest = self.state.list.iter().skip(start);
        let part: Vec<KeyInfo> = rest
            .take_while(|key| {
                length += 64
                    + key.key.0.len()
                    + key.label.len()
                    + key.identifier.len()
                    + key
                        .public_key
                        .as_ref()
                        .map_or(0, |public_key| public_key.0.len());
                length <= MAX_LIST
            })
            .cloned()
            .collect();
        let more = self.state.list.len() > start.saturating_add(part.len());
        if !more {
            self.state.list = Vec::new();
        }
        Ok((part, more))
    }

    fn class(&self, class: ObjectClass) -> Result<Vec<ObjectHandle>, KeyError> {
        find(&self.session, &[Attribute::Class(class)])
    }

    /// Describes all objects of a class. One that says nonsense is left out.
    fn described(
        &self,
        class: ObjectClass,
        wanted: &[AttributeType],
    ) -> Result<Vec<(ObjectHandle, Described)>, KeyError> {
        let mut all = Vec::new();
        for object in self.class(class)? {
            match describe(&self.session, object, wanted) {
                Ok(described) => all.push((object, described)),
                Err(KeyError::NoToken) => return Err(KeyError::NoToken),
                Err(error) => log::debug!("an object: {error}"),
            }
        }
        Ok(all)
    }

    fn all_keys(&mut self) -> Result<Vec<KeyInfo>, KeyError> {
        let public = self.described(ObjectClass::PUBLIC_KEY, PUBLIC)?;
        let certificates = self.certificate_objects()?;
        let mut keys = Vec::new();
        self.state.handles.clear();
        for (object, described) in self.described(ObjectClass::PRIVATE_KEY, PRIVATE)? {
            let info = self.key_info(&described, true, &public, &certificates);
            keys.extend(self.take(object, info));
        }
        for (object, described) in self.described(ObjectClass::SECRET_KEY, SECRET)? {
            let info = self.key_info(&described, false, &[], &[]);
            keys.extend(self.take(object, info));
        }
        if self.token.wants_login && !self.state.is_logged_in {
            for (_, described) in &public {
                let is_known = |key: &KeyInfo| key.identifier == described.id;
                if described.id.is_empty() || keys.iter().any(is_known) {
                    continue;
                }
                let Some(mut key) = self.key_info(described, true, &public, &certificates) else {
                    continue;
                };
                key.is_hidden = true;
                key.usages = described.public_usages;
                keys.push(key);
            }
            for (id, label, value) in &certificates {
                let is_known = |key: &KeyInfo| key.identifier == *id;
                if id.is_empty() || keys.iter().any(is_known) {
                    continue;
                }
                let public_key = encoding::certificate(value).map(|contents| contents.public_key);
                let algorithm = public_key.as_deref().and_then(encoding::algorithm_of);
                if let Some(algorithm) = algorithm {
                    let name = Name::new(true, id, &[]);
                    keys.extend(hidden_key(&name, label, algorithm, public_key));
                }
            }
        }
        Ok(keys)
    }

    /// Remembers where a key is.
    fn take(&mut self, handle: ObjectHandle, info: Option<KeyInfo>) -> Option<KeyInfo> {
        let info = info?;
        let key = Key {
            handle,
            algorithm: info.algorithm,
            asks_each_time: info.asks_each_time,
        };
        self.state.handles.insert(info.key.clone(), key);
        Some(info)
    }

    fn key_info(
        &self,
        described: &Described,
        is_private: bool,
        public: &[(ObjectHandle, Described)],
        certificates: &[CertificateObject],
    ) -> Option<KeyInfo> {
        let has_id = |id: &[u8]| !described.id.is_empty() && id == described.id;
        let certificate = certificates.iter().find(|(id, _, _)| has_id(id));
        let public_half = public
            .iter()
            .find(|(_, other)| has_id(&other.id) && other.key_type == described.key_type);
        let public_key = is_private
            .then(|| {
                public_half
                    .and_then(|(_, public)| public.public_key())
                    .or_else(|| described.public_key())
                    .or_else(|| Some(encoding::certificate(&certificate?.2)?.public_key))
            })
            .flatten();
        Some(KeyInfo {
            key: described.name(is_private).encode().ok()?,
            label: String::from_utf8_lossy(&described.label).into_owned(),
            identifier: described.id.clone(),
            algorithm: described.algorithm()?,
            usages: described.usages,
            public_key: public_key.map(Bytes),
            has_certificate: certificate.is_some(),
            is_hidden: false,
            is_sensitive: described.is_sensitive,
            is_extractable: described.is_extractable,
            is_local: described.is_local,
            was_never_extractable: described.was_never_extractable,
            asks_each_time: described.asks_each_time,
            is_persistent: described.is_persistent,
            is_modifiable: described.is_modifiable,
        })
    }

    /// Describes a key that was just made, and remembers where it is.
    pub(super) fn made(
        &mut self,
        object: ObjectHandle,
        public: Option<ObjectHandle>,
    ) -> Result<KeyInfo, KeyError> {
        let wanted = if public.is_some() { PRIVATE } else { SECRET };
        let described = describe(&self.session, object, wanted)?;
        let halves: Vec<_> = match public {
            Some(public) => vec![(public, describe(&self.session, public, PUBLIC)?)],
            None => Vec::new(),
        };
        let info = self.key_info(&described, public.is_some(), &halves, &[]);
        let info = self.take(object, info).ok_or(KeyError::Nonsense)?;
        if public.is_some() && info.public_key.is_none() {
            return Err(KeyError::Nonsense);
        }
        Ok(info)
    }

    /// Finds a key by its name.
    pub(super) fn find(&mut self, key: &KeyRef) -> Result<Key, KeyError> {
        if let Some(known) = self.state.handles.get(key) {
            return Ok(*known);
        }
        let name = Name::of(key)?;
        let objects = find(&self.session, &name.template(name.class()))?;
        // Several of one name cannot be told apart, unless the module takes a part of a name for all of it.
        let mut found = Vec::new();
        for object in objects {
            let wanted = if name.is_private { PRIVATE } else { SECRET };
            let described = describe(&self.session, object, wanted)?;
            if described.name(name.is_private) == name {
                found.push((object, described));
            }
        }
        match &found[..] {
            [] if self.token.wants_login && !self.state.is_logged_in => Err(KeyError::NotLoggedIn),
            [] => Err(KeyError::NoKey),
            [(handle, described)] => {
                let algorithm = described.algorithm().ok_or(KeyError::Unsupported)?;
                let found = Key {
                    handle: *handle,
                    algorithm,
                    asks_each_time: described.asks_each_time,
                };
                self.state.handles.insert(key.clone(), found);
                Ok(found)
            }
            _ => Err(KeyError::Nonsense),
        }
    }

    /// All certificates.
    fn certificate_objects(&self) -> Result<Vec<CertificateObject>, KeyError> {
        let all = self.described(ObjectClass::CERTIFICATE, CERTIFICATE)?;
        let parts = all.into_iter().filter_map(|(_, described)| {
            let value = described
                .value
                .filter(|value| value.len() <= MAX_CERTIFICATE)?;
            Some((described.id, described.label, value))
        });
        Ok(parts.collect())
    }

    /// A key's certificate, and those of its issuers as far as the token has them.
    pub(super) fn certificates(&self, key: &KeyRef) -> Result<Vec<Bytes>, KeyError> {
        let name = Name::of(key)?;
        let all = self.certificate_objects()?;
        let own = all
            .iter()
            .find(|(id, _, _)| !id.is_empty() && *id == name.id);
        let mut chain: Vec<Bytes> = Vec::new();
        let mut length = 0;
        let mut next = own.map(|(_, _, value)| value);
        while let Some(value) = next {
            length += value.len();
            let is_there = chain.iter().any(|link| link.0 == *value);
            if is_there || chain.len() == MAX_CHAIN || length > MAX_LIST {
                break;
            }
            chain.push(Bytes(value.clone()));
            next = encoding::certificate(value).and_then(|contents| {
                all.iter().map(|(_, _, value)| value).find(|value| {
                    encoding::certificate(value)
                        .is_some_and(|other| other.subject == contents.issuer)
                })
            });
        }
        Ok(chain)
    }

    fn own_certificates(&self, name: &Name) -> Result<Vec<ObjectHandle>, KeyError> {
        if name.id.is_empty() {
            return Ok(Vec::new());
        }
        let template = [
            Attribute::Class(ObjectClass::CERTIFICATE),
            Attribute::Id(name.id.clone()),
        ];
        find(&self.session, &template)
    }

    pub(super) fn install_certificate(
        &mut self,
        key: &KeyRef,
        certificate: &[u8],
    ) -> Result<(), KeyError> {
        let name = Name::of(key)?;
        let contents = encoding::certificate(certificate).ok_or(KeyError::BadData)?;
        let listed = self.all_keys()?;
        let key = listed.iter().find(|other| other.key == *key);
        let key = key.ok_or(KeyError::NoKey)?;
        let public_key = key.public_key.as_ref();
        if public_key.is_none_or(|public_key| public_key.0 != contents.public_key) {
            return Err(KeyError::BadData);
        }
        let older = self.own_certificates(&name)?;
        let template = [
            Attribute::Class(ObjectClass::CERTIFICATE),
            Attribute::CertificateType(CertificateType::X_509),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Id(name.id.clone()),
            Attribute::Label(key.label.clone().into_bytes()),
            Attribute::Subject(contents.subject),
            Attribute::Issuer(contents.issuer),
            Attribute::SerialNumber(contents.serial_number),
            Attribute::Value(certificate.to_vec()),
        ];
        self.session.create_object(&template).map_err(error)?;
        self.destroy(&older)
    }

    pub(super) fn remove_certificate(&mut self, key: &KeyRef) -> Result<(), KeyError> {
        let own = self.own_certificates(&Name::of(key)?)?;
        self.destroy(&own)
    }

    fn destroy(&self, objects: &[ObjectHandle]) -> Result<(), KeyError> {
        for object in objects {
            self.session.destroy_object(*object).map_err(error)?;
        }
        Ok(())
    }

    /// Deletes a key, its public half, its certificates and what is kept with it.
    pub(super) fn delete(&mut self, key: &KeyRef) -> Result<(), KeyError> {
        let name = Name::of(key)?;
        let found = self.find(key)?;
        // The key itself first: if that fails, nothing is lost.
        self.state.handles.remove(key);
        self.session.destroy_object(found.handle).map_err(error)?;
        let mut rest = find(&self.session, &name.data_template())?;
        if name.is_private {
            rest.extend(self.own_certificates(&name)?);
            if !name.id.is_empty() {
                rest.extend(find(
                    &self.session,
                    &name.template(ObjectClass::PUBLIC_KEY),
                )?);
            }
        }
        self.destroy(&rest)
    }

    pub(super) fn read_data(&mut self, key: &KeyRef) -> Result<Option<Bytes>, KeyError> {
        let name = Name::of(key)?;
        let Some(object) = find(&self.session, &name.data_template())?.first().copied() else {
            return Ok(None);
        };
        let described = describe(&self.session, object, &[AttributeType::Value])?;
        match described.value {
            Some(value) if value.len() <= MAX_DATA_OBJECT => Ok(Some(Bytes(value))),
            _ => Err(KeyError::Nonsense),
        }
    }

    pub(super) fn write_data(&mut self, key: &KeyRef, data: &[u8]) -> Result<(), KeyError> {
        let name = Name::of(key)?;
        self.find(key)?;
        let older = find(&self.session, &name.data_template())?;
        let mut template = name.data_template();
        template.extend([
            Attribute::Token(true),
            // It is read before a login.
            Attribute::Private(false),
            Attribute::Modifiable(true),
            Attribute::Value(data.to_vec()),
        ]);
        self.session.create_object(&template).map_err(error)?;
        self.destroy(&older)
    }
}

/// A key of which only the certificate shows.
fn hidden_key(
    name: &Name,
    label: &[u8],
    algorithm: KeyAlgorithm,
    public_key: Option<Vec<u8>>,
) -> Option<KeyInfo> {
    let usages = match algorithm {
        KeyAlgorithm::Rsa { .. } => Usages::SIGN.and(Usages::DECRYPT),
        _ => Usages::SIGN.and(Usages::DERIVE),
    };
    Some(KeyInfo {
        key: name.encode().ok()?,
        label: String::from_utf8_lossy(label).into_owned(),
        identifier: name.id.clone(),
        algorithm,
        usages,
        public_key: public_key.map(Bytes),
        has_certificate: true,
        is_hidden: true,
        is_sensitive: false,
        is_extractable: false,
        is_local: false,
        was_never_extractable: false,
        asks_each_time: false,
        is_persistent: true,
        is_modifiable: false,
    })
}
