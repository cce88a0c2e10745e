/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use secure_element::apdu::{
    CommandApdu, Header, LengthForm, MAX_COMMAND_DATA, ResponseApdu, StatusWord,
};
use secure_element::channel::Aid;
use secure_element::class_byte::{
    ChannelNumber, channel_of, has_secure_messaging, is_chained, without_channel,
};
use secure_element::exchange::Protocol;
use secure_element::fci::{DF_NAME, FCI_TEMPLATE, FCP_TEMPLATE};
use secure_element::tlv::{self, Tag};

use crate::applets::{self, ara_m};
use crate::t0::{Received, T0, available, exact};
use crate::{
    Applet, Card, Fault, MAX_DELAY, Outcome, Parts, Profile, Rigged, RiggedCommand, Selection,
    UnknownProfile,
};

const INS_MANAGE_CHANNEL: u8 = 0x70;
const P1_OPEN: u8 = 0x00;
const P1_RESET: u8 = 0x40;
const P1_CLOSE: u8 = 0x80;
const INS_SELECT: u8 = 0xA4;
const P1_SELECT_BY_DF_NAME: u8 = 0x04;
const INS_GET_RESPONSE: u8 = 0xC0;

/// The bit of a class byte that says that the chain goes on, wherever the channel's bits are.
const CHAINING: u8 = 0x10;

/// Last command of the chain expected.
const CHAIN_EXPECTED: StatusWord = StatusWord(0x6883);
/// Execution error without further information.
const EXECUTION_ERROR: StatusWord = StatusWord(0x6F00);
/// Incorrect parameters in the command data field.
const INCORRECT_DATA: StatusWord = StatusWord(0x6A80);
/// Warning without further information; GlobalPlatform: the channel was closed already.
const NO_INFORMATION: StatusWord = StatusWord(0x6200);

/// The file management data template.
const FMD_TEMPLATE: Tag = Tag(0x64);

/// So that nobody makes the card remember more and more.
const MAX_RIGGED: usize = 64;

/// A card in software.
pub struct VirtualCard {
    profile: Profile,
    atr: Vec<u8>,
    /// The first is selected by default.
    applets: Vec<Box<dyn Applet>>,
    /// The channels that the card has. The basic one is always open.
    channels: Vec<Option<Channel>>,
    /// What is left of a response that leaves in parts over T=1.
    rest: Option<Rest>,
    rigged: VecDeque<Rigged>,
    t0: T0,
    /// When a card that left its reader is to be put back; `None` while it is present.
    returns_at: Option<Instant>,
}

/// An open channel.
struct Channel {
    /// The applet that is selected on it.
    selected: usize,
    /// The beginning of a chain of commands.
    chain: Option<Chain>,
}

struct Chain {
    /// The header of all its commands, without channel and chaining bit.
    header: Header,
    data: Vec<u8>,
}

struct Rest {
    channel: ChannelNumber,
    response: ResponseApdu,
    parts: Parts,
}

impl VirtualCard {
    /// A card of a profile in [`Profile::NAMED`], with all applets and with the access rules that the
    /// profile says.
    pub fn from_profile(name: &str) -> Result<Self, UnknownProfile> {
        let profile = Profile::named(name)?;
        let mut card = Self::new(profile, applets::default(profile));
        for applet in applets::others(profile) {
            card.install(applet);
        }
        Ok(card)
    }

    /// A card with one applet, which is selected by default and by an empty AID.
    pub fn new(profile: Profile, default: Box<dyn Applet>) -> Self {
        let channels = usize::from(profile.supplementary_channels.min(ChannelNumber::MAX)) + 1;
        let mut card = Self {
            profile,
            atr: profile.atr(),
            applets: vec![default],
            channels: std::iter::repeat_with(|| None).take(channels).collect(),
            rest: None,
            rigged: VecDeque::new(),
            t0: T0::default(),
            returns_at: None,
        };
        card.reset();
        card
    }

    /// Puts another applet on the card. A partial AID finds applets in this order. Replaces an
    /// applet of the same AID, if there is one.
    pub fn install(&mut self, applet: Box<dyn Applet>) {
        let same = |other: &&mut Box<dyn Applet>| other.aid() == applet.aid();
        match self.applets.iter_mut().find(same) {
            Some(other) => *other = applet,
            None => self.applets.push(applet),
        }
    }

    fn transmit_t1(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Ok(command) = CommandApdu::parse(bytes) else {
            return StatusWord::WRONG_LENGTH.to_bytes().to_vec();
        };
        let is_extended = command.length_form() == LengthForm::Extended;
        if is_extended && !self.profile.extended_length {
            return StatusWord::WRONG_LENGTH.to_bytes().to_vec();
        }
        if let Some(rest) = self.rest.take()
            && let Some(answer) = self.get_response(rest, &command)
        {
            return answer;
        }
        let outcome = self.process(&command);
        let (response, parts) = match self.settle(outcome) {
            Ok(settled) => settled,
            Err(raw) => return raw,
        };
        match (parts, channel_of(command.header().cla)) {
            (Some(parts), Ok(channel)) => {
                let rest = Rest {
                    channel,
                    response,
                    parts,
                };
                let longest = if is_extended { None } else { Some(parts) };
                self.send_part(rest, command.le(), longest)
            }
            _ => fit(response, command.le()).encode(),
        }
    }

    /// Sends the next part, if the command asks for it. With T=1 only applications do this, when a
    /// caller has no extended Le.
    fn get_response(&mut self, rest: Rest, command: &CommandApdu) -> Option<Vec<u8>> {
        let header = command.header();
        let is_get_response = (header.ins, header.p1, header.p2) == (INS_GET_RESPONSE, 0, 0)
            && channel_of(header.cla) == Ok(rest.channel);
        let parts = Some(rest.parts);
        is_get_response.then(|| self.send_part(rest, command.le(), parts))
    }

    fn send_part(&mut self, rest: Rest, le: Option<u32>, parts: Option<Parts>) -> Vec<u8> {
        let Rest {
            channel,
            mut response,
            parts: announced,
        } = rest;
        let longest = parts.map_or(usize::MAX, Parts::length);
        let length = le.map_or(0, |le| le as usize).min(longest);
        if response.data.len() <= length {
            return response.encode();
        }
        let left = ResponseApdu::new(response.data.split_off(length), response.status);
        response.status = available(&left, announced.length());
        self.rest = Some(Rest {
            channel,
            response: left,
            parts: announced,
        });
        response.encode()
    }

    fn transmit_t0(&mut self, bytes: &[u8]) -> Vec<u8> {
        let received = match self.t0.receive(bytes, self.profile.extended_length) {
            Received::Answer(answer) => return answer,
            Received::Command(received) => received,
        };
        let outcome = self.process(&received.command);
        if let Outcome::Fault(Fault::RawThen { first, then }) = outcome {
            self.t0.answer_for_ever(then);
            return first;
        }
        match self.settle(outcome) {
            Ok((response, parts)) => self.t0.answer(&received, response, parts),
            Err(raw) => raw,
        }
    }

    /// Does what a fault does. What is left is a response, perhaps one to be sent in parts, or
    /// bytes to be sent as they are.
    fn settle(&mut self, outcome: Outcome) -> Result<(ResponseApdu, Option<Parts>), Vec<u8>> {
        match outcome {
            Outcome::Response(response) => Ok((response, None)),
            Outcome::InParts(response, parts) => Ok((response, Some(parts))),
            Outcome::OpenChannels => {
                let open = self.channels.iter().enumerate();
                let bits = open.filter(|(_, channel)| channel.is_some());
                // There are 20 of them at most.
                let bits = bits.fold(0_u32, |bits, (number, _)| bits | 1 << number);
                let [_, data @ ..] = bits.to_be_bytes();
                Ok((ResponseApdu::new(data.to_vec(), StatusWord::OK), None))
            }
            Outcome::Rig(rigged) => {
                if self.rigged.len() >= MAX_RIGGED {
                    return Ok((StatusWord::CONDITIONS_NOT_SATISFIED.into(), None));
                }
                self.rigged.push_back(rigged);
                Ok((StatusWord::OK.into(), None))
            }
            Outcome::Fault(Fault::Raw(bytes) | Fault::RawThen { first: bytes, .. }) => Err(bytes),
            Outcome::Fault(Fault::Mute) => {
                thread::sleep(MAX_DELAY);
                Err(Vec::new())
            }
            Outcome::Fault(Fault::Reset) => {
                self.reset();
                Ok((EXECUTION_ERROR.into(), None))
            }
            Outcome::Fault(Fault::Removal(away)) => {
                self.returns_at = Some(Instant::now() + away.min(MAX_DELAY));
                Err(Vec::new())
            }
        }
    }

    fn process(&mut self, command: &CommandApdu) -> Outcome {
        let header = command.header();
        let (Ok(number), Ok(class)) = (channel_of(header.cla), without_channel(header.cla)) else {
            return StatusWord::CLA_NOT_SUPPORTED.into();
        };
        let index = usize::from(number.get());
        let Some(Some(channel)) = self.channels.get_mut(index) else {
            return StatusWord::CHANNEL_NOT_SUPPORTED.into();
        };
        // As on many cards, a proprietary class makes no difference to these two.
        let own = match (header.ins, header.p1) {
            (INS_MANAGE_CHANNEL, P1_OPEN) => Some(Some(RiggedCommand::Open)),
            (INS_MANAGE_CHANNEL, P1_CLOSE) => Some(Some(RiggedCommand::Close)),
            (INS_MANAGE_CHANNEL, P1_RESET) => Some(Some(RiggedCommand::ResetChannel)),
            (INS_MANAGE_CHANNEL, _) => Some(None),
            // Whoever opens channels by the access rules asks for them first. That is not what tests
            // of what a caller asks for are about.
            (INS_SELECT, P1_SELECT_BY_DF_NAME) if command.data() == ara_m::AID => Some(None),
            (INS_SELECT, P1_SELECT_BY_DF_NAME) => Some(Some(RiggedCommand::Select)),
            _ => None,
        };
        let Some(own) = own else {
            return self.process_applet(number, class, command);
        };
        // The end of an application is the end of its chain, too.
        channel.chain = None;
        let selected = channel.selected;
        if is_chained(class) {
            return StatusWord::CHAINING_NOT_SUPPORTED.into();
        }
        if has_secure_messaging(class) {
            return StatusWord::SECURE_MESSAGING_NOT_SUPPORTED.into();
        }
        let is_rigged = |rigged: &Rigged| Some(rigged.command) == own;
        let rigged = self.rigged.iter().position(is_rigged);
        let rigged = rigged.and_then(|position| self.rigged.remove(position));
        let answer = match rigged {
            Some(Rigged {
                carried_out: false,
                answer,
                ..
            }) => return Outcome::Fault(Fault::Raw(answer)),
            rigged => rigged.map(|rigged| rigged.answer),
        };
        let response = if header.ins == INS_SELECT {
            self.select(number, selected, command)
        } else {
            self.manage_channel(number, command)
        };
        match answer {
            Some(answer) => Outcome::Fault(Fault::Raw(answer)),
            None => response.into(),
        }
    }

    /// A command to the applet that is selected on the channel.
    fn process_applet(
        &mut self,
        number: ChannelNumber,
        class: u8,
        command: &CommandApdu,
    ) -> Outcome {
        let Some(Some(channel)) = self.channels.get_mut(usize::from(number.get())) else {
            return EXECUTION_ERROR.into();
        };
        let Some(applet) = self.applets.get_mut(channel.selected) else {
            return EXECUTION_ERROR.into();
        };
        if applet.owns_class(class) {
            channel.chain = None;
            return applet.process(number, command);
        }
        match channel.chain(&**applet, class, command) {
            Err(status) => status.into(),
            Ok(Chained::Begun) => StatusWord::OK.into(),
            Ok(Chained::Complete(command)) => applet.process(number, &command),
            Ok(Chained::No) => applet.process(number, command),
        }
    }

    /// ISO/IEC 7816-4 section 11.1.2, GlobalPlatform Card Specification section 11.7.
    fn manage_channel(&mut self, channel: ChannelNumber, command: &CommandApdu) -> ResponseApdu {
        let Header { p1, p2, .. } = command.header();
        if !command.data().is_empty() {
            return StatusWord::WRONG_LENGTH.into();
        }
        match (p1, p2) {
            (P1_OPEN, 0x00) => {
                // Without Le, the number could not be told and the channel would be lost.
                if command.le().is_none() {
                    return StatusWord::WRONG_LENGTH.into();
                }
                // From the basic channel the default application is selected on the new one, from
                // another channel the one that is selected there.
                let selected = match self.channels.get(usize::from(channel.get())) {
                    Some(Some(origin)) if !channel.is_basic() => origin.selected,
                    _ => 0,
                };
                let free = (1_u8..).zip(self.channels.iter().skip(1));
                let Some(number) = free
                    .filter(|(_, channel)| channel.is_none())
                    .find_map(|(number, _)| ChannelNumber::new(number))
                else {
                    return StatusWord::FUNCTION_NOT_SUPPORTED.into();
                };
                let selection = self.put_on_channel(number, selected, 0);
                if selection.status.is_error() {
                    return selection.status.into();
                }
                ResponseApdu::new(vec![number.get()], StatusWord::OK)
            }
            (P1_CLOSE, number) => {
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
            (P1_RESET, 0x00) => self.put_on_channel(channel, 0, 0).status.into(),
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
        let selection = self.put_on_channel(channel, index, p2);
        if selection.status.is_error() {
            return selection.status.into();
        }
        let mut data = Vec::new();
        if let (Some(_), Some(answer)) = (template, selection.answer) {
            data = answer;
        } else if let (Some(template), Some(applet)) = (template, self.applets.get(index)) {
            let mut objects = Vec::new();
            tlv::write(&mut objects, DF_NAME, applet.aid().as_bytes());
            objects.extend(selection.control_information);
            tlv::write(&mut data, template, &objects);
        }
        ResponseApdu::new(data, selection.status)
    }

    /// Selects the applet of that index on the channel, which this opens if it is closed. Where
    /// the applet refuses, everything stays as it is.
    fn put_on_channel(&mut self, channel: ChannelNumber, index: usize, p2: u8) -> Selection {
        let own = usize::from(channel.get());
        let is_busy = self.channels.iter().enumerate().any(|(number, channel)| {
            number != own
                && channel
                    .as_ref()
                    .is_some_and(|other| other.selected == index)
        });
        let Some(applet) = self.applets.get_mut(index) else {
            return EXECUTION_ERROR.into();
        };
        if is_busy && !applet.is_multi_selectable() {
            return StatusWord::CONDITIONS_NOT_SATISFIED.into();
        }
        let Some(slot) = self.channels.get_mut(own) else {
            return EXECUTION_ERROR.into();
        };
        let selection = applet.select(channel, p2);
        if selection.status.is_error() {
            return selection;
        }
        *slot = Some(Channel {
            selected: index,
            chain: None,
        });
        selection
    }

    /// Closes a channel; whether it was open.
    fn close(&mut self, channel: ChannelNumber) -> bool {
        let slot = self.channels.get_mut(usize::from(channel.get()));
        slot.and_then(Option::take).is_some()
    }
}

/// What a command is to a chain.
enum Chained {
    /// It is not part of one.
    No,
    /// More is to come.
    Begun,
    /// It was the last of a chain, which is this command.
    Complete(CommandApdu),
}

impl Channel {
    /// Collects chains (ISO/IEC 7816-4 section 5.3.3).
    fn chain(
        &mut self,
        applet: &dyn Applet,
        class: u8,
        command: &CommandApdu,
    ) -> Result<Chained, StatusWord> {
        let Header { ins, p1, p2, .. } = command.header();
        let header = Header::new(class & !CHAINING, ins, p1, p2);
        let begun = self.chain.take();
        if begun.as_ref().is_some_and(|chain| chain.header != header) {
            return Err(CHAIN_EXPECTED);
        }
        if has_secure_messaging(class) {
            return Err(StatusWord::SECURE_MESSAGING_NOT_SUPPORTED);
        }
        let is_last = !is_chained(class);
        if !is_last && !applet.takes_chain(header) {
            return Err(StatusWord::CHAINING_NOT_SUPPORTED);
        }
        if begun.is_none() && is_last {
            return Ok(Chained::No);
        }
        let mut data = begun.map(|chain| chain.data).unwrap_or_default();
        data.extend(command.data());
        if data.len() > MAX_COMMAND_DATA {
            return Err(StatusWord::WRONG_LENGTH);
        }
        if !is_last {
            self.chain = Some(Chain { header, data });
            return Ok(Chained::Begun);
        }
        CommandApdu::with_shortest_form(command.header(), data, command.le())
            .map(Chained::Complete)
            .map_err(|_| StatusWord::WRONG_LENGTH)
    }
}

impl Card for VirtualCard {
    fn atr(&self) -> &[u8] {
        &self.atr
    }

    fn reset(&mut self) {
        self.channels.fill_with(|| None);
        self.rest = None;
        self.rigged.clear();
        self.t0 = T0::default();
        self.returns_at = None;
        for applet in &mut self.applets {
            applet.reset();
        }
        self.put_on_channel(ChannelNumber::BASIC, 0, 0);
    }

    fn transmit(&mut self, command: &[u8]) -> Vec<u8> {
        if !self.is_present() {
            return Vec::new();
        }
        match self.profile.protocol {
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
        Some(le) if length > le as usize => match length {
            1..=256 => exact(length).into(),
            _ => StatusWord::WRONG_LENGTH.into(),
        },
        Some(_) => response,
    }
}
