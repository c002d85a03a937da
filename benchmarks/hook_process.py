"""What the lock costs a process that runs a hook: imports, the first entry, each later one.

Each time is taken in a new interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from statistics import median

from measure import interleaved, ratio
from peers import FASTENERS, FILELOCK, OURS, PORTALOCKER
from plots import BLUE, SKY, bars
from report import Goal, Section
from sample import HOOK_IMPORTS

#: Prints the milliseconds, by the wall and of CPU, of the import, the first and a later entry.
_SCRIPT = """
import time
{before}
def now(): return time.perf_counter(), time.process_time()
def enter():
    with {entry}: pass
times = [now()]
import {module}
times.append(now())
enter()
times.append(now())
enter()
times.append(now())
print([[1000 * (b - a) for a, b in zip(*pair)] for pair in zip(times, times[1:])])
"""
_BACKEND = "source_tree_lock.build_meta"
#: The module, and an entry.
MODULES = {
    OURS: ("source_tree_lock", "source_tree_lock.source_tree_lock()"),
    _BACKEND: (_BACKEND, "source_tree_lock.source_tree_lock()"),
    PORTALOCKER: ("portalocker", "portalocker.Lock('lock')"),
    FILELOCK: ("filelock", "filelock.FileLock('lock')"),
    FASTENERS: ("fasteners", "fasteners.InterProcessLock('lock')"),
}
#: What the interpreter has imported before.
BEFORE = {"a bare interpreter": "", "beside build": "import build", "in a hook": HOOK_IMPORTS}
_STEPS = ("import", "first entry", "later entry")
_WALL, _CPU = 0, 1


def _times(environ: dict[str, str], name: str, before: str) -> list[list[float]]:
    module, entry = MODULES[name]
    script = _SCRIPT.format(before=BEFORE[before], module=module, entry=entry)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, cwd=directory, env=environ, stdout=subprocess.PIPE, check=True
        )
        found: list[list[float]] = json.loads(done.stdout)
        return found


def run(*, quick: bool) -> Section:
    with tempfile.TemporaryDirectory() as directory:
        # Compiled code for all of them, whatever their installers left behind.
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        cases = {
            (name, before): partial(_times, environ, name, before)
            for name in MODULES
            for before in BEFORE
        }
        for case in cases.values():
            case()
        found = interleaved("hook's process", cases, 2 if quick else 15)

    def steps(name: str, before: str, clock: int) -> list[float]:
        return [
            median(each[step][clock] for each in found[name, before])
            for step in range(len(_STEPS))
        ]

    section = Section()
    for before, clock, caption in (
        ("a bare interpreter", _WALL, "Time in a bare interpreter, ms:"),
        ("beside build", _CPU, "CPU in a frontend, beside `build`, ms:"),
        ("in a hook", _CPU, "CPU in a hook's process, beside setuptools, ms:"),
    ):
        rows = [
            [name, *(f"{each:.2f}" for each in steps(name, before, clock))] for name in MODULES
        ]
        section.tables.append((caption, ["", *_STEPS], rows))
    names = [name for name in MODULES if name != _BACKEND]
    section.figures["import-time.svg"] = bars(
        "Import and first entry, in a bare interpreter",
        "ms (lower is better)",
        {name: steps(name, "a bare interpreter", _WALL)[:2] for name in names},
        {"import": BLUE, "first entry": SKY},
    )
    ours, theirs = (
        [each[0][_WALL] for each in found[name, "a bare interpreter"]] for name in (OURS, FILELOCK)
    )
    cost = median(each[0][_CPU] + each[1][_CPU] for each in found[_BACKEND, "in a hook"])
    section.goals += [
        Goal(
            "a hook's process: CPU of import and first entry",
            cost,
            2.5,
            "each build runs two to four of them, in a second or less",
            "ms",
        ),
        Goal(
            f"import, ÷ `{FILELOCK}`'s",
            ratio(ours, theirs),
            0.12,
            "a frontend imports it whether it builds or not",
        ),
    ]
    return section
