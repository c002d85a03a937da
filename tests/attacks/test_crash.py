"""A holder that dies, at whatever step, keeps nobody out, and leaves nothing in the way."""

from __future__ import annotations

import os
import stat
import statistics
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support import LIMIT, is_free, wait_until_blocked
from ways import KINDS, script

from source_tree_lock import source_tree_lock

from .crew import Crew, Member
from .injection import injected, needs_strace, occurrences, recorded, sent

#: Gets in and out, and is killed in the middle.
_IN_AND_OUT = """
    def inside():
        pass
    tell("ready")
    heard()
    {}
    tell("done")
    os._exit(0)
"""

#: What the interpreter also calls, and not equally often in each run; a record is cut only where
#: the one before was longer, of a longer pid, say.
_MAY_VARY = {"read", "close", "epoll_wait", "lseek", "getpid", "ftruncate"}
#: How the threads end that waited in line; the process may end before. They mask signals when they
#: begin as well, but that is before the wait.
_END_OF_THREAD = {
    "until it waits": {"exit", "set_robust_list", "rseq"},
    "once it waits": {"exit", "rt_sigprocmask"},
}


@pytest.mark.parametrize(
    ("way", "lock_file_is", "attack"),
    [
        ("for ever", "missing", "on a free tree"),
        ("for ever", "there", "on a free tree"),
        ("for ever", "full of junk", "on a free tree"),
        ("for ever", "there", "until it waits"),
        ("bounded", "there", "until it waits"),
        ("in asyncio", "there", "until it waits"),
        ("for ever", "there", "once it waits"),
        ("bounded", "there", "once it waits"),
        ("in asyncio", "there", "once it waits"),
    ],
)
def test_killed_at_any_system_call_it_keeps_nobody_out(
    crew: Crew,
    tree: Path,
    tmp_path: Path,
    way: str,
    lock_file_is: str,
    attack: str,
    long_run: bool,
    count_cases: Callable[[int], None],
) -> None:
    needs_strace()
    lock_file = source_tree_lock(tree).lock_file
    in_and_out = script(way, _IN_AND_OUT)

    def start() -> Member:
        for path in lock_file.parent.iterdir():
            path.unlink()
        if lock_file_is != "missing":
            lock_file.write_text("" if lock_file_is == "there" else "junk" * 1000)
            lock_file.chmod(0o666)
        member = crew.start(in_and_out, tree)
        member.expect("ready")
        return member

    lock = source_tree_lock(tree)
    with sent(start(), lock, attack, partial(recorded, directory=tmp_path)) as counts:
        pass
    assert counts["flock"] >= 3, "the recording missed the lock"
    cases = 0
    hits: Counter[str] = Counter()
    most = None if long_run or attack == "on a free tree" else 3
    for name, times in counts.items():
        for occurrence in occurrences(times, most):
            cases += 1
            fault = partial(injected, rules=[f"{name}:signal=KILL:when={occurrence}"])
            member = start()
            with sent(member, lock, attack, fault):
                hits[name] += member.rest() == []
                member.wait()
                # With a second name for a moment, a death in that moment leaves it.
                _assert_clean(tree, lock_file, leftovers=1)
            member.close()
    count_cases(cases)
    missed = {name for name in counts if not hits[name]}
    assert not missed - _MAY_VARY - _END_OF_THREAD.get(attack, set())


def _assert_clean(tree: Path, lock_file: Path, *, leftovers: int = 0) -> None:
    """The next one gets in with one attempt, without any wait, and cleans up behind the dead."""
    lock = source_tree_lock(tree, timeout=0)
    assert lock.holder() is None
    with lock:
        assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        links = lock_file.stat().st_nlink
    assert not lock_file.read_bytes().strip(), "a record is left behind"
    assert len(os.listdir(lock_file.parent)) <= 1 + leftovers
    assert links <= 1 + leftovers
    assert not os.listdir(tree)


_HOLD = 'lock = source_tree_lock(sys.argv[1])\nlock.acquire()\ntell("held")\nheard()'


@pytest.mark.parametrize("wait", KINDS)
def test_a_waiter_is_in_soon_after_the_holder_was_killed(
    crew: Crew, tree: Path, wait: str, long_run: bool
) -> None:
    took = []
    for _ in range(100 if long_run else 10):
        holder = crew.start(_HOLD, tree)
        holder.expect("held")
        waiter = crew.start(script(wait), tree)
        wait_until_blocked(waiter.pid)
        killed = time.monotonic()
        holder.kill()
        waiter.expect("held")
        took.append(time.monotonic() - killed)
        waiter.close()
        holder.close()
    # The median: a machine that is busy otherwise may delay any one of them.
    assert statistics.median(took) < 0.5


# Forks

_PARENT = """
    lock = source_tree_lock(sys.argv[1])
    other = source_tree_lock(sys.argv[2], timeout=3600)
    waits = threading.Thread(target=other.acquire, daemon=True)
    waits.start()
    tell("waits")
    heard()
    lock.acquire()
    child = os.fork()
    if not child:
        inherited = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                inherited.append(os.readlink(f"/proc/self/fd/{name}"))
        ours = [path for path in inherited if path.endswith(".lock") or path in sys.argv]
        tell("child", os.getpid(), lock.locked(), bool(ours))
        signal.pause()
    heard()
    END
"""


@pytest.mark.parametrize(
    "end",
    ["lock.release()\n    tell('released')\n    heard()", "os._exit(0)", "os.kill(os.getpid(), 9)"],
)
def test_a_forked_child_that_lives_on_keeps_nothing(
    crew: Crew, tree: Path, tmp_path: Path, end: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with source_tree_lock(other):
        parent = crew.start(_PARENT.replace("END", end), tree, other)
        parent.expect("waits")
        wait_until_blocked(parent.pid)
        parent.say("fork")
        word, pid, owns, has_descriptors = parent.line().split()
        try:
            assert (word, owns, has_descriptors) == ("child", "False", "False")
            assert not is_free(source_tree_lock(tree).lock_file)
            parent.say("end")
            if "released" in end:
                parent.expect("released")
            else:
                parent.wait()
            with source_tree_lock(tree, timeout=0):
                os.kill(int(pid), 0)  # it lives, so it was put to the test
            parent.kill()
        finally:
            os.kill(int(pid), 9)
    # The parent waited for this one, in a thread, while it forked, and died waiting.
    with source_tree_lock(other, timeout=LIMIT):
        pass


def test_a_forked_child_lives_while_the_tree_its_parent_waited_for_is_taken_by_another(
    crew: Crew, tree: Path
) -> None:
    script = """
        lock = source_tree_lock(sys.argv[1], timeout=3600)
        threading.Thread(target=lock.acquire, daemon=True).start()
        heard()
        if not os.fork():
            tell("child", os.getpid())
            signal.pause()
        signal.pause()
    """
    with source_tree_lock(tree):
        parent = crew.start(script, tree)
        wait_until_blocked(parent.pid)
        parent.say("fork")
        pid = int(parent.line().split()[1])
        parent.kill()
    try:
        with source_tree_lock(tree, timeout=0):
            os.kill(pid, 0)
    finally:
        os.kill(pid, 9)


@pytest.mark.timeout(600)
def test_forks_from_one_thread_while_others_enter_leave_and_wait(
    crew: Crew, tree: Path, tmp_path: Path, long_run: bool
) -> None:
    for number in range(3):
        (tmp_path / f"tree {number}").mkdir()
    script = """
        trees = [f"{sys.argv[1]}/tree {number}" for number in range(3)]
        ended = threading.Event()
        inside = {tree: 0 for tree in trees}
        failures = []
        def work(number):
            try:
                generator = random.Random(number)
                while not ended.is_set():
                    tree = generator.choice(trees)
                    seconds = generator.choice([None, 0, 0.001, 60])
                    lock = source_tree_lock(tree, timeout=seconds)
                    if lock.acquire():
                        inside[tree] += 1
                        if inside[tree] != 1:
                            failures.append("two threads inside")
                        inside[tree] -= 1
                        lock.release()
                    time.sleep(0.001)  # else who has just left is in again before others wake
            except BaseException as error:
                failures.append(repr(error))
        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for number in range(int(sys.argv[2])):
            child = os.fork()
            if not child:
                try:
                    signal.alarm(50)
                    for name in os.listdir("/proc/self/fd"):
                        with contextlib.suppress(OSError):
                            if ".lock" in os.readlink(f"/proc/self/fd/{name}"):
                                os._exit(2)
                    for tree in trees:
                        if source_tree_lock(tree).locked():
                            os._exit(3)
                    with source_tree_lock(trees[number % 3], timeout=number % 2 and 60 or None):
                        os._exit(0)
                finally:
                    os._exit(4)
            tell("child", number, "ended with", os.waitpid(child, 0)[1])
        ended.set()
        for thread in threads:
            thread.join(50)
            if thread.is_alive():
                failures.append("a thread hangs")
        tell(failures)
    """
    forks = 1000 if long_run else 50
    member = crew.start(script, tmp_path, forks)
    for number in range(forks):  # a child may wait for long: with the GIL off, threads are quick
        member.expect(f"child {number} ended with 0")
    member.expect("[]")


@pytest.mark.usefixtures("short_temp_dir")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_lets_in_one_worker_at_a_time(
    tree: Path, tmp_path: Path, method: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import multiprocessing, os, sys
            from source_tree_lock import source_tree_lock

            def work(tree, times):
                for _ in range(times):
                    with source_tree_lock(tree):
                        # Exclusive, so that two inside at once fail.
                        os.close(os.open("inside", os.O_CREAT | os.O_EXCL))
                        os.unlink("inside")

            if __name__ == "__main__":
                tree = sys.argv[1]
                context = multiprocessing.get_context(sys.argv[2])
                with source_tree_lock(tree) as lock:
                    workers = [context.Process(target=work, args=(tree, 50)) for _ in range(4)]
                    for worker in workers:
                        worker.start()
                    os.close(os.open("inside", os.O_CREAT | os.O_EXCL))
                    os.unlink("inside")
                for worker in workers:
                    worker.join(50)
                print([worker.exitcode for worker in workers])
        """)
    )
    run = subprocess.run(
        [sys.executable, str(program), str(tree), method],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
    )
    assert run.stdout == "[0, 0, 0, 0]\n"


@pytest.mark.parametrize(
    "module",
    ["_queue", "_handover", "_waiting", "_holder.proc_locks", "_holder.find", "_deadlocks"],
)
def test_a_child_forked_while_a_thread_imports_what_a_wait_needs_does_not_wait_for_the_import(
    tree: Path, module: str
) -> None:
    """The thread that imports is not there in the child, so the child would wait for ever."""
    script = """
        import importlib.machinery, threading
        imports, forks = threading.Event(), threading.Event()
        class Slow:
            "Ends the import once the fork has begun, or soon, where the fork waits for it."
            def find_spec(self, name, path=None, target=None):
                if name != sys.argv[2] or os.getpid() != parent:
                    return None
                spec = importlib.machinery.PathFinder.find_spec(name, path, target)
                run = spec.loader.exec_module
                def exec_module(module):
                    imports.set()
                    forks.wait(0.2)
                    run(module)
                spec.loader.exec_module = exec_module
                return spec
        parent = os.getpid()
        sys.meta_path.insert(0, Slow())
        def attempt():
            return source_tree_lock(sys.argv[1]).acquire(timeout=0.05)
        thread = threading.Thread(target=attempt)
        thread.start()
        assert imports.wait(30)
        pid = os.fork()
        if not pid:
            signal.alarm(10)  # ends a child that waits for ever
            os._exit(attempt())
        forks.set()
        tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        thread.join()
    """
    with Crew(warm=False) as crew, source_tree_lock(tree):
        member = crew.start(script, tree, f"source_tree_lock.{module}")
        member.expect("0")
        member.wait()
