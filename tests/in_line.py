"""Who stands in line for a lock file, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

from support import Child, is_free, wait_until

from source_tree_lock import _queue, source_tree_lock


def line_of(lock_file: Path) -> _queue._Line | None:
    return _queue._lines.get(str(lock_file))


def waiting_in_line(lock_file: Path) -> int:
    line = line_of(lock_file)
    return len(line.callers) if line else 0


def lock_file_of(tree: Path) -> Iterator[Path]:
    """The lock file of the tree; at the end, nobody may be left in line for it."""
    path = source_tree_lock(tree).lock_file
    yield path
    wait_until(lambda: line_of(path) is None)


class WaitingTask:
    """A task that waits in line, in a loop that only runs when it is told to."""

    def __init__(self, tree: Path, lock_file: Path, timeout: float | None = None) -> None:
        self.lock_file = lock_file
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(self._enter(tree, timeout))
        while not waiting_in_line(lock_file):
            assert not self.task.done()
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
