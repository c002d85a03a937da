"""A holder as a value that people can read, and one that is an ancestor of who waits."""

from __future__ import annotations

import pickle
import textwrap
from pathlib import Path

import pytest
from support import LIMIT, PRELUDE, Child, held_elsewhere

from source_tree_lock import Holder
from source_tree_lock._holder.holder import in_words
from source_tree_lock._holder.processes import host

from .crowd import WAIT, linux_only

# By itself


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (Holder(4711), "pid 4711"),
        (Holder(4711, "make"), "make (pid 4711)"),
        (Holder(4711, "make", host()), "make (pid 4711)"),
        (Holder(4711, None, "node7"), "pid 4711 on node7"),
        (Holder(4711, "uv", "node7"), "uv (pid 4711) on node7"),
        (Holder(4711, "uv", None, 1000.0), "uv (pid 4711) for 5 s"),
        (Holder(4711, "uv", "node7", 1000.0), "uv (pid 4711) on node7 for 5 s"),
        (Holder(4711, "uv", None, 2000.0), "uv (pid 4711) for 0 s"),
    ],
)
def test_a_holder_reads_well(holder: Holder, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1005.4)
    assert str(holder) == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "0 s"),
        (0.9, "0 s"),
        (1.0, "1 s"),
        (2.5, "2 s"),
        (3.5, "3 s"),
        (59.7, "59 s"),
        (60.0, "1 min 0 s"),
        (119.9, "1 min 59 s"),
        (125.2, "2 min 5 s"),
        (3599.9, "59 min 59 s"),
        (3600.0, "1 h 0 min"),
        (7265.0, "2 h 1 min"),
        (90000.0, "25 h 0 min"),
    ],
)
def test_a_duration_reads_as_a_clock_shows_it(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_holder_is_a_value() -> None:
    one, same = (Holder(4711, "make", "node7", 12.5) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one == pickle.loads(pickle.dumps(one))
    assert one != "make"
    for other in (
        Holder(4712, "make", "node7", 12.5),
        Holder(4711, "gmake", "node7", 12.5),
        Holder(4711, "make", "node8", 12.5),
        Holder(4711, "make", "node7", 13.0),
    ):
        assert one != other
    assert repr(one) == "Holder(pid=4711, program='make', host='node7', since=12.5)"


# An ancestor that did not hand its hold over


#: Holds a tree and starts a child that waits for it. Arguments: the tree, how to hand over.
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
def test_a_forked_child_that_waits_for_its_parent_is_warned(tree: Path) -> None:
    fork = f"""
        import logging, os
        from source_tree_lock import source_tree_lock
        logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
        lock = source_tree_lock(sys.argv[1])
        with lock:
            child = os.fork()
            if child == 0:
                try:
                    lock.acquire(timeout={LIMIT})
                    tell("entered")
                finally:
                    os._exit(0)
            heard()
        os.waitpid(child, 0)
    """
    with Child(fork, tree) as parent:
        assert parent.line().startswith("INFO ")
        line = parent.line()
        assert line.startswith("WARNING ")
        assert f"(pid {parent.pid})" in line
        parent.say()
        parent.expect("entered")


def test_a_wait_for_somebody_else_is_not_warned_of(tree: Path) -> None:
    with held_elsewhere(tree), Child(WAIT, tree) as child:
        assert child.line().startswith("INFO ")
        assert child.line().startswith("for ")  # and no WARNING before
