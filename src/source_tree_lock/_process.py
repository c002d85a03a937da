"""The system and its processes: this one, the ones above it, and any other by its number.

Where there is no /proc, less is known; nothing here fails for that.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeGuard

#: Device and inode: what a path leads to, whatever it is called there.
Identity = tuple[int, int]

POSIX: Final = os.name == "posix"

#: PROC_PID_INIT_INO in the kernel's <linux/proc_ns.h>: no process is hidden from this namespace.
INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
_LONGEST_NAME: Final = 255


def is_name(value: object) -> TypeGuard[str]:
    """Whether something can be shown to people as a name."""
    # isprintable refuses control characters, and so what a terminal would obey.
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def host() -> str:
    """The name of this host."""
    name = os.uname().nodename if POSIX else os.environ.get("COMPUTERNAME", "")
    return name if is_name(name) else "unknown"


def boot_id() -> str:
    """What tells this boot of this kernel from all others, whatever the hosts are called."""
    if not POSIX:
        return ""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().decode("ascii", "replace").strip()
    except OSError:
        return ""  # no Linux, or no /proc


def pid_namespace() -> int:
    """Inode of this process's pid namespace; 0 on systems without."""
    if not POSIX:
        return 0
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


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
        name = os.path.basename(sys.executable or "python")
    return name if is_name(name) else "python"


def program_of(pid: int) -> str | None:
    """The name of the program that a process runs, where /proc tells."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().rstrip("\n")
    except OSError:
        return None
    return name if is_name(name) else None


def is_uv(pid: int) -> bool:
    """Whether a process runs uv's executable."""
    return program_of(pid) == "uv"


def working_directory_of(pid: int) -> Identity | None:
    """Device and inode of a process's working directory, where /proc tells."""
    try:
        status = os.stat(f"/proc/{pid}/cwd")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def line_of_descent() -> list[int]:
    """This process, its parent, its parent's and so on, as far as /proc tells."""
    line = [os.getpid(), os.getppid()]
    while line[-1] > 1 and (fields := _stat_fields(line[-1])) is not None:
        line.append(int(fields[1]))
    return line


def _stat_fields(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third, the state, on (proc_pid_stat(5))."""
    if not POSIX:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def is_alive(pid: int) -> bool:
    """Whether a process of this host and pid namespace lives, zombies not counted."""
    fields = _stat_fields(pid)
    if fields is not None:
        return fields[0] not in (b"Z", b"X")
    if not POSIX:
        return _windows_process_lives(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and another user's
    return True


def _windows_process_lives(pid: int) -> bool:
    import ctypes

    # A library object of our own: others may set the types of the shared one.
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(0x100000, False, pid)  # SYNCHRONIZE
    if not handle:
        # ERROR_ACCESS_DENIED: it lives, and is another user's.
        return bool(ctypes.get_last_error() == 5)  # type: ignore[attr-defined,unused-ignore]
    waited = kernel32.WaitForSingleObject(ctypes.c_void_p(handle), 0)
    kernel32.CloseHandle(ctypes.c_void_p(handle))
    return bool(waited == 0x102)  # WAIT_TIMEOUT: it has not ended


def has_run_since(pid: int, since: float) -> bool:
    """Whether a process lives that was there at a time, in seconds since the epoch.

    Numbers are given again: one that was started later is another process.
    """
    if not is_alive(pid):
        return False
    fields = _stat_fields(pid)
    boot = None if fields is None else _boot_time()
    if fields is None or boot is None:
        return True
    # Two seconds of grace: the kernel's boot time is rounded, and clocks are set.
    return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK") < since + 2


def _boot_time() -> float | None:
    try:
        with open("/proc/stat", "rb") as lines:
            return next(float(line.split()[1]) for line in lines if line.startswith(b"btime "))
    except (OSError, StopIteration):
        return None
