"""What macOS does differently, on a fake of it (`fake_system`): no /proc, and F_GETPATH."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the fake needs /proc", allow_module_level=True)

import fcntl

from fake_system import F_GETPATH, MacOS, imported_anew
from support import in_thread, is_free, wait_until


@pytest.fixture
def macos(temp_dir: Path, no_leaks: object) -> Iterator[MacOS]:
    with imported_anew(), pytest.MonkeyPatch.context() as patch:
        yield MacOS(patch)


def test_macos_locks_the_tree_and_the_file_and_names_the_holder_by_its_record(
    macos: MacOS, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with macos.lock(tree) as lock:
        assert not is_free(tree)
        assert not is_free(lock.lock_file)
        assert (lock.tree, lock.locked()) == (tree, True)
        error = in_thread(macos.lock(tree, timeout=0.02).acquire)
        assert isinstance(error, macos.library.LockTimeout)
        assert error.holder.pid == os.getpid()
    assert is_free(tree)
    wait_until(lambda: is_free(lock.lock_file))  # the thread of the queue may be granted it
    assert not lock.locked()
    assert macos.proc_visits
    assert not caplog.records


def test_macos_lets_in_who_has_the_token_while_the_tree_is_locked(
    macos: MacOS, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with macos.lock(tree) as lock:
        # Forgotten by this process, it is the hold of another one.
        holds = macos.module("._hold")._holds
        saved = dict(holds)
        handed_over = lock.environ["SOURCE_TREE_LOCK_HELD"]
        holds.clear()
        assert not macos.lock(tree).acquire(blocking=False)
        monkeypatch.setenv("SOURCE_TREE_LOCK_HELD", handed_over)
        with macos.lock(tree) as child:
            assert child.lock_file.name.endswith(".1.lock")
        holds.update(saved)
        record = lock.lock_file.read_text()
    lock.lock_file.write_text(record)  # what is left there makes nobody a holder
    with macos.lock(tree) as lock:
        assert not lock.lock_file.name.endswith(".1.lock")


def test_macos_has_a_temporary_directory_for_each_user_and_prefers_tmpdir(
    macos: MacOS, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {65537: "/var/folders/zz/T/"}
    monkeypatch.setattr(os, "confstr", values.get)
    for expected in ("/var/folders/zz/T", "/tmp"):
        monkeypatch.setenv("TMPDIR", "/set/by/hand")
        assert macos.lock(tree).lock_file.parent == Path("/set/by/hand")
        monkeypatch.delenv("TMPDIR")
        assert macos.lock(tree).lock_file.parent == Path(expected)
        values.clear()  # POSIX: None for a name that is known and has no value


def test_macos_gives_each_name_the_case_that_it_has_on_disk(
    macos: MacOS, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getpath(descriptor: int, request: int, argument: bytes) -> bytes:
        assert (request, len(argument)) == (F_GETPATH, 1024)
        return b"/Private/Tree".ljust(1024, b"\0")

    monkeypatch.setattr(fcntl, "fcntl", getpath)
    assert macos.lock(tree).tree == Path("/Private/Tree")
