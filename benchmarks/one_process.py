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
from measure import interleaved, number, ratio
from peers import COMMAND, LONG, OURS, OURS_BOUNDED, blocking_peers
from report import Section

from source_tree_lock import source_tree_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from peers import Enter

    AsyncEnter = Callable[[], AbstractAsyncContextManager[object]]

#: How long each turn holds the tree, asleep, in seconds.
_HOLD = 0.001
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


def _in_memory() -> AsyncEnter:
    lock = asyncio.Lock()
    return lambda: lock


def run(*, quick: bool) -> Section:
    rounds, all_turns = (1, 20) if quick else (3, 120)
    thread_counts, task_counts = ([2, 8], [2, 20]) if quick else ([2, 8, 32], [2, 20, 200])
    lock = threading.Lock()
    section = Section()
    with tempfile.TemporaryDirectory() as directory:
        threads = {"threading.Lock": lambda: lock, **blocking_peers(Path(directory))}
        del threads[COMMAND]  # as bare flock, but for a process at each turn
        tree, path = Path(directory, "tree"), str(Path(directory, "async"))
        tasks: dict[str, Callable[[], AsyncEnter]] = {
            "asyncio.Lock": _in_memory,
            OURS: lambda: lambda: source_tree_lock(tree),
            OURS_BOUNDED: lambda: lambda: source_tree_lock(tree, timeout=LONG),
            "filelock.AsyncFileLock": lambda: lambda: filelock.AsyncFileLock(path, timeout=LONG),
        }
        for what, contend, names, counts in (
            ("threads", run_threads, threads, thread_counts),
            ("tasks", run_tasks, tasks, task_counts),
        ):
            cases = {
                (name, count): partial(contend, each, count, max(1, all_turns // count))
                for name, each in names.items()
                for count in counts
            }
            section.tables.append(_table(what, interleaved(what, cases, rounds), counts))
    return section


def _table(
    what: str, seconds: dict[tuple[str, int], list[float]], counts: list[int]
) -> tuple[str, list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for name, _ in seconds))

    def cell(name: str, count: int) -> str:
        if _TOGETHER in seconds[name, count]:
            return "together"
        return number(ratio(seconds[name, count], seconds[names[0], count]))

    rows = [[name, *(cell(name, count) for count in counts)] for name in names]
    columns = ["", *(f"{count} {what}" for count in counts)]
    return f"Total time, ÷ that of `{names[0]}`:", columns, rows
