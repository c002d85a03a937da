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
    Wait,
    _queue,
    source_tree_lock,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="the rule is of POSIX systems")
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
    async def main() -> None:
        async with source_tree_lock(tree):
            pass

    with pytest.raises(RuntimeError, match="asyncio or trio"):
        main().send(None)
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
    locks = [source_tree_lock(each) for each in (tree, f"{tree}/../tree")]
    locks.append(source_tree_lock(tree, lock_dir=tmp_path / "other", digest=lambda path: "other"))
    if os.name == "posix":
        (tmp_path / "link").symlink_to("tree")
        locks.append(source_tree_lock(tmp_path / "link"))
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


def replace_tree(patch: pytest.MonkeyPatch) -> None:
    os.rename("../tree", "../moved")
    os.mkdir("../tree")


def turn_link(patch: pytest.MonkeyPatch) -> None:
    os.unlink("../link")
    os.symlink("temp", "../link")


#: What happens while the tree is held, which is the working directory.
CHANGES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "tree removed": lambda patch: os.rmdir("../tree"),
    "tree replaced": replace_tree,
    "link turned": turn_link,
    "working directory": lambda patch: os.chdir("/"),  # pytest goes back
    "temporary directory": lambda patch: patch.setenv("TMPDIR", "/elsewhere"),
    "lock directory": lambda patch: patch.setenv("SOURCE_TREE_LOCK_DIR", "/elsewhere"),
    "timeout": lambda patch: patch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "nonsense"),
    "lock directory removed": lambda patch: shutil.rmtree(os.environ["TMPDIR"]),
}


@posix_only
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", [".", "../link"])
def test_leaving_releases_what_was_entered(
    change: str, path: str, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    tree.with_name("link").symlink_to("tree")
    monkeypatch.chdir(tree)
    kept = []
    try:
        with source_tree_lock(path) as lock:
            entered = (lock.tree, lock.lock_file)
            kept = [os.open(each, os.O_RDONLY) for each in entered]
            CHANGES[change](monkeypatch)
            assert (lock.tree, lock.lock_file) == entered
            assert lock.is_owner()
            assert not any(map(is_free, kept))
        assert all(map(is_free, kept))
    finally:
        for descriptor in kept:
            os.close(descriptor)


# A lock that is dropped


@posix_only
@pytest.mark.parametrize("in_another_thread", [False, True])
def test_a_lock_that_is_dropped_while_it_holds_releases_its_entries_with_a_warning(
    in_another_thread: bool, tree: Path, no_leaks: object
) -> None:
    kept, dropped = [source_tree_lock(tree)], [source_tree_lock(tree)]
    for lock in (kept[0], dropped[0], dropped[0]):
        lock.acquire()
    del lock
    for locks in (dropped, kept):
        assert not is_free(tree), "the entry through the other object lasts"
        with pytest.warns(ResourceWarning, match="tree"):
            in_thread(partial(drop, locks)) if in_another_thread else drop(locks)
    assert is_free(tree)


# `acquire` and `release`, by the rules of threading.RLock


CPYTHON: ModuleType | None = None
with suppress(ImportError):
    CPYTHON = importlib.import_module("test.lock_tests")
#: Private methods, and the text of `repr`, are no rules.
NOT_OURS = """
    test__is_owned test_release_save_unacquired test_recursion_count
    test_repr test_repr_count test_locked_repr
""".split()
if sys.version_info < (3, 11):  # there, current_thread() keeps an object for each foreign thread
    NOT_OURS.append("test_thread_leak")
NAMES = unittest.TestLoader().getTestCaseNames(CPYTHON.RLockTests) if CPYTHON else []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some are dropped
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(NOT_OURS)))
def test_it_passes_cpythons_own_test_of_rlock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CPYTHON is not None
    locks: list[SourceTreeLock] = []

    def threads_of_the_test() -> int:
        # All but ours that waits in the kernel's queue, as long as another holds the tree.
        return _thread._count() - len(_queue._queues)

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

    helper = CPYTHON.threading_helper
    monkeypatch.setattr(helper, "_thread", SimpleNamespace(_count=threads_of_the_test))
    result = unittest.TestResult()
    Tests(name).run(result)
    assert (result.testsRun, result.skipped) == (1, [])
    assert result.wasSuccessful(), [text for _, text in result.errors + result.failures]


@pytest.mark.parametrize("of_the_lock", ["argument", "environment"])
def test_acquire_returns_false_only_for_a_limit_of_this_call(
    of_the_lock: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = source_tree_lock(tree)
    if of_the_lock == "argument":
        lock = source_tree_lock(tree, timeout=0.01)
    with held_by_thread(tree), monkeypatch.context() as patch:
        wins = "nonsense" if of_the_lock == "argument" else "0.01"
        patch.setenv("SOURCE_TREE_LOCK_TIMEOUT", wins)
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
    with lock, lock:
        assert repr(lock) == f"<SourceTreeLock of {tree!r}, entered 2 times>"
        assert repr(second) == f"<SourceTreeLock of {tree!r}>"
    assert repr(lock) == f"<SourceTreeLock of {tree!r}>"


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


class Spinner:
    async def stop(self, wait: Wait) -> None:
        pytest.fail("it is called")


WRONG_TYPES: dict[str, list[object]] = {
    "path": [None],
    "timeout": ["1"],
    "digest": ["name"],
    "lock_dir": [17],
    "on_wait": ["say", Spinner.stop],
    "while_waiting": [1, Spinner().stop],
    "after_wait": [(), partial(Spinner().stop)],
}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *((name, value, TypeError) for name in WRONG_TYPES for value in WRONG_TYPES[name]),
        ("timeout", -2, ValueError),
        ("timeout", math.nan, ValueError),
        ("lock_dir", "", ValueError),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_the_constructor(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        source_tree_lock(**{name: value})


LONG: list[Any] = [math.inf, threading.TIMEOUT_MAX * 2, 10**12, None, ""]


@pytest.mark.parametrize("timeout", [*LONG, 0, True])
def test_any_other_timeout_serves_a_free_tree_and_a_long_one_a_wait(
    timeout: Any, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"timeout": timeout}
    if timeout == "":  # in the environment, which is none
        monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", options.pop("timeout"))
    with source_tree_lock(tree, **options):
        assert is_taken(tree)
    for run in (run_with, run_async_with) if timeout in LONG else ():
        with held_elsewhere(tree) as child:
            lock = source_tree_lock(tree, on_wait=lambda _: child.say(), **options)
            run(lock, partial(child.expect, "released"))


# Errors


@each_copy
def test_errors_can_be_sent_to_another_process(copied: Callable[[Any], Any]) -> None:
    holder = Holder(17, "build", "here", 1.5)
    timeout = copied(LockTimeout("waited", tree="/tree", waited=2.5, holder=holder))
    assert type(timeout) is LockTimeout
    assert isinstance(timeout, TimeoutError)
    assert str(timeout) == "waited"
    assert (timeout.tree, timeout.waited, timeout.holder) == ("/tree", 2.5, holder)
    unavailable = copied(LockUnavailable(errno.EROFS, "read-only; name another", "/lock/file"))
    assert isinstance(unavailable, OSError)
    assert (unavailable.errno, unavailable.filename) == (errno.EROFS, "/lock/file")
    assert "read-only; name another" in str(unavailable)
    assert isinstance(timeout, SourceTreeLockError)
    assert isinstance(unavailable, SourceTreeLockError)
