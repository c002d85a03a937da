"""Concurrent setuptools builds that do not break each other: one process in a tree at a time.

    from source_tree_lock import source_tree_lock

    with source_tree_lock("path/to/project"):
        ...

It takes the same lock as uv, so that it and uv exclude each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._lock import *  # noqa: F403
    from ._lock import __all__ as __all__

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    # At the first use: a frontend that loads a plugin and builds nothing imports no more than that.
    # `from . import errors` asks here first, and must not import `_lock`, in a circle.
    if name == "errors" or (name.startswith("_") and name != "__all__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _lock

    return globals().setdefault(name, getattr(_lock, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})  # type: ignore[misc]
