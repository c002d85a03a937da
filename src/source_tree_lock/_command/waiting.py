"""What `run` says while it waits: a line that ticks in a terminal, else a line now and then."""

from __future__ import annotations

import sys

from .._log import logger
from .messages import PROGRAM, columns, is_terminal, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from typing import Final

    from .._wait_report import Wait

#: Narrower terminals have no room for the name of the program.
_WIDE: Final = 80
#: Where lines cannot be written over: after how many seconds the next is due. Later on, when the
#: wait is twice as long.
_THEN: Final = {0: 10, 10: 30, 30: 60}

_CLEAR_LINE: Final = "\r\033[K"
#: Terminals differ in how wide they draw some letters: cut, not wrapped.
_NO_WRAP: Final = "\033[?7l"
_WRAP: Final = "\033[?7h"


class Teller:
    """Says on stderr for whom a wait is, and leaves nothing of it behind.

    Args:
        is_quiet: say nothing of the wait; warnings of the library are said.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self.is_quiet = is_quiet
        self._line = ""
        self._due = 0
        _say_warnings(self)

    def tell(self, wait: Wait) -> None:
        """Say how it is with a wait, if it is time to."""
        if is_terminal():
            width = columns()
            prefix = f"{PROGRAM}: " if width >= _WIDE else ""
            # A letter in the last column would have some terminals go to the next line.
            line = prefix + _encodable(wait.line(width - len(prefix) - 1))
            if line != self._line:
                say(f"\r{_NO_WRAP}{line}\033[K{_WRAP}")
                self._line = line
        elif wait.waited >= self._due:
            self.say(str(wait))
            while self._due <= wait.waited:
                self._due = _THEN.get(self._due, self._due * 2)

    def say(self, text: str) -> None:
        """Say something that stays."""
        self.clear()
        say(f"{PROGRAM}: {text}\n")

    def clear(self) -> None:
        """Take back the line of a wait."""
        if self._line:
            self._line = ""
            say(_CLEAR_LINE)


def _encodable(line: str) -> str:
    """The same line in as many columns: stderr would write two backslashes for one letter."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return line.encode(encoding, "replace").decode(encoding)


def _say_warnings(teller: Teller) -> None:
    """Have the library's warnings said by this program's name, above the line of a wait."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            teller.say(record.getMessage())

    log = logger()
    log.addHandler(Handler(logging.WARNING))
    log.propagate = False
