"""What the lock costs a process that runs a hook: imports, the first entry, each later one."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from statistics import median

from measure import interleaved
from peers import FASTENERS, FILELOCK, OURS, PORTALOCKER
from plots import BLUE, SKY, bars
from report import Section
from sample import HOOK_IMPORTS

#: Prints the milliseconds of CPU of the import, the first and a later entry.
_SCRIPT = """
from time import process_time as now
{before}
def enter():
    with {entry}: pass
times = [now()]
import {module}; times.append(now())
enter(); times.append(now())
enter(); times.append(now())
print([1000 * (after - before) for before, after in zip(times, times[1:])])
"""
_STEPS = ["import", "first entry", "later entry"]
_BACKEND = "source_tree_lock.build_meta"
#: The module, and an entry.
_MODULES = {
    # The package imports the library at the first use of a name: then, as `from … import` does.
    OURS: ("source_tree_lock._public_names", "source_tree_lock.source_tree_lock()"),
    _BACKEND: (_BACKEND, "source_tree_lock.source_tree_lock()"),
    PORTALOCKER: ("portalocker", "portalocker.Lock('lock')"),
    FILELOCK: ("filelock", "filelock.FileLock('lock')"),
    FASTENERS: ("fasteners", "fasteners.InterProcessLock('lock')"),
}
#: What the interpreter has imported before.
_BEFORE = {"a bare interpreter": "", "a frontend": "import build", "a hook's process": HOOK_IMPORTS}


def _times(name: str, before: str, environ: dict[str, str]) -> list[float]:
    module, entry = _MODULES[name]
    script = _SCRIPT.format(before=_BEFORE[before], module=module, entry=entry)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", script]
        told = subprocess.run(command, cwd=directory, env=environ, capture_output=True, check=True)
    times: list[float] = json.loads(told.stdout)
    return times


def run(*, quick: bool) -> Section:
    section = Section()
    with tempfile.TemporaryDirectory() as directory:
        # Compiled code for all of them, whatever their installers left behind.
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": directory, "PYTHONDONTWRITEBYTECODE": ""}
        cases = {
            (name, before): partial(_times, name, before, environ)
            for name in _MODULES
            for before in _BEFORE
        }
        for case in cases.values():
            case()
        found = interleaved("hook's process", cases, 2 if quick else 15)

    def steps(name: str, before: str) -> list[float]:
        return [median(each[at] for each in found[name, before]) for at in range(3)]

    for before in _BEFORE:
        rows = [[name, *(f"{ms:.2f}" for ms in steps(name, before))] for name in _MODULES]
        section.table(f"In {before}, CPU, ms:", ["", *_STEPS], rows)
    bare = {name: steps(name, "a bare interpreter")[:2] for name in _MODULES if name != _BACKEND}
    goal = (f"import, 0.12 of {FILELOCK}'s", 0.12 * bare[FILELOCK][0])
    title, parts = "First use, in a bare interpreter", {"import": BLUE, "first entry": SKY}
    axis = "ms of CPU (lower is better)"
    section.picture("import-time.svg", bars(title, axis, bare, parts, goal))
    cost = sum(steps(_BACKEND, "a hook's process")[:2])
    reason = "a build runs two to four hooks, and may take half a second"
    section.goal("a hook's process: CPU of import and first entry", cost, 2.5, reason, "ms")
    reason = "who imports a frontend may not want to build"
    section.goal(f"import, ÷ `{FILELOCK}`'s", bare[OURS][0] / bare[FILELOCK][0], 0.12, reason)
    return section
