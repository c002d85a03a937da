"""System calls that fail, and a holder that is killed at any of them.

After a failure the tree is really held, or an error of ours says that it is not. A holder that
dies keeps nobody out.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from support import Child, held_elsewhere, is_free, long_after, wait_until_blocked
from ways import KINDS, script

from source_tree_lock import source_tree_lock

from .crew import Crew, Member, wait_until_blocked_or_tells
from .injection import injected, occurrences, recorded

_ERRORS = "EINTR EIO ENOLCK ENOSPC EDQUOT EMFILE ENFILE EROFS ESTALE".split()
#: The record is written with these; it is a courtesy.
_COURTESIES = {"pwrite64", "ftruncate", "pread64"}
#: What is on the way to the lock and back, under the names that C libraries have for it.
_CALLS = _COURTESIES | set(
    "open openat flock fstat newfstatat stat lstat readlink close link linkat fchmod mkdir mkdirat "
    "unlink unlinkat getcwd".split()
)

# Two rounds: enter, tell how it went, leave when told to. The fault hits the first one.
_SCRIPT = """
def enter_and_leave():
    with source_tree_lock(sys.argv[1], timeout=3600):
        tell("held")
        heard()

async def enter_and_leave_in_a_task():
    async with source_tree_lock(sys.argv[1]):
        tell("held")
        heard()

def one_round():
    outcome = "left"
    try:
        {}
    except SourceTreeLockError:
        outcome = "refused"
    except BaseException as error:
        traceback.print_exc()
        outcome = f"broke: {{error!r}}"
    tell(outcome)  # once the error, which keeps descriptors, is gone

_paths.LINKS = {}
loop = asyncio.new_event_loop()
tell("ready")
heard()
one_round()
heard()
one_round()
"""
_PLAIN = "enter_and_leave()"
_TASK = "loop.run_until_complete(enter_and_leave_in_a_task())"
_FREE, _BEFORE, _AFTER = "on a free tree", "until it waits", "once it waits"
#: How the child enters, what its lock file is, and when the fault is in force.
_CASES = {
    "new": (_PLAIN, "missing", _FREE),
    "junk": (_PLAIN, "full of junk", _FREE),
    "new directory": (_PLAIN, "in no directory", _FREE),
    "in place": (_PLAIN, "made in place", _FREE),
    "task": (_TASK, "there", _FREE),
    "granted": (_PLAIN, "there", _AFTER),
    "granted task": (_TASK, "there", _AFTER),
    "handed over": (_PLAIN, "one level down", _FREE),
    "busy": (_PLAIN, "there", _BEFORE),
    "busy task": (_TASK, "there", _BEFORE),
}

_T_co = TypeVar("_T_co", covariant=True)


class Fault(Protocol[_T_co]):
    def __call__(self, member: Member) -> AbstractContextManager[_T_co]: ...


class Target:
    """Children that enter a tree in the same state, each with another fault."""

    def __init__(self, crew: Crew, tree: Path, directory: Path, case: str) -> None:
        way, self.state, self.attack = _CASES[case]
        self.script = _SCRIPT.format(way, self.state != "made in place")
        self.crew = crew
        self.tree = tree
        self.log = directory / "strace.log"
        self.lock = source_tree_lock(tree, lock_dir=directory / "locks")
        self.lock_file = self.lock.lock_file
        self.locked = [self.lock_file, tree]
        self.environ = {"SOURCE_TREE_LOCK_DIR": str(self.lock_file.parent)}
        if self.state == "one level down":
            self.lock.acquire()
            self.environ.update(self.lock.environ)
            self.locked = [self.lock_file.with_suffix(".1.lock")]

    def start(self) -> Member:
        if self.state == "one level down":
            self.locked[0].unlink(missing_ok=True)
        else:
            shutil.rmtree(self.lock_file.parent, ignore_errors=True)
        if self.state not in ("in no directory", "one level down"):
            self.lock_file.parent.mkdir()
        if self.state in ("there", "full of junk"):
            self.lock_file.write_text("" if self.state == "there" else "junk" * 1000)
            self.lock_file.chmod(0o666)
        return self.next()

    def next(self) -> Member:
        """A child that takes what another one left."""
        member = self.crew.start(self.script, self.tree, environ=self.environ)
        member.expect("ready")
        return member

    @contextmanager
    def sent(self, member: Member, fault: Fault[_T_co]) -> Iterator[_T_co]:
        """Tell a child to go, with a fault in force; gives what the fault gives."""
        is_late = self.attack == _AFTER
        with ExitStack() as stack:
            results = [] if is_late else [stack.enter_context(fault(member))]
            with self.lock if self.attack != _FREE else nullcontext():
                member.say("go")
                if self.attack != _FREE:
                    wait_until_blocked_or_tells(member)
                if is_late:
                    results = [stack.enter_context(fault(member))]
            yield results[0]

    def one_round(self, member: Member) -> str:
        """Whether it got in; if so, it is seen from outside, and sent out again."""
        outcome = member.line()
        if outcome == "held":
            assert not any(map(is_free, self.locked))
            member.say("leave")
            member.expect("left")
        assert all(map(is_free, self.locked))
        return outcome

    def calls(self, most: int) -> Iterator[tuple[str, int]]:
        """System calls of one round, by name and number; so many of each name, or all."""
        with self.sent(member := self.start(), partial(recorded, log=self.log)) as counts:
            assert self.one_round(member) == "held"
            member.kill()
        assert counts["flock"] >= 2, "the recording missed the lock"
        limit = None if self.state == "missing" else most
        for name, times in sorted(counts.items()):
            for number in occurrences(times, limit):
                yield name, number


@pytest.fixture
def target(
    request: pytest.FixtureRequest, crew: Crew, tree: Path, tmp_path: Path
) -> Iterator[Target]:
    target = Target(crew, tree, tmp_path, request.param)
    yield target
    if target.lock.is_owner():
        target.lock.release()


@pytest.mark.parametrize("target", long_after(9, _CASES), indirect=True)
def test_a_failing_call_never_lets_anybody_in_and_leaves_nothing(
    target: Target, long_run: bool
) -> None:
    calls = [each for each in target.calls(8 if long_run else 2) if each[0] in _CALLS]
    for (name, number), error in zip(calls, cycle(_ERRORS), strict=False):
        rule = f"{name}:error={error}:when={number}"
        member = target.start()
        descriptors = _descriptors(member)
        with target.sent(member, partial(injected, rule=rule)):
            outcome = target.one_round(member)
            # strace does not execute what it lets fail, whereas close(2) always closes.
            assert _descriptors(member) - descriptors <= (name == "close"), rule
            assert outcome in (["held"] if name in _COURTESIES else ["held", "refused"]), rule
        member.say("again")
        assert target.one_round(member) == "held", rule
        member.close()


@pytest.mark.parametrize("target", long_after(9, _CASES), indirect=True)
def test_killed_at_any_system_call_it_keeps_nobody_out(target: Target, long_run: bool) -> None:
    hits = Counter[bool]()
    for name, number in target.calls(8 if long_run else 2):
        member = target.start()
        with target.sent(member, partial(injected, rule=f"{name}:signal=KILL:when={number}")):
            with suppress(BrokenPipeError):  # it may be dead already
                member.say("leave\nagain\nleave")
            hits[member.rest().count("left") < 2] += 1
            member.wait()
        if target.state == "one level down":
            with target.next() as sibling:
                sibling.say("go")
                assert target.one_round(sibling) == "held"
        else:
            _assert_clean(target)
        member.close()
    assert hits[True] > hits[False], "the attack had no effect"


def _assert_clean(target: Target) -> None:
    """The next one enters with one attempt, without any wait, and replaces the record of the dead.

    With a second name for a moment, the new lock file of one that dies in that moment keeps it.
    """
    assert target.lock.holder() is None
    assert target.lock.acquire(timeout=0)
    status = target.lock_file.stat()
    target.lock.release()
    if target.state != "made in place":
        assert stat.S_IMODE(status.st_mode) == 0o666
    assert status.st_nlink <= 2
    assert not target.lock_file.read_bytes()[:512].strip(b"junk\n"), "a record is left behind"
    assert len(os.listdir(target.lock_file.parent)) <= 2
    assert not os.listdir(target.tree)


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


def _descriptors(member: Member) -> int:
    return len(os.listdir(f"/proc/{member.pid}/fd"))


@pytest.mark.parametrize("is_busy", [False, True])
def test_without_descriptors_it_is_refused_and_then_gets_in(tree: Path, is_busy: bool) -> None:
    """In processes that have imported nothing more than the library: imports fail as well."""
    script = """
        import os, resource
        from source_tree_lock import SourceTreeLockError, source_tree_lock

        def enter(limit):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                if not lock.acquire(timeout=0.05):
                    return "busy"
                lock.release()
                return "held"
            except SourceTreeLockError:
                return "refused"

        lock = source_tree_lock(sys.argv[1])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = os.listdir("/proc/self/fd")
        lowest = len(before) - 1
        for free in range(20):
            if os.fork() == 0:
                tell(enter(lowest + free), enter(soft))
                # The thread of the queue waits on for the caller that gave up.
                left = len(os.listdir("/proc/self/fd")) - len(before)
                os._exit(left > int(sys.argv[2]))
            assert os.wait()[1] == 0
    """
    with (
        held_elsewhere(tree) if is_busy else nullcontext(),
        Child(script, tree, int(is_busy)) as child,
    ):
        outcomes = child.rest()
    last = "busy busy" if is_busy else "held held"
    assert len(outcomes) == 20
    assert outcomes[0] == last.replace("busy ", "refused ").replace("held ", "refused ")
    assert outcomes[-1] == last
    assert set(outcomes) == {outcomes[0], last}
