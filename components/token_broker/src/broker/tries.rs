/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Commands that spend tries, and what they unlock: no page spends the last try of a PIN, and what one origin has
//! unlocked does not serve another.

use secure_element::class_byte;

use super::*;
use crate::reader::{Reference, Secret};

const INS_VERIFY: u8 = 0x20;
/// 63Cx: x tries are left (ISO/IEC 7816-4 section 5.6).
const TRIES_LEFT: u16 = 0x63C0;

const LAST_TRY: &str = "only one try is left, which no page may spend; use the card's own program";
const UNLOCKED_BY_ANOTHER: &str = "another site has unlocked this card and still uses it";

/// What a command with this header and data tries to prove the knowledge of.
fn reference(header: Header, command: &[u8], applet: Option<Aid>) -> Option<Reference> {
    let secret = match header.ins {
        // VERIFY and CHANGE REFERENCE DATA.
        0x20 | 0x21 | 0x24 | 0x25 => Secret::Password,
        // RESET RETRY COUNTER.
        0x2C | 0x2D => Secret::UnblockingCode,
        // EXTERNAL AUTHENTICATE.
        0x82 => Secret::Key,
        _ => return None,
    };
    // Without data, it only asks.
    let command = CommandApdu::parse(command).ok()?;
    (!command.data().is_empty()).then_some(Reference {
        applet,
        secret,
        p2: header.p2,
    })
}

impl Broker {
    /// Sends a page's command when it is its turn.
    #[expect(clippy::too_many_arguments, reason = "what a command comes with")]
    pub(super) fn start_transmit(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        channel: ChannelId,
        header: Header,
        command: Vec<u8>,
        deadline: Instant,
        now: Instant,
    ) {
        let (Some(reader), Some(port)) = (self.readers.get(&key), self.ports.get(&ticket.port))
        else {
            return;
        };
        let Some(channel) = port.channel(channel) else {
            return self.reply(ticket, Err(closed("channel")));
        };
        // `selectNext()` may have selected another applet meanwhile.
        if let Err(error) = channel.check_command(header) {
            return self.reply(ticket, Err(error));
        }
        let reference = match self.config.access {
            Some(_) => reference(header, &command, channel.df_name),
            None => None,
        };
        let Some(reference) = reference else {
            return self.send_command(key, ticket, command, None, deadline, now);
        };
        match reader.tries.get(&reference) {
            Some(0 | 1) => self.refuse(ticket, ErrorKind::Security, LAST_TRY),
            None if reference.secret == Secret::Password => {
                let class = class_byte::interindustry(channel.number);
                let header = Header::new(class, INS_VERIFY, 0x00, reference.p2);
                match CommandApdu::with_shortest_form(header, Vec::new(), None) {
                    Ok(question) => {
                        let step = Step::CountTries(ticket, reference, command);
                        let body = transmit(question.encode(), false, deadline, now);
                        self.run(key, step, body, deadline);
                    }
                    Err(error) => self.reply(ticket, Err(invalid_value(&error))),
                }
            }
            _ => self.send_command(key, ticket, command, Some(reference), deadline, now),
        }
    }

    fn send_command(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        command: Vec<u8>,
        reference: Option<Reference>,
        deadline: Instant,
        now: Instant,
    ) {
        let body = transmit(command, false, deadline, now);
        self.run(key, Step::Transmit(ticket, reference), body, deadline);
    }

    /// Goes on with a command once the card has said how many tries are left, if it has.
    #[expect(clippy::too_many_arguments, reason = "what a command comes with")]
    pub(super) fn tries_counted(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        reference: Reference,
        command: Vec<u8>,
        deadline: Instant,
        status: StatusWord,
        now: Instant,
    ) {
        self.note_tries(key, reference, status);
        // Whoever wanted it has gone, or may no longer.
        let port = self.ports.get(&ticket.port);
        if !port.is_some_and(|port| port.in_flight.contains_key(&ticket.request)) {
            return;
        }
        let tries = self
            .readers
            .get(&key)
            .and_then(|reader| reader.tries.get(&reference));
        match tries {
            Some(0 | 1) => self.refuse(ticket, ErrorKind::Security, LAST_TRY),
            _ => self.send_command(key, ticket, command, Some(reference), deadline, now),
        }
    }

    /// Takes in what the answer to an attempt says.
    pub(super) fn attempted(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        reference: Reference,
        status: StatusWord,
    ) {
        self.note_tries(key, reference, status);
        let identity = self
            .ports
            .get(&ticket.port)
            .map(|port| port.identity.clone());
        if let Some(reader) = self.readers.get_mut(&key)
            && status.is_ok()
        {
            reader.tries.remove(&reference);
            // Whoever it was has gone meanwhile: then it is nobody's.
            match identity {
                Some(identity) => reader.unlocked_by = Some(identity),
                None => reader.needs_reset = true,
            }
        }
    }

    fn note_tries(&mut self, key: ReaderKey, reference: Reference, status: StatusWord) {
        if status.0 & 0xFFF0 == TRIES_LEFT
            && let Some(reader) = self.readers.get_mut(&key)
        {
            let left = (status.0 & 0x000F) as u8;
            reader.tries.insert(reference, left);
        }
    }

    /// Whether somebody else than this port's origin has unlocked something in the card.
    pub(super) fn is_unlocked_by_another(&self, reader: &Reader, port: PortId) -> bool {
        let own = self.ports.get(&port).map(|port| &port.identity);
        match (&reader.unlocked_by, own) {
            (Some(other), Some(own)) => !other.is_same_party(own),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Before a channel is opened.
    pub(super) fn check_unlocked(&self, reader: &Reader, port: PortId) -> Result<(), TokenError> {
        if self.is_unlocked_by_another(reader, port) {
            Err(TokenError::new(ErrorKind::Security, UNLOCKED_BY_ANOTHER))
        } else {
            Ok(())
        }
    }
}
