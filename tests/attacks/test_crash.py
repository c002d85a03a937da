"""A holder that dies, at whatever step, keeps nobody out, and leaves nothing in the way."""

from __future__ import annotations

import os
import stat
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from support import wait_until_blocked
from ways import KINDS, script

from source_tree_lock import source_tree_lock

from .crew import Crew, Member
from .injection import injected, needs_strace, occurrences, recorded, sent

#: Enters and leaves, and is killed in the middle.
_IN_AND_OUT = """
    def inside():
        pass
    tell("ready")
    heard()
    {}
    tell("done")
    os._exit(0)
"""
#: What the interpreter also calls, and not equally often in each run.
_MAY_VARY = {"read", "close", "epoll_wait", "lseek", "getpid", "ftruncate"}
#: How the threads end that waited in the queue; the process may end before. They mask signals when
#: they begin as well, but that is before the wait.
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
        ("for ever", "handed over", "on a free tree"),
        *((way, "there", attack) for way in KINDS for attack in _END_OF_THREAD),
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
) -> None:
    needs_strace()
    lock = source_tree_lock(tree)
    lock_file = lock.lock_file
    environ: dict[str, str] = {}
    if lock_file_is == "handed over":  # it enters one level down
        lock.acquire()
        environ = lock.environ

    def start() -> Member:
        for path in lock_file.parent.iterdir():
            if not (environ and path == lock_file):
                path.unlink()
        if lock_file_is in ("there", "full of junk"):
            lock_file.write_text("" if lock_file_is == "there" else "junk" * 1000)
            lock_file.chmod(0o666)
        member = crew.start(script(way, _IN_AND_OUT), tree, environ=environ)
        member.expect("ready")
        return member

    with sent(start(), lock, attack, partial(recorded, directory=tmp_path)) as counts:
        pass
    assert counts["flock"] >= 2, "the recording missed the lock"
    cases = 0
    hits: Counter[str] = Counter()
    most = None if long_run or (attack == "on a free tree" and not environ) else 3
    for name, times in counts.items():
        for occurrence in occurrences(times, most):
            cases += 1
            fault = partial(injected, rules=[f"{name}:signal=KILL:when={occurrence}"])
            member = start()
            with sent(member, lock, attack, fault):
                hits[name] += member.rest() == []
                member.wait()
                if environ:
                    with crew.start(script(way, _IN_AND_OUT), tree, environ=environ) as sibling:
                        sibling.expect("ready")
                        sibling.say("go")
                        sibling.expect("done")
                else:
                    _assert_clean(tree, lock_file)
            member.close()
    if environ:
        lock.release()
    missed = {name for name in counts if not hits[name]}
    assert not missed - _MAY_VARY - _END_OF_THREAD.get(attack, set())


def _assert_clean(tree: Path, lock_file: Path) -> None:
    """The next one enters with one attempt, without any wait, and replaces the record of the dead.

    With a second name for a moment, the new lock file of one that dies in that moment keeps it.
    """
    lock = source_tree_lock(tree, timeout=0)
    assert lock.holder() is None
    with lock:
        assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        links = lock_file.stat().st_nlink
    assert not lock_file.read_bytes()[:512].strip(b"junk\n"), "a record is left behind"
    assert len(os.listdir(lock_file.parent)) <= 2
    assert links <= 2
    assert not os.listdir(tree)


@pytest.mark.parametrize("wait", KINDS)
def test_a_waiter_is_in_when_the_holder_was_killed(
    crew: Crew, tree: Path, wait: str, long_run: bool
) -> None:
    for _ in range(100 if long_run else 10):
        with crew.start(script("for ever"), tree) as holder:
            holder.expect("held")
            with crew.start(script(wait), tree) as waiter:
                wait_until_blocked(waiter.pid)
                holder.kill()
                waiter.expect("held")
