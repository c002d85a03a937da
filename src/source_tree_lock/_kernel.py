"""One exclusive kernel lock on one inode, and the descriptor that carries it.

What a caller may rely on: a `KernelLock` is closed when it is told to, when it is
collected, and in a forked child at once; the kernel frees it when the process dies.
Nothing here decides whom to wait for, or for how long.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from contextlib import suppress
from types import ModuleType

from ._process import POSIX
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

    from ._process import Identity

    _LockCalls = tuple[Callable[[int], bool], Callable[[int], None], Callable[[int], None]]

#: Held while a descriptor is opened and registered, or unregistered and closed, and around
#: a fork, so that a forked child knows every descriptor that it has to close. Never held
#: during a wait. It is re-entrant because a signal handler may fork.
guard = threading.RLock()

_registry: dict[int, list[int]] = {}
_pop = list[int].pop

# A tape rewinds and a terminal may hang up when it is merely opened: never wait, never adopt.
_SAFE = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOINHERIT", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)
#: The mode of what is made: anybody may lock it, as uv has it.
MODE: Final = 0o666
READ_ONLY: Final = os.O_RDONLY | _SAFE
READ_WRITE: Final = os.O_RDWR | _SAFE
_DIRECTORY = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NONBLOCK", 0)
)

_BUSY = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}
#: Here, no lock of this kind exists on this inode, as NFS answers for a read-only descriptor.
NO_SUCH_LOCK = {errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
#: How many signal handlers may raise while one descriptor is closed.
_INTERRUPTIONS: Final = 100


class KernelLock:
    """A descriptor of ours and, once it is granted, the exclusive lock on what it leads to.

    Attributes:
        path: where it was opened.
        identity: device and inode of what was opened.
        held: whether the kernel granted the lock.
        writable: whether the descriptor may be written to.
    """

    __slots__ = ("__weakref__", "_descriptors", "held", "identity", "path", "writable")

    def __init__(self, path: str) -> None:
        self.path = path
        self.identity: Identity = (0, 0)
        self.held = False
        self.writable = False
        self._descriptors: list[int] = []

    def open(self, flags: int, path: str | None = None) -> os.stat_result:
        """Open ``path`` (its own by default) and tell what it leads to.

        Raises:
            OSError: as ``open(2)`` and ``fstat(2)`` do; nothing stays open.
        """
        try:
            with guard:
                _registry[id(self)] = self._descriptors
                # A signal handler raises between two steps of the interpreter. `extend` and
                # `map` together are one, so the descriptor is never in nobody's hands.
                self._descriptors.extend(map(os.open, (path or self.path,), (flags,), (MODE,)))
            status = os.fstat(self._descriptors[0])
        except BaseException:
            self.close()
            raise
        self.identity = (status.st_dev, status.st_ino)
        self.writable = flags & os.O_RDWR != 0
        return status

    def fileno(self) -> int:
        """The descriptor; closed ones raise ``ValueError``, as files do."""
        if not self._descriptors:
            raise ValueError(f"the lock on {self.path!r} is closed")
        return self._descriptors[0]

    def try_lock(self) -> bool:
        """Take the lock if it is free, without waiting.

        Raises:
            OSError: the kernel refuses for another reason than that somebody holds it.
        """
        if not self.held:
            self.held = (_calls or _lock_calls())[0](self.fileno())
        return self.held

    def lock(self) -> None:
        """Wait in the kernel's queue until the lock is granted (POSIX only).

        A signal handler that raises ends the wait; then nothing is held.

        Raises:
            OSError: the kernel refuses.
        """
        (_calls or _lock_calls())[1](self.fileno())
        self.held = True

    def close(self) -> None:
        """Release the lock and close the descriptor. Closing twice does nothing.

        It unlocks explicitly, because a child may have a copy of the descriptor, which
        would otherwise keep the lock. An interruption waits until all of it is done.
        """
        if not self._descriptors:
            return
        interruption: BaseException | None = None
        with guard:
            # Not for ever: what fails each time, as at the end of the interpreter, is no signal.
            for _ in range(_INTERRUPTIONS):
                if not self._descriptors:
                    break
                try:
                    if self.held:
                        (_calls or _lock_calls())[2](self._descriptors[-1])
                        self.held = False
                    # One step, as in `open`: a number that is closed must not be kept.
                    next(map(os.close, map(_pop, (self._descriptors,))))
                except OSError:
                    # Closing the last copy unlocks as well, and whatever close(2) reports, the
                    # number is free again.
                    self.held = False
                except BaseException as error:
                    interruption = error
            _registry.pop(id(self), None)
        if interruption is not None:
            raise interruption

    def __reduce__(self) -> NoReturn:
        # A copy would close the number a second time, whosever it is by then.
        raise TypeError(f"a kernel lock cannot be copied or pickled: {self.path!r}")

    def __del__(self) -> None:
        if getattr(self, "_descriptors", None):  # there are none if __init__ was interrupted
            self.close()


def is_ours(descriptor: int) -> bool:
    """Whether a descriptor was opened here, and so not inherited."""
    return any(descriptor in each for each in list(_registry.values()))


def try_lock_descriptor(descriptor: int) -> bool:
    """Lock an inherited descriptor, which is not ours to unlock, if it is free.

    Raises:
        OSError: as `KernelLock.try_lock` does.
    """
    return (_calls or _lock_calls())[0](descriptor)


def unlock_descriptor(descriptor: int) -> None:
    """Undo `try_lock_descriptor`.

    Raises:
        OSError: the kernel refuses.
    """
    (_calls or _lock_calls())[2](descriptor)


def leads_to(path: str, call: Callable[[str], os.stat_result] = os.stat) -> os.stat_result | None:
    """What ``path`` leads to now, or with ``os.lstat`` what it is itself; ``None`` if nothing."""
    try:
        return call(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_directory(path: str) -> KernelLock:
    """A read-only descriptor of a directory, not locked yet.

    Raises:
        OSError: as ``open(2)`` does.
    """
    lock = KernelLock(path)
    lock.open(_DIRECTORY)
    return lock


def unavailable(error: OSError, path: str, what: str) -> LockUnavailable:
    """``error``, met while ``what`` was attempted, as the error of ours that names ``path``."""
    return LockUnavailable(error.errno or errno.EIO, f"{what} ({error.strerror or error})", path)


_calls: _LockCalls | None = None


def prepare_locks() -> None:
    """Import what locks, unless it is there.

    Raises:
        ImportError, OSError: for want of a free descriptor, for one.
    """
    if _calls is None:
        _lock_calls()


def _lock_calls() -> _LockCalls:
    """Try, wait and unlock, through portalocker; afterwards, `_calls` has them.

    It is imported here, at the first acquisition. Its ``flock`` locker is pinned on POSIX: the
    process may have set ``portalocker.LOCKER`` to ``lockf``, whose locks are another kind.
    """
    global _calls
    # A fork waits for the import: a child would wait for ever for what its parent began.
    with guard:
        if _calls is None:
            _calls = _posix_calls() if POSIX else _windows_calls()
    return _calls


def _lockers() -> Any:
    """The module of portalocker that has the lockers, without the package around it.

    The package imports five times as much, and redis where that is installed: 6 ms of each hook
    of a build, or 75, of some 300. So unless somebody else has imported it, the module is
    imported under a name of ours, in a package that is empty but for the path.
    """
    import importlib.util

    spec = None if "portalocker" in sys.modules else importlib.util.find_spec("portalocker")
    if spec is not None:
        package = ModuleType(f"{__package__}._portalocker")
        package.__path__ = spec.submodule_search_locations or []
        sys.modules.setdefault(package.__name__, package)
        with suppress(ImportError):  # frozen programs know modules by their names alone
            return importlib.import_module(f"{package.__name__}.portalocker")
    return importlib.import_module("portalocker.portalocker")


def _posix_calls() -> _LockCalls:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN

    flock = _lockers().FlockLocker().locker

    def try_lock(descriptor: int) -> bool:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    return try_lock, lambda fd: flock(fd, LOCK_EX), lambda fd: flock(fd, LOCK_UN)


def _windows_calls() -> _LockCalls:
    lockers = _lockers()
    locker, exceptions = lockers.MsvcrtLocker(), lockers.exceptions
    flags = lockers.LockFlags.EXCLUSIVE | lockers.LockFlags.NON_BLOCKING

    def try_lock(descriptor: int) -> bool:
        try:
            locker.lock(descriptor, flags)
        except exceptions.AlreadyLocked:
            return False
        except exceptions.LockException as error:
            cause = error.__cause__
            # Wine reports errno 0 where Windows reports EACCES for a lock that is held.
            if isinstance(cause, OSError) and cause.errno == 0:
                return False
            raise cause if isinstance(cause, OSError) else OSError(errno.EIO, str(error)) from error
        return True

    def wait(descriptor: int) -> None:
        raise NotImplementedError("Windows has no queue to wait in; callers poll")

    def unlock(descriptor: int) -> None:
        try:
            locker.unlock(descriptor)
        except exceptions.LockException as error:
            raise OSError(errno.EIO, str(error)) from error

    return try_lock, wait, unlock


def _forget_in_child() -> None:
    # The child's copies would keep its parent's locks alive. Closing them unlocks nothing:
    # an flock belongs to the open file description, which the parent still has (flock(2)).
    for descriptors in list(_registry.values()):
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)
        descriptors.clear()
    _registry.clear()
    guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=guard.acquire, after_in_parent=guard.release, after_in_child=_forget_in_child
    )
