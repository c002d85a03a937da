"""Waits that cannot end are refused; those that may never end are warned of."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from ._digest import posix_digest
from ._hold import Hold, all_holds, hold_of
from ._holder import Holder
from ._kernel_lock import Identity, guard, in_child
from ._paths import logger
from ._proc import Flock, Key, ancestry, flocks, identity_at, key_of, open_paths, program_of

if TYPE_CHECKING:
    from ._acquire import Entry

#: How long a wait for another thread of this process lasts before it is warned of, in seconds.
_WARN_OF_OWN_AFTER = 4.0

#: The entries of this process that wait; used under `guard`. It is weak: a task that is dropped
#: while it waits must not be kept by its entry.
waiting: weakref.WeakSet[Entry] = weakref.WeakSet()
in_child(waiting.clear)


def awaited_by(entry: Entry) -> tuple[str | None, Identity | None]:
    """The lock file and the tree that an entry waits for; ``None`` for one that it does not."""
    if entry.blocked_below is not None:
        return entry.blocked_below, None
    # While the lock file is ours, it says nothing of others.
    file = None if entry.file is not None and entry.file.held else entry.place.path
    return file, None if entry.outer is not None and entry.outer.has_tree else entry.tree.identity


# Waits that cannot end


def refuse_endless_wait(entry: Entry, *, is_green: bool) -> None:
    """Refuse the wait of an entry that only its own thread, task or greenlet could end.

    Raises:
        RuntimeError: it says what to do.
    """
    tree, owner = entry.tree.path, entry.owner
    hold = _hold_in_the_way(entry)
    if hold is not None and owner.may_act_for(hold.owner):
        raise RuntimeError(
            f"this thread or task holds {hold.tree.path!r}, which has the same lock file as "
            f"{tree!r}, {entry.place.path!r}; release it first, or use another digest"
        )
    if is_green:
        return  # the others go on while this one waits
    if hold is not None and hold.owner.thread is owner.thread:
        if hold.owner.who is hold.owner.thread:
            raise RuntimeError(
                f"this thread holds source tree {tree!r} outside its event loop, so that a task "
                "would wait forever; hold it inside the loop instead, with `async with`"
            )
        if not entry.is_async:
            raise RuntimeError(
                f"a task of this thread holds source tree {tree!r}, and could not go on while the "
                "thread waits; use `async with` here"
            )
    with guard:
        others = list(waiting)
    if not entry.is_async and any(_would_block(entry, each) for each in others):
        raise RuntimeError(
            f"this thread already waits for source tree {tree!r}, in a task or in code that was "
            "interrupted, which could not go on while it waits here; use `async with` here"
        )


def _hold_in_the_way(entry: Entry) -> Hold | None:
    """What this process holds of the tree, or of its lock file."""
    hold, lock = hold_of(entry.tree.identity), entry.blocked_by
    if hold is None and lock is not None:
        # A digest may give two trees one lock file. By its inode: the directory may have two names.
        for each in all_holds():
            if each.file is not None and each.file.identity == lock.identity:
                return each
    return hold


def _would_block(entry: Entry, other: Entry) -> bool:
    """Whether another entry of the same thread waits for the same tree or lock file."""
    return (
        other is not entry
        and other.owner.thread is entry.owner.thread
        and (other.tree.identity == entry.tree.identity or other.place.path == entry.place.path)
    )


# Waits that may never end


def warn_of_ancestor(tree: str, holder: Holder) -> None:
    """Warn of a wait for an ancestor of this process, which may wait for this process."""
    if not holder.is_local or holder.pid not in ancestry()[1:]:
        return
    remedy = (
        "Hand the hold over: add `lock.environ` (the variable SOURCE_TREE_LOCK_HELD) to the "
        "environment of the child process."
    )
    if holder.program == "flock":
        remedy = (
            "flock(1) cannot hand its lock over: write `source-tree-lock run TREE -- COMMAND...` "
            "instead."
        )
    logger().warning(
        "Waiting for source tree %r, which is held by an ancestor of this process, %s: the wait "
        "never ends if the holder waits for this process. %s",
        *(tree, holder.name, remedy),
    )


def warn_of_deadlock(entry: Entry, waited: float) -> bool:
    """Warn if a wait may never end, for another thread of this process or in a circle.

    Args:
        entry: what waits.
        waited: for how long, in seconds.

    Returns:
        Whether there was a warning.
    """
    hold = _hold_in_the_way(entry)
    if hold is not None:
        if waited >= _WARN_OF_OWN_AFTER:
            logger().warning(
                "Waiting for source tree %r, which another thread of this process, or another "
                "task, holds: the wait never ends if the holder waits for this one. Release the "
                "tree before you wait for a thread or task that enters it, or enter it there only.",
                entry.tree.path,
            )
        return waited >= _WARN_OF_OWN_AFTER
    circle = _find_circle(entry)
    # A list may mix moments, so look twice: a real circle stays.
    if not circle or _find_circle(entry) != circle:
        return False
    logger().warning(
        "Waiting for source tree %r may never end, since processes wait for each other: %s. "
        "End one of them, or set a timeout; take several trees in one order, sorted.",
        *(entry.tree.path, "; ".join(circle)),
    )
    return True


def _find_circle(entry: Entry) -> list[str]:
    """The processes that wait for each other, from the holder of what is waited for to this one.

    flock(2) has no EDEADLK, but the kernel lists the holders and the waiters (Linux).

    Returns:
        A sentence for each process; empty if there is no circle, or none that can be seen.
    """
    listed = flocks()
    if not listed:
        return []
    waits = _Waits(entry, listed)
    # A process that holds nothing, nor does an ancestor of it, is in no circle.
    if waits.ours.isdisjoint(waits.holders.values()):
        return []
    for key in waits.wanted:
        if circle := waits.circle_from(key):
            return circle
    return []


class _Waits:
    """Which process waits for which, by the kernel's list.

    Attributes:
        ours: this process and its ancestors. It may wait on behalf of one that holds something, as
            a command does for flock(1), and a hook for uv.
        holders: the holder of each lock.
        wanted: the locks that this process waits for.
    """

    def __init__(self, entry: Entry, listed: list[Flock]) -> None:
        self.ours = set(ancestry())
        self.holders = {each.key: each.pid for each in listed if not each.is_waiting}
        self._awaited: dict[int, list[Key]] = {}
        for each in listed:
            for pid in ancestry(each.pid) if each.is_waiting else ():
                self._awaited.setdefault(pid, []).append(each.key)
        file, tree = awaited_by(entry)
        found = [None if file is None else identity_at(file), tree]
        self.wanted = [key_of(each) for each in found if each is not None]
        self._tree = repr(entry.tree.path)
        self._names = {key_of(each.tree.identity): repr(each.tree.path) for each in all_holds()}
        self._names.update(dict.fromkeys(self.wanted, self._tree))

    def circle_from(self, key: Key, seen: frozenset[int] = frozenset()) -> list[str]:
        """The processes from the holder of a lock to this one, in sentences; empty if none."""
        holder = self.holders.get(key)
        if holder is None or holder in seen or holder in self.ours:
            return []
        for awaited in self._awaited.get(holder, ()):
            other = self.holders.get(awaited)
            if other in self.ours:
                rest = [f"{self._us(other)} waits for {self._tree}"]
            else:
                rest = self.circle_from(awaited, seen | {holder})
            if rest:
                held, waited = self._name(key, holder), self._name(awaited, other)
                return [f"{_process(holder)} holds {held} and waits for {waited}", *rest]
        return []

    def _us(self, holder: int | None) -> str:
        """This process, and the ancestor for which it waits."""
        us = f"this process (pid {os.getpid()})"
        return us if holder == os.getpid() else f"{us}, for {_process(holder)},"

    def _name(self, key: Key, holder: int | None) -> str:
        """What to call what a process has locked: the tree of a lock file, if that is open too."""
        if key in self._names or holder is None:
            return self._names.get(key, "a lock")
        paths = {key_of(identity): path for identity, path in open_paths(holder)}
        path = paths.get(key)
        if path is None:
            return "a lock"
        trees = {posix_digest(each): each for each in paths.values() if os.path.isdir(each)}
        digest = os.path.basename(path).rpartition("-")[2].partition(".")[0]
        return repr(trees.get(digest, path))


def _process(pid: int | None) -> str:
    return f"{(pid and program_of(pid)) or 'a process'} (pid {pid})"
