"""Decides whether the hooks of a source tree are locked."""

from __future__ import annotations

import os
import sys
from _collections_abc import Callable  # collections.abc, without the package around it

from .._paths.tree import AnyPath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

#: Tells of a source tree whether its hooks are to be locked.
Rule = Callable[[AnyPath], bool]

_SETUPTOOLS: Final = "setuptools.build_meta"
_LOCKS_ITSELF: Final = "source_tree_lock.build_meta"
#: Backends that call setuptools', though a project need not name it.
_WRAPS_SETUPTOOLS: Final = frozenset(
    ("jupyter_packaging.build_api", "pbr.build", "scikit_build_core.setuptools.build_meta")
)


def is_setuptools(source_tree: AnyPath) -> bool:
    """Whether setuptools builds a source tree, or may, without locking it.

    That is uv's rule: the backend is named ``setuptools.build_meta``, or not named at all
    (PEP 517). It is also true where setuptools may be at work without its name: for an in-tree
    backend (``backend-path``), for ``build-system.requires`` that names setuptools, for a backend
    that is known to wrap it, and for a ``pyproject.toml`` that cannot be read, which is the
    frontend's to report. It is false for ``source_tree_lock.build_meta``, which locks by itself.
    """
    try:
        with open(os.path.join(os.fsdecode(source_tree), "pyproject.toml"), "rb") as file:
            table = load_toml(file.read())["build-system"]
        backend = table["build-backend"].partition(":")[0]  # an object of the module may follow
        if backend == _LOCKS_ITSELF:
            return False
        return (
            backend == _SETUPTOOLS
            or backend in _WRAPS_SETUPTOOLS
            or "backend-path" in table
            or any(_project_of(each) == "setuptools" for each in table.get("requires", ()))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True


def _project_of(requirement: str) -> str:
    """The name of the project that a requirement (PEP 508) names."""
    name = requirement.strip().lower()
    for index, letter in enumerate(name):
        if not (letter.isalnum() or letter in "._-"):
            return name[:index]
    return name


def load_toml(text: bytes) -> dict[str, Any]:
    """What ``tomllib.loads`` gives.

    Raises:
        ValueError: it is no TOML, or no UTF-8.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text.decode())
