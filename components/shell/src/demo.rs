/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The built-in demo page.
//!
//! It needs a secure context with an identity of its own. A scheme of our own would give it neither: the engine gives
//! such URLs opaque origins, and `ProtocolHandler::is_secure` exempts them from mixed-content checks only. So it has an
//! HTTPS origin on a name below `.invalid`, which is never resolved (RFC 6761): the main process answers every request
//! to it before it reaches the network, and only when the program was started for the demo.

use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use servo::{WebResourceLoad, WebResourceResponse};
use url::Url;

/// The demo's origin, serialised.
pub const ORIGIN: &str = "https://demo.servo-tokens.invalid";

/// What the demo may do with cards that have no access rules of their own: ask each application that it knows one thing. No
/// prompt opens PIV and OpenPGP applications, and the name of an OpenPGP application has the card's serial number in it.
pub const ACCESS_RULES: &str = r#"
[[rule]]
origin = "https://demo.servo-tokens.invalid"
aid = "*"
apdu = [
    { header = "00100000", mask = "FFFFFFFF" }, # ECHO
    { header = "00CB3FFF", mask = "FFFFFFFF" }, # GET DATA: PIV's discovery object
    { header = "00CA006E", mask = "FFFFFFFF" }, # GET DATA: OpenPGP's application related data
]
"#;

const PAGE: &str = include_str!("demo.html");

/// The page loads nothing, and nothing can be injected that would.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'";

/// The page's URL.
pub fn url() -> Url {
    Url::parse(ORIGIN).expect("the constant is a URL")
}

/// Answers a request to the demo's origin. Other requests go their way.
pub fn answer(load: WebResourceLoad) {
    let url = load.request().url.clone();
    if url.origin() != self::url().origin() {
        return;
    }
    // Other pages can neither frame nor read it.
    let request = load.request();
    let (status, body) = match (&request.method, url.path()) {
        (&Method::GET, "/") if request.is_for_main_frame => (StatusCode::OK, PAGE),
        _ => (StatusCode::NOT_FOUND, ""),
    };
    let mut headers = HeaderMap::new();
    if status == StatusCode::OK {
        for (name, value) in [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, POLICY),
            (CACHE_CONTROL, "no-store"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    let reason = status
        .canonical_reason()
        .unwrap_or_default()
        .as_bytes()
        .to_vec();
    let response = WebResourceResponse::new(url)
        .headers(headers)
        .status_code(status)
        .status_message(reason);
    let mut load = load.intercept(response);
    load.send_body_data(body.as_bytes().to_vec());
    load.finish();
}
