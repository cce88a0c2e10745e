/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Every rule of every sandbox, against the kernel that runs the test.
//!
//! This program is its own harness: started with arguments, it is a process that locks itself down as a token process does,
//! tries something, and says what came of it.

mod attempts;
#[cfg(target_arch = "x86_64")]
mod docs;
mod limits;
mod places;
mod rows;
mod steps;

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::{env, fs};

use attempts::{
    ATTEMPTS, ATTEMPTS_OF_OTHERS, ATTEMPTS_OF_STORE, Attempt, MODULE, Outcome, PCSC_MODULE, Place,
    SOFTWARE_TPM,
};
use landlock::ABI;
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use token_traits::control::ModuleConfig;
use token_workers::sandbox::table::{self, Call};
use token_workers::sandbox::{self, Kind, Profile, SandboxError, Step};

/// The kinds of token processes, by the names of the documentation.
const KINDS: [&str; 9] = [
    "broker",
    "broker without a store",
    "pcsc-reader",
    "pcsc-monitor",
    "virtual-card",
    "module-worker",
    PCSC_MODULE,
    "tpm-worker",
    SOFTWARE_TPM,
];

/// How long a probe may take, in seconds.
const LIMIT: u32 = 60;

/// A number that no system call has, and none will have for long.
const NUMBERS: i64 = 600;

fn kind<'a>(name: &str, store: &'a Path) -> Kind<'a> {
    match name {
        "broker" => Kind::Broker { store: Some(store) },
        "broker without a store" => Kind::Broker { store: None },
        "pcsc-reader" => Kind::PcscReader,
        "pcsc-monitor" => Kind::PcscMonitor,
        "virtual-card" => Kind::VirtualCard,
        "module-worker" => Kind::Module(module(store, false)),
        PCSC_MODULE => Kind::Module(module(store, true)),
        "tpm-worker" => Kind::Tpm { port: None },
        // Nothing listens there.
        SOFTWARE_TPM => Kind::Tpm { port: Some(1) },
        other => panic!("{other} is no kind"),
    }
}

/// A module that may write to a folder.
fn module(folder: &Path, pcsc: bool) -> &'static ModuleConfig {
    // A probe makes one, and the test few.
    Box::leak(Box::new(ModuleConfig {
        module: "its module".into(),
        label: "Module".into(),
        write: vec![folder.to_str().expect("a name").into()],
        pcsc,
        ..ModuleConfig::default()
    }))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["try", kind, change, name, folder, port] => attempt(kind, change, name, folder, port),
        ["try-the-rest", kind] => return try_the_rest(kind),
        ["rows", kind] => return report(wrong_rows(kind)),
        ["places", kind, folder, version] => {
            return report(wrong_places(kind, folder, version));
        }
        ["limits", kind] => return report(limits::wrong(kind)),
        ["steps"] => return report(steps::wrong()),
        ["thread", what] => steps::in_a_thread(what),
        _ => {}
    }
    // Probes inherit these limits, and the sandbox lowers them.
    for resource in [Resource::Nofile, Resource::Core] {
        let maximum = getrlimit(resource).maximum;
        setrlimit(
            resource,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
        .expect("a limit");
    }
    let mut tests = Vec::new();
    for kind in KINDS {
        tests.push(Trial::test(format!("{kind}: rows"), move || {
            no_complaint(&["rows", kind])
        }));
        tests.push(Trial::test(format!("{kind}: places"), move || {
            places_are_governed(kind)
        }));
        tests.push(Trial::test(format!("{kind}: limits"), move || {
            no_complaint(&["limits", kind])
        }));
        tests.push(Trial::test(format!("{kind}: attempts"), move || {
            attempts_end_as_they_should(kind)
        }));
        tests.push(Trial::test(
            format!("{kind}: no other system call"),
            move || no_other_system_call(kind),
        ));
    }
    tests.push(Trial::test(
        "every argument that is checked is tried",
        every_argument_that_is_checked_is_tried,
    ));
    tests.push(Trial::test("a second thread", a_second_thread));
    tests.push(Trial::test("each step by itself", || {
        no_complaint(&["steps"])
    }));
    for what in steps::IN_A_THREAD {
        tests.push(Trial::test(format!("a thread that {what}"), || {
            steps::a_thread_ends_the_process(what)
        }));
    }
    #[cfg(target_arch = "x86_64")]
    tests.push(Trial::test(
        "the documentation says the same",
        docs::the_documentation_says_the_same,
    ));
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Attempts that the threat model has too, by their names here and there.
const ROWS: [(&str, &str); 11] = [
    ("read `/etc/passwd`", "reads the user's files"),
    ("read a key in `~/.ssh`", "reads a key in `~/.ssh`"),
    ("read the store", "reads the broker's store"),
    ("write to a file", "writes to the user's files"),
    ("open a device", "opens a device, a TPM's for example"),
    ("start a program", "starts a program"),
    ("trace another process", "traces another process"),
    (
        "connect to pcscd's socket, or D-Bus",
        "connects to pcscd's socket, or to D-Bus",
    ),
    (
        "connect to a server over TCP",
        "connects to a server on the network",
    ),
    ("map executable memory", "makes memory executable"),
    ("take 2 GiB of memory", "takes 2 GiB of memory at once"),
];

/// Leaves a row in the threat model.
fn note(kind: &str, words: &str, seen: Outcome) {
    let attacker = match kind {
        "broker" => "broker",
        "pcsc-reader" => "card's worker",
        _ => return,
    };
    let outcome = match seen {
        Outcome::Killed => "the process is ended".to_owned(),
        Outcome::Error(number) => {
            let error = std::io::Error::from_raw_os_error(number).to_string();
            let (words, _) = error.split_once(" (").expect("an error's number");
            format!("refused: {}", words.to_lowercase())
        }
        Outcome::Done if words.contains("store") && kind == "broker" => {
            "done: it is its own".to_owned()
        }
        Outcome::Done | Outcome::Reached => "done".to_owned(),
    };
    threat_model::outcome(attacker, words, &outcome);
}

fn attempts_of(kind: &str) -> impl Iterator<Item = &'static Attempt> {
    let of_store = if kind == "broker" || kind == MODULE || kind == PCSC_MODULE {
        ATTEMPTS_OF_STORE
    } else {
        ATTEMPTS_OF_OTHERS
    };
    ATTEMPTS.iter().chain(of_store)
}

/// Something that is other than in a profile.
#[derive(Clone, Copy, Debug)]
enum Change {
    None,
    /// The newest version of Landlock that is used.
    Landlock(i32),
    /// The filter lets the attempt's system calls through.
    Unfiltered,
    /// The same, and a step is left out.
    Without(Step),
    /// More threads may be started.
    StartOnly,
}

const ALL_STEPS: [Step; 6] = [
    Step::Limits,
    Step::NotDumpable,
    Step::NoNewPrivileges,
    Step::Landlock,
    Step::SystemCalls,
    Step::NoMoreThreads,
];

/// Whether it takes one of the system calls that a process has until its last thread runs.
fn is_of_start(attempt: &Attempt) -> bool {
    let calls = table::START.calls;
    attempt
        .calls
        .iter()
        .any(|number| calls.iter().any(|call| call.number == *number))
}

impl Change {
    fn encode(self) -> String {
        match self {
            Self::None => "none".into(),
            Self::Landlock(version) => version.to_string(),
            Self::Unfiltered => "unfiltered".into(),
            Self::Without(step) => format!("{step:?}"),
            Self::StartOnly => "start".into(),
        }
    }

    fn decode(text: &str) -> Self {
        match text {
            "none" => Self::None,
            "unfiltered" => Self::Unfiltered,
            "start" => Self::StartOnly,
            _ => match ALL_STEPS
                .into_iter()
                .find(|step| format!("{step:?}") == text)
            {
                Some(step) => Self::Without(step),
                None => Self::Landlock(text.parse().expect("a version")),
            },
        }
    }
}

/// Everything that attempts may use, until it is dropped.
struct Ground {
    folder: tempfile::TempDir,
    _service: UnixListener,
    _abstract: UnixListener,
    tcp: std::net::TcpListener,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let place = place(folder.path(), 0, 0);
        fs::create_dir(place.store()).expect("a folder");
        fs::write(place.outside(), "text").expect("a file");
        fs::create_dir_all(place.key().parent().expect("a folder")).expect("a folder");
        fs::write(place.key(), "secret").expect("a file");
        for program in [place.program(), place.store().join("program")] {
            fs::write(&program, "no program").expect("a file");
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&program, mode).expect("a program");
        }
        symlink(place.outside(), place.store().join("link")).expect("a link");
        let name = SocketAddr::from_abstract_name(&place.abstract_name).expect("a name");
        Self {
            _service: UnixListener::bind(place.socket()).expect("a socket"),
            _abstract: UnixListener::bind_addr(&name).expect("a socket"),
            tcp: std::net::TcpListener::bind("127.0.0.1:0").expect("a socket"),
            folder,
        }
    }

    fn run(&self, kind: &str, change: Change, attempt: &Attempt) -> Result<Outcome, Failed> {
        let port = self.tcp.local_addr().expect("an address").port();
        // What an earlier attempt has done.
        let place = place(self.folder.path(), 0, 0);
        let _ = fs::remove_dir(place.folder.join("new"));
        let _ = fs::remove_file(place.folder.join("new"));
        fs::write(place.outside(), "text").expect("a file");
        let output = probe(&[
            OsStr::new("try"),
            kind.as_ref(),
            change.encode().as_ref(),
            attempt.name.as_ref(),
            self.folder.path().as_os_str(),
            port.to_string().as_ref(),
        ]);
        let text = String::from_utf8_lossy(&output.stdout);
        let outcome = match text.strip_prefix("locked ") {
            Some("") if output.status.signal() == Some(libc::SIGSYS) => Some(Outcome::Killed),
            Some("done") => Some(Outcome::Done),
            Some(number) => number.parse().ok().map(Outcome::Error),
            None => None,
        };
        outcome.ok_or_else(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("{}: {}: {text} {errors}", attempt.name, output.status).into()
        })
    }
}

fn place(folder: &Path, tcp_port: u16, victim: i32) -> Place {
    Place {
        folder: folder.to_owned(),
        tcp_port,
        abstract_name: folder.as_os_str().as_encoded_bytes().to_owned(),
        victim,
    }
}

fn probe(arguments: &[&OsStr]) -> Output {
    Command::new(env::current_exe().expect("this program"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("a process")
}

fn attempts_end_as_they_should(kind: &str) -> Result<(), Failed> {
    let ground = Ground::new();
    let newest = sandbox::support()?.landlock;
    let mut wrong = Vec::new();
    for attempt in attempts_of(kind) {
        let full = attempt.outcome(kind);
        let mut check = |change: Change, expected: Outcome| -> Result<Outcome, Failed> {
            let seen = ground.run(kind, change, attempt)?;
            if !expected.matches(seen) {
                wrong.push(format!("{}, {change:?}: {seen:?}", attempt.name));
            }
            Ok(seen)
        };
        let mut seen = vec![check(Change::None, full)?];
        if let Some((_, words)) = ROWS.iter().find(|(name, _)| *name == attempt.name) {
            note(kind, words, seen[0]);
        }
        // On the kernels of Linux 5.13 and of Debian 12.
        if full != Outcome::Killed {
            for version in [1, 2] {
                let expected = match attempt.without {
                    // The filter lets it through, and only a later version governs it.
                    Some((Step::Landlock, other))
                        if kind == SOFTWARE_TPM && version < attempt.since =>
                    {
                        other
                    }
                    _ => full,
                };
                check(Change::Landlock(version), expected)?;
            }
        }
        let unfiltered = match attempt.without {
            Some((Step::Landlock, other)) if newest < attempt.since => other,
            _ => attempt.unfiltered,
        };
        // "Start a thread" takes several calls, which a step takes away together.
        if !matches!(attempt.without, Some((Step::NoMoreThreads, _))) {
            seen.push(check(Change::Unfiltered, unfiltered)?);
        }
        // Nor is it possible before the last thread runs.
        if full == Outcome::Killed && is_of_start(attempt) {
            check(Change::StartOnly, Outcome::Killed)?;
        }
        if let Some((step, outcome)) = attempt.without {
            seen.push(check(Change::Without(step), outcome)?);
        }
        // A rule without which the same happens is none, unless the attempt is what the process is for.
        if full != Outcome::Done && seen.iter().all(|outcome| *outcome == seen[0]) {
            wrong.push(format!("{}: no rule makes a difference", attempt.name));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}

/// Locks this process down, tries something, says what came of it, and ends.
fn attempt(kind_name: &str, change: &str, name: &str, folder: &str, port: &str) -> ! {
    // SAFETY: a signal that ends the process.
    unsafe { libc::alarm(LIMIT) };
    let attempt = attempts_of(kind_name)
        .find(|attempt| attempt.name == name)
        .expect("an attempt");
    let folder = PathBuf::from(folder);
    let place = place(&folder, port.parse().expect("a port"), victim());
    let store = place.store();
    let kind = kind(kind_name, &store);
    let change = Change::decode(change);
    let mut profile = Profile::of(kind);
    match change {
        Change::None => {
            lock_down(kind).expect("a sandbox");
        }
        Change::StartOnly => sandbox::lock_down(kind).expect("a sandbox"),
        Change::Landlock(version) => profile.landlock = ABI::from(version),
        Change::Unfiltered | Change::Without(_) => {
            let allow = |number: i64| Call {
                number,
                name: "",
                with: &[],
                only: "",
            };
            profile
                .start
                .retain(|call| !attempt.calls.contains(&call.number));
            profile
                .failing
                .retain(|(call, _)| !attempt.calls.contains(&call.number));
            profile
                .calls
                .extend(attempt.calls.iter().copied().map(allow));
        }
    }
    if !matches!(change, Change::None | Change::StartOnly) {
        for step in ALL_STEPS {
            if !matches!(change, Change::Without(other) if other == step) {
                profile.apply(step).expect("a sandbox");
            }
        }
    }
    say("locked ");
    match (attempt.run)(&place) {
        Ok(()) => say("done"),
        Err(number) => say(&number.to_string()),
    }
    // SAFETY: nothing is left to be done.
    unsafe { libc::_exit(0) }
}

fn say(text: &str) {
    // SAFETY: the text is valid for its length.
    unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
}

/// Starts a copy of this process that waits for its end. A signal would not come from inside the sandbox.
fn victim() -> i32 {
    let mut ends = [0_i32; 2];
    // SAFETY: the pointer is to two numbers.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0, "a pipe");
    let [end, parents] = ends;
    // SAFETY: there is no other thread.
    match unsafe { libc::fork() } {
        0 => {
            let mut nothing = 0_u8;
            // SAFETY: the pointer is to a byte, which nobody sends. Nobody waits longer for the victim than for its parent.
            unsafe {
                libc::close(parents);
                libc::close(1);
                libc::close(2);
                libc::alarm(LIMIT);
                libc::read(end, (&raw mut nothing).cast(), 1);
                libc::_exit(0)
            }
        }
        victim => victim,
    }
}

/// Says what is wrong, as a process does that was started for it.
fn report(wrong: Vec<String>) -> ExitCode {
    for wrong in &wrong {
        println!("{wrong}");
    }
    println!("{} wrong", wrong.len());
    ExitCode::SUCCESS
}

/// Runs such a process.
fn no_complaint(arguments: &[&str]) -> Result<(), Failed> {
    let arguments: Vec<&OsStr> = arguments.iter().map(|text| text.as_ref()).collect();
    let output = probe(&arguments);
    if output.status.success() && output.stdout == b"0 wrong\n" {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {text} {errors}", output.status).into())
}

/// How a child ends that could not be locked down.
const NOT_LOCKED: u8 = 255;

/// What becomes of a child that does this and ends.
fn in_child(
    run: impl FnOnce() -> Result<Result<(), i32>, SandboxError>,
) -> Result<Outcome, String> {
    // SAFETY: there is no other thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = match run() {
            Ok(Ok(())) => 0,
            Ok(Err(number)) => number,
            Err(error) => {
                eprintln!("{error}");
                NOT_LOCKED.into()
            }
        };
        // SAFETY: it ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to an i32.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    let is_killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS;
    match libc::WEXITSTATUS(status) {
        _ if waited == child && is_killed => Ok(Outcome::Killed),
        _ if waited != child || !libc::WIFEXITED(status) => Err(format!("status {status:#x}")),
        0 => Ok(Outcome::Done),
        code if code == i32::from(NOT_LOCKED) => Err("no sandbox".into()),
        number => Ok(Outcome::Error(number)),
    }
}

/// Plays each row of its kind, before and after its last thread runs or its module is loaded.
fn wrong_rows(kind_name: &str) -> Vec<String> {
    // SAFETY: a signal that ends the process.
    unsafe { libc::alarm(LIMIT) };
    let kind = kind(kind_name, Path::new("/nowhere"));
    let mut wrong = Vec::new();
    let rows = rows::ROWS
        .iter()
        .enumerate()
        .filter(|(_, row)| row.kinds.contains(&kind_name));
    for (index, row) in rows {
        for (is_started, expected) in [(false, row.before), (true, (row.after)(kind_name))] {
            let seen = in_child(|| {
                rows::prepare(row.number);
                sandbox::lock_down(kind)?;
                if is_started {
                    last_filter(kind)?;
                }
                Ok((row.run)())
            });
            let right = match seen {
                // So the sandbox answers, and the kernel does not.
                Ok(Outcome::Error(libc::EPERM | libc::EACCES | libc::ENOSYS)) => {
                    seen == Ok(expected)
                }
                Ok(seen) => expected.matches(seen),
                Err(_) => false,
            };
            if !right {
                let when = if is_started { "after" } else { "before" };
                wrong.push(format!("{}, row {index}, {when}: {seen:?}", row.name));
            }
        }
    }
    wrong
}

/// Each right in each place, with the newest version of Landlock and with the first ones.
fn places_are_governed(kind: &str) -> Result<(), Failed> {
    let newest = sandbox::support()?.landlock.min(6);
    for version in [newest, 1, 2] {
        let folder = tempfile::tempdir()?;
        let folder = folder.path().to_str().ok_or("no name")?;
        no_complaint(&["places", kind, folder, &version.to_string()])?;
    }
    Ok(())
}

fn wrong_places(kind: &str, folder: &str, version: &str) -> Vec<String> {
    // SAFETY: a signal that ends the process.
    unsafe { libc::alarm(LIMIT) };
    places::enter(Path::new(folder)).expect("a root folder of its own");
    let mut profile = Profile::of(places::kind(kind));
    let version: i32 = version.parse().expect("a version");
    // The newest that is used is the profile's own choice.
    if version < 6 {
        profile.landlock = ABI::from(version);
    }
    profile.apply(Step::Landlock).expect("a sandbox");
    places::wrong(kind, version)
}

/// Whatever is not in the table ends the process, whatever its number.
fn no_other_system_call(kind: &str) -> Result<(), Failed> {
    let output = probe(&[OsStr::new("try-the-rest"), kind.as_ref()]);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    // A good part of all that there are.
    let tried = text
        .trim()
        .strip_prefix("tried ")
        .and_then(|number| number.parse::<i64>().ok());
    if output.status.success() && tried.is_some_and(|tried| tried > NUMBERS / 2) {
        Ok(())
    } else {
        Err(format!("{}: {text} {errors}", output.status).into())
    }
}

/// As a process does when its last thread runs.
fn lock_down(kind: Kind<'_>) -> Result<(), SandboxError> {
    sandbox::lock_down(kind)?;
    last_filter(kind)
}

fn last_filter(kind: Kind<'_>) -> Result<(), SandboxError> {
    match kind {
        Kind::Module(_) => sandbox::no_more_code(),
        _ => sandbox::no_more_threads(),
    }
}

fn try_the_rest(kind_name: &str) -> ExitCode {
    // SAFETY: a signal that ends the process.
    unsafe { libc::alarm(LIMIT) };
    let store = env::temp_dir();
    let kind = kind(kind_name, &store);
    // On this architecture the same numbers again are those of another, which has 32 bits for an address.
    let x32 = if cfg!(target_arch = "x86_64") {
        0x4000_0000..0x4000_0000 + NUMBERS
    } else {
        0..0
    };
    let others = (0..NUMBERS)
        .filter(|number| !rows::is_made(kind_name, *number))
        .chain(x32)
        .chain([-1, i64::from(i32::MAX)]);
    let mut tried = 0;
    for number in others {
        tried += 1;
        // SAFETY: there is no other thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            if lock_down(kind).is_ok() {
                // SAFETY: if the kernel does anything at all, it is not with addresses of this process.
                unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
            }
            // SAFETY: it ends the child.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to an i32.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        // Linux lets no filter see these two, with which a debugger's probes return. Without such a probe they end the process too, or do nothing.
        let is_of_probes = cfg!(target_arch = "x86_64") && [335, 336].contains(&number);
        let is_killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS;
        if waited != child || !(is_killed || is_of_probes) {
            eprintln!("system call {number}: status {status:#x}");
            return ExitCode::FAILURE;
        }
    }
    #[cfg(target_arch = "x86_64")]
    if !other_way_in(kind) {
        return ExitCode::FAILURE;
    }
    println!("tried {tried}");
    ExitCode::SUCCESS
}

/// Whether the process is also killed for a system call of 32-bit programs.
#[cfg(target_arch = "x86_64")]
fn other_way_in(kind: Kind<'_>) -> bool {
    // SAFETY: there is no other thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        if lock_down(kind).is_ok() {
            // There, 20 is `getpid`.
            // SAFETY: it takes no address, and the kernel changes no register but that of the result.
            unsafe { std::arch::asm!("int 0x80", inlateout("eax") 20 => _) };
        }
        // SAFETY: it ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to an i32.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    // Where the kernel has no such system calls, there is no such interrupt.
    let signals = [libc::SIGSYS, libc::SIGSEGV];
    waited == child && libc::WIFSIGNALED(status) && signals.contains(&libc::WTERMSIG(status))
}

/// No check of an argument is only written down.
fn every_argument_that_is_checked_is_tried() -> Result<(), Failed> {
    for name in KINDS {
        let profile = Profile::of(kind(name, Path::new("/nowhere")));
        for call in profile.calls.iter().filter(|call| !call.with.is_empty()) {
            let tried = attempts_of(name).any(|attempt| attempt.calls == [call.number]);
            if !tried {
                return Err(format!("nothing tries {} with other arguments", call.name).into());
            }
        }
    }
    Ok(())
}

/// Rules would not apply to a thread that was there before.
fn a_second_thread() -> Result<(), Failed> {
    match sandbox::lock_down(Kind::VirtualCard) {
        Err(error @ SandboxError::Threads(_)) => {
            assert!(error.to_string().ends_with("threads run already"));
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}
