# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the two programs share that take rules of a sandbox away, one at a time, and expect its tests to notice."""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


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


def changes_of_calls(text):
    """Each row of a table of system calls away, each list of arguments, and each condition."""
    for match in re.finditer(r"\bcall!\(\s*(SYS_\w+)", text):
        name = match[1]
        start, inside = match.start(), match.start() + len("call!(")
        end = end_of(text, inside - 1, "()")
        attribute = re.search(r"#\[cfg\([^\n]*\)\]\s*$", text[:start])
        if attribute and "not(" in attribute[0] and f'"{platform.machine()}"' in attribute[0]:
            continue
        row = attribute.start() if attribute else start
        name = f"{name} in line {text.count(chr(10), 0, start) + 1}"
        # Some rows are pairs of a call and what comes of it.
        if not text[:row].rstrip().endswith("("):
            yield f"no {name}", without(text, row, end)
        lists = [part for part in parts(text[inside : end - 1], inside) if "[" in text[slice(*part)]]
        for number, (first, last) in enumerate(lists):
            # Words may come before it.
            opening = text.index("[", first)
            conditions = list(parts(text[opening + 1 : last - 1], opening + 1))
            if len(lists) > 1:
                yield f"{name} without way {number}", without(text, opening, last)
            for place, (begin, finish) in enumerate(conditions):
                if len(conditions) > 1:
                    yield f"{name}, way {number}, any argument {place}", without(text, begin, finish)
                else:
                    yield f"{name}, way {number}, with any arguments", text[:start] + f"call!({match[1]})" + text[end:]


def workspace(members):
    """A workspace of these crates, with the versions of this one."""
    shared = re.search(r"\[workspace\.package\].*?(?=\n\[profile)", (ROOT / "Cargo.toml").read_text(), re.S)
    return f'[workspace]\nresolver = "3"\nmembers = {list(members)}\n{shared[0]}'


def try_changes(crate, copied, written, changes, not_counted, soon=()):
    """Tries changes in a copy, those with all words of the command line in their names, and ends this program.

    `1/3` on the command line takes the first of each three, and so on.

    `crate` is the one whose tests count. `copied` are the files and folders that are copied, `written` the text of others,
    `changes` functions by the file whose text they change. `not_counted` are tests that would notice any change, and `soon`
    those that are tried before the rest.
    """
    parts_asked = [word for word in sys.argv[1:] if re.fullmatch(r"\d+/\d+", word)]
    words = [word for word in sys.argv[1:] if word not in parts_asked]
    part, of_parts = map(int, (parts_asked or ["1/1"])[0].split("/"))
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for path in copied:
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, copy / path)
            else:
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, copy / path)
        for path, text in written.items():
            (copy / path).write_text(text)
        shutil.copy(ROOT / "Cargo.lock", copy)
        # Most of the time goes into building.
        quick = {"CARGO_INCREMENTAL": "1", "CARGO_PROFILE_DEV_DEBUG": "0"}
        environment = {**os.environ, **quick, "CARGO_TARGET_DIR": str(copy / "target")}

        def test(*flags, only=()):
            command = ["cargo", "test", "--quiet", "--offline", *flags]
            skip = [word for name in not_counted for word in ("--skip", name)]
            return subprocess.run(
                [*command, "--", *skip, *only], cwd=copy / crate, env=environment, capture_output=True, text=True
            )

        unchanged = test()
        if unchanged.returncode != 0:
            sys.exit(f"the tests fail by themselves:\n{unchanged.stdout}{unchanged.stderr}")
        unnoticed, tried, asked = [], 0, 0
        for file, changes_of in changes.items():
            original = (ROOT / file).read_text()
            for name, text in changes_of(original):
                if not all(word in name for word in words):
                    continue
                asked += 1
                if asked % of_parts != part % of_parts:
                    continue
                if text == original:
                    sys.exit(f"{name} changes nothing")
                (copy / file).write_text(text)
                built = test("--no-run")
                if built.returncode != 0:
                    print(f"does not compile: {name}\n{built.stderr}", flush=True)
                    unnoticed.append(name)
                    continue
                tried += 1
                if all(test(only=[word]).returncode == 0 for word in soon) and test().returncode == 0:
                    unnoticed.append(name)
                    print(f"unnoticed: {name}", flush=True)
            (copy / file).write_text(original)
        print(f"{tried} changes, {len(unnoticed)} unnoticed")
        sys.exit(1 if unnoticed or not tried else 0)
