"""Event loops, tasks and threads in odd moments: each ends as the design says, none by a hang."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import LIMIT, held_elsewhere, is_free, wait_until_asleep, wait_until_blocked

from source_tree_lock import LockTimeout, _queue, source_tree_lock

from .crew import Crew

_HOLD = """
    with source_tree_lock(sys.argv[1]):
        tell("held")
        heard()
    tell("released")
"""


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def _no_thread_waits() -> bool:
    return not _queue._lines


def _run(loop: asyncio.AbstractEventLoop, until: Callable[[], bool]) -> None:
    async def wait() -> None:
        deadline = time.monotonic() + LIMIT
        while not until():
            assert time.monotonic() < deadline, "it never came true"
            await asyncio.sleep(0.001)

    loop.run_until_complete(wait())


def test_a_stopped_loop_keeps_nobody_out_and_gets_in_when_it_goes_on(
    crew: Crew, tree: Path
) -> None:
    lock_file = source_tree_lock(tree).lock_file
    holder = crew.start(_HOLD, tree)
    holder.expect("held")
    entered = []

    async def enter() -> None:
        async with source_tree_lock(tree):
            entered.append(True)

    loop = asyncio.new_event_loop()
    task = loop.create_task(enter())
    _run(loop, lambda: not _no_thread_waits())
    wait_until_blocked(os.getpid())
    holder.say("let go")
    holder.expect("released")
    # The loop does not run, so that nobody would ever use what is granted to it.
    _until(_no_thread_waits)
    assert is_free(lock_file)
    with source_tree_lock(tree, timeout=0):
        assert not entered
    loop.run_until_complete(asyncio.wait_for(task, LIMIT))
    assert entered
    loop.close()


def test_a_task_that_is_dropped_while_it_waits_leaves_nothing(crew: Crew, tree: Path) -> None:
    holder = crew.start(_HOLD, tree)
    holder.expect("held")
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed"

    async def enter() -> None:
        async with source_tree_lock(tree):
            raise AssertionError("it is not to get in")

    task = loop.create_task(enter())
    _run(loop, lambda: not _no_thread_waits())
    wait_until_blocked(os.getpid())
    loop.close()
    del task
    gc.collect()
    holder.say("let go")
    holder.expect("released")
    _until(_no_thread_waits)
    with source_tree_lock(tree, timeout=0):
        pass


def test_wait_for_at_every_moment_either_enters_or_leaves_nothing(
    crew: Crew, tree: Path, long_run: bool
) -> None:
    """Its task of its own enters, in Python before 3.12; whoever awaits it leaves."""
    outcomes: set[str] = set()
    rival = crew.start(
        """
        import select
        tell("ready")
        while not select.select([connection], [], [], 0)[0]:
            with source_tree_lock(sys.argv[1]):
                time.sleep(random.random() * 0.002)
            time.sleep(random.random() * 0.002)
        tell("ended")
        """,
        tree,
    )
    rival.expect("ready")

    async def main() -> None:
        lock = source_tree_lock(tree)
        for number in range(2000 if long_run else 200):
            try:
                await asyncio.wait_for(lock.__aenter__(), 0.00002 * (number % 100))
            except (TimeoutError, asyncio.TimeoutError):
                outcomes.add("timed out")
            else:
                outcomes.add("entered")
                await lock.__aexit__(None, None, None)
        async with source_tree_lock(tree, timeout=LIMIT):
            pass

    asyncio.run(main())
    assert outcomes == {"timed out", "entered"}
    rival.say("end")
    rival.expect("ended")
    _until(_no_thread_waits)
    with source_tree_lock(tree, timeout=0):
        pass


@pytest.mark.parametrize("debug", [False, True])
def test_loops_in_several_threads_take_turns(tree: Path, no_leaks: object, debug: bool) -> None:
    lock = source_tree_lock(tree)
    inside: list[int] = []
    errors: list[BaseException] = []
    entered = 0

    async def enter(number: int) -> None:
        nonlocal entered
        async with lock:
            inside.append(number)
            await asyncio.sleep(0)
            assert inside == [number]
            inside.clear()
            entered += 1

    async def main(first: int) -> None:
        await asyncio.gather(*[enter(first + number) for number in range(20)])

    def run(first: int) -> None:
        try:
            asyncio.run(main(first), debug=debug)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not errors
    assert entered == 80
    _until(_no_thread_waits)


def test_a_loop_that_runs_inside_a_hold_locks_other_trees(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    async def enter(path: Path) -> bool:
        async with source_tree_lock(path, timeout=LIMIT) as lock:
            return lock.locked()

    with source_tree_lock(tree):
        assert asyncio.run(enter(other))
        with pytest.raises(RuntimeError, match="hold it inside the loop"):
            asyncio.run(enter(tree))
    assert asyncio.run(enter(tree))


def test_a_failure_beside_those_that_wait_leaves_nothing(crew: Crew, tree: Path) -> None:
    holder = crew.start(_HOLD, tree)
    holder.expect("held")

    async def enter() -> None:
        async with source_tree_lock(tree):
            raise AssertionError("it is not to get in")

    async def fail() -> None:
        while _no_thread_waits():  # noqa: ASYNC110, nobody tells
            await asyncio.sleep(0.001)
        raise ZeroDivisionError

    async def main() -> None:
        await asyncio.gather(enter(), enter(), enter(), fail())

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    holder.say("let go")
    holder.expect("released")
    _until(_no_thread_waits)
    with source_tree_lock(tree, timeout=0):
        pass


def test_work_in_a_thread_on_behalf_of_a_task_waits_for_others_not_for_itself(
    tree: Path, tmp_path: Path
) -> None:
    """A thread is an owner of its own; it holds while the task that started it goes on."""
    other = tmp_path / "other"
    other.mkdir()

    def build() -> None:
        with source_tree_lock(other, timeout=LIMIT), source_tree_lock(tree, timeout=0.01):
            raise AssertionError("the task holds it")

    async def main() -> None:
        async with source_tree_lock(tree):
            with pytest.raises(LockTimeout):
                await asyncio.to_thread(build)
            async with source_tree_lock(other, timeout=LIMIT):
                pass

    asyncio.run(main())


def test_a_cancelled_to_thread_goes_on_and_holds_until_it_has_ended(tree: Path) -> None:
    """What runs in a thread cannot be cancelled: what it holds stays held as long as it runs."""
    inside, leave = threading.Event(), threading.Event()

    def build() -> None:
        with source_tree_lock(tree):
            inside.set()
            leave.wait(LIMIT)

    async def main() -> None:
        task = asyncio.create_task(asyncio.to_thread(build))
        await asyncio.to_thread(inside.wait, LIMIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(LockTimeout):
            async with source_tree_lock(tree, timeout=0.01):
                pass
        leave.set()
        async with source_tree_lock(tree, timeout=LIMIT):
            pass

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_an_eager_task_owns_what_it_enters(tree: Path, no_leaks: object) -> None:
    async def enter(entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with source_tree_lock(tree):
            entered.set()
            await leave.wait()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009, too new for 3.11
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(enter(entered, leave))
        assert entered.is_set()
        assert not source_tree_lock(tree).locked()
        with pytest.raises(LockTimeout):
            async with source_tree_lock(tree, timeout=0.01):
                pass
        leave.set()
        await task

    asyncio.run(main())


@pytest.mark.parametrize("wait", ["for ever", "in time"])
def test_ctrl_c_ends_a_program_whose_task_waits(tree: Path, wait: str) -> None:
    script = f"""
import asyncio, sys
from source_tree_lock import source_tree_lock
async def main():
    async with source_tree_lock(sys.argv[1], timeout={"None" if wait == "for ever" else 3600}):
        pass
asyncio.run(main())
"""
    with held_elsewhere(tree) as holder:
        program = subprocess.Popen(
            [sys.executable, "-c", script, str(tree)], stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until_asleep(program.pid)
            program.send_signal(signal.SIGINT)
            _, printed = program.communicate(timeout=LIMIT)
        finally:
            program.kill()
            program.wait()
        assert program.returncode == -signal.SIGINT, printed
        assert "KeyboardInterrupt" in printed
        holder.say()
        holder.expect("released")
    with source_tree_lock(tree, timeout=0):
        pass


def test_tasks_of_trio_take_turns_in_threads_and_cancelling_leaves_nothing(
    crew: Crew, tree: Path
) -> None:
    trio = pytest.importorskip("trio")
    holder = crew.start(_HOLD, tree)
    holder.expect("held")
    inside: list[int] = []

    def build(number: int) -> None:
        with source_tree_lock(tree, timeout=LIMIT):
            inside.append(number)
            time.sleep(0.0005)
            assert inside == [number]
            inside.clear()

    async def give_up() -> None:
        with trio.move_on_after(0.05):
            await trio.to_thread.run_sync(build, 0, abandon_on_cancel=True)
            raise AssertionError("it is not to get in")

    async def main() -> None:
        await give_up()
        holder.say("let go")
        await trio.to_thread.run_sync(holder.expect, "released")
        async with trio.open_nursery() as nursery:
            for number in range(1, 20):
                nursery.start_soon(trio.to_thread.run_sync, build, number)
        # A task of trio holds by itself; another is told that it would wait for ever.
        with source_tree_lock(tree, timeout=LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refuse)

    async def refuse() -> None:
        with pytest.raises(RuntimeError, match="held by a task of this thread"):
            source_tree_lock(tree).__enter__()

    trio.run(main)
    _until(_no_thread_waits)
    with source_tree_lock(tree, timeout=LIMIT):
        pass
