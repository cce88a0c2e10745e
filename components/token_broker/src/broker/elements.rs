/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */
//! The readers, and who is told what about the elements in them.

use token_workers::key_protocol::KeyError;

use super::*;

/// Whether a document sees a reader. One that does not must not be able to tell that it is there.
pub(super) fn may_see(grants: &Grants, port: &Port, reader: &Reader) -> bool {
    may_use(port)
        && match grants.permission(&port.party, Feature::SecureElement) {
            PermissionState::Granted => true,
            PermissionState::Denied => false,
            PermissionState::Prompt => grants.of_reader(&port.party, &reader.name()).is_some(),
        }
}

/// Whether a document may see any reader, if it is plugged in.
pub(super) fn may_see_any(grants: &Grants, port: &Port) -> bool {
    may_use(port)
        && match grants.permission(&port.party, Feature::SecureElement) {
            PermissionState::Granted => true,
            PermissionState::Denied => false,
            PermissionState::Prompt => grants.has_reader(&port.party),
        }
}

fn may_use(port: &Port) -> bool {
    access::is_eligible(&port.identity) && port.identity.features.contains(Feature::SecureElement)
}

impl Broker {
    pub(super) fn add_reader(&mut self, reader: Reader) {
        let key = ReaderKey(self.next_reader);
        self.next_reader += 1;
        self.readers.insert(key, reader);
    }

    pub(super) fn get_readers(&mut self, ticket: Ticket, now: Instant) {
        let Some(port) = self.ports.get(&ticket.port) else {
            return;
        };
        if !may_see_any(&self.grants, port) {
            self.answer_or_ask(ticket, now);
        } else if self.config.pcsc && !self.readers_are_known {
            self.waiting_for_readers
                .push((ticket, now + MONITOR_TIMEOUT));
            self.want_monitor(now);
        } else {
            self.answer_or_ask(ticket, now);
        }
    }

    /// Answers with the readers that the origin may see. If there are none now, the user may be asked for one.
    pub(super) fn answer_or_ask(&mut self, ticket: Ticket, now: Instant) {
        let Some(port) = self.ports.get(&ticket.port) else {
            return;
        };
        let sees_one = self
            .readers
            .values()
            .any(|reader| may_see(&self.grants, port, reader));
        let can_ask = access::is_eligible(&port.identity)
            && self.grants.permission(&port.party, Feature::SecureElement)
                == PermissionState::Prompt;
        if can_ask && !sees_one {
            self.ask_for_reader(ticket, now);
        } else {
            self.answer_readers(ticket);
        }
    }

    pub(super) fn answer_waiting(&mut self, waiting: VecDeque<Ticket>) {
        for ticket in waiting {
            self.answer_readers(ticket);
        }
    }

    pub(super) fn answer_readers(&mut self, ticket: Ticket) {
        let Some(port) = self.ports.get_mut(&ticket.port) else {
            return;
        };
        port.watches_elements = true;
        let mut infos = Vec::new();
        for (key, reader) in &self.readers {
            if may_see(&self.grants, port, reader) {
                port.elements.insert(*key, reader.present);
                infos.push(reader.info(port.reader_id(*key)));
            }
        }
        self.reply(ticket, Ok(ReplyBody::Readers(infos)));
    }

    /// Tells a document about the elements that are there, and from now on about those that come and go.
    pub(super) fn watch_elements(&mut self, ticket: Ticket, now: Instant) {
        if let Some(port) = self.ports.get_mut(&ticket.port) {
            port.watches_elements = true;
            port.elements.clear();
        }
        self.tell_elements();
        self.want_monitor(now);
        self.reply(ticket, Ok(ReplyBody::Done));
    }

    /// Tells each document that watches what has become of elements since it was last told.
    pub(super) fn tell_elements(&mut self) {
        for (id, port) in &mut self.ports {
            if !port.watches_elements {
                continue;
            }
            for (key, reader) in &self.readers {
                if !may_see(&self.grants, port, reader) {
                    continue;
                }
                let told = port.elements.insert(*key, reader.present);
                if told.unwrap_or(false) != reader.present {
                    let info = reader.info(port.reader_id(*key));
                    self.outputs
                        .push(Output::ToPort(*id, PortMessage::Element(info)));
                }
            }
        }
    }

    /// Notes whether a card is in a reader. Without one, there is nothing left of what was open.
    pub(super) fn set_present(&mut self, key: ReaderKey, present: bool, now: Instant) {
        let Some(reader) = self.readers.get_mut(&key) else {
            return;
        };
        if reader.present == present {
            return;
        }
        reader.present = present;
        if !present {
            reader.tries.clear();
            reader.basic_is_dirty = false;
            reader.unlocked_by = None;
            reader.keys = CardKeys::default();
            self.connection_lost(key, io_error(&WorkerError::CardRemoved.to_string()));
            self.fail_card_jobs(key, now);
        }
        self.card_changed();
        // Who may no longer see the reader still learns that the card has gone.
        self.tell_elements();
        if !present {
            self.grants.card_gone(key);
            self.withdraw(now);
        }
        if !present {
            self.advance(key, now);
        }
    }

    pub(super) fn reader_key(&self, port: PortId, reader: ReaderId) -> Option<ReaderKey> {
        let readers = &self.ports.get(&port)?.readers;
        readers.get(usize::try_from(reader.0).ok()?).copied()
    }

    /// Whether somebody waits to learn about PC/SC's readers.
    pub(super) fn monitor_is_wanted(&self) -> bool {
        self.config.pcsc
            && (!self.waiting_for_readers.is_empty()
                || self.cards_want_readers()
                || self.overview_until.is_some()
                || self.prompts.values().any(Prompt::needs_readers)
                || self
                    .ports
                    .values()
                    .any(|port| port.watches_elements && may_see_any(&self.grants, port)))
    }

    pub(super) fn want_monitor(&mut self, now: Instant) {
        if !self.monitor_is_wanted() {
            return;
        }
        if let Wanted::Start(worker) = self.monitor.want(now, &mut self.next_worker) {
            self.workers.insert(worker, Role::Monitor);
            self.outputs
                .push(Output::StartWorker(worker, WorkerKind::PcscMonitor));
        }
    }

    /// Takes in what the monitor sees.
    pub(super) fn readers_changed(&mut self, mut list: Vec<ReaderStatus>, now: Instant) {
        list.truncate(MAX_READERS);
        let gone: Vec<ReaderKey> = self
            .readers
            .iter()
            .filter(|(_, reader)| {
                reader
                    .pcsc_name()
                    .is_some_and(|name| list.iter().all(|status| status.name != name))
            })
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.remove_reader(key, now);
        }
        for status in list {
            let found = self
                .readers
                .iter_mut()
                .find(|(_, reader)| reader.pcsc_name() == Some(&status.name));
            match found {
                Some((key, reader)) => {
                    let key = *key;
                    let events = std::mem::replace(&mut reader.card_events, status.card_events);
                    // Another card may be in its place already.
                    if events != status.card_events {
                        self.set_present(key, false, now);
                    }
                    self.set_present(key, status.present, now);
                }
                None => {
                    let reader = Reader::pcsc(status, &self.config.uicc_readers);
                    self.add_reader(reader);
                    self.card_changed();
                }
            }
        }
        self.readers_are_known = true;
        self.list_waiting_cards(true, now);
        self.tell_elements();
        for (ticket, _) in std::mem::take(&mut self.waiting_for_readers) {
            self.answer_or_ask(ticket, now);
        }
        self.show_what_waits_for_readers(now);
    }

    pub(super) fn remove_reader(&mut self, key: ReaderKey, now: Instant) {
        self.set_present(key, false, now);
        self.connection_lost(key, io_error(READER_GONE));
        self.grants.card_gone(key);
        let Some(reader) = self.readers.remove(&key) else {
            return;
        };
        if let Some(worker) = reader.slot.worker() {
            self.workers.remove(&worker);
            self.unasked.remove(&worker);
            self.outputs.push(Output::KillWorker(worker));
        }
        for port in self.ports.values_mut() {
            port.elements.remove(&key);
        }
        match reader.running.map(|running| running.step) {
            Some(Step::Keys(step)) => {
                self.card_job_ended(key, step.job, Err(KeyError::Failed), now);
            }
            Some(step) => {
                if let Some(ticket) = step.ticket() {
                    self.reply(ticket, Err(io_error(READER_GONE)));
                }
            }
            None => {}
        }
        for job in reader.queue.into_jobs() {
            match job {
                Job::Asked { ticket, .. } => self.reply(ticket, Err(io_error(READER_GONE))),
                Job::Barrier(group) => self.pass_barrier(group),
                Job::CloseChannel(_) => {}
                Job::Keys(job) => self.card_job_ended(key, job, Err(KeyError::Failed), now),
            }
        }
    }
}
