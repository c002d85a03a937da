"""The object: enter and leave, decorate, acquire and release, re-enter, and what it tells."""

from __future__ import annotations

import _thread
import asyncio
import copy
import errno
import functools
import gc
import importlib
import inspect
import math
import os
import pickle
import re
import shutil
import tempfile
import threading
import unittest
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trio
from support import LIMIT, held_elsewhere

from source_tree_lock import (
    Holder,
    LockTimeout,
    LockUnavailable,
    SourceTreeLock,
    SourceTreeLockError,
    Wait,
    _kernel_lock,
    _waiting_line,
    source_tree_lock,
)
from source_tree_lock._entry import Entry
from source_tree_lock._owner import Owner

posix_only = pytest.mark.skipif(os.name != "posix", reason="the rule is of POSIX systems")


@contextmanager
def held_by_thread(tree: Path) -> Iterator[SourceTreeLock]:
    """Another thread of this process holds the tree."""
    entered, leave = threading.Event(), threading.Event()
    lock = source_tree_lock(tree)

    def hold() -> None:
        with lock:
            entered.set()
            assert leave.wait(LIMIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(LIMIT)
    try:
        yield lock
    finally:
        leave.set()
        thread.join(LIMIT)


def in_thread(function: Callable[[], object]) -> Any:
    """What `function` returns or raises in a thread of its own."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT)
    assert outcome, "the thread has not ended"
    return outcome[0]


def is_taken(tree: Path) -> bool:
    """Whether a thread that does not hold the tree is kept out of it."""

    def get_in() -> bool:
        lock = source_tree_lock(tree)
        if not lock.acquire(blocking=False):
            return False
        lock.release()
        return True

    got_in = in_thread(get_in)
    assert type(got_in) is bool, got_in
    return not got_in


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
        return _thread._count() - len(_waiting_line._lines)

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


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"blocking": False, "timeout": 1}, ValueError),
        ({"timeout": -2}, ValueError),
        ({"timeout": math.nan}, ValueError),
        ({"timeout": threading.TIMEOUT_MAX * 2}, OverflowError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": None}, TypeError),
    ],
)
def test_acquire_refuses_what_rlock_refuses(
    arguments: dict[str, Any], error: type[Exception], tree: Path, temp_dir: Path
) -> None:
    with pytest.raises(error):
        threading.RLock().acquire(**arguments)
    with pytest.raises(error):
        source_tree_lock(tree).acquire(**arguments)
    assert list(temp_dir.iterdir()) == []


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


# Timeouts and their errors


@pytest.mark.parametrize("timeout", [math.inf, threading.TIMEOUT_MAX * 2, 10**12, 0, None, True])
def test_a_free_tree_is_entered_with_any_timeout_that_makes_sense(
    timeout: float | None, tree: Path
) -> None:
    with source_tree_lock(tree, timeout=timeout):
        assert is_taken(tree)


@pytest.mark.parametrize("timeout", [math.inf, threading.TIMEOUT_MAX * 2])
def test_a_timeout_beyond_what_the_system_counts_is_a_wait_like_any(
    timeout: float, tree: Path
) -> None:
    with held_elsewhere(tree) as child:
        lock = source_tree_lock(tree, timeout=timeout, on_wait=lambda holder: child.say())
        with lock:
            child.expect("released")

    async def main() -> None:
        with held_elsewhere(tree) as child:
            lock = source_tree_lock(tree, timeout=timeout, on_wait=lambda holder: child.say())
            async with lock:
                child.expect("released")

    asyncio.run(main())


def test_the_time_that_on_wait_takes_counts(tree: Path) -> None:
    def until_the_time_is_up(holder: Wait) -> None:
        threading.Event().wait(0.02)

    with held_elsewhere(tree), pytest.raises(LockTimeout):
        source_tree_lock(tree, timeout=0.01, on_wait=until_the_time_is_up).__enter__()


def test_a_timeout_names_the_tree_the_time_and_the_holder(tree: Path, no_leaks: object) -> None:
    with held_elsewhere(tree) as child:
        with pytest.raises(LockTimeout) as caught:
            source_tree_lock(f"{tree}/.", timeout=0.01).__enter__()
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert isinstance(error, SourceTreeLockError)
        assert error.tree == str(tree.resolve())
        assert error.waited >= 0.01
        assert error.holder is not None
        assert error.holder.pid == child.pid
        assert str(tree.resolve()) in str(error)
        assert str(child.pid) in str(error)


@pytest.mark.parametrize("copied", [copy.copy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_timeout_can_be_sent_to_another_process(
    copied: Callable[[LockTimeout], LockTimeout],
) -> None:
    holder = Holder(17, "build", "here", 1.5)
    error = LockTimeout("waited", tree="/tree", waited=2.5, holder=holder)
    again = copied(error)
    assert type(again) is LockTimeout
    assert (str(again), again.tree, again.waited, again.holder) == (
        "waited",
        "/tree",
        2.5,
        holder,
    )


@pytest.mark.parametrize("copied", [copy.copy, lambda each: pickle.loads(pickle.dumps(each))])
def test_an_unavailable_lock_is_an_os_error_that_can_be_sent_to_another_process(
    copied: Callable[[LockUnavailable], LockUnavailable],
) -> None:
    error = LockUnavailable(errno.EROFS, "read-only; name another", "/lock/file")
    for each in (error, copied(error)):
        assert isinstance(each, OSError)
        assert isinstance(each, SourceTreeLockError)
        assert (each.errno, each.filename) == (errno.EROFS, "/lock/file")
        assert "read-only; name another" in str(each)
        assert "/lock/file" in str(each)


def test_the_environment_sets_the_timeout_and_an_argument_wins(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "0.01")
    with held_by_thread(tree):
        with pytest.raises(LockTimeout):
            source_tree_lock(tree).__enter__()
        assert not source_tree_lock(tree).acquire()
        monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "nonsense")
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0).__enter__()


def test_an_empty_timeout_in_the_environment_is_none(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "")
    with held_elsewhere(tree) as child, source_tree_lock(tree, on_wait=lambda _: child.say()):
        child.expect("released")


@pytest.mark.parametrize(
    "nonsense",
    [
        "no JSON",
        "17",
        '[17, null, {}, {"tree": 1}]',
        '[{"tree": [@], "lock_file": "\\u0000", "pid": 1, "descriptors": []}]',
        '[{"tree": [@], "lock_file": "\\ud800", "pid": 1, "descriptors": [3]}]',
        '[{"tree": [@], "lock_file": 17, "pid": Infinity, "descriptors": [1e300]}]',
        '[{"tree": [@], "lock_file": "/", "pid": 1, "descriptors": [99999999999999999999, -1]}]',
    ],
)
def test_nonsense_in_the_environment_hands_nothing_over_and_disturbs_nobody(
    nonsense: str, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    status = tree.stat()
    nonsense = nonsense.replace("@", f"{status.st_dev}, {status.st_ino}")
    nonsense = nonsense.replace("}", ', "pid_namespace": 0, "token": "x"}')
    monkeypatch.setenv("SOURCE_TREE_LOCK_HELD", nonsense)
    with held_elsewhere(tree) as child:
        assert not source_tree_lock(tree).acquire(blocking=False)
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0.01).__enter__()
        child.say()
        child.expect("released")
        with source_tree_lock(tree, timeout=LIMIT):
            pass


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


# Decorating


def test_a_decorated_function_runs_under_the_lock(tree: Path, no_leaks: object) -> None:
    @source_tree_lock(tree)
    def build(a: int, /, b: int = 2, *, c: int) -> tuple[int, int, int]:
        """Build it."""
        assert is_taken(tree)
        return a, b, c

    assert build(1, c=3) == (1, 2, 3)
    assert not is_taken(tree)
    assert (build.__name__, build.__doc__) == ("build", "Build it.")
    assert str(inspect.signature(build)) == (
        "(a: 'int', /, b: 'int' = 2, *, c: 'int') -> 'tuple[int, int, int]'"
    )
    assert not inspect.iscoroutinefunction(build)


def test_a_callback_of_a_loop_enters_as_its_thread(tree: Path) -> None:
    def enter(taken: asyncio.Future[bool]) -> None:
        with source_tree_lock(tree), source_tree_lock(tree):
            taken.set_result(is_taken(tree))

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[bool] = loop.create_future()
        loop.call_soon(enter, taken)
        return await taken

    assert asyncio.run(main())
    assert not is_taken(tree)


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


def test_a_hold_that_a_collection_ends_while_it_is_entered_again_lets_nobody_in(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    """The collector may run between any two steps, in this thread or another."""
    dropped = source_tree_lock(tree)
    dropped.acquire()
    stands_for = Owner.stands_for

    def then_it_ends(self: Owner, other: Owner) -> bool:
        monkeypatch.undo()
        stands = stands_for(self, other)
        dropped.release()  # as `__del__` does
        return stands

    monkeypatch.setattr(Owner, "stands_for", then_it_ends)
    with source_tree_lock(tree, timeout=0) as lock:
        assert lock.locked()
        assert is_taken(tree)
    assert not is_taken(tree)


@pytest.mark.parametrize("at", [1, 2])
def test_what_interrupts_a_release_is_not_let_in(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object, at: int
) -> None:
    """As a signal handler may: by then one kernel lock is given back, or both."""
    lock = source_tree_lock(tree)
    unlocked = []
    with lock:
        assert _kernel_lock._calls is not None
        *others, unlock = _kernel_lock._calls

        def interrupted(descriptor: int) -> None:
            unlock(descriptor)
            unlocked.append(descriptor)
            if len(unlocked) == at:
                with pytest.raises(RuntimeError, match="just being released"):
                    lock.acquire()

        monkeypatch.setattr(_kernel_lock, "_calls", (*others, interrupted))
    assert len(unlocked) >= at or os.name == "nt"
    assert not is_taken(tree)


def test_a_decorator_that_hides_a_coroutine_is_found_out(tree: Path) -> None:
    """Its body would run when the lock is over."""

    def hide(function: Callable[[], object]) -> Callable[[], object]:
        @functools.wraps(function)
        def hiding() -> object:
            return function()

        return hiding

    async def body() -> None:
        raise AssertionError("it is not to run")

    build = source_tree_lock(tree)(hide(body))
    with pytest.raises(TypeError, match="gives a coroutine"):
        build()
    assert not is_taken(tree)


def test_the_signature_tells_where_the_timeout_comes_from() -> None:
    signature = str(inspect.signature(source_tree_lock))
    assert re.search(r"timeout: \S.* = <from the environment>, ", signature)


def test_a_decorated_async_function_runs_under_the_lock(tree: Path, no_leaks: object) -> None:
    @source_tree_lock(tree)
    async def build(a: int, *, b: int = 2) -> tuple[int, int]:
        """Build it."""
        await asyncio.sleep(0)
        assert is_taken(tree)
        return a, b

    assert inspect.iscoroutinefunction(build)
    assert asyncio.run(build(1)) == (1, 2)
    assert not is_taken(tree)
    assert (build.__name__, build.__doc__) == ("build", "Build it.")
    assert "(a: 'int', *, b: 'int' = 2)" in str(inspect.signature(build))


def test_an_exception_from_a_decorated_function_comes_out_as_it_is(tree: Path) -> None:
    raised = KeyError()

    @source_tree_lock(tree)
    def build() -> None:
        raise raised

    @source_tree_lock(tree)
    async def build_async() -> None:
        raise raised

    for call in (build, lambda: asyncio.run(build_async())):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value is raised
        assert not is_taken(tree)


def test_a_path_may_depend_on_the_calls_arguments(tree: Path, tmp_path: Path) -> None:
    @source_tree_lock(lambda source, *, suffix="": source / suffix)
    def build(source: Path, *, suffix: str = "") -> tuple[bool, bool]:
        return is_taken(tree), is_taken(tmp_path)

    @source_tree_lock(lambda source: source)
    async def build_async(source: Path) -> tuple[bool, bool]:
        return is_taken(tree), is_taken(tmp_path)

    assert build(tree) == (True, False)
    assert build(tmp_path) == (False, True)
    assert build(tmp_path, suffix="tree") == (True, False)
    assert asyncio.run(build_async(tree)) == (True, False)


def test_a_method_may_name_the_tree_of_its_object(tree: Path) -> None:
    class Project:
        root = tree

        @source_tree_lock(lambda self: self.root)
        def build(self) -> bool:
            return is_taken(tree)

    assert Project().build()


@pytest.mark.parametrize("name", ["digest", "on_wait"])
def test_what_is_to_be_called_is_looked_at_before_it_is_called(tree: Path, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a callable"):
        source_tree_lock(tree, **{name: "no callable"})  # type: ignore[arg-type]


def test_a_path_that_depends_on_arguments_serves_a_decorator_only(tree: Path) -> None:
    lock = source_tree_lock(lambda: tree)
    with pytest.raises(TypeError, match="decorator"), lock:
        pass
    with pytest.raises(TypeError, match="decorator"):
        lock.acquire()
    assert not lock.locked()


def test_a_path_that_a_callable_returns_is_checked_as_any_path() -> None:
    def build(path: object) -> None:
        raise AssertionError("not without the lock")

    with pytest.raises(TypeError, match="17"):
        source_tree_lock(lambda path: path)(build)(17)


def test_every_call_of_a_decorated_function_waits_by_the_locks_options(tree: Path) -> None:
    lock = source_tree_lock(tree, timeout=0)

    @lock
    def plain() -> None:
        raise AssertionError("not without the lock")

    @source_tree_lock(lambda: tree, timeout=0)
    async def asynchronous() -> None:
        raise AssertionError("not without the lock")

    with held_by_thread(tree):
        with pytest.raises(LockTimeout):
            plain()
        with pytest.raises(LockTimeout):
            asyncio.run(asynchronous())


class Callables:
    @staticmethod
    def generator(tree: Path) -> Iterator[None]:
        yield

    @staticmethod
    async def async_generator(tree: Path) -> AsyncIterator[None]:
        yield

    async def __call__(self, tree: Path) -> bool:
        await asyncio.sleep(0)
        return is_taken(tree)


class GeneratorObject:
    def __call__(self, tree: Path) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    "function",
    [
        Callables.generator,
        Callables.async_generator,
        functools.partial(Callables.generator, Path()),
        functools.partial(Callables.async_generator, Path()),
        GeneratorObject(),
        GeneratorObject().__call__,
    ],
)
def test_a_generator_function_is_refused(function: Callable[..., object], tree: Path) -> None:
    with pytest.raises(TypeError, match="generator"):
        source_tree_lock(tree)(function)


@pytest.mark.parametrize(
    "function",
    [Callables, classmethod(repr), staticmethod(repr), 17, None, property(repr)],
)
def test_what_is_no_function_is_not_decorated(function: Any, tree: Path) -> None:
    with pytest.raises(TypeError, match="decorates functions"):
        source_tree_lock(tree)(function)


@pytest.mark.parametrize(
    "function",
    [
        Callables(),
        functools.partial(Callables().__call__),
        Callables().__call__,
    ],
)
def test_whatever_gives_a_coroutine_holds_the_lock_until_it_has_ended(
    function: Callable[..., Any], tree: Path
) -> None:
    assert asyncio.run(source_tree_lock(tree)(function)(tree)) is True


def test_a_builtin_function_may_be_decorated(tree: Path) -> None:
    assert source_tree_lock(tree)(len)("four") == 4


# Re-entry


def test_the_same_thread_enters_again_and_the_last_leave_releases(
    tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)
    with lock:
        with lock, lock:
            assert lock.acquire(blocking=False)
            lock.release()
        assert is_taken(tree)
    assert not is_taken(tree)


def test_the_same_task_enters_again_both_ways(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        lock = source_tree_lock(tree)
        async with lock:
            async with lock:
                with lock, source_tree_lock(tree):
                    assert lock.locked()
            assert is_taken(tree)
        assert not is_taken(tree)
        with lock:
            async with lock:
                assert lock.locked()

    asyncio.run(main())


def spellings(tree: Path, tmp_path: Path) -> Iterator[SourceTreeLock]:
    yield source_tree_lock(tree)
    yield source_tree_lock(f"{tree}/../tree")
    yield source_tree_lock(tree, lock_dir=tmp_path / "other")
    yield source_tree_lock(tree, digest=lambda path: "other")
    link = tmp_path / "link"
    if os.name == "posix":
        link.symlink_to("tree")
        yield source_tree_lock(link)


def test_two_objects_for_one_tree_are_one_lock_by_whatever_way(tree: Path, tmp_path: Path) -> None:
    locks = list(spellings(tree, tmp_path))
    for outer in locks:
        with outer:
            for inner in locks:
                assert inner.acquire(blocking=False), f"{inner} waits for {outer}"
                inner.release()
                assert inner.locked()
            assert is_taken(tree)
        assert not is_taken(tree)


def test_entries_through_two_objects_may_be_left_in_any_order(tree: Path, no_leaks: object) -> None:
    first, second = source_tree_lock(tree), source_tree_lock(tree)
    first.acquire()
    second.acquire()
    first.release()
    assert is_taken(tree)
    second.release()
    assert not is_taken(tree)


def test_another_thread_waits_like_a_stranger(tree: Path) -> None:
    with held_by_thread(tree) as lock:
        assert not lock.acquire(blocking=False)
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0.01).__enter__()


def test_another_task_waits_like_a_stranger(tree: Path) -> None:
    async def main() -> list[str]:
        lock = source_tree_lock(tree)
        waiting, told = asyncio.Event(), []

        async def second() -> None:
            other = source_tree_lock(tree, on_wait=lambda holder: waiting.set())
            async with other:
                told.append("second")

        async with lock:
            task = asyncio.create_task(second())
            await asyncio.wait_for(waiting.wait(), LIMIT)
            told.append("first")
        await asyncio.wait_for(task, LIMIT)
        return told

    assert asyncio.run(main()) == ["first", "second"]


def test_one_object_may_be_shared_between_threads(tree: Path, no_leaks: object) -> None:
    lock, inside, most = source_tree_lock(tree), [0], [0]
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(LIMIT)
        for _ in range(20):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                with lock:
                    os.stat(tree)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert (inside, most) == ([0], [1])


def test_a_thread_finds_its_own_entry_while_another_one_removes_its(
    tree: Path, no_leaks: object
) -> None:
    """`reversed` ends early when the list gets shorter."""

    class Entries(list[Entry]):
        """Another thread removes its entry as soon as somebody has begun to look."""

        def __reversed__(self) -> Iterator[Entry]:
            iterator = super().__reversed__()
            self.pop(0)
            return iterator

        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            self.pop(0)
            return found

    lock = source_tree_lock(tree)
    others = lock._entry(None, is_plain=True)
    others.owner = Owner.__new__(Owner)
    others.owner.who = others.owner.thread = object()
    lock._entries = Entries([others])
    with lock:
        pass
    assert lock._entries == []
    assert not is_taken(tree)


def test_one_object_may_be_shared_between_tasks(tree: Path, no_leaks: object) -> None:
    async def main() -> tuple[int, int]:
        lock, inside, most = source_tree_lock(tree), 0, 0

        async def work() -> None:
            nonlocal inside, most
            for _ in range(5):
                async with lock:
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0)
                    inside -= 1

        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(20))), LIMIT)
        return inside, most

    assert asyncio.run(main()) == (0, 1)


# Leaving, whatever has changed since


def change_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")


def remove_the_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    shutil.rmtree(tree)


def replace_the_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.rename(tree.with_name("moved"))
    tree.mkdir()


def change_the_environment(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", "/elsewhere")
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "nonsense")


def remove_the_lock_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(os.environ["TMPDIR"])


@posix_only
@pytest.mark.parametrize(
    "change",
    [
        change_directory,
        remove_the_tree,
        replace_the_tree,
        change_the_environment,
        remove_the_lock_directory,
    ],
)
@pytest.mark.parametrize("path", [".", "../link"])
def test_leaving_releases_what_was_entered(
    change: Callable[[Path, pytest.MonkeyPatch], None],
    path: str,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    tree.with_name("link").symlink_to("tree")
    monkeypatch.chdir(tree)
    kept = [os.open(tree, os.O_RDONLY)]
    try:
        with source_tree_lock(path) as lock:
            kept.append(os.open(lock.lock_file, os.O_RDONLY))
            assert not any(map(is_free_descriptor, kept))
            change(tree, monkeypatch)
            assert lock.locked()
        assert all(map(is_free_descriptor, kept))
        assert not lock.locked()
    finally:
        for descriptor in kept:
            os.close(descriptor)


def is_free_descriptor(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


@posix_only
def test_a_symlink_that_leads_elsewhere_since_makes_no_difference_to_leaving(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.mkdir()
    link.symlink_to("tree")
    with source_tree_lock(link) as lock:
        link.unlink()
        link.symlink_to("other")
        assert lock.tree == tree.resolve()
        assert (is_taken(tree), is_taken(other)) == (True, False)
        with source_tree_lock(link):
            assert (is_taken(tree), is_taken(other)) == (True, True)
        assert (is_taken(tree), is_taken(other)) == (True, False)
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


def test_a_task_of_trio_owns_what_it_enters(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        lock = source_tree_lock(tree)
        async with trio.open_nursery() as nursery:
            with lock, lock:
                assert lock.locked()
                entered = trio.Event()

                async def second() -> None:
                    assert not lock.locked()
                    assert not lock.acquire(blocking=False)
                    with pytest.raises(RuntimeError, match="task of this thread"):
                        lock.acquire()
                    entered.set()

                nursery.start_soon(second)
                with trio.fail_after(LIMIT):
                    await entered.wait()
            assert not is_taken(tree)

    trio.run(main)
