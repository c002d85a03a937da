"""A busy tree: processes that all want it at once, turn after turn, and what a wait costs them.

Each process notes on the system's monotonic clock when it asked, when it got in, and when it was
about to leave. It computes while it holds the tree, as builds do. Two processes inside at once end
the benchmark with an error. The peers lock a file of their own, each as it is meant to be used.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from statistics import median

import fasteners  # type: ignore[import-untyped]
import filelock
import portalocker
from common import Section, in_forks, interleaved, number

from source_tree_lock import source_tree_lock

#: Longer than any wait here, in seconds; a lock that gets it waits with a timeout.
LONG = 600.0
OURS, OURS_BOUNDED = "source_tree_lock", "source_tree_lock, with a timeout"
BARE = "bare flock"
PORTALOCKER, FILELOCK = "portalocker.Lock", "filelock.FileLock"
FASTENERS = "fasteners.InterProcessLock"
PEERS = [OURS, OURS_BOUNDED, BARE, PORTALOCKER, FILELOCK, FASTENERS]
PROCESSES, HOLD = 8, 20  # milliseconds

Enter = Callable[[], AbstractContextManager[object]]


@contextmanager
def _bare_flock(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def peers(directory: Path) -> dict[str, Enter]:
    bare, portalocked, filelocked, fastened = (str(directory / each) for each in PEERS[2:])
    open(bare, "w").close()
    return {
        OURS: lambda: source_tree_lock(directory),
        OURS_BOUNDED: lambda: source_tree_lock(directory, timeout=LONG),
        BARE: lambda: _bare_flock(bare),
        PORTALOCKER: lambda: portalocker.Lock(portalocked, timeout=LONG),
        FILELOCK: lambda: filelock.FileLock(filelocked, timeout=LONG),
        FASTENERS: lambda: fasteners.InterProcessLock(fastened),
    }


def take_turns(enter: Enter, turns: int) -> tuple[float, float, list[float]]:
    """The total time, the longest wait, and each hand-over, in ms."""

    def contend(_: int, all_are_ready: Callable[[], object]) -> list[tuple[float, float, float]]:
        found = []
        all_are_ready()
        for _ in range(turns):
            asked = 1000 * time.monotonic()
            with enter():
                entered = leaving = 1000 * time.monotonic()
                while leaving < entered + HOLD:
                    leaving = 1000 * time.monotonic()
            found.append((entered, asked, leaving))
        return found

    found = sorted(chain(*in_forks(PROCESSES, contend)))
    hand_overs = []
    for (_, _, leaving), (entered, asked, _) in pairwise(found):
        if entered < leaving:
            raise AssertionError("two processes were inside at once")
        if asked < leaving:
            hand_overs.append(entered - leaving)
    total = found[-1][2] - min(asked for _, asked, _ in found)
    return total, max(entered - asked for entered, asked, _ in found), hand_overs


def cpu_while_waiting(enter: Enter, hold: float) -> float:
    """The CPU time of a waiter while another process holds the tree so long, in % of one CPU."""

    def hold_or_wait(number: int, one_holds: Callable[[], object]) -> tuple[float, float]:
        if number == 0:
            with enter():
                one_holds()
                time.sleep(hold)
            return 0.0, 0.0
        one_holds()
        before, asked = time.process_time(), time.monotonic()
        with enter():
            return time.process_time() - before, time.monotonic() - asked

    burnt, waited = map(sum, zip(*in_forks(1 + PROCESSES, hold_or_wait), strict=True))
    return 100 * burnt / waited


def wait_once(enter: Enter) -> None:
    """Import what a first wait needs, so that the forks have it."""
    entered, enters = os.pipe()
    if os.fork() == 0:
        with enter():
            os.write(enters, b"in")
            time.sleep(0.1)
        os._exit(0)
    os.read(entered, 2)
    with enter():
        os.wait()


def run(*, quick: bool) -> Section:
    rounds, turns, hold = (1, 4, 1.0) if quick else (5, 12, 8.0)
    with tempfile.TemporaryDirectory() as directory:
        ways = peers(Path(directory))
        waits = {name: partial(cpu_while_waiting, ways[name], hold) for name in PEERS}
        cpu = {name: each[0] for name, each in interleaved("waits", waits, 1).items()}
        for enter in ways.values():
            wait_once(enter)
        cases = {name: partial(take_turns, ways[name], turns) for name in PEERS}
        found = interleaved("busy tree", cases, rounds)
    section = Section()
    rows = []
    totals, longest = {}, {}
    for name in PEERS:
        pairs = list(zip(found[name], found[BARE], strict=True))
        totals[name] = median(each[0] / bare[0] for each, bare in pairs)
        # In a fair turn, bare flock lets every process in once.
        longest[name] = median(each[1] / (bare[0] / turns) for each, bare in pairs)
        hand_over = median([value for each in found[name] for value in each[2]] or [0])
        row = (totals[name], longest[name], hand_over, cpu[name])
        rows.append([name, *map(number, row)])
    columns = ["", "total, ÷ bare flock", "longest wait, fair turns", "hand-over, ms"]
    columns.append(f"CPU of a wait of {hold:.0f} s, %")
    caption = f"{PROCESSES} processes that hold one tree {turns} times each, for {HOLD} ms:"
    section.table(caption, columns, rows)
    section.numbers |= {"total": totals, "longest": longest, "cpu": cpu}
    ours = (OURS, OURS_BOUNDED)
    section.goal("hand-over: total, ÷ bare flock", max(totals[each] for each in ours), 1.06)
    section.goal("longest wait", max(longest[each] for each in ours), 3, "fair turns")
    section.goal("CPU of a wait, import included", max(cpu[each] for each in ours), 1, "%")
    return section
