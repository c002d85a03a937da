"""Lock files, the lock directory and the tree pulled away under six contenders."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from source_tree_lock import source_tree_lock

from .crew import Crew

# Enters and leaves until it is told to end. What it is inside of, it marks: exclusively.
_CONTEND = """
    import select
    tree, marks, way = sys.argv[1:]

    def inside(lock):
        # The path may lead elsewhere by now: what is inside is what the descriptor leads to.
        mark = f"{marks}/{os.fstat(lock.pass_fds[-1]).st_ino}"
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            tell("two inside at once")
            os._exit(1)
        time.sleep(random.random() * 0.0005)
        os.unlink(mark)

    async def enter_in_a_task():
        async with source_tree_lock(tree, timeout=seconds) as lock:
            inside(lock)

    def enter():
        with source_tree_lock(tree, timeout=seconds) as lock:
            inside(lock)

    seconds = {"for ever": None, "in time": 60, "in no time": 0.001, "in a task": None}[way]
    entered = 0
    tell("ready")
    loop = asyncio.new_event_loop()
    while not select.select([connection], [], [], 0)[0]:
        try:
            if way == "in a task":
                loop.run_until_complete(enter_in_a_task())
            else:
                enter()
            entered += 1
            if entered == 11:
                tell("often inside")
        except LockTimeout:
            assert way == "in no time", way
        except FileNotFoundError:
            pass  # there was no tree at that moment
        except LockUnavailable as error:
            # Replaced a hundred times while it was being locked.
            assert error.errno == 116, error
    tell("entered", entered)
"""

# flock(1) on the lock file, as fast as it can.
_FLOCK = """
    import fcntl, select
    tell("ready")
    while not select.select([connection], [], [], 0)[0]:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(sys.argv[1], os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.close(descriptor)
"""


@pytest.mark.parametrize("prey", ["lock file", "lock directory", "tree"])
def test_whatever_is_pulled_away_never_two_are_inside_and_nobody_hangs(
    crew: Crew,
    tree: Path,
    tmp_path: Path,
    long_run: bool,
    prey: str,
) -> None:
    directory = tmp_path / "locks"
    marks = tmp_path / "marks"
    marks.mkdir()
    environ = {"SOURCE_TREE_LOCK_DIR": str(directory)}
    lock_file = source_tree_lock(tree, lock_dir=directory).lock_file
    ways = ["for ever", "for ever", "in time", "in no time", "in a task"]
    contenders = [crew.start(_CONTEND, tree, marks, way, environ=environ) for way in ways]
    rival = crew.start(_FLOCK, lock_file)
    for member in (*contenders, rival):
        member.expect("ready")
    attacks: dict[str, Callable[[], None]] = {
        "lock file": partial(_replace_file, lock_file),
        "lock directory": partial(shutil.rmtree, directory, ignore_errors=True),
        "tree": partial(_replace_tree, tree),
    }
    ends = time.monotonic() + (30 if long_run else 1.5)
    while time.monotonic() < ends or not contenders[0].has_told():
        attacks[prey]()
        time.sleep(random.random() * 0.001)  # else nobody ever gets in
    for member in (*contenders, rival):
        member.say("end")
    for member in contenders:
        told = member.rest()
        assert told[-1].startswith("entered"), told
    rival.wait()


def _replace_file(lock_file: Path) -> None:
    """Delete it, or put another in its place; as a temp cleaner or a careless user does."""
    if os.urandom(1) < b"\x80":
        lock_file.unlink(missing_ok=True)
    else:
        new = lock_file.with_suffix(".new")
        with suppress(FileNotFoundError):
            new.touch()
            new.rename(lock_file)


def _replace_tree(tree: Path) -> None:
    """Put another in its place, with nothing there for a moment."""
    other, away = tree.with_name("other"), tree.with_name("away")
    other.mkdir(exist_ok=True)
    tree.rename(away)
    other.rename(tree)
    away.rename(other)
    if os.urandom(1) < b"\x40":
        other.rmdir()
