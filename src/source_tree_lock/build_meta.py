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
import sys
from contextlib import suppress

from ._lock import source_tree_lock
from ._log import logger
from .adapters.hooks import HOOK_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._holder import Holder

#: Stands while a build writes, and so tells the next one that this one did not finish: in
#: ``build``, which setuptools leaves out of its manifests, or beside it where there is none yet,
#: since a ``build`` that is made before setuptools looks for packages would be found as one.
_MARK: Final = ".source-tree-lock-unfinished"
_UNFINISHED: Final = os.path.join("build", _MARK)
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
            _put_the_mark_into_build()
            _remove_what_dead_builds_left(name)
            if name not in _STAGES:
                return hook(*args, **kwargs)
            _distrust_what_a_dead_build_made()
            mark = _mark_unfinished()
            result = hook(*args, **kwargs)
            with suppress(OSError):
                os.unlink(mark)
            return result

    return locked


def _tell(holder: Holder | None) -> None:
    # Nobody has set up logging in a process that runs a hook, but frontends show its stderr.
    with suppress(OSError, AttributeError):  # there may be none, or nobody who reads it
        print(
            f"source-tree-lock: waiting for {os.getcwd()!r}, held by "
            f"{holder or 'an unknown process'}",
            file=sys.stderr,
            flush=True,
        )


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
    egg_infos = [*glob.glob("*.egg-info"), *glob.glob(os.path.join("*", "*.egg-info"))]
    # A temporary file that was to become PKG-INFO: setuptools would pack it into each wheel.
    found = [
        os.path.join(directory, name)
        for directory in filter(os.path.isdir, egg_infos)
        for name in os.listdir(directory)
        if re.fullmatch("tmp[a-z0-9_]{8}", name)
    ]
    if hook in _STAGES:
        found += glob.glob(os.path.join("build", "bdist.*", "*"))
    if hook == "build_sdist":
        found += {tree for each in egg_infos for tree in _release_trees(each)}
    return sorted(found)


def _release_trees(egg_info: str) -> list[str]:
    """What setuptools fills, packs and deletes to make an sdist: ``name-version`` directories."""
    project = {"Name": "", "Version": ""}
    with suppress(OSError), open(os.path.join(egg_info, "PKG-INFO"), encoding="utf-8") as lines:
        project.update(
            (name, value)
            for name, _, value in (line.strip().partition(": ") for line in lines)
            if project.get(name) == ""
        )
    if not all(project.values()):
        return []
    words = map(re.escape, re.split("[-_.]+", project["Name"]))
    pattern = "[-_.]+".join(words) + "-" + re.escape(project["Version"])
    return [
        name
        for name in os.listdir()
        if re.fullmatch(pattern, name, re.IGNORECASE)
        and os.path.isdir(name)
        and not os.path.islink(name)
        and _has_copies_alone(name)
    ]


def _has_copies_alone(directory: str) -> bool:
    """Whether nothing is lost with a directory that is called as one that setuptools stages.

    That has copies of the tree's own files, each at its place, of which the last may have been
    only begun, and besides them ``PKG-INFO`` and ``setup.cfg``.
    """
    for parent, _, names in os.walk(directory):
        inside = os.path.relpath(parent, directory)
        for name in names:
            if inside == os.curdir and name in ("PKG-INFO", "setup.cfg"):
                continue
            try:
                with (
                    open(os.path.join(parent, name), "rb") as copy,
                    open(os.path.join(inside, name), "rb") as original,
                ):
                    if not original.read().startswith(copy.read()):
                        return False
            except OSError:
                return False  # the tree has no such file
    return True


def _distrust_what_a_dead_build_made() -> None:
    """Have setuptools make anew what it would keep: half a file looks newer than its source."""
    if not os.path.lexists(_UNFINISHED):
        return
    logger().info("The last build did not finish: building anew what it may have left half done.")
    for path in (found for pattern in _KEPT for found in glob.glob(os.path.join("build", pattern))):
        for directory, _, names in os.walk(path):
            for file in (os.path.join(directory, name) for name in names):
                # It is made old rather than deleted: a project that builds elsewhere may have
                # sources of this name.
                if not os.path.islink(file):
                    os.utime(file, (0, 0))


def _mark_unfinished() -> str:
    """The path of the mark, absolute: a ``setup.py`` may leave this directory."""
    mark = os.path.abspath(_UNFINISHED if os.path.isdir("build") else _MARK)
    # Where nothing can be written, setuptools stages nothing either: build_base is elsewhere.
    with suppress(OSError), open(mark, "wb"):
        pass
    return mark


def _put_the_mark_into_build() -> None:
    """Keep the mark of a dead build out of archives, which may take all files beside ``build``."""
    if os.path.lexists(_MARK):
        if os.path.isdir("build"):
            os.replace(_MARK, _UNFINISHED)
        else:
            os.unlink(_MARK)  # it left nothing to be distrusted
