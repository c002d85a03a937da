"""What others put in the way of a lock file: the right error or the right wait, nothing harmed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import is_free, wait_until_blocked

from source_tree_lock import LockTimeout, LockUnavailable, source_tree_lock

from .crew import BECOME_NOBODY, Crew, Member


@contextmanager
def _refused(tree: Path, number: int) -> Iterator[Path]:
    """The lock file's path, to put something there; afterwards, an error that names it."""
    lock_file = source_tree_lock(tree).lock_file
    yield lock_file
    with pytest.raises(LockUnavailable) as caught, source_tree_lock(tree, timeout=1):
        pass
    assert caught.value.errno == number
    assert caught.value.filename == str(lock_file)
    assert isinstance(caught.value.__cause__, OSError)


def _look(path: Path) -> tuple[object, ...] | None:
    if not path.exists():
        return None
    status = path.stat()
    content = path.read_text() if path.is_file() else None
    return status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, content


@pytest.mark.parametrize("kind", ["a file", "a directory", "a device", "nothing"])
def test_a_symlink_is_never_followed(
    tree: Path, tmp_path: Path, no_leaks: object, kind: str
) -> None:
    target = tmp_path / "target"
    if kind == "a file":
        target.write_text("private")
    elif kind == "a directory":
        target.mkdir()
    elif kind == "a device":
        target = Path(os.devnull)
    before = _look(target)
    with _refused(tree, errno.ELOOP) as lock_file:
        lock_file.symlink_to(target)
    assert _look(target) == before
    assert lock_file.is_symlink()


def test_what_is_no_regular_file_is_refused_and_not_touched(
    tree: Path, no_leaks: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _refused(tree, errno.EINVAL) as lock_file:
        os.mkfifo(lock_file)
        reader = os.open(lock_file, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"", "neither blocks nor is written to"
    os.close(reader)
    lock_file.unlink()
    monkeypatch.chdir(lock_file.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server, _refused(tree, errno.ENXIO):
        server.bind(lock_file.name)
    lock_file.unlink()
    with _refused(tree, errno.EISDIR):
        lock_file.mkdir()
        (lock_file / "file").write_text("private")
    assert (lock_file / "file").read_text() == "private"


@pytest.mark.parametrize("content", [b"", b"private", b"private" * 10_000])
def test_a_hard_link_to_a_private_file_is_locked_and_never_written_to(
    tree: Path, tmp_path: Path, no_leaks: object, content: bytes
) -> None:
    private = tmp_path / "private"
    private.write_bytes(content)
    private.chmod(0o600)
    before = _look(private)
    lock = source_tree_lock(tree, timeout=1)
    os.link(private, lock.lock_file)
    with lock:
        assert not is_free(lock.lock_file)
        assert private.read_bytes() == content
        assert lock.environ  # nothing is written, and the kernel names the holder of the tree
    assert is_free(lock.lock_file)
    assert private.read_bytes() == content
    assert _look(private) == before


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 3_000_000,
        b"\xff\xfe" * 1_500_000,
        b"\x1b[2J\x1b]0;owned\x07\x1b[31m" * 100,
        b"[" * 4000,
        b'{"pid": 1e400, "host": "\xff"}',
        b'{"pid": -1, "host": "", "program": "", "pid_namespace": 0, "since": 0, "token": ""}',
        b'{"pid": 1' + b"0" * 4000 + b"}",
    ],
    ids=["zeros", "no text", "escapes", "brackets", "infinity", "nothing", "digits"],
)
def test_junk_in_a_lock_file_keeps_nobody_out_and_is_not_repeated(
    tree: Path,
    no_leaks: object,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lock = source_tree_lock(tree, timeout=0.05)
    lock.lock_file.write_bytes(content)
    assert lock.holder() is None
    with lock:
        holder = lock.holder()
        assert holder is not None
        assert holder.pid == os.getpid()
    assert lock.holder() is None
    # Held by somebody who writes no record, as uv does, the junk stays for the waiter to read.
    lock.lock_file.write_bytes(content)
    with open(lock.lock_file, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with caplog.at_level(logging.DEBUG), pytest.raises(LockTimeout) as caught, lock:
            pass
    printed = capfd.readouterr()
    told = f"{caught.value} {caplog.text} {printed.out} {printed.err} {lock.holder()}"
    assert "owned" not in told
    assert all(character.isprintable() or character in "\n " for character in told)


# Two users

_HOLD = """
    tell("ready")
    heard()
    try:
        with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
        tell("released")
    except LockUnavailable as error:
        tell("refused", error.errno)
"""


def _start(crew: Crew, user: str, tree: Path) -> Member:
    script = (BECOME_NOBODY if user == "nobody" else "") + textwrap.dedent(_HOLD)
    member = crew.start(script, tree)
    member.expect("ready")
    return member


@pytest.mark.parametrize(
    ("kind", "mode", "outcome"),
    [
        ("file", 0o600, f"refused {errno.EACCES}"),
        ("file", 0o644, "held"),
        ("fifo", 0o444, f"refused {errno.EINVAL}"),
    ],
)
def test_another_users_file_is_locked_if_it_may_be_read_and_never_written_to(
    crew: Crew, shared: Path, kind: str, mode: int, outcome: str
) -> None:
    tree = _public_tree(shared)
    lock_file = source_tree_lock(tree).lock_file
    if kind == "fifo":
        os.mkfifo(lock_file)
    else:
        lock_file.write_text("private")
    lock_file.chmod(mode)
    member = _start(crew, "nobody", tree)
    member.say("go")
    member.expect(outcome)
    if outcome == "held":
        assert not is_free(lock_file)
        member.say("leave")
        member.expect("released")
    assert kind == "fifo" or lock_file.read_text() == "private"


def _public_tree(shared: Path) -> Path:
    tree = shared.parent / "tree"
    tree.mkdir()
    return tree


@pytest.mark.parametrize("order", [("root", "nobody"), ("nobody", "root")])
def test_two_users_lock_one_tree_in_turn_whoever_came_first(
    crew: Crew, shared: Path, order: tuple[str, str]
) -> None:
    """Although the kernel may refuse O_CREAT on another user's file (fs.protected_regular)."""
    tree = _public_tree(shared)
    lock_file = source_tree_lock(tree).lock_file
    for first, second in (order, order[::-1], order):
        holder, waiter = _start(crew, first, tree), _start(crew, second, tree)
        holder.say("go")
        holder.expect("held")
        waiter.say("go")
        wait_until_blocked(waiter.pid)
        holder.say("leave")
        holder.expect("released")
        waiter.expect("held")
        waiter.say("leave")
        waiter.expect("released")
    assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
