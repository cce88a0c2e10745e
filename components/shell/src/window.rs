/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Real windows, and the event loop of the window system.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dpi::{PhysicalPosition, PhysicalSize};
use euclid::{Point2D, Scale, Size2D};
use servo::{
    ClipboardAction, Cursor, DeviceIndependentPixel, DeviceIntPoint, DeviceIntRect, DeviceIntSize,
    DevicePixel, DevicePoint, EventLoopWaker, InputEvent, MouseButton, MouseButtonAction,
    MouseButtonEvent, MouseLeftViewportEvent, MouseMoveEvent, RenderingContext, Theme, WheelDelta,
    WheelEvent, WheelMode, WindowRenderingContext,
};
use winit::application::ApplicationHandler;
use winit::event::{
    ElementState, KeyEvent, MouseButton as WinitMouseButton, MouseScrollDelta, StartCause,
    WindowEvent,
};
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop, EventLoopProxy};
use winit::keyboard::{Key, ModifiersState};
use winit::raw_window_handle::{HasDisplayHandle, HasWindowHandle};
use winit::window::{CursorIcon, Fullscreen, Theme as WinitTheme, Window};

use crate::app::App;
use crate::browser_window::{BrowserWindow, Platform, PlatformWindow, WindowId};
use crate::cli::Settings;
use crate::keyboard;

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

/// Asks for an [`App::turn`].
#[derive(Debug)]
struct WakeUp;

struct Waker(EventLoopProxy<WakeUp>);

impl EventLoopWaker for Waker {
    fn clone_box(&self) -> Box<dyn EventLoopWaker> {
        Box::new(Self(self.0.clone()))
    }

    fn wake(&self) {
        // An error means that the event loop has ended.
        let _ = self.0.send_event(WakeUp);
    }
}

enum State {
    Starting {
        settings: Option<Box<Settings>>,
        proxy: EventLoopProxy<WakeUp>,
    },
    Running(Running),
    Ended(Result<u8, String>),
}

struct Running {
    app: Rc<App>,
    modifiers: ModifiersState,
    /// Where the pointer was last seen, and in which window.
    pointer: Cell<DevicePoint>,
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
        app.open_first_window(&WindowSystem {
            event_loop,
            size: app.settings().window_size,
        })?;
        *self = State::Running(Running {
            app,
            modifiers: ModifiersState::empty(),
            pointer: Cell::new(DevicePoint::zero()),
            code: 0,
        });
        Ok(())
    }
}

impl ApplicationHandler<WakeUp> for State {
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

    fn user_event(&mut self, event_loop: &ActiveEventLoop, _event: WakeUp) {
        if let State::Running(running) = self {
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
            size: self.app.settings().window_size,
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

    fn window_event(&mut self, id: WindowId, event: WindowEvent) {
        let Some(window) = self.app.window(id) else {
            return;
        };
        match event {
            WindowEvent::CloseRequested | WindowEvent::Destroyed => self.app.close_window(id),
            WindowEvent::RedrawRequested => window.paint(),
            WindowEvent::Resized(size) => {
                window.resized(PhysicalSize::new(size.width.max(1), size.height.max(1)))
            }
            WindowEvent::ScaleFactorChanged { scale_factor, .. } => {
                for webview in window.webviews() {
                    webview.set_hidpi_scale_factor(Scale::new(scale_factor as f32));
                }
            }
            WindowEvent::Focused(focused) => {
                if focused {
                    self.app.focus_window(id);
                }
                if let Some(webview) = window.active() {
                    webview.set_focused(focused);
                }
            }
            WindowEvent::ThemeChanged(theme) => {
                for webview in window.webviews() {
                    webview.notify_theme_change(match theme {
                        WinitTheme::Light => Theme::Light,
                        WinitTheme::Dark => Theme::Dark,
                    });
                }
            }
            WindowEvent::ModifiersChanged(modifiers) => self.modifiers = modifiers.state(),
            WindowEvent::KeyboardInput {
                event,
                is_synthetic: false,
                ..
            } => self.key(&window, &event),
            WindowEvent::CursorMoved { position, .. } => {
                self.pointer
                    .set(DevicePoint::new(position.x as f32, position.y as f32));
                send(
                    &window,
                    InputEvent::MouseMove(MouseMoveEvent::new(self.pointer.get().into())),
                );
            }
            WindowEvent::CursorLeft { .. } => {
                send(
                    &window,
                    InputEvent::MouseLeftViewport(MouseLeftViewportEvent::default()),
                );
            }
            WindowEvent::MouseInput { state, button, .. } => {
                let action = match state {
                    ElementState::Pressed => MouseButtonAction::Down,
                    ElementState::Released => MouseButtonAction::Up,
                };
                let button = match button {
                    WinitMouseButton::Left => MouseButton::Primary,
                    WinitMouseButton::Middle => MouseButton::Auxiliary,
                    WinitMouseButton::Right => MouseButton::Secondary,
                    WinitMouseButton::Back => MouseButton::Back,
                    WinitMouseButton::Forward => MouseButton::Forward,
                    WinitMouseButton::Other(number) => MouseButton::Other(number),
                };
                let event = MouseButtonEvent::new(action, button, self.pointer.get().into());
                send(&window, InputEvent::MouseButton(event));
            }
            WindowEvent::MouseWheel { delta, .. } => {
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
                    &window,
                    InputEvent::Wheel(WheelEvent::new(delta, self.pointer.get().into())),
                );
            }
            _ => {}
        }
    }

    fn key(&self, window: &BrowserWindow, event: &KeyEvent) {
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
        send(
            window,
            InputEvent::Keyboard(keyboard::keyboard_event(event, self.modifiers)),
        );
    }
}

fn send(window: &BrowserWindow, event: InputEvent) {
    if let Some(webview) = window.active() {
        webview.notify_input_event(event);
    }
}

struct WindowSystem<'a> {
    event_loop: &'a ActiveEventLoop,
    size: PhysicalSize<u32>,
}

impl Platform for WindowSystem<'_> {
    fn open_window(&self) -> Result<Rc<dyn PlatformWindow>, String> {
        let problem = |error: &dyn std::fmt::Display| format!("cannot open a window: {error}");
        let attributes = Window::default_attributes()
            .with_title("servo-tokens")
            .with_inner_size(self.size);
        let window = self
            .event_loop
            .create_window(attributes)
            .map_err(|error| problem(&error))?;
        let display = self
            .event_loop
            .display_handle()
            .map_err(|error| problem(&error))?;
        let handle = window.window_handle().map_err(|error| problem(&error))?;
        let size = window.inner_size();
        let size = PhysicalSize::new(size.width.max(1), size.height.max(1));
        let context = WindowRenderingContext::new(display, handle, size)
            .map_err(|error| problem(&format!("{error:?}")))?;
        Ok(Rc::new(RealWindow {
            context: Rc::new(context),
            window,
            cursor: RefCell::new(None),
        }))
    }
}

/// A window of the window system. The rendering context draws on the window, and goes before it.
struct RealWindow {
    context: Rc<WindowRenderingContext>,
    window: Window,
    cursor: RefCell<Option<Cursor>>,
}

impl PlatformWindow for RealWindow {
    fn id(&self) -> WindowId {
        self.window.id().into()
    }

    fn rendering_context(&self) -> Rc<dyn RenderingContext> {
        self.context.clone()
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
        self.window.request_inner_size(PhysicalSize::new(
            side(outer_size.width, outer.width, inner.width),
            side(outer_size.height, outer.height, inner.height),
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
        if self.cursor.replace(Some(cursor)) == Some(cursor) {
            return;
        }
        self.window.set_cursor_visible(cursor != Cursor::None);
        if let Some(icon) = cursor_icon(cursor) {
            self.window.set_cursor(icon);
        }
    }

    fn request_paint(&self) -> bool {
        self.window.request_redraw();
        false
    }
}

fn cursor_icon(cursor: Cursor) -> Option<CursorIcon> {
    Some(match cursor {
        Cursor::None => return None,
        Cursor::Default => CursorIcon::Default,
        Cursor::Pointer => CursorIcon::Pointer,
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
        Cursor::EResize => CursorIcon::EResize,
        Cursor::NResize => CursorIcon::NResize,
        Cursor::NeResize => CursorIcon::NeResize,
        Cursor::NwResize => CursorIcon::NwResize,
        Cursor::SResize => CursorIcon::SResize,
        Cursor::SeResize => CursorIcon::SeResize,
        Cursor::SwResize => CursorIcon::SwResize,
        Cursor::WResize => CursorIcon::WResize,
        Cursor::EwResize => CursorIcon::EwResize,
        Cursor::NsResize => CursorIcon::NsResize,
        Cursor::NeswResize => CursorIcon::NeswResize,
        Cursor::NwseResize => CursorIcon::NwseResize,
        Cursor::ColResize => CursorIcon::ColResize,
        Cursor::RowResize => CursorIcon::RowResize,
        Cursor::AllScroll => CursorIcon::AllScroll,
        Cursor::ZoomIn => CursorIcon::ZoomIn,
        Cursor::ZoomOut => CursorIcon::ZoomOut,
    })
}
