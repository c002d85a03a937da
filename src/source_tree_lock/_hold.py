"""What this process holds, and which task, greenlet or thread of it."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ._kernel_lock import Identity, KernelLock, guard, in_child, leads_to
from ._paths import Tree
from ._record import blank_record
from ._system import CAN_HAND_DOWN

if TYPE_CHECKING:
    from ._acquire import Entry
    from ._handover import Outer


class Thread:
    """Stands for one thread. Unlike a thread's number, it is never used again."""


class _Here(threading.local):
    def __init__(self) -> None:
        self.thread = Thread()


_here = _Here()


class Owner:
    """Who entered a tree: the running task, else the greenlet, else the thread.

    Attributes:
        who: the task, greenlet or thread.
        thread: the thread in which it runs.
    """

    __slots__ = ("thread", "who")

    def __init__(self) -> None:
        self.thread = _here.thread
        self.who: Any = (
            running_task("asyncio") or running_task("trio") or _greenlet() or self.thread
        )

    def may_act_for(self, other: Owner) -> bool:
        """Whether this owner may leave, or enter again, what the other has entered.

        The hold of a task that has ended belongs to its thread: the next cell of a notebook and
        the second half of an async fixture run in tasks of their own.
        """
        return self.who is other.who or (self.thread is other.thread and _has_ended(other.who))


def loaded(name: str) -> Any:
    """A module, if it was imported.

    With the GIL off, ``sys.modules.get`` locks the table: a child that is forked meanwhile would
    wait indefinitely for a thread that it does not have.
    """
    return sys.modules[name] if name in sys.modules else None  # noqa: SIM401


def running_task(library: str) -> object:
    """The running task of asyncio or trio; ``None`` if there is none."""
    module = loaded("trio.lowlevel" if library == "trio" else library)
    current_task = getattr(module, "current_task", None)  # it may be half imported
    try:
        return None if current_task is None else current_task()
    except RuntimeError:
        return None  # no event loop runs in this thread


def _greenlet() -> object:
    """The running greenlet, unless it is the thread's own."""
    getcurrent: Any = getattr(loaded("greenlet"), "getcurrent", None)
    greenlet = None if getcurrent is None else getcurrent()
    return None if greenlet is None or greenlet.parent is None else greenlet


def _has_ended(who: Any) -> bool:
    """Whether an owner is a task or a greenlet that has ended."""
    if hasattr(who, "done"):  # asyncio's tasks
        return bool(who.done())
    if hasattr(who, "coro"):  # trio's
        return getattr(who.coro, "cr_frame", who) is None
    return bool(getattr(who, "dead", False))  # greenlets


class Hold:
    """A tree that one owner of this process holds, however often it entered.

    Attributes:
        owner: who entered.
        tree: the tree, with its kernel lock.
        file: the lock file with its kernel lock; ``None`` if the tree alone is locked.
        base: path of the lock file of the outermost hold; ``None`` if that has no lock file.
        level: 0 for the outermost hold of a tree, 1 for a hold inside that one, and so on.
        outer: the hold of an ancestor that this one is inside of.
        entries: those of its owner that were not left. A set, because leaving may be interrupted
            and repeated.
        token: what the record says while the hold lasts; empty where none could be written.
    """

    def __init__(
        self, owner: Owner, tree: Tree, file: KernelLock | None, outer: Outer | None, token: str
    ) -> None:
        self.owner = owner
        self.tree = tree
        self.file = file
        self.outer = outer
        self.level = 0 if outer is None else outer.level + 1
        self.base = outer.base if outer is not None else None if file is None else file.path
        self.entries: set[Entry] = set()
        self.token = token

    def lasts(self) -> bool:
        """Whether this process holds it: not once it is over, nor in a forked child."""
        return hold_of(self.tree.identity) is self

    def register(self) -> bool:
        """Have this process hold the tree; false if another owner of it does."""
        with guard:
            other = _holds.setdefault(self.tree.identity, self)
            if not other.entries:  # it is over
                other = _holds[self.tree.identity] = self
            return other is self

    def enter_again(self, entry: Entry) -> bool:
        """Add one more entry; false if this is another owner's."""
        with guard:
            if not (self.lasts() and entry.owner.may_act_for(self.owner)):
                return False
            self.owner = entry.owner
            self.entries.add(entry)
        return True

    def leave(self, entry: Entry) -> None:
        """Leave one entry. When all are left, the kernel locks are released.

        If it is interrupted, it can be repeated.
        """
        with guard:
            self.entries.discard(entry)
            if self.entries or _holds.get(self.tree.identity) is not self:
                return
        self.tree.close()
        if self.file is not None:
            if self.token:
                blank_record(self.file)
            self.file.close()
        with guard:
            if _holds.get(self.tree.identity) is self:
                del _holds[self.tree.identity]

    def descriptors(self) -> tuple[int, ...]:
        """Those that carry its locks: a child that inherits them keeps the tree locked."""
        locks = (self.file, self.tree.lock) if CAN_HAND_DOWN else ()
        return tuple(lock.fileno() for lock in locks if lock is not None and lock.held)


#: What this process holds, by device and inode of the tree; used under `guard`.
_holds: dict[Identity, Hold] = {}
in_child(_holds.clear)


def all_holds() -> list[Hold]:
    """All holds of this process."""
    with guard:
        return [each for each in _holds.values() if each.entries]


def hold_of(tree: Identity) -> Hold | None:
    """The hold of this process on a tree."""
    with guard:
        hold = _holds.get(tree)
        return hold if hold is not None and hold.entries else None


# Handing holds over to child processes: `_handover` reads what is written here

HELD_VARIABLE = "SOURCE_TREE_LOCK_HELD"


def environ_of(owner: Owner) -> dict[str, str]:
    """The variable that hands over all holds of an owner, and what was handed to this process."""
    with guard:
        import json  # imported only to hand over: it takes longer than an entry

    entries: dict[str, object] = {}
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        for each in json.loads(os.environ[HELD_VARIABLE]):
            entries[str((each["tree"], each["level"]))] = each
    for hold in all_holds():
        if owner.may_act_for(hold.owner):
            tree = list(hold.tree.identity)
            entries[str((tree, hold.level))] = {
                "tree": tree,
                "lock_file": hold.base,
                "directory": leads_to(os.path.dirname(hold.base or "")),
                "level": hold.level,
                "pid": os.getpid(),
                "token": hold.token,
            }
    return {HELD_VARIABLE: json.dumps(list(entries.values()))}
