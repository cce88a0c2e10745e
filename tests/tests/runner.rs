/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The test runner itself: it has to see what goes wrong, and to go on after it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use e2e::process::Process;
use e2e::server::{Response, web_platform_tests};
use e2e::shell::Options;
use e2e::wpt::{Outcome, Runner, Status, find_tests};

const HEAD: &str = "<!DOCTYPE html><meta charset=utf-8>\
    <script src=/resources/testharness.js></script>\
    <script src=/resources/testharnessreport.js></script>\
    <script src=/resources/testdriver.js></script>\
    <script src=/resources/testdriver-vendor.js></script><body>";

fn write(tree: &Path, name: &str, text: &str) {
    let file = tree.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn write_page(tree: &Path, name: &str, script: &str) {
    write(tree, name, &format!("{HEAD}<script>\n{script}\n</script>"));
}

/// `status name` of each subtest, below that of the page.
fn summary(outcome: &Outcome) -> Vec<String> {
    let subtests = outcome.subtests.iter();
    let lines = subtests.map(|subtest| format!("{} {}", subtest.status.name(), subtest.name));
    [outcome.status.name().to_owned()]
        .into_iter()
        .chain(lines)
        .collect()
}

#[test]
fn outcomes_are_seen_and_the_next_test_is_run() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path();
    write_page(
        tree,
        "1-mixed.https.html",
        "test(() => assert_true(isSecureContext), 'secure');\n\
         test(() => assert_equals(1, 2, 'why'), 'wrong');\n\
         promise_test(async () => { throw new DOMException('m', 'SEIoException'); }, 'rejected');",
    );
    write_page(
        tree,
        "2-throws.https.html",
        "setup({allow_uncaught_exception: false}); throw 1;",
    );
    write_page(
        tree,
        "3-hangs.https.html",
        "test(() => { for (;;); }, 'for ever');",
    );
    write_page(
        tree,
        "4-waits.https.html",
        "test(() => {}, 'done'); async_test(() => {}, 'never');",
    );
    write_page(
        tree,
        "5-dies.https.html",
        "promise_test(() => fetch('/kill').then(() => new Promise(() => {})), 'killed');",
    );
    write(
        tree,
        "6-no-harness.https.html",
        "<!-- /resources/testharness.js --><p>nothing",
    );
    write_page(
        tree,
        "7-insecure.html",
        "test(() => assert_false(isSecureContext), 'insecure');",
    );
    write(
        tree,
        "8-worker.https.any.js",
        "test(() => assert_true(self.GLOBAL.isWorker()), 'kind');",
    );
    write_page(
        tree,
        "9-hosts.sub.https.html",
        "test(() => assert_equals(location.origin, \
           'https://{{host}}:{{ports[https][0]}}'), 'origin');\n\
         promise_test(async () => {\n\
           const url = 'https://{{hosts[alt][www]}}:{{ports[https][1]}}/shared.txt';\n\
           assert_equals(await (await fetch(url)).text(), 'shared');\n\
         }, 'other host');",
    );
    write(tree, "shared.txt", "shared");
    write(
        tree,
        "shared.txt.headers",
        "Access-Control-Allow-Origin: *\n",
    );

    let server = web_platform_tests(tree, &e2e::npm::directory().unwrap())
        .start()
        .unwrap();
    server.route("/kill", |_| {
        // The browser, not its children: those are not this process's own.
        let own = Process::all()
            .into_iter()
            .filter(|process| process.parent == std::process::id());
        own.for_each(|process| process.kill());
        Response::text(200, "")
    });
    let mut runner = Runner::new(&server, Options::default());
    let mut outcomes = Vec::new();
    for mut test in find_tests(tree).unwrap() {
        // The harness's own limit stays at ten seconds; the runner's is what is tested here.
        test.timeout = test.timeout.min(Duration::from_secs(2));
        let outcome = runner.run(&test).unwrap();
        eprintln!("{}: {outcome:?}", test.url);
        outcomes.push((test.url, outcome));
    }
    let seen: Vec<_> = outcomes
        .iter()
        .map(|(url, outcome)| (url.as_str(), summary(outcome).join(", ")))
        .collect();
    assert_eq!(
        seen,
        [
            (
                "/1-mixed.https.html",
                "OK, PASS secure, FAIL wrong, FAIL rejected"
            ),
            ("/2-throws.https.html", "ERROR"),
            ("/3-hangs.https.html", "TIMEOUT"),
            ("/4-waits.https.html", "TIMEOUT"),
            ("/5-dies.https.html", "CRASH"),
            ("/6-no-harness.https.html", "ERROR"),
            ("/7-insecure.html", "OK, PASS insecure"),
            ("/8-worker.https.any.html", "OK, FAIL kind"),
            ("/8-worker.https.any.worker.html", "OK, PASS kind"),
            (
                "/9-hosts.sub.https.html",
                "OK, PASS origin, PASS other host"
            ),
        ]
        .map(|(url, text)| (url, text.to_owned()))
    );
    let message = &outcomes[0].1.subtests[1].message;
    assert!(message.contains("why expected 2 but got 1"), "{message}");
}

#[test]
fn testdriver_reaches_the_page_and_its_frames() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path();
    write_page(
        tree,
        "driver.sub.https.html",
        r#"
promise_test(async () => {
  const button = document.body.appendChild(document.createElement("button"));
  button.textContent = "press";
  const clicked = new Promise(resolve => button.onclick = resolve);
  await test_driver.click(button);
  assert_true((await clicked).isTrusted);
}, "click");

promise_test(async () => {
  const field = document.body.appendChild(document.createElement("input"));
  await test_driver.send_keys(field, "typed");
  assert_equals(field.value, "typed");
}, "send_keys");

promise_test(async () => {
  assert_equals(await test_driver.bless("do this", () => 42), 42);
}, "bless");

promise_test(async t => {
  await promise_rejects_js(t, Error, test_driver.set_permission({name: "no-such-thing"}, "granted"));
}, "an error comes back");

for (const host of ["{{host}}", "{{hosts[alt][]}}"]) {
  promise_test(async t => {
    document.cookie = "top=1";
    const frame = document.createElement("iframe");
    t.add_cleanup(() => frame.remove());
    frame.src = `https://${host}:{{ports[https][0]}}/support/frame.html`;
    const told = new Promise(resolve => addEventListener("message", event => {
      if (event.data.cookies !== undefined) resolve(event.data.cookies);
    }));
    document.body.append(frame);
    assert_array_equals(await told, ["frame=1", ""]);
    assert_equals(document.cookie, host === location.hostname ? "" : "top=1");
  }, `delete_all_cookies in a frame from ${host}`);
}
"#,
    );
    write(
        tree,
        "support/frame.html",
        "<!DOCTYPE html><script src=/resources/testdriver.js></script>\
         <script src=/resources/testdriver-vendor.js></script><script>\n\
         const tell = cookies => parent.postMessage({cookies}, '*');\n\
         test_driver.set_test_context(parent);\n\
         document.cookie = 'frame=1; SameSite=None; Secure';\n\
         const before = document.cookie.split('; ').find(one => one.startsWith('frame'));\n\
         test_driver.delete_all_cookies().then(\n\
           () => tell([before, document.cookie]), error => tell([error.message]));</script>",
    );
    let server = web_platform_tests(tree, &e2e::npm::directory().unwrap())
        .start()
        .unwrap();
    let mut runner = Runner::new(&server, Options::default());
    let test = &find_tests(tree).unwrap()[0];
    // Twice: what the page left behind must not trouble the next one.
    for _ in 0..2 {
        let outcome = runner.run(test).unwrap();
        let failed = outcome
            .subtests
            .iter()
            .filter(|subtest| subtest.status != Status::Pass);
        assert_eq!(failed.collect::<Vec<_>>(), Vec::<&e2e::wpt::Subtest>::new());
        assert_eq!((outcome.status, outcome.subtests.len()), (Status::Ok, 6));
    }
}
