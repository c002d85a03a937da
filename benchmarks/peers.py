"""The locks that are compared, each as what makes a context manager for one entry."""

from __future__ import annotations

import fcntl
import os
import subprocess

import fasteners  # type: ignore[import-untyped]
import filelock
import portalocker
from plots import BLUE, DARK, LIGHT, ORANGE, PINK, SKY, VERMILION

from source_tree_lock import source_tree_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    Enter = Callable[[], AbstractContextManager[object]]

#: Longer than any wait here, in seconds; a lock that is told so waits with a timeout.
LONG = 600.0

OURS = "source_tree_lock"
OURS_BOUNDED = "source_tree_lock, timeout"
BARE = "bare flock"
COMMAND = "flock(1)"
PORTALOCKER = "portalocker.Lock"
FILELOCK = "filelock.FileLock"
FASTENERS = "fasteners.InterProcessLock"

COLOURS = {
    OURS: BLUE,
    OURS_BOUNDED: SKY,
    BARE: DARK,
    COMMAND: LIGHT,
    PORTALOCKER: PINK,
    FILELOCK: VERMILION,
    FASTENERS: ORANGE,
}


class Flock:
    """Nothing but the kernel's lock on each of some paths, waited for in the kernel's queue."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._descriptors: list[int] = []

    def __enter__(self) -> None:
        for path in self._paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._descriptors.append(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)

    def __exit__(self, *exc_info: object) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


class FlockCommand:
    """flock(1) as shell scripts use it: it locks a descriptor of the script's, and ends."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        subprocess.run(["flock", str(self._descriptor)], pass_fds=[self._descriptor], check=True)

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)


def blocking_peers(directory: Path) -> dict[str, Enter]:
    """The ways to wait for a lock, as each is meant to be used; a lock file of its own for each."""
    tree = directory / "tree"
    tree.mkdir(exist_ok=True)
    paths = {name: str(directory / f"lock-{index}") for index, name in enumerate(COLOURS)}
    for path in paths.values():
        open(path, "a").close()
    return {
        OURS: lambda: source_tree_lock(tree),
        OURS_BOUNDED: lambda: source_tree_lock(tree, timeout=LONG),
        BARE: lambda: Flock(paths[BARE]),
        COMMAND: lambda: FlockCommand(paths[COMMAND]),
        PORTALOCKER: lambda: portalocker.Lock(paths[PORTALOCKER], timeout=LONG),
        FILELOCK: lambda: filelock.FileLock(paths[FILELOCK], timeout=LONG),
        FASTENERS: lambda: fasteners.InterProcessLock(paths[FASTENERS]),
    }
