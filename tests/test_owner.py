"""Who owns a hold: a task or greenlet while it lives, and the thread what its ended tasks left."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import textwrap
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    nullcontext,
)
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import LIMIT, Child, drop, held_elsewhere, in_thread, is_free, is_taken

from source_tree_lock import LockTimeout, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks flock(2) who holds")


def another_tree(tree: Path) -> Path:
    directory = tree.with_name("other")
    directory.mkdir()
    return directory


# Tasks of asyncio and of trio

#: Runs a coroutine function, which uses anyio's functions for what the two do in their own ways.
Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    return lambda function: anyio.run(function, backend=request.param)


def test_a_task_holds_and_its_thread_does_not(run: Run, tree: Path, no_leaks: object) -> None:
    lock = source_tree_lock(tree)

    @lock
    async def build() -> None:
        await anyio.lowlevel.checkpoint()
        assert (lock.is_owner(), is_taken(tree)) == (True, True)

    async def main() -> None:
        async with lock, lock:
            with lock:
                await build()
        assert not lock.locked()

    run(main)
    assert not lock.locked()


def test_another_task_waits_like_a_stranger_and_other_tasks_run_meanwhile(
    run: Run, tree: Path, no_leaks: object
) -> None:
    lock, events = source_tree_lock(tree), []

    async def main() -> None:
        waiting = anyio.Event()

        async def second() -> None:
            assert (lock.locked(), lock.is_owner()) == (True, False)
            assert not lock.acquire(blocking=False)
            with pytest.raises(RuntimeError, match="has not entered"):
                lock.release()
            with pytest.raises(RuntimeError, match="a task of this thread holds"):
                lock.acquire()
            with pytest.raises(RuntimeError, match="use `async with` here"):
                lock.__enter__()
            with pytest.raises(LockTimeout):
                await source_tree_lock(tree, timeout=0.01).__aenter__()
            async with source_tree_lock(tree, on_wait=lambda wait: waiting.set()):
                events.append("second")

        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group, lock:
                group.start_soon(second)
                await waiting.wait()
                events.append("first")

    run(main)
    assert events == ["first", "second"]


@pytest.mark.parametrize("granted", [False, True])
def test_an_entry_that_is_cancelled_200_times_holds_nothing(
    granted: bool, run: Run, tree: Path, no_leaks: object
) -> None:
    """Also in the moment of the grant: when the tree is just left, and some turns later."""
    waiting: anyio.Event

    async def enter() -> None:
        async with source_tree_lock(tree, on_wait=lambda wait: waiting.set()):
            assert granted
            await anyio.sleep(LIMIT)

    async def cancel(turns: int, holder: AbstractAsyncContextManager[object]) -> None:
        nonlocal waiting
        waiting = anyio.Event()
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group:
                async with holder:
                    group.start_soon(enter)
                    await waiting.wait()
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()

    async def main() -> None:
        for number in range(200):
            if granted:
                await cancel(number % 20, source_tree_lock(tree))
            else:
                await cancel(0, nullcontext())
        if not granted:
            child.say()
        async with source_tree_lock(tree, timeout=LIMIT):
            assert is_taken(tree)

    with held_elsewhere(tree) as child:
        if granted:
            child.say()
            child.expect("released")
        run(main)
    assert not is_taken(tree)


def test_only_one_of_two_tasks_adopts_the_hold_of_a_task_that_has_ended(
    run: Run, tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)

    async def acquire() -> None:
        assert lock.acquire()

    async def main() -> None:
        adopted, leave = anyio.Event(), anyio.Event()

        async def adopt() -> None:
            async with source_tree_lock(tree, timeout=0):
                adopted.set()
                await leave.wait()

        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group:
                group.start_soon(acquire)
            async with anyio.create_task_group() as group:
                group.start_soon(adopt)
                await adopted.wait()
                assert not source_tree_lock(tree).acquire(blocking=False)
                leave.set()
            lock.release()

    run(main)
    assert is_free(tree)


def test_a_hold_that_outlives_its_loop_is_left_by_its_thread(
    run: Run, tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)

    async def acquire() -> None:
        lock.acquire()

    run(acquire)
    assert not is_free(tree)
    with lock:
        pass
    lock.release()
    assert is_free(tree)


@pytest.mark.parametrize("lives", [False, True])
def test_an_async_generator_may_be_closed_by_another_task_than_the_one_that_entered(
    lives: bool, run: Run, tree: Path, no_leaks: object
) -> None:
    async def wheels() -> AsyncGenerator[int, None]:
        async with source_tree_lock(tree):
            yield 1

    async def main() -> None:
        generator, entered, closed = wheels(), anyio.Event(), anyio.Event()

        async def enter() -> None:
            await generator.__anext__()
            entered.set()
            if lives:
                await closed.wait()

        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group:
                group.start_soon(enter)
                await entered.wait()
                assert is_taken(tree)
                await generator.aclose()
                assert not is_taken(tree)
                closed.set()

    run(main)


def test_a_fixture_is_entered_in_one_task_and_left_in_another_of_another_loop(
    tree: Path, no_leaks: object
) -> None:
    @asynccontextmanager
    async def fixture() -> AsyncIterator[None]:
        with source_tree_lock(tree):
            yield

    manager = fixture()
    loops = [asyncio.new_event_loop() for _ in range(2)]
    loops[0].run_until_complete(manager.__aenter__())
    loops[0].close()
    assert not is_free(tree)
    loops[1].run_until_complete(manager.__aexit__(None, None, None))
    loops[1].close()
    assert is_free(tree)


def test_another_thread_adopts_nothing(tree: Path, no_leaks: object) -> None:
    locks = [source_tree_lock(tree)]

    async def acquire() -> None:
        assert locks[0].acquire()

    in_thread(lambda: asyncio.run(acquire()))
    assert (locks[0].locked(), locks[0].is_owner()) == (True, False)
    assert not source_tree_lock(tree).acquire(blocking=False)
    with pytest.raises(RuntimeError, match="has not entered"):
        locks[0].release()
    with pytest.warns(ResourceWarning):
        drop(locks)
    assert is_free(tree)


# Green threads

#: How a program comes to its greenlets: what is imported, and patched, in which order.
PATCHED = {
    "gevent, early": "from gevent import monkey; monkey.patch_all(); import source_tree_lock",
    "gevent, after an entry": (
        "import source_tree_lock; source_tree_lock.source_tree_lock(sys.argv[2]).__enter__(); "
        "from gevent import monkey; monkey.patch_all()"
    ),
    "gevent, without threads": "from gevent import monkey; monkey.patch_all(thread=False)",
    "gevent, without time": "from gevent import monkey; monkey.patch_all(time=False)",
    "eventlet, late": "import source_tree_lock, eventlet; eventlet.monkey_patch()",
}
#: What both packages call by other names.
GREEN = """
import importlib, signal, sys, warnings
warnings.simplefilter("ignore")  # of being patched late, and of eventlet's end
{patched}
green = importlib.import_module({package!r})
from source_tree_lock import source_tree_lock
def run(*functions):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # nothing else ends a hub that is blocked
    signal.alarm(60)
    for each in [green.spawn(function) for function in functions]:
        each.get() if hasattr(each, "get") else each.wait()
    signal.alarm(0)
"""


def green_child(way: str, tree: Path, script: str) -> Child:
    package = way.partition(",")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    prelude = GREEN.format(patched=PATCHED.get(way, ""), package=package)
    return Child(prelude + textwrap.dedent(script), tree, another_tree(tree))


@pytest.mark.parametrize("way", PATCHED)
def test_greenlets_enter_one_at_a_time_and_others_run_during_a_wait(way: str, tree: Path) -> None:
    script = """
        inside, most, turns, is_over = [], 0, 0, False
        def enter():
            global most
            with source_tree_lock(sys.argv[1], timeout=50) as lock, lock:
                inside.append(lock)
                most = max(most, len(inside))
                green.sleep(0.01)
                inside.pop()
        run(*[enter] * 4)
        tell("at once", most)
        heard()
        def others():
            global turns
            while not is_over:
                turns += 1
                green.sleep(0.01)
        def wait():
            global is_over
            tell("entered", source_tree_lock(sys.argv[1]).acquire(timeout=0.3))
            is_over = True
        run(others, wait)
        tell("others ran", turns > 3, *signal.pthread_sigmask(signal.SIG_BLOCK, []))
        with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("waits")):
            tell("in")
    """
    with green_child(way, tree, script) as child:
        child.expect("at once 1")
        with held_elsewhere(tree) as holder:
            child.say()
            child.expect("entered False")
            child.expect("others ran True")
            child.expect("waits")
            holder.say()
            child.expect("in")


def test_where_nothing_is_patched_a_greenlet_that_could_only_block_the_holder_is_refused(
    tree: Path,
) -> None:
    script = """
        told = []
        def enter():
            try:
                with source_tree_lock(sys.argv[1]):
                    green.sleep(0.01)
                    told.append("in")
            except RuntimeError:
                told.append("refused")
        run(enter, enter)
        tell(*sorted(told))
    """
    with green_child("gevent", tree, script) as child:
        child.expect("in refused")
