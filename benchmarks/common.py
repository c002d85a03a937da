"""What the benchmarks share: cases that take turns, forked processes, and what was found."""

import json
import math
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import TypeVar

Case = TypeVar("Case")
Outcome = TypeVar("Outcome")

ROOT = Path(__file__).parents[1]
_PACKAGES = "source-tree-lock portalocker filelock fasteners build pip setuptools uv".split()


@contextmanager
def progress(label: str) -> Iterator[None]:
    """Say how long it took, on stderr."""
    started = perf_counter()
    yield
    print(f"{label}: {perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def interleaved(
    label: str, cases: Mapping[Case, Callable[[], Outcome]], rounds: int
) -> dict[Case, list[Outcome]]:
    """The outcomes of each case, one a round: what disturbs a round disturbs all cases of it."""
    found: dict[Case, list[Outcome]] = {case: [] for case in cases}
    with progress(label):
        for _ in range(rounds):
            for case in random.sample(list(cases), len(cases)):
                found[case].append(cases[case]())
    return found


def in_forks(count: int, function: Callable[[int, Callable[[], object]], Outcome]) -> list[Outcome]:
    """What it returns in each of so many forks, given its number and a barrier for all of them."""

    def call(number: int) -> None:
        try:
            outcomes.put((function(number, barrier.wait), None))
        except BaseException as error:
            outcomes.put((None, error))

    context = get_context("fork")  # they start with everything imported
    barrier, outcomes = context.Barrier(count), context.SimpleQueue()
    forks = [context.Process(target=call, args=(number,), daemon=True) for number in range(count)]
    for fork in forks:
        fork.start()
    try:
        results = [outcomes.get() for _ in forks]
    finally:
        for fork in forks:
            fork.kill()
            fork.join()
    for _, error in results:
        if error is not None:
            raise error
    return [outcome for outcome, _ in results]


def user_environ(**more: str) -> dict[str, str]:
    """The environment without settings that change what is measured."""
    ours = ("PIP_", "PYTHON", "SOURCE_TREE_LOCK", "UV_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def seconds(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """How long a command takes, and the CPU time that it uses, in seconds."""
    before, started = os.times(), perf_counter()
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    took, after = perf_counter() - started, os.times()
    if done.returncode != 0:
        raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return took, sum(after[2:4]) - sum(before[2:4])  # those of children


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    low, _, high = quantiles(values, method="inclusive")
    return low, median(values), high


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, never with an exponent."""
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value) or 1)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Section:
    """The outcome of one benchmark: tables and goals for the README, numbers for the pictures."""

    def __init__(self) -> None:
        self.tables: list[tuple[str, list[str], list[list[str]]]] = []
        self.goals: list[tuple[str, str, str, str]] = []
        self.numbers: dict[str, object] = {}

    def table(self, caption: str, columns: list[str], rows: list[list[str]]) -> None:
        self.tables.append((caption, columns, rows))

    def goal(self, what: str, measured: float, limit: float, unit: str = "") -> None:
        """``measured`` should be at most ``limit``."""
        verdict = "reached" if measured <= limit else "**missed**"
        told = (f"{number(each, 4)} {unit}".strip() for each in (limit, measured))
        self.goals.append((what, *told, verdict))

    def save(self, path: Path) -> None:
        kept = {"machine": machine(), **vars(self)}
        path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


def machine() -> str:
    """Processor, system, and versions."""
    installed = {each.name: each.version for each in metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in _PACKAGES if name in installed)
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"model name\s*: (.*)", cpuinfo.read_text())
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    processor = found[1] if found else platform.machine()
    return f"{processor}, {os.cpu_count()} logical CPUs; {system}; {python}; {versions}"
