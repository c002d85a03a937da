"""The processes of this host: this one, the ones above it, and any other by its number.

Where there is no /proc, less is known; nothing here fails for that.
"""

from __future__ import annotations

import os
import sys

from .. import _system
from .._system import PROC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeGuard

    from .._kernel_lock import Identity

#: PROC_PID_INIT_INO in the kernel's <linux/proc_ns.h>: no process is hidden from this namespace.
INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC

# What is shown to people, and written without quoting: a terminal obeys none of it.
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
_LONGEST_NAME: Final = 64


def is_name(value: object) -> TypeGuard[str]:
    """Whether something is a name as `as_name` makes it."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and _LETTERS.issuperset(value)


def as_name(text: str) -> str:
    """A name of letters, digits, ``.``, ``_``, ``+`` and ``-``, 64 at most."""
    return "".join(each if each in _LETTERS else "_" for each in text[:_LONGEST_NAME])


def host() -> str:
    """The name of this host."""
    return as_name(_system.host_name()) or "unknown"


def boot_id() -> str:
    """What tells this boot of this kernel from all others, whatever the hosts are called."""
    text = _read("sys/kernel/random/boot_id") or b""
    return as_name(text.decode("ascii", "replace").strip())


def pid_namespace() -> int:
    """Inode of this process's pid namespace; 0 on systems without."""
    status = _stat("self/ns/pid")
    return 0 if status is None else status.st_ino


def program() -> str:
    """What people call this process: its script or module, without arguments."""
    directory, name = os.path.split((getattr(sys, "argv", None) or [""])[0])
    if name.startswith("_"):
        # `python -m build` is build/__main__.py, and pip runs hooks by a script deep inside of it.
        parent = os.path.dirname(directory)
        while parent != directory and os.path.exists(os.path.join(parent, "__init__.py")):
            directory, parent = parent, os.path.dirname(parent)
        if name == "__main__.py" or os.path.exists(os.path.join(directory, "__init__.py")):
            name = os.path.basename(directory) or name
    if not name or name.startswith("-"):
        name = os.path.basename(sys.executable or "")
    return as_name(name) or "python"


def program_of(pid: int) -> str | None:
    """The name of the program that a process runs, where /proc tells."""
    text = _read(f"{pid}/comm")
    return None if text is None else as_name(text.decode("utf-8", "replace").rstrip("\n")) or None


def is_uv(pid: int) -> bool:
    """Whether a process runs uv's executable."""
    return program_of(pid) == "uv"


def working_directory_of(pid: int) -> Identity | None:
    """Device and inode of a process's working directory, where /proc tells."""
    status = _stat(f"{pid}/cwd")
    return None if status is None else (status.st_dev, status.st_ino)


def line_of_descent(pid: int | None = None) -> list[int]:
    """A process, by default this one, its parent, its parent's and so on, as far as /proc tells."""
    line = [os.getpid(), os.getppid()] if pid is None else [pid]
    while line[-1] > 1 and (fields := _stat_fields(line[-1])) is not None:
        line.append(int(fields[1]))
    return line


def is_alive(pid: int) -> bool:
    """Whether a process of this host and pid namespace lives, zombies not counted."""
    fields = _stat_fields(pid)
    if fields is not None:
        return fields[0] not in (b"Z", b"X")
    return _system.is_alive(pid)


def started_at(pid: int) -> float | None:
    """When a process started, in seconds since the epoch, where /proc tells."""
    fields = _stat_fields(pid)
    for line in () if fields is None else (_read("stat") or b"").splitlines():
        if fields is not None and line.startswith(b"btime "):
            return int(line.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None


def has_run_since(pid: int, since: float) -> bool:
    """Whether a process lives that was there at a time, in seconds since the epoch.

    Numbers are given again: one that was started later is another process.
    """
    if not is_alive(pid):
        return False
    start = started_at(pid)
    return start is None or start < since + CLOCK_GRACE


#: How far two clocks of this host may differ, in seconds: the kernel's boot time is rounded, and
#: clocks are set.
CLOCK_GRACE: Final = 2.0


def has_locked(pid: int | str, inode: Identity, descriptor: int | None = None) -> bool | None:
    """Whether a process has a descriptor that carries an flock on an inode.

    What /proc/locks says is not enough: it names a process that died, or became another
    program, and left its lock to a child; and on an overlay of several file systems, a file
    may have the device and inode there that stat(2) tells of a directory.

    Args:
        pid: the process, or ``self``.
        inode: device and inode, as stat(2) tells them.
        descriptor: the one descriptor to look at, instead of all.

    Returns:
        ``None`` where it cannot be seen: another user's process, or a system without /proc.
    """
    try:
        numbers = os.listdir(f"{PROC}/{pid}/fdinfo") if PROC else None
    except OSError:
        numbers = None
    if numbers is None:
        return None
    for number in numbers if descriptor is None else (str(descriptor),):
        if b"FLOCK" in (_read(f"{pid}/fdinfo/{number}") or b""):
            status = _stat(f"{pid}/fd/{number}")
            if status is not None and (status.st_dev, status.st_ino) == inode:
                return True
    return False


def flocked_paths(pid: int) -> dict[Identity, str]:
    """What a process has an flock on, by device and inode, as far as it can be seen."""
    found: dict[Identity, str] = {}
    try:
        for number in os.listdir(f"{PROC}/{pid}/fdinfo") if PROC else ():
            status = _stat(f"{pid}/fd/{number}")
            if status is not None and b"FLOCK" in (_read(f"{pid}/fdinfo/{number}") or b""):
                path = os.readlink(f"{PROC}/{pid}/fd/{number}")
                found[status.st_dev, status.st_ino] = path.removesuffix(" (deleted)")
    except OSError:
        pass  # it has ended, or is another user's
    return found


def _stat_fields(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third, the state, on (proc_pid_stat(5))."""
    text = _read(f"{pid}/stat")
    return None if text is None else text.rpartition(b")")[2].split()


def _read(name: str) -> bytes | None:
    """A file below /proc. As bytes: a codec that is not loaded needs a descriptor of its own."""
    if PROC:
        try:
            with open(f"{PROC}/{name}", "rb") as file:
                return file.read()
        except OSError:
            pass
    return None


def _stat(name: str) -> os.stat_result | None:
    try:
        return os.stat(f"{PROC}/{name}") if PROC else None
    except OSError:
        return None
