"""A forked child owns nothing of its parent's: it keeps nothing locked, and may lock on its own."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest
from support import LIMIT, Child, held_elsewhere, is_free, wait_until_blocked
from ways import KINDS, script

from source_tree_lock import source_tree_lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

#: The parent's side: it forks a child, which talks by a pipe of its own.
PRELUDE = """
import asyncio, os, sys, threading, warnings
from source_tree_lock import source_tree_lock

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
tree = sys.argv[1]

def what_is_open():
    return sorted(
        name
        for each in os.listdir("/proc/self/fd")
        for name in [os.path.basename(os.path.realpath(f"/proc/self/fd/{each}"))]
        if name == "tree" or name.endswith(".lock")
    )

def fork(body):
    "A child that runs `body` and ends."
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        body()
        status = 0
    except BaseException as error:
        tell("the child failed:", type(error).__name__, error)
    finally:
        sys.stdout.flush()
        os._exit(status)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

#: A child that lives until the test closes a named pipe, the second argument.
LIVE_ON = """
def live_on():
    tell("child lives", *what_is_open())
    with open(sys.argv[2]) as pipe:
        pipe.read()
"""


def child(script: str, *arguments: object) -> Child:
    return Child(PRELUDE + LIVE_ON + textwrap.dedent(script), *arguments)


@pytest.fixture
def lock_file(tree: Path) -> Path:
    return source_tree_lock(tree).lock_file


@pytest.fixture
def alive(tmp_path: Path) -> Path:
    path = tmp_path / "alive"
    os.mkfifo(path)
    return path


@linux_only
@pytest.mark.parametrize("end", ["releases", "is killed", "exits"])
def test_a_child_that_lives_on_keeps_nothing_when_its_parent(
    end: str, tree: Path, lock_file: Path, alive: Path
) -> None:
    script = """
        lock = source_tree_lock(tree)
        lock.acquire()
        fork(live_on)
        heard()
        if sys.argv[3] == "exits":
            os._exit(0)
        lock.release()
        tell("released")
        heard()
    """
    with child(script, tree, alive, end) as parent:
        parent.expect("child lives")
        with alive.open("w"):  # it opens when the child has opened it, and so while it lives
            assert (is_free(lock_file), is_free(tree)) == (False, False)
            if end == "is killed":
                parent.kill()
            else:
                parent.say()
            if end == "releases":
                parent.expect("released")
            else:
                parent.process.wait(LIMIT)
            assert (is_free(lock_file), is_free(tree)) == (True, True)


@pytest.mark.parametrize("way", ["with", "async with"])
def test_a_child_leaves_what_it_inherited_silently_and_unlocks_nothing(
    way: str, tree: Path, lock_file: Path
) -> None:
    script = """
        def inside():
            pid = os.fork()
            if pid:
                assert ended(pid) == 0
                tell("parent", lock.is_owner())
                heard()
            else:
                tell("child", lock.is_owner(), lock.locked(), "entered" in repr(lock))
            return pid
        def afterwards(pid):
            if not pid:
                tell("child left", lock.is_owner(), lock.locked())
                for use in lock.release, lambda: lock.environ, lambda: lock.pass_fds:
                    try:
                        use()
                    except RuntimeError:
                        tell("no more")
                os._exit(0)
        async def main():
            async with lock:
                pid = inside()
            afterwards(pid)
        lock = source_tree_lock(tree)
        if sys.argv[2] == "async with":
            asyncio.run(main())
        else:
            with lock:
                with lock, source_tree_lock(tree):
                    pid = inside()
            afterwards(pid)
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


@pytest.mark.parametrize("timeout", [None, LIMIT])
@pytest.mark.parametrize("through", ["the same object", "another object"])
def test_a_child_waits_for_its_parent_like_any_process(
    through: str, timeout: float | None, tree: Path, lock_file: Path
) -> None:
    script = f"""
        lock = source_tree_lock(tree, timeout={timeout})
        reading, writing = os.pipe()
        def enter():
            own = lock if {through == "the same object"} else source_tree_lock(tree)
            tell("waits", own.acquire(blocking=False))
            with own, own:
                tell("child is in")
                os.close(writing)
                os.read(reading, 1)
            tell("child left")
        with lock:
            pid = fork(enter)
            heard()
        heard()
        assert not source_tree_lock(tree).acquire(blocking=False)
        os.close(writing)
        assert ended(pid) == 0
        with source_tree_lock(tree, timeout=0):
            tell("parent is in again")
    """
    with child(script, tree) as parent:
        parent.expect("waits False")
        parent.say()
        parent.expect("child is in")
        assert (is_free(lock_file), is_free(tree)) == (False, False)
        parent.say()
        parent.expect("child left")
        parent.expect("parent is in again")
        assert parent.end() == 0


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_child_keeps_nothing_of_the_waits_under_way_in_other_threads(
    wait: str, tree: Path, lock_file: Path, alive: Path
) -> None:
    around = """
        def inside():
            os._exit(0)  # the parent entered, and is gone
        def wait():
            {}
        threading.Thread(target=wait, daemon=True).start()
        heard()
        fork(live_on)
        threading.Event().wait()
    """
    with held_elsewhere(tree) as holder, child(script(wait, around), tree, alive) as parent:
        wait_until_blocked(parent.pid)
        parent.say()
        parent.expect("child lives")
        with alive.open("w"):
            holder.say()
            holder.expect("released")
            assert parent.process.wait(LIMIT) == 0
            assert (is_free(lock_file), is_free(tree)) == (True, True)


@linux_only
@pytest.mark.parametrize("waits_in", ["thread", "task"])
def test_a_child_may_wait_in_a_queue_of_its_own_beside_that_of_its_parent(
    waits_in: str, tree: Path, lock_file: Path
) -> None:
    script = f"""
        def child():
            with source_tree_lock(tree, timeout={LIMIT}):
                tell("child is in")
        def fork_it():
            heard()
            pid = fork(child)
            tell(pid)
            return pid
        def wait():
            with source_tree_lock(tree, timeout={LIMIT}):
                tell("parent is in")
                heard()
        async def main():
            async def wait():
                async with source_tree_lock(tree):
                    tell("parent is in")
                    heard()
            task = asyncio.create_task(wait())
            await asyncio.sleep(0)
            pid = fork_it()
            await task
            assert ended(pid) == 0
        if sys.argv[2] == "task":
            asyncio.run(main())
        else:
            thread = threading.Thread(target=wait)
            thread.start()
            pid = fork_it()
            thread.join()
            assert ended(pid) == 0
    """
    with held_elsewhere(tree) as holder, child(script, tree, waits_in) as parent:
        wait_until_blocked(parent.pid)
        parent.say()
        wait_until_blocked(int(parent.line()))
        holder.say()
        holder.expect("released")
        said = {parent.line()}
        parent.say()
        assert said | {parent.line()} == {"parent is in", "child is in"}
        assert parent.end() == 0


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
    print("exit status", process.exitcode, flush=True)
"""


@pytest.mark.usefixtures("short_temp_dir")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_of_multiprocessing_wait_for_each_other(
    method: str, tree: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(MULTIPROCESSING)
    run = "import runpy\nrunpy.run_path(sys.argv[3], run_name='__main__')"
    with Child(run, tree, method, script) as parent:
        parent.expect("exit status 0")
        assert parent.end() == 0
        assert is_free(tree)
