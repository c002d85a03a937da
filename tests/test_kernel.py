"""The two kernel locks: how a lock file is opened and made, and when an entry starts over."""

from __future__ import annotations

import copy
import errno
import logging
import os
import pickle
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import (
    HOLD,
    LIMIT,
    WITHOUT_ROOTS_RIGHTS,
    Child,
    held_elsewhere,
    is_free,
    open_descriptors,
    wait_until_blocked,
)

from source_tree_lock import (
    LockTimeout,
    LockUnavailable,
    _entry,
    _kernel,
    _lock_file,
    _waiting,
    source_tree_lock,
)
from source_tree_lock._kernel import KernelLock
from source_tree_lock._lock_file import open_lock_file

fcntl = pytest.importorskip("fcntl", reason="Windows has tests of its own")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/locks")

#: Ways to make a lock file, best first; each must do where those before it do not work.
MAKERS = _lock_file._MAKERS


@pytest.fixture
def lock_file(tree: Path) -> Path:
    """The lock file of the tree, not made yet."""
    return source_tree_lock(tree).lock_file


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def never(*_: object) -> KernelLock:
    raise AssertionError("this is not to be called")


# Making the lock file


@pytest.mark.parametrize("first", range(len(MAKERS)), ids=[make.__name__ for make in MAKERS])
def test_a_lock_file_has_mode_0666_whatever_the_umask(
    first: int, tree: Path, lock_file: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lock_file, "_MAKERS", MAKERS[first:])
    with umask(0o077), source_tree_lock(tree, timeout=0):
        assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert lock_file.stat().st_nlink == 1
        assert list(temp_dir.iterdir()) == [lock_file]


@pytest.mark.parametrize("make", MAKERS, ids=[make.__name__ for make in MAKERS])
def test_a_lock_file_that_somebody_else_made_first_is_not_replaced(
    make: Callable[[str], KernelLock], lock_file: Path, temp_dir: Path, no_leaks: object
) -> None:
    lock_file.write_text("theirs")
    before = lock_file.stat()
    with pytest.raises(FileExistsError):
        make(str(lock_file))
    assert (lock_file.stat().st_ino, lock_file.read_text()) == (before.st_ino, "theirs")
    assert list(temp_dir.iterdir()) == [lock_file]


def test_a_lock_file_that_appears_while_ours_is_made_is_the_one_that_is_locked(
    lock_file: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def too_late(path: str) -> None:
        lock_file.write_text("")
        MAKERS[0](path)

    monkeypatch.setattr(_lock_file, "_MAKERS", [too_late, never])
    lock = open_lock_file(str(lock_file), make_directory=False)
    assert lock.identity == (lock_file.stat().st_dev, lock_file.stat().st_ino)
    lock.close()
    assert list(temp_dir.iterdir()) == [lock_file]


@pytest.mark.parametrize("number", ["EPERM", "ENOSYS", "EOPNOTSUPP", "EMLINK"])
def test_where_links_are_refused_the_file_is_made_in_place(
    number: str,
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    # link(2): EPERM is vfat's answer, the others are those of FUSE and SMB file systems.
    def link(*args: object, **kwargs: object) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(os, "link", link)
    with umask(0o077), source_tree_lock(tree, timeout=0):
        assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert list(temp_dir.iterdir()) == [lock_file]
        assert not is_free(lock_file)
    assert is_free(lock_file)


def test_where_files_have_no_modes_either_the_file_is_made_all_the_same(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(lock_file)


def test_another_error_in_making_the_file_is_not_answered_by_another_way(
    tree: Path, lock_file: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def link(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(LockUnavailable, match="No space") as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(lock_file))
    assert list(temp_dir.iterdir()) == []


# Opening the lock file


def test_a_lock_file_that_exists_is_opened_without_o_creat(
    tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    # fs.protected_regular makes the kernel refuse O_CREAT on another user's file in /tmp.
    script = """
        import os
        from source_tree_lock import source_tree_lock
        opened = []
        def hook(event, arguments):
            if event == "open" and str(arguments[0]).startswith(sys.argv[2]):
                opened.append(arguments[2])
        sys.addaudithook(hook)
        for _ in range(2):
            opened.clear()
            with source_tree_lock(sys.argv[1]):
                pass
            tell(len(opened), any(flags & os.O_CREAT for flags in opened))
        heard()
    """
    lock_file.write_text("")
    with Child(script, tree, lock_file) as child:
        child.expect("1 False")
        child.expect("1 False")


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="makes another user's file, as root"
)
def test_a_lock_file_of_another_user_in_a_sticky_directory_is_locked(
    tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    temp_dir.chmod(0o1777)
    lock_file.write_text("")
    lock_file.chmod(0o666)
    os.chown(lock_file, 65534, 65534)
    protection = Path("/proc/sys/fs/protected_regular")
    before = protection.read_text()
    try:
        protection.write_text("2")
    except OSError as error:
        pytest.skip(f"fs.protected_regular cannot be set: {error}")
    try:
        with pytest.raises(PermissionError):
            os.close(os.open(lock_file, os.O_RDWR | os.O_CREAT))
        with source_tree_lock(tree, timeout=0):
            assert not is_free(lock_file)
    finally:
        protection.write_text(before)


def a_symlink(path: Path) -> None:
    path.with_name("private").write_text("private")
    path.symlink_to("private")


def a_dangling_symlink(path: Path) -> None:
    path.symlink_to("nowhere")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_read_only_fifo(path: Path) -> None:
    os.mkfifo(path)
    path.chmod(0o444)


def a_socket(path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("other systems have another error for it")
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def a_device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("make", "number", "hint"),
    [
        (a_symlink, errno.ELOOP, "symbolic link"),
        (a_dangling_symlink, errno.ELOOP, "symbolic link"),
        (a_directory, errno.EISDIR, "directory"),
        (a_fifo, errno.EINVAL, "not a regular file"),
        (a_socket, errno.ENXIO, "not a regular file"),
        (a_device, errno.EINVAL, "not a regular file"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_not_touched(
    make: Callable[[Path], None],
    number: int,
    hint: str,
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
    no_leaks: object,
) -> None:
    make(lock_file)
    before = sorted((path.name, path.lstat().st_ino) for path in temp_dir.iterdir())
    with pytest.raises(LockUnavailable, match=hint) as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (number, str(lock_file))
    assert before == sorted((path.name, path.lstat().st_ino) for path in temp_dir.iterdir())
    if make is a_symlink:
        assert lock_file.read_text() == "private"
        assert is_free(lock_file)
    assert is_free(tree)


@pytest.mark.parametrize("make", [a_symlink, a_read_only_fifo])
def test_what_is_no_regular_file_is_refused_when_it_may_only_be_read_too(
    make: Callable[[Path], None], tree: Path, lock_file: Path
) -> None:
    make(lock_file)
    lock_file.with_name("private").touch(mode=0o444)
    script = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        try:
            source_tree_lock(sys.argv[1]).acquire()
        except LockUnavailable as error:
            tell("refused", error.errno)
        heard()
    """
    number = errno.ELOOP if make is a_symlink else errno.EINVAL
    with Child(script, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        child.expect(f"refused {number}")


def test_a_lock_file_that_may_only_be_read_is_locked_all_the_same(
    tree: Path, lock_file: Path
) -> None:
    lock_file.write_text("theirs")
    lock_file.chmod(0o444)
    with Child(HOLD, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        child.expect("held")
        assert not is_free(lock_file)
        assert lock_file.read_text() == "theirs"
        child.say()
        child.expect("released")
        assert is_free(lock_file)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts, as root")
def test_a_lock_file_on_a_read_only_file_system_is_locked_all_the_same(
    tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    lock_file.write_text("theirs")
    mount = 'mount --bind -o ro "$1" "$1" && shift && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", mount, "sh", str(temp_dir))
    with Child(HOLD, tree, prefix=prefix) as child:
        child.expect("held")
        assert not is_free(lock_file)
        child.say()
        child.expect("released")
    assert lock_file.read_text() == "theirs"


def test_a_file_with_another_name_is_locked_but_never_written_to(
    tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.write_text("private")
    os.link(private, lock_file)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(private)
        assert private.read_text() == "private"
    assert private.read_text() == "private"
    assert is_free(private)


def test_a_lock_file_is_never_deleted(tree: Path, lock_file: Path, temp_dir: Path) -> None:
    inodes = set()
    for _ in range(3):
        with source_tree_lock(tree, timeout=0):
            inodes.add(lock_file.stat().st_ino)
        inodes.add(lock_file.stat().st_ino)
    assert len(inodes) == 1
    assert list(temp_dir.iterdir()) == [lock_file]


# The lock directory


@pytest.mark.parametrize(
    ("mode", "warnings"), [(0o777, 1), (0o1777, 0), (0o755, 0), (0o775, 0), (0o703, 1)]
)
def test_a_directory_from_which_others_can_pull_files_away_gets_one_warning(
    mode: int,
    warnings: int,
    tree: Path,
    temp_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    temp_dir.chmod(mode)
    other = tmp_path / "other"
    other.mkdir()
    for path in (tree, other, tree):
        with source_tree_lock(path, timeout=0):
            pass
    logged = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert [record.levelname for record in logged] == ["WARNING"] * warnings
    assert all(str(temp_dir) in record.getMessage() for record in logged)


# The kind of lock


@linux_only
def test_another_locker_in_portalocker_does_not_change_our_locks(
    tree: Path, lock_file: Path
) -> None:
    script = """
        import fcntl, portalocker, portalocker.portalocker
        portalocker.LOCKER = portalocker.portalocker.LOCKER = fcntl.lockf
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
    """
    with Child(script, tree) as child:
        child.expect("held")
        kinds = {
            line.split()[1]
            for line in Path("/proc/locks").read_text().splitlines()
            if line.split()[4] == str(child.pid)
        }
        assert kinds == {"FLOCK"}
        assert not is_free(lock_file)
        assert not is_free(tree)


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


# Starting over

WAITS = {
    "for ever": "with source_tree_lock(sys.argv[1]): held()",
    "bounded": f"with source_tree_lock(sys.argv[1], timeout={LIMIT}): held()",
    "in asyncio": """
async def main():
    async with source_tree_lock(sys.argv[1]): held()
asyncio.run(main())
""",
}

WAITER = """
import asyncio, sys
from source_tree_lock import source_tree_lock
def held():
    tell("held")
    heard()
"""


@linux_only
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_was_removed_meanwhile_is_not_believed(
    wait: str, replaced: bool, tree: Path, lock_file: Path
) -> None:
    with held_elsewhere(tree) as holder, Child(WAITER + WAITS[wait], tree) as waiter:
        wait_until_blocked(waiter.pid)
        lock_file.unlink()
        if replaced:
            lock_file.write_text("")
        holder.say()
        waiter.expect("held")
        assert lock_file.exists()
        assert not is_free(lock_file)


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_a_tree_that_was_replaced_meanwhile_is_locked_anew(
    wait: str, tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    with held_elsewhere(tree) as holder, Child(WAITER + WAITS[wait], tree) as waiter:
        wait_until_blocked(waiter.pid)
        tree.rename(tmp_path / "moved")
        tree.mkdir()
        holder.say()
        waiter.expect("held")
        assert not is_free(lock_file)
        assert not is_free(tree)
        assert is_free(tmp_path / "moved")


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_a_tree_that_was_removed_meanwhile_is_an_error(
    wait: str, tree: Path, lock_file: Path
) -> None:
    script = WAITER + "try:\n" + WAITS[wait].replace("\n", "\n    ").join(("    ", "\n"))
    script += "except FileNotFoundError: tell('not found')\nheard()"
    with held_elsewhere(tree) as holder, Child(script, tree) as waiter:
        wait_until_blocked(waiter.pid)
        tree.rmdir()
        holder.say()
        waiter.expect("not found")
        assert is_free(lock_file)


def test_a_hundred_restarts_are_enough(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    current_status = _waiting.current_status
    looks = []

    def removed_before_each_look(file: KernelLock) -> os.stat_result | None:
        looks.append(file.identity)
        lock_file.unlink()
        return current_status(file)

    monkeypatch.setattr(_entry, "current_status", removed_before_each_look)
    with pytest.raises(LockUnavailable, match="100") as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock_file))
    assert len(looks) == 100
    assert is_free(tree)
    monkeypatch.setattr(_entry, "current_status", current_status)
    with source_tree_lock(tree, timeout=0):
        pass


def test_a_lock_file_that_is_replaced_without_end_ends_the_wait_in_line_too(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monkeypatch.setattr(_waiting, "current_status", lambda file: None)
    with source_tree_lock(tree) as lock:
        line = _waiting.Line(str(lock.lock_file), make_directory=False)
        caller = _waiting.ThreadCaller()
        line.callers.append(caller)
        serving = threading.Thread(target=line.serve)
        serving.start()
    serving.join(LIMIT)
    outcome = caller.outcome()
    assert isinstance(outcome, LockUnavailable)
    assert (outcome.errno, outcome.filename) == (errno.ESTALE, str(lock.lock_file))


def test_a_read_only_lock_file_that_is_deleted_while_it_is_opened_is_made_anew(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def deleted_after_its_refusal(path: str, flags: int, *rest: Any, **options: Any) -> int:
        if path == str(lock_file) and lock_file.exists() and not made_anew:
            lock_file.unlink()
            made_anew.append(True)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_(path, flags, *rest, **options)

    made_anew: list[bool] = []
    open_ = os.open
    lock_file.touch()
    monkeypatch.setattr(os, "open", deleted_after_its_refusal)
    with source_tree_lock(tree, timeout=0):
        assert made_anew
        assert not is_free(lock_file)


def test_a_lock_file_that_is_deleted_as_fast_as_it_is_made_is_an_error(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monkeypatch.setattr(_lock_file, "_create", lambda path: None)
    with pytest.raises(LockUnavailable, match="deleted") as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock_file))
    assert is_free(tree)


# Locks that the system does not have, and calls that fail


def failing(number: int, monkeypatch: pytest.MonkeyPatch, *, directories: bool) -> list[int]:
    """Have the lock of directories, or of files, fail; give the list of the failures."""
    try_lock, *others = _kernel._lock_calls()
    failures = []

    def fail(descriptor: int) -> bool:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is directories:
            failures.append(descriptor)
            raise OSError(number, os.strerror(number))
        return try_lock(descriptor)

    monkeypatch.setattr(_kernel, "_calls", (fail, *others))
    return failures


@pytest.mark.parametrize("name", ["EBADF", "ENOSYS", "EOPNOTSUPP", "ENOTSUP"])
def test_where_trees_have_no_lock_the_lock_file_alone_serves_with_a_debug_log(
    name: str,
    tree: Path,
    lock_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    no_leaks: object,
) -> None:
    failures = failing(getattr(errno, name), monkeypatch, directories=True)
    caplog.set_level(logging.DEBUG, "source_tree_lock")
    with source_tree_lock(tree, timeout=0) as lock:
        assert (is_free(lock_file), is_free(tree)) == (False, True)
        assert lock.locked()
        with lock, source_tree_lock(tree, timeout=0):
            assert lock.locked()
    assert is_free(lock_file)
    assert failures
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert any(str(tree) in record.getMessage() for record in caplog.records)


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


def test_a_lock_closes_itself_when_nobody_has_it_any_more(lock_file: Path) -> None:
    before = open_descriptors()
    lock = open_lock_file(str(lock_file), make_directory=False)
    assert lock.try_lock()
    assert not is_free(lock_file)
    del lock
    assert is_free(lock_file)
    assert open_descriptors() <= before


def test_closing_unlocks_though_a_child_has_a_copy_of_the_descriptor(lock_file: Path) -> None:
    lock = open_lock_file(str(lock_file), make_directory=False)
    assert lock.try_lock()
    with Child("heard()", pass_fds=(lock.fileno(),)):
        lock.close()
        assert is_free(lock_file)
    lock.close()  # closing twice does nothing
    with pytest.raises(ValueError, match="closed"):
        lock.fileno()


def test_a_kernel_lock_is_not_copied(lock_file: Path) -> None:
    """A copy would close a number that is another's by then."""
    lock = open_lock_file(str(lock_file), make_directory=False)
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            make(lock)
    lock.close()


def test_a_close_that_is_interrupted_each_time_ends_and_a_later_one_closes(
    lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    lock = open_lock_file(str(lock_file), make_directory=False)
    assert lock.try_lock()
    interruptions = []

    def interrupted(descriptor: int) -> None:
        interruptions.append(descriptor)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        assert _kernel._calls is not None
        patch.setattr(_kernel, "_calls", (*_kernel._calls[:2], interrupted))
        with pytest.raises(KeyboardInterrupt):
            lock.close()
    assert len(interruptions) == 100
    assert not is_free(lock_file)
    lock.close()
    assert is_free(lock_file)
