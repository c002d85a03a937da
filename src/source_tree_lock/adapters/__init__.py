"""Around other tools' calls: setuptools under the lock, whichever frontend calls it."""

from .hooks import locked_hooks
from .rule import Rule, is_setuptools
from .runner import Runner, locked_runner

__all__ = ["Rule", "Runner", "is_setuptools", "locked_hooks", "locked_runner"]
