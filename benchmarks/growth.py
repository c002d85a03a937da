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

from measure import interleaved, ratio
from peers import LONG, Flock
from plots import Kind, lines, number
from progress import Progress
from report import Goal, Section

from source_tree_lock import LockTimeout, source_tree_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

COUNTS = [1, 10, 100, 1000]

_INTRO = """\
Microseconds to enter and leave a free tree, by how many trees the process holds already, how many
it has locked before, how many of its threads wait for another tree, and how many lock files are in
the lock directory. Beside it two bare `flock`s in the same process, at the same time."""


def _hold_more(directory: Path) -> Iterator[None]:
    while True:
        tree = directory / f"held-{len(os.listdir(directory))}"
        tree.mkdir()
        source_tree_lock(tree).acquire()
        yield


def _have_locked_more(directory: Path) -> Iterator[None]:
    while True:
        tree = directory / f"locked-{len(os.listdir(directory))}"
        tree.mkdir()
        with source_tree_lock(tree):
            yield


def _wait_more(directory: Path) -> Iterator[None]:
    tree = directory / "busy"
    tree.mkdir()
    source_tree_lock(tree).acquire()

    def wait(waits: threading.Event) -> None:
        try:
            with source_tree_lock(tree, timeout=LONG, on_wait=lambda _: waits.set()):
                pass
        except LockTimeout:
            pass

    while True:
        waits = threading.Event()
        threading.Thread(target=wait, args=(waits,), daemon=True).start()
        waits.wait()
        yield


def _leave_more_files(directory: Path) -> Iterator[None]:
    locks = Path(os.environ["SOURCE_TREE_LOCK_DIR"])
    while True:
        (locks / f"uv-setuptools-{len(os.listdir(locks)):016x}.lock").touch()
        yield


GROWTHS: dict[str, Callable[[Path], Iterator[None]]] = {
    "trees held": _hold_more,
    "trees locked before": _have_locked_more,
    "threads that wait": _wait_more,
    "files in the lock directory": _leave_more_files,
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
        answer = subprocess.run(
            [sys.executable, __file__, name, work, str(loops)],
            env={**os.environ, "SOURCE_TREE_LOCK_DIR": str(locks)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        return [(ours, bare) for ours, bare in json.loads(answer)]


def run(*, quick: bool) -> Section:
    rounds, loops = (1, 100) if quick else (5, 300)
    cases = {name: partial(_grow_elsewhere, name, loops) for name in GROWTHS}
    with Progress("growth", rounds * len(cases)) as progress:
        found = interleaved(cases, rounds, progress)
    section = Section(
        "growth", "Growth: a free tree, with more and more of everything else", _INTRO
    )

    def cell(name: str, index: int) -> str:
        ours, bare = zip(*(each[index] for each in found[name]), strict=True)
        return f"{median(ours):.1f} ({median(bare):.1f})"

    section.tables.append(
        (
            "Microseconds (and those of two bare `flock`s):",
            ["", *map(str, COUNTS)],
            [[name, *(cell(name, index) for index in range(len(COUNTS)))] for name in GROWTHS],
        )
    )
    section.tables.append(
        (
            f"The cost at {COUNTS[-1]}, by that at {COUNTS[0]}:",
            ["", "source_tree_lock", "bare flock"],
            [
                [name, *(number(_growth(found[name], which)) for which in (0, 1))]
                for name in GROWTHS
            ],
        )
    )
    section.goals += [
        Goal(f"growth: cost at 1,000 {name}, by that at 1", _growth(found[name], 0), 1.2)
        for name in GROWTHS
    ]
    styles = ["ours", "bounded", "portalocker", "fasteners"]
    section.plots["growth.svg"] = lines(
        "Growth: microseconds to enter and leave a free tree",
        "how many of them there are",
        list(map(str, COUNTS)),
        [
            (
                Kind(name, style),
                [median(each[index][0] for each in found[name]) for index in range(len(COUNTS))],
            )
            for (name, style) in zip(GROWTHS, styles, strict=True)
        ],
    )
    return section


def _growth(rounds: list[list[tuple[float, float]]], which: int) -> float:
    return ratio([each[-1][which] for each in rounds], [each[0][which] for each in rounds])


if __name__ == "__main__":
    print(json.dumps(grow(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))), flush=True)
    os._exit(0)  # threads wait, and would be waited for
