"""The source tree that a path leads to: where it is, what it is, and its own lock."""

from __future__ import annotations

import errno
import os
import stat

from .._kernel_lock import Identity, KernelLock, unavailable
from .._system import DIRECTORY, canonical_path

#: What may name a source tree or a directory.
AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Tree:
    """A source tree.

    Attributes:
        given: the path that was asked for.
        path: the canonical path, if `is_current`.
        identity: device and inode of the directory.
        lock: a descriptor of it to lock; ``None`` where directories cannot be locked.
    """

    __slots__ = ("_is_closed", "given", "identity", "lock", "path")

    def __init__(self, given: str, path: str, identity: Identity, lock: KernelLock | None) -> None:
        self.given: str = given
        self.path: str = path
        self.identity: Identity = identity
        self.lock: KernelLock | None = lock
        self._is_closed = False

    def is_current(self) -> bool:
        """Whether both paths still lead to the directory that was opened.

        A symlink may have turned the one that was given to another tree.
        """
        return self._is_at(self.path) and (self.given == self.path or self._is_at(self.given))

    def _is_at(self, path: str) -> bool:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def is_open(self) -> bool:
        """Whether it was not closed, here or by a fork."""
        return not self._is_closed and (self.lock is None or self.lock.is_open())

    def unlocked(self) -> Tree:
        """The same tree for a hold that has no lock of its own."""
        return Tree(self.given, self.path, self.identity, None)

    def close(self) -> None:
        """Give the lock and the descriptor back."""
        self._is_closed = True
        if self.lock is not None:
            self.lock.close()


def open_tree(path: AnyPath) -> Tree:
    """The source tree that ``path`` leads to now, not locked yet.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        NotADirectoryError: it is no directory.
        ValueError: it has a NUL byte.
        LockUnavailable: it cannot be opened, or its canonical path cannot be found.
    """
    given = os.fsdecode(path)
    try:
        return _open(given)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such source tree", given) from error
    except NotADirectoryError as error:
        raise NotADirectoryError(error.errno, "a source tree is a directory, not", given) from error
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "the source tree cannot be opened")
        raise unavailable(error, given, hint) from error
    except ValueError as error:
        raise ValueError(f"no path of a source tree: {given!r} ({error})") from error


_HINTS = {
    errno.EACCES: "the source tree cannot be opened; give yourself the right to read it",
    errno.EPERM: "the source tree cannot be opened; give yourself the right to read it",
    errno.ENAMETOOLONG: "the path of the source tree is too long for the system; "
    "name it by a shorter one",
    errno.ELOOP: "the path of the source tree has symbolic links that lead in a circle",
    errno.EMFILE: "the process has too many open files",
    errno.ENFILE: "the system has too many open files",
}


def _open(given: str) -> Tree:
    if DIRECTORY is None:
        path = canonical_path(given, None)
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return Tree(given, path, (status.st_dev, status.st_ino), None)
    lock = KernelLock(given)
    try:
        lock.open(DIRECTORY)
        return Tree(given, canonical_path(given, lock.fileno()), lock.identity, lock)
    except BaseException:
        lock.close()
        raise
