"""Whether entering a free tree stays as cheap when there is more of everything else."""

import os
import resource
import tempfile
import threading
from contextlib import suppress
from functools import partial
from itertools import pairwise
from statistics import median

from measure import in_new_process, interleaved, micros, number
from peers import BARE, LONG, OURS, Flock
from plots import BLUE, DARK, GREEN, ORANGE, PINK, lines
from report import Section

from source_tree_lock import LockTimeout, SourceTreeLock, source_tree_lock

COUNTS = [1, 10, 100, 1000]


_held: list[SourceTreeLock] = []  # one that is collected releases its tree


def _hold_one_more(work: str) -> None:
    _held.append(source_tree_lock(tempfile.mkdtemp(dir=work)))
    _held[-1].acquire()


def _lock_one_more(work: str) -> None:
    with source_tree_lock(tempfile.mkdtemp(dir=work)):
        pass


def _wait_once_more(work: str) -> None:
    def wait() -> None:
        with suppress(LockTimeout):
            source_tree_lock(work, timeout=LONG, on_wait=lambda _: waits.set()).acquire()

    waits = threading.Event()
    if not _held:
        _held.append(source_tree_lock(work))
        _held[0].acquire()
    threading.Thread(target=wait, daemon=True).start()
    assert waits.wait(60), "nobody waits"


def _leave_ten_more_lock_files(work: str) -> None:
    for _ in range(10):
        os.close(tempfile.mkstemp(dir=os.environ["SOURCE_TREE_LOCK_DIR"])[0])


MORE = {
    "trees held": _hold_one_more,
    "trees locked before": _lock_one_more,
    "threads that wait": _wait_once_more,
    "lock files in the directory, times ten": _leave_ten_more_lock_files,
}


def grow(name: str, times: int) -> list[tuple[float, float]]:
    """Microseconds for each count, in this process: ours, and two bare locks."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each tree that is held
    work, tree, os.environ["SOURCE_TREE_LOCK_DIR"] = (tempfile.mkdtemp() for _ in range(3))
    both = (partial(source_tree_lock, tree), partial(Flock, tempfile.mkstemp()[1], tree))
    found = []
    for before, count in pairwise([0, *COUNTS]):
        for _ in range(before, count):
            MORE[name](work)
        micros(both[0], times)
        passes = [[micros(each, times) for each in both] for _ in range(5)]
        ours, bare = map(median, zip(*passes, strict=True))
        found.append((ours, bare))
    return found


def run(*, quick: bool) -> Section:
    rounds, times = (1, 100) if quick else (5, 300)
    cases = {name: partial(in_new_process, grow, name, times) for name in MORE}
    section = Section()
    rows, series = [], {}
    reason = "a process that lives long, and an old `/tmp`, stay as fast as new ones"
    for name, found in interleaved("growth", cases, rounds).items():
        pairs = [
            [median(each) for each in zip(*at, strict=True)] for at in zip(*found, strict=True)
        ]
        growth = [median(each[-1][who] / each[0][who] for each in found) for who in (0, 1)]
        rows.append(
            [name, *(f"{ours:.1f} ({bare:.1f})" for ours, bare in pairs), *map(number, growth)]
        )
        series[name] = dict(zip(COUNTS, (ours for ours, _ in pairs), strict=True))
        section.goal(f"growth, {name}: cost at 1,000 ÷ that at 1", growth[0], 1.2, reason)
    two = f"{BARE}, two locks"
    series[two] = dict(zip(COUNTS, (bare for _, bare in pairs), strict=True))
    columns = ["how many", *map(str, COUNTS), f"growth of {OURS}", f"growth of {BARE}"]
    section.table(f"Microseconds to enter and leave, and in brackets {two}:", columns, rows)
    colours = [BLUE, GREEN, PINK, ORANGE, DARK]
    title, names = (
        "Growth: enter and leave a free tree",
        ("how many there are", "enter and leave, µs"),
    )
    section.picture("growth.svg", lines(title, names, series, colours))
    return section
