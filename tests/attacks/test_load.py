"""Crowds: everybody gets in, in a fair order, and nothing is left behind."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import LIMIT, listed_locks

from source_tree_lock import source_tree_lock

from .crew import Crew, Member

# Turns are counted, not timed: how many others got in between asking and getting in. The count is
# in a file that all of them map; only who is inside changes it, and two inside lose a count.
#
# flock(2) is a queue, but its head has yet to be run when the lock is free, and a newcomer may
# pass it by; then the kernel has the whole queue wait anew (`__locks_insert_block` in Linux'
# fs/locks.c). A hold is longer than that takes, as builds are.
_TURNS = """
    import _thread, mmap
    tree, counter, times, hold, seconds = sys.argv[1], sys.argv[2], *map(eval, sys.argv[3:6])
    with open(counter, "r+b") as file:
        turns = mmap.mmap(file.fileno(), 8)

    def now():
        return int.from_bytes(turns[:8], "little")

    def take_turn(asked):
        got = now()
        time.sleep(hold)
        turns[:8] = (got + 1).to_bytes(8, "little")
        return got - asked

    def left():
        return len(os.listdir("/proc/self/fd")), _thread._count()

    lock = source_tree_lock(tree, timeout=seconds)
    waits = []
"""
_PROCESS = """
    tell("ready")
    heard()
    for _ in range(times):
        asked = now()
        with lock:
            waits.append(take_turn(asked))
        time.sleep(0.002)
    tell(max(waits))
"""
_THREADS = """
    def work():
        for _ in range(times):
            asked = now()
            with lock:
                waits.append(take_turn(asked))
            time.sleep(0.002)

    before = left()
    threads = [threading.Thread(target=work) for _ in range(int(sys.argv[6]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
_TASKS = """
    async def work():
        for _ in range(times):
            asked = now()
            async with lock:
                waits.append(take_turn(asked))
                assert _thread._count() <= 1, "more than one thread waits for them all"
                await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*[work() for _ in range(int(sys.argv[6]))])

    before = left()
    asyncio.run(main())
"""
_LEFT = """
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline and left() != before:
        time.sleep(0.001)
    tell(max(waits), left() == before)
"""

#: How often each one enters: so often that somebody who is passed over waits too long.
TIMES = 5
#: How often all others may have a turn before one has its own: seldom more than four times on an
#: idle machine. The kernel wakes all that wait, and the scheduler chooses.
FAIR = 10


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    path = tmp_path / "turns"
    path.write_bytes(bytes(8))
    return path


def _turns(counter: Path) -> int:
    return int.from_bytes(counter.read_bytes(), "little")


def _wait_until_blocked(*members: Member) -> None:
    """Until each of them is in the kernel's queue."""
    pids = {str(member.pid) for member in members}
    deadline = time.monotonic() + LIMIT
    while pids:
        assert time.monotonic() < deadline, f"{len(pids)} do not wait"
        pids.difference_update(fields[5] for fields in listed_locks() if fields[1] == "->")
        time.sleep(0.001)


def _script(*parts: str) -> str:
    return "".join(map(textwrap.dedent, (_TURNS, *parts)))


@pytest.mark.once
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_a_crowd_of_processes_gets_in_and_waits_a_few_fair_turns_at_most(
    crew: Crew,
    tree: Path,
    counter: Path,
    seconds: float | None,
    long_run: bool,
    count_cases: Callable[[int], None],
) -> None:
    number = 200 if long_run else 20
    script = _script(_PROCESS)
    members = [crew.start(script, tree, counter, TIMES, 0.01, seconds) for _ in range(number)]
    for member in members:
        member.expect("ready")
    with source_tree_lock(tree):
        for member in members:
            member.say("go")
            if not long_run:
                _wait_until_blocked(member)
        _wait_until_blocked(*members)
    longest = max(int(member.line(3 * LIMIT)) for member in members)
    assert _turns(counter) == number * TIMES
    assert longest <= FAIR * number
    count_cases(number * TIMES)


@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize(
    ("script", "number"), [(_THREADS, 200), (_TASKS, 500)], ids=["threads", "tasks"]
)
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_a_crowd_in_one_process_gets_in_and_leaves_nothing(
    crew: Crew,
    tree: Path,
    counter: Path,
    script: str,
    number: int,
    seconds: float | None,
    long_run: bool,
    count_cases: Callable[[int], None],
) -> None:
    number = number if long_run else number // 10
    with source_tree_lock(tree):
        arguments = tree, counter, TIMES, 0.001, seconds, number
        member = crew.start(_script(script, _LEFT), *arguments)
        _wait_until_blocked(member)
    longest, is_clean = member.line(3 * LIMIT).split()
    assert _turns(counter) == number * TIMES
    assert int(longest) <= FAIR * number
    assert is_clean == "True"
    count_cases(number * TIMES)


_MANY_TREES = """
    import resource
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    directory, in_turn, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    trees = [f"{directory}/{number}" for number in range(in_turn)]
    for tree in trees:
        os.mkdir(tree)

    def usage():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), sys.getallocatedblocks()

    def lock_in_turn(some):
        for tree in some:
            with source_tree_lock(tree):
                pass

    def lock_at_once():
        with contextlib.ExitStack() as stack:
            for tree in trees[:at_once]:
                stack.enter_context(source_tree_lock(tree))
            return len(os.listdir("/proc/self/fd"))

    # The first half fills what the interpreter itself keeps for later use.
    lock_in_turn(trees[: in_turn // 2])
    lock_at_once()
    before = usage()
    lock_in_turn(trees[in_turn // 2 :])
    most = lock_at_once()
    after = usage()
    tell(most, after[0] - before[0], after[1] - before[1])
"""


def test_many_trees_in_turn_and_at_once_leave_nothing_in_memory(
    crew: Crew, tree: Path, temp_dir: Path, long_run: bool, count_cases: Callable[[int], None]
) -> None:
    in_turn, at_once = (5000, 500) if long_run else (2000, 200)
    member = crew.start(_MANY_TREES, tree, in_turn, at_once)
    most, leaked, blocks = map(int, member.line().split())
    assert most >= 2 * at_once
    assert len(list(temp_dir.glob("*.lock"))) == in_turn
    assert leaked == 0
    # Less than one object for ten trees: nothing is kept for each of them.
    assert blocks < in_turn / 20
    count_cases(in_turn + at_once)
