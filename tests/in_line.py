"""Who stands in the queue for a lock file, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import LIMIT, Child, is_free, wait_until

from source_tree_lock import _queue, source_tree_lock


def waiting_in_line(lock_file: Path) -> int:
    queue = _queue._queues.get(str(lock_file))
    return len(queue.turns) if queue else 0


def has_queue(lock_file: Path) -> bool:
    """Whether a thread waits for this lock file, if only for callers that gave up."""
    return str(lock_file) in _queue._queues


async def until_waiting(lock_file: Path, count: int) -> None:
    async def wait() -> None:
        while waiting_in_line(lock_file) != count:  # noqa: ASYNC110
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

    def __init__(self, tree: Path, lock_file: Path, timeout: float | None = None) -> None:
        self.lock_file = lock_file
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(self._enter(tree, timeout))
        self.run_until_waiting()

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
