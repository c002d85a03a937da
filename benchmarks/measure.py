"""Rounds that take the cases in turns, processes to measure in, and a bar that shows progress."""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context
from typing import TypeVar

Case = TypeVar("Case")
Outcome = TypeVar("Outcome")


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step; a line at the end where rich is missing."""
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
    """The outcomes of each case, one a round; what disturbs a round disturbs all its cases."""
    found: dict[Case, list[Outcome]] = {case: [] for case in cases}
    with progress(label, rounds * len(cases)) as step:
        for _ in range(rounds):
            for case in random.sample(list(cases), len(cases)):
                found[case].append(cases[case]())
                step()
    return found


def in_new_process(function: Callable[..., Outcome], *arguments: object) -> Outcome:
    """Call it in a new interpreter, so that no luck of one process (hashes, addresses) stays."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def in_forks(count: int, function: Callable[[int, Callable[[], object]], Outcome]) -> list[Outcome]:
    """What it returns in each of so many forks, given its number and what waits for them all."""

    def call(number: int) -> None:
        try:
            told.put((function(number, barrier.wait), None))
        except BaseException as error:
            told.put((None, error))

    context = get_context("fork")  # they start with everything imported
    barrier, told = context.Barrier(count), context.SimpleQueue()
    forks = [context.Process(target=call, args=(number,), daemon=True) for number in range(count)]
    for fork in forks:
        fork.start()
    outcomes = []
    try:
        for _ in forks:
            outcome, error = told.get()
            if error is not None:
                raise error
            outcomes.append(outcome)
    finally:
        for fork in forks:
            fork.kill()
            fork.join()
    return outcomes


def micros(make: Callable[[], AbstractContextManager[object]], times: int) -> float:
    """Microseconds to make, enter and leave what it makes."""
    started = time.perf_counter()
    for _ in range(times):
        with make():
            pass
    return (time.perf_counter() - started) / times * 1e6


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, never with an exponent."""
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value) or 1)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
