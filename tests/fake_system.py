"""One fake of Windows and macOS, on Linux: what each has and lacks, as its documentation says.

The library is imported anew, so that the very code of that system runs behind
`source_tree_lock._system`. `system/test_windows.py` is the real thing for Windows.
"""

from __future__ import annotations

import builtins
import ctypes
import enum
import errno
import fcntl
import importlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

#: What the documentation of the module `os` has for Unix only, as far as the library uses it.
POSIX_ONLY = """
    O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK confstr fchmod geteuid getsid major makedev
    minor posix_spawnp pread pwrite register_at_fork sysconf tcgetpgrp uname
""".split()

#: `F_GETPATH` in macOS's <sys/fcntl.h>.
F_GETPATH = 50


class Portalocker(ModuleType):
    """portalocker on Windows: locks of a descriptor on 64 KiB from its position on."""

    class LockFlags(enum.IntFlag):
        EXCLUSIVE = 1
        NON_BLOCKING = 4

    class LockException(Exception):
        pass

    class AlreadyLocked(LockException):
        pass

    lock_error: Exception | None = None  # what `lock` fails with from now on
    unlock_error: Exception | None = None

    def lock(self, descriptor: int, flags: int) -> None:
        assert flags == self.LockFlags.EXCLUSIVE | self.LockFlags.NON_BLOCKING
        self._lock(descriptor, fcntl.F_WRLCK, self.lock_error)

    def unlock(self, descriptor: int) -> None:
        self._lock(descriptor, fcntl.F_UNLCK, self.unlock_error)

    def _lock(self, descriptor: int, kind: int, error: Exception | None) -> None:
        if error is not None:
            raise self.LockException("as the test has it") from error
        try:
            lock_range(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR), 0x10000, kind)
        except BlockingIOError as error:
            raise self.AlreadyLocked("somebody has it") from error


def lock_range(descriptor: int, start: int, size: int, kind: int = fcntl.F_WRLCK) -> None:
    """A lock that belongs to the descriptor, as on Windows, and not to the process."""
    request = struct.pack("hhqqi", kind, os.SEEK_SET, start, size, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)


@contextmanager
def locked_like_uv(path: Path) -> Iterator[None]:
    """Somebody else has the whole file, as `LockFileEx` of uv.exe does."""
    with path.open("ab") as file:
        lock_range(file.fileno(), 0, 0)
        yield


class Kernel32:
    """The functions of kernel32.dll that the library calls, by Microsoft's documentation."""

    def __init__(self, temp_dir: Path) -> None:
        self.temp_dir = f"{temp_dir}/"  # empty: there is none
        self.running = {os.getpid()}
        self.ended: set[int] = set()
        self.of_others: set[int] = set()  # they exist, and cannot be opened
        self.last_error = 0
        self.handles: set[int] = set()
        # Wider than the 32 bits that ctypes makes of a result when it is told no type.
        first_handle = 1 << 40

        def get_temp_path(size: int, buffer: Any) -> int:
            assert size > len(self.temp_dir)
            buffer.value = self.temp_dir
            return len(self.temp_dir)

        def open_process(access: int, inherit: bool, pid: int) -> int | None:
            assert (access, inherit) == (0x100000, False)  # SYNCHRONIZE
            if pid in self.running | self.ended:
                handle = first_handle + pid
                self.handles.add(handle)
                is_whole = self.OpenProcess.restype is ctypes.c_void_p
                return handle if is_whole else handle & 0xFFFFFFFF
            # ERROR_ACCESS_DENIED, ERROR_INVALID_PARAMETER
            self.last_error = 5 if pid in self.of_others else 87
            return None

        def wait_for_single_object(handle: ctypes.c_void_p, milliseconds: int) -> int:
            assert handle.value in self.handles
            assert milliseconds == 0
            # WAIT_OBJECT_0, WAIT_TIMEOUT
            return 0 if handle.value - first_handle in self.ended else 0x102

        self.GetTempPathW = get_temp_path  # GetTempPath2W came later
        self.OpenProcess: Any = open_process
        self.WaitForSingleObject = wait_for_single_object
        self.CloseHandle = lambda handle: self.handles.remove(handle.value)


def forget_library() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == "source_tree_lock"]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def imported_anew() -> Iterator[None]:
    """What imports the library in here gets a new one, for a system that was patched before."""
    saved = forget_library()
    try:
        yield
    finally:
        forget_library()
        sys.modules.update(saved)


def hide_proc(patch: pytest.MonkeyPatch) -> list[str]:
    """Hide /proc, as on systems that have none; what is looked for there from now on."""
    visits: list[str] = []

    def hidden(real: Callable[..., Any], path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith("/proc"):
            visits.append(str(path))
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return real(path, *args, **kwargs)

    patch.setattr(builtins, "open", partial(hidden, open))
    for name in ("link", "listdir", "lstat", "readlink", "stat"):
        patch.setattr(os, name, partial(hidden, getattr(os, name)))
    return visits


class System:
    """The library, as another system imports it, and what it finds there."""

    library: Any
    proc_visits: list[str]

    def import_library(self) -> None:
        self.library = self.module("")
        self.module("._lock")

    def lock(self, *args: Any, **options: Any) -> Any:
        return self.library.source_tree_lock(*args, **options)

    def module(self, name: str) -> Any:
        return importlib.import_module(f"source_tree_lock{name}")


class Windows(System):
    """The library on Windows."""

    def __init__(self, patch: pytest.MonkeyPatch, temp_dir: Path) -> None:
        self.portalocker = Portalocker("portalocker")
        self.kernel32 = Kernel32(temp_dir)
        self.proc_visits = hide_proc(patch)
        patch.setitem(sys.modules, "portalocker", self.portalocker)
        patch.setattr(ctypes, "windll", SimpleNamespace(kernel32=self.kernel32), raising=False)
        patch.setattr(ctypes, "WinDLL", self.win_dll, raising=False)
        patch.setattr(ctypes, "get_last_error", lambda: self.kernel32.last_error, raising=False)
        patch.setenv("COMPUTERNAME", "DESKTOP-1")
        for name in POSIX_ONLY:
            patch.delattr(os, name, raising=False)
        with pytest.MonkeyPatch.context() as importing:
            # pytest's own finder makes paths, which here would be those of another system.
            finders = [each for each in sys.meta_path if "pytest" not in type(each).__module__]
            importing.setattr(sys, "meta_path", finders)
            importing.setattr(os, "name", "nt")
            self.import_library()

    def win_dll(self, name: str, *, use_last_error: bool) -> Kernel32:
        assert (name, use_last_error) == ("kernel32", True)
        return self.kernel32


class MacOS(System):
    """The library on macOS."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        readlink, real_fcntl = os.readlink, fcntl.fcntl

        def with_getpath(descriptor: int, request: int, argument: Any = 0) -> Any:
            if request != F_GETPATH:
                return real_fcntl(descriptor, request, argument)
            # Of MAXPATHLEN, 1024 bytes, those behind the path are zero.
            return os.fsencode(readlink(f"/proc/self/fd/{descriptor}")).ljust(len(argument), b"\0")

        patch.setattr(fcntl, "fcntl", with_getpath)
        patch.setattr(fcntl, "F_GETPATH", F_GETPATH, raising=False)
        patch.setattr(sys, "platform", "darwin")
        # What is registered stays, and this library is gone when the test ends.
        patch.setattr(os, "register_at_fork", lambda **_: None)
        self.proc_visits = hide_proc(patch)
        self.import_library()
