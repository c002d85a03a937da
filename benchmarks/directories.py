"""What a free tree costs on any file system: enter and leave, beside a bare flock, in ms.

    python benchmarks/directories.py DIRECTORY...

Makes a tree and a lock directory of its own in each DIRECTORY, measures all of them in turns, and
removes them again. For a shared file system, name a directory on it and one on a local disk.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from source_tree_lock import source_tree_lock

if TYPE_CHECKING:
    from collections.abc import Callable


def enter_and_leave(directory: Path) -> Callable[[], None]:
    lock = source_tree_lock(directory, lock_dir=directory / "locks")

    def once() -> None:
        with lock:
            pass

    return once


def bare_flock(directory: Path) -> Callable[[], None]:
    descriptor = os.open(directory / "bare", os.O_RDWR | os.O_CREAT, 0o666)

    def once() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    return once


def milliseconds(once: Callable[[], None], times: int) -> float:
    """The median of so many times."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        once()
        found.append((time.perf_counter() - started) * 1000)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--times", type=int, default=50, help="in each round")
    options = parser.parse_args()
    with ExitStack() as stack:
        ways: dict[tuple[Path, str], Callable[[], None]] = {}
        for parent in options.directory:
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))
            ways[parent, "flock"] = bare_flock(made)
            ways[parent, "enter and leave"] = enter_and_leave(made)
        medians: dict[tuple[Path, str], list[float]] = {way: [] for way in ways}
        for once in ways.values():
            once()
        for _ in range(options.rounds):
            for way, once in ways.items():
                medians[way].append(milliseconds(once, options.times))
    for (parent, what), found in medians.items():
        print(f"{statistics.median(found):8.3f} ms  {what:<16} {parent}")


if __name__ == "__main__":
    main()
