"""What the children of `test_signals` run: an exception at a chosen place, and a look around.

Python looks for signals when a function begins, after a call, and where a loop goes back; a
signal handler that raises does so there. `Interruption` raises at the n-th of these places in
the library's code, so that all of them can be tried, one after the other.
"""

from __future__ import annotations

import dis
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from support import is_free
from typing_extensions import Self

import source_tree_lock
from source_tree_lock import SourceTreeLock

_LIBRARY = os.path.dirname(source_tree_lock.__file__)
_PATIENCE = 20.0


class Interrupt(BaseException):
    """What is raised."""


class Interruption:
    """Counts the places, and raises at the one that has this number, once."""

    def __init__(self, number: int) -> None:
        self.count = 0
        self.where = ""
        self._number = number
        self._last: dict[FrameType, str] = {}
        self._thread = threading.get_ident()

    def __enter__(self) -> Self:
        if sys.version_info >= (3, 12):
            events = sys.monitoring
            events.use_tool_id(events.DEBUGGER_ID, "interruption")
            events.register_callback(events.DEBUGGER_ID, events.events.INSTRUCTION, self._monitor)
            events.restart_events()
            events.set_events(events.DEBUGGER_ID, events.events.INSTRUCTION)
        else:
            sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if sys.version_info >= (3, 12):
            events = sys.monitoring
            events.set_events(events.DEBUGGER_ID, 0)
            events.free_tool_id(events.DEBUGGER_ID)
        else:
            sys.settrace(None)
        self._last.clear()

    def _monitor(self, code: CodeType, offset: int) -> object:
        if not code.co_filename.startswith(_LIBRARY):
            return sys.monitoring.DISABLE  # type: ignore[attr-defined,unused-ignore]
        if threading.get_ident() == self._thread:
            self._look(sys._getframe(1), code.co_code[offset])
        return None

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(_LIBRARY):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._trace_opcodes

    def _trace_opcodes(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self._look(frame, frame.f_code.co_code[frame.f_lasti])
        return self._trace_opcodes

    def _look(self, frame: FrameType, opcode: int) -> None:
        if self._number <= self.count:
            return
        name = dis.opname[opcode]
        last = self._last.get(frame, "RESUME")
        self._last[frame] = name
        signals_are_seen = last.startswith(("RESUME", "CALL", "JUMP_ABSOLUTE")) or (
            "JUMP_BACKWARD" in last
        )
        # Python 3.10 puts it off where a block begins.
        block = name in ("SETUP_FINALLY", "SETUP_WITH", "BEFORE_ASYNC_WITH", "YIELD_FROM")
        possible = signals_are_seen and not block and name not in ("RESUME", "PRECALL")
        if possible and not _is_finalizing(frame):
            self.count += 1
            if self.count == self._number:
                self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}, before {name}"
                raise Interrupt


def _is_finalizing(frame: FrameType | None) -> bool:
    """Whether it runs below a finaliser, which may come at any time when garbage is collected.

    Python prints what is raised there and goes on, as its documentation of ``__del__`` has it.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class Watch:
    """Looks from outside whether a tree is locked, and whether anything is left behind."""

    def __init__(self, lock: SourceTreeLock) -> None:
        with lock:
            pass
        self._paths = {"lock file": str(lock.lock_file), "tree": str(lock.tree)}
        self._before: tuple[int, int] | None = None

    def is_locked(self) -> bool:
        return not all([is_free(path) for path in self._paths.values()])

    def make_busy(self, which: str) -> Busy:
        """Somebody else locks the lock file, or the tree, or nothing; until we wait for it."""
        return Busy(self._paths.get(which))

    def what_is_left(self) -> str:
        """In words, or nothing.

        A thread that waits on behalf of nobody gives back what it gets as soon as it runs.
        """
        if not soon(lambda: not self.is_locked()):
            return "it is locked"
        before = self._before = self._before or _count()
        if not soon(lambda: _count() <= before):
            return f"{_count()} descriptors and threads, not {before}"
        try:
            with open(self._paths["lock file"], "rb") as file:
                record = file.read().strip(b"\0\n ")
        except FileNotFoundError:
            return ""
        return f"a record: {record!r}" if record else ""


class Busy:
    """Somebody else has a lock, and lets go once this process waits, or is through."""

    def __init__(self, path: str | None) -> None:
        self._through = threading.Event()
        self._thread: threading.Thread | None = None
        if path is not None:
            self._descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._thread = threading.Thread(target=self._let_go)
            self._thread.start()

    def _let_go(self) -> None:
        # Polling for the second lock cannot be seen from outside: then it is held for a while.
        deadline = time.monotonic() + 0.02
        soon(lambda: self._through.is_set() or _waits() or time.monotonic() > deadline)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def end(self) -> None:
        if self._thread is not None:
            self._through.set()
            self._thread.join()


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true, however busy the machine is."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.0002)
    return condition()


def _count() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def _waits() -> bool:
    with open("/proc/locks", "rb") as lines:
        fields = [line.split() for line in lines]
    pid = str(os.getpid()).encode()
    return any(each[1] == b"->" and each[5] == pid for each in fields)
