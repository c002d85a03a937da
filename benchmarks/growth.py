"""Whether entering a free tree stays as cheap when there is more of everything else.

As a script, it is the process that has more and more of one thing.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from measure import interleaved, number, ratio
from peers import BARE, LONG, OURS, Flock
from plots import BLUE, GREEN, GREY, ORANGE, PINK, lines
from report import Goal, Section

from source_tree_lock import LockTimeout, source_tree_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

COUNTS = [1, 10, 100, 1000]


def _hold_more(directory: Path) -> Iterator[None]:
    while True:
        source_tree_lock(tempfile.mkdtemp(dir=directory)).acquire()
        yield


def _have_locked_more(directory: Path) -> Iterator[None]:
    while True:
        with source_tree_lock(tempfile.mkdtemp(dir=directory)):
            pass
        yield


def _wait_more(directory: Path) -> Iterator[None]:
    source_tree_lock(directory).acquire()

    def wait(waits: threading.Event) -> None:
        try:
            with source_tree_lock(directory, timeout=LONG, on_wait=lambda _: waits.set()):
                pass
        except LockTimeout:
            pass

    while True:
        waits = threading.Event()
        threading.Thread(target=wait, args=(waits,), daemon=True).start()
        waits.wait()
        yield


def _leave_more_files(directory: Path) -> Iterator[None]:
    while True:
        for _ in range(10):
            handle, _ = tempfile.mkstemp(dir=directory.with_name("locks"))
            os.close(handle)
        yield


GROWTHS: dict[str, Callable[[Path], Iterator[None]]] = {
    "trees held": _hold_more,
    "trees locked before": _have_locked_more,
    "threads that wait": _wait_more,
    "lock files in the directory, times ten": _leave_more_files,
}


def grow(name: str, work: Path, loops: int) -> list[tuple[float, float]]:
    """Microseconds for each count: ours and bare."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each tree that is held
    trees, tree, plain = work / "trees", work / "tree", work / "plain"
    trees.mkdir()
    tree.mkdir()
    plain.touch()
    ours, bare = source_tree_lock(tree), Flock(str(plain), str(tree))
    more = GROWTHS[name](trees)
    found = []
    for before, count in pairwise([0, *COUNTS]):
        for _ in range(count - before):
            next(more)
        _microseconds(ours, loops // 4)
        passes = [(_microseconds(ours, loops), _microseconds(bare, loops)) for _ in range(5)]
        found.append((median(each[0] for each in passes), median(each[1] for each in passes)))
    return found


def _microseconds(lock: AbstractContextManager[object], loops: int) -> float:
    started = time.perf_counter()
    for _ in range(loops):
        with lock:
            pass
    return (time.perf_counter() - started) / loops * 1e6


def _grow_elsewhere(name: str, loops: int) -> list[tuple[float, float]]:
    """The same in a process of its own, with directories of its own."""
    with tempfile.TemporaryDirectory() as work:
        locks = Path(work, "locks")
        locks.mkdir()
        command = [sys.executable, __file__, name, work, str(loops)]
        environ = {**os.environ, "SOURCE_TREE_LOCK_DIR": str(locks)}
        answer = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout
        return [(ours, bare) for ours, bare in json.loads(answer)]


def run(*, quick: bool) -> Section:
    rounds, loops = (1, 100) if quick else (5, 300)
    cases = {name: partial(_grow_elsewhere, name, loops) for name in GROWTHS}
    found = interleaved("growth", cases, rounds)

    def micros(name: str, which: int) -> list[float]:
        return [median(each[index][which] for each in found[name]) for index in range(len(COUNTS))]

    def growth(name: str, which: int) -> float:
        rounds = found[name]
        return ratio([each[-1][which] for each in rounds], [each[0][which] for each in rounds])

    both = {name: zip(micros(name, 0), micros(name, 1), strict=True) for name in GROWTHS}
    rows = [
        [
            name,
            *(f"{ours:.1f} ({bare:.1f})" for ours, bare in both[name]),
            *(number(growth(name, which)) for which in (0, 1)),
        ]
        for name in GROWTHS
    ]
    series = {name: dict(zip(COUNTS, micros(name, 0), strict=True)) for name in GROWTHS}
    series[f"{BARE}, two locks"] = dict(zip(COUNTS, micros("trees held", 1), strict=True))
    reason = "a process that lives long, and an old `/tmp`, stay as fast as new ones"
    return Section(
        [
            (
                f"Microseconds to enter and leave (and those of two {BARE}s), and the growth:",
                ["how many", *map(str, COUNTS), f"growth, {OURS}", f"growth, {BARE}"],
                rows,
            )
        ],
        {
            "growth.svg": lines(
                "Growth: enter and leave a free tree",
                ("how many of them there are", "µs"),
                series,
                [BLUE, GREEN, PINK, ORANGE, GREY],
                from_zero=True,
            )
        },
        [
            Goal(f"growth, {name}: cost at 1,000 ÷ that at 1", growth(name, 0), 1.2, reason)
            for name in GROWTHS
        ],
    )


if __name__ == "__main__":
    print(json.dumps(grow(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))), flush=True)
    os._exit(0)  # threads wait, and would be waited for
