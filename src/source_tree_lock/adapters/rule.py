"""Which source trees are to be locked."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .._paths.tree import AnyPath

    #: Tells of a source tree whether its hooks are to be locked.
    Rule = Callable[[AnyPath], bool]

#: Whichever object of the module is named behind a colon.
_SETUPTOOLS = "setuptools.build_meta"
_LOCKS_ITSELF = "source_tree_lock.build_meta"


def is_setuptools(source_tree: AnyPath) -> bool:
    """Whether the backend of a source tree is, or may wrap, setuptools without locking it.

    That is uv's rule: the backend is named ``setuptools.build_meta``, or not named at all
    (PEP 517). It is also true for an in-tree backend (``backend-path``), which may wrap
    setuptools, and for a ``pyproject.toml`` that cannot be read, which is the frontend's to
    report. It is false for ``source_tree_lock.build_meta``, which locks by itself.
    """
    try:
        with open(os.path.join(os.fsdecode(source_tree), "pyproject.toml"), "rb") as file:
            table = _load(file.read())["build-system"]
        backend = table["build-backend"].partition(":")[0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True
    return backend == _SETUPTOOLS or ("backend-path" in table and backend != _LOCKS_ITSELF)


def _load(text: bytes) -> dict[str, dict[str, str]]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text.decode())
