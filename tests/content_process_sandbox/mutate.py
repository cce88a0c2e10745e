#!/usr/bin/env python3
# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Takes the rules of the sandbox of content processes away, one at a time, and expects the tests to notice.

    python3 tests/content_process_sandbox/mutate.py [WORD]

tries all changes, or those with WORD in their name, in a copy. It ends with status 1 where a change went unnoticed. The
comparison with the documentation, which would notice any, does not count.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULE = pathlib.Path("components/engine/servo/content_process_sandbox")
TESTS = pathlib.Path("tests/content_process_sandbox")
NOT_COUNTED = ["the documentation says the same", "everything that is allowed is used"]
TABLE, STEPS = MODULE / "table.rs", MODULE / "mod.rs"

WORKSPACE = """
[workspace]
resolver = "3"
members = ["tests/content_process_sandbox"]
"""


def end_of(text, start, brackets):
    """The place after the bracket that belongs to the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {brackets[0]: 1, brackets[1]: -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(text[start : start + 50])


def parts(text, offset):
    """The places of what commas outside of brackets separate."""
    depth, start = 0, 0
    for index, character in enumerate(text + ","):
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            part = text[start:index]
            if part.strip():
                yield offset + start, offset + start + len(part.rstrip())
            start = index + 1


def without(text, start, end):
    """Without what is there, and one of the commas beside it."""
    if text[end : end + 1] == ",":
        return text[:start] + text[end + 1 :]
    return text[:start].rstrip().removesuffix(",") + text[end:]


def changes_of_table(text):
    for match in re.finditer(r"\bcall!\(\s*(SYS_\w+)", text):
        name = match[1]
        start, inside = match.start(), match.start() + len("call!(")
        end = end_of(text, inside - 1, "()")
        attribute = re.search(r"#\[cfg\([^\n]*\)\]\s*$", text[:start])
        row = attribute.start() if attribute else start
        yield f"no {name}", without(text, row, end)
        lists = [part for part in parts(text[inside : end - 1], inside) if "[" in text[slice(*part)]]
        for number, (first, last) in enumerate(lists):
            opening = text.index("[", first)
            conditions = list(parts(text[opening + 1 : last - 1], opening + 1))
            if len(lists) > 1:
                yield f"{name} without way {number}", without(text, first, last)
            for place, (begin, finish) in enumerate(conditions):
                if len(conditions) > 1:
                    yield f"{name}, way {number}, any argument {place}", without(text, begin, finish)
                else:
                    yield f"{name}, way {number}, with any arguments", text[:start] + f"call!({name})" + text[end:]
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


def main():
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        shutil.copytree(ROOT / MODULE, copy / MODULE)
        shutil.copytree(ROOT / TESTS, copy / TESTS)
        workspace = re.search(r"\[workspace\.package\].*?(?=\n\[profile)", (ROOT / "Cargo.toml").read_text(), re.S)
        (copy / "Cargo.toml").write_text(WORKSPACE + workspace[0])
        shutil.copy(ROOT / "Cargo.lock", copy)
        environment = dict(os.environ, CARGO_INCREMENTAL="0", CARGO_TARGET_DIR=str(copy / "target"))

        def test(*flags):
            command = ["cargo", "test", "--quiet", "--offline", *flags]
            skip = [word for name in NOT_COUNTED for word in ("--skip", name)]
            return subprocess.run([*command, "--", *skip], cwd=copy, env=environment, capture_output=True, text=True)

        unchanged = test()
        if unchanged.returncode != 0:
            sys.exit(f"the tests fail by themselves:\n{unchanged.stdout}{unchanged.stderr}")
        unnoticed, tried = [], 0
        for file, changes in [(TABLE, changes_of_table), (STEPS, changes_of_steps)]:
            original = (ROOT / file).read_text()
            for name, text in changes(original):
                if not all(word in name for word in words):
                    continue
                if text == original:
                    sys.exit(f"{name} changes nothing")
                (copy / file).write_text(text)
                built = test("--no-run")
                if built.returncode != 0:
                    sys.exit(f"{name} does not compile:\n{built.stderr}")
                tried += 1
                if test().returncode == 0:
                    unnoticed.append(name)
                    print(f"unnoticed: {name}", flush=True)
            (copy / file).write_text(original)
        print(f"{tried} changes, {len(unnoticed)} unnoticed")
        sys.exit(1 if unnoticed or not tried else 0)


if __name__ == "__main__":
    main()
