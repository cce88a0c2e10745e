/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `cargo xtask test`: every check and every test, and one line with their sum at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};

use crate::paths::Paths;
use crate::process::{self, cargo, elapsed, interactive, program, run_reading, step};
use crate::series::read_text;
use crate::setup::{Need, setup};
use crate::shell;
use crate::{assemble, check, tree};

/// Test cases that ran.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Cases {
    passed: u64,
    failed: u64,
}

impl std::ops::AddAssign for Cases {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// All steps of a run so far.
#[derive(Default)]
struct Report {
    cases: Cases,
    failures: Vec<String>,
}

impl Report {
    /// Runs a check without test cases of its own; it counts only when it fails.
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) -> bool {
        self.runner(name, || check().map(|()| Cases::default()))
    }

    /// Runs a test runner that returns what it ran. A runner that fails without naming a test counts as one failed
    /// test: the sum must not look clean.
    fn runner(&mut self, name: &str, run: impl FnOnce() -> Result<Cases>) -> bool {
        step(format!("{name} ..."));
        let started = Instant::now();
        let cases = run().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            Cases {
                passed: 0,
                failed: 1,
            }
        });
        self.cases += cases;
        let passed = cases.failed == 0;
        if !passed {
            self.failures.push(name.to_owned());
        }
        let outcome = if passed { "ok" } else { "FAILED" };
        step(format!("{name}: {outcome} ({})", elapsed(started)));
        passed
    }

    /// The last line, and whether the run counts as passed.
    fn finish(&self) -> (String, bool) {
        let Cases { passed, failed } = self.cases;
        (
            format!("{passed} passed, {failed} failed"),
            failed == 0 && passed > 0,
        )
    }
}

/// Everything; with `filter`, only the Rust tests whose names contain it.
pub fn all(paths: &Paths, filter: Option<&str>) -> Result<()> {
    let started = Instant::now();
    let mut report = Report::default();
    if !report.check("set-up", || setup(Need::Test)) {
        return conclude(&report, started);
    }
    forget_attempts(paths)?;
    if filter.is_none() {
        report.check("formatting", || formatting(paths));
        report.check("patches check", || check::check(paths));
        report.check("patches stat", || check::stat(paths));
        report.check("clippy", || clippy(paths));
    }
    report.runner("unit and integration tests", || {
        workspace_tests(paths, filter)
    });
    let mut binary = None;
    let built = report.check("shell", || {
        binary = Some(shell::build_for_tests(paths)?);
        Ok(())
    });
    if let Some(binary) = binary.filter(|_| built) {
        if filter.is_none() {
            report.check("clippy of the shell", || shell::clippy(paths));
        }
        report.runner("unit tests of the shell", || shell_tests(paths, filter));
        report.runner("tests of ipc-channel", || ipc_channel_tests(paths, filter));
        report.runner("end-to-end tests", || end_to_end(paths, &binary, filter));
        if filter.is_none() {
            report.runner("web tests", || web_tests(paths, &binary, None));
            report.check("attempts in the threat model", || attempts(paths));
        }
    }
    conclude(&report, started)
}

fn conclude(report: &Report, started: Instant) -> Result<()> {
    let (line, good) = report.finish();
    if !report.failures.is_empty() {
        println!("failed: {}", report.failures.join(", "));
    }
    println!("Took {}", elapsed(started));
    println!("{line}");
    if !good {
        // The sum has to stay the last line: no error message follows it.
        std::process::exit(1);
    }
    Ok(())
}

/// Only the web tests that match; their runner prints the last line.
pub fn web_only(paths: &Paths, pattern: &str) -> Result<()> {
    setup(Need::Test)?;
    let binary = shell::build_for_tests(paths)?;
    let cases = web_tests(paths, &binary, Some(pattern))?;
    if cases.failed > 0 || cases.passed == 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// rustfmt over the workspace, the shell, and the engine's new files, the last in Servo's own style.
fn formatting(paths: &Paths) -> Result<()> {
    let fmt = |arguments: &[&str]| process::run(cargo(&paths.root).arg("fmt").args(arguments));
    let mut results = vec![
        fmt(&["--all", "--check"]),
        fmt(&["--check", "--manifest-path", "components/shell/Cargo.toml"]),
    ];
    for file in tree::files(&paths.overlay())? {
        if file.extension().is_some_and(|extension| extension == "rs") {
            results.push(format_engine_file(paths, &paths.overlay().join(file)));
        }
    }
    let failed = results.iter().filter(|result| result.is_err()).count();
    ensure!(failed == 0, "rustfmt would change something");
    Ok(())
}

/// Through standard input, because rustfmt would follow `mod` lines to files that are only in the assembled crate.
fn format_engine_file(paths: &Paths, file: &Path) -> Result<()> {
    let mut command = program("rustfmt");
    command
        .current_dir(&paths.root)
        .args([
            "--check",
            "--edition=2024",
            "--config=match_block_trailing_comma=true",
        ])
        .stdin(std::fs::File::open(file)?)
        .stdout(std::process::Stdio::null());
    let result = process::run(&mut command);
    if result.is_err() {
        eprintln!("{} is not formatted as rustfmt does", paths.show(file));
    }
    result
}

/// Where tests leave notes of the attacks that they have played.
fn seen_attempts(paths: &Paths) -> PathBuf {
    paths.target.join("threat-model-seen")
}

fn forget_attempts(paths: &Paths) -> Result<()> {
    let folder = seen_attempts(paths);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    Ok(fs::create_dir_all(&folder)?)
}

/// Whether each attempt in the document was seen by one of the tests that have run.
fn attempts(paths: &Paths) -> Result<()> {
    let unseen = threat_model::unseen(&seen_attempts(paths))?;
    ensure!(
        unseen.is_empty(),
        "no test has seen these rows of docs/threat-model.md:\n{}",
        unseen.join("\n")
    );
    Ok(())
}

fn clippy(paths: &Paths) -> Result<()> {
    let mut command = workspace_cargo(paths);
    command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    process::run_cargo_build(&mut command)
}

/// Cargo in our workspace.
fn workspace_cargo(paths: &Paths) -> Command {
    let mut command = cargo(&paths.root);
    command.env("CARGO_TARGET_DIR", &paths.target);
    command.env("THREAT_MODEL_SEEN", seen_attempts(paths));
    if interactive() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// Everything but the end-to-end tests, which need the shell.
fn workspace_tests(paths: &Paths, filter: Option<&str>) -> Result<Cases> {
    let has_nextest = process::succeeds(cargo(&paths.root).args(["nextest", "--version"]));
    let mut cases = Cases::default();
    if has_nextest {
        let mut command = workspace_cargo(paths);
        command
            .args([
                "nextest",
                "run",
                "--workspace",
                "--exclude=e2e",
                "--no-fail-fast",
            ])
            .args(["--cargo-quiet", "--no-tests=pass", "--status-level=slow"])
            .args(filter);
        cases += run_counted(&mut command, nextest_summary)?;
    }
    let mut command = workspace_cargo(paths);
    command.args([
        "test",
        "--quiet",
        "--workspace",
        "--exclude=e2e",
        "--no-fail-fast",
    ]);
    if has_nextest {
        // It runs no documentation tests.
        command.arg("--doc");
    }
    command.arg("--").args(filter);
    cases += run_counted(&mut command, libtest_summary)?;
    Ok(cases)
}

fn shell_tests(paths: &Paths, filter: Option<&str>) -> Result<Cases> {
    let _guard = assemble::lock_target(paths)?;
    run_counted(&mut shell::unit_tests(paths, filter)?, libtest_summary)
}

/// The tests of the patched ipc-channel, its own and ours, in a copy: a dependency's tests cannot be run where it is one.
fn ipc_channel_tests(paths: &Paths, filter: Option<&str>) -> Result<Cases> {
    let _guard = assemble::lock_target(paths)?;
    let folder = paths.target.join("ipc-channel-tests");
    let (copy, manifest) = (folder.join("crate"), folder.join("crate/Cargo.toml"));
    tree::sync(&paths.engine().join("ipc-channel"), &copy)?;
    let text = without_benches(&read_text(&manifest)?);
    tree::write(&manifest, text.as_bytes())?;
    let lock = tree::read(&paths.root.join("components/shell/Cargo.lock"))?;
    tree::write(&copy.join("Cargo.lock"), &lock)?;
    let mut command = cargo(&copy);
    command
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .args(["test", "--quiet", "--lib", "--tests", "--no-fail-fast"])
        .arg("--")
        .args(filter);
    run_counted(&mut command, libtest_summary)
}

/// A crate's manifest as that of a workspace of its own, without the benchmarks and what only they need.
fn without_benches(manifest: &str) -> String {
    let mut text = String::new();
    let mut kept = true;
    for line in manifest.lines() {
        if line.starts_with('[') {
            kept = !matches!(line, "[[bench]]" | "[dev-dependencies.criterion]");
        }
        if kept {
            text += line;
            text.push('\n');
        }
    }
    text + "[workspace]\n"
}

fn end_to_end(paths: &Paths, binary: &Path, filter: Option<&str>) -> Result<Cases> {
    ensure_e2e(paths)?;
    let mut command = shell::e2e(paths, binary);
    command.env("THREAT_MODEL_SEEN", seen_attempts(paths));
    // Without --quiet: each of these tests takes a while, and its name is the progress.
    command.args(["test", "--package=e2e", "--no-fail-fast"]);
    command.arg("--").args(filter);
    run_counted(&mut command, libtest_summary)
}

fn web_tests(paths: &Paths, binary: &Path, pattern: Option<&str>) -> Result<Cases> {
    ensure_e2e(paths)?;
    let mut command = shell::e2e(paths, binary);
    command.args(["run", "--quiet", "--package=e2e", "--bin=wpt", "--"]);
    command.args(pattern);
    let mut last = None;
    let status = run_reading(&mut command, |line| last = web_summary(line).or(last))?;
    let cases = last.ok_or_else(|| anyhow!("the web test runner ended without a sum: {status}"))?;
    ensure!(
        status.success() || cases.failed > 0,
        "the web test runner failed: {status}"
    );
    Ok(cases)
}

/// A clearer message than cargo's for a checkout that lacks the package.
fn ensure_e2e(paths: &Paths) -> Result<()> {
    let manifest = paths.root.join("tests/Cargo.toml");
    let text = read_text(&manifest)?;
    ensure!(
        text.contains("name = \"e2e\""),
        "{} is not the package `e2e`",
        paths.show(&manifest)
    );
    Ok(())
}

/// Runs a test runner and adds up the summaries that it prints.
fn run_counted(command: &mut Command, summary: fn(&str) -> Option<Cases>) -> Result<Cases> {
    let mut cases = Cases::default();
    let status = run_reading(command, |line| {
        if let Some(found) = summary(&plain(line)) {
            cases += found;
        }
    })?;
    if !status.success() && cases.failed == 0 {
        bail!("the test runner failed: {status}");
    }
    Ok(cases)
}

/// The line without terminal colours.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text += before;
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    text + rest
}

/// The number before each of `words` in a list such as "3 passed (1 slow), 1 failed".
fn numbers(list: &str, words: &[&str]) -> u64 {
    list.split([',', ';', ':'])
        .filter_map(|item| {
            let (number, word) = item.trim().split_once(' ')?;
            let word = word.split(" (").next()?;
            words.contains(&word).then(|| number.parse::<u64>().ok())?
        })
        .sum()
}

/// "test result: FAILED. 3 passed; 1 failed; 0 ignored; ..."
fn libtest_summary(line: &str) -> Option<Cases> {
    let (_, list) = line
        .trim_start()
        .strip_prefix("test result: ")?
        .split_once(". ")?;
    Some(Cases {
        passed: numbers(list, &["passed"]),
        failed: numbers(list, &["failed"]),
    })
}

/// "Summary [ 0.1s] 4 tests run: 2 passed (1 slow), 1 failed, 1 timed out, 0 skipped"
fn nextest_summary(line: &str) -> Option<Cases> {
    let (_, rest) = line
        .trim_start()
        .strip_prefix("Summary [")?
        .split_once(']')?;
    let (_, list) = rest.split_once(" run: ")?;
    Some(Cases {
        passed: numbers(list, &["passed"]),
        failed: numbers(
            list,
            &["failed", "timed out", "exec failed", "failed to start"],
        ),
    })
}

/// "3 passed, 1 failed", alone on a line.
fn web_summary(line: &str) -> Option<Cases> {
    let line = plain(line);
    let (passed, failed) = line.trim().split_once(" passed, ")?;
    Some(Cases {
        passed: passed.parse().ok()?,
        failed: failed.strip_suffix(" failed")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(passed: u64, failed: u64) -> Option<Cases> {
        Some(Cases { passed, failed })
    }

    #[test]
    fn summaries_of_libtest() {
        let line = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(libtest_summary(line), cases(12, 0));
        let line = "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(libtest_summary(line), cases(2, 3));
        assert_eq!(libtest_summary("test result_of_parsing ... ok"), None);
    }

    #[test]
    fn benches_are_left_out_of_a_manifest() {
        let manifest = "[package]\nname = \"a\"\n\n[[bench]]\nname = \"b\"\n\n[dependencies.c]\nversion = \"1\"\n\
                        [dev-dependencies.criterion]\nversion = \"0.5\"\n";
        assert_eq!(
            without_benches(manifest),
            "[package]\nname = \"a\"\n\n[dependencies.c]\nversion = \"1\"\n[workspace]\n"
        );
    }

    #[test]
    fn summaries_of_nextest() {
        let line = "     Summary [   0.014s] 12 tests run: 12 passed, 3 skipped";
        assert_eq!(nextest_summary(line), cases(12, 0));
        let line = "     Summary [  60.014s] 9/12 tests run: 4 passed (1 slow, 2 leaky), 3 failed, 2 timed out, 0 skipped";
        assert_eq!(nextest_summary(line), cases(4, 5));
        let colored = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.1s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 0 skipped";
        assert_eq!(nextest_summary(&plain(colored)), cases(1, 0));
    }

    #[test]
    fn summaries_of_web_tests() {
        assert_eq!(web_summary("7 passed, 2 failed"), cases(7, 2));
        assert_eq!(web_summary("7 passed, 2 failed, 1 skipped"), None);
        assert_eq!(web_summary("subtest: 7 passed, 2 failed"), None);
    }

    #[test]
    fn a_failing_step_never_looks_clean() {
        let mut report = Report::default();
        report.runner("tests", || {
            Ok(Cases {
                passed: 3,
                failed: 0,
            })
        });
        assert_eq!(report.finish(), ("3 passed, 0 failed".to_owned(), true));
        report.check("formatting", || bail!("not formatted"));
        assert_eq!(report.finish(), ("3 passed, 1 failed".to_owned(), false));
        assert_eq!(report.failures, ["formatting"]);
    }

    #[test]
    fn a_run_without_tests_does_not_pass() {
        let report = Report::default();
        assert_eq!(report.finish(), ("0 passed, 0 failed".to_owned(), false));
    }
}
