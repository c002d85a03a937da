"""Interrupted at any moment on the way in or out: afterwards nothing is held, nothing leaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .crew import Crew

_TESTS = Path(__file__).parent.parent

# Interrupts at one place after the other, until there is none left where it could.
_SWEEP = """
    sys.path.insert(0, sys.argv[1])
    import concurrent.futures, itertools
    from attacks.interruption import Interrupt, Interruption, Watch
    tree, seconds, busy, step = sys.argv[2], eval(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    lock = source_tree_lock(tree, timeout=seconds)
    outer = source_tree_lock(tree)
    watch = Watch(lock)

    async def sweep():
        if in_asyncio:
            one_thread = concurrent.futures.ThreadPoolExecutor(1)
            asyncio.get_running_loop().set_default_executor(one_thread)
        for number in itertools.count(FIRST, step):
            await BEFORE
            busy_until_we_wait = watch.make_busy(busy)
            interruption = Interruption(number)
            interrupted = still_locked = False
            try:
                with interruption:
                    await ATTACKED
            except Interrupt:
                interrupted = True
                still_locked = not busy and not outer.locked() and watch.is_locked()
            else:
                if interruption.where:
                    return tell("violation:", interruption.where, "the interruption was lost")
                await UNDO
            busy_until_we_wait.end()
            await AFTER
            if lock.locked():
                return tell("violation:", interruption.where, "it says that it is held")
            left = still_locked or await look()
            if left:
                return tell("violation:", interruption.where, left)
            if not interrupted:
                return tell("tried", (number - FIRST) // step)

    async def look():
        if not in_asyncio:
            return watch.what_is_left()
        # What could not be delivered is given back by the loop, which has to run for that.
        return await asyncio.to_thread(watch.what_is_left)

    async def nothing():
        pass
    async def enter():
        lock.__enter__()
    async def leave():
        lock.__exit__(None, None, None)
    async def acquire():
        assert lock.acquire()
    async def release():
        lock.release()
    async def enter_outer():
        outer.__enter__()
    async def enter_twice():
        outer.__enter__()
        lock.__enter__()
    async def leave_outer():
        assert outer.locked()
        outer.__exit__(None, None, None)
        assert not outer.locked()
    async def unlink():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(lock.lock_file)
    async def unlink_and_link():
        making.LINKS = True
        await unlink()

    in_asyncio = sys.argv[6] == "in a task"
    if in_asyncio:
        asyncio.run(sweep())
    else:
        with contextlib.suppress(StopIteration):
            sweep().send(None)
"""


def _sweep(before: str, attacked: str, undo: str, after: str) -> str:
    # What comes before the first instruction of __exit__ is beyond what Python code can guard.
    first = 2 if "leave" in attacked or "exit" in attacked else 1
    script = _SWEEP.replace("FIRST", str(first)).replace("BEFORE", before)
    return script.replace("ATTACKED", attacked).replace("UNDO", undo).replace("AFTER", after)


_ENTER = _sweep("nothing()", "enter()", "leave()", "nothing()")
_ENTER_NEW = _sweep("unlink()", "enter()", "leave()", "nothing()")
_ENTER_LINKED = _sweep("unlink_and_link()", "enter()", "leave()", "nothing()")
_LEAVE = _sweep("enter()", "leave()", "nothing()", "nothing()")
_ACQUIRE = _sweep("nothing()", "acquire()", "release()", "nothing()")
_ENTER_AGAIN = _sweep("enter_outer()", "enter()", "leave()", "leave_outer()")
_LEAVE_AGAIN = _sweep("enter_twice()", "leave()", "nothing()", "leave_outer()")
_ENTER_TASK = _sweep("nothing()", "lock.__aenter__()", "lock.__aexit__(*[None] * 3)", "nothing()")
_LEAVE_TASK = _sweep("lock.__aenter__()", "lock.__aexit__(*[None] * 3)", "nothing()", "nothing()")


@pytest.mark.parametrize(
    ("script", "seconds", "busy", "owner"),
    [
        pytest.param(_ENTER, None, "", "a thread", id="enter"),
        pytest.param(_ENTER_NEW, None, "", "a thread", id="enter-new"),
        pytest.param(_ENTER_LINKED, None, "", "a thread", id="enter-linked"),
        pytest.param(_ACQUIRE, 3600, "", "a thread", id="acquire"),
        pytest.param(_ENTER_AGAIN, None, "", "a thread", id="enter-again"),
        pytest.param(_LEAVE_AGAIN, None, "", "a thread", id="leave-again"),
        pytest.param(_LEAVE, None, "", "a thread", id="leave"),
        pytest.param(_ENTER_TASK, None, "", "in a task", id="enter-in-a-task"),
        pytest.param(_LEAVE_TASK, None, "", "in a task", id="leave-in-a-task"),
        pytest.param(_ENTER, None, "lock file", "a thread", id="busy"),
        pytest.param(_ENTER, 3600, "lock file", "a thread", id="busy-in-time"),
        pytest.param(_ENTER_TASK, None, "lock file", "in a task", id="busy-in-a-task"),
        pytest.param(_ENTER_TASK, 3600, "lock file", "in a task", id="busy-in-a-task-in-time"),
        pytest.param(_ENTER, None, "tree", "a thread", id="tree-busy"),
        pytest.param(_ENTER, 3600, "tree", "a thread", id="tree-busy-in-time"),
        pytest.param(_ENTER_TASK, None, "tree", "in a task", id="tree-busy-in-a-task"),
    ],
)
def test_interrupted_where_python_looks_for_signals_nothing_is_held(
    crew: Crew,
    tree: Path,
    count_cases: Callable[[int], None],
    long_run: bool,
    script: str,
    seconds: float | None,
    busy: str,
    owner: str,
) -> None:
    step = 3 if busy and not long_run else 1
    member = crew.start(script, _TESTS, tree, seconds, busy, step, owner)
    tried, _, number = member.line().partition(" ")
    assert tried == "tried", number
    assert int(number) * step > 15, "the attack missed"
    count_cases(int(number))


# Real signals, at random moments

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

# Sends signals as long as somebody is there to get them.
_KICK = """
    heard()
    while True:
        time.sleep(random.random() * 0.0005)
        os.kill(int(sys.argv[1]), signal.SIGINT)
"""

# The handler raises between the call to enter and its return, and nowhere else.
_ENTER_UNDER_FIRE = """
    sys.path.insert(0, sys.argv[1])
    from attacks.interruption import Watch, soon
    tree, number, wanted = sys.argv[2], sys.argv[4], int(sys.argv[5])
    lock = source_tree_lock(tree, timeout=eval(sys.argv[3]))
    watch = Watch(lock)
    under_fire = False
    hits = returned = 0

    class Alarm(Exception):
        pass

    def handler(number, frame):
        global under_fire, inside
        if under_fire:
            under_fire = False
            inside = False
            while frame is not None:
                inside = inside or frame.f_code is type(lock).__enter__.__code__
                frame = frame.f_back
            raise KeyboardInterrupt if number == signal.SIGINT else Alarm

    signal.signal(signal.SIGALRM, handler)
    signal.signal(signal.SIGINT, handler)
    took = time.monotonic()
    for _ in range(20):
        with lock:
            pass
    took = (time.monotonic() - took) / 20
    tell("ready")
    heard()
    while hits < wanted:
        if number == "SIGALRM":
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, random.random() * 1.5 * took))
        try:
            under_fire = True
            lock.__enter__()
            under_fire = False
        except (KeyboardInterrupt, Alarm, SystemError) as error:
            # Python 3.10 makes a SystemError of what the handler raises, once in a thousand times,
            # around any call of C.
            if not isinstance(error, KeyboardInterrupt | Alarm):
                assert isinstance(error.__cause__, KeyboardInterrupt | Alarm), error
            hits += inside
            if inside and lock.locked():
                tell("interrupted, it still holds the tree")
                break
        under_fire = False
        returned += lock.locked()
        if lock.locked():
            lock.release()
        # What was left locked would keep this one out.
        again = source_tree_lock(tree, timeout=60)
        if not again.acquire():
            tell("somebody keeps the tree locked")
            break
        again.release()
    tell("survived", hits, returned)
    heard()
    tell(watch.what_is_left())
"""


@pytest.mark.parametrize("contended", [False, True], ids=["free", "busy"])
@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
@pytest.mark.parametrize("number", ["SIGALRM", "SIGINT"])
def test_a_handler_that_raises_while_it_enters_leaves_nothing_locked(
    crew: Crew,
    tree: Path,
    count_cases: Callable[[int], None],
    long_run: bool,
    number: str,
    seconds: float | None,
    contended: bool,
) -> None:
    wanted = 2000 if long_run else 300
    rival = None
    if contended:
        rival = crew.start(_RIVAL, tree)
        rival.expect("ready")
    member = crew.start(_ENTER_UNDER_FIRE, _TESTS, tree, seconds, number, wanted)
    member.expect("ready")
    if number == "SIGINT":
        kicker = crew.start(_KICK, member.pid)
        kicker.say("kick")
    member.say("go")
    outcome, hits, _ = member.line().rsplit(" ", 2)
    assert outcome == "survived"
    if number == "SIGINT":
        kicker.close()
    if rival is not None:
        rival.say("end")
        rival.wait()
    member.say("look")
    member.expect("")
    count_cases(int(hits))


_CANCEL_UNDER_FIRE = """
    sys.path.insert(0, sys.argv[1])
    from attacks.interruption import Watch
    tree, seconds, wanted = sys.argv[2], eval(sys.argv[3]), int(sys.argv[4])
    lock = source_tree_lock(tree, timeout=seconds)
    watch = Watch(lock)
    inside = entered = cancelled = 0

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

    async def one_after_the_other():
        global cancelled
        loop = asyncio.get_running_loop()
        while cancelled < wanted:
            tasks = [asyncio.create_task(enter()) for _ in range(random.randint(1, 4))]
            for task in tasks:
                loop.call_later(random.random() * 0.003, task.cancel)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, asyncio.CancelledError):
                    cancelled += 1
                elif result is not None:
                    tell(repr(result))
                    return
        async with source_tree_lock(tree, timeout=60):
            pass

    tell("ready")
    heard()
    asyncio.run(one_after_the_other())
    tell("survived", cancelled, entered)
    heard()
    tell(watch.what_is_left())
"""


@pytest.mark.parametrize("seconds", [None, 3600], ids=["for ever", "in time"])
def test_a_task_that_is_cancelled_while_it_enters_leaves_nothing_locked(
    crew: Crew,
    tree: Path,
    count_cases: Callable[[int], None],
    long_run: bool,
    seconds: float | None,
) -> None:
    rival = crew.start(_RIVAL, tree)
    rival.expect("ready")
    member = crew.start(_CANCEL_UNDER_FIRE, _TESTS, tree, seconds, 4000 if long_run else 600)
    member.expect("ready")
    member.say("go")
    outcome, cancelled, entered = member.line().rsplit(" ", 2)
    assert outcome == "survived"
    assert int(entered) > 0, "it was cancelled before it ever entered"
    rival.say("end")
    rival.wait()
    member.say("look")
    member.expect("")
    count_cases(int(cancelled))
