"""A busy tree: many processes that all want it at once, turn after turn.

Each process notes when it got in, when it had asked, and when it was about to leave, on the one
monotonic clock of the system. The holds compute, as builds do. Two processes inside at once
end the benchmark with an error.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from measure import in_forks, interleaved, number
from peers import BARE, COLOURS, OURS, OURS_BOUNDED, PEERS, Enter, blocking_peers
from plots import lines
from report import Section

#: Waiters of the one long hold during which waiting itself is measured.
_WAITERS = 8


class Load(NamedTuple):
    """So many processes, each of which holds the tree for so many ms, so many times."""

    processes: int
    hold: float
    turns: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.hold} ms"


def run_load(enter: Enter, load: Load) -> tuple[float, float, list[float]]:
    """The total time, the longest wait, and each hand-over, in ms."""

    def contend(_: int, all_are_ready: Callable[[], object]) -> list[tuple[float, float, float]]:
        turns = []
        all_are_ready()
        for _ in range(load.turns):
            asked = 1000 * time.monotonic()
            with enter():
                entered = leaving = 1000 * time.monotonic()
                while leaving < entered + load.hold:
                    leaving = 1000 * time.monotonic()
            turns.append((entered, asked, leaving))
        return turns

    turns = sorted(chain(*in_forks(load.processes, contend)))
    hand_overs = []
    for (_, _, leaving), (entered, asked, _) in pairwise(turns):
        if entered < leaving:
            raise AssertionError("two processes were inside at once")
        if asked < leaving:
            hand_overs.append(entered - leaving)
    total = turns[-1][2] - min(asked for _, asked, _ in turns)
    return total, max(entered - asked for entered, asked, _ in turns), hand_overs


def _cpu_seconds() -> float:
    """Of all threads, and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def cpu_while_waiting(enter: Enter, hold: float) -> float:
    """What a waiter burns while another process holds the tree so long, in % of one CPU."""

    def hold_or_wait(number: int, one_holds: Callable[[], object]) -> tuple[float, float]:
        if number == 0:
            with enter():
                one_holds()
                time.sleep(hold)
            return 0.0, 0.0
        one_holds()
        burnt, asked = _cpu_seconds(), time.monotonic()
        with enter():
            return _cpu_seconds() - burnt, time.monotonic() - asked

    burnt, waited = map(sum, zip(*in_forks(1 + _WAITERS, hold_or_wait), strict=True))
    return 100 * burnt / waited


def wait_once(enter: Enter) -> None:
    """Import and cache what a first wait needs, so that the forks have it."""
    told, tell = os.pipe()
    if os.fork() == 0:
        with enter():
            os.write(tell, b"in")
            time.sleep(0.1)
        os._exit(0)
    os.read(told, 2)
    with enter():
        os.wait()
    os.close(told)
    os.close(tell)


def run(*, quick: bool) -> Section:
    rounds, busy, long_hold = (1, 50, 0.5) if quick else (3, 250, 2.0)
    counts, holds = ((2, 8), (1, 10)) if quick else ((2, 8, 16, 32, 64), (1, 10, 100))
    sizes = [*((count, 2) for count in counts), *((4, hold) for hold in holds)]
    loads = [Load(count, hold, max(4, round(busy / count / hold))) for count, hold in sizes]
    with tempfile.TemporaryDirectory() as directory:
        peers = blocking_peers(Path(directory))
        for enter in peers.values():
            wait_once(enter)
        ways = [(name, load) for name in PEERS for load in loads]
        cases = {(name, load): partial(run_load, peers[name], load) for name, load in ways}
        found = interleaved("busy tree", cases, rounds)
        waits = {name: partial(cpu_while_waiting, peers[name], long_hold) for name in PEERS}
        cpu = {name: median(each) for name, each in interleaved("waiting", waits, rounds).items()}

    def total(name: str, load: Load) -> float:
        pairs = zip(found[name, load], found[BARE, load], strict=True)
        return median(each[0] / bare[0] for each, bare in pairs)

    def longest_wait(name: str, load: Load) -> float:
        pairs = zip(found[name, load], found[BARE, load], strict=True)
        return median(each[1] / (bare[0] / load.turns) for each, bare in pairs)

    def hand_over(name: str, load: Load, percent: int = 50) -> float:
        every = [value for _, _, hand_overs in found[name, load] for value in hand_overs]
        return quantiles([*every, *every] or [0, 0], n=100, method="inclusive")[percent - 1]

    section = Section()
    for what, value, unit, limit, reason in (
        ("total time", total, f"÷ {BARE}", None, ""),
        ("longest wait", longest_wait, "fair turns", 4, "nobody's build starves"),
        ("hand-over", hand_over, "ms", 1, "the shortest builds take 400 times as long"),
        ("slow hand-over", partial(hand_over, percent=99), "ms, 99th percentile", None, ""),
    ):
        rows = [[name, *(number(value(name, load)) for load in loads)] for name in PEERS]
        section.table(f"{what.capitalize()}, {unit}:", ["", *map(str, loads)], rows)
        by_count = {
            name: {each[0]: value(name, each) for each in loads[: -len(holds)]} for name in PEERS
        }
        title, colours = f"A busy tree: {what} (holds of 2 ms)", list(COLOURS.values())
        picture = lines(title, ("processes", f"{what}, {unit}"), by_count, colours, limit)
        if what != "slow hand-over":
            section.picture(f"busy-{what.replace(' ', '-')}.svg", picture)
        for name in (OURS, OURS_BOUNDED):
            if limit is None:
                break
            worst = max(loads, key=partial(value, name))
            words = f"{name}: {what}, worst ({worst})"
            section.goal(words, value(name, worst), limit, reason, unit)
    rows = [[name, number(cpu[name])] for name in PEERS]
    section.table(f"CPU of each of {_WAITERS} processes that wait {long_hold} s:", ["", "%"], rows)
    for name in (OURS, OURS_BOUNDED):
        reason = "a thousand builds that wait take one CPU"
        section.goal(f"{name}: CPU of a wait", cpu[name], 0.1, reason, "%")
    return section
