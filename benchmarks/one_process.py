"""Threads and tasks of one process that all want one tree, turn after turn."""

from __future__ import annotations

import asyncio
import math
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import filelock
from measure import interleaved, ratio
from peers import COMMAND, LONG, OURS, OURS_BOUNDED, blocking_peers
from plots import number
from progress import Progress
from report import Section

from source_tree_lock import source_tree_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from peers import Enter

    AsyncEnter = Callable[[], AbstractAsyncContextManager[object]]

#: How long each turn holds the tree, in seconds.
_HOLD = 0.001

IN_MEMORY = "threading.Lock"
IN_MEMORY_ASYNC = "asyncio.Lock"
ASYNC_FILELOCK = "filelock.AsyncFileLock"

_INTRO = f"""\
Threads, and tasks of one event loop, that ask for one tree at once, and again as soon as they left
it; each holds it for {_HOLD * 1000:.0f} ms, asleep. The time until all had all their turns, by that
of a lock in memory, which keeps out no other process, in the same round. "Together" means that
the lock let several in at once: it is one of the process, and does not know of threads."""

#: Stands for the seconds of a run in which several were inside at once.
_TOGETHER = math.inf


def run_threads(enter: Enter, count: int, turns: int) -> float:
    """Seconds until so many threads had so many turns each."""
    barrier = threading.Barrier(count + 1)
    inside: list[None] = []
    together = False

    def contend() -> None:
        nonlocal together
        barrier.wait()
        for _ in range(turns):
            with enter():
                inside.append(None)
                together |= len(inside) > 1
                time.sleep(_HOLD)
                inside.pop()

    threads = [threading.Thread(target=contend) for _ in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return _TOGETHER if together else time.perf_counter() - started


def run_tasks(prepare: Callable[[], AsyncEnter], count: int, turns: int) -> float:
    """Seconds until so many tasks had so many turns each."""

    async def contend(enter: AsyncEnter) -> None:
        for _ in range(turns):
            async with enter():
                await asyncio.sleep(_HOLD)

    async def contend_all() -> float:
        enter = prepare()
        started = time.perf_counter()
        await asyncio.gather(*(contend(enter) for _ in range(count)))
        return time.perf_counter() - started

    return asyncio.run(contend_all())


def _thread_peers(directory: Path) -> dict[str, Enter]:
    lock = threading.Lock()
    peers = blocking_peers(directory)
    del peers[COMMAND]  # as bare flock, but for a process at each turn
    return {IN_MEMORY: lambda: lock, **peers}


def _task_peers(directory: Path) -> dict[str, Callable[[], AsyncEnter]]:
    """By what is to be done within the event loop, before the tasks start."""
    tree, path = directory / "tree", str(directory / "async")

    def in_memory() -> AsyncEnter:
        lock = asyncio.Lock()
        return lambda: lock

    return {
        IN_MEMORY_ASYNC: in_memory,
        OURS: lambda: lambda: source_tree_lock(tree),
        OURS_BOUNDED: lambda: lambda: source_tree_lock(tree, timeout=LONG),
        ASYNC_FILELOCK: lambda: lambda: filelock.AsyncFileLock(path, timeout=LONG),
    }


def run(*, quick: bool) -> Section:
    rounds, all_turns = (1, 20) if quick else (5, 120)
    thread_counts = [2, 8] if quick else [2, 8, 32]
    task_counts = [2, 20] if quick else [2, 20, 200]

    def turns(count: int) -> int:
        return max(1, all_turns // count)

    with tempfile.TemporaryDirectory() as directory:
        threads = _thread_peers(Path(directory))
        tasks = _task_peers(Path(directory))
        cases = {
            (name, count): partial(run_threads, enter, count, turns(count))
            for name, enter in threads.items()
            for count in thread_counts
        }
        with Progress("threads", rounds * len(cases)) as progress:
            by_thread = interleaved(cases, rounds, progress)
        cases = {
            (name, count): partial(run_tasks, prepare, count, turns(count))
            for name, prepare in tasks.items()
            for count in task_counts
        }
        with Progress("tasks", rounds * len(cases)) as progress:
            by_task = interleaved(cases, rounds, progress)
    section = Section("one-process", "Threads and tasks of one process", _INTRO)
    _add_table(section, by_thread, list(threads), thread_counts, "threads")
    _add_table(section, by_task, list(tasks), task_counts, "tasks")
    return section


def _add_table(
    section: Section,
    seconds: dict[tuple[str, int], list[float]],
    names: list[str],
    counts: list[int],
    what: str,
) -> None:
    in_memory = names[0]

    def cell(name: str, count: int) -> str:
        if _TOGETHER in seconds[name, count]:
            return "together"
        return number(ratio(seconds[name, count], seconds[in_memory, count]))

    section.tables.append(
        (
            f"Total time, by `{in_memory}`:",
            ["", *(f"{count} {what}" for count in counts)],
            [[name, *(cell(name, count) for count in counts)] for name in names],
        )
    )
