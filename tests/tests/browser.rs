/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser itself, through WebDriver: pages, clicks, pictures, frames, windows, certificates.

use std::time::Duration;

use e2e::browser::Browser;
use e2e::image::Image;
use e2e::process::wait_for;
use e2e::server::{ALTERNATE_HOST, HOST, Server};
use e2e::shell::Options;
use e2e::webdriver::Frame;
use serde_json::json;

#[test]
fn a_page_over_https_runs_is_clicked_and_is_seen() {
    let browser = Browser::start(&Options::default()).unwrap();
    browser.server.page(
        "/page",
        "<!DOCTYPE html><title>a page</title>\
         <body style='background: rgb(10, 120, 200); margin: 0'>\
         <button id=button style='position: absolute; left: 20px; top: 20px'>press</button>\
         <p id=line style='position: absolute; top: 60px'>quiet</p><script>\
         let clicks = 0;\
         button.onclick = event => {\
           line.textContent = `${++clicks} ${event.isTrusted}`;\
           document.body.style.background = 'rgb(200, 120, 10)';\
         };</script>",
    );
    browser.open("/page").unwrap();
    let session = &browser.session;
    assert_eq!(session.url().unwrap(), browser.server.url("/page"));
    assert_eq!(session.title().unwrap(), "a page");
    assert_eq!(
        session.execute("return isSecureContext", &[]).unwrap(),
        json!(true)
    );
    assert_eq!(
        session
            .execute("return arguments[0] * 2", &[json!(21)])
            .unwrap(),
        json!(42)
    );
    assert!(session.find("#nothing").unwrap_err().is("no such element"));
    let error = session.execute("throw new Error('mine')", &[]).unwrap_err();
    assert!(error.is("javascript error"), "{error}");

    let before = Image::from_png(&session.screenshot().unwrap()).unwrap();
    assert_eq!((before.width, before.height), (800, 600));
    assert_eq!(before.pixel(700, 500), Some([10, 120, 200]));
    assert!(
        before.colors() > 2,
        "button and text are drawn: {} colours",
        before.colors()
    );

    session.click(&session.find("#button").unwrap()).unwrap();
    let text = session.find("#line").unwrap();
    assert_eq!(session.text(&text).unwrap(), "1 true");
    let after = Image::from_png(&session.screenshot().unwrap()).unwrap();
    assert_eq!(after.pixel(700, 500), Some([200, 120, 10]));
}

#[test]
fn a_page_with_an_unknown_certificate_is_not_loaded() {
    let stranger = Server::builder().start().unwrap();
    stranger.page("/page", "<!DOCTYPE html><title>stranger</title>");
    let browser = Browser::start(&Options::default()).unwrap();
    browser
        .server
        .page("/page", "<!DOCTYPE html><title>known</title>");
    browser.open("/page").unwrap();
    assert_eq!(browser.session.title().unwrap(), "known");
    // Whether it is an error to come to the error page is left to the browser.
    let _ = browser.session.navigate(&stranger.url("/page"));
    assert_ne!(browser.session.title().unwrap(), "stranger");
}

#[test]
fn frames_and_windows_are_reached() {
    let browser = Browser::start(&Options::default()).unwrap();
    let (server, session) = (&browser.server, &browser.session);
    server.page(
        "/inner",
        "<!DOCTYPE html><title>inner</title><p id=inner>in the frame",
    );
    let inner = server.url_on(ALTERNATE_HOST, "/inner");
    server.page(
        "/outer",
        &format!("<!DOCTYPE html><title>outer</title><iframe src='{inner}'></iframe>"),
    );
    browser.open("/outer").unwrap();
    let host = || session.execute("return location.hostname", &[]).unwrap();
    assert_eq!(host(), json!(HOST));
    session.switch_to_frame(&Frame::Child(0)).unwrap();
    assert_eq!(host(), json!(ALTERNATE_HOST));
    assert_eq!(
        session.text(&session.find("#inner").unwrap()).unwrap(),
        "in the frame"
    );
    session.switch_to_frame(&Frame::Top).unwrap();
    session
        .switch_to_frame(&Frame::Of(session.find("iframe").unwrap()))
        .unwrap();
    assert_eq!(host(), json!(ALTERNATE_HOST));
    session.switch_to_frame(&Frame::Top).unwrap();
    assert!(
        session
            .switch_to_frame(&Frame::Child(1))
            .unwrap_err()
            .is("no such frame")
    );

    let first = session.window().unwrap();
    let second = session.new_window().unwrap();
    assert_eq!(session.windows().unwrap().len(), 2);
    session.switch_to_window(&second).unwrap();
    session.navigate(&inner).unwrap();
    assert_eq!(session.title().unwrap(), "inner");
    session.close_window().unwrap();
    session.switch_to_window(&first).unwrap();
    assert_eq!(session.title().unwrap(), "outer");
    assert_eq!(session.windows().unwrap(), [first]);
}

#[test]
fn a_click_asks_the_card_and_the_answer_is_shown() {
    let browser = Browser::start(&Options::default()).unwrap();
    browser.server.page(
        "/demo",
        r"<!DOCTYPE html><title>demo</title><button>Ask the card</button><output></output><script>
        const output = document.querySelector('output');
        async function ask() {
          const [reader] = await navigator.secureElementManager.getReaders();
          const session = await reader.openSession();
          const aid = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x01, 0x01);
          const channel = await session.openSupplementaryChannel(aid);
          const question = new TextEncoder().encode('Hello, card!');
          const response = await channel.transmit(new SECommand(0, 0x10, 0, 0, question, 0));
          await session.close();
          return `${response.isStatus(0x90, 0x00)} ${new TextDecoder().decode(response.data)}`;
        }
        document.querySelector('button').onclick = () => ask().then(
          text => output.textContent = text,
          error => output.textContent = `${error.name}: ${error.message}`);
        </script>",
    );
    browser.open("/demo").unwrap();
    browser.grant().unwrap();
    let session = &browser.session;
    let before = session.screenshot().unwrap();
    session.click(&session.find("button").unwrap()).unwrap();
    let shown = wait_for(Duration::from_secs(30), || {
        let text = session.execute("return document.querySelector('output').textContent", &[]);
        text.unwrap()
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    });
    assert_eq!(shown.as_deref(), Some("true Hello, card!"));
    let after = session.screenshot().unwrap();
    assert!(Image::from_png(&after).unwrap().colors() > 2);
    assert_ne!(before, after, "the answer is on the screen");
}
