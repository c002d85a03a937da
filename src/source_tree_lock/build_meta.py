"""setuptools' own build backend, with every hook under the lock of the source tree.

One line makes a project safe under every frontend that calls it:

    [build-system]
    requires = ["setuptools", "source-tree-lock"]
    build-backend = "source_tree_lock.build_meta"

Projects with a ``setup.py`` alone take ``source_tree_lock.build_meta:__legacy__``. The hooks are
those that the installed setuptools offers, and it is imported when the first is looked up.
"""

from __future__ import annotations

import functools
import glob
import importlib
import os
import re
import shutil
import stat
import sys
from contextlib import suppress

from ._lock import source_tree_lock
from ._log import logger
from .adapters.hooks import HOOK_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._wait import Wait

#: Stands in ``build`` where a build has finished, and is removed before the next one writes: what
#: stands there without it is of a build that died, or of plain setuptools. A mark of unfinished
#: ones would be seen by their setup.py, and counted among the project's files.
_FINISHED: Final = os.path.join("build", ".source-tree-lock-finished")
#: Where setuptools makes a wheel: it builds in ``build`` then, and not elsewhere.
_STAGED: Final = os.path.join("build", "bdist.*")
#: What setuptools keeps from one build to the next, unless the source is newer.
_KEPT: Final = ("lib", "lib.*", "temp.*")
_STAGES: Final = frozenset(("build_wheel", "build_editable"))


def __getattr__(name: str) -> Any:
    if name == "__legacy__":
        return _Legacy()
    if name == "__all__":  # in-tree backends often start with `import *`
        return sorted(hook for hook in HOOK_NAMES if hasattr(_setuptools(legacy=False), hook))
    return _locked(name, legacy=False)


class _Legacy:
    """setuptools' backend for projects that expect the source tree on ``sys.path``."""

    def __getattr__(self, name: str) -> Any:
        return _locked(name, legacy=True)


def _locked(name: str, *, legacy: bool) -> Callable[..., object]:
    if name not in HOOK_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hook = getattr(_setuptools(legacy=legacy), name)

    @functools.wraps(hook)
    def locked(*args: object, **kwargs: object) -> object:
        with source_tree_lock(on_wait=_tell):
            _remove_what_dead_builds_left(name)
            if name not in _STAGES:
                return hook(*args, **kwargs)
            tree = os.getcwd()  # a setup.py may leave it
            _distrust_what_is_not_finished()
            result = hook(*args, **kwargs)
            if glob.glob(os.path.join(glob.escape(tree), _STAGED)):
                # Where it cannot be written, the next build does all anew.
                with suppress(OSError), open(os.path.join(tree, _FINISHED), "wb"):
                    pass
            return result

    return locked


def _tell(wait: Wait) -> None:
    # Nobody has set up logging in a process that runs a hook, but frontends show its stderr.
    # There may be none, a closed one, or nobody who reads it.
    with suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(f"source-tree-lock: {wait}\n")
        sys.stderr.flush()


def _setuptools(*, legacy: bool) -> object:
    backend = importlib.import_module("setuptools.build_meta")
    return getattr(backend, "__legacy__") if legacy else backend  # noqa: B009


def _remove_what_dead_builds_left(hook: str) -> None:
    """Nobody else builds while this process holds the tree: what is staged there is left over."""
    for path in _left_behind(hook):
        logger().info("Removing %r, which a build that did not finish has left behind.", path)
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _left_behind(hook: str) -> list[str]:
    below = glob.glob(os.path.join("*", "*.egg-info"))
    egg_infos = [
        *glob.glob("*.egg-info"),
        *(each for each in below if not _is_project(os.path.dirname(each))),
    ]
    # A temporary file that was to become PKG-INFO: setuptools would pack it into each wheel.
    found = [
        os.path.join(directory, name)
        for directory in filter(os.path.isdir, egg_infos)
        for name in os.listdir(directory)
        if re.fullmatch("tmp[a-z0-9_]{8}", name)
    ]
    if hook in _STAGES:
        found += glob.glob(os.path.join(_STAGED, "*"))
    if hook == "build_sdist":
        found += {tree for each in egg_infos for tree in _release_trees(each)}
    return sorted(found)


def _is_project(directory: str) -> bool:
    """Whether a directory is a source tree by itself, whose builds have a lock of their own."""
    return any(
        os.path.exists(os.path.join(directory, name))
        for name in ("pyproject.toml", "setup.py", "setup.cfg")
    )


def _release_trees(egg_info: str) -> list[str]:
    """What setuptools fills, packs and deletes to make an sdist: a ``name-version`` directory."""
    project = {"name": "", "version": ""}
    with suppress(OSError), open(os.path.join(egg_info, "PKG-INFO"), encoding="utf-8") as lines:
        for name, _, value in (line.strip().partition(": ") for line in lines):
            if project.get(name.lower()) == "":
                project[name.lower()] = value
    if not all(project.values()):
        return []
    with suppress(Exception):  # whatever it has against the name or the version
        tree = importlib.import_module("setuptools").Distribution(project).get_fullname()
        if tree in os.listdir() and not os.path.islink(tree) and _has_copies_alone(tree):
            return [tree]
    return []


def _has_copies_alone(directory: str) -> bool:
    """Whether nothing is lost with a directory that is called as one that setuptools stages.

    That has copies of the tree's own files, each at its place, of which the last may have been
    only begun, and besides them ``PKG-INFO`` and ``setup.cfg``.
    """
    for parent, directories, names in os.walk(directory):
        inside = os.path.relpath(parent, directory)
        for name in names:
            if inside == os.curdir and name in ("PKG-INFO", "setup.cfg"):
                continue
            if not _is_copy(os.path.join(parent, name), os.path.join(inside, name)):
                return False
        if any(os.path.islink(os.path.join(parent, name)) for name in directories):
            return False
    return True


def _is_copy(path: str, original: str) -> bool:
    try:
        # A pipe or a device may never end.
        if not all(stat.S_ISREG(status.st_mode) for status in (os.lstat(path), os.stat(original))):
            return False
        with open(path, "rb") as copy, open(original, "rb") as own:
            return own.read().startswith(copy.read())
    except OSError:
        return False  # the tree has no such file


def _distrust_what_is_not_finished() -> None:
    """Have setuptools make anew what it would keep: half a file looks newer than its source."""
    kept = [path for pattern in _KEPT for path in glob.glob(os.path.join("build", pattern))]
    is_finished = os.path.lexists(_FINISHED)
    with suppress(OSError):  # where it cannot be removed, setuptools cannot write beside it either
        os.unlink(_FINISHED)
    if is_finished or not kept:
        return
    logger().info("Building anew what is in 'build': the build that made it may not have finished.")
    for path in kept:
        for directory, _, names in os.walk(path):
            for file in (os.path.join(directory, name) for name in names):
                # It is made old rather than deleted: a project that builds elsewhere may have
                # sources of this name. One that builds here may too, and copies of them: those
                # have to look older.
                is_source = any(os.path.exists(os.path.join(each, file)) for each in kept)
                if not is_source and not os.path.islink(file):
                    os.utime(file, (0, 0))
