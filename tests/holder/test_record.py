"""The record in a lock file: nothing in it is trusted, and it stops no one."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support import HOLD, LIMIT, WITHOUT_ROOTS_RIGHTS, Child, held_elsewhere, is_free

from source_tree_lock import Holder, source_tree_lock
from source_tree_lock._holder import processes
from source_tree_lock._holder import record as room
from source_tree_lock._holder.processes import host

from .crowd import (
    a_record,
    flock_1,
    linux_only,
    mounted,
    on_host,
    put,
    record_of,
    root_only,
    whom_a_wait_is_for,
)


def read(lock_file: Path, record: bytes) -> room.Record | None:
    put(lock_file, record)
    return room.read_record(str(lock_file))


def test_a_well_formed_record_is_read(tmp_path: Path) -> None:
    now = time.time()
    record = read(tmp_path / "a.lock", a_record(program="c++_build-1.2", since=now))
    assert record is not None
    assert record.holder == Holder(os.getpid(), "c++_build-1.2", host(), now)
    assert record.token == "ab" * 16
    assert record.is_from_here()
    assert not record.is_for_hooks


BAD_VALUES: list[tuple[str, object]] = [
    ("pid", "absent"),
    ("pid", 0),
    ("pid", -1),
    ("pid", 2**31),
    ("pid", 10**400),
    ("pid", 4711.0),
    ("pid", True),
    ("pid", "4711"),
    ("pid", None),
    ("pid", float("nan")),
    ("pid", [4711]),
    ("since", "absent"),
    ("since", float("nan")),
    ("since", float("inf")),
    ("since", float("-inf")),
    ("since", -1.0),
    ("since", 1e300),
    ("since", True),
    ("since", "yesterday"),
    ("since", float(2**32)),  # in 2106
    ("since", 1_700_000_000.0),  # in 2023: before this process started
    ("pid_namespace", "absent"),
    ("pid_namespace", -1),
    ("pid_namespace", 2**65),
    ("pid_namespace", 1.5),
    ("pid_namespace", False),
    ("program", "absent"),
    ("program", ""),
    ("program", 7),
    ("program", None),
    ("program", "x" * 65),
    ("program", "two words"),
    ("program", "../../etc/passwd"),
    ("program", "$(reboot)"),
    ("program", "bäcker"),
    ("program", "two\nlines"),
    ("program", "\033[31mred"),
    ("program", "\x9b31mred"),
    ("program", "over\rwritten"),
    ("program", "nul\0"),
    ("program", "\u202egnp.exe"),
    ("program", "\ud800"),
    ("program", ["build"]),
    ("host", "absent"),
    ("host", ""),
    ("host", {}),
    ("host", "\033]0;title\007"),
    ("host", "x" * 65),
    ("token", "absent"),
    ("token", ""),
    ("token", 7),
    ("token", "\033c"),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD_VALUES, ids=[f"{name}-{value!r:.24}" for name, value in BAD_VALUES]
)
def test_a_value_that_makes_no_sense_is_unknown_and_without_some_there_is_no_record(
    name: str, value: object, tmp_path: Path
) -> None:
    good = read(tmp_path / "a.lock", a_record())
    assert good is not None
    assert None not in (good.holder.program, good.holder.host, good.holder.since)
    record = read(tmp_path / "a.lock", a_record(**{name: value}))
    if name in ("pid", "pid_namespace", "token"):
        assert record is None
    else:
        assert record is not None
        assert record.holder.pid == os.getpid()
        assert getattr(record.holder, name) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\n" * 150, id="blank"),
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
        pytest.param(a_record() + b"\n" + a_record(), id="two records"),
        pytest.param(a_record() + b"x" * 10, id="a tail"),
        pytest.param(a_record(more="y" * 4096), id="longer than a record is"),
        pytest.param(b"x" * 3_000_000, id="megabytes"),
    ],
)
def test_what_is_no_record_is_none(data: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "a.lock", data) is None


def test_no_more_than_a_record_is_read_of_a_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def spy(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return b""

    monkeypatch.setattr(os, "pread", spy)
    read(tmp_path / "a.lock", b"x" * 100_000)
    assert sizes == [4096]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "missing"])
def test_what_is_no_lock_file_has_no_record(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    if kind == "symlink":
        put(tmp_path / "target", a_record())
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert room.read_record(str(path)) is None


@pytest.mark.skipif(os.name != "posix", reason="a Windows lock keeps a junk record from the test")
def test_junk_in_a_lock_file_keeps_nobody_from_locking_and_reaches_no_log(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    lock_file = source_tree_lock(tree).lock_file
    put(lock_file, b"\033[31mEVIL\033]0;\007" * 200_000)
    with flock_1(lock_file):
        holder = whom_a_wait_is_for(tree)
    assert "EVIL" not in caplog.text
    assert "\033" not in caplog.text + str(holder)
    with source_tree_lock(tree, timeout=LIMIT):
        # What is left of it behind the record would make the record junk.
        assert record_of(lock_file)["pid"] == os.getpid()


# Stale ones


def test_the_record_of_a_process_that_lives_is_not_stale(tmp_path: Path) -> None:
    record = read(tmp_path / "a.lock", a_record())
    assert record is not None
    assert record.is_from_here()
    assert not record.is_stale()


def test_the_record_of_a_dead_process_is_stale(tmp_path: Path) -> None:
    with Child("") as child:
        pass
    record = read(tmp_path / "a.lock", a_record(pid=child.pid))
    assert record is not None
    assert record.is_stale()


@linux_only
def test_the_record_of_a_zombie_is_stale(tmp_path: Path) -> None:
    with Child("tell('here')") as child:
        child.expect("here")
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        record = read(tmp_path / "a.lock", a_record(pid=child.pid))
        assert record is not None
        assert record.is_stale()


@pytest.mark.parametrize("change", ["host", "pid_namespace"])
def test_the_record_of_another_host_or_pid_namespace_is_never_stale(
    change: str, tmp_path: Path
) -> None:
    with Child("") as child:
        pass
    value = {"host": "elsewhere.example", "pid_namespace": 4711}[change]
    record = read(tmp_path / "a.lock", a_record(pid=child.pid, since=1.0, **{change: value}))
    assert record is not None
    assert not record.is_from_here()
    assert not record.is_stale()


@root_only
@pytest.mark.parametrize(
    ("name", "is_stale"), [("node1", False), (os.uname().nodename, True)], ids=["there", "here"]
)
def test_a_record_is_stale_when_its_writer_died_here_and_never_when_elsewhere(
    tree: Path, name: str, is_stale: bool
) -> None:
    with on_host(name, HOLD, tree, own_pids=False) as holder:
        holder.expect("held")
        os.kill(holder.pid, signal.SIGKILL)
        assert holder.process.wait(LIMIT) == -signal.SIGKILL
    record = room.read_record(str(source_tree_lock(tree).lock_file))
    assert record is not None
    assert record.holder.pid == holder.pid
    assert record.holder.host == name
    assert record.is_stale() is is_stale


def rewritten(lock_file: Path, **changes: object) -> room.Record:
    """The record in a lock file, with changes, as it is read here."""
    fields = {**json.loads(lock_file.read_text()), **changes}
    lock_file.write_text(json.dumps(fields))
    record = room.read_record(str(lock_file))
    assert record is not None
    return record


@linux_only
def test_hosts_of_one_name_are_told_apart_by_their_boot(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with held_elsewhere(tree) as holder:
        assert json.loads(lock_file.read_text())["boot"] == boot
        record = rewritten(lock_file)
        assert record.is_from_here()
        assert not record.is_stale()
        record = rewritten(lock_file, boot="c0ffee00-0000-4000-8000-000000000000")
        assert not record.is_from_here()
        holder.kill()
    assert not rewritten(lock_file).is_stale()
    assert rewritten(lock_file, boot=boot).is_stale()


# It is a courtesy


@pytest.mark.skipif(os.name != "posix", reason="a held lock file is read as a whole")
def test_the_record_is_there_while_the_tree_is_held_and_blank_afterwards(tree: Path) -> None:
    lock = source_tree_lock(tree)
    with lock:
        record = record_of(lock.lock_file)
        assert (record["pid"], record["host"]) == (os.getpid(), host())
        assert record["program"] == processes.program()
    assert lock.lock_file.read_bytes().strip() == b""


def held_without_a_record(tree: Path, lock_dir: Path, prefix: tuple[str, ...] = ()) -> None:
    """A process can hold the tree, and hand it over where the kernel names it as the holder."""
    hold = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        with source_tree_lock(sys.argv[1], lock_dir=sys.argv[2]) as lock:
            tell("held")
            heard()
            try:
                tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
            except LockUnavailable as error:
                tell(error)
            heard()
        tell("released")
    """
    enter = """
        from source_tree_lock import source_tree_lock
        tell(source_tree_lock(sys.argv[1], lock_dir=sys.argv[2]).acquire(blocking=False))
    """
    lock = source_tree_lock(tree, lock_dir=lock_dir)
    with Child(hold, tree, lock_dir, prefix=prefix) as child:
        child.expect("held")
        assert not is_free(lock.lock_file)
        child.say()
        handed_over = child.line()
        if sys.platform == "linux":
            holder = lock.holder()
            assert holder is not None
            assert holder.pid == child.pid
            environ = {"SOURCE_TREE_LOCK_HELD": handed_over}
            with Child(enter, tree, lock_dir, environ=environ) as handed:
                handed.expect("True")
        else:
            assert "cannot be handed over" in handed_over
        child.say()
        child.expect("released")
        assert is_free(lock.lock_file)


@root_only
def test_a_full_disk_keeps_nobody_from_locking(tree: Path, tmp_path: Path) -> None:
    lock_dir = tmp_path / "full"
    lock_dir.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", lock_dir):
        (lock_dir / "filling").write_bytes(b"x" * 4096)
        with pytest.raises(OSError, match="No space left"):
            (lock_dir / "another").write_bytes(b"x")
        held_without_a_record(tree, lock_dir)
        assert source_tree_lock(tree, lock_dir=lock_dir).lock_file.stat().st_size == 0


@linux_only
def test_a_lock_file_that_may_only_be_read_keeps_nobody_from_locking(
    tree: Path, tmp_path: Path
) -> None:
    lock_file = source_tree_lock(tree, lock_dir=tmp_path).lock_file
    lock_file.write_bytes(b"of somebody else")
    lock_file.chmod(0o444)
    held_without_a_record(tree, tmp_path, WITHOUT_ROOTS_RIGHTS)
    assert lock_file.read_bytes() == b"of somebody else"


@pytest.mark.skipif(os.name != "posix", reason="hard links as POSIX has them")
def test_a_lock_file_with_another_name_keeps_nobody_from_locking_and_is_not_written_to(
    tree: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.write_bytes(b"of somebody else" * 20)
    os.link(private, source_tree_lock(tree, lock_dir=tmp_path).lock_file)
    held_without_a_record(tree, tmp_path)
    assert private.read_bytes() == b"of somebody else" * 20
