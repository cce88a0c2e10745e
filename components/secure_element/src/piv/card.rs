/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use zeroize::Zeroizing;

use super::data::{
    ApplicationProperties, Chuid, Discovery, certificate, find, only, with_certificate,
};
use super::dialogue::Line;
use super::key::PublicKey;
use super::{
    AID, Algorithm, MAX_CERTIFICATE, MAX_RESPONSE, ManagementAlgorithm, ManagementKey, Object,
    PinPolicy, PivError, Slot,
};
use crate::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use crate::channel::{self, Aid, SelectResponse};
use crate::class_byte::{self, ChannelNumber};
use crate::tlv::{self, Reader, Tag};

const INS_VERIFY: u8 = 0x20;
const INS_CHANGE_REFERENCE_DATA: u8 = 0x24;
const INS_RESET_RETRY_COUNTER: u8 = 0x2C;
const INS_GENERATE: u8 = 0x47;
const INS_GENERAL_AUTHENTICATE: u8 = 0x87;
const INS_GET_RESPONSE: u8 = 0xC0;
const INS_GET_DATA: u8 = 0xCB;
const INS_PUT_DATA: u8 = 0xDB;
/// Yubico's, as the following.
const INS_MOVE_KEY: u8 = 0xF6;
const INS_GET_METADATA: u8 = 0xF7;
const INS_GET_SERIAL: u8 = 0xF8;
const INS_ATTEST: u8 = 0xF9;
const INS_GET_VERSION: u8 = 0xFD;

/// The bit of the class that says that the chain goes on.
const CHAINING: u8 = 0x10;
const MAX_DATA: usize = 255;
/// The management key's reference.
const MANAGEMENT_KEY: u8 = 0x9B;

/// Which PIN, and which code (part 2, table 2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PinReference {
    /// The card's global PIN.
    Global,
    /// The application's PIN.
    #[default]
    Application,
    /// The code that unblocks the application's PIN.
    UnblockingKey,
}

impl PinReference {
    /// The key reference.
    pub const fn reference(self) -> u8 {
        match self {
            Self::Global => 0x00,
            Self::Application => 0x80,
            Self::UnblockingKey => 0x81,
        }
    }
}

/// What the card says about a PIN without being told one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tries {
    /// It is verified.
    Verified,
    /// It is not, and may be tried so often; 0 if it is blocked.
    Left(u8),
    /// The card does not say.
    Unknown,
}

/// What GET METADATA says of a key (Yubico's, since firmware 5.3). Cards leave out what they like.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata {
    /// Its algorithm identifier.
    pub algorithm: Option<u8>,
    /// When it takes a PIN.
    pub pin_policy: Option<PinPolicy>,
    /// Whether the card made it, and did not get it from outside.
    pub is_generated: Option<bool>,
    /// Its public half.
    pub public_key: Option<PublicKey>,
}

impl Metadata {
    /// Reads the answer.
    pub fn parse(bytes: &[u8]) -> Result<Self, PivError> {
        let mut metadata = Self::default();
        for object in Reader::new(bytes) {
            let object = object.map_err(|_| PivError::Nonsense)?;
            match (object.tag.0, object.value) {
                (0x01, [algorithm]) => metadata.algorithm = Some(*algorithm),
                (0x02, [pin, _]) => metadata.pin_policy = PinPolicy::from_byte(*pin),
                (0x03, [origin]) => metadata.is_generated = Some(*origin == 1),
                (0x04, key) => {
                    let algorithm = metadata.algorithm.and_then(Algorithm::from_byte);
                    metadata.public_key = algorithm
                        .map(|algorithm| PublicKey::from_objects(algorithm, key))
                        .transpose()?;
                }
                _ => {}
            }
        }
        Ok(metadata)
    }
}

/// What to generate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Generate {
    /// Where; what is there is replaced.
    pub slot: Slot,
    /// What.
    pub algorithm: Algorithm,
    /// When it is to take a PIN, where that is not what the slot has by itself. A Yubico extension.
    pub pin_policy: Option<PinPolicy>,
}

/// The application on a channel, for a dialogue.
pub struct Card {
    line: Line,
    channel: ChannelNumber,
}

impl Card {
    pub(super) fn new(line: Line, channel: ChannelNumber) -> Self {
        Self { line, channel }
    }

    /// Sends a command, in a chain if it has more than 255 bytes of data (part 2, 2.4), and puts the response together.
    async fn send(
        &mut self,
        ins: u8,
        p1: u8,
        p2: u8,
        data: &[u8],
        wants_answer: bool,
    ) -> Result<ResponseApdu, PivError> {
        let class = class_byte::interindustry(self.channel);
        let mut chunks = data.chunks(MAX_DATA);
        let mut chunk = chunks.next().unwrap_or_default();
        for next in chunks {
            let header = Header::new(class | CHAINING, ins, p1, p2);
            let response = self.exchange(header, chunk, None).await?;
            if !response.status.is_ok() {
                return Ok(response);
            }
            chunk = next;
        }
        let header = Header::new(class, ins, p1, p2);
        let le = wants_answer.then_some(256);
        let mut response = self.exchange(header, chunk, le).await?;
        if let (Some(length), true) = (response.status.exact_length(), wants_answer) {
            response = self.exchange(header, chunk, Some(length.into())).await?;
        }
        let mut whole = response.data;
        // Over T=1 nobody else fetches what follows.
        while let Some(length) = response.status.bytes_available() {
            let header = Header::new(class, INS_GET_RESPONSE, 0, 0);
            response = self.exchange(header, &[], Some(length.into())).await?;
            if whole.len() + response.data.len() > MAX_RESPONSE {
                return Err(PivError::Nonsense);
            }
            // A card that answers nothing and promises more would go on so.
            if response.data.is_empty() && response.status.bytes_available().is_some() {
                return Err(PivError::Nonsense);
            }
            whole.append(&mut response.data);
        }
        Ok(ResponseApdu::new(whole, response.status))
    }

    async fn exchange(
        &mut self,
        header: Header,
        data: &[u8],
        le: Option<u32>,
    ) -> Result<ResponseApdu, PivError> {
        let command = CommandApdu::with_shortest_form(header, data.to_vec(), le)
            .map_err(|_| PivError::BadData)?;
        self.line.exchange(command).await
    }

    /// Sends a command that is to succeed, and returns its answer.
    async fn ask(&mut self, ins: u8, p1: u8, p2: u8, data: &[u8]) -> Result<Vec<u8>, PivError> {
        success(self.send(ins, p1, p2, data, true).await?)
    }

    /// Sends a command that is to succeed and has no answer.
    async fn tell(&mut self, ins: u8, p1: u8, p2: u8, data: &[u8]) -> Result<(), PivError> {
        success(self.send(ins, p1, p2, data, false).await?).map(drop)
    }

    /// SELECT (part 2, 3.1.1). What the application says of itself is for information: one that cannot be read is empty.
    pub async fn select(&mut self) -> Result<ApplicationProperties, PivError> {
        let aid = Aid::new(&AID).map_err(|_| PivError::Unsupported)?;
        let command = channel::select(Some(&aid), SelectResponse::Fci, self.channel)
            .map_err(|_| PivError::Unsupported)?;
        let header = command.header();
        let data = command.data();
        let response = self
            .send(header.ins, header.p1, header.p2, data, true)
            .await?;
        match response.status {
            StatusWord::OK => Ok(ApplicationProperties::parse(&response.data).unwrap_or_default()),
            StatusWord::NOT_FOUND | StatusWord::APPLET_SELECT_FAILED => {
                Err(PivError::NoApplication)
            }
            status => Err(PivError::Status(status)),
        }
    }

    /// GET DATA (part 2, 3.1.2): the value of a data object. [`PivError::NotThere`] if the card does not have it.
    pub async fn get_data(&mut self, object: Object) -> Result<Vec<u8>, PivError> {
        let mut data = Vec::new();
        tlv::write(&mut data, Tag(0x5C), &object.to_bytes());
        let answer = self.ask(INS_GET_DATA, 0x3F, 0xFF, &data).await?;
        match object {
            Object::DISCOVERY => only(&answer, 0x7E).map(<[u8]>::to_vec),
            _ => only(&answer, 0x53).map(<[u8]>::to_vec),
        }
    }

    /// As [`Card::get_data`], where it is no mistake that the card does not have it, or does not know such an object.
    pub async fn find_data(&mut self, object: Object) -> Result<Option<Vec<u8>>, PivError> {
        match self.get_data(object).await {
            Ok(value) => Ok(Some(value)),
            Err(PivError::NotThere | PivError::Unsupported | PivError::BadData) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// PUT DATA (part 2, 3.3.1). An empty value deletes. It takes the management key.
    pub async fn put_data(&mut self, object: Object, value: &[u8]) -> Result<(), PivError> {
        let mut data = Vec::new();
        tlv::write(&mut data, Tag(0x5C), &object.to_bytes());
        tlv::write(&mut data, Tag(0x53), value);
        self.tell(INS_PUT_DATA, 0x3F, 0xFF, &data).await
    }

    /// The discovery object, or what holds without.
    pub async fn discovery(&mut self) -> Result<Discovery, PivError> {
        match self.find_data(Object::DISCOVERY).await? {
            Some(value) => Discovery::parse(&value),
            None => Ok(Discovery::default()),
        }
    }

    /// The card holder unique identifier, if there is one.
    pub async fn chuid(&mut self) -> Result<Option<Chuid>, PivError> {
        match self.find_data(Object::CHUID).await? {
            Some(value) => Chuid::parse(&value).map(Some),
            None => Ok(None),
        }
    }

    /// The certificate of a slot, if there is one.
    pub async fn certificate(&mut self, slot: Slot) -> Result<Option<Vec<u8>>, PivError> {
        match self.find_data(slot.certificate()).await? {
            Some(value) => certificate(&value),
            None => Ok(None),
        }
    }

    /// Keeps a certificate in a slot. It takes the management key.
    pub async fn put_certificate(
        &mut self,
        slot: Slot,
        certificate: &[u8],
    ) -> Result<(), PivError> {
        if certificate.len() > MAX_CERTIFICATE {
            return Err(PivError::Full);
        }
        let value = with_certificate(certificate);
        self.put_data(slot.certificate(), &value).await
    }

    /// VERIFY without a PIN: how often it may be tried.
    pub async fn tries(&mut self, pin: PinReference) -> Result<Tries, PivError> {
        let response = self
            .send(INS_VERIFY, 0x00, pin.reference(), &[], false)
            .await?;
        Ok(match response.status.into() {
            _ if response.status.is_ok() => Tries::Verified,
            PivError::WrongPin { tries } => Tries::Left(tries),
            PivError::Blocked => Tries::Left(0),
            _ => Tries::Unknown,
        })
    }

    /// VERIFY (part 2, 3.2.1).
    pub async fn verify(&mut self, pin: PinReference, value: &[u8]) -> Result<(), PivError> {
        let data = padded(value)?;
        self.tell(INS_VERIFY, 0x00, pin.reference(), &*data).await
    }

    /// VERIFY that ends what a PIN has opened (part 2, 3.2.1).
    pub async fn forget_pin(&mut self, pin: PinReference) -> Result<(), PivError> {
        self.tell(INS_VERIFY, 0xFF, pin.reference(), &[]).await
    }

    /// CHANGE REFERENCE DATA (part 2, 3.2.2).
    pub async fn change_pin(
        &mut self,
        pin: PinReference,
        old: &[u8],
        new: &[u8],
    ) -> Result<(), PivError> {
        let data = Zeroizing::new([*padded(old)?, *padded(new)?].concat());
        self.tell(INS_CHANGE_REFERENCE_DATA, 0x00, pin.reference(), &data)
            .await
    }

    /// RESET RETRY COUNTER (part 2, 3.2.3): a new PIN for whoever has the unblocking key.
    pub async fn unblock_pin(&mut self, unblocking_key: &[u8], new: &[u8]) -> Result<(), PivError> {
        let data = Zeroizing::new([*padded(unblocking_key)?, *padded(new)?].concat());
        let pin = PinReference::Application.reference();
        self.tell(INS_RESET_RETRY_COUNTER, 0x00, pin, &data).await
    }

    /// GENERAL AUTHENTICATE (part 2, 3.2.4), with the objects of its template; what of the answer's template has that tag.
    async fn authenticate(
        &mut self,
        algorithm: u8,
        key: u8,
        objects: &[(u32, &[u8])],
        wanted: u32,
    ) -> Result<Vec<u8>, PivError> {
        let mut template = Vec::new();
        for (tag, value) in objects {
            tlv::write(&mut template, Tag(*tag), value);
        }
        let mut data = Zeroizing::new(Vec::new());
        tlv::write(&mut data, Tag(0x7C), &template);
        let answer = self
            .ask(INS_GENERAL_AUTHENTICATE, algorithm, key, &data)
            .await?;
        let found = find(only(&answer, 0x7C)?, wanted)?;
        found.map(<[u8]>::to_vec).ok_or(PivError::Nonsense)
    }

    /// The private operation of a key: raw RSA of a block that is as long as the modulus (which signs what is padded, and
    /// decrypts), or ECDSA of what [`super::key::ecdsa_input`] gives, whose signature is in DER.
    pub async fn operate(
        &mut self,
        slot: Slot,
        algorithm: Algorithm,
        input: &[u8],
    ) -> Result<Vec<u8>, PivError> {
        if input.len() != algorithm.length() {
            return Err(PivError::BadData);
        }
        let objects = [(0x82, &[][..]), (0x81, input)];
        let output = self
            .authenticate(algorithm.to_byte(), slot.reference(), &objects, 0x82)
            .await?;
        if algorithm.is_rsa() && output.len() != algorithm.length() {
            return Err(PivError::Nonsense);
        }
        Ok(output)
    }

    /// ECDH with another's public point, uncompressed: the coordinate of the common point.
    pub async fn agree(
        &mut self,
        slot: Slot,
        algorithm: Algorithm,
        point: &[u8],
    ) -> Result<Vec<u8>, PivError> {
        let length = algorithm.length();
        if algorithm.is_rsa() || point.len() != 2 * length + 1 || point.first() != Some(&0x04) {
            return Err(PivError::BadData);
        }
        let objects = [(0x82, &[][..]), (0x85, point)];
        let secret = self
            .authenticate(algorithm.to_byte(), slot.reference(), &objects, 0x82)
            .await?;
        match secret.len() {
            found if found == length => Ok(secret),
            _ => Err(PivError::Nonsense),
        }
    }

    /// Mutual authentication with the management key (part 2, appendix A.1 and table 7): the card and whoever sends this
    /// show each other that they have it. `challenge` is random, and new each time.
    pub async fn authenticate_management(
        &mut self,
        key: &ManagementKey,
        challenge: &[u8; 16],
    ) -> Result<(), PivError> {
        let said = self.management_algorithm().await?;
        let mut outcome = Err(PivError::WrongManagementKey);
        for algorithm in key.algorithms() {
            if said.is_some_and(|said| said != *algorithm) {
                continue;
            }
            outcome = self.try_management(key, *algorithm, challenge).await;
            // A card that has another algorithm says so before it sees anything of the key.
            match outcome {
                Err(PivError::Unsupported | PivError::BadData | PivError::NotThere) => {
                    outcome = Err(PivError::WrongManagementKey);
                }
                _ => return outcome,
            }
        }
        outcome
    }

    /// The algorithm of the management key, if the card tells it: then it tells its keys, too.
    pub async fn management_algorithm(&mut self) -> Result<Option<ManagementAlgorithm>, PivError> {
        let metadata = self.metadata_of(MANAGEMENT_KEY).await?;
        let algorithm = metadata.and_then(|metadata| metadata.algorithm);
        Ok(algorithm.and_then(ManagementAlgorithm::from_byte))
    }

    async fn try_management(
        &mut self,
        key: &ManagementKey,
        algorithm: ManagementAlgorithm,
        challenge: &[u8; 16],
    ) -> Result<(), PivError> {
        let length = algorithm.block_length();
        let challenge = challenge.get(..length).unwrap_or_default();
        let id = algorithm.to_byte();
        let witness = self
            .authenticate(id, MANAGEMENT_KEY, &[(0x80, &[])], 0x80)
            .await?;
        let witness = key.decrypt(algorithm, &witness).ok_or(PivError::Nonsense)?;
        let expected = key.encrypt(algorithm, challenge);
        let objects = [(0x80, &witness[..]), (0x81, challenge)];
        let answer = match self.authenticate(id, MANAGEMENT_KEY, &objects, 0x82).await {
            Ok(answer) => answer,
            Err(PivError::Nonsense) => return Err(PivError::Nonsense),
            Err(_) => return Err(PivError::WrongManagementKey),
        };
        match expected {
            Some(expected) if expected == answer => Ok(()),
            // It is another card than it says.
            _ => Err(PivError::WrongManagementKey),
        }
    }

    /// GENERATE ASYMMETRIC KEY PAIR (part 2, 3.3.2). It takes the management key.
    pub async fn generate(&mut self, key: Generate) -> Result<PublicKey, PivError> {
        let mut template = Vec::new();
        tlv::write(&mut template, Tag(0x80), &[key.algorithm.to_byte()]);
        if let Some(policy) = key.pin_policy {
            tlv::write(&mut template, Tag(0xAA), &[policy.to_byte()]);
        }
        let mut data = Vec::new();
        tlv::write(&mut data, Tag(0xAC), &template);
        let answer = self
            .ask(INS_GENERATE, 0x00, key.slot.reference(), &data)
            .await?;
        PublicKey::from_template(key.algorithm, &answer)
    }

    /// Deletes a key (Yubico's, since firmware 5.7). It takes the management key.
    pub async fn delete_key(&mut self, slot: Slot) -> Result<(), PivError> {
        self.tell(INS_MOVE_KEY, 0xFF, slot.reference(), &[]).await
    }

    /// What the card says of a key, if there is one and the card knows the command.
    pub async fn metadata(&mut self, slot: Slot) -> Result<Option<Metadata>, PivError> {
        self.metadata_of(slot.reference()).await
    }

    async fn metadata_of(&mut self, key: u8) -> Result<Option<Metadata>, PivError> {
        match self.ask(INS_GET_METADATA, 0x00, key, &[]).await {
            Ok(answer) => Metadata::parse(&answer).map(Some),
            Err(PivError::NotThere | PivError::Unsupported | PivError::BadData) => Ok(None),
            Err(PivError::Status(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A certificate in which the card says that it has generated the key (Yubico's).
    pub async fn attest(&mut self, slot: Slot) -> Result<Vec<u8>, PivError> {
        let certificate = self.ask(INS_ATTEST, slot.reference(), 0x00, &[]).await?;
        only(&certificate, 0x30)?;
        Ok(certificate)
    }

    /// The card's serial number, if it has one (Yubico's).
    pub async fn serial(&mut self) -> Result<Option<u32>, PivError> {
        let answer = self.optional(INS_GET_SERIAL).await?;
        Ok(answer.and_then(|answer| answer.try_into().ok().map(u32::from_be_bytes)))
    }

    /// The version of the card's firmware, if it says one (Yubico's).
    pub async fn version(&mut self) -> Result<Option<[u8; 3]>, PivError> {
        let answer = self.optional(INS_GET_VERSION).await?;
        Ok(answer.and_then(|answer| answer.try_into().ok()))
    }

    async fn optional(&mut self, ins: u8) -> Result<Option<Vec<u8>>, PivError> {
        let response = self.send(ins, 0x00, 0x00, &[], true).await?;
        Ok(response.status.is_ok().then_some(response.data))
    }
}

/// The data of a response, if its status word is 9000.
fn success(response: ResponseApdu) -> Result<Vec<u8>, PivError> {
    match response.status {
        StatusWord::OK => Ok(response.data),
        status => Err(status.into()),
    }
}

/// 6 to 8 characters, filled up with FF (part 1, 2.4.3).
fn padded(pin: &[u8]) -> Result<Zeroizing<[u8; 8]>, PivError> {
    let is_printable = pin.iter().all(|byte| (0x20..0x7F).contains(byte));
    if !(6..=8).contains(&pin.len()) || !is_printable {
        return Err(PivError::InvalidPin);
    }
    let mut padded = Zeroizing::new([0xFF; 8]);
    padded
        .iter_mut()
        .zip(pin)
        .for_each(|(to, from)| *to = *from);
    Ok(padded)
}
