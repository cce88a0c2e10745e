/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Strings that somebody else chose, made fit to be shown where the browser speaks: prompts, tabs, the address bar.

use std::fmt::Write as _;

/// Most characters of a page's title.
pub const MAX_TITLE_LENGTH: usize = 80;

/// Most characters of a host in a prompt or in the address bar. What is more is left out in the middle.
pub const MAX_HOST_LENGTH: usize = 64;

/// Makes a string harmless: one line of at most `limit` characters, the last of them an ellipsis when something is
/// missing, with nothing in it that cannot be seen or that changes the order of what is around it. Such characters are
/// named, as in `<U+202E>`: two names that differ in them must not look the same.
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    let mut length = 0;
    // Every character that is looked at adds at least one, so that nobody pays for what is not shown.
    for word in text.split_whitespace() {
        if !shown.is_empty() {
            shown.push(' ');
            length += 1;
        }
        for character in word.chars() {
            if is_hidden(character) {
                // Writing to a string cannot fail.
                let _ = write!(shown, "<U+{:04X}>", u32::from(character));
                length += 8;
            } else {
                shown.push(character);
                length += 1;
            }
            if length > limit {
                return ellipsis(&shown, limit);
            }
        }
    }
    shown
}

fn ellipsis(text: &str, limit: usize) -> String {
    let end = text
        .char_indices()
        .nth(limit.saturating_sub(1))
        .map_or(text.len(), |(end, _)| end);
    format!("{}…", &text[..end])
}

/// Control and format characters, what is not shown by definition (Default_Ignorable_Code_Point), line separators, and
/// characters for private use.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(u32::from(character),
            0xAD | 0x34F | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x8E2 | 0x115F..=0x1160 | 0x17B4..=0x17B5
            | 0x180B..=0x180F | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F | 0x2800 | 0x3164
            | 0xE000..=0xF8FF | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFC | 0x110BD | 0x110CD
            | 0x13430..=0x1345F | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0x10FFFF)
}

/// An origin or URL in parts, for whoever shows it: the site is what its owner had to register, and is emphasised.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostText {
    /// `https://`
    pub scheme: String,
    /// The labels before the site, with the dot; where they are too long, with an ellipsis in place of the middle.
    pub before: String,
    /// The registrable domain, whole; or the host, where it has none.
    pub site: String,
    /// `:8443`, or nothing.
    pub port: String,
}

impl HostText {
    /// Takes an origin in its ASCII serialisation. `is_site` knows registrable domains. Names in other scripts stay in
    /// the form in which they are compared (`xn--...`), so that none can look like another one.
    pub fn of_origin(origin: &str, limit: usize, is_site: fn(&str) -> bool) -> Self {
        let (scheme, rest) = match origin.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), origin),
        };
        // The colons of an IPv6 address are inside brackets.
        let port_at = rest
            .rfind(':')
            .filter(|colon| !rest[*colon..].contains(']'))
            .unwrap_or(rest.len());
        let (host, port) = rest.split_at(port_at);
        let site_at = site_start(host, is_site);
        let (before, site) = host.split_at(site_at);
        Self {
            scheme: printable(&scheme, usize::MAX),
            before: printable(
                &shorten(before, limit.saturating_sub(site.len())),
                usize::MAX,
            ),
            site: printable(site, usize::MAX),
            port: printable(port, usize::MAX),
        }
    }

    /// All of it in one line.
    pub fn to_line(&self) -> String {
        let Self {
            scheme,
            before,
            site,
            port,
        } = self;
        format!("{scheme}{before}{site}{port}")
    }
}

/// Where the registrable domain starts in `host`; 0 where there is none.
fn site_start(host: &str, is_site: fn(&str) -> bool) -> usize {
    // The numbers of an address are no labels.
    if host.parse::<std::net::Ipv4Addr>().is_ok() {
        return 0;
    }
    std::iter::once(0)
        .chain(host.match_indices('.').map(|(dot, _)| dot + 1))
        .find(|start| is_site(&host[*start..]))
        .unwrap_or(0)
}

/// Leaves out the middle of the labels before a site. Hosts are ASCII.
fn shorten(labels: &str, limit: usize) -> String {
    // So much is shown however long the site is.
    let limit = limit.max(16);
    let length = labels.chars().count();
    if length <= limit {
        return labels.to_owned();
    }
    let first = (limit - 1) / 2;
    let last = limit - 1 - first;
    labels
        .chars()
        .take(first)
        .chain(std::iter::once('…'))
        .chain(labels.chars().skip(length - last))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_site(host: &str) -> bool {
        host == "bank.example" || host == "shop.co.example"
    }

    #[test]
    fn ordinary_names_stay_as_they_are() {
        for name in ["ACS ACR39U 00 00", "Łódź – Ω", "Яндекс", "קורא", "日本"] {
            assert_eq!(printable(name, 128), name);
        }
        assert_eq!(printable("  a \t\r\n b\u{a0}c ", 128), "a b c");
        assert_eq!(printable("", 128), "");
        assert_eq!(printable(" \n ", 128), "");
    }

    #[test]
    fn what_is_hidden_is_named() {
        assert_eq!(printable("a\u{202E}b", 128), "a<U+202E>b");
        assert_eq!(printable("\u{200B}", 128), "<U+200B>");
        assert_eq!(printable("a\u{7}b\u{9b}", 128), "a<U+0007>b<U+009B>");
        assert_ne!(printable("reader\u{2060}", 128), printable("reader", 128));
        for hidden in "\u{61c}\u{200e}\u{200f}\u{202a}\u{202d}\u{2066}\u{2069}\u{feff}\u{ad}\u{e0041}\u{fe0f}\u{3164}\
                       \u{0}\u{1b}\u{e000}"
            .chars()
        {
            assert!(printable(&hidden.to_string(), 128).starts_with("<U+"), "{hidden:?}");
        }
    }

    #[test]
    fn length_is_limited() {
        for long in [
            "x".repeat(10_000),
            "\u{202E}".repeat(10_000),
            "x ".repeat(10_000),
            " ".repeat(10_000) + "x",
        ] {
            let shown = printable(&long, 128);
            assert!(shown.chars().count() <= 128, "{shown}");
        }
        assert_eq!(printable("abcd", 4), "abcd");
        assert_eq!(printable("abcde", 4), "abc…");
        assert_eq!(printable("ä".repeat(5).as_str(), 4), "äää…");
        assert_eq!(printable("abc", 0), "…");
    }

    #[test]
    fn the_site_is_told_apart() {
        let parts = HostText::of_origin("https://www.my.bank.example:8443", 64, is_site);
        assert_eq!(parts.scheme, "https://");
        assert_eq!(parts.before, "www.my.");
        assert_eq!(parts.site, "bank.example");
        assert_eq!(parts.port, ":8443");
        assert_eq!(parts.to_line(), "https://www.my.bank.example:8443");
        assert_eq!(
            HostText::of_origin("https://bank.example", 64, is_site).site,
            "bank.example"
        );
        assert_eq!(
            HostText::of_origin("http://localhost:80", 64, is_site).site,
            "localhost"
        );
        let any = |_: &str| true;
        assert_eq!(
            HostText::of_origin("http://127.0.0.1:80", 64, any).site,
            "127.0.0.1"
        );
        let address = HostText::of_origin("https://[2001:db8::1]", 64, is_site);
        assert_eq!(
            (address.site.as_str(), address.port.as_str()),
            ("[2001:db8::1]", "")
        );
        assert_eq!(
            HostText::of_origin("https://[::1]:80", 64, is_site).port,
            ":80"
        );
    }

    #[test]
    fn long_hosts_keep_their_site() {
        let host = format!(
            "login.bank.example.{}evil.shop.co.example",
            "a.".repeat(100)
        );
        let parts = HostText::of_origin(&format!("https://{host}"), 64, is_site);
        assert_eq!(parts.site, "shop.co.example");
        assert!(parts.before.contains('…'));
        assert_eq!(parts.before.chars().count() + parts.site.len(), 64);
        assert!(parts.before.ends_with("evil."), "{}", parts.before);
    }
}
