"""A free tree: what it costs to enter and to leave, when nobody is in the way."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from statistics import median

import fasteners  # type: ignore[import-untyped]
import filelock
import portalocker
from measure import in_new_process, micros, progress
from peers import BARE, COLOURS, FASTENERS, FILELOCK, OURS, PORTALOCKER, Enter, Flock
from plots import bars
from report import Section

from source_tree_lock import source_tree_lock

TWO_BARE = f"{BARE}, two locks"
#: Six levels deep: the first time in a process, and the first time ever, when lock files are made.
NEVER_MET, NEVER_LOCKED = "a tree never met", "a tree never locked before"


def _async_micros(make: Callable[[], AbstractAsyncContextManager[object]], times: int) -> float:
    async def enter_and_leave() -> float:
        started = time.perf_counter()
        for _ in range(times):
            async with make():
                pass
        return (time.perf_counter() - started) / times * 1e6

    return asyncio.run(enter_and_leave())


def measure_here(times: int, passes: int) -> dict[str, float]:
    """Microseconds for each case, the median of the passes; the cases take turns."""
    tree, held, path = tempfile.mkdtemp(), tempfile.mkdtemp(), tempfile.mkstemp()[1]
    deep = Path(tree, "home/me/src/group")
    deep.mkdir(parents=True)
    held_file = filelock.FileLock(f"{path}.held")
    held_file.acquire()
    held_lock = source_tree_lock(held)  # one that is collected releases its tree
    held_lock.acquire()
    make: dict[str, Enter] = {
        BARE: lambda: Flock(path),
        TWO_BARE: lambda: Flock(path, tree),
        OURS: lambda: source_tree_lock(tree),
        PORTALOCKER: lambda: portalocker.Lock(path),
        FILELOCK: lambda: filelock.FileLock(path),
        FASTENERS: lambda: fasteners.InterProcessLock(path),
        f"{OURS}, entered again": lambda: source_tree_lock(held),
        f"{FILELOCK}, entered again": lambda: held_file,
    }
    for what in (NEVER_MET, NEVER_LOCKED):
        for name, lock in ((OURS, source_tree_lock), (FILELOCK, filelock.FileLock)):
            ending = "" if name == OURS else "/lock"
            paths = [tempfile.mkdtemp(dir=deep) + ending for _ in range(times * (passes + 1))]
            if what == NEVER_MET and os.fork() == 0:  # another process has met it
                micros(partial(next, map(lock, paths)), len(paths))
                os._exit(0)
            make[f"{name}, {what}"] = partial(next, map(lock, paths))
    for _ in (NEVER_MET, NEVER_MET):
        os.wait()
    loops: dict[str, Callable[[int], float]] = {
        name: partial(micros, each) for name, each in make.items()
    }
    for name, each in (
        (f"{OURS}, async with", lambda: source_tree_lock(tree)),
        ("filelock.AsyncFileLock", lambda: filelock.AsyncFileLock(path)),
    ):
        loops[name] = partial(_async_micros, each)
    for loop in loops.values():
        loop(times)  # what is imported and cached at first use
    rounds = [{name: loop(times) for name, loop in loops.items()} for _ in range(passes)]
    return {name: median(each[name] for each in rounds) for name in loops}


def run(*, quick: bool) -> Section:
    rounds = []
    count, sizes = (3, (100, 3)) if quick else (10, (300, 5))
    with progress("free tree", count) as step:
        for _ in range(count):
            rounds.append(in_new_process(measure_here, *sizes))
            step()

    def ratio(name: str, peer: str) -> float:
        return median(each[name] / each[peer] for each in rounds)

    section = Section()
    found = {name: median(each[name] for each in rounds) for name in rounds[0]}
    peers = [TWO_BARE, PORTALOCKER, FILELOCK]
    rows = []
    for name, value in found.items():
        rows.append([name, f"{value:.1f}", *(f"{ratio(name, peer):.2f}" for peer in peers)])
    columns = ["", "µs", *(f"÷ {peer}" for peer in peers)]
    section.table("Enter and leave a free tree:", columns, rows)
    shown = [TWO_BARE, OURS, PORTALOCKER, FILELOCK, FASTENERS]
    bar = {name: [found[name]] for name in shown}
    parts = {"": [COLOURS.get(name, COLOURS[BARE]) for name in shown]}
    picture = bars("A free tree: enter and leave", "µs (lower is better)", bar, parts)
    section.picture("free-tree.svg", picture)
    what = f"free tree, six levels deep, never met by the process, ÷ `{FILELOCK}`"
    reason = "a hook meets its tree once, and two locks cost it less than one of the usual kind"
    share = ratio(f"{OURS}, {NEVER_MET}", f"{FILELOCK}, {NEVER_MET}")
    section.goal(what, share, 0.30, reason)
    return section
