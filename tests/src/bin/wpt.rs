/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `wpt [PATTERN...] [--list]`: runs the web platform tests whose URL contains a pattern.

use std::io;
use std::process::ExitCode;

use e2e::server::web_platform_tests;
use e2e::shell::Options;
use e2e::softhsm::{PIN, SoftHsm};
use e2e::wpt::{Expectations, Report, Runner, Test, find_tests, print_table};

/// The tests that need a token in which keys can be made: they get one in software.
const TOKEN_KEYS: &str = "/webcrypto-key-discovery/";
/// The only token that they have: the embedded card is another one.
const NO_CARDS: &str = "[virtual_card]\nenabled = false\n\n[pcsc]\nenabled = false\n";

fn main() -> ExitCode {
    let (flags, patterns): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|argument| argument.starts_with('-'));
    let list = match flags.as_slice() {
        [] => false,
        [flag] if flag == "--list" => true,
        _ => {
            eprintln!("usage: wpt [PATTERN...] [--list]");
            return ExitCode::FAILURE;
        }
    };
    match run(&patterns, list) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("wpt: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(patterns: &[String], list: bool) -> io::Result<bool> {
    let tree = e2e::checkout().join("wpt");
    let mut tests = find_tests(&tree)?;
    tests.retain(|test| {
        patterns.is_empty()
            || patterns
                .iter()
                .any(|pattern| test.url.contains(pattern.as_str()))
    });
    if list {
        tests.iter().for_each(|test| println!("{}", test.url));
        return Ok(!tests.is_empty());
    }
    let expectations: Vec<Expectations> = tests
        .iter()
        .map(|test| load(&tree, test))
        .collect::<io::Result<_>>()?;

    let server = web_platform_tests(&tree, &e2e::npm::directory()?).start()?;
    let tests: Vec<_> = tests.iter().zip(&expectations).enumerate().collect();
    let mut reports = Vec::new();
    for group in
        tests.chunk_by(|(_, (left, _)), (_, (right, _))| uses_keys(left) == uses_keys(right))
    {
        let hsm = match group {
            [(_, (first, _)), ..] if uses_keys(first) => Some(SoftHsm::with_token("Test token")?),
            _ => None,
        };
        let mut runner = match &hsm {
            None => Runner::new(&server, Options::default()),
            Some(hsm) => {
                let options = Options {
                    token_config: format!("{NO_CARDS}\n{}", hsm.token_config()),
                    ..Options::default()
                };
                Runner::new(&server, options).with_pin(PIN)
            }
        };
        for (index, (test, expectations)) in group {
            eprintln!("[{}/{}] {}", index + 1, tests.len(), test.url);
            let outcome = runner.run(test).map_err(io::Error::other)?;
            reports.push(Report::new(&test.url, &outcome, expectations));
        }
        // The browser ends before its token does, and before the sum, which is the last line.
    }
    Ok(print_table(&reports))
}

fn uses_keys(test: &Test) -> bool {
    test.url.starts_with(TOKEN_KEYS)
}

fn load(tree: &std::path::Path, test: &Test) -> io::Result<Expectations> {
    let page = test.url.rsplit('/').next().unwrap_or(&test.url);
    Expectations::load(tree, &test.source, page)
}
