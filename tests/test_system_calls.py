"""What a free enter and leave asks of the kernel, call by call: not timed, so never noisy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support import LIMIT

from source_tree_lock import source_tree_lock

if TYPE_CHECKING:
    from pathlib import Path

#: The first acquisition of a process loads what the later ones have; these are the later ones.
SCRIPT = """
import asyncio, os, sys
from source_tree_lock import source_tree_lock

tree = sys.argv[1]
lock = source_tree_lock(tree)

@lock
def decorated():
    os.access("inside", os.F_OK)

def with_statement():
    with lock:
        os.access("inside", os.F_OK)

def new_object():
    with source_tree_lock(tree):
        os.access("inside", os.F_OK)

def bounded():
    with source_tree_lock(tree, timeout=60):
        os.access("inside", os.F_OK)

def acquire_and_release():
    lock.acquire()
    os.access("inside", os.F_OK)
    lock.release()

async def async_with():
    async with lock:
        os.access("inside", os.F_OK)

def again_while_held():
    with source_tree_lock(tree):
        os.access("begin", os.F_OK)
        with source_tree_lock(tree):
            os.access("inside", os.F_OK)
        os.access("end", os.F_OK)

async def in_a_loop():
    await async_with()
    os.access("begin", os.F_OK)
    await async_with()
    os.access("end", os.F_OK)

way = globals()[sys.argv[2]]
if way is async_with:
    asyncio.run(in_a_loop())
elif way is again_while_held:
    with lock:
        pass
    way()
else:
    way()
    os.access("begin", os.F_OK)
    way()
    os.access("end", os.F_OK)
"""

ENTER = [
    "open",  # the tree
    "stat",  # its identity
    "readlink",  # its canonical path
    "open",  # the lock file
    "stat",  # a regular file, and its identity
    "flock",  # the lock file
    "flock",  # the tree
    "stat",  # the tree's path still leads to what was locked
    "stat",  # and so does the lock file's
    "pwrite",  # the record, with one of the tokens that were asked for at once
]
LEAVE = [
    "stat",  # the descriptor of the tree still is what was opened
    "flock",  # unlocked by name, since a child may have a copy of the descriptor
    "close",
    "stat",  # and that of the lock file
    "pwrite",  # the record is over
    "flock",
    "close",
]
#: To find that the tree is one that this owner holds; no lock is touched.
ENTER_AGAIN = ["open", "stat", "readlink", "stat", "close"]

#: Kernels and C libraries differ in which of a family they have.
FAMILIES = {
    "faccessat": "access",
    "faccessat2": "access",
    "fstat": "stat",
    "lstat": "stat",
    "newfstatat": "stat",
    "openat": "open",
    "pwrite64": "pwrite",
    "readlinkat": "readlink",
    "statx": "stat",
}
#: Not the library's: the interpreter's memory and locks, and clocks where they are no plain read.
NOT_OURS = re.compile(r"brk|mmap|munmap|mremap|madvise|mprotect|futex|sched_yield|clock_gettime")
#: Nor are these: before Python 3.12 asyncio asks for the pid whenever it is asked for its loop.
NOT_OURS_IN_ASYNCIO = re.compile(f"{NOT_OURS.pattern}|getpid")


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


def system_calls(tree: Path, way: str, trace: Path) -> tuple[list[str], list[str], str]:
    """The calls of enter, those of leave, and all of it as strace told it."""
    told = traced(tree, way, trace)
    told = told[told.index('"begin"') : told.index('"end"')]
    not_ours = NOT_OURS_IN_ASYNCIO if way == "async_with" else NOT_OURS
    parts: dict[str, list[str]] = {"begin": [], "inside": []}
    part = parts["begin"]
    for line in told.splitlines()[1:]:
        words = re.match(r"\d+\s+(\w+)\(", line)
        name = words[1] if words else line  # a signal, or a second thread: no call of ours
        name = FAMILIES.get(name, name)
        if name == "access":
            part = parts["inside"]
        elif not not_ours.fullmatch(name):
            part.append(name)
    return parts["begin"], parts["inside"], told


@pytest.mark.parametrize(
    "way",
    ["with_statement", "new_object", "bounded", "acquire_and_release", "decorated", "async_with"],
)
def test_a_free_tree_is_entered_and_left_with_these_system_calls(
    tree: Path, tmp_path: Path, way: str
) -> None:
    entered, left, told = system_calls(tree, way, tmp_path / "trace")
    assert Counter(entered) == Counter(ENTER), f"{len(entered)} calls to enter:\n{told}"
    assert Counter(left) == Counter(LEAVE), f"{len(left)} calls to leave:\n{told}"


def test_a_tree_that_is_held_is_entered_again_without_a_lock(tree: Path, tmp_path: Path) -> None:
    entered, left, told = system_calls(tree, "again_while_held", tmp_path / "trace")
    assert Counter(entered) == Counter(ENTER_AGAIN), f"{len(entered)} calls to enter:\n{told}"
    assert left == [], f"{len(left)} calls to leave:\n{told}"


def test_the_lock_file_is_locked_first_and_unlocked_last(tree: Path, tmp_path: Path) -> None:
    told = traced(tree, "with_statement", tmp_path / "trace", "-y", "-e", "trace=flock")
    lock_file = str(source_tree_lock(tree).lock_file)
    order = [(lock_file, "EX"), (str(tree), "EX"), (str(tree), "UN"), (lock_file, "UN")]
    assert re.findall(r"flock\(\d+<([^>]*)>, LOCK_(EX|UN)", told) == 2 * order, told
