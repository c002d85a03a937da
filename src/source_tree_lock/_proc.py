"""Who holds a lock and who waits, by the kernel's list, the records and the processes themselves.

Where there is no /proc, less is known; nothing here fails because of that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import NamedTuple

from . import _system
from ._holder import Holder
from ._kernel_lock import Identity, guard, leads_to
from ._paths import inner_lock_files, is_locked, open_tree
from ._record import LETTERS, LONGEST_NAME, SIZE, as_name, pid_scope, read, this_host
from ._system import PROC

#: Device and inode as the kernel writes them.
Key = bytes

#: The kernel cuts the name of a program after so many letters (TASK_COMM_LEN, less the NUL byte).
_LONGEST_COMM = 15
#: A list of fewer bytes is in one page: that has 4096 or more, but for an entry that does not fit.
_ONE_PAGE = 2048


# The kernel's list


class Flock(NamedTuple):
    """One flock in the kernel's list (proc_locks(5), Linux).

    Attributes:
        is_waiting: whether it is only waited for.
        key: what it is on.
        pid: the process that asked for it, even if that has ended and left the lock to a child.
    """

    is_waiting: bool
    key: Key
    pid: int


def flocks() -> list[Flock]:
    """All flocks that the kernel lists.

    The kernel gives a page at a time, and leaves a lock out if one before it is released meanwhile.
    So a list that may have more than one is read three times, and what is in any of them counts.
    """
    found: dict[Flock, None] = {}
    for _ in range(3):
        listed = _read("locks")
        for entry in listed.splitlines():
            # "1: FLOCK ADVISORY WRITE 4242 00:1f:9001 0 EOF", or "1: -> FLOCK ..." for a waiter
            fields = entry.split()
            is_waiting = fields[1] == b"->"
            kind, _, _, pid, key = fields[1 + is_waiting : 6 + is_waiting]
            if kind == b"FLOCK" and int(pid) > 0:
                found[Flock(is_waiting, key, int(pid))] = None
        if len(listed) < _ONE_PAGE:
            break
    return list(found)


def key_of(identity: Identity) -> Key:
    """Device and inode as the kernel writes them.

    Both must agree. On btrfs and overlayfs, stat(2) gives another device than the kernel's list,
    and an inode number alone may be that of another file.
    """
    device, inode = identity
    return b"%02x:%02x:%d" % (os.major(device), os.minor(device), inode)


def kernel_holders(*identities: Identity | None) -> list[int | None]:
    """The process that the kernel names as holder of each; ``None`` where it names none."""
    holders = {each.key: each.pid for each in flocks() if not each.is_waiting}
    return [holders.get(key_of(each)) if each and holders else None for each in identities]


# The records


class Record(NamedTuple):
    """What the record of one lock file says, checked for form only.

    Attributes:
        holder: who wrote it.
        token: identifies the hold; a child to which the hold was handed has the same token.
        for_children: whether the holder holds the tree only on behalf of its child processes.
        is_of_this_boot: whether it was written since this host was booted: on this host, in
            whatever container.
    """

    holder: Holder
    token: str
    for_children: bool
    is_of_this_boot: bool

    def is_stale(self) -> bool:
        """Whether its writer is known to have ended; that of another host never is."""
        return self.holder.is_local and not is_running(self.holder.pid)


def read_record(path: str) -> Record | None:
    """The record in the lock file at ``path``; ``None`` if there is no well-formed one."""
    try:
        found = json.loads(read(path, SIZE, _system.RECORD_START))
        pid, token, since = found["pid"], found["token"], found.get("since")
        names = [found.get(name) for name in ("program", "host", "boot", "user")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if type(pid) is not int or not 0 < pid < 2**31 or not _is_name(token):
        return None
    program, host, boot, user = (name if _is_name(name) else None for name in names)
    if not isinstance(since, float) or not 0 <= since <= time.time() + 2:  # clocks differ
        since = None
    with guard:
        here = pid_scope(os.getpid())
    is_local = (host, boot or "", found.get("pid_namespace")) == here
    is_of_this_boot = boot == here[1] if here[1] else host == here[0]
    if user is not None:
        user = _system.user_name(user)
    holder = Holder(pid, program, host, since, user, is_local=is_local)
    return Record(holder, token, found.get("for_children") is True, is_of_this_boot)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and LETTERS.issuperset(value)


# Who holds a tree


def find_holder(lock_file: str | None, tree: Identity | None) -> Holder | None:
    """Who holds a tree now: the right process or ``None``, as far as this process can see.

    Args:
        lock_file: path of the lock file; ``None`` to ask for the tree's own lock only.
        tree: device and inode of the source tree; ``None`` to ask for the lock file only.
    """
    record = None if lock_file is None else read_record(lock_file)
    file = None if lock_file is None else identity_at(lock_file)
    # The tree first: a process that has the lock file alone may still wait for the tree.
    pid = next((pid for pid in kernel_holders(tree, file) if pid is not None), None)
    if record is not None and pid in (None, record.holder.pid) and not record.is_stale():
        holder = record.holder
        if pid is None and not (lock_file and is_held(lock_file) and _may_have_open(holder, file)):
            return None  # its writer may have ended, on another host, or become another program
        holder.is_stopped = holder.is_local and is_stopped(holder.pid)
        return holder
    if pid is None or not is_running(pid):  # one that has ended left its lock to a child
        return None
    return Holder(pid, program_of(pid), this_host(), None, user_of(pid), is_stopped(pid))


def _may_have_open(holder: Holder, file: Identity | None) -> bool:
    """Whether a process has a lock file open, or that cannot be seen."""
    found = dict(open_paths(holder.pid)) if holder.is_local else {}
    return not found or file in found


def is_tree_held(lock_file: str, tree: str) -> bool:
    """Whether anybody holds the tree at a path: its lock file, one of an inner hold, or itself.

    Raises:
        LockUnavailable: that cannot be determined.
    """
    if any(map(is_held, (lock_file, *inner_lock_files(lock_file, 1)))):
        return True
    if kernel_holders(identity_at(tree)) != [None]:
        return True
    with closing(open_tree(tree)) as found:
        return not found.try_lock()


def is_held(path: str) -> bool:
    """Whether anybody has an flock on the lock file at a path.

    Where the kernel names nobody, the lock is taken for an instant.

    Raises:
        LockUnavailable: it exists, and cannot be opened or locked.
    """
    return kernel_holders(identity_at(path)) != [None] or is_locked(path)


def identity_at(path: str, call: Callable[[str], os.stat_result] = os.lstat) -> Identity | None:
    """Device and inode of what is at a path itself; ``None`` where that cannot be seen.

    With ``os.stat``: of what the path leads to.
    """
    with suppress(OSError, ValueError):
        return leads_to(path, call)
    return None


# Processes


def program_of(pid: int) -> str | None:
    """The name of the program that a process runs, where /proc shows it."""
    name = _read(f"{pid}/comm").rstrip(b"\n")
    if len(name) == _LONGEST_COMM:
        for word in map(os.path.basename, _read(f"{pid}/cmdline").split(b"\0")[:2]):
            if word.startswith(name):  # the second word is a script, after its interpreter
                name = word
    return as_name(name.decode("utf-8", "replace")) or None


def user_of(pid: int) -> str | None:
    """The name of the user of a process, where /proc shows it."""
    with suppress(OSError):
        return _system.user_name(str(os.stat(f"{PROC}/{pid}").st_uid))
    return None


def is_running(pid: int) -> bool:
    """Whether a process of this host and pid namespace lives; zombies do not."""
    fields = _stat_fields(pid)
    return fields[0] not in (b"Z", b"X") if fields else _system.is_alive(pid)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by Ctrl-Z for example."""
    return _stat_fields(pid)[:1] in ([b"T"], [b"t"])


def ancestry(pid: int | None = None) -> list[int]:
    """A process, by default this one, its parent, its parent's parent and so on."""
    found = [os.getpid(), os.getppid()] if pid is None else [pid]
    while found[-1] > 1 and (fields := _stat_fields(found[-1])):
        found.append(int(fields[1]))
    return found


def works_in(pid: int, tree: Identity) -> bool:
    """Whether the working directory of a process is ``tree``."""
    return identity_at(f"{PROC}/{pid}/cwd", os.stat) == tree


def open_paths(pid: int) -> Iterator[tuple[Identity, str]]:
    """What a process has open, as far as that can be seen."""
    with suppress(OSError):  # it has ended, or belongs to another user
        for name in os.listdir(f"{PROC}/{pid}/fd"):
            status = os.stat(f"{PROC}/{pid}/fd/{name}")
            path = os.readlink(f"{PROC}/{pid}/fd/{name}")
            yield (status.st_dev, status.st_ino), path.removesuffix(" (deleted)")


def _stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third, the state, on (proc_pid_stat(5))."""
    return _read(f"{pid}/stat").rpartition(b")")[2].split()


def _read(name: str) -> bytes:
    """A file below /proc; empty where there is none."""
    with suppress(OSError), open(f"{PROC}/{name}", "rb") as file:
        return file.read()
    return b""
