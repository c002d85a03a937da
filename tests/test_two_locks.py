"""The two kernel locks of one entry: both, or the one that there is, and never none."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support import (
    HOLD,
    LIMIT,
    WITHOUT_ROOTS_RIGHTS,
    Child,
    flocked,
    held_elsewhere,
    is_free,
    long_after,
    own_mounts,
    wait_until_blocked,
)
from ways import KINDS, script

from source_tree_lock import LockTimeout, LockUnavailable, SourceTreeLock, _system, source_tree_lock
from source_tree_lock._kernel_lock import KernelLock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/locks")


@pytest.fixture
def lock_file(tree: Path) -> Path:
    """The lock file of the tree, not made yet."""
    return source_tree_lock(tree).lock_file


@pytest.mark.parametrize("held", ["lock file", "tree"])
def test_either_lock_alone_keeps_us_out(
    held: str, tree: Path, lock_file: Path, no_leaks: object
) -> None:
    lock_file.touch()
    lock = source_tree_lock(tree, timeout=0)
    with flocked(tree if held == "tree" else lock_file):
        assert lock.locked()
        with pytest.raises(LockTimeout):
            lock.acquire()
        assert (is_free(lock_file), is_free(tree)) == (held == "tree", held != "tree")
    assert not lock.locked()
    with lock:
        pass


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


def replace_lock_file(tree: Path, lock_file: Path) -> None:
    lock_file.unlink()
    lock_file.touch()


def replace_tree(tree: Path, lock_file: Path) -> None:
    tree.rename(tree.with_name("moved"))
    tree.mkdir()


#: What happens during a wait, what the waiter tells then, and which of the two locks are free.
CHANGES: dict[str, tuple[Callable[[Path, Path], object], str, tuple[bool, bool]]] = {
    "lock file removed": (lambda _, file: file.unlink(), "held", (False, False)),
    "lock file replaced": (replace_lock_file, "held", (False, False)),
    "lock directory removed": (lambda _, file: shutil.rmtree(file.parent), "held", (True, False)),
    "tree replaced": (replace_tree, "held", (False, False)),
    "tree removed": (lambda tree, _: tree.rmdir(), "not found", (True, True)),
}


@linux_only
@pytest.mark.parametrize("wait", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_replaced_during_a_wait_is_locked_anew(
    change: str, wait: str, tree: Path, lock_file: Path
) -> None:
    """The tree alone, if the directory of the lock file is gone; and a tree has to be there."""
    around = """
        try:
            {}
        except FileNotFoundError:
            tell("not found")
        heard()
    """
    apply, told, free = CHANGES[change]
    with held_elsewhere(tree) as holder, Child(script(wait, around), tree) as waiter:
        wait_until_blocked(waiter.pid)
        apply(tree, lock_file)
        holder.say()
        waiter.expect(told)
        assert (is_free(lock_file), is_free(tree)) == free


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
            patch.setattr(_system, "try_lock", lambda descriptor: False)
        with pytest.raises(LockUnavailable, match="replaced 100 times") as caught:
            source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock_file))
    assert len(looks) >= 100
    assert (is_free(lock_file), is_free(tree)) == (True, True)


# Locks that the system does not have, or refuses


def refuse(
    patch: pytest.MonkeyPatch, number: int, *, directories: bool, busy_before: int = 0
) -> None:
    """Have flock(2) on directories, or on files, fail; it is busy so many times before."""
    busy = [None] * busy_before

    def failing(real: Callable[[int], Any]) -> Callable[[int], Any]:
        def fail(descriptor: int) -> Any:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) is not directories:
                return real(descriptor)
            if busy:
                return busy.pop()
            raise OSError(number, os.strerror(number))

        return fail

    for call in ("try_lock", "lock"):
        patch.setattr(_system, call, failing(getattr(_system, call)))


@pytest.mark.parametrize("name", ["EBADF", "ENOSYS", "EOPNOTSUPP", "ENOTSUP"])
def test_where_trees_have_no_lock_the_lock_file_alone_serves(
    name: str, tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    refuse(monkeypatch, getattr(errno, name), directories=True)
    with source_tree_lock(tree, timeout=0) as lock:
        assert (is_free(lock_file), is_free(tree)) == (False, True)
        assert lock.locked()
        with lock, source_tree_lock(tree, timeout=0):
            assert lock.is_owner()
    assert is_free(lock_file)


#: The ways to wait.
ENTER: dict[str, Callable[[SourceTreeLock], object]] = {
    "with": lambda lock: lock.__enter__(),
    "bounded": lambda lock: lock.acquire(timeout=LIMIT),
    "in asyncio": lambda lock: asyncio.run(lock.__aenter__()),
    "in trio": lambda lock: trio.run(lock.__aenter__),
}


@pytest.mark.parametrize("enter", ENTER)
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
@pytest.mark.usefixtures("no_leaks")
def test_a_lock_that_is_refused_is_an_error_at_once_and_leaves_nothing_locked(
    number: int,
    advice: str,
    directories: bool,
    busy_before: int,
    enter: str,
    tree: Path,
    lock_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse(monkeypatch, number, directories=directories, busy_before=busy_before)
    with pytest.raises(LockUnavailable, match=advice) as caught:
        ENTER[enter](source_tree_lock(tree))
    refused = tree if directories else lock_file
    assert (caught.value.errno, caught.value.filename) == (number, str(refused))
    assert isinstance(caught.value.__cause__, OSError)
    assert (is_free(lock_file), is_free(tree)) == (True, True)


@pytest.mark.parametrize("name", ["EBADF", "ENOSYS", "EOPNOTSUPP"])
def test_where_lock_files_cannot_be_locked_nobody_enters(
    name: str, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    refuse(monkeypatch, getattr(errno, name), directories=False)
    with pytest.raises(LockUnavailable, match="lock_dir") as caught:
        source_tree_lock(tree).acquire()
    assert caught.value.errno == getattr(errno, name)
    assert is_free(tree)


# Where nobody can have the lock file, the tree alone serves


MOUNT = 'mkdir -p "$1" && mount -t tmpfs none "$1" -o'
FULL = f'{MOUNT} size=4k,nr_inodes=2 && head -c 4096 /dev/zero >"$1/filling"'
#: The name of a directory, how it is made as "$1", the errno, and a word of the advice.
STATES = {
    "missing": ("missing", ":", errno.ENOENT, "does not exist"),
    "full": ("mounted", FULL, errno.ENOSPC, "No space left"),
    "not writable": ("locked", 'mkdir -p -m 555 "$1"', errno.EACCES, "mode 1777"),
    "a file": ("file", 'touch "$1"', errno.ENOTDIR, "is not a directory"),
    "below a file": ("file/below", 'touch "${1%/*}"', errno.ENOTDIR, "is not a directory"),
    "too long": ("x" * 300, ":", errno.ENAMETOOLONG, "too long"),
    "read-only": ("mounted", f"{MOUNT} ro", errno.EROFS, "Read-only file system"),
    "out of inodes": ("mounted", f"{MOUNT} nr_inodes=1", errno.ENOSPC, "No space left"),
}


def before_a_command(state: str, tmp_path: Path) -> tuple[str, ...]:
    """What makes the state of the directory; a mount is for the command alone, unseen by others."""
    name, make, *_ = STATES[state]
    prefix = own_mounts() if make.startswith(MOUNT) else WITHOUT_ROOTS_RIGHTS
    return *prefix, "sh", "-ec", f'{make}; shift; exec "$@"', "sh", str(tmp_path / name)


#: Enters twice, tells what is logged, and what hands the hold over.
ALONE = """
    import json, logging
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
    lock = source_tree_lock(sys.argv[1])
    with lock:
        pass
    with lock:
        tell(json.dumps(lock.environ))
        heard()
    tell("released")
"""
#: Tells why it cannot enter. Arguments: the tree, and a lock directory if one is named.
TRY = """
    import os
    from source_tree_lock import LockUnavailable, source_tree_lock
    def while_waiting(wait):
        # While hundreds of locks are released at once, the kernel's list may lack others.
        is_known = wait.holder is not None and wait.holder == lock.holder()
        if is_known and "SOURCE_TREE_LOCK_HELD" not in os.environ:
            tell("held by", wait.holder.pid, lock.locked())
            raise SystemExit
    directory = sys.argv[2] if sys.argv[2:] else None
    lock = source_tree_lock(sys.argv[1], lock_dir=directory, while_waiting=while_waiting)
    try:
        tell(lock.acquire())
    except LockUnavailable as error:
        tell(error.errno, error.filename == str(lock.lock_file), error)
"""


@linux_only
@pytest.mark.parametrize("state", long_after(3, STATES))
def test_where_nobody_can_have_the_lock_file_the_tree_alone_serves(
    state: str, tree: Path, tmp_path: Path
) -> None:
    name, _, _, advice = STATES[state]
    options: dict[str, Any] = {"prefix": before_a_command(state, tmp_path)}
    options["environ"] = {"TMPDIR": str(tmp_path / name)}
    with Child(ALONE, tree, **options) as holder:
        said = holder.line()
        assert said.startswith(f"INFO Source tree {str(tree)!r} is locked by itself alone")
        assert advice in said
        handed = json.loads(holder.line())
        assert not is_free(tree)
        for each in (options, {}):  # in vain: another process may have a lock file
            with Child(TRY, tree, **each) as other:
                other.expect(f"held by {holder.pid} True")
        with Child(TRY, tree, environ=handed) as child:  # which has no place for its lock file
            assert child.line().startswith(f"{errno.EROFS} ")
        with Child(HOLD, tree, **options) as waiter:
            wait_until_blocked(waiter.pid)
            holder.say()
            holder.expect("released")
            waiter.expect("held")


@pytest.mark.parametrize("state", [name for name in STATES if name != "missing"])
def test_a_directory_that_somebody_named_has_to_work(
    state: str, tree: Path, tmp_path: Path
) -> None:
    name, _, number, advice = STATES[state]
    with Child(TRY, tree, tmp_path / name, prefix=before_a_command(state, tmp_path)) as child:
        said = child.line()
        assert said.startswith(f"{number} True ")
        assert advice in said
        assert "lock_dir or SOURCE_TREE_LOCK_DIR" in said
        assert is_free(tree)


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
def test_another_path_and_another_temporary_directory_are_no_way_around(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    """A bind mount in another namespace."""
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
