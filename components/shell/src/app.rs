/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser's state, and its side of the engine's delegate traits. The event loops in `headless` and `window` drive
//! it, one [`App::turn`] whenever they are woken.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use log::{error, warn};
use servo::user_contents::UserStyleSheet;
use servo::{
    AllowOrDenyRequest, AuthenticationRequest, ConsoleLogLevel, CreateNewWebViewRequest, Cursor,
    DeviceIntPoint, DeviceIntSize, EmbedderControl, EmbedderControlId, EventLoopWaker,
    InputEventId, InputEventResult, LoadStatus, Opts, PermissionRequest, ScreenGeometry, Servo,
    ServoBuilder, ServoDelegate, ServoError, TraversalId, UserContentManager, WebResourceLoad,
    WebView, WebViewBuilder, WebViewDelegate, WebViewId,
};
#[cfg(feature = "samples")]
use token_traits::prompt::PromptHost;
use url::Url;

use crate::browser_window::{BrowserWindow, Platform, PlatformWindow, WindowId};
use crate::chrome::tokens_page::{TokenOverview, TokensPage};
use crate::chrome::{Action, PageView, Security, TabId, TabView};
use crate::cli::{self, Settings};
use crate::demo;
use crate::page_text::PageText;
use crate::profile::Profile;
use crate::prompts::{self, Mode, Prompts};
use crate::shutdown::{self, Signals};
use crate::tab::{Popup, TabState, webview_number};
use crate::tokens;
use crate::webdriver::WebDriver;

/// Most tabs of a window that pages can open.
const MAX_TABS: usize = 100;

/// The title of the engine's page in place of one whose certificate is not trusted.
const CERTIFICATE_ERROR_TITLE: &str = "Certificate error";

/// How much one step makes a page larger or smaller.
const ZOOM_STEP: f32 = 1.1;

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
    /// The window that has the focus of the window system now.
    has_focus: Cell<Option<WindowId>>,
    prompts: RefCell<Prompts>,
    prompt_messages: Receiver<prompts::Message>,
    #[cfg(feature = "samples")]
    prompt_host: Arc<dyn PromptHost>,
    token_overview: Option<Arc<dyn TokenOverview>>,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Hosts whose certificate was not trusted when it was looked at. The user may have made exceptions for them.
    unverified_hosts: RefCell<HashSet<String>>,
    profile: Profile,
}

impl App {
    /// Starts the engine and, if asked for, the WebDriver server. `waker` makes the event loop call [`Self::turn`].
    pub fn start(settings: Settings, waker: Box<dyn EventLoopWaker>) -> Result<Rc<Self>, String> {
        let profile = Profile::open(&settings)?;
        let signals = Signals::listen(waker.clone())?;
        let (prompt_host, prompt_messages) = {
            let waker = waker.clone();
            prompts::channel(Box::new(move || waker.wake()))
        };
        let (engine, token_overview) = tokens::connect(
            engine(&settings, &profile, waker.clone()),
            &settings.token_config,
            &profile,
            prompt_host.clone(),
            settings.demo,
        )?;
        let servo = engine.build();
        servo.setup_logging();

        let user_content = Rc::new(UserContentManager::new(&servo));
        for (source, url) in &settings.user_stylesheets {
            user_content.add_stylesheet(Rc::new(UserStyleSheet::new(source.clone(), url.clone())));
        }
        let wake: Arc<dyn Fn() + Send + Sync> = {
            let waker = waker.clone();
            Arc::new(move || waker.wake())
        };
        let webdriver = settings
            .webdriver
            .map(|port| WebDriver::start(port, waker, settings.preferences.clone()));
        let page_text =
            (settings.headless && webdriver.is_none()).then(|| PageText::new(settings.demo));

        let app = Rc::new_cyclic(|me: &Weak<App>| Self {
            me: me.clone(),
            prompts: RefCell::new(Prompts::new(usual_mode(&settings))),
            prompt_messages,
            #[cfg(feature = "samples")]
            prompt_host,
            token_overview: sample_overview(&settings).or(token_overview),
            wake,
            has_focus: Cell::new(None),
            unverified_hosts: Default::default(),
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
        let webview = self.new_webview(&window, self.settings.url.clone());
        self.show_samples(webview_number(webview.id()));
        Ok(())
    }

    #[cfg(feature = "samples")]
    fn show_samples(&self, webview: u64) {
        crate::samples::show(
            self.prompt_host.as_ref(),
            webview,
            &self.settings.sample_prompts,
        );
    }

    #[cfg(not(feature = "samples"))]
    fn show_samples(&self, _webview: u64) {}

    /// Does everything that is pending. Returns the program's exit code when it is to end.
    pub fn turn(&self, platform: &dyn Platform) -> Option<u8> {
        let began = Instant::now();
        let exit = self.do_everything(platform);
        self.prompts.borrow_mut().was_busy(began, Instant::now());
        exit
    }

    fn do_everything(&self, platform: &dyn Platform) -> Option<u8> {
        if let Some(webdriver) = &self.webdriver {
            webdriver.serve(self, platform);
        }
        self.servo.spin_event_loop();
        if let Some(webdriver) = &self.webdriver {
            webdriver.start_queued_loads(self);
        }
        self.receive_prompts();
        for window in self.windows() {
            window.paint_if_needed(self);
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

    fn receive_prompts(&self) {
        // What has arrived by now was asked under what a WebDriver client has said by now.
        let messages: Vec<_> = self.prompt_messages.try_iter().collect();
        let mut prompts = self.prompts.borrow_mut();
        if let Some(webdriver) = &self.webdriver
            && let Some(mode) = webdriver.prompt_mode(&usual_mode(&self.settings))
        {
            prompts.set_mode(mode);
        }
        for message in messages {
            prompts.receive(message, Instant::now());
            for window in self.windows() {
                window.schedule_paint();
            }
        }
    }

    /// When [`Self::turn`] wants to be called even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let page_text = self.page_text.as_ref().map(PageText::deadline);
        let webdriver = self.webdriver.as_ref().and_then(WebDriver::deadline);
        let windows = self.windows.borrow();
        let paint = windows
            .iter()
            .filter_map(|window| window.platform.next_paint());
        page_text.into_iter().chain(webdriver).chain(paint).min()
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
        self.prompts.borrow_mut().tab_left(webview_number(id));
        self.drop_if_empty(&window);
    }

    fn drop_if_empty(&self, window: &Rc<BrowserWindow>) {
        if window.is_empty() {
            self.windows
                .borrow_mut()
                .retain(|other| !Rc::ptr_eq(other, window));
        }
    }

    /// Closes a window and its pages.
    pub fn close_window(&self, id: WindowId) {
        let Some(window) = self.window(id) else {
            return;
        };
        window.close_tokens();
        for webview in window.webviews() {
            self.close_webview(webview.id());
        }
        self.drop_if_empty(&window);
    }

    /// The window system has given the focus to a window, or taken it away.
    pub fn window_focus_changed(&self, id: WindowId, focused: bool) {
        if focused {
            self.focus_window(id);
            self.has_focus.set(Some(id));
        } else if self.has_focus.get() == Some(id) {
            self.has_focus.set(None);
        }
        if let Some(window) = self.window(id) {
            if let Some(webview) = window.shown() {
                webview.set_focused(focused);
            }
            window.schedule_paint();
        }
    }

    /// Whether the user looks at one of our windows.
    pub fn any_window_has_focus(&self) -> bool {
        self.has_focus.get().is_some()
    }

    /// What a new window shows on its page of tokens.
    pub fn tokens_page(&self) -> TokensPage {
        TokensPage::new(self.token_overview.clone(), self.wake.clone())
    }

    /// The prompts that wait.
    pub fn prompts(&self) -> &RefCell<Prompts> {
        &self.prompts
    }

    /// The tab in whose place a prompt may be shown in a window now: the one that the user looks at.
    pub fn tab_for_prompts(&self, window: &BrowserWindow) -> Option<u64> {
        if self.has_focus.get() != Some(window.platform.id()) {
            return None;
        }
        Some(webview_number(window.shown()?.id()))
    }

    /// Whether a prompt is in sight in a window.
    pub fn shows_prompt(&self, window: &BrowserWindow) -> bool {
        self.tab_for_prompts(window)
            .is_some_and(|tab| self.prompts.borrow().is_waiting(tab))
    }

    /// The tabs of a window.
    pub fn tab_views(&self, window: &BrowserWindow) -> Vec<TabView> {
        let pages = window.webviews().into_iter().map(|webview| TabView {
            id: TabId::Page(webview_number(webview.id())),
            title: BrowserWindow::title(&webview),
            loading: webview.load_status() != LoadStatus::Complete,
        });
        let tokens = window.tabs().contains(&TabId::Tokens).then(|| TabView {
            id: TabId::Tokens,
            title: "Tokens and permissions".to_owned(),
            loading: false,
        });
        pages.chain(tokens).collect()
    }

    /// The page that a window shows.
    pub fn page_view(&self, webview: &WebView, state: &TabState) -> PageView {
        let url = webview.url();
        PageView {
            security: url
                .as_ref()
                .map_or(Security::Local, |url| self.security(url)),
            url: url.map(String::from).unwrap_or_default(),
            loading: webview.load_status() != LoadStatus::Complete,
            can_go_back: webview.can_go_back(),
            can_go_forward: webview.can_go_forward(),
            zoom: webview.page_zoom(),
            status: state.status.clone(),
            notice: state.notice.clone(),
        }
    }

    fn security(&self, url: &Url) -> Security {
        match url.scheme() {
            "https" | "wss" => {
                let unverified = self.settings.ignore_certificate_errors
                    || url
                        .host_str()
                        .is_none_or(|host| self.unverified_hosts.borrow().contains(host));
                if unverified {
                    Security::Unverified
                } else {
                    Security::Secure
                }
            }
            "about" | "data" | "file" | "blob" => Security::Local,
            _ => Security::Insecure,
        }
    }

    /// Does what the user wants in a window.
    pub fn perform(&self, window: &Rc<BrowserWindow>, action: Action) {
        let page = window.shown();
        match action {
            Action::Load(typed) => match cli::parse_address(&typed) {
                Ok(url) => match page {
                    Some(page) => self.load(window, &page, url),
                    None => {
                        let webview = self.new_webview(window, url);
                        window.activate(webview.id());
                    }
                },
                Err(error) => self.notice(window, error),
            },
            Action::Back => {
                if let Some(page) = page.filter(WebView::can_go_back) {
                    page.go_back(1);
                }
            }
            Action::Forward => {
                if let Some(page) = page.filter(WebView::can_go_forward) {
                    page.go_forward(1);
                }
            }
            Action::Reload => {
                if let Some(page) = page {
                    page.reload();
                }
            }
            // The engine has no other way to be told.
            Action::Stop => {
                if let Some(page) = page {
                    page.evaluate_javascript("window.stop()", |_| {});
                }
            }
            Action::NewTab => {
                let webview = self.new_webview(window, blank());
                window.activate(webview.id());
            }
            Action::Close(TabId::Tokens) => {
                window.close_tokens();
                self.drop_if_empty(window);
            }
            Action::Close(TabId::Page(number)) => {
                let page = window
                    .webviews()
                    .into_iter()
                    .find(|webview| webview_number(webview.id()) == number);
                if let Some(page) = page {
                    self.close_webview(page.id());
                }
            }
            Action::Activate(tab) => self.show_tab(window, tab),
            Action::ResetZoom => {
                if let Some(page) = page {
                    page.set_page_zoom(1.0);
                }
            }
            Action::Answer(id, answer) => {
                self.prompts.borrow_mut().answer(id, answer, Instant::now());
            }
            Action::PromptMoved => self.prompts.borrow_mut().disturbed(Instant::now()),
            Action::ClearConsole => self.with_state(window, |state| state.console.clear()),
            Action::DismissNotice => self.with_state(window, |state| state.notice = None),
        }
        window.schedule_paint();
    }

    fn load(&self, window: &BrowserWindow, page: &WebView, url: Url) {
        match window.state(page.id()) {
            Some(state) if !state.borrow().has_document => state.borrow_mut().wanted = Some(url),
            _ => page.load(url),
        }
    }

    fn with_state(&self, window: &BrowserWindow, change: impl FnOnce(&mut TabState)) {
        if let Some(state) = window
            .shown()
            .and_then(|webview| window.state(webview.id()))
        {
            change(&mut state.borrow_mut());
        }
    }

    fn notice(&self, window: &BrowserWindow, text: impl Into<String>) {
        let text = text.into();
        self.with_state(window, |state| state.notice = Some(text));
    }

    fn page_notice(&self, webview: &WebView, text: &str) {
        warn!("{text}");
        if let Some(window) = self.window_of(webview.id())
            && let Some(state) = window.state(webview.id())
        {
            state.borrow_mut().notice = Some(text.to_owned());
            window.schedule_paint();
        }
    }

    /// Shows a tab. What takes the whole screen gives it back.
    pub fn show_tab(&self, window: &BrowserWindow, tab: TabId) {
        if window.shown_tab() != Some(tab) {
            self.leave_fullscreen(window);
        }
        window.show_tab(tab);
    }

    /// Shows the tab that comes so many places after the one that is shown.
    pub fn step_tab(&self, window: &BrowserWindow, step: isize) {
        let tabs = window.tabs();
        let current = window.shown_tab();
        if let Some(current) = tabs.iter().position(|tab| Some(*tab) == current)
            && let Ok(count) = isize::try_from(tabs.len())
            && let Ok(current) = isize::try_from(current)
            && let Ok(next) = usize::try_from((current + step).rem_euclid(count))
        {
            self.show_tab(window, tabs[next]);
        }
    }

    /// Makes the page larger or smaller by so many steps.
    pub fn zoom(&self, window: &BrowserWindow, steps: i32) {
        if let Some(page) = window.shown() {
            let zoom = page.page_zoom() * ZOOM_STEP.powi(steps);
            // Steps back and forth end where they began.
            let zoom = if (zoom - 1.0).abs() < 0.01 { 1.0 } else { zoom };
            page.set_page_zoom(zoom.clamp(0.3, 5.0));
            window.schedule_paint();
        }
    }

    /// Leaves fullscreen, if a page of this window is there. Says whether one was.
    pub fn leave_fullscreen(&self, window: &BrowserWindow) -> bool {
        let mut was_there = false;
        for webview in window.webviews() {
            if let Some(state) = window.state(webview.id())
                && std::mem::take(&mut state.borrow_mut().fullscreen)
            {
                was_there = true;
                webview.exit_fullscreen();
                window.platform.set_fullscreen(false);
            }
        }
        was_there
    }

    /// The user has clicked in a page, or pressed a key in it.
    pub fn note_user_input(&self, window: &BrowserWindow) {
        self.with_state(window, |state| state.note_input(Instant::now()));
    }
}

fn blank() -> Url {
    Url::parse("about:blank").expect("the constant is a URL")
}

/// Who answers prompts, unless a WebDriver client says otherwise: nobody sees what a headless browser would show.
fn usual_mode(settings: &Settings) -> Mode {
    if settings.headless {
        Mode::Nobody
    } else {
        Mode::Ask
    }
}

#[cfg(feature = "samples")]
fn sample_overview(settings: &Settings) -> Option<Arc<dyn TokenOverview>> {
    crate::samples::overview(settings.sample_tokens.as_deref()?)
}

#[cfg(not(feature = "samples"))]
fn sample_overview(_settings: &Settings) -> Option<Arc<dyn TokenOverview>> {
    None
}

fn engine(settings: &Settings, profile: &Profile, waker: Box<dyn EventLoopWaker>) -> ServoBuilder {
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
    ServoBuilder::default()
        .opts(opts)
        .preferences(settings.preferences.clone())
        .event_loop_waker(waker)
}

impl WebViewDelegate for App {
    fn screen_geometry(&self, webview: WebView) -> Option<ScreenGeometry> {
        Some(self.window_of(webview.id())?.screen_geometry())
    }

    fn notify_new_frame_ready(&self, webview: WebView) {
        if let Some(window) = self.window_of(webview.id()) {
            window.schedule_page_paint();
        }
    }

    fn notify_page_title_changed(&self, webview: WebView, title: Option<String>) {
        // A page that takes this title only lowers what the browser says of its own host.
        if title.as_deref() == Some(CERTIFICATE_ERROR_TITLE)
            && let Some(url) = webview.url()
            && let Some(host) = url.host_str()
        {
            self.unverified_hosts.borrow_mut().insert(host.to_owned());
        }
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
        if let Some(window) = self.window_of(webview.id())
            && window.shown().is_some_and(|shown| shown == webview)
        {
            window.platform.set_cursor(cursor);
        }
    }

    fn notify_status_text_changed(&self, webview: WebView, status: Option<String>) {
        if let Some(window) = self.window_of(webview.id())
            && let Some(state) = window.state(webview.id())
        {
            state.borrow_mut().status = status;
            window.schedule_paint();
        }
    }

    fn notify_history_changed(&self, webview: WebView, _entries: Vec<Url>, _current: usize) {
        if let Some(window) = self.window_of(webview.id()) {
            window.schedule_paint();
        }
    }

    fn notify_load_status_changed(&self, webview: WebView, status: LoadStatus) {
        if let Some(window) = self.window_of(webview.id()) {
            window.schedule_paint();
            if status == LoadStatus::Started
                && let Some(state) = window.state(webview.id())
            {
                self.prompts
                    .borrow_mut()
                    .tab_left(webview_number(webview.id()));
                state.borrow_mut().document_changed();
            }
            if let Some(state) = window.state(webview.id()) {
                let mut state = state.borrow_mut();
                state.has_document = true;
                if let Some(url) = state.wanted.take() {
                    webview.load(url);
                }
            }
        }
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
        self.prompts
            .borrow_mut()
            .tab_left(webview_number(webview.id()));
        self.page_notice(&webview, "This page has crashed. Reload it to try again.");
        if let Some(webdriver) = &self.webdriver {
            webdriver.crashed(webview.id());
        }
        if let Some(page_text) = &self.page_text {
            page_text.page_crashed(&reason);
        }
    }

    fn notify_fullscreen_state_changed(&self, webview: WebView, fullscreen: bool) {
        let Some(window) = self.window_of(webview.id()) else {
            return;
        };
        // Only what the user looks at gets the screen. The toolbar stays, so that nothing can take its place.
        if fullscreen && window.shown().is_none_or(|shown| shown != webview) {
            return webview.exit_fullscreen();
        }
        if let Some(state) = window.state(webview.id()) {
            state.borrow_mut().fullscreen = fullscreen;
        }
        window.platform.set_fullscreen(fullscreen);
    }

    fn request_move_to(&self, webview: WebView, position: DeviceIntPoint) {
        // A window that moves under the pointer makes the user click on something else.
        if self.webdriver.is_none() {
            return;
        }
        if let Some(window) = self.window_of(webview.id()) {
            window.platform.move_to(position);
        }
    }

    fn request_resize_to(&self, webview: WebView, outer_size: DeviceIntSize) {
        if self.webdriver.is_none() {
            return;
        }
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
        if self.webdriver.is_none() {
            // One thing that the user does in a page opens one tab.
            let allowed = window
                .state(parent.id())
                .is_some_and(|state| state.borrow_mut().take_popup_permission(Instant::now()));
            if !allowed || window.webviews().len() >= MAX_TABS {
                return self.page_notice(&parent, "This page tried to open a tab.");
            }
        }
        let is_shown = window.shown().is_some_and(|shown| shown == parent);
        let webview = self.add_webview(
            &window,
            request.builder(window.platform.rendering_context()),
        );
        // Under WebDriver the current window changes only when the client says so.
        if self.webdriver.is_none() && is_shown {
            self.show_tab(&window, TabId::Page(webview_number(webview.id())));
        }
    }

    fn request_authentication(&self, webview: WebView, request: AuthenticationRequest) {
        let who = if request.for_proxy() {
            "A proxy server asks"
        } else {
            "This page asks"
        };
        let text = format!("{who} for a user name and a password, which this browser cannot send.");
        self.page_notice(&webview, &text);
    }

    fn request_permission(&self, _webview: WebView, request: PermissionRequest) {
        // The browser asks about tokens only.
        request.deny();
    }

    fn show_embedder_control(&self, webview: WebView, control: EmbedderControl) {
        let id = control.id();
        let user = self
            .window_of(webview.id())
            .filter(|window| self.webdriver.is_none() && window.platform.has_user());
        let state = user.as_ref().and_then(|window| window.state(webview.id()));
        match (control, state) {
            (EmbedderControl::SimpleDialog(dialog), state) => match (&self.webdriver, state) {
                (Some(webdriver), _) => webdriver.dialog_opened(webview.id(), dialog),
                (None, Some(state)) => state.borrow_mut().open_dialog(id, dialog),
                (None, None) => {
                    warn!("A page's dialog was dismissed: {}", dialog.message());
                    dialog.dismiss();
                }
            },
            (EmbedderControl::SelectElement(select), Some(state)) => {
                state.borrow_mut().popup = Some(Popup::Select(select));
            }
            (EmbedderControl::ContextMenu(menu), Some(state)) => {
                state.borrow_mut().popup = Some(Popup::Menu(menu));
            }
            (EmbedderControl::FilePicker(picker), state) => {
                picker.dismiss();
                if state.is_some() {
                    self.page_notice(
                        &webview,
                        "This page asks for a file, which this browser cannot give it.",
                    );
                }
            }
            // There is nothing to show these with. Dropped, they answer that the user chose nothing.
            (
                EmbedderControl::SelectElement(_)
                | EmbedderControl::ColorPicker(_)
                | EmbedderControl::InputMethod(_)
                | EmbedderControl::ContextMenu(_),
                _,
            ) => {}
        }
        if let Some(window) = user {
            window.schedule_paint();
        }
    }

    fn hide_embedder_control(&self, webview: WebView, control: EmbedderControlId) {
        if let Some(webdriver) = &self.webdriver {
            webdriver.dialog_closed(webview.id(), control);
        }
        if let Some(window) = self.window_of(webview.id())
            && let Some(state) = window.state(webview.id())
        {
            state.borrow_mut().close_control(control);
            window.schedule_paint();
        }
    }

    fn load_web_resource(&self, _webview: WebView, load: WebResourceLoad) {
        if self.settings.demo {
            demo::answer(load);
        }
    }

    fn show_console_message(&self, webview: WebView, level: ConsoleLogLevel, message: String) {
        log_console_message(level.clone(), &message);
        if let Some(window) = self.window_of(webview.id())
            && let Some(state) = window.state(webview.id())
        {
            state.borrow_mut().log(level, &message);
            window.schedule_paint();
        }
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
