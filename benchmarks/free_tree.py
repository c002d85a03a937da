"""A free tree: what it costs to enter and to leave, when nobody is in the way.

Each round is a process of its own, so that no luck of one (hashes, addresses) stays; within
it the cases take turns. As a script, it is that process.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import fasteners  # type: ignore[import-untyped]
import filelock
import portalocker
import pyperf  # type: ignore[import-untyped]
from measure import ratio
from peers import FASTENERS, FILELOCK, KINDS, OURS, PORTALOCKER, Flock
from plots import Kind, bars
from progress import Progress
from report import Goal, Section

from source_tree_lock import source_tree_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    #: Enters and leaves so many times, and gives the seconds that it took.
    Loop = Callable[[int], float]

ONE, TWO = "bare flock", "bare flock, two locks"
NEW_FILELOCK, NEW_PORTALOCKER = f"{FILELOCK}(path)", f"{PORTALOCKER}(path)"
NEW_OURS = f"{OURS}(path)"
AGAIN = f"{OURS}, entered again"
ASYNC_FILELOCK = "filelock.AsyncFileLock(path)"

_INTRO = """\
Microseconds to enter and leave a tree that nobody else wants: the median of rounds in processes
of their own. `source_tree_lock` takes two kernel locks and writes a record of the holder; each
of the others takes one kernel lock. "bare" is `open`, `flock` and `close`, and no more.
`free-tree.json` has all values for pyperf (`python -m pyperf compare_to old.json new.json`)."""


def _with(make: Callable[[], AbstractContextManager[object]]) -> Loop:
    def loop(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            with make():
                pass
        return time.perf_counter() - started

    return loop


def _calls(function: Callable[[], object]) -> Loop:
    def loop(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            function()
        return time.perf_counter() - started

    return loop


def _async_with(make: Callable[[], AbstractAsyncContextManager[object]]) -> Loop:
    async def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            async with make():
                pass
        return time.perf_counter() - started

    return lambda count: asyncio.run(run(count))


def _awaits(function: Callable[[], Awaitable[object]]) -> Loop:
    async def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            await function()
        return time.perf_counter() - started

    return lambda count: asyncio.run(run(count))


def _while_held(holder: AbstractContextManager[object], loop: Loop) -> Loop:
    def run(count: int) -> float:
        with holder:
            return loop(count)

    return run


def cases(directory: Path) -> dict[str, Loop]:
    """Every way in, in the order of the table."""
    tree = directory / "tree"
    tree.mkdir()
    plain, portalocked, filelocked, fastened, asynchronous = (
        str(directory / name) for name in ("plain", "portalocker", "filelock", "fasteners", "async")
    )
    open(plain, "w").close()
    lock = source_tree_lock(tree)
    file_lock = filelock.FileLock(filelocked)

    @lock
    def decorated() -> None:
        pass

    @lock
    async def decorated_async() -> None:
        pass

    @file_lock
    def decorated_by_filelock() -> None:
        pass

    def acquire_and_release() -> None:
        lock.acquire()
        lock.release()

    return {
        ONE: _with(lambda: Flock(plain)),
        TWO: _with(lambda: Flock(plain, str(tree))),
        NEW_OURS: _with(lambda: source_tree_lock(tree)),
        NEW_PORTALOCKER: _with(lambda: portalocker.Lock(portalocked)),
        NEW_FILELOCK: _with(lambda: filelock.FileLock(filelocked)),
        f"{FASTENERS}.InterProcessLock(path)": _with(lambda: fasteners.InterProcessLock(fastened)),
        f"{OURS}, one object": _with(lambda: lock),
        f"{FILELOCK}, one object": _with(lambda: file_lock),
        f"{OURS}, acquire and release": _calls(acquire_and_release),
        f"{OURS}, decorator": _calls(decorated),
        f"{FILELOCK}, decorator": _calls(decorated_by_filelock),
        AGAIN: _while_held(lock, _with(lambda: source_tree_lock(tree))),
        f"{FILELOCK}, entered again": _while_held(file_lock, _with(lambda: file_lock)),
        f"{OURS}, async with": _async_with(lambda: source_tree_lock(tree)),
        f"{OURS}, async decorator": _awaits(decorated_async),
        ASYNC_FILELOCK: _async_with(lambda: filelock.AsyncFileLock(asynchronous)),
    }


def measure_here(loops: int, passes: int) -> dict[str, list[float]]:
    """Seconds for each case, once a pass; the cases take turns."""
    with tempfile.TemporaryDirectory() as directory:
        ways = cases(Path(directory))
        for loop in ways.values():
            loop(loops // 4 + 1)  # what is imported and cached at first use
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(passes):
            for name, loop in ways.items():
                found[name].append(loop(loops) / loops)
        return found


def run(*, quick: bool) -> Section:
    rounds, loops, passes = (3, 100, 3) if quick else (15, 300, 5)
    values: dict[str, list[list[float]]] = {}
    with Progress("free tree", rounds) as progress:
        for _ in range(rounds):
            command = [sys.executable, __file__, str(loops), str(passes)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            for name, seconds in json.loads(answer).items():
                values.setdefault(name, []).append(seconds)
            progress.step()
    section = _section({name: [median(each) for each in runs] for name, runs in values.items()})
    section.files["free-tree.json"] = _pyperf_suite(values, loops)
    return section


def _pyperf_suite(values: dict[str, list[list[float]]], loops: int) -> str:
    benchmarks = []
    for name, runs in values.items():
        about = {"name": name, "unit": "second", "loops": loops}
        benchmarks.append(
            pyperf.Benchmark(
                [pyperf.Run(each, metadata=about, collect_metadata=False) for each in runs]
            )
        )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "suite.json")
        pyperf.BenchmarkSuite(benchmarks).dump(str(path))
        return path.read_text(encoding="utf-8")


def _section(values: dict[str, list[float]]) -> Section:
    section = Section("free-tree", "A free tree: enter and leave", _INTRO)
    peers = [TWO, NEW_PORTALOCKER, NEW_FILELOCK]
    section.tables.append(
        (
            "Microseconds, and ratios in the same round:",
            ["", "µs", *(f"by {peer}" for peer in peers)],
            [
                [
                    name,
                    f"{median(seconds) * 1e6:.1f}",
                    *(f"{ratio(seconds, values[peer]):.2f}" for peer in peers),
                ]
                for name, seconds in values.items()
            ],
        )
    )
    section.plots["free-tree.svg"] = bars(
        "A free tree: microseconds to enter and leave",
        "µs",
        [
            (_kind(name), median(seconds) * 1e6)
            for name, seconds in values.items()
            if name != ASYNC_FILELOCK  # would make all other bars short
        ],
    )
    ours = values[NEW_OURS]
    section.goals += [
        Goal(f"free tree, by `{NEW_FILELOCK}`", ratio(ours, values[NEW_FILELOCK]), 0.33),
        Goal(f"free tree, by `{NEW_PORTALOCKER}`", ratio(ours, values[NEW_PORTALOCKER]), 1.0),
    ]
    return section


def _kind(name: str) -> Kind:
    style = next((kind.style for peer, kind in KINDS.items() if name.startswith(peer)), "filelock")
    return Kind(name, style)


if __name__ == "__main__":
    json.dump(measure_here(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
