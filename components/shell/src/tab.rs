/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the browser keeps for a page, besides the page: its console, what it asks the user, and what it was allowed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use servo::{
    ConsoleLogLevel, ContextMenu, EmbedderControlId, SelectElement, SimpleDialog, WebViewId,
};
use servo_base::id::BrowsingContextId;
use url::Url;

use crate::chrome::{ConsoleLine, MAX_CONSOLE_LINE, MAX_CONSOLE_LINES};
use crate::text::printable;

/// How long after the user did something in a page it may open a tab.
const POPUP_PERIOD: Duration = Duration::from_secs(5);

/// Most dialogs of one page that wait.
const MAX_DIALOGS: usize = 8;

/// The number by which broker and prompts know a webview: the one that the engine's parent process gives them.
pub fn webview_number(id: WebViewId) -> u64 {
    let id = BrowsingContextId::from(id);
    (u64::from(id.namespace_id.0) << 32) | u64::from(id.index.0.get())
}

/// `alert()`, `confirm()` or `prompt()`.
pub struct OpenDialog {
    /// Names it.
    pub id: EmbedderControlId,
    /// The page waits for its answer.
    pub dialog: SimpleDialog,
    /// What the user has typed.
    pub text: String,
}

/// What a page asks the user to choose. The engine gives them to one page at a time.
pub enum Popup {
    /// The options of a `<select>` element.
    Select(SelectElement),
    /// What can be done at a place in the page.
    Menu(ContextMenu),
}

impl Popup {
    /// Names it.
    pub fn id(&self) -> EmbedderControlId {
        match self {
            Self::Select(select) => select.id(),
            Self::Menu(menu) => menu.id(),
        }
    }
}

/// The state of a tab.
#[derive(Default)]
pub struct TabState {
    /// What the page has logged, the newest last.
    pub console: VecDeque<ConsoleLine>,
    /// Something that the browser has to say about the page.
    pub notice: Option<String>,
    /// Where the link under the pointer leads.
    pub status: Option<String>,
    /// Open dialogs, the oldest first: that one is shown.
    pub dialogs: VecDeque<OpenDialog>,
    /// How many dialogs the document has opened.
    dialogs_opened: usize,
    /// The user wants no more dialogs of this document.
    pub dialogs_silenced: bool,
    /// An open popup.
    pub popup: Option<Popup>,
    /// Whether the tab has had a document. Till then the engine forgets what it is told to load.
    pub has_document: bool,
    /// What the user wants to be loaded as soon as it has one.
    pub wanted: Option<Url>,
    /// Whether the page has asked for the whole screen, and got it.
    pub fullscreen: bool,
    /// When the user last did something in the page that may open a tab. Opening one uses it up.
    last_input: Option<Instant>,
}

impl TabState {
    /// Adds a message to the console.
    pub fn log(&mut self, level: ConsoleLogLevel, message: &str) {
        if self.console.len() >= MAX_CONSOLE_LINES {
            self.console.pop_front();
        }
        self.console.push_back(ConsoleLine {
            level: level.into(),
            text: printable(message, MAX_CONSOLE_LINE),
        });
    }

    /// The user has clicked, or pressed a key.
    pub fn note_input(&mut self, now: Instant) {
        self.last_input = Some(now);
    }

    /// Whether the page may open a tab now. One thing that the user does opens one tab.
    pub fn take_popup_permission(&mut self, now: Instant) -> bool {
        self.last_input
            .take()
            .is_some_and(|input| now.saturating_duration_since(input) < POPUP_PERIOD)
    }

    /// Opens a dialog, or dismisses it.
    pub fn open_dialog(&mut self, id: EmbedderControlId, dialog: SimpleDialog) {
        if self.dialogs_silenced || self.dialogs.len() >= MAX_DIALOGS {
            return dialog.dismiss();
        }
        self.dialogs_opened += 1;
        let text = match &dialog {
            SimpleDialog::Prompt(prompt) => prompt.current_value().to_owned(),
            SimpleDialog::Alert(_) | SimpleDialog::Confirm(_) => String::new(),
        };
        self.dialogs.push_back(OpenDialog { id, dialog, text });
    }

    /// Whether the document has opened so many dialogs that the user is offered to silence it.
    pub fn is_talkative(&self) -> bool {
        self.dialogs_opened > 1
    }

    /// The page does not need this answer any more.
    pub fn close_control(&mut self, id: EmbedderControlId) {
        self.dialogs.retain(|open| open.id != id);
        if self.popup.as_ref().is_some_and(|popup| popup.id() == id) {
            self.popup = None;
        }
    }

    /// Another document has taken the place of the one before it.
    pub fn document_changed(&mut self) {
        for open in self.dialogs.drain(..) {
            open.dialog.dismiss();
        }
        self.dialogs_opened = 0;
        self.dialogs_silenced = false;
        self.popup = None;
        self.notice = None;
        self.status = None;
        self.last_input = None;
    }

    /// Whether something else than the page takes the user's input.
    pub fn is_blocked(&self) -> bool {
        !self.dialogs.is_empty() || self.popup.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_click_opens_one_tab() {
        let mut tab = TabState::default();
        let now = Instant::now();
        assert!(!tab.take_popup_permission(now));
        tab.note_input(now);
        assert!(tab.take_popup_permission(now + Duration::from_secs(1)));
        assert!(!tab.take_popup_permission(now + Duration::from_secs(1)));
        tab.note_input(now);
        assert!(!tab.take_popup_permission(now + POPUP_PERIOD));
        tab.note_input(now);
        tab.document_changed();
        assert!(!tab.take_popup_permission(now));
    }

    #[test]
    fn the_console_is_bounded() {
        let mut tab = TabState::default();
        for line in 0..MAX_CONSOLE_LINES + 5 {
            tab.log(
                ConsoleLogLevel::Log,
                &format!("{line} {}", "x".repeat(10_000)),
            );
        }
        assert_eq!(tab.console.len(), MAX_CONSOLE_LINES);
        assert!(tab.console[0].text.starts_with("5 "));
        assert_eq!(tab.console[0].text.chars().count(), MAX_CONSOLE_LINE);
    }
}
