"""Many real builds of one source tree at once, without the lock and with it.

    python benchmarks/concurrent_builds.py [--builds N] [--rounds R]

Makes a setuptools project, builds a wheel of it alone, and then, in rounds, as many at once
as are asked for: each by pypa/build in a process of its own, in one and the same source tree.
A build fails, or it says that it succeeded; then its wheel is right only if it has the
content of the one that was built alone. Exit status: 0 if with the lock every wheel is right.
It needs no more than the extra `test`; `speed.py concurrent_builds` draws the picture.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from measure import progress
from sample import Content, make_tree, wheel_content

TYPE_CHECKING = False
if TYPE_CHECKING:
    from report import Section

#: Longer than any round takes, in seconds: only a deadlock lasts this long.
_LIMIT = 1800


class Tally:
    """What became of the builds of one kind."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.failed = 0
        self.wrong = 0
        self.right = 0
        self.seconds = 0.0
        self.complaints: list[str] = []

    def is_perfect(self) -> bool:
        return self.failed == self.wrong == 0 < self.right

    def count(self, wheels: Path, status: int, complaint: str, expected: Content) -> None:
        if status != 0:
            self.failed += 1
            self.complaints.append(complaint)
        elif wheel_content(wheels) != expected:
            self.wrong += 1
        else:
            self.right += 1

    def row(self) -> list[str]:
        counts = map(str, (self.failed, self.wrong, self.right))
        return [self.label, *counts, f"{self.seconds:.1f} s"]


COLUMNS = ["", "failed", "wrong wheel", "right", "wall time"]


def start_build(tree: Path, wheels: Path, temp_dir: Path, *, locked: bool) -> subprocess.Popen[str]:
    """A process that is about to build, and waits for a line to do so."""
    wheels.mkdir(parents=True)
    script = Path(__file__).with_name("one_build.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(tree), str(wheels), "locked" if locked else "unlocked"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(temp_dir), "TMP": str(temp_dir), "TEMP": str(temp_dir)},
    )


def run_at_once(
    tree: Path, wheels: list[Path], temp_dir: Path, *, locked: bool
) -> tuple[list[tuple[int, str]], float]:
    """A build into each of ``wheels``: exit status and complaint of each, and the wall time."""
    temp_dir.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[str]] = []
    try:
        for directory in wheels:
            processes.append(start_build(tree, directory, temp_dir, locked=locked))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        started = time.monotonic()
        with ThreadPoolExecutor(len(processes)) as threads:
            told = list(threads.map(lambda each: each.communicate("go\n", _LIMIT)[1], processes))
        seconds = time.monotonic() - started
        return [(each.returncode, text) for each, text in zip(processes, told, strict=True)], seconds
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
            process.wait()


def build_alone(work: Path) -> Content:
    """What the wheel of the project has to contain."""
    tree, wheels = make_tree(work / "alone" / "tree"), work / "alone" / "wheels"
    [(status, complaint)], _ = run_at_once(tree, [wheels], work / "temp", locked=False)
    content = wheel_content(wheels)
    if status != 0 or content is None:
        raise SystemExit(f"the project cannot even be built alone:\n{complaint}")
    return content


def build_rounds(
    work: Path, label: str, builds: int, rounds: int, *, locked: bool, in_a_row: bool = False
) -> Tally:
    """Rounds of builds at once, or in a row; each round in a tree that was never built before."""
    tally = Tally(label)
    expected = build_alone(work / label)
    with progress(f"{rounds} x {builds} builds {label}", rounds) as step:
        for number in range(rounds):
            here = work / label / str(number)
            tree = make_tree(here / "tree")
            wheels = [here / "wheels" / str(each) for each in range(builds)]
            for group in [[each] for each in wheels] if in_a_row else [wheels]:
                outcomes, seconds = run_at_once(tree, group, work / "temp", locked=locked)
                tally.seconds += seconds
                for directory, (status, complaint) in zip(group, outcomes, strict=True):
                    tally.count(directory, status, complaint, expected)
            step()
    return tally


def run(*, quick: bool) -> Section:
    """The same for the README, and what as many builds in a row take."""
    from plots import GREEN, GREY, VERMILION, bars
    from report import Goal, Section

    builds, rounds = (4, 1) if quick else (10, 3)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        without = build_rounds(work, "without the lock", builds, rounds, locked=False)
        with_it = build_rounds(work, "with the lock", builds, rounds, locked=True)
        in_a_row = build_rounds(work, "in a row", builds, rounds, locked=False, in_a_row=True)
    frontend = f"build {version('build')} with setuptools {version('setuptools')}"
    bar = {each.label: [each.failed, each.wrong, each.right] for each in (without, with_it)}
    picture = bars(
        f"{rounds} times {builds} builds of one source tree at once",
        f"builds ({frontend}: `python -m build --wheel --no-isolation`)",
        bar,
        {"failed": GREY, "succeeded, wrong wheel": VERMILION, "right wheel": GREEN},
    )
    rows = [each.row() for each in (without, with_it, in_a_row)]
    return Section(
        [(f"{rounds} times {builds} builds of one tree, {frontend}:", COLUMNS, rows)],
        {"concurrent-builds.svg": picture},
        [
            Goal(
                "builds of one tree at once with the lock, ÷ in a row without",
                with_it.seconds / in_a_row.seconds,
                1.0,
                "who starts builds at once is served no later than who starts them one by one",
            ),
            Goal(
                "builds of one tree at once with the lock: failed or wrong",
                with_it.failed + with_it.wrong,
                0,
                "this is what the lock is for",
            ),
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--builds", type=int, default=10, metavar="N", help="at once (default 10)")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="of each (default 3)")
    options = parser.parse_args()
    builds, rounds = options.builds, options.rounds
    if builds < 1 or rounds < 1:
        parser.error("at least one build and one round")
    with tempfile.TemporaryDirectory(prefix="concurrent-builds-") as directory:
        tallies = [
            build_rounds(Path(directory), label, builds, rounds, locked=locked)
            for label, locked in (("without the lock", False), ("with the lock", True))
        ]
    print(f"\n{rounds} times {builds} wheels of one source tree built at once by pypa/build:\n")
    for first, *others in [COLUMNS, *(tally.row() for tally in tallies)]:
        print(f"{first:<18}", *(f"{each:>11}" for each in others))
    if tallies[-1].is_perfect():
        return 0
    print("\nWith the lock, every wheel should have been right.", *tallies[-1].complaints, sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
