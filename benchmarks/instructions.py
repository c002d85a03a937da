"""What the lock costs, counted and not timed: steady on a noisy machine, and so a guard for CI.

    python benchmarks/instructions.py [--instructions N] [--modules N] [--system-calls N]

Prints the instructions of a free enter and leave in user space (callgrind, of valgrind), and the
modules and system calls (strace) that our backend's import and first entry add to a hook's process.
Exit status: 1 if one is above the number given. They differ between versions of Python: a number
holds for the one that it was found with. It needs no more than the extra `test`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

from sample import HOOK_IMPORTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from report import Section

OURS = "source_tree_lock"
_ENTRY = "with source_tree_lock(here): pass"
#: What is prepared once, and what is then entered and left.
CASES = {
    "bare flock, two locks": (
        "import os, fcntl",
        """a = os.open('lock', os.O_RDWR | os.O_CREAT); fcntl.flock(a, fcntl.LOCK_EX)
    b = os.open('.', os.O_RDONLY); fcntl.flock(b, fcntl.LOCK_EX)
    os.close(b); os.close(a)""",
    ),
    OURS: ("from source_tree_lock import source_tree_lock", _ENTRY),
    f"{OURS}, entered again": (
        "from source_tree_lock import source_tree_lock; held = source_tree_lock(here).acquire()",
        _ENTRY,
    ),
    "portalocker.Lock": ("import portalocker", "with portalocker.Lock('lock'): pass"),
    "filelock.FileLock": ("import filelock", "with filelock.FileLock('lock'): pass"),
    "fasteners.InterProcessLock": (
        "import fasteners",
        "with fasteners.InterProcessLock('lock'): pass",
    ),
}
_FEW, _MANY = 50, 250
_HOOK = f"""
import os, sys
{HOOK_IMPORTS}
before = set(sys.modules)
os.access("begin", 0)
import source_tree_lock.build_meta
with source_tree_lock.source_tree_lock(): pass
os.access("end", 0)
print(*sorted(set(sys.modules) - before))
"""


def _run(directory: str, script: str, *tool: str) -> subprocess.CompletedProcess[str]:
    if tool and shutil.which(tool[0]) is None:
        raise SystemExit(f"{tool[0]} is not installed")
    return subprocess.run(
        [*tool, sys.executable, "-c", script],
        cwd=directory,
        env={**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": directory},
        capture_output=True,
        text=True,
        check=True,
    )


def instructions(name: str) -> float:
    """Of one enter and leave."""

    def collected(times: int) -> int:
        prepare, entry = CASES[name]
        script = f"import os; here = os.getcwd()\n{prepare}\nfor _ in range({times}):\n    {entry}"
        with tempfile.TemporaryDirectory() as directory:
            out = f"--callgrind-out-file={directory}/callgrind"
            told = _run(directory, script, "valgrind", "--tool=callgrind", out).stderr
        found = re.search(r"Collected : (\d+)", told)
        assert found, told
        return int(found[1])

    return (collected(_MANY) - collected(_FEW)) / (_MANY - _FEW)


def hook_process() -> tuple[list[str], list[str]]:
    """The modules that our backend imports in a hook's process, and its system calls."""
    with tempfile.TemporaryDirectory() as directory:
        modules = _run(directory, _HOOK).stdout.split()  # compiles what was not
        trace = f"{directory}/trace"
        _run(directory, _HOOK, "strace", "-f", "-qq", "-o", trace)
        with open(trace, encoding="utf-8") as lines:
            told = lines.read()
    between = told[told.index('"begin"') : told.index('"end"')]
    return modules, re.findall(r"^\d+ +(\w+)\(", between, re.MULTILINE)[:-1]


def run(*, quick: bool) -> Section:
    """The same for the README, beside peers."""
    from report import MissingToolError, Section

    for tool in ("valgrind", "strace"):
        if shutil.which(tool) is None:
            raise MissingToolError(f"{tool} is not installed")
    names = [OURS] if quick else list(CASES)
    modules, calls = hook_process()
    return Section(
        [
            (
                "Instructions in user space to enter and leave a free tree:",
                ["", "instructions"],
                [[name, f"{instructions(name):,.0f}"] for name in names],
            ),
            (
                "What our backend adds to a hook's process, up to the first entry and leave:",
                ["modules", "system calls"],
                [[str(len(modules)), str(len(calls))]],
            ),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for what in ("instructions", "modules", "system-calls"):
        parser.add_argument(f"--{what}", type=int, metavar="N", help="fail above this number")
    limits = parser.parse_args()
    modules, calls = hook_process()
    status = 0
    for what, found, limit in (
        ("instructions of a free enter and leave", instructions(OURS), limits.instructions),
        ("modules that a hook's process imports", len(modules), limits.modules),
        ("system calls of a hook's process", len(calls), limits.system_calls),
    ):
        is_above = limit is not None and found > limit
        status |= is_above
        verdict = "" if limit is None else f", {'MORE THAN' if is_above else 'at most'} {limit:,}"
        print(f"{found:>10,.0f} {what}{verdict}", flush=True)
    if limits.modules is not None and len(modules) > limits.modules:
        print("Modules:", *modules)
    return status


if __name__ == "__main__":
    sys.exit(main())
