"""Processes that wait for each other in a circle are found and named, and no others are."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import Child, long_after, stop_for_good, wait_until, wait_until_blocked, waiters

from source_tree_lock import _deadlocks, _wait, source_tree_lock

from .crowd import BECOMES, flock_1, linux_only

pytestmark = [
    linux_only,
    pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="no kernel's list of locks"),
]

#: What is logged is told as well, and waits are checked earlier than after a second.
LOGS = """
    import asyncio, logging
    from source_tree_lock import _wait, source_tree_lock
    _wait.CHECK_AFTER = 0.2
    logging.basicConfig(level="WARNING", stream=sys.stdout, format="warned: %(message)s")
"""
#: Takes a tree, and when it is told so another one inside. Arguments: the two trees, and how.
TAKES_TWO = f"""{LOGS}
    second = source_tree_lock(sys.argv[2])
    with source_tree_lock(sys.argv[1]):
        tell("held")
        heard()
        exec(sys.argv[3])
        tell("in")
"""
WAIT = "second.acquire()"
WAIT_SHORTLY = "while not second.acquire(timeout=0.2): pass"
WAIT_IN_A_TASK = "asyncio.run(second.__aenter__())"
RUN = [sys.executable, "-m", "source_tree_lock", "run", "--quiet"]


@pytest.fixture
def trees(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("one", "two", "three")]
    for each in found:
        each.mkdir()
    return found


@pytest.fixture
def ended() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, script: str, *arguments: object, **options: Any) -> Child:
    """A child that is inside its first tree."""
    child = stack.enter_context(Child(script, *arguments, **options))
    child.expect("held")
    return child


def command(stack: ExitStack, *words: object) -> Child:
    """A command that has told `held`; its children end with it."""
    child = started(stack, f"import os; os.setsid(); {BECOMES}", *words)
    stack.callback(stop_for_good, child.process)
    return child


def links(warning: str) -> set[tuple[int, str, str]]:
    """The processes, what each holds and what it waits for, by a warning."""
    assert warning.startswith("warned: Waiting for source tree '"), warning
    assert "End one of them, or set a timeout; take several trees in one order" in warning
    found = re.findall(r"\(pid (\d+)\) holds '(.*?)' and waits for '(.*?)'", warning)
    us = re.findall(r"this process \(pid (\d+)\)(?:, for .*? \(pid (\d+)\),)? waits for", warning)
    assert len(us) == 1
    return {(int(pid), held, awaited) for pid, held, awaited in found}


@pytest.mark.parametrize(
    ("way", "number", "own_temp_dirs"),
    [
        *((way, 2, False) for way in (WAIT, WAIT_SHORTLY, WAIT_IN_A_TASK)),
        *((WAIT, 3, False), (WAIT, 2, True)),
    ],
)
def test_processes_that_wait_for_each_other_are_named_with_their_trees(
    way: str, number: int, own_temp_dirs: bool, trees: list[Path], ended: ExitStack
) -> None:
    """With temporary directories of their own, they meet at the trees, not at the lock files."""
    some = trees[:number]
    after = [*some[1:], some[0]]
    children = []
    for pair in zip(some, after, strict=True):
        environ = {"TMPDIR": str(pair[0])} if own_temp_dirs else {}
        children.append(started(ended, TAKES_TWO, *pair, way, environ=environ))
    for child in children:
        child.say()
        if way != WAIT_SHORTLY:  # between two of them it stands in no queue
            wait_until_blocked(child.pid)
    # The last one checks when all of them wait.
    assert links(children[-1].line()) == {
        (child.pid, str(held), str(awaited))
        for child, held, awaited in zip(children[:-1], some, after, strict=False)
    }


def test_a_circle_that_another_program_closes_later_is_found_then(
    trees: list[Path], ended: ExitStack
) -> None:
    """flock(1) never checks; it takes the second lock when the wait has lasted longer than that."""
    one, two, _ = trees
    ours = started(ended, TAKES_TWO, two, one, WAIT)
    script = f"echo held; read word; exec flock '{two}' true"
    flock = command(ended, "flock", one, "sh", "-c", script)
    ours.say()
    assert _wait.CHECK_AFTER == 1
    wait_until_blocked(ours.pid)
    assert ours.is_silent(0.5)  # the first check is over: there is nothing to be seen
    flock.say()
    assert links(ours.line()) == {(flock.pid, str(one), str(two))}


@pytest.mark.parametrize("holds", ["flock lock file", "flock tree", "run"])
def test_a_holder_is_named_for_what_its_command_waits_for(
    holds: str, trees: list[Path], ended: ExitStack
) -> None:
    """The command, below flock(1) or `run`, holds nothing itself, and waits."""
    one, two, _ = trees
    locked = source_tree_lock(one).lock_file if holds == "flock lock file" else one
    prefix = [*RUN, one, "--"] if holds == "run" else ["flock", locked]
    waits = " ".join(f"'{word}'" for word in [*RUN, two, "--", "true"])
    other = command(ended, *prefix, "sh", "-c", f"echo held; read word; {waits}")
    ours = started(ended, TAKES_TWO, two, one, WAIT)
    other.say()
    wait_until(lambda: bool(waiters(source_tree_lock(two).lock_file)))
    ours.say()
    assert links(ours.line()) == {(other.pid, str(one), str(two))}


def test_a_circle_through_a_lock_that_is_not_ours_is_found(
    trees: list[Path], ended: ExitStack, tmp_path: Path
) -> None:
    """As with uv's lock of a cache entry, below which a hook waits for the tree."""
    one, unused, _ = trees
    file = tmp_path / "cache"
    file.touch()
    ours = started(ended, TAKES_TWO, unused, one, WAIT, prefix=("flock", str(file)))
    script = f"echo held; read word; exec flock '{file}' true"
    other = command(ended, *RUN, one, "--", "sh", "-c", script)
    other.say()
    wait_until(lambda: bool(waiters(file)))
    ours.say()
    warning = ours.line()
    assert links(warning) == {(other.pid, str(one), str(file))}
    assert f"for flock (pid {ours.pid}), waits" in warning
    other.kill()  # or else it gets what it waits for


#: Takes all trees, one inside the other, and checks its waits again and again.
IN_ONE_ORDER = f"""{LOGS}
    import contextlib, time
    _wait.CHECK_AFTER = 0.01
    tell("held")
    heard()
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for tree in sys.argv[1:]:
                stack.enter_context(source_tree_lock(tree))
                time.sleep(0.01)
    tell("done")
"""


@pytest.mark.parametrize("below_one_hold", long_after(1, [False, True]))
def test_a_crowd_that_takes_trees_in_one_order_is_warned_of_nothing(
    below_one_hold: bool, trees: list[Path], ended: ExitStack
) -> None:
    """Nor are the children of one hold, which take turns."""
    lock = source_tree_lock(trees[0])
    environ = ended.enter_context(lock).environ if below_one_hold else {}
    crowd = [started(ended, IN_ONE_ORDER, *trees[n % 2 :], environ=environ) for n in range(6)]
    for child in crowd:
        child.say()
    for child in crowd:
        child.expect("done")


def test_a_circle_that_is_not_there_at_a_second_look_is_not_claimed(
    trees: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel's list is read in pieces, and others go on between them."""
    looks = [["a circle"], ["another circle"]]
    monkeypatch.setattr(_deadlocks, "_find_circle", lambda _: looks.pop(0) if looks else [])
    monkeypatch.setattr(_wait, "CHECK_AFTER", 0.05)
    with flock_1(source_tree_lock(trees[0]).lock_file):
        while looks:  # on a busy machine, the time may be up before the first look
            assert not source_tree_lock(trees[0]).acquire(timeout=0.5)
    assert not caplog.records
