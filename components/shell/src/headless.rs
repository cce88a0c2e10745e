/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Windows in memory, drawn in software, and the event loop for them. Needs no display server.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use dpi::PhysicalSize;
use euclid::{Scale, Size2D};
use servo::{
    Cursor, DeviceIndependentPixel, DeviceIntPoint, DeviceIntRect, DeviceIntSize, DevicePixel,
    EventLoopWaker, RenderingContext, SoftwareRenderingContext,
};

use crate::app::App;
use crate::browser_window::{BrowserWindow, Platform, PlatformWindow, WindowId};
use crate::cli::Settings;

/// The screen that pages see, in device pixels. Nothing is shown on it.
const SCREEN: (i32, i32) = (1920, 1080);

/// Runs the browser without a display. Returns its exit code.
pub fn run(settings: Settings) -> Result<u8, String> {
    // One pending wake-up is enough: a turn handles everything.
    let (wake, woken) = bounded(1);
    let app = App::start(settings, Box::new(Waker(wake)))?;
    let platform = Headless {
        size: app.settings().window_size,
        next_id: Cell::new(1),
    };
    app.open_first_window(&platform)?;
    let code = loop {
        if let Some(code) = app.turn(&platform) {
            break code;
        }
        // Both errors mean that it is time for a turn: the deadline is over. The sender cannot be gone, the engine has it.
        let _ = match app.deadline() {
            Some(deadline) => woken.recv_deadline(deadline).map_err(drop),
            None => woken.recv().map_err(drop),
        };
    };
    app.shut_down();
    Ok(code)
}

struct Waker(Sender<()>);

impl EventLoopWaker for Waker {
    fn clone_box(&self) -> Box<dyn EventLoopWaker> {
        Box::new(Self(self.0.clone()))
    }

    fn wake(&self) {
        // Full means that the loop will wake up anyway.
        let _ = self.0.try_send(());
    }
}

struct Headless {
    size: PhysicalSize<u32>,
    next_id: Cell<WindowId>,
}

impl Platform for Headless {
    fn open_window(&self) -> Result<Rc<dyn PlatformWindow>, String> {
        let context = SoftwareRenderingContext::new(self.size).map_err(|error| {
            format!("cannot draw in software: {error:?} (EGL and Mesa's llvmpipe are needed)")
        })?;
        let id = self.next_id.replace(self.next_id.get() + 1);
        Ok(Rc::new(HeadlessWindow {
            id,
            context: Rc::new(context),
            position: Cell::new(DeviceIntPoint::zero()),
        }))
    }
}

struct HeadlessWindow {
    id: WindowId,
    context: Rc<SoftwareRenderingContext>,
    position: Cell<DeviceIntPoint>,
}

impl PlatformWindow for HeadlessWindow {
    fn id(&self) -> WindowId {
        self.id
    }

    fn rendering_context(&self) -> Rc<dyn RenderingContext> {
        self.context.clone()
    }

    fn scale(&self) -> Scale<f32, DeviceIndependentPixel, DevicePixel> {
        Scale::new(1.0)
    }

    fn outer_rect(&self) -> DeviceIntRect {
        DeviceIntRect::from_origin_and_size(self.position.get(), self.context.size2d().to_i32())
    }

    fn screen_size(&self) -> DeviceIntSize {
        // A window larger than the screen would be a contradiction.
        self.context
            .size2d()
            .to_i32()
            .max(Size2D::new(SCREEN.0, SCREEN.1))
    }

    fn move_to(&self, position: DeviceIntPoint) {
        self.position.set(position);
    }

    fn resize_to(&self, outer_size: DeviceIntSize) -> Option<PhysicalSize<u32>> {
        let side = |side: i32| {
            u32::try_from(side)
                .unwrap_or(0)
                .clamp(1, crate::cli::MAX_WINDOW_SIDE)
        };
        Some(PhysicalSize::new(
            side(outer_size.width),
            side(outer_size.height),
        ))
    }

    fn maximize(&self) -> Option<PhysicalSize<u32>> {
        self.position.set(DeviceIntPoint::zero());
        self.resize_to(Size2D::new(SCREEN.0, SCREEN.1))
    }

    fn set_fullscreen(&self, _fullscreen: bool) {}

    fn set_title(&self, _title: &str) {}

    fn set_cursor(&self, _cursor: Cursor) {}

    fn request_paint(&self) -> bool {
        true
    }

    fn paint(&self, _app: &App, window: &BrowserWindow) {
        if let Some(webview) = window.active() {
            webview.paint();
            self.context.present();
        }
    }

    fn next_paint(&self) -> Option<Instant> {
        None
    }

    fn has_user(&self) -> bool {
        false
    }
}
