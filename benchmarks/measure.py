"""Rounds that take the cases in turns, ratios within a round, and a bar that shows the progress."""

from __future__ import annotations

import math
import random
import sys
from contextlib import contextmanager
from statistics import median
from typing import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Case = TypeVar("Case")
Outcome = TypeVar("Outcome")


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each of ``total`` steps.

    A bar on stderr where rich is installed, else one line at the end.
    """
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda: None
        print(f"{label}: done", file=sys.stderr, flush=True)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def interleaved(
    label: str, cases: Mapping[Case, Callable[[], Outcome]], rounds: int
) -> dict[Case, list[Outcome]]:
    """The outcomes of each case, one a round.

    Each round takes the cases in an order of its own: what disturbs a round disturbs them all.
    """
    found: dict[Case, list[Outcome]] = {case: [] for case in cases}
    with progress(label, rounds * len(cases)) as step:
        for _ in range(rounds):
            for case in random.sample(list(cases), len(cases)):
                found[case].append(cases[case]())
                step()
    return found


def ratios(values: Sequence[float], peer: Sequence[float]) -> list[float]:
    """A value by the peer's in the same round, for each round."""
    return [value / other for value, other in zip(values, peer, strict=True)]


def ratio(values: Sequence[float], peer: Sequence[float]) -> float:
    """The median, over the rounds, of a value by the peer's in the same round."""
    return median(ratios(values, peer))


def number(value: float) -> str:
    """Three significant digits, never with an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
