"""The wait of one entry: what is reported, what is waited for, and what is checked meanwhile.

A caller joins the queue of its process for the lock. Where there is no queue, on Windows, under
trio, and where threads are green, it asks again every 1 to 50 ms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from . import _deadlocks
from ._hold import loaded, running_task
from ._holder import Holder, Wait
from ._kernel_lock import KernelLock, guard
from ._paths import is_info_logged, is_smb, logger, open_lock_file
from ._proc import find_holder
from ._queue import Turn, join
from ._system import DIRECTORY, HAS_QUEUE, SAFE
from .errors import LockTimeout, NoLockFile

if TYPE_CHECKING:
    from ._acquire import Entry

#: How often `while_waiting` is called, in seconds.
TICK = 0.25
#: How long a wait lasts before the first check whether it can end, in seconds. It is checked again
#: each time it is twice as long: a program that does not check may close a circle later.
CHECK_AFTER = 1.0
#: How long a wait without callbacks lasts before a warning says who holds the tree, in seconds.
WARN_AFTER = 10.0
_FIRST_NAP = 0.001
_LONGEST_NAP = 0.05
#: The longest sleep, in seconds. If the kernel gave a signal to another thread, Python's handler
#: runs when the main thread wakes.
_LONGEST_PAUSE = 1.0
#: The longest time between two attempts of one wait, in seconds.
_LONGEST_GAP = 10.0
_NEVER = float("inf")


class Nap:
    """A moment, after which the caller tries again."""

    def block(self, seconds: float) -> None:
        """Wait in this thread, and let other greenlets run meanwhile."""
        (green_sleep() or time.sleep)(seconds)

    async def suspend(self, seconds: float) -> None:
        """Wait in this task, of asyncio or of trio."""
        library: Any = sys.modules["asyncio" if running_task("asyncio") else "trio"]
        await library.sleep(seconds)


#: Something to wait for, and for how many seconds at most.
Pause = tuple[Turn | Nap, float]


class Report:
    """What has been said of a wait.

    It outlives an entry: a loop of short attempts by one owner is one wait as long as the same
    holder is in the way.

    Attributes:
        holder: who held the tree when the wait began.
        callbacks: those of the wait.
        started: when that was, by `time.monotonic`.
        next_tick: when `while_waiting` is due; infinite if there is none.
        next_check: when it is due to check whether the wait can end.
        next_warning: when a warning is due that says who holds the tree; infinite if there are
            callbacks, or it has been given.
        is_deadlock_warned: whether a warning said that the wait may never end.
        ended: when the last attempt ended.
    """

    def __init__(self, entry: Entry) -> None:
        self.holder: Holder | None = None
        _, while_waiting, _ = self.callbacks = entry.callbacks
        self.started = started = entry.started
        self.next_tick = _NEVER if while_waiting is None else started + TICK
        self.next_check = started + CHECK_AFTER
        self.next_warning = _NEVER if any(self.callbacks) else started + WARN_AFTER
        self.is_deadlock_warned = False
        self.ended = started

    def goes_on_in(self, later: Report) -> bool:
        """Whether a later attempt is part of the same wait."""
        is_soon = later.started - self.ended < _LONGEST_GAP
        return is_soon and (self.holder, self.callbacks) == (later.holder, later.callbacks)


class Waiting:
    """The wait of one entry, from its first failed attempt until it is over."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._nap = _FIRST_NAP
        self._holder: Holder | None = None
        self._report = Report(entry)
        self._on_wait, self._while_waiting, self._after_wait = entry.callbacks

    def begin(self) -> None:
        """Refuse a wait that cannot end; else report it, once in a loop of short attempts."""
        entry = self._entry
        with guard:
            _deadlocks.waiting.add(entry)
        _deadlocks.refuse_endless_wait(entry, is_green=green_sleep() is not None)
        report, before = self._report, entry.reports.get(entry.tree.identity)
        self._holder = report.holder = self._find_holder()
        if before is not None and before.goes_on_in(report):
            self._report = before
            return
        entry.reports[entry.tree.identity] = report
        if is_info_logged():
            logger().info("%s", self._wait())
        if self._holder is not None:
            _deadlocks.warn_of_ancestor(entry.tree.path, self._holder)
        if self._on_wait is not None:
            self._on_wait(self._wait())

    def pauses(self) -> Generator[Pause, None, None]:
        """Give what to wait for until the next attempt, and for how long at most."""
        turn = self._new_turn()
        try:
            if turn is None or not self._join_queue(turn):
                yield Nap(), self._seconds(self._nap)
                self._nap = min(self._nap * 2, _LONGEST_NAP)
                self._do_what_is_due()
                return
            while not turn.is_over() and not self._entry.is_time_up():
                yield turn, self._seconds(_LONGEST_PAUSE)
                if not turn.is_over() and self._do_what_is_due():
                    return
            # If the lock directory is gone, the tree alone may serve. If the tree is gone, the next
            # attempt says so, or follows the path to another one.
            with suppress(NoLockFile, FileNotFoundError, NotADirectoryError):
                self._adopt(turn.take())
        finally:
            if turn is not None:
                turn.leave()

    def stop(self) -> None:
        """The entry does not wait any more, whether it got the tree or not."""
        self._report.ended = time.monotonic()
        with guard:
            _deadlocks.waiting.discard(self._entry)

    def report_end(self) -> None:
        """The tree is held: report that the wait is over."""
        if self._after_wait is not None:
            self._after_wait(self._wait())

    def _new_turn(self) -> Turn | None:
        """A turn for a queue; ``None`` where there is none for what is waited for."""
        entry = self._entry
        lock = entry.blocked_by
        if lock is None or not HAS_QUEUE or green_sleep() or is_smb(lock):
            return None
        if not entry.is_async:
            return Turn(None)
        if not running_task("asyncio"):
            return None
        import asyncio  # loaded: a task runs

        return Turn(asyncio.get_running_loop())

    def _join_queue(self, turn: Turn) -> bool:
        """Join the queue for what is waited for; false if no thread can be started to wait."""
        entry = self._entry
        lock, path = entry.blocked_by, entry.place.path
        open_lock: Callable[[], KernelLock] = partial(open_lock_file, entry.place)
        if lock is not entry.file:
            path = entry.tree.path  # not as it was given: that may be a symbolic link, or relative
            open_lock = partial(KernelLock, path, SAFE | (DIRECTORY or 0))
        if not join(turn, path, open_lock):
            return False
        # The thread has a descriptor of its own, which serves a thousand callers.
        if lock is entry.file:
            entry.close()
        else:
            entry.tree.close()
        return True

    def _adopt(self, lock: KernelLock | None) -> None:
        """Take over the lock that the thread of the queue was granted."""
        tree = self._entry.tree
        if lock is None:
            return
        if self._entry.blocked_by is not tree.lock:
            self._entry.file = lock
        elif lock.identity == tree.identity:
            tree.lock = lock
        else:
            lock.close()  # another directory is there now

    def _seconds(self, longest: float) -> float:
        """Seconds until something is due, ``longest`` at most."""
        entry, report = self._entry, self._report
        due = min(report.next_check, report.next_tick, report.next_warning, entry.deadline)
        return min(longest, max(0.0, due - time.monotonic()))

    def _do_what_is_due(self) -> bool:
        """Do what is due; whether to try again.

        That is so if an ancestor holds the tree for us, or the path leads to another tree by now.
        Else the caller keeps its place in the queue.
        """
        now, report = time.monotonic(), self._report
        tries_again = False
        if now >= report.next_check:
            waited = now - report.started
            report.next_check = now + max(CHECK_AFTER, waited)
            if not report.is_deadlock_warned:
                report.is_deadlock_warned = _deadlocks.warn_of_deadlock(self._entry, waited)
            tries_again = self._entry.find_outer() or not self._entry.tree.is_in_place()
        if now >= report.next_warning:
            report.next_warning = _NEVER
            self._holder = self._find_holder()
            logger().warning("%s", self._wait())
        if self._while_waiting is not None and now >= report.next_tick:
            self._holder = self._find_holder()
            report.next_tick = now + TICK
            self._while_waiting(self._wait())
        return tries_again

    def _wait(self) -> Wait:
        entry, waited = self._entry, time.monotonic() - self._report.started
        return Wait(entry.tree.path, entry.place.path, self._holder, waited)

    def _find_holder(self) -> Holder | None:
        return find_holder(*_deadlocks.awaited_by(self._entry))


def timed_out(entry: Entry) -> LockTimeout:
    """The error for an entry whose time is up."""
    holder = find_holder(*_deadlocks.awaited_by(entry))
    waited = time.monotonic() - entry.started
    held = f"held by {holder or 'an unknown process'}"
    message = f"waited {waited:.1f} s for source tree {entry.tree.path!r}, {held}"
    return LockTimeout(message, tree=entry.tree.path, waited=waited, holder=holder)


def green_sleep() -> Callable[[float], object] | None:
    """The sleep of gevent or eventlet, if one of them has made threads or time.sleep green."""
    for library, patches, is_patched, names in (
        ("gevent", "gevent.monkey", "is_module_patched", ("threading", "time")),
        ("eventlet", "eventlet.patcher", "is_monkey_patched", ("thread", "time")),
    ):
        ask: Any = getattr(loaded(patches), is_patched, None)
        if ask is not None and any(map(ask, names)):
            sleep: Callable[[float], object] = sys.modules[library].sleep
            return sleep
    return None
