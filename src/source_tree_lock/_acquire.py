"""Entering a source tree: try, report who holds it, wait, check, register.

An entry takes two kernel locks, always in this order: first the lock file, where callers queue and
which keeps uv out, then the tree itself. They are released in reverse. If one is held, the caller
waits in the queue of this process for it, whose thread hands it the lock that it was granted. Then
the caller tries again, with that lock in hand. Inside the hold of an ancestor, an entry takes
another lock file instead of the two. Nobody enters without a lock.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from . import _paths
from ._hold import Hold, Owner, hold_of
from ._kernel_lock import Identity, KernelLock, guard, in_child
from ._paths import AnyPath, Place, Tree
from ._record import blank_record, write_record
from .errors import REFUSED, LockTimeout, LockUnavailable, NoLockFile, unavailable

if TYPE_CHECKING:
    from ._handover import Outer
    from ._holder import Wait
    from ._wait import Pause, Report, Waiting


#: What has been said of the waits of each owner, by tree: a loop of short attempts is one wait.
#: Used under `guard`.
_reports: weakref.WeakKeyDictionary[object, dict[Identity, Report]] = weakref.WeakKeyDictionary()
in_child(_reports.clear)


class Entry:
    """One entry into a tree, from the first attempt until it is left.

    Attributes:
        path: the path of the source tree as it was given.
        place_of: gives the place of the lock file for a canonical path.
        callbacks: `on_wait`, `while_waiting` and `after_wait`.
        owner: who enters.
        is_async: whether it waits in a task, and not in its thread.
        for_children: whether the tree is held only on behalf of child processes.
        started: when it began, by `time.monotonic`.
        deadline: when its time is up; infinite if it has no limit.
        hold: what was entered, once it was.
        tree: the tree to which the path led last; set by the first attempt, as is `place`.
        place: where the lock file is.
        file: the lock file, while it is open.
        outer: the hold of an ancestor that this entry is inside of.
        looks_for_outer: whether to look for one before the next wait.
        blocked_by: the lock that somebody else holds; ``None`` if there is no queue for it.
        blocked_below: path of the lock file of an inner hold that somebody is still inside of.
    """

    def __init__(
        self,
        path: AnyPath,
        place_of: Callable[[str], Place],
        callbacks: tuple[Callable[[Wait], object] | None, ...],
        seconds: float | None,
        *,
        is_async: bool = False,
        for_children: bool = False,
    ) -> None:
        self.path = path
        self.place_of = place_of
        self.callbacks = callbacks
        self.owner = Owner()
        self.is_async = is_async
        self.for_children = for_children
        self.started = time.monotonic()
        self.deadline = self.started + (float("inf") if seconds is None else seconds)
        self.hold: Hold | None = None
        self.tree: Tree
        self.place: Place
        self.file: KernelLock | None = None
        self.outer: Outer | None = None
        self.looks_for_outer = True
        self.blocked_by: KernelLock | None = None
        self.blocked_below: str | None = None
        self._no_file: NoLockFile | None = None
        self._token = ""
        self._waiting: Waiting | None = None

    def enter(self) -> bool:
        """Enter, waiting in this thread; false if the time is up."""
        with closing(self._steps()) as steps:
            for pause, seconds in steps:
                pause.block(seconds)
        return self._finish()

    async def enter_async(self) -> bool:
        """Enter, waiting in this task; false if the time is up."""
        with closing(self._steps()) as steps:
            for pause, seconds in steps:
                await pause.suspend(seconds)
        return self._finish()

    def _finish(self) -> bool:
        """Report that the wait is over; whether the tree was entered."""
        if self.hold is None:
            return False
        if _reports:
            self.reports.pop(self.hold.tree.identity, None)
        if self._waiting is not None:
            self._waiting.report_end()
        return True

    def _steps(self) -> Generator[Pause, None, None]:
        """Give what to wait for, until the tree is entered or the time is up.

        However it ends, nothing stays open but what is held.
        """
        self.tree = _paths.open_tree(self.path)
        try:
            while not self._attempt():
                if self.is_time_up():
                    return
                if self._waiting is None:
                    with guard:
                        from ._wait import Waiting
                    self._waiting = Waiting(self)
                    self._waiting.begin()
                yield from self._waiting.pauses()
        finally:
            if self._waiting is not None:
                self._waiting.stop()
            if self.hold is None or not self.hold.lasts():
                self.close()

    def _attempt(self) -> bool:
        """Enter if that is possible without waiting."""
        for _ in range(_paths.RESTARTS):
            if not self.tree.is_open():
                self.tree = _paths.open_tree(self.path)
            tree = self.tree
            hold = hold_of(tree.identity)
            if hold is not None:
                self.hold = hold  # first, so that an interrupted entry can be left
                if hold.enter_again(self):
                    self.close()
                    return True
                self.hold = None
            if self.outer is not None:
                self.place = self.outer.inner_place()
            else:
                self.place = self.place_of(tree.path)
            if self._try_locks(tree, self.place):
                if self._is_in_place(tree):
                    return self._register(tree)
                self.outer, self.looks_for_outer = None, True
            elif not (self.looks_for_outer and self.find_outer()):
                return False
            self.close()  # and start over, maybe inside the hold of an ancestor
        raise _paths.replaced_too_often(self.place.path)

    def _try_locks(self, tree: Tree, place: Place) -> bool:
        """Take the lock file and the tree without waiting; false if somebody is in the way."""
        self.blocked_by = self.blocked_below = None
        if not self._try_file(place):
            return False
        if self.outer is None or not self.outer.has_tree:
            if self.file is not None:
                _paths.warn_if_shared(tree, self.file)
            self.blocked_by = tree.lock
            if not tree.try_lock():
                return False
            self.blocked_by = None
            if tree.lock is None and self.file is None and self._no_file is not None:
                raise self._no_file  # there is nothing to lock
        # Write the record before looking below. A child of an earlier hold that has not entered yet
        # then sees another token, and does not enter; one that has entered is seen below.
        if self.file is not None and not self._token:
            with suppress(OSError):
                self._token = write_record(self.file, for_children=self.for_children)
        return self._is_free_below()

    def _try_file(self, place: Place) -> bool:
        if self.file is not None and self.file.path != place.path:
            self._close_file()  # during the wait, the path began to lead to another tree
        try:
            self.file = self.file or _paths.open_lock_file(place)
            if not _paths.try_lock(self.file):
                with guard:
                    from ._queue import try_again
                self.file = try_again(self.file)
                self.blocked_by = self.file
            return self.file.held
        except NoLockFile as error:
            self._no_file = error  # the tree alone may serve
            return True
        except BlockingIOError:
            return False  # another process has a lease on it, and is asked to give it back
        except LockUnavailable:
            raise
        except OSError as error:  # of the late import: too many open files
            raise unavailable(error, place.path, REFUSED) from error

    def _is_free_below(self) -> bool:
        """Whether no lock file of an inner hold is locked.

        A child whose parent was killed, or has left, is still inside the parent's hold, and holds
        the lock file of that level only.
        """
        if self.file is None:
            return True
        outer = self.outer
        base, level = (self.file.path, 1) if outer is None else (outer.base or "", outer.level + 2)
        for path in _paths.inner_lock_files(base, level):
            if _paths.is_locked(path):
                self.blocked_below = path
                return False
        return True

    def _is_in_place(self, tree: Tree) -> bool:
        """Whether what was locked is still what the paths lead to, and the outer hold lasts."""
        if not tree.is_in_place():
            return False
        if self.file is not None:
            return self.file.is_in_place() and (self.outer is None or self.outer.lasts())
        if _paths.is_info_logged():
            what = "Source tree %r is locked by itself alone, which uv does not see: %s."
            _paths.log_once(_paths.INFO, what, tree.path, str(self._no_file))
        return True

    def _register(self, tree: Tree) -> bool:
        hold = Hold(self.owner, tree, self.file, self.outer, self._token)
        hold.entries.add(self)
        self.hold = hold  # first, so that an interrupted entry can be left
        if not hold.register():
            # Another owner of this process holds it by a lock file of another name, and trees
            # cannot be locked here.
            self.hold = None
            return False
        self.file = None
        return True

    # For the wait

    def is_time_up(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.deadline

    @property
    def reports(self) -> dict[Identity, Report]:
        """What has been said of the waits of its owner, by tree."""
        with guard:
            return _reports.setdefault(self.owner.who, {})

    def find_outer(self) -> bool:
        """Whether this process turns out to be inside the hold of an ancestor."""
        self.looks_for_outer = False
        if self.outer is None:
            with guard:
                from ._handover import find_outer
            self.outer = find_outer(self.tree.identity, self.place)
            return self.outer is not None
        return False

    def timed_out(self) -> LockTimeout:
        """The error for an entry whose time is up."""
        with guard:
            from ._wait import timed_out

        return timed_out(self)

    # Leaving

    def close(self) -> None:
        """Close what is open and not held."""
        self.tree.close()
        self._close_file()

    def _close_file(self) -> None:
        if self.file is not None:
            if self._token:
                blank_record(self.file)
            self.file.close()
        self.file, self._token = None, ""

    def leave(self) -> None:
        """Leave the tree. Leaving twice does nothing."""
        if self.hold is not None:
            self.hold.leave(self)
            self.hold = None  # last, so that an interrupted attempt can be repeated

    def lasts(self) -> bool:
        """Whether it is inside a tree that this process holds."""
        return self.is_entered() and self.hold is not None and self.hold.lasts()

    def is_entered(self) -> bool:
        """Whether it entered and was not left."""
        return self.hold is not None and self in self.hold.entries


# The limit of a wait


def check_timeout(seconds: float | None, name: str) -> None:
    """Refuse what is no number of seconds.

    Raises:
        TypeError, ValueError: it is not; the message begins with ``name``.
    """
    if seconds is not None and not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {seconds!r}")
    if seconds is not None and not seconds >= 0:  # neither negative nor NaN
        raise ValueError(f"{name} must be a non-negative number of seconds, not {seconds!r}")


def timeout_of_environment() -> float | None:
    """``SOURCE_TREE_LOCK_TIMEOUT``, in seconds; ``None`` if it is not set.

    Raises:
        ValueError: it is no number of seconds.
    """
    text = os.environ.get("SOURCE_TREE_LOCK_TIMEOUT")
    if not text:
        return None
    name = "SOURCE_TREE_LOCK_TIMEOUT in the environment"
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {text!r}") from None
    check_timeout(seconds, name)
    return seconds
