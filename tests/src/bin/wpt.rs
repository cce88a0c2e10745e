/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `wpt [PATTERN...] [--list]`: runs the web platform tests whose URL contains a pattern.

use std::io;
use std::process::ExitCode;

use e2e::server::web_platform_tests;
use e2e::shell::Options;
use e2e::wpt::{Expectations, Report, Runner, Test, find_tests, print_table};

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
    let mut runner = Runner::new(&server, Options::default());
    let mut reports = Vec::new();
    for (index, (test, expectations)) in tests.iter().zip(&expectations).enumerate() {
        eprintln!("[{}/{}] {}", index + 1, tests.len(), test.url);
        let outcome = runner.run(test).map_err(io::Error::other)?;
        reports.push(Report::new(&test.url, &outcome, expectations));
    }
    // The browser ends before the sum, which is the last line.
    drop(runner);
    Ok(print_table(&reports))
}

fn load(tree: &std::path::Path, test: &Test) -> io::Result<Expectations> {
    let page = test.url.rsplit('/').next().unwrap_or(&test.url);
    Expectations::load(tree, &test.source, page)
}
