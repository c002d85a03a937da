"""One fake of Windows and macOS, on Linux: what each has and lacks, as its documentation says.

The library, and portalocker with it, is imported anew, so that the very code of that system runs
behind `source_tree_lock._system`. `system/test_windows.py` is the real thing for Windows.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import importlib
import importlib.util
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

#: What the documentation of the module `os` has for Unix only, as far as the library uses it.
POSIX_ONLY = """
    O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK O_TMPFILE confstr fchmod geteuid getsid
    major makedev minor posix_spawnp pread pwrite register_at_fork sysconf tcgetpgrp uname
""".split()


#: `F_GETPATH` in macOS's <sys/fcntl.h>.
F_GETPATH = 50


class Msvcrt(ModuleType):
    """`msvcrt.locking`, made of locks that belong to a descriptor and to a range of bytes."""

    LK_UNLCK, LK_LOCK, LK_NBLCK, LK_RLCK, LK_NBRLCK = range(5)

    def __init__(self) -> None:
        super().__init__("msvcrt")
        #: What a mode fails with from now on.
        self.failures: dict[int, int] = {}
        self._writable: dict[int, int] = {}

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        assert mode in (self.LK_UNLCK, self.LK_NBLCK)
        if mode in self.failures:
            raise OSError(self.failures[mode], "as the test has it")
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        # Windows locks by a descriptor that may only read, too; here another has to serve.
        read_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if read_only and mode == self.LK_NBLCK:
            self._writable[descriptor] = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            lock = mode == self.LK_NBLCK
            lock_range(self._writable.get(descriptor, descriptor), start, size, lock=lock)
        except BlockingIOError:
            self._forget(descriptor)
            raise OSError(errno.EACCES, "Permission denied") from None
        if mode == self.LK_UNLCK:
            self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        if descriptor in self._writable:
            os.close(self._writable.pop(descriptor))


def lock_range(descriptor: int, start: int, size: int, *, lock: bool) -> None:
    kind = fcntl.F_WRLCK if lock else fcntl.F_UNLCK
    request = struct.pack("hhqqi", kind, os.SEEK_SET, start, size, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)


@contextmanager
def locked_like_uv(path: Path) -> Iterator[None]:
    """Somebody else has the whole file, as `LockFileEx` of uv.exe does."""
    with path.open("ab") as file:
        lock_range(file.fileno(), 0, 0, lock=True)
        yield


class Kernel32:
    """The functions of kernel32.dll that the library calls, by Microsoft's documentation.

    Attributes:
        temp_dir: what `GetTempPathW` gives; nothing if it is empty.
    """

    ERROR_ACCESS_DENIED, ERROR_INVALID_PARAMETER = 5, 87
    WAIT_OBJECT_0, WAIT_TIMEOUT = 0, 0x102
    SYNCHRONIZE = 0x100000

    def __init__(self, temp_dir: Path) -> None:
        self.running = {os.getpid()}
        self.ended: set[int] = set()
        self.of_others: set[int] = set()
        self.last_error = 0
        self.handles: set[int] = set()
        self.temp_dir = f"{temp_dir}/"

        def get_temp_path(size: int, buffer: Any) -> int:
            assert size > len(self.temp_dir)
            buffer.value = self.temp_dir
            return len(self.temp_dir)

        # Wider than the 32 bits that ctypes makes of a result when it is told no type.
        first_handle = 1 << 40

        def open_process(access: int, inherit: bool, pid: int) -> int | None:
            assert (access, inherit) == (self.SYNCHRONIZE, False)
            if pid in self.running | self.ended:
                handle = first_handle + pid
                self.handles.add(handle)
                return handle if open_process.restype is ctypes.c_void_p else handle & 0xFFFFFFFF  # type: ignore[attr-defined]
            others = pid in self.of_others
            self.last_error = self.ERROR_ACCESS_DENIED if others else self.ERROR_INVALID_PARAMETER
            return None

        def wait_for_single_object(handle: ctypes.c_void_p, milliseconds: int) -> int:
            assert handle.value in self.handles
            assert milliseconds == 0
            ended = handle.value - first_handle in self.ended
            return self.WAIT_OBJECT_0 if ended else self.WAIT_TIMEOUT

        def close_handle(handle: ctypes.c_void_p) -> int:
            self.handles.remove(handle.value or 0)
            return 1

        self.GetTempPathW = get_temp_path  # GetTempPath2W came later
        self.OpenProcess = open_process
        self.WaitForSingleObject = wait_for_single_object
        self.CloseHandle = close_handle


@contextmanager
def imported_anew() -> Iterator[None]:
    """What imports the library in here gets a new one, for a system that was patched before."""

    def ours() -> dict[str, ModuleType]:
        return {
            name: module
            for name, module in sys.modules.items()
            if name.partition(".")[0] == "source_tree_lock"
        }

    saved = ours()
    for name in saved:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(saved)


def portalocker_for_windows() -> ModuleType:
    spec = importlib.util.find_spec("portalocker.portalocker")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "name", "nt")
        spec.loader.exec_module(module)
    return module


def hide_proc(patch: pytest.MonkeyPatch) -> list[str]:
    """Hide /proc, as on systems that have none; what is looked for there from now on."""
    visits: list[str] = []

    def hide_from(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def hidden(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("/proc"):
                visits.append(os.fspath(path))
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            return real(path, *args, **kwargs)

        patch.setattr(owner, name, hidden)

    hide_from(builtins, "open")
    for name in ("link", "listdir", "lstat", "readlink", "stat"):
        hide_from(os, name)
    return visits


class Windows:
    """The library, as Windows imports it, and what it finds there."""

    def __init__(self, patch: pytest.MonkeyPatch, temp_dir: Path) -> None:
        self.msvcrt = Msvcrt()
        self.kernel32 = Kernel32(temp_dir)
        self.proc_visits = hide_proc(patch)
        patch.setitem(sys.modules, "msvcrt", self.msvcrt)  # portalocker 4.0 imports it late
        self.portalocker = portalocker_for_windows()
        # Where the package is there already, the library takes the lockers from it.
        package = ModuleType("portalocker")
        package.__dict__.update(portalocker=self.portalocker)
        patch.setitem(sys.modules, "portalocker", package)
        patch.setitem(sys.modules, "portalocker.portalocker", self.portalocker)
        patch.setattr(ctypes, "windll", SimpleNamespace(kernel32=self.kernel32), raising=False)
        patch.setattr(ctypes, "WinDLL", self._win_dll, raising=False)
        patch.setattr(ctypes, "get_last_error", lambda: self.kernel32.last_error, raising=False)
        patch.setenv("COMPUTERNAME", "DESKTOP-1")
        for name in POSIX_ONLY:
            patch.delattr(os, name, raising=False)
        with pytest.MonkeyPatch.context() as importing:
            # pytest's own finder makes paths, which here would be those of another system.
            finders = [each for each in sys.meta_path if "pytest" not in type(each).__module__]
            importing.setattr(sys, "meta_path", finders)
            importing.setattr(os, "name", "nt")
            self.library = importlib.import_module("source_tree_lock")
            importlib.import_module("source_tree_lock._public_names")  # all of it, here and now

    @property
    def system(self) -> Any:
        """The room of the library that knows the system."""
        return self.library._system

    def _win_dll(self, name: str, *, use_last_error: bool) -> Kernel32:
        assert (name, use_last_error) == ("kernel32", True)
        return self.kernel32

    def lock(self, *args: Any, **options: Any) -> Any:
        return self.library.source_tree_lock(*args, **options)


class MacOS:
    """The library, as macOS imports it, and what it finds there."""

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
        patch.delattr(signal, "sigwaitinfo")
        # What is registered stays, and this library is gone when the test ends.
        patch.setattr(os, "register_at_fork", lambda **_: None)
        self.proc_visits = hide_proc(patch)
        self.library = importlib.import_module("source_tree_lock")
        importlib.import_module("source_tree_lock._public_names")  # all of it, here and now

    def lock(self, *args: Any, **options: Any) -> Any:
        return self.library.source_tree_lock(*args, **options)
