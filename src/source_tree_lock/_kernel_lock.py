"""One exclusive kernel lock on one inode, and the descriptor that carries it.

What a caller may rely on: a `KernelLock` is closed when it is told to, when it is collected, and
in a forked child at once; the kernel frees it when the process dies. Nothing here decides whom to
wait for, or for how long.
"""

from __future__ import annotations

import errno
import os
import sys
from _thread import RLock
from contextlib import suppress

from ._system import SAFE, locking_calls
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _collections_abc import Callable
    from typing import Final, NoReturn

    from ._system.from_portalocker import LockingCalls

#: Device and inode: what a path leads to, whatever it is called there.
Identity = tuple[int, int]

MODE: Final = 0o666  # of what is made: anybody may lock it, as uv has it
READ_ONLY: Final = os.O_RDONLY | SAFE
READ_WRITE: Final = os.O_RDWR | SAFE

#: How many signal handlers may raise while one descriptor is closed.
INTERRUPTIONS: Final = 100


class _Guard:
    """A mutex for CPython 3.14, which looks for signals between a C ``__enter__`` and the body.

    This ``__enter__`` is Python, and takes the mutex and notes it in one call of C; ``__exit__``
    is C, and so runs before anybody looks. On all others a plain ``RLock`` is as good.
    """

    __slots__ = ()
    _mutex = RLock()
    __exit__ = _mutex.__exit__
    acquire = _mutex.acquire
    release = _mutex.release

    def __enter__(self) -> None:
        taken: list[bool] = []
        try:
            taken.extend(map(self.acquire, (True,)))
        except BaseException:
            if taken:
                self.release()
            raise


#: Guards every table of the package that threads share: each says so where it is defined. It is
#: held while a descriptor is opened and registered, or unregistered and closed, and around a
#: fork, so that a forked child knows every descriptor that it has to close. Never held during a
#: wait. It is re-entrant because a signal handler may fork.
guard: Final = _Guard() if sys.version_info[:2] == (3, 14) else RLock()


# Forks

_in_child: list[Callable[[], None]] = []
_forks = 0


def forgets_in_child(forget: Callable[[], None]) -> Callable[[], None]:
    """Have a function called in each forked child, which owns nothing of its parent's.

    It replaces each table that is read without `guard`, and never changes it: a thread of the
    parent may have been reading it at the fork, and with the GIL off a child waits for that thread.
    """
    _in_child.append(forget)
    return forget


def forks() -> int:
    """How many forks this process is away from the one that imported the library."""
    return _forks


def _after_fork_in_child() -> None:
    global _forks
    _forks += 1
    for forget in _in_child:
        forget()
    guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=guard.acquire, after_in_parent=guard.release, after_in_child=_after_fork_in_child
    )


# Locks


class _Descriptor:
    """A number that was opened here, for as long as it is open, and what it leads to."""

    __slots__ = ("identity", "numbers")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.identity: Identity | None = None

    def is_ours(self) -> bool:
        """Whether the number still is what was opened, and was not closed by somebody else."""
        if self.identity is None:
            return True
        try:
            status = os.fstat(self.numbers[0])
        except OSError as error:
            return error.errno != errno.EBADF
        return (status.st_dev, status.st_ino) == self.identity


#: All that is open here, under `guard`.
_open: dict[int, _Descriptor] = {}
_pop = list[int].pop


@forgets_in_child
def _close_in_child() -> None:
    # The child's copies would keep its parent's locks alive. Closing them unlocks nothing:
    # an flock belongs to the open file description, which the parent still has (flock(2)).
    global _open
    inherited, _open = _open, {}
    for descriptor in inherited.values():
        if descriptor.numbers and descriptor.is_ours():
            with suppress(OSError):
                os.close(descriptor.numbers[0])
        descriptor.numbers.clear()


class KernelLock:
    """A descriptor of ours and, once it is granted, the exclusive lock on what it leads to.

    Attributes:
        path: where it was opened.
        held: whether the kernel granted the lock.
        writable: whether the descriptor may be written to.
    """

    __slots__ = ("__weakref__", "_descriptor", "held", "path", "writable")

    def __init__(self, path: str) -> None:
        self.path: str = path
        self.held: bool = False
        self.writable: bool = False
        self._descriptor = _Descriptor()

    @property
    def identity(self) -> Identity:
        """Device and inode of what was opened."""
        return self._descriptor.identity or (0, 0)

    def open(self, flags: int, path: str | None = None) -> os.stat_result:
        """Open ``path`` (its own by default) and tell what it leads to.

        Raises:
            OSError: as ``open(2)`` and ``fstat(2)`` do; nothing stays open.
        """
        descriptor = self._descriptor
        descriptor.identity = None
        try:
            self._adopt(os.open, (path or self.path,), (flags,), (MODE,))
            status = os.fstat(descriptor.numbers[0])
        except BaseException:
            self.close()
            raise
        descriptor.identity = (status.st_dev, status.st_ino)
        self.writable = flags & os.O_RDWR != 0
        return status

    def is_open(self) -> bool:
        """Whether it has a descriptor: it has none in a child that was forked meanwhile."""
        return bool(self._descriptor.numbers)

    def fileno(self) -> int:
        """The descriptor; closed ones raise ``ValueError``, as files do."""
        if not self._descriptor.numbers:
            raise ValueError(f"the lock on {self.path!r} is closed")
        return self._descriptor.numbers[0]

    def try_lock(self) -> bool:
        """Take the lock if it is free, without waiting.

        Raises:
            OSError: the kernel refuses for another reason than that somebody holds it.
        """
        if not self.held:
            self.held = (_calls or prepare_locks())[0](self.fileno())
        return self.held

    def lock(self) -> None:
        """Wait in the kernel's queue until the lock is granted (POSIX only).

        A signal handler that raises ends the wait; then nothing is held.

        Raises:
            OSError: the kernel refuses.
        """
        (_calls or prepare_locks())[1](self.fileno())
        self.held = True

    def locked_copy(self) -> KernelLock | None:
        """Another descriptor of the same open file, if that has the lock or can get it now.

        The two have one lock: unlocking by either one unlocks it.

        Raises:
            OSError: the kernel refuses.
        """
        if not self.is_open() or not (_calls or prepare_locks())[0](self.fileno()):
            return None
        copy = KernelLock(self.path)
        copy._adopt(os.dup, (self.fileno(),))
        copy._descriptor.identity = self._descriptor.identity
        copy.held, copy.writable = True, self.writable
        return copy

    def _adopt(self, call: Callable[..., int], *arguments: tuple[object]) -> None:
        """Register the descriptor that a call of C returns; it is never in nobody's hands.

        A signal handler raises between two steps of the interpreter; `extend` and `map` are one.
        """
        numbers = self._descriptor.numbers
        with guard:
            try:
                _open[id(self._descriptor)] = self._descriptor
                numbers.extend(map(call, *arguments))
            finally:
                if not numbers:
                    _open.pop(id(self._descriptor), None)

    def close(self, farewell: Callable[[int], None] | None = None) -> None:
        """Release the lock and close the descriptor. Closing twice does nothing.

        It unlocks explicitly, because a child may have a copy of the descriptor, which would
        otherwise keep the lock. A number that somebody else has closed is left alone: it may be
        theirs by now. An interruption waits until all of it is done.

        Args:
            farewell: called with the descriptor before it is unlocked.
        """
        descriptor = self._descriptor
        interruption: BaseException | None = None
        with guard:
            # Not for ever: what fails each time, as at the end of the interpreter, is no signal.
            for _ in range(INTERRUPTIONS):
                if not descriptor.numbers:
                    break
                try:
                    if not descriptor.is_ours():
                        self.held = False
                        descriptor.numbers.clear()
                        break
                    if farewell is not None:
                        farewell(descriptor.numbers[0])
                        farewell = None
                    if self.held:
                        (_calls or prepare_locks())[2](descriptor.numbers[0])
                        self.held = False
                    # One step, as in `open`: a number that is closed must not be kept.
                    next(map(os.close, map(_pop, (descriptor.numbers,))))
                except OSError:
                    # Closing the last copy unlocks as well, and whatever close(2) reports, the
                    # number is free again.
                    self.held = False
                except BaseException as error:
                    interruption = error
            _open.pop(id(descriptor), None)
        if interruption is not None:
            raise interruption

    def __reduce__(self) -> NoReturn:
        # A copy would close the number a second time, whosever it is by then.
        raise TypeError(f"a kernel lock cannot be copied or pickled: {self.path!r}")

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)  # none if __init__ was interrupted
        if descriptor is not None and descriptor.numbers:
            self.close()


#: Made once, under `guard`.
_calls: LockingCalls | None = None


def prepare_locks() -> LockingCalls:
    """Import the locking calls on first use.

    Raises:
        ImportError, OSError: for want of a free descriptor, for one.
    """
    global _calls
    if _calls is not None:
        return _calls
    # A fork waits for the import: a child would wait for ever for what its parent began.
    with guard:
        if _calls is None:
            _calls = locking_calls()
    return _calls


def is_ours(descriptor: int) -> bool:
    """Whether a descriptor was opened here, and so not inherited."""
    with guard:
        found = any(descriptor in each.numbers for each in _open.values())
    return found  # noqa: RET504 (see `_queue.unwanted_grant`)


# What the calls answer, in words


def error_unsupported(error: OSError) -> bool:
    """Whether no lock of this kind exists here, as NFS answers for a read-only descriptor."""
    return error.errno in (errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def leads_to(path: str, call: Callable[[str], os.stat_result] = os.stat) -> os.stat_result | None:
    """What ``path`` leads to now, or with ``os.lstat`` what it is itself; ``None`` if nothing."""
    try:
        return call(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
    return None


def current_status(lock: KernelLock) -> os.stat_result | None:
    """The status of what a lock's path leads to, if that still is the inode that was opened."""
    status = leads_to(lock.path, os.lstat)
    if status is not None and (status.st_dev, status.st_ino) == lock.identity:
        return status
    return None


def unavailable(error: Exception, path: str, what: str) -> LockUnavailable:
    """``error``, met while ``what`` was attempted, as the error of ours that names ``path``."""
    code = getattr(error, "errno", None) or errno.EIO  # an import may fail with either kind
    return LockUnavailable(code, f"{what} ({getattr(error, 'strerror', None) or error})", path)
