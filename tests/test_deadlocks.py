"""Waits that cannot end are refused; those that may never end are warned of.

Those of several processes are in holder/test_circle.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trio
from in_line import each_lock, holding, lock_file, until_waiting
from support import LIMIT, Child, held_elsewhere, in_thread, is_free, wait_until, wait_until_asleep

from source_tree_lock import Wait, _deadlocks, _wait, source_tree_lock

__all__ = ["lock_file"]  # a fixture
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="Windows has no queue to wait in"),
    pytest.mark.usefixtures("no_leaks"),
]


async def enter(tree: Path) -> None:
    async with source_tree_lock(tree):
        raise AssertionError("two owners inside")


async def enter_plainly(tree: Path) -> None:
    with source_tree_lock(tree, timeout=LIMIT):
        raise AssertionError("two owners inside")


def refused(words: str) -> AbstractContextManager[object]:
    """A `RuntimeError` that says what to do, which is never to enter in another thread."""
    return pytest.raises(RuntimeError, match=rf"^(?!.*to_thread).*{words}")


# Waits that cannot end (beside a task that holds: test_owner; two trees of one lock file:
# test_two_locks)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("way", [enter, enter_plainly])
def test_an_entry_in_a_loop_while_this_thread_holds_outside_of_it_is_refused(
    way: Callable[[Path], Awaitable[None]], loop: str, tree: Path
) -> None:
    async def attempt() -> bool:  # it does not wait, and so is never refused
        return source_tree_lock(tree).acquire(blocking=False)

    with source_tree_lock(tree):
        assert asyncio.run(attempt()) is False
        with refused("hold it inside the loop"):
            trio.run(way, tree) if loop == "trio" else asyncio.run(way(tree))  # type: ignore[arg-type]
        assert not is_free(tree)
    assert is_free(tree)


@each_lock
def test_a_plain_entry_beside_a_task_that_waits_in_the_same_loop_is_refused(
    blocked_by: str, tree: Path, lock_file: Path
) -> None:
    """The task could not take what it is granted. It may have the lock file already."""

    async def main() -> None:
        task = asyncio.create_task(source_tree_lock(tree).__aenter__())
        await until_waiting(tree if blocked_by == "tree" else lock_file, 1)
        with refused("in a task .*use `async with`"):
            await enter_plainly(tree)
        assert not source_tree_lock(tree).acquire(blocking=False)
        holder.say()
        await (await task).__aexit__(None, None, None)

    with holding(tree, blocked_by) as holder:
        asyncio.run(asyncio.wait_for(main(), LIMIT))


#: Waits, and is interrupted by a handler that enters the same tree. Argument: the tree.
ENTERS_IN_A_HANDLER = """
    import signal
    from source_tree_lock import _deadlocks, _handover, _wait  # no import under way
    from source_tree_lock import source_tree_lock
    def handler(*_):
        tell("interrupted")
        try:
            with source_tree_lock(sys.argv[1]):
                tell("the handler is in")
        except RuntimeError as error:
            tell(error)
    signal.signal(signal.SIGUSR1, handler)
    with source_tree_lock(sys.argv[1]):
        tell("in")
    signal.raise_signal(signal.SIGUSR1)  # now it may
    tell("free" if source_tree_lock(sys.argv[1]).acquire(timeout=0) else "held")
"""


@each_lock
def test_what_interrupts_a_wait_does_not_wait_in_its_midst(
    blocked_by: str, tree: Path, lock_file: Path
) -> None:
    with holding(tree, blocked_by) as holder, Child(ENTERS_IN_A_HANDLER, tree) as waiter:
        wait_until_asleep(waiter.pid)
        os.kill(waiter.pid, signal.SIGUSR1)
        waiter.expect("interrupted")
        assert "in code that was interrupted" in waiter.line()
        holder.say()
        for words in ("in", "interrupted", "the handler is in", "free"):
            waiter.expect(words)


def test_a_wait_that_was_interrupted_hinders_no_later_one(tree: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(wait: Wait) -> None:
        raise Interrupted

    with held_elsewhere(tree) as holder:
        with pytest.raises(Interrupted) as kept:  # and with it all that it was raised in
            source_tree_lock(tree, while_waiting=interrupt).acquire()
        assert not source_tree_lock(tree).acquire(timeout=0.3)
        holder.say()
        with source_tree_lock(tree):
            assert kept


# Waits that may never end


class Warned(Exception):
    """Ends a wait that was warned of."""


Lock = source_tree_lock


def _pool(tree: Path, lock: Lock) -> None:
    with source_tree_lock(tree), ThreadPoolExecutor(1) as pool:
        pool.submit(lock.acquire).result()


async def _to_thread(tree: Path, lock: Lock) -> None:
    async with source_tree_lock(tree):
        await asyncio.to_thread(lock.acquire)


async def _child_task(tree: Path, lock: Lock) -> None:
    async with source_tree_lock(tree):
        await asyncio.create_task(lock.__aenter__())


async def _trio_thread(tree: Path, lock: Lock) -> None:
    async with source_tree_lock(tree):
        await trio.to_thread.run_sync(lock.acquire)


@pytest.mark.parametrize(
    "waits",
    [
        _pool,
        lambda *arguments: asyncio.run(_to_thread(*arguments)),
        lambda *arguments: asyncio.run(_child_task(*arguments)),
        lambda *arguments: trio.run(_trio_thread, *arguments),
    ],
    ids=["pool", "to_thread", "child task", "trio's thread"],
)
def test_a_wait_for_another_thread_or_task_of_this_process_is_warned_of_once(
    waits: Callable[[Path, Lock], None],
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop(wait: Wait) -> None:
        if wait.waited > 1 and caplog.records:  # a second warning would have come by then
            raise Warned

    assert _deadlocks._WARN_OF_OWN_AFTER == 4
    monkeypatch.setattr(_wait, "CHECK_AFTER", 0.1)
    monkeypatch.setattr(_deadlocks, "_WARN_OF_OWN_AFTER", 0.2)
    with pytest.raises(Warned):
        waits(tree, source_tree_lock(tree, timeout=LIMIT, while_waiting=stop))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tree) in record.getMessage()
    assert "another thread of this process" in record.getMessage()
    assert "Release the tree before you wait" in record.getMessage()


def test_a_short_wait_for_another_thread_is_not_warned_of(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_wait, "CHECK_AFTER", 0.05)
    with source_tree_lock(tree):
        assert in_thread(lambda: source_tree_lock(tree).acquire(timeout=0.5)) is False
    wait_until(lambda: is_free(tree))
    assert caplog.records == []
