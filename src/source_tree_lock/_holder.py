"""Who holds a lock: the record that a holder leaves in the lock file, and the kernel's own list.

The record is a courtesy to people who wait. A reader trusts none of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from itertools import chain

from ._kernel import (
    NO_SUCH_LOCK,
    POSIX,
    READ_ONLY,
    KernelLock,
    leads_to,
    read_at_record,
    unavailable,
    write_at_record,
)
from ._mounts import is_local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeGuard

    from ._kernel import Identity

_LONGEST_RECORD = 4096
_LONGEST_NAME = 255
_LARGEST_PID = 2**31 - 1
_LATEST = 2**40
#: How often to look for a lock in a list of several pages. The kernel gives a page at a time, and
#: a lock that is released between two of them has the next one overlooked (seq_file). Of 2,000
#: single looks at a busy list, 4 to 88 overlooked a lock that was held.
_LOOKS = 10
_ONE_PAGE = 4096 - 256  # a shorter list was given at once
#: PROC_PID_INIT_INO in the kernel's <linux/proc_ns.h>.
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC


class Holder:
    """The process that holds a source tree.

    Attributes:
        pid: its process id, on its own host and in its own pid namespace.
        program: its name, without arguments; ``None`` when unknown.
        host: the name of its host; ``None`` when unknown.
        since: when it got the lock, in seconds since the epoch; ``None`` when unknown.
    """

    __slots__ = ("_is_foreign", "host", "pid", "program", "since")

    def __init__(
        self,
        pid: int,
        program: str | None = None,
        host: str | None = None,
        since: float | None = None,
        *,
        _is_foreign: bool = False,
    ) -> None:
        self.pid: int = pid
        self.program: str | None = program
        self.host: str | None = host
        self.since: float | None = since
        self._is_foreign = _is_foreign

    def __str__(self) -> str:
        text = f"pid {self.pid}"
        if self._is_foreign and self.host == host():
            text += " of another container or host"
        if self.program:
            text = f"{self.program} ({text})"
        if self.host is not None and self.host != host():
            text += f" on {self.host}"
        if self.since is not None:
            text += f" for {max(0.0, time.time() - self.since):.0f} s"
        return text

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names())
        return f"Holder({values})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Holder):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._names())

    def __hash__(self) -> int:
        return hash((self.pid, self.host, self.since))

    def is_ancestor(self) -> bool:
        """Whether this process descends from it."""
        return not self._is_foreign and self.pid in line_of_descent()[1:]

    def _names(self) -> tuple[str, ...]:
        return ("pid", "program", "host", "since")


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
        return self.is_from_here() and not _has_run_since(self.holder)


def new_record(token: str) -> bytes:
    """The line which says that this process holds the lock from now on."""
    # json.dumps would take longer than any other step of an entry: the constant part is made
    # once, and the rest needs no quoting.
    return b'{%s, "since": %.3f, "token": "%s"}\n' % (
        _own or _identity(),
        time.time(),
        token.encode(),
    )


def write_record(lock: KernelLock, record: bytes) -> None:
    """Put a record into a lock file.

    Raises:
        OSError: it could not be written, which keeps nobody from holding the lock.
    """
    write_at_record(lock.fileno(), record)


def blank_record(lock: KernelLock, record: bytes) -> None:
    """Overwrite a record with blank lines, which takes a tenth of the time of a truncation."""
    # Where that fails, a reader sees from its pid or from the kernel's list that it is stale.
    with suppress(OSError):
        write_at_record(lock.fileno(), b"\n" * len(record))


def read_record(path: str) -> Record | None:
    """The record in the lock file at ``path``, if there is a well-formed one."""
    lock = KernelLock(path)
    try:
        lock.open(READ_ONLY)
        data = read_at_record(lock.fileno(), _LONGEST_RECORD)
    except OSError:
        return None
    finally:
        lock.close()
    return _parse(data)


def _parse(data: bytes) -> Record | None:
    try:
        fields: dict[str, object] = json.loads(data)
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
    if not (_is_name(program) and _is_name(name) and _is_name(token)):
        return None
    boot = fields.get("boot", boot_id())
    is_foreign = (name, namespace, boot) != (host(), pid_namespace(), boot_id())
    return Record(Holder(pid, program, name, since, _is_foreign=is_foreign), token, namespace)


def _is_integer(value: object, least: int, most: int) -> TypeGuard[int]:
    # A bool is an int to isinstance.
    return type(value) is int and least <= value <= most


def _is_name(value: object) -> TypeGuard[str]:
    # isprintable refuses control characters, and so what a terminal would obey.
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


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
    named = [(pid, inode) for inode in inodes if (pid := kernel_holder(inode)) is not None]
    if not named and all(_names_all(device) for device, _ in inodes):
        return None
    if record is not None and record.is_from_here() and not record.is_stale():
        named.append((record.holder.pid, inodes[-1]))
    opened = () if lock_file is None else _that_opened(lock_file, inodes[-1])
    for pid, inode in chain(named, ((pid, inodes[-1]) for pid in opened)):
        if _has_locked(pid, inode):
            if record is not None and record.is_from_here() and record.holder.pid == pid:
                return record.holder
            return Holder(pid, _program_of(pid), host())
    return None if record is None or record.is_from_here() else record.holder


def _names_all(device: int) -> bool:
    """Whether the kernel's list names everybody who holds an flock on this device.

    It does on a local file system, and outside of pid namespaces, which hide holders.
    """
    return (
        pid_namespace() == _INITIAL_PID_NAMESPACE
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
    if not POSIX:
        return None  # there, /proc is a directory that any user may have made
    device, inode = identity
    wanted = b"%02x:%02x:%d" % (os.major(device), os.minor(device), inode)
    try:
        for _ in range(_LOOKS):
            # As bytes: a codec that is not loaded yet needs a descriptor, and may not get one.
            with open("/proc/locks", "rb") as file:
                text = file.read()
            for line in text.splitlines():
                fields = line.split()
                if fields[1] == b"FLOCK" and fields[5] == wanted and int(fields[4]) > 0:
                    return int(fields[4])
            if len(text) < _ONE_PAGE:
                break
    except OSError:
        pass  # no Linux, or no /proc
    return None


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


def _has_run_since(holder: Holder) -> bool:
    if not is_alive(holder.pid):
        return False
    fields = _stat_fields(holder.pid)
    boot = None if fields is None else _boot_time()
    if fields is None or boot is None or holder.since is None:
        return True
    # Two seconds of grace: the kernel's boot time is rounded, and clocks are set.
    return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK") < holder.since + 2


def _boot_time() -> float | None:
    try:
        with open("/proc/stat", "rb") as lines:
            return next(float(line.split()[1]) for line in lines if line.startswith(b"btime "))
    except (OSError, StopIteration):
        return None


def _program_of(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().rstrip("\n")
    except OSError:
        return None
    return name if _is_name(name) else None


def working_directory_of(pid: int) -> Identity | None:
    """Device and inode of a process's working directory, where /proc tells."""
    try:
        status = os.stat(f"/proc/{pid}/cwd")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_uv(pid: int) -> bool:
    """Whether a process runs uv's executable."""
    return _program_of(pid) == "uv"


def host() -> str:
    """The name of this host."""
    name = os.uname().nodename if POSIX else os.environ.get("COMPUTERNAME", "")
    return name if _is_name(name) else "unknown"


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
    path = (getattr(sys, "argv", None) or [""])[0]
    name = os.path.basename(path)
    if name == "__main__.py":  # python -m build
        name = os.path.basename(os.path.dirname(path))
    if not name or name.startswith("-"):
        name = os.path.basename(sys.executable or "python")
    return name if _is_name(name) else "python"


_own = b""


def _identity() -> bytes:
    global _own
    if not _own:
        fields = {
            "pid": os.getpid(),
            "host": host(),
            "boot": boot_id(),
            "program": program(),
            "pid_namespace": pid_namespace(),
        }
        _own = json.dumps(fields)[1:-1].encode("ascii")
    return _own


def _forget_in_child() -> None:
    global _own
    _own = b""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
