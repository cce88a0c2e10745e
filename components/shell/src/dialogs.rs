/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a page may ask the user by itself: `alert()` and its like, the options of a `<select>` element, the menu of the
//! right mouse button. All of it stays inside the page's area, and says that the page is speaking.

use std::collections::BTreeSet;

use egui::accesskit::Role;
use egui::{
    Align2, Area, Button, Frame, Id, Key, Order, Rect, ScrollArea, TextEdit, Ui, pos2, vec2,
};
use servo::{
    ContextMenu, ContextMenuAction, ContextMenuItem, DeviceIntRect, SelectElement,
    SelectElementOption, SelectElementOptionOrOptgroup, SimpleDialog,
};

use crate::chrome::prompt::name_dialog;
use crate::tab::{Popup, TabState};
use crate::text::printable;

/// Most characters of a dialog's message.
const MAX_MESSAGE_LENGTH: usize = 4000;

/// Most characters of an option or of an item of a menu.
const MAX_LABEL_LENGTH: usize = 120;

/// Most options that are listed.
const MAX_OPTIONS: usize = 5000;

/// Draws what the tab's page asks, over its area. `scale` is device pixels per point. Answers what the user chose in the
/// page's menu, where the browser has a part in it.
pub fn show(
    ctx: &egui::Context,
    page: Rect,
    scale: f32,
    tab: &mut TabState,
) -> Option<ContextMenuAction> {
    if !tab.dialogs.is_empty() {
        dialog(ctx, page, tab);
        return None;
    }
    match tab.popup.take() {
        Some(Popup::Select(select)) => {
            tab.popup = select_element(ctx, place(page, select.position(), scale), page, select)
                .map(Popup::Select);
            None
        }
        Some(Popup::Menu(menu)) => {
            match context_menu(ctx, place(page, menu.position(), scale), page, menu) {
                Ok(menu) => {
                    tab.popup = Some(Popup::Menu(menu));
                    None
                }
                Err(chosen) => chosen,
            }
        }
        None => None,
    }
}

/// Where something of the page is, in points, inside the page's area.
fn place(page: Rect, position: DeviceIntRect, scale: f32) -> Rect {
    let (min, max) = (position.min.to_f32() / scale, position.max.to_f32() / scale);
    // A menu belongs to a point.
    Rect::from_min_max(
        page.clamp(page.min + vec2(min.x, min.y)),
        page.clamp(page.min + vec2(max.x, max.y)),
    )
}

fn dialog(ctx: &egui::Context, page: Rect, tab: &mut TabState) {
    let talkative = tab.is_talkative();
    let mut silenced = tab.dialogs_silenced;
    let Some(open) = tab.dialogs.front_mut() else {
        return;
    };
    let id = Id::new("dialog").with(format!("{:?}", open.id));
    let mut accepted = None;
    Area::new(id)
        .order(Order::Middle)
        .pivot(Align2::CENTER_TOP)
        .fixed_pos(page.center_top() + vec2(0.0, 12.0))
        .constrain_to(page)
        .movable(false)
        .fade_in(false)
        .show(ctx, |ui| {
            Frame::popup(ui.style()).inner_margin(14).show(ui, |ui| {
                ui.set_width((page.width() - 60.0).clamp(80.0, 420.0));
                name_dialog(ui, Role::Dialog, "The page says");
                ui.weak("The page says:");
                ScrollArea::vertical()
                    .max_height((page.height() - 180.0).max(40.0))
                    .auto_shrink([false, true])
                    .show(ui, |ui| {
                        for line in open.dialog.message().lines().take(200) {
                            ui.label(printable(line, MAX_MESSAGE_LENGTH));
                        }
                    });
                let mut first = None;
                if matches!(open.dialog, SimpleDialog::Prompt(_)) {
                    let edit =
                        ui.add(TextEdit::singleline(&mut open.text).desired_width(f32::INFINITY));
                    if edit.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter)) {
                        accepted = Some(true);
                    }
                    first = Some(edit);
                }
                if talkative {
                    ui.checkbox(&mut silenced, "No more dialogs of this page");
                }
                ui.horizontal(|ui| {
                    let ok = ui.add(Button::new("OK").min_size(vec2(80.0, 28.0)));
                    if ok.clicked() {
                        accepted = Some(true);
                    }
                    if !matches!(open.dialog, SimpleDialog::Alert(_))
                        && ui
                            .add(Button::new("Cancel").min_size(vec2(80.0, 28.0)))
                            .clicked()
                    {
                        accepted = Some(false);
                    }
                    first.get_or_insert(ok);
                });
                if let Some(first) = first
                    && ui
                        .ctx()
                        .data_mut(|data| !std::mem::replace(data.get_temp_mut_or(id, false), true))
                {
                    first.request_focus();
                }
            });
        });
    if ctx.input(|input| input.key_pressed(Key::Escape)) {
        accepted = Some(false);
    }
    tab.dialogs_silenced = silenced;
    let Some(accepted) = accepted else { return };
    let Some(open) = tab.dialogs.pop_front() else {
        return;
    };
    match open.dialog {
        SimpleDialog::Prompt(mut prompt) if accepted => {
            prompt.set_current_value(&open.text);
            prompt.confirm();
        }
        dialog if accepted => dialog.confirm(),
        dialog => dialog.dismiss(),
    }
    if silenced {
        for open in tab.dialogs.drain(..) {
            open.dialog.dismiss();
        }
    }
}

/// What is left of a popup after it was drawn: nothing, when the user is done.
fn select_element(
    ctx: &egui::Context,
    at: Rect,
    page: Rect,
    mut select: SelectElement,
) -> Option<SelectElement> {
    let multiple = select.allow_select_multiple();
    let mut selected: BTreeSet<usize> = select.selected_options().into_iter().collect();
    let before = selected.clone();
    let mut done = false;
    let name = format!("{:?}", select.id());
    let is_new = is_new_popup(ctx, &name);
    let response = popup_area(ctx, &name, at, page, |ui| {
        let mut option = |ui: &mut Ui, option: &SelectElementOption| {
            let text = printable(&option.label, MAX_LABEL_LENGTH);
            let chosen = selected.contains(&option.id);
            let row = ui.add_enabled(!option.is_disabled, Button::selectable(chosen, text));
            if is_new && chosen {
                row.request_focus();
                row.scroll_to_me(None);
            }
            if row.clicked() {
                if !multiple {
                    selected.clear();
                    selected.insert(option.id);
                    done = true;
                } else if !selected.remove(&option.id) {
                    selected.insert(option.id);
                }
            }
        };
        for entry in select.options().iter().take(MAX_OPTIONS) {
            match entry {
                SelectElementOptionOrOptgroup::Option(one) => option(ui, one),
                SelectElementOptionOrOptgroup::Optgroup { label, options } => {
                    ui.weak(printable(label, MAX_LABEL_LENGTH));
                    for one in options.iter().take(MAX_OPTIONS) {
                        option(ui, one);
                    }
                }
            }
        }
        if multiple && ui.button("Done").clicked() {
            done = true;
        }
    });
    let given_up = ctx.input(|input| input.key_pressed(Key::Escape))
        || (!is_new && response.clicked_elsewhere());
    if given_up && !multiple {
        selected = before;
    }
    if !done && !given_up {
        select.select(selected.into_iter().collect());
        return Some(select);
    }
    select.select(selected.into_iter().collect());
    select.submit();
    None
}

fn context_menu(
    ctx: &egui::Context,
    at: Rect,
    page: Rect,
    menu: ContextMenu,
) -> Result<ContextMenu, Option<ContextMenuAction>> {
    let mut chosen = None;
    let name = format!("{:?}", menu.id());
    let is_new = is_new_popup(ctx, &name);
    let response = popup_area(ctx, &name, at, page, |ui| {
        let mut first = is_new;
        for item in menu.items() {
            match item {
                ContextMenuItem::Item {
                    label,
                    action,
                    enabled,
                } => {
                    let text = printable(label, MAX_LABEL_LENGTH);
                    let row = ui.add_enabled(*enabled, Button::selectable(false, text));
                    if *enabled && std::mem::take(&mut first) {
                        row.request_focus();
                    }
                    if row.clicked() {
                        chosen = Some(*action);
                    }
                }
                ContextMenuItem::Separator => {
                    ui.separator();
                }
            }
        }
    });
    if let Some(action) = chosen {
        menu.select(action);
        return Err(Some(action));
    }
    if ctx.input(|input| input.key_pressed(Key::Escape))
        || (!is_new && response.clicked_elsewhere())
    {
        menu.dismiss();
        return Err(None);
    }
    Ok(menu)
}

fn is_new_popup(ctx: &egui::Context, name: &str) -> bool {
    ctx.data_mut(|data| {
        let shown: &mut String = data.get_temp_mut_or_default(Id::new("popup-shown"));
        let is_new = shown != name;
        name.clone_into(shown);
        is_new
    })
}

fn popup_area(
    ctx: &egui::Context,
    name: &str,
    at: Rect,
    page: Rect,
    add: impl FnOnce(&mut Ui),
) -> egui::Response {
    // Below what it belongs to where there is room, else above.
    let below = page.bottom() - at.bottom();
    let above = at.top() - page.top();
    let (pivot, corner, space) = if below >= above.min(200.0) {
        (Align2::LEFT_TOP, at.left_bottom(), below)
    } else {
        (Align2::LEFT_BOTTOM, pos2(at.left(), at.top()), above)
    };
    Area::new(Id::new("popup").with(name))
        .order(Order::Middle)
        .pivot(pivot)
        .fixed_pos(corner)
        .constrain_to(page)
        .movable(false)
        .fade_in(false)
        .show(ctx, |ui| {
            Frame::menu(ui.style()).show(ui, |ui| {
                ScrollArea::vertical()
                    .max_height((space - 16.0).clamp(60.0, 400.0))
                    .show(ui, |ui| {
                        ui.set_min_width(at.width().clamp(80.0, 500.0));
                        ui.with_layout(egui::Layout::top_down_justified(egui::Align::Min), add);
                    });
            });
        })
        .response
}
