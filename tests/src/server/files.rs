/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Files of a tree laid out like web-platform-tests: media types, `.headers`, `.sub.`, and the
//! pages made around `.window.js` and `.any.js`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::http::{Response, percent_decode};
use super::template::{Context, substitute};

/// Where files come from: single ones first, then the roots in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    pub(super) mounts: HashMap<String, PathBuf>,
    pub(super) roots: Vec<(String, PathBuf)>,
}

impl Files {
    /// Answers a request from the files, or with 404.
    pub(super) fn serve(&self, context: &Context<'_>) -> Response {
        let request = context.request;
        if request.method != "GET" && request.method != "HEAD" {
            return Response::text(405, "files are only read");
        }
        let Ok(path) = String::from_utf8(percent_decode(&request.path)) else {
            return Response::text(404, "not found");
        };
        let answer = match self.find(&path) {
            Some(file) => self.file(&file, context),
            None => self.wrapper(&path),
        };
        answer.unwrap_or_else(|status_and_reason| {
            let (status, reason) = status_and_reason;
            Response::text(status, reason)
        })
    }

    /// The file behind a decoded path, if it lies below one of the roots.
    fn find(&self, path: &str) -> Option<PathBuf> {
        if let Some(file) = self.mounts.get(path) {
            return Some(file.clone());
        }
        self.roots.iter().find_map(|(prefix, root)| {
            let relative = path.strip_prefix(prefix.as_str())?;
            let plain = |segment: &str| {
                !matches!(segment, "" | "." | "..") && !segment.contains(['\\', '\0'])
            };
            if !relative.split('/').all(plain) {
                return None;
            }
            // Links may not lead out of the tree either.
            let root = root.canonicalize().ok()?;
            let file = root.join(relative).canonicalize().ok()?;
            (file.starts_with(&root) && file.is_file()).then_some(file)
        })
    }

    fn file(&self, file: &Path, context: &Context<'_>) -> Result<Response, (u16, String)> {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let failed = |error: String| (500, format!("{name}: {error}"));
        let mut body = fs::read(file).map_err(|error| failed(error.to_string()))?;
        let media_type = media_type(&name);
        if name.contains(".sub.") {
            let text = String::from_utf8(body).map_err(|error| failed(error.to_string()))?;
            let escape = media_type.contains("html") || media_type.contains("svg");
            body = substitute(&text, context, escape)
                .map_err(failed)?
                .into_bytes();
        }
        let mut response = Response::new(200, media_type, body);
        response.set_header("Cache-Control", "no-store");
        for (headers, is_template) in [
            (file.with_file_name("__dir__.headers"), false),
            (file.with_file_name(format!("{name}.headers")), false),
            (file.with_file_name(format!("{name}.sub.headers")), true),
        ] {
            let Ok(mut text) = fs::read_to_string(&headers) else {
                continue;
            };
            if is_template {
                text = substitute(&text, context, false).map_err(failed)?;
            }
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                let (name, value) = line
                    .split_once(':')
                    .ok_or_else(|| failed(format!("bad header {line:?}")))?;
                response.set_header(name.trim(), value.trim());
            }
        }
        Ok(response)
    }

    /// The page around a script test: `X.window.html`, `X.any.html`, `X.any.worker.html`.
    fn wrapper(&self, path: &str) -> Result<Response, (u16, String)> {
        let not_found = || (404, "not found".to_owned());
        let (script, kind) = [
            (".window.html", ".window.js", Wrapper::Window),
            (".any.html", ".any.js", Wrapper::Window),
            (".any.worker.html", ".any.js", Wrapper::WorkerPage),
            (".any.worker.js", ".any.js", Wrapper::Worker),
        ]
        .into_iter()
        .find_map(|(ending, source, kind)| {
            path.strip_suffix(ending)
                .map(|stem| (format!("{stem}{source}"), kind))
        })
        .ok_or_else(not_found)?;
        let file = self.find(&script).ok_or_else(not_found)?;
        let text = fs::read_to_string(&file).map_err(|error| (500, error.to_string()))?;
        let meta = ScriptMeta::parse(&text);
        Ok(match kind {
            Wrapper::Window => Response::html(meta.window_page(&script)),
            Wrapper::WorkerPage => {
                let worker = format!("{}.worker.js", script.trim_end_matches(".js"));
                Response::html(meta.worker_page(&worker))
            }
            Wrapper::Worker => Response::new(
                200,
                "text/javascript; charset=utf-8",
                meta.worker_script(&script),
            ),
        })
    }
}

enum Wrapper {
    Window,
    WorkerPage,
    Worker,
}

/// The `// META: key=value` lines of a script test.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ScriptMeta {
    /// Globals that an `.any.js` runs in; empty means the default.
    pub(crate) globals: Vec<String>,
    /// `timeout=long`.
    pub(crate) long: bool,
    /// Query strings to run the test with; empty means once, without.
    pub(crate) variants: Vec<String>,
    scripts: Vec<String>,
    title: Option<String>,
}

impl ScriptMeta {
    /// Reads the lines at the head of the script; other comments may stand between them.
    pub(crate) fn parse(script: &str) -> ScriptMeta {
        let mut meta = ScriptMeta::default();
        for line in script.lines().take_while(|line| line.starts_with("//")) {
            let Some(entry) = line
                .trim_start_matches('/')
                .trim_start()
                .strip_prefix("META:")
            else {
                continue;
            };
            let Some((key, value)) = entry.trim().split_once('=') else {
                continue;
            };
            match key {
                "script" => meta.scripts.push(value.to_owned()),
                "title" => meta.title = Some(value.to_owned()),
                "timeout" => meta.long = value == "long",
                "variant" => meta.variants.push(value.to_owned()),
                "global" => meta.globals = value.split(',').map(str::to_owned).collect(),
                _ => {}
            }
        }
        meta
    }

    fn head(&self) -> String {
        let mut head = String::from("<!DOCTYPE html>\n<meta charset=utf-8>\n");
        if let Some(title) = &self.title {
            head.push_str(&format!("<title>{title}</title>\n"));
        }
        if self.long {
            head.push_str("<meta name=timeout content=long>\n");
        }
        head.push_str("<script src=/resources/testharness.js></script>\n");
        head.push_str("<script src=/resources/testharnessreport.js></script>\n");
        head
    }

    fn window_page(&self, script: &str) -> String {
        let mut page = self.head();
        page.push_str(
            "<script>self.GLOBAL = { isWindow: () => true, isWorker: () => false, \
             isShadowRealm: () => false };</script>\n",
        );
        for helper in &self.scripts {
            page.push_str(&format!("<script src=\"{helper}\"></script>\n"));
        }
        page.push_str(&format!(
            "<div id=log></div>\n<script src=\"{script}\"></script>\n"
        ));
        page
    }

    fn worker_page(&self, worker: &str) -> String {
        let start = format!(
            "<div id=log></div>\n<script>\nfetch_tests_from_worker(new Worker(\"{worker}\" + \
             location.search));\n</script>\n"
        );
        self.head() + &start
    }

    fn worker_script(&self, script: &str) -> String {
        let mut worker = String::from(
            "self.GLOBAL = { isWindow: () => false, isWorker: () => true, \
             isShadowRealm: () => false };\nimportScripts(\"/resources/testharness.js\");\n",
        );
        for helper in self.scripts.iter().map(String::as_str).chain([script]) {
            worker.push_str(&format!("importScripts(\"{helper}\");\n"));
        }
        worker.push_str("done();\n");
        worker
    }
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" | "htm" => "text/html; charset=utf-8",
        "xhtml" | "xht" => "application/xhtml+xml",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "css" => "text/css",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "wasm" => "application/wasm",
        "txt" | "idl" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Request;

    fn get(files: &Files, path: &str) -> Response {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let request = Request {
            scheme: "https",
            port: 1,
            method: "GET".into(),
            host: "web-platform.test".into(),
            path: path.into(),
            query: query.into(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        files.serve(&Context {
            host: "web-platform.test",
            alternate: "not-web-platform.test",
            https: &[1],
            http: &[2],
            request: &request,
        })
    }

    fn tree(entries: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in entries {
            let file = directory.path().join("tree").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        let roots = vec![("/".to_owned(), directory.path().join("tree"))];
        (
            directory,
            Files {
                roots,
                ..Files::default()
            },
        )
    }

    fn text(response: &Response) -> &str {
        std::str::from_utf8(&response.body).unwrap()
    }

    #[test]
    fn headers_files_and_templates_apply() {
        let (_directory, files) = tree(&[
            ("d/__dir__.headers", "X-Dir: yes\nX-Both: dir"),
            ("d/a.sub.html", "<p>{{GET[x]}} {{host}}"),
            ("d/a.sub.html.sub.headers", "X-Both: {{host}}"),
            ("d/plain.html", "{{host}}"),
        ]);
        let response = get(&files, "/d/a.sub.html?x=<");
        assert_eq!(text(&response), "<p>&lt; web-platform.test");
        let value = |name: &str| {
            let found = response.headers.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(value("X-Dir"), Some("yes"));
        assert_eq!(value("X-Both"), Some("web-platform.test"));
        assert_eq!(text(&get(&files, "/d/plain.html")), "{{host}}");
    }

    #[test]
    fn broken_templates_are_server_errors() {
        let (_directory, files) = tree(&[("a.sub.js", "{{nothing}}")]);
        assert_eq!(get(&files, "/a.sub.js").status, 500);
    }

    #[test]
    fn nothing_outside_the_tree_is_served() {
        let (directory, files) = tree(&[("inside.txt", "in")]);
        fs::write(directory.path().join("outside.txt"), "out").unwrap();
        std::os::unix::fs::symlink("../outside.txt", directory.path().join("tree/link.txt"))
            .unwrap();
        assert_eq!(text(&get(&files, "/inside.txt")), "in");
        for path in [
            "/../outside.txt",
            "/%2e%2e/outside.txt",
            "/..%2foutside.txt",
            "/./inside.txt",
            "//inside.txt",
            "/inside.txt%00",
            "/link.txt",
            "/",
        ] {
            assert_eq!(get(&files, path).status, 404, "{path}");
        }
    }

    #[test]
    fn script_tests_get_their_pages() {
        let (_directory, files) = tree(&[
            (
                "t.https.window.js",
                "// META: title=T\n// licence\n// META: script=/h.js\n// META: timeout=long\n\ntest();\n// META: script=/no.js",
            ),
            (
                "t.any.js",
                "// META: global=window,worker\n// META: script=/h.js\n",
            ),
        ]);
        let page = get(&files, "/t.https.window.html");
        assert_eq!(page.status, 200);
        for part in [
            "<title>T</title>",
            "content=long",
            "src=\"/h.js\"",
            "src=\"/t.https.window.js\"",
            "/resources/testharness.js",
        ] {
            assert!(text(&page).contains(part), "{part}");
        }
        assert!(!text(&page).contains("/no.js"));
        assert!(text(&get(&files, "/t.any.html")).contains("src=\"/t.any.js\""));
        assert!(text(&get(&files, "/t.any.worker.html")).contains("Worker(\"/t.any.worker.js\""));
        let worker = get(&files, "/t.any.worker.js");
        assert!(text(&worker).contains("importScripts(\"/h.js\");\nimportScripts(\"/t.any.js\")"));
        assert_eq!(get(&files, "/missing.any.html").status, 404);
    }
}
