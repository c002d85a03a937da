"""What the library costs the process of a hook, where setuptools is loaded: import and first entry.

In a fresh environment nobody has compiled the library yet, so each line that a hook imports is
compiled by it. filelock is measured in the same state, as a yardstick.
"""

import shutil
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from common import Section, interleaved, number, user_environ

#: What the script that pyproject-hooks and pip run in the process of a hook has imported.
HOOK_IMPORTS = "import json, os, re, shutil, sys, traceback, importlib, setuptools.build_meta"
_BACKEND, _LOCK, _FILELOCK = "a hook of our backend", "`source_tree_lock`", "`filelock.FileLock`"
#: The hook itself does nothing, so that only what surrounds it is measured.
BEFORE = f"""{HOOK_IMPORTS}
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None): pass
setuptools.build_meta.build_wheel = build_wheel
"""
USES = {
    _BACKEND: "import source_tree_lock.build_meta as b; b.build_wheel('.')",
    _LOCK: "from source_tree_lock import source_tree_lock as lock\nwith lock(): pass",
    _FILELOCK: "from filelock import FileLock\nwith FileLock('lock'): pass",
}
#: Prints milliseconds of CPU, and how many modules and lines of each package were imported.
_SCRIPT = f"""
from time import process_time
{BEFORE}
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
started = process_time()
exec(compile(sys.argv[2], "<use>", "exec"))
took = 1000 * (process_time() - started)
files = [sys.modules[name].__file__ or "" for name in set(sys.modules) - before
         if name.startswith(("source_tree_lock", "filelock"))]
assert all(file.startswith(sys.argv[1]) for file in files)
print(took, len(files), sum(len(open(file).readlines()) for file in files), flush=True)
os._exit(0)
"""


def copy_packages(directory: Path) -> dict[str, Path]:
    """Copy this library and filelock twice: to be compiled once, and at each import."""
    states = {name: directory / name for name in ("compiled", "not compiled yet")}
    for packages in states.values():
        for name in ("source_tree_lock", "filelock"):
            (source,) = find_spec(name).submodule_search_locations  # type: ignore[union-attr]
            shutil.copytree(source, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    return states


def _run(packages: Path, use: str, environ: dict[str, str]) -> list[float]:
    with tempfile.TemporaryDirectory() as tree:
        command = [sys.executable, "-c", _SCRIPT, str(packages), USES[use]]
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, check=True)
    return [float(each) for each in done.stdout.split()]


def run(*, quick: bool) -> Section:
    with tempfile.TemporaryDirectory() as directory:
        states = copy_packages(Path(directory))
        environ = user_environ(PYTHONPYCACHEPREFIX=f"{directory}/cache")
        for use in USES:
            _run(states["compiled"], use, environ)  # compiles that, and all other modules
        environ["PYTHONDONTWRITEBYTECODE"] = "1"
        cases = {
            (use, state): partial(_run, packages, use, environ)
            for use in USES
            for state, packages in states.items()
        }
        found = interleaved("hook's process", cases, 3 if quick else 15)
    medians = {case: [median(each) for each in zip(*found[case], strict=True)] for case in cases}
    section = Section()
    rows = []
    for use in USES:
        row = [use, *(f"{each:,.0f}" for each in medians[use, "compiled"][1:])]
        for state in states:
            took = medians[use, state][0]
            row += [f"{took:.1f} ms", number(took / medians[_FILELOCK, state][0])]
        rows.append(row)
    columns = ["", "modules", "lines"]
    for state in states:
        columns += [state, "÷ filelock"]
    section.table("Import and first entry, CPU, medians:", columns, rows)
    return section
