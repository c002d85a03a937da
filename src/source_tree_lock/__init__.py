"""Concurrent setuptools builds that do not break each other: one process in a tree at a time.

    from source_tree_lock import source_tree_lock

    with source_tree_lock("path/to/project"):
        ...

It takes the same lock as uv, so that it and uv exclude each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._lock import (
        AnyPath,
        Digest,
        FromEnvironment,
        Holder,
        LockOptions,
        LockTimeout,
        LockUnavailable,
        SourceTreeLock,
        SourceTreeLockError,
        Wait,
        cache_digest,
        source_tree_lock,
    )

__version__ = "0.2.0"

__all__ = [
    "AnyPath",
    "Digest",
    "FromEnvironment",
    "Holder",
    "LockOptions",
    "LockTimeout",
    "LockUnavailable",
    "SourceTreeLock",
    "SourceTreeLockError",
    "Wait",
    "cache_digest",
    "source_tree_lock",
]


def __getattr__(name: str) -> object:
    # Imported at the first use: a frontend that loads a plugin and builds nothing pays for no more.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _lock

    return globals().setdefault(name, getattr(_lock, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
