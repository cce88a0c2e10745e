/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser's window on a display of its own (Xvfb), driven by keys and the pointer as a user drives it, and looked at
//! as a user sees it. What prompts look like is tested in the shell; here it is when an answer counts, and that pages
//! cannot make one.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, sleep};
use std::time::Duration;

use e2e::image::Image;
use e2e::process::wait_for;
use e2e::server::Server;
use e2e::shell::{PCSC, VARIABLE, VIRTUAL_CARD};
use e2e::webdriver::Client;
use serde_json::json;
use tempfile::TempDir;
use virtual_card::VirtualCard;
use virtual_card::test_support::Pcscd;
use x11rb::connection::Connection as _;
use x11rb::protocol::xproto::{
    AtomEnum, BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, ConnectionExt as _, ImageFormat,
    InputFocus, KEY_PRESS_EVENT, KEY_RELEASE_EVENT, MOTION_NOTIFY_EVENT, Window,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long the browser may take for what it does.
const LIMIT: Duration = Duration::from_secs(60);
/// After that, what has not happened will not.
const LONG_ENOUGH: Duration = Duration::from_millis(1500);
/// Between two clicks of a user.
const A_MOMENT: Duration = Duration::from_millis(200);
/// Height of tabs and toolbar, in pixels.
const CHROME: u16 = 78;

/// The variable that names a folder for pictures of prompts and pages.
const PICTURES: &str = "SERVO_TOKENS_PICTURES";

/// Keys by their X11 names (X11/keysymdef.h).
const RETURN: u32 = 0xFF0D;
const ESCAPE: u32 = 0xFF1B;
const TAB: u32 = 0xFF09;
const SHIFT: u32 = 0xFFE1;
const CONTROL: u32 = 0xFFE3;

/// One browser at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A display in memory.
struct Display {
    server: Child,
    connection: RustConnection,
    name: String,
    root: Window,
}

impl Display {
    fn start() -> Result<Self> {
        // The server finds a free display and writes its number.
        let (reader, writer) = std::io::pipe()?;
        let fd = writer.as_raw_fd();
        let flags = rustix::io::fcntl_getfd(&writer)?;
        rustix::io::fcntl_setfd(&writer, flags.difference(rustix::io::FdFlags::CLOEXEC))?;
        let server = Command::new("Xvfb")
            .args([
                "-displayfd",
                &fd.to_string(),
                "-screen",
                "0",
                "1280x900x24",
                "-nolisten",
                "tcp",
            ])
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("Xvfb (package xvfb) cannot be started: {error}"))?;
        drop(writer);
        // Up to the end of the line: a process that another test starts just now may keep the pipe open.
        let (sender, line) = mpsc::channel();
        thread::spawn(move || {
            let mut number = String::new();
            let read = BufReader::new(reader).read_line(&mut number);
            // Whoever waited has given up.
            let _ = sender.send(read.map(|_| number));
        });
        let number = line.recv_timeout(LIMIT)??;
        let name = format!(":{}", number.trim());
        let (connection, screen) =
            wait_for(LIMIT, || x11rb::connect(Some(&name)).ok()).ok_or("Xvfb does not answer")?;
        let root = connection.setup().roots[screen].root;
        Ok(Self {
            server,
            connection,
            name,
            root,
        })
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A browser in a window.
struct Browser {
    child: Child,
    window: Window,
    directory: TempDir,
    display: Display,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    fn start(arguments: &[&str]) -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let display = Display::start()?;
        let binary = PathBuf::from(
            std::env::var_os(VARIABLE).ok_or("the variable for the browser is not set")?,
        );
        let directory = tempfile::tempdir()?;
        let child = Command::new(binary)
            .args(["--window-size=800x600", "--profile-dir"])
            .arg(directory.path().join("profile"))
            .args(arguments)
            .env("DISPLAY", &display.name)
            .env_remove("WAYLAND_DISPLAY")
            .stdin(Stdio::null())
            .stdout(File::create(directory.path().join("output"))?)
            .stderr(File::create(directory.path().join("log"))?)
            .spawn()?;
        let mut browser = Self {
            child,
            window: 0,
            directory,
            display,
            _turn: turn,
        };
        browser.window = wait_for(LIMIT, || browser.find_window()).ok_or_else(|| browser.log())?;
        Ok(browser)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// What the browser has printed.
    fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap_or_default()
    }

    fn find_window(&self) -> Option<Window> {
        let connection = &self.display.connection;
        let tree = connection
            .query_tree(self.display.root)
            .ok()?
            .reply()
            .ok()?;
        tree.children.into_iter().find(|window| {
            let geometry = connection
                .get_geometry(*window)
                .ok()
                .and_then(|cookie| cookie.reply().ok());
            geometry.is_some_and(|geometry| geometry.width > 100)
        })
    }

    fn title(&self) -> Option<String> {
        let connection = &self.display.connection;
        let name = connection
            .intern_atom(true, b"_NET_WM_NAME")
            .ok()?
            .reply()
            .ok()?
            .atom;
        let title = connection
            .get_property(false, self.window, name, AtomEnum::ANY, 0, 1000)
            .ok()?
            .reply()
            .ok()?;
        String::from_utf8(title.value).ok()
    }

    #[track_caller]
    fn wait_for_title(&self, title: &str) {
        let seen = wait_for(LIMIT, || (self.title()? == title).then_some(()));
        assert!(
            seen.is_some(),
            "the title is {:?}, not {title:?}\n{}",
            self.title(),
            self.log()
        );
    }

    #[track_caller]
    fn wait_for_output(&self, text: &str) {
        let seen = wait_for(LIMIT, || self.output().contains(text).then_some(()));
        assert!(
            seen.is_some(),
            "the output is {:?}\n{}",
            self.output(),
            self.log()
        );
    }

    /// Gives the window the focus, or takes it away.
    fn focus(&self, focus: bool) -> Result<()> {
        let target = if focus {
            self.window
        } else {
            self.display.root
        };
        let connection = &self.display.connection;
        // A window that is not shown yet cannot have it.
        let has_focus = || {
            let request = connection.set_input_focus(InputFocus::NONE, target, x11rb::CURRENT_TIME);
            request.ok()?.check().ok()?;
            let focus = connection.get_input_focus().ok()?.reply().ok()?.focus;
            (focus == target).then_some(())
        };
        wait_for(LIMIT, has_focus).ok_or("the focus does not go there")?;
        Ok(())
    }

    fn fake(&self, kind: u8, detail: u8, x: i16, y: i16) -> Result<()> {
        self.display
            .connection
            .xtest_fake_input(kind, detail, 0, self.display.root, x, y, 0)?;
        self.display.connection.flush()?;
        Ok(())
    }

    /// The key for a symbol, and whether it needs Shift.
    fn keycode(&self, symbol: u32) -> Result<(u8, bool)> {
        let setup = self.display.connection.setup();
        let (first, last) = (setup.min_keycode, setup.max_keycode);
        let mapping = self
            .display
            .connection
            .get_keyboard_mapping(first, last - first + 1)?
            .reply()?;
        let width = usize::from(mapping.keysyms_per_keycode);
        for (index, symbols) in mapping.keysyms.chunks(width).enumerate() {
            for (level, other) in symbols.iter().take(2).enumerate() {
                if *other == symbol {
                    return Ok((first + u8::try_from(index)?, level == 1));
                }
            }
        }
        Err(format!("no key for {symbol:#X}").into())
    }

    fn press(&self, symbol: u32) -> Result<()> {
        self.fake(KEY_PRESS_EVENT, self.keycode(symbol)?.0, 0, 0)
    }

    fn release(&self, symbol: u32) -> Result<()> {
        self.fake(KEY_RELEASE_EVENT, self.keycode(symbol)?.0, 0, 0)
    }

    /// Presses and releases a key while the others are held down.
    fn key(&self, held: &[u32], symbol: u32) -> Result<()> {
        for key in held {
            self.press(*key)?;
        }
        self.press(symbol)?;
        self.release(symbol)?;
        for key in held.iter().rev() {
            self.release(*key)?;
        }
        Ok(())
    }

    fn type_text(&self, text: &str) -> Result<()> {
        for character in text.chars() {
            let symbol = u32::from(character);
            let shift = self.keycode(symbol)?.1;
            self.key(if shift { &[SHIFT] } else { &[] }, symbol)?;
        }
        Ok(())
    }

    fn click(&self, x: i16, y: i16) -> Result<()> {
        self.fake(MOTION_NOTIFY_EVENT, 0, x, y)?;
        self.fake(BUTTON_PRESS_EVENT, 1, 0, 0)?;
        self.fake(BUTTON_RELEASE_EVENT, 1, 0, 0)
    }

    /// What is seen at a place of the window.
    fn pixel(&self, x: i16, y: i16) -> Result<[u8; 3]> {
        let image = self
            .display
            .connection
            .get_image(ImageFormat::Z_PIXMAP, self.window, x, y, 1, 1, u32::MAX)?
            .reply()?;
        match image.data.as_slice() {
            [blue, green, red, ..] => Ok([*red, *green, *blue]),
            _ => Err("no pixel".into()),
        }
    }

    /// What the window shows.
    fn picture(&self) -> Result<Image> {
        let connection = &self.display.connection;
        let geometry = connection.get_geometry(self.window)?.reply()?;
        let (width, height) = (geometry.width, geometry.height);
        let image = connection
            .get_image(
                ImageFormat::Z_PIXMAP,
                self.window,
                0,
                0,
                width,
                height,
                u32::MAX,
            )?
            .reply()?;
        let pixels = image.data.as_chunks::<4>().0;
        let colors = pixels
            .iter()
            .map(|[blue, green, red, _]| [*red, *green, *blue]);
        Ok(Image::from_rgb(
            width.into(),
            height.into(),
            colors.flatten().collect(),
        ))
    }

    /// Keeps a picture for people to look at, if they say where.
    fn keep_picture(&self, name: &str) {
        if let Some(folder) = std::env::var_os(PICTURES) {
            let png = self.picture().unwrap().to_png().unwrap();
            fs::write(PathBuf::from(folder).join(name).with_extension("png"), png).unwrap();
        }
    }

    fn has_ended(&mut self) -> bool {
        wait_for(LIMIT, || self.child.try_wait().ok().flatten()).is_some()
    }
}

/// A page that asks when it is clicked, and says in its title what came of it. It fills the window with [`BLUE`].
const PAGE: &str = "<!DOCTYPE html><title>page</title><style>html { background: rgb(10, 20, 200) }</style><script>
    const says = promise => promise.then(text => document.title = text, error => document.title = error.name);
    const readers = () => says(navigator.secureElementManager.getReaders()
        .then(readers => `${readers.length} readers`));
    const open_channel = async () => {
        const [reader] = await navigator.secureElementManager.getReaders();
        const session = await reader.openSession();
        const aid = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x01, 0x01);
        await session.openSupplementaryChannel(aid);
        return 'channel';
    };
    onclick = () => { document.title = 'asked'; readers(); };
    </script>";
const BLUE: [u8; 3] = [10, 20, 200];

/// Where things are in a window of that size, in pixels.
const ALLOW: (i16, i16) = (345, 359);
const REMEMBER: (i16, i16) = (32, 282);
const FIRST_READER: (i16, i16) = (32, 248);
const ALLOW_OF_TWO: (i16, i16) = (345, 401);
const REVOKE: (i16, i16) = (722, 306);

/// A card without rules, whose owner is asked about its applications.
const ASK: &str = "[virtual_card]\nprofile = \"no-rules\"\n\n[pcsc]\nenabled = false\n\n\
                   [access]\nwhen_no_rules = \"ask\"\n";

/// A server with pages, and the profile of the browsers that open them.
struct Site {
    server: Server,
    directory: TempDir,
}

impl Site {
    fn new() -> Self {
        let server = Server::builder().start().unwrap();
        server.page("/", PAGE);
        Self {
            server,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// [`PAGE`] with something more.
    fn page(&self, path: &str, script: &str) {
        let html = format!("{PAGE}<script>{script}</script>");
        self.server.page(path, &html);
    }

    /// Opens [`PAGE`], or one made of it, in a window that has the focus.
    fn open(&self, token_config: &str, path: &str) -> Browser {
        let browser = self.open_any(token_config, path);
        browser.wait_for_title("page");
        let seen = wait_for(LIMIT, || {
            (browser.pixel(700, 600).ok()? == BLUE).then_some(())
        });
        assert!(seen.is_some(), "the page is not seen");
        browser
    }

    fn open_any(&self, token_config: &str, path: &str) -> Browser {
        let file = self.directory.path().join("tokens.toml");
        fs::write(&file, token_config).unwrap();
        let path_of = |path: PathBuf| path.into_os_string().into_string().unwrap();
        let browser = Browser::start(&[
            "--certificate-path",
            &path_of(self.server.certificate_authority()),
            "--host-file",
            &path_of(self.server.host_file()),
            "--token-config",
            &path_of(file),
            "--profile-dir",
            &path_of(self.directory.path().join("profile")),
            &self.server.url(path),
        ])
        .unwrap();
        browser.focus(true).unwrap();
        browser
    }
}

impl Browser {
    /// Whether a prompt is seen over the page.
    fn shows_prompt(&self) -> bool {
        self.pixel(100, 150).unwrap() != BLUE
    }

    #[track_caller]
    fn wait_for_prompt(&self) {
        let shown = wait_for(LIMIT, || self.shows_prompt().then_some(()));
        self.keep_picture("no-prompt");
        assert!(
            shown.is_some(),
            "there is no prompt, and the title is {:?}\n{}",
            self.title(),
            self.log()
        );
    }

    /// Clicks into the page and waits until it has a prompt.
    #[track_caller]
    fn ask(&self) {
        self.click(700, 600).unwrap();
        self.wait_for_title("asked");
        self.wait_for_prompt();
    }

    /// From "Don't allow", where the focus is at first, to "Allow".
    fn press_allow(&self) {
        self.key(&[], TAB).unwrap();
        self.key(&[], key(' ')).unwrap();
    }

    /// Sees to it that what was done has led to nothing.
    #[track_caller]
    fn stays(&self, title: &str) {
        sleep(LONG_ENOUGH);
        assert_eq!(self.title().unwrap(), title);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to end, it takes its content processes with it.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if wait_for(LIMIT, || self.child.try_wait().ok().flatten()).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn key(character: char) -> u32 {
    u32::from(character)
}

#[test]
fn the_page_has_the_size_that_was_asked_for_below_the_toolbar() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let browser = Browser::start(&[
        &format!("--webdriver={port}"),
        "data:text/html,<title>blue</title><body style='background: rgb(10, 20, 200)'>",
    ])
    .unwrap();
    let geometry = browser
        .display
        .connection
        .get_geometry(browser.window)
        .unwrap()
        .reply()
        .unwrap();
    assert_eq!((geometry.width, geometry.height), (800, 600 + CHROME));

    let client = Client::new(port);
    let ready = wait_for(LIMIT, || {
        client
            .is_ready(Duration::from_secs(1))
            .unwrap_or(false)
            .then_some(())
    });
    assert!(ready.is_some(), "{}", browser.log());
    let session = client.new_session(json!({})).unwrap();
    let size = session
        .execute("return [innerWidth, innerHeight]", &[])
        .unwrap();
    assert_eq!(size, json!([800, 600]));
    let picture = Image::from_png(&session.screenshot().unwrap()).unwrap();
    assert_eq!((picture.width, picture.height), (800, 600));

    let blue = wait_for(LIMIT, || {
        (browser.pixel(400, 400).ok()? == [10, 20, 200]).then_some(())
    });
    assert!(blue.is_some(), "the page is not seen");
    assert_eq!(
        browser.pixel(400, 677).unwrap(),
        [10, 20, 200],
        "it fills the window"
    );
    assert_ne!(
        browser.pixel(400, 40).unwrap(),
        [10, 20, 200],
        "but not the toolbar"
    );
    session.close().unwrap();
}

#[test]
fn tabs_and_the_address_bar_by_keyboard() {
    let mut browser = Browser::start(&["data:text/html,<title>first</title>"]).unwrap();
    browser.wait_for_title("first");
    browser.focus(true).unwrap();
    browser.key(&[CONTROL], key('t')).unwrap();
    browser.wait_for_title("New tab");
    browser
        .type_text("data:text/html,<title>second</title>")
        .unwrap();
    browser.key(&[], RETURN).unwrap();
    sleep(LONG_ENOUGH);
    browser.keep_picture("debug");
    browser.wait_for_title("second");
    browser.key(&[CONTROL], key('l')).unwrap();
    browser
        .type_text("data:text/html,<title>third</title>")
        .unwrap();
    browser.key(&[], RETURN).unwrap();
    browser.wait_for_title("third");
    browser.key(&[CONTROL, SHIFT], TAB).unwrap();
    browser.wait_for_title("first");
    browser.key(&[CONTROL, SHIFT], key('k')).unwrap();
    browser.wait_for_title("Tokens and permissions");
    browser.key(&[CONTROL], key('2')).unwrap();
    browser.wait_for_title("third");
    browser.key(&[CONTROL], key('w')).unwrap();
    browser.wait_for_title("first");
    browser.key(&[CONTROL], key('9')).unwrap();
    browser.wait_for_title("Tokens and permissions");
    browser.key(&[CONTROL], key('w')).unwrap();
    browser.wait_for_title("first");
    browser.key(&[CONTROL], key('w')).unwrap();
    assert!(browser.has_ended());
}

#[test]
fn one_click_opens_one_tab() {
    let page = "data:text/html,<title>opener</title><script>\
                let opened = 0;\
                const open_many = () => { for (let i = 0; i < 5; i++) {\
                  if (window.open('data:text/html,<title>opened</title>')) opened++; } };\
                open_many();\
                onclick = () => { open_many(); document.title = 'clicked'; };</script>";
    let browser = Browser::start(&[page]).unwrap();
    browser.wait_for_title("opener");
    browser.focus(true).unwrap();
    sleep(LONG_ENOUGH);
    assert_eq!(
        browser.title().unwrap(),
        "opener",
        "nothing is opened by itself"
    );
    browser.key(&[CONTROL], key('9')).unwrap();
    browser.wait_for_title("opener");
    browser.click(400, 400).unwrap();
    browser.wait_for_title("opened");
    browser.key(&[CONTROL], key('w')).unwrap();
    browser.wait_for_title("clicked");
    browser.key(&[CONTROL], key('9')).unwrap();
    sleep(LONG_ENOUGH);
    assert_eq!(
        browser.title().unwrap(),
        "clicked",
        "there is no second one"
    );
}

#[test]
fn a_prompt_takes_no_answer_that_comes_with_it() {
    let browser = Browser::start(&[
        "--sample-prompt=applet",
        "data:text/html,<title>page</title>",
    ])
    .unwrap();
    browser.wait_for_title("page");
    // Without the focus it is not there.
    browser.click(100, 330).unwrap();
    // It comes with the focus, and with it keys that were meant for something else.
    browser.focus(true).unwrap();
    browser.key(&[], ESCAPE).unwrap();
    browser.key(&[], RETURN).unwrap();
    sleep(LONG_ENOUGH);
    assert_eq!(browser.output(), "");
    browser.key(&[], TAB).unwrap();
    browser.key(&[], key(' ')).unwrap();
    browser.wait_for_output("sample prompt applet: Allowed { remember: false }");
}

#[test]
fn a_key_that_is_held_down_is_no_answer() {
    let browser = Browser::start(&[
        "--sample-prompt=applet",
        "data:text/html,<title>page</title>",
    ])
    .unwrap();
    browser.wait_for_title("page");
    browser.press(RETURN).unwrap();
    browser.focus(true).unwrap();
    sleep(LONG_ENOUGH * 2);
    browser.release(RETURN).unwrap();
    sleep(LONG_ENOUGH);
    assert_eq!(browser.output(), "");
    browser.key(&[], RETURN).unwrap();
    browser.wait_for_output("sample prompt applet: Refused");
}

#[test]
fn another_tab_over_a_prompt_answers_nothing() {
    let browser = Browser::start(&[
        "--sample-prompt=applet",
        "data:text/html,<title>page</title>",
    ])
    .unwrap();
    browser.wait_for_title("page");
    browser.focus(true).unwrap();
    sleep(LONG_ENOUGH);
    browser.key(&[CONTROL], key('t')).unwrap();
    browser.wait_for_title("New tab");
    browser.key(&[], ESCAPE).unwrap();
    browser.key(&[], ESCAPE).unwrap();
    browser.key(&[], RETURN).unwrap();
    sleep(LONG_ENOUGH);
    assert_eq!(browser.output(), "");
    browser.key(&[CONTROL], key('1')).unwrap();
    browser.key(&[], ESCAPE).unwrap();
    browser.wait_for_title("page");
    sleep(LONG_ENOUGH);
    assert_eq!(browser.output(), "", "it has come back only just now");
    // Whoever goes elsewhere needs no answer.
    browser.key(&[CONTROL], key('l')).unwrap();
    browser
        .type_text("data:text/html,<title>elsewhere</title>")
        .unwrap();
    browser.key(&[], RETURN).unwrap();
    browser.wait_for_title("elsewhere");
    browser.wait_for_output("sample prompt applet: Refused");
}

#[test]
fn the_page_gets_no_key_while_a_prompt_is_shown() {
    let page = "data:text/html,<title>page</title><script>\
                onkeydown = () => document.title = 'key'; onclick = () => document.title = 'click';</script>";
    let browser = Browser::start(&["--sample-prompt=pin", page]).unwrap();
    browser.wait_for_title("page");
    browser.focus(true).unwrap();
    sleep(LONG_ENOUGH);
    browser.type_text("123456").unwrap();
    browser.click(700, 500).unwrap();
    sleep(LONG_ENOUGH);
    assert_eq!(browser.title().unwrap(), "page");
    browser.key(&[], ESCAPE).unwrap();
    browser.wait_for_output("sample prompt pin: Refused");
    browser.type_text("1").unwrap();
    browser.wait_for_title("key");
}

#[test]
fn a_page_gets_the_reader_that_the_user_chooses() {
    let site = Site::new();
    let browser = site.open(VIRTUAL_CARD, "/");
    browser.ask();
    // Keys that come with it are no answer.
    browser.press_allow();
    browser.stays("asked");
    browser.keep_picture("reader");
    browser.key(&[], key(' ')).unwrap();
    browser.wait_for_title("1 readers");
    assert!(!browser.shows_prompt());
}

#[test]
fn clicks_that_were_under_way_are_no_answer() {
    let site = Site::new();
    // What the user is made to click on is where "Allow" appears.
    let browser = site.open(VIRTUAL_CARD, "/");
    let (x, y) = ALLOW;
    browser.click(x, y).unwrap();
    browser.wait_for_title("asked");
    browser.wait_for_prompt();
    for _ in 0..4 {
        browser.click(x, y).unwrap();
        sleep(Duration::from_millis(50));
    }
    browser.fake(BUTTON_PRESS_EVENT, 1, 0, 0).unwrap();
    browser.stays("asked");
    browser.fake(BUTTON_RELEASE_EVENT, 1, 0, 0).unwrap();
    browser.stays("asked");
    browser.click(x, y).unwrap();
    browser.wait_for_title("1 readers");
}

#[test]
fn one_click_is_one_prompt() {
    let site = Site::new();
    let again =
        "onclick = async () => { document.title = 'asked'; await readers(); await readers();
        document.title += ', twice'; }";
    site.page("/again", again);
    let browser = site.open(VIRTUAL_CARD, "/again");
    browser.ask();
    sleep(LONG_ENOUGH);
    browser.key(&[], ESCAPE).unwrap();
    browser.wait_for_title("0 readers, twice");
    assert!(!browser.shows_prompt());
}

#[test]
fn what_is_remembered_is_listed_and_revoked() {
    let site = Site::new();
    site.page("/at-once", "readers()");
    {
        let browser = site.open(VIRTUAL_CARD, "/");
        browser.ask();
        sleep(LONG_ENOUGH);
        browser.click(REMEMBER.0, REMEMBER.1).unwrap();
        sleep(A_MOMENT);
        browser.click(ALLOW.0, ALLOW.1).unwrap();
        browser.wait_for_title("1 readers");
    }
    // Another browser of the same profile.
    let browser = site.open_any(VIRTUAL_CARD, "/at-once");
    browser.wait_for_title("1 readers");
    browser.key(&[CONTROL, SHIFT], key('k')).unwrap();
    browser.wait_for_title("Tokens and permissions");
    sleep(LONG_ENOUGH);
    browser.keep_picture("tokens");
    browser.click(REVOKE.0, REVOKE.1).unwrap();
    sleep(LONG_ENOUGH);
    browser.keep_picture("tokens-revoked");
    browser.key(&[CONTROL], key('1')).unwrap();
    browser.wait_for_title("1 readers");
    browser.key(&[CONTROL], key('r')).unwrap();
    browser.wait_for_title("0 readers");
}

#[test]
fn an_application_is_allowed_after_the_reader() {
    let site = Site::new();
    let script = "onclick = () => { document.title = 'asked'; says(open_channel()); }";
    site.page("/channel", script);
    let browser = site.open(ASK, "/channel");
    browser.ask();
    sleep(LONG_ENOUGH);
    browser.press_allow();
    // The next prompt is in the same place.
    browser.stays("asked");
    browser.wait_for_prompt();
    browser.keep_picture("application");
    browser.press_allow();
    browser.wait_for_title("channel");
    browser.key(&[CONTROL, SHIFT], key('k')).unwrap();
    browser.wait_for_title("Tokens and permissions");
    sleep(LONG_ENOUGH);
    browser.keep_picture("tokens-until-the-end");
    browser.key(&[CONTROL], key('1')).unwrap();
    browser.wait_for_title("channel");
    // What was allowed is not asked about again.
    browser.click(700, 600).unwrap();
    browser.wait_for_title("channel");
}

#[test]
fn a_tab_that_a_page_opens_over_its_prompt_answers_nothing() {
    let site = Site::new();
    let script = "onclick = () => { document.title = 'asked'; readers(); window.open('/over'); }";
    site.page("/opener", script);
    site.server.page(
        "/over",
        "<!DOCTYPE html><title>over</title>Press Enter, please.",
    );
    let browser = site.open(VIRTUAL_CARD, "/opener");
    browser.click(700, 600).unwrap();
    browser.wait_for_title("over");
    sleep(LONG_ENOUGH);
    for symbol in [RETURN, ESCAPE, TAB, key(' ')] {
        browser.key(&[], symbol).unwrap();
    }
    browser.click(ALLOW.0, ALLOW.1).unwrap();
    browser.stays("over");
    browser.key(&[CONTROL], key('1')).unwrap();
    browser.wait_for_title("asked");
    browser.wait_for_prompt();
    // It has come back only just now.
    browser.press_allow();
    browser.stays("asked");
    browser.key(&[], key(' ')).unwrap();
    browser.wait_for_title("1 readers");
}

#[test]
fn a_prompt_takes_no_answer_that_was_meant_for_a_dialog() {
    let site = Site::new();
    let script = "onclick = () => { document.title = 'asked'; readers(); alert('Press Enter!'); }";
    site.page("/dialog", script);
    let browser = site.open(VIRTUAL_CARD, "/dialog");
    browser.click(700, 600).unwrap();
    browser.wait_for_title("asked");
    sleep(LONG_ENOUGH);
    browser.keep_picture("dialog");
    // The page goes on, and its question comes to the broker.
    browser.key(&[], RETURN).unwrap();
    browser.wait_for_prompt();
    browser.key(&[], RETURN).unwrap();
    browser.press_allow();
    browser.stays("asked");
    browser.key(&[], key(' ')).unwrap();
    browser.wait_for_title("1 readers");
}

#[test]
fn a_page_s_dialog_waits_for_its_prompt() {
    let site = Site::new();
    let script = "onclick = () => { document.title = 'asked'; readers();
        setTimeout(() => alert('Press Enter!'), 2000); }";
    site.page("/dialog", script);
    let browser = site.open(VIRTUAL_CARD, "/dialog");
    browser.ask();
    sleep(LONG_ENOUGH * 2);
    browser.keep_picture("reader-over-dialog");
    assert!(browser.shows_prompt());
    browser.press_allow();
    browser.stays("asked");
    assert!(!browser.shows_prompt());
    browser.keep_picture("dialog-after-reader");
    browser.key(&[], RETURN).unwrap();
    browser.wait_for_title("1 readers");
}

#[test]
fn fullscreen_does_not_cover_a_prompt() {
    let site = Site::new();
    let script = "onclick = () => { document.title = 'asked'; readers();
        document.documentElement.requestFullscreen().catch(() => {}); }";
    site.page("/fullscreen", script);
    let browser = site.open(VIRTUAL_CARD, "/fullscreen");
    browser.ask();
    browser.press_allow();
    browser.stays("asked");
    browser.keep_picture("reader-in-fullscreen");
    assert!(browser.shows_prompt());
    assert_ne!(browser.pixel(400, 40).unwrap(), BLUE, "the toolbar stays");
    browser.key(&[], key(' ')).unwrap();
    browser.wait_for_title("1 readers");
}

#[test]
fn a_prompt_goes_with_its_document() {
    let site = Site::new();
    // What becomes of the call is not written into the title, which would come after that of the next document.
    let script = "onclick = () => {
        document.title = 'asked';
        navigator.secureElementManager.getReaders().catch(() => {});
        setTimeout(() => location = '/next', 2000);
    }";
    site.page("/leaves", script);
    site.page(
        "/next",
        "document.title = 'next'; onkeydown = event => document.title = event.key;",
    );
    let browser = site.open(VIRTUAL_CARD, "/leaves");
    browser.ask();
    browser.wait_for_title("next");
    let gone = wait_for(LIMIT, || (!browser.shows_prompt()).then_some(()));
    assert!(gone.is_some(), "the prompt is still there");
    browser.type_text("k").unwrap();
    browser.wait_for_title("k");
}

#[test]
fn a_prompt_that_was_out_of_focus_starts_anew() {
    let site = Site::new();
    let browser = site.open(VIRTUAL_CARD, "/");
    browser.ask();
    sleep(LONG_ENOUGH);
    browser.focus(false).unwrap();
    let hidden = wait_for(LIMIT, || (!browser.shows_prompt()).then_some(()));
    assert!(hidden.is_some(), "it is not to be seen without the focus");
    browser.focus(true).unwrap();
    browser.wait_for_prompt();
    browser.press_allow();
    browser.stays("asked");
    browser.key(&[], key(' ')).unwrap();
    browser.wait_for_title("1 readers");
}

#[test]
fn without_a_reader_there_is_nothing_to_allow() {
    let site = Site::new();
    let nothing = "[virtual_card]\nenabled = false\n\n[pcsc]\nenabled = false\n";
    let browser = site.open(nothing, "/");
    browser.ask();
    sleep(LONG_ENOUGH);
    browser.keep_picture("no-reader");
    browser.press_allow();
    browser.stays("asked");
    browser.key(&[], ESCAPE).unwrap();
    browser.wait_for_title("0 readers");
}

#[test]
fn a_card_that_comes_while_the_user_chooses() {
    let pcscd = Pcscd::start().unwrap();
    let site = Site::new();
    let browser = site.open(PCSC, "/");
    browser.ask();
    sleep(LONG_ENOUGH);
    browser.keep_picture("empty-readers");
    // The first of two.
    browser.click(FIRST_READER.0, FIRST_READER.1).unwrap();
    sleep(LONG_ENOUGH);
    let _card = pcscd
        .insert(0, VirtualCard::from_profile("default").unwrap())
        .unwrap();
    sleep(LONG_ENOUGH);
    browser.keep_picture("card-in-reader");
    // What was chosen was chosen from another list.
    browser.click(ALLOW_OF_TWO.0, ALLOW_OF_TWO.1).unwrap();
    browser.stays("asked");
    browser.click(FIRST_READER.0, FIRST_READER.1).unwrap();
    sleep(A_MOMENT);
    browser.click(ALLOW_OF_TWO.0, ALLOW_OF_TWO.1).unwrap();
    browser.wait_for_title("1 readers");
}

#[test]
fn every_kind_of_prompt_can_be_refused() {
    let samples = [
        "chooser",
        "one-reader",
        "no-reader",
        "hostile-chooser",
        "applet",
        "unnamed-applet",
        "hostile-applet",
        "token",
        "no-token",
        "key",
        "hostile-key",
        "share-key",
        "pin",
        "last-pin",
        "hostile-pin",
    ];
    for name in samples {
        let page =
            "data:text/html,<title>page</title><style>html{background:rgb(10,20,200)}</style>";
        let browser = Browser::start(&[&format!("--sample-prompt={name}"), page]).unwrap();
        browser.wait_for_title("page");
        browser.focus(true).unwrap();
        browser.wait_for_prompt();
        sleep(LONG_ENOUGH);
        browser.keep_picture(&format!("sample-{name}"));
        assert_eq!(browser.output(), "");
        browser.key(&[], ESCAPE).unwrap();
        browser.wait_for_output(&format!("sample prompt {name}: Refused"));
    }
}

#[test]
fn the_page_of_tokens_shows_whatever_there_is() {
    for name in ["full", "empty"] {
        let browser = Browser::start(&[
            &format!("--sample-tokens={name}"),
            "--window-size=900x820",
            "data:text/html,<title>page</title>",
        ])
        .unwrap();
        browser.wait_for_title("page");
        browser.focus(true).unwrap();
        browser.key(&[CONTROL, SHIFT], key('k')).unwrap();
        browser.wait_for_title("Tokens and permissions");
        sleep(LONG_ENOUGH);
        browser.keep_picture(&format!("tokens-{name}"));
        assert!(browser.picture().unwrap().colors() > 10, "nothing is seen");
    }
}
