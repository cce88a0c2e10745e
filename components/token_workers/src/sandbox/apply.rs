/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Puts a profile into force.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::table::{self, Argument, Call, Files};
use super::{Kind, SandboxError, kernel};

/// The newest version of Landlock whose restrictions are known here. Where the kernel has an older one, those that it
/// lacks are left out: the filter of system calls forbids the same. `docs/sandbox.md` says which.
const NEWEST_LANDLOCK: ABI = ABI::V6;

/// What a process keeps.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The system calls.
    pub calls: Vec<Call>,
    /// What it keeps only until its last thread runs, or its module is loaded.
    pub start: Vec<Call>,
    /// System calls that fail with an error number.
    pub failing: Vec<(Call, i32)>,
    /// The files that it may open.
    pub files: Vec<Files>,
    /// The TCP port to which it may connect.
    pub port: Option<u16>,
    /// How much of the machine it may take.
    pub limits: Vec<(Resource, u64)>,
    /// The newest version of Landlock that is used.
    pub landlock: ABI,
}

/// The steps of a lock-down, in their order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Resource limits.
    Limits,
    /// Nobody of the same user traces the process or reads its memory, and it leaves no core file.
    NotDumpable,
    /// No program that it starts has more rights than it has itself. The kernel wants this before the next two.
    NoNewPrivileges,
    /// Files, and what else Landlock governs.
    Landlock,
    /// System calls.
    SystemCalls,
    /// Those that are not needed any more when all threads run: [`super::no_more_threads`], [`super::no_more_code`].
    NoMoreThreads,
}

impl Step {
    /// Those before any other thread runs.
    pub const LOCK_DOWN: [Self; 5] = [
        Self::Limits,
        Self::NotDumpable,
        Self::NoNewPrivileges,
        Self::Landlock,
        Self::SystemCalls,
    ];
}

impl Profile {
    /// That of a kind of process.
    pub fn of(kind: Kind<'_>) -> Self {
        let groups = table::groups(kind);
        Self {
            calls: groups
                .iter()
                .flat_map(|group| group.calls.iter().copied())
                .collect(),
            start: table::given_up(kind),
            failing: table::failing(kind),
            files: table::files(kind),
            port: table::port(kind),
            limits: table::limits(kind),
            landlock: NEWEST_LANDLOCK,
        }
    }

    /// Takes one step of a lock-down.
    ///
    /// # Errors
    /// If it fails.
    pub fn apply(&self, step: Step) -> Result<(), SandboxError> {
        match step {
            Step::Limits => self.limit(),
            Step::NotDumpable => {
                rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
                    .map_err(|error| SandboxError::Step("PR_SET_DUMPABLE", error.into()))
            }
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true)
                .map_err(|error| SandboxError::Step("PR_SET_NO_NEW_PRIVS", error.into())),
            Step::Landlock => self.restrict_files(),
            Step::SystemCalls => self.filter_calls(),
            Step::NoMoreThreads => give_up(&self.start),
        }
    }

    fn limit(&self) -> Result<(), SandboxError> {
        let failed = |error| SandboxError::Step("setrlimit", error);
        for (resource, value) in &self.limits {
            if *resource == Resource::Fsize {
                kernel::ignore_file_size_signal().map_err(failed)?;
            }
            let most = getrlimit(*resource).maximum.unwrap_or(u64::MAX);
            let value = Some(most.min(*value));
            let limit = Rlimit {
                current: value,
                maximum: value,
            };
            setrlimit(*resource, limit).map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }

    fn restrict_files(&self) -> Result<(), SandboxError> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(self.landlock))?;
        // The first versions have neither of these.
        let network = AccessNet::from_all(self.landlock);
        if !network.is_empty() {
            rules = rules.handle_access(network)?;
        }
        let scopes = Scope::from_all(self.landlock);
        if !scopes.is_empty() {
            rules = rules.scope(scopes)?;
        }
        let mut rules = rules.create()?;
        if let Some(port) = self.port
            && network.contains(AccessNet::ConnectTcp)
        {
            rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
        for files in &self.files {
            // A place that is not there cannot be used, which is nobody's harm but the process's own.
            match PathFd::new(&files.place) {
                Ok(place) => {
                    let rights = files.rights & AccessFs::from_all(self.landlock);
                    rules = rules.add_rule(PathBeneath::new(place, rights))?;
                }
                Err(error) => log::warn!("{}: {error}", files.place.display()),
            }
        }
        rules.restrict_self()?;
        Ok(())
    }

    /// The kernel takes the harshest of what all filters say, so each error number has a filter of its own, and the last
    /// one says what is allowed at all.
    fn filter_calls(&self) -> Result<(), SandboxError> {
        let mut numbers: Vec<i32> = self.failing.iter().map(|(_, number)| *number).collect();
        // Of two errors the kernel takes that of the last filter, and 0 is the exception from another.
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        numbers.dedup();
        for number in numbers {
            let failing = self.failing.iter().filter(|(_, other)| *other == number);
            let action = SeccompAction::Errno(number.unsigned_abs());
            let filter = program(
                failing.clone().map(|(call, _)| call),
                action,
                SeccompAction::Allow,
            )?;
            seccompiler::apply_filter(&filter)?;
        }
        let failing = self.failing.iter().map(|(call, _)| call);
        let filter = program(
            self.calls.iter().chain(failing),
            SeccompAction::Allow,
            SeccompAction::KillProcess,
        )?;
        Ok(seccompiler::apply_filter(&filter)?)
    }
}

/// Forbids these calls, in all threads.
pub(super) fn give_up(calls: &[Call]) -> Result<(), SandboxError> {
    let filter = program(
        calls.iter(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
    )?;
    Ok(seccompiler::apply_filter_all_threads(&filter)?)
}

/// A filter that does `hit` with these calls, and `miss` with all others.
fn program<'a>(
    calls: impl Iterator<Item = &'a Call>,
    hit: SeccompAction,
    miss: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    let mut unconditional = Vec::new();
    for call in calls {
        let alternatives = rules.entry(call.number).or_default();
        if call.with.is_empty() {
            unconditional.push(call.number);
        }
        for arguments in call.with {
            let conditions = arguments.iter().map(|argument| condition(*argument));
            alternatives.push(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?);
        }
    }
    // A call that is allowed without conditions anywhere is.
    for number in unconditional {
        rules.insert(number, Vec::new());
    }
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, miss, hit, architecture)?.try_into()?)
}

fn condition(argument: Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let (index, length, operator, value) = match argument {
        Argument::Is(index, value) => (index, Dword, Eq, value),
        Argument::Only(index, bits) => (index, Dword, MaskedEq((!bits).into()), 0),
        Argument::Without(index, bits) => (index, Dword, MaskedEq(bits.into()), 0),
        Argument::Has(index, bits) => (index, Dword, MaskedEq(bits.into()), bits),
        Argument::IsNull(index) => (index, Qword, Eq, 0),
        Argument::IsOwnProcess(index) => (index, Dword, Eq, std::process::id()),
    };
    SeccompCondition::new(index, length, operator, value.into())
}
