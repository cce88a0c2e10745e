/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `{{...}}` in `.sub.` files, as wptserve understands it.

use super::http::Request;

/// What templates may ask for.
pub(super) struct Context<'a> {
    /// The main host name; every `hosts[]`/`domains[]` entry hangs below this or `alternate`.
    pub(super) host: &'a str,
    pub(super) alternate: &'a str,
    pub(super) https: &'a [u16],
    pub(super) http: &'a [u16],
    pub(super) request: &'a Request,
}

/// Replaces every `{{expression}}`; an unknown one is an error that names it.
/// `escape_html` is for pages: what the request brings in is then escaped.
pub(super) fn substitute(
    text: &str,
    context: &Context<'_>,
    escape_html: bool,
) -> Result<String, String> {
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        output.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner.find("}}").ok_or("unclosed {{")?;
        let value = evaluate(inner[..end].trim(), context)?;
        output.push_str(&if escape_html { escape(&value) } else { value });
        rest = &inner[end + 2..];
    }
    output.push_str(rest);
    Ok(output)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#x27;")
}

fn evaluate(expression: &str, context: &Context<'_>) -> Result<String, String> {
    let unknown = || format!("unknown template expression {expression:?}");
    if let Some(arguments) = expression.strip_prefix("header_or_default(") {
        let arguments = arguments.strip_suffix(')').ok_or_else(unknown)?;
        let (name, default) = arguments.split_once(',').ok_or_else(unknown)?;
        return Ok(context
            .request
            .header(name.trim())
            .unwrap_or(default.trim())
            .to_owned());
    }
    let (name, indices) = split_indices(expression).ok_or_else(unknown)?;
    let request = context.request;
    let below = |domain: &str, subdomain: &str| {
        if subdomain.is_empty() {
            domain.to_owned()
        } else {
            format!("{subdomain}.{domain}")
        }
    };
    let value = match (name, indices.as_slice()) {
        ("host", []) => context.host.to_owned(),
        ("domains", [subdomain]) => below(context.host, subdomain),
        ("hosts", ["", subdomain]) => below(context.host, subdomain),
        ("hosts", ["alt", subdomain]) => below(context.alternate, subdomain),
        ("ports", [scheme, index]) => {
            let ports = match *scheme {
                "https" => context.https,
                "http" => context.http,
                _ => return Err(unknown()),
            };
            let index: usize = index.parse().map_err(|_| unknown())?;
            ports.get(index).ok_or_else(unknown)?.to_string()
        }
        ("location", [part]) => {
            let host = format!("{}:{}", request.host, request.port);
            match *part {
                "scheme" => request.scheme.to_owned(),
                "host" => host,
                "hostname" => request.host.clone(),
                "port" => request.port.to_string(),
                "server" => format!("{}://{host}", request.scheme),
                "path" | "pathname" => request.path.clone(),
                "query" if request.query.is_empty() => String::new(),
                "query" => format!("?{}", request.query),
                _ => return Err(unknown()),
            }
        }
        ("GET", [name]) => request.parameter(name).unwrap_or_default(),
        ("headers", [name]) => request.header(name).unwrap_or_default().to_owned(),
        _ => return Err(unknown()),
    };
    Ok(value)
}

/// Splits `name[a][b]` into the name and its indices.
fn split_indices(expression: &str) -> Option<(&str, Vec<&str>)> {
    let Some(start) = expression.find('[') else {
        return Some((expression, Vec::new()));
    };
    let indices = expression[start..].strip_prefix('[')?.strip_suffix(']')?;
    Some((&expression[..start], indices.split("][").collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, escape_html: bool) -> Result<String, String> {
        let request = Request {
            scheme: "https",
            port: 8443,
            method: "GET".into(),
            host: "www.web-platform.test".into(),
            path: "/a/b.sub.html".into(),
            query: "id=%3Cb%3E&n=1".into(),
            headers: vec![("user-agent".into(), "tester".into())],
            body: Vec::new(),
        };
        let context = Context {
            host: "web-platform.test",
            alternate: "not-web-platform.test",
            https: &[8443, 9443],
            http: &[8000],
            request: &request,
        };
        substitute(text, &context, escape_html)
    }

    #[test]
    fn expressions_of_wptserve() {
        for (template, expected) in [
            ("{{host}}", "web-platform.test"),
            (
                "{{domains[www]}}|{{domains[]}}",
                "www.web-platform.test|web-platform.test",
            ),
            ("{{hosts[alt][]}}", "not-web-platform.test"),
            ("{{hosts[alt][www1]}}", "www1.not-web-platform.test"),
            ("{{hosts[][www]}}", "www.web-platform.test"),
            ("{{ports[https][1]}}:{{ports[http][0]}}", "9443:8000"),
            ("{{location[server]}}", "https://www.web-platform.test:8443"),
            (
                "{{location[path]}}{{location[query]}}",
                "/a/b.sub.html?id=%3Cb%3E&n=1",
            ),
            ("{{GET[id]}}{{GET[none]}}", "<b>"),
            ("{{headers[User-Agent]}}", "tester"),
            ("{{header_or_default(X-None, fallback)}}", "fallback"),
            ("no template { } }}", "no template { } }}"),
        ] {
            assert_eq!(run(template, false).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn pages_get_escaped_values() {
        assert_eq!(run("{{GET[id]}}", true).as_deref(), Ok("&lt;b&gt;"));
    }

    #[test]
    fn unknown_expressions_are_errors() {
        for template in [
            "{{hots}}",
            "{{ports[https][2]}}",
            "{{ports[ws][0]}}",
            "{{host",
            "{{GET[x}}",
        ] {
            assert!(run(template, false).is_err(), "{template}");
        }
    }
}
