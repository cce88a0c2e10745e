/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! An element's access rules: they are read, over a channel of their own, before a channel is opened, and asked before
//! SELECT, after it, and for every command.

use secure_element::access::{ARA_M_AID, AraMReader, AraMStep, Denial, Outcome};

use super::*;

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

    /// Takes the basic channel, if no channel of the card is in use.
    fn take_basic_channel(&mut self, key: ReaderKey) -> bool {
        self.readers.get_mut(&key).is_some_and(|reader| {
            reader.channels.is_empty() && reader.channels.insert(ChannelNumber::BASIC)
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
                // A card without logical channels has only the basic one, for its rules too.
                Some(Opened::NoChannel) if self.take_basic_channel(key) => {
                    self.select_ara_m(key, opening, ChannelNumber::BASIC, now);
                }
                Some(Opened::NoChannel) => {
                    self.refuse(opening.ticket, ErrorKind::NoChannel, NO_CHANNEL);
                }
                None => {}
            },
            RulesStep::Select(channel) => match channel::parse_selected(response) {
                Ok(Selected::Application) => {
                    let known = match &reader.rules {
                        ElementRules::Card { refresh_tag, .. } => Some(*refresh_tag),
                        _ => None,
                    };
                    let step = AraMReader::start(channel, known);
                    self.read_rules(key, opening, channel, step, now);
                }
                Ok(Selected::NoApplication) => {
                    self.rules_read(key, opening, channel, ElementRules::None, now);
                }
                // What no card with an ARA-M answers: there is no such command, or not in this form.
                Err(ChannelError::Refused(
                    StatusWord::INS_NOT_SUPPORTED
                    | StatusWord::CLA_NOT_SUPPORTED
                    | StatusWord::INCORRECT_P1_P2,
                )) => self.rules_read(key, opening, channel, ElementRules::None, now),
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
                self.read_rules(key, opening, channel, step, now);
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
                reader.channels.remove(&ChannelNumber::BASIC);
                self.open_checked(key, opening, now);
            }
        }
    }

    /// After `selectNext()` has found another applet: gives it to the page, or, if the rules do not let it have that one,
    /// looks for the one after it.
    #[expect(clippy::too_many_arguments, reason = "what an answer comes with")]
    pub(super) fn next_selected(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        id: ChannelId,
        deadline: Instant,
        bytes: Vec<u8>,
        response: &ResponseApdu,
        now: Instant,
    ) {
        let df_name = df_name(response);
        let (Some(reader), Some(port)) = (self.readers.get(&key), self.ports.get(&ticket.port))
        else {
            return;
        };
        // Its closing waits in the queue, behind commands that were meant for another applet.
        let Some(channel) = port.channels.get(&id) else {
            self.reply(ticket, Err(closed("channel")));
            return self.fail_commands(key, ticket.port, id);
        };
        let requested = channel.partial.as_ref().map(|(aid, _)| aid.as_bytes());
        let access = self
            .policy(port, reader)
            .after_select(requested, df_name.as_ref(), &port.app);
        let partial = channel.partial;
        let number = channel.number;
        match (access, self.ports.get_mut(&ticket.port)) {
            (Ok(access), Some(port)) => {
                if let Some(channel) = port.channels.get_mut(&id) {
                    channel.access = access;
                    channel.df_name = df_name;
                }
                self.reply(ticket, Ok(ReplyBody::Response(bytes)));
            }
            // Nothing may be sent to what is selected now.
            (Err(_), Some(port)) => {
                if let Some(channel) = port.channels.get_mut(&id) {
                    channel.access = Access::Never(Denial::NoRule);
                }
                let command = partial
                    .and_then(|(aid, response)| channel::select_next(&aid, response, number).ok());
                if let Some(command) = command {
                    let body = transmit(command.encode(), true, deadline, now);
                    self.run(key, Step::SelectNext(ticket, id), body, deadline);
                }
            }
            (_, None) => {}
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
        let channel = self
            .ports
            .get(&ticket.port)
            .and_then(|port| port.channels.get(&id));
        let skipped = channel.is_some_and(|channel| !channel.access.allows_channel());
        let again = channel.filter(|_| skipped).and_then(|channel| {
            let response = channel.partial?.1;
            channel::select(Some(&channel.df_name?), response, channel.number).ok()
        });
        match again {
            Some(command) => {
                let body = transmit(command.encode(), true, deadline, now);
                self.run(key, Step::SelectAgain(ticket, id), body, deadline);
            }
            None => {
                self.reply(ticket, Err(error));
                if skipped {
                    self.drop_matching(ticket.port, |_, channel, _| channel == Some(id));
                }
            }
        }
    }

    /// After [`Broker::next_not_found`] has selected an applet again.
    pub(super) fn selected_again(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        id: ChannelId,
        response: &ResponseApdu,
    ) {
        let is_selected = channel::parse_selected(response) == Ok(Selected::Application);
        let name = df_name(response);
        let access = match (self.readers.get(&key), self.ports.get(&ticket.port)) {
            (Some(reader), Some(port)) => port.channels.get(&id).and_then(|channel| {
                let same = is_selected && name == channel.df_name;
                let requested = channel.partial.as_ref().map(|(aid, _)| aid.as_bytes());
                let policy = self.policy(port, reader);
                let access = policy.after_select(requested, name.as_ref(), &port.app);
                access.ok().filter(|_| same)
            }),
            _ => None,
        };
        let message = "the card has no further applet of this AID";
        self.refuse(ticket, ErrorKind::NoApplication, message);
        let channel = self
            .ports
            .get_mut(&ticket.port)
            .and_then(|port| port.channels.get_mut(&id));
        match (channel, access) {
            (Some(channel), Some(access)) => channel.access = access,
            (Some(_), None) => {
                self.drop_matching(ticket.port, |_, channel, _| channel == Some(id));
            }
            (None, _) => self.fail_commands(key, ticket.port, id),
        }
    }

    /// Refuses the commands that wait for a channel of which nobody knows what is selected on it.
    fn fail_commands(&mut self, key: ReaderKey, port: PortId, id: ChannelId) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let waits = |ticket: Ticket, _, task: &Task| {
            ticket.port == port && matches!(task, Task::Transmit { channel, .. } if *channel == id)
        };
        for ticket in reader.take_asked(waits) {
            self.reply(ticket, Err(closed("channel")));
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

    fn read_rules(
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
            AraMStep::Done(Outcome::Rules { rules, refresh_tag }) => ElementRules::Card {
                rules: Arc::from(rules),
                refresh_tag,
            },
            AraMStep::Done(Outcome::Unchanged) => {
                let reader = self.readers.get(&key);
                reader.map_or(ElementRules::Unknown, |reader| reader.rules.clone())
            }
            // An ARA-M without rules allows nobody anything.
            AraMStep::Done(Outcome::NoRules) => ElementRules::Card {
                rules: Arc::default(),
                // Not the one that it has, so they are looked for again.
                refresh_tag: RefreshTag([0; 8]),
            },
            AraMStep::Done(Outcome::Closed(why)) => {
                log::warn!("the card's access rules: {why}");
                ElementRules::Closed
            }
        };
        self.rules_read(key, opening, channel, rules, now);
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
