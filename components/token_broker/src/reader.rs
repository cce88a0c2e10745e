/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A reader, what is open in its card, and the jobs that wait for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use secure_element::access::{AraMReader, ArfReader, DirectoryReader, RefreshTag, RuleSet};
use secure_element::apdu::{Header, ResponseApdu};
use secure_element::channel::{Aid, SelectResponse};
use secure_element::class_byte::ChannelNumber;
use secure_element::piv::dialogue::Dialogue;
use token_traits::control::WorkerKind;
use token_traits::port::{
    ChannelId, ChannelType, ElementType, ReaderId, ReaderInfo, RequestId, SessionId,
};
use token_traits::prompt::MAX_NAME_LENGTH;
use token_traits::{PortId, PortIdentity};
use token_workers::protocol::ReaderStatus;

use crate::access::grants::ReaderName;
use crate::broker::CardKeys;
use crate::job_queue::JobQueue;
use crate::keys::piv::{self, Outcome};
use crate::supervision::Slot;

/// What the embedded virtual card is called.
pub(crate) const EMBEDDED_CARD: &str = "Embedded virtual card";

/// What a PC/SC reader is called: printable, and not too long.
pub(crate) fn display_name(name: &str) -> String {
    name.chars()
        .filter(|character| !character.is_control())
        .take(MAX_NAME_LENGTH)
        .collect()
}

/// Names a reader within the broker, never used twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ReaderKey(pub(crate) u64);

/// A request that is to be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ticket {
    pub(crate) port: PortId,
    pub(crate) request: RequestId,
}

/// Names several jobs whose end is awaited together.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct GroupId(pub(crate) u64);

/// What is to be done with the card.
#[derive(Debug)]
pub(crate) enum Job {
    /// For a page.
    Asked {
        ticket: Ticket,
        deadline: Instant,
        task: Task,
    },
    /// Close a channel of the card.
    CloseChannel(ChannelNumber),
    /// Everything that its document has asked for before is done.
    Barrier(GroupId),
    /// For the keys in the card.
    Keys(CardJob),
}

/// Something for the keys in a card.
#[derive(Debug)]
pub(crate) struct CardJob {
    /// Who waits for it, if somebody does.
    pub(crate) request: Option<u64>,
    pub(crate) deadline: Instant,
    pub(crate) task: piv::Task,
}

/// What a page asks of a card.
#[derive(Debug)]
pub(crate) enum Task {
    OpenSession,
    OpenChannel {
        session: SessionId,
        channel_type: ChannelType,
        applet: Applet,
        response: SelectResponse,
        asked: Asked,
    },
    Transmit {
        channel: ChannelId,
        header: Header,
        command: Vec<u8>,
    },
    SelectNext {
        channel: ChannelId,
        command: Vec<u8>,
    },
    Reset,
}

/// What is selected on a channel that is being opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Applet {
    Implicit,
    IssuerSecurityDomain,
    Named(Aid),
}

impl Applet {
    /// The AID that SELECT is sent with, complete or partial; `None` where no SELECT is sent.
    pub(crate) fn requested(&self) -> Option<&[u8]> {
        match self {
            Self::Implicit => None,
            Self::IssuerSecurityDomain => Some(&[]),
            Self::Named(aid) => Some(aid.as_bytes()),
        }
    }
}

/// Whether the user is asked about what is selected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asked {
    /// Not yet: first it must be known whether a prompt may be shown.
    No,
    /// A prompt may be shown.
    CanBe,
    /// The user has been asked. There is no second time.
    HasBeen,
}

/// A channel that is being opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) ticket: Ticket,
    pub(crate) session: SessionId,
    pub(crate) channel_type: ChannelType,
    pub(crate) applet: Applet,
    pub(crate) response: SelectResponse,
    pub(crate) asked: Asked,
    pub(crate) deadline: Instant,
}

/// The one request that the reader's worker has.
#[derive(Debug)]
pub(crate) struct Running {
    /// The request's id at the worker.
    pub(crate) id: u64,
    pub(crate) deadline: Instant,
    /// Its page has been told that the time was over. The worker has a little longer.
    pub(crate) is_given_up: bool,
    /// What it was asked through has ended meanwhile.
    pub(crate) is_stale: bool,
    pub(crate) step: Step,
}

/// What the worker's answer is for.
#[derive(Debug)]
pub(crate) enum Step {
    Connect {
        ticket: Ticket,
        reset: bool,
    },
    /// MANAGE CHANNEL open; SELECT follows.
    Open(Opening),
    /// SELECT with P2 of 00, which says which applet it has found.
    Select(Opening, ChannelNumber),
    /// SELECT with the P2 that the page wants.
    SelectAs(Opening, ChannelNumber, Found),
    Transmit(Ticket, Option<Reference>),
    /// VERIFY without data, before the page's command.
    CountTries(Ticket, Reference, Vec<u8>),
    /// SELECT of the next applet, for its name.
    SelectNext(Ticket, ChannelId),
    /// SELECT of what that has found, with the P2 that the page wants.
    SelectNextAs(Ticket, ChannelId, Found),
    /// SELECT of the applet that was selected before `selectNext()`, which has found nothing that the page may use.
    SelectAgain(Ticket, ChannelId),
    /// PRESENT ORIGIN, to the applet that was just selected on a channel.
    PresentOrigin(ChannelNumber, Found, Box<Telling>),
    /// Reading the element's access rules, which a channel that is to be opened waits for.
    Rules(Opening, RulesStep),
    Reset(Ticket),
    /// MANAGE CHANNEL close.
    Close(ChannelNumber),
    /// MANAGE CHANNEL reset of the basic channel.
    ResetBasic,
    /// SELECT of the default applet, for cards without MANAGE CHANNEL.
    SelectDefault,
    Disconnect,
    Keys(Box<CardStep>),
}

/// What a command is for that has to do with the keys in a card.
#[derive(Debug)]
pub(crate) struct CardStep {
    pub(crate) job: CardJob,
    pub(crate) stage: CardStage,
}

#[derive(Debug)]
pub(crate) enum CardStage {
    Connect {
        reset: bool,
    },
    /// MANAGE CHANNEL open.
    Open,
    /// The commands that the job consists of.
    Converse {
        channel: ChannelNumber,
        dialogue: Dialogue<Outcome>,
    },
}

impl Step {
    /// Who waits for it.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        match *self {
            Self::Connect { ticket, .. }
            | Self::Transmit(ticket, _)
            | Self::CountTries(ticket, ..)
            | Self::SelectNext(ticket, _)
            | Self::SelectNextAs(ticket, ..)
            | Self::SelectAgain(ticket, _)
            | Self::Reset(ticket) => Some(ticket),
            Self::Open(opening)
            | Self::Select(opening, _)
            | Self::SelectAs(opening, ..)
            | Self::Rules(opening, _) => Some(opening.ticket),
            Self::PresentOrigin(_, _, ref telling) => Some(telling.ticket()),
            Self::Close(_)
            | Self::ResetBasic
            | Self::SelectDefault
            | Self::Disconnect
            | Self::Keys(_) => None,
        }
    }
}

/// What is known of the applet that SELECT has found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Found {
    /// Its name, if the card tells it.
    pub(crate) df_name: Option<Aid>,
    pub(crate) origin: Knowledge,
}

/// Whether an applet knows for whom it is selected.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Knowledge {
    /// No, like almost every applet.
    #[default]
    NotWanted,
    /// It wants to.
    Wanted,
    /// It has been told.
    Told,
}

/// What goes on once an applet has been told the origin.
#[derive(Debug)]
pub(crate) enum Telling {
    /// A channel is being opened. With the answer to SELECT.
    Opened(Opening, ResponseApdu),
    /// `selectNext()`, with its answer.
    Next(Ticket, ChannelId, ResponseApdu),
    /// The applet that was selected before `selectNext()` is selected again.
    Again(Ticket, ChannelId),
}

impl Telling {
    /// Who waits for it.
    pub(crate) fn ticket(&self) -> Ticket {
        match *self {
            Self::Opened(Opening { ticket, .. }, _)
            | Self::Next(ticket, ..)
            | Self::Again(ticket, _) => ticket,
        }
    }
}

/// What a command is for that reads access rules.
#[derive(Debug)]
pub(crate) enum RulesStep {
    /// MANAGE CHANNEL open.
    Open,
    /// SELECT of the ARA-M.
    Select(ChannelNumber),
    /// GET DATA.
    Read(ChannelNumber, Box<AraMReader>),
    /// Whether EF.DIR makes it a UICC.
    Directory(ChannelNumber, DirectoryReader),
    /// The files of a UICC.
    Files(ChannelNumber, Box<ArfReader>),
    /// MANAGE CHANNEL close.
    Close(ChannelNumber),
    /// MANAGE CHANNEL reset, on cards without other channels.
    ResetBasic,
    /// SELECT of the default applet, for cards without MANAGE CHANNEL.
    SelectDefault,
}

impl RulesStep {
    /// The channel on which the rules are read.
    pub(crate) fn channel(&self) -> Option<ChannelNumber> {
        match self {
            Self::Open => None,
            Self::Select(channel)
            | Self::Read(channel, _)
            | Self::Directory(channel, _)
            | Self::Files(channel, _)
            | Self::Close(channel) => Some(*channel),
            Self::ResetBasic | Self::SelectDefault => Some(ChannelNumber::BASIC),
        }
    }
}

/// What is known of an element's own access rules.
#[derive(Clone, Debug)]
pub(crate) enum ElementRules {
    /// Nothing: they have not been read since the connection was made.
    Unknown,
    /// These, which were in the card together with this tag.
    Card {
        rules: Arc<RuleSet>,
        refresh_tag: RefreshTag,
        source: RulesSource,
    },
    /// It has none, and no place for any.
    None,
    /// They cannot be read or understood, so nobody may use anything.
    Closed,
}

/// Where an element's own access rules are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RulesSource {
    /// In an application for them.
    AraM,
    /// In PKCS#15 files.
    Arf,
}

/// What a command tries to prove the knowledge of.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Reference {
    /// The applet's DF name, if the card names it.
    pub(crate) applet: Option<Aid>,
    pub(crate) secret: Secret,
    /// Which one.
    pub(crate) p2: u8,
}

/// The kinds of secrets that have their own numbers of tries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Secret {
    Password,
    UnblockingCode,
    Key,
}

/// A reader.
#[derive(Debug)]
pub(crate) struct Reader {
    /// As pages see it.
    pub(crate) display_name: String,
    pub(crate) element_type: ElementType,
    pub(crate) removable: bool,
    pub(crate) present: bool,
    /// PC/SC's count of the cards that came and went.
    pub(crate) card_events: u32,
    pub(crate) slot: Slot,
    /// Whether the worker is connected to the card.
    pub(crate) connected: bool,
    /// Channels that nobody knows of may be open in the card, or PINs verified. It is reset when nobody uses it.
    pub(crate) needs_reset: bool,
    /// Who may use what in the card, as long as the connection stands.
    pub(crate) rules: ElementRules,
    /// The card's EF.DIR says that it is a UICC. Known as long as the connection stands.
    pub(crate) names_uicc: bool,
    /// The basic channel could not be reset: what was selected on it is selected still.
    pub(crate) basic_is_dirty: bool,
    /// How many tries are left, where the card has said so.
    pub(crate) tries: HashMap<Reference, u8>,
    /// Whose PIN the card may have verified since its last reset.
    pub(crate) unlocked_by: Option<PortIdentity>,
    /// How many sessions ports have on it.
    pub(crate) sessions: usize,
    /// The card's channels that are open or being opened or closed.
    pub(crate) channels: BTreeSet<ChannelNumber>,
    pub(crate) queue: JobQueue,
    pub(crate) running: Option<Running>,
    /// Since when its worker has had nothing to do.
    pub(crate) idle_since: Option<Instant>,
    /// The keys in the card.
    pub(crate) keys: CardKeys,
}

impl Reader {
    pub(crate) fn embedded(profile: String) -> Self {
        Self::new(
            EMBEDDED_CARD.into(),
            ElementType::Embedded,
            WorkerKind::VirtualCard { profile },
            true,
        )
    }

    /// `uicc_readers` are the names of those whose cards are UICCs.
    pub(crate) fn pcsc(status: ReaderStatus, uicc_readers: &[String]) -> Self {
        let element_type = if uicc_readers.contains(&status.name) {
            ElementType::Uicc
        } else {
            ElementType::SmartCard
        };
        let display_name = display_name(&status.name);
        let kind = WorkerKind::PcscReader {
            reader: status.name,
        };
        Self {
            card_events: status.card_events,
            ..Self::new(display_name, element_type, kind, status.present)
        }
    }

    fn new(
        display_name: String,
        element_type: ElementType,
        kind: WorkerKind,
        present: bool,
    ) -> Self {
        Self {
            display_name,
            element_type,
            removable: element_type != ElementType::Embedded,
            present,
            card_events: 0,
            slot: Slot::new(kind),
            connected: false,
            needs_reset: false,
            rules: ElementRules::Unknown,
            names_uicc: false,
            basic_is_dirty: false,
            tries: HashMap::new(),
            unlocked_by: None,
            sessions: 0,
            channels: BTreeSet::new(),
            queue: JobQueue::default(),
            running: None,
            idle_since: None,
            keys: CardKeys::default(),
        }
    }

    /// Takes the jobs for pages that `which` says out of the queue, and returns who waits for them.
    pub(crate) fn take_asked(
        &mut self,
        which: impl Fn(Ticket, Instant, &Task) -> bool,
    ) -> Vec<Ticket> {
        let mut taken = Vec::new();
        self.queue.retain(|job| match job {
            Job::Asked {
                ticket,
                deadline,
                task,
            } if which(*ticket, *deadline, task) => {
                taken.push(*ticket);
                false
            }
            _ => true,
        });
        taken
    }

    /// The kind of element, as far as access is concerned.
    pub(crate) fn kind_of_element(&self) -> ElementType {
        match self.names_uicc {
            true => ElementType::Uicc,
            false => self.element_type,
        }
    }

    /// What a page is told about it.
    pub(crate) fn info(&self, id: ReaderId) -> ReaderInfo {
        ReaderInfo {
            id,
            name: self.display_name.clone(),
            element_type: self.element_type,
            removable: self.removable,
            present: self.present,
        }
    }

    /// The name by which grants know it.
    pub(crate) fn name(&self) -> ReaderName {
        match self.slot.kind() {
            WorkerKind::PcscReader { reader } => ReaderName::Pcsc(reader.clone()),
            WorkerKind::VirtualCard { profile } => ReaderName::Virtual(profile.clone()),
            // They are no readers, so nobody is granted them.
            WorkerKind::PcscMonitor | WorkerKind::Module(_) | WorkerKind::Tpm { .. } => {
                ReaderName::Virtual(String::new())
            }
        }
    }

    /// The name by which PC/SC knows it, if it is one of PC/SC's.
    pub(crate) fn pcsc_name(&self) -> Option<&str> {
        match self.slot.kind() {
            WorkerKind::PcscReader { reader } => Some(reader),
            WorkerKind::VirtualCard { .. }
            | WorkerKind::PcscMonitor
            | WorkerKind::Module(_)
            | WorkerKind::Tpm { .. } => None,
        }
    }
}
