"""What Windows does differently, on a fake of it (`fake_system`)."""

from __future__ import annotations

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
from support import is_free


@pytest.fixture
def windows(temp_dir: Path, no_leaks: object) -> Iterator[Windows]:
    with imported_anew(), pytest.MonkeyPatch.context() as patch:
        system = Windows(patch, temp_dir)
        yield system
        assert system.proc_visits == [], "on Windows, /proc is any user's directory"
        assert system.kernel32.handles == set()


def is_locked(path: Path) -> bool:
    try:
        with locked_like_uv(path):
            return False
    except BlockingIOError:
        return True


def test_windows_locks_bytes_of_the_file_and_no_directory(windows: Windows, tree: Path) -> None:
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


def test_windows_holds_and_releases_though_the_record_or_unlocking_fails(
    windows: Windows, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Closing a file unlocks it as well; the fixture sees to it that none stays open.
    monkeypatch.setattr(os, "write", lambda descriptor, data: 1)
    windows.portalocker.unlock_error = OSError(errno.EIO, "")
    with windows.lock(tree) as lock:
        assert is_locked(lock.lock_file)
    assert not is_locked(lock.lock_file)


def test_windows_lets_nobody_in_when_locking_fails(windows: Windows, tree: Path) -> None:
    lock = windows.lock(tree)
    for error in (OSError(errno.EBADF, ""), EOFError()):
        windows.portalocker.lock_error = error
        with pytest.raises(windows.library.LockUnavailable) as caught:
            lock.acquire()
        assert caught.value.errno == getattr(error, "errno", errno.EIO)
        assert caught.value.filename == str(lock.lock_file)
        assert not lock.is_owner()
    windows.portalocker.lock_error = OSError(0, "Error")  # as Wine reports a file that is locked
    assert not lock.acquire(blocking=False)


def test_windows_follows_no_symbolic_link(windows: Windows, tree: Path, tmp_path: Path) -> None:
    lock = windows.lock(tree)
    target = tmp_path / "private"
    target.touch()
    lock.lock_file.symlink_to(target)
    with pytest.raises(windows.library.LockUnavailable, match="symbolic link"):
        lock.acquire()
    assert target.read_bytes() == b""


def test_windows_tells_whether_a_process_lives_and_whose_record_is_stale(
    windows: Windows, tree: Path
) -> None:
    kernel32, is_alive = windows.kernel32, windows.module("._system").is_alive
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
        with pytest.raises(windows.library.LockUnavailable, match=message):
            windows.lock(tree).acquire()  # there is no tree to lock instead
