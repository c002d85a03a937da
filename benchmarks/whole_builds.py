"""Whole builds: what the lock adds to one, in pairs of processes with and without it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from measure import interleaved, ratio, ratios
from report import Goal, Section
from sample import make_tree

_PIP = "--no-build-isolation --no-deps --no-index --disable-pip-version-check --wheel-dir".split()


class Cost(NamedTuple):
    """Seconds that a process took, and that it and its children computed."""

    wall: float
    cpu: float


def _cost(command: list[str], wheels: Path) -> Cost:
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, input=b"go\n", capture_output=True, check=True)
    wall, after = time.perf_counter() - started, os.times()
    for wheel in wheels.iterdir():
        wheel.unlink()
    cpu = after.children_user + after.children_system
    return Cost(wall, cpu - before.children_user - before.children_system)


def run(*, quick: bool) -> Section:
    rounds = 2 if quick else 60
    section = Section()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        plain, ours, wheels = (Path(directory, name) for name in ("plain", "ours", "wheels"))
        make_tree(plain)
        make_tree(ours, backend="source_tree_lock.build_meta")
        wheels.mkdir()
        build = [sys.executable, str(Path(__file__).with_name("one_build.py")), str(plain)]
        pip = [sys.executable, "-m", "pip", "wheel", *_PIP, str(wheels)]
        commands = {
            ("`build` with `locked_runner`", False): [*build, str(wheels), "unlocked"],
            ("`build` with `locked_runner`", True): [*build, str(wheels), "locked"],
            ("`pip wheel` with our backend", False): [*pip, str(plain)],
            ("`pip wheel` with our backend", True): [*pip, str(ours)],
        }
        cases = {way: partial(_cost, command, wheels) for way, command in commands.items()}
        for case in cases.values():
            case()  # a tree that was built before is another matter
        costs = interleaved("whole builds", cases, rounds)
    for tool in dict.fromkeys(tool for tool, _ in cases):
        without, locked = costs[tool, False], costs[tool, True]
        wall = ratios([each.wall for each in locked], [each.wall for each in without])
        cpu = ratio([each.cpu for each in locked], [each.cpu for each in without])
        seconds = (f"{median(each.wall for each in of):.3f} s" for of in (without, locked))
        low, middle, high = quantiles(wall, method="inclusive")
        rows.append([tool, *seconds, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{cpu:.3f}"])
        reason = "nobody should notice the lock when nobody else builds"
        section.goals.append(Goal(f"a whole build, {tool}", middle, 1.01, reason))
    columns = ["", "without", "with the lock", "ratio", "its quartiles", "ratio of CPU time"]
    section.tables.append((f"One build, {rounds} pairs, medians:", columns, rows))
    return section
