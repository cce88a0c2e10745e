/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Asking the user: which reader an origin may see, and which application it may use on a card without access rules.
//!
//! Whether the user has just done something in the document's tab, only the main process knows. It is asked first, so that
//! a document that nobody touches learns nothing, not even from what the broker does meanwhile.

use token_traits::prompt::{PromptAnswer, PromptId, PromptReader, PromptRequest, Question};

use super::*;
use crate::access::grants::{Grant, Lasts, Party, Subject};
use crate::reader::Asked;

/// How long a prompt may be left unanswered. Then it counts as refused.
const PROMPT_LIMIT: Duration = Duration::from_secs(5 * 60);
/// How long the main process may take to say whether the user has just done something.
const ACTIVATION_LIMIT: Duration = Duration::from_secs(5);

/// About how many calls of the documents of one event loop the main process is asked at the same time.
const MAX_QUESTIONS: usize = 16;

const NO_ACTIVATION: &str = "this site has not been allowed to use that applet, and the user can be asked only just after \
                             they have done something in the page: open the channel when they click";

/// Something that the user is asked, or is about to be.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Who has caused it, and in which event loop that is.
    port: PortId,
    event_loop: u64,
    party: Party,
    webview: u64,
    /// When it ends by itself.
    pub(super) deadline: Instant,
    stage: Stage,
    wanted: Wanted,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// The main process is asked whether the user has just done something.
    Activation,
    /// The list of PC/SC's readers is awaited.
    Listing,
    /// The main process has it.
    Shown,
}

#[derive(Debug)]
enum Wanted {
    /// One of these readers, as they were shown, for these calls of `getReaders()`.
    Reader {
        waiting: VecDeque<Ticket>,
        offered: Vec<(ReaderKey, PromptReader)>,
    },
    /// The application that the card has selected, for this channel. `None` if the card does not name it.
    Applet {
        reader: ReaderKey,
        opening: Opening,
        name: Option<Aid>,
    },
}

impl Prompt {
    /// Whether a monitor is needed for it.
    pub(super) fn needs_readers(&self) -> bool {
        matches!(self.wanted, Wanted::Reader { .. }) && self.stage != Stage::Activation
    }
}

impl Broker {
    fn add_prompt(&mut self, port_id: PortId, stage: Stage, wanted: Wanted, until: Instant) {
        let Some(port) = self.ports.get(&port_id) else {
            return;
        };
        let id = PromptId(self.next_prompt);
        self.next_prompt += 1;
        let webview = port.identity.webview;
        let prompt = Prompt {
            port: port_id,
            event_loop: port.identity.event_loop,
            party: port.party.clone(),
            webview,
            deadline: until,
            stage,
            wanted,
        };
        self.prompts.insert(id, prompt);
        if stage == Stage::Activation {
            self.outputs.push(Output::CheckActivation(id, webview));
        }
    }

    /// Asks which reader a document's origin may see, and answers its `getReaders()` then.
    pub(super) fn ask_for_reader(&mut self, ticket: Ticket, now: Instant) {
        let Some(port) = self.ports.get(&ticket.port) else {
            return;
        };
        for prompt in self.prompts.values_mut() {
            if let Wanted::Reader { waiting, .. } = &mut prompt.wanted
                && prompt.party == port.party
                && prompt.webview == port.identity.webview
                && prompt.stage != Stage::Activation
            {
                return waiting.push_back(ticket);
            }
        }
        if self.has_too_many_questions(ticket.port) {
            // The answer to the last one of the document is the same, almost always.
            let mut questions = self.prompts.values_mut().rev();
            let last = questions.find_map(|prompt| match &mut prompt.wanted {
                Wanted::Reader { waiting, .. }
                    if prompt.stage == Stage::Activation && prompt.port == ticket.port =>
                {
                    Some(waiting)
                }
                _ => None,
            });
            return match last {
                Some(waiting) => waiting.push_back(ticket),
                None => self.answer_readers(ticket),
            };
        }
        let wanted = Wanted::Reader {
            waiting: [ticket].into(),
            offered: Vec::new(),
        };
        self.add_prompt(
            ticket.port,
            Stage::Activation,
            wanted,
            now + ACTIVATION_LIMIT,
        );
    }

    fn has_too_many_questions(&self, port: PortId) -> bool {
        let event_loop = self.ports.get(&port).map(|port| port.identity.event_loop);
        let is_question = |prompt: &&Prompt| {
            prompt.stage == Stage::Activation && Some(prompt.event_loop) == event_loop
        };
        self.prompts.values().filter(is_question).count() >= MAX_QUESTIONS
    }

    /// Asks, before SELECT, whether the user could be asked about what it finds.
    pub(super) fn ask_for_activation(&mut self, reader: ReaderKey, opening: Opening, now: Instant) {
        if self.has_too_many_questions(opening.ticket.port) {
            return self.refuse(opening.ticket, ErrorKind::Security, NO_ACTIVATION);
        }
        let wanted = Wanted::Applet {
            reader,
            opening,
            name: None,
        };
        let until = now + ACTIVATION_LIMIT;
        self.add_prompt(opening.ticket.port, Stage::Activation, wanted, until);
    }

    /// Asks, after SELECT, whether a document's origin may use what was found.
    pub(super) fn ask_for_applet(
        &mut self,
        reader: ReaderKey,
        opening: Opening,
        name: Option<Aid>,
        now: Instant,
    ) {
        let wanted = Wanted::Applet {
            reader,
            opening,
            name,
        };
        let id = PromptId(self.next_prompt);
        self.add_prompt(
            opening.ticket.port,
            Stage::Shown,
            wanted,
            now + PROMPT_LIMIT,
        );
        self.show_prompt(id, None);
    }

    /// The main process knows whether the user has just done something.
    pub(super) fn activation(&mut self, id: PromptId, is_active: bool, now: Instant) {
        let Some(prompt) = self
            .prompts
            .get_mut(&id)
            .filter(|prompt| prompt.stage == Stage::Activation)
        else {
            return;
        };
        if !is_active {
            return self.prompt_ended(id, PromptAnswer::NotAsked, now);
        }
        match &prompt.wanted {
            Wanted::Reader { .. } if self.config.pcsc && !self.readers_are_known => {
                prompt.stage = Stage::Listing;
                prompt.deadline = now + MONITOR_TIMEOUT;
                self.want_monitor(now);
            }
            Wanted::Reader { .. } => {
                prompt.stage = Stage::Shown;
                prompt.deadline = now + PROMPT_LIMIT;
                self.show_prompt(id, None);
            }
            Wanted::Applet {
                reader, opening, ..
            } => {
                let (reader, opening) = (*reader, *opening);
                self.prompts.remove(&id);
                self.open_again(reader, opening, Asked::CanBe, now);
            }
        }
    }

    /// The list of PC/SC's readers has come.
    pub(super) fn show_what_waits_for_readers(&mut self, now: Instant) {
        let mut ready = Vec::new();
        for (id, prompt) in &mut self.prompts {
            if prompt.stage == Stage::Listing {
                prompt.stage = Stage::Shown;
                prompt.deadline = now + PROMPT_LIMIT;
                ready.push(*id);
            }
        }
        for id in ready {
            self.show_prompt(id, None);
        }
    }

    /// Asks about other readers than before. The answer may be under way; it must not be taken for one about these.
    fn replace_prompt(&mut self, replaces: PromptId) {
        if let Some(prompt) = self.prompts.remove(&replaces) {
            let id = PromptId(self.next_prompt);
            self.next_prompt += 1;
            self.prompts.insert(id, prompt);
            self.show_prompt(id, Some(replaces));
        }
    }

    fn show_prompt(&mut self, id: PromptId, replaces: Option<PromptId>) {
        let readers = self.prompt_readers();
        let Some(prompt) = self.prompts.get_mut(&id) else {
            return;
        };
        let question = match &mut prompt.wanted {
            Wanted::Reader { offered, .. } => {
                *offered = readers;
                Question::ChooseReader {
                    readers: offered.iter().map(|(_, reader)| reader.clone()).collect(),
                }
            }
            Wanted::Applet { reader, name, .. } => Question::UseApplet {
                reader: self
                    .readers
                    .get(reader)
                    .map_or_else(String::new, |reader| reader.display_name.clone()),
                applet: name.map(|name| name.as_bytes().to_vec()),
            },
        };
        self.outputs.push(Output::Prompt(PromptRequest {
            id,
            replaces,
            webview: prompt.webview,
            origin: prompt.party.origin.clone(),
            top_level_origin: prompt.party.top_level_origin.clone(),
            question,
        }));
    }

    /// The readers, as the user sees them.
    pub(super) fn prompt_readers(&self) -> Vec<(ReaderKey, PromptReader)> {
        let reader = |reader: &Reader| PromptReader {
            name: reader.display_name.clone(),
            element_type: reader.element_type,
            present: reader.present,
        };
        self.readers
            .iter()
            .map(|(key, of)| (*key, reader(of)))
            .collect()
    }

    /// The user has answered.
    pub(super) fn prompt_answered(&mut self, id: PromptId, answer: PromptAnswer, now: Instant) {
        if self
            .prompts
            .get(&id)
            .is_some_and(|prompt| prompt.stage == Stage::Shown)
        {
            self.prompt_ended(id, answer, now);
        }
    }

    fn prompt_ended(&mut self, id: PromptId, answer: PromptAnswer, now: Instant) {
        let Some(Prompt {
            party,
            stage,
            wanted,
            ..
        }) = self.prompts.remove(&id)
        else {
            return;
        };
        match wanted {
            Wanted::Reader { waiting, offered } => {
                let chosen = match answer {
                    PromptAnswer::Chosen { index, remember } => usize::try_from(index)
                        .ok()
                        .and_then(|index| offered.get(index))
                        .map(|(key, _)| (*key, remember)),
                    _ => None,
                };
                if let Some((key, remember)) = chosen
                    && let Some(reader) = self.readers.get(&key)
                {
                    let name = reader.display_name.clone();
                    let subject = Subject::Reader(reader.name());
                    if self.grant(&party, subject, key, remember, now) {
                        self.note(
                            &party.origin,
                            &name,
                            None,
                            "reader allowed by the user",
                            now,
                        );
                    }
                } else if answer == PromptAnswer::Refused {
                    self.note(&party.origin, "", None, "readers refused by the user", now);
                }
                self.answer_waiting(waiting);
                if chosen.is_some() {
                    // Other documents of the party see it too.
                    self.tell_elements();
                }
                self.want_monitor(now);
            }
            Wanted::Applet {
                reader,
                opening,
                name,
            } => {
                let known = self.readers.get(&reader);
                let reader_name =
                    known.map_or_else(String::new, |known| known.display_name.clone());
                let applet = name.or(match opening.applet {
                    Applet::Named(aid) => Some(aid),
                    Applet::Implicit | Applet::IssuerSecurityDomain => None,
                });
                let shown = name.as_ref().map(Aid::as_bytes);
                match (answer, applet) {
                    (PromptAnswer::Allowed { remember }, Some(applet))
                        if self.grant(&party, Subject::Applet(applet), reader, remember, now) =>
                    {
                        let what = "application allowed by the user";
                        self.note(&party.origin, &reader_name, shown, what, now);
                        self.open_again(reader, opening, Asked::HasBeen, now);
                    }
                    _ if stage == Stage::Activation => {
                        self.refuse(opening.ticket, ErrorKind::Security, NO_ACTIVATION);
                    }
                    // To the page it is as if it were not there.
                    (PromptAnswer::Refused, _) => {
                        let what = "application refused by the user";
                        self.note(&party.origin, &reader_name, shown, what, now);
                        self.reply(opening.ticket, Err(access::not_there()));
                    }
                    _ => self.reply(opening.ticket, Err(access::not_there())),
                }
            }
        }
    }

    /// Notes what the user has allowed, if there is room for it.
    fn grant(
        &mut self,
        party: &Party,
        subject: Subject,
        reader: ReaderKey,
        remember: bool,
        now: Instant,
    ) -> bool {
        let grant = Grant {
            party: party.clone(),
            subject,
            lasts: match remember {
                true => Lasts::UntilRevoked,
                false => Lasts::WithCard(reader),
            },
            created: self.time(now),
            last_used: None,
        };
        match self.grants.add(grant.clone()) {
            Some(id) => {
                if remember {
                    self.outputs.push(Output::Store(Write::Grant(id, grant)));
                }
                true
            }
            None => {
                log::error!("too many grants: revoke some on the page of tokens");
                false
            }
        }
    }

    /// Begins anew with a channel that had to wait for the user.
    pub(super) fn open_again(
        &mut self,
        reader: ReaderKey,
        opening: Opening,
        asked: Asked,
        now: Instant,
    ) {
        let task = Task::OpenChannel {
            session: opening.session,
            channel_type: opening.channel_type,
            applet: opening.applet,
            response: opening.response,
            asked,
        };
        let queued = self.enqueue(reader, opening.ticket, task, DEFAULT_TIMEOUT, now);
        if let Err(error) = queued {
            self.reply(opening.ticket, Err(error));
        }
    }

    /// Ends prompts whose time is over.
    pub(super) fn expire_prompts(&mut self, now: Instant) {
        let due: Vec<(PromptId, Stage)> = self
            .prompts
            .iter()
            .filter(|(_, prompt)| prompt.deadline <= now)
            .map(|(id, prompt)| (*id, prompt.stage))
            .collect();
        for (id, stage) in due {
            match stage {
                Stage::Listing => self.show_what_waits_for_readers(now),
                Stage::Activation => self.prompt_ended(id, PromptAnswer::NotAsked, now),
                Stage::Shown => {
                    self.outputs.push(Output::WithdrawPrompt(id));
                    self.prompt_ended(id, PromptAnswer::NotAsked, now);
                }
            }
        }
    }

    /// Withdraws prompts that nobody waits for any more, and shows others anew whose readers have changed.
    pub(super) fn settle_prompts(&mut self, now: Instant) {
        if self.prompts.is_empty() {
            return;
        }
        let readers = self.prompt_readers();
        let mut changed = Vec::new();
        let mut over = Vec::new();
        let mut closed_sessions = Vec::new();
        let ports = &self.ports;
        let is_asked = |ticket: &Ticket| {
            ports
                .get(&ticket.port)
                .is_some_and(|port| port.in_flight.contains_key(&ticket.request))
        };
        for (id, prompt) in &mut self.prompts {
            match &mut prompt.wanted {
                Wanted::Reader { waiting, offered } => {
                    // Others behind the first that still waits may not, but there may be very many.
                    while waiting.front().is_some_and(|ticket| !is_asked(ticket)) {
                        waiting.pop_front();
                    }
                    if waiting.is_empty() {
                        over.push(*id);
                    } else if prompt.stage == Stage::Shown && *offered != readers {
                        changed.push(*id);
                    }
                }
                Wanted::Applet {
                    reader, opening, ..
                } => {
                    let session = ports
                        .get(&opening.ticket.port)
                        .and_then(|port| port.sessions.get(&opening.session));
                    if !is_asked(&opening.ticket) {
                        over.push(*id);
                    } else if session != Some(reader) {
                        over.push(*id);
                        closed_sessions.push(opening.ticket);
                    }
                }
            }
        }
        for id in over {
            if let Some(prompt) = self.prompts.remove(&id)
                && prompt.stage == Stage::Shown
            {
                self.outputs.push(Output::WithdrawPrompt(id));
            }
        }
        for ticket in closed_sessions {
            self.reply(ticket, Err(closed("session")));
        }
        for id in changed {
            self.replace_prompt(id);
        }
        self.want_monitor(now);
    }
}
