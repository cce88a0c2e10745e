/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Real windows, and the event loop of the window system.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::{Rc, Weak};

use dpi::{PhysicalPosition, PhysicalSize};
use egui_winit::accesskit_winit;
use euclid::Scale;
use servo::{
    ClipboardAction, DevicePoint, EventLoopWaker, InputEvent, MouseButton, MouseButtonAction,
    MouseButtonEvent, MouseLeftViewportEvent, MouseMoveEvent, Theme, WheelDelta, WheelEvent,
    WheelMode,
};
use winit::application::ApplicationHandler;
use winit::event::{
    ElementState, KeyEvent, MouseButton as WinitMouseButton, MouseScrollDelta, StartCause,
    WindowEvent,
};
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop, EventLoopProxy};
use winit::keyboard::{Key, ModifiersState, NamedKey, PhysicalKey};
use winit::window::Theme as WinitTheme;

use crate::app::App;
use crate::browser_window::{BrowserWindow, Platform, PlatformWindow, WindowId};
use crate::chrome::{Action, TabId};
use crate::cli::Settings;
use crate::keyboard;
use crate::real_window::RealWindow;

/// How far a page scrolls for one notch of a mouse wheel, in CSS pixels.
const LINE_HEIGHT: f64 = 76.0;

/// Runs the browser in windows. Returns its exit code.
pub fn run(settings: Settings) -> Result<u8, String> {
    let event_loop = EventLoop::with_user_event().build().map_err(|error| {
        format!("cannot reach a display server: {error}\nWithout one, use --headless.")
    })?;
    let proxy = event_loop.create_proxy();
    let mut state = State::Starting {
        settings: Some(Box::new(settings)),
        proxy,
    };
    event_loop
        .run_app(&mut state)
        .map_err(|error| format!("the window system reports: {error}"))?;
    match state {
        State::Ended(result) => result,
        State::Starting { .. } | State::Running(_) => Err("the event loop ended by itself".into()),
    }
}

/// What comes to the event loop from elsewhere.
#[derive(Debug)]
pub enum Event {
    /// Asks for an [`App::turn`].
    WakeUp,
    /// A screen reader wants something.
    Accessibility(accesskit_winit::Event),
}

impl From<accesskit_winit::Event> for Event {
    fn from(event: accesskit_winit::Event) -> Self {
        Self::Accessibility(event)
    }
}

struct Waker(EventLoopProxy<Event>);

impl EventLoopWaker for Waker {
    fn clone_box(&self) -> Box<dyn EventLoopWaker> {
        Box::new(Self(self.0.clone()))
    }

    fn wake(&self) {
        // An error means that the event loop has ended.
        let _ = self.0.send_event(Event::WakeUp);
    }
}

enum State {
    Starting {
        settings: Option<Box<Settings>>,
        proxy: EventLoopProxy<Event>,
    },
    Running(Running),
    Ended(Result<u8, String>),
}

/// The windows that are open, for their events. The browser keeps them.
type RealWindows = Rc<RefCell<HashMap<WindowId, Weak<RealWindow>>>>;

struct Running {
    app: Rc<App>,
    proxy: EventLoopProxy<Event>,
    windows: RealWindows,
    modifiers: ModifiersState,
    /// Where the pointer was last seen, and in which window.
    pointer: PhysicalPosition<f64>,
    /// A button went down over the page: until it is up again, the page follows the pointer everywhere.
    captured: bool,
    /// Keys that were down when a window got the focus. What they repeat was meant for somebody else.
    held: HashSet<PhysicalKey>,
    code: u8,
}

impl State {
    fn start(&mut self, event_loop: &ActiveEventLoop) -> Result<(), String> {
        let State::Starting { settings, proxy } = self else {
            return Ok(());
        };
        let Some(settings) = settings.take() else {
            return Ok(());
        };
        let app = App::start(*settings, Box::new(Waker(proxy.clone())))?;
        let windows = RealWindows::default();
        app.open_first_window(&WindowSystem {
            event_loop,
            proxy: proxy.clone(),
            app: &app,
            windows: &windows,
        })?;
        *self = State::Running(Running {
            app,
            proxy: proxy.clone(),
            windows,
            modifiers: ModifiersState::empty(),
            pointer: PhysicalPosition::default(),
            captured: false,
            held: HashSet::new(),
            code: 0,
        });
        Ok(())
    }
}

impl ApplicationHandler<Event> for State {
    fn resumed(&mut self, event_loop: &ActiveEventLoop) {
        if let Err(error) = self.start(event_loop) {
            *self = State::Ended(Err(error));
            event_loop.exit();
        }
    }

    fn new_events(&mut self, event_loop: &ActiveEventLoop, cause: StartCause) {
        if let (State::Running(running), StartCause::ResumeTimeReached { .. }) = (self, cause) {
            running.turn(event_loop);
        }
    }

    fn user_event(&mut self, event_loop: &ActiveEventLoop, event: Event) {
        if let State::Running(running) = self {
            if let Event::Accessibility(event) = event
                && let Some(window) = running.real(event.window_id.into())
            {
                window.accessibility_event(event.window_event);
            }
            running.turn(event_loop);
        }
    }

    fn window_event(
        &mut self,
        event_loop: &ActiveEventLoop,
        id: winit::window::WindowId,
        event: WindowEvent,
    ) {
        if let State::Running(running) = self {
            running.window_event(id.into(), event);
            running.turn(event_loop);
        }
    }

    fn exiting(&mut self, _event_loop: &ActiveEventLoop) {
        // Windows must go while the connection to the window system is there.
        if let State::Running(running) = std::mem::replace(self, State::Ended(Ok(0))) {
            let code = running.code;
            running.app.shut_down();
            *self = State::Ended(Ok(code));
        }
    }
}

impl Running {
    fn turn(&mut self, event_loop: &ActiveEventLoop) {
        let platform = WindowSystem {
            event_loop,
            proxy: self.proxy.clone(),
            app: &self.app,
            windows: &self.windows,
        };
        if let Some(code) = self.app.turn(&platform) {
            self.code = code;
            event_loop.exit();
        }
        event_loop.set_control_flow(match self.app.deadline() {
            Some(deadline) => ControlFlow::WaitUntil(deadline),
            None => ControlFlow::Wait,
        });
    }

    fn real(&self, id: WindowId) -> Option<Rc<RealWindow>> {
        self.windows.borrow().get(&id)?.upgrade()
    }

    fn window_event(&mut self, id: WindowId, event: WindowEvent) {
        let (Some(window), Some(real)) = (self.app.window(id), self.real(id)) else {
            return;
        };
        // Keys go to the page or to the browser, everything else concerns both.
        if !matches!(
            event,
            WindowEvent::KeyboardInput { .. } | WindowEvent::RedrawRequested
        ) {
            real.to_chrome(&event);
        }
        match &event {
            WindowEvent::CloseRequested | WindowEvent::Destroyed => {
                self.app.close_window(id);
                self.windows.borrow_mut().remove(&id);
            }
            WindowEvent::RedrawRequested => window.paint(&self.app),
            WindowEvent::Resized(size) => {
                real.resized(*size);
                self.disturb_prompt(&window);
                window.schedule_paint();
            }
            WindowEvent::Moved(_) | WindowEvent::Occluded(_) => self.disturb_prompt(&window),
            WindowEvent::ScaleFactorChanged { scale_factor, .. } => {
                for webview in window.webviews() {
                    webview.set_hidpi_scale_factor(Scale::new(*scale_factor as f32));
                }
                self.disturb_prompt(&window);
                window.schedule_paint();
            }
            WindowEvent::Focused(focused) => self.app.window_focus_changed(id, *focused),
            WindowEvent::ThemeChanged(theme) => {
                for webview in window.webviews() {
                    webview.notify_theme_change(match theme {
                        WinitTheme::Light => Theme::Light,
                        WinitTheme::Dark => Theme::Dark,
                    });
                }
            }
            WindowEvent::ModifiersChanged(modifiers) => self.modifiers = modifiers.state(),
            // The window system tells of keys that are down when the focus comes.
            WindowEvent::KeyboardInput {
                event: key,
                is_synthetic: true,
                ..
            } => {
                match key.state {
                    ElementState::Pressed => self.held.insert(key.physical_key),
                    ElementState::Released => self.held.remove(&key.physical_key),
                };
            }
            WindowEvent::KeyboardInput { event: key, .. } => {
                let pressed = key.state == ElementState::Pressed;
                if !pressed {
                    self.held.remove(&key.physical_key);
                } else if self.held.contains(&key.physical_key) {
                    return;
                }
                if pressed && let Some(command) = command(key, self.modifiers) {
                    self.obey(&window, &real, command);
                } else if self.page_has_input(&window) && !real.chrome_has_keyboard() {
                    self.key_for_page(&window, key);
                } else {
                    real.to_chrome(&event);
                    // From the address bar, Escape leads back to the page.
                    if pressed
                        && key.logical_key == Key::Named(NamedKey::Escape)
                        && self.page_has_input(&window)
                    {
                        real.give_keyboard_to_page();
                    }
                }
            }
            WindowEvent::CursorMoved { position, .. } => {
                self.pointer = *position;
                let over_page = real.point_in_page(*position).is_some();
                if let Some(point) = self.pointer_in_page(&window, &real)
                    && (over_page || self.captured)
                {
                    send(
                        &window,
                        InputEvent::MouseMove(MouseMoveEvent::new(point.into())),
                    );
                }
            }
            WindowEvent::CursorLeft { .. } => {
                send(
                    &window,
                    InputEvent::MouseLeftViewport(MouseLeftViewportEvent::default()),
                );
            }
            WindowEvent::MouseInput { state, button, .. } => {
                self.mouse_button(&window, &real, *state, *button);
            }
            WindowEvent::MouseWheel { delta, .. } => self.mouse_wheel(&window, &real, *delta),
            _ => {}
        }
    }

    /// Where something has moved, the user may hit something else than was meant.
    fn disturb_prompt(&self, window: &BrowserWindow) {
        if self.app.shows_prompt(window) {
            self.app
                .prompts()
                .borrow_mut()
                .disturbed(std::time::Instant::now());
            window.schedule_paint();
        }
    }

    /// Whether the page that is shown may have the user's input: nothing else waits for it.
    fn page_has_input(&self, window: &BrowserWindow) -> bool {
        let Some(page) = window.shown() else {
            return false;
        };
        let blocked = window
            .state(page.id())
            .is_some_and(|state| state.borrow().is_blocked());
        !blocked && !self.app.shows_prompt(window)
    }

    /// The pointer's place in the page, which it may be outside of, if the page may have it.
    fn pointer_in_page(&self, window: &BrowserWindow, real: &RealWindow) -> Option<DevicePoint> {
        self.page_has_input(window)
            .then(|| real.relative_to_page(self.pointer))
    }

    fn mouse_button(
        &mut self,
        window: &Rc<BrowserWindow>,
        real: &RealWindow,
        state: ElementState,
        button: WinitMouseButton,
    ) {
        let pressed = state == ElementState::Pressed;
        let over_page = real.point_in_page(self.pointer).is_some() && self.page_has_input(window);
        match button {
            WinitMouseButton::Back if pressed => return self.app.perform(window, Action::Back),
            WinitMouseButton::Forward if pressed => {
                return self.app.perform(window, Action::Forward);
            }
            WinitMouseButton::Back | WinitMouseButton::Forward => return,
            _ => {}
        }
        if pressed && !over_page {
            return;
        }
        if !pressed && !std::mem::take(&mut self.captured) {
            return;
        }
        if pressed {
            self.captured = true;
            real.give_keyboard_to_page();
            self.app.note_user_input(window);
        }
        let action = if pressed {
            MouseButtonAction::Down
        } else {
            MouseButtonAction::Up
        };
        let button = match button {
            WinitMouseButton::Left => MouseButton::Primary,
            WinitMouseButton::Middle => MouseButton::Auxiliary,
            WinitMouseButton::Right => MouseButton::Secondary,
            WinitMouseButton::Back => MouseButton::Back,
            WinitMouseButton::Forward => MouseButton::Forward,
            WinitMouseButton::Other(number) => MouseButton::Other(number),
        };
        let point = real.relative_to_page(self.pointer);
        let event = MouseButtonEvent::new(action, button, point.into());
        send(window, InputEvent::MouseButton(event));
    }

    fn mouse_wheel(&self, window: &BrowserWindow, real: &RealWindow, delta: MouseScrollDelta) {
        let Some(point) = real
            .point_in_page(self.pointer)
            .filter(|_| self.page_has_input(window))
        else {
            return;
        };
        if self.modifiers == ModifiersState::CONTROL {
            let up = match delta {
                MouseScrollDelta::LineDelta(_, y) => y > 0.0,
                MouseScrollDelta::PixelDelta(delta) => delta.y > 0.0,
            };
            return self.app.zoom(window, if up { 1 } else { -1 });
        }
        let delta = match delta {
            MouseScrollDelta::LineDelta(x, y) => WheelDelta {
                x: f64::from(x) * LINE_HEIGHT,
                y: f64::from(y) * LINE_HEIGHT,
                z: 0.0,
                mode: WheelMode::DeltaLine,
            },
            MouseScrollDelta::PixelDelta(delta) => WheelDelta {
                x: delta.x,
                y: delta.y,
                z: 0.0,
                mode: WheelMode::DeltaPixel,
            },
        };
        send(
            window,
            InputEvent::Wheel(WheelEvent::new(delta, point.into())),
        );
    }

    fn key_for_page(&self, window: &BrowserWindow, event: &KeyEvent) {
        if event.state == ElementState::Pressed {
            self.app.note_user_input(window);
        }
        // The engine leaves it to the browser which keys mean the clipboard.
        if self.modifiers == ModifiersState::CONTROL
            && event.state == ElementState::Pressed
            && let Key::Character(character) = &event.logical_key
        {
            let action = match character.as_str() {
                "c" => Some(ClipboardAction::Copy),
                "x" => Some(ClipboardAction::Cut),
                "v" => Some(ClipboardAction::Paste),
                _ => None,
            };
            if let Some(action) = action {
                return send(window, InputEvent::EditingAction(action));
            }
        }
        if event.state == ElementState::Pressed
            && event.logical_key == Key::Named(NamedKey::Escape)
            && self.app.leave_fullscreen(window)
        {
            return;
        }
        send(
            window,
            InputEvent::Keyboard(keyboard::keyboard_event(event, self.modifiers)),
        );
    }

    fn obey(&self, window: &Rc<BrowserWindow>, real: &RealWindow, command: Command) {
        match command {
            Command::EditAddress => real.focus_address(),
            Command::NewTab => {
                self.app.perform(window, Action::NewTab);
                real.focus_address();
            }
            Command::CloseTab => {
                if let Some(tab) = window.shown_tab() {
                    self.app.perform(window, Action::Close(tab));
                }
            }
            Command::NextTab => self.app.step_tab(window, 1),
            Command::PreviousTab => self.app.step_tab(window, -1),
            Command::NthTab(number) => {
                let tabs = window.tabs();
                // The ninth key means the last one, as elsewhere.
                let tab = if number == 9 {
                    tabs.last()
                } else {
                    tabs.get(number - 1)
                };
                if let Some(tab) = tab {
                    self.app.show_tab(window, *tab);
                }
            }
            Command::Reload => self.app.perform(window, Action::Reload),
            Command::Back => self.app.perform(window, Action::Back),
            Command::Forward => self.app.perform(window, Action::Forward),
            Command::Zoom(steps) => self.app.zoom(window, steps),
            Command::ResetZoom => self.app.perform(window, Action::ResetZoom),
            Command::Console => real.toggle_console(),
            Command::Tokens => self.app.show_tab(window, TabId::Tokens),
        }
    }
}

/// What keys mean to the browser, wherever the focus is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Command {
    EditAddress,
    NewTab,
    CloseTab,
    NextTab,
    PreviousTab,
    /// Counted from 1.
    NthTab(usize),
    Reload,
    Back,
    Forward,
    Zoom(i32),
    ResetZoom,
    Console,
    Tokens,
}

fn command(event: &KeyEvent, modifiers: ModifiersState) -> Option<Command> {
    command_of(&event.logical_key, modifiers)
}

fn command_of(key: &Key, modifiers: ModifiersState) -> Option<Command> {
    const CONTROL: ModifiersState = ModifiersState::CONTROL;
    let none = ModifiersState::empty();
    let control_shift = CONTROL.union(ModifiersState::SHIFT);
    Some(match key {
        Key::Named(named) => match named {
            NamedKey::F5 if modifiers == none => Command::Reload,
            NamedKey::F6 if modifiers == none => Command::EditAddress,
            NamedKey::F12 if modifiers == none => Command::Console,
            NamedKey::Tab | NamedKey::PageDown if modifiers == CONTROL => Command::NextTab,
            NamedKey::Tab if modifiers == control_shift => Command::PreviousTab,
            NamedKey::PageUp if modifiers == CONTROL => Command::PreviousTab,
            NamedKey::ArrowLeft if modifiers == ModifiersState::ALT => Command::Back,
            NamedKey::ArrowRight if modifiers == ModifiersState::ALT => Command::Forward,
            NamedKey::BrowserBack => Command::Back,
            NamedKey::BrowserForward => Command::Forward,
            NamedKey::BrowserRefresh => Command::Reload,
            _ => return None,
        },
        Key::Character(character) => {
            let character = character.to_lowercase();
            match character.as_str() {
                "l" if modifiers == CONTROL => Command::EditAddress,
                "t" if modifiers == CONTROL => Command::NewTab,
                "w" if modifiers == CONTROL => Command::CloseTab,
                "r" if modifiers == CONTROL || modifiers == control_shift => Command::Reload,
                "j" if modifiers == control_shift => Command::Console,
                "k" if modifiers == control_shift => Command::Tokens,
                // On many keyboards the plus sign needs Shift, on some the equals sign is its key.
                "+" | "=" if modifiers.difference(ModifiersState::SHIFT) == CONTROL => {
                    Command::Zoom(1)
                }
                "-" | "_" if modifiers.difference(ModifiersState::SHIFT) == CONTROL => {
                    Command::Zoom(-1)
                }
                "0" if modifiers == CONTROL => Command::ResetZoom,
                digit if modifiers == CONTROL => match digit.parse() {
                    Ok(number @ 1..=9) => Command::NthTab(number),
                    _ => return None,
                },
                _ => return None,
            }
        }
        _ => return None,
    })
}

fn send(window: &BrowserWindow, event: InputEvent) {
    if let Some(webview) = window.shown() {
        webview.notify_input_event(event);
    }
}

struct WindowSystem<'a> {
    event_loop: &'a ActiveEventLoop,
    proxy: EventLoopProxy<Event>,
    app: &'a App,
    windows: &'a RealWindows,
}

impl Platform for WindowSystem<'_> {
    fn open_window(&self) -> Result<Rc<dyn PlatformWindow>, String> {
        let size: PhysicalSize<u32> = self.app.settings().window_size;
        let window = RealWindow::open(self.event_loop, self.proxy.clone(), size, self.app)?;
        let mut windows = self.windows.borrow_mut();
        windows.retain(|_, window| window.strong_count() > 0);
        windows.insert(window.id(), Rc::downgrade(&window));
        Ok(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortcuts() {
        let character = |text: &str| Key::Character(text.into());
        let (control, shift) = (ModifiersState::CONTROL, ModifiersState::SHIFT);
        for (key, modifiers, expected) in [
            (character("l"), control, Some(Command::EditAddress)),
            (character("K"), control | shift, Some(Command::Tokens)),
            (character("J"), control | shift, Some(Command::Console)),
            (character("+"), control, Some(Command::Zoom(1))),
            (character("+"), control | shift, Some(Command::Zoom(1))),
            (character("-"), control, Some(Command::Zoom(-1))),
            (character("3"), control, Some(Command::NthTab(3))),
            (character("0"), control, Some(Command::ResetZoom)),
            (
                Key::Named(NamedKey::Tab),
                control | shift,
                Some(Command::PreviousTab),
            ),
            (
                Key::Named(NamedKey::ArrowLeft),
                ModifiersState::ALT,
                Some(Command::Back),
            ),
            (
                Key::Named(NamedKey::F5),
                ModifiersState::empty(),
                Some(Command::Reload),
            ),
            // These are the page's.
            (character("c"), control, None),
            (character("l"), ModifiersState::empty(), None),
            (character("t"), control | ModifiersState::ALT, None),
            (Key::Named(NamedKey::Tab), ModifiersState::empty(), None),
            (Key::Named(NamedKey::Escape), ModifiersState::empty(), None),
        ] {
            assert_eq!(command_of(&key, modifiers), expected, "{key:?}");
        }
    }
}
