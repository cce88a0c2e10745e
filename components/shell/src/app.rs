/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser's state, and its side of the engine's delegate traits. The event loops in `headless` and `window` drive
//! it, one [`App::turn`] whenever they are woken.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Instant;

use log::{error, warn};
use servo::user_contents::UserStyleSheet;
use servo::{
    AllowOrDenyRequest, ConsoleLogLevel, CreateNewWebViewRequest, Cursor, DeviceIntPoint,
    DeviceIntSize, EmbedderControl, EmbedderControlId, EventLoopWaker, InputEventId,
    InputEventResult, LoadStatus, Opts, PermissionRequest, ScreenGeometry, Servo, ServoBuilder,
    ServoDelegate, ServoError, TraversalId, UserContentManager, WebResourceLoad, WebView,
    WebViewBuilder, WebViewDelegate, WebViewId,
};
use url::Url;

use crate::browser_window::{BrowserWindow, Platform, PlatformWindow, WindowId};
use crate::cli::Settings;
use crate::demo;
use crate::page_text::PageText;
use crate::profile::Profile;
use crate::shutdown::{self, Signals};
use crate::tokens;
use crate::webdriver::WebDriver;

/// The running browser.
///
/// The order of the fields matters: they are dropped from top to bottom, the engine after everything that holds a
/// handle to it, and the windows after the engine, which draws on them until its end.
pub struct App {
    me: Weak<App>,
    settings: Settings,
    signals: Signals,
    webdriver: Option<WebDriver>,
    /// Set in headless mode without WebDriver: prints the first page's text and ends the program.
    page_text: Option<PageText>,
    exit: Cell<Option<u8>>,
    user_content: Rc<UserContentManager>,
    servo: Servo,
    windows: RefCell<Vec<Rc<BrowserWindow>>>,
    focused: Cell<Option<WindowId>>,
    profile: Profile,
}

impl App {
    /// Starts the engine and, if asked for, the WebDriver server. `waker` makes the event loop call [`Self::turn`].
    pub fn start(settings: Settings, waker: Box<dyn EventLoopWaker>) -> Result<Rc<Self>, String> {
        let profile = Profile::open(&settings)?;
        let signals = Signals::listen(waker.clone())?;
        let servo = build_engine(&settings, &profile, waker.clone())?;
        servo.setup_logging();

        let user_content = Rc::new(UserContentManager::new(&servo));
        for (source, url) in &settings.user_stylesheets {
            user_content.add_stylesheet(Rc::new(UserStyleSheet::new(source.clone(), url.clone())));
        }
        let webdriver = settings
            .webdriver
            .map(|port| WebDriver::start(port, waker, settings.preferences.clone()));
        let page_text =
            (settings.headless && webdriver.is_none()).then(|| PageText::new(settings.demo));

        let app = Rc::new_cyclic(|me: &Weak<App>| Self {
            me: me.clone(),
            settings,
            signals,
            webdriver,
            page_text,
            exit: Cell::new(None),
            user_content,
            servo,
            windows: Default::default(),
            focused: Cell::new(None),
            profile,
        });
        app.servo.set_delegate(Rc::new(EngineDelegate {
            demo: app.settings.demo,
        }));
        Ok(app)
    }

    /// What the user asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The engine.
    pub fn servo(&self) -> &Servo {
        &self.servo
    }

    /// Opens the first window with the first page.
    pub fn open_first_window(&self, platform: &dyn Platform) -> Result<(), String> {
        let window = self.open_window(platform.open_window()?);
        self.focus_window(window.platform.id());
        self.new_webview(&window, self.settings.url.clone());
        Ok(())
    }

    /// Does everything that is pending. Returns the program's exit code when it is to end.
    pub fn turn(&self, platform: &dyn Platform) -> Option<u8> {
        if let Some(webdriver) = &self.webdriver {
            webdriver.serve(self, platform);
        }
        self.servo.spin_event_loop();
        if let Some(webdriver) = &self.webdriver {
            webdriver.start_queued_loads(self);
        }
        for window in self.windows() {
            window.paint_if_needed();
        }
        if let Some(page_text) = &self.page_text
            && let Some(result) = page_text.step(self.active_webview().as_ref())
        {
            self.exit.set(Some(page_text.print(result)));
        }
        if let Some(signal) = self.signals.received() {
            // Whoever waits for a page's text must learn that there is none.
            let interrupted = self.page_text.is_some() && self.exit.get().is_none();
            return Some(if interrupted {
                shutdown::exit_code(signal)
            } else {
                self.exit.get().unwrap_or(0)
            });
        }
        if self.webdriver.is_none() && self.windows.borrow().is_empty() {
            return Some(self.exit.get().unwrap_or(0));
        }
        self.exit.get()
    }

    /// When [`Self::turn`] wants to be called even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let page_text = self.page_text.as_ref().map(PageText::deadline);
        let webdriver = self.webdriver.as_ref().and_then(WebDriver::deadline);
        page_text.into_iter().chain(webdriver).min()
    }

    /// Ends the program after this turn.
    pub fn quit(&self) {
        self.exit.set(Some(0));
    }

    /// Closes all pages and windows, then stops the engine and waits for that, with a deadline.
    pub fn shut_down(self: Rc<Self>) {
        let _watchdog =
            shutdown::Watchdog::start(self.profile.temporary_dir().map(ToOwned::to_owned));
        if let Some(webdriver) = &self.webdriver {
            webdriver.disconnect();
        }
        for window in self.windows() {
            for webview in window.webviews() {
                window.remove(webview.id());
            }
        }
        // The engine stops when its last handle goes. The pages had the others: they hold the delegate, which is `self`.
        drop(self);
    }

    /// All windows.
    pub fn windows(&self) -> Vec<Rc<BrowserWindow>> {
        self.windows.borrow().clone()
    }

    /// The window with this id.
    pub fn window(&self, id: WindowId) -> Option<Rc<BrowserWindow>> {
        self.windows
            .borrow()
            .iter()
            .find(|window| window.platform.id() == id)
            .cloned()
    }

    /// The window that shows this page, or could.
    pub fn window_of(&self, webview: WebViewId) -> Option<Rc<BrowserWindow>> {
        self.windows
            .borrow()
            .iter()
            .find(|window| window.webview(webview).is_some())
            .cloned()
    }

    /// The page with this id.
    pub fn webview(&self, id: WebViewId) -> Option<WebView> {
        self.windows
            .borrow()
            .iter()
            .find_map(|window| window.webview(id))
    }

    /// The window that the user or WebDriver used last.
    pub fn focused_window(&self) -> Option<Rc<BrowserWindow>> {
        self.focused
            .get()
            .and_then(|id| self.window(id))
            .or_else(|| self.windows.borrow().last().cloned())
    }

    /// The page that is shown in the focused window.
    pub fn active_webview(&self) -> Option<WebView> {
        self.focused_window()?.active()
    }

    /// Notes which window is used.
    pub fn focus_window(&self, id: WindowId) {
        self.focused.set(Some(id));
    }

    /// Adds a window that the platform has opened.
    pub fn open_window(&self, platform_window: Rc<dyn PlatformWindow>) -> Rc<BrowserWindow> {
        let window = Rc::new(BrowserWindow::new(platform_window));
        self.windows.borrow_mut().push(window.clone());
        window
    }

    /// Opens a page in a window.
    pub fn new_webview(&self, window: &BrowserWindow, url: Url) -> WebView {
        let builder =
            WebViewBuilder::new(&self.servo, window.platform.rendering_context()).url(url);
        self.add_webview(window, builder)
    }

    fn add_webview(&self, window: &BrowserWindow, builder: WebViewBuilder) -> WebView {
        let builder = builder
            .hidpi_scale_factor(window.platform.scale())
            .user_content_manager(self.user_content.clone());
        let builder = match self.me.upgrade() {
            Some(me) => builder.delegate(me),
            None => builder,
        };
        let webview = builder.build();
        window.add(webview.clone());
        webview
    }

    /// Closes a page, and its window if it was the last one there.
    pub fn close_webview(&self, id: WebViewId) {
        let Some(window) = self.window_of(id) else {
            return;
        };
        if let Some(webdriver) = &self.webdriver {
            webdriver.webview_closed(id);
        }
        window.remove(id);
        if window.webviews().is_empty() {
            self.windows
                .borrow_mut()
                .retain(|other| !Rc::ptr_eq(other, &window));
        }
    }

    /// Closes a window and its pages.
    pub fn close_window(&self, id: WindowId) {
        let Some(window) = self.window(id) else {
            return;
        };
        for webview in window.webviews() {
            self.close_webview(webview.id());
        }
    }
}

fn build_engine(
    settings: &Settings,
    profile: &Profile,
    waker: Box<dyn EventLoopWaker>,
) -> Result<Servo, String> {
    let opts = Opts {
        hard_fail: settings.hard_fail,
        multiprocess: !settings.single_process,
        config_dir: Some(profile.engine_dir().to_owned()),
        temporary_storage: settings.private,
        certificate_path: settings.certificate_path.clone(),
        host_file: settings.host_file.clone(),
        ignore_certificate_errors: settings.ignore_certificate_errors,
        ..Opts::default()
    };
    let builder = ServoBuilder::default()
        .opts(opts)
        .preferences(settings.preferences.clone())
        .event_loop_waker(waker);
    Ok(tokens::connect(builder, &settings.token_config, settings.demo)?.build())
}

impl WebViewDelegate for App {
    fn screen_geometry(&self, webview: WebView) -> Option<ScreenGeometry> {
        Some(self.window_of(webview.id())?.screen_geometry())
    }

    fn notify_new_frame_ready(&self, webview: WebView) {
        if let Some(window) = self.window_of(webview.id()) {
            window.schedule_paint();
        }
    }

    fn notify_page_title_changed(&self, webview: WebView, _title: Option<String>) {
        if let Some(window) = self.window_of(webview.id()) {
            window.update_title();
        }
        if let Some(page_text) = &self.page_text {
            page_text.page_changed();
        }
    }

    fn notify_url_changed(&self, webview: WebView, _url: Url) {
        if let Some(window) = self.window_of(webview.id()) {
            window.update_title();
        }
    }

    fn notify_cursor_changed(&self, webview: WebView, cursor: Cursor) {
        if let Some(window) = self.window_of(webview.id()) {
            window.platform.set_cursor(cursor);
        }
    }

    fn notify_load_status_changed(&self, webview: WebView, status: LoadStatus) {
        if status != LoadStatus::Complete {
            return;
        }
        if let Some(webdriver) = &self.webdriver {
            webdriver.load_complete(webview.id());
        }
        if let Some(page_text) = &self.page_text {
            page_text.page_loaded();
        }
    }

    fn notify_traversal_complete(&self, _webview: WebView, traversal: TraversalId) {
        if let Some(webdriver) = &self.webdriver {
            webdriver.traversal_complete(&traversal);
        }
    }

    fn notify_input_event_handled(
        &self,
        _webview: WebView,
        event: InputEventId,
        _result: InputEventResult,
    ) {
        if let Some(webdriver) = &self.webdriver {
            webdriver.input_handled(event);
        }
    }

    fn notify_closed(&self, webview: WebView) {
        self.close_webview(webview.id());
    }

    fn notify_crashed(&self, webview: WebView, reason: String, backtrace: Option<String>) {
        error!(
            "A page crashed: {reason}\n{}",
            backtrace.unwrap_or_default()
        );
        if let Some(webdriver) = &self.webdriver {
            webdriver.crashed(webview.id());
        }
        if let Some(page_text) = &self.page_text {
            page_text.page_crashed(&reason);
        }
    }

    fn notify_fullscreen_state_changed(&self, webview: WebView, fullscreen: bool) {
        if let Some(window) = self.window_of(webview.id()) {
            window.platform.set_fullscreen(fullscreen);
        }
    }

    fn request_move_to(&self, webview: WebView, position: DeviceIntPoint) {
        if let Some(window) = self.window_of(webview.id()) {
            window.platform.move_to(position);
        }
    }

    fn request_resize_to(&self, webview: WebView, outer_size: DeviceIntSize) {
        if let Some(window) = self.window_of(webview.id()) {
            let limited = outer_size.min(window.platform.screen_size());
            if let Some(size) = window.platform.resize_to(limited) {
                window.resized(size);
            }
        }
    }

    fn request_create_new(&self, parent: WebView, request: CreateNewWebViewRequest) {
        let Some(window) = self.window_of(parent.id()) else {
            return;
        };
        let webview = self.add_webview(
            &window,
            request.builder(window.platform.rendering_context()),
        );
        // Under WebDriver the current window changes only when the client says so.
        if self.webdriver.is_none() {
            window.activate(webview.id());
        }
    }

    fn request_permission(&self, _webview: WebView, request: PermissionRequest) {
        // Nobody can be asked yet.
        request.deny();
    }

    fn show_embedder_control(&self, webview: WebView, control: EmbedderControl) {
        match control {
            EmbedderControl::SimpleDialog(dialog) => match &self.webdriver {
                Some(webdriver) => webdriver.dialog_opened(webview.id(), dialog),
                None => {
                    warn!("A page's dialog was dismissed: {}", dialog.message());
                    dialog.dismiss();
                }
            },
            EmbedderControl::FilePicker(picker) => picker.dismiss(),
            // There is nothing to show these with. Dropped, they answer that the user chose nothing.
            EmbedderControl::SelectElement(_)
            | EmbedderControl::ColorPicker(_)
            | EmbedderControl::InputMethod(_)
            | EmbedderControl::ContextMenu(_) => {}
        }
    }

    fn hide_embedder_control(&self, webview: WebView, control: EmbedderControlId) {
        if let Some(webdriver) = &self.webdriver {
            webdriver.dialog_closed(webview.id(), control);
        }
    }

    fn load_web_resource(&self, _webview: WebView, load: WebResourceLoad) {
        if self.settings.demo {
            demo::answer(load);
        }
    }

    fn show_console_message(&self, _webview: WebView, level: ConsoleLogLevel, message: String) {
        log_console_message(level, &message);
    }
}

/// What concerns the engine as a whole, or workers.
struct EngineDelegate {
    demo: bool,
}

impl ServoDelegate for EngineDelegate {
    fn notify_error(&self, error: ServoError) {
        error!("The engine reports: {error:?}");
    }

    fn request_devtools_connection(&self, request: AllowOrDenyRequest) {
        request.deny();
    }

    fn load_web_resource(&self, load: WebResourceLoad) {
        if self.demo {
            demo::answer(load);
        }
    }

    fn show_console_message(&self, level: ConsoleLogLevel, message: String) {
        log_console_message(level, &message);
    }
}

fn log_console_message(level: ConsoleLogLevel, message: &str) {
    log::log!(target: "console", level.into(), "{message}");
}
