/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The command line, with servoshell's flags where both have the same feature, and its checked form.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use clap::Parser;
use dpi::PhysicalSize;
use servo::Preferences;
use url::Url;

use crate::tokens::{self, TokenConfig};
use crate::{demo, prefs};

/// A browser around the Servo engine that can use secure hardware tokens.
///
/// Without URL it opens its built-in demo page. With --headless, and without --webdriver, it loads the page, prints the
/// page's text and ends: with 0, or with 1 when the page could not be loaded or the demo failed.
#[derive(Parser)]
#[command(name = "servo-tokens", version, args_override_self = true)]
pub struct Cli {
    /// Page to open: a URL, a file, or a host name. Without it: the demo page
    url: Option<String>,

    /// Open no window; needs no display server
    #[arg(short = 'z', long)]
    headless: bool,

    /// Serve WebDriver on this port of the loopback interface
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    webdriver: Option<u16>,

    /// Size of the page in pixels
    #[arg(long, value_name = "WxH", default_value = "1024x740", value_parser = parse_size)]
    window_size: PhysicalSize<u32>,

    /// Set a preference of the engine; VALUE is `true` when left out. May be repeated
    #[arg(long = "pref", value_name = "NAME=VALUE")]
    prefs: Vec<String>,

    /// Read preferences from a JSON file. May be repeated; --pref wins
    #[arg(long = "prefs-file", value_name = "FILE")]
    prefs_files: Vec<PathBuf>,

    /// Apply a user style sheet to every page. May be repeated
    #[arg(long = "user-stylesheet", value_name = "FILE")]
    user_stylesheets: Vec<PathBuf>,

    /// User agent string
    #[arg(short = 'u', long, value_name = "STRING")]
    user_agent: Option<String>,

    /// PEM file with the certificate authorities to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    certificate_path: Option<PathBuf>,

    /// Accept every TLS certificate (for tests)
    #[arg(long)]
    ignore_certificate_errors: bool,

    /// File like /etc/hosts, used before the system's name resolution (for tests)
    #[arg(long, value_name = "FILE")]
    host_file: Option<PathBuf>,

    /// End the process when a thread of the engine fails, instead of showing an error page
    #[arg(short = 'f', long)]
    hard_fail: bool,

    /// Folder for everything that is kept. Default: servo-tokens/default in the XDG data home; a temporary folder with
    /// --webdriver
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,

    /// Keep nothing of what is browsed
    #[arg(long)]
    private: bool,

    /// Configuration of readers, modules and access rules (TOML)
    #[arg(long, value_name = "FILE")]
    token_config: Option<PathBuf>,

    /// Run page content in the main process (for development: no isolation)
    #[arg(long)]
    single_process: bool,

    /// Show a prompt with sample data in the first tab, and print its answer. May be repeated
    #[cfg(feature = "samples")]
    #[arg(long = "sample-prompt", value_name = "NAME")]
    sample_prompts: Vec<String>,

    /// Show sample data on the page of tokens, or "empty"
    #[cfg(feature = "samples")]
    #[arg(long = "sample-tokens", value_name = "NAME")]
    sample_tokens: Option<String>,
}

/// What the command line asked for, checked: files can be read, preferences exist and have the right type.
pub struct Settings {
    /// The first page.
    pub url: Url,
    /// Whether the first page is the built-in demo, which only then can be reached at all.
    pub demo: bool,
    /// Open no window.
    pub headless: bool,
    /// Loopback port of the WebDriver server.
    pub webdriver: Option<u16>,
    /// Initial size of the page, in device pixels.
    pub window_size: PhysicalSize<u32>,
    /// The engine's preferences.
    pub preferences: Preferences,
    /// Source and location of every user style sheet.
    pub user_stylesheets: Vec<(String, Url)>,
    /// PEM file with the certificate authorities to trust.
    pub certificate_path: Option<String>,
    /// Accept every TLS certificate.
    pub ignore_certificate_errors: bool,
    /// File like `/etc/hosts`.
    pub host_file: Option<PathBuf>,
    /// End the process when a thread of the engine fails.
    pub hard_fail: bool,
    /// The user's choice of profile folder.
    pub profile_dir: Option<PathBuf>,
    /// Keep nothing of what is browsed.
    pub private: bool,
    /// Configuration of the token broker.
    pub token_config: TokenConfig,
    /// Run page content in the main process.
    pub single_process: bool,
    /// Sample prompts to show.
    #[cfg(feature = "samples")]
    pub sample_prompts: Vec<String>,
    /// Sample data for the page of tokens.
    #[cfg(feature = "samples")]
    pub sample_tokens: Option<String>,
}

impl Settings {
    /// Checks `cli`. The error is a sentence for the user.
    pub fn from_cli(cli: Cli) -> Result<Self, String> {
        let demo = cli.url.is_none();
        let url = match &cli.url {
            Some(input) => parse_url(input)?,
            None => demo::url(),
        };
        let certificate_path = match cli.certificate_path {
            Some(path) => {
                check_readable("--certificate-path", &path)?;
                let path = path.into_os_string().into_string();
                Some(path.map_err(|path| {
                    format!("--certificate-path: {} is not UTF-8", path.display())
                })?)
            }
            None => None,
        };
        if let Some(path) = &cli.host_file {
            check_readable("--host-file", path)?;
        }
        let token_config = match &cli.token_config {
            Some(path) => TokenConfig::read(path)?,
            None => TokenConfig::default(),
        };
        if let Some(port) = cli.webdriver {
            // The WebDriver server binds the port in a thread of its own, where an error would be lost.
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .map_err(|error| format!("--webdriver: cannot listen on port {port}: {error}"))?;
        }

        let mut preferences = tokens::preferences();
        for path in &cli.prefs_files {
            prefs::apply_file(&mut preferences, path)?;
        }
        for argument in &cli.prefs {
            prefs::apply_argument(&mut preferences, argument)?;
        }
        if let Some(user_agent) = cli.user_agent {
            preferences.user_agent = user_agent;
        }
        let user_stylesheets = cli
            .user_stylesheets
            .iter()
            .map(|path| read_stylesheet(path))
            .collect::<Result<_, _>>()?;

        Ok(Self {
            url,
            demo,
            headless: cli.headless,
            webdriver: cli.webdriver,
            window_size: cli.window_size,
            preferences,
            user_stylesheets,
            certificate_path,
            ignore_certificate_errors: cli.ignore_certificate_errors,
            host_file: cli.host_file,
            hard_fail: cli.hard_fail,
            profile_dir: cli.profile_dir,
            private: cli.private,
            token_config,
            single_process: cli.single_process,
            #[cfg(feature = "samples")]
            sample_prompts: cli.sample_prompts,
            #[cfg(feature = "samples")]
            sample_tokens: cli.sample_tokens,
        })
    }
}

fn check_readable(flag: &str, path: &Path) -> Result<(), String> {
    File::open(path)
        .map(drop)
        .map_err(|error| format!("{flag}: cannot read {}: {error}", path.display()))
}

fn read_stylesheet(path: &Path) -> Result<(String, Url), String> {
    let problem =
        |error: &dyn std::fmt::Display| format!("--user-stylesheet: {}: {error}", path.display());
    let source = std::fs::read_to_string(path).map_err(|error| problem(&error))?;
    let absolute = path.canonicalize().map_err(|error| problem(&error))?;
    let url = Url::from_file_path(absolute).map_err(|()| problem(&"has no URL"))?;
    Ok((source, url))
}

/// Largest accepted width and height: what common GL implementations can still draw.
pub const MAX_WINDOW_SIDE: u32 = 16384;

fn parse_size(input: &str) -> Result<PhysicalSize<u32>, String> {
    let (width, height) = input
        .split_once('x')
        .ok_or("expected WIDTHxHEIGHT, as in 800x600")?;
    let side = |text: &str| match text.parse() {
        Ok(side @ 1..=MAX_WINDOW_SIDE) => Ok(side),
        _ => Err(format!(
            "width and height are numbers from 1 to {MAX_WINDOW_SIDE}"
        )),
    };
    Ok(PhysicalSize::new(side(width)?, side(height)?))
}

/// Reads a URL, the path of an existing file, or a host name to be reached over HTTPS, in this order.
fn parse_url(input: &str) -> Result<Url, String> {
    if let Some(url) = parse_whole_url(input) {
        return Ok(url);
    }
    if let Ok(path) = Path::new(input).canonicalize()
        && let Ok(url) = Url::from_file_path(path)
    {
        return Ok(url);
    }
    Url::parse(&format!("https://{input}"))
        .map_err(|error| format!("{input:?} is not a URL: {error}"))
}

/// Reads what the user has typed as an address: as [`parse_url`] does, but files only by their whole path.
pub fn parse_address(input: &str) -> Result<Url, String> {
    let input = input.trim();
    match parse_whole_url(input) {
        Some(url) => Ok(url),
        None if input.starts_with('/') => parse_url(input),
        None => Url::parse(&format!("https://{input}"))
            .map_err(|error| format!("This is not an address: {error}.")),
    }
}

fn parse_whole_url(input: &str) -> Option<Url> {
    // `localhost:8000` parses as scheme `localhost`, and `javascript:` is for pages.
    Url::parse(input)
        .ok()
        .filter(|url| !url.cannot_be_a_base() || matches!(url.scheme(), "about" | "data" | "blob"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str]) -> Result<Settings, String> {
        let cli = Cli::try_parse_from([&["shell"], arguments].concat())
            .map_err(|error| error.to_string())?;
        Settings::from_cli(cli)
    }

    fn error(arguments: &[&str]) -> String {
        settings(arguments).err().expect("must be refused")
    }

    #[test]
    fn urls() {
        assert_eq!(
            parse_url("https://a.example/x").unwrap().as_str(),
            "https://a.example/x"
        );
        assert_eq!(parse_url("about:blank").unwrap().as_str(), "about:blank");
        assert_eq!(
            parse_url("data:text/html,x").unwrap().as_str(),
            "data:text/html,x"
        );
        assert_eq!(
            parse_url("a.example/x").unwrap().as_str(),
            "https://a.example/x"
        );
        assert_eq!(
            parse_url("localhost:8000").unwrap().as_str(),
            "https://localhost:8000/"
        );
        assert_eq!(parse_url("/").unwrap().as_str(), "file:///");
        assert!(parse_url("a b").is_err());
    }

    #[test]
    fn addresses() {
        let address = |input| parse_address(input).map(String::from);
        assert_eq!(
            address(" bank.example "),
            Ok("https://bank.example/".into())
        );
        assert_eq!(
            address("http://bank.example"),
            Ok("http://bank.example/".into())
        );
        assert_eq!(address("/"), Ok("file:///".into()));
        // There is such a file, but the user did not mean it.
        assert_eq!(address("Cargo.toml"), Ok("https://cargo.toml/".into()));
        assert!(address("javascript:alert(1)").is_err());
        assert!(address("two words").is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("800x600"), Ok(PhysicalSize::new(800, 600)));
        for bad in ["", "800", "800x", "0x600", "800x-1", "99999x1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wptrunner_command_line() {
        let settings = settings(&[
            "--hard-fail",
            "-u",
            "Servo/wptrunner",
            "--ignore-certificate-errors",
            "--headless",
            "--window-size",
            "800x600",
            "--pref=dom_webgpu_enabled=true",
            "--pref",
            "layout_threads=2",
            "-z",
            "about:blank",
        ])
        .unwrap();
        assert!(
            settings.headless
                && settings.hard_fail
                && settings.ignore_certificate_errors
                && !settings.demo
        );
        assert!(settings.preferences.dom_webgpu_enabled);
        assert_eq!(settings.preferences.layout_threads, 2);
        assert_eq!(settings.preferences.user_agent, "Servo/wptrunner");
        assert_eq!(settings.window_size, PhysicalSize::new(800, 600));
    }

    #[test]
    fn demo_without_url() {
        let settings = settings(&[]).unwrap();
        assert!(settings.demo);
        assert_eq!(settings.url, demo::url());
    }

    #[test]
    fn refusals_name_the_flag() {
        assert!(error(&["--certificate-path", "/nonexistent"]).contains("--certificate-path"));
        assert!(error(&["--host-file", "/nonexistent"]).contains("--host-file"));
        assert!(error(&["--pref", "no_such_pref=1"]).contains("no_such_pref"));
        assert!(error(&["--webdriver", "0"]).contains("--webdriver"));
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        assert!(error(&["--webdriver", &port]).contains(&port));
    }
}
