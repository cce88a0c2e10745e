/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A window and the pages in it, of which one is shown.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dpi::PhysicalSize;
use euclid::Scale;
use servo::{
    Cursor, DeviceIndependentIntRect, DeviceIndependentPixel, DeviceIntPoint, DeviceIntRect,
    DeviceIntSize, DevicePixel, RenderingContext, ScreenGeometry, WebView, WebViewId,
    convert_rect_to_css_pixel,
};

/// Names a [`PlatformWindow`] in this process.
pub type WindowId = u64;

/// What a window is made of: a real one, or one in memory. All sizes and positions are in device pixels.
pub trait PlatformWindow {
    /// The window's name.
    fn id(&self) -> WindowId;
    /// What the pages are painted on.
    fn rendering_context(&self) -> Rc<dyn RenderingContext>;
    /// Device pixels per CSS pixel at zoom 100 %.
    fn scale(&self) -> Scale<f32, DeviceIndependentPixel, DevicePixel>;
    /// Position and size, with the decorations around the page.
    fn outer_rect(&self) -> DeviceIntRect;
    /// Size of the screen that the window is on.
    fn screen_size(&self) -> DeviceIntSize;
    /// Asks for another position. The window system may refuse.
    fn move_to(&self, position: DeviceIntPoint);
    /// Asks for another size, decorations included. Answers with the new size of the page when it is known at once;
    /// otherwise the window system sends it later, or refuses.
    fn resize_to(&self, outer_size: DeviceIntSize) -> Option<PhysicalSize<u32>>;
    /// Asks for the largest size. Answers as [`Self::resize_to`] does.
    fn maximize(&self) -> Option<PhysicalSize<u32>>;
    /// Enters or leaves fullscreen.
    fn set_fullscreen(&self, fullscreen: bool);
    /// Shows a title.
    fn set_title(&self, title: &str);
    /// Changes the shape of the pointer.
    fn set_cursor(&self, cursor: Cursor);
    /// Asks to be painted. Answers with true when that may be done at once; otherwise the window system says when.
    fn request_paint(&self) -> bool;
}

/// Opens windows.
pub trait Platform {
    /// Opens a window. The error is a sentence for the user.
    fn open_window(&self) -> Result<Rc<dyn PlatformWindow>, String>;
}

/// A window with its pages. All of them have the size of the window's rendering context.
pub struct BrowserWindow {
    /// The window itself.
    pub platform: Rc<dyn PlatformWindow>,
    /// In the order of their creation.
    webviews: RefCell<Vec<WebView>>,
    active: Cell<Option<WebViewId>>,
    needs_paint: Cell<bool>,
}

impl BrowserWindow {
    /// A window without pages.
    pub fn new(platform: Rc<dyn PlatformWindow>) -> Self {
        Self {
            platform,
            webviews: Default::default(),
            active: Cell::new(None),
            needs_paint: Cell::new(false),
        }
    }

    /// The pages, in the order of their creation.
    pub fn webviews(&self) -> Vec<WebView> {
        self.webviews.borrow().clone()
    }

    /// The page with this id.
    pub fn webview(&self, id: WebViewId) -> Option<WebView> {
        self.webviews
            .borrow()
            .iter()
            .find(|webview| webview.id() == id)
            .cloned()
    }

    /// The page that is shown.
    pub fn active(&self) -> Option<WebView> {
        self.webview(self.active.get()?)
    }

    /// Adds a page. It is shown if it is the first.
    pub fn add(&self, webview: WebView) {
        let id = webview.id();
        self.webviews.borrow_mut().push(webview.clone());
        if self.active.get().is_none() {
            self.activate(id);
        } else {
            webview.set_focused(false);
            webview.hide();
        }
    }

    /// Removes a page, which closes it unless somebody else keeps it. Another one is shown in its place.
    pub fn remove(&self, id: WebViewId) -> Option<WebView> {
        let removed = {
            let mut webviews = self.webviews.borrow_mut();
            let index = webviews.iter().position(|webview| webview.id() == id)?;
            webviews.remove(index)
        };
        if self.active.get() == Some(id) {
            self.active.set(None);
            let newest = self.webviews.borrow().last().map(WebView::id);
            if let Some(newest) = newest {
                self.activate(newest);
            }
        }
        Some(removed)
    }

    /// Shows a page and hides the others.
    pub fn activate(&self, id: WebViewId) {
        if self.active.get() == Some(id) {
            return;
        }
        self.active.set(Some(id));
        for webview in self.webviews() {
            let is_active = webview.id() == id;
            if is_active {
                webview.show();
            } else {
                webview.hide();
            }
            webview.set_focused(is_active);
        }
        self.update_title();
        self.schedule_paint();
    }

    /// Shows the title of the active page.
    pub fn update_title(&self) {
        let Some(webview) = self.active() else { return };
        let title = webview.page_title().filter(|title| !title.is_empty());
        let title = title
            .or_else(|| webview.url().map(String::from))
            .unwrap_or_default();
        self.platform.set_title(&title);
    }

    /// Notes that the window's contents have changed.
    pub fn schedule_paint(&self) {
        self.needs_paint.set(true);
    }

    /// Paints if something has changed and the window system lets us, or asks it to say when.
    pub fn paint_if_needed(&self) {
        if self.needs_paint.take() && self.platform.request_paint() {
            self.paint();
        }
    }

    /// Paints the active page.
    pub fn paint(&self) {
        if let Some(webview) = self.active() {
            webview.paint();
            self.platform.rendering_context().present();
        }
    }

    /// Gives the pages the size that the window now has.
    pub fn resized(&self, size: PhysicalSize<u32>) {
        // The pages share the rendering context, so that resizing one of them resizes all.
        if let Some(webview) = self.webviews.borrow().first() {
            webview.resize(size);
        }
        self.schedule_paint();
    }

    /// Position and size in CSS pixels, with the decorations.
    pub fn outer_rect(&self) -> DeviceIndependentIntRect {
        convert_rect_to_css_pixel(self.platform.outer_rect(), self.platform.scale())
    }

    /// What pages may know about window and screen.
    pub fn screen_geometry(&self) -> ScreenGeometry {
        let size = self.platform.screen_size();
        ScreenGeometry {
            size,
            available_size: size,
            window_rect: self.platform.outer_rect(),
        }
    }
}
