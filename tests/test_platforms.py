"""What other systems do differently, simulated on Linux as their documentation has it.

The library, and portalocker with it, is imported anew with what the system has and lacks, so
that the very code of that system runs. `test_windows.py` is the real thing for Windows.
"""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import errno
import fcntl
import importlib
import importlib.util
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import LIMIT, is_free, stop_for_good

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="simulates other systems where /proc and OFD locks are"
)

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
    """The functions of kernel32.dll that the library calls, by Microsoft's documentation."""

    ERROR_ACCESS_DENIED, ERROR_INVALID_PARAMETER = 5, 87
    WAIT_OBJECT_0, WAIT_TIMEOUT = 0, 0x102
    SYNCHRONIZE = 0x100000

    def __init__(self, temp_dir: Path) -> None:
        self.running = {os.getpid()}
        self.ended: set[int] = set()
        self.of_others: set[int] = set()
        self.last_error = 0
        self.handles: set[int] = set()

        def get_temp_path(size: int, buffer: Any) -> int:
            buffer.value = f"{temp_dir}/"
            return len(buffer.value)

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

        self.GetTempPathW = get_temp_path
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


# Windows: no flock, no lock on a directory, no queue to wait in, no fork


class Windows:
    """The library, as Windows imports it, and what it finds there."""

    def __init__(self, patch: pytest.MonkeyPatch, temp_dir: Path) -> None:
        self.msvcrt = Msvcrt()
        self.kernel32 = Kernel32(temp_dir)
        self.proc_visits = hide_proc(patch)
        patch.setitem(sys.modules, "msvcrt", self.msvcrt)  # portalocker 4.0 imports it late
        patch.setitem(sys.modules, "portalocker.portalocker", portalocker_for_windows())
        patch.setattr(ctypes, "windll", SimpleNamespace(kernel32=self.kernel32), raising=False)
        patch.setattr(ctypes, "WinDLL", self._win_dll, raising=False)
        patch.setattr(ctypes, "get_last_error", lambda: self.kernel32.last_error, raising=False)
        patch.setenv("COMPUTERNAME", "DESKTOP-1")
        for name in POSIX_ONLY:
            patch.delattr(os, name, raising=False)
        with pytest.MonkeyPatch.context() as importing:
            importing.setattr(os, "name", "nt")
            self.library = importlib.import_module("source_tree_lock")

    def _win_dll(self, name: str, *, use_last_error: bool) -> Kernel32:
        assert (name, use_last_error) == ("kernel32", True)
        return self.kernel32

    def lock(self, *args: Any, **options: Any) -> Any:
        return self.library.source_tree_lock(*args, **options)


@pytest.fixture
def windows(temp_dir: Path, no_leaks: object) -> Iterator[Windows]:
    with imported_anew(), pytest.MonkeyPatch.context() as patch:
        system = Windows(patch, temp_dir)
        yield system
        assert system.proc_visits == [], "on Windows, /proc is any user's directory"
        assert system.kernel32.handles == set()


def is_locked(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            lock_range(file.fileno(), 0, 0, lock=True)
        except BlockingIOError:
            return True
    return False


def test_windows_locks_the_bytes_before_the_record(windows: Windows, tree: Path) -> None:
    with windows.lock(tree) as lock:
        assert is_locked(lock.lock_file)
        with lock.lock_file.open("ab") as file:
            lock_range(file.fileno(), 0x10000, 0, lock=True)  # nobody has these
        assert lock.lock_file.read_bytes()[:0x10000].strip(b"\0") == b""
        assert lock.holder().pid == os.getpid()
        assert lock.holder().host == "DESKTOP-1"
    assert not is_locked(lock.lock_file)
    assert lock.holder() is None


def test_windows_locks_no_directory(windows: Windows, tree: Path) -> None:
    with windows.lock(tree) as lock:
        assert is_free(tree)
        assert lock._is_held()
    assert not lock._is_held()


def test_windows_polls_until_the_file_is_free(windows: Windows, tree: Path) -> None:
    other = locked_like_uv(windows.lock(tree).lock_file)
    other.__enter__()
    told = []

    def let_go(holder: object) -> None:
        told.append(holder)
        other.__exit__(None, None, None)

    with windows.lock(tree, on_wait=let_go):
        assert told == [None]  # uv leaves no record


def test_windows_gives_up_when_the_time_is_up(windows: Windows, tree: Path) -> None:
    lock = windows.lock(tree, timeout=0.02)
    with locked_like_uv(lock.lock_file):
        with pytest.raises(windows.library.LockTimeout, match="unknown process"):
            lock.__enter__()
        assert not lock.acquire(blocking=False)
    with lock:
        assert lock.locked()


def test_windows_lets_other_tasks_run_while_one_waits(windows: Windows, tree: Path) -> None:
    async def main() -> None:
        waits = asyncio.Event()
        lock = windows.lock(tree, on_wait=lambda _: waits.set())

        async def enter() -> bool:
            async with lock:
                return bool(lock.locked())

        with locked_like_uv(lock.lock_file):
            task = asyncio.create_task(enter())
            await asyncio.wait_for(waits.wait(), LIMIT)
            assert not task.done()
        assert await asyncio.wait_for(task, LIMIT)

    asyncio.run(main())


def test_windows_keeps_threads_apart_that_name_different_lock_files(
    windows: Windows, tree: Path, tmp_path: Path
) -> None:
    answers = []
    other = windows.lock(tree, lock_dir=tmp_path / "locks")

    def enter() -> None:
        answers.append(other.acquire(timeout=0.02))

    with windows.lock(tree):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(LIMIT)
    assert answers == [False]


def test_windows_hands_over_a_token_and_no_descriptors(
    windows: Windows, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handed_over_by(lock: Any) -> Any:
        monkeypatch.setenv("SOURCE_TREE_LOCK_HELD", lock.environ["SOURCE_TREE_LOCK_HELD"])
        (handover,) = windows.library._handover.handed_down()
        monkeypatch.delenv("SOURCE_TREE_LOCK_HELD")
        return handover

    with windows.lock(tree) as lock:
        first = handed_over_by(lock)
        assert first.descriptors == []
        assert first.is_good()
    assert not first.is_good()
    with windows.lock(tree) as lock:
        assert not first.is_good()
        second = handed_over_by(lock)
        assert second.is_good()
        windows.kernel32.running.clear()
        windows.kernel32.ended.add(os.getpid())
        assert not second.is_good()


def test_windows_cuts_off_what_a_longer_record_left(windows: Windows, tree: Path) -> None:
    lock = windows.lock(tree)
    lock.lock_file.write_bytes(bytes(0x10000) + b"x" * 1000)
    with lock:
        assert lock.holder().pid == os.getpid()


def test_windows_needs_no_room_for_the_record(
    windows: Windows, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: 1)
        lock = windows.lock(tree)
        with lock:
            assert is_locked(lock.lock_file)
            with pytest.raises(windows.library.LockUnavailable, match="handed over") as caught:
                _ = lock.environ
            assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("number", [errno.EACCES, 36, 0])
def test_windows_and_wine_say_in_these_words_that_a_file_is_locked(
    windows: Windows, tree: Path, number: int
) -> None:
    # 36 is EDEADLOCK in Microsoft's <errno.h>; Wine 8 leaves errno at 0.
    windows.msvcrt.failures[Msvcrt.LK_NBLCK] = number
    assert not windows.lock(tree).acquire(blocking=False)


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.EIO])
def test_windows_lets_nobody_in_when_locking_fails(
    windows: Windows, tree: Path, number: int
) -> None:
    windows.msvcrt.failures[Msvcrt.LK_NBLCK] = number
    lock = windows.lock(tree)
    with pytest.raises(windows.library.LockUnavailable) as caught:
        lock.__enter__()
    assert caught.value.errno == number
    assert caught.value.filename == str(lock.lock_file)
    assert not lock.locked()


def test_windows_lets_nobody_in_when_portalocker_gives_no_reason(
    windows: Windows, tree: Path
) -> None:
    from portalocker.exceptions import LockException

    def fail(*_: object) -> None:
        raise LockException("no reason")

    locker: Any = sys.modules["portalocker.portalocker"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locker.MsvcrtLocker, "lock", fail)
        with pytest.raises(windows.library.LockUnavailable, match="no reason") as caught:
            windows.lock(tree).__enter__()
    assert caught.value.errno == errno.EIO


def test_windows_closes_the_file_when_unlocking_fails(windows: Windows, tree: Path) -> None:
    # Closing a file unlocks it as well; the fixture sees to it that none stays open.
    windows.msvcrt.failures[Msvcrt.LK_UNLCK] = errno.EIO
    with windows.lock(tree) as lock:
        assert is_locked(lock.lock_file)
    assert not is_locked(lock.lock_file)


def test_windows_never_blocks_in_the_system(windows: Windows, tree: Path) -> None:
    file = windows.library._lock_file.open_lock_file(str(tree / "lock"), make_directory=False)
    with pytest.raises(NotImplementedError):
        file.lock()
    file.close()


def test_windows_follows_no_symbolic_link(windows: Windows, tree: Path, tmp_path: Path) -> None:
    lock = windows.lock(tree)
    target = tmp_path / "private"
    target.write_text("private")
    lock.lock_file.symlink_to(target)
    with pytest.raises(windows.library.LockUnavailable, match="symbolic link") as caught:
        lock.__enter__()
    assert caught.value.errno == errno.ELOOP
    assert target.read_text() == "private"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", FileNotFoundError),
        ("missing", FileNotFoundError),
        ("file", NotADirectoryError),
        ("a\0b", ValueError),
    ],
)
def test_windows_refuses_what_is_no_tree(
    windows: Windows,
    tmp_path: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: type[Exception],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        windows.lock(path).__enter__()
    assert list(temp_dir.iterdir()) == []


def test_windows_tells_whether_a_process_lives(windows: Windows) -> None:
    kernel32, is_alive = windows.kernel32, windows.library._process.is_alive
    kernel32.running.add(11)
    kernel32.ended.add(12)
    kernel32.of_others.add(13)
    assert [is_alive(pid) for pid in (11, 12, 13, 14)] == [True, False, True, False]


def test_windows_takes_the_record_of_a_dead_process_for_stale(windows: Windows, tree: Path) -> None:
    lock = windows.lock(tree)
    with lock:
        left_behind = lock.lock_file.read_bytes()
    lock.lock_file.write_bytes(left_behind[:0x10000])
    with lock:
        left_behind = lock.lock_file.read_bytes()
    lock.lock_file.write_bytes(left_behind)
    assert lock.holder().pid == os.getpid()
    windows.kernel32.running.clear()
    assert lock.holder() is None


def test_windows_refuses_a_nul_byte_before_python_calls_it_an_error_of_the_system(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def realpath(path: str, *, strict: bool) -> str:
        raise OSError("embedded null character")  # ntpath.realpath from Python 3.13 on

    monkeypatch.setattr(os.path, "realpath", realpath)
    with pytest.raises(ValueError, match="null character"):
        windows.lock("a\0b").__enter__()


@pytest.mark.parametrize("name", ["", "line\nbreak"])
def test_windows_without_a_usable_name_is_an_unknown_host(
    windows: Windows, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COMPUTERNAME", name)
    assert windows.library._process.host() == "unknown"


def test_windows_has_no_parents_to_name_but_one(windows: Windows) -> None:
    assert windows.library._process.line_of_descent() == [os.getpid(), os.getppid()]


def test_a_command_on_windows_gets_ctrl_c_by_itself(
    windows: Windows, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    real = subprocess.Popen.wait

    def wait(process: Any, timeout: float | None = None) -> int:
        waits.append(timeout)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return real(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    main = importlib.import_module("source_tree_lock.__main__").main
    script = "import os, sys; sys.exit(7 if os.environ['SOURCE_TREE_LOCK_HELD'] else 8)"
    monkeypatch.setattr(sys, "argv", [*sys.argv])  # it names the command as the program
    assert main(["run", str(tree), "--", sys.executable, "-c", script]) == 7
    assert len(waits) > 1


# macOS: no /proc, no nameless files, and fcntl(2) tells the canonical path of what is open


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
        patch.delattr(os, "O_TMPFILE")
        # What is registered stays, and this library is gone when the test ends.
        patch.setattr(os, "register_at_fork", lambda **_: None)
        self.proc_visits = hide_proc(patch)
        self.library = importlib.import_module("source_tree_lock")

    def lock(self, *args: Any, **options: Any) -> Any:
        return self.library.source_tree_lock(*args, **options)


@pytest.fixture
def macos(temp_dir: Path, no_leaks: object) -> Iterator[MacOS]:
    with imported_anew(), pytest.MonkeyPatch.context() as patch:
        yield MacOS(patch)


def test_macos_locks_the_tree_and_the_file(macos: MacOS, tree: Path) -> None:
    with macos.lock(tree) as lock:
        assert not is_free(tree)
        assert not is_free(lock.lock_file)
        assert lock.tree == tree
        assert lock._is_held()
    assert is_free(tree)
    assert is_free(lock.lock_file)
    assert not lock._is_held()


def test_macos_makes_the_lock_file_under_another_name_first(
    macos: MacOS, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = macos.lock(tree)
    modes = {}
    real = os.link

    def link(source: str, target: str, **options: Any) -> None:
        modes[target] = os.stat(source).st_mode & 0o777
        real(source, target, **options)

    mask = os.umask(0o077)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            with lock:
                assert modes == {str(lock.lock_file): 0o666}
    finally:
        os.umask(mask)
    assert [each.name for each in lock.lock_file.parent.iterdir()] == [lock.lock_file.name]


def test_macos_names_the_holder_by_its_record(macos: MacOS, tree: Path) -> None:
    errors = []

    def enter() -> None:
        try:
            macos.lock(tree, timeout=0.02).__enter__()
        except macos.library.LockTimeout as error:
            errors.append(error)

    with macos.lock(tree):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(LIMIT)
    assert [error.holder.pid for error in errors] == [os.getpid()]


def test_macos_believes_a_token_while_its_writer_lives(
    macos: MacOS, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handover = macos.library._handover
    with macos.lock(tree) as lock:
        monkeypatch.setenv("SOURCE_TREE_LOCK_HELD", lock.environ["SOURCE_TREE_LOCK_HELD"])
        (entry,) = handover.handed_down()
        assert entry.is_good()
        with monkeypatch.context() as patch:
            patch.setattr(macos.library._process, "is_alive", lambda pid: False)
            assert not entry.is_good()
    assert not entry.is_good()


@pytest.mark.parametrize(
    ("answer", "lives"),
    [(None, True), (PermissionError(errno.EPERM, ""), True), (ProcessLookupError(), False)],
)
def test_macos_asks_kill_whether_a_process_lives(
    macos: MacOS, monkeypatch: pytest.MonkeyPatch, answer: OSError | None, *, lives: bool
) -> None:
    asked = []

    def kill(pid: int, number: int) -> None:
        asked.append((pid, number))
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "kill", kill)
    assert macos.library._process.is_alive(4711) is lives
    assert asked == [(4711, 0)]


def test_macos_has_no_list_of_mounts_to_warn_by(
    macos: MacOS, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with macos.lock(tree):
        pass
    assert "/proc/self/mountinfo" in macos.proc_visits
    assert caplog.records == []


#: `source-tree-lock run` as on macOS, where nothing tells who sent a signal. Arguments: its own.
RUN_ON_MACOS = """
    import os, sys
    import source_tree_lock.__main__ as command_line

    def kill(pid, number, kill=os.kill):
        print("forwarded", int(number), flush=True)
        kill(pid, number)

    class MacOS:
        platform = "darwin"

        def __getattr__(self, name):
            return getattr(sys, name)

    os.kill = kill
    command_line.sys = MacOS()
    raise SystemExit(command_line.main(["run", *sys.argv[1:]]))
"""

#: Tells of SIGINT, and ends with 7 at SIGTERM.
TELL_SIGNALS = """
    import os, signal, sys, time
    # Not by print(): this one may still be in it when the signal comes.
    signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print("ready", flush=True)
    for _ in range(6000):
        time.sleep(0.01)
"""


@contextmanager
def running_on_macos(tree: Path, terminal: int | None) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", textwrap.dedent(RUN_ON_MACOS), str(tree), "--"]
    command += [sys.executable, "-c", textwrap.dedent(TELL_SIGNALS)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that select(2) sees what has not been read
        start_new_session=True,
        preexec_fn=None if terminal is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        yield process
    finally:
        stop_for_good(process)
        assert process.stdout is not None
        process.stdout.close()


def expect(process: subprocess.Popen[bytes], words: bytes) -> None:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], LIMIT)[0], f"no {words!r} for {LIMIT} s"
    assert process.stdout.readline() == words + b"\n"


def test_ctrl_c_at_a_terminal_reaches_a_command_on_macos_once(tree: Path) -> None:
    master, terminal = os.openpty()
    try:
        with running_on_macos(tree, terminal) as process:
            expect(process, b"ready")
            os.write(master, b"\x03")  # Ctrl-C: the terminal interrupts the whole job
            expect(process, b"interrupted")
            process.send_signal(signal.SIGTERM)
            expect(process, b"forwarded 15")
            assert process.wait(LIMIT) == 7
    finally:
        os.close(master)
        os.close(terminal)


def test_a_kill_reaches_a_command_on_macos_that_has_no_terminal(tree: Path) -> None:
    with running_on_macos(tree, None) as process:
        expect(process, b"ready")
        process.send_signal(signal.SIGINT)
        expect(process, b"forwarded 2")
        expect(process, b"interrupted")
        process.send_signal(signal.SIGTERM)
        expect(process, b"forwarded 15")
        assert process.wait(LIMIT) == 7
