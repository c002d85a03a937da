"""Crowds: everybody gets in, in a fair order."""

from __future__ import annotations

import time
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
    import mmap
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

    lock = source_tree_lock(tree, timeout=seconds)
    waits = []
    tell("ready")
    heard()
    for _ in range(times):
        asked = now()
        with lock:
            waits.append(take_turn(asked))
        time.sleep(0.002)
    tell(max(waits))
"""
#: How often each one enters: so often that somebody who is passed over waits too long.
TIMES = 5
#: How often all others may have a turn before one has its own: seldom more than four times on an
#: idle machine. The kernel wakes all that wait, and the scheduler chooses.
FAIR = 10


def _wait_until_blocked(*members: Member) -> None:
    """Until each of them is in the kernel's queue."""
    pids = {str(member.pid) for member in members}
    deadline = time.monotonic() + LIMIT
    while pids:
        assert time.monotonic() < deadline, f"{len(pids)} do not wait"
        pids.difference_update(fields[5] for fields in listed_locks() if fields[1] == "->")
        time.sleep(0.001)


@pytest.mark.once
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_a_crowd_of_processes_gets_in_and_waits_a_few_fair_turns_at_most(
    crew: Crew,
    tree: Path,
    tmp_path: Path,
    seconds: float | None,
    long_run: bool,
) -> None:
    counter = tmp_path / "turns"
    counter.write_bytes(bytes(8))
    number = 200 if long_run else 20
    members = [crew.start(_TURNS, tree, counter, TIMES, 0.01, seconds) for _ in range(number)]
    for member in members:
        member.expect("ready")
    with source_tree_lock(tree):
        for member in members:
            member.say("go")
            if not long_run:
                _wait_until_blocked(member)
        _wait_until_blocked(*members)
    longest = max(int(member.line(3 * LIMIT)) for member in members)
    assert int.from_bytes(counter.read_bytes(), "little") == number * TIMES
    assert longest <= FAIR * number
