"""The lock: enter, leave, decorate, await, and look who holds it."""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypedDict, TypeVar

from ._acquire import Entry, check_timeout, timeout_of_environment
from ._digest import cache_digest
from ._hold import Hold, Owner, environ_of, hold_of, running_task
from ._holder import Holder, Wait
from ._kernel_lock import guard
from ._paths import AnyPath, Digest, Tree, inner_lock_file, open_tree, place_of
from .errors import LockTimeout, LockUnavailable, SourceTreeLockError

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

__all__ = [
    "AnyPath",
    "Digest",
    "FromEnvironment",
    "Holder",
    "LockOptions",
    "LockTimeout",
    "LockUnavailable",
    "SourceTreeLock",
    "SourceTreeLockError",
    "Wait",
    "cache_digest",
    "source_tree_lock",
]

P = ParamSpec("P")
R = TypeVar("R")


class FromEnvironment:
    """Stands for the timeout that the environment gives: ``SOURCE_TREE_LOCK_TIMEOUT``, or none."""

    def __repr__(self) -> str:
        return "<from the environment>"


FROM_ENVIRONMENT = FromEnvironment()


class LockOptions(TypedDict, total=False):
    """The keyword arguments of `SourceTreeLock`, for functions that pass them on."""

    timeout: float | FromEnvironment | None
    digest: Digest
    lock_dir: AnyPath | None
    on_wait: Callable[[Wait], object] | None
    while_waiting: Callable[[Wait], object] | None
    after_wait: Callable[[Wait], object] | None


class SourceTreeLock:
    """The lock that lets one process at a time run setuptools in a source tree.

    Use it with ``with``, with ``async with`` (asyncio and trio), or as a decorator. The thread or
    task that holds the tree may enter it again, as with ``threading.RLock``. An object may be
    shared between threads and tasks. Two objects for one tree are one lock. `source_tree_lock` is
    this class under a name that reads as a function.

    Args:
        path: the source tree; for a decorator also a callable that gets the call's arguments and
            returns it. The default is the working directory at the time of entry, where PEP 517
            hooks run. It is canonicalised at each entry.
        timeout: how long to wait, in seconds; ``None`` for no limit, ``0`` for one attempt. The
            default is ``SOURCE_TREE_LOCK_TIMEOUT`` in the environment, else ``None``.
        digest: names the lock file; gets the canonical path, returns one part of a file name. The
            default is uv's; with another one, the lock file does not keep uv out.
        lock_dir: where the lock file is; made when missing. The default is
            ``SOURCE_TREE_LOCK_DIR`` in the environment, else the directory that uv uses.
        on_wait: called once, with a `Wait`, when the tree turns out to be held.
        while_waiting: called with a `Wait` about four times a second during the wait, in the
            thread or task that waits. If it raises, the wait ends and nothing is held.
        after_wait: called once, with a `Wait`, when the tree is entered after a wait.

    Raises:
        TypeError, ValueError: an argument is not valid.
    """

    _for_children = False

    def __init__(
        self,
        path: AnyPath | Callable[..., AnyPath] = ".",
        *,
        timeout: float | FromEnvironment | None = FROM_ENVIRONMENT,
        digest: Digest = cache_digest,
        lock_dir: AnyPath | None = None,
        on_wait: Callable[[Wait], object] | None = None,
        while_waiting: Callable[[Wait], object] | None = None,
        after_wait: Callable[[Wait], object] | None = None,
    ) -> None:
        if not callable(path):
            _check_path(path, "path")
        if not isinstance(timeout, FromEnvironment):
            check_timeout(timeout, "timeout")
        if not callable(digest):
            raise TypeError(f"digest must be a callable, not {digest!r}")
        if lock_dir is not None and not os.fspath(_check_path(lock_dir, "lock_dir")):
            raise ValueError("lock_dir is empty; name a directory, or leave it out")
        _check_callback(on_wait, "on_wait")
        _check_callback(while_waiting, "while_waiting")
        _check_callback(after_wait, "after_wait")
        self._path = path
        self._timeout = timeout
        self._place_of = partial(place_of, digest=digest, lock_dir=lock_dir)
        self._callbacks = (on_wait, while_waiting, after_wait)
        #: In the order in which they were entered; used under `guard`.
        self._entries: list[Entry] = []

    def __repr__(self) -> str:
        with guard:
            count = sum(entry.lasts() for entry in self._entries)
        entered = f", entered {count} time{'' if count == 1 else 's'}" if count else ""
        return f"<{type(self).__name__} of {self._path!r}{entered}>"

    def __getstate__(self) -> dict[str, object]:
        """A copy, in this process or another, is another lock of the tree, and has not entered."""
        return {**vars(self), "_entries": []}

    def __del__(self) -> None:
        entries = getattr(self, "_entries", ())
        is_held = any([entry.lasts() for entry in entries])
        for entry in entries:
            entry.leave()
        if is_held and not sys.is_finalizing():  # else nothing can be imported any more
            import warnings

            text = f"the lock of {self._path!r} was dropped while it held the tree"
            warnings.warn(text, ResourceWarning, stacklevel=2)

    # Entering and leaving

    def __enter__(self) -> Self:
        """Hold the tree.

        Raises:
            LockTimeout: somebody else held it until the time was up.
            LockUnavailable: it cannot be locked here.
            FileNotFoundError, NotADirectoryError, ValueError: the path leads to no directory.
            RuntimeError: the wait could not end.
        """
        self._enter(self._timeout, raises=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        entry = self._last_entry(Owner())
        if entry is not None:
            self._leave(entry)
        # An exception of the body is not replaced. GeneratorExit does not come from the body.
        elif exc_info[1] is None or isinstance(exc_info[1], GeneratorExit):
            raise RuntimeError(f"cannot release {self!r}: this thread or task has not entered it")

    async def __aenter__(self) -> Self:
        """Hold the tree; other tasks run during the wait. The errors are those of ``with``."""
        if not (running_task("asyncio") or running_task("trio")):
            raise RuntimeError("`async with` on a source tree lock needs asyncio or trio")
        entry = self._new_entry(self._timeout, is_async=True)
        try:
            if not await entry.enter_async():
                raise entry.timed_out()
        except BaseException:
            self._leave(entry)
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # An async generator may be closed by another task than the one that ran it. If all entries
        # of tasks are inside one hold, the last one of them is left.
        if self._last_entry(Owner()) is None:
            with guard:
                entries = [each for each in self._entries if each.is_async and each.is_entered()]
            if len({each.hold for each in entries}) == 1:
                self._leave(entries[-1])
                return
        self.__exit__(*exc_info)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Hold the tree, with the arguments of ``threading.RLock.acquire``.

        Args:
            blocking: whether to wait at all.
            timeout: how long to wait, in seconds; -1 for as long as this lock waits.

        Returns:
            Whether the tree is held. It is not if a limit of this call is up.

        Raises:
            LockTimeout: the limit of this lock, or of the environment, is up.
            The other errors are those of ``with``.
        """
        if timeout != -1:
            if not blocking:
                raise ValueError("can't specify a timeout for a non-blocking call")
            check_timeout(timeout, "timeout")
            if timeout > threading.TIMEOUT_MAX:
                raise OverflowError("timeout value is too large")
        if blocking and timeout == -1:
            return self._enter(self._timeout, raises=True)
        return self._enter(timeout if blocking else 0, raises=False)

    def release(self) -> None:
        """Leave the tree. It is released when its owner has left as often as it entered.

        Raises:
            RuntimeError: this thread or task did not enter it through this lock.
        """
        self.__exit__(None, None, None)

    def _enter(self, timeout: float | FromEnvironment | None, *, raises: bool) -> bool:
        entry = self._new_entry(timeout, is_async=False)
        is_entered = False
        try:
            is_entered = entry.enter()
            if raises and not is_entered:
                raise entry.timed_out()
        finally:
            if not is_entered:
                self._leave(entry)
        return is_entered

    def _new_entry(self, timeout: float | FromEnvironment | None, *, is_async: bool) -> Entry:
        seconds = timeout_of_environment() if isinstance(timeout, FromEnvironment) else timeout
        options = {"is_async": is_async, "for_children": self._for_children}
        entry = Entry(self._fixed_path(), self._place_of, self._callbacks, seconds, **options)
        with guard:
            # Before it enters: `__del__` then leaves it, wherever it was interrupted.
            self._entries.append(entry)
        return entry

    def _leave(self, entry: Entry) -> None:
        entry.leave()
        with guard:
            self._entries.remove(entry)

    def _last_entry(self, owner: Owner) -> Entry | None:
        with guard:
            for entry in reversed(self._entries):
                if entry.hold is not None and owner.may_act_for(entry.owner):
                    return entry
        return None

    # Decorating

    def __call__(
        self, function: Callable[P, R] | None = None, /, *args: NoReturn, **kwargs: NoReturn
    ) -> Callable[P, R]:
        """A function that runs under the lock; an ``async def`` one waits in its task.

        Raises:
            TypeError: it is not a function, or a generator function; or it was decorated without
                parentheses and is called now.
        """
        with guard:
            from ._decorator import decorate

        # `@source_tree_lock` without parentheses takes the function for the path, and then the
        # function's name in its module leads to this object.
        names = getattr(self._path, "__globals__", {})
        is_bare = names.get(getattr(self._path, "__name__", None)) is self
        if function is None or args or kwargs or is_bare:
            raise TypeError("to decorate a function, write @source_tree_lock(), with parentheses")

        return decorate(function, self._for_call)

    def _for_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SourceTreeLock:
        if not callable(self._path):
            return self
        lock = copy.copy(self)
        lock._path = _check_path(self._path(*args, **kwargs), "path")
        return lock

    # Looking

    def locked(self) -> bool:
        """Whether anybody holds the tree, in this process or another.

        Raises:
            LockUnavailable: that cannot be determined.
        """
        with guard:
            from ._proc import is_tree_held

        tree, lock_file = self._look()
        return is_tree_held(lock_file, tree.path)

    def is_owner(self) -> bool:
        """Whether this thread or task holds the tree, through whichever object."""
        return self._hold() is not None

    def holder(self) -> Holder | None:
        """Who holds the tree now; ``None`` if nobody does, or it cannot be determined."""
        with guard:
            from ._proc import find_holder

        tree, lock_file = self._look()
        return find_holder(lock_file, tree.identity)

    @property
    def tree(self) -> Path:
        """The canonical path of the source tree: the one held, else where the path leads now."""
        return Path(self._look()[0].path)

    @property
    def lock_file(self) -> Path:
        """The lock file: of the tree held, else of the tree to which the path leads now."""
        return Path(self._look()[1])

    @property
    def environ(self) -> dict[str, str]:
        """What to add to the environment of a child process to hand this hold over to it.

        Such a child may enter the tree while this hold lasts. The children of one hold take turns.
        All other trees that this thread or task holds are handed over as well.

        Raises:
            RuntimeError: this thread or task does not hold the tree.
        """
        self._owned_hold()
        return environ_of(Owner())

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The descriptors that carry the locks, for ``subprocess.run(..., pass_fds=...)``.

        A child that inherits them keeps the tree locked if this process is killed. When this
        process releases the tree, they keep nothing. Empty on Windows. Not with ``preexec_fn``:
        then the child is forked by Python code, and gets none.

        Raises:
            RuntimeError: this thread or task does not hold the tree.
        """
        return self._owned_hold().descriptors()

    def _owned_hold(self) -> Hold:
        hold = self._hold()
        if hold is None:
            raise RuntimeError(f"{self!r} can hand over only while this thread or task holds it")
        return hold

    def _hold(self) -> Hold | None:
        """What this thread or task holds of the tree; ``None`` also where there is no tree."""
        owner = Owner()
        entry = self._last_entry(owner)
        if entry is not None:
            return entry.hold if entry.lasts() else None
        if callable(self._path):
            return None
        try:
            tree = open_tree(self._path)
        except (OSError, ValueError):
            return None
        tree.close()
        hold = hold_of(tree.identity)
        return hold if hold is not None and owner.may_act_for(hold.owner) else None

    def _look(self) -> tuple[Tree, str]:
        """The tree held, or else the one to which the path leads now; and its lock file."""
        hold = self._hold()
        if hold is not None and hold.base is not None:
            return hold.tree, inner_lock_file(hold.base, hold.level)
        tree = open_tree(self._fixed_path())
        tree.close()
        return tree, self._place_of(tree.path).path

    def _fixed_path(self) -> AnyPath:
        if callable(self._path):
            raise TypeError(
                "a callable path serves a decorator only: @source_tree_lock(), with parentheses"
            )
        return self._path


source_tree_lock = SourceTreeLock


class LockForChildren(SourceTreeLock):
    """A lock whose holder does nothing in the tree but wait for its child processes.

    Its record says so. On Linux, that hands the hold to child processes that have another
    environment, too.
    """

    _for_children = True


def _check_path(path: AnyPath, name: str) -> AnyPath:
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a path, not {path!r}")
    return path


def _check_callback(callback: object, name: str) -> None:
    if callback is None:
        return
    with guard:
        import inspect  # in a process without callbacks, it would take longer than an entry

    if not callable(callback):
        raise TypeError(f"{name} must be a callable or None, not {callback!r}")
    if inspect.iscoroutinefunction(callback):
        raise TypeError(f"{name} must be a plain function, not the coroutine function {callback!r}")
