/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::thread;
use std::time::{Duration, Instant};

use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::{
    ChannelNumber, channel_of, has_secure_messaging, is_chained, without_channel,
};
use secure_element::exchange::Protocol;
use secure_element::fci::{DF_NAME, FCI_TEMPLATE, FCP_TEMPLATE};
use secure_element::tlv::{self, Tag};
use thiserror::Error;

use crate::applets::echo::Echo;
use crate::applets::issuer::IssuerSecurityDomain;
use crate::t0::{Received, T0};
use crate::{Applet, Card, Fault, MAX_DELAY, Outcome, Selection};

const INS_MANAGE_CHANNEL: u8 = 0x70;
const INS_SELECT: u8 = 0xA4;
const P1_SELECT_BY_DF_NAME: u8 = 0x04;

/// Execution error without further information.
const EXECUTION_ERROR: StatusWord = StatusWord(0x6F00);
/// Incorrect parameters in the command data field.
const INCORRECT_DATA: StatusWord = StatusWord(0x6A80);
/// Warning without further information; GlobalPlatform: the channel was closed already.
const NO_INFORMATION: StatusWord = StatusWord(0x6200);

/// The file management data template.
const FMD_TEMPLATE: Tag = Tag(0x64);

/// What a card is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Profile {
    /// The transmission protocol that the card offers.
    pub protocol: Protocol,
    /// How many logical channels it has besides the basic one, 0 to 19.
    pub supplementary_channels: u8,
}

impl Profile {
    /// The profiles that have a name, as configurations give it.
    pub const NAMED: [(&'static str, Self); 3] = [
        (
            "default",
            Self {
                protocol: Protocol::T1,
                supplementary_channels: 19,
            },
        ),
        (
            "t0",
            Self {
                protocol: Protocol::T0,
                supplementary_channels: 19,
            },
        ),
        (
            "basic-channel-only",
            Self {
                protocol: Protocol::T1,
                supplementary_channels: 0,
            },
        ),
    ];

    /// The profile of that name.
    pub fn named(name: &str) -> Result<Self, UnknownProfile> {
        Self::NAMED
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, profile)| *profile)
            .ok_or_else(|| UnknownProfile(name.to_owned()))
    }

    /// The answer to reset: historical bytes in COMPACT-TLV with the card capabilities and the
    /// name (ISO/IEC 7816-4 section 8.1.1).
    fn atr(self) -> Vec<u8> {
        // Selection by full and by partial DF name; data units of one byte.
        let mut capabilities = [0xC0, 0x01, 0x00];
        if self.protocol == Protocol::T1 {
            // Extended Lc and Le.
            capabilities[2] |= 0x40;
        }
        if self.supplementary_channels > 0 {
            // The card chooses the channel number; "8 or more" is all that can be said above 7.
            capabilities[2] |= 0x10 | self.supplementary_channels.min(7);
        }
        let mut historical = vec![0x80, 0x73];
        historical.extend(capabilities);
        historical.extend(b"\x55SERVO");

        let length = historical.len() as u8;
        match self.protocol {
            Protocol::T0 => [&[0x3B, length][..], &historical].concat(),
            Protocol::T1 => {
                // TD1: T=1, nothing further, and so a check byte.
                let mut atr = [&[0x3B, 0x80 | length, 0x01][..], &historical].concat();
                let check = atr.iter().skip(1).fold(0, |sum, byte| sum ^ byte);
                atr.push(check);
                atr
            }
        }
    }
}

/// There is no profile of that name.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("there is no virtual card profile {0:?}")]
pub struct UnknownProfile(pub String);

/// A card in software.
pub struct VirtualCard {
    protocol: Protocol,
    atr: Vec<u8>,
    /// The first is selected by default.
    applets: Vec<Box<dyn Applet>>,
    /// For each channel that the card has, the applet selected on it; `None` where it is closed.
    /// The basic channel is always open.
    channels: Vec<Option<usize>>,
    t0: T0,
    /// When a card that left its reader is to be put back; `None` while it is present.
    returns_at: Option<Instant>,
}

impl VirtualCard {
    /// A card with the issuer security domain and the echo applets, of a profile in
    /// [`Profile::NAMED`].
    pub fn from_profile(name: &str) -> Result<Self, UnknownProfile> {
        let mut card = Self::new(Profile::named(name)?, Box::new(IssuerSecurityDomain));
        for echo in Echo::all() {
            card.install(Box::new(echo));
        }
        Ok(card)
    }

    /// A card with one applet, which is selected by default and by an empty AID.
    pub fn new(profile: Profile, default: Box<dyn Applet>) -> Self {
        let channels = usize::from(profile.supplementary_channels.min(ChannelNumber::MAX)) + 1;
        let mut card = Self {
            protocol: profile.protocol,
            atr: profile.atr(),
            applets: vec![default],
            channels: vec![None; channels],
            t0: T0::default(),
            returns_at: None,
        };
        card.reset();
        card
    }

    /// Puts another applet on the card. A partial AID finds applets in this order.
    pub fn install(&mut self, applet: Box<dyn Applet>) {
        self.applets.push(applet);
    }

    fn transmit_t1(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Ok(command) = CommandApdu::parse(bytes) else {
            return StatusWord::WRONG_LENGTH.to_bytes().to_vec();
        };
        let outcome = self.process(&command);
        let response = match self.settle(outcome) {
            Ok(response) => response,
            Err(raw) => return raw,
        };
        fit(response, command.le()).encode()
    }

    fn transmit_t0(&mut self, bytes: &[u8]) -> Vec<u8> {
        let received = match self.t0.receive(bytes) {
            Received::Answer(answer) => return answer,
            Received::Command(received) => received,
        };
        let outcome = self.process(&received.command);
        match self.settle(outcome) {
            Ok(response) => self.t0.answer(&received, response),
            Err(raw) => raw,
        }
    }

    /// Does what a fault does. What is left is a response, or bytes to be sent as they are.
    fn settle(&mut self, outcome: Outcome) -> Result<ResponseApdu, Vec<u8>> {
        match outcome {
            Outcome::Response(response) => Ok(response),
            Outcome::Fault(Fault::Raw(bytes)) => Err(bytes),
            Outcome::Fault(Fault::Mute) => {
                thread::sleep(MAX_DELAY);
                Err(Vec::new())
            }
            Outcome::Fault(Fault::Reset) => {
                self.reset();
                Ok(EXECUTION_ERROR.into())
            }
            Outcome::Fault(Fault::Removal(away)) => {
                self.returns_at = Some(Instant::now() + away.min(MAX_DELAY));
                Err(Vec::new())
            }
        }
    }

    fn process(&mut self, command: &CommandApdu) -> Outcome {
        let header = command.header();
        let (Ok(channel), Ok(class)) = (channel_of(header.cla), without_channel(header.cla)) else {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        };
        let index = usize::from(channel.get());
        let Some(&Some(selected)) = self.channels.get(index) else {
            return StatusWord::CHANNEL_NOT_SUPPORTED.into();
        };
        if is_chained(class) {
            return StatusWord::CHAINING_NOT_SUPPORTED.into();
        }
        if has_secure_messaging(class) {
            return StatusWord::SECURE_MESSAGING_NOT_SUPPORTED.into();
        }
        // As on many cards, a proprietary class makes no difference to these two.
        match header.ins {
            INS_MANAGE_CHANNEL => self.manage_channel(channel, command).into(),
            INS_SELECT if header.p1 == P1_SELECT_BY_DF_NAME => {
                self.select(channel, selected, command).into()
            }
            _ => match self.applets.get_mut(selected) {
                Some(applet) => applet.process(channel, command),
                None => EXECUTION_ERROR.into(),
            },
        }
    }

    /// ISO/IEC 7816-4 section 11.1.2, GlobalPlatform Card Specification section 11.7.
    fn manage_channel(&mut self, channel: ChannelNumber, command: &CommandApdu) -> ResponseApdu {
        let Header { p1, p2, .. } = command.header();
        if !command.data().is_empty() {
            return StatusWord::WRONG_LENGTH.into();
        }
        match (p1, p2) {
            (0x00, 0x00) => {
                // Without Le, the number could not be told and the channel would be lost.
                if command.le().is_none() {
                    return StatusWord::WRONG_LENGTH.into();
                }
                // From the basic channel the default application is selected on the new one, from
                // another channel the one that is selected there.
                let selected = match self.channels.get(usize::from(channel.get())) {
                    Some(&Some(selected)) if !channel.is_basic() => selected,
                    _ => 0,
                };
                let free = (1_u8..).zip(self.channels.iter().skip(1));
                let Some(number) = free
                    .filter(|(_, channel)| channel.is_none())
                    .find_map(|(number, _)| ChannelNumber::new(number))
                else {
                    return StatusWord::FUNCTION_NOT_SUPPORTED.into();
                };
                let selection = self.put_on_channel(number, selected);
                if selection.status.is_error() {
                    return selection.status.into();
                }
                ResponseApdu::new(vec![number.get()], StatusWord::OK)
            }
            (0x80, number) => {
                // A P2 of 0 means the channel that the command came on.
                let number = if number == 0 { channel.get() } else { number };
                match ChannelNumber::new(number) {
                    Some(number) if usize::from(number.get()) >= self.channels.len() => {
                        StatusWord::CHANNEL_NOT_SUPPORTED.into()
                    }
                    Some(number) if !number.is_basic() => {
                        if self.close(number) {
                            StatusWord::OK.into()
                        } else {
                            NO_INFORMATION.into()
                        }
                    }
                    _ => StatusWord::INCORRECT_P1_P2.into(),
                }
            }
            (0x40, 0x00) => self.put_on_channel(channel, 0).status.into(),
            _ => StatusWord::INCORRECT_P1_P2.into(),
        }
    }

    /// ISO/IEC 7816-4 section 11.1.1, by DF name.
    fn select(
        &mut self,
        channel: ChannelNumber,
        selected: usize,
        command: &CommandApdu,
    ) -> ResponseApdu {
        let p2 = command.header().p2;
        let wants_next = match p2 & 0x03 {
            0x00 => false,
            0x02 => true,
            _ => return StatusWord::INCORRECT_P1_P2.into(),
        };
        let template = match p2 & 0xFC {
            0x00 => Some(FCI_TEMPLATE),
            0x04 => Some(FCP_TEMPLATE),
            0x08 => Some(FMD_TEMPLATE),
            0x0C => None,
            _ => return StatusWord::INCORRECT_P1_P2.into(),
        };

        let found = if command.data().is_empty() {
            Some(0)
        } else {
            let Ok(aid) = Aid::new(command.data()) else {
                return INCORRECT_DATA.into();
            };
            let matches = |applet: &dyn Applet| aid.matches(applet.aid().as_bytes());
            // The next occurrence starts behind the selected application, if that is one.
            let current = self.applets.get(selected);
            let is_next = wants_next && current.is_some_and(|applet| matches(&**applet));
            let from = if is_next { selected + 1 } else { 0 };
            (from..self.applets.len()).find(|&index| {
                self.applets
                    .get(index)
                    .is_some_and(|applet| matches(&**applet))
            })
        };
        let Some(index) = found else {
            return StatusWord::NOT_FOUND.into();
        };
        let selection = self.put_on_channel(channel, index);
        if selection.status.is_error() {
            return selection.status.into();
        }
        let mut data = Vec::new();
        if let (Some(template), Some(applet)) = (template, self.applets.get(index)) {
            let mut objects = Vec::new();
            tlv::write(&mut objects, DF_NAME, applet.aid().as_bytes());
            objects.extend(selection.control_information);
            tlv::write(&mut data, template, &objects);
        }
        ResponseApdu::new(data, selection.status)
    }

    /// Selects the applet of that index on the channel, which this opens if it is closed. Where
    /// the applet refuses, everything stays as it is.
    fn put_on_channel(&mut self, channel: ChannelNumber, index: usize) -> Selection {
        let refused = Selection {
            status: EXECUTION_ERROR,
            control_information: Vec::new(),
        };
        let Some(applet) = self.applets.get_mut(index) else {
            return refused;
        };
        let selection = applet.select(channel);
        if selection.status.is_error() {
            return selection;
        }
        let Some(slot) = self.channels.get_mut(usize::from(channel.get())) else {
            return refused;
        };
        let before = slot.replace(index);
        if let Some(before) = before
            && before != index
            && let Some(applet) = self.applets.get_mut(before)
        {
            applet.deselect(channel);
        }
        selection
    }

    /// Closes a channel; whether it was open.
    fn close(&mut self, channel: ChannelNumber) -> bool {
        let slot = self.channels.get_mut(usize::from(channel.get()));
        let Some(index) = slot.and_then(Option::take) else {
            return false;
        };
        if let Some(applet) = self.applets.get_mut(index) {
            applet.deselect(channel);
        }
        true
    }
}

impl Card for VirtualCard {
    fn atr(&self) -> &[u8] {
        &self.atr
    }

    fn reset(&mut self) {
        self.channels.fill(None);
        self.t0 = T0::default();
        self.returns_at = None;
        for applet in &mut self.applets {
            applet.reset();
        }
        self.put_on_channel(ChannelNumber::BASIC, 0);
    }

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        if !self.is_present() {
            return Vec::new();
        }
        match self.protocol {
            Protocol::T0 => self.transmit_t0(command),
            Protocol::T1 => self.transmit_t1(command),
        }
    }

    fn is_present(&self) -> bool {
        self.returns_at.is_none()
    }

    fn returns_after(&self) -> Option<Duration> {
        self.returns_at
            .map(|at| at.saturating_duration_since(Instant::now()))
    }
}

/// A response as the caller's Le allows it (ISO/IEC 7816-4 section 5.2).
fn fit(mut response: ResponseApdu, le: Option<u32>) -> ResponseApdu {
    let length = response.data.len();
    match le {
        None => {
            response.data.clear();
            response
        }
        Some(le) if length > le as usize => match u8::try_from(length) {
            Ok(length) => StatusWord(u16::from_be_bytes([0x6C, length])).into(),
            Err(_) if length == 256 => StatusWord(0x6C00).into(),
            Err(_) => StatusWord::WRONG_LENGTH.into(),
        },
        Some(_) => response,
    }
}
