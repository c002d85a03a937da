"""Who stands in line: the callers of this process that wait for one lock file.

One daemon thread blocks in the kernel's queue on behalf of the whole line, and hands what it is
granted to the first that still wants it. It is never an executor's thread: those are joined at
exit. So five hundred waiting tasks need one thread, and short timeouts in a loop pile up none.
"""

from __future__ import annotations

import _thread
import atexit
import errno
import time
from collections import deque

from ._kernel_lock import KernelLock, current_status, forgets_in_child, guard, unavailable
from ._paths.lock_file import RESTARTS, open_lock_file, restarted_in_vain
from ._system import start_thread
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Final

    from ._paths.lock_file import Place

#: How long the thread sleeps before it looks again, in seconds: at what a lease is about to give
#: back, and at whether a task has taken what it was offered.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05
#: How long the end of the interpreter waits for threads that nobody waits for, in seconds.
_LONGEST_END: Final = 0.1


#: The lines of this process by the path of their lock file. This table, and all that a line or a
#: caller has, is changed under `guard` only; but a line's thread alone says what it waits for.
_lines: dict[str, _Line] = {}


@forgets_in_child
def _forget_lines() -> None:
    global _lines
    _lines = {}


@atexit.register
def _let_threads_end() -> None:
    """Wait a moment, at most, for threads that are granted what nobody wants any more.

    CPython may crash where a thread wakes while the interpreter ends: 2 of 240 processes on 3.10,
    which held a tree, had another thread give up its wait for it, and ended.
    """
    deadline = time.monotonic() + _LONGEST_END
    while _lines and time.monotonic() < deadline:
        time.sleep(_FIRST_PAUSE)
    time.sleep(_FIRST_PAUSE)  # the last steps of the last thread


class _Line:
    """The callers that wait for one lock file, first in, first out, and the thread for them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.callers: deque[Caller] = deque()
        #: What the thread waits for in the kernel's queue.
        self.file: KernelLock | None = None
        #: Whether somebody else has taken over what the thread waits for.
        self.is_taken_over = False

    def serve(self) -> None:
        """Block in the kernel and hand over, until nobody is left in line."""
        while self._grant_one():
            pass

    def _grant_one(self) -> bool:
        outcome = self._wait_for_file()
        if isinstance(outcome, KernelLock):
            while (caller := self._offer(outcome)) is not None and not caller.takes():
                pass
        with guard:
            while isinstance(outcome, Exception) and self.callers:
                self.callers.popleft().offer(outcome)
            if self.callers:
                return True
            if _lines.get(self.place.path) is self:
                del _lines[self.place.path]
        return False

    def _offer(self, file: KernelLock) -> Caller | None:
        """Offer what was granted to the first that wants it; release it if nobody does."""
        with guard:
            while self.callers and not self.is_taken_over:
                caller = self.callers.popleft()
                if caller.offer(file):
                    self.file = None
                    return caller
            self._drop(file)
        return None

    def _drop(self, file: KernelLock) -> None:
        """Close what the thread waited for, and unlock it unless somebody has taken it over."""
        with guard:
            if self.is_taken_over:
                file.held = False  # closing this copy of the descriptor must not unlock the other
            self.is_taken_over = False
            self.file = None
            file.close()

    def _wait_for_file(self) -> KernelLock | Exception:
        """The lock file once it is locked and in place, or the error that ended the wait."""
        try:
            pause = _FIRST_PAUSE
            for _ in range(RESTARTS):
                try:
                    file = open_lock_file(self.place)
                except BlockingIOError:
                    time.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
                    continue
                is_current = False
                self.file = file
                try:
                    file.lock()
                    is_current = current_status(file) is not None
                except OSError as error:
                    raise unavailable(error, file.path, "the kernel ended the wait") from error
                finally:
                    if not is_current:
                        self._drop(file)
                if is_current:
                    return file
            raise restarted_in_vain(self.place.path)
        except Exception as error:  # handed to the callers, who raise it
            return error


def unwanted_grant(wanted: KernelLock) -> KernelLock | None:
    """A lock on the file that ``wanted`` could not lock, if only a line without callers is before.

    Its thread still waits on behalf of callers that gave up, and is granted the lock for nobody.
    To lock the very file that it has open changes nothing where the thread was granted the lock
    just now, and fails where somebody else has it. Nobody wants a file that was replaced since.

    Raises:
        OSError: the kernel refuses.
    """
    # No `return` of what a call gives stands inside: it could be interrupted after the call, and
    # would leave the mutex locked.
    with guard:
        line = _lines.get(wanted.path)
        granted = None
        file = None if line is None or line.callers else line.file
        if file is not None and file.identity == wanted.identity:
            granted = file.locked_copy()
        if line is not None and granted is not None:
            line.is_taken_over = True
            wanted.close()
        elif wanted.try_lock():
            granted = wanted
    return granted


class Caller:
    """A place in line."""

    def __init__(self) -> None:
        self._line: _Line | None = None
        self._outcome: KernelLock | Exception | None = None

    def join(self, place: Place) -> None:
        """Stand in line for the lock file at ``place``.

        Raises:
            LockUnavailable: no thread can be started to wait.
        """
        with guard:
            self._line = _lines.get(place.path) or _start_line(place)
            self._line.callers.append(self)

    def granted(self) -> KernelLock | None:
        """Leave the line; the lock, if it was granted.

        The caller keeps it as well, so that whoever is interrupted here can still `leave`.

        Raises:
            LockUnavailable: what ended the wait.
        """
        with guard:
            if self._line is not None and self in self._line.callers:
                self._line.callers.remove(self)
            self._line = None
            outcome = self._outcome
            if outcome is not None:
                self.accept()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def accept(self) -> None:
        """Let the line's thread know that the offer is taken. Called under `guard`."""

    def is_told(self) -> bool:
        """Whether the wait is over: the lock granted, or refused."""
        return self._outcome is not None

    def leave(self) -> None:
        """Give up the place; what was granted is given back."""
        try:
            file = self.granted()
        except LockUnavailable:
            return
        if file is not None:
            file.close()

    def offer(self, outcome: KernelLock | Exception) -> bool:
        """Take note of what the thread got; false if it cannot be told. Called under `guard`."""
        raise NotImplementedError

    def takes(self) -> bool:
        """Wait, in the line's thread, until the offer is taken; false if it never is."""
        raise NotImplementedError

    def block(self, seconds: float | None) -> None:
        """Wait in this thread until the wait is over, or ``seconds`` have passed."""
        raise NotImplementedError

    async def suspend(self, seconds: float | None) -> None:
        """Wait in this task until the wait is over, or ``seconds`` have passed."""
        raise NotImplementedError

    def blocks_own_thread(self) -> bool:
        """Whether its thread would wait for ever for what this caller is, or may be, granted."""
        raise NotImplementedError


class ThreadCaller(Caller):
    """A plain caller."""

    def __init__(self) -> None:
        super().__init__()
        self._told = _thread.allocate_lock()
        self._told.acquire()

    def offer(self, outcome: KernelLock | Exception) -> bool:
        self._outcome = outcome
        self._told.release()
        return True

    def takes(self) -> bool:
        return True  # or it gives it back by itself

    def block(self, seconds: float | None) -> None:
        self._told.acquire(True, -1 if seconds is None else min(seconds, _thread.TIMEOUT_MAX))

    def blocks_own_thread(self) -> bool:
        return True


class TaskCaller(Caller):
    """A task of an asyncio event loop."""

    def __init__(self) -> None:
        import asyncio

        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Future[None] = self._loop.create_future()
        self._taken = _thread.allocate_lock()
        self._taken.acquire()

    def accept(self) -> None:
        if self._taken.locked():
            self._taken.release()

    def offer(self, outcome: KernelLock | Exception) -> bool:
        # A loop that has stopped may never go on: there, the task is told to try again.
        runs = self._loop.is_running()
        try:
            # The call is none of Python code, in which a signal handler could raise, so that the
            # task would never be told.
            self._loop.call_soon_threadsafe(self._told.set_result, None)
        except RuntimeError:  # the loop is closed
            return False
        if runs:
            self._outcome = outcome
        return runs

    def takes(self) -> bool:
        # Until the task takes it, the line has it: a loop that stops before leaves it to the next.
        pause = _FIRST_PAUSE
        while not self._taken.acquire(True, pause):
            pause = min(pause * 2, _LONGEST_PAUSE)
            if not self._loop.is_running():
                with guard:
                    # It may have taken it just now, and its loop have ended since.
                    is_taken = self._taken.acquire(False)
                    if not is_taken:
                        self._outcome = None
                return is_taken
        return True

    async def suspend(self, seconds: float | None) -> None:
        import asyncio

        await asyncio.wait((self._told,), timeout=seconds)

    def is_told(self) -> bool:
        return self._told.done()

    def blocks_own_thread(self) -> bool:
        return self._loop.is_running() or self._outcome is not None


def _start_line(place: Place) -> _Line:
    line = _Line(place)
    try:
        _lines[place.path] = line
        start_thread(line.serve)
    except BaseException as error:
        # Whether or not its thread runs by now, nobody is to join it. One that runs finds
        # nobody in line, and ends.
        _lines.pop(place.path, None)
        if isinstance(error, (RuntimeError, ImportError, OSError)):
            raise LockUnavailable(
                errno.EAGAIN, f"no thread can be started to wait ({error})", place.path
            ) from error
        raise
    return line
