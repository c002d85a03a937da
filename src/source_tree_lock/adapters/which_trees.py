"""Decide whether the hooks of a source tree are locked."""

from __future__ import annotations

import os
from collections.abc import Callable

from .. import AnyPath
from ._new_in_python_3_11 import tomllib

#: Returns whether the hooks of a source tree are locked.
Rule = Callable[[AnyPath], bool]

#: Backends that call setuptools, though a project that uses them need not name it.
_WRAPPERS = frozenset(
    ("jupyter_packaging.build_api", "pbr.build", "scikit_build_core.setuptools.build_meta")
)


def is_setuptools(source_tree: AnyPath) -> bool:
    """Return whether setuptools builds, or may build, a source tree without locking it.

    Like uv's rule, this is true if ``build-backend`` names ``setuptools.build_meta``, or nothing
    (PEP 517). It is also true where setuptools may be at work under another name: for an in-tree
    backend (``backend-path``), for a requirement whose name begins with ``setuptools``, for a
    backend that is known to wrap setuptools, and for a ``pyproject.toml`` that cannot be read,
    which the frontend reports. It is false for ``source_tree_lock.build_meta``, which takes the
    lock itself.

    Args:
        source_tree: path of the directory.
    """
    try:
        with open(os.path.join(os.fsdecode(source_tree), "pyproject.toml"), "rb") as file:
            document = tomllib.load(file)
        table = document["build-system"]
        backend = table["build-backend"]
        if backend == "rapids_build_backend.build":  # it wraps the one that is named here
            backend = document["tool"]["rapids-build-backend"]["build-backend"]
        backend = backend.partition(":")[0]  # the name of an object in the module may follow
        if backend == "source_tree_lock.build_meta":
            return False
        if backend == "setuptools.build_meta" or backend in _WRAPPERS or "backend-path" in table:
            return True
        names = [each.strip().lower() for each in table.get("requires", ())]
        return any(each.startswith("setuptools") for each in names)
    # A table of another shape, such as a list of backends, is as good as none.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return True
