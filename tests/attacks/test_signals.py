"""Ctrl-C and cancellation at random moments: nothing is held once the lock object is left."""

from __future__ import annotations

from collections.abc import Callable
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

# An interruption within microseconds of an entry or exit may leave the tree held until the lock
# object is released or dropped, as with every lock of Python: then it is released here.
_INTERRUPTED = """
    tree, seconds, wanted = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])
    under_fire = False
    hits = 0

    def handler(number, frame):
        global under_fire
        if under_fire:
            under_fire = False
            raise KeyboardInterrupt

    def left():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def enter_and_leave(limit):
        global under_fire, hits
        lock = source_tree_lock(tree, timeout=seconds)
        if limit:
            signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            under_fire = bool(limit)
            with lock:
                pass
            under_fire = False
        except (KeyboardInterrupt, SystemError) as error:
            # Python 3.10 makes a SystemError of what the handler raises, once in a thousand times.
            assert isinstance(error, KeyboardInterrupt) or isinstance(
                error.__cause__, KeyboardInterrupt
            )
            hits += 1
        under_fire = False
        if lock.is_owner():
            lock.release()
        assert not lock.is_owner()

    import warnings
    warnings.simplefilter("ignore", ResourceWarning)  # it was dropped while it held the tree
    signal.signal(signal.SIGALRM, handler)
    took = time.monotonic()
    for _ in range(20):
        enter_and_leave(0)
    took = (time.monotonic() - took) / 20
    before = left()
    tell("ready")
    heard()
    while hits < wanted:
        enter_and_leave(max(1e-6, random.random() * 1.5 * took))
        # What was left locked would keep this one out.
        gc.collect()
        with source_tree_lock(tree, timeout=60):
            pass
    tell("survived", hits)
    heard()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and left() > before:
        gc.collect()
        time.sleep(0.001)
    tell(left() <= before, source_tree_lock(tree).acquire(timeout=0))
"""

_CANCELLED = """
    tree, seconds, wanted = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])
    lock = source_tree_lock(tree, timeout=seconds)
    inside = entered = hits = 0

    def left():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    async def enter():
        global inside, entered
        async with lock:
            inside += 1
            assert inside == 1
            try:
                await asyncio.sleep(random.random() * 0.0005)
            finally:
                inside -= 1
            entered += 1

    async def enter_by_another_task():
        # Before Python 3.12, wait_for enters in a task of its own; another one leaves.
        await asyncio.wait_for(lock.__aenter__(), 0.002 * random.random())
        await lock.__aexit__(None, None, None)

    async def main():
        global hits
        loop = asyncio.get_running_loop()
        while hits < wanted or not entered:
            tasks = [asyncio.create_task(enter()) for _ in range(random.randint(1, 4))]
            tasks.append(asyncio.create_task(enter_by_another_task()))
            for task in tasks[:-1]:
                loop.call_later(random.random() * 0.003, task.cancel)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, (asyncio.CancelledError, asyncio.TimeoutError)):
                    hits += 1
                elif result is not None:
                    tell(repr(result))
                    return
        async with source_tree_lock(tree, timeout=60):
            pass

    with lock:
        pass
    before = left()
    tell("ready")
    heard()
    asyncio.run(main())
    tell("survived", hits)
    heard()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and left() > before:
        gc.collect()
        time.sleep(0.001)
    tell(left() <= before, source_tree_lock(tree).acquire(timeout=0))
"""


@pytest.mark.timeout(5 * LIMIT)
@pytest.mark.parametrize("contended", [False, True], ids=["free", "busy"])
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
@pytest.mark.parametrize("attack", [_INTERRUPTED, _CANCELLED], ids=["Ctrl-C", "cancelled"])
def test_interrupted_at_random_moments_it_leaves_nothing_held(
    crew: Crew,
    tree: Path,
    count_cases: Callable[[int], None],
    long_run: bool,
    attack: str,
    seconds: float | None,
    contended: bool,
) -> None:
    rival = crew.start(_RIVAL, tree) if contended else None
    if rival is not None:
        rival.expect("ready")
    member = crew.start(attack, tree, seconds, 2000 if long_run else 40)
    member.expect("ready")
    member.say("go")
    outcome, _, hits = member.line(3 * LIMIT).partition(" ")
    assert outcome == "survived", hits
    if rival is not None:
        rival.say("end")
        rival.wait()
    member.say("look")
    member.expect("True True")
    count_cases(int(hits))
