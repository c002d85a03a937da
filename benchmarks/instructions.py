"""Instructions to enter and leave a free tree, counted by callgrind: steady on a noisy machine.

    python benchmarks/instructions.py [--only CASE…]

The kernel's are not counted. Needs valgrind.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile

_CASES = {
    "bare flock, two locks": (
        "import os, fcntl",
        """a = os.open('lock', os.O_RDWR | os.O_CREAT); fcntl.flock(a, fcntl.LOCK_EX)
    b = os.open('.', os.O_RDONLY); fcntl.flock(b, fcntl.LOCK_EX)
    os.close(b); os.close(a)""",
    ),
    "source_tree_lock(path)": (
        "from source_tree_lock import source_tree_lock",
        "with source_tree_lock(here): pass",
    ),
    "source_tree_lock, entered again": (
        "from source_tree_lock import source_tree_lock; source_tree_lock(here).acquire()",
        "with source_tree_lock(here): pass",
    ),
    "portalocker.Lock(path)": ("import portalocker", "with portalocker.Lock('lock'): pass"),
    "filelock.FileLock(path)": ("import filelock", "with filelock.FileLock('lock'): pass"),
    "fasteners.InterProcessLock(path)": (
        "import fasteners",
        "with fasteners.InterProcessLock('lock'): pass",
    ),
}

_FEW, _MANY = 50, 250


def _count(directory: str, prepare: str, entry: str, times: int) -> int:
    script = f"import os; here = os.getcwd()\n{prepare}\nfor _ in range({times}):\n    {entry}\n"
    told = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/callgrind"),
            *(sys.executable, "-c", script),
        ],
        cwd=directory,
        env={**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": directory},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    found = re.search(r"Collected : (\d+)", told)
    assert found, told
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=_CASES, default=list(_CASES), metavar="CASE")
    for name in parser.parse_args().only:
        prepare, entry = _CASES[name]
        with tempfile.TemporaryDirectory() as directory:
            few, many = (_count(directory, prepare, entry, times) for times in (_FEW, _MANY))
        print(f"{name:<34}{(many - few) / (_MANY - _FEW):>12,.0f}", flush=True)


if __name__ == "__main__":
    main()
