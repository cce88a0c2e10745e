/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What no attempt shows: steps that a later one would take by itself, and other threads.

use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc;
use std::thread;

use libtest_mimic::Failed;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use token_traits::control::ModuleConfig;
use token_workers::sandbox::{self, Kind, Profile, SandboxError, Step};

use crate::attempts::{Outcome, call};
use crate::{LIMIT, in_child, probe, say};

fn option(option: i32) -> Result<u64, i32> {
    crate::attempts::result(libc::SYS_prctl, [option as u64, 0, 0, 0])
}

/// What each step changes by itself, and that those are taken which others would take as well.
pub fn wrong() -> Vec<String> {
    let profile = Profile::of(Kind::VirtualCard);
    let mut wrong = Vec::new();
    let mut expect = |name: &str, steps: &[Step], option_of: i32, value: u64| {
        let seen = in_child(|| {
            for step in steps {
                profile.apply(*step)?;
            }
            Ok(match option(option_of) {
                Ok(seen) if seen == value => Ok(()),
                Ok(_) => Err(libc::EINVAL),
                Err(number) => Err(number),
            })
        });
        if seen != Ok(Outcome::Done) {
            wrong.push(format!("{name}: {seen:?}"));
        }
    };
    expect("nothing", &[], libc::PR_GET_NO_NEW_PRIVS, 0);
    expect("nothing", &[], libc::PR_GET_DUMPABLE, 1);
    expect(
        "no new privileges",
        &[Step::NoNewPrivileges],
        libc::PR_GET_NO_NEW_PRIVS,
        1,
    );
    expect(
        "not dumpable",
        &[Step::NotDumpable],
        libc::PR_GET_DUMPABLE,
        0,
    );
    // The crates for the steps after it set this one too.
    let first: Vec<Step> = Step::LOCK_DOWN
        .into_iter()
        .take_while(|step| !matches!(step, Step::Landlock | Step::SystemCalls))
        .collect();
    expect("the first steps", &first, libc::PR_GET_NO_NEW_PRIVS, 1);
    // The tests of attempts take it in place of `sandbox::no_more_threads`.
    let seen = in_child(|| {
        // Without it the end leaves a core file.
        profile.apply(Step::Limits)?;
        profile.apply(Step::NoMoreThreads)?;
        Ok(call(libc::SYS_seccomp, [1, 1, 0, 0]))
    });
    if seen != Ok(Outcome::Killed) {
        wrong.push(format!("the last filter: {seen:?}"));
    }
    // It is not left out where the kernel has none of it.
    let seen = in_child(|| {
        without_landlock()?;
        Ok(match profile.apply(Step::Landlock) {
            Err(SandboxError::Landlock(_)) => Ok(()),
            _ => Err(libc::EINVAL),
        })
    });
    if seen != Ok(Outcome::Done) {
        wrong.push(format!("a kernel without Landlock: {seen:?}"));
    }
    wrong
}

/// As on a kernel that has none.
fn without_landlock() -> Result<(), SandboxError> {
    let calls = [(libc::SYS_landlock_create_ruleset, Vec::new())];
    let filter = SeccompFilter::new(
        calls.into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        std::env::consts::ARCH
            .try_into()
            .map_err(seccompiler::Error::from)?,
    );
    let filter: BpfProgram = filter
        .and_then(TryInto::try_into)
        .map_err(seccompiler::Error::from)?;
    Ok(seccompiler::apply_filter(&filter)?)
}

/// What a thread does, and is ended for with its whole process.
pub const IN_A_THREAD: [&str; 3] = [
    "makes a system call that is not in the table",
    "makes memory executable when the module is loaded",
    "was there before the last one ran, and starts another",
];

/// Does one of these in a thread, and says so if that is not the end of this process.
pub fn in_a_thread(what: &str) -> ! {
    // SAFETY: a signal that ends the process.
    unsafe { libc::alarm(LIMIT) };
    let module = ModuleConfig::default();
    let [first, second, third] = IN_A_THREAD;
    let kind = match what {
        _ if what == third => Kind::VirtualCard,
        _ => Kind::Module(&module),
    };
    sandbox::lock_down(kind).expect("a sandbox");
    let (go, wait) = mpsc::channel::<()>();
    let what = what.to_owned();
    let thread = thread::spawn(move || {
        let _ = wait.recv();
        let _ = match what {
            _ if what == first => call(libc::SYS_ptrace, [0; 4]),
            _ if what == second => call(libc::SYS_mprotect, [0, 0, libc::PROT_EXEC as u64, 0]),
            _ => call(libc::SYS_seccomp, [1, 1, 0, 0]),
        };
    });
    let filtered = match kind {
        Kind::Module(_) => sandbox::no_more_code(),
        _ => sandbox::no_more_threads(),
    };
    filtered.expect("a filter");
    say("locked ");
    let _ = go.send(());
    let _ = thread.join();
    say("alive");
    // SAFETY: nothing is left to be done.
    unsafe { libc::_exit(0) }
}

pub fn a_thread_ends_the_process(what: &str) -> Result<(), Failed> {
    let output = probe(&["thread".as_ref(), what.as_ref()]);
    if output.status.signal() == Some(libc::SIGSYS) && output.stdout == b"locked " {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {text} {errors}", output.status).into())
}
