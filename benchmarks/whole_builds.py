"""Whole builds: what the lock costs one, what many of one tree take, and builds of many trees."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from concurrent_builds import Tally, build_alone, build_rounds, run_at_once
from measure import interleaved, ratio
from plots import number
from progress import Progress
from report import Goal, Section
from sample import make_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_INTRO = """\
Wheels of a setuptools project with thirty modules, not isolated. One build at a time: whole
processes, the wall time and the CPU time with the lock by those without it, in pairs. `build`
runs the hooks through `locked_runner`; `pip wheel` has `source_tree_lock.build_meta` as backend.
Many builds of one tree: how long until all are done, by as many builds in a row without the lock.
Many trees: a build of each at once, with the lock by without."""


class Cost(NamedTuple):
    """Seconds that a process took, and that it and its children computed."""

    wall: float
    cpu: float


def _run(command: list[str], environ: dict[str, str], text: str) -> Cost:
    before, started = os.times(), time.perf_counter()
    subprocess.run(
        command,
        input=text,
        text=True,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system
    return Cost(wall, cpu - before.children_user - before.children_system)


class Workshop:
    """Where builds are made: each in a directory that no other one had."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._temp = work / "temp"
        self._temp.mkdir()
        self._environ = {**os.environ, "TMPDIR": str(self._temp)}
        self._expected = build_alone(work)

    def directory(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._work))

    def one_with_build(self, tree: Path, lock: str) -> Cost:
        script = str(Path(__file__).with_name("one_build.py"))
        command = [sys.executable, script, str(tree), str(self.directory()), lock]
        return _run(command, self._environ, "go\n")

    def one_with_pip(self, tree: Path) -> Cost:
        options = "--no-build-isolation --no-deps --no-index --disable-pip-version-check".split()
        wheels = ["--wheel-dir", str(self.directory())]
        command = [sys.executable, "-m", "pip", "wheel", *options, *wheels, str(tree)]
        return _run(command, self._environ, "")

    def at_once(self, trees: list[Path], *, locked: bool) -> float:
        """Seconds until a build of each is done, none of which may fail."""
        wheels = [self.directory() / "wheels" for _ in trees]
        with Progress("", len(trees), hidden=True) as progress:
            outcomes, seconds = run_at_once(trees, wheels, self._temp, progress, locked=locked)
        complaints = [complaint for status, complaint in outcomes if status != 0]
        if complaints:
            raise AssertionError(f"a build failed:\n{complaints[0]}")
        return seconds

    def in_a_row(self, count: int) -> float:
        """Seconds for so many builds of one tree, one after another, without the lock."""
        tree = make_tree(self.directory() / "tree")
        return sum(self.at_once([tree], locked=False) for _ in range(count))

    def of_one_tree(self, count: int, *, locked: bool) -> Tally:
        label = "with the lock" if locked else "without the lock"
        return build_rounds(self.directory(), self._expected, label, count, 1, locked=locked)


def run(*, quick: bool) -> Section:
    section = Section("whole-builds", "Whole builds", _INTRO)
    with tempfile.TemporaryDirectory() as directory:
        workshop = Workshop(Path(directory))
        _one_build(section, workshop, rounds=1 if quick else 15)
        _one_tree(section, workshop, [4] if quick else [10, 30], rounds=1 if quick else 2)
        _many_trees(section, workshop, [2] if quick else [4, 10], rounds=1 if quick else 5)
    return section


def _one_build(section: Section, workshop: Workshop, rounds: int) -> None:
    plain = make_tree(workshop.directory() / "tree")
    ours = make_tree(workshop.directory() / "tree", backend="source_tree_lock.build_meta")
    cases = {
        ("build", False): partial(workshop.one_with_build, plain, "unlocked"),
        ("build", True): partial(workshop.one_with_build, plain, "locked"),
        ("pip wheel", False): partial(workshop.one_with_pip, plain),
        ("pip wheel", True): partial(workshop.one_with_pip, ours),
    }
    for case in cases.values():
        case()  # a tree that was built before is another matter
    with Progress("one build", rounds * len(cases)) as progress:
        costs = interleaved(cases, rounds, progress)
    rows = []
    for tool in ("build", "pip wheel"):
        without, locked = costs[tool, False], costs[tool, True]
        wall = ratio([each.wall for each in locked], [each.wall for each in without])
        cpu = ratio([each.cpu for each in locked], [each.cpu for each in without])
        seconds = (f"{median(each.wall for each in of):.3f} s" for of in (without, locked))
        rows.append([f"`{tool}`", *seconds, f"{wall:.3f}", f"{cpu:.3f}"])
        section.goals.append(Goal(f"a whole build, `{tool}`", wall, 1.02))
    columns = ["", "without", "with the lock", "ratio", "ratio of CPU time"]
    section.tables.append(("One build at a time:", columns, rows))


def _one_tree(section: Section, workshop: Workshop, counts: list[int], rounds: int) -> None:
    rows = []
    for count in counts:
        cases: dict[str, Callable[[], Tally | float]] = {
            "in a row, without the lock": partial(workshop.in_a_row, count),
            "at once, with the lock": partial(workshop.of_one_tree, count, locked=True),
            "at once, without the lock": partial(workshop.of_one_tree, count, locked=False),
        }
        with Progress(f"{count} builds of one tree", rounds * len(cases)) as progress:
            found = interleaved(cases, rounds, progress)
        seconds: dict[str, list[float]] = {}
        for name, outcomes in found.items():
            tallies = [each for each in outcomes if isinstance(each, Tally)]
            seconds[name] = [each.seconds if isinstance(each, Tally) else each for each in outcomes]
            rows.append(
                [
                    f"{count} {name}",
                    f"{median(seconds[name]):.2f} s",
                    number(ratio(seconds[name], seconds["in a row, without the lock"])),
                    str(sum(each.failed for each in tallies)),
                    str(sum(each.wrong for each in tallies)),
                ]
            )
    section.tables.append(
        ("Many builds of one tree:", ["", "all done after", "ratio", "failed", "wrong wheel"], rows)
    )


def _many_trees(section: Section, workshop: Workshop, counts: list[int], rounds: int) -> None:
    rows = []
    for count in counts:
        trees = [make_tree(workshop.directory() / "tree") for _ in range(count)]
        cases = {
            locked: partial(workshop.at_once, trees, locked=locked) for locked in (False, True)
        }
        cases[False]()
        with Progress(f"{count} different trees", rounds * len(cases)) as progress:
            seconds = interleaved(cases, rounds, progress)
        times = (f"{median(seconds[locked]):.2f} s" for locked in (False, True))
        by_without = ratio(seconds[True], seconds[False])
        rows.append([f"{count} trees", *times, f"{by_without:.3f}"])
    columns = ["", "without", "with the lock", "ratio"]
    section.tables.append(("Builds of different trees, all at once:", columns, rows))
