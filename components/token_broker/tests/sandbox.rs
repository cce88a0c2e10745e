/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The sandboxes of the real processes, and what happens where the kernel cannot make them. The rules one by one are tested
//! in `token_workers`.
//!
//! This program is its own harness: started with `without CALL ERROR PROGRAM ARGUMENTS`, it becomes that program, for which a
//! system call fails as on a kernel that does not have it.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs};

use common::*;
use libtest_mimic::{Arguments, Trial};
use rustix::process::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use token_client::ClientConfig;
use token_traits::ErrorKind;
use token_traits::port::RequestBody;
use virtual_card::VirtualCard;
use virtual_card::test_support::Pcscd;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [first, call, error, program, rest @ ..] = &arguments[..]
        && first == "without"
    {
        become_program_without(call, error, program, rest);
    }
    let tests: [(&str, fn()); 6] = [
        ("every_process_is_locked_down", every_process_is_locked_down),
        (
            "without_landlock_there_is_no_broker",
            without_landlock_there_is_no_broker,
        ),
        (
            "without_seccomp_there_is_no_broker",
            without_seccomp_there_is_no_broker,
        ),
        (
            "without_landlock_there_is_no_worker",
            without_landlock_there_is_no_worker,
        ),
        (
            "without_the_last_filter_there_is_no_worker",
            without_the_last_filter_there_is_no_worker,
        ),
        (
            "the_doctor_says_what_the_kernel_lacks",
            the_doctor_says_what_the_kernel_lacks,
        ),
    ];
    let tests = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), tests.into()).exit_code()
}

/// What a kernel says that lacks something: the system call, and the error's name and number.
const NO_LANDLOCK: (&str, &str) = ("landlock_create_ruleset", "ENOSYS");
const LANDLOCK_IS_OFF: (&str, &str) = ("landlock_create_ruleset", "EOPNOTSUPP");
const NO_SECCOMP: (&str, &str) = ("seccomp", "EINVAL");
const NO_LAST_FILTER: (&str, &str) = ("seccomp for all threads", "EINVAL");

fn become_program_without(call: &str, error: &str, program: &str, arguments: &[String]) -> ! {
    let (number, rules) = match call {
        "landlock_create_ruleset" => (libc::SYS_landlock_create_ruleset, Vec::new()),
        "seccomp" => (libc::SYS_seccomp, Vec::new()),
        "seccomp for all threads" => {
            let flag = libc::SECCOMP_FILTER_FLAG_TSYNC;
            let condition =
                SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, flag);
            let rule = SeccompRule::new(vec![condition.expect("a condition")]);
            (libc::SYS_seccomp, vec![rule.expect("a rule")])
        }
        other => panic!("{other}"),
    };
    let error = match error {
        "ENOSYS" => libc::ENOSYS,
        "EOPNOTSUPP" => libc::EOPNOTSUPP,
        "EINVAL" => libc::EINVAL,
        other => panic!("{other}"),
    };
    let architecture: TargetArch = env::consts::ARCH.try_into().expect("an architecture");
    let action = SeccompAction::Errno(error.unsigned_abs());
    let calls = [(number, rules)].into();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, architecture);
    let filter: BpfProgram = filter.expect("a filter").try_into().expect("a filter");
    seccompiler::apply_filter(&filter).expect("a filter");
    panic!("{}", Command::new(program).args(arguments).exec());
}

/// A script that starts the real program, without that system call for processes of that kind. What they log goes to the
/// file.
fn program_without(folder: &Path, kind: &str, (call, error): (&str, &str), log: &Path) -> PathBuf {
    let script = folder.join("token-broker");
    let text = format!(
        "#!/bin/sh\ncase $1 in {kind}) exec {} without '{call}' {error} {1} \"$@\" 2>>{2};; esac\nexec {1} \"$@\"\n",
        env::current_exe().expect("this program").display(),
        env!("CARGO_BIN_EXE_token-broker"),
        log.display(),
    );
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).expect("a script");
    script
}

fn start_without(
    folder: &Path,
    kind: &str,
    missing: (&str, &str),
) -> (std::sync::Arc<token_client::TokenClient>, PathBuf) {
    let log = folder.join("log");
    let config = ClientConfig {
        broker_binary: program_without(folder, kind, missing, &log),
        virtual_card: Some("default".into()),
        ..nothing()
    };
    let client = token_client::TokenClient::new(config, Arc::new(Nobody));
    grant(&client, ORIGIN);
    (client, log)
}

fn no_broker(missing: (&str, &str), message: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, log) = start_without(folder.path(), "broker", missing);
    let begun = Instant::now();
    let error = try_open_page(&client, ORIGIN)
        .map(|_| ())
        .expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Io);
    assert_eq!(error.message, "the token broker cannot be started");
    assert!(begun.elapsed() < PROMPTLY, "{:?}", begun.elapsed());
    let log = fs::read_to_string(log).expect("a log");
    assert!(log.contains(message), "{log}");
}

fn without_landlock_there_is_no_broker() {
    no_broker(NO_LANDLOCK, "this kernel has no Landlock");
    no_broker(LANDLOCK_IS_OFF, "Landlock is turned off in this kernel");
}

fn without_seccomp_there_is_no_broker() {
    no_broker(NO_SECCOMP, "this kernel cannot filter system calls");
}

fn no_worker(missing: (&str, &str), message: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, log) = start_without(folder.path(), "virtual-card", missing);
    let mut page = try_open_page(&client, ORIGIN).expect("a port");
    let reader = page.readers()[0].id;
    let session = page.send(RequestBody::OpenSession(reader));
    let reply = page.wait(session, PATIENCE).expect("an open port");
    assert_eq!(kind(reply), ErrorKind::Io);
    let log = fs::read_to_string(log).expect("a log");
    assert!(log.contains(message), "{log}");
}

fn without_landlock_there_is_no_worker() {
    no_worker(NO_LANDLOCK, "this kernel has no Landlock");
}

/// Nor where anything else of the lock-down fails.
fn without_the_last_filter_there_is_no_worker() {
    no_worker(NO_LAST_FILTER, "sandbox: seccomp: ");
}

fn the_doctor_says_what_the_kernel_lacks() {
    let doctor = |missing: Option<(&str, &str)>| {
        let mut command = match missing {
            None => Command::new(env!("CARGO_BIN_EXE_token-broker")),
            Some((call, error)) => {
                let mut command = Command::new(env::current_exe().expect("this program"));
                command.args(["without", call, error, env!("CARGO_BIN_EXE_token-broker")]);
                command
            }
        };
        let output = command.arg("doctor").output().expect("the doctor");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text, output.status.success())
    };
    let (text, _) = doctor(None);
    let good = "ok       the kernel can lock token processes down: seccomp, Landlock ";
    assert!(text.starts_with(good), "{text}");
    for (missing, message) in [
        (NO_LANDLOCK, "CONFIG_SECURITY_LANDLOCK"),
        (LANDLOCK_IS_OFF, "lsm="),
        (NO_SECCOMP, "CONFIG_SECCOMP_FILTER"),
    ] {
        let (text, is_good) = doctor(Some(missing));
        let first = text.lines().next().expect("a line");
        assert!(first.starts_with("problem  "), "{text}");
        assert!(first.contains(message), "{text}");
        assert!(!is_good);
    }
}

fn every_process_is_locked_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().to_owned();
    let pcscd = Pcscd::start().expect("pcscd");
    let card = VirtualCard::from_profile("default").expect("a profile");
    let _inserted = pcscd.insert(0, card).expect("a card");
    let browser = Browser::with_user(true, Some(store), Arc::new(Nobody));
    browser.grant(ORIGIN);
    let mut page = browser.open_page();
    let readers = wait_for("the card", || {
        let readers = page.readers();
        let present = readers.iter().filter(|reader| reader.present).count();
        (present == 2).then_some(readers)
    });
    let channels: Vec<_> = readers
        .iter()
        .filter(|reader| reader.present)
        .map(|reader| {
            let session = page.open_session(reader.id);
            page.open_channel(session)
        })
        .collect();
    for (kind, threads, descriptors) in [
        // The main one, the main process's, the lifeline's, the store's.
        ("broker", 4, 2048),
        ("pcsc-monitor", 3, 64),
        ("pcsc-reader", 2, 64),
        ("virtual-card", 2, 64),
    ] {
        assert_locked_down(browser.process(kind), kind, threads, descriptors);
    }
    for channel in channels {
        page.assert_echoes(channel, b"all of them serve");
    }
}

fn assert_locked_down(pid: Pid, kind: &str, threads: u64, descriptors: u64) {
    let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let status = fs::read_to_string(folder.join("status")).expect("a status");
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.strip_prefix(':'));
        value.expect(name).trim().parse().expect(name)
    };
    assert_eq!(field("NoNewPrivs"), 1, "{kind}");
    // Filters: for each of two errors, for what is allowed, and for what is not any more when all threads run.
    assert_eq!(field("Seccomp"), 2, "{kind}");
    assert_eq!(field("Seccomp_filters"), 4, "{kind}");
    assert_eq!(field("Threads"), threads, "{kind}");
    let limits = fs::read_to_string(folder.join("limits")).expect("limits");
    for (name, expected) in [("Max core file size", 0), ("Max open files", descriptors)] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let mut values = line.expect(name).split_whitespace();
        for limit in ["soft", "hard"] {
            let value: u64 = values.next().expect(name).parse().expect(name);
            assert_eq!(value, expected, "{kind}: {name}, {limit}");
        }
    }
}
