"""From a path to the two inodes that are locked: the source tree, and its lock file."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from . import _system, errors
from ._digest import cache_digest, canonical_digest
from ._kernel_lock import READ_ONLY, READ_WRITE, Identity, KernelLock, guard, leads_to
from .errors import LockUnavailable, NoLockFile, unavailable

if TYPE_CHECKING:
    from logging import Logger

#: What may name a source tree or a directory.
AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
#: Names a lock file: gets the canonical path of the tree, returns one part of a file name.
Digest = Callable[[Path], str]

LOCK_DIR_VARIABLE = "SOURCE_TREE_LOCK_DIR"
#: How many times a file may be replaced while it is being locked before that is an error.
RESTARTS = 100

_NAME = "uv-setuptools-%s.lock"
#: Not allowed in a file name on one system or another (Windows' "Naming Files, Paths, and
#: Namespaces"), and NAME_MAX, less a few letters for the lock files of inner holds.
_NOT_IN_NAMES = frozenset('/\\\0:*?"<>|')
_LONGEST_NAME = 250
#: There is no lock of this kind here, as NFS answers for a read-only descriptor.
_UNSUPPORTED = (errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
#: These say nothing about the directory: another process may well be able to make the file.
_OUR_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
#: There is no file, nor can there be one at this path.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


# The source tree


class Tree:
    """A source tree.

    Attributes:
        path: the canonical path.
        identity: device and inode of the directory.
        lock: a descriptor of it to lock; ``None`` where directories cannot be locked.
    """

    def __init__(self, given: str) -> None:
        self.lock = None if _system.DIRECTORY is None else KernelLock(given, _system.DIRECTORY)
        descriptor = None if self.lock is None else self.lock.fileno()
        try:
            self.path = _system.canonical_path(given, descriptor)
        except (OSError, ValueError):
            self.close()
            raise
        if self.lock is None:
            status = os.stat(self.path)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            self.identity: Identity = (status.st_dev, status.st_ino)
        else:
            self.lock.path = self.path  # for errors: that which was given may be relative
            self.identity = self.lock.identity
        self._given = given

    def try_lock(self) -> bool:
        """Take its lock if it is free. Where directories cannot be locked, nobody has it.

        Raises:
            LockUnavailable: the kernel refuses.
        """
        if self.lock is None:
            return True
        try:
            return try_lock(self.lock)
        except LockUnavailable as error:
            if error.errno not in _UNSUPPORTED:
                raise
        self.close()
        self.lock = None
        return True

    def is_in_place(self) -> bool:
        """Whether both paths still lead to the directory that was opened.

        The path that was given may be a symbolic link, which now leads to another tree.

        Raises:
            LockUnavailable: that cannot be determined.
        """
        try:
            paths = {self._given, self.path}
            return all(leads_to(path) == self.identity for path in paths)
        except OSError as error:  # the path may be too long, though "." is not
            what = "cannot check the source tree by its path"
            raise unavailable(error, self.path, what) from error

    def is_open(self) -> bool:
        """Whether it has a descriptor that was not closed."""
        return self.lock is not None and self.lock.is_open()

    def close(self) -> None:
        """Release the lock and close the descriptor."""
        if self.lock is not None:
            self.lock.close()


def open_tree(path: AnyPath) -> Tree:
    """The source tree to which ``path`` leads now, not locked yet.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        NotADirectoryError: it is not a directory.
        ValueError: it has a NUL byte.
        LockUnavailable: it cannot be opened, or its canonical path cannot be found.
    """
    given = os.fsdecode(path)
    try:
        return Tree(given)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such source tree", given) from error
    except NotADirectoryError as error:
        raise NotADirectoryError(error.errno, "a source tree is a directory, not", given) from error
    except OSError as error:
        raise unavailable(error, given, errors.OPEN_TREE) from error
    except ValueError as error:
        raise ValueError(f"not the path of a source tree: {given!r} ({error})") from error


# The lock file: where it is


class Place:
    """Where a lock file is.

    Attributes:
        path: its absolute path.
        is_required: whether the lock file has to work: somebody named its directory, or an outer
            hold is in it.
    """

    def __init__(self, path: str, is_required: bool) -> None:
        self.path = path
        self.is_required = is_required


def place_of(tree: str, digest: Digest = cache_digest, lock_dir: AnyPath | None = None) -> Place:
    """The place of the lock file for the tree at a canonical path.

    Raises:
        ValueError: the digest gives no usable file name; the directory has a NUL byte, or is a
            relative one of the environment.
        LockUnavailable: the system names no directory for it.
    """
    name = _NAME % _checked_digest(digest, tree)
    named = os.fsdecode(lock_dir) if lock_dir else os.environ.get(LOCK_DIR_VARIABLE, "")
    if named and not lock_dir and not os.path.isabs(named):
        raise ValueError(
            f"{LOCK_DIR_VARIABLE} in the environment must be an absolute path, not {named!r}: "
            "each working directory would have its own locks"
        )
    try:
        directory = named or _system.temp_dir()
    except OSError as error:
        what = "the system names no directory for the lock file; set SOURCE_TREE_LOCK_DIR"
        raise unavailable(error, error.filename, what) from error
    if "\0" in directory:
        raise ValueError(f"not the path of a lock directory: {directory!r} (null character)")
    if not os.path.isabs(directory):
        try:
            # Not normalised: a ".." may follow a symbolic link.
            directory = os.path.join(os.getcwd(), directory)
        except OSError as error:
            raise unavailable(error, directory, "the working directory is gone") from error
    _warn_if_others_may_delete(directory)
    return Place(os.path.join(directory.rstrip(os.sep) + os.sep, name), bool(named))


def inner_lock_file(lock_file: str, level: int) -> str:
    """The lock file of the holds inside a hold, ``level`` levels below its own lock file."""
    return lock_file if level == 0 else f"{lock_file.removesuffix('.lock')}.{level}.lock"


def inner_lock_files(lock_file: str, level: int) -> Iterator[str]:
    """The lock files that exist for holds inside a hold, from ``level`` on."""
    while os.path.lexists(path := inner_lock_file(lock_file, level)):
        yield path
        level += 1


def _checked_digest(digest: Digest, tree: str) -> str:
    if digest is cache_digest:
        with guard:
            return canonical_digest(tree)
    name = digest(Path(tree))
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or not _NOT_IN_NAMES.isdisjoint(name)
        or len(os.fsencode(_NAME % name)) > _LONGEST_NAME
    ):
        raise ValueError(f"the digest of {tree!r} must be one part of a file name, not {name!r}")
    return name


def _warn_if_others_may_delete(directory: str) -> None:
    with suppress(OSError):  # opening the lock file reports what is wrong
        if _system.others_may_delete(os.stat(directory)):
            log_once(
                WARNING,
                "Lock directory %r may be written by others and is not sticky: they can delete "
                "lock files. Set its mode to 1777.",
                directory,
            )


# The lock file: opened if it exists, else made


def open_lock_file(place: Place) -> KernelLock:
    """The lock file at ``place``, made if there is none, not locked yet.

    A required directory is made as well.

    Raises:
        BlockingIOError: another process has a lease on it (``F_SETLEASE`` in fcntl(2)), which the
            kernel has asked it to give back: try again.
        NoLockFile: nobody can have it in the directory that is used by default.
        LockUnavailable: it cannot be opened or made, or is not a regular file.
    """
    # A process that keeps deleting it and making it may win this race a few times.
    for _ in range(RESTARTS):
        try:
            return _open_existing(place.path)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            raise
        except OSError as error:
            # There is a file, by the error, or it cannot be known that there is none.
            raise _unavailable(place, error, is_missing=error.errno in _NO_FILE) from error
        try:
            _create(place.path)
        except FileExistsError:
            pass
        except OSError as error:
            if not (isinstance(error, FileNotFoundError) and place.is_required):
                raise _unavailable(place, error, is_missing=True) from error
            directory = os.path.dirname(place.path)
            try:
                os.makedirs(directory)
            except OSError as error:
                # What existed may be gone by now; then try again.
                is_other = os.path.isfile(directory) or os.path.islink(directory)
                if is_other or not isinstance(error, FileExistsError):
                    raise _unavailable(place, error, is_missing=True) from error
    raise replaced_too_often(place.path)


def replaced_too_often(path: str) -> LockUnavailable:
    """The error when a lock was replaced as often as that is tolerated."""
    what = f"replaced {RESTARTS} times while it was being locked; stop what deletes it"
    return LockUnavailable(errno.ESTALE, what, path)


def _unavailable(place: Place, error: OSError, *, is_missing: bool) -> LockUnavailable:
    kind = LockUnavailable
    if is_missing and not place.is_required and error.errno not in _OUR_OWN_LIMITS:
        kind = NoLockFile
    hints = errors.MAKE_LOCK_FILE if is_missing else errors.OPEN_LOCK_FILE
    return unavailable(error, place.path, hints, kind)


def _open_existing(path: str) -> KernelLock:
    # Without O_CREAT: with fs.protected_regular, the kernel refuses that for another user's file
    # in a sticky directory, though it may be locked (proc_sys_fs(5)).
    _system.refuse_link(path)
    try:
        lock = KernelLock(path, READ_WRITE)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        lock = KernelLock(path, READ_ONLY)  # a lock needs no right to write
    if not stat.S_ISREG(lock.status.st_mode):
        lock.close()
        raise OSError(errno.EINVAL, "is not a regular file")
    return lock


def _create(path: str) -> None:
    """Put a new lock file in place.

    It has mode 0666 whatever the umask, so that another user can lock it too: it is made under
    another name, given its mode, and linked into place. It has to be opened by its path: a FUSE
    file system may take the link for another inode than the file that was made (bindfs does).

    Raises:
        FileExistsError: another process was faster.
        OSError: it cannot be made.
    """
    if _system.LINKS:
        # In the same directory: a link does not lead to another file system.
        part = os.path.join(os.path.dirname(path), f"uv-setuptools-{os.urandom(8).hex()}.part")
        try:
            _make(part)
            os.link(part, path)
            return
        except FileExistsError:
            raise
        except OSError:
            pass  # hard links are refused here: vfat, some FUSE and SMB file systems, Android
        finally:
            with suppress(OSError):  # it was not made
                os.unlink(part)
    # Until the mode is set, or for good if this process dies before, another user may find the
    # file with the mode that the umask gives.
    _make(path)


def _make(path: str) -> None:
    lock = KernelLock(path, READ_WRITE | os.O_CREAT | os.O_EXCL)
    with closing(lock), suppress(OSError):  # vfat has no modes
        _system.let_everybody_lock(lock.fileno())


# File systems


#: File systems that several hosts mount, as mountinfo names them (proc_pid_mountinfo(5)).
_NETWORK = frozenset(
    (
        "9p afs beegfs ceph cifs fuse.ceph fuse.ceph-fuse fuse.glusterfs fuse.juicefs fuse.mfs "
        "fuse.sshfs gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 orangefs smb3 smbfs virtiofs"
    ).split()
)


def try_lock(lock: KernelLock) -> bool:
    """Take a lock if it is free. Only on SMB does EACCES mean that somebody holds it.

    Raises:
        LockUnavailable: the kernel refuses.
    """
    try:
        return lock.try_lock()
    except OSError as error:
        if isinstance(error, PermissionError) and is_smb(lock):
            return False
        raise unavailable(error, lock.path, errors.REFUSED) from error


def is_locked(path: str) -> bool:
    """Whether somebody has locked the lock file at a path. If not, it is locked for an instant.

    Raises:
        LockUnavailable: it cannot be opened, or the kernel refuses to lock it.
    """
    try:
        lock = _open_existing(path)
    except OSError as error:
        if error.errno in _NO_FILE or isinstance(error, BlockingIOError):
            return False  # a lease is no lock
        raise unavailable(error, path, errors.OPEN_LOCK_FILE) from error
    with closing(lock):
        return not try_lock(lock)


def is_smb(lock: KernelLock) -> bool:
    """Whether what is locked is on an SMB file system."""
    return _file_system_of(lock.identity[0]) in ("cifs", "smb3")


def warn_if_shared(tree: Tree, file: KernelLock) -> None:
    """Warn, once for each tree, if other hosts share the tree and not its lock file."""
    device = tree.identity[0]
    if file.identity[0] != device and (kind := _file_system_of(device)) in _NETWORK:
        log_once(
            WARNING,
            "Other hosts that share source tree %r are not kept out: it is on a network file "
            "system (%s), and its lock file %r is not. Set lock_dir or SOURCE_TREE_LOCK_DIR to a "
            "directory on that file system.",
            *(tree.path, kind, file.path),
        )


def _file_system_of(device: int) -> str:
    with guard:  # for the cache
        return _read_file_system(device)


@cache
def _read_file_system(device: int) -> str:
    """The type of a device's file system (Linux); empty where it is unknown."""
    with suppress(OSError), open(f"{_system.PROC}/self/mountinfo", "rb") as mounts:
        number = b"%d:%d" % (os.major(device), os.minor(device))
        for mount in mounts:
            if mount.split(b" ", 3)[2] == number:
                return os.fsdecode(mount.partition(b" - ")[2].split(b" ")[0])
    return ""


# What is logged

#: Two of logging's levels: importing it takes longer than an entry.
INFO, WARNING = 20, 30

#: What was logged in this process; changed under `guard`.
_logged: set[object] = set()


def log_once(level: int, message: str, *arguments: str) -> None:
    """Log a message, once in this process."""
    with guard:
        if (message, *arguments) in _logged:
            return
        _logged.add((message, *arguments))
    logger().log(level, message, *arguments)


def logger() -> Logger:
    """The logger ``source_tree_lock``."""
    import logging  # when there is something to say

    return logging.getLogger("source_tree_lock")


def is_info_logged() -> bool:
    """Whether a message at INFO is handled: never in a process that has not imported logging."""
    return "logging" in sys.modules and logger().isEnabledFor(INFO)
