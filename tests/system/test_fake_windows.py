"""What Windows does differently, on a fake of it (`fake_system`)."""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the fake needs /proc and OFD locks", allow_module_level=True)

from fake_system import Msvcrt, Windows, imported_anew, lock_range, locked_like_uv
from support import LIMIT, is_free


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
        assert lock.is_held()
    assert not lock.is_held()


def test_windows_polls_until_the_file_is_free(windows: Windows, tree: Path) -> None:
    other = locked_like_uv(windows.lock(tree).lock_file)
    other.__enter__()
    told = []

    def let_go(wait: Any) -> None:
        told.append(wait.holder)
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
        (handover,) = importlib.import_module("source_tree_lock._handover").handed_down()
        monkeypatch.delenv("SOURCE_TREE_LOCK_HELD")
        return handover

    opened = windows.library._paths.tree.open_tree(tree)
    with windows.lock(tree) as lock:
        first = handed_over_by(lock)
        assert first.descriptors == []
        assert first.is_believed(opened)
    assert not first.is_believed(opened)
    with windows.lock(tree) as lock:
        assert not first.is_believed(opened)
        second = handed_over_by(lock)
        assert second.is_believed(opened)
        windows.kernel32.running.clear()
        windows.kernel32.ended.add(os.getpid())
        assert not second.is_believed(opened)


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
    failure = windows.portalocker.exceptions.LockException

    def fail(*_: object) -> None:
        raise failure("no reason")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows.portalocker.MsvcrtLocker, "lock", fail)
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
    room = windows.library._paths.lock_file
    file = room.open_lock_file(room.Place(str(tree / "lock"), is_named=False))
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
    kernel32, is_alive = windows.kernel32, windows.library._holder.processes.is_alive
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


def test_windows_names_its_temporary_directory(windows: Windows, tree: Path) -> None:
    kernel32: Any = windows.kernel32
    assert windows.system.temp_dir() == kernel32.temp_dir
    kernel32.GetTempPath2W = kernel32.GetTempPathW  # Windows 10 20348 and later
    del kernel32.GetTempPathW
    assert f"{windows.lock(tree).lock_file.parent}/" == kernel32.temp_dir


def test_windows_without_a_temporary_directory_has_no_lock(windows: Windows, tree: Path) -> None:
    windows.kernel32.temp_dir = ""
    with pytest.raises(windows.library.LockUnavailable, match="temporary"):
        windows.lock(tree).acquire()


def test_windows_without_a_lock_file_has_no_lock_at_all(
    windows: Windows, tree: Path, tmp_path: Path
) -> None:
    windows.kernel32.temp_dir = f"{tmp_path}/missing/"
    lock = windows.lock(tree)
    with pytest.raises(windows.library.LockUnavailable, match="does not exist") as caught:
        lock.acquire()
    assert caught.value.errno == errno.ENOENT
    assert not lock.locked()


@pytest.mark.parametrize(("name", "expected"), [("", "unknown"), ("line\nbreak", "line_break")])
def test_windows_without_a_usable_name_has_one_that_can_be_shown(
    windows: Windows, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setenv("COMPUTERNAME", name)
    assert windows.library._holder.processes.host() == expected


def test_windows_has_no_parents_to_name_but_one(windows: Windows) -> None:
    assert windows.library._holder.processes.line_of_descent() == [os.getpid(), os.getppid()]


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
