"""Who owns a hold within a process: the running task, else the greenlet, else the thread."""

from __future__ import annotations

import _thread
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Thread(_thread._local):
    """One object for each thread: unlike a thread's number, it is never used again."""

    def __init__(self) -> None:
        self.token = object()


_threads = _Thread()


def in_asyncio() -> bool:
    """Whether an asyncio event loop runs in this thread."""
    if "asyncio.events" not in sys.modules:
        return False
    running = getattr(sys.modules["asyncio.events"], "_get_running_loop", None)
    return running is not None and running() is not None


def current_owner() -> object:
    """The running task of asyncio or trio if there is one, else the greenlet, else the thread."""
    if in_asyncio():
        import asyncio

        task = asyncio.current_task()
        if task is not None:
            return task
    # Either may be half imported by another thread.
    if "trio.lowlevel" in sys.modules:
        trio_task = getattr(sys.modules["trio.lowlevel"], "current_task", None)
        if trio_task is not None:
            try:
                return trio_task()
            except RuntimeError:
                pass  # not in trio
    if "greenlet" in sys.modules:
        getcurrent: Any = getattr(sys.modules["greenlet"], "getcurrent", None)
        greenlet = None if getcurrent is None else getcurrent()
        if greenlet is not None and greenlet.parent is not None:  # else it is the thread's own
            return greenlet
    return _threads.token


def has_ended(owner: object) -> bool:
    """Whether an owner is a task, or a greenlet, that is over."""
    done = getattr(owner, "done", None)  # of asyncio's tasks
    if done is not None:
        return bool(done())
    coroutine = getattr(owner, "coro", None)  # of trio's
    if coroutine is not None:
        return getattr(coroutine, "cr_frame", coroutine) is None
    return bool(getattr(owner, "dead", False))  # of greenlets


# Green threads: gevent's and eventlet's patches make a greenlet of what asks for a thread


def are_threads_green() -> bool:
    """Whether ``threading`` or ``time`` are patched, so that a blocked thread blocks greenlets."""
    return "greenlet" in sys.modules and not (
        _is_builtin(_thread.start_new_thread) and _is_builtin(time.sleep)
    )


def _is_builtin(function: object) -> bool:
    return type(function) is type(len)


def is_main_interpreter() -> bool:
    """Whether this is the process's first interpreter, not a sub-interpreter of it.

    Up to Python 3.13, a thread that outlives its sub-interpreter ends the process ("Fatal Python
    error: Py_EndInterpreter: not the last thread"), and some sub-interpreters start none.
    """
    is_main: Any = getattr(_thread, "_is_main_interpreter", None)
    if is_main is not None:
        return bool(is_main())
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found] # before 3.12
    except (ImportError, OSError):
        return True  # another Python, which has no others; or no descriptor is free
    known: Any = interpreters  # it has no types
    return bool(known.get_current() == known.get_main())


def pause(seconds: float) -> None:
    """Sleep, in seconds, and let other greenlets run meanwhile.

    Where only a part is patched, `time.sleep` may be the one that would block them all.
    """
    for name in ("gevent", "eventlet") if are_threads_green() and _is_builtin(time.sleep) else ():
        sleep: Any = getattr(sys.modules.get(name), "sleep", None)
        if sleep is not None:
            sleep(seconds)
            return
    time.sleep(seconds)


class Owner:
    """Who entered a tree.

    Attributes:
        who: the task, greenlet or thread.
        thread: the thread that it runs in.
    """

    __slots__ = ("thread", "who")

    def __init__(self) -> None:
        self.thread: object = _threads.token
        self.who: object = current_owner()

    def stands_for(self, other: Owner) -> bool:
        """Whether this one may leave, or enter again, what the other has entered.

        What a task that has ended left behind belongs to its thread: the next cell of a notebook
        and the closing half of an async fixture run in tasks of their own.
        """
        return self.who is other.who or (self.thread is other.thread and has_ended(other.who))
