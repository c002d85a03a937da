"""The callers of this process that wait for one lock, first in, first out.

One daemon thread for each lock stands in the kernel's queue on behalf of all of them, and offers
what it is granted to the first that still wants it. So five hundred waiting tasks need one thread,
and short timeouts in a loop pile up none.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._kernel_lock import KernelLock, guard, in_child
from ._paths import RESTARTS, replaced_too_often, try_lock
from ._system import block_signals
from .errors import REFUSED, LockUnavailable, unavailable

if TYPE_CHECKING:
    import asyncio

#: How often the thread looks at a lease that will be given back, and at a loop that may have
#: stopped before its task took what it was offered, in seconds.
_LOOK_EVERY = 0.05
#: How long a caller waits for the thread to offer what it was granted, in seconds.
_AT_ONCE = 1.0


class Turn:
    """A caller's place in a queue. Its fields are changed under `guard`.

    Args:
        loop: the event loop of a task; ``None`` for a thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        #: The queue that it joined.
        self.turns: deque[Turn] = deque()
        self._loop = loop
        self._offer: KernelLock | Exception | None = None
        self._is_taken = False
        self._answered = threading.Event()
        # The caller waits for one of these, until the thread has something for it.
        self._event = threading.Event()
        self._future: asyncio.Future[None] | None = None if loop is None else loop.create_future()

    # For the caller

    def join(self, turns: deque[Turn]) -> None:
        """Take the last place in a queue."""
        with guard:
            self.turns = turns
            turns.append(self)

    def is_over(self) -> bool:
        """Whether the thread has offered something: the caller takes it, or tries again."""
        return self._event.is_set() if self._future is None else self._future.done()

    def block(self, seconds: float) -> None:
        """Wait in this thread until it is over, or ``seconds`` have passed."""
        self._event.wait(seconds)

    async def suspend(self, seconds: float) -> None:
        """Wait in this task until it is over, or ``seconds`` have passed."""
        import asyncio  # loaded: a task runs

        assert self._future is not None
        await asyncio.wait([self._future], timeout=seconds)

    def take(self) -> KernelLock | None:
        """The lock that was granted; ``None`` if there is nothing to take.

        Raises:
            LockUnavailable: it cannot be locked.
        """
        with guard:
            outcome, self._offer = self._offer, None
            self._is_taken = outcome is not None
            self._answered.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def leave(self) -> None:
        """Give up the wait; the thread offers what it was granted to the next one."""
        with guard:
            self._offer = None
            self._answered.set()
            if self in self.turns:
                self.turns.remove(self)

    # For the thread

    def offer(self, outcome: KernelLock | Exception) -> bool:
        """Offer what was granted, or what went wrong, and wait until the caller has answered.

        Returns:
            Whether the caller took it. It does not if it gave up, or its loop has stopped.
        """
        with guard:
            if self._answered.is_set():
                return False
            self._offer = outcome
        try:
            if self._loop is None or self._future is None:
                self._event.set()
            else:
                self._loop.call_soon_threadsafe(_finish, self._future)
        except RuntimeError:  # the loop is closed
            self.leave()
        while not self._answered.wait(_LOOK_EVERY):
            # A loop that has stopped may never go on. If it does, its task tries again.
            if self._loop is not None and not self._loop.is_running():
                self.leave()
        return self._is_taken


def _finish(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)


class Queue:
    """The callers that wait for one lock, and the thread for them.

    Its fields are changed under `guard`.

    Args:
        path: path of the lock.
        open_lock: opens what is to be locked.
    """

    def __init__(self, path: str, open_lock: Callable[[], KernelLock]) -> None:
        self.path = path
        self.turns: deque[Turn] = deque()
        #: What the thread waits for in the kernel's queue.
        self.lock: KernelLock | None = None
        self._open_lock = open_lock

    def serve(self) -> None:
        """Stand in the kernel's queue and offer what is granted, until nobody waits any more."""
        block_signals()
        while True:
            outcome: KernelLock | Exception
            try:
                outcome = self._wait_for_lock()
            except Exception as error:  # for the callers, who raise it
                outcome = error
            while (turn := self._next_turn(outcome)) is not None:
                if turn.offer(outcome) and isinstance(outcome, KernelLock):
                    break
            del outcome, turn  # else this frame would keep them during the next wait
            with guard:
                if not self.turns:
                    if _queues.get(self.path) is self:
                        del _queues[self.path]
                    return

    def _next_turn(self, outcome: KernelLock | Exception) -> Turn | None:
        """The first caller in the queue; if there is none, what was granted is released."""
        with guard:
            self.lock = None
            if self.turns:
                return self.turns.popleft()
            if isinstance(outcome, KernelLock):
                outcome.close()
        return None

    def _wait_for_lock(self) -> KernelLock:
        """The lock, once it is granted and in place."""
        restarts = 0
        while restarts < RESTARTS:
            is_in_place = False
            try:
                lock = self._open_lock()
                with guard:
                    self.lock = lock
                lock.lock()
                is_in_place = lock.is_in_place()
                if is_in_place:
                    return lock
                restarts += 1
            except BlockingIOError:  # a lease, which will be given back
                time.sleep(_LOOK_EVERY)
            except (FileNotFoundError, NotADirectoryError, LockUnavailable):
                raise
            except OSError as error:
                raise unavailable(error, self.path, REFUSED) from error
            finally:
                if not is_in_place:
                    self._close()
        raise replaced_too_often(self.path)

    def _close(self) -> None:
        """Release the lock that the thread waits for, or was granted."""
        with guard:
            if self.lock is not None:
                self.lock.close()
            self.lock = None


#: The queues of this process by the path of their lock.
_queues: dict[str, Queue] = {}
in_child(_queues.clear)


def join(turn: Turn, path: str, open_lock: Callable[[], KernelLock]) -> bool:
    """Have a turn join the queue for the lock at a path; false if no thread can be started."""
    with guard:
        queue = _queues.get(path)
        if queue is not None:
            turn.join(queue.turns)
            return True
        queue = Queue(path, open_lock)
        turn.join(queue.turns)
        try:
            threading.Thread(target=queue.serve, daemon=True).start()
        except RuntimeError:
            return False
        _queues[path] = queue
    return True


def try_again(lock: KernelLock) -> KernelLock:
    """A lock that could not be taken, taken if only our own thread was in the way.

    The thread may still wait on behalf of callers that gave up. When it is granted the lock, it
    releases it at once, and a try that comes just then would fail. So the descriptor on which the
    thread waits is tried: that succeeds only if the thread has the lock, or is about to get it.
    """
    turn = Turn(None)
    try:
        with guard:
            queue = _queues.get(lock.path)
            if queue is None or queue.lock is None or queue.turns or not queue.lock.try_lock():
                try_lock(lock)  # the thread may have released it just now
                return lock
            turn.join(queue.turns)
        turn.block(_AT_ONCE)  # longer only if the file was replaced just now
        granted = turn.take()
    finally:
        turn.leave()
    if granted is not None:
        lock.close()
    return granted or lock
