"""A forked child owns nothing of its parent's: it keeps nothing locked, and may lock on its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import LIMIT, Child, held_elsewhere, is_free, wait_until_blocked
from ways import KINDS, script

from source_tree_lock import source_tree_lock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

#: The parent's side: it forks a child, which talks by the same pipe.
PRELUDE = """
import asyncio, os, sys, threading, warnings
from source_tree_lock import source_tree_lock

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
tree = sys.argv[1]

def what_is_open():
    paths = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    return [each for each in paths if each == os.path.realpath(tree) or each.endswith(".lock")]

def fork(body):
    pid = os.fork()
    if not pid:
        try:
            body()
        except BaseException as error:
            tell("the child failed:", type(error).__name__, error)
            os._exit(1)
        os._exit(0)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def child(script: str, *arguments: object) -> Child:
    return Child(PRELUDE + textwrap.dedent(script), *arguments)


@pytest.fixture
def lock_file(tree: Path) -> Path:
    return source_tree_lock(tree).lock_file


@linux_only
@pytest.mark.parametrize("end", ["releases", "is killed"])
def test_a_child_that_lives_on_keeps_nothing_when_its_parent(
    end: str, tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    script = """
        def live_on():
            tell("child lives", *what_is_open())
            with open(sys.argv[2]) as pipe:
                pipe.read()
        lock = source_tree_lock(tree)
        lock.acquire()
        fork(live_on)
        heard()
        lock.release()
        tell("released")
        heard()
    """
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    with child(script, tree, alive) as parent:
        parent.expect("child lives")
        with alive.open("w"):  # it opens when the child has opened it, and so while it lives
            assert (is_free(lock_file), is_free(tree)) == (False, False)
            if end == "is killed":
                parent.kill()
            else:
                parent.say()
                parent.expect("released")
            assert (is_free(lock_file), is_free(tree)) == (True, True)


@pytest.mark.parametrize("way", ["with", "async with"])
def test_a_child_leaves_what_it_inherited_silently_and_unlocks_nothing(
    way: str, tree: Path, lock_file: Path
) -> None:
    script = """
        def fork_inside():
            pid = os.fork()
            if pid:
                assert ended(pid) == 0
                tell("parent", lock.is_owner())
                heard()
            else:
                tell("child", lock.is_owner(), lock.locked(), "entered" in repr(lock))
            return pid
        async def fork_in_a_task():
            async with lock:
                return fork_inside()
        lock = source_tree_lock(tree)
        if sys.argv[2] == "async with":
            pid = asyncio.run(fork_in_a_task())
        else:
            with lock, lock, source_tree_lock(tree):
                pid = fork_inside()
        if not pid:
            tell("child left", lock.is_owner(), lock.locked())
            for use in lock.release, lambda: lock.environ, lambda: lock.pass_fds:
                try:
                    use()
                except RuntimeError:
                    tell("no more")
            os._exit(0)
        tell("released")
        heard()
    """
    with child(script, tree, way) as parent:
        parent.expect("child False True False")
        parent.expect("child left False True")
        for _ in range(3):
            parent.expect("no more")
        parent.expect("parent True")
        assert (is_free(lock_file), is_free(tree)) == (False, False)
        parent.say()
        parent.expect("released")
        assert (is_free(lock_file), is_free(tree)) == (True, True)


@linux_only
@pytest.mark.parametrize(
    ("forks_in", "wait"),
    [*(("another thread", wait) for wait in KINDS), ("another task", "in asyncio")],
)
def test_a_child_keeps_nothing_of_the_waits_under_way_and_waits_in_a_queue_of_its_own(
    forks_in: str, wait: str, tree: Path, lock_file: Path
) -> None:
    around = f"""
        def inside():
            tell("parent is in")
        def enter_in_child():
            tell(os.getpid(), *what_is_open())
            with source_tree_lock(tree, timeout={LIMIT}):
                tell("child is in")
        def fork_when_told():
            heard()
            return fork(enter_in_child)
        async def fork_beside_a_task():
            task = asyncio.create_task(enter())
            await asyncio.sleep(0)
            pid = fork_when_told()
            await task
            return pid
        def wait():
            {{}}
        if sys.argv[2] == "another task":
            pid = asyncio.run(fork_beside_a_task())
        else:
            thread = threading.Thread(target=wait)
            thread.start()
            pid = fork_when_told()
            thread.join()
        assert ended(pid) == 0
    """
    with held_elsewhere(tree) as holder, child(script(wait, around), tree, forks_in) as parent:
        wait_until_blocked(parent.pid)
        parent.say()
        wait_until_blocked(int(parent.line()))  # the child has nothing open
        holder.say()
        holder.expect("released")
        assert {parent.line(), parent.line()} == {"parent is in", "child is in"}
        assert parent.end() == 0
        assert (is_free(lock_file), is_free(tree)) == (True, True)


@linux_only
def test_a_fork_beside_threads_that_enter_and_leave_inherits_nothing_and_hangs_nowhere(
    tree: Path, tmp_path: Path, long_run: bool
) -> None:
    # With the GIL off, a thread may be in the midst of a table when another one forks.
    script = f"""
        import signal
        done, other = threading.Event(), sys.argv[3]
        def work(options):
            lock = source_tree_lock(tree, **options)
            while not done.is_set():
                with lock:
                    lock.environ, lock.pass_fds, lock.holder()
                if source_tree_lock(other).acquire(timeout=0.002):
                    raise SystemExit("it was free")
        threads = [threading.Thread(target=work, args=[options]) for options in
                   ({{}}, {{"timeout": {LIMIT}}}, {{}}, {{"on_wait": str}})]
        def look():
            signal.alarm({LIMIT:.0f})  # ends a child that hangs
            left = what_is_open()
            if left:
                tell("inherited", *left)
            with source_tree_lock(tree, timeout={LIMIT}):
                pass
        with source_tree_lock(other):
            for thread in threads:
                thread.start()
            statuses = {{ended(fork(look)) for _ in range(int(sys.argv[2]))}}
            done.set()
            for thread in threads:
                thread.join()
        tell("all ended with", *statuses)
    """
    other = tmp_path / "other"
    other.mkdir()
    with child(script, tree, 2000 if long_run else 60, other) as parent:
        parent.expect("all ended with 0")
        assert parent.end() == 0
        assert is_free(tree)


MULTIPROCESSING = """
import multiprocessing, sys
from source_tree_lock import source_tree_lock

def work(lock, connection):
    connection.send((lock.is_owner(), lock.acquire(blocking=False)))
    with lock:
        connection.send("in")
        connection.recv()
    connection.send("left")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    ours, theirs = context.Pipe()
    lock = source_tree_lock(sys.argv[1])
    process = context.Process(target=work, args=(lock, theirs))
    with lock:
        process.start()
        assert ours.recv() == (False, False)
    assert ours.recv() == "in"
    assert not lock.acquire(blocking=False)
    ours.send("leave")
    assert ours.recv() == "left"
    with source_tree_lock(sys.argv[1], timeout=0):
        pass
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.usefixtures("short_temp_dir")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_of_multiprocessing_wait_for_each_other(
    method: str, tree: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(MULTIPROCESSING)
    subprocess.run([sys.executable, script, tree, method], check=True, timeout=LIMIT)
    assert is_free(tree)


def test_threads_of_a_child_may_fork_after_the_library_was_dropped() -> None:
    """A test runner or a notebook may import it anew; then only its mutex is left."""
    script = """
        def fork_in_a_thread():
            thread = threading.Thread(target=lambda: os.waitpid(fork(lambda: None), 0), daemon=True)
            thread.start()
            thread.join(float(sys.argv[1]))
            assert not thread.is_alive(), "it waits for ever"
        with source_tree_lock():
            pass
        del source_tree_lock
        for name in [each for each in sys.modules if each.startswith("source_tree_lock")]:
            del sys.modules[name]
        gc.collect()
        tell(ended(fork(fork_in_a_thread)))
    """
    with child("import gc\n" + textwrap.dedent(script), LIMIT) as process:
        process.expect("0")
