"""The lock file of a source tree: where it is, opened where there is one, made where there is none.

It is never written to, truncated or deleted here, and no symbolic link is followed to it.
"""

from __future__ import annotations

import errno
import os
import stat
from _collections_abc import Callable  # collections.abc, without the package around it
from contextlib import suppress

from .._kernel_lock import (
    READ_ONLY,
    READ_WRITE,
    KernelLock,
    forgets_in_child,
    guard,
    leads_to,
    unavailable,
)
from .._log import logger
from .._system import LINKS, let_everybody_lock, refuse_link, strangers_may_delete, temp_dir
from ..errors import LockUnavailable
from .digest import cache_digest, canonical_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

    from .tree import AnyPath
else:
    Path = os.PathLike  # for `typing.get_type_hints`: pathlib takes milliseconds to import

#: Names a lock file; gets the canonical path, returns one part of a file name.
Digest = Callable[[Path], str]

LOCK_DIR_VARIABLE: Final = "SOURCE_TREE_LOCK_DIR"
#: How often a file may be pulled away before it is told that this is hopeless.
RESTARTS: Final = 100

_NAME: Final = "uv-setuptools-%s.lock"
#: Of a file, on any system: Windows' "Naming Files, Paths, and Namespaces", and NAME_MAX.
_NO_FILE_NAME: Final = frozenset('/\\\0:*?"<>|')
_LONGEST_NAME: Final = 255
_CREATE: Final = READ_WRITE | os.O_CREAT | os.O_EXCL
#: Here, hard links are refused: vfat, some FUSE and SMB file systems.
_NO_LINKS: Final = frozenset(
    (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EINVAL)
)


class NoPlace(LockUnavailable):
    """There is no lock file, and nobody can make one in the directory that is used by default."""


class Place:
    """Where the lock file of a tree is.

    Attributes:
        path: its absolute path.
        is_named: whether somebody named the directory, which then has to work.
    """

    __slots__ = ("is_named", "path")

    def __init__(self, path: str, *, is_named: bool) -> None:
        self.path: str = path
        self.is_named: bool = is_named


def place_of(tree: str, digest: Digest, lock_dir: AnyPath | None) -> Place:
    """Where the lock file of the tree at the canonical path ``tree`` is.

    Raises:
        ValueError: the digest gives no usable file name; the directory has a NUL byte, or is a
            relative one of the environment.
        LockUnavailable: the system names no directory for it.
    """
    name = _NAME % _checked(digest, tree)
    named = os.fsdecode(lock_dir) if lock_dir else os.environ.get(LOCK_DIR_VARIABLE, "")
    if named and not lock_dir and not os.path.isabs(named):
        raise ValueError(
            f"{LOCK_DIR_VARIABLE} in the environment must be an absolute path, not {named!r}: "
            "each working directory would have locks of its own"
        )
    directory = _absolute(named or temp_dir())
    if directory not in _known_directories:
        _look_at(directory)
    return Place(f"{directory.rstrip(os.sep)}{os.sep}{name}", is_named=bool(named))


def _checked(digest: Digest, tree: str) -> str:
    if digest is cache_digest:
        return canonical_digest(tree)
    from pathlib import Path as RealPath

    name = digest(RealPath(tree))
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or not _NO_FILE_NAME.isdisjoint(name)
        or len(os.fsencode(_NAME % name)) > _LONGEST_NAME
    ):
        raise ValueError(f"the digest of {tree!r} must be one part of a file name, not {name!r}")
    return name


def _absolute(directory: str) -> str:
    """``directory`` from the root on, and not otherwise changed: a ``..`` may follow a symlink."""
    if "\0" in directory:
        raise ValueError(f"no path of a lock directory: {directory!r} (embedded null character)")
    if directory[:1] == "/" == os.sep or os.path.isabs(directory):
        return directory
    try:
        return os.path.join(os.getcwd(), directory)
    except OSError as error:
        raise unavailable(error, directory, "the working directory is gone") from error


#: Directories that were looked at; changed under `guard` only.
_known_directories: set[str] = set()


@forgets_in_child
def _forget_directories() -> None:
    global _known_directories
    _known_directories = set()


def _look_at(directory: str) -> None:
    """Warn, once for each process, of a directory from which others can pull lock files away."""
    try:
        status = leads_to(directory)
    except OSError:
        return  # opening the lock file will say what is wrong
    if status is None:
        return
    with guard:
        _known_directories.add(directory)
    if strangers_may_delete(status):
        logger().warning(
            "Lock directory %r may be written by others and is not sticky: they can pull lock "
            "files away. Set its mode to 1777.",
            directory,
        )


def restarted_in_vain(path: str) -> LockUnavailable:
    """The error after as many restarts as there may be."""
    return LockUnavailable(
        errno.ESTALE,
        f"replaced {RESTARTS} times while it was being locked; stop what deletes it",
        path,
    )


# Opening


def open_lock_file(place: Place) -> KernelLock:
    """The lock file at ``place``, created if there is none, not locked yet.

    A directory that somebody named is made as well.

    It has mode 0666 whatever the umask, so that another user can lock it too: it is made under
    another name, given its mode, and linked into place if nothing is there yet.

    Raises:
        BlockingIOError: another process has a lease on it (``F_SETLEASE`` in fcntl(2)), which the
            kernel has asked it to give back: try again.
        NoPlace: nobody can have it in the directory that is used by default.
        LockUnavailable: it cannot be opened or made, or is no regular file.
    """
    # Whoever deletes and makes it over and over may win this race a few times.
    for _ in range(RESTARTS):
        try:
            return _open_existing(place.path)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            raise
        except OSError as error:
            # That there is a file is known from the error, or there is no way to know.
            raise _unavailable(place, error, may_be_there=error.errno not in _NOT_THERE) from error
        try:
            _create(place.path)
        except FileExistsError:
            pass
        except OSError as error:
            if isinstance(error, FileNotFoundError) and place.is_named:
                _make_directory(place)
            else:
                raise _unavailable(place, error, may_be_there=False) from error
    raise restarted_in_vain(place.path)


def _open_existing(path: str) -> KernelLock:
    # Without O_CREAT: a kernel with fs.protected_regular refuses that on another user's
    # file in a sticky directory, though it is there to be locked (proc_sys_fs(5)).
    lock = KernelLock(path)
    refuse_link(path)
    try:
        status = lock.open(READ_WRITE)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        status = lock.open(READ_ONLY)  # a lock needs no right to write
    if not stat.S_ISREG(status.st_mode):
        lock.close()
        raise OSError(errno.EINVAL, "is not a regular file")
    return lock


def _create(path: str) -> None:
    """Put a new lock file in place, unless somebody else was quicker.

    It is to be opened by its path: a FUSE file system may take what was linked for another
    inode than what was made, and lock the one without the other (bindfs does).
    """
    if LINKS:
        try:
            return _create_and_link(path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    return _create_in_place(path)


def _create_and_link(path: str) -> None:
    lock = KernelLock(path)
    # In the same directory: a link does not lead to another file system. Not the file's own name
    # and more, which may be too long.
    temporary = os.path.join(os.path.dirname(path), f"uv-setuptools-{os.urandom(8).hex()}.part")
    try:
        lock.open(_CREATE, temporary)
        let_everybody_lock(lock.fileno())
        os.link(temporary, path)
    finally:
        lock.close()
        with suppress(OSError):  # it was not made
            os.unlink(temporary)


def _create_in_place(path: str) -> None:
    # The race that is left where links are refused: until the mode is set, or for good if
    # this process dies first, another user may find the file with the umask's mode.
    lock = KernelLock(path)
    lock.open(_CREATE)
    try:
        let_everybody_lock(lock.fileno())
    except OSError as error:
        # vfat has no modes either, and says so in the same words.
        if error.errno not in _NO_LINKS:
            raise
    finally:
        lock.close()


def _make_directory(place: Place) -> None:
    directory = os.path.dirname(place.path)
    try:
        os.makedirs(directory, exist_ok=True)
    except FileExistsError as error:
        # It is said of a directory too that was there, and is removed by the time of the look.
        status = leads_to(directory, os.lstat)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise _unavailable(place, error, may_be_there=False) from error
    except OSError as error:
        raise _unavailable(place, error, may_be_there=False) from error


# What went wrong, and what to do


#: Where opening fails so, there is no file.
_NOT_THERE: Final = frozenset((errno.ENOTDIR, errno.ENAMETOOLONG))


def _unavailable(place: Place, error: OSError, *, may_be_there: bool) -> LockUnavailable:
    code = error.errno or errno.EIO
    hint = (_CANNOT_OPEN if may_be_there else _CANNOT_MAKE).get(code)
    if hint is None:
        hint = f"the lock file cannot be {'opened' if may_be_there else 'made'}; {_ELSEWHERE}"
    kind = LockUnavailable
    if not may_be_there and not place.is_named and code not in _OUR_OWN_LIMITS:
        kind = NoPlace
    return kind(code, f"{hint} ({error.strerror or error})", place.path)


#: These say nothing about the directory: another process may well make the file there.
_OUR_OWN_LIMITS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR))

_ELSEWHERE: Final = "name another directory with lock_dir or SOURCE_TREE_LOCK_DIR"
_IS_A_LINK: Final = (
    "the lock file is a symbolic link, which is never followed, or its directory has links that "
    "lead in a circle; remove the link"
)
_IS_NO_FILE: Final = "the lock file is not a regular file; remove it"
_MODES: Final = "give the lock file mode 0666 and its directory 1777"
_DIRECTORY_MODE: Final = "give its directory mode 1777"
_TOO_MANY: Final = "has too many open files; close some, or raise the limit"

_CANNOT_OPEN: Final = {
    errno.ELOOP: _IS_A_LINK,
    errno.EMLINK: _IS_A_LINK,  # FreeBSD's word for it
    errno.EINVAL: _IS_NO_FILE,
    errno.ENXIO: _IS_NO_FILE,
    errno.ENODEV: _IS_NO_FILE,
    errno.EISDIR: "the lock file is a directory; remove it",
    errno.EACCES: f"no permission to open the lock file; {_MODES}, or {_ELSEWHERE}",
    errno.EPERM: f"no permission to open the lock file; {_MODES}, or {_ELSEWHERE}",
    errno.ETXTBSY: "the lock file is being run as a program; remove it",
    errno.EMFILE: f"the process {_TOO_MANY}",
    errno.ENFILE: f"the system {_TOO_MANY}",
    errno.EIO: f"the file system of the lock file fails; repair it, or {_ELSEWHERE}",
    errno.ESTALE: f"the file system of the lock file has gone; mount it again, or {_ELSEWHERE}",
}
_CANNOT_MAKE: Final = {
    errno.ENOENT: f"the lock directory does not exist; make it, or {_ELSEWHERE}",
    errno.ENOTDIR: f"the lock directory is not a directory; {_ELSEWHERE}",
    errno.EEXIST: f"the lock directory is not a directory; {_ELSEWHERE}",
    errno.ENAMETOOLONG: f"the path of the lock directory is too long; {_ELSEWHERE}",
    errno.EACCES: f"no permission to make the lock file; {_DIRECTORY_MODE}, or {_ELSEWHERE}",
    errno.EPERM: f"no permission to make the lock file; {_DIRECTORY_MODE}, or {_ELSEWHERE}",
    errno.EROFS: f"the lock directory is read-only; {_ELSEWHERE}",
    errno.ENOSPC: f"no space or no inode is left in the lock directory; free some, or {_ELSEWHERE}",
    errno.EDQUOT: f"the quota of the lock directory is used up; free some, or {_ELSEWHERE}",
    errno.EMFILE: f"the process {_TOO_MANY}",
    errno.ENFILE: f"the system {_TOO_MANY}",
}
