#!/usr/bin/env python3
# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Takes the rules of the sandbox of content processes away, one at a time, and expects the tests to notice.

    python3 tests/content_process_sandbox/mutate.py [WORD]

tries all changes, or those with WORD in their name, in a copy. It ends with status 1 where a change went unnoticed. The
comparison with the documentation, which would notice any, does not count.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from sandbox_changes import changes_of_calls, try_changes, workspace

MODULE = "components/engine/servo/content_process_sandbox"
TESTS = "tests/content_process_sandbox"


def changes_of_table(text):
    yield from changes_of_calls(text)
    files = re.search(r"const READ.*?\n\];", text, re.S)
    for match in re.finditer(r"\b(Path|InHome|InUserData)\(\"[^\"]*\"\),?|\bProgram,?", files[0]):
        start = files.start() + match.start()
        yield f"no {match[0]}", text[:start] + text[files.start() + match.end() :]
    yield "all of /etc", text.replace('"/etc/localtime"', '"/etc"')
    for name in ["SYS_socket", "SYS_connect", "SYS_execve", "SYS_kill", "SYS_ptrace", "SYS_unlinkat", "SYS_io_uring_setup"]:
        yield f"{name} as well", text.replace("call!(SYS_close),", f"call!(SYS_close), call!({name}),")


def changes_of_steps(text):
    for step in re.findall(r"Self::(\w+) => \w+\(\)\.map_err", text):
        yield f"no step {step}", re.sub(rf"Self::{step} => [^\n]*", f"Self::{step} => Ok(()),", text)
    for old, new in [
        ("if threads != 1 {", "if false {"),
        ("saturating_sub(2)", "saturating_sub(1)"),
        ("ABI = ABI::V6", "ABI = ABI::V5"),
        ("ABI = ABI::V6", "ABI = ABI::V3"),
        ("ABI = ABI::V6", "ABI = ABI::V2"),
        (".handle_access(AccessFs::from_all(ABI::V1))?", ""),
        (".handle_access(AccessFs::from_all(NEWEST_LANDLOCK))?", ""),
        (".handle_access(AccessNet::from_all(NEWEST_LANDLOCK))?", ""),
        (".scope(Scope::from_all(NEWEST_LANDLOCK))?", ""),
        ("AccessFs::ReadFile)", "AccessFs::from_read(ABI::V1))"),
        ("AccessFs::ReadFile)", "AccessFs::from_all(ABI::V1))"),
        ("rules.restrict_self()?;", ""),
        ("seccompiler::apply_filter(&exceptions)?;", ""),
        ("seccompiler::apply_filter(&allow_list)", "Ok(())"),
        ("allowed.chain(table::NOT_IMPLEMENTED)", "allowed"),
        ("(index, Dword, Eq, value)", "(index, Qword, Eq, value)"),
        ("(index, Qword, Eq, 0)", "(index, Dword, Eq, 0)"),
        ("MaskedEq((!bits).into())", "MaskedEq(bits.into())"),
        ("process::id())", "0)"),
        (".filter(|folder| folder.is_absolute())", ""),
    ]:
        yield f"{old} becomes {new or 'nothing'}", text.replace(old, new)


if __name__ == "__main__":
    try_changes(
        crate=TESTS,
        copied=[MODULE, TESTS],
        written={"Cargo.toml": workspace([TESTS])},
        changes={f"{MODULE}/table.rs": changes_of_table, f"{MODULE}/mod.rs": changes_of_steps},
        not_counted=["the documentation says the same", "everything that is allowed is used"],
    )
