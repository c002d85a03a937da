"""The two kernel locks of one entry: both, or the one that there is, and never none."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
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
    _both_locks,
    _kernel_lock,
    _queue,
    source_tree_lock,
)
from source_tree_lock._kernel_lock import KernelLock
from source_tree_lock._paths.lock_file import Place

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
    descriptor = os.open(tree if held == "tree" else lock_file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0).__enter__()
        assert (is_free(lock_file), is_free(tree)) == (held == "tree", held != "tree")
    finally:
        os.close(descriptor)
    with source_tree_lock(tree, timeout=0):
        pass


def test_two_trees_with_one_lock_file_are_not_held_by_one_owner(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    one = source_tree_lock(tree, digest=lambda _: "all")
    two = source_tree_lock(other, digest=lambda _: "all")
    with one, pytest.raises(RuntimeError, match="same lock file"):
        two.acquire()
    spelled = source_tree_lock(other, digest=lambda _: "all", lock_dir=f"{one.lock_file.parent}/.")
    with one, pytest.raises(RuntimeError, match="same lock file"):
        spelled.acquire()
    with source_tree_lock(tree):
        tree.rename(tmp_path / "moved")
        tree.mkdir()
        with pytest.raises(RuntimeError, match="same lock file"):
            source_tree_lock(tree).acquire()
    with source_tree_lock(tree, timeout=0):
        pass


# Starting over


@linux_only
@pytest.mark.parametrize("wait", KINDS)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_was_removed_meanwhile_is_not_believed(
    wait: str, replaced: bool, tree: Path, lock_file: Path
) -> None:
    with held_elsewhere(tree) as holder, Child(script(wait), tree) as waiter:
        wait_until_blocked(waiter.pid)
        lock_file.unlink()
        if replaced:
            lock_file.write_text("")
        holder.say()
        waiter.expect("held")
        assert lock_file.exists()
        assert not is_free(lock_file)


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_tree_that_was_replaced_meanwhile_is_locked_anew(
    wait: str, tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    with held_elsewhere(tree) as holder, Child(script(wait), tree) as waiter:
        wait_until_blocked(waiter.pid)
        tree.rename(tmp_path / "moved")
        tree.mkdir()
        holder.say()
        waiter.expect("held")
        assert not is_free(lock_file)
        assert not is_free(tree)
        assert is_free(tmp_path / "moved")


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_tree_that_was_removed_meanwhile_is_an_error(
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


def test_a_hundred_restarts_are_enough(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    current_status = _kernel_lock.current_status
    looks = []

    def removed_before_each_look(file: KernelLock) -> os.stat_result | None:
        looks.append(file.identity)
        lock_file.unlink()
        return current_status(file)

    monkeypatch.setattr(_both_locks, "current_status", removed_before_each_look)
    with pytest.raises(LockUnavailable, match="100") as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock_file))
    assert len(looks) == 100
    assert is_free(tree)
    monkeypatch.setattr(_both_locks, "current_status", current_status)
    with source_tree_lock(tree, timeout=0):
        pass


def test_a_lock_file_that_is_replaced_without_end_ends_the_wait_in_line_too(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monkeypatch.setattr(_queue, "current_status", lambda file: None)
    with source_tree_lock(tree) as lock:
        line = _queue._Line(Place(str(lock.lock_file), is_named=False))
        caller = _queue.ThreadCaller()
        line.callers.append(caller)
        serving = threading.Thread(target=line.serve)
        serving.start()
    serving.join(LIMIT)
    with pytest.raises(LockUnavailable, match="replaced 100 times") as caught:
        caller.granted()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock.lock_file))


# Locks that the system does not have, and calls that fail


def failing(number: int, monkeypatch: pytest.MonkeyPatch, *, directories: bool) -> list[int]:
    """Have the lock of directories, or of files, fail; give the list of the failures."""
    try_lock, *others = _kernel_lock.prepare_locks()
    failures = []

    def fail(descriptor: int) -> bool:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is directories:
            failures.append(descriptor)
            raise OSError(number, os.strerror(number))
        return try_lock(descriptor)

    monkeypatch.setattr(_kernel_lock, "_calls", (fail, *others))
    return failures


@pytest.mark.parametrize("name", ["EBADF", "ENOSYS", "EOPNOTSUPP", "ENOTSUP"])
def test_where_trees_have_no_lock_the_lock_file_alone_serves(
    name: str,
    tree: Path,
    lock_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    failures = failing(getattr(errno, name), monkeypatch, directories=True)
    with source_tree_lock(tree, timeout=0) as lock:
        assert (is_free(lock_file), is_free(tree)) == (False, True)
        assert lock.locked()
        with lock, source_tree_lock(tree, timeout=0):
            assert lock.locked()
    assert is_free(lock_file)
    assert failures


@pytest.mark.parametrize("name", ["EIO", "ENOLCK", "EINTR", "EPERM", "ESTALE", "EINVAL"])
@pytest.mark.parametrize("directories", [True, False], ids=["tree", "lock file"])
def test_a_lock_that_fails_lets_nobody_in_and_leaves_nothing_locked(
    name: str,
    directories: bool,
    tree: Path,
    lock_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    number = getattr(errno, name)
    with monkeypatch.context() as patch:
        failures = failing(number, patch, directories=directories)
        with pytest.raises(LockUnavailable, match=os.strerror(number)) as caught:
            source_tree_lock(tree).acquire()
        assert failures
    assert caught.value.errno == number
    assert caught.value.filename == str(tree if directories else lock_file)
    assert isinstance(caught.value.__cause__, OSError)
    assert (is_free(lock_file), is_free(tree)) == (True, True)
    with source_tree_lock(tree, timeout=0):
        pass


@pytest.mark.parametrize("name", ["EBADF", "ENOSYS", "EOPNOTSUPP"])
def test_where_lock_files_cannot_be_locked_nobody_gets_in(
    name: str, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    failing(getattr(errno, name), monkeypatch, directories=False)
    with pytest.raises(LockUnavailable, match="lock_dir") as caught:
        source_tree_lock(tree).acquire()
    assert caught.value.errno == getattr(errno, name)
    assert is_free(tree)


#: Tells the error of an attempt in which one module cannot be imported. Arguments: tree, module.
CANNOT_IMPORT = """
    import sys
    from source_tree_lock import LockUnavailable, source_tree_lock
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == sys.argv[2]:
                raise OSError(5, "disk on fire")
    sys.meta_path.insert(0, Finder())
    lock = source_tree_lock(sys.argv[1], timeout=0)
    try:
        lock.acquire()
    except LockUnavailable as error:
        tell(error.errno, error.strerror)
    heard()
"""


@pytest.mark.parametrize(
    "name",
    [
        "portalocker",
        "json",
        *(f"source_tree_lock.{each}" for each in ("_queue", "_waiting")),
    ],
)
def test_an_import_that_fails_is_not_blamed_on_the_file_system(name: str, tree: Path) -> None:
    what = "is to lock it" if name == "portalocker" else "is to wait"
    with held_elsewhere(tree), Child(CANNOT_IMPORT, tree, name) as child:
        child.expect(f"5 what {what} cannot be imported (disk on fire)")


# Where nobody can have the lock file, the tree alone serves


def missing(directory: Path) -> tuple[str, ...]:
    return ()


def a_file(directory: Path) -> tuple[str, ...]:
    directory.touch()
    directory.chmod(0o666)
    return ()


def below_a_file(directory: Path) -> tuple[str, ...]:
    directory.parent.touch()
    return ()


def too_long(directory: Path) -> tuple[str, ...]:
    return ()


def not_writable(directory: Path) -> tuple[str, ...]:
    directory.mkdir()
    directory.chmod(0o555)
    return WITHOUT_ROOTS_RIGHTS


def mounted(options: str, fill: str = "") -> Callable[[Path], tuple[str, ...]]:
    """A file system of its own for each process that starts, which others do not see."""

    def mount(directory: Path) -> tuple[str, ...]:
        prefix = own_mounts()
        directory.mkdir()
        command = f'mount -t tmpfs -o {options} tmpfs "$1"{fill} && shift && exec "$@"'
        return *prefix, "sh", "-ec", command, "sh", str(directory)

    return mount


class State:
    """A state of the directory of the lock files, its errno, and a word of the advice."""

    def __init__(
        self, make: Callable[[Path], tuple[str, ...]], number: int, advice: str, name: str = "temp2"
    ) -> None:
        self.make, self.number, self.advice, self.name = make, number, advice, name

    def prepare(self, tmp_path: Path) -> tuple[str, tuple[str, ...]]:
        """The directory, and what is put before the command of a process that meets it."""
        directory = tmp_path / self.name
        return str(directory), self.make(directory)


STATES = {
    "missing": State(missing, errno.ENOENT, "does not exist"),
    "a file": State(a_file, errno.ENOTDIR, "is not a directory"),
    "below a file": State(below_a_file, errno.ENOTDIR, "is not a directory", "file/below"),
    "too long": State(too_long, errno.ENAMETOOLONG, "too long", "x" * 300),
    "too deep": State(too_long, errno.ENAMETOOLONG, "too long", "/".join(["x" * 200] * 30)),
    "not writable": State(not_writable, errno.EACCES, "mode 1777"),
    "read-only": State(mounted("ro"), errno.EROFS, "read-only"),
    "out of inodes": State(mounted("nr_inodes=1"), errno.ENOSPC, "no inode"),
    "full": State(
        mounted("size=4k,nr_inodes=2", ' && head -c 4096 /dev/zero >"$1/filling"'),
        errno.ENOSPC,
        "no space",
    ),
}

#: Enters thrice, tells what is logged, and what a child that it hands over to gets.
ALONE = """
    import logging, os, subprocess
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
    lock = source_tree_lock(sys.argv[1])
    enter = "import sys, source_tree_lock as s\\n"
    enter += "print(s.source_tree_lock(sys.argv[1]).acquire(blocking=False), flush=True)"
    for _ in range(2):
        with lock:
            pass
    with lock:
        tell("held")
        heard()
        for environ in lock.environ, {}:
            command = [sys.executable, "-c", enter, sys.argv[1]]
            subprocess.run(command, env={**os.environ, **environ}, check=True)
        heard()
    tell("released")
"""

TRY = """
    from source_tree_lock import LockUnavailable, source_tree_lock
    lock = source_tree_lock(sys.argv[1], lock_dir=sys.argv[2] if sys.argv[2:] else None)
    try:
        tell(lock.acquire(timeout=0.05))
    except LockUnavailable as error:
        tell(error.errno, error.filename == str(lock.lock_file), error)
    heard()
"""


#: Tells who holds a tree, whether somebody does, and for whom a wait was.
LOOK = """
    from source_tree_lock import LockTimeout, source_tree_lock
    waits, timeout = [], 0.05
    while not waits:  # on a loaded machine, the first attempt alone takes longer
        lock = source_tree_lock(sys.argv[1], timeout=timeout, on_wait=waits.append)
        timeout *= 2
        try:
            lock.__enter__()
        except LockTimeout as error:
            in_error = error.holder.pid
    tell(lock.holder().pid, lock.is_held(), waits[0].holder.pid, in_error)
"""


@pytest.mark.parametrize("state", STATES)
def test_where_nobody_can_have_the_lock_file_the_tree_alone_serves(
    state: str, tree: Path, tmp_path: Path
) -> None:
    directory, prefix = STATES[state].prepare(tmp_path)
    environ = {"TMPDIR": directory}
    with Child(ALONE, tree, environ=environ, prefix=prefix) as holder:
        said = holder.line()
        assert said.startswith("INFO ")
        assert f"{str(tree)!r} is locked by itself alone" in said
        assert STATES[state].advice in said
        holder.expect("held")
        assert not is_free(tree)
        with Child(TRY, tree, environ=environ, prefix=prefix) as other:
            other.expect("False")
        with Child(TRY, tree) as other:  # it has a lock file
            other.expect("False")
        with Child(LOOK, tree, environ=environ, prefix=prefix) as other:
            other.expect(f"{holder.pid} True {holder.pid} {holder.pid}")
        with Child(HOLD, tree, environ=environ, prefix=prefix) as waiter:
            holder.say()
            holder.expect("True")  # in the child that was handed the hold
            holder.expect("False")
            if sys.platform == "linux":
                wait_until_blocked(waiter.pid)
            holder.say()
            holder.expect("released")
            waiter.expect("held")


@pytest.mark.parametrize("named", ["by an argument", "by the environment"])
@pytest.mark.parametrize("state", [name for name in STATES if name != "missing"])
def test_a_directory_that_somebody_named_has_to_work(
    named: str, state: str, tree: Path, tmp_path: Path
) -> None:
    directory, prefix = STATES[state].prepare(tmp_path)
    arguments, environ = [directory], {}
    if named == "by the environment":
        arguments, environ = [], {"SOURCE_TREE_LOCK_DIR": directory}
    with Child(TRY, tree, *arguments, environ=environ, prefix=prefix) as child:
        number, is_named, message = child.line().split(" ", 2)
        assert is_named == "True"
        assert int(number) == STATES[state].number
        assert STATES[state].advice in message
        assert "lock_dir or SOURCE_TREE_LOCK_DIR" in message
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


@pytest.mark.parametrize("number", ["EBADF", "ENOSYS"])
def test_where_neither_can_be_had_nobody_gets_in(
    number: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    failing(getattr(errno, number), monkeypatch, directories=True)
    lock = source_tree_lock(tree)
    with pytest.raises(LockUnavailable, match="does not exist") as caught:
        lock.acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(lock.lock_file))
    assert not lock.locked()


# The tree itself keeps out whoever comes to it, by any way


#: Makes a tree known as `other` as well; what is put before a command that is to find it there.
Way = Callable[[Path, Path], tuple[str, ...]]


def through_a_symlink(tree: Path, other: Path) -> tuple[str, ...]:
    other.symlink_to(tree)
    return ()


def through_a_bind_mount_in_another_namespace(tree: Path, other: Path) -> tuple[str, ...]:
    prefix = own_mounts()
    other.mkdir()
    mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return *prefix, "sh", "-c", mount, "sh", str(tree), str(other)


@pytest.fixture(
    params=[through_a_symlink, through_a_bind_mount_in_another_namespace],
    ids=lambda way: way.__name__,
)
def stranger(
    request: pytest.FixtureRequest, tree: Path, tmp_path: Path
) -> Iterator[Callable[[str], Child]]:
    """Starts a script with another path to the tree, and with another TMPDIR."""
    way: Way = request.param
    other = tmp_path / "other"
    prefix = way(tree, other)
    temp_dir = tmp_path / "another temp"
    temp_dir.mkdir()
    children: list[Child] = []

    def start(script: str) -> Child:
        children.append(Child(script, other, environ={"TMPDIR": str(temp_dir)}, prefix=prefix))
        return children[-1]

    yield start
    for child in children:
        child.__exit__(None, None, None)


def test_a_stranger_who_holds_keeps_us_out(
    no_leaks: object, stranger: Callable[[str], Child], tree: Path
) -> None:
    holder = stranger(HOLD)
    holder.expect("held")
    lock = source_tree_lock(tree, timeout=0.05)
    with pytest.raises(LockTimeout):
        lock.__enter__()
    assert not lock.acquire(blocking=False)
    assert is_free(lock.lock_file), "only the tree's own lock keeps us out"
    holder.say()
    holder.expect("released")
    with lock:
        assert not is_free(tree)


def test_a_stranger_is_kept_out_while_we_hold(stranger: Callable[[str], Child], tree: Path) -> None:
    script = """
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        tell("got in" if lock.acquire(timeout=0.05) else "kept out")
        with lock:
            tell("held")
            heard()
        tell("released")
    """
    with source_tree_lock(tree):
        child = stranger(script)
        child.expect("kept out")
        wait_until_blocked(child.pid)
    child.expect("held")
    assert not source_tree_lock(tree).acquire(blocking=False)
    child.say()
    child.expect("released")


def test_strangers_never_meet_inside(
    no_leaks: object, stranger: Callable[[str], Child], tree: Path
) -> None:
    """Both make the same file exclusively, and remove it before they leave."""
    meet = """
        import os
        from source_tree_lock import source_tree_lock
        tell("ready")
        heard()
        for _ in range(50):
            with source_tree_lock(sys.argv[1]):
                inside = os.path.join(sys.argv[1], "inside")
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                os.stat(inside)
                os.unlink(inside)
        tell("never met anybody")
    """
    with Child(meet, tree) as native:
        both = (native, stranger(meet))
        for child in both:
            child.expect("ready")
        for child in both:
            child.say()
        for child in both:
            child.expect("never met anybody")


def test_who_holds_does_not_wait_for_itself_by_another_way(
    stranger: Callable[[str], Child], tree: Path, tmp_path: Path
) -> None:
    child = stranger(f"""
        import os
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]) as lock:
            again = source_tree_lock({str(tree)!r}, lock_dir={str(tmp_path / "third")!r})
            tell(again.acquire(blocking=False), again.locked())
            again.release()
            tell(lock.locked())
            heard()
    """)
    child.expect("True True")
    child.expect("True")
    assert not is_free(tree)
    assert not (tmp_path / "third").exists(), "decided before any lock file is opened"
