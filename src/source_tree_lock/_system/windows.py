"""Windows: ``LockFileEx`` on the lock file. It locks no directory, and has no queue to wait in."""

from __future__ import annotations

import _thread
import errno
import os

from ..errors import LockUnavailable
from .from_portalocker import import_lockers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from .from_portalocker import LockingCalls

# What each name means is said in `posix`.
HAS_QUEUE: Final = False
CAN_HAND_DOWN: Final = False
LINKS: Final = False
#: Nobody else can read what is locked: portalocker locks the bytes before this one, uv the whole
#: file.
RECORD_START: Final = 0x10000
PROC: Final = ""  # "/proc" would be a directory that any user may have made
SAFE: Final = getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)
DIRECTORY: Final[int | None] = None

_SYNCHRONIZE: Final = 0x100000
_ERROR_ACCESS_DENIED: Final = 5
_WAIT_TIMEOUT: Final = 0x102


def locking_calls() -> LockingCalls:
    """As in `posix`, but that there is no queue: nobody may wait."""
    lockers = import_lockers()
    locker, exceptions = lockers.MsvcrtLocker(), lockers.exceptions
    flags = lockers.LockFlags.EXCLUSIVE | lockers.LockFlags.NON_BLOCKING

    def try_lock(descriptor: int) -> bool:
        try:
            locker.lock(descriptor, flags)
        except exceptions.AlreadyLocked:
            return False
        except exceptions.LockException as error:
            cause = error.__cause__
            # Wine reports errno 0 where Windows reports EACCES for a lock that is held.
            if isinstance(cause, OSError) and cause.errno == 0:
                return False
            raise cause if isinstance(cause, OSError) else OSError(errno.EIO, str(error)) from error
        return True

    def wait(descriptor: int) -> None:
        raise NotImplementedError("Windows has no queue to wait in; callers poll")

    def unlock(descriptor: int) -> None:
        try:
            locker.unlock(descriptor)
        except exceptions.LockException as error:
            raise OSError(errno.EIO, str(error)) from error

    return try_lock, wait, unlock


def canonical_path(given: str, descriptor: int | None) -> str:
    """What Rust's ``canonicalize`` gives, without the verbatim prefix."""
    if not given:  # Windows takes it for the working directory
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if "\0" in given:  # an OSError from Python 3.13 on
        raise ValueError("embedded null character")
    return os.path.realpath(given, strict=True)


def temp_dir() -> str:
    """The directory that ``GetTempPath2`` names, and so Rust's ``std::env::temp_dir``."""
    import ctypes

    kernel32 = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    # GetTempPath2 came with Windows 10 20348; Rust falls back in the same way.
    get_temp_path = getattr(kernel32, "GetTempPath2W", None) or kernel32.GetTempPathW
    buffer = ctypes.create_unicode_buffer(32768)
    if not get_temp_path(len(buffer), buffer):
        raise LockUnavailable(errno.ENOENT, "Windows names no temporary directory", "%TMP%")
    return buffer.value


def let_everybody_lock(descriptor: int) -> None:
    """Nothing to do: there are no modes."""


def refuse_link(path: str) -> None:
    """Refuse a symbolic link. The race with its making is left: there is no O_NOFOLLOW here."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "is a symbolic link")


def strangers_may_delete(directory: os.stat_result) -> bool:
    """Never said: the mode tells nothing here."""
    return False


def read_at(descriptor: int, size: int) -> bytes:
    """At most ``size`` bytes of a record."""
    os.lseek(descriptor, RECORD_START, os.SEEK_SET)
    return os.read(descriptor, size)


def write_at(descriptor: int, data: bytes) -> int:
    """Write a record; how many bytes were written."""
    os.lseek(descriptor, RECORD_START, os.SEEK_SET)
    written = os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)  # portalocker locks from here on
    return written


def host_name() -> str:
    """The name of this host."""
    return os.environ.get("COMPUTERNAME", "")


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    import ctypes

    # A library object of our own: others may set the types of the shared one.
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(_SYNCHRONIZE, False, pid)
    if not handle:  # it may be there, and another user's
        return bool(ctypes.get_last_error() == _ERROR_ACCESS_DENIED)  # type: ignore[attr-defined,unused-ignore]
    waited = kernel32.WaitForSingleObject(ctypes.c_void_p(handle), 0)
    kernel32.CloseHandle(ctypes.c_void_p(handle))
    return bool(waited == _WAIT_TIMEOUT)


def start_thread(function: Callable[[], object]) -> None:
    """As in `posix`; Python runs signal handlers in the main thread."""
    _thread.start_new_thread(function, ())


def run_command(command: list[str], environ: dict[str, str], descriptors: list[int]) -> int:
    """As in `posix`. Ctrl-C reaches the command by itself: all of a console's processes get it."""
    import subprocess

    with subprocess.Popen(command, env=environ) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                pass
