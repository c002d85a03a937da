"""What this process holds: each tree with its kernel locks, its owner and its entries."""

from __future__ import annotations

import errno
import os
from contextvars import ContextVar

from ._handover import Handover
from ._kernel import KernelLock, guard
from ._owner import current_thread
from ._process import pid_namespace
from ._record import blank_record, new_record, write_record
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._tree import Tree

    _Chain = tuple["Hold", "_Chain | None"]


class Hold:
    """A tree that one owner of this process holds, however many times it entered.

    Attributes:
        tree: the tree, with its kernel lock.
        lock_file: path of the lock file.
        file: the lock file with its kernel lock; ``None`` where an ancestor has it for us.
        handover: the ancestor's hold that this one is inside of.
        owner: the task or thread.
        thread: the thread, whoever owns it.
        entries: what entered and has not left.
        is_ending: whether its kernel locks are being released.
    """

    __slots__ = (
        "_record",
        "_token",
        "_unwritten",
        "entries",
        "file",
        "handover",
        "is_ending",
        "lock_file",
        "owner",
        "thread",
        "tree",
    )

    def __init__(
        self,
        owner: object,
        tree: Tree,
        lock_file: str,
        file: KernelLock | None,
        handover: Handover | None,
    ) -> None:
        self.tree = tree
        self.lock_file = lock_file
        self.file = file
        self.handover = handover
        self.owner = owner
        self.thread = current_thread()
        self.entries: list[object] = []
        self.is_ending = False
        self._token = ""
        self._record = b""
        self._unwritten: OSError | None = None

    def sign(self, status: os.stat_result) -> None:
        """Say in the lock file, which has this status, who holds it, if it can be said."""
        assert self.file is not None
        try:
            if status.st_nlink != 1 or not self.file.writable:
                raise OSError(errno.EROFS, "has other names, or may only be read")
            self._token = os.urandom(16).hex()
            self._record = new_record(self._token)
            write_record(self.file, self._record, status.st_size)
        except OSError as error:
            self._unwritten = error

    def handed_over(self, *, with_descriptors: bool) -> Handover:
        """What hands this hold to a child, with or without the descriptors of its locks.

        Raises:
            LockUnavailable: without them, a child could believe nothing.
        """
        if self.handover is not None:
            return self.handover
        descriptors: list[int] = []
        if with_descriptors:
            locks = (self.file, self.tree.lock)
            descriptors = [-1 if lock is None else lock.fileno() for lock in locks]
        elif self.file is None or self._unwritten is not None:
            raise LockUnavailable(
                (self._unwritten and self._unwritten.errno) or errno.EROFS,
                "the hold cannot be handed over, because nothing can be written into the lock "
                f"file ({self._unwritten or 'uv has it'})",
                self.lock_file,
            )
        return Handover(
            self.tree.identity,
            self.lock_file,
            os.getpid(),
            pid_namespace(),
            self._token,
            descriptors,
        )

    def is_mine(self) -> bool:
        """Whether this process holds it: not if it is a fork of the one that does."""
        return holds.get(self.tree.identity) is self

    def end(self) -> None:
        """Release both kernel locks, in reverse order. In a forked child, nothing is to be done.

        If it is interrupted, another call does the rest.
        """
        with guard:
            if self.is_mine():
                self.is_ending = True
                if self.file is not None and self._record:
                    blank_record(self.file, self._record)
                    self._record = b""
                self.tree.close()
                if self.file is not None:
                    self.file.close()
                holds.pop(self.tree.identity, None)
        _started_from.set(_lasting(_started_from.get()))


holds: dict[tuple[int, int], Hold] = {}
#: The holds of whoever started this context, the last one first, each with those before it:
#: asyncio copies it for threads and child tasks. Holds that are over may still be among them.
_started_from: ContextVar[_Chain | None] = ContextVar("source_tree_lock", default=None)


def _lasting(chain: _Chain | None) -> _Chain | None:
    """The chain from the last hold on that is not over."""
    while chain is not None and not chain[0].is_mine():
        chain = chain[1]
    return chain


def enter_context(hold: Hold) -> None:
    """Have what this context starts from now on know that it was started inside of ``hold``."""
    _started_from.set((hold, _lasting(_started_from.get())))


def was_started_from(hold: Hold) -> bool:
    """Whether whoever started this context held ``hold``."""
    chain = _started_from.get()
    while chain is not None and chain[0] is not hold:
        chain = chain[1]
    return chain is not None


def _forget_in_child() -> None:
    holds.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
