/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A prompt, drawn over toolbar and page. Which answers count, and when, is decided in `prompts`.

use egui::accesskit::Role;
use egui::text::LayoutJob;
use egui::{
    Align, Area, Button, Color32, CornerRadius, Event, EventFilter, FontId, Frame, Id, Key, Layout,
    Order, Rect, Response, ScrollArea, Sense, Stroke, TextFormat, Ui, Vec2, pos2, vec2,
};
use token_traits::Origin;
use token_traits::identity::MAX_ORIGIN_LENGTH;
use token_traits::keys::Protection;
use token_traits::port::ElementType;
use token_traits::prompt::{
    MAX_NAME_LENGTH, Pin, PromptAnswer, PromptReader, PromptRequest, PromptToken, Question,
};
use zeroize::Zeroizing;

use super::applets;
use crate::text::{HostText, MAX_HOST_LENGTH, printable};

/// Width of a prompt, in points, where the window is wide enough.
const WIDTH: f32 = 460.0;

/// A window that is smaller than this, in points, cannot show a prompt whole: then it can only be refused.
const LEAST_SIZE: Vec2 = vec2(300.0, 300.0);

/// Longest PIN that can be typed, in bytes. The buffer is never made larger, so that no copies stay behind.
const PIN_CAPACITY: usize = 256;

/// How far over the edge between toolbar and page a prompt reaches, in points. No page can draw there.
const OVERLAP: f32 = 14.0;

/// What is drawn, besides the question itself.
pub struct Context {
    /// Whether answers count by now.
    pub ready: bool,
    /// Whether keys that need no focus are for the prompt: not while the user edits the address.
    pub has_keyboard: bool,
    /// Where the page starts, in points from the window's top.
    pub page_top: f32,
    /// Knows registrable domains.
    pub is_site: fn(&str) -> bool,
}

/// What the user did.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// The answer.
    pub answer: Option<PromptAnswer>,
    /// Something that can be clicked is not where it was.
    pub moved: bool,
}

/// What the user has chosen and typed in the prompt that is shown.
#[derive(Default)]
pub struct PromptForm {
    shown: Option<PromptRequest>,
    /// Which of the readers, tokens or keys.
    chosen: Option<usize>,
    remember: bool,
    pin: Zeroizing<String>,
    /// Not all of the question is in sight.
    is_cut: bool,
    /// A button of the mouse went down before answers counted: its release is no answer either.
    pressed_early: bool,
    /// Where the buttons were.
    buttons: Option<Rect>,
}

impl PromptForm {
    /// No prompt is shown: forgets everything that was typed.
    pub fn clear(&mut self) {
        if self.shown.is_some() {
            *self = Self::default();
        }
    }

    /// Draws `request` and takes the user's input.
    pub fn show(
        &mut self,
        ctx: &egui::Context,
        request: &PromptRequest,
        context: &Context,
    ) -> Outcome {
        // A question may change while it is shown. What was chosen may mean something else then.
        let is_new = self.shown.as_ref() != Some(request);
        if is_new {
            *self = Self {
                shown: Some(request.clone()),
                // Several are a choice that the user makes.
                chosen: (choices(&request.question) == Some(1)).then_some(0),
                pin: Zeroizing::new(String::with_capacity(PIN_CAPACITY)),
                ..Self::default()
            };
        }
        let window = ctx.content_rect();
        let fits = window.width() >= LEAST_SIZE.x && window.height() >= LEAST_SIZE.y;
        let top = if fits {
            (context.page_top - OVERLAP).max(0.0)
        } else {
            0.0
        };
        let width = WIDTH.min(window.width() - 16.0).max(80.0);
        let space = (window.height() - top - 8.0).max(40.0);

        let mut outcome = Outcome::default();
        let id = Id::new("prompt");
        let response = Area::new(id)
            .order(Order::Foreground)
            .fixed_pos(pos2(8.0, top))
            .constrain(false)
            .movable(false)
            .fade_in(false)
            .show(ctx, |ui| {
                let style = ui.style();
                let accent = style.visuals.selection.bg_fill;
                Frame::popup(style)
                    .stroke(Stroke::new(2.0, accent))
                    .corner_radius(CornerRadius::same(8))
                    .inner_margin(14)
                    .show(ui, |ui| {
                        name_dialog(ui, Role::AlertDialog, title(&request.question));
                        ui.set_width(width - 32.0);
                        ui.spacing_mut().item_spacing.y = 8.0;
                        if fits {
                            self.whole(ui, request, context, space, is_new, &mut outcome);
                        } else {
                            self.too_small(ui, context, is_new, &mut outcome);
                        }
                    });
            });
        // So that a click beside the buttons is not one on the toolbar below.
        ctx.move_to_top(response.response.layer_id);

        let pressed = ctx.input(|input| input.pointer.any_down());
        if pressed && !context.ready {
            self.pressed_early = true;
        }
        if self.pressed_early {
            outcome.answer = None;
            self.pressed_early = pressed;
        }
        if !context.ready {
            outcome.answer = None;
        }
        outcome
    }

    fn too_small(&mut self, ui: &mut Ui, context: &Context, is_new: bool, outcome: &mut Outcome) {
        ui.label("A site asks for something. Enlarge the window to see what.");
        let refuse = ui.add(Button::new("Don't allow"));
        self.after_buttons(&refuse, refuse.rect, is_new, outcome);
        if refuse.clicked() || (context.has_keyboard && escape(ui)) {
            outcome.answer = Some(PromptAnswer::Refused);
        }
    }

    fn whole(
        &mut self,
        ui: &mut Ui,
        request: &PromptRequest,
        context: &Context,
        space: f32,
        is_new: bool,
        outcome: &mut Outcome,
    ) {
        origin_line(ui, &request.origin, context.is_site, 17.0);
        let purpose = match &request.question {
            Question::ChooseReader { .. } => "wants to use a smart card or security token.",
            Question::UseApplet { .. } => "wants to use an application on a card.",
            Question::ChooseToken { .. } => "wants to keep keys in a smart card or security token.",
            Question::ChooseKey { .. } => "wants to use a key in a smart card or security token.",
            Question::ShareKey { .. } => "wants other sites to use a key that it makes.",
            Question::EnterPin { .. } => "asks for the PIN of a token.",
        };
        ui.label(purpose);
        if request.top_level_origin != request.origin {
            ui.label("It is part of a page of another site:");
            origin_line(ui, &request.top_level_origin, context.is_site, 15.0);
        }
        ui.separator();

        // The origin above and the buttons below stay in sight; what is between them scrolls where it must.
        let can_remember = match &request.question {
            Question::UseApplet { .. } => true,
            Question::ShareKey { .. } | Question::EnterPin { .. } => false,
            question => choices(question) != Some(0),
        };
        let footer = if can_remember { 108.0 } else { 56.0 };
        let hint = if self.is_cut { 24.0 } else { 0.0 };
        let height = (space - ui.min_rect().height() - footer - 36.0).max(48.0);
        let body = ScrollArea::vertical()
            .max_height((height - hint).max(48.0))
            .auto_shrink([false, true])
            .show(ui, |ui| self.question(ui, request));
        // A list may be longer than what can be shown. What allowing means must be in sight.
        self.is_cut = choices(&request.question).is_none() && body.content_size.y > height + 1.0;

        if can_remember {
            ui.checkbox(&mut self.remember, "Remember this decision");
            ui.weak(
                "Otherwise it ends when the card is removed or the site's last page is closed.",
            );
        }
        if self.is_cut {
            warning(ui, "Enlarge the window to see everything.");
        } else {
            ui.add_space(2.0);
        }
        let answer = self
            .positive_answer(&request.question)
            .filter(|_| !self.is_cut);
        // Laid out from the left, so that Tab reaches refusing first.
        let (refuse, allow) = ui
            .with_layout(Layout::left_to_right(Align::Center), |ui| {
                if !context.ready {
                    ui.multiply_opacity(0.55);
                }
                let size = vec2((ui.available_width() - 10.0) / 2.0, 32.0);
                let refuse = ui.add(Button::new("Don't allow").min_size(size));
                // It can be reached with Tab even if there is nothing to allow: the next place would be in the toolbar, where a
                // key that is meant for this prompt would close the tab.
                if answer.is_none() {
                    ui.multiply_opacity(0.55);
                }
                let allow = ui.add(Button::new("Allow").min_size(size));
                allow.widget_info(|| {
                    egui::WidgetInfo::labeled(egui::WidgetType::Button, answer.is_some(), "Allow")
                });
                (refuse, allow)
            })
            .inner;
        self.after_buttons(&refuse, refuse.rect.union(allow.rect), is_new, outcome);
        let typed_enter = matches!(request.question, Question::EnterPin { .. })
            && ui.memory(|memory| memory.has_focus(pin_id()))
            && ui.input(|input| input.key_pressed(Key::Enter));
        if refuse.clicked() || (context.has_keyboard && escape(ui)) {
            outcome.answer = Some(PromptAnswer::Refused);
        } else if allow.clicked() || typed_enter {
            outcome.answer = answer;
        }
    }

    fn after_buttons(
        &mut self,
        refuse: &Response,
        buttons: Rect,
        is_new: bool,
        outcome: &mut Outcome,
    ) {
        if is_new {
            refuse.request_focus();
        }
        let before = self.buttons.replace(buttons);
        outcome.moved = before.is_some_and(|before| {
            (before.min - buttons.min).length() > 0.5 || (before.max - buttons.max).length() > 0.5
        });
    }

    fn question(&mut self, ui: &mut Ui, request: &PromptRequest) {
        match &request.question {
            Question::ChooseReader { readers } if readers.is_empty() => {
                ui.strong("No reader or token is connected.");
                ui.label("Connect one to choose it here.");
            }
            Question::ChooseReader { readers } => {
                ui.label("It will see the reader and the card in it, and can use those applications on the card that the card's own rules allow it to use, or that you do.");
                ui.strong("Which reader may it use?");
                for (index, reader) in readers.iter().enumerate() {
                    self.reader_row(ui, index, reader);
                }
            }
            Question::UseApplet { reader, applet } => {
                match applet {
                    Some(applet) => {
                        ui.strong(applets::name(applet).unwrap_or("Unknown application"));
                        ui.monospace(applets::hex(applet));
                    }
                    None => {
                        ui.strong("An application that the card does not name");
                    }
                }
                ui.label(
                    "This card has no access rules of its own. If you allow this, the site can send any command to the application: it can read what is stored there, and change or delete it.",
                );
                ui.label(format!(
                    "The card is in “{}”.",
                    printable(reader, MAX_NAME_LENGTH)
                ));
            }
            Question::ChooseToken { tokens } if tokens.is_empty() => {
                ui.strong("No token that keeps keys is connected.");
                ui.label("Connect one to choose it here.");
            }
            Question::ChooseToken { tokens } => {
                ui.label("It can make keys in the token, use and delete those, and see the token whenever it is connected. It does not see other sites' keys there.");
                ui.strong("Which token may it use?");
                for (index, token) in tokens.iter().enumerate() {
                    let name = name_or(&token.label, "Token without a name");
                    self.row(ui, index, format!("{name}\n{}", place(token)));
                }
            }
            Question::ChooseKey { keys } if keys.is_empty() => {
                ui.strong("No token that is connected has such a key.");
                ui.label("Connect the one that has it to choose it here.");
            }
            Question::ChooseKey { keys } => {
                ui.label("It can sign and decrypt with the key, and sees its certificate, which may name you. The key stays in the token.");
                ui.strong("Which key may it use?");
                for (index, key) in keys.iter().enumerate() {
                    let name = name_or(&key.name, "Key without a name");
                    let certificate = key.certificate.as_ref().map_or_else(
                        || "no certificate".to_owned(),
                        |certificate| {
                            format!(
                                "for {}, by {}, until {}",
                                printable(&certificate.subject, MAX_NAME_LENGTH),
                                printable(&certificate.issuer, MAX_NAME_LENGTH),
                                printable(&certificate.expires, 10),
                            )
                        },
                    );
                    let token = name_or(&key.token.label, "Token without a name");
                    let place = place(&key.token);
                    self.row(
                        ui,
                        index,
                        format!("{name}\n{certificate}\nin {token}, {place}"),
                    );
                }
            }
            Question::ShareKey {
                token,
                name,
                origins,
            } => {
                ui.label(format!(
                    "It makes the key “{}” in “{}”. If you allow this, these sites can use the key too:",
                    name_or(name, "without a name"),
                    name_or(token, "a token without a name"),
                ));
                for origin in origins {
                    ui.monospace(printable(origin.as_str(), MAX_ORIGIN_LENGTH));
                }
            }
            Question::EnterPin {
                token,
                was_wrong,
                tries_left,
                max_length,
                min_length,
            } => {
                ui.strong(printable(token, MAX_NAME_LENGTH));
                if *was_wrong {
                    warning(ui, "That PIN was wrong.");
                }
                ui.label("The PIN goes to the token. The site does not see it, but can use the token once you have entered it.");
                match tries_left {
                    Some(0) => {
                        warning(ui, "The token is locked: no PIN will be accepted.");
                    }
                    Some(1) => {
                        warning(
                            ui,
                            "This is the last try. One more wrong PIN locks the token.",
                        );
                    }
                    Some(tries) => {
                        ui.label(format!("Tries left: {tries}"));
                    }
                    None => {}
                }
                let label = if min_length == max_length {
                    format!("PIN ({min_length} characters)")
                } else {
                    format!("PIN ({min_length} to {max_length} characters)")
                };
                let label = ui.label(label);
                pin_field(ui, &mut self.pin, usize::from(*max_length)).labelled_by(label.id);
            }
        }
    }

    fn reader_row(&mut self, ui: &mut Ui, index: usize, reader: &PromptReader) {
        let kind = element_type(reader.element_type);
        let presence = if reader.present { "ready" } else { "empty" };
        let name = name_or(&reader.name, "Reader without a name");
        self.row(ui, index, format!("{name}\n{kind}, {presence}"));
    }

    /// One of several to choose. As it wraps, a long name shows whole.
    fn row(&mut self, ui: &mut Ui, index: usize, text: String) {
        if ui.radio(self.chosen == Some(index), text).clicked() {
            self.chosen = Some(index);
        }
    }

    /// What "Allow" answers, once all that it needs has been chosen or typed.
    fn positive_answer(&self, question: &Question) -> Option<PromptAnswer> {
        match question {
            Question::ChooseReader { .. }
            | Question::ChooseToken { .. }
            | Question::ChooseKey { .. } => {
                let count = choices(question)?;
                let index = self.chosen.filter(|index| *index < count)?;
                Some(PromptAnswer::Chosen {
                    index: u32::try_from(index).ok()?,
                    remember: self.remember,
                })
            }
            Question::UseApplet { .. } => Some(PromptAnswer::Allowed {
                remember: self.remember,
            }),
            // It is kept with the key.
            Question::ShareKey { .. } => Some(PromptAnswer::Allowed { remember: true }),
            Question::EnterPin {
                min_length,
                max_length,
                ..
            } => (usize::from(*min_length)..=usize::from(*max_length))
                .contains(&self.pin.chars().count())
                .then(|| PromptAnswer::Pin(Pin::new(self.pin.clone()))),
        }
    }
}

/// How many there are to choose from; `None` where nothing is chosen.
pub fn choices(question: &Question) -> Option<usize> {
    match question {
        Question::ChooseReader { readers } => Some(readers.len()),
        Question::ChooseToken { tokens } => Some(tokens.len()),
        Question::ChooseKey { keys } => Some(keys.len()),
        Question::UseApplet { .. } | Question::ShareKey { .. } | Question::EnterPin { .. } => None,
    }
}

fn name_or(name: &str, without: &str) -> String {
    match printable(name, MAX_NAME_LENGTH) {
        name if name.is_empty() => without.to_owned(),
        name => name,
    }
}

/// Where a token is, and what that means for its keys.
fn place(token: &PromptToken) -> String {
    let protection = match token.protection {
        Protection::Software => "keeps keys in software",
        Protection::Isolated => "keeps keys apart from programs",
        Protection::Hardware => "keeps keys in hardware",
    };
    match printable(&token.place, MAX_NAME_LENGTH) {
        place if place.is_empty() => protection.to_owned(),
        place => format!("{place}, {protection}"),
    }
}

fn title(question: &Question) -> &'static str {
    match question {
        Question::ChooseReader { .. } => "Permission to use a reader",
        Question::UseApplet { .. } => "Permission to use an application on a card",
        Question::ChooseToken { .. } => "Permission to use a token",
        Question::ChooseKey { .. } => "Permission to use a key",
        Question::ShareKey { .. } => "Permission to share a key",
        Question::EnterPin { .. } => "PIN entry",
    }
}

/// Tells screen readers what `ui` is.
pub fn name_dialog(ui: &Ui, role: Role, name: &str) {
    ui.ctx().accesskit_node_builder(ui.unique_id(), |node| {
        node.set_role(role);
        node.set_label(name);
        node.set_modal();
    });
}

fn escape(ui: &Ui) -> bool {
    ui.input(|input| input.key_pressed(Key::Escape))
}

fn warning(ui: &mut Ui, text: &str) {
    let color = ui.visuals().error_fg_color;
    ui.label(egui::RichText::new(text).color(color).strong());
}

/// What the user calls such an element.
pub fn element_type(element_type: ElementType) -> &'static str {
    match element_type {
        ElementType::Uicc => "SIM card",
        ElementType::SmartCard => "smart card or USB token",
        ElementType::Embedded => "built into this device",
        ElementType::Sd => "SD card",
        ElementType::Other => "other kind of token",
    }
}

/// An origin, whole, with the site in bold. Wraps anywhere, because hosts have no spaces.
pub fn origin_line(ui: &mut Ui, origin: &Origin, is_site: fn(&str) -> bool, size: f32) -> Response {
    let parts = HostText::of_origin(origin.as_str(), MAX_HOST_LENGTH, is_site);
    let mut job = host_job(ui, &parts, size);
    job.wrap.max_width = ui.available_width();
    job.wrap.break_anywhere = true;
    ui.label(job)
}

/// Text with an emphasised site. There is no bold font: the rest is paler and the site larger.
pub fn host_job(ui: &Ui, parts: &HostText, size: f32) -> LayoutJob {
    let mut job = LayoutJob::default();
    let format = |size: f32, color: Color32| TextFormat {
        font_id: FontId::proportional(size),
        color,
        valign: Align::BOTTOM,
        ..TextFormat::default()
    };
    let (weak, strong) = (
        ui.visuals().weak_text_color(),
        ui.visuals().strong_text_color(),
    );
    job.append(&parts.scheme, 0.0, format(size, weak));
    job.append(&parts.before, 0.0, format(size, weak));
    let emphasised = TextFormat {
        underline: Stroke::new(1.5, strong),
        ..format(size, strong)
    };
    job.append(&parts.site, 0.0, emphasised);
    job.append(&parts.port, 0.0, format(size, weak));
    job
}

fn pin_id() -> Id {
    Id::new("prompt-pin")
}

/// An entry field that shows only how many characters it has. The toolkit's own one keeps what is typed for undoing;
/// this one keeps it in one buffer, which is overwritten when it goes. One can add at its end and delete there.
fn pin_field(ui: &mut Ui, pin: &mut Zeroizing<String>, max_length: usize) -> Response {
    let size = vec2(ui.available_width().min(260.0), 30.0);
    let (rect, _) = ui.allocate_exact_size(size, Sense::hover());
    let mut response = ui.interact(rect, pin_id(), Sense::click());
    if response.clicked() {
        response.request_focus();
    }
    let focused = response.has_focus();
    if focused {
        ui.memory_mut(|memory| {
            memory.set_focus_lock_filter(
                pin_id(),
                EventFilter {
                    horizontal_arrows: true,
                    ..EventFilter::default()
                },
            );
        });
        let changed = ui.input_mut(|input| type_pin(pin, &mut input.events, max_length));
        if changed {
            response.mark_changed();
        }
    }

    let count = pin.chars().count();
    if ui.is_rect_visible(rect) {
        let visuals = ui.visuals();
        let stroke = if focused {
            Stroke::new(2.0, visuals.selection.stroke.color)
        } else {
            visuals.widgets.inactive.fg_stroke
        };
        ui.painter().rect(
            rect,
            CornerRadius::same(4),
            visuals.extreme_bg_color,
            stroke,
            egui::StrokeKind::Inside,
        );
        let mut caret = rect.left() + 10.0;
        let painter = ui.painter().with_clip_rect(rect.shrink(2.0));
        for index in 0..count {
            // The newest characters stay in sight.
            let hidden = count.saturating_sub(22);
            if index < hidden {
                continue;
            }
            painter.circle_filled(
                pos2(caret + 3.0, rect.center().y),
                3.5,
                visuals.strong_text_color(),
            );
            caret += 10.5;
        }
        if focused {
            painter.vline(
                caret,
                rect.center().y - 8.0..=rect.center().y + 8.0,
                Stroke::new(1.5, visuals.strong_text_color()),
            );
        }
    }
    ui.ctx().accesskit_node_builder(response.id, |node| {
        node.set_role(Role::PasswordInput);
        node.set_value("•".repeat(count));
    });
    response
}

/// Takes typed and pasted text out of `events`.
fn type_pin(pin: &mut Zeroizing<String>, events: &mut Vec<Event>, max_length: usize) -> bool {
    let mut changed = false;
    events.retain_mut(|event| match event {
        Event::Text(text) | Event::Paste(text) => {
            let text = Zeroizing::new(std::mem::take(text));
            for character in text.chars().filter(|character| !character.is_control()) {
                if pin.chars().count() < max_length
                    && pin.len() + character.len_utf8() <= PIN_CAPACITY
                {
                    pin.push(character);
                    changed = true;
                }
            }
            false
        }
        Event::Key {
            key: Key::Backspace,
            pressed: true,
            ..
        } => {
            changed |= pin.pop().is_some();
            false
        }
        // Nothing of it can be copied.
        Event::Copy | Event::Cut => false,
        _ => true,
    });
    changed
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use egui::accesskit::{Node, Role};
    use egui::{Event, Modifiers, PointerButton, Pos2, RawInput};

    use token_traits::prompt::{PromptCertificate, PromptId, PromptKey};

    use super::*;
    use crate::chrome::set_style;

    fn is_site(host: &str) -> bool {
        host == "bank.example"
    }

    fn request(question: Question) -> PromptRequest {
        PromptRequest {
            id: PromptId(1),
            replaces: None,
            webview: 1,
            origin: Origin::new("https://www.bank.example").unwrap(),
            top_level_origin: Origin::new("https://shop.example").unwrap(),
            question,
        }
    }

    fn reader(name: &str) -> PromptReader {
        PromptReader {
            name: name.into(),
            element_type: ElementType::SmartCard,
            present: true,
        }
    }

    fn applet() -> Question {
        Question::UseApplet {
            reader: "Reader".into(),
            applet: Some(vec![0xA0, 0, 0, 3, 8]),
        }
    }

    fn pin() -> Question {
        Question::EnterPin {
            token: "Token".into(),
            was_wrong: false,
            tries_left: Some(1),
            min_length: 4,
            max_length: 6,
        }
    }

    /// A window in memory, without a screen.
    struct Screen {
        ctx: egui::Context,
        form: PromptForm,
        request: PromptRequest,
        ready: bool,
        size: Vec2,
        /// In the order in which a screen reader reads them.
        nodes: Vec<Node>,
        focus: Option<Node>,
        time: f64,
    }

    impl Screen {
        fn new(question: Question) -> Self {
            let ctx = egui::Context::default();
            set_style(&ctx);
            ctx.enable_accesskit();
            let mut screen = Self {
                ctx,
                form: PromptForm::default(),
                request: request(question),
                ready: true,
                size: vec2(1024.0, 800.0),
                nodes: Vec::new(),
                focus: None,
                time: 0.0,
            };
            // What is drawn finds its size at first.
            for _ in 0..3 {
                screen.turn(Vec::new());
            }
            screen
        }

        fn turn(&mut self, events: Vec<Event>) -> Outcome {
            self.time += 0.05;
            let input = RawInput {
                screen_rect: Some(Rect::from_min_size(Pos2::ZERO, self.size)),
                time: Some(self.time),
                events,
                ..RawInput::default()
            };
            let context = Context {
                ready: self.ready,
                page_top: 78.0,
                has_keyboard: true,
                is_site,
            };
            let mut outcome = Outcome::default();
            let output = self.ctx.clone().run_ui(input, |ui| {
                let this = self.form.show(ui.ctx(), &self.request, &context);
                outcome.moved |= this.moved;
                if this.answer.is_some() {
                    outcome.answer = this.answer;
                }
            });
            let update = output.platform_output.accesskit_update.unwrap();
            self.focus = update
                .nodes
                .iter()
                .find(|(id, _)| *id == update.focus)
                .map(|(_, node)| node.clone());
            let mut pending = Vec::from_iter(update.tree.map(|tree| tree.root));
            self.nodes.clear();
            while let Some(id) = pending.pop() {
                let (_, node) = update.nodes.iter().find(|(other, _)| *other == id).unwrap();
                pending.extend(node.children().iter().rev());
                self.nodes.push(node.clone());
            }
            outcome
        }

        fn find(&self, name: &str) -> &Node {
            self.nodes
                .iter()
                .find(|node| node.label().is_some_and(|label| label == name))
                .unwrap_or_else(|| panic!("{name} is not there"))
        }

        fn texts(&self) -> String {
            let texts = self
                .nodes
                .iter()
                .filter_map(|node| node.label().or(node.value()));
            texts.collect::<Vec<_>>().join("\n")
        }

        fn centre(&self, name: &str) -> Pos2 {
            let bounds = self.find(name).bounds().unwrap();
            pos2(
                ((bounds.x0 + bounds.x1) / 2.0) as f32,
                ((bounds.y0 + bounds.y1) / 2.0) as f32,
            )
        }

        fn button(&mut self, pos: Pos2, pressed: bool) -> Outcome {
            self.turn(vec![
                Event::PointerMoved(pos),
                Event::PointerButton {
                    pos,
                    button: PointerButton::Primary,
                    pressed,
                    modifiers: Modifiers::NONE,
                },
            ])
        }

        fn click(&mut self, name: &str) -> Option<PromptAnswer> {
            let pos = self.centre(name);
            let first = self.button(pos, true).answer;
            assert_eq!(first, None);
            self.button(pos, false).answer
        }

        fn key(&mut self, key: Key) -> Option<PromptAnswer> {
            let event = |pressed| Event::Key {
                key,
                physical_key: None,
                pressed,
                repeat: false,
                modifiers: Modifiers::NONE,
            };
            let first = self.turn(vec![event(true)]).answer;
            let second = self.turn(vec![event(false)]).answer;
            first.or(second)
        }

        fn focused(&self) -> String {
            let focus = self.focus.as_ref().unwrap();
            focus.label().unwrap_or_default().to_owned()
        }

        fn press_until(&mut self, key: Key, name: &str) {
            for _ in 0..12 {
                if self.focused().contains(name) {
                    return;
                }
                assert_eq!(self.key(key), None);
            }
            panic!(
                "the focus does not come to {name}, but to {}",
                self.focused()
            );
        }
    }

    const YES: PromptAnswer = PromptAnswer::Allowed { remember: false };

    #[test]
    fn a_screen_reader_hears_who_asks_for_what() {
        let screen = Screen::new(applet());
        let dialog = screen.find("Permission to use an application on a card");
        assert_eq!(dialog.role(), Role::AlertDialog);
        let in_dialog = screen
            .nodes
            .iter()
            .position(|node| node.role() == Role::AlertDialog);
        let origin = screen.texts().find("https://www.bank.example");
        assert!(in_dialog.is_some() && origin.is_some());
        let texts = screen.texts();
        let mut wanted = VecDeque::from([
            "https://www.bank.example",
            "wants to use an application",
            "https://shop.example",
            "PIV",
            "A0 00 00 03 08",
            "no access rules of its own",
            "“Reader”",
            "Remember",
            "Don't allow",
            "Allow",
        ]);
        for line in texts.lines() {
            if wanted.front().is_some_and(|text| line.contains(text)) {
                wanted.pop_front();
            }
        }
        assert!(
            wanted.is_empty(),
            "{wanted:?} is missing, or not in its place, in\n{texts}"
        );
    }

    #[test]
    fn keyboard_alone() {
        let mut screen = Screen::new(applet());
        assert_eq!(screen.focused(), "Don't allow");
        assert_eq!(screen.key(Key::Enter), Some(PromptAnswer::Refused));

        let mut screen = Screen::new(applet());
        assert_eq!(screen.key(Key::Escape), Some(PromptAnswer::Refused));

        let mut screen = Screen::new(applet());
        screen.press_until(Key::Tab, "Remember");
        assert_eq!(screen.key(Key::Space), None);
        while screen.focused() != "Allow" {
            assert_eq!(screen.key(Key::Tab), None);
        }
        assert_eq!(
            screen.key(Key::Space),
            Some(PromptAnswer::Allowed { remember: true })
        );
    }

    #[test]
    fn nothing_is_remembered_unless_it_is_ticked() {
        let mut screen = Screen::new(applet());
        assert_eq!(screen.click("Allow"), Some(YES));
    }

    #[test]
    fn a_card_that_does_not_name_its_application() {
        let screen = Screen::new(Question::UseApplet {
            reader: "Reader".into(),
            applet: None,
        });
        assert!(screen.texts().contains("does not name"));
    }

    #[test]
    fn input_before_its_time_is_lost() {
        let mut screen = Screen::new(applet());
        screen.ready = false;
        assert_eq!(screen.click("Allow"), None);
        assert_eq!(screen.click("Don't allow"), None);
        assert_eq!(screen.key(Key::Enter), None);
        assert_eq!(screen.key(Key::Escape), None);
        // Pressed too early, and let go later.
        let pos = screen.centre("Allow");
        assert_eq!(screen.button(pos, true).answer, None);
        screen.ready = true;
        assert_eq!(screen.button(pos, false).answer, None);
        assert_eq!(screen.click("Allow"), Some(YES));
    }

    #[test]
    fn a_choice_of_readers_is_made_by_the_user() {
        let readers = vec![reader("First"), reader("Second")];
        let mut screen = Screen::new(Question::ChooseReader { readers });
        assert_eq!(screen.click("Allow"), None, "none was chosen");
        assert_eq!(screen.click("Second\nsmart card or USB token, ready"), None);
        let second = PromptAnswer::Chosen {
            index: 1,
            remember: false,
        };
        assert_eq!(screen.click("Allow"), Some(second));

        let readers = vec![reader("Only")];
        let mut screen = Screen::new(Question::ChooseReader { readers });
        let only = PromptAnswer::Chosen {
            index: 0,
            remember: false,
        };
        assert_eq!(screen.click("Allow"), Some(only));
    }

    #[test]
    fn a_choice_of_keys_is_made_by_the_user() {
        let token = PromptToken {
            label: "Company card".into(),
            place: "Reader".into(),
            protection: Protection::Hardware,
        };
        let key = |name: &str| PromptKey {
            name: name.into(),
            token: token.clone(),
            certificate: Some(PromptCertificate {
                subject: "Ada Lovelace".into(),
                issuer: "Staff CA".into(),
                expires: "2028-12-31".into(),
            }),
        };
        let keys = vec![key("Signature"), key("Decryption")];
        let mut screen = Screen::new(Question::ChooseKey { keys });
        assert_eq!(screen.click("Allow"), None, "none was chosen");
        let second = "Decryption\nfor Ada Lovelace, by Staff CA, until 2028-12-31\n\
                      in Company card, Reader, keeps keys in hardware";
        assert_eq!(screen.click(second), None);
        let second = PromptAnswer::Chosen {
            index: 1,
            remember: false,
        };
        assert_eq!(screen.click("Allow"), Some(second));
    }

    #[test]
    fn readers_come_and_go_while_it_is_shown() {
        let choose = |names: &[&str]| Question::ChooseReader {
            readers: names.iter().map(|name| reader(name)).collect(),
        };
        let mut screen = Screen::new(choose(&[]));
        assert!(screen.texts().contains("Connect one"));
        assert!(!screen.texts().contains("Remember"));
        assert_eq!(screen.click("Allow"), None);
        let change = |screen: &mut Screen, names: &[&str]| {
            screen.request.question = choose(names);
            for _ in 0..3 {
                screen.turn(Vec::new());
            }
        };
        change(&mut screen, &["First", "Second"]);
        assert!(!screen.texts().contains("Connect one"));
        screen.form.remember = true;
        assert_eq!(screen.click("Second\nsmart card or USB token, ready"), None);
        // Now another one is in its place.
        change(&mut screen, &["First", "Third"]);
        assert_eq!(screen.focused(), "Don't allow");
        assert!(!screen.form.remember);
        assert_eq!(screen.click("Allow"), None);
        change(&mut screen, &[]);
        assert_eq!(screen.click("Don't allow"), Some(PromptAnswer::Refused));
    }

    #[test]
    fn a_pin_is_typed_and_seen_nowhere() {
        let mut screen = Screen::new(pin());
        assert!(screen.texts().contains("last try"));
        assert_eq!(screen.focused(), "Don't allow");
        let type_text =
            |screen: &mut Screen, text: &str| screen.turn(vec![Event::Text(text.into())]).answer;
        assert_eq!(type_text(&mut screen, "9"), None);
        assert!(
            screen.form.pin.is_empty(),
            "what is typed elsewhere is no PIN"
        );
        screen
            .ctx
            .memory_mut(|memory| memory.request_focus(pin_id()));
        screen.turn(Vec::new());
        assert_eq!(type_text(&mut screen, "123"), None);
        assert_eq!(screen.key(Key::Enter), None, "it is too short");
        screen
            .ctx
            .memory_mut(|memory| memory.request_focus(pin_id()));
        screen.turn(Vec::new());
        type_text(&mut screen, "4567");
        assert_eq!(
            screen.form.pin.as_str(),
            "123456",
            "no more than it may be long"
        );
        assert_eq!(screen.key(Key::Backspace), None);
        type_text(&mut screen, "0");
        let field = screen
            .nodes
            .iter()
            .find(|node| node.role() == Role::PasswordInput);
        assert_eq!(field.unwrap().value(), Some("••••••"));
        assert!(!screen.texts().contains('1'), "{}", screen.texts());
        let expected = Pin::new(Zeroizing::new("123450".to_owned()));
        assert_eq!(screen.key(Key::Enter), Some(PromptAnswer::Pin(expected)));
    }

    #[test]
    fn a_new_prompt_starts_from_nothing() {
        let mut screen = Screen::new(pin());
        screen.form.pin.push_str("1234");
        screen.form.remember = true;
        screen.request.id = PromptId(2);
        screen.turn(Vec::new());
        assert!(screen.form.pin.is_empty() && !screen.form.remember);
        assert_eq!(screen.focused(), "Don't allow");
        screen.form.pin.push_str("1234");
        screen.form.clear();
        assert!(screen.form.pin.is_empty());
    }

    #[test]
    fn hostile_names_leave_everything_in_its_place() {
        let hostile = format!("\u{202E}evil\n{}", "x ".repeat(10_000));
        let readers = (0..200).map(|_| reader(&hostile)).collect();
        let screen = Screen::new(Question::ChooseReader { readers });
        let texts = screen.texts();
        assert!(!texts.contains('\u{202E}') && texts.contains("<U+202E>evil"));
        for name in ["Don't allow", "Allow", "https://www.bank.example"] {
            let node = screen
                .nodes
                .iter()
                .find(|node| [node.label(), node.value()].contains(&Some(name)));
            let bounds = node.unwrap().bounds().unwrap();
            assert!(
                bounds.y0 > 0.0 && bounds.y1 < 800.0,
                "{name} is at {bounds:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_shown_whole_cannot_be_allowed() {
        let mut screen = Screen::new(applet());
        screen.size = vec2(250.0, 200.0);
        screen.turn(Vec::new());
        screen.turn(Vec::new());
        assert!(
            !screen
                .nodes
                .iter()
                .any(|node| node.label() == Some("Allow"))
        );
        assert_eq!(screen.click("Don't allow"), Some(PromptAnswer::Refused));
    }

    #[test]
    fn what_allowing_means_is_in_sight() {
        let mut screen = Screen::new(applet());
        screen.size = vec2(340.0, 380.0);
        for _ in 0..3 {
            screen.turn(Vec::new());
        }
        assert!(screen.texts().contains("Enlarge the window"));
        assert_eq!(screen.click("Allow"), None);
        screen.size.y = 800.0;
        for _ in 0..3 {
            screen.turn(Vec::new());
        }
        assert_eq!(screen.click("Allow"), Some(YES));
    }

    #[test]
    fn moving_buttons_are_noticed() {
        let mut screen = Screen::new(applet());
        assert!(!screen.turn(Vec::new()).moved);
        screen.size.x = 400.0;
        assert!(screen.turn(Vec::new()).moved);
        let moved = (0..3).map(|_| screen.turn(Vec::new()).moved).last();
        assert_eq!(moved, Some(false), "it comes to rest");
    }

    #[test]
    fn it_reaches_over_the_toolbar() {
        let screen = Screen::new(applet());
        let layer = screen.ctx.layer_id_at(pos2(200.0, 70.0)).unwrap();
        assert_eq!(layer.order, Order::Foreground);
    }
}
