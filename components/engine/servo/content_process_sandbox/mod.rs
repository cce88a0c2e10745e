/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The sandbox of content processes on Linux: Landlock for files, seccomp for system calls.
//!
//! Assume that a page runs machine code of its own in its content process. [`table`] is what it can still do.

pub(crate) mod table;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::{env, error, fmt, fs, io, mem, process};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use self::table::{Argument, Call, Place};

/// The newest version of Landlock whose restrictions are known here. What an older kernel lacks of them is forbidden by
/// the filter of system calls too.
const NEWEST_LANDLOCK: ABI = ABI::V6;

/// Why there is no sandbox.
#[derive(Debug)]
pub(crate) struct SandboxError {
    step: &'static str,
    reason: String,
}

impl fmt::Display for SandboxError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "a content process cannot enter its sandbox ({}: {}). It takes Linux 5.13 or newer, with Landlock turned on, \
             and seccomp. The preference dom_content_process_sandbox_enabled turns the sandbox off",
            self.step, self.reason
        )
    }
}

impl error::Error for SandboxError {}

/// For `map_err`: says which step failed.
fn failed<E: fmt::Display>(step: &'static str) -> impl Fn(E) -> SandboxError {
    move |error| SandboxError {
        step,
        reason: error.to_string(),
    }
}

/// A step into the sandbox.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    StandardInput,
    CoreFile,
    NotDumpable,
    Landlock,
    Seccomp,
}

/// In this order: the filter of system calls does not allow the other steps.
pub(crate) const STEPS: [Step; 5] = [
    Step::StandardInput,
    Step::CoreFile,
    Step::NotDumpable,
    Step::Landlock,
    Step::Seccomp,
];

impl Step {
    fn take(self) -> Result<(), SandboxError> {
        match self {
            Self::StandardInput => forget_standard_input().map_err(failed("/dev/null")),
            Self::CoreFile => leave_no_core_file().map_err(failed("RLIMIT_CORE")),
            Self::NotDumpable => forbid_tracing().map_err(failed("PR_SET_DUMPABLE")),
            // These two also see to it that no program gives the process more rights (`PR_SET_NO_NEW_PRIVS`).
            Self::Landlock => restrict_files().map_err(failed("Landlock")),
            Self::Seccomp => filter_calls().map_err(failed("seccomp")),
        }
    }
}

/// Gives up what a content process does not need, for good, by [`STEPS`].
///
/// Landlock restricts the thread that asks for it and those that it starts later. So this is called while there is one
/// thread, and fails where there are more.
pub(crate) fn enter(steps: &[Step]) -> Result<(), SandboxError> {
    let threads = threads().map_err(failed("/proc"))?;
    if threads != 1 {
        return Err(failed("threads")(format!("{threads} run already")));
    }
    steps.iter().try_for_each(|step| step.take())
}

fn threads() -> io::Result<u64> {
    // The folder has a link for itself, one for its parent, and one for each thread.
    let links = fs::metadata("/proc/self/task")?.nlink();
    Ok(links.saturating_sub(2))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// It may be the user's terminal.
fn forget_standard_input() -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let nothing = fs::File::open("/dev/null")?;
    // SAFETY: nothing owns standard input, which stays open.
    check(unsafe { libc::dup2(nothing.as_raw_fd(), libc::STDIN_FILENO) })
}

/// It would have the page's data in it.
fn leave_no_core_file() -> io::Result<()> {
    let nothing = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a value that outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &nothing) })
}

/// Nobody of the same user traces the process or reads its memory.
fn forbid_tracing() -> io::Result<()> {
    const NO: libc::c_ulong = 0;
    // SAFETY: the option takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, NO, NO, NO, NO) })
}

fn restrict_files() -> Result<(), landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST_LANDLOCK))?
        .handle_access(AccessNet::from_all(NEWEST_LANDLOCK))?
        .scope(Scope::from_all(NEWEST_LANDLOCK))?
        .create()?;
    let places = table::READ.iter().flat_map(|files| files.places);
    for place in places.filter_map(path) {
        // A place that is not there has nothing to read.
        if let Ok(place) = PathFd::new(place) {
            rules = rules.add_rule(PathBeneath::new(&place, AccessFs::ReadFile))?;
            // A rule is about an inode. In /proc, the kernel makes a new one for a file that nobody has open.
            mem::forget(place);
        }
    }
    rules.restrict_self()?;
    Ok(())
}

fn path(place: &Place) -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(PathBuf::from);
    match place {
        Place::Path(path) => Some(PathBuf::from(path)),
        Place::InHome(path) => Some(home()?.join(path)),
        Place::InUserData(path) => env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
            .or_else(|| Some(home()?.join(".local/share")))
            .map(|folder| folder.join(path)),
        Place::Program => env::current_exe().ok(),
    }
}

fn filter_calls() -> Result<(), seccompiler::Error> {
    // Every filter is asked, and the harshest answer counts. So the one lets through what the other refuses with an
    // error of its own.
    let allowed = table::GROUPS.iter().flat_map(|group| group.calls);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let allow_list = program(
        allowed.chain(table::NOT_IMPLEMENTED),
        SeccompAction::Allow,
        refused,
    )?;
    let not_implemented = SeccompAction::Errno(libc::ENOSYS as u32);
    let exceptions = program(
        table::NOT_IMPLEMENTED.iter(),
        not_implemented,
        SeccompAction::Allow,
    )?;
    // In this order: the allow-list does not allow to install another filter.
    seccompiler::apply_filter(&exceptions)?;
    seccompiler::apply_filter(&allow_list)
}

/// A filter that does `hit` with these calls, and `miss` with all others. It ends a process that makes a call of another
/// architecture, as 32-bit programs do.
fn program<'a>(
    calls: impl Iterator<Item = &'a Call>,
    hit: SeccompAction,
    miss: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for call in calls {
        // One without conditions stays an empty list, which stands for any arguments.
        let alternatives = rules.entry(call.number).or_default();
        for arguments in call.with {
            let conditions = arguments.iter().map(condition).collect::<Result<_, _>>()?;
            alternatives.push(SeccompRule::new(conditions)?);
        }
    }
    let architecture: TargetArch = env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, miss, hit, architecture)?.try_into()?)
}

fn condition(argument: &Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let (index, length, operator, value) = match *argument {
        Argument::Is(index, value) => (index, Dword, Eq, value),
        Argument::Only(index, bits) => (index, Dword, MaskedEq((!bits).into()), 0),
        Argument::IsNull(index) => (index, Qword, Eq, 0),
        Argument::IsOwnProcess(index) => (index, Dword, Eq, process::id()),
    };
    SeccompCondition::new(index, length, operator, value.into())
}
