"""setuptools' own build backend, with every hook under the lock of the source tree.

One line makes a project safe under every frontend that calls it:

    [build-system]
    requires = ["setuptools", "source-tree-lock"]
    build-backend = "source_tree_lock.build_meta"

Projects with a ``setup.py`` alone take ``source_tree_lock.build_meta:__legacy__``. In-tree backends
write this module's name in place of ``setuptools.build_meta``: it offers what that module offers in
the installed setuptools, which is imported when the first name is looked up.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def __getattr__(name: str) -> Any:
    # Python looks up other names with two underscores by itself, which needs no setuptools.
    if name.startswith("__") and name not in ("__all__", "__legacy__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._backend import look_up

    return look_up(name)
