"""One kernel lock on one inode: nobody forgets it, and nobody closes what is another's."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import sys
from pathlib import Path

import pytest
from support import Child, is_free, listed_locks, open_descriptors, wait_until

from source_tree_lock import _kernel_lock, source_tree_lock
from source_tree_lock._kernel_lock import KernelLock
from source_tree_lock._paths.lock_file import Place, open_lock_file

fcntl = pytest.importorskip("fcntl", reason="Windows has tests of its own")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/locks")


@pytest.fixture
def lock_file(tree: Path) -> Path:
    """The lock file of the tree, not made yet."""
    return source_tree_lock(tree).lock_file


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
        kinds: set[str] = set()

        def are_listed() -> bool:
            kinds.update(each[1] for each in listed_locks() if each[4] == str(child.pid))
            return bool(kinds)

        wait_until(are_listed)
        assert kinds == {"FLOCK"}
        assert not is_free(lock_file)
        assert not is_free(tree)


def test_a_lock_closes_itself_when_nobody_has_it_any_more(lock_file: Path) -> None:
    before = open_descriptors()
    lock = open_lock_file(Place(str(lock_file), is_named=False))
    assert lock.try_lock()
    assert not is_free(lock_file)
    del lock
    assert is_free(lock_file)
    assert open_descriptors() <= before


def test_closing_unlocks_though_a_child_has_a_copy_of_the_descriptor(lock_file: Path) -> None:
    lock = open_lock_file(Place(str(lock_file), is_named=False))
    assert lock.try_lock()
    with Child("heard()", pass_fds=(lock.fileno(),)):
        lock.close()
        assert is_free(lock_file)
    lock.close()  # closing twice does nothing
    with pytest.raises(ValueError, match="closed"):
        lock.fileno()


def test_a_kernel_lock_is_not_copied(lock_file: Path) -> None:
    """A copy would close a number that is another's by then."""
    lock = open_lock_file(Place(str(lock_file), is_named=False))
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            make(lock)
    lock.close()


def test_a_close_that_is_interrupted_each_time_ends_and_a_later_one_closes(
    lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    lock = open_lock_file(Place(str(lock_file), is_named=False))
    assert lock.try_lock()
    interruptions = []

    def interrupted(descriptor: int) -> None:
        interruptions.append(descriptor)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        assert _kernel_lock._calls is not None
        patch.setattr(_kernel_lock, "_calls", (*_kernel_lock._calls[:2], interrupted))
        with pytest.raises(KeyboardInterrupt):
            lock.close()
    assert len(interruptions) == 100
    assert not is_free(lock_file)
    lock.close()
    assert is_free(lock_file)


# What was opened, and what is another's by now


def test_failed_opens_leave_nothing_registered(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = dict(_kernel_lock._open)
    lock = KernelLock(str(tree / "missing"))
    with pytest.raises(FileNotFoundError):
        lock.open(os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        source_tree_lock(tree / "missing").acquire()
    for name in ("open", "fstat"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(OSError, match="open files"):
                lock.open(os.O_RDONLY, str(tree))
    lock.open(os.O_RDONLY, str(tree))
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", refuse)
        with pytest.raises(OSError, match="open files"):
            lock.locked_copy()
    lock.close()
    assert _kernel_lock._open == before


def test_a_descriptor_that_somebody_else_closed_is_theirs_and_stays_open(
    tree: Path, tmp_path: Path
) -> None:
    script = """
        import os
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            os.closerange(3, 50)
            theirs = [os.open(sys.argv[2], os.O_RDWR | os.O_CREAT) for _ in range(20)]
        for descriptor in theirs:
            os.fstat(descriptor)
        tell("theirs are open")
        with source_tree_lock(sys.argv[1], timeout=0):
            tell("held")
            heard()
    """
    with Child(script, tree, tmp_path / "theirs") as child:
        child.expect("theirs are open")
        child.expect("held")
        assert not is_free(tree)


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="there is no fork here")
@pytest.mark.parametrize("when", ["before ours", "after ours"])
def test_an_at_fork_hook_of_somebody_else_may_close_and_open_what_it_likes(
    when: str, tree: Path, tmp_path: Path
) -> None:
    script = """
        import os
        def take_numbers():
            os.closerange(3, 50)
            theirs.extend(os.open(sys.argv[2], os.O_RDWR | os.O_CREAT) for _ in range(20))
        theirs = []
        if sys.argv[3] == "before ours":
            os.register_at_fork(after_in_child=take_numbers)
        from source_tree_lock import source_tree_lock
        if sys.argv[3] == "after ours":
            os.register_at_fork(after_in_child=take_numbers)
        with source_tree_lock(sys.argv[1]):
            child = os.fork()
            if child == 0:
                for descriptor in theirs:
                    os.fstat(descriptor)
                tell("theirs are open:", len(theirs))
                heard()
                tell(source_tree_lock(sys.argv[1]).acquire(blocking=False))
                os._exit(0)
            tell("forked")
            os.waitpid(child, 0)
    """
    with Child(script, tree, tmp_path / "theirs", when) as child:
        assert {child.line(), child.line()} == {"theirs are open: 20", "forked"}
        assert not is_free(tree)
        child.say()
        child.expect("False")


#: Enters and leaves the guard over and over while a handler raises. Argument: seconds.
INTERRUPTED_AT_RANDOM = """
    import signal, threading, time
    from source_tree_lock._kernel_lock import guard
    class Alarm(Exception):
        pass
    is_on = False
    def handler(*_):
        global is_on
        if is_on:
            is_on = False  # once: a busy machine is late, and a second one would hit the `except`
            raise Alarm
    def is_free():
        found = []
        def look():
            found.append(guard.acquire(blocking=False))
            if found[0]:
                guard.release()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found[0]
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    hits = locked = 0
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end or not hits:
        try:
            is_on = True
            for _ in range(1000):
                with guard:
                    pass
            is_on = False
        except Alarm:
            is_on = False
            hits += 1
            if not is_free():
                locked += 1
                guard.release()
    signal.setitimer(signal.ITIMER_REAL, 0)
    tell("left locked", locked)
"""


def test_no_interruption_leaves_the_guard_locked(long_run: bool) -> None:
    """CPython 3.14 looks for signals between the C `__enter__` of a `with` and its body."""
    with Child(INTERRUPTED_AT_RANDOM, 20 if long_run else 1.5) as child:
        child.expect("left locked 0")
