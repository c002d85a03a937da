"""What killed builds left in the source tree is removed, or built anew.

Nobody else builds while this process holds the tree, so whatever is staged there is left over. It
is removed, since setuptools would pack it into the next wheel. Other files in ``build``, or where
the project's configuration has setuptools build instead, are kept from one build to the next. A
build that was cut short may have left half of one, which setuptools takes for complete, because it
is newer than its source. So a mark says that the last build has finished. Where there is no mark,
or something is newer, setuptools is told to build all anew.

No build fails for the cleaning: what goes wrong here is logged and left to setuptools.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from configparser import RawConfigParser
from contextlib import contextmanager, suppress

from setuptools.errors import LinkError

from .._log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Final

#: Stands in ``build`` where a build has finished, and is removed before the next one writes. A mark
#: of unfinished ones would be seen by their setup.py, and counted among the project's files.
_FINISHED: Final = ".source-tree-lock-finished"
#: The variable that names a configuration file for setuptools to read after all others.
_EXTRA_CONFIG: Final = "DIST_EXTRA_CONFIG"
#: What a file system answers when half a file is written.
_CUT_WRITES: Final = (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC)
_TEMPORARY_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


@contextmanager
def cleaned(hook: str) -> Generator[None, None, None]:
    """Clean the working directory up for a hook, and mark it if the hook has built there.

    This process has to hold the tree.

    Args:
        hook: the name of the hook, which runs inside.
    """
    with _left_to_setuptools():
        _remove(_temporary_files())
    if hook == "build_sdist":
        config = None
        with _left_to_setuptools():
            # A killed one may have left half a copy, which setuptools takes for the newer file.
            config = _forcing("sdist")
        with _read_by_setuptools(config):
            yield
        return
    if hook != "build_wheel":  # the others build elsewhere what they keep
        yield
        return
    build = "build"
    with _left_to_setuptools():
        build = _build_base()
    with _left_to_setuptools():
        _remove(_staging(build))
    is_complete, config = False, None
    with _left_to_setuptools():
        is_complete = _is_complete(build)
        config = None if is_complete else _force_rebuild_after_crash(build)
    build = os.path.abspath(build)  # a setup.py may leave the tree
    mark = os.path.join(build, _FINISHED)
    with suppress(OSError):  # where it cannot be removed, what this build writes is newer
        os.unlink(mark)
    try:
        with _read_by_setuptools(config):
            yield
        # Where nothing was staged, the wheel was built elsewhere.
        is_complete = is_complete or (config is not None and bool(_listed(build, "bdist.")))
    except BaseException as error:
        is_complete = is_complete and not _may_have_cut_a_file_short(error)
        raise
    finally:
        if is_complete and any(_kept(build)):
            with suppress(OSError), open(mark, "wb"):  # without it, the next build does all anew
                pass


@contextmanager
def _left_to_setuptools() -> Generator[None, None, None]:
    try:
        yield
    except Exception as error:
        logger().warning("setuptools goes on with what may be left of a killed build: %s", error)


def _remove(paths: list[str]) -> None:
    for path in paths:
        logger().info("Removing %r, which a build that did not finish has left behind.", path)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _listed(directory: str, start: str = "", end: str = "") -> list[str]:
    """The paths in a directory whose names start and end so; none where it cannot be listed."""
    try:
        names = os.listdir(directory or os.curdir)
    except OSError:
        return []
    return sorted(
        os.path.join(directory, name)
        for name in names
        if name.startswith(start) and name.endswith(end)
    )


def _temporary_files() -> list[str]:
    """Files that were to become PKG-INFO: setuptools would pack them into every archive."""
    with os.scandir() as entries:
        below = [
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        ]
    return [
        path
        for parent in ("", *sorted(below))
        for egg_info in _listed(parent, end=".egg-info")
        for path in _listed(egg_info, "tmp")
        if len(name := os.path.basename(path)) == 11
        and _TEMPORARY_NAME.issuperset(name)
        and os.path.isfile(path)
        and not (parent and _is_project(parent))
    ]


def _is_project(directory: str) -> bool:
    """Whether a directory is a source tree by itself, whose builds have a lock of their own."""
    return any(
        os.path.exists(os.path.join(directory, name))
        for name in ("pyproject.toml", "setup.py", "setup.cfg")
    )


def _build_base() -> str:
    """The directory in the tree that the project's configuration has setuptools build in.

    One outside is not cleaned: other trees, with locks of their own, may build there. Nor is one
    that only a ``setup.py`` names, which has not run yet.
    """
    config = RawConfigParser()
    config.read(["setup.cfg", os.environ.get(_EXTRA_CONFIG, "")], encoding="utf-8")
    options: dict[str, str] = dict(config["build"]) if config.has_section("build") else {}
    with suppress(OSError, KeyError), open("pyproject.toml", "rb") as file:
        text = file.read()
        if b"distutils" in text:  # few have it, and a hook need not pay for what reads it
            from ..adapters.which_trees import load_toml

            table = load_toml(text)
            # Else setuptools passes it over.
            if table.get("project") or table["tool"].get("setuptools"):
                options.update(table["tool"]["distutils"]["build"])
    base = "build"
    for name, value in options.items():
        if name.replace("-", "_") == "build_base":
            base = os.path.relpath(value)  # the last one counts
    return "build" if base.split(os.sep)[0] in (os.curdir, os.pardir) else base


def _staging(build: str) -> list[str]:
    """Where setuptools puts the content of a wheel together."""
    return [path for each in _listed(build, "bdist.") for path in _listed(each)]


def _kept(build: str) -> Iterator[str]:
    """What setuptools keeps from one build to the next, unless the source is newer."""
    for top in _listed(build):
        name = os.path.basename(top)
        if name == "lib" or name.startswith(("lib.", "temp.")):
            yield top
            for parent, directories, names in os.walk(top):
                for each in directories + names:
                    yield os.path.join(parent, each)


def _is_complete(build: str) -> bool:
    """Whether the build that wrote last there has finished, if there was one."""
    kept = [os.lstat(path).st_mtime_ns for path in _kept(build)]
    try:
        finished = os.lstat(os.path.join(build, _FINISHED)).st_mtime_ns
    except FileNotFoundError:
        return not kept
    return max(kept, default=0) <= finished


def _may_have_cut_a_file_short(error: BaseException | None) -> bool:
    """Whether a hook that failed may have left half a file: an interrupt, a full disk, a linker.

    A compiler removes what it has not finished. A linker that is killed does not.
    """
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, LinkError, MemoryError)):
            return True
        if isinstance(error, OSError) and error.errno in _CUT_WRITES:
            return True
        error = error.__context__  # setuptools makes a SystemExit of each
    return False


def _force_rebuild_after_crash(build: str) -> str | None:
    """A file that has setuptools build all anew; None where what it keeps is not ours to write."""
    for path in _kept(build):
        if not os.access(path, os.W_OK):
            logger().info("Keeping what is in %r: %r is not ours to write.", build, path)
            return None
    logger().info(
        "Building anew what is in %r: the build that made it may not have finished.", build
    )
    # The objects of static libraries are kept in spite of that. `setup.py clean` removes the same.
    for path in _listed(build, "temp."):
        if "-" in os.path.basename(path) and not os.path.islink(path):
            shutil.rmtree(path)
    return _forcing("build")


def _forcing(command: str) -> str:
    """A file for setuptools to read, which has a command do all anew.

    It repeats what the user's own says: only one is read.
    """
    config = RawConfigParser()
    config.optionxform = str  # type: ignore[assignment,method-assign]
    own = os.environ.get(_EXTRA_CONFIG, "")
    if os.path.isfile(own):
        with open(own, encoding="utf-8") as file:
            config.read_file(file)
    if not config.has_section(command):
        config.add_section(command)
    config.set(command, "force", "1")
    descriptor, name = tempfile.mkstemp(prefix="source-tree-lock-", suffix=".cfg", text=True)
    try:
        with open(descriptor, "w", encoding="utf-8") as forcing:
            config.write(forcing)
    except BaseException:
        os.unlink(name)
        raise
    return name


@contextmanager
def _read_by_setuptools(config: str | None) -> Generator[None, None, None]:
    """Have setuptools read this file, if there is one, and remove it afterwards."""
    if config is None:
        yield
        return
    before = os.environ.get(_EXTRA_CONFIG)
    os.environ[_EXTRA_CONFIG] = config
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_EXTRA_CONFIG, None)
        else:
            os.environ[_EXTRA_CONFIG] = before
        with suppress(OSError):
            os.unlink(config)
