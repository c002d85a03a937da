"""Waits that cannot end are refused; those that may never end are warned of.

Those of several processes are in holder/test_circle.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from in_line import each_lock, holding, lock_file, until_waiting
from support import LIMIT, is_free, long_after

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
    assert not source_tree_lock(tree).acquire(blocking=False)  # it does not wait
    with source_tree_lock(tree, timeout=LIMIT):
        raise AssertionError("two owners inside")


# Waits that cannot end (beside a task that holds: test_owner; two trees of one lock file:
# test_two_locks)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("way", [enter, enter_plainly])
def test_an_entry_in_a_loop_while_this_thread_holds_outside_of_it_is_refused(
    way: Callable[[Path], Awaitable[None]], loop: str, tree: Path
) -> None:
    with source_tree_lock(tree):
        with pytest.raises(RuntimeError, match="hold it inside the loop"):
            anyio.run(way, tree, backend=loop)
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
        with pytest.raises(RuntimeError, match=r"in a task .*use `async with`"):
            await enter_plainly(tree)
        holder.say()
        await (await task).__aexit__(None, None, None)

    with holding(tree, blocked_by) as holder:
        asyncio.run(asyncio.wait_for(main(), LIMIT))


# Waits that may never end


class Warned(Exception):
    """Ends a wait that was warned of."""


async def _pool(tree: Path, lock: source_tree_lock) -> None:
    with source_tree_lock(tree), ThreadPoolExecutor(1) as pool:
        pool.submit(lock.acquire).result()


async def _to_thread(tree: Path, lock: source_tree_lock) -> None:
    async with source_tree_lock(tree):
        await asyncio.to_thread(lock.acquire)


async def _child_task(tree: Path, lock: source_tree_lock) -> None:
    async with source_tree_lock(tree):
        await asyncio.create_task(lock.__aenter__())


@pytest.mark.parametrize("waits", long_after(1, [_pool, _to_thread, _child_task]))
def test_a_wait_for_another_thread_or_task_of_this_process_is_warned_of_once(
    waits: Callable[..., Coroutine[Any, Any, None]],
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def look(wait: Wait) -> None:
        assert not caplog.records or wait.waited >= 0.6, "a short wait is no reason to warn"
        if wait.waited > 2 and caplog.records:  # a second warning would have come by then
            raise Warned

    assert _deadlocks._WARN_OF_OWN_AFTER == 4
    monkeypatch.setattr(_wait, "CHECK_AFTER", 0.1)
    monkeypatch.setattr(_deadlocks, "_WARN_OF_OWN_AFTER", 0.6)
    with pytest.raises(Warned):
        asyncio.run(waits(tree, source_tree_lock(tree, timeout=LIMIT, while_waiting=look)))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for words in (str(tree), "another thread of this process", "Release the tree before you wait"):
        assert words in record.getMessage()
