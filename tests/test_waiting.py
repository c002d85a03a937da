"""Waiting: in the kernel's queue, on one thread for all callers, and given up without a trace."""

from __future__ import annotations

import _thread
import asyncio
import gc
import logging
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    open_descriptors,
    wait_until,
    wait_until_blocked,
)
from ways import PRELUDE, WAITS, script

from source_tree_lock import (
    LockTimeout,
    LockUnavailable,
    Wait,
    _kernel_lock,
    _line,
    source_tree_lock,
)
from source_tree_lock._kernel_lock import KernelLock
from source_tree_lock._paths.lock_file import Place

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no queue to wait in")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def line_of(lock_file: Path) -> _line._Line | None:
    return _line._lines.get(str(lock_file))


def waiting_in_line(lock_file: Path) -> int:
    line = line_of(lock_file)
    return len(line.callers) if line else 0


@pytest.fixture
def lock_file(tree: Path) -> Iterator[Path]:
    """The lock file of the tree; at the end, nobody may be left in line for it."""
    path = source_tree_lock(tree).lock_file
    yield path
    wait_until(lambda: line_of(path) is None)
    wait_until(lambda: line_of(path) is None)


# A free tree


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_free_tree_costs_no_thread_no_sleep_and_no_log(
    timeout: float | None,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    no_leaks: object,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a free tree needs none of this")

    async def main() -> None:
        monkeypatch.setattr(asyncio, "sleep", never)
        async with source_tree_lock(tree, timeout=timeout, on_wait=never):
            pass

    with source_tree_lock(tree):
        pass  # what portalocker imports the first time, such as redis, makes classes of threads
    monkeypatch.setattr(time, "sleep", never)
    monkeypatch.setattr(threading, "Thread", never)
    with source_tree_lock(tree, timeout=timeout, on_wait=never):
        pass
    asyncio.run(main())
    assert [record for record in caplog.records if record.name == "source_tree_lock"] == []


# In the kernel's queue


def voluntary_switches(pid: int) -> int:
    """How often the threads of a process went to sleep so far (proc_pid_status(5))."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_for_the_lock_file_sleeps_in_the_kernel_until_it_is_granted(
    wait: str, tree: Path
) -> None:
    with held_elsewhere(tree) as holder, Child(script(wait), tree) as waiter:
        wait_until_blocked(waiter.pid)
        # The thread that waits for another one may be about to fall asleep still.
        time.sleep(0.1)
        before = voluntary_switches(waiter.pid)
        assert before > 0
        assert waiter.is_silent(0.3)
        assert voluntary_switches(waiter.pid) == before, "it woke up, and so it polls"
        holder.say()
        waiter.expect("held")


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
            from source_tree_lock import _line
            # A thread counts itself, once it runs.
            while (
                sum(len(line.callers) for line in _line._lines.values()) < 40 * len(trees)
                or _thread._count() < 21 * len(trees)
            ):
                await asyncio.sleep(0.001)
            tell(len(_line._lines), _thread._count())
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
    join = _line.Caller.join

    def count(self: _line.Caller, place: Place) -> None:
        callers.append(self)
        join(self, place)

    monkeypatch.setattr(_line.Caller, "join", count)
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


# Loops that are closed, and tasks that are cancelled


class Waiting:
    """A task that waits in line, in a loop that only runs when it is told to."""

    def __init__(self, tree: Path, lock_file: Path, timeout: float | None = None) -> None:
        self.lock_file = lock_file
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(self._enter(tree, timeout))
        while not waiting_in_line(lock_file):
            self.run_once()

    async def _enter(self, tree: Path, timeout: float | None) -> None:
        async with source_tree_lock(tree, timeout=timeout):
            pass

    def run_once(self, *functions: Callable[[], object]) -> None:
        """Run what is ready, and `functions`, during which the loop runs and gets nowhere."""

        def call() -> None:
            for function in functions:
                function()
            self.loop.stop()

        self.loop.call_soon(call)
        self.loop.run_forever()

    def let_grant(self, holder: Child) -> None:
        """The holder lets go; the loop, which must get nowhere, has been told of the grant."""
        holder.say()
        holder.expect("released")
        wait_until(lambda: (line := line_of(self.lock_file)) is None or not line.callers)
        assert not is_free(self.lock_file)


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio logs that tasks are destroyed, which is what these tests do."""
    caplog.set_level(logging.CRITICAL, "asyncio")


@pytest.mark.usefixtures("_quiet")
def test_a_grant_to_a_closed_loop_is_released(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = Waiting(tree, lock_file)
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
        waiting = Waiting(tree, lock_file)
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
        waiting = Waiting(tree, lock_file)
        waiting.run_once(partial(waiting.let_grant, holder))
        waiting.loop.close()
        wait_until(lambda: is_free(lock_file))  # though somebody keeps the task
        del waiting
        gc.collect()


def test_a_loop_that_has_stopped_keeps_nobody_out_and_asks_again_when_it_goes_on(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = Waiting(tree, lock_file)
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


@pytest.mark.parametrize("granted", ["never", "before", "seen before", "after"])
def test_a_cancelled_task_gives_back_what_it_was_granted_in_that_moment(
    granted: str, tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = Waiting(tree, lock_file)
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
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = Waiting(tree, lock_file, timeout=0.1)
        loop = waiting.loop

        def let_grant() -> None:
            waiting.let_grant(holder)
            loop.stop()

        time_is_up = loop.time() + 0.1
        loop.call_at(time_is_up, let_grant)  # after the task's own timer, in one turn
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


# Ctrl-C

#: A child that is interrupted during its wait, tells so, and lives on.
INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def wait():
    try:
        {}
    except KeyboardInterrupt:
        tell("interrupted")
wait()
heard()
leads = [os.path.realpath(f"/proc/self/fd/{{each}}") for each in os.listdir("/proc/self/fd")]
tell("left", *[each for each in leads if each == os.path.realpath(tree)])
heard()
"""


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_for_the_lock_file_at_once_and_leaves_nothing_locked(
    wait: str, tree: Path, lock_file: Path
) -> None:
    work = script(wait, INTERRUPTED)
    with held_elsewhere(tree) as holder, Child(work, tree) as waiter:
        wait_until_blocked(waiter.pid)
        waiter.process.send_signal(signal.SIGINT)
        waiter.expect("interrupted")
        assert not is_free(lock_file), "the holder was not needed"
        holder.say()
        holder.expect("released")
        wait_until(lambda: is_free(lock_file))
        assert is_free(tree)
        waiter.say()
        waiter.expect("left")


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_for_the_tree_at_once_and_leaves_nothing_locked(
    wait: str, tree: Path, tmp_path: Path, lock_file: Path
) -> None:
    elsewhere = {"TMPDIR": str(tmp_path)}
    work = script(wait, INTERRUPTED)
    with held_elsewhere(tree, environ=elsewhere) as holder, Child(work, tree) as waiter:
        wait_until(lambda: lock_file.exists() and not is_free(lock_file))
        waiter.process.send_signal(signal.SIGINT)
        waiter.expect("interrupted")
        assert is_free(lock_file)
        assert not is_free(tree), "the holder was not needed"
        holder.say()
        holder.expect("released")
        assert is_free(tree)
        waiter.say()
        waiter.expect("left")


# The second lock


def test_giving_up_the_wait_for_the_tree_releases_the_lock_file_at_once(
    tree: Path, tmp_path: Path, lock_file: Path, no_leaks: object
) -> None:
    async def main() -> None:
        with pytest.raises(LockTimeout):
            await source_tree_lock(tree, timeout=0.01).__aenter__()

    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}):
        assert not source_tree_lock(tree).acquire(timeout=0.01)
        assert is_free(lock_file)
        asyncio.run(main())
        assert is_free(lock_file)
        assert line_of(lock_file) is None


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_for_the_tree_ends_with_its_holder(wait: str, tree: Path, tmp_path: Path) -> None:
    elsewhere = {"TMPDIR": str(tmp_path)}
    lock_file = source_tree_lock(tree).lock_file
    holding = held_elsewhere(tree, environ=elsewhere)
    with holding as holder, Child(script(wait), tree) as waiter:
        wait_until(lambda: lock_file.exists() and not is_free(lock_file))
        assert waiter.is_silent(0.1)
        holder.say()
        waiter.expect("held")
        assert not is_free(tree)


# Telling who is waited for


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("temp_dir_of_holder", ["temp", "."])
def test_whom_it_waits_for_is_told_once_and_logged_once(
    asynchronous: bool,
    temp_dir_of_holder: str,
    tree: Path,
    tmp_path: Path,
    lock_file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    told: list[Wait] = []

    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path / temp_dir_of_holder)}) as holder:

        def on_wait(who: Wait) -> None:
            told.append(who)
            threading.Timer(0.1, holder.say).start()

        lock = source_tree_lock(tree, timeout=LIMIT, on_wait=on_wait)

        async def main() -> None:
            async with lock, lock:
                pass

        if asynchronous:
            asyncio.run(main())
        else:
            with lock, lock:
                pass
        [who] = told
        assert who.holder is not None
        assert who.holder.pid == holder.pid
        [record] = [each for each in caplog.records if each.name == "source_tree_lock"]
        assert record.levelno == logging.INFO
        assert str(tree) in record.getMessage()
        assert str(holder.pid) in record.getMessage()


def test_an_error_in_on_wait_ends_the_wait_and_leaves_nothing_locked(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    def on_wait(holder: Wait) -> None:
        raise ZeroDivisionError

    with held_elsewhere(tree):
        for timeout in (None, LIMIT):
            with pytest.raises(ZeroDivisionError):
                source_tree_lock(tree, timeout=timeout, on_wait=on_wait).acquire()
        assert line_of(lock_file) is None


@linux_only
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["for ever", "in time"])
def test_a_symlink_that_is_turned_to_another_tree_during_a_wait_is_followed_there(
    timeout: float | None, tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    other.mkdir()
    link.symlink_to(tree)
    waiting, entered, leave = threading.Event(), threading.Event(), threading.Event()
    lock = source_tree_lock(link, timeout=timeout, on_wait=lambda _: waiting.set())

    def enter() -> None:
        with lock:
            entered.set()
            assert leave.wait(LIMIT)

    thread = threading.Thread(target=enter)
    with held_elsewhere(tree) as child:
        thread.start()
        assert waiting.wait(LIMIT)
        wait_until_blocked(os.getpid())
        link.unlink()
        link.symlink_to(other)
        child.say()
        child.expect("released")
    try:
        assert entered.wait(LIMIT)
        assert not is_free(other)
        assert is_free(tree)
        assert is_free(source_tree_lock(tree).lock_file)
    finally:
        leave.set()
        thread.join(LIMIT)


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


#: Waits, and is interrupted by a handler that enters the same tree. Arguments: the tree, a timeout.
ENTERS_IN_A_HANDLER = """
    import signal, source_tree_lock._waiting
    from source_tree_lock import source_tree_lock
    def handler(*_):
        tell("interrupted")
        try:
            with source_tree_lock(sys.argv[1]):
                tell("the handler is in")
        except RuntimeError as error:
            tell(error)
    signal.signal(signal.SIGUSR1, handler)
    with source_tree_lock(sys.argv[1], timeout=eval(sys.argv[2])):
        tell("in")
    signal.raise_signal(signal.SIGUSR1)  # now it may
    tell("free" if source_tree_lock(sys.argv[1]).acquire(timeout=0) else "held")
"""


@pytest.mark.parametrize(
    ("timeout", "waits_for"), [(3600, "lock file"), (3600, "tree"), (None, "tree")]
)
def test_what_interrupts_a_wait_does_not_wait_in_its_midst(
    timeout: int | None, waits_for: str, tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    """The interrupted wait has the lock file, or may be granted it, and can do nothing with it."""
    environ = {"TMPDIR": str(tmp_path)} if waits_for == "tree" else {}
    with (
        held_elsewhere(tree, environ=environ) as holder,
        Child(ENTERS_IN_A_HANDLER, tree, timeout) as waiter,
    ):
        if waits_for == "tree":
            wait_until(lambda: not is_free(lock_file))
        else:
            wait_until_blocked(waiter.pid)
        os.kill(waiter.pid, signal.SIGUSR1)
        waiter.expect("interrupted")
        assert "being entered by this very thread" in waiter.line()
        holder.say()
        for words in ("in", "interrupted", "the handler is in", "free"):
            waiter.expect(words)


def test_what_interrupts_a_wait_that_was_just_granted_does_not_wait_in_its_midst(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    """The lock is there, and what is to note it has not run yet."""
    refused: list[bool] = []
    with source_tree_lock(tree):
        assert _kernel_lock._calls is not None
    try_lock, wait, unlock = _kernel_lock._calls

    def interrupted(descriptor: int) -> bool:
        granted = try_lock(descriptor)
        if granted and not refused:
            refused.append(True)
            with pytest.raises(RuntimeError, match="being entered"):
                source_tree_lock(tree).acquire()
        return granted

    monkeypatch.setattr(_kernel_lock, "_calls", (interrupted, wait, unlock))
    with source_tree_lock(tree):
        assert refused


@pytest.mark.parametrize("waits_for", ["lock file", "tree"])
@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_plain_entry_beside_a_task_that_waits_in_the_same_loop_is_refused_at_once(
    timeout: float | None, waits_for: str, tree: Path, tmp_path: Path, lock_file: Path
) -> None:
    """What the task is granted could never be told to it."""

    async def main() -> None:
        task = asyncio.create_task(source_tree_lock(tree).__aenter__())
        in_line = partial(waiting_in_line, lock_file)
        while is_free(lock_file) if waits_for == "tree" else not in_line():  # noqa: ASYNC110
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"in a task of its event loop.*async with"):
            source_tree_lock(tree, timeout=timeout).acquire()
        assert not source_tree_lock(tree).acquire(blocking=False)
        holder.say()
        await (await task).__aexit__(None, None, None)

    environ = {"TMPDIR": str(tmp_path)} if waits_for == "tree" else {}
    with held_elsewhere(tree, environ=environ) as holder:
        asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_a_plain_entry_beside_a_stopped_loop_whose_task_was_granted_the_lock_is_refused(
    tree: Path, lock_file: Path, no_leaks: object
) -> None:
    with held_elsewhere(tree) as holder:
        waiting = Waiting(tree, lock_file)
        assert not source_tree_lock(tree).acquire(timeout=0.01)
        waiting.run_once(partial(waiting.let_grant, holder))
        with pytest.raises(RuntimeError, match="being entered"):
            source_tree_lock(tree).acquire()
        waiting.loop.run_until_complete(waiting.task)
        with source_tree_lock(tree):
            pass
        waiting.loop.close()


def test_a_wait_that_was_interrupted_hinders_no_later_one(tree: Path) -> None:
    script = """
        import signal
        from source_tree_lock import LockTimeout, source_tree_lock
        def handler(*_):
            raise KeyError("interrupted")
        signal.signal(signal.SIGUSR1, handler)
        try:
            source_tree_lock(sys.argv[1], timeout=3600).acquire()
        except KeyError as error:
            kept = error  # and with its traceback all that it was raised in
        tell("interrupted")
        try:
            source_tree_lock(sys.argv[1], timeout=0.05).__enter__()
        except LockTimeout:
            tell("timed out")
    """
    with held_elsewhere(tree), Child(script, tree) as waiter:
        wait_until_blocked(waiter.pid)
        os.kill(waiter.pid, signal.SIGUSR1)
        waiter.expect("interrupted")
        waiter.expect("timed out")
