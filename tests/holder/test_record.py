"""The record in a lock file: nothing in it is trusted, and it stops no one."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import pytest
from support import LIMIT, WITHOUT_ROOTS_RIGHTS, Child, is_free

from source_tree_lock import Holder, source_tree_lock
from source_tree_lock._record import Record, read_record

from .crowd import a_record, awaited_holder, flock_1, linux_only, mounted, put, record_of, root_only

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a held lock file is read as a whole")


def read(lock_file: Path, record: bytes) -> Record | None:
    put(lock_file, record)
    return read_record(str(lock_file))


@linux_only
def test_a_well_formed_record_is_read(tmp_path: Path) -> None:
    now = time.time()
    record = read(tmp_path / "a.lock", a_record(program="c++_build-1.2", since=now, user="0"))
    holder = Holder(os.getpid(), "c++_build-1.2", os.uname().nodename, now, "root")
    assert record is not None
    assert (record.holder, record.token, record.for_children) == (holder, "ab" * 16, False)


#: The values of a field that make no sense. Without those of the first two there is no record.
BAD_VALUES: dict[str, list[object]] = {
    "pid": ["absent", 0, -1, 2**31, 10**400, 4711.0, True, "4711", None, float("nan"), [4711]],
    "token": ["absent", "", 7, "\033c"],
    "since": [
        *("absent", float("nan"), float("inf"), -1.0, 1e300, True, "yesterday"),
        float(2**32),  # in 2106
    ],
    "program": [
        *("absent", "", 7, None, "x" * 65, "two words", "../../etc/passwd", "$(reboot)", "bäcker"),
        *("two\nlines", "\033[31mred", "\x9b31mred", "nul\0", "\u202egnp.exe", "\ud800", ["build"]),
    ],
    "host": ["absent", "", {}, "\033]0;title\007", "x" * 65],
    "user": ["absent", "", 7, "\033[31mred", "x" * 65],
    "pid_namespace": ["absent", -1, 2**65, 1.5, False],
    "boot": ["absent", "", 7, "another"],
}


@linux_only
@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_value_that_makes_no_sense_is_unknown(name: str, tmp_path: Path) -> None:
    good = read(tmp_path / "a.lock", a_record())
    assert good is not None
    assert None not in vars(good.holder).values()
    for value in BAD_VALUES[name]:
        record = read(tmp_path / "a.lock", a_record(**{name: value}))
        if name in ("pid", "token"):
            assert record is None, value
            continue
        assert record is not None, value
        assert record.holder.pid == os.getpid(), value
        if name in ("pid_namespace", "boot", "host"):
            assert not record.holder.is_local, value
        if name not in ("pid_namespace", "boot"):
            assert getattr(record.holder, name) is None, value


@linux_only
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\n" * 512, id="blank"),
        pytest.param(b"\0" * 150, id="zeros"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"4711", id="a number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"NaN", id="not a number"),
        pytest.param(b"[" * 4096, id="deep nesting"),
        pytest.param(b'{"a":' * 800, id="deep nesting of objects"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param('{"program": "Bäcker"}'.encode("latin-1"), id="not UTF-8"),
        pytest.param(b"\033[2J" * 100, id="terminal escapes"),
        pytest.param(b'{"pid": 1, "token": "a"} {"pid": 2, "token": "b"}', id="two records"),
        pytest.param(b'{"pid": 1, "token": "a"}' + b"x" * 10, id="a tail"),
        pytest.param(b'{"pid": 1, "token": "a", "more": "%s"}' % (b"y" * 512), id="too long"),
        pytest.param(b"x" * 3_000_000, id="megabytes"),
    ],
)
def test_what_is_no_record_is_none(data: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "a.lock", data) is None


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "missing"])
def test_what_is_no_lock_file_has_no_record(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    if kind == "symlink":
        put(tmp_path / "target", b'{"pid": 1, "token": "a"}')
        assert read_record(str(tmp_path / "target")) is not None
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert read_record(str(path)) is None


@linux_only
def test_junk_in_a_lock_file_keeps_nobody_from_locking_and_reaches_no_log(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    lock_file = source_tree_lock(tree).lock_file
    put(lock_file, b"\033[31mEVIL\033]0;\007" * 200_000)
    with flock_1(lock_file):
        holder = awaited_holder(tree)
    assert "EVIL" not in caplog.text
    assert "\033" not in caplog.text + str(holder)
    with source_tree_lock(tree, timeout=LIMIT):
        # What is left of it behind the record would make the record junk.
        assert record_of(lock_file)["pid"] == os.getpid()
    assert lock_file.read_bytes()[:512].strip() == b""


# It is a courtesy


@pytest.fixture
def lock_dir(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> object:
    """A lock directory where no record can be written."""
    directory = tmp_path / "locks"
    directory.mkdir()
    lock_file = source_tree_lock(tree, lock_dir=directory).lock_file
    private = tmp_path / "private"
    private.write_bytes(b"of somebody else" * 20)
    if request.param == "full":
        with mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", directory):
            (directory / "filling").write_bytes(b"x" * 4096)
            yield directory
            assert lock_file.stat().st_size == 0
        return
    if request.param == "read-only":
        lock_file.write_bytes(private.read_bytes())
        lock_file.chmod(0o444)
    else:
        os.link(private, lock_file)
    yield directory
    assert lock_file.read_bytes() == b"of somebody else" * 20


@pytest.mark.parametrize(
    "lock_dir",
    [pytest.param("full", marks=root_only), "read-only", "another link"],
    indirect=True,
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
        handed_over = child.line()
        assert not is_free(lock.lock_file)
        if sys.platform == "linux":
            holder = lock.holder()
            assert holder is not None
            assert holder.pid == child.pid
            environ = {"SOURCE_TREE_LOCK_HELD": handed_over}
            with Child(hold, tree, lock_dir, environ=environ) as handed:
                handed.line()
        child.say()
        child.expect("released")
        assert is_free(lock.lock_file)
