"""Who holds a tree now, from the record, the kernel's list and what the processes have open."""

from __future__ import annotations

import os
from contextlib import suppress

from .._kernel_lock import (
    READ_ONLY,
    Identity,
    KernelLock,
    error_unsupported,
    leads_to,
    unavailable,
)
from .._paths.mounts import is_local
from .._system import DIRECTORY
from .holder import Holder
from .proc_locks import is_readable, kernel_holder, kernel_holders
from .processes import (
    INITIAL_PID_NAMESPACE,
    has_locked,
    host,
    is_alive,
    line_of_descent,
    pid_namespace,
    program_of,
)
from .record import read_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .record import Record


def find_holder(lock_file: str | None, tree: Identity) -> Holder | None:
    """Who holds a tree now: the right one or nobody, as far as this process may see.

    Args:
        lock_file: path of the lock file; ``None`` if only the tree's own lock is asked for.
        tree: device and inode of the source tree.
    """
    inodes = [tree]
    record = None
    if lock_file is not None:
        record = read_record(lock_file)
        status = None
        with suppress(OSError):  # who may not see the lock file may see the tree
            status = leads_to(lock_file, os.lstat)
        if status is not None:
            # Last: who has the lock file alone may be on the way in, and wait for the tree.
            inodes.append((status.st_dev, status.st_ino))
    named = kernel_holders(*inodes)
    if not named and all(_names_all(device) for device, _ in inodes):
        return None
    candidates = [(named[inode], inode) for inode in inodes if inode in named]
    if record is not None and record.is_from_here() and not record.is_stale():
        candidates.append((record.holder.pid, inodes[-1]))
    for pid, inode in candidates:
        if _holds(pid, inode):
            return _described(pid, record)
    return None if record is None or record.is_from_here() else record.holder


def is_held(path: str, *, follow: bool) -> bool:
    """Whether anybody has an flock on what ``path`` leads to.

    Where that is not to be seen, the lock is taken for an instant.

    Raises:
        LockUnavailable: it is there, and cannot be opened.
    """
    try:
        status = leads_to(path, os.stat if follow else os.lstat)
    except OSError as error:
        raise unavailable(error, path, _CANNOT_TELL) from error
    if status is None:
        return False
    inode = (status.st_dev, status.st_ino)
    pid = kernel_holder(inode)
    if pid is None and _names_all(status.st_dev):
        return False
    if pid is not None and _holds(pid, inode):
        return True
    lock = KernelLock(path)
    try:
        lock.open(READ_ONLY & ~getattr(os, "O_NOFOLLOW", 0) if follow else READ_ONLY)
        return not lock.try_lock()
    except BlockingIOError:
        return False  # a lease is no lock
    except OSError as error:
        if error_unsupported(error):
            return False
        raise unavailable(error, path, _CANNOT_TELL) from error
    finally:
        lock.close()


def is_tree_held(lock_file: str, tree: str) -> bool:
    """Whether anybody holds the tree at a path, by its lock file or by itself.

    Raises:
        LockUnavailable: it cannot be told.
    """
    return is_held(lock_file, follow=False) or (
        DIRECTORY is not None and is_held(tree, follow=True)
    )


_CANNOT_TELL = "cannot tell whether it is locked"


def may_be_ancestors(pids: set[int]) -> bool:
    """Whether an ancestor of this process may hold what the kernel says these hold."""
    if not pids or not pids.isdisjoint(line_of_descent()[1:]):
        return True
    return not all(map(is_alive, pids))  # it may have left the lock to any other


def _holds(pid: int, inode: Identity) -> bool:
    seen = has_locked(pid, inode)
    return is_alive(pid) if seen is None else seen


def _described(pid: int, record: Record | None) -> Holder:
    if record is not None and record.is_from_here() and record.holder.pid == pid:
        return record.holder
    return Holder(pid, program_of(pid), host())


def _names_all(device: int) -> bool:
    """Whether the kernel's list names everybody who holds an flock on this device.

    It does on a local file system, and outside of pid namespaces, which hide holders.
    """
    return pid_namespace() == INITIAL_PID_NAMESPACE and is_local(device) and is_readable()
