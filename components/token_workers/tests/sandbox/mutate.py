#!/usr/bin/env python3
# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Takes the rules of the sandboxes of token processes away, one at a time, loosens them, and expects the tests to notice.

    python3 components/token_workers/tests/sandbox/mutate.py [WORD]

tries all changes, or those with WORD in their name, in a copy. It ends with status 1 where a change went unnoticed. The
comparison with the documentation, which would notice any, does not count.

What a kernel lacks is for `token_broker --test sandbox`, which has the whole program.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "tests"))
from sandbox_changes import changes_of_calls, end_of, try_changes, without, workspace

CRATE = "components/token_workers"
MODULE = f"{CRATE}/src/sandbox"
NEEDED = "landlock libc log rustix seccompiler thiserror token_traits libtest-mimic tempfile threat_model".split()
GROUPS = "PEERS STORE SERVICE MODULE SOFTWARE_TPM LOADING".split()
RIGHTS = (
    "Execute WriteFile ReadFile ReadDir RemoveDir RemoveFile MakeChar MakeDir MakeReg MakeSock MakeFifo MakeBlock MakeSym "
    "Refer Truncate IoctlDev"
).split()


def replaced(text, start, end, new):
    return text[:start] + new + text[end:]


def changes_of_arguments(text):
    for name in re.findall(r"libc::(CLONE_\w+)", text[text.index("const THREAD:") : text.index("pub const START")]):
        if name != "CLONE_DETACHED":
            flag = rf"(\| )?libc::{name}\b(\s*\|)?"
            yield f"threads without {name}", re.sub(flag, lambda match: match[1] and match[2] or "", text, count=1)
    for old, new in [
        ("| libc::CLONE_CHILD_CLEARTID)", "| libc::CLONE_CHILD_CLEARTID | libc::CLONE_NEWUSER)"),
        ("(libc::O_NONBLOCK | libc::O_RDWR)", "libc::O_NONBLOCK"),
        ("(libc::O_NONBLOCK | libc::O_RDWR)", "libc::O_RDWR"),
        ("(libc::O_NONBLOCK | libc::O_RDWR)", "(libc::O_NONBLOCK | libc::O_RDWR | libc::O_APPEND)"),
        ("(libc::O_NONBLOCK | libc::O_RDWR)", "(libc::O_NONBLOCK | libc::O_RDWR | libc::O_ASYNC)"),
        ("Is(1, (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC)", "Is(1, (libc::SOCK_SEQPACKET)"),
        ("Is(1, (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC)", "Only(1, (7 | libc::SOCK_CLOEXEC)"),
        ("(libc::SOCK_STREAM | libc::SOCK_CLOEXEC)", "(3 | libc::SOCK_CLOEXEC)"),
        ("(libc::SOCK_STREAM | libc::SOCK_CLOEXEC)", "(libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)"),
        ("(libc::SOCK_STREAM | libc::SOCK_CLOEXEC)", "libc::SOCK_STREAM"),
        ("0o600", "0o666"),
        ("SYS_mmap, \"not executable\": [Without(2, libc::PROT_EXEC", "SYS_mmap, \"not executable\": [Without(2, libc::PROT_WRITE"),
    ]:
        yield f"{old} becomes {new}", text.replace(old, new, 1)
    for name in "SYS_sysinfo SYS_getppid SYS_kill SYS_ptrace SYS_socket SYS_execve SYS_statx SYS_membarrier".split():
        yield f"{name} for all", text.replace("call!(SYS_close),", f"call!(SYS_close), call!({name}),")


def changes_of_groups(text):
    common = re.search(r"const COMMON: \[Group; 7\] = \[(.*?)\];", text, re.S)
    for group in re.findall(r"[A-Z_]+", common[1]):
        fewer = re.sub(rf"\b{group},?", "", common[1], count=1)
        yield f"nobody has {group}", replaced(text, *common.span(), f"const COMMON: [Group; 6] = [{fewer}];")
    start = text.index("let own: &[Group] = match kind")
    end = text.index("};", start)
    for match in re.finditer(r"\n\s*(Kind::[^\n]*?) => &\[([A-Z_, ]*)\]", text[start:end]):
        kind, own = match[1], [name for name in match[2].split(", ") if name]
        first, last = start + match.start(2), start + match.end(2)
        for group in own:
            rest = ", ".join(name for name in own if name != group)
            yield f"{kind} has no {group}", replaced(text, first, last, rest)
        for group in GROUPS:
            # Others have its one call.
            has_it = group in own or (group == "SERVICE" and ("PEERS" in own or "MODULE" in own))
            if not has_it:
                yield f"{kind} has {group}", replaced(text, first, last, ", ".join([*own, group]))


def changes_of_failing(text):
    for match in re.finditer(r"\(\s*call!\((SYS_\w+)", text):
        start, end = match.start(), end_of(text, match.start(), "()")
        name = f"{match[1]} in line {text.count(chr(10), 0, start) + 1}"
        yield f"{name} does not fail", without(text, start, end)
        number = re.search(r"(libc::E\w+|\b0),?\s*\)$", text[start:end])
        other = "libc::EPERM" if number[1] != "libc::EPERM" else "libc::EACCES"
        yield f"{name} fails with {other}", replaced(text, start + number.start(1), start + number.end(1), other)
    for old, new in [
        ("[FAILING, FAILING_OF_MODULES].concat()", "FAILING.to_vec()"),
        ("[FAILING, FAILING_OF_MODULES].concat()", "FAILING_OF_MODULES.to_vec()"),
        ("[FAILING, FAILING_OF_MODULES, PRETENDED].concat()", "[FAILING, FAILING_OF_MODULES].concat()"),
        ("Kind::Module(_) => [FAILING, FAILING_OF_MODULES].concat()", "Kind::Module(_) => [FAILING, PRETENDED].concat()"),
        ("_ => FAILING.to_vec()", "_ => [FAILING, FAILING_OF_MODULES].concat()"),
        ("Kind::Module(_) => LOADED.to_vec()", "Kind::Module(_) => Vec::new()"),
        ("_ => all_of(START.calls)", "_ => Vec::new()"),
        ("with: &[], ..*call", "..*call"),
    ]:
        yield f"{old} becomes {new}", text.replace(old, new)


def changes_of_files(text):
    begin = text.index("pub fn files(kind")
    end = text.index("const MIB")
    # Each list of rights, with the words before it.
    for match in re.finditer(r"AccessFs::\w+(?:\s*\|\s*AccessFs::\w+)*(\.into\(\))?", text[begin:end]):
        if "BitFlags<" in text[begin + match.start() - 12 : begin + match.start()]:
            continue
        rights = re.findall(r"AccessFs::(\w+)", match[0])
        first, last = begin + match.start(), begin + match.end()
        line = text.count("\n", 0, first) + 1
        for right in RIGHTS:
            # Landlock takes no other rights for a file. There is none to control one of the kernel's random numbers.
            if "/dev/urandom" in text[first - 80 : first] and right not in ["Execute", "WriteFile", "ReadFile", "Truncate"]:
                continue
            # What a file has no use for is only taken away from it.
            if "let of_file =" in text[first - 40 : first] and right not in rights:
                continue
            # Moving takes the rights to delete here and to make there besides, and both places need this one.
            if right == "Refer" and "MakeReg" not in rights:
                continue
            others = [name for name in rights if name != right]
            if right not in rights:
                others.append(right)
            words = "without" if right in rights else "with"
            new = "AccessFs::" + " | AccessFs::".join(others) if others else "BitFlags::<AccessFs>::empty()"
            if len(others) == 1:
                new += ".into()"
            yield f"files in line {line} {words} {right}", replaced(text, first, last, new)
    for match in re.finditer(r"(LIBRARIES|SETTINGS): \[&str; (\d)\] = \[(.*?)\];", text, re.S):
        places = re.findall(r'"[^"]*"', match[3])
        for changed, what in [([one for one in places if one != place], f"no {place}") for place in places] + [
            ([*places, '"/etc"'], "all of /etc"),
            ([*places, '"/home"'], "all of /home"),
        ]:
            new = f"{match[1]}: [&str; {len(changed)}] = [{', '.join(changed)}];"
            yield f"{what} in {match[1]}", replaced(text, *match.span(), new)
    for old, new in [
        ("place: store.to_owned()", 'place: "/".into()'),
        ("place: store.to_owned()", 'place: "/nowhere".into()'),
        ('place: "/dev/urandom".into()', 'place: "/nowhere".into()'),
        ('place: "/dev/urandom".into()', 'place: "/dev".into()'),
        (".chain([module.module.as_str()])", ""),
        (".chain(module.read.iter().map(String::as_str))", ""),
        (".chain(to_write.map(|place| files(place, write)))", ""),
        ("files(place, read))", "files(place, write))"),
        ("Kind::Module(module) => files_of_module(module)", "Kind::Module(_) => Vec::new()"),
        ("Kind::Tpm { port } => port,", ""),
        ("_ => None,", "_ => Some(1),"),
    ]:
        yield f"{old} becomes {new or 'nothing'}", text.replace(old, new)
    files = 'vec![Files { place: "/".into(), rights: AccessFs::ReadFile.into() }]'
    for kind in ["Kind::Broker { store: None }", "Kind::PcscReader", "Kind::PcscMonitor", "Kind::VirtualCard", "Kind::Tpm { port: None }", "Kind::Tpm { port: Some(_) }"]:
        yield f"{kind} reads files", text.replace("Kind::Module(module) => files_of", f"{kind} => {files},\n        Kind::Module(module) => files_of", 1)


def changes_of_limits(text):
    begin = text.index("pub fn limits(kind")
    for match in re.finditer(r"\(Resource::(\w+), (\d+)( \* MIB)?\)", text[begin:]):
        first, last = begin + match.start(2), begin + match.end(2)
        line = text.count("\n", 0, first) + 1
        number = int(match[2])
        for other in {number + 1, max(number - 1, 0)} - {number}:
            yield f"{match[1]} {other} in line {line}", replaced(text, first, last, str(other))
        row = slice(begin + match.start(), begin + match.end())
        if not text[: row.start].endswith("push("):
            yield f"no limit {match[1]} in line {line}", without(text, row.start, row.stop)
    yield "all have files of any size", text.replace("if store.is_some() {", "if false {")
    yield "all have a limit of files", text.replace("if store.is_some() {", "if true {")


def changes_of_table(text):
    yield from changes_of_calls(text)
    yield from changes_of_arguments(text)
    yield from changes_of_groups(text)
    yield from changes_of_failing(text)
    yield from changes_of_files(text)
    yield from changes_of_limits(text)


def changes_of_steps(text):
    for old, new in [
        ("Step::Limits => self.limit()", "Step::Limits => Ok(())"),
        ("Step::Landlock => self.restrict_files()", "Step::Landlock => Ok(())"),
        ("Step::SystemCalls => self.filter_calls()", "Step::SystemCalls => Ok(())"),
        ("Step::NoMoreThreads => give_up(&self.start)", "Step::NoMoreThreads => Ok(())"),
        ("DumpableBehavior::NotDumpable", "DumpableBehavior::Dumpable"),
        ("set_no_new_privs(true)", "set_no_new_privs(false)"),
        ("NEWEST_LANDLOCK: ABI = ABI::V6", "NEWEST_LANDLOCK: ABI = ABI::V5"),
        ("NEWEST_LANDLOCK: ABI = ABI::V6", "NEWEST_LANDLOCK: ABI = ABI::V4"),
        ("NEWEST_LANDLOCK: ABI = ABI::V6", "NEWEST_LANDLOCK: ABI = ABI::V3"),
        ("NEWEST_LANDLOCK: ABI = ABI::V6", "NEWEST_LANDLOCK: ABI = ABI::V1"),
        ("if *resource == Resource::Fsize {", "if false {"),
        ("Some(most.min(*value))", "Some(*value + 0 * most)"),
        ("current: value", "current: getrlimit(*resource).current"),
        ("maximum: value", "maximum: getrlimit(*resource).maximum"),
        (".handle_access(AccessFs::from_all(ABI::V1))?", ""),
        (".handle_access(AccessFs::from_all(self.landlock))?", ""),
        ("if !network.is_empty() {", "if false {"),
        ("if !scopes.is_empty() {", "if false {"),
        ("rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?", "rules"),
        ("NetPort::new(port, AccessNet::ConnectTcp)", "NetPort::new(port, AccessNet::BindTcp)"),
        ("rules.add_rule(PathBeneath::new(place, rights))?", "{ let _ = (place, rights); rules }"),
        ("rules.restrict_self()?;", ""),
        ("            seccompiler::apply_filter(&filter)?;", ""),
        ("other.cmp(one)", "one.cmp(other)"),
        ("Ok(seccompiler::apply_filter(&filter)?)", "{ let _ = filter; Ok(()) }"),
        ("self.calls.iter().chain(failing)", "{ let _ = failing; self.calls.iter() }"),
        ("            SeccompAction::Allow,\n            SeccompAction::KillProcess,", "            SeccompAction::Allow,\n            SeccompAction::KillThread,"),
        ("            SeccompAction::Allow,\n            SeccompAction::KillProcess,", "            SeccompAction::Allow,\n            SeccompAction::Log,"),
        ("        SeccompAction::KillProcess,\n        SeccompAction::Allow,", "        SeccompAction::KillThread,\n        SeccompAction::Allow,"),
        ("Ok(seccompiler::apply_filter_all_threads(&filter)?)", "Ok(seccompiler::apply_filter(&filter)?)"),
        ("Ok(seccompiler::apply_filter_all_threads(&filter)?)", "{ let _ = filter; Ok(()) }"),
        ("rules.insert(number, Vec::new());", "let _ = number;"),
        ("Argument::Is(index, value) => (index, Dword,", "Argument::Is(index, value) => (index, Qword,"),
        ("MaskedEq((!bits).into()), 0)", "MaskedEq(bits.into()), 0)"),
        ("Argument::Only(index, bits) => (index, Dword,", "Argument::Only(index, bits) => (index, Qword,"),
        ("Argument::Without(index, bits) => (index, Dword, MaskedEq(bits.into()), 0)", "Argument::Without(index, bits) => (index, Dword, MaskedEq(0 * u64::from(bits)), 0)"),
        ("MaskedEq(bits.into()), bits)", "MaskedEq(bits.into()), 0)"),
        ("(index, Qword, Eq, 0)", "(index, Dword, Eq, 0)"),
        ("(index, Dword, Eq, std::process::id())", "(index, Qword, Eq, std::process::id())"),
        ("std::process::id())", "0)"),
    ]:
        yield f"{old} becomes {new or 'nothing'}", text.replace(old, new)
    begin = text.index("pub const LOCK_DOWN")
    end = text.index("];", begin) + 2
    for step in re.findall(r"Self::(\w+),", text[begin:end]):
        new = text[begin:end].replace(f"Self::{step},", "").replace("[Self; 5]", "[Self; 4]")
        yield f"lock_down without {step}", replaced(text, begin, end, new)


def changes_of_module(text):
    for old, new in [
        ("if threads != 1 {", "if false {"),
        ("profile.apply(step)?;", "let _ = (&profile, step);"),
        ("give_up(&table::all_of(table::START.calls))", "Ok(())"),
        ("give_up(&table::all_of(table::START.calls))", "give_up(table::START.calls)"),
        ("give_up(table::LOADED)", "Ok(())"),
        ("    apply::give_up(calls)", "    let _ = calls; Ok(())"),
    ]:
        yield f"{old} becomes {new}", text.replace(old, new)


def changes_of_kernel(text):
    for old, new in [
        ("saturating_sub(2)", "saturating_sub(1)"),
        ("libc::signal(libc::SIGXFSZ, libc::SIG_IGN)", "libc::signal(libc::SIGXFSZ, libc::SIG_DFL)"),
    ]:
        yield f"{old} becomes {new}", text.replace(old, new)


def manifest():
    """That of the crate, with the sandbox alone."""
    lines = (ROOT / CRATE / "Cargo.toml").read_text().splitlines()
    start = lines.index("[dependencies]")
    kept = [line for line in lines[start:] if not line or line[0] == "[" or re.split(r"[. ]", line)[0] in NEEDED]
    return "\n".join(lines[:start] + kept)


if __name__ == "__main__":
    try_changes(
        crate=CRATE,
        copied=[
            MODULE,
            f"{CRATE}/tests/sandbox",
            "components/token_traits",
            "tests/threat_model",
            "docs/threat-model.md",
        ],
        written={
            "Cargo.toml": workspace([CRATE]),
            f"{CRATE}/Cargo.toml": manifest(),
            f"{CRATE}/src/lib.rs": "//! The sandbox alone.\n\npub mod sandbox;\n",
        },
        changes={
            f"{MODULE}/table.rs": changes_of_table,
            f"{MODULE}/apply.rs": changes_of_steps,
            f"{MODULE}/mod.rs": changes_of_module,
            f"{MODULE}/kernel.rs": changes_of_kernel,
        },
        not_counted=["the documentation says the same", "every argument that is checked is tried"],
        soon=["rows", "limits", "places"],
    )
