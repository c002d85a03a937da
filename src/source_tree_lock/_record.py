"""The record that a holder leaves in its lock file.

It is a courtesy: a reader trusts nothing in it, and a lock file that cannot be written keeps nobody
from locking it.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import closing, suppress
from functools import cache

from ._kernel_lock import READ_ONLY, KernelLock, guard
from ._system import PROC, RECORD_START, host_name, read_at, user_id, write_at

#: The size of each record in bytes, so that a shorter one leaves nothing of a longer one behind.
SIZE = 512
#: Names consist of these only: none of them controls a terminal, or needs quoting in JSON.
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
LONGEST_NAME = 64


def write_record(lock: KernelLock, *, for_children: bool) -> str:
    """Write into a lock file that is held who holds it; the token of the record.

    Raises:
        OSError: it could not be written.
    """
    token = os.urandom(16).hex()
    children = ', "for_children": true' if for_children else ""
    with guard:
        fields = _own_fields(os.getpid())
    record = f'{{{fields}{children}, "since": {time.time():.3f}, "token": "{token}"}}'
    write(lock, record.encode().ljust(SIZE - 1) + b"\n", RECORD_START)
    return token


def blank_record(lock: KernelLock) -> None:
    """Empty the record: nobody holds the lock from now on.

    If that fails, readers notice by its pid or by the kernel's list that it is stale.
    """
    with suppress(OSError, ValueError):  # a fork has closed it
        write_at(lock.fileno(), b"\n" * SIZE, RECORD_START)


def write(lock: KernelLock, data: bytes, offset: int) -> None:
    """Write all of ``data`` into a lock file.

    Raises:
        OSError: it could not be written, or is not written because the file has other names.
    """
    if os.fstat(lock.fileno()).st_nlink != 1 or not lock.writable:
        raise OSError(errno.EROFS, "it has other names, or may only be read")
    if write_at(lock.fileno(), data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(path: str, size: int, offset: int) -> bytes:
    """At most ``size`` bytes of a lock file, from ``offset`` on."""
    with closing(KernelLock(path, READ_ONLY)) as lock:
        return read_at(lock.fileno(), size, offset)


# What this process is called


def as_name(text: str) -> str:
    """A name of letters, digits, ``.``, ``_``, ``+`` and ``-``, 64 at most."""
    return "".join(each if each in LETTERS else "_" for each in text[:LONGEST_NAME])


def this_host() -> str:
    """The name of this host."""
    return as_name(host_name()) or "unknown"


@cache  # used under `guard`, as is the next one
def _own_fields(pid: int) -> str:
    """The fields that are the same in all records of a process; none of them needs quoting."""
    host, boot, namespace = pid_scope(pid)
    return (
        f'"pid": {pid}, "host": "{host}", "boot": "{boot}", "pid_namespace": {namespace}, '
        f'"user": "{as_name(user_id())}", "program": "{_program()}"'
    )


@cache
def pid_scope(_: int) -> tuple[str, str, int]:
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
