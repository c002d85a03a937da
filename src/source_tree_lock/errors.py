"""The errors of this library. A path that leads to no directory raises the built-in error."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._holder import Holder


class SourceTreeLockError(Exception):
    """The lock of a source tree was not taken."""


class LockTimeout(SourceTreeLockError, TimeoutError):
    """Somebody else held the tree until the time was up.

    Attributes:
        tree: canonical path of the source tree.
        waited: how long this entry waited, in seconds.
        holder: who held the tree when the time was up; ``None`` when unknown.
    """

    def __init__(
        self, message: str, *, tree: str = "", waited: float = 0.0, holder: Any = None
    ) -> None:
        super().__init__(message)
        self.tree = tree
        self.waited = waited
        self.holder: Holder | None = holder


class LockUnavailable(SourceTreeLockError, OSError):
    """Locking does not work here, whether or not anybody holds the lock.

    The message says what to do.

    Attributes:
        errno: the system's error number, as in every ``OSError``.
        filename: the path that cannot be locked.
    """


class NoLockFile(LockUnavailable):
    """There is no lock file, and nobody can make one in the directory that is used by default."""


# What failed and what to do, by the system's answer; 0 is for all other answers

_ELSEWHERE = "name another directory with lock_dir or SOURCE_TREE_LOCK_DIR"
_IS_A_LINK = "the lock file is a symbolic link, or links lead to it in a circle; remove the link"
_NOT_A_FILE = "the lock file is not a regular file; remove it"
_NO_RIGHT = f"give the lock file mode 0666 and its directory mode 1777, or {_ELSEWHERE}"
_NO_ACCESS = (errno.EACCES, errno.EPERM)
_NO_DIRECTORY = (errno.ENOTDIR, errno.EEXIST)
_TOO_MANY = dict.fromkeys((errno.EMFILE, errno.ENFILE), "close some files, or raise the limit")

OPEN_LOCK_FILE = {
    0: f"the lock file cannot be opened; {_ELSEWHERE}",
    **_TOO_MANY,
    **dict.fromkeys((errno.ELOOP, errno.EMLINK), _IS_A_LINK),  # the latter is FreeBSD's answer
    **dict.fromkeys((errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EISDIR), _NOT_A_FILE),
    **dict.fromkeys(_NO_ACCESS, f"no permission to open the lock file; {_NO_RIGHT}"),
}
MAKE_LOCK_FILE = {
    0: f"the lock file cannot be made in the lock directory; {_ELSEWHERE}",
    **_TOO_MANY,
    errno.ENOENT: f"the lock directory does not exist; make it, or {_ELSEWHERE}",
    **dict.fromkeys(_NO_DIRECTORY, f"the lock directory is not a directory; {_ELSEWHERE}"),
    **dict.fromkeys(_NO_ACCESS, f"no permission to make the lock file; {_NO_RIGHT}"),
}
OPEN_TREE = {
    0: "the source tree cannot be opened",
    **_TOO_MANY,
    **dict.fromkeys(_NO_ACCESS, "the source tree cannot be opened; get the right to read it"),
}
REFUSED = {
    **_TOO_MANY,  # of opening the tree, or of a late import, during a wait
    0: (
        "the file system refuses to lock it; mount it so that flock works (Lustre: -o flock), or "
        f"{_ELSEWHERE}"
    ),
    errno.EACCES: (
        "the system does not let this program lock it; allow it (AppArmor: k for the path, "
        "SELinux: lock for its type)"
    ),
}


def unavailable(
    error: OSError,
    path: str,
    what: str | dict[int, str],
    kind: type[LockUnavailable] = LockUnavailable,
) -> LockUnavailable:
    """The `LockUnavailable` for an error of the system.

    Args:
        error: the error.
        path: what cannot be locked.
        what: what failed and what to do, or one of the tables of that.
        kind: the class of the new error.
    """
    if not isinstance(what, str):
        what = what.get(error.errno or 0, what[0])
    return kind(error.errno or errno.EIO, f"{what} ({error.strerror or error})", path)
