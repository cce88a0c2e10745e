/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser with compromised content processes, for tests: the main process is the browser's own, unchanged; a
//! content process reads along what its script thread tells the constellation, and attacks when a page wants it to.
//!
//! A page asks for an attack by its title: `attack NAME ARGUMENT...`. What comes of it is for the test to see, in the
//! victim's page or on standard error.
//!
//! With `HOSTILE_CALLS`, a content process is the engine's own, sandbox and all. On `SIGUSR1` it makes the system calls in
//! [`calls`] and writes what comes of each to standard error. With `HOSTILE_START`, it starts as the file says that this names.

mod calls;
mod files;
mod wire;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use serde::{Deserialize, Serialize};
use servo::ServoUrl;
use servo_base::generic_channel::{GenericCallback, GenericSender};
use servo_base::id::{
    BrowsingContextId, CONSTELLATION_PIPELINE_NAMESPACE_ID, Index, PipelineId, PipelineIndex,
    WebViewId,
};
use servo_constellation::UnprivilegedContent;
use servo_constellation_traits::{
    AuxiliaryWebViewCreationRequest, IFrameLoadInfo, IFrameLoadInfoWithData, KeyboardScroll,
    LoadData, LoadOrigin, NavigationHistoryBehavior, ScriptToConstellationMessage,
    ScriptToConstellationSender, TargetSnapshotParams,
};
use servo_url::MutableOrigin;
use storage_traits::webstorage_thread::WebStorageType;
use token_traits::permissions_policy::PermissionsPolicy;
use token_traits::port::{PortMessage, PortRequest, ReplyBody, RequestBody, RequestId};
use token_traits::{FeatureSet, Frame, TokenError, TokenPort};

/// Pipeline ids are small numbers in a row: an attacker guesses them.
const GUESSES: std::ops::RangeInclusive<u32> = 1..=64;

/// A pipeline id that nobody else uses.
const NEW_PIPELINE: u32 = 60_000;

type Message = (WebViewId, PipelineId, ScriptToConstellationMessage);

fn main() -> ExitCode {
    tokens_shell::main(run_content_process)
}

/// What `servo::run_content_process` does, with this program between the script thread and the constellation.
fn run_content_process(token: String) {
    if calls::prepare() {
        return servo::run_content_process(token);
    }
    start_as_told();
    let (content_sender, content_receiver) = ipc::channel().expect("a channel");
    IpcSender::<IpcSender<UnprivilegedContent>>::connect(token)
        .expect("the main process")
        .send(content_sender)
        .expect("the main process");
    let mut content = content_receiver.recv().expect("content");

    if let UnprivilegedContent::ScriptEventLoop(info) = &mut content {
        // These attacks are on channels. The sandbox takes a process of one thread, and here one reads along already.
        info.prefs.dom_content_process_sandbox_enabled = false;
        files::prepare(&info.initial_script_state.resource_threads);
        wire::prepare(info);
        let (from_script, messages) = ipc::channel().expect("a channel");
        let constellation = std::mem::replace(
            &mut info.initial_script_state.script_to_constellation_sender,
            callback_from_sender(from_script),
        );
        thread::spawn(move || read_along(messages, constellation));
    }

    if let UnprivilegedContent::ServiceWorker(content) = &mut content {
        content.prefs.dom_content_process_sandbox_enabled = false;
    }

    let (server, token) = IpcOneShotServer::new().expect("a server");
    let engine = thread::spawn(move || servo::run_content_process(token));
    let (_, to_engine): (_, IpcSender<UnprivilegedContent>) = server.accept().expect("the engine");
    to_engine.send(content).expect("the engine");
    let _ = engine.join();
}

/// Connects late, or never, if the file that `HOSTILE_START` names says so.
fn start_as_told() {
    let told = std::env::var_os("HOSTILE_START").and_then(|file| std::fs::read(file).ok());
    match told.as_deref() {
        Some(b"late") => thread::sleep(Duration::from_secs(2)),
        Some(b"never") => loop {
            thread::park();
        },
        _ => {}
    }
}

/// A callback is made by `GenericCallback::new` only, which would choose its kind before the engine has its options.
/// This has the same form on the wire.
fn callback_from_sender(sender: IpcSender<Message>) -> ScriptToConstellationSender {
    #[derive(Deserialize, Serialize)]
    enum GenericCallback {
        CrossProcess(IpcSender<Message>),
    }
    let (mirror_sender, mirror_receiver) = ipc::channel().expect("a channel");
    mirror_sender
        .send(GenericCallback::CrossProcess(sender))
        .expect("the own process");
    mirror_receiver
        .to_opaque()
        .to()
        .recv()
        .expect("the same form")
}

/// The same, for a sender.
fn sender_from<T>(sender: IpcSender<T>) -> GenericSender<T>
where
    T: for<'de> Deserialize<'de> + Serialize,
{
    #[derive(Deserialize, Serialize)]
    enum GenericSender<T: Serialize> {
        #[serde(bound(deserialize = ""))]
        Ipc(IpcSender<T>),
    }
    let (mirror_sender, mirror_receiver) = ipc::channel().expect("a channel");
    mirror_sender
        .send(GenericSender::Ipc(sender))
        .expect("the own process");
    mirror_receiver
        .to_opaque()
        .to()
        .recv()
        .expect("the same form")
}

fn read_along(messages: IpcReceiver<Message>, constellation: ScriptToConstellationSender) {
    while let Ok((webview_id, pipeline_id, message)) = messages.recv() {
        if let ScriptToConstellationMessage::TitleChanged(_, title) = &message
            && let Some(command) = title.strip_prefix("attack ")
        {
            let attacker = Attacker {
                constellation: &constellation,
                webview_id,
                pipeline_id,
            };
            let words: Vec<_> = command.split(' ').collect();
            eprintln!("hostile: {command}");
            attacker.attack(&words);
            continue;
        }
        if constellation
            .send((webview_id, pipeline_id, message))
            .is_err()
        {
            break;
        }
    }
}

struct Attacker<'a> {
    constellation: &'a ScriptToConstellationSender,
    webview_id: WebViewId,
    pipeline_id: PipelineId,
}

impl Attacker<'_> {
    fn attack(&self, words: &[&str]) {
        match words {
            // Show content of ours at the victim's URL, as if a javascript: URL there had given it.
            ["js-result", initiator, url, html] => self.load(LoadData {
                js_eval_result: Some(html.to_string()),
                ..load_data(url, initiator)
            }),
            // Show content of ours in a document that inherits the origin of the victim's, which is a guess.
            ["srcdoc", victim, initiator, html] => self.load(LoadData {
                srcdoc: html.to_string(),
                creator_pipeline_id: Some(pipeline(victim.parse().expect("a number"))),
                ..load_data("about:srcdoc", initiator)
            }),
            ["creator", victim, initiator, html] => self.load(LoadData {
                js_eval_result: Some(html.to_string()),
                creator_pipeline_id: Some(pipeline(victim.parse().expect("a number"))),
                ..load_data("about:blank", initiator)
            }),
            // Rename our document to the victim's URL, and use the name.
            ["final-url", url] => {
                let url = parse(url);
                self.send(ScriptToConstellationMessage::SetFinalUrl(url.clone()));
                self.send(ScriptToConstellationMessage::BroadcastStorageEvent(
                    WebStorageType::Local,
                    url.clone(),
                    Some("forged".into()),
                    None,
                    Some("forged".into()),
                ));
                self.open_port(&url);
            }
            // Get a port in the victim's name.
            ["port", url] => self.open_port(&parse(url)),
            // Open a window that claims to be at the victim's URL from the start.
            ["new-window", initiator, url] => {
                let (response_sender, _response) =
                    servo_base::generic_channel::channel().expect("a channel");
                self.send(ScriptToConstellationMessage::CreateAuxiliaryWebView(
                    AuxiliaryWebViewCreationRequest {
                        load_data: load_data(url, initiator),
                        opener_webview_id: self.webview_id,
                        opener_pipeline_id: self.pipeline_id,
                        response_sender,
                    },
                ));
            }
            // Packets that are no messages.
            ["wire", name] => wire::attack_channels(name),
            ["wire-port", name, url] => {
                let name = name.to_string();
                self.with_port(&parse(url), move |port| {
                    wire::attack_port(&port.requests, &name);
                    eprintln!("hostile: port attacked, {}", count_readers(&port));
                });
            }
            ["nested"] => {
                let (constellation, webview_id, pipeline_id) = (
                    self.constellation.clone(),
                    self.webview_id,
                    self.pipeline_id,
                );
                wire::send_nested(move |message| {
                    let sent = constellation.send((webview_id, pipeline_id, message));
                    eprintln!("hostile: nested, {}", sent.is_ok());
                });
            }
            // Ask, and do not take the answers.
            ["silence"] => {
                for _ in 0..1000 {
                    self.send(ScriptToConstellationMessage::IsCurrentlyFullyActive(
                        self.pipeline_id,
                        sender_from(wire::full_sender()),
                    ));
                }
                eprintln!("hostile: asked");
            }
            ["flood"] => {
                for _ in 0..200_000 {
                    self.send(ScriptToConstellationMessage::AbortLoadUrl);
                }
                eprintln!("hostile: flooded");
            }
            ["flood-ports", url] => {
                for _ in 0..5_000 {
                    self.with_port(&parse(url), |_| ());
                }
                eprintln!("hostile: flooded");
            }
            ["lifeline"] => wire::speak_on_lifeline(),
            ["display-list"] => wire::announce_display_list(self.webview_id),
            // Use a port that has been closed.
            ["old-port", url] => {
                let (constellation, webview_id, pipeline_id, url) = (
                    self.constellation.clone(),
                    self.webview_id,
                    self.pipeline_id,
                    parse(url),
                );
                self.with_port(&url.clone(), move |old| {
                    let (constellation, url) = (constellation.clone(), url.clone());
                    thread::spawn(move || {
                        let attacker = Attacker {
                            constellation: &constellation,
                            webview_id,
                            pipeline_id,
                        };
                        let old_answer = count_readers(&old);
                        attacker.with_port(&url, move |new| {
                            eprintln!("hostile: new port, {}", count_readers(&new));
                            eprintln!(
                                "hostile: old port, {old_answer} before, {} now",
                                count_readers(&old)
                            );
                        });
                    });
                });
            }
            // Navigate the victim's tab.
            ["speak", url] => self.for_each_guess(|victim_pipeline| {
                let _ = self.constellation.send((
                    self.webview_id,
                    victim_pipeline,
                    load_url(load_data(url, url)),
                ));
            }),
            // Get a port by speaking as one of the victim's pipelines.
            ["port-of-another", url] => self.for_each_guess(|pipeline_id| {
                Attacker {
                    pipeline_id,
                    ..*self
                }
                .open_port(&parse(url));
            }),
            // Load ourselves once more, in our frame, with all that the victim could hand on to it: as the victim, or as the
            // frame's parent, which we are not.
            ["delegate-as-parent", url] => {
                let (_, parent) = self.frame();
                self.load_with_all_features(parent, url);
            }
            ["delegate-to-itself", url] => self.load_with_all_features(self.pipeline_id, url),
            // What comes nearest to input, among all that script can say: keys that scroll another document, and focus.
            ["input"] => {
                for key in [
                    KeyboardScroll::Down,
                    KeyboardScroll::PageDown,
                    KeyboardScroll::End,
                ] {
                    self.for_each_guess(|pipeline_id| {
                        self.send(ScriptToConstellationMessage::ForwardKeyboardScroll(
                            pipeline_id,
                            key,
                        ));
                    });
                }
                eprintln!("hostile: input was made up");
            }
            // Have the main process read a file.
            ["fetch-file", path] => files::fetch(path, self.webview_id, self.pipeline_id),
            ["pick-file", path] => files::pick(path, self.webview_id, self.pipeline_id),
            _ => eprintln!("hostile: no such attack"),
        }
    }

    fn send(&self, message: ScriptToConstellationMessage) {
        let _ = self
            .constellation
            .send((self.webview_id, self.pipeline_id, message));
    }

    fn load(&self, load_data: LoadData) {
        self.send(load_url(load_data));
    }

    fn for_each_guess(&self, attack: impl Fn(PipelineId)) {
        for guess in GUESSES.map(pipeline) {
            if guess != self.pipeline_id {
                attack(guess);
            }
        }
    }

    /// Opens a port for the origin of `url` and counts the readers that it sees.
    fn open_port(&self, url: &ServoUrl) {
        self.with_port(url, |port| {
            eprintln!("hostile: port opened, {}", count_readers(&port));
        });
    }

    /// Opens a port for the origin of `url`, and uses it.
    fn with_port(&self, url: &ServoUrl, mut use_port: impl FnMut(TokenPort) + Send + 'static) {
        let callback = GenericCallback::new(move |answer| {
            let port: Result<TokenPort, TokenError> = match answer {
                Ok(port) => port,
                Err(_) => return,
            };
            match port {
                Ok(port) => use_port(port),
                Err(error) => eprintln!("hostile: port refused, {error}"),
            }
        });
        self.send(ScriptToConstellationMessage::OpenTokenPort(
            url.origin(),
            FeatureSet::ALL,
            None,
            callback.expect("a callback"),
        ));
    }

    /// The frame that this document is in, and the document that it is in.
    fn frame(&self) -> (BrowsingContextId, PipelineId) {
        let (sender, answer) = servo_base::generic_channel::channel().expect("a channel");
        self.send(ScriptToConstellationMessage::GetBrowsingContextInfo(
            self.pipeline_id,
            sender,
        ));
        match answer.recv() {
            Ok(Some((browsing_context_id, Some(parent)))) => (browsing_context_id, parent),
            answer => panic!("no frame: {answer:?}"),
        }
    }

    /// Loads a document in our own frame, as if `parent` had done so and handed everything on to it.
    fn load_with_all_features(&self, parent: PipelineId, url: &str) {
        let (browsing_context_id, _) = self.frame();
        let origin = parse(url).origin();
        let everything = "secure-element *; token-keys *; payment *";
        let container_policy = PermissionsPolicy::default().delegate(
            &PermissionsPolicy::from_attribute(everything, &origin, None, |_| None),
            &origin,
        );
        self.send(ScriptToConstellationMessage::ScriptLoadedURLInIFrame(
            IFrameLoadInfoWithData {
                info: IFrameLoadInfo {
                    parent_pipeline_id: parent,
                    browsing_context_id,
                    webview_id: self.webview_id,
                    new_pipeline_id: pipeline(NEW_PIPELINE),
                    is_private: false,
                    inherited_secure_context: Some(true),
                    history_handling: NavigationHistoryBehavior::Replace,
                    target_snapshot_params: TargetSnapshotParams::default(),
                    name: None,
                    container_policy,
                },
                load_data: load_data(url, url),
                old_pipeline_id: None,
                viewport_details: Default::default(),
            },
        ));
    }
}

fn count_readers(port: &TokenPort) -> String {
    let request = PortRequest {
        id: RequestId(1),
        body: RequestBody::GetReaders,
    };
    let sent = Frame::encode(&request)
        .ok()
        .and_then(|frame| port.requests.send(frame).ok());
    let answer = port.messages.try_recv_timeout(Duration::from_secs(5));
    match (sent, answer.map(|frame| frame.decode())) {
        (
            Some(()),
            Ok(Ok(PortMessage::Reply {
                result: Ok(ReplyBody::Readers(readers)),
                ..
            })),
        ) => format!("{} readers", readers.len()),
        (_, answer) => format!("no answer: {answer:?}"),
    }
}

fn pipeline(index: u32) -> PipelineId {
    PipelineId {
        namespace_id: CONSTELLATION_PIPELINE_NAMESPACE_ID,
        index: Index::<PipelineIndex>::new(index).expect("not zero"),
    }
}

fn parse(url: &str) -> ServoUrl {
    ServoUrl::parse(url).expect("an attack with a URL")
}

fn load_data(url: &str, initiator: &str) -> LoadData {
    LoadData {
        load_origin: LoadOrigin::Script(MutableOrigin::new(parse(initiator).origin()).snapshot()),
        ..LoadData::new_for_new_unrelated_webview(parse(url))
    }
}

fn load_url(load_data: LoadData) -> ScriptToConstellationMessage {
    ScriptToConstellationMessage::LoadUrl(
        load_data,
        NavigationHistoryBehavior::Replace,
        TargetSnapshotParams::default(),
    )
}
