"""What this process holds: each tree with its kernel locks, its owner and its entries."""

from __future__ import annotations

import errno
import os
import sys

from ._holder.record import blank_record, new_record, new_token, write_record
from ._kernel_lock import INTERRUPTIONS, Identity, KernelLock, forgets_in_child, guard
from ._paths.tree import open_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import ContextVar

    from ._handover import Handover
    from ._owner import Owner
    from ._paths.tree import AnyPath, Tree

#: What this process holds, by device and inode of the tree. This table, and the entries and the
#: owner of a hold, are changed under `guard` only.
_holds: dict[Identity, Hold] = {}


@forgets_in_child
def _forget_holds() -> None:
    global _holds
    _holds = {}


def hold_of(tree: Identity) -> Hold | None:
    """What this process holds of a tree."""
    return _holds.get(tree)


def hold_at(path: AnyPath, owner: Owner) -> Hold | None:
    """What an owner holds at a path; ``None`` too where there is no tree."""
    try:
        tree = open_tree(path)
    except (OSError, ValueError):
        return None
    tree.close()
    hold = hold_of(tree.identity)
    return hold if hold is not None and owner.stands_for(hold.owner) else None


def all_holds() -> list[Hold]:
    """All that this process holds."""
    with guard:
        holds = list(_holds.values())
    return holds  # noqa: RET504 (see `unwanted_grant`)


class Hold:
    """A tree that one owner of this process holds, however many times it entered.

    Attributes:
        owner: who entered.
        tree: the tree, with its kernel lock.
        lock_file: path of the lock file.
        file: the lock file with its kernel lock; ``None`` where somebody else has it for us, or
            nobody can have it.
        handover: the ancestor's hold that this one is inside of.
        entries: what entered and has not left.
        is_ending: whether its kernel locks are being released.
        token: what the record says while the hold lasts; empty where none could be written.
    """

    __slots__ = (
        "_record",
        "entries",
        "file",
        "handover",
        "is_ending",
        "lock_file",
        "owner",
        "token",
        "tree",
        "unwritten",
    )

    def __init__(
        self,
        owner: Owner,
        tree: Tree,
        lock_file: str,
        file: KernelLock | None,
        handover: Handover | None = None,
    ) -> None:
        self.owner: Owner = owner
        self.tree: Tree = tree
        self.lock_file: str = lock_file
        self.file: KernelLock | None = file
        self.handover: Handover | None = handover
        self.entries: list[object] = []
        self.is_ending: bool = False
        self.token: str = ""
        self.unwritten: OSError | None = None
        self._record = b""

    def register(self) -> bool:
        """Have this process hold the tree, under `guard`; false if another owner of it does."""
        return _holds.setdefault(self.tree.identity, self) is self

    def is_registered(self) -> bool:
        """Whether this process holds it: not if it is over, or a fork's parent's."""
        return _holds.get(self.tree.identity) is self

    def write_record(self, status: object, *, is_for_hooks: bool) -> None:
        """Say in the lock file, which has this status, who holds it, if it can be said."""
        if self.file is None or not isinstance(status, os.stat_result):
            return
        try:
            # What has other names may be anybody's file.
            if status.st_nlink != 1 or not self.file.writable:
                raise OSError(errno.EROFS, "has other names, or may only be read")
            token = new_token()
            self._record = new_record(token, is_for_hooks=is_for_hooks)
            write_record(self.file, self._record, status.st_size)
            self.token = token
        except OSError as error:
            self.unwritten = error

    def end(self) -> None:
        """Release both kernel locks, in reverse order, under `guard`. A forked child has none.

        An interruption waits until all of it is done.
        """
        record = self._record
        interruption: BaseException | None = None
        # Not for ever, as in `KernelLock.close`.
        for _ in range(INTERRUPTIONS):
            try:
                if not self.is_registered():
                    break
                self.is_ending = True
                self.tree.close()
                if self.file is not None:
                    self.file.close((lambda fd: blank_record(fd, record)) if record else None)
                _holds.pop(self.tree.identity, None)
            except BaseException as error:
                interruption = error
        leave_context(self)
        if interruption is not None:
            raise interruption


# Who was started from inside a hold


#: The holds of whoever started this context: asyncio copies it for threads and child tasks.
#: Holds that are over may still be among them. Made at need: without asyncio nobody copies it.
_started_from: ContextVar[tuple[Hold, ...]] | None = None
#: How many holds that are over a context may keep before they are looked for.
_MOST_OVER = 16


def _context_variable() -> ContextVar[tuple[Hold, ...]] | None:
    global _started_from
    if _started_from is None and "_contextvars" in sys.modules:
        with guard:
            from contextvars import ContextVar

            _started_from = _started_from or ContextVar("source_tree_lock", default=())
    return _started_from


def enter_context(hold: Hold) -> None:
    """Have what this context starts from now on know that it was started inside of ``hold``."""
    variable = _context_variable()
    if variable is not None:
        before = variable.get()
        if len(before) > 2 * len(_holds) + _MOST_OVER:
            before = tuple(filter(Hold.is_registered, before))
        variable.set((*before, hold))


def leave_context(hold: Hold) -> None:
    """Forget a hold that is over, if it is the last of this context."""
    if _started_from is not None:
        before = _started_from.get()
        if before and before[-1] is hold:
            _started_from.set(before[:-1])


def was_started_from(hold: Hold) -> bool:
    """Whether whoever started this context held ``hold``."""
    return _started_from is not None and hold in _started_from.get()
