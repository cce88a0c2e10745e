/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Reads requests and writes responses: HTTP/1.1 with keep-alive, nothing more.

use std::io::{self, Read, Write};

/// Request line and headers together, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Request body, in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// Header fields in one request.
const MAX_HEADERS: usize = 100;

/// One request, as routes see it.
#[derive(Clone, Debug)]
pub struct Request {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The port that it arrived on.
    pub port: u16,
    /// `GET`, `POST`, ...
    pub method: String,
    /// Host name from the `Host` field, lower case, without the port.
    pub host: String,
    /// Path as sent, still percent-encoded, with its leading slash.
    pub path: String,
    /// Query as sent, without the question mark; empty if there is none.
    pub query: String,
    /// Header fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, at most a mebibyte.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header field of this name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The first query parameter of this name, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_form(key) == name).then(|| decode_form(value))
        })
    }
}

fn decode_form(text: &str) -> String {
    String::from_utf8_lossy(&percent_decode(&text.replace('+', " "))).into_owned()
}

/// Decodes `%XX`; anything malformed stays as it is.
pub fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let value = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// One response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code, 100 to 599.
    pub status: u16,
    /// Header fields; the server adds `Content-Length` and `Connection`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A response with a body of the given type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        Response {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
        .with_header("Content-Type", content_type)
    }

    /// A page: 200, UTF-8.
    pub fn html(body: impl Into<Vec<u8>>) -> Response {
        Response::new(200, "text/html; charset=utf-8", body)
    }

    /// A short message: `text/plain`.
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response::new(status, "text/plain; charset=utf-8", body)
    }

    /// A redirect with the given status (301, 302, 303, 307, 308).
    pub fn redirect(status: u16, location: &str) -> Response {
        Response {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
        .with_header("Location", location)
    }

    /// Sets a header field, in place of those of the same name.
    pub fn with_header(mut self, name: &str, value: &str) -> Response {
        self.set_header(name, value);
        self
    }

    /// Sets a header field, in place of those of the same name.
    pub fn set_header(&mut self, name: &str, value: &str) {
        self.headers
            .retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
    }
}

/// Why no request could be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The peer is gone, or too slow.
    Closed,
    /// Answer this and close.
    Refused(Response),
}

impl From<io::Error> for ReadError {
    fn from(_: io::Error) -> ReadError {
        ReadError::Closed
    }
}

fn refused(status: u16, why: &str) -> ReadError {
    ReadError::Refused(Response::text(status, why))
}

/// Reads one request. `pending` holds bytes that were read past the previous one.
pub(super) fn read_request(
    stream: &mut impl Read,
    pending: &mut Vec<u8>,
    scheme: &'static str,
    port: u16,
) -> Result<Request, ReadError> {
    let mut buffer = [0; 16 * 1024];
    let (mut request, head_length) = loop {
        if let Some(parsed) = parse_head(pending, scheme, port)? {
            break parsed;
        }
        if pending.len() > MAX_HEAD {
            return Err(refused(431, "request head too large"));
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(ReadError::Closed);
        }
        pending.extend_from_slice(&buffer[..count]);
    };
    if request.header("transfer-encoding").is_some() {
        return Err(refused(411, "a request body needs a length"));
    }
    let body_length = match request.header("content-length") {
        None => 0,
        Some(text) => text
            .parse::<usize>()
            .map_err(|_| refused(400, "bad content length"))?,
    };
    if body_length > MAX_BODY {
        return Err(refused(413, "request body too large"));
    }
    while pending.len() < head_length + body_length {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(ReadError::Closed);
        }
        pending.extend_from_slice(&buffer[..count]);
    }
    request.body = pending[head_length..head_length + body_length].to_vec();
    pending.drain(..head_length + body_length);
    Ok(request)
}

fn parse_head(
    bytes: &[u8],
    scheme: &'static str,
    port: u16,
) -> Result<Option<(Request, usize)>, ReadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refused(400, &error.to_string())),
    };
    let headers: Vec<(String, String)> = parsed
        .headers
        .iter()
        .map(|field| {
            let value = String::from_utf8_lossy(field.value).into_owned();
            (field.name.to_ascii_lowercase(), value)
        })
        .collect();
    let target = parsed.path.unwrap_or("/");
    if !target.starts_with('/') {
        return Err(refused(400, "only paths are served"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        scheme,
        port,
        method: parsed.method.unwrap_or_default().to_owned(),
        host: String::new(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
    };
    let host = request.header("host").unwrap_or_default();
    request.host = host
        .rsplit_once(':')
        .map_or(host, |(name, _)| name)
        .to_ascii_lowercase();
    Ok(Some((request, length)))
}

/// Writes a response; `Ok(true)` if the connection may carry another request.
pub(super) fn write_response(
    stream: &mut impl Write,
    request: Option<&Request>,
    response: &Response,
) -> io::Result<bool> {
    let keep_alive = request.is_some_and(|request| {
        !request
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    });
    let mut head = format!(
        "HTTP/1.1 {} {}\r\n",
        response.status,
        reason(response.status)
    );
    for (name, value) in &response.headers {
        // A line break inside a value would start another field.
        head.push_str(&format!("{name}: {}\r\n", value.replace(['\r', '\n'], " ")));
    }
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let length = response.body.len();
    head.push_str(&format!(
        "Content-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    ));
    let mut message = head.into_bytes();
    if request.is_none_or(|request| request.method != "HEAD") {
        message.extend_from_slice(&response.body);
    }
    stream.write_all(&message)?;
    stream.flush()?;
    Ok(keep_alive)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        500 => "Internal Server Error",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Request, ReadError> {
        read_request(&mut &text[..], &mut Vec::new(), "https", 443)
    }

    #[test]
    fn request_is_split_into_its_parts() {
        let request = read(
            b"POST /a%20b?x=1+2&y=%41 HTTP/1.1\r\nHost: WWW.Example:8443\r\nContent-Length: 3\r\n\r\nabc",
        )
        .unwrap();
        assert_eq!(request.host, "www.example");
        assert_eq!(request.path, "/a%20b");
        assert_eq!(request.parameter("x").as_deref(), Some("1 2"));
        assert_eq!(request.parameter("y").as_deref(), Some("A"));
        assert_eq!(request.parameter("z"), None);
        assert_eq!(request.body, b"abc");
    }

    #[test]
    fn pipelined_requests_are_kept_apart() {
        let bytes = b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n";
        let (mut stream, mut pending) = (&bytes[..], Vec::new());
        for path in ["/1", "/2"] {
            let request = read_request(&mut stream, &mut pending, "http", 80).unwrap();
            assert_eq!(request.path, path);
        }
        let end = read_request(&mut stream, &mut pending, "http", 80);
        assert!(matches!(end, Err(ReadError::Closed)));
    }

    #[test]
    fn oversized_and_odd_requests_are_refused() {
        let status = |text: &[u8]| match read(text) {
            Err(ReadError::Refused(response)) => response.status,
            other => panic!("accepted: {other:?}"),
        };
        let mut endless = b"GET / HTTP/1.1\r\nX: ".to_vec();
        endless.resize(MAX_HEAD + 100_000, b'x');
        assert_eq!(status(&endless), 431);
        assert_eq!(
            status(b"PUT / HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n"),
            413
        );
        assert_eq!(status(b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(
            status(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            411
        );
        assert_eq!(status(b"GET http://elsewhere/ HTTP/1.1\r\n\r\n"), 400);
    }

    #[test]
    fn malformed_escapes_stay_as_they_are() {
        assert_eq!(percent_decode("%41%4"), b"A%4");
        assert_eq!(percent_decode("%+1%zz%"), b"%+1%zz%");
    }
}
