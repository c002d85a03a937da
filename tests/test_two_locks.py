"""The two kernel locks of one entry: both, or the one that there is, and never none."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import subprocess
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
    held_elsewhere,
    is_free,
    own_mounts,
    wait_until_blocked,
)
from ways import KINDS, script

from source_tree_lock import (
    LockTimeout,
    LockUnavailable,
    SourceTreeLock,
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


def test_both_locks_are_held_and_both_are_released(tree: Path, lock_file: Path) -> None:
    with source_tree_lock(tree, timeout=0):
        assert (is_free(lock_file), is_free(tree)) == (False, False)
    assert (is_free(lock_file), is_free(tree)) == (True, True)


@pytest.mark.parametrize("held", ["lock file", "tree"])
def test_either_lock_alone_keeps_us_out(
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


def remove_lock_file(tree: Path, lock_file: Path) -> None:
    lock_file.unlink()


def replace_lock_file(tree: Path, lock_file: Path) -> None:
    lock_file.unlink()
    lock_file.write_text("")


def replace_tree(tree: Path, lock_file: Path) -> None:
    tree.rename(tree.with_name("moved"))
    tree.mkdir()


@linux_only
@pytest.mark.parametrize("wait", KINDS)
@pytest.mark.parametrize("change", [remove_lock_file, replace_lock_file, replace_tree])
def test_what_was_replaced_during_a_wait_is_locked_anew(
    change: Callable[[Path, Path], None], wait: str, tree: Path, lock_file: Path
) -> None:
    with held_elsewhere(tree) as holder, Child(script(wait), tree) as waiter:
        wait_until_blocked(waiter.pid)
        change(tree, lock_file)
        holder.say()
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


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_tree_that_was_removed_during_a_wait_is_an_error(
    wait: str, tree: Path, lock_file: Path
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
        tree.rmdir()
        holder.say()
        waiter.expect("not found")
        assert is_free(lock_file)


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
            refuse(patch, errno.EAGAIN, directories=False, calls=["try_lock"])
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
    calls: list[str] | None = None,
    after: int = 0,
) -> list[int]:
    """Have flock(2) on directories, or on files, fail; it is busy so many times before.

    Returns:
        The descriptors on which it failed.
    """
    failures: list[int] = []
    busy = [None] * after

    def failing(real: Callable[[int], Any]) -> Callable[[int], Any]:
        def fail(descriptor: int) -> Any:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) is not directories:
                return real(descriptor)
            if busy:
                return busy.pop()
            failures.append(descriptor)
            if number == errno.EAGAIN:
                return False
            raise OSError(number, os.strerror(number))

        return fail

    for call in calls or ["try_lock", "lock"]:
        patch.setattr(_system, call, failing(getattr(_system, call)))
    return failures


@pytest.mark.parametrize("name", ["EBADF", "ENOSYS", "EOPNOTSUPP", "ENOTSUP"])
def test_where_trees_have_no_lock_the_lock_file_alone_serves(
    name: str, tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    failures = refuse(monkeypatch, getattr(errno, name), directories=True)
    with source_tree_lock(tree, timeout=0) as lock:
        assert (is_free(lock_file), is_free(tree)) == (False, True)
        assert lock.locked()
        with lock, source_tree_lock(tree, timeout=0):
            assert lock.is_owner()
    assert is_free(lock_file)
    assert failures


async def enter_in_task(lock: SourceTreeLock) -> None:
    await lock.__aenter__()


#: The ways to wait.
ENTER: dict[str, Callable[[SourceTreeLock], object]] = {
    "with": lambda lock: lock.__enter__(),
    "bounded": lambda lock: lock.acquire(timeout=LIMIT),
    "in asyncio": lambda lock: asyncio.run(enter_in_task(lock)),
    "in trio": lambda lock: trio.run(enter_in_task, lock),
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
def test_a_lock_that_is_refused_is_an_error_at_once_and_leaves_nothing_locked(
    number: int,
    advice: str,
    directories: bool,
    busy_before: int,
    enter: str,
    tree: Path,
    lock_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, number, directories=directories, after=busy_before)
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


#: Tells whether it can enter, or the error.
TRY = """
    from source_tree_lock import LockUnavailable, source_tree_lock
    lock = source_tree_lock(sys.argv[1], lock_dir=sys.argv[2] if sys.argv[2:] else None)
    try:
        tell(lock.acquire(timeout=float(sys.argv[3]) if sys.argv[3:] else 0.05))
    except LockUnavailable as error:
        tell(error.errno, error.filename == str(lock.lock_file), error)
    heard()
"""


def strace(tmp_path: Path, *options: str) -> tuple[str, ...]:
    """What is put before a command to let system calls fail; skips where that is impossible."""
    prefix = ("strace", "-f", "-qq", "-o", os.devnull, *options)
    if shutil.which("strace") is None or subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("needs strace(1), and the right to trace")
    return prefix


@linux_only
@pytest.mark.parametrize("first", [1, 2], ids=["lock file", "tree"])
def test_a_system_that_refuses_flock_to_a_program_is_not_waited_for(
    first: int, tree: Path, tmp_path: Path
) -> None:
    inject = ("-e", "trace=flock", "-e", f"inject=flock:error=EACCES:when={first}+")
    with Child(TRY, tree, tmp_path, LIMIT, prefix=strace(tmp_path, *inject)) as child:
        assert child.line().startswith(f"{errno.EACCES} {first == 1} ")


@linux_only
def test_where_hard_links_are_refused_the_lock_file_is_made_in_place(
    tree: Path, tmp_path: Path
) -> None:
    calls = "link,linkat"
    inject = ("-e", f"trace={calls}", "-e", f"inject={calls}:error=EACCES")
    directory = tmp_path / "locks"
    with Child(TRY, tree, directory, prefix=strace(tmp_path, *inject)) as child:
        child.expect("True")
        (lock_file,) = directory.iterdir()
        assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert not is_free(lock_file)


# Where nobody can have the lock file, the tree alone serves


#: Makes the state of a directory, and gives what to put before a command that meets it.
Make = Callable[[Path], tuple[str, ...]]


def nothing(directory: Path) -> tuple[str, ...]:
    return ()


def a_file(directory: Path) -> tuple[str, ...]:
    directory.touch(0o666)
    return ()


def below_a_file(directory: Path) -> tuple[str, ...]:
    directory.parent.touch()
    return ()


def not_writable(directory: Path) -> tuple[str, ...]:
    directory.mkdir(0o555)
    return WITHOUT_ROOTS_RIGHTS


def mounted(options: str, fill: str = "") -> Make:
    """A file system of its own for each process that starts, which others do not see."""

    def mount(directory: Path) -> tuple[str, ...]:
        prefix = own_mounts()
        directory.mkdir()
        command = f'mount -t tmpfs -o {options} tmpfs "$1"{fill} && shift && exec "$@"'
        return *prefix, "sh", "-ec", command, "sh", str(directory)

    return mount


FULL = mounted("size=4k,nr_inodes=2", ' && head -c 4096 /dev/zero >"$1/filling"')
#: The name of the directory, how it is made, the errno, and a word of the advice.
STATES: dict[str, tuple[str, Make, int, str]] = {
    "missing": ("missing", nothing, errno.ENOENT, "does not exist"),
    "a file": ("file", a_file, errno.ENOTDIR, "is not a directory"),
    "below a file": ("file/below", below_a_file, errno.ENOTDIR, "is not a directory"),
    "too long": ("x" * 300, nothing, errno.ENAMETOOLONG, "too long"),
    "not writable": ("locked", not_writable, errno.EACCES, "mode 1777"),
    "read-only": ("mounted", mounted("ro"), errno.EROFS, "Read-only file system"),
    "out of inodes": ("mounted", mounted("nr_inodes=1"), errno.ENOSPC, "No space left"),
    "full": ("mounted", FULL, errno.ENOSPC, "No space left"),
}

#: Enters twice, tells what is logged, and what a child that it hands over to gets.
ALONE = """
    import logging, os, subprocess
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
    lock = source_tree_lock(sys.argv[1])
    enter = "import sys, source_tree_lock as s\\ntry:\\n"
    enter += " print(s.source_tree_lock(sys.argv[1]).acquire(blocking=False), flush=True)\\n"
    enter += "except s.LockUnavailable: print('unavailable', flush=True)"
    with lock:
        pass
    with lock:
        tell("held")
        heard()
        for environ in {}, lock.environ:
            command = [sys.executable, "-c", enter, sys.argv[1]]
            subprocess.run(command, env={**os.environ, **environ}, check=True)
        heard()
    tell("released")
"""

#: Tells for whom it would wait, whether somebody holds the tree, and who does.
LOOK = """
    from source_tree_lock import source_tree_lock
    def on_wait(wait):
        tell(wait.holder.pid, lock.locked(), lock.holder().pid)
        raise SystemExit
    lock = source_tree_lock(sys.argv[1], on_wait=on_wait)
    lock.acquire()
"""


@linux_only
@pytest.mark.parametrize("state", STATES)
def test_where_nobody_can_have_the_lock_file_the_tree_alone_serves(
    state: str, tree: Path, tmp_path: Path
) -> None:
    name, make, _, advice = STATES[state]
    prefix, environ = make(tmp_path / name), {"TMPDIR": str(tmp_path / name)}
    with Child(ALONE, tree, environ=environ, prefix=prefix) as holder:
        said = holder.line()
        assert said.startswith(f"INFO Source tree {str(tree)!r} is locked by itself alone")
        assert advice in said
        holder.expect("held")
        assert not is_free(tree)
        with Child(TRY, tree, environ=environ, prefix=prefix) as other:
            other.expect("False")
        with Child(TRY, tree) as other:  # it has a lock file
            other.expect("False")
        with Child(LOOK, tree, environ=environ, prefix=prefix) as other:
            other.expect(f"{holder.pid} True {holder.pid}")
        with Child(HOLD, tree, environ=environ, prefix=prefix) as waiter:
            holder.say()
            holder.expect("False")
            holder.expect("unavailable")  # to a child inside the hold: no place for its lock file
            wait_until_blocked(waiter.pid)
            holder.say()
            holder.expect("released")
            waiter.expect("held")


@pytest.mark.parametrize("state", [name for name in STATES if name != "missing"])
def test_a_directory_that_somebody_named_has_to_work(
    state: str, tree: Path, tmp_path: Path
) -> None:
    name, make, number, advice = STATES[state]
    prefix = make(tmp_path / name)
    with Child(TRY, tree, tmp_path / name, prefix=prefix) as child:
        said = child.line()
        assert said.startswith(f"{number} True ")
        assert advice in said
        assert "lock_dir or SOURCE_TREE_LOCK_DIR" in said
        assert is_free(tree)


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_directory_that_is_removed_during_a_wait_leaves_the_tree(
    wait: str, tree: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "removed"
    directory.mkdir()
    environ = {"TMPDIR": str(directory)}
    with (
        held_elsewhere(tree, environ=environ) as holder,
        Child(script(wait), tree, environ=environ) as waiter,
    ):
        wait_until_blocked(waiter.pid)
        shutil.rmtree(directory)
        holder.say()
        waiter.expect("held")
        assert not is_free(tree)


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
@pytest.mark.parametrize("way", ["symlink", "bind mount in another namespace"])
def test_another_path_and_another_temporary_directory_are_no_way_around(
    way: str, tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    other, environ = tmp_path / "other", {"TMPDIR": str(tmp_path)}
    prefix: tuple[str, ...] = ()
    if way == "symlink":
        other.symlink_to(tree)
    else:
        mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        prefix = (*own_mounts(), "sh", "-c", mount, "sh", str(tree), str(other))
        other.mkdir()
    lock = source_tree_lock(tree, timeout=0.05)
    lock.acquire()
    with Child(HOLD, other, environ=environ, prefix=prefix) as stranger:
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


# A lock inside a hold, whose holder is gone

#: Holds the tree and starts a child, which enters inside this hold.
PARENT = """
    import os, subprocess
    from source_tree_lock import source_tree_lock
    inside = '''if True:
        import sys
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            print("child is in", flush=True)
            sys.stdin.readline()
        print("child left", flush=True)
    '''
    with source_tree_lock(sys.argv[1]) as lock:
        command = [sys.executable, "-c", inside, sys.argv[1]]
        subprocess.run(command, env={**os.environ, **lock.environ})
"""


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_child_inside_the_hold_of_a_parent_that_was_killed_keeps_strangers_out(
    wait: str, tree: Path, lock_file: Path
) -> None:
    with Child(PARENT, tree) as parent:
        parent.expect("child is in")
        parent.kill()
        assert (is_free(lock_file), is_free(tree)) == (True, True)
        lock = source_tree_lock(tree)
        assert lock.locked()
        assert not lock.acquire(timeout=0.05)
        assert (is_free(lock_file), is_free(tree)) == (True, True)
        with Child("tell('starts')" + script(wait), tree) as stranger:
            stranger.expect("starts")
            assert stranger.is_silent(0.1)
            parent.say()  # its child hears it
            parent.expect("child left")
            stranger.expect("held")
            assert (is_free(lock_file), is_free(tree)) == (False, False)
