/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */
//! The queue of a reader: one job after the other.

use super::*;

impl Broker {
    /// Does as much of a reader's queue as is possible now.
    pub(super) fn advance(&mut self, key: ReaderKey, now: Instant) {
        loop {
            let Some(reader) = self.readers.get_mut(&key) else {
                return;
            };
            if reader.running.is_some() {
                return;
            }
            let ready = reader.slot.is_ready();
            match reader.queue.front() {
                Some(Job::Barrier(group)) => {
                    let group = *group;
                    reader.queue.pop_front();
                    self.pass_barrier(group);
                }
                // Without a connection nothing is open.
                Some(Job::CloseChannel(_)) if !reader.connected => {
                    reader.queue.pop_front();
                }
                Some(Job::CloseChannel(number)) if ready => {
                    let number = *number;
                    reader.queue.pop_front();
                    self.start_closing(key, number, now);
                }
                Some(Job::Asked { deadline, .. }) if *deadline <= now => {
                    self.expire_jobs(key, now);
                }
                Some(Job::Asked { .. }) if ready => {
                    if let Some(Job::Asked {
                        ticket,
                        deadline,
                        task,
                    }) = reader.queue.pop_front()
                    {
                        self.start_task(key, ticket, deadline, task, now);
                    }
                }
                Some(Job::Asked { .. } | Job::CloseChannel(_)) => {
                    let kind = reader.slot.kind().clone();
                    if let Wanted::Start(worker) = reader.slot.want(now, &mut self.next_worker) {
                        self.workers.insert(worker, Role::Reader(key));
                        self.outputs.push(Output::StartWorker(worker, kind));
                    }
                    return;
                }
                None => {
                    if reader.sessions == 0 && ready {
                        if reader.connected {
                            let body = protocol::RequestBody::Disconnect;
                            self.run(key, Step::Disconnect, body, now + CLOSE_TIMEOUT);
                        } else if reader.pcsc_name().is_some() && reader.idle_since.is_none() {
                            reader.idle_since = Some(now);
                        }
                    }
                    return;
                }
            }
        }
    }

    /// Answers what has waited for too long.
    pub(super) fn expire_jobs(&mut self, key: ReaderKey, now: Instant) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let mut expired = Vec::new();
        reader.queue.retain(|job| match job {
            Job::Asked {
                ticket, deadline, ..
            } if *deadline <= now => {
                expired.push(*ticket);
                false
            }
            _ => true,
        });
        for ticket in expired {
            let message = "the time was over before the card was free";
            self.refuse(ticket, ErrorKind::Io, message);
        }
    }

    /// Answers whoever waits for what a worker has not done in time.
    pub(super) fn give_up_running(&mut self, key: ReaderKey, now: Instant) {
        let reader = self.readers.get_mut(&key);
        let Some(running) = reader.and_then(|reader| reader.running.as_mut()) else {
            return;
        };
        if running.deadline <= now && !running.is_given_up {
            running.is_given_up = true;
            if let Some(ticket) = running.step.ticket() {
                self.refuse(ticket, ErrorKind::Io, "the card took too long");
            }
        }
    }

    pub(super) fn start_task(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        deadline: Instant,
        task: Task,
        now: Instant,
    ) {
        let (Some(reader), Some(port)) = (self.readers.get_mut(&key), self.ports.get(&ticket.port))
        else {
            return;
        };
        match task {
            Task::OpenSession => {
                let reset = reader.needs_reset && reader.sessions == 0;
                let body = protocol::RequestBody::Connect { reset };
                self.run(key, Step::Connect { ticket, reset }, body, deadline);
            }
            Task::Transmit { command } => {
                let body = transmit(command, false, deadline, now);
                self.run(key, Step::Transmit(ticket), body, deadline);
            }
            Task::SelectNext { command } => {
                let body = transmit(command, true, deadline, now);
                self.run(key, Step::SelectNext(ticket), body, deadline);
            }
            // Another origin may have got a session meanwhile.
            Task::Reset => match self.check_reset(ticket.port, key) {
                Ok(()) => {
                    let body = protocol::RequestBody::Reset;
                    self.run(key, Step::Reset(ticket), body, deadline);
                }
                Err(error) => self.reply(ticket, Err(error)),
            },
            Task::OpenChannel { session, .. } if !port.sessions.contains_key(&session) => {
                self.reply(ticket, Err(closed("session")));
            }
            Task::OpenChannel { .. } if port.channels.len() >= MAX_CHANNELS => {
                let message = "this page has too many channels open";
                self.refuse(ticket, ErrorKind::NoChannel, message);
            }
            Task::OpenChannel {
                session,
                channel_type: ChannelType::Basic,
                applet,
                response,
            } => {
                let channel = ChannelNumber::BASIC;
                if reader.channels.insert(channel) {
                    self.select(
                        key, ticket, session, channel, applet, response, deadline, now,
                    );
                } else {
                    let message = "the basic channel is in use";
                    self.refuse(ticket, ErrorKind::NoChannel, message);
                }
            }
            Task::OpenChannel {
                session,
                channel_type: ChannelType::Supplementary,
                applet,
                response,
            } => {
                let step = Step::Open {
                    ticket,
                    session,
                    applet,
                    response,
                };
                let body = transmit(channel::open_command().encode(), false, deadline, now);
                self.run(key, step, body, deadline);
            }
        }
    }

    /// Goes on with a channel that the card has opened.
    #[expect(clippy::too_many_arguments, reason = "what a channel is made of")]
    pub(super) fn select(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        session: SessionId,
        channel: ChannelNumber,
        applet: Applet,
        response: SelectResponse,
        deadline: Instant,
        now: Instant,
    ) {
        let command = match &applet {
            Applet::Implicit => {
                return self.channel_opened(key, ticket, session, channel, None, None);
            }
            Applet::IssuerSecurityDomain => channel::select(None, response, channel),
            Applet::Named(aid) => channel::select(Some(aid), response, channel),
        };
        match command {
            Ok(command) => {
                let step = Step::Select {
                    ticket,
                    session,
                    channel,
                    applet,
                    response,
                };
                let body = transmit(command.encode(), true, deadline, now);
                self.run(key, step, body, deadline);
            }
            Err(error) => {
                self.reply(ticket, Err(invalid_value(&error)));
                self.close_first(key, channel);
            }
        }
    }

    pub(super) fn channel_opened(
        &mut self,
        key: ReaderKey,
        ticket: Ticket,
        session: SessionId,
        number: ChannelNumber,
        partial: Option<(Aid, SelectResponse)>,
        open_response: Option<Vec<u8>>,
    ) {
        // The port or the session may have been closed meanwhile, or the page told that it took too long.
        let port = self.ports.get_mut(&ticket.port).filter(|port| {
            port.sessions.get(&session) == Some(&key)
                && port.in_flight.contains_key(&ticket.request)
        });
        let Some(port) = port else {
            self.reply(ticket, Err(closed("session")));
            return self.close_first(key, number);
        };
        let id = ChannelId(port.next_channel);
        port.next_channel += 1;
        port.channels.insert(
            id,
            OpenChannel {
                reader: key,
                session,
                number,
                partial,
            },
        );
        let info = ChannelInfo { id, open_response };
        self.reply(ticket, Ok(ReplyBody::Channel(info)));
    }

    /// Lets a channel be closed before anything else happens.
    pub(super) fn close_first(&mut self, key: ReaderKey, number: ChannelNumber) {
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.queue.push_front(Job::CloseChannel(number));
        }
    }

    pub(super) fn start_closing(&mut self, key: ReaderKey, number: ChannelNumber, now: Instant) {
        let (step, command) = if number.is_basic() {
            (Step::ResetBasic, channel::reset_command())
        } else {
            (Step::Close(number), channel::close_command(number))
        };
        self.run_closing(key, step, &command, now);
    }

    pub(super) fn run_closing(
        &mut self,
        key: ReaderKey,
        step: Step,
        command: &CommandApdu,
        now: Instant,
    ) {
        let deadline = now + CLOSE_TIMEOUT;
        self.run(
            key,
            step,
            transmit(command.encode(), false, deadline, now),
            deadline,
        );
    }

    /// Gives the reader's worker a request.
    pub(super) fn run(
        &mut self,
        key: ReaderKey,
        step: Step,
        body: protocol::RequestBody,
        deadline: Instant,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        let Some(worker) = reader.slot.worker() else {
            return;
        };
        let id = self.next_worker_request;
        self.next_worker_request += 1;
        reader.idle_since = None;
        reader.running = Some(Running {
            id,
            deadline,
            is_given_up: false,
            is_stale: false,
            step,
        });
        self.outputs
            .push(Output::ToWorker(worker, WorkerRequest { id, body }));
    }
}
