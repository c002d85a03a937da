"""Many real builds of one source tree at once, without the lock and with it.

    python benchmarks/concurrent_builds.py [--builds N] [--rounds R] [--svg FILE]

Makes a setuptools project, builds a wheel of it alone, and then, in rounds, as many at once
as are asked for: each by pypa/build in a process of its own, in one and the same source tree.
A build fails, or it says that it succeeded; then its wheel is right only if it has the
content of the one that was built alone. Exit status: 0 if with the lock every wheel is right.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import plots
from progress import Progress
from sample import Content, make_tree, wheel_content

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
    trees: list[Path], wheels: list[Path], temp_dir: Path, progress: Progress, *, locked: bool
) -> tuple[list[tuple[int, str]], float]:
    """Build each of ``trees`` at once: exit status and complaint of each, and the wall time."""
    temp_dir.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[str]] = []
    try:
        for tree, directory in zip(trees, wheels, strict=True):
            processes.append(start_build(tree, directory, temp_dir, locked=locked))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        started = time.monotonic()
        outcomes = [(0, "")] * len(processes)
        with ThreadPoolExecutor(len(processes)) as threads:
            finished = {
                threads.submit(process.communicate, "go\n", _LIMIT): number
                for number, process in enumerate(processes)
            }
            for future in as_completed(finished):
                number = finished[future]
                outcomes[number] = (processes[number].returncode, future.result()[1])
                progress.step()
        return outcomes, time.monotonic() - started
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
            process.wait()


def build_rounds(
    work: Path, expected: Content, label: str, builds: int, rounds: int, *, locked: bool
) -> Tally:
    """Rounds of concurrent builds, each round in a source tree that was never built before."""
    tally = Tally(label)
    with Progress(label, builds * rounds) as progress:
        for number in range(rounds):
            here = work / f"{label.replace(' ', '-')}-{number}"
            tree = make_tree(here / "tree")
            wheels = [here / "wheels" / str(each) for each in range(builds)]
            outcomes, seconds = run_at_once(
                [tree] * builds, wheels, work / "temp", progress, locked=locked
            )
            tally.seconds += seconds
            for directory, (status, complaint) in zip(wheels, outcomes, strict=True):
                tally.count(directory, status, complaint, expected)
    return tally


def build_alone(work: Path) -> Content:
    """What the wheel of the project has to contain."""
    tree, wheels = make_tree(work / "alone" / "tree"), work / "alone" / "wheels"
    with Progress("alone", 1) as progress:
        [(status, complaint)], _ = run_at_once(
            [tree], [wheels], work / "temp", progress, locked=False
        )
    content = wheel_content(wheels)
    if status != 0 or content is None:
        raise SystemExit(f"the project cannot even be built alone:\n{complaint}")
    return content


def table(tallies: list[Tally]) -> str:
    lines = [f"{'':<18}{'failed':>8}{'wrong wheel':>14}{'right':>8}{'wall time':>13}"]
    lines += [
        f"{tally.label:<18}{tally.failed:>8}{tally.wrong:>14}{tally.right:>8}"
        f"{tally.seconds:>11.1f} s"
        for tally in tallies
    ]
    return "\n".join(lines)


def picture(tallies: list[Tally], builds: int, rounds: int) -> str:
    return plots.stacked_bars(
        f"{rounds} x {builds} concurrent builds of one source tree",
        [
            plots.Kind("failed", "bad"),
            plots.Kind("succeeded, wrong wheel", "worse"),
            plots.Kind("right wheel", "good"),
        ],
        [(tally.label, [tally.failed, tally.wrong, tally.right]) for tally in tallies],
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--builds", type=int, default=10, metavar="N", help="at once (default 10)")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="of each (default 3)")
    parser.add_argument(
        "--no-unlocked", action="store_true", help="leave out the builds without the lock"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture here")
    options = parser.parse_args()
    if options.builds < 1 or options.rounds < 1:
        parser.error("at least one build and one round")
    return options


def main() -> int:
    options = parsed()
    tallies = []
    with tempfile.TemporaryDirectory(prefix="concurrent-builds-") as directory:
        work = Path(directory)
        expected = build_alone(work)
        for label, locked in (("without the lock", False), ("with the lock", True)):
            if locked or not options.no_unlocked:
                tallies.append(
                    build_rounds(
                        work, expected, label, options.builds, options.rounds, locked=locked
                    )
                )
    print(f"\n{options.rounds} x {options.builds} builds at once of one source tree\n")
    print(table(tallies))
    if options.svg is not None:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(picture(tallies, options.builds, options.rounds), encoding="utf-8")
    if tallies[-1].is_perfect():
        return 0
    print("\nWith the lock, every wheel should have been right.", *tallies[-1].complaints, sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
