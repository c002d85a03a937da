"""The line that a holder leaves in the lock file: a courtesy to those who wait.

A reader trusts none of it.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from ._holder import Holder
from ._kernel import READ_ONLY, KernelLock, guard
from ._process import POSIX, boot_id, has_run_since, host, is_name, pid_namespace, program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeGuard

#: Where the record starts. On Windows nobody else can read what is locked: portalocker locks the
#: bytes before this one, uv the whole file.
RECORD_START: Final = 0 if POSIX else 0x10000
_LONGEST_RECORD: Final = 4096
_LARGEST_PID: Final = 2**31 - 1
_LATEST: Final = 2**40


class Record:
    """What one lock file's record says, checked for form only.

    Attributes:
        holder: who wrote it.
        token: what a child process that the hold was handed to shows.
        pid_namespace: inode of the writer's pid namespace; 0 where there are none.
    """

    __slots__ = ("holder", "pid_namespace", "token")

    def __init__(self, holder: Holder, token: str, pid_namespace: int) -> None:
        self.holder = holder
        self.token = token
        self.pid_namespace = pid_namespace

    def is_from_here(self) -> bool:
        """Whether its pid means something to this process."""
        return not self.holder._is_foreign

    def is_stale(self) -> bool:
        """Whether its writer is known to be gone; one on another host is never."""
        return self.is_from_here() and not has_run_since(self.holder.pid, self.holder.since or 0.0)


def new_record(token: str) -> bytes:
    """The line which says that this process holds the lock from now on."""
    # json.dumps would take longer than any other step of an entry: the constant part is made
    # once, and the rest needs no quoting.
    return b'{%s, "since": %.3f, "token": "%s"}\n' % (_own, time.time(), token.encode())


def write_record(lock: KernelLock, record: bytes, size: int) -> None:
    """Put a record into a lock file that has this size.

    Raises:
        OSError: it could not be written, which keeps nobody from holding the lock.
    """
    _write(lock.fileno(), record)
    end = RECORD_START + len(record)
    if size > end:
        os.ftruncate(lock.fileno(), end)  # it is of one who died holding it


def blank_record(lock: KernelLock, record: bytes) -> None:
    """Overwrite a record with blank lines, which takes a tenth of the time of a truncation."""
    # Where that fails, a reader sees from its pid or from the kernel's list that it is stale.
    with suppress(OSError):
        _write(lock.fileno(), b"\n" * len(record))


def _write(descriptor: int, data: bytes) -> None:
    if POSIX:
        written = os.pwrite(descriptor, data, RECORD_START)
    else:
        os.lseek(descriptor, RECORD_START, os.SEEK_SET)
        written = os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_record(path: str) -> Record | None:
    """The record in the lock file at ``path``, if there is a well-formed one."""
    lock = KernelLock(path)
    try:
        lock.open(READ_ONLY)
        data = _read(lock.fileno())
    except OSError:
        return None
    finally:
        lock.close()
    return _parse(data)


def _read(descriptor: int) -> bytes:
    if POSIX:
        return os.pread(descriptor, _LONGEST_RECORD, RECORD_START)
    os.lseek(descriptor, RECORD_START, os.SEEK_SET)
    return os.read(descriptor, _LONGEST_RECORD)


def _parse(data: bytes) -> Record | None:
    try:
        fields: dict[str, object] = parse_json(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    pid, namespace, since = map(fields.get, ("pid", "pid_namespace", "since"))
    program, name, token = map(fields.get, ("program", "host", "token"))
    if not (_is_integer(pid, 1, _LARGEST_PID) and _is_integer(namespace, 0, 2**64)):
        return None
    # Comparing with NaN is false.
    if not (isinstance(since, float) and 0 <= since <= _LATEST):
        return None
    if not (is_name(program) and is_name(name) and is_name(token)):
        return None
    boot = fields.get("boot", boot_id())
    is_foreign = (name, namespace, boot) != (host(), pid_namespace(), boot_id())
    return Record(Holder(pid, program, name, since, _is_foreign=is_foreign), token, namespace)


def _is_integer(value: object, least: int, most: int) -> TypeGuard[int]:
    # A bool is an int to isinstance.
    return type(value) is int and least <= value <= most


_own = b""


def prepare_records() -> None:
    """Make what is the same in all records of this process.

    Raises:
        ImportError, OSError: for want of a free descriptor, for one.
    """
    global _own
    if not _own:
        fields = {
            "pid": os.getpid(),
            "host": host(),
            "boot": boot_id(),
            "program": program(),
            "pid_namespace": pid_namespace(),
        }
        _own = _json().dumps(fields)[1:-1].encode("ascii")


def parse_json(text: str | bytes) -> Any:
    """What ``json.loads`` gives.

    Raises:
        ValueError, RecursionError: it is no JSON, or too deep.
    """
    return _json().loads(text)


def _json() -> Any:
    # Imported here, because it would be a third of what an import of this library costs.
    # A fork waits for it, as for portalocker.
    with guard:
        import json
    return json


def _forget_in_child() -> None:
    global _own
    _own = b""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
