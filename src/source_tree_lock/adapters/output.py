"""All that the library says, in a frontend's own output instead of the log."""

from __future__ import annotations

from _collections_abc import Callable  # collections.abc, without the package around it
from contextlib import contextmanager
from contextvars import ContextVar

from .._log import logger
from .._options import LockOptions
from .._wait_report import Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from logging import LogRecord
    from typing import Final

    Say = Callable[[str], object]

#: Where what is said in this context goes; ``None`` for the log.
_output: Final[ContextVar[Say | None]] = ContextVar("source_tree_lock_output", default=None)


@contextmanager
def said_by(say: Say | None) -> Generator[None, None, None]:
    """Have what the library says meanwhile, in this thread, said by ``say``."""
    if say is None:
        yield
        return
    logger().addFilter(_pass_on)  # once, however often it is called
    before = _output.set(say)
    try:
        yield
    finally:
        _output.reset(before)


def with_say(options: LockOptions, say: Say | None) -> LockOptions:
    """The same options, by which a wait is said as well."""
    on_wait = options.get("on_wait")
    if say is None:
        return options

    def tell(wait: Wait) -> None:
        say(str(wait))
        if on_wait is not None:
            on_wait(wait)

    return {**options, "on_wait": tell}


def _pass_on(record: LogRecord) -> bool:
    """Whether a record is for the log."""
    say = _output.get()
    if say is None:
        return True
    if not (isinstance(record.args, tuple) and any(isinstance(each, Wait) for each in record.args)):
        say(record.getMessage())  # else it was said by `on_wait`, whether or not anybody logs
    return False
