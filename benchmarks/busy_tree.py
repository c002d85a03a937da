"""A busy tree: many processes that all want it at once, turn after turn.

Each process notes when it asked, when it got in, and when it was about to leave, on the one
monotonic clock of the system. The holds compute, as builds do.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from measure import interleaved, quantile, ratio
from peers import BARE, KINDS, OURS, OURS_BOUNDED, blocking_peers
from plots import bars, lines, number
from progress import Progress
from report import Goal, Section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess
    from typing import Any

    from peers import Enter

    _Measure = Callable[[str, "Load"], float]

#: Forked, so that 64 of them start with everything imported.
_FORK = multiprocessing.get_context("fork")
#: From the start of the processes until all ask at once, in seconds, and more for each of them.
_START, _START_EACH = 0.03, 0.004
#: Waiters of the one long hold during which waiting itself is measured.
_WAITERS = 8
#: Holds shorter than this, in seconds, are of the order of what the scheduler takes.
_SHORT = 0.001

_INTRO = """\
Processes that ask for one tree at once, and ask again as soon as they left it. "Total" is the
time until all had all their turns, by that of bare blocking `flock` in the same round.
"Hand-over" is the time from the moment that a holder begins to leave to the moment that a process
which was waiting then is in. A "fair turn" is the time in which bare `flock` lets every process
in once. "CPU" is what a waiting process burns. Two processes inside at once would end the benchmark
with an error."""


class Load(NamedTuple):
    """So many processes, each of which holds the tree so long, so many times."""

    processes: int
    hold: float
    turns: int

    def __str__(self) -> str:
        return f"{self.processes} x {number(self.hold * 1000)} ms"


class Outcome(NamedTuple):
    """What a load came to, in seconds."""

    total: float
    hand_overs: list[float]
    longest_wait: float


class Turn(NamedTuple):
    """When a process asked, was in, and was about to leave."""

    asked: float
    entered: float
    leaving: float


def _loads(*, quick: bool) -> tuple[list[Load], list[Load]]:
    """By number of processes, and by length of hold."""
    busy = 0.05 if quick else 0.25  # so long all holds together, in seconds, if that is enough

    def load(processes: int, hold: float) -> Load:
        return Load(processes, hold, max(4, round(busy / processes / hold)))

    counts = (2, 8) if quick else (2, 4, 8, 16, 32, 64)
    holds = (0.0001, 0.001) if quick else (0.0001, 0.001, 0.01, 0.1)
    return [load(count, 0.002) for count in counts], [load(4, hold) for hold in holds]


def _contend(enter: Enter, load: Load, start: float, results: Connection) -> None:
    turns = []
    time.sleep(max(0.0, start - time.monotonic()))
    for _ in range(load.turns):
        asked = time.monotonic()
        with enter():
            entered = time.monotonic()
            until = entered + load.hold
            while (leaving := time.monotonic()) < until:
                pass
        turns.append(Turn(asked, entered, leaving))
    results.send(turns)


def run_load(enter: Enter, load: Load) -> Outcome:
    start = time.monotonic() + _START + _START_EACH * load.processes
    told: list[list[Turn]] = _fork_all(load.processes, partial(_contend, enter, load, start))
    turns = sorted((turn for each in told for turn in each), key=lambda turn: turn.entered)
    hand_overs = []
    for before, after in pairwise(turns):
        if after.entered < before.leaving:
            raise AssertionError("two processes were inside at once")
        if after.asked < before.leaving:
            hand_overs.append(after.entered - before.leaving)
    return Outcome(
        turns[-1].leaving - min(turn.asked for turn in turns),
        hand_overs,
        max(turn.entered - turn.asked for turn in turns),
    )


def _fork_all(count: int, function: Callable[[Connection], None]) -> list[Any]:
    """Run ``function`` in so many processes, and give what each of them sent."""
    pipes: list[Connection] = []
    processes: list[ForkProcess] = []
    for _ in range(count):
        receiver, sender = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=function, args=(sender,), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return [pipe.recv() for pipe in pipes]
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()


def _cpu_seconds() -> float:
    """Of all threads, and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _wait_once(enter: Enter, start: float, results: Connection) -> None:
    time.sleep(max(0.0, start - time.monotonic()))
    burnt, asked = _cpu_seconds(), time.monotonic()
    with enter():
        waited, burnt = time.monotonic() - asked, _cpu_seconds() - burnt
    results.send((burnt, waited))


def cpu_while_waiting(enter: Enter, hold: float) -> float:
    """CPU seconds that waiters burn by second of waiting, while one process holds long."""
    start = time.monotonic() + _START + _START_EACH * _WAITERS
    with _held_until(start + hold, enter):
        told: list[tuple[float, float]] = _fork_all(_WAITERS, partial(_wait_once, enter, start))
    seconds_burnt, seconds_waited = map(sum, zip(*told, strict=True))
    return seconds_burnt / seconds_waited


@contextmanager
def _held_until(moment: float, enter: Enter) -> Iterator[None]:
    """Another process holds the tree until then."""
    inside, holder_is_in = _FORK.Pipe(duplex=False)
    holder = _FORK.Process(target=_hold, args=(enter, moment, holder_is_in))
    holder.start()
    try:
        inside.recv()
        yield
    finally:
        holder.kill()
        holder.join()
        inside.close()
        holder_is_in.close()


def _hold(enter: Enter, until: float, inside: Connection) -> None:
    with enter():
        inside.send("held")
        time.sleep(max(0.0, until - time.monotonic()))


def _warm_up(enter: Enter) -> None:
    """Import and cache what a first entry and a first wait do, before the processes fork."""
    with _held_until(time.monotonic() + 0.1, enter), enter():
        pass


def run(*, quick: bool) -> Section:
    rounds, long_hold = (1, 0.5) if quick else (3, 2.0)
    by_count, by_hold = _loads(quick=quick)
    with tempfile.TemporaryDirectory() as directory:
        peers = blocking_peers(Path(directory))
        for enter in peers.values():
            _warm_up(enter)
        cases = {
            (name, load): partial(run_load, enter, load)
            for load in by_count + by_hold
            for name, enter in peers.items()
        }
        with Progress("busy tree", rounds * len(cases)) as progress:
            results = Results(interleaved(cases, rounds, progress))
        waits = {
            name: partial(cpu_while_waiting, enter, long_hold) for name, enter in peers.items()
        }
        with Progress("waiting", rounds * len(waits)) as progress:
            burnt = interleaved(waits, rounds, progress)
    return _section(by_count, by_hold, results, burnt)


class Results:
    """All outcomes, and what they come to, by peer and load."""

    def __init__(self, outcomes: dict[tuple[str, Load], list[Outcome]]) -> None:
        self._outcomes = outcomes

    def total(self, name: str, load: Load) -> float:
        """By bare ``flock``."""
        of, bare = self._outcomes[name, load], self._outcomes[BARE, load]
        return ratio([each.total for each in of], [each.total for each in bare])

    def longest_wait(self, name: str, load: Load) -> float:
        """In fair turns."""
        of, bare = self._outcomes[name, load], self._outcomes[BARE, load]
        return ratio([each.longest_wait for each in of], [each.total / load.turns for each in bare])

    def hand_over(self, share: float, name: str, load: Load) -> float:
        """In milliseconds: the value below which ``share`` of all are."""
        of = self._outcomes[name, load]
        return quantile([value for each in of for value in each.hand_overs], share) * 1000


def _section(
    by_count: list[Load], by_hold: list[Load], results: Results, burnt: dict[str, list[float]]
) -> Section:
    section = Section("busy-tree", "A busy tree: many processes that want it at once", _INTRO)
    measures: dict[str, _Measure] = {
        "Total time, by bare `flock`:": results.total,
        "Longest wait, in fair turns:": results.longest_wait,
        "Hand-over, median, in ms:": partial(results.hand_over, 0.5),
        "Hand-over, 99th percentile, in ms:": partial(results.hand_over, 0.99),
    }
    loads = by_count + by_hold
    columns = ["", *map(str, loads)]
    for caption, value in measures.items():
        rows = [[name, *(number(value(name, load)) for load in loads)] for name in KINDS]
        section.tables.append((caption, columns, rows))
    percents = {name: median(each) * 100 for name, each in burnt.items()}
    section.tables.append(
        (
            f"CPU that each of {_WAITERS} waiting processes burns, in % of one CPU:",
            ["", "%"],
            [[name, number(percents[name])] for name in KINDS],
        )
    )
    counts = [str(load.processes) for load in by_count]
    section.plots = {
        "busy-total.svg": lines(
            "A busy tree: total time, by bare flock (holds of 2 ms)",
            "processes",
            counts,
            [
                (kind, [results.total(name, load) for load in by_count])
                for name, kind in KINDS.items()
            ],
        ),
        "busy-longest-wait.svg": lines(
            "A busy tree: longest wait, in fair turns (holds of 2 ms)",
            "processes",
            counts,
            [
                (kind, [results.longest_wait(name, load) for load in by_count])
                for name, kind in KINDS.items()
            ],
            goal=4,
        ),
        "busy-hand-over.svg": lines(
            f"A busy tree: median hand-over, in ms ({by_hold[0].processes} processes)",
            "hold, in ms",
            [number(load.hold * 1000) for load in by_hold],
            [
                (kind, [results.hand_over(0.5, name, load) for load in by_hold])
                for name, kind in KINDS.items()
            ],
            goal=0.5,
        ),
        "busy-cpu.svg": bars(
            "A busy tree: what a waiting process burns, in % of one CPU",
            "%",
            [(kind, percents[name]) for name, kind in KINDS.items()],
        ),
    }
    section.goals += _goals(results, loads, percents)
    return section


def _goals(results: Results, loads: list[Load], percents: dict[str, float]) -> list[Goal]:
    """Each in the worst load: of those as short as the lock's own cost, and of the others."""
    goals = []
    kinds = {
        "shortest holds": [load for load in loads if load.hold < _SHORT],
        "all other holds": [load for load in loads if load.hold >= _SHORT],
    }
    for name, limit in ((OURS, 1.10), (OURS_BOUNDED, 1.25)):
        measures: list[tuple[str, _Measure, float, str]] = [
            ("total, by bare `flock`", results.total, limit, ""),
            ("median hand-over", partial(results.hand_over, 0.5), 0.5, "ms"),
            ("longest wait", results.longest_wait, 4.0, "fair turns"),
        ]
        for what, value, most, unit in measures:
            for kind, some in kinds.items():
                worst = max(some, key=partial(value, name))
                words = f"busy tree, {name}: {what}, {kind} (worst: {worst})"
                goals.append(Goal(words, value(name, worst), most, unit))
        goals.append(Goal(f"busy tree, {name}: CPU burnt while waiting", percents[name], 0.1, "%"))
    return goals
