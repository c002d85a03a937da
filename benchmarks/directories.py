"""What a free tree costs on any file system: enter and leave, beside a bare flock, in ms.

    python benchmarks/directories.py DIRECTORY...

Makes a tree and a lock directory of its own in each DIRECTORY, measures all of them in turns, and
removes them again. For a shared file system, name a directory on it and one on a local disk.
"""

import fcntl
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from measure import interleaved

from source_tree_lock import source_tree_lock


def milliseconds(enter: Callable[[], object], leave: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(50):
        enter()
        leave()
    return (time.perf_counter() - started) / 50 * 1000


with ExitStack() as stack:
    cases = {}
    for parent in sys.argv[1:]:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))
        bare = stack.enter_context(open(made / "bare", "w"))
        flock = (partial(fcntl.flock, bare, kind) for kind in (fcntl.LOCK_EX, fcntl.LOCK_UN))
        lock = source_tree_lock(made, lock_dir=made / "locks")
        cases[f"flock            {parent}"] = partial(milliseconds, *flock)
        cases[f"enter and leave  {parent}"] = partial(milliseconds, lock.acquire, lock.release)
    for name, found in interleaved("directories", cases, 20).items():
        print(f"{median(found):8.3f} ms  {name}")
