"""What this process holds, and what becomes of it when nobody has the lock any more."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from pathlib import Path

import pytest
from support import LIMIT, Child, is_free

from source_tree_lock import SourceTreeLock, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks flock(2) who is in")


def drop(locks: list[SourceTreeLock]) -> None:
    locks.clear()
    gc.collect()  # PyPy counts no references


def test_a_held_lock_that_is_dropped_releases_its_tree_with_a_warning(
    tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)
    lock_file = lock.lock_file
    assert lock.acquire()
    assert lock.acquire()
    locks = [lock]
    del lock
    with pytest.warns(ResourceWarning, match="tree"):
        drop(locks)
    assert is_free(lock_file)
    assert is_free(tree)


def test_a_dropped_lock_releases_no_entry_of_another_one(tree: Path, no_leaks: object) -> None:
    kept, dropped = source_tree_lock(tree), [source_tree_lock(tree)]
    with kept:
        assert dropped[0].acquire()
        with pytest.warns(ResourceWarning):
            drop(dropped)
        assert not is_free(tree)
    assert is_free(tree)


def test_a_lock_that_was_released_is_dropped_in_silence(tree: Path) -> None:
    lock = source_tree_lock(tree)
    with lock:
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del lock
        gc.collect()


def test_a_lock_that_another_thread_drops_releases_its_tree(tree: Path, no_leaks: object) -> None:
    locks = [source_tree_lock(tree)]
    assert locks[0].acquire()

    def drop_in_thread() -> None:
        thread = threading.Thread(target=drop, args=(locks,))
        thread.start()
        thread.join(LIMIT)

    with pytest.warns(ResourceWarning):
        drop_in_thread()
    assert is_free(tree)


def test_a_lock_that_is_held_at_the_end_of_the_process_keeps_nobody_out(tree: Path) -> None:
    script = """
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        lock.acquire()
        tell("held")
        heard()
    """
    with Child(script, tree) as child:
        child.expect("held")
        assert not is_free(tree)
        child.say()
        assert child.process.wait(LIMIT) == 0
        assert is_free(tree)
