"""The errors of this library; a bad path gets the built-in error for it instead."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._holder.holder import Holder
else:
    Holder = object  # for `typing.get_type_hints`: its room stands above this one


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
        self, message: str, *, tree: str = "", waited: float = 0.0, holder: Holder | None = None
    ) -> None:
        super().__init__(message)
        self.tree = tree
        self.waited = waited
        self.holder = holder


class LockUnavailable(SourceTreeLockError, OSError):
    """Locking does not work here, regardless of who holds the lock; the message says what to do.

    Attributes:
        errno: the system's error number, as in every ``OSError``.
        filename: the path that cannot be locked.
    """
