/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A window and the pages in it, of which one is shown.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use dpi::PhysicalSize;
use euclid::Scale;
use servo::{
    Cursor, DeviceIndependentIntRect, DeviceIndependentPixel, DeviceIntPoint, DeviceIntRect,
    DeviceIntSize, DevicePixel, RenderingContext, ScreenGeometry, WebView, WebViewId,
    convert_rect_to_css_pixel,
};

use crate::app::App;
use crate::chrome::TabId;
use crate::tab::{TabState, webview_number};
use crate::text::{MAX_TITLE_LENGTH, printable};

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
    /// Paints the window, of which this is a part.
    fn paint(&self, app: &App, window: &BrowserWindow);
    /// When it wants to be painted even if nothing happens.
    fn next_paint(&self) -> Option<Instant>;
    /// Whether there is a user in front of it, who can answer something.
    fn has_user(&self) -> bool;
}

/// Opens windows.
pub trait Platform {
    /// Opens a window. The error is a sentence for the user.
    fn open_window(&self) -> Result<Rc<dyn PlatformWindow>, String>;
}

/// A page and its state.
#[derive(Clone)]
struct Tab {
    webview: WebView,
    state: Rc<RefCell<TabState>>,
}

/// A window with its pages. All of them have the size of the window's rendering context.
pub struct BrowserWindow {
    /// The window itself.
    pub platform: Rc<dyn PlatformWindow>,
    /// In the order of their creation.
    tabs: RefCell<Vec<Tab>>,
    active: Cell<Option<WebViewId>>,
    /// Whether the browser's own page of tokens has a tab, and whether that is shown instead of the active page.
    tokens_open: Cell<bool>,
    tokens_shown: Cell<bool>,
    needs_paint: Cell<bool>,
    page_needs_paint: Cell<bool>,
}

impl BrowserWindow {
    /// A window without pages.
    pub fn new(platform: Rc<dyn PlatformWindow>) -> Self {
        Self {
            platform,
            tabs: Default::default(),
            active: Cell::new(None),
            tokens_open: Cell::new(false),
            tokens_shown: Cell::new(false),
            needs_paint: Cell::new(false),
            page_needs_paint: Cell::new(false),
        }
    }

    /// The pages, in the order of their creation.
    pub fn webviews(&self) -> Vec<WebView> {
        let tabs = self.tabs.borrow();
        tabs.iter().map(|tab| tab.webview.clone()).collect()
    }

    fn tab(&self, id: WebViewId) -> Option<Tab> {
        let tabs = self.tabs.borrow();
        tabs.iter().find(|tab| tab.webview.id() == id).cloned()
    }

    /// The page with this id.
    pub fn webview(&self, id: WebViewId) -> Option<WebView> {
        Some(self.tab(id)?.webview)
    }

    /// The state of the page with this id.
    pub fn state(&self, id: WebViewId) -> Option<Rc<RefCell<TabState>>> {
        Some(self.tab(id)?.state)
    }

    /// The page that was shown last, which is the one that is shown unless the page of tokens is.
    pub fn active(&self) -> Option<WebView> {
        self.webview(self.active.get()?)
    }

    /// The page that is shown.
    pub fn shown(&self) -> Option<WebView> {
        self.active().filter(|_| !self.tokens_shown.get())
    }

    /// Adds a page. It is shown if it is the first.
    pub fn add(&self, webview: WebView) {
        let id = webview.id();
        self.tabs.borrow_mut().push(Tab {
            webview: webview.clone(),
            state: Default::default(),
        });
        if self.active.get().is_none() {
            self.activate(id);
        } else {
            webview.set_focused(false);
            webview.hide();
        }
        self.schedule_paint();
    }

    /// Removes a page, which closes it unless somebody else keeps it. Another one is shown in its place.
    pub fn remove(&self, id: WebViewId) -> Option<WebView> {
        let (removed, index) = {
            let mut tabs = self.tabs.borrow_mut();
            let index = tabs.iter().position(|tab| tab.webview.id() == id)?;
            (tabs.remove(index), index)
        };
        if self.active.get() == Some(id) {
            self.active.set(None);
            let next = {
                let tabs = self.tabs.borrow();
                let next = tabs.get(index).or(tabs.last());
                next.map(|tab| tab.webview.id())
            };
            if let Some(next) = next {
                let tokens_shown = self.tokens_shown.get();
                self.activate(next);
                if tokens_shown {
                    self.show_tokens();
                }
            }
        }
        self.schedule_paint();
        Some(removed.webview)
    }

    /// Shows a page and hides the others.
    pub fn activate(&self, id: WebViewId) {
        if self.active.get() == Some(id) && !self.tokens_shown.get() {
            return;
        }
        self.active.set(Some(id));
        self.tokens_shown.set(false);
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
        self.schedule_page_paint();
    }

    /// Shows the browser's own page of tokens.
    pub fn show_tokens(&self) {
        self.tokens_open.set(true);
        self.tokens_shown.set(true);
        if let Some(webview) = self.active() {
            webview.hide();
            webview.set_focused(false);
        }
        self.update_title();
        self.schedule_paint();
    }

    /// Closes the page of tokens.
    pub fn close_tokens(&self) {
        self.tokens_open.set(false);
        if let Some(active) = self.active.get() {
            self.activate(active);
        }
        self.tokens_shown.set(false);
        self.schedule_paint();
    }

    /// Whether there is nothing left to show.
    pub fn is_empty(&self) -> bool {
        self.tabs.borrow().is_empty() && !self.tokens_open.get()
    }

    /// The tab that is shown.
    pub fn shown_tab(&self) -> Option<TabId> {
        if self.tokens_shown.get() || (self.tokens_open.get() && self.active.get().is_none()) {
            return Some(TabId::Tokens);
        }
        Some(TabId::Page(webview_number(self.active.get()?)))
    }

    /// The tabs, in their order.
    pub fn tabs(&self) -> Vec<TabId> {
        let tabs = self.tabs.borrow();
        let pages = tabs
            .iter()
            .map(|tab| TabId::Page(webview_number(tab.webview.id())));
        pages
            .chain(self.tokens_open.get().then_some(TabId::Tokens))
            .collect()
    }

    /// Shows a tab.
    pub fn show_tab(&self, tab: TabId) {
        match tab {
            TabId::Tokens => self.show_tokens(),
            TabId::Page(number) => {
                let page = self
                    .webviews()
                    .into_iter()
                    .find(|webview| webview_number(webview.id()) == number);
                if let Some(page) = page {
                    self.activate(page.id());
                }
            }
        }
    }

    /// What the user calls a page.
    pub fn title(webview: &WebView) -> String {
        let title = webview
            .page_title()
            .filter(|title| !title.trim().is_empty());
        let title = title
            .or_else(|| webview.url().map(String::from))
            .filter(|title| title != "about:blank")
            .unwrap_or_else(|| "New tab".to_owned());
        printable(&title, MAX_TITLE_LENGTH)
    }

    /// Shows the title of what is shown.
    pub fn update_title(&self) {
        let title = match self.shown() {
            Some(webview) => Self::title(&webview),
            None => "Tokens and permissions".to_owned(),
        };
        self.platform.set_title(&title);
        self.schedule_paint();
    }

    /// Notes that the window's contents have changed.
    pub fn schedule_paint(&self) {
        self.needs_paint.set(true);
    }

    /// Notes that the page's contents have changed.
    pub fn schedule_page_paint(&self) {
        self.page_needs_paint.set(true);
        self.schedule_paint();
    }

    /// Whether the page's contents have changed since this was last asked.
    pub fn take_page_needs_paint(&self) -> bool {
        self.page_needs_paint.take()
    }

    /// Paints if something has changed and the window system lets us, or asks it to say when.
    pub fn paint_if_needed(&self, app: &App) {
        if self
            .platform
            .next_paint()
            .is_some_and(|next| Instant::now() >= next)
        {
            self.schedule_paint();
        }
        if self.needs_paint.take() && self.platform.request_paint() {
            self.paint(app);
        }
    }

    /// Paints the window.
    pub fn paint(&self, app: &App) {
        self.platform.paint(app, self);
    }

    /// Gives the pages the size that the window now has.
    pub fn resized(&self, size: PhysicalSize<u32>) {
        // The pages share the rendering context, so that resizing one of them resizes all.
        if let Some(tab) = self.tabs.borrow().first() {
            tab.webview.resize(size);
        }
        self.schedule_page_paint();
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
