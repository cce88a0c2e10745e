/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */
//! The workers' lives, and what their answers mean.

use token_workers::key_protocol::KeyError;

use super::elements::may_see;
use super::rules::{next_unsupported, no_next};
use super::*;
use crate::reader::{Asked, CardStage, Found};

/// Whether it is of the kind, and of a length, that a worker can answer with: what is not is no card's fault.
fn is_answer(step: &Step, result: &Result<protocol::ReplyBody, WorkerError>) -> bool {
    match (step, result) {
        (_, Err(_)) => true,
        (Step::Keys(step), Ok(reply)) if matches!(step.stage, CardStage::Connect { .. }) => {
            matches!(reply, protocol::ReplyBody::Connected(_))
        }
        (Step::Connect { .. } | Step::Reset(_), Ok(reply)) => {
            matches!(reply, protocol::ReplyBody::Connected(_))
        }
        (Step::Disconnect, Ok(reply)) => matches!(reply, protocol::ReplyBody::Done),
        (_, Ok(protocol::ReplyBody::Response(response))) => {
            (2..=MAX_RESPONSE).contains(&response.len())
        }
        (_, Ok(_)) => false,
    }
}

impl Broker {
    pub(super) fn worker_started(&mut self, worker: WorkerId, now: Instant) {
        if self.keys.has_worker(worker) {
            return self.with_keys(now, |keys| keys.worker_started(worker));
        }
        match self.workers.get(&worker) {
            Some(Role::Monitor) => self.monitor.started(now),
            Some(&Role::Reader(key)) => {
                if let Some(reader) = self.readers.get_mut(&key) {
                    reader.slot.started(now);
                    self.advance(key, now);
                }
            }
            // It was given up meanwhile.
            None => self.outputs.push(Output::KillWorker(worker)),
        }
    }

    pub(super) fn kill_worker(&mut self, worker: WorkerId, why: &str, now: Instant) {
        log::warn!("worker {}: {why}", worker.0);
        self.outputs.push(Output::KillWorker(worker));
        // Whether they came before the end or after it, those that wait find their channels closed.
        self.worker_ended(worker, closed("channel"), now);
    }

    /// `error` is for what waits for the worker.
    pub(super) fn worker_ended(&mut self, worker: WorkerId, error: TokenError, now: Instant) {
        self.unasked.remove(&worker);
        if self.keys.has_worker(worker) {
            return self.with_keys(now, |keys| keys.worker_ended(worker));
        }
        match self.workers.remove(&worker) {
            None => {}
            Some(Role::Monitor) => {
                self.monitor.ended(now);
                self.readers_are_known = false;
                self.want_monitor(now);
            }
            Some(Role::Reader(key)) => {
                let Some(reader) = self.readers.get_mut(&key) else {
                    return;
                };
                let was_ready = reader.slot.is_ready();
                reader.slot.ended(now);
                reader.idle_since = None;
                // Channels and verified PINs stay in the card. Nobody remembers them, so they have to go.
                reader.needs_reset |= reader.connected;
                let running = reader.running.take();
                let step = running.map(|running| running.step);
                if let Some(ticket) = step.as_ref().and_then(Step::ticket) {
                    let message = "communication with the card ended or took too long";
                    self.refuse(ticket, ErrorKind::Io, message);
                }
                self.connection_lost(key, error);
                if !was_ready {
                    self.fail_queue(key, "communication with the card cannot be started");
                    self.fail_card_jobs(key, now);
                }
                if let Some(Step::Keys(step)) = step {
                    self.card_job_ended(key, step.job, Err(KeyError::Failed), now);
                }
                // The embedded card ended with its worker, and comes with the next one.
                if self
                    .readers
                    .get(&key)
                    .is_some_and(|reader| reader.pcsc_name().is_none())
                {
                    self.set_present(key, true, now);
                }
                self.advance(key, now);
            }
        }
    }

    /// Answers everything that pages wait for at a reader with an error.
    pub(super) fn fail_queue(&mut self, key: ReaderKey, message: &str) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        for ticket in reader.take_asked(|_, _, _| true) {
            self.refuse(ticket, ErrorKind::Io, message);
        }
    }

    /// Closes everything that was opened through a reader's connection, and fails what waited to use it. Requests for
    /// a new session stay.
    pub(super) fn connection_lost(&mut self, key: ReaderKey, error: TokenError) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        reader.connected = false;
        reader.rules = ElementRules::Unknown;
        reader.names_uicc = false;
        reader.sessions = 0;
        reader.channels.clear();
        reader.keys.forget();
        if let Some(running) = &mut reader.running {
            running.is_stale = true;
        }
        let failed =
            reader.take_asked(|_, _, task| !matches!(task, Task::OpenSession | Task::Reset));
        reader
            .queue
            .retain(|job| !matches!(job, Job::CloseChannel(_)));
        for port in self.ports.values_mut() {
            port.channels.retain(|_, channel| channel.reader != key);
            port.closing.retain(|_, channel| channel.reader != key);
            port.sessions.retain(|_, reader| *reader != key);
        }
        for ticket in failed {
            self.reply(ticket, Err(error.clone()));
        }
    }

    pub(super) fn worker_frame(&mut self, worker: WorkerId, frame: &Frame, now: Instant) {
        if self.keys.has_worker(worker) {
            let message = frame.decode().ok();
            let is_reply = matches!(message, Some(KeyMessage::Reply { .. }));
            let is_flood = !is_reply && self.tells_too_much(worker, now);
            let message = message.filter(|_| !is_flood);
            return self.with_keys(now, |keys| keys.worker_message(worker, message));
        }
        let Some(&role) = self.workers.get(&worker) else {
            return;
        };
        let message = frame.decode();
        let is_reply = matches!(message, Ok(WorkerMessage::Reply { .. }));
        if !is_reply && self.tells_too_much(worker, now) {
            return self.kill_worker(worker, FLOOD, now);
        }
        match (role, message) {
            (Role::Monitor, Ok(WorkerMessage::Readers(list))) => self.readers_changed(list, now),
            (Role::Monitor, Ok(WorkerMessage::NoService)) => {
                self.readers_changed(Vec::new(), now);
            }
            (Role::Reader(key), Ok(WorkerMessage::CardPresent(present)))
                if self
                    .readers
                    .get(&key)
                    .is_some_and(|reader| reader.pcsc_name().is_none()) =>
            {
                self.set_present(key, present, now);
            }
            (Role::Reader(key), Ok(WorkerMessage::Reply { request, result })) => {
                let running = self.readers.get_mut(&key).and_then(|reader| {
                    reader.running.take_if(|running| {
                        running.id == request && is_answer(&running.step, &result)
                    })
                });
                match running {
                    Some(running) => self.step_ended(key, running, result, now),
                    None => self.kill_worker(worker, UNEXPECTED, now),
                }
            }
            _ => self.kill_worker(worker, UNEXPECTED, now),
        }
    }

    /// Counts what a worker says without being asked. What really happens to readers and cards is not so much.
    fn tells_too_much(&mut self, worker: WorkerId, now: Instant) -> bool {
        let (since, count) = self.unasked.entry(worker).or_insert((now, 0));
        if now.saturating_duration_since(*since) >= UNASKED_PERIOD {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count > MAX_UNASKED
    }

    /// Goes on with what the worker has answered.
    pub(super) fn step_ended(
        &mut self,
        key: ReaderKey,
        running: Running,
        result: Result<protocol::ReplyBody, WorkerError>,
        now: Instant,
    ) {
        let Running {
            step,
            deadline,
            is_stale,
            ..
        } = running;
        let step = match step {
            Step::Keys(step) => {
                self.card_step_ended(key, *step, result, is_stale, now);
                return self.advance(key, now);
            }
            step => step,
        };
        match result {
            // Nothing can be built on it: whatever it has opened belongs to nobody.
            _ if is_stale && !matches!(step, Step::Transmit(..)) => {
                if let Some(reader) = self.readers.get_mut(&key) {
                    reader.needs_reset = true;
                }
                if let Some(ticket) = step.ticket() {
                    self.reply(ticket, Err(not_connected()));
                }
            }
            Ok(protocol::ReplyBody::Response(response)) => {
                self.response(key, step, deadline, response, now);
            }
            Ok(reply) => match (step, reply) {
                (Step::Connect { ticket, reset }, protocol::ReplyBody::Connected(connected)) => {
                    self.session_opened(key, ticket, reset, &connected, now);
                }
                (Step::Reset(ticket), protocol::ReplyBody::Connected(_)) => {
                    self.reader_was_reset(key, ticket);
                }
                (Step::Disconnect, protocol::ReplyBody::Done) => {
                    self.connection_lost(key, not_connected());
                }
                (step, _) => self.step_failed(key, step, WorkerError::Communication),
            },
            Err(error) => self.step_failed(key, step, error),
        }
        self.advance(key, now);
    }

    pub(super) fn step_failed(&mut self, key: ReaderKey, step: Step, error: WorkerError) {
        if let Some(ticket) = step.ticket() {
            self.reply(ticket, Err(io_error(&error.to_string())));
        }
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        if error.keeps_connection() {
            match step {
                // The card may have opened a channel all the same, unless nothing was sent.
                Step::Open(_) | Step::Rules(_, RulesStep::Open) => {
                    reader.needs_reset |= error != WorkerError::Busy;
                }
                Step::Select(_, channel) | Step::SelectAs(_, channel, _) => {
                    self.close_first(key, channel);
                }
                // Nobody knows what is selected now, or for whom.
                Step::SelectNext(ticket, id) if error != WorkerError::Busy => {
                    self.forget_channel(ticket.port, id);
                }
                Step::SelectNextAs(ticket, id, _) | Step::SelectAgain(ticket, id) => {
                    self.forget_channel(ticket.port, id);
                }
                Step::PresentOrigin(channel, _, telling) => {
                    self.give_back(key, channel, &telling);
                }
                Step::Rules(_, step) => {
                    if let Some(channel) = step.channel() {
                        self.close_first(key, channel);
                    }
                }
                // It may be open still.
                Step::Close(channel) => {
                    reader.needs_reset = true;
                    reader.channels.remove(&channel);
                }
                Step::ResetBasic | Step::SelectDefault => {
                    reader.needs_reset = true;
                    reader.basic_is_dirty = true;
                    reader.channels.remove(&ChannelNumber::BASIC);
                }
                _ => {}
            }
        } else {
            reader.needs_reset |= reader.connected
                && !matches!(error, WorkerError::CardReset | WorkerError::CardRemoved);
            self.connection_lost(key, io_error(&error.to_string()));
        }
    }

    pub(super) fn reader_was_reset(&mut self, key: ReaderKey, ticket: Ticket) {
        self.connection_lost(key, closed("channel"));
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.connected = true;
            reader.needs_reset = false;
            reader.basic_is_dirty = false;
            reader.unlocked_by = None;
        }
        self.reply(ticket, Ok(ReplyBody::Done));
    }

    pub(super) fn session_opened(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        reset: bool,
        connected: &Connected,
        now: Instant,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        if connected.fresh && reader.connected {
            self.connection_lost(key, io_error(&WorkerError::CardReset.to_string()));
        }
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let historical_bytes = Atr::parse(&connected.atr)
            .ok()
            .map(|atr| atr.historical_bytes().to_vec());
        reader.connected = true;
        reader.needs_reset &= !reset;
        if reset {
            reader.basic_is_dirty = false;
            reader.unlocked_by = None;
            if let Some(channel) = reader.keys.forget() {
                reader.channels.remove(&channel);
            }
        }
        // The port may have gone while the worker connected, the grant with it, or the time.
        let Some(port) = self
            .ports
            .get_mut(&ticket.port)
            .filter(|port| port.in_flight.contains_key(&ticket.request))
        else {
            return;
        };
        if !may_see(&self.grants, port, reader) {
            return self.refuse(ticket, ErrorKind::Security, WITHDRAWN);
        }
        if port.sessions.len() >= MAX_SESSIONS {
            let message = "this page has too many sessions open";
            return self.refuse(ticket, ErrorKind::Io, message);
        }
        let id = SessionId(port.next_session);
        port.next_session += 1;
        port.sessions.insert(id, key);
        reader.sessions += 1;
        let info = SessionInfo {
            id,
            historical_bytes,
        };
        self.reply(ticket, Ok(ReplyBody::Session(info)));
        self.note_use(ticket.port, key, None, "session opened", now);
    }

    /// Reads the answer to MANAGE CHANNEL open and notes the channel. `None` if it makes no sense: then the page has been
    /// told.
    pub(super) fn opened_channel(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        response: &ResponseApdu,
    ) -> Option<Opened> {
        let reader = self.readers.get_mut(&key)?;
        let message = match channel::parse_opened(response) {
            // Cards without logical channels have all kinds of reasons, many of them as long as nothing is selected.
            Ok(Opened::NoChannel) | Err(ChannelError::Refused(_)) => {
                return Some(Opened::NoChannel);
            }
            Ok(Opened::Channel(channel)) if reader.channels.insert(channel) => {
                return Some(Opened::Channel(channel));
            }
            // It has lost track of what it serves to whom.
            Ok(Opened::Channel(_)) => "the card opened a channel that is open already".to_owned(),
            Err(error) => error.to_string(),
        };
        // It says that it has opened something.
        reader.needs_reset = true;
        self.refuse(ticket, ErrorKind::Io, message);
        None
    }

    /// Refuses a channel on which SELECT has found nothing.
    fn not_selected(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        selected: Result<Selected, ChannelError>,
    ) {
        let error = match selected {
            Ok(Selected::Application | Selected::NoApplication) => access::not_there(),
            Ok(Selected::NoChannel) => TokenError::new(ErrorKind::NoChannel, NO_CHANNEL),
            Err(error) => TokenError::new(ErrorKind::NoApplication, error.to_string()),
        };
        self.reply(opening.ticket, Err(error));
        self.close_first(key, channel);
    }

    pub(super) fn response(
        &mut self,
        key: ReaderKey,
        step: Step,
        deadline: Instant,
        bytes: Vec<u8>,
        now: Instant,
    ) {
        if let Step::Transmit(ticket, reference) = step
            && (2..=MAX_RESPONSE).contains(&bytes.len())
        {
            if let (Some(reference), Some(status)) = (reference, bytes.last_chunk::<2>()) {
                let status = StatusWord(u16::from_be_bytes(*status));
                self.attempted(key, ticket, reference, status);
            }
            return self.reply(ticket, Ok(ReplyBody::Response(bytes)));
        }
        let Ok(response) = ResponseApdu::parse(&bytes) else {
            return self.step_failed(key, step, WorkerError::Communication);
        };
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        match step {
            Step::CountTries(ticket, reference, command) => {
                let status = response.status;
                self.tries_counted(key, ticket, reference, command, deadline, status, now);
            }
            Step::Rules(opening, step) => self.rules_response(key, opening, step, &response, now),
            Step::Open(opening) => match self.opened_channel(key, opening.ticket, &response) {
                Some(Opened::Channel(channel)) => self.select(key, opening, channel, now),
                Some(Opened::NoChannel) => {
                    self.refuse(opening.ticket, ErrorKind::NoChannel, NO_CHANNEL);
                }
                None => {}
            },
            Step::Select(opening, channel) => match channel::parse_selected(&response) {
                Ok(Selected::Application)
                    if opening.response == SelectResponse::Fci || opening.asked == Asked::CanBe =>
                {
                    let found = Found::new(&response);
                    self.channel_opened(key, opening, channel, Some((&response, found)), now);
                }
                Ok(Selected::Application) => {
                    self.select_as(key, opening, channel, Found::new(&response), now);
                }
                // A card that knows no P2 of 00 may know the page's.
                Err(_) if opening.response != SelectResponse::Fci => {
                    self.select_as(key, opening, channel, Found::default(), now);
                }
                selected => self.not_selected(key, opening, channel, selected),
            },
            Step::SelectAs(opening, channel, found) => match channel::parse_selected(&response) {
                Ok(Selected::Application) => match found.again(&response) {
                    Some(found) => {
                        self.channel_opened(key, opening, channel, Some((&response, found)), now);
                    }
                    None => {
                        let message = "the card has selected another applet than before";
                        self.refuse(opening.ticket, ErrorKind::Io, message);
                        self.close_first(key, channel);
                    }
                },
                selected => self.not_selected(key, opening, channel, selected),
            },
            Step::SelectNext(ticket, channel) => match channel::parse_selected(&response) {
                Ok(Selected::Application) => {
                    let found = Found::new(&response);
                    self.next_found(key, ticket, channel, deadline, found, &response, now);
                }
                Ok(Selected::NoApplication) => {
                    self.next_not_found(key, ticket, channel, deadline, no_next(), now);
                }
                Ok(Selected::NoChannel) | Err(_) => {
                    self.next_not_found(key, ticket, channel, deadline, next_unsupported(), now);
                }
            },
            Step::SelectNextAs(ticket, channel, found) => {
                let selected = channel::parse_selected(&response);
                match found.again(&response) {
                    Some(found) if selected == Ok(Selected::Application) => {
                        self.next_selected(key, ticket, channel, deadline, found, &response, now);
                    }
                    _ => {
                        self.refuse_selected(ticket, channel);
                        let error = next_unsupported();
                        self.next_not_found(key, ticket, channel, deadline, error, now);
                    }
                }
            }
            Step::SelectAgain(ticket, channel) => {
                let selected = channel::parse_selected(&response);
                let is_selected = selected == Ok(Selected::Application);
                let found = is_selected.then(|| Found::new(&response));
                self.selected_again(key, ticket, channel, found, deadline, now);
            }
            Step::PresentOrigin(channel, found, telling) => {
                let status = response.status;
                self.origin_presented(key, channel, found, *telling, status, deadline, now);
            }
            // The card cannot be told any better.
            Step::Close(channel) if response.status.is_error() => {
                reader.needs_reset = true;
                reader.channels.remove(&channel);
            }
            Step::Close(channel) => {
                reader.channels.remove(&channel);
            }
            Step::ResetBasic if response.status.is_error() => {
                let command = channel::select(None, SelectResponse::Fci, ChannelNumber::BASIC);
                match command {
                    Ok(command) => self.run_closing(key, Step::SelectDefault, &command, now),
                    Err(_) => {
                        reader.channels.remove(&ChannelNumber::BASIC);
                    }
                }
            }
            Step::ResetBasic | Step::SelectDefault => {
                // What was selected there is selected still, with a PIN that was verified.
                reader.basic_is_dirty = response.status.is_error();
                reader.needs_reset |= response.status.is_error();
                reader.channels.remove(&ChannelNumber::BASIC);
            }
            Step::Connect { .. }
            | Step::Transmit(..)
            | Step::Reset(_)
            | Step::Disconnect
            | Step::Keys(_) => {
                self.step_failed(key, step, WorkerError::Communication);
            }
        }
    }
}
