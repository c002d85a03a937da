"""The library's logger, imported when there is something to say: logging costs import time."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger


def logger() -> Logger:
    """The logger ``source_tree_lock``."""
    import logging

    return logging.getLogger("source_tree_lock")


def informs() -> bool:
    """Whether anybody hears what is said at INFO: nobody does who has not imported logging."""
    return "logging" in sys.modules and logger().isEnabledFor(20)  # logging.INFO


def warn_of_dropped(what: object) -> None:
    """Warn that a lock of this path was dropped while it was held, as Python does of open files."""
    if not sys.is_finalizing():  # else nothing can be imported any more
        import warnings

        text = f"the lock of {what!r} was dropped while it held the tree"
        warnings.warn(text, ResourceWarning, stacklevel=3)


#: What was said once in this process; a message that two threads say at once is said twice.
_said: frozenset[str] = frozenset()


def say_once(message: str, *arguments: object) -> None:
    """Say something at INFO, once in this process, if anybody hears it."""
    global _said
    if message not in _said and informs():
        _said |= {message}
        logger().info(message, *arguments)
