/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a content process that was taken over could try. `hostile-shell` makes the system calls, in a content process that is
//! the engine's own; each has to fail in the sandbox, and by the sandbox. Rule by rule, `tests/content_process_sandbox`
//! does the same without a browser.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::server::Server;
use e2e::shell::{Options, Shell};
use rustix::process::{Pid, Signal, geteuid, kill_process};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Names of error numbers: `EPERM` is seccomp's here, `EACCES` Landlock's.
const EPERM: &str = "error 1";
const EACCES: &str = "error 13";
const ENOSYS: &str = "error 38";
const DONE: &str = "done";

/// On Debian, the user `nobody`.
const NOBODY: u32 = 65534;

/// Calls that an attacker makes for one purpose. Each: its name, and what it gives in the sandbox and outside of it. Outside,
/// `None` stands for any outcome: the system may have something against it, or it was made to fail so that it does no harm.
struct Attempt {
    /// A row of the threat model; without one, it shows that the rules let through what they should.
    row: Option<&'static str>,
    calls: &'static [(&'static str, &'static str, Option<&'static str>)],
}

const ATTEMPTS: &[Attempt] = &[
    Attempt {
        row: Some("open a key in `~/.ssh`"),
        calls: &[("key in ~/.ssh", EACCES, Some(DONE))],
    },
    Attempt {
        row: Some("open the profile, the broker's store in it, or another profile"),
        calls: &[
            ("profile", EACCES, Some(DONE)),
            ("broker's store", EACCES, Some(DONE)),
            ("file of another profile", EACCES, Some(DONE)),
        ],
    },
    Attempt {
        row: Some("open another user's files, or the system's"),
        calls: &[
            ("file of another user", EACCES, None),
            ("/etc/passwd", EACCES, Some(DONE)),
            ("/etc", EACCES, Some(DONE)),
            ("passwd through /proc", EACCES, Some(DONE)),
        ],
    },
    Attempt {
        row: Some("open a device, as the TPM's is one, or list the devices"),
        calls: &[
            ("a device", EACCES, Some(DONE)),
            ("devices", EACCES, Some(DONE)),
        ],
    },
    Attempt {
        row: Some("find out whether a file exists, its size and times"),
        calls: &[("see whether a file is there", DONE, Some(DONE))],
    },
    Attempt {
        row: None,
        calls: &[
            ("a font", DONE, Some(DONE)),
            ("time zones", DONE, Some(DONE)),
            ("its own memory map", DONE, Some(DONE)),
            ("getpid", DONE, Some(DONE)),
        ],
    },
    Attempt {
        row: Some("write, make, change or delete a file or a folder, anywhere"),
        calls: &[
            ("write", EPERM, Some(DONE)),
            ("unlink", EPERM, Some(DONE)),
            ("mkdir", EPERM, Some(DONE)),
            ("rmdir", EPERM, Some(DONE)),
            ("symlink", EPERM, Some(DONE)),
            ("unlink the link", EPERM, Some(DONE)),
            ("chmod", EPERM, Some(DONE)),
            ("truncate", EPERM, Some(DONE)),
        ],
    },
    Attempt {
        row: Some("connect to pcscd's socket, to D-Bus or to any other, or make one"),
        calls: &[
            ("socket local", EPERM, Some(DONE)),
            ("socketpair datagram", EPERM, Some(DONE)),
            ("connect", EPERM, Some(DONE)),
            ("bind", EPERM, None),
            ("listen", EPERM, None),
        ],
    },
    Attempt {
        row: Some("use the network by itself: TCP, UDP, netlink"),
        calls: &[
            ("socket TCP", EPERM, Some(DONE)),
            ("socket UDP", EPERM, Some(DONE)),
            ("socket UDP 6", EPERM, None),
            ("socket netlink", EPERM, Some(DONE)),
        ],
    },
    Attempt {
        row: Some("read or write the memory of another process, through `/proc` too, or trace it"),
        calls: &[
            ("memory of another process", EACCES, Some(DONE)),
            ("memory of the main process", EACCES, None),
            ("ptrace", EPERM, Some(DONE)),
            ("process_vm_readv", EPERM, None),
            ("process_vm_readv from the main process", EPERM, None),
            ("process_vm_writev", EPERM, None),
            ("pidfd_open", EPERM, Some(DONE)),
            ("prlimit", EPERM, Some(DONE)),
        ],
    },
    Attempt {
        row: Some("signal the main process, another program, or a thread of one"),
        calls: &[
            ("kill", EPERM, Some(DONE)),
            ("kill the main process", EPERM, Some(DONE)),
            ("kill all of its own", EPERM, Some(DONE)),
            ("tgkill", EPERM, Some(DONE)),
            ("fcntl F_SETOWN", EPERM, None),
        ],
    },
    Attempt {
        row: Some("start a process or a program, from memory too"),
        calls: &[
            ("fork", EPERM, Some(DONE)),
            ("execve", EPERM, None),
            ("execveat", EPERM, None),
            ("execveat from memory", EPERM, None),
            ("clone3", ENOSYS, None),
        ],
    },
    Attempt {
        row: Some("mount, change the root folder, or make or enter namespaces"),
        calls: &[
            ("unshare", EPERM, Some(DONE)),
            ("setns", EPERM, None),
            ("mount", EPERM, None),
            ("chroot", EPERM, None),
            ("open_by_handle_at", EPERM, None),
        ],
    },
    Attempt {
        row: Some("use `io_uring`, BPF, userfaultfd, perf events, or the kernel's keys"),
        calls: &[
            ("bpf", EPERM, None),
            ("io_uring_setup", EPERM, None),
            ("userfaultfd", EPERM, None),
            ("perf_event_open", EPERM, None),
            ("keyctl", EPERM, None),
        ],
    },
    Attempt {
        row: Some("type on the user's terminal (`TIOCSTI`)"),
        calls: &[("ioctl TIOCSTI", EPERM, None)],
    },
    Attempt {
        row: Some("loosen its own limits, or outlive the main process"),
        calls: &[
            ("prctl dumpable", EPERM, Some(DONE)),
            ("prctl pdeathsig", EPERM, Some(DONE)),
            ("setrlimit", EPERM, None),
            ("sched_setaffinity", EPERM, None),
        ],
    },
];

/// A process of the user, ended when dropped.
struct Victim(Child);

impl Victim {
    fn start(user: Option<u32>) -> Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("600");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the file is that stands for the devices: the TPM's, if there is one.
fn device() -> &'static str {
    ["/dev/tpmrm0", "/dev/null"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("/dev/null")
}

/// The program and what it starts, where every user can run it.
fn copy_of_programs(to: &Path) -> Result {
    let shell = std::env::var_os("SERVO_TOKENS_SHELL").ok_or("no SERVO_TOKENS_SHELL")?;
    for name in ["hostile-shell", "token-broker"] {
        let from = Path::new(&shell).with_file_name(name);
        fs::copy(from, to.join(name))?;
    }
    Ok(())
}

/// What came of the calls, by their names, and what `/proc` says of the process. The browser is that user's.
fn outcomes(sandbox: bool, user: Option<u32>) -> Result<(BTreeMap<String, String>, String)> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["home/.ssh", "profile", "other-profile", "another-user"] {
        fs::create_dir_all(at(name))?;
    }
    fs::set_permissions(at("profile"), fs::Permissions::from_mode(0o700))?;
    for name in [
        "home/.ssh/id_ed25519",
        "other-profile/cookies",
        "another-user/file",
    ] {
        fs::write(at(name), "secret")?;
    }
    if let Some(user) = user {
        for name in ["", "home", "home/.ssh", "home/.ssh/id_ed25519", "profile"] {
            chown(at(name), Some(user), Some(user))?;
        }
        chown(at("other-profile/cookies"), Some(user), Some(user))?;
    } else if geteuid().is_root() {
        chown(at("another-user/file"), Some(NOBODY), Some(NOBODY))?;
    }
    fs::set_permissions(at("another-user/file"), fs::Permissions::from_mode(0o600))?;
    let _service = UnixListener::bind(at("service"))?;
    fs::set_permissions(at("service"), fs::Permissions::from_mode(0o666))?;
    let victim = Victim::start(user)?;
    let font = super::ordinary::font()?;
    let targets = [
        ("key in ~/.ssh", at("home/.ssh/id_ed25519")),
        ("profile", at("profile")),
        ("broker's store", at("profile/tokens")),
        ("file of another profile", at("other-profile/cookies")),
        ("file of another user", at("another-user/file")),
        ("/etc/passwd", "/etc/passwd".into()),
        ("/etc", "/etc".into()),
        (
            "memory of another process",
            format!("/proc/{}/mem", victim.0.id()),
        ),
        ("passwd through /proc", "/proc/self/root/etc/passwd".into()),
        ("a device", device().into()),
        ("devices", "/dev".into()),
        ("a font", font.display().to_string()),
        ("time zones", "/usr/share/zoneinfo/Europe/Zurich".into()),
        ("its own memory map", "/proc/self/maps".into()),
        ("write", at("written")),
        ("socket", at("service")),
        ("victim", victim.0.id().to_string()),
    ];
    let options = Options {
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
        user,
        ..Options::default()
    };
    let programs = tempfile::tempdir()?;
    let browser = if user.is_some() {
        copy_of_programs(programs.path())?;
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755))?;
        let server = Server::builder().start()?;
        let shell = Shell::start_binary(&programs.path().join("hostile-shell"), &server, &options)?;
        Browser::on(server, shell)?
    } else {
        Browser::start(&options)?
    };
    // So that the broker's store is there.
    browser.grant()?;
    browser.evaluate(
        "navigator.secureElementManager.getReaders().then(readers => readers.length)",
    )??;
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

/// What came of the calls of an attempt, in words.
fn in_words(seen: &[&str]) -> Result<String> {
    if seen.iter().all(|outcome| *outcome == DONE) {
        return Ok("possible".into());
    }
    let mut errors = Vec::new();
    for outcome in seen {
        let error = match *outcome {
            EACCES => "`EACCES`, by Landlock",
            EPERM => "`EPERM`, by seccomp",
            ENOSYS => "`ENOSYS`, by seccomp",
            other => return Err(other.into()),
        };
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    Ok(format!("refused ({})", errors.join("; ")))
}

#[test]
fn attempts_fail_in_the_sandbox() -> Result {
    // As root, the system itself stands in nobody's way. An ordinary user has less that could be taken away.
    let users = if geteuid().is_root() {
        vec![None, Some(NOBODY)]
    } else {
        vec![None]
    };
    for user in users {
        let (with, status) = outcomes(true, user)?;
        for attempt in ATTEMPTS {
            let mut seen = Vec::new();
            for (name, expected, _) in attempt.calls {
                let outcome = with.get(*name).ok_or(format!("{name} was not tried"))?;
                assert_eq!(outcome, expected, "{name} as {user:?}");
                seen.push(outcome.as_str());
            }
            if let Some(row) = attempt.row {
                threat_model::outcome("content process", row, &in_words(&seen)?);
            }
        }
        // All of its threads, as far as `/proc` tells.
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line:?} is not in {status}");
        }
        let uid = user.unwrap_or(geteuid().as_raw());
        assert!(status.contains(&format!("Uid:\t{uid}\t")), "{status}");
    }
    Ok(())
}

/// Else the other test would show nothing.
#[test]
fn attempts_succeed_without_the_sandbox() -> Result {
    let (without, status) = outcomes(false, None)?;
    for (name, _, expected) in ATTEMPTS.iter().flat_map(|attempt| attempt.calls) {
        let outcome = without.get(*name).ok_or(format!("{name} was not tried"))?;
        if let Some(expected) = expected {
            assert_eq!(outcome, expected, "{name}");
        }
    }
    assert!(status.contains("Seccomp:\t0"), "{status}");
    Ok(())
}
