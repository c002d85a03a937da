"""For frontends that start a command of their own in the tree: what to put before the command.

It says on stderr who holds the tree, and ends with status 75 when the time is up.
"""

from __future__ import annotations

import sys

from source_tree_lock.adapters import is_setuptools


def locked(tree: str) -> list[str]:
    """What is put before a command that builds in `tree`: nothing where nothing is to lock."""
    if not is_setuptools(tree):
        return []
    return [sys.executable, "-m", "source_tree_lock", "run", str(tree), "--"]
