"""The record that a holder leaves in its lock file, and behind it the marks of unfinished builds.

Both are a courtesy: a reader trusts nothing in them, and a lock file that cannot be written keeps
nobody from locking it.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import suppress
from functools import cache

from ._holder import LETTERS, LONGEST_NAME, Holder, as_name, this_host
from ._kernel_lock import READ_ONLY, READ_WRITE, KernelLock, guard
from ._system import PROC, RECORD_START, is_alive, read_at, user_id, user_name, write_at

#: The size of each record in bytes, so that a shorter one leaves nothing of a longer one behind.
_SIZE = 512
#: How many marks stand behind the record.
_MARKS = 64


class Record:
    """What the record of one lock file says, checked for form only.

    Attributes:
        holder: who wrote it.
        token: identifies the hold; a child to which the hold was handed has the same token.
        for_children: whether the holder holds the tree only on behalf of its child processes.
        is_of_this_boot: whether it was written since this host was booted: on this host, in
            whatever container.
    """

    def __init__(
        self, holder: Holder, token: str, for_children: bool, is_of_this_boot: bool
    ) -> None:
        self.holder = holder
        self.token = token
        self.for_children = for_children
        self.is_of_this_boot = is_of_this_boot

    def is_stale(self) -> bool:
        """Whether its writer is known to have ended; that of another host never is."""
        return self.holder.is_local and not is_alive(self.holder.pid)


# Writing


def write_record(lock: KernelLock, *, for_children: bool) -> str:
    """Write into a lock file that is held who holds it; the token of the record.

    Raises:
        OSError: it could not be written.
    """
    _check_writable(lock)
    token = os.urandom(16).hex()
    children = ', "for_children": true' if for_children else ""
    with guard:
        fields = _own_fields(os.getpid())
    record = f'{{{fields}{children}, "since": {time.time():.3f}, "token": "{token}"}}'
    _write(lock, record.encode().ljust(_SIZE - 1) + b"\n", RECORD_START)
    return token


def blank_record(lock: KernelLock) -> None:
    """Empty the record: nobody holds the lock from now on.

    If that fails, readers notice by its pid or by the kernel's list that it is stale.
    """
    with suppress(OSError, ValueError):  # a fork has closed it
        write_at(lock.fileno(), b"\n" * _SIZE, RECORD_START)


def _check_writable(lock: KernelLock) -> None:
    if os.fstat(lock.fileno()).st_nlink != 1 or not lock.writable:
        raise OSError(errno.EROFS, "it has other names, or may only be read")


def _write(lock: KernelLock, data: bytes, offset: int) -> None:
    if write_at(lock.fileno(), data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Reading


def read_record(path: str) -> Record | None:
    """The record in the lock file at ``path``; ``None`` if there is no well-formed one."""
    with guard:
        import json  # imported only to read: it takes longer than an entry

    try:
        found = json.loads(_read(path, _SIZE, RECORD_START))
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
        place = _place(os.getpid())
    is_local = (host, boot or "", found.get("pid_namespace")) == place
    is_of_this_boot = boot == place[1] if place[1] else host == place[0]
    if user is not None:
        user = user_name(user)
    holder = Holder(pid, program, host, since, user, is_local=is_local)
    return Record(holder, token, found.get("for_children") is True, is_of_this_boot)


def _read(path: str, size: int, offset: int) -> bytes:
    lock = KernelLock(path, READ_ONLY)
    try:
        return read_at(lock.fileno(), size, offset)
    finally:
        lock.close()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and LETTERS.issuperset(value)


# The marks of unfinished builds


def read_marks(lock_file: str) -> bytes:
    """The marks of unfinished builds in a lock file, a byte each; `build_meta` says what they mean.

    Raises:
        OSError: they cannot be read.
    """
    return _read(lock_file, _MARKS, _SIZE + RECORD_START).ljust(_MARKS, b"\n")


def write_marks(lock_file: str, marks: bytes) -> None:
    """Write all marks into the lock file of a tree that this process holds.

    Raises:
        OSError: they cannot be written.
    """
    lock = KernelLock(lock_file, READ_WRITE)
    try:
        _check_writable(lock)
        _write(lock, marks, _SIZE + RECORD_START)
    finally:
        lock.close()


# What this process is called. Both caches are used under `guard`.


@cache
def _own_fields(pid: int) -> str:
    """The fields that are the same in all records of a process; none of them needs quoting."""
    host, boot, namespace = _place(pid)
    return (
        f'"pid": {pid}, "host": "{host}", "boot": "{boot}", "pid_namespace": {namespace}, '
        f'"user": "{as_name(user_id())}", "program": "{_program()}"'
    )


@cache
def _place(_: int) -> tuple[str, str, int]:
    """Host, boot and pid namespace of a process: where they are the same, so are pids."""
    boot, namespace = "", 0  # on systems without
    with suppress(OSError), open(f"{PROC}/sys/kernel/random/boot_id", "rb") as file:
        boot = as_name(file.read().decode("ascii", "replace").strip())
    with suppress(OSError):
        namespace = os.stat(f"{PROC}/self/ns/pid").st_ino
    return this_host(), boot, namespace


def _program() -> str:
    """What people call this process: its script or module, without arguments."""
    directory, name = os.path.split((getattr(sys, "argv", None) or [""])[0])
    if name.startswith("_"):
        # `python -m build` is build/__main__.py, and pip runs hooks by a script deep inside it.
        parent = os.path.dirname(directory)
        while parent != directory and os.path.exists(os.path.join(parent, "__init__.py")):
            directory, parent = parent, os.path.dirname(parent)
        if name == "__main__.py" or os.path.exists(os.path.join(directory, "__init__.py")):
            name = os.path.basename(directory) or name
    if not name or name.startswith("-"):
        name = os.path.basename(sys.executable or "")
    return as_name(name) or "python"
