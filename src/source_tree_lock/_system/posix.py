"""Linux, macOS and other POSIX systems: flock(2), on files and on directories."""

from __future__ import annotations

import _thread
import errno
import os
import stat
import sys
from contextlib import suppress

from .from_portalocker import import_lockers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from .from_portalocker import LockingCalls

#: Whether the kernel has a queue in which a caller can wait for a lock.
HAS_QUEUE: Final = True
#: Whether a child process can inherit the descriptors that carry the locks.
CAN_HAND_DOWN: Final = True
#: Whether a new lock file is linked into place, because its mode has to be right from the start.
LINKS: Final = True
#: Where the record starts in a lock file.
RECORD_START: Final = 0
#: Where the kernel lists processes and locks; systems without it have nothing there.
PROC: Final = "/proc"
#: How any file of ours is opened. A tape rewinds and a terminal may hang up when it is merely
#: opened: never wait, never adopt. A symbolic link is never followed.
SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
#: How a directory is opened to be locked; ``None`` where directories cannot be locked.
DIRECTORY: Final[int | None] = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NONBLOCK

_BUSY: Final = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
_CS_DARWIN_USER_TEMP_DIR: Final = 65537  # <unistd.h> of macOS


def locking_calls() -> LockingCalls:
    """Try a lock, wait for it, and unlock, each by descriptor.

    portalocker's ``flock`` locker is pinned: the process may have set ``portalocker.LOCKER`` to
    ``lockf``, whose locks are another kind.

    Raises:
        ImportError, OSError: portalocker cannot be imported.
    """
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN

    flock = import_lockers().FlockLocker().locker

    def try_lock(descriptor: int) -> bool:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    return try_lock, lambda fd: flock(fd, LOCK_EX), lambda fd: flock(fd, LOCK_UN)


def canonical_path(given: str, descriptor: int | None) -> str:
    """What realpath(3), and so Rust's ``canonicalize``, makes of the path of an open directory.

    Raises:
        OSError: the path leads nowhere by now.
    """
    if sys.platform == "darwin":
        # There realpath(3) also gives each name the case that it has on disk.
        import fcntl

        assert descriptor is not None
        return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    absolute = given
    if given[:1] != "/":
        directory = os.getcwd()
        if given == "." and directory[:1] == "/":
            return directory  # the kernel's own name of it
        absolute = f"{directory}/{given}"
    try:
        # Where the kernel's name of what is open is the given one, no symlink was followed. It is
        # not used where it differs: realpath(3) keeps the case that was given.
        if os.readlink(f"/proc/self/fd/{descriptor}") == absolute:
            return absolute
    except OSError:
        pass  # no /proc here
    return os.path.realpath(absolute, strict=True)


def temp_dir() -> str:
    """The directory that Rust's ``std::env::temp_dir`` gives, and so uv's: not ``tempfile``'s.

    It may be relative, and empty for the working directory.
    """
    directory = os.environ.get("TMPDIR")
    if directory is not None:
        return directory
    if sys.platform == "darwin":
        try:
            return os.confstr(_CS_DARWIN_USER_TEMP_DIR) or "/tmp"
        except (OSError, ValueError):
            pass
    return "/tmp"


def let_everybody_lock(descriptor: int) -> None:
    """Give a new lock file mode 0666, whatever the umask: another user may lock it too."""
    os.fchmod(descriptor, 0o666)


def refuse_link(path: str) -> None:
    """Nothing to do: `SAFE` has O_NOFOLLOW."""


def strangers_may_delete(directory: os.stat_result) -> bool:
    """Whether other users may remove files of ours from a directory: it is not sticky."""
    mode = directory.st_mode  # of a file, where somebody has mistaken one for a directory
    return stat.S_ISDIR(mode) and mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH


def read_at(descriptor: int, size: int) -> bytes:
    """At most ``size`` bytes of a record."""
    return os.pread(descriptor, size, RECORD_START)


def write_at(descriptor: int, data: bytes) -> int:
    """Write a record; how many bytes were written."""
    return os.pwrite(descriptor, data, RECORD_START)


def host_name() -> str:
    """The name of this host."""
    return os.uname().nodename


def is_alive(pid: int) -> bool:
    """Whether a process of this host and pid namespace is there; zombies are."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and another user's
    return True


def start_thread(function: Callable[[], object]) -> None:
    """Start a daemon thread that leaves the signals to other threads of the process.

    It is born with all of them blocked: a thread takes what comes before its first statement too,
    and the thread that a Ctrl-C is to interrupt would go on to wait.

    Raises:
        RuntimeError: no thread can be started.
    """
    import signal

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # One call of C: `threading.Thread.start` is Python code, in the midst of which a signal
        # handler may raise, and has made half a thread and an error of another kind of that.
        _thread.start_new_thread(function, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_command(command: list[str], environ: dict[str, str], descriptors: list[int]) -> int:
    r"""Run a command to its end, as the last thing that this process does.

    As with system(3), the keys of the terminal (Ctrl-C and Ctrl-\) are for the command, which gets
    them from the terminal too; SIGTERM and SIGHUP are passed on to it. All four stay blocked when
    it has ended: its status is not to be lost to a signal that came too late.

    Args:
        command: a program, by path or to be found on PATH, and its arguments.
        environ: its whole environment.
        descriptors: what it inherits besides those that are inheritable.

    Returns:
        Its exit status; ``-n`` if signal ``n`` ended it.

    Raises:
        OSError: it cannot be run.
    """
    import signal

    forwarded = {signal.SIGTERM, signal.SIGHUP}
    awaited = {*forwarded, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*awaited, signal.SIGINT, signal.SIGQUIT})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever ignores it, can wait for nobody
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    pid = _spawn(command, environ, before)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        number = signal.sigwait(awaited)
        if number in forwarded:
            # It is there, at least as a zombie; another user's, as with sudo, gets nothing.
            with suppress(PermissionError):
                os.kill(pid, number)


def _spawn(command: list[str], environ: dict[str, str], mask: set[int]) -> int:
    import signal

    if hasattr(os, "posix_spawnp"):
        # Python ignores these two, and its children would inherit that.
        ignored = [signal.SIGPIPE, signal.SIGXFSZ]
        return os.posix_spawnp(command[0], command, environ, setsigmask=mask, setsigdef=ignored)
    import subprocess  # PyPy

    # Not by preexec_fn, with which the child would run the hooks of a fork, and close our locks.
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        process = subprocess.Popen(command, env=environ, close_fds=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    process.returncode = 0  # nobody but the caller is to wait for it
    return process.pid
