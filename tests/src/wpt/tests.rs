/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Finds the tests in a tree laid out like web-platform-tests.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::server::ScriptMeta;

/// Folders that hold no tests.
const SUPPORT: [&str; 5] = ["common", "interfaces", "metadata", "resources", "support"];
/// Time for a test, as testharness.js has it.
const NORMAL: Duration = Duration::from_secs(10);
/// Time for a test that asks for `timeout=long`.
const LONG: Duration = Duration::from_secs(60);

/// How a test is loaded; upstream's rule is that the file's name says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The name has no `.https.`.
    Http,
    /// The name has `.https.`.
    Https,
}

/// One page to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Path of the page on the server, with its variant's query.
    pub url: String,
    /// The scheme to load it with.
    pub scheme: Scheme,
    /// Path of the source file below the tree, with slashes.
    pub source: String,
    /// How long it may take.
    pub timeout: Duration,
}

/// Finds every test below `tree`, sorted by URL.
///
/// # Errors
/// If a file cannot be read.
pub fn find_tests(tree: &Path) -> io::Result<Vec<Test>> {
    let mut tests = Vec::new();
    visit(tree, "", &mut tests)?;
    tests.sort_by(|left, right| left.url.cmp(&right.url));
    Ok(tests)
}

fn visit(directory: &Path, prefix: &str, tests: &mut Vec<Test>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}/{name}");
        if entry.file_type()?.is_dir() {
            if !SUPPORT.contains(&name.as_str()) && !name.starts_with('.') {
                visit(&entry.path(), &path, tests)?;
            }
            continue;
        }
        let is_page = name.ends_with(".html") || name.ends_with(".xhtml");
        let is_script = name.ends_with(".window.js") || name.ends_with(".any.js");
        if !is_page && !is_script {
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        if is_script {
            script_tests(&path, &text, tests);
        } else if text.contains("/resources/testharness.js") {
            let long = meta_content(&text, "timeout")
                .iter()
                .any(|value| value == "long");
            add(tests, &path, &path, long, &meta_content(&text, "variant"));
        }
    }
    Ok(())
}

fn script_tests(path: &str, text: &str, tests: &mut Vec<Test>) {
    let meta = ScriptMeta::parse(text);
    let stem = path.trim_end_matches(".js");
    if stem.ends_with(".window") {
        add(
            tests,
            path,
            &format!("{stem}.html"),
            meta.long,
            &meta.variants,
        );
        return;
    }
    let runs_in = |names: &[&str]| {
        meta.globals.is_empty()
            || meta
                .globals
                .iter()
                .any(|global| names.contains(&global.as_str()))
    };
    if runs_in(&["window"]) {
        add(
            tests,
            path,
            &format!("{stem}.html"),
            meta.long,
            &meta.variants,
        );
    }
    if runs_in(&["worker", "dedicatedworker"]) {
        add(
            tests,
            path,
            &format!("{stem}.worker.html"),
            meta.long,
            &meta.variants,
        );
    }
}

fn add(tests: &mut Vec<Test>, source: &str, page: &str, long: bool, variants: &[String]) {
    let scheme = if source.contains(".https.") {
        Scheme::Https
    } else {
        Scheme::Http
    };
    let timeout = if long { LONG } else { NORMAL };
    let once = [String::new()];
    for variant in if variants.is_empty() {
        &once[..]
    } else {
        variants
    } {
        tests.push(Test {
            url: format!("{page}{variant}"),
            scheme,
            source: source.trim_start_matches('/').to_owned(),
            timeout,
        });
    }
}

/// The `content` of every `<meta name=...>`, in the ways in which tests write it.
fn meta_content(html: &str, wanted: &str) -> Vec<String> {
    html.split("<meta ")
        .skip(1)
        .filter_map(|rest| {
            let attributes = rest.split('>').next()?;
            (attribute(attributes, "name")? == wanted).then(|| attribute(attributes, "content"))?
        })
        .collect()
}

fn attribute(attributes: &str, name: &str) -> Option<String> {
    let start = attributes.find(&format!("{name}="))? + name.len() + 1;
    let value = &attributes[start..];
    let quote = value
        .chars()
        .next()
        .filter(|first| matches!(first, '"' | '\''));
    let value = match quote {
        Some(quote) => value[1..].split(quote).next()?,
        None => value.split_whitespace().next()?,
    };
    Some(value.to_owned())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn pages_and_scripts_are_found_with_their_variants() {
        let tree = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "a/page.https.html",
                "<script src=/resources/testharness.js></script>",
            ),
            (
                "a/long.html",
                "<meta name=\"timeout\" content=\"long\"><meta name=variant content=?1>\
                 <meta content='?2' name='variant'><script src=\"/resources/testharness.js\">",
            ),
            ("a/helper.html", "<p>no harness"),
            ("a/support/x.html", "/resources/testharness.js"),
            ("resources/y.html", "/resources/testharness.js"),
            ("b.https.window.js", "// META: timeout=long\n"),
            ("c.any.js", "// META: global=window,worker\n"),
            ("d.any.js", "// META: global=worker\n"),
            ("e.js", ""),
        ] {
            let file = tree.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let tests = find_tests(tree.path()).unwrap();
        let seen: Vec<_> = tests
            .iter()
            .map(|test| {
                let scheme = if test.scheme == Scheme::Https {
                    "https"
                } else {
                    "http"
                };
                format!("{scheme} {} {}", test.url, test.timeout.as_secs())
            })
            .collect();
        assert_eq!(
            seen,
            [
                "http /a/long.html?1 60",
                "http /a/long.html?2 60",
                "https /a/page.https.html 10",
                "https /b.https.window.html 60",
                "http /c.any.html 10",
                "http /c.any.worker.html 10",
                "http /d.any.worker.html 10",
            ]
        );
        assert_eq!(tests[0].source, "a/long.html");
    }
}
