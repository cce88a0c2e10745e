/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the broker asks the user through the main process, which draws every prompt, and what the main process shows and
//! revokes on its page of tokens.
//!
//! Nothing in a prompt was chosen by a page, but for the name of a key. Readers, tokens and cards choose some of it: whoever draws it treats those strings
//! as hostile.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::identity::Origin;
use crate::keys::Protection;
use crate::port::ElementType;

/// Most characters of a name that a reader or card gave, in a prompt or on a page.
pub const MAX_NAME_LENGTH: usize = 128;

/// Names a prompt between the broker and the main process. Chosen by the broker, never used twice.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct PromptId(pub u64);

/// A prompt to be shown.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PromptRequest {
    /// Names the answer.
    pub id: PromptId,
    /// The prompt whose place it takes, if one: what was asked has changed meanwhile. An answer to that one means nothing
    /// any more, so it has another id.
    pub replaces: Option<PromptId>,
    /// The webview (tab) whose document asks. The prompt belongs to it and ends with it.
    pub webview: u64,
    /// Who asks.
    pub origin: Origin,
    /// Under which top-level origin, which the prompt names too where it is another one.
    pub top_level_origin: Origin,
    /// What is asked.
    pub question: Question,
}

/// What a prompt asks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Question {
    /// Which reader the origin may see. Answered by [`PromptAnswer::Chosen`].
    ChooseReader {
        /// The readers to choose from. If there are none, the user can connect one, and the prompt changes.
        readers: Vec<PromptReader>,
    },
    /// Whether the origin may use an application of a card that has no access rules of its own. The answer writes a rule
    /// of the device. Answered by [`PromptAnswer::Allowed`].
    UseApplet {
        /// The reader that the card is in.
        reader: String,
        /// The DF name of the application as the card reports it, 1 to 16 bytes; `None` if the card does not name it.
        applet: Option<Vec<u8>>,
    },
    /// Which token with keys the origin may use: its own keys there, and to make some. Answered by [`PromptAnswer::Chosen`].
    ChooseToken {
        /// The tokens to choose from. If there are none, the user can connect one, and the prompt changes.
        tokens: Vec<PromptToken>,
    },
    /// Which key the origin may use. Answered by [`PromptAnswer::Chosen`].
    ChooseKey {
        /// The keys to choose from, all of which are what the origin has asked for.
        keys: Vec<PromptKey>,
    },
    /// Whether a key that the origin makes may be used by these other origins too. Answered by [`PromptAnswer::Allowed`].
    ShareKey {
        /// The token that the key is made in.
        token: String,
        /// The key's name, which the page chose: at most [`MAX_NAME_LENGTH`] printable characters.
        name: String,
        /// Who else may use it.
        origins: Vec<Origin>,
    },
    /// The PIN of a token. Answered by [`PromptAnswer::Pin`].
    EnterPin {
        /// The token's name.
        token: String,
        /// Whether the PIN that was entered just before was wrong.
        was_wrong: bool,
        /// How many wrong PINs are left before the token locks itself, where it tells.
        tries_left: Option<u8>,
        /// The least length, in characters.
        min_length: u8,
        /// The greatest length, in characters.
        max_length: u8,
    },
}

/// A reader to choose.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PromptReader {
    /// Its name, printable, at most [`MAX_NAME_LENGTH`] characters.
    pub name: String,
    /// What kind of element it gives access to.
    pub element_type: ElementType,
    /// Whether there is an element in it.
    pub present: bool,
}

/// A token to choose.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PromptToken {
    /// What its owner calls it, printable, at most [`MAX_NAME_LENGTH`] characters.
    pub label: String,
    /// Where it is: the reader, or what the user calls the module that serves it.
    pub place: String,
    /// How it keeps keys.
    pub protection: Protection,
}

/// A key to choose.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PromptKey {
    /// Its name, printable, at most [`MAX_NAME_LENGTH`] characters. Whoever made the key chose it.
    pub name: String,
    /// The token that it is in.
    pub token: PromptToken,
    /// Whom its certificate names, and who issued that, if it has one.
    pub certificate: Option<PromptCertificate>,
}

/// What a certificate says, printable, each at most [`MAX_NAME_LENGTH`] characters.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PromptCertificate {
    /// Whom it is for.
    pub subject: String,
    /// Who says so.
    pub issuer: String,
    /// The last day on which it is valid, as `2026-12-31`.
    pub expires: String,
}

/// What the user answered.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PromptAnswer {
    /// No, or the prompt was closed, or there is nobody to ask.
    Refused,
    /// The prompt was not shown: the user had not just done something in that webview.
    NotAsked,
    /// Yes, this one.
    Chosen {
        /// Its index in the question.
        index: u32,
        /// Whether the grant outlives the card's removal and the origin's last document.
        remember: bool,
    },
    /// Yes.
    Allowed {
        /// As in [`PromptAnswer::Chosen`].
        remember: bool,
    },
    /// A PIN.
    Pin(Pin),
}

/// A PIN. It is overwritten in memory when it is dropped, and shown nowhere.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pin(Zeroizing<String>);

impl Pin {
    /// Takes what the user has typed.
    pub fn new(pin: Zeroizing<String>) -> Self {
        Self(pin)
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Pin(..)")
    }
}

/// Takes the answer to a prompt, once, on any thread.
pub type AnswerCallback = Box<dyn FnOnce(PromptAnswer) + Send>;

/// Whoever shows prompts to the user. Both methods may be called on any thread, and neither blocks.
pub trait PromptHost: Send + Sync {
    /// Shows a prompt as soon as its tab is in sight. `answer` is called once, whatever happens; with
    /// [`PromptAnswer::Refused`] when there is nobody to ask. A prompt that replaces one that is there takes its place:
    /// what was chosen there is forgotten, and its callback is called with [`PromptAnswer::Refused`].
    fn show(&self, request: PromptRequest, answer: AnswerCallback);
    /// The answer is not needed any more. A prompt that is not there is no error.
    fn withdraw(&self, id: PromptId);
}

/// What the page of tokens shows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Overview {
    /// The readers that are there.
    pub readers: Vec<PromptReader>,
    /// The grants and the rules of the device.
    pub grants: Vec<GrantInfo>,
    /// The newest entries of the audit log, newest first.
    pub audit: Vec<AuditEntry>,
    /// A sentence about what keeps grants from being remembered, if something does.
    pub problem: Option<String>,
}

/// Names a grant or rule.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct GrantId(pub i64);

/// A grant or a rule of the device, as the page of tokens lists it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GrantInfo {
    /// Names it; `None` for a rule that the administrator wrote, which cannot be revoked here.
    pub id: Option<GrantId>,
    /// Whom it allows something; `None` for every origin.
    pub origin: Option<Origin>,
    /// Under which top-level origin; `None` under any.
    pub top_level_origin: Option<Origin>,
    /// What it allows.
    pub what: GrantKind,
    /// Whether it outlives the browser.
    pub remembered: bool,
    /// When it was given.
    pub created: Option<SystemTime>,
    /// When it was last used.
    pub last_used: Option<SystemTime>,
}

/// What a grant or rule is about.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum GrantKind {
    /// To see a reader and to open sessions with it.
    Reader {
        /// The reader's name.
        reader: String,
    },
    /// To use whatever a prompt could allow, or nothing: what automation has answered beforehand.
    Automation {
        /// Which of the two.
        allowed: bool,
    },
    /// To use a token with keys: the origin's own keys there, and to make some.
    Token {
        /// What its owner calls it.
        token: String,
    },
    /// To use a key.
    Key {
        /// Its name.
        name: String,
        /// The token that it is in.
        token: String,
    },
    /// To use an application on elements that have no rules of their own.
    Applet {
        /// Its DF name; `None` for every application, empty for the one that a card selects by itself.
        applet: Option<Vec<u8>>,
        /// Whether it is allowed, or forbidden.
        allowed: bool,
    },
}

/// An entry of the audit log, which is the user's own.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuditEntry {
    /// When.
    pub time: SystemTime,
    /// Who.
    pub origin: Origin,
    /// The reader's name, or the token's.
    pub reader: String,
    /// The application, where it is about one.
    pub applet: Option<Vec<u8>>,
    /// What was decided, in words: "channel opened", "refused by the card's rules".
    pub decision: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_not_shown() {
        let pin = Pin::new(Zeroizing::new("1234".to_owned()));
        let shown = format!("{:?}", PromptAnswer::Pin(pin));
        assert!(!shown.contains("1234"), "{shown}");
    }
}
