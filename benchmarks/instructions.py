"""What the lock costs, counted and not timed: steady on a noisy machine, and so a guard for CI.

    python benchmarks/instructions.py [--instructions N] [--modules N] [--system-calls N]

Prints the instructions of a free enter and leave in user space (callgrind, of valgrind), and the
modules and system calls (strace) that a hook of our backend and the first entry add to a hook's
process. Exit status: 1 if one is above the number given. They differ between versions of Python: a
number holds for the one that it was found with. It needs no more than the extra `test`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

from sample import HOOK_IMPORTS

_ENTRIES = """
import os
from source_tree_lock import source_tree_lock
here = os.getcwd()
for _ in range({}):
    with source_tree_lock(here): pass
"""
_HOOK = f"""
import os, sys
{HOOK_IMPORTS}
before = set(sys.modules)
os.access("begin", 0)
import source_tree_lock.build_meta
source_tree_lock.build_meta.build_wheel
with source_tree_lock.source_tree_lock(): pass
os.access("end", 0)
print(*sorted(set(sys.modules) - before))
"""


def _run(script: str, compiled: str, *tool: str) -> tuple[str, str]:
    """What it says, and what the tool says of it. Compiled code is kept in this directory."""
    with tempfile.TemporaryDirectory() as directory:
        environ = {**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": directory}
        environ |= {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        command = [*tool, sys.executable, "-c", script]
        done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, check=True)
        return done.stdout.decode(), done.stderr.decode()


def instructions() -> int:
    """Of one enter and leave."""
    counts: list[int] = []
    for times in (50, 250):
        out = "--callgrind-out-file=out"
        script = _ENTRIES.format(times)
        _, told = _run(script, os.devnull, "valgrind", "--tool=callgrind", out)
        counts += map(int, re.findall(r"Collected : (\d+)", told))
    return (counts[1] - counts[0]) // 200


def hook_process() -> tuple[list[str], int]:
    """The modules that our backend imports in a hook's process, and how many system calls."""
    with tempfile.TemporaryDirectory() as compiled:
        modules = _run(_HOOK, compiled)[0].split()  # compiles all
        _, told = _run(_HOOK, compiled, "strace", "-f", "-qq")
    between = told.partition('"begin"')[2].partition('"end"')[0]
    return modules, len(re.findall(r"^(?:\[pid +\d+\] )?\w+\(", between, re.MULTILINE)) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for what in ("instructions", "modules", "system-calls"):
        parser.add_argument(f"--{what}", type=int, metavar="N", help="fail above this number")
    limits = parser.parse_args()
    modules, calls = hook_process()
    status = 0
    for what, found, limit in (
        ("instructions of a free enter and leave", instructions(), limits.instructions),
        (f"modules in a hook's process: {' '.join(modules)}", len(modules), limits.modules),
        ("system calls in a hook's process", calls, limits.system_calls),
    ):
        verdict = "" if limit is None else "MORE THAN" if found > limit else "at most"
        print(f"{found:>9,} {verdict and f'({verdict} {limit:,}) '}{what}", flush=True)
        status |= limit is not None and found > limit
    return status


if __name__ == "__main__":
    sys.exit(main())
