"""The two kernel locks of one entry: both, or the one that there is, and never none."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import (
    HOLD,
    WITHOUT_ROOTS_RIGHTS,
    Child,
    held_elsewhere,
    is_free,
    own_mounts,
    wait_until_blocked,
)
from ways import KINDS, WAYS, script

from source_tree_lock import (
    LockTimeout,
    LockUnavailable,
    _system,
    source_tree_lock,
)
from source_tree_lock._kernel_lock import KernelLock

fcntl = pytest.importorskip("fcntl", reason="Windows has tests of its own")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/locks")


@pytest.fixture
def lock_file(tree: Path) -> Path:
    """The lock file of the tree, not made yet."""
    return source_tree_lock(tree).lock_file


@pytest.mark.parametrize("held", ["lock file", "tree"])
def test_both_locks_are_held_and_either_alone_keeps_us_out(
    held: str, tree: Path, lock_file: Path, no_leaks: object
) -> None:
    lock_file.touch()
    lock = source_tree_lock(tree, timeout=0)
    descriptor = os.open(tree if held == "tree" else lock_file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert lock.locked()
        with pytest.raises(LockTimeout):
            lock.acquire()
        assert (is_free(lock_file), is_free(tree)) == (held == "tree", held != "tree")
    finally:
        os.close(descriptor)
    assert not lock.locked()
    with lock:
        assert (is_free(lock_file), is_free(tree)) == (False, False)
    assert (is_free(lock_file), is_free(tree)) == (True, True)


def test_one_owner_does_not_wait_for_itself_at_a_lock_file_of_two_trees(
    tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    one = source_tree_lock(tree, digest=lambda _: "all")
    for spelling in (None, f"{one.lock_file.parent}/."):
        two = source_tree_lock(tmp_path / "other", digest=lambda _: "all", lock_dir=spelling)
        with one, pytest.raises(RuntimeError, match="same lock file"):
            two.acquire()
    with one:
        replace_tree(tree, one.lock_file)
        with pytest.raises(RuntimeError, match="same lock file"):
            source_tree_lock(tree, digest=lambda _: "all").acquire()
    with one:
        pass


# Starting over, because what was locked is not what the paths lead to any more


def replace_tree(tree: Path, lock_file: Path) -> None:
    tree.rename(tree.with_name("moved"))
    tree.mkdir()


def replace_lock_file(tree: Path, lock_file: Path) -> None:
    lock_file.unlink()
    lock_file.touch()


REPLACED: dict[str, Callable[[Path, Path], object]] = {
    "lock file removed": lambda tree, lock_file: lock_file.unlink(),
    "lock file replaced": replace_lock_file,
    "tree replaced": replace_tree,
    "tree removed": lambda tree, lock_file: tree.rmdir(),
}


@linux_only
@pytest.mark.parametrize("wait", KINDS)
@pytest.mark.parametrize("change", REPLACED)
def test_what_was_replaced_during_a_wait_is_locked_anew_or_not_found(
    change: str, wait: str, tree: Path, lock_file: Path
) -> None:
    around = """
        try:
            {}
        except FileNotFoundError:
            tell("not found")
        heard()
    """
    with held_elsewhere(tree) as holder, Child(script(wait, around), tree) as waiter:
        wait_until_blocked(waiter.pid)
        REPLACED[change](tree, lock_file)
        holder.say()
        if change == "tree removed":
            waiter.expect("not found")
            assert is_free(lock_file)
        else:
            waiter.expect("held")
            assert lock_file.exists()
            assert (is_free(lock_file), is_free(tree)) == (False, False)


def test_a_tree_that_is_replaced_while_it_is_locked_is_locked_anew(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    real, replaced = _system.try_lock, list[int]()

    def replace_first(descriptor: int) -> bool:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and not replaced:
            replaced.append(descriptor)
            replace_tree(tree, lock_file)
        return real(descriptor)

    monkeypatch.setattr(_system, "try_lock", replace_first)
    with source_tree_lock(tree, timeout=0):
        assert (is_free(lock_file), is_free(tree)) == (False, False)


@pytest.mark.parametrize("contended", [False, True])
def test_what_is_replaced_again_and_again_is_an_error_in_the_end(
    contended: bool, tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    looks = []

    def removed_before_each_look(lock: KernelLock) -> bool:
        looks.append(lock)
        return lock.path != str(lock_file)

    with monkeypatch.context() as patch:
        patch.setattr(KernelLock, "is_in_place", removed_before_each_look)
        if contended:  # then it is our thread that starts over
            refuse(patch, errno.EAGAIN, directories=False, calls=("try_lock",))
        with pytest.raises(LockUnavailable, match="replaced 100 times") as caught:
            source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock_file))
    assert len(looks) >= 100
    with source_tree_lock(tree, timeout=0):
        assert (is_free(lock_file), is_free(tree)) == (False, False)


# Locks that the system does not have, or refuses


def refuse(
    patch: pytest.MonkeyPatch,
    number: int,
    *,
    directories: bool,
    calls: tuple[str, ...] = ("try_lock", "lock"),
    after: int = 0,
) -> list[int]:
    """Have flock(2) on directories, or on files, fail; it is busy so many times before.

    Returns:
        The descriptors on which it failed.
    """
    failures: list[int] = []
    busy = [None] * after

    def fail(real: Callable[[int], Any], descriptor: int) -> Any:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is not directories:
            return real(descriptor)
        if busy:
            return busy.pop()
        failures.append(descriptor)
        if number == errno.EAGAIN:
            return False
        raise OSError(number, os.strerror(number))

    for call in calls:
        patch.setattr(_system, call, partial(fail, getattr(_system, call)))
    return failures


@pytest.mark.parametrize("directories", [True, False], ids=["tree", "lock file"])
@pytest.mark.parametrize("name", ["EBADF", "ENOSYS", "EOPNOTSUPP", "ENOTSUP"])
def test_where_trees_have_no_lock_the_lock_file_alone_serves_and_never_the_other_way_round(
    name: str,
    directories: bool,
    tree: Path,
    lock_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    failures = refuse(monkeypatch, getattr(errno, name), directories=directories)
    lock = source_tree_lock(tree, timeout=0)
    if directories:
        with lock:
            assert (is_free(lock_file), is_free(tree)) == (False, True)
            assert lock.locked()
            with lock, source_tree_lock(tree, timeout=0):
                assert lock.is_owner()
    else:
        with pytest.raises(LockUnavailable, match="lock_dir") as caught:
            lock.acquire()
        assert caught.value.errno == getattr(errno, name)
    assert (is_free(lock_file), is_free(tree)) == (True, True)
    assert failures


@pytest.mark.parametrize("way", ["with", "async with"])
@pytest.mark.parametrize("busy_before", [0, 1], ids=["at once", "in the wait"])
@pytest.mark.parametrize("directories", [True, False], ids=["tree", "lock file"])
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "AppArmor: k for the path, SELinux: lock"),
        (errno.ENOLCK, "so that flock works"),  # no lock manager
        *((number, os.strerror(number)) for number in (errno.EIO, errno.EPERM, errno.ESTALE)),
    ],
)
def test_a_lock_that_is_refused_is_an_error_at_once_and_leaves_nothing_locked(
    number: int,
    advice: str,
    directories: bool,
    busy_before: int,
    way: str,
    tree: Path,
    lock_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, number, directories=directories, after=busy_before)
        with pytest.raises(LockUnavailable, match=advice) as caught:
            WAYS[way](tree, pytest.fail)
    refused = tree if directories else lock_file
    assert (caught.value.errno, caught.value.filename) == (number, str(refused))
    assert isinstance(caught.value.__cause__, OSError)
    assert (is_free(lock_file), is_free(tree)) == (True, True)


#: Tells for which holder it waits, whether anybody holds the tree, and who does.
TRY = """
    from source_tree_lock import LockUnavailable, source_tree_lock
    def on_wait(wait):
        tell("waits for", wait.holder.pid, lock.locked(), lock.holder().pid)
        raise SystemExit
    lock = source_tree_lock(sys.argv[1], on_wait=on_wait)
    try:
        lock.acquire()
    except LockUnavailable:
        tell("unavailable")
"""


# Where nobody can have the lock file, the tree alone serves


def not_writable(directory: Path) -> tuple[str, ...]:
    directory.mkdir(0o555)
    return WITHOUT_ROOTS_RIGHTS


def mounted(options: str, fill: str, directory: Path) -> tuple[str, ...]:
    """A file system of its own for each process that starts, which others do not see."""
    prefix = own_mounts()
    directory.mkdir()
    command = f'mount -t tmpfs -o {options} tmpfs "$1"{fill} && shift && exec "$@"'
    return *prefix, "sh", "-ec", command, "sh", str(directory)


FULL = partial(mounted, "size=4k,nr_inodes=2", ' && head -c 4096 /dev/zero >"$1/filling"')
#: How a directory is made, and what is put before a command that meets it; a word of the advice.
STATES: dict[str, tuple[Callable[[Path], tuple[str, ...] | None], str]] = {
    "missing": (lambda directory: (), "does not exist"),
    "a file": (Path.touch, "is not a directory"),
    "not writable": (not_writable, "mode 1777"),
    "read-only": (partial(mounted, "ro", ""), "Read-only file system"),
    "full": (FULL, "No space left"),
    "x" * 300: (lambda directory: (), "too long"),
}

#: Enters twice, and tells what is logged and what it hands over.
ALONE = """
    import logging
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
    lock = source_tree_lock(sys.argv[1])
    with lock:
        pass
    with lock:
        tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
        heard()
    tell("released")
"""


@linux_only
@pytest.mark.parametrize("state", STATES)
def test_where_nobody_can_have_the_lock_file_the_tree_alone_serves(
    state: str, tree: Path, tmp_path: Path
) -> None:
    make, advice = STATES[state]
    prefix = make(tmp_path / state) or ()
    environ = {"TMPDIR": str(tmp_path / state)}
    with Child(ALONE, tree, prefix=prefix, environ=environ) as holder:
        said = holder.line()
        assert said.startswith(f"INFO Source tree {str(tree)!r} is locked by itself alone")
        assert advice in said
        inside = {**environ, "SOURCE_TREE_LOCK_HELD": holder.line()}
        assert not is_free(tree)
        waits = f"waits for {holder.pid} True {holder.pid}"
        for each, expected in (
            (environ, waits),
            ({}, waits),  # it has a lock file
            (inside, "unavailable"),  # there is no place for the lock file inside the hold
        ):
            with Child(TRY, tree, environ=each, prefix=prefix if each else ()) as other:
                other.expect(expected)
        with Child(HOLD, tree, environ=environ, prefix=prefix) as waiter:
            wait_until_blocked(waiter.pid)
            holder.say()
            holder.expect("released")
            waiter.expect("held")


def test_where_neither_can_be_had_nobody_enters(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    refuse(monkeypatch, errno.EBADF, directories=True)
    lock = source_tree_lock(tree)
    with pytest.raises(LockUnavailable, match="does not exist") as caught:
        lock.acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(lock.lock_file))
    assert not lock.is_owner()


# The tree itself keeps everybody out, however it is reached


@linux_only
def test_a_bind_mount_and_another_temporary_directory_are_no_way_around(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    prefix = (*own_mounts(), "sh", "-c", mount, "sh", str(tree), str(other))
    lock = source_tree_lock(tree, timeout=0.05)
    lock.acquire()
    with Child(HOLD, other, environ={"TMPDIR": str(tmp_path)}, prefix=prefix) as stranger:
        wait_until_blocked(stranger.pid)
        lock.release()
        stranger.expect("held")
        with pytest.raises(LockTimeout):
            lock.acquire()
        assert is_free(lock.lock_file), "only the tree's own lock keeps us out"
        stranger.say()
        stranger.expect("released")
        with lock:
            assert not is_free(tree)


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_child_inside_the_hold_of_a_parent_that_was_killed_keeps_strangers_out(
    wait: str, tree: Path, lock_file: Path
) -> None:
    hands_over = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]) as lock:
            tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
            heard()
    """
    with Child(hands_over, tree) as parent:
        environ = {"SOURCE_TREE_LOCK_HELD": parent.line()}
        with held_elsewhere(tree, environ=environ) as inside:
            parent.kill()
            assert source_tree_lock(tree).locked()
            assert not source_tree_lock(tree).acquire(timeout=0.05)
            assert (is_free(lock_file), is_free(tree)) == (True, True)
            with Child("tell('starts')" + script(wait), tree) as stranger:
                stranger.expect("starts")
                assert stranger.is_silent(0.1)
                inside.say()
                inside.expect("released")
                stranger.expect("held")
                assert (is_free(lock_file), is_free(tree)) == (False, False)
