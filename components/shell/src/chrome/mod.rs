/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What the main process draws around a page: tabs, address bar, console, prompts, and the browser's own page of tokens.
//! Knows nothing of the window system, and of the engine only what is in a [`View`].

pub mod applets;
pub mod prompt;
pub mod tokens_page;

use std::collections::VecDeque;
use std::sync::Arc;

use egui::text::{CCursor, CCursorRange, LayoutJob};
use egui::text_edit::TextEditState;
use egui::{
    Align, Align2, Area, Button, Color32, CornerRadius, FontData, FontDefinitions, FontId, Frame,
    Id, Key, Layout, Margin, Order, Panel, Rect, Response, RichText, ScrollArea, Stroke,
    StrokeKind, TextEdit, TextFormat, TextStyle, Theme, Ui, WidgetInfo, WidgetType, vec2,
};
use token_traits::prompt::{PromptAnswer, PromptId, PromptRequest};

use self::prompt::PromptForm;
use self::tokens_page::TokensPage;
use crate::text::{HostText, MAX_TITLE_LENGTH, printable};

/// Height of everything above the page, in points. The window is as much higher than `--window-size` says.
pub const HEIGHT: f32 = TABS_HEIGHT + TOOLBAR_HEIGHT;

const TABS_HEIGHT: f32 = 36.0;
const TOOLBAR_HEIGHT: f32 = 42.0;

/// Longest URL that can be edited, in characters. Longer ones are shown cut, and are not loaded again from there.
const MAX_URL_LENGTH: usize = 8192;

/// Most characters of one message in the console.
pub const MAX_CONSOLE_LINE: usize = 2000;

/// Most messages that the console keeps for a tab.
pub const MAX_CONSOLE_LINES: usize = 500;

/// Names a tab.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TabId {
    /// A page, by the number of its webview.
    Page(u64),
    /// The browser's own page of tokens.
    Tokens,
}

/// A tab in the strip.
pub struct TabView {
    /// Its name.
    pub id: TabId,
    /// The page's title; whatever it says, it is never shown where origins are.
    pub title: String,
    /// Whether it loads.
    pub loading: bool,
}

/// How a page came here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Security {
    /// Over HTTPS, with a certificate that is trusted.
    Secure,
    /// Without encryption.
    Insecure,
    /// Over HTTPS, with a certificate that was not trusted, or not checked.
    Unverified,
    /// Not over the network.
    Local,
}

/// The page that is in sight.
pub struct PageView {
    /// Its URL.
    pub url: String,
    /// How it came here.
    pub security: Security,
    /// Whether it loads.
    pub loading: bool,
    /// Whether there is a page before it.
    pub can_go_back: bool,
    /// Whether there is a page after it.
    pub can_go_forward: bool,
    /// 1.0 is normal.
    pub zoom: f32,
    /// Where the link under the pointer leads.
    pub status: Option<String>,
    /// Something that the browser has to say about this page.
    pub notice: Option<String>,
}

/// A message in the console.
pub struct ConsoleLine {
    /// How important it is.
    pub level: log::Level,
    /// What it says, of whoever chose it.
    pub text: String,
}

/// Everything that is drawn.
pub struct View<'a> {
    /// All tabs, in their order.
    pub tabs: &'a [TabView],
    /// The tab that is in sight.
    pub active: TabId,
    /// Its page, if it shows one.
    pub page: Option<&'a PageView>,
    /// Its console.
    pub console: Option<&'a VecDeque<ConsoleLine>>,
    /// The prompt that it shows.
    pub prompt: Option<&'a PromptRequest>,
    /// Whether that can be answered by now.
    pub prompt_ready: bool,
    /// Knows registrable domains.
    pub is_site: fn(&str) -> bool,
}

/// What the user wants.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// To go where this leads: a URL or a host name, as it was typed.
    Load(String),
    /// To go back in the history.
    Back,
    /// To go forward in the history.
    Forward,
    /// To load the page again.
    Reload,
    /// To stop loading.
    Stop,
    /// To open an empty tab.
    NewTab,
    /// To close a tab.
    Close(TabId),
    /// To see a tab.
    Activate(TabId),
    /// To see the page in its normal size.
    ResetZoom,
    /// To answer a prompt.
    Answer(PromptId, PromptAnswer),
    /// Nothing, but the prompt has moved.
    PromptMoved,
    /// To empty the console.
    ClearConsole,
    /// To read no more of the notice.
    DismissNotice,
}

/// What drawing resulted in.
pub struct Output {
    /// What the user wants, in this order.
    pub actions: Vec<Action>,
    /// What is left for the page, in points. Empty when the tab shows none.
    pub page: Rect,
}

/// The state of what is drawn in one window.
pub struct Chrome {
    address: String,
    /// The URL that `address` was made of, unless the user edits it.
    address_of: Option<String>,
    editing: bool,
    console_open: bool,
    prompt: PromptForm,
    tokens: TokensPage,
}

impl Chrome {
    /// The state at the start.
    pub fn new(tokens: TokensPage) -> Self {
        Self {
            address: String::new(),
            address_of: None,
            editing: false,
            console_open: false,
            prompt: PromptForm::default(),
            tokens,
        }
    }

    /// Puts the cursor into the address bar. What is typed from now on goes there.
    pub fn focus_address(&mut self, ctx: &egui::Context) {
        ctx.memory_mut(|memory| memory.request_focus(address_id()));
    }

    /// Shows or hides the console.
    pub fn toggle_console(&mut self) {
        self.console_open = !self.console_open;
    }

    /// Draws everything but the page.
    pub fn show(&mut self, ui: &mut Ui, view: &View<'_>) -> Output {
        let mut actions = Vec::new();
        let bar = |ui: &Ui| {
            Frame::new()
                .fill(ui.visuals().panel_fill)
                .inner_margin(Margin::symmetric(6, 4))
        };
        Panel::top("tabs")
            .exact_size(TABS_HEIGHT)
            .resizable(false)
            .show_separator_line(false)
            .frame(bar(ui).fill(ui.visuals().faint_bg_color))
            .show_inside(ui, |ui| tab_strip(ui, view, &mut actions));
        Panel::top("toolbar")
            .exact_size(TOOLBAR_HEIGHT)
            .resizable(false)
            .frame(bar(ui))
            .show_inside(ui, |ui| self.toolbar(ui, view, &mut actions));
        if self.console_open && view.page.is_some() {
            Panel::bottom("console")
                .resizable(true)
                .default_size(180.0)
                .size_range(60.0..=(ui.available_height() - 80.0).max(60.0))
                .show_inside(ui, |ui| console(ui, view, &mut actions));
        }
        let mut page = ui.available_rect_before_wrap();
        match view.page {
            Some(shown) => overlays(ui.ctx(), page, shown, &mut actions),
            None => {
                if view.active == TabId::Tokens {
                    egui::CentralPanel::default()
                        .frame(Frame::central_panel(ui.style()).inner_margin(20))
                        .show_inside(ui, |ui| self.tokens.show(ui, view.is_site));
                }
                page = Rect::NOTHING;
            }
        }
        match view.prompt {
            Some(request) => {
                let context = prompt::Context {
                    ready: view.prompt_ready,
                    page_top: HEIGHT,
                    has_keyboard: !self.editing,
                    is_site: view.is_site,
                };
                let outcome = self.prompt.show(ui.ctx(), request, &context);
                if outcome.moved {
                    actions.push(Action::PromptMoved);
                } else if let Some(answer) = outcome.answer {
                    actions.push(Action::Answer(request.id, answer));
                }
            }
            None => self.prompt.clear(),
        }
        Output { actions, page }
    }

    fn toolbar(&mut self, ui: &mut Ui, view: &View<'_>, actions: &mut Vec<Action>) {
        let page = view.page;
        ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
            ui.spacing_mut().item_spacing.x = 4.0;
            let can_go_back = page.is_some_and(|page| page.can_go_back);
            if icon_button(ui, "⏴", "Back (Alt+Left)", can_go_back).clicked() {
                actions.push(Action::Back);
            }
            let can_go_forward = page.is_some_and(|page| page.can_go_forward);
            if icon_button(ui, "⏵", "Forward (Alt+Right)", can_go_forward).clicked() {
                actions.push(Action::Forward);
            }
            let loading = page.is_some_and(|page| page.loading);
            let (icon, name, action) = if loading {
                ("✖", "Stop loading", Action::Stop)
            } else {
                ("⟳", "Reload (Ctrl+R)", Action::Reload)
            };
            if icon_button(ui, icon, name, page.is_some()).clicked() {
                actions.push(action);
            }
            if let Some(page) = page {
                security(ui, page.security);
            }
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if icon_button(ui, "🔑", "Tokens and permissions (Ctrl+Shift+K)", true).clicked()
                {
                    actions.push(Action::Activate(TabId::Tokens));
                }
                if icon_button(ui, "☰", "Console (F12)", page.is_some()).clicked() {
                    self.toggle_console();
                }
                if let Some(page) = page
                    && (page.zoom - 1.0).abs() > 0.001
                {
                    let percent = (page.zoom * 100.0).round();
                    if ui
                        .button(format!("{percent} %"))
                        .on_hover_text("Normal size (Ctrl+0)")
                        .clicked()
                    {
                        actions.push(Action::ResetZoom);
                    }
                }
                ui.with_layout(
                    Layout::left_to_right(Align::Center).with_main_justify(true),
                    |ui| {
                        self.address_bar(ui, view, actions);
                    },
                );
            });
        });
    }

    fn address_bar(&mut self, ui: &mut Ui, view: &View<'_>, actions: &mut Vec<Action>) {
        let url = match view.active {
            TabId::Page(_) => view.page.map(|page| page.url.clone()).unwrap_or_default(),
            TabId::Tokens => "Tokens and permissions".to_owned(),
        };
        let shown = AddressText::of_url(&url, view.is_site);
        // Before the field takes what was typed together with the key that led here.
        if !self.editing && ui.memory(|memory| memory.has_focus(address_id())) {
            self.editing = true;
            self.address = if matches!(view.active, TabId::Tokens) || url == "about:blank" {
                String::new()
            } else {
                url.chars().take(MAX_URL_LENGTH).collect()
            };
            let mut state = TextEditState::load(ui.ctx(), address_id()).unwrap_or_default();
            let all =
                CCursorRange::two(CCursor::new(0), CCursor::new(self.address.chars().count()));
            state.cursor.set_char_range(Some(all));
            state.store(ui.ctx(), address_id());
        }
        // What the user types stays until it is loaded or given up.
        if !self.editing && self.address_of.as_ref() != Some(&url) {
            self.address = shown.to_line();
            self.address_of = Some(url.clone());
        }
        let editing = self.editing;
        let mut layouter = |ui: &Ui, text: &dyn egui::TextBuffer, _width: f32| {
            let job = if editing {
                LayoutJob::simple_singleline(
                    text.as_str().to_owned(),
                    FontId::proportional(14.0),
                    ui.visuals().strong_text_color(),
                )
            } else {
                shown.job(ui)
            };
            ui.fonts_mut(|fonts| fonts.layout_job(job))
        };
        let output = TextEdit::singleline(&mut self.address)
            .id(address_id())
            .hint_text("Address")
            .desired_width(f32::INFINITY)
            .margin(Margin::symmetric(8, 5))
            .layouter(&mut layouter)
            .show(ui);
        let response = output.response.response;
        response
            .widget_info(|| WidgetInfo::labeled(WidgetType::TextEdit, true, "Address (Ctrl+L)"));
        if self.editing && !response.has_focus() {
            let typed = std::mem::take(&mut self.address);
            self.editing = false;
            self.address_of = None;
            if ui.input(|input| input.key_pressed(Key::Enter)) && !typed.trim().is_empty() {
                actions.push(Action::Load(typed));
            }
        }
    }
}

fn address_id() -> Id {
    Id::new("address")
}

/// A URL as the address bar shows it.
struct AddressText {
    host: HostText,
    /// Path and query; or everything, where there is no host.
    rest: String,
}

impl AddressText {
    fn of_url(url: &str, is_site: fn(&str) -> bool) -> Self {
        let web = url.starts_with("https://") || url.starts_with("http://");
        if !web {
            return Self {
                host: HostText::default(),
                rest: printable(url, 300),
            };
        }
        let authority = url.find("://").map_or(0, |scheme| scheme + 3);
        let end = url[authority..]
            .find(['/', '?', '#'])
            .map_or(url.len(), |end| authority + end);
        let (origin, rest) = url.split_at(end);
        // The user name of a URL is the oldest way to show another host than its own.
        let origin = match origin[authority..].rfind('@') {
            Some(at) => format!("{}{}", &origin[..authority], &origin[authority + at + 1..]),
            None => origin.to_owned(),
        };
        Self {
            host: HostText::of_origin(&origin, 48, is_site),
            rest: match rest {
                "/" => String::new(),
                rest => printable(rest, 300),
            },
        }
    }

    fn to_line(&self) -> String {
        format!("{}{}", self.host.to_line(), self.rest)
    }

    fn job(&self, ui: &Ui) -> LayoutJob {
        let mut job = LayoutJob::default();
        let format = |color: Color32| TextFormat {
            font_id: FontId::proportional(14.0),
            color,
            ..TextFormat::default()
        };
        let (weak, strong) = (
            ui.visuals().weak_text_color(),
            ui.visuals().strong_text_color(),
        );
        job.append(&self.host.scheme, 0.0, format(weak));
        job.append(&self.host.before, 0.0, format(weak));
        job.append(&self.host.site, 0.0, format(strong));
        job.append(&self.host.port, 0.0, format(weak));
        job.append(&self.rest, 0.0, format(weak));
        job
    }
}

fn tab_strip(ui: &mut Ui, view: &View<'_>, actions: &mut Vec<Action>) {
    ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
        ui.spacing_mut().item_spacing.x = 3.0;
        let space = (ui.available_width() - 40.0).max(60.0);
        let count = f32::from(u16::try_from(view.tabs.len().max(1)).unwrap_or(u16::MAX));
        let width = (space / count - 3.0).clamp(72.0, 190.0);
        ScrollArea::horizontal()
            .max_width(space)
            .auto_shrink([true, false])
            .show(ui, |ui| {
                ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                    for tab in view.tabs {
                        one_tab(ui, tab, tab.id == view.active, width, actions);
                    }
                });
            });
        if icon_button(ui, "➕", "New tab (Ctrl+T)", true).clicked() {
            actions.push(Action::NewTab);
        }
    });
}

fn one_tab(ui: &mut Ui, tab: &TabView, active: bool, width: f32, actions: &mut Vec<Action>) {
    let title = printable(&tab.title, MAX_TITLE_LENGTH);
    let visuals = ui.visuals();
    let fill = if active {
        visuals.panel_fill
    } else {
        Color32::TRANSPARENT
    };
    let stroke = if active {
        visuals.widgets.noninteractive.bg_stroke
    } else {
        Stroke::NONE
    };
    Frame::new()
        .fill(fill)
        .stroke(stroke)
        .corner_radius(CornerRadius::same(6))
        .inner_margin(Margin::symmetric(4, 0))
        .show(ui, |ui| {
            ui.push_id(tab.id, |ui| {
                ui.set_width(width - 8.0);
                ui.spacing_mut().item_spacing.x = 2.0;
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    let close = ui.add(Button::new(RichText::new("✖").size(10.0)).frame(false));
                    focus_ring(ui, &close);
                    close.widget_info(|| {
                        WidgetInfo::labeled(WidgetType::Button, true, format!("Close tab {title}"))
                    });
                    if close.clicked() {
                        actions.push(Action::Close(tab.id));
                    }
                    ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                        if tab.loading {
                            ui.add(egui::Spinner::new().size(12.0));
                        }
                        let text = RichText::new(&title).size(13.0);
                        let text = if active { text.strong() } else { text };
                        let label = ui.add(
                            Button::new(text)
                                .truncate()
                                .frame(false)
                                .min_size(vec2(ui.available_width(), 24.0)),
                        );
                        focus_ring(ui, &label);
                        label.widget_info(|| {
                            WidgetInfo::selected(
                                WidgetType::SelectableLabel,
                                true,
                                active,
                                format!("Tab {title}"),
                            )
                        });
                        if label.clicked() {
                            actions.push(Action::Activate(tab.id));
                        }
                        if label.middle_clicked() {
                            actions.push(Action::Close(tab.id));
                        }
                    });
                });
            });
        });
}

/// Shows the focus of what has no frame of its own.
fn focus_ring(ui: &Ui, response: &Response) {
    if response.has_focus() {
        let stroke = ui.visuals().widgets.active.bg_stroke;
        let rect = response.rect.expand(1.0);
        ui.painter()
            .rect_stroke(rect, CornerRadius::same(4), stroke, StrokeKind::Inside);
    }
}

fn icon_button(ui: &mut Ui, icon: &str, name: &str, enabled: bool) -> Response {
    let button = Button::new(RichText::new(icon).size(16.0)).min_size(vec2(30.0, 28.0));
    let response = ui.add_enabled(enabled, button).on_hover_text(name);
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Button, enabled, name));
    response
}

fn security(ui: &mut Ui, security: Security) {
    let visuals = ui.visuals();
    let (text, color, explanation) = match security {
        Security::Secure => (
            "🔒",
            visuals.text_color(),
            "Secure: the connection is encrypted, and the server's certificate is trusted.",
        ),
        Security::Insecure => (
            "⚠ Not secure",
            visuals.warn_fg_color,
            "The connection is not encrypted. Others can read and change what this page sends and gets.",
        ),
        Security::Unverified => (
            "⚠ Not secure",
            visuals.error_fg_color,
            "The server's certificate is not trusted, or was not checked. This may be another server.",
        ),
        Security::Local => (
            "🗋",
            visuals.weak_text_color(),
            "This page did not come from the network.",
        ),
    };
    let label = ui
        .label(RichText::new(text).color(color))
        .on_hover_text(explanation);
    label.widget_info(|| WidgetInfo::labeled(WidgetType::Label, true, explanation));
}

fn console(ui: &mut Ui, view: &View<'_>, actions: &mut Vec<Action>) {
    ui.horizontal(|ui| {
        ui.strong("Console");
        if ui.button("Clear").clicked() {
            actions.push(Action::ClearConsole);
        }
    });
    ScrollArea::both()
        .auto_shrink(false)
        .stick_to_bottom(true)
        .show(ui, |ui| {
            let lines = view.console.into_iter().flatten();
            let mut any = false;
            for line in lines {
                any = true;
                let color = match line.level {
                    log::Level::Error => ui.visuals().error_fg_color,
                    log::Level::Warn => ui.visuals().warn_fg_color,
                    _ => ui.visuals().text_color(),
                };
                ui.label(RichText::new(&line.text).monospace().color(color));
            }
            if !any {
                ui.weak("This page has said nothing.");
            }
        });
}

/// What is drawn over the page, at its lower edge.
fn overlays(ctx: &egui::Context, page: Rect, shown: &PageView, actions: &mut Vec<Action>) {
    let strip = |name: &str| {
        Area::new(Id::new(name))
            .order(Order::Middle)
            .pivot(Align2::LEFT_BOTTOM)
            .fixed_pos(page.left_bottom())
            .fade_in(false)
            .movable(false)
    };
    if let Some(notice) = &shown.notice {
        strip("notice").show(ctx, |ui| {
            Frame::popup(ui.style()).corner_radius(0).show(ui, |ui| {
                ui.set_width((page.width() - 16.0).max(40.0));
                ui.horizontal_wrapped(|ui| {
                    ui.label(notice);
                    if ui.button("Close").clicked() {
                        actions.push(Action::DismissNotice);
                    }
                });
            });
        });
    } else if let Some(status) = &shown.status {
        strip("status").interactable(false).show(ctx, |ui| {
            Frame::popup(ui.style())
                .corner_radius(0)
                .inner_margin(4)
                .show(ui, |ui| {
                    ui.set_max_width((page.width() * 0.6).max(40.0));
                    ui.label(RichText::new(printable(status, 120)).size(12.0));
                });
        });
    }
}

/// Fonts for what the toolkit's own ones do not have, where the system keeps them. Without them such characters are boxes.
const FALLBACK_FONTS: &[&str] = &[
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf",
    "/usr/share/fonts/noto/NotoSans-Regular.ttf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
];

fn fonts() -> FontDefinitions {
    let mut fonts = FontDefinitions::default();
    for path in FALLBACK_FONTS {
        let Ok(font) = std::fs::read(path) else {
            continue;
        };
        let name = (*path).to_owned();
        fonts
            .font_data
            .insert(name.clone(), Arc::new(FontData::from_owned(font)));
        for family in fonts.families.values_mut() {
            family.push(name.clone());
        }
    }
    fonts
}

/// Text that is larger and has more contrast than the toolkit's own, and a focus that can be seen.
pub fn set_style(ctx: &egui::Context) {
    ctx.set_fonts(fonts());
    ctx.options_mut(|options| options.fallback_theme = Theme::Light);
    for theme in [Theme::Light, Theme::Dark] {
        ctx.style_mut_of(theme, |style| {
            for (text_style, font) in &mut style.text_styles {
                font.size = match text_style {
                    TextStyle::Small => 12.0,
                    TextStyle::Heading => 24.0,
                    _ => 15.0,
                };
            }
            style.spacing.button_padding = vec2(8.0, 4.0);
            style.spacing.icon_width = 16.0;
            style.interaction.selectable_labels = false;
            let (text, weak, focus) = match theme {
                Theme::Light => (
                    Color32::from_gray(30),
                    Color32::from_gray(95),
                    Color32::from_rgb(0x0B, 0x57, 0xD0),
                ),
                Theme::Dark => (
                    Color32::from_gray(225),
                    Color32::from_gray(165),
                    Color32::from_rgb(0x8A, 0xB4, 0xF8),
                ),
            };
            let widgets = &mut style.visuals.widgets;
            widgets.noninteractive.fg_stroke.color = text;
            widgets.inactive.fg_stroke.color = text;
            // Boxes and circles are to be seen on any ground.
            widgets.inactive.bg_stroke = Stroke::new(1.0, weak);
            widgets.active.bg_stroke = Stroke::new(2.0, focus);
            widgets.active.bg_fill = widgets.hovered.bg_fill;
            widgets.active.weak_bg_fill = widgets.hovered.weak_bg_fill;
            widgets.active.fg_stroke.color = text;
            style.visuals.weak_text_color = Some(weak);
            style.visuals.disabled_alpha = 0.4;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_site(host: &str) -> bool {
        host == "bank.example" || host == "evil.example"
    }

    fn line(url: &str) -> String {
        AddressText::of_url(url, is_site).to_line()
    }

    #[test]
    fn addresses() {
        assert_eq!(
            line("https://www.bank.example/"),
            "https://www.bank.example"
        );
        assert_eq!(
            line("https://bank.example/a?b#c"),
            "https://bank.example/a?b#c"
        );
        assert_eq!(line("about:blank"), "about:blank");
        assert_eq!(line("data:text/html,x"), "data:text/html,x");
        assert_eq!(
            line("https://bank.example@evil.example/"),
            "https://evil.example"
        );
        let site = AddressText::of_url(
            "https://bank.example:443@evil.example:8443/https://bank.example",
            is_site,
        );
        assert_eq!(
            (site.host.site.as_str(), site.host.port.as_str()),
            ("evil.example", ":8443")
        );
        let long = format!(
            "https://{}.evil.example/",
            "bank.example.".repeat(15).trim_end_matches('.')
        );
        let long = AddressText::of_url(&long, is_site);
        assert_eq!(long.host.site, "evil.example");
        assert!(long.to_line().chars().count() < 64);
    }
}
