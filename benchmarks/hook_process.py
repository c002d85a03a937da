"""What the library costs the process of a hook, where setuptools is loaded: import and first entry.

    python benchmarks/hook_process.py [--instructions N] [--modules N]

In a fresh environment nobody has compiled the library yet, so that the first hook compiles each
module that it imports. filelock is measured in the same states. Run as a script, this counts
instructions by callgrind (valgrind) instead of time, which is steady on a noisy machine; its exit
status is 1 if a hook of our backend, compiled, takes more than the numbers given.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from common import Section, interleaved, number, user_environ

BACKEND, LOCK, FILELOCK = "a hook of our backend", "`source_tree_lock`", "`filelock.FileLock`"
USES = {
    BACKEND: "import source_tree_lock.build_meta as b; b.build_wheel('.')",
    LOCK: "from source_tree_lock import source_tree_lock as lock\nwith lock(): pass",
    FILELOCK: "from filelock import FileLock\nwith FileLock('lock'): pass",
}
STATES = ("compiled", "not compiled yet")
#: Prints milliseconds of CPU, and how many modules and lines were imported. A frontend's script has
#: imported the rest. The hook itself does nothing.
_SCRIPT = """
import importlib, json, os, re, shutil, sys, traceback, setuptools.build_meta
from time import process_time
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None): pass
setuptools.build_meta.build_wheel = build_wheel
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


def _run(
    packages: str, environ: dict[str, str], use: str, state: str, *tool: str
) -> tuple[list[float], str]:
    """What the script prints, and what a tool that runs it prints."""
    code = USES.get(use, "")
    with tempfile.TemporaryDirectory() as tree:
        command = [*tool, sys.executable, "-c", _SCRIPT, f"{packages}/{state}", code]
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, check=True)
    return [float(each) for each in done.stdout.split()], done.stderr.decode()


@contextmanager
def _packages() -> Iterator[tuple[str, dict[str, str]]]:
    """Copies of both libraries in each state, and the environment to run them in."""
    with tempfile.TemporaryDirectory() as directory:
        for state in STATES:
            for name in ("source_tree_lock", "filelock"):
                (source,) = find_spec(name).submodule_search_locations  # type: ignore[union-attr]
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, Path(directory, state, name), ignore=ignored)
        environ = user_environ(PYTHONPYCACHEPREFIX=f"{directory}/cache", PYTHONHASHSEED="0")
        for use in USES:
            _run(directory, environ, use, "compiled")  # compiles that, and all that is around it
        yield directory, environ | {"PYTHONDONTWRITEBYTECODE": "1"}


def run(*, quick: bool) -> Section:
    with _packages() as packages:
        ways = [(use, state) for use in USES for state in STATES]
        cases = {way: partial(_run, *packages, *way) for way in ways}
        found = interleaved("hook's process", cases, 3 if quick else 15)
    took = {way: median(each[0][0] for each in found[way]) for way in ways}
    rows = []
    for use in USES:
        row = [use, *(f"{each:,.0f}" for each in found[use, "compiled"][0][0][1:])]
        for state in STATES:
            ratio = number(took[use, state] / took[FILELOCK, state])
            row += [f"{took[use, state]:.1f} ms", f"**{ratio}**"]
        rows.append(row)
    section = Section()
    columns = ["", "modules", "lines", STATES[0], "÷ filelock", STATES[1], "÷ filelock"]
    section.table("Import and first entry, CPU, medians of 15:", columns, rows)
    return section


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for what in ("instructions", "modules"):
        parser.add_argument(f"--{what}", type=int, metavar="N", help="fail above this number")
    limits = parser.parse_args()
    callgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=out")

    def instructions(use: str, state: str) -> int:
        told = _run(*packages, use, state, *callgrind)[1]
        return int(re.findall(r"Collected : (\d+)", told)[0])

    with _packages() as packages:
        nothing = instructions("nothing", "compiled")
        found = {
            (use, state): instructions(use, state) - nothing for state in STATES for use in USES
        }
        modules = int(_run(*packages, BACKEND, "compiled")[0][1])
    for (use, state), count in found.items():
        ratio = count / found[FILELOCK, state]
        print(f"{count:>12,} instructions, {ratio:.3f} of filelock's: {use}, {state}")
    print(f"{modules:>12} modules: {BACKEND}")
    above = limits.instructions is not None and found[BACKEND, "compiled"] > limits.instructions
    return above or (limits.modules is not None and modules > limits.modules)


if __name__ == "__main__":
    sys.exit(main())
