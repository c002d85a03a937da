"""Concurrent setuptools builds that do not break each other: one process in a tree at a time.

    from source_tree_lock import source_tree_lock

    with source_tree_lock("path/to/project"):
        ...

It takes the very lock that uv takes, so that it and uv exclude each other.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._public_names import *  # noqa: F403
    from ._public_names import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        # At the first use: a frontend that builds nothing imports a plugin, and no more of this.
        if name.startswith("_") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import _public_names

        return globals().setdefault(name, getattr(_public_names, name))
