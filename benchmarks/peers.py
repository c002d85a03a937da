"""The locks that are compared, each as what makes a context manager for one entry."""

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import fasteners  # type: ignore[import-untyped]
import filelock
import portalocker
from plots import BLUE, DARK, LIGHT, ORANGE, PINK, RED, SKY

from source_tree_lock import source_tree_lock

#: Longer than any wait here, in seconds; a lock that is told so waits with a timeout.
LONG = 600.0
OURS, OURS_BOUNDED = "source_tree_lock", "source_tree_lock, timeout"
BARE, COMMAND = "bare flock", "flock(1)"
PORTALOCKER, FILELOCK = "portalocker.Lock", "filelock.FileLock"
FASTENERS = "fasteners.InterProcessLock"
PEERS = [OURS, OURS_BOUNDED, BARE, COMMAND, PORTALOCKER, FILELOCK, FASTENERS]
COLOURS = dict(zip(PEERS, (BLUE, SKY, DARK, LIGHT, PINK, RED, ORANGE), strict=True))

Enter = Callable[[], AbstractContextManager[object]]


class Flock:
    """Nothing but the kernel's lock on each of some paths, waited for in the kernel's queue."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths

    def __enter__(self) -> None:
        self._descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self._paths]
        for descriptor in self._descriptors:
            fcntl.flock(descriptor, fcntl.LOCK_EX)

    def __exit__(self, *exc_info: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


@contextmanager
def _flock_command(path: str) -> Iterator[None]:
    """As shell scripts use it: it locks a descriptor of the script's, and ends."""
    with open(path) as file:
        subprocess.run(["flock", str(file.fileno())], pass_fds=[file.fileno()], check=True)
        yield


def blocking_peers(directory: Path) -> dict[str, Enter]:
    """The ways to wait for a lock, as each is meant to be used; a lock file of its own for each."""
    bare, command, portalocked, filelocked, fastened = (str(directory / each) for each in PEERS[2:])
    for path in (bare, command):
        open(path, "w").close()
    return {
        OURS: lambda: source_tree_lock(directory),
        OURS_BOUNDED: lambda: source_tree_lock(directory, timeout=LONG),
        BARE: lambda: Flock(bare),
        COMMAND: lambda: _flock_command(command),
        PORTALOCKER: lambda: portalocker.Lock(portalocked, timeout=LONG),
        FILELOCK: lambda: filelock.FileLock(filelocked, timeout=LONG),
        FASTENERS: lambda: fasteners.InterProcessLock(fastened),
    }
