/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The browser as a fixture: a fresh profile, a free port, and nothing left behind.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, run, survivors, wait_for};
use crate::server::Server;
use crate::webdriver::{self, Client, Session};

/// The variable that has the path of the browser's binary.
pub const VARIABLE: &str = "SERVO_TOKENS_SHELL";
/// How long the browser may take to start; it is a debug build on a busy machine.
const START: Duration = Duration::from_secs(90);
/// How long processes may take to vanish once they were killed.
const END: Duration = Duration::from_secs(10);
/// How long to wait for another browser of this process.
const TURN: Duration = Duration::from_secs(600);
/// How much of the log is shown when something goes wrong, in lines.
const TAIL: usize = 80;

/// A token configuration with the embedded virtual card and nothing else.
///
/// Without its PIV application, whose access rule has the broker insist on the name of each application: what answers SELECT
/// with a warning says none.
pub const VIRTUAL_CARD: &str =
    "[virtual_card]\nenabled = true\nprofile = \"plain\"\n\n[pcsc]\nenabled = false\n";
/// A token configuration with the machine's PC/SC readers and nothing else.
pub const PCSC: &str = "[virtual_card]\nenabled = false\n\n[pcsc]\nenabled = true\n";

/// How the browser is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Another program in the browser's folder to start instead, with the same flags.
    pub program: Option<&'static str>,
    /// Contents of the file for `--token-config`.
    pub token_config: String,
    /// Contents of a file of access rules, which the configuration is to name.
    pub access_rules: Option<String>,
    /// For `--pref`.
    pub preferences: Vec<(String, String)>,
    /// Other flags; by default a panic in a content process ends the browser.
    pub arguments: Vec<String>,
    /// Opened at the start.
    pub url: String,
    /// Kept by the caller, to start again with it; else one that goes with the browser.
    pub profile: Option<PathBuf>,
    /// For `--window-size`, in pixels.
    pub window_size: (u32, u32),
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
    /// The user and group that the browser runs as, if not the test's own. The test has to be root's then, and `profile` be
    /// that user's.
    pub user: Option<u32>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            program: None,
            token_config: VIRTUAL_CARD.to_owned(),
            access_rules: None,
            preferences: Vec::new(),
            arguments: vec!["--hard-fail".to_owned()],
            url: "about:blank".to_owned(),
            profile: None,
            window_size: (800, 600),
            environment: Vec::new(),
            user: None,
        }
    }
}

/// Why there is no browser.
#[derive(Debug)]
pub struct StartError {
    reason: String,
    log: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "the browser did not start: {}\n{}",
            self.reason, self.log
        )
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError {
            reason: error.to_string(),
            log: String::new(),
        }
    }
}

/// One browser at a time in a process: several debug builds at once on a small machine would turn
/// every deadline into a lottery.
#[derive(Debug)]
struct Turn;

static TAKEN: Mutex<bool> = Mutex::new(false);
static FREED: Condvar = Condvar::new();

impl Turn {
    fn wait() -> Result<Turn, StartError> {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, waited) = FREED
            .wait_timeout_while(taken, TURN, |taken| *taken)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(io::Error::other("another browser of this process does not end").into());
        }
        *taken = true;
        Ok(Turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        FREED.notify_one();
    }
}

/// Lets everybody read the file, and enter its folder.
fn open_to_all(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, Permissions::from_mode(0o644))?;
    match file.parent() {
        Some(folder) => fs::set_permissions(folder, Permissions::from_mode(0o755)),
        None => Ok(()),
    }
}

/// A running browser, killed with everything it started when dropped.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    port: u16,
    directory: TempDir,
    // The last one: dropped when the browser is gone.
    _turn: Turn,
}

impl Shell {
    /// Starts the browser headless, trusting `server`'s authority and knowing its host names, and
    /// waits until WebDriver answers. Waits for any other browser of this process to end, first.
    ///
    /// # Errors
    /// If the variable [`VARIABLE`] is not set, or the browser ends or is silent; the error has
    /// the tail of what it wrote.
    pub fn start(server: &Server, options: &Options) -> Result<Shell, StartError> {
        let binary = binary()?;
        let binary = match options.program {
            Some(program) => binary.with_file_name(program),
            None => binary,
        };
        Shell::start_binary(&binary, server, options)
    }

    /// As [`Shell::start`], with this program as the browser.
    ///
    /// # Errors
    /// If it cannot be started, ends or is silent.
    pub fn start_binary(
        binary: &Path,
        server: &Server,
        options: &Options,
    ) -> Result<Shell, StartError> {
        let turn = Turn::wait()?;
        let directory = tempfile::tempdir()?;
        let log = File::create(directory.path().join("log"))?;
        let token_config = directory.path().join("tokens.toml");
        let mut configuration = options.token_config.clone();
        if let Some(rules) = &options.access_rules {
            let path = directory.path().join("access-rules.toml");
            fs::write(&path, rules)?;
            configuration += &format!("\n[access]\nrules = {path:?}\n");
        }
        fs::write(&token_config, configuration)?;
        let profile = options
            .profile
            .clone()
            .unwrap_or_else(|| directory.path().join("profile"));
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();

        let (width, height) = options.window_size;
        let mut command = Command::new(binary);
        command
            .arg("--headless")
            .arg(format!("--webdriver={port}"))
            .arg(format!("--window-size={width}x{height}"))
            .arg("--certificate-path")
            .arg(server.certificate_authority())
            .arg("--host-file")
            .arg(server.host_file())
            .arg("--profile-dir")
            .arg(profile)
            .arg("--token-config")
            .arg(&token_config);
        for (name, value) in &options.preferences {
            command.arg("--pref").arg(format!("{name}={value}"));
        }
        command
            .args(&options.arguments)
            .arg(&options.url)
            .envs(
                options
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .env_remove("HOST_FILE")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        if let Some(user) = options.user {
            // What the browser reads and writes is in folders that only root may enter.
            for file in [
                server.certificate_authority(),
                server.host_file(),
                token_config,
            ] {
                open_to_all(&file)?;
            }
            command.uid(user).gid(user);
        }
        let child = command.spawn().map_err(|error| StartError {
            reason: format!("{}: {error}", binary.display()),
            log: String::new(),
        })?;
        let mut shell = Shell {
            child,
            port,
            directory,
            _turn: turn,
        };
        match shell.wait_until_ready() {
            Ok(()) => Ok(shell),
            Err(reason) => Err(StartError {
                reason,
                log: shell.log_tail(),
            }),
        }
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let client = Client::new(self.port);
        let deadline = Instant::now() + START;
        loop {
            if client.is_ready(Duration::from_secs(2)).unwrap_or(false) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("it ended with {status}"));
            }
            if Instant::now() > deadline {
                return Err(format!("WebDriver did not answer within {START:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens a WebDriver session.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn session(&self) -> webdriver::Result<Session> {
        self.session_with(json!({}))
    }

    /// Opens a WebDriver session with these capabilities.
    ///
    /// # Errors
    /// Those of WebDriver.
    pub fn session_with(&self, capabilities: Value) -> webdriver::Result<Session> {
        Client::new(self.port).new_session(capabilities)
    }

    /// The number of the main process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The main process and everything it started.
    pub fn processes(&self) -> Vec<Process> {
        Process::tree(self.pid())
    }

    /// The token processes of a kind: `token-broker KIND`.
    pub fn token_processes(&self, kind: &str) -> Vec<Process> {
        let mut processes = self.processes();
        processes.retain(|process| {
            process.program() == "token-broker"
                && process
                    .arguments
                    .get(1)
                    .is_some_and(|argument| argument == kind)
        });
        processes
    }

    /// Whether the main process has ended, by itself or not.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the main process alone, and gives what it had started.
    pub fn kill_main_process(&mut self) -> Vec<Process> {
        let started = self.processes();
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        started
    }

    /// Everything that the browser wrote so far.
    pub fn log(&self) -> String {
        let text = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The last lines that the browser wrote.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        format!("--- the browser wrote ---\n{}\n---", tail.join("\n"))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let mut started = self.kill_main_process();
        // What it was just starting belongs to its group.
        started.extend(Process::tree(self.pid()));
        started.iter().for_each(Process::kill);
        let left = survivors(&started, END);
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        } else {
            assert!(left.is_empty(), "these outlived SIGKILL: {left:?}");
        }
    }
}

/// Runs the browser on its demo page to the end: headless and without WebDriver, it prints the
/// page's text. Waits for any other browser of this process to end, first.
///
/// # Errors
/// If the variable [`VARIABLE`] is not set, or the browser does not start or does not end.
pub fn run_demo(token_config: &str) -> Result<Output, StartError> {
    let binary = binary()?;
    let _turn = Turn::wait()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tokens.toml");
    fs::write(&file, token_config)?;
    let mut command = Command::new(binary);
    command
        .arg("--headless")
        .arg("--profile-dir")
        .arg(directory.path().join("profile"))
        .arg("--token-config")
        .arg(file);
    Ok(run(&mut command, START)?)
}

fn binary() -> Result<PathBuf, StartError> {
    let binary = std::env::var_os(VARIABLE).ok_or_else(|| StartError {
        reason: format!("{VARIABLE} is not set; run the tests with `cargo xtask test`"),
        log: String::new(),
    })?;
    Ok(binary.into())
}

/// Waits until the browser has at least one token process of a kind.
pub fn wait_for_token_process(shell: &Shell, kind: &str, limit: Duration) -> Option<Process> {
    wait_for(limit, || shell.token_processes(kind).into_iter().next())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(directory: &TempDir, text: &str) -> PathBuf {
        let file = directory.path().join("browser");
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        file
    }

    #[test]
    fn a_browser_that_ends_is_an_error_with_its_words() {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::builder().start().unwrap();
        let binary = script(&directory, "echo \"flags: $*\" >&2; exit 4");
        let options = Options {
            preferences: vec![("a_pref".into(), "true".into())],
            ..Options::default()
        };
        let error = Shell::start_binary(&binary, &server, &options)
            .unwrap_err()
            .to_string();
        for part in [
            "exit status: 4",
            "--headless",
            "--pref a_pref=true",
            "about:blank",
        ] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
    }

    #[test]
    fn a_missing_binary_is_an_error_that_names_it() {
        let server = Server::builder().start().unwrap();
        let error = Shell::start_binary(Path::new("/no/browser"), &server, &Options::default());
        assert!(error.unwrap_err().to_string().contains("/no/browser"));
    }
}
