"""Lock files, the lock directory and the tree are deleted and replaced under six contenders."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from source_tree_lock import source_tree_lock

from .crew import Crew

# Enters and leaves until it is told to end. What it is inside of, it marks: exclusively.
_CONTEND = """
    tree, marks, seconds = *sys.argv[1:3], eval(sys.argv[3])

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

    entered = 0
    tell("ready")
    loop = asyncio.new_event_loop()
    while not select.select([connection], [], [], 0)[0]:
        try:
            if sys.argv[4] == "in a task":
                loop.run_until_complete(enter_in_a_task())
            else:
                enter()
            entered += 1
            if entered == 11:
                tell("often inside")
        except LockTimeout:
            assert seconds == 0.001
        except FileNotFoundError:
            pass  # there was no tree at that moment
        except LockUnavailable as error:
            # Replaced a hundred times while it was being locked.
            assert error.errno == 116, error
    tell("entered", entered)
"""

# flock(1) on the lock file, as fast as it can.
_FLOCK = """
    import fcntl
    tell("ready")
    while not select.select([connection], [], [], 0)[0]:
        with contextlib.suppress(FileNotFoundError), open(sys.argv[1]) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
"""


def _replace_file(tree: Path, lock_file: Path) -> None:
    """Delete it, or put another in its place; as a temp cleaner or a careless user does."""
    if random.random() < 0.5:
        lock_file.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):
            new = lock_file.with_suffix(".new")
            new.touch()
            new.rename(lock_file)


def _delete_directory(tree: Path, lock_file: Path) -> None:
    shutil.rmtree(lock_file.parent, ignore_errors=True)


def _replace_tree(tree: Path, lock_file: Path) -> None:
    """Put another in its place, with nothing there for a moment."""
    other, away = tree.with_name("other"), tree.with_name("away")
    other.mkdir(exist_ok=True)
    tree.rename(away)
    other.rename(tree)
    away.rename(other)
    if random.random() < 0.25:
        other.rmdir()


@pytest.mark.parametrize("attack", [_replace_file, _delete_directory, _replace_tree])
def test_whatever_is_pulled_away_never_two_are_inside_and_nobody_hangs(
    crew: Crew,
    tree: Path,
    tmp_path: Path,
    long_run: bool,
    attack: Callable[[Path, Path], None],
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    lock_file = source_tree_lock(tree, lock_dir=tmp_path / "locks").lock_file
    environ = {"SOURCE_TREE_LOCK_DIR": str(lock_file.parent)}
    ways = [(None, ""), (None, ""), (3600, ""), (0.001, ""), (None, "in a task")]
    contenders = [crew.start(_CONTEND, tree, marks, *way, environ=environ) for way in ways]
    rival = crew.start(_FLOCK, lock_file)
    for member in (*contenders, rival):
        member.expect("ready")
    ends = time.monotonic() + (30 if long_run else 1.5)
    while time.monotonic() < ends or not contenders[0].has_told():
        attack(tree, lock_file)
        time.sleep(random.random() * 0.001)  # else nobody ever gets in
    for member in (*contenders, rival):
        member.say("end")
    for member in contenders:
        told = member.rest()
        assert told[-1].startswith("entered"), told
    rival.wait()
