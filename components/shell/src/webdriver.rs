/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser's part of WebDriver: windows, navigation, input, prompts and screenshots. Everything else the WebDriver
//! server asks of the page's own script thread, through the engine.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use log::warn;
use servo::{
    EmbedderControl, EmbedderControlId, EventLoopWaker, GenericSender, InputEvent, InputEventId,
    JSValue, LoadStatus, NewWindowTypeHint, Preferences, SimpleDialog, TraversalId,
    WebDriverCommandMsg, WebDriverJSResult, WebDriverLoadStatus, WebDriverScriptCommand,
    WebDriverUserPrompt, WebDriverUserPromptAction, WebViewId,
};
use url::Url;

use crate::app::App;
use crate::browser_window::Platform;
use crate::prompts::Mode;
use crate::tokens::{self, PromptModes};

type LoadWaiter = GenericSender<WebDriverLoadStatus>;

/// How long a navigation waits for the one before it to end.
const PREVIOUS_LOAD_LIMIT: Duration = Duration::from_secs(5);

/// A navigation that has not been started yet.
struct QueuedLoad {
    url: Url,
    load: LoadWaiter,
    deadline: Instant,
}

/// Commands from the WebDriver server, and what it waits for.
pub struct WebDriver {
    commands: Receiver<WebDriverCommandMsg>,
    prompt_modes: PromptModes,
    /// To be told when the page has been loaded.
    loads: RefCell<HashMap<WebViewId, LoadWaiter>>,
    /// To be started when what the page loads now has been loaded: the engine does not say which load it is that has
    /// ended.
    queued: RefCell<HashMap<WebViewId, QueuedLoad>>,
    /// To be told when a step in the history has been made.
    traversals: RefCell<HashMap<TraversalId, LoadWaiter>>,
    /// To be told when the page has handled an input event. Dropping the sender answers as well.
    inputs: RefCell<HashMap<InputEventId, (WebViewId, Sender<()>)>>,
    /// To be told when a user prompt interrupts the script that runs.
    script: RefCell<Option<GenericSender<WebDriverJSResult>>>,
    /// Open dialogs, the newest last.
    dialogs: RefCell<HashMap<WebViewId, Vec<(EmbedderControlId, SimpleDialog)>>>,
}

impl WebDriver {
    /// Starts the server on `port`. `waker` makes the event loop call [`Self::serve`].
    pub fn start(port: u16, waker: Box<dyn EventLoopWaker>, preferences: Preferences) -> Self {
        let (sender, commands) = unbounded();
        Self {
            prompt_modes: tokens::start_webdriver(port, sender, waker, preferences),
            commands,
            loads: Default::default(),
            queued: Default::default(),
            traversals: Default::default(),
            inputs: Default::default(),
            script: Default::default(),
            dialogs: Default::default(),
        }
    }

    /// Who answers prompts from now on, if the client has said so. `manual` is who answers without a client.
    pub fn prompt_mode(&self, manual: &Mode) -> Option<Mode> {
        self.prompt_modes.newest(manual)
    }

    /// Serves the commands that have arrived.
    pub fn serve(&self, app: &App, platform: &dyn Platform) {
        while let Ok(command) = self.commands.try_recv() {
            self.serve_one(app, platform, command);
        }
    }

    fn serve_one(&self, app: &App, platform: &dyn Platform, command: WebDriverCommandMsg) {
        use WebDriverCommandMsg as Command;
        // A reply that nobody waits for any more is no error, and a reply channel that is dropped answers "no such
        // window".
        match command {
            Command::Shutdown => app.quit(),
            Command::ResetAllCookies(reply) => {
                app.servo()
                    .site_data_manager()
                    .clear_cookies(Some(Box::new(move || {
                        let _ = reply.send(());
                    })))
            }

            Command::NewWindow(hint, reply, load) => {
                self.new_window(app, platform, hint, load, |id| {
                    let _ = reply.send(id);
                })
            }
            Command::CloseWebView(id, reply) => {
                app.close_webview(id);
                let _ = reply.send(());
            }
            Command::SelectWebViewForInteraction(id) => {
                if let Some(window) = app.window_of(id) {
                    window.activate(id);
                    app.focus_window(window.platform.id());
                }
            }
            Command::GetWebViewSelectedForInteraction(reply) => {
                let _ = reply.send(app.active_webview().map(|webview| webview.id()));
            }
            Command::GetAllWebViews(reply) => {
                let windows = app.windows();
                let webviews = windows
                    .iter()
                    .flat_map(|window| window.webviews())
                    .map(|webview| webview.id());
                let _ = reply.send(webviews.collect());
            }
            Command::IsWebViewOpen(id, reply) => {
                let _ = reply.send(app.webview(id).is_some());
            }

            Command::GetWindowRect(id, reply) => {
                if let Some(window) = app.window_of(id) {
                    let _ = reply.send(window.outer_rect());
                }
            }
            Command::SetWindowRect(id, rect, reply) => {
                if let Some(window) = app.window_of(id) {
                    let rect = (rect.to_f32() * window.platform.scale()).round().to_i32();
                    if let Some(size) = window.platform.resize_to(rect.size()) {
                        window.resized(size);
                    }
                    window.platform.move_to(rect.min);
                    let _ = reply.send(window.outer_rect());
                }
            }
            Command::MaximizeWebView(id, reply) => {
                if let Some(window) = app.window_of(id) {
                    if let Some(size) = window.platform.maximize() {
                        window.resized(size);
                    }
                    let _ = reply.send(window.outer_rect());
                }
            }
            Command::GetViewportSize(id, reply) => {
                if let Some(webview) = app.webview(id) {
                    let _ = reply.send(webview.size() / webview.hidpi_scale_factor());
                }
            }
            Command::TakeScreenshot(id, rect, reply) => {
                if let Some(window) = app.window_of(id)
                    && let Some(webview) = window.webview(id)
                {
                    // The picture is read from what the window shows.
                    window.activate(id);
                    webview.take_screenshot(
                        rect.map(|rect| rect.to_box2d().into()),
                        move |image| {
                            let _ = reply.send(image);
                        },
                    );
                }
            }

            Command::LoadUrl(id, url, load) => self.load_url(app, id, url, load),
            Command::Refresh(id, load) => match app.webview(id) {
                Some(webview) => {
                    self.loads.borrow_mut().insert(id, load);
                    webview.reload();
                }
                None => report(&load, WebDriverLoadStatus::NavigationStop),
            },
            Command::GoBack(id, load) => {
                match app.webview(id).filter(|webview| webview.can_go_back()) {
                    Some(webview) => {
                        self.traversals
                            .borrow_mut()
                            .insert(webview.go_back(1), load);
                    }
                    None => report(&load, WebDriverLoadStatus::NavigationStop),
                }
            }
            Command::GoForward(id, load) => {
                match app.webview(id).filter(|webview| webview.can_go_forward()) {
                    Some(webview) => {
                        self.traversals
                            .borrow_mut()
                            .insert(webview.go_forward(1), load);
                    }
                    None => report(&load, WebDriverLoadStatus::NavigationStop),
                }
            }

            Command::InputEvent(id, event, reply) => self.input(app, id, event, reply),

            Command::CurrentUserPrompt(id, reply) => {
                let _ = reply.send(self.current_prompt(id));
            }
            Command::HandleUserPrompt(id, action, reply) => {
                let _ = reply.send(self.handle_prompt(id, action).ok_or(()));
            }
            Command::GetAlertText(id, reply) => {
                let dialogs = self.dialogs.borrow();
                let text = dialogs
                    .get(&id)
                    .and_then(|open| open.last())
                    .map(|(_, dialog)| dialog.message().to_owned());
                let _ = reply.send(text.ok_or(()));
            }
            Command::SendAlertText(id, text) => {
                if let Some((_, SimpleDialog::Prompt(prompt))) = self
                    .dialogs
                    .borrow_mut()
                    .get_mut(&id)
                    .and_then(|open| open.last_mut())
                {
                    prompt.set_current_value(&text);
                }
            }

            Command::ScriptCommand(context, script_command) => {
                self.note_script_command(&script_command);
                app.servo()
                    .execute_webdriver_command(Command::ScriptCommand(context, script_command));
            }
            // The engine knows browsing contexts; the browser knows only those at the top.
            Command::IsBrowsingContextOpen(..) | Command::FocusBrowsingContext(..) => {
                app.servo().execute_webdriver_command(command);
            }
        }
    }

    /// <https://w3c.github.io/webdriver/#new-window>: the new page does not become the current one.
    fn new_window(
        &self,
        app: &App,
        platform: &dyn Platform,
        hint: NewWindowTypeHint,
        load: Option<LoadWaiter>,
        reply: impl FnOnce(WebViewId),
    ) {
        let shared = match hint {
            NewWindowTypeHint::Window => None,
            NewWindowTypeHint::Tab | NewWindowTypeHint::Auto => app.focused_window(),
        };
        let window = match shared.map_or_else(
            || Ok(app.open_window(platform.open_window()?)),
            Ok::<_, String>,
        ) {
            Ok(window) => window,
            Err(error) => return warn!("Cannot open a window: {error}"),
        };
        let webview = app.new_webview(&window, blank());
        if let Some(load) = load {
            self.loads.borrow_mut().insert(webview.id(), load);
        }
        reply(webview.id());
    }

    fn load_url(&self, app: &App, id: WebViewId, url: Url, load: LoadWaiter) {
        if app.webview(id).is_none() {
            return report(&load, WebDriverLoadStatus::NavigationStop);
        }
        // Dialogs block the page that is to be left.
        self.dismiss_dialogs(id);
        let deadline = Instant::now() + PREVIOUS_LOAD_LIMIT;
        self.queued.borrow_mut().insert(
            id,
            QueuedLoad {
                url,
                load,
                deadline,
            },
        );
        self.start_queued_loads(app);
    }

    /// Starts the navigations that need not wait any longer.
    pub fn start_queued_loads(&self, app: &App) {
        let now = Instant::now();
        self.queued.borrow_mut().retain(|id, queued| {
            let Some(webview) = app.webview(*id) else {
                return false;
            };
            if webview.load_status() != LoadStatus::Complete && now < queued.deadline {
                return true;
            }
            self.loads.borrow_mut().insert(*id, queued.load.clone());
            webview.load(queued.url.clone());
            false
        });
    }

    /// When [`Self::start_queued_loads`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.queued
            .borrow()
            .values()
            .map(|queued| queued.deadline)
            .min()
    }

    fn input(&self, app: &App, id: WebViewId, event: InputEvent, reply: Option<Sender<()>>) {
        let Some(webview) = app.webview(id) else {
            return;
        };
        let event = webview.notify_input_event(event);
        if let Some(reply) = reply {
            self.inputs.borrow_mut().insert(event, (id, reply));
        }
    }

    fn note_script_command(&self, command: &WebDriverScriptCommand) {
        let mut script = self.script.borrow_mut();
        match command {
            WebDriverScriptCommand::ExecuteScriptWithCallback(_, reply) => {
                *script = Some(reply.clone())
            }
            WebDriverScriptCommand::AddLoadStatusSender(id, load) => {
                self.loads.borrow_mut().insert(*id, load.clone());
            }
            WebDriverScriptCommand::RemoveLoadStatusSender(id) => {
                self.loads.borrow_mut().remove(id);
            }
            _ => *script = None,
        }
    }

    /// A page has been loaded.
    pub fn load_complete(&self, id: WebViewId) {
        self.end_load(id, WebDriverLoadStatus::Complete);
    }

    /// A page's script thread is gone, with everything that it was asked.
    pub fn crashed(&self, id: WebViewId) {
        self.end_load(id, WebDriverLoadStatus::NavigationStop);
        self.forget(id);
    }

    /// A page is closed: nobody will answer for it.
    pub fn webview_closed(&self, id: WebViewId) {
        self.end_load(id, WebDriverLoadStatus::NavigationStop);
        self.forget(id);
    }

    /// A step in the history has been made.
    pub fn traversal_complete(&self, traversal: &TraversalId) {
        if let Some(load) = self.traversals.borrow_mut().remove(traversal) {
            report(&load, WebDriverLoadStatus::Complete);
        }
    }

    /// The page has handled an input event, or it has no interest in it.
    pub fn input_handled(&self, event: InputEventId) {
        if let Some((_, reply)) = self.inputs.borrow_mut().remove(&event) {
            let _ = reply.send(());
        }
    }

    /// A page asks with `alert()`, `confirm()` or `prompt()`. It waits till the client answers.
    pub fn dialog_opened(&self, id: WebViewId, dialog: SimpleDialog) {
        // <https://w3c.github.io/webdriver/#dfn-execute-a-function-body>: "If at any point during the algorithm a user
        // prompt appears, immediately return Completion { Type: normal, Value: null, Target: empty }".
        if let Some(script) = self.script.borrow_mut().take() {
            let _ = script.send(Ok(JSValue::Null));
        }
        self.end_load(id, WebDriverLoadStatus::Blocked);
        let control = EmbedderControl::SimpleDialog(dialog);
        let control_id = control.id();
        if let EmbedderControl::SimpleDialog(dialog) = control {
            self.dialogs
                .borrow_mut()
                .entry(id)
                .or_default()
                .push((control_id, dialog));
        }
    }

    /// The page does not need the answer any more.
    pub fn dialog_closed(&self, id: WebViewId, control: EmbedderControlId) {
        if let Some(open) = self.dialogs.borrow_mut().get_mut(&id) {
            open.retain(|(other, _)| *other != control);
        }
    }

    /// Ends all waits.
    pub fn disconnect(&self) {
        for (_, load) in self.loads.borrow_mut().drain() {
            report(&load, WebDriverLoadStatus::NavigationStop);
        }
        self.queued.borrow_mut().clear();
        self.traversals.borrow_mut().clear();
        self.inputs.borrow_mut().clear();
        self.script.borrow_mut().take();
        self.dialogs.borrow_mut().clear();
    }

    fn current_prompt(&self, id: WebViewId) -> Option<WebDriverUserPrompt> {
        let dialogs = self.dialogs.borrow();
        let (_, newest) = dialogs.get(&id)?.last()?;
        Some(match newest {
            SimpleDialog::Alert(_) => WebDriverUserPrompt::Alert,
            SimpleDialog::Confirm(_) => WebDriverUserPrompt::Confirm,
            SimpleDialog::Prompt(_) => WebDriverUserPrompt::Prompt,
        })
    }

    /// Answers the newest dialog. Returns its message.
    fn handle_prompt(&self, id: WebViewId, action: WebDriverUserPromptAction) -> Option<String> {
        let mut dialogs = self.dialogs.borrow_mut();
        let open = dialogs.get_mut(&id)?;
        let message = open.last()?.1.message().to_owned();
        match action {
            WebDriverUserPromptAction::Accept => open.pop()?.1.confirm(),
            WebDriverUserPromptAction::Dismiss => open.pop()?.1.dismiss(),
            WebDriverUserPromptAction::Ignore => {}
        }
        Some(message)
    }

    fn dismiss_dialogs(&self, id: WebViewId) {
        let open = self.dialogs.borrow_mut().remove(&id).unwrap_or_default();
        for (_, dialog) in open {
            dialog.dismiss();
        }
    }

    fn end_load(&self, id: WebViewId, status: WebDriverLoadStatus) {
        if let Some(load) = self.loads.borrow_mut().remove(&id) {
            report(&load, status);
        }
    }

    fn forget(&self, id: WebViewId) {
        self.inputs
            .borrow_mut()
            .retain(|_, (webview, _)| *webview != id);
        self.dismiss_dialogs(id);
    }
}

fn report(load: &LoadWaiter, status: WebDriverLoadStatus) {
    let _ = load.send(status);
}

fn blank() -> Url {
    Url::parse("about:blank").expect("the constant is a URL")
}
