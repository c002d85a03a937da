"""Crowds: everybody gets in, in a fair order, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import LIMIT

from source_tree_lock import source_tree_lock

from .crew import Crew, Member

# Turns are counted, not timed: how many others got in between asking and getting in. The count
# is in a file that all of them map; only who is inside changes it.
#
# flock(2) is a queue, but its head has yet to be run when the lock is free, and a newcomer may
# pass it by; then the kernel has the whole queue stand in line anew (`__locks_insert_block` in
# Linux' fs/locks.c). A hold is longer than that takes, as builds are.
_TURNS = """
    import _thread, logging, mmap

    class Warned(logging.Handler):
        def emit(self, record):
            if "wait for each other" in record.getMessage():
                tell("a false alarm:", record.getMessage())  # where a number is expected

    logging.getLogger("source_tree_lock").addHandler(Warned("WARNING"))
    tree, counter, times, hold = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    with open(counter, "r+b") as file:
        turns = mmap.mmap(file.fileno(), 8)

    def now():
        return int.from_bytes(turns[:8], "little")

    def take_turn(asked):
        got = now()
        turns[:8] = (got + 1).to_bytes(8, "little")
        time.sleep(hold)
        return got - asked

    def do_something_else():
        time.sleep(0.002)
"""

_PROCESS = """
    tell("ready")
    heard()
    waits = []
    lock = source_tree_lock(tree, timeout=eval(sys.argv[5]))
    for _ in range(times):
        asked = now()
        with lock:
            waits.append(take_turn(asked))
        do_something_else()
    tell(max(waits))
"""

_THREADS = """
    import resource
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    lock = source_tree_lock(tree, timeout=eval(sys.argv[5]))
    number = int(sys.argv[6])
    waits, failures, all_here = [], [], threading.Barrier(number)

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    def work():
        all_here.wait()
        try:
            for _ in range(times):
                asked = now()
                with lock:
                    waits.append(take_turn(asked))
                do_something_else()
        except BaseException as error:
            failures.append(repr(error))

    before = descriptors()
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert len(waits) == number * times
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline and (descriptors(), _thread._count()) != (before, 0):
        time.sleep(0.001)
    tell(max(waits), descriptors() - before, _thread._count())
"""

_TASKS = """
    lock = source_tree_lock(tree, timeout=eval(sys.argv[5]))
    number = int(sys.argv[6])
    waits = []
    most_threads = 0

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    async def work():
        global most_threads
        for _ in range(times):
            asked = now()
            async with lock:
                waits.append(take_turn(asked))
                most_threads = max(most_threads, _thread._count())
                await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*[work() for _ in range(number)])

    before = descriptors()
    asyncio.run(main())
    assert len(waits) == number * times
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline and (descriptors(), _thread._count()) != (before, 0):
        time.sleep(0.001)
    assert most_threads <= 1, "more than one thread waits for them all"
    tell(max(waits), descriptors() - before, _thread._count())
"""


#: How often each one enters: so often that somebody who is passed over waits too long.
TIMES = 5
#: How long each hold lasts, in seconds.
HOLD = 0.005
#: How often all others may have a turn before one has its own: seldom more than four times on an
#: idle machine. The kernel wakes all that wait, and the scheduler chooses.
FAIR = 10


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """One crowd at a time, whoever else tests on this machine: several would measure only it."""
    descriptor = os.open("/tmp", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    path = tmp_path / "turns"
    path.write_bytes(bytes(8))
    return path


def _turns(counter: Path) -> int:
    return int.from_bytes(counter.read_bytes(), "little")


def _wait_until_blocked(members: list[Member]) -> None:
    """Until each of them is in the kernel's queue."""
    pids = {str(member.pid) for member in members}
    deadline = time.monotonic() + LIMIT
    while pids:
        assert time.monotonic() < deadline, f"{len(pids)} do not wait"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "->":
                pids.discard(fields[5])
        time.sleep(0.001)


def _script(text: str) -> str:
    return textwrap.dedent(_TURNS) + textwrap.dedent(text)


@pytest.mark.once
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_a_crowd_of_processes_gets_in_and_waits_a_few_fair_turns_at_most(
    crew: Crew,
    tree: Path,
    counter: Path,
    seconds: float | None,
    long_run: bool,
    count_cases: Callable[[int], None],
) -> None:
    number = 200 if long_run else 60
    members = [
        crew.start(_script(_PROCESS), tree, counter, TIMES, 2 * HOLD, seconds)
        for _ in range(number)
    ]
    for member in members:
        member.expect("ready")
    with source_tree_lock(tree):
        for member in members:
            member.say("go")
        _wait_until_blocked(members)
    longest = max(int(member.line()) for member in members)
    assert _turns(counter) == number * TIMES
    assert longest <= FAIR * number
    count_cases(number * TIMES)


_IN_LINE = """
    heard()
    asked = now()
    with source_tree_lock(tree, timeout=eval(sys.argv[5])):
        tell(take_turn(asked))
"""


@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_processes_get_in_in_the_order_in_which_they_came(
    crew: Crew,
    tree: Path,
    counter: Path,
    seconds: float | None,
    count_cases: Callable[[int], None],
) -> None:
    number = 50
    members = [crew.start(_script(_IN_LINE), tree, counter, 1, 0, seconds) for _ in range(number)]
    with source_tree_lock(tree):
        for member in members:
            member.say("go")
            _wait_until_blocked([member])
    assert [int(member.line()) for member in members] == list(range(number))
    count_cases(number)


@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize(
    ("script", "number", "hold"),
    [(_THREADS, 200, HOLD), (_TASKS, 500, HOLD / 5)],
    ids=["threads", "tasks"],
)
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_a_crowd_in_one_process_gets_in_and_leaves_nothing(
    crew: Crew,
    tree: Path,
    counter: Path,
    script: str,
    number: int,
    hold: float,
    seconds: float | None,
    long_run: bool,
    count_cases: Callable[[int], None],
) -> None:
    number = number if long_run else number // 4
    with source_tree_lock(tree):
        member = crew.start(_script(script), tree, counter, TIMES, hold, seconds, number)
        _wait_until_blocked([member])
    longest, descriptors, threads = map(int, member.line(3 * LIMIT).split())
    assert _turns(counter) == number * TIMES
    assert longest <= FAIR * number
    assert (descriptors, threads) == (0, 0)
    count_cases(number * TIMES)


@pytest.mark.once
def test_crowds_of_all_kinds_wait_a_few_fair_turns_at_most(
    crew: Crew, tree: Path, counter: Path, count_cases: Callable[[int], None]
) -> None:
    """A process is one in the kernel's queue, however many threads or tasks wait in its line."""
    processes, threads, tasks, times = 20, 20, 20, 10
    with source_tree_lock(tree):
        members = [
            *(
                crew.start(_script(_PROCESS), tree, counter, times, HOLD, None)
                for _ in range(processes)
            ),
            crew.start(_script(_THREADS), tree, counter, times, HOLD, 3600, threads),
            crew.start(_script(_TASKS), tree, counter, times, HOLD, None, tasks),
        ]
        for member in members[:processes]:
            member.expect("ready")
            member.say("go")
        _wait_until_blocked(members)
    longest = [int(member.line().split()[0]) for member in members]
    everybody = processes + threads + tasks
    assert _turns(counter) == everybody * times
    assert max(longest[:processes]) <= FAIR * len(members)
    count_cases(everybody * times)


#: Takes a tree inside another one, in one order, and stays so long that others wait for seconds.
_TWO_TREES = """
    from source_tree_lock._holder import circle
    looks = []
    find_circle = circle.find_circle
    circle.find_circle = lambda *what: looks.append(1) or find_circle(*what)
    trees = sorted(sys.argv[6:])

    def work(number):
        for turn in range(times):
            with contextlib.ExitStack() as stack:
                # All want the last one.
                for tree in sorted({trees[(number + turn) % len(trees)], trees[-1]}):
                    stack.enter_context(source_tree_lock(tree, timeout=eval(sys.argv[5])))
                time.sleep(hold)

    tell("ready")
    work(int(heard()))
    tell(len(looks))
"""


@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_a_crowd_that_takes_two_trees_in_one_order_is_warned_of_nothing(
    crew: Crew,
    tree: Path,
    counter: Path,
    seconds: float | None,
    long_run: bool,
    count_cases: Callable[[int], None],
) -> None:
    """Each waits for long with a tree of its own: it looks for a circle, and there is none."""
    number, times = 16, 2 if long_run else 1
    trees = [tree / name for name in "abcdefgh"]
    for each in trees:
        each.mkdir()
    script = _script(_TWO_TREES)
    members = [
        crew.start(script, tree, counter, times, 0.2, seconds, *trees) for _ in range(number)
    ]
    for place, member in enumerate(members):
        member.expect("ready")
        member.say(str(place))
    looks = sum(int(member.line()) for member in members)
    assert looks >= number // 4, "hardly anybody looked, so that this shows nothing"
    count_cases(number * times)


_MANY_TREES = """
    import resource
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    directory, in_turn, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    trees = [f"{directory}/{number}" for number in range(in_turn)]
    for tree in trees:
        os.mkdir(tree)

    def usage():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), sys.getallocatedblocks()

    def lock_in_turn(some):
        for tree in some:
            with source_tree_lock(tree):
                pass

    def lock_at_once():
        with contextlib.ExitStack() as stack:
            for tree in trees[:at_once]:
                stack.enter_context(source_tree_lock(tree))
            return len(os.listdir("/proc/self/fd"))

    # The first half fills what the interpreter itself keeps for later use.
    lock_in_turn(trees[: in_turn // 2])
    lock_at_once()
    before = usage()
    lock_in_turn(trees[in_turn // 2 :])
    most = lock_at_once()
    after = usage()
    tell(most, after[0] - before[0], after[1] - before[1])
"""


def test_5000_trees_in_turn_and_500_at_once_leave_nothing_in_memory(
    crew: Crew, tree: Path, temp_dir: Path, count_cases: Callable[[int], None]
) -> None:
    in_turn, at_once = 5000, 500
    member = crew.start(_MANY_TREES, tree, in_turn, at_once)
    most, leaked, blocks = map(int, member.line().split())
    assert most >= 2 * at_once
    assert len(list(temp_dir.glob("*.lock"))) == in_turn
    assert leaked == 0
    # Less than one object for ten trees: nothing is kept for each of them.
    assert blocks < in_turn / 20
    count_cases(in_turn + at_once)
