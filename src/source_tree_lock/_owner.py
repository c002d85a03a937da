"""Who owns a hold within a process: the running task if there is one, else the thread."""

from __future__ import annotations

import sys
import threading


class _Thread(threading.local):
    """One object for each thread: unlike a thread's number, it is never used again."""

    def __init__(self) -> None:
        self.token = object()


_threads = _Thread()


def current_thread() -> object:
    """What stands for the running thread."""
    return _threads.token


def in_asyncio() -> bool:
    """Whether an asyncio event loop runs in this thread."""
    events = sys.modules.get("asyncio.events")
    running = getattr(events, "_get_running_loop", None)
    return running is not None and running() is not None


def current_owner() -> object:
    """The running task of asyncio or trio if there is one, else the thread."""
    if in_asyncio():
        import asyncio

        task = asyncio.current_task()
        if task is not None:
            return task
    trio = sys.modules.get("trio.lowlevel")
    if trio is not None:
        try:
            return trio.current_task()
        except RuntimeError:
            pass  # not in trio
    return current_thread()
