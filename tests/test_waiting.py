"""Waiting: in the kernel's queue, for one lock after the other, and ended at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from in_line import each_lock, holding, lock_file
from support import (
    LIMIT,
    Child,
    is_free,
    long_after,
    wait_until,
    wait_until_asleep,
    wait_until_blocked,
    waiters,
)
from ways import WAITS, script

from source_tree_lock import source_tree_lock

__all__ = ["lock_file"]  # a fixture
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="asks /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


def sleeps_for(seconds: float, pid: int) -> bool:
    """Whether no thread of a process wakes up for a while (proc_pid_status(5))."""

    def switches() -> list[str]:
        statuses = sorted(Path(f"/proc/{pid}/task").glob("*/status"))
        return [each.read_text().partition("voluntary_ctxt_switches:")[2] for each in statuses]

    before = switches()
    time.sleep(seconds)
    return switches() == before


@each_lock
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_sleeps_in_the_kernels_queue_until_it_is_granted(
    wait: str, blocked_by: str, tree: Path, lock_file: Path
) -> None:
    with holding(tree, blocked_by) as holder, Child(script(wait), tree) as waiter:
        wait_until_blocked(waiter.pid)
        awaited = tree if blocked_by == "tree" else lock_file
        # The kernel gives a long list in pieces: while others change, it may name a waiter twice.
        wait_until(lambda: waiters(awaited) == [waiter.pid])
        assert not is_free(lock_file)
        # It may be about to fall asleep, and looks once a second. One that polls wakes every 50 ms.
        wait_until(lambda: sleeps_for(0.3, waiter.pid))
        holder.say()
        waiter.expect("held")
        assert not is_free(tree)


#: A child that is interrupted during its wait, tells so, and lives on.
INTERRUPTED = """
# Python 3.15 loses a Ctrl-C that comes in the midst of an import ("Exception ignored").
import json
from source_tree_lock import _deadlocks, _handover, _wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
try:
    {}
except KeyboardInterrupt:
    tell("interrupted")
heard()
"""


@pytest.mark.parametrize("blocked_by", long_after(1, ["tree", "lock file"]))
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_at_once_and_leaves_nothing_locked(
    wait: str, blocked_by: str, tree: Path, lock_file: Path
) -> None:
    with holding(tree, blocked_by) as holder, Child(script(wait, INTERRUPTED), tree) as waiter:
        wait_until_asleep(waiter.pid)
        waiter.process.send_signal(signal.SIGINT)
        waiter.expect("interrupted")
        assert holder.is_silent(0), "the holder was not needed"
        assert is_free(lock_file) is (blocked_by == "tree")
        holder.say()
        holder.expect("released")
        wait_until(lambda: is_free(lock_file) and is_free(tree))


@each_lock
def test_a_symlink_is_followed_to_where_it_leads_when_the_wait_is_over(
    blocked_by: str, tree: Path
) -> None:
    link, other = tree.parent / "link", tree.parent / "other"
    other.mkdir()
    link.symlink_to(tree)

    def look() -> list[bool]:
        return [is_free(each) for each in (other, tree, source_tree_lock(tree).lock_file)]

    with holding(tree, blocked_by) as holder, ThreadPoolExecutor(1) as pool:
        entered = pool.submit(source_tree_lock(link)(look))
        wait_until_blocked(os.getpid())
        link.unlink()
        link.symlink_to(other)
        holder.say()
        holder.expect("released")
        assert entered.result(LIMIT) == [False, True, True]
