/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Every rule of the sandbox of content processes, against the kernel that runs the test.
//!
//! The module is the engine's own, compiled without the engine. This program is its own harness: started with arguments, it
//! is a process that enters the sandbox, does something, and says what came of it.

mod attempts;
mod calls;
#[path = "../../../components/engine/servo/content_process_sandbox/mod.rs"]
mod content_process_sandbox;
#[cfg(target_arch = "x86_64")]
mod docs;
mod uses;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::{env, fs, io, thread};

use attempts::{ATTEMPTS, Attempt, Outcome, Place};
use calls::call;
use content_process_sandbox::table::{Argument, GROUPS, NOT_IMPLEMENTED};
use content_process_sandbox::{STEPS, Step, enter};
use libtest_mimic::{Arguments, Failed, Trial};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use uses::{ENDED, USES, Use};

/// How long a process may take, in seconds.
const LIMIT: u32 = 60;

/// No system call has this number, nor will one for long.
const NUMBERS: i64 = 600;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["probe", without, what @ ..] = &arguments[..] {
        // SAFETY: a signal that ends the process.
        unsafe { libc::alarm(LIMIT) };
        probe(Sandbox::decode(without), what);
    }
    let tests = vec![
        Trial::test("what the engine does is allowed", uses_are_allowed),
        Trial::test("everything that is allowed is used", everything_is_used),
        Trial::test("files are read", files_are_read),
        Trial::test("attempts end as they should", attempts_end_as_they_should),
        Trial::test("every argument is checked", every_argument_is_checked),
        Trial::test("no other system call", no_other_system_call),
        Trial::test("every step is taken", every_step_is_taken),
        Trial::test("a kernel without Landlock", a_kernel_without_landlock),
        Trial::test("a second thread", a_second_thread),
        Trial::test(
            "threads are in the sandbox too",
            threads_are_in_the_sandbox_too,
        ),
        #[cfg(target_arch = "x86_64")]
        Trial::test(
            "the documentation says the same",
            docs::the_documentation_says_the_same,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Raises the limit of core files as far as that goes, and says whether there can be any.
fn raise_core_limit() -> bool {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointers are to values that outlive the calls.
    unsafe {
        // Only root may, where the limit is lower.
        libc::setrlimit(libc::RLIMIT_CORE, &raw const unlimited);
        libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) == 0 && limit.rlim_max > 0
    }
}

/// The steps that are taken, as bits by their place in [`STEPS`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Sandbox(u8);

impl Sandbox {
    const WHOLE: Self = Self((1 << STEPS.len()) - 1);

    fn without(self, step: Step) -> Self {
        let index = STEPS.iter().position(|other| *other == step);
        Self(self.0 & !(1 << index.expect("a step")))
    }

    fn decode(text: &str) -> Self {
        Self(text.parse().expect("a number"))
    }

    fn enter(self) {
        let steps: Vec<Step> = STEPS
            .into_iter()
            .enumerate()
            .filter(|(index, _)| self.0 & (1 << index) != 0)
            .map(|(_, step)| step)
            .collect();
        enter(&steps).expect("a sandbox");
    }
}

/// In the order of [`Attempt::outcomes`].
fn combinations() -> [Sandbox; 4] {
    let whole = Sandbox::WHOLE;
    let unfiltered = whole.without(Step::Seccomp);
    [
        whole,
        whole.without(Step::Landlock),
        unfiltered,
        unfiltered.without(Step::Landlock),
    ]
}

/// What this program does when it is started with arguments.
fn probe(sandbox: Sandbox, what: &[&str]) -> ! {
    match what {
        ["use", index] => {
            let index: usize = index.parse().expect("a number");
            let one = all_uses().nth(index).expect("a use");
            sandbox.enter();
            say("entered ");
            answer((one.run)());
        }
        ["attempt", name, folder, port] => {
            let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == *name);
            let place = Place {
                folder: folder.into(),
                tcp_port: port.parse().expect("a port"),
                victim: victim(),
            };
            sandbox.enter();
            say("entered ");
            answer((attempt.expect("an attempt").run)(&place));
        }
        ["files", folder, data] => {
            let files = uses::files(Path::new(folder), data);
            uses::make_files(&files).expect("files");
            sandbox.enter();
            for file in files {
                let result = fs::File::open(&file);
                say(&format!("{}: {result:?}\n", file.display()));
            }
        }
        ["the rest"] => {
            sandbox.enter();
            try_the_rest();
        }
        ["arguments"] => {
            sandbox.enter();
            try_arguments();
        }
        ["steps"] => {
            sandbox.enter();
            tell_steps();
        }
        ["no landlock"] => {
            without_landlock().expect("a filter");
            say(&enter(&STEPS).expect_err("no sandbox").to_string());
        }
        ["second thread"] => {
            thread::spawn(thread::park);
            let error = enter(&STEPS).expect_err("no sandbox");
            say(&error.to_string());
        }
        ["in a thread"] => {
            sandbox.enter();
            let read = || fs::read("/etc/passwd").err();
            let socket = || calls::socket(libc::AF_UNIX, libc::SOCK_STREAM).err();
            let seen = thread::spawn(move || (read(), socket())).join();
            say(&format!("{seen:?}"));
        }
        _ => panic!("{what:?}"),
    }
    // SAFETY: nothing is left to be done.
    unsafe { libc::_exit(0) }
}

fn say(text: &str) {
    // SAFETY: the text is valid for its length.
    unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
}

fn answer(result: calls::Result) {
    match result {
        Ok(_) => say("done"),
        Err(number) => say(&number.to_string()),
    }
}

/// Runs this program with these arguments.
fn run(sandbox: Sandbox, what: &[&OsStr], home: &Path) -> Output {
    run_with_data(sandbox, what, home, None)
}

/// The same, with the user's data at a place of its own.
fn run_with_data(sandbox: Sandbox, what: &[&OsStr], home: &Path, data: Option<&OsStr>) -> Output {
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args(["probe", &sandbox.0.to_string()])
        .args(what)
        .env("HOME", home.join("home"))
        .env_remove("XDG_DATA_HOME")
        .envs(data.map(|data| ("XDG_DATA_HOME", data)))
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    // It may have gone before it read that.
    let _ = child.stdin.take().expect("a pipe").write_all(b"typed");
    child.wait_with_output().expect("its output")
}

fn outcome(output: &Output) -> Result<Outcome, Failed> {
    let text = String::from_utf8_lossy(&output.stdout);
    let outcome = match text.strip_prefix("entered ") {
        Some("") if output.status.signal().is_some() => Some(Outcome::Killed),
        Some("") if output.status.code() == Some(ENDED) => Some(Outcome::Ended),
        Some("done") => Some(Outcome::Done),
        Some(number) => number.parse().ok().map(Outcome::Error),
        None => None,
    };
    outcome.ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("{}: {text} {errors}", output.status).into()
    })
}

fn all_uses() -> impl Iterator<Item = &'static Use> {
    USES.iter().chain(uses::NOT_IMPLEMENTED)
}

fn uses_are_allowed() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let mut wrong = Vec::new();
    for (index, one) in all_uses().enumerate() {
        let index = index.to_string();
        let what: [&OsStr; 2] = ["use".as_ref(), index.as_ref()];
        let seen = outcome(&run(Sandbox::WHOLE, &what, folder.path()))?;
        let right = match seen {
            Outcome::Error(libc::ENOSYS) => index.parse::<usize>()? >= USES.len(),
            Outcome::Error(libc::EPERM) | Outcome::Killed => false,
            Outcome::Ended => [libc::SYS_exit, libc::SYS_exit_group].contains(&one.number),
            _ => index.parse::<usize>()? < USES.len(),
        };
        if !right {
            wrong.push(format!("{} {}: {seen:?}", one.name, one.way));
        }
    }
    none(wrong)
}

fn none(wrong: Vec<String>) -> Result<(), Failed> {
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}

/// Nothing is allowed that no use is known of.
fn everything_is_used() -> Result<(), Failed> {
    let allowed = GROUPS.iter().flat_map(|group| group.calls);
    let mut wrong = Vec::new();
    for call in allowed.chain(NOT_IMPLEMENTED) {
        let used = all_uses().filter(|one| one.number == call.number).count();
        if used != call.with.len().max(1) {
            wrong.push(format!("{} is used in {used} ways", call.name));
        }
    }
    none(wrong)
}

fn files_are_read() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let mut wrong = Vec::new();
    // Where the user's data are, what the environment says about that, and whether it counts.
    let absolute = folder.path().join("data");
    for (data, variable, counts) in [
        ("home/.local/share", None, true),
        ("data", Some(absolute.as_os_str()), true),
        ("data", Some("data".as_ref()), false),
        ("home/.local/share", Some("data".as_ref()), true),
    ] {
        let what: [&OsStr; 3] = ["files".as_ref(), folder.path().as_ref(), data.as_ref()];
        let output = run_with_data(Sandbox::WHOLE, &what, folder.path(), variable);
        let text = String::from_utf8_lossy(&output.stdout);
        let refused: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains(": Ok("))
            .collect();
        let expected = match refused[..] {
            [] => counts,
            [line] => !counts && line.contains("/data/fonts/") && line.contains("code: 13,"),
            _ => false,
        };
        if !output.status.success() || !expected || text.lines().count() != 16 {
            let errors = String::from_utf8_lossy(&output.stderr);
            wrong.push(format!(
                "{data}, {variable:?}: {}: {refused:?} {errors}",
                output.status
            ));
        }
    }
    none(wrong)
}

/// What attempts may use, until it is dropped.
struct Ground {
    folder: tempfile::TempDir,
    _service: UnixListener,
    _abstract: UnixListener,
    tcp: TcpListener,
}

impl Ground {
    fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let place = Place {
            folder: folder.path().into(),
            tcp_port: 0,
            victim: 0,
        };
        let name = SocketAddr::from_abstract_name(place.abstract_name())?;
        let ground = Self {
            _service: UnixListener::bind(place.socket())?,
            _abstract: UnixListener::bind_addr(&name)?,
            tcp: TcpListener::bind("127.0.0.1:0")?,
            folder,
        };
        for file in [place.key(), place.font()] {
            fs::create_dir_all(file.parent().expect("a folder"))?;
        }
        fs::write(place.program(), "no program")?;
        fs::set_permissions(place.program(), fs::Permissions::from_mode(0o755))?;
        Ok(ground)
    }

    fn run(&self, sandbox: Sandbox, attempt: &Attempt) -> Result<Outcome, Failed> {
        let folder = self.folder.path();
        let port = self.tcp.local_addr()?.port();
        let place = Place {
            folder: folder.into(),
            tcp_port: port,
            victim: 0,
        };
        // What an earlier attempt has done. Neither has to be there.
        let _ = fs::remove_dir(place.nothing());
        let _ = fs::remove_file(place.nothing());
        fs::write(place.key(), "secret")?;
        fs::write(place.font(), "font")?;
        let port = port.to_string();
        let what: [&OsStr; 4] = [
            "attempt".as_ref(),
            attempt.name.as_ref(),
            folder.as_ref(),
            port.as_ref(),
        ];
        outcome(&run(sandbox, &what, folder))
    }
}

/// Starts a copy of this process that waits to be killed, and is when this process ends.
fn victim() -> i32 {
    // SAFETY: there is no other thread.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: none takes an address.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Its parent may have ended before. Nobody waits for it longer than for its parent.
                libc::close(1);
                libc::close(2);
                libc::alarm(LIMIT);
                libc::pause();
            }
        },
        victim => victim,
    }
}

/// With all rules, and without those that stand in the way: a rule without which the same happens is none.
fn attempts_end_as_they_should() -> Result<(), Failed> {
    let ground = Ground::new()?;
    let newest = landlock_version();
    let mut wrong = Vec::new();
    for attempt in ATTEMPTS {
        let [full, filtered, landlocked, neither] = attempt.outcomes;
        let landlocked = if newest < attempt.since {
            neither
        } else {
            landlocked
        };
        let expected = [full, filtered, landlocked, neither];
        let mut seen = Vec::new();
        for (sandbox, expected) in combinations().into_iter().zip(expected) {
            let outcome = ground.run(sandbox, attempt).map_err(|error| {
                format!("{}: {}", attempt.name, error.message().unwrap_or_default())
            })?;
            if !expected.matches(outcome) {
                wrong.push(format!("{}, {sandbox:?}: {outcome:?}", attempt.name));
            }
            seen.push(outcome);
        }
        // The system itself forbids some of them to ordinary users.
        // SAFETY: it takes nothing.
        let is_root = unsafe { libc::geteuid() } == 0;
        let up_to_the_system = neither == Outcome::Reached && !is_root;
        if !up_to_the_system && seen.iter().all(|outcome| *outcome == seen[0]) {
            wrong.push(format!("{}: no rule makes a difference", attempt.name));
        }
        // On an older kernel, the filter alone has to do it.
        if attempt.since > 1 && !matches!(filtered, Outcome::Error(_)) {
            wrong.push(format!(
                "{}: a new Landlock alone stands in the way",
                attempt.name
            ));
        }
    }
    none(wrong)
}

fn landlock_version() -> i32 {
    const VERSION: u64 = 1;
    let version = call(libc::SYS_landlock_create_ruleset, &[0, 0, VERSION]);
    i32::try_from(version.unwrap_or_default()).unwrap_or(i32::MAX)
}

/// Each argument that is checked is made wrong in many ways, with the others right.
fn every_argument_is_checked() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let output = run(Sandbox::WHOLE, &["arguments".as_ref()], folder.path());
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && text == "checked" {
        Ok(())
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {text} {errors}", output.status).into())
    }
}

/// What an argument is made for it to be right.
fn right(argument: &Argument) -> (usize, u64) {
    match *argument {
        Argument::Is(index, value) => (index.into(), value.into()),
        Argument::Only(index, _) | Argument::IsNull(index) => (index.into(), 0),
        Argument::IsOwnProcess(index) => (index.into(), std::process::id().into()),
    }
}

fn is_right(argument: &Argument, all: &[u64; 6]) -> bool {
    let (index, value) = right(argument);
    let seen = all[index];
    match *argument {
        Argument::Is(..) | Argument::IsOwnProcess(_) => seen as u32 == value as u32,
        Argument::Only(_, bits) => seen as u32 & !bits == 0,
        Argument::IsNull(_) => seen == 0,
    }
}

fn try_arguments() {
    // The upper half of what the kernel takes as 32 bits may hold anything.
    let upper = call(
        libc::SYS_fcntl,
        &[calls::ERRORS, 1 << 32 | libc::F_GETFL as u64],
    );
    if upper.is_err() {
        say(&format!("with the upper half: {upper:?}"));
        return;
    }
    for called in GROUPS.iter().flat_map(|group| group.calls) {
        for alternative in called.with {
            let mut all = [0; 6];
            for argument in *alternative {
                let (index, value) = right(argument);
                all[index] = value;
            }
            for argument in *alternative {
                let (index, _) = right(argument);
                for bit in 0..64 {
                    let mut wrong = all;
                    wrong[index] ^= 1 << bit;
                    let alternatives = &mut called.with.iter();
                    if alternatives.any(|other| other.iter().all(|one| is_right(one, &wrong))) {
                        continue;
                    }
                    let result = call(called.number, &wrong);
                    if result != Err(libc::EPERM) {
                        say(&format!("{} {wrong:x?}: {result:?}", called.name));
                        return;
                    }
                }
            }
        }
    }
    say("checked");
}

/// Whatever is used for nothing is refused, whatever its number.
fn no_other_system_call() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let output = run(Sandbox::WHOLE, &["the rest".as_ref()], folder.path());
    let text = String::from_utf8_lossy(&output.stdout);
    // A good part of all that there are.
    let tried = text
        .strip_prefix("tried ")
        .and_then(|number| number.parse().ok());
    if output.status.success() && tried.is_some_and(|tried: i64| tried > NUMBERS / 2) {
        Ok(())
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {text} {errors}", output.status).into())
    }
}

fn try_the_rest() {
    let known = |number: &i64| all_uses().any(|one| one.number == *number);
    // On x86-64 the same numbers again are those of an architecture that has 32 bits for an address.
    let x32 = if cfg!(target_arch = "x86_64") {
        0x4000_0000..0x4000_0000 + NUMBERS
    } else {
        0..0
    };
    // Linux lets no filter see these two, with which a debugger's probes return. Without such a probe they do nothing, or end the process.
    let of_probes = |number: &i64| cfg!(target_arch = "x86_64") && [335, 336].contains(number);
    // The first one is harmless, if there should be no filter at all.
    let others = [libc::SYS_getppid]
        .into_iter()
        .chain(0..NUMBERS)
        .filter(|number| !known(number) && !of_probes(number))
        .chain(x32)
        .chain([-1, i64::from(i32::MAX)]);
    let mut tried = 0;
    for number in others {
        tried += 1;
        let result = call(number, &[]);
        if result != Err(libc::EPERM) {
            say(&format!("system call {number}: {result:?}"));
            return;
        }
    }
    say(&format!("tried {tried}"));
}

/// What only some of the steps have changed.
fn tell_steps() {
    let mut typed = String::new();
    let read = io::stdin().read_to_string(&mut typed);
    say(&format!("stdin {read:?} {typed:?}\n"));
    let limit = [0_u64; 2];
    let core = libc::RLIMIT_CORE.into();
    let result = call(libc::SYS_prlimit64, &[0, core, 0, calls::address(&limit)]);
    say(&format!(
        "core {result:?} {}\n",
        limit.iter().any(|limit| *limit > 0)
    ));
    let dumpable = call(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE as u64]);
    say(&format!("dumpable {dumpable:?}\n"));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let new = status.lines().any(|line| line == "NoNewPrivs:\t0");
    say(&format!("new privileges {new}\n"));
}

fn every_step_is_taken() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let unfiltered = Sandbox::WHOLE.without(Step::Seccomp);
    let tell = |sandbox: Sandbox| {
        let output = run(sandbox, &["steps".as_ref()], folder.path());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Probes inherit this limit, and the sandbox lowers it.
    let without_limit = if raise_core_limit() {
        "core Ok(0) true"
    } else {
        "core Ok(0) false"
    };
    let all = tell(unfiltered);
    let expected = [
        (
            Step::StandardInput,
            "stdin Ok(0) \"\"",
            "stdin Ok(5) \"typed\"",
        ),
        (Step::CoreFile, "core Ok(0) false", without_limit),
        (Step::NotDumpable, "dumpable Ok(0)", "dumpable Ok(1)"),
    ];
    let mut wrong = Vec::new();
    for (step, with, without) in expected {
        if !all.lines().any(|line| line == with) {
            wrong.push(format!("{with} is not in {all}"));
        }
        let other = tell(unfiltered.without(step));
        if !other.lines().any(|line| line == without) {
            wrong.push(format!("{without} is not in {other}"));
        }
    }
    // Each of the last two sees to that.
    let [_, filtered, landlocked, neither] = combinations();
    for (sandbox, expected) in [(filtered, false), (landlocked, false), (neither, true)] {
        let seen = tell(sandbox);
        if !seen.contains(&format!("new privileges {expected}")) {
            wrong.push(format!("{sandbox:?}: {seen}"));
        }
    }
    none(wrong)
}

/// Landlock would not apply to a thread that was there before.
fn a_second_thread() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let output = run(Sandbox::WHOLE, &["second thread".as_ref()], folder.path());
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("(threads: 2 run already)") {
        Ok(())
    } else {
        Err(text.into_owned().into())
    }
}

/// As on a kernel that has none.
fn without_landlock() -> seccompiler::Result<()> {
    let calls = BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]);
    let architecture = env::consts::ARCH.try_into()?;
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, missing, architecture)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)
}

fn a_kernel_without_landlock() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let output = run(Sandbox::WHOLE, &["no landlock".as_ref()], folder.path());
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("(Landlock: ") && text.contains("dom_content_process_sandbox_enabled") {
        Ok(())
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {text} {errors}", output.status).into())
    }
}

fn threads_are_in_the_sandbox_too() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let output = run(Sandbox::WHOLE, &["in a thread".as_ref()], folder.path());
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("code: 13,") && text.contains("Some(1)") {
        Ok(())
    } else {
        Err(text.into_owned().into())
    }
}
