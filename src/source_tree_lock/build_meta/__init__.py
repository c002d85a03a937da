"""setuptools' own build backend, with every hook under the lock of the source tree.

One entry of `pyproject.toml` makes a project safe under every frontend:

    [build-system]
    requires = ["setuptools", "source-tree-lock"]
    build-backend = "source_tree_lock.build_meta"

A project with a ``setup.py`` alone names ``source_tree_lock.build_meta:__legacy__``. This module
has the public names of the installed ``setuptools.build_meta``, which is imported when the first of
them is looked up. Each hook is setuptools' own, called while this process holds the tree.

It builds what setuptools would build, and compiles as much, unless the last build in the tree was
cut short: killed, interrupted, out of memory or disk space. setuptools would take the half of a
file that was left behind for a finished one, so everything is then built anew, and one sentence on
stderr says so. Marks in the lock file, outside the tree, tell whether a build was cut short.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .._acquire import Entry, timeout_of_environment
from .._hold import environ_of
from .._kernel_lock import READ_WRITE, KernelLock
from .._paths import place_of
from .._record import SIZE, read, write
from .._system import RECORD_START

if TYPE_CHECKING:
    from .._holder import Wait

#: How the names of hooks begin (PEP 517 and PEP 660).
_HOOKS = ("build_", "get_requires_for_build_", "prepare_metadata_for_build_")
#: Tells the builds that a hook starts in the same tree who keeps the marks: those of this file.
_MARKED_VARIABLE = "SOURCE_TREE_LOCK_MARKED"
#: How many marks stand behind the record in the lock file, a byte each.
_COUNT = 64
#: Which mark is whose. Sdists share no file with other builds, and every hook writes metadata. Each
#: Python builds extensions in directories of its own, and options may name others.
_SDIST, _METADATA, _FIRST_BUILD = range(3)
#: Values of a mark. *Unfinished* concerns every build in the tree, *elsewhere* only a hook that has
#: the same mark. That is so for what builds do not use, and where one has built anew since.
_FINISHED, _UNFINISHED, _ELSEWHERE = b"\n!?"


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name not in ("__all__", "__legacy__"):
        hint = "a backend made of setuptools' classes takes the lock with source_tree_lock()"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r} ({hint})")
    backend = importlib.import_module("setuptools.build_meta")
    value = getattr(backend, name)
    if name.startswith(_HOOKS):
        value = _locked(value)
    elif name == "__legacy__":
        hooks = [each for each in dir(value) if each.startswith(_HOOKS)]
        value = types.SimpleNamespace(**{each: _locked(getattr(value, each)) for each in hooks})
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("setuptools.build_meta").__all__})


def _locked(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, which runs while this process holds the working directory."""

    @functools.wraps(hook)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            try:
                # Not the public class: a fresh build environment would have to compile it.
                seconds = timeout_of_environment()
                entry = Entry(".", place_of, (_say, None, _say_over), seconds)
                stack.callback(entry.leave)  # again, if Ctrl-C interrupts the first time
                stack.callback(entry.leave)
                if not entry.enter():
                    raise entry.timed_out()
            except (OSError, RuntimeError, ValueError) as error:  # those of SourceTreeLock
                # Frontends show this without a traceback.
                raise SystemExit(f"source-tree-lock: {error}") from error
            settings = kwargs.get("config_settings", args[1] if len(args) > 1 else None)
            lock_file = (entry.hold and entry.hold.base) or ""  # without, the tree alone is locked
            variables = stack.enter_context(_marked(lock_file, hook.__name__, settings))
            # A setup.py may start builds of its own tree.
            variables |= environ_of(entry.owner)
            before = {name: os.environ[name] for name in variables if name in os.environ}
            stack.callback(os.environ.update, before)
            for name in variables:
                stack.callback(os.environ.pop, name, None)
            os.environ.update(variables)
            return hook(*args, **kwargs)

    return locked


@contextmanager
def _marked(lock_file: str, hook: str, settings: object) -> Generator[dict[str, str], None, None]:
    """Mark the tree while a hook writes into it; build anew what was cut short before.

    The value of the context is what has to be added to the environment.
    """
    marks: dict[int, int] = {}
    if os.environ.get(_MARKED_VARIABLE) != lock_file:
        with suppress(OSError):
            found = read(lock_file, _COUNT, RECORD_START + SIZE).ljust(_COUNT, b"\n")
            marks = dict(enumerate(found))
    if not marks:
        yield {}
        return
    builds = hook in ("build_editable", "build_wheel")
    own = _own_marks(hook, settings)
    everywhere = {n for n, mark in marks.items() if mark == _UNFINISHED and builds}
    unfinished = everywhere | {n for n in own if marks[n] != _FINISHED}
    _write(lock_file, marks | dict.fromkeys(own, _UNFINISHED if builds else _ELSEWHERE))
    try:
        with ExitStack() as stack:
            variables = {_MARKED_VARIABLE: lock_file}
            if unfinished:
                # Imported late here and below: a fresh build environment has to compile it.
                from ._cut_short import build_anew

                variables |= build_anew(stack, unfinished == {_METADATA}, _say)
            yield variables
    except BaseException as error:
        from ._cut_short import may_have_left_half_a_file

        if not may_have_left_half_a_file(error):
            _write(lock_file, marks)
        raise
    marks |= dict.fromkeys(everywhere, _ELSEWHERE)
    _write(lock_file, marks | dict.fromkeys(own, _FINISHED))


def _own_marks(hook: str, settings: object) -> set[int]:
    """Which marks a hook sets and clears."""
    if hook not in ("build_editable", "build_wheel"):
        return {_METADATA, _SDIST} if hook == "build_sdist" else {_METADATA}
    python = f"{sys.platform} {sys.implementation.cache_tag} {getattr(sys, 'abiflags', '')}"
    options = f"{python} {os.environ.get('DIST_EXTRA_CONFIG')} {settings}"
    numbers = [zlib.crc32(each.encode(errors="replace")) for each in (python, options)]
    return {_METADATA, *(_FIRST_BUILD + each % (_COUNT - _FIRST_BUILD) for each in numbers)}


def _write(lock_file: str, marks: dict[int, int]) -> None:
    # Another user's file, a full disk: builds go on without marks.
    with suppress(OSError), closing(KernelLock(lock_file, READ_WRITE)) as lock:
        write(lock, bytes(marks.values()), RECORD_START + SIZE)


def _say_over(wait: Wait) -> None:
    from .._holder import in_words  # imported: there was a wait

    _say(f"waited {in_words(wait.waited)} for {wait.tree}")


def _say(words: object) -> None:
    # No logging is set up in the process of a hook, but frontends show its stderr. There may be
    # none, a closed one, or one that nobody reads.
    with suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(f"source-tree-lock: {words}\n")
        sys.stderr.flush()
