"""What the lock costs a build that nobody else disturbs, and many builds of different trees.

A fresh build is what `uv build` and `pip wheel` do by default: they make an environment, install
setuptools and the backend there, and nobody has compiled these yet. They come from local wheels, so
that the network is not measured.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from common import ROOT, Section, progress, quartiles, seconds, user_environ
from concurrent_builds import command
from sample import OURS, SETUPTOOLS, make_tree

Times = tuple[float, float]  # by the clock, and of CPU

PIP = [sys.executable, *"-m pip --disable-pip-version-check wheel --quiet".split()]
UV, UV_PIP = "`uv build`", "`pip wheel`"
IN_PLACE, IN_PLACE_PIP = "`build -n` with `locked_runner`", "`pip wheel --no-build-isolation`"


def make_wheels(directory: Path) -> list[str]:
    """Make wheels of this library and of setuptools; the options that use nothing else."""
    subprocess.run([*PIP, "setuptools", str(ROOT), "--wheel-dir", str(directory)], check=True)
    return ["--no-index", "--find-links", str(directory)]


def in_pairs(
    label: str, plain: Callable[[], Times], locked: Callable[[], Times], pairs: int
) -> tuple[list[Times], list[Times]]:
    """The times of each, one after the other; which comes first changes from pair to pair."""
    found: tuple[list[Times], list[Times]] = ([], [])
    plain(), locked()  # a tree that was never built is another matter
    with progress(label):
        for pair in range(pairs):
            for which in (0, 1) if pair % 2 else (1, 0):
                found[which].append((plain, locked)[which]())
    return found


def single_builds(section: Section, *, quick: bool) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        out, environ = str(work / "out"), user_environ(UV_CACHE_DIR=str(work / "cache"))
        plain, ours = make_tree(work / "plain", SETUPTOOLS, 5), make_tree(work / "ours", OURS, 5)
        links = make_wheels(work / "wheels")
        uv = [sys.executable, *"-m uv build --no-config --python".split(), sys.executable, *links]
        uv += ["--out-dir", out]
        fresh = [*PIP, "--no-deps", *links, "--wheel-dir", out]
        in_place = [*PIP, "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out]
        in_place_build = [command(plain, work / "out", locked=each) for each in (False, True)]
        commands = {  # what, without the lock and with it, and how often
            UV: ([*uv, str(plain)], [*uv, str(ours)], 21),
            UV_PIP: ([*fresh, str(plain)], [*fresh, str(ours)], 13),
            IN_PLACE: (*in_place_build, 31),
            IN_PLACE_PIP: ([*in_place, str(plain)], [*in_place, str(ours)], 31),
        }
        for what, (without, locked, pairs) in commands.items():
            cases = (partial(seconds, without, environ), partial(seconds, locked, environ))
            found[what] = in_pairs(what, *cases, 3 if quick else pairs)
    rows, ratios = [], {}
    for what, pairs in found.items():
        took, cpu = ([b[n] / a[n] for a, b in zip(*pairs, strict=True)] for n in (0, 1))
        ratios[what] = quartiles(took)
        low, middle, high = (f"{each:.3f}" for each in ratios[what])
        times = (f"{median(took for took, _ in each):.2f} s" for each in pairs)
        row = [f"**{middle}**", f"{low} to {high}", f"{median(cpu):.3f}"]
        rows.append([what, str(len(took)), *times, *row])
    columns = ["", "pairs", "without the lock", "with it", "ratio", "quartiles", "of CPU time"]
    section.table("One build, medians; the first two in a fresh environment:", columns, rows)
    section.numbers["ratios"] = ratios
    for what in (UV, UV_PIP):
        section.goal(f"a fresh {what}, our backend ÷ setuptools'", ratios[what][1], 1.05)
    worst = max(ratios[IN_PLACE][1], ratios[IN_PLACE_PIP][1])
    section.goal("a build without isolation, ÷ without the lock", worst, 1.02)


def many_trees(section: Section, count: int, files: int, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        environ = user_environ(SOURCE_TREE_LOCK_DIR=directory)
        for index in range(files):
            Path(directory, f"uv-setuptools-{index:016x}.lock").touch()
        trees = [make_tree(Path(directory, str(each)), modules=3) for each in range(count)]

        def build_all(*, locked: bool) -> Times:
            commands = [command(tree, tree / "wheels", locked=locked) for tree in trees]
            with ThreadPoolExecutor(count) as threads:
                started = perf_counter()
                list(threads.map(partial(seconds, environ=environ), commands))
                return perf_counter() - started, 0.0

        plain, locked = partial(build_all, locked=False), partial(build_all, locked=True)
        found = in_pairs("many trees", plain, locked, pairs)
    ratio = median(b[0] / a[0] for a, b in zip(*found, strict=True))
    caption = f"{count} trees, all built at once, beside {files:,} lock files:"
    row = [*(f"{median(took for took, _ in each):.1f} s" for each in found), f"**{ratio:.3f}**"]
    section.table(caption, ["without the lock", "with it", "ratio"], [row])
    section.goal(f"{count} trees at once, ÷ without the lock", ratio, 1.03)


def run(*, quick: bool) -> Section:
    section = Section()
    single_builds(section, quick=quick)
    many_trees(section, *((4, 100, 1) if quick else (16, 10_000, 7)))
    return section
