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
    std::thread::sleep(Duration::from_secs(3));
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
