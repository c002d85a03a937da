"""The queue of a process: one thread waits for all callers, first come, first served."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from in_line import (
    WaitingTask,
    each_lock,
    has_queue,
    holding,
    lock_file,
    until_waiting,
    waiting_in_line,
)
from support import (
    LIMIT,
    Child,
    flocked,
    held_elsewhere,
    in_thread,
    is_free,
    long_after,
    open_descriptors,
    wait_until,
    wait_until_blocked,
)

from source_tree_lock import LockTimeout, LockUnavailable, _wait, source_tree_lock
from source_tree_lock._kernel_lock import KernelLock

__all__ = ["lock_file"]  # a fixture
pytestmark = pytest.mark.usefixtures("no_leaks")


#: Many wait for a tree, in tasks and in threads. Argument: the tree.
CROWD = """
    import asyncio, os, threading
    from source_tree_lock import source_tree_lock
    tree, told = sys.argv[1], []
    def enter():
        with source_tree_lock(tree, on_wait=told.append):
            pass
    async def enter_async():
        async with source_tree_lock(tree, on_wait=told.append):
            pass
    async def main():
        before = len(os.listdir("/proc/self/fd"))
        threads = [threading.Thread(target=enter) for _ in range(20)]
        for thread in threads:
            thread.start()
        tasks = [asyncio.create_task(enter_async()) for _ in range(500)]
        while len(told) < 520:
            await asyncio.sleep(0.001)
        tell("all wait")
        await asyncio.to_thread(heard)  # which is the 22nd thread
        # Some may look into /proc just now, and the thread of the queue may open what it waits for.
        while len(os.listdir("/proc/self/fd")) > before + 4:
            await asyncio.sleep(0.01)
        tell(len(os.listdir("/proc/self/task")) - 22)
        await asyncio.gather(*tasks)
    asyncio.run(main())
    tell("all were in")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("blocked_by", long_after(1, ["lock file", "tree"]))
def test_one_thread_and_few_descriptors_serve_500_tasks_and_20_threads(
    blocked_by: str, tree: Path
) -> None:
    with holding(tree, blocked_by) as holder, Child(CROWD, tree) as child:
        child.expect("all wait")
        wait_until_blocked(child.pid)
        child.say()
        # While one waits for the tree, with the lock file, the others wait for the lock file.
        child.expect("2" if blocked_by == "tree" else "1")
        holder.say()
        child.expect("all were in")
        assert child.end() == 0


def test_callers_get_in_first_come_first_served_but_those_that_gave_up(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wait, "CHECK_AFTER", 0.01)  # a caller that checks its wait keeps its place
    order: list[int] = []

    def enter(number: int) -> None:
        with source_tree_lock(tree, timeout=LIMIT):
            order.append(number)

    async def enter_async(number: int) -> None:
        async with source_tree_lock(tree):
            order.append(number)

    async def main() -> None:
        tasks = []
        with held_elsewhere(tree) as holder:
            for number in range(12):
                way = asyncio.to_thread(enter, number) if number % 2 else enter_async(number)
                tasks.append(asyncio.create_task(way))
                await until_waiting(lock_file, number + 1)
                await asyncio.sleep(0.02)
            for task in tasks[::4]:
                task.cancel()
            await until_waiting(lock_file, 9)
            holder.say()
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT)

    asyncio.run(main())
    assert order == [number for number in range(12) if number % 4]


# Callers that gave up


@each_lock
def test_waits_that_time_out_in_a_loop_leave_one_thread_and_one_descriptor(
    blocked_by: str, tree: Path, lock_file: Path
) -> None:
    def wait_in_vain(_: int = 0) -> None:
        for _ in range(10):
            assert not source_tree_lock(tree).acquire(timeout=0.03)

    async def time_out() -> None:
        with pytest.raises(LockTimeout):
            await source_tree_lock(tree, timeout=0.2).__aenter__()

    async def main() -> None:
        await asyncio.gather(*(time_out() for _ in range(100)))

    awaited = tree if blocked_by == "tree" else lock_file
    with holding(tree, blocked_by) as holder:
        before, threads_before = open_descriptors(), threading.active_count()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(wait_in_vain, range(10)))
        asyncio.run(main())
        while not has_queue(awaited):  # all may have been too busy to stand in it
            wait_in_vain()
        assert waiting_in_line(awaited) == 0
        wait_until(lambda: threading.active_count() == threads_before + 1)
        left = [each.split(" -> ")[1] for each in open_descriptors() - before]
        assert left in ([], [str(awaited)])
        holder.say()
        holder.expect("released")
        wait_until(lambda: is_free(lock_file) and is_free(tree))
        wait_until(lambda: threading.active_count() == threads_before)


def test_a_process_ends_at_once_though_its_thread_waits(tree: Path) -> None:
    work = """
        import threading
        from source_tree_lock import source_tree_lock
        while threading.active_count() == 1:
            assert not source_tree_lock(sys.argv[1]).acquire(timeout=0.05)
    """
    with held_elsewhere(tree) as holder, Child(work, tree) as child:
        assert child.process.wait(LIMIT) == 0
        assert holder.is_silent(0)


def test_a_try_is_not_refused_for_callers_that_gave_up(tree: Path, long_run: bool) -> None:
    """Their thread may be granted the lock at any moment after the holder left."""
    lock = source_tree_lock(tree)
    seconds = 0.02
    for _ in range(200 if long_run else 25):
        assert lock.acquire(blocking=False)
        is_awaited = False
        while not is_awaited:
            assert not in_thread(partial(source_tree_lock(tree).acquire, timeout=seconds))
            is_awaited = has_queue(lock.lock_file)
            seconds *= 1 if is_awaited else 2  # a busy machine takes longer to stand in the queue
        lock.release()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_try_is_refused_while_another_process_has_what_the_thread_waits_for(
    is_replaced: bool, tree: Path, lock_file: Path
) -> None:
    lock = source_tree_lock(tree)
    with held_elsewhere(tree) as holder, ExitStack() as stack:
        while not has_queue(lock_file):
            assert not lock.acquire(timeout=0.05)
        if is_replaced:  # the thread is about to be granted the old file, which nobody wants
            lock_file.unlink()
            lock_file.touch()
            stack.enter_context(flocked(lock_file))
            holder.say()
            holder.expect("released")
        for _ in range(20):
            assert not lock.acquire(blocking=False)
    assert lock.acquire(blocking=False)
    lock.release()


# Loops that stop or are closed, and tasks that are cancelled


@pytest.mark.parametrize("granted", ["before", "after"])
def test_a_loop_that_is_closed_keeps_nobody_out(
    granted: str, tree: Path, lock_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The grant goes to the next in the queue, though the task that waited is still referenced."""
    caplog.set_level(logging.CRITICAL, "asyncio")  # it logs that a task is destroyed
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
        if granted == "before":
            waiting.run_once(partial(waiting.let_grant, holder))
        waiting.loop.close()
        if granted == "after":
            holder.say()
        assert in_thread(source_tree_lock(tree, timeout=LIMIT)(lambda: "in")) == "in"
        wait_until(lambda: not has_queue(lock_file))
        del waiting
        gc.collect()


def test_a_loop_that_has_stopped_keeps_nobody_out_and_its_task_tries_again_when_it_goes_on(
    tree: Path, lock_file: Path
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
        waiting.run_once(partial(waiting.let_grant, holder))
        wait_until(lambda: is_free(lock_file))
        with held_elsewhere(tree) as second:
            waiting.run_until_waiting()
            second.say()
            waiting.loop.run_until_complete(waiting.task)
        waiting.loop.close()


@pytest.mark.parametrize("granted", ["never", "before", "seen before", "after"])
def test_a_cancelled_task_gives_back_what_it_was_granted_in_that_moment(
    granted: str, tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a second passes in each step: the task is not to look meanwhile.
    monkeypatch.setattr(_wait, "CHECK_AFTER", LIMIT)
    monkeypatch.setattr(_wait, "_LONGEST_PAUSE", LIMIT)
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
        if "before" in granted:
            waiting.run_once(partial(waiting.let_grant, holder))
        if granted == "seen before":
            waiting.run_once()  # the task is told, and has not run since
        if granted == "after":
            # In one run of the loop: the cancellation is on its way, and then the grant.
            waiting.run_once(waiting.task.cancel, partial(waiting.let_grant, holder))
        else:
            waiting.task.cancel()
        # The loop does not run once more, as between two runs of an asyncio.Runner.
        while not waiting.task.done():
            waiting.run_once()
        # The error keeps alive what the task had: nothing is given back by chance.
        with pytest.raises(asyncio.CancelledError) as caught:
            waiting.task.result()
        assert waiting_in_line(lock_file) == 0
        if granted == "never":
            assert holder.is_silent(0), "the holder was not needed"
        else:
            wait_until(lambda: is_free(lock_file))
        assert caught.tb is not None
        waiting.loop.close()


# Faults of the thread that waits


def test_an_error_that_meets_the_thread_reaches_every_caller(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Event()

    def fail(self: KernelLock) -> None:
        assert start.wait(LIMIT)
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(KernelLock, "lock", fail)
    with held_elsewhere(tree), ThreadPoolExecutor(3) as pool:
        lock = source_tree_lock(tree, timeout=LIMIT)
        entries = [pool.submit(lock.acquire) for _ in range(3)]
        wait_until(lambda: waiting_in_line(lock_file) == 3)
        start.set()
        for each in entries:
            error = each.exception(LIMIT)
            assert isinstance(error, LockUnavailable)
            assert (error.errno, error.filename) == (5, str(lock_file))


def test_where_no_thread_can_be_started_a_caller_asks_again_and_again(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with held_elsewhere(tree) as holder:
        with source_tree_lock(tree, timeout=LIMIT, on_wait=lambda _: holder.say()):
            assert not has_queue(lock_file)
        holder.expect("released")
