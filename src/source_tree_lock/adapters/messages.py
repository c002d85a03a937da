"""Send what the library reports to a frontend's own output instead of the log."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from logging import LogRecord

from .. import LockOptions, SourceTreeLock, Wait
from .._holder import acquired
from .._paths import logger

#: Called with each sentence.
Say = Callable[[str], object]

#: Where the messages of the current context go; ``None`` leaves them to the log.
_current_say: ContextVar[Say | None] = ContextVar("source_tree_lock_say", default=None)


@contextmanager
def redirect_messages(say: Say | None) -> Generator[None, None, None]:
    """Pass the library's log messages to ``say`` while the block runs, in this context only.

    Args:
        say: called with each message; ``None`` leaves the messages to the log.
    """
    logger().addFilter(_redirect)  # has no effect if it was added before
    token = _current_say.set(say)
    try:
        yield
    finally:
        _current_say.reset(token)


def prepare_options(options: LockOptions, say: Say | None) -> LockOptions:
    """Validate the options before any hook runs, and add callbacks that report waits.

    Args:
        options: keyword arguments of `SourceTreeLock`; its callbacks are still called.
        say: called with one sentence at the start of each wait and one at its end; ``None`` for
            neither.

    Raises:
        TypeError, ValueError: an option is invalid.
    """
    SourceTreeLock(".", **options)
    if say is None:
        return options
    on_wait, after_wait = options.get("on_wait"), options.get("after_wait")

    def report_start(wait: Wait) -> None:
        say(str(wait))
        if on_wait is not None:
            on_wait(wait)

    def report_end(wait: Wait) -> None:
        say(acquired(wait))
        if after_wait is not None:
            after_wait(wait)

    return {**options, "on_wait": report_start, "after_wait": report_end}


def _redirect(record: LogRecord) -> bool:
    """Filter log records: return whether a record still goes to the log."""
    say = _current_say.get()
    if say is None:
        return True
    # The callbacks have reported a wait already, whatever the level of the log is.
    if not (isinstance(record.args, tuple) and any(isinstance(each, Wait) for each in record.args)):
        say(record.getMessage())
    return False
