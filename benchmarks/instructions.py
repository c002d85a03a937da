"""What the lock costs, counted and not timed: steady on a noisy machine, and so a guard for CI.

    python benchmarks/instructions.py [--entry N] [--hook N] [--modules N] [--system-calls N]

Counts the instructions of a free enter and leave in user space (callgrind, of valgrind), and what
the first hook of our backend adds to a process that has setuptools loaded: instructions with the
library compiled and not compiled yet, also as a ratio to filelock's, modules, and system calls
(strace). Exit status: 1 if one is above the number given. Each Python has numbers of its own.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import user_environ
from hook_process import BEFORE, USES, copy_packages

_ENTRIES = """
import os
from source_tree_lock import source_tree_lock
here = os.getcwd()
for _ in range({}):
    with source_tree_lock(here): pass
"""
_HOOK = f"""
{BEFORE}
sys.path.insert(0, {{packages!r}})
before = set(sys.modules)
os.access("begin", 0)
{{use}}
os.access("end", 0)
print(*sorted(set(sys.modules) - before), flush=True)
os._exit(0)
"""


def _run(script: str, environ: dict[str, str], *tool: str) -> tuple[str, str]:
    """The output of a script, and that of the tool that runs it."""
    with tempfile.TemporaryDirectory() as directory:
        command, environ = [*tool, sys.executable, "-c", script], {**environ, "TMPDIR": directory}
        done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, check=True)
        return done.stdout.decode(), done.stderr.decode()


def _instructions(script: str, environ: dict[str, str]) -> int:
    _, told = _run(script, environ, "valgrind", "--tool=callgrind", "--callgrind-out-file=out")
    return int(re.findall(r"Collected : (\d+)", told)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for what in ("entry", "hook", "modules", "system-calls"):
        parser.add_argument(f"--{what}", type=int, metavar="N", help="fail above this number")
    limits = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        environ = user_environ(PYTHONHASHSEED="0", PYTHONPYCACHEPREFIX=f"{directory}/cache")
        states = copy_packages(Path(directory))
        scripts = {
            (use, state): _HOOK.format(packages=str(packages), use=code)
            for use, code in {"nothing": "", **USES}.items()
            for state, packages in states.items()
        }
        for use in USES:
            _run(scripts[use, "compiled"], environ)  # compiles that, and all other modules
        environ["PYTHONDONTWRITEBYTECODE"] = "1"
        hook, lock, filelock = USES
        modules = _run(scripts[hook, "compiled"], environ)[0].split()
        _, told = _run(scripts[hook, "compiled"], environ, "strace", "-f", "-qq")
        between = told.partition('"begin"')[2].partition('"end"')[0]
        calls = len(re.findall(r"^(?:\[pid +\d+\] )?\w+\(", between, re.MULTILINE)) - 1
        counts = [_instructions(_ENTRIES.format(times), environ) for times in (50, 250)]
        found = [
            ("instructions of a free enter and leave", (counts[1] - counts[0]) // 200, limits.entry)
        ]
        nothing = _instructions(scripts["nothing", "compiled"], environ)
        for state in states:
            cost = {use: _instructions(scripts[use, state], environ) - nothing for use in USES}
            for use in (hook, lock):
                ratio = f"{cost[use] / cost[filelock]:.3f} of filelock's"
                words = f"instructions of {use}, {state}: {ratio}"
                limit = limits.hook if (use, state) == (hook, "compiled") else None
                found.append((words, cost[use], limit))
    found.append((f"modules in a hook: {' '.join(modules)}", len(modules), limits.modules))
    found.append(("system calls in a hook", calls, limits.system_calls))
    for what, count, limit in found:
        verdict = "" if limit is None else "MORE THAN" if count > limit else "at most"
        print(f"{count:>12,} {verdict and f'({verdict} {limit:,}) '}{what}", flush=True)
    return any(limit is not None and count > limit for _, count, limit in found)


if __name__ == "__main__":
    sys.exit(main())
