/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An element's access rules: they are read, over a channel of their own, before a channel is opened, and asked before
//! SELECT, after it, and for every command.

use secure_element::access::{
    ARA_M_AID, AraMReader, AraMStep, ArfReader, ArfStep, Denial, DirectoryReader, DirectoryStep,
    Outcome,
};

use super::*;
use crate::reader::{Found, Knowledge, RulesSource, Telling};

/// What `selectNext()` ends with where there is no applet any more that the page may use.
pub(super) fn no_next() -> TokenError {
    let message = "the card has no further applet of this AID";
    TokenError::new(ErrorKind::NoApplication, message)
}

/// What `selectNext()` ends with on a card that cannot do it.
pub(super) fn next_unsupported() -> TokenError {
    let message = "the card does not select the next applet";
    TokenError::new(ErrorKind::Unsupported, message)
}

/// The refresh tag of the rules that are known already, if they are from there.
fn known_tag(reader: &Reader, from: RulesSource) -> Option<RefreshTag> {
    match &reader.rules {
        ElementRules::Card {
            refresh_tag,
            source,
            ..
        } if *source == from => Some(*refresh_tag),
        _ => None,
    }
}

impl Broker {
    /// Opens a channel once the element's rules are known, and known to be current.
    pub(super) fn open_with_rules(&mut self, key: ReaderKey, opening: Opening, now: Instant) {
        let Some(reader) = self.readers.get(&key) else {
            return;
        };
        match reader.rules {
            _ if self.config.access.is_none() => self.open_checked(key, opening, now),
            // Nothing changes that but a reset.
            ElementRules::None | ElementRules::Closed => self.open_checked(key, opening, now),
            ElementRules::Unknown | ElementRules::Card { .. } => {
                let command = channel::open_command();
                self.run_rules(key, opening, RulesStep::Open, &command, now);
            }
        }
    }

    /// Takes the basic channel, if it is what the page wants, or if no channel of the card is in use.
    fn take_basic_channel(&mut self, key: ReaderKey, wanted: ChannelType) -> bool {
        self.readers.get_mut(&key).is_some_and(|reader| {
            (wanted == ChannelType::Basic || reader.channels.is_empty())
                && reader.channels.insert(ChannelNumber::BASIC)
        })
    }

    fn run_rules(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        step: RulesStep,
        command: &CommandApdu,
        now: Instant,
    ) {
        let select = matches!(step, RulesStep::Select(_));
        let body = transmit(command.encode(), select, opening.deadline, now);
        self.run(key, Step::Rules(opening, step), body, opening.deadline);
    }

    /// Goes on with reading the rules.
    pub(super) fn rules_response(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        step: RulesStep,
        response: &ResponseApdu,
        now: Instant,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        match step {
            RulesStep::Open => match self.opened_channel(key, opening.ticket, response) {
                Some(Opened::Channel(channel)) => self.select_ara_m(key, opening, channel, now),
                // A card without logical channels, or whose channels are all in use, has only the basic one, for its
                // rules too.
                Some(Opened::NoChannel) if self.take_basic_channel(key, opening.channel_type) => {
                    self.select_ara_m(key, opening, ChannelNumber::BASIC, now);
                }
                Some(Opened::NoChannel) => {
                    self.refuse(opening.ticket, ErrorKind::NoChannel, NO_CHANNEL);
                }
                None => {}
            },
            RulesStep::Select(channel) => match channel::parse_selected(response) {
                Ok(Selected::Application) => {
                    let known = known_tag(reader, RulesSource::AraM);
                    let step = AraMReader::start(channel, known);
                    self.read_ara_m(key, opening, channel, step, now);
                }
                Ok(Selected::NoApplication) => self.without_ara_m(key, opening, channel, now),
                // What no card with an ARA-M answers: there is no such command, or not in this form.
                Err(ChannelError::Refused(
                    StatusWord::INS_NOT_SUPPORTED
                    | StatusWord::CLA_NOT_SUPPORTED
                    | StatusWord::INCORRECT_P1_P2,
                )) => self.without_ara_m(key, opening, channel, now),
                Ok(Selected::NoChannel) => {
                    self.refuse(opening.ticket, ErrorKind::NoChannel, NO_CHANNEL);
                    self.close_first(key, channel);
                }
                Err(error) => {
                    log::warn!("the card's access rules cannot be selected: {error}");
                    self.rules_read(key, opening, channel, ElementRules::Closed, now);
                }
            },
            RulesStep::Read(channel, reading) => {
                let step = reading.receive(response);
                self.read_ara_m(key, opening, channel, step, now);
            }
            RulesStep::Directory(channel, reading) => {
                let step = reading.receive(response);
                self.read_directory(key, opening, channel, step, now);
            }
            RulesStep::Files(channel, reading) => {
                let step = reading.receive(response);
                self.read_files(key, opening, channel, step, now);
            }
            RulesStep::Close(channel) => {
                reader.needs_reset |= response.status.is_error();
                reader.channels.remove(&channel);
                self.open_checked(key, opening, now);
            }
            RulesStep::ResetBasic if response.status.is_error() => {
                let command = channel::select(None, SelectResponse::Fci, ChannelNumber::BASIC);
                match command {
                    Ok(command) => {
                        self.run_rules(key, opening, RulesStep::SelectDefault, &command, now);
                    }
                    Err(error) => self.reply(opening.ticket, Err(invalid_value(&error))),
                }
            }
            RulesStep::ResetBasic | RulesStep::SelectDefault => {
                reader.basic_is_dirty = response.status.is_error();
                reader.needs_reset |= response.status.is_error();
                reader.channels.remove(&ChannelNumber::BASIC);
                self.open_checked(key, opening, now);
            }
        }
    }

    /// What the rules let a page do with the applet of this name that is selected on its channel now.
    fn access_on(
        &self,
        key: ReaderKey,
        ticket: Ticket,
        id: ChannelId,
        df_name: Option<&Aid>,
    ) -> Option<Access> {
        let (reader, port) = (self.readers.get(&key)?, self.ports.get(&ticket.port)?);
        let channel = port.channel(id)?;
        let requested = channel.partial.as_ref().map(|(aid, _)| aid.as_bytes());
        let policy = self.policy(port, reader);
        policy.after_select(requested, df_name, &port.app).ok()
    }

    fn channel_of(&mut self, ticket: Ticket, id: ChannelId) -> Option<&mut OpenChannel> {
        self.ports.get_mut(&ticket.port)?.channel_mut(id)
    }

    /// Nothing may be sent to what is selected on a channel now.
    pub(super) fn refuse_selected(&mut self, ticket: Ticket, id: ChannelId) {
        if let Some(channel) = self.channel_of(ticket, id) {
            channel.access = Access::Never(Denial::NoRule);
        }
    }

    /// After `selectNext()` has found another applet: selects it with the P2 that the page wants, or, if the rules do not
    /// let it have that one, looks for the one after it.
    #[expect(clippy::too_many_arguments, reason = "what an answer comes with")]
    pub(super) fn next_found(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        id: ChannelId,
        deadline: Instant,
        found: Found,
        response: &ResponseApdu,
        now: Instant,
    ) {
        let access = self.access_on(key, ticket, id, found.df_name.as_ref());
        self.refuse_selected(ticket, id);
        let Some(channel) = self.channel_of(ticket, id) else {
            return self.reply(ticket, Err(closed("channel")));
        };
        let Some((aid, wanted)) = channel.partial else {
            return self.reply(ticket, Err(next_unsupported()));
        };
        let number = channel.number;
        let (step, command) = match access {
            Some(_) if wanted == SelectResponse::Fci => {
                return self.next_selected(key, ticket, id, deadline, found, response, now);
            }
            Some(_) => match found.df_name {
                Some(name) => (
                    Step::SelectNextAs(ticket, id, found),
                    channel::select(Some(&name), wanted, number),
                ),
                None => {
                    let error = next_unsupported();
                    return self.next_not_found(key, ticket, id, deadline, error, now);
                }
            },
            None => (
                Step::SelectNext(ticket, id),
                channel::select_next(&aid, SelectResponse::Fci, number),
            ),
        };
        match command {
            Ok(command) => {
                let body = transmit(command.encode(), true, deadline, now);
                self.run(key, step, body, deadline);
            }
            Err(error) => {
                self.next_not_found(key, ticket, id, deadline, invalid_value(&error), now)
            }
        }
    }

    /// After `selectNext()` has selected an applet as the page wants it: gives it to the page, once the applet knows for
    /// whom.
    #[expect(clippy::too_many_arguments, reason = "what an answer comes with")]
    pub(super) fn next_selected(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        id: ChannelId,
        deadline: Instant,
        found: Found,
        response: &ResponseApdu,
        now: Instant,
    ) {
        let access = self.access_on(key, ticket, id, found.df_name.as_ref());
        let Some(channel) = self.channel_of(ticket, id) else {
            return self.reply(ticket, Err(closed("channel")));
        };
        match access {
            Some(_) if found.origin == Knowledge::Wanted => {
                let number = channel.number;
                let telling = Telling::Next(ticket, id, response.clone());
                self.present_origin(key, number, found, telling, deadline, now);
            }
            Some(access) => {
                channel.access = access;
                channel.df_name = found.df_name;
                channel.knows_origin = found.origin == Knowledge::Told;
                self.reply(ticket, Ok(ReplyBody::Response(response.encode())));
            }
            // The user has ended a grant meanwhile.
            None => {
                self.reply(ticket, Err(access::refused()));
                self.forget_channel(ticket.port, id);
            }
        }
    }

    /// After `selectNext()` has found nothing: the applet that was selected is selected still, or again.
    pub(super) fn next_not_found(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        id: ChannelId,
        deadline: Instant,
        error: TokenError,
        now: Instant,
    ) {
        let Some(channel) = self.channel_of(ticket, id) else {
            return self.reply(ticket, Err(error));
        };
        if channel.access.allows_channel() {
            return self.reply(ticket, Err(error));
        }
        let again = channel.df_name.and_then(|name| {
            channel::select(Some(&name), SelectResponse::Fci, channel.number).ok()
        });
        match again {
            Some(command) => {
                let body = transmit(command.encode(), true, deadline, now);
                self.run(key, Step::SelectAgain(ticket, id), body, deadline);
            }
            None => {
                self.reply(ticket, Err(error));
                self.forget_channel(ticket.port, id);
            }
        }
    }

    /// After [`Broker::next_not_found`] has selected an applet again, if it has.
    pub(super) fn selected_again(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        id: ChannelId,
        found: Option<Found>,
        deadline: Instant,
        now: Instant,
    ) {
        let name = found.and_then(|found| found.df_name);
        let access = self.access_on(key, ticket, id, name.as_ref());
        let channel = self.channel_of(ticket, id);
        match (channel, access, found) {
            (Some(channel), Some(access), Some(found)) if name == channel.df_name => {
                if found.origin == Knowledge::Wanted {
                    let number = channel.number;
                    let telling = Telling::Again(ticket, id);
                    return self.present_origin(key, number, found, telling, deadline, now);
                }
                channel.access = access;
                channel.knows_origin = found.origin == Knowledge::Told;
                self.reply(ticket, Err(no_next()));
            }
            _ => {
                self.reply(ticket, Err(no_next()));
                self.forget_channel(ticket.port, id);
            }
        }
    }

    fn select_ara_m(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        now: Instant,
    ) {
        let command = Aid::new(&ARA_M_AID)
            .ok()
            .and_then(|aid| channel::select(Some(&aid), SelectResponse::Fci, channel).ok());
        match command {
            Some(command) => {
                self.run_rules(key, opening, RulesStep::Select(channel), &command, now);
            }
            None => self.refuse(opening.ticket, ErrorKind::Unknown, "internal error"),
        }
    }

    /// Goes on where there is no ARA-M: a UICC may have files.
    fn without_ara_m(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        now: Instant,
    ) {
        let Some(reader) = self.readers.get(&key) else {
            return;
        };
        if reader.kind_of_element() == ElementType::Uicc {
            let known = known_tag(reader, RulesSource::Arf);
            let step = ArfReader::start(channel, known);
            self.read_files(key, opening, channel, step, now);
        } else {
            let step = DirectoryReader::start(channel);
            self.read_directory(key, opening, channel, step, now);
        }
    }

    fn read_directory(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        step: DirectoryStep,
        now: Instant,
    ) {
        let rules = match step {
            DirectoryStep::Send(reading, command) => {
                let step = RulesStep::Directory(channel, reading);
                return self.run_rules(key, opening, step, &command, now);
            }
            DirectoryStep::Done(true) => {
                if let Some(reader) = self.readers.get_mut(&key) {
                    reader.names_uicc = true;
                }
                let step = ArfReader::start(channel, None);
                return self.read_files(key, opening, channel, step, now);
            }
            DirectoryStep::Done(false) => ElementRules::None,
            DirectoryStep::Closed(why) => {
                log::warn!("the card's list of applications: {why}");
                ElementRules::Closed
            }
        };
        self.rules_read(key, opening, channel, rules, now);
    }

    fn read_files(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        step: ArfStep,
        now: Instant,
    ) {
        let rules = match step {
            ArfStep::Send(reading, command) => {
                let step = RulesStep::Files(channel, reading);
                return self.run_rules(key, opening, step, &command, now);
            }
            // There is no place for any.
            ArfStep::Done(Outcome::NoRules) => ElementRules::None,
            ArfStep::Done(outcome) => self.rules_of(key, outcome, RulesSource::Arf),
        };
        self.rules_read(key, opening, channel, rules, now);
    }

    fn read_ara_m(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        step: AraMStep,
        now: Instant,
    ) {
        let rules = match step {
            AraMStep::Send(reading, command) => {
                let step = RulesStep::Read(channel, Box::new(reading));
                return self.run_rules(key, opening, step, &command, now);
            }
            AraMStep::Done(outcome) => self.rules_of(key, outcome, RulesSource::AraM),
        };
        self.rules_read(key, opening, channel, rules, now);
    }

    /// What came of reading rules where there is a place for them.
    fn rules_of(&self, key: ReaderKey, outcome: Outcome, source: RulesSource) -> ElementRules {
        match outcome {
            Outcome::Rules { rules, refresh_tag } => ElementRules::Card {
                rules: Arc::from(rules),
                refresh_tag,
                source,
            },
            Outcome::Unchanged => {
                let reader = self.readers.get(&key);
                reader.map_or(ElementRules::Unknown, |reader| reader.rules.clone())
            }
            // No rules allow nobody anything.
            Outcome::NoRules => ElementRules::Card {
                rules: Arc::default(),
                // Not the one that it has, so they are looked for again.
                refresh_tag: RefreshTag([0; 8]),
                source,
            },
            Outcome::Closed(why) => {
                log::warn!("the card's access rules: {why}");
                ElementRules::Closed
            }
        }
    }

    /// Keeps the rules, and gives back the channel that they were read on.
    fn rules_read(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        rules: ElementRules,
        now: Instant,
    ) {
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.rules = rules;
        }
        if channel.is_basic() {
            let command = channel::reset_command();
            self.run_rules(key, opening, RulesStep::ResetBasic, &command, now);
        } else {
            let command = channel::close_command(channel);
            self.run_rules(key, opening, RulesStep::Close(channel), &command, now);
        }
    }
}
