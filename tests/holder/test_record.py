"""The record in a lock file: nothing in it is trusted, and it stops no one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import LIMIT, WITHOUT_ROOTS_RIGHTS, Child, is_free

from source_tree_lock import Holder, source_tree_lock
from source_tree_lock._proc import Record, read_record

from .crowd import a_record, awaited_holder, flock_1, linux_only, mounted, record_of, root_only

pytestmark = linux_only


def read(lock_file: Path, record: bytes) -> Record | None:
    lock_file.write_bytes(record)
    return read_record(str(lock_file))


#: The values of a field that make no sense. Without those of the first two there is no record.
BAD_VALUES: dict[str, list[object]] = {
    "pid": ["absent", 0, -1, 2**31, 10**400, 4711.0, True, "4711", None, float("nan"), [4711]],
    "token": ["absent", "", 7, "\033c"],
    "since": ["absent", float("nan"), float("inf"), -1.0, 1e300, True, "yesterday", 2.0**32],
    "program": [
        *("absent", "", 7, None, "x" * 65, "two words", "../../etc/passwd", "$(reboot)", "bäcker"),
        *("two\nlines", "\033[31mred", "\x9b31mred", "nul\0", "\u202egnp.exe", "\ud800", ["build"]),
    ],
    "host": ["absent", "", {}, "\033]0;title\007", "x" * 65],
    "user": ["absent", "", 7, "\033[31mred", "x" * 65],
    "pid_namespace": ["absent", -1, 2**65, 1.5, False],
    "boot": ["absent", "", 7, "another"],
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_value_that_makes_no_sense_is_unknown(name: str, tmp_path: Path) -> None:
    good = read(tmp_path / "a.lock", a_record(since=12.5, user="0"))
    assert good is not None
    assert good.holder == Holder(os.getpid(), "build", os.uname().nodename, 12.5, "root")
    assert (good.token, good.for_children) == ("ab" * 16, False)
    for value in BAD_VALUES[name]:
        record = read(tmp_path / "a.lock", a_record(**{name: value}))
        assert (record is None) == (name in ("pid", "token")), value
        if record is None:
            continue
        assert record.holder.pid == os.getpid(), value
        assert record.holder.is_local == (name not in ("pid_namespace", "boot", "host")), value
        assert getattr(record.holder, name, None) is None, value


def test_only_the_record_of_a_process_that_died_here_is_stale(tmp_path: Path) -> None:
    with Child("") as child:
        pass
    for changes in ({}, {"host": "node7"}, {"boot": "another"}, {"pid_namespace": 1}):
        record = read(tmp_path / "a.lock", a_record(pid=child.pid, **changes))
        assert record is not None
        assert record.is_stale() == (changes == {})


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\n" * 512, b"\0" * 150, b"{", b"[]", b"4711", b"null", b"NaN", b"\xff\xfe\x00"),
        *(b"[" * 4096, b'{"a":' * 800, b"\033[2J" * 100, b"x" * 3_000_000),
        *('{"program": "Bäcker"}'.encode("latin-1"), b'{"pid": 1, "token": "a"} {}'),
        b'{"pid": 1, "token": "a", "more": "%s"}' % (b"y" * 512),
    ],
    ids=lambda data: repr(data)[:24],
)
def test_what_is_no_record_is_none(data: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "a.lock", data) is None


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "missing"])
def test_what_is_no_lock_file_has_no_record(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    if kind == "symlink":
        assert read(tmp_path / "target", a_record()) is not None
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert read_record(str(path)) is None


def test_junk_in_a_lock_file_keeps_nobody_from_locking_and_reaches_no_log(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    lock_file = source_tree_lock(tree).lock_file
    lock_file.write_bytes(b"\033[31mEVIL\033]0;\007" * 200_000)
    with flock_1(lock_file):
        told = caplog.text + str(awaited_holder(tree))
    assert "EVIL" not in told
    assert "\033" not in told
    with source_tree_lock(tree, timeout=LIMIT):
        # What is left of it behind the record would make the record junk.
        assert record_of(lock_file)["pid"] == os.getpid()
    assert lock_file.read_bytes()[:512].strip() == b""


@pytest.fixture
def lock_dir(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Iterator[Path]:
    """A lock directory where no record can be written."""
    directory = tmp_path / "locks"
    directory.mkdir()
    lock_file = source_tree_lock(tree, lock_dir=directory).lock_file
    if request.param == "full":
        with mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", directory):
            (directory / "filling").write_bytes(b"x" * 4096)
            yield directory
            assert lock_file.stat().st_size == 0
        return
    lock_file.write_bytes(b"of somebody else" * 20)
    if request.param == "read-only":
        lock_file.chmod(0o444)
    else:
        os.link(lock_file, tmp_path / "private")
    yield directory
    assert lock_file.read_bytes() == b"of somebody else" * 20


@pytest.mark.parametrize(
    "lock_dir", [pytest.param("full", marks=root_only), "read-only", "hard link"], indirect=True
)
def test_where_no_record_can_be_written_the_tree_is_held_and_handed_over_nevertheless(
    lock_dir: Path, tree: Path
) -> None:
    hold = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1], lock_dir=sys.argv[2]) as lock:
            tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
            heard()
        tell("released")
    """
    lock = source_tree_lock(tree, lock_dir=lock_dir)
    with Child(hold, tree, lock_dir, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        environ = {"SOURCE_TREE_LOCK_HELD": child.line()}
        assert not is_free(lock.lock_file)
        assert (holder := lock.holder()) is not None
        assert holder.pid == child.pid
        with Child(hold, tree, lock_dir, environ=environ) as handed:
            handed.line()
        child.say()
        child.expect("released")
        assert is_free(lock.lock_file)
