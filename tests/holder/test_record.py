"""The record in a lock file: nothing in it is trusted, and it stops no one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import Child

from source_tree_lock import Holder
from source_tree_lock._proc import Record, read_record

from .crowd import a_record, linux_only

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


@pytest.mark.parametrize("kind", ["symlink", "fifo", "missing"])
def test_what_is_no_lock_file_has_no_record(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    if kind == "symlink":
        assert read(tmp_path / "target", a_record()) is not None
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    assert read_record(str(path)) is None
