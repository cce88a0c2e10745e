/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */
//! The queue of a reader: one job after the other.

use super::*;
use crate::reader::{Asked, Found, Knowledge, Telling};

/// Why a request fails.
const BASIC_IN_USE: &str = "the basic channel is in use";
/// Why a request fails.
const BASIC_IS_DIRTY: &str = "the card does not select its default applet again";

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
                Some(Job::Keys(job)) if job.deadline <= now => self.expire_card_jobs(key, now),
                Some(Job::Keys(_)) if ready => {
                    if let Some(Job::Keys(job)) = reader.queue.pop_front() {
                        self.start_card_job(key, job, now);
                    }
                }
                Some(Job::Asked { .. } | Job::CloseChannel(_) | Job::Keys(_)) => {
                    let kind = reader.slot.kind().clone();
                    if let Wanted::Start(worker) = reader.slot.want(now, &mut self.next_worker) {
                        self.workers.insert(worker, Role::Reader(key));
                        self.outputs.push(Output::StartWorker(worker, kind));
                    }
                    return;
                }
                None => {
                    if reader.sessions == 0 && !reader.keys.is_open() && ready {
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
        for ticket in reader.take_asked(|_, deadline, _| deadline <= now) {
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
                let sessions = reader.sessions;
                let needs_reset = reader.needs_reset;
                let unlocked = self
                    .readers
                    .get(&key)
                    .is_some_and(|reader| self.is_unlocked_by_another(reader, ticket.port));
                let reset = (needs_reset || unlocked) && sessions == 0;
                let body = protocol::RequestBody::Connect { reset };
                self.run(key, Step::Connect { ticket, reset }, body, deadline);
            }
            Task::Transmit {
                channel,
                header,
                command,
            } => {
                self.start_transmit(key, ticket, channel, header, command, deadline, now);
            }
            // It would change what commands that wait for the channel's closing are sent to.
            Task::SelectNext { channel, .. } if !port.channels.contains_key(&channel) => {
                self.reply(ticket, Err(closed("channel")));
            }
            Task::SelectNext { channel, command } => {
                let body = transmit(command, true, deadline, now);
                self.run(key, Step::SelectNext(ticket, channel), body, deadline);
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
            // No page finds a PIN verified.
            Task::OpenChannel { .. } if reader.keys.is_open() => {
                reader.queue.push_front(Job::Asked {
                    ticket,
                    deadline,
                    task,
                });
                self.log_out_of_card(key, now);
            }
            Task::OpenChannel { .. } if port.channels.len() >= MAX_CHANNELS => {
                let message = "this page has too many channels open";
                self.refuse(ticket, ErrorKind::NoChannel, message);
            }
            Task::OpenChannel {
                session,
                channel_type,
                applet,
                response,
                asked,
            } => {
                let opening = Opening {
                    ticket,
                    session,
                    channel_type,
                    applet,
                    response,
                    asked,
                    deadline,
                };
                // What is asked for in vain needs no rules.
                if channel_type == ChannelType::Basic
                    && reader.channels.contains(&ChannelNumber::BASIC)
                {
                    self.refuse(ticket, ErrorKind::NoChannel, BASIC_IN_USE);
                } else {
                    self.open_with_rules(key, opening, now);
                }
            }
        }
    }

    /// Opens a channel, with the element's rules at hand.
    pub(super) fn open_checked(&mut self, key: ReaderKey, mut opening: Opening, now: Instant) {
        let (Some(reader), Some(port)) =
            (self.readers.get(&key), self.ports.get(&opening.ticket.port))
        else {
            return;
        };
        // The page has been answered already.
        if !port.in_flight.contains_key(&opening.ticket.request) {
            return;
        }
        let policy = self.policy(port, reader);
        let asked_for = opening.applet;
        let requested = asked_for.requested();
        let allowed = policy.before_select(requested, &port.app);
        // What is another origin's and what is not there take the card the same time.
        let is_hidden = matches!(&allowed, Err(error) if error.kind == ErrorKind::NoApplication);
        let checked = if is_hidden { Ok(()) } else { allowed }
            .and_then(|()| self.check_unlocked(reader, opening.ticket.port))
            .and_then(|()| match (opening.channel_type, opening.applet) {
                // As the Web API recommends (section 11.2): what is selected by default in a UICC is its operator's.
                (ChannelType::Supplementary, Applet::Implicit)
                    if reader.kind_of_element() == ElementType::Uicc =>
                {
                    Err(access::refused())
                }
                _ => Ok(()),
            });
        let must_ask = policy.asks_before_select(requested, &port.app);
        let what = policy.refusal();
        match checked {
            Err(error) => {
                let applet = requested.map(<[u8]>::to_vec);
                self.note_use(opening.ticket.port, key, applet, what, now);
                return self.reply(opening.ticket, Err(error));
            }
            Ok(()) if must_ask && opening.asked == Asked::No => {
                return self.ask_for_activation(key, opening, now);
            }
            Ok(()) if is_hidden => {
                let applet = requested.map(<[u8]>::to_vec);
                self.note_use(opening.ticket.port, key, applet, what, now);
                opening.applet = Applet::Named(access::NOBODY);
            }
            Ok(()) => {}
        }
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        match opening.channel_type {
            // What is selected there may have been for somebody else.
            ChannelType::Basic
                if reader.basic_is_dirty && matches!(opening.applet, Applet::Implicit) =>
            {
                self.refuse(opening.ticket, ErrorKind::NoChannel, BASIC_IS_DIRTY);
            }
            ChannelType::Basic => {
                if reader.channels.insert(ChannelNumber::BASIC) {
                    self.select(key, opening, ChannelNumber::BASIC, now);
                } else {
                    self.refuse(opening.ticket, ErrorKind::NoChannel, BASIC_IN_USE);
                }
            }
            ChannelType::Supplementary => {
                let body = transmit(
                    channel::open_command().encode(),
                    false,
                    opening.deadline,
                    now,
                );
                self.run(key, Step::Open(opening), body, opening.deadline);
            }
        }
    }

    /// Goes on with a channel that the card has opened.
    pub(super) fn select(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        now: Instant,
    ) {
        // With P2 of 00, for the applet's name and for what it announces.
        let command = match &opening.applet {
            Applet::Implicit => return self.channel_opened(key, opening, channel, None, now),
            Applet::IssuerSecurityDomain => channel::select(None, SelectResponse::Fci, channel),
            Applet::Named(aid) => channel::select(Some(aid), SelectResponse::Fci, channel),
        };
        match command {
            Ok(command) => {
                let body = transmit(command.encode(), true, opening.deadline, now);
                self.run(key, Step::Select(opening, channel), body, opening.deadline);
            }
            Err(error) => {
                self.reply(opening.ticket, Err(invalid_value(&error)));
                self.close_first(key, channel);
            }
        }
    }

    /// Selects an applet once more, with the P2 that the page wants.
    pub(super) fn select_as(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        channel: ChannelNumber,
        found: Found,
        now: Instant,
    ) {
        let aid = match &opening.applet {
            Applet::Named(aid) => Some(aid),
            Applet::Implicit | Applet::IssuerSecurityDomain => None,
        };
        match channel::select(aid, opening.response, channel) {
            Ok(command) => {
                let body = transmit(command.encode(), true, opening.deadline, now);
                let step = Step::SelectAs(opening, channel, found);
                self.run(key, step, body, opening.deadline);
            }
            Err(error) => {
                self.reply(opening.ticket, Err(invalid_value(&error)));
                self.close_first(key, channel);
            }
        }
    }

    /// Gives a page the channel that it asked for, if the rules let it have what is selected there.
    pub(super) fn channel_opened(
        &mut self,
        key: ReaderKey,
        opening: Opening,
        number: ChannelNumber,
        selected: Option<(&ResponseApdu, Found)>,
        now: Instant,
    ) {
        let Opening {
            ticket,
            session,
            applet,
            response,
            asked,
            deadline,
            ..
        } = opening;
        let mut can_ask = false;
        let mut what = "";
        let found = selected.map(|(_, found)| found).unwrap_or_default();
        let df_name = found.df_name;
        // The port or the session may have been closed meanwhile, or the page told that it took too long.
        let access = match (self.readers.get(&key), self.ports.get(&ticket.port)) {
            (Some(reader), Some(port))
                if port.sessions.get(&session) == Some(&key)
                    && port.in_flight.contains_key(&ticket.request) =>
            {
                let policy = self.policy(port, reader);
                what = policy.refusal();
                can_ask = asked != Asked::HasBeen
                    && policy.can_ask_about(applet.requested(), df_name.as_ref(), &port.app);
                policy.after_select(applet.requested(), df_name.as_ref(), &port.app)
            }
            _ => Err(closed("session")),
        };
        // The channel is not kept while the user thinks about it.
        if asked == Asked::CanBe || (access.is_err() && can_ask) {
            self.close_first(key, number);
            return match access {
                Ok(_) => self.open_again(key, opening, Asked::HasBeen, now),
                Err(_) if can_ask => self.ask_for_applet(key, opening, df_name, now),
                Err(error) => {
                    let applet = df_name.map(|name| name.as_bytes().to_vec());
                    self.note_use(ticket.port, key, applet, what, now);
                    self.reply(ticket, Err(error));
                }
            };
        }
        let (access, port) = match (access, self.ports.get_mut(&ticket.port)) {
            (Ok(_), Some(_)) if found.origin == Knowledge::Wanted => {
                if let Some((selected, _)) = selected {
                    let telling = Telling::Opened(opening, selected.clone());
                    self.present_origin(key, number, found, telling, deadline, now);
                }
                return;
            }
            (Ok(access), Some(port)) => (access, port),
            (Ok(_), None) => return self.close_first(key, number),
            (Err(error), _) => {
                let applet = df_name.map(|name| name.as_bytes().to_vec());
                self.note_use(ticket.port, key, applet, what, now);
                self.reply(ticket, Err(error));
                return self.close_first(key, number);
            }
        };
        let id = ChannelId(port.next_channel);
        port.next_channel += 1;
        port.channels.insert(
            id,
            OpenChannel {
                reader: key,
                session,
                number,
                applet,
                partial: partial_aid(applet, df_name).map(|aid| (aid, response)),
                df_name,
                knows_origin: found.origin == Knowledge::Told,
                access,
            },
        );
        let info = ChannelInfo {
            id,
            open_response: selected.map(|(selected, _)| selected.encode()),
        };
        self.reply(ticket, Ok(ReplyBody::Channel(info)));
        let applet = df_name.as_ref().map(Aid::as_bytes).or(applet.requested());
        let applet = applet.map(<[u8]>::to_vec);
        self.note_use(ticket.port, key, applet, "channel opened", now);
    }

    /// Whose rules decide about what a document asks of a reader's element.
    pub(super) fn policy<'a>(&'a self, port: &Port, reader: &'a Reader) -> ElementPolicy<'a> {
        let Some(access) = &self.config.access else {
            return ElementPolicy::NotEnforced;
        };
        match &reader.rules {
            ElementRules::Card { rules, .. } => ElementPolicy::Card(rules),
            ElementRules::None => {
                let element_type = reader.kind_of_element();
                let when_no_rules = access
                    .when_no_rules
                    .unwrap_or_else(|| WhenNoRules::usual(element_type));
                match self.device_rules.get(&element_type) {
                    Some(rules) => ElementPolicy::Device {
                        rules,
                        consent: match when_no_rules {
                            WhenNoRules::Ask => self.consent(port),
                            WhenNoRules::Deny => Consent::Impossible,
                        },
                    },
                    None => ElementPolicy::Closed,
                }
            }
            ElementRules::Unknown | ElementRules::Closed => ElementPolicy::Closed,
        }
    }

    /// What the user has to say about applications that a document's origin may use.
    fn consent(&self, port: &Port) -> Consent {
        if !access::is_eligible(&port.identity) {
            return Consent::Impossible;
        }
        match self.grants.permission(&port.party, Feature::SecureElement) {
            PermissionState::Granted => Consent::Given,
            PermissionState::Denied => Consent::Impossible,
            PermissionState::Prompt => Consent::Asked(self.grants.applets(&port.party)),
        }
    }

    /// Lets a channel be closed before anything else happens.
    pub(super) fn close_first(&mut self, key: ReaderKey, number: ChannelNumber) {
        if let Some(reader) = self.readers.get_mut(&key) {
            reader.queue.push_front(Job::CloseChannel(number));
        }
    }

    pub(super) fn start_closing(&mut self, key: ReaderKey, number: ChannelNumber, now: Instant) {
        for port in self.ports.values_mut() {
            port.closing
                .retain(|_, channel| (channel.reader, channel.number) != (key, number));
        }
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
