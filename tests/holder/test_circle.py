"""Processes that wait for each other in a circle are found and named, and nobody else is."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import (
    LIMIT,
    Child,
    is_free,
    own_mounts,
    start,
    wait_until,
    wait_until_blocked,
    waiters,
    write_project,
)

from source_tree_lock import source_tree_lock
from source_tree_lock._deadlocks import warn_of_circle
from source_tree_lock._holder import circle
from source_tree_lock._paths.tree import open_tree

from .crowd import linux_only

pytestmark = [
    linux_only,
    pytest.mark.skipif(
        not os.path.exists("/proc/locks"), reason="the kernel says nothing of locks"
    ),
]

#: Takes a tree, and when it is told so another one inside, in a way that a test names. What is
#: logged is told as well. Arguments: the two trees.
TAKES_TWO = """
    import asyncio, logging
    from source_tree_lock import LockTimeout, source_tree_lock
    logging.basicConfig(level="WARNING", stream=sys.stdout, format="warned: %(message)s")
    first, second = sys.argv[1:]
    with source_tree_lock(first):
        tell("held")
        heard()
        {wait}
        tell("in")
"""
WAITS = {
    "for ever": "source_tree_lock(second).acquire()",
    "bounded": f"source_tree_lock(second, timeout={LIMIT}).acquire()",
    "in steps": "while not source_tree_lock(second).acquire(timeout=0.2): pass",
    "steered": "source_tree_lock(second, while_waiting=lambda _: None).acquire()",
    "kept": "lock = source_tree_lock(second)\n        while not lock.acquire(timeout=0.2): pass",
}
#: The same in a task, which holds both.
TAKES_TWO_IN_A_TASK = """
    import asyncio, logging
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="WARNING", stream=sys.stdout, format="warned: %(message)s")
    async def main():
        async with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
            async with source_tree_lock(sys.argv[2]):
                tell("in")
    asyncio.run(main())
"""
SCRIPTS = {name: TAKES_TWO.format(wait=wait) for name, wait in WAITS.items() if name != "in steps"}
SCRIPTS["in a task"] = TAKES_TWO_IN_A_TASK


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


def started(stack: ExitStack, script: str, *arguments: object, **options: object) -> Child:
    """A child that is inside its first tree."""
    child = stack.enter_context(Child(script, *arguments, **options))  # type: ignore[arg-type]
    child.expect("held")
    return child


def links(warning: str) -> list[tuple[int, str, str]]:
    """Who holds what and waits for what, by a warning."""
    assert warning.startswith("warned: Waiting for source tree '"), warning
    assert "may never end" in warning
    assert "End one of them, or set a timeout; take several trees in one order" in warning
    found = re.findall(r"\(pid (\d+)\) holds '(.*?)' and waits for '(.*?)'", warning)
    return [(int(pid), held, awaited) for pid, held, awaited in found]


def circle_of(children: Sequence[Child], trees: Sequence[Path]) -> set[tuple[int, str, str]]:
    """What is to be told of children that each hold a tree and wait for the next one's."""
    after = [*trees[1:], trees[0]]
    return {
        (child.pid, str(held), str(awaited))
        for child, held, awaited in zip(children, trees, after, strict=True)
    }


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("way", SCRIPTS)
def test_processes_that_wait_for_each_other_are_all_named_with_their_trees(
    way: str, number: int, trees: list[Path], ended: ExitStack
) -> None:
    some = trees[:number]
    after = [*some[1:], some[0]]
    children = [started(ended, SCRIPTS[way], *pair) for pair in zip(some, after, strict=True)]
    for child in children:
        child.say()
        if way != "kept":  # between two steps it stands in no queue
            wait_until_blocked(child.pid)
    # Who came last looks when all of them wait.
    assert set(links(children[-1].line())) == circle_of(children, some)


@pytest.mark.parametrize("way", ["for ever", "bounded"])
def test_a_circle_that_another_program_closes_later_is_found_then(
    way: str, trees: list[Path], ended: ExitStack
) -> None:
    """flock(1) never looks; it takes the second tree when the wait has lasted longer than that."""
    one, two, _ = trees
    ours = started(ended, SCRIPTS[way], two, one)
    command = ["flock", str(one), "sh", "-c", f"echo held; read word; exec flock '{two}' true"]
    flock = started(ended, "import os; os.execvp(sys.argv[1], sys.argv[1:])", *command)
    ours.say()
    wait_until(lambda: not is_free(source_tree_lock(one).lock_file))
    assert ours.is_silent(1.5)  # the first look is over: there is nothing to be seen
    flock.say()
    assert set(links(ours.line())) == {
        (flock.pid, str(one), str(two)),
        (ours.pid, str(two), str(one)),
    }


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock(1)")
@pytest.mark.parametrize("locked", ["lock file", "tree"])
def test_a_flock_1_is_named_for_what_its_command_waits_for(
    locked: str, trees: list[Path], ended: ExitStack
) -> None:
    """Below it is the command of this library: it holds nothing itself, and waits."""
    one, two, _ = trees
    lock_file = source_tree_lock(one).lock_file
    lock_file.touch()
    run = f"'{sys.executable}' -m source_tree_lock run --quiet '{two}' -- true"
    target = lock_file if locked == "lock file" else one
    command = ["flock", str(target), "sh", "-c", f"echo held; read word; {run}"]
    flock = started(ended, "import os; os.execvp(sys.argv[1], sys.argv[1:])", *command)
    ours = started(ended, SCRIPTS["bounded"], two, one)
    flock.say()
    wait_until(lambda: bool(waiters(source_tree_lock(two).lock_file)))
    ours.say()
    assert set(links(ours.line())) == {
        (flock.pid, str(one), str(two)),
        (ours.pid, str(two), str(one)),
    }


@pytest.mark.once
def test_a_real_uv_is_named_for_what_its_build_waits_for(
    trees: list[Path], ended: ExitStack
) -> None:
    """uv holds one tree; the `setup.py` that it runs there takes another, which we hold."""
    one, two, _ = trees
    pytest.importorskip("uv")
    write_project(
        one,
        f"""
        import sys
        from source_tree_lock import source_tree_lock
        if "bdist_wheel" in sys.argv:
            source_tree_lock({str(two)!r}, timeout={LIMIT}).acquire()
        """,
    )
    options = "--wheel --no-build-isolation --offline --no-config --no-cache --quiet".split()
    build = [sys.executable, "-m", "uv", "build", *options, "--python", sys.executable, str(one)]
    ours = started(ended, SCRIPTS["for ever"], two, one)
    uv = start(*build, cwd=one)
    try:
        wait_until(lambda: bool(waiters(source_tree_lock(two).lock_file)))
        ours.say()
        warning = ours.line()
        assert set(links(warning)) == {
            (uv.pid, str(one), str(two)),
            (ours.pid, str(two), str(one)),
        }
        assert f"uv (pid {uv.pid}) holds" in warning
    finally:
        uv.kill()
        uv.communicate()


# No claim where there is none


@pytest.mark.parametrize("hidden", ["/proc/locks", "/proc"])
def test_where_the_kernel_tells_nothing_nothing_is_claimed(
    hidden: str, trees: list[Path], ended: ExitStack
) -> None:
    one, two, _ = trees
    cover = {
        "/proc/locks": "mount --bind /dev/null /proc/locks",
        "/proc": "mount -t tmpfs no /proc",
    }
    prefix = (*own_mounts(), "sh", "-c", f'{cover[hidden]}; exec "$@"', "sh")
    children = [
        started(ended, SCRIPTS["bounded"], *pair, prefix=prefix)
        for pair in ((one, two), (two, one))
    ]
    for child in children:
        child.say()
    for child in children:
        wait_until_blocked(child.pid)
    assert all(child.is_silent(1.5) for child in children)


@pytest.mark.parametrize("second", [[], ["another circle"]])
def test_a_circle_that_is_not_there_at_a_second_look_is_not_claimed(
    second: list[str],
    trees: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The kernel's list is read in pieces, and others go on between them."""
    looks = iter([["a circle"], second])
    monkeypatch.setattr(circle, "find_circle", lambda *_: next(looks))
    tree = open_tree(trees[0])
    tree.close()
    assert not warn_of_circle(tree, str(source_tree_lock(trees[0]).lock_file), {})
    assert list(looks) == []
    assert not caplog.records


#: Waits twice for what it is told to, and tells how often it looked for a circle, and when.
LOOKS = """
    import threading, time
    from source_tree_lock import source_tree_lock
    from source_tree_lock._holder import circle
    looks, started = [], []
    circle.find_circle = lambda *_: looks.append(time.monotonic() - started[-1]) or []
    before = threading.active_count()
    with source_tree_lock(sys.argv[1]) if sys.argv[2] == "holding" else open("/dev/null"):
        for tree in sys.argv[3:]:
            tell("ready")
            heard()
            started.append(time.monotonic())
            with source_tree_lock(tree, timeout=eval({timeout!r})):
                tell(len(looks), min(looks, default=99) >= 1)
                looks.clear()
"""


@pytest.mark.parametrize("timeout", ["None", "60"], ids=["for ever", "bounded"])
@pytest.mark.parametrize("what", ["holding", "empty-handed"])
def test_nobody_looks_before_a_second_has_passed_nor_who_holds_nothing(
    what: str, timeout: str, trees: list[Path], ended: ExitStack
) -> None:
    mine, other, _ = trees
    hold = TAKES_TWO.format(wait="pass")
    waiter = ended.enter_context(
        Child(LOOKS.replace("{timeout!r}", repr(timeout)), mine, what, other, other)
    )
    for seconds in (0.3, 1.3):
        holder = started(ended, hold, other, other)
        waiter.expect("ready")
        waiter.say()
        wait_until_blocked(waiter.pid)
        assert waiter.is_silent(seconds)
        holder.say()
        looks, all_late = waiter.line().split()
        assert all_late == "True"
        if what == "empty-handed":
            assert looks == "0"
        elif seconds > 1:
            assert int(looks) >= 1
        holder.end()


def test_who_holds_nothing_starts_no_thread_to_wait(trees: list[Path], ended: ExitStack) -> None:
    waiter = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            tell("in")
    """
    holder = started(ended, TAKES_TWO.format(wait="pass"), trees[0], trees[1])
    child = ended.enter_context(Child(waiter, trees[0]))
    wait_until_blocked(child.pid)
    assert len(os.listdir(f"/proc/{child.pid}/task")) == 1
    holder.say()
    child.expect("in")
