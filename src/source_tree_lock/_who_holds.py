"""Who holds a lock now: what the kernel's own list says, and what the processes have open."""

from __future__ import annotations

import os
from contextlib import suppress

from ._holder import Holder
from ._kernel import NO_SUCH_LOCK, READ_ONLY, KernelLock, leads_to, unavailable
from ._mounts import is_local
from ._process import (
    INITIAL_PID_NAMESPACE,
    POSIX,
    host,
    is_alive,
    line_of_descent,
    pid_namespace,
    program_of,
)
from ._record import read_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._process import Identity
    from ._record import Record

#: How often to look for a lock in a list that changes. The kernel gives a page at a time, or less
#: where a lock with all that wait for it needs more, and a lock that is released between two pages
#: has the next one overlooked (seq_file). Of 2,000 single looks at a busy list, 2 to 88 overlooked
#: a lock that was held.
_LOOKS = 10


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
        with suppress(OSError):
            status = os.lstat(lock_file)
            # Last: who has the lock file alone may be on the way in, and wait for the tree.
            inodes.append((status.st_dev, status.st_ino))
    named = kernel_holders(*inodes)
    for _ in range(_LOOKS):
        if not named and all(_names_all(device) for device, _ in inodes):
            return None
        candidates = [(named[inode], inode) for inode in inodes if inode in named]
        if record is not None and record.is_from_here() and not record.is_stale():
            candidates.append((record.holder.pid, inodes[-1]))
        for pid, inode in candidates:
            if _has_locked(pid, inode):
                return _named(pid, record)
        before, named = named, kernel_holders(*inodes)
        if named == before:
            break  # nobody else got in meanwhile
    for pid in () if lock_file is None else _that_opened(lock_file, inodes[-1]):
        if _has_locked(pid, inodes[-1]):
            return _named(pid, record)
    return None if record is None or record.is_from_here() else record.holder


def may_be_ancestors(named: dict[Identity, int]) -> bool:
    """Whether an ancestor of this process may hold what the kernel says these hold."""
    pids = set(named.values())
    if not pids or not pids.isdisjoint(line_of_descent()[1:]):
        return True
    return not all(map(is_alive, pids))  # it may have left the lock to any other


def _named(pid: int, record: Record | None) -> Holder:
    if record is not None and record.is_from_here() and record.holder.pid == pid:
        return record.holder
    return Holder(pid, program_of(pid), host())


def _names_all(device: int) -> bool:
    """Whether the kernel's list names everybody who holds an flock on this device.

    It does on a local file system, and outside of pid namespaces, which hide holders.
    """
    return (
        pid_namespace() == INITIAL_PID_NAMESPACE
        and is_local(device)
        and os.access("/proc/locks", os.R_OK)
    )


def _has_locked(pid: int, inode: Identity) -> bool:
    """Whether a process has a descriptor with an flock on an inode, as far as one may see.

    What /proc/locks says is not enough: it names a process that died, or became another
    program, and left its lock to a child; and on an overlay of several file systems, a file
    may have the device and inode there that stat(2) tells of a directory.
    """
    if not POSIX:
        return is_alive(pid)
    try:
        numbers = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return is_alive(pid)  # another user's, or a system without /proc
    for number in numbers:
        with suppress(OSError):
            with open(f"/proc/{pid}/fdinfo/{number}", "rb") as lines:
                locks = [line.split() for line in lines if line.startswith(b"lock:")]
            # Only then stat(2), which hangs where a file server has gone.
            if any(lock[2] == b"FLOCK" and lock[6].endswith(b":%d" % inode[1]) for lock in locks):
                status = os.stat(f"/proc/{pid}/fd/{number}")
                if (status.st_dev, status.st_ino) == inode:
                    return True
    return False


def _that_opened(path: str, inode: Identity) -> Iterator[int]:
    """The processes that may have a lock file open, as far as one may see."""
    if not POSIX:
        return
    # Who made it without a name still has it by the number that then stood for it.
    names = (f"/{os.path.basename(path)}", f"/#{inode[1]} (deleted)")
    for pid in sorted(int(each) for each in _listed("/proc") if each.isdigit()):
        for number in _listed(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{number}").endswith(names):
                    yield pid
                    break


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def kernel_holder(identity: Identity) -> int | None:
    """The process that the kernel names as holder of an flock; ``None`` where it says nothing.

    It names whoever made the call, even after that process has died and left the lock to a
    child. Device and inode must both agree: on btrfs and overlayfs, stat(2) tells another
    device than /proc/locks, and an inode number alone would hit strangers.
    """
    return kernel_holders(identity).get(identity)


def kernel_holders(*identities: Identity) -> dict[Identity, int]:
    """What `kernel_holder` says of each, at one look where one will do."""
    if not POSIX:
        return {}  # there, /proc is a directory that any user may have made
    wanted = {
        b"%02x:%02x:%d" % (os.major(device), os.minor(device), inode): (device, inode)
        for device, inode in identities
    }
    found: dict[Identity, int] = {}
    before = None
    try:
        for _ in range(_LOOKS):
            # As bytes: a codec that is not loaded yet needs a descriptor, and may not get one.
            with open("/proc/locks", "rb") as file:
                text = file.read()
            for line in text.splitlines():
                fields = line.split(None, 6)
                identity = wanted.get(fields[5]) if fields[1] == b"FLOCK" else None
                if identity is not None and int(fields[4]) > 0:
                    found[identity] = int(fields[4])
            if len(found) == len(wanted) or text == before:
                break
            before = text
    except OSError:
        pass  # no Linux, or no /proc
    return found


def is_held(path: str, *, follow: bool) -> bool:
    """Whether anybody has an flock on what ``path`` leads to.

    Where that is not to be seen, the lock is taken for an instant.

    Raises:
        LockUnavailable: it is there, and cannot be opened.
    """
    status = leads_to(path, os.stat if follow else os.lstat)
    if status is None:
        return False
    inode = (status.st_dev, status.st_ino)
    pid = kernel_holder(inode)
    if pid is None and _names_all(status.st_dev):
        return False
    if pid is not None and _has_locked(pid, inode):
        return True
    lock = KernelLock(path)
    try:
        lock.open(READ_ONLY & ~getattr(os, "O_NOFOLLOW", 0) if follow else READ_ONLY)
        return not lock.try_lock()
    except OSError as error:
        if error.errno in NO_SUCH_LOCK:
            return False
        raise unavailable(error, path, "cannot tell whether it is locked") from error
    finally:
        lock.close()
