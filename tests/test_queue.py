"""The line of a process: one thread waits for all callers, first come, first served."""

from __future__ import annotations

import _thread
import asyncio
import gc
import logging
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from in_line import WaitingTask, line_of, lock_file_of, waiting_in_line
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    open_descriptors,
    wait_until,
    wait_until_blocked,
)
from ways import PRELUDE

from source_tree_lock import LockTimeout, LockUnavailable, _queue, source_tree_lock
from source_tree_lock._kernel_lock import KernelLock
from source_tree_lock._paths.lock_file import Place, open_lock_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no queue to wait in")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture
def lock_file(tree: Path) -> Iterator[Path]:
    yield from lock_file_of(tree)


@linux_only
def test_one_thread_waits_for_all_callers_of_a_lock_file(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    work = """
        trees = sys.argv[1:]
        before = set(os.listdir("/proc/self/fd"))
        threads = [
            threading.Thread(target=source_tree_lock(tree, timeout=60).__enter__, daemon=True)
            for tree in trees for _ in range(20)
        ]
        async def enter(tree):
            async with source_tree_lock(tree):
                pass
        async def main():
            tasks = [asyncio.create_task(enter(tree)) for tree in trees for _ in range(20)]
            for thread in threads:
                thread.start()
            from source_tree_lock import _queue
            # A thread counts itself, once it runs.
            while (
                sum(len(line.callers) for line in _queue._lines.values()) < 40 * len(trees)
                or _thread._count() < 21 * len(trees)
            ):
                await asyncio.sleep(0.001)
            tell(len(_queue._lines), _thread._count())
            heard()
            opened = set(os.listdir("/proc/self/fd")) - before
            leads = [os.readlink(f"/proc/self/fd/{each}") for each in opened if
                     os.path.exists(f"/proc/self/fd/{each}")]
            tell(len([each for each in leads if each.endswith(".lock") or each in trees]))
            heard()
            os._exit(0)
        asyncio.run(main())
    """
    with held_elsewhere(tree), held_elsewhere(other):
        for trees in ((tree,), (tree, other)):
            with Child(PRELUDE + textwrap.dedent(work), *trees) as child:
                count = len(trees)
                child.expect(f"{count} {20 * count + count}")
                wait_until_blocked(child.pid)
                child.say()
                assert 1 <= int(child.line()) <= count


def test_callers_get_in_first_come_first_served(tree: Path, lock_file: Path) -> None:
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
                if number % 2:
                    tasks.append(asyncio.create_task(asyncio.to_thread(enter, number)))
                else:
                    tasks.append(asyncio.create_task(enter_async(number)))
                while waiting_in_line(lock_file) <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            holder.say()
            await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)

    asyncio.run(main())
    assert order == list(range(12))


def test_a_caller_that_gave_up_leaves_its_place_to_the_next(tree: Path, lock_file: Path) -> None:
    async def enter() -> str:
        async with source_tree_lock(tree):
            return "in"

    async def stand_in_line(places: int) -> asyncio.Task[str]:
        task = asyncio.create_task(enter())
        while waiting_in_line(lock_file) < places:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return task

    async def main() -> None:
        with held_elsewhere(tree) as holder:
            first, second, third = [await stand_in_line(places) for places in (1, 2, 3)]
            for task in (first, third):
                task.cancel()
            await asyncio.wait((first, third), timeout=LIMIT)
            assert waiting_in_line(lock_file) == 1
            holder.say()
            assert await asyncio.wait_for(second, LIMIT) == "in"

    asyncio.run(main())


# Given up without a trace


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The callers that have stood in line so far: a short timeout may be over before."""
    callers: list[object] = []
    join = _queue.Caller.join

    def count(self: _queue.Caller, place: Place) -> None:
        callers.append(self)
        join(self, place)

    monkeypatch.setattr(_queue.Caller, "join", count)
    return callers


def test_300_waits_that_time_out_leave_one_thread_and_one_descriptor(
    tree: Path, lock_file: Path, joined: list[object], no_leaks: object
) -> None:
    def wait_in_vain(so_many: int) -> None:
        while len(joined) < so_many:
            assert not source_tree_lock(tree).acquire(timeout=0.01)

    async def wait_in_vain_async() -> None:
        with pytest.raises(LockTimeout):
            await source_tree_lock(tree, timeout=0.2).__aenter__()

    async def main() -> None:
        while len(joined) < 300:
            tasks = (wait_in_vain_async() for _ in range(50))
            await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)

    with held_elsewhere(tree) as holder:
        before, threads_before = open_descriptors(), _thread._count()
        wait_in_vain(50)
        threads = [threading.Thread(target=wait_in_vain, args=(150,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        asyncio.run(main())
        assert waiting_in_line(lock_file) == 0
        wait_until(lambda: _thread._count() == threads_before + 1)
        left = open_descriptors() - before
        assert [each.split(" -> ")[1] for each in left] == [str(lock_file)]
        holder.say()
        holder.expect("released")
        wait_until(lambda: _thread._count() == threads_before)
        wait_until(lambda: open_descriptors() <= before)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_grant_that_nobody_wants_any_more_is_released_at_once(
    asynchronous: bool, tree: Path, lock_file: Path, joined: list[object], no_leaks: object
) -> None:
    async def wait_in_vain() -> None:
        with pytest.raises(LockTimeout):
            await source_tree_lock(tree, timeout=0.05).__aenter__()

    with held_elsewhere(tree) as holder:
        while not joined:
            if asynchronous:
                asyncio.run(wait_in_vain())
            else:
                assert not source_tree_lock(tree).acquire(timeout=0.05)
        assert line_of(lock_file) is not None
        holder.say()
        holder.expect("released")
        wait_until(lambda: is_free(lock_file))
        wait_until(lambda: line_of(lock_file) is None)


def test_a_process_ends_at_once_though_its_thread_waits(tree: Path) -> None:
    work = """
while not _thread._count():
    assert not source_tree_lock(tree).acquire(timeout=0.05)
tell("done")
"""
    with held_elsewhere(tree) as holder, Child(PRELUDE + work, tree) as child:
        child.expect("done")
        assert child.process.wait(LIMIT) == 0
        assert holder.is_silent(0)


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
        joined += str(lock.lock_file) in _queue._lines
        lock.release()
    assert joined, "nobody ever stood in line"
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_try_is_refused_while_somebody_else_has_what_the_thread_waits_for(
    tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)
    with held_elsewhere(tree) as holder:
        while str(lock.lock_file) not in _queue._lines:
            assert not lock.acquire(timeout=0.05)
        for _ in range(20):
            assert not lock.acquire(blocking=False)
        holder.say()
        holder.expect("released")
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_try_is_refused_though_the_thread_waits_for_a_lock_file_that_was_replaced(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    """Its caller gave up, and it is about to be granted the old file, which nobody wants."""
    place = Place(str(lock_file), is_named=False)
    line = _queue._Line(place)
    line.file = open_lock_file(place)
    lock_file.unlink()
    somebody_else = open_lock_file(place)
    assert somebody_else.try_lock()
    with monkeypatch.context() as patch:
        patch.setitem(_queue._lines, place.path, line)
        assert not source_tree_lock(tree).acquire(blocking=False)
        assert not line.is_taken_over
    somebody_else.close()
    line.file.close()


# Loops that are closed, and tasks that are cancelled


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio logs that tasks are destroyed, which is what these tests do."""
    caplog.set_level(logging.CRITICAL, "asyncio")


def test_a_thread_that_nobody_needs_any_more_has_ended_when_the_interpreter_ends(
    tree: Path,
) -> None:
    """One that wakes while CPython ends may crash it."""
    script = """
        import atexit
        from source_tree_lock import source_tree_lock
        # Before the library's own, and so called after it.
        atexit.register(lambda: tell(len(sys.modules["source_tree_lock._queue"]._lines)))
        def give_up():
            tell(source_tree_lock(sys.argv[1]).acquire(timeout=0.05))
        with source_tree_lock(sys.argv[1]):
            thread = threading.Thread(target=give_up)
            thread.start()
            thread.join()
            from source_tree_lock import _queue
            drop = _queue._Line._drop
            def drop_slowly(*arguments):
                time.sleep(0.2)
                drop(*arguments)
            _queue._Line._drop = drop_slowly
            _queue._LONGEST_END = 60
    """
    with Child(PRELUDE + textwrap.dedent(script), tree) as child:
        child.expect("False")
        child.expect("0")
        assert child.end() == 0


@pytest.mark.usefixtures("_quiet")
def test_a_grant_to_a_closed_loop_is_released(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
        waiting.loop.close()
        assert waiting_in_line(lock_file) == 1
        holder.say()
        holder.expect("released")
        wait_until(lambda: line_of(lock_file) is None)
        assert is_free(lock_file)
        with source_tree_lock(tree, timeout=0):
            pass
        del waiting
        gc.collect()


@pytest.mark.usefixtures("_quiet")
def test_a_grant_to_a_closed_loop_goes_to_the_next_in_line(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
        got_in: list[bool] = []

        def enter() -> None:
            with source_tree_lock(tree, timeout=LIMIT) as lock:
                got_in.append(lock.locked())

        thread = threading.Thread(target=enter)
        thread.start()
        wait_until(lambda: waiting_in_line(lock_file) == 2)
        waiting.loop.close()
        holder.say()
        thread.join(LIMIT)
        assert got_in == [True]
        del waiting
        gc.collect()


@pytest.mark.usefixtures("_quiet")
def test_a_grant_that_is_on_its_way_when_the_loop_is_closed_is_released(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
        waiting.run_once(partial(waiting.let_grant, holder))
        waiting.loop.close()
        wait_until(lambda: is_free(lock_file))  # though somebody keeps the task
        del waiting
        gc.collect()


def test_a_loop_that_has_stopped_keeps_nobody_out_and_asks_again_when_it_goes_on(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
        holder.say()
        holder.expect("released")
        wait_until(lambda: line_of(lock_file) is None)
        assert is_free(lock_file)
        with held_elsewhere(tree) as second:
            while not waiting_in_line(lock_file):
                waiting.run_once()
            second.say()
            waiting.loop.run_until_complete(waiting.task)
        waiting.loop.close()


def test_what_a_task_took_is_offered_to_nobody_else_though_its_loop_has_ended_since() -> None:
    """The line's thread looks now and then whether the loop still runs, and may be late."""

    async def stand() -> _queue.TaskCaller:
        caller = _queue.TaskCaller()
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


@pytest.mark.parametrize("granted", ["never", "before", "seen before", "after"])
def test_a_cancelled_task_gives_back_what_it_was_granted_in_that_moment(
    granted: str, tree: Path, lock_file: Path, no_leaks: object
) -> None:
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
        if granted != "never":
            wait_until(lambda: is_free(lock_file))
        assert caught.tb is not None
        waiting.loop.close()


def test_a_grant_in_the_turn_of_the_loop_in_which_the_time_is_up_is_taken(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monotonic, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[0])
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file, timeout=LIMIT)
        loop = waiting.loop

        def let_grant() -> None:
            waiting.let_grant(holder)
            loop.stop()

        time_is_up = loop.time() + LIMIT
        loop.call_at(time_is_up, let_grant)  # after the task's own timer, in one turn
        ahead[0] = LIMIT
        wait_until(lambda: loop.time() > time_is_up)
        loop.run_forever()
        loop.run_until_complete(waiting.task)  # a LockTimeout would name ourselves
        waiting.loop.close()


def test_a_cancelled_wait_does_not_end_with_the_holder(tree: Path, lock_file: Path) -> None:
    async def main() -> None:
        waiting = asyncio.Event()
        lock = source_tree_lock(tree, on_wait=lambda holder: waiting.set())
        task = asyncio.create_task(lock.__aenter__())
        await asyncio.wait_for(waiting.wait(), LIMIT)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with held_elsewhere(tree) as holder:
        asyncio.run(main())
        assert holder.is_silent(0), "the holder was not needed"


def test_no_executor_is_used(tree: Path, lock_file: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def never(*_: object) -> None:
            raise AssertionError("an executor's threads are joined at exit")

        loop.run_in_executor = never  # type: ignore[method-assign,assignment]
        with held_elsewhere(tree) as holder:
            lock = source_tree_lock(tree, on_wait=lambda _: loop.call_later(0.01, holder.say))
            async with lock:
                holder.expect("released")
            assert getattr(loop, "_default_executor", None) is None

    asyncio.run(main())


def test_other_tasks_run_while_one_waits(tree: Path, lock_file: Path) -> None:
    async def main() -> None:
        with held_elsewhere(tree) as holder:
            # The holder lets go only if another task runs during the wait.
            waiting = asyncio.Event()

            async def other() -> None:
                await waiting.wait()
                await asyncio.sleep(0.01)
                holder.say()

            task = asyncio.create_task(other())
            async with source_tree_lock(tree, on_wait=lambda _: waiting.set(), timeout=LIMIT):
                await task

    asyncio.run(main())


# Faults of the thread that waits


def test_an_error_that_meets_the_thread_reaches_every_caller(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    start = threading.Event()

    def lock(self: KernelLock) -> None:
        assert start.wait(LIMIT)
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(KernelLock, "lock", lock)
    outcomes: list[BaseException] = []

    def enter() -> None:
        with pytest.raises(LockUnavailable) as caught:
            source_tree_lock(tree, timeout=LIMIT).acquire()
        outcomes.append(caught.value)

    with held_elsewhere(tree):
        threads = [threading.Thread(target=enter) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: waiting_in_line(lock_file) == 3)
        start.set()
        for thread in threads:
            thread.join(LIMIT)
    assert len(outcomes) == 3
    for error in outcomes:
        assert isinstance(error, LockUnavailable)
        assert (error.errno, error.filename) == (5, str(lock_file))


class Alarm(Exception):
    """What a signal handler raises."""


def test_what_a_signal_handler_raises_while_the_thread_starts_is_what_the_caller_gets(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def start(serve: Callable[[], None], arguments: tuple[()]) -> None:
        start_new_thread(serve, arguments)
        raise Alarm

    start_new_thread = _thread.start_new_thread
    with held_elsewhere(tree) as child:
        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", start)
            with pytest.raises(Alarm):
                source_tree_lock(tree, timeout=LIMIT).acquire()
        assert line_of(lock_file) is None
        # The thread that runs on its own by now keeps nobody from waiting, or from the lock.
        assert not source_tree_lock(tree).acquire(timeout=0.01)
        child.say()
        child.expect("released")
    with source_tree_lock(tree, timeout=LIMIT):
        pass


def test_where_no_thread_can_be_started_the_lock_is_unavailable(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def start(serve: Callable[[], None], arguments: tuple[()]) -> None:
        raise RuntimeError("can't start new thread")

    with held_elsewhere(tree):
        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", start)
            with pytest.raises(LockUnavailable, match="can't start new thread"):
                source_tree_lock(tree, timeout=LIMIT).acquire()
        assert line_of(lock_file) is None
        assert not source_tree_lock(tree).acquire(timeout=0.01)
