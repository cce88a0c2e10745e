/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser's window on a display of its own (Xvfb), driven by keys and the pointer as a user drives it, and looked at
//! as a user sees it. What prompts look like is tested in the shell; here it is when an answer counts.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use e2e::image::Image;
use e2e::process::wait_for;
use e2e::shell::VARIABLE;
use e2e::webdriver::Client;
use serde_json::json;
use tempfile::TempDir;
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
        let (mut reader, writer) = std::io::pipe()?;
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
        let mut number = String::new();
        // Ends with the line, because the server closes its end, or with the server.
        reader.read_to_string(&mut number)?;
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
        connection.set_input_focus(InputFocus::NONE, target, x11rb::CURRENT_TIME)?;
        connection.flush()?;
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
