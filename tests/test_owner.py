"""Who owns a hold: a task or greenlet while it lives, and the thread what its ended tasks left."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import textwrap
import types
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import LIMIT, Child, held_elsewhere, in_thread, is_free, is_taken

from source_tree_lock import LockTimeout, source_tree_lock

# Tasks of asyncio and of trio

#: Runs a coroutine function, which uses anyio's functions for what the two do in their own ways.
Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    async def main(function: Callable[[], Any]) -> None:
        with anyio.fail_after(LIMIT):
            await function()

    return lambda function: anyio.run(main, function, backend=request.param)


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
            with pytest.raises(LockTimeout):
                await source_tree_lock(tree, timeout=0.01).__aenter__()
            async with source_tree_lock(tree, on_wait=lambda wait: waiting.set()):
                events.append("second")

        async with anyio.create_task_group() as group, lock, lock:
            with lock:
                group.start_soon(second)
                await waiting.wait()
            assert (lock.is_owner(), is_taken(tree)) == (True, True)
            events.append("first")
        assert not lock.locked()

    run(main)
    assert events == ["first", "second"]


def test_a_plain_entry_beside_a_task_that_holds_is_refused(
    run: Run, tree: Path, no_leaks: object
) -> None:
    async def second() -> None:
        with pytest.raises(RuntimeError, match=r"a task of this thread .*`async with` here"):
            source_tree_lock(tree).acquire()

    async def main() -> None:
        async with source_tree_lock(tree), anyio.create_task_group() as group:
            group.start_soon(second)

    run(main)


@pytest.mark.parametrize("is_granted", [False, True])
def test_an_entry_is_cancelled_often_and_nothing_is_held(
    is_granted: bool, run: Run, tree: Path, no_leaks: object, long_run: bool
) -> None:
    """While it waits; or at the grant: when the tree is just left, and some turns later."""
    lock = source_tree_lock(tree)

    async def enter(waiting: anyio.Event) -> None:
        async with source_tree_lock(tree, on_wait=lambda wait: waiting.set()):
            await anyio.sleep_forever()

    async def main() -> None:
        for turns in range(200 if long_run else 40):
            waiting = anyio.Event()
            await lock.__aenter__()
            async with anyio.create_task_group() as group:
                group.start_soon(enter, waiting)
                await waiting.wait()
                if is_granted:
                    lock.release()
                    for _ in range(turns % 20):
                        await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            if not is_granted:
                lock.release()
            async with source_tree_lock(tree, timeout=LIMIT):
                assert is_taken(tree)

    run(main)
    assert not is_taken(tree)


def test_only_one_of_two_tasks_adopts_the_hold_of_a_task_that_has_ended(
    run: Run, tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)

    async def acquire() -> None:
        assert lock.acquire()

    async def try_in_vain() -> None:
        assert not lock.acquire(blocking=False)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(acquire)
        async with source_tree_lock(tree, timeout=0), anyio.create_task_group() as group:
            group.start_soon(try_in_vain)
        lock.release()

    run(main)
    assert is_free(tree)


def test_a_hold_that_outlives_its_loop_is_left_by_its_thread_or_in_a_later_loop(
    run: Run, tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)

    async def acquire() -> None:
        lock.acquire()

    async def release() -> None:
        lock.release()

    run(acquire)
    assert is_taken(tree), "another thread adopts nothing"
    assert in_thread(lock.is_owner) is False
    assert isinstance(in_thread(lock.release), RuntimeError)
    with lock:
        pass
    lock.release()
    assert is_free(tree)
    run(acquire)
    run(release)
    assert is_free(tree)


@pytest.mark.parametrize("lives", [False, True])
def test_an_async_generator_may_be_closed_by_another_task_than_the_one_that_entered(
    lives: bool, run: Run, tree: Path, no_leaks: object
) -> None:
    """It leaves the tree that it entered, also where a third task entered another one since."""
    other, link = tree.with_name("other"), tree.with_name("link")
    other.mkdir()
    link.symlink_to(tree)
    lock = source_tree_lock(link)

    async def wheels() -> AsyncGenerator[int, None]:
        async with lock:
            yield 1

    async def main() -> None:
        generator, entered, closed = wheels(), anyio.Event(), anyio.Event()

        async def enter() -> None:
            await generator.__anext__()
            entered.set()
            if lives:
                await closed.wait()

        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            await entered.wait()
            assert is_taken(tree)
            if not lives:
                link.unlink()
                link.symlink_to(other)
                await lock.__aenter__()
            async with anyio.create_task_group() as closing:
                closing.start_soon(generator.aclose)
            assert (is_taken(tree), is_taken(other)) == (False, not lives)
            closed.set()
        if not lives:
            lock.release()

    run(main)
    assert not is_taken(other)


def test_a_callback_of_a_loop_enters_as_its_thread(tree: Path) -> None:
    async def main() -> bool:
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def enter() -> None:
            with source_tree_lock(tree), source_tree_lock(tree):
                taken.set_result(is_taken(tree))

        asyncio.get_running_loop().call_soon(enter)
        return await taken

    assert asyncio.run(main())
    assert not is_taken(tree)


def test_a_half_imported_trio_owns_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    """Another thread has begun to import it, and has not come to its functions."""
    half = types.ModuleType("trio.lowlevel")
    with source_tree_lock(tree) as lock:
        monkeypatch.setitem(sys.modules, "trio.lowlevel", half)
        assert lock.is_owner()
        with lock:
            pass
    assert is_free(tree)


def test_one_cell_of_a_notebook_enters_and_another_leaves(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
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
        run("await lock.__aenter__()")
        run("await __import__('asyncio').sleep(0)\\nassert lock.is_owner()")
        heard()
        run("lock.release()")
        heard()
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    """
    environ = {name: str(tmp_path / name) for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    with Child(script, tree, environ=environ) as child:
        for _ in range(4):
            child.expect("ok")
        assert not is_free(tree)
        child.say()
        child.expect("ok")
        assert is_free(tree)
        child.say()
        assert child.end() == 0


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
    return Child(prelude + textwrap.dedent(script), tree, tree.parent)


@pytest.mark.parametrize("way", PATCHED)
def test_greenlets_enter_one_at_a_time_and_others_run_during_a_wait(way: str, tree: Path) -> None:
    script = """
        inside, most, entered, turns, is_over = 0, 0, 0, 0, False
        def enter():
            global inside, most, entered
            with source_tree_lock(sys.argv[1], timeout=50) as lock, lock:
                inside += 1
                most = max(most, inside)
                green.sleep(0.01)
                inside -= 1
                entered += 1
        run(*[enter] * 4)
        tell("entered", entered, "at once", most)
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
        def until_free():
            with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("waits")):
                tell("in")
        run(until_free)
    """
    with green_child(way, tree, script) as child:
        child.expect("entered 4 at once 1")
        with held_elsewhere(tree) as holder:
            child.say()
            child.expect("entered False")
            child.expect("others ran True")
            child.expect("waits")
            holder.say()
            child.expect("in")


def test_a_hook_runs_by_gevents_subprocess(tree: Path) -> None:
    script = """
        from source_tree_lock.adapters import locked_runner
        hook = locked_runner(when=lambda _: True)
        enters = "import sys; from source_tree_lock import source_tree_lock as lock\\n"
        enters += "with lock('.', timeout=50): print('in', flush=True)"
        run(*[lambda: hook([sys.executable, "-c", enters], sys.argv[1])] * 2)
        tell("done")
    """
    with green_child("gevent, early", tree, script) as child:
        for words in ("in", "in", "done"):
            child.expect(words)


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
