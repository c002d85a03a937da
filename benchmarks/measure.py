"""Interleaved rounds, and ratios within them: what disturbs a round disturbs all its cases."""

from __future__ import annotations

import random
from statistics import median
from typing import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from progress import Progress

Case = TypeVar("Case")
Outcome = TypeVar("Outcome")


def interleaved(
    cases: Mapping[Case, Callable[[], Outcome]], rounds: int, progress: Progress
) -> dict[Case, list[Outcome]]:
    """The outcomes of each case, one a round; each round takes the cases in an order of its own."""
    found: dict[Case, list[Outcome]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in random.sample(list(cases), len(cases)):
            found[case].append(cases[case]())
            progress.step()
    return found


def ratio(values: Sequence[float], peer: Sequence[float]) -> float:
    """The median, over the rounds, of a value by the peer's in the same round."""
    return median(value / other for value, other in zip(values, peer, strict=True))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of all values are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
