"""Around other tools' calls: setuptools under the lock, whichever frontend calls it."""

from .hooks import locked_hooks
from .rule import is_setuptools
from .runner import locked_runner

__all__ = ["is_setuptools", "locked_hooks", "locked_runner"]
