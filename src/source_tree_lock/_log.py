"""The library's logger, imported when there is something to say: logging costs import time."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger


def logger() -> Logger:
    """The logger ``source_tree_lock``."""
    import logging

    return logging.getLogger("source_tree_lock")
