/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a content process that was taken over could try. `hostile-shell` makes the system calls, in a content process that is
//! the engine's own; each has to fail in the sandbox, and by the sandbox.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};
use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::shell::Options;
use rustix::process::{Pid, Signal, kill_process};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Names of error numbers: `EPERM` is seccomp's here, `EACCES` Landlock's.
const EPERM: &str = "error 1";
const EACCES: &str = "error 13";
const ENOSYS: &str = "error 38";
const DONE: &str = "done";

/// What the engine's own calls give, and what others give in the sandbox and outside of it. Outside, `None` stands for any
/// outcome: the system may have something against it, or it was made to fail so that it does no harm.
const ATTEMPTS: &[(&str, &str, Option<&str>)] = &[
    ("key in ~/.ssh", EACCES, Some(DONE)),
    ("profile", EACCES, Some(DONE)),
    ("file of another profile", EACCES, Some(DONE)),
    ("/etc/passwd", EACCES, Some(DONE)),
    ("/etc", EACCES, Some(DONE)),
    ("memory of another process", EACCES, Some(DONE)),
    ("passwd through /proc", EACCES, Some(DONE)),
    ("/dev/null", EACCES, Some(DONE)),
    ("TPM device", EACCES, None),
    ("USB devices", EACCES, None),
    // The rules do let through what they should.
    ("a font", DONE, Some(DONE)),
    ("time zones", DONE, Some(DONE)),
    ("its own memory map", DONE, Some(DONE)),
    ("write", EACCES, Some(DONE)),
    ("unlink", EPERM, Some(DONE)),
    ("mkdir", EPERM, Some(DONE)),
    ("rmdir", EPERM, Some(DONE)),
    ("symlink", EPERM, Some(DONE)),
    ("unlink the link", EPERM, Some(DONE)),
    ("chmod", EPERM, Some(DONE)),
    ("truncate", EPERM, Some(DONE)),
    ("socket internet", EPERM, Some(DONE)),
    ("socket internet 6", EPERM, None),
    ("socket local", EPERM, Some(DONE)),
    ("socket netlink", EPERM, Some(DONE)),
    ("socketpair datagram", EPERM, Some(DONE)),
    ("connect", EPERM, Some(DONE)),
    ("bind", EPERM, None),
    ("listen", EPERM, None),
    ("kill", EPERM, Some(DONE)),
    ("kill all of its own", EPERM, Some(DONE)),
    ("tgkill", EPERM, Some(DONE)),
    ("ptrace", EPERM, Some(DONE)),
    ("process_vm_readv", EPERM, None),
    ("process_vm_writev", EPERM, None),
    ("pidfd_open", EPERM, Some(DONE)),
    ("prlimit", EPERM, Some(DONE)),
    ("fork", EPERM, Some(DONE)),
    ("clone3", ENOSYS, None),
    ("execve", EPERM, None),
    ("execveat", EPERM, None),
    ("unshare", EPERM, Some(DONE)),
    ("setns", EPERM, None),
    ("mount", EPERM, None),
    ("chroot", EPERM, None),
    ("bpf", EPERM, None),
    ("io_uring_setup", EPERM, None),
    ("userfaultfd", EPERM, None),
    ("perf_event_open", EPERM, None),
    ("keyctl", EPERM, None),
    ("open_by_handle_at", EPERM, None),
    ("prctl dumpable", EPERM, Some(DONE)),
    ("prctl pdeathsig", EPERM, Some(DONE)),
    ("ioctl TIOCSTI", EPERM, None),
    ("fcntl F_SETOWN", EPERM, None),
    ("setrlimit", EPERM, None),
    ("sched_setaffinity", EPERM, None),
    ("getpid", DONE, Some(DONE)),
];

/// A process of the same user, ended when dropped.
struct Victim(Child);

impl Victim {
    fn start() -> Result<Self> {
        Ok(Self(Command::new("sleep").arg("600").spawn()?))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The outcomes by name, and what `/proc` says of the process.
fn outcomes(sandbox: bool) -> Result<(BTreeMap<String, String>, String)> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["home/.ssh", "profile", "other-profile"] {
        fs::create_dir_all(at(name))?;
    }
    for name in ["home/.ssh/id_ed25519", "other-profile/cookies"] {
        fs::write(at(name), "secret")?;
    }
    let _service = UnixListener::bind(at("service"))?;
    let victim = Victim::start()?;
    let font = super::ordinary::font()?;
    let targets = [
        ("key in ~/.ssh", at("home/.ssh/id_ed25519")),
        ("profile", at("profile")),
        ("file of another profile", at("other-profile/cookies")),
        ("/etc/passwd", "/etc/passwd".into()),
        ("/etc", "/etc".into()),
        (
            "memory of another process",
            format!("/proc/{}/mem", victim.0.id()),
        ),
        ("passwd through /proc", "/proc/self/root/etc/passwd".into()),
        ("/dev/null", "/dev/null".into()),
        ("TPM device", "/dev/tpmrm0".into()),
        ("USB devices", "/dev/bus/usb".into()),
        ("a font", font.display().to_string()),
        ("time zones", "/usr/share/zoneinfo/Europe/Zurich".into()),
        ("its own memory map", "/proc/self/maps".into()),
        ("write", at("written")),
        ("socket", at("service")),
        ("victim", victim.0.id().to_string()),
    ];
    let browser = Browser::start(&Options {
        program: Some("hostile-shell"),
        preferences: vec![(
            "dom_content_process_sandbox_enabled".into(),
            sandbox.to_string(),
        )],
        profile: Some(at("profile").into()),
        environment: vec![
            ("HOME".into(), at("home")),
            (
                "HOSTILE_CALLS".into(),
                targets
                    .map(|(name, value)| format!("{name}={value}"))
                    .join(";"),
            ),
        ],
        ..Options::default()
    })?;
    let content = browser
        .shell
        .processes()
        .into_iter()
        .filter(|process| {
            process
                .arguments
                .get(1)
                .is_some_and(|flag| flag == "--content-process")
        })
        .max_by_key(|process| process.pid)
        .ok_or("no content process")?;
    let pid = i32::try_from(content.pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kill_process(Pid::from_raw(pid).ok_or("no process")?, Signal::USR1)?;
    let ended = wait_for(Duration::from_secs(10), || {
        browser
            .shell
            .log()
            .contains("hostile call end: done.")
            .then_some(())
    });
    assert!(ended.is_some(), "{}", browser.shell.log_tail());

    // The process is as good as before.
    assert_eq!(browser.evaluate("1 + 1")??, 2);
    let log = browser.shell.log();
    let outcomes = log
        .lines()
        .filter_map(|line| {
            let (name, outcome) = line.strip_prefix("hostile call ")?.rsplit_once(": ")?;
            Some((name.to_owned(), outcome.trim_end_matches('.').to_owned()))
        })
        .collect();
    Ok((outcomes, status))
}

#[test]
fn attempts_fail_in_the_sandbox() -> Result {
    let (with, status) = outcomes(true)?;
    for (name, expected, _) in ATTEMPTS {
        let outcome = with.get(*name).map(String::as_str);
        // Without the file, the kernel says so before it asks Landlock.
        let absent = *expected == EACCES
            && outcome == Some("error 2")
            && !std::path::Path::new("/dev/tpmrm0").exists();
        assert!(
            outcome == Some(*expected) || absent && matches!(*name, "TPM device" | "USB devices"),
            "{name}: {outcome:?}"
        );
    }
    // All of its threads, as far as `/proc` tells.
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line:?} is not in {status}");
    }
    Ok(())
}

/// Else the other test would show nothing.
#[test]
fn attempts_succeed_without_the_sandbox() -> Result {
    let (without, status) = outcomes(false)?;
    for (name, _, expected) in ATTEMPTS {
        let outcome = without.get(*name).ok_or(format!("{name} was not tried"))?;
        if let Some(expected) = expected {
            assert_eq!(outcome, expected, "{name}");
        }
    }
    assert!(status.contains("Seccomp:\t0"), "{status}");
    Ok(())
}
