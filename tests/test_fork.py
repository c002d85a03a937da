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
import asyncio, os, signal, sys, threading, time, warnings
from source_tree_lock import LockTimeout, _queue, source_tree_lock

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
    "A child that runs `body` and ends; its standard input is closed."
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

# The child lives until the other end of this pipe is closed.
reading, writing = os.pipe()

def live_on():
    os.close(writing)
    tell("child lives", *what_is_open())
    os.read(reading, 1)
"""


def child(script: str, *arguments: object) -> Child:
    return Child(PRELUDE + textwrap.dedent(script), *arguments)


@pytest.fixture
def lock_file(tree: Path) -> Path:
    return source_tree_lock(tree).lock_file


@linux_only
def test_a_child_that_lives_on_keeps_nothing_when_its_parent_releases(
    tree: Path, lock_file: Path
) -> None:
    script = """
        with source_tree_lock(tree):
            fork(live_on)
            tell("held")
            heard()
        tell("released")
        heard()
    """
    with child(script, tree) as parent:
        assert {parent.line(), parent.line()} == {"held", "child lives"}
        assert (is_free(lock_file), is_free(tree)) == (False, False)
        parent.say()
        parent.expect("released")
        assert (is_free(lock_file), is_free(tree)) == (True, True)


@linux_only
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_a_child_that_lives_on_keeps_nothing_when_its_parent_ends(
    end: str, tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    script = """
        def live_on():
            tell("child lives", *what_is_open())
            with open(sys.argv[2]) as pipe:
                pipe.read()
        lock = source_tree_lock(tree)
        lock.acquire()
        fork(live_on)
        heard()
        os._exit(0)
    """
    with child(script, tree, alive) as parent:
        parent.expect("child lives")
        with alive.open("w"):  # it opens when the child has opened it, and so while it lives
            assert (is_free(lock_file), is_free(tree)) == (False, False)
            if end == "killed":
                parent.kill()
            else:
                parent.say()
                parent.process.wait(LIMIT)
            assert (is_free(lock_file), is_free(tree)) == (True, True)


def test_a_child_leaves_an_inherited_with_silently_and_unlocks_nothing(
    tree: Path, lock_file: Path
) -> None:
    script = """
        lock = source_tree_lock(tree)
        with lock:
            with lock, source_tree_lock(tree):
                pid = os.fork()
                if pid:
                    heard()
                else:
                    tell("child", lock.locked(), "not held" in repr(lock))
        if not pid:
            tell("child left", lock.locked())
            os._exit(0)
        tell("released", ended(pid))
    """
    with child(script, tree) as parent:
        parent.expect("child False True")
        parent.expect("child left False")
        assert (is_free(lock_file), is_free(tree)) == (False, False)
        parent.say()
        parent.expect("released 0")
        assert (is_free(lock_file), is_free(tree)) == (True, True)


def test_a_child_leaves_an_inherited_async_with_silently(tree: Path, lock_file: Path) -> None:
    script = """
        async def main():
            async with source_tree_lock(tree) as lock:
                pid = os.fork()
                if pid:
                    assert ended(pid) == 0
                    tell("parent", lock.locked())
                    heard()
            if not pid:
                tell("child", lock.locked())
                os._exit(0)
        asyncio.run(main())
    """
    with child(script, tree) as parent:
        parent.expect("child False")
        parent.expect("parent True")
        assert (is_free(lock_file), is_free(tree)) == (False, False)
        parent.say()
        assert parent.end() == 0


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_child_waits_for_its_parent_like_anyone(
    timeout: float | None, tree: Path, lock_file: Path
) -> None:
    script = f"""
        def enter():
            lock = source_tree_lock(tree, timeout={timeout})
            tell("waits", lock.acquire(blocking=False))
            with lock, lock:
                tell("child is in")
                os.close(writing)
                os.read(reading, 1)
            tell("child left")
        with source_tree_lock(tree):
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


def test_a_child_may_enter_inside_the_with_that_it_inherited(tree: Path, lock_file: Path) -> None:
    script = """
        lock = source_tree_lock(tree)
        lock.acquire()
        pid = os.fork()
        if pid == 0:
            with lock:  # waits for the parent
                tell("child is in", lock.locked())
                heard()
            tell("child left", lock.locked())
            lock.release()  # the inherited entry: silent
            try:
                lock.release()
            except RuntimeError:
                tell("no more")
            os._exit(0)
        tell("forked")
        lock.release()
        assert ended(pid) == 0
    """
    with child(script, tree) as parent:
        parent.expect("forked")
        parent.expect("child is in True")
        assert not is_free(lock_file)
        parent.say()
        parent.expect("child left False")
        parent.expect("no more")
        assert parent.end() == 0


@linux_only
@pytest.mark.parametrize("wait", KINDS)
def test_a_child_keeps_nothing_of_the_waits_under_way_in_other_threads(
    wait: str, tree: Path, lock_file: Path
) -> None:
    around = """
        def inside():
            os._exit(0)  # the parent got in, and is gone
        def wait():
            {}
        threading.Thread(target=wait, daemon=True).start()
        heard()
        fork(live_on)
        threading.Event().wait()
    """
    with held_elsewhere(tree) as holder, child(script(wait, around), tree) as parent:
        wait_until_blocked(parent.pid)
        parent.say()
        parent.expect("child lives")
        holder.say()
        holder.expect("released")
        assert parent.process.wait(LIMIT) == 0
        assert (is_free(lock_file), is_free(tree)) == (True, True)


@linux_only
def test_a_child_may_wait_in_a_line_of_its_own(tree: Path, lock_file: Path) -> None:
    script = f"""
        def wait():
            with source_tree_lock(tree, timeout={LIMIT}):
                tell("parent is in")
                heard()
        def child():
            with source_tree_lock(tree, timeout={LIMIT}):
                tell("child is in")
        thread = threading.Thread(target=wait)
        thread.start()
        heard()
        pid = fork(child)
        tell(pid)
        thread.join()
        assert ended(pid) == 0
    """
    with held_elsewhere(tree) as holder, child(script, tree) as parent:
        wait_until_blocked(parent.pid)
        parent.say()
        wait_until_blocked(int(parent.line()))
        holder.say()
        parent.expect("parent is in")
        parent.say()
        parent.expect("child is in")
        assert parent.end() == 0


@linux_only
def test_a_child_may_wait_though_a_task_of_its_parent_did(tree: Path, lock_file: Path) -> None:
    script = f"""
        def child():
            with source_tree_lock(tree, timeout={LIMIT}):
                tell("child is in")
        async def main():
            task = asyncio.create_task(source_tree_lock(tree).__aenter__())
            while not _queue._lines:
                await asyncio.sleep(0)
            tell("waits")
            await asyncio.to_thread(heard)
            pid = fork(child)
            tell(pid)
            await (await task).__aexit__(None, None, None)
            assert ended(pid) == 0
        asyncio.run(main())
    """
    with held_elsewhere(tree) as holder, child(script, tree) as parent:
        parent.expect("waits")
        wait_until_blocked(parent.pid)
        parent.say()
        wait_until_blocked(int(parent.line()))
        holder.say()
        parent.expect("child is in")
        assert parent.end() == 0


@linux_only
def test_a_fork_beside_threads_that_enter_and_leave_inherits_nothing(
    tree: Path, lock_file: Path, long_run: bool
) -> None:
    script = f"""
        done = threading.Event()
        def work(**options):
            while not done.is_set():
                with source_tree_lock(tree, **options):
                    pass
        threads = [threading.Thread(target=work, kwargs=options) for options in
                   ({{}}, {{"timeout": {LIMIT}}}, {{}})]
        for thread in threads:
            thread.start()
        def look():
            left = what_is_open()
            if left:
                tell("inherited", *left)
            # The library's own mutex is free in the child, whatever threads did meanwhile.
            with source_tree_lock(tree, timeout={LIMIT}):
                pass
        statuses = {{ended(fork(look)) for _ in range(int(sys.argv[2]))}}
        done.set()
        for thread in threads:
            thread.join()
        tell("all ended with", *statuses)
    """
    with child(script, tree, 2000 if long_run else 100) as parent:
        parent.expect("all ended with 0")
        assert parent.end() == 0
        assert (is_free(lock_file), is_free(tree)) == (True, True)


def test_a_child_has_every_table_that_threads_share_to_itself(tree: Path) -> None:
    # With the GIL off, a thread of the parent may have been reading one at the fork: whoever reads
    # that one in the child waits for ever.
    script = """
        from source_tree_lock import _public_names, _handover
        def tables():
            return {
                f"{module.__name__}.{name}": value
                for module in list(sys.modules.values())
                if module.__name__.startswith("source_tree_lock.")
                for name, value in vars(module).items()
                if type(value) in (dict, list, set) and name.strip("_").islower()
                if not name.startswith("__") and "._portalocker." not in module.__name__
            }
        with source_tree_lock(tree):
            before = tables()
        def look():
            shared = [name for name, table in tables().items() if table is before.get(name)]
            tell("shared:", *shared)
        tell(len(before), ended(fork(look)))
    """
    with child(script, tree) as parent:
        # The one changes only while the library is imported; the other is read under the mutex,
        # for which a fork waits.
        shared = sorted(parent.line().split()[1:])
        names = [each.removeprefix("source_tree_lock.") for each in shared]
        assert names == ["_kernel_lock._in_child", "_paths.mounts._warned"]
        assert int(parent.line().removesuffix(" 0")) > 5
        assert parent.end() == 0


def test_a_fork_during_the_first_acquisition_in_another_thread_blocks_nobody(
    tree: Path, lock_file: Path
) -> None:
    # Only then is portalocker imported. A child could not finish what its parent began.
    script = f"""
        importing = threading.Event()
        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name.endswith("portalocker.portalocker"):
                    importing.set()
                    time.sleep(0.3)
        sys.meta_path.insert(0, Slow())
        def enter():
            with source_tree_lock(tree):
                pass
        thread = threading.Thread(target=enter)
        thread.start()
        assert importing.wait({LIMIT})
        pid = fork(enter)
        thread.join()
        tell("child ended with", ended(pid))
    """
    with child(script, tree) as parent:
        parent.expect("child ended with 0")
        assert parent.end() == 0


MULTIPROCESSING = """
import multiprocessing, os, sys
from source_tree_lock import LockTimeout, source_tree_lock

def work(tree, connection):
    lock = source_tree_lock(tree)
    connection.send((lock.locked(), lock.acquire(blocking=False)))
    with lock:
        connection.send("in")
        connection.recv()
    connection.send("left")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(sys.argv[1], theirs))
    with source_tree_lock(sys.argv[1]) as lock:
        process.start()
        assert ours.recv() == (False, False)
        assert not ours.poll(0.05)
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
    method: str, tree: Path, tmp_path: Path, lock_file: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(MULTIPROCESSING)
    run = "import runpy\nrunpy.run_path(sys.argv[3], run_name='__main__')"
    with Child(run, tree, method, script) as parent:
        parent.expect("exit status 0")
        assert parent.end() == 0
        assert (is_free(lock_file), is_free(tree)) == (True, True)


# Forks in the midst of an entry


@linux_only
@pytest.mark.parametrize("timeout", [None, LIMIT])
@pytest.mark.parametrize("where", ["on_wait", "while_waiting", "digest"])
def test_a_child_that_is_forked_in_a_callback_enters_for_itself(
    where: str, timeout: float | None, tree: Path, lock_file: Path
) -> None:
    script = f"""
        parent, children = os.getpid(), []
        def fork(*_):
            if os.getpid() == parent and not children:
                children.append(os.fork())
                if os.getpid() == parent:
                    tell("forked")
            return {lock_file.name.removeprefix("uv-setuptools-").removesuffix(".lock")!r}
        with source_tree_lock(tree, timeout={timeout}, {where}=fork) as lock:
            who = "parent" if os.getpid() == parent else "child"
            tell(who, "in", lock.locked())
            assert what_is_open() == sorted([os.path.basename(lock.lock_file), "tree"])
            tell(who, "leaves")
        if os.getpid() != parent:
            os._exit(0)
        tell("ended with", ended(*children))
    """
    with held_elsewhere(tree) as holder, child(script, tree) as parent:
        parent.expect("forked")
        holder.say()
        holder.expect("released")
        lines = [parent.line() for _ in range(4)]
        assert sorted(lines) == sorted(
            ["parent in True", "parent leaves", "child in True", "child leaves"]
        )
        # One after the other: whoever is in leaves before the next comes.
        assert [line.split()[0] for line in lines][::2] == [line.split()[0] for line in lines][1::2]
        parent.expect("ended with 0")
        assert parent.end() == 0
