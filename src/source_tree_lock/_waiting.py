"""The wait of one entry: who is told, what is waited for, and how long before the next look.

A plain caller whom nobody wants to hear from blocks in the kernel's queue. Others stand in the
line of their process. Where there is no queue, on Windows, for the second lock, where threads are
green, and in a sub-interpreter, they ask again and again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from contextvars import copy_context
from functools import partial

from ._deadlocks import (
    LOOK_AFTER,
    Watched,
    held_by,
    refuse_endless_wait,
    tree_of,
    warn_of_circle,
    warn_of_endless_wait,
)
from ._holder.find import find_holder
from ._kernel_lock import KernelLock, unavailable
from ._log import informs, logger
from ._owner import are_threads_green, is_main_interpreter, pause
from ._paths.lock_file import NoPlace
from ._queue import Caller, TaskCaller, ThreadCaller
from ._system import HAS_QUEUE
from ._wait_report import Wait
from .errors import LockTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _collections_abc import Callable, Generator
    from typing import Final, Protocol

    from ._entry import Entry
    from ._holder.holder import Holder
    from ._kernel_lock import Identity

    class Pause(Protocol):
        """Something to wait for; ``None`` seconds are for ever."""

        def block(self, seconds: float | None, /) -> None:
            """Wait in this thread."""

        async def suspend(self, seconds: float | None, /) -> None:
            """Wait in this task."""


#: How often `while_waiting` is called, in seconds.
TICK: Final = 0.25
_FIRST_NAP: Final = 0.001
_LONGEST_NAP: Final = 0.05


class Waiting:
    """The wait of one entry.

    Attributes:
        caller: its place in line, while it stands there.
    """

    def __init__(self, entry: Entry) -> None:
        self.caller: Caller | None = None
        self._entry = entry
        self._started = entry.started
        self._is_told = False
        self._holder: Holder | None = None
        self._nap = _FIRST_NAP
        self._next_tick = 0.0
        self._next_look: float | None = None
        self._ours: dict[Identity, str] = {}

    # Telling

    def _tell(self) -> None:
        """Say once who is in the way, and refuse a wait that cannot end.

        A loop of short attempts is one wait while the same holder is in the way: told once.
        """
        if self._is_told:
            return
        self._is_told = True
        entry, request = self._entry, self._entry.request
        refuse_endless_wait(entry)
        before = request.given_up
        is_heard = request.on_wait is not None or request.while_waiting is not None or informs()
        # While they look, waiters stand in no line, and they may be many.
        if is_heard or entry.may_be_below_holder:
            self._holder = self._find_holder()
        self._next_tick = time.monotonic() + TICK
        self._ours = held_by(entry.owner)
        self._next_look = entry.started + LOOK_AFTER if self._ours else None
        if before is not None and before._is_same_wait(self):
            self._started, self._next_tick = before._started, before._next_tick
            self._next_look = before._next_look
            return
        if is_heard:
            logger().info("%s", self._wait())
        warn_of_endless_wait(entry, self._holder)
        if request.on_wait is not None:
            request.on_wait(self._wait())

    def _is_same_wait(self, later: Waiting) -> bool:
        return (
            self._entry.owner.who is later._entry.owner.who
            and tree_of(self._entry).identity == tree_of(later._entry).identity
            and self._holder == later._holder
        )

    def _tick(self) -> None:
        """Do what is due: look for a circle until there is one, and call `while_waiting`."""
        while_waiting = self._entry.request.while_waiting
        if self._next_look is not None and time.monotonic() >= self._next_look:
            waited = time.monotonic() - self._started
            self._next_look = None if self._look()() else time.monotonic() + waited
        if while_waiting is not None and time.monotonic() >= self._next_tick:
            self._holder = self._find_holder()
            wait = self._wait()
            self._next_tick = self._started + wait.waited + TICK
            while_waiting(wait)

    def _look(self) -> Callable[[], bool]:
        """What looks for a circle, in this thread or another."""
        look = partial(warn_of_circle, tree_of(self._entry), self._entry.lock_file, self._ours)
        return partial(copy_context().run, look)  # what it says is said where the wait is

    def _until_tick(self, longest: float | None = None) -> float | None:
        """Seconds until something is due, or ``longest``; ``None`` for never."""
        due = [self._entry.deadline, self._next_look]
        if self._entry.request.while_waiting is not None:
            due.append(self._next_tick)
        now = time.monotonic()
        seconds = [max(0.0, each - now) for each in due if each is not None]
        return min(seconds if longest is None else (*seconds, longest), default=None)

    def _wait(self) -> Wait:
        entry = self._entry
        waited = time.monotonic() - self._started
        return Wait(tree_of(self._entry).path, entry.lock_file, self._holder, waited)

    def _find_holder(self) -> Holder | None:
        entry = self._entry
        # While the lock file is ours, it tells of nobody else.
        file = entry.locks.file
        is_ours = file is not None and file.held
        return find_holder(None if is_ours else entry.lock_file, tree_of(entry).identity)

    def timed_out(self) -> LockTimeout:
        """The error for a wait whose time is up."""
        holder = self._find_holder()
        entry = self._entry
        waited = time.monotonic() - entry.started
        return LockTimeout(
            f"waited {waited:.1f} s for source tree {tree_of(self._entry).path!r}, held by "
            f"{holder or 'an unknown process'}",
            tree=tree_of(self._entry).path,
            waited=waited,
            holder=holder,
        )

    # Waiting

    def pauses(self) -> Generator[tuple[Pause, float | None], None, None]:
        """Give what to wait for until the next attempt, and how long at most."""
        entry = self._entry
        self._tell()
        if entry.is_of_parent():
            return
        lock = entry.locks.blocked_by
        is_silent = entry.deadline is None and entry.request.while_waiting is None
        if lock is None or not HAS_QUEUE or are_threads_green() or not is_main_interpreter():
            yield _Nap(), self._until_tick(self._next_nap())
        elif entry.is_plain and is_silent:
            due, self._next_look = self._next_look, None
            yield _KernelQueue(lock, Watched(due, self._look())), None
        elif lock is entry.locks.file:
            yield from self._stand_in_line()
            return  # who was granted the lock waits for nobody
        else:  # the tree, which is nearly always free once the lock file is ours
            yield _Nap(), self._until_tick(self._next_nap())
        self._tick()

    def _stand_in_line(self) -> Generator[tuple[Pause, float | None], None, None]:
        entry = self._entry
        caller: Caller = ThreadCaller() if entry.is_plain else TaskCaller()
        self.caller = caller
        entry.locks.close()  # a thousand waiters cost no descriptors
        assert entry.locks.place is not None
        caller.join(entry.locks.place)
        while not (caller.is_told() or entry.is_over() or entry.is_of_parent()):
            yield caller, self._until_tick()
            if not caller.is_told():
                self._tick()
        with suppress(NoPlace):  # the directory has gone: the next attempt may get the tree alone
            entry.locks.file = caller.granted()
        self.caller = None

    def _next_nap(self) -> float:
        nap, self._nap = self._nap, min(self._nap * 2, _LONGEST_NAP)
        return nap

    def give_up(self) -> None:
        """Leave the line; what was granted in this moment is given back."""
        if self.caller is not None:
            self.caller.leave()


class _Nap:
    """A moment, after which the caller asks again."""

    def block(self, seconds: float | None) -> None:
        assert seconds is not None
        pause(seconds)

    async def suspend(self, seconds: float | None) -> None:
        import asyncio

        assert seconds is not None
        await asyncio.sleep(seconds)


class _KernelQueue:
    """The kernel's own queue, which a thread cannot leave but by a signal."""

    def __init__(self, lock: KernelLock, watched: Watched) -> None:
        self._lock = lock
        self._watched = watched

    def block(self, _: float | None) -> None:
        try:
            with self._watched:
                self._lock.lock()
        except OSError as error:
            raise unavailable(error, self._lock.path, "the kernel ended the wait") from error

    async def suspend(self, _: float | None) -> None:
        raise NotImplementedError("a task does not block its loop")
