"""What the command writes, and its exit statuses."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from .._holder import Wait, acquired

PROGRAM = "source-tree-lock"

# Exit statuses: those of <sysexits.h>, and those that a shell gives for a command.
HELD = 1
BAD_USAGE = 2
UNAVAILABLE = 69
TIMED_OUT = 75
NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128


def fail(status: int, message: str) -> int:
    """Write to stderr why the command failed, and return its exit status."""
    say(message)
    return status


def say(message: str) -> None:
    """Write a message to stderr, after the name of the program."""
    _write(f"{PROGRAM}: {message}\n")


def _write(text: str) -> None:
    try:
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()
    except OSError:
        # The reader is gone or the disk is full. At its end the interpreter would try to write
        # again, fail, and change the exit status.
        sys.stderr = None


class WaitOutput:
    """Shows on stderr that `run` waits, and for which process.

    In a terminal that is one text, which is updated each second and taken back when the wait is
    over. Elsewhere, as in a log, it is a message now and then, and one when the wait is over.
    The library's warnings are written in either case, above the text.
    """

    def __init__(self) -> None:
        self._text = ""  # in the terminal now
        self._due = 0.0  # how long a wait lasts when it is worth the next message

    def show(self, wait: Wait) -> None:
        """Show a wait that goes on: `on_wait` and `while_waiting` of the lock."""
        if columns := _columns_of_terminal():
            prefix = f"{PROGRAM}: " if columns >= 80 else ""
            # A character in the last column would make some terminals wrap.
            text = prefix + wait.fit(columns - len(prefix) - 1)
            text = text.encode(sys.stderr.encoding, "replace").decode(sys.stderr.encoding)
            if text != self._text:
                self._text = text  # first: a signal that comes now ends the wait
                # Wrapping is off meanwhile: terminals differ in how wide they draw a character.
                _write(f"\r\033[?7l{text}\033[K\033[?7h")
        elif wait.waited >= self._due:
            say(str(wait))
            self._due = max(10.0, 2 * wait.waited)

    def finish(self, wait: Wait) -> None:
        """Show that a wait is over: `after_wait` of the lock."""
        self.clear()
        if self._due:
            say(acquired(wait))

    def clear(self) -> None:
        """Take back the text in the terminal."""
        if self._text:
            self._text = ""
            _write("\r\033[K")

    def warn(self, message: str) -> None:
        """Write a warning of the library."""
        self.clear()
        say(message)


def _columns_of_terminal() -> int:
    """Return the width of the terminal on stderr; 0 if that is none, or no text can be taken back.

    That is so for a job in the background, too: it would write into the output of another one.
    """
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
        return 0
    with suppress(AttributeError, OSError):  # no job control: on Windows, in some containers
        if os.tcgetpgrp(sys.stderr.fileno()) != os.getpgrp():
            return 0
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80
