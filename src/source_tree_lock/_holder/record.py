"""The line that a holder leaves in the lock file: a courtesy to those who wait.

A reader trusts none of it.
"""

from __future__ import annotations

import errno
import os
import time

from .._kernel_lock import READ_ONLY, KernelLock, forgets_in_child, guard
from .._system import RECORD_START, read_at, write_at
from .holder import Holder
from .processes import (
    CLOCK_GRACE,
    boot_id,
    has_run_since,
    host,
    is_name,
    pid_namespace,
    program,
    started_at,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

_LONGEST_RECORD: Final = 4096


class Record:
    """What one lock file's record says, checked for form only.

    Attributes:
        holder: who wrote it.
        token: what a child process that the hold was handed to shows.
        is_for_hooks: whether the writer holds the tree on behalf of the hooks that it runs.
        is_from_this_kernel: whether it was written under this boot of this kernel.
    """

    __slots__ = ("holder", "is_for_hooks", "is_from_this_kernel", "token")

    def __init__(
        self, holder: Holder, token: str, *, is_for_hooks: bool, is_from_this_kernel: bool
    ) -> None:
        self.holder = holder
        self.token = token
        self.is_for_hooks = is_for_hooks
        self.is_from_this_kernel = is_from_this_kernel

    def is_from_here(self) -> bool:
        """Whether its pid means something to this process."""
        return not self.holder._is_foreign

    def is_stale(self) -> bool:
        """Whether its writer is known to be gone; one on another host is never."""
        return self.is_from_here() and not has_run_since(
            self.holder.pid, time.time() if self.holder.since is None else self.holder.since
        )


# Writing


#: What is the same in all records of this process, and tokens for the next; made under `guard`. A
#: token is taken in one call of C, which locks the list where there is no GIL: no two get the same.
_own = b""
_tokens: list[str] = []


@forgets_in_child
def _forget_own() -> None:
    global _own, _tokens
    _own, _tokens = b"", []


def prepare_records() -> None:
    """Make what is the same in all records of this process; nothing of it needs quoting."""
    global _own
    if _own:
        return
    with guard:
        if not _own:
            _own = (
                b'{"pid": %d, "host": "%s", "boot": "%s", "program": "%s", "pid_namespace": %d'
                % (
                    os.getpid(),
                    host().encode(),
                    boot_id().encode(),
                    program().encode(),
                    pid_namespace(),
                )
            )


def new_token() -> str:
    """What nobody can guess. The kernel is asked for 64 of them at once."""
    try:
        return _tokens.pop()
    except IndexError:
        text = os.urandom(64 * 16).hex()
        with guard:
            _tokens.extend([text[start : start + 32] for start in range(32, len(text), 32)])
        return text[:32]


def new_record(token: str, *, is_for_hooks: bool) -> bytes:
    """The line which says that this process holds the lock from now on."""
    hooks = b', "for_hooks": true' if is_for_hooks else b""
    return b'%s%s, "since": %.3f, "token": "%s"}\n' % (_own, hooks, time.time(), token.encode())


def write_record(lock: KernelLock, record: bytes, size: int) -> None:
    """Put a record into a lock file that has this size, in bytes.

    Raises:
        OSError: it could not be written, which keeps nobody from holding the lock.
    """
    if write_at(lock.fileno(), record) != len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    end = RECORD_START + len(record)
    if size > end:
        os.ftruncate(lock.fileno(), end)  # it is of one who died holding it


def blank_record(descriptor: int, record: bytes) -> None:
    """Overwrite a record with blank lines, which takes a tenth of the time of a truncation."""
    # Where that fails, a reader sees from its pid or from the kernel's list that it is stale.
    try:  # noqa: SIM105 (each leaving passes here)
        write_at(descriptor, b"\n" * len(record))
    except OSError:
        pass


# Reading


def read_record(path: str) -> Record | None:
    """The record in the lock file at ``path``, if there is a well-formed one."""
    lock = KernelLock(path)
    try:
        lock.open(READ_ONLY)
        data = read_at(lock.fileno(), _LONGEST_RECORD)
    except OSError:
        return None
    finally:
        lock.close()
    return _parse(data)


def _is_integer(least: int, most: int) -> Callable[[object], bool]:
    # A bool is an int to isinstance.
    return lambda value: type(value) is int and least <= value <= most


#: What each field has to be. Where one of the first three is not, there is no record; where
#: another is not, that field is unknown.
_FIELDS: Final[dict[str, Callable[[object], bool]]] = {
    "pid": _is_integer(1, 2**31 - 1),
    "pid_namespace": _is_integer(0, 2**64),
    "token": is_name,
    "host": is_name,
    "boot": is_name,
    "program": is_name,
    "since": lambda value: isinstance(value, float) and 0 <= value <= time.time() + CLOCK_GRACE,
    "for_hooks": lambda value: value is True,
}


def _parse(data: bytes) -> Record | None:
    try:
        found: dict[str, Any] = parse_json(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    fields = {name: found[name] for name, is_right in _FIELDS.items() if is_right(found.get(name))}
    if not {"pid", "pid_namespace", "token"} <= fields.keys():
        return None
    pid, name, since = fields["pid"], fields.get("host"), fields.get("since")
    boot = boot_id()
    is_from_this_boot = fields.get("boot", boot) == boot
    is_from_this_host = is_from_this_boot and name == host()
    is_foreign = not is_from_this_host or fields["pid_namespace"] != pid_namespace()
    if since is not None and not is_foreign:
        start = started_at(pid)
        if start is not None and since < start - CLOCK_GRACE:
            since = None  # the time is of another process
    return Record(
        Holder(pid, fields.get("program"), name, since, _is_foreign=is_foreign),
        fields["token"],
        is_for_hooks="for_hooks" in fields,
        # Containers have host names of their own; systems without a boot id have no containers.
        is_from_this_kernel=fields.get("boot") == boot if boot else is_from_this_host,
    )


def parse_json(text: str | bytes) -> Any:
    """What ``json.loads`` gives.

    Raises:
        ValueError, RecursionError: it is no JSON, or too deep.
    """
    # Imported here, because it would be a third of what an import of this library costs. A fork
    # waits for it: a child would wait for ever for what its parent began.
    with guard:
        import json
    return json.loads(text)
