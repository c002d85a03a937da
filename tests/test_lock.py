"""The object: enter and leave, acquire and release, and what it tells."""

from __future__ import annotations

import _thread
import asyncio
import copy
import gc
import importlib
import os
import pickle
import tempfile
import threading
import unittest
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import trio
from support import LIMIT, held_by_thread, held_elsewhere, in_thread, is_taken

from source_tree_lock import (
    LockTimeout,
    SourceTreeLock,
    _queue,
    source_tree_lock,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="the rule is of POSIX systems")


# `with` and `async with`


def test_another_process_is_kept_out_until_the_holder_lets_go(tree: Path, no_leaks: object) -> None:
    with held_elsewhere(tree) as child:
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0.05).__enter__()
        child.say()
        child.expect("released")
        with source_tree_lock(tree, timeout=LIMIT) as lock:
            assert lock.locked()


def test_with_gives_the_lock_and_holds_the_tree(tree: Path, no_leaks: object) -> None:
    made = source_tree_lock(tree)
    assert not made.locked()
    with made as lock:
        assert lock is made
        assert lock.locked()
        assert is_taken(tree)
    assert not lock.locked()
    assert not is_taken(tree)


def test_async_with_gives_the_lock_and_holds_the_tree(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        made = source_tree_lock(tree)
        async with made as lock:
            assert lock is made
            assert lock.locked()
            assert is_taken(tree)
        assert not lock.locked()
        assert not is_taken(tree)

    asyncio.run(main())


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_from_the_body_comes_out_as_it_is(
    error: type[BaseException], tree: Path
) -> None:
    raised = error("from the body")
    with pytest.raises(error) as caught, source_tree_lock(tree):
        raise raised
    assert caught.value is raised
    assert caught.value.__context__ is None
    assert not is_taken(tree)

    async def main() -> None:
        with pytest.raises(error) as caught:
            async with source_tree_lock(tree):
                raise raised
        assert caught.value is raised

    asyncio.run(main())
    assert not is_taken(tree)


def test_an_exception_from_the_body_is_not_replaced_by_one_from_leaving(tree: Path) -> None:
    raised = KeyError("from the body")

    def release_and_raise() -> None:
        with source_tree_lock(tree) as lock:
            lock.release()
            raise raised

    async def release_and_raise_async() -> None:
        async with source_tree_lock(tree) as lock:
            lock.release()
            raise raised

    for call in (release_and_raise, lambda: asyncio.run(release_and_raise_async())):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value is raised


def test_leaving_what_was_released_already_is_an_error(tree: Path) -> None:
    with pytest.raises(RuntimeError, match="has not entered"), source_tree_lock(tree) as lock:
        lock.release()


def test_a_generator_that_another_thread_closes_does_not_release_silently(tree: Path) -> None:
    lock = source_tree_lock(tree)

    def generator() -> Iterator[None]:
        with lock:
            yield

    paused = generator()
    next(paused)
    assert isinstance(in_thread(paused.close), RuntimeError)  # type: ignore[attr-defined]
    assert is_taken(tree)
    lock.release()
    assert not is_taken(tree)


def test_async_with_needs_asyncio_and_says_so(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        async with source_tree_lock(tree):
            pass

    with pytest.raises(RuntimeError, match="asyncio"):
        trio.run(main)
    with pytest.raises(RuntimeError, match="asyncio"):
        main().send(None)
    assert not is_taken(tree)


# Acquire and release, by the rules of threading.RLock


def rlock_tests() -> ModuleType | None:
    try:
        return importlib.import_module("test.lock_tests")
    except ImportError:
        return None


CPYTHON = rlock_tests()
#: Private methods, and the text of `repr`, are no rules.
NOT_OURS = {"test__is_owned", "test_release_save_unacquired", "test_recursion_count"} | {
    "test_repr",
    "test_repr_count",
    "test_locked_repr",
    # RLock has a `locked` since Python 3.14, and asks there whether anybody has the lock.
    "test_locked_with_2threads",
}
RLOCK_TESTS = (
    sorted(set(unittest.TestLoader().getTestCaseNames(CPYTHON.RLockTests)) - NOT_OURS)
    if CPYTHON
    else []
)


def test_cpythons_own_tests_of_rlock_are_here() -> None:
    if CPYTHON is None:
        pytest.skip("this Python comes without test.lock_tests: CPython's own tests have not run")
    assert {"test_reacquire", "test_different_thread", "test_timeout"} <= set(RLOCK_TESTS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some are dropped
@pytest.mark.parametrize("name", RLOCK_TESTS)
def test_it_passes_cpythons_own_test_of_rlock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CPYTHON is not None

    def threads_of_the_test() -> int:
        # All but ours that waits in the kernel's queue, as long as another holds the tree.
        return _thread._count() - len(_queue._lines)

    helper = CPYTHON.threading_helper
    monkeypatch.setattr(helper, "_thread", SimpleNamespace(_count=threads_of_the_test))

    locks: list[SourceTreeLock] = []

    class Tests(CPYTHON.RLockTests):  # type: ignore[misc,name-defined]
        @staticmethod
        def locktype() -> SourceTreeLock:
            # Each lock has a tree of its own, since some tests leave one locked.
            lock = source_tree_lock(tempfile.mkdtemp(dir=tmp_path))
            if "weakref" not in name:
                locks.append(lock)
            return lock

        def tearDown(self) -> None:
            for lock in locks:
                while lock.locked():
                    lock.release()
            locks.clear()
            super().tearDown()

    result = unittest.TestResult()
    Tests(name).run(result)
    assert result.testsRun == 1
    assert not result.skipped
    problems = [text for _, text in result.errors + result.failures]
    assert result.wasSuccessful(), problems


def test_acquire_gives_false_where_with_raises(tree: Path) -> None:
    with held_by_thread(tree):
        lock = source_tree_lock(tree, timeout=0.01)
        assert lock.acquire(blocking=False) is False
        assert lock.acquire(timeout=0) is False
        assert lock.acquire(timeout=0.01) is False
        assert lock.acquire() is False, "-1 is the lock's own timeout"
        assert not lock.locked()
        with pytest.raises(LockTimeout):
            lock.__enter__()
    assert lock.acquire(timeout=LIMIT) is True
    lock.release()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is dropped
def test_acquire_with_a_timeout_of_its_own_overrides_the_locks(tree: Path) -> None:
    lock = source_tree_lock(tree, timeout=0)
    with held_elsewhere(tree) as child:
        assert not lock.acquire()
        got_in: list[bool] = []
        waiter = threading.Thread(target=lambda: got_in.append(lock.acquire(timeout=LIMIT)))
        waiter.start()
        child.say()
        waiter.join(LIMIT)
        assert got_in == [True]


def test_a_release_by_a_thread_or_task_that_does_not_hold_is_an_error(tree: Path) -> None:
    with held_by_thread(tree) as lock:
        with pytest.raises(RuntimeError, match="has not entered"):
            lock.release()

        async def main() -> None:
            with pytest.raises(RuntimeError, match="has not entered"):
                lock.release()

        asyncio.run(main())
        assert is_taken(tree)


def test_a_release_is_of_what_was_entered_through_the_same_object(tree: Path) -> None:
    first, second = source_tree_lock(tree), source_tree_lock(tree)
    with first:
        with pytest.raises(RuntimeError, match="has not entered"):
            second.release()
        assert second.locked()


# What it tells


def test_locked_is_about_this_thread_or_task_through_whichever_object(tree: Path) -> None:
    lock, other = source_tree_lock(tree), source_tree_lock(f"{tree}/.")
    with lock:
        assert lock.locked()
        assert other.locked()
        assert in_thread(lock.locked) is False
        assert in_thread(other.locked) is False

        async def main() -> bool:
            return lock.locked() or other.locked()

        assert asyncio.run(main()) is False
    assert not other.locked()


@pytest.mark.parametrize("path", ["missing", "\0"])
def test_nobody_holds_what_is_not_there(path: str, tree: Path) -> None:
    assert source_tree_lock(f"{tree}/{path}").locked() is False


def test_tree_and_lock_file_stay_those_that_are_held(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    with source_tree_lock() as lock:
        lock_file = lock.lock_file
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(tmp_path))
        assert (lock.tree, lock.lock_file) == (tree.resolve(), lock_file)
        assert lock.locked()
    assert lock.tree == tmp_path.resolve()
    assert lock.lock_file.parent == tmp_path


@pytest.mark.parametrize("name", ["tree", "lock_file"])
def test_where_there_is_no_tree_there_is_nothing_to_tell(name: str, tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        getattr(source_tree_lock(tree / "missing"), name)


def test_repr_tells_the_path_and_whether_it_is_held(tree: Path) -> None:
    lock = source_tree_lock(tree)
    assert repr(tree) in repr(lock)
    assert "not held" in repr(lock)
    with lock, lock:
        assert "not held" not in repr(lock)
        assert "2 times" in repr(lock)
    assert "not held" in repr(lock)


@pytest.mark.parametrize(
    "make",
    [copy.copy, copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_lock_is_another_lock_of_its_tree(
    tree: Path, make: Callable[[SourceTreeLock], SourceTreeLock], no_leaks: object
) -> None:
    lock = source_tree_lock(tree, timeout=7)
    with lock:
        copied = make(lock)
        assert "not held" in repr(copied)
        with copied:
            pass
        del copied
        gc.collect()
        assert is_taken(tree)
        with pytest.raises(RuntimeError, match="cannot release"):
            make(lock).release()
    assert not is_taken(tree)


def test_an_async_generator_may_be_closed_by_another_task(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        async def wheels() -> AsyncIterator[int]:
            async with source_tree_lock(tree):
                yield 1
                yield 2

        generator = wheels()

        async def first() -> int:
            return await generator.__anext__()

        async def close() -> None:
            await generator.aclose()  # type: ignore[attr-defined]

        assert await asyncio.create_task(first()) == 1
        assert is_taken(tree)
        await asyncio.create_task(close())
        assert not is_taken(tree)

    asyncio.run(main())


@posix_only
def test_an_async_generator_that_another_task_closes_releases_its_own_tree(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    """One object, and two trees: the task that entered the first has ended."""
    other, link = tmp_path / "other", tmp_path / "link"
    other.mkdir()
    link.symlink_to("tree")
    lock = source_tree_lock(link)

    async def wheels() -> AsyncGenerator[int, None]:
        async with lock:
            yield 1

    async def main() -> None:
        generator = wheels()
        await asyncio.create_task(generator.__anext__())
        link.unlink()
        link.symlink_to("other")
        async with lock:
            await asyncio.create_task(generator.aclose())
            assert (is_taken(tree), is_taken(other)) == (False, True)
            assert lock.locked()
        assert (is_taken(tree), is_taken(other)) == (False, False)

    asyncio.run(main())
    assert not is_taken(tree)


def test_an_async_generator_that_is_left_to_the_loop_is_released_with_it(
    tree: Path, no_leaks: object
) -> None:
    async def main() -> None:
        async def wheels() -> AsyncIterator[int]:
            async with source_tree_lock(tree):
                yield 1

        generator = wheels()
        kept.append(generator)
        assert await generator.__anext__() == 1
        assert is_taken(tree)

    kept: list[object] = []
    asyncio.run(main())
    assert not is_taken(tree)
