"""Concurrent setuptools builds that do not break each other: one process in a tree at a time.

    from source_tree_lock import source_tree_lock

    with source_tree_lock("path/to/project"):
        ...

It takes the very lock that uv takes, so that it and uv exclude each other.
"""

from ._digest import cache_digest
from ._holder import Holder
from ._lock import SourceTreeLock, source_tree_lock
from .errors import LockTimeout, LockUnavailable, SourceTreeLockError

__all__ = [
    "Holder",
    "LockTimeout",
    "LockUnavailable",
    "SourceTreeLock",
    "SourceTreeLockError",
    "cache_digest",
    "source_tree_lock",
]
