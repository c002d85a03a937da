"""Waits for a tree in this process: what they wait for, and how many stand in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support import LIMIT, Child, held_elsewhere, is_free, wait_until

from source_tree_lock import _queue, source_tree_lock

#: What a waiting caller waits for: with another temporary directory, its holder has the tree alone.
each_lock = pytest.mark.parametrize("blocked_by", ["lock file", "tree"])


def holding(tree: Path, blocked_by: str) -> AbstractContextManager[Child]:
    """Another process holds the tree, in the way of others by one of `each_lock`."""
    return held_elsewhere(
        tree, environ={"TMPDIR": str(tree.parent)} if blocked_by == "tree" else {}
    )


def has_queue(path: Path) -> bool:
    """Whether a thread waits for this lock file or tree, if only for callers that gave up."""
    return str(path) in _queue._queues


def waiting_in_line(path: Path) -> int:
    queue = _queue._queues.get(str(path))
    return len(queue.turns) if queue else 0


async def until_waiting(path: Path, count: int) -> None:
    async def wait() -> None:
        while waiting_in_line(path) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), LIMIT)


@pytest.fixture
def lock_file(tree: Path) -> Iterator[Path]:
    """The lock file of the tree; at the end, nobody may be left in the queue for it."""
    path = source_tree_lock(tree).lock_file
    yield path
    wait_until(lambda: not has_queue(path))


class WaitingTask:
    """A task that waits for a tree, in a loop that only runs when it is told to."""

    def __init__(self, tree: Path, lock_file: Path) -> None:
        self.lock_file = lock_file
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(self._enter(tree))
        self.run_until_waiting()

    async def _enter(self, tree: Path) -> None:
        async with source_tree_lock(tree):
            pass

    def run_once(self, *functions: Callable[[], object]) -> None:
        """Run what is ready, and `functions`, during which the loop runs and gets nowhere."""
        for function in (*functions, self.loop.stop):
            self.loop.call_soon(function)
        self.loop.run_forever()

    def run_until_waiting(self) -> None:
        while not waiting_in_line(self.lock_file):
            assert not self.task.done()
            self.run_once()

    def let_grant(self, holder: Child) -> None:
        """The holder lets go; the loop, which must get nowhere, has been told of the grant."""
        holder.say()
        holder.expect("released")
        wait_until(lambda: not waiting_in_line(self.lock_file))
        assert not is_free(self.lock_file)
