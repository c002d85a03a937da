"""The lock file at a path: opened where there is one, and made where there is none.

It is never written to, truncated or deleted here, and no symbolic link is followed to it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ._kernel import MODE, READ_ONLY, READ_WRITE, KernelLock, leads_to, unavailable
from ._process import POSIX
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_CREATE: Final = READ_WRITE | os.O_CREAT | os.O_EXCL
#: Here, links are refused: vfat, some FUSE and SMB file systems.
_NO_LINKS: Final = {
    errno.EPERM,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EMLINK,
    errno.EINVAL,
}


def open_lock_file(path: str, *, make_directory: bool) -> KernelLock:
    """The lock file at ``path``, created if there is none, not locked yet.

    Its directory is made as well if ``make_directory``.

    It has mode 0666 whatever the umask, so that another user can lock it too: it is made
    without a name (or under another one), given its mode, and linked into place if nothing
    is there yet.

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
        os.fchmod(lock.fileno(), MODE)
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
        os.fchmod(lock.fileno(), MODE)
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
            os.fchmod(lock.fileno(), MODE)
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
        errno.EACCES: "no permission to open the lock file, or to make it; give the file mode "
        "0666 and its directory 1777, or name another with lock_dir or SOURCE_TREE_LOCK_DIR",
        errno.EROFS: "the lock directory is read-only; name another "
        "with lock_dir or SOURCE_TREE_LOCK_DIR",
    }
    return unavailable(error, path, hints.get(error.errno or 0, "the lock file cannot be opened"))
