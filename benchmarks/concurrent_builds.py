"""Many real builds of one source tree at once, without the lock and with it.

    python benchmarks/concurrent_builds.py [--builds N] [--rounds R]

Makes a setuptools project, builds a wheel of it alone, and then, in rounds, as many at once
as are asked for: each by pypa/build in a process of its own, in one and the same source tree.
A build fails, or it says that it succeeded; then its wheel is right only if it has the
content of the one that was built alone. Exit status: 0 if with the lock every wheel is right.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from common import Section, progress
from sample import Content, make_tree, wheel_content

COLUMNS = ["", "failed", "wrong wheel", "right", "wall time"]
_LIMIT = 1800  # seconds: only a deadlock lasts this long


class Tally:
    """What became of the builds of one kind."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.failed = self.wrong = self.right = 0
        self.seconds = 0.0
        self.complaints: list[str] = []

    def count(self, wheels: Path, status: int, complaint: str, expected: Content | None) -> None:
        if status != 0:
            self.failed += 1
            self.complaints.append(complaint)
        elif wheel_content(wheels) != expected:
            self.wrong += 1
        else:
            self.right += 1

    def is_perfect(self) -> bool:
        return self.failed == self.wrong == 0 < self.right

    def row(self) -> list[str]:
        counts = map(str, (self.failed, self.wrong, self.right))
        return [self.label, *counts, f"{self.seconds:.1f} s"]


def command(tree: Path, wheels: Path, *, locked: bool) -> list[str]:
    script = str(Path(__file__).with_name("one_build.py"))
    return [sys.executable, script, str(tree), str(wheels), "locked" if locked else "unlocked"]


def build_at_once(tally: Tally, builds: dict[Path, list[str]], expected: Content | None) -> None:
    """Run commands at once, each of which leaves a wheel in its directory, and count them."""
    started, pipe = time.monotonic(), subprocess.PIPE
    processes = [subprocess.Popen(each, stdout=pipe, stderr=pipe) for each in builds.values()]
    try:
        with ThreadPoolExecutor(len(processes)) as threads:
            told = list(threads.map(lambda each: each.communicate(timeout=_LIMIT)[1], processes))
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
    tally.seconds += time.monotonic() - started
    for wheels, process, complaint in zip(builds, processes, told, strict=True):
        tally.count(wheels, process.returncode, complaint.decode(errors="replace"), expected)


def build_rounds(label: str, builds: int, rounds: int, *, locked: bool, group: int = 0) -> Tally:
    """Rounds of builds, all or ``group`` at once; each round in a tree that was never built."""
    tally, alone = Tally(label), Tally("alone")
    with tempfile.TemporaryDirectory() as directory, progress(label):
        work, wheels = Path(directory), Path(directory, "alone")
        build_at_once(
            alone, {wheels: command(make_tree(work / "tree"), wheels, locked=False)}, None
        )
        expected = wheel_content(wheels)
        if alone.failed or expected is None:
            raise SystemExit(f"the project cannot even be built alone: {alone.complaints}")
        for number in range(rounds):
            tree = make_tree(work / f"tree-{number}")
            each = [work / f"wheels-{number}" / str(build) for build in range(builds)]
            while each:
                now, each = each[: group or builds], each[group or builds :]
                commands = {wheels: command(tree, wheels, locked=locked) for wheels in now}
                build_at_once(tally, commands, expected)
    return tally


def run(*, quick: bool) -> Section:
    """The same for the README, and how long as many builds take one after the other."""
    builds, rounds = (4, 1) if quick else (10, 3)
    tallies = [
        build_rounds("without the lock", builds, rounds, locked=False),
        build_rounds("with the lock", builds, rounds, locked=True),
        build_rounds("one by one, without", builds, rounds, locked=False, group=1),
    ]
    section = Section()
    times = f"{rounds} times {builds} builds of one source tree"
    frontend = f"pypa/build {version('build')} with setuptools {version('setuptools')}"
    section.table(f"{times} at once, {frontend}:", COLUMNS, [each.row() for each in tallies])
    counts = {each.label: [each.failed, each.wrong, each.right] for each in tallies[:2]}
    section.numbers |= {"counts": counts, "times": times, "frontend": frontend}
    bad = tallies[1].failed + tallies[1].wrong
    section.goal("builds at once with the lock: failed or wrong", bad, 0)
    return section


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--builds", type=int, default=10, metavar="N", help="at once (default 10)")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="of each (default 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:  # for the lock files as well
        tempfile.tempdir = os.environ["TMPDIR"] = os.environ["TMP"] = temp
        tallies = [
            build_rounds(label, options.builds, options.rounds, locked=label == "with the lock")
            for label in ("without the lock", "with the lock")
        ]
    print(f"\n{options.rounds} times {options.builds} builds of one tree at once by pypa/build:\n")
    for first, *others in (COLUMNS, *(tally.row() for tally in tallies)):
        print(f"{first:<18}", *(f"{each:>11}" for each in others))
    if tallies[-1].is_perfect():
        return 0
    print("\nWith the lock, every wheel should have been right.", *tallies[-1].complaints, sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
