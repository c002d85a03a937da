"""Waits that cannot end are refused; those that may never end are warned of."""

from __future__ import annotations

import _thread
import os
import time

from ._held import all_holds, hold_of, was_started_from
from ._kernel_lock import guard, leads_to
from ._log import logger
from ._owner import are_threads_green
from ._system import start_thread
from ._unfinished_entries import others_under_way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _collections_abc import Callable
    from typing import Final

    from ._entry import Entry
    from ._held import Hold
    from ._holder.holder import Holder
    from ._kernel_lock import Identity
    from ._owner import Owner
    from ._paths.tree import Tree

#: How long a wait lasts before it is looked whether it is part of a circle, in seconds. The next
#: look is when it is twice as long: whoever closes the circle may be a program that never looks.
LOOK_AFTER: Final = 1.0


# Waits that cannot end


def refuse_endless_wait(entry: Entry) -> None:
    """Refuse the wait of an entry that only this very thread, task or greenlet could end.

    Raises:
        RuntimeError: it says what to do.
    """
    green = are_threads_green()  # then others go on while this one waits
    if entry.is_plain and not green and _is_blocked_by_own_thread(entry):
        raise RuntimeError(
            f"source tree {tree_of(entry).path!r} is being entered by this very thread already, "
            "in a task of its event loop or in what a signal handler has interrupted: neither "
            "could go on while the thread waits. In a task, use `async with` or `asyncio.to_thread`"
        )
    hold = in_the_way(entry)
    if hold is None:
        return
    if entry.owner.stands_for(hold.owner):
        if hold.is_ending:
            raise RuntimeError(
                f"source tree {hold.tree.path!r} is just being released by this very thread or "
                "task, which a signal handler, or the like, interrupted: it cannot enter now"
            )
        raise RuntimeError(
            f"source tree {hold.tree.path!r}, which this very thread or task holds, has the same "
            f"lock file, {entry.lock_file!r}; leave it first, or give each tree its own"
        )
    if green or hold.owner.thread is not entry.owner.thread:
        return
    if hold.owner.who is hold.owner.thread:
        raise RuntimeError(
            f"source tree {hold.tree.path!r} is held by this very thread, outside its event loop, "
            "so that a task would wait for ever; hold it inside the loop, with `async with`, "
            "instead"
        )
    if entry.is_plain:
        raise RuntimeError(
            f"source tree {hold.tree.path!r} is held by a task of this thread, which could never "
            "go on while the thread waits; use `async with`, or `asyncio.to_thread`"
        )


def tree_of(entry: Entry) -> Tree:
    """The tree that an entry waits for, which may be closed."""
    tree = entry.locks.tree
    assert tree is not None, "an entry that waits has seen its tree"
    return tree


def _is_blocked_by_own_thread(entry: Entry) -> bool:
    """Whether another entry of this thread, which can only go on later, may get the lock first."""
    return any(
        each.lock_file == entry.lock_file and each.blocks_own_thread()
        for each in others_under_way(entry)
    )


def in_the_way(entry: Entry) -> Hold | None:
    """What this process holds of the tree, or by its lock file: a digest may give two trees one."""
    hold = hold_of(tree_of(entry).identity)
    file = entry.locks.file
    if hold is None and file is not None:
        for each in all_holds():
            # By the inode: the path of one lock directory may be spelled in two ways.
            if each.file is not None and each.file.identity == file.identity:
                return each
    return hold


# Waits that may never end


def warn_of_endless_wait(entry: Entry, holder: Holder | None) -> None:
    """Warn of a wait for somebody who may be waiting for this very process or task."""
    hold = in_the_way(entry)
    if hold is not None and was_started_from(hold):
        logger().warning(
            "Waiting for source tree %r, which is held by the task or context that started "
            "this one: the wait never ends if the holder waits for it.",
            tree_of(entry).path,
        )
    if holder is not None and holder.is_ancestor():
        logger().warning(
            "Waiting for source tree %r, which is held by an ancestor of this process, %s: the "
            "wait never ends if the holder waits for it. %s",
            tree_of(entry).path,
            holder.name,
            _FLOCK if holder.program == "flock" else _HAND_OVER,
        )


_HAND_OVER: Final = (
    "Hand the hold over: add `lock.environ` (the variable SOURCE_TREE_LOCK_HELD) to the "
    "environment of the child."
)
_FLOCK: Final = (
    "flock(1) cannot hand its lock over: write `source-tree-lock run TREE -- COMMAND...` instead."
)


def held_by(owner: Owner) -> dict[Identity, str]:
    """What an owner holds or was handed, by device and inode, and what to call it.

    Only who holds something can be part of a circle.
    """
    from ._handover import handed_down

    found = {each.tree: "what this process was handed" for each in handed_down()}
    for hold in all_holds():
        if owner.stands_for(hold.owner):
            found[hold.tree.identity] = repr(hold.tree.path)
            if hold.file is not None:
                found[hold.file.identity] = repr(hold.tree.path)
    return found


def warn_of_circle(tree: Tree, lock_file: str, ours: dict[Identity, str]) -> bool:
    """Warn if processes wait for each other in a circle; whether they do.

    Args:
        tree: what is waited for.
        lock_file: path of its lock file.
        ours: what `held_by` says of who waits.
    """
    try:
        with guard:  # a fork waits for what is imported
            from ._holder.circle import find_circle
    except (ImportError, OSError):
        return False  # no descriptor is free, say: then nothing is claimed

    wanted = {tree.identity: repr(tree.path)}
    status = leads_to(lock_file, os.lstat)
    if status is not None:
        wanted[status.st_dev, status.st_ino] = repr(tree.path)
    circle = find_circle(wanted, ours)
    # A long list is read in pieces, between which others go on: a circle that is real stays.
    if not circle or find_circle(wanted, ours) != circle:
        return False
    logger().warning(
        "Waiting for source tree %r may never end, since processes wait for each other: %s. "
        "End one of them, or set a timeout; take several trees in one order, sorted.",
        tree.path,
        "; ".join(circle),
    )
    return True


class Watched:
    """Has a daemon thread look for a circle during a wait that cannot look by itself.

    A context manager.

    Args:
        due: when to look first, as `time.monotonic` has it; ``None`` for never.
        look: whether it found one; if not, it looks again when the wait is twice as long.
    """

    __slots__ = ("_due", "_look", "_over")

    def __init__(self, due: float | None, look: Callable[[], bool]) -> None:
        self._due = due
        self._look = look
        self._over = _thread.allocate_lock()

    def __enter__(self) -> None:
        if self._due is None:
            return
        self._over.acquire()
        try:
            start_thread(self._watch)
        except RuntimeError:
            pass  # no thread can be started: the wait is no worse for it
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc_info: object) -> None:
        if self._over.locked():
            self._over.release()

    def _watch(self) -> None:
        pause = max(0.0, (self._due or 0.0) - time.monotonic())
        while not self._over.acquire(True, pause) and not self._look():
            pause = max(LOOK_AFTER, pause * 2)
