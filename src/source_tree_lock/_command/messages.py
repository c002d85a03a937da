"""What the command says, how, and what its exit statuses mean."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PROGRAM: Final = "source-tree-lock"

# Exit statuses: those of <sysexits.h>, and those that a shell gives for a command.
HELD: Final = 1
BAD_USAGE: Final = 2
UNAVAILABLE: Final = 69
TIMED_OUT: Final = 75
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SIGNALLED: Final = 128


def fail(status: int, message: str) -> int:
    """Say what is wrong in one line on stderr; gives the exit status back."""
    say(f"{PROGRAM}: {message}\n")
    return status


def say(text: str) -> None:
    """Say something on stderr. Where nobody listens, that changes nothing."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        # Else the interpreter tries again when it ends, and changes the exit status.
        sys.stderr = None


def shown(what: object) -> str:
    """A path or a holder as every terminal and every encoding can show it, on stdout."""
    text = str(what)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text if text.isprintable() and _can_encode(text, encoding) else ascii(text)


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def is_terminal() -> bool:
    """Whether a line on stderr can be written over: it is a terminal that knows how, and ours.

    A job in the background would write into what the user sees of another one.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    if os.environ.get("TERM", "") in ("", "dumb"):
        return False
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (AttributeError, OSError):
        return True  # it controls nobody here, as in some containers


def columns() -> int:
    """The width of the terminal on stderr."""
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
