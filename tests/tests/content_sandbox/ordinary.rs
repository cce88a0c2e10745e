/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Ordinary pages give the same results with and without the sandbox.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::{survivors, wait_for};
use e2e::server::{ALTERNATE_HOST, Response, Server};
use e2e::shell::Options;
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Has summer time, and its rules are in a file of the system.
const TIME_ZONE: &str = "Europe/Zurich";

/// How long the browser may take to end.
const END: Duration = Duration::from_secs(20);

/// What cannot work for other reasons gives one of these, and then the check checks nothing.
const NOTHING: [&str; 2] = ["none", "late"];

/// A font of the system, which the server hands out as a page's own.
pub(super) fn font() -> Result<PathBuf> {
    fn find(folder: &Path) -> Option<PathBuf> {
        std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                find(&path)
            } else {
                (path.extension()? == "ttf").then_some(path)
            }
        })
    }
    find(Path::new("/usr/share/fonts")).ok_or_else(|| "the system has no font".into())
}

/// A picture of 3 by 2 pixels.
fn image() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 3, 2);
    encoder.set_color(png::ColorType::Grayscale);
    encoder
        .write_header()?
        .write_image_data(&[0, 50, 100, 150, 200, 250])?;
    Ok(bytes)
}

fn serve(server: &Server) -> Result {
    let javascript = |text: &'static str| {
        move |_: &e2e::server::Request| Response::new(200, "text/javascript", text)
    };
    server.page(
        "/ordinary",
        "<!DOCTYPE html><meta charset=utf-8><title>ordinary</title><body>\
         <form method=post enctype=multipart/form-data action=/echo-page target=uploaded>\
         <input type=file name=file></form><script src=/ordinary.js></script>",
    );
    server.route("/ordinary.js", javascript(include_str!("ordinary.js")));
    server.route(
        "/worker.js",
        javascript(
            "onmessage = ({ data }) => postMessage(data.reduce((sum, value) => sum + value, 0));",
        ),
    );
    server.route(
        "/service-worker.js",
        javascript(
            "onmessage = ({ data, source }) => source.postMessage([data.reduce((sum, value) => sum + value, 0), \
             new Date(2024, 6, 15, 12).toString(), new WebAssembly.Memory({ initial: 3 }).buffer.byteLength]);",
        ),
    );
    server.route("/echo", |request| {
        Response::new(200, "application/octet-stream", request.body.clone())
    });
    server.route("/echo-page", |request| {
        Response::text(200, request.body.clone())
    });
    let font = std::fs::read(font()?)?;
    server.route("/font.ttf", move |_| {
        Response::new(200, "font/ttf", font.clone())
    });
    let image = image()?;
    server.route("/image.png", move |_| {
        Response::new(200, "image/png", image.clone())
    });
    server.page(
        "/other-site",
        "<!DOCTYPE html><script>parent.postMessage('from another site', '*')</script>",
    );
    Ok(())
}

fn results(sandbox: bool, server: Server) -> Result<(Server, Value)> {
    let mut browser = Browser::start_on(
        server,
        &Options {
            preferences: [
                ("dom_content_process_sandbox_enabled", sandbox),
                ("dom_serviceworker_enabled", true),
                ("dom_indexeddb_enabled", true),
                ("dom_offscreen_canvas_enabled", true),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_string()))
            .to_vec(),
            environment: vec![("TZ".into(), TIME_ZONE.into())],
            ..Options::default()
        },
    )?;
    browser
        .session
        .set_timeouts(Duration::from_secs(240), Duration::from_secs(30))?;
    browser.session.set_deadline(Duration::from_secs(260));
    browser.open("/ordinary")?;
    browser.session.execute(
        "self.otherSite = arguments[0]",
        &[json!(browser.server.url_on(ALTERNATE_HOST, "/other-site"))],
    )?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("upload.txt");
    let lines = "one of many lines\n".repeat(10_000);
    std::fs::write(&file, lines + "end of the file")?;
    let field = browser.session.find("input[type=file]")?;
    browser
        .session
        .send_keys(&field, &file.display().to_string())?;
    let results = browser.evaluate("ordinary()")??;
    // The process of the service worker ends with the others.
    let started = browser.shell.processes();
    // The browser may end before it has answered.
    let _ = browser.session.delete("servo/shutdown");
    let ended = wait_for(END, || browser.shell.has_ended().then_some(()));
    assert!(ended.is_some(), "{}", browser.shell.log_tail());
    assert_eq!(survivors(&started, END), []);
    let Browser {
        session,
        shell,
        server,
    } = browser;
    drop((session, shell));
    Ok((server, results))
}

#[test]
fn ordinary_pages_do_not_notice_the_sandbox() -> Result {
    let server = Server::builder().start()?;
    serve(&server)?;
    let (server, without) = results(false, server)?;
    let (_server, with) = results(true, server)?;
    let without = without.as_object().ok_or("no results")?;
    for (name, result) in without {
        assert_eq!(&with[name], result, "{name}");
        let text = result.as_str().unwrap_or_default();
        assert!(
            !NOTHING.contains(&text) && !text.contains("Error: "),
            "{name}: {text}"
        );
    }
    Ok(())
}
