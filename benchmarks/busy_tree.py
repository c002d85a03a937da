"""A busy tree: many processes that all want it at once, turn after turn.

Each process notes when it asked, when it got in, and when it was about to leave, on the one
monotonic clock of the system. The holds compute, as builds do. Two processes inside at once
end the benchmark with an error.
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
from statistics import median, quantiles
from typing import NamedTuple

from measure import interleaved, number, ratio
from peers import BARE, COLOURS, OURS, OURS_BOUNDED, blocking_peers
from plots import lines
from report import Goal, Section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess
    from typing import Any

    from matplotlib.figure import Figure
    from peers import Enter

#: Forked, so that 64 of them start with everything imported.
_FORK = multiprocessing.get_context("fork")
#: From the start of the processes until all ask at once, in seconds, and more for each of them.
_START, _START_EACH = 0.03, 0.004
#: Waiters of the one long hold during which waiting itself is measured.
_WAITERS = 8


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
    """CPU that a waiter burns while one process holds long, in % of one CPU."""
    start = time.monotonic() + _START + _START_EACH * _WAITERS
    with _held_until(start + hold, enter):
        told: list[tuple[float, float]] = _fork_all(_WAITERS, partial(_wait_once, enter, start))
    seconds_burnt, seconds_waited = map(sum, zip(*told, strict=True))
    return 100 * seconds_burnt / seconds_waited


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


def _loads(*, quick: bool) -> tuple[list[Load], list[Load]]:
    """By number of processes, and by length of hold."""
    busy = 0.05 if quick else 0.25  # so long all holds together, in seconds, if that is enough

    def load(processes: int, hold: float) -> Load:
        return Load(processes, hold, max(4, round(busy / processes / hold)))

    counts = (2, 8) if quick else (2, 8, 16, 32, 64)
    holds = (0.001, 0.01) if quick else (0.001, 0.01, 0.1)
    return [load(count, 0.002) for count in counts], [load(4, hold) for hold in holds]


def run(*, quick: bool) -> Section:
    rounds, long_hold = (1, 0.5) if quick else (3, 2.0)
    by_count, by_hold = _loads(quick=quick)
    loads = by_count + by_hold
    with tempfile.TemporaryDirectory() as directory:
        peers = blocking_peers(Path(directory))
        for enter in peers.values():  # import what a first entry and a first wait do
            with _held_until(time.monotonic() + 0.1, enter), enter():
                pass
        cases = {
            (name, load): partial(run_load, enter, load)
            for load in loads
            for name, enter in peers.items()
        }
        outcomes = interleaved("busy tree", cases, rounds)
        waits = {
            name: partial(cpu_while_waiting, enter, long_hold) for name, enter in peers.items()
        }
        burnt = interleaved("waiting", waits, rounds)

    def total(name: str, load: Load) -> float:
        of, bare = outcomes[name, load], outcomes[BARE, load]
        return ratio([each.total for each in of], [each.total for each in bare])

    def longest_wait(name: str, load: Load) -> float:
        of, bare = outcomes[name, load], outcomes[BARE, load]
        return ratio([each.longest_wait for each in of], [each.total / load.turns for each in bare])

    def hand_over(percent: int, name: str, load: Load) -> float:
        every = [value for each in outcomes[name, load] for value in each.hand_overs]
        percentiles = quantiles([*every, *every], n=100, method="inclusive")  # of one value, too
        return percentiles[percent - 1] * 1000

    median_hand_over, slow_hand_over = partial(hand_over, 50), partial(hand_over, 99)
    section = Section()
    for caption, value in {
        f"Total time, ÷ that of {BARE}:": total,
        "Longest wait, in fair turns:": longest_wait,
        "Hand-over, median, in ms:": median_hand_over,
        "Hand-over, 99th percentile, in ms:": slow_hand_over,
    }.items():
        rows = [[name, *(number(value(name, load)) for load in loads)] for name in COLOURS]
        section.tables.append((caption, ["", *map(str, loads)], rows))
    percents = {name: median(burnt[name]) for name in COLOURS}
    caption = f"CPU that each of {_WAITERS} waiting processes burns, in % of one CPU:"
    rows = [[name, number(percents[name])] for name in COLOURS]
    section.tables.append((caption, ["", "%"], rows))

    def picture(what: str, axis: str, value: Callable[[str, Load], float], goal: float | None = None) -> Figure:
        processes = [{load.processes: value(name, load) for load in by_count} for name in COLOURS]
        return lines(
            f"A busy tree: {what} (holds of 2 ms)",
            ("processes that want it", axis),
            dict(zip(COLOURS, processes, strict=True)),
            list(COLOURS.values()),
            goal=goal,
        )

    section.figures = {
        "busy-total.svg": picture("total time", f"total time, ÷ that of {BARE}", total),
        "busy-longest-wait.svg": picture("longest wait", "fair turns", longest_wait, 4),
        "busy-hand-over.svg": picture("hand-over", "median hand-over, ms", median_hand_over, 1),
    }
    for name in (OURS, OURS_BOUNDED):
        for what, value, limit, unit, reason in (
            ("median hand-over", median_hand_over, 1, "ms", "a build takes 400 times as long"),
            ("longest wait", longest_wait, 4, "fair turns", "nobody's build starves"),
        ):
            worst = max(loads, key=partial(value, name))
            words = f"busy tree, {name}: {what} (worst: {worst})"
            section.goals.append(Goal(words, value(name, worst), limit, reason, unit))
        words = f"busy tree, {name}: CPU of a wait"
        reason = "a thousand waiting builds take one CPU"
        section.goals.append(Goal(words, percents[name], 0.1, reason, "%"))
    return section
