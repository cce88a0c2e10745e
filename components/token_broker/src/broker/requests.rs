/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */
//! What documents ask of cards: whether they may, and what becomes a job.

use super::elements::{may_see, may_see_any};
use super::*;
use crate::reader::Asked;

impl Broker {
    pub(super) fn ask_session(
        &mut self,
        ticket: Ticket,
        reader: ReaderId,
        now: Instant,
    ) -> Result<(), TokenError> {
        let key = self.visible_reader(ticket.port, reader)?;
        self.enqueue(key, ticket, Task::OpenSession, DEFAULT_TIMEOUT, now)
    }

    /// The reader that a document names, if it may use it.
    pub(super) fn visible_reader(
        &self,
        id: PortId,
        reader: ReaderId,
    ) -> Result<ReaderKey, TokenError> {
        let port = self.port(id)?;
        if !may_see_any(&self.grants, port) {
            return Err(access::refused());
        }
        let found = self
            .reader_key(id, reader)
            .and_then(|key| Some((key, self.readers.get(&key)?)));
        match found {
            Some((key, reader)) if may_see(&self.grants, port, reader) => Ok(key),
            Some(_) => Err(access::refused()),
            None => Err(io_error(READER_GONE)),
        }
    }

    pub(super) fn ask_reset(
        &mut self,
        ticket: Ticket,
        reader: ReaderId,
        now: Instant,
    ) -> Result<(), TokenError> {
        let key = self.visible_reader(ticket.port, reader)?;
        self.check_reset(ticket.port, key)?;
        self.enqueue(key, ticket, Task::Reset, DEFAULT_TIMEOUT, now)
    }

    /// A reset takes the sessions of everybody, so nobody else may have one.
    pub(super) fn check_reset(&self, id: PortId, key: ReaderKey) -> Result<(), TokenError> {
        let own = &self.port(id)?.identity;
        let is_shared = self.ports.values().any(|port| {
            !port.identity.is_same_party(own) && port.sessions.values().any(|of| *of == key)
        });
        if is_shared {
            return Err(TokenError::new(
                ErrorKind::Security,
                "another site uses the card, so it cannot be reset",
            ));
        }
        Ok(())
    }

    pub(super) fn ask_select_next(
        &mut self,
        ticket: Ticket,
        channel: ChannelId,
        timeout_ms: Option<u32>,
        now: Instant,
    ) -> Result<(), TokenError> {
        let id = channel;
        let channel = self.open_channel(ticket.port, id)?;
        let Some((aid, _)) = channel.partial else {
            return Err(TokenError::new(
                ErrorKind::InvalidState,
                "the channel was not opened with a partial AID",
            ));
        };
        let command = channel::select_next(&aid, SelectResponse::Fci, channel.number)
            .map_err(|error| invalid_value(&error))?;
        let reader = channel.reader;
        let task = Task::SelectNext {
            channel: id,
            command: command.encode(),
        };
        self.enqueue(reader, ticket, task, time_limit(timeout_ms), now)
    }

    pub(super) fn ask_channel(
        &mut self,
        ticket: Ticket,
        session: SessionId,
        channel_type: ChannelType,
        aid: Option<Vec<u8>>,
        p2: u8,
        now: Instant,
    ) -> Result<(), TokenError> {
        let port = self.port(ticket.port)?;
        let key = *port
            .sessions
            .get(&session)
            .ok_or_else(|| closed("session"))?;
        let response = SelectResponse::from_p2(p2).map_err(|error| invalid_value(&error))?;
        let applet = match aid.as_deref() {
            None => Applet::Implicit,
            Some([]) => Applet::IssuerSecurityDomain,
            Some(aid) => Applet::Named(Aid::new(aid).map_err(|error| invalid_value(&error))?),
        };
        let reader = self.readers.get(&key);
        if !reader.is_some_and(|reader| may_see(&self.grants, port, reader)) {
            return Err(access::refused());
        }
        let task = Task::OpenChannel {
            session,
            channel_type,
            applet,
            response,
            asked: Asked::No,
        };
        self.enqueue(key, ticket, task, DEFAULT_TIMEOUT, now)
    }

    pub(super) fn ask_transmit(
        &mut self,
        ticket: Ticket,
        channel: ChannelId,
        command: Command,
        timeout_ms: Option<u32>,
        now: Instant,
    ) -> Result<(), TokenError> {
        let id = channel;
        let channel = self.open_channel(ticket.port, id)?;
        let apdu::Prepared { header, command } = apdu::prepare(command, channel.number)?;
        channel.check_command(header)?;
        let reader = channel.reader;
        let task = Task::Transmit {
            channel: id,
            header,
            command,
        };
        self.enqueue(reader, ticket, task, time_limit(timeout_ms), now)
    }

    pub(super) fn open_channel(
        &self,
        port: PortId,
        channel: ChannelId,
    ) -> Result<&OpenChannel, TokenError> {
        let channels = &self.port(port)?.channels;
        channels.get(&channel).ok_or_else(|| closed("channel"))
    }

    pub(super) fn port(&self, port: PortId) -> Result<&Port, TokenError> {
        self.ports.get(&port).ok_or_else(|| closed("port"))
    }

    pub(super) fn enqueue(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        task: Task,
        timeout: Duration,
        now: Instant,
    ) -> Result<(), TokenError> {
        let event_loop = self.port(ticket.port)?.identity.event_loop;
        let reader = self
            .readers
            .get_mut(&key)
            .ok_or_else(|| io_error(READER_GONE))?;
        if !reader.queue.has_room(event_loop) {
            return Err(io_error("too many requests wait for this reader"));
        }
        let job = Job::Asked {
            ticket,
            deadline: now + timeout,
            task,
        };
        reader.queue.push(event_loop, job);
        self.advance(key, now);
        Ok(())
    }

    /// Closes what `matches` says and answers when the cards have been told.
    pub(super) fn close_matching(
        &mut self,
        ticket: Ticket,
        now: Instant,
        matches: impl Fn(SessionId, Option<ChannelId>, ReaderKey) -> bool,
    ) {
        let Some(port) = self.ports.get_mut(&ticket.port) else {
            return;
        };
        let event_loop = port.identity.event_loop;
        // What the document sent before is still done.
        let closing = port
            .channels
            .iter()
            .filter(|(id, channel)| matches(channel.session, Some(**id), channel.reader));
        let closing = closing.map(|(id, channel)| (*id, channel.clone()));
        port.closing.extend(closing.collect::<Vec<_>>());
        let keys = self.drop_matching(ticket.port, matches);
        if keys.is_empty() {
            return self.reply(ticket, Ok(ReplyBody::Done));
        }
        let group = GroupId(self.next_group);
        self.next_group += 1;
        self.groups.insert(
            group,
            Group {
                ticket,
                remaining: keys.len(),
            },
        );
        for key in keys {
            if let Some(reader) = self.readers.get_mut(&key) {
                reader.queue.push(event_loop, Job::Barrier(group));
            }
            self.advance(key, now);
        }
    }

    /// Takes sessions and channels from a port, lets the channels be closed after whatever waits before, and returns
    /// the readers concerned. `matches` is asked about each session without a channel, and about each channel.
    pub(super) fn drop_matching(
        &mut self,
        id: PortId,
        matches: impl Fn(SessionId, Option<ChannelId>, ReaderKey) -> bool,
    ) -> Vec<ReaderKey> {
        let Some(port) = self.ports.get_mut(&id) else {
            return Vec::new();
        };
        let mut keys = Vec::new();
        port.channels.retain(|channel_id, channel| {
            let goes = matches(channel.session, Some(*channel_id), channel.reader);
            if goes && let Some(reader) = self.readers.get_mut(&channel.reader) {
                let job = Job::CloseChannel(channel.number);
                reader.queue.push(port.identity.event_loop, job);
                keys.push(channel.reader);
            }
            !goes
        });
        port.sessions.retain(|session, key| {
            let goes = matches(*session, None, *key);
            if goes && let Some(reader) = self.readers.get_mut(key) {
                reader.sessions -= 1;
                keys.push(*key);
            }
            !goes
        });
        keys.sort();
        keys.dedup();
        keys
    }

    /// Takes a channel from a port, closed by its document or not, and returns the readers concerned. Commands that wait for
    /// it are refused when it is their turn.
    pub(super) fn forget_channel(&mut self, id: PortId, lost: ChannelId) -> Vec<ReaderKey> {
        if let Some(port) = self.ports.get_mut(&id) {
            port.closing.remove(&lost);
        }
        self.drop_matching(id, |_, channel, _| channel == Some(lost))
    }

    pub(super) fn pass_barrier(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.remaining -= 1;
        if group.remaining == 0 {
            let ticket = group.ticket;
            self.groups.remove(&id);
            self.reply(ticket, Ok(ReplyBody::Done));
        }
    }
}
