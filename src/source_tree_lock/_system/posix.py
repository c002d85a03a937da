"""Linux, macOS and other POSIX systems: flock(2), on files and on directories."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
from contextlib import suppress

#: Whether the kernel has a queue in which a caller can wait for a lock.
HAS_QUEUE = True
#: Whether a child process can inherit the descriptors that carry the locks.
CAN_HAND_DOWN = True
#: Whether a new lock file is linked into place, because its mode has to be right from the start.
LINKS = True
#: Where the record starts in a lock file, in bytes.
RECORD_START = 0
#: Where the kernel lists processes and locks. Systems without it have nothing there.
PROC = "/proc"
#: The command that ends a process, before its process id.
END_COMMAND = "kill"
#: Flags with which every file is opened. Opening a tape rewinds it and opening a terminal may
#: make it the controlling one: never block, never adopt, never follow a symbolic link.
SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
#: Flags with which a directory is opened to be locked; ``None`` where that is impossible.
DIRECTORY: int | None = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NONBLOCK

_CS_DARWIN_USER_TEMP_DIR = 65537  # <unistd.h> of macOS


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock if it is free, without waiting.

    Raises:
        OSError: the kernel refuses for another reason than that somebody holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int) -> None:
    """Wait in the kernel's queue for the exclusive lock.

    Raises:
        OSError: the kernel refuses.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def unlock(descriptor: int) -> None:
    """Release the lock, also for child processes that inherited the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def canonical_path(given: str, descriptor: int | None) -> str:
    """The path that realpath(3), and so Rust's ``canonicalize``, gives for an open directory.

    Raises:
        OSError: the path does not lead anywhere any more.
    """
    if sys.platform == "darwin":
        # There realpath(3) also gives each name the case that it has on disk.
        assert descriptor is not None
        return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return os.path.realpath(given, strict=True)


def temp_dir() -> str:
    """The directory that Rust's ``std::env::temp_dir`` gives, and so uv's: not ``tempfile``'s.

    It may be relative, and empty for the working directory.
    """
    directory = os.environ.get("TMPDIR")
    if directory is None and sys.platform == "darwin":
        with suppress(OSError, ValueError):
            directory = os.confstr(_CS_DARWIN_USER_TEMP_DIR) or None
    return "/tmp" if directory is None else directory


def let_everybody_lock(descriptor: int) -> None:
    """Give a new lock file mode 0666, whatever the umask, so that other users can lock it too."""
    os.fchmod(descriptor, 0o666)


def refuse_link(path: str) -> None:
    """Nothing to do: `SAFE` has O_NOFOLLOW."""


def others_may_delete(directory: os.stat_result) -> bool:
    """Whether other users may remove our files from a directory, because it is not sticky."""
    mode = directory.st_mode  # of a file, if that was mistaken for a directory
    return stat.S_ISDIR(mode) and mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """At most ``size`` bytes of a file from ``offset`` on."""
    return os.pread(descriptor, size, offset)


def write_at(descriptor: int, data: bytes, offset: int) -> int:
    """Write to a file at ``offset``; how many bytes were written."""
    return os.pwrite(descriptor, data, offset)


def host_name() -> str:
    """The name of this host."""
    return os.uname().nodename


def user_id() -> str:
    """What identifies the user of this process in a record; a number, which needs no look-up."""
    return str(os.geteuid())


def user_name(user: str) -> str:
    """The name of the user that `user_id` identifies."""
    import pwd  # needed only to show who holds a tree

    try:
        return pwd.getpwuid(int(user)).pw_name
    except (KeyError, ValueError, OverflowError):
        return f"uid {user}"


def is_alive(pid: int) -> bool:
    """Whether a process of this host and pid namespace exists; zombies do."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists, and belongs to another user
    return True


def block_signals() -> None:
    """Leave all signals to the other threads of this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
