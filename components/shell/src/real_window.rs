/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A window of the window system: the page, painted by the engine into a buffer of its own, and the browser's own parts
//! around and over it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use dpi::{PhysicalPosition, PhysicalSize};
use egui::{CursorIcon, Order, Pos2, Rect, ViewportId, pos2};
use egui_winit::accesskit_winit;
use euclid::{Point2D, Scale, Size2D};
use log::error;
use servo::{
    Cursor, DeviceIndependentPixel, DeviceIntPoint, DeviceIntRect, DeviceIntSize, DevicePixel,
    DevicePoint, OffscreenRenderingContext, RenderingContext, WindowRenderingContext,
};
use winit::event::WindowEvent;
use winit::event_loop::{ActiveEventLoop, EventLoopProxy};
use winit::raw_window_handle::{HasDisplayHandle, HasWindowHandle};
use winit::window::{Fullscreen, Window};

use crate::app::App;
use crate::browser_window::{BrowserWindow, PlatformWindow, WindowId};
use crate::chrome::{self, Chrome, Output, View};
use crate::dialogs;
use crate::window::Event;

/// Least size of a window, in points: tabs, toolbar and a little of the page.
const LEAST_SIZE: (f64, f64) = (240.0, 160.0);

/// A window on a screen. What draws on it goes before it.
pub struct RealWindow {
    gui: RefCell<Gui>,
    page_context: Rc<OffscreenRenderingContext>,
    context: Rc<WindowRenderingContext>,
    window: Window,
    /// The pointer's shape over the page.
    cursor: Cell<Cursor>,
    /// Where the page is, in points. Empty when none is shown.
    page: Cell<Rect>,
    /// Whether the last event of the pointer was over the page, with nothing between.
    over_page: Cell<bool>,
    next_paint: Cell<Option<Instant>>,
}

/// What draws the browser's own parts.
struct Gui {
    context: egui::Context,
    state: egui_winit::State,
    painter: egui_glow::Painter,
    chrome: Chrome,
}

impl RealWindow {
    /// Opens a window in which the page has `page_size`, in device pixels.
    pub fn open(
        event_loop: &ActiveEventLoop,
        proxy: EventLoopProxy<Event>,
        page_size: PhysicalSize<u32>,
        app: &App,
    ) -> Result<Rc<Self>, String> {
        let problem = |error: &dyn std::fmt::Display| format!("cannot open a window: {error}");
        let monitor = event_loop
            .primary_monitor()
            .or_else(|| event_loop.available_monitors().next());
        let scale = monitor.map_or(1.0, |monitor| monitor.scale_factor());
        let attributes = Window::default_attributes()
            .with_title("servo-tokens")
            .with_inner_size(with_chrome(page_size, scale))
            .with_min_inner_size(dpi::LogicalSize::new(LEAST_SIZE.0, LEAST_SIZE.1))
            // Screen readers are told of a window before it is shown.
            .with_visible(false);
        let window = event_loop
            .create_window(attributes)
            .map_err(|error| problem(&error))?;
        if window.scale_factor() != scale {
            let _ = window.request_inner_size(with_chrome(page_size, window.scale_factor()));
        }
        let display = event_loop
            .display_handle()
            .map_err(|error| problem(&error))?;
        let handle = window.window_handle().map_err(|error| problem(&error))?;
        let size = at_least_one(window.inner_size());
        let context = WindowRenderingContext::new(display, handle, size)
            .map_err(|error| problem(&format!("{error:?}")))?;
        let context = Rc::new(context);
        context
            .make_current()
            .map_err(|error| problem(&format!("{error:?}")))?;
        let page_context = Rc::new(context.offscreen_context(page_size));

        let painter = egui_glow::Painter::new(context.glow_gl_api(), "", None, false)
            .map_err(|error| problem(&error))?;
        let egui = egui::Context::default();
        // Ctrl with + and - is about the page.
        egui.options_mut(|options| options.zoom_with_keyboard = false);
        chrome::set_style(&egui);
        let mut state = egui_winit::State::new(
            egui.clone(),
            ViewportId::ROOT,
            event_loop,
            Some(window.scale_factor() as f32),
            window.theme(),
            Some(painter.max_texture_side()),
        );
        state.init_accesskit(event_loop, &window, proxy);
        window.set_visible(true);

        Ok(Rc::new(Self {
            gui: RefCell::new(Gui {
                context: egui,
                state,
                painter,
                chrome: Chrome::new(app.tokens_page()),
            }),
            page_context,
            context,
            window,
            cursor: Cell::new(Cursor::Default),
            page: Cell::new(Rect::NOTHING),
            over_page: Cell::new(false),
            next_paint: Cell::new(None),
        }))
    }

    /// Gives the browser's own parts an event.
    pub fn to_chrome(&self, event: &WindowEvent) {
        if self
            .gui
            .borrow_mut()
            .state
            .on_window_event(&self.window, event)
            .repaint
        {
            self.next_paint.set(Some(Instant::now()));
        }
    }

    /// What a screen reader wants.
    pub fn accessibility_event(&self, event: accesskit_winit::WindowEvent) {
        let mut gui = self.gui.borrow_mut();
        match event {
            accesskit_winit::WindowEvent::InitialTreeRequested => gui.context.enable_accesskit(),
            accesskit_winit::WindowEvent::ActionRequested(request) => {
                gui.state.on_accesskit_action_request(request);
            }
            accesskit_winit::WindowEvent::AccessibilityDeactivated => {
                gui.context.disable_accesskit()
            }
        }
        self.next_paint.set(Some(Instant::now()));
    }

    /// Whether a part of the browser has the keyboard, rather than the page.
    pub fn chrome_has_keyboard(&self) -> bool {
        let gui = self.gui.borrow();
        gui.context.memory(|memory| memory.focused().is_some())
    }

    /// Gives the keyboard back to the page.
    pub fn give_keyboard_to_page(&self) {
        let gui = self.gui.borrow();
        gui.context.memory_mut(|memory| {
            if let Some(focused) = memory.focused() {
                memory.surrender_focus(focused);
            }
        });
        self.next_paint.set(Some(Instant::now()));
    }

    /// Puts the cursor into the address bar.
    pub fn focus_address(&self) {
        let Gui {
            chrome, context, ..
        } = &mut *self.gui.borrow_mut();
        chrome.focus_address(context);
        self.next_paint.set(Some(Instant::now()));
    }

    /// Shows or hides the console.
    pub fn toggle_console(&self) {
        self.gui.borrow_mut().chrome.toggle_console();
        self.next_paint.set(Some(Instant::now()));
    }

    /// Where in the page a point of the window is, both in device pixels, if the page is there and nothing over it.
    pub fn point_in_page(&self, position: PhysicalPosition<f64>) -> Option<DevicePoint> {
        let point = self.point(position);
        let gui = self.gui.borrow();
        let covered = gui
            .context
            .layer_id_at(point)
            .is_some_and(|layer| layer.order != Order::Background);
        let over_page = self.page.get().contains(point) && !covered;
        self.over_page.set(over_page);
        over_page.then(|| self.relative_to_page(position))
    }

    /// Where a point is seen from the page, which it may be outside of.
    pub fn relative_to_page(&self, position: PhysicalPosition<f64>) -> DevicePoint {
        let origin = self.page_pixels().min;
        DevicePoint::new(
            position.x as f32 - origin.x as f32,
            position.y as f32 - origin.y as f32,
        )
    }

    fn point(&self, position: PhysicalPosition<f64>) -> Pos2 {
        let scale = self.window.scale_factor();
        pos2((position.x / scale) as f32, (position.y / scale) as f32)
    }

    /// The page's area in device pixels, from the window's upper left corner.
    fn page_pixels(&self) -> DeviceIntRect {
        let page = self.page.get();
        if !page.is_positive() {
            return DeviceIntRect::zero();
        }
        let scale = self.window.scale_factor() as f32;
        let pixel = |point: Pos2| {
            Point2D::new(
                (point.x * scale).round() as i32,
                (point.y * scale).round() as i32,
            )
        };
        DeviceIntRect::new(pixel(page.min), pixel(page.max))
    }

    /// The window has another size.
    pub fn resized(&self, size: PhysicalSize<u32>) {
        self.context.resize(at_least_one(size));
    }

    fn run(&self, app: &App, window: &BrowserWindow, gui: &mut Gui) -> (Output, egui::FullOutput) {
        let page = window.shown();
        let state = page.as_ref().and_then(|page| window.state(page.id()));
        let tabs = app.tab_views(window);
        let now = Instant::now();
        let tab_for_prompts = app.tab_for_prompts(window);
        let (prompt, ready_at) = {
            let mut prompts = app.prompts().borrow_mut();
            // Only the window that has the focus says what is in sight.
            let prompt = match tab_for_prompts {
                Some(tab) => prompts.look(Some(tab), now).cloned(),
                None if app.any_window_has_focus() => None,
                None => prompts.look(None, now).cloned(),
            };
            (prompt, prompts.ready_at())
        };
        let prompt_ready = prompt.is_some() && ready_at.is_some_and(|ready_at| now >= ready_at);
        let page_view = page
            .as_ref()
            .zip(state.as_ref())
            .map(|(page, state)| app.page_view(page, &state.borrow()));
        let over_page = self.over_page.get();
        let scale = self.window.scale_factor() as f32;

        let mut input = gui.state.take_egui_input(&self.window);
        if prompt.is_some() {
            // A key that was held down before the prompt came is no answer to it.
            input.events.retain(|event| {
                !matches!(event, egui::Event::Key { repeat: true, key, .. } if *key != egui::Key::Backspace)
            });
        }
        if prompt.is_some() && !prompt_ready && input.events.iter().any(is_press) {
            app.prompts().borrow_mut().disturbed(now);
        }
        let chrome = &mut gui.chrome;
        let mut output = None;
        let full_output = gui.context.run_ui(input, |ui| {
            let shown = state.as_ref().map(|state| state.borrow());
            let view = View {
                tabs: &tabs,
                active: window.shown_tab().unwrap_or(chrome::TabId::Tokens),
                page: page_view.as_ref(),
                console: shown.as_ref().map(|state| &state.console),
                prompt: prompt.as_ref(),
                prompt_ready,
                is_site: servo::is_reg_domain,
            };
            let this = chrome.show(ui, &view);
            drop(shown);
            // What a page asks has to wait while the browser asks.
            if let Some(state) = state.as_ref().filter(|_| prompt.is_none()) {
                let action = dialogs::show(ui.ctx(), this.page, scale, &mut state.borrow_mut());
                if action.is_some() {
                    app.note_user_input(window);
                }
            }
            if over_page && this.page.is_positive() {
                ui.ctx().set_cursor_icon(cursor_icon(self.cursor.get()));
            }
            if let Some(ready_at) = ready_at.filter(|_| prompt.is_some() && !prompt_ready) {
                ui.ctx().request_repaint_after(
                    ready_at.saturating_duration_since(now) + Duration::from_millis(5),
                );
            }
            // A pass may be run again: what was wanted in the first one counts.
            let output: &mut Output = output.get_or_insert(Output {
                actions: Vec::new(),
                page: this.page,
            });
            output.actions.extend(this.actions);
            output.page = this.page;
        });
        let output = output.unwrap_or(Output {
            actions: Vec::new(),
            page: Rect::NOTHING,
        });
        (output, full_output)
    }
}

/// Whether the user presses something that could be an answer.
fn is_press(event: &egui::Event) -> bool {
    matches!(
        event,
        egui::Event::PointerButton { pressed: true, .. }
            | egui::Event::Key {
                pressed: true,
                key: egui::Key::Enter | egui::Key::Space,
                ..
            }
    )
}

impl Drop for RealWindow {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            self.gui.get_mut().painter.destroy();
        }
    }
}

impl PlatformWindow for RealWindow {
    fn id(&self) -> WindowId {
        self.window.id().into()
    }

    fn rendering_context(&self) -> Rc<dyn RenderingContext> {
        self.page_context.clone()
    }

    fn scale(&self) -> Scale<f32, DeviceIndependentPixel, DevicePixel> {
        Scale::new(self.window.scale_factor() as f32)
    }

    fn outer_rect(&self) -> DeviceIntRect {
        // Wayland does not tell a window its position.
        let position = self.window.outer_position().unwrap_or_default();
        let size = self.window.outer_size();
        DeviceIntRect::from_origin_and_size(
            Point2D::new(position.x, position.y),
            Size2D::new(size.width, size.height).to_i32(),
        )
    }

    fn screen_size(&self) -> DeviceIntSize {
        match self.window.current_monitor() {
            Some(monitor) => Size2D::new(monitor.size().width, monitor.size().height).to_i32(),
            None => self.outer_rect().size(),
        }
    }

    fn move_to(&self, position: DeviceIntPoint) {
        self.window
            .set_outer_position(PhysicalPosition::new(position.x, position.y));
    }

    fn resize_to(&self, outer_size: DeviceIntSize) -> Option<PhysicalSize<u32>> {
        let (outer, inner) = (self.window.outer_size(), self.window.inner_size());
        let side = |wanted: i32, outer: u32, inner: u32| {
            u32::try_from(wanted)
                .unwrap_or(0)
                .saturating_sub(outer.saturating_sub(inner))
                .max(1)
        };
        let size = PhysicalSize::new(
            side(outer_size.width, outer.width, inner.width),
            side(outer_size.height, outer.height, inner.height),
        );
        let size = self.window.request_inner_size(size)?;
        self.resized(size);
        let page = self.page_context.size();
        let rest = inner.height.saturating_sub(page.height);
        Some(PhysicalSize::new(
            size.width,
            size.height.saturating_sub(rest).max(1),
        ))
    }

    fn maximize(&self) -> Option<PhysicalSize<u32>> {
        self.window.set_maximized(true);
        None
    }

    fn set_fullscreen(&self, fullscreen: bool) {
        self.window
            .set_fullscreen(fullscreen.then_some(Fullscreen::Borderless(None)));
    }

    fn set_title(&self, title: &str) {
        self.window.set_title(title);
    }

    fn set_cursor(&self, cursor: Cursor) {
        self.cursor.set(cursor);
        self.next_paint.set(Some(Instant::now()));
    }

    fn request_paint(&self) -> bool {
        self.next_paint.set(None);
        self.window.request_redraw();
        false
    }

    fn paint(&self, app: &App, window: &BrowserWindow) {
        // Painting is not entered twice: what is wanted while painting is done at its end.
        let Ok(mut gui) = self.gui.try_borrow_mut() else {
            return;
        };
        self.next_paint.set(None);
        let began = Instant::now();
        let (output, full_output) = self.run(app, window, &mut gui);
        self.page.set(output.page);
        let pixels = self.page_pixels();
        let size = at_least_one(PhysicalSize::new(
            u32::try_from(pixels.width()).unwrap_or(0),
            u32::try_from(pixels.height()).unwrap_or(0),
        ));
        let page = window.shown();
        if page.is_some() && size != self.page_context.size() {
            window.resized(size);
        }

        if let Err(error) = self.context.make_current() {
            return error!("cannot draw: {error:?}");
        }
        if let Some(page) = &page
            && window.take_page_needs_paint()
        {
            page.paint();
        }
        let inner = at_least_one(self.window.inner_size());
        if inner != self.context.size() {
            self.context.resize(inner);
        }
        self.context.prepare_for_rendering();
        let screen = [inner.width, inner.height];
        let background = gui.context.global_style().visuals.panel_fill;
        gui.painter
            .clear(screen, egui::Rgba::from(background).to_array());
        if page.is_some()
            && let Some(copy) = self.page_context.render_to_parent_callback()
        {
            // OpenGL counts from below.
            let bottom = i32::try_from(inner.height).unwrap_or(i32::MAX) - pixels.max.y;
            let target = euclid::default::Rect::new(
                Point2D::new(pixels.min.x, bottom),
                Size2D::new(pixels.width(), pixels.height()),
            );
            copy(&self.context.glow_gl_api(), target);
        }
        self.context.prepare_for_rendering();
        let egui::FullOutput {
            platform_output,
            textures_delta,
            shapes,
            pixels_per_point,
            viewport_output,
        } = full_output;
        let primitives = gui.context.tessellate(shapes, pixels_per_point);
        gui.painter.paint_and_update_textures(
            screen,
            pixels_per_point,
            &primitives,
            &textures_delta,
        );
        self.context.present();
        // Only now the prompt is in sight.
        app.prompts().borrow_mut().was_busy(began, Instant::now());
        gui.state
            .handle_platform_output(&self.window, platform_output);

        let delay = viewport_output
            .get(&ViewportId::ROOT)
            .map_or(Duration::MAX, |viewport| viewport.repaint_delay);
        let repaint = Instant::now().checked_add(delay);
        // Until far in the future means never.
        let repaint = repaint.filter(|_| delay < Duration::from_secs(3600));
        self.next_paint
            .set([self.next_paint.get(), repaint].into_iter().flatten().min());
        drop(gui);
        for action in output.actions {
            let focuses_address = action == chrome::Action::NewTab;
            let gives_keyboard =
                matches!(action, chrome::Action::Load(_) | chrome::Action::Answer(..));
            let Some(window) = app.window(self.id()) else {
                return;
            };
            app.perform(&window, action);
            if focuses_address {
                self.focus_address();
            }
            if gives_keyboard {
                self.give_keyboard_to_page();
            }
        }
    }

    fn next_paint(&self) -> Option<Instant> {
        self.next_paint.get()
    }

    fn has_user(&self) -> bool {
        true
    }
}

fn at_least_one(size: PhysicalSize<u32>) -> PhysicalSize<u32> {
    PhysicalSize::new(size.width.max(1), size.height.max(1))
}

/// The size of a window whose page has this size.
fn with_chrome(page: PhysicalSize<u32>, scale: f64) -> PhysicalSize<u32> {
    let chrome = (f64::from(chrome::HEIGHT) * scale).round() as u32;
    PhysicalSize::new(page.width, page.height.saturating_add(chrome))
}

fn cursor_icon(cursor: Cursor) -> CursorIcon {
    match cursor {
        Cursor::None => CursorIcon::None,
        Cursor::Default => CursorIcon::Default,
        Cursor::Pointer => CursorIcon::PointingHand,
        Cursor::ContextMenu => CursorIcon::ContextMenu,
        Cursor::Help => CursorIcon::Help,
        Cursor::Progress => CursorIcon::Progress,
        Cursor::Wait => CursorIcon::Wait,
        Cursor::Cell => CursorIcon::Cell,
        Cursor::Crosshair => CursorIcon::Crosshair,
        Cursor::Text => CursorIcon::Text,
        Cursor::VerticalText => CursorIcon::VerticalText,
        Cursor::Alias => CursorIcon::Alias,
        Cursor::Copy => CursorIcon::Copy,
        Cursor::Move => CursorIcon::Move,
        Cursor::NoDrop => CursorIcon::NoDrop,
        Cursor::NotAllowed => CursorIcon::NotAllowed,
        Cursor::Grab => CursorIcon::Grab,
        Cursor::Grabbing => CursorIcon::Grabbing,
        Cursor::EResize => CursorIcon::ResizeEast,
        Cursor::NResize => CursorIcon::ResizeNorth,
        Cursor::NeResize => CursorIcon::ResizeNorthEast,
        Cursor::NwResize => CursorIcon::ResizeNorthWest,
        Cursor::SResize => CursorIcon::ResizeSouth,
        Cursor::SeResize => CursorIcon::ResizeSouthEast,
        Cursor::SwResize => CursorIcon::ResizeSouthWest,
        Cursor::WResize => CursorIcon::ResizeWest,
        Cursor::EwResize => CursorIcon::ResizeHorizontal,
        Cursor::NsResize => CursorIcon::ResizeVertical,
        Cursor::NeswResize => CursorIcon::ResizeNeSw,
        Cursor::NwseResize => CursorIcon::ResizeNwSe,
        Cursor::ColResize => CursorIcon::ResizeColumn,
        Cursor::RowResize => CursorIcon::ResizeRow,
        Cursor::AllScroll => CursorIcon::AllScroll,
        Cursor::ZoomIn => CursorIcon::ZoomIn,
        Cursor::ZoomOut => CursorIcon::ZoomOut,
    }
}
