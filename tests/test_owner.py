"""Who owns a hold: a living task or greenlet its own, and a thread what its ended tasks left."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import sys
import textwrap
import threading
import types
import unittest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support import LIMIT, Child, held_elsewhere, is_free

from source_tree_lock import LockTimeout, SourceTreeLock, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks flock(2) who is in")


# Holds that outlive their task


def drop(locks: list[SourceTreeLock]) -> None:
    locks.clear()
    gc.collect()  # PyPy counts no references


async def acquire(lock: SourceTreeLock) -> None:
    assert lock.acquire()


async def release(lock: SourceTreeLock) -> None:
    lock.release()


def test_a_hold_that_outlives_its_task_is_left_by_the_next_one(
    tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(acquire(lock))
        assert not is_free(tree)
        assert lock.locked()
        loop.run_until_complete(release(lock))
    finally:
        loop.close()
    assert is_free(tree)


def test_a_hold_that_outlives_its_loop_is_left_by_its_thread(tree: Path, no_leaks: object) -> None:
    lock = source_tree_lock(tree)
    asyncio.run(acquire(lock))
    assert not is_free(tree)
    with lock:
        pass
    lock.release()
    assert is_free(tree)


def test_the_tear_down_of_a_test_leaves_what_its_set_up_entered(
    tree: Path, no_leaks: object
) -> None:
    seen: list[tuple[bool, bool]] = []

    class Case(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self) -> None:
            self.lock = source_tree_lock(tree)
            self.lock.acquire()

        async def asyncTearDown(self) -> None:
            self.lock.release()

        async def test(self) -> None:
            seen.append((self.lock.locked(), is_free(tree)))

    result = unittest.TestResult()
    Case("test").run(result)
    assert result.wasSuccessful(), result.errors + result.failures
    assert seen == [(True, False)]
    assert is_free(tree)


def test_a_plain_with_of_an_async_fixture_is_left_by_the_task_that_closes_it(
    tree: Path, no_leaks: object
) -> None:
    async def fixture() -> AsyncIterator[None]:
        with source_tree_lock(tree):
            yield

    async def next_of(generator: AsyncIterator[None]) -> bool:
        async for _ in generator:
            return True
        return False

    loop = asyncio.new_event_loop()
    try:
        generator = fixture()
        assert loop.run_until_complete(next_of(generator))
        assert not is_free(tree)
        assert not loop.run_until_complete(next_of(generator))
    finally:
        loop.close()
    assert is_free(tree)


def test_a_plain_with_of_an_async_context_manager_is_left_by_another_task(
    tree: Path, no_leaks: object
) -> None:
    @asynccontextmanager
    async def entered() -> AsyncIterator[None]:
        with source_tree_lock(tree):
            yield

    async def main() -> None:
        manager = entered()
        await asyncio.create_task(_enter(manager.__aenter__))
        assert not is_free(tree)
        await asyncio.create_task(_enter(lambda: manager.__aexit__(None, None, None)))

    async def _enter(call: object) -> None:
        await call()  # type: ignore[operator]

    asyncio.run(main())
    assert is_free(tree)


def test_a_living_tasks_hold_stays_its_own(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        lock = source_tree_lock(tree)
        entered, leave = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with lock:
                entered.set()
                await leave.wait()

        task = asyncio.create_task(hold())
        await asyncio.wait_for(entered.wait(), LIMIT)
        assert not lock.locked()
        assert not lock.acquire(blocking=False)
        with pytest.raises(RuntimeError, match="has not entered"):
            lock.release()
        with pytest.raises(LockTimeout):
            await source_tree_lock(tree, timeout=0.01).__aenter__()
        leave.set()
        await asyncio.wait_for(task, LIMIT)

    asyncio.run(main())


def test_only_one_of_two_tasks_adopts_a_hold_whose_task_has_ended(
    tree: Path, no_leaks: object
) -> None:
    async def main() -> None:
        lock = source_tree_lock(tree)
        await asyncio.create_task(acquire(lock))
        adopted, leave = asyncio.Event(), asyncio.Event()

        async def adopt() -> None:
            async with source_tree_lock(tree, timeout=0):
                adopted.set()
                await leave.wait()

        task = asyncio.create_task(adopt())
        await asyncio.wait_for(adopted.wait(), LIMIT)
        assert not source_tree_lock(tree).acquire(blocking=False)
        leave.set()
        await asyncio.wait_for(task, LIMIT)
        lock.release()

    asyncio.run(main())
    assert is_free(tree)


def test_another_thread_adopts_nothing(tree: Path, no_leaks: object) -> None:
    locks = [source_tree_lock(tree)]
    thread = threading.Thread(target=lambda: asyncio.run(acquire(locks[0])))
    thread.start()
    thread.join(LIMIT)
    assert not locks[0].locked()
    assert not source_tree_lock(tree).acquire(blocking=False)
    with pytest.raises(RuntimeError, match="has not entered"):
        locks[0].release()
    with pytest.warns(ResourceWarning):
        drop(locks)
    assert is_free(tree)


def test_one_cell_of_a_notebook_enters_and_another_leaves(tree: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ipykernel") is None:
        pytest.skip("needs ipykernel")
    script = """
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel(kernel_name="python3")
        def run(code):
            reply = client.execute_interactive(
                code, timeout=60, output_hook=lambda _: None, store_history=True
            )
            tell(reply["content"].get("evalue", "ok"))
        run("from source_tree_lock import source_tree_lock")
        run(f"lock = source_tree_lock({sys.argv[1]!r})")
        run("lock.acquire()")
        run("await __import__('asyncio').sleep(0)\\nassert lock.locked()")
        heard()
        run("lock.release()")
        heard()
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    """
    environ = {
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "run"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    with Child(script, tree, environ=environ) as child:
        for _ in range(4):
            child.expect("ok")
        assert not is_free(tree)
        child.say()
        child.expect("ok")
        assert is_free(tree)
        child.say()
        assert child.process.wait(LIMIT) == 0


def test_a_half_imported_trio_owns_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    """Another thread has begun to import it, and has not got to its functions."""
    half = types.ModuleType("trio.lowlevel")
    with source_tree_lock(tree) as lock, monkeypatch.context() as patch:
        patch.setitem(sys.modules, "trio.lowlevel", half)
        assert lock.locked()
        with lock:
            pass
    assert is_free(tree)
    monkeypatch.setitem(sys.modules, "trio.lowlevel", half)
    with lock:
        pass
    assert is_free(tree)


# Green threads

#: How a program comes to its greenlets: what is imported, and patched, in which order.
PATCHED = {
    "gevent, early": "from gevent import monkey; monkey.patch_all(); import source_tree_lock",
    "gevent, late": "import source_tree_lock; from gevent import monkey; monkey.patch_all()",
    "gevent, after an entry": (
        "import source_tree_lock; source_tree_lock.source_tree_lock(sys.argv[2]).__enter__(); "
        "from gevent import monkey; monkey.patch_all()"
    ),
    "gevent, without threads": "from gevent import monkey; monkey.patch_all(thread=False)",
    "gevent, without time": "from gevent import monkey; monkey.patch_all(time=False)",
    "eventlet, early": "import eventlet; eventlet.monkey_patch()",
    "eventlet, late": "import source_tree_lock, eventlet; eventlet.monkey_patch()",
}
#: What both packages call by other names.
GREEN = """
import importlib, signal, sys, warnings
warnings.simplefilter("ignore")  # of being patched late, and of eventlet's end
{patched}
green = importlib.import_module({package!r})
from source_tree_lock import source_tree_lock
def wait_for_all(greenlets):
    for each in greenlets:
        each.get() if hasattr(each, "get") else each.wait()
def with_limit(function):
    # If the hub is blocked, nothing but a signal ends it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)
    function()
    signal.alarm(0)
"""


@pytest.fixture(params=PATCHED)
def green(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The beginning of a script that has greenlets, patched in one of the ways."""
    package = request.param.partition(",")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    return GREEN.format(patched=PATCHED[request.param], package=package)


def green_child(green: str, script: str, *arguments: object) -> Child:
    return Child(green + textwrap.dedent(script), *arguments)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    directory = tmp_path / "other"
    directory.mkdir()
    return directory


def test_one_greenlet_at_a_time_is_in_a_tree(green: str, tree: Path, other: Path) -> None:
    script = """
        inside, most, entered = 0, 0, 0
        def work():
            global inside, most, entered
            with source_tree_lock(sys.argv[1], timeout=20) as lock, lock:
                inside += 1
                most = max(most, inside)
                green.sleep(0.01)
                inside -= 1
                entered += 1
        with_limit(lambda: wait_for_all([green.spawn(work) for _ in range(4)]))
        tell("entered", entered, "at once", most)
    """
    with green_child(green, script, tree, other) as child:
        child.expect("entered 4 at once 1")


def test_a_greenlet_that_waits_lets_others_run_and_its_time_is_up(
    green: str, tree: Path, other: Path
) -> None:
    script = """
        turns, is_over = 0, False
        def other():
            global turns
            while not is_over:
                turns += 1
                green.sleep(0.01)
        def wait():
            global is_over
            tell("got in", source_tree_lock(sys.argv[1]).acquire(timeout=0.3))
            is_over = True
        with_limit(lambda: wait_for_all([green.spawn(other), green.spawn(wait)]))
        tell("others ran", turns > 3)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        tell("blocked signals", *blocked)
    """
    with held_elsewhere(tree), green_child(green, script, tree, other) as child:
        child.expect("got in False")
        child.expect("others ran True")
        child.expect("blocked signals")


def test_a_greenlet_gets_in_when_another_process_leaves(
    green: str, tree: Path, other: Path
) -> None:
    script = """
        def wait():
            with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("waits")):
                tell("in")
        with_limit(lambda: wait_for_all([green.spawn(wait)]))
    """
    with held_elsewhere(tree) as holder, green_child(green, script, tree, other) as child:
        child.expect("waits")
        holder.say()
        child.expect("in")


def test_a_hook_runs_by_gevents_subprocess(tree: Path, other: Path) -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("needs gevent")
    green = GREEN.format(patched=PATCHED["gevent, early"], package="gevent")
    script = """
        from source_tree_lock.adapters import locked_runner
        run = locked_runner(when=lambda _: True)
        enters = "import sys; from source_tree_lock import source_tree_lock as lock\\n"
        enters += "with lock('.', timeout=5): print('in', flush=True)"
        def build():
            run([sys.executable, "-c", enters], sys.argv[1])
        with_limit(lambda: wait_for_all([green.spawn(build) for _ in range(2)]))
        tell("done")
    """
    with green_child(green, script, tree, other) as child:
        for words in ("in", "in", "done"):
            child.expect(words)


def test_where_nothing_is_patched_a_greenlet_that_could_only_block_the_holder_is_refused(
    tree: Path,
) -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("needs gevent")
    green = GREEN.format(patched="", package="gevent")
    script = """
        told = []
        def work():
            try:
                with source_tree_lock(sys.argv[1]):
                    green.sleep(0.01)
                    told.append("in")
            except RuntimeError:
                told.append("refused")
        with_limit(lambda: wait_for_all([green.spawn(work) for _ in range(2)]))
        tell(*sorted(told))
    """
    with green_child(green, script, tree) as child:
        child.expect("in refused")
