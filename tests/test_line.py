"""The line of a process: a thread that waits for callers that gave up refuses nobody."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from support import LIMIT, held_elsewhere

from source_tree_lock import _line, source_tree_lock
from source_tree_lock._kernel_lock import KernelLock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no queue to wait in")


def test_a_try_is_not_refused_for_the_thread_of_a_caller_that_gave_up(
    tree: Path, long_run: bool, no_leaks: object
) -> None:
    """Its thread may be granted the lock at any moment after the holder left."""
    lock = source_tree_lock(tree)

    def give_up() -> None:
        assert not source_tree_lock(tree).acquire(timeout=0.02)

    joined = 0
    for _ in range(200 if long_run else 25):
        assert lock.acquire(blocking=False)
        thread = threading.Thread(target=give_up)
        thread.start()
        thread.join(LIMIT)
        joined += str(lock.lock_file) in _line._lines
        lock.release()
    assert joined, "nobody ever stood in line"
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_try_is_refused_while_somebody_else_has_what_the_thread_waits_for(
    tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)
    with held_elsewhere(tree) as holder:
        while str(lock.lock_file) not in _line._lines:
            assert not lock.acquire(timeout=0.05)
        for _ in range(20):
            assert not lock.acquire(blocking=False)
        holder.say()
        holder.expect("released")
    assert lock.acquire(blocking=False)
    lock.release()


def test_what_a_task_took_is_offered_to_nobody_else_though_its_loop_has_ended_since() -> None:
    """The line's thread looks now and then whether the loop still runs, and may be late."""

    async def stand() -> _line.TaskCaller:
        caller = _line.TaskCaller()
        assert caller.offer(file)
        return caller

    class Late:
        """The mutex of an offer: the task takes it in the moment in which the time is up."""

        def __init__(self) -> None:
            self.is_locked = True

        def locked(self) -> bool:
            return self.is_locked

        def release(self) -> None:
            self.is_locked = False

        def acquire(self, blocking: bool, timeout: float = -1) -> bool:
            if blocking:
                assert caller.granted() is file
                return False
            return not self.is_locked

    file = KernelLock("lock file")
    caller = asyncio.run(stand())  # its loop has ended
    caller._taken = Late()  # type: ignore[assignment]
    assert caller.takes()
    assert caller.is_told()
