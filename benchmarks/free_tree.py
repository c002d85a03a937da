"""A free tree: what it costs to enter and to leave, when nobody is in the way.

Each round is a process of its own, so that no luck of one (hashes, addresses) stays; within
it the cases take turns. As a script, it is that process.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median

import fasteners  # type: ignore[import-untyped]
import filelock
import portalocker
from measure import progress, ratio
from peers import BARE, COLOURS, FASTENERS, FILELOCK, OURS, PORTALOCKER, Flock
from plots import bars
from report import Goal, Section

from source_tree_lock import source_tree_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    #: Enters and leaves so many times, and gives the seconds that it took.
    Loop = Callable[[int], float]
    Context = AbstractContextManager[object]

TWO_BARE = f"{BARE}, two locks"
#: Six levels deep: the first time in a process, and the first time ever, when lock files are made.
NEVER_MET, NEVER_LOCKED = "a tree never met", "a tree never locked before"


def _with(make: Callable[[], Context]) -> Loop:
    def loop(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            with make():
                pass
        return time.perf_counter() - started

    return loop


def _with_each(
    new: Callable[[], str], make: Callable[[str], Context], *, has_lock_file: bool
) -> Loop:
    def loop(times: int) -> float:
        each = map(make, [new() for _ in range(times)])
        if has_lock_file and os.fork() == 0:
            for lock in each:
                with lock:
                    pass
            os._exit(0)
        elif has_lock_file:
            os.wait()
        started = time.perf_counter()
        for lock in each:
            with lock:
                pass
        return time.perf_counter() - started

    return loop


def _calls(function: Callable[[], object]) -> Loop:
    def loop(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            function()
        return time.perf_counter() - started

    return loop


def _async_with(make: Callable[[], AbstractAsyncContextManager[object]]) -> Loop:
    async def run(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            async with make():
                pass
        return time.perf_counter() - started

    return lambda times: asyncio.run(run(times))


def _while_held(holder: Context, loop: Loop) -> Loop:
    def run(times: int) -> float:
        with holder:
            return loop(times)

    return run


def cases(directory: Path) -> dict[str, Loop]:
    """Every way in, in the order of the table."""
    tree, deep = directory / "tree", directory / "home/me/src/group"
    tree.mkdir()
    plain, portalocked, filelocked, fastened, asynchronous = (
        str(directory / name) for name in ("plain", "portalocker", "filelock", "fasteners", "async")
    )
    open(plain, "w").close()
    lock, file_lock = source_tree_lock(tree), filelock.FileLock(filelocked)
    numbers = count()

    def new_tree() -> str:
        path = deep / f"project-{next(numbers)}/package"
        path.mkdir(parents=True)
        return str(path)

    def file_lock_beside(path: str) -> Context:
        return filelock.FileLock(f"{path}.lock")

    @lock
    def decorated() -> None:
        pass

    return {
        BARE: _with(lambda: Flock(plain)),
        TWO_BARE: _with(lambda: Flock(plain, str(tree))),
        OURS: _with(lambda: source_tree_lock(tree)),
        PORTALOCKER: _with(lambda: portalocker.Lock(portalocked)),
        FILELOCK: _with(lambda: filelock.FileLock(filelocked)),
        FASTENERS: _with(lambda: fasteners.InterProcessLock(fastened)),
        **{
            f"{name}, {what}": _with_each(new_tree, make, has_lock_file=what == NEVER_MET)
            for what in (NEVER_MET, NEVER_LOCKED)
            for name, make in {OURS: source_tree_lock, FILELOCK: file_lock_beside}.items()
        },
        f"{OURS}, one object": _with(lambda: lock),
        f"{FILELOCK}, one object": _with(lambda: file_lock),
        f"{OURS}, decorator": _calls(decorated),
        f"{OURS}, entered again": _while_held(lock, _with(lambda: source_tree_lock(tree))),
        f"{FILELOCK}, entered again": _while_held(file_lock, _with(lambda: file_lock)),
        f"{OURS}, async with": _async_with(lambda: source_tree_lock(tree)),
        "filelock.AsyncFileLock": _async_with(lambda: filelock.AsyncFileLock(asynchronous)),
    }


def measure_here(loops: int, passes: int) -> dict[str, float]:
    """Seconds for each case, the median of the passes; the cases take turns."""
    with tempfile.TemporaryDirectory() as directory:
        ways = cases(Path(directory))
        for loop in ways.values():
            loop(loops // 4 + 1)  # what is imported and cached at first use
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(passes):
            for name, loop in ways.items():
                found[name].append(loop(loops) / loops)
        return {name: median(seconds) for name, seconds in found.items()}


def run(*, quick: bool) -> Section:
    rounds, loops, passes = (3, 100, 3) if quick else (15, 300, 5)
    values: dict[str, list[float]] = {}
    with progress("free tree", rounds) as step:
        for _ in range(rounds):
            command = [sys.executable, __file__, str(loops), str(passes)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            for name, seconds in json.loads(answer).items():
                values.setdefault(name, []).append(seconds)
            step()
    micros = {name: median(seconds) * 1e6 for name, seconds in values.items()}
    peers = [TWO_BARE, PORTALOCKER, FILELOCK]
    rows = [
        [name, f"{micros[name]:.1f}", *(f"{ratio(seconds, values[peer]):.2f}" for peer in peers)]
        for name, seconds in values.items()
    ]
    shown = {TWO_BARE: COLOURS[BARE]}
    shown |= {name: COLOURS[name] for name in (OURS, PORTALOCKER, FILELOCK, FASTENERS)}
    picture = bars(
        "A free tree: enter and leave",
        "µs (lower is better)",
        {name: [micros[name]] for name in shown},
        {"": ""},
        colours=list(shown.values()),
    )
    ours, theirs = (values[f"{name}, {NEVER_MET}"] for name in (OURS, FILELOCK))
    return Section(
        [("Enter and leave a free tree:", ["", "µs", *(f"÷ {peer}" for peer in peers)], rows)],
        {"free-tree.svg": picture},
        [
            Goal(
                f"free tree, six levels deep, never met by the process, ÷ `{FILELOCK}`",
                ratio(ours, theirs),
                0.30,
                "a hook meets its tree once; two locks and a record cost less than one of the usual",
            )
        ],
    )


if __name__ == "__main__":
    json.dump(measure_here(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
