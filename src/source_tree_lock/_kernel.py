"""One exclusive kernel lock on one inode, and the descriptor that carries it.

What a caller may rely on: a `KernelLock` is closed when it is told to, when it is
collected, and in a forked child at once; the kernel frees it when the process dies.
Nothing here decides whom to wait for, or for how long.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress

from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    _LockCalls = tuple[Callable[[int], bool], Callable[[int], None], Callable[[int], None]]

#: Device and inode: what a path leads to, whatever it is called there.
Identity = tuple[int, int]

POSIX: Final = os.name == "posix"

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
READ_ONLY: Final = os.O_RDONLY | _SAFE
READ_WRITE: Final = os.O_RDWR | _SAFE
_CREATE = READ_WRITE | os.O_CREAT | os.O_EXCL
_DIRECTORY = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
#: Anybody may lock the file, as uv has it; see `open_lock_file`.
_MODE = 0o666

_BUSY = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}
#: Here, no lock of this kind exists on this inode, as NFS answers for a read-only descriptor.
NO_SUCH_LOCK = {errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
#: Here, links are refused: vfat, some FUSE and SMB file systems.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EINVAL}
#: How many signal handlers may raise while one descriptor is closed.
_INTERRUPTIONS: Final = 100
#: Where the holder's record starts. On Windows nobody else can read what is locked: portalocker
#: locks the bytes before this one, uv the whole file.
RECORD_START: Final = 0 if POSIX else 0x10000


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
                self._descriptors.extend(map(os.open, (path or self.path,), (flags,), (_MODE,)))
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

    def __del__(self) -> None:
        if getattr(self, "_descriptors", None):  # there are none if __init__ was interrupted
            self.close()


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


def open_lock_file(path: str, *, make_directory: bool) -> KernelLock:
    """The lock file at ``path``, created if there is none, not locked yet.

    Its directory is made as well if ``make_directory``.

    It has mode 0666 whatever the umask, so that another user can lock it too: it is made
    without a name (or under another one), given its mode, and linked into place if nothing
    is there yet. It is never written to, truncated or deleted here.

    Raises:
        LockUnavailable: it cannot be opened or made, or is no regular file.
    """
    try:
        # Whoever deletes and makes it over and over may win this race a few times.
        for _ in range(100):
            try:
                lock = _open_existing(path)
                if lock is not None:
                    return lock
                _create(path)
            except FileNotFoundError:
                if not make_directory:
                    raise
                _make_directory(os.path.dirname(path))
    except OSError as error:
        raise _unavailable(path, error) from error
    raise LockUnavailable(
        errno.ESTALE,
        "the lock file is deleted as fast as it is made; stop what cleans this directory",
        path,
    )


def _make_directory(directory: str) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
    except FileExistsError:
        # It is said of a directory too that was there, and is removed by the time of the look.
        status = leads_to(directory, os.lstat)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise


def _open_existing(path: str) -> KernelLock | None:
    # Without O_CREAT: a kernel with fs.protected_regular refuses that on another user's
    # file in a sticky directory, though it is there to be locked (proc_sys_fs(5)).
    lock = KernelLock(path)
    if not POSIX and os.path.islink(path):  # the race with its making is left: no O_NOFOLLOW here
        raise OSError(errno.ELOOP, "is a symbolic link")
    try:
        status = lock.open(READ_WRITE)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        try:
            status = lock.open(READ_ONLY)  # a lock needs no right to write
        except FileNotFoundError:
            return None
    if not stat.S_ISREG(status.st_mode):
        lock.close()
        raise OSError(errno.EINVAL, "is not a regular file")
    return lock


def _create(path: str) -> None:
    """Put a new lock file in place, unless somebody else was quicker.

    It is to be opened by its path: a FUSE file system may take what was linked for another
    inode than what was made, and lock the one without the other (bindfs does).
    """
    for make in _MAKERS:
        try:
            return make(path)
        except FileExistsError:
            return None
        except OSError as error:
            if make is _MAKERS[-1] or error.errno not in _NO_LINKS | {errno.EISDIR, errno.ENOENT}:
                raise
    raise AssertionError("unreachable")


def _create_nameless(path: str) -> None:
    # A process that dies here leaves nothing, whereas a second name would stay behind and
    # keep the record out of the file. Where /proc or the kernel's support is missing, it fails.
    lock = KernelLock(path)
    try:
        lock.open(READ_WRITE & ~os.O_NOFOLLOW | os.O_TMPFILE, os.path.dirname(path))
        os.fchmod(lock.fileno(), _MODE)
        # src_dir_fd means nothing beside an absolute path, but has Python call linkat(2)
        # with AT_SYMLINK_FOLLOW, which is how an O_TMPFILE gets its name (open(2)).
        os.link(f"/proc/self/fd/{lock.fileno()}", path, src_dir_fd=lock.fileno())
    finally:
        lock.close()


def _create_and_link(path: str) -> None:
    lock = KernelLock(path)
    temporary = f"{path}.{os.urandom(8).hex()}"
    try:
        lock.open(_CREATE, temporary)
        os.fchmod(lock.fileno(), _MODE)
        os.link(temporary, path)
    finally:
        lock.close()
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _create_in_place(path: str) -> None:
    # The race that is left where links are refused: until the mode is set, or for good if
    # this process dies first, another user may find the file with the umask's mode.
    lock = KernelLock(path)
    lock.open(_CREATE)
    try:
        if POSIX:
            os.fchmod(lock.fileno(), _MODE)
    except OSError as error:
        # vfat has no modes either, and says so in the same words.
        if error.errno not in _NO_LINKS:
            raise
    finally:
        lock.close()


_MAKERS: list[Callable[[str], None]] = [_create_in_place]
if POSIX:
    _MAKERS.insert(0, _create_and_link)
if hasattr(os, "O_TMPFILE"):
    _MAKERS.insert(0, _create_nameless)


def _unavailable(path: str, error: OSError) -> LockUnavailable:
    hints = {
        errno.ELOOP: "the lock file is a symbolic link, which is never followed; remove it",
        errno.EMLINK: "the lock file is a symbolic link, which is never followed; remove it",
        errno.EINVAL: "the lock file is not a regular file; remove it",
        errno.ENXIO: "the lock file is not a regular file; remove it",
        errno.EISDIR: "the lock file is a directory; remove it",
        errno.ENOENT: "the lock directory does not exist; make it, or name another "
        "with lock_dir or SOURCE_TREE_LOCK_DIR",
        errno.EEXIST: "the lock directory is not a directory; name another "
        "with lock_dir or SOURCE_TREE_LOCK_DIR",
        errno.ENOTDIR: "the lock directory is not a directory; name another "
        "with lock_dir or SOURCE_TREE_LOCK_DIR",
        errno.EACCES: "no permission to open the lock file; make it readable for this user, "
        "or name another directory with lock_dir or SOURCE_TREE_LOCK_DIR",
        errno.EROFS: "the lock directory is read-only; name another "
        "with lock_dir or SOURCE_TREE_LOCK_DIR",
    }
    return unavailable(error, path, hints.get(error.errno or 0, "the lock file cannot be opened"))


def unavailable(error: OSError, path: str, what: str) -> LockUnavailable:
    """``error``, met while ``what`` was attempted, as the error of ours that names ``path``."""
    return LockUnavailable(error.errno or errno.EIO, f"{what} ({error.strerror or error})", path)


def read_at_record(descriptor: int, size: int) -> bytes:
    """Up to ``size`` bytes of the record in a lock file."""
    if POSIX:
        return os.pread(descriptor, size, RECORD_START)
    os.lseek(descriptor, RECORD_START, os.SEEK_SET)
    return os.read(descriptor, size)


def write_at_record(descriptor: int, data: bytes) -> None:
    """Put ``data`` where the record is."""
    if POSIX:
        written = os.pwrite(descriptor, data, RECORD_START)
    else:
        os.lseek(descriptor, RECORD_START, os.SEEK_SET)
        written = os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_calls: _LockCalls | None = None


def _lock_calls() -> _LockCalls:
    """Try, wait and unlock, through portalocker; afterwards, `_calls` has them.

    It is imported here, at the first acquisition: it costs 6 to 60 ms, and more where
    ``redis`` is installed, which it imports. Its ``flock`` locker is pinned on POSIX: the
    process may have set ``portalocker.LOCKER`` to ``lockf``, whose locks are another kind.
    """
    global _calls
    # A fork waits for the import: a child would wait for ever for what its parent began.
    with guard:
        if _calls is None:
            _calls = _posix_calls() if POSIX else _windows_calls()
    return _calls


def _posix_calls() -> _LockCalls:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN

    from portalocker.portalocker import FlockLocker

    flock = FlockLocker().locker

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
    from portalocker import LockFlags
    from portalocker.exceptions import AlreadyLocked, LockException
    from portalocker.portalocker import MsvcrtLocker

    locker = MsvcrtLocker()

    def try_lock(descriptor: int) -> bool:
        try:
            locker.lock(descriptor, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
        except AlreadyLocked:
            return False
        except LockException as error:
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
        except LockException as error:
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
