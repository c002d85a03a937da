"""setuptools' backend classes, with every hook under the lock of the source tree."""

from __future__ import annotations

import functools
import importlib
import sys
from contextlib import suppress

from .._hook_names import HOOK_NAMES
from .._lock import source_tree_lock
from ..errors import SourceTreeLockError
from ._cleaning import cleaned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from .._wait_report import Wait

_setuptools: Final[Any] = importlib.import_module("setuptools.build_meta")  # it has no types


def _locked(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(_setuptools._BuildMetaBackend, name))
    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with source_tree_lock(on_wait=_tell), cleaned(name):
                parent = super(_Backend, self)  # pyright: ignore[reportUnknownVariableType]
                return getattr(parent, name)(*args, **kwargs)  # pyright: ignore[reportUnknownArgumentType]
        except SourceTreeLockError as error:
            # As setuptools ends a build that cannot be: frontends show a line, no traceback.
            raise SystemExit(f"source-tree-lock: {error}") from error

    return hook


def _tell(wait: Wait) -> None:
    # Nobody has set up logging in a process that runs a hook, but frontends show its stderr.
    # There may be none, a closed one, or nobody who reads it.
    with suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(f"source-tree-lock: {wait}\n")
        sys.stderr.flush()


def _hooks_of(backend: Any) -> dict[str, Any]:
    """Those that the installed setuptools has."""
    return {name: getattr(backend, name) for name in HOOK_NAMES if hasattr(backend, name)}


# In-tree backends inherit from these classes, or from the class of a hook's `__self__`. So hooks
# are methods here, too: what inherits them is locked.
_Backend: Final[Any] = type(
    "_BuildMetaBackend",
    (_setuptools._BuildMetaBackend,),
    {name: _locked(name) for name in _hooks_of(_setuptools._BuildMetaBackend)},
)
_LegacyBackend: Final[Any] = type(
    "_BuildMetaLegacyBackend", (_Backend, _setuptools._BuildMetaLegacyBackend), {}
)
_backend: Final = _Backend()
_OURS: Final = {
    "_BACKEND": _backend,
    "_BuildMetaBackend": _Backend,
    "_BuildMetaLegacyBackend": _LegacyBackend,
    "__legacy__": _LegacyBackend(),
    **_hooks_of(_backend),
}


def look_up(name: str) -> Any:
    """What ``setuptools.build_meta`` has by this name; hooks and their classes are the locked ones.

    Raises:
        AttributeError: the installed setuptools has no such name.
    """
    if name == "__all__":  # in-tree backends often start with `import *`
        return [each for each in _setuptools.__all__ if hasattr(_setuptools, each)]
    theirs = getattr(_setuptools, name)
    return _OURS.get(name, theirs)
