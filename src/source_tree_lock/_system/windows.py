"""Windows: ``LockFileEx`` on the lock file. It locks no directory, and has no queue to wait in."""

from __future__ import annotations

import errno
import os

import portalocker

# What each name means is said in `posix`.
HAS_QUEUE = False
CAN_HAND_DOWN = False
LINKS = False
#: Bytes that are locked cannot be read by others: portalocker locks the bytes before this one, uv
#: locks the whole file.
RECORD_START = 0x10000
PROC = "?:"  # leads nowhere, while "/proc" would be a directory that any user may have made
END_COMMAND = "taskkill /F /T /PID"  # /F: not only windows; /T: its children too, which go on else
SAFE = getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)
DIRECTORY: int | None = None

_SYNCHRONIZE = 0x100000
_ERROR_ACCESS_DENIED = 5
_WAIT_TIMEOUT = 0x102
_EXCLUSIVE = portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING


def try_lock(descriptor: int) -> bool:
    """As in `posix`."""
    # Wine leaves errno as it was for a lock that is held, where Windows sets it to EACCES. A read
    # clears it, so that it is not that of an earlier call.
    os.read(descriptor, 0)
    try:
        portalocker.lock(descriptor, _EXCLUSIVE)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == 0:
            return False
        raise cause if isinstance(cause, OSError) else OSError(errno.EIO, str(error)) from error
    return True


def lock(descriptor: int) -> None:
    """Never called: callers poll where `HAS_QUEUE` is false."""
    raise NotImplementedError("Windows has no queue to wait in")


def unlock(descriptor: int) -> None:
    """As in `posix`."""
    try:
        portalocker.unlock(descriptor)
    except portalocker.LockException as error:
        raise OSError(errno.EIO, str(error)) from error


def canonical_path(given: str, descriptor: int | None) -> str:
    """The path that Rust's ``canonicalize`` gives, without the verbatim prefix."""
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
        raise OSError(errno.ENOENT, "Windows names no temporary directory", "%TMP%")
    return buffer.value


def let_everybody_lock(descriptor: int) -> None:
    """Nothing to do: there are no modes."""


def refuse_link(path: str) -> None:
    """Refuse a symbolic link. There is no O_NOFOLLOW, so that one made just now is followed."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "is a symbolic link")


def others_may_delete(directory: os.stat_result) -> bool:
    """Unknown: the mode says nothing here."""
    return False


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """As in `posix`."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def write_at(descriptor: int, data: bytes, offset: int) -> int:
    """As in `posix`."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    written = os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)  # portalocker locks from here on
    return written


def host_name() -> str:
    """The name of this host."""
    return os.environ.get("COMPUTERNAME", "")


def user_id() -> str:
    """The name of the user of this process."""
    return os.environ.get("USERNAME", "")


def user_name(user: str) -> str:
    """The name itself."""
    return user


def is_alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    import ctypes

    # A library object of our own: other code may set the types of the shared one.
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(_SYNCHRONIZE, False, pid)
    if not handle:  # it may exist, and belong to another user
        return bool(ctypes.get_last_error() == _ERROR_ACCESS_DENIED)  # type: ignore[attr-defined,unused-ignore]
    waited = kernel32.WaitForSingleObject(ctypes.c_void_p(handle), 0)
    kernel32.CloseHandle(ctypes.c_void_p(handle))
    return bool(waited == _WAIT_TIMEOUT)


def block_signals() -> None:
    """Nothing to do: Python runs signal handlers in the main thread."""
