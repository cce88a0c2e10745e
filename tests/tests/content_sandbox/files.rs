/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Files that a content process cannot open, and asks the main process for.

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::server::Server;
use e2e::shell::{Options, Shell};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const SECRET: &str = "the key of the user";
const LIMIT: Duration = Duration::from_secs(20);

/// Has `hostile-shell` ask for the file in both ways.
fn attack(file: &Path) -> String {
    let file = file.display();
    format!(
        "<!DOCTYPE html><title>page</title><script>
        const attack = name => document.title = `attack ${{name}} {file}`;
        setTimeout(() => attack('fetch-file'), 100);
        setTimeout(() => attack('pick-file'), 500);
        </script>"
    )
}

/// What came of both, as soon as the log has it: `file fetched`, or that it was not.
fn outcomes(shell: &Shell, fetched: &str, picked: &str) -> Result<String> {
    let seen = wait_for(LIMIT, || {
        let log = shell.log();
        (log.contains(fetched) && log.contains(picked)).then_some(log)
    });
    seen.ok_or_else(|| shell.log_tail().into())
}

#[test]
fn the_main_process_reads_only_what_the_user_opened() -> Result {
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("id_ed25519");
    fs::write(&key, SECRET)?;
    fs::write(folder.path().join("page.html"), "<title>opened</title>")?;
    let server = Server::builder().start()?;
    server.page("/attack", &attack(&key));
    let options = Options {
        program: Some("hostile-shell"),
        url: server.url("/attack"),
        ..Options::default()
    };
    let shell = Shell::start(&server, &options)?;
    let log = outcomes(
        &shell,
        "hostile: fetch ended, false",
        "hostile: no file was picked",
    )?;
    assert!(!log.contains(SECRET), "{log}");
    threat_model::outcome(
        "content process",
        "have the main process read a file, by a `file:` URL or as if WebDriver had chosen it",
        "refused: the file was not opened by the user, and WebDriver is not in use",
    );

    // The attacks are real: they succeed when the user has opened a page beside the file, and with WebDriver.
    let browser = Browser::on(server, shell)?;
    let page = format!("file://{}", folder.path().join("page.html").display());
    browser.session.navigate(&page)?;
    assert_eq!(browser.session.title()?, "opened");
    browser.open("/attack")?;
    outcomes(
        &browser.shell,
        &format!("hostile: file fetched, {SECRET}"),
        &format!("hostile: file picked, {SECRET}"),
    )?;
    Ok(())
}

#[test]
fn local_pages_load_what_is_beside_them() -> Result {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    for name in ["pages", "pages/below", "outside"] {
        fs::create_dir(at(name))?;
    }
    for name in ["pages/beside", "pages/below/below", "outside/outside"] {
        let file = at(name).with_extension("js");
        let loaded = file.file_stem().and_then(|name| name.to_str());
        fs::write(
            &file,
            format!("loaded.push('{}')", loaded.ok_or("no name")?),
        )?;
    }
    symlink(at("outside/outside.js"), at("pages/link.js"))?;
    fs::write(
        at("pages/page.html"),
        "<!DOCTYPE html><title>local</title><script>var loaded = []</script>
        <script src=beside.js></script><script src=below/below.js></script>
        <script src=../outside/outside.js></script><script src=link.js></script>",
    )?;
    let browser = Browser::start(&Options::default())?;
    let page = format!("file://{}", at("pages/page.html").display());
    browser.session.navigate(&page)?;
    assert_eq!(browser.session.title()?, "local");
    assert_eq!(browser.evaluate("loaded.join()")??, "beside,below");
    Ok(())
}
