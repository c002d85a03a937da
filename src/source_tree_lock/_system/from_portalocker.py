"""portalocker's lockers, without the package around them.

The package imports five times as much, and redis where that is installed: 6 ms of each hook of a
build, or 75, of some 300. So its module ``portalocker.portalocker`` is imported alone.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    LockingCalls = tuple[Callable[[int], bool], Callable[[int], None], Callable[[int], None]]


def _import_whole() -> Any:
    # Freezers and vendoring tools find portalocker by this statement, and the latter rewrite it.
    from portalocker import portalocker

    return portalocker


def import_lockers() -> Any:
    """The module that has the lockers.

    Unless somebody else has imported the package, the module gets a package of ours around it
    that is empty but for the path. The package's name is read from the statement above, so that
    a vendored copy finds the vendored portalocker.

    Raises:
        ImportError, OSError: it cannot be imported, for want of a free descriptor, for one.
    """
    names = getattr(_import_whole, "__code__", None)
    name = names.co_names[0] if names is not None and names.co_names else ""
    path = _path_of(name) if name.endswith("portalocker") else None
    if path is not None:
        package = type(sys)(f"{__package__}._portalocker")
        package.__path__ = path
        sys.modules.setdefault(package.__name__, package)
        try:
            return __import__(f"{package.__name__}.portalocker", fromlist=["portalocker"])
        except ImportError:
            pass  # some frozen programs know modules by their own names alone
    return _import_whole()


def _path_of(name: str) -> Any:
    """Where a package's modules are, without importing it; ``None`` if it is there already."""
    if name in sys.modules:
        return None
    parent = name.rpartition(".")[0]
    within = __import__(parent, fromlist=["__path__"]).__path__ if parent else None
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec = None if find_spec is None else find_spec(name, within)
        if spec is not None:
            return spec.submodule_search_locations
    return None
