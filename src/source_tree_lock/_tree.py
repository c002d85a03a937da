"""From a path to the two inodes that are locked for it: the tree itself, and its lock file."""

from __future__ import annotations

import errno
import os
import stat
import sys

from ._digest import cache_digest, posix_digest, windows_digest
from ._kernel import KernelLock, leads_to, open_directory, unavailable
from ._log import logger
from ._process import POSIX
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Final

    from ._process import Identity

    AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Digest = Callable[[Path], str]

LOCK_DIR_VARIABLE = "SOURCE_TREE_LOCK_DIR"

_NAME: Final = "uv-setuptools-%s.lock"
#: Of a file, on any system: Windows' "Naming Files, Paths, and Namespaces", and NAME_MAX.
_NO_FILE_NAME: Final = frozenset('/\\\0:*?"<>|')
_LONGEST_NAME: Final = 255

_known_directories: set[str] = set()

#: Canonical paths that were met here. One of them is taken for canonical again before it is
#: locked, and looked at once it is: one look instead of two, which take as long as both locks.
_met: set[str] = set()
_MOST_MET: Final = 1024


class Tree:
    """A source tree: where it is, what it is, and its own lock, not taken yet.

    Attributes:
        path: the canonical path, if `is_current`.
        identity: device and inode of the directory.
        lock: a descriptor of it to lock; ``None`` where directories cannot be locked.
        given: the path that was asked for.
    """

    __slots__ = ("given", "identity", "lock", "path")

    def __init__(self, path: str, identity: Identity, lock: KernelLock | None, given: str) -> None:
        self.given = given
        self.path = path
        self.identity = identity
        self.lock = lock

    def is_current(self, *, after_a_wait: bool = False) -> bool:
        """Whether the path, and no symlink on it, still leads to the directory that was opened.

        So does the path that was given, which a symlink may have turned to another tree.
        ``after_a_wait`` looks as well whether something has been mounted over it.
        """
        if self.given != self.path and not self._is_at(self.given):
            return False
        if self.path in _met and self.lock is not None:
            if _kernel_name(self.lock) != self.path:
                _met.discard(self.path)
                return False
            return not after_a_wait or self._is_at(self.path)
        return self._is_at(self.path)

    def _is_at(self, path: str) -> bool:
        status = leads_to(path)
        return status is not None and (status.st_dev, status.st_ino) == self.identity

    def close(self) -> None:
        """Give the lock and the descriptor back."""
        if self.lock is not None:
            self.lock.close()


def open_tree(path: AnyPath) -> Tree:
    """The source tree that ``path`` leads to now.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        NotADirectoryError: it is no directory.
        ValueError: it has a NUL byte.
        LockUnavailable: it cannot be opened or its canonical path cannot be found.
    """
    given = os.fsdecode(path)
    try:
        return _open_posix(given) if POSIX else _open_windows(given)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such source tree", given) from error
    except NotADirectoryError as error:
        raise NotADirectoryError(error.errno, "a source tree is a directory, not", given) from error
    except OSError as error:
        raise unavailable(error, given, "the source tree cannot be opened") from error
    except ValueError as error:
        raise ValueError(f"no path of a source tree: {given!r} ({error})") from error


def _open_posix(given: str) -> Tree:
    lock = open_directory(given)
    try:
        return Tree(_canonical(given, lock), lock.identity, lock, given)
    except BaseException:
        lock.close()
        raise


def _open_windows(given: str) -> Tree:
    if not given:  # Windows takes it for the working directory
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if "\0" in given:  # an OSError from Python 3.13 on
        raise ValueError("embedded null character")
    canonical = os.path.realpath(given, strict=True)
    status = os.stat(canonical)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return Tree(canonical, (status.st_dev, status.st_ino), None, given)


def _canonical(given: str, lock: KernelLock) -> str:
    """What realpath(3), and so Rust's ``canonicalize``, makes of ``given``."""
    if sys.platform == "darwin":
        # There realpath(3) also gives each name the case that it has on disk.
        import fcntl

        name = fcntl.fcntl(lock.fileno(), fcntl.F_GETPATH, bytes(1024))
        return os.fsdecode(name.rstrip(b"\0"))
    if given in _met:
        return given
    absolute = given
    if not given.startswith("/"):
        directory = os.getcwd()
        if given == "." and directory.startswith("/"):
            return directory  # the kernel's own name of it
        absolute = f"{directory}/{given}"
    # The kernel's name is not used where it differs: realpath(3) keeps the case that was given.
    if _kernel_name(lock) == absolute:
        if len(_met) < _MOST_MET:
            _met.add(absolute)
        return absolute
    return os.path.realpath(absolute, strict=True)


def _kernel_name(lock: KernelLock) -> str | None:
    """The kernel's own name of what is open: where it is the given one, no symlink was followed."""
    try:
        return os.readlink(f"/proc/self/fd/{lock.fileno()}")
    except OSError:
        return None  # no /proc here


def lock_file_of(tree: Tree, digest: Digest, lock_dir: AnyPath | None) -> tuple[str, bool]:
    """The absolute path of the lock file of ``tree``, and whether to make its directory.

    Raises:
        ValueError: the digest gives no usable file name, or the directory has a NUL byte.
        LockUnavailable: the system names no directory for it.
    """
    name = _NAME % _checked(digest, tree.path)
    chosen = lock_dir or os.environ.get(LOCK_DIR_VARIABLE)
    directory = _absolute(os.fsdecode(chosen) if chosen else temp_dir())
    if directory not in _known_directories:
        _look_at(directory)
    return f"{directory.rstrip(os.sep)}{os.sep}{name}", bool(chosen)


def _absolute(directory: str) -> str:
    """``directory`` from the root on, and not otherwise changed: a ``..`` may follow a symlink."""
    if "\0" in directory:
        raise ValueError(f"no path of a lock directory: {directory!r} (embedded null character)")
    if not POSIX:
        return os.path.abspath(directory)
    try:
        return os.path.join(os.getcwd(), directory) if directory[:1] != "/" else directory
    except OSError as error:
        raise unavailable(error, directory, "the working directory is gone") from error


def _look_at(directory: str) -> None:
    """Warn, once for each process, of a directory from which others can pull lock files away."""
    try:
        status = leads_to(directory)
    except OSError:
        return  # opening the lock file will say what is wrong
    if status is None:
        return
    _known_directories.add(directory)
    if POSIX and status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        logger().warning(
            "Lock directory %r may be written by others and is not sticky: they can pull lock "
            "files away. Set its mode to 1777.",
            directory,
        )


def _checked(digest: Digest, path: str) -> str:
    if digest is cache_digest:
        return posix_digest(path) if POSIX else windows_digest(path)
    from pathlib import Path

    name = digest(Path(path))
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or not _NO_FILE_NAME.isdisjoint(name)
        or len(os.fsencode(_NAME % name)) > _LONGEST_NAME
    ):
        raise ValueError(f"the digest of {path!r} must be one part of a file name, not {name!r}")
    return name


def temp_dir() -> str:
    """The directory that Rust's ``std::env::temp_dir`` gives, and so uv's: not ``tempfile``'s.

    It may be relative, and empty for the working directory.
    """
    if not POSIX:
        return _windows_temp_dir()
    directory = os.environ.get("TMPDIR")
    if directory is None:
        return _darwin_temp_dir() if sys.platform == "darwin" else "/tmp"
    return directory


def _darwin_temp_dir() -> str:
    try:
        return os.confstr(65537) or "/tmp"  # _CS_DARWIN_USER_TEMP_DIR in <unistd.h>
    except (OSError, ValueError):
        return "/tmp"


def _windows_temp_dir() -> str:
    import ctypes

    kernel32 = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    # GetTempPath2 came with Windows 10 20348; Rust falls back in the same way.
    get_temp_path = getattr(kernel32, "GetTempPath2W", None) or kernel32.GetTempPathW
    buffer = ctypes.create_unicode_buffer(32768)
    if not get_temp_path(len(buffer), buffer):
        raise LockUnavailable(errno.ENOENT, "Windows names no temporary directory", "%TMP%")
    return buffer.value
