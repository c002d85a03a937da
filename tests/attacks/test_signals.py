"""Ctrl-C and cancellation at every moment: nothing is held once the lock object is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import LIMIT

from .crew import Crew

# Enters and leaves all the time, for short whiles, until it is told to end.
_RIVAL = """
    import select
    lock = source_tree_lock(sys.argv[1])
    tell("ready")
    while not select.select([connection], [], [], 0)[0]:
        with lock:
            time.sleep(random.random() * 0.001)
        time.sleep(random.random() * 0.0005)
"""
_COMMON = """
tree, seconds, step = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])

def left():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def look(patience):
    # What was left locked would keep this one out. Threads that wait for nobody end soon.
    gc.collect()
    with source_tree_lock(tree, timeout=60):
        pass
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and left() > before:
        time.sleep(0.001)
    return left() <= before

for _ in range(2):
    with source_tree_lock(tree, timeout=60):
        pass
before = left()
"""
# A signal handler runs between two byte codes. Here, an error comes before each line of the library
# in turn; by the clock, the machine's load would choose the lines. An interruption of an entry or
# exit may leave the tree held until the lock object is released or dropped, as with every lock of
# Python: then it is released here. A line that starts with `with` is left out: it is traced once
# more before `__exit__` is called, where no signal handler runs; an error there would skip it.
_INTERRUPTED = """
import linecache

def interrupt(frame, event, argument):
    global lines
    if event == "call" and "source_tree_lock" not in frame.f_code.co_filename:
        return None
    code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split()
    if event == "line" and code[:1] != ["with"]:
        lines -= 1
        if lines == 0:
            where.append(frame.f_code.co_name)
            raise KeyboardInterrupt
    return interrupt

def enter_and_leave():
    lock = source_tree_lock(tree, timeout=seconds)
    try:
        sys.settrace(interrupt)
        with lock:
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    if lock.is_owner():
        lock.release()
    assert not lock.is_owner()

import warnings
warnings.simplefilter("ignore", ResourceWarning)  # it was dropped while it held the tree
where = []
for number in range(1, 10_000, step):
    lines = number
    enter_and_leave()
    if lines > 0:
        break
    # An interrupted `close` unlocks, and may lose the descriptor: closing the number twice would be
    # worse, as it may be another's by then.
    if not look(0.1 if where[-1] == "close" else 60):
        if where[-1] != "close":
            tell("left behind by an interruption of", where[-1])
        before = left()
tell("interrupted", len(where) > 20)
"""
_CANCELLED = """
lock = source_tree_lock(tree, timeout=seconds)
inside = 0

async def enter():
    global inside
    async with lock:
        inside += 1
        assert inside == 1
        try:
            await asyncio.sleep(random.random() * 0.0005)
        finally:
            inside -= 1

async def enter_by_another_task():
    # Before Python 3.12, wait_for enters in a task of its own; another one leaves.
    await asyncio.wait_for(lock.__aenter__(), 0.002 * random.random())
    await lock.__aexit__(None, None, None)

async def main():
    cancelled = 0
    for steps in range(0, 400, step):
        tasks = [asyncio.create_task(enter()) for _ in range(random.randint(1, 4))]
        tasks.append(asyncio.create_task(enter_by_another_task()))
        for task in tasks[:-1]:
            for _ in range(steps % 20):
                await asyncio.sleep(0)
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, (asyncio.CancelledError, asyncio.TimeoutError)):
                cancelled += 1
            elif result is not None:
                raise result
    return cancelled

cancelled = asyncio.run(main())
if not look(60):
    tell("left behind")
tell("interrupted", cancelled > 0)
"""


@pytest.mark.timeout(5 * LIMIT)
@pytest.mark.parametrize("contended", [False, True], ids=["free", "busy"])
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
@pytest.mark.parametrize("attack", [_INTERRUPTED, _CANCELLED], ids=["Ctrl-C", "cancelled"])
def test_interrupted_at_any_moment_it_leaves_nothing_held(
    crew: Crew,
    tree: Path,
    long_run: bool,
    attack: str,
    seconds: float | None,
    contended: bool,
) -> None:
    rival = crew.start(_RIVAL, tree) if contended else None
    if rival is not None:
        rival.expect("ready")
    member = crew.start(_COMMON + attack, tree, seconds, 1 if long_run or not contended else 7)
    outcome = member.line(3 * LIMIT)
    assert outcome == "interrupted True"
