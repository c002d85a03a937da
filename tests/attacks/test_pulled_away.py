"""Lock files, the lock directory and the tree pulled away under six contenders."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from support import LIMIT, held_elsewhere, is_free, wait_until_blocked
from ways import KINDS, script

from source_tree_lock import source_tree_lock

from .crew import Crew, Member

# Enters and leaves until it is told to end. What it is inside of, it marks: exclusively.
_CONTEND = """
    import select
    tree, marks, way = sys.argv[1:]

    def locked_directory():
        # The path may lead elsewhere by now: what is inside is what the descriptor leads to.
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").partition(" (deleted)")[0] not in apart:
                    if os.path.isdir(f"/proc/self/fd/{name}"):
                        return os.stat(f"/proc/self/fd/{name}").st_ino
        raise AssertionError("inside of nothing")
    apart = {f"/proc/{os.getpid()}/fd"}

    def inside():
        mark = f"{marks}/{locked_directory()}"
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            tell("two inside at once")
            os._exit(1)
        time.sleep(random.random() * 0.0005)
        os.unlink(mark)

    async def enter_in_a_task():
        async with source_tree_lock(tree, timeout=seconds):
            inside()

    def enter():
        with source_tree_lock(tree, timeout=seconds):
            inside()

    seconds = {"for ever": None, "in time": 30, "in no time": 0.001, "in a task": None}[way]
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
    count_cases: Callable[[int], None],
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
    pulled = 0
    ends = time.monotonic() + (30 if long_run else 1.5)
    while time.monotonic() < ends:
        attacks[prey]()
        pulled += 1
    for member in (*contenders, rival):
        member.say("end")
    entered = []
    for member in contenders:
        word, _, number = member.line().partition(" ")
        assert word == "entered", f"{word} {number}"
        entered.append(int(number))
    # Six processes take turns, so that a way that is shut would show as a zero.
    assert all(entered[:3]), entered
    assert entered[4], entered
    rival.wait()
    count_cases(sum(entered))


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
    """Put another in its place: at once, or with nothing there for a moment."""
    other = tree.with_name("other")
    other.mkdir(exist_ok=True)
    if os.urandom(1) < b"\x80":
        _exchange(tree, other)
    else:
        away = tree.with_name("away")
        tree.rename(away)
        other.rename(tree)
        away.rename(other)
    if os.urandom(1) < b"\x40":
        other.rmdir()


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):  # RENAME_EXCHANGE
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("wait", KINDS)
def test_a_lock_that_is_granted_on_a_deleted_file_lets_nobody_in(
    crew: Crew, tree: Path, wait: str
) -> None:
    lock_file = source_tree_lock(tree).lock_file
    lock_file.touch()
    # Somebody like uv has the lock file alone; it is deleted; the next one makes a new one.
    rival = crew.start(
        """
        import fcntl
        descriptor = os.open(sys.argv[1], os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        tell("locked")
        heard()
        """,
        lock_file,
    )
    rival.expect("locked")
    waiter = crew.start(script(wait), tree)
    wait_until_blocked(waiter.pid)
    lock_file.unlink()
    with held_elsewhere(tree) as holder:
        rival.say("let go")
        rival.wait()
        _wait_until_blocked_on(waiter, lock_file, tree)
        assert not waiter.has_told()
        holder.say()
        holder.expect("released")
        waiter.expect("held")
        # What it got is the file that is there now, which keeps out uv as well.
        assert not is_free(lock_file)


@pytest.mark.parametrize("wait", KINDS)
def test_a_lock_that_is_granted_on_a_tree_that_was_replaced_lets_nobody_in(
    crew: Crew, tree: Path, wait: str
) -> None:
    """What it gets in the end is the tree that is there now, whatever it waited for."""
    with held_elsewhere(tree) as holder:
        waiter = crew.start(script(wait), tree)
        wait_until_blocked(waiter.pid)
        old = tree.rename(tree.with_name("old"))
        tree.mkdir()
        holder.say()
        holder.expect("released")
        waiter.expect("held")
        assert not is_free(tree)
        assert is_free(old)


def _wait_until_blocked_on(member: Member, *paths: Path) -> None:
    """Until it waits for the lock of one of these, as they are now."""
    inodes = [str(path.stat().st_ino) for path in paths]
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            waits = fields[1] == "->" and fields[5] == str(member.pid)
            if waits and fields[6].rpartition(":")[2] in inodes:
                return
        time.sleep(0.001)
    raise AssertionError("it does not wait")
