/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser's own page of tokens: the readers, who may use what, and what happened. The main process draws it; no
//! page can, and none can reach it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use egui::{Align, Button, Layout, RichText, ScrollArea, Ui};
use token_traits::Origin;
use token_traits::prompt::{
    AuditEntry, GrantId, GrantInfo, GrantKind, MAX_NAME_LENGTH, Overview, PromptReader,
};

use super::applets;
use super::prompt::{element_type, origin_line};
use crate::text::printable;

/// How often the page asks for what it shows while it is in sight.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// After which time the page says that there is no answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most rows of one list.
const MAX_ROWS: usize = 500;

/// Most characters of what keeps grants from being remembered.
const MAX_PROBLEM_LENGTH: usize = 300;

/// Takes an overview, once, on any thread.
pub type OverviewCallback = Box<dyn FnOnce(Overview) + Send>;

/// Where the page of tokens gets what it shows. No method blocks.
pub trait TokenOverview: Send + Sync {
    /// Asks for everything. A callback that is dropped means that there is no answer.
    fn request(&self, callback: OverviewCallback);
    /// Ends a grant, or deletes a rule of the device. What was already ended is no error.
    fn revoke(&self, grant: GrantId);
}

/// The page's state.
pub struct TokensPage {
    source: Option<Arc<dyn TokenOverview>>,
    wake: Arc<dyn Fn() + Send + Sync>,
    arrived: Arc<Mutex<Option<Overview>>>,
    shown: Option<Overview>,
    /// When the answer that is waited for was asked for.
    asked: Option<Instant>,
    /// When to ask again.
    next: Option<Instant>,
}

impl TokensPage {
    /// A page that has asked for nothing yet. `wake` is called on any thread when an answer has come.
    pub fn new(source: Option<Arc<dyn TokenOverview>>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self {
            source,
            wake,
            arrived: Arc::default(),
            shown: None,
            asked: None,
            next: None,
        }
    }

    fn refresh(&mut self, now: Instant) {
        let Some(source) = &self.source else { return };
        self.asked = Some(now);
        self.next = Some(now + REFRESH_INTERVAL);
        let (arrived, wake) = (self.arrived.clone(), self.wake.clone());
        source.request(Box::new(move |overview| {
            if let Ok(mut arrived) = arrived.lock() {
                *arrived = Some(overview);
            }
            wake();
        }));
    }

    /// Draws the page, which is in sight.
    pub fn show(&mut self, ui: &mut Ui, is_site: fn(&str) -> bool) {
        let now = Instant::now();
        if let Ok(mut arrived) = self.arrived.lock()
            && let Some(overview) = arrived.take()
        {
            self.shown = Some(overview);
            self.asked = None;
        }
        if self.next.is_none_or(|next| now >= next) {
            self.refresh(now);
        }
        if self.source.is_some() {
            ui.ctx().request_repaint_after(REFRESH_INTERVAL);
        }

        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            ui.set_max_width(ui.available_width().min(900.0));
            ui.heading("Tokens");
            ui.label("What sites may do with your smart cards and security tokens, and what they did. This page is a part of the browser.");
            let late = self.asked.is_some_and(|asked| now.saturating_duration_since(asked) > PATIENCE);
            match &self.shown {
                _ if self.source.is_none() => {
                    ui.add_space(12.0);
                    ui.label("This build of the browser has no token broker.");
                }
                None if late => {
                    ui.add_space(12.0);
                    ui.label("The token broker does not answer.");
                }
                None => {
                    ui.add_space(12.0);
                    ui.horizontal(|ui| {
                        ui.spinner();
                        ui.label("Looking for readers and grants…");
                    });
                }
                Some(overview) => {
                    let revoked = show_overview(ui, overview, SystemTime::now(), is_site);
                    if let Some(grant) = revoked
                        && let Some(source) = &self.source
                    {
                        source.revoke(grant);
                        self.refresh(now);
                    }
                }
            }
        });
    }
}

fn show_overview(
    ui: &mut Ui,
    overview: &Overview,
    now: SystemTime,
    is_site: fn(&str) -> bool,
) -> Option<GrantId> {
    section(ui, "Readers");
    if overview.readers.is_empty() {
        empty(ui, "No reader is connected.");
    }
    for reader in overview.readers.iter().take(MAX_ROWS) {
        reader_row(ui, reader);
    }

    section(ui, "Grants and rules");
    if let Some(problem) = &overview.problem {
        let color = ui.visuals().error_fg_color;
        ui.label(RichText::new(printable(problem, MAX_PROBLEM_LENGTH)).color(color));
    }
    if overview.grants.is_empty() {
        empty(ui, "No site may use a reader or an application on a card.");
    }
    let mut revoked = None;
    for grant in overview.grants.iter().take(MAX_ROWS) {
        if grant_row(ui, grant, now, is_site) {
            revoked = grant.id;
        }
    }
    left_out(ui, overview.grants.len());

    section(ui, "Latest decisions");
    if overview.audit.is_empty() {
        empty(ui, "Nothing has happened yet.");
    } else {
        audit_log(ui, &overview.audit, now, is_site);
    }
    revoked
}

fn section(ui: &mut Ui, title: &str) {
    ui.add_space(18.0);
    ui.label(RichText::new(title).size(17.0).strong());
    ui.separator();
}

fn empty(ui: &mut Ui, text: &str) {
    ui.label(RichText::new(text).weak());
}

fn left_out(ui: &mut Ui, length: usize) {
    if length > MAX_ROWS {
        empty(ui, &format!("and {} more", length - MAX_ROWS));
    }
}

fn name_or(name: &str, otherwise: &str) -> String {
    let name = printable(name, MAX_NAME_LENGTH);
    if name.is_empty() {
        otherwise.to_owned()
    } else {
        name
    }
}

fn reader_row(ui: &mut Ui, reader: &PromptReader) {
    let presence = if reader.present { "ready" } else { "empty" };
    ui.label(name_or(&reader.name, "Reader without a name"));
    ui.label(RichText::new(format!("{}, {presence}", element_type(reader.element_type))).weak());
    ui.add_space(4.0);
}

fn grant_row(ui: &mut Ui, grant: &GrantInfo, now: SystemTime, is_site: fn(&str) -> bool) -> bool {
    let mut revoke = false;
    let who = match &grant.origin {
        Some(origin) => origin.as_str().to_owned(),
        None => "Every site".to_owned(),
    };
    ui.horizontal_top(|ui| {
        let width = (ui.available_width() - 110.0).max(120.0);
        ui.vertical(|ui| {
            ui.set_width(width);
            match &grant.origin {
                Some(origin) => {
                    origin_line(ui, origin, is_site, 15.0);
                }
                None => {
                    ui.strong("Every site");
                }
            }
            if let Some(top_level) = &grant.top_level_origin
                && Some(top_level) != grant.origin.as_ref()
            {
                within(ui, top_level, is_site);
            }
            ui.label(what(&grant.what));
            ui.label(RichText::new(times(grant, now)).weak());
        });
        ui.with_layout(Layout::left_to_right(Align::Min), |ui| match grant.id {
            Some(_) => {
                let button = ui.add(Button::new("Revoke").min_size(egui::vec2(90.0, 28.0)));
                // What a screen reader says: the buttons differ.
                button.widget_info(|| {
                    egui::WidgetInfo::labeled(
                        egui::WidgetType::Button,
                        true,
                        format!("Revoke: {who}, {}", what(&grant.what)),
                    )
                });
                revoke = button.clicked();
            }
            None => {
                let by = match grant.what {
                    GrantKind::Automation { .. } => "Set by\nautomation",
                    GrantKind::Reader { .. }
                    | GrantKind::Token { .. }
                    | GrantKind::Key { .. }
                    | GrantKind::Applet { .. } => "Set by the\nadministrator",
                };
                ui.label(RichText::new(by).weak());
            }
        });
    });
    ui.separator();
    revoke
}

fn within(ui: &mut Ui, top_level: &Origin, is_site: fn(&str) -> bool) {
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        ui.label("in pages of ");
        origin_line(ui, top_level, is_site, 14.0);
    });
}

fn what(kind: &GrantKind) -> String {
    match kind {
        GrantKind::Reader { reader } => format!(
            "may use the reader “{}”",
            printable(reader, MAX_NAME_LENGTH)
        ),
        GrantKind::Automation { allowed: true } => {
            "may use every reader, and every application that a prompt could allow".to_owned()
        }
        GrantKind::Automation { allowed: false } => "may not use any reader".to_owned(),
        GrantKind::Token { token } => format!(
            "may keep keys in the token “{}”",
            printable(token, MAX_NAME_LENGTH)
        ),
        GrantKind::Key { name, token } => format!(
            "may use the key “{}” in “{}”",
            printable(name, MAX_NAME_LENGTH),
            printable(token, MAX_NAME_LENGTH)
        ),
        GrantKind::Applet { applet, allowed } => {
            let verb = if *allowed { "may use" } else { "may not use" };
            match applet {
                Some(applet) if applet.is_empty() => format!(
                    "{verb} the application that a card selects by itself, on cards without rules of their own"
                ),
                Some(applet) => format!(
                    "{verb} {} ({}) on cards without rules of their own",
                    applets::name(applet).unwrap_or("an application"),
                    applets::hex(applet)
                ),
                None => format!("{verb} any application on cards without rules of their own"),
            }
        }
    }
}

fn times(grant: &GrantInfo, now: SystemTime) -> String {
    let mut parts = vec![
        match (&grant.what, grant.remembered) {
            (GrantKind::Automation { .. }, _) => "until the browser ends",
            (_, true) => "remembered",
            (_, false) => "until the card is removed or the site's last page is closed",
        }
        .to_owned(),
    ];
    if let Some(created) = grant.created {
        parts.push(format!("given {}", ago(created, now)));
    }
    parts.push(match grant.last_used {
        Some(last_used) => format!("last used {}", ago(last_used, now)),
        None => "never used".to_owned(),
    });
    parts.join(" · ")
}

fn audit_log(ui: &mut Ui, audit: &[AuditEntry], now: SystemTime, is_site: fn(&str) -> bool) {
    for entry in audit.iter().take(MAX_ROWS) {
        ui.horizontal_wrapped(|ui| {
            origin_line(ui, &entry.origin, is_site, 15.0);
            ui.label(RichText::new(ago(entry.time, now)).weak());
        });
        let mut details = vec![
            printable(&entry.decision, MAX_NAME_LENGTH),
            printable(&entry.reader, MAX_NAME_LENGTH),
        ];
        if let Some(applet) = &entry.applet {
            details.push(match applets::name(applet) {
                Some(name) => format!("{name} ({})", applets::hex(applet)),
                None => applets::hex(applet),
            });
        }
        details.retain(|detail| !detail.is_empty());
        ui.label(details.join(" · "));
        ui.separator();
    }
    left_out(ui, audit.len());
}

/// How long ago something was, roughly.
fn ago(time: SystemTime, now: SystemTime) -> String {
    // Clocks are set back; what seems to be in the future has only just happened.
    let seconds = now.duration_since(time).unwrap_or_default().as_secs();
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        86_400..31_557_600 => (seconds / 86_400, "day"),
        _ => (seconds / 31_557_600, "year"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Source {
        overview: Mutex<Overview>,
        revoked: Mutex<Vec<GrantId>>,
    }

    impl TokenOverview for Source {
        fn request(&self, callback: OverviewCallback) {
            callback(self.overview.lock().unwrap().clone());
        }

        fn revoke(&self, grant: GrantId) {
            self.revoked.lock().unwrap().push(grant);
            self.overview
                .lock()
                .unwrap()
                .grants
                .retain(|other| other.id != Some(grant));
        }
    }

    fn is_site(host: &str) -> bool {
        host == "bank.example"
    }

    /// Draws the page and gives what a screen reader gets.
    fn draw(
        ctx: &egui::Context,
        page: &mut TokensPage,
        events: Vec<egui::Event>,
    ) -> Vec<(egui::accesskit::NodeId, String)> {
        let input = egui::RawInput {
            events,
            ..egui::RawInput::default()
        };
        let output = ctx.run_ui(input, |ui| page.show(ui, is_site));
        let update = output.platform_output.accesskit_update.unwrap();
        update
            .nodes
            .iter()
            .filter_map(|(id, node)| Some((*id, node.label().or(node.value())?.to_owned())))
            .collect()
    }

    #[test]
    fn grants_are_listed_and_revoked() {
        let origin = Origin::new("https://www.bank.example").unwrap();
        let grant = |id, reader: &str| GrantInfo {
            id,
            origin: Some(origin.clone()),
            top_level_origin: Some(origin.clone()),
            what: GrantKind::Reader {
                reader: reader.to_owned(),
            },
            remembered: true,
            created: None,
            last_used: None,
        };
        let hostile = format!("\u{202E}{}", "x".repeat(10_000));
        let source = Arc::new(Source::default());
        source.overview.lock().unwrap().grants = vec![
            grant(Some(GrantId(7)), &hostile),
            grant(None, "by the administrator"),
        ];
        let ctx = egui::Context::default();
        ctx.enable_accesskit();
        let mut page = TokensPage::new(Some(source.clone()), Arc::new(|| {}));
        draw(&ctx, &mut page, Vec::new());
        let texts = draw(&ctx, &mut page, Vec::new());
        assert!(
            texts
                .iter()
                .all(|(_, text)| text.chars().count() < 400 && !text.contains('\u{202E}'))
        );
        let revoke: Vec<_> = texts
            .iter()
            .filter(|(_, text)| text.starts_with("Revoke: https://www.bank.example"))
            .collect();
        let [(button, _)] = revoke.as_slice() else {
            panic!("{texts:?}");
        };
        let click = egui::Event::AccessKitActionRequest(egui::accesskit::ActionRequest {
            action: egui::accesskit::Action::Click,
            target_tree: egui::accesskit::TreeId::ROOT,
            target_node: *button,
            data: None,
        });
        draw(&ctx, &mut page, vec![click]);
        assert_eq!(*source.revoked.lock().unwrap(), [GrantId(7)]);
        let texts = draw(&ctx, &mut page, Vec::new());
        assert!(!texts.iter().any(|(_, text)| text.starts_with("Revoke")));
    }

    #[test]
    fn nothing_to_show_is_said() {
        let ctx = egui::Context::default();
        ctx.enable_accesskit();
        let says = |page: &mut TokensPage, wanted: &str| {
            let texts = draw(&ctx, page, Vec::new());
            assert!(
                texts.iter().any(|(_, text)| text.contains(wanted)),
                "{texts:?}"
            );
        };
        let wake = || -> Arc<dyn Fn() + Send + Sync> { Arc::new(|| {}) };
        let mut page = TokensPage::new(None, wake());
        says(&mut page, "no token broker");
        let mut page = TokensPage::new(Some(Arc::new(Source::default())), wake());
        // The answer that has come is seen the next time.
        draw(&ctx, &mut page, Vec::new());
        says(&mut page, "No reader is connected.");
        says(&mut page, "No site may use");
        says(&mut page, "Nothing has happened yet.");
    }

    #[test]
    fn what_automation_has_set_and_what_goes_wrong_is_said() {
        let source = Arc::new(Source::default());
        let grant = |allowed| GrantInfo {
            id: None,
            origin: Origin::new("https://www.bank.example"),
            top_level_origin: Origin::new("https://shop.example"),
            what: GrantKind::Automation { allowed },
            remembered: false,
            created: None,
            last_used: None,
        };
        *source.overview.lock().unwrap() = Overview {
            grants: vec![grant(true), grant(false)],
            problem: Some("The disk is full.".into()),
            ..Overview::default()
        };
        let ctx = egui::Context::default();
        ctx.enable_accesskit();
        let mut page = TokensPage::new(Some(source), Arc::new(|| {}));
        draw(&ctx, &mut page, Vec::new());
        let texts = draw(&ctx, &mut page, Vec::new());
        for wanted in [
            "The disk is full.",
            "in pages of ",
            "may use every reader",
            "may not use any reader",
            "until the browser ends",
            "Set by\nautomation",
        ] {
            assert!(
                texts.iter().any(|(_, text)| text.contains(wanted)),
                "{wanted} is missing in {texts:?}"
            );
        }
        assert!(!texts.iter().any(|(_, text)| text.starts_with("Revoke")));
    }

    #[test]
    fn times_in_words() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for (seconds, expected) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7_200, "2 hours ago"),
            (86_400, "1 day ago"),
            (86_400 * 364, "364 days ago"),
            (86_400 * 1_000, "2 years ago"),
        ] {
            assert_eq!(ago(now - Duration::from_secs(seconds), now), expected);
        }
        assert_eq!(ago(now + Duration::from_secs(5), now), "just now");
    }
}
