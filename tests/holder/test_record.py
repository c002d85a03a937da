"""The record in a lock file: nothing in it is trusted, and it stops no one."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import WITHOUT_ROOTS_RIGHTS, Child, is_free, own_mounts

from source_tree_lock import Holder, source_tree_lock
from source_tree_lock._proc import Record, read_record

from .crowd import a_record, awaited_holder, flock_1, linux_only, record_of

pytestmark = linux_only


def read(lock_file: Path, record: bytes) -> Record | None:
    lock_file.write_bytes(record)
    return read_record(str(lock_file))


BAD_NAMES = [
    *("absent", "", 7, None, ["build"], "x" * 65, "two words", "../../etc/passwd", "$(reboot)"),
    *("bäcker", "two\nlines", "\033[31mred", "\x9b31mred", "nul\0", "\u202egnp.exe", "\ud800"),
]
#: The values of a field that make no sense. Without a pid or a token there is no record.
BAD_VALUES: dict[str, list[object]] = {
    "pid": ["absent", 0, -1, 2**31, 10**400, 4711.0, True, "4711", None, float("nan"), [4711]],
    "since": ["absent", float("nan"), float("inf"), -1.0, 1e300, True, "yesterday", 2.0**32],
    "pid_namespace": ["absent", -1, 2**65, 1.5, False],
    "boot": [*BAD_NAMES, "another"],
    **{name: [*BAD_NAMES] for name in ("token", "program", "host", "user")},
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_value_that_makes_no_sense_is_unknown(name: str, tmp_path: Path) -> None:
    good = read(tmp_path / "a.lock", a_record(since=12.5, user="0"))
    assert good is not None
    assert good.holder == Holder(os.getpid(), "build", os.uname().nodename, 12.5, "root")
    assert (good.token, good.for_children) == ("ab" * 16, False)
    for value in BAD_VALUES[name]:
        record = read(tmp_path / "a.lock", a_record(**{name: value}))
        if name in ("pid", "token"):
            assert record is None, value
            continue
        assert record is not None, value
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


def test_what_is_no_record_is_none(tmp_path: Path) -> None:
    for junk in (
        *(b"", b"\n" * 512, b"{", b"[]", b"4711", b"null", b"\xff\xfe", b"[" * 4096),
        *(b'{"a":' * 800, b"x" * 3_000_000, b'{"pid": 1, "token": "a"} {}'),
        a_record(more="y" * 512),
    ):
        assert read(tmp_path / "a.lock", junk) is None, junk[:24]
    assert read(tmp_path / "target", a_record()) is not None
    (tmp_path / "symlink").symlink_to("target")
    os.mkfifo(tmp_path / "fifo")
    for name in ("symlink", "fifo", "temp", "missing"):
        assert read_record(str(tmp_path / name)) is None, name


def test_junk_in_a_lock_file_keeps_nobody_from_locking_and_reaches_no_log(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    lock_file = source_tree_lock(tree).lock_file
    lock_file.write_bytes(b"\033[31mEVIL\033]0;\007" * 200_000)
    with flock_1(lock_file):
        told = caplog.text + str(awaited_holder(tree))
    assert not re.search("EVIL|\033", told)
    with source_tree_lock(tree, timeout=0):
        # What is left of it behind the record would make the record junk.
        assert record_of(lock_file)["pid"] == os.getpid()
    assert lock_file.read_bytes()[:512].strip() == b""


@pytest.mark.parametrize("why", ["full", "read-only"])
def test_where_no_record_can_be_written_the_tree_is_held_and_handed_over_nevertheless(
    why: str, tree: Path, tmp_path: Path
) -> None:
    hold = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1], lock_dir=sys.argv[2]) as lock:
            tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
            heard()
        tell("released")
    """
    lock_dir = tmp_path / "locks"
    lock_dir.mkdir()
    lock = source_tree_lock(tree, lock_dir=lock_dir)
    content = b"" if why == "full" else b"of somebody else" * 20
    with ExitStack() as stack:
        if why == "full":
            own_mounts()  # skips the test where nobody may mount
            command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(lock_dir)]
            subprocess.run(command, check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(lock_dir)], check=True)
        (lock_dir / "filling").write_bytes(b"x" * 4096)
        lock.lock_file.write_bytes(content)
        lock.lock_file.chmod(0o666 if why == "full" else 0o444)
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
        assert lock.lock_file.read_bytes() == content
