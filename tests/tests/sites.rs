/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Documents of different sites do not share a process, whatever way leads from one to the other, and so keep their
//! tokens.

use std::error::Error;
use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::server::{ALTERNATE_HOST, Response};
use e2e::shell::Options;

type Result = std::result::Result<(), Box<dyn Error>>;

const READERS: &str = "navigator.secureElementManager.getReaders().then(r => r.length)";

/// A browser whose server has a page at `/there` on each host, and redirects to the one on the other site.
fn browser() -> std::result::Result<Browser, Box<dyn Error>> {
    let browser = Browser::start(&Options::default())?;
    browser.server.route("/there", |request| {
        Response::html(format!(
            "<!DOCTYPE html><title>{} there</title><p id=body>{}</p>",
            request.method,
            String::from_utf8_lossy(&request.body)
        ))
    });
    let there = browser.server.url_on(ALTERNATE_HOST, "/there");
    for status in [301, 302, 303, 307, 308] {
        let there = there.clone();
        browser
            .server
            .route(&format!("/redirect-{status}"), move |_| {
                Response::redirect(status, &there)
            });
    }
    Ok(browser)
}

fn wait_for_title(browser: &Browser, title: &str) -> Result {
    wait_for(Duration::from_secs(10), || {
        (browser.session.title().ok()? == title).then_some(())
    })
    .ok_or_else(|| {
        format!(
            "the title is {:?} instead of {title:?}, at {:?}",
            browser.session.title(),
            browser.session.url()
        )
        .into()
    })
}

/// How many content processes the browser has.
fn content_processes(browser: &Browser) -> usize {
    browser
        .shell
        .processes()
        .iter()
        .filter(|process| {
            process
                .arguments
                .iter()
                .any(|word| word == "--content-process")
        })
        .count()
}

#[test]
fn a_page_that_is_reached_by_a_redirect_from_another_site_has_its_tokens() -> Result {
    let browser = browser()?;
    let there = browser.server.url_on(ALTERNATE_HOST, "/there");
    browser.session.navigate(&there)?;
    browser.grant()?;
    for status in [301, 302, 303, 307, 308] {
        browser.open("/")?;
        browser
            .session
            .navigate(&browser.server.url(&format!("/redirect-{status}")))?;
        wait_for_title(&browser, "GET there")?;
        assert_eq!(browser.session.url()?, there);
        assert_eq!(browser.evaluate(READERS)??, 1, "after a {status}");
    }
    browser.session.execute("history.back()", &[])?;
    wait_for_title(&browser, "start")
}

#[test]
fn a_page_that_is_reached_by_a_redirect_from_http_has_its_tokens() -> Result {
    let browser = browser()?;
    browser.open("/there")?;
    browser.grant()?;
    let there = browser.server.url("/there");
    browser
        .server
        .route("/upgrade", move |_| Response::redirect(302, &there));
    let insecure = browser
        .server
        .insecure_url_on(e2e::server::HOST, "/upgrade");
    browser.session.navigate(&insecure)?;
    wait_for_title(&browser, "GET there")?;
    assert_eq!(browser.evaluate(READERS)??, 1);
    Ok(())
}

#[test]
fn a_form_that_is_redirected_to_another_site_arrives() -> Result {
    let browser = browser()?;
    browser
        .session
        .navigate(&browser.server.url_on(ALTERNATE_HOST, "/there"))?;
    browser.grant()?;
    let form = |status| {
        browser.server.page(
            "/form",
            &format!(
                "<!DOCTYPE html><title>form</title>\
                 <form id=form method=post action=/redirect-{status}><input name=a value=b></form>"
            ),
        );
    };

    // These become a GET, which starts over in the right process.
    for status in [301, 302, 303] {
        form(status);
        browser.open("/form")?;
        browser.session.execute("form.submit()", &[])?;
        wait_for_title(&browser, "GET there")?;
        assert_eq!(browser.evaluate(READERS)??, 1, "after a {status}");
    }

    // These carry the body along, and cannot. The page works, but without tokens, until it is loaded again.
    for status in [307, 308] {
        form(status);
        browser.open("/form")?;
        browser.session.execute("form.submit()", &[])?;
        wait_for_title(&browser, "POST there")?;
        assert_eq!(
            browser.evaluate("document.getElementById('body').textContent")??,
            "a=b"
        );
        let error = browser.evaluate(READERS)?.unwrap_err();
        assert!(
            error.starts_with("NotAllowedError") && error.contains("in a new tab"),
            "{error}"
        );
    }
    browser
        .session
        .navigate(&browser.server.url_on(ALTERNATE_HOST, "/there"))?;
    assert_eq!(browser.evaluate(READERS)??, 1);
    Ok(())
}

#[test]
fn a_frame_is_redirected_to_another_site() -> Result {
    let browser = browser()?;
    let origin = browser.server.url_on(ALTERNATE_HOST, "");
    browser.server.page(
        "/framed",
        "<!DOCTYPE html><script>\
         parent.postMessage([origin, document.cookie], '*');\
         addEventListener('message', () => location.reload());</script>",
    );
    let framed = browser.server.url_on(ALTERNATE_HOST, "/framed");
    browser
        .server
        .route("/redirect-frame", move |_| Response::redirect(302, &framed));
    browser.server.page(
        "/frames",
        "<!DOCTYPE html><title>0</title><script>\
         addEventListener('message', event => { \
             document.title = `${parseInt(document.title) + 1} ${event.data[0]}`; });\
         </script><iframe id=frame src=/redirect-frame></iframe>",
    );
    browser.open("/frames")?;
    wait_for_title(&browser, &format!("1 {origin}"))?;
    // It navigates itself, through the process of its parent.
    browser.session.execute(
        "document.getElementById('frame').contentWindow.postMessage('', '*')",
        &[],
    )?;
    wait_for_title(&browser, &format!("2 {origin}"))
}

#[test]
fn redirects_between_sites_without_end_are_given_up() -> Result {
    let browser = browser()?;
    let (here, there) = (
        browser.server.url("/loop"),
        browser.server.url_on(ALTERNATE_HOST, "/loop"),
    );
    browser
        .server
        .route_on(e2e::server::HOST, "/loop", move |_| {
            Response::redirect(302, &there)
        });
    browser.server.route_on(ALTERNATE_HOST, "/loop", move |_| {
        Response::redirect(302, &here)
    });
    browser.session.execute(
        "location = arguments[0]",
        &[browser.server.url("/loop").into()],
    )?;
    // Twenty processes come and go meanwhile.
    let given_up = || (browser.session.title().ok()? == "Error loading page").then_some(());
    assert!(wait_for(Duration::from_secs(30), given_up).is_some());
    browser.open("/there")?;
    wait_for_title(&browser, "GET there")
}

#[test]
fn http_and_https_of_one_host_do_not_share_a_process() -> Result {
    let browser = browser()?;
    browser.open("/there")?;
    let before = content_processes(&browser);
    browser
        .session
        .navigate(&browser.server.url("/?same-site"))
        .ok();
    assert_eq!(content_processes(&browser), before, "the same site");
    browser
        .session
        .navigate(&browser.server.insecure_url_on(e2e::server::HOST, "/there"))?;
    assert_eq!(content_processes(&browser), before + 1, "another site");
    Ok(())
}

/// What pages do every day with frames and windows, of their own site and of another. Each puts its name into
/// `self.done` when it has worked.
const EVERYDAY: &str = r#"<!DOCTYPE html><title>everyday</title><script>
self.done = [];
addEventListener("message", event => done.push(event.data));
const frame = attributes => {
    const element = document.createElement("iframe");
    Object.assign(element, attributes);
    document.body.append(element);
    return element;
};
const tell = name => `<script>(window.opener ?? parent).postMessage("${name}", "*")<\/script>`;
onload = () => {
    // Frames.
    frame({ src: "/tell?frame-same" });
    frame({ src: THERE + "/tell?frame-other" });
    frame({ src: THERE + "/tell?frame-sandboxed", sandbox: "allow-scripts" });
    frame({ srcdoc: tell("srcdoc") });
    frame({ src: "data:text/html," + encodeURIComponent(tell("data")) });
    frame({ src: URL.createObjectURL(new Blob([tell("blob")], { type: "text/html" })) });
    const blank = frame({});
    blank.contentDocument.write(tell("document-write"));
    blank.contentDocument.close();
    frame({ src: "javascript:`<script>parent.postMessage('javascript', '*')<\/script>`" });
    // Frames that navigate themselves, and are navigated.
    frame({ src: THERE + "/hop?frame-hops-within-other" });
    frame({ src: THERE + "/hop-back?frame-hops-back" });
    frame({ src: "/tell?before" }).onload = event => {
        event.target.onload = null;
        event.target.src = THERE + "/tell?frame-moved";
    };
    frame({ name: "target" });
    const form = document.createElement("form");
    Object.assign(form, { method: "post", action: THERE + "/tell?form-in-frame", target: "target" });
    document.body.append(form);
    form.submit();
    // The document's own URL.
    history.pushState(1, "", "/everyday/pushed?1#a");
    history.replaceState(2, "", "/everyday?2");
    location.hash = "b";
};
</script><body>"#;

#[test]
fn what_pages_do_every_day_is_not_refused() -> Result {
    let browser = Browser::start(&Options {
        environment: vec![("RUST_LOG".into(), "servo_constellation=warn".into())],
        ..Options::default()
    })?;
    let server = &browser.server;
    let tell = |request: &e2e::server::Request| {
        let name = &request.query;
        Response::html(format!(
            "<!DOCTYPE html><script>\
             (window.opener ?? parent).postMessage('{name}', '*'); history.pushState(1, '', '#x');</script>"
        ))
    };
    server.route("/tell", tell);
    server.route("/hop", |request| {
        Response::html(format!(
            "<script>location = '/tell?{}'</script>",
            request.query
        ))
    });
    let back = server.url("/tell");
    server.route("/hop-back", move |request| {
        Response::html(format!(
            "<script>location = '{back}?{}'</script>",
            request.query
        ))
    });
    let there = server.url_on(ALTERNATE_HOST, "");
    server.page(
        "/everyday",
        &EVERYDAY.replace("THERE", &format!("{there:?}")),
    );
    browser.open("/everyday")?;

    let mut expected = vec![
        "before",
        "blob",
        "data",
        "document-write",
        "form-in-frame",
        "frame-hops-back",
        "frame-hops-within-other",
        "frame-moved",
        "frame-other",
        "frame-same",
        "frame-sandboxed",
        "javascript",
        "srcdoc",
    ];
    expected.sort_unstable();
    let done = || -> Option<Vec<String>> {
        let done = browser
            .evaluate("[...new Set(self.done)].sort()")
            .ok()?
            .ok()?;
        serde_json::from_value(done).ok()
    };
    wait_for(Duration::from_secs(20), || {
        (done()? == expected).then_some(())
    });
    assert_eq!(
        done().unwrap_or_default(),
        expected,
        "{}",
        browser.shell.log()
    );

    // A window of another site, which talks to its opener, navigates and goes back.
    browser.evaluate(&format!("void open('{there}/tell?window-other')"))??;
    browser.evaluate("void open('/tell?window-same')")??;
    wait_for(Duration::from_secs(10), || {
        let done = done()?;
        ["window-other", "window-same"]
            .iter()
            .all(|name| done.iter().any(|done| done == name))
            .then_some(())
    });
    let log = browser.shell.log();
    assert!(
        done().is_some_and(|done| done.len() == expected.len() + 2),
        "{:?}\n{log}",
        done()
    );
    assert!(!log.contains("Refused"), "{log}");
    Ok(())
}
