/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the main process and the broker say to each other, and how a token process introduces itself.
//!
//! The main process is trusted; it spawns every process. The broker cannot spawn: it asks.
//!
//! Every token process is started as `token-broker KIND TOKEN`, where TOKEN is what `IpcSender::connect` takes. It creates its
//! own channels and sends the main process's ends of them in a [`Hello`]. The main process listens to nobody else there. The broker is told on the
//! command line as well, with `--store FOLDER`, where it keeps grants and the audit log: it opens nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use serde::{Deserialize, Serialize};

use crate::PortId;
use crate::feature::{Feature, PermissionState};
use crate::identity::{Origin, PortIdentity};
use crate::keys::Bytes;
use crate::port::ElementType;
use crate::prompt::{GrantId, Overview, PromptAnswer, PromptId, PromptRequest};
use crate::wire::Frame;

/// The first message of a token process to the main process.
#[derive(Debug, Deserialize, Serialize)]
#[serde(bound = "")]
pub struct Hello<ToChild, FromChild> {
    /// [`crate::wire::WIRE_VERSION`] of the process; anything else than the main process's own ends it.
    pub version: u8,
    /// To the process.
    pub to_child: IpcSender<ToChild>,
    /// From the process.
    pub from_child: IpcReceiver<FromChild>,
    /// Nothing is ever sent on it. The main process keeps it for as long as the process may live: the process ends
    /// when it closes, whatever it is doing and whoever holds its other channels.
    pub lifeline: IpcSender<()>,
}

/// The broker's [`Hello`]. What comes from it is [`FromBroker`], each in a [`Frame`].
pub type BrokerHello = Hello<ToBroker, Frame>;

/// A worker's [`Hello`]. The main process hands both ends on to the broker without reading from them, after it has
/// sent the worker its [`WorkerKind`] as the first frame.
pub type WorkerHello = Hello<Frame, Frame>;

/// Names a worker process between the broker and the main process. Chosen by the broker, never used twice.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct WorkerId(pub u64);

/// What a worker is for. The main process refuses kinds that its configuration does not name.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum WorkerKind {
    /// The embedded card in software, with the given profile.
    VirtualCard {
        /// A profile that `virtual_card` knows.
        profile: String,
    },
    /// Watches PC/SC for readers and cards.
    PcscMonitor,
    /// Talks to the card in one PC/SC reader.
    PcscReader {
        /// The reader's name as PC/SC gives it.
        reader: String,
    },
    /// Talks to the tokens of one PKCS#11 module.
    Module(ModuleConfig),
    /// Talks to the TPM.
    Tpm {
        /// As in [`BrokerConfig::tpm`].
        tcti: String,
    },
}

/// A PKCS#11 module: `[[pkcs11]]` of the `--token-config` file.
///
/// A module runs inside its worker's sandbox, with what is said here besides what every program needs.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct ModuleConfig {
    /// `module`: the absolute path of its shared library.
    pub module: String,
    /// `label`: what the user knows it by.
    pub label: String,
    /// `read`: files and folders that it may read.
    pub read: Vec<String>,
    /// `write`: files and folders that it may read, write, make and delete.
    pub write: Vec<String>,
    /// `pcsc`: whether it may talk to the PC/SC service.
    pub pcsc: bool,
    /// `environment`: variables that it reads, which its process is started with.
    pub environment: BTreeMap<String, String>,
}

/// What may be started, from the `--token-config` file.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct BrokerConfig {
    /// `[pcsc] enabled`.
    pub pcsc: bool,
    /// `[virtual_card] profile`, or `None` where it is not enabled.
    pub virtual_card: Option<String>,
    /// `[pcsc] uicc_readers`: readers, by the names that PC/SC gives them, whose cards are UICCs.
    pub uicc_readers: Vec<String>,
    /// `[access]`. With `None`, access rules are neither read nor enforced.
    pub access: Option<AccessConfig>,
    /// `[[pkcs11]]`.
    pub modules: Vec<ModuleConfig>,
    /// `[tpm] tcti`: how the TPM is reached (`device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321`), or `None` where it is
    /// not used.
    pub tpm: Option<String>,
    /// `[piv] management_key`: the management key of PIV cards in PC/SC readers, 16, 24 or 32 bytes. Without it, no keys are
    /// made in them. The embedded card has the one that such cards have at first.
    pub piv_management_key: Option<Bytes>,
}

/// What applies to elements without access rules of their own.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AccessConfig {
    /// The rules of the device: the contents of the file that `[access] rules` names.
    pub device_rules: String,
    /// `[access] when_no_rules`; `None` for what is usual for the kind of element.
    pub when_no_rules: Option<WhenNoRules>,
}

/// What applies to an element that has no access rules of its own, where no device rule says anything.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenNoRules {
    /// The user may write a device rule when asked. Usual for cards that can be taken out.
    Ask,
    /// Nobody may use anything. Usual for UICCs and embedded elements.
    Deny,
}

impl WhenNoRules {
    /// What is usual for a kind of element.
    pub fn usual(element_type: ElementType) -> Self {
        match element_type {
            ElementType::Uicc | ElementType::Embedded => Self::Deny,
            ElementType::SmartCard | ElementType::Sd | ElementType::Other => Self::Ask,
        }
    }
}

/// Main process to broker.
#[derive(Debug, Deserialize, Serialize)]
pub enum ToBroker {
    /// The first message.
    Configure(BrokerConfig),
    /// Serve a document; answered by [`FromBroker::PortOpened`].
    OpenPort {
        /// Names it.
        port: PortId,
        /// Who it is.
        identity: PortIdentity,
        /// The document's requests.
        requests: IpcReceiver<Frame>,
        /// To the document.
        messages: IpcSender<Frame>,
    },
    /// Drop a document and everything that it opened.
    ClosePort(PortId),
    /// Automation answers for the user: see [`crate::TokenBroker::set_permission`].
    SetPermission {
        /// Whom.
        origin: Origin,
        /// Under which top-level origin.
        top_level_origin: Origin,
        /// What.
        feature: Feature,
        /// What holds from now on.
        state: PermissionState,
    },
    /// The answer to [`FromBroker::CheckActivation`].
    Activation {
        /// As in the question.
        prompt: PromptId,
        /// Whether a prompt would be shown now.
        is_active: bool,
    },
    /// The answer to [`FromBroker::Prompt`].
    PromptAnswered {
        /// Which.
        prompt: PromptId,
        /// What the user, or automation, answered.
        answer: PromptAnswer,
    },
    /// What is there for the page of tokens? Answered by [`FromBroker::Overview`].
    GetOverview {
        /// Names the answer.
        id: u64,
    },
    /// The user ends a grant or deletes a rule.
    Revoke(GrantId),
    /// A worker that the broker asked for has introduced itself.
    WorkerStarted {
        /// Which.
        worker: WorkerId,
        /// To the worker.
        requests: IpcSender<Frame>,
        /// From the worker.
        replies: IpcReceiver<Frame>,
    },
    /// A worker could not be started, or has ended for whatever reason.
    WorkerEnded {
        /// Which.
        worker: WorkerId,
        /// A sentence for the log and for the page's error message.
        reason: String,
    },
}

/// Broker to main process.
#[derive(Debug, Deserialize, Serialize)]
pub enum FromBroker {
    /// Start a worker; answered by [`ToBroker::WorkerStarted`] or [`ToBroker::WorkerEnded`].
    StartWorker {
        /// Names it from now on.
        worker: WorkerId,
        /// What it is for.
        kind: WorkerKind,
    },
    /// Kill a worker; answered by [`ToBroker::WorkerEnded`].
    KillWorker(WorkerId),
    /// The answer to [`ToBroker::OpenPort`]. Until it comes, the port may be lost with a broker that is just dying.
    PortOpened(PortId),
    /// A port has closed: the document has gone or broke the protocol, or the main process wanted it.
    PortClosed(PortId),
    /// Has the user just done something in this webview, so that a prompt may be shown? Answered by
    /// [`ToBroker::Activation`].
    CheckActivation {
        /// Names the answer.
        prompt: PromptId,
        /// As in [`PortIdentity::webview`].
        webview: u64,
    },
    /// Ask the user; answered by [`ToBroker::PromptAnswered`], with [`PromptAnswer::NotAsked`] if the user has not just done
    /// something in that webview. One that takes the place of a prompt that is shown already needs nothing more.
    Prompt(PromptRequest),
    /// The answer to a prompt is not needed any more. None comes.
    WithdrawPrompt(PromptId),
    /// A part of the answer to [`ToBroker::GetOverview`], which may be too long for one message. Its lists follow those of
    /// the parts before.
    Overview {
        /// As in the question.
        id: u64,
        /// What there is.
        part: Overview,
        /// Whether that was all.
        is_last: bool,
    },
}

/// How long to wait before a token process is started again that has ended `ends` times in a row: not at all the first
/// time, then 250 ms, twice as long each time, 5 s at most.
pub fn restart_pause(ends: u32) -> Duration {
    match ends {
        0 | 1 => Duration::ZERO,
        _ => Duration::from_millis(250 << (ends - 2).min(5)).min(Duration::from_secs(5)),
    }
}

/// A token process that lived this long was a good one: its next restart is the first of a row.
pub const GOOD_LIFE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::restart_pause;

    #[test]
    fn restarts_wait_longer_and_longer() {
        let pauses: Vec<u128> = (1..10)
            .map(|ends| restart_pause(ends).as_millis())
            .collect();
        assert_eq!(pauses, [0, 250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        assert_eq!(restart_pause(u32::MAX).as_secs(), 5);
    }
}
