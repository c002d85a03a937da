"""Whole builds: what the lock adds to one, in pairs, and to those of many trees at once."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from build import ProjectBuilder
from concurrent_builds import command
from measure import in_forks, interleaved, number, progress
from pyproject_hooks import quiet_subprocess_runner
from report import Section
from sample import make_tree

from source_tree_lock.adapters import locked_runner

_PIP = (
    "-m pip wheel --no-build-isolation --no-deps --no-index --disable-pip-version-check -w".split()
)


def _seconds(command: list[str]) -> tuple[float, float]:
    """That the processes took by the wall, and that they computed."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    wall, after = time.perf_counter() - started, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])  # those of children


def one_build(section: Section, rounds: int) -> None:
    tools = ("`build` with `locked_runner`", "`pip wheel` with our backend")
    with tempfile.TemporaryDirectory() as directory:
        plain, ours, wheels = (Path(directory, name) for name in ("plain", "ours", "wheels"))
        make_tree(plain)
        make_tree(ours, backend="source_tree_lock.build_meta")
        pip = [sys.executable, *_PIP, str(wheels)]
        cases = {
            (tools[0], False): partial(_seconds, command(plain, wheels, locked=False)),
            (tools[0], True): partial(_seconds, command(plain, wheels, locked=True)),
            (tools[1], False): partial(_seconds, [*pip, str(plain)]),
            (tools[1], True): partial(_seconds, [*pip, str(ours)]),
        }
        for case in cases.values():
            case()  # a tree that was built before is another matter
        found = interleaved("one build", cases, rounds)
    rows = []
    for tool in tools:
        pairs = list(zip(found[tool, False], found[tool, True], strict=True))
        wall, cpu = ([locked[of] / bare[of] for bare, locked in pairs] for of in (0, 1))
        low, middle, high = quantiles(wall, method="inclusive")
        medians = [f"{median(each[who][0] for each in pairs):.3f} s" for who in (0, 1)]
        share = [f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{median(cpu):.3f}"]
        rows.append([tool, *medians, *share])
        reason = "nobody should notice the lock when nobody else builds"
        section.goal(f"a whole build, {tool}, ÷ without", middle, 1.01, reason)
    columns = ["", "without", "with the lock", "ratio", "quartiles", "ratio of CPU time"]
    section.table(f"One build at a time, {rounds} pairs, medians:", columns, rows)


class _Timed:
    """A runner that adds up the seconds of another."""

    def __init__(self, runner: Callable[..., None]) -> None:
        self._runner = runner
        self.seconds = 0.0

    def __call__(
        self,
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        started = time.perf_counter()
        self._runner(cmd, cwd, extra_environ)
        self.seconds += time.perf_counter() - started


def build_all(trees: list[Path], processes: int, *, locked: bool) -> tuple[float, float]:
    """Seconds until all are built, and the lock's share of the hooks' time in %."""

    def build_some(first: int, all_are_ready: Callable[[], object]) -> tuple[float, float, float]:
        hook = _Timed(quiet_subprocess_runner)
        whole = _Timed(locked_runner(hook) if locked else hook)
        all_are_ready()
        started = time.perf_counter()
        for tree in trees[first::processes]:
            builder = ProjectBuilder(tree, runner=whole)
            builder.get_requires_for_build("wheel")
            builder.build("wheel", tree / "wheels")
        return time.perf_counter() - started, whole.seconds, hook.seconds

    last, whole, hook = zip(*in_forks(processes, build_some), strict=True)
    return max(last), 100 * (1 - sum(hook) / sum(whole))


def many_trees(section: Section, count: int, processes: int, files: int) -> None:
    found = []
    with progress("many trees", 2) as step:
        for locked in (False, True):
            with tempfile.TemporaryDirectory() as directory:
                os.environ["SOURCE_TREE_LOCK_DIR"] = directory
                for index in range(files):
                    Path(directory, f"uv-setuptools-{index:016x}.lock").touch()
                trees = [make_tree(Path(directory, str(each)), modules=3) for each in range(count)]
                found.append(build_all(trees, processes, locked=locked))
            del os.environ["SOURCE_TREE_LOCK_DIR"]
            step()
    (without, _), (seconds, share) = found
    caption = f"{count} trees built by {processes} processes at once, beside {files:,} lock files:"
    row = [f"{without:.1f} s", f"{seconds:.1f} s", f"{number(share)} %"]
    section.table(caption, ["without", "with the lock", "the lock's share of the time"], [row])
    reason = "builds of different trees have nothing to wait for"
    section.goal(f"{count} trees at once: the lock's share of the time", share, 1, reason, "%")


def run(*, quick: bool) -> Section:
    section = Section()
    one_build(section, 2 if quick else 60)
    many_trees(section, *((8, 4, 100) if quick else (200, 50, 10_000)))
    return section
