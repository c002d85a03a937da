"""Ways to wait for a lock: in the kernel's queue, alone or in line, or by asking again.

A plain caller without a deadline blocks in the kernel. All others stand in a line, one for
each lock file: one daemon thread blocks in the kernel on behalf of the whole line, and hands
what it is granted to the first that still wants it. It is never an executor's thread: those
are joined at exit. Where there is no queue, on Windows and for the second lock, they ask again.
"""

from __future__ import annotations

import _thread
import errno
import os
import threading
from _weakref import ref  # the module around it takes half a millisecond to import
from collections import deque

from ._kernel import KernelLock, guard, leads_to, unavailable
from ._lock_file import open_lock_file
from ._process import POSIX
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Final

#: How often the files may be exchanged under a caller before it is told that this is hopeless.
RESTARTS: Final = 100


def restarted_in_vain(path: str) -> LockUnavailable:
    """The error after that many restarts."""
    return LockUnavailable(
        errno.ESTALE,
        f"replaced {RESTARTS} times while it was being locked; stop what deletes it",
        path,
    )


def take_no_signals() -> None:
    """Leave the signals to other threads of the process.

    What one of them waits for with sigwait(3), a thread that has not blocked it would take,
    and lose it or end the process.
    """
    if POSIX:
        import signal  # not for the first time: `_start_line` has seen to that

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Line:
    """The callers of this process that wait for one lock file; first in, first out."""

    def __init__(self, path: str, *, make_directory: bool) -> None:
        self.path = path
        self.make_directory = make_directory
        self.callers: deque[Caller] = deque()

    def serve(self) -> None:
        """Block in the kernel and hand over, until nobody is left in line."""
        take_no_signals()
        while self._grant_one():
            pass

    def _grant_one(self) -> bool:
        outcome = self._locked_file()
        with guard:
            if isinstance(outcome, KernelLock):
                while self.callers:
                    if self.callers.popleft().offer(outcome):
                        break
                else:
                    outcome.close()
            else:
                while self.callers:
                    self.callers.popleft().offer(outcome)
            if self.callers:
                return True
            if _lines.get(self.path) is self:
                del _lines[self.path]
        return False

    def _locked_file(self) -> KernelLock | Exception:
        try:
            for _ in range(RESTARTS):
                file = open_lock_file(self.path, make_directory=self.make_directory)
                is_current = False
                try:
                    file.lock()
                    is_current = current_status(file) is not None
                except OSError as error:
                    raise unavailable(error, self.path, "the kernel ended the wait") from error
                finally:
                    if not is_current:
                        file.close()
                if is_current:
                    return file
            raise restarted_in_vain(self.path)
        except Exception as error:  # handed to the callers, who raise it
            return error


_lines: dict[str, Line] = {}


def _start_line(path: str, *, make_directory: bool) -> Line:
    line = Line(path, make_directory=make_directory)
    try:
        # Under the guard, so that a fork waits for it, and here, where its failure is heard.
        import signal  # noqa: F401  # pyright: ignore[reportUnusedImport]

        _lines[path] = line
        # One call of C: `threading.Thread.start` is Python code, in the midst of which a signal
        # handler may raise, and has made half a thread and an error of another kind of that.
        _thread.start_new_thread(line.serve, ())
    except BaseException as error:
        # Whether or not its thread runs by now, nobody is to join it. One that runs finds
        # nobody in line, and ends.
        _lines.pop(path, None)
        if isinstance(error, (RuntimeError, ImportError, OSError)):
            raise LockUnavailable(
                errno.EAGAIN, f"no thread can be started to wait ({error})", path
            ) from error
        raise
    return line


def current_status(file: KernelLock) -> os.stat_result | None:
    """The status of a lock file, if its path still leads to the inode that was opened."""
    status = leads_to(file.path, os.lstat)
    if status is not None and (status.st_dev, status.st_ino) == file.identity:
        return status
    return None


class Caller:
    """A place in line."""

    def __init__(self) -> None:
        self._line: Line | None = None

    def join(self, path: str, *, make_directory: bool) -> None:
        """Stand in line for the lock file at ``path``.

        Raises:
            LockUnavailable: no thread can be started to wait.
        """
        with guard:
            self._line = _lines.get(path) or _start_line(path, make_directory=make_directory)
            self._line.callers.append(self)

    def outcome(self) -> KernelLock | Exception | None:
        """The lock once it was granted, or the error that ended the wait.

        After `stand_back` it does not change any more.
        """
        raise NotImplementedError

    def offer(self, outcome: KernelLock | Exception) -> bool:
        """Take what the thread got, if it is still wanted; called under the guard."""
        raise NotImplementedError

    def stand_back(self) -> None:
        """Give up the place in line, if it has one."""
        with guard:
            if self._line is not None and self in self._line.callers:
                self._line.callers.remove(self)
            self._line = None

    def bars_its_thread(self) -> bool:
        """Whether its thread would wait for ever for what this caller has, or may be granted."""
        raise NotImplementedError

    def leave(self) -> None:
        """Give up the place; what was granted in this moment is given back."""
        self.stand_back()
        outcome = self.outcome()
        if isinstance(outcome, KernelLock):
            outcome.close()


class ThreadCaller(Caller):
    """A plain caller with a deadline."""

    def __init__(self) -> None:
        super().__init__()
        self._outcome: KernelLock | Exception | None = None
        self._told = threading.Lock()
        self._told.acquire()

    def outcome(self) -> KernelLock | Exception | None:
        return self._outcome

    def offer(self, outcome: KernelLock | Exception) -> bool:
        self._outcome = outcome
        self._told.release()
        return True

    def wait(self, seconds: float) -> None:
        """Until the outcome is there, or ``seconds`` have passed."""
        self._told.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def bars_its_thread(self) -> bool:
        return True


def _nothing() -> None:
    return None


class TaskCaller(Caller):
    """A task of an asyncio event loop."""

    def __init__(self) -> None:
        import asyncio

        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Future[KernelLock | Exception | None] = self._loop.create_future()
        self._on_its_way: Callable[[], KernelLock | None] = _nothing

    def outcome(self) -> KernelLock | Exception | None:
        return self._told.result() if self._told.done() else self._on_its_way()

    def offer(self, outcome: KernelLock | Exception) -> bool:
        # Until the loop makes the call, the call alone has the lock: a loop that is closed
        # before drops both, and a dropped lock closes itself. The call is none of Python code,
        # in which a signal handler could raise, so that the task would never be told.
        runs = self._loop.is_running()
        if runs and isinstance(outcome, KernelLock):
            # A task that is cancelled, or late, does not leave it to a turn of the loop that may
            # never come.
            self._on_its_way = ref(outcome)
        try:
            # In a loop that has stopped and may never go on, a lock would be held by nobody:
            # there, the task is told to try again, for when it goes on nevertheless.
            self._loop.call_soon_threadsafe(self._told.set_result, outcome if runs else None)
        except RuntimeError:  # the loop is closed
            self._on_its_way = _nothing
            return False
        return runs

    def bars_its_thread(self) -> bool:
        return self._loop.is_running() or self.outcome() is not None

    async def wait(self, seconds: float | None) -> None:
        """Until the outcome is there, or ``seconds`` have passed."""
        import asyncio

        await asyncio.wait((self._told,), timeout=seconds)


def _forget_in_child() -> None:
    _lines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
