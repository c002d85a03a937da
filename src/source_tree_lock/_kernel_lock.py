"""One exclusive kernel lock on one inode, and the descriptor that carries it.

A `KernelLock` is closed when it is told to, when it is collected, and at once in a forked child.
The kernel releases it when the process dies.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from . import _system
from ._system import SAFE
from .errors import unavailable

#: Device and inode: what a path leads to, however it is spelled.
Identity = tuple[int, int]

MODE = 0o666  # of a new file, so that any user may lock it, as uv has it
READ_ONLY = os.O_RDONLY | SAFE
READ_WRITE = os.O_RDWR | SAFE

#: Guards all tables of this library that threads share. It is held around a fork, so that a child
#: never finds a table half changed, nor (with the GIL off) locked by a thread that it does not
#: have; while a descriptor is opened and registered, or unregistered and closed; and around each
#: late import, because a child would wait for an import that another thread of its parent began.
#: It is never held during a wait. It is re-entrant because a signal handler may fork.
guard = threading.RLock()


class KernelLock:
    """A descriptor and, once it is granted, the exclusive lock on what it leads to.

    Attributes:
        path: where it was opened; that of a tree is canonical.
        status: what it led to then.
        identity: its device and inode.
        held: whether the kernel granted the lock.
        writable: whether the descriptor may be written to.
    """

    _descriptor = -1

    def __init__(self, path: str, flags: int) -> None:
        """Open ``path``.

        Raises:
            OSError: as open(2) and fstat(2) do; nothing stays open.
        """
        self.path = path
        self.held = False
        self.writable = flags & os.O_RDWR != 0
        self._pid = os.getpid()
        with guard:
            self._descriptor = os.open(path, flags, MODE)
            _open.add(self._descriptor)
        try:
            self.status = os.fstat(self._descriptor)
        except OSError:
            self.close()  # now: the traceback of the error keeps this object
            raise
        self.identity: Identity = (self.status.st_dev, self.status.st_ino)

    def is_open(self) -> bool:
        """Whether it has a descriptor. In a forked child it has none."""
        return self._descriptor >= 0 and self._pid == os.getpid()

    def fileno(self) -> int:
        """The descriptor; raises ``ValueError`` once it is closed, as files do."""
        if not self.is_open():
            raise ValueError(f"the lock on {self.path!r} is closed")
        return self._descriptor

    def try_lock(self) -> bool:
        """Take the lock if it is free, without waiting.

        Raises:
            OSError: the kernel refuses for another reason than that somebody holds it.
        """
        if not self.held:
            self.held = _system.try_lock(self.fileno())
        return self.held

    def lock(self) -> None:
        """Wait in the kernel's queue until the lock is granted (POSIX only).

        Raises:
            OSError: the kernel refuses.
        """
        _system.lock(self.fileno())
        self.held = True

    def is_in_place(self) -> bool:
        """Whether its path still leads to the inode that was opened.

        Raises:
            LockUnavailable: that cannot be determined.
        """
        try:
            return leads_to(self.path, os.lstat) == self.identity
        except OSError as error:
            what = "cannot check that the lock is in place"
            raise unavailable(error, self.path, what) from error

    def close(self) -> None:
        """Release the lock and close the descriptor. Closing twice does nothing.

        It unlocks explicitly, so that a child process which inherited the descriptor keeps nothing.
        """
        descriptor = self._descriptor
        if not self.is_open():  # the fork closed the child's copy
            return
        # Unlocked first: if a signal handler raises in between, nothing stays locked.
        with suppress(OSError):  # closing unlocks as well, unless another process has a copy
            if self.held:
                _system.unlock(descriptor)
        self.held = False
        with guard, suppress(OSError):  # whatever close(2) reports, the number is free again
            if self._descriptor == descriptor:
                self._descriptor = -1
                _open.discard(descriptor)
                os.close(descriptor)

    def __del__(self) -> None:
        self.close()


# Forks

#: All descriptors of this library; changed under `guard`.
_open: set[int] = set()
_clean_ups: list[Callable[[], None]] = []


def in_child(clean_up: Callable[[], None]) -> Callable[[], None]:
    """Have a function called in each forked child, which owns nothing of what its parent holds."""
    _clean_ups.append(clean_up)
    return clean_up


@in_child
def _close_all() -> None:
    # The child's copies would keep its parent's locks alive. Closing them unlocks nothing: an
    # flock belongs to the open file description, which the parent still has (flock(2)).
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


def _clean_up() -> None:
    for clean_up in _clean_ups:
        clean_up()


if hasattr(os, "register_at_fork"):
    # Weakly: what is registered is kept until the interpreter has ended, with all modules that it
    # can reach. Removing them that late would take each hook as long as importing the library.
    os.register_at_fork(after_in_child=weakref.proxy(_clean_up))
    os.register_at_fork(
        before=guard.acquire, after_in_parent=guard.release, after_in_child=guard.release
    )


# Identities


def leads_to(path: str, call: Callable[[str], os.stat_result] = os.stat) -> Identity | None:
    """What a path leads to, or with ``os.lstat`` what it is itself; ``None`` if nothing."""
    try:
        status = call(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    return status.st_dev, status.st_ino
