"""Waits that cannot end are refused; those that may never end are warned of."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from in_line import WaitingTask, lock_file_of, waiting_in_line
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    wait_until,
    wait_until_asleep,
)

from source_tree_lock import Wait, _kernel_lock, _queue, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no queue to wait in")


@pytest.fixture
def lock_file(tree: Path) -> Iterator[Path]:
    yield from lock_file_of(tree)


# Waits that cannot end


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_plain_entry_while_a_task_of_this_loop_holds_is_refused_at_once(
    timeout: float | None, tree: Path, no_leaks: object
) -> None:
    async def main() -> None:
        async with source_tree_lock(tree):

            async def plain() -> None:
                with source_tree_lock(tree, timeout=timeout):
                    raise AssertionError("two tasks inside")

            with pytest.raises(RuntimeError, match=r"async with.*to_thread"):
                await asyncio.create_task(plain())
            assert not is_free(tree)

    asyncio.run(main())
    assert is_free(tree)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_entry_in_a_loop_inside_this_threads_own_hold_is_refused_at_once(
    asynchronous: bool, tree: Path, no_leaks: object
) -> None:
    async def main() -> None:
        if asynchronous:
            async with source_tree_lock(tree):
                raise AssertionError("two owners inside")
        with source_tree_lock(tree):
            raise AssertionError("two owners inside")

    with source_tree_lock(tree):
        with pytest.raises(RuntimeError, match=r"hold it inside the loop"):
            asyncio.run(main())
        assert not is_free(tree)
    assert is_free(tree)


def test_an_attempt_that_does_not_wait_is_never_refused(tree: Path) -> None:
    async def main() -> bool:
        return source_tree_lock(tree).acquire(blocking=False)

    with source_tree_lock(tree):
        assert asyncio.run(main()) is False


def test_a_trio_loop_inside_this_threads_own_hold_is_refused_at_once(tree: Path) -> None:
    async def main() -> None:
        source_tree_lock(tree).acquire()

    with source_tree_lock(tree), pytest.raises(RuntimeError, match="very thread"):
        trio.run(main)


#: Waits, and is interrupted by a handler that enters the same tree. Arguments: the tree, a timeout.
ENTERS_IN_A_HANDLER = """
    import signal, source_tree_lock._handover, source_tree_lock._waiting  # no import under way
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
            wait_until_asleep(waiter.pid)
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
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    # So long, the line's thread does not look whether the loop still runs.
    monkeypatch.setattr(_queue, "_FIRST_PAUSE", LIMIT)
    with held_elsewhere(tree) as holder:
        waiting = WaitingTask(tree, lock_file)
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
        wait_until_asleep(waiter.pid)
        os.kill(waiter.pid, signal.SIGUSR1)
        waiter.expect("interrupted")
        waiter.expect("timed out")


# Waits that may never end; those of processes are in holder/test_circle.py


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


class Told(Exception):
    """Ends a wait once all has been said that is said at its beginning."""


def stop_once_told(_: Wait) -> None:
    raise Told


def test_a_thread_that_the_holder_waits_for_is_warned_about_once(
    tree: Path, caplog: pytest.LogCaptureFixture, no_leaks: object
) -> None:
    async def main() -> None:
        async with source_tree_lock(tree):
            await asyncio.to_thread(source_tree_lock(tree, on_wait=stop_once_told).acquire)

    with pytest.raises(Told):
        asyncio.run(main())
    [warning] = messages(caplog, logging.WARNING)
    assert str(tree) in warning
    assert "started this one" in warning


def test_a_child_task_that_the_holder_waits_for_is_warned_about_once(
    tree: Path, caplog: pytest.LogCaptureFixture, no_leaks: object
) -> None:
    async def child() -> None:
        async with source_tree_lock(tree, on_wait=stop_once_told):
            raise AssertionError("two tasks inside")

    async def main() -> None:
        async with source_tree_lock(tree):
            with pytest.raises(Told):
                await asyncio.create_task(child())

    asyncio.run(main())
    [warning] = messages(caplog, logging.WARNING)
    assert str(tree) in warning


def test_a_task_that_was_started_outside_the_hold_is_not_warned_about(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        held, waiting = asyncio.Event(), asyncio.Event()

        async def second() -> None:
            await held.wait()
            async with source_tree_lock(tree, on_wait=lambda holder: waiting.set()):
                pass

        task = asyncio.create_task(second())
        async with source_tree_lock(tree):
            held.set()
            await asyncio.wait_for(waiting.wait(), LIMIT)
        await asyncio.wait_for(task, LIMIT)

    asyncio.run(main())
    assert messages(caplog, logging.WARNING) == []


def test_a_thread_of_trio_that_the_holder_waits_for_is_warned_about(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with source_tree_lock(tree):
            await trio.to_thread.run_sync(source_tree_lock(tree, on_wait=stop_once_told).acquire)

    with pytest.raises(Told):
        trio.run(main)
    assert len(messages(caplog, logging.WARNING)) == 1
