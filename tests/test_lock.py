"""The lock object: entering and leaving, `acquire` and `release`, and what it says of itself."""

from __future__ import annotations

import _thread
import asyncio
import copy
import errno
import importlib
import math
import os
import pickle
import shutil
import sys
import tempfile
import threading
import unittest
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import LIMIT, drop, held_by_thread, held_elsewhere, in_thread, is_free, is_taken

from source_tree_lock import (
    Holder,
    LockTimeout,
    LockUnavailable,
    SourceTreeLock,
    SourceTreeLockError,
    _queue,
    source_tree_lock,
)

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
}
each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


# `with` and `async with`


def test_another_process_is_kept_out_until_the_holder_leaves(tree: Path, no_leaks: object) -> None:
    with held_elsewhere(tree) as child:
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0.05).__enter__()
        child.say()
        child.expect("released")
        with source_tree_lock(tree, timeout=LIMIT) as lock:
            assert lock.is_owner()


def run_with(lock: SourceTreeLock, body: Callable[[], object]) -> None:
    with lock:
        body()


def run_async_with(lock: SourceTreeLock, body: Callable[[], object]) -> None:
    async def main() -> None:
        async with lock:
            body()

    asyncio.run(main())


@pytest.mark.parametrize("run", [run_with, run_async_with])
@pytest.mark.parametrize("left_before", [False, True])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_from_the_body_comes_out_as_it_is(
    error: type[BaseException], left_before: bool, run: Callable[..., None], tree: Path
) -> None:
    lock, raised = source_tree_lock(tree), error("from the body")

    def body() -> None:
        if left_before:
            lock.release()
        raise raised

    # A generator that is closed did not raise this: that nothing is left to leave is said then.
    expected = RuntimeError if left_before and error is GeneratorExit else error
    with pytest.raises(expected) as caught:
        run(lock, body)
    assert caught.value is raised or expected is RuntimeError
    assert not is_taken(tree)
    with pytest.raises(RuntimeError, match="has not entered"):
        run(lock, lock.release)


def test_async_with_needs_an_event_loop_and_says_so(tree: Path, no_leaks: object) -> None:
    with pytest.raises(RuntimeError, match="asyncio or trio"):
        source_tree_lock(tree).__aenter__().send(None)
    assert not is_taken(tree)


# Who may enter again, and who waits


def test_the_same_owner_enters_again_and_the_last_leave_releases(
    tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)

    async def main() -> None:
        async with lock as entered, lock, source_tree_lock(tree):
            assert entered is lock
            with lock:
                assert lock.acquire(blocking=False)
            lock.release()
            assert is_taken(tree)

    with lock as entered:
        assert entered is lock
        with lock, lock:
            assert lock.acquire(blocking=False)
            lock.release()
        assert is_taken(tree)
    assert not is_taken(tree)
    asyncio.run(main())
    assert not is_taken(tree)


def test_two_objects_for_one_tree_are_one_lock_however_the_path_is_spelled(
    tree: Path, tmp_path: Path
) -> None:
    tree.with_name("link").symlink_to("tree")
    locks = [source_tree_lock(each) for each in (tree, f"{tree}/../tree", tree.with_name("link"))]
    locks.append(source_tree_lock(tree, lock_dir=tmp_path / "other"))
    locks.append(source_tree_lock(tree, digest=lambda path: "other"))
    for outer in locks:
        with outer:
            for inner in locks:
                assert inner.acquire(blocking=False), f"{inner} waits for {outer}"
                inner.release()
                assert inner.is_owner()
            assert is_taken(tree)
        assert not is_taken(tree)


def test_entries_through_two_objects_may_be_left_in_any_order(tree: Path, no_leaks: object) -> None:
    first, second = source_tree_lock(tree), source_tree_lock(tree)
    first.acquire()
    second.acquire()
    first.release()
    with pytest.raises(RuntimeError, match="has not entered"):  # through this object
        first.release()
    assert is_taken(tree)
    second.release()
    assert not is_taken(tree)


# Leaving releases what was entered


#: What happens while the tree is held.
CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "working directory": lambda path, patch: patch.chdir("/"),
    "tree removed": lambda path, patch: shutil.rmtree(path),
    "tree replaced": lambda path, patch: path.with_name("another").replace(path),
    "link turned": lambda path, patch: path.with_name("turned").replace(path.with_name("link")),
    "temporary directory": lambda path, patch: patch.setenv("TMPDIR", "/elsewhere"),
    "lock directory": lambda path, patch: patch.setenv("SOURCE_TREE_LOCK_DIR", "/elsewhere"),
    "timeout": lambda path, patch: patch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "nonsense"),
    "lock directory removed": lambda path, patch: shutil.rmtree(os.environ["TMPDIR"]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", [".", "../link"])
def test_leaving_releases_what_was_entered(
    change: str, path: str, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    tree.with_name("link").symlink_to("tree")
    tree.with_name("turned").symlink_to("temp")
    tree.with_name("another").mkdir()
    monkeypatch.chdir(tree)
    kept = []
    try:
        with source_tree_lock(path) as lock:
            entered = (lock.tree, lock.lock_file)
            kept = [os.open(each, os.O_RDONLY) for each in entered]
            CHANGES[change](tree, monkeypatch)
            assert (lock.tree, lock.lock_file) == entered
            assert lock.is_owner()
            assert not any(map(is_free, kept))
        assert all(map(is_free, kept))
    finally:
        for descriptor in kept:
            os.close(descriptor)


# A lock that is dropped


@pytest.mark.parametrize("run", [in_thread, lambda function: function()])
def test_a_lock_that_is_dropped_while_it_holds_releases_its_entries_with_a_warning(
    run: Callable[[Callable[[], None]], None], tree: Path, no_leaks: object
) -> None:
    kept, dropped = source_tree_lock(tree), [source_tree_lock(tree)]
    kept.acquire()
    dropped[0].acquire()
    dropped[0].acquire()
    with pytest.warns(ResourceWarning, match="tree"):
        run(lambda: drop(dropped))
    assert not is_free(tree), "the entry through the other object lasts"
    dropped.append(kept)
    del kept
    with pytest.warns(ResourceWarning, match="tree"):
        run(lambda: drop(dropped))
    assert is_free(tree)


# `acquire` and `release`, by the rules of threading.RLock


CPYTHON: ModuleType | None = None
with suppress(ImportError):
    CPYTHON = importlib.import_module("test.lock_tests")
#: Private methods, and the text of `repr`, are no rules.
NOT_OURS = set(
    "test__is_owned test_release_save_unacquired test_recursion_count "
    "test_repr test_repr_count test_locked_repr".split()
)
if sys.version_info < (3, 11):  # there, current_thread() keeps an object for each foreign thread
    NOT_OURS.add("test_thread_leak")
RLOCK_TESTS = (
    sorted(set(unittest.TestLoader().getTestCaseNames(CPYTHON.RLockTests)) - NOT_OURS)
    if CPYTHON
    else []
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some are dropped
@pytest.mark.parametrize("name", RLOCK_TESTS)
def test_it_passes_cpythons_own_test_of_rlock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CPYTHON is not None

    def threads_of_the_test() -> int:
        # All but ours that waits in the kernel's queue, as long as another holds the tree.
        return _thread._count() - len(_queue._queues)

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
                while lock.is_owner():
                    lock.release()
            locks.clear()
            super().tearDown()

    result = unittest.TestResult()
    Tests(name).run(result)
    assert result.testsRun == 1
    assert not result.skipped
    assert result.wasSuccessful(), result.errors + result.failures


@pytest.mark.parametrize(
    ("options", "variable"), [({"timeout": 0.01}, "nonsense"), ({}, "0.01")], ids=str
)
def test_acquire_returns_false_only_for_a_limit_of_this_call(
    options: dict[str, Any], variable: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = source_tree_lock(tree, after_wait=lambda wait: pytest.fail("it got in"), **options)
    with held_by_thread(tree), monkeypatch.context() as patch:
        patch.setenv("SOURCE_TREE_LOCK_TIMEOUT", variable)
        limited: list[dict[str, Any]] = [{"blocking": False}, {"timeout": 0}, {"timeout": 0.01}]
        assert [lock.acquire(**limit) for limit in limited] == [False] * 3
        for enter in (lock.acquire, partial(lock.acquire, True, timeout=-1), lock.__enter__):
            with pytest.raises(LockTimeout):
                enter()
        assert not lock.is_owner()
    assert lock.acquire(timeout=LIMIT) is True  # longer than the lock's own
    lock.release()


# What it says of itself


def test_locked_is_about_anybody_and_is_owner_about_this_thread_or_task(
    tree: Path, temp_dir: Path
) -> None:
    lock, other = source_tree_lock(tree), source_tree_lock(f"{tree}/.")

    def look() -> list[tuple[bool, bool, bool]]:
        return [(each.locked(), each.is_owner(), each.holder() is None) for each in (lock, other)]

    async def look_in_task() -> list[tuple[bool, bool, bool]]:
        return look()

    assert look() == [(False, False, True)] * 2
    assert list(temp_dir.iterdir()) == [], "looking leaves nothing behind"
    with lock:
        assert look() == [(True, True, False)] * 2
        assert in_thread(look) == [(True, False, False)] * 2
        assert asyncio.run(look_in_task()) == [(True, False, False)] * 2
    assert look() == [(False, False, True)] * 2
    with held_elsewhere(tree) as child:
        assert look() == [(True, False, False)] * 2
        child.say()
        child.expect("released")
        assert look() == [(False, False, True)] * 2


@pytest.mark.parametrize(("name", "error"), [("missing", FileNotFoundError), ("\0", ValueError)])
def test_where_there_is_no_tree_there_is_nothing_to_look_at(
    name: str, error: type[Exception], tree: Path
) -> None:
    lock = source_tree_lock(f"{tree}/{name}")
    assert not lock.is_owner()
    for look in (lock.locked, lock.holder, lambda: lock.tree, lambda: lock.lock_file, lock.acquire):
        with pytest.raises(error, match="source tree"):
            look()


def test_repr_says_which_tree_and_how_often_this_object_entered(tree: Path) -> None:
    lock, second = source_tree_lock(tree), source_tree_lock(tree)
    assert repr(lock) == f"<SourceTreeLock of {tree!r}>"
    with lock:
        assert repr(lock) == f"<SourceTreeLock of {tree!r}, entered 1 time>"
        assert repr(second) == f"<SourceTreeLock of {tree!r}>"
        with lock:
            assert "entered 2 times" in repr(lock)
    assert "entered" not in repr(lock)


@each_copy
def test_a_copy_of_a_lock_is_another_lock_that_has_not_entered(
    tree: Path, copied: Callable[[SourceTreeLock], SourceTreeLock], no_leaks: object
) -> None:
    lock = source_tree_lock(tree, timeout=0)
    with lock:
        other = copied(lock)
        assert "entered" not in repr(other)
        with pytest.raises(RuntimeError, match="has not entered"):
            other.release()
        with pytest.raises(LockTimeout):  # it has the options too
            raise in_thread(other.acquire)
        with other:
            pass
        drop([other])
        assert is_taken(tree)
    assert not is_taken(tree)


def test_it_can_be_subclassed(tree: Path) -> None:
    class Project(SourceTreeLock):
        def __init__(self, name: str, path: Path) -> None:
            super().__init__(path, timeout=LIMIT)
            self.name = name

    with copy.copy(Project("first", tree)) as lock:
        assert (lock.name, lock.is_owner()) == ("first", True)
        assert repr(lock).startswith("<Project of ")
    assert lock(is_taken)(tree)


# Options


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *(("path", None, TypeError), ("digest", "name", TypeError)),
        *(
            ("timeout", "1", TypeError),
            ("timeout", -2, ValueError),
            ("timeout", math.nan, ValueError),
        ),
        *(("lock_dir", 17, TypeError), ("lock_dir", "", ValueError)),
        *((name, "say", TypeError) for name in ("on_wait", "while_waiting", "after_wait")),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_the_constructor(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        source_tree_lock(**{name: value})


@pytest.mark.parametrize("timeout", [-2, math.nan, threading.TIMEOUT_MAX * 2, "1", None, 1])
def test_acquire_refuses_what_rlock_refuses(timeout: Any, tree: Path) -> None:
    errors = []
    for lock in (threading.RLock(), source_tree_lock(tree)):
        with pytest.raises((TypeError, ValueError, OverflowError)) as caught:
            lock.acquire(timeout != 1, timeout)
        errors.append(caught.type)
    assert errors[0] is errors[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        *({"timeout": each} for each in (math.inf, threading.TIMEOUT_MAX * 2, 10**12, None, 0, 1)),
    ],
    ids=str,
)
def test_any_other_timeout_serves_a_free_tree_and_a_long_one_a_wait(
    options: dict[str, Any], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "")  # as if it were not there
    with source_tree_lock(tree, **options):
        assert is_taken(tree)
    if options.get("timeout") not in (0, 1):
        for run in (run_with, run_async_with):
            with held_elsewhere(tree) as child:
                lock = source_tree_lock(tree, on_wait=lambda _: child.say(), **options)
                run(lock, lambda: child.expect("released"))


@pytest.mark.parametrize("name", ["on_wait", "while_waiting", "after_wait"])
@pytest.mark.parametrize(
    "callback", [asyncio.sleep, asyncio.Lock().acquire, partial(asyncio.sleep)]
)
def test_a_coroutine_function_as_callback_is_refused(
    name: str, callback: Callable[..., object], tree: Path
) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a plain function"):
        source_tree_lock(tree, **{name: callback})  # type: ignore[arg-type]


# Errors


@each_copy
def test_errors_can_be_sent_to_another_process(copied: Callable[[Any], Any]) -> None:
    holder = Holder(17, "build", "here", 1.5)
    timeout = copied(LockTimeout("waited", tree="/tree", waited=2.5, holder=holder))
    assert type(timeout) is LockTimeout
    assert str(timeout) == "waited"
    assert (timeout.tree, timeout.waited, timeout.holder) == ("/tree", 2.5, holder)
    unavailable = copied(LockUnavailable(errno.EROFS, "read-only; name another", "/lock/file"))
    assert (unavailable.errno, unavailable.filename) == (errno.EROFS, "/lock/file")
    assert "read-only; name another" in str(unavailable)
    for error, base in ((timeout, TimeoutError), (unavailable, OSError)):
        assert isinstance(error, base)
        assert isinstance(error, SourceTreeLockError)
