"""What a free enter and leave asks of the kernel, call by call: not timed, so never noisy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support import LIMIT

from source_tree_lock import source_tree_lock

#: The first acquisition of a process loads what the later ones have; the second one is looked at.
SCRIPT = """
import asyncio, os, sys
from source_tree_lock import source_tree_lock
tree, way = sys.argv[1:]
lock = source_tree_lock(tree, timeout=60 if way == "bounded" else None)

async def twice():
    for _ in range(2):
        os.access("begin", os.F_OK)
        if way == "async with":
            async with lock:
                os.access("inside", os.F_OK)
        else:
            with lock:
                os.access("inside", os.F_OK)
        os.access("end", os.F_OK)

if way == "again":
    lock.acquire()
if way == "async with":
    asyncio.run(twice())
else:
    list(twice().__await__())  # which needs no loop, since it suspends nowhere
"""

#: Open the tree, look at it and at the lock directory; open the lock file, look at it; lock both.
#: See that nobody is inside a hold that has ended, that both paths still lead to what was locked,
#: and that the file has no other name; write the record, with a token.
ENTER = "open stat stat open stat flock flock stat stat stat stat getrandom pwrite".split()
#: The tree is unlocked explicitly, since a child may have a copy of the descriptor. Then the record
#: is over.
LEAVE = "flock close pwrite flock close".split()
#: To find that the tree is one that this owner holds; no lock is touched.
ENTER_AGAIN = ["open", "stat", "close"]

#: Kernels and C libraries differ in which of a family they have.
FAMILY = re.compile(r"(?:new)?[fl]?(stat)(?:at|x)?|f?(access)(?:at2?)?|(open)at")
#: Not counted: the interpreter's memory and locks, clocks where they are no plain read, and the
#: process id, which is asked for to notice a fork.
NOT_COUNTED = re.compile(
    r"brk|mmap|munmap|mremap|madvise|mprotect|futex|sched_yield|clock_gettime|getpid"
)


def traced(tree: Path, way: str, trace: Path, *options: str) -> str:
    """What strace told of two rounds, with these options."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    if subprocess.run([strace, "-o", trace, "true"], capture_output=True).returncode != 0:
        pytest.skip("strace may not trace here")
    script = [sys.executable, "-c", SCRIPT, str(tree), way]
    subprocess.run([strace, "-f", "-qq", *options, "-o", trace, *script], check=True, timeout=LIMIT)
    return trace.read_text()


@pytest.mark.parametrize("way", ["with", "bounded", "async with", "again"])
def test_a_tree_is_entered_and_left_with_these_system_calls(
    way: str, tree: Path, tmp_path: Path
) -> None:
    told = traced(tree, way, tmp_path / "trace").rpartition('"begin"')[2].partition('"end"')[0]
    # For the canonical path, each component of the path is looked at: how many differs.
    components = "|".join(re.escape(str(each)) for each in (tree, *tree.parents))
    counted = re.sub(rf'.*stat.*"({components})".*AT_SYMLINK_NOFOLLOW.*\n', "", told)
    names = re.findall(r"^(?:\d+ +)?(\w+)\(", counted, re.MULTILINE)
    names = [FAMILY.sub(r"\1\2\3", name).removesuffix("64") for name in names]
    names = [name for name in names if not NOT_COUNTED.fullmatch(name)]
    middle = names.index("access")
    entered, left = Counter(names[:middle]), Counter(names[middle + 1 : -1])
    assert entered == Counter(ENTER_AGAIN if way == "again" else ENTER), told
    assert left == Counter([] if way == "again" else LEAVE), told


def test_the_lock_file_is_locked_first_and_unlocked_last(tree: Path, tmp_path: Path) -> None:
    told = traced(tree, "with", tmp_path / "trace", "-y", "-e", "trace=flock")
    lock_file = str(source_tree_lock(tree).lock_file)
    order = [(lock_file, "EX"), (str(tree), "EX"), (str(tree), "UN"), (lock_file, "UN")]
    assert re.findall(r"flock\(\d+<([^>]*)>, LOCK_(EX|UN)", told) == 2 * order, told
