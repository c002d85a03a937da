"""The face of the lock: enter, leave, decorate, await, and look who holds it."""

from __future__ import annotations

import os
from _collections_abc import Callable  # collections.abc, without the package around it

from ._entry import Entry, Request
from ._held import Hold, hold_at
from ._holder.holder import Holder
from ._kernel_lock import guard
from ._log import warn_of_dropped
from ._options import (
    FROM_ENVIRONMENT,
    FromEnvironment,
    check_acquire,
    check_options,
    check_path,
    seconds_of,
)
from ._owner import Owner, in_asyncio
from ._paths.digest import cache_digest
from ._paths.lock_file import Digest, place_of
from ._paths.tree import AnyPath, Tree, open_tree
from ._wait_report import Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType
    from typing import Any, ParamSpec, TypeVar

    from typing_extensions import Self

    P = ParamSpec("P")
    R = TypeVar("R")
else:  # for `typing.get_type_hints`: pathlib and typing take milliseconds to import
    P, R, Any, Path, Self = ..., object, object, os.PathLike, "SourceTreeLock"


def source_tree_lock(
    path: AnyPath | Callable[..., AnyPath] = ".",
    *,
    timeout: float | FromEnvironment | None = FROM_ENVIRONMENT,
    digest: Digest = cache_digest,
    lock_dir: AnyPath | None = None,
    on_wait: Callable[[Wait], object] | None = None,
    while_waiting: Callable[[Wait], object] | None = None,
) -> SourceTreeLock:
    """The lock that lets one process at a time run setuptools in a source tree.

    Use it with ``with``, with ``async with`` (asyncio), or as a decorator.

    Args:
        path: the source tree; for a decorator also a callable that gets the call's arguments
            and returns it. The default is the working directory at the time of entry, where
            PEP 517 hooks run. It is canonicalised at each entry.
        timeout: how long to wait, in seconds; ``None`` for ever, ``0`` one attempt. The
            default is ``SOURCE_TREE_LOCK_TIMEOUT`` in the environment, else ``None``.
        digest: names the lock file; gets the canonical path, returns one part of a file name.
            The default is uv's; with another, uv is not kept out by the lock file.
        lock_dir: where the lock file is; made when missing. The default is
            ``SOURCE_TREE_LOCK_DIR`` in the environment, else the directory that uv uses.
        on_wait: called once, with a `Wait`, when the tree turns out to be taken.
        while_waiting: called with a `Wait` about four times a second during the wait, in the
            thread or task that waits. What it raises ends the wait, with nothing held.

    Raises:
        TypeError, ValueError: an argument makes no sense.
    """
    if callable(path):
        from ._decorator import refuse_bare_decorator

        refuse_bare_decorator(path)
    else:
        check_path(path)
    check_options(timeout, digest, lock_dir, on_wait, while_waiting)
    return SourceTreeLock(path, timeout, Request(digest, lock_dir, on_wait, while_waiting))


def _who_holds() -> ModuleType:
    with guard:  # a fork waits for what is imported
        from ._holder import find
    return find


_NEEDS_ASYNCIO = (
    "`async with` on a source tree lock needs asyncio; elsewhere, use `with` in a worker thread"
)


class SourceTreeLock:
    """The lock of one source tree; made by `source_tree_lock`.

    It may be shared between threads and tasks. Two objects for one tree are one lock. The
    thread or task that holds it may enter it again, as with ``threading.RLock``.
    """

    def __init__(
        self,
        path: AnyPath | Callable[..., AnyPath],
        timeout: float | FromEnvironment | None,
        request: Request,
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._request = request
        # Threads share it without a mutex: each puts in and takes out its own, in one call of C,
        # which locks the list where there is no GIL. Whoever looks through it has a copy.
        self._entries: list[Entry] = []

    def __repr__(self) -> str:
        entries = [entry for entry in self._entries[:] if entry.lasts()]
        state = f"held, entered {len(entries)} times" if entries else "not held"
        return f"<SourceTreeLock of {self._path!r}, {state}>"

    def __getstate__(self) -> dict[str, object]:
        """A copy, here or in another process, is another lock of the tree, and not held."""
        return {**vars(self), "_entries": []}

    def __del__(self) -> None:
        entries = getattr(self, "_entries", ())
        # No global name: at the end of the interpreter they may be gone.
        if any([entry.lasts() for entry in entries]):
            for entry in entries:
                entry.leave()
            warn_of_dropped(self._path)

    # Entering and leaving

    def __enter__(self) -> Self:
        """Hold the tree.

        Raises:
            LockTimeout: somebody else held it until the time was up.
            LockUnavailable: it cannot be locked here.
            FileNotFoundError, NotADirectoryError, ValueError: the path leads to no directory.
            RuntimeError: the wait could not end.
        """
        entry = self._entry(seconds_of(self._timeout), is_plain=True)
        try:
            if not entry.enter():
                raise entry.timed_out()
            self._entries.append(entry)
            return self
        except BaseException:
            self._abandon(entry)
            raise

    def __exit__(self, *exc_info: object) -> None:
        entry = None
        try:
            entry = self._last_entry(Owner())
            self._leave(entry, exc_info[1])
        except BaseException:
            # A signal handler may have raised anywhere.
            self._abandon(entry or self._last_entry(Owner()))
            raise

    async def __aenter__(self) -> Self:
        """Hold the tree, with other tasks running meanwhile. Errors are those of ``with``."""
        if not in_asyncio():
            raise RuntimeError(_NEEDS_ASYNCIO)
        entry = self._entry(seconds_of(self._timeout), is_plain=False)
        try:
            if not await entry.enter_async():
                raise entry.timed_out()
            self._entries.append(entry)
            return self
        except BaseException:
            self._abandon(entry)
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        # An async generator may be closed by another task than the one that ran it.
        entry = None
        try:
            entry = self._last_entry(Owner()) or self._last_async_entry()
            self._leave(entry, exc_info[1])
        except BaseException:
            self._abandon(entry or self._last_entry(Owner()) or self._last_async_entry())
            raise

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Hold the tree, by the rules of ``threading.RLock.acquire``.

        Args:
            blocking: whether to wait at all.
            timeout: how long to wait, in seconds; -1 for as long as this lock says.

        Returns:
            Whether the tree is held. It is not when the time is up, be it that of the call,
            of this lock or of the environment. Other errors are those of ``with``.
        """
        check_acquire(blocking, timeout)
        seconds = (seconds_of(self._timeout) if timeout == -1 else timeout) if blocking else 0
        entry = self._entry(seconds, is_plain=True)
        try:
            entered = entry.enter()
            if entered:
                self._entries.append(entry)
            else:
                entry.abandon()
            return entered
        except BaseException:
            self._abandon(entry)
            raise

    def release(self) -> None:
        """Leave the tree; the last of the entries of its owner releases it.

        Raises:
            RuntimeError: this thread or task did not enter it through this lock.
        """
        self.__exit__(None, None, None)

    def _leave(self, entry: Entry | None, exc: object) -> None:
        if entry is not None:
            entry.leave()
            self._entries.remove(entry)
        # What the body raised matters more; what closes a generator it did not raise.
        elif exc is None or isinstance(exc, GeneratorExit):
            raise RuntimeError(f"cannot release {self!r}: this thread or task has not entered it")

    def _last_entry(self, owner: Owner) -> Entry | None:
        for entry in self._entries[::-1]:
            if owner.stands_for(entry.owner):
                return entry
        return None

    def _last_async_entry(self) -> Entry | None:
        """The one that another task is to leave, unless it might be the wrong tree's."""
        entries = [each for each in self._entries[:] if not each.is_plain]
        return entries[-1] if len({each.hold for each in entries}) == 1 else None

    def _entry(self, seconds: float | None, *, is_plain: bool) -> Entry:
        return Entry(self._fixed_path(), self._request, seconds, is_plain=is_plain)

    def _abandon(self, entry: Entry | None) -> None:
        if entry is not None:
            entry.abandon()
            if entry in self._entries:
                self._entries.remove(entry)

    # Decorating

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Have a function run under the lock; an ``async def`` one waits without blocking its loop.

        Raises:
            TypeError: it is no function, or a generator function.
        """
        from ._decorator import decorate

        return decorate(function, self._for_call)

    def _for_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SourceTreeLock:
        return lock_like(self, self._path(*args, **kwargs)) if callable(self._path) else self

    # Looking

    def locked(self) -> bool:
        """Whether this thread or task holds the tree, through whichever object."""
        return self._hold() is not None

    def is_held(self) -> bool:
        """Whether anybody holds the tree, in this process or another.

        Raises:
            LockUnavailable: it cannot be told, because the lock file cannot be opened.
        """
        tree, lock_file = self._look()
        is_held: bool = _who_holds().is_tree_held(lock_file, tree.path)
        return is_held

    def holder(self) -> Holder | None:
        """Who holds the tree now; ``None`` when nobody does, or it cannot be known."""
        tree, lock_file = self._look()
        holder: Holder | None = _who_holds().find_holder(lock_file, tree.identity)
        return holder

    @property
    def tree(self) -> Path:
        """The canonical path of the source tree: of the one held, else where the path leads now."""
        from pathlib import Path

        return Path(self._look()[0].path)

    @property
    def lock_file(self) -> Path:
        """The lock file: of the tree held, else of the tree where the path leads now."""
        from pathlib import Path

        return Path(self._look()[1])

    @property
    def environ(self) -> dict[str, str]:
        """What to add to the environment of a child process to hand the hold over to it.

        Such a child may enter the tree while this hold lasts; several of them at once are not
        kept apart from each other. Only a holder can hand over, and hands over with it all other
        trees that this thread or task holds.

        Raises:
            RuntimeError: this thread or task does not hold the tree.
            LockUnavailable: there is nothing that a child could believe.
        """
        return self._hand_over(with_descriptors=False)[0]

    def _hand_over(self, *, with_descriptors: bool) -> tuple[dict[str, str], list[int]]:
        """`environ`, and the descriptors that the child is to inherit besides (POSIX)."""
        with guard:  # a fork waits for what is imported
            from ._handover import hand_over

        hold = self._hold()
        if hold is None:
            raise RuntimeError(f"{self!r} can hand over only while this thread or task holds it")
        return hand_over(hold, with_descriptors=with_descriptors)

    def _hold(self) -> Hold | None:
        owner = Owner()
        entry = self._last_entry(owner)
        if entry is not None:
            return entry.hold if entry.lasts() else None
        return None if callable(self._path) else hold_at(self._path, owner)

    def _look(self) -> tuple[Tree, str]:
        """The tree held, or else the one where the path leads now; and its lock file."""
        hold = self._hold()
        if hold is not None:
            return hold.tree, hold.lock_file
        tree = open_tree(self._fixed_path())
        tree.close()
        return tree, place_of(tree.path, self._request.digest, self._request.lock_dir).path

    def _fixed_path(self) -> AnyPath:
        if callable(self._path):
            raise TypeError("a path that depends on a call's arguments serves a decorator only")
        return self._path


def lock_like(lock: SourceTreeLock, path: AnyPath) -> SourceTreeLock:
    """A lock like another one, of a tree; for both, a loop of short attempts is one wait."""
    return SourceTreeLock(check_path(path), lock._timeout, lock._request)
