"""A holder as a value that people can read; and one that is an ancestor of a waiting process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import LIMIT, PRELUDE, Child, held_elsewhere

from source_tree_lock import Holder, source_tree_lock
from source_tree_lock._holder import in_words

from .crowd import WAIT, linux_only

# By itself


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (Holder(4711), "pid 4711"),
        (Holder(4711, "make", os.uname().nodename), "make (pid 4711)"),
        (Holder(4711, None, "node7"), "pid 4711 on node7"),
        (Holder(4711, "uv", "node7", 1000.0), "uv (pid 4711) on node7 for 5 s"),
        (Holder(4711, "uv", None, 2000.0), "uv (pid 4711) for 0 s"),
        (Holder(4711, "uv", user="ann"), "uv (pid 4711, user ann)"),
        (Holder(4711, "uv", None, 1000.0, is_stopped=True), "uv (pid 4711) for 5 s (stopped)"),
        (
            Holder(4711, "uv", os.uname().nodename, is_local=False),
            "uv (pid 4711, in another container)",
        ),
    ],
)
def test_a_holder_reads_well(holder: Holder, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1005.4)
    assert str(holder) == text
    assert text.startswith(holder.name)
    assert pickle.loads(pickle.dumps(holder)) == holder


def test_a_holder_is_a_value_and_this_process_is_called_so() -> None:
    one, same = (Holder(4711, "make", "node7", 12.5) for _ in range(2))
    assert (one, hash(one)) == (same, hash(same))
    others = (Holder(4711, "make", "node7", 13.0), Holder(4712, "make", "node7", 12.5), "make")
    assert one not in others
    assert eval(repr(one)) == one
    assert str(Holder(os.getpid(), "me")) == f"me (pid {os.getpid()}, this process)"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "0 s"),
        (0.9, "0 s"),
        (2.5, "2 s"),
        (59.7, "59 s"),
        (60.0, "1 min 0 s"),
        (125.2, "2 min 5 s"),
        (3599.9, "59 min 59 s"),
        (7265.0, "2 h 1 min"),
        (90000.0, "25 h 0 min"),
    ],
)
def test_a_duration_reads_as_a_clock_shows_it(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


#: How a program is started, with the code in all those places; and what people call it.
PROGRAMS = {
    "script": (["./a script"], "a_script"),
    "private": (["_private"], "_private"),
    "private below": (["below/_private"], "_private"),
    "module": (["-m", "one_module"], "one_module.py"),
    "package": (["-m", "builder"], "builder"),
    "hook": (["frontend/vendored/_in_process.py"], "frontend"),
    "long": (["a-name-of-more-than-15-letters"], "a-name-of-more-than-15-letters"),
    "code": (["-c", ""], os.path.basename(sys.executable)),
}


@pytest.mark.skipif(os.name != "posix", reason="the command is a link")
@pytest.mark.parametrize("way", PROGRAMS)
def test_a_program_is_called_what_people_call_it_without_its_arguments(
    way: str, tree: Path, tmp_path: Path
) -> None:
    code = f"""
from source_tree_lock import source_tree_lock
with source_tree_lock({str(tree)!r}) as lock:
    print(lock.lock_file.read_text())
"""
    for name in (
        "builder/__main__.py",
        "one_module.py",
        "frontend/vendored/_in_process.py",
        "a script",
        "_private",
        "below/_private",
        "a-name-of-more-than-15-letters",
    ):
        tmp_path.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(name).write_text(code)
    for name in ("frontend", "frontend/vendored", "." if "private" in way else "frontend"):
        tmp_path.joinpath(
            name, "__init__.py"
        ).touch()  # a relative path goes no further up than "."
    arguments, expected = PROGRAMS[way]
    command = [sys.executable, *(each or code for each in arguments), "secret"]
    told = subprocess.check_output(command, cwd=tmp_path, timeout=LIMIT, text=True)
    assert f'"program": "{expected}"' in told
    assert "secret" not in told


# An ancestor that did not hand its hold over

#: Holds a tree and starts a child that waits for it. Arguments: the tree, how the child is started.
ANCESTOR = f"""
    import os, subprocess
    from source_tree_lock import source_tree_lock
    command = [sys.executable, "-c", {PRELUDE + textwrap.dedent(WAIT)!r}, sys.argv[1]]
    if sys.argv[2] == "through a shell":
        command = ["sh", "-c", '"$0" "$@"; exit $?', *command]
    with source_tree_lock(sys.argv[1]) as lock:
        environ = lock.environ if sys.argv[2] == "handed over" else {{}}
        if sys.argv[2] == "forked":
            child = os.fork()
            if not child:
                sys.argv[:] = ["-c", sys.argv[1]]
                exec(command[2])
                os._exit(0)
        else:
            child = subprocess.Popen(command, env={{**os.environ, **environ}}).pid
        tell("started")
        heard()
    os.waitpid(child, 0)
    tell("ended")
"""


@linux_only
@pytest.mark.parametrize("how", ["bare", "through a shell", "forked"])
def test_a_wait_for_an_ancestor_that_did_not_hand_over_is_warned_of_and_goes_on(
    tree: Path, how: str
) -> None:
    with Child(ANCESTOR, tree, how) as parent:
        lines = sorted(parent.line() for _ in range(4))  # one is the parent's own
        assert [line.split()[0] for line in lines] == ["INFO", "WARNING", "for", "started"]
        assert f"(pid {parent.pid})" in lines[1]
        assert "SOURCE_TREE_LOCK_HELD" in lines[1]
        assert "lock.environ" in lines[1]
        parent.say()
        parent.expect("entered")
        parent.expect("ended")


def test_a_hold_that_was_handed_over_is_not_warned_of(tree: Path) -> None:
    with Child(ANCESTOR, tree, "handed over") as parent:
        assert {parent.line(), parent.line()} == {"started", "entered"}
        parent.say()
        parent.expect("ended")


@linux_only
def test_of_flock_1_as_an_ancestor_the_warning_says_what_to_write_instead(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    lock_file.touch()
    with Child(WAIT, tree, prefix=("flock", str(lock_file))) as flock:
        assert flock.line().startswith("INFO ")
        warning = flock.line()
        assert f"flock (pid {flock.pid})" in warning
        assert "write `source-tree-lock run TREE -- COMMAND...` instead" in warning


def test_a_wait_for_another_process_is_not_warned_of(tree: Path) -> None:
    with held_elsewhere(tree), Child(WAIT, tree) as child:
        assert child.line().startswith("INFO ")
        assert child.line().startswith("for ")  # and no WARNING before
