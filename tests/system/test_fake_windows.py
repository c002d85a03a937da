"""What Windows does differently, on a fake of it (`fake_system`)."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the fake needs /proc and OFD locks", allow_module_level=True)

from fake_system import Windows, imported_anew, lock_range, locked_like_uv
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
            lock_range(file.fileno(), 0, 0)
        except BlockingIOError:
            return True
    return False


def test_windows_locks_the_bytes_before_the_record_and_no_directory(
    windows: Windows, tree: Path
) -> None:
    with windows.lock(tree) as lock:
        assert is_free(tree)
        assert lock.locked()
        with lock.lock_file.open("ab") as file:
            lock_range(file.fileno(), 0x10000, 0)  # nobody has these
        assert is_locked(lock.lock_file)
        assert lock.lock_file.read_bytes()[:0x10000].strip(b"\0") == b""
        holder = lock.holder()
        assert (holder.pid, holder.host) == (os.getpid(), "DESKTOP-1")
        assert lock.pass_fds == ()
    assert not is_locked(lock.lock_file)
    assert not lock.locked()
    assert lock.holder() is None


def test_windows_asks_again_until_the_file_is_free(windows: Windows, tree: Path) -> None:
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
            lock.acquire()
        assert not lock.acquire(blocking=False)
    with lock:
        assert lock.is_owner()


def test_windows_lets_other_tasks_run_while_one_waits(windows: Windows, tree: Path) -> None:
    async def main() -> None:
        waits = asyncio.Event()
        lock = windows.lock(tree, on_wait=lambda _: waits.set())

        async def enter() -> bool:
            async with lock:
                return bool(lock.is_owner())

        with locked_like_uv(lock.lock_file):
            task = asyncio.create_task(enter())
            await asyncio.wait_for(waits.wait(), LIMIT)
            assert not task.done()
        assert await asyncio.wait_for(task, LIMIT)

    asyncio.run(main())


@pytest.mark.parametrize("failing", ["write", "unlock"])
def test_windows_holds_and_releases_though_the_record_or_unlocking_fails(
    failing: str, windows: Windows, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Closing a file unlocks it as well; the fixture sees to it that none stays open.
    with monkeypatch.context() as patch:
        if failing == "write":
            patch.setattr(os, "write", lambda descriptor, data: 1)
        else:
            windows.portalocker.unlock_error = OSError(errno.EIO, "")
        with windows.lock(tree) as lock:
            assert is_locked(lock.lock_file)
    assert not is_locked(lock.lock_file)


def test_windows_takes_an_errno_of_0_for_held_as_wine_reports_it(
    windows: Windows, tree: Path
) -> None:
    windows.portalocker.lock_error = OSError(0, "Error")
    assert not windows.lock(tree).acquire(blocking=False)


@pytest.mark.parametrize("error", [OSError(errno.EBADF, ""), OSError(errno.EIO, ""), EOFError()])
def test_windows_lets_nobody_in_when_locking_fails(
    error: Exception, windows: Windows, tree: Path
) -> None:
    windows.portalocker.lock_error = error
    lock = windows.lock(tree)
    with pytest.raises(windows.library.LockUnavailable) as caught:
        lock.acquire()
    assert caught.value.errno == getattr(error, "errno", errno.EIO)
    assert caught.value.filename == str(lock.lock_file)
    assert not lock.is_owner()


def test_windows_follows_no_symbolic_link(windows: Windows, tree: Path, tmp_path: Path) -> None:
    lock = windows.lock(tree)
    target = tmp_path / "private"
    target.write_text("private")
    lock.lock_file.symlink_to(target)
    with pytest.raises(windows.library.LockUnavailable, match="symbolic link") as caught:
        lock.acquire()
    assert caught.value.errno == errno.ELOOP
    assert target.read_text() == "private"


def test_windows_tells_whether_a_process_lives_and_whose_record_is_stale(
    windows: Windows, tree: Path
) -> None:
    kernel32, is_alive = windows.kernel32, windows.module("_system").is_alive
    kernel32.running.add(11)
    kernel32.ended.add(12)
    kernel32.of_others.add(13)
    assert [is_alive(pid) for pid in (11, 12, 13, 14)] == [True, False, True, False]
    lock = windows.lock(tree)
    with lock:
        left_behind = lock.lock_file.read_bytes()
    lock.lock_file.write_bytes(left_behind)
    with locked_like_uv(lock.lock_file):
        assert lock.holder().pid == os.getpid()
        kernel32.running.clear()
        assert lock.holder() is None


def test_windows_refuses_a_nul_byte_before_python_calls_it_an_error_of_the_system(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def realpath(path: str, *, strict: bool) -> str:
        raise OSError("embedded null character")  # ntpath.realpath from Python 3.13 on

    monkeypatch.setattr(os.path, "realpath", realpath)
    with pytest.raises(ValueError, match="null character"):
        windows.lock("a\0b").acquire()


def test_windows_names_its_temporary_directory(
    windows: Windows, tree: Path, tmp_path: Path
) -> None:
    kernel32: Any = windows.kernel32
    assert f"{windows.lock(tree).lock_file.parent}/" == kernel32.temp_dir
    kernel32.GetTempPath2W = kernel32.GetTempPathW  # Windows 10 20348 and later
    del kernel32.GetTempPathW
    assert f"{windows.lock(tree).lock_file.parent}/" == kernel32.temp_dir
    for directory, message in ((f"{tmp_path}/missing/", "does not exist"), ("", "no directory")):
        kernel32.temp_dir = directory
        with pytest.raises(windows.library.LockUnavailable, match=message) as caught:
            windows.lock(tree).acquire()  # there is no tree to lock instead
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(("name", "expected"), [("", "unknown"), ("line\nbreak", "line_break")])
def test_windows_without_a_usable_name_has_one_that_can_be_shown(
    name: str, expected: str, windows: Windows, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPUTERNAME", name)
    with windows.lock(tree) as lock:
        assert lock.holder().host == expected
