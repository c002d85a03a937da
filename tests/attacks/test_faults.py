"""A system call that fails: the tree is really held, or an error of ours says that it is not."""

from __future__ import annotations

import os
import shutil
import textwrap
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from support import is_free

from source_tree_lock import source_tree_lock

from .crew import Crew, Member, wait_until_blocked_or_tells
from .injection import injected, needs_strace, occurrences, recorded, sent

_ERRORS = "EINTR EIO ENOLCK ENOSPC EDQUOT EMFILE ENFILE EROFS ESTALE".split()
#: The record is written with these; it is a courtesy.
_COURTESIES = {"pwrite64", "ftruncate", "pread64"}
#: What is on the way to the lock and back, under the names that C libraries have for it.
_CALLS = _COURTESIES | set(
    "open openat flock fstat newfstatat stat lstat readlink close link linkat fchmod mkdir mkdirat "
    "unlink unlinkat getcwd".split()
)

# Two rounds: enter, tell how it went, leave when told to. The fault hits the first one.
_ROUNDS = """
def enter_and_leave():
    with source_tree_lock(sys.argv[1], timeout=SECONDS):
        tell("held")
        heard()

async def enter_and_leave_in_a_task():
    async with source_tree_lock(sys.argv[1], timeout=SECONDS):
        tell("held")
        heard()

def one_round():
    outcome = "left"
    try:
        ROUND
    except SourceTreeLockError as error:
        outcome = "refused"
    except BaseException as error:
        traceback.print_exc()
        outcome = f"broke: {error!r}"
    tell(outcome)  # once the error, which keeps descriptors, is gone
"""
_SCRIPT = """
{rounds}
loop = asyncio.new_event_loop()
{before}
tell("ready")
heard()
{first}
one_round()
heard()
one_round()
"""
# strace counts for each thread: with these calls behind it, the main thread is out of reach.
_CALL_ALL = """
import fcntl
for _ in range(20):
    with contextlib.suppress(OSError):
        descriptor = os.open("/", os.O_RDONLY)
        try:
            os.fstat(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)
"""

_PLAIN = "enter_and_leave()"
_TASK = "loop.run_until_complete(enter_and_leave_in_a_task())"
_IN_PLACE = "making.LINKS = False"
_FREE, _BEFORE, _AFTER = "on a free tree", "until it waits", "once it waits"


@pytest.mark.parametrize(
    ("way", "seconds", "lock_file_is", "attack", "before", "first"),
    [
        pytest.param(_PLAIN, None, "missing", _FREE, "", "", id="free-new"),
        pytest.param(_PLAIN, None, "full of junk", _FREE, "", "", id="free-junk"),
        pytest.param(_PLAIN, None, "in no directory", _FREE, "", "", id="free-new-directory"),
        pytest.param(_PLAIN, None, "missing", _FREE, _IN_PLACE, "", id="in-place"),
        pytest.param(_PLAIN, None, "handed over", _FREE, "", "", id="handed-over"),
        pytest.param(_TASK, None, "there", _FREE, "", "", id="free-in-a-task"),
        pytest.param(_PLAIN, 3600, "there", _BEFORE, "", "", id="busy"),
        pytest.param(_TASK, None, "there", _BEFORE, "", "", id="busy-in-a-task"),
        pytest.param(_PLAIN, 3600, "there", _BEFORE, "", _CALL_ALL, id="in-the-thread-that-waits"),
        pytest.param(_PLAIN, None, "there", _AFTER, "", "", id="granted"),
        pytest.param(_TASK, None, "there", _AFTER, "", "", id="granted-in-a-task"),
    ],
)
def test_a_failing_call_never_lets_anybody_in_and_leaves_nothing(
    crew: Crew,
    tree: Path,
    tmp_path: Path,
    long_run: bool,
    way: str,
    seconds: float | None,
    lock_file_is: str,
    attack: str,
    before: str,
    first: str,
) -> None:
    needs_strace()
    directory = tmp_path / "locks"
    lock = source_tree_lock(tree, lock_dir=directory)
    lock_file = lock.lock_file
    locked = [lock_file, tree]
    environ = {"SOURCE_TREE_LOCK_DIR": str(directory)}
    if lock_file_is == "handed over":  # it enters one level down
        lock.acquire()
        environ.update(lock.environ)
        locked = [lock_file.with_suffix(".1.lock")]
    script = _SCRIPT.format(rounds=_rounds(seconds, way), before=before, first=first)

    def start() -> Member:
        if lock_file_is == "handed over":
            locked[0].unlink(missing_ok=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
        if lock_file_is not in ("in no directory", "handed over"):
            directory.mkdir()
        if lock_file_is in ("there", "full of junk"):
            lock_file.write_text("" if lock_file_is == "there" else "junk" * 1000)
            lock_file.chmod(0o666)
        member = crew.start(script, tree, environ=environ)
        member.expect("ready")
        return member

    with sent(member := start(), lock, attack, partial(recorded, directory=tmp_path)) as counts:
        assert _one_round(member, *locked) == "held"
        member.kill()
    assert counts["flock"] >= 2, "the recording missed the lock"
    is_short = attack == _FREE and lock_file_is != "handed over"
    most = None if long_run or is_short else 6
    cases = 0
    for name in sorted(_CALLS.intersection(counts)):
        # Of the calls that were made to put the main thread out of reach, three are left to it.
        times = 3 if first else counts[name]
        for occurrence in occurrences(times, most):
            for error in _ERRORS if long_run else [_ERRORS[cases % len(_ERRORS)]]:
                cases += 1
                member = start()
                descriptors = _descriptors(member)
                rule = f"{name}:error={error}:when={occurrence}"
                with sent(member, lock, attack, partial(injected, rules=[rule])):
                    outcome = _one_round(member, *locked)
                    # strace does not execute what it lets fail, whereas close(2) always closes.
                    leaked = _descriptors(member) - descriptors
                    assert leaked <= (name == "close"), rule
                    assert outcome in (["held"] if name in _COURTESIES else ["held", "refused"]), (
                        rule
                    )
                member.say("again")
                assert _one_round(member, *locked) == "held", rule
                member.close()
    if lock.is_owner():
        lock.release()


@pytest.mark.parametrize(
    ("seconds", "busy"),
    [(None, False), (None, True), (3600, True)],
    ids=["free", "busy", "in-time"],
)
def test_whoever_runs_out_of_descriptors_is_refused_and_then_gets_in(
    tree: Path, seconds: float | None, busy: bool
) -> None:
    """In a process that has imported nothing more than the library: imports fail as well."""
    script = """
        import resource
        lowest = os.dup(0)
        os.close(lowest)
        tell("ready")
        heard()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + int(sys.argv[2]), limits[1]))
        one_round()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        heard()
        one_round()
    """
    script = _rounds(seconds, _PLAIN) + textwrap.dedent(script)
    lock = source_tree_lock(tree)
    locked = [lock.lock_file, tree]
    outcomes = []
    with Crew(warm=False) as crew:
        for free in range(20):
            member = crew.start(script, tree, free)
            member.expect("ready")
            descriptors = _descriptors(member)
            with lock if busy else nullcontext():
                member.say("go")
                if busy:
                    wait_until_blocked_or_tells(member)
            outcomes.append(_one_round(member, *locked))
            assert _descriptors(member) == descriptors, free
            member.say("again")
            assert _one_round(member, *locked) == "held", free
    assert outcomes[0] == "refused", "the attack had no effect"
    assert outcomes[-1] == "held"
    assert set(outcomes) == {"refused", "held"}


def _rounds(seconds: float | None, way: str) -> str:
    return _ROUNDS.replace("SECONDS", str(seconds)).replace("ROUND", way)


def _one_round(member: Member, *locked: Path) -> str:
    """Whether it got in; if so, it is seen from outside, and sent out again."""
    outcome = member.line()
    if outcome == "held":
        assert not any(map(is_free, locked))
        member.say("leave")
        member.expect("left")
    assert all(map(is_free, locked))
    return outcome


def _descriptors(member: Member) -> int:
    return len(os.listdir(f"/proc/{member.pid}/fd"))
