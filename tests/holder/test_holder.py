"""A holder in words, what a program is called, and an ancestor that did not hand its hold over."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import LIMIT, PRELUDE, Child

from source_tree_lock import Holder, source_tree_lock

from .crowd import WAIT, linux_only


def test_a_holder_reads_well_and_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1005.4)
    host = os.uname().nodename
    texts = {
        Holder(4711): "pid 4711",
        Holder(4711, "make", host): "make (pid 4711)",
        Holder(4711, None, "node7"): "pid 4711 on node7",
        Holder(4711, "uv", "node7", 1000.0): "uv (pid 4711) on node7 for 5 s",
        Holder(4711, "uv", None, 2000.0): "uv (pid 4711) for 0 s",
        Holder(4711, "uv", user="ann"): "uv (pid 4711, user ann)",
        Holder(4711, "uv", None, 1000.0, is_stopped=True): "uv (pid 4711) for 5 s (stopped)",
        Holder(4711, "uv", host, is_local=False): "uv (pid 4711, in another container)",
        Holder(os.getpid(), "me"): f"me (pid {os.getpid()}, this process)",
    }
    for holder, text in texts.items():
        assert str(holder) == text
        assert text.startswith(holder.name)
        assert pickle.loads(pickle.dumps(holder)) == eval(repr(holder)) == holder


#: How a program is started, its file, and what people call it.
PROGRAMS = [
    ("./a script", "a script", "a_script"),
    ("-m one_module", "one_module.py", "one_module.py"),
    ("-m builder", "builder/__main__.py", "builder"),
    ("-c import one_module", "one_module.py", os.path.basename(sys.executable)),
    ("frontend/below/_hook.py", "frontend/below/_hook.py", "frontend"),
    ("below/_more-than-15-letters", "below/_more-than-15-letters", "_more-than-15-letters"),
]


@pytest.mark.parametrize(("start", "file", "name"), PROGRAMS)
def test_a_program_is_called_what_people_call_it_without_its_arguments(
    start: str, file: str, name: str, tree: Path, tmp_path: Path
) -> None:
    program = tmp_path / file
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"""
from source_tree_lock import source_tree_lock
with source_tree_lock({str(tree)!r}) as lock:
    print(lock.lock_file.read_text())
""")
    if name == "frontend":
        for package in ("frontend", "frontend/below"):
            tmp_path.joinpath(package, "__init__.py").touch()
    words = start.split(" ", 1) if start[0] == "-" else [start]
    command = [sys.executable, *words, "secret"]
    told = subprocess.check_output(command, cwd=tmp_path, timeout=LIMIT, text=True)
    assert f'"program": "{name}"' in told
    assert "secret" not in told


#: Holds a tree and starts a child that waits for it. Arguments: the tree, how the child is started.
ANCESTOR = f"""
    import os, subprocess
    from source_tree_lock import source_tree_lock
    command = [sys.executable, "-c", {PRELUDE + textwrap.dedent(WAIT)!r}, sys.argv[1]]
    if sys.argv[2] == "through a shell":
        command = ["sh", "-c", '"$0" "$@"; exit $?', *command]
    with source_tree_lock(sys.argv[1]) as lock:
        environ = lock.environ if sys.argv[2] == "handed over" else {{}}
        child = subprocess.Popen(command, env={{**os.environ, **environ}})
        tell("started")
        heard()
    child.wait()
    tell("ended")
"""


@linux_only
@pytest.mark.parametrize("how", ["bare", "through a shell"])
def test_a_wait_for_an_ancestor_that_did_not_hand_over_is_warned_of_and_goes_on(
    tree: Path, how: str
) -> None:
    with Child(ANCESTOR, tree, how) as parent:
        lines = sorted(parent.line() for _ in range(4))  # one is the parent's own
        assert [line.split()[0] for line in lines] == ["INFO", "WARNING", "for", "started"]
        assert f"(pid {parent.pid})" in lines[1]
        assert "add `lock.environ` (the variable SOURCE_TREE_LOCK_HELD)" in lines[1]
        parent.say()
        parent.expect("entered")
        parent.expect("ended")


@linux_only
def test_of_flock_1_as_an_ancestor_the_warning_says_what_to_write_instead(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    with Child(WAIT, tree, prefix=("flock", "--close", str(lock_file))) as flock:
        assert flock.line().startswith("INFO ")
        warning = flock.line()
        assert f"flock (pid {flock.pid})" in warning
        assert "write `source-tree-lock run TREE -- COMMAND...` instead" in warning
        flock.kill()  # its child goes on, and does not inherit the lock
        assert "entered" in flock.rest()


def test_a_child_to_which_the_hold_was_handed_is_not_warned_of_anything(tree: Path) -> None:
    with Child(ANCESTOR, tree, "handed over") as parent:
        assert {parent.line(), parent.line()} == {"started", "entered"}
        parent.say()
        parent.expect("ended")
