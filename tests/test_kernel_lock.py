"""One kernel lock on one inode: nobody forgets it, and nobody closes what is another's."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
from support import Child, is_free, open_descriptors

from source_tree_lock import _kernel_lock, source_tree_lock
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
        kinds = {
            line.split()[1]
            for line in Path("/proc/locks").read_text().splitlines()
            if line.split()[4] == str(child.pid)
        }
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
