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
